//! What a store can do besides keeping: encrypt, lock, class, freeze. Asked for in the settings, looked at by a client of the tests' own.

use aws_sdk_s3::types::{
    BucketVersioningStatus, ObjectLockRetentionMode, RestoreRequest, VersioningConfiguration,
};
use bk_core::copy::{Way, copy};
use bk_core::sink::{Filter, Sink};
use bk_tests::certificates::Certificates;
use bk_tests::database::free_port;
use bk_tests::engine::Site;
use bk_tests::fakes::FakeSource;
use bk_tests::generated::Generated;
use bk_tests::object_store::{Bucket, Kind, Server, Versions};
use bk_tests::{long, sink_suite};
use serde_json::json;
use std::sync::Arc;

const CUSTOMER_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// Backs up, restores from the same settings, compares. Says the key of the archive.
async fn comes_back(bucket: &Bucket, more: &serde_json::Value) -> String {
    let report = Site::default()
        .source("fake", FakeSource::small(3, 3))
        .sink("s3", bucket.sink_with(more.clone()))
        .at("2026-08-22T03:15:00Z")
        .backup()
        .await;
    assert!(report.causes.is_empty(), "{more}: {:?}", report.causes);
    assert!(report.sinks[0].verified, "{more}");
    let empty = FakeSource::small(0, 0);
    let restored = empty.store.clone();
    let site = Site::default()
        .source("fake", empty)
        .sink("s3", bucket.sink_with(more.clone()));
    let report_of_restore = site.restore(Default::default()).await.unwrap();
    assert!(report_of_restore.causes.is_empty(), "{more}");
    assert_eq!(
        *restored.lock().unwrap(),
        *FakeSource::small(3, 3).store.lock().unwrap(),
        "{more}"
    );
    let prefix = more["prefix"].as_str().unwrap_or("main/");
    format!("{prefix}{}", report.sinks[0].published.clone().unwrap().0)
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_are_encrypted_by_a_key_of_ours_or_of_the_store_over_a_certificate_of_our_authority()
 {
    let files = Certificates::new();
    let https = free_port();
    let options = [
        format!("https {https} {} {}", files.certificate(), files.key()),
        "rgw_crypt_s3_kms_backend = testing".to_owned(),
        format!("rgw_crypt_s3_kms_encryption_keys = school={CUSTOMER_KEY}"),
        // Its own answers over http would be refused otherwise; the tests' client looks through that door.
        "rgw_crypt_require_ssl = false".to_owned(),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let Some(server) = Server::start(Kind::Radosgw, &options) else {
        return;
    };
    let bucket = server.bucket(Versions::Enabled).await;
    let over_https = |prefix: &str, encryption: serde_json::Value| json!({ "endpoint": format!("https://127.0.0.1:{https}"), "ca": files.ca(), "prefix": prefix, "encryption": encryption });
    let customer = over_https(
        "customer/",
        json!({ "mode": "customer", "key": CUSTOMER_KEY }),
    );
    let key = comes_back(&bucket, &customer).await;
    let plain = bucket.client.get_object().bucket(&bucket.name).key(&key);
    let refused = plain
        .send()
        .await
        .expect_err("it is readable without the key");
    assert_eq!(refused.raw_response().unwrap().status().as_u16(), 400);
    let kms = over_https("kms/", json!({ "mode": "kms", "key_id": "school" }));
    let key = comes_back(&bucket, &kms).await;
    let head = bucket.client.head_object().bucket(&bucket.name).key(&key);
    let head = head.send().await.unwrap();
    assert_eq!(head.ssekms_key_id(), Some("school"));

    // The suite holds with a key of ours too: every read, copy and part needs it.
    let mut failed = Vec::new();
    for (name, check) in sink_suite::CHECKS {
        let bucket = server.bucket(Versions::Enabled).await;
        let sink: Arc<dyn Sink> = Arc::new(bucket.sink_with(customer.clone()));
        if let Err(why) = check(&Site::default().context(), &sink).await {
            failed.push((*name, why));
        }
    }
    assert_eq!(failed, []);

    // Whom nobody vouches for is not asked again, and it is said what to do.
    let begun = std::time::Instant::now();
    let mut stranger = kms.clone();
    stranger["ca"] = json!(files.other_ca());
    let error = bucket
        .sink_with(stranger)
        .check(&Site::default().context())
        .await
        .expect_err("a stranger's certificate was believed");
    assert_eq!(error.kind, bk_core::error::ErrorKind::Settings, "{error}");
    println!("refused in {:?}: {error}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_archive_stays_and_it_is_said_until_when() {
    let Some(server) = Server::shared(Kind::Radosgw) else {
        return;
    };
    let client = server.client();
    let name = "locked".to_owned();
    let create = client.create_bucket().bucket(&name);
    create
        .object_lock_enabled_for_bucket(true)
        .send()
        .await
        .unwrap();
    let bucket = Bucket {
        endpoint: server.endpoint(),
        name,
        client,
    };
    let more = json!({ "object_lock": { "mode": "governance", "days": 9000 } });
    let key = comes_back(&bucket, &more).await;
    let head = bucket.client.head_object().bucket(&bucket.name).key(&key);
    let head = head.send().await.unwrap();
    assert_eq!(
        head.object_lock_mode().map(|mode| mode.as_str()),
        Some(ObjectLockRetentionMode::Governance.as_str())
    );
    let sink = bucket.sink_with(more.clone());
    let cx = Site::default().context();
    let listed = sink.list(&cx, &Filter::default()).await.unwrap();
    assert!(
        listed[0]
            .remarks
            .iter()
            .any(|r| r.starts_with("held until 20")),
        "{listed:?}"
    );
    let error = sink
        .delete(&cx, &listed[0])
        .await
        .expect_err("it was deleted");
    assert!(error.to_string().contains("is held until"), "{error}");
    assert_eq!(sink.list(&cx, &Filter::default()).await.unwrap(), listed);
    // A partial one is not locked: it must be able to go.
    let partial = Site::default()
        .source(
            "fake",
            FakeSource::small(2, 2).mutant(bk_tests::fakes::SourceDefect::UnitWithoutEnd),
        )
        .sink("s3", bucket.sink_with(more))
        .at("2026-08-23T03:15:00Z")
        .backup()
        .await;
    assert!(!partial.complete);
    let listed = sink.list(&cx, &Filter::default()).await.unwrap();
    let held: Vec<bool> = listed
        .iter()
        .map(|stored| stored.remarks.iter().any(|r| r.starts_with("held until")))
        .collect();
    assert_eq!(held, [true, false], "{listed:?}");
    sink.delete(&cx, &listed[1]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_lie_in_the_class_that_was_asked_for_and_a_rule_makes_old_ones_colder() {
    let options = ["class STANDARD_IA", "class GLACIER_IR"];
    let Some(server) = Server::start(Kind::Radosgw, &options) else {
        return;
    };
    let bucket = server.bucket(Versions::Enabled).await;
    let more = json!({
        "storage_class": "STANDARD_IA", "lifecycle": "write", "transition": { "days": 2, "class": "GLACIER_IR" }
    });
    let key = comes_back(&bucket, &more).await;
    let class = async |key: &str| {
        let head = bucket.client.head_object().bucket(&bucket.name).key(key);
        head.send()
            .await
            .unwrap()
            .storage_class()
            .map(|c| c.as_str().to_owned())
    };
    assert_eq!(class(&key).await.as_deref(), Some("STANDARD_IA"));
    // Rules reach what retention has tagged: a monthly one that is not the last.
    let keep = bk_core::retention::Keep {
        last: 1.into(),
        monthly: 500.into(),
        ..Default::default()
    };
    for month in 9..=11 {
        let report = Site::default()
            .source("fake", FakeSource::small(3, 3))
            .sink("s3", bucket.sink_with(more.clone()))
            .keep(keep)
            .at(&format!("2026-{month:02}-22T03:15:00Z"))
            .backup()
            .await;
        assert!(report.causes.is_empty(), "{:?}", report.causes);
    }
    // Ceph 20 moves objects of one part only, so that an archive does not get colder there: the rule is looked at, not its effect.
    let rules = bucket
        .client
        .get_bucket_lifecycle_configuration()
        .bucket(&bucket.name);
    let rules = rules.send().await.unwrap();
    let monthly = rules
        .rules()
        .iter()
        .find(|rule| rule.id() == Some("bk:main:monthly"));
    let colder = &monthly
        .expect("the archives of months have a rule")
        .transitions()[0];
    assert_eq!(colder.days(), Some(2));
    assert_eq!(
        colder.storage_class().map(|c| c.as_str()),
        Some("GLACIER_IR")
    );
    assert_eq!(
        class("main/backup.2026-11-22.tar.xz").await.as_deref(),
        Some("STANDARD_IA")
    );
    // It is still restored as it lies.
    let empty = FakeSource::small(0, 0);
    let restored = empty.store.clone();
    let site = Site::default()
        .source("fake", empty)
        .sink("s3", bucket.sink_with(more));
    let mut request = bk_core::restore::Request::default();
    request.wish.date = Some("2026-08-22".into());
    let report = site.restore(request).await.unwrap();
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    assert_eq!(
        restored.lock().unwrap().len(),
        FakeSource::small(3, 3).store.lock().unwrap().len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_archive_is_named_with_the_command_that_thaws_it() {
    let Some(server) = Server::shared(Kind::Moto) else {
        return;
    };
    let bucket = server.bucket(Versions::Never).await;
    let status = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled);
    let enable = bucket.client.put_bucket_versioning().bucket(&bucket.name);
    enable
        .versioning_configuration(status.build())
        .send()
        .await
        .unwrap();
    // What the emulator says of its encryption is all that can be had of it without a key service.
    let encrypted = json!({ "encryption": { "mode": "store" }, "prefix": "store/" });
    let key = comes_back(&bucket, &encrypted).await;
    let head = bucket
        .client
        .head_object()
        .bucket(&bucket.name)
        .key(&key)
        .send()
        .await
        .unwrap();
    assert_eq!(
        head.server_side_encryption().map(|e| e.as_str()),
        Some("AES256")
    );
    let key = comes_back(&bucket, &json!({})).await;
    let version = bucket
        .everything()
        .await
        .into_iter()
        .find(|(k, _, _)| *k == key)
        .unwrap()
        .1;
    let copy = bucket.client.copy_object().bucket(&bucket.name).key(&key);
    copy.copy_source(format!("{}/{key}", bucket.name))
        .storage_class(aws_sdk_s3::types::StorageClass::Glacier)
        .send()
        .await
        .unwrap();
    bucket
        .client
        .delete_object()
        .bucket(&bucket.name)
        .key(&key)
        .version_id(version)
        .send()
        .await
        .unwrap();
    let reader = || {
        Site::default()
            .source("fake", FakeSource::small(0, 0))
            .sink("s3", bucket.sink())
    };
    let error = reader()
        .restore(Default::default())
        .await
        .expect_err("it was read");
    let said = format!("{error} {:?}", error.hint);
    assert!(
        said.contains("frozen") && said.contains("aws s3api restore-object"),
        "{said}"
    );
    let thaw = bucket
        .client
        .restore_object()
        .bucket(&bucket.name)
        .key(&key);
    thaw.restore_request(RestoreRequest::builder().days(3).build())
        .send()
        .await
        .unwrap();
    let report = reader().restore(Default::default()).await.unwrap();
    assert!(report.causes.is_empty(), "{:?}", report.causes);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_more_than_five_gib_is_copied_in_parts_inside_the_store() {
    if long(0, 1) == 0 {
        // It takes minutes and 12 GiB of disk.
        return;
    }
    let Some(server) = Server::start(Kind::Radosgw, &["osd_objectstore = bluestore"]) else {
        return;
    };
    let (one, two) = (
        server.bucket(Versions::Enabled).await,
        server.bucket(Versions::Never).await,
    );
    let mut site = Site::default()
        .source("large", Generated::new(5600))
        .sink("one", one.sink());
    site.archive.compress = false;
    let begun = std::time::Instant::now();
    let report = site.backup().await;
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    assert!(report.bytes > 5 << 30);
    println!("{} bytes sent in {:?}", report.bytes, begun.elapsed());
    let all = site.sink("two", two.sink());
    let cx = all.context();
    let begun = std::time::Instant::now();
    let here = bk_core::catalog::Catalogue::read(&cx, &all.sinks[..1]).await;
    let there = bk_core::catalog::Catalogue::read(&cx, &all.sinks[1..]).await;
    let (entry, _) = here.archives().next().unwrap();
    let copied = copy(&cx, entry, &all.sinks[0], &all.sinks[1], &there)
        .await
        .unwrap();
    assert_eq!(copied.way, Way::Inside);
    println!("copied in {:?}", begun.elapsed());
    let head = async |bucket: &Bucket| {
        let key = bucket
            .everything()
            .await
            .into_iter()
            .find(|(key, _, _)| key.starts_with("main/backup") && key.ends_with(".tar.xz"))
            .unwrap()
            .0;
        let head = bucket.client.head_object().bucket(&bucket.name).key(key);
        let head = head
            .checksum_mode(aws_sdk_s3::types::ChecksumMode::Enabled)
            .send()
            .await
            .unwrap();
        let sum = head
            .checksum_crc64_nvme()
            .unwrap()
            .split('-')
            .next()
            .unwrap()
            .to_owned();
        (head.content_length().unwrap(), sum)
    };
    assert_eq!(head(&one).await, head(&two).await);
    let there = bk_core::catalog::Catalogue::read(&cx, &all.sinks[1..]).await;
    assert_eq!(there.archives().next().unwrap().1.id, report.id);
}
