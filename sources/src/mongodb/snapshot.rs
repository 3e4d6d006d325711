//! The snapshot: what each stage writes.

pub mod point;
mod readers;

use crate::mongodb::bson::{self, Writing};
use crate::mongodb::catalogue::{self, Collection, Seen};
use crate::mongodb::connection::{Connection, code};
use crate::mongodb::metadata::Kind;
use crate::mongodb::names::file_name;
use crate::mongodb::restore::indexes::is_on_id;
use crate::mongodb::restore::{SERVER_GROUP, USERS_UNIT};
use crate::mongodb::server::Server;
use crate::mongodb::{LAYOUT, Mongodb, Order, is_the_runs, mark, oplog};
use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::name::MemberPath;
use bk_core::source::{
    Counted, Facts, Lane, Meta, Output, PointInTime, Snapshot, SnapshotOptions, Stage,
};
use bk_core::unfinished::Unfinished;
use bytes::Bytes;
use futures::StreamExt;
use point::Point;
use serde_json::json;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Warnings that are said one by one.
const WARNINGS_NAMED: usize = 50;
/// Bytes of collections' numbers that the facts carry; those of more collections are left out.
const UUIDS_MAX_BYTES: usize = 32 << 10;
/// What each takes in JSON besides.
const UUID_MORE_BYTES: usize = 8;
/// The collections that hold users and roles, in the order in which they are restored.
pub const AUTH_COLLECTIONS: [&str; 3] = ["system.users", "system.roles", "system.version"];

/// Fixes the point in time.
pub async fn take(
    source: &Mongodb,
    cx: &Context,
    _how: &SnapshotOptions,
) -> Result<MongodbSnapshot> {
    let connection = source.access.connect(cx).await?;
    let server = Server::ask(&connection).await?;
    let marks = mark::read(&connection).await?;
    let databases = catalogue::databases(&connection, &source.filter).await?;
    source.filter.0.all_named_are_there(&databases)?;
    let mut warnings = Vec::new();
    let (collections, denied) = list(source, &connection, &databases).await?;
    warnings.extend(denied.iter().map(|database| {
        format!("the options of collections in `{database}` may not be read: they are lost")
    }));
    let (point, more) = point::fix(
        &connection,
        &server,
        source.settings.consistency,
        (&collections, usize::from(source.settings.parallel)),
    )
    .await?;
    warnings.extend(more);
    tracing::info!(instance = %cx.instance, consistency = point.word(), collections = collections.len(), "snapshot");
    Ok(MongodbSnapshot {
        at: point
            .position()
            .map_or_else(|| cx.clock.now(), oplog::instant),
        source: Reading {
            connection,
            point,
            order: source.settings.order,
            parallel: usize::from(source.settings.parallel),
        },
        server,
        databases,
        collections: Arc::new(collections),
        filter: source.filter.clone(),
        marks,
        warnings,
        more_warnings: 0,
        with_users: source.with_users(),
        indexes: Vec::new(),
        broken: HashSet::new(),
        log: None,
    })
}

/// Collections of all databases, sorted, and the databases whose options are not shown.
async fn list(
    source: &Mongodb,
    connection: &Connection,
    databases: &[String],
) -> Result<(Vec<Collection>, Vec<String>)> {
    let (mut all, mut denied) = (Vec::new(), Vec::new());
    for database in databases {
        let (found, seen) = catalogue::collections(connection, database, &source.filter).await?;
        if all.is_empty() {
            all = found;
        } else {
            all.extend(found);
        }
        if seen == Seen::Names {
            denied.push(database.clone());
        }
    }
    Ok((all, denied))
}

/// What those who read collections need.
#[derive(Clone)]
pub struct Reading {
    pub connection: Connection,
    pub point: Point,
    pub order: Order,
    pub parallel: usize,
}

/// A server at an instant.
pub struct MongodbSnapshot {
    source: Reading,
    server: Server,
    at: jiff::Timestamp,
    databases: Vec<String>,
    collections: Arc<Vec<Collection>>,
    filter: catalogue::Filter,
    marks: Vec<Unfinished>,
    warnings: Vec<String>,
    more_warnings: u64,
    with_users: bool,
    /// Of each collection, where they could be read.
    indexes: Vec<Option<Indexes>>,
    /// Units that failed already: their later stages are not written.
    broken: HashSet<(String, String)>,
    /// What was taken from the log.
    log: Option<oplog::Copied>,
}

#[async_trait]
impl Snapshot for MongodbSnapshot {
    fn at(&self) -> PointInTime {
        PointInTime {
            instant: self.at,
            consistency: self.source.point.word().into(),
            position: self.source.point.position().map(oplog::shown),
        }
    }

    async fn write(&mut self, cx: &Context, stage: Stage, out: &Output) -> Result<()> {
        match stage {
            Stage::Schema => self.schema(cx, out).await,
            Stage::Data => self.data(cx, out).await,
            Stage::Large => Ok(()),
            Stage::Finish => self.finish(cx, out).await,
        }
    }

    async fn close(mut self: Box<Self>, cx: &Context) -> Result<Facts> {
        // The run may have been stopped; this is not.
        let connection = self.source.connection.with_context(cx);
        let released = point::release(&connection, self.source.point.clone()).await;
        let mut notes = vec![format!(
            "{}{}, consistency {}",
            self.server.name(),
            self.server
                .set
                .as_ref()
                .map_or_else(String::new, |set| format!(", replica set {set}")),
            self.source.point.word()
        )];
        notes.push(format!(
            "{} databases, {} collections",
            self.databases.len(),
            self.collections.len()
        ));
        if let Some(log) = &self.log {
            notes.push(format!(
                "{} writes between {} and {} come from the log",
                log.entries,
                oplog::shown(log.from),
                oplog::shown(log.to)
            ));
        }
        notes.push(
            "collections of several parts: join them first (bk extract), then mongorestore reads them"
                .into(),
        );
        if self.more_warnings > 0 {
            self.warnings
                .push(format!("and {} more warnings", self.more_warnings));
        }
        let facts = Facts {
            layout: LAYOUT,
            selection: self.filter.0.selection(),
            more: json!({
                "version": self.server.version,
                "flavour": self.server.flavour,
                "uuids": self.uuids(),
            }),
            notes,
            warnings: std::mem::take(&mut self.warnings),
        };
        released.map(|()| facts)
    }
}

impl MongodbSnapshot {
    /// Numbers of collections by `database/name`, as long as they are few: nothing but an extract in another tool's form uses them.
    fn uuids(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut bytes = 0;
        self.collections
            .iter()
            .filter_map(|c| Some((format!("{}/{}", c.database, c.name), c.uuid?)))
            .map(|(name, uuid)| (name, BASE64_STANDARD_NO_PAD.encode(uuid)))
            .take_while(|(name, uuid)| {
                bytes += name.len() + uuid.len() + UUID_MORE_BYTES;
                bytes <= UUIDS_MAX_BYTES
            })
            .map(|(name, uuid)| (name, uuid.into()))
            .collect()
    }

    fn warn(&mut self, what: String) {
        if self.warnings.len() < WARNINGS_NAMED {
            self.warnings.push(what);
        } else {
            self.more_warnings += 1;
        }
    }

    /// Options and indexes of every collection.
    async fn schema(&mut self, cx: &Context, out: &Output) -> Result<()> {
        let mut writing = Lined::begin(out, "schema").await?;
        writing.lane.unit(SERVER_GROUP, "");
        let prelude = json!({ "ServerVersion": self.server.version, "ToolVersion": "bk" });
        writing
            .member("prelude.json".into(), prelude.to_string().into())
            .await?;
        let collections = self.collections.clone();
        self.indexes = vec![None; collections.len()];
        let connection = self.source.connection.clone();
        let mut found = futures::stream::iter(0..collections.len())
            .map(|n| {
                let (connection, collections) = (connection.clone(), collections.clone());
                async move { (n, catalogue::indexes(&connection, &collections[n]).await) }
            })
            .buffered(self.source.parallel);
        while let Some((n, indexes)) = found.next().await {
            cx.check_cancelled()?;
            let collection = &collections[n];
            let unit = collection.unit();
            writing.expect(&unit).await?;
            let refusal = mark::refusal(&self.marks, &cx.instance, &unit);
            let indexes = match (refusal, indexes) {
                (Some(refusal), _) => Err(refusal),
                (None, Ok(indexes)) => Ok(indexes),
                (None, Err(failure)) if failure.code == Some(code::NAMESPACE_NOT_FOUND) => {
                    Err(changed(collection))
                }
                (None, Err(failure)) => Err(failure
                    .error
                    .within(format!("listing the indexes of `{}`", collection.full()))),
            };
            match indexes {
                Ok(indexes) => {
                    self.indexes[n] = Some(Indexes::of(&indexes));
                    let metadata = collection.metadata(indexes);
                    let path = collection.path(&collection.name);
                    if let Some(raw) = metadata.raw_where_json_fails() {
                        writing.member(format!("{path}.metadata.raw"), raw).await?;
                    }
                    writing
                        .member(format!("{path}.metadata.json"), metadata.json(None).into())
                        .await?;
                }
                Err(error) if is_the_runs(&error) => return Err(error),
                Err(error) => {
                    writing.fail(&unit, &error).await?;
                    self.broken.insert(unit.clone());
                }
            }
            writing.end(&unit, 0).await?;
        }
        drop(found);
        writing.close().await
    }

    /// Documents, by as many readers as the settings say.
    async fn data(&mut self, cx: &Context, out: &Output) -> Result<()> {
        let is_read = |c: &Collection| c.kind != Kind::View && !self.broken.contains(&c.unit());
        let wanted = (0..self.collections.len())
            .filter(|n| is_read(&self.collections[*n]))
            .map(|n| match self.indexes[n] {
                Some(Indexes { on_id: true, .. }) => (n, self.source.order),
                _ => (n, Order::Natural),
            });
        let broken = readers::read(cx, out, &self.source, &self.collections, wanted).await?;
        self.broken.extend(broken);
        Ok(())
    }

    /// Users and roles, what the log has, and the proof that nothing was made anew meanwhile.
    async fn finish(&mut self, cx: &Context, out: &Output) -> Result<()> {
        let mut writing = Lined::begin(out, "finish").await?;
        if self.with_users {
            self.users(&mut writing).await?;
        }
        if let Point::Oplog { start } = self.source.point {
            let units: HashMap<String, (String, String)> = self
                .collections
                .iter()
                .filter(|c| c.kind != Kind::View && !self.broken.contains(&c.unit()))
                .map(|c| (format!("{}.{}", c.database, c.data_name()), c.unit()))
                .collect();
            let connection = self.source.connection.clone();
            let mut log = oplog::Copying::new(start, &units, &self.collections);
            log.run(cx, &connection, &mut writing).await?;
            self.log = Some(log.copied);
        }
        self.compare(cx, &mut writing).await?;
        writing.end_open().await?;
        writing.close().await
    }

    async fn users(&mut self, writing: &mut Lined<'_>) -> Result<()> {
        let unit = (SERVER_GROUP.to_owned(), USERS_UNIT.to_owned());
        writing.expect(&unit).await?;
        let mut count = 0;
        for name in AUTH_COLLECTIONS {
            let found = match self
                .source
                .connection
                .list("admin", Writing::new().text("find", name))
                .await
            {
                Ok(found) => found,
                Err(failure) if failure.code.is_some() => {
                    let why = failure
                        .error
                        .within("reading users and roles")
                        .hint("grant the account the role `backup`, or set users = false");
                    writing.fail(&unit, &why).await?;
                    break;
                }
                Err(failure) => return Err(failure.error),
            };
            if name == "system.users"
                && found
                    .iter()
                    .any(|user| bson::find(user, b"credentials").is_none())
            {
                let name = self.server.name();
                self.warn(format!("{name} shows users without their credentials: users are not restored from this archive"));
            }
            if !found.is_empty() {
                count += found.len() as u64;
                writing
                    .member(format!("admin/{}.bson", file_name(name)), found.concat())
                    .await?;
            }
        }
        writing.end(&unit, count).await
    }

    /// A collection that was dropped, made anew, or whose options or indexes changed while it was read, is not what it was.
    async fn compare(&mut self, cx: &Context, writing: &mut Lined<'_>) -> Result<()> {
        let mut failed = Vec::new();
        for database in &self.databases {
            failed.extend(self.compare_database(cx, database).await?);
        }
        for (unit, why) in failed {
            writing.open(&unit).await?;
            writing.fail(&unit, &why).await?;
            self.broken.insert(unit);
        }
        Ok(())
    }

    async fn compare_database(
        &self,
        cx: &Context,
        database: &String,
    ) -> Result<Vec<((String, String), Error)>> {
        let connection = &self.source.connection;
        let (now, _) = catalogue::collections(connection, database, &self.filter).await?;
        let before = |c: &Collection| c.database < *database;
        let from = self.collections.partition_point(before);
        let to = from + self.collections[from..].partition_point(|c| c.database == *database);
        let same = |then: &Collection| {
            find(&now, &then.name).is_some_and(|there| there.stamp == then.stamp)
        };
        let mut looked = futures::stream::iter(from..to)
            .map(|n| {
                let collection = &self.collections[n];
                let same = same(collection);
                async move {
                    let indexes = if same {
                        catalogue::indexes(connection, collection).await.map(Some)
                    } else {
                        Ok(None)
                    };
                    (n, indexes)
                }
            })
            .buffered(self.source.parallel);
        let mut failed = Vec::new();
        while let Some((n, indexes)) = looked.next().await {
            cx.check_cancelled()?;
            let collection = &self.collections[n];
            let unit = collection.unit();
            if self.broken.contains(&unit) {
                continue;
            }
            let same = match indexes {
                Ok(Some(indexes)) => self.indexes[n] == Some(Indexes::of(&indexes)),
                Ok(None) => false,
                Err(failure) if failure.code.is_some() => false,
                Err(failure) => return Err(failure.error),
            };
            if !same {
                failed.push((unit, changed(collection)));
            }
        }
        drop(looked);
        if matches!(self.source.point, Point::Oplog { .. }) {
            let then = &self.collections[from..to];
            let new = now
                .iter()
                .filter(|c| !c.temporary && find(then, &c.name).is_none());
            // What others wrote at the same time is in the archive: without this one it shows no instant.
            failed.extend(new.map(|c| {
                let full = c.full();
                let why =
                    format!("`{full}` was made while the others were read; repeat the backup");
                (c.unit(), Error::new(ErrorKind::Unreachable, why))
            }));
        }
        Ok(failed)
    }
}

/// One of a database's collections, which are sorted.
fn find<'a>(collections: &'a [Collection], name: &str) -> Option<&'a Collection> {
    let found = collections.binary_search_by(|c| c.name.as_str().cmp(name));
    found.ok().map(|n| &collections[n])
}

/// What is kept of a collection's indexes while its documents are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Indexes {
    /// Hash of all of them.
    stamp: u64,
    /// Whether one leads through the documents in the order of their `_id`.
    on_id: bool,
}

impl Indexes {
    fn of(indexes: &[Vec<u8>]) -> Self {
        Self {
            stamp: bk_core::name::hash64(&indexes.concat()),
            on_id: indexes.iter().any(|index| is_on_id(index)),
        }
    }
}

fn changed(collection: &Collection) -> Error {
    Error::new(
        ErrorKind::Unreachable,
        format!(
            "`{}` was dropped, made anew or altered while it was read; repeat the backup",
            collection.full()
        ),
    )
}

/// One lane, in which units may be open side by side.
pub struct Lined<'a> {
    out: &'a Output,
    lane: Lane,
    open: BTreeMap<(String, String), u64>,
}

impl<'a> Lined<'a> {
    async fn begin(out: &'a Output, key: &str) -> Result<Self> {
        Ok(Self {
            out,
            lane: out.lane(key).await?,
            open: BTreeMap::new(),
        })
    }

    async fn expect(&mut self, unit: &(String, String)) -> Result<()> {
        self.out.expect(&unit.0, &unit.1).await?;
        self.lane.unit(&unit.0, &unit.1);
        Ok(())
    }

    /// Begins a unit unless it was begun; it stays open until the lane ends.
    pub async fn open(&mut self, unit: &(String, String)) -> Result<()> {
        if self.open.contains_key(unit) {
            self.lane.unit(&unit.0, &unit.1);
            return Ok(());
        }
        self.open.insert(unit.clone(), 0);
        self.expect(unit).await
    }

    /// A member of a unit that is open, with so many entries.
    pub async fn more(
        &mut self,
        unit: &(String, String),
        path: String,
        body: Vec<u8>,
        entries: u64,
    ) -> Result<()> {
        self.open(unit).await?;
        *self.open.entry(unit.clone()).or_default() += entries;
        self.member(path, body).await
    }

    /// Room for a body over 4 MiB.
    pub fn out(&self) -> &Output {
        self.out
    }

    async fn member(&mut self, path: String, body: Vec<u8>) -> Result<()> {
        self.lane
            .member(MemberPath::new(path)?, Meta::default(), Bytes::from(body))
            .await
    }

    /// Fails a unit that is open.
    pub async fn fail(&self, unit: &(String, String), why: &Error) -> Result<()> {
        self.out.fail(&unit.0, &unit.1, why).await
    }

    async fn end(&self, unit: &(String, String), rows: u64) -> Result<()> {
        self.out.end(&unit.0, &unit.1, Counted { rows }).await
    }

    async fn end_open(&mut self) -> Result<()> {
        for (unit, rows) in std::mem::take(&mut self.open) {
            self.end(&unit, rows).await?;
        }
        Ok(())
    }

    async fn close(self) -> Result<()> {
        self.lane.close().await
    }
}

/// The path of a collection's part of the log.
pub fn log_path(database: &str, collection: &str) -> String {
    format!("{database}/{}.oplog", file_name(collection))
}
