//! Reasons to delete nothing at all until somebody has looked.

use super::{Decision, Known, Size, is_of_the_future};

use jiff::Timestamp;

/// Archives whose median an instance's size is compared with.
const MEDIAN_OF: usize = 7;

/// All that hold, of archives newest first.
pub(super) fn holds(sorted: &[&Known], decisions: &[Decision], now: Timestamp) -> Vec<String> {
    let mut holds = Vec::new();
    let Some(newest) = sorted.first() else {
        return holds;
    };
    if is_of_the_future(newest, now) {
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
