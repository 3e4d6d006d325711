//! The source `couchdb` as anybody sees it: filled and compared over HTTP. `COUCHDB_URL=http://ACCOUNT:PASSWORD@HOST:5984` names a real server,
//! in which only databases whose names begin with `bktest-` are touched; without it the simulator stands in.

use bk_tests::binary::Home;
use bk_tests::couch_cases::{Case, base64, hard_cases, history, noise};
use bk_tests::couch_lab::{Couch, Seen};
use bk_tests::{long, seed};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::collections::BTreeMap;

async fn all(couch: &Couch, cases: &[Case]) -> BTreeMap<String, Seen> {
    let mut all = BTreeMap::new();
    for case in cases {
        all.insert(case.name.clone(), couch.seen(&case.name).await);
    }
    all
}

#[track_caller]
fn same(before: &Seen, now: &Seen, what: &str) {
    for (leaf, text) in before {
        let got = now.get(leaf).map_or("nothing", String::as_str);
        assert!(
            got == text,
            "{what}: {leaf}: {got:.500} in place of {text:.500}"
        );
    }
    assert_eq!(before.len(), now.len(), "{what}");
}

/// Every file below a folder.
fn files_of(folder: &std::path::Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap();
                files.insert(name.display().to_string(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn of_test(name: &str) -> Case {
    Case {
        name: format!("bktest-{name}"),
        q: 2,
        partitioned: false,
        documents: Vec::new(),
        security: None,
        limits: (1000, 1000),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hard_cases_are_served_as_they_were_served_before() {
    let couch = Couch::start().await;
    let mut rng = SmallRng::seed_from_u64(seed(31));
    let cases = hard_cases("bktest-", &mut rng);
    for case in &cases {
        couch.make(case).await;
    }
    let before = all(&couch, &cases).await;
    let home = Home::new(&couch.settings("databases = [\"bktest-*\"]\n"));
    println!("{}", home.bk(&["check"]).ended(0).stdout);
    println!("{}", home.bk(&["backup"]).ended(0).stderr);
    for way in ["into what is there", "into nothing"] {
        if way == "into nothing" {
            for case in &cases {
                couch.drop(&case.name).await;
            }
        }
        home.bk(&["restore", "--yes"]).ended(0);
        for (name, seen) in all(&couch, &cases).await {
            same(&before[&name], &seen, &format!("{way}: {name}"));
        }
    }
    for case in &cases {
        couch.drop(&case.name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_lets_the_archive_win_and_settles_once() {
    let couch = Couch::start().await;
    let data = base64(&"text ".repeat(100).into_bytes());
    let mut case = of_test("merge");
    for id in ["same", "newer", "deleted", "conflicted", "gone"] {
        case.documents
            .push(format!("{{\"_id\":\"{id}\",\"v\":1.0,{}}}", history(1, 1)));
    }
    case.documents.push(format!(
        "{{\"_id\":\"gone\",\"_deleted\":true,{}}}",
        history(2, 1)
    ));
    case.documents.push(format!(
        "{{\"_id\":\"attached\",\"_attachments\":{{\"a\":{{\"content_type\":\"text/plain\",\"data\":\"{data}\"}}}}}}"
    ));
    couch.make(&case).await;
    let name = case.name.as_str();
    let before = couch.seen(name).await;
    let home = Home::new(&couch.settings("databases = [\"bktest-merge\"]\n"));
    home.bk(&["backup"]).ended(0);
    for (id, more) in [
        ("newer", ",\"v\":2"),
        ("newer", ",\"v\":3"),
        ("deleted", ",\"_deleted\":true"),
        ("attached", ",\"v\":2"),
    ] {
        let (rev, _) = couch.winner(name, id).await.unwrap();
        couch
            .put(
                name,
                &format!("{{\"_id\":\"{id}\",\"_rev\":\"{rev}\"{more}}}"),
            )
            .await;
    }
    let other = history(4, 5);
    couch
        .put(
            name,
            &format!("{{\"_id\":\"conflicted\",\"other\":true,{other}}}"),
        )
        .await;
    couch.put(name, r#"{"_id":"gone","back":true}"#).await;
    couch.put(name, r#"{"_id":"stranger","mine":1}"#).await;
    let merge = || {
        home.bk(&["restore", "--yes", "--existing", "merge"])
            .ended(0)
    };
    merge();
    for id in ["same", "newer", "deleted", "conflicted"] {
        let (_, found) = couch.winner(name, id).await.unwrap();
        assert_eq!(
            (&found["v"], found.get("other")),
            (&1.0.into(), None),
            "{id}"
        );
    }
    assert!(couch.winner(name, "gone").await.is_none());
    let (_, attached) = couch.winner(name, "attached").await.unwrap();
    assert!(attached.get("v").is_none() && attached["_attachments"]["a"].is_object());
    assert!(couch.winner(name, "stranger").await.is_some());
    let merged = couch.seen(name).await;
    merge();
    same(&merged, &couch.seen(name).await, "a second merge");
    let refused = home.bk(&["restore", "--yes", "--existing", "refuse"]);
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    home.bk(&["restore", "--yes"]).ended(0);
    same(&before, &couch.seen(name).await, "a replacement");
    couch.drop(name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_leaves_give_the_same_archive_after_a_restore_with_other_shards() {
    let couch = Couch::start().await;
    let mut case = of_test("blocks");
    for n in 0..long(1500, 20_000) {
        let text = "some text ".repeat(n % 40);
        case.documents.push(format!(
            "{{\"_id\":\"document {n}\",\"text\":\"{text}\",{}}}",
            history(1, n as u32)
        ));
    }
    couch.make(&case).await;
    let settings = couch.settings("databases = [\"bktest-blocks\"]\n");
    let mut extracted = Vec::new();
    for q in [2, 8] {
        let home = Home::new(&settings);
        home.bk(&["backup"]).ended(0);
        home.bk(&["extract", "--into", "files"]).ended(0);
        let mut files = files_of(&home.path("files"));
        // The definition says q.
        files.retain(|path, _| !path.ends_with("database.json"));
        assert!(files.len() > 1, "{files:?}");
        extracted.push(files);
        case.q = q * 4;
        couch.make(&case).await;
    }
    assert_eq!(extracted[0], extracted[1]);
    couch.drop(&case.name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_attachments_pass_and_come_back() {
    let couch = Couch::start().await;
    let mut rng = SmallRng::seed_from_u64(seed(32));
    let mut case = of_test("large");
    let film = base64(&noise(&mut rng, long(30, 200) << 20));
    case.documents.push(format!(
        "{{\"_id\":\"film\",\"_attachments\":{{\"film.mp4\":{{\"content_type\":\"video/mp4\",\"data\":\"{film}\"}}}}}}"
    ));
    couch.make(&case).await;
    let before = couch.seen(&case.name).await;
    let home = Home::new(&couch.settings("databases = [\"bktest-large\"]\n"));
    home.bk(&["backup"]).ended(0);
    couch.drop(&case.name).await;
    home.bk(&["restore", "--yes"]).ended(0);
    same(&before, &couch.seen(&case.name).await, "a large attachment");
    couch.drop(&case.name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_and_a_missing_database_end_as_failures() {
    let couch = Couch::start().await;
    let wrong = couch
        .settings("")
        .replace(&format!("\"{}\"", couch.account.1), "\"wrong\"");
    let home = Home::new(&wrong);
    let said = home.bk(&["backup"]);
    assert_eq!(said.code, 4, "{}", said.stderr);
    assert_eq!(home.archives(), [] as [&str; 0]);
    let home = Home::new(&couch.settings("databases = [\"bktest-nobody-made-it\"]\n"));
    let said = home.bk(&["backup"]);
    assert!(
        said.code != 0 && said.stderr.contains("bktest-nobody-made-it"),
        "{}",
        said.stderr
    );
    assert_eq!(home.archives(), [] as [&str; 0]);
}
