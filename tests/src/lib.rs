//! The conformance kit: what every source and sink must do, ours and strangers', with fakes to run it on and mutants that it must catch.
//!
//! `sink_suite` and `source_suite` are lists of named checks over the contracts. `fakes` are a sink and a source in memory, which may be
//! given one defect each; `faults` wraps a good sink into one that fails or stalls; `discard` is a store that keeps only sums; `fault_proxy` spoils requests on their way to a real store; `data` makes seeded bodies and trees; `generated` is a source of any size; `certificates` are for servers on loopback; `database` starts real MariaDB and MySQL servers and reads all that is in them; `object_store` starts real object stores; `script` starts what lies in `servers/`; `kubernetes` starts a real API with its controllers; `couch_fake` is a CouchDB of our own, `pouchdb` one of others; `mongo` starts servers that speak MongoDB's protocol; `mongo_fake` is one of our own that stores bytes, `mongo_lab` measures beside the bare driver; `engine` runs
//! backups and restores in process; `binary` drives the real program.

pub mod binary;
pub mod certificates;
pub mod couch_cases;
pub mod couch_fake;
pub mod couch_lab;
pub mod data;
pub mod database;
pub mod discard;
pub mod engine;
pub mod fakes;
pub mod fault_proxy;
pub mod faults;
pub mod forge;
pub mod generated;
pub mod kubernetes;
pub mod mongo;
pub mod mongo_fake;
pub mod mongo_lab;
pub mod object_store;
pub mod pouchdb;
pub mod script;
pub mod sink_suite;
pub mod source_suite;
pub mod sshd;

/// One named check of a suite.
pub type Outcome = Result<(), String>;

/// Says why a check failed unless it holds.
pub fn hold(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise()) }
}

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
