//! Rows, over many connections at once. A segment is one transaction: it is there whole or not at all, and can be tried again.

use super::{Count, Made, Restoring, body_of, local, stops};
use crate::mysql::connection::{self, Connection, ident, number_of};
use crate::mysql::lexer::{Splitter, Statement};
use crate::mysql::statement::Rows;
use crate::mysql::wire;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::source::{Input, Member, Members, Stage};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use tokio::sync::Semaphore;

/// Segments over this hold one giant row. They go one at a time: each is in memory several times over, and several such rows at once can
/// bring a server whose log is small to a standstill. They go by INSERT.
const GIANT_BYTES: u64 = 13 << 20;
/// A segment that meets another's lock is tried so often.
const TRIES: usize = 10;
const DEADLOCK: u16 = 1213;
const LOCK_WAIT: u16 = 1205;
const DATA_TRUNCATED: u16 = 1265;

/// Members and rows that came back, by unit.
type Counts = BTreeMap<(String, String), Count>;

impl Restoring<'_> {
    pub(super) async fn rows(&mut self, input: &mut Input) -> Result<()> {
        let members = input.stage(Stage::Data).await?;
        let mut connections = Vec::new();
        for _ in 0..self.source.settings.parallel.max(1) {
            connections.push(self.source.access.connect(self.cx).await?);
        }
        let cx = self.cx.child();
        let databases: HashMap<String, String> = self
            .tables
            .keys()
            .map(|unit| (unit.0.clone(), self.database(&unit.0)))
            .collect();
        let local = connections[0]
            .value("SELECT @@GLOBAL.local_infile")
            .await?
            .is_some_and(|value| value == "1");
        let giants = &Semaphore::new(1);
        let refused = &Mutex::new(BTreeMap::new());
        let (tables, broken) = (&self.tables, &self.broken);
        let packet = connections[0]
            .value("SELECT @@max_allowed_packet")
            .await?
            .and_then(|text| text.parse().ok())
            .unwrap_or(usize::MAX);
        let workers = connections.iter_mut().map(|connection| {
            let worker = Worker {
                cx: cx.clone(),
                tables,
                broken,
                databases: &databases,
                giants,
                refused,
                packet,
                is_maria: self.server.is_maria(),
                local,
            };
            let members = members.clone();
            async move {
                tokio::select! {
                    biased;
                    () = worker.cx.cancel.cancelled() => Err(Error::cancelled()),
                    counts = worker.run(connection, members) => counts,
                }
            }
        });
        let done = futures::future::try_join_all(workers).await;
        futures::future::join_all(connections.into_iter().map(Connection::end)).await;
        for counts in done? {
            for (unit, more) in counts {
                let count = self
                    .counts
                    .entry((unit.0, unit.1, Stage::Data))
                    .or_default();
                count.members += more.members;
                count.rows += more.rows;
                count.bytes += more.bytes;
            }
        }
        let refused = std::mem::take(&mut *lock(refused));
        for (unit, why) in refused {
            self.tally.failed.push(why);
            self.broken.insert(unit);
        }
        Ok(())
    }
}

/// Units of which the server refused rows, and why.
type Refused = BTreeMap<(String, String), String>;

fn lock(refused: &Mutex<Refused>) -> std::sync::MutexGuard<'_, Refused> {
    refused
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Worker<'a> {
    cx: Context,
    tables: &'a HashMap<(String, String), Made>,
    /// Units whose tables could not be made.
    broken: &'a BTreeSet<(String, String)>,
    refused: &'a Mutex<Refused>,
    /// The server's `max_allowed_packet`.
    packet: usize,
    databases: &'a HashMap<String, String>,
    giants: &'a Semaphore,
    is_maria: bool,
    /// The server lets LOCAL in.
    local: bool,
}

impl Worker<'_> {
    async fn run(&self, connection: &mut Connection, members: Members) -> Result<Counts> {
        let mut counts = Counts::new();
        while let Some(member) = members.next().await? {
            self.cx.check_cancelled()?;
            let unit = member.unit.clone();
            let shown = member.path.to_string();
            let bytes = member.len.unwrap_or_default();
            if self.broken.contains(&unit) || lock(self.refused).contains_key(&unit) {
                continue;
            }
            match self.segment(connection, member).await {
                Ok(rows) => counts.entry(unit).or_default().add(rows, bytes),
                Err(error) => {
                    let error = error.within(format!("`{shown}`"));
                    // The rows of this segment go again; and a connection that is gone says so here.
                    if stops(&error) || connection.run("ROLLBACK").await.is_err() {
                        return Err(error);
                    }
                    lock(self.refused)
                        .entry(unit)
                        .or_insert_with(|| error.to_string());
                }
            }
        }
        Ok(counts)
    }

    async fn segment(&self, connection: &mut Connection, member: Member) -> Result<u64> {
        let unit = member.unit.clone();
        let made = self.tables.get(&unit).ok_or_else(|| {
            Error::corrupt(format!(
                "rows of `{}/{}` come without their table",
                unit.0, unit.1
            ))
        })?;
        let giant = member.len.unwrap_or_default() > GIANT_BYTES;
        let _alone = if giant {
            let closed = |_| bk_core::error::bug("the permit for giant rows was closed");
            Some(self.giants.acquire().await.map_err(closed)?)
        } else {
            None
        };
        let body = body_of(member).await?;
        let statements = Splitter::all(&body)?;
        drop(body);
        // A statement that the server would not take goes in pieces; a single row may be too large for that.
        let statements = self.fitting(statements);
        let exceeds = statements.iter().any(|s| s.sql.len() >= self.packet);
        // Giants go by INSERT, unless the server takes no statement of that size.
        let columns = made
            .load
            .as_ref()
            .filter(|_| self.local && !made.merged && (!giant || exceeds));
        for attempt in 1.. {
            if let Some(load) = columns.and_then(|columns| local::transcode(&statements, columns)) {
                match self.load(connection, &unit, &statements, load).await {
                    Ok(Some(rows)) => return Ok(rows),
                    // Something was not taken as it is: INSERT takes it, or says what it is.
                    Ok(None) => {}
                    Err(Tried::Server(error)) if attempt < TRIES && is_lock(&error) => {
                        connection.run("ROLLBACK").await?;
                        continue;
                    }
                    Err(Tried::Server(error)) => return Err(connection::error(error)),
                    Err(Tried::Ours(error)) => return Err(error),
                }
            }
            if exceeds {
                let largest = statements.iter().map(|s| s.sql.len()).max();
                return Err(too_large(largest.unwrap_or_default(), self.packet));
            }
            match self.transaction(connection, &unit, made, &statements).await {
                Err(Tried::Server(error)) if attempt < TRIES && is_lock(&error) => {
                    tracing::debug!(unit = unit.1, attempt, "a lock was in the way: {error}");
                    connection.run("ROLLBACK").await?;
                }
                Err(Tried::Server(error)) => return Err(connection::error(error)),
                Err(Tried::Ours(error)) => return Err(error),
                Ok(rows) => return Ok(rows),
            }
            self.cx.check_cancelled()?;
        }
        Err(bk_core::error::bug("a segment was never tried"))
    }

    fn fitting(&self, statements: Vec<Statement>) -> Vec<Statement> {
        let mut fitting = Vec::with_capacity(statements.len());
        for statement in statements {
            let rows = (statement.sql.len() >= self.packet)
                .then(|| Rows::of(&statement.sql, false))
                .flatten();
            let line = statement.line;
            match rows {
                None => fitting.push(statement),
                Some(rows) => {
                    let pieces = rows.pieces(&statement.sql, self.packet);
                    fitting.extend(pieces.map(|sql| Statement { sql, line }));
                }
            }
        }
        fitting
    }

    /// A segment by LOAD DATA LOCAL, after the settings that it begins with.
    async fn load(
        &self,
        connection: &mut Connection,
        unit: &(String, String),
        statements: &[Statement],
        load: local::Load,
    ) -> std::result::Result<Option<u64>, Tried> {
        for statement in statements {
            if !statement.sql.starts_with(b"INSERT INTO ") {
                self.setting(connection, unit, &statement.sql).await?;
            }
        }
        self.no_bulk(connection).await?;
        Ok(local::run(connection, load).await?)
    }

    /// MariaDB (10.11.19) stood still, other readers of the table too, when several connections loaded one empty table in the bulk mode that
    /// it enters while both checks are off. One of them on keeps it out, and costs nothing measurable where keys come after the rows.
    async fn no_bulk(&self, connection: &mut Connection) -> std::result::Result<(), Tried> {
        if self.is_maria {
            connection.run_counted(b"SET unique_checks=1").await?;
        }
        Ok(())
    }

    /// A statement of a segment that is no INSERT.
    async fn setting(
        &self,
        connection: &mut Connection,
        unit: &(String, String),
        sql: &[u8],
    ) -> std::result::Result<(), Tried> {
        if sql.starts_with(b"USE ") {
            let database = self.databases.get(&unit.0).map_or("", String::as_str);
            connection
                .run_counted(format!("USE {}", ident(database)).as_bytes())
                .await?;
            return Ok(());
        }
        Ok(connection.run_of_script(sql).await?)
    }

    async fn transaction(
        &self,
        connection: &mut Connection,
        unit: &(String, String),
        made: &Made,
        statements: &[Statement],
    ) -> std::result::Result<u64, Tried> {
        let mut rows = 0;
        let mut begun = false;
        for statement in statements {
            let sql = &statement.sql[..];
            if sql.starts_with(b"INSERT INTO ") {
                if !begun {
                    self.no_bulk(connection).await?;
                    connection.run_counted(b"START TRANSACTION").await?;
                    begun = true;
                }
                rows += self.insert(connection, made, sql).await?;
            } else {
                self.setting(connection, unit, sql).await?;
            }
        }
        if begun {
            connection.run_counted(b"COMMIT").await?;
        }
        Ok(rows)
    }

    /// One INSERT. What the server cut or changed on its way in comes back as a warning, and is a failure.
    async fn insert(
        &self,
        connection: &mut Connection,
        made: &Made,
        sql: &[u8],
    ) -> std::result::Result<u64, Tried> {
        let (rows, warnings) = if made.merged {
            let replace = [b"REPLACE", &sql[b"INSERT".len()..]].concat();
            let told = connection.run_counted(&replace).await?;
            let records = number_of(&told.info, "Records: ");
            (records.unwrap_or(told.affected.min(1)), told.warnings)
        } else {
            let told = connection.run_counted(sql).await?;
            (told.affected, told.warnings)
        };
        if warnings > 0 {
            self.only_harmless(connection, made, usize::from(warnings))
                .await?;
        }
        Ok(rows)
    }

    async fn only_harmless(
        &self,
        connection: &mut Connection,
        made: &Made,
        counted: usize,
    ) -> Result<()> {
        let shown = connection.rows("SHOW WARNINGS").await?;
        if shown.len() < counted {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the server counted {counted} warnings and shows {} of them",
                    shown.len()
                ),
            )
            .hint("set the server's max_error_count to 65535"));
        }
        for row in shown {
            let (code, message) = (row.word(1), row.word(2));
            // ENUM's error value can be stored, but warns each time.
            let known = code == DATA_TRUNCATED.to_string()
                && made
                    .enums
                    .iter()
                    .any(|column| message.contains(&format!("'{column}'")));
            if !known {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("the server changed a value on its way in: warning {code}: {message}"),
                ));
            }
        }
        Ok(())
    }
}

/// A row that makes a larger statement than the server takes.
fn too_large(bytes: usize, packet: usize) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "a row needs a statement of {bytes} bytes, and the server's max_allowed_packet is {packet}"
        ),
    )
    .hint(format!(
        "SET GLOBAL max_allowed_packet = {}, or SET GLOBAL local_infile = 1, and restore it again",
        (bytes + 1).next_power_of_two()
    ))
}

/// Whether another's lock was in the way.
pub(super) fn is_lock(error: &wire::Error) -> bool {
    matches!(connection::code(error), Some(DEADLOCK | LOCK_WAIT))
}

/// Why a transaction did not come to its end.
enum Tried {
    Server(wire::Error),
    Ours(Error),
}

impl From<wire::Error> for Tried {
    fn from(error: wire::Error) -> Self {
        Self::Server(error)
    }
}

impl From<Error> for Tried {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}
