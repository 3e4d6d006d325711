//! One instant without the global lock, by what the rights still allow; the archive says which it was. Several snapshots that nothing
//! holds together are never taken.

use super::{Instant, LOCK_SECONDS, Taking, start_all};
use crate::mysql::catalogue::{self, Table};
use crate::mysql::connection::{Access, Connection};
use bk_core::error::Result;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::time::Duration;

/// How often positions are compared before one connection must do.
const COMPARISONS: usize = 5;
/// No transaction takes longer from the log to the tables.
const QUIET: Duration = Duration::from_millis(200);
/// How often readers are started anew for one place in the binary log: a try takes a millisecond or two.
const SAME_SNAPSHOTS: usize = 50;

impl Taking<'_> {
    /// What gives one instant all the same, the surest first.
    pub(super) async fn without_global_lock(
        &mut self,
        access: &Access,
        mut readers: Vec<Connection>,
    ) -> Result<Instant> {
        let mut control = access.connect(self.cx).await?;
        if let Some(instant) = self.same_snapshot(&mut control, &mut readers).await? {
            control.end().await;
            return Ok(Instant { readers, ..instant });
        }
        if let Some(instant) = self
            .tables_locked(access, &mut control, &mut readers)
            .await?
        {
            control.end().await;
            return Ok(Instant { readers, ..instant });
        }
        self.compared(control, readers).await
    }

    /// MariaDB tells each session at which place of the binary log its snapshot stands: all start until they stand at one.
    async fn same_snapshot(
        &mut self,
        control: &mut Connection,
        readers: &mut [Connection],
    ) -> Result<Option<Instant>> {
        if !self.server.is_maria() || !self.server.binary_log {
            return Ok(None);
        }
        for _ in 0..SAME_SNAPSHOTS {
            start_all(readers).await?;
            let at = self.cx.clock.now();
            let mut places = BTreeSet::new();
            for reader in readers.iter_mut() {
                let status = "SHOW STATUS LIKE 'Binlog_snapshot_%'";
                let rows = reader.rows(status).await?;
                places.insert(rows.iter().map(|row| row.word(1)).collect::<Vec<_>>());
            }
            let mut different = places.iter();
            if let (Some(place), None) = (different.next(), different.next()) {
                if place.iter().all(String::is_empty) {
                    break;
                }
                let place = Some(place.join(":"));
                let instant = self.unlocked(control, at, "binlog-snapshots-equal", place, false);
                return instant.await.map(Some);
            }
            for reader in readers.iter_mut() {
                reader.run("ROLLBACK").await?;
            }
        }
        self.warnings
            .push("the readers' places in the binary log did not come to be one".into());
        Ok(None)
    }

    /// All tables are read-locked while the readers start, by a session that reads nothing.
    async fn tables_locked(
        &mut self,
        access: &Access,
        control: &mut Connection,
        readers: &mut [Connection],
    ) -> Result<Option<Instant>> {
        let databases = catalogue::databases(control, self.filter).await?;
        let tables = self.tables(control, &databases).await?;
        let with_rows = |table: &&Table| table.has_rows() && !table.engine.is_empty();
        let names: BTreeSet<_> = tables.iter().filter(with_rows).map(Table::full).collect();
        if names.is_empty() {
            return Ok(None);
        }
        let all: Vec<_> = names.iter().map(|name| format!("{name} READ")).collect();
        let mut holder = access.connect(self.cx).await?;
        holder
            .run(format!("SET SESSION lock_wait_timeout = {LOCK_SECONDS}"))
            .await?;
        if let Err(error) = holder.run(format!("LOCK TABLES {}", all.join(","))).await {
            self.warnings
                .push(format!("the tables could not be locked together ({error})"));
            holder.end().await;
            return Ok(None);
        }
        let begun = std::time::Instant::now();
        start_all(readers).await?;
        let at = self.cx.clock.now();
        let position = self.position(control).await;
        let mut plain = access.connect(self.cx).await?;
        let held = self.hold_plain_tables(&mut plain, &tables).await;
        holder.run("UNLOCK TABLES").await?;
        let held_micros = begun.elapsed().as_micros();
        holder.end().await;
        let mut instant = self
            .unlocked(control, at, "tables-locked", position, held)
            .await?;
        let came = instant.tables.iter().filter(with_rows).map(Table::full);
        let came: Vec<_> = came.filter(|name| !names.contains(name)).collect();
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
        mut control: Connection,
        mut readers: Vec<Connection>,
    ) -> Result<Instant> {
        for _ in 0..COMPARISONS {
            let before = self.position(&mut control).await;
            if before.is_none() {
                break;
            }
            // A transaction that commits just now may stand in the log already, and in some readers' snapshots not yet.
            tokio::time::sleep(QUIET).await;
            if self.position(&mut control).await != before {
                continue;
            }
            start_all(&mut readers).await?;
            let at = self.cx.clock.now();
            if self.position(&mut control).await == before {
                let instant = self
                    .unlocked(&mut control, at, "positions-compared", before, false)
                    .await?;
                control.end().await;
                return Ok(Instant { readers, ..instant });
            }
            for reader in &mut readers {
                reader.run("ROLLBACK").await?;
            }
        }
        control.end().await;
        self.warnings.push(
            "positions could not be compared, or did not stand still: one connection reads everything".into(),
        );
        for reader in readers.drain(1..).collect::<Vec<_>>() {
            reader.end().await;
        }
        self.alone(readers).await
    }

    /// One connection, one snapshot.
    pub(super) async fn alone(&mut self, mut readers: Vec<Connection>) -> Result<Instant> {
        start_all(&mut readers).await?;
        let at = self.cx.clock.now();
        let Some(mut reader) = readers.pop() else {
            return Err(bk_core::error::bug("no connection to read with"));
        };
        let position = self.position(&mut reader).await;
        let instant = self
            .unlocked(&mut reader, at, "single-connection", position, false)
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
        plain_tables_held: bool,
    ) -> Result<Instant> {
        let databases = catalogue::databases(control, self.filter).await?;
        let mut tables = self.tables(control, &databases).await?;
        catalogue::stamp(control, &databases, &mut tables).await?;
        let plain: Vec<_> = tables
            .iter()
            .filter(|table| table.has_rows() && !table.transactional())
            .map(Table::full)
            .collect();
        if !plain.is_empty() && !plain_tables_held {
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
