//! Accounts of the two servers that log in by a password, encrypted and not: each can be checked and backed up, and a wrong password is called one.

use bk_tests::binary::Home;
use bk_tests::certificates::Certificates;
use bk_tests::database::{Kind, Server};

/// Its settings with the right password and with a wrong one.
async fn account(server: &Server, user: &str, more: &str) -> Home {
    let home = Home::new("");
    let with = |password: &str| {
        format!(
            "format = 1\nplugins = [\"mysql\", \"local\"]\n[source.mysql]\nhost = \"127.0.0.1\"\nport = {}\nuser = \"{user}\"\npassword = \"{password}\"\ndatabases = [\"shop\"]\n{more}[sink.local]\npath = \"out\"\n",
            server.port()
        )
    };
    home.write("plugins.toml", with("it's right"));
    home.write("wrong.toml", with("it is not"));
    // The server then remembers no proof of anybody.
    server.run_all(&["FLUSH PRIVILEGES"]).await;
    home
}

async fn logs_in(server: &Server, user: &str, more: &str) {
    let home = account(server, user, more).await;
    home.bk(&["check"]).ended(0);
    let told = home.bk(&["backup"]).ended(0);
    assert!(told.stderr.contains("whole"), "{user}: {}", told.stderr);
    let wrong = home.bk(&["check", "--config", "wrong.toml"]).ended(4);
    assert!(wrong.stderr.contains("1045"), "{user}: {}", wrong.stderr);
}

async fn refused(server: &Server, user: &str, more: &str, word: &str) {
    let home = account(server, user, more).await;
    let told = home.bk(&["check"]);
    assert_ne!(told.code, 0, "{user} with {more}");
    assert!(told.stderr.contains(word), "{user}: {}", told.stderr);
}

async fn shop(server: &Server) {
    server
        .run_all(&[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.orders (id INT PRIMARY KEY, a TEXT)",
            "INSERT INTO shop.orders VALUES (1, 'a'), (2, 'b')",
        ])
        .await;
}

async fn make(server: &Server, user: &str, identified: &str) {
    server
        .run_all(&[
            &format!("CREATE USER '{user}'@'127.0.0.1' IDENTIFIED {identified}"),
            &format!("GRANT ALL ON *.* TO '{user}'@'127.0.0.1'"),
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_of_mariadb_log_in() {
    let Some(server) = Server::start(Kind::MariaDb, &[]) else {
        return;
    };
    shop(&server).await;
    server.run_all(&["INSTALL SONAME 'auth_ed25519'"]).await;
    make(&server, "native", "BY 'it''s right'").await;
    make(
        &server,
        "edwards",
        "VIA ed25519 USING PASSWORD('it''s right')",
    )
    .await;
    make(&server, "unix", "VIA unix_socket").await;
    logs_in(&server, "native", "").await;
    logs_in(&server, "edwards", "").await;
    refused(&server, "unix", "", "Access denied").await;
    // This server offers no encryption.
    refused(&server, "native", "tls = \"require\"\n", "no encryption").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_certificate_of_its_name_is_believed() {
    let files = Certificates::new();
    let ca = files.ca();
    let options = [
        format!("--ssl-ca={ca}"),
        format!("--ssl-cert={}", files.certificate()),
        format!("--ssl-key={}", files.key()),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let Some(server) = Server::start(Kind::MariaDb, &options) else {
        return;
    };
    shop(&server).await;
    make(&server, "strict", "BY 'it''s right' REQUIRE SSL").await;
    logs_in(
        &server,
        "strict",
        &format!("tls = \"verify\"\nca = \"{ca}\"\n"),
    )
    .await;
    logs_in(&server, "strict", "").await;
    refused(&server, "strict", "tls = \"verify\"\n", "UnknownIssuer").await;
    let other = files.other_ca();
    let with = |tls: &str| format!("tls = \"{tls}\"\nca = \"{other}\"\n");
    refused(&server, "strict", &with("verify"), "BadSignature").await;
    refused(&server, "strict", &with("verify-ca"), "BadSignature").await;
    refused(
        &server,
        "strict",
        "tls = \"verify\"\nca = \"nowhere.pem\"\n",
        "nowhere.pem",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_of_mysql_log_in() {
    let Some(server) = Server::start(Kind::MySql, &[]) else {
        return;
    };
    shop(&server).await;
    make(
        &server,
        "sha",
        "WITH caching_sha2_password BY 'it''s right'",
    )
    .await;
    make(
        &server,
        "strict",
        "WITH caching_sha2_password BY 'it''s right' REQUIRE SSL",
    )
    .await;
    let ca = format!("ca = \"{}\"\n", server.data().join("ca.pem").display());
    logs_in(&server, "sha", "").await;
    logs_in(&server, "sha", "tls = \"off\"\n").await;
    logs_in(&server, "strict", "tls = \"require\"\n").await;
    logs_in(&server, "strict", &format!("tls = \"verify-ca\"\n{ca}")).await;
    refused(&server, "strict", "tls = \"off\"\n", "1045").await;
    // Its certificate is of its own making, and bears another name.
    refused(
        &server,
        "sha",
        "tls = \"verify-ca\"\n",
        "whose signature counts",
    )
    .await;
    refused(
        &server,
        "sha",
        &format!("tls = \"verify\"\n{ca}"),
        "not valid for name",
    )
    .await;
}
