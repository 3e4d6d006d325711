//! What is backed up: the contract of a source.
//!
//! A source is asked `check` (reads only), `snapshot` (fixes a point in time and returns), then the snapshot is written stage by stage and
//! closed, whatever happened. `restore` gets the members back in the same stages and says, unit by unit, what the target acknowledged.
//! Retries of whole steps, progress, hashing, compression, naming and memory belong to the engine, never to a source.

pub use crate::archive::format::Stage;
pub use crate::archive::lane::{Counted, Lane, Output, Reader};
pub use crate::archive::memory::Reserved;
pub use crate::archive::piped::Pipe;
pub use crate::archive::tar::{Kind, Meta};
use crate::context::Context;
use crate::error::{Result, unsupported};
use crate::name::MemberPath;
pub use crate::restore::input::{Body, BodyStream, Counting, Input, Member, Members, UnitCount};
use crate::selector::Selection;
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Something that can be backed up and put back.
#[async_trait]
pub trait Source: Send + Sync {
    /// Reads only, takes seconds. Could a backup and a restore start now: reachable, version, every grant, who is it?
    async fn check(&self, cx: &Context) -> Result<Health>;

    /// Fixes the point in time and returns at once; reading comes later. May run again after it failed.
    async fn snapshot(&self, cx: &Context, how: &SnapshotOptions) -> Result<Box<dyn Snapshot>>;

    /// Puts members back, stage by stage, and counts what the target acknowledged. May run twice with the same input.
    async fn restore(&self, cx: &Context, input: Input, how: &RestoreOptions) -> Result<Tally>;

    /// What a restore would do to each thing, in lines for people. Asks the target, and changes nothing there. Most sources have no more to say than
    /// the plan.
    async fn preview(
        &self,
        _cx: &Context,
        _input: Input,
        _how: &RestoreOptions,
    ) -> Result<Preview> {
        Ok(Preview::default())
    }

    /// What a backup would take now, and what would be in the way of a restore, in lines for people: `bk check` prints them.
    async fn outlook(&self, _cx: &Context) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Whether other sources may live in what this one restores: those may name it in `after`.
    fn can_hold(&self) -> bool {
        false
    }

    /// Lets go what `restore` held back for others (`RestoreOptions::hold`), and what a run that was killed holds still. Says what it did.
    async fn release(&self, _cx: &Context, _how: &ReleaseOptions) -> Result<Released> {
        Ok(Released::default())
    }

    /// Where a standby site remembers, in the target itself, which archive it has; nothing where a source has no such place.
    fn memory(&self) -> Option<&dyn Memory> {
        None
    }

    /// Forms of other tools in which members can be written, by name: for `bk extract --as`.
    fn forms(&self) -> &'static [&'static str] {
        &[]
    }

    /// Writes what is selected in one of these forms, for those tools to read. Touches nothing but `how.into`.
    async fn extract_as(&self, _cx: &Context, _input: Input, how: &ExtractAs) -> Result<Tally> {
        Err(unsupported(format!("the form `{}` is not known", how.form)))
    }

    /// Reads what it claimed of a thing that `bk` did not make as a restore would, and touches no server. An error is damage; what it returns is
    /// not whole.
    async fn examine(&self, _cx: &Context, mut input: Input) -> Result<Vec<String>> {
        for stage in Stage::ALL {
            let members = input.stage(stage).await?;
            while let Some(member) = members.next().await? {
                let mut body = member.body;
                while body.next().await?.is_some() {}
            }
        }
        Ok(Vec::new())
    }

    /// Things that `bk` did not make: is this member, lone file or folder entry mine, in which stages, what units?
    fn claim(&self, _what: &Candidate) -> Vec<Claim> {
        Vec::new()
    }

    /// The most bytes, as they stand, that such a thing of this source's can have. A longer one is refused before it is read. Nothing: any.
    fn most_bytes(&self, _what: &Candidate) -> Option<u64> {
        None
    }
}

/// A place in a target where a standby site remembers what it has.
#[async_trait]
pub trait Memory: Send + Sync {
    /// What was written there last.
    async fn read(&self, cx: &Context) -> Result<Option<String>>;

    /// Remembers it.
    async fn write(&self, cx: &Context, text: &str) -> Result<()>;

    /// What becomes another when a group is made anew, by group; nothing for one that is not there.
    async fn incarnations(
        &self,
        cx: &Context,
        groups: &[String],
    ) -> Result<BTreeMap<String, String>>;
}

/// A fixed point in time, to be read.
#[async_trait]
pub trait Snapshot: Send {
    /// Which point: instant, consistency, position.
    fn at(&self) -> PointInTime;

    /// Whether something waits for `Stage::Large`. If not, the snapshot is closed before that stage.
    fn large(&self) -> bool {
        false
    }

    /// Writes one stage. The engine closes all lanes between stages. Units that cannot be written are failed by name and the rest goes on;
    /// an error fails the instance.
    async fn write(&mut self, cx: &Context, stage: Stage, out: &Output) -> Result<()>;

    /// Always called, also after failure and cancellation, with its own 30 s: unlock, drop, delete what the snapshot holds.
    async fn close(self: Box<Self>, cx: &Context) -> Result<Facts>;
}

/// What `check` found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Who it is, stable over restarts: a server's uuid, a folder's device and path. Compared before a restore replaces anything.
    pub identity: String,
    /// For people: `MariaDB 10.11.19 on db.example.org`, `/data/caddy`.
    pub describe: String,
    /// Things that need a look.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Options of a snapshot.
#[derive(Clone, Debug, Default)]
pub struct SnapshotOptions {
    /// Facts of an earlier archive, where the source can go on from them.
    pub since: Option<Facts>,
    /// Ends of patience for the whole snapshot.
    pub time_limit: Option<std::time::Duration>,
}

/// Which point in time a snapshot shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PointInTime {
    /// The instant.
    pub instant: Timestamp,
    /// `snapshot`: all of it at this instant; `none`: each thing as it was when it was read; a source may know more words.
    pub consistency: String,
    /// Where a log stands at that instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
}

/// What a source must remember for its restore: at most 64 KiB of JSON. What is per unit is a member of that unit instead.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Layout of the members, a number of the source's own.
    pub layout: u32,
    /// What the run selected (include, exclude, databases…): a restore never drops what the backup left out.
    #[serde(default)]
    pub selection: Value,
    /// Everything else.
    #[serde(default)]
    pub more: Value,
    /// Lines for people, which `bk show` prints.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Things that need a look.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl Facts {
    /// A layout that a later version made is refused. `what` is in the plural: "the files".
    pub fn refuse_newer_layout(&self, what: &str, known: u32) -> Result<()> {
        if self.layout <= known {
            return Ok(());
        }
        Err(unsupported(format!(
            "{what} in the archive have layout {}; this version knows {known}",
            self.layout
        ))
        .hint("use a newer bk"))
    }
}

/// What a restore does with things that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Existing {
    /// Stop before anything is written.
    Refuse,
    /// The archive wins, the rest stays.
    Merge,
    /// What is selected ends equal to the archive.
    Replace,
}

/// Options of a restore.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// What to do with things that are there; nothing: the source's own default.
    pub existing: Option<Existing>,
    /// New names: group to group, in the words of `--into instance/group=new`.
    pub into_group: Vec<(String, String)>,
    /// Another place altogether: `--into instance=PLACE`.
    pub into_place: Option<PathBuf>,
    /// Names this restore in its mark and in reports.
    pub id: String,
    /// The archive it comes from.
    pub archive: String,
    /// What is selected: whole groups (no unit) and single units. The mark in the target holds it.
    pub selected: Vec<Selected>,
    /// What was asked of this instance, for what does not say before it is read which units it holds. Names are those of `Context::instance`.
    pub selection: Selection,
    /// Restore also what was cut off.
    pub partial_too: bool,
    /// Forget the mark of an unfinished restore, write nothing else.
    pub forget_unfinished: bool,
    /// Give back setuid and setgid bits.
    pub keep_setuid: bool,
    /// Write symbolic links that lead out of their folder.
    pub outward_links: bool,
    /// Delete and make anew what the target calls unchangeable.
    pub recreate: bool,
    /// With `Existing::Replace`: delete objects that the archive does not have, where a source would keep and name them.
    pub prune_objects: bool,
    /// Others are restored into what this one brings: its workloads must not run until `Source::release`.
    pub hold: bool,
    /// The target is a standby site: nothing in it starts by its own clock.
    pub standby: bool,
    /// The target is where the archive came from.
    pub at_home: bool,
}

/// What a restore would do.
#[derive(Clone, Debug, Default)]
pub struct Preview {
    /// Thing by thing, for people.
    pub lines: Vec<String>,
    /// What it could not do, with the reason.
    pub failed: Vec<String>,
}

/// How what is held is let go.
#[derive(Clone, Debug, Default)]
pub struct ReleaseOptions {
    /// What was suspended may make up for what it missed.
    pub catch_up: bool,
    /// Only in these groups of the target; nothing: where this run holds anything, or those of the settings.
    pub groups: Vec<String>,
}

/// What was let go, and what must stay as it is.
#[derive(Clone, Debug, Default)]
pub struct Released {
    /// Done, for people.
    pub done: Vec<String>,
    /// Still held, with the reason.
    pub held: Vec<String>,
}

/// In which form of another tool members are written, and where.
#[derive(Clone, Debug)]
pub struct ExtractAs {
    /// The form, one of `Source::forms`.
    pub form: String,
    /// The folder, or the file where the form is one.
    pub into: PathBuf,
    /// What to do with files that are there.
    pub existing: Existing,
}

/// A group selected whole, or one unit of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Selected {
    /// The group.
    pub group: String,
    /// The unit; nothing: all of the group.
    pub unit: Option<String>,
}

/// What the target acknowledged, unit by unit.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Per group, unit and stage.
    pub units: Vec<UnitCount>,
    /// Units or entries that were there, are not in the archive, and were kept on purpose.
    pub kept: Vec<String>,
    /// Things that were not restored, with the reason; each makes the restore partial.
    pub failed: Vec<String>,
    /// Things that need a look.
    pub warnings: Vec<String>,
}

/// A member, a lone file or a folder's entry that `bk` did not write.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Path as it stands.
    pub path: MemberPath,
    /// File, folder or link.
    pub kind: Kind,
    /// Bytes as it stands.
    pub len: u64,
    /// First 4 KiB, decompressed. Empty for what is no file, and in things of more than 16,384 files for the later ones.
    pub head: Bytes,
    /// Names of what lies beside it, sorted, its own among them.
    pub beside: Arc<Vec<Vec<u8>>>,
}

/// A source's word that it can restore a foreign thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// In which stage. A thing may be claimed for several; each stage is one pass.
    pub stage: Stage,
    /// Group and unit that it makes; nothing where that is known only when it is read: then the source goes by
    /// `RestoreOptions::selection` itself.
    pub unit: Option<(String, String)>,
    /// Under which path the source gets it.
    pub path: MemberPath,
    /// The source gets it decompressed.
    pub unpacked: bool,
    /// The source knows what it is, and leaves it out on purpose.
    pub left_out: bool,
}
