//! One instant without the global lock, by what the rights still allow; the archive says which it was. Several snapshots that nothing
//! holds together are never taken.

use super::{Instant, LOCK_SECONDS, Taking, start_all};
use crate::mysql::catalogue::{self, Table};
use crate::mysql::connection::{Access, Connection};
use bk_core::error::Result;
use jiff::Timestamp;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// How often positions are compared before one connection must do.
const COMPARISONS: usize = 5;
/// No transaction takes longer from the log to the tables.
const QUIET: Duration = Duration::from_millis(200);
/// How often readers are started anew for one place in the binary log: a try takes a millisecond or two.
const SAME_SNAPSHOTS: usize = 50;

const WHAT_IS_NOT_LOGGED: &str = "no lock was held: tables that are written without the binary log (sql_log_bin = 0) may be of another instant";

/// Where in the binary log a session's snapshot stands.
async fn snapshot_place(reader: &mut Connection) -> Result<Option<String>> {
    let rows = reader.rows("SHOW STATUS LIKE 'Binlog_snapshot_%'").await?;
    let words: Vec<_> = rows.iter().map(|row| row.word(1)).collect();
    let known = words.iter().any(|word| !word.is_empty());
    Ok(known.then(|| words.join(":")))
}

async fn roll_back(readers: &mut [Connection]) -> Result<()> {
    for reader in readers {
        reader.run("ROLLBACK").await?;
    }
    Ok(())
}

/// Read-locks tables in one statement; otherwise says why not. The server's own limit counts for each table anew, ours for all of them.
async fn lock_together(
    control: &mut Connection,
    (holder, id): (&mut Connection, &str),
    tables: &[String],
) -> std::result::Result<(), String> {
    if tables.is_empty() {
        return Ok(());
    }
    let reads: Vec<_> = tables.iter().map(|name| format!("{name} READ")).collect();
    let lock = format!("LOCK TABLES {}", reads.join(","));
    let limit = Duration::from_secs(u64::from(LOCK_SECONDS) + 1);
    if let Ok(locked) = tokio::time::timeout(limit, holder.run(lock)).await {
        return locked.map_err(|error| error.to_string());
    }
    let killed = control.run(format!("KILL {id}")).await;
    let killed = killed.err().map_or(String::new(), |e| format!(": {e}"));
    Err(format!("not within {} s{killed}", limit.as_secs()))
}

impl Taking<'_> {
    /// What gives one instant all the same, the surest first.
    pub(super) async fn without_global_lock(
        &mut self,
        access: &Access,
        mut readers: Vec<Connection>,
    ) -> Result<Instant> {
        let mut control = access.connect(self.cx).await?;
        let guard = self.ddl_held_off(access).await?;
        // What is altered from here on is found: no lock may be there to hold it off.
        let (_, before) = self.listed(&mut control).await?;
        let mut instant = self
            .same_snapshot(&mut control, &mut readers, &before)
            .await?;
        if instant.is_none() {
            instant = self
                .tables_locked(access, &mut control, &mut readers, &before)
                .await?;
        }
        if instant.is_none() {
            instant = self.compared(&mut control, &mut readers, &before).await?;
        }
        control.end().await;
        if let Some(instant) = instant {
            return Ok(Instant {
                readers,
                guard,
                ..instant
            });
        }
        self.warn("positions could not be compared, or did not stand still: one connection reads everything".into());
        for reader in readers.split_off(1) {
            reader.end().await;
        }
        let instant = self.alone(readers).await?;
        Ok(Instant { guard, ..instant })
    }

    /// MySQL's lock against DDL is another than the one that could not be had.
    async fn ddl_held_off(&mut self, access: &Access) -> Result<Option<Connection>> {
        if self.server.is_maria() {
            return Ok(None);
        }
        let mut guard = access.connect(self.cx).await?;
        match guard.run("LOCK INSTANCE FOR BACKUP").await {
            Ok(()) => Ok(Some(guard)),
            Err(error) => {
                self.warn(super::ddl_is_not_held_off(&error));
                guard.end().await;
                Ok(None)
            }
        }
    }

    /// Databases, and their tables with what shows that somebody altered them meanwhile.
    async fn listed(&self, control: &mut Connection) -> Result<(Vec<String>, Vec<Table>)> {
        let databases = catalogue::databases(control, self.filter).await?;
        let mut tables = self.tables(control, &databases).await?;
        catalogue::stamp(control, &databases, &mut tables).await?;
        Ok((databases, tables))
    }

    /// MariaDB tells each session at which place of the binary log its snapshot stands: all start until they stand at one.
    async fn same_snapshot(
        &mut self,
        control: &mut Connection,
        readers: &mut [Connection],
        before: &[Table],
    ) -> Result<Option<Instant>> {
        if !self.server.is_maria() || !self.everything_is_logged(control).await {
            return Ok(None);
        }
        for _ in 0..SAME_SNAPSHOTS {
            self.cx.check_cancelled()?;
            start_all(readers).await?;
            let at = self.cx.clock.now();
            let mut places = BTreeSet::new();
            for reader in readers.iter_mut() {
                places.insert(snapshot_place(reader).await?);
            }
            if places.contains(&None) {
                return Ok(None);
            }
            if places.len() == 1 {
                self.warn(WHAT_IS_NOT_LOGGED.into());
                let place = places.pop_first().flatten();
                let instant = self.unlocked(control, at, "binlog-snapshots-equal", place, before);
                return instant.await.map(Some);
            }
            roll_back(readers).await?;
        }
        self.warn("the readers' places in the binary log did not come to be one".into());
        Ok(None)
    }

    /// Whether the binary log shows all that is committed: not on a replica that logs only its own writes, nor where databases are left out.
    async fn everything_is_logged(&self, control: &mut Connection) -> bool {
        if !self.server.binary_log {
            return false;
        }
        let updates = control.value("SELECT @@log_slave_updates").await;
        if !matches!(updates, Ok(Some(ref on)) if on == "1") {
            let replicates = "SELECT SUM(VARIABLE_NAME = 'SLAVES_RUNNING' AND VARIABLE_VALUE <> '0' OR VARIABLE_NAME = 'WSREP_CLUSTER_SIZE' AND VARIABLE_VALUE <> '0') FROM information_schema.GLOBAL_STATUS";
            if !matches!(control.value(replicates).await, Ok(Some(ref none)) if none == "0") {
                return false;
            }
        }
        let filters = "SELECT COUNT(*) FROM information_schema.SYSTEM_VARIABLES WHERE VARIABLE_NAME IN ('BINLOG_DO_DB', 'BINLOG_IGNORE_DB') AND GLOBAL_VALUE <> ''";
        matches!(control.value(filters).await, Ok(Some(ref none)) if none == "0")
    }

    /// All tables are read-locked while the readers start, by sessions that read nothing.
    async fn tables_locked(
        &mut self,
        access: &Access,
        control: &mut Connection,
        readers: &mut [Connection],
        before: &[Table],
    ) -> Result<Option<Instant>> {
        let mut plain = access.connect(self.cx).await?;
        let mut holder = access.connect(self.cx).await?;
        let wait = format!("SET SESSION lock_wait_timeout = {LOCK_SECONDS}");
        holder.run(wait).await?;
        let id = holder.value("SELECT CONNECTION_ID()").await?;
        let id = id.unwrap_or_default();
        // Those without transactions first: behind the other lock, a writer that waits for it would stand before this one.
        let begun = std::time::Instant::now();
        let held = self.hold_plain_tables(&mut plain, before).await;
        let with_rows = |table: &&Table| table.has_rows() && !table.engine.is_empty();
        let all = before.iter().filter(with_rows);
        let to_lock = all.filter(|table| !held || table.transactional());
        let to_lock: Vec<_> = to_lock.map(Table::full).collect();
        if let Err(why) = lock_together(control, (&mut holder, &id), &to_lock).await {
            self.warn(format!("the tables could not be locked together ({why})"));
            holder.end().await;
            plain.end().await;
            return Ok(None);
        }
        start_all(readers).await?;
        let at = self.cx.clock.now();
        let position = self.position(control).await;
        holder.run("UNLOCK TABLES").await?;
        let held_micros = begun.elapsed().as_micros();
        holder.end().await;
        let mut instant = self
            .unlocked(control, at, "tables-locked", position, before)
            .await?;
        let known: BTreeSet<_> = before.iter().map(Table::full).collect();
        let came = instant.tables.iter().filter(with_rows).map(Table::full);
        let came: Vec<_> = came.filter(|name| !known.contains(name)).collect();
        if !came.is_empty() {
            instant.warnings.push(format!(
                "made while the tables were locked, and perhaps not at the same instant: {}",
                came.join(", ")
            ));
        }
        instant.held_micros = held_micros;
        if held {
            instant.plain_tables = Some(plain);
        } else {
            plain.end().await;
        }
        Ok(Some(instant))
    }

    /// No lock: while nothing is committed, which the binary log's position tells before and after, all start.
    async fn compared(
        &mut self,
        control: &mut Connection,
        readers: &mut [Connection],
        before: &[Table],
    ) -> Result<Option<Instant>> {
        for _ in 0..COMPARISONS {
            self.cx.check_cancelled()?;
            let place = self.place(control).await;
            if place.is_none() {
                return Ok(None);
            }
            // A transaction that commits just now may stand in the log already, and in some readers' snapshots not yet.
            tokio::time::sleep(QUIET).await;
            if self.place(control).await != place {
                continue;
            }
            start_all(readers).await?;
            let at = self.cx.clock.now();
            tokio::time::sleep(QUIET).await;
            if self.place(control).await == place {
                self.warn(format!(
                    "positions were compared: the tables are at one instant unless a commit took longer than {} ms",
                    QUIET.as_millis()
                ));
                self.warn(WHAT_IS_NOT_LOGGED.into());
                let instant = self.unlocked(control, at, "positions-compared", place, before);
                return instant.await.map(Some);
            }
            roll_back(readers).await?;
        }
        Ok(None)
    }

    /// A position that names the file: what is in flight shows there first.
    async fn place(&mut self, control: &mut Connection) -> Option<String> {
        let file = self.log_file(control).await?;
        let gtid = self.gtid(control).await;
        Some(super::position(&gtid, &file))
    }

    /// One connection, one snapshot.
    pub(super) async fn alone(&mut self, mut readers: Vec<Connection>) -> Result<Instant> {
        let Some(mut reader) = readers.pop() else {
            return Err(bk_core::error::bug("no connection to read with"));
        };
        let (_, before) = self.listed(&mut reader).await?;
        let earlier = self.position(&mut reader).await;
        start_all(std::slice::from_mut(&mut reader)).await?;
        let at = self.cx.clock.now();
        let later = self.position(&mut reader).await;
        // What was committed between the two may be in the snapshot or not: a replay from the earlier one misses nothing.
        if earlier != later {
            self.warn("transactions that were committed while the snapshot began may be in it, though they come after the position that is named".into());
        }
        let instant = self
            .unlocked(&mut reader, at, "single-connection", earlier, &before)
            .await?;
        Ok(Instant {
            readers: vec![reader],
            ..instant
        })
    }

    async fn unlocked(
        &mut self,
        control: &mut Connection,
        at: Timestamp,
        consistency: &'static str,
        position: Option<String>,
        before: &[Table],
    ) -> Result<Instant> {
        let (databases, mut tables) = self.listed(control).await?;
        // As they were before the snapshots: DDL that came between fails its table when its rows have been read.
        let mut earlier: HashMap<_, _> = before.iter().map(|t| (t.unit(), t)).collect();
        for table in &mut tables {
            if let Some(known) = earlier.remove(&table.unit()) {
                table.stamp.clone_from(&known.stamp);
                table.partitions.clone_from(&known.partitions);
            }
        }
        let plain: Vec<_> = tables
            .iter()
            .filter(|table| table.has_rows() && !table.transactional())
            .map(Table::full)
            .collect();
        if !plain.is_empty() && consistency != "tables-locked" {
            self.warnings.push(format!(
                "tables without transactions are not at the same instant: {}",
                plain.join(", ")
            ));
        }
        Ok(Instant {
            readers: Vec::new(),
            guard: None,
            plain_tables: None,
            at,
            consistency,
            position,
            sequences: self.sequences(control, &tables).await?,
            databases,
            tables,
            held_micros: 0,
            warnings: std::mem::take(&mut self.warnings),
        })
    }
}
