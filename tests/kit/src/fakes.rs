//! A sink and a source in memory, good ones, and mutants: the same with one defect each.

use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::name::{ArchiveName, MemberPath};
use bk_core::runs::{RUN_SPLIT_BYTES, Runs, border_before};
use bk_core::sink::{
    Abilities, ByteStream, Filter, Note, NoteName, NoteSeen, Seal, Sink, SizeHint, Stored, Upload,
    Was,
};
use bk_core::source::{
    Body, Counted, Existing, Facts, Health, Input, Meta, Output, PointInTime, RestoreOptions,
    Selected, Snapshot, SnapshotOptions, Source, Stage, Tally, UnitCount,
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A sink in memory.
#[derive(Clone, Default)]
pub struct MemorySink {
    state: Arc<Mutex<SinkState>>,
    /// How often `read` was asked.
    pub reads: Arc<AtomicU64>,
    /// Bytes that it gave.
    pub read_bytes: Arc<AtomicU64>,
    /// Whether it reads from any place.
    pub without_ranges: bool,
    /// Its defect.
    pub defect: Option<SinkDefect>,
}

#[derive(Default)]
struct SinkState {
    archives: BTreeMap<String, (Bytes, String)>,
    notes: HashMap<NoteName, Bytes>,
}

/// One defect of a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkDefect {
    LosesTheLastByte,
    VisibleBeforePublish,
    AbortKeeps,
    OverwritesTheDay,
    ListsAWrongSize,
    DeletesANeighbour,
    MissingReadsEmpty,
    NotesIgnoreWas,
    NotesStay,
    SumsOfAnother,
    PartialAsWhole,
    RangeOffByOne,
}

impl MemorySink {
    /// With one defect.
    pub fn mutant(defect: SinkDefect) -> Self {
        Self {
            defect: Some(defect),
            ..Self::default()
        }
    }

    /// One that always gives everything.
    #[must_use]
    pub fn without_ranges(mut self) -> Self {
        self.without_ranges = true;
        self
    }

    /// The archive of this name.
    pub fn archive(&self, name: &str) -> Option<Bytes> {
        self.state
            .lock()
            .unwrap()
            .archives
            .get(name)
            .map(|(bytes, _)| bytes.clone())
    }

    /// Names of all archives.
    pub fn names(&self) -> Vec<String> {
        self.state
            .lock()
            .unwrap()
            .archives
            .keys()
            .cloned()
            .collect()
    }

    /// Puts bytes there, whoever made them.
    pub fn put(&self, name: &str, bytes: Bytes) {
        self.state
            .lock()
            .unwrap()
            .archives
            .insert(name.to_owned(), (bytes, String::new()));
    }

    /// Takes an archive away.
    pub fn remove(&self, name: &str) {
        self.state.lock().unwrap().archives.remove(name);
    }

    /// Takes all but the last names away.
    pub fn keep_newest(&self, count: usize) {
        let names = self.names();
        let old = names.len().saturating_sub(count);
        names[..old].iter().for_each(|name| self.remove(name));
    }

    fn has(&self, defect: SinkDefect) -> bool {
        self.defect == Some(defect)
    }

    fn stored(&self, name: &str, bytes: &Bytes) -> Stored {
        let wrong = u64::from(self.has(SinkDefect::ListsAWrongSize));
        Stored {
            name: name.to_owned(),
            version: String::new(),
            bytes: bytes.len() as u64 + wrong,
            modified: jiff::Timestamp::UNIX_EPOCH,
            etag: blake3::hash(bytes).to_hex().to_string(),
            remarks: Vec::new(),
        }
    }
}

struct MemoryUpload {
    sink: MemorySink,
    bytes: BytesMut,
}

#[async_trait]
impl Upload for MemoryUpload {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.bytes.extend_from_slice(&chunk);
        if self.sink.has(SinkDefect::VisibleBeforePublish) {
            self.sink.put("early.tar.xz", self.bytes.clone().freeze());
        }
        Ok(())
    }

    async fn publish(self: Box<Self>, name: &ArchiveName, seal: &Seal) -> Result<Stored> {
        let mut bytes = self.bytes.freeze();
        if self.sink.has(SinkDefect::LosesTheLastByte) {
            bytes.truncate(bytes.len() - 1);
        }
        let complete = seal.complete || self.sink.has(SinkDefect::PartialAsWhole);
        let mut state = self.sink.state.lock().unwrap();
        let overwrite = self.sink.has(SinkDefect::OverwritesTheDay);
        let name = name
            .candidates(complete)
            .find(|n| overwrite || !state.archives.contains_key(n))
            .unwrap();
        let sums = seal.sum_file(&name);
        state.archives.insert(name.clone(), (bytes.clone(), sums));
        drop(state);
        Ok(self.sink.stored(&name, &bytes))
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        if self.sink.has(SinkDefect::AbortKeeps) {
            self.sink.put("aborted.tar.xz", self.bytes.freeze());
        }
        Ok(())
    }
}

#[async_trait]
impl Sink for MemorySink {
    fn abilities(&self) -> Abilities {
        Abilities {
            ranges: !self.without_ranges,
            rename: true,
            exclusive_create: true,
            ..Abilities::default()
        }
    }

    async fn check(&self, _cx: &Context) -> Result<Health> {
        Ok(Health {
            identity: "memory".into(),
            describe: "memory".into(),
            warnings: Vec::new(),
        })
    }

    async fn create(
        &self,
        _cx: &Context,
        _name: &ArchiveName,
        _hint: SizeHint,
    ) -> Result<Box<dyn Upload>> {
        Ok(Box::new(MemoryUpload {
            sink: self.clone(),
            bytes: BytesMut::new(),
        }))
    }

    async fn list(&self, _cx: &Context, filter: &Filter) -> Result<Vec<Stored>> {
        let archives = self.state.lock().unwrap().archives.clone();
        Ok(archives
            .iter()
            .filter(|(name, _)| name.starts_with(&filter.prefix))
            .map(|(name, (bytes, _))| self.stored(name, bytes))
            .collect())
    }

    async fn read(&self, _cx: &Context, which: &Stored, range: Range<u64>) -> Result<ByteStream> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let Some(bytes) = self.archive(&which.name) else {
            if self.has(SinkDefect::MissingReadsEmpty) {
                return Ok(futures::stream::empty().boxed());
            }
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no `{}`", which.name),
            ));
        };
        let range = if self.without_ranges {
            0..bytes.len() as u64
        } else {
            range
        };
        let shift = u64::from(self.has(SinkDefect::RangeOffByOne) && range.start > 0);
        let end = (range.end as usize).min(bytes.len());
        let start = ((range.start - shift) as usize).min(end);
        self.read_bytes
            .fetch_add((end - start) as u64, Ordering::Relaxed);
        let bytes = bytes.slice(start..end);
        let chunks: Vec<_> = (0..bytes.len().div_ceil(100_000))
            .map(|n| Ok(bytes.slice(n * 100_000..((n + 1) * 100_000).min(bytes.len()))))
            .collect();
        Ok(futures::stream::iter(chunks).boxed())
    }

    async fn sums(&self, _cx: &Context, which: &Stored) -> Result<Option<String>> {
        let wrong = self.has(SinkDefect::SumsOfAnother);
        let state = self.state.lock().unwrap();
        Ok(state
            .archives
            .get(&which.name)
            .map(|(_, sums)| {
                if wrong {
                    sums.replace("# id ", "# id 0")
                } else {
                    sums.clone()
                }
            })
            .filter(|s| !s.is_empty()))
    }

    async fn delete(&self, _cx: &Context, which: &Stored) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        if self.has(SinkDefect::DeletesANeighbour) {
            state.archives.clear();
        }
        state.archives.remove(&which.name);
        Ok(())
    }

    async fn note(&self, _cx: &Context, name: &NoteName) -> Result<Option<Note>> {
        let state = self.state.lock().unwrap();
        Ok(state.notes.get(name).map(|body| Note {
            body: body.clone(),
            etag: blake3::hash(body).to_hex().to_string(),
        }))
    }

    async fn set_note(&self, _cx: &Context, name: &NoteName, body: Bytes, was: Was) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        let now = state
            .notes
            .get(name)
            .map(|body| blake3::hash(body).to_hex().to_string());
        let agrees = match was {
            Was::Any => true,
            Was::Absent => now.is_none(),
            Was::Same(etag) => now == Some(etag),
        };
        if !agrees && !self.has(SinkDefect::NotesIgnoreWas) {
            return Err(Error::new(ErrorKind::Conflict, "the note has changed"));
        }
        state.notes.insert(name.clone(), body);
        Ok(())
    }

    async fn notes(&self, cx: &Context, site: &str, prefix: &str) -> Result<Vec<NoteSeen>> {
        let state = self.state.lock().unwrap();
        let names = state.notes.keys();
        Ok(names
            .filter(|n| n.site == site && n.name.starts_with(prefix))
            .map(|name| NoteSeen {
                name: name.clone(),
                modified: cx.clock.now(),
            })
            .collect())
    }

    async fn remove_note(&self, _cx: &Context, name: &NoteName) -> Result<()> {
        if !self.has(SinkDefect::NotesStay) {
            self.state.lock().unwrap().notes.remove(name);
        }
        Ok(())
    }
}

/// A unit of a fake source: a group, a name, and members by path.
pub type Store = BTreeMap<(String, String), BTreeMap<String, Bytes>>;

/// A source in memory: a database of sorts, with groups, units and workers.
#[derive(Clone)]
pub struct FakeSource {
    /// What it holds.
    pub store: Arc<Mutex<Store>>,
    /// How many lanes it fills at once.
    pub workers: usize,
    /// Seed of its random delays.
    pub delays: Option<u64>,
    /// Snapshots that are open now.
    pub open_snapshots: Arc<AtomicI64>,
    /// The mark of an unfinished restore.
    pub mark: Arc<Mutex<Vec<Selected>>>,
    /// Stop a restore after so many members, as a crash does.
    pub restore_dies_after: Option<u64>,
    /// Who it is.
    pub identity: String,
    /// What `snapshot` or `check` answers instead.
    pub refuses: Option<(&'static str, ErrorKind)>,
    /// A secret that must appear nowhere.
    pub secret: Option<bk_core::secret::Secret>,
    /// Its defect.
    pub defect: Option<SourceDefect>,
}

/// One defect of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceDefect {
    SnapshotNotClosed,
    UnitWithoutEnd,
    ShortBody,
    WrongCount,
    ReplacesANeighbour,
    MergeDropsTheRest,
    CheckChangesThings,
    SequenceNumberInAMember,
    NoMark,
    LosesAUnit,
    RestoresTheExcluded,
    ReplaceKeepsTheRest,
    RefuseWrites,
}

impl FakeSource {
    /// One with these units.
    pub fn new(store: Store) -> Self {
        Self {
            store: Arc::new(Mutex::new(store)),
            workers: 1,
            delays: None,
            open_snapshots: Arc::default(),
            mark: Arc::default(),
            restore_dies_after: None,
            identity: "fake".into(),
            refuses: None,
            secret: None,
            defect: None,
        }
    }

    /// `groups` groups of `units` units of a few small members each.
    pub fn small(groups: usize, units: usize) -> Self {
        let mut store = Store::new();
        for g in 0..groups {
            for u in 0..units {
                let members = (0..3)
                    .map(|m| {
                        (
                            format!("g{g}/u{u:03}/m{m}"),
                            Bytes::from(crate::data::text(
                                (g * 1000 + u * 10 + m) as u64,
                                200 + u * 7,
                            )),
                        )
                    })
                    .collect();
                store.insert((format!("g{g}"), format!("u{u:03}")), members);
            }
        }
        Self::new(store)
    }

    /// The same with one defect.
    #[must_use]
    pub fn mutant(mut self, defect: SourceDefect) -> Self {
        self.defect = Some(defect);
        self
    }

    fn has(&self, defect: SourceDefect) -> bool {
        self.defect == Some(defect)
    }

    fn marked(&self, group: &str, unit: &str) -> bool {
        self.mark
            .lock()
            .unwrap()
            .iter()
            .any(|s| s.group == group && s.unit.as_deref().is_none_or(|u| u == unit))
    }
}

#[async_trait]
impl Source for FakeSource {
    async fn check(&self, _cx: &Context) -> Result<Health> {
        if let Some(("check", kind)) = self.refuses {
            return Err(Error::new(kind, "the fake refuses"));
        }
        if let Some(secret) = &self.secret {
            secret.reveal().await?;
        }
        if self.has(SourceDefect::CheckChangesThings) {
            self.store
                .lock()
                .unwrap()
                .insert(("left".into(), "behind".into()), BTreeMap::new());
        }
        Ok(Health {
            identity: self.identity.clone(),
            describe: "a fake".into(),
            warnings: Vec::new(),
        })
    }

    async fn snapshot(&self, cx: &Context, _how: &SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        if let Some(("snapshot", kind)) = self.refuses {
            return Err(Error::new(kind, "the fake refuses"));
        }
        self.open_snapshots.fetch_add(1, Ordering::SeqCst);
        let units: Vec<_> = self
            .store
            .lock()
            .unwrap()
            .iter()
            .map(|(name, members)| (name.clone(), members.clone()))
            .collect();
        Ok(Box::new(FakeSnapshot {
            source: self.clone(),
            units,
            at: cx.clock.now(),
        }))
    }

    async fn restore(
        &self,
        _cx: &Context,
        mut input: Input,
        how: &RestoreOptions,
    ) -> Result<Tally> {
        if how.forget_unfinished {
            self.mark.lock().unwrap().clear();
            return Ok(Tally::default());
        }
        let existing = how.existing.unwrap_or(Existing::Replace);
        let into: HashMap<String, String> = how.into_group.iter().cloned().collect();
        let name = |group: &str| into.get(group).cloned().unwrap_or_else(|| group.to_owned());
        let there =
            |s: &Selected| {
                self.store.lock().unwrap().keys().any(|(g, u)| {
                    *g == name(&s.group) && s.unit.as_ref().is_none_or(|unit| unit == u)
                })
            };
        if existing == Existing::Refuse
            && how.selected.iter().any(there)
            && !self.has(SourceDefect::RefuseWrites)
        {
            return Err(Error::new(
                ErrorKind::Conflict,
                "something is there already",
            ));
        }
        if !self.has(SourceDefect::NoMark) {
            self.mark
                .lock()
                .unwrap()
                .extend(how.selected.iter().cloned());
        }
        self.make_room(existing, how, &input, &name);
        let tally = self.write(&mut input, &name).await?;
        self.mark
            .lock()
            .unwrap()
            .retain(|s| !how.selected.contains(s));
        Ok(tally)
    }
}

impl FakeSource {
    fn make_room(
        &self,
        existing: Existing,
        how: &RestoreOptions,
        input: &Input,
        name: &(dyn Fn(&str) -> String + Sync),
    ) {
        let failed = input.failed_units().to_vec();
        let mut store = self.store.lock().unwrap();
        let selected = |group: &str, unit: &str| {
            how.selected
                .iter()
                .any(|s| name(&s.group) == group && s.unit.as_deref().is_none_or(|u| u == unit))
        };
        if existing == Existing::Replace && !self.has(SourceDefect::ReplaceKeepsTheRest) {
            store.retain(|(g, u), _| {
                !selected(g, u) || failed.iter().any(|(fg, fu)| name(fg) == *g && fu == u)
            });
        }
        if existing == Existing::Merge && self.has(SourceDefect::MergeDropsTheRest) {
            store.clear();
        }
        if self.has(SourceDefect::ReplacesANeighbour) {
            let groups: Vec<String> = how.selected.iter().map(|s| name(&s.group)).collect();
            store.retain(|(g, _), _| !groups.contains(g));
        }
        if self.has(SourceDefect::RestoresTheExcluded) {
            store.insert(("excluded".into(), "unit".into()), BTreeMap::new());
        }
    }

    async fn write(
        &self,
        input: &mut Input,
        name: &(dyn Fn(&str) -> String + Sync),
    ) -> Result<Tally> {
        let mut counts: BTreeMap<(String, String, Stage), (u64, u64, u64)> = BTreeMap::new();
        let mut written = 0;
        for stage in Stage::ALL {
            let members = input.stage(stage).await?;
            while let Some(member) = members.next().await? {
                let mut bytes = match member.body {
                    Body::Whole(bytes) => bytes,
                    Body::Stream(mut stream) => {
                        let mut all = BytesMut::new();
                        while let Some(chunk) = stream.next().await? {
                            all.extend_from_slice(&chunk);
                        }
                        all.freeze()
                    }
                };
                if self.restore_dies_after == Some(written) {
                    return Err(Error::new(ErrorKind::Unreachable, "the fake died"));
                }
                written += 1;
                let count = counts
                    .entry((member.unit.0.clone(), member.unit.1.clone(), stage))
                    .or_default();
                *count = (count.0 + 1, count.1 + 1, count.2 + bytes.len() as u64);
                if self.has(SourceDefect::ShortBody) {
                    bytes.truncate(bytes.len().saturating_sub(1));
                }
                if !self.has(SourceDefect::LosesAUnit) || member.unit.1 != "u000" {
                    let unit = (name(&member.unit.0), member.unit.1.clone());
                    self.store
                        .lock()
                        .unwrap()
                        .entry(unit)
                        .or_default()
                        .insert(member.path.to_string(), bytes);
                }
            }
        }
        let wrong = u64::from(self.has(SourceDefect::WrongCount));
        let units = counts
            .into_iter()
            .map(|((group, name, stage), (members, rows, bytes))| UnitCount {
                group,
                name,
                stage,
                members,
                rows: rows + wrong,
                bytes,
            });
        Ok(Tally {
            units: units.collect(),
            ..Tally::default()
        })
    }
}

struct FakeSnapshot {
    source: FakeSource,
    units: Vec<((String, String), BTreeMap<String, Bytes>)>,
    at: jiff::Timestamp,
}

type Unit = ((String, String), BTreeMap<String, Bytes>);

#[async_trait]
impl Snapshot for FakeSnapshot {
    fn at(&self) -> PointInTime {
        PointInTime {
            instant: self.at,
            consistency: "snapshot".into(),
            position: Some("7".into()),
        }
    }

    async fn write(&mut self, _cx: &Context, stage: Stage, out: &Output) -> Result<()> {
        if stage != Stage::Data {
            return Ok(());
        }
        // Units sorted by their whole name, as `runs` wants them.
        let named: Vec<(String, Unit)> = self
            .units
            .iter()
            .map(|unit| (format!("{}/{}", unit.0.0, unit.0.1), unit.clone()))
            .collect();
        let runs = Arc::new(Runs::new(named, |(name, _)| border_before(name)));
        let mut workers = Vec::new();
        for worker in 0..self.source.workers {
            let (runs, out, source) = (runs.clone(), out.clone(), self.source.clone());
            workers.push(tokio::spawn(async move {
                let mut delays = source
                    .delays
                    .map(|seed| SmallRng::seed_from_u64(seed ^ worker as u64));
                while let Some(mut run) = runs.take() {
                    let Some((first, _)) = run.front() else {
                        continue;
                    };
                    let mut lane = out.lane(&first.clone()).await?;
                    while let Some((_, (unit, members))) = run.pop_front() {
                        out.expect(&unit.0, &unit.1).await?;
                        if source.marked(&unit.0, &unit.1) {
                            out.fail(
                                &unit.0,
                                &unit.1,
                                &Error::new(ErrorKind::Conflict, "an unfinished restore"),
                            )
                            .await?;
                            out.end(&unit.0, &unit.1, Counted::default()).await?;
                            continue;
                        }
                        lane.unit(&unit.0, &unit.1);
                        let mut bytes = 0;
                        let rows = members.len() as u64;
                        for (path, body) in members {
                            pause(&mut delays).await;
                            bytes += body.len() as u64;
                            if source.has(SourceDefect::SequenceNumberInAMember) {
                                static SEQUENCE: AtomicU64 = AtomicU64::new(0);
                                let number = SEQUENCE.fetch_add(1, Ordering::Relaxed);
                                lane.member(
                                    MemberPath::new(format!("{path}.{number}"))?,
                                    Meta::default(),
                                    body,
                                )
                                .await?;
                                continue;
                            }
                            let _room = if body.len() > 4 << 20 {
                                Some(out.reserve(body.len() as u64).await?)
                            } else {
                                None
                            };
                            lane.member(MemberPath::new(path)?, Meta::default(), body)
                                .await?;
                            if bytes > RUN_SPLIT_BYTES {
                                runs.give_back(std::mem::take(&mut run));
                            }
                        }
                        if !source.has(SourceDefect::UnitWithoutEnd) || unit.1 != "u000" {
                            out.end(&unit.0, &unit.1, Counted { rows }).await?;
                        }
                    }
                    lane.close().await?;
                }
                Ok::<_, Error>(())
            }));
        }
        for worker in workers {
            worker
                .await
                .map_err(|e| Error::new(ErrorKind::Bug, e.to_string()))??;
        }
        Ok(())
    }

    async fn close(self: Box<Self>, _cx: &Context) -> Result<Facts> {
        if !self.source.has(SourceDefect::SnapshotNotClosed) {
            self.source.open_snapshots.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(Facts {
            layout: 1,
            ..Facts::default()
        })
    }
}

/// A delay of chance: mostly none, sometimes a turn of everybody else, rarely a little time.
async fn pause(random: &mut Option<SmallRng>) {
    let Some(random) = random else { return };
    match random.random_range(0..100) {
        0..60 => {}
        60..97 => {
            for _ in 0..random.random_range(1..20) {
                tokio::task::yield_now().await;
            }
        }
        _ => {
            tokio::time::sleep(std::time::Duration::from_micros(
                random.random_range(1..2000),
            ))
            .await
        }
    }
}
