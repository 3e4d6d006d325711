//! Where archives lie: the contract of a sink.
//!
//! A sink stores whole archives under names and gives them back by range. What it published is never renamed or overwritten. It knows
//! nothing of what is inside; the engine reads manifests, decides what to keep and takes the locks.

mod read_only;

use crate::context::Context;
use crate::error::{Result, unsupported};
use crate::layout::Layout;
use crate::name::ArchiveName;
pub use crate::source::Health;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
pub use read_only::ReadOnly;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// Bytes as they come.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// A place for archives.
#[async_trait]
pub trait Sink: Send + Sync {
    /// What it can do.
    fn abilities(&self) -> Abilities;

    /// Reads only, takes seconds: reachable, writable as far as that can be told, room left.
    async fn check(&self, cx: &Context) -> Result<Health>;

    /// Begins an archive. Nothing is visible under any archive's name before `publish`.
    async fn create(
        &self,
        cx: &Context,
        name: &ArchiveName,
        hint: SizeHint,
    ) -> Result<Box<dyn Upload>>;

    /// Begins an archive that comes from elsewhere and may break off: what an earlier attempt for the same `origin` left is found again, and what
    /// was left for any other is removed. `Locked` while another run writes it. `Unsupported` where parts cannot be read back.
    async fn resume(
        &self,
        _cx: &Context,
        _name: &ArchiveName,
        _hint: SizeHint,
        _origin: &str,
    ) -> Result<Box<dyn Resumed>> {
        Err(unsupported("this sink keeps no archive that broke off"))
    }

    /// In which folders new archives lie.
    fn layout(&self) -> Layout {
        Layout::Flat
    }

    /// Where it lies, when that is a folder of this machine: runs that must be alone there lock it.
    fn folder(&self) -> Option<&Path> {
        None
    }

    /// Everything that looks like an archive (`looks_like_an_archive`): every page, every version, in no order. With `Care::Delete` the sink
    /// proves as far as it can that nothing is left out, and fails with `Conflict` where the listing looks cut.
    async fn list(&self, cx: &Context, filter: &Filter) -> Result<Vec<Stored>>;

    /// The bytes of this range of this very version. Without the ability `ranges`, all of it whatever the range says.
    async fn read(&self, cx: &Context, which: &Stored, range: Range<u64>) -> Result<ByteStream>;

    /// Text of the sum file beside it, or nothing. A hint: it may be lost, or another archive's.
    async fn sums(&self, cx: &Context, which: &Stored) -> Result<Option<String>>;

    /// The MD5 that the maker of a foreign thing wrote beside it, where the sink keeps such.
    async fn md5(&self, _cx: &Context, _which: &Stored) -> Result<Option<[u8; 16]>> {
        Ok(None)
    }

    /// Removes this version for good, with its sums.
    async fn delete(&self, cx: &Context, which: &Stored) -> Result<()>;

    /// The same archive under another name, without sending it again. `Unsupported`: the engine streams it.
    async fn place(&self, _cx: &Context, _which: &Stored, _to: &ArchiveName) -> Result<Stored> {
        Err(unsupported(
            "this sink cannot place an archive under a second name",
        ))
    }

    /// The least rights that a backup needs here, as its operator would write them down; nothing where rights are no matter of the sink.
    async fn policy(&self, _cx: &Context) -> Result<Option<String>> {
        Ok(None)
    }

    /// Where a copy lies, in words that another sink of the same store understands; nothing when only its bytes can be had.
    async fn origin(&self, _cx: &Context, _which: &Stored) -> Result<Option<Origin>> {
        Ok(None)
    }

    /// Takes over an archive that another sink of the same store has, without sending it. `Unsupported` or `Denied`: the engine streams it.
    async fn take_over(&self, _cx: &Context, _from: &Origin, _to: &ArchiveName) -> Result<Stored> {
        Err(unsupported("this sink takes nothing over"))
    }

    /// A small text that the engine keeps beside the archives, or nothing.
    async fn note(&self, cx: &Context, name: &NoteName) -> Result<Option<Note>>;

    /// Writes a note of at most 1 MiB. `Conflict` when `was` is not what is there. Where conditions are not atomic two writers may both
    /// succeed: notes are hints, and nothing is deleted on the word of one.
    async fn set_note(&self, cx: &Context, name: &NoteName, body: Bytes, was: Was) -> Result<()>;

    /// The notes of a site whose name begins so, with the sink's own clock.
    async fn notes(&self, cx: &Context, site: &str, prefix: &str) -> Result<Vec<NoteSeen>>;

    /// Removes a note; one that is not there is no error.
    async fn remove_note(&self, cx: &Context, name: &NoteName) -> Result<()>;

    /// Told after each pruning for how long each archive is wanted, so that the sink's own expiry can take over if nobody prunes any more.
    /// Returns what it did, for the report.
    async fn settle(&self, _cx: &Context, _all: &[(Stored, Wanted)]) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Frees one archive from the sink's own expiry at once: it was pinned.
    async fn never_expire(&self, _cx: &Context, _which: &Stored) -> Result<()> {
        Ok(())
    }

    /// What will become of the archives without anybody's doing, and what of that is wrong: for `bk check`. `newest` is the newest whole one.
    async fn outlook(&self, _cx: &Context, _newest: Option<&Stored>) -> Result<Outlook> {
        Ok(Outlook::default())
    }
}

/// Whether a file of this name is listed as an archive.
pub fn looks_like_an_archive(name: &str) -> bool {
    !name.starts_with('.')
        && !name.ends_with(".sha256")
        && [".tar", ".tgz", ".txz"]
            .iter()
            .any(|word| name.contains(word))
}

/// An archive on its way.
#[async_trait]
pub trait Upload: Send {
    /// Takes the next bytes. Retries inside an upload are the sink's own.
    async fn write(&mut self, chunk: Bytes) -> Result<()>;

    /// Makes it visible whole, or not at all, under the first free of `name`'s candidates. Called once.
    async fn publish(self: Box<Self>, name: &ArchiveName, seal: &Seal) -> Result<Stored>;

    /// Leaves nothing behind.
    async fn abort(self: Box<Self>) -> Result<()>;
}

/// An archive on its way that may break off and go on later.
#[async_trait]
pub trait Resumed: Upload {
    /// Bytes that an earlier attempt left. Nobody has compared them yet.
    fn left(&self) -> u64;

    /// Some of them.
    async fn left_bytes(&self, range: Range<u64>) -> Result<Bytes>;

    /// Goes on behind the first `bytes` of them; the rest is forgotten. Called once, before `write`.
    async fn go_on(&mut self, bytes: u64) -> Result<()>;

    /// Leaves what was written for a later attempt.
    async fn pause(self: Box<Self>) -> Result<()>;
}

/// What a sink can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Keeps several versions of one name.
    pub versions: bool,
    /// Reads from any place.
    pub ranges: bool,
    /// Can give a partial archive a name of its own at publish.
    pub rename: bool,
    /// Can place an archive under a second name.
    pub place: bool,
    /// Several places of an archive share their bytes, and those that do have one etag.
    pub links: bool,
    /// Can tag archives.
    pub tags: bool,
    /// Claims a name atomically.
    pub exclusive_create: bool,
    /// Proves what it stored by a sum of its own.
    pub proof: bool,
}

/// How large the archive may become: the newest one's size, when there is one.
#[derive(Clone, Copy, Debug, Default)]
pub struct SizeHint {
    /// Bytes of the newest archive of this site here.
    pub previous_bytes: Option<u64>,
}

/// What `publish` is told of the finished archive.
#[derive(Clone, Debug)]
pub struct Seal {
    /// SHA-256 of the stored bytes, hexadecimal.
    pub sha256: String,
    /// Stored bytes.
    pub bytes: u64,
    /// The archive's id.
    pub id: String,
    /// Its site.
    pub site: String,
    /// Whether something named is missing: it is then published as `.partial`.
    pub complete: bool,
}

impl Seal {
    /// Text of the sum file beside the archive: `sha256sum -c` skips the first line.
    pub fn sum_file(&self, file_name: &str) -> String {
        format!(
            "# id {} site {}\n{}  {file_name}\n",
            self.id, self.site, self.sha256
        )
    }
}

/// The text of a sum file as it stands beside the same archive under another file name.
pub fn sums_under(text: &str, was: &str, name: &str) -> String {
    text.replace(&format!("  {was}\n"), &format!("  {name}\n"))
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// File names that begin so; empty: all that look like archives.
    pub prefix: String,
    /// What the list is for.
    pub care: Care,
}

/// What a list is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Care {
    /// To look.
    #[default]
    Look,
    /// To decide what is deleted: a list that leaves something out must fail.
    Delete,
}

/// For how long an archive is wanted, by the longest rule that keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lifetime {
    /// `hourly`, `daily`, `weekly`, `monthly`, `yearly`.
    pub rule: &'static str,
    /// Days that the rule's periods span.
    pub days: u32,
}

/// What retention says of one archive to the sink's own expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It must not expire by itself.
    Always,
    /// It may expire when this has passed and nobody has pruned since.
    For(Lifetime),
    /// It is let go; as long as it lies there nothing changes.
    NoMore,
}

/// What expires by itself.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outlook {
    /// A line for each archive that will go.
    pub lines: Vec<String>,
    /// What an operator must change.
    pub warnings: Vec<String>,
}

/// One stored copy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stored {
    /// Name in the sink, with `/` where it has folders.
    pub name: String,
    /// The sink's word for this copy; empty where it keeps one copy of a name.
    pub version: String,
    /// Bytes.
    pub bytes: u64,
    /// When it was last changed, by the sink's clock.
    pub modified: Timestamp,
    /// Changes when the content does.
    pub etag: String,
    /// What a person must know of this copy: hidden by a delete marker, frozen, not of this program's folder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

impl Stored {
    /// The same copy without what is only said of it: what it was yesterday and is today agree in this.
    #[must_use]
    pub fn bare(&self) -> Self {
        Self {
            remarks: Vec::new(),
            ..self.clone()
        }
    }
}

/// Where a copy lies inside a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The store: sinks with another one do not understand the rest.
    pub store: String,
    /// The bucket or container in it.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// The copy.
    pub which: Stored,
}

/// A note in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteSeen {
    /// Its name.
    pub name: NoteName,
    /// When it was written, by the sink's clock.
    pub modified: Timestamp,
}

/// Name of a note: `<site>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NoteName {
    /// Whose note it is.
    pub site: String,
    /// Its name: letters, digits, `-`, `.`.
    pub name: String,
}

/// A note's text, and what it is now.
#[derive(Clone, Debug)]
pub struct Note {
    /// The text.
    pub body: Bytes,
    /// For `Was::Same`.
    pub etag: String,
}

/// What a note must be for a change to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Was {
    /// Whatever it is.
    Any,
    /// Not there.
    Absent,
    /// This one.
    Same(String),
}
