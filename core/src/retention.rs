//! Which archives to keep: a pure function from what is there to a verdict with a reason for each.
//!
//! Every rule on its own walks from the newest to the oldest and keeps the newest of each period until its number of periods is used; an
//! archive that any rule keeps is kept. Deleting is somebody else's work, and stops where a hold says so.

use crate::sink::Tier;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Days that a partial archive is kept after a newer whole one was verified.
const PARTIAL_DAYS: i64 = 7;
/// Archives whose median an instance's size is compared with.
const MEDIAN_OF: usize = 7;

/// `keep = { … }`: how many of each period. A rule that is left out keeps nothing; all left out keep everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    /// The newest so many.
    pub last: u32,
    /// The newest of each of so many hours.
    pub hourly: u32,
    /// The newest of each of so many days.
    pub daily: u32,
    /// The newest of each of so many ISO weeks.
    pub weekly: u32,
    /// The newest of each of so many months.
    pub monthly: u32,
    /// The newest of each of so many years.
    pub yearly: u32,
    /// Whole archives that are never let go, the newest; at least 1.
    pub floor: u32,
}

impl Keep {
    /// The newest so many and nothing else.
    pub fn last(count: u32) -> Self {
        Self {
            last: count,
            ..Self::default()
        }
    }

    /// Whether it lets anything go at all.
    pub fn is_unlimited(&self) -> bool {
        [
            self.last,
            self.hourly,
            self.daily,
            self.weekly,
            self.monthly,
            self.yearly,
        ]
        .iter()
        .all(|n| *n == 0)
    }
}

/// An archive of this site on one sink, as retention sees it.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its id.
    pub id: String,
    /// Start of its run.
    pub created: Timestamp,
    /// Whether it is whole.
    pub complete: bool,
    /// Whether somebody pinned it.
    pub pinned: bool,
    /// What it holds.
    pub instances: Vec<Size>,
}

/// How much of an instance an archive holds, and who it was.
#[derive(Clone, Debug)]
pub struct Size {
    /// The instance.
    pub name: String,
    /// Who it was.
    pub identity: String,
    /// Rows, documents, entries.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What becomes of one archive, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The archive.
    pub id: String,
    /// Kept or let go.
    pub keep: bool,
    /// Every reason to keep it; or the one why it goes.
    pub reasons: Vec<String>,
    /// For how long it is wanted, when only rules of periods keep it; nothing for one that must not expire by itself.
    #[serde(skip)]
    pub tier: Option<Tier>,
}

/// What becomes of all of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// Newest first.
    pub decisions: Vec<Decision>,
    /// Reasons to delete nothing at all. Released by accepting the newest archive.
    pub holds: Vec<String>,
}

impl Verdict {
    /// Ids that may be deleted now: none while anything holds.
    pub fn deletions(&self) -> impl Iterator<Item = &str> {
        let free = self.holds.is_empty();
        self.decisions
            .iter()
            .filter(move |d| free && !d.keep)
            .map(|d| d.id.as_str())
    }
}

/// Decides. `accepted` are ids of newest archives whose holds an operator has released.
pub fn decide(
    archives: &[Known],
    keep: &Keep,
    zone: &TimeZone,
    now: Timestamp,
    accepted: &BTreeSet<String>,
) -> Verdict {
    let mut sorted: Vec<&Known> = archives.iter().collect();
    sorted.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| b.id.cmp(&a.id)));
    let mut kept: BTreeMap<&str, Vec<Reason>> = BTreeMap::new();
    let mut add = |known: &Known, reason: Reason| {
        if let Some(known) = sorted.iter().find(|k| k.id == known.id) {
            kept.entry(known.id.as_str()).or_default().push(reason);
        }
    };
    for known in sorted.iter().filter(|k| k.pinned) {
        add(known, Reason::always("pinned"));
    }
    let whole: Vec<&Known> = sorted.iter().copied().filter(|k| k.complete).collect();
    for (known, reason) in rules(&whole, keep, zone) {
        add(known, reason);
    }
    for known in sorted.iter().filter(|k| !k.complete) {
        if let Some(reason) = partial_stays(known, &whole, now) {
            add(known, Reason::always(reason));
        }
    }
    let decisions: Vec<Decision> = sorted
        .iter()
        .map(|known| match kept.remove(known.id.as_str()) {
            Some(reasons) => Decision {
                id: known.id.clone(),
                keep: true,
                tier: longest(&reasons),
                reasons: reasons.into_iter().map(|reason| reason.words).collect(),
            },
            None => Decision {
                id: known.id.clone(),
                keep: false,
                tier: None,
                reasons: vec![why_gone(known)],
            },
        })
        .collect();
    let accepted = sorted
        .first()
        .is_some_and(|newest| accepted.contains(&newest.id));
    let holds = if accepted {
        Vec::new()
    } else {
        holds(&sorted, &decisions, now)
    };
    Verdict { decisions, holds }
}

fn why_gone(known: &Known) -> String {
    if known.complete {
        "no rule keeps it".into()
    } else {
        format!("partial, and a whole one is newer by {PARTIAL_DAYS} days")
    }
}

/// Why an archive stays, and for how long that holds when nobody decides anew.
struct Reason {
    words: String,
    tier: Option<Tier>,
}

impl Reason {
    fn always(words: impl Into<String>) -> Self {
        Self {
            words: words.into(),
            tier: None,
        }
    }
}

/// The longest tier, unless something keeps it without end.
fn longest(reasons: &[Reason]) -> Option<Tier> {
    let tiers: Option<Vec<Tier>> = reasons.iter().map(|reason| reason.tier).collect();
    tiers?.into_iter().max_by_key(|tier| tier.days)
}

/// Names the period that an instant lies in.
type Period = fn(jiff::civil::DateTime) -> String;

fn rules<'a>(whole: &[&'a Known], keep: &Keep, zone: &TimeZone) -> Vec<(&'a Known, Reason)> {
    let mut kept = Vec::new();
    if keep.is_unlimited() {
        return whole
            .iter()
            .map(|k| (*k, Reason::always("no rule lets anything go")))
            .collect();
    }
    for (n, known) in whole.iter().take(keep.floor.max(1) as usize).enumerate() {
        let floor = keep.floor.max(1);
        let words = format!(
            "floor {} of {floor}: whole archives are never all let go",
            n + 1
        );
        kept.push((*known, Reason::always(words)));
    }
    for (n, known) in whole.iter().take(keep.last as usize).enumerate() {
        let words = format!("last {} of {}", n + 1, keep.last);
        kept.push((*known, Reason::always(words)));
    }
    for (tier, count, period) in periods(keep) {
        let mut used: Vec<(&Known, String)> = Vec::new();
        for known in whole {
            let name = period(known.created.to_zoned(zone.clone()).datetime());
            if used.last().map(|(_, last)| last) != Some(&name) && used.len() < count as usize {
                used.push((known, name));
            }
        }
        let tier = with_gaps(tier, count, &used);
        for (n, (known, name)) in used.into_iter().enumerate() {
            let words = format!("{} {} of {count}: {name}", tier.rule, n + 1);
            let tier = Some(tier);
            kept.push((known, Reason { words, tier }));
        }
    }
    kept
}

/// Hours that count as a day's beginning: a gap of 30 hours is two days, one of 29 is one.
const LATE_HOURS: i64 = 18;

/// A period without an archive counts for nothing, so where archives are rare a rule reaches further back than its periods last.
fn with_gaps(tier: Tier, count: u32, kept: &[(&Known, String)]) -> Tier {
    let gaps = kept.windows(2).map(|two| {
        let hours = two[0].0.created.duration_since(two[1].0.created).as_hours();
        // A run that starts some hours late makes no day more.
        u32::try_from((hours + LATE_HOURS) / 24).unwrap_or(u32::MAX)
    });
    let longest = gaps.max().unwrap_or(0);
    Tier {
        days: tier.days.max(count.saturating_mul(longest)),
        ..tier
    }
}

/// Rule by rule: how long all its periods last, how many there are, and which one an instant lies in.
fn periods(keep: &Keep) -> [(Tier, u32, Period); 5] {
    let tier = |rule, days| Tier { rule, days };
    [
        (tier("hourly", keep.hourly.div_ceil(24)), keep.hourly, |t| {
            t.strftime("%Y-%m-%d %H h").to_string()
        }),
        (tier("daily", keep.daily), keep.daily, |t| {
            t.strftime("%Y-%m-%d").to_string()
        }),
        (
            tier("weekly", keep.weekly.saturating_mul(7)),
            keep.weekly,
            |t| t.strftime("%G-W%V").to_string(),
        ),
        (
            tier("monthly", keep.monthly.saturating_mul(31)),
            keep.monthly,
            |t| t.strftime("%Y-%m").to_string(),
        ),
        (
            tier("yearly", keep.yearly.saturating_mul(366)),
            keep.yearly,
            |t| t.strftime("%Y").to_string(),
        ),
    ]
}

fn partial_stays(partial: &Known, whole: &[&Known], now: Timestamp) -> Option<String> {
    let newer = whole
        .iter()
        .filter(|k| k.created > partial.created)
        .map(|k| k.created)
        .min();
    match newer {
        None => Some("partial, and no whole one is newer".into()),
        Some(at) if at + (PARTIAL_DAYS * 24).hours() > now => Some(format!(
            "partial, kept {PARTIAL_DAYS} days after the next whole one"
        )),
        Some(_) => None,
    }
}

fn holds(sorted: &[&Known], decisions: &[Decision], now: Timestamp) -> Vec<String> {
    let mut holds = Vec::new();
    let Some(newest) = sorted.first() else {
        return holds;
    };
    if newest.created > now + 5.minutes() {
        holds.push(format!(
            "the newest archive is dated {}, in the future",
            newest.created
        ));
    }
    let gone = decisions.iter().filter(|d| !d.keep).count();
    if gone * 2 > decisions.len() {
        holds.push(format!(
            "{gone} of {} archives would go, more than half",
            decisions.len()
        ));
    }
    let Some(newest) = sorted.iter().find(|k| k.complete) else {
        return holds;
    };
    let before: Vec<&Known> = sorted
        .iter()
        .copied()
        .filter(|k| k.complete && k.created < newest.created)
        .take(MEDIAN_OF)
        .collect();
    if let Some(previous) = before.first() {
        vanished(newest, previous, &mut holds);
    }
    for size in &newest.instances {
        let earlier: Vec<&Size> = before
            .iter()
            .filter_map(|k| k.instances.iter().find(|i| i.name == size.name))
            .collect();
        for (what, now, then) in [
            ("rows", size.rows, median(earlier.iter().map(|s| s.rows))),
            ("bytes", size.bytes, median(earlier.iter().map(|s| s.bytes))),
        ] {
            let then = then.unwrap_or(0);
            if then > 0 && now * 2 < then {
                holds.push(format!(
                    "`{}` has {now} {what}, less than half of the median {then} of its last {}",
                    size.name,
                    earlier.len()
                ));
            }
        }
    }
    holds
}

fn vanished(newest: &Known, previous: &Known, holds: &mut Vec<String>) {
    for size in &previous.instances {
        match newest.instances.iter().find(|i| i.name == size.name) {
            None => holds.push(format!(
                "`{}` was in the archive before and is in the newest no more",
                size.name
            )),
            Some(now) if now.identity != size.identity => {
                holds.push(format!("`{}` is another server than in the archive before: are these two sites under one name?", size.name));
            }
            Some(_) => {}
        }
    }
}

/// The one in the middle, the larger of two; nothing of nothing.
pub(crate) fn median<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}
