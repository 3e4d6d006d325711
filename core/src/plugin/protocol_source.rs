//! A protocol plugin seen as a source: one process for each check, backup and restore, and one lane for each process.

use super::frame::Frame;
use super::manifest::{Manifest, Protocol};
use super::message::{
    Acknowledged, End, Entry, FACTS_MAX_BYTES, Failed, Message, Op, Open, RestoreAsk, SnapshotSaid,
    Sums,
};
use super::session::{Came, Session, out_of_place};
use super::settings::Given;
use crate::archive::piped::Pipe;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, plugin};
use crate::name::{MemberPath, hash64};
use crate::source::{
    Counted, Counting, Facts, Health, Input, Lane, Member, Meta, Output, PointInTime,
    RestoreOptions, Snapshot, SnapshotOptions, Source, Stage, Tally,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

/// A body up to here is gathered before it becomes a member.
const GATHERED_MAX_BYTES: u64 = 16 << 20;
/// From here on what is gathered is reserved.
const RESERVED_FROM_BYTES: u64 = 4 << 20;
/// A chunk of a body on its way to the plugin.
const CHUNK_BYTES: usize = 256 << 10;
/// In which order entries of a backup come.
const ORDER: [Stage; 4] = [Stage::Schema, Stage::Data, Stage::Finish, Stage::Large];

/// A plugin of this kind, and how it is asked.
#[derive(Clone)]
pub struct Remote {
    pub(super) manifest: Arc<Manifest>,
    pub(super) spec: Protocol,
    pub(super) settings: BTreeMap<String, Given>,
    pub(super) proof: super::root::Proof,
    pub(super) trial: Trial,
}

/// What the conformance kit does to a plugin, and no run ever does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trial {
    /// Before each message comes one of a later time.
    pub grease: bool,
    /// A restore is cut off, and the process killed, when so many entries were sent.
    pub cut_restore_after: Option<u64>,
}

impl Remote {
    /// Starts a process for `op`. The code is compared with what was accepted, each time.
    pub async fn open(
        &self,
        cx: &Context,
        op: Op,
        more: impl FnOnce(&mut Open),
    ) -> Result<Session> {
        let proof = self.proof.clone();
        crate::context::blocking(move || proof()).await?;
        let mut settings = Map::new();
        for (key, given) in &self.settings {
            settings.insert(key.clone(), given.json().await?);
        }
        let mut open = Open {
            protocol: 0,
            op,
            instance: cx.instance.to_string(),
            site: cx.site.to_string(),
            settings: Value::Object(settings),
            features: Vec::new(),
            restore: None,
            which: None,
            from: 0,
            to: 0,
            prefix: String::new(),
            archive: None,
            note: None,
            group: None,
        };
        more(&mut open);
        Session::open(cx, &self.manifest, &self.spec, (open, self.trial.grease)).await
    }

    /// The same under trial.
    #[must_use]
    pub fn on_trial(self, trial: Trial) -> Self {
        Self { trial, ..self }
    }

    /// A call with one answer.
    pub async fn call(
        &self,
        cx: &Context,
        op: Op,
        more: impl FnOnce(&mut Open),
    ) -> Result<super::message::Done> {
        let mut session = self.open(cx, op, more).await?;
        match session.done().await {
            Ok(done) => Ok(done),
            Err(error) => Err(session.fail(error).await),
        }
    }

    /// `check`, of either role.
    pub async fn check(&self, cx: &Context) -> Result<Health> {
        let done = self.call(cx, Op::Check, |_| ()).await?;
        done.health.ok_or_else(|| {
            plugin(format!(
                "plugin `{}`: `done` of `check` has no `health`",
                self.manifest.name
            ))
        })
    }
}

/// A source that is a process.
pub struct ProtocolSource(pub Remote);

#[async_trait]
impl Source for ProtocolSource {
    async fn check(&self, cx: &Context) -> Result<Health> {
        self.0.check(cx).await
    }

    async fn snapshot(&self, cx: &Context, _how: &SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        let mut session = self.0.open(cx, Op::Backup, |_| ()).await?;
        let said = match session.message().await {
            Ok(Message::Snapshot(said)) => said,
            Ok(other) => return Err(session.fail(out_of_place(&other)).await),
            Err(error) => return Err(session.fail(error).await),
        };
        let SnapshotSaid {
            instant,
            consistency,
            position,
        } = said;
        Ok(Box::new(RemoteSnapshot {
            at: PointInTime {
                instant: instant.unwrap_or_else(|| cx.clock.now()),
                consistency: consistency.unwrap_or_else(|| "none".into()),
                position,
            },
            session: Some(session),
            waiting: None,
            facts: None,
        }))
    }

    async fn restore(&self, cx: &Context, input: Input, how: &RestoreOptions) -> Result<Tally> {
        let ask = RestoreAsk {
            existing: how.existing,
            whole_groups: how
                .selected
                .iter()
                .filter(|selected| selected.unit.is_none())
                .map(|selected| selected.group.clone())
                .collect(),
            into_group: how.into_group.clone(),
            into_place: how
                .into_place
                .as_ref()
                .map(|place| place.to_string_lossy().into_owned()),
            facts: input.facts().clone(),
            archive: how.archive.clone(),
            id: how.id.clone(),
            forget_unfinished: how.forget_unfinished,
        };
        let session = self
            .0
            .open(cx, Op::Restore, |open| open.restore = Some(ask))
            .await?;
        let mut restoring = Restoring {
            session,
            sent: VecDeque::new(),
            tally: Tally::default(),
            counts: Counting::default(),
            done: None,
            cut_after: self.0.trial.cut_restore_after,
        };
        match restoring.all(input).await {
            Ok(()) => Ok(restoring.tallied()),
            Err(error) => Err(restoring.session.fail(error).await),
        }
    }
}

/// What a plugin has fixed, to be read stage by stage.
struct RemoteSnapshot {
    at: PointInTime,
    session: Option<Session>,
    /// An entry of a later stage.
    waiting: Option<Box<Entry>>,
    facts: Option<Facts>,
}

#[async_trait]
impl Snapshot for RemoteSnapshot {
    fn at(&self) -> PointInTime {
        self.at.clone()
    }

    fn large(&self) -> bool {
        self.waiting.is_some()
    }

    async fn write(&mut self, _cx: &Context, stage: Stage, out: &Output) -> Result<()> {
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        let mut writing = Writing {
            session,
            stage,
            out,
            lane: None,
            unit: None,
            rows: 0,
            over: HashSet::new(),
        };
        match writing.stage(self.waiting.take()).await {
            Ok(Stopped::Waiting(entry)) => {
                self.waiting = Some(entry);
                Ok(())
            }
            Ok(Stopped::Done(facts)) => {
                self.facts = Some(facts);
                self.session = None;
                Ok(())
            }
            Err(error) => match self.session.take() {
                Some(session) => Err(session.fail(error).await),
                None => Err(error),
            },
        }
    }

    async fn close(mut self: Box<Self>, _cx: &Context) -> Result<Facts> {
        if let Some(session) = &mut self.session {
            session.end().await;
        }
        Ok(self.facts.unwrap_or_default())
    }
}

enum Stopped {
    Waiting(Box<Entry>),
    Done(Facts),
}

/// One stage on its way into the archive.
struct Writing<'a> {
    session: &'a mut Session,
    stage: Stage,
    out: &'a Output,
    lane: Option<Lane>,
    unit: Option<(String, String)>,
    rows: u64,
    /// Units of this stage that are over, by their hash.
    over: HashSet<u64>,
}

impl Writing<'_> {
    async fn stage(&mut self, waiting: Option<Box<Entry>>) -> Result<Stopped> {
        let mut next = waiting;
        loop {
            if let Some(entry) = next.take() {
                let place = |stage| ORDER.iter().position(|known| *known == stage);
                if place(entry.stage) > place(self.stage) {
                    self.end_unit().await?;
                    self.close().await?;
                    return Ok(Stopped::Waiting(entry));
                }
                if entry.stage != self.stage {
                    return Err(plugin(format!(
                        "its entry `{}` of a stage that is over; entries come in the order schema, data, finish, large",
                        entry.path
                    )));
                }
                self.entry(*entry).await?;
            }
            match self.session.message().await? {
                Message::Entry(entry) => next = Some(entry),
                Message::Failed(failed) => self.failed(failed).await?,
                Message::Done(done) => {
                    // Nothing counts before its output has ended, and it with 0.
                    self.session.finish().await?;
                    self.end_unit().await?;
                    self.close().await?;
                    let mut facts = done.facts.unwrap_or_default();
                    facts.warnings.extend(done.warnings);
                    let long = serde_json::to_vec(&facts).map_or(0, |text| text.len());
                    if long > FACTS_MAX_BYTES {
                        return Err(plugin(format!(
                            "its facts have {long} bytes, more than {FACTS_MAX_BYTES}"
                        )));
                    }
                    return Ok(Stopped::Done(facts));
                }
                other => return Err(out_of_place(&other)),
            }
        }
    }

    async fn entry(&mut self, entry: Entry) -> Result<()> {
        let (path, meta) = entry.member()?;
        let unit = (entry.group.clone(), entry.unit.clone());
        self.begin_unit(unit).await?;
        let large = self.stage == Stage::Large && entry.len.is_none_or(|n| n > GATHERED_MAX_BYTES);
        let end = if large {
            self.streamed(&entry, path, meta).await?
        } else {
            self.gathered(&entry, path, meta).await?
        };
        self.rows += end.rows;
        Ok(())
    }

    /// A body that fits into memory.
    async fn gathered(&mut self, entry: &Entry, path: MemberPath, meta: Meta) -> Result<End> {
        let most = entry.len.unwrap_or(GATHERED_MAX_BYTES);
        let mut room = match entry.len {
            Some(len) if len > GATHERED_MAX_BYTES => return Err(too_long(&entry.path)),
            Some(len) if len > RESERVED_FROM_BYTES => Some(self.out.reserve(len).await?),
            _ => None,
        };
        let mut sums = self.session.sums();
        let mut body = BytesMut::new();
        let end = loop {
            match self.session.next().await? {
                Came::Data(bytes) => {
                    sums.update(&bytes);
                    if sums.bytes() > most {
                        return Err(longer(entry, sums.bytes()));
                    }
                    if room.is_none() && sums.bytes() > RESERVED_FROM_BYTES {
                        room = Some(self.out.reserve(most).await?);
                    }
                    body.extend_from_slice(&bytes);
                }
                Came::Message(Message::End(end)) => break end,
                Came::Message(other) => return Err(out_of_place(&other)),
            }
        };
        agreed(entry, sums, &end)?;
        self.lane().await?.member(path, meta, body.freeze()).await?;
        drop(room);
        Ok(end)
    }

    /// A body of any length, in `Stage::Large`: read from the process while the lane takes it.
    async fn streamed(&mut self, entry: &Entry, path: MemberPath, meta: Meta) -> Result<End> {
        self.lane().await?;
        let Self { session, lane, .. } = self;
        let Some(lane) = lane else {
            return Err(plugin("there is no lane"));
        };
        lane.piped(path, meta, entry.len, |pipe| pump(session, entry, pipe))
            .await
    }

    async fn begin_unit(&mut self, unit: (String, String)) -> Result<()> {
        if self.unit.as_ref() == Some(&unit) {
            return Ok(());
        }
        self.end_unit().await?;
        let hash = hash64(format!("{}\0{}", unit.0, unit.1).as_bytes());
        if !self.over.insert(hash) {
            return Err(plugin(format!(
                "its unit `{}/{}` comes in two pieces; all entries of a unit come one behind the other",
                unit.0, unit.1
            )));
        }
        self.out.expect(&unit.0, &unit.1).await?;
        self.lane().await?.unit(&unit.0, &unit.1);
        self.unit = Some(unit);
        Ok(())
    }

    async fn end_unit(&mut self) -> Result<()> {
        let Some((group, unit)) = self.unit.take() else {
            return Ok(());
        };
        let rows = std::mem::take(&mut self.rows);
        self.out.end(&group, &unit, Counted { rows }).await
    }

    async fn failed(&mut self, failed: Failed) -> Result<()> {
        if let (Some(group), Some(unit)) = (failed.group, failed.unit) {
            self.begin_unit((group, unit)).await?;
        }
        let Some((group, unit)) = &self.unit else {
            return Err(plugin("`failed` names no unit, and none is open"));
        };
        let why = Error::new(ErrorKind::Unreachable, failed.message);
        self.out.fail(group, unit, &why).await
    }

    async fn lane(&mut self) -> Result<&mut Lane> {
        if self.lane.is_none() {
            self.lane = Some(self.out.lane("plugin").await?);
        }
        self.lane.as_mut().ok_or_else(|| plugin("there is no lane"))
    }

    async fn close(&mut self) -> Result<()> {
        match self.lane.take() {
            Some(lane) => lane.close().await,
            None => Ok(()),
        }
    }
}

/// Reads the body of an entry to its end, and compares.
async fn pump(session: &mut Session, entry: &Entry, pipe: Pipe) -> Result<End> {
    let mut sums = session.sums();
    loop {
        match session.next().await? {
            Came::Data(bytes) => {
                sums.update(&bytes);
                if let Some(len) = entry.len.filter(|len| sums.bytes() > *len) {
                    return Err(longer(entry, len + 1));
                }
                // What the lane takes no more is still read: it has its own error to tell.
                pipe.send(bytes).await;
            }
            Came::Message(Message::End(end)) => {
                agreed(entry, sums, &end)?;
                return Ok(end);
            }
            Came::Message(other) => return Err(out_of_place(&other)),
        }
    }
}

fn agreed(entry: &Entry, sums: Sums, end: &End) -> Result<()> {
    if let Some(len) = entry.len.filter(|len| *len != sums.bytes()) {
        return Err(plugin(format!(
            "`{}`: {len} bytes were announced, {} came",
            entry.path,
            sums.bytes()
        )));
    }
    sums.compare(&entry.path, end)
}

fn longer(entry: &Entry, bytes: u64) -> Error {
    match entry.len {
        Some(len) => plugin(format!(
            "`{}`: {len} bytes were announced, {bytes} or more came",
            entry.path
        )),
        None => too_long(&entry.path),
    }
}

fn too_long(path: &str) -> Error {
    plugin(format!(
        "its entry `{path}` is longer than 16 MiB, which belongs into the stage `large`"
    ))
}

/// A restore on its way to the plugin.
struct Restoring {
    session: Session,
    /// Entries that the plugin has not acknowledged yet, in order.
    sent: VecDeque<Sent>,
    tally: Tally,
    counts: Counting,
    done: Option<super::message::Done>,
    cut_after: Option<u64>,
}

struct Sent {
    path: String,
    unit: (String, String),
    stage: Stage,
    bytes: u64,
}

impl Restoring {
    async fn all(&mut self, mut input: Input) -> Result<()> {
        for stage in Stage::ALL {
            let members = input.stage(stage).await?;
            while let Some(member) = members.next().await? {
                self.member(stage, member).await?;
            }
        }
        self.send(&Message::Finish).await?;
        while self.done.is_none() {
            let message = self.session.message().await?;
            self.heard(message)?;
        }
        self.session.finish().await?;
        match self.sent.front() {
            None => Ok(()),
            Some(sent) => Err(plugin(format!(
                "it said that it was done, and acknowledged {} entries too few; first `{}`",
                self.sent.len(),
                sent.path
            ))),
        }
    }

    async fn member(&mut self, stage: Stage, member: Member) -> Result<()> {
        if let Some(left) = &mut self.cut_after {
            if *left == 0 {
                self.session.kill();
                return Err(plugin("it was killed, to see what becomes of that"));
            }
            *left -= 1;
        }
        let (group, unit) = &member.unit;
        let entry = Entry::of(
            (group, unit),
            (&member.path, &member.meta),
            stage,
            member.len,
        )?;
        let path = entry.path.clone();
        self.send(&Message::Entry(Box::new(entry))).await?;
        let mut sums = self.session.sums();
        let mut body = member.body;
        while let Some(bytes) = body.next().await? {
            self.body(&mut sums, bytes).await?;
        }
        self.sent.push_back(Sent {
            path,
            unit: member.unit,
            stage,
            bytes: sums.bytes(),
        });
        self.send(&Message::End(sums.end(0))).await
    }

    async fn body(&mut self, sums: &mut Sums, mut bytes: Bytes) -> Result<()> {
        sums.update(&bytes);
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES));
            self.exchange(Frame::Data(chunk)).await?;
        }
        Ok(())
    }

    async fn send(&mut self, message: &Message) -> Result<()> {
        self.exchange(message.frame()?).await
    }

    async fn exchange(&mut self, frame: Frame) -> Result<()> {
        let mut heard = Vec::new();
        // One answer for each entry, and `done`.
        let most = self.sent.len() + 1;
        let sent = self
            .session
            .exchange(frame, |message| match message {
                Message::Error(said) => Err(said.into()),
                other if heard.len() < most => {
                    heard.push(other);
                    Ok(())
                }
                other => Err(out_of_place(&other)),
            })
            .await;
        for message in heard {
            self.heard(message)?;
        }
        sent
    }

    /// The plugin's answers come in the order of the entries.
    fn heard(&mut self, message: Message) -> Result<()> {
        let mut answered = || {
            self.sent.pop_front().ok_or_else(|| {
                plugin("it acknowledged an entry that it cannot have read to its end")
            })
        };
        match message {
            Message::Ok(Acknowledged { rows }) => {
                let sent = answered()?;
                self.counts.member(&sent.unit, sent.stage, rows, sent.bytes);
                Ok(())
            }
            Message::Failed(failed) => {
                let sent = answered()?;
                self.tally
                    .failed
                    .push(format!("{}: {}", sent.path, failed.message));
                Ok(())
            }
            Message::Done(done) => {
                self.done = Some(*done);
                Ok(())
            }
            other => Err(out_of_place(&other)),
        }
    }

    fn tallied(self) -> Tally {
        let mut tally = self.tally;
        tally.units = self.counts.units();
        let done = self.done.unwrap_or_default();
        tally.kept = done.kept;
        tally.warnings = done.warnings;
        tally
    }
}
