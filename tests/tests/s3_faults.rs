//! One request of a backup or a restore goes wrong, whichever and however: what passes by itself must not be noticed.

use bk_core::sink::Filter;
use bk_sinks::s3::S3;
use bk_tests::engine::Site;
use bk_tests::fakes::FakeSource;
use bk_tests::fault_proxy::{Fault, Proxy, When};
use bk_tests::object_store::{self, Bucket, Kind, Server, Versions};
use bk_tests::{data, long};
use futures::StreamExt;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Runs at once: most of their time is waiting.
const AT_ONCE: usize = 6;
/// Longer than the waits of any one request added up: beyond it something hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// A sink of its own folder in the bucket, through the proxy.
fn sink(bucket: &Bucket, port: u16, prefix: &str) -> S3 {
    let mut settings = bucket.settings();
    let more = serde_json::json!({
        "endpoint": format!("http://127.0.0.1:{port}"), "prefix": format!("{prefix}/"), "foreign_prefix": "none/",
        "timeout": 2, "part_size": "5 MiB", "checksum": "crc64nvme"
    });
    settings
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    object_store::sink(settings)
}

/// 12 MiB that do not shrink: three parts.
fn source() -> FakeSource {
    let source = FakeSource::small(2, 2);
    let body: bytes::Bytes = data::noise(7, 4 << 20).into();
    for n in 0..3 {
        source.store.lock().unwrap().insert(
            ("large".into(), format!("u{n}")),
            BTreeMap::from([(format!("body{n}"), body.slice(n..))]),
        );
    }
    source
}

fn site(source: FakeSource, sink: S3) -> Site {
    let mut site = Site::default();
    site.archive.compress = false;
    site.source("fake", source)
        .sink("s3", sink)
        .at("2026-08-22T03:15:00Z")
}

/// How a run through the proxy ended.
struct Ended {
    /// Exit 0.
    well: bool,
    /// In words.
    said: String,
    requests: u64,
    log: Vec<String>,
}

async fn backup(bucket: &Bucket, port: u16, fault: Fault, when: When, prefix: &str) -> Ended {
    let proxy = Proxy::start(port, fault, when).await;
    let report = site(source(), sink(bucket, proxy.port, prefix))
        .backup()
        .await;
    Ended {
        well: report.causes.is_empty(),
        said: format!("{:?} {:?}", report.causes, report.warnings),
        requests: proxy.requests(),
        log: proxy.log(),
    }
}

/// Restores what lies there without a proxy, and compares. Returns how many archives there are.
async fn compare(bucket: &Bucket, port: u16, prefix: &str) -> Result<usize, String> {
    let sink = sink(bucket, port, prefix);
    let empty = FakeSource::small(0, 0);
    let restored = empty.store.clone();
    let site = site(empty, sink);
    let cx = site.context();
    let listed = site.sinks[0]
        .sink
        .list(&cx, &Filter::default())
        .await
        .map_err(|e| e.to_string())?;
    if listed.is_empty() {
        return Ok(0);
    }
    let report = site
        .restore(Default::default())
        .await
        .map_err(|e| e.to_string())?;
    if !report.causes.is_empty() {
        return Err(format!("{:?}", report.causes));
    }
    let expected = source().store.lock().unwrap().clone();
    if *restored.lock().unwrap() != expected {
        return Err("what came back is not what was backed up".into());
    }
    Ok(listed.len())
}

/// Uploads that are open beneath a prefix.
async fn open_uploads(bucket: &Bucket, prefix: &str) -> usize {
    let open = bucket
        .client
        .list_multipart_uploads()
        .bucket(&bucket.name)
        .prefix(format!("{prefix}/"))
        .send()
        .await
        .unwrap();
    open.uploads().len()
}

async fn every_passing_fault_of_a_backup(versions: Versions) {
    let Some(server) = Server::shared(Kind::Radosgw) else {
        return;
    };
    let bucket = server.bucket(versions).await;
    let whole = backup(&bucket, server.port, Fault::Reset, When::Never, "quiet").await;
    assert!(whole.well, "{}", whole.said);
    println!("{} requests: {:#?}", whole.requests, whole.log);
    let step = long(4, 1);
    let cases: Vec<(Fault, u64)> = Fault::PASSING
        .into_iter()
        .enumerate()
        .flat_map(|(f, fault)| {
            (0..whole.requests)
                .filter(move |n| (*n as usize + f).is_multiple_of(step))
                .map(move |n| (fault, n))
        })
        .collect();
    println!("{} cases", cases.len());
    let failed: Vec<String> = futures::stream::iter(cases)
        .map(|(fault, n)| {
            let bucket = bucket.clone();
            async move {
                let prefix = format!("{fault:?}{n}");
                let begun = Instant::now();
                let ended = backup(&bucket, server.port, fault, When::Once(n), &prefix).await;
                let took = begun.elapsed();
                let asked = ended.log.get(n as usize).cloned().unwrap_or_default();
                let complain = |why: String| Some(format!("{fault:?} at {n} ({asked}): {why}"));
                if !ended.well {
                    return complain(ended.said);
                }
                if took > LIMIT {
                    return complain(format!("took {took:?}"));
                }
                match compare(&bucket, server.port, &prefix).await {
                    Ok(1) => {}
                    Ok(found) => return complain(format!("{found} archives are there")),
                    Err(why) => return complain(why),
                }
                let open = open_uploads(&bucket, &prefix).await;
                // The store lies in memory, and cases are many.
                bucket.remove(&format!("{prefix}/")).await;
                match open {
                    0 => None,
                    open => complain(format!("{open} uploads are open")),
                }
            }
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(futures::future::ready)
        .collect()
        .await;
    assert!(
        failed.is_empty(),
        "{}:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_request_of_a_backup_may_go_wrong_with_versions() {
    every_passing_fault_of_a_backup(Versions::Enabled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_request_of_a_backup_may_go_wrong_without_versions() {
    every_passing_fault_of_a_backup(Versions::Never).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_request_of_a_backup_may_go_wrong_with_versions_suspended() {
    every_passing_fault_of_a_backup(Versions::Suspended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_request_of_a_restore_may_go_wrong() {
    let Some(server) = Server::shared(Kind::Radosgw) else {
        return;
    };
    let bucket = server.bucket(Versions::Enabled).await;
    let whole = backup(&bucket, server.port, Fault::Reset, When::Never, "main").await;
    assert!(whole.well, "{}", whole.said);
    let quiet = Proxy::start(server.port, Fault::Reset, When::Never).await;
    compare(&bucket, quiet.port, "main").await.unwrap();
    let requests = quiet.requests();
    println!("{requests} requests: {:#?}", quiet.log());
    let cases = Fault::PASSING
        .into_iter()
        .flat_map(|fault| (0..requests).map(move |n| (fault, n)));
    let failed: Vec<String> = futures::stream::iter(cases)
        .map(|(fault, n)| {
            let bucket = bucket.clone();
            async move {
                let proxy = Proxy::start(server.port, fault, When::Once(n)).await;
                let begun = Instant::now();
                let compared = compare(&bucket, proxy.port, "main").await;
                let asked = proxy.log().get(n as usize).cloned().unwrap_or_default();
                match compared {
                    Ok(1) if begun.elapsed() < LIMIT => None,
                    other => Some(format!(
                        "{fault:?} at {n} ({asked}): {other:?} after {:?}",
                        begun.elapsed()
                    )),
                }
            }
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(futures::future::ready)
        .collect()
        .await;
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// What does not pass fails with a name for it, and leaves nothing that could be taken for an archive.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_stops_answering_well_leaves_nothing_half_done() {
    let Some(server) = Server::shared(Kind::Radosgw) else {
        return;
    };
    let mut cases = Vec::new();
    for versions in [Versions::Enabled, Versions::Never] {
        let bucket = server.bucket(versions).await;
        let whole = backup(&bucket, server.port, Fault::Reset, When::Never, "quiet").await;
        for n in (0..whole.requests).step_by(long(4, 1)) {
            cases.push((bucket.clone(), Fault::Denied, When::From(n)));
            cases.push((bucket.clone(), Fault::PreconditionFailed, When::Once(n)));
        }
    }
    let failed: Vec<String> = futures::stream::iter(cases)
        .map(|(bucket, fault, when)| async move {
            let prefix = format!("{fault:?}{when:?}").replace(['(', ')'], "-");
            let ended = backup(&bucket, server.port, fault, when, &prefix).await;
            let found = compare(&bucket, server.port, &prefix).await;
            let open = open_uploads(&bucket, &prefix).await;
            bucket.remove(&format!("{prefix}/")).await;
            match (ended.well, found) {
                // Only what follows the archive's proof may go wrong and the run still be well.
                (true, Ok(1)) | (false, Ok(0 | 1)) if fault == Fault::Denied || open == 0 => None,
                (well, found) => Some(format!(
                    "{fault:?} {when:?}: well {well}, {found:?}, {open} uploads, {}",
                    ended.said
                )),
            }
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(futures::future::ready)
        .collect()
        .await;
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
