//! The sink `s3` on real stores.

use bk_core::catalog::Catalogue;
use bk_core::context::Context;
use bk_core::copy::{Way, copy};
use bk_core::sink::Sink;
use bk_sinks::s3::S3;
use bk_tests::binary::Home;
use bk_tests::engine::Site;
use bk_tests::fakes::{FakeSource, MemorySink, SourceDefect};
use bk_tests::fault_proxy::{Fault, Proxy, Watch, When};
use bk_tests::object_store::{self, Bucket, Kind, Server, Versions};
use bk_tests::sink_suite;
use futures::{FutureExt, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

fn context() -> Context {
    Site::default().context()
}

async fn every_check_passes(server: &Server, versions: Versions) {
    let mut failed = Vec::new();
    for (name, check) in sink_suite::CHECKS {
        let bucket = server.bucket(versions).await;
        let sink: Arc<dyn Sink> = Arc::new(bucket.sink());
        sink.check(&context()).await.unwrap();
        if let Err(why) = check(&context(), &sink).await {
            failed.push((*name, why));
        }
    }
    assert_eq!(failed, [], "{:?}, {versions:?}", server.kind);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_on_radosgw_with_versions_without_and_suspended() {
    let Some(server) = Server::shared(Kind::Radosgw) else {
        return;
    };
    for versions in [Versions::Enabled, Versions::Never, Versions::Suspended] {
        every_check_passes(server, versions).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_on_an_emulator_whose_sums_are_not_believed() {
    let Some(server) = Server::shared(Kind::Moto) else {
        return;
    };
    for versions in [Versions::Enabled, Versions::Never, Versions::Suspended] {
        every_check_passes(server, versions).await;
    }
    let sink = server.bucket(Versions::Enabled).await.sink();
    let health = sink.check(&context()).await.unwrap();
    assert!(!sink.abilities().proof);
    assert!(
        health.warnings.iter().any(|w| w.contains("wrong sums")),
        "{:?}",
        health.warnings
    );
}

/// A small archive, as the engine writes it.
async fn archive_bytes() -> bytes::Bytes {
    let memory = MemorySink::default();
    let site = Site::default()
        .source("fake", FakeSource::small(1, 2))
        .sink("memory", memory.clone());
    site.backup().await;
    memory.archive(&memory.names()[0]).unwrap()
}

async fn put(bucket: &Bucket, key: &str, body: &bytes::Bytes) -> String {
    let put = bucket.client.put_object().bucket(&bucket.name).key(key);
    let answer = put.body(body.clone().into()).send().await.unwrap();
    answer.version_id().unwrap_or_default().to_owned()
}

fn through(bucket: &Bucket, port: u16, more: serde_json::Value) -> S3 {
    let mut all = serde_json::json!({ "endpoint": format!("http://127.0.0.1:{port}") });
    all.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    bucket.sink_with(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn four_thousand_versions_are_listed_whole_and_with_few_requests() {
    let Some(server) = Server::shared(Kind::Radosgw) else {
        return;
    };
    let bucket = server.bucket(Versions::Enabled).await;
    let body = archive_bytes().await;
    let (versions, keys) = (2500, 1500);
    let names: Vec<String> = (0..versions)
        .map(|_| "main/backup.2026-08-22.tar.xz".to_owned())
        .chain((0..keys).map(|n| format!("main/backup.2026-08-23.{n:05}.tar.xz")))
        .collect();
    let expected: BTreeSet<(String, String)> = futures::stream::iter(names)
        .map(|key| {
            let (bucket, body) = (bucket.clone(), body.clone());
            async move {
                let version = put(&bucket, &key, &body).await;
                (key.trim_start_matches("main/").to_owned(), version)
            }
        })
        .buffer_unordered(16)
        .collect()
        .await;
    let proxy = Proxy::start(server.port, Fault::Reset, When::Never).await;
    let site = Site::default().sink("s3", through(&bucket, proxy.port, serde_json::json!({})));
    for unknown in [expected.len() as u64, 0] {
        let before = proxy.requests();
        let catalogue = Catalogue::read(&site.context(), &site.sinks).await;
        assert!(catalogue.failures.is_empty(), "{:?}", catalogue.failures);
        let listed: BTreeSet<(String, String)> = catalogue
            .archives()
            .map(|(e, _)| (e.stored.name.clone(), e.stored.version.clone()))
            .collect();
        assert_eq!(listed, expected);
        let asked = proxy.requests() - before;
        let log = proxy.log();
        let pages = log[before as usize..]
            .iter()
            .filter(|said| said.contains("?versions&"))
            .count() as u64;
        println!("{asked} requests for {pages} pages and {unknown} archives that no note knows");
        let log = proxy.log();
        let other: Vec<_> = log[before as usize..]
            .iter()
            .filter(|said| !said.contains("x-id=GetObject&versionId"))
            .collect();
        assert!(
            asked <= pages + unknown + 10,
            "{asked} requests: {other:#?}"
        );
    }
    let listed = site.sinks[0]
        .sink
        .list(&site.context(), &Default::default())
        .await
        .unwrap();
    let names: Vec<_> = listed.iter().map(|s| &s.name).collect();
    assert!(names.is_sorted(), "the list is not in order");

    // A version that the next page starts from goes away in between: nothing after it may be missing.
    let (client, name) = (bucket.client.clone(), bucket.name.clone());
    let gone = Arc::new(Mutex::new(None));
    let gone_too = gone.clone();
    let watch: Watch = Arc::new(move |said| {
        let marker = said
            .split(['?', '&'])
            .find_map(|word| word.strip_prefix("version-id-marker="));
        let key = said
            .split(['?', '&'])
            .find_map(|word| word.strip_prefix("key-marker="));
        let (client, name, gone) = (client.clone(), name.clone(), gone_too.clone());
        let found = marker
            .zip(key)
            .map(|(m, k)| (m.to_owned(), k.replace("%2F", "/")));
        async move {
            let Some((version, key)) = found else { return };
            if gone.lock().unwrap().is_some() {
                return;
            }
            *gone.lock().unwrap() =
                Some((key.trim_start_matches("main/").to_owned(), version.clone()));
            let delete = client.delete_object().bucket(&name).key(&key);
            delete.version_id(version).send().await.unwrap();
        }
        .boxed()
    });
    let proxy = Proxy::watching(server.port, watch).await;
    let sink = through(&bucket, proxy.port, serde_json::json!({}));
    let listed = sink.list(&context(), &Default::default()).await.unwrap();
    let listed: BTreeSet<_> = listed.into_iter().map(|s| (s.name, s.version)).collect();
    let mut expected = expected;
    let gone = gone.lock().unwrap().clone().unwrap();
    assert!(expected.remove(&gone), "{gone:?}");
    assert_eq!(listed, expected);
}

/// A source whose second unit fails.
fn failing() -> FakeSource {
    FakeSource::small(2, 2).mutant(SourceDefect::UnitWithoutEnd)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_archive_never_takes_a_whole_ones_place() {
    let Some(server) = Server::shared(Kind::Radosgw) else {
        return;
    };
    writer(server);
    for versions in [Versions::Enabled, Versions::Never, Versions::Suspended] {
        for may_delete in [true, false] {
            let bucket = server.bucket(versions).await;
            allow_writer(
                &bucket,
                &bucket.sink().policy(&context()).await.unwrap().unwrap(),
            )
            .await;
            let sink = || {
                if may_delete {
                    bucket.sink()
                } else {
                    bucket.sink_with(
                        serde_json::json!({ "access_key": "writer", "secret_key": "writersecret" }),
                    )
                }
            };
            let case = format!("{versions:?}, may delete: {may_delete}");
            let at = |minute: u32| format!("2026-08-22T03:{minute:02}:00Z");
            // A partial one first: no whole one lies there.
            let partial = Site::default()
                .source("fake", failing())
                .sink("s3", sink())
                .at(&at(1))
                .backup()
                .await;
            assert!(!partial.complete, "{case}");
            assert!(
                partial.sinks[0].published.is_some(),
                "{case}: {:?}",
                partial.sinks[0].error
            );
            let whole = Site::default()
                .source("fake", FakeSource::small(2, 2))
                .sink("s3", sink())
                .at(&at(2))
                .backup()
                .await;
            assert!(whole.causes.is_empty(), "{case}: {:?}", whole.causes);
            let again = Site::default()
                .source("fake", failing())
                .sink("s3", sink())
                .at(&at(3))
                .backup()
                .await;
            let stored = again.sinks[0].published.clone();
            if versions == Versions::Enabled {
                assert_eq!(
                    stored.as_ref().map(|(name, _)| name.ends_with(".partial")),
                    may_delete.then_some(true),
                    "{case}: {:?}",
                    again.sinks[0]
                );
            } else {
                assert!(stored.is_some(), "{case}: {:?}", again.sinks[0]);
            }
            // What a reader takes is the whole one, by `bk` and by whoever reads the key as it is.
            let empty = FakeSource::small(0, 0);
            let restored = empty.store.clone();
            let reader = Site::default().source("fake", empty).sink("s3", sink());
            let report = reader
                .restore(Default::default())
                .await
                .unwrap_or_else(|e| panic!("{case}: {e}"));
            assert!(report.causes.is_empty(), "{case}: {:?}", report.causes);
            assert_eq!(
                *restored.lock().unwrap(),
                *FakeSource::small(2, 2).store.lock().unwrap(),
                "{case}"
            );
            if versions == Versions::Enabled {
                // On Ceph an object is its writer's, whosever the bucket is.
                let client = if may_delete {
                    bucket.client.clone()
                } else {
                    object_store::client(&bucket.endpoint, "writer", "writersecret")
                };
                let head = client
                    .head_object()
                    .bucket(&bucket.name)
                    .key("main/backup.2026-08-22.tar.xz")
                    .send()
                    .await
                    .unwrap();
                assert_eq!(head.metadata().unwrap()["bk-id"], whole.id, "{case}");
            }
            assert_eq!(bucket.uploads().await, 0, "{case}");
        }
    }
}

/// Makes the account of a program that may only write.
fn writer(server: &Server) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        server.admin("user create --uid=writer --display-name=writer --access-key=writer --secret-key=writersecret");
    });
}

/// Gives that account what the policy says, and no more.
async fn allow_writer(bucket: &Bucket, policy: &str) {
    let mut policy: serde_json::Value = serde_json::from_str(policy).unwrap();
    for statement in policy["Statement"].as_array_mut().unwrap() {
        statement["Principal"] = serde_json::json!({ "AWS": ["arn:aws:iam:::user/writer"] });
    }
    let put = bucket.client.put_bucket_policy().bucket(&bucket.name);
    put.policy(policy.to_string()).send().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_without_delete_rights_is_enough_for_a_backup() {
    let Some(server) = Server::shared(Kind::Radosgw) else {
        return;
    };
    writer(server);
    let bucket = server.bucket(Versions::Enabled).await;
    let policy = bucket.sink().policy(&context()).await.unwrap().unwrap();
    allow_writer(&bucket, &policy).await;
    let own = serde_json::json!({ "access_key": "writer", "secret_key": "writersecret" });
    let site = Site::default()
        .source("fake", FakeSource::small(2, 2))
        .sink("s3", bucket.sink_with(own.clone()))
        .at("2026-08-22T03:15:00Z");
    let report = site.backup().await;
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    let (name, version) = report.sinks[0].published.clone().unwrap();
    let key = format!("main/{name}");
    let thief = object_store::client(&bucket.endpoint, "writer", "writersecret");
    let tagging = aws_sdk_s3::types::Tagging::builder()
        .tag_set(
            aws_sdk_s3::types::Tag::builder()
                .key("bk-tier")
                .value("daily")
                .build()
                .unwrap(),
        )
        .build()
        .unwrap();
    let (b, k, v) = (&bucket.name, &key, &version);
    let denied = [
        (
            "delete",
            thief
                .delete_object()
                .bucket(b)
                .key(k)
                .send()
                .await
                .map(drop)
                .map_err(|e| e.raw_response().unwrap().status().as_u16()),
        ),
        (
            "delete version",
            thief
                .delete_object()
                .bucket(b)
                .key(k)
                .version_id(v)
                .send()
                .await
                .map(drop)
                .map_err(|e| e.raw_response().unwrap().status().as_u16()),
        ),
        (
            "tag",
            thief
                .put_object_tagging()
                .bucket(b)
                .key(k)
                .tagging(tagging.clone())
                .send()
                .await
                .map(drop)
                .map_err(|e| e.raw_response().unwrap().status().as_u16()),
        ),
        (
            "tag version",
            thief
                .put_object_tagging()
                .bucket(b)
                .key(k)
                .version_id(v)
                .tagging(tagging)
                .send()
                .await
                .map(drop)
                .map_err(|e| e.raw_response().unwrap().status().as_u16()),
        ),
        (
            "acl",
            thief
                .put_object_acl()
                .bucket(b)
                .key(k)
                .acl(aws_sdk_s3::types::ObjectCannedAcl::PublicRead)
                .send()
                .await
                .map(drop)
                .map_err(|e| e.raw_response().unwrap().status().as_u16()),
        ),
        (
            "untag",
            thief
                .delete_object_tagging()
                .bucket(b)
                .key(k)
                .version_id(v)
                .send()
                .await
                .map(drop)
                .map_err(|e| e.raw_response().unwrap().status().as_u16()),
        ),
    ];
    for (what, answer) in denied {
        assert_eq!(answer, Err(403), "{what}");
    }
    let outlook = bucket
        .sink_with(own)
        .outlook(&context(), None)
        .await
        .unwrap();
    assert!(
        outlook.lines.iter().any(|l| l.contains("may not delete")),
        "{outlook:?}"
    );
    // An operator who keeps two keys is told when the first may do too much.
    let both = serde_json::json!({ "delete_access_key": "test", "delete_secret_key": "testtest" });
    let outlook = bucket
        .sink_with(both)
        .outlook(&context(), None)
        .await
        .unwrap();
    assert!(
        outlook
            .warnings
            .iter()
            .any(|w| w.contains("delete and tag")),
        "{outlook:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_copied_inside_the_store_or_through_and_is_the_same() {
    let Some(server) = Server::shared(Kind::Radosgw) else {
        return;
    };
    let (one, two) = (
        server.bucket(Versions::Enabled).await,
        server.bucket(Versions::Never).await,
    );
    let folder = tempfile::tempdir().unwrap();
    let site = Site::default()
        .source("fake", FakeSource::small(3, 3))
        .sink("one", one.sink())
        .at("2026-08-22T03:15:00Z");
    let report = site.backup().await;
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    let all = site
        .clone()
        .sink("two", two.sink())
        .sink("local", bk_sinks::local::Local::new(folder.path().into()))
        .sink("memory", MemorySink::default());
    let cx = all.context();
    let [from, inside, local, memory] = &all.sinks[..] else {
        unreachable!()
    };
    for (to, from, way) in [
        (inside, from, Way::Inside),
        (local, inside, Way::Streamed),
        (memory, local, Way::Streamed),
        (local, from, Way::There),
    ] {
        let here = Catalogue::read(&cx, std::slice::from_ref(from)).await;
        let there = Catalogue::read(&cx, std::slice::from_ref(to)).await;
        let (entry, _) = here.archives().next().unwrap();
        let copied = copy(&cx, entry, from, to, &there).await.unwrap();
        assert_eq!(copied.way, way, "{} to {}", from.name, to.name);
        assert_eq!(copied.id, report.id);
        let there = Catalogue::read(&cx, std::slice::from_ref(to)).await;
        assert_eq!(there.archives().next().unwrap().1.id, report.id);
    }
    for bucket in [&one, &two] {
        let listed = bucket.sink().list(&cx, &Default::default()).await.unwrap();
        let tagged = bucket
            .client
            .get_object_tagging()
            .bucket(&bucket.name)
            .key(format!("main/{}", listed[0].name))
            .send()
            .await
            .unwrap();
        assert!(tagged.tag_set().is_empty());
    }
}

/// Runs the real program against the bucket.
fn home(bucket: &Bucket, site: &str) -> Home {
    let home = Home::new(&format!(
        "format = 1\nplugins = [\"files\", \"s3\"]\n[archive]\nsite = \"{site}\"\n[source.files]\npath = \"src\"\n{}keep = {{ last = 3, daily = 5, weekly = 2 }}\n",
        bucket.toml("s3")
    ));
    home.write("src/docs/a.txt", format!("of {site}"));
    home
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_user_backs_up_lists_and_restores_by_version() {
    let Some(server) = Server::shared(Kind::Radosgw) else {
        return;
    };
    let bucket = server.bucket(Versions::Enabled).await;
    let home = home(&bucket, "school");
    home.bk(&["backup"]).ended(0);
    home.write("src/docs/a.txt", "later");
    home.bk(&["backup"]).ended(0);
    let versions = home.bk(&["restore", "--list-versions"]).ended(0).stdout;
    let lines: Vec<&str> = versions.lines().collect();
    assert_eq!(lines.len(), 2, "{versions}");
    let first = lines[1].split_whitespace().next().unwrap();
    home.bk(&["restore", "--version", first, "--yes"]).ended(0);
    assert_eq!(
        std::fs::read_to_string(home.path("src/docs/a.txt")).unwrap(),
        "of school"
    );
    home.bk(&["verify", "--version", first]).ended(0);
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!(
        std::fs::read_to_string(home.path("src/docs/a.txt")).unwrap(),
        "later"
    );
    let checked = home.bk(&["check"]).ended(0).stdout;
    assert!(
        checked.contains("keeps versions") && checked.contains("CRC-64/NVME"),
        "{checked}"
    );
    let policy = home.bk(&["check", "--policy", "s3"]).ended(0).stdout;
    serde_json::from_str::<serde_json::Value>(&policy).unwrap();
    // Somebody deletes the key as one does without versions: it is said, and nothing is lost.
    let key = "school/".to_owned()
        + &format!(
            "backup.{}.tar.xz",
            &lines[0].split_whitespace().nth(1).unwrap()[..10]
        );
    bucket
        .client
        .delete_object()
        .bucket(&bucket.name)
        .key(&key)
        .send()
        .await
        .unwrap();
    let list = home.bk(&["list"]).ended(0).stdout;
    assert!(list.contains("hidden by a delete marker"), "{list}");
    home.bk(&["restore", "--yes"]).ended(0);
    // Another site must not take the same place.
    let other = home.bk(&[
        "--site",
        "other",
        "--set",
        "sink.s3.prefix=school/",
        "check",
    ]);
    assert_eq!(other.code, 4, "{}{}", other.stdout, other.stderr);
    assert!(
        other.stdout.contains("site `school` keeps")
            || other.stderr.contains("site `school` keeps"),
        "{}{}",
        other.stdout,
        other.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_connections_or_certificates_is_told_in_seconds() {
    let settings = |endpoint: &str| {
        format!(
            "format = 1\nplugins = [\"files\", \"s3\"]\n[source.files]\npath = \"src\"\n[sink.s3]\nbucket = \"b\"\nendpoint = \"{endpoint}\"\naccess_key = \"a\"\nsecret_key = {{ env = \"BK_TEST_SECRET\" }}\n"
        )
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let home = Home::new(&settings(&format!("http://127.0.0.1:{port}")));
    home.write("src/a", "a");
    let mut command = home.command(&["check"]);
    let ran: bk_tests::binary::Ran = command
        .env("BK_TEST_SECRET", "canary-4711")
        .output()
        .unwrap()
        .into();
    let ran = ran.ended(1);
    assert!(!ran.stdout.contains("canary") && !ran.stderr.contains("canary"));
    let missing = home.bk(&["check"]);
    assert_eq!(missing.code, 4, "{}{}", missing.stdout, missing.stderr);
}

/// A folder packed as Tutor's plugin packs it: no manifest, its MD5 in the metadata.
fn strangers_archive(text: &str) -> bytes::Bytes {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("caddy/certificates/local/a");
    std::fs::create_dir_all(&inside).unwrap();
    std::fs::write(inside.join("a.txt"), text).unwrap();
    let out = std::process::Command::new("tar")
        .args(["-cJ", "-C"])
        .arg(folder.path())
        .arg("caddy")
        .output()
        .unwrap();
    assert!(out.status.success());
    out.stdout.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sites_and_a_strangers_archives_share_a_bucket_for_thirty_days() {
    let Some(server) = Server::shared(Kind::Radosgw) else {
        return;
    };
    let bucket = server.bucket(Versions::Enabled).await;
    let mut strangers = BTreeMap::new();
    for n in 0..50 {
        let (day, run) = (n % 25 + 1, n / 25);
        let text = format!("day {day} run {run}");
        let body = strangers_archive(&text);
        let sum = md5_hex(&body);
        let key = format!("backup.2026-07-{day:02}.tar.xz");
        let put = bucket
            .client
            .put_object()
            .bucket(&bucket.name)
            .key(&key)
            .metadata("checksum-md5", sum);
        let version = put
            .body(body.into())
            .send()
            .await
            .unwrap()
            .version_id()
            .unwrap()
            .to_owned();
        strangers.insert((key, version), text);
    }
    let of_site = |name: &str, day: u32| {
        let source = FakeSource::small(1, 2);
        let body = bytes::Bytes::from(format!("{name} {day}"));
        source.store.lock().unwrap().insert(
            ("g0".into(), "day".into()),
            BTreeMap::from([("day".into(), body)]),
        );
        let mut site = Site::default()
            .source("fake", source)
            .sink("s3", bucket.sink())
            .keep(bk_core::retention::Keep {
                last: 3.into(),
                daily: 5.into(),
                weekly: 2.into(),
                ..Default::default()
            });
        site.archive.site = name.into();
        site.at(&format!("2026-08-{day:02}T03:00:00Z"))
    };
    for day in 1..=30 {
        for name in ["north", "south"] {
            let site = of_site(name, day);
            let report = site.backup().await;
            assert!(
                report.causes.is_empty(),
                "{name} {day}: {:?}",
                report.causes
            );
            assert!(
                !report.warnings.iter().any(|w| w.contains("prune")),
                "{:?}",
                report.warnings
            );
            if day % 10 == 0 {
                let expected = site.sources[0].clone();
                let empty = FakeSource::small(0, 0);
                let restored = empty.store.clone();
                let mut reader = Site::default()
                    .source("fake", empty)
                    .sink("s3", bucket.sink());
                reader.archive.site = name.into();
                let report = reader.restore(Default::default()).await.unwrap();
                assert!(report.causes.is_empty(), "{:?}", report.causes);
                let day_body =
                    restored.lock().unwrap()[&("g0".to_owned(), "day".to_owned())]["day"].clone();
                assert_eq!(day_body, format!("{name} {day}"), "{}", expected.name);
            }
        }
    }
    for name in ["north", "south"] {
        let site = of_site(name, 30);
        let catalogue = Catalogue::read(&site.context(), &site.sinks).await;
        let kept = catalogue.archives().count();
        assert!((5..=8).contains(&kept), "{name} keeps {kept}");
        assert!(catalogue.archives().all(|(_, s)| s.site == name));
    }
    // Every stranger's archive is still there, and comes back by version and by date.
    let everything = bucket.everything().await;
    for (key, version) in strangers.keys() {
        assert!(
            everything.iter().any(|(k, v, _)| k == key && v == version),
            "{key} {version}"
        );
    }
    let home = Home::new(&format!(
        "format = 1\nplugins = [\"caddy\", \"s3\"]\n[archive]\nsite = \"north\"\n[source.caddy]\npath = \"caddy\"\n{}",
        bucket.toml("s3")
    ));
    home.write("caddy/certificates/local/a/a.txt", "nothing");
    for (n, ((key, version), text)) in strangers.iter().enumerate().filter(|(n, _)| n % 10 == 3) {
        let ran = home.bk(&[
            "restore",
            "--version",
            version,
            "--yes",
            "--existing",
            "replace",
        ]);
        assert_eq!(ran.code, 0, "{n} {key}: {}{}", ran.stdout, ran.stderr);
        assert_eq!(
            std::fs::read_to_string(home.path("caddy/certificates/local/a/a.txt")).unwrap(),
            *text
        );
    }
    home.bk(&[
        "restore",
        "--date",
        "2026-07-04",
        "--yes",
        "--existing",
        "replace",
    ])
    .ended(0);
    assert_eq!(
        std::fs::read_to_string(home.path("caddy/certificates/local/a/a.txt")).unwrap(),
        "day 4 run 1"
    );
    let wrong = bucket
        .client
        .put_object()
        .bucket(&bucket.name)
        .key("backup.2026-07-30.tar.xz")
        .metadata("checksum-md5", "0".repeat(32));
    wrong
        .body(strangers_archive("wrong").into())
        .send()
        .await
        .unwrap();
    let ran = home.bk(&["restore", "--date", "2026-07-30", "--yes"]);
    assert_eq!(ran.code, 7, "{}{}", ran.stdout, ran.stderr);
}

fn md5_hex(body: &[u8]) -> String {
    use md5::Digest;
    md5::Md5::digest(body)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}
