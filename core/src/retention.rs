//! Which archives to keep: a pure function from what is there to a verdict with a reason for each.
//!
//! Every rule on its own walks from the newest to the oldest and keeps one of each period, as far back as it reaches; an archive that any rule
//! keeps is kept. While a rule by count has periods left it keeps the oldest archive too, so that a rule of years has one to grow from.
//! Deleting is somebody else's work, and stops where a hold says so.

mod holds;
mod keep;
mod tomorrow;

use crate::layout::{Layout, Tier};
use crate::sink::Lifetime;
use holds::holds;
pub(crate) use holds::median;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
pub use keep::{Age, Keep, Limit, Period, Pick, Rule};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
pub use tomorrow::tomorrow;

/// How far the clocks of two machines may be apart.
const CLOCKS_DIFFER_MINUTES: i64 = 5;
/// Days that a partial archive is kept after a newer whole one was verified.
const PARTIAL_DAYS: i64 = 7;

/// An archive of this site on one sink, as retention sees it.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its id.
    pub id: String,
    /// Start of its run.
    pub created: Timestamp,
    /// Whether it is whole.
    pub complete: bool,
    /// Whether the last check of a copy of it found damage.
    pub damaged: bool,
    /// Whether somebody pinned it.
    pub pinned: bool,
    /// In which tiers' folders it lies, and `None` where it lies outside of them; empty: nothing but outside.
    pub placed: BTreeSet<Option<Tier>>,
    /// What it holds.
    pub instances: Vec<Size>,
}

impl Known {
    /// Whole, as far as is known.
    pub fn is_good(&self) -> bool {
        self.complete && !self.damaged
    }
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

/// What decides.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// The rules.
    pub keep: &'a Keep,
    /// Where archives lie on the sink.
    pub layout: Layout,
    /// Whose days and weeks.
    pub zone: &'a TimeZone,
}

/// What archives are measured by, as earlier runs and operators left it: it must outlive the archives that it speaks of.
#[derive(Clone, Debug, Default)]
pub struct Measure {
    /// Ids of newest archives whose holds an operator has released.
    pub accepted: BTreeSet<String>,
    /// The run of the newest of them: what is older is no measure any more.
    pub since: Option<Timestamp>,
    /// The newest whole archive about which nothing was unusual.
    pub usual_until: Option<Timestamp>,
}

impl From<BTreeSet<String>> for Measure {
    fn from(accepted: BTreeSet<String>) -> Self {
        Self {
            accepted,
            ..Self::default()
        }
    }
}

/// What becomes of one archive, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The archive.
    pub id: String,
    /// Start of its run.
    pub created: Timestamp,
    /// Kept or let go.
    pub keep: bool,
    /// Words of the rules that keep it.
    pub rules: Vec<&'static str>,
    /// Every reason to keep it; or the one why it goes.
    pub reasons: Vec<String>,
    /// For how long it is wanted, when only rules of periods keep it; nothing for one that must not expire by itself.
    #[serde(skip)]
    pub lifetime: Option<Lifetime>,
    /// The tiers that it is kept for, each with its time; nothing where that is no matter of tiers: then it stays wherever it lies.
    #[serde(skip)]
    pub tiers: Option<BTreeMap<Tier, Option<Lifetime>>>,
}

impl Decision {
    /// Whether what lies here is what it is kept for. What lies outside of all tiers stands for each that it is wanted in and does not lie in.
    pub fn wants(&self, here: Option<Tier>, placed: &BTreeSet<Option<Tier>>) -> bool {
        let Some(wanted) = self.tiers.as_ref().filter(|_| self.keep) else {
            return self.keep;
        };
        match here {
            Some(tier) => wanted.contains_key(&tier),
            None => wanted.keys().any(|tier| !placed.contains(&Some(*tier))),
        }
    }

    /// For how long what lies here is wanted.
    pub fn lifetime_in(&self, placed: Option<Tier>) -> Option<Lifetime> {
        let tiers = self.tiers.as_ref();
        let there = placed.and_then(|tier| tiers?.get(&tier).copied());
        there.unwrap_or(self.lifetime)
    }
}

/// What becomes of all of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// Newest first.
    pub decisions: Vec<Decision>,
    /// Reasons to delete nothing at all.
    pub holds: Vec<String>,
    /// The archive that releases them, or the first of them, when it is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub releases: Option<String>,
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

/// Decides. A damaged one stands for nothing, and is nobody's to let go.
pub fn decide(
    archives: &[Known],
    policy: &Policy<'_>,
    now: Timestamp,
    measure: &Measure,
) -> Verdict {
    let sorted = newest_first(archives);
    let mut kept: Vec<Vec<Reason>> = sorted.iter().map(|_| Vec::new()).collect();
    for (at, known) in sorted.iter().enumerate() {
        if known.pinned {
            kept[at].push(Reason::always("pinned", "pinned"));
        }
        if is_of_the_future(known, now) {
            kept[at].push(Reason::always("future", "dated in the future"));
        }
        if known.damaged {
            kept[at].push(Reason::always("damaged", "failed its check"));
        }
        if !known.complete
            && let Some(words) = partial_stays(known, &sorted, now)
        {
            kept[at].push(Reason::always("partial", words));
        }
    }
    keep_whole(&sorted, policy, now, &mut kept);
    let decisions: Vec<Decision> = sorted.iter().zip(kept).map(decision).collect();
    let (holds, releases) = holds(&sorted, &decisions, now, measure);
    Verdict {
        decisions,
        holds,
        releases,
    }
}

/// Such an archive is no measure for the age of others.
fn is_of_the_future(known: &Known, now: Timestamp) -> bool {
    is_future(known.created, now)
}

/// Whether an instant is later than two clocks that differ explain.
pub(crate) fn is_future(at: Timestamp, now: Timestamp) -> bool {
    at > now + CLOCKS_DIFFER_MINUTES.minutes()
}

fn newest_first(archives: &[Known]) -> Vec<&Known> {
    let mut sorted: Vec<&Known> = archives.iter().collect();
    sorted.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| b.id.cmp(&a.id)));
    sorted
}

fn decision((known, reasons): (&&Known, Vec<Reason>)) -> Decision {
    if reasons.is_empty() {
        return Decision {
            id: known.id.clone(),
            created: known.created,
            keep: false,
            rules: Vec::new(),
            reasons: vec![why_gone(known)],
            lifetime: None,
            tiers: None,
        };
    }
    Decision {
        id: known.id.clone(),
        created: known.created,
        keep: true,
        rules: reasons.iter().map(|reason| reason.rule).collect(),
        lifetime: longest(reasons.iter()),
        tiers: tiers(&reasons),
        reasons: reasons.into_iter().map(|reason| reason.words).collect(),
    }
}

fn why_gone(known: &Known) -> String {
    if known.complete {
        "no rule keeps it".into()
    } else {
        format!("partial, and a whole one is newer by {PARTIAL_DAYS} days")
    }
}

/// Why an archive stays, for which tier, and for how long that holds when nobody decides anew.
struct Reason {
    rule: &'static str,
    words: String,
    tier: Option<Tier>,
    lifetime: Option<Lifetime>,
}

impl Reason {
    fn always(rule: &'static str, words: impl Into<String>) -> Self {
        Self {
            rule,
            words: words.into(),
            tier: None,
            lifetime: None,
        }
    }
}

/// The longest time, unless something keeps it without end.
fn longest<'a>(reasons: impl Iterator<Item = &'a Reason>) -> Option<Lifetime> {
    let times: Option<Vec<Lifetime>> = reasons.map(|reason| reason.lifetime).collect();
    times?.into_iter().max_by_key(|time| time.days)
}

/// The tiers that rules keep it for. What is kept for another reason as well must not expire in any of them.
fn tiers(reasons: &[Reason]) -> Option<BTreeMap<Tier, Option<Lifetime>>> {
    let wanted: BTreeSet<Tier> = reasons.iter().filter_map(|reason| reason.tier).collect();
    if wanted.is_empty() {
        return None;
    }
    let counts = |reason: &&Reason, tier| reason.tier.is_none_or(|of| of == tier);
    let time = |tier| longest(reasons.iter().filter(|reason| counts(reason, tier)));
    Some(wanted.into_iter().map(|tier| (tier, time(tier))).collect())
}

/// What the floor and the rules say of the whole ones that nothing speaks against.
fn keep_whole(sorted: &[&Known], policy: &Policy<'_>, now: Timestamp, kept: &mut [Vec<Reason>]) {
    let whole: Vec<usize> = (0..sorted.len())
        .filter(|at| sorted[*at].is_good() && !is_of_the_future(sorted[*at], now))
        .collect();
    let rules = policy.keep.rules(policy.layout);
    if rules.is_empty() {
        for at in whole {
            kept[at].push(Reason::always("all", "no rule lets anything go"));
        }
        return;
    }
    let floor = policy.keep.floor.max(1);
    for (n, at) in whole.iter().take(floor as usize).enumerate() {
        let words = format!(
            "floor {} of {floor}: whole archives are never all let go",
            n + 1
        );
        kept[*at].push(Reason::always("floor", words));
    }
    let mut local = vec![DateTime::default(); sorted.len()];
    for at in &whole {
        local[*at] = policy.zone.to_datetime(sorted[*at].created);
    }
    let newest = whole.first().map(|at| sorted[*at].created);
    for rule in rules {
        let asked = whole.iter().copied().filter(|at| {
            let placed = &sorted[*at].placed;
            let outside = placed.is_empty() || placed.contains(&None);
            outside || rule.tier.is_none_or(|tier| placed.contains(&Some(tier)))
        });
        let since = match (rule.limit, newest) {
            (Limit::Age(age), Some(newest)) => age.before(newest, policy.zone),
            _ => Timestamp::MIN,
        };
        let asked: Vec<usize> = asked
            .filter(|at| rule.limit.is_count() || sorted[*at].created > since)
            .collect();
        let picked = pick(&rule, &asked, &local);
        let lifetime = lifetime(&rule, &picked, sorted);
        for one in picked {
            kept[one.at].push(Reason {
                rule: rule.word(),
                words: one.words(&rule, local[one.at]),
                tier: rule.tier,
                lifetime,
            });
        }
    }
}

/// An archive that a rule keeps.
struct Picked {
    at: usize,
    /// Which of the rule's periods it stands for, from 1.
    period: u32,
    /// It is there because nothing is older, and the rule has periods left.
    oldest: bool,
}

/// Walks from the newest to the oldest.
fn pick(rule: &Rule, asked: &[usize], local: &[DateTime]) -> Vec<Picked> {
    let most = match rule.limit {
        Limit::Count(count) => count,
        Limit::Age(_) => u32::MAX,
    };
    let mut picked: Vec<Picked> = Vec::new();
    let (mut period, mut last) = (0, None);
    for (n, at) in asked.iter().copied().enumerate() {
        let key = match rule.period {
            Period::Each => i64::try_from(n).unwrap_or(i64::MAX),
            other => other.number(local[at]),
        };
        let begins = last != Some(key);
        let is_oldest = n + 1 == asked.len();
        if begins && period == most {
            break;
        }
        period += u32::from(begins);
        last = Some(key);
        let one = Picked {
            at,
            period,
            oldest: false,
        };
        match rule.pick {
            Pick::Newest if begins => picked.push(one),
            Pick::Newest if is_oldest && rule.limit.is_count() && period < most => {
                picked.push(Picked {
                    period: period + 1,
                    oldest: true,
                    ..one
                });
            }
            Pick::Newest => {}
            Pick::Every => picked.push(one),
            Pick::First => {
                picked.pop_if(|newer| newer.period == period);
                picked.push(one);
            }
        }
    }
    picked
}

impl Picked {
    fn words(&self, rule: &Rule, local: DateTime) -> String {
        let name = match rule.period {
            Period::Each => String::new(),
            Period::Hour => local.strftime(": %Y-%m-%d %H h").to_string(),
            Period::Day => local.strftime(": %Y-%m-%d").to_string(),
            Period::Week => local.strftime(": %G-W%V").to_string(),
            Period::Month => local.strftime(": %Y-%m").to_string(),
            Period::Year => local.strftime(": %Y").to_string(),
        };
        let which = if self.oldest { ", the oldest" } else { "" };
        let reach = match (rule.limit, rule.period) {
            (Limit::Count(u32::MAX), _) => "unlimited".to_owned(),
            (Limit::Count(count), _) => format!("{} of {count}", self.period),
            (Limit::Age(age), Period::Each) => age.to_string(),
            (Limit::Age(age), _) => format!("within {age}"),
        };
        format!("{} {reach}{name}{which}", rule.word())
    }
}

impl Limit {
    fn is_count(self) -> bool {
        matches!(self, Self::Count(_))
    }
}

impl Period {
    /// Equal for two local times exactly when they lie in one period.
    fn number(self, local: DateTime) -> i64 {
        let date = local.date();
        let day = || i64::from(date.year()) * 400 + i64::from(date.day_of_year());
        match self {
            // Each is its own.
            Self::Each => 0,
            Self::Hour => day() * 24 + i64::from(local.hour()),
            Self::Day => day(),
            Self::Week => {
                let week = date.iso_week_date();
                i64::from(week.year()) * 100 + i64::from(week.week())
            }
            Self::Month => i64::from(date.year()) * 100 + i64::from(date.month()),
            Self::Year => i64::from(date.year()),
        }
    }

    /// Days that it has at most; nothing for what is no period.
    fn most_days(self) -> Option<u32> {
        match self {
            Self::Each => None,
            Self::Hour | Self::Day => Some(1),
            Self::Week => Some(7),
            Self::Month => Some(31),
            Self::Year => Some(366),
        }
    }
}

/// Hours that count as a day's beginning: a gap of 30 hours is two days, one of 29 is one.
const LATE_HOURS: i64 = 18;

/// For how long a rule of periods wants what it keeps. A period without an archive counts for nothing, so where archives are rare a rule by count
/// reaches further back than its periods last.
fn lifetime(rule: &Rule, picked: &[Picked], sorted: &[&Known]) -> Option<Lifetime> {
    let most_days = rule.period.most_days()?;
    let rule_word = rule.word();
    let count = match rule.limit {
        Limit::Count(count) => count,
        Limit::Age(age) => {
            let days = age.as_days().saturating_add(most_days);
            return Some(Lifetime {
                rule: rule_word,
                days,
            });
        }
    };
    let created = |one: &Picked| sorted[one.at].created;
    let gaps = picked.windows(2).map(|two| {
        let hours = created(&two[0]).duration_since(created(&two[1])).as_hours();
        // A run that starts some hours late makes no day more.
        u32::try_from((hours + LATE_HOURS) / 24).unwrap_or(u32::MAX)
    });
    let longest = gaps.max().unwrap_or(0);
    let days = match rule.period {
        Period::Hour => count.div_ceil(24),
        _ => count.saturating_mul(most_days),
    };
    Some(Lifetime {
        rule: rule_word,
        days: days.max(count.saturating_mul(longest)),
    })
}

fn partial_stays(partial: &Known, sorted: &[&Known], now: Timestamp) -> Option<String> {
    let newer = sorted
        .iter()
        .filter(|k| k.is_good() && k.created > partial.created)
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
