//! What others made comes back: dumps of mysqldump and mariadb-dump, plain and compressed, and archives of Tutor's backup plugin.

use bk_tests::binary::Home;
use bk_tests::database::{Contents, Kind, Server, fixture};
use mysql_async::prelude::Queryable;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn settings(server: &Server) -> String {
    format!(
        "format = 1\nplugins = [\"mysql\", \"caddy\", \"local\"]\n{}[source.caddy]\npath = \"caddy\"\n[sink.local]\npath = \"out\"\n",
        server.source("mysql")
    )
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(name)
}

/// A dump of everything, by the server's own program.
fn dump(server: &Server, to: &Path, options: &[&str]) {
    let program = match server.kind {
        Kind::MariaDb => "mariadb-dump",
        Kind::MySql => "mysqldump",
    };
    let done = server
        .program(program)
        .args(options)
        .stdout(std::fs::File::create(to).unwrap())
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{options:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// What the dumpers themselves lose, or the servers say otherwise when they read it.
fn without_the_dumpers_losses(contents: Contents, lost: &[&str]) -> Contents {
    let mut contents = lost.iter().fold(contents, |c, name| c.without(name));
    for line in contents.0.values_mut().flatten() {
        // A column's inherited collation is printed, and read as one that was given.
        *line = line.replace(" CHARACTER SET utf8mb4 COLLATE", " COLLATE");
    }
    contents
}

/// Rows that no dump of this kind carries as they are; `named`: those of which the restore must say so.
struct Losses {
    silent: &'static [&'static str],
    named: &'static [&'static str],
}

async fn dumps_come_back(kind: Kind, losses: Losses) {
    let Some(from) = Server::start(kind, &[]) else {
        return;
    };
    from.load(&fixture("hard-common.sql"));
    from.load(&fixture(match kind {
        Kind::MariaDb => "hard-mariadb.sql",
        Kind::MySql => "hard-mysql.sql",
    }));
    let lost: Vec<&str> = [losses.silent, losses.named, &["bk_unfinished"]].concat();
    let before = without_the_dumpers_losses(from.contents().await, &lost);
    let Some(to) = Server::start(kind, &[]) else {
        return;
    };
    let home = Home::new(&settings(&to));
    let everything = ["--all-databases", "--routines", "--events", "--triggers"];
    // The first into an empty server, the others over what the one before has made.
    for (more, packed) in [
        (&[][..], "all.sql"),
        (&["--hex-blob"], "all.sql.gz"),
        (
            &["--skip-extended-insert", "--complete-insert"],
            "all.sql.xz",
        ),
        (&["--add-drop-database"], "all.sql.zst"),
    ] {
        let options = [&everything[..], more].concat();
        dump(&from, &home.path("all.sql"), &options);
        pack(&home, packed);
        let done = home.bk(&["restore", packed, "--yes"]).ended(3);
        let after = without_the_dumpers_losses(to.contents().await, &lost);
        assert_eq!(
            before.difference(&after),
            None,
            "{options:?}: {}",
            done.stderr
        );
        for name in losses.named {
            let unit = name.split(':').next().unwrap();
            assert!(done.stderr.contains(unit), "{unit}: {}", done.stderr);
        }
    }
}

/// Compressed as the name says.
fn pack(home: &Home, name: &str) {
    let bytes = std::fs::read(home.path("all.sql")).unwrap();
    let packed = match name.rsplit('.').next() {
        Some("gz") => through("gzip", &home.path("all.sql")),
        Some("xz") => through("xz", &home.path("all.sql")),
        Some("zst") => zstd::encode_all(&bytes[..], 3).unwrap(),
        _ => return,
    };
    home.write(name, packed);
}

fn through(program: &str, file: &Path) -> Vec<u8> {
    let done = Command::new(program)
        .args(["-1", "-c"])
        .arg(file)
        .output()
        .unwrap();
    assert!(done.status.success(), "{program}");
    done.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn dumps_of_mariadb_come_back() {
    let losses = Losses {
        silent: &[
            "hard/float_key: rows",
            "hard/floats: rows",
            "hard/versioned",
        ],
        named: &["hard/dates: rows", "hard/enums: rows"],
    };
    dumps_come_back(Kind::MariaDb, losses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dumps_of_mysql_come_back() {
    let losses = Losses {
        silent: &[
            "hard/float_key: rows",
            "hard/floats: rows",
            // Without --complete-insert mysqldump writes rows without brackets; then it is named.
            "hard/only_generated: rows",
        ],
        named: &["hard/as_archive", "hard/dates: rows", "hard/enums: rows"],
    };
    dumps_come_back(Kind::MySql, losses).await;
}

const TUTOR: &str = "tutor/backup.2026-08-22.tar.xz";

fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(golden("tutor/expected.json")).unwrap()).unwrap()
}

async fn number(server: &Server, sql: &str) -> u64 {
    let mut conn = server.connect().await;
    conn.query_first(sql).await.unwrap().unwrap_or_default()
}

async fn names(server: &Server, sql: &str) -> Vec<String> {
    let mut conn = server.connect().await;
    conn.query(sql).await.unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_tutors_backup_plugin_comes_back() {
    let Some(server) = Server::start(Kind::MySql, &[]) else {
        return;
    };
    let home = Home::new(&settings(&server));
    let archive = golden(TUTOR).display().to_string();
    let plan = home.bk(&["restore", &archive, "--dry-run"]).ended(0).stderr;
    assert!(plan.contains("data/mongodb_dump"), "{plan}");
    assert!(
        names(&server, "SHOW DATABASES LIKE 'openedx'")
            .await
            .is_empty()
    );
    // Nothing here knows the dump of MongoDB: it is named. With --only it was not asked for.
    let done = home.bk(&["restore", &archive, "--yes"]).ended(3);
    assert!(
        done.stderr.contains("`data/mongodb_dump`"),
        "{}",
        done.stderr
    );
    home.bk(&["restore", &archive, "--yes", "--only", "mysql,caddy"])
        .ended(0);
    let expected = expected();
    for database in ["openedx", "notes"] {
        for (table, rows) in expected["mysql"][database].as_object().unwrap() {
            let sql = format!("SELECT COUNT(*) FROM {database}.{table}");
            assert_eq!(
                number(&server, &sql).await,
                rows.as_u64().unwrap(),
                "{table}"
            );
        }
    }
    for (key, sql) in [
        (
            "events",
            "SELECT CONCAT(EVENT_SCHEMA, '.', EVENT_NAME) FROM information_schema.EVENTS",
        ),
        (
            "functions",
            "SELECT CONCAT(ROUTINE_SCHEMA, '.', ROUTINE_NAME) FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA IN ('openedx','notes')",
        ),
        (
            "triggers",
            "SELECT CONCAT(TRIGGER_SCHEMA, '.', TRIGGER_NAME) FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA IN ('openedx','notes')",
        ),
        (
            "views",
            "SELECT CONCAT(TABLE_SCHEMA, '.', TABLE_NAME) FROM information_schema.VIEWS WHERE TABLE_SCHEMA IN ('openedx','notes')",
        ),
        (
            "users",
            "SELECT CONCAT(QUOTE(User), '@', QUOTE(Host)) FROM mysql.user WHERE User NOT IN ('root','mysql.sys','mysql.session','mysql.infoschema')",
        ),
    ] {
        assert_eq!(
            names(&server, sql).await,
            strings(&expected["mysql"][key]),
            "{key}"
        );
    }
    for (path, sum) in expected["caddy_sha256"].as_object().unwrap() {
        let bytes = std::fs::read(home.path("caddy").join(path)).unwrap();
        assert_eq!(sha256(&bytes), sum.as_str().unwrap(), "{path}");
    }
    assert!(!home.path("caddy/locks").exists());

    // One table of it, over one that was changed; another name for the whole database.
    server
        .run_all(&[
            "SET foreign_key_checks = 0",
            "DELETE FROM openedx.auth_user",
            "DELETE FROM notes.note",
        ])
        .await;
    home.bk(&[
        "restore",
        &archive,
        "--yes",
        "--only",
        "mysql/openedx/auth_user",
    ])
    .ended(0);
    assert_eq!(
        number(&server, "SELECT COUNT(*) FROM openedx.auth_user").await,
        400
    );
    assert_eq!(number(&server, "SELECT COUNT(*) FROM notes.note").await, 0);
    home.bk(&[
        "restore",
        &archive,
        "--yes",
        "--only",
        "mysql/notes",
        "--into",
        "mysql/notes=old",
    ])
    .ended(0);
    assert_eq!(number(&server, "SELECT COUNT(*) FROM old.note").await, 300);
    assert_eq!(number(&server, "SELECT COUNT(*) FROM notes.note").await, 0);
    home.bk(&[
        "restore",
        &archive,
        "--yes",
        "--only",
        "mysql",
        "--existing",
        "refuse",
    ])
    .ended(6);
    home.bk(&[
        "restore",
        &archive,
        "--yes",
        "--only",
        "mysql/openedx/nothing",
    ])
    .ended(5);
    // A folder with the same things in it.
    let unpacked = Command::new("tar")
        .args(["-xJf", &archive, "-C"])
        .arg(home.path("."))
        .status()
        .unwrap();
    assert!(unpacked.success());
    home.bk(&["restore", "data", "--yes", "--only", "mysql/notes"])
        .ended(0);
    assert_eq!(
        number(&server, "SELECT COUNT(*) FROM notes.note").await,
        300
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_was_cut_off_writes_nothing() {
    let Some(server) = Server::start(Kind::MariaDb, &[]) else {
        return;
    };
    server
        .run_all(&[
            "CREATE DATABASE shop",
            "USE shop",
            "CREATE TABLE shop.a (id INT PRIMARY KEY, t VARCHAR(50))",
            "INSERT INTO shop.a SELECT seq, REPEAT('x', 50) FROM seq_1_to_5000",
        ])
        .await;
    let home = Home::new(&settings(&server));
    dump(&server, &home.path("all.sql"), &["--databases", "shop"]);
    let whole = std::fs::read(home.path("all.sql")).unwrap();
    server.run_all(&["DELETE FROM shop.a"]).await;
    let empty = server.contents().await;
    home.write("cut.sql", &whole[..whole.len() / 2]);
    let done = home.bk(&["restore", "cut.sql", "--yes"]).ended(7);
    assert!(done.stderr.contains("cut off in line"), "{}", done.stderr);
    // Statements that are whole, but not all of them.
    home.write("cut.sql", &whole[..whole.len() - 60]);
    home.bk(&["restore", "cut.sql", "--yes"]).ended(7);
    let packed = through("gzip", &home.path("all.sql"));
    home.write("cut.sql.gz", &packed[..packed.len() - 9]);
    home.bk(&["restore", "cut.sql.gz", "--yes"]).ended(7);
    home.write("other.sql.gz", &whole);
    home.bk(&["restore", "other.sql.gz", "--yes"]).ended(7);
    assert_eq!(empty.difference(&server.contents().await), None);
    let partly = home
        .bk(&["restore", "cut.sql", "--yes", "--allow-partial"])
        .ended(3);
    assert!(partly.stderr.contains("cut off"), "{}", partly.stderr);
    assert_eq!(number(&server, "SELECT COUNT(*) FROM shop.a").await, 5000);
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_run_as_the_plain_client_runs_them() {
    let Some(server) = Server::start(Kind::MariaDb, &[]) else {
        return;
    };
    let home = Home::new(&settings(&server));
    let script = "\u{feff}/*M!999999\\- enable the sandbox mode */\r\n\
        CREATE TABLE t (a INT, b VARCHAR(30)); -- one; two\r\n\
        INSERT INTO t VALUES (1,'a;b'),(2,\"it's\"), (5--1, NOW());\r\n\
        SET sql_mode='NO_BACKSLASH_ESCAPES';\r\n\
        INSERT INTO t VALUES (3,'\\'),(4,'c');\r\n\
        SET sql_mode='';\r\n\
        DELIMITER //\r\n\
        CREATE PROCEDURE p() BEGIN SELECT 1; SELECT 2; END //\r\n\
        delimiter ;\r\n\
        CREATE VIEW w AS SELECT * FROM v;\r\n\
        CREATE VIEW v AS SELECT a FROM t;\r\n\
        INSERT INTO t SELECT 7, 'last'";
    home.write("script.sql", script);
    let done = home.bk(&["restore", "script.sql", "--yes"]).ended(4);
    assert!(done.stderr.contains("--into"), "{}", done.stderr);
    home.bk(&["restore", "script.sql", "--yes", "--into", "mysql=fresh"])
        .ended(0);
    assert_eq!(
        names(
            &server,
            "SELECT CONCAT(a, b) FROM fresh.t WHERE a <> 6 ORDER BY a"
        )
        .await,
        ["1a;b", "2it's", "3\\", "4c", "7last"]
    );
    assert_eq!(number(&server, "SELECT COUNT(*) FROM fresh.w").await, 6);
    assert_eq!(
        names(
            &server,
            "SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = 'fresh'"
        )
        .await,
        ["p"]
    );
    assert!(names(&server, "SHOW DATABASES LIKE 'bk%'").await.is_empty());

    let before = server.contents().await;
    for (name, text, code) in [
        (
            "shell.sql",
            &b"USE fresh;\nDROP TABLE t;\n\\! touch /tmp/x\n;\n"[..],
            4,
        ),
        (
            "postgres.sql",
            b"-- PostgreSQL database dump\nCREATE TABLE t (a int);\n",
            5,
        ),
        ("wide.sql", b"\xff\xfeU\0S\0E\0 \0x\0;\0", 4),
        ("open.sql", b"USE fresh; INSERT INTO t VALUES (1,'no end", 7),
    ] {
        home.write(name, text);
        let done = home.bk(&["restore", name, "--yes"]).ended(code);
        assert!(done.stderr.contains("hint"), "{name}: {}", done.stderr);
    }
    assert_eq!(before.difference(&server.contents().await), None);

    // Refused statements fail what they belong to, and nothing else.
    home.write(
        "broken.sql",
        "CREATE DATABASE d; USE d; CREATE TABLE bad (a NOTYPE); INSERT INTO bad VALUES (1);\nCREATE TABLE good (a INT); INSERT INTO good VALUES (1),(2);",
    );
    let done = home.bk(&["restore", "broken.sql", "--yes"]).ended(3);
    assert!(done.stderr.contains("`d/bad`, line 1"), "{}", done.stderr);
    assert_eq!(number(&server, "SELECT COUNT(*) FROM d.good").await, 2);
    // What did not come is not backed up as if it had.
    let done = home.bk(&["backup"]).ended(3);
    assert!(done.stderr.contains("d/bad"), "{}", done.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_where_the_script_says() {
    let Some(server) = Server::start(Kind::MariaDb, &["--autocommit=0"]) else {
        return;
    };
    let home = Home::new(&settings(&server));
    // A dump of rows alone has no SET between its databases.
    server
        .run_all(&[
            "CREATE DATABASE a",
            "CREATE DATABASE b",
            "CREATE TABLE a.t (i INT PRIMARY KEY)",
            "CREATE TABLE b.t (i INT PRIMARY KEY)",
            "INSERT INTO a.t VALUES (1)",
            "INSERT INTO b.t VALUES (2)",
            "COMMIT",
        ])
        .await;
    dump(
        &server,
        &home.path("rows.sql"),
        &["--no-create-info", "--databases", "a", "b"],
    );
    server
        .run_all(&["DELETE FROM a.t", "DELETE FROM b.t", "COMMIT"])
        .await;
    home.bk(&["restore", "rows.sql", "--yes"]).ended(0);
    assert_eq!(names(&server, "SELECT i FROM a.t").await, ["1"]);
    assert_eq!(names(&server, "SELECT i FROM b.t").await, ["2"]);

    // A script of a person is one session.
    home.write(
        "mine.sql",
        "CREATE DATABASE mine; USE mine;\n\
         CREATE TABLE u (id INT AUTO_INCREMENT PRIMARY KEY, n TEXT); CREATE TABLE p (id INT, n TEXT); CREATE TABLE kept (i INT);\n\
         INSERT INTO u VALUES (NULL, 'x'); SET @id = LAST_INSERT_ID(); INSERT INTO p VALUES (@id, 'y');\n\
         CREATE TEMPORARY TABLE tmp (i INT); INSERT INTO tmp VALUES (7); INSERT INTO kept SELECT i FROM tmp;\n\
         BEGIN; INSERT INTO kept VALUES (8); ROLLBACK;\n\
         CREATE INDEX later USING BTREE ON kept (i); UPDATE kept SET i = i + 1;\n\
         CREATE USER shop@localhost IDENTIFIED BY 'x'; GRANT SELECT ON mine.* TO shop@localhost; COMMIT;",
    );
    home.bk(&["restore", "mine.sql", "--yes"]).ended(0);
    assert_eq!(names(&server, "SELECT id FROM mine.p").await, ["1"]);
    assert_eq!(names(&server, "SELECT i FROM mine.kept").await, ["8"]);
    assert_eq!(
        names(
            &server,
            "SELECT INDEX_NAME FROM information_schema.STATISTICS WHERE TABLE_NAME = 'kept'"
        )
        .await,
        ["later"]
    );
    let grants = names(&server, "SHOW GRANTS FOR shop@localhost").await;
    assert!(grants.iter().any(|g| g.contains("mine")), "{grants:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outside_of_the_selection_is_touched() {
    let Some(server) = Server::start(Kind::MariaDb, &[]) else {
        return;
    };
    let home = Home::new(&settings(&server));
    server
        .run_all(&[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.orders (i INT PRIMARY KEY)",
            "CREATE TABLE shop.customers (i INT PRIMARY KEY)",
            "INSERT INTO shop.orders VALUES (1)",
            "INSERT INTO shop.customers VALUES (1)",
        ])
        .await;
    home.write(
        "shop.sql",
        "CREATE DATABASE IF NOT EXISTS shop; USE shop; DROP TABLE IF EXISTS orders, customers;\n\
         CREATE TABLE IF NOT EXISTS orders (i INT PRIMARY KEY); INSERT INTO orders VALUES (5);\n\
         CREATE TABLE IF NOT EXISTS customers (i INT PRIMARY KEY); TRUNCATE shop.customers; DELETE FROM shop.customers; INSERT INTO customers VALUES (5);\n\
         UPDATE mysql.global_priv SET Priv = '{}'; SHUTDOWN; SET GLOBAL max_connections = 3;",
    );
    let before = server.contents().await;
    // A name for the whole script moves nothing of one that names its database itself.
    home.bk(&["restore", "shop.sql", "--yes", "--into", "mysql=copy"])
        .ended(6);
    assert_eq!(before.difference(&server.contents().await), None);
    home.bk(&["restore", "shop.sql", "--yes", "--into", "mysql/shop=copy"])
        .ended(0);
    let after = server.contents().await;
    assert_eq!(before.difference(&after.clone().without("copy")), None);
    assert_eq!(after.0["copy/customers: rows"], ["5"]);
    let only = [
        "restore",
        "shop.sql",
        "--yes",
        "--only",
        "mysql/shop/orders",
    ];
    home.bk(&only).ended(0);
    let after = server.contents().await;
    assert_eq!(after.0["shop/orders: rows"], ["5"]);
    assert_eq!(after.0["shop/customers: rows"], ["1"]);

    // DROP DATABASE belongs to who restores the database.
    home.write(
        "drop.sql",
        "DROP DATABASE IF EXISTS shop; CREATE DATABASE shop; USE shop; CREATE TABLE orders (i INT); INSERT INTO orders VALUES (6);",
    );
    let only = [
        "restore",
        "drop.sql",
        "--yes",
        "--only",
        "mysql/shop/orders",
    ];
    home.bk(&only).ended(0);
    assert_eq!(names(&server, "SELECT i FROM shop.customers").await, ["1"]);
    server.run_all(&["DROP TABLE shop.orders"]).await;
    home.bk(&["restore", "drop.sql", "--yes", "--existing", "refuse"])
        .ended(6);
    assert_eq!(names(&server, "SELECT i FROM shop.customers").await, ["1"]);
    home.bk(&["restore", "drop.sql", "--yes"]).ended(0);
    assert!(
        names(&server, "SHOW TABLES FROM shop LIKE 'customers'")
            .await
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sources_that_could_take_a_dump_are_told_apart_by_the_user() {
    let Some(server) = Server::start(Kind::MariaDb, &[]) else {
        return;
    };
    let home = Home::new(&format!(
        "format = 1\nplugins = [\"mysql\", \"local\"]\n{}{}[sink.local]\npath = \"out\"\n",
        server.source("one"),
        server.source("two")
    ));
    home.write("d.sql", "CREATE DATABASE d; CREATE TABLE d.t (a INT);");
    let done = home.bk(&["restore", "d.sql", "--yes"]).ended(6);
    assert!(done.stderr.contains("--as 'd.sql=one'"), "{}", done.stderr);
    home.bk(&["restore", "d.sql", "--yes", "--as", "d.sql=one"])
        .ended(0);
    home.bk(&["restore", "d.sql", "--yes", "--only", "two"])
        .ended(0);
    assert_eq!(number(&server, "SELECT COUNT(*) FROM d.t").await, 0);
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_tutors_backup_plugin_comes_back_whole_in_one_command() {
    let Some(mysql) = Server::start(Kind::MySql, &[]) else {
        return;
    };
    let Some(mongo) = bk_tests::mongo::Server::start(&[]).await else {
        return;
    };
    let home = Home::new(&format!(
        "format = 1\nplugins = [\"mysql\", \"mongodb\", \"caddy\", \"local\"]\n{}{}[source.caddy]\npath = \"caddy\"\n[sink.local]\npath = \"out\"\n",
        mysql.source("mysql"),
        mongo.source_toml("mongodb", "")
    ));
    let archive = golden(TUTOR).display().to_string();
    home.bk(&["restore", &archive, "--yes"]).ended(0);
    let expected = expected();
    for database in ["openedx", "notes"] {
        for (table, rows) in expected["mysql"][database].as_object().unwrap() {
            let sql = format!("SELECT COUNT(*) FROM {database}.{table}");
            assert_eq!(
                number(&mysql, &sql).await,
                rows.as_u64().unwrap(),
                "{table}"
            );
        }
    }
    let contents = mongo.contents().await;
    for (database, collections) in expected["mongodb"].as_object().unwrap() {
        for (collection, documents) in collections.as_object().unwrap() {
            let found = &contents[&format!("{database}.{collection}")];
            assert_eq!(found.documents, documents.as_u64().unwrap(), "{collection}");
            let sum = &expected["mongodb_bson_sha256"][format!("{database}/{collection}.bson")];
            let bytes = mongo.documents(database, collection).await;
            assert_eq!(sha256(&bytes), sum.as_str().unwrap(), "{collection}");
        }
    }
    for (path, sum) in expected["caddy_sha256"].as_object().unwrap() {
        let bytes = std::fs::read(home.path("caddy").join(path)).unwrap();
        assert_eq!(sha256(&bytes), sum.as_str().unwrap(), "{path}");
    }
    // What came back is backed up as a whole, and one collection of the stranger's archive goes elsewhere.
    home.bk(&["backup"]).ended(0);
    home.bk(&[
        "restore",
        &archive,
        "--yes",
        "--only",
        "mongodb/openedx/fs.files",
        "--into",
        "mongodb/openedx=old",
    ])
    .ended(0);
    assert_eq!(mongo.contents().await["old.fs.files"].documents, 3);
}
