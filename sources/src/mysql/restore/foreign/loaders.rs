//! Connections that load a script's rows side by side.

use crate::mysql::connection::{Connection, number_of, unless_cancelled};
use crate::mysql::restore::rows::is_lock;
use crate::mysql::wire::{self, Told};
use bk_core::error::{Result, bug};
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
    pub(super) done: wire::Result<Took>,
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
            let done = unless_cancelled(&cancel, free.load(&batch, is_maria)).await;
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

    async fn load(&mut self, batch: &Batch, is_maria: bool) -> wire::Result<Took> {
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
            match insert(&mut self.connection, &batch.sql, Some(batch.rows)).await {
                Err(error) if attempt < TRIES && is_lock(&error) => {
                    tracing::debug!(
                        unit = batch.unit.1,
                        attempt,
                        "a lock was in the way: {error}"
                    );
                }
                other => return other,
            }
        }
        Err(bk_core::error::bug("a batch was never tried").into())
    }
}

/// One INSERT or REPLACE: how many rows the server took, and what it said. `rows`: how many it was given, where that is known.
pub(super) async fn insert(
    connection: &mut Connection,
    sql: &[u8],
    rows: Option<u64>,
) -> wire::Result<Took> {
    let Told {
        affected,
        warnings: count,
        info,
    } = connection.run_counted(sql).await?;
    // REPLACE and ON DUPLICATE KEY count what they changed as well; of several rows the server says how many there were.
    let records = number_of(&info, "Records: ");
    let replaces = affected > rows.unwrap_or(affected);
    let rows = if replaces {
        records.or(rows).unwrap_or(affected)
    } else {
        affected
    };
    let mut warnings = Vec::new();
    if count > 0 {
        for row in connection.conn.all(b"SHOW WARNINGS").await? {
            let code = row.word(1).parse().unwrap_or_default();
            warnings.push((code, row.word(2)));
        }
    }
    Ok(Took { rows, warnings })
}
