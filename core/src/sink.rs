//! Where archives lie: the contract of a sink.
//!
//! A sink stores whole archives under names and gives them back by range. What it published is never renamed or overwritten. It knows
//! nothing of what is inside; the engine reads manifests, decides what to keep and takes the locks.

use crate::context::Context;
use crate::error::{Result, unsupported};
use crate::name::ArchiveName;
pub use crate::source::Health;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::ops::Range;

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

    /// Everything that looks like an archive: every page, every version, in no order.
    async fn list(&self, cx: &Context, filter: &Filter) -> Result<Vec<Stored>>;

    /// The bytes of this range of this very version. Without the ability `ranges`, all of it whatever the range says.
    async fn read(&self, cx: &Context, which: &Stored, range: Range<u64>) -> Result<ByteStream>;

    /// Text of the sum file beside it, or nothing. A hint: it may be lost, or another archive's.
    async fn sums(&self, cx: &Context, which: &Stored) -> Result<Option<String>>;

    /// Removes this version for good, with its sums.
    async fn delete(&self, cx: &Context, which: &Stored) -> Result<()>;

    /// The same archive under another name, without sending it again. `Unsupported`: the engine streams it.
    async fn place(&self, _cx: &Context, _which: &Stored, _to: &ArchiveName) -> Result<Stored> {
        Err(unsupported(
            "this sink cannot place an archive under a second name",
        ))
    }

    /// A small text that the engine keeps beside the archives, or nothing.
    async fn note(&self, cx: &Context, name: &NoteName) -> Result<Option<Note>>;

    /// Writes a note of at most 1 MiB. `Conflict` when `was` is not what is there.
    async fn set_note(&self, cx: &Context, name: &NoteName, body: Bytes, was: Was) -> Result<()>;
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

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// File names that begin so; empty: all that look like archives.
    pub prefix: String,
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
