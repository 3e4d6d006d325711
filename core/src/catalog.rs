//! The archives of a site on all sinks, as one list; and which of them a date or a version means.
//!
//! What a tail says is kept in notes beside the archives, so that a list over thousands reads only the new ones. A note is a hint: it is
//! keyed by name, version, size and etag, rebuilt when lost, and never believed before something is deleted.

mod notes;

use crate::archive::format::{FORMAT_MEMBER, FormatMember};
use crate::archive::read_at::{ReadAt, SinkReadAt};
use crate::archive::tail::Opened;
use crate::archive::{foreign, tar, xz};
use crate::config::SinkInstance;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, conflict, not_found, settings};
use crate::layout::Tier;
use crate::manifest::{Manifest, State, Totals};
use crate::name::{ArchiveName, compact};
use crate::retention::{Known, Size, is_future};
use crate::sink::{Care, Filter, Sink, Stored};
use crate::verify::dates::Dates;
use crate::verify::sum_in;
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use notes::Noted;
pub use notes::remember;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Tails that are read at once.
const TAILS_AT_ONCE: usize = 16;
/// Patience with one sink's list and the tails of its new archives.
const LIST_LIMIT: std::time::Duration = std::time::Duration::from_mins(5);

/// One stored copy, with what its tail says.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// The sink.
    pub sink: String,
    /// The copy.
    pub stored: Stored,
    /// What it is.
    pub what: What,
}

/// What a stored file turned out to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// An archive of this site.
    Archive(Box<Summary>),
    /// An archive of another site.
    OtherSite(String),
    /// An archive of `bk` whose end cannot be read.
    Damaged(String),
    /// Not made by `bk`.
    Foreign,
}

/// A manifest in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Id.
    pub id: String,
    /// Site.
    pub site: String,
    /// Start of the run.
    pub created: Timestamp,
    /// Whether it is whole.
    pub complete: bool,
    /// Whether it holds some of the site's sources only, as asked.
    #[serde(default)]
    pub subset: bool,
    /// `--label`.
    pub label: Option<String>,
    /// Who wrote it.
    pub tool: String,
    /// What is inside.
    pub instances: Vec<SummaryInstance>,
    /// SHA-256 of the stored bytes, where the run that wrote it left it in a note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// An instance in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SummaryInstance {
    /// Name.
    pub name: String,
    /// Who it was.
    pub identity: String,
    /// How it went.
    pub state: State,
    /// How much.
    pub totals: Totals,
}

impl From<&Manifest> for Summary {
    fn from(manifest: &Manifest) -> Self {
        let instances = manifest.instances.iter().map(|i| SummaryInstance {
            name: i.name.clone(),
            identity: i.identity.clone(),
            state: i.state,
            totals: i.totals,
        });
        Self {
            id: manifest.id.clone(),
            site: manifest.site.clone(),
            created: manifest.created,
            complete: manifest.complete,
            subset: manifest.subset,
            label: manifest.label.clone(),
            tool: manifest.tool.clone(),
            instances: instances.collect(),
            sha256: None,
        }
    }
}

impl Summary {
    /// Whole, and of all sources.
    pub fn is_full(&self) -> bool {
        self.complete && !self.subset
    }
}

impl Entry {
    /// The summary, when it is an archive of this site.
    pub fn summary(&self) -> Option<&Summary> {
        match &self.what {
            What::Archive(summary) => Some(summary),
            _ => None,
        }
    }

    /// The version word: the sink's own, or the run's start where the sink keeps one copy of a name.
    pub fn version(&self) -> String {
        match self.summary() {
            Some(summary) if self.stored.version.is_empty() => compact(summary.created),
            _ => self.stored.version.clone(),
        }
    }

    /// Text of a sum file of this copy: the one beside it, else what the run that wrote it left in a note. A name's own is its newest version's.
    pub async fn sums(&self, cx: &Context, sink: &Arc<dyn Sink>) -> Result<Option<String>> {
        let beside = sink.sums(cx, &self.stored).await?;
        let Some(summary) = self.summary() else {
            return Ok(beside);
        };
        let beside = beside.filter(|text| sum_in(text, &summary.id).is_some());
        Ok(beside.or_else(|| self.noted_sums()))
    }

    /// What the run that wrote it left in a note, as the text of a sum file.
    pub fn noted_sums(&self) -> Option<String> {
        let summary = self.summary()?;
        let sum = summary.sha256.as_ref()?;
        Some(format!(
            "# id {} site {}\n{sum}  ",
            summary.id, summary.site
        ))
    }

    /// The day that a foreign thing has in its name.
    pub fn day_in_name(&self) -> Option<jiff::civil::Date> {
        let name = ArchiveName::parse(&self.stored.name, Timestamp::UNIX_EPOCH, "")?;
        name.day.parse().ok()
    }

    /// The same for retention.
    fn known(&self, pins: &BTreeMap<String, String>, checks: &Dates) -> Option<Known> {
        let summary = self.summary()?;
        let sizes = summary.instances.iter().map(|i| Size {
            name: i.name.clone(),
            identity: i.identity.clone(),
            rows: i.totals.rows,
            bytes: i.totals.bytes,
        });
        Some(Known {
            id: summary.id.clone(),
            created: summary.created,
            // One of some sources keeps no period for the full ones, and goes as a partial goes.
            complete: summary.is_full(),
            damaged: checks.damage(self).is_some(),
            pinned: pins.contains_key(&summary.id),
            placed: BTreeSet::from([self.tier()]),
            instances: sizes.collect(),
        })
    }

    /// The tier in whose folder it lies.
    pub fn tier(&self) -> Option<Tier> {
        Tier::of(&self.stored.name)
    }
}

/// What is on the sinks.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// Copies, newest first; foreign and damaged ones last.
    pub entries: Vec<Entry>,
    /// Sinks that did not answer.
    pub failures: Vec<(String, Error)>,
    /// When it was read.
    pub at: Timestamp,
}

impl Catalogue {
    /// Reads all sinks, side by side.
    pub async fn read(cx: &Context, sinks: &[SinkInstance]) -> Self {
        Self::read_with(cx, sinks, Care::Look).await
    }

    /// Reads one sink; what keeps it from being listed is the error.
    pub async fn of(cx: &Context, sink: &SinkInstance, care: Care) -> Result<Self> {
        let mut catalogue = Self::read_with(cx, std::slice::from_ref(sink), care).await;
        match catalogue.failures.pop() {
            Some((_, error)) => Err(error),
            None => Ok(catalogue),
        }
    }

    /// Reads all sinks with this care.
    pub async fn read_with(cx: &Context, sinks: &[SinkInstance], care: Care) -> Self {
        let each = sinks.iter().map(|sink| async move {
            let cx = cx.for_instance(&sink.name);
            let late = || Error::new(ErrorKind::Unreachable, "listing its archives took too long");
            (
                sink.name.clone(),
                cx.within(LIST_LIMIT, late, read_sink(&cx, sink, care))
                    .await,
            )
        });
        let mut catalogue = Self {
            at: cx.clock.now(),
            ..Self::default()
        };
        for (name, read) in futures::future::join_all(each).await {
            match read {
                Ok(entries) => catalogue.entries.extend(entries),
                Err(error) => catalogue.failures.push((name, error)),
            }
        }
        catalogue.entries.sort_by_key(newest_first);
        catalogue
    }

    /// Archives of this site.
    pub fn archives(&self) -> impl Iterator<Item = (&Entry, &Summary)> {
        self.entries
            .iter()
            .filter_map(|entry| Some((entry, entry.summary()?)))
    }

    /// The newest whole archive; one of a clock that was wrong would be that for years.
    pub fn newest_whole(&self) -> Option<&Summary> {
        self.archives()
            .map(|(_, summary)| summary)
            .find(|summary| summary.is_full() && !is_future(summary.created, self.at))
    }

    /// The copies that a wish means: of one archive, in the order of the sinks.
    pub fn choose(&self, wish: &Wish, zone: &TimeZone) -> Result<Vec<&Entry>> {
        let candidates: Vec<_> = self
            .archives()
            .filter(|(entry, _)| wish.from.as_ref().is_none_or(|from| *from == entry.sink))
            .collect();
        if candidates.is_empty() {
            let whose = wish
                .from
                .as_ref()
                .map_or_else(String::new, |from| format!(" on `{from}`"));
            let unread = self.entries.iter().find_map(|entry| match &entry.what {
                What::Damaged(why) => {
                    Some(format!(" that can be read; `{}`: {why}", entry.stored.name))
                }
                _ => None,
            });
            let unread = unread.unwrap_or_default();
            return Err(
                not_found(format!("there is no archive of this site{whose}{unread}"))
                    .hint("bk list --all"),
            );
        }
        let moment = wish
            .date
            .as_deref()
            .map(|date| Moment::parse(date, zone))
            .transpose()?;
        let fits = |entry: &Entry, summary: &Summary| {
            let date = moment
                .as_ref()
                .is_none_or(|moment| moment.takes(summary.created, zone));
            let version = wish.version.as_ref().is_none_or(|v| {
                *v == entry.version()
                    || *v == compact(summary.created)
                    || *v == summary.id
                    || entry.stored.name == *v
            });
            date && version
        };
        let mut fitting: Vec<_> = candidates
            .iter()
            .filter(|(entry, summary)| fits(entry, summary))
            .collect();
        // The newest is meant: not one of a clock that was wrong, while there is another.
        if wish.version.is_none() && wish.date.is_none() {
            let is_present = |s: &Summary| s.is_full() && !is_future(s.created, self.at);
            if fitting.iter().any(|(_, s)| is_present(s)) {
                fitting.retain(|(_, s)| !is_future(s.created, self.at));
            }
        }
        if fitting.is_empty() {
            return Err(nothing_fits(wish, &candidates, zone));
        }
        let of_one_second: BTreeSet<&str> = fitting
            .iter()
            .filter(|(entry, s)| {
                wish.version
                    .as_ref()
                    .is_some_and(|v| *v != s.id && *v != entry.stored.name)
            })
            .map(|(_, s)| s.id.as_str())
            .collect();
        if of_one_second.len() > 1 {
            let ids: Vec<_> = of_one_second.into_iter().collect();
            return Err(conflict(format!(
                "the version `{}` is of {} archives, made in the same second",
                wish.version.as_deref().unwrap_or_default(),
                ids.len()
            ))
            .hint(format!("name one by its id: {}", ids.join(", "))));
        }
        let full = || fitting.iter().find(|(_, s)| s.is_full());
        let chosen = full()
            .or_else(|| fitting.iter().find(|(_, s)| s.complete || wish.partial_too))
            .map(|(_, s)| s.id.clone());
        let Some(id) = chosen else {
            return Err(conflict(
                "the only archive that fits is partial: something named is missing in it",
            )
            .hint("look with bk show, then repeat with --allow-partial"));
        };
        Ok(fitting
            .iter()
            .filter(|(_, s)| s.id == id)
            .map(|(entry, _)| *entry)
            .collect())
    }
}

impl Catalogue {
    /// What others left that fits a date or a version: by the day in its name where it has one, else by its last change. The newest of them.
    pub fn choose_foreign(&self, wish: &Wish, zone: &TimeZone) -> Option<&Entry> {
        let moment = match &wish.date {
            Some(date) => Some(Moment::parse(date, zone).ok()?),
            None => None,
        };
        let fits = |entry: &&Entry| {
            let stored = &entry.stored;
            let name = stored.name.trim_start_matches('/');
            let of_sink = wish.from.as_ref().is_none_or(|from| *from == entry.sink);
            let version = wish
                .version
                .as_ref()
                .is_none_or(|v| *v == stored.version || *v == stored.name || *v == name);
            let date = moment.is_none_or(|moment| match (moment, entry.day_in_name()) {
                (Moment::Day(day), Some(named)) => day == named,
                (moment, _) => moment.takes(stored.modified, zone),
            });
            matches!(entry.what, What::Foreign) && of_sink && version && date
        };
        self.entries
            .iter()
            .filter(fits)
            // The first of equal ones: sinks list newest first.
            .min_by_key(|entry| std::cmp::Reverse(entry.stored.modified))
    }
}

/// The archives of this site among these, as retention sees them: one that lies in several places is one, and goes or stays as one.
/// Damage in one of the places counts for all.
pub fn known<'a>(
    entries: impl IntoIterator<Item = &'a Entry>,
    pins: &BTreeMap<String, String>,
    checks: &Dates,
) -> Vec<Known> {
    let mut found: Vec<Known> = Vec::new();
    let mut at: HashMap<String, usize> = HashMap::new();
    for known in entries
        .into_iter()
        .filter_map(|entry| entry.known(pins, checks))
    {
        let Some(same) = at.get(&known.id).map(|at| &mut found[*at]) else {
            at.insert(known.id.clone(), found.len());
            found.push(known);
            continue;
        };
        same.placed.extend(known.placed);
        same.damaged |= known.damaged;
    }
    found
}

/// Newest first; of the places of one archive the shortest tier first.
fn newest_first(entry: &Entry) -> impl Ord + use<> {
    match &entry.what {
        What::Archive(summary) => (
            0,
            std::cmp::Reverse(summary.created),
            summary.id.clone(),
            entry.sink.clone(),
            entry.tier(),
        ),
        _ => (
            1,
            std::cmp::Reverse(entry.stored.modified),
            entry.stored.name.clone(),
            entry.sink.clone(),
            None,
        ),
    }
}

fn nothing_fits(wish: &Wish, candidates: &[(&Entry, &Summary)], zone: &TimeZone) -> Error {
    let mut days: Vec<_> = candidates
        .iter()
        .map(|(_, s)| s.created.to_zoned(zone.clone()).date())
        .collect();
    days.dedup();
    let near = match wish
        .date
        .as_deref()
        .and_then(|date| Moment::parse(date, zone).ok())
    {
        Some(moment) => {
            days.sort_by_key(|day| {
                (
                    moment
                        .day(zone)
                        .until(*day)
                        .map_or(i64::MAX, |span| i64::from(span.get_days()).abs()),
                    *day,
                )
            });
            days
        }
        None => days,
    };
    let said: Vec<_> = near.iter().take(3).map(ToString::to_string).collect();
    let asked = match (&wish.date, &wish.version) {
        (Some(date), Some(version)) => format!("of {date} with version `{version}`"),
        (Some(date), None) => format!("of {date}"),
        (None, Some(version)) => format!("with version `{version}`"),
        (None, None) => "that fits".into(),
    };
    not_found(format!("there is no archive {asked}")).hint(format!(
        "the nearest days with archives: {}; bk list shows all",
        said.join(", ")
    ))
}

/// Which archive a person asks for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// `--date`.
    pub date: Option<String>,
    /// `--version`.
    pub version: Option<String>,
    /// `--from`.
    pub from: Option<String>,
    /// `--allow-partial`.
    pub partial_too: bool,
}

impl Wish {
    /// Whether it asks for more than the newest.
    pub fn is_definite(&self) -> bool {
        self.date.is_some() || self.version.is_some()
    }
}

/// A day, or an instant whose newest archive at or before it is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// That day's newest.
    Day(jiff::civil::Date),
    /// The newest at or before it.
    AtOrBefore(Timestamp),
}

impl Moment {
    /// `2026-08-22`, `20260822`, `20260822_031500`, `20260822T031500Z` or RFC 3339.
    pub fn parse(text: &str, zone: &TimeZone) -> Result<Self> {
        let wrong = || {
            settings(format!("`{text}` is no date"))
                .hint("write 2026-08-22, 20260822_031500 or 2026-08-22T03:15:00Z")
        };
        if let Ok(day) = jiff::civil::Date::strptime("%Y-%m-%d", text)
            .or_else(|_| jiff::civil::Date::strptime("%Y%m%d", text))
        {
            return Ok(Self::Day(day));
        }
        if let Ok(at) = text.parse::<Timestamp>() {
            return Ok(Self::AtOrBefore(at));
        }
        let at = jiff::civil::DateTime::strptime("%Y%m%d_%H%M%S", text)
            .or_else(|_| text.parse())
            .map_err(|_| wrong())?;
        Ok(Self::AtOrBefore(
            at.to_zoned(zone.clone()).map_err(|_| wrong())?.timestamp(),
        ))
    }

    fn takes(self, created: Timestamp, zone: &TimeZone) -> bool {
        match self {
            Self::Day(day) => created.to_zoned(zone.clone()).date() == day,
            Self::AtOrBefore(at) => created <= at,
        }
    }

    fn day(self, zone: &TimeZone) -> jiff::civil::Date {
        match self {
            Self::Day(day) => day,
            Self::AtOrBefore(at) => at.to_zoned(zone.clone()).date(),
        }
    }
}

async fn read_sink(cx: &Context, instance: &SinkInstance, care: Care) -> Result<Vec<Entry>> {
    let sink = &instance.sink;
    let filter = Filter {
        prefix: String::new(),
        care,
    };
    let mut stored = sink.list(cx, &filter).await?;
    let noted = Noted::read(cx, sink, care).await?;
    stored.extend(not_listed(cx, sink, &noted, &stored, care).await?);
    let entries: Vec<Entry> = stream::iter(stored)
        .map(|stored| {
            let hint = noted.get(&stored).cloned();
            async move {
                let what = match hint {
                    Some(what) => what,
                    None => look(cx, sink, &stored).await?,
                };
                Ok::<_, Error>(Entry {
                    sink: instance.name.clone(),
                    stored,
                    what,
                })
            }
        })
        // In the order of the list: copies of one second are told apart by it.
        .buffered(TAILS_AT_ONCE)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<Result<_>>()?;
    noted.update(cx, sink, &entries, care).await;
    Ok(entries)
}

/// What the notes know and the list leaves out is asked for: a list that hides archives must not decide what is deleted.
async fn not_listed(
    cx: &Context,
    sink: &Arc<dyn Sink>,
    noted: &Noted,
    listed: &[Stored],
    care: Care,
) -> Result<Vec<Stored>> {
    let asked = stream::iter(noted.missing(listed))
        .map(|(stored, _)| async move {
            let there = is_there(cx, sink, &stored).await;
            (stored, there)
        })
        .buffer_unordered(TAILS_AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    let mut found = Vec::new();
    for (stored, there) in asked {
        match (there, care) {
            (Ok(false), _) => {}
            (Ok(true), Care::Delete) => {
                return Err(conflict(format!(
                    "the listing looks cut: `{}` is there and is not in it",
                    stored.name
                ))
                .hint("repeat later; nothing was deleted"));
            }
            (Ok(true), Care::Look) => {
                tracing::warn!(name = %stored.name, version = %stored.version, "is there, but was not listed: the list looks cut");
                found.push(stored);
            }
            (Err(error), Care::Delete) => return Err(error),
            (Err(error), Care::Look) => {
                tracing::debug!(%error, "a noted archive cannot be asked for");
            }
        }
    }
    Ok(found)
}

async fn is_there(cx: &Context, sink: &Arc<dyn Sink>, stored: &Stored) -> Result<bool> {
    let first = match sink.read(cx, stored, 0..stored.bytes.min(1)).await {
        Ok(mut stream) => stream.next().await.transpose(),
        Err(error) => Err(error),
    };
    match first {
        Ok(_) => Ok(true),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
        // Another file lies under the name now.
        Err(error) if error.kind == ErrorKind::Conflict => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads the tail; where that fails, the head says whether it is a damaged archive of ours or a foreign thing.
async fn look(cx: &Context, sink: &Arc<dyn Sink>, stored: &Stored) -> Result<What> {
    let read: Arc<dyn ReadAt> = Arc::new(SinkReadAt::new(cx.clone(), sink.clone(), stored.clone()));
    match Opened::open(read.clone()).await {
        Ok(opened) => {
            let summary = Summary::from(&opened.manifest);
            Ok(if *summary.site == *cx.site {
                What::Archive(Box::new(summary))
            } else {
                What::OtherSite(summary.site)
            })
        }
        Err(error) if matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Unsupported) => {
            Ok(match head(read.as_ref()).await {
                Some(head) if *head.site == *cx.site => What::Damaged(error.what),
                Some(head) => What::OtherSite(head.site),
                None if named_as_ours(&stored.name)
                    && error.kind == ErrorKind::Corrupt
                    && !begins_as_others(read.as_ref()).await =>
                {
                    What::Damaged(error.what)
                }
                None => What::Foreign,
            })
        }
        // One file that cannot be read must not hide the others; one that another run has just deleted is damaged for a moment.
        Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::NotFound) => {
            let what_next = error.hint.map(|hint| format!(": {hint}"));
            Ok(What::Damaged(error.what + &what_next.unwrap_or_default()))
        }
        Err(error) => Err(error.within(format!("`{}`", stored.name))),
    }
}

/// Tutor's backup plugin gives its archives names like ours.
async fn begins_as_others(read: &dyn ReadAt) -> bool {
    const ENOUGH_BYTES: u64 = 64 << 10;
    match read.read_at(0, read.len().min(ENOUGH_BYTES)).await {
        Ok(bytes) => foreign::begins_as_others_tar(&bytes),
        Err(_) => false,
    }
}

/// Whether the file is called as archives of `bk` are: `PREFIX.YYYY-MM-DD….tar.xz`.
fn named_as_ours(name: &str) -> bool {
    let day = name.split('.').nth(1).unwrap_or_default();
    name.contains(".tar.xz") && jiff::civil::Date::strptime("%Y-%m-%d", day).is_ok()
}

/// The first member of an archive whose end is lost.
pub async fn head(read: &dyn ReadAt) -> Option<FormatMember> {
    let bytes = read.read_at(0, read.len().min(4096)).await.ok()?;
    let block = bytes.get(xz::STREAM_HEADER.len()..)?;
    let record = xz::record_of_block(block)?;
    let raw = xz::decode(block.get(..record.stored() as usize)?, record).ok()?;
    let mut text = Vec::new();
    tar::read_members(&raw[..], |head, body| {
        if head.path.as_bytes() == FORMAT_MEMBER.as_bytes() {
            body.read_to_end(&mut text)
                .map_err(|e| Error::corrupt(e.to_string()))?;
        }
        Ok(())
    })
    .ok()?;
    serde_json::from_slice(&text).ok()
}
