//! Reasons to delete nothing at all until somebody has looked.
//!
//! An archive is measured by those before it that were as usual, or were accepted: one that held is no measure for the next, or a source that
//! vanished would be missed once and never again. What was accepted is the measure from there on.

use super::{Decision, Known, Measure, Size, is_of_the_future};
use jiff::Timestamp;
use std::collections::VecDeque;

/// Archives whose median an instance's size is compared with.
const MEDIAN_OF: usize = 7;

/// Archives that are measured one after the other where no run has noted what is usual yet.
const WALKED: usize = 1000;

/// All that hold, of archives newest first; and the archive that releases the first of them when it is accepted.
pub(super) fn holds(
    sorted: &[&Known],
    decisions: &[Decision],
    now: Timestamp,
    measure: &Measure,
) -> (Vec<String>, Option<String>) {
    let accepted = |known: &Known| measure.accepted.contains(&known.id);
    let mut holds = Vec::new();
    let mut releases = None;
    let future = sorted
        .first()
        .filter(|newest| is_of_the_future(newest, now));
    if let Some(newest) = future.filter(|newest| !accepted(newest)) {
        holds.push(format!(
            "the newest archive is dated {}, in the future",
            newest.created
        ));
        releases = Some(newest.id.clone());
    }
    // One of the future is no measure: accepted once, it would release everything until its day comes.
    let present: Vec<&Known> = sorted
        .iter()
        .copied()
        .filter(|known| !is_of_the_future(known, now))
        .collect();
    let Some(newest) = present.first() else {
        return (holds, releases);
    };
    // Of some sources only, or partial: what is measured is the newest whole one, and that is accepted with whatever came after it.
    let whole = present.iter().find(|known| known.complete);
    let is_old = |whole: &&Known| measure.since.is_some_and(|since| since >= whole.created);
    if accepted(newest) || whole.is_some_and(|whole| accepted(whole) || is_old(whole)) {
        return (holds, releases);
    }
    let gone = decisions.iter().filter(|d| !d.keep).count();
    if gone * 2 > decisions.len() {
        holds.push(format!(
            "{gone} of {} archives would go, more than half",
            decisions.len()
        ));
    }
    holds.extend(unusual(&present, measure));
    if !holds.is_empty() && releases.is_none() {
        releases = Some(whole.unwrap_or(newest).id.clone());
    }
    (holds, releases)
}

/// What is unusual about the newest whole one.
fn unusual(present: &[&Known], measure: &Measure) -> Vec<String> {
    let whole: Vec<&Known> = present.iter().copied().filter(|k| k.complete).collect();
    let Some((newest, before)) = whole.split_first() else {
        return Vec::new();
    };
    let mut usual: VecDeque<&Known> = VecDeque::with_capacity(MEDIAN_OF + 1);
    // As soon as a run has noted what is usual, only what came after it is measured.
    let walked = measure.usual_until.map_or(WALKED, |_| before.len());
    for known in before.iter().take(walked).rev() {
        let is_trusted = measure
            .usual_until
            .is_some_and(|until| known.created <= until);
        if measure.accepted.contains(&known.id) {
            usual.clear();
        } else if measure.since.is_some_and(|since| known.created < since)
            || !is_trusted && !is_usual(known, &usual)
        {
            continue;
        }
        usual.push_back(known);
        if usual.len() > MEDIAN_OF {
            usual.pop_front();
        }
    }
    let mut found = Vec::new();
    if let Some(previous) = usual.back() {
        vanished(newest, previous, &mut found);
    }
    for size in &newest.instances {
        for (what, number) in NUMBERS {
            if has_shrunk(size, &usual, number) {
                let earlier = || earlier(&usual, &size.name).map(number);
                found.push(format!(
                    "`{}` has {} {what}, less than half of the median {} of its last {}",
                    size.name,
                    number(size),
                    median(earlier()).unwrap_or(0),
                    earlier().count()
                ));
            }
        }
    }
    found
}

/// The same as a question, over years of archives: no words are made.
fn is_usual(known: &Known, usual: &VecDeque<&Known>) -> bool {
    let Some(previous) = usual.back() else {
        return true;
    };
    let stayed = previous.instances.iter().all(|size| {
        let now = known.instances.iter().find(|i| i.name == size.name);
        now.is_some_and(|now| now.identity == size.identity)
    });
    let shrank = |size| {
        let mut numbers = NUMBERS.into_iter();
        numbers.any(|(_, number)| has_shrunk(size, usual, number))
    };
    stayed && !known.instances.iter().any(shrank)
}

/// A number of an instance.
type Number = fn(&Size) -> u64;

/// What of an instance is compared.
const NUMBERS: [(&str, Number); 2] = [("rows", |size| size.rows), ("bytes", |size| size.bytes)];

fn earlier<'k>(usual: &VecDeque<&'k Known>, name: &str) -> impl Iterator<Item = &'k Size> {
    usual
        .iter()
        .filter_map(move |k| k.instances.iter().find(|i| i.name == name))
}

/// Whether it has less than half of the median: whether no more than half of them have at most twice as much.
fn has_shrunk(size: &Size, usual: &VecDeque<&Known>, number: Number) -> bool {
    let twice = number(size).saturating_mul(2);
    let (mut all, mut at_most_twice) = (0_usize, 0_usize);
    for then in earlier(usual, &size.name).map(number) {
        all += 1;
        at_most_twice += usize::from(then <= twice);
    }
    all > 0 && at_most_twice <= all / 2
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
