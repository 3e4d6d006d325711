//! What no server at hand keeps as it is: documents of bytes that others refuse or alter, instants that are kept or not, on a server of our own
//! that stores what it gets and measures every message.

use bk_core::report::RestoreReport;
use bk_sources::mongodb::bson::{self, Writing, kind};
use bk_tests::engine::{Site, open};
use bk_tests::fakes::MemorySink;
use bk_tests::mongo::source;
use bk_tests::mongo_fake::{Fake, Instants, Mishap};
use serde_json::json;

fn site(fake: &Fake, memory: &MemorySink, more: serde_json::Value) -> Site {
    let mut site = Site::default().sink("memory", memory.clone());
    site.sources.push(bk_core::config::SourceInstance {
        name: "mongodb".into(),
        plugin: "mongodb".into(),
        after: Vec::new(),
        hooks: bk_core::hooks::Hooks::default(),
        source: source(&fake.uri(), more),
    });
    site
}

async fn backup(
    fake: &Fake,
    memory: &MemorySink,
    more: serde_json::Value,
) -> bk_core::report::BackupReport {
    let report = site(fake, memory, more).backup().await;
    assert!(
        report.complete && report.causes.is_empty(),
        "{:?} {:?}",
        report.causes,
        report.sources
    );
    report
}

async fn restore(fake: &Fake, memory: &MemorySink) -> RestoreReport {
    site(fake, memory, json!({}))
        .restore(Default::default())
        .await
        .unwrap()
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as i32 + 1).to_le_bytes()[..], bytes, &[0]].concat()
}

/// Documents that only the bytes themselves can carry.
fn odd() -> Vec<Vec<u8>> {
    vec![
        Writing::new()
            .int("_id", 1)
            .int("twice", 1)
            .int("twice", 2)
            .document("in", &Writing::new().int("a", 1).int("a", 1).bytes())
            .bytes(),
        Writing::new()
            .int("_id", 2)
            .value(kind::STRING, b"invalid \xff", &string(b"\xfe\xff"))
            .bytes(),
        Writing::new()
            .int("_id", 3)
            .value(0x06, b"undefined", &[])
            .value(0x0e, b"symbol", &string(b"sym"))
            .bytes(),
        Writing::new()
            .int("_id", 4)
            .value(kind::BOOLEAN, b"odd", &[7])
            .bytes(),
        Writing::new()
            .int("_id", 5)
            .value(0x0c, b"pointer", &[&string(b"db.c")[..], &[9; 12]].concat())
            .value(0x0f, b"scoped", &{
                let (code, scope) = (string(b"x"), Writing::new().int("y", 1).bytes());
                [
                    &((4 + code.len() + scope.len()) as i32).to_le_bytes()[..],
                    &code,
                    &scope,
                ]
                .concat()
            })
            .value(
                kind::BINARY,
                b"old",
                &[
                    &9_i32.to_le_bytes()[..],
                    &[2],
                    &5_i32.to_le_bytes(),
                    b"inner",
                ]
                .concat(),
            )
            .bytes(),
        Writing::new().int("a", 1).int("_id", 6).bytes(),
        Writing::new()
            .value(0x11, b"_id", &0_u64.to_le_bytes())
            .timestamp("empty", 0)
            .bytes(),
        Writing::new()
            .value(
                kind::ARRAY,
                b"numbers",
                &Writing::new().int("7", 1).int("x", 2).bytes(),
            )
            .int("_id", 8)
            .bytes(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_travel_as_the_bytes_that_they_are_and_every_message_is_within_the_limits() {
    let fake = Fake::start(Instants::Kept).await;
    fake.put("app", "odd", &odd());
    let nameless: Vec<Vec<u8>> = (0..3).map(|n| Writing::new().int("n", n).bytes()).collect();
    fake.put("app", "without ids", &nameless);
    fake.make(
        "app",
        "capped",
        Writing::new()
            .flag("capped", true)
            .long("size", 100_000)
            .long("max", 50)
            .bytes(),
    );
    let capped: Vec<Vec<u8>> = (0..70)
        .map(|n| Writing::new().int("_id", 1000 - n).bytes())
        .collect();
    fake.put("app", "capped", &capped);
    fake.make(
        "app",
        "options",
        Writing::new()
            .int("twice", 1)
            .int("twice", 2)
            .value(kind::DOUBLE, b"d", &1.0_f64.to_le_bytes())
            .bytes(),
    );
    let wide: Vec<Vec<u8>> = (0..40)
        .map(|n| {
            Writing::new()
                .int("_id", n)
                .text("pad", &"w".repeat(900_000))
                .bytes()
        })
        .collect();
    fake.put("app", "wide", &wide);
    let largest = 16 << 20;
    let empty = Writing::new().int("_id", 1).text("pad", "").bytes().len();
    let giant = Writing::new()
        .int("_id", 1)
        .text("pad", &"g".repeat(largest - empty))
        .bytes();
    assert_eq!(giant.len(), largest);
    fake.put("app", "giant", std::slice::from_ref(&giant));
    let definitions: Vec<_> = ["odd", "capped", "options"]
        .iter()
        .map(|name| fake.definition("app", name))
        .collect();

    let memory = MemorySink::default();
    let report = backup(&fake, &memory, json!({})).await;
    assert_eq!(report.sources[0].warnings, Vec::<String>::new());
    fake.wipe();
    let restored = restore(&fake, &memory).await;
    assert!(restored.causes.is_empty(), "{:?}", restored.causes);
    let sorted = |mut documents: Vec<Vec<u8>>| {
        documents.sort();
        documents
    };
    assert_eq!(sorted(fake.documents("app", "odd")), sorted(odd()));
    assert_eq!(
        sorted(fake.documents("app", "without ids")),
        sorted(nameless)
    );
    assert_eq!(
        fake.documents("app", "capped"),
        capped[20..],
        "the order counts"
    );
    assert_eq!(sorted(fake.documents("app", "wide")), sorted(wide));
    assert_eq!(fake.documents("app", "giant"), [giant]);
    let now: Vec<_> = ["odd", "capped", "options"]
        .iter()
        .map(|name| fake.definition("app", name))
        .collect();
    assert_eq!(now, definitions);
    let (seen, wrong) = fake.seen();
    let largest = seen.iter().map(|(_, bytes)| bytes).max().unwrap();
    println!("{} commands, the largest of {largest} bytes", seen.len());
    assert_eq!(wrong, Vec::<String>::new());
    let batches = seen
        .iter()
        .filter(|(verb, bytes)| verb == "insert" && *bytes > (8 << 20))
        .count();
    assert_eq!(batches, 1, "only the giant is larger than a batch may be");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_one_where_the_server_keeps_its_word_and_is_not_called_one_elsewhere() {
    for instants in [
        Instants::Kept,
        Instants::Other,
        Instants::Any,
        Instants::None,
    ] {
        let fake = Fake::start(instants).await;
        for name in ["a", "b", "c"] {
            fake.put("app", name, &[Writing::new().int("_id", 0).bytes()]);
        }
        // Somebody writes into all of them whenever one is read.
        let mut n = 0;
        fake.on_find(move |writes| {
            n += 1;
            for name in ["a", "b", "c"] {
                writes.push((
                    "app".into(),
                    name.into(),
                    Writing::new().int("_id", n).bytes(),
                ));
            }
        });
        let memory = MemorySink::default();
        let report = backup(&fake, &memory, json!({ "parallel": 1 })).await;
        let warned = report.sources[0].warnings.join(" ");
        let target = Fake::start(Instants::None).await;
        let restored = restore(&target, &memory).await;
        assert!(restored.causes.is_empty(), "{:?}", restored.causes);
        let counts: Vec<usize> = ["a", "b", "c"]
            .iter()
            .map(|name| target.documents("app", name).len())
            .collect();
        let sink: std::sync::Arc<dyn bk_core::sink::Sink> = std::sync::Arc::new(memory.clone());
        let opened = open(&site(&fake, &memory, json!({})), &sink, &memory.names()[0])
            .await
            .unwrap();
        let consistency = opened.manifest.instances[0].facts.notes[0]
            .rsplit(" ")
            .next()
            .unwrap()
            .to_owned();
        println!("{instants:?}: {consistency} {counts:?} {warned}");
        let same = counts[0] == counts[1] && counts[1] == counts[2];
        let called = consistency == "snapshot";
        assert_eq!(called, instants == Instants::Kept, "{instants:?}");
        assert!(!called || same, "{counts:?}");
        let lied = matches!(instants, Instants::Other | Instants::Any);
        assert_eq!(
            warned.contains("its snapshots are not used"),
            lied,
            "{instants:?}: {warned}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_document_that_a_server_refuses_is_found_and_named() {
    let fake = Fake::start(Instants::None).await;
    let documents: Vec<Vec<u8>> = (0..1000)
        .map(|n| {
            Writing::new()
                .int("_id", n)
                .text("text", &format!("number {n} of them"))
                .bytes()
        })
        .collect();
    fake.put("app", "many", &documents);
    let memory = MemorySink::default();
    backup(&fake, &memory, json!({})).await;
    let target = Fake::start(Instants::None).await;
    target.refuse(b"number 637 of");
    let restored = restore(&target, &memory).await;
    let said = format!("{:?}", restored.causes);
    assert!(
        said.contains("1 documents were refused") && said.contains("637"),
        "{said}"
    );
    assert_eq!(target.documents("app", "many").len(), 999);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_while_a_collection_is_read_fails_it_by_name_and_the_rest_goes_on() {
    for mishap in [
        Mishap::Dropped,
        Mishap::Indexed,
        Mishap::KilledCursor,
        Mishap::HangUp,
    ] {
        let fake = Fake::start(Instants::None).await;
        let many: Vec<Vec<u8>> = (0..500)
            .map(|n| {
                Writing::new()
                    .int("_id", n)
                    .text("text", &"m".repeat(50_000))
                    .bytes()
            })
            .collect();
        fake.put("app", "many", &many);
        fake.put("app", "few", &[Writing::new().int("_id", 1).bytes()]);
        fake.let_go_wrong(mishap);
        let memory = MemorySink::default();
        let report = site(&fake, &memory, json!({})).backup().await;
        assert!(!report.complete, "{mishap:?}");
        let failed = &report.sources[0].failed;
        println!("{mishap:?}: {failed:?}");
        assert_eq!(
            failed.len(),
            1,
            "{mishap:?}: {failed:?} {:?}",
            report.causes
        );
        assert_eq!(
            (failed[0].group.as_str(), failed[0].name.as_str()),
            ("app", "many")
        );
        assert!(
            failed[0].why.contains("app.many"),
            "{mishap:?}: {}",
            failed[0].why
        );
        // What is whole in it comes back, and nothing takes it for more.
        let refused = site(&fake, &memory, json!({}))
            .restore(Default::default())
            .await;
        assert!(
            refused.is_err(),
            "{mishap:?}: a partial archive was restored unasked"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_a_batch_loses_and_doubles_nothing() {
    let fake = Fake::start(Instants::None).await;
    let documents: Vec<Vec<u8>> = (0..3000)
        .map(|n| Writing::new().int("_id", n).text("text", "lost?").bytes())
        .collect();
    fake.put("app", "many", &documents);
    let memory = MemorySink::default();
    backup(&fake, &memory, json!({})).await;
    let target = Fake::start(Instants::None).await;
    target.lose_answers(3);
    let restored = restore(&target, &memory).await;
    assert!(restored.causes.is_empty(), "{:?}", restored.causes);
    let mut found = target.documents("app", "many");
    found.sort();
    let mut expected = documents;
    expected.sort();
    assert_eq!(found, expected);
}

/// An entry of a log.
fn entry(at: u64, op: &str, ns: &str, o: &[u8], o2: Option<&[u8]>) -> Vec<u8> {
    let entry = Writing::new()
        .timestamp("ts", at)
        .text("op", op)
        .text("ns", ns)
        .document("o", o);
    match o2 {
        Some(o2) => entry.document("o2", o2).bytes(),
        None => entry.bytes(),
    }
}

/// Documents that need more than one answer, so that something can happen between two.
fn many() -> Vec<Vec<u8>> {
    (0..500)
        .map(|n| {
            Writing::new()
                .int("_id", n)
                .text("text", &"m".repeat(50_000))
                .bytes()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_says_of_the_time_of_reading_comes_back_and_a_log_that_forgot_it_fails() {
    for forgets in [false, true] {
        let fake = Fake::start(Instants::Any).await;
        fake.put("app", "many", &many());
        let id = |n| Writing::new().int("_id", n).bytes();
        let begin = entry(
            60 << 32,
            "n",
            "",
            &Writing::new().text("msg", "begin").bytes(),
            None,
        );
        fake.put("local", "oplog.rs", &[begin]);
        let mut once = Some(());
        let (new, changed) = (
            Writing::new().int("_id", 900).text("v", "new").bytes(),
            Writing::new().int("_id", 7).text("v", "changed").bytes(),
        );
        let part = Writing::new()
            .documents(
                "applyOps",
                [&Writing::new()
                    .text("op", "i")
                    .text("ns", "app.many")
                    .document("o", &Writing::new().int("_id", 901).bytes())
                    .bytes()[..]],
            )
            .bytes();
        let entries = [
            entry(61 << 32, "i", "app.many", &new, None),
            entry(61 << 32 | 1, "u", "app.many", &changed, Some(&id(7))),
            entry(61 << 32 | 2, "d", "app.many", &id(8), None),
            entry(61 << 32 | 3, "i", "other.many", &id(1), None),
            entry(61 << 32 | 4, "c", "admin.$cmd", &part, None),
        ];
        fake.on_find(move |writes| {
            if once.take().is_some() {
                let into_log = |e: &Vec<u8>| ("local".into(), "oplog.rs".into(), e.clone());
                writes.extend(entries.iter().map(into_log));
            }
        });
        if forgets {
            fake.let_go_wrong(Mishap::LogForgets);
        }
        let memory = MemorySink::default();
        let how = json!({ "consistency": "oplog" });
        let report = site(&fake, &memory, how).backup().await;
        println!(
            "forgets {forgets}: {:?} {:?}",
            report.causes, report.sources[0].failed
        );
        assert_eq!(report.complete, !forgets);
        if forgets {
            let said = format!("{:?}", report.causes);
            assert!(said.contains("forgot its oldest entries"), "{said}");
            continue;
        }
        let target = Fake::start(Instants::None).await;
        let restored = restore(&target, &memory).await;
        assert!(restored.causes.is_empty(), "{:?}", restored.causes);
        let mut expected = many();
        expected.remove(8);
        expected[7] = changed;
        expected.extend([new, id(901)]);
        expected.sort();
        let mut found = target.documents("app", "many");
        found.sort();
        let differ = |a: &[Vec<u8>], b: &[Vec<u8>]| -> Vec<i64> {
            let only = a.iter().filter(|d| !b.contains(d));
            only.map(|d| bson::find(d, b"_id").unwrap().integer().unwrap())
                .collect()
        };
        let (missing, extra) = (differ(&expected, &found), differ(&found, &expected));
        assert_eq!(
            (missing, extra, found.len()),
            (vec![], vec![], expected.len())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_series_comes_back_by_its_buckets() {
    let fake = Fake::start(Instants::None).await;
    let options = Writing::new()
        .document(
            "timeseries",
            &Writing::new()
                .text("timeField", "t")
                .text("metaField", "m")
                .bytes(),
        )
        .bytes();
    let buckets: Vec<Vec<u8>> = (0..20)
        .map(|n| {
            Writing::new()
                .int("_id", n)
                .text("data", "a bucket")
                .bytes()
        })
        .collect();
    fake.make("app", "weather", options);
    fake.put("app", "system.buckets.weather", &buckets);
    let definition = fake.definition("app", "weather").0;
    let memory = MemorySink::default();
    backup(&fake, &memory, json!({})).await;
    let target = Fake::start(Instants::None).await;
    for _ in 0..2 {
        let restored = restore(&target, &memory).await;
        assert!(restored.causes.is_empty(), "{:?}", restored.causes);
        assert_eq!(target.definition("app", "weather").0, definition);
        let mut found = target.documents("app", "system.buckets.weather");
        found.sort();
        assert_eq!(found, buckets);
        assert_eq!(target.documents("app", "weather"), Vec::<Vec<u8>>::new());
    }
    let target = Fake::start(Instants::None).await;
    target.put("app", "weather", &[Writing::new().int("_id", 1).bytes()]);
    target.lack(&["timeseries"]);
    let refused = restore(&target, &memory).await;
    let said = format!("{:?}", refused.causes);
    println!("{said}");
    assert!(
        said.contains("app.weather") && said.contains("nothing was changed"),
        "{said}"
    );
    assert_eq!(
        target.documents("app", "weather").len(),
        1,
        "it was dropped all the same"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_option_that_a_server_has_not_is_left_out_with_a_warning() {
    let fake = Fake::start(Instants::None).await;
    let capped = || Writing::new().flag("capped", true).long("size", 1000);
    fake.make(
        "app",
        "queue",
        capped()
            .document("collation", &Writing::new().text("locale", "de").bytes())
            .bytes(),
    );
    let documents: Vec<Vec<u8>> = (0..9)
        .map(|n| Writing::new().int("_id", n).bytes())
        .collect();
    fake.put("app", "queue", &documents);
    let memory = MemorySink::default();
    backup(&fake, &memory, json!({})).await;
    let target = Fake::start(Instants::None).await;
    target.lack(&["collation"]);
    let restored = restore(&target, &memory).await;
    assert!(restored.causes.is_empty(), "{:?}", restored.causes);
    let warned = format!("{restored:?}");
    assert!(
        warned.contains("`app.queue` comes back without `collation`"),
        "{warned}"
    );
    assert_eq!(target.definition("app", "queue").0, capped().bytes());
    assert_eq!(target.documents("app", "queue"), documents);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_roles_come_back_and_the_account_in_use_stays_as_it_is() {
    let user = |name: &str, password: &str| {
        Writing::new()
            .text("_id", &format!("admin.{name}"))
            .text("user", name)
            .text("db", "admin")
            .document("credentials", &Writing::new().text("key", password).bytes())
            .bytes()
    };
    let role = |name: &str| {
        Writing::new()
            .text("_id", &format!("admin.{name}"))
            .text("role", name)
            .bytes()
    };
    let fake = Fake::start(Instants::None).await;
    fake.put("app", "a", &[Writing::new().int("_id", 1).bytes()]);
    fake.put(
        "admin",
        "system.users",
        &[user("keeper", "old"), user("teacher", "hers")],
    );
    fake.put("admin", "system.roles", &[role("reader")]);
    let memory = MemorySink::default();
    backup(&fake, &memory, json!({})).await;
    let target = Fake::start(Instants::None).await;
    target.put(
        "admin",
        "system.users",
        &[user("keeper", "new"), user("stranger", "his")],
    );
    let restored = restore(&target, &memory).await;
    assert!(restored.causes.is_empty(), "{:?}", restored.causes);
    let mut users = target.documents("admin", "system.users");
    users.sort();
    let mut expected = vec![user("keeper", "new"), user("teacher", "hers")];
    expected.sort();
    assert_eq!(users, expected);
    assert_eq!(target.documents("admin", "system.roles"), [role("reader")]);
    assert_eq!(
        target.documents("admin", "bk_restored_users"),
        Vec::<Vec<u8>>::new()
    );
}
