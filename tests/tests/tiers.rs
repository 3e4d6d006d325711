//! The layout `tiers` over simulated time: what lies in its folders after each day's run is what an oracle says, on every sink that has folders.

use bk_core::catalog::Catalogue;
use bk_core::config::{SinkInstance, SinkPolicy};
use bk_core::context::FixedClock;
use bk_core::layout::{Layout, Tier};
use bk_core::retention::Keep;
use bk_core::sink::Sink;
use bk_core::tiers::place_young;
use bk_core::verify::dates::Rotation;
use bk_sinks::local::Local;
use bk_tests::binary::Home;
use bk_tests::data::noise;
use bk_tests::engine::Site;
use bk_tests::fakes::FakeSource;
use bk_tests::faults::{Fault, FaultySink};
use bk_tests::long;
use bk_tests::object_store::{Kind, Server, Versions};
use bk_tests::sshd::{Sshd, sink as ssh};
use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Arc;

const ZONE: &str = "Europe/Berlin";

/// 7 days, 4 weeks, 12 months, 2 years.
fn keep() -> Keep {
    Keep {
        daily: 7.into(),
        weekly: 4.into(),
        monthly: 12.into(),
        yearly: 2.into(),
        ..Keep::default()
    }
}

fn zone() -> TimeZone {
    TimeZone::get(ZONE).unwrap()
}

/// What must lie where: archives, by the instant of their run, in each folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Places(BTreeMap<String, BTreeSet<Timestamp>>);

impl Places {
    fn after(&mut self, now: Timestamp) {
        let day = now.to_zoned(zone()).date();
        let newest = self.0.values().flatten().max().copied();
        let daily = self.0.entry(Tier::Daily.folder(day)).or_default();
        daily.insert(now);
        for tier in Tier::PROMOTED {
            // The first of the period that is there at all: on most days the day's own.
            let folder = tier.folder(day);
            if self.0.contains_key(&folder) {
                continue;
            }
            let all: BTreeSet<Timestamp> = self.0.values().flatten().copied().collect();
            let of_period = |at: &&Timestamp| tier.folder(at.to_zoned(zone()).date()) == folder;
            let first = *all.iter().find(of_period).unwrap();
            self.0.insert(folder, BTreeSet::from([first]));
        }
        let is_held = newest.is_some_and(|newest| newest > now + SignedDuration::from_mins(5));
        if is_held {
            return;
        }
        for (tier, count) in [
            (Tier::Daily, 7),
            (Tier::Weekly, 4),
            (Tier::Monthly, 12),
            (Tier::Yearly, 2),
        ] {
            let prefix = format!("{tier}/");
            let folders: Vec<String> = self
                .0
                .keys()
                .filter(|f| f.starts_with(&prefix))
                .cloned()
                .collect();
            let old = folders.len().saturating_sub(count);
            for folder in &folders[..old] {
                self.0.remove(folder);
            }
        }
    }

    async fn found(site: &Site) -> Self {
        let catalogue = Catalogue::read(&site.context(), &site.sinks).await;
        assert!(catalogue.failures.is_empty(), "{:?}", catalogue.failures);
        let mut places = Self::default();
        for (entry, summary) in catalogue.archives() {
            assert!(summary.complete);
            let (folder, _) = entry.stored.name.rsplit_once('/').unwrap();
            let there = places.0.entry(folder.to_owned()).or_default();
            assert!(
                there.insert(summary.created),
                "twice: {}",
                entry.stored.name
            );
        }
        places
    }
}

/// Instants of runs at 02:30 local time, an hour that some days lack and some have twice, from one day to before another.
fn runs(from: Date, before: Date) -> Vec<Timestamp> {
    let mut runs = Vec::new();
    let mut day = from;
    while day < before {
        let at = day.at(2, 30, 0, 0).to_zoned(zone()).unwrap().timestamp();
        match (day.month(), day.day()) {
            // A week without runs.
            (8, 2..=8) => {}
            // The clock is a day behind.
            (9, 15) => {
                runs.push(at - SignedDuration::from_hours(24) + SignedDuration::from_mins(7))
            }
            // The hour that comes twice.
            (10, 31) => runs.extend([at, at + SignedDuration::from_hours(1)]),
            // Three runs in a day.
            (3 | 12, 5) => runs.extend([0, 7, 14].map(|h| at + SignedDuration::from_hours(h))),
            _ => runs.push(at),
        }
        day = day.tomorrow().unwrap();
    }
    runs
}

fn site(sink: Arc<dyn Sink>) -> Site {
    let mut site = Site::default().source("fake", FakeSource::small(1, 2));
    site.archive.timezone = ZONE.into();
    site.sinks.push(SinkInstance {
        name: "sink".into(),
        plugin: "of the test".into(),
        policy: SinkPolicy {
            keep: Some(keep()),
            ..SinkPolicy::default()
        },
        sink,
    });
    site
}

/// Runs them all, compares after each, and restores from what stays at last.
async fn simulate(sink: Arc<dyn Sink>, runs: &[Timestamp]) -> Site {
    let mut site = site(sink);
    let mut expected = Places::default();
    for at in runs {
        site.clock = Arc::new(FixedClock(*at));
        let report = site.backup().await;
        assert!(report.causes.is_empty(), "{at}: {:?}", report.causes);
        let failed = |w: &&String| w.contains("not placed") || w.contains("not pruned");
        let failed: Vec<_> = report.warnings.iter().filter(failed).collect();
        assert!(failed.is_empty(), "{at}: {failed:?}");
        expected.after(*at);
        assert_eq!(
            Places::found(&site).await,
            expected,
            "after the run of {at}"
        );
    }
    let monthly = expected
        .0
        .iter()
        .find(|(folder, _)| folder.starts_with("monthly/"));
    let oldest = monthly.unwrap().1.first().copied().unwrap();
    for wish in [None, Some(oldest.to_string())] {
        let empty = FakeSource::small(0, 0);
        let restored = empty.store.clone();
        let reader = Site {
            sources: Site::default().source("fake", empty).sources,
            archive: site.archive.clone(),
            sinks: site.sinks.clone(),
            clock: site.clock.clone(),
            ..Site::default()
        };
        let request = bk_core::restore::Request {
            wish: bk_core::catalog::Wish {
                date: wish,
                ..Default::default()
            },
            ..Default::default()
        };
        let report = reader.restore(request).await.unwrap();
        assert!(report.causes.is_empty(), "{:?}", report.causes);
        assert_eq!(restored.lock().unwrap().len(), 2);
    }
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_year_a_folder_has_what_the_oracle_says_on_every_day() {
    let folder = tempfile::tempdir().unwrap();
    let local = Local::new(folder.path().into()).with_layout(Layout::Tiers);
    // 2027-01-01 lies in week 53 of 2026; 2028 has a 29 February.
    let runs = runs(date(2026, 12, 20), date(2028, 3, 8));
    simulate(Arc::new(local), &runs).await;

    // Each archive is stored once, and every sum file fits what lies beside it.
    let (mut inodes, mut places) = (BTreeSet::new(), 0);
    for tier in Tier::ALL {
        for period in std::fs::read_dir(folder.path().join(tier.word())).unwrap() {
            let period = period.unwrap().path();
            let sums: Vec<_> = std::fs::read_dir(&period)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|e| e == "sha256"))
                .collect();
            assert!(!sums.is_empty(), "{}", period.display());
            for sums in sums {
                let checked = Command::new("sha256sum")
                    .args(["-c", "--quiet"])
                    .arg(sums.file_name().unwrap())
                    .current_dir(&period)
                    .status()
                    .unwrap();
                assert!(checked.success(), "{}", sums.display());
                let archive = sums.with_extension("");
                inodes.insert(archive.metadata().unwrap().ino());
                places += 1;
            }
        }
    }
    assert!(
        inodes.len() < places,
        "{} archives in {places} places",
        inodes.len()
    );
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().starts_with(".bk-part")),
        "{left:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn over_three_months_another_machine_has_what_the_oracle_says_on_every_day() {
    let Some(server) = Sshd::start(&[]) else {
        return;
    };
    server.make_folder("tiers");
    let mut table = server.table("tiers");
    table["layout"] = json!("tiers");
    let runs = runs(date(2026, 12, 20), date(2027, 3, 20));
    simulate(Arc::new(ssh(table).unwrap()), &runs).await;
    let stat = Command::new("find")
        .arg(server.files().join("tiers"))
        .args(["-name", "*.tar.xz", "-links", "+1"])
        .output()
        .unwrap();
    assert!(!stat.stdout.is_empty(), "nothing there has two names");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_three_months_a_bucket_has_what_the_oracle_says_on_every_day() {
    let Some(store) = Server::shared(Kind::Moto) else {
        return;
    };
    let from = date(2026, 12, 20);
    let days = [
        (Versions::Enabled, long(35, 90)),
        (Versions::Never, long(10, 31)),
    ];
    for (versions, days) in days {
        let before = from.saturating_add((days as i64).days());
        let bucket = store.bucket(versions).await;
        let sink = bucket.sink_with(json!({ "layout": "tiers" }));
        simulate(Arc::new(sink), &runs(from, before)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_links_an_archive_is_sent_into_its_other_places() {
    let folder = tempfile::tempdir().unwrap();
    let local = Local::new(folder.path().into()).with_layout(Layout::Tiers);
    // It takes no second name for what it has.
    let sink = FaultySink::new(Arc::new(local), Fault::None);
    simulate(Arc::new(sink), &runs(date(2026, 12, 28), date(2027, 1, 12))).await;
    let links = |path: std::path::PathBuf| path.metadata().unwrap().nlink();
    let yearly = folder.path().join("yearly/2027/backup.2027-01-01.tar.xz");
    assert_eq!(links(yearly), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_or_partial_run_stands_for_no_week_month_or_year() {
    let folder = tempfile::tempdir().unwrap();
    let local = Local::new(folder.path().into()).with_layout(Layout::Tiers);
    let mut site = site(Arc::new(local));
    let good = site.sources.clone();
    let partial = FakeSource::small(1, 2).mutant(bk_tests::fakes::SourceDefect::UnitWithoutEnd);
    site.sources = Site::default().source("fake", partial).sources;
    site.clock = Arc::new(FixedClock("2027-02-01T02:00:00Z".parse().unwrap()));
    let report = site.backup().await;
    assert!(!report.complete);
    site.sources = good;
    site.clock = Arc::new(FixedClock("2027-02-02T02:00:00Z".parse().unwrap()));
    let report = site.backup().await;
    assert_eq!(report.sinks[0].placed.len(), 3, "{report:?}");
    for folder_of in ["weekly/2027-week05", "monthly/2027-02", "yearly/2027"] {
        let first = folder
            .path()
            .join(folder_of)
            .join("backup.2027-02-02.tar.xz");
        assert!(first.is_file(), "{}", first.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_young_enough_is_placed_instead_of_making_another() {
    let folder = tempfile::tempdir().unwrap();
    let local: Arc<dyn Sink> =
        Arc::new(Local::new(folder.path().into()).with_layout(Layout::Tiers));
    let mut site = site(local);
    // Longer than what is read, and so checked, of any archive.
    let units = BTreeMap::from([("body".to_owned(), noise(1, 200_000).into())]);
    let store = BTreeMap::from([(("group".to_owned(), "unit".to_owned()), units)]);
    site.sources = Site::default()
        .source("fake", FakeSource::new(store))
        .sources;
    let made: Timestamp = "2027-01-31T00:00:00Z".parse().unwrap();
    site.clock = Arc::new(FixedClock(made));
    assert!(site.backup_into(Some(Tier::Daily)).await.causes.is_empty());
    let folders = || {
        let names = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| !name.starts_with('.'))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(folders(), BTreeSet::from(["daily".to_owned()]));

    let mut ask = async |tier, after: jiff::Span| {
        site.clock = Arc::new(FixedClock(made + after));
        place_young(&site.context(), &site.sinks, tier, &zone())
            .await
            .unwrap()
    };
    let placed = ask(Tier::Weekly, 1.hours()).await.unwrap();
    assert_eq!(
        placed[0].name,
        "weekly/2027-week04/backup.2027-01-31.tar.xz"
    );
    assert!(!placed[0].was_there);
    let again = ask(Tier::Weekly, 5.hours()).await.unwrap();
    assert!(again[0].was_there && again[0].id == placed[0].id);
    // Too old; and of another month, though young.
    assert!(ask(Tier::Monthly, 6.hours()).await.is_none());
    assert!(ask(Tier::Monthly, 24.hours()).await.is_none());

    // One that is not what it was is not placed.
    let path = folder
        .path()
        .join("daily/20270131/backup.2027-01-31.tar.xz");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    site.clock = Arc::new(FixedClock(made + 2.hours()));
    let placed = place_young(&site.context(), &site.sinks, Tier::Yearly, &zone()).await;
    assert!(placed.unwrap().is_none(), "another must be made");
    assert!(!folder.path().join("yearly").exists());
}

/// Two days of a week; nothing but the days' own folders is filled on the first.
async fn two_days(
    folder: &std::path::Path,
    between: impl FnOnce(),
) -> bk_core::report::BackupReport {
    let local: Arc<dyn Sink> = Arc::new(Local::new(folder.into()).with_layout(Layout::Tiers));
    let mut site = site(local);
    site.sinks[0].policy.keep = Some(Keep {
        daily: 1.into(),
        weekly: 4.into(),
        ..Keep::default()
    });
    site.clock = Arc::new(FixedClock("2027-01-05T02:00:00Z".parse().unwrap()));
    let report = site.backup_into(Some(Tier::Daily)).await;
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    between();
    site.clock = Arc::new(FixedClock("2027-01-06T02:00:00Z".parse().unwrap()));
    site.backup().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_archive_that_does_not_open_leaves_its_week_to_the_next() {
    use std::os::unix::fs::FileExt;
    let folder = tempfile::tempdir().unwrap();
    let first = folder
        .path()
        .join("daily/20270105/backup.2027-01-05.tar.xz");
    let report = two_days(folder.path(), || {
        // The end of it rots, and nothing about the file says so.
        let file = std::fs::File::options().write(true).open(&first).unwrap();
        let meta = file.metadata().unwrap();
        file.write_all_at(&[0; 64], meta.len() - 64).unwrap();
        file.set_modified(meta.modified().unwrap()).unwrap();
    })
    .await;
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    let weekly = folder.path().join("weekly/2027-week01");
    assert!(weekly.join("backup.2027-01-06.tar.xz").is_file());
    assert!(!weekly.join("backup.2027-01-05.tar.xz").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_let_go_while_a_period_got_no_archive() {
    let folder = tempfile::tempdir().unwrap();
    let in_the_way = folder.path().join("weekly");
    let report = two_days(folder.path(), || std::fs::write(&in_the_way, "").unwrap()).await;
    let whats: Vec<&str> = report
        .causes
        .iter()
        .map(|cause| cause.what.as_str())
        .collect();
    assert!(
        whats.len() == 1 && whats[0].contains("nothing is pruned"),
        "{whats:?}"
    );
    let first = "daily/20270105/backup.2027-01-05.tar.xz";
    assert!(folder.path().join(first).is_file());

    // The next run makes up for it, and then lets go.
    let folder = tempfile::tempdir().unwrap();
    let report = two_days(folder.path(), || {}).await;
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    assert!(!folder.path().join(first).exists());
    assert!(
        folder
            .path()
            .join("weekly/2027-week01/backup.2027-01-05.tar.xz")
            .is_file()
    );
}

#[test]
fn what_failed_its_check_keeps_the_good_one_beside_it() {
    let home = Home::new(
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[sink.local]\npath = \"out\"\nkeep = { last = 1 }\nprune = \"never\"\n",
    );
    for n in 0..2 {
        home.write("src/a", noise(n, 200_000));
        home.bk(&["backup"]).ended(0);
    }
    let json: serde_json::Value =
        serde_json::from_str(&home.bk(&["list", "--json"]).ended(0).stdout).unwrap();
    let newest = json[0]["stored"]["name"].as_str().unwrap();
    let path = home.path("out").join(newest);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    home.bk(&["verify", "--all"]).ended(7);
    let ran = home.bk(&["prune", "--explain"]).ended(0);
    assert!(ran.stdout.contains("failed its check"), "{}", ran.stdout);
    assert!(ran.stderr.contains("0 archives deleted"), "{}", ran.stderr);
    assert_eq!(home.archives().len(), 2);
    // A good one that is newer takes the place of the good one.
    home.write("src/a", noise(9, 200_000));
    home.bk(&["backup"]).ended(0);
    home.bk(&["prune"]).ended(0);
    let left = home.archives();
    assert!(
        left.len() == 2 && left.iter().any(|name| name == newest),
        "{left:?}"
    );
    home.bk(&["restore", "--yes", "--into", "files=back"])
        .ended(0);
    assert_eq!(
        std::fs::read(home.path("back/a")).unwrap(),
        noise(9, 200_000)
    );
}

const HOME: &str = "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[sink.local]\npath = \"out\"\nlayout = \"tiers\"\nkeep = { daily = 7, weekly = 4, monthly = \"12mo\" }\n";

#[test]
fn three_cron_jobs_fill_three_tiers_with_one_backup() {
    let home = Home::new(HOME);
    home.write("src/a", "some bytes");
    let ran = home.bk(&["backup", "--tier", "daily"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for (tier, other) in [("weekly", false), ("monthly", false), ("weekly", true)] {
        let ran = home.bk(&["backup", "--tier", tier]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let said = if other {
            "has its archive already"
        } else {
            "without another backup"
        };
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    }
    let ran = home.bk(&["list"]);
    assert_eq!(ran.stdout.lines().count(), 1, "{}", ran.stdout);
    assert!(
        ran.stdout.contains("on local, also weekly, monthly"),
        "{}",
        ran.stdout
    );
    assert!(!home.path("out/yearly").exists());

    let ran = home.bk(&["restore", "--yes", "--into", "files=back"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(std::fs::read(home.path("back/a")).unwrap(), b"some bytes");

    let ran = home.bk(&["prune", "--dry-run", "--explain"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("monthly within 1y"), "{}", ran.stdout);
    assert!(ran.stdout.contains("M monthly"), "{}", ran.stdout);
}

#[test]
fn a_tier_without_a_sink_for_it_is_a_mistake_in_the_settings() {
    let home = Home::files();
    home.write("src/a", "some bytes");
    let ran = home.bk(&["backup", "--tier", "weekly"]);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("layout = \"tiers\""), "{}", ran.stderr);
    assert!(!home.path("out").exists());
    assert_eq!(home.bk(&["backup", "--tier", "hourly"]).code, 2);
}

#[test]
fn ages_that_are_no_ages_are_named_with_their_place() {
    for (wrong, said) in [
        ("daily = \"6m\"", "6mo"),
        ("within = 30", "string"),
        ("last = -1", "-1"),
        ("hourly = \"soon\"", "no age"),
    ] {
        let home = Home::new(&HOME.replace("daily = 7", wrong));
        let ran = home.bk(&["config", "validate"]);
        assert_eq!(ran.code, 4, "{wrong}: {}", ran.stderr);
        assert!(
            ran.stderr.contains(said) && ran.stderr.contains("plugins.toml:"),
            "{wrong}: {}",
            ran.stderr
        );
    }
}

#[test]
fn checks_rotate_so_that_nothing_is_unread_for_thirty_days() {
    let rotation = Rotation {
        sample: Some(4.0),
        max_age: None,
    };
    let start: Timestamp = "2027-01-01T01:00:00Z".parse().unwrap();
    // Ten a day, kept for forty days.
    let mut copies: BTreeMap<(Timestamp, u32), Option<Timestamp>> = BTreeMap::new();
    for day in 0..200 {
        let now = start + SignedDuration::from_hours(24 * day);
        copies.extend((0..10).map(|n| ((now, n), None)));
        copies.retain(|(created, _), _| *created > now - SignedDuration::from_hours(24 * 40));
        let all = copies
            .iter()
            .map(|(copy, checked)| (*copy, copy.0, *checked))
            .collect();
        let due = rotation.due(all, now);
        assert!(due.len() <= copies.len().div_ceil(25));
        for copy in due {
            copies.insert(copy, Some(now));
        }
        let longest = copies
            .iter()
            .map(|((created, _), checked)| now.duration_since(checked.unwrap_or(*created)));
        assert!(
            longest.max().unwrap() <= SignedDuration::from_hours(24 * 30),
            "day {day}"
        );
    }
}

#[test]
fn dates_of_checks_are_kept_and_the_next_check_takes_what_was_not_read() {
    let home = Home::new(HOME);
    home.write("src/a", "some bytes");
    for n in 0..3 {
        home.write("src/a", noise(n, 200_000));
        assert_eq!(home.bk(&["backup", "--tier", "daily"]).code, 0);
    }
    let listed = home.bk(&["list"]).stdout;
    assert!(listed.contains("verified hash just now"), "{listed}");
    let ran = home.bk(&["verify", "--sample", "1%"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stdout.lines().count(), 1, "{}", ran.stdout);
    let ran = home.bk(&["verify", "--sample", "100%"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stdout.lines().count(), 3, "{}", ran.stdout);
    assert!(
        home.bk(&["verify", "--max-age", "1d"])
            .stderr
            .contains("nothing is due")
    );
    let listed = home.bk(&["list"]).stdout;
    assert!(
        listed
            .lines()
            .all(|line| line.contains("verified decoded just now")),
        "{listed}"
    );

    // What is damaged fails, is said by list, and fails what rotates, also where others are read.
    let day = std::fs::read_dir(home.path("out/daily"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let names = std::fs::read_dir(day).unwrap().map(|e| e.unwrap().path());
    let archive = names
        .filter(|path| path.extension().is_some_and(|e| e == "xz"))
        .min()
        .unwrap();
    let mut bytes = std::fs::read(&archive).unwrap();
    bytes[100_000] ^= 1;
    std::fs::write(&archive, bytes).unwrap();
    for level in ["hash", "decoded"] {
        let ran = home.bk(&["verify", "--all", "--level", level]);
        assert_eq!(ran.code, 7, "{}", ran.stderr);
    }
    // One of the three is read each time, in turn; at last nothing is due.
    for [option, value] in [["--sample", "1%"], ["--sample", "1%"], ["--max-age", "1d"]] {
        let ran = home.bk(&["verify", option, value]);
        assert_eq!(ran.code, 7, "{option}: {}", ran.stderr);
    }
    let ran = home.bk(&["verify", "--all", "--level", "listed"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let listed = home.bk(&["list"]).stdout;
    let failed = listed
        .lines()
        .filter(|line| line.contains("FAILED its check just now"));
    assert_eq!(failed.count(), 1, "{listed}");
    let json: serde_json::Value =
        serde_json::from_str(&home.bk(&["list", "--json"]).stdout).unwrap();
    let rows = json.as_array().unwrap();
    assert!(
        rows.iter()
            .all(|row| row["checked"]["passed"]["listed"].is_string()),
        "{json}"
    );
}
