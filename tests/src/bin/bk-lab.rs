//! The tests' own tool: corpora, digests, and runs of the engine that need a process of their own.

use async_trait::async_trait;
use bk_core::archive::tail::{Line, Opened};
use bk_core::config::SourceInstance;
use bk_core::context::Context;
use bk_core::error::Result;
use bk_core::name::{ArchiveName, MemberPath};
use bk_core::restore::Request;
use bk_core::selector::Selection;
use bk_core::settings::Settings;
use bk_core::sink::{
    Abilities, ByteStream, Filter, Note, NoteName, NoteSeen, Seal, Sink, SizeHint, Stored, Upload,
    Was,
};
use bk_core::source::{
    Body, Counted, Facts, Health, Input, Meta, Output, PointInTime, RestoreOptions, Snapshot,
    SnapshotOptions, Source, Stage, Tally, UnitCount,
};
use bk_sinks::local::{Local, Step};
use bk_tests::data;
use bk_tests::engine::Site;
use bk_tests::fakes::FakeSource;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const USAGE: &str = "bk-lab digest FOLDER | corpus FOLDER MIB | tree FOLDER FILES | files FOLDER COUNT MIB | scale blocks|units N FOLDER | publish FOLDER STEP N | read-mysql SOCKET | read-mongo URI | seed-mongo URI MIB | drain-mongo URI | cat-mongo URI | insert-mongo URI FOLDER | empties-mongo URI COUNT | couch DOCUMENTS ATTACHMENTS | noise MIB | discard | put ENDPOINT BUCKET MIB | ssh-put TABLE FILE | ssh-get TABLE | link PORT MILLISECONDS | plugin MIB | plugin-calls COUNT";

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["digest", folder] => print!("{}", data::digest_text(Path::new(folder))),
        ["corpus", folder, mib] => corpus(Path::new(folder), mib.parse().expect(USAGE)),
        ["tree", folder, files] => tree(Path::new(folder), files.parse().expect(USAGE)),
        ["files", folder, count, mib] => files(
            Path::new(folder),
            count.parse().expect(USAGE),
            mib.parse().expect(USAGE),
        ),
        ["scale", what, n, folder] => scale(what, n.parse().expect(USAGE), Path::new(folder)).await,
        ["publish", folder, step, n] => {
            publish(Path::new(folder), step, n.parse().expect(USAGE)).await
        }
        ["plugin", mib] => bk_tests::plugin_lab::throughput(mib.parse().expect(USAGE)).await,
        ["plugin-calls", count] => bk_tests::plugin_lab::calls(count.parse().expect(USAGE)).await,
        ["read-mysql", socket] => read_mysql(socket).await,
        ["read-mongo", uri] => read_mongo(uri).await,
        ["seed-mongo", uri, mib] => bk_tests::mongo_lab::seed(uri, mib.parse().expect(USAGE)).await,
        ["drain-mongo", uri] => bk_tests::mongo_lab::drain(uri, false).await,
        ["cat-mongo", uri] => bk_tests::mongo_lab::drain(uri, true).await,
        ["insert-mongo", uri, folder] => bk_tests::mongo_lab::insert(uri, Path::new(folder)).await,
        ["empties-mongo", uri, count] => {
            bk_tests::mongo_lab::empties(uri, count.parse().expect(USAGE)).await;
        }
        ["couch", documents, attachments] => {
            couch(
                documents.parse().expect(USAGE),
                attachments.parse().expect(USAGE),
            )
            .await;
        }
        ["noise", mib] => noise(mib.parse().expect(USAGE)),
        ["discard"] => discard().await,
        ["put", endpoint, bucket, mib] => put(endpoint, bucket, mib.parse().expect(USAGE)).await,
        ["ssh-put", table, file] => ssh_put(table, Path::new(file)).await,
        ["ssh-get", table] => ssh_get(table).await,
        ["link", port, milliseconds] => {
            link(
                port.parse().expect(USAGE),
                milliseconds.parse().expect(USAGE),
            )
            .await;
        }
        _ => panic!("{USAGE}"),
    }
}

/// The simulator of CouchDB with a database `bench`, until standard input ends. Says its port.
async fn couch(documents: usize, attachments: usize) {
    let fake = bk_tests::couch_fake::Fake::start(None).await;
    {
        let mut site = fake.site();
        let mut rng = SmallRng::seed_from_u64(31);
        site.create("bench", 2, 1, false);
        for n in 0..documents {
            let text: String = (0..60)
                .map(|_| char::from(rng.random_range(b'a'..=b'z')))
                .collect();
            site.put(
                "bench",
                &format!("{{\"_id\":\"document-{n:08}\",\"n\":{n},\"text\":\"{text}\",\"tags\":[\"a\",\"b\"]}}"),
            );
        }
        for n in 0..attachments {
            let mut bytes = vec![0; 10_000];
            rng.fill(&mut bytes[..]);
            site.attach(
                "bench",
                &format!("document-{n:08}"),
                "file",
                "image/png",
                bytes,
            );
        }
    }
    println!("{}", fake.port);
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    ended.await.expect("the reader of standard input").ok();
}

/// A way to a port that takes so long there and back, until standard input ends. Says its port.
async fn link(port: u16, milliseconds: u64) {
    let one_way = std::time::Duration::from_micros(milliseconds * 500);
    let link = bk_tests::sshd::Link::to(port, one_way, None).await;
    println!("{}", link.port);
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    ended.await.expect("the reader of standard input").ok();
}

/// A sink by a table in JSON, logged in.
async fn ssh(table: &str) -> (Context, bk_sinks::ssh::Ssh) {
    let sink = bk_tests::sshd::sink(serde_json::from_str(table).expect(USAGE)).unwrap();
    let cx = Site::default().context();
    sink.check(&cx).await.unwrap();
    (cx, sink)
}

/// A file through the sink `ssh`, published; says the seconds without the login.
async fn ssh_put(table: &str, file: &Path) {
    use std::io::Read;
    let (cx, sink) = ssh(table).await;
    let mut file = std::fs::File::open(file).unwrap();
    let bytes = file.metadata().unwrap().len();
    let began = std::time::Instant::now();
    let name = bk_core::backup::archive_name(
        &bk_core::config::ArchiveSettings::default(),
        "2026-08-22T03:15:00Z".parse().unwrap(),
        &"a".repeat(32),
    );
    let mut upload = sink.create(&cx, &name, SizeHint::default()).await.unwrap();
    let mut chunk = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut chunk).unwrap();
        if read == 0 {
            break;
        }
        upload
            .write(Bytes::copy_from_slice(&chunk[..read]))
            .await
            .unwrap();
    }
    let seal = Seal {
        sha256: "0".repeat(64),
        bytes,
        id: "a".repeat(32),
        site: "main".into(),
        complete: true,
    };
    upload.publish(&name, &seal).await.unwrap();
    println!("{:.3}", began.elapsed().as_secs_f64());
}

/// The only archive of a sink `ssh`, read and dropped; says the seconds without the login.
async fn ssh_get(table: &str) {
    use futures::StreamExt;
    let (cx, sink) = ssh(table).await;
    let listed = sink.list(&cx, &Filter::default()).await.unwrap();
    let began = std::time::Instant::now();
    let mut stream = sink
        .read(&cx, &listed[0], 0..listed[0].bytes)
        .await
        .unwrap();
    let mut bytes = 0;
    while let Some(chunk) = stream.next().await {
        bytes += chunk.unwrap().len() as u64;
    }
    assert_eq!(bytes, listed[0].bytes);
    println!("{:.3}", began.elapsed().as_secs_f64());
}

/// The stream on standard output.
fn noise(mib: u64) {
    let mut out = std::io::stdout().lock();
    for chunk in bk_tests::generated::chunks(mib) {
        out.write_all(&chunk).unwrap();
    }
}

/// A store that keeps only sums; says its port.
async fn discard() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    bk_tests::discard::serve(listener).await;
}

/// Sends the stream through the sink as a backup does: as stored blocks of an archive, published and proven.
async fn put(endpoint: &str, bucket: &str, mib: u64) {
    let sink = bk_tests::object_store::sink(serde_json::json!({
        "bucket": bucket, "endpoint": endpoint, "access_key": "test", "secret_key": "testtest", "checksum": "crc64nvme"
    }));
    let mut site = Site::default()
        .source("large", bk_tests::generated::Generated::new(mib))
        .sink("s3", sink);
    site.archive.compress = false;
    let report = site.backup().await;
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    println!(
        "{} bytes, peak {} MiB",
        report.bytes,
        report.peak_memory_bytes >> 20
    );
}

/// A server read as a backup reads it, and nothing else: not compressed, not stored.
async fn read_mysql(socket: &str) {
    let table = serde_json::json!({ "socket": socket, "user": "root" });
    let settings = Settings {
        instance: "mysql".into(),
        folder: ".".into(),
        table: table.as_object().unwrap().clone(),
    };
    read(
        "mysql",
        (bk_sources::mysql::plugin().build)(settings).unwrap(),
    )
    .await;
}

async fn read_mongo(uri: &str) {
    let more = serde_json::json!({ "databases": ["school"], "consistency": "none" });
    read("mongodb", bk_tests::mongo::source(uri, more)).await;
}

async fn read(name: &str, source: Arc<dyn Source>) {
    let mut site = Site::default().sink("null", NullSink);
    site.archive.compress = false;
    site.sources.push(SourceInstance {
        name: name.into(),
        plugin: name.into(),
        after: Vec::new(),
        hooks: bk_core::hooks::Hooks::default(),
        source,
    });
    let report = site.backup().await;
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    println!(
        "{} rows, {} bytes",
        report.sources[0].totals.rows, report.raw_bytes
    );
}

/// Takes everything and keeps nothing.
struct NullSink;

#[async_trait]
impl Sink for NullSink {
    fn abilities(&self) -> Abilities {
        Abilities {
            proof: true,
            ..Abilities::default()
        }
    }

    async fn check(&self, _cx: &Context) -> Result<Health> {
        Ok(Health::default())
    }

    async fn create(
        &self,
        _cx: &Context,
        _name: &ArchiveName,
        _hint: SizeHint,
    ) -> Result<Box<dyn Upload>> {
        Ok(Box::new(Self))
    }

    async fn list(&self, _cx: &Context, _filter: &Filter) -> Result<Vec<Stored>> {
        Ok(Vec::new())
    }

    async fn read(&self, _cx: &Context, _which: &Stored, _range: Range<u64>) -> Result<ByteStream> {
        Err(bk_core::error::not_found("nothing was kept"))
    }

    async fn sums(&self, _cx: &Context, _which: &Stored) -> Result<Option<String>> {
        Ok(None)
    }

    async fn delete(&self, _cx: &Context, _which: &Stored) -> Result<()> {
        Ok(())
    }

    async fn note(&self, _cx: &Context, _name: &NoteName) -> Result<Option<Note>> {
        Ok(None)
    }

    async fn set_note(&self, _cx: &Context, _: &NoteName, _: Bytes, _: Was) -> Result<()> {
        Ok(())
    }

    async fn notes(&self, _cx: &Context, _site: &str, _prefix: &str) -> Result<Vec<NoteSeen>> {
        Ok(Vec::new())
    }

    async fn remove_note(&self, _cx: &Context, _name: &NoteName) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Upload for NullSink {
    async fn write(&mut self, _chunk: Bytes) -> Result<()> {
        Ok(())
    }

    async fn publish(self: Box<Self>, name: &ArchiveName, seal: &Seal) -> Result<Stored> {
        Ok(Stored {
            name: name.plain(),
            version: String::new(),
            bytes: seal.bytes,
            modified: name.start,
            etag: seal.sha256.clone(),
            remarks: Vec::new(),
        })
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// SQL-like text, BSON-like records, 12 % that does not shrink: in files of 8 MiB, a folder for each kind.
fn corpus(folder: &Path, mib: usize) {
    let (kinds, each) = ([("sql", 56), ("bson", 32), ("media", 12)], 8 << 20);
    for (kind, share) in kinds {
        let dir = folder.join(kind).join("data");
        std::fs::create_dir_all(&dir).unwrap();
        let total = mib * (1 << 20) / 100 * share;
        for (n, at) in (0..total).step_by(each).enumerate() {
            let len = each.min(total - at);
            let body = match kind {
                "sql" => sql(n as u64, len),
                "bson" => bson(n as u64, len),
                _ => data::noise(n as u64, len),
            };
            std::fs::write(dir.join(format!("{n:05}")), body).unwrap();
        }
    }
}

fn sql(seed: u64, len: usize) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut out = Vec::with_capacity(len + 400);
    while out.len() < len {
        out.extend_from_slice(b"INSERT INTO `student_courseenrollment` VALUES ");
        for _ in 0..50 {
            let (id, user, course) = (
                random.random_range(1..9_000_000),
                random.random_range(1..400_000),
                random.random_range(1..300),
            );
            let state: String = (0..random.random_range(1..8))
                .map(|_| {
                    format!(
                        "\\\"part_{}\\\": {}, ",
                        random.random_range(0..40),
                        random.random_range(0..100)
                    )
                })
                .collect();
            write!(out, "({id},{user},'course-v1:Org+C{course}+2026','2026-0{}-1{} 1{}:2{}:3{}',1,'audit','{{{state}\\\"token\\\": \\\"{:016x}\\\"}}'),", random.random_range(1..9), random.random_range(0..9), random.random_range(0..9), random.random_range(0..9), random.random_range(0..9), random.random::<u64>()).unwrap();
        }
        out.extend_from_slice(b";\n");
    }
    out.truncate(len);
    out
}

fn bson(seed: u64, len: usize) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(seed ^ 0xB50);
    let words = data::text(seed, 20_000);
    let mut out = Vec::with_capacity(len + 2000);
    while out.len() < len {
        out.extend_from_slice(&(random.random_range(400..1500) as u32).to_le_bytes());
        out.extend_from_slice(b"\x07_id\0");
        out.extend_from_slice(&random.random::<[u8; 12]>());
        for key in [
            "block_type",
            "definition",
            "edit_info",
            "fields",
            "display_name",
        ] {
            out.push(2);
            out.extend_from_slice(key.as_bytes());
            let (at, n) = (
                random.random_range(0..words.len() - 200),
                random.random_range(10..200),
            );
            out.extend_from_slice(&[0, n as u8, 0, 0, 0]);
            out.extend_from_slice(&words[at..at + n]);
            out.push(0);
        }
        out.push(0);
    }
    out.truncate(len);
    out
}

/// So many small files, 200 in a folder, 50 folders in a group.
fn tree(folder: &Path, files: usize) {
    let words = data::text(1, 1 << 20);
    let mut random = SmallRng::seed_from_u64(9);
    for n in 0..files {
        let dir = folder.join(format!("g{:03}/u{:02}", n / 10_000, n / 200 % 50));
        if n % 200 == 0 {
            std::fs::create_dir_all(&dir).unwrap();
        }
        let len = random.random_range(100..8000);
        let at = random.random_range(0..words.len() - len);
        std::fs::write(dir.join(format!("file-{n:06}.txt")), &words[at..at + len]).unwrap();
    }
}

fn files(folder: &Path, count: usize, mib: usize) {
    let words = data::text(2, mib << 20);
    for n in 0..count {
        let dir = folder.join(format!("g/u{:02}", n % 20));
        std::fs::create_dir_all(&dir).unwrap();
        let mut file = std::fs::File::create(dir.join(format!("{n:05}"))).unwrap();
        file.write_all(format!("{n}").as_bytes()).unwrap();
        file.write_all(&words[8..]).unwrap();
    }
}

/// A source of very many blocks or units, each with a little body.
struct Many {
    blocks: u64,
    units: u64,
    restored: Arc<AtomicU64>,
}

struct ManySnapshot {
    blocks: u64,
    units: u64,
    at: jiff::Timestamp,
}

#[async_trait::async_trait]
impl Source for Many {
    async fn check(&self, _cx: &bk_core::Context) -> Result<Health> {
        Ok(Health {
            identity: "many".into(),
            describe: "many".into(),
            warnings: Vec::new(),
        })
    }

    async fn snapshot(
        &self,
        cx: &bk_core::Context,
        _how: &SnapshotOptions,
    ) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(ManySnapshot {
            blocks: self.blocks,
            units: self.units,
            at: cx.clock.now(),
        }))
    }

    async fn restore(
        &self,
        _cx: &bk_core::Context,
        mut input: Input,
        _how: &RestoreOptions,
    ) -> Result<Tally> {
        let mut counts = std::collections::BTreeMap::new();
        for stage in Stage::ALL {
            let members = input.stage(stage).await?;
            while let Some(member) = members.next().await? {
                let Body::Whole(body) = member.body else {
                    panic!("no large bodies here")
                };
                self.restored.fetch_add(1, Ordering::Relaxed);
                let count: &mut (u64, u64) = counts.entry((member.unit, stage)).or_default();
                *count = (count.0 + 1, count.1 + body.len() as u64);
            }
        }
        let units = counts
            .into_iter()
            .map(|(((group, name), stage), (members, bytes))| UnitCount {
                group,
                name,
                stage,
                members,
                rows: members,
                bytes,
            });
        Ok(Tally {
            units: units.collect(),
            ..Tally::default()
        })
    }
}

#[async_trait::async_trait]
impl Snapshot for ManySnapshot {
    fn at(&self) -> PointInTime {
        PointInTime {
            instant: self.at,
            consistency: "none".into(),
            position: None,
        }
    }

    async fn write(&mut self, _cx: &bk_core::Context, stage: Stage, out: &Output) -> Result<()> {
        if stage != Stage::Data {
            return Ok(());
        }
        // A lane's end closes its block: one tiny lane for each block.
        let per_unit = self.blocks.div_ceil(self.units);
        let per_lane = if self.blocks >= self.units {
            1
        } else {
            self.units / self.blocks
        };
        let mut lane = None;
        for unit in 0..self.units {
            let name = format!("u{unit:07}");
            out.expect("g", &name).await?;
            for n in 0..per_unit {
                let mut open = match lane.take() {
                    Some(open) => open,
                    None => out.lane(&name).await?,
                };
                open.unit("g", &name);
                let body = Bytes::from(format!("row {unit} {n} {:x}", (unit * 7919 + n) * 104_729));
                open.member(
                    MemberPath::new(format!("g/{name}/{n}"))?,
                    Meta::default(),
                    body,
                )
                .await?;
                if per_lane == 1 || unit % per_lane == per_lane - 1 {
                    open.close().await?;
                } else {
                    lane = Some(open);
                }
            }
            out.end("g", &name, Counted { rows: per_unit }).await?;
        }
        match lane {
            Some(open) => open.close().await,
            None => Ok(()),
        }
    }

    async fn close(self: Box<Self>, _cx: &bk_core::Context) -> Result<Facts> {
        Ok(Facts {
            layout: 1,
            ..Facts::default()
        })
    }
}

/// Writes, in this process, or finds and restores one unit, where the archive is there already. Prints figures.
async fn scale(what: &str, n: u64, folder: &Path) {
    let (blocks, units) = if what == "blocks" {
        (n, n / 1024)
    } else {
        (n / 256, n)
    };
    let restored = Arc::new(AtomicU64::new(0));
    let local = Local::new(folder.to_path_buf());
    let mut site = Site::default()
        .source(
            "many",
            Many {
                blocks,
                units,
                restored: restored.clone(),
            },
        )
        .sink("local", local.clone());
    site.archive.preset = 0;
    let began = std::time::Instant::now();
    let sink: Arc<dyn Sink> = Arc::new(local);
    let there = sink
        .list(&site.context(), &Default::default())
        .await
        .unwrap();
    let Some(stored) = there.into_iter().next() else {
        let report = site.backup().await;
        assert!(
            report.complete && report.causes.is_empty(),
            "{:?}",
            report.causes
        );
        println!(
            "written {} bytes in {:.1} s, peak {} MiB",
            report.bytes,
            began.elapsed().as_secs_f32(),
            bk_core::backup::peak_memory_bytes() >> 20
        );
        return;
    };
    let read = Arc::new(bk_core::archive::read_at::SinkReadAt::new(
        site.context(),
        sink,
        stored,
    ));
    let opened = Opened::open(read.clone()).await.unwrap();
    let (mut seen_blocks, mut seen_units) = (0_u64, 0_u64);
    let mut lines = opened.lines().await.unwrap();
    while let Some(batch) = lines.next_piece().await.unwrap() {
        for line in batch {
            match line {
                Line::Block(_) => seen_blocks += 1,
                Line::Unit(_) => seen_units += 1,
            }
        }
    }
    let reads = read.reads();
    let name = format!("many/g/u{:07}", units / 2);
    let report = site
        .restore(Request {
            selection: Selection::parse(&[name], &[]).unwrap(),
            ..Request::default()
        })
        .await
        .unwrap();
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    println!(
        "listed {seen_blocks} blocks and {seen_units} units with {reads} reads; one unit restored, {} members; {:.1} s, peak {} MiB",
        restored.load(Ordering::Relaxed),
        began.elapsed().as_secs_f32(),
        bk_core::backup::peak_memory_bytes() >> 20
    );
}

/// A backup into a folder that is killed before step `step`, at its n-th time.
async fn publish(folder: &Path, step: &str, n: u64) {
    let step = *Step::ALL
        .iter()
        .find(|s| format!("{s:?}") == step)
        .expect(USAGE);
    let count = AtomicU64::new(0);
    let local = Local::new(folder.to_path_buf()).with_hook(Arc::new(move |at| {
        if at == step && count.fetch_add(1, Ordering::SeqCst) + 1 == n {
            // As a SIGKILL would: nothing is cleaned up, no destructor runs.
            std::process::abort();
        }
        Ok(())
    }));
    let report = Site::default()
        .source("it", FakeSource::small(4, 20))
        .sink("local", local)
        .backup()
        .await;
    assert!(report.complete, "{:?}", report.causes);
}
