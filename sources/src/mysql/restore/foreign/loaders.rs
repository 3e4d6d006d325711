//! Connections that load a script's rows side by side.

use crate::mysql::connection::{Connection, number_of};
use crate::mysql::lexer::find;
use crate::mysql::restore::rows::is_lock;
use bk_core::error::{Error, Result, bug};
use std::sync::Arc;
use tokio::task::JoinSet;

/// A statement that meets another's lock is tried so often.
const TRIES: usize = 10;

/// Rows for one table.
pub(super) struct Batch {
    pub(super) unit: (String, String),
    pub(super) line: u64,
    pub(super) sql: Vec<u8>,
    pub(super) head: usize,
    pub(super) rows: u64,
    pub(super) session: Arc<str>,
}

/// What came of a batch.
pub(super) struct Loaded {
    pub(super) unit: (String, String),
    pub(super) line: u64,
    pub(super) bytes: u64,
    pub(super) rows: u64,
    pub(super) done: std::result::Result<Took, mysql_async::Error>,
}

/// What the server took.
pub(super) struct Took {
    pub(super) rows: u64,
    pub(super) warnings: Vec<(u16, String)>,
}

/// Connections that load rows.
pub(super) struct Loaders {
    /// Those that wait for rows.
    pub(super) idle: Vec<Loader>,
    busy: JoinSet<(Loader, Loaded)>,
    /// The family of the server.
    is_maria: bool,
    /// The server's `max_allowed_packet`.
    pub(super) packet: usize,
}

pub(super) struct Loader {
    connection: Connection,
    session: Arc<str>,
}

impl Loaders {
    /// None yet.
    pub(super) fn new(is_maria: bool, packet: usize) -> Self {
        Self {
            idle: Vec::new(),
            busy: JoinSet::new(),
            is_maria,
            packet,
        }
    }

    /// How many are at work.
    pub(super) fn busy(&self) -> usize {
        self.busy.len()
    }

    /// Hands rows to one that is idle.
    pub(super) fn start(&mut self, batch: Batch, cancel: tokio_util::sync::CancellationToken) {
        let Some(mut free) = self.idle.pop() else {
            return;
        };
        let is_maria = self.is_maria;
        self.busy.spawn(async move {
            let done = tokio::select! {
                biased;
                () = cancel.cancelled() => Err(mysql_async::Error::Other(Box::new(Error::cancelled()))),
                done = free.load(&batch, is_maria) => done,
            };
            let back = Loaded {
                unit: batch.unit,
                line: batch.line,
                bytes: batch.sql.len() as u64,
                rows: batch.rows,
                done,
            };
            (free, back)
        });
    }

    /// The next one that comes back.
    pub(super) async fn next(&mut self) -> Result<Option<Loaded>> {
        match self.busy.join_next().await {
            None => Ok(None),
            Some(Ok((free, back))) => {
                self.idle.push(free);
                Ok(Some(back))
            }
            Some(Err(error)) => Err(bug(format!("a loader ended: {error}"))),
        }
    }

    /// Says goodbye on all of them.
    pub(super) async fn end(mut self) {
        while let Some(ended) = self.busy.join_next().await {
            if let Ok((free, _)) = ended {
                self.idle.push(free);
            }
        }
        for free in self.idle {
            free.connection.end().await;
        }
    }
}

impl Loader {
    /// On a connection of its own.
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            session: Arc::from(""),
        }
    }

    async fn load(
        &mut self,
        batch: &Batch,
        is_maria: bool,
    ) -> std::result::Result<Took, mysql_async::Error> {
        if self.session != batch.session {
            for sql in batch.session.split('\n') {
                self.connection.run_counted(sql.as_bytes()).await?;
            }
            if is_maria {
                // As in the restore of our own segments: several connections must not enter the bulk mode of one empty table.
                self.connection.run_counted(b"SET unique_checks=1").await?;
            }
            self.session = batch.session.clone();
        }
        for attempt in 1.. {
            match self.connection.run_counted(&batch.sql).await {
                Ok((affected, warnings)) => return self.took(batch, affected, warnings).await,
                Err(error) if attempt < TRIES && is_lock(&error) => {
                    tracing::debug!(
                        unit = batch.unit.1,
                        attempt,
                        "a lock was in the way: {error}"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        Err(mysql_async::Error::Other(
            "a batch was never tried".to_owned().into(),
        ))
    }

    async fn took(
        &mut self,
        batch: &Batch,
        affected: u64,
        warnings: u16,
    ) -> std::result::Result<Took, mysql_async::Error> {
        // REPLACE counts what it removed as well.
        let verb = batch.sql[..batch.head].to_ascii_uppercase();
        let info = self.connection.conn.info().into_owned();
        let rows = if find(&verb, b"REPLACE").is_some_and(|at| at < 16) {
            number_of(&info, "Records: ").unwrap_or(affected.min(1))
        } else {
            affected
        };
        let mut shown = Vec::new();
        if warnings > 0 {
            let rows: Vec<mysql_async::Row> =
                mysql_async::prelude::Queryable::query(&mut self.connection.conn, "SHOW WARNINGS")
                    .await?;
            for row in rows {
                shown.push((
                    row.get(1).unwrap_or_default(),
                    row.get(2).unwrap_or_default(),
                ));
            }
        }
        Ok(Took {
            rows,
            warnings: shown,
        })
    }
}
