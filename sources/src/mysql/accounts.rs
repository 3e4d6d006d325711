//! Users, roles and grants as statements. The server's own accounts and root are never among them.
//!
//! `accounts.sql` comes first, since views and routines run as their definers: roles, users, who has which role, rights on everything and on
//! databases. `grants.sql` comes after the tables and routines that its rights name. Each statement follows a line `-- account USER@HOST`,
//! by which a restore knows whom it concerns.

use crate::mysql::connection::{Connection, Server, ident, quoted};
use crate::mysql::ddl::PREAMBLE;
use bk_core::error::Result;
use bk_core::name::escape;
use std::fmt::Write;

/// Accounts as members.
#[derive(Debug, Default)]
pub struct Accounts {
    /// Roles, users, rights on everything and on databases.
    pub first: String,
    /// Rights on tables, columns and routines.
    pub grants: String,
    /// How many accounts.
    pub count: u64,
    /// What could not be carried.
    pub warnings: Vec<String>,
}

/// An account or a role.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Account {
    /// Name.
    pub user: String,
    /// Host; empty for a role of MariaDB.
    pub host: String,
    /// A role of MariaDB; MySQL has locked accounts instead.
    pub role: bool,
}

impl Account {
    /// As SQL.
    pub fn sql(&self) -> String {
        if self.role {
            ident(&self.user)
        } else {
            format!("{}@{}", ident(&self.user), ident(&self.host))
        }
    }

    /// In the line before a statement.
    pub fn label(&self) -> String {
        format!(
            "{}@{}",
            escape(self.user.as_bytes()),
            escape(self.host.as_bytes())
        )
    }

    /// Whether it belongs to the server, or is root: never dumped, never touched.
    pub fn is_reserved(&self) -> bool {
        matches!(
            self.user.as_str(),
            "root"
                | "mysql"
                | "mariadb.sys"
                | "mysql.sys"
                | "mysql.session"
                | "mysql.infoschema"
                | "PUBLIC"
                | ""
        )
    }
}

/// All accounts that are not the server's own.
pub async fn list(connection: &mut Connection, server: &Server) -> Result<Vec<Account>> {
    let role = if server.is_maria() { "is_role" } else { "'N'" };
    let rows = connection
        .rows(format!(
            "SELECT User, Host, {role} FROM mysql.user ORDER BY 3 = 'N', User, Host"
        ))
        .await?;
    Ok(rows
        .iter()
        .map(|row| Account {
            user: row.word(0),
            host: row.word(1),
            role: row.word(2) == "Y",
        })
        .filter(|account| !account.is_reserved())
        .collect())
}

/// Reads them all.
pub async fn read(connection: &mut Connection, server: &Server) -> Result<Accounts> {
    let list = list(connection, server).await?;
    let mut accounts = Accounts {
        first: PREAMBLE.to_owned(),
        grants: PREAMBLE.to_owned(),
        count: list.len() as u64,
        warnings: Vec::new(),
    };
    for account in &list {
        accounts.create(connection, account).await?;
    }
    for account in &list {
        accounts.grants_of(connection, server, account).await?;
    }
    if !server.is_maria() {
        accounts.default_roles(connection).await?;
    }
    Ok(accounts)
}

impl Accounts {
    fn say(to: &mut String, account: &Account, sql: &str) {
        let _ = writeln!(to, "-- account {}\n{sql};", account.label());
    }

    async fn create(&mut self, connection: &mut Connection, account: &Account) -> Result<()> {
        if account.role {
            Self::say(
                &mut self.first,
                account,
                &format!("CREATE ROLE IF NOT EXISTS {}", account.sql()),
            );
            return Ok(());
        }
        let shown = connection
            .value(format!("SHOW CREATE USER {}", account.sql()))
            .await?
            .unwrap_or_default();
        let rest = shown.strip_prefix("CREATE USER ").unwrap_or(&shown);
        Self::say(
            &mut self.first,
            account,
            &format!("CREATE USER IF NOT EXISTS {}", without_default_role(rest)),
        );
        Ok(())
    }

    async fn grants_of(
        &mut self,
        connection: &mut Connection,
        server: &Server,
        account: &Account,
    ) -> Result<()> {
        let rows = match connection
            .rows(format!("SHOW GRANTS FOR {}", account.sql()))
            .await
        {
            Ok(rows) => rows,
            Err(error) => {
                self.warnings.push(format!(
                    "the rights of {} are not read: {error}",
                    account.sql()
                ));
                return Ok(());
            }
        };
        for row in rows {
            let line = row.word(0);
            // Inherited roles are printed with a role's own rights; they belong to their own account.
            let sql = without_password(&line);
            if server.is_maria() && !names_grantee(&sql, account) {
                continue;
            }
            let target = sql.split_once(" ON ").map(|(_, rest)| rest);
            let early = target.is_none_or(|rest| rest.starts_with("*.*") || on_database(rest));
            let to = if early {
                &mut self.first
            } else {
                &mut self.grants
            };
            Self::say(to, account, &sql);
        }
        Ok(())
    }

    async fn default_roles(&mut self, connection: &mut Connection) -> Result<()> {
        let rows = connection
            .rows("SELECT USER, HOST, DEFAULT_ROLE_USER, DEFAULT_ROLE_HOST FROM mysql.default_roles ORDER BY 1, 2, 3, 4")
            .await?;
        let mut last: Option<(Account, Vec<String>)> = None;
        let mut all = Vec::new();
        for row in rows {
            let account = Account {
                user: row.word(0),
                host: row.word(1),
                role: false,
            };
            if account.is_reserved() {
                continue;
            }
            let role = format!("{}@{}", ident(&row.word(2)), ident(&row.word(3)));
            match &mut last {
                Some((same, roles)) if *same == account => roles.push(role),
                _ => all.extend(last.replace((account, vec![role]))),
            }
        }
        all.extend(last);
        for (account, roles) in all {
            let sql = format!("SET DEFAULT ROLE {} TO {}", roles.join(","), account.sql());
            Self::say(&mut self.first, &account, &sql);
        }
        Ok(())
    }
}

/// `db`.* after ON.
fn on_database(rest: &str) -> bool {
    if !rest.starts_with('`') {
        return false;
    }
    crate::mysql::lexer::behind_quote(rest.as_bytes(), 0, b'`')
        .is_some_and(|at| rest[at + 1..].starts_with(".*"))
}

/// SHOW GRANTS of MariaDB says the password once more; replayed, it would change an existing account's.
fn without_password(line: &str) -> String {
    for word in [" IDENTIFIED BY PASSWORD ", " IDENTIFIED VIA ", " REQUIRE "] {
        if let Some(at) = outside_quotes(line, word) {
            let tail = &line[at + word.len()..];
            let option = outside_quotes(tail, " WITH ").map_or("", |with| &tail[with..]);
            return without_password(&format!("{}{option}", &line[..at]));
        }
    }
    line.to_owned()
}

/// `DEFAULT ROLE …` stands in SHOW CREATE USER before the roles are granted.
fn without_default_role(text: &str) -> String {
    let Some(at) = outside_quotes(text, " DEFAULT ROLE ") else {
        return text.to_owned();
    };
    let tail = &text[at + " DEFAULT ROLE ".len()..];
    let end = [" REQUIRE ", " WITH ", " PASSWORD ", " ACCOUNT "]
        .iter()
        .filter_map(|word| outside_quotes(tail, word))
        .min()
        .unwrap_or(tail.len());
    format!("{}{}", &text[..at], &tail[end..])
}

fn outside_quotes(text: &str, word: &str) -> Option<usize> {
    crate::mysql::lexer::outside_quotes(text.as_bytes(), word.as_bytes())
}

fn names_grantee(sql: &str, account: &Account) -> bool {
    let Some(at) = outside_quotes(sql, " TO ").or_else(|| outside_quotes(sql, " FOR ")) else {
        return true;
    };
    let grantee = sql[at..]
        .trim_start_matches(" TO ")
        .trim_start_matches(" FOR ");
    let single = format!("{}@{}", quoted(&account.user), quoted(&account.host));
    grantee.starts_with(&account.sql())
        || grantee.starts_with(&single)
        || grantee.starts_with(&quoted(&account.user))
}

/// Whom a statement of ours concerns, and the statement alone.
pub fn labelled(sql: &[u8]) -> (Option<String>, &[u8]) {
    const BEGIN: &[u8] = b"-- account ";
    match sql.strip_prefix(BEGIN) {
        Some(rest) => {
            let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
            (
                Some(String::from_utf8_lossy(&rest[..end]).into_owned()),
                rest[end..].trim_ascii_start(),
            )
        }
        None => (None, sql),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_never_carries_a_password() {
        assert_eq!(
            without_password(
                "GRANT USAGE ON *.* TO `a`@`%` IDENTIFIED BY PASSWORD '*AB' REQUIRE SSL WITH GRANT OPTION"
            ),
            "GRANT USAGE ON *.* TO `a`@`%` WITH GRANT OPTION"
        );
        assert_eq!(
            without_password("GRANT SELECT ON `x IDENTIFIED BY PASSWORD `.* TO `a`@`%`"),
            "GRANT SELECT ON `x IDENTIFIED BY PASSWORD `.* TO `a`@`%`"
        );
    }

    #[test]
    fn default_roles_are_set_after_the_roles_are_granted() {
        assert_eq!(
            without_default_role(
                "`a`@`%` IDENTIFIED WITH 'x' AS 0x12 DEFAULT ROLE `r`@`%`,`s`@`%` REQUIRE NONE ACCOUNT LOCK"
            ),
            "`a`@`%` IDENTIFIED WITH 'x' AS 0x12 REQUIRE NONE ACCOUNT LOCK"
        );
    }
}
