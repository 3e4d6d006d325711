//! What needs the rows: routines, grants, triggers, foreign keys, views, events.

use super::schema::run_lenient;
use super::{Restoring, body_of, stops};
use crate::mysql::accounts::labelled;
use crate::mysql::connection::ident;
use crate::mysql::lexer::{Splitter, behind_quote, quoted_names};
use crate::mysql::{Definer, ddl, name_of};
use bk_core::error::Result;
use bk_core::source::{Input, Member, Stage};

/// The constraint is there already, as the families say it.
const DUPLICATE_CONSTRAINT: [&str; 3] = ["error 1826", "error 1061", "error 1005"];

impl Restoring<'_> {
    pub(super) async fn finish(&mut self, input: &mut Input) -> Result<()> {
        let members = input.stage(Stage::Finish).await?;
        while let Some(member) = members.next().await? {
            self.cx.check_cancelled()?;
            let unit = member.unit.clone();
            let shown = member.path.to_string();
            let bytes = member.len.unwrap_or_default();
            match self.finish_member(member).await {
                Ok(()) => {}
                Err(error) if stops(&error) => return Err(error),
                Err(error) => self.tally.failed.push(format!("{shown}: {error}")),
            }
            self.count(&unit, Stage::Finish, 0, bytes);
        }
        // Routines and events were made in sessions of their own kind.
        self.connection
            .run("SET NAMES utf8mb4, character_set_results = NULL")
            .await
    }

    async fn finish_member(&mut self, member: Member) -> Result<()> {
        let unit = member.unit.clone();
        let path = member.path.to_string();
        let file = path.rsplit('/').next().unwrap_or_default().to_owned();
        let body = body_of(member).await?;
        let database = self.database(&unit.0);
        if file != "grants.sql" {
            self.drop_before(&database, &unit.1, &file).await?;
        }
        let merged = self.tables.get(&unit).is_some_and(|made| made.merged);
        for statement in Splitter::all(&body)? {
            let (label, sql) = labelled(&statement.sql);
            if label.is_some_and(|label| self.skipped_accounts.contains(&label)) {
                continue;
            }
            let sql = self.with_known_definer(self.renamed(sql, &unit.0, &database));
            match run_lenient(&mut self.connection, &sql).await {
                Err(error)
                    if merged
                        && file == "foreign_keys.sql"
                        && DUPLICATE_CONSTRAINT
                            .iter()
                            .any(|code| error.what.contains(code)) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// What is made again goes first: where it was selected it was to be replaced, and merging lets the archive win.
    async fn drop_before(&mut self, database: &str, unit: &str, file: &str) -> Result<()> {
        let sql = if file == "view.sql" {
            format!(
                "DROP VIEW IF EXISTS {}.{}",
                ident(database),
                ident(&name_of(unit))
            )
        } else if let Some(trigger) = file.strip_prefix("trigger:") {
            let name = trigger
                .split_once(':')
                .map_or("", |(_, name)| name)
                .trim_end_matches(".sql");
            // The path is escaped once more than the name.
            let name = name_of(&name_of(name));
            format!(
                "DROP TRIGGER IF EXISTS {}.{}",
                ident(database),
                ident(&name)
            )
        } else if let Some((kind, name)) = unit.split_once(':') {
            if kind.starts_with("package") {
                // Known in this mode only.
                self.connection.run("SET sql_mode=ORACLE").await?;
            }
            format!(
                "DROP {} IF EXISTS {}.{}",
                kind.replace('_', " ").to_uppercase(),
                ident(database),
                ident(&name_of(name))
            )
        } else {
            return Ok(());
        };
        self.connection.run(sql).await
    }

    /// Names of databases in statements follow `--into`: in `USE`, `ALTER DATABASE` and `REFERENCES`. Bodies are not touched.
    fn renamed(&self, sql: &[u8], group: &str, database: &str) -> Vec<u8> {
        if sql.starts_with(b"USE ") {
            return format!("USE {}", ident(database)).into_bytes();
        }
        if sql.starts_with(b"ALTER DATABASE ") {
            let end = sql
                .iter()
                .position(|b| *b == b'`')
                .and_then(|from| behind_quote(sql, from, b'`'))
                .map_or(sql.len(), |end| end + 1);
            return [
                format!("ALTER DATABASE {}", ident(database)).as_bytes(),
                &sql[end..],
            ]
            .concat();
        }
        if !self.names.is_empty() && sql.starts_with(b"ALTER TABLE ") {
            return self.references_renamed(sql);
        }
        let _ = group;
        sql.to_vec()
    }

    /// `definer = "current"`: only for those whom the target does not know.
    fn with_known_definer(&self, sql: Vec<u8>) -> Vec<u8> {
        if self.source.settings.definer != Definer::Current {
            return sql;
        }
        match ddl::definer(&sql) {
            Some((definer, place)) if self.missing_definers.contains(&definer) => {
                [&sql[..place.start], b"CURRENT_USER", &sql[place.end..]].concat()
            }
            _ => sql,
        }
    }

    fn references_renamed(&self, sql: &[u8]) -> Vec<u8> {
        const WORD: &[u8] = b" REFERENCES ";
        let mut out = Vec::with_capacity(sql.len());
        let mut rest = sql;
        while let Some(at) = rest.windows(WORD.len()).position(|w| w == WORD) {
            let from = at + WORD.len();
            out.extend_from_slice(&rest[..from]);
            rest = &rest[from..];
            if let Some(end) = behind_quote(rest, 0, b'`')
                && rest.get(end + 1) == Some(&b'.')
                && let Some(other) = quoted_names(&rest[..=end]).first()
            {
                out.extend_from_slice(ident(&self.database(&crate::mysql::part(other))).as_bytes());
                rest = &rest[end + 1..];
            }
        }
        out.extend_from_slice(rest);
        out
    }
}
