//! What `mongodump` made: its folders, alone or in a tar, and its archives; plain or compressed.
//!
//! The first pass reads all of it and writes nothing: what was cut off, changed or is in no list is found there. The second writes. Names
//! come from the files; where a file name holds only the beginning of a long name, from the metadata in it.

use super::archive_file::{self, Listed, Piece, Reader};
use super::{Done, Restoring, SERVER_GROUP, USERS_UNIT, Unit, Written};
use crate::mongodb::Mongodb;
use crate::mongodb::bson;
use crate::mongodb::catalogue::BUCKETS;
use crate::mongodb::metadata::Metadata;
use crate::mongodb::names::{collection, is_cut, name_of, part};
use crate::mongodb::oplog::replay::Replay;
use crate::mongodb::oplog::{COPIED_MAX_BYTES, Sorting};
use crate::mongodb::server::Server;
use bk_core::context::Context;
use bk_core::error::{Error, Result, conflict, unsupported};
use bk_core::selector::Matched;
use bk_core::source::{
    Body, Candidate, Claim, Input, Kind as EntryKind, Member, RestoreOptions, Selected, Stage,
    Tally,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tokio::task::JoinSet;

/// Documents that go to the server together.
const BLOCK_BYTES: usize = 8 << 20;
/// No document is larger: the largest, and what the log puts around it.
const LARGEST_BYTES: usize = (16 << 20) + (16 << 10);
/// What is larger describes no collection: a validator is a document, of which JSON makes twice as much at most.
const METADATA_MAX_BYTES: usize = 32 << 20;
/// What is larger holds no users: this is room for 100,000.
const USERS_MAX_BYTES: usize = 64 << 20;
const METADATA: &str = ".metadata.json";
const DOCUMENTS: &str = ".bson";
const LOG: &str = "oplog.bson";

/// What a file of a dump is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum File {
    /// Options and indexes.
    Metadata(String, String),
    /// Documents.
    Documents(String, String),
    /// Users or roles.
    Users,
    /// The log.
    Log,
    /// What is known and not wanted.
    LeftOut,
}

impl File {
    /// By its path; nothing when it is no file of a dump.
    fn of(path: &str) -> Option<Self> {
        let path = path.strip_suffix(".gz").unwrap_or(path);
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let database = folder.rsplit('/').next().unwrap_or_default();
        if name == LOG {
            return Some(Self::Log);
        }
        if name == "prelude.json" {
            return Some(Self::LeftOut);
        }
        if let Some(name) = name.strip_suffix(METADATA).filter(|_| !database.is_empty()) {
            return Some(match Self::special(database, name) {
                Some(_) => Self::LeftOut,
                None => Self::Metadata(database.into(), name.into()),
            });
        }
        let name = name
            .strip_suffix(DOCUMENTS)
            .filter(|_| !database.is_empty())?;
        Some(
            Self::special(database, name)
                .unwrap_or_else(|| Self::Documents(database.into(), name.into())),
        )
    }

    /// Database and file of documents, in the stage of documents.
    fn documents_in(path: &str) -> Option<(String, String)> {
        match Self::of(path) {
            Some(Self::Documents(database, file)) => Some((database, file)),
            // A log comes in another stage.
            Some(Self::Log) => match Self::collection_called_oplog(path.trim_end_matches(".gz"))? {
                Self::Documents(database, file) => Some((database, file)),
                _ => None,
            },
            _ => None,
        }
    }

    /// `DATABASE/oplog.bson`, where it is no log.
    fn collection_called_oplog(path: &str) -> Option<Self> {
        let folder = path.rsplit_once('/')?.0;
        let database = folder.rsplit('/').next()?;
        Some(Self::Documents(database.into(), "oplog".into()))
    }

    /// What is no ordinary collection.
    fn special(database: &str, name: &str) -> Option<Self> {
        match (database, name) {
            ("admin", "system.users" | "system.roles") => Some(Self::Users),
            // What is the server's own; indexes of servers of long ago, what a profiler wrote.
            ("admin", "system.version")
            | ("local" | "config", _)
            | (_, "system.indexes" | "system.profile") => Some(Self::LeftOut),
            // Users of one database.
            (_, name) if name.starts_with('$') || name.starts_with("%24") && !is_cut(name) => {
                Some(Self::LeftOut)
            }
            _ => None,
        }
    }
}

/// The unit of a file; a name that was cut stands for itself.
fn unit_of(database: &str, file: &str) -> Unit {
    let name = collection(file).unwrap_or_else(|| file.to_owned());
    let name = name.strip_prefix(BUCKETS).unwrap_or(&name).to_owned();
    (part(database), part(&name))
}

/// A file of metadata that is not compressed has no more than is read of one.
pub fn most_bytes(what: &Candidate) -> Option<u64> {
    let is_file = what.kind == EntryKind::File;
    let is_metadata = is_file && what.path.as_bytes().ends_with(METADATA.as_bytes());
    is_metadata.then_some(METADATA_MAX_BYTES as u64)
}

/// A file of a dump, or an archive.
pub fn claim(what: &Candidate) -> Vec<Claim> {
    if what.kind != EntryKind::File {
        return Vec::new();
    }
    let claim = |stage, unit: Option<Unit>, left_out| Claim {
        stage,
        unit,
        path: what.path.clone(),
        unpacked: true,
        left_out,
    };
    if what.head.starts_with(&archive_file::MAGIC) {
        return vec![
            claim(Stage::Schema, None, false),
            claim(Stage::Data, None, false),
        ];
    }
    let path = what.path.to_string();
    let looks_right = what.head.is_empty()
        || path.contains(METADATA) && what.head.starts_with(b"{")
        || path.contains(DOCUMENTS) && bson::len_begins(&what.head);
    let name_beside = format!("{}{METADATA}", LOG.trim_end_matches(DOCUMENTS));
    let is_collection = what
        .beside
        .iter()
        .any(|name| name.starts_with(name_beside.as_bytes()));
    let file = match File::of(&path) {
        // A collection that is called so has its metadata beside it.
        Some(File::Log) if is_collection => File::collection_called_oplog(&path),
        other => other,
    };
    match file {
        None => Vec::new(),
        Some(File::LeftOut) => vec![claim(Stage::Schema, None, true)],
        Some(_) if !looks_right => Vec::new(),
        Some(File::Metadata(database, file)) => {
            vec![claim(Stage::Schema, Some(unit_of(&database, &file)), false)]
        }
        Some(File::Documents(database, file)) => {
            vec![claim(Stage::Data, Some(unit_of(&database, &file)), false)]
        }
        Some(File::Users) => vec![claim(
            Stage::Finish,
            Some((SERVER_GROUP.into(), USERS_UNIT.into())),
            false,
        )],
        // It speaks of all collections.
        Some(File::Log) => vec![claim(Stage::Finish, None, false)],
    }
}

/// Restores it.
pub async fn restore(
    source: &Mongodb,
    cx: &Context,
    mut input: Input,
    how: &RestoreOptions,
) -> Result<Tally> {
    if how.into_place.is_some() {
        return Err(unsupported("a server cannot be restored into a folder")
            .hint("--into mongodb/app=app_copy gives a database another name"));
    }
    let connection = source.access.connect(cx).await?;
    let server = Server::ask(&connection).await?;
    let survey = Survey::of(cx, &mut input).await?;
    let selected = survey.selected(cx, how)?;
    let how = RestoreOptions {
        selected,
        ..how.clone()
    };
    let mut restoring = Restoring::new(source, cx, &how, server, connection, &input);
    restoring.foreign(input, survey).await?;
    Ok(restoring.tally)
}

/// The checking pass alone.
pub async fn examine(cx: &Context, mut input: Input) -> Result<Vec<String>> {
    Survey::of(cx, &mut input).await.map(|_| Vec::new())
}

/// What the first pass found.
#[derive(Default)]
struct Survey {
    collections: BTreeMap<Unit, Metadata>,
    /// Units of an archive: which of them are wanted is known only now.
    in_archive: BTreeSet<Unit>,
    documents: BTreeMap<Unit, u64>,
    /// Units that have a file of metadata.
    with_metadata: BTreeSet<Unit>,
    with_users: bool,
}

impl Survey {
    async fn of(cx: &Context, input: &mut Input) -> Result<Self> {
        let mut survey = Self::default();
        let members = input.stage(Stage::Schema).await?;
        while let Some(member) = members.next().await? {
            cx.check_cancelled()?;
            let path = member.path.clone();
            let taken = match File::of(&path.to_string()) {
                Some(File::Metadata(..)) => survey.metadata(member).await,
                _ => survey.archive(member).await,
            };
            taken.map_err(|e| e.within(format!("`{path}`")))?;
        }
        let members = input.look(Stage::Data).await?;
        while let Some(member) = members.next().await? {
            cx.check_cancelled()?;
            let path = member.path.to_string();
            let Some((database, file)) = File::documents_in(&path) else {
                // An archive was read already; a pass must be read to its end.
                let mut chunks = full_body(member);
                while chunks.next().await?.is_some() {}
                continue;
            };
            let unit = unit_of(&database, &file);
            let mut documents = DocumentFile::of(member);
            let within = |e: Error| e.within(format!("`{path}`"));
            while documents.next().await.map_err(within)?.is_some() {
                cx.check_cancelled()?;
            }
            *survey.documents.entry(unit.clone()).or_default() += documents.documents;
            // Tools of long ago wrote documents alone.
            survey.collections.entry(unit).or_insert_with(|| Metadata {
                options: bson::EMPTY.to_vec(),
                ..Metadata::default()
            });
        }
        // The log and the users are read later; that they can be is found now.
        let members = input.look(Stage::Finish).await?;
        let mut log_bytes = 0;
        while let Some(member) = members.next().await? {
            cx.check_cancelled()?;
            let path = member.path.to_string();
            let mut documents = DocumentFile::of(member);
            let within = |e: Error| e.within(format!("`{path}`"));
            while let Some(block) = documents.next().await.map_err(within)? {
                log_bytes += block.len();
                if log_bytes > COPIED_MAX_BYTES {
                    return Err(within(unsupported("it has more than 256 MiB of entries")));
                }
            }
        }
        Ok(survey)
    }

    async fn metadata(&mut self, member: Member) -> Result<()> {
        let unit = member.unit.clone();
        let body = member.bytes_up_to(METADATA_MAX_BYTES).await?;
        let metadata = Metadata::parse(&body)?;
        self.with_metadata.insert(unit.clone());
        if self.collections.insert(unit.clone(), metadata).is_some() {
            return Err(
                conflict(format!("`{}/{}` stands in it twice", unit.0, unit.1))
                    .hint("restore one dump at a time"),
            );
        }
        Ok(())
    }

    async fn archive(&mut self, member: Member) -> Result<()> {
        let mut reader = Reader::default();
        let mut chunks = full_body(member);
        while let Some(chunk) = chunks.next().await? {
            reader.take(&chunk, |piece| {
                match piece {
                    Piece::Listed(listed) => self.list(listed),
                    Piece::Document(database, name, _) => {
                        *self
                            .documents
                            .entry(unit_in_archive(database, name))
                            .or_default() += 1;
                    }
                    Piece::End(..) => {}
                }
                Ok(())
            })?;
        }
        reader.finish()
    }

    fn list(&mut self, listed: Listed) {
        match File::special(&listed.database, &listed.collection) {
            None => {
                let unit = unit_in_archive(&listed.database, &listed.collection);
                self.in_archive.insert(unit.clone());
                self.collections.insert(unit, listed.metadata);
            }
            Some(File::Users) => self.with_users = true,
            Some(_) => {}
        }
    }

    /// Units by name: what others left out of a dump is not known, so nothing but what is in it makes way.
    fn selected(&self, cx: &Context, how: &RestoreOptions) -> Result<Vec<Selected>> {
        let selected = self.chosen(cx, how)?.into_iter().flat_map(|s| match s {
            Selected { group, unit: None } if group != SERVER_GROUP => {
                let units = self.collections.keys().filter(|unit| unit.0 == group);
                let named = |unit: &Unit| Selected {
                    group: group.clone(),
                    unit: Some(unit.1.clone()),
                };
                units.map(named).collect()
            }
            other => vec![other],
        });
        Ok(selected.collect())
    }

    /// Units that were claimed were chosen by the engine; those of an archive are chosen here.
    fn chosen(&self, cx: &Context, how: &RestoreOptions) -> Result<Vec<Selected>> {
        if self.in_archive.is_empty() && !self.with_users {
            return Ok(how.selected.clone());
        }
        let mut units = self.in_archive.clone();
        if self.with_users {
            units.insert((SERVER_GROUP.into(), USERS_UNIT.into()));
        }
        let mut matched = Matched::new(&how.selection);
        let mut taken: BTreeMap<&str, (BTreeSet<&str>, bool)> = BTreeMap::new();
        for (group, unit) in &units {
            matched.see(&cx.instance, group, unit);
            let of_group = taken
                .entry(group)
                .or_insert_with(|| (BTreeSet::new(), true));
            if how.selection.takes(&cx.instance, group, unit) {
                of_group.0.insert(unit);
            } else {
                of_group.1 = false;
            }
        }
        matched.finish()?;
        let mut selected = how.selected.clone();
        for (group, (units, whole)) in taken {
            let named = |unit: Option<&str>| Selected {
                group: group.to_owned(),
                unit: unit.map(str::to_owned),
            };
            if whole {
                selected.push(named(None));
            } else {
                selected.extend(units.into_iter().map(|unit| named(Some(unit))));
            }
        }
        Ok(selected)
    }
}

fn unit_in_archive(database: &str, name: &str) -> Unit {
    (
        part(database),
        part(name.strip_prefix(BUCKETS).unwrap_or(name)),
    )
}

fn is_selected(selected: &[Selected], unit: &Unit) -> bool {
    selected
        .iter()
        .any(|s| s.group == unit.0 && s.unit.as_ref().is_none_or(|name| *name == unit.1))
}

impl Restoring<'_> {
    async fn foreign(&mut self, mut input: Input, survey: Survey) -> Result<()> {
        self.refuse_targets()?;
        self.refuse_existing().await?;
        self.waits
            .clone_from(&survey.documents.into_iter().collect::<HashMap<_, _>>());
        for (unit, metadata) in survey.collections {
            self.cx.check_cancelled()?;
            if !is_selected(&self.how.selected, &unit) {
                continue;
            }
            // A file name that was cut is no name.
            let name = match &metadata.name {
                Some(name) if is_cut(&unit.1) => name.clone(),
                _ => name_of(&unit.1),
            };
            self.define(unit.clone(), name, metadata);
            if survey.with_metadata.contains(&unit) {
                self.count(&unit, Stage::Schema, 0, 0);
            }
        }
        let mine = self.begin().await?;
        let mut later = Later::default();
        // What the log may change yet gets its indexes at the end.
        self.logged = self.made.keys().cloned().collect();
        let mut writing = JoinSet::new();
        let members = input.stage(Stage::Data).await?;
        while let Some(member) = members.next().await? {
            match File::documents_in(&member.path.to_string()) {
                Some((database, file)) => {
                    let unit = unit_of(&database, &file);
                    self.count(&unit, Stage::Data, 0, 0);
                    let mut documents = DocumentFile::of(member);
                    while let Some(block) = documents.next().await? {
                        self.block(&mut writing, unit.clone(), block).await?;
                    }
                }
                _ => self.archive(member, &mut writing, &mut later).await?,
            }
        }
        while let Some(done) = writing.join_next().await {
            self.done(done, &mut writing)?;
        }
        self.compare_documents();
        let members = input.stage(Stage::Finish).await?;
        while let Some(member) = members.next().await? {
            let path = member.path.to_string();
            if let Some(File::Log) = File::of(&path) {
                let mut entries = DocumentFile::of(member);
                while let Some(block) = entries.next().await? {
                    self.cx.check_cancelled()?;
                    bson::documents(&block).try_for_each(|entry| later.sorting.take_all(entry?))?;
                }
            } else {
                let unit = member.unit.clone();
                let body = member.bytes_up_to(USERS_MAX_BYTES).await?;
                later.users_of(&path, &body)?;
                self.count(&unit, Stage::Finish, 0, 0);
            }
        }
        self.replay(later.sorting).await?;
        self.indexes_of_the_logged().await?;
        self.users(&later.users, &later.roles).await?;
        self.end(&mine).await
    }

    /// A pass over an archive that writes.
    async fn archive(
        &mut self,
        member: Member,
        writing: &mut JoinSet<Result<Done>>,
        later: &mut Later,
    ) -> Result<()> {
        let mut reader = Reader::default();
        let mut full: Vec<(Unit, Vec<u8>)> = Vec::new();
        let mut gathered: BTreeMap<Unit, Vec<u8>> = BTreeMap::new();
        let mut held = 0;
        let mut queue = full_body(member);
        while let Some(chunk) = queue.next().await? {
            self.cx.check_cancelled()?;
            let selected = &self.how.selected;
            let with_users = is_selected(selected, &(SERVER_GROUP.into(), USERS_UNIT.into()));
            reader.take(&chunk, |piece| {
                let Piece::Document(database, name, document) = piece else {
                    return Ok(());
                };
                if archive_file::is_log(database, name) {
                    return later.sorting.take_all(document);
                }
                match File::special(database, name) {
                    None => {}
                    Some(File::Users) if with_users => {
                        later.user(name, document);
                        return Ok(());
                    }
                    Some(_) => return Ok(()),
                }
                let unit = unit_in_archive(database, name);
                if !is_selected(selected, &unit) {
                    return Ok(());
                }
                let block = gathered.entry(unit.clone()).or_default();
                block.extend_from_slice(document);
                held += document.len();
                if block.len() >= BLOCK_BYTES {
                    held -= block.len();
                    full.push((unit, std::mem::take(block)));
                }
                Ok(())
            })?;
            if held > 2 * BLOCK_BYTES {
                full.extend(std::mem::take(&mut gathered));
                held = 0;
            }
            for (unit, block) in full.drain(..).filter(|(_, block)| !block.is_empty()) {
                self.block(writing, unit, block).await?;
            }
        }
        reader.finish()?;
        for (unit, block) in gathered.into_iter().filter(|(_, block)| !block.is_empty()) {
            self.block(writing, unit, block).await?;
        }
        Ok(())
    }

    /// A part of a file. Its indexes wait for the log.
    async fn block(
        &mut self,
        writing: &mut JoinSet<Result<Done>>,
        unit: Unit,
        block: Vec<u8>,
    ) -> Result<()> {
        let written = Written::Part(block.len() as u64);
        self.write(writing, unit, block.into(), written).await
    }

    /// The log, onto the collections that were restored.
    async fn replay(&mut self, mut sorting: Sorting) -> Result<()> {
        let units: Vec<(String, Unit)> = self
            .made
            .iter()
            .map(|(unit, made)| {
                let collection = if made.data_name().starts_with(BUCKETS) {
                    made.data_name()
                } else {
                    &made.name
                };
                (format!("{}.{collection}", name_of(&unit.0)), unit.clone())
            })
            .collect();
        for (ns, unit) in units {
            if let Some(why) = sorting.not_replayed(&ns) {
                self.fail(&unit, format!("`{ns}`: {why}"));
                continue;
            }
            let entries = sorting.entries_of(&ns);
            let Some(made) = self.made.get(&unit).filter(|_| !entries.is_empty()) else {
                continue;
            };
            let mut replay = Replay::new(self.target(made));
            let replayed = match replay.take(&entries).await {
                Ok(()) => replay.finish().await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = replayed {
                self.replay_failed(&unit, error)?;
            }
        }
        let left: Vec<String> = sorting.left().cloned().collect();
        for ns in left {
            let database = ns.split('.').next().unwrap_or_default();
            let is_ours = self
                .how
                .selected
                .iter()
                .any(|s| name_of(&s.group) == database);
            let is_made = self
                .made
                .values()
                .any(|made| format!("{database}.{}", made.name) == ns);
            if is_ours && !is_made && !ns.ends_with(".$cmd") && !ns.contains(".system.") {
                self.tally.failed.push(format!("`{ns}` was made while it was dumped: what the dump's log has of it is not restored"));
            }
        }
        Ok(())
    }

    /// Every document that was counted in the first pass must have had its answer.
    fn compare_documents(&mut self) {
        let missing: Vec<(Unit, u64)> = self
            .waits
            .iter()
            .filter(|(unit, waits)| {
                **waits > 0 && self.made.contains_key(*unit) && !self.broken.contains(*unit)
            })
            .map(|(unit, waits)| (unit.clone(), *waits))
            .collect();
        for (unit, waits) in missing {
            self.fail(
                &unit,
                format!(
                    "`{}/{}`: {waits} documents were not written",
                    unit.0, unit.1
                ),
            );
        }
    }
}

/// What comes after all documents.
#[derive(Default)]
struct Later {
    sorting: Sorting,
    users: Vec<Vec<u8>>,
    roles: Vec<Vec<u8>>,
}

impl Later {
    fn user(&mut self, collection: &str, document: &[u8]) {
        match collection {
            "system.users" => self.users.push(document.to_vec()),
            "system.roles" => self.roles.push(document.to_vec()),
            _ => {}
        }
    }

    fn users_of(&mut self, path: &str, body: &[u8]) -> Result<()> {
        let name = if path.contains("system.users") {
            "system.users"
        } else {
            "system.roles"
        };
        bson::documents(body).try_for_each(|document| {
            self.user(name, document?);
            Ok(())
        })
    }
}

/// A body as it comes, whatever its size.
enum Chunks {
    Whole(Option<bytes::Bytes>),
    Stream(bk_core::source::BodyStream),
}

impl Chunks {
    async fn next(&mut self) -> Result<Option<bytes::Bytes>> {
        match self {
            Self::Whole(bytes) => Ok(bytes.take()),
            Self::Stream(stream) => stream.next().await,
        }
    }
}

fn full_body(member: Member) -> Chunks {
    match member.body {
        Body::Whole(bytes) => Chunks::Whole(Some(bytes)),
        Body::Stream(stream) => Chunks::Stream(stream),
    }
}

/// A file of documents, in blocks of whole ones. What is no document, or a part of one, is an error.
struct DocumentFile {
    chunks: Chunks,
    buffer: Vec<u8>,
    /// Bytes of whole documents at the beginning of the buffer.
    whole: usize,
    /// Bytes of the file before the buffer.
    passed: u64,
    documents: u64,
}

impl DocumentFile {
    fn of(member: Member) -> Self {
        Self {
            chunks: full_body(member),
            buffer: Vec::new(),
            whole: 0,
            passed: 0,
            documents: 0,
        }
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let chunk = self.chunks.next().await?;
            let ended = chunk.is_none();
            self.buffer.extend_from_slice(&chunk.unwrap_or_default());
            self.look()?;
            if self.whole >= BLOCK_BYTES || ended && self.whole > 0 {
                let rest = self.buffer.split_off(self.whole);
                self.passed += self.whole as u64;
                self.whole = 0;
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
            if ended {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(self.damaged())
                };
            }
        }
    }

    /// Finds the end of the last whole document.
    fn look(&mut self) -> Result<()> {
        while let Some(first) = self.buffer.get(self.whole..self.whole + 4) {
            let len = i32::from_le_bytes([first[0], first[1], first[2], first[3]]);
            if !usize::try_from(len).is_ok_and(|len| (5..=LARGEST_BYTES).contains(&len)) {
                return Err(self.damaged());
            }
            let Some(document) = self.buffer.get(self.whole..self.whole + len as usize) else {
                return Ok(());
            };
            if bson::len_at(document).is_none() {
                return Err(self.damaged());
            }
            self.whole += len as usize;
            self.documents += 1;
        }
        Ok(())
    }

    fn damaged(&self) -> Error {
        Error::corrupt(format!(
            "what stands at byte {} is no document: the file is damaged or was cut off",
            self.passed + self.whole as u64
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_names() {
        let documents =
            |database: &str, name: &str| Some(File::Documents(database.into(), name.into()));
        for (path, file) in [
            ("app/big.bson", documents("app", "big")),
            ("data/mongodb_dump/app/big.bson.gz", documents("app", "big")),
            (
                "app/sla%2Fsh.metadata.json",
                Some(File::Metadata("app".into(), "sla%2Fsh".into())),
            ),
            ("admin/system.users.bson", Some(File::Users)),
            ("admin/system.version.bson", Some(File::LeftOut)),
            ("app/$admin.system.users.bson", Some(File::LeftOut)),
            ("prelude.json.gz", Some(File::LeftOut)),
            ("oplog.bson", Some(File::Log)),
            ("big.bson", None),
            ("app/readme.txt", None),
        ] {
            assert_eq!(File::of(path), file, "{path}");
        }
        assert_eq!(
            unit_of("app", "sla%2Fsh"),
            ("app".into(), "sla\\x2fsh".into())
        );
        assert_eq!(
            unit_of("app", "system.buckets.t"),
            ("app".into(), "t".into())
        );
    }
}
