//! Restoring what `bk` did not make: each source is asked which entries are its own, then gets those, one pass for each stage.

use crate::archive::checksums::{self, Checksums, Summing};
use crate::archive::foreign::{Foreign, decompressed, said};
use crate::archive::format::{GATHERED_MAX_BYTES, Stage};
use crate::archive::read_at::{FileReadAt, ReadAt, SinkReadAt, digest};
use crate::archive::tail::Opened;
use crate::archive::tar::{Head, Kind, Meta};
use crate::catalog::{Catalogue, Wish};
use crate::config::{Config, SinkInstance, SourceInstance};
use crate::context::{Context, blocking};
use crate::error::{Error, ErrorKind, Result, bug, conflict, not_found};
use crate::event::Event;
use crate::name::{MemberPath, escape};
use crate::plan::{RestorePlan, Target};
use crate::report::Cause;
use crate::restore::input::{
    Body, BodyStream, Counted, Counts, Delivered, Input, Member, pump, too_long,
};
use crate::restore::{Origin, Prepared, Request};
use crate::selector::{Matched, parse_into};
use crate::source::{Candidate, Claim, Facts, RestoreOptions, Selected};
use bytes::Bytes;
use jiff::tz::TimeZone;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// How much of a file a source is shown before it claims it.
const HEAD_BYTES: u64 = 4096;
/// Files whose heads are kept: 64 MiB of them.
const HEADS_KEPT: usize = 16_384;
/// Entries that nobody claims and that are named one by one.
const UNCLAIMED_NAMED: usize = 8;

/// What one instance gets of a foreign thing.
pub struct Claimed {
    thing: Arc<Foreign>,
    by_path: HashMap<MemberPath, Vec<Claim>>,
}

/// Whether a path is no archive of ours. One of ours that is damaged is still ours, as long as its first block can be read.
pub async fn is_foreign(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Ok(true);
    }
    let read: Arc<dyn ReadAt> = Arc::new(FileReadAt::open(path)?);
    match Opened::open(read.clone()).await {
        Err(error) if matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Unsupported) => {
            Ok(crate::catalog::head(read.as_ref()).await.is_none())
        }
        _ => Ok(false),
    }
}

/// Finds one on a sink, for a wish that no archive of this site fits. Nothing when there is none.
pub async fn on_sinks(
    cx: &Context,
    catalogue: &Catalogue,
    sinks: &[SinkInstance],
    wish: &Wish,
    zone: &TimeZone,
) -> Result<Option<(String, String, Foreign)>> {
    let Some(entry) = catalogue.choose_foreign(wish, zone) else {
        return Ok(None);
    };
    let Some(instance) = sinks.iter().find(|s| s.name == entry.sink) else {
        return Ok(None);
    };
    let cx = cx.for_instance(&entry.sink);
    let read: Arc<dyn ReadAt> = Arc::new(SinkReadAt::new(
        cx.clone(),
        instance.sink.clone(),
        entry.stored.clone(),
    ));
    let name = entry.stored.name.trim_start_matches('/');
    if let Some(expected) = instance.sink.md5(&cx, &entry.stored).await? {
        compare_md5(read.as_ref(), &expected, name).await?;
    }
    let modified = entry.stored.modified.as_second();
    let thing = Foreign::of_sink(read, name, modified).await?;
    Ok(Some((entry.sink.clone(), entry.version(), thing)))
}

/// What its maker wrote down of it must still be true.
async fn compare_md5(read: &dyn ReadAt, expected: &[u8; 16], name: &str) -> Result<()> {
    if <[u8; 16]>::from(digest::<md5::Md5>(read).await?) == *expected {
        Ok(())
    } else {
        Err(Error::corrupt(format!(
            "`{name}` is not what its maker's MD5 says"
        )))
    }
}

/// Plans its restore. Reads it once, writes nothing.
pub async fn prepare<'a>(
    cx: &Context,
    config: &'a Config,
    request: Request,
    (from, version, thing): (String, String, Foreign),
) -> Result<Prepared<'a>> {
    let thing = Arc::new(thing);
    cx.tell(&Event::Phase("looking"));
    // A part of it may be wanted though another part is a bomb.
    let is_whole = request.selection.only.is_empty() && request.selection.exclude.is_empty();
    let sources = if is_whole { &config.sources[..] } else { &[] };
    let candidates = scan(cx, &thing, sources).await?;
    let noted = compare_checksums(cx, &thing, &candidates).await?;
    let mut left_out = HashSet::new();
    let found = claims(config, &request, &thing, &candidates, &mut left_out)?;
    let id = crate::backup::draw_id()?;
    let mut plan = RestorePlan {
        id: id.clone(),
        from,
        name: thing.name.clone(),
        version,
        archive: thing.name.clone(),
        created: jiff::Timestamp::from_second(thing.modified)
            .map_err(|e| bug(format!("a file's time: {e}")))?,
        site: String::new(),
        tool: "others".into(),
        complete: true,
        foreign: true,
        settings: config.path.display().to_string(),
        targets: Vec::new(),
        skipped: Vec::new(),
        without_source: Vec::new(),
        reads_bytes: 0,
        of_bytes: thing.stored_bytes(),
    };
    if request.selection.only.is_empty() {
        plan.without_source = unclaimed(&candidates, &found, &left_out);
    }
    let mut warnings = noted;
    let mut sources = Vec::new();
    let mut claimed = HashMap::new();
    for (name, by_path) in found {
        let source = config.source(&name)?;
        let health = source
            .source
            .check(&cx.for_instance(&name))
            .await
            .map_err(|e| e.within(format!("the target `{name}`")))?;
        warnings.extend(health.warnings.iter().map(|w| format!("`{name}`: {w}")));
        let options = options(&request, &name, &id, &thing.name, &by_path)?;
        plan.targets.push(target(
            source,
            &health.describe,
            &options,
            &by_path,
            &candidates,
        ));
        let stages: BTreeSet<Stage> = by_path.values().flatten().map(|c| c.stage).collect();
        plan.reads_bytes += plan.of_bytes * stages.len() as u64;
        sources.push((name.clone(), source, options));
        let thing = thing.clone();
        claimed.insert(name, Claimed::new(thing, by_path));
    }
    super::into_are_used(&request.into, &sources)?;
    Ok(Prepared {
        plan,
        origin: Origin::Foreign(claimed),
        sources,
        request,
        warnings,
    })
}

/// Every entry with its first bytes and its neighbours. What is longer than any of these sources can take is refused where it begins.
pub(crate) async fn scan(
    cx: &Context,
    thing: &Arc<Foreign>,
    sources: &[SourceInstance],
) -> Result<Vec<Candidate>> {
    let (thing, cx, runtime) = (thing.clone(), cx.clone(), Handle::current());
    let sources: Vec<_> = sources.iter().map(|s| s.source.clone()).collect();
    let mut candidates = blocking(move || {
        let mut candidates = Vec::new();
        let mut heads = 0;
        thing.pass(&runtime, &mut |entry, body| {
            cx.check_cancelled()?;
            let head = if entry.meta.kind == Kind::File && heads < HEADS_KEPT {
                heads += 1;
                head_of(body, &entry.path.to_string())
            } else {
                Bytes::new()
            };
            let candidate = Candidate {
                path: entry.path,
                kind: entry.meta.kind,
                len: entry.len,
                head,
                beside: Arc::default(),
            };
            let most = sources.iter().find_map(|s| s.most_bytes(&candidate));
            if let Some(most) = most.filter(|most| candidate.len > *most) {
                return Err(too_long(&candidate.path.to_string(), most));
            }
            candidates.push(candidate);
            Ok(())
        })?;
        Ok(candidates)
    })
    .await?;
    let mut folders: HashMap<Vec<u8>, BTreeSet<Vec<u8>>> = HashMap::new();
    for candidate in &candidates {
        let (folder, name) = parted(&candidate.path);
        folders.entry(folder).or_default().insert(name);
    }
    let folders: HashMap<Vec<u8>, Arc<Vec<Vec<u8>>>> = folders
        .into_iter()
        .map(|(folder, names)| (folder, Arc::new(names.into_iter().collect())))
        .collect();
    for candidate in &mut candidates {
        let (folder, _) = parted(&candidate.path);
        candidate.beside = folders.get(&folder).cloned().unwrap_or_default();
    }
    Ok(candidates)
}

/// What its makers wrote down of its files must still be true, before anything is made of them. Says what they say, and what proves nothing.
pub(crate) async fn compare_checksums(
    cx: &Context,
    thing: &Arc<Foreign>,
    candidates: &[Candidate],
) -> Result<Vec<String>> {
    let mut said = Vec::new();
    let lists: Vec<&Candidate> = candidates
        .iter()
        .filter(|c| c.kind == Kind::File && parted(&c.path).1 == checksums::FILE.as_bytes())
        .collect();
    for list in lists {
        let path = list.path.clone();
        if list.len > checksums::MAX_BYTES {
            return Err(Error::corrupt(format!(
                "`{path}` is too large to be a list"
            )));
        }
        let (folder, _) = parted(&path);
        let (thing, cx, runtime) = (thing.clone(), cx.clone(), Handle::current());
        let read = blocking(move || checksums_in(&cx, &thing, &folder, &runtime)).await;
        let (found, notes) = read.map_err(|e| e.within(format!("`{path}`")))?;
        let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "not said".into());
        said.push(format!(
            "`{path}`: type {}, date {}{}",
            word(&found.kind),
            word(&found.date),
            if found.is_empty() {
                ", no checksums"
            } else {
                ""
            }
        ));
        said.extend(notes);
    }
    Ok(said)
}

/// One pass over a folder of it.
fn checksums_in(
    cx: &Context,
    thing: &Foreign,
    folder: &[u8],
    runtime: &Handle,
) -> Result<(Checksums, Vec<String>)> {
    let (mut list, mut there, mut all) = (Vec::new(), BTreeMap::new(), Summing::default());
    thing.pass(runtime, &mut |entry, body| {
        cx.check_cancelled()?;
        let path = entry.path.to_string();
        let within = String::from_utf8_lossy(folder);
        let inside = match path.strip_prefix(&*within) {
            Some(rest) if entry.meta.kind == Kind::File => rest.trim_start_matches('/').to_owned(),
            _ => return Ok(()),
        };
        let read = if inside == checksums::FILE {
            body.read_to_end(&mut list).map(drop)
        } else {
            checksums::sums_of(body, &mut all).map(|sums| drop(there.insert(inside, sums)))
        };
        read.map_err(|e| said(e, &path))
    })?;
    let found = Checksums::parse(&list)?;
    let notes = found.compare(&there, &all.done())?;
    Ok((found, notes))
}

/// Empty where a body is compressed and damaged: whoever wants it will find that out.
fn head_of(body: &mut dyn Read, name: &str) -> Bytes {
    let mut head = Vec::new();
    let read = decompressed(body, name)
        .ok()
        .and_then(|plain| plain.take(HEAD_BYTES).read_to_end(&mut head).ok());
    if read.is_none() {
        head.clear();
    }
    head.into()
}

/// Folder and name.
fn parted(path: &MemberPath) -> (Vec<u8>, Vec<u8>) {
    let bytes = path.as_bytes();
    match bytes.iter().rposition(|b| *b == b'/') {
        Some(at) => (bytes[..at].to_vec(), bytes[at + 1..].to_vec()),
        None => (Vec::new(), bytes.to_vec()),
    }
}

pub(crate) type Found = BTreeMap<String, HashMap<MemberPath, Vec<Claim>>>;

/// Who claims what. Two claims on one entry are refused, unless `--as ENTRY=SOURCE` decides.
pub(crate) fn claims(
    config: &Config,
    request: &Request,
    thing: &Foreign,
    candidates: &[Candidate],
    left_out: &mut HashSet<MemberPath>,
) -> Result<Found> {
    let decided = super::renames(&request.renamed)?;
    for (entry, name) in &decided {
        config
            .source(name)
            .map_err(|e| e.within(format!("`--as {entry}={name}`")))?;
    }
    let mut matched = Matched::new(&request.selection);
    let mut found = Found::new();
    let mut anybody = false;
    for candidate in candidates {
        let decision = decided_for(&decided, &candidate.path);
        let mut owners: Vec<(&SourceInstance, Vec<Claim>)> = Vec::new();
        for source in &config.sources {
            if decision.is_some_and(|name| *name != source.name) {
                continue;
            }
            let claims = source.source.claim(candidate);
            anybody |= !claims.is_empty();
            if claims.iter().any(|claim| claim.left_out) {
                left_out.insert(candidate.path.clone());
                continue;
            }
            for claim in &claims {
                match &claim.unit {
                    Some((group, unit)) => matched.see(&source.name, group, unit),
                    None => matched.leave_to(&source.name),
                }
            }
            let taken: Vec<Claim> = claims
                .into_iter()
                .filter(|claim| match &claim.unit {
                    Some((group, unit)) => request.selection.takes(&source.name, group, unit),
                    None => request.selection.touches_instance(&source.name),
                })
                .collect();
            if !taken.is_empty() {
                owners.push((source, taken));
            }
        }
        match owners.as_slice() {
            [] => {}
            [(source, _)] => {
                let name = source.name.clone();
                let (_, claims) = owners.remove(0);
                found
                    .entry(name)
                    .or_default()
                    .insert(candidate.path.clone(), claims);
            }
            [(one, _), (other, _), ..] => {
                return Err(conflict(format!(
                    "`{}` could go to `{}` or to `{}`",
                    candidate.path, one.name, other.name
                ))
                .hint(format!(
                    "say which: --only {}, or --as '{}={}'",
                    one.name, candidate.path, one.name
                )));
            }
        }
    }
    if !anybody {
        return Err(not_found(format!(
            "no source of the settings file knows what is in `{}`, {}",
            thing.name,
            thing.shape()
        ))
        .hint("bk plugins list shows the sources; enable the one that it is for"));
    }
    matched.finish()?;
    Ok(found)
}

/// The longest path that was decided and leads to this entry.
fn decided_for<'d>(decided: &'d HashMap<String, String>, path: &MemberPath) -> Option<&'d String> {
    let path = path.to_string();
    decided
        .iter()
        .filter(|(entry, _)| {
            path.strip_prefix(entry.trim_end_matches('/'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
        .max_by_key(|(entry, _)| entry.len())
        .map(|(_, name)| name)
}

/// Files that no source takes; a folder of which nothing is taken is named alone.
pub(crate) fn unclaimed(
    candidates: &[Candidate],
    found: &Found,
    left_out: &HashSet<MemberPath>,
) -> Vec<String> {
    let folder = |path: &MemberPath| {
        path.parts()
            .take(2)
            .map(escape)
            .collect::<Vec<_>>()
            .join("/")
    };
    let known = found.values().flat_map(HashMap::keys).chain(left_out);
    let taken: BTreeSet<String> = known.map(folder).collect();
    let nobodys = |candidate: &&Candidate| {
        candidate.kind != Kind::Directory
            && !left_out.contains(&candidate.path)
            && !found
                .values()
                .any(|paths| paths.contains_key(&candidate.path))
    };
    let left: BTreeSet<String> = candidates
        .iter()
        .filter(nobodys)
        .map(|candidate| match folder(&candidate.path) {
            folder if taken.contains(&folder) => candidate.path.to_string(),
            folder => folder,
        })
        .collect();
    let more = left.len().saturating_sub(UNCLAIMED_NAMED);
    let mut named: Vec<String> = left.into_iter().take(UNCLAIMED_NAMED).collect();
    if more > 0 {
        named.push(format!("{more} more"));
    }
    named
}

fn options(
    request: &Request,
    name: &str,
    id: &str,
    archive: &str,
    claimed: &HashMap<MemberPath, Vec<Claim>>,
) -> Result<RestoreOptions> {
    let mut units: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (group, unit) in claimed.values().flatten().filter_map(|c| c.unit.as_ref()) {
        units.entry(group).or_default().insert(unit);
    }
    let whole = request.selection.is_everything();
    let mut selected = Vec::new();
    for (group, units) in units {
        if whole {
            selected.push(Selected {
                group: group.to_owned(),
                unit: None,
            });
            continue;
        }
        selected.extend(
            units
                .into_iter()
                .filter(|u| !u.is_empty())
                .map(|unit| Selected {
                    group: group.to_owned(),
                    unit: Some(unit.to_owned()),
                }),
        );
    }
    let mut options = request.options(name, id, archive, selected);
    for typed in &request.into {
        let (instance, group, to) = parse_into(typed)?;
        match group {
            _ if instance != name => {}
            None => options.into_place = Some(PathBuf::from(to)),
            Some(group) => options.into_group.push((group, to)),
        }
    }
    Ok(options)
}

fn target(
    source: &SourceInstance,
    describe: &str,
    options: &RestoreOptions,
    claimed: &HashMap<MemberPath, Vec<Claim>>,
    candidates: &[Candidate],
) -> Target {
    let ours = candidates
        .iter()
        .filter(|c| claimed.contains_key(&c.path) && c.kind == Kind::File);
    let mut selected = options.selected.clone();
    if selected.is_empty() {
        selected.extend(claimed.keys().map(|path| Selected {
            group: path.to_string(),
            unit: None,
        }));
        selected.sort();
    }
    Target {
        instance: source.name.clone(),
        source: source.name.clone(),
        describe: describe.to_owned(),
        existing: options.existing,
        units: selected.len() as u64,
        selected,
        rows: 0,
        bytes: ours.map(|c| c.len).sum(),
        into: super::into_lines(options),
        groups: options.into_group.clone(),
    }
}

impl Claimed {
    /// Of a thing, by entry.
    pub(crate) fn new(thing: Arc<Foreign>, by_path: HashMap<MemberPath, Vec<Claim>>) -> Arc<Self> {
        Arc::new(Self { thing, by_path })
    }

    /// Entries of each unit and stage, as the source must give them back.
    fn counts(&self) -> Counts {
        let mut counts: BTreeMap<(String, String), BTreeMap<Stage, u64>> = BTreeMap::new();
        for claim in self.by_path.values().flatten() {
            if let Some(unit) = claim.unit.clone() {
                *counts
                    .entry(unit)
                    .or_default()
                    .entry(claim.stage)
                    .or_default() += 1;
            }
        }
        let (mut names, mut counted) = (Vec::new(), Vec::new());
        for (unit, stages) in counts {
            let number = names.len() as u32;
            names.push(unit);
            counted.extend(stages.into_iter().map(|(stage, members)| Counted {
                unit: number,
                stage,
                members,
                rows: 0,
                bytes: 0,
            }));
        }
        Counts {
            names: Arc::new(names),
            counted: Arc::new(counted),
        }
    }

    pub(crate) fn input(
        self: &Arc<Self>,
        cx: &Context,
        instance: &str,
        delivered: Arc<Mutex<Delivered>>,
    ) -> Input {
        Input {
            cx: cx.clone(),
            instance: instance.into(),
            facts: Facts::default(),
            unit_names: Arc::default(),
            counts: self.counts(),
            failed: Vec::new(),
            from: super::input::From::Foreign(self.clone()),
            delivered,
        }
    }

    /// What it comes from.
    pub(crate) fn name(&self) -> &str {
        &self.thing.name
    }

    /// One pass: everything that is claimed for this stage, in the order in which it stands.
    pub(crate) fn deliver(
        &self,
        cx: &Context,
        stage: Stage,
        runtime: &Handle,
        members: &mpsc::Sender<Result<Member>>,
    ) -> Result<()> {
        let claimed: u64 = self.of_stage(stage).count() as u64;
        if claimed == 0 {
            return Ok(());
        }
        // An entry that stands twice comes twice: the last one wins, as with tar.
        let mut seen = HashSet::new();
        self.thing.pass(runtime, &mut |head, body| {
            cx.check_cancelled()?;
            let claims = self.by_path.get(&head.path).map_or(&[][..], Vec::as_slice);
            let Some(claim) = claims.iter().find(|claim| claim.stage == stage) else {
                return Ok(());
            };
            seen.insert(head.path.clone());
            cx.tell(&Event::Bytes(head.len));
            let shown = head.path.to_string();
            let mut watched = Watched { body, cx, members };
            self.member(claim, head, &mut watched, members)?;
            // What nobody wants any more is not read to its end.
            std::io::copy(&mut watched, &mut std::io::sink())
                .map(drop)
                .map_err(|e| said(e, &shown))
        })?;
        let seen = seen.len() as u64;
        if seen == claimed {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "`{}` changed while it was read: {claimed} entries were to come, {seen} came",
            self.thing.name
        )))
    }

    fn of_stage(&self, stage: Stage) -> impl Iterator<Item = &Claim> {
        self.by_path
            .values()
            .flatten()
            .filter(move |claim| claim.stage == stage)
    }

    fn member(
        &self,
        claim: &Claim,
        head: Head,
        body: &mut dyn Read,
        members: &mpsc::Sender<Result<Member>>,
    ) -> Result<()> {
        let shown = head.path.to_string();
        let send = |len, body| {
            let member = Member {
                unit: claim.unit.clone().unwrap_or_default(),
                path: claim.path.clone(),
                meta: self.meta(head.meta.clone())?,
                len,
                body,
            };
            members
                .blocking_send(Ok(member))
                .map_err(|_| Error::cancelled())
        };
        if !claim.unpacked && head.len <= GATHERED_MAX_BYTES {
            let mut bytes = Vec::with_capacity(head.len as usize);
            body.read_to_end(&mut bytes).map_err(|e| said(e, &shown))?;
            // A file of a folder may have grown; a tar's reader cuts by itself.
            return send(Some(bytes.len() as u64), Body::Whole(bytes.into()));
        }
        let (chunks, receiver) = mpsc::channel(2);
        send(
            (!claim.unpacked).then_some(head.len),
            Body::Stream(BodyStream { chunks: receiver }),
        )?;
        let mut plain;
        let body = if claim.unpacked {
            plain = decompressed(body, &shown)?;
            &mut *plain
        } else {
            body
        };
        pump(&chunks, body, u64::MAX).inspect_err(|error| {
            // The reader may be gone already.
            let _ = chunks.blocking_send(Err(error.duplicate()));
        })
    }

    /// A hard link names its target as its own source knows it.
    fn meta(&self, meta: Meta) -> Result<Meta> {
        let Kind::Hardlink(target) = &meta.kind else {
            return Ok(meta);
        };
        let to = self
            .by_path
            .get(target)
            .and_then(|claims| claims.first())
            .ok_or_else(|| {
                Error::corrupt(format!(
                    "a hard link leads to `{target}`, which is not restored with it"
                ))
            })?;
        Ok(Meta {
            kind: Kind::Hardlink(to.path.clone()),
            ..meta
        })
    }
}

/// A body that ends when the run must stop, or when its source has gone.
struct Watched<'a> {
    body: &'a mut dyn Read,
    cx: &'a Context,
    members: &'a mpsc::Sender<Result<Member>>,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.cx.check_cancelled().map_err(std::io::Error::other)?;
        if self.members.is_closed() {
            return Err(std::io::Error::other(Error::cancelled()));
        }
        self.body.read(buffer)
    }
}

/// Said of files that no source takes.
pub fn unclaimed_cause(what: &str) -> Cause {
    let mut cause = Cause::partial(what, "no source here knows what this is");
    cause.hint = Some(
        "enable the source that it is for, or repeat with --only and the sources that you want"
            .into(),
    );
    cause
}
