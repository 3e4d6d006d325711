//! `bk extract --as mongodump` and `--as mongodump-archive`: an archive's databases as the official tools write them, for `mongorestore`.
//!
//! Parts of a collection are joined in the order in which they come, and what the log has of each collection becomes one log again.

use crate::mongodb::bson;
use crate::mongodb::catalogue::BUCKETS;
use crate::mongodb::metadata::{Kind, Metadata};
use crate::mongodb::names::{collection, file_name, is_cut, is_refused_by_mongorestore, name_of};
use crate::mongodb::restore::SERVER_GROUP;
use crate::mongodb::restore::archive_file::{Listed, Writer};
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use bk_core::context::Context;
use bk_core::error::{Error, Result, settings, unsupported};
use bk_core::name::MemberPath;
use bk_core::source::{Counting, ExtractAs, Input, Member, Meta, Stage, Tally};
use bk_core::tree::{Tree, TreeOptions, Writing};
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// A folder, and one stream.
pub const FORMS: [&str; 2] = ["mongodump", "mongodump-archive"];
/// Entries of the log are sorted in memory.
const LOG_MAX_BYTES: usize = 512 << 20;
const TOOL_VERSION: &str = concat!("bk-", env!("CARGO_PKG_VERSION"));

type Unit = (String, String);

/// Writes what is selected.
pub async fn extract(cx: &Context, mut input: Input, how: &ExtractAs) -> Result<Tally> {
    let (folder, file) = if how.form.as_str() == "mongodump" {
        (how.into.clone(), None)
    } else {
        let name = how
            .into
            .file_name()
            .ok_or_else(|| settings(format!("`{}` names no file", how.into.display())))?;
        let folder = how.into.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = folder.unwrap_or_else(|| std::path::Path::new("."));
        let name = std::os::unix::ffi::OsStrExt::as_bytes(name);
        (folder.to_path_buf(), Some(MemberPath::new(name)?))
    };
    let options = TreeOptions {
        existing: how.existing,
        keep_setuid: false,
        owners: false,
        outward_links: false,
        exact_attributes: false,
    };
    let facts = input.facts().clone();
    let version = facts.more["version"]
        .as_str()
        .unwrap_or("unknown")
        .to_owned();
    let mut tree = Tree::open(&folder, options, &bk_core::backup::draw_id()?)?;
    let mut out = match file {
        None => Out::Folder(Folder::default()),
        Some(path) => Out::Archive(Box::new(Archive {
            file: tree.begin(&path)?,
            writer: Writer::default(),
        })),
    };
    let done = Extracting::new(version, &facts.more["uuids"])
        .run(cx, &mut input, &mut tree, &mut out)
        .await;
    match (done, out) {
        (Ok(tally), Out::Folder(_)) => tree.sync().map(|()| tally),
        (Ok(tally), Out::Archive(archive)) => {
            tree.finish(archive.file, &file_meta())?;
            tree.sync().map(|()| tally)
        }
        (Err(error), out) => {
            out.discard();
            Err(error)
        }
    }
}

/// Where it goes.
enum Out {
    Folder(Folder),
    Archive(Box<Archive>),
}

/// Collections of several parts, which are open until the last one.
#[derive(Default)]
struct Folder {
    open: HashMap<String, Writing>,
}

struct Archive {
    file: Writing,
    writer: Writer,
}

impl Out {
    fn discard(self) {
        match self {
            Self::Folder(folder) => folder.open.values().for_each(Writing::discard),
            Self::Archive(archive) => archive.file.discard(),
        }
    }

    fn is_folder(&self) -> bool {
        matches!(self, Self::Folder(_))
    }
}

fn file_meta() -> Meta {
    Meta {
        mode: 0o600,
        ..Meta::default()
    }
}

struct Extracting {
    version: String,
    uuids: HashMap<String, [u8; 16]>,
    collections: BTreeMap<Unit, Metadata>,
    /// Collections whose documents came.
    filled: HashMap<Unit, u64>,
    log: Vec<(u64, Vec<u8>)>,
    log_bytes: usize,
    counts: Counting,
    tally: Tally,
}

impl Extracting {
    fn new(version: String, uuids: &Value) -> Self {
        let uuids = uuids
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(name, uuid)| {
                let bytes = BASE64_STANDARD_NO_PAD.decode(uuid.as_str()?).ok()?;
                Some((name.clone(), bytes.try_into().ok()?))
            });
        Self {
            version,
            uuids: uuids.collect(),
            collections: BTreeMap::new(),
            filled: HashMap::new(),
            log: Vec::new(),
            log_bytes: 0,
            counts: Counting::default(),
            tally: Tally::default(),
        }
    }

    async fn run(
        mut self,
        cx: &Context,
        input: &mut Input,
        tree: &mut Tree,
        out: &mut Out,
    ) -> Result<Tally> {
        self.schema(cx, input).await?;
        self.begin(cx, input, tree, out).await?;
        let members = input.stage(Stage::Data).await?;
        while let Some(member) = members.next().await? {
            cx.check_cancelled()?;
            self.documents(member, tree, out).await?;
        }
        let large = input.stage(Stage::Large).await?;
        while large.next().await?.is_some() {}
        let members = input.stage(Stage::Finish).await?;
        while let Some(member) = members.next().await? {
            cx.check_cancelled()?;
            self.finish(member, tree, out).await?;
        }
        self.end(tree, out)?;
        self.tally.units = self.counts.units();
        Ok(self.tally)
    }

    fn count(&mut self, unit: &Unit, stage: Stage, rows: u64, bytes: usize) {
        self.counts.member(unit, stage, rows, bytes as u64);
    }

    async fn schema(&mut self, cx: &Context, input: &mut Input) -> Result<()> {
        let members = input.stage(Stage::Schema).await?;
        let mut raw: HashMap<Unit, Bytes> = HashMap::new();
        while let Some(member) = members.next().await? {
            cx.check_cancelled()?;
            let (unit, path) = (member.unit.clone(), member.path.to_string());
            let body = member.bytes().await?;
            self.count(&unit, Stage::Schema, 0, body.len());
            if path.ends_with(".metadata.raw") {
                raw.insert(unit, body);
            } else if path.ends_with(".metadata.json") {
                let mut metadata = Metadata::parse(&body)?;
                if let Some(raw) = raw.remove(&unit) {
                    metadata.take_raw(&raw)?;
                    self.tally.warnings.push(format!(
                        "the options of `{}.{}` cannot be said in the form of mongodump; mongorestore will make others",
                        name_of(&unit.0),
                        name_of(&unit.1)
                    ));
                }
                self.collections.insert(unit, metadata);
            }
        }
        Ok(())
    }

    /// What stands before all documents.
    async fn begin(
        &mut self,
        cx: &Context,
        input: &Input,
        tree: &mut Tree,
        out: &mut Out,
    ) -> Result<()> {
        match out {
            Out::Folder(_) => {
                let prelude = json!({ "ServerVersion": self.version, "ToolVersion": TOOL_VERSION });
                write(tree, "prelude.json", prelude.to_string().as_bytes())?;
                for (unit, metadata) in &self.collections {
                    let (database, name) = (name_of(&unit.0), name_of(&unit.1));
                    let file = file_name(&name);
                    if is_refused_by_mongorestore(&file) {
                        self.tally.failed.push(format!(
                            "`{database}.{name}`: mongorestore refuses the whole folder for the name of its file; use --as mongodump-archive"
                        ));
                    }
                    let uuid = self.uuids.get(&format!("{database}/{name}"));
                    let text = metadata.json(uuid);
                    write(
                        tree,
                        &format!("{database}/{file}.metadata.json"),
                        text.as_bytes(),
                    )?;
                }
            }
            Out::Archive(archive) => {
                let users = self.users_ahead(cx, input).await?;
                let listed: Vec<Listed> = self
                    .collections
                    .iter()
                    .map(|(unit, metadata)| Listed {
                        database: name_of(&unit.0),
                        collection: name_of(&unit.1),
                        metadata: metadata.clone(),
                    })
                    .chain(users.iter().map(|(name, _)| Listed {
                        database: "admin".into(),
                        collection: name.clone(),
                        metadata: Metadata {
                            options: bson::EMPTY.to_vec(),
                            name: Some(name.clone()),
                            ..Metadata::default()
                        },
                    }))
                    .collect();
                let head = archive.writer.begin(&self.version, TOOL_VERSION, &listed);
                archive.file.write(&head)?;
                // The reader wants them before the first ordinary collection.
                for (name, body) in users {
                    archive.block("admin", &name, &body)?;
                }
            }
        }
        Ok(())
    }

    /// Users and roles, which stand at the end of the archive.
    async fn users_ahead(&self, cx: &Context, input: &Input) -> Result<Vec<(String, Bytes)>> {
        let members = input.look(Stage::Finish).await?;
        let mut users = Vec::new();
        while let Some(member) = members.next().await? {
            cx.check_cancelled()?;
            let path = member.path.to_string();
            let name = path
                .strip_prefix("admin/")
                .and_then(|file| file.strip_suffix(".bson"));
            if let Some(name) = name.filter(|_| member.unit.0 == SERVER_GROUP) {
                users.push((name.to_owned(), member.bytes().await?));
            }
        }
        Ok(users)
    }

    async fn documents(&mut self, member: Member, tree: &mut Tree, out: &mut Out) -> Result<()> {
        let (unit, path) = (member.unit.clone(), member.path.to_string());
        let body = member.bytes().await?;
        let count = bson::documents(&body).try_fold(0, |n, document| document.map(|_| n + 1))?;
        self.count(&unit, Stage::Data, count, body.len());
        *self.filled.entry(unit.clone()).or_default() += count;
        let Some(end) = path.rfind(".bson").map(|at| at + ".bson".len()) else {
            return Err(Error::corrupt(format!("`{path}` is no file of documents")));
        };
        match out {
            // Whole ones are done at once; of the others each part goes behind the one before.
            Out::Folder(_) if end == path.len() => write(tree, &path, &body),
            Out::Folder(folder) => {
                let whole = path[..end].to_owned();
                if !folder.open.contains_key(&whole) {
                    let file = tree.begin(&MemberPath::new(whole.as_bytes())?)?;
                    folder.open.insert(whole.clone(), file);
                }
                folder
                    .open
                    .get_mut(&whole)
                    .map_or(Ok(()), |file| file.write(&body))
            }
            Out::Archive(archive) => {
                let file = path[..end].rsplit('/').next().unwrap_or_default();
                let name = data_name(&unit, file.trim_end_matches(".bson"));
                archive.block(&name_of(&unit.0), &name, &body)
            }
        }
    }

    async fn finish(&mut self, member: Member, tree: &mut Tree, out: &mut Out) -> Result<()> {
        let (unit, path) = (member.unit.clone(), member.path.to_string());
        let body = member.bytes().await?;
        let count = bson::documents(&body).try_fold(0, |n, document| document.map(|_| n + 1))?;
        self.count(&unit, Stage::Finish, count, body.len());
        if unit.0 == SERVER_GROUP {
            if out.is_folder() {
                write(tree, &path, &body)?;
            }
            return Ok(());
        }
        self.log_bytes += body.len();
        if self.log_bytes > LOG_MAX_BYTES {
            return Err(unsupported(
                "the archive's log has more than 512 MiB of entries: it cannot be sorted in memory",
            )
            .hint("restore the archive with bk, or extract single collections with --only"));
        }
        for entry in bson::documents(&body) {
            let entry = entry?;
            let at = bson::find(entry, b"ts")
                .and_then(|ts| ts.timestamp())
                .unwrap_or(0);
            self.log.push((at, entry.to_vec()));
        }
        Ok(())
    }

    fn end(&mut self, tree: &mut Tree, out: &mut Out) -> Result<()> {
        // In the order of time; what one transaction wrote into a collection keeps its own.
        self.log.sort_by_key(|(at, _)| *at);
        let log: Vec<u8> = self.log.drain(..).flat_map(|(_, entry)| entry).collect();
        match out {
            Out::Folder(folder) => {
                for (_, file) in folder.open.drain() {
                    tree.finish(file, &file_meta())?;
                }
                for (unit, metadata) in &self.collections {
                    if metadata.kind != Kind::View && !self.filled.contains_key(unit) {
                        write(
                            tree,
                            &format!("{}/{}.bson", name_of(&unit.0), file_name(&name_of(&unit.1))),
                            &[],
                        )?;
                    }
                }
                if !log.is_empty() {
                    write(tree, "oplog.bson", &log)?;
                }
                Ok(())
            }
            Out::Archive(archive) => {
                let ends = archive.writer.end();
                archive.file.write(&ends)?;
                // Seeing it ends the collections for the reader.
                if !log.is_empty() {
                    archive.block("", "oplog", &log)?;
                    let ends = archive.writer.end();
                    archive.file.write(&ends)?;
                }
                Ok(())
            }
        }
    }
}

impl Archive {
    fn block(&mut self, database: &str, name: &str, documents: &[u8]) -> Result<()> {
        let (before, after) = self.writer.block(database, name, documents);
        self.file.write(&before)?;
        self.file.write(documents)?;
        self.file.write(&after)
    }
}

/// The collection that holds a unit's documents: its own, or that of its buckets.
fn data_name(unit: &Unit, file: &str) -> String {
    let name = name_of(&unit.1);
    let in_file = if is_cut(file) { None } else { collection(file) };
    match in_file {
        Some(in_file) if in_file == format!("{BUCKETS}{name}") => in_file,
        _ => name,
    }
}

fn write(tree: &mut Tree, path: &str, body: &[u8]) -> Result<()> {
    let mut file = tree.begin(&MemberPath::new(path.as_bytes())?)?;
    if let Err(error) = file.write(body) {
        file.discard();
        return Err(error);
    }
    tree.finish(file, &file_meta()).map(drop)
}
