//! What the run after this one will let go: the same decision, with one archive more.

use super::{Decision, Known, Measure, Policy, Verdict, decide, newest_first};
use crate::layout::{Layout, Tier};
use jiff::civil::Date;
use jiff::{Timestamp, ToSpan};
use std::collections::BTreeSet;

/// Ids that go when a whole archive is made a day after the newest, and what holds is released.
pub fn tomorrow(
    archives: &[Known],
    policy: &Policy<'_>,
    verdict: &Verdict,
    now: Timestamp,
) -> Vec<String> {
    let sorted = newest_first(archives);
    let Some(newest) = sorted.first() else {
        return Vec::new();
    };
    let mut left: Vec<Known> = sorted
        .iter()
        .zip(&verdict.decisions)
        .filter(|(_, decision)| decision.keep || !verdict.holds.is_empty())
        .map(|(known, decision)| trimmed(known, decision))
        .collect();
    let created = newest.created.max(now) + 24.hours();
    let next = Known {
        id: "~".into(),
        created,
        complete: true,
        damaged: false,
        pinned: false,
        placed: places(&left, policy, created),
        instances: newest.instances.clone(),
    };
    let accepted = Measure::from(BTreeSet::from([next.id.clone()]));
    left.push(next);
    let verdict = decide(&left, policy, created, &accepted);
    verdict.deletions().map(str::to_owned).collect()
}

/// Without the places that go now.
fn trimmed(known: &Known, decision: &Decision) -> Known {
    let stays: BTreeSet<Option<Tier>> = known
        .placed
        .iter()
        .copied()
        .filter(|here| decision.wants(*here, &known.placed))
        .collect();
    Known {
        placed: if stays.is_empty() {
            known.placed.clone()
        } else {
            stays
        },
        ..known.clone()
    }
}

/// The tiers that an archive of this instant comes into: its day's, and those whose period has none yet.
fn places(left: &[Known], policy: &Policy<'_>, created: Timestamp) -> BTreeSet<Option<Tier>> {
    if policy.layout != Layout::Tiers {
        return BTreeSet::new();
    }
    let day = |at: Timestamp| -> Date { policy.zone.to_datetime(at).date() };
    let is_free = |tier: &Tier| {
        let folder = tier.folder(day(created));
        policy.keep.keeps(*tier)
            && !left.iter().any(|known| {
                known.is_good()
                    && known.placed.contains(&Some(*tier))
                    && tier.folder(day(known.created)) == folder
            })
    };
    let promoted = Tier::PROMOTED.into_iter().filter(is_free);
    promoted.chain([Tier::Daily]).map(Some).collect()
}
