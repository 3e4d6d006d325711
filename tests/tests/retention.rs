//! Retention against a naive oracle that was written from the words alone: over seeded histories, and over ten years of hourly archives.

use bk_core::layout::{Layout, Tier};
use bk_core::retention::{Age, Keep, Known, Limit, Measure, Policy, Size, Verdict, decide};
use bk_tests::{long, seed};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};

const LAYOUTS: [Layout; 3] = [Layout::Flat, Layout::Dates, Layout::Tiers];
const ZONES: [&str; 6] = [
    "UTC",
    "Europe/Berlin",
    "America/St_Johns",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Auckland",
];

struct History {
    archives: Vec<Known>,
    zone: TimeZone,
    now: Timestamp,
}

fn zone(random: &mut SmallRng) -> TimeZone {
    TimeZone::get(ZONES[random.random_range(0..ZONES.len())]).unwrap()
}

fn history(random: &mut SmallRng) -> History {
    let zone = zone(random);
    let start: Timestamp = "2024-12-15T00:00:00Z".parse().unwrap();
    let mut at = start + SignedDuration::from_hours(random.random_range(0..10_000));
    let mut archives = Vec::new();
    for n in 0..random.random_range(0..60) {
        let up_to = [90, 1500, 3000, 20_000][random.random_range(0..4)];
        at += SignedDuration::from_mins(random.random_range(1..up_to));
        let mut known = plain(n, at);
        known.complete = random.random_range(0..10) > 0;
        known.pinned = random.random_range(0..20) == 0;
        known.damaged = random.random_range(0..15) == 0;
        // In any folders, also where no run of ours would have put it.
        known.placed = Tier::ALL
            .into_iter()
            .map(Some)
            .chain([None])
            .filter(|_| random.random_range(0..3) > 0)
            .collect();
        archives.push(known);
    }
    for n in (1..archives.len()).rev() {
        archives.swap(n, random.random_range(0..=n));
    }
    History {
        archives,
        zone,
        now: at + SignedDuration::from_hours(1),
    }
}

fn plain(n: usize, created: Timestamp) -> Known {
    Known {
        id: format!("{n:032x}"),
        created,
        complete: true,
        damaged: false,
        pinned: false,
        placed: BTreeSet::new(),
        instances: vec![Size {
            name: "db".into(),
            identity: "a".into(),
            rows: 1000,
            bytes: 1000,
        }],
    }
}

/// Rules by count and by age, some of each.
fn keep(random: &mut SmallRng, scale: u32) -> Keep {
    let mut limit = |most: u32, unit: &str| -> Limit {
        match random.random_range(0..4) {
            0 | 1 => 0.into(),
            2 => random.random_range(0..most * scale).into(),
            _ => {
                let age = format!("{}{unit}", random.random_range(1..=most * scale));
                Limit::Age(age.parse().unwrap())
            }
        }
    };
    let mut keep = Keep {
        last: limit(6, "h"),
        within: None,
        hourly: limit(10, "h"),
        daily: limit(10, "d"),
        weekly: limit(8, "w"),
        monthly: limit(6, "mo"),
        yearly: limit(3, "y"),
        floor: 0,
    };
    keep.floor = random.random_range(0..4);
    if random.random_range(0..3) == 0 {
        keep.within = Some(Age::days(random.random_range(1..=10 * scale)));
    }
    keep
}

type Key = (i16, i16, i16, i16);

/// The periods that an instant lies in, in the order of `RULES`; nothing for those where each is its own.
type Periods = [Option<Key>; 7];

fn periods(zone: &TimeZone, at: Timestamp) -> Periods {
    let local = at.to_zoned(zone.clone());
    let (year, month, day) = (local.year(), local.month().into(), local.day().into());
    let week = local.date().iso_week_date();
    [
        None,
        None,
        Some((year, month, day, local.hour().into())),
        Some((year, month, day, 0)),
        Some((week.year(), week.week().into(), 0, 0)),
        Some((year, month, 0, 0)),
        Some((year, 0, 0, 0)),
    ]
}

/// Which tier's folders a rule asks in the layout `tiers`, and which archive of a period it takes there.
const RULES: [(Tier, &str); 7] = [
    (Tier::Daily, "newest"),
    (Tier::Daily, "newest"),
    (Tier::Daily, "newest"),
    (Tier::Daily, "every"),
    (Tier::Weekly, "first"),
    (Tier::Monthly, "first"),
    (Tier::Yearly, "first"),
];

fn limits(keep: &Keep) -> [Limit; 7] {
    [
        keep.last,
        keep.within.map_or(0.into(), Limit::Age),
        keep.hourly,
        keep.daily,
        keep.weekly,
        keep.monthly,
        keep.yearly,
    ]
}

/// The rules, said again in the plainest way. `whole` is newest first, without those that are damaged: they stay, and stand for nothing.
fn oracle(
    archives: &[Known],
    whole: &[(&Known, Periods)],
    keep: &Keep,
    layout: Layout,
    (zone, now): (&TimeZone, Timestamp),
) -> BTreeSet<String> {
    let mut kept = BTreeSet::new();
    for partial in archives.iter().filter(|a| !a.complete) {
        let newer = whole.iter().map(|(a, _)| a.created);
        let next = newer.filter(|created| *created > partial.created).min();
        let week = SignedDuration::from_hours(7 * 24);
        if next.is_none_or(|next| next + week > now) {
            kept.insert(partial.id.clone());
        }
    }
    let always = archives.iter().filter(|a| a.pinned || a.damaged);
    kept.extend(always.map(|a| a.id.clone()));
    let limits = limits(keep);
    if limits.iter().all(|limit| *limit == 0.into()) {
        kept.extend(whole.iter().map(|(a, _)| a.id.clone()));
        return kept;
    }
    let floor = keep.floor.max(1) as usize;
    kept.extend(whole.iter().take(floor).map(|(a, _)| a.id.clone()));
    for (n, limit) in limits.into_iter().enumerate() {
        let (tier, mut pick) = RULES[n];
        if layout != Layout::Tiers {
            pick = "newest";
        }
        let asked = whole.iter().filter(|(a, _)| {
            let placed = &a.placed;
            layout != Layout::Tiers
                || placed.is_empty()
                || placed.contains(&None)
                || placed.contains(&Some(tier))
        });
        let mut asked: Vec<&(&Known, Periods)> = asked.collect();
        let count = match limit {
            Limit::Count(count) => count as usize,
            Limit::Age(age) => {
                let newest = whole.first().map_or(Timestamp::MAX, |(a, _)| a.created);
                let since = age.before(newest, zone);
                asked.retain(|(a, _)| a.created > since);
                usize::MAX
            }
        };
        // Of each period all that lie in it, newest first; the periods newest first.
        let mut groups: Vec<Vec<&Known>> = Vec::new();
        let mut of: BTreeMap<Key, usize> = BTreeMap::new();
        for (archive, periods) in &asked {
            let group = match periods[n] {
                None => groups.len(),
                Some(key) => *of.entry(key).or_insert(groups.len()),
            };
            if group == groups.len() {
                groups.push(Vec::new());
            }
            groups[group].push(archive);
        }
        for group in groups.iter().take(count) {
            let picked = match pick {
                "newest" => &group[..1],
                "first" => &group[group.len() - 1..],
                _ => &group[..],
            };
            kept.extend(picked.iter().map(|a| a.id.clone()));
        }
        let is_count = matches!(limit, Limit::Count(_));
        if pick == "newest" && is_count && groups.len() < count {
            kept.extend(asked.last().map(|(a, _)| a.id.clone()));
        }
    }
    kept
}

fn whole<'a>(archives: &'a [Known], zone: &TimeZone) -> Vec<(&'a Known, Periods)> {
    let mut whole: Vec<_> = archives
        .iter()
        .filter(|a| a.complete && !a.damaged)
        .map(|a| (a, periods(zone, a.created)))
        .collect();
    whole.sort_by(|(a, _), (b, _)| (b.created, &b.id).cmp(&(a.created, &a.id)));
    whole
}

fn kept(verdict: &Verdict) -> BTreeSet<String> {
    let kept = verdict.decisions.iter().filter(|d| d.keep);
    kept.map(|d| d.id.clone()).collect()
}

#[test]
fn a_thousand_histories_agree_with_the_oracle() {
    let seed = seed(2026);
    for n in 0..long(1000, 20_000) as u64 {
        let random = &mut SmallRng::seed_from_u64(seed + n);
        let History {
            archives,
            zone,
            now,
        } = history(random);
        let keep = keep(random, 1);
        let policy = Policy {
            keep: &keep,
            layout: LAYOUTS[n as usize % 3],
            zone: &zone,
        };
        let verdict = decide(&archives, &policy, now, &Measure::default());
        let expected = oracle(
            &archives,
            &whole(&archives, &zone),
            &keep,
            policy.layout,
            (&zone, now),
        );
        assert_eq!(
            kept(&verdict),
            expected,
            "history {} with {policy:?}",
            seed + n
        );
        assert_eq!(verdict.decisions.len(), archives.len());
        assert!(
            verdict.decisions.iter().all(|d| !d.reasons.is_empty()),
            "a decision without a reason"
        );

        // The newest good one is never let go, whatever is accepted.
        let newest = archives
            .iter()
            .filter(|a| a.complete && !a.damaged)
            .max_by_key(|a| (a.created, a.id.clone()));
        let all: BTreeSet<String> = archives.iter().map(|a| a.id.clone()).collect();
        let released = decide(&archives, &policy, now, &all.into());
        assert!(
            newest.is_none_or(|newest| released.deletions().all(|id| id != newest.id)),
            "history {}",
            seed + n
        );
    }
}

/// An archive each hour; the first of each week, month and year lies in their folders too.
fn ten_years(zone: &TimeZone) -> Vec<Known> {
    let start: Timestamp = "2016-11-28T00:17:00Z".parse().unwrap();
    let mut seen = BTreeSet::new();
    let mut archives = Vec::new();
    for n in 0..87_600 {
        let created = start + SignedDuration::from_hours(n);
        let mut known = plain(n as usize, created);
        let day = created.to_zoned(zone.clone()).date();
        let first = Tier::PROMOTED
            .into_iter()
            .filter(|t| seen.insert(t.folder(day)));
        known.placed = first.chain([Tier::Daily]).map(Some).collect();
        archives.push(known);
    }
    archives
}

#[test]
fn ten_years_of_hourly_archives_agree_with_the_oracle_under_two_hundred_policies() {
    const POLICIES: u64 = 200;
    let seed = seed(87_600);
    let check = |of: &[&str], part: u64| {
        for (n, name) in of.iter().enumerate() {
            let zone = TimeZone::get(name).unwrap();
            let archives = ten_years(&zone);
            let whole = whole(&archives, &zone);
            let now = whole[0].0.created + SignedDuration::from_mins(20);
            for k in 0..POLICIES / ZONES.len() as u64 + 1 {
                let name = seed + part * 10_000 + n as u64 * 1000 + k;
                let keep = keep(&mut SmallRng::seed_from_u64(name), 8);
                for layout in LAYOUTS {
                    let policy = Policy {
                        keep: &keep,
                        layout,
                        zone: &zone,
                    };
                    let verdict = decide(&archives, &policy, now, &Measure::default());
                    let expected = oracle(&archives, &whole, &keep, layout, (&zone, now));
                    let found = kept(&verdict);
                    assert!(
                        found.contains(&whole[0].0.id),
                        "the newest goes: {policy:?}"
                    );
                    assert!(found == expected, "policy {name}: {policy:?}");
                }
            }
        }
    };
    std::thread::scope(|threads| {
        let (one, two) = ZONES.split_at(3);
        threads.spawn(move || check(one, 0));
        check(two, 1);
    });
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
        damaged: false,
        pinned: false,
        placed: BTreeSet::new(),
        instances,
    }
}

fn judged(archives: &[Known], last: u32, now: &str, accepted: &BTreeSet<String>) -> Verdict {
    let keep = Keep::last(last);
    let policy = Policy {
        keep: &keep,
        layout: Layout::Flat,
        zone: &TimeZone::UTC,
    };
    let verdict = decide(
        archives,
        &policy,
        now.parse().unwrap(),
        &accepted.clone().into(),
    );
    assert!(verdict.holds.is_empty() || verdict.deletions().count() == 0);
    verdict
}

fn held(archives: &[Known], now: &str) -> Vec<String> {
    judged(archives, 5, now, &BTreeSet::new()).holds
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
    let verdict = judged(&many, 5, "2026-08-21T00:00:00Z", &accepted);
    assert_eq!(verdict.deletions().count(), 15);
}

#[test]
fn a_damaged_archive_stays_and_never_stands_for_a_good_one() {
    let mut archives: Vec<_> = (1..=4).map(|day| known(day, 1000, &["db"])).collect();
    archives[1].damaged = true;
    archives[3].damaged = true;
    let verdict = judged(&archives, 1, "2026-08-05T00:00:00Z", &BTreeSet::new());
    let of = |day: i8| {
        let id = known(day, 0, &[]).id;
        verdict.decisions.iter().find(|d| d.id == id).unwrap()
    };
    for day in [2, 4] {
        let failed = |reason: &String| reason.contains("failed its check");
        assert!(
            of(day).keep && of(day).reasons.iter().any(failed),
            "{:?}",
            of(day)
        );
        assert!(!of(day).rules.contains(&"last"), "{:?}", of(day));
    }
    assert!(of(3).keep && of(3).rules.contains(&"last"), "{:?}", of(3));
    assert!(!of(1).keep, "{:?}", of(1));
}

/// What becomes of the instance `files`.
type Change = fn(&mut Known);

fn vanished(archive: &mut Known) {
    archive.instances.retain(|size| size.name != "files");
}

fn shrank(archive: &mut Known) {
    archive.instances[1].rows = 400;
    archive.instances[1].bytes = 4000;
}

fn moved(archive: &mut Known) {
    archive.instances[1].identity = "another".into();
}

#[test]
fn a_hold_stays_with_every_further_archive_until_the_newest_is_accepted() {
    // All is there eight times; twelve are kept, so that it is never more than half that would go.
    const STEADY: i8 = 8;
    const LAST: u32 = 12;
    let morning = |day: i8| format!("2026-08-{day:02}T06:00:00Z");
    let changes: [(&str, Change); 3] =
        [("vanished", vanished), ("shrank", shrank), ("moved", moved)];
    for (what, change) in changes {
        let day_of = |day: i8| {
            let mut archive = known(day, 1000, &["db", "files"]);
            if day > STEADY {
                change(&mut archive);
            }
            archive
        };
        let mut archives: Vec<_> = (1..=STEADY).map(day_of).collect();
        let mut accepted = BTreeSet::new();
        let judge = |archives: &[Known], accepted: &BTreeSet<String>| {
            judged(archives, LAST, &morning(archives.len() as i8), accepted)
        };
        assert!(judge(&archives, &accepted).holds.is_empty());
        for run in 1..=10 {
            archives.push(day_of(STEADY + run));
            let holds = judge(&archives, &accepted).holds;
            assert!(
                holds.iter().any(|hold| hold.contains("`files`")),
                "{what}, run {run}: {holds:?}"
            );
        }
        accepted.insert(archives.last().unwrap().id.clone());
        let verdict = judge(&archives, &accepted);
        assert!(verdict.holds.is_empty(), "{what}: {:?}", verdict.holds);
        assert_eq!(verdict.deletions().count(), 18 - LAST as usize, "{what}");

        // From now on the accepted one is the measure, for better and for worse.
        archives.push(day_of(STEADY + 11));
        let verdict = judge(&archives, &accepted);
        assert!(verdict.holds.is_empty(), "{what}: {:?}", verdict.holds);
        assert_eq!(verdict.deletions().count(), 19 - LAST as usize, "{what}");
        let mut worse = day_of(STEADY + 12);
        worse.instances[0].rows = 100;
        archives.push(worse);
        let holds = judge(&archives, &accepted).holds;
        assert!(
            holds.iter().any(|hold| hold.contains("`db`")),
            "{what}: {holds:?}"
        );
    }
}

#[test]
fn accepting_an_archive_of_the_future_releases_no_other_hold() {
    let mut archives: Vec<_> = (1..=8)
        .map(|day| known(day, 1000, &["db", "files"]))
        .collect();
    let mut future = known(30, 1000, &["db", "files"]);
    future.created = "2036-01-01T00:00:00Z".parse().unwrap();
    let mut accepted = BTreeSet::from([future.id.clone()]);
    archives.push(future);
    let is_of_the_future = |hold: &String| hold.contains("in the future");
    let now = "2026-08-08T06:00:00Z";
    assert!(held(&archives, now).iter().any(is_of_the_future));
    let verdict = judged(&archives, 5, now, &accepted);
    assert!(verdict.holds.is_empty(), "{:?}", verdict.holds);
    assert_eq!(verdict.deletions().count(), 3);

    archives.push(known(9, 1000, &["db"]));
    let now = "2026-08-09T06:00:00Z";
    let holds = judged(&archives, 5, now, &accepted).holds;
    assert!(
        holds.iter().any(|hold| hold.contains("`files`")),
        "{holds:?}"
    );
    assert!(!holds.iter().any(is_of_the_future), "{holds:?}");
    accepted.insert(archives.last().unwrap().id.clone());
    let verdict = judged(&archives, 5, now, &accepted);
    assert!(verdict.holds.is_empty(), "{:?}", verdict.holds);
    assert_eq!(verdict.deletions().count(), 4);
}

#[test]
fn what_was_accepted_or_usual_is_the_measure_also_when_its_archive_is_gone() {
    let now = "2026-08-21T00:00:00Z";
    let keep = Keep::last(9);
    let policy = Policy {
        keep: &keep,
        layout: Layout::Flat,
        zone: &TimeZone::UTC,
    };
    let holds = |archives: &[Known], measure: &Measure| {
        decide(archives, &policy, now.parse().unwrap(), measure).holds
    };
    // `files` was given up on the 10th, which was accepted and is gone; an old one that has it stays as its month's.
    let mut archives = vec![known(1, 1000, &["db", "files"])];
    archives.extend((11..=13).map(|day| known(day, 1000, &["db"])));
    let accepted = Measure {
        since: Some(known(10, 0, &[]).created),
        ..Measure::default()
    };
    assert!(holds(&archives, &accepted).is_empty());
    assert!(holds(&archives, &Measure::default())[0].contains("`files`"));

    // It shrank slowly, each step as usual; most of the steps are gone.
    let mut archives = vec![known(1, 1000, &["db"]), known(5, 450, &["db"])];
    archives.extend((11..=19).map(|day| known(day, 400, &["db"])));
    let usual = Measure {
        usual_until: Some(known(18, 0, &[]).created),
        ..Measure::default()
    };
    assert!(holds(&archives, &usual).is_empty());
    archives.push(known(20, 100, &["db"]));
    assert!(holds(&archives, &usual)[0].contains("median 400"));

    // One of some sources only is newer: the whole one is what is accepted, and that is enough.
    let mut some = known(20, 1, &["db"]);
    some.id = "some".into();
    some.complete = false;
    some.created += SignedDuration::from_hours(1);
    archives.push(some);
    let verdict = decide(&archives, &policy, now.parse().unwrap(), &usual);
    let releases = verdict.releases.unwrap();
    assert_eq!(releases, known(20, 0, &[]).id);
    let accepted = Measure {
        accepted: BTreeSet::from([releases]),
        ..usual
    };
    assert!(holds(&archives, &accepted).is_empty());
}
