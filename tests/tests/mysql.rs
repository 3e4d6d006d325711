//! MySQL and MariaDB, real ones: what is in a server comes back equal, or is named.

use bk_tests::binary::Home;
use bk_tests::database::{Kind, Server, fixture};

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
