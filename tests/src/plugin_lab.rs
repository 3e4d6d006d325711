//! What the plugin protocol costs: bytes a second through it in each direction, and a process for each call.

use crate::engine::Site;
use bk_core::plugin::frame::Frame;
use bk_core::plugin::guest;
use bk_core::plugin::manifest::Manifest;
use bk_core::plugin::message::{Entry, Message, Op, RestoreAsk};
use bk_core::plugin::protocol_source::Remote;
use bk_core::plugin::root::remote;
use bk_core::plugin::session::Came;
use bk_core::settings::Settings;
use bk_core::source::{Facts, Stage};
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// The plugin in Rust, as if it were installed in this folder.
pub fn rust_guest(folder: &Path, program: &Path) -> PathBuf {
    let plugin = folder.join("bk-guest");
    std::fs::create_dir_all(&plugin).unwrap();
    let text = format!(
        "manifest = 1\nname = \"bk-guest\"\nversion = \"1.0.0\"\nabout = \"as long as it is told\"\nrole = \"source\"\nrun = [\"{}\"]\nprotocol = [1]\n[setting.mib]\ntype = \"int\"\ndefault = 1\n[test]\nseed = [\"true\"]\nwipe = [\"true\"]\ndigest = [\"echo\", \"always the same\"]\n",
        program.display()
    );
    std::fs::write(plugin.join("bk-plugin.toml"), text).unwrap();
    plugin
}

fn beside_this() -> PathBuf {
    std::env::current_exe().unwrap().with_file_name("bk-guest")
}

fn at(plugin: &Path, settings: serde_json::Value) -> Remote {
    let manifest = Arc::new(Manifest::read(&plugin.join("bk-plugin.toml")).unwrap());
    let proof: bk_core::plugin::root::Proof = Arc::new(|| Ok(()));
    let settings = Settings {
        instance: "lab".into(),
        folder: plugin.to_owned(),
        table: settings.as_object().unwrap().clone(),
    };
    remote(&manifest, &proof, &settings).unwrap()
}

/// Prints GB/s of a body of so many MiB from the plugin and to it, beside the same bytes through a pipe into `sha256sum`.
pub async fn throughput(mib: u64) {
    let folder = tempfile::tempdir().unwrap();
    let remote = at(
        &rust_guest(folder.path(), &beside_this()),
        serde_json::json!({ "mib": mib }),
    );
    let cx = Site::default().context();
    let gigabytes = (mib << 20) as f64 / 1e9;

    let mut session = remote.open(&cx, Op::Backup, |_| ()).await.unwrap();
    let began = Instant::now();
    let mut sums = session.sums();
    loop {
        match session.next().await.unwrap() {
            Came::Data(bytes) => sums.update(&bytes),
            Came::Message(Message::End(end)) => {
                let all = std::mem::replace(&mut sums, session.sums());
                all.compare("long", &end).unwrap();
            }
            Came::Message(Message::Done(_)) => break,
            Came::Message(_) => {}
        }
    }
    session.finish().await.unwrap();
    let from = began.elapsed().as_secs_f64();

    let ask = RestoreAsk {
        existing: None,
        whole_groups: Vec::new(),
        into_group: Vec::new(),
        into_place: None,
        facts: Facts::default(),
        archive: String::new(),
        id: String::new(),
        forget_unfinished: false,
    };
    let mut session = remote
        .open(&cx, Op::Restore, |open| open.restore = Some(ask))
        .await
        .unwrap();
    let began = Instant::now();
    let entry = Entry {
        stage: Stage::Large,
        ..guest::entry("long")
    };
    session
        .send(&Message::Entry(Box::new(entry)))
        .await
        .unwrap();
    let mut sums = session.sums();
    let chunk = Bytes::from(vec![7; 1 << 20]);
    for _ in 0..mib {
        sums.update(&chunk);
        session.write(Frame::Data(chunk.clone())).await.unwrap();
    }
    session.send(&Message::End(sums.end(0))).await.unwrap();
    session.send(&Message::Finish).await.unwrap();
    while !matches!(session.message().await.unwrap(), Message::Done(_)) {}
    session.finish().await.unwrap();
    let to = began.elapsed().as_secs_f64();

    let began = Instant::now();
    let pipe = format!("head -c {mib}M /dev/zero | sha256sum");
    let ran = std::process::Command::new("sh")
        .args(["-c", &pipe])
        .output();
    assert!(ran.unwrap().status.success());
    let pipe = began.elapsed().as_secs_f64();
    println!(
        "{mib} MiB: from the plugin {:.2} GB/s, to it {:.2} GB/s; through a pipe into sha256sum {:.2} GB/s; ratio {:.2} and {:.2}",
        gigabytes / from,
        gigabytes / to,
        gigabytes / pipe,
        pipe / from,
        pipe / to
    );
}

/// Prints what a call of a plugin costs: start, handshake, `check`, end.
pub async fn calls(count: u32) {
    let folder = tempfile::tempdir().unwrap();
    let cx = Site::default().context();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let sqlite = crate::plugins_root::examples().join("sqlite");
    let data = folder.path().join("data");
    for (what, remote) in [
        (
            "Rust",
            at(
                &rust_guest(folder.path(), &beside_this()),
                serde_json::json!({}),
            ),
        ),
        ("Python", at(&sqlite, serde_json::json!({ "path": data }))),
    ] {
        let began = Instant::now();
        for _ in 0..count {
            remote.check(&cx).await.unwrap();
        }
        let each = began.elapsed() / count;
        println!(
            "a call of a plugin in {what}: {:.1} ms",
            each.as_secs_f64() * 1000.0
        );
    }
    let began = Instant::now();
    for _ in 0..count {
        let ran = std::process::Command::new("python3")
            .args(["-c", ""])
            .status();
        assert!(ran.unwrap().success());
    }
    let each = began.elapsed() / count;
    println!(
        "Python, to do nothing: {:.1} ms",
        each.as_secs_f64() * 1000.0
    );
}
