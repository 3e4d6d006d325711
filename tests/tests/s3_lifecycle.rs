//! The bucket's own expiry, on a gateway whose day lasts a second: what `bk check` predicts happens, and the last archives stay for ever.

use bk_core::retention::{Keep, Limit};
use bk_core::sink::{Filter, Sink};
use bk_tests::engine::Site;
use bk_tests::fakes::FakeSource;
use bk_tests::object_store::{Kind, Server, Versions};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const KEEP: Keep = Keep {
    last: Limit::Count(3),
    within: None,
    hourly: Limit::Count(0),
    daily: Limit::Count(8),
    weekly: Limit::Count(2),
    monthly: Limit::Count(0),
    yearly: Limit::Count(0),
    floor: 0,
};

/// Days for which nobody backs up.
const SILENT_DAYS: i64 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn rules_expire_what_was_predicted_and_the_last_archives_stay() {
    let Some(server) = Server::start(Kind::Radosgw, &["rgw_lc_debug_interval = 1"]) else {
        return;
    };
    let bucket = server.bucket(Versions::Enabled).await;
    // Somebody else's rule, which must survive ours.
    let theirs = aws_sdk_s3::types::LifecycleRule::builder()
        .id("theirs")
        .status(aws_sdk_s3::types::ExpirationStatus::Enabled)
        .filter(
            aws_sdk_s3::types::LifecycleRuleFilter::builder()
                .prefix("logs/")
                .build(),
        )
        .expiration(
            aws_sdk_s3::types::LifecycleExpiration::builder()
                .days(100_000)
                .build(),
        )
        .build()
        .unwrap();
    put_rules(&bucket, vec![theirs.clone()]).await;
    let settings = serde_json::json!({ "lifecycle": "write" });
    let begun = Instant::now();
    for day in 1..=12 {
        let report = Site::default()
            .source("fake", FakeSource::small(1, 1))
            .sink("s3", bucket.sink_with(settings.clone()))
            .keep(KEEP)
            .at(&format!("2026-08-{day:02}T03:00:00Z"))
            .backup()
            .await;
        assert!(report.causes.is_empty(), "day {day}: {:?}", report.causes);
        assert!(
            !report.sinks[0].pruned.iter().any(|l| l.contains("not set")),
            "{:?}",
            report.sinks[0].pruned
        );
    }
    println!("12 backups took {:?}", begun.elapsed());
    let site = Site::default().at("2026-08-12T04:00:00Z");
    let cx = site.context();
    let sink = bucket.sink_with(settings);
    let outlook = sink.outlook(&cx, None).await.unwrap();
    println!("{:#?}", outlook.lines);
    let names = async || -> BTreeSet<String> {
        let listed = sink.list(&cx, &Filter::default()).await.unwrap();
        listed.into_iter().map(|s| s.name).collect()
    };
    let before = names().await;
    let predicted: BTreeSet<String> = outlook
        .lines
        .iter()
        .filter_map(|line| line.split_once(" version "))
        .map(|(name, _)| name.to_owned())
        .collect();
    let last: BTreeSet<String> = (10..=12)
        .map(|day| format!("backup.2026-08-{day}.tar.xz"))
        .collect();
    let stays: BTreeSet<String> = before.difference(&predicted).cloned().collect();
    assert_eq!(stays, last, "only the last three are never let go");
    assert!(predicted.len() == 5, "{predicted:?}");
    // Everything else goes, and for so many days nobody backs up.
    let silent = Instant::now();
    while silent.elapsed() < Duration::from_secs(SILENT_DAYS as u64) || names().await != last {
        assert!(
            silent.elapsed() < Duration::from_secs(240),
            "still there: {:?}",
            names().await
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!("after {:?} only the last three are there", silent.elapsed());
    let rules = rules(&bucket).await;
    assert!(rules.contains("theirs"), "{rules:?}");
    for ours in [
        "bk:main:daily",
        "bk:main:weekly",
        "bk:main:tidy",
        "bk:main:notes",
    ] {
        assert!(rules.contains(ours), "{rules:?}");
    }
    pins_and_holds_free_what_was_tagged(&bucket).await;
    // A rule that would take the newest whole archive is told.
    let newest = sink
        .list(&cx, &Filter::default())
        .await
        .unwrap()
        .pop()
        .unwrap();
    let greedy = aws_sdk_s3::types::LifecycleRule::builder()
        .id("greedy")
        .status(aws_sdk_s3::types::ExpirationStatus::Enabled)
        .filter(
            aws_sdk_s3::types::LifecycleRuleFilter::builder()
                .prefix("main/")
                .build(),
        )
        .expiration(
            aws_sdk_s3::types::LifecycleExpiration::builder()
                .days(50_000)
                .build(),
        )
        .build()
        .unwrap();
    put_rules(&bucket, vec![theirs, greedy]).await;
    let outlook = sink.outlook(&cx, Some(&newest)).await.unwrap();
    assert!(
        outlook.warnings.iter().any(|w| w.contains("greedy")),
        "{outlook:?}"
    );
}

/// Tags of all versions, by name.
async fn tagged(bucket: &bk_tests::object_store::Bucket, site: &str) -> BTreeSet<String> {
    let mut tagged = BTreeSet::new();
    for (key, version, _) in bucket.everything().await {
        if !key.starts_with(&format!("{site}/backup")) || key.ends_with(".sha256") {
            continue;
        }
        let tags = bucket.client.get_object_tagging().bucket(&bucket.name);
        let tags = tags.key(&key).version_id(&version).send().await.unwrap();
        if tags.tag_set().iter().any(|tag| tag.key() == "bk-tier") {
            tagged.insert(key.rsplit('/').next().unwrap().to_owned());
        }
    }
    tagged
}

/// In a site of its own, whose backups are rare: what a person pins, what a hold stops, and what no rule lets go any more has no tag.
async fn pins_and_holds_free_what_was_tagged(bucket: &bk_tests::object_store::Bucket) {
    let settings = serde_json::json!({ "lifecycle": "write" });
    let site = |day: u32, keep: Option<Keep>| {
        let mut site = Site::default()
            .source("fake", FakeSource::small(4, 4))
            .sink("s3", bucket.sink_with(settings.clone()))
            .at(&format!("2026-{:02}-01T03:00:00Z", day));
        site.archive.site = "rare".into();
        site.sinks[0].policy.keep = keep;
        site
    };
    for month in 1..=7 {
        let report = site(month, Some(KEEP)).backup().await;
        assert!(report.causes.is_empty(), "{:?}", report.causes);
    }
    // Monthly backups under `daily = 8`: seven days of eight, which lie months apart.
    let names = tagged(bucket, "rare").await;
    assert_eq!(names.len(), 4, "{names:?}");
    let cx = site(7, None).context();
    let sink = bucket.sink_with(settings.clone());
    let outlook = sink.outlook(&cx, None).await.unwrap();
    println!("{:#?}", outlook.lines);
    let first = sink.list(&cx, &Filter::default()).await.unwrap().remove(0);
    assert!(names.contains(&first.name));
    sink.never_expire(&cx, &first).await.unwrap();
    assert_eq!(tagged(bucket, "rare").await.len(), 3);
    // A hold: the newest has lost most of what was there.
    let mut small = site(8, Some(KEEP));
    small.sources.clear();
    let small = small.source("fake", FakeSource::small(1, 1));
    let report = small.backup().await;
    assert!(
        report.sinks[0].pruned.iter().any(|l| l.contains("holds")),
        "{:?}",
        report.sinks[0].pruned
    );
    assert_eq!(tagged(bucket, "rare").await, BTreeSet::new());
    let rules = rules(bucket).await;
    assert!(!rules.contains("bk:rare:daily"), "{rules:?}");
}

async fn put_rules(
    bucket: &bk_tests::object_store::Bucket,
    rules: Vec<aws_sdk_s3::types::LifecycleRule>,
) {
    let configuration = aws_sdk_s3::types::BucketLifecycleConfiguration::builder()
        .set_rules(Some(rules))
        .build()
        .unwrap();
    bucket
        .client
        .put_bucket_lifecycle_configuration()
        .bucket(&bucket.name)
        .lifecycle_configuration(configuration)
        .send()
        .await
        .unwrap();
}

async fn rules(bucket: &bk_tests::object_store::Bucket) -> BTreeSet<String> {
    let rules = bucket
        .client
        .get_bucket_lifecycle_configuration()
        .bucket(&bucket.name)
        .send()
        .await
        .unwrap();
    rules
        .rules()
        .iter()
        .filter_map(|rule| rule.id())
        .map(str::to_owned)
        .collect()
}
