//! Accounts, databases, sequences and tables.

use super::{Made, Restoring, body_of};
use crate::mysql::accounts::{self, labelled};
use crate::mysql::connection::{ident, quoted};
use crate::mysql::lexer::{
    CreateTable, Splitter, behind_quote, find, is_foreign_key, quoted_names,
};
use crate::mysql::{SERVER_GROUP, ddl, name_of};
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::source::{Existing, Input, Member, Stage};

/// What members leave behind in a session must not change how definitions are read or names are understood.
pub(super) const PLAIN_SESSION: &str =
    "SET NAMES utf8mb4, character_set_results = NULL, sql_mode = ''";
/// Rows of a table, in bytes of SQL, from which its secondary keys are added after the rows.
const DEFER_FROM_BYTES: u64 = 16 << 20;

impl Restoring<'_> {
    pub(super) async fn schema(&mut self, input: &mut Input) -> Result<()> {
        let members = input.stage(Stage::Schema).await?;
        while let Some(member) = members.next().await? {
            self.cx.check_cancelled()?;
            let unit = member.unit.clone();
            let shown = member.path.to_string();
            let bytes = member.len.unwrap_or_default();
            match self.schema_member(member).await {
                Ok(rows) => self.count(&unit, Stage::Schema, rows, bytes),
                // Without its database nothing of a group can come.
                Err(error) if unit.1.is_empty() => {
                    return Err(error.within(format!("`{shown}`")));
                }
                Err(error) => self.fail(&unit, &shown, error).await?,
            }
        }
        Ok(())
    }

    async fn schema_member(&mut self, member: Member) -> Result<u64> {
        let unit = member.unit.clone();
        let is_accounts = member.path.as_bytes() == b"accounts.sql";
        let body = body_of(member).await?;
        let statements = Splitter::all(&body)?;
        if is_accounts {
            return self.accounts(statements.iter().map(|s| &s.sql[..])).await;
        }
        for statement in statements {
            let sql = &statement.sql[..];
            if sql.starts_with(b"USE ") {
                let database = self.database(&unit.0);
                self.connection
                    .run(format!("USE {}", ident(&database)))
                    .await?;
            } else if sql.starts_with(b"CREATE DATABASE") {
                self.create_database(&unit.0, sql).await?;
            } else if sql.starts_with(b"CREATE SEQUENCE") && self.existing == Existing::Merge {
                let plain = String::from_utf8_lossy(sql).replacen(
                    "CREATE SEQUENCE",
                    "CREATE OR REPLACE SEQUENCE",
                    1,
                );
                self.connection.run(plain).await?;
            } else if sql.starts_with(b"CREATE ")
                && !sql.starts_with(b"CREATE SEQUENCE")
                && let Some(table) = CreateTable::parse(sql)
            {
                self.create_table(&unit, table, sql).await?;
            } else {
                self.run_of_script(sql).await?;
            }
        }
        Ok(0)
    }

    /// A database that stays gets the archive's character set only when it is selected whole.
    async fn create_database(&mut self, group: &str, sql: &[u8]) -> Result<()> {
        let database = ident(&self.database(group));
        let options = behind_quote(sql, sql.iter().position(|b| *b == b'`').unwrap_or(0), b'`')
            .map(|end| sql[end + 1..].trim_ascii())
            .unwrap_or_default();
        let there = self
            .connection
            .row(format!(
                "SELECT 1 FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {}",
                quoted(&self.database(group))
            ))
            .await?
            .is_some();
        let statement = |verb: &str| [format!("{verb} {database} ").as_bytes(), options].concat();
        if !there {
            return self.connection.run(statement("CREATE DATABASE")).await;
        }
        let whole = self
            .how
            .selected
            .iter()
            .any(|s| s.group == group && s.unit.is_none());
        if whole && !options.is_empty() {
            self.connection.run(statement("ALTER DATABASE")).await?;
        }
        Ok(())
    }

    async fn create_table(
        &mut self,
        unit: &(String, String),
        table: CreateTable,
        sql: &[u8],
    ) -> Result<()> {
        self.warn_of_old_name(&unit.0, &unit.1, sql);
        let mut made = Made {
            create: sql.to_vec(),
            enums: enum_columns(&table),
            load: super::local::columns(&table),
            ..Made::default()
        };
        if self.existing == Existing::Merge && self.merges(unit, &table, sql).await? {
            made.merged = true;
            self.tables.insert(unit.clone(), made);
            return Ok(());
        }
        let size = self.sizes.get(unit).copied().unwrap_or_default();
        let (kept, deferred) = if size >= DEFER_FROM_BYTES {
            defer(table.clauses)
        } else {
            (table.clauses, Vec::new())
        };
        made.deferred = deferred;
        let create = CreateTable {
            head: table.head,
            clauses: kept,
            tail: table.tail,
        };
        let text = if made.deferred.is_empty() {
            sql.to_vec()
        } else {
            create.text()
        };
        self.connection.run(text).await?;
        self.tables.insert(unit.clone(), made);
        Ok(())
    }

    /// Whether a table that is there takes the archive's rows as they are. Without a key each run would add them once more, so such a
    /// table is made anew.
    async fn merges(
        &mut self,
        unit: &(String, String),
        archived: &CreateTable,
        sql: &[u8],
    ) -> Result<bool> {
        let full = self.full(unit);
        self.connection.run(PLAIN_SESSION).await?;
        let Some(row) = self
            .connection
            .row(format!("SHOW CREATE TABLE {full}"))
            .await
            .unwrap_or_default()
        else {
            return Ok(false);
        };
        // Rows are replaced by their primary key. Unique keys let NULL in twice, and each replacement is history to a versioned table.
        let versioned = find(&archived.tail, b"WITH SYSTEM VERSIONING").is_some();
        let has_key = !versioned
            && archived
                .clauses
                .iter()
                .any(|clause| clause.starts_with(b"PRIMARY KEY"));
        if !has_key {
            self.tally.warnings.push(format!("{full} has no primary key to merge rows by, or keeps their history: it was made anew from the archive"));
            self.connection.run(format!("DROP TABLE {full}")).await?;
            return Ok(false);
        }
        let triggers = self
            .connection
            .value(format!(
                "SELECT COUNT(*) FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA = {} AND EVENT_OBJECT_TABLE = {}",
                quoted(&self.database(&unit.0)),
                quoted(&name_of(&unit.1))
            ))
            .await?;
        if triggers.as_deref() != Some("0") {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{full} has triggers, which would run for each row that is merged into it"),
            )
            .hint("repeat with --existing replace, or drop the triggers first: those of the archive come back"));
        }
        let here = without_foreign_keys(row.bytes(1).unwrap_or_default());
        if ddl::without_counter(&here) == ddl::without_counter(sql) {
            return Ok(true);
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!("{full} has another definition than the archive's table, so rows cannot be merged into it"),
        )
        .hint("repeat with --existing replace, or --into another database"))
    }

    /// Accounts that are there stay as they are, unless they were named and `--existing replace` was said.
    pub(super) async fn accounts<'s>(
        &mut self,
        statements: impl Iterator<Item = &'s [u8]>,
    ) -> Result<u64> {
        if self.accounts_here.is_none() {
            // Once: those that this restore makes are not among them.
            let list = accounts::list(&mut self.connection, &self.server).await?;
            self.accounts_here = Some(list.iter().map(accounts::Account::label).collect());
        }
        let here = self.accounts_here.clone().unwrap_or_default();
        let me = self
            .connection
            .value("SELECT CURRENT_USER()")
            .await?
            .unwrap_or_default();
        // Named alone, not as a part of the whole server.
        let replace = self.how.existing == Some(Existing::Replace)
            && self.how.selected.iter().all(|s| s.group == SERVER_GROUP);
        let mut created = 0;
        let mut left = Vec::new();
        for sql in statements {
            let (label, sql) = labelled(sql);
            let Some(label) = label else {
                self.run_of_script(sql).await?;
                continue;
            };
            let is_new = sql.starts_with(b"CREATE ");
            created += u64::from(is_new);
            if label == me || (here.contains(&label) && !replace) {
                if is_new {
                    left.push(label);
                }
                continue;
            }
            let text = String::from_utf8_lossy(sql).into_owned();
            let text = if here.contains(&label) {
                text.replacen("CREATE USER IF NOT EXISTS", "ALTER USER", 1)
            } else {
                text
            };
            if let Err(error) = self.connection.run(&text).await {
                if matches!(error.kind, ErrorKind::Cancelled | ErrorKind::Bug) {
                    return Err(error);
                }
                // A plugin that the target lacks, a right that it does not know: the account is named, the rest goes on.
                self.tally.failed.push(format!("account {label}: {error}"));
            }
        }
        if !left.is_empty() {
            self.skipped_accounts.extend(left.iter().cloned());
            self.tally.warnings.push(format!(
                "accounts that are there were left as they are: {}; --only={}/./accounts --existing replace replaces them",
                left.join(", "),
                self.cx.instance
            ));
        }
        Ok(created)
    }

    /// Keys that were kept back, table by table.
    pub(super) async fn add_deferred_keys(&mut self) -> Result<()> {
        let waiting: Vec<_> = self
            .tables
            .iter_mut()
            .filter(|(_, made)| !made.deferred.is_empty())
            .map(|(unit, made)| (unit.clone(), std::mem::take(&mut made.deferred)))
            .collect();
        for (unit, keys) in waiting {
            self.cx.check_cancelled()?;
            if self.broken.contains(&unit) {
                continue;
            }
            if let Err(error) = self.add_keys(&unit, keys).await {
                let shown = format!("keys of {}/{}", unit.0, unit.1);
                self.fail(&unit, &shown, error).await?;
            }
        }
        Ok(())
    }

    async fn add_keys(&mut self, unit: &(String, String), keys: Vec<Vec<u8>>) -> Result<()> {
        let full = self.full(unit);
        // MySQL takes one FULLTEXT at a time.
        let (text, plain): (Vec<_>, Vec<_>) = keys
            .into_iter()
            .partition(|key| key.starts_with(b"FULLTEXT"));
        let mut batches: Vec<Vec<Vec<u8>>> = Vec::new();
        if !plain.is_empty() {
            batches.push(plain);
        }
        batches.extend(text.into_iter().map(|key| vec![key]));
        for batch in batches {
            let adds: Vec<_> = batch
                .iter()
                .map(|key| [b"ADD ", &key[..]].concat())
                .collect();
            let sql = [
                format!("ALTER TABLE {full} ").as_bytes(),
                &adds.join(&b", "[..]),
            ]
            .concat();
            self.connection.run(sql).await?;
        }
        Ok(())
    }

    /// Each table is as the archive says, or it is named.
    pub(super) async fn compare_definitions(&mut self) -> Result<()> {
        self.connection.run(PLAIN_SESSION).await?;
        let mut tables: Vec<_> = self
            .tables
            .iter()
            .map(|(unit, made)| (unit.clone(), made.create.clone()))
            .collect();
        tables.sort();
        for (unit, create) in tables {
            let full = self.full(&unit);
            let row = self
                .connection
                .row(format!("SHOW CREATE TABLE {full}"))
                .await?;
            let here = without_foreign_keys(
                row.as_ref()
                    .and_then(|row| row.bytes(1))
                    .unwrap_or_default(),
            );
            if ddl::without_counter(&here) != ddl::without_counter(&create) {
                let what = format!(
                    "{full} is not defined as it was: SHOW CREATE TABLE differs from the archive's"
                );
                if self.same_server {
                    self.tally.failed.push(what);
                } else {
                    self.tally.warnings.push(what);
                }
            }
        }
        Ok(())
    }
}

fn without_foreign_keys(shown: &[u8]) -> Vec<u8> {
    match CreateTable::parse(shown) {
        Some(mut table) => {
            table.clauses.retain(|clause| !is_foreign_key(clause));
            table.inherit_collation();
            table.text()
        }
        None => shown.to_vec(),
    }
}

fn enum_columns(table: &CreateTable) -> Vec<String> {
    table
        .clauses
        .iter()
        .filter(|clause| clause.starts_with(b"`"))
        .filter_map(|clause| {
            let end = behind_quote(clause, 0, b'`')?;
            clause[end + 1..]
                .trim_ascii_start()
                .starts_with(b"enum(")
                .then(|| quoted_names(&clause[..=end]).pop())?
        })
        .collect()
}

/// Clauses that a table is made with, and keys that can wait: those behind the last key that cannot, so that their order stays.
fn defer(clauses: Vec<Vec<u8>>) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let counter = clauses
        .iter()
        .find(|clause| clause.starts_with(b"`") && find(clause, b" AUTO_INCREMENT").is_some())
        .and_then(|clause| quoted_names(clause).into_iter().next());
    let has_primary = clauses
        .iter()
        .any(|clause| clause.starts_with(b"PRIMARY KEY"));
    let can_wait = |clause: &[u8]| {
        let key = ["KEY ", "UNIQUE KEY ", "FULLTEXT KEY ", "SPATIAL KEY "]
            .iter()
            .any(|word| clause.starts_with(word.as_bytes()));
        let columns = key_columns(clause);
        let leads_counter = counter.is_some() && columns.first() == counter.as_ref();
        let clusters = !has_primary && clause.starts_with(b"UNIQUE");
        key && !leads_counter
            && !clusters
            && find(clause, b"WITHOUT OVERLAPS").is_none()
            && find(clause, b"USING HASH").is_none()
            && find(clause, b"PARSER").is_none()
    };
    let is_key = |clause: &[u8]| !clause.starts_with(b"`");
    let from = clauses
        .iter()
        .rposition(|clause| is_key(clause) && !can_wait(clause) && is_index(clause))
        .map_or(0, |n| n + 1);
    let mut kept = Vec::new();
    let mut deferred = Vec::new();
    for (n, clause) in clauses.into_iter().enumerate() {
        if n >= from && is_key(&clause) && can_wait(&clause) {
            deferred.push(clause);
        } else {
            kept.push(clause);
        }
    }
    (kept, deferred)
}

/// Whether a clause of a CREATE TABLE is a key.
pub(super) fn is_index(clause: &[u8]) -> bool {
    [
        "KEY ",
        "UNIQUE KEY ",
        "FULLTEXT KEY ",
        "SPATIAL KEY ",
        "PRIMARY KEY",
    ]
    .iter()
    .any(|word| clause.starts_with(word.as_bytes()))
}

fn key_columns(clause: &[u8]) -> Vec<String> {
    let Some(open) = clause.iter().position(|b| *b == b'`') else {
        return Vec::new();
    };
    let Some(end) = behind_quote(clause, open, b'`') else {
        return Vec::new();
    };
    quoted_names(&clause[end + 1..])
}
