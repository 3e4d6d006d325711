//! MySQL and MariaDB, real ones: what is in a server comes back equal, or is named.

use async_trait::async_trait;
use bk_core::archive::read_at::FileReadAt;
use bk_core::archive::tail::Opened;
use bk_core::settings::Settings;
use bk_core::source::Source;
use bk_tests::binary::Home;
use bk_tests::database::{Kind, Server, fixture};
use bk_tests::engine::raw_sums;
use bk_tests::source_suite::{self, Subject};
use bk_tests::{long, seed};
use mysql_async::prelude::Queryable;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn settings(sources: &str, out: &str) -> String {
    format!(
        "format = 1\nplugins = [\"mysql\", \"local\"]\n{sources}[sink.local]\npath = \"{out}\"\n"
    )
}

fn hard(kind: Kind) -> Option<Server> {
    let server = Server::start(kind, &[])?;
    server.load(&fixture("hard-common.sql"));
    server.load(&fixture(match kind {
        Kind::MariaDb => "hard-mariadb.sql",
        Kind::MySql => "hard-mysql.sql",
    }));
    Some(server)
}

async fn hard_cases_come_back(kind: Kind) {
    let Some(from) = hard(kind) else { return };
    let home = Home::new(&settings(&from.source("mysql"), "out"));
    let backed_up = home.bk(&["backup"]).ended(0);
    let before = from.contents().await;

    let Some(to) = Server::start(kind, &[]) else {
        return;
    };
    home.write("to.toml", settings(&to.source("mysql"), "out"));
    home.bk(&["restore", "--config", "to.toml", "--yes"])
        .ended(0);
    assert_eq!(
        before.difference(&to.contents().await),
        None,
        "{}",
        backed_up.stderr
    );
    // And once more over what is there.
    home.bk(&["restore", "--config", "to.toml", "--yes"])
        .ended(0);
    assert_eq!(before.difference(&to.contents().await), None);
    drop(to);

    // The plain client loads the same members in the order of the archive.
    let Some(plain) = Server::start(kind, &[]) else {
        return;
    };
    let archive = home.path("out").join(&home.archives()[0]);
    let mut tar = std::process::Command::new("tar")
        .args(["-xOJf"])
        .arg(&archive)
        .args(["--wildcards", "mysql/*.sql"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let loaded = plain
        .client()
        .stdin(tar.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(tar.wait().unwrap().success());
    assert!(
        loaded.status.success(),
        "{}",
        String::from_utf8_lossy(&loaded.stderr)
    );
    assert_eq!(before.difference(&plain.contents().await), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn hard_cases_of_mariadb_come_back_equal_by_restore_and_by_the_plain_client() {
    hard_cases_come_back(Kind::MariaDb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hard_cases_of_mysql_come_back_equal_by_restore_and_by_the_plain_client() {
    hard_cases_come_back(Kind::MySql).await;
}

const TABLES: u32 = 20;
const ROWS: u32 = 200;

/// Tables whose sum never changes, and writers that move amounts between them.
struct Ledger {
    stop: Arc<AtomicBool>,
    moved: Arc<AtomicU64>,
    writers: Vec<tokio::task::JoinHandle<()>>,
}

impl Ledger {
    async fn make(server: &Server) {
        let mut conn = server.connect().await;
        conn.query_drop("CREATE DATABASE ledger").await.unwrap();
        for t in 0..TABLES {
            conn.query_drop(format!(
                "CREATE TABLE ledger.t{t} (id INT PRIMARY KEY, amount BIGINT NOT NULL, pad VARCHAR(200) NOT NULL) ENGINE=InnoDB"
            ))
            .await
            .unwrap();
            let rows: Vec<_> = (0..ROWS)
                .map(|r| format!("({r},1000,REPEAT('p',200))"))
                .collect();
            conn.query_drop(format!("INSERT INTO ledger.t{t} VALUES {}", rows.join(",")))
                .await
                .unwrap();
        }
        conn.disconnect().await.unwrap();
    }

    async fn write(server: &Server, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let moved = Arc::new(AtomicU64::new(0));
        let mut writers = Vec::new();
        for w in 0..4 {
            let (mut conn, stop, moved) = (server.connect().await, stop.clone(), moved.clone());
            writers.push(tokio::spawn(async move {
                let mut random = SmallRng::seed_from_u64(seed ^ w);
                while !stop.load(Ordering::Relaxed) {
                    let (a, b) = (
                        random.random_range(0..TABLES),
                        random.random_range(0..TABLES),
                    );
                    let (r, amount) = (random.random_range(0..ROWS), random.random_range(1..50));
                    let moves = [
                        "START TRANSACTION".to_owned(),
                        format!("UPDATE ledger.t{a} SET amount = amount - {amount} WHERE id = {r}"),
                        format!("UPDATE ledger.t{b} SET amount = amount + {amount} WHERE id = {r}"),
                        "COMMIT".to_owned(),
                    ];
                    let mut done = Ok(());
                    for sql in &moves {
                        done = conn.query_drop(sql).await;
                        if done.is_err() {
                            break;
                        }
                    }
                    match done {
                        Ok(()) => {
                            moved.fetch_add(1, Ordering::Relaxed);
                        }
                        // A deadlock takes both halves back.
                        Err(_) => conn.query_drop("ROLLBACK").await.unwrap(),
                    }
                }
                conn.disconnect().await.unwrap();
            }));
        }
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

    async fn sum(server: &Server, database: &str) -> i64 {
        let mut conn = server.connect().await;
        let mut sum = 0;
        for t in 0..TABLES {
            let one: Option<i64> = conn
                .query_first(format!(
                    "SELECT CAST(SUM(amount) AS SIGNED) FROM {database}.t{t}"
                ))
                .await
                .unwrap();
            sum += one.unwrap_or_default();
        }
        conn.disconnect().await.unwrap();
        sum
    }
}

async fn the_ledger_is_whole(kind: Kind) {
    let seed = seed(5);
    let Some(server) = Server::start(kind, &[]) else {
        return;
    };
    Ledger::make(&server).await;
    let ledger = Ledger::write(&server, seed).await;
    // DDL on other tables goes on meanwhile.
    let storm_stop = Arc::new(AtomicBool::new(false));
    let storm = {
        let (mut conn, stop) = (server.connect().await, storm_stop.clone());
        conn.query_drop("CREATE DATABASE storm").await.unwrap();
        tokio::spawn(async move {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut done = true;
                for sql in [
                    "CREATE TABLE IF NOT EXISTS storm.x (id INT PRIMARY KEY, a INT)",
                    "INSERT INTO storm.x VALUES (1, 1)",
                    "ALTER TABLE storm.x ADD COLUMN b INT DEFAULT 3",
                    "TRUNCATE TABLE storm.x",
                    "DROP TABLE storm.x",
                ] {
                    // The lock of a backup may come between.
                    done &= conn.query_drop(sql).await.is_ok();
                }
                rounds += u64::from(done);
            }
            conn.disconnect().await.unwrap();
            rounds
        })
    };
    let home = Home::new(&settings(
        &format!("{}databases = [\"ledger\"]\n", server.source("mysql")),
        "out",
    ));
    let runs = long(4, 50);
    for _ in 0..runs {
        home.bk(&["backup"]).ended(0);
        home.bk(&["restore", "--yes", "--into", "mysql/ledger=ledger_copy"])
            .ended(0);
        assert_eq!(
            Ledger::sum(&server, "ledger_copy").await,
            i64::from(TABLES * ROWS) * 1000,
            "an archive does not show one instant"
        );
    }
    storm_stop.store(true, Ordering::Relaxed);
    let rounds: u64 = storm.await.unwrap();
    let moved = ledger.end().await;
    println!(
        "{kind:?}: {runs} of {runs} backups whole and right; {moved} transactions, {rounds} rounds of DDL beside them"
    );
    assert!(moved > 0 && rounds > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_on_mariadb_is_whole_while_it_is_written() {
    the_ledger_is_whole(Kind::MariaDb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_on_mysql_is_whole_while_it_is_written() {
    the_ledger_is_whole(Kind::MySql).await;
}

/// The source of an account that has a few rights.
fn as_half(server: &Server) -> String {
    let root = server.source("mysql");
    root.replace("\"root\"", "\"half\"\npassword = \"pw\"")
}

/// Read by an account that has rights on its database alone.
async fn a_ledger_is_whole_without_the_global_lock(
    kind: Kind,
    options: &[&str],
    rights: &str,
    words: &[&str],
) {
    let Some(server) = Server::start(kind, options) else {
        return;
    };
    Ledger::make(&server).await;
    server
        .run_all(&[
            "CREATE TABLE ledger.plain (id INT PRIMARY KEY) ENGINE=MyISAM",
            "INSERT INTO ledger.plain VALUES (1)",
            "CREATE USER 'half'@'localhost' IDENTIFIED BY 'pw'",
            &format!("GRANT {rights} ON ledger.* TO 'half'@'localhost'"),
        ])
        .await;
    let ledger = Ledger::write(&server, seed(8)).await;
    let half = as_half(&server);
    let home = Home::new(&settings(
        &format!("{half}databases = [\"ledger\"]\n"),
        "out",
    ));
    let root = server.source("mysql");
    home.write("root.toml", settings(&root, "out"));
    for _ in 0..long(3, 20) {
        let told = home.bk(&["backup"]).ended(0).stderr;
        assert!(told.contains("no global lock"), "{told}");
        let shown = home.bk(&["show"]).ended(0).stdout;
        let word = words.iter().find(|word| shown.contains(**word));
        assert!(word.is_some(), "{shown}\n{told}");
        println!("{kind:?}, {rights}: {}", word.unwrap_or(&""));
        home.bk(&[
            "restore",
            "--config",
            "root.toml",
            "--yes",
            "--into",
            "mysql/ledger=ledger_copy",
        ])
        .ended(0);
        assert_eq!(
            Ledger::sum(&server, "ledger_copy").await,
            i64::from(TABLES * ROWS) * 1000,
            "an archive does not show one instant: {told}"
        );
    }
    assert!(ledger.end().await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_on_mariadb_is_whole_without_the_global_lock() {
    let words = ["binlog-snapshots-equal"];
    a_ledger_is_whole_without_the_global_lock(Kind::MariaDb, &[], "SELECT, SHOW VIEW", &words)
        .await;
    // Without a binary log there are no places in it.
    let (rights, words) = ("SELECT, SHOW VIEW, LOCK TABLES", ["tables-locked"]);
    a_ledger_is_whole_without_the_global_lock(Kind::MariaDb, &["--skip-log-bin"], rights, &words)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_on_mysql_is_whole_without_the_global_lock() {
    let words = ["tables-locked"];
    let rights = "SELECT, SHOW VIEW, LOCK TABLES";
    a_ledger_is_whole_without_the_global_lock(Kind::MySql, &[], rights, &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_is_whole_without_any_lock() {
    let words = ["single-connection"];
    a_ledger_is_whole_without_the_global_lock(Kind::MySql, &[], "SELECT, SHOW VIEW", &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_are_compared_on_a_quiet_server_and_the_archive_says_so() {
    let Some(server) = Server::start(Kind::MySql, &[]) else {
        return;
    };
    server
        .run_all(&[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.orders (id INT PRIMARY KEY)",
            "INSERT INTO shop.orders VALUES (1), (2)",
            "CREATE USER 'half'@'localhost' IDENTIFIED BY 'pw'",
            "GRANT SELECT ON shop.* TO 'half'@'localhost'",
            "GRANT REPLICATION CLIENT ON *.* TO 'half'@'localhost'",
        ])
        .await;
    let half = as_half(&server);
    let home = Home::new(&settings(&format!("{half}databases = [\"shop\"]\n"), "out"));
    let told = home.bk(&["backup"]).ended(0).stderr;
    assert!(told.contains("positions were compared"), "{told}");
    let shown = home.bk(&["show"]).ended(0).stdout;
    assert!(shown.contains("positions-compared"), "{shown}");
}

async fn blocks_of(home: &Home, config: &str, out: &str) -> BTreeSet<String> {
    let _ = std::fs::remove_dir_all(home.path(out));
    home.bk(&["backup", "--config", config]).ended(0);
    let name = home
        .names_in(out)
        .into_iter()
        .rfind(|n| n.ends_with(".tar.xz"))
        .unwrap();
    let file = FileReadAt::open(&home.path(out).join(name)).unwrap();
    raw_sums(&Opened::open(Arc::new(file)).await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_row_changes_at_most_three_blocks_and_workers_change_none() {
    let Some(server) = Server::start(Kind::MariaDb, &[]) else {
        return;
    };
    let rows = long(120_000, 1_500_000);
    server
        .run_all(&[
            "CREATE DATABASE big",
            "CREATE TABLE big.t (id BIGINT PRIMARY KEY, a VARCHAR(400), n INT, KEY (n))",
            &format!("INSERT INTO big.t SELECT seq * 10, CONCAT(SHA2(seq, 512), SHA2(seq + 1, 512), REPEAT('x', 60)), seq % 1000 FROM big.seq_1_to_{rows}"),
            "CREATE TABLE big.small (id INT PRIMARY KEY, x INT)",
            "INSERT INTO big.small SELECT seq, seq FROM big.seq_1_to_100",
            "CREATE TABLE big.names (name VARCHAR(60) PRIMARY KEY, x TEXT)",
            "INSERT INTO big.names SELECT SHA1(seq), REPEAT(MD5(seq), 20) FROM big.seq_1_to_20000",
        ])
        .await;
    let home = Home::new("");
    for parallel in [1, 8] {
        let text = settings(
            &format!("{}parallel = {parallel}\n", server.source("mysql")),
            &format!("out{parallel}"),
        );
        home.write(&format!("p{parallel}.toml"), text);
    }
    let mut before = blocks_of(&home, "p1.toml", "out1").await;
    assert_eq!(
        before,
        blocks_of(&home, "p8.toml", "out8").await,
        "workers change blocks"
    );
    println!("{} blocks", before.len());
    let mut random = SmallRng::seed_from_u64(seed(9));
    // The last row of a segment is a cut: it goes, and comes again.
    let cut = last_row_of_a_segment(&home, "out1");
    let mut changes = vec![
        format!("DELETE FROM big.t WHERE id = {cut}"),
        format!("INSERT INTO big.t SELECT {cut}, a, n FROM big.t WHERE id = 10"),
    ];
    changes.extend((0..long(9, 15)).map(|round| {
        let row = random.random_range(1..rows as u64) * 10;
        match round % 3 {
            0 => format!("UPDATE big.t SET a = REVERSE(a) WHERE id = {row}"),
            1 => format!(
                "INSERT INTO big.t VALUES ({}, REPEAT('new', 100), 1)",
                row + 1 + round as u64 % 9
            ),
            _ => format!("DELETE FROM big.t WHERE id = {row}"),
        }
    }));
    for sql in changes {
        server.run_all(&[&sql]).await;
        let after = blocks_of(&home, "p8.toml", "out8").await;
        let changed = after.difference(&before).count();
        println!("{sql}: {changed} blocks");
        assert!(
            changed <= 3,
            "{sql} changed {changed} of {} blocks",
            after.len()
        );
        before = after;
    }
}

/// The key of the last row in the middle one of the table's segments.
fn last_row_of_a_segment(home: &Home, out: &str) -> u64 {
    let archive = std::fs::read_dir(home.path(out))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "xz"))
        .unwrap();
    let tar = |words: &[&str]| {
        let mut command = std::process::Command::new("tar");
        let output = command
            .arg(words[0])
            .arg(&archive)
            .args(&words[1..])
            .output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    };
    let list = tar(&["-tJf"]);
    let segments: Vec<_> = list
        .lines()
        .filter(|name| name.starts_with("mysql/big/t/") && !name.ends_with("/schema.sql"))
        .collect();
    let text = tar(&["-xOJf", segments[segments.len() / 2]]);
    let last = text.lines().rfind(|line| line.starts_with('(')).unwrap();
    let key = last.trim_start_matches('(').split(',').next().unwrap();
    key.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_beside_a_server_leaves_both_whole() {
    let Some(server) = Server::start(Kind::MariaDb, &[]) else {
        return;
    };
    server
        .run_all(&[
            "CREATE DATABASE shop",
            "USE shop",
            "CREATE TABLE a (id INT PRIMARY KEY, t VARCHAR(100))",
            "INSERT INTO a SELECT seq, REPEAT(MD5(seq), 3) FROM seq_1_to_50000",
        ])
        .await;
    let sources = format!("{}[source.files]\npath = \"src\"\n", server.source("mysql"));
    let home =
        Home::new(&settings(&sources, "out").replacen("\"mysql\"", "\"mysql\", \"files\"", 1));
    std::fs::create_dir_all(home.path("src/media")).unwrap();
    let piece = bk_tests::data::noise(seed(5), 8 << 20);
    let mut bytes = 0_u64;
    {
        use std::io::Write;
        let mut file = std::fs::File::create(home.path("src/media/film")).unwrap();
        for n in 0..long(8, 256) {
            file.write_all(&(n as u64).to_le_bytes()).unwrap();
            file.write_all(&piece).unwrap();
            bytes += 8 + piece.len() as u64;
        }
    }
    let before = server.contents().await;
    home.bk(&["backup"]).ended(0);
    server.run_all(&["DROP DATABASE shop"]).await;
    std::fs::rename(home.path("src"), home.path("was")).unwrap();
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!(before.difference(&server.contents().await), None);
    let film = home.path("src/media/film");
    assert_eq!(std::fs::metadata(&film).unwrap().len(), bytes);
    let same = std::process::Command::new("cmp")
        .arg(home.path("was/media/film"))
        .arg(&film)
        .status()
        .unwrap();
    assert!(same.success());
}

/// A run that must not end as if all were well: its code, its words, no whole archive.
fn fails(home: &Home, config: &str, codes: &[i32], words: &[&str]) {
    let ran = home.bk(&["backup", "--config", config]);
    assert!(
        codes.contains(&ran.code),
        "ended with {}: {}",
        ran.code,
        ran.stderr
    );
    for word in words {
        assert!(
            ran.stderr.contains(word),
            "`{word}` is not said: {}",
            ran.stderr
        );
    }
    let whole = home
        .names_in("out")
        .into_iter()
        .filter(|n| n.ends_with(".tar.xz"))
        .count();
    assert_eq!(whole, 0, "a whole archive: {}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_ends_well_that_did_not_go_well() {
    let Some(mut server) = Server::start(Kind::MariaDb, &[]) else {
        return;
    };
    server
        .run_all(&[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.orders (id INT PRIMARY KEY, a TEXT)",
            "INSERT INTO shop.orders SELECT seq, REPEAT(SHA2(seq, 512), 30) FROM shop.seq_1_to_20000",
            "CREATE TABLE shop.secret (id INT PRIMARY KEY)",
            "CREATE TABLE shop.fine (id INT PRIMARY KEY)",
            "CREATE USER 'half'@'%' IDENTIFIED BY 'pw'",
            "GRANT SELECT ON shop.orders TO 'half'@'%'",
            "GRANT SELECT, SHOW VIEW ON shop.fine TO 'half'@'%'",
            "GRANT INSERT ON shop.secret TO 'half'@'%'",
        ])
        .await;
    let home = Home::new("");
    let by_tcp = |user: &str, password: &str, more: &str| {
        settings(
            &format!(
                "[source.mysql]\nhost = \"127.0.0.1\"\nport = {}\nuser = \"{user}\"\npassword = \"{password}\"\n{more}",
                server.port()
            ),
            "out",
        )
    };
    home.write("wrong.toml", by_tcp("half", "not it", ""));
    fails(&home, "wrong.toml", &[4], &["1045"]);
    home.write(
        "closed.toml",
        by_tcp("half", "pw", "").replace(&server.port().to_string(), "1"),
    );
    fails(&home, "closed.toml", &[1], &["127.0.0.1:1"]);
    home.write(
        "half.toml",
        by_tcp("half", "pw", "databases = [\"shop\"]\n"),
    );
    fails(&home, "half.toml", &[3], &["shop/secret"]);
    let root = server.source("mysql");
    home.write(
        "none.toml",
        settings(
            &format!("{root}databases = [\"shop\", \"nowhere\"]\n"),
            "out",
        ),
    );
    fails(&home, "none.toml", &[1, 4, 5], &["nowhere"]);

    // While a table is read: its connection killed, it altered, it dropped, the server gone. The sink is slow, so that there is a while.
    home.write(
        "root.toml",
        settings(
            &format!("{root}databases = [\"shop\"]\nparallel = 1\n"),
            "out",
        ),
    );
    let last = [
        "DROP TABLE IF EXISTS shop.zlast",
        "CREATE TABLE shop.zlast (id INT, y INT) PARTITION BY RANGE (y) (PARTITION p0 VALUES LESS THAN (5), PARTITION p1 VALUES LESS THAN (20))",
        "INSERT INTO shop.zlast VALUES (1, 1), (2, 10)",
        "CREATE TABLE IF NOT EXISTS shop.zzz (id INT, y INT)",
    ];
    for (sql, words) in [
        ("KILL", "shop/orders"),
        (
            "ALTER TABLE shop.zlast ADD COLUMN b INT DEFAULT 1, ALGORITHM=INSTANT",
            "shop/zlast",
        ),
        ("ALTER TABLE shop.zlast DROP PARTITION p0", "shop/zlast"),
        (
            "ALTER TABLE shop.zlast EXCHANGE PARTITION p0 WITH TABLE shop.zzz",
            "shop/zlast",
        ),
        ("TRUNCATE TABLE shop.zlast", "shop/zlast"),
        ("DROP TABLE shop.zlast", "shop/zlast"),
        (
            "RENAME TABLE shop.zlast TO shop.away, shop.zzz TO shop.zlast",
            "shop/zlast",
        ),
    ] {
        server.run_all(&last).await;
        let ran = while_reading(&home, &server, sql).await;
        assert!(
            [1, 3].contains(&ran.code),
            "after {sql}: {}: {}",
            ran.code,
            ran.stderr
        );
        assert!(ran.stderr.contains(words), "after {sql}: {}", ran.stderr);
    }
    server.run_all(&["DROP TABLE shop.zlast"]).await;
    let child = home
        .command(&["backup", "--config", "root.toml"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_reading(&server).await;
    server.kill();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!([1, 3].contains(&output.status.code().unwrap()), "{told}");
    let whole = home
        .names_in("out")
        .into_iter()
        .filter(|n| n.ends_with(".tar.xz"))
        .count();
    assert_eq!(whole, 0, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_over_the_limit_fails_its_table_alone() {
    let Some(server) = Server::start(Kind::MariaDb, &[]) else {
        return;
    };
    server
        .run_all(&[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.giants (id INT PRIMARY KEY, a LONGTEXT)",
            "INSERT INTO shop.giants VALUES (1, 'a'), (2, REPEAT('0123456789', 4000000)), (3, 'c')",
            "CREATE TABLE shop.orders (id INT PRIMARY KEY, a TEXT)",
            "INSERT INTO shop.orders VALUES (1, 'a'), (2, 'b')",
        ])
        .await;
    let home = Home::new("");
    let source = format!(
        "{}databases = [\"shop\"]\nparallel = 1\n",
        server.source("mysql")
    );
    let limited = settings(&source, "out") + "[archive]\nmax_record = \"32 MiB\"\n";
    home.write("plugins.toml", limited);
    let ran = home.bk(&["backup"]).ended(3);
    for word in [
        "shop/giants",
        "archive.max_record",
        "set `archive.max_record` above",
    ] {
        assert!(ran.stderr.contains(word), "{}", ran.stderr);
    }
    server.run_all(&["DROP TABLE shop.orders"]).await;
    home.bk(&[
        "restore",
        "--yes",
        "--only",
        "mysql/shop/orders",
        "--allow-partial",
    ])
    .ended(0);
    let mut conn = server.connect().await;
    let rows: Option<u64> = conn
        .query_first("SELECT COUNT(*) FROM shop.orders")
        .await
        .unwrap();
    assert_eq!(rows, Some(2));
    home.write("plugins.toml", settings(&source, "whole"));
    home.bk(&["backup"]).ended(0);
}

/// Until a statement that reads rows of `orders` runs, and which connection runs it.
async fn wait_for_reading(server: &Server) -> u64 {
    let mut conn = server.connect().await;
    loop {
        let found: Option<u64> = conn
            .query_first("SELECT CAST(ID AS UNSIGNED) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT%FROM `shop`.`orders`%' AND ID <> CONNECTION_ID() AND INFO NOT LIKE '%PROCESSLIST%'")
            .await
            .unwrap();
        if let Some(id) = found {
            return id;
        }
        tokio::task::yield_now().await;
    }
}

async fn while_reading(home: &Home, server: &Server, sql: &str) -> bk_tests::binary::Ran {
    let child = home
        .command(&["backup", "--config", "root.toml"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let id = wait_for_reading(server).await;
    if sql == "KILL" {
        server.run_all(&[&format!("KILL {id}")]).await;
    } else {
        let mut conn = server.connect().await;
        // It waits for the snapshot's end, or it is done in place; both are found.
        conn.query_drop("SET lock_wait_timeout = 60").await.unwrap();
        conn.query_drop(sql).await.unwrap();
    }
    child.wait_with_output().unwrap().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_restore_is_not_backed_up_and_the_same_restore_finishes_it() {
    let Some(from) = Server::start(Kind::MariaDb, &[]) else {
        return;
    };
    from.run_all(&[
        "CREATE DATABASE shop",
        "CREATE TABLE shop.orders (id INT PRIMARY KEY, a TEXT, KEY (a(10)))",
        "INSERT INTO shop.orders SELECT seq, REPEAT(SHA2(seq, 512), 30) FROM shop.seq_1_to_20000",
        "CREATE TABLE shop.other (id INT PRIMARY KEY)",
        "CREATE DATABASE untouched",
        "CREATE TABLE untouched.t (id INT PRIMARY KEY)",
    ])
    .await;
    let home = Home::new(&settings(&from.source("mysql"), "out"));
    home.bk(&["backup"]).ended(0);
    let before = from.contents().await;
    let mut child = home
        .command(&["restore", "--yes", "--only", "mysql/shop"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut conn = from.connect().await;
    loop {
        let rows: Result<Option<u64>, _> =
            conn.query_first("SELECT COUNT(*) FROM shop.orders").await;
        if rows.is_ok_and(|rows| rows.is_some_and(|n| n > 0 && n < 20_000)) {
            break;
        }
        assert!(
            child.try_wait().unwrap().is_none(),
            "the restore was over before it could be killed"
        );
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let half = home.bk(&["backup"]).ended(3);
    assert!(
        half.stderr.contains("did not finish") && half.stderr.contains("shop/orders"),
        "{}",
        half.stderr
    );
    assert!(!half.stderr.contains("untouched/t:"), "{}", half.stderr);
    let told = half.stderr.split("finish it with bk ").nth(1).unwrap();
    let told = told.split(", or say").next().unwrap();
    let mut words: Vec<_> = told.split_whitespace().collect();
    words.push("--yes");
    home.bk(&words).ended(0);
    assert_eq!(before.difference(&from.contents().await), None);
    home.bk(&["backup"]).ended(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn replace_and_merge_touch_what_is_selected_and_nothing_else() {
    for kind in [Kind::MariaDb, Kind::MySql] {
        let Some(server) = Server::start(kind, &[]) else {
            continue;
        };
        server
            .run_all(&[
                "CREATE DATABASE shop",
                "CREATE DATABASE other",
                "CREATE TABLE shop.orders (id INT PRIMARY KEY, a VARCHAR(20))",
                "INSERT INTO shop.orders VALUES (1, 'one'), (2, 'two')",
                "CREATE TABLE shop.items (id INT PRIMARY KEY, o INT, CONSTRAINT to_orders FOREIGN KEY (o) REFERENCES shop.orders (id))",
                "INSERT INTO shop.items VALUES (1, 1), (2, 2)",
                "CREATE TABLE other.far (id INT PRIMARY KEY, o INT, CONSTRAINT far_orders FOREIGN KEY (o) REFERENCES shop.orders (id))",
                "INSERT INTO other.far VALUES (1, 2)",
                "CREATE VIEW shop.v AS SELECT id FROM shop.orders",
                "CREATE FUNCTION shop.f() RETURNS INT DETERMINISTIC NO SQL RETURN 1",
            ])
            .await;
        let home = Home::new(&settings(&server.source("mysql"), "out"));
        home.bk(&["backup"]).ended(0);
        let before = server.contents().await;
        let newer = [
            "UPDATE shop.orders SET a = 'changed' WHERE id = 1",
            "INSERT INTO shop.orders VALUES (3, 'newer')",
            "CREATE TABLE shop.newer (id INT PRIMARY KEY)",
            "CREATE OR REPLACE VIEW shop.v AS SELECT id + 1 AS id FROM shop.orders",
            "DROP FUNCTION shop.f",
            "CREATE FUNCTION shop.f() RETURNS INT DETERMINISTIC NO SQL RETURN 2",
            "UPDATE shop.items SET o = 2 WHERE id = 1",
        ];
        server.run_all(&newer).await;
        let changed = server.contents().await;

        // Merge: the archive wins, the rest stays.
        home.bk(&[
            "restore",
            "--yes",
            "--only",
            "mysql/shop/orders",
            "--existing",
            "merge",
        ])
        .ended(0);
        let merged = server.contents().await;
        let orders = &merged.0["shop/orders: rows"];
        assert!(
            orders.len() == 3 && orders[0].ends_with("one") && orders[2].ends_with("newer"),
            "{orders:?}"
        );
        assert_eq!(
            merged
                .clone()
                .without("shop/orders")
                .difference(&changed.clone().without("shop/orders")),
            None
        );

        // Replace of one table that others point to: equal to the archive, its neighbours as they were.
        home.bk(&[
            "restore",
            "--yes",
            "--only",
            "mysql/shop/orders",
            "--existing",
            "replace",
        ])
        .ended(0);
        let replaced = server.contents().await;
        assert_eq!(
            replaced.0["shop/orders: rows"],
            before.0["shop/orders: rows"]
        );
        assert_eq!(
            replaced
                .clone()
                .without("shop/orders")
                .difference(&changed.clone().without("shop/orders")),
            None
        );

        // A view, a routine alone.
        home.bk(&[
            "restore",
            "--yes",
            "--only",
            "mysql/shop/v",
            "--only",
            "mysql/shop/function:f",
        ])
        .ended(0);
        let both = server.contents().await;
        for name in ["shop/v: view", "shop: FUNCTION f 0"] {
            assert_eq!(both.0[name], before.0[name]);
        }
        assert!(both.0.contains_key("shop/newer: table"));

        // A database: what is newer than the archive goes. The second run is equal.
        for _ in 0..2 {
            home.bk(&["restore", "--yes", "--only", "mysql/shop"])
                .ended(0);
            assert_eq!(
                before.difference(&server.contents().await),
                None,
                "{kind:?}"
            );
        }
        // Refuse: nothing is written.
        server.run_all(&["DELETE FROM shop.items"]).await;
        let emptied = server.contents().await;
        home.bk(&[
            "restore",
            "--yes",
            "--existing",
            "refuse",
            "--only",
            "mysql/shop/items",
        ])
        .ended(6);
        assert_eq!(emptied.difference(&server.contents().await), None);
        // The whole server, with everything in it.
        home.bk(&["restore", "--yes"]).ended(0);
        assert_eq!(
            before.difference(&server.contents().await),
            None,
            "{kind:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_of_other_tables_and_missing_definers_are_named() {
    let Some(server) = Server::start(Kind::MariaDb, &[]) else {
        return;
    };
    server
        .run_all(&[
            "CREATE DATABASE shop",
            "CREATE DATABASE other",
            "CREATE TABLE shop.orders (id INT PRIMARY KEY, region CHAR(2))",
            "INSERT INTO shop.orders VALUES (1, 'de')",
            "CREATE TABLE other.far (id INT PRIMARY KEY, o INT, FOREIGN KEY (o) REFERENCES shop.orders (id))",
            "CREATE USER 'gone'@'%'",
            "GRANT ALL ON shop.* TO 'gone'@'%'",
            "CREATE DEFINER=`gone`@`%` VIEW shop.v AS SELECT id FROM shop.orders",
        ])
        .await;
    let home = Home::new(&settings(&server.source("mysql"), "out"));
    home.bk(&["backup"]).ended(0);
    server
        .run_all(&[
            "INSERT INTO shop.orders VALUES (2, 'fr')",
            "INSERT INTO other.far VALUES (1, 2), (2, 1), (3, NULL)",
            "DROP USER 'gone'@'%'",
        ])
        .await;
    let restored = home
        .bk(&[
            "restore",
            "--yes",
            "--only",
            "mysql/shop/orders",
            "--only",
            "mysql/shop/v",
        ])
        .ended(3);
    assert!(
        restored
            .stderr
            .contains("1 rows of `other`.`far` point to rows of `shop`.`orders`"),
        "{}",
        restored.stderr
    );
    assert!(
        restored.stderr.contains("`gone`@`%`"),
        "{}",
        restored.stderr
    );
    server
        .run_all(&["DELETE FROM other.far WHERE id = 1"])
        .await;
    home.write(
        "current.toml",
        settings(
            &format!("{}definer = \"current\"\n", server.source("mysql")),
            "out",
        ),
    );
    home.bk(&[
        "restore",
        "--config",
        "current.toml",
        "--yes",
        "--only",
        "mysql/shop",
    ])
    .ended(0);
    let contents = server.contents().await;
    assert!(
        contents.0["shop/v: view"][0].contains("DEFINER=`root`@`localhost`"),
        "{:?}",
        contents.0["shop/v: view"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_its_children_could_not_point_to_is_refused_before_anything_is_written() {
    for kind in [Kind::MariaDb, Kind::MySql] {
        let Some(server) = Server::start(kind, &[]) else {
            continue;
        };
        server
            .run_all(&[
                "CREATE DATABASE shop",
                "CREATE TABLE shop.parent (id INT PRIMARY KEY, code VARCHAR(20) NOT NULL, UNIQUE KEY (code))",
                "INSERT INTO shop.parent VALUES (1, 'a')",
                "CREATE TABLE shop.child (id INT PRIMARY KEY, p INT, c VARCHAR(20), FOREIGN KEY (p) REFERENCES shop.parent (id), FOREIGN KEY (c) REFERENCES shop.parent (code))",
                "INSERT INTO shop.child VALUES (1, 1, 'a')",
            ])
            .await;
        let home = Home::new(&settings(&server.source("mysql"), "out"));
        home.bk(&["backup"]).ended(0);
        // As long as they fit, replacing the parent alone is fine.
        let replace = ["restore", "--yes", "--only", "mysql/shop/parent"];
        home.bk(&replace).ended(0);
        for (change, said) in [
            (
                "DROP TABLE shop.child; CREATE TABLE shop.child (id INT PRIMARY KEY, p BIGINT); ALTER TABLE shop.parent MODIFY id BIGINT; ALTER TABLE shop.child ADD FOREIGN KEY (p) REFERENCES shop.parent (id)",
                "is int in the archive",
            ),
            (
                "DROP TABLE shop.child; ALTER TABLE shop.parent ADD COLUMN late INT, ADD UNIQUE KEY (late); CREATE TABLE shop.child (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES shop.parent (late))",
                "no column `late`",
            ),
        ] {
            let steps: Vec<_> = change.split("; ").collect();
            server.run_all(&steps).await;
            let before = server.contents().await;
            let refused = home.bk(&replace).ended(6);
            assert!(refused.stderr.contains(said), "{}", refused.stderr);
            assert_eq!(before.difference(&server.contents().await), None);
        }
        home.bk(&["restore", "--yes", "--only", "mysql/shop"])
            .ended(0);
        let contents = server.contents().await;
        assert!(!contents.0["shop/child: table"][0].contains("late"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_with_rights_on_one_database_alone_restores_it() {
    for kind in [Kind::MariaDb, Kind::MySql] {
        let Some(server) = Server::start(kind, &["--log-bin-trust-function-creators=1"]) else {
            continue;
        };
        server
            .run_all(&[
                "CREATE DATABASE shop",
                "CREATE TABLE shop.a (id INT PRIMARY KEY, t VARCHAR(20))",
                "INSERT INTO shop.a VALUES (1, 'one')",
                "CREATE VIEW shop.v AS SELECT id FROM shop.a",
                "CREATE USER 'own'@'localhost' IDENTIFIED BY 'pw'",
                "GRANT ALL ON shop.* TO 'own'@'localhost'",
            ])
            .await;
        let own = format!(
            "[source.mysql]\nsocket = \"{}\"\nuser = \"own\"\npassword = \"pw\"\ndatabases = [\"shop\"]\ndefiner = \"current\"\n",
            server.socket().display()
        );
        let home = Home::new(&settings(&own, "out"));
        home.bk(&["backup"]).ended(0);
        server
            .run_all(&["UPDATE shop.a SET t = 'changed'", "DROP VIEW shop.v"])
            .await;
        // The view runs as root, whom this account may not name.
        home.bk(&["restore", "--yes", "--only", "mysql/shop/a"])
            .ended(0);
        let contents = server.contents().await;
        assert_eq!(contents.0["shop/a: rows"], ["1\u{1f}one"]);
        assert!(contents.0.keys().all(|name| !name.contains("unfinished")));

        // A mark that it left is honoured, and goes with the restore that finishes it.
        server
            .run_all(&[
                "CREATE TABLE shop.bk_unfinished_restore (id VARCHAR(64) PRIMARY KEY, archive VARCHAR(1024) NOT NULL, selected LONGTEXT NOT NULL)",
                "INSERT INTO shop.bk_unfinished_restore VALUES ('x', '0123456789abcdef0123456789abcdef', '[{\"group\":\"shop\",\"unit\":\"a\"}]')",
            ])
            .await;
        let marked = home.bk(&["backup"]);
        assert!(marked.code == 3 || marked.code == 6, "{}", marked.stderr);
        assert!(
            marked.stderr.contains("did not finish"),
            "{}",
            marked.stderr
        );
        home.bk(&["restore", "--yes", "--only", "mysql/shop/a"])
            .ended(0);
        home.bk(&["backup"]).ended(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_refuses_fails_its_unit_and_the_rest_goes_on() {
    let Some(from) = Server::start(Kind::MariaDb, &["--max-allowed-packet=64M"]) else {
        return;
    };
    from.run_all(&[
        "CREATE DATABASE shop",
        "CREATE TABLE shop.big (id INT PRIMARY KEY, t LONGTEXT)",
        "INSERT INTO shop.big VALUES (1, REPEAT('0123456789', 3000000)), (2, 'small')",
        "CREATE TABLE shop.strange (id INT PRIMARY KEY) ENGINE=Aria TRANSACTIONAL=1",
        "INSERT INTO shop.strange VALUES (7)",
        "CREATE TABLE shop.plain (id INT PRIMARY KEY)",
        "INSERT INTO shop.plain VALUES (8)",
    ])
    .await;
    let home = Home::new(&settings(&from.source("mysql"), "out"));
    home.bk(&["backup"]).ended(0);
    for (options, refused) in [
        (&["--max-allowed-packet=16M", "--local-infile=0"][..], true),
        (&["--max-allowed-packet=16M", "--local-infile=1"], false),
    ] {
        let Some(to) = Server::start(Kind::MariaDb, options) else {
            return;
        };
        home.write("to.toml", settings(&to.source("mysql"), "out"));
        let code = if refused { 3 } else { 0 };
        let done = home
            .bk(&["restore", "--config", "to.toml", "--yes"])
            .ended(code);
        let contents = to.contents().await;
        assert_eq!(contents.0["shop/plain: rows"], ["8"]);
        assert_eq!(contents.0["shop/strange: rows"], ["7"]);
        if refused {
            assert!(
                done.stderr.contains("max_allowed_packet is 16777216"),
                "{}",
                done.stderr
            );
            // The table is not whole, so no backup calls it so.
            let marked = home
                .bk(&[
                    "backup",
                    "--config",
                    "to.toml",
                    "--set",
                    "sink.local.path=out2",
                ])
                .ended(3);
            assert!(marked.stderr.contains("shop/big"), "{}", marked.stderr);
        } else {
            assert_eq!(contents.0["shop/big: rows"].len(), 2);
        }
    }
}

/// Writes a row each 10 ms until it is told to stop; the longest time that one took.
async fn beat(
    server: &Server,
    stop: Arc<AtomicBool>,
) -> tokio::task::JoinHandle<std::time::Duration> {
    let mut conn = server.connect().await;
    tokio::spawn(async move {
        let mut longest = std::time::Duration::ZERO;
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(10));
        while !stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            let begun = std::time::Instant::now();
            conn.query_drop("INSERT INTO stall.beat VALUES ()")
                .await
                .unwrap();
            longest = longest.max(begun.elapsed());
        }
        conn.disconnect().await.unwrap();
        longest
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_a_writer_stalls_is_printed() {
    for kind in [Kind::MariaDb, Kind::MySql] {
        let Some(server) = Server::start(kind, &[]) else {
            continue;
        };
        let tables = long(200, 2000);
        let mut conn = server.connect().await;
        for sql in [
            "CREATE DATABASE stall",
            "CREATE TABLE stall.beat (id INT AUTO_INCREMENT PRIMARY KEY)",
        ] {
            conn.query_drop(sql).await.unwrap();
        }
        for n in 0..tables {
            conn.query_drop(format!(
                "CREATE TABLE stall.t{n} (id INT PRIMARY KEY, a INT)"
            ))
            .await
            .unwrap();
        }
        conn.query_drop("INSERT INTO stall.t0 VALUES (1, 1)")
            .await
            .unwrap();
        let home = Home::new(&settings(&server.source("mysql"), "out"));
        for long_statement in [false, true] {
            let stop = Arc::new(AtomicBool::new(false));
            let beating = beat(&server, stop.clone()).await;
            let mut other = server.connect().await;
            let running = tokio::spawn(async move {
                if long_statement {
                    let _: Option<i64> = other
                        .query_first("SELECT SLEEP(8) FROM stall.t0")
                        .await
                        .unwrap();
                }
            });
            let backed_up = home.bk(&["backup"]).ended(0);
            stop.store(true, Ordering::Relaxed);
            let longest = beating.await.unwrap();
            running.await.unwrap();
            println!(
                "{kind:?}, {tables} tables, {}: a writer waited at most {} ms{}",
                if long_statement {
                    "a statement of 8 s beside it"
                } else {
                    "nothing else"
                },
                longest.as_millis(),
                if backed_up.stderr.contains("no global lock") {
                    " (the lock was not had in time: positions were compared)"
                } else {
                    ""
                }
            );
        }
    }
}

/// A server as the kit wants it: two databases with tables, a view, a trigger, a routine.
struct Databases {
    server: Server,
}

#[async_trait]
impl Subject for Databases {
    fn source(&self) -> Arc<dyn Source> {
        let table = serde_json::json!({
            "socket": self.server.socket(),
            "user": "root",
            "accounts": false,
        });
        let settings = Settings {
            instance: "it".into(),
            folder: ".".into(),
            table: table.as_object().unwrap().clone(),
        };
        (bk_sources::mysql::plugin().build)(settings).unwrap()
    }

    async fn seed(&self) {
        self.server
            .run_all(&[
                "CREATE DATABASE alpha",
                "CREATE DATABASE beta CHARACTER SET latin1",
                "CREATE TABLE alpha.one (id INT PRIMARY KEY, t TEXT, b BLOB)",
                "INSERT INTO alpha.one VALUES (1, 'a', 'b'), (2, NULL, ''), (3, 'it''s', x'00FF')",
                "CREATE TABLE alpha.two (id INT PRIMARY KEY, o INT, FOREIGN KEY (o) REFERENCES alpha.one (id))",
                "INSERT INTO alpha.two VALUES (1, 1), (2, NULL)",
                "CREATE TRIGGER alpha.watch BEFORE INSERT ON alpha.two FOR EACH ROW SET NEW.id = NEW.id",
                "CREATE TABLE beta.three (a INT, b VARCHAR(10))",
                "INSERT INTO beta.three VALUES (1, 'x'), (1, 'x'), (NULL, NULL)",
                "CREATE VIEW beta.four AS SELECT a FROM beta.three",
                "CREATE FUNCTION beta.five() RETURNS INT DETERMINISTIC NO SQL RETURN 5",
            ])
            .await;
    }

    async fn wipe(&self) {
        self.server
            .run_all(&[
                "SET foreign_key_checks = 0",
                "DROP DATABASE IF EXISTS alpha",
                "DROP DATABASE IF EXISTS beta",
                "DROP DATABASE IF EXISTS bk_unfinished_restore",
            ])
            .await;
    }

    async fn add_stranger(&self, group: &str) {
        self.server
            .run_all(&[&format!(
                "CREATE TABLE {group}.stranger (id INT PRIMARY KEY)"
            )])
            .await;
    }

    async fn digest(&self) -> BTreeMap<(String, String), String> {
        let mut units: BTreeMap<(String, String), String> = BTreeMap::new();
        for (name, lines) in self.server.contents().await.0 {
            let unit = match name.split_once('/') {
                Some((database, rest)) => (
                    database.to_owned(),
                    rest.split(": ").next().unwrap().to_owned(),
                ),
                // A trigger is its table's; a routine is a unit of its own.
                None if name.contains("TRIGGER") => ("alpha".into(), "two".into()),
                None if name.contains("FUNCTION five") => ("beta".into(), "function:five".into()),
                None => continue,
            };
            units
                .entry(unit)
                .or_default()
                .push_str(&format!("{name} {lines:?}\n"));
        }
        units.retain(|(database, _), _| database == "alpha" || database == "beta");
        units
    }

    /// A killed restore has a test of its own above, with the real program.
    async fn die_midway(&self) -> bool {
        false
    }
}

async fn passes_the_suite(kind: Kind) {
    let Some(server) = Server::start(kind, &[]) else {
        return;
    };
    let subject = Databases { server };
    let mut failed = Vec::new();
    for (name, check) in source_suite::CHECKS {
        if let Err(why) = check(&subject).await {
            failed.push(format!("{name}: {why}"));
        }
    }
    assert!(failed.is_empty(), "{kind:?}: {}", failed.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_passes_the_suite_on_mariadb() {
    passes_the_suite(Kind::MariaDb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_passes_the_suite_on_mysql() {
    passes_the_suite(Kind::MySql).await;
}
