//! Every write, sync, renaming, link and removal of a backup with retention fails once by itself, or is where the program is killed: nothing bad
//! has a whole name, older archives stay as they are, and the next run needs no help. Faults are injected by `strace`.

use bk_core::archive::read_at::FileReadAt;
use bk_core::verify::{Level, verify};
use bk_tests::binary::{Home, program};
use bk_tests::data::noise;
use bk_tests::sshd::{Sshd, toml_of};
use bk_tests::{archives_beneath, leases_run_out, long, parts_in};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;

/// What a program of ours calls for these. Its other writes (to a terminal, to a waker) are `write`.
const LOCAL_CALLS: &str = "pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,ftruncate";
/// What OpenSSH's server of files calls. It seeks before each write of a file; its other writes are answers.
const SERVER_CALLS: &str = "lseek,fsync,rename,link,linkat,unlink,mkdir,rmdir";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Error(&'static str),
    Kill,
}

/// Every kind; without `BK_LONG` not both errors, which nothing here tells apart.
fn faults() -> &'static [Fault] {
    const ALL: [Fault; 3] = [Fault::Kill, Fault::Error("EIO"), Fault::Error("ENOSPC")];
    &ALL[..long(2, 3)]
}

/// Whether a program can be looked at here.
fn can_trace() -> bool {
    match Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .status()
    {
        Ok(status) if status.success() => true,
        Ok(_) => {
            bk_tests::skip("strace is not permitted here");
            false
        }
        Err(_) => {
            bk_tests::skip("strace is missing");
            false
        }
    }
}

impl Fault {
    /// The word of `strace`.
    fn word(self, call: &str, n: usize) -> String {
        match self {
            Self::Error(name) => format!("inject={call}:error={name}:when={n}"),
            Self::Kill => format!("inject={call}:signal=SIGKILL:when={n}"),
        }
    }
}

/// Calls in a log of `strace -y`, each with the kind of file that it is for.
fn calls(log: &str) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for line in log.lines() {
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        let Some((call, rest)) = line.split_once('(') else {
            continue;
        };
        if !call.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        // Without the digits and the chance in names.
        let kind = [
            "sums", ".sha256", ".note", ".bk-part", "/.bk/", "weekly", "daily", ".tar.xz",
        ];
        let kind: Vec<&str> = kind
            .into_iter()
            .filter(|word| rest.contains(word))
            .collect();
        found.insert((call.to_owned(), kind.join(" ")));
    }
    found
}

/// Lines of a log, one for each call: one that another thread's call cut in two is joined again.
fn whole_lines(log: &str) -> Vec<String> {
    let mut begun: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    let mut lines = Vec::new();
    for line in log.lines() {
        let (thread, rest) = line.split_once(' ').unwrap_or(("", line));
        let rest = rest.trim_start();
        if let Some(call) = rest.strip_suffix("<unfinished ...>") {
            let name = call.split('(').next().unwrap_or_default();
            begun.insert((thread, name), call);
        } else if let Some((name, end)) = rest
            .strip_prefix("<... ")
            .and_then(|rest| rest.split_once(" resumed>"))
        {
            let call = begun.remove(&(thread, name)).unwrap_or_default();
            lines.push(format!("{thread} {call}{end}"));
        } else {
            lines.push(line.to_owned());
        }
    }
    // What was under way when the program was killed.
    lines.extend(
        begun
            .into_iter()
            .map(|((thread, _), call)| format!("{thread} {call}")),
    );
    lines
}

/// How often all numbers are tried again while a kind of call was never met.
const ROUNDS: usize = 12;
/// Numbers that were not reached in a row before no more are: threads share the work in another way each time.
const MISSES: usize = 3;

fn traced(home: &Home, options: &[&str], arguments: &[&str]) -> (ExitStatus, String) {
    let log = home.path("strace.log");
    let plain = home.command(arguments);
    let status = Command::new("strace")
        .args(["-f", "-qq", "-y", "-s", "0", "-o"])
        .arg(&log)
        .args(options)
        .arg(program())
        .args(plain.get_args())
        .current_dir(home.path(""))
        .env("XDG_CONFIG_HOME", home.path("none"))
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::fs::File::create(home.path("stderr")).unwrap())
        .status()
        .unwrap();
    let log = std::fs::read_to_string(log).unwrap_or_default();
    (status, whole_lines(&log).join("\n"))
}

/// Files that look whole, by path beneath the folder.
fn archives(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let beneath = |path: PathBuf| path.strip_prefix(folder).unwrap().to_path_buf();
    archives_beneath(folder)
        .into_iter()
        .map(|path| (beneath(path.clone()), std::fs::read(path).unwrap()))
        .collect()
}

async fn all_whole(folder: &Path, what: &str) {
    for name in archives(folder).into_keys() {
        let path = folder.join(&name);
        let sums = std::fs::read_to_string(format!("{}.sha256", path.display())).ok();
        let read = Arc::new(FileReadAt::open(&path).unwrap());
        let verified = verify(read, sums.as_deref(), Level::Decoded).await;
        let verified = verified.unwrap_or_else(|e| panic!("{what}: {}: {e}", name.display()));
        assert!(verified.complete, "{what}: {}", name.display());
    }
}

/// A folder as it was before, copied with its times.
fn copy(from: &Path, to: &Path) {
    drop(std::fs::remove_dir_all(to));
    let copied = Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .unwrap();
    assert!(copied.success());
}

/// What was there, and which of it a run without faults lets go.
type Before<'a> = (&'a BTreeMap<PathBuf, Vec<u8>>, &'a BTreeSet<PathBuf>);

fn gone(before: &BTreeMap<PathBuf, Vec<u8>>, folder: &Path) -> BTreeSet<PathBuf> {
    let after = archives(folder);
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    gone.cloned().collect()
}

/// What was there before and is there still is byte for byte the same; what is gone may only be gone beside something new and whole.
fn older_ones_are_untouched(
    (before, goes): Before<'_>,
    after: &BTreeMap<PathBuf, Vec<u8>>,
    what: &str,
) {
    for (name, bytes) in after {
        if let Some(was) = before.get(name) {
            assert!(was == bytes, "{what}: {} has changed", name.display());
        }
    }
    let gone: Vec<_> = before
        .keys()
        .filter(|name| !after.contains_key(*name))
        .collect();
    let more: Vec<_> = gone.iter().filter(|name| !goes.contains(**name)).collect();
    assert!(
        more.is_empty(),
        "{what}: {more:?} went, which a run without faults leaves"
    );
    let is_gone = !gone.is_empty();
    let is_new = after.keys().any(|name| !before.contains_key(name));
    assert!(!is_gone || is_new, "{what}: archives went and nothing came");
}

/// Which calls a fault met; the last of its name where the program was killed.
fn met(log: &str, call: &str, killed: bool) -> BTreeSet<(String, String)> {
    let mut met: Vec<&str> = log.lines().filter(|l| l.contains("(INJECTED)")).collect();
    if killed {
        let of_call = |line: &&str| line.contains(&format!(" {call}("));
        met.extend(log.lines().rfind(of_call));
    }
    calls(&met.join("\n"))
}

/// After a fault: what is there is whole, what was there is as it was, and a run that ended well has made something.
async fn all_is_well((before, goes): Before<'_>, folder: &Path, ended_well: bool, what: &str) {
    let after = archives(folder);
    older_ones_are_untouched((before, goes), &after, what);
    all_whole(folder, what).await;
    let is_new = after.keys().any(|name| !before.contains_key(name));
    assert!(
        is_new || !ended_well,
        "{what}: it ended well and made nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_publish_and_prune_may_fail_or_be_the_last() {
    if !can_trace() {
        return;
    }
    let home = Home::new(
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[sink.local]\npath = \"out\"\nlayout = \"tiers\"\nkeep = { last = 2, weekly = 1 }\n",
    );
    for n in 0..4 {
        home.write("src/a", noise(n, 300_000));
        let ran = home.bk(&["backup"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    // The next run promotes anew, and lets one go.
    std::fs::remove_dir_all(home.path("out/weekly")).unwrap();
    home.write("src/a", noise(9, 300_000));
    copy(&home.path("out"), &home.path("base"));
    let before = archives(&home.path("base"));
    let trace = format!("trace={LOCAL_CALLS}");
    let (status, log) = traced(&home, &["-e", &trace], &["backup"]);
    assert!(status.success());
    let goes = gone(&before, &home.path("out"));
    assert!(!goes.is_empty(), "a run lets nothing go");
    let all = calls(&log);
    for call in [
        "pwrite64",
        "fsync",
        "renameat2",
        "linkat",
        "unlink",
        "mkdir",
    ] {
        assert!(
            all.iter().any(|(name, _)| name == call),
            "no {call} in {all:?}"
        );
    }

    let mut runs = 0;
    for fault in faults().iter().copied() {
        let mut reached = BTreeSet::new();
        for _ in 0..ROUNDS {
            let left: Vec<_> = all.difference(&reached).cloned().collect();
            let names: BTreeSet<&String> = left.iter().map(|(name, _)| name).collect();
            for call in names {
                let mut missed = 0;
                for n in 1.. {
                    copy(&home.path("base"), &home.path("out"));
                    let what = format!("{fault:?} at {call} {n}");
                    let inject = fault.word(call, n);
                    let (status, log) = traced(&home, &["-e", &trace, "-e", &inject], &["backup"]);
                    let met = met(&log, call, status.signal() == Some(9));
                    if met.is_empty() {
                        missed += 1;
                        if missed == MISSES {
                            break;
                        }
                        continue;
                    }
                    missed = 0;
                    reached.extend(met);
                    let ended_well = status.success();
                    all_is_well((&before, &goes), &home.path("out"), ended_well, &what).await;
                    leases_run_out(&home.path("out"));
                    let again = home.bk(&["backup"]);
                    assert_eq!(again.code, 0, "{what}, then: {}", again.stderr);
                    assert_eq!(parts_in(&home.path("out")), 0, "{what}: parts stay");
                    all_whole(&home.path("out"), &what).await;
                    runs += 1;
                }
            }
        }
        let missed: Vec<_> = all.difference(&reached).collect();
        assert!(missed.is_empty(), "{fault:?} never met {missed:?}");
    }
    println!("{runs} runs with a fault, {} kinds of calls", all.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_the_server_of_files_may_fail_or_be_its_last() {
    if !can_trace() {
        return;
    }
    let Some(server) = Sshd::start(&[]) else {
        return;
    };
    let home = Home::new("");
    server.make_folder("out");
    let mut table = server.table("out");
    table["layout"] = json!("tiers");
    table["keep"] = json!({ "last": 2, "weekly": 1 });
    home.write(
        "plugins.toml",
        format!(
            "format = 1\nplugins = [\"files\", \"ssh\"]\n[source.files]\npath = \"src\"\n{}",
            toml_of("ssh", &table)
        ),
    );
    for n in 0..4 {
        home.write("src/a", noise(n, 300_000));
        let ran = home.bk(&["backup"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    let out = server.files().join("out");
    std::fs::remove_dir_all(out.join("weekly")).unwrap();
    home.write("src/a", noise(9, 300_000));
    let base = home.path("base");
    copy(&out, &base);
    let before = archives(&base);
    let trace = format!("trace={SERVER_CALLS}");
    let traced = server.traced(&["-e", &trace]);
    assert_eq!(home.bk(&["backup"]).code, 0);
    let goes = gone(&before, &out);
    assert!(!goes.is_empty(), "a run lets nothing go");
    let log = traced.log();
    let all = calls(&log);
    for call in ["lseek", "fsync", "link", "unlink", "mkdir"] {
        assert!(
            all.iter().any(|(name, _)| name.starts_with(call)),
            "no {call} in {all:?}"
        );
    }

    // One process of its own serves a connection, call by call: the same each time.
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut places = Vec::new();
    for line in whole_lines(&log) {
        for (call, kind) in calls(&line) {
            let n = counts.entry(call.clone()).or_default();
            *n += 1;
            // It seeks before it reads, too.
            if call != "lseek" || kind.contains(".bk-part") {
                places.push((call, *n));
            }
        }
    }
    let (mut runs, mut missed) = (0, 0);
    let every = long(9, 1);
    for fault in faults().iter().copied() {
        for (call, n) in places.iter().skip(runs % every).step_by(every) {
            copy(&base, &out);
            let what = format!("{fault:?} at {call} {n} of the server");
            let inject = fault.word(call, *n);
            let traced = server.traced(&["-e", &trace, "-e", &inject]);
            let ran = home.bk(&["backup"]);
            let log = traced.log();
            let met = log.contains("(INJECTED)") || log.contains("killed by SIGKILL");
            if !met {
                // A run may make a call or two less than the one that was looked at.
                assert_eq!(ran.code, 0, "{what} was not met: {}", ran.stderr);
                missed += 1;
                continue;
            }
            all_is_well((&before, &goes), &out, ran.code == 0, &what).await;
            leases_run_out(&out);
            let again = home.bk(&["backup"]);
            assert_eq!(again.code, 0, "{what}, then: {}", again.stderr);
            all_whole(&out, &what).await;
            runs += 1;
        }
    }
    assert!(
        missed * 10 <= runs,
        "{missed} faults were not met, {runs} were"
    );
    println!("{runs} runs with a fault in the server");
}
