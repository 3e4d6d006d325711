//! What a source's restore is given: facts, units with their counts, and the members of each stage.

use crate::archive::format::{GATHERED_MAX_BYTES, Stage};
use crate::archive::reader::{Copies, Decoded, Picked};
use crate::archive::tar::{self, Head, Kind, Meta};
use crate::context::Context;
use crate::error::{Error, Result, bug};
use crate::event::Event;
use crate::name::{MemberPath, hash64};
use crate::restore::foreign::Claimed;
use crate::source::Facts;
use bytes::Bytes;
use futures::StreamExt;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// Decoded blocks that may wait for the one who cuts them into members.
const BLOCKS_WAITING: usize = 1;
/// Members that may wait for a worker.
const MEMBERS_WAITING: usize = 1;
/// How much of a streamed body travels at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Rows, members and bytes of a unit in a stage: from the index, or as a target acknowledged them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitCount {
    /// Group.
    pub group: String,
    /// Unit.
    pub name: String,
    /// Stage.
    pub stage: Stage,
    /// Members, as a restore gets them: a body that was stored in parts is one.
    pub members: u64,
    /// Rows, documents, entries.
    pub rows: u64,
    /// Bytes of bodies.
    pub bytes: u64,
}

/// What a target acknowledged so far, member by member.
#[derive(Debug, Default)]
pub struct Counting(BTreeMap<(String, String, Stage), (u64, u64, u64)>);

impl Counting {
    /// One member more of this unit.
    pub fn member(&mut self, unit: &(String, String), stage: Stage, rows: u64, bytes: u64) {
        let count = self
            .0
            .entry((unit.0.clone(), unit.1.clone(), stage))
            .or_default();
        *count = (count.0 + 1, count.1 + rows, count.2 + bytes);
    }

    /// For the tally.
    pub fn units(self) -> Vec<UnitCount> {
        let counts = self.0.into_iter();
        counts
            .map(|((group, name, stage), (members, rows, bytes))| UnitCount {
                group,
                name,
                stage,
                members,
                rows,
                bytes,
            })
            .collect()
    }
}

/// Counts of many units: their names stand elsewhere, once. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Counts {
    /// Group and name by number.
    pub(crate) names: Arc<Vec<(String, String)>>,
    /// What each has in a stage.
    pub(crate) counted: Arc<Vec<Counted>>,
}

/// What a unit has in a stage.
#[derive(Clone, Copy)]
pub(crate) struct Counted {
    pub(crate) unit: u32,
    pub(crate) stage: Stage,
    pub(crate) members: u64,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

impl Counts {
    /// With their names, those of one stage or all.
    pub(crate) fn of_stage(&self, stage: Option<Stage>) -> impl Iterator<Item = UnitCount> {
        let wanted = move |count: &&Counted| stage.is_none_or(|stage| count.stage == stage);
        self.counted.iter().filter(wanted).map(|count| {
            let (group, name) = self.names[count.unit as usize].clone();
            UnitCount {
                group,
                name,
                stage: count.stage,
                members: count.members,
                rows: count.rows,
                bytes: count.bytes,
            }
        })
    }

    /// All with their names.
    pub(crate) fn all(&self) -> Vec<UnitCount> {
        self.of_stage(None).collect()
    }

    /// The same counts as whoever restores makes them: a body that came in parts is one member.
    pub(crate) fn without_further_parts(&self, parts: &HashMap<(u32, Stage), u64>) -> Self {
        let counted = self.counted.iter().map(|count| {
            let further = parts.get(&(count.unit, count.stage)).copied();
            Counted {
                members: count.members - further.unwrap_or_default().min(count.members),
                ..*count
            }
        });
        Self {
            names: self.names.clone(),
            counted: Arc::new(counted.collect()),
        }
    }
}

/// What is selected of one instance.
pub struct Input {
    pub(crate) cx: Context,
    pub(crate) instance: Arc<str>,
    pub(crate) facts: Facts,
    pub(crate) unit_names: Arc<Vec<(String, String)>>,
    pub(crate) counts: Counts,
    pub(crate) failed: Vec<(String, String)>,
    pub(crate) from: From,
    pub(crate) delivered: Arc<Mutex<Delivered>>,
}

/// Where members come from.
pub(crate) enum From {
    /// Blocks of an archive, by stage.
    Archive(Arc<Copies>, HashMap<Stage, Vec<Picked>>),
    /// Entries of a thing that `bk` did not make.
    Foreign(Arc<Claimed>),
}

/// What went to the source, counted by the engine.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    pub(crate) counts: HashMap<(u32, Stage), (u64, u64)>,
    /// Members and bytes that the index declares; not one more is believed.
    pub(crate) declared: HashMap<(u32, Stage), (u64, u64)>,
    /// Members that were no more than a further part of a body: whoever restores counts that body once.
    pub(crate) further_parts: HashMap<(u32, Stage), u64>,
    pub(crate) paths: HashSet<u64>,
    pub(crate) failure: Option<Error>,
}

impl Input {
    /// Nothing at all: for a restore that only forgets its mark.
    pub(crate) fn empty(cx: &Context) -> Self {
        Self {
            cx: cx.clone(),
            instance: cx.instance.clone(),
            facts: Facts::default(),
            unit_names: Arc::default(),
            counts: Counts::default(),
            failed: Vec::new(),
            from: From::Archive(Arc::new(Copies::new(Vec::new())), HashMap::new()),
            delivered: Arc::default(),
        }
    }

    /// What the source remembered.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The instance as the archive names it, and so the selectors of `RestoreOptions::selection`.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Units of this stage with the counts of the backup.
    pub fn units(&self, stage: Stage) -> impl Iterator<Item = UnitCount> {
        self.counts.of_stage(Some(stage))
    }

    /// Units that failed when they were backed up: never dropped, never replaced.
    pub fn failed_units(&self) -> &[(String, String)] {
        &self.failed
    }

    /// Name of the thing that all of this comes from, where `bk` did not make it: no facts, no counts of rows, members as they were claimed.
    pub fn foreign(&self) -> Option<&str> {
        match &self.from {
            From::Foreign(claimed) => Some(claimed.name()),
            From::Archive(..) => None,
        }
    }

    /// Opens a stage; the one before must be read to its end. Each stage once, in the order of `Stage::ALL`.
    pub async fn stage(&mut self, stage: Stage) -> Result<Members> {
        let picked = match &mut self.from {
            From::Archive(_, picked) => picked.remove(&stage).unwrap_or_default(),
            From::Foreign(_) => Vec::new(),
        };
        Ok(self.open(stage, picked, self.delivered.clone()))
    }

    /// The members of a stage for a look at them before the first write: nothing counts as restored, and the stage can still be opened.
    pub async fn look(&self, stage: Stage) -> Result<Members> {
        let picked = match &self.from {
            From::Archive(_, picked) => picked.get(&stage).cloned().unwrap_or_default(),
            From::Foreign(_) => Vec::new(),
        };
        let delivered = Delivered {
            declared: lock(&self.delivered).declared.clone(),
            ..Delivered::default()
        };
        Ok(self.open(stage, picked, Arc::new(Mutex::new(delivered))))
    }

    fn open(&self, stage: Stage, picked: Vec<Picked>, delivered: Arc<Mutex<Delivered>>) -> Members {
        let (members, queue) = mpsc::channel(MEMBERS_WAITING);
        match &self.from {
            From::Archive(copies, _) => {
                self.cut(stage, copies.clone(), picked, members, delivered.clone());
            }
            From::Foreign(claimed) => {
                self.deliver(stage, claimed.clone(), members, delivered.clone());
            }
        }
        Members {
            queue: Arc::new(tokio::sync::Mutex::new(queue)),
            delivered,
        }
    }

    /// Blocks of an archive, decoded side by side and cut into members.
    fn cut(
        &self,
        stage: Stage,
        copies: Arc<Copies>,
        picked: Vec<Picked>,
        members: mpsc::Sender<Result<Member>>,
        delivered: Arc<Mutex<Delivered>>,
    ) {
        let (blocks, cut) = std::sync::mpsc::sync_channel::<Result<Decoded>>(BLOCKS_WAITING);
        let cx = self.cx.clone();
        tokio::spawn(async move {
            let mut decoded = std::pin::pin!(copies.decode(picked));
            while let Some(block) = decoded.next().await {
                let stop = block.is_err() || cx.cancel.is_cancelled();
                let blocks = blocks.clone();
                let sent = tokio::task::spawn_blocking(move || blocks.send(block).is_ok()).await;
                if stop || !matches!(sent, Ok(true)) {
                    return;
                }
            }
        });
        let cutter = Cutter {
            stage,
            instance: self.instance.clone(),
            unit_names: self.unit_names.clone(),
            delivered,
            members,
            cx: self.cx.clone(),
        };
        tokio::task::spawn_blocking(move || cutter.run(cut));
    }

    /// A pass over a thing that `bk` did not make.
    fn deliver(
        &self,
        stage: Stage,
        claimed: Arc<Claimed>,
        members: mpsc::Sender<Result<Member>>,
        delivered: Arc<Mutex<Delivered>>,
    ) {
        let cx = self.cx.clone();
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = claimed.deliver(&cx, stage, &runtime, &members) {
                lock(&delivered).failure = Some(error.duplicate());
                // Nobody waits any more when the restore has ended.
                let _ = members.blocking_send(Err(error));
            }
        });
    }
}

/// The members of one stage. Clone one for each worker.
#[derive(Clone)]
pub struct Members {
    queue: Arc<tokio::sync::Mutex<mpsc::Receiver<Result<Member>>>>,
    delivered: Arc<Mutex<Delivered>>,
}

impl Members {
    /// The next member, or nothing at the end of the stage. Safe to drop while waiting.
    pub async fn next(&self) -> Result<Option<Member>> {
        let member = self.queue.lock().await.recv().await;
        match member {
            Some(Ok(member)) => Ok(Some(member)),
            Some(Err(error)) => {
                lock(&self.delivered).failure = Some(error.duplicate());
                Err(error)
            }
            None => lock(&self.delivered)
                .failure
                .as_ref()
                .map_or(Ok(None), |error| Err(error.duplicate())),
        }
    }
}

fn lock(delivered: &Mutex<Delivered>) -> std::sync::MutexGuard<'_, Delivered> {
    delivered
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One member on its way back.
#[derive(Debug)]
pub struct Member {
    /// Group and unit.
    pub unit: (String, String),
    /// Path inside the instance.
    pub path: MemberPath,
    /// All but the body; hard links name their target inside the instance.
    pub meta: Meta,
    /// Bytes of the body; nothing when parts are joined as they come.
    pub len: Option<u64>,
    /// The body.
    pub body: Body,
}

/// What is no real thing of its kind.
pub(crate) fn too_long(path: &str, most: u64) -> Error {
    Error::corrupt(format!(
        "`{path}` has more than {most} bytes, which nothing of its kind has"
    ))
}

impl Member {
    /// The whole body of what others made, in memory: unless it is larger than such a thing ever is.
    pub async fn bytes_up_to(self, most: usize) -> Result<Bytes> {
        let mut stream = match self.body {
            Body::Whole(bytes) => return Ok(bytes),
            Body::Stream(stream) => stream,
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await? {
            if bytes.len() + chunk.len() > most {
                return Err(too_long(&self.path.to_string(), most as u64));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    /// The whole body, in memory. Only a giant makes one over 16 MiB.
    pub async fn bytes(self) -> Result<Bytes> {
        match self.body {
            Body::Whole(bytes) => Ok(bytes),
            Body::Stream(mut stream) => {
                let mut bytes = Vec::with_capacity(self.len.unwrap_or_default() as usize);
                while let Some(chunk) = stream.next().await? {
                    bytes.extend_from_slice(&chunk);
                }
                Ok(bytes.into())
            }
        }
    }
}

/// A member's body.
#[derive(Debug)]
pub enum Body {
    /// Up to 16 MiB.
    Whole(Bytes),
    /// More: it holds the sequence until it is read or dropped. Read to the end, or the member does not count as restored.
    Stream(BodyStream),
}

impl Body {
    /// The next bytes, however it comes, or nothing at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Whole(bytes) if bytes.is_empty() => Ok(None),
            Self::Whole(bytes) => Ok(Some(std::mem::take(bytes))),
            Self::Stream(stream) => stream.next().await,
        }
    }
}

/// A large body as it comes.
#[derive(Debug)]
pub struct BodyStream {
    pub(crate) chunks: mpsc::Receiver<Result<Bytes>>,
}

impl BodyStream {
    /// The next bytes, or nothing at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        self.chunks.recv().await.transpose()
    }
}

/// Cuts decoded blocks into members, on a thread of its own.
struct Cutter {
    stage: Stage,
    instance: Arc<str>,
    unit_names: Arc<Vec<(String, String)>>,
    delivered: Arc<Mutex<Delivered>>,
    members: mpsc::Sender<Result<Member>>,
    cx: Context,
}

/// The tar bytes of the selected ranges, one behind the other.
#[derive(Default)]
struct Ranges {
    current: Option<Decoded>,
    next_range: usize,
    at: usize,
    end: usize,
    unit: u32,
    inode_groups: HashMap<String, u64>,
    torn: HashSet<String>,
    part_of: HashMap<String, String>,
}

struct RangeReader {
    blocks: std::sync::mpsc::Receiver<Result<Decoded>>,
    ranges: Rc<RefCell<Ranges>>,
}

impl Read for RangeReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut ranges = self.ranges.borrow_mut();
        while ranges.at == ranges.end {
            if !ranges.next_range() {
                match self.blocks.recv() {
                    Ok(Ok(decoded)) => ranges.take(decoded),
                    Ok(Err(error)) => return Err(std::io::Error::other(error)),
                    Err(_) => return Ok(0),
                }
            }
        }
        let len = buffer.len().min(ranges.end - ranges.at);
        let from = ranges.at;
        if let Some(current) = &ranges.current {
            buffer[..len].copy_from_slice(&current.raw[from..from + len]);
        }
        ranges.at += len;
        Ok(len)
    }
}

impl Ranges {
    fn next_range(&mut self) -> bool {
        let next = self
            .current
            .as_ref()
            .and_then(|decoded| decoded.picked.ranges.get(self.next_range))
            .copied();
        let Some((unit, from, to)) = next else {
            return false;
        };
        self.next_range += 1;
        (self.unit, self.at, self.end) = (unit, from as usize, to as usize);
        true
    }

    fn take(&mut self, decoded: Decoded) {
        if let Some(more) = &decoded.picked.more {
            self.inode_groups.extend(more.inode_group.iter().cloned());
            self.torn
                .extend(more.torn.iter().map(|(path, _)| path.clone()));
            self.part_of.extend(more.part_of.iter().cloned());
        }
        self.current = Some(decoded);
        self.next_range = 0;
        (self.at, self.end) = (0, 0);
    }
}

type Chunks = mpsc::Sender<Result<Bytes>>;

impl Cutter {
    fn run(self, blocks: std::sync::mpsc::Receiver<Result<Decoded>>) {
        let ranges = Rc::new(RefCell::new(Ranges::default()));
        let reader = RangeReader {
            blocks,
            ranges: ranges.clone(),
        };
        let mut joining: Option<(String, Chunks)> = None;
        let cut = tar::read_members(reader, |head, body| {
            self.member(&ranges, &mut joining, head, body)
        });
        if let Err(error) = cut {
            let error = self.cancelled_or(error);
            lock(&self.delivered).failure = Some(error.duplicate());
            // Nobody waits any more when the restore has ended.
            if let Some((_, chunks)) = joining {
                let _ = chunks.blocking_send(Err(error.duplicate()));
            }
            let _ = self.members.blocking_send(Err(error));
        }
    }

    fn member(
        &self,
        ranges: &RefCell<Ranges>,
        joining: &mut Option<(String, Chunks)>,
        head: Head,
        body: &mut dyn Read,
    ) -> Result<()> {
        self.cx.check_cancelled()?;
        let full = head.path.to_string();
        let (unit, inode_group, torn, whole) = {
            let mut ranges = ranges.borrow_mut();
            (
                ranges.unit,
                ranges.inode_groups.remove(&full),
                ranges.torn.remove(&full),
                ranges.part_of.remove(&full),
            )
        };
        self.count(unit, &head)?;
        if torn {
            return Ok(());
        }
        let Some((first, path)) = head.path.split_first() else {
            return Err(Error::corrupt("a member without a path"));
        };
        if first != self.instance.as_bytes() {
            return Err(Error::corrupt(format!(
                "member `{full}` lies outside of its instance `{}`",
                self.instance
            )));
        }
        let meta = Meta {
            inode_group,
            kind: self.inside(head.meta.kind)?,
            ..head.meta
        };
        if let Some(whole) = whole {
            return self.part(joining, unit, &whole, &path, meta, body);
        }
        *joining = None;
        if head.len <= GATHERED_MAX_BYTES {
            let mut bytes = Vec::with_capacity(head.len as usize);
            body.read_to_end(&mut bytes).map_err(unwrap_io)?;
            if bytes.len() as u64 != head.len {
                return Err(Error::corrupt(format!(
                    "member `{full}` is shorter than its header says"
                )));
            }
            return self.send(unit, path, meta, Some(head.len), Body::Whole(bytes.into()));
        }
        let (chunks, receiver) = mpsc::channel(2);
        self.send(
            unit,
            path,
            meta,
            Some(head.len),
            Body::Stream(BodyStream { chunks: receiver }),
        )?;
        self.pump_or_break(&chunks, body, head.len)
    }

    /// A body that breaks off is told to its reader as an error: the end of the channel alone would look like the end of the body.
    fn pump_or_break(&self, chunks: &Chunks, body: &mut dyn Read, limit: u64) -> Result<()> {
        pump(chunks, body, limit).map_err(|error| {
            let error = self.cancelled_or(error);
            // The reader may be gone already.
            let _ = chunks.blocking_send(Err(error.duplicate()));
            error
        })
    }

    /// What a stopped run reads as damage is a stopped run.
    fn cancelled_or(&self, error: Error) -> Error {
        if self.cx.cancel.is_cancelled() {
            Error::cancelled()
        } else {
            error
        }
    }

    /// A hard link's target is named inside the instance.
    fn inside(&self, kind: Kind) -> Result<Kind> {
        let Kind::Hardlink(target) = kind else {
            return Ok(kind);
        };
        match target.split_first() {
            Some((first, rest)) if first == self.instance.as_bytes() => Ok(Kind::Hardlink(rest)),
            _ => Err(Error::corrupt(format!(
                "a hard link leads out of its instance to `{target}`"
            ))),
        }
    }

    fn part(
        &self,
        joining: &mut Option<(String, Chunks)>,
        unit: u32,
        whole: &str,
        path: &MemberPath,
        meta: Meta,
        body: &mut dyn Read,
    ) -> Result<()> {
        if joining.as_ref().is_none_or(|(name, _)| name != whole) {
            let (chunks, receiver) = mpsc::channel(2);
            let name = crate::name::unescape(whole);
            let path = MemberPath::new(name)?
                .split_first()
                .map_or_else(|| path.clone(), |(_, rest)| rest);
            self.send(
                unit,
                path,
                meta,
                None,
                Body::Stream(BodyStream { chunks: receiver }),
            )?;
            *joining = Some((whole.to_owned(), chunks));
        } else {
            let mut delivered = lock(&self.delivered);
            *delivered
                .further_parts
                .entry((unit, self.stage))
                .or_default() += 1;
        }
        match joining {
            Some((_, chunks)) => self.pump_or_break(&chunks.clone(), body, u64::MAX),
            None => Err(bug("a part without a whole")),
        }
    }

    fn send(
        &self,
        unit: u32,
        path: MemberPath,
        meta: Meta,
        len: Option<u64>,
        body: Body,
    ) -> Result<()> {
        let unit = self
            .unit_names
            .get(unit as usize)
            .cloned()
            .ok_or_else(|| bug("a range without a unit"))?;
        self.members
            .blocking_send(Ok(Member {
                unit,
                path,
                meta,
                len,
                body,
            }))
            .map_err(|_| Error::cancelled())
    }

    /// Counts a member, and refuses a second one of the same path.
    fn count(&self, unit: u32, head: &Head) -> Result<()> {
        let mut delivered = lock(&self.delivered);
        let folder_or_link = matches!(head.meta.kind, Kind::Directory);
        if !folder_or_link && !delivered.paths.insert(hash64(head.path.as_bytes())) {
            return Err(Error::corrupt(format!(
                "the archive holds two members `{}`",
                head.path
            )));
        }
        let declared = delivered
            .declared
            .get(&(unit, self.stage))
            .copied()
            .unwrap_or_default();
        let count = delivered.counts.entry((unit, self.stage)).or_default();
        count.0 += 1;
        count.1 = count.1.saturating_add(head.len);
        if count.0 > declared.0 || count.1 > declared.1 {
            return Err(Error::corrupt(format!(
                "`{}` is more than the index declares for its unit ({} members, {} bytes)",
                head.path, declared.0, declared.1
            )));
        }
        self.cx.tell(&Event::Bytes(head.len));
        Ok(())
    }
}

fn unwrap_io(error: std::io::Error) -> Error {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>())
    {
        Some(ours) => ours.duplicate(),
        None => Error::corrupt(format!("the tar inside is damaged: {error}")),
    }
}

/// Sends a body on, piece by piece.
pub(crate) fn pump(chunks: &Chunks, body: &mut dyn Read, limit: u64) -> Result<()> {
    let mut left = limit;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        body.take(CHUNK_BYTES as u64)
            .read_to_end(&mut chunk)
            .map_err(unwrap_io)?;
        if chunk.is_empty() {
            let short = limit != u64::MAX && left > 0;
            return if short {
                Err(Error::corrupt(
                    "a large member is shorter than its header says",
                ))
            } else {
                Ok(())
            };
        }
        left = left.saturating_sub(chunk.len() as u64);
        if chunks.blocking_send(Ok(chunk.into())).is_err() {
            // The worker dropped the body; what follows is skipped.
            return Ok(());
        }
    }
}
