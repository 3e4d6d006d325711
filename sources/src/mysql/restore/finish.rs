//! What needs the rows: routines, grants, triggers, foreign keys, views, events.

use super::schema::PLAIN_SESSION;
use super::{Restoring, body_of, stops};
use crate::mysql::accounts::labelled;
use crate::mysql::connection::{full, ident, quoted};
use crate::mysql::lexer::{CreateTable, Splitter, behind_quote, is_foreign_key, quoted_names};
use crate::mysql::{Definer, ddl, name_of};
use bk_core::error::{Result, conflict};
use bk_core::source::{Input, Stage};

/// A member of the Finish stage.
struct Part {
    unit: (String, String),
    path: String,
    body: Vec<u8>,
}

impl Restoring<'_> {
    pub(super) async fn finish(&mut self, input: &mut Input) -> Result<()> {
        let members = input.stage(Stage::Finish).await?;
        let mut views = Vec::new();
        while let Some(member) = members.next().await? {
            self.cx.check_cancelled()?;
            let bytes = member.len.unwrap_or_default();
            let part = Part {
                unit: member.unit.clone(),
                path: member.path.to_string(),
                body: body_of(member).await?,
            };
            if self.broken.contains(&part.unit) {
                continue;
            }
            self.count(&part.unit, Stage::Finish, 0, bytes);
            match self.finish_part(&part).await {
                Ok(()) => {}
                Err(error) if stops(&error) => return Err(error),
                // It may read a view that comes later.
                Err(_) if part.path.ends_with("/view.sql") => views.push(part),
                Err(error) => self.fail(&part.unit, &part.path, error).await?,
            }
        }
        self.finish_views(views).await?;
        self.connection.run(PLAIN_SESSION).await
    }

    /// Views that failed, again and again as long as one of them succeeds.
    async fn finish_views(&mut self, mut views: Vec<Part>) -> Result<()> {
        while !views.is_empty() {
            let before = views.len();
            let mut left = Vec::new();
            let mut why = Vec::new();
            for view in views {
                match self.finish_part(&view).await {
                    Ok(()) => {}
                    Err(error) if stops(&error) => return Err(error),
                    Err(error) => {
                        why.push(error);
                        left.push(view);
                    }
                }
            }
            if left.len() == before {
                for (view, error) in left.iter().zip(why) {
                    self.fail(&view.unit, &view.path, error).await?;
                }
                break;
            }
            views = left;
        }
        Ok(())
    }

    async fn finish_part(&mut self, part: &Part) -> Result<()> {
        let unit = &part.unit;
        let file = part.path.rsplit('/').next().unwrap_or_default();
        let database = self.database(&unit.0);
        self.connection.run(PLAIN_SESSION).await?;
        if file != "grants.sql" {
            self.drop_before(&database, &unit.1, file).await?;
        }
        let merged = self.tables.get(unit).is_some_and(|made| made.merged);
        self.warn_of_old_name(&unit.0, &unit.1, &part.body);
        for statement in Splitter::all(&part.body)? {
            let (label, sql) = labelled(&statement.sql);
            if label.is_some_and(|label| self.skipped_accounts.contains(&label)) {
                continue;
            }
            let sql = self.with_known_definer(self.renamed(sql, &database));
            if merged && sql.starts_with(b"ALTER TABLE ") {
                self.add_missing_foreign_keys(&database, &unit.1, &sql)
                    .await?;
            } else {
                self.run_of_script(&sql).await?;
            }
        }
        Ok(())
    }

    /// Of a table that stayed: the foreign keys that it does not have by name.
    async fn add_missing_foreign_keys(
        &mut self,
        database: &str,
        unit: &str,
        sql: &[u8],
    ) -> Result<()> {
        let table = full(database, &name_of(unit));
        let shown = self
            .connection
            .row(format!("SHOW CREATE TABLE {table}"))
            .await?;
        let here: Vec<String> = CreateTable::parse(
            shown
                .as_ref()
                .and_then(|row| row.bytes(1))
                .unwrap_or_default(),
        )
        .map(|create| create.clauses)
        .unwrap_or_default()
        .iter()
        .filter(|clause| is_foreign_key(clause))
        .filter_map(|clause| quoted_names(clause).into_iter().next())
        .collect();
        let text = String::from_utf8_lossy(sql).into_owned();
        for add in text.split("\n  ADD ").skip(1) {
            let name = quoted_names(add.as_bytes())
                .into_iter()
                .next()
                .unwrap_or_default();
            if !here.contains(&name) {
                let add = add.trim_end().trim_end_matches(',');
                self.connection
                    .run(format!("ALTER TABLE {table} ADD {add}"))
                    .await?;
            }
        }
        Ok(())
    }

    /// What is made again goes first: where it was selected it was to be replaced, and merging lets the archive win.
    async fn drop_before(&mut self, database: &str, unit: &str, file: &str) -> Result<()> {
        let sql = if file == "view.sql" {
            format!("DROP VIEW IF EXISTS {}", full(database, &name_of(unit)))
        } else if let Some(trigger) = file.strip_prefix("trigger:") {
            let name = trigger.split_once(':').map_or("", |(_, name)| name);
            // The path is escaped once more than the name.
            let name = name_of(&name_of(name.strip_suffix(".sql").unwrap_or(name)));
            let owner = self
                .connection
                .value(format!(
                    "SELECT EVENT_OBJECT_TABLE FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {} AND TRIGGER_NAME = {}",
                    quoted(database),
                    quoted(&name)
                ))
                .await?;
            match owner {
                None => return Ok(()),
                Some(table) if table == name_of(unit) => {}
                Some(table) => {
                    return Err(conflict(format!(
                        "a trigger {} is on table {} here",
                        ident(&name),
                        ident(&table)
                    )));
                }
            }
            format!("DROP TRIGGER IF EXISTS {}", full(database, &name))
        } else if let Some((kind, name)) = unit.split_once(':') {
            if kind.starts_with("package") {
                // Known in this mode only.
                self.connection.run("SET sql_mode=ORACLE").await?;
            }
            let (kind, name) = (kind.replace('_', " ").to_uppercase(), name_of(name));
            self.remember_rights(database, &kind, &name).await;
            format!("DROP {kind} IF EXISTS {}", full(database, &name))
        } else {
            return Ok(());
        };
        self.connection.run(sql).await
    }

    /// Names of databases in statements follow `--into`: in `USE`, `ALTER DATABASE` and `REFERENCES`. Bodies are not touched.
    fn renamed(&self, sql: &[u8], database: &str) -> Vec<u8> {
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
        sql.to_vec()
    }

    /// `definer = "current"`: only for those whom the target does not know.
    pub(super) fn with_known_definer(&self, sql: Vec<u8>) -> Vec<u8> {
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
