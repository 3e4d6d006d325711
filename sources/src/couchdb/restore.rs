//! Putting databases back: each made as it was, then documents, attachments, design documents, and rights last.

pub mod databases;
pub mod foreign;
mod items;
mod merge;
mod writing;

use crate::couchdb::attachments;
use crate::couchdb::catalogue::{self, Definition};
use crate::couchdb::connection::{Connection, Method, Request};
use crate::couchdb::member::Kind;
use crate::couchdb::server::Server;
use crate::couchdb::{Couchdb, LAYOUT, UNIT, json, mark};
use crate::parts::{name_of, part};
use crate::percent::encoded;
use bk_core::context::Context;
use bk_core::error::{Error, Result, bug, conflict, unsupported};
use bk_core::source::{
    Body, Existing, Input, Member, RestoreOptions, Selected, Stage, Tally, UnitCount,
};
use bk_core::unfinished::Unfinished;
use bytes::Bytes;
use merge::Winners;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use tokio::task::JoinSet;
use writing::{BATCH_DOCUMENTS, Target, Written};

/// Where replications wait.
const PARKED: &str = "bk_parked_replicator";
const REPLICATOR: &str = "_replicator";
const USERS: &str = "_users";
/// The design document that servers make in `_users` themselves.
const AUTH_DESIGN: &str = "_design/_auth";

/// Restores what is selected.
pub async fn restore(
    source: &Couchdb,
    cx: &Context,
    input: Input,
    how: &RestoreOptions,
) -> Result<Tally> {
    let mut restoring = Restoring::new(source, cx, &input, how).await?;
    if how.forget_unfinished {
        mark::forget(&restoring.connection).await?;
        return Ok(Tally::default());
    }
    input.facts().refuse_newer_layout("the databases", LAYOUT)?;
    restoring.run(input).await?;
    Ok(restoring.tally)
}

/// A database of this restore.
struct Database {
    target: Target,
    definition: Definition,
    /// For one that is merged: the winner of each document in the archive.
    winners: Option<Arc<Winners>>,
    /// For `_users`: documents of the archive.
    ids: BTreeSet<String>,
}

struct Restoring<'a> {
    cx: &'a Context,
    how: &'a RestoreOptions,
    connection: Connection,
    server: Server,
    is_full: bool,
    parallel: usize,
    existing: Existing,
    /// Group to database in the target.
    names: HashMap<String, String>,
    n: Option<u8>,
    starts_replications: bool,
    /// Whether the archive is of a server on which databases without rights are open to everybody.
    made_by_old: bool,
    /// Groups that failed when they were backed up.
    failed: HashSet<String>,
    databases: BTreeMap<String, Database>,
    /// Groups of which something was refused: they stay in the mark.
    broken: BTreeSet<String>,
    counts: BTreeMap<(String, Stage), (u64, u64, u64)>,
    tally: Tally,
}

/// What a task did.
struct Done {
    group: String,
    stage: Stage,
    members: u64,
    written: Written,
    bytes: u64,
}

impl<'a> Restoring<'a> {
    async fn new(
        source: &Couchdb,
        cx: &'a Context,
        input: &Input,
        how: &'a RestoreOptions,
    ) -> Result<Self> {
        if how.into_place.is_some() {
            return Err(unsupported("a server cannot be restored into a folder")
                .hint("--into couchdb/app=app_copy gives a database another name"));
        }
        let connection = source.access.connect(cx).await?;
        let server = Server::ask(&connection).await?;
        let failed = input.failed_units().iter();
        Ok(Self {
            cx,
            how,
            is_full: server.is_full,
            server,
            connection,
            parallel: usize::from(source.settings.parallel) * 2,
            existing: how.existing.unwrap_or(Existing::Replace),
            names: how.into_group.iter().cloned().collect(),
            n: source.settings.n,
            starts_replications: source.settings.replicator,
            made_by_old: is_old(&input.facts().more),
            failed: failed.map(|(group, _)| group.clone()).collect(),
            databases: BTreeMap::new(),
            broken: BTreeSet::new(),
            counts: BTreeMap::new(),
            tally: Tally::default(),
        })
    }

    async fn run(&mut self, mut input: Input) -> Result<()> {
        let found = catalogue::databases(&self.connection).await?;
        self.definitions(&mut input).await?;
        self.refuse(&found).await?;
        let mine = self.unfinished();
        mark::begin(&self.connection, &mine).await?;
        self.make(&found).await?;
        self.find_winners(&input).await?;
        for stage in [Stage::Data, Stage::Large] {
            self.documents(&mut input, stage).await?;
        }
        self.finish(&mut input).await?;
        self.end(&mine).await
    }

    /// This restore, as its mark says it.
    fn unfinished(&self) -> Unfinished {
        let selected = self.how.selected.iter();
        Unfinished {
            id: self.how.id.clone(),
            archive: self.how.archive.clone(),
            selected: selected.map(|s| self.in_target(&s.group)).collect(),
        }
    }

    /// What comes after all documents; then the mark goes.
    async fn end(&mut self, mine: &Unfinished) -> Result<()> {
        self.forget_other_users().await?;
        self.tally.warnings.extend(self.connection.waited());
        let left = self.broken.iter().map(|group| self.in_target(group));
        let left: Vec<_> = left.collect();
        mark::finish(&self.connection, mine, left).await?;
        self.tally.units = std::mem::take(&mut self.counts)
            .into_iter()
            .map(|((group, stage), (members, rows, bytes))| UnitCount {
                group,
                name: UNIT.into(),
                stage,
                members,
                rows,
                bytes,
            })
            .collect();
        Ok(())
    }

    /// The target's database for a group. Replications wait elsewhere, unless the settings start them.
    fn database(&self, group: &str) -> String {
        let name = name_of(self.names.get(group).map_or(group, String::as_str));
        if self.starts_replications {
            return name;
        }
        match name.strip_suffix(REPLICATOR) {
            Some("") => PARKED.into(),
            Some(before) if before.ends_with('/') => format!("{before}{PARKED}"),
            _ => name,
        }
    }

    fn in_target(&self, group: &str) -> Selected {
        Selected {
            group: part(&self.database(group)),
            unit: Some(UNIT.into()),
        }
    }

    fn count(&mut self, group: &str, stage: Stage, (members, rows, bytes): (u64, u64, u64)) {
        let count = self.counts.entry((group.to_owned(), stage)).or_default();
        count.0 += members;
        count.1 += rows;
        count.2 += bytes;
    }

    fn fail(&mut self, group: &str, why: String) {
        self.tally.failed.push(why);
        self.broken.insert(group.to_owned());
    }

    /// How each database was made.
    async fn definitions(&mut self, input: &mut Input) -> Result<()> {
        let members = input.stage(Stage::Schema).await?;
        while let Some(member) = members.next().await? {
            self.cx.check_cancelled()?;
            let (group, path) = (member.unit.0.clone(), member.path.to_string());
            let body = member.bytes().await?;
            let definition = serde_json::from_slice(&body)
                .map_err(|e| Error::corrupt(format!("`{path}` cannot be read")).because(e))?;
            self.count(&group, Stage::Schema, (1, 0, body.len() as u64));
            self.add(group, definition);
        }
        Ok(())
    }

    /// Takes a database in.
    fn add(&mut self, group: String, definition: Definition) {
        let target = Target {
            connection: self.connection.clone(),
            database: self.database(&group),
            is_full: self.is_full,
            merged: false,
            at_once: Arc::new(AtomicUsize::new(BATCH_DOCUMENTS)),
        };
        let database = Database {
            target,
            definition,
            winners: None,
            ids: BTreeSet::new(),
        };
        self.databases.insert(group, database);
    }

    /// Before anything is written: what must not be.
    async fn refuse(&self, found: &[String]) -> Result<()> {
        let mut targets: HashMap<&str, &str> = HashMap::new();
        for (group, database) in &self.databases {
            let name = database.target.database.as_str();
            if name == mark::NAME {
                return Err(conflict(format!("`{name}` is kept for `bk` itself"))
                    .hint("give --into another name"));
            }
            if let Some(other) = targets.insert(name, group) {
                return Err(conflict(format!(
                    "`{other}` and `{group}` would both become `{name}`"
                ))
                .hint("give each a name of its own with --into"));
            }
            if self.existing == Existing::Refuse && found.iter().any(|there| there == name) {
                return Err(conflict(format!("`{name}` is there already")).hint(
                    "repeat with --existing replace or --existing merge, or --into another database",
                ));
            }
        }
        let definitions: Vec<&Definition> =
            self.databases.values().map(|d| &d.definition).collect();
        databases::refuse_unformed(&self.connection, found, &definitions, self.n).await
    }

    /// Makes the databases. `_users` is never deleted: nobody could log in meanwhile; nor is one that the archive has not whole.
    async fn make(&mut self, found: &[String]) -> Result<()> {
        let mut refused = Vec::new();
        for (group, database) in &mut self.databases {
            self.cx.check_cancelled()?;
            let name = database.target.database.clone();
            let how = (name.as_str(), self.n, self.is_full);
            let is_there = found.contains(&name);
            let replaced =
                self.existing == Existing::Replace && name != USERS && !self.failed.contains(group);
            if replaced {
                databases::make_anew(&self.connection, &database.definition, how).await?;
            } else {
                databases::make_if_missing(&self.connection, &database.definition, how).await?;
                database.target.merged = is_there;
                if is_there && self.failed.contains(group) {
                    self.tally.kept.push(name.clone());
                }
            }
            if self.is_full && !database.target.merged {
                refused.extend(
                    catalogue::set_limits(&self.connection, &database.definition, &name).await?,
                );
            }
        }
        self.tally.warnings.extend(refused);
        Ok(())
    }

    /// Documents of a stage, over several connections.
    async fn documents(&mut self, input: &mut Input, stage: Stage) -> Result<()> {
        let members = input.stage(stage).await?;
        let mut tasks: JoinSet<Result<Done>> = JoinSet::new();
        while let Some(member) = members.next().await? {
            self.cx.check_cancelled()?;
            while tasks.len() >= self.parallel {
                self.done(tasks.join_next().await)?;
            }
            let group = member.unit.0.clone();
            let Some(database) = self.databases.get_mut(&group) else {
                return Err(Error::corrupt(format!(
                    "`{group}` has documents and no definition"
                )));
            };
            let target = database.target.clone();
            let winners = database.winners.clone();
            let path = member.path.to_string();
            let is_streamed = matches!(member.body, Body::Stream(_));
            if is_streamed && Kind::of(&path)? == Kind::Framed {
                // One at a time: it comes as it is read.
                let written = large(&target, member, winners.as_deref()).await;
                let done = written.map(|(written, bytes)| Done {
                    group,
                    stage,
                    members: 1,
                    written,
                    bytes,
                });
                self.done(Some(Ok(done)))?;
                continue;
            }
            let body = member.bytes().await?;
            if database.target.database == USERS {
                database.ids.extend(ids(&path, &body)?);
            }
            tasks.spawn(async move {
                let written = write(&target, &path, &body, winners.as_deref()).await?;
                Ok(Done {
                    group,
                    stage,
                    members: 1,
                    written,
                    bytes: body.len() as u64,
                })
            });
        }
        while !tasks.is_empty() {
            self.done(tasks.join_next().await)?;
        }
        Ok(())
    }

    fn done(&mut self, done: Option<Result<Result<Done>, tokio::task::JoinError>>) -> Result<()> {
        let Some(done) = done else { return Ok(()) };
        self.take_done(done.map_err(|e| bug(format!("a task ended: {e}")))??);
        Ok(())
    }

    fn take_done(&mut self, done: Done) {
        let Done {
            group,
            stage,
            members,
            written,
            bytes,
        } = done;
        self.count(&group, stage, (members, written.documents, bytes));
        if written.refused > 0 {
            let name = self.database(&group);
            let why = written.why.join("; ");
            self.fail(
                &group,
                format!(
                    "`{name}`: {} documents were refused: {why}",
                    written.refused
                ),
            );
        }
    }

    /// Design documents as soon as all documents are there, for they may refuse some; local documents; rights last.
    async fn finish(&mut self, input: &mut Input) -> Result<()> {
        let members = input.stage(Stage::Finish).await?;
        let mut rights: Vec<(String, Bytes)> = Vec::new();
        while let Some(member) = members.next().await? {
            self.cx.check_cancelled()?;
            let (group, path) = (member.unit.0.clone(), member.path.to_string());
            let body = member.bytes().await?;
            let Some(database) = self.databases.get(&group) else {
                return Err(Error::corrupt(format!("`{path}` belongs to no database")));
            };
            let (target, winners) = (database.target.clone(), database.winners.clone());
            if target.database == USERS && matches!(Kind::of(&path)?, Kind::Plain | Kind::Framed) {
                let ids = ids(&path, &body)?;
                if let Some(database) = self.databases.get_mut(&group) {
                    database.ids.extend(ids);
                }
            }
            let written = match Kind::of(&path)? {
                Kind::Security => {
                    self.count(&group, Stage::Finish, (1, 0, body.len() as u64));
                    rights.push((group, body));
                    continue;
                }
                Kind::Local => self.local_documents(&target, &body).await?,
                _ => write(&target, &path, &body, winners.as_deref()).await?,
            };
            let done = Done {
                group,
                stage: Stage::Finish,
                members: 1,
                written,
                bytes: body.len() as u64,
            };
            self.done(Some(Ok(Ok(done))))?;
        }
        for (group, body) in rights {
            self.rights(&group, &body).await?;
        }
        Ok(())
    }

    async fn local_documents(&self, target: &Target, body: &Bytes) -> Result<Written> {
        let mut written = Written::default();
        for document in writing::documents(body)? {
            let members = json::members(&document)?;
            let id: String = members
                .iter()
                .find(|(name, _)| name == "_id")
                .and_then(|(_, id)| serde_json::from_str(id.get()).ok())
                .ok_or_else(|| Error::corrupt("a local document has no id"))?;
            let path = crate::couchdb::connection::document_path(&target.database, &id)
                .ok_or_else(|| unsupported(format!("no address can name `{id}`")))?;
            let kept = members.iter().filter(|(name, _)| name != "_rev");
            let body = json::object(kept.map(|(name, value)| (&**name, value.get())));
            let request = Request::new(Method::PUT, path).json(body);
            let answer = self.connection.send(&request).await?;
            // 409: it is there, with a number of its own.
            if answer.is_good() || answer.status == 409 {
                written.documents += 1;
            } else {
                written.refused += 1;
                written.why.push(format!("`{id}`: {}", answer.words()));
            }
        }
        Ok(written)
    }

    /// Sets who may read and write, where that differs. Those of `_users` are the server's.
    async fn rights(&mut self, group: &str, body: &[u8]) -> Result<()> {
        let name = self.database(group);
        if name == USERS {
            return Ok(());
        }
        let wanted: Value = serde_json::from_slice(body).map_err(|e| {
            Error::corrupt(format!("the rights on `{name}` cannot be read")).because(e)
        })?;
        let there = catalogue::security(&self.connection, &name).await?;
        let there: Value = serde_json::from_slice(&there).unwrap_or_default();
        if there == wanted {
            return Ok(());
        }
        let is_empty = wanted.as_object().is_some_and(serde_json::Map::is_empty);
        if is_empty && self.made_by_old && self.is_full {
            self.tally.warnings.push(format!(
                "`{name}` had no rights set, which older servers take for open to everybody; it keeps those of a new database: set them"
            ));
            return Ok(());
        }
        let path = format!("/{}/_security", encoded(&name));
        let answer = self
            .connection
            .send(&Request::new(Method::PUT, path).json(body.to_vec()))
            .await?;
        if !answer.is_good() {
            self.fail(
                group,
                format!("`{name}`: its rights could not be set: {}", answer.words()),
            );
        }
        Ok(())
    }
}

/// Whether a server before CouchDB 3 made an archive.
fn is_old(facts: &Value) -> bool {
    facts["version"]
        .as_str()
        .and_then(|version| version.split('.').next()?.parse::<u32>().ok())
        .is_some_and(|major| major < 3)
}

/// Documents of a member.
async fn write(
    target: &Target,
    path: &str,
    body: &Bytes,
    winners: Option<&Winners>,
) -> Result<Written> {
    let within = |e: Error| e.within(format!("`{path}`"));
    if Kind::of(path)? == Kind::Framed {
        let frames = attachments::frames(body).map_err(within)?;
        let mut written = target.write_framed(&frames, body).await?;
        if let Some(winners) = winners {
            written.add(
                winners
                    .settle_framed(target, &frames, merge::round_of(path))
                    .await?,
            );
        }
        return Ok(written);
    }
    let mut documents = writing::documents(body).map_err(within)?;
    let all = documents.len();
    if target.database == USERS {
        documents.retain(|document| !is_auth_design(document));
    }
    let mut written = target.write(&documents).await?;
    // What the server makes itself is as good as written.
    written.documents += (all - documents.len()) as u64;
    if let Some(winners) = winners {
        written.add(
            winners
                .settle(target, &documents, merge::round_of(path))
                .await?,
        );
    }
    Ok(written)
}

fn is_auth_design(document: &[u8]) -> bool {
    crate::couchdb::documents::leaf_of(document).is_ok_and(|leaf| leaf.id == AUTH_DESIGN)
}

/// A document with attachments too large to be held.
async fn large(
    target: &Target,
    member: Member,
    winners: Option<&Winners>,
) -> Result<(Written, u64)> {
    let len = member
        .len
        .ok_or_else(|| bug("a large document has no length"))?;
    match member.body {
        Body::Stream(stream) => {
            let (leaf, mut written) = target.put_large(len, stream).await?;
            if let Some(winners) = winners {
                winners.look_at_large(target, &leaf, &mut written).await?;
            }
            Ok((written, len))
        }
        Body::Whole(_) => Err(bug("a body that is whole was taken for a stream")),
    }
}

fn ids(path: &str, body: &Bytes) -> Result<Vec<String>> {
    let of = |json: &[u8]| crate::couchdb::documents::leaf_of(json).map(|leaf| leaf.id);
    if Kind::of(path)? == Kind::Framed {
        return attachments::frames(body)?
            .iter()
            .map(|f| of(f.json))
            .collect();
    }
    writing::documents(body)?.iter().map(|d| of(d)).collect()
}
