//! Connections that read tables side by side: runs of tables handed out, one lane for each, what fails named.

use super::{hash_of, is_the_runs};
use crate::mysql::catalogue::{self, Shape, Table};
use crate::mysql::connection::{Connection, Server};
use crate::mysql::{ddl, dump};
use crate::run_queue::RunQueue;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, bug};
use bk_core::runs::{RUN_SPLIT_BYTES, Run, border_before};
use bk_core::source::{Counted, Lane, Output};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::task::JoinSet;

type NamedTable = (String, Table);

/// What the workers of the Data stage share.
struct Sharing {
    queue: RunQueue<NamedTable>,
    notes: Mutex<Notes>,
}

/// What came up meanwhile.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Things that need a look.
    pub(super) warnings: Vec<String>,
    /// Tables that failed.
    pub(super) broken: Vec<(String, String)>,
}

impl Sharing {
    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// All tables of one kind, and what those who read them need.
#[derive(Clone)]
pub(super) struct Reading {
    cx: Context,
    out: Output,
    server: Arc<Server>,
    texts: Arc<HashMap<(String, String), u64>>,
    sharing: Arc<Sharing>,
}

impl Reading {
    pub(super) fn new(
        cx: &Context,
        out: &Output,
        server: &Server,
        texts: Arc<HashMap<(String, String), u64>>,
        tables: Vec<Table>,
    ) -> Self {
        let named: Vec<_> = tables
            .into_iter()
            .map(|table| (format!("{}/{}", table.database, table.name), table))
            .collect();
        Self {
            cx: cx.clone(),
            out: out.clone(),
            server: Arc::new(server.clone()),
            texts,
            sharing: Arc::new(Sharing {
                queue: RunQueue::new(named, |(name, _)| border_before(name)),
                notes: Mutex::default(),
            }),
        }
    }

    /// Reads them over all connections, each on a task of its own, and gives the connections back.
    pub(super) async fn run(self, readers: Vec<Connection>) -> (Vec<Connection>, Result<Notes>) {
        let mut tasks = JoinSet::new();
        for mut reader in readers {
            let reading = self.clone();
            tasks.spawn(async move {
                let read = reading.on(&mut reader).await;
                (reader, read)
            });
        }
        let mut readers = Vec::new();
        let mut all = Ok(());
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok((reader, read)) => {
                    readers.push(reader);
                    all = all.and(read);
                }
                Err(error) => all = all.and(Err(bug(format!("a reader ended: {error}")))),
            }
        }
        let read = match all {
            Ok(()) => self.fail_what_is_left().await,
            Err(error) => Err(error),
        };
        (readers, read)
    }

    /// No reader is left, but tables are.
    async fn fail_what_is_left(self) -> Result<Notes> {
        while let Some(run) = self.sharing.queue.take_left() {
            for (_, table) in run {
                let unit = table.unit();
                self.out.expect(&unit.0, &unit.1).await?;
                let lost = Error::new(
                    ErrorKind::Unreachable,
                    "all connections to the server were lost",
                );
                self.out.fail(&unit.0, &unit.1, &lost).await?;
                self.out.end(&unit.0, &unit.1, Counted::default()).await?;
            }
        }
        Ok(std::mem::take(&mut *self.sharing.notes()))
    }

    /// Ends when nothing is left, or when its connection is lost.
    async fn on(&self, reader: &mut Connection) -> Result<()> {
        while let Some(run) = self.sharing.queue.take().await {
            let outcome = self.one_run(reader, run).await;
            self.sharing.queue.ended();
            if !outcome? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One lane. Says whether the connection lives. As soon as a table has passed the border, the rest of its run is for whoever is free.
    async fn one_run(&self, reader: &mut Connection, run: Run<NamedTable>) -> Result<bool> {
        let mut lane = self.out.lane("data").await?;
        let mut run = Some(run);
        while let Some((_, table)) = run.as_mut().and_then(Run::pop_front) {
            self.cx.check_cancelled()?;
            let unit = table.unit();
            self.out.expect(&unit.0, &unit.1).await?;
            lane.unit(&unit.0, &unit.1);
            let mut counted = Counted::default();
            let mut lost = false;
            match self.table(reader, &mut lane, &table, &mut run).await {
                Ok(read) => {
                    counted.rows = read.rows;
                    self.note(&table, &read);
                }
                Err(error) if is_the_runs(&error) => return Err(error),
                Err(error) => {
                    self.sharing.notes().broken.push(unit.clone());
                    self.out.fail(&unit.0, &unit.1, &error).await?;
                    // What is left of the table may take long; the tables behind it need not wait for that.
                    if let Some(rest) = run.take() {
                        self.sharing.queue.give_back(rest);
                    }
                    dump::read_to_its_end(&self.cx, reader).await;
                    lost = reader.conn.is_broken() || reader.run("DO 0").await.is_err();
                }
            }
            self.out.end(&unit.0, &unit.1, counted).await?;
            if lost {
                lane.close().await?;
                return Ok(false);
            }
        }
        lane.close().await?;
        Ok(true)
    }

    async fn table(
        &self,
        reader: &mut Connection,
        lane: &mut Lane,
        table: &Table,
        run: &mut Option<Run<NamedTable>>,
    ) -> Result<dump::Read> {
        let shape: Shape = catalogue::shape(reader, table, &self.server).await?;
        for unknown in &shape.unknown {
            self.sharing.notes().warnings.push(format!(
                "{}: the type of {unknown} is not known; it is carried as bytes",
                table.full()
            ));
        }
        let passed = |bytes: u64| {
            if bytes > RUN_SPLIT_BYTES
                && let Some(rest) = run.take()
            {
                self.sharing.queue.give_back(rest);
            }
        };
        let what = (table, &shape);
        let read = dump::table(&self.cx, reader, lane, &self.out, what, passed).await?;
        self.unchanged(reader, table).await?;
        Ok(read)
    }

    /// DDL during the dump is found: some of it is silent to a snapshot (a dropped partition, a column added in place).
    async fn unchanged(&self, reader: &mut Connection, table: &Table) -> Result<()> {
        let altered = |what: &str| {
            Error::new(
                ErrorKind::Unreachable,
                format!(
                    "{} was altered while it was read ({what}); repeat the backup",
                    table.full()
                ),
            )
        };
        let shown = ddl::show_create_table(reader, table).await?;
        if self
            .texts
            .get(&table.unit())
            .is_some_and(|before| *before != hash_of(&shown))
        {
            return Err(altered("its definition is another"));
        }
        let stamp = reader
            .value(format!(
                "SELECT CREATE_TIME FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {}",
                crate::mysql::connection::quoted(&table.database),
                crate::mysql::connection::quoted(&table.name)
            ))
            .await?;
        // MariaDB tells NULL when it cannot open the table for this at that moment, as while purge reads its generated columns: that says nothing.
        let stamp = stamp.unwrap_or_default();
        if ![&stamp, &table.stamp].contains(&&String::new()) && stamp != table.stamp {
            return Err(altered(&format!(
                "made or altered at {stamp}, at the start of the backup {}",
                table.stamp
            )));
        }
        if !table.partitions.is_empty() {
            let now = catalogue::partitions(reader, Some(table)).await;
            if now.get(&table.file_name()) != Some(&table.partitions) {
                return Err(altered("its partitions are others"));
            }
        }
        Ok(())
    }

    fn note(&self, table: &Table, read: &dump::Read) {
        let mut notes = self.sharing.notes();
        if read.invalid > 0 {
            notes.warnings.push(format!(
                "{} holds {} values in utf8 columns that are no UTF-8; they are carried as they are, but a server refuses or cuts them",
                table.full(),
                read.invalid
            ));
        }
    }
}
