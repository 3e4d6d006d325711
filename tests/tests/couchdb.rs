//! The source `couchdb` against a CouchDB of our own that behaves as a real 3.5.0 was seen to, and against one of others that lacks much.

use async_trait::async_trait;
use bk_core::archive::read_at::FileReadAt;
use bk_core::archive::tail::Opened;
use bk_core::settings::Settings;
use bk_core::source::Source;
use bk_tests::binary::Home;
use bk_tests::couch_cases::{self, base64, history, noise, rev};
use bk_tests::couch_fake::{Fake, Faults, Site};
use bk_tests::engine::raw_sums;
use bk_tests::pouchdb::Pouchdb;
use bk_tests::source_suite::{self, Subject};
use bk_tests::{long, seed};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const ACCOUNT: Option<(&str, &str)> = Some(("admin", "right"));

fn settings(fake: &Fake, more: &str) -> String {
    format!(
        "format = 1\nplugins = [\"couchdb\", \"local\"]\n[source.couchdb]\nurl = \"{}\"\nuser = \"admin\"\npassword = \"right\"\n{more}[sink.local]\npath = \"out\"\n",
        fake.url()
    )
}

/// All that must come back of a database.
fn contents_of(site: &Site, name: &str) -> (String, BTreeMap<String, Vec<String>>) {
    let database = &site.databases[name];
    let made = format!(
        "q {} n {} partitioned {} revs {} purges {} security {:?}",
        database.q,
        database.n,
        database.partitioned,
        database.revs_limit,
        database.purged_infos_limit,
        database.security
    );
    (made, database.contents())
}

type Fault = fn(&mut Faults);

type Contents = BTreeMap<String, (String, BTreeMap<String, Vec<String>>)>;

fn contents(fake: &Fake) -> Contents {
    let site = fake.site();
    site.databases
        .keys()
        .map(|name| (name.clone(), contents_of(&site, name)))
        .collect()
}

#[track_caller]
fn same(before: &Contents, now: &Contents, what: &str) {
    let names = |all: &Contents| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(before), names(now), "{what}");
    for (name, (made, documents)) in before {
        assert_eq!(*made, now[name].0, "{what}: {name}");
        for (id, leaves) in documents {
            assert_eq!(Some(leaves), now[name].1.get(id), "{what}: {name}/{id}");
        }
        assert_eq!(documents.len(), now[name].1.len(), "{what}: {name}");
    }
}

/// Those, and what belongs to the server.
fn hard_cases(site: &mut Site, rng: &mut SmallRng) {
    for case in couch_cases::hard_cases("", rng) {
        case.take_into(site);
    }
    site.databases
        .get_mut("app/hard+$(1)")
        .unwrap()
        .local
        .insert("_local/checkpoint".into(), (4, "\"seq\":1".into()));
    site.put("_users", r#"{"_id":"org.couchdb.user:jo","name":"jo","type":"user","roles":["team"],"password_scheme":"pbkdf2","iterations":10,"derived_key":"aa","salt":"bb"}"#);
    site.put(
        "_users",
        r#"{"_id":"_design/_auth","language":"javascript"}"#,
    );
    site.put(
        "_replicator",
        r#"{"_id":"job","source":"http://a","target":"http://b","continuous":true}"#,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hard_cases_come_back_equal() {
    let fake = Fake::start(ACCOUNT).await;
    let mut rng = SmallRng::seed_from_u64(seed(21));
    hard_cases(&mut fake.site(), &mut rng);
    let home = Home::new(&settings(&fake, "local_docs = true\nreplicator = true\n"));
    let checked = home.bk(&["check"]).ended(0);
    println!("{}{}", checked.stdout, checked.stderr);
    let before = contents(&fake);
    let backed_up = home.bk(&["backup"]).ended(0);
    println!("{}", backed_up.stderr);
    same(&before, &contents(&fake), "a backup changed something");
    for way in ["into what is there", "into nothing"] {
        if way == "into nothing" {
            let mut site = fake.site();
            site.databases.clear();
            for name in ["_users", "_replicator"] {
                site.create(name, 2, 1, false);
            }
            site.put(
                "_users",
                r#"{"_id":"_design/_auth","language":"javascript"}"#,
            );
        }
        let restored = home.bk(&["restore", "--yes"]).ended(0);
        println!("{way}: {}", restored.stderr);
        same(&before, &contents(&fake), way);
        let local = fake.site().databases["app/hard+$(1)"].local.clone();
        assert_eq!(local["_local/checkpoint"].1, "\"seq\":1");
    }
    // Under another name, one database alone.
    home.bk(&[
        "restore",
        "--yes",
        "--only",
        "couchdb/parts",
        "--into",
        "couchdb/parts=parts_copy",
    ])
    .ended(0);
    let now = contents(&fake);
    assert_eq!(now["parts_copy"], before["parts"]);
    home.bk(&["verify"]).ended(0);
    // Replications wait, unless somebody wants them to start.
    home.write("plugins.toml", settings(&fake, ""));
    home.bk(&["restore", "--yes", "--only", "couchdb/_replicator"])
        .ended(0);
    let now = contents(&fake);
    assert_eq!(now["bk_parked_replicator"].1, before["_replicator"].1);
}

/// A small server for the suite of all sources.
struct Small {
    fake: Fake,
    more: serde_json::Value,
}

fn source(fake: &Fake, more: &serde_json::Value) -> Arc<dyn Source> {
    let mut table = json!({ "url": fake.url(), "user": "admin", "password": "right" });
    table
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let settings = Settings {
        instance: "couchdb".into(),
        folder: ".".into(),
        table: table.as_object().unwrap().clone(),
    };
    (bk_sources::couchdb::plugin().build)(settings).unwrap()
}

#[async_trait]
impl Subject for Small {
    fn source(&self) -> Arc<dyn Source> {
        source(&self.fake, &self.more)
    }

    async fn seed(&self) {
        let mut site = self.fake.site();
        for name in ["one", "two"] {
            site.create(name, 2, 1, false);
            for n in 0..200 {
                site.put(
                    name,
                    &format!("{{\"_id\":\"d{n}\",\"text\":\"{name} {n}\"}}"),
                );
            }
        }
    }

    async fn wipe(&self) {
        let mut site = self.fake.site();
        site.databases.retain(|name, _| name.starts_with('_'));
        site.create("_users", 2, 1, false);
        site.create("_replicator", 2, 1, false);
    }

    async fn add_stranger(&self, group: &str) {
        let mut site = self.fake.site();
        if !site.databases.contains_key(group) {
            site.create(group, 2, 1, false);
        }
        site.put(group, r#"{"_id":"stranger"}"#);
    }

    async fn digest(&self) -> BTreeMap<(String, String), String> {
        contents(&self.fake)
            .into_iter()
            .filter(|(name, _)| !name.starts_with('_'))
            .map(|(name, contents)| ((name, ".".to_owned()), format!("{contents:?}")))
            .collect()
    }

    async fn die_midway(&self) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_passes_the_suite() {
    for more in [
        json!({ "exclude": ["_*"] }),
        json!({ "exclude": ["_*"], "parallel": 1 }),
    ] {
        let small = Small {
            fake: Fake::start(ACCOUNT).await,
            more,
        };
        let mut failed = Vec::new();
        for (name, check) in source_suite::CHECKS {
            if let Err(why) = check(&small).await {
                failed.push((*name, why));
            }
        }
        // A database is one unit: what these ask has tests of its own here.
        let one_unit = "the subject has no group of two units";
        let (not_asked, failed): (Vec<_>, Vec<_>) =
            failed.into_iter().partition(|(_, why)| why == one_unit);
        assert_eq!(failed, [], "{}", small.more);
        assert_eq!(not_asked.len(), 4, "{not_asked:?}");
    }
}

fn seed_small(site: &mut Site, name: &str, q: u32, count: usize) {
    site.create(name, q, 1, false);
    for n in 0..count {
        let text = "some text ".repeat(n % 40);
        site.put(
            name,
            &format!("{{\"_id\":\"document {n}\",\"text\":\"{text}\",\"n\":{n}}}"),
        );
    }
}

/// Raw sums of the blocks of the one archive.
async fn blocks(home: &Home) -> BTreeSet<String> {
    let path = home.path("out").join(&home.archives()[0]);
    let opened = Opened::open(Arc::new(FileReadAt::open(&path).unwrap()))
        .await
        .unwrap();
    raw_sums(&opened).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_leaves_give_the_same_blocks_whatever_the_shards_and_the_passes() {
    let fake = Fake::start(ACCOUNT).await;
    let mut first: Option<BTreeSet<String>> = None;
    for (q, more) in [
        (2, ""),
        (3, "parallel = 1\n"),
        (8, "list_mib = 1\n"),
        (8, "parallel = 8\n"),
    ] {
        seed_small(&mut fake.site(), "app", q, 45_000);
        let asked = fake.site().requests.len();
        let text = settings(&fake, &format!("databases = [\"app\"]\n{more}"));
        let (one, two) = (Home::new(&text), Home::new(&text));
        one.bk(&["backup"]).ended(0);
        let pages = fake.site().requests[asked..]
            .iter()
            .filter(|r| r.as_str() == "GET /app/_changes")
            .count();
        println!("q {q} {more:?}: {pages} pages of the feed");
        assert_eq!(
            pages > 10,
            more.contains("list_mib"),
            "the number of passes"
        );
        let sums = blocks(&one).await;
        one.bk(&["restore", "--yes"]).ended(0);
        two.bk(&["backup"]).ended(0);
        assert_eq!(sums, blocks(&two).await, "q {q} {more} after a restore");
        let first = first.get_or_insert_with(|| sums.clone());
        // The definition says q.
        assert!(first.difference(&sums).count() <= 1, "q {q} {more}");
        assert!(sums.len() > 5, "{}", sums.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_anywhere_changes_nothing() {
    let fake = Fake::start(ACCOUNT).await;
    let mut rng = SmallRng::seed_from_u64(seed(22));
    {
        let mut site = fake.site();
        seed_small(&mut site, "app", 2, 3000);
        for n in 0..20 {
            let data = base64(&noise(&mut rng, 40_000));
            site.put("app", &format!("{{\"_id\":\"attached {n}\",\"_attachments\":{{\"a\":{{\"content_type\":\"image/png\",\"data\":\"{data}\"}},\"t\":{{\"content_type\":\"text/plain\",\"data\":\"{data}\"}}}}}}"));
        }
    }
    let before = contents(&fake);
    let text = settings(&fake, "databases = [\"app\"]\n");
    let whole = Home::new(&text);
    let chunks = |fake: &Fake| fake.site().chunks;
    let begun = chunks(&fake);
    whole.bk(&["backup"]).ended(0);
    let of_backup = chunks(&fake) - begun;
    let begun = chunks(&fake);
    whole.bk(&["restore", "--yes"]).ended(0);
    let of_restore = chunks(&fake) - begun;
    let step = long(7, 1);
    println!("{of_backup} chunks of a backup, {of_restore} of a restore, every {step}th");
    let mut cuts = 0;
    for at in (0..of_backup).step_by(step) {
        let now = chunks(&fake);
        fake.site().faults.cut_at_chunk = Some(now + at);
        let home = Home::new(&text);
        home.bk(&["backup"]).ended(0);
        cuts += u32::from(fake.site().faults.cut_at_chunk.is_none());
        fake.site().faults.cut_at_chunk = None;
        assert_eq!(blocks(&whole).await, blocks(&home).await, "cut at {at}");
    }
    for at in (0..of_restore).step_by(step) {
        let now = chunks(&fake);
        fake.site().faults.cut_at_chunk = Some(now + at);
        whole.bk(&["restore", "--yes"]).ended(0);
        cuts += u32::from(fake.site().faults.cut_at_chunk.is_none());
        fake.site().faults.cut_at_chunk = None;
        same(&before, &contents(&fake), &format!("cut at {at}"));
    }
    assert!(cuts > 20, "{cuts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_refusals_is_waited_out_and_told() {
    let fake = Fake::start(ACCOUNT).await;
    seed_small(&mut fake.site(), "app", 2, 3000);
    let before = contents(&fake);
    let home = Home::new(&settings(&fake, "databases = [\"app\"]\n"));
    fake.site().faults.storm = Some(2);
    let said = home.bk(&["backup"]).ended(0);
    let shown = home.bk(&["show"]).ended(0);
    assert!(
        shown.stdout.contains("requests were sent again"),
        "{}\n{}",
        said.stderr,
        shown.stdout
    );
    fake.site().faults.max_request = Some(200_000);
    let restored = home.bk(&["restore", "--yes"]).ended(0);
    assert!(
        restored.stderr.contains("requests were sent again"),
        "{}",
        restored.stderr
    );
    fake.site().faults = Faults::default();
    same(&before, &contents(&fake), "after the storm");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_ends_well_that_did_not_go_well() {
    let fake = Fake::start(ACCOUNT).await;
    let mut rng = SmallRng::seed_from_u64(seed(23));
    let film = base64(&noise(&mut rng, 700_000));
    let fill = |fake: &Fake| {
        let mut site = fake.site();
        seed_small(&mut site, "app", 2, 2000);
        seed_small(&mut site, "other", 2, 10);
        site.put("app", &format!("{{\"_id\":\"film\",\"_attachments\":{{\"f\":{{\"content_type\":\"video/mp4\",\"data\":\"{film}\"}}}}}}"));
    };
    let text = settings(&fake, "databases = [\"app\", \"other\"]\n");
    let faults: [(&str, Fault); 3] = [
        ("made anew", |f| f.replaced_while_read = Some("app".into())),
        ("deleted", |f| f.deleted_while_read = Some("app".into())),
        ("torn feed", |f| f.torn_feeds = 1000),
    ];
    for (what, fault) in faults {
        fill(&fake);
        fault(&mut fake.site().faults);
        let home = Home::new(&text);
        let failed = home.bk(&["backup"]);
        fake.site().faults = Faults::default();
        println!("{what}: {} {}", failed.code, failed.stderr);
        assert_ne!(failed.code, 0, "{what}");
        assert!(failed.stderr.contains("app"), "{what}: {}", failed.stderr);
        // What is not whole has no whole name.
        assert!(
            home.archives()
                .iter()
                .all(|name| name.ends_with(".partial")),
            "{what}: {:?}",
            home.archives()
        );
    }
    // A feed that is torn now and then is read again.
    fill(&fake);
    fake.site().faults.torn_feeds = 2;
    Home::new(&text).bk(&["backup"]).ended(0);
    // A document that is deleted while its attachment comes is there as what it became.
    fill(&fake);
    fake.site().faults.deleted_while_streamed = Some("film".into());
    let home = Home::new(&text);
    home.bk(&["backup"]).ended(0);
    let before = contents(&fake);
    home.bk(&["restore", "--yes"]).ended(0);
    same(&before, &contents(&fake), "deleted while it was read");
    // Nobody there; a database that is named and not there.
    let nobody = Home::new(&settings(&fake, "").replace(&fake.port.to_string(), "1"));
    assert_eq!(nobody.bk(&["backup"]).code, 1);
    let missing =
        Home::new(&settings(&fake, "databases = [\"app\", \"missing\"]\n")).bk(&["backup"]);
    assert!(
        missing.code != 0 && missing.stderr.contains("`missing`"),
        "{}",
        missing.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_late_gets_less_at_a_time() {
    let fake = Fake::start(ACCOUNT).await;
    seed_small(&mut fake.site(), "app", 2, 2000);
    let before = contents(&fake);
    let home = Home::new(&settings(&fake, "databases = [\"app\"]\n"));
    let whole = Home::new(&settings(&fake, "databases = [\"app\"]\n"));
    whole.bk(&["backup"]).ended(0);
    fake.site().faults.late_over = Some(60);
    home.bk(&["backup"]).ended(0);
    assert_eq!(blocks(&whole).await, blocks(&home).await);
    home.bk(&["restore", "--yes"]).ended(0);
    fake.site().faults = Faults::default();
    same(&before, &contents(&fake), "after a restore in small steps");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_large_documents_pass_through_little_memory() {
    let fake = Fake::start(ACCOUNT).await;
    let mut rng = SmallRng::seed_from_u64(seed(25));
    seed_small(&mut fake.site(), "app", 2, 300);
    for n in 0..long(50, 600) {
        let text = base64(&noise(&mut rng, 1_200_000));
        fake.site().put(
            "app",
            &format!("{{\"_id\":\"heavy {n}\",\"text\":\"{text}\"}}"),
        );
    }
    for n in 0..long(30, 300) {
        let name = format!("pictured {n}");
        let picture = noise(&mut rng, 100_000 << (n % 6));
        fake.site()
            .attach("app", &name, "picture", "image/png", picture);
    }
    let before = contents(&fake);
    let home = Home::new(&settings(&fake, "databases = [\"app\"]\n"));
    let (backed_up, peak) = home.bk_watched(&["backup"]);
    backed_up.ended(0);
    let (restored, peak_of_restore) = home.bk_watched(&["restore", "--yes"]);
    restored.ended(0);
    println!("{peak} MiB to back up, {peak_of_restore} MiB to restore");
    same(&before, &contents(&fake), "large documents");
    assert!(
        peak < 256 && peak_of_restore < 256,
        "{peak} {peak_of_restore}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_tried_once() {
    let fake = Fake::start(ACCOUNT).await;
    seed_small(&mut fake.site(), "app", 2, 100);
    let wrong = settings(&fake, "parallel = 8\n").replace("\"right\"", "\"wrong\"");
    let home = Home::new(&wrong);
    let refused = home.bk(&["backup"]);
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert_eq!(fake.site().failed_logins, 1);
    fake.site().failed_logins = 5;
    let locked = Home::new(&settings(&fake, "")).bk(&["check"]);
    assert_eq!(locked.code, 4, "{}{}", locked.stdout, locked.stderr);
    assert!((locked.stdout + &locked.stderr).contains("temporarily locked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_never_stop_are_left_behind_with_what_was_there_at_the_start() {
    for compacted in [false, true] {
        writers_that_never_stop(compacted).await;
    }
}

async fn writers_that_never_stop(compacted: bool) {
    let fake = Fake::start(ACCOUNT).await;
    fake.site().faults.compacted = compacted;
    seed_small(&mut fake.site(), "app", 3, 3000);
    let before = contents(&fake);
    let mut n = 0;
    fake.on_read(move |site| {
        for _ in 0..50 {
            n += 1;
            site.put("app", &format!("{{\"_id\":\"newer {n}\"}}"));
            // One of the old ones gets another leaf, so that the one in the list is gone.
            let id = format!("document {}", n * 7 % 3000);
            let rev = site.databases["app"].tree(&id).unwrap().winner().rev();
            site.put(
                "app",
                &format!("{{\"_id\":\"{id}\",\"_rev\":\"{rev}\",\"changed\":{n}}}"),
            );
        }
    });
    let home = Home::new(&settings(&fake, "databases = [\"app\"]\n"));
    let said = home.bk(&["backup"]).ended(0);
    println!("{}{}", said.stderr, home.bk(&["show"]).ended(0).stdout);
    fake.on_read(|_| {});
    home.bk(&["restore", "--yes"]).ended(0);
    let now = contents(&fake);
    // Each document that was there is there, as it was or as it became.
    let ids: Vec<&String> = before["app"]
        .1
        .keys()
        .filter(|id| !now["app"].1.contains_key(*id))
        .collect();
    assert_eq!(ids, Vec::<&String>::new());
    assert!(
        now["app"].1.len() > 3000,
        "nothing of what was written meanwhile is there"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_lets_the_archive_win_and_changes_nothing_when_it_is_repeated() {
    let fake = Fake::start(ACCOUNT).await;
    let data = base64(&"text ".repeat(100).into_bytes());
    {
        let mut site = fake.site();
        site.create("app", 2, 1, false);
        for id in ["same", "newer", "deleted", "conflicted", "gone"] {
            site.put("app", &format!("{{\"_id\":\"{id}\",\"v\":1.0}}"));
        }
        let rev = site.databases["app"].tree("gone").unwrap().winner().rev();
        site.put(
            "app",
            &format!("{{\"_id\":\"gone\",\"_rev\":\"{rev}\",\"_deleted\":true}}"),
        );
        site.put("app", &format!("{{\"_id\":\"attached\",\"_attachments\":{{\"a\":{{\"content_type\":\"text/plain\",\"data\":\"{data}\"}}}}}}"));
    }
    let home = Home::new(&settings(&fake, "databases = [\"app\"]\n"));
    home.bk(&["backup"]).ended(0);
    {
        let mut site = fake.site();
        let change = |site: &mut Site, id: &str, more: &str| {
            let rev = site.databases["app"].tree(id).unwrap().winner().rev();
            site.put(
                "app",
                &format!("{{\"_id\":\"{id}\",\"_rev\":\"{rev}\"{more}}}"),
            );
        };
        change(&mut site, "newer", ",\"v\":2");
        change(&mut site, "newer", ",\"v\":3");
        change(&mut site, "deleted", ",\"_deleted\":true");
        change(&mut site, "attached", ",\"v\":2");
        site.put(
            "app",
            &format!(
                "{{\"_id\":\"conflicted\",\"other\":true,{}}}",
                history(4, 5)
            ),
        );
        site.put("app", r#"{"_id":"gone","back":true}"#);
        site.put("app", r#"{"_id":"stranger","mine":1}"#);
    }
    let merge = || {
        home.bk(&["restore", "--yes", "--existing", "merge"])
            .ended(0)
    };
    merge();
    let winner = |id: &str| {
        let site = fake.site();
        let leaf = site.databases["app"].tree(id).unwrap().winner().clone();
        (leaf.deleted, leaf.body, leaf.attachments.len())
    };
    for id in ["same", "newer", "deleted", "conflicted"] {
        assert_eq!(winner(id), (false, "\"v\":1.0".into(), 0), "{id}");
    }
    assert!(winner("gone").0);
    assert_eq!(winner("attached"), (false, String::new(), 1));
    assert_eq!(winner("stranger").1, "\"mine\":1");
    let merged = contents(&fake);
    merge();
    same(&merged, &contents(&fake), "a second merge");
    // What is there is not written into when that was refused, and goes when it is replaced.
    let refused = home.bk(&["restore", "--yes", "--existing", "refuse"]);
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    same(&merged, &contents(&fake), "a refused restore");
    home.bk(&["restore", "--yes"]).ended(0);
    assert!(fake.site().databases["app"].tree("stranger").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_replaced_without_a_moment_in_which_nobody_can_log_in() {
    let fake = Fake::start(ACCOUNT).await;
    {
        let mut site = fake.site();
        site.put(
            "_users",
            r#"{"_id":"_design/_auth","language":"javascript"}"#,
        );
        for name in ["jo", "ann"] {
            site.put("_users", &format!("{{\"_id\":\"org.couchdb.user:{name}\",\"name\":\"{name}\",\"derived_key\":\"x\"}}"));
        }
    }
    let home = Home::new(&settings(&fake, "databases = [\"_users\"]\n"));
    home.bk(&["backup"]).ended(0);
    {
        let mut site = fake.site();
        let rev = site.databases["_users"]
            .tree("org.couchdb.user:ann")
            .unwrap()
            .winner()
            .rev();
        site.put(
            "_users",
            &format!(
                "{{\"_id\":\"org.couchdb.user:ann\",\"_rev\":\"{rev}\",\"derived_key\":\"other\"}}"
            ),
        );
        site.put(
            "_users",
            r#"{"_id":"org.couchdb.user:stranger","derived_key":"y"}"#,
        );
        site.requests.clear();
    }
    home.bk(&["restore", "--yes"]).ended(0);
    let site = fake.site();
    assert!(
        !site.requests.iter().any(|r| r == "DELETE /_users"),
        "{:?}",
        site.requests
    );
    let winner = |id: &str| site.databases["_users"].tree(id).unwrap().winner().clone();
    assert!(winner("org.couchdb.user:stranger").deleted);
    assert!(
        winner("org.couchdb.user:ann")
            .body
            .contains("\"derived_key\":\"x\"")
    );
    assert!(!winner("org.couchdb.user:jo").deleted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_half_formed_is_refused_with_what_to_do() {
    let fake = Fake::start(ACCOUNT).await;
    seed_small(&mut fake.site(), "app", 2, 10);
    let home = Home::new(&settings(&fake, "databases = [\"app\"]\n"));
    home.bk(&["backup"]).ended(0);
    fake.site().databases.get_mut("app").unwrap().n = 3;
    let of_three = Home::new(&settings(&fake, "databases = [\"app\"]\n"));
    of_three.bk(&["backup"]).ended(0);
    let refused = of_three.bk(&["restore", "--yes"]);
    assert!(
        refused.code == 6 && refused.stderr.contains("n = 1"),
        "{} {}",
        refused.code,
        refused.stderr
    );
    of_three.write(
        "plugins.toml",
        settings(&fake, "databases = [\"app\"]\nn = 1\n"),
    );
    of_three.bk(&["restore", "--yes"]).ended(0);
    fake.site().nodes.1.clear();
    let refused = home.bk(&["restore", "--yes"]);
    assert!(
        refused.code == 6 && refused.stderr.contains("finish_cluster"),
        "{} {}",
        refused.code,
        refused.stderr
    );
    let nodes = fake.site().nodes.0.clone();
    fake.site().nodes.1 = nodes;
    fake.site().databases.remove("_users");
    let refused = home.bk(&["restore", "--yes"]);
    assert!(
        refused.code == 6 && refused.stderr.contains("/_users"),
        "{} {}",
        refused.code,
        refused.stderr
    );
    assert_eq!(fake.site().databases["app"].counts().0, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_document_that_a_server_refuses_is_found_and_named() {
    let fake = Fake::start(ACCOUNT).await;
    seed_small(&mut fake.site(), "app", 2, 1000);
    let heavy = "x".repeat(50_000);
    fake.site().put(
        "app",
        &format!("{{\"_id\":\"heavy one\",\"text\":\"{heavy}\"}}"),
    );
    let home = Home::new(&settings(&fake, "databases = [\"app\"]\n"));
    home.bk(&["backup"]).ended(0);
    fake.site().faults.max_document = Some(40_000);
    let restored = home.bk(&["restore", "--yes"]);
    assert_eq!(restored.code, 3, "{}", restored.stderr);
    assert!(
        restored.stderr.contains("1 documents were refused")
            && restored.stderr.contains("heavy one"),
        "{}",
        restored.stderr
    );
    assert_eq!(fake.site().databases["app"].counts().0, 1000);
    // It is half restored as long as that one is missing.
    let half = Home::new(&settings(&fake, "databases = [\"app\"]\n")).bk(&["backup"]);
    assert_ne!(half.code, 0, "{}", half.stderr);
    fake.site().faults = Faults::default();
    home.bk(&["restore", "--yes"]).ended(0);
    Home::new(&settings(&fake, "databases = [\"app\"]\n"))
        .bk(&["backup"])
        .ended(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn dumps_of_others_come_back_and_what_they_lack_is_named() {
    let fake = Fake::start(ACCOUNT).await;
    let home = Home::new(&settings(&fake, ""));
    let body = |name: &str, id: &str| {
        let site = fake.site();
        let tree = site.databases[name].tree(id).cloned();
        tree.map(|tree| tree.winner().clone())
    };
    // A folder as a job with curl leaves it: answers of `_all_docs`, its manifest, something of Kubernetes.
    home.write(
        "old/backup_manifest.json",
        r#"{"date":"2025-01-01","type":"daily","checksum":"x"}"#,
    );
    home.write(
        "old/configmaps.json",
        r#"{"apiVersion":"v1","kind":"List","items":[]}"#,
    );
    home.write(
        "old/school.json",
        r#"{"total_rows":3,"offset":0,"rows":[
{"id":"_design/a","key":"_design/a","value":{"rev":"1-aa"},"doc":{"_id":"_design/a","_rev":"1-aa","views":{}}},
{"id":"one","key":"one","value":{"rev":"2-bb"},"doc":{"_id":"one","_rev":"2-bb","big":12345678901234567890,"f":1.0}},
{"id":"gone","key":"gone","value":{"rev":"3-cc","deleted":true},"doc":null},
{"key":"never","error":"not_found"},
{"id":"file","key":"file","value":{"rev":"1-dd"},"doc":{"_id":"file","_rev":"1-dd","_attachments":{"a.txt":{"content_type":"text/plain","revpos":1,"digest":"md5-x","length":3,"stub":true}}}}
]}
"#,
    );
    let rights = r#"{"admins":{"roles":[]},"members":{"roles":["team"]}}"#;
    {
        let mut site = fake.site();
        site.create("school", 5, 1, false);
        site.put("school", r#"{"_id":"stranger"}"#);
        site.databases.get_mut("school").unwrap().security = Some(rights.into());
    }
    let restored = home.bk(&["restore", "--yes", "old"]);
    println!("{}", restored.stderr);
    assert_eq!(restored.code, 3, "{}", restored.stderr);
    for named in ["a.txt", "never", "configmaps.json"] {
        assert!(
            restored.stderr.contains(named),
            "{named}: {}",
            restored.stderr
        );
    }
    let one = body("school", "one").unwrap();
    assert_eq!(
        (one.rev(), one.body),
        (
            "2-bb".into(),
            "\"big\":12345678901234567890,\"f\":1.0".into()
        )
    );
    assert!(body("school", "_design/a").is_some() && body("school", "stranger").is_none());
    {
        let site = fake.site();
        let school = &site.databases["school"];
        assert_eq!(
            (school.q, school.security.as_deref()),
            (5, Some(rights)),
            "who may read it, and how it was made"
        );
    }
    // Files of couchbackup, interrupted and resumed, with attachments in its manner; of couchdb-dump; compressed.
    home.write(
        "wiki.txt",
        "{\"name\":\"@cloudant/couchbackup\",\"version\":\"2.11.12\",\"mode\":\"full\",\"attachments\":true}\n[{\"_id\":\"a\",\"_rev\":\"2-b\",\"_revisions\":{\"start\":2,\"ids\":[\"b\",\"a\"]},\"x\":1},null]\n[{\"_id\":\"b\",\"_re{\"marker\":\"@cloudant/couchbackup:resume\"}\n[{\"_id\":\"b\",\"_rev\":\"1-c\",\"_attachments\":{\"f\":{\"contentType\":\"image/png\",\"data\":\"AAEC\",\"revpos\":1}}}]\n",
    );
    let restored = home.bk(&["restore", "--yes", "wiki.txt"]).ended(0);
    println!("{}", restored.stderr);
    assert_eq!(body("wiki", "a").unwrap().ids, ["b", "a"]);
    let b = body("wiki", "b").unwrap();
    assert_eq!(
        (
            b.attachments[0].content_type.as_str(),
            &b.attachments[0].stored[..]
        ),
        ("image/png", &[0, 1, 2][..])
    );
    home.write("notes.json", "{\"new_edits\":false,\"docs\":[\n{\"_id\":\"n\",\"_rev\":\"1-a\"},\n{\"_id\":\"m\",\"_rev\":\"1-b\"}\n]}\n");
    home.bk(&[
        "restore",
        "--yes",
        "notes.json",
        "--into",
        "couchdb/notes=notes_copy",
    ])
    .ended(0);
    assert!(body("notes_copy", "n").is_some());
    // One that was cut off writes nothing.
    let whole = std::fs::read_to_string(home.path("old/school.json")).unwrap();
    home.write("cut.json", &whole[..whole.len() - 10]);
    let cut = home.bk(&["restore", "--yes", "cut.json"]);
    assert_eq!(cut.code, 7, "{}", cut.stderr);
    assert!(!fake.site().databases.contains_key("cut"));
    // What is there and newer gives way to a dump that is merged, and the rest stays.
    let rev = body("wiki", "a").unwrap().rev();
    fake.site().put(
        "wiki",
        &format!("{{\"_id\":\"a\",\"_rev\":\"{rev}\",\"x\":2}}"),
    );
    fake.site().put("wiki", r#"{"_id":"stranger"}"#);
    home.bk(&["restore", "--yes", "wiki.txt", "--existing", "merge"])
        .ended(0);
    assert_eq!(body("wiki", "a").unwrap().body, "\"x\":1");
    assert!(body("wiki", "stranger").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_others_is_verified_by_its_manifest_before_anything_is_written() {
    use sha2::Digest;
    let fake = Fake::start(ACCOUNT).await;
    let home = Home::new(&settings(&fake, ""));
    let sum = |text: &str| {
        let digest = sha2::Sha256::digest(text.as_bytes());
        digest
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
    };
    let rows = |id: &str| {
        format!(
            "{{\"rows\":[\n{{\"id\":\"{id}\",\"key\":\"{id}\",\"value\":{{\"rev\":\"1-aa\"}},\"doc\":{{\"_id\":\"{id}\",\"_rev\":\"1-aa\"}}}}\n]}}\n"
        )
    };
    let (school, wiki, objects) = (rows("one"), rows("two"), "kind: List\n");
    let all = [
        ("daily/school.json", &*school),
        ("daily/wiki.json", &wiki),
        ("daily/k8s/configmaps.yaml", objects),
    ];
    for (path, text) in all {
        home.write(path, text);
    }
    let manifests = [
        format!(
            r#"{{"date":"2025-01-15T02:00:00Z","type":"daily","checksums":{{"school.json":"{}","wiki.json":"sha256:{}"}}}}"#,
            sum(&school),
            sum(&wiki)
        ),
        format!(
            r#"{{"timestamp":"20250115_020000","backup_type":"full","databases":[{{"name":"school","checksum":"{}"}}],"checksum":"{}"}}"#,
            sum(&school),
            sum(&format!("{objects}{school}{wiki}"))
        ),
    ];
    for manifest in manifests {
        home.write("daily/backup_manifest.json", manifest);
        let verified = home.bk(&["verify", "daily"]);
        // What is of Kubernetes is nobody's here, and said so.
        assert_eq!(verified.code, 3, "{}{}", verified.stdout, verified.stderr);
        for said in ["not made by bk", "2 files for couchdb", "4 files"] {
            assert!(
                verified.stdout.contains(said),
                "{said}: {}",
                verified.stdout
            );
        }
        assert!(
            verified.stderr.contains("k8s") && verified.stderr.contains("2025"),
            "{}",
            verified.stderr
        );
        let restored = home.bk(&["restore", "--yes", "daily"]);
        assert_eq!(restored.code, 3, "{}", restored.stderr);
        assert!(restored.stderr.contains("type "), "{}", restored.stderr);
        assert!(fake.site().databases["wiki"].tree("two").is_some());
        // A byte that changed, a file that is gone, one that was cut off: neither is written.
        fake.site().databases.remove("wiki");
        for (path, text) in [
            ("daily/school.json", Some(school.replace("1-aa", "1-ab"))),
            ("daily/school.json", None),
        ] {
            match text {
                Some(text) => home.write(path, text),
                None => std::fs::remove_file(home.path(path)).unwrap(),
            }
            for verb in [&["verify", "daily"][..], &["restore", "--yes", "daily"]] {
                let said = home.bk(verb);
                assert_eq!(said.code, 7, "{verb:?}: {}", said.stderr);
                assert!(
                    said.stderr.contains("school") && said.stderr.contains("backup_manifest.json"),
                    "{}",
                    said.stderr
                );
            }
            home.write(path, &school);
        }
        assert!(!fake.site().databases.contains_key("wiki"));
    }
    // Without checksums a file that was cut off is found by what stands in it.
    home.write("daily/backup_manifest.json", r#"{"type":"daily"}"#);
    home.write("daily/wiki.json", &wiki[..wiki.len() - 6]);
    let verified = home.bk(&["verify", "daily"]);
    assert_eq!(verified.code, 7, "{}", verified.stderr);
    assert!(verified.stderr.contains("wiki.json"), "{}", verified.stderr);
    home.write(
        "daily/wiki.json",
        rows("two").replace("\"doc\":{", "\"dox\":{"),
    );
    let verified = home.bk(&["verify", "daily"]);
    assert_eq!(verified.code, 3, "{}", verified.stderr);
    assert!(
        verified.stderr.contains("no document"),
        "{}",
        verified.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_of_any_size_passes_through_little_memory() {
    let fake = Fake::start(ACCOUNT).await;
    let mib = long(160, 1024);
    let mut rng = SmallRng::seed_from_u64(seed(24));
    {
        let mut site = fake.site();
        site.create("app", 2, 1, false);
        let film = noise(&mut rng, mib << 20);
        site.attach("app", "film", "film.mp4", "video/mp4", film);
    }
    let before = contents(&fake);
    let home = Home::new(&settings(&fake, "databases = [\"app\"]\n"));
    let (backed_up, peak) = home.bk_watched(&["backup"]);
    backed_up.ended(0);
    let (restored, peak_of_restore) = home.bk_watched(&["restore", "--yes"]);
    restored.ended(0);
    println!("{mib} MiB: {peak} MiB to back up, {peak_of_restore} MiB to restore");
    same(&before, &contents(&fake), "a large attachment");
    assert!(
        peak < 256 && peak_of_restore < 256,
        "{peak} {peak_of_restore}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stand_in_that_lacks_much_serves_all_the_same() {
    let Some(server) = Pouchdb::start() else {
        return;
    };
    let fake = Fake::start(ACCOUNT).await;
    let there = settings(&fake, "databases = [\"wiki\"]\n").replace(&fake.url(), &server.url());
    let home = Home::new(&there.replace("databases = [\"wiki\"]\n", ""));
    let mut documents = vec![
        "{\"_id\":\"_design/v\",\"_rev\":\"1-d\",\"views\":{}}".to_owned(),
        format!(
            "{{\"_id\":\"conflict\",\"v\":1,\"_rev\":\"3-{0}\",{1}}}",
            rev(1003),
            history(3, 1)
        ),
        format!(
            "{{\"_id\":\"conflict\",\"v\":2,\"_rev\":\"2-{0}\",{1}}}",
            rev(2002),
            history(2, 2)
        ),
        "{\"_id\":\"gone\",\"_rev\":\"2-x\",\"_deleted\":true}".to_owned(),
        format!(
            "{{\"_id\":\"attached/ü\",\"_rev\":\"1-a\",\"_attachments\":{{\"f/ü\":{{\"content_type\":\"image/png\",\"data\":\"{}\"}}}}}}",
            base64(&[7; 5000])
        ),
    ];
    documents.extend((0..1200).map(|n| format!("{{\"_id\":\"d{n}\",\"_rev\":\"1-a\",\"n\":{n}}}")));
    home.write(
        "wiki.json",
        format!(
            "{{\"new_edits\":false,\"docs\":[\n{}\n]}}\n",
            documents.join(",\n")
        ),
    );
    home.bk(&["restore", "--yes", "wiki.json"]).ended(0);
    home.write("plugins.toml", &there);
    let said = home.bk(&["backup"]).ended(0);
    println!("{}", said.stderr);
    // Its keys change their places from one write to the next, so blocks are not compared.
    for how in ["replace", "merge"] {
        home.bk(&["restore", "--yes", "--existing", how]).ended(0);
    }
    // What it gave is what another server then has.
    home.write("plugins.toml", settings(&fake, "databases = [\"wiki\"]\n"));
    home.bk(&["restore", "--yes"]).ended(0);
    let site = fake.site();
    let wiki = &site.databases["wiki"];
    assert_eq!(wiki.counts(), (1203, 1));
    let leaves = |id: &str| wiki.tree(id).unwrap().leaves.clone();
    assert_eq!(leaves("conflict").len(), 2);
    assert_eq!(leaves("attached/ü")[0].attachments[0].stored[..], [7; 5000]);
    assert!(leaves("gone")[0].deleted);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_while_a_database_is_read_is_neither_doubled_nor_raised_from_the_dead() {
    let fake = Fake::start(ACCOUNT).await;
    let mut rng = SmallRng::seed_from_u64(seed(25));
    {
        let mut site = fake.site();
        seed_small(&mut site, "a", 2, 100);
        seed_small(&mut site, "b", 2, 100);
    }
    let mut once = Some(noise(&mut rng, 14 << 20));
    fake.on_read(move |site| {
        let Some(film) = once.take() else { return };
        // Between the first look at `b` and its feed: it is in both.
        site.attach("b", "film", "film.mp4", "video/mp4", film);
        let rev = site.databases["a"]
            .tree("document 7")
            .unwrap()
            .winner()
            .rev();
        site.put(
            "a",
            &format!("{{\"_id\":\"document 7\",\"_rev\":\"{rev}\",\"_deleted\":true}}"),
        );
    });
    let home = Home::new(&settings(
        &fake,
        "databases = [\"a\", \"b\"]\nparallel = 1\n",
    ));
    home.bk(&["backup"]).ended(0);
    let before = contents(&fake);
    home.bk(&["restore", "--yes", "--existing", "merge"])
        .ended(0);
    same(&before, &contents(&fake), "merged into what was there");
    home.bk(&["restore", "--yes"]).ended(0);
    same(&before, &contents(&fake), "into nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_settles_conflicts_and_attachments_of_other_servers_once() {
    let fake = Fake::start(ACCOUNT).await;
    let text = b"text ".repeat(1000);
    {
        let mut site = fake.site();
        site.create("app", 2, 1, false);
        site.attach_compressed("app", "attached", "a.txt", &text);
        site.put("app", r#"{"_id":"gone","v":1}"#);
        let rev = site.databases["app"].tree("gone").unwrap().winner().rev();
        site.put(
            "app",
            &format!("{{\"_id\":\"gone\",\"_rev\":\"{rev}\",\"_deleted\":true}}"),
        );
    }
    let home = Home::new(&settings(&fake, "databases = [\"app\"]\n"));
    home.bk(&["backup"]).ended(0);
    {
        let mut site = fake.site();
        let rev = site.databases["app"]
            .tree("attached")
            .unwrap()
            .winner()
            .rev();
        site.put(
            "app",
            &format!("{{\"_id\":\"attached\",\"_rev\":\"{rev}\",\"v\":2}}"),
        );
        for n in 1..4 {
            site.put(
                "app",
                &format!("{{\"_id\":\"gone\",\"n\":{n},{}}}", history(n + 1, n)),
            );
        }
    }
    home.bk(&["restore", "--yes", "--existing", "merge"])
        .ended(0);
    let merged = contents(&fake);
    {
        let site = fake.site();
        assert!(site.databases["app"].tree("gone").unwrap().winner().deleted);
        let winner = site.databases["app"]
            .tree("attached")
            .unwrap()
            .winner()
            .clone();
        assert_eq!(
            (winner.body.as_str(), winner.attachments[0].length),
            ("", 5000)
        );
    }
    home.bk(&["restore", "--yes", "--existing", "merge"])
        .ended(0);
    same(&merged, &contents(&fake), "a second merge");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_users_locks_nobody_out() {
    let fake = Fake::start(ACCOUNT).await;
    fake.site().put(
        "_users",
        r#"{"_id":"org.couchdb.user:stranger","derived_key":"y"}"#,
    );
    let home = Home::new(&settings(&fake, ""));
    home.write("_users.json", "{\"total_rows\":1,\"rows\":[\n{\"id\":\"org.couchdb.user:jo\",\"key\":\"x\",\"value\":{\"rev\":\"1-a\"},\"doc\":{\"_id\":\"org.couchdb.user:jo\",\"_rev\":\"1-a\",\"derived_key\":\"x\"}}\n]}\n");
    home.bk(&["restore", "--yes", "_users.json"]).ended(0);
    let site = fake.site();
    let winner = |id: &str| site.databases["_users"].tree(id).unwrap().winner().clone();
    assert!(!winner("org.couchdb.user:jo").deleted);
    assert!(winner("org.couchdb.user:stranger").deleted);
}
