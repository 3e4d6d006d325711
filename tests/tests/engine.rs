//! The engine under every condition: same data, same blocks; the least memory; sinks that fail; races; scale; stages.

use async_trait::async_trait;
use bk_core::config::{SinkInstance, SinkPolicy};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::name::MemberPath;
use bk_core::report::Class;
use bk_core::restore::Request;
use bk_core::retention::Keep;
use bk_core::selector::Selection;
use bk_core::settings::Settings;
use bk_core::sink::Sink;
use bk_core::source::{
    Counted, Facts, Health, Input, Meta, Output, PointInTime, RestoreOptions, Snapshot,
    SnapshotOptions, Source, Stage, Tally,
};
use bk_core::verify::{Level, verify};
use bk_sinks::local::{Local, Step};
use bk_sources::files::{Files, FilesSettings};
use bk_tests::engine::{Site, open, raw_sums};
use bk_tests::fakes::{FakeSource, MemorySink, Store};
use bk_tests::faults::{Fault, FaultySink};
use bk_tests::{binary, data, long, seed};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};

fn files(folder: &Path) -> Files {
    let settings = Settings {
        instance: "it".into(),
        folder: folder.into(),
        table: Default::default(),
    };
    Files::new(
        &settings,
        FilesSettings {
            path: ".".into(),
            include: None,
            exclude: None,
        },
    )
    .unwrap()
}

async fn blocks_of(site: &Site, memory: &MemorySink) -> BTreeSet<String> {
    let sink: Arc<dyn Sink> = Arc::new(memory.clone());
    let name = memory.names().pop().unwrap();
    raw_sums(&open(site, &sink, &name).await.unwrap()).await
}

async fn blocks_of_source(source: impl Source + 'static) -> BTreeSet<String> {
    let memory = MemorySink::default();
    let site = Site::default()
        .source("it", source)
        .sink("memory", memory.clone());
    let report = site.backup().await;
    assert!(
        report.complete && report.causes.is_empty(),
        "{:?}",
        report.causes
    );
    blocks_of(&site, &memory).await
}

/// The first archive there decodes to its end, and its counts agree.
async fn is_sound(sink: &MemorySink) {
    let archive = sink.archive(&sink.names()[0]).unwrap();
    verify(Arc::new(archive), None, Level::Decoded)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_tree_gives_the_same_blocks_twice() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("sites/sample/caddy");
    assert_eq!(
        blocks_of_source(files(&sample)).await,
        blocks_of_source(files(&sample)).await
    );
}

/// 1,000 units, three of them huge.
fn thousand_units() -> Store {
    let mut store = Store::new();
    for n in 0..1000_u64 {
        let segments = if n % 400 == 77 { 24 } else { 1 };
        let members = (0..segments)
            .map(|s| {
                (
                    format!("db{}/t{n:04}/{s:03}", n % 7),
                    Bytes::from(data::text(
                        n * 100 + s,
                        if segments > 1 {
                            700_000
                        } else {
                            900 + (n as usize * 37) % 4000
                        },
                    )),
                )
            })
            .collect();
        store.insert((format!("db{}", n % 7), format!("t{n:04}")), members);
    }
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_units_give_the_same_blocks_whatever_the_workers_and_delays() {
    let seed = seed(42);
    let store = thousand_units();
    let mut sets = Vec::new();
    for workers in [1, 2, 8] {
        let source = FakeSource {
            workers,
            delays: Some(seed + workers as u64),
            ..FakeSource::new(store.clone())
        };
        sets.push(blocks_of_source(source).await);
    }
    assert!(sets[0].len() > 25, "{} blocks", sets[0].len());
    assert_eq!(sets[0], sets[1]);
    assert_eq!(sets[0], sets[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_change_in_a_tree_changes_at_most_three_blocks() {
    let seed = seed(3);
    let mut random = SmallRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let sizes = [2_000, 20_000, 60_000, 300_000, 1_200_000];
    let mut paths = Vec::new();
    let mut total = 0;
    let wanted = long(70 << 20, 560 << 20);
    for n in 0.. {
        let up_to = sizes[random.random_range(0..sizes.len())];
        let len = random.random_range(0..up_to);
        let path = folder
            .path()
            .join(format!("g{}/u{}/f{n:05}", n % 7, n / 7 % 90));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, data::pages(n, len)).unwrap();
        paths.push(path);
        total += len;
        if total > wanted {
            break;
        }
    }
    let mut before = blocks_of_source(files(folder.path())).await;
    assert!(before.len() >= long(28, 200), "{} blocks", before.len());
    let mut worst = 0;
    for round in 0..long(8, 200) as u64 {
        let n = random.random_range(0..paths.len());
        let kind = round % 4;
        match kind {
            0 => grow(&paths[n], round),
            1 => std::fs::File::options()
                .write(true)
                .open(&paths[n])
                .unwrap()
                .set_len(std::fs::metadata(&paths[n]).unwrap().len() / 2)
                .unwrap(),
            2 => {
                let path = paths[n].with_extension(format!("new{round}"));
                std::fs::write(&path, data::pages(round ^ 77, 100_000)).unwrap();
                paths.push(path);
            }
            _ => std::fs::remove_file(paths.swap_remove(n)).unwrap(),
        }
        let after = blocks_of_source(files(folder.path())).await;
        let changed = after.difference(&before).count();
        worst = worst.max(changed);
        println!(
            "change {round} of kind {kind}: {changed} of {} blocks",
            after.len()
        );
        assert!(
            changed <= 3,
            "change {round} of kind {kind} changed {changed} of {} blocks",
            after.len()
        );
        before = after;
    }
    println!("the worst change changed {worst} blocks");
}

fn grow(path: &Path, salt: u64) {
    use std::io::Write;
    std::fs::File::options()
        .append(true)
        .open(path)
        .unwrap()
        .write_all(&data::pages(salt, 50_000))
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_limit_at_its_minimum_nothing_hangs() {
    let first = seed(1);
    for seed in first..first + long(12, 200) as u64 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut site = Site::default().minimal();
        for n in 0..random.random_range(1..4) {
            let mut store = Store::new();
            for u in 0..random.random_range(1..40_u64) {
                let members = (0..random.random_range(1..4_u64))
                    .map(|m| {
                        // Now and then a body that must be gathered and cut.
                        let len = if random.random_range(0..12) == 0 {
                            random.random_range(4 << 20..9 << 20)
                        } else {
                            random.random_range(0..300_000)
                        };
                        (
                            format!("g/u{u:03}/m{m}"),
                            Bytes::from(data::noise(seed ^ u ^ m, len)),
                        )
                    })
                    .collect();
                store.insert(("g".into(), format!("u{u:03}")), members);
            }
            let source = FakeSource {
                workers: random.random_range(1..6),
                delays: Some(seed),
                ..FakeSource::new(store)
            };
            site = site.source(&format!("s{n}"), source);
        }
        let memory = MemorySink::default();
        site = site.sink("memory", memory.clone());
        let second: Arc<dyn Sink> = Arc::new(MemorySink::default());
        site = site.sink("slow", FaultySink::new(second, Fault::Slow));
        let report = tokio::time::timeout(Duration::from_secs(120), site.backup())
            .await
            .unwrap_or_else(|_| panic!("seed {seed} hangs"));
        assert!(
            report.complete && report.causes.is_empty(),
            "seed {seed}: {:?}",
            report.causes
        );
        is_sound(&memory).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_sink_is_named_and_the_others_publish() {
    for fault in [
        Fault::Check,
        Fault::Create,
        Fault::Write(0),
        Fault::Write(2),
        Fault::Publish,
        Fault::Stall(1),
        Fault::Stall(4),
        Fault::Stall(5),
    ] {
        for required in [true, false] {
            let good = MemorySink::default();
            let beneath: Arc<dyn Sink> = Arc::new(MemorySink::default());
            let bad = FaultySink::new(beneath.clone(), fault);
            let keep = Keep {
                last: 1.into(),
                ..Keep::default()
            };
            let mut site = Site::default()
                .source("it", FakeSource::small(8, 60))
                .sink("good", good.clone())
                .keep(keep)
                .sink("bad", bad.clone())
                .keep(keep);
            site.limits.stall = Duration::from_millis(300);
            site.sinks[1].policy.required = required;
            let report = site.backup().await;
            let expected = if required {
                Class::Failed
            } else {
                Class::Partial
            };
            assert_eq!(
                report.causes.iter().map(|c| c.class).min(),
                Some(expected),
                "{fault:?} {required}: {:?}",
                report.causes
            );
            assert!(
                report.causes.iter().any(|c| c.about == "bad"),
                "{fault:?}: the sink is not named"
            );
            assert!(report.complete, "{fault:?}: the archive itself is whole");
            assert!(
                report.sinks[0].verified && !report.sinks[1].verified,
                "{fault:?}: {:?}",
                report.sinks
            );
            is_sound(&good).await;
            assert!(
                beneath
                    .list(&site.context(), &Default::default())
                    .await
                    .unwrap()
                    .is_empty(),
                "{fault:?}: the failed sink shows something"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_comes_back_takes_the_next_archive_and_retention_is_each_sinks_own() {
    let keep = Keep {
        last: 1.into(),
        floor: 1,
        ..Keep::default()
    };
    let (good, lame) = (MemorySink::default(), MemorySink::default());
    let beneath: Arc<dyn Sink> = Arc::new(lame.clone());
    for (day, fault) in [(1, Fault::None), (2, Fault::Write(1)), (3, Fault::None)] {
        let site = Site::default()
            .at(&format!("2026-08-0{day}T00:00:00Z"))
            .source("it", FakeSource::small(3, 9))
            .sink("good", good.clone())
            .keep(keep)
            .sink("lame", FaultySink::new(beneath.clone(), fault))
            .keep(keep)
            .optional();
        site.backup().await;
    }
    assert_eq!(good.names(), ["backup.2026-08-03.tar.xz"]);
    assert_eq!(
        lame.names(),
        ["backup.2026-08-03.tar.xz"],
        "on the second day nothing was verified there, so nothing was pruned there"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_sink_left_cancels_the_run_and_leaves_nothing() {
    let beneath: Arc<dyn Sink> = Arc::new(MemorySink::default());
    let site = Site::default()
        .source("it", FakeSource::small(8, 60))
        .sink("only", FaultySink::new(beneath.clone(), Fault::Write(1)));
    let report = site.backup().await;
    assert_eq!(
        report.causes.first().map(|c| c.class),
        Some(Class::Failed),
        "{:?}",
        report.causes
    );
    assert!(
        beneath
            .list(&site.context(), &Default::default())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_block_is_taken_from_the_next_sink_and_named() {
    let (one, two) = (MemorySink::default(), MemorySink::default());
    let fake = FakeSource::new(Store::from([(
        ("g".into(), "u".into()),
        [("g/u/m".to_owned(), Bytes::from(data::noise(1, 3 << 20)))].into(),
    )]));
    let site = Site::default()
        .source("it", fake.clone())
        .sink("one", one.clone())
        .sink("two", two.clone());
    assert!(site.backup().await.complete);
    let mut flipped = site.clone();
    let beneath: Arc<dyn Sink> = Arc::new(one);
    flipped.sinks[0] = SinkInstance {
        name: "one".into(),
        plugin: "memory".into(),
        policy: SinkPolicy::default(),
        sink: Arc::new(FaultySink::new(beneath, Fault::Flip(100_000))),
    };
    let before = fake.store.lock().unwrap().clone();
    fake.store.lock().unwrap().clear();
    let report = flipped.restore(Request::default()).await.unwrap();
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    assert_eq!(report.healed.len(), 1, "{:?}", report.healed);
    assert_eq!(*fake.store.lock().unwrap(), before);

    // With no other sink: exit 7, nothing written, the units and the command that restores the rest.
    flipped.sinks.truncate(1);
    fake.store.lock().unwrap().clear();
    let report = flipped.restore(Request::default()).await.unwrap();
    assert_eq!(report.causes[0].class, Class::Corrupt);
    assert!(
        report.causes[0]
            .hint
            .as_ref()
            .unwrap()
            .contains("--exclude 'it/g/u'"),
        "{:?}",
        report.causes[0].hint
    );
    assert!(fake.store.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_without_ranges_restores_in_few_passes() {
    let memory = MemorySink::default().without_ranges();
    let fake = FakeSource::small(5, 40);
    let site = Site::default()
        .source("it", fake.clone())
        .sink("memory", memory.clone());
    assert!(site.backup().await.complete);
    let before = fake.store.lock().unwrap().clone();
    fake.store.lock().unwrap().clear();
    memory.reads.store(0, Ordering::Relaxed);
    let report = site.restore(Request::default()).await.unwrap();
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    assert_eq!(*fake.store.lock().unwrap(), before);
    let passes = memory.reads.load(Ordering::Relaxed);
    assert!(passes <= 8, "{passes} passes");
}

#[tokio::test(flavor = "multi_thread")]
async fn restoring_two_percent_reads_at_most_five() {
    let folder = tempfile::tempdir().unwrap();
    let mib = long(360, 1024);
    for n in 0..50_u64 {
        let path = folder.path().join(format!("g{n:02}/u"));
        std::fs::create_dir_all(&path).unwrap();
        for f in 0..(mib * 1024 / 50 / 200) as u64 {
            std::fs::write(
                path.join(format!("f{f}")),
                data::noise(n * 1000 + f, 200 << 10),
            )
            .unwrap();
        }
    }
    let memory = MemorySink::default();
    let site = Site::default()
        .source("it", files(folder.path()))
        .sink("memory", memory.clone());
    assert!(site.backup().await.complete);
    let all = memory.archive(&memory.names()[0]).unwrap().len() as u64;
    memory.read_bytes.store(0, Ordering::Relaxed);
    let request = Request {
        selection: Selection::parse(&["it/g17".into()], &[]).unwrap(),
        into: vec!["it=/nonexistent".into()],
        ..Request::default()
    };
    let target = tempfile::tempdir().unwrap();
    let request = Request {
        into: vec![format!("it={}", target.path().display())],
        ..request
    };
    let report = site.restore(request).await.unwrap();
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    let read = memory.read_bytes.load(Ordering::Relaxed);
    println!(
        "read {read} of {all} bytes, {:.2} %",
        read as f64 * 100.0 / all as f64
    );
    assert!(read * 20 <= all, "read {read} of {all} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_race_for_a_days_name_and_both_archives_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    let runs = (0..4).map(|n| {
        let path = folder.path().to_path_buf();
        tokio::spawn(async move {
            Site::default()
                .at("2026-08-22T03:15:00Z")
                .source("it", FakeSource::small(3, 5 + n))
                .sink("local", Local::new(path))
                .backup()
                .await
        })
    });
    for run in futures::future::join_all(runs).await {
        let report = run.unwrap();
        assert!(
            report.complete && report.causes.is_empty(),
            "{:?}",
            report.causes
        );
    }
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| !n.starts_with(".bk"))
        .collect();
    let archives: Vec<_> = names.iter().filter(|n| n.ends_with(".tar.xz")).collect();
    assert_eq!(archives.len(), 4, "{names:?}");
    for name in archives {
        let bytes = Bytes::from(std::fs::read(folder.path().join(name)).unwrap());
        let sums = std::fs::read_to_string(folder.path().join(format!("{name}.sha256"))).unwrap();
        let verified = verify(Arc::new(bytes), Some(&sums), Level::Decoded)
            .await
            .unwrap();
        assert!(
            verified.warnings.is_empty() && sums.contains(&verified.id),
            "{name}: {:?}",
            verified.warnings
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sites_in_one_folder_do_not_touch_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let mut sites = Vec::new();
    for name in ["school", "shop"] {
        let mut site = Site::default()
            .source(
                "it",
                FakeSource {
                    identity: name.into(),
                    ..FakeSource::small(2, 3)
                },
            )
            .sink("local", Local::new(folder.path().into()));
        site = site.keep(Keep {
            last: 1.into(),
            ..Keep::default()
        });
        site.archive.site = name.into();
        sites.push(site);
    }
    for day in 1..4 {
        for site in &sites {
            let site = site.clone().at(&format!("2026-08-0{day}T00:00:00Z"));
            let report = site.backup().await;
            assert!(
                report.complete && report.causes.is_empty(),
                "{:?}",
                report.causes
            );
        }
    }
    for site in &sites {
        let catalogue = bk_core::catalog::Catalogue::read(&site.context(), &site.sinks).await;
        let archives: Vec<_> = catalogue.archives().map(|(_, s)| s.site.clone()).collect();
        // The first archive went on the second day, the second on the third: one each is left.
        assert_eq!(archives, std::slice::from_ref(&site.archive.site));
        let report = site.restore(Request::default()).await.unwrap();
        assert!(report.causes.is_empty());
    }
}

/// A body whose connection dies when it is not read for 20 seconds.
struct Impatient {
    left: usize,
    last: std::time::Instant,
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.last.elapsed() > Duration::from_secs(20) {
            return Poll::Ready(Err(std::io::Error::new(
                std::io::ErrorKind::ConnectionReset,
                "not read for 20 s",
            )));
        }
        self.last = std::time::Instant::now();
        let len = self.left.min(buffer.remaining()).min(64 << 10);
        buffer.put_slice(&vec![b'x'; len]);
        self.left -= len;
        Poll::Ready(Ok(()))
    }
}

/// A source like a database: one connection, many bodies of 15 MiB through it.
struct Connection {
    torn: bool,
    stream: bool,
}

struct ConnectionSnapshot {
    torn: bool,
    stream: bool,
    at: jiff::Timestamp,
}

#[async_trait]
impl Source for Connection {
    async fn check(&self, _cx: &Context) -> Result<Health> {
        Ok(Health {
            identity: "connection".into(),
            describe: "a connection".into(),
            warnings: Vec::new(),
        })
    }

    async fn snapshot(&self, cx: &Context, _how: &SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(ConnectionSnapshot {
            torn: self.torn,
            stream: self.stream,
            at: cx.clock.now(),
        }))
    }

    async fn restore(
        &self,
        _cx: &Context,
        mut input: Input,
        _how: &RestoreOptions,
    ) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut came = std::collections::HashMap::<_, u64>::new();
        for stage in Stage::ALL {
            let members = input.stage(stage).await?;
            while let Some(member) = members.next().await? {
                *came.entry((member.unit.1.clone(), stage)).or_default() += 1;
                let mut bytes = 0;
                match member.body {
                    bk_core::source::Body::Whole(body) => bytes += body.len() as u64,
                    bk_core::source::Body::Stream(mut stream) => {
                        while let Some(chunk) = stream.next().await? {
                            bytes += chunk.len() as u64;
                        }
                    }
                }
                tally
                    .warnings
                    .push(format!("{} {} {bytes}", member.unit.1, member.path));
            }
        }
        // Rows are taken on trust, members as they came: a body that was stored in parts is one.
        tally.units = input
            .units(Stage::Data)
            .chain(input.units(Stage::Large))
            .map(|unit| bk_core::source::UnitCount {
                members: came
                    .get(&(unit.name.clone(), unit.stage))
                    .copied()
                    .unwrap_or_default(),
                ..unit
            })
            .collect();
        Ok(tally)
    }
}

#[async_trait]
impl Snapshot for ConnectionSnapshot {
    fn at(&self) -> PointInTime {
        PointInTime {
            instant: self.at,
            consistency: "snapshot".into(),
            position: None,
        }
    }

    fn large(&self) -> bool {
        self.torn || self.stream
    }

    async fn write(&mut self, _cx: &Context, stage: Stage, out: &Output) -> Result<()> {
        match stage {
            Stage::Data => {
                out.expect("g", "rows").await?;
                let mut lane = out.lane("rows").await?;
                lane.unit("g", "rows");
                let mut connection = Impatient {
                    left: 4 * (15 << 20),
                    last: std::time::Instant::now(),
                };
                for n in 0..4 {
                    lane.sized(
                        MemberPath::new(format!("g/rows/{n}"))?,
                        Meta::default(),
                        15 << 20,
                        &mut connection,
                    )
                    .await?;
                }
                lane.close().await?;
                out.end("g", "rows", Counted { rows: 4 }).await
            }
            Stage::Large if self.torn => {
                out.expect("g", "log").await?;
                let mut lane = out.lane("log").await?;
                lane.unit("g", "log");
                let mut short = std::io::Cursor::new(vec![7; 19 << 20]);
                let error = lane
                    .sized(
                        MemberPath::new("g/log/body")?,
                        Meta::default(),
                        40 << 20,
                        &mut short,
                    )
                    .await
                    .unwrap_err();
                assert!(error.what.contains("broke off"), "{error}");
                // A unit after the torn one, in the same lane.
                out.end("g", "log", Counted { rows: 1 }).await?;
                out.expect("g", "next").await?;
                lane.unit("g", "next");
                lane.member(
                    MemberPath::new("g/next/body")?,
                    Meta::default(),
                    Bytes::from_static(b"after"),
                )
                .await?;
                lane.close().await?;
                out.end("g", "next", Counted { rows: 1 }).await
            }
            Stage::Large if self.stream => {
                out.expect("g", "dump").await?;
                let mut lane = out.lane("dump").await?;
                lane.unit("g", "dump");
                let mut body = std::io::Cursor::new(data::text(5, (18 << 20) + 7));
                assert_eq!(
                    lane.stream(MemberPath::new("g/dump/body")?, Meta::default(), &mut body)
                        .await?,
                    (18 << 20) + 7
                );
                lane.close().await?;
                out.end("g", "dump", Counted { rows: 1 }).await
            }
            _ => Ok(()),
        }
    }

    async fn close(self: Box<Self>, _cx: &Context) -> Result<Facts> {
        Ok(Facts {
            layout: 1,
            ..Facts::default()
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_beside_a_source_whose_connection_dies_unread_leaves_both_whole() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("g/u")).unwrap();
    let large = std::fs::File::create(folder.path().join("g/u/large")).unwrap();
    large.set_len(long(300, 2048) as u64 * (1 << 20)).unwrap();
    let memory = MemorySink::default();
    let site = Site::default()
        .source("files", files(folder.path()))
        .source(
            "rows",
            Connection {
                torn: false,
                stream: false,
            },
        )
        .sink("memory", memory.clone())
        .minimal();
    let report = site.backup().await;
    assert!(
        report.complete && report.causes.is_empty(),
        "{:?}",
        report.causes
    );
    is_sound(&memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_body_makes_the_archive_partial_and_is_never_restored() {
    let memory = MemorySink::default();
    let site = Site::default()
        .source(
            "it",
            Connection {
                torn: true,
                stream: false,
            },
        )
        .sink("memory", memory.clone());
    let report = site.backup().await;
    assert!(!report.complete);
    assert_eq!(
        report.causes.iter().map(|c| c.class).min(),
        Some(Class::Partial)
    );
    assert!(
        report.sources[0]
            .failed
            .iter()
            .any(|f| f.name == "log" && f.why.contains("broke off after 19922944 bytes")),
        "{:?}",
        report.sources[0].failed
    );
    let name = memory.names()[0].clone();
    assert_eq!(name, format!("{}.partial", report.name));
    let archive = memory.archive(&name).unwrap();
    verify(Arc::new(archive.clone()), None, Level::Decoded)
        .await
        .unwrap();

    // Plain tar still reads all of it.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.tar.xz"), &archive).unwrap();
    let tar = std::process::Command::new("tar")
        .args(["-xJf", "a.tar.xz"])
        .current_dir(folder.path())
        .status()
        .unwrap();
    assert!(tar.success());
    assert_eq!(
        std::fs::metadata(folder.path().join("it/g/log/body"))
            .unwrap()
            .len(),
        40 << 20
    );
    assert_eq!(
        std::fs::read(folder.path().join("it/g/next/body")).unwrap(),
        b"after"
    );

    let refused = site.restore(Request::default()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    let wish = bk_core::catalog::Wish {
        partial_too: true,
        ..Default::default()
    };
    let report = site
        .restore(Request {
            wish,
            ..Request::default()
        })
        .await
        .unwrap();
    assert!(
        report.warnings.iter().all(|w| !w.starts_with("log")),
        "the torn body was restored: {:?}",
        report.warnings
    );
    assert!(
        report.warnings.iter().any(|w| w == "next g/next/body 5"),
        "{:?}",
        report.warnings
    );
    assert!(
        report.skipped.iter().any(|(what, _)| what == "it/g/log"),
        "{:?}",
        report.skipped
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_unknown_length_is_joined_again() {
    let site = Site::default()
        .source(
            "it",
            Connection {
                torn: false,
                stream: true,
            },
        )
        .sink("memory", MemorySink::default());
    assert!(site.backup().await.complete);
    let report = site.restore(Request::default()).await.unwrap();
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    assert!(
        report
            .warnings
            .contains(&format!("dump g/dump/body {}", (18 << 20) + 7)),
        "{:?}",
        report.warnings
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_at_every_step_of_publish_leaves_older_archives_alone_and_nothing_half() {
    for step in Step::ALL {
        let folder = tempfile::tempdir().unwrap();
        let before = Site::default()
            .at("2026-08-21T00:00:00Z")
            .source("it", FakeSource::small(2, 9))
            .sink("local", Local::new(folder.path().into()));
        assert!(before.backup().await.complete);
        let old = std::fs::read(folder.path().join("backup.2026-08-21.tar.xz")).unwrap();
        let failing = Local::new(folder.path().into()).with_hook(Arc::new(move |at| {
            if at == step {
                Err(std::io::Error::other("injected"))
            } else {
                Ok(())
            }
        }));
        let report = Site::default()
            .at("2026-08-22T00:00:00Z")
            .source("it", FakeSource::small(2, 9))
            .sink("local", failing)
            .backup()
            .await;
        assert!(
            report.causes.iter().any(|c| c.class == Class::Failed),
            "{step:?}: {:?}",
            report.causes
        );
        check_folder(folder.path(), &old, &format!("error at {step:?}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_every_step_of_publish_leaves_nothing_half_and_needs_no_help() {
    for step in Step::ALL {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::default()
            .at("2026-08-21T00:00:00Z")
            .source("it", FakeSource::small(2, 9))
            .sink("local", Local::new(folder.path().into()));
        assert!(site.backup().await.complete);
        let old = std::fs::read(folder.path().join("backup.2026-08-21.tar.xz")).unwrap();
        for nth in if step == Step::Write {
            vec!["1", "3"]
        } else {
            vec!["1"]
        } {
            let killed = std::process::Command::new(binary::built("bk-lab"))
                .args([
                    "publish",
                    folder.path().to_str().unwrap(),
                    &format!("{step:?}"),
                    nth,
                ])
                .output()
                .unwrap();
            assert!(
                !killed.status.success(),
                "{step:?} {nth}: it was not killed"
            );
            check_folder(folder.path(), &old, &format!("kill at {step:?}")).await;
        }
        let report = site.clone().at("2026-08-23T00:00:00Z").backup().await;
        assert!(
            report.complete && report.causes.is_empty(),
            "{step:?}: {:?}",
            report.causes
        );
        let parts: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .filter(|n| n.to_string_lossy().starts_with(".bk-part"))
            .collect();
        assert!(parts.is_empty(), "{step:?}: the next run left {parts:?}");
    }
}

/// Everything with an archive's name verifies, and the old one is what it was.
async fn check_folder(folder: &Path, old: &[u8], after: &str) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .ends_with(".tar.xz")
        {
            let bytes = Bytes::from(std::fs::read(&path).unwrap());
            verify(Arc::new(bytes), None, Level::Decoded)
                .await
                .unwrap_or_else(|e| panic!("after {after} `{}` is there and {e}", path.display()));
        }
    }
    assert!(
        std::fs::read(folder.join("backup.2026-08-21.tar.xz")).unwrap() == old,
        "after {after} the older archive has changed"
    );
}

#[test]
fn a_quarter_of_a_million_blocks_and_a_million_units_fit_into_little_memory() {
    // What 1 TiB makes is 262,144 blocks; a default run does an eighth of both.
    for (what, n) in [
        ("blocks", long(32_768, 262_144)),
        ("units", long(125_000, 1_000_000)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let ran = std::process::Command::new(binary::built("bk-lab"))
                .args([
                    "scale",
                    what,
                    &n.to_string(),
                    folder.path().to_str().unwrap(),
                ])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&ran.stdout).into_owned();
            assert!(
                ran.status.success(),
                "{said}\n{}",
                String::from_utf8_lossy(&ran.stderr)
            );
            println!("{n} {what}: {}", said.trim());
            let peak: u64 = said
                .split("peak ")
                .nth(1)
                .unwrap()
                .split(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert!(peak <= 150, "{n} {what}: peak {peak} MiB");
            if let Some(reads) = said.split(" units with ").nth(1) {
                let reads: u64 = reads.split(' ').next().unwrap().parse().unwrap();
                assert!(reads <= 3, "{reads} reads before the first block");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_ends_soon_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::default()
        .source(
            "it",
            FakeSource {
                delays: Some(1),
                ..FakeSource::new(thousand_units())
            },
        )
        .sink("local", Local::new(folder.path().into()));
    site.cancel = tokio_util::sync::CancellationToken::new();
    let cancel = site.cancel.clone();
    let stopper = tokio::spawn(async move {
        tokio::task::yield_now().await;
        cancel.cancel();
    });
    let report = tokio::time::timeout(Duration::from_secs(20), site.backup())
        .await
        .expect("a cancelled run hangs");
    stopper.await.unwrap();
    assert_eq!(
        report.causes.first().map(|c| c.class),
        Some(Class::Stopped),
        "{:?}",
        report.causes
    );
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .filter(|n| n != ".bk")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_over_the_limit_fails_its_unit_by_name_and_the_rest_is_whole() {
    struct Giant;
    #[async_trait]
    impl Source for Giant {
        async fn check(&self, _cx: &Context) -> Result<Health> {
            Ok(Health::default())
        }
        async fn snapshot(
            &self,
            cx: &Context,
            _how: &SnapshotOptions,
        ) -> Result<Box<dyn Snapshot>> {
            Ok(Box::new(GiantSnapshot(cx.clock.now())))
        }
        async fn restore(
            &self,
            _cx: &Context,
            _input: Input,
            _how: &RestoreOptions,
        ) -> Result<Tally> {
            Err(Error::new(ErrorKind::Unsupported, "not here"))
        }
    }
    struct GiantSnapshot(jiff::Timestamp);
    #[async_trait]
    impl Snapshot for GiantSnapshot {
        fn at(&self) -> PointInTime {
            PointInTime {
                instant: self.0,
                consistency: "none".into(),
                position: None,
            }
        }
        async fn write(&mut self, _cx: &Context, stage: Stage, out: &Output) -> Result<()> {
            if stage != Stage::Data {
                return Ok(());
            }
            let mut lane = out.lane("rows").await?;
            for (name, mib) in [("small", 1_usize), ("giant", 40), ("monster", 70)] {
                out.expect("g", name).await?;
                lane.unit("g", name);
                match out.reserve((mib as u64) << 20).await {
                    Ok(_room) => {
                        lane.member(
                            MemberPath::new(format!("g/{name}/row"))?,
                            Meta::default(),
                            vec![1_u8; mib << 20].into(),
                        )
                        .await?
                    }
                    Err(error) => out.fail("g", name, &error).await?,
                }
                out.end("g", name, Counted { rows: 1 }).await?;
            }
            lane.close().await
        }
        async fn close(self: Box<Self>, _cx: &Context) -> Result<Facts> {
            Ok(Facts::default())
        }
    }
    let memory = MemorySink::default();
    let report = Site::default()
        .source("it", Giant)
        .sink("memory", memory.clone())
        .backup()
        .await;
    let failed: Vec<_> = report.sources[0]
        .failed
        .iter()
        .map(|f| f.name.as_str())
        .collect();
    assert_eq!(failed, ["monster"], "{:?}", report.sources[0].failed);
    assert!(
        report.sources[0].failed[0]
            .why
            .contains("archive.max_record")
    );
    is_sound(&memory).await;
}
