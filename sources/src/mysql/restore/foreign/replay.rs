//! The second pass: statements in their order on one connection, rows over several.

use super::Chosen;
use super::loaders::{self, Batch, Loaded, Loader, Loaders};
use super::script::Script;
use super::survey::{Place, Survey, Whose};
use crate::mysql::connection::{self, Connection, ident, unless_cancelled};
use crate::mysql::lexer::{Statement, find};
use crate::mysql::mark::Where;
use crate::mysql::part;
use crate::mysql::restore::{Made, Restoring};
use crate::mysql::statement::{Name, Rows, What};
use crate::mysql::wire;
use bk_core::error::{Error, ErrorKind, Result, bug};
use bk_core::source::{Input, Selected, Stage};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Rows that travel in one statement, in bytes of SQL.
const BATCH_BYTES: usize = 1 << 20;
const DATABASE_EXISTS: u16 = 1007;
/// Warnings that say that a value is not what the script gave: no default, NULL refused, out of range, truncated, not of its type, not of
/// its character set, too long.
const VALUE_CHANGED: [u16; 9] = [1048, 1263, 1264, 1265, 1292, 1300, 1364, 1366, 1406];
/// Warnings that are named one by one.
const WARNINGS_NAMED: usize = 20;

/// One script on its way into a server.
struct Replay<'r, 'a> {
    restoring: &'r mut Restoring<'a>,
    survey: &'r Survey,
    chosen: &'r Chosen,
    /// Where statements run that are no rows.
    main: Connection,
    loaders: Loaders,
    place: Place,
    pending: Option<Batch>,
    /// What a loader's session must be like; nothing when the script has changed it since.
    session: Option<Arc<str>>,
    is_dump: bool,
    /// Views and programs that the server refused: what they need may come later.
    late: Vec<Late>,
    failed: BTreeSet<(String, String)>,
    /// Units that came otherwise than the script gave them.
    differing: BTreeSet<(String, String)>,
    /// Databases that could not be made or used.
    lost: BTreeSet<String>,
}

/// A statement that is tried again in the end.
struct Late {
    unit: (String, String),
    line: u64,
    sql: Vec<u8>,
    session: Arc<str>,
}

impl Restoring<'_> {
    /// Runs every script; the units that did not come whole.
    pub(super) async fn replay(
        &mut self,
        input: &mut Input,
        survey: &Survey,
        chosen: &Chosen,
        default: Option<&str>,
    ) -> Result<Vec<Selected>> {
        let members = input.stage(Stage::Data).await?;
        let mut failed = BTreeSet::new();
        while let Some(member) = members.next().await? {
            let shown = member.path.to_string();
            let (source, cx) = (self.source, self.cx);
            let mut main = source.access.connect(cx).await?;
            // A script without a header counts on what a client finds.
            main.run("SET sql_mode=DEFAULT, time_zone=DEFAULT").await?;
            // What the dumped server held is put back, also where it would not be let in today.
            for sql in [
                "/*M!100200 SET check_constraint_checks=0 */",
                "/*!80400 SET SESSION restrict_fk_on_non_standard_key=OFF */",
            ] {
                // Only who may not set it hears of it, by the statement that needs it.
                let _ = main.run_of_script(sql.as_bytes()).await;
            }
            let packet = main
                .value("SELECT @@max_allowed_packet")
                .await?
                .and_then(|text| text.parse().ok())
                .unwrap_or(BATCH_BYTES * 4);
            let mut loaders = Loaders::new(self.server.is_maria(), packet);
            for _ in 0..source.settings.parallel.max(1) {
                loaders
                    .idle
                    .push(Loader::new(source.access.connect(cx).await?));
            }
            let mut replay = Replay {
                restoring: self,
                survey,
                chosen,
                main,
                loaders,
                place: Place {
                    database: default.map(ToOwned::to_owned),
                },
                pending: None,
                session: None,
                is_dump: false,
                late: Vec::new(),
                failed: BTreeSet::new(),
                differing: BTreeSet::new(),
                lost: BTreeSet::new(),
            };
            let done = replay.run(Script::of(member), default).await;
            failed.append(&mut replay.failed);
            failed.append(&mut replay.differing);
            replay.loaders.end().await;
            replay.main.end().await;
            done.map_err(|error| error.within(format!("`{shown}`")))?;
        }
        Ok(failed
            .into_iter()
            .map(|(group, unit)| Selected {
                group,
                unit: Some(unit).filter(|name| !name.is_empty()),
            })
            .collect())
    }
}

impl Replay<'_, '_> {
    async fn run(&mut self, mut script: Script, default: Option<&str>) -> Result<()> {
        if let Some(database) = default {
            let sql = format!("USE {}", ident(database));
            self.main.run(sql).await?;
        }
        while let Some((statement, what)) = script.next().await? {
            self.restoring.cx.check_cancelled()?;
            self.is_dump = script.is_dump();
            let line = statement.line;
            self.statement(&statement, &what, script.no_backslash_escapes())
                .await
                .map_err(|error| error.within(format!("line {line}")))?;
        }
        self.barrier().await?;
        self.try_late().await
    }

    async fn statement(
        &mut self,
        statement: &Statement,
        what: &What,
        no_backslash_escapes: bool,
    ) -> Result<()> {
        let whose = self.place.whose(what).ok_or_else(|| {
            Error::new(ErrorKind::Settings, "no database is named for what follows")
        })?;
        if let What::Use(name) = what {
            self.barrier().await?;
            self.place.database = Some(name.own.clone());
            self.session = None;
            if matches!(&whose, Whose::Database(name) if self.chosen.has_database(name)) {
                let sql = format!("USE {}", ident(&self.target(&name.own)));
                if let Err(error) = self.on_main(sql.as_bytes()).await {
                    let failure = refusal(error)?;
                    self.lose(&name.own, statement.line, &failure);
                }
            }
            return Ok(());
        }
        match &whose {
            Whose::Session if *what == What::Set => {
                self.barrier().await?;
                self.session = None;
                self.run_or_warn(statement).await
            }
            // A script that is no dump is sent as it stands, to one session.
            Whose::Session
                if *what == What::Other || *what == What::Transaction && !self.is_dump =>
            {
                self.barrier().await?;
                self.session = None;
                self.run_or_warn(statement).await
            }
            Whose::Session | Whose::Servers => Ok(()),
            Whose::Accounts => self.account(statement, what).await,
            Whose::Database(name) => self.of_database(statement, what, name).await,
            Whose::Unit(database, unit) => {
                let Some(unit) = self.unit(database, unit) else {
                    return Ok(());
                };
                if self.failed.contains(&unit) {
                    return Ok(());
                }
                if let What::Insert(name) = what {
                    return self.rows(statement, unit, name, no_backslash_escapes).await;
                }
                self.barrier().await?;
                self.of_unit(statement, what, unit).await
            }
        }
    }

    /// The unit of a statement, if it is restored. A trigger belongs to its table's.
    fn unit(&self, database: &str, unit: &str) -> Option<(String, String)> {
        let unit = match unit.strip_prefix("trigger:") {
            Some(trigger) => {
                let key = (database.to_owned(), trigger.to_owned());
                self.survey.triggers.get(&key)?.clone()
            }
            None => unit.to_owned(),
        };
        if self.lost.contains(database) {
            return None;
        }
        self.chosen
            .has_unit(database, &unit)
            .then(|| (part(database), unit))
    }

    /// A database's name in the target.
    fn target(&self, database: &str) -> String {
        self.restoring.database(&part(database))
    }

    /// A statement with the database's name as it is in the target.
    fn renamed(&self, sql: &[u8], name: &Name, database: &str) -> Vec<u8> {
        let target = self.target(database);
        if target == database || name.at.is_empty() {
            return sql.to_vec();
        }
        [
            &sql[..name.at.start],
            ident(&target).as_bytes(),
            &sql[name.at.end..],
        ]
        .concat()
    }

    /// What only sets the stage is not worth an end, but is worth a word.
    async fn run_or_warn(&mut self, statement: &Statement) -> Result<()> {
        match self.on_main(&statement.sql).await {
            Ok(()) => Ok(()),
            Err(error) => {
                let failure = refusal(error)?;
                self.warn(format!("line {}: {failure}", statement.line));
                Ok(())
            }
        }
    }

    fn warn(&mut self, what: String) {
        if self.restoring.tally.warnings.len() < WARNINGS_NAMED * 4 {
            self.restoring.tally.warnings.push(what);
        }
    }

    async fn account(&mut self, statement: &Statement, what: &What) -> Result<()> {
        let What::Account(label) = what else {
            return Ok(());
        };
        if !self.chosen.accounts || label.is_empty() {
            return Ok(());
        }
        self.barrier().await?;
        let labelled = [
            format!("-- account {label}\n").as_bytes(),
            &statement.sql[..],
        ]
        .concat();
        let (user, _) = label.rsplit_once('@').unwrap_or((label, ""));
        let account = crate::mysql::accounts::Account {
            user: user.to_owned(),
            host: String::new(),
            role: false,
        };
        if account.is_reserved() {
            return Ok(());
        }
        self.restoring
            .accounts(std::iter::once(&labelled[..]))
            .await
            .map(drop)
    }

    async fn of_database(
        &mut self,
        statement: &Statement,
        what: &What,
        database: &str,
    ) -> Result<()> {
        if !self.chosen.has_database(database) || self.lost.contains(database) {
            return Ok(());
        }
        self.barrier().await?;
        let whole = self.chosen.whole.contains(&part(database));
        let renamed = self.target(database) != database;
        if *what == What::Other && (!whole || renamed) {
            // Not a unit's, so nobody can tell whether it was asked for, or which names in it to change.
            let shown = String::from_utf8_lossy(&statement.sql[..statement.sql.len().min(60)]);
            let line = statement.line;
            let left = format!(
                "line {line} is left out, since only a part of {} is restored, or under another name: `{shown}…`",
                ident(database)
            );
            self.warn(left);
            return Ok(());
        }
        if *what == What::Other {
            self.session = None;
        }
        let sql = match what {
            // Where the mark stands inside, what is in the way has gone already.
            What::DropDatabase(_) if !whole || self.restoring.mark == Where::Targets => {
                return Ok(());
            }
            What::CreateDatabase(name) | What::DropDatabase(name) | What::AlterDatabase(name) => {
                self.renamed(&statement.sql, name, database)
            }
            _ => statement.sql.clone(),
        };
        match self.on_main(&sql).await {
            Ok(()) => Ok(()),
            Err(error)
                if matches!(what, What::CreateDatabase(_))
                    && connection::code(&error) == Some(DATABASE_EXISTS) =>
            {
                Ok(())
            }
            Err(error) => {
                let failure = refusal(error)?;
                if matches!(what, What::CreateDatabase(_)) {
                    self.lose(database, statement.line, &failure);
                    return Ok(());
                }
                let line = statement.line;
                let failed = format!("{}, line {line}: {failure}", ident(database));
                self.restoring.tally.failed.push(failed);
                Ok(())
            }
        }
    }

    /// Definitions. A table that is refused is failed with its rows; anything else is tried again in the end.
    async fn of_unit(
        &mut self,
        statement: &Statement,
        what: &What,
        unit: (String, String),
    ) -> Result<()> {
        let waits = matches!(
            what,
            What::CreateView(_) | What::CreateProgram(..) | What::CreateTrigger(..)
        );
        let is_table = matches!(what, What::CreateTable(_));
        let mut sql = match what {
            What::CreateTable(name)
            | What::CreateSequence(name)
            | What::AlterTable(name)
            | What::CreateView(name)
            | What::CreateProgram(_, name)
            | What::CreateTrigger(name, _)
            | What::Drop(_, name) => self.qualified(&statement.sql, name),
            _ => statement.sql.clone(),
        };
        if waits || is_table {
            self.restoring
                .warn_of_old_name(&unit.0, &unit.1, &statement.sql);
        }
        if waits {
            sql = self.restoring.with_known_definer(sql);
        }
        if is_table {
            self.restoring.tables.insert(unit.clone(), Made::default());
        }
        match self.on_main(&sql).await {
            Ok(()) => {
                // Made at last: what failed before it under the same name was a placeholder.
                if waits {
                    self.late.retain(|late| late.sql != sql);
                }
                self.restoring
                    .counts
                    .entry((unit.0, unit.1, Stage::Schema))
                    .or_default();
                Ok(())
            }
            Err(error) => {
                let failure = refusal(error)?;
                if waits {
                    let session = self.session().await?;
                    self.late.push(Late {
                        unit,
                        line: statement.line,
                        sql,
                        session,
                    });
                } else {
                    self.fail(unit, statement.line, &failure);
                }
                Ok(())
            }
        }
    }

    fn qualified(&self, sql: &[u8], name: &Name) -> Vec<u8> {
        match &name.database {
            Some(database) => self.renamed(sql, name, database),
            None => sql.to_vec(),
        }
    }

    /// A statement on the main connection, unless the run is stopped.
    async fn on_main(&mut self, sql: &[u8]) -> wire::Result<()> {
        unless_cancelled(&self.restoring.cx.cancel, self.main.run_of_script(sql)).await
    }

    /// A database that cannot be made or used: nothing of it comes.
    fn lose(&mut self, database: &str, line: u64, why: &Error) {
        if self.lost.insert(database.to_owned()) {
            self.fail((part(database), String::new()), line, why);
        }
    }

    fn fail(&mut self, unit: (String, String), line: u64, why: &Error) {
        self.name(&unit, line, why);
        self.failed.insert(unit);
    }

    fn name(&mut self, unit: &(String, String), line: u64, why: &Error) {
        let shown = format!("`{}/{}`, line {line}: {why}", unit.0, unit.1);
        self.restoring.tally.failed.push(shown);
    }

    /// Rows: gathered into statements of about 1 MiB and handed to the loaders.
    async fn rows(
        &mut self,
        statement: &Statement,
        unit: (String, String),
        name: &Name,
        no_backslash_escapes: bool,
    ) -> Result<()> {
        let sql = &statement.sql;
        let rows = match Rows::of(sql, no_backslash_escapes) {
            Some(rows) if self.is_dump => rows,
            others => {
                self.barrier().await?;
                let literal = others.map(|rows| rows.starts.len() as u64);
                let sql = self.qualified(sql, name);
                if sql.len() >= self.loaders.packet {
                    let why = too_large(sql.len(), self.loaders.packet);
                    self.fail(unit, statement.line, &why);
                    return Ok(());
                }
                let insert = loaders::insert(&mut self.main, &sql, literal);
                let done = unless_cancelled(&self.restoring.cx.cancel, insert).await;
                let rows = literal.or(done.as_ref().ok().map(|took| took.rows));
                return self.back(Loaded {
                    unit,
                    line: statement.line,
                    bytes: sql.len() as u64,
                    rows: rows.unwrap_or_default(),
                    done,
                });
            }
        };
        let session = self.session().await?;
        let head = self.qualified(&sql[..rows.head], name);
        let mut from = 0;
        let room = BATCH_BYTES.min(self.loaders.packet / 2);
        while from < rows.starts.len() {
            let to = from + rows.fitting(from, room);
            let piece = &sql[rows.starts[from]..rows.ends[to - 1]];
            let count = (to - from) as u64;
            self.gather(&unit, statement.line, &head, piece, count, &session, room)
                .await?;
            from = to;
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one batch's parts, from the one place that has them"
    )]
    async fn gather(
        &mut self,
        unit: &(String, String),
        line: u64,
        head: &[u8],
        piece: &[u8],
        rows: u64,
        session: &Arc<str>,
        room: usize,
    ) -> Result<()> {
        if let Some(batch) = &mut self.pending {
            let same = batch.unit == *unit
                && batch.sql[..batch.head] == *head
                && batch.session == *session
                && batch.sql.len() + piece.len() < room;
            if same {
                batch.sql.push(b',');
                batch.sql.extend_from_slice(piece);
                batch.rows += rows;
                return Ok(());
            }
            self.send().await?;
        }
        self.pending = Some(Batch {
            unit: unit.clone(),
            line,
            head: head.len(),
            sql: [head, piece].concat(),
            rows,
            session: session.clone(),
        });
        Ok(())
    }

    /// Hands the gathered rows out. Where order may count, each waits for the one before.
    async fn send(&mut self) -> Result<()> {
        let Some(batch) = self.pending.take() else {
            return Ok(());
        };
        if batch.sql.len() >= self.loaders.packet {
            let why = too_large(batch.sql.len(), self.loaders.packet);
            if !self.failed.contains(&batch.unit) {
                self.fail(batch.unit, batch.line, &why);
            }
            return Ok(());
        }
        let ordered = find(batch.session.as_bytes(), b"foreign_key_checks=1").is_some();
        let at_once = if ordered { 1 } else { usize::MAX };
        while self.loaders.idle.is_empty() || self.loaders.busy() >= at_once {
            self.one_back().await?;
        }
        self.loaders.start(batch, self.restoring.cx.cancel.clone());
        Ok(())
    }

    /// Waits until all rows that were handed out are in.
    async fn barrier(&mut self) -> Result<()> {
        self.send().await?;
        while self.loaders.busy() > 0 {
            self.one_back().await?;
        }
        Ok(())
    }

    async fn one_back(&mut self) -> Result<()> {
        match self.loaders.next().await? {
            Some(loaded) => self.back(loaded),
            None => Ok(()),
        }
    }

    /// Counts what came of rows, and fails their unit where it is not what the script gave.
    fn back(&mut self, loaded: Loaded) -> Result<()> {
        let unit = loaded.unit;
        let took = match loaded.done {
            Ok(took) => took,
            Err(error) => {
                let failure = refusal(error)?;
                if !self.failed.contains(&unit) {
                    self.fail(unit, loaded.line, &failure);
                }
                return Ok(());
            }
        };
        let key = (unit.0.clone(), unit.1.clone(), Stage::Data);
        let count = self.restoring.counts.entry(key).or_default();
        count.rows += took.rows;
        count.bytes += loaded.bytes;
        let differs = |what: String| Error::new(ErrorKind::Unsupported, what);
        if took.rows != loaded.rows {
            let (came, want) = (took.rows, loaded.rows);
            let why = differs(format!("the server took {came} of {want} rows"));
            self.differ(unit.clone(), loaded.line, &why);
        }
        let (changed, told): (Vec<_>, Vec<_>) = took
            .warnings
            .into_iter()
            .partition(|(code, _)| VALUE_CHANGED.contains(code));
        if let Some((code, first)) = changed.first() {
            let more = changed.len();
            let why = differs(format!(
                "the server changed {more} values on their way in, the first: {code} {first}"
            ));
            self.differ(unit.clone(), loaded.line, &why);
        }
        if let Some((code, first)) = told.first() {
            let shown = format!("`{}/{}`, line {}", unit.0, unit.1, loaded.line);
            self.warn(format!("{shown}: {code} {first}"));
        }
        Ok(())
    }

    /// A unit that has come, but not as the script gave it: the rest of its rows is still wanted.
    fn differ(&mut self, unit: (String, String), line: u64, why: &Error) {
        self.name(&unit, line, why);
        self.differing.insert(unit);
    }

    /// What the script has made of its session, for the connections that load its rows.
    async fn session(&mut self) -> Result<Arc<str>> {
        if let Some(session) = &self.session {
            return Ok(session.clone());
        }
        let is_maria = self.restoring.server.is_maria();
        let mut names = vec![
            "character_set_client",
            "collation_connection",
            "time_zone",
            "sql_mode",
            "foreign_key_checks",
            "unique_checks",
            "sql_notes",
        ];
        if is_maria {
            names.push("check_constraint_checks");
            if self.restoring.server.version >= (10, 11, 0) {
                names.push("system_versioning_insert_history");
            }
        }
        let list: Vec<_> = names.iter().map(|name| format!("@@{name}")).collect();
        let row = self
            .main
            .row(format!("SELECT {}, DATABASE()", list.join(", ")))
            .await?
            .ok_or_else(|| bug("the session has no variables"))?;
        let sets: Vec<String> = names
            .iter()
            .enumerate()
            .map(|(n, name)| match row.word(n) {
                value if value.bytes().all(|b| b.is_ascii_digit()) && !value.is_empty() => {
                    format!("{name}={value}")
                }
                value => format!("{name}={}", connection::quoted(&value)),
            })
            .collect();
        let place = row
            .text(names.len())
            .map(|database| format!("\nUSE {}", ident(&database)))
            .unwrap_or_default();
        let session: Arc<str> = format!("SET {}{place}", sets.join(", ")).into();
        self.session = Some(session.clone());
        Ok(session)
    }

    /// Views and programs that were refused, again and again as long as one of them succeeds.
    async fn try_late(&mut self) -> Result<()> {
        loop {
            let before = self.late.len();
            let mut why = Vec::new();
            for late in std::mem::take(&mut self.late) {
                for sql in late.session.split('\n') {
                    self.main.run(sql).await?;
                }
                match self.main.run_of_script(&late.sql).await {
                    Ok(()) => {}
                    Err(error) => {
                        why.push(refusal(error)?);
                        self.late.push(late);
                    }
                }
            }
            if self.late.is_empty() {
                return Ok(());
            }
            if self.late.len() == before {
                for (late, why) in std::mem::take(&mut self.late).into_iter().zip(why) {
                    self.fail(late.unit, late.line, &why);
                }
                return Ok(());
            }
        }
    }
}

/// The server's refusal of one statement; anything else ends the restore.
fn refusal(error: wire::Error) -> Result<Error> {
    let is_servers = matches!(error, wire::Error::Server(_));
    let error = connection::error(error);
    if is_servers && !matches!(error.kind, ErrorKind::NoSpace | ErrorKind::Auth) {
        Ok(error)
    } else {
        Err(error)
    }
}

/// A statement that the server would not take.
fn too_large(bytes: usize, packet: usize) -> Error {
    let what =
        format!("a statement of {bytes} bytes, and the server's max_allowed_packet is {packet}");
    Error::new(ErrorKind::Unsupported, what).hint(format!(
        "SET GLOBAL max_allowed_packet = {}, and restore it again",
        (bytes + 1).next_power_of_two()
    ))
}
