//! Frames ↔ messages of the plugin protocol. What each means and in which order they come stands in `core/PROTOCOL.md`.

use super::frame::{FRAME_MAX_BYTES, Frame};
use crate::archive::writer::hex;
use crate::error::{Error, ErrorKind, Result, plugin};
use crate::layout::Tier;
use crate::name::{ArchiveName, MemberPath};
use crate::sink::{Seal, Stored};
use crate::source::{Existing, Facts, Health, Kind, Meta, Stage};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The longest facts: what is per unit belongs into an entry.
pub const FACTS_MAX_BYTES: usize = 64 << 10;
/// Versions of the protocol that this host speaks.
pub const PROTOCOLS: [u32; 1] = [1];

/// One message, in either direction. Unknown ones are passed over, unknown fields too.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// Plugin: who it is. Its first message.
    Hello(Hello),
    /// Host: what to do. Its first message.
    Open(Box<Open>),
    /// Plugin, of `backup`: the point in time is fixed.
    Snapshot(SnapshotSaid),
    /// A member begins: of the plugin's in `backup`, of the host's in `restore`.
    Entry(Box<Entry>),
    /// It is complete.
    End(End),
    /// Plugin, of `backup`: the unit that is open, or the one named, cannot be backed up whole; of `restore`: the entry just ended was not written.
    Failed(Failed),
    /// Plugin, of `restore`: the entry just ended is written.
    Ok(Acknowledged),
    /// Host, of `restore`: that was all.
    Finish,
    /// Plugin, of `list` and `note_list`: one of many.
    Item(Item),
    /// Host, of `put`: make it visible.
    Publish(Box<Publish>),
    /// Host: stop, tidily and soon.
    Cancel,
    /// Plugin: all is well. Its last message.
    Done(Box<Done>),
    /// Plugin: it cannot be done. Its last message.
    Error(Said),
    /// Plugin: words for the log.
    Log(Log),
    /// Plugin: it is alive, and so far.
    Progress(Progress),
    /// A message of a later time.
    #[serde(other)]
    Unknown,
}

/// `hello`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Hello {
    /// Versions of the protocol that it speaks.
    pub protocol: Vec<u32>,
    /// Its name, that of its manifest.
    pub name: String,
    /// Its version, that of its manifest.
    pub version: String,
    /// `source`, `sink`.
    #[serde(default)]
    pub roles: Vec<String>,
    /// What it can do beyond this version. None is defined yet.
    #[serde(default)]
    pub features: Vec<String>,
}

/// What a process is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Could it be done: reads only.
    Check,
    /// Source.
    Backup,
    /// Source.
    Restore,
    /// Sink: a new archive.
    Put,
    /// Sink: all archives.
    List,
    /// Sink: bytes of one.
    Get,
    /// Sink: the text of its sum file.
    Sums,
    /// Sink.
    Delete,
    /// Sink: the text of a note.
    NoteGet,
    /// Sink.
    NoteSet,
    /// Sink.
    NoteList,
    /// Sink.
    NoteRemove,
    /// Kit: fill what is backed up, with the same things each time.
    TestSeed,
    /// Kit: empty it.
    TestWipe,
    /// Kit: say what is there.
    TestDigest,
    /// Kit: add a unit that no archive has.
    TestStranger,
}

/// `open`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Open {
    /// The version of the protocol that both go by.
    pub protocol: u32,
    /// What to do.
    pub op: Op,
    /// Name of the instance in the settings.
    pub instance: String,
    /// Whose archives these are.
    pub site: String,
    /// The instance's settings, secrets among them.
    pub settings: Value,
    /// What the host can do beyond this version. None is defined yet.
    #[serde(default)]
    pub features: Vec<String>,
    /// Of `restore`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreAsk>,
    /// Of `get`, `sums` and `delete`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub which: Option<Stored>,
    /// Of `get`: from this byte.
    #[serde(default)]
    pub from: u64,
    /// Of `get`: up to this byte, which is not read any more.
    #[serde(default)]
    pub to: u64,
    /// Of `list`: names that begin so. Of `note_list`: names of notes that begin so.
    #[serde(default)]
    pub prefix: String,
    /// Of `put`: what the archive is called by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveAsk>,
    /// Of `note_get`, `note_set` and `note_remove`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<NoteAsk>,
    /// Of `test_stranger`: the group to add to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// What an archive is called by, in parts: for sinks that fix a name before the first byte. Others take the names of `publish`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArchiveAsk {
    /// `backup`.
    pub prefix: String,
    /// Start of the run.
    pub start: Timestamp,
    /// `2026-08-22`.
    pub day: String,
    /// `.tar.xz`, and what an envelope adds.
    pub suffix: String,
    /// The archive's id.
    pub id: String,
}

impl From<&ArchiveName> for ArchiveAsk {
    fn from(name: &ArchiveName) -> Self {
        Self {
            prefix: name.prefix.clone(),
            start: name.start,
            day: name.day.clone(),
            suffix: name.suffix.clone(),
            id: name.id.clone(),
        }
    }
}

impl From<&ArchiveAsk> for ArchiveName {
    fn from(asked: &ArchiveAsk) -> Self {
        Self {
            prefix: asked.prefix.clone(),
            start: asked.start,
            day: asked.day.clone(),
            suffix: asked.suffix.clone(),
            id: asked.id.clone(),
            tier: Tier::default(),
        }
    }
}

/// How to restore.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RestoreAsk {
    /// What to do with things that are there; nothing: the source's own default.
    pub existing: Option<Existing>,
    /// Groups that are selected whole; `replace` removes from these what is not in the archive.
    #[serde(default)]
    pub whole_groups: Vec<String>,
    /// New names of groups, old to new.
    #[serde(default)]
    pub into_group: Vec<(String, String)>,
    /// Another place altogether.
    pub into_place: Option<String>,
    /// What `done` said when it was backed up.
    pub facts: Facts,
    /// The archive that it comes from.
    pub archive: String,
    /// Names this restore.
    pub id: String,
    /// Write nothing but forget an unfinished restore.
    #[serde(default)]
    pub forget_unfinished: bool,
}

/// `snapshot`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SnapshotSaid {
    /// The instant; without it, when the host read this.
    pub instant: Option<Timestamp>,
    /// `snapshot`: all as it was at this instant; `none`, the default: each thing as it was when it was read.
    pub consistency: Option<String>,
    /// Where a log stands.
    pub position: Option<String>,
}

/// `entry`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Path inside the instance: relative, `/`, no `..`.
    pub path: String,
    /// What holds its unit.
    #[serde(default = "dot")]
    pub group: String,
    /// The smallest thing that a person can select. All entries of a unit come one behind the other.
    #[serde(default = "dot")]
    pub unit: String,
    /// When it comes, and when it is restored. Entries come in the order schema, data, finish, large.
    #[serde(default = "data")]
    pub stage: Stage,
    /// Bytes of the body, where they are known. Over 16 MiB, or unknown and maybe more: only in stage `large`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub len: Option<u64>,
    /// `file`, `directory`, `symlink`.
    #[serde(default)]
    pub kind: EntryKind,
    /// Of a symbolic link: where it leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Permission bits.
    #[serde(default = "private")]
    pub mode: u32,
    /// Seconds since 1970 of the data's own last change; 0 where it has none.
    #[serde(default)]
    pub mtime: i64,
}

fn dot() -> String {
    ".".into()
}

fn data() -> Stage {
    Stage::Data
}

fn private() -> u32 {
    0o600
}

/// What an entry is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// Bytes.
    #[default]
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
}

/// `end`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct End {
    /// Bytes of the body.
    pub len: u64,
    /// `sha256:…` or `blake3:…` of the body, hexadecimal.
    pub sum: String,
    /// Rows, documents, things in it: what a restore must count again.
    #[serde(default)]
    pub rows: u64,
}

/// `failed`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Failed {
    /// Group, of `backup`; without it the unit that is open.
    #[serde(default)]
    pub group: Option<String>,
    /// Unit.
    #[serde(default)]
    pub unit: Option<String>,
    /// Why.
    pub message: String,
}

/// `ok`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Acknowledged {
    /// Rows, documents, things that the target acknowledged.
    #[serde(default)]
    pub rows: u64,
}

/// `item`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Item {
    /// Of `list`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<Stored>,
    /// Of `note_list`: a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Of `note_list`: when it was written, by the sink's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<Timestamp>,
}

/// `publish`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Publish {
    /// Names in the order in which to try them: the first that is free.
    pub names: Vec<String>,
    /// SHA-256 of all bytes, hexadecimal.
    pub sha256: String,
    /// All bytes.
    pub bytes: u64,
    /// The archive's id.
    pub id: String,
    /// Whose it is.
    pub site: String,
    /// Whether nothing named is missing in it.
    pub complete: bool,
    /// Text of the sum file, with `{name}` for the name that was free.
    pub sums: String,
}

impl Publish {
    /// What `publish` is told.
    pub fn new(names: Vec<String>, seal: &Seal) -> Self {
        Self {
            names,
            sha256: seal.sha256.clone(),
            bytes: seal.bytes,
            id: seal.id.clone(),
            site: seal.site.clone(),
            complete: seal.complete,
            sums: seal.sum_file("{name}"),
        }
    }
}

/// Which note, and what it must be for a change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NoteAsk {
    /// Its name inside its site.
    pub name: String,
    /// `any`, `absent`, `same`.
    #[serde(default)]
    pub was: String,
    /// Of `same`: what it must be.
    #[serde(default)]
    pub etag: String,
}

/// `done`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// Of `check`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Of `backup`: what its restore must know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Facts>,
    /// Of `restore`: things that were there, are not in the archive, and were kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<String>,
    /// Things that need a look.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Of `put`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<Stored>,
    /// Of `sums` and `note_get`: whether there is one.
    #[serde(default)]
    pub found: bool,
    /// Of `note_get`: what it is now.
    #[serde(default)]
    pub etag: String,
    /// Of `test_digest`: group, unit, and words that are equal where the content is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub digest: Vec<(String, String, String)>,
}

/// `error`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Said {
    /// One of the kinds of the contract, `settings`, `auth`, `unreachable`, …; another is `plugin`.
    #[serde(default)]
    pub kind: String,
    /// What happened.
    pub message: String,
    /// What its library said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What to type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl From<Said> for Error {
    fn from(said: Said) -> Self {
        // A plugin cannot say that an operator stopped the run, or that this program is at fault.
        let kind = serde_json::from_value(Value::String(said.kind))
            .ok()
            .filter(|kind| !matches!(kind, ErrorKind::Cancelled | ErrorKind::Bug))
            .unwrap_or(ErrorKind::Plugin);
        let mut error = Self::new(kind, said.message);
        error.hint = said.hint;
        match said.cause {
            Some(cause) => error.because(cause),
            None => error,
        }
    }
}

impl From<&Error> for Said {
    fn from(error: &Error) -> Self {
        let kind = serde_json::to_value(error.kind).ok();
        Self {
            kind: kind
                .as_ref()
                .and_then(Value::as_str)
                .unwrap_or_default()
                .into(),
            message: error.what.clone(),
            cause: error.source.as_ref().map(ToString::to_string),
            hint: error.hint.clone(),
        }
    }
}

/// `log`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`.
    #[serde(default)]
    pub level: String,
    /// The words.
    #[serde(default)]
    pub message: String,
}

/// `progress`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes of the whole, where that is known.
    #[serde(default)]
    pub total: Option<u64>,
}

impl Message {
    /// The message of a frame's body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        serde_json::from_slice(body).map_err(|e| {
            let begin = body[..body.len().min(80)].escape_ascii();
            plugin(format!(
                "it sent a message that is none: {e}; it begins `{begin}`"
            ))
            .because(e)
        })
    }

    /// The message as a frame.
    pub fn frame(&self) -> Result<Frame> {
        let body = serde_json::to_vec(self).map_err(|e| plugin(e.to_string()).because(e))?;
        if body.len() > FRAME_MAX_BYTES {
            return Err(plugin(format!(
                "a message of {} bytes is longer than {FRAME_MAX_BYTES}",
                body.len()
            )));
        }
        Ok(Frame::Message(body.into()))
    }
}

impl Entry {
    /// As a member of an archive. An error names what no member may be.
    pub fn member(&self) -> Result<(MemberPath, Meta)> {
        let path = MemberPath::new(self.path.as_bytes())
            .map_err(|error| plugin(format!("it sent the entry `{}`: {error}", self.path)))?;
        let kind = match (self.kind, &self.link) {
            (EntryKind::File, _) => Kind::File,
            (EntryKind::Directory, _) => Kind::Directory,
            (EntryKind::Symlink, Some(link)) => Kind::Symlink(link.clone().into_bytes()),
            (EntryKind::Symlink, None) => {
                return Err(plugin(format!("the link `{}` leads nowhere", self.path)));
            }
        };
        let meta = Meta {
            kind,
            mode: self.mode & 0o7777,
            mtime: (self.mtime, 0),
            ..Meta::default()
        };
        Ok((path, meta))
    }

    /// The entry of a member that this plugin wrote. An error: it is none that a plugin can write.
    pub fn of(
        (group, unit): (&str, &str),
        (path, meta): (&MemberPath, &Meta),
        stage: Stage,
        len: Option<u64>,
    ) -> Result<Self> {
        let strange = || plugin(format!("`{path}` is no entry that a plugin can write"));
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| strange());
        let (kind, link) = match &meta.kind {
            Kind::File => (EntryKind::File, None),
            Kind::Directory => (EntryKind::Directory, None),
            Kind::Symlink(target) => (EntryKind::Symlink, Some(text(target)?)),
            Kind::Hardlink(_) | Kind::Other(_) => return Err(strange()),
        };
        Ok(Self {
            path: text(path.as_bytes())?,
            group: group.to_owned(),
            unit: unit.to_owned(),
            stage,
            len,
            kind,
            link,
            mode: meta.mode,
            mtime: meta.mtime.0,
        })
    }
}

/// The sum of a body as it goes by.
pub struct Sums {
    len: u64,
    sum: Sum,
}

enum Sum {
    Sha256(sha2::Sha256),
    Blake3(Box<blake3::Hasher>),
}

/// The feature of a plugin whose sums are BLAKE3, which is quicker. Without it they are SHA-256, which every language has.
pub const BLAKE3: &str = "blake3";

impl Sums {
    /// With the sum that a plugin of these features says and takes.
    pub fn of(features: &[String]) -> Self {
        use sha2::Digest;
        let sum = if features.iter().any(|feature| feature == BLAKE3) {
            Sum::Blake3(Box::default())
        } else {
            Sum::Sha256(sha2::Sha256::new())
        };
        Self { len: 0, sum }
    }

    /// More of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        use sha2::Digest;
        self.len += bytes.len() as u64;
        match &mut self.sum {
            Sum::Sha256(sum) => sum.update(bytes),
            Sum::Blake3(sum) => {
                sum.update(bytes);
            }
        }
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// What `end` says.
    pub fn end(self, rows: u64) -> End {
        use sha2::Digest;
        let sum = match self.sum {
            Sum::Blake3(sum) => format!("blake3:{}", sum.finalize().to_hex()),
            Sum::Sha256(sum) => format!("sha256:{}", hex(&sum.finalize())),
        };
        End {
            len: self.len,
            sum,
            rows,
        }
    }

    /// Whether what came is what the other side says it sent.
    pub fn compare(self, path: &str, said: &End) -> Result<()> {
        let came = self.end(said.rows);
        if came.len != said.len {
            return Err(plugin(format!(
                "`{path}`: {} bytes came, its end says {}",
                came.len, said.len
            )));
        }
        let kind = |sum: &str| sum.split(':').next().unwrap_or_default().to_owned();
        if kind(&came.sum) != kind(&said.sum) {
            return Err(plugin(format!(
                "`{path}`: its end has the sum `{}`; {}:… is expected",
                said.sum,
                kind(&came.sum)
            )));
        }
        if !came.sum.eq_ignore_ascii_case(&said.sum) {
            return Err(plugin(format!(
                "`{path}`: what came has another sum than its end says"
            )));
        }
        Ok(())
    }
}
