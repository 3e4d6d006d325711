//! The layout `tiers`: the first whole archive of a week, a month and a year gets a place in their folders too, without being sent again.
//!
//! Where a sink can, both places share their bytes; where it cannot, the archive is read and written once more.

use crate::archive::read_at::SinkReadAt;
use crate::catalog::{self, Catalogue, Entry, Summary};
use crate::config::SinkInstance;
use crate::context::Context;
use crate::copy;
use crate::error::{Error, ErrorKind, Result, bug, settings};
use crate::layout::{Layout, Tier, file_name};
use crate::retention::{Known, Measure, Policy, decide};
use crate::sink::Care;
use crate::verify::dates::Dates;
use crate::verify::{Level, verify};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An archive of this age is placed instead of making another.
const YOUNG_HOURS: i64 = 6;

/// An archive that stands for a period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placed {
    /// The sink.
    pub sink: String,
    /// Its id.
    pub id: String,
    /// Where it lies.
    pub name: String,
    /// Whether it lay there before.
    pub was_there: bool,
}

/// What came of giving periods their archives.
#[derive(Clone, Debug, Default)]
pub struct Promoted {
    /// The new places.
    pub placed: Vec<Placed>,
    /// Periods that have none for it, each with why. While there are any, nothing may be let go: it may be all that they have.
    pub failed: Vec<String>,
}

/// Gives each period that a rule still reaches its first whole archive, where it has none yet; one that cannot be placed leaves its place to the
/// next. What an earlier run could not place is made up for.
pub async fn promote(cx: &Context, instance: &SinkInstance, zone: &TimeZone) -> Result<Promoted> {
    let mut promoted = Promoted::default();
    if instance.sink.layout() != Layout::Tiers {
        return Ok(promoted);
    }
    let there = There::read(cx, instance).await?;
    let keep = instance.policy.keep.as_ref();
    let policy = keep.map(|keep| Policy {
        keep,
        layout: Layout::Tiers,
        zone,
    });
    for tier in Tier::PROMOTED {
        if keep.is_some_and(|keep| !keep.keeps(tier)) {
            continue;
        }
        for folder in there.periods(tier) {
            if there.first_in(&folder).is_some() {
                continue;
            }
            let mut why = None;
            for entry in there.all_of(&folder, tier) {
                let wants = |policy| is_wanted(&there.known, entry, tier, policy, cx.clock.now());
                if !policy.as_ref().is_none_or(wants) {
                    break;
                }
                match place(cx, instance, entry, tier).await {
                    Ok(placed) => {
                        promoted.placed.push(placed);
                        why = None;
                        break;
                    }
                    Err(error) if is_of_one(&error) => {
                        let name = &entry.stored.name;
                        why.get_or_insert_with(|| {
                            format!("`{folder}` has no archive: `{name}`: {error}")
                        });
                    }
                    Err(error) => return Err(error),
                }
            }
            promoted.failed.extend(why);
        }
    }
    Ok(promoted)
}

/// Whether it may be the trouble of one archive: others may still be placed.
fn is_of_one(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::Corrupt | ErrorKind::Denied | ErrorKind::NotFound | ErrorKind::Conflict
    )
}

/// For `--tier`: the archive of the tier's present period on each sink that has tiers, the newest young one placed where the period has none.
/// Nothing where one of them has none that is young enough, cannot be asked, or has one that is not what it was: then a backup must be made. A day
/// may have many: for it one that lies there is no reason to make no other.
pub async fn place_young(
    cx: &Context,
    sinks: &[SinkInstance],
    tier: Tier,
    zone: &TimeZone,
) -> Result<Option<Vec<Placed>>> {
    let now = cx.clock.now();
    let folder = tier.folder(zone.to_datetime(now).date());
    let in_tiers = || sinks.iter().filter(|s| s.sink.layout() == Layout::Tiers);
    if in_tiers().next().is_none() {
        return Err(settings(format!(
            "no sink of this run has tiers to put a {tier} archive into"
        ))
        .hint("set layout = \"tiers\" in a [sink.NAME] table, or leave --tier out"));
    }
    match placed_young(cx, in_tiers(), tier, &folder).await {
        Err(error) if error.kind != ErrorKind::Cancelled => {
            tracing::warn!(%error, "no archive can be placed, another is made");
            Ok(None)
        }
        placed => placed,
    }
}

async fn placed_young(
    cx: &Context,
    in_tiers: impl Iterator<Item = &SinkInstance>,
    tier: Tier,
    folder: &str,
) -> Result<Option<Vec<Placed>>> {
    let now = cx.clock.now();
    let mut ways = Vec::new();
    for instance in in_tiers {
        let cx = cx.for_instance(&instance.name);
        let there = There::read(&cx, instance).await?;
        if let Some(entry) = there.first_in(folder).filter(|_| tier != Tier::Daily) {
            ways.push((instance, entry.clone(), true));
        } else if let Some(entry) = there.young(folder, tier, now) {
            ways.push((instance, entry, false));
        } else {
            return Ok(None);
        }
    }
    let mut placed = Vec::new();
    for (instance, entry, was_there) in ways {
        let cx = cx.for_instance(&instance.name);
        placed.push(if was_there {
            Placed::of(instance, &entry)
        } else {
            verify_young(&cx, instance, &entry).await?;
            place(&cx, instance, &entry, tier).await?
        });
    }
    Ok(Some(placed))
}

/// What is placed instead of a backup must be as good as one. A sink that proves its sums has proven this one when it was written.
async fn verify_young(cx: &Context, instance: &SinkInstance, entry: &Entry) -> Result<()> {
    let noted = entry.summary().and_then(|summary| summary.sha256.as_ref());
    if instance.sink.abilities().proof && noted.is_some() {
        return Ok(());
    }
    let sums = entry.sums(cx, &instance.sink).await?;
    let read = SinkReadAt::new(cx.clone(), instance.sink.clone(), entry.stored.clone());
    verify(Arc::new(read), sums.as_deref(), Level::Hash).await?;
    Ok(())
}

/// Gives an archive a place in this tier, and looks whether it opens there.
async fn place(cx: &Context, instance: &SinkInstance, entry: &Entry, tier: Tier) -> Result<Placed> {
    let summary = entry
        .summary()
        .ok_or_else(|| bug("only archives of this site are placed"))?;
    let name = copy::asked_name(entry, summary)?.in_tier(tier);
    let (stored, sha256) = match instance.sink.place(cx, &entry.stored, &name).await {
        Ok(stored) => (stored, summary.sha256.clone()),
        Err(error) if error.kind == ErrorKind::Unsupported => {
            tracing::info!(%error, "it is sent again");
            let way = (instance, instance);
            let (stored, sha256) = copy::stream(cx, entry, summary, way, &name).await?;
            (stored, Some(sha256))
        }
        Err(error) => return Err(error),
    };
    copy::accept(cx, instance, &stored, summary, sha256).await?;
    Ok(Placed {
        sink: instance.name.clone(),
        id: summary.id.clone(),
        name: stored.name,
        was_there: false,
    })
}

impl Placed {
    /// One that lay there before.
    fn of(instance: &SinkInstance, entry: &Entry) -> Self {
        let id = entry.summary().map(|s| s.id.clone());
        Self {
            sink: instance.name.clone(),
            id: id.unwrap_or_default(),
            name: entry.stored.name.clone(),
            was_there: true,
        }
    }
}

/// What lies on one sink.
struct There {
    catalogue: Catalogue,
    /// Ids of archives of which a check of any place found damage: places may share their bytes.
    damaged: BTreeSet<String>,
    known: Vec<Known>,
}

impl There {
    async fn read(cx: &Context, instance: &SinkInstance) -> Result<Self> {
        let catalogue = Catalogue::of(cx, instance, Care::Look).await?;
        let checks = Dates::read(cx, &instance.sink).await;
        let known = catalog::known(&catalogue.entries, &BTreeMap::new(), &checks);
        let damaged = known.iter().filter(|known| known.damaged);
        Ok(Self {
            damaged: damaged.map(|known| known.id.clone()).collect(),
            catalogue,
            known,
        })
    }

    /// Whole archives of all sources in which no check found damage, newest first.
    fn full(&self) -> impl Iterator<Item = (&Entry, &Summary)> {
        let archives = self.catalogue.archives();
        archives.filter(|(_, summary)| summary.is_full() && !self.damaged.contains(&summary.id))
    }

    /// Folders of the periods that there are whole archives of.
    fn periods(&self, tier: Tier) -> BTreeSet<String> {
        let folders = self.full().filter_map(|(e, s)| folder_of(e, s, tier));
        folders.collect()
    }

    /// The first that lies in this folder.
    fn first_in(&self, folder: &str) -> Option<&Entry> {
        let lies_in = |entry: &Entry| {
            let name = &entry.stored.name;
            name.strip_suffix(file_name(name)) == Some(&format!("{folder}/"))
        };
        let found = self.full().filter(|(entry, _)| lies_in(entry)).last();
        found.map(|(entry, _)| entry)
    }

    /// Those that were made in the period of this folder, wherever they lie, the first one first.
    fn all_of(&self, folder: &str, tier: Tier) -> Vec<&Entry> {
        let found = self.full().filter(|(e, s)| is_of(e, s, folder, tier));
        let mut found: Vec<&Entry> = found.map(|(entry, _)| entry).collect();
        found.reverse();
        found
    }

    /// The newest of this period, if it is young and not yet in the tier.
    fn young(&self, folder: &str, tier: Tier, now: Timestamp) -> Option<Entry> {
        let (entry, summary) = self.full().next()?;
        let mut places = self.full().filter(|(_, s)| s.id == summary.id);
        if places.any(|(place, _)| place.tier() == Some(tier)) {
            return None;
        }
        let age = now.duration_since(summary.created);
        let is_young = !age.is_negative() && summary.created + YOUNG_HOURS.hours() > now;
        (is_young && is_of(entry, summary, folder, tier)).then(|| entry.clone())
    }
}

/// Whether retention would keep it for this tier, if it lay there.
fn is_wanted(
    known: &[Known],
    entry: &Entry,
    tier: Tier,
    policy: &Policy<'_>,
    now: Timestamp,
) -> bool {
    let Some(id) = entry.summary().map(|summary| &summary.id) else {
        return false;
    };
    let mut known = known.to_vec();
    for archive in known.iter_mut().filter(|known| known.id == *id) {
        archive.placed.insert(Some(tier));
    }
    let verdict = decide(&known, policy, now, &Measure::default());
    let mut decisions = verdict.decisions.into_iter();
    let decision = decisions.find(|decision| decision.id == *id);
    let tiers = decision.and_then(|decision| decision.tiers);
    tiers.is_some_and(|tiers| tiers.contains_key(&tier))
}

/// The folder of the period that an archive was made in; nothing where its name is none of ours.
fn folder_of(entry: &Entry, summary: &Summary, tier: Tier) -> Option<String> {
    let name = copy::asked_name(entry, summary).ok()?;
    Layout::Tiers.folder(&name.in_tier(tier))
}

/// Whether an archive was made in the period of this folder.
fn is_of(entry: &Entry, summary: &Summary, folder: &str, tier: Tier) -> bool {
    folder_of(entry, summary, tier).as_deref() == Some(folder)
}
