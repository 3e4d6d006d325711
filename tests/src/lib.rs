//! What the end-to-end tests stand on; the conformance kit itself is `kit/`.
//!
//! `faults` wraps a good sink into one that fails or stalls; `discard` is a store that keeps only sums; `fault_proxy` spoils requests on their way to a real store; `generated` is a source of any size; `certificates` are for servers on loopback; `database` starts real MariaDB and MySQL servers and reads all that is in them; `object_store` starts real object stores; `script` starts what lies in `servers/`; `kubernetes` starts a real API with its controllers; `couch_fake` is a CouchDB of our own, `pouchdb` one of others; `plugin_lab` measures what plugins cost; `plugins_root` is a folder of settings with plugins from outside; `mongo` starts servers that speak MongoDB's protocol; `mongo_fake` is one of our own that stores bytes, `mongo_lab` measures beside the bare driver; `binary` drives the real program.

pub mod binary;
pub mod certificates;
pub mod couch_cases;
pub mod couch_fake;
pub mod couch_lab;
pub mod database;
pub mod discard;
pub mod fault_proxy;
pub mod faults;
pub mod forge;
pub mod gate;
pub mod generated;
pub mod kube_objects;
pub mod kubernetes;
pub mod mongo;
pub mod mongo_fake;
pub mod mongo_lab;
pub mod object_store;
pub mod plugin_lab;
pub mod plugins_root;
pub mod pouchdb;
pub mod script;
pub mod sshd;

pub use bk_kit::{Outcome, data, engine, fakes, hold, protocol_suite, sink_suite, source_suite};

use std::time::{Duration, Instant};

/// The seed of a test: `BK_SEED`, else the one given; printed, so that a failure can be repeated.
pub fn seed(default: u64) -> u64 {
    let seed = std::env::var("BK_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default);
    println!("seed {seed}");
    seed
}

/// How much a test does: little by default, all of it under `tests/run --long`.
pub fn long(little: usize, all: usize) -> usize {
    if std::env::var_os("BK_LONG").is_some() {
        all
    } else {
        little
    }
}

/// Does it for each, three at a time: most of such work is waiting, and limits of seconds must hold on a busy machine too. What went wrong.
pub fn side_by_side<T: Sync>(items: &[T], work: impl Fn(&T) -> Outcome + Sync) -> Vec<String> {
    let waiting = std::sync::Mutex::new(items.iter());
    let wrong = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap().next();
                    let Some(item) = next else { return };
                    if let Err(why) = work(item) {
                        wrong.lock().unwrap().push(why);
                    }
                }
            });
        }
    });
    wrong.into_inner().unwrap()
}

/// Between two questions to a server: each of them starts a process, and what is waited for needs the processors too.
const PACE: Duration = Duration::from_millis(200);

/// Asks until it is so, and no longer than that. The pause makes nothing true: it only leaves the processors to others.
#[track_caller]
pub fn until(what: &str, most: Duration, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < most, "{what}: not within {most:?}");
        std::thread::sleep(PACE);
    }
}

/// What is called as an archive beneath a folder, in whatever folders of a layout.
pub fn archives_beneath(
    folder: &std::path::Path,
) -> std::collections::BTreeSet<std::path::PathBuf> {
    let mut found = std::collections::BTreeSet::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        // One that is not there has none.
        for entry in std::fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') {
                folders.push(path);
            } else if bk_core::sink::looks_like_an_archive(&name) {
                found.insert(path);
            }
        }
    }
    found
}

/// The lease of a run that was killed while it pruned runs out in ten minutes: for this sink in a folder they have passed.
pub fn leases_run_out(folder: &std::path::Path) {
    let Ok(notes) = std::fs::read_dir(folder.join(".bk/main")) else {
        return;
    };
    for note in notes.map(|entry| entry.unwrap().path()) {
        if note
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("lease-")
        {
            let file = std::fs::File::options().write(true).open(&note).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        }
    }
}

/// How many parts of archives lie in a folder.
pub fn parts_in(folder: &std::path::Path) -> usize {
    let is_part = |name: &str| name.starts_with(".bk-part") || name.starts_with(".bk-fetch");
    std::fs::read_dir(folder)
        .unwrap()
        .filter(|entry| is_part(&entry.as_ref().unwrap().file_name().to_string_lossy()))
        .count()
}

/// Ends a test that lacks a real component: loudly, and in CI as a failure.
pub fn skip(what: &str) {
    let ci = std::env::var_os("CI").is_some();
    assert!(!ci, "SKIPPED, which CI does not allow: {what}");
    eprintln!("SKIPPED: {what}");
}
