//! The sink `ssh` on a real OpenSSH server.

use bk_core::error::ErrorKind;
use bk_core::layout::Tier;
use bk_core::name::ArchiveName;
use bk_core::sink::{Filter, Seal, Sink, Stored, Upload};
use bk_tests::engine::Site;
use bk_tests::fakes::FakeSource;
use bk_tests::sink_suite;
use bk_tests::sshd::{Cutting, Link, Sshd, public, sink, toml_of};
use bk_tests::{long, parts_in, seed};
use bytes::Bytes;
use futures::StreamExt;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

fn name(second: i8) -> ArchiveName {
    let start = jiff::civil::date(2026, 8, 22).at(3, 15, second, 0);
    ArchiveName {
        prefix: "backup".into(),
        start: start.in_tz("UTC").unwrap().timestamp(),
        day: "2026-08-22".into(),
        suffix: ".tar.xz".into(),
        id: format!("{second:032x}"),
        tier: Tier::default(),
    }
}

fn seal(body: &[u8]) -> Seal {
    use sha2::Digest;
    let sum = sha2::Sha256::digest(body);
    Seal {
        sha256: sum.iter().map(|b| format!("{b:02x}")).collect(),
        bytes: body.len() as u64,
        id: "a".repeat(32),
        site: "test".into(),
        complete: true,
    }
}

async fn push(sink: &dyn Sink, body: &Bytes, second: i8) -> bk_core::error::Result<Stored> {
    let cx = Site::default().context();
    let name = name(second);
    let mut upload: Box<dyn Upload> = sink
        .create(&cx, &name, bk_core::sink::SizeHint::default())
        .await?;
    for chunk in body.chunks(100_000) {
        if let Err(error) = upload.write(body.slice_ref(chunk)).await {
            // The first error is the one that matters.
            drop(upload.abort().await);
            return Err(error);
        }
    }
    upload.publish(&name, &seal(body)).await
}

async fn whole(sink: &dyn Sink, stored: &Stored) -> bk_core::error::Result<Vec<u8>> {
    let cx = Site::default().context();
    let mut stream = sink.read(&cx, stored, 0..stored.bytes).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_and_a_backup_comes_back() {
    let Some(server) = Sshd::start(&[]) else {
        return;
    };
    let cx = Site::default().context();
    let mut failed = Vec::new();
    let layouts = ["flat", "dates"];
    let checks = sink_suite::CHECKS.iter();
    let checks = checks.flat_map(|check| layouts.map(|layout| (check, layout)));
    for ((name, check), layout) in checks {
        let path = format!("{layout}-{name}");
        server.make_folder(&path);
        let mut table = server.table(&path);
        table["layout"] = json!(layout);
        let sink: Arc<dyn Sink> = Arc::new(sink(table).unwrap());
        println!("{:?}", sink.check(&cx).await.unwrap());
        if let Err(why) = check(&cx, &sink).await {
            failed.push((path.clone(), why));
        }
        let left = parts_in(&server.files().join(&path));
        assert_eq!(left, 0, "{path} leaves parts");
    }
    assert_eq!(failed, []);
    for n in 1..=2 {
        let report = Site::default()
            .source("fake", FakeSource::small(3, 3))
            .sink("ssh", server.sink("site"))
            .at(&format!("2026-08-22T03:0{n}:00Z"))
            .backup()
            .await;
        assert!(report.causes.is_empty(), "{:?}", report.causes);
        assert!(report.sinks[0].verified);
    }
    let sums = Command::new("sha256sum")
        .args(["-c", "--quiet"])
        .arg(server.files().join("site/backup.2026-08-22.tar.xz.sha256"))
        .current_dir(server.files().join("site"))
        .status()
        .unwrap();
    assert!(sums.success());
    let empty = FakeSource::small(0, 0);
    let restored = empty.store.clone();
    let site = Site::default()
        .source("fake", empty)
        .sink("ssh", server.sink("site"));
    let report = site
        .restore(bk_core::restore::Request::default())
        .await
        .unwrap();
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    assert_eq!(
        *restored.lock().unwrap(),
        *FakeSource::small(3, 3).store.lock().unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_of_one_name_both_keep_what_they_wrote() {
    let Some(server) = Sshd::start(&[]) else {
        return;
    };
    for round in 0..long(20, 300) {
        let path = format!("race{round}");
        let (one, two) = (server.sink(&path), server.sink(&path));
        let bodies = [Bytes::from(vec![1; 200_000]), Bytes::from(vec![2; 300_000])];
        let (a, b) = tokio::join!(push(&one, &bodies[0], 1), push(&two, &bodies[1], 1));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_ne!(a.name, b.name);
        assert_eq!(whole(&one, &a).await.unwrap(), bodies[0]);
        assert_eq!(whole(&one, &b).await.unwrap(), bodies[1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_cut_anywhere_leaves_nothing_wrong_under_a_whole_name() {
    let Some(server) = Sshd::start(&[]) else {
        return;
    };
    let cutting = Cutting::to(server.port).await;
    let mut rng = SmallRng::seed_from_u64(seed(41));
    let mut body = vec![0; 3_000_000];
    rng.fill(&mut body[..]);
    let body = Bytes::from(body);
    let through = |path: &str| {
        server.make_folder(path);
        let mut table = server.table(path);
        table["port"] = json!(cutting.port);
        sink(table).unwrap()
    };
    let before = cutting.passed.load(Ordering::SeqCst);
    push(&through("whole"), &body, 1).await.unwrap();
    let bytes = cutting.passed.load(Ordering::SeqCst) - before;
    let cx = Site::default().context();
    let (mut failed, mut whole_ones) = (0, 0);
    for n in 0..long(25, 100) {
        // Where names are claimed as often as where bytes flow.
        let at = if n % 2 == 0 {
            rng.random_range(1..bytes)
        } else {
            bytes - rng.random_range(1..6000)
        };
        let path = format!("cut{n}");
        let cut = through(&path);
        let now = cutting.passed.load(Ordering::SeqCst);
        cutting.at.store(now + at, Ordering::SeqCst);
        let pushed = push(&cut, &body, 1).await;
        cutting.at.store(0, Ordering::SeqCst);
        failed += u32::from(pushed.is_err());
        let direct = server.sink(&path);
        let listed = direct.list(&cx, &Filter::default()).await.unwrap();
        assert!(
            pushed.is_err() || listed.len() == 1,
            "{pushed:?} {listed:?}"
        );
        for stored in &listed {
            assert!(
                whole(&direct, stored).await.unwrap() == body,
                "cut at {at}: {stored:?}"
            );
            whole_ones += 1;
        }
        // The next run is not in its way.
        let again = push(&direct, &body, 2).await.unwrap();
        assert!(whole(&direct, &again).await.unwrap() == body);
    }
    println!("{bytes} bytes; {failed} pushes failed, {whole_ones} archives of cut ones are whole");
    assert!(failed > 5, "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_the_way_has_its_own_error() {
    let Some(server) = Sshd::start(&[]) else {
        return;
    };
    let Some(read_only) = Sshd::start(&["ForceCommand internal-sftp -R -d FOLDER/files"]) else {
        return;
    };
    let cx = Site::default().context();
    server.make_folder("there");
    read_only.make_folder("there");
    let changed = |key: &str, value: serde_json::Value| {
        let mut table = server.table("there");
        table[key] = value;
        table
    };
    let ecdsa = server.path("files").with_file_name("ecdsa");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ecdsa", "-N", "", "-f"])
        .arg(&ecdsa)
        .status()
        .unwrap();
    assert!(made.success());
    let kind_of = |table: serde_json::Value| {
        let cx = cx.clone();
        async move {
            let error = sink(table).unwrap().check(&cx).await.unwrap_err();
            (
                error.kind,
                format!("{} {}", error.what, error.hint.unwrap_or_default()),
            )
        }
    };
    assert!(
        sink(server.table("there"))
            .unwrap()
            .check(&cx)
            .await
            .is_ok()
    );
    for (table, kind, said) in [
        (
            changed(
                "host_key",
                json!([public(&server.path("otherhostkey.pub"))]),
            ),
            ErrorKind::Auth,
            "another key",
        ),
        (
            changed("host_key", json!([public(&ecdsa.with_extension("pub"))])),
            ErrorKind::Auth,
            "of a kind that is recorded",
        ),
        (
            changed("key", json!(server.path("wrong"))),
            ErrorKind::Auth,
            "authorized_keys",
        ),
        (
            changed("user", json!("nobody-of-this-name")),
            ErrorKind::Auth,
            "refuses",
        ),
        (
            changed("path", json!("missing")),
            ErrorKind::Settings,
            "make the folder",
        ),
        (
            changed("key", json!(server.path("none"))),
            ErrorKind::Settings,
            "`key`",
        ),
        (
            changed("known_hosts", json!(server.path("none")))
                .as_object()
                .map(|t| {
                    let mut t = t.clone();
                    t.remove("host_key");
                    json!(t)
                })
                .unwrap(),
            ErrorKind::Settings,
            "known_hosts",
        ),
        (
            changed("port", json!(bk_tests::database::free_port())),
            ErrorKind::Unreachable,
            "127.0.0.1",
        ),
    ] {
        let (got, what) = kind_of(table.clone()).await;
        assert_eq!(got, kind, "{table}: {what}");
        assert!(what.contains(said), "{what}");
    }
    let fixed = sink(read_only.table("there")).unwrap();
    fixed.check(&cx).await.unwrap();
    let error = push(&fixed, &Bytes::from_static(b"x"), 1)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{}", error.what);
    // A listener that says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let (kind, what) = kind_of(changed("port", json!(port))).await;
    assert_eq!(kind, ErrorKind::Unreachable, "{what}");
    assert!(what.contains("20 s"), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_is_gone_through_with_both_keys_compared() {
    let (Some(server), Some(jump), Some(closed)) = (
        Sshd::start(&[]),
        Sshd::start(&["AllowTcpForwarding local"]),
        Sshd::start(&[]),
    ) else {
        return;
    };
    server.make_folder("there");
    let through = |jump: &Sshd, key: String| {
        let mut table = server.table("there");
        let mut host = jump.jump_table();
        host["host_key"] = json!([key]);
        table["jump"] = host;
        sink(table).unwrap()
    };
    let cx = Site::default().context();
    let good = through(&jump, jump.host_key());
    good.check(&cx).await.unwrap();
    let body = Bytes::from(vec![7; 1_000_000]);
    let stored = push(&good, &body, 1).await.unwrap();
    assert!(whole(&good, &stored).await.unwrap() == body);
    let wrong = through(&jump, server.host_key())
        .check(&cx)
        .await
        .unwrap_err();
    assert_eq!(wrong.kind, ErrorKind::Auth, "{}", wrong.what);
    let denied = through(&closed, closed.host_key())
        .check(&cx)
        .await
        .unwrap_err();
    assert_eq!(denied.kind, ErrorKind::Denied, "{}", denied.what);
    assert!(
        denied
            .hint
            .unwrap_or_default()
            .contains("AllowTcpForwarding")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn known_hosts_means_what_it_means_to_openssh() {
    let Some(server) = Sshd::start(&[]) else {
        return;
    };
    server.make_folder("there");
    let cx = Site::default().context();
    let (right, other) = (server.host_key(), public(&server.path("otherhostkey.pub")));
    let port = server.port;
    let named = format!("[127.0.0.1]:{port}");
    for file in [
        format!("{named} {right}\n"),
        format!("{named} {other}\n"),
        format!("{named} {other}\n{named} {right}\n"),
        format!("127.0.0.1 {right}\n"),
        format!("*,!{named} {right}\n"),
        format!("[127.0.0.?]:* {right}\n"),
        format!("@revoked * {right}\n{named} {right}\n"),
        format!("@revoked {named} {right}\n"),
        format!("@revoked * {other}\n{named} {right}\n"),
        format!("elsewhere {right}\n"),
        "# nothing\n".to_owned(),
        format!("broken line\n{named} {right}\n"),
        "hashed".to_owned(),
    ] {
        let path = server.path("known");
        let text = if file == "hashed" {
            format!("{named} {right}\n")
        } else {
            file.clone()
        };
        std::fs::write(&path, &text).unwrap();
        if file == "hashed" {
            let hashed = Command::new("ssh-keygen")
                .args(["-q", "-H", "-f"])
                .arg(&path)
                .output()
                .unwrap();
            assert!(hashed.status.success());
        }
        let theirs = Command::new("sftp")
            .args(["-b", "/dev/null", "-P", &port.to_string()])
            .arg("-i")
            .arg(server.path("id"))
            .args([
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                "StrictHostKeyChecking=yes",
                "-o",
                "GlobalKnownHostsFile=/dev/null",
                "-o",
            ])
            .arg(format!("UserKnownHostsFile={}", path.display()))
            .arg(format!("{}@127.0.0.1", server.user))
            .output()
            .unwrap();
        let mut table = server.table("there");
        table.as_object_mut().unwrap().remove("host_key");
        table["known_hosts"] = json!(path);
        let ours = sink(table).unwrap().check(&cx).await;
        assert_eq!(
            ours.is_ok(),
            theirs.status.success(),
            "{text}: {ours:?}; OpenSSH: {}",
            String::from_utf8_lossy(&theirs.stderr)
        );
        if let Err(error) = ours {
            assert_eq!(error.kind, ErrorKind::Auth, "{}", error.what);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_old_handle_still_writes_reaches_no_archive() {
    let Some(server) = Sshd::start(&[]) else {
        return;
    };
    let (old, new) = (server.sink("there"), server.sink("there"));
    let cx = Site::default().context();
    let hint = bk_core::sink::SizeHint::default();
    let mut late = old.create(&cx, &name(1), hint).await.unwrap();
    let bodies = [Bytes::from(vec![1; 400_000]), Bytes::from(vec![2; 300_000])];
    late.write(bodies[0].slice(..200_000)).await.unwrap();
    // The same run once more, from a new session, as after a restart.
    let published = push(&new, &bodies[1], 1).await.unwrap();
    late.write(bodies[0].slice(200_000..)).await.unwrap();
    assert!(whole(&new, &published).await.unwrap() == bodies[1]);
    let second = late.publish(&name(1), &seal(&bodies[0])).await.unwrap();
    assert_ne!(second.name, published.name);
    assert!(whole(&new, &published).await.unwrap() == bodies[1]);
    assert!(whole(&new, &second).await.unwrap() == bodies[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrow_link_is_enough() {
    const BYTES_PER_SECOND: u64 = 64 << 10;
    let Some(server) = Sshd::start(&[]) else {
        return;
    };
    let way = Duration::from_millis(50);
    let link = Link::to(server.port, way, Some(BYTES_PER_SECOND)).await;
    server.make_folder("there");
    let mut table = server.table("there");
    table["port"] = json!(link.port);
    let narrow = sink(table).unwrap();
    let body = Bytes::from(vec![7; long(600_000, 8_000_000)]);
    let stored = push(&narrow, &body, 1).await.unwrap();
    assert!(whole(&narrow, &stored).await.unwrap() == body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_has_an_address_of_ipv6() {
    let Ok(listener) = tokio::net::TcpListener::bind("[::1]:0").await else {
        println!("this machine has no IPv6");
        return;
    };
    let Some(server) = Sshd::start(&[]) else {
        return;
    };
    let link = Link::from(listener, server.port, Duration::ZERO, None);
    server.make_folder("there");
    let cx = Site::default().context();
    for host in ["::1", "[::1]"] {
        let mut table = server.table("there");
        table["host"] = json!(host);
        table["port"] = json!(link.port);
        table.as_object_mut().unwrap().remove("host_key");
        let known = server.path("known6");
        std::fs::write(
            &known,
            format!("[::1]:{} {}\n", link.port, server.host_key()),
        )
        .unwrap();
        table["known_hosts"] = json!(known);
        sink(table).unwrap().check(&cx).await.unwrap();
    }
}

/// Ends what it stopped, when a test fails too.
struct Stopped(Vec<u32>);

impl Stopped {
    /// The processes that serve connections to a port, by what `ps` says of their parents.
    fn of(server: &Sshd) -> Self {
        let children = |pid: &str| {
            let path = format!("/proc/{pid}/task/{pid}/children");
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let mut all = vec![server.pid().to_string()];
        let mut n = 0;
        while n < all.len() {
            all.extend(children(&all[n]));
            n += 1;
        }
        let stopped = Self(all.iter().map(|pid| pid.parse().unwrap()).collect());
        stopped.tell(rustix::process::Signal::STOP);
        stopped
    }

    fn tell(&self, signal: rustix::process::Signal) {
        for pid in &self.0 {
            let pid = rustix::process::Pid::from_raw(*pid as i32).unwrap();
            // One that has ended needs nothing.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.tell(rustix::process::Signal::CONT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_is_given_up() {
    if long(0, 1) == 0 {
        println!("takes a minute: BK_LONG=1");
        return;
    }
    let Some(server) = Sshd::start(&[]) else {
        return;
    };
    let there = server.sink("there");
    let cx = Site::default().context();
    let hint = bk_core::sink::SizeHint::default();
    let mut upload = there.create(&cx, &name(1), hint).await.unwrap();
    upload.write(Bytes::from(vec![1; 100_000])).await.unwrap();
    let stopped = Stopped::of(&server);
    let began = Instant::now();
    let error = loop {
        // The window fills, then nothing is acknowledged.
        if let Err(error) = upload.write(Bytes::from(vec![2; 100_000])).await {
            break error;
        }
    };
    assert_eq!(error.kind, ErrorKind::Unreachable, "{}", error.what);
    println!("given up after {:?}: {}", began.elapsed(), error.what);
    drop(stopped);
    drop(upload.abort().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_leaves_nothing() {
    let Some(server) = Sshd::start_with_small_disk(8) else {
        return;
    };
    let there = sink(server.table("small")).unwrap();
    let cx = Site::default().context();
    there.check(&cx).await.unwrap();
    let small = Bytes::from(vec![1; 500_000]);
    let before = push(&there, &small, 1).await.unwrap();
    let error = push(&there, &Bytes::from(vec![2; 12_000_000]), 2)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSpace, "{}", error.what);
    let listed = there.list(&cx, &Filter::default()).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(whole(&there, &before).await.unwrap() == small);
    // As the server sees it.
    let small = server.files().join("small");
    let small = format!("/proc/{}/root{}", server.pid(), small.display());
    assert_eq!(parts_in(Path::new(&small)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_taken_once_where_that_is_asked_for_and_a_changed_one_never() {
    let Some(server) = Sshd::start(&[]) else {
        return;
    };
    server.make_folder("there");
    let cx = Site::default().context();
    let known = server.path("files").with_file_name("new/known_hosts");
    let by = |accept: bool| {
        let mut table = server.table("there");
        table.as_object_mut().unwrap().remove("host_key");
        table["known_hosts"] = json!(known);
        table["accept_new_host_key"] = json!(accept);
        sink(table).unwrap()
    };
    assert!(by(false).check(&cx).await.is_err());
    let health = by(true).check(&cx).await.unwrap();
    let said = health.warnings.join(" ");
    assert!(said.contains("was not known and is now"), "{said}");
    // From now on it is known, and nothing else is.
    by(false).check(&cx).await.unwrap();
    let other = public(&server.path("otherhostkey.pub"));
    std::fs::write(&known, format!("[127.0.0.1]:{} {other}\n", server.port)).unwrap();
    let changed = by(true).check(&cx).await.unwrap_err();
    assert_eq!(changed.kind, ErrorKind::Auth, "{}", changed.what);
}

#[test]
fn each_fault_of_the_way_has_its_exit_code_and_nobody_is_asked() {
    let (Some(server), Some(small), Some(read_only)) = (
        Sshd::start(&[]),
        Sshd::start_with_small_disk(8),
        Sshd::start(&["ForceCommand internal-sftp -R -d FOLDER/files"]),
    ) else {
        return;
    };
    server.make_folder("there");
    read_only.make_folder("there");
    let changed = |key: &str, value: serde_json::Value| {
        let mut table = server.table("there");
        table[key] = value;
        table
    };
    let mut through = server.jump_table();
    through["host_key"] = json!([server.host_key()]);
    for (table, verb, code) in [
        (server.table("there"), "check", 0),
        (server.table("there"), "backup", 0),
        (
            changed(
                "host_key",
                json!([public(&server.path("otherhostkey.pub"))]),
            ),
            "check",
            4,
        ),
        (changed("key", json!(server.path("wrong"))), "check", 4),
        (changed("path", json!("missing")), "check", 4),
        (changed("jump", through), "check", 4),
        (
            changed("port", json!(bk_tests::database::free_port())),
            "check",
            1,
        ),
        (read_only.table("there"), "backup", 4),
        (small.table("small"), "backup", 1),
    ] {
        let home = bk_tests::binary::Home::new(&format!(
            "format = 1\nplugins = [\"files\", \"ssh\"]\n[source.files]\npath = \"src\"\n{}",
            toml_of("ssh", &table)
        ));
        home.write("src/g/u/f", bk_tests::data::noise(7, 12 << 20));
        let ran = home.bk(&[verb]);
        assert_eq!(ran.code, code, "{verb} {table}: {ran:?}");
    }
    assert_eq!(
        std::fs::read_dir(read_only.files().join("there"))
            .unwrap()
            .count(),
        0
    );
}
