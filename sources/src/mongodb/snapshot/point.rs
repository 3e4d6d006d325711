//! One instant: how all collections come to show it, and the proof that the server does what it says.

use crate::mongodb::bson::{self, Writing};
use crate::mongodb::catalogue::Collection;
use crate::mongodb::connection::{Connection, Failure, number};
use crate::mongodb::metadata::Kind;
use crate::mongodb::oplog;
use crate::mongodb::server::Server;
use crate::mongodb::{Consistency, Order, dump};
use bk_core::error::{Error, ErrorKind, Result, bug};
use mongodb::ClientSession;
use mongodb::options::{ReadConcern, TransactionOptions};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Bytes that one connection reads in a second at least, to guess whether a transaction can read all.
const READ_BYTES_PER_SECOND: f64 = 30e6;
/// How long servers usually remember their past.
const HISTORY_SECONDS: f64 = 300.0;
/// A transaction's life where the server does not say it.
const TRANSACTION_SECONDS: f64 = 60.0;

/// How all collections show one instant.
#[derive(Clone)]
pub enum Point {
    /// Each is read as it was at this instant of the log.
    Snapshot { at: u64 },
    /// What was written since this instant is taken from the log.
    Oplog { start: u64 },
    /// One transaction reads all.
    Transaction { session: Arc<Mutex<ClientSession>> },
    /// Writers wait.
    Locked,
    /// They do not.
    None,
}

impl Point {
    /// The archive's word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Snapshot { .. } => "snapshot",
            Self::Oplog { .. } => "oplog",
            Self::Transaction { .. } => "transaction",
            Self::Locked => "locked",
            Self::None => "none",
        }
    }

    /// Where the log stands.
    pub fn position(&self) -> Option<u64> {
        match self {
            Self::Snapshot { at } => Some(*at),
            Self::Oplog { start } => Some(*start),
            Self::Transaction { .. } | Self::Locked | Self::None => None,
        }
    }
}

/// Why a way is not open.
enum Closed {
    /// The server has nothing of the kind.
    Absent(String),
    /// The server says that it does, and does not.
    False(String),
}

impl Closed {
    fn words(&self) -> &str {
        match self {
            Self::Absent(why) | Self::False(why) => why,
        }
    }
}

/// Fixes the instant in the way that the settings want, or in the best that is open. Warnings say which were not, and why.
pub async fn fix(
    connection: &Connection,
    server: &Server,
    wanted: Consistency,
    (collections, parallel): (&[Collection], usize),
) -> Result<(Point, Vec<String>)> {
    let mut warnings = Vec::new();
    if wanted == Consistency::None {
        return Ok((Point::None, warnings));
    }
    if wanted == Consistency::Lock {
        return match lock(connection).await? {
            Ok(()) => Ok((Point::Locked, warnings)),
            Err(failure) => Err(failure
                .error
                .within("locking the server against writers")
                .hint("set consistency = \"auto\"")),
        };
    }
    let auto = wanted == Consistency::Auto;
    let mut why = String::new();
    for way in [
        Consistency::Snapshot,
        Consistency::Oplog,
        Consistency::Transaction,
    ] {
        if !auto && way != wanted {
            continue;
        }
        let fixed = match way {
            Consistency::Snapshot => snapshot(connection, server, collections, parallel).await?,
            Consistency::Oplog => from_log(connection, server).await?,
            _ => transaction(connection, server, collections, auto).await?,
        };
        match fixed {
            Ok(point) => return Ok((point, warnings)),
            Err(closed) => {
                if let Closed::False(what) = &closed {
                    warnings.push(format!("{} {what}", server.name()));
                }
                closed.words().clone_into(&mut why);
            }
        }
    }
    if auto {
        if server.set.is_some() || server.is_router {
            warnings.push(format!("the collections do not show one instant: {why}"));
        }
        return Ok((Point::None, warnings));
    }
    Err(Error::new(ErrorKind::Unsupported, why).hint("set consistency = \"auto\", or \"none\""))
}

/// Locks the server. Whoever stops waiting for that leaves no lock behind.
async fn lock(connection: &Connection) -> Result<Result<(), Failure>> {
    let (sender, locked) = tokio::sync::oneshot::channel();
    let connection = connection.unstoppable();
    tokio::spawn(async move {
        let command = Writing::new().int("fsync", 1).flag("lock", true);
        let locked = connection.run("admin", command).await.map(drop);
        let is_locked = locked.is_ok();
        if sender.send(locked).is_err() && is_locked {
            let unlock = Writing::new().int("fsyncUnlock", 1);
            if let Err(failure) = connection.run("admin", unlock).await {
                tracing::error!(error = %failure.error, "the server is still locked: run db.fsyncUnlock() on it");
            }
        }
    });
    locked
        .await
        .map_err(|e| bug(format!("the lock's task ended: {e}")))
}

type Fixed = Result<Result<Point, Closed>>;

fn absent(why: impl Into<String>) -> Result<Point, Closed> {
    Err(Closed::Absent(why.into()))
}

/// A `find` at a chosen instant must say that it was at that instant, and one at the beginning of time must be refused.
async fn snapshot(
    connection: &Connection,
    server: &Server,
    collections: &[Collection],
    parallel: usize,
) -> Fixed {
    let of_kind = |capped| {
        let mut documents = collections.iter().filter(|c| c.kind == Kind::Collection);
        documents.find(move |c| c.capped == capped)
    };
    let (Some(at), Some(probe)) = (server.operation_time, of_kind(false)) else {
        return Ok(absent("the server keeps no snapshots"));
    };
    if let Some(why) = too_long_for_history(connection, collections, parallel).await? {
        return Ok(absent(why));
    }
    let ask = async |probe: &Collection, at| {
        let command = dump::find_all(probe, Order::Natural, &Point::Snapshot { at }, 1)
            .int("limit", 1)
            .flag("singleBatch", true);
        let mut cursor = connection.cursor(&probe.database, command).await?;
        let batch = connection.next(&mut cursor).await?;
        let cursor = batch
            .as_ref()
            .and_then(|batch| bson::inner(batch.as_raw_document().as_bytes(), "cursor"));
        let said = cursor.and_then(|cursor| bson::find(cursor, b"atClusterTime"));
        Ok::<_, Failure>(said.and_then(|said| said.timestamp()))
    };
    match ask(probe, at).await {
        Ok(Some(said)) if said == at => {}
        Ok(_) => {
            return Ok(Err(Closed::False(
                "reads at another instant than was asked for: its snapshots are not used".into(),
            )));
        }
        Err(failure) if failure.code.is_some() => {
            return Ok(absent(format!(
                "the server keeps no snapshots: {}",
                failure.error
            )));
        }
        Err(failure) => return Err(failure.error),
    }
    // Older servers keep no history of capped ones.
    if let Some(capped) = of_kind(true)
        && let Err(failure) = ask(capped, at).await
    {
        return match failure.code {
            Some(_) => Ok(absent(format!(
                "`{}` is capped, and cannot be read in a snapshot",
                capped.full()
            ))),
            None => Err(failure.error),
        };
    }
    match ask(probe, 1 << 32 | 1).await {
        Err(failure) if failure.code.is_some() => Ok(Ok(Point::Snapshot { at })),
        Err(failure) => Err(failure.error),
        Ok(_) => Ok(Err(Closed::False(
            "says that it reads at the beginning of time: its snapshots are not used".into(),
        ))),
    }
}

async fn from_log(connection: &Connection, server: &Server) -> Fixed {
    if server.set.is_none() || server.is_router {
        return Ok(absent("the server has no log: it is no replica set"));
    }
    match oplog::start(connection).await {
        Ok(Some(start)) => Ok(Ok(Point::Oplog { start })),
        Ok(None) => Ok(absent("the server's log is empty")),
        Err(failure) if failure.code.is_some() => Ok(absent(format!(
            "the server's log cannot be read: {}",
            failure.error
        ))),
        Err(failure) => Err(failure.error),
    }
}

async fn transaction(
    connection: &Connection,
    server: &Server,
    collections: &[Collection],
    only_if_in_time: bool,
) -> Fixed {
    if server.set.is_none() && !server.is_router {
        return Ok(absent(
            "the server has no transactions: it is no replica set",
        ));
    }
    if only_if_in_time {
        let seconds = bytes_of(connection, collections).await? / READ_BYTES_PER_SECOND;
        let lifetime = lifetime_seconds(connection).await;
        if seconds.is_infinite() {
            return Ok(absent(
                "how much there is to read cannot be told, so a transaction might not end in time",
            ));
        }
        if seconds > lifetime / 2.0 {
            return Ok(absent(format!(
                "a transaction would end after {lifetime:.0} s, and reading takes about {seconds:.0}"
            )));
        }
    }
    let started = async {
        let mut session = connection.client.start_session().await?;
        let mut options = TransactionOptions::default();
        options.read_concern = Some(ReadConcern::snapshot());
        session.start_transaction().with_options(options).await?;
        Ok::<_, mongodb::error::Error>(session)
    };
    match started.await {
        Ok(session) => Ok(Ok(Point::Transaction {
            session: Arc::new(Mutex::new(session)),
        })),
        Err(error) => Ok(absent(format!("the server begins no transaction: {error}"))),
    }
}

async fn bytes_of(connection: &Connection, collections: &[Collection]) -> Result<f64> {
    let mut databases: Vec<&str> = collections.iter().map(|c| c.database.as_str()).collect();
    databases.dedup();
    let mut bytes = 0.0;
    for database in databases {
        bytes += connection.data_bytes(database).await?;
    }
    Ok(bytes)
}

async fn lifetime_seconds(connection: &Connection) -> f64 {
    parameter(
        connection,
        "transactionLifetimeLimitSeconds",
        TRANSACTION_SECONDS,
    )
    .await
}

async fn parameter(connection: &Connection, name: &str, otherwise: f64) -> f64 {
    let command = Writing::new().int("getParameter", 1).int(name, 1);
    match connection.run("admin", command).await {
        Ok(answer) => number(&answer, name).unwrap_or(otherwise),
        // Who may not ask goes by what servers usually have.
        Err(_) => otherwise,
    }
}

/// What a server forgets of its past before all is read cannot be read at one instant.
async fn too_long_for_history(
    connection: &Connection,
    collections: &[Collection],
    parallel: usize,
) -> Result<Option<String>> {
    let seconds =
        bytes_of(connection, collections).await? / READ_BYTES_PER_SECOND / parallel as f64;
    if seconds.is_infinite() {
        return Ok(None);
    }
    let kept = parameter(
        connection,
        "minSnapshotHistoryWindowInSeconds",
        HISTORY_SECONDS,
    )
    .await;
    Ok((seconds > kept / 2.0).then(|| {
        format!("the server keeps {kept:.0} s of its past, and reading takes about {seconds:.0}")
    }))
}

/// Lets go of what a point holds.
pub async fn release(connection: &Connection, point: Point) -> Result<()> {
    match point {
        Point::Transaction { session } => {
            // A server that ended it already says so; there is nothing left to let go of.
            let _ = session.lock().await.abort_transaction().await;
            Ok(())
        }
        Point::Locked => connection
            .run("admin", Writing::new().int("fsyncUnlock", 1))
            .await
            .map(drop)
            .map_err(|failure| {
                failure
                    .error
                    .within("letting writers go on")
                    .hint("run db.fsyncUnlock() on the server now")
            }),
        Point::Snapshot { .. } | Point::Oplog { .. } | Point::None => Ok(()),
    }
}
