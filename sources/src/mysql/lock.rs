//! One instant for many connections: the shortest lock that each family knows, and what is said when the rights do not reach so far.
//!
//! MySQL: nothing long runs, `FLUSH TABLES`, `FLUSH TABLES WITH READ LOCK`; every reader starts its snapshot; release. DDL is held off by
//! `LOCK INSTANCE FOR BACKUP` until the data is read. MariaDB: `BACKUP STAGE` on a connection that never reads data, since its end ends
//! that connection's transaction.

mod fallback;

use crate::mysql::catalogue::{self, Filter, Table, TableKind};
use crate::mysql::connection::{Access, Connection, Server, ident};
use crate::mysql::{Consistency, MysqlSettings};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// A statement that runs longer than this would stall every writer behind the lock.
const LONG_STATEMENT: Duration = Duration::from_millis(500);
const LONG_STATEMENTS_LIMIT: Duration = Duration::from_mins(1);
/// Longest wait for the lock itself, in seconds: nobody waits behind it longer.
const LOCK_SECONDS: u32 = 1;

/// What all connections agree on.
pub struct Instant {
    /// Connections that read at it.
    pub readers: Vec<Connection>,
    /// Holds off DDL (MySQL) while it lives.
    pub guard: Option<Connection>,
    /// Holds tables without transactions while it lives.
    pub plain_tables: Option<Connection>,
    /// When.
    pub at: Timestamp,
    /// `snapshot`, or which fallback.
    pub consistency: &'static str,
    /// Where the binary log stands.
    pub position: Option<String>,
    /// Databases that are taken.
    pub databases: Vec<String>,
    /// Their tables, views and sequences.
    pub tables: Vec<Table>,
    /// Per sequence the next value that it has not handed out, and its cycles.
    pub sequences: BTreeMap<(String, String), (String, String)>,
    /// How long writers were held, in microseconds.
    pub held_micros: u128,
    /// Things that need a look.
    pub warnings: Vec<String>,
}

/// Takes it.
pub async fn take(
    access: &Access,
    cx: &Context,
    server: &Server,
    settings: &MysqlSettings,
    filter: &Filter,
) -> Result<Instant> {
    let mut readers = Vec::new();
    let count = if settings.consistency == Consistency::SingleConnection {
        1
    } else {
        settings.parallel.max(1)
    };
    for _ in 0..count {
        let mut reader = access.connect(cx).await?;
        reader
            .run("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            .await?;
        readers.push(reader);
    }
    let mut taking = Taking {
        cx,
        server,
        filter,
        warnings: Vec::new(),
    };
    if settings.consistency == Consistency::SingleConnection {
        return taking.alone(readers).await;
    }
    let control = access.connect(cx).await?;
    let plain = access.connect(cx).await?;
    let locked = if server.is_maria() {
        taking.backup_stage(control, plain, &mut readers).await
    } else {
        taking.read_lock(control, plain, &mut readers).await
    };
    match locked {
        Ok(instant) => Ok(Instant { readers, ..instant }),
        Err(error)
            if error.kind == ErrorKind::Cancelled || settings.consistency == Consistency::Lock =>
        {
            Err(error.within("could not take the lock that `consistency` asks for"))
        }
        Err(error) => {
            taking.warnings.push(format!("no global lock ({error})"));
            taking.without_global_lock(access, readers).await
        }
    }
}

struct Taking<'a> {
    cx: &'a Context,
    server: &'a Server,
    filter: &'a Filter,
    warnings: Vec<String>,
}

impl Taking<'_> {
    /// MariaDB. The connection that holds the stages never reads data.
    async fn backup_stage(
        &mut self,
        mut control: Connection,
        plain: Connection,
        readers: &mut [Connection],
    ) -> Result<Instant> {
        control
            .run(format!(
                "SET SESSION lock_wait_timeout = {}",
                LOCK_SECONDS * 10
            ))
            .await?;
        control.run("BACKUP STAGE START").await?;
        control.run("BACKUP STAGE BLOCK_DDL").await?;
        control.run("BACKUP STAGE BLOCK_COMMIT").await?;
        let instant = self
            .until_released(&mut control, plain, readers, "BACKUP STAGE END")
            .await?;
        control.end().await;
        Ok(instant)
    }

    /// MySQL.
    async fn read_lock(
        &mut self,
        mut control: Connection,
        plain: Connection,
        readers: &mut [Connection],
    ) -> Result<Instant> {
        if let Err(error) = control.run("LOCK INSTANCE FOR BACKUP").await {
            self.warn(ddl_is_not_held_off(&error));
        }
        self.wait_for_long_statements(&mut control).await?;
        control
            .run(format!("SET SESSION lock_wait_timeout = {LOCK_SECONDS}"))
            .await?;
        control.run("FLUSH NO_WRITE_TO_BINLOG TABLES").await?;
        control.run("FLUSH TABLES WITH READ LOCK").await?;
        let mut instant = self
            .until_released(&mut control, plain, readers, "UNLOCK TABLES")
            .await?;
        instant.guard = Some(control);
        Ok(instant)
    }

    /// From the moment that the lock is held: what must be done under it, its release, and what can wait until after.
    async fn until_released(
        &mut self,
        control: &mut Connection,
        plain: Connection,
        readers: &mut [Connection],
        release: &str,
    ) -> Result<Instant> {
        let begun = std::time::Instant::now();
        let taken = self.under_lock(control, plain, readers).await;
        let released = control.run(release).await;
        let held_micros = begun.elapsed().as_micros();
        let mut instant = taken?;
        released?;
        catalogue::stamp(control, &instant.databases, &mut instant.tables).await?;
        instant.held_micros = held_micros;
        instant.warnings = std::mem::take(&mut self.warnings);
        Ok(instant)
    }

    /// Waits until nothing long runs: what is flushed under a running statement stays closed for everybody until that one ends.
    async fn wait_for_long_statements(&self, control: &mut Connection) -> Result<()> {
        let begun = std::time::Instant::now();
        let mut earlier: Vec<Running> = Vec::new();
        let mut before = self.running(control).await?;
        loop {
            self.cx.check_cancelled()?;
            tokio::time::sleep(LONG_STATEMENT).await;
            let now = self.running(control).await?;
            // The server counts whole seconds. What stands in two looks may be older than the limit; what stands in three and still has
            // no second is a short one that comes again and again.
            let long = now.iter().any(|statement| {
                statement.seconds > 0 || (statement.is_in(&before) && !statement.is_in(&earlier))
            });
            if !long {
                return Ok(());
            }
            if begun.elapsed() > LONG_STATEMENTS_LIMIT {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!(
                        "statements that run longer than {} ms did not end within 60 s",
                        LONG_STATEMENT.as_millis()
                    ),
                ));
            }
            earlier = std::mem::replace(&mut before, now);
        }
    }

    /// What runs, but for what waits for a lock: our own holds off DDL, and what waits has no table open.
    async fn running(&self, control: &mut Connection) -> Result<Vec<Running>> {
        let rows = control
            .rows("SELECT ID, TIME, INFO FROM information_schema.PROCESSLIST WHERE COMMAND IN ('Query', 'Execute') AND ID <> CONNECTION_ID() AND INFO IS NOT NULL AND STATE NOT LIKE 'Waiting for%lock'")
            .await?;
        Ok(rows
            .iter()
            .map(|row| Running {
                id: row.word(0),
                seconds: row.word(1).parse().unwrap_or(0),
                text: row.word(2),
            })
            .collect())
    }

    /// What is done while nobody commits: snapshots, position, names, sequences.
    async fn under_lock(
        &mut self,
        control: &mut Connection,
        mut plain: Connection,
        readers: &mut [Connection],
    ) -> Result<Instant> {
        start_all(readers).await?;
        let at = self.cx.clock.now();
        let position = self.position(control).await;
        let databases = catalogue::databases(control, self.filter).await?;
        let tables = self.tables(control, &databases).await?;
        let sequences = self.sequences(control, &tables).await?;
        let held = self.hold_plain_tables(&mut plain, &tables).await;
        let plain_tables = if held {
            Some(plain)
        } else {
            plain.end().await;
            None
        };
        Ok(Instant {
            readers: Vec::new(),
            guard: None,
            plain_tables,
            at,
            consistency: "snapshot",
            position,
            databases,
            tables,
            sequences,
            held_micros: 0,
            warnings: Vec::new(),
        })
    }

    /// Tables without transactions are read-locked by a session of their own until their rows are read.
    async fn hold_plain_tables(&mut self, plain: &mut Connection, tables: &[Table]) -> bool {
        let names: Vec<_> = tables
            .iter()
            .filter(|table| table.has_rows() && !table.transactional() && !table.engine.is_empty())
            .map(|table| format!("{} READ", table.full()))
            .collect();
        if names.is_empty() {
            return false;
        }
        // Writers wait meanwhile: a table that cannot be had at once is named instead.
        if let Err(error) = plain
            .run(format!("SET SESSION lock_wait_timeout = {LOCK_SECONDS}"))
            .await
        {
            self.warnings.push(error.to_string());
            return false;
        }
        match plain.run(format!("LOCK TABLES {}", names.join(","))).await {
            Ok(()) => true,
            Err(error) => {
                self.warnings.push(format!(
                    "tables without transactions are not at the same instant ({error}): {}",
                    names.join(", ").replace(" READ", "")
                ));
                false
            }
        }
    }

    fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    async fn position(&mut self, control: &mut Connection) -> Option<String> {
        if !self.server.binary_log {
            return None;
        }
        let gtid = self.gtid(control).await;
        let file = self.log_file(control).await.unwrap_or_default();
        let position = position(&gtid, &file);
        (!position.is_empty()).then_some(position)
    }

    async fn gtid(&self, control: &mut Connection) -> String {
        let gtid = if self.server.is_maria() {
            "SELECT @@gtid_binlog_pos"
        } else {
            "SELECT IF(@@GLOBAL.gtid_mode = 'ON', @@GLOBAL.gtid_executed, '')"
        };
        let gtid = control.value(gtid).await.ok().flatten();
        gtid.unwrap_or_default().replace('\n', "")
    }

    /// File and place of the binary log.
    async fn log_file(&mut self, control: &mut Connection) -> Option<String> {
        let status = if !self.server.is_maria() && self.server.version >= (8, 2, 0) {
            "SHOW BINARY LOG STATUS"
        } else {
            "SHOW MASTER STATUS"
        };
        match control.row(status).await {
            Ok(row) => row.map(|row| format!("{}:{}", row.word(0), row.word(1))),
            Err(error) => {
                self.warn(format!("the binary log's position is not known ({error})"));
                None
            }
        }
    }

    /// Names, with what shows that somebody altered them meanwhile.
    async fn tables(&self, control: &mut Connection, databases: &[String]) -> Result<Vec<Table>> {
        let mut tables = catalogue::tables(control, databases, self.filter).await?;
        if self.server.is_maria() {
            let partitions = catalogue::partitions(control, None).await;
            for table in &mut tables {
                table.partitions = partitions
                    .get(&table.file_name())
                    .cloned()
                    .unwrap_or_default();
            }
        }
        Ok(tables)
    }

    /// Sequences are in no transaction.
    async fn sequences(
        &self,
        control: &mut Connection,
        tables: &[Table],
    ) -> Result<BTreeMap<(String, String), (String, String)>> {
        let mut values = BTreeMap::new();
        for table in tables
            .iter()
            .filter(|table| table.kind == TableKind::Sequence)
        {
            let row = control
                .row(format!(
                    "SELECT next_not_cached_value, cycle_count FROM {}",
                    table.full()
                ))
                .await?;
            if let Some(row) = row {
                values.insert(
                    (table.database.clone(), table.name.clone()),
                    (row.word(0), row.word(1)),
                );
            }
        }
        Ok(values)
    }
}

fn position(gtid: &str, file: &str) -> String {
    format!("{gtid} {file}").trim().to_owned()
}

fn ddl_is_not_held_off(error: &Error) -> String {
    format!("DDL is not held off during the backup ({error}); tables that it changes fail by name")
}

struct Running {
    id: String,
    seconds: u64,
    text: String,
}

impl Running {
    fn is_in(&self, look: &[Self]) -> bool {
        look.iter()
            .any(|other| other.id == self.id && other.text == self.text)
    }
}

async fn start_all(readers: &mut [Connection]) -> Result<()> {
    let starts = readers
        .iter_mut()
        .map(|reader| reader.run("START TRANSACTION /*!40100 WITH CONSISTENT SNAPSHOT */"));
    // All to their ends: who is left in the middle of an answer can be asked nothing more.
    let started = futures::future::join_all(starts).await;
    started.into_iter().collect()
}

/// Rights that a backup wants and the account lacks, each with what that costs.
pub async fn missing_rights(
    connection: &mut Connection,
    server: &Server,
    accounts: bool,
    everything: bool,
) -> Result<Vec<String>> {
    let me = connection
        .value("SELECT CURRENT_USER()")
        .await?
        .unwrap_or_default();
    let grants: Vec<String> = connection
        .rows("SHOW GRANTS")
        .await?
        .iter()
        .map(|row| row.word(0))
        .collect();
    let rights = Rights::of(&grants);
    let mut warnings = Vec::new();
    let mut want = |right: &str, global: bool, cost: &str| {
        if !rights.has(right, global) {
            warnings.push(format!(
                "{me} lacks {right}: {cost}; GRANT {right} ON *.* TO {}",
                account(&me)
            ));
        }
    };
    want("SELECT", everything, "nothing can be read");
    want("SHOW VIEW", everything, "views fail");
    want("TRIGGER", everything, "triggers fail");
    want("EVENT", everything, "events fail");
    want(
        "LOCK TABLES",
        everything,
        "tables without transactions are not at the same instant",
    );
    want(
        "RELOAD",
        true,
        "no global lock: the tables are locked by name, positions are compared, or one connection reads everything",
    );
    if server.is_maria() {
        want(
            "BINLOG MONITOR",
            true,
            "the binary log's position is not known",
        );
    } else {
        want(
            "BACKUP_ADMIN",
            true,
            "DDL is not held off during the backup",
        );
        want(
            "REPLICATION CLIENT",
            true,
            "the binary log's position is not known",
        );
        want(
            "PROCESS",
            true,
            "long statements of others are not seen before the lock is taken",
        );
        want("SHOW_ROUTINE", true, "routines of others fail");
        let local = connection.value("SELECT @@GLOBAL.local_infile").await?;
        if local.as_deref() == Some("0") {
            warnings.push(
                "local_infile is off: a restore uses INSERT, which takes longer; SET GLOBAL local_infile = 1".into(),
            );
        }
    }
    if accounts
        && connection
            .row("SELECT 1 FROM mysql.user LIMIT 1")
            .await
            .is_err()
    {
        warnings.push(format!(
            "{me} may not read mysql.user: accounts fail; set accounts = false, or GRANT SELECT ON mysql.* TO {}",
            account(&me)
        ));
    }
    Ok(warnings)
}

fn account(me: &str) -> String {
    match me.rsplit_once('@') {
        Some((user, host)) => format!("{}@{}", ident(user), ident(host)),
        None => ident(me),
    }
}

/// What SHOW GRANTS says.
struct Rights {
    global: Vec<String>,
    some: Vec<String>,
}

impl Rights {
    fn of(grants: &[String]) -> Self {
        let (mut global, mut some) = (Vec::new(), Vec::new());
        for line in grants {
            let Some((rights, rest)) = line
                .strip_prefix("GRANT ")
                .and_then(|l| l.split_once(" ON "))
            else {
                continue;
            };
            let words: Vec<_> = rights
                .split(',')
                .map(|word| word.trim().to_uppercase())
                .collect();
            if rest.starts_with("*.* ") {
                global.extend(words.clone());
            }
            some.extend(words);
        }
        Self { global, some }
    }

    fn has(&self, right: &str, global: bool) -> bool {
        let list = if global { &self.global } else { &self.some };
        let dynamic = right.contains('_');
        list.iter()
            .any(|have| have == right || (!dynamic && have.starts_with("ALL PRIVILEGES")))
    }
}
