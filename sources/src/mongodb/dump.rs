//! Documents to segments: a collection is read by one cursor, and cut where the documents' own `_id`s say so.
//!
//! A collection that fits into one segment is `NAME.bson`, as `mongodump` writes it; otherwise each part is `NAME.bson.HASH`, by the hash of its
//! first document's `_id`, and all parts joined in any order are that file. Where there is no `_id`, the document stands for it.

use crate::mongodb::Order;
use crate::mongodb::bson::{self, Writing};
use crate::mongodb::catalogue::Collection;
use crate::mongodb::connection::{Connection, Failure, documents_of};
use crate::mongodb::metadata::Kind;
use crate::mongodb::snapshot::point::Point;
use crate::segment::{self, Room};
use bk_core::context::Context;
use bk_core::error::{Error, Result, bug};
use bk_core::name::{MemberPath, hash64};
use bk_core::source::{Lane, Meta, Output};
use bytes::Bytes;
use mongodb::ClientSession;
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor, SessionRawBatchCursor};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// Documents that are asked for first: two of the largest fit into a message, also where a server does not look at their size.
const FIRST_DOCUMENTS: i32 = 2;

/// What was read of a collection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Read {
    /// Documents.
    pub documents: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Reads a collection into a lane. `written` is told after each segment how many bytes there are so far.
pub async fn collection(
    cx: &Context,
    connection: &Connection,
    point: &Point,
    (lane, out): (&mut Lane, &Output),
    (collection, order): (&Collection, Order),
    mut written: impl FnMut(u64) + Send,
) -> Result<Read> {
    let mut batches = Batches::open(connection, point, collection, order).await?;
    let mut segments = Segments::new(collection);
    let mut read = Read::default();
    while let Some(batch) = batches.next(connection).await? {
        cx.check_cancelled()?;
        for document in documents_of(&batch)? {
            if segments.is_full() {
                segments.flush(lane, out, Part::OfSeveral).await?;
                written(read.bytes);
            }
            segments.take(document);
            read.documents += 1;
            read.bytes += document.len() as u64;
            segments.room.make(out, segments.buffer.len()).await?;
        }
    }
    let part = if segments.flushed {
        Part::OfSeveral
    } else {
        Part::Whole
    };
    segments.flush(lane, out, part).await?;
    written(read.bytes);
    Ok(read)
}

/// A `find` over all of a collection.
pub fn find_all(collection: &Collection, order: Order, point: &Point, documents: i32) -> Writing {
    let natural = order == Order::Natural
        || collection.capped
        || collection.clustered
        || collection.kind == Kind::TimeSeries;
    let hint = Writing::new().int(if natural { "$natural" } else { "_id" }, 1);
    let mut command = Writing::new()
        .text("find", &collection.data_name())
        .document("hint", &hint.bytes())
        .flag("noCursorTimeout", true)
        .int("batchSize", documents);
    if collection.kind == Kind::TimeSeries && !collection.buckets {
        command = command.flag("rawData", true);
    }
    match point {
        Point::Snapshot { at } => command.document(
            "readConcern",
            &Writing::new()
                .text("level", "snapshot")
                .timestamp("atClusterTime", *at)
                .bytes(),
        ),
        _ => command,
    }
}

type Fetched = (RawBatchCursor, Result<Option<RawBatch>, Failure>);

/// Answers of a cursor; one is on its way while another is looked at.
enum Batches {
    Ahead(JoinHandle<Fetched>),
    InSession(Box<SessionRawBatchCursor>, Arc<Mutex<ClientSession>>),
}

impl Batches {
    async fn open(
        connection: &Connection,
        point: &Point,
        collection: &Collection,
        order: Order,
    ) -> Result<Self> {
        let database = connection.client.database(&collection.database);
        let command = |documents| find_all(collection, order, point, documents);
        if let Point::Transaction { session } = point {
            let mut held = session.lock().await;
            let cursor = database
                .run_raw_cursor_command(command(FIRST_DOCUMENTS).raw()?)
                .session(&mut *held)
                .batch()
                .await
                .map_err(|e| crate::mongodb::connection::failure(&e).error)?;
            return Ok(Self::InSession(Box::new(cursor), session.clone()));
        }
        // Every further answer is as large as the server lets it be: fewer answers are quicker.
        let cursor = connection
            .cursor(&collection.database, command(FIRST_DOCUMENTS))
            .await?;
        Ok(Self::Ahead(fetch(connection.clone(), cursor)))
    }

    async fn next(&mut self, connection: &Connection) -> Result<Option<RawBatch>> {
        match self {
            Self::Ahead(next) => {
                let (cursor, batch) = (&mut *next)
                    .await
                    .map_err(|e| bug(format!("the reader of a cursor ended: {e}")))?;
                let batch = batch?;
                if batch.is_some() {
                    *next = fetch(connection.clone(), cursor);
                }
                Ok(batch)
            }
            Self::InSession(cursor, session) => {
                let mut held = session.lock().await;
                Ok(connection.next_in(cursor, &mut held).await?)
            }
        }
    }
}

/// One more answer.
fn fetch(connection: Connection, mut cursor: RawBatchCursor) -> JoinHandle<Fetched> {
    tokio::spawn(async move {
        let batch = connection.next(&mut cursor).await;
        (cursor, batch)
    })
}

/// What a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    OfSeveral,
}

/// The segment that is being filled.
struct Segments {
    path: String,
    buffer: Vec<u8>,
    first_key: Option<u64>,
    last_cuts: bool,
    flushed: bool,
    names: HashMap<u64, u32>,
    room: Room,
}

impl Segments {
    fn new(collection: &Collection) -> Self {
        Self {
            path: collection.path(&collection.data_name()),
            buffer: Vec::new(),
            first_key: None,
            last_cuts: false,
            flushed: false,
            names: HashMap::new(),
            room: Room::default(),
        }
    }

    fn take(&mut self, document: &[u8]) {
        self.buffer.extend_from_slice(document);
        let hash = hash64(bson::id(document).unwrap_or(document));
        self.first_key.get_or_insert(hash);
        self.last_cuts = segment::ends_after(hash, document.len() as u64);
    }

    fn is_full(&self) -> bool {
        self.last_cuts || self.buffer.len() >= segment::MAX_BYTES
    }

    async fn flush(&mut self, lane: &mut Lane, out: &Output, part: Part) -> Result<()> {
        let Some(first) = self.first_key.take() else {
            return Ok(());
        };
        self.room.make(out, self.buffer.len()).await?;
        let body = Bytes::from(std::mem::take(&mut self.buffer));
        let name = match part {
            Part::Whole => format!("{}.bson", self.path),
            Part::OfSeveral => {
                // Documents without `_id` that are equal can begin two segments.
                let seen = self.names.entry(first).or_default();
                *seen += 1;
                match *seen {
                    1 => format!("{}.bson.{first:016x}", self.path),
                    n => format!("{}.bson.{first:016x}-{n}", self.path),
                }
            }
        };
        self.flushed = true;
        self.last_cuts = false;
        let written = lane
            .member(MemberPath::new(name)?, Meta::default(), body.clone())
            .await;
        // The lane has copied it: the next segment is filled where this one lay, unless it was a giant.
        let mut emptied = Vec::from(body);
        emptied.clear();
        emptied.shrink_to(segment::UNRESERVED_BYTES);
        self.buffer = emptied;
        self.room.give_back();
        written
    }
}

/// Said of a collection whose reading broke off.
pub fn within(collection: &Collection, error: Error) -> Error {
    error.within(format!("reading `{}`", collection.full()))
}
