//! Accounts of a dump that holds them as rows of the server's own tables, as statements.
//!
//! The rows are never written into the target's tables: those differ from family to family and from version to version, and a row too many
//! locks everybody out. Columns are known by their names, so every version's tables can be read. Read are those of MySQL 5.7 and later
//! (`user`, `db`, `tables_priv`, `columns_priv`, `procs_priv`, `global_grants`, `role_edges`, `default_roles`) and of MariaDB 10.4 and later
//! (`global_priv`, `roles_mapping` and the same four).

use crate::mysql::accounts::Account;
use crate::mysql::connection::{full, ident, quoted};
use crate::mysql::lexer::{CreateTable, find, quoted_names};
use crate::mysql::statement::Rows;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

const TABLES: [&str; 13] = [
    "user",
    "db",
    "tables_priv",
    "columns_priv",
    "procs_priv",
    "global_grants",
    "role_edges",
    "default_roles",
    "global_priv",
    "roles_mapping",
    "proxies_priv",
    "proc",
    "event",
];

/// `…_priv` columns whose right is called otherwise.
const RENAMED: [(&str, &str); 7] = [
    ("SHOW DB", "SHOW DATABASES"),
    ("CREATE TMP TABLE", "CREATE TEMPORARY TABLES"),
    ("REPL SLAVE", "REPLICATION SLAVE"),
    ("REPL CLIENT", "REPLICATION CLIENT"),
    ("DELETE HISTORY", "DELETE HISTORY"),
    ("GRANT", "GRANT OPTION"),
    ("SHOW CREATE ROUTINE", "SHOW CREATE ROUTINE"),
];

/// Bits of `access` in MariaDB's `global_priv`, from the lowest: `sql/privilege.h`.
const ACCESS_BITS: [&str; 40] = [
    "SELECT",
    "INSERT",
    "UPDATE",
    "DELETE",
    "CREATE",
    "DROP",
    "RELOAD",
    "SHUTDOWN",
    "PROCESS",
    "FILE",
    "GRANT OPTION",
    "REFERENCES",
    "INDEX",
    "ALTER",
    "SHOW DATABASES",
    "SUPER",
    "CREATE TEMPORARY TABLES",
    "LOCK TABLES",
    "EXECUTE",
    "REPLICATION SLAVE",
    "BINLOG MONITOR",
    "CREATE VIEW",
    "SHOW VIEW",
    "CREATE ROUTINE",
    "ALTER ROUTINE",
    "CREATE USER",
    "EVENT",
    "TRIGGER",
    "CREATE TABLESPACE",
    "DELETE HISTORY",
    "SET USER",
    "FEDERATED ADMIN",
    "CONNECTION ADMIN",
    "READ_ONLY ADMIN",
    "REPLICATION SLAVE ADMIN",
    "REPLICATION MASTER ADMIN",
    "BINLOG ADMIN",
    "BINLOG REPLAY",
    "SLAVE MONITOR",
    "SHOW CREATE ROUTINE",
];

/// The server's own tables of accounts, as far as a dump holds them.
#[derive(Debug, Default)]
pub struct GrantTables {
    columns: HashMap<String, Vec<String>>,
    rows: BTreeMap<String, Vec<Row>>,
}

/// A row by column, names in capitals; no NULLs.
type Row = HashMap<String, Vec<u8>>;

/// Accounts as statements, each behind the line that names its account.
#[derive(Debug, Default)]
pub struct Statements {
    /// Roles, users, rights on everything and on databases.
    pub first: Vec<String>,
    /// Rights on tables, columns and routines.
    pub grants: Vec<String>,
    /// What is not carried.
    pub warnings: Vec<String>,
}

impl GrantTables {
    /// Learns the columns of a table.
    pub fn table(&mut self, name: &str, sql: &[u8]) {
        let name = name.to_lowercase();
        if !TABLES.contains(&name.as_str()) {
            return;
        }
        let columns = CreateTable::parse(sql)
            .map(|table| table.clauses)
            .unwrap_or_default()
            .iter()
            .filter(|clause| clause.starts_with(b"`"))
            .filter_map(|clause| quoted_names(clause).into_iter().next())
            .map(|column| column.to_uppercase())
            .collect();
        self.columns.insert(name, columns);
    }

    /// Takes the rows of an INSERT.
    pub fn rows(&mut self, name: &str, sql: &[u8]) {
        let name = name.to_lowercase();
        let (Some(columns), Some(rows)) = (self.columns.get(&name), Rows::of(sql, false)) else {
            return;
        };
        // Comments of the dumper may stand before the statement, with names in them.
        let from = find(&sql[..rows.head], b"INSERT").unwrap_or(0);
        let named: Vec<String> = quoted_names(&sql[from..rows.head])
            .into_iter()
            .skip(1)
            .map(|column| column.to_uppercase())
            .collect();
        let columns = if named.is_empty() { columns } else { &named };
        let taken = rows.starts.iter().zip(&rows.ends).map(|(from, to)| {
            let cells = cells(&sql[*from..*to]);
            let cells = columns.iter().cloned().zip(cells);
            cells
                .filter_map(|(column, cell)| Some((column, cell?)))
                .collect()
        });
        self.rows.entry(name).or_default().extend(taken);
    }

    /// Whether the dump holds no account.
    pub fn is_empty(&self) -> bool {
        self.of("user").is_empty() && self.of("global_priv").is_empty()
    }

    fn of(&self, table: &str) -> &[Row] {
        self.rows.get(table).map_or(&[], Vec::as_slice)
    }

    /// Routines or events that stand as rows of the server's tables, by database: dumps without `--routines` hold them only so.
    pub fn programs(&self) -> Vec<(String, String)> {
        let rows = self.of("proc").iter().chain(self.of("event"));
        rows.map(|row| (text(row, "DB"), text(row, "NAME")))
            .collect()
    }

    /// All of it as statements.
    pub fn statements(&self) -> Statements {
        let mut statements = Statements::default();
        for row in self.of("user") {
            // In MariaDB `user` is a view of `global_priv`.
            if self.of("global_priv").is_empty() {
                statements.mysql_user(row);
            }
        }
        for row in self.of("global_priv") {
            statements.maria_user(row);
        }
        for row in self.of("global_grants") {
            let account = account(row);
            let option = option(text(row, "WITH_GRANT_OPTION") == "Y");
            let right = text(row, "PRIV");
            statements.first(
                &account,
                format!("GRANT {right} ON *.* TO {}{option}", account.sql()),
            );
        }
        self.databases(&mut statements);
        self.roles(&mut statements);
        self.parts(&mut statements);
        if !self
            .of("proxies_priv")
            .iter()
            .all(|row| text(row, "USER") == "root")
        {
            statements
                .warnings
                .push("rights to act as a proxy are not restored from this dump".into());
        }
        statements
    }

    fn databases(&self, statements: &mut Statements) {
        for row in self.of("db") {
            let account = account(row);
            let (rights, may_grant) = rights_of(row);
            let on = format!("{}.*", ident(&text(row, "DB")));
            statements.first(&account, grant(&rights, &on, &account, may_grant));
        }
    }

    fn roles(&self, statements: &mut Statements) {
        for row in self.of("role_edges") {
            let role = format!(
                "{}@{}",
                ident(&text(row, "FROM_USER")),
                ident(&text(row, "FROM_HOST"))
            );
            let to = user(text(row, "TO_USER"), text(row, "TO_HOST"));
            let admin = admin(&text(row, "WITH_ADMIN_OPTION"));
            statements.first(&to, format!("GRANT {role} TO {}{admin}", to.sql()));
        }
        for row in self.of("roles_mapping") {
            let host = text(row, "HOST");
            let to = Account {
                user: text(row, "USER"),
                role: host.is_empty(),
                host,
            };
            let role = ident(&text(row, "ROLE"));
            let admin = admin(&text(row, "ADMIN_OPTION"));
            // Each role is mapped to the account that made it as well.
            if to.user != "root" {
                statements.first(&to, format!("GRANT {role} TO {}{admin}", to.sql()));
            }
        }
        for row in self.of("default_roles") {
            let to = account(row);
            let role = format!(
                "{}@{}",
                ident(&text(row, "DEFAULT_ROLE_USER")),
                ident(&text(row, "DEFAULT_ROLE_HOST"))
            );
            statements.first(&to, format!("SET DEFAULT ROLE {role} TO {}", to.sql()));
        }
        for row in self.of("global_priv") {
            let account = maria_account(row);
            if let Some(role) = private(row).get("default_role").and_then(Value::as_str)
                && !role.is_empty()
            {
                statements.first(
                    &account,
                    format!("SET DEFAULT ROLE {} FOR {}", ident(role), account.sql()),
                );
            }
        }
    }

    /// Rights on tables, columns and routines.
    fn parts(&self, statements: &mut Statements) {
        for row in self.of("tables_priv") {
            let account = account(row);
            let (rights, may_grant) = words(&text(row, "TABLE_PRIV"));
            let on = full(&text(row, "DB"), &text(row, "TABLE_NAME"));
            if !rights.is_empty() || may_grant {
                statements.later(&account, grant(&rights, &on, &account, may_grant));
            }
        }
        for row in self.of("columns_priv") {
            let account = account(row);
            let column = ident(&text(row, "COLUMN_NAME"));
            let (rights, _) = words(&text(row, "COLUMN_PRIV"));
            let rights: Vec<_> = rights.iter().map(|r| format!("{r} ({column})")).collect();
            let on = full(&text(row, "DB"), &text(row, "TABLE_NAME"));
            statements.later(&account, grant(&rights, &on, &account, false));
        }
        for row in self.of("procs_priv") {
            let account = account(row);
            let (rights, may_grant) = words(&text(row, "PROC_PRIV"));
            let on = format!(
                "{} {}",
                text(row, "ROUTINE_TYPE"),
                full(&text(row, "DB"), &text(row, "ROUTINE_NAME"))
            );
            statements.later(&account, grant(&rights, &on, &account, may_grant));
        }
    }
}

impl Statements {
    fn first(&mut self, account: &Account, sql: String) {
        if !account.is_reserved() {
            self.first
                .push(format!("-- account {}\n{sql}", account.label()));
        }
    }

    fn later(&mut self, account: &Account, sql: String) {
        if !account.is_reserved() {
            self.grants
                .push(format!("-- account {}\n{sql}", account.label()));
        }
    }

    fn mysql_user(&mut self, row: &Row) {
        let account = account(row);
        // Of MariaDB up to 10.3.
        if text(row, "IS_ROLE") == "Y" {
            let role = Account {
                role: true,
                ..account
            };
            let made = format!("CREATE ROLE IF NOT EXISTS {}", role.sql());
            self.first(&role, made);
            let (rights, may_grant) = rights_of(row);
            self.first(&role, grant(&rights, "*.*", &role, may_grant));
            return;
        }
        let mut sql = format!("CREATE USER IF NOT EXISTS {}", account.sql());
        let column = |name: &str| row.get(name).filter(|value| !value.is_empty()).cloned();
        // Up to MySQL 5.6 and MariaDB 10.3 the hash stands in a column of its own.
        let old = column("PASSWORD");
        let plugin = match (text(row, "PLUGIN"), &old) {
            (plugin, Some(_)) if plugin.is_empty() => "mysql_native_password".to_owned(),
            (plugin, _) => plugin,
        };
        let secret = column("AUTHENTICATION_STRING").or(old).unwrap_or_default();
        if !plugin.is_empty() {
            let _ = write!(sql, " IDENTIFIED WITH {}", quoted(&plugin));
            if !secret.is_empty() && secret.iter().all(u8::is_ascii_graphic) {
                // Both families read it so.
                let _ = write!(sql, " AS {}", quoted(&String::from_utf8_lossy(&secret)));
            } else if !secret.is_empty() {
                sql.push_str(" AS 0x");
                secret.iter().for_each(|byte| {
                    let _ = write!(sql, "{byte:02x}");
                });
            }
        }
        sql.push_str(&requirement(
            &text(row, "SSL_TYPE"),
            &text(row, "X509_SUBJECT"),
            &text(row, "X509_ISSUER"),
            &text(row, "SSL_CIPHER"),
        ));
        let limits = [
            ("MAX_QUESTIONS", "MAX_QUERIES_PER_HOUR"),
            ("MAX_UPDATES", "MAX_UPDATES_PER_HOUR"),
            ("MAX_CONNECTIONS", "MAX_CONNECTIONS_PER_HOUR"),
            ("MAX_USER_CONNECTIONS", "MAX_USER_CONNECTIONS"),
        ];
        sql.push_str(&limited(
            limits.map(|(column, word)| (word, text(row, column))),
        ));
        if text(row, "PASSWORD_EXPIRED") == "Y" {
            sql.push_str(" PASSWORD EXPIRE");
        } else if let Some(days) = row.get("PASSWORD_LIFETIME") {
            let days = String::from_utf8_lossy(days);
            let _ = match days.as_ref() {
                "0" => write!(sql, " PASSWORD EXPIRE NEVER"),
                days => write!(sql, " PASSWORD EXPIRE INTERVAL {days} DAY"),
            };
        }
        if text(row, "ACCOUNT_LOCKED") == "Y" {
            sql.push_str(" ACCOUNT LOCK");
        }
        for (column, word, unit) in [
            ("PASSWORD_REUSE_HISTORY", "HISTORY", ""),
            ("PASSWORD_REUSE_TIME", "REUSE INTERVAL", " DAY"),
        ] {
            if row.contains_key(column) {
                let _ = write!(sql, " PASSWORD {word} {}{unit}", text(row, column));
            }
        }
        match text(row, "PASSWORD_REQUIRE_CURRENT").as_str() {
            "Y" => sql.push_str(" PASSWORD REQUIRE CURRENT"),
            "N" => sql.push_str(" PASSWORD REQUIRE CURRENT OPTIONAL"),
            _ => {}
        }
        let attributes: Value = row
            .get("USER_ATTRIBUTES")
            .and_then(|json| serde_json::from_slice(json).ok())
            .unwrap_or_default();
        if let Some(own) = attributes.get("metadata") {
            let _ = write!(sql, " ATTRIBUTE {}", quoted(&own.to_string()));
        }
        self.first(&account, sql);
        let (rights, may_grant) = rights_of(row);
        self.first(&account, grant(&rights, "*.*", &account, may_grant));
    }

    fn maria_user(&mut self, row: &Row) {
        let account = maria_account(row);
        let private = private(row);
        let word = |key: &str| private.get(key).and_then(Value::as_str).unwrap_or_default();
        if account.role {
            self.first(
                &account,
                format!("CREATE ROLE IF NOT EXISTS {}", account.sql()),
            );
        } else {
            let mut sql = format!("CREATE USER IF NOT EXISTS {}", account.sql());
            let mut ways: Vec<(String, String)> = Vec::new();
            for way in private
                .get("auth_or")
                .and_then(Value::as_array)
                .unwrap_or(&Vec::new())
            {
                let of = |key: &str| way.get(key).and_then(Value::as_str).unwrap_or_default();
                ways.push((of("plugin").into(), of("authentication_string").into()));
            }
            // The plugin beside the list stands for the empty entry in it.
            let own = (
                word("plugin").to_owned(),
                word("authentication_string").to_owned(),
            );
            if ways.is_empty() && !own.0.is_empty() {
                ways.push(own);
            } else if let Some(place) = ways.iter_mut().find(|(plugin, _)| plugin.is_empty()) {
                *place = own;
            }
            let ways: Vec<String> = ways
                .iter()
                .map(|(plugin, secret)| match secret.as_str() {
                    "" => ident(plugin),
                    secret => format!("{} USING {}", ident(plugin), quoted(secret)),
                })
                .collect();
            if !ways.is_empty() {
                let _ = write!(sql, " IDENTIFIED VIA {}", ways.join(" OR "));
            }
            let kind = match private.get("ssl_type").and_then(Value::as_u64) {
                Some(1) => "ANY",
                Some(2) => "X509",
                Some(3) => "SPECIFIED",
                _ => "",
            };
            sql.push_str(&requirement(
                kind,
                word("x509_subject"),
                word("x509_issuer"),
                word("ssl_cipher"),
            ));
            let limits = [
                ("max_queries_per_hour", "MAX_QUERIES_PER_HOUR"),
                ("max_questions", "MAX_QUERIES_PER_HOUR"),
                ("max_updates", "MAX_UPDATES_PER_HOUR"),
                ("max_connections", "MAX_CONNECTIONS_PER_HOUR"),
                ("max_user_connections", "MAX_USER_CONNECTIONS"),
            ];
            sql.push_str(&limited(limits.map(|(key, word)| {
                (
                    word,
                    private.get(key).map(Value::to_string).unwrap_or_default(),
                )
            })));
            if private.get("account_locked") == Some(&Value::Bool(true)) {
                sql.push_str(" ACCOUNT LOCK");
            }
            // An expired password was changed at the beginning of time.
            let number = |key: &str| private.get(key).and_then(Value::as_i64);
            if number("password_last_changed") == Some(0) {
                sql.push_str(" PASSWORD EXPIRE");
            }
            match number("password_lifetime") {
                Some(0) => sql.push_str(" PASSWORD EXPIRE NEVER"),
                Some(days) if days > 0 => {
                    let _ = write!(sql, " PASSWORD EXPIRE INTERVAL {days} DAY");
                }
                _ => {}
            }
            self.first(&account, sql);
        }
        let access = private
            .get("access")
            .and_then(Value::as_u64)
            .unwrap_or_default();
        let held = |(bit, _): &(usize, &&str)| access >> bit & 1 == 1;
        let rights: Vec<String> = ACCESS_BITS
            .iter()
            .enumerate()
            .filter(held)
            .map(|(_, right)| (*right).to_owned())
            .collect();
        let may_grant = rights.iter().any(|right| right == "GRANT OPTION");
        let rights: Vec<String> = rights
            .into_iter()
            .filter(|right| right != "GRANT OPTION")
            .collect();
        self.first(&account, grant(&rights, "*.*", &account, may_grant));
    }
}

fn text(row: &Row, column: &str) -> String {
    row.get(column)
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .unwrap_or_default()
}

fn user(user: String, host: String) -> Account {
    Account {
        user,
        host,
        role: false,
    }
}

fn account(row: &Row) -> Account {
    let host = text(row, "HOST");
    Account {
        user: text(row, "USER"),
        // MariaDB's roles have rights in the same tables, and no host.
        role: host.is_empty(),
        host,
    }
}

fn maria_account(row: &Row) -> Account {
    Account {
        role: private(row).get("is_role") == Some(&Value::Bool(true)),
        ..account(row)
    }
}

fn private(row: &Row) -> Value {
    row.get("PRIV")
        .and_then(|json| serde_json::from_slice(json).ok())
        .unwrap_or_default()
}

fn option(may_grant: bool) -> &'static str {
    if may_grant { " WITH GRANT OPTION" } else { "" }
}

fn admin(word: &str) -> &'static str {
    if word == "Y" {
        " WITH ADMIN OPTION"
    } else {
        ""
    }
}

fn grant(rights: &[String], on: &str, account: &Account, may_grant: bool) -> String {
    let rights = if rights.is_empty() {
        "USAGE".to_owned()
    } else {
        rights.join(", ")
    };
    format!(
        "GRANT {rights} ON {on} TO {}{}",
        account.sql(),
        option(may_grant)
    )
}

/// Rights of a row with one `…_priv` column for each, and whether it may grant them.
fn rights_of(row: &Row) -> (Vec<String>, bool) {
    let mut held: Vec<String> = row
        .iter()
        .filter(|(_, value)| value.as_slice() == b"Y")
        .filter_map(|(column, _)| column.strip_suffix("_PRIV"))
        .map(right)
        .collect();
    held.sort();
    let may_grant = held.iter().any(|right| right == "GRANT OPTION");
    held.retain(|right| right != "GRANT OPTION");
    (held, may_grant)
}

/// Rights of a SET column.
fn words(set: &str) -> (Vec<String>, bool) {
    let held: Vec<String> = set
        .split(',')
        .filter(|word| !word.is_empty())
        .map(|word| right(&word.to_uppercase()))
        .collect();
    let may_grant = held.iter().any(|right| right == "GRANT OPTION");
    let rights = held.into_iter().filter(|right| right != "GRANT OPTION");
    (rights.collect(), may_grant)
}

fn right(column: &str) -> String {
    let plain = column.replace('_', " ");
    RENAMED
        .iter()
        .find(|(from, _)| *from == plain)
        .map_or(plain, |(_, to)| (*to).to_owned())
}

fn requirement(kind: &str, subject: &str, issuer: &str, cipher: &str) -> String {
    match kind {
        "ANY" => " REQUIRE SSL".into(),
        "X509" => " REQUIRE X509".into(),
        "SPECIFIED" => {
            let parts = [("SUBJECT", subject), ("ISSUER", issuer), ("CIPHER", cipher)];
            let parts: Vec<_> = parts
                .iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(word, value)| format!("{word} {}", quoted(value)))
                .collect();
            format!(" REQUIRE {}", parts.join(" AND "))
        }
        _ => String::new(),
    }
}

fn limited<const N: usize>(limits: [(&str, String); N]) -> String {
    let set: Vec<String> = limits
        .into_iter()
        .filter(|(_, value)| !value.is_empty() && value != "0")
        .map(|(word, value)| format!("{word} {value}"))
        .collect();
    if set.is_empty() {
        String::new()
    } else {
        format!(" WITH {}", set.join(" "))
    }
}

/// The literals of one row, unescaped.
fn cells(row: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut cells = Vec::new();
    let mut at = 1;
    while at < row.len() && row[at] != b')' {
        match row[at] {
            b',' | b' ' | b'\n' => at += 1,
            b'\'' => {
                let (cell, end) = unquoted(row, at);
                cells.push(Some(cell));
                at = end;
            }
            b'_' => at += row[at..].iter().take_while(|b| **b != b'\'').count(),
            _ => {
                let len = row[at..]
                    .iter()
                    .take_while(|b| !matches!(b, b',' | b')'))
                    .count();
                let word = row[at..at + len].trim_ascii();
                cells.push(match word {
                    b"NULL" => None,
                    [b'0', b'x' | b'X', digits @ ..] => Some(hex(digits)),
                    word => Some(word.to_vec()),
                });
                at += len;
            }
        }
    }
    cells
}

fn hex(digits: &[u8]) -> Vec<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).unwrap_or_default() as u8;
    digits
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |sum, b| sum << 4 | digit(*b)))
        .collect()
}

fn unquoted(row: &[u8], from: usize) -> (Vec<u8>, usize) {
    let mut cell = Vec::new();
    let mut at = from + 1;
    while let Some(byte) = row.get(at) {
        match (byte, row.get(at + 1)) {
            (b'\\', Some(next)) => {
                cell.push(match next {
                    b'0' => 0,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'Z' => 0x1a,
                    b'b' => 0x08,
                    other => *other,
                });
                at += 2;
            }
            (b'\'', Some(b'\'')) => {
                cell.push(b'\'');
                at += 2;
            }
            (b'\'', _) => return (cell, at + 1),
            _ => {
                cell.push(*byte);
                at += 1;
            }
        }
    }
    (cell, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_grant_tables_become_statements() {
        let mut tables = GrantTables::default();
        tables.table(
            "user",
            b"CREATE TABLE `user` (\n `Host` char(255),\n `User` char(32),\n `Select_priv` enum('N','Y'),\n `Grant_priv` enum('N','Y'),\n `Repl_slave_priv` enum('N','Y'),\n `plugin` char(64),\n `authentication_string` text,\n `account_locked` enum('N','Y')\n)",
        );
        tables.rows("user", b"INSERT INTO `user` VALUES ('%','shop','Y','Y','Y','caching_sha2_password',0x24410a,'N'),('localhost','root','Y','Y','Y','x',NULL,'N')");
        tables.table("db", b"CREATE TABLE `db` (\n `Host` char(255),\n `Db` char(64),\n `User` char(32),\n `Create_tmp_table_priv` enum('N','Y'),\n `Lock_tables_priv` enum('N','Y')\n)");
        tables.rows(
            "db",
            b"INSERT INTO `db` VALUES ('%','sh\\\\_op','shop','Y','Y')",
        );
        let statements = tables.statements();
        assert_eq!(
            statements.first,
            [
                "-- account shop@%\nCREATE USER IF NOT EXISTS `shop`@`%` IDENTIFIED WITH 'caching_sha2_password' AS 0x24410a",
                "-- account shop@%\nGRANT REPLICATION SLAVE, SELECT ON *.* TO `shop`@`%` WITH GRANT OPTION",
                "-- account shop@%\nGRANT CREATE TEMPORARY TABLES, LOCK TABLES ON `sh\\_op`.* TO `shop`@`%`",
            ]
        );
    }
}
