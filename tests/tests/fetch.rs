//! `bk fetch`: archives come from where they were made into a folder here, whole or not at all, and the source is only read.

use bk_core::catalog::Catalogue;
use bk_core::config::{PruneWhen, SinkInstance, SinkPolicy};
use bk_core::error::ErrorKind;
use bk_core::fetch::{FetchOptions, FetchReport, fetch};
use bk_core::layout::Layout;
use bk_core::lock::RunLock;
use bk_core::report::Class;
use bk_core::retention::Keep;
use bk_core::sink::{Sink, Stored};
use bk_sinks::local::Local;
use bk_tests::binary::Home;
use bk_tests::database::{Kind, Server};
use bk_tests::engine::Site;
use bk_tests::fakes::{FakeSource, MemorySink, Store};
use bk_tests::faults::{Fault, FaultySink};
use bk_tests::sshd::{Cutting, Sshd, sink, toml_of};
use bk_tests::{data, long, parts_in, seed};
use bytes::Bytes;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A node that makes archives, and a PC with an empty folder.
struct Two {
    node: MemorySink,
    pc: tempfile::TempDir,
    source: FakeSource,
    keep: Option<Keep>,
    prune: PruneWhen,
}

impl Two {
    fn new() -> Self {
        Self {
            node: MemorySink::default(),
            pc: tempfile::tempdir().unwrap(),
            source: FakeSource::small(2, 3),
            keep: None,
            prune: PruneWhen::AfterBackup,
        }
    }

    /// With bytes that do not shrink: so many units of a MiB.
    fn of_mebibytes(units: usize) -> Self {
        Self {
            source: FakeSource::new(noise(units)),
            ..Self::new()
        }
    }

    async fn back_up(&self, at: Timestamp) {
        let report = Site::default()
            .source("fake", self.source.clone())
            .sink("node", self.node.clone())
            .at(&at.to_string())
            .backup()
            .await;
        assert!(report.causes.is_empty(), "{:?}", report.causes);
    }

    fn to(&self) -> SinkInstance {
        SinkInstance {
            name: "pc".into(),
            plugin: "local".into(),
            policy: SinkPolicy {
                keep: self.keep,
                prune: self.prune,
                ..SinkPolicy::default()
            },
            sink: Arc::new(Local::new(self.pc.path().join("b")).with_layout(Layout::Dates)),
        }
    }

    async fn fetch(&self, at: Timestamp, options: &FetchOptions) -> FetchReport {
        self.fetch_from(Arc::new(self.node.clone()), at, options)
            .await
    }

    async fn fetch_from(
        &self,
        sink: Arc<dyn Sink>,
        at: Timestamp,
        options: &FetchOptions,
    ) -> FetchReport {
        let from = SinkInstance {
            name: "node".into(),
            plugin: "memory".into(),
            policy: SinkPolicy::default(),
            sink,
        };
        let cx = Site::default().at(&at.to_string()).context();
        fetch(&cx, &from, &self.to(), &TimeZone::UTC, options).await
    }

    /// Archives here, oldest first.
    async fn here(&self) -> Vec<String> {
        let cx = Site::default().context();
        let catalogue = Catalogue::read(&cx, &[self.to()]).await;
        let mut names: Vec<_> = catalogue
            .archives()
            .map(|(entry, _)| entry.stored.name.clone())
            .collect();
        names.reverse();
        names
    }
}

fn noise(units: usize) -> Store {
    let unit = |n: usize| {
        let body = Bytes::from(data::noise(n as u64, 1 << 20));
        let members = BTreeMap::from([(format!("g/u{n:03}/m"), body)]);
        (("g".to_owned(), format!("u{n:03}")), members)
    };
    (0..units).map(unit).collect()
}

/// Some hours after midnight of a day in August 2026, and on.
fn day(n: i64) -> Timestamp {
    let first: Timestamp = "2026-08-01T03:00:00Z".parse().unwrap();
    first + (24 * (n - 1)).hours()
}

fn hours_later(at: Timestamp) -> Timestamp {
    at + 3.hours()
}

fn classes(report: &FetchReport) -> Vec<Class> {
    report.causes.iter().map(|cause| cause.class).collect()
}

fn sums_agree(folder: &Path, file: &str) {
    let checked = Command::new("sha256sum")
        .args(["-c", "--quiet", &format!("{file}.sha256")])
        .current_dir(folder)
        .status()
        .unwrap();
    assert!(checked.success(), "{}/{file}", folder.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_whole_archive_lies_in_the_folder_of_its_day() {
    let two = Two::new();
    for n in 1..=3 {
        two.back_up(day(n)).await;
    }
    let options = FetchOptions::default();
    let looked = FetchOptions {
        dry_run: true,
        ..options.clone()
    };
    let report = two.fetch(hours_later(day(3)), &looked).await;
    assert_eq!(report.wanted, ["backup.2026-08-03.tar.xz"]);
    assert_eq!(two.here().await, [""; 0]);
    let report = two.fetch(hours_later(day(3)), &options).await;
    assert_eq!(classes(&report), []);
    assert_eq!(two.here().await, ["2026-08-03/backup.2026-08-03.tar.xz"]);
    let folder = two.pc.path().join("b/2026-08-03");
    sums_agree(&folder, "backup.2026-08-03.tar.xz");
    let report = two.fetch(hours_later(day(3)), &options).await;
    assert_eq!(classes(&report), []);
    assert!(report.fetched.is_empty() && report.wanted.is_empty());
    let empty = FakeSource::small(0, 0);
    let restored = empty.store.clone();
    let mut site = Site::default().source("fake", empty);
    site.sinks.push(two.to());
    let report = site
        .restore(bk_core::restore::Request::default())
        .await
        .unwrap();
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    assert_eq!(*restored.lock().unwrap(), *two.source.store.lock().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_kept_comes_newest_first_and_ten_stay() {
    let two = Two::new();
    for n in 1..=14 {
        two.back_up(day(n)).await;
    }
    let all = FetchOptions {
        all: true,
        ..FetchOptions::default()
    };
    let report = two.fetch(hours_later(day(14)), &all).await;
    assert_eq!(classes(&report), []);
    assert_eq!(report.fetched.len(), 10);
    assert_eq!(
        report.fetched[0].name,
        "2026-08-14/backup.2026-08-14.tar.xz"
    );
    two.back_up(day(15)).await;
    let report = two
        .fetch(hours_later(day(15)), &FetchOptions::default())
        .await;
    assert_eq!(classes(&report), []);
    let here = two.here().await;
    assert_eq!(here.len(), 10);
    assert_eq!(here[0], "2026-08-06/backup.2026-08-06.tar.xz");
    assert!(!two.pc.path().join("b/2026-08-05").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fortnight_without_the_pc_the_node_or_both_loses_nothing() {
    let two = Two::new();
    let options = FetchOptions::default();
    let all = FetchOptions {
        all: true,
        ..options.clone()
    };
    for n in 1..=12 {
        two.back_up(day(n)).await;
        let report = two.fetch(hours_later(day(n)), &options).await;
        assert_eq!(classes(&report), [], "day {n}");
    }
    assert_eq!(two.here().await.len(), 10);
    // The PC is off; the node keeps a week.
    for n in 13..=26 {
        two.back_up(day(n)).await;
    }
    two.node.keep_newest(7);
    let report = two.fetch(hours_later(day(26)), &all).await;
    assert_eq!(classes(&report), []);
    assert_eq!(report.fetched.len(), 7);
    assert_eq!(report.gaps.len(), 1, "{:?}", report.gaps);
    let here = two.here().await;
    assert_eq!(here.len(), 10);
    assert_eq!(here[9], "2026-08-26/backup.2026-08-26.tar.xz");
    // The node stands still.
    for n in 27..=40 {
        let report = two.fetch(hours_later(day(n)), &options).await;
        let stale = if n > 27 { vec![Class::Stale] } else { vec![] };
        assert_eq!(classes(&report), stale, "day {n}");
        assert_eq!(two.here().await, here);
    }
    // Both: what is there is fetched, and is old by what the operator said.
    two.back_up(day(41)).await;
    let a_day = FetchOptions {
        max_age: Some(SignedDuration::from_hours(24)),
        ..options.clone()
    };
    let report = two.fetch(hours_later(day(55)), &a_day).await;
    assert_eq!(classes(&report), [Class::Stale]);
    assert_eq!(report.fetched.len(), 1);
    assert_eq!(two.here().await.len(), 11, "nothing goes while it is old");
    let report = two.fetch(hours_later(day(55)), &options).await;
    assert_eq!(classes(&report), [Class::Stale], "nothing new, and old");
    two.back_up(day(56)).await;
    let report = two.fetch(hours_later(day(56)), &options).await;
    assert_eq!(classes(&report), []);
    assert_eq!(two.here().await.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_a_clock_that_was_wrong_is_left_where_it_is() {
    let two = Two::new();
    two.back_up(day(3000)).await;
    for n in 1..=2 {
        two.back_up(day(n)).await;
        let report = two
            .fetch(hours_later(day(n)), &FetchOptions::default())
            .await;
        assert_eq!(classes(&report), []);
        assert_eq!(report.fetched.len(), 1);
        assert!(
            report.warnings[0].contains("in the future"),
            "{:?}",
            report.warnings
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_keeps_nothing_else_from_coming_and_never_is_never() {
    let mut two = Two::of_mebibytes(3);
    for n in 1..=4 {
        two.back_up(day(n)).await;
    }
    let damaged = "backup.2026-08-03.tar.xz";
    let mut bytes = two.node.archive(damaged).unwrap().to_vec();
    bytes[1 << 20] ^= 1;
    two.node.put(damaged, bytes.into());
    let all = FetchOptions {
        all: true,
        ..FetchOptions::default()
    };
    let report = two.fetch(hours_later(day(4)), &all).await;
    assert_eq!(classes(&report), [Class::Corrupt]);
    assert_eq!(two.here().await.len(), 3);
    // Retention that is left to `bk prune` is left to it.
    two.keep = Some(Keep::last(1));
    two.prune = PruneWhen::Never;
    two.back_up(day(5)).await;
    let report = two
        .fetch(hours_later(day(5)), &FetchOptions::default())
        .await;
    assert_eq!(classes(&report), []);
    assert_eq!(two.here().await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_may_only_read_is_enough() {
    let Some(server) = Sshd::start(&["ForceCommand internal-sftp -R -d FOLDER/files"]) else {
        return;
    };
    let made = tempfile::tempdir().unwrap();
    let report = Site::default()
        .source("fake", FakeSource::small(2, 2))
        .sink("node", Local::new(made.path().to_path_buf()))
        .at(&day(1).to_string())
        .backup()
        .await;
    assert!(report.causes.is_empty());
    server.take_in("node", made.path());
    let two = Two::new();
    let remote = Arc::new(sink(server.table("node")).unwrap());
    let options = FetchOptions::default();
    let report = two.fetch_from(remote, hours_later(day(1)), &options).await;
    assert_eq!(classes(&report), [], "{:?}", report.causes);
    assert_eq!(two.here().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_does_not_answer_is_1_and_the_age_is_said() {
    let two = Two::new();
    two.back_up(day(1)).await;
    let options = FetchOptions::default();
    two.fetch(hours_later(day(1)), &options).await;
    let dead = FaultySink::new(Arc::new(two.node.clone()), Fault::List);
    let report = two.fetch_from(Arc::new(dead), day(9), &options).await;
    assert_eq!(classes(&report), [Class::Failed]);
    assert_eq!(report.newest.unwrap().age_seconds, 8 * 24 * 3600);
    assert_eq!(two.here().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_goes_or_is_replaced_meanwhile_is_looked_for_anew() {
    for what in ["goes", "is replaced"] {
        let two = Two::of_mebibytes(12);
        two.back_up(day(1)).await;
        two.back_up(day(2)).await;
        let newest = "backup.2026-08-02.tar.xz";
        let another = Two::of_mebibytes(11);
        another.back_up(day(2)).await;
        let (node, other) = (two.node.clone(), another.node.archive(newest).unwrap());
        let reads = Arc::new(AtomicU32::new(0));
        let hook = move |stored: &Stored, from: u64| {
            // The stream of the body begins behind what is here: at the beginning.
            if stored.name == newest && from == 0 && reads.fetch_add(1, Ordering::SeqCst) == 0 {
                node.remove(newest);
                if what == "is replaced" {
                    node.put(newest, other.clone());
                }
            }
        };
        let sink = FaultySink::watched(Arc::new(two.node.clone()), Arc::new(hook));
        let report = two
            .fetch_from(
                Arc::new(sink),
                hours_later(day(2)),
                &FetchOptions::default(),
            )
            .await;
        assert_eq!(classes(&report), [], "{what}: {:?}", report.causes);
        assert_eq!(report.warnings.len(), 1, "{:?}", report.warnings);
        let expected = if what == "goes" { 1 } else { 2 };
        let name = format!("2026-08-0{expected}/backup.2026-08-0{expected}.tar.xz");
        assert_eq!(two.here().await, [name]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_gets_no_name_and_sound_blocks_are_not_sent_again() {
    let two = Two::of_mebibytes(24);
    two.back_up(day(1)).await;
    let bytes = two.node.archive("backup.2026-08-01.tar.xz").unwrap();
    let flipped = FaultySink::new(
        Arc::new(two.node.clone()),
        Fault::Flip(bytes.len() as u64 * 3 / 4),
    );
    let options = FetchOptions::default();
    let report = two
        .fetch_from(Arc::new(flipped), hours_later(day(1)), &options)
        .await;
    assert!(
        classes(&report).contains(&Class::Corrupt),
        "{:?}",
        report.causes
    );
    assert_eq!(two.here().await, [""; 0]);
    let before = two.node.read_bytes.load(Ordering::SeqCst);
    let report = two.fetch(hours_later(day(1)), &options).await;
    assert_eq!(classes(&report), []);
    let sent = two.node.read_bytes.load(Ordering::SeqCst) - before;
    assert!(
        sent < bytes.len() as u64 / 2,
        "{sent} of {} bytes were sent again",
        bytes.len()
    );
    assert!(report.fetched[0].kept_bytes > bytes.len() as u64 / 2);
    let folder = two.pc.path().join("b");
    assert_eq!(parts_in(&folder), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_run_fills_a_folder_and_the_source_is_only_read() {
    let two = Two::new();
    two.back_up(day(1)).await;
    let options = FetchOptions::default();
    let folder = two.pc.path().join("b");
    std::fs::create_dir(&folder).unwrap();
    let cx = Site::default().context();
    let lock = RunLock::take(&cx, &folder, Duration::ZERO).await.unwrap();
    let report = two.fetch(hours_later(day(1)), &options).await;
    assert_eq!(classes(&report), [Class::Locked]);
    drop(lock);
    // A folder may be a source as well; nothing in it changes.
    let node = tempfile::tempdir().unwrap();
    let local = Local::new(node.path().to_path_buf());
    let report = Site::default()
        .source("fake", FakeSource::small(2, 2))
        .sink("node", local.clone())
        .at(&day(2).to_string())
        .backup()
        .await;
    assert!(report.causes.is_empty());
    let before = data::digest_text(node.path());
    let report = two
        .fetch_from(Arc::new(local), hours_later(day(2)), &options)
        .await;
    assert_eq!(classes(&report), []);
    assert_eq!(data::digest_text(node.path()), before);
    let read_only = bk_core::sink::ReadOnly::new("node", Arc::new(two.node.clone()));
    let listed = read_only.list(&cx, &Default::default()).await.unwrap();
    let refused = read_only.delete(&cx, &listed[0]).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Denied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_anywhere_is_gone_on_with() {
    let Some(server) = Sshd::start(&[]) else {
        return;
    };
    let cutting = Cutting::to(server.port).await;
    server.make_folder("node");
    let mut table = server.table("node");
    table["port"] = json!(cutting.port);
    let report = Site::default()
        .source("fake", FakeSource::new(noise(96)))
        .sink("node", server.sink("node"))
        .at(&day(1).to_string())
        .backup()
        .await;
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    let mut rng = SmallRng::seed_from_u64(seed(43));
    let options = FetchOptions::default();
    let mut clean = 0;
    let mut worst = 0;
    for n in 0..=long(12, 100) {
        let two = Two::new();
        let remote: Arc<dyn Sink> = Arc::new(sink(table.clone()).unwrap());
        let before = cutting.passed.load(Ordering::SeqCst);
        let at = if n == 0 {
            0
        } else {
            rng.random_range(1..clean)
        };
        cutting
            .at
            .store(if n == 0 { 0 } else { before + at }, Ordering::SeqCst);
        let mut report = two.fetch_from(remote, hours_later(day(1)), &options).await;
        if !report.causes.is_empty() {
            // While it still asked what there is; a cut of the body is mended inside of a run.
            assert_eq!(classes(&report), [Class::Failed], "cut at {at}");
            assert_eq!(two.here().await, [""; 0]);
            let remote: Arc<dyn Sink> = Arc::new(sink(table.clone()).unwrap());
            report = two.fetch_from(remote, hours_later(day(1)), &options).await;
        }
        assert_eq!(classes(&report), [], "cut at {at}: {:?}", report.causes);
        let passed = cutting.passed.load(Ordering::SeqCst) - before;
        if n == 0 {
            clean = passed;
        }
        worst = worst.max(passed);
        sums_agree(
            &two.pc.path().join("b/2026-08-01"),
            "backup.2026-08-01.tar.xz",
        );
    }
    println!("{clean} bytes without a cut, at most {worst} with one");
    assert!(worst <= clean + clean / 10, "{worst} of {clean}");
}

fn quoted(value: &serde_json::Value) -> String {
    value.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_killed_is_gone_on_with() {
    let Some(server) = Sshd::start(&[]) else {
        return;
    };
    let cutting = Cutting::to(server.port).await;
    server.make_folder("node");
    let report = Site::default()
        .source("fake", FakeSource::new(noise(40)))
        .sink("node", server.sink("node"))
        .backup()
        .await;
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    let mut table = server.table("node");
    table["port"] = json!(cutting.port);
    table["plugin"] = json!("ssh");
    table["read_only"] = json!(true);
    let home = Home::new(&format!(
        "format = 1\nplugins = [\"ssh\", \"local\"]\n{}[sink.pc]\nplugin = \"local\"\npath = \"pc\"\nlayout = \"dates\"\nfetch = {{ from = \"node\" }}\n",
        toml_of("node", &table)
    ));
    let mut rng = SmallRng::seed_from_u64(seed(44));
    let begin = cutting.passed.load(Ordering::SeqCst);
    for _ in 0..long(4, 40) {
        let mut child = home.command(&["fetch", "-q"]).spawn().unwrap();
        let until = cutting.passed.load(Ordering::SeqCst) + rng.random_range(1..8 << 20);
        while cutting.passed.load(Ordering::SeqCst) < until && child.try_wait().unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let whole = home.bk(&["list", "--from", "pc"]).ended(0);
        if !whole.stdout.is_empty() {
            assert!(whole.stdout.contains("whole"), "{}", whole.stdout);
            home.bk(&["verify", "--from", "pc"]).ended(0);
        }
    }
    let last = home.bk(&["fetch", "--json"]).ended(0);
    let last: serde_json::Value = serde_json::from_str(&last.stdout).unwrap();
    let kept = last[0]["fetched"][0]["kept_bytes"].as_u64();
    assert!(kept.is_none_or(|kept| kept > 0), "{last}");
    home.bk(&["verify", "--from", "pc"]).ended(0);
    assert_eq!(parts_in(&home.path("pc")), 0);
    let passed = cutting.passed.load(Ordering::SeqCst) - begin;
    println!("{} MiB passed", passed >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_path_from_a_cluster_to_a_pc() {
    let (Some(server), Some(database)) = (Sshd::start(&[]), Server::start(Kind::MariaDb, &[]))
    else {
        return;
    };
    let load = "CREATE DATABASE shop CHARACTER SET utf8mb4; CREATE TABLE shop.orders (id INT PRIMARY KEY, what TEXT); INSERT INTO shop.orders VALUES (1, 'tea'), (2, 'чай'), (3, NULL);";
    let sql = |text: &str| {
        let output = database
            .client()
            .args(["--default-character-set=utf8mb4", "-N", "-e", text])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    sql(load);
    server.make_folder("backup");
    let caddy = Path::new(env!("CARGO_MANIFEST_DIR")).join("sites/sample/caddy");
    let sources = |caddy: &Path| {
        format!(
            "[source.caddy]\npath = {}\n{}",
            quoted(&json!(caddy)),
            database.source("mysql")
        )
    };
    let mut table = server.table("backup");
    table["plugin"] = json!("ssh");
    let cluster = Home::new(&format!(
        "format = 1\nplugins = [\"caddy\", \"mysql\", \"ssh\"]\n{}{}",
        sources(&caddy),
        toml_of("node", &table)
    ));
    cluster.bk(&["backup"]).ended(0);
    // The PC: settings from the description of the cluster, the key of the node written down once.
    let described = json!({
        "domain": "school.example.org",
        "nodes": [
            { "name": "node1", "ipv6": "2001:db8::1", "user": "root", "role": "master", "is_first_master": true, "is_backup": false },
            { "name": "node4", "ipv6": "127.0.0.1", "user": server.user, "role": "backup", "is_backup": true, "ssh_key_path": server.path("id"), "extra": [1] },
        ],
        "couchdb": { "user": "admin", "password": "geheim" },
        "something_else": {},
    });
    let pc = Home::new("");
    pc.write("cluster-config.json", described.to_string());
    let run = |arguments: &[&str]| {
        let output = pc
            .command(arguments)
            .env("HOME", pc.path(""))
            .output()
            .unwrap();
        bk_tests::binary::Ran::from(output)
    };
    let imported = run(&["config", "import", "cluster-config.json"]).ended(0);
    assert!(!imported.stdout.contains("geheim"), "{}", imported.stdout);
    assert!(
        imported.stdout.contains("/couchdb/password"),
        "{}",
        imported.stdout
    );
    // The server of this test listens elsewhere, and its account comes in elsewhere.
    let settings = imported.stdout.replace(
        "path = \"/opt/k3s/storage/backup\"",
        &format!("path = \"backup\"\nport = {}", server.port),
    );
    assert_ne!(settings, imported.stdout);
    pc.write("plugins.toml", &settings);
    let unknown = run(&["fetch"]).ended(4);
    assert!(unknown.stderr.contains("host_key"), "{}", unknown.stderr);
    run(&["fetch", "--set", "sink.node.accept_new_host_key=true"]).ended(0);
    run(&["fetch"]).ended(0);
    let listed = run(&["list", "--from", "pc"]).ended(0);
    let file = listed.stdout.split_whitespace().next().unwrap().to_owned();
    let (day, name) = file.split_once('/').unwrap();
    let folder = pc.path("openedx-backups").join(day);
    sums_agree(&folder, name);
    // Back from the file alone, onto what was lost.
    sql("DROP DATABASE shop");
    let empty = pc.path("caddy");
    std::fs::create_dir(&empty).unwrap();
    let restoring = Home::new(&format!(
        "format = 1\nplugins = [\"caddy\", \"mysql\", \"local\"]\n{}[sink.local]\npath = \"none\"\n",
        sources(&empty)
    ));
    let fetched = folder.join(name);
    restoring
        .bk(&["restore", "--yes", fetched.to_str().unwrap()])
        .ended(0);
    assert_eq!(
        sql("SELECT id, what FROM shop.orders ORDER BY id"),
        "1\ttea\n2\tчай\n3\tNULL\n"
    );
    let without_locks = |path: &Path| {
        let mut entries = data::digest(path);
        entries.retain(|name, _| !name.starts_with(b"locks"));
        entries.remove(&b""[..]);
        entries
    };
    assert_eq!(
        data::difference(&without_locks(&caddy), &without_locks(&empty)),
        None
    );
}

#[test]
fn two_sites_come_from_one_node_into_folders_of_their_own() {
    let node = Home::files();
    node.write("src/g/u/f", "one");
    for site in ["school", "shop"] {
        node.bk(&["backup", "--site", site]).ended(0);
    }
    let pc = Home::new(&format!(
        "format = 1\nplugins = [\"local\"]\n[sink.node]\nplugin = \"local\"\npath = {}\nread_only = true\n[sink.one]\nplugin = \"local\"\npath = \"one\"\nlayout = \"dates\"\nfetch = {{ from = \"node\", site = \"school\" }}\n[sink.two]\nplugin = \"local\"\npath = \"two\"\nlayout = \"dates\"\nfetch = {{ from = \"node\", site = \"shop\", max_age = \"1d\" }}\n",
        quoted(&json!(node.path("out")))
    ));
    let before = data::digest_text(&node.path("out"));
    pc.bk(&["check"]).ended(0);
    pc.bk(&["fetch"]).ended(0);
    assert_eq!(data::digest_text(&node.path("out")), before);
    for (sink, site, other) in [("one", "school", "shop"), ("two", "shop", "school")] {
        let listed = |site: &str| {
            pc.bk(&["list", "--from", sink, "--site", site])
                .ended(0)
                .stdout
        };
        assert_eq!(listed(site).lines().count(), 1);
        assert_eq!(listed(other).lines().count(), 0);
    }
    // What is fetched is pinned here, and nothing over there.
    pc.bk(&["pin", "--site", "shop", "--from", "two"]).ended(0);
    assert_eq!(data::digest_text(&node.path("out")), before);
    // A backup has no place here.
    let refused = pc.bk(&["backup"]).ended(4);
    assert!(refused.stderr.contains("source"), "{}", refused.stderr);
    pc.bk(&["fetch", "--from", "two"]).ended(4);
    // A folder that is named keeps its own rules, and gets its own site alone.
    pc.bk(&["fetch", "--site", "shop"]).ended(0);
    assert_eq!(
        pc.bk(&["list", "--from", "one", "--site", "shop"])
            .ended(0)
            .stdout,
        ""
    );
    let before = pc.names_in(".");
    pc.bk(&[
        "fetch",
        "--from",
        "node",
        "--dry-run",
        "looked-at",
        "--site",
        "shop",
    ])
    .ended(0);
    assert_eq!(pc.names_in("."), before);
    // The only sink that is not a folder of this machine's own to fill.
    pc.bk(&["fetch", "folder"]).ended(5);
    pc.bk(&["fetch", "folder", "--site", "school"]).ended(0);
    assert_eq!(parts_in(&pc.path("folder")), 0);
}

#[test]
fn broken_settings_of_a_fetch_are_named_with_their_place() {
    let table = |fetch: &str| {
        format!(
            "format = 1\nplugins = [\"local\"]\n[sink.pc]\nplugin = \"local\"\npath = \"pc\"\nfetch = {fetch}\n"
        )
    };
    for (fetch, said) in [
        ("{ from = \"node\" }", "no other sink `node`"),
        ("{ from = \"pc\" }", "no other sink `pc`"),
        ("{ site = \"x\" }", "from"),
        ("{ from = \"pc\", max_age = \"soon\" }", "no duration"),
        ("{ from = \"pc\", max_age = \"-3h\" }", "negative"),
        ("true", "fetch"),
    ] {
        let home = Home::new(&table(fetch));
        let ran = home.bk(&["config", "validate"]).ended(4);
        assert!(ran.stderr.contains(said), "{fetch}: {}", ran.stderr);
        assert!(ran.stderr.contains("plugins.toml:6:"), "{}", ran.stderr);
    }
}

#[test]
fn what_describes_no_cluster_is_refused_with_what_to_write() {
    let home = Home::new("");
    for (text, code, said) in [
        ("{}", 4, "nodes"),
        ("not json", 4, "nodes"),
        ("{\"nodes\": []}", 4, "is_backup"),
        (
            "{\"nodes\": [{\"name\": \"a\", \"is_backup\": true}]}",
            4,
            "ipv6",
        ),
        (
            "{\"nodes\": [{\"name\": \"a\", \"is_backup\": true}, {\"name\": \"b\", \"role\": \"backup\"}]}",
            4,
            "--node",
        ),
    ] {
        home.write("c.json", text);
        let ran = home.bk(&["config", "import", "c.json"]).ended(code);
        assert!(ran.stderr.contains(said), "{text}: {}", ran.stderr);
        assert_eq!(ran.stdout, "");
    }
}
