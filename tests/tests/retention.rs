//! Retention against a naive oracle that was written from the words alone, over seeded histories.

use bk_core::retention::{Keep, Known, Size, decide};
use bk_tests::{long, seed};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;

struct History {
    archives: Vec<Known>,
    keep: Keep,
    zone: TimeZone,
    now: Timestamp,
}

fn history(random: &mut SmallRng) -> History {
    let zones = [
        "UTC",
        "Europe/Berlin",
        "America/St_Johns",
        "Asia/Kathmandu",
        "Pacific/Auckland",
    ];
    let zone = TimeZone::get(zones[random.random_range(0..zones.len())]).unwrap();
    let start: Timestamp = "2024-12-15T00:00:00Z".parse().unwrap();
    let mut at = start + SignedDuration::from_hours(random.random_range(0..10_000));
    let mut archives = Vec::new();
    for n in 0..random.random_range(0..60) {
        let up_to = [90, 1500, 3000, 20_000][random.random_range(0..4)];
        at += SignedDuration::from_mins(random.random_range(1..up_to));
        let known = Known {
            id: format!("{n:032x}"),
            created: at,
            complete: random.random_range(0..10) > 0,
            pinned: random.random_range(0..20) == 0,
            instances: vec![Size {
                name: "db".into(),
                identity: "a".into(),
                rows: 1000,
                bytes: 1000,
            }],
        };
        archives.push(known);
    }
    for n in (1..archives.len()).rev() {
        archives.swap(n, random.random_range(0..=n));
    }
    let mut count = |most| {
        if random.random_range(0..2) == 0 {
            0
        } else {
            random.random_range(0..most)
        }
    };
    let keep = Keep {
        last: count(6),
        hourly: count(10),
        daily: count(10),
        weekly: count(8),
        monthly: count(6),
        yearly: count(3),
        floor: count(4),
    };
    History {
        archives,
        keep,
        zone,
        now: at + SignedDuration::from_hours(1),
    }
}

type Period = fn(&jiff::Zoned) -> (i16, i16, i16, i16);

/// The rules, said again in the plainest way: for each archive ask each rule.
fn oracle(history: &History) -> BTreeSet<String> {
    let History {
        archives,
        keep,
        zone,
        now,
    } = history;
    let whole = || archives.iter().filter(|a| a.complete);
    let newer_whole = |a: &Known| {
        whole()
            .filter(|b| (b.created, &b.id) > (a.created, &a.id))
            .count() as u32
    };
    let mut kept = BTreeSet::new();
    let no_rule = [
        keep.last,
        keep.hourly,
        keep.daily,
        keep.weekly,
        keep.monthly,
        keep.yearly,
    ]
    .iter()
    .all(|n| *n == 0);
    for a in archives {
        let mut stays = a.pinned;
        if a.complete {
            stays |= no_rule || newer_whole(a) < keep.floor.max(1) || newer_whole(a) < keep.last;
            let local = |t: Timestamp| t.to_zoned(zone.clone());
            let periods: [(u32, Period); 5] = [
                (keep.hourly, |z| {
                    (z.year(), z.month().into(), z.day().into(), z.hour().into())
                }),
                (keep.daily, |z| {
                    (z.year(), z.month().into(), z.day().into(), 0)
                }),
                (keep.weekly, |z| {
                    (
                        z.date().iso_week_date().year(),
                        z.date().iso_week_date().week().into(),
                        0,
                        0,
                    )
                }),
                (keep.monthly, |z| (z.year(), z.month().into(), 0, 0)),
                (keep.yearly, |z| (z.year(), 0, 0, 0)),
            ];
            for (n, period) in periods {
                let mine = period(&local(a.created));
                let newest_of_period = !whole().any(|b| {
                    (b.created, &b.id) > (a.created, &a.id) && period(&local(b.created)) == mine
                });
                let later_periods: BTreeSet<_> = whole()
                    .map(|b| period(&local(b.created)))
                    .filter(|p| *p > mine)
                    .collect();
                stays |= newest_of_period && (later_periods.len() as u32) < n;
            }
        } else {
            let next = whole().map(|b| b.created).filter(|c| *c > a.created).min();
            stays |= next.is_none_or(|next| next + SignedDuration::from_hours(7 * 24) > *now);
        }
        if stays {
            kept.insert(a.id.clone());
        }
    }
    kept
}

#[test]
fn a_thousand_histories_agree_with_the_oracle() {
    let seed = seed(2026);
    for n in 0..long(1000, 20_000) as u64 {
        let history = history(&mut SmallRng::seed_from_u64(seed + n));
        let verdict = decide(
            &history.archives,
            &history.keep,
            &history.zone,
            history.now,
            &BTreeSet::new(),
        );
        let kept: BTreeSet<String> = verdict
            .decisions
            .iter()
            .filter(|d| d.keep)
            .map(|d| d.id.clone())
            .collect();
        assert_eq!(
            kept,
            oracle(&history),
            "history {} with {:?}",
            seed + n,
            history.keep
        );
        assert_eq!(verdict.decisions.len(), history.archives.len());
        assert!(
            verdict.decisions.iter().all(|d| !d.reasons.is_empty()),
            "a decision without a reason"
        );

        // The newest good one is never let go, whatever is accepted.
        let newest = history
            .archives
            .iter()
            .filter(|a| a.complete)
            .max_by_key(|a| (a.created, a.id.clone()));
        let all: BTreeSet<String> = history.archives.iter().map(|a| a.id.clone()).collect();
        let released = decide(
            &history.archives,
            &history.keep,
            &history.zone,
            history.now,
            &all,
        );
        assert!(
            newest.is_none_or(|newest| released.deletions().all(|id| id != newest.id)),
            "history {}",
            seed + n
        );
    }
}

fn known(day: i8, rows: u64, names: &[&str]) -> Known {
    let created = jiff::civil::date(2026, 8, day)
        .at(0, 0, 0, 0)
        .in_tz("UTC")
        .unwrap()
        .timestamp();
    let instances = names
        .iter()
        .map(|name| Size {
            name: (*name).into(),
            identity: format!("server of {name}"),
            rows,
            bytes: rows * 10,
        })
        .collect();
    Known {
        id: format!("{day:032}"),
        created,
        complete: true,
        pinned: false,
        instances,
    }
}

fn held(archives: &[Known], now: &str) -> Vec<String> {
    let keep = Keep {
        last: 5,
        ..Keep::default()
    };
    let verdict = decide(
        archives,
        &keep,
        &TimeZone::UTC,
        now.parse().unwrap(),
        &BTreeSet::new(),
    );
    assert!(verdict.holds.is_empty() || verdict.deletions().count() == 0);
    verdict.holds
}

#[test]
fn retention_holds_when_something_shrank_vanished_moved_or_too_much_would_go() {
    let steady: Vec<_> = (1..=8)
        .map(|day| known(day, 1000, &["db", "files"]))
        .collect();
    assert!(held(&steady, "2026-08-09T00:00:00Z").is_empty());
    let with = |last: Known| steady.iter().cloned().chain([last]).collect::<Vec<_>>();
    assert!(
        held(
            &with(known(9, 400, &["db", "files"])),
            "2026-08-10T00:00:00Z"
        )[0]
        .contains("less than half of the median 1000")
    );
    assert!(
        held(
            &with(known(9, 600, &["db", "files"])),
            "2026-08-10T00:00:00Z"
        )
        .is_empty()
    );
    assert!(
        held(&with(known(9, 1000, &["db"])), "2026-08-10T00:00:00Z")[0]
            .contains("`files` was in the archive before")
    );
    let mut moved = known(9, 1000, &["db", "files"]);
    moved.instances[0].identity = "another".into();
    assert!(held(&with(moved), "2026-08-10T00:00:00Z")[0].contains("`db` is another server"));
    assert!(
        held(
            &with(known(9, 1000, &["db", "files"])),
            "2026-08-08T00:00:00Z"
        )[0]
        .contains("in the future")
    );
    let many: Vec<_> = (1..=20).map(|day| known(day, 1000, &["db"])).collect();
    assert!(held(&many, "2026-08-21T00:00:00Z")[0].contains("15 of 20 archives would go"));
    let accepted = BTreeSet::from([known(20, 0, &[]).id]);
    let verdict = decide(
        &many,
        &Keep {
            last: 5,
            ..Keep::default()
        },
        &TimeZone::UTC,
        "2026-08-21T00:00:00Z".parse().unwrap(),
        &accepted,
    );
    assert_eq!(verdict.deletions().count(), 15);
}
