//! A backup: how each database is made, its leaves, large attachments as they come, then design documents, rights, and the proof that it is
//! still the same database.

mod reading;
mod segments;

use crate::couchdb::attachments::{self, FrameLines, frame_len};
use crate::couchdb::catalogue::{self, Definition, Info};
use crate::couchdb::connection::{Connection, Method};
use crate::couchdb::documents::{Document, leaf_of, leaf_path};
use crate::couchdb::revision::{Envelope, Leaf};
use crate::couchdb::server::Server;
use crate::couchdb::{Couchdb, LAYOUT, UNIT, mark, member};
use crate::parts::part;
use crate::percent::encoded;
use crate::run_queue::RunQueue;
use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, bug, unsupported};
use bk_core::name::{MemberPath, hash64};
use bk_core::runs::{RUN_SPLIT_BYTES, Run, border_before};
use bk_core::source::{Counted, Facts, Lane, Meta, Output, PointInTime, Snapshot, Stage};
use bk_core::unfinished::Unfinished;
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use reading::Done;
use segments::Segments;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// Databases whose place in their feed is remembered.
const POSITIONS_MAX: usize = 200;
/// Warnings that are told one by one.
const WARNINGS_NAMED: usize = 50;
/// The longest JSON of a document whose attachments are read as they come.
const LARGEST_JSON_BYTES: usize = 16 << 20;

/// A database that is backed up.
#[derive(Clone, Debug)]
struct Database {
    name: String,
    group: String,
    definition: Definition,
    before: Info,
}

impl Database {
    /// The path of a member.
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.group)
    }
}

/// How all of it is read.
#[derive(Clone)]
struct Reading {
    connection: Connection,
    is_full: bool,
    parallel: usize,
    /// Bytes for one list of leaves.
    list_bytes: usize,
    /// MiB for all of them.
    lists: Arc<Semaphore>,
}

impl Reading {
    async fn list_room(&self, cx: &Context, mib: u32) -> Result<OwnedSemaphorePermit> {
        tokio::select! {
            biased;
            () = cx.cancel.cancelled() => Err(Error::cancelled()),
            room = self.lists.clone().acquire_many_owned(mib) => room.map_err(|e| bug(e.to_string())),
        }
    }
}

/// A backup under way.
pub struct CouchdbSnapshot {
    reading: Reading,
    server: Server,
    databases: Vec<Database>,
    /// Databases of which nothing can be read, and why.
    unreadable: Vec<(String, Error)>,
    marks: Vec<Unfinished>,
    selection: Value,
    local_docs: bool,
    instant: Timestamp,
    /// Databases that have failed already.
    broken: BTreeSet<String>,
    done: HashMap<String, Done>,
    warnings: Vec<String>,
}

/// Looks at what is there.
pub async fn begin(source: &Couchdb, cx: &Context) -> Result<CouchdbSnapshot> {
    let connection = source.access.connect(cx).await?;
    let server = Server::ask(&connection).await?;
    let found = catalogue::databases(&connection).await?;
    source.filter.all_named_are_there(&found)?;
    let marks = mark::read(&connection, &found).await?;
    let parallel = usize::from(source.settings.parallel);
    let taken: Vec<String> = found
        .into_iter()
        .filter(|name| source.takes(name))
        .collect();
    let mut looked = futures::stream::iter(taken)
        .map(|name| {
            let (connection, server) = (&connection, &server);
            async move { (name.clone(), look(connection, server, name).await) }
        })
        .buffered(parallel);
    let (mut databases, mut unreadable) = (Vec::new(), Vec::new());
    while let Some((name, database)) = looked.next().await {
        cx.check_cancelled()?;
        match database {
            // One that is gone already was not there.
            Ok(database) => databases.extend(database),
            Err(error) if is_the_runs(&error) => return Err(error),
            Err(error) => unreadable.push((part(&name), error)),
        }
    }
    drop(looked);
    let mut warnings = Vec::new();
    if !server.is_admin {
        warnings.push(
            "the account is no server admin: what others may not see is not backed up".into(),
        );
    }
    let list_mib = usize::from(source.settings.list_mib);
    Ok(CouchdbSnapshot {
        reading: Reading {
            connection,
            is_full: server.is_full,
            parallel,
            list_bytes: list_mib << 20,
            lists: Arc::new(Semaphore::new(list_mib)),
        },
        server,
        databases,
        unreadable,
        marks,
        selection: source.filter.selection(),
        local_docs: source.settings.local_docs,
        instant: cx.clock.now(),
        broken: BTreeSet::new(),
        done: HashMap::new(),
        warnings,
    })
}

/// A database as it is at the start; nothing when it is gone.
async fn look(connection: &Connection, server: &Server, name: String) -> Result<Option<Database>> {
    let Some(before) = catalogue::info(connection, &name).await? else {
        return Ok(None);
    };
    let definition = catalogue::definition(connection, server, (&name, &before)).await?;
    Ok(Some(Database {
        group: part(&name),
        definition,
        before,
        name,
    }))
}

#[async_trait]
impl Snapshot for CouchdbSnapshot {
    fn at(&self) -> PointInTime {
        PointInTime {
            instant: self.instant,
            // Each document as it was when it was read: no server of this kind knows more.
            consistency: "none".into(),
            position: None,
        }
    }

    fn large(&self) -> bool {
        self.done.values().any(|done| !done.large.is_empty())
    }

    async fn write(&mut self, cx: &Context, stage: Stage, out: &Output) -> Result<()> {
        match stage {
            Stage::Schema => self.definitions(cx, out).await,
            Stage::Data => self.documents(cx, out).await,
            Stage::Large => self.large_documents(cx, out).await,
            Stage::Finish => self.finish(cx, out).await,
        }
    }

    async fn close(mut self: Box<Self>, _cx: &Context) -> Result<Facts> {
        let mut positions = serde_json::Map::new();
        let mut pending = 0;
        for database in &self.databases {
            let Some(done) = self.done.get(&database.group) else {
                continue;
            };
            pending += done.pending;
            if positions.len() < POSITIONS_MAX {
                let facts = json!({ "seq": done.since, "pending": done.pending, "purge_seq": database.before.purge_seq });
                positions.insert(database.group.clone(), facts);
            }
        }
        let mut notes = vec![
            format!("{}, {} databases", self.server.name(), self.databases.len()),
            "each document as it was when it was read".into(),
        ];
        if pending > 0 {
            notes.push(format!(
                "{pending} documents were written after their database was read"
            ));
        }
        notes.extend(self.server.lacks());
        notes.extend(self.reading.connection.waited());
        let more = self.warnings.len().saturating_sub(WARNINGS_NAMED);
        self.warnings.truncate(WARNINGS_NAMED);
        if more > 0 {
            self.warnings.push(format!("and {more} more warnings"));
        }
        Ok(Facts {
            layout: LAYOUT,
            selection: self.selection,
            more: json!({ "version": self.server.version, "flavour": self.server.flavour, "positions": positions }),
            notes,
            warnings: self.warnings,
        })
    }
}

impl CouchdbSnapshot {
    fn sound(&self) -> Vec<Database> {
        self.databases
            .iter()
            .filter(|database| !self.broken.contains(&database.group))
            .cloned()
            .collect()
    }

    /// How each database is made.
    async fn definitions(&mut self, cx: &Context, out: &Output) -> Result<()> {
        let mut lane = out.lane("schema").await?;
        for (group, why) in std::mem::take(&mut self.unreadable) {
            out.expect(&group, UNIT).await?;
            out.fail(&group, UNIT, &why).await?;
            out.end(&group, UNIT, Counted { rows: 0 }).await?;
        }
        for database in &self.databases {
            cx.check_cancelled()?;
            expect(out, &mut lane, database).await?;
            if let Some(refusal) = mark::refusal(&self.marks, &cx.instance, &database.group) {
                out.fail(&database.group, UNIT, &refusal).await?;
                self.broken.insert(database.group.clone());
            } else {
                let body = serde_json::to_vec(&database.definition)
                    .map_err(|e| bug(format!("a definition is no JSON: {e}")))?;
                put(&mut lane, database.path(member::DEFINITION), body.into()).await?;
            }
            end(out, database, 0).await?;
        }
        lane.close().await
    }

    /// Leaves, several databases side by side.
    async fn documents(&mut self, cx: &Context, out: &Output) -> Result<()> {
        let named: Vec<(String, Database)> = self
            .sound()
            .into_iter()
            .map(|database| (format!("{}/{UNIT}", database.group), database))
            .collect();
        let readers = Readers {
            cx: cx.clone(),
            out: out.clone(),
            reading: self.reading.clone(),
            queue: Arc::new(RunQueue::new(named, |(name, _)| border_before(name))),
            ended: Arc::default(),
        };
        let mut tasks = JoinSet::new();
        for _ in 0..self.reading.parallel {
            let readers = readers.clone();
            tasks.spawn(async move { readers.run().await });
        }
        let mut all = Ok(());
        while let Some(ended) = tasks.join_next().await {
            let ended = ended.unwrap_or_else(|e| Err(bug(format!("a reader ended: {e}"))));
            if ended.is_err() {
                tasks.abort_all();
            }
            all = all.and(ended);
        }
        all?;
        let mut ended = readers
            .ended
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for (group, done) in std::mem::take(&mut *ended) {
            match done {
                Some(done) => {
                    self.done.insert(group, done);
                }
                None => {
                    self.broken.insert(group);
                }
            }
        }
        Ok(())
    }

    /// Documents whose attachments are read as they come.
    async fn large_documents(&mut self, cx: &Context, out: &Output) -> Result<()> {
        let mut lane = out.lane("large").await?;
        for database in self.sound() {
            let Some(done) = self.done.get(&database.group) else {
                continue;
            };
            if done.large.is_empty() {
                continue;
            }
            expect(out, &mut lane, &database).await?;
            let mut count = 0;
            for leaf in &done.large {
                cx.check_cancelled()?;
                match large_document(&self.reading.connection, &mut lane, &database, leaf).await {
                    Ok(()) => count += 1,
                    Err(error) if is_the_runs(&error) => return Err(error),
                    Err(error) => {
                        let error = error.within(format!("reading {}", leaf.shown()));
                        out.fail(&database.group, UNIT, &error).await?;
                        self.broken.insert(database.group.clone());
                        break;
                    }
                }
            }
            end(out, &database, count).await?;
        }
        lane.close().await
    }

    /// Design documents, rights, and the proof that nothing was made anew meanwhile.
    async fn finish(&mut self, cx: &Context, out: &Output) -> Result<()> {
        let mut lane = out.lane("finish").await?;
        let server = Server::ask(&self.reading.connection).await?;
        for database in self.sound() {
            cx.check_cancelled()?;
            expect(out, &mut lane, &database).await?;
            let designs = self
                .done
                .get_mut(&database.group)
                .map(|done| std::mem::take(&mut done.designs))
                .unwrap_or_default();
            let finished = self
                .finish_one(&mut lane, out, &database, (designs, &server))
                .await;
            let rows = match finished {
                Ok(rows) => rows,
                Err(error) if is_the_runs(&error) => return Err(error),
                Err(error) => {
                    out.fail(&database.group, UNIT, &error).await?;
                    self.broken.insert(database.group.clone());
                    0
                }
            };
            end(out, &database, rows).await?;
        }
        lane.close().await
    }

    async fn finish_one(
        &mut self,
        lane: &mut Lane,
        out: &Output,
        database: &Database,
        (designs, server): (Vec<Leaf>, &Server),
    ) -> Result<u64> {
        let connection = self.reading.connection.clone();
        let mut rows = 0;
        if !designs.is_empty() {
            let fetched = reading::designs(&self.reading, database, designs).await?;
            let mut segments = Segments::new(&database.path("design."));
            for (leaf, document) in fetched.documents {
                if matches!(document, Document::Large) {
                    return Err(unsupported(format!(
                        "{} has more than {} MiB of attachments",
                        leaf.shown(),
                        crate::couchdb::documents::LARGE_BYTES >> 20
                    )));
                }
                segments.take(lane, out, &leaf, &document).await?;
                rows += 1;
            }
            segments.finish(lane, out).await?;
        }
        if self.local_docs {
            rows += self.local_documents(lane, database).await?;
        }
        let security = catalogue::security(&connection, &database.name).await?;
        put(lane, database.path(member::SECURITY), security).await?;
        let after = catalogue::info(&connection, &database.name).await?;
        if is_another(&self.server, database, server, after.as_ref()) {
            return Err(Error::new(
                ErrorKind::Unreachable,
                format!(
                    "`{}` was deleted, or made anew, while it was read; repeat the backup",
                    database.name
                ),
            ));
        }
        if after.is_some_and(|after| after.purges() != database.before.purges()) {
            self.warnings.push(format!(
                "`{}`: revisions were purged while it was read; some of them may be in the archive",
                database.name
            ));
        }
        Ok(rows)
    }

    async fn local_documents(&mut self, lane: &mut Lane, database: &Database) -> Result<u64> {
        #[derive(Deserialize)]
        struct Rows<'a> {
            #[serde(borrow)]
            rows: Vec<Row<'a>>,
        }
        #[derive(Deserialize)]
        struct Row<'a> {
            #[serde(borrow, default)]
            doc: Option<&'a RawValue>,
        }
        let path = format!("/{}/_local_docs?include_docs=true", encoded(&database.name));
        let answer = self.reading.connection.ask(Method::GET, &path).await?;
        if matches!(answer.status, 404 | 405) {
            self.warnings.push(format!(
                "`{}`: the server lists no local documents",
                database.name
            ));
            return Ok(0);
        }
        let answer = answer.good("reading local documents")?;
        let rows: Rows<'_> = serde_json::from_slice(&answer.body)
            .map_err(|e| Error::corrupt("the list of local documents cannot be read").because(e))?;
        let documents: Vec<&str> = rows
            .rows
            .iter()
            .filter_map(|row| Some(row.doc?.get()))
            .collect();
        if documents.is_empty() {
            return Ok(0);
        }
        let body = format!("{{\"docs\":[\n{}\n]}}\n", documents.join(",\n"));
        put(lane, database.path(member::LOCAL), body.into()).await?;
        Ok(documents.len() as u64)
    }
}

/// Whether what is there now is another database than the one that was read.
fn is_another(
    server_before: &Server,
    database: &Database,
    server: &Server,
    after: Option<&Info>,
) -> bool {
    let before = &database.before;
    let Some(after) = after else { return true };
    let went_back = match (before.updates(), after.updates()) {
        (Some(before), Some(after)) => after < before,
        _ => false,
    };
    // In a cluster each node has a number of its own, and knows the others' writes a little later.
    let is_one_node = after.cluster.is_none_or(|cluster| cluster.n <= 1);
    after.instance_start_time != before.instance_start_time
        || after.cluster != before.cluster
        || is_one_node && (went_back || server.uuid != server_before.uuid)
}

/// A document and its attachments, as they come, into one member. Its frame's length is known as soon as its JSON is.
async fn large_document(
    connection: &Connection,
    lane: &mut Lane,
    database: &Database,
    leaf: &Leaf,
) -> Result<()> {
    let path = leaf_path(&database.name, leaf)?;
    let response = connection
        .open(&path, "multipart/related", "reading it")
        .await?;
    let kind = response
        .headers()
        .get(reqwest::header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let boundary = attachments::boundary_of(&kind)
        .ok_or_else(|| {
            Error::corrupt(format!(
                "the server sent `{kind}` in place of its attachments"
            ))
        })?
        .to_owned();
    let mut incoming = attachments::Incoming::new(connection.clone(), response, &boundary);
    let json = incoming.json(LARGEST_JSON_BYTES).await?;
    if leaf_of(&json)? != *leaf {
        return Err(Error::corrupt("another document came"));
    }
    let envelope: Envelope<'_> = serde_json::from_slice(&json)
        .map_err(|e| Error::corrupt("the document cannot be read").because(e))?;
    let parts: Vec<u64> = attachments::listed(envelope.attachments)?
        .iter()
        .map(|(_, attachment)| attachment.stored())
        .collect();
    let len = frame_len(json.len(), parts.iter().copied());
    let lines = FrameLines::new(&json);
    let body = futures::stream::try_unfold(
        attachments::Reframing::new(incoming, lines, parts),
        |mut reframing| async move {
            let piece = reframing.next().await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(piece.map(|piece| (piece, reframing)))
        },
    );
    let mut body = tokio_util::io::StreamReader::new(Box::pin(body));
    let hash = hash64(format!("{} {}", leaf.id, leaf.rev).as_bytes());
    let name = format!("{hash:016x}.{}", member::LARGE);
    lane.sized(
        MemberPath::new(database.path(&name))?,
        Meta::default(),
        len,
        &mut body,
    )
    .await
}

#[derive(Clone)]
struct Readers {
    cx: Context,
    out: Output,
    reading: Reading,
    queue: Arc<RunQueue<(String, Database)>>,
    /// What was read of each; nothing of those that failed.
    ended: Arc<Mutex<BTreeMap<String, Option<Done>>>>,
}

impl Readers {
    async fn run(&self) -> Result<()> {
        while let Some(run) = self.queue.take().await {
            let done = self.one_run(run).await;
            self.queue.ended();
            done?;
        }
        Ok(())
    }

    /// One lane. As soon as a database has passed the border, the rest of its run is for whoever is free.
    async fn one_run(&self, run: Run<(String, Database)>) -> Result<()> {
        let mut lane = self.out.lane("data").await?;
        let mut run = Some(run);
        while let Some((_, database)) = run.as_mut().and_then(Run::pop_front) {
            self.cx.check_cancelled()?;
            expect(&self.out, &mut lane, &database).await?;
            let passed = |bytes: u64| {
                if bytes > RUN_SPLIT_BYTES
                    && let Some(rest) = run.take()
                {
                    self.queue.give_back(rest);
                }
            };
            let read = reading::database(
                &self.cx,
                &self.reading,
                &database,
                (&mut lane, &self.out),
                passed,
            )
            .await;
            let (done, rows) = match read {
                Ok(done) => {
                    let rows = done.leaves;
                    (Some(done), rows)
                }
                Err(error) if is_the_runs(&error) => return Err(error),
                Err(error) => {
                    let error = error.within(format!("reading `{}`", database.name));
                    self.out.fail(&database.group, UNIT, &error).await?;
                    (None, 0)
                }
            };
            end(&self.out, &database, rows).await?;
            self.ended
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .insert(database.group, done);
        }
        lane.close().await
    }
}

async fn expect(out: &Output, lane: &mut Lane, database: &Database) -> Result<()> {
    out.expect(&database.group, UNIT).await?;
    lane.unit(&database.group, UNIT);
    Ok(())
}

async fn end(out: &Output, database: &Database, rows: u64) -> Result<()> {
    out.end(&database.group, UNIT, Counted { rows }).await
}

async fn put(lane: &mut Lane, path: String, body: Bytes) -> Result<()> {
    lane.member(MemberPath::new(path)?, Meta::default(), body)
        .await
}

/// What stops the run or the instance, not a database: an account that is refused is refused everywhere.
fn is_the_runs(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::Cancelled | ErrorKind::Bug | ErrorKind::Plugin | ErrorKind::Auth
    )
}
