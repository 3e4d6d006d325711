//! The real program: exit codes, words, settings, selections, kills, full disks, secrets.

use bk_tests::binary::{Home, Ran};
use bk_tests::{data, long, seed, skip};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

fn tree(home: &Home) {
    for (path, body) in [
        ("a/one/f1", "1"),
        ("a/one/f2", "2"),
        ("a/two/f3", "3"),
        ("b/three/f4", "4"),
        ("b/loose", "5"),
        ("top", "6"),
    ] {
        home.write(&format!("src/{path}"), body);
    }
}

/// Files and their texts beneath a folder.
fn texts(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(next) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(&next) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                found.insert(
                    path.strip_prefix(folder).unwrap().display().to_string(),
                    std::fs::read_to_string(&path).unwrap_or_default(),
                );
            }
        }
    }
    found
}

fn names(folder: &Path) -> Vec<String> {
    texts(folder).into_keys().collect()
}

#[test]
fn a_first_backup_list_show_verify_and_restore_say_what_they_did() {
    let home = Home::files();
    tree(&home);
    let backup = home.bk(&["backup", "--label", "first"]).ended(0);
    assert!(
        backup.stdout.is_empty(),
        "stdout is for data: {}",
        backup.stdout
    );
    assert!(
        backup.stderr.contains("files      5 units") && backup.stderr.contains("verified"),
        "{}",
        backup.stderr
    );
    let list = home.bk(&["list"]).ended(0);
    assert!(
        list.stdout.contains("whole") && list.stdout.contains("\"first\""),
        "{}",
        list.stdout
    );
    let show = home.bk(&["show", "--units"]).ended(0);
    assert!(
        show.stdout.contains("files/a/one  data  2 members"),
        "{}",
        show.stdout
    );
    home.bk(&["verify"]).ended(0);
    std::fs::remove_dir_all(home.path("src")).unwrap();
    let before_asking = home.bk(&["restore"]).ended(6);
    assert!(
        before_asking.stderr.contains("repeat with --yes") && !home.path("src").exists(),
        "{}",
        before_asking.stderr
    );
    let restore = home.bk(&["restore", "--yes"]).ended(0);
    assert!(
        restore.stderr.contains("restored and counted"),
        "{}",
        restore.stderr
    );
    assert_eq!(
        names(&home.path("src")),
        [
            "a/one/f1",
            "a/one/f2",
            "a/two/f3",
            "b/loose",
            "b/three/f4",
            "top"
        ]
    );
}

#[test]
fn help_names_every_exit_code_and_an_unknown_flag_is_usage() {
    let home = Home::files();
    let help = home.bk(&["--help"]).ended(0);
    for word in [
        "0 done",
        "3 partial",
        "4 settings",
        "5 nothing found",
        "6 refused",
        "7 corrupt",
        "8 locked",
        "9 stale",
        "130/143",
    ] {
        assert!(
            help.stdout.contains(word),
            "{word} is not in:\n{}",
            help.stdout
        );
    }
    home.bk(&["backup", "--no-such-flag"]).ended(2);
    for verb in [
        "backup", "restore", "list", "show", "verify", "extract", "prune", "pin", "unpin", "check",
        "config", "plugins",
    ] {
        home.bk(&[verb, "--help"]).ended(0);
    }
    assert!(
        home.bk(&["completions", "bash"])
            .ended(0)
            .stdout
            .contains("_bk")
    );
    assert!(home.bk(&["man"]).ended(0).stdout.contains(".TH bk"));
    home.bk(&["man", "--into", "man"]).ended(0);
    for page in ["bk.1", "bk-backup.1", "bk-plugins-test.1"] {
        assert!(
            home.names_in("man").iter().any(|name| name == page),
            "{page}"
        );
    }
}

/// One row of the pairwise table: flags, exit code, what is then in `src` or in `else`.
struct Row {
    flags: &'static [&'static str],
    code: i32,
    into: &'static str,
    expect: &'static [&'static str],
}

#[test]
fn a_pairwise_table_of_restore_flags_does_what_each_says() {
    const ALL: &[&str] = &[
        "a/one/f1",
        "a/one/f2",
        "a/two/f3",
        "b/loose",
        "b/three/f4",
        "top",
    ];
    let rows = [
        Row {
            flags: &[],
            code: 0,
            into: "src",
            expect: ALL,
        },
        Row {
            flags: &["--only=files"],
            code: 0,
            into: "src",
            expect: ALL,
        },
        Row {
            flags: &["--only=files/a"],
            code: 0,
            into: "src",
            expect: &["a/one/f1", "a/one/f2", "a/two/f3"],
        },
        Row {
            flags: &["--only=files/a/one"],
            code: 0,
            into: "src",
            expect: &["a/one/f1", "a/one/f2"],
        },
        Row {
            flags: &["--only=files/*/t*"],
            code: 0,
            into: "src",
            expect: &["a/two/f3", "b/three/f4"],
        },
        Row {
            flags: &["--only=files/b/."],
            code: 0,
            into: "src",
            expect: &["b/loose"],
        },
        Row {
            flags: &["--only=files/."],
            code: 0,
            into: "src",
            expect: &["top"],
        },
        Row {
            flags: &["--exclude=files/a"],
            code: 0,
            into: "src",
            expect: &["b/loose", "b/three/f4", "top"],
        },
        Row {
            flags: &["--exclude=files/a", "--exclude=files/b"],
            code: 0,
            into: "src",
            expect: &["top"],
        },
        Row {
            flags: &["--only=files/a", "--exclude=files/a/one"],
            code: 0,
            into: "src",
            expect: &["a/two/f3"],
        },
        Row {
            flags: &["--only=files/nothing"],
            code: 5,
            into: "src",
            expect: &[],
        },
        Row {
            flags: &["--exclude=files/nothing"],
            code: 5,
            into: "src",
            expect: &[],
        },
        Row {
            flags: &["--only=mysql"],
            code: 5,
            into: "src",
            expect: &[],
        },
        Row {
            flags: &["--only=files/a", "--exclude=nothing"],
            code: 5,
            into: "src",
            expect: &[],
        },
        Row {
            flags: &["--date=TODAY"],
            code: 0,
            into: "src",
            expect: ALL,
        },
        Row {
            flags: &["--date=TODAY", "--only=files/a/two"],
            code: 0,
            into: "src",
            expect: &["a/two/f3"],
        },
        Row {
            flags: &["--date=2001-02-03"],
            code: 5,
            into: "src",
            expect: &[],
        },
        Row {
            flags: &["--date=yesterday"],
            code: 4,
            into: "src",
            expect: &[],
        },
        Row {
            flags: &["--version=VERSION"],
            code: 0,
            into: "src",
            expect: ALL,
        },
        Row {
            flags: &["--version=VERSION", "--date=TODAY", "--exclude=files/b"],
            code: 0,
            into: "src",
            expect: &["a/one/f1", "a/one/f2", "a/two/f3", "top"],
        },
        Row {
            flags: &["--version=20010203T000000Z"],
            code: 5,
            into: "src",
            expect: &[],
        },
        Row {
            flags: &["--into=files=else"],
            code: 0,
            into: "else",
            expect: ALL,
        },
        Row {
            flags: &["--into=files/a=c", "--only=files/a"],
            code: 0,
            into: "src",
            expect: &["c/one/f1", "c/one/f2", "c/two/f3"],
        },
        Row {
            flags: &["--into=files/a=c", "--only=files/b"],
            code: 5,
            into: "src",
            expect: &[],
        },
        Row {
            flags: &["--as=files=other", "--only=files/a"],
            code: 0,
            into: "other",
            expect: &["a/one/f1", "a/one/f2", "a/two/f3"],
        },
        Row {
            flags: &["--as=files=nobody"],
            code: 3,
            into: "src",
            expect: &[],
        },
        Row {
            flags: &["--existing=refuse", "--only=files/b"],
            code: 0,
            into: "src",
            expect: &["b/loose", "b/three/f4"],
        },
        Row {
            flags: &["--dry-run"],
            code: 0,
            into: "src",
            expect: &[],
        },
        Row {
            flags: &["--dry-run", "--only=files/nothing"],
            code: 5,
            into: "src",
            expect: &[],
        },
        Row {
            flags: &["--from=nowhere"],
            code: 4,
            into: "src",
            expect: &[],
        },
    ];
    assert!(rows.len() <= 30);
    let home = Home::new(
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[source.other]\nplugin = \"files\"\npath = \"other\"\n[sink.local]\npath = \"out\"\n",
    );
    tree(&home);
    home.bk(&["backup", "--only", "files"]).ended(0);
    let versions = home.bk(&["restore", "--list-versions"]).ended(0).stdout;
    let (version, time) = versions.trim().split_once("  ").unwrap();
    for row in rows {
        for folder in ["src", "else", "other"] {
            let _ = std::fs::remove_dir_all(home.path(folder));
        }
        let flags: Vec<String> = row
            .flags
            .iter()
            .map(|f| {
                f.replace("TODAY", &time[..10])
                    .replace("VERSION", version)
                    .replace("else", home.path("else").to_str().unwrap())
            })
            .collect();
        let mut arguments = vec!["restore", "--yes"];
        arguments.extend(flags.iter().map(String::as_str));
        let ran = home.bk(&arguments);
        assert_eq!(ran.code, row.code, "{:?}: {}", row.flags, ran.stderr);
        assert_eq!(names(&home.path(row.into)), row.expect, "{:?}", row.flags);
        if ran.code == 5 {
            assert!(
                ran.stderr.contains("hint: "),
                "{:?} has no hint: {}",
                row.flags,
                ran.stderr
            );
        }
    }
}

#[test]
fn existing_refuse_merge_and_replace_mean_what_they_say() {
    let home = Home::new(
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\nexclude = [\"*.cache\"]\n[sink.local]\npath = \"out\"\n",
    );
    tree(&home);
    home.write("src/a/one/left.cache", "out by the backup's own selection");
    home.bk(&["backup"]).ended(0);
    let disturb = || {
        home.write("src/a/one/f1", "changed");
        home.write("src/a/one/new", "new");
        home.write("src/a/new/deep/new", "new");
        home.write("src/b/new", "new");
        home.write("src/newer/unit/new", "new");
    };
    disturb();
    home.bk(&["restore", "--yes", "--existing=refuse"]).ended(6);
    assert_eq!(texts(&home.path("src"))["a/one/f1"], "changed");
    home.bk(&["restore", "--yes", "--existing=merge"]).ended(0);
    let merged = texts(&home.path("src"));
    assert_eq!(
        (merged["a/one/f1"].as_str(), merged["a/one/new"].as_str()),
        ("1", "new")
    );
    disturb();
    home.bk(&[
        "restore",
        "--yes",
        "--existing=replace",
        "--only=files/a/one",
    ])
    .ended(0);
    let replaced = names(&home.path("src"));
    assert!(
        !replaced.contains(&"a/one/new".into())
            && replaced.contains(&"a/new/deep/new".into())
            && replaced.contains(&"b/new".into()),
        "{replaced:?}"
    );
    let ran = home
        .bk(&["restore", "--yes", "--existing=replace"])
        .ended(0);
    assert_eq!(
        names(&home.path("src")),
        [
            "a/one/f1",
            "a/one/f2",
            "a/one/left.cache",
            "a/two/f3",
            "b/loose",
            "b/three/f4",
            "newer/unit/new",
            "top"
        ]
    );
    assert!(
        ran.stderr
            .contains("kept, not in the archive: a/one/left.cache"),
        "{}",
        ran.stderr
    );
}

#[test]
fn each_half_of_a_pair_of_hard_links_restores_and_both_are_one_file_again() {
    use std::os::unix::fs::MetadataExt;
    let home = Home::files();
    home.write("src/g/one/name", "shared");
    home.write("src/g/two/.keep", "");
    std::fs::hard_link(home.path("src/g/one/name"), home.path("src/g/two/name")).unwrap();
    home.bk(&["backup"]).ended(0);
    for (only, there) in [("files/g/one", "g/one/name"), ("files/g/two", "g/two/name")] {
        std::fs::remove_dir_all(home.path("src")).unwrap();
        home.bk(&["restore", "--yes", "--only", only]).ended(0);
        assert_eq!(texts(&home.path("src"))[there], "shared");
    }
    std::fs::remove_dir_all(home.path("src")).unwrap();
    home.bk(&["restore", "--yes"]).ended(0);
    let inode = |path: &str| std::fs::metadata(home.path(path)).unwrap().ino();
    assert_eq!(inode("src/g/one/name"), inode("src/g/two/name"));
}

#[test]
fn a_day_with_three_runs_keeps_three_archives_and_each_restores_by_its_version() {
    let home = Home::files();
    for body in ["first", "second", "third"] {
        home.write("src/a/u/f", body);
        // Names carry the second of the start; a run in the same second takes the next free one.
        home.bk(&["backup"]).ended(0);
    }
    assert_eq!(home.archives().len(), 3, "{:?}", home.archives());
    let listed = home.bk(&["list"]).ended(0).stdout;
    let names: Vec<&str> = listed
        .lines()
        .rev()
        .map(|line| line.split("  ").next().unwrap())
        .collect();
    for (name, body) in names.iter().zip(["first", "second", "third"]) {
        home.bk(&["restore", "--yes", "--version", name]).ended(0);
        assert_eq!(texts(&home.path("src"))["a/u/f"], body, "{name}");
    }
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!(texts(&home.path("src"))["a/u/f"], "third");
    assert_eq!(
        home.bk(&["restore", "--list-versions=2"])
            .ended(0)
            .stdout
            .lines()
            .count(),
        2
    );
}

#[test]
fn an_unreadable_file_makes_the_run_partial_and_names_it() {
    let Ok(status) = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "true"])
        .status()
    else {
        return skip("setpriv");
    };
    if !status.success() {
        return skip("setpriv without the right to change the user");
    }
    use std::os::unix::fs::PermissionsExt;
    let home = Home::files();
    tree(&home);
    std::fs::set_permissions(
        home.path("src/a/one/f1"),
        std::fs::Permissions::from_mode(0o000),
    )
    .unwrap();
    std::fs::create_dir(home.path("out")).unwrap();
    for path in ["", "out"] {
        std::fs::set_permissions(home.path(path), std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    // The program must be where nobody may enter.
    let program = home.path("bk");
    std::fs::copy(bk_tests::binary::program(), &program).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(&program)
        .arg("backup")
        .current_dir(home.path(""))
        .output()
        .unwrap();
    let ran = Ran::from(output).ended(3);
    assert!(
        ran.stderr.contains("a/one") && ran.stderr.contains("f1"),
        "{}",
        ran.stderr
    );
    assert!(
        home.archives()[0].ends_with(".partial"),
        "{:?}",
        home.archives()
    );
    home.bk(&["restore", "--yes"]).ended(6);
    let restored = home
        .bk(&[
            "restore",
            "--yes",
            "--allow-partial",
            "--into",
            "files=else",
        ])
        .ended(0);
    assert!(
        restored.stderr.contains("skipped    files/a/one"),
        "{}",
        restored.stderr
    );
    assert_eq!(
        names(&home.path("else")),
        ["a/two/f3", "b/loose", "b/three/f4", "top"]
    );
}

#[test]
fn a_restore_killed_midway_is_not_backed_up_until_it_is_finished() {
    let settings = "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[source.other]\nplugin = \"files\"\npath = \"other\"\n[sink.local]\npath = \"out\"\n";
    let home = Home::new(settings);
    home.write("other/x/y/z", "other");
    for n in 0..3000 {
        home.write(
            &format!("src/g{}/u{}/f{n}", n % 3, n % 30),
            data::text(n, 20_000),
        );
    }
    let before = data::digest(&home.path("src"));
    home.bk(&["backup"]).ended(0);
    std::fs::remove_dir_all(home.path("src")).unwrap();
    let mut child = home
        .command(&["restore", "--yes", "--only", "files"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mark = home.path("src/.bk_unfinished_restore");
    let begun = std::time::Instant::now();
    while !(mark.exists() && home.path("src/g0").exists()) {
        assert!(
            begun.elapsed().as_secs() < 60 && child.try_wait().unwrap().is_none(),
            "the restore was over before it could be killed"
        );
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(mark.exists(), "the mark is gone");

    let archives = home.archives();
    let alone = home.bk(&["backup", "--only", "files"]).ended(6);
    assert!(
        alone.stderr.contains("did not finish") && alone.stderr.contains("bk restore --version"),
        "{}",
        alone.stderr
    );
    assert_eq!(home.archives(), archives, "an archive was published");
    home.bk(&["backup"]).ended(3);
    assert_eq!(
        home.archives()
            .iter()
            .filter(|n| n.ends_with(".partial"))
            .count(),
        1
    );

    // The command that the refusal names finishes it, and takes away what the killed one was just writing.
    let marked: serde_json::Value = serde_json::from_slice(&std::fs::read(&mark).unwrap()).unwrap();
    let id = marked["restores"][0]["id"].as_str().unwrap();
    home.write(&format!("src/g0/u0/.bk-restoring-{id}-7"), "half a fi");
    let told = alone.stderr.split("finish it with bk ").nth(1).unwrap();
    let told = told.split(", or say").next().unwrap();
    let mut words: Vec<_> = told.split_whitespace().collect();
    words.push("--yes");
    home.bk(&words).ended(0);
    assert!(!mark.exists());
    assert_eq!(
        data::difference(&before, &data::digest(&home.path("src"))),
        None
    );
    home.bk(&["backup"]).ended(0);

    std::fs::write(&mark, "{\"restores\":[{\"id\":\"x\",\"archive\":\"y\",\"selected\":[{\"group\":\"g0\",\"unit\":null}]}]}").unwrap();
    home.bk(&["backup"]).ended(3);
    home.bk(&["restore", "--forget-unfinished", "files"])
        .ended(0);
    home.bk(&["backup"]).ended(0);
}

#[test]
fn kills_at_any_time_leave_only_whole_archives_and_need_no_help() {
    let seed = seed(11);
    let mut random = SmallRng::seed_from_u64(seed);
    let home = Home::files();
    for n in 0..400 {
        home.write(
            &format!("src/g{}/u{}/f{n}", n % 3, n % 40),
            data::text(n, 60_000),
        );
    }
    home.bk(&["backup"]).ended(0);
    let whole = std::time::Instant::now();
    home.bk(&["backup"]).ended(0);
    let whole = whole.elapsed();
    let first = home.path("out").join(&home.archives()[0]);
    let old = std::fs::read(&first).unwrap();
    let mut published = 0;
    for n in 0..long(25, 1000) {
        let mut child = home
            .command(&["backup"])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let until = std::time::Instant::now() + whole.mul_f64(random.random_range(0.0..1.1));
        while std::time::Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        let _ = child.kill();
        child.wait().unwrap();
        let archives = home.archives();
        if archives.len() > published {
            published = archives.len();
            // What is new is read to its end.
            home.bk(&["verify", "--all"]).ended(0);
        }
        if archives.len() > 8 {
            for name in &archives[2..] {
                std::fs::remove_file(home.path("out").join(name)).unwrap();
            }
            published = home.archives().len();
        }
        assert!(
            std::fs::read(&first).unwrap() == old,
            "kill {n}: the first archive has changed"
        );
    }
    home.bk(&["verify", "--all"]).ended(0);
    home.bk(&["backup"]).ended(0);
    let parts: Vec<_> = home
        .names_in("out")
        .into_iter()
        .filter(|name| name.starts_with(".bk-part"))
        .collect();
    assert!(parts.is_empty(), "the next run left {parts:?}");
}

#[test]
fn a_full_disk_is_exit_1_and_leaves_no_part() {
    let home = Home::files();
    home.write("src/g/u/f", data::noise(1, 40 << 20));
    std::fs::create_dir(home.path("out")).unwrap();
    // A mount of its own, in a namespace of its own: the host sees nothing of it.
    let script = format!(
        "mount -t tmpfs -o size=16m none out && {} backup; code=$?; ls -A out; exit $code",
        bk_tests::binary::program().display()
    );
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", &script])
        .current_dir(home.path(""))
        .output();
    let Ok(output) = output else {
        return skip("unshare");
    };
    let ran = Ran::from(output);
    if ran.stderr.contains("unshare failed") || ran.stderr.contains("Operation not permitted") {
        return skip("namespaces of its own");
    }
    let ran = ran.ended(1);
    assert!(
        ran.stderr.contains("space left") || ran.stderr.contains("bytes left"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stdout.lines().all(|line| line == ".bk"),
        "left behind: {}",
        ran.stdout
    );
}

#[test]
fn a_second_run_of_the_same_settings_is_locked_out() {
    let home = Home::files();
    tree(&home);
    // What another run holds: the lock on the settings file.
    let other = std::fs::File::open(home.path("plugins.toml")).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let ran = home.bk(&["backup"]).ended(8);
    assert!(ran.stderr.contains("--wait-lock"), "{}", ran.stderr);
    assert!(home.archives().is_empty());
    let waiting = home
        .command(&["backup", "--wait-lock", "2m"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(other);
    Ran::from(waiting.wait_with_output().unwrap()).ended(0);
    assert_eq!(home.archives().len(), 1);
}

#[test]
fn a_signal_stops_tidily() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let home = Home::files();
        for n in 0..200 {
            home.write(&format!("src/g/u{n}/f"), data::text(n, 400_000));
        }
        let mut child = home
            .command(&["backup"])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !home
            .names_in("out")
            .iter()
            .any(|name| name.starts_with(".bk-part"))
        {
            assert!(
                child.try_wait().unwrap().is_none(),
                "it ended before it could be stopped"
            );
            std::thread::yield_now();
        }
        Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status()
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(
            home.names_in("out").iter().all(|name| name == ".bk"),
            "{:?}",
            home.names_in("out")
        );
    }
}

#[test]
fn pinned_archives_stay_and_prune_says_why_for_each() {
    let home = Home::new(
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[sink.local]\npath = \"out\"\nkeep = { last = 2 }\nprune = \"never\"\n",
    );
    tree(&home);
    for n in 0..6 {
        home.write("src/top", format!("{n}"));
        home.bk(if n == 1 {
            &["backup", "--pin", "--label", "before the move"]
        } else {
            &["backup"]
        })
        .ended(0);
    }
    let dry = home.bk(&["prune", "--dry-run"]).ended(0);
    assert_eq!(dry.stdout.lines().count(), 6, "{}", dry.stdout);
    assert!(
        dry.stdout.contains("last 1 of 2")
            && dry.stdout.contains("pinned")
            && dry.stdout.contains("no rule keeps it"),
        "{}",
        dry.stdout
    );
    assert_eq!(home.archives().len(), 6);
    home.bk(&["prune"]).ended(0);
    assert_eq!(home.archives().len(), 3, "{:?}", home.archives());
    let list = home.bk(&["list"]).ended(0).stdout;
    assert!(list.contains("pinned  \"before the move\""), "{list}");
}

#[test]
fn a_shrunken_source_holds_retention_until_it_is_accepted() {
    let home = Home::new(
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[sink.local]\npath = \"out\"\nkeep = { last = 2 }\n",
    );
    for n in 0..20 {
        home.write(&format!("src/a/u/f{n}"), "x");
    }
    for _ in 0..3 {
        home.bk(&["backup"]).ended(0);
    }
    assert_eq!(home.archives().len(), 2);
    std::fs::remove_dir_all(home.path("src/a")).unwrap();
    home.write("src/a/u/f1", "x");
    let ran = home.bk(&["backup"]).ended(0);
    assert!(
        ran.stderr.contains("retention holds") && ran.stderr.contains("less than half"),
        "{}",
        ran.stderr
    );
    assert_eq!(home.archives().len(), 3);
    let listed = home.bk(&["list"]).ended(0).stdout;
    let newest = listed
        .lines()
        .next()
        .unwrap()
        .split("  ")
        .next()
        .unwrap()
        .to_owned();
    home.bk(&["prune", "--accept", &newest]).ended(0);
    assert_eq!(home.archives().len(), 2);
}

#[test]
fn a_stale_newest_archive_is_exit_9() {
    let home = Home::files();
    tree(&home);
    home.bk(&["list", "--max-age", "1d"]).ended(9);
    home.bk(&["backup"]).ended(0);
    home.bk(&["list", "--max-age", "1d"]).ended(0);
    home.bk(&["check", "--max-age", "0s"]).ended(9);
    home.bk(&["check", "--max-age", "0s", "--exit-zero-on", "stale"])
        .ended(0);
}

#[test]
fn foreign_and_damaged_files_are_named_and_never_counted() {
    let home = Home::files();
    tree(&home);
    home.bk(&["backup"]).ended(0);
    let name = home.archives()[0].clone();
    home.write("out/foreign.tar.xz", "not an archive of ours");
    let tutors =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/tutor/backup.2026-08-22.tar.xz");
    home.write(
        "out/backup.2026-08-22.tar.xz",
        std::fs::read(tutors).unwrap(),
    );
    let bytes = std::fs::read(home.path("out").join(&name)).unwrap();
    home.write("out/backup.2020-01-01.tar.xz", &bytes[..bytes.len() - 10]);
    let list = home.bk(&["list", "--all"]).ended(0).stdout;
    assert!(
        list.contains("foreign: not made by bk") && list.contains("DAMAGED"),
        "{list}"
    );
    let tutors = list.lines().find(|line| line.contains("2026-08-22"));
    assert!(tutors.unwrap().contains("foreign"), "{list}");
    home.bk(&["verify", "--all"]).ended(7);
    home.bk(&["verify", "out/backup.2020-01-01.tar.xz"])
        .ended(7);
    home.bk(&["restore", "--yes", "out/foreign.tar.xz"])
        .ended(7);
    home.bk(&["restore", "--yes"]).ended(0);
}

#[test]
fn a_real_caddy_folder_comes_back_and_its_certificates_are_listed() {
    let home = Home::new(
        "format = 1\nplugins = [\"caddy\", \"local\"]\n[source.caddy]\npath = \"real/caddy\"\n[sink.local]\npath = \"out\"\n",
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers/caddy");
    let made = Command::new(script)
        .arg(bk_tests::binary::cache())
        .arg(home.path("real"))
        .output()
        .unwrap();
    if !made.status.success() {
        return skip(&format!("Caddy: {}", String::from_utf8_lossy(&made.stderr)));
    }
    std::fs::create_dir_all(home.path("real/caddy/locks")).unwrap();
    home.write(
        "real/caddy/locks/issue_cert_x.lock",
        "a lock is nothing to restore",
    );
    home.bk(&["backup"]).ended(0);
    let show = home.bk(&["show"]).ended(0).stdout;
    assert!(
        show.contains("certificate localhost, expires 20")
            && show.contains("certificate shop.localhost, expires 20"),
        "{show}"
    );
    std::fs::remove_dir_all(home.path("real/caddy/locks")).unwrap();
    let before = data::digest(&home.path("real/caddy"));
    std::fs::remove_dir_all(home.path("real/caddy")).unwrap();
    home.bk(&["restore", "--yes"]).ended(0);
    let mut after = data::digest(&home.path("real/caddy"));
    let mut before = before;
    // Removing the locks above changed the root's time after it was read.
    before.remove(&b""[..]);
    after.remove(&b""[..]);
    assert_eq!(data::difference(&before, &after), None);

    let wrong = Home::new(
        "format = 1\nplugins = [\"caddy\", \"local\"]\n[source.caddy]\npath = \"not\"\n[sink.local]\npath = \"out\"\n",
    );
    wrong.write("not/a/b/c", "x");
    let checked = wrong.bk(&["check"]).ended(0);
    assert!(
        checked
            .stdout
            .contains("does not look like Caddy's data folder"),
        "{}",
        checked.stdout
    );
}

#[test]
fn the_sample_settings_run_as_they_are() {
    let home = Home::new("");
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::copy(top.join("plugins.toml"), home.path("plugins.toml")).unwrap();
    assert!(
        Command::new("cp")
            .args(["-r"])
            .arg(top.join("tests/sites"))
            .arg(home.path("sites"))
            .status()
            .unwrap()
            .success()
    );
    std::fs::create_dir(home.path("tests")).unwrap();
    std::fs::rename(home.path("sites"), home.path("tests/sites")).unwrap();
    home.bk(&["config", "validate"]).ended(0);
    home.bk(&["backup"]).ended(0);
    assert!(
        home.bk(&["show"])
            .ended(0)
            .stdout
            .contains("certificate localhost")
    );
}

#[test]
fn nothing_is_written_outside_of_the_sink() {
    let home = Home::files();
    home.write("src/g/u/f", data::noise(1, 40 << 20));
    home.write("src/g/u/many", data::text(2, 9 << 20));
    std::fs::create_dir(home.path("out")).unwrap();
    // Everything but the sink's folder is read-only, in a mount namespace of its own.
    let script = format!(
        "mount --make-rprivate / && mount --bind out out && mount -o remount,bind,ro / && cd . && ! touch probe 2>/dev/null && {} backup",
        bk_tests::binary::program().display()
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .current_dir(home.path(""))
        .output();
    let Ok(output) = output else {
        return skip("unshare");
    };
    let ran = Ran::from(output);
    if ran.stderr.contains("unshare failed")
        || ran.stderr.contains("permission denied")
        || ran.stderr.contains("Operation not permitted")
    {
        return skip("a mount namespace of its own");
    }
    let ran = ran.ended(0);
    assert!(ran.stderr.contains("verified"), "{}", ran.stderr);
    assert_eq!(home.archives().len(), 1);
}

#[test]
fn a_file_truncated_while_it_is_read_makes_the_archive_partial_and_is_never_restored() {
    let home = Home::files();
    home.write("src/g/log/large", data::noise(1, 260 << 20));
    home.write("src/g/other/f", "whole");
    let mut child = home
        .command(&["backup"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // The large file is read last; once its bytes arrive in the part, it is cut under the reader.
    let arriving = || {
        home.names_in("out").iter().any(|name| {
            name.starts_with(".bk-part")
                && std::fs::metadata(home.path("out").join(name)).is_ok_and(|m| m.len() > 8 << 20)
        })
    };
    while !arriving() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before the file could be truncated"
        );
        std::thread::yield_now();
    }
    std::fs::File::options()
        .write(true)
        .open(home.path("src/g/log/large"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap()).ended(3);
    assert!(
        ran.stderr.contains("g/log") && ran.stderr.contains("broke off"),
        "{}",
        ran.stderr
    );
    let name = home.archives()[0].clone();
    assert!(name.ends_with(".partial"), "{name}");
    std::fs::create_dir(home.path("plain")).unwrap();
    let tar = Command::new("tar")
        .arg("-xJf")
        .arg(home.path("out").join(&name))
        .current_dir(home.path("plain"))
        .status()
        .unwrap();
    assert!(tar.success());
    assert_eq!(
        std::fs::metadata(home.path("plain/files/g/log/large"))
            .unwrap()
            .len(),
        260 << 20
    );
    home.bk(&["verify", "--version", &name]).ended(0);
    std::fs::remove_dir_all(home.path("src")).unwrap();
    home.bk(&["restore", "--yes", "--allow-partial"]).ended(0);
    assert_eq!(names(&home.path("src")), ["g/other/f"]);
}

#[test]
fn a_copied_archive_file_never_makes_retention_delete_both() {
    let home = Home::new(
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[sink.local]\npath = \"out\"\nkeep = { last = 1 }\nprune = \"never\"\n",
    );
    tree(&home);
    home.bk(&["backup"]).ended(0);
    home.bk(&["backup"]).ended(0);
    let newest = home
        .bk(&["list"])
        .ended(0)
        .stdout
        .split("  ")
        .next()
        .unwrap()
        .to_owned();
    std::fs::copy(
        home.path("out").join(&newest),
        home.path("out").join(format!("{newest}.bak")),
    )
    .unwrap();
    home.bk(&["prune"]).ended(0);
    assert_eq!(home.archives(), [newest.clone(), format!("{newest}.bak")]);
    home.bk(&["verify", "--all"]).ended(0);
}

#[test]
fn a_backup_of_some_sources_stands_for_no_full_one() {
    let home = Home::new(
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[source.other]\nplugin = \"files\"\npath = \"other\"\n[sink.local]\npath = \"out\"\n",
    );
    tree(&home);
    home.write("other/x/y/z", "other");
    home.bk(&["backup"]).ended(0);
    home.bk(&["backup", "--only", "other"]).ended(0);
    assert!(
        home.bk(&["list"])
            .ended(0)
            .stdout
            .contains("some sources only")
    );
    std::fs::remove_dir_all(home.path("src")).unwrap();
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!(
        names(&home.path("src")).len(),
        6,
        "the newest full archive was not the one restored"
    );
}

#[test]
fn a_link_that_leads_out_is_left_out_and_named_and_the_rest_comes_back() {
    let home = Home::files();
    tree(&home);
    std::os::unix::fs::symlink("/etc/hostname", home.path("src/a/one/out")).unwrap();
    std::os::unix::fs::symlink("f1", home.path("src/a/one/in")).unwrap();
    home.bk(&["backup"]).ended(0);
    for existing in ["merge", "refuse"] {
        std::fs::remove_dir_all(home.path("src")).unwrap();
        let ran = home
            .bk(&["restore", "--yes", "--existing", existing])
            .ended(3);
        assert!(ran.stderr.contains("--outward-links"), "{}", ran.stderr);
        assert!(home.path("src/a/one/in").is_symlink() && !home.path("src/a/one/out").is_symlink());
    }
    let ran = home.bk(&["extract", "--into", "ext"]).ended(3);
    assert!(
        ran.stderr.contains("files/a/one/out") && home.path("ext/files/a/one/in").is_symlink(),
        "{}",
        ran.stderr
    );
    home.bk(&["restore", "--yes", "--outward-links"]).ended(0);
    assert!(home.path("src/a/one/out").is_symlink());
}

#[test]
fn restoring_one_unit_leaves_its_groups_own_mode_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::files();
    tree(&home);
    home.bk(&["backup"]).ended(0);
    let mode = || {
        std::fs::metadata(home.path("src/a"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    std::fs::set_permissions(home.path("src/a"), std::fs::Permissions::from_mode(0o711)).unwrap();
    home.bk(&["restore", "--yes", "--only", "files/a/one"])
        .ended(0);
    assert_eq!(mode(), 0o711);
    home.bk(&["restore", "--yes", "--only", "files/a"]).ended(0);
    assert_eq!(mode(), 0o755);
}
