//! MongoDB: what is in a server comes back equal, or is named.

use async_trait::async_trait;
use bk_core::archive::read_at::FileReadAt;
use bk_core::archive::tail::Opened;
use bk_core::source::Source;
use bk_sources::mongodb::bson::{Writing, kind};
use bk_tests::binary::Home;
use bk_tests::engine::raw_sums;
use bk_tests::mongo::{Server, difference};
use bk_tests::source_suite::{self, Subject};
use bk_tests::{long, seed};
use mongodb::Client;
use mongodb::bson::{Bson, Document, doc};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn settings(server: &Server, more: &str) -> String {
    format!(
        "format = 1\nplugins = [\"mongodb\", \"local\"]\n{}[sink.local]\npath = \"out\"\n",
        server.source_toml("mongodb", more)
    )
}

async fn run(client: &Client, database: &str, command: Document) -> Document {
    client
        .database(database)
        .run_command(command)
        .await
        .unwrap()
}

/// Inserts documents as they are.
async fn insert_raw(client: &Client, database: &str, collection: &str, documents: &[Vec<u8>]) {
    for some in documents.chunks(500) {
        let command = Writing::new()
            .text("insert", collection)
            .documents("documents", some.iter().map(Vec::as_slice))
            .raw()
            .unwrap();
        let answer = client
            .database(database)
            .run_raw_command(command)
            .await
            .unwrap();
        assert!(!answer.contains_key("writeErrors"), "{answer}");
    }
}

/// One document of every type, and of what is odd in them.
fn odd_documents() -> Vec<Vec<u8>> {
    let decimal = |high: u64, low: u64| [low.to_le_bytes(), high.to_le_bytes()].concat();
    let binary = |subtype: u8, bytes: &[u8]| {
        [&(bytes.len() as i32).to_le_bytes()[..], &[subtype], bytes].concat()
    };
    let text = |text: &str| {
        [
            &(text.len() as i32 + 1).to_le_bytes()[..],
            text.as_bytes(),
            &[0],
        ]
        .concat()
    };
    let mut documents = vec![
        Writing::new()
            .int("_id", 1)
            .value(kind::DOUBLE, b"nan", &f64::NAN.to_le_bytes())
            .value(kind::DOUBLE, b"minus", &(-0.0_f64).to_le_bytes())
            .value(kind::DOUBLE, b"inf", &f64::INFINITY.to_le_bytes())
            .value(0x13, b"dinf", &decimal(0x7800_0000_0000_0000, 0))
            .value(0x13, b"dnan", &decimal(0x7c00_0000_0000_0000, 0))
            .value(0x13, b"dminus", &decimal(0xb040_0000_0000_0000, 0))
            .value(0x13, b"dexp", &decimal(0x2ffe_0000_0000_0000, 10))
            .long("long", i64::MIN)
            .bytes(),
        Writing::new()
            .text("_id", "binaries")
            .value(kind::BINARY, b"s0", &binary(0, b"\0\xff"))
            .value(kind::BINARY, b"s3", &binary(3, &[1; 16]))
            .value(kind::BINARY, b"s4", &binary(4, &[2; 16]))
            .value(kind::BINARY, b"s5", &binary(5, &[3; 16]))
            .value(kind::BINARY, b"s128", &binary(128, b"own"))
            .bytes(),
        Writing::new()
            .value(0x07, b"_id", &[7; 12])
            .value(0x0b, b"regex", b"a.*\0imx\0")
            .value(0x0d, b"code", &text("function() {}"))
            .value(0xff, b"min", &[])
            .value(0x7f, b"max", &[])
            .value(kind::NULL, b"null", &[])
            .timestamp("ts", 5 << 32 | 9)
            .value(0x09, b"date", &(-1_i64).to_le_bytes())
            .bytes(),
        Writing::new()
            .document("_id", &Writing::new().int("b", 1).int("a", 2).bytes())
            .text("", "an empty name")
            .int("a.b", 1)
            .document("in", &Writing::new().int("$gt", 3).text("", "").bytes())
            .bytes(),
        Writing::new()
            .value(kind::NULL, b"_id", &[])
            .text("text", "a\0b")
            .bytes(),
        Writing::new()
            .value(kind::BOOLEAN, b"_id", &[1])
            .text("emoji", "😀\u{2028}")
            .bytes(),
        Writing::new()
            .value(0x09, b"_id", &1_000_i64.to_le_bytes())
            .bytes(),
        Writing::new()
            .long("_id", 1 << 40)
            .value(kind::ARRAY, b"empty", &Writing::new().bytes())
            .bytes(),
        Writing::new()
            .value(kind::DOUBLE, b"_id", &1.5_f64.to_le_bytes())
            .bytes(),
        Writing::new()
            .int("_id", 2)
            .timestamp("empty", 0)
            .timestamp("full", 1)
            .bytes(),
    ];
    let deep = (0..90).fold(Writing::new().bytes(), |inner, _| {
        Writing::new().document("d", &inner).bytes()
    });
    documents.push(Writing::new().int("_id", 3).document("deep", &deep).bytes());
    documents
}

/// The largest that the server takes.
fn giant(id: i32) -> Vec<u8> {
    const LARGEST: usize = 16 << 20;
    let empty = Writing::new().int("_id", id).text("pad", "").bytes().len();
    let pad = "g".repeat(LARGEST - empty);
    let giant = Writing::new().int("_id", id).text("pad", &pad).bytes();
    assert_eq!(giant.len(), LARGEST);
    giant
}

async fn hard_cases(client: &Client) {
    insert_raw(client, "hard", "types", &odd_documents()).await;
    for id in 0..2 {
        insert_raw(client, "hard", "giants", &[giant(id)]).await;
    }
    run(client, "hard", doc! {"create": "empty"}).await;
    for name in [
        "new\nline",
        "sla/sh",
        "per%cent",
        "pl+us",
        "sp ace",
        "emoji😀",
        "back\\slash",
        "dots.a.b",
        "colon:s",
    ] {
        run(
            client,
            "hard",
            doc! {"insert": name, "documents": [{"_id": 1, "name": name}]},
        )
        .await;
    }
    let long_name = "%".repeat(80) + &"n".repeat(120);
    run(
        client,
        "hard",
        doc! {"insert": &long_name, "documents": [{"_id": 1}]},
    )
    .await;
    run(
        client,
        "hard",
        doc! {"create": "capped", "capped": true, "size": 65536, "max": 50},
    )
    .await;
    for n in 0..70 {
        run(
            client,
            "hard",
            doc! {"insert": "capped", "documents": [{"_id": 1000 - n, "n": n}]},
        )
        .await;
    }
    run(
        client,
        "hard",
        doc! {"create": "french", "collation": {"locale": "fr", "strength": 1}},
    )
    .await;
    run(
        client,
        "hard",
        doc! {"insert": "french", "documents": [{"_id": "é"}, {"_id": "f"}]},
    )
    .await;
    run(client, "hard", doc! {"create": "valid", "validator": {"x": {"$gt": 0}}, "validationLevel": "moderate", "validationAction": "error"}).await;
    run(client, "hard", doc! {"insert": "valid", "documents": [{"_id": 1, "x": -1}], "bypassDocumentValidation": true}).await;
    run(client, "hard", doc! {"create": "view", "viewOn": "types", "pipeline": [{"$match": {"x": {"$lt": 10}}}, {"$sort": {"v": 1, "_id": -1}}]}).await;
    run(
        client,
        "hard",
        doc! {"create": "a view on a view", "viewOn": "view", "pipeline": []},
    )
    .await;
    let documents: Vec<Vec<u8>> = (0..300)
        .map(|n| doc! {"_id": n, "a": n % 7, "b": n, "at": Bson::DateTime(mongodb::bson::DateTime::from_millis(4_000_000_000_000)), "loc": [n % 90, n % 90]}.to_vec().unwrap())
        .collect();
    insert_raw(client, "indexed", "all", &documents).await;
    run(client, "indexed", doc! {"createIndexes": "all", "indexes": [
        {"key": {"a": 1, "b": -1}, "name": "both"},
        {"key": {"b": 1}, "name": "unique one", "unique": true, "partialFilterExpression": {"a": {"$gt": 3}}},
        {"key": {"a": 1}, "name": "sparse", "sparse": true},
        {"key": {"at": 1}, "name": "expires", "expireAfterSeconds": 3600},
        {"key": {"loc": "2dsphere"}, "name": "sphere"},
        {"key": {"$**": 1}, "name": "wild", "wildcardProjection": {"a": 0}},
        {"key": {"b": 1, "a": 1}, "name": "collated", "collation": {"locale": "de"}},
        {"key": {"a": -1}, "name": "hidden", "hidden": true},
    ]}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hard_cases_come_back_equal() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let client = server.client().await;
    hard_cases(&client).await;
    let home = Home::new(&settings(&server, ""));
    let checked = home.bk(&["check"]).ended(0);
    println!("{}{}", checked.stdout, checked.stderr);
    let before = server.contents().await;
    let backed_up = home.bk(&["backup"]).ended(0);
    println!("{}", backed_up.stderr);
    assert_eq!(
        difference(&before, &server.contents().await),
        None,
        "a backup changed something"
    );
    for way in ["into what is there", "into nothing"] {
        if way == "into nothing" {
            server.wipe().await;
        }
        let restored = home.bk(&["restore", "--yes"]).ended(0);
        assert_eq!(
            difference(&before, &server.contents().await),
            None,
            "{way}: {}",
            restored.stderr
        );
    }
    // Under another name, one database alone, and one collation of it.
    home.bk(&[
        "restore",
        "--yes",
        "--only",
        "mongodb/indexed",
        "--into",
        "mongodb/indexed=copy",
    ])
    .ended(0);
    let now = server.contents().await;
    assert_eq!(now["copy.all"], before["indexed.all"]);
    home.bk(&["verify"]).ended(0);
}

/// A small server for the suite of all sources.
struct Small {
    server: Server,
    more: serde_json::Value,
}

#[async_trait]
impl Subject for Small {
    fn source(&self) -> Arc<dyn Source> {
        self.server.source(self.more.clone())
    }

    async fn seed(&self) {
        let client = self.server.client().await;
        for (database, collections) in [("one", 3), ("two", 2)] {
            for c in 0..collections {
                let name = format!("c{c}");
                let documents: Vec<Vec<u8>> = (0..200)
                    .map(|n| {
                        doc! {"_id": n, "text": format!("{database} {name} {n}")}
                            .to_vec()
                            .unwrap()
                    })
                    .collect();
                insert_raw(&client, database, &name, &documents).await;
            }
        }
    }

    async fn wipe(&self) {
        self.server.wipe().await;
    }

    async fn add_stranger(&self, group: &str) {
        let client = self.server.client().await;
        run(
            &client,
            group,
            doc! {"insert": "stranger", "documents": [{"_id": 1}]},
        )
        .await;
    }

    async fn digest(&self) -> BTreeMap<(String, String), String> {
        let contents = self.server.contents().await;
        contents
            .into_iter()
            .filter_map(|(name, contents)| {
                let (group, unit) = name.split_once('.')?;
                Some(((group.to_owned(), unit.to_owned()), format!("{contents:?}")))
            })
            .collect()
    }

    async fn die_midway(&self) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_passes_the_suite() {
    for more in [
        serde_json::json!({}),
        serde_json::json!({ "order": "natural", "parallel": 1, "consistency": "none" }),
        serde_json::json!({ "consistency": "transaction" }),
    ] {
        let Some(server) = Server::start(&[]).await else {
            return;
        };
        let small = Small { server, more };
        let mut failed = Vec::new();
        for (name, check) in source_suite::CHECKS {
            if let Err(why) = check(&small).await {
                failed.push((*name, why));
            }
        }
        assert_eq!(failed, [], "{}", small.more);
    }
}

const ACCOUNTS: i32 = 200;
const BANKS: i32 = 4;

/// Accounts whose sum never changes, and writers that move amounts between them in transactions.
struct Bank {
    stop: Arc<AtomicBool>,
    moved: Arc<AtomicU64>,
    writers: Vec<tokio::task::JoinHandle<()>>,
}

impl Bank {
    async fn make(client: &Client) {
        for bank in 0..BANKS {
            let documents: Vec<Vec<u8>> = (0..ACCOUNTS)
                .map(|n| {
                    doc! {"_id": n, "amount": 1000, "pad": "p".repeat(400)}
                        .to_vec()
                        .unwrap()
                })
                .collect();
            insert_raw(client, "bank", &format!("b{bank}"), &documents).await;
        }
    }

    fn write(server: &Server, client: &Client, seed: u64) -> Self {
        let _ = server;
        let stop = Arc::new(AtomicBool::new(false));
        let moved = Arc::new(AtomicU64::new(0));
        let writers = (0..3)
            .map(|w| {
                let (client, stop, moved) = (client.clone(), stop.clone(), moved.clone());
                let mut random = SmallRng::seed_from_u64(seed ^ w);
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let [a, b] = [0; 2].map(|_| {
                            (
                                random.random_range(0..BANKS),
                                random.random_range(0..ACCOUNTS),
                            )
                        });
                        if a == b {
                            continue;
                        }
                        if transfer(&client, a, b, random.random_range(1..50))
                            .await
                            .is_ok()
                        {
                            moved.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        Self {
            stop,
            moved,
            writers,
        }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.unwrap();
        }
        self.moved.load(Ordering::Relaxed)
    }
}

async fn transfer(
    client: &Client,
    from: (i32, i32),
    to: (i32, i32),
    amount: i32,
) -> mongodb::error::Result<()> {
    let mut session = client.start_session().await?;
    session.start_transaction().await?;
    for ((bank, account), amount) in [(from, -amount), (to, amount)] {
        let command = doc! {"update": format!("b{bank}"), "updates": [{"q": {"_id": account}, "u": {"$inc": {"amount": amount}}}]};
        let answer = client
            .database("bank")
            .run_command(command)
            .session(&mut session)
            .await?;
        if answer.contains_key("writeErrors") {
            return session.abort_transaction().await;
        }
    }
    session.commit_transaction().await
}

/// Sum of all accounts in a database, and their number.
async fn sum(client: &Client, database: &str) -> (i64, u64) {
    let (mut sum, mut count) = (0, 0);
    for bank in 0..BANKS {
        let answer = run(
            client,
            database,
            doc! {"find": format!("b{bank}"), "batchSize": ACCOUNTS},
        )
        .await;
        for account in answer
            .get_document("cursor")
            .unwrap()
            .get_array("firstBatch")
            .unwrap()
        {
            sum += i64::from(account.as_document().unwrap().get_i32("amount").unwrap());
            count += 1;
        }
    }
    (sum, count)
}

async fn a_bank_is_whole(consistency: &str) {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let client = server.client().await;
    Bank::make(&client).await;
    let bank = Bank::write(&server, &client, seed(11));
    let rounds = long(5, 50);
    let mut with_log = 0;
    for round in 0..rounds {
        let home = Home::new(&settings(
            &server,
            &format!("databases = [\"bank\"]\nconsistency = \"{consistency}\"\n"),
        ));
        let ran = home.bk(&["backup"]).ended(0);
        if consistency == "auto" {
            assert!(
                ran.stderr.contains("its snapshots are not used"),
                "round {round}: {}",
                ran.stderr
            );
        }
        let shown = home.bk(&["show"]).ended(0).stdout;
        with_log += u32::from(shown.contains("come from the log"));
        home.bk(&["restore", "--yes", "--into", "mongodb/bank=copy"])
            .ended(0);
        let (total, count) = sum(&client, "copy").await;
        assert_eq!(
            (total, count),
            (
                i64::from(BANKS * ACCOUNTS * 1000),
                (BANKS * ACCOUNTS) as u64
            ),
            "round {round}"
        );
    }
    println!(
        "{rounds} backups by {consistency} whole and right beside {} transfers, {with_log} with entries of the log",
        bank.end().await
    );
    assert_eq!(
        sum(&client, "bank").await.0,
        i64::from(BANKS * ACCOUNTS * 1000),
        "the bank itself lost money"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bank_is_whole_by_what_the_log_adds_and_a_false_snapshot_is_noticed() {
    a_bank_is_whole("auto").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bank_is_whole_in_one_transaction() {
    a_bank_is_whole("transaction").await;
}

/// Raw sums of the blocks of an archive.
async fn blocks(home: &Home, n: usize) -> std::collections::BTreeSet<String> {
    let path = home.path("out").join(&home.archives()[n]);
    let opened = Opened::open(Arc::new(FileReadAt::open(&path).unwrap()))
        .await
        .unwrap();
    raw_sums(&opened).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_documents_give_the_same_blocks_with_one_reader_or_eight_before_and_after_a_restore()
 {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut random = SmallRng::seed_from_u64(seed(4));
    for c in 0..4 {
        let documents: Vec<Vec<u8>> = (0..long(12_000, 60_000))
            .map(|_| {
                let id: [u8; 12] = random.random();
                let text: String = (0..400)
                    .map(|_| char::from(random.random_range(b'a'..=b'z')))
                    .collect();
                Writing::new()
                    .value(0x07, b"_id", &id)
                    .text("text", &text)
                    .bytes()
            })
            .collect();
        insert_raw(&client, "many", &format!("c{c}"), &documents).await;
    }
    let home = Home::new(&settings(&server, "parallel = 1\n"));
    home.bk(&["backup"]).ended(0);
    home.write("plugins.toml", settings(&server, "parallel = 8\n"));
    home.bk(&["backup"]).ended(0);
    let one = blocks(&home, 0).await;
    assert!(one.len() > 4, "{} blocks", one.len());
    assert_eq!(one, blocks(&home, 1).await);
    home.bk(&["restore", "--yes"]).ended(0);
    home.bk(&["backup"]).ended(0);
    assert_eq!(one, blocks(&home, 2).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_newer_than_the_archive_goes_with_replace_and_stays_with_merge() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let client = server.client().await;
    run(
        &client,
        "app",
        doc! {"insert": "a", "documents": [{"_id": 1, "v": "old"}, {"_id": 2, "v": "old"}]},
    )
    .await;
    run(&client, "app", doc! {"createIndexes": "a", "indexes": [{"key": {"u": 1}, "name": "u", "unique": true, "sparse": true}]}).await;
    let home = Home::new(&settings(&server, ""));
    home.bk(&["backup"]).ended(0);
    let before = server.contents().await;
    let change = async || {
        run(
            &client,
            "app",
            doc! {"insert": "newer", "documents": [{"_id": 1}]},
        )
        .await;
        run(
            &client,
            "app",
            doc! {"insert": "a", "documents": [{"_id": 3}]},
        )
        .await;
        run(
            &client,
            "app",
            doc! {"update": "a", "updates": [{"q": {"_id": 1}, "u": {"v": "new"}}]},
        )
        .await;
    };
    change().await;
    home.bk(&["restore", "--yes", "--existing", "merge"])
        .ended(0);
    let merged = server.contents().await;
    assert!(merged.contains_key("app.newer"));
    assert_eq!(merged["app.a"].documents, 3);
    assert!(
        before["app.a"]
            .sums
            .iter()
            .all(|sum| merged["app.a"].sums.contains(sum)),
        "the archive wins"
    );
    let refused = home.bk(&["restore", "--yes", "--existing", "refuse"]);
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!(difference(&before, &server.contents().await), None);
    // A document that another unique key refuses is named, and the restore is not called whole.
    run(
        &client,
        "app",
        doc! {"insert": "a", "documents": [{"_id": 9, "u": 7}]},
    )
    .await;
    home.bk(&["backup"]).ended(0);
    run(
        &client,
        "app",
        doc! {"delete": "a", "deletes": [{"q": {"_id": 9}, "limit": 1}]},
    )
    .await;
    run(
        &client,
        "app",
        doc! {"insert": "a", "documents": [{"_id": 10, "u": 7}]},
    )
    .await;
    let named = home.bk(&["restore", "--yes", "--existing", "merge"]);
    assert_eq!(named.code, 3, "{}", named.stderr);
    assert!(
        named.stderr.contains("1 documents were refused") && named.stderr.contains("\"_id\": 9"),
        "{}",
        named.stderr
    );
    // What is not whole is not backed up as good until it is finished.
    let half = home.bk(&["backup"]);
    assert_ne!(half.code, 0, "{}", half.stderr);
    run(
        &client,
        "app",
        doc! {"delete": "a", "deletes": [{"q": {"_id": 10}, "limit": 1}]},
    )
    .await;
    home.bk(&["restore", "--yes"]).ended(0);
    home.bk(&["backup"]).ended(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_ends_well_that_did_not_go_well() {
    let Some(mut server) = Server::start(&[]).await else {
        return;
    };
    let client = server.client().await;
    run(
        &client,
        "app",
        doc! {"insert": "a", "documents": [{"_id": 1}]},
    )
    .await;
    let home = Home::new(&settings(&server, ""));
    home.bk(&["backup"]).ended(0);
    let archives = home.archives().len();
    // A database that is named and not there.
    home.write(
        "plugins.toml",
        settings(&server, "databases = [\"app\", \"missing\"]\n"),
    );
    let missing = home.bk(&["backup"]);
    assert_ne!(missing.code, 0);
    assert!(missing.stderr.contains("`missing`"), "{}", missing.stderr);
    // A way to one instant that the server has not.
    home.write(
        "plugins.toml",
        settings(&server, "consistency = \"snapshot\"\n"),
    );
    let snapshot = home.bk(&["backup"]);
    assert_ne!(snapshot.code, 0);
    assert!(
        snapshot.stderr.contains("snapshots are not used"),
        "{}",
        snapshot.stderr
    );
    // Nobody there.
    home.write("plugins.toml", settings(&server, ""));
    server.kill();
    let gone = home.bk(&["check"]);
    assert_eq!(gone.code, 1, "{}{}", gone.stdout, gone.stderr);
    let restore = home.bk(&["restore", "--yes"]);
    assert_eq!(restore.code, 1, "{}", restore.stderr);
    assert_eq!(home.archives().len(), archives, "{:?}", home.archives());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_called_one() {
    let Some(mut server) = Server::start(&[]).await else {
        return;
    };
    let client = server.client().await;
    run(
        &client,
        "admin",
        doc! {"createUser": "keeper", "pwd": "right", "roles": ["root"]},
    )
    .await;
    run(
        &client,
        "app",
        doc! {"insert": "a", "documents": [{"_id": 1}]},
    )
    .await;
    server.kill();
    server.require_passwords();
    server.run().unwrap();
    let with = |password: &str| {
        format!(
            "format = 1\nplugins = [\"mongodb\", \"local\"]\n[source.mongodb]\nport = {}\nuser = \"keeper\"\npassword = \"{password}\"\n[sink.local]\npath = \"out\"\n",
            server.port()
        )
    };
    let home = Home::new(&with("right"));
    home.bk(&["backup"]).ended(0);
    home.bk(&["restore", "--yes"]).ended(0);
    home.write("plugins.toml", with("wrong"));
    let wrong = home.bk(&["check"]);
    assert_eq!(wrong.code, 4, "{}{}", wrong.stdout, wrong.stderr);
    assert!(!wrong.stderr.contains("wrong\"") && !wrong.stdout.contains("right"));
}

/// What the official tools' dumps must restore to.
fn expected() -> BTreeMap<String, serde_json::Value> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/golden/mongodump/expected.json"
    );
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

async fn is_as_expected(server: &Server, what: &str) {
    let contents = server.contents().await;
    let expected = expected();
    let names = |names: Vec<&String>| names.into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(contents.keys().collect()),
        names(expected.keys().collect()),
        "{what}"
    );
    for (name, expected) in expected {
        let found = &contents[&name];
        assert_eq!(
            found.kind,
            expected["type"].as_str().unwrap(),
            "{what}: {name}"
        );
        let json = |document: &Document| {
            serde_json::to_value(Bson::Document(document.clone()).into_relaxed_extjson()).unwrap()
        };
        // Its numbers came out of JSON, so that whole ones look alike.
        assert_eq!(json(&found.options), expected["options"], "{what}: {name}");
        if found.kind == "view" {
            continue;
        }
        let indexes: Vec<serde_json::Value> = found.indexes.iter().map(json).collect();
        assert_eq!(
            serde_json::Value::Array(indexes),
            expected["indexes"],
            "{what}: {name}"
        );
        // The server that the dumps are of forgets the first documents of a capped collection when it pleases.
        if name == "app.cap" {
            assert!(
                [50, 60].contains(&found.documents),
                "{what}: {}",
                found.documents
            );
        } else {
            assert_eq!(
                found.documents,
                expected["documents"].as_u64().unwrap(),
                "{what}: {name}"
            );
            assert_eq!(
                found.sum_of_sha1(),
                expected["sum_of_sha1"].as_str().unwrap(),
                "{what}: {name}"
            );
        }
    }
}

fn golden(name: &str) -> String {
    format!("{}/golden/mongodump/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_four_outputs_of_the_official_mongodump_come_back() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let home = Home::new(&settings(&server, ""));
    for name in ["dir", "dir-gz", "all.archive", "all.archive.gz"] {
        server.wipe().await;
        let ran = home.bk(&["restore", &golden(name), "--yes"]).ended(0);
        is_as_expected(&server, &format!("{name} {}", ran.stderr)).await;
        // Over what is there, and a part of it under another name.
        home.bk(&["restore", &golden(name), "--yes"]).ended(0);
        is_as_expected(&server, name).await;
        server.wipe().await;
        home.bk(&[
            "restore",
            &golden(name),
            "--yes",
            "--only",
            "mongodb/app/idx",
            "--into",
            "mongodb/app=elsewhere",
        ])
        .ended(0);
        let contents = server.contents().await;
        assert_eq!(
            contents.keys().collect::<Vec<_>>(),
            ["elsewhere.idx"],
            "{name}"
        );
        assert_eq!(contents["elsewhere.idx"].documents, 100);
        let nothing = home.bk(&[
            "restore",
            &golden(name),
            "--yes",
            "--only",
            "mongodb/app/nowhere",
        ]);
        assert_eq!(nothing.code, 5, "{name}: {}", nothing.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_was_cut_off_or_changed_writes_nothing() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let home = Home::new(&settings(&server, ""));
    let whole = std::fs::read(golden("all.archive")).unwrap();
    let mut changed = whole.clone();
    let place = changed.len() - 5000;
    changed[place] ^= 1;
    for (name, bytes) in [
        ("cut.archive", &whole[..whole.len() - 300]),
        ("cut-early.archive", &whole[..100_000]),
        ("changed.archive", &changed[..]),
    ] {
        home.write(name, bytes);
        let ran = home.bk(&["restore", name, "--yes"]);
        assert_eq!(ran.code, 7, "{name}: {}", ran.stderr);
        assert_eq!(server.contents().await.len(), 0, "{name}");
    }
    let big = std::fs::read(golden("dir/app/big.bson")).unwrap();
    home.write("cut/app/big.bson", &big[..big.len() - 10]);
    home.write(
        "cut/app/big.metadata.json",
        std::fs::read(golden("dir/app/big.metadata.json")).unwrap(),
    );
    let ran = home.bk(&["restore", "cut", "--yes"]);
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    assert!(ran.stderr.contains("app/big.bson"), "{}", ran.stderr);
    assert_eq!(server.contents().await.len(), 0);
}

/// Names of all files in a folder, with their bytes.
fn files_of(folder: &std::path::Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            found.extend(
                files_of(&path)
                    .into_iter()
                    .map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)),
            );
        } else {
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extract_in_the_form_of_mongodump_is_what_the_official_one_wrote() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let home = Home::new(&settings(&server, "databases = [\"app\", \"other\"]\n"));
    home.bk(&["restore", &golden("dir"), "--yes"]).ended(0);
    let before = server.contents().await;
    home.bk(&["backup"]).ended(0);
    let said = home
        .bk(&["extract", "--as", "mongodump", "--into", "dump"])
        .ended(0);
    println!("{}", said.stderr);
    let (ours, theirs) = (
        files_of(&home.path("dump")),
        files_of(golden("dir").as_ref()),
    );
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        theirs.keys().collect::<Vec<_>>()
    );
    for (name, theirs) in &theirs {
        let ours = &ours[name];
        if name.ends_with(".bson") {
            let sorted = |bytes: &[u8]| {
                let mut documents: Vec<Vec<u8>> = bk_sources::mongodb::bson::documents(bytes)
                    .map(|d| d.unwrap().to_vec())
                    .collect();
                documents.sort();
                documents
            };
            // The server that these are of forgets the first documents of a capped collection when it pleases.
            if name != "app/cap.bson" {
                assert_eq!(sorted(ours), sorted(theirs), "{name}");
            }
            continue;
        }
        let parsed = |bytes: &[u8]| -> serde_json::Value { serde_json::from_slice(bytes).unwrap() };
        let (mut ours, mut theirs) = (parsed(ours), parsed(theirs));
        let keys = |value: &serde_json::Value| {
            value
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(keys(&ours), keys(&theirs), "{name}");
        for own in ["uuid", "ToolVersion"] {
            // A collection that was made anew has another number, and this is another tool.
            for value in [&mut ours, &mut theirs] {
                value.as_object_mut().unwrap().remove(own);
            }
        }
        assert_eq!(ours.to_string(), theirs.to_string(), "{name}");
    }
    // Both forms are read again.
    home.bk(&[
        "extract",
        "--as",
        "mongodump-archive",
        "--into",
        "all.archive",
    ])
    .ended(0);
    for form in ["dump", "all.archive"] {
        server.wipe().await;
        home.bk(&["restore", home.path(form).to_str().unwrap(), "--yes"])
            .ended(0);
        assert_eq!(
            difference(&before, &server.contents().await),
            None,
            "{form}"
        );
    }
    // Nothing is written over what is there; a form that nobody has is named with those that are.
    let again = home.bk(&["extract", "--as", "mongodump", "--into", "dump"]);
    assert_eq!(again.code, 6, "{}", again.stderr);
    let unknown = home.bk(&["extract", "--as", "mysqldump", "--into", "x"]);
    assert_eq!(unknown.code, 4, "{}", unknown.stderr);
    assert!(
        unknown.stderr.contains("mongodump-archive"),
        "{}",
        unknown.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_collection_is_joined_and_the_log_comes_along_in_the_form_of_mongodump() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let client = server.client().await;
    Bank::make(&client).await;
    let documents: Vec<Vec<u8>> = (0..20_000)
        .map(|n| {
            doc! {"_id": n, "text": format!("{n} {}", "large ".repeat(100))}
                .to_vec()
                .unwrap()
        })
        .collect();
    insert_raw(&client, "bank", "large", &documents).await;
    // A name whose file is cut in the midst of an escape.
    let refused = "%".repeat(80);
    run(
        &client,
        "bank",
        doc! {"insert": &refused, "documents": [{"_id": 1}]},
    )
    .await;
    let bank = Bank::write(&server, &client, seed(12));
    let home = Home::new(&settings(
        &server,
        "databases = [\"bank\"]\nconsistency = \"oplog\"\n",
    ));
    home.bk(&["backup"]).ended(0);
    println!("{} transfers", bank.end().await);
    let named = home.bk(&["extract", "--as", "mongodump", "--into", "dump"]);
    assert_eq!(named.code, 3, "{}", named.stderr);
    assert!(
        named.stderr.contains("--as mongodump-archive"),
        "{}",
        named.stderr
    );
    home.bk(&[
        "extract",
        "--as",
        "mongodump-archive",
        "--into",
        "all.archive",
    ])
    .ended(0);
    for form in ["dump", "all.archive"] {
        server.wipe().await;
        home.bk(&["restore", home.path(form).to_str().unwrap(), "--yes"])
            .ended(0);
        assert_eq!(
            sum(&client, "bank").await,
            (
                i64::from(BANKS * ACCOUNTS * 1000),
                (BANKS * ACCOUNTS) as u64
            ),
            "{form}"
        );
        let contents = server.contents().await;
        assert_eq!(contents["bank.large"].documents, 20_000, "{form}");
        assert_eq!(contents[&format!("bank.{refused}")].documents, 1, "{form}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_one_collection_leaves_its_neighbours_and_empty_collections_get_their_indexes() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let client = server.client().await;
    run(
        &client,
        "app",
        doc! {"insert": "neighbour", "documents": [{"_id": 1}]},
    )
    .await;
    run(
        &client,
        "app",
        doc! {"createIndexes": "bare", "indexes": [{"key": {"a": 1}, "name": "a", "unique": true}]},
    )
    .await;
    let home = Home::new(&settings(&server, ""));
    for name in ["idx.bson", "idx.metadata.json"] {
        home.write(
            &format!("dump/app/{name}"),
            std::fs::read(golden(&format!("dir/app/{name}"))).unwrap(),
        );
    }
    home.bk(&["restore", "dump", "--yes"]).ended(0);
    let before = server.contents().await;
    assert_eq!(
        before["app.neighbour"].documents, 1,
        "what the dump does not hold is not dropped"
    );
    assert_eq!(before["app.idx"].documents, 100);
    home.bk(&["backup"]).ended(0);
    server.wipe().await;
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!(difference(&before, &server.contents().await), None);
    assert_eq!(before["app.bare"].indexes.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_starts_anew_while_it_is_read_ends_in_no_whole_archive() {
    let Some(mut server) = Server::start(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut rng = SmallRng::seed_from_u64(seed(11));
    let large: Vec<Vec<u8>> = (0..60)
        .map(|n| {
            let mut noise = vec![0; 1 << 20];
            rng.fill(&mut noise[..]);
            let kept = noise.iter().map(|byte| char::from(b'0' + byte % 64));
            doc! {"_id": n, "text": kept.collect::<String>()}
                .to_vec()
                .unwrap()
        })
        .collect();
    for chunk in large.chunks(8) {
        insert_raw(&client, "app", "large", chunk).await;
    }
    let home = Home::new(&settings(&server, "parallel = 1\n"));
    let said = home.path("said");
    let mut running = home
        .command(&["backup"])
        .stdout(std::process::Stdio::null())
        .stderr(std::fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    // Some of the documents are on their way to the archive, and not all.
    let begun = |home: &Home| {
        let files = home.names_in("out").into_iter();
        files
            .map(|name| std::fs::metadata(home.path("out").join(name)).map_or(0, |m| m.len()))
            .sum::<u64>()
            > 1 << 20
    };
    while !begun(&home) {
        let said = std::fs::read_to_string(&said).unwrap();
        assert_eq!(running.try_wait().unwrap(), None, "it ended first: {said}");
        std::thread::yield_now();
    }
    server.kill();
    server.run().unwrap();
    let code = running.wait().unwrap().code().unwrap();
    let said = std::fs::read_to_string(said).unwrap();
    println!("{code} {said}");
    assert_ne!(code, 0, "{said}");
    assert!(
        said.contains("app.large") || home.archives().is_empty(),
        "{:?} {said}",
        home.archives()
    );
    home.bk(&["backup"]).ended(0);
}
