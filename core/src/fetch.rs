//! Fetching archives from where they were made into a folder here: the safe side pulls, so that nobody over there can touch what it keeps.
//!
//! The source is only read. What breaks off goes on where it was; an archive gets its name after every block and the whole sum were compared.
//! Retention of the folder runs after a good fetch, and nothing is deleted while what is here grows old.

mod transfer;

use crate::archive::writer::hex;
use crate::catalog::{self, Catalogue, Entry, Summary, What, Wish};
use crate::config::{FETCHED_LAST, PruneWhen, SinkInstance};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, not_found, unsupported};
use crate::lock::RunLock;
use crate::prune::{PruneOptions, Pruned, prune_sink};
use crate::report::{Cause, Class};
use crate::retention::{self, Keep, Measure, Policy, is_future, median};
use crate::sink::{Care, ReadOnly};
use crate::tiers;
use crate::verify::dates::Dates;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
pub use transfer::Fetched;

/// How often the source is listed anew because an archive was replaced or went.
const LISTINGS: u32 = 3;
/// Archives whose distances say how often there is a new one.
const MEDIAN_OF: usize = 7;
/// Of so many archives a usual distance can be told.
const MEDIAN_NEEDS: usize = 3;
/// What may be how old where nothing else is known.
const USUAL_MAX_AGE: SignedDuration = SignedDuration::from_hours(48);

/// What to fetch.
#[derive(Clone, Debug, Default)]
pub struct FetchOptions {
    /// All that `keep` retains, not only the newest.
    pub all: bool,
    /// How old the newest good archive here may be; without it twice the usual distance of those at the source.
    pub max_age: Option<SignedDuration>,
    /// Decide and say, change nothing.
    pub dry_run: bool,
    /// How long another run of the same folder is waited for.
    pub patience: Duration,
}

/// What came of it. Returned also on failure.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FetchReport {
    /// The sink that was read.
    pub from: String,
    /// The folder.
    pub to: String,
    /// Whose archives.
    pub site: String,
    /// Names at the source that were, or with `--dry-run` would be fetched, newest first.
    pub wanted: Vec<String>,
    /// What is here now.
    pub fetched: Vec<Fetched>,
    /// The newest whole archive here.
    pub newest: Option<Newest>,
    /// Seconds that it may be old.
    pub max_age_seconds: Option<i64>,
    /// Long stretches of time without an archive.
    pub gaps: Vec<String>,
    /// What retention did here.
    pub pruned: Option<Pruned>,
    /// Things that need a look.
    pub warnings: Vec<String>,
    /// Why it is not "done, all of it".
    pub causes: Vec<Cause>,
}

impl FetchReport {
    /// The source is listed more than once: each is said once.
    fn warn(&mut self, what: String) {
        if !self.warnings.contains(&what) {
            self.warnings.push(what);
        }
    }
}

/// The newest whole archive here.
#[derive(Clone, Debug, Serialize)]
pub struct Newest {
    /// Its id.
    pub id: String,
    /// Start of its run.
    pub created: Timestamp,
    /// How old that is.
    pub age_seconds: i64,
}

/// Fetches from one sink into another, which must be a folder here.
pub async fn fetch(
    cx: &Context,
    from: &SinkInstance,
    to: &SinkInstance,
    zone: &TimeZone,
    options: &FetchOptions,
) -> FetchReport {
    let report = FetchReport {
        from: from.name.clone(),
        to: to.name.clone(),
        site: cx.site.to_string(),
        ..FetchReport::default()
    };
    let mut to = to.clone();
    if options.dry_run {
        to.sink = Arc::new(ReadOnly::new(&to.name, to.sink));
    }
    let keep = *to.policy.keep.get_or_insert(Keep::last(FETCHED_LAST));
    let notes = ReadOnly::with_notes_in(&from.name, from.sink.clone(), to.sink.clone());
    let from = SinkInstance {
        sink: Arc::new(notes),
        ..from.clone()
    };
    let mut fetch = Fetch {
        cx,
        from: &from,
        to: &to,
        keep,
        zone,
        options,
        report,
    };
    if let Err(error) = fetch.run().await {
        let about = to.name.clone();
        fetch.report.causes.push(Cause::new(&about, &error));
    }
    fetch.report
}

struct Fetch<'a> {
    cx: &'a Context,
    from: &'a SinkInstance,
    to: &'a SinkInstance,
    keep: Keep,
    zone: &'a TimeZone,
    options: &'a FetchOptions,
    report: FetchReport,
}

impl Fetch<'_> {
    async fn run(&mut self) -> Result<()> {
        if self.options.dry_run {
            let here = self.read_here().await?;
            self.say_age(&here);
            let there = self.read_there().await?;
            self.report.wanted = names(&self.wanted(&there, &here)?);
            return Ok(());
        }
        let to_cx = self.cx.for_instance(&self.to.name);
        self.to.sink.check(&to_cx).await?;
        let folder = self.to.sink.folder().ok_or_else(|| {
            unsupported("only a folder here can be fetched into")
                .hint("bk copy copies from any sink to any other")
        })?;
        let _lock = RunLock::take(self.cx, folder, self.options.patience).await?;
        let here = self.read_here().await?;
        self.say_age(&here);
        let there = match self.read_there().await {
            Ok(there) => there,
            Err(error) => {
                // What is here, and how old it is, is said all the same.
                self.failed(&error);
                return Ok(());
            }
        };
        let max_age = self.max_age(&there);
        self.report.max_age_seconds = Some(max_age.as_secs());
        self.fetch_wanted(there, here).await?;
        let here = self.read_here().await?;
        self.say_age(&here);
        if self.options.all {
            self.report.gaps = gaps(&here);
        }
        self.end(max_age).await
    }

    /// Staleness, then retention: never of a folder into which nothing good has come.
    async fn end(&mut self, max_age: SignedDuration) -> Result<()> {
        let newest = self.report.newest.as_ref();
        let is_old = newest.is_none_or(|newest| newest.age_seconds > max_age.as_secs());
        // Where nobody said how old it may be, something new is good news.
        if is_old && (self.report.fetched.is_empty() || self.options.max_age.is_some()) {
            let cause = stale(newest, max_age);
            self.report.causes.push(cause);
        }
        let cx = self.cx.for_instance(&self.to.name);
        if !self.report.fetched.is_empty() {
            let promoted = tiers::promote(&cx, self.to, self.zone).await?;
            let unplaced = promoted.failed.into_iter();
            let causes = unplaced.map(|why| Cause::partial(&self.to.name, why));
            self.report.causes.extend(causes);
        }
        let is_asked = self.to.policy.prune == PruneWhen::AfterBackup;
        if !is_asked || self.report.fetched.is_empty() || !self.report.causes.is_empty() {
            return Ok(());
        }
        let pruned = prune_sink(&cx, self.to, self.zone, &PruneOptions::default()).await?;
        let failed = pruned.failed.iter();
        let causes = failed.map(|what| Cause::partial(&self.to.name, what.clone()));
        self.report.causes.extend(causes);
        self.report.pruned = Some(pruned);
        Ok(())
    }

    async fn read_here(&mut self) -> Result<Catalogue> {
        let here = Catalogue::of(self.cx, self.to, Care::Look).await?;
        Ok(self.without_the_future(here, &self.to.name.clone()))
    }

    async fn read_there(&mut self) -> Result<Catalogue> {
        let there = Catalogue::of(self.cx, self.from, Care::Look).await?;
        Ok(self.without_the_future(there, &self.from.name.clone()))
    }

    /// An archive of a clock that was wrong must not be the newest for years.
    fn without_the_future(&mut self, mut catalogue: Catalogue, sink: &str) -> Catalogue {
        let now = self.cx.clock.now();
        catalogue.entries.retain(|entry| {
            let created = entry.summary().map(|summary| summary.created);
            let Some(created) = created.filter(|created| is_future(*created, now)) else {
                return true;
            };
            let name = &entry.stored.name;
            let what = format!(
                "`{name}` on `{sink}` is dated {created}, in the future: it is left where it is"
            );
            self.report.warn(what);
            false
        });
        catalogue
    }

    fn failed(&mut self, error: &Error) {
        self.report.causes.push(Cause::new(&self.from.name, error));
    }

    fn say_age(&mut self, here: &Catalogue) {
        self.report.newest = here.newest_whole().map(|summary| Newest {
            id: summary.id.clone(),
            created: summary.created,
            age_seconds: self
                .cx
                .clock
                .now()
                .duration_since(summary.created)
                .as_secs(),
        });
    }

    fn max_age(&self, there: &Catalogue) -> SignedDuration {
        let usual = || usual_distance(there).map_or(USUAL_MAX_AGE, |distance| distance * 2);
        self.options.max_age.unwrap_or_else(usual)
    }

    /// What is at the source, should be here and is not: newest first.
    fn wanted<'c>(&self, there: &'c Catalogue, here: &Catalogue) -> Result<Vec<&'c Entry>> {
        let known: BTreeSet<&str> = here.archives().map(|(_, s)| s.id.as_str()).collect();
        let missing = |entry: &&Entry| {
            let summary = entry.summary();
            summary.is_some_and(|summary| !known.contains(summary.id.as_str()))
        };
        if self.options.all {
            let retained = self.retained(there, here);
            let mut seen = BTreeSet::new();
            let whole = there
                .archives()
                .filter(|(_, s)| s.is_full() && retained.contains(&s.id) && seen.insert(&s.id));
            return Ok(whole.map(|(entry, _)| entry).filter(missing).collect());
        }
        let newest = there.choose(&Wish::default(), self.zone).map_err(|error| {
            if error.kind == ErrorKind::Conflict {
                not_found("there is no whole archive, only partial ones")
                    .hint("look at the last report of the backup")
            } else {
                error
            }
        })?;
        Ok(newest.into_iter().take(1).filter(missing).collect())
    }

    /// Ids that retention would keep here if all were here.
    fn retained(&self, there: &Catalogue, here: &Catalogue) -> BTreeSet<String> {
        let pins = BTreeMap::new();
        let all = catalog::known(
            there.entries.iter().chain(&here.entries),
            &pins,
            &Dates::default(),
        );
        let policy = Policy {
            keep: &self.keep,
            layout: self.to.sink.layout(),
            zone: self.zone,
        };
        let now = self.cx.clock.now();
        let verdict = retention::decide(&all, &policy, now, &Measure::default());
        let kept = verdict.decisions.into_iter().filter(|d| d.keep);
        kept.map(|decision| decision.id).collect()
    }

    /// Fetches one after the other. Where one was replaced or went meanwhile, the source is listed anew.
    async fn fetch_wanted(&mut self, mut there: Catalogue, mut here: Catalogue) -> Result<()> {
        for listing in 1.. {
            self.warn_of_unreadable(&there);
            let wanted = match self.wanted(&there, &here) {
                Ok(wanted) => wanted,
                Err(error) => {
                    self.failed(&error);
                    return Ok(());
                }
            };
            for name in names(&wanted) {
                if !self.report.wanted.contains(&name) {
                    self.report.wanted.push(name);
                }
            }
            let mut failed = self.fetch_all(&wanted).await;
            if let Some((_, error)) = failed.pop_if(|(_, e)| e.kind == ErrorKind::Cancelled) {
                return Err(error);
            }
            if failed.is_empty() {
                return Ok(());
            }
            if let Ok(listed) = self.read_there().await {
                there = listed;
            }
            let is_listed = |entry: &Entry| there.entries.iter().any(|e| is_same(e, entry));
            let (lasting, changed): (Vec<_>, Vec<_>) = failed
                .into_iter()
                .partition(|(entry, _)| listing >= LISTINGS || is_listed(entry));
            for (entry, error) in &lasting {
                let cause = Cause::new(&entry.stored.name, error);
                self.report.causes.push(cause);
            }
            if changed.is_empty() || !lasting.is_empty() {
                return Ok(());
            }
            for (entry, _) in &changed {
                self.report.warnings.push(format!(
                    "`{}` was replaced or went while it was fetched; `{}` was listed anew",
                    entry.stored.name, self.from.name
                ));
            }
            here = self.read_here().await?;
        }
        Ok(())
    }

    /// What cannot be had, and why. The others are fetched all the same, unless the way or the folder itself is what fails.
    async fn fetch_all(&mut self, wanted: &[&Entry]) -> Vec<(Entry, Error)> {
        let mut failed = Vec::new();
        for entry in wanted {
            match transfer::fetch_one(self.cx, entry, self.from, self.to).await {
                Ok(fetched) => self.report.fetched.push(fetched),
                Err(error) => {
                    let is_its_own = matches!(
                        error.kind,
                        ErrorKind::Corrupt
                            | ErrorKind::Unsupported
                            | ErrorKind::NotFound
                            | ErrorKind::Denied
                            | ErrorKind::Conflict
                    );
                    failed.push(((*entry).clone(), error));
                    if !is_its_own {
                        break;
                    }
                }
            }
        }
        failed
    }

    fn warn_of_unreadable(&mut self, there: &Catalogue) {
        for entry in &there.entries {
            if let What::Damaged(why) = &entry.what {
                let what = format!("`{}` on `{}`: {why}", entry.stored.name, self.from.name);
                self.report.warn(what);
            }
        }
        let newest = there.archives().next();
        if let Some((entry, summary)) = newest
            && !summary.is_full()
        {
            let what = if summary.complete {
                "holds some sources only"
            } else {
                "is partial"
            };
            let name = &entry.stored.name;
            let what = format!("the newest archive, `{name}`, {what} and is not fetched");
            self.report.warn(what);
        }
    }
}

fn names(entries: &[&Entry]) -> Vec<String> {
    let name = |entry: &&Entry| entry.stored.name.clone();
    entries.iter().map(name).collect()
}

fn is_same(one: &Entry, other: &Entry) -> bool {
    let id = |entry: &Entry| entry.summary().map(|s| s.id.clone());
    one.stored.bare() == other.stored.bare() && id(one) == id(other)
}

fn stale(newest: Option<&Newest>, max_age: SignedDuration) -> Cause {
    let what = newest.map_or_else(
        || "there is no whole archive here".to_owned(),
        |newest| {
            format!(
                "the newest whole archive here is of {}, {} h old; {} h are allowed",
                newest.created,
                newest.age_seconds / 3600,
                max_age.as_hours()
            )
        },
    );
    let error = Error::new(ErrorKind::Unreachable, what)
        .hint("see why no newer one is made there; nothing is deleted here meanwhile");
    Cause::of(Class::Stale, "", &error)
}

/// Starts of whole archives, newest first, each once.
fn starts(catalogue: &Catalogue) -> Vec<Timestamp> {
    let whole = catalogue.archives().filter(|(_, s)| s.is_full());
    let starts: BTreeMap<&str, Timestamp> = whole
        .map(|(_, summary): (&Entry, &Summary)| (summary.id.as_str(), summary.created))
        .collect();
    let mut starts: Vec<Timestamp> = starts.into_values().collect();
    starts.sort_unstable_by_key(|at| std::cmp::Reverse(*at));
    starts
}

fn distances(starts: &[Timestamp]) -> impl Iterator<Item = SignedDuration> {
    starts.windows(2).map(|two| two[0].duration_since(two[1]))
}

/// How far apart the last archives are.
fn usual_distance(catalogue: &Catalogue) -> Option<SignedDuration> {
    let starts = starts(catalogue);
    let last = &starts[..starts.len().min(MEDIAN_OF)];
    if last.len() < MEDIAN_NEEDS {
        return None;
    }
    median(distances(last))
}

/// Where archives are more than twice as far apart as usual.
fn gaps(catalogue: &Catalogue) -> Vec<String> {
    let starts = starts(catalogue);
    let Some(usual) = median(distances(&starts)) else {
        return Vec::new();
    };
    let gap = |two: &[Timestamp]| {
        let long = two[0].duration_since(two[1]);
        (long > usual * 2).then(|| {
            format!(
                "no archive between {} and {} ({} h)",
                two[1],
                two[0],
                long.as_hours()
            )
        })
    };
    starts.windows(2).filter_map(gap).collect()
}

/// The words that a part is known by: any difference makes it another's.
fn origin(from: &SinkInstance, entry: &Entry, id: &str) -> String {
    let stored = &entry.stored;
    let words = format!(
        "{}\n{}\n{}\n{}\n{}\n{}\n{id}",
        from.name, stored.name, stored.version, stored.bytes, stored.modified, stored.etag
    );
    hex(blake3::hash(words.as_bytes()).as_bytes())
}
