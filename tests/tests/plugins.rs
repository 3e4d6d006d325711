//! Plugins from outside: the kit on every one of them, each misbehaviour with its error, installing and enabling, and a stranger's way.

use bk_tests::binary::Home;
use bk_tests::plugins_root::{PluginHome, examples};
use bk_tests::{Outcome, hold, seed, side_by_side};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

const BESIDE_FILES: &str = "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[source.bad]\npath = \"notes\"\n[sink.local]\npath = \"out\"\n";

/// A home with the bad plugin in it, enabled, beside a good source.
fn beside_files(defect: &str, is_early: bool) -> PluginHome {
    let home = PluginHome::new(BESIDE_FILES);
    home.0.write("src/a/x/f", "kept");
    for name in ["one", "two", "three"] {
        home.0.write(&format!("notes/{name}"), name);
    }
    home.drop_in("bad");
    if is_early {
        home.0.write("root/bad/defect", defect);
    }
    home.bk(&["plugins", "enable", "bad"]).ended(0);
    let set = format!("source.bad.defect={defect}");
    home.bk(&["config", "save", "-s", &set]).ended(0);
    home
}

/// The defect; whether it shows before there are settings; what must be said.
const MISBEHAVIOURS: &[(&str, bool, &str)] = &[
    ("silent_start", true, "it said nothing for 9 s"),
    (
        "garbage",
        true,
        "is no stream of frames: a frame begins with `S`",
    ),
    (
        "ends_at_once",
        true,
        "its last words: I cannot find my library",
    ),
    (
        "other_protocol",
        true,
        "it speaks version 99 of the plugin protocol, this program 1",
    ),
    (
        "other_name",
        true,
        "it says that it is `worse` 1.0.0, its manifest says `bad` 1.0.0",
    ),
    (
        "no_snapshot",
        false,
        "its message `done` does not belong here",
    ),
    ("declared_error", false, "the door is locked"),
    (
        "path_that_leads_out",
        false,
        "it sent the entry `../../one`",
    ),
    (
        "giant_frame",
        false,
        "it announces a frame of 1073741824 bytes; at most 1048576",
    ),
    ("no_json", false, "it sent a message that is none"),
    (
        "bytes_without_entry",
        false,
        "it sent bytes where a message belongs",
    ),
    (
        "wrong_sum",
        false,
        "`one`: what came has another sum than its end says",
    ),
    ("unknown_sum", false, "sha256:… is expected"),
    (
        "shorter_than_announced",
        false,
        "`one`: 4 bytes were announced, 3 came",
    ),
    (
        "giant_outside_of_large",
        false,
        "is longer than 16 MiB, which belongs into the stage `large`",
    ),
    (
        "stages_out_of_order",
        false,
        "its entry `three` of a stage that is over",
    ),
    (
        "unit_in_two_pieces",
        false,
        "its unit `./0` comes in two pieces",
    ),
    (
        "crash_in_mid_entry",
        false,
        "it ended before it was done, with signal: 9 (SIGKILL)",
    ),
    ("frame_cut_off", false, "its output ended inside a frame"),
    (
        "no_done",
        false,
        "it ended before it was done, with exit status: 0",
    ),
    (
        "exit_1_after_done",
        false,
        "it said that it was done, and ended with exit status: 1",
    ),
    (
        "goes_on_after_done",
        false,
        "it went on after it had said that it was done",
    ),
    (
        "does_not_end",
        false,
        "it said that it was done, and did not end within 5 s",
    ),
    ("hang", false, "it said nothing for 5 s"),
    ("never_dies", false, "it said nothing for 5 s"),
    ("failed_unit", false, "half of it was locked"),
];

fn is_its_error(defect: &str, is_early: bool, words: &str) -> Outcome {
    let home = beside_files(defect, is_early);
    let ran = home.bk(&["backup"]);
    let said = || format!("{defect}: {}\n{}", ran.stdout, ran.stderr);
    hold(ran.code == 3, || format!("exit {}: {}", ran.code, said()))?;
    hold(ran.stderr.contains(words), || {
        format!("`{words}` is not said: {}", said())
    })?;
    let archives = home.0.archives();
    hold(
        archives.len() == 1 && archives[0].ends_with(".partial"),
        || format!("{archives:?} lie there: {}", said()),
    )?;
    // What the others brought is whole, and comes back.
    std::fs::remove_dir_all(home.0.path("src/a")).unwrap();
    let back = home.bk(&["restore", "--allow-partial", "--only", "files", "--yes"]);
    let came = std::fs::read_to_string(home.0.path("src/a/x/f")).unwrap_or_default();
    hold(back.code == 0 && came == "kept", || {
        format!("the other source did not come back: {}", back.stderr)
    })
}

#[test]
fn each_misbehaviour_is_its_error_and_the_other_sources_finish() {
    let wrong = side_by_side(MISBEHAVIOURS, |(defect, is_early, words)| {
        is_its_error(defect, *is_early, words)
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_was_swapped_or_can_be_written_by_others_is_not_run() {
    let home = beside_files("none", false);
    home.bk(&["backup"]).ended(0);

    let program = home.0.path("root/bad/plugin.py");
    let text = std::fs::read_to_string(&program).unwrap();
    std::fs::write(&program, text.clone() + "# more\n").unwrap();
    let swapped = home.bk(&["backup"]).ended(3);
    assert!(
        swapped
            .stderr
            .contains("is not what was accepted: its sha256 is"),
        "{}",
        swapped.stderr
    );
    assert!(
        swapped
            .stderr
            .contains("bk plugins enable bad accepts it as it is")
    );
    assert!(home.bk(&["plugins", "list"]).stdout.contains("broken"));
    std::fs::write(&program, text).unwrap();
    home.bk(&["backup"]).ended(0);

    for (path, mode, word) in [
        ("root/bad", 0o777, "folder"),
        ("root/bad/plugin.py", 0o775, "file"),
        ("root", 0o777, "folder"),
    ] {
        let path = home.0.path(path);
        let before = std::fs::metadata(&path).unwrap().permissions();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let open = home.bk(&["backup"]).ended(3);
        let words = format!("the {word} `{}` can be written by others", path.display());
        assert!(open.stderr.contains(&words), "{}", open.stderr);
        std::fs::set_permissions(&path, before).unwrap();
    }
    home.bk(&["backup"]).ended(0);
    let partial = home
        .0
        .archives()
        .iter()
        .filter(|name| name.ends_with(".partial"))
        .count();
    assert_eq!((home.0.archives().len() - partial, partial), (3, 4));
}

#[test]
fn words_without_end_on_standard_error_hold_nothing_up() {
    let home = beside_files("floods_standard_error", false);
    let ran = home.bk(&["-v", "backup"]);
    assert_eq!(ran.code, 0);
    assert!(
        ran.stderr.contains("the plugin said more than is relayed"),
        "{}",
        &ran.stderr[ran.stderr.len().saturating_sub(400)..]
    );
    assert!(
        ran.stderr.len() < 2 << 20,
        "{} bytes were relayed",
        ran.stderr.len()
    );
}

#[test]
fn what_is_not_acknowledged_is_not_restored() {
    let home = beside_files("acknowledges_too_little", false);
    home.bk(&["backup"]).ended(0);
    let back = home.bk(&["restore", "--only", "bad", "--yes"]);
    assert_eq!(back.code, 1, "{}", back.stderr);
    assert!(
        back.stderr
            .contains("acknowledged 3 entries too few; first `one`"),
        "{}",
        back.stderr
    );
}

#[test]
fn a_stopped_run_ends_the_plugin_and_all_that_it_started() {
    let home = beside_files("never_dies", false);
    let patience = home.0.path("root/bad/bk-plugin.toml");
    let text = std::fs::read_to_string(&patience).unwrap();
    std::fs::write(&patience, text.replace("5s", "1h")).unwrap();
    home.bk(&["plugins", "enable", "bad"]).ended(0);
    let mut child = home.command(&["backup"]).spawn().unwrap();
    let of_this_home = || {
        let folder = home.0.path("root/bad/plugin.py");
        let folder = folder.to_string_lossy().into_owned();
        let processes = std::fs::read_dir("/proc").unwrap();
        processes
            .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
            .filter(|line| String::from_utf8_lossy(line).contains(&folder))
            .count()
    };
    let snapshot_asked = || of_this_home() > 0;
    while !snapshot_asked() {
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(143));
    // They were killed before the program ended, and need a moment of a processor to be gone.
    let since = Instant::now();
    while of_this_home() > 0 {
        assert!(since.elapsed().as_secs() < 20, "a process is left");
        std::thread::yield_now();
    }
    assert_eq!(home.0.archives(), Vec::<String>::new());
}

#[test]
fn the_kit_holds_for_every_plugin_that_is_shipped_as_an_example_or_written_by_new() {
    let home = PluginHome::empty();
    home.bk(&["plugins", "new", "notes", "--source"]).ended(0);
    home.bk(&["plugins", "new", "box", "--sink"]).ended(0);
    home.bk(&["plugins", "new", "one", "--command"]).ended(0);
    let lines = std::fs::read_to_string(home.0.path("notes/plugin.py")).unwrap();
    assert!(lines.lines().count() <= 60, "{}", lines.lines().count());
    let sqlite = examples().join("sqlite").display().to_string();
    let store = examples().join("sqlite-store").display().to_string();
    let guest = bk_tests::binary::built("bk-guest");
    let guest = bk_tests::plugin_lab::rust_guest(&home.0.path("."), &guest);
    let guest = guest.display().to_string();
    let cases = [
        (guest.as_str(), 12),
        ("./notes", 16),
        ("./box", 17),
        ("./one.toml", 7),
        (sqlite.as_str(), 17),
        (store.as_str(), 17),
        ("files", 11),
        ("caddy", 11),
        ("local", 12),
        ("command", 7),
    ];
    let wrong = side_by_side(&cases, |(plugin, least)| {
        let ran = home.bk(&["plugins", "test", plugin]);
        let held = ran
            .stdout
            .lines()
            .filter(|line| line.starts_with("ok "))
            .count();
        hold(ran.code == 0 && held >= *least, || {
            format!(
                "{plugin}: exit {}, {held} checks\n{}{}",
                ran.code, ran.stdout, ran.stderr
            )
        })
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_defect_of_a_process_is_caught_by_its_check() {
    let caught_by = [
        (
            "takes_anybody_for_the_host",
            "started_by_a_person_it_says_what_it_is",
        ),
        ("chokes_on_news", "messages_of_a_later_time_are_passed_over"),
        ("ignores_the_end", "cancelled_it_ends_within_5_s"),
        ("cut_is_done", "what_is_cut_off_is_no_success"),
        ("any_sum_is_good", "a_body_with_another_sum_is_no_success"),
        ("writes_nothing", "what_was_there_comes_back"),
        ("acknowledges_too_little", "a_restore_counts_what_it_wrote"),
    ];
    let mut checks: Vec<_> = caught_by.iter().map(|(_, check)| *check).collect();
    checks.retain(|check| {
        bk_tests::protocol_suite::CHECKS
            .iter()
            .any(|(name, _)| name == check)
    });
    assert_eq!(
        checks.len(),
        bk_tests::protocol_suite::CHECKS.len(),
        "a check without a mutant"
    );
    let wrong = side_by_side(&caught_by, |(defect, check)| {
        let home = PluginHome::empty();
        home.drop_in("bad");
        home.0.write("root/bad/defect", defect);
        let ran = home.bk(&["plugins", "test", "bad"]);
        let caught = format!("FAILED     {check}");
        hold(ran.code == 1 && ran.stdout.contains(&caught), || {
            format!("{defect}: exit {}\n{}{}", ran.code, ran.stdout, ran.stderr)
        })
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_strangers_way_to_a_command_plugin_is_three_commands_and_one_small_file() {
    let home = PluginHome::empty();
    let plugin = "manifest = 1\nname = \"words\"\nversion = \"1.0.0\"\nabout = \"the words of our service\"\nrole = \"source\"\n[command]\nentry = \"words.txt\"\nbackup = [\"cat\", \"{file}\"]\nrestore = [\"cp\", \"/dev/stdin\", \"{file}\"]\n[setting.file]\ntype = \"path\"\nrequired = true\nabout = \"the file\"\n";
    assert!(plugin.lines().count() <= 15);
    home.0.write("words.toml", plugin);
    home.0.write("service/words", "to keep");
    let began = Instant::now();
    home.bk(&["plugins", "install", "./words.toml"]).ended(0);
    home.bk(&["plugins", "enable", "words", "local"]).ended(0);
    home.bk(&[
        "config",
        "save",
        "-s",
        "source.words.file=service/words",
        "-s",
        "sink.local.path=out",
    ])
    .ended(0);
    println!(
        "from an empty folder to a plugin that works: {} ms",
        began.elapsed().as_millis()
    );
    home.bk(&["backup"]).ended(0);
    home.0.write("service/words", "lost");
    home.bk(&["restore", "--yes"]).ended(0);
    let back = std::fs::read_to_string(home.0.path("service/words")).unwrap();
    assert_eq!(back, "to keep");
}

#[test]
fn a_python_source_and_sink_back_up_a_site_and_get_it_back() {
    let home = PluginHome::empty();
    for name in ["sqlite", "sqlite-store"] {
        let from = examples().join(name).display().to_string();
        home.bk(&["plugins", "install", &from]).ended(0);
    }
    home.bk(&["plugins", "enable", "sqlite", "sqlite-store"])
        .ended(0);
    home.bk(&[
        "config",
        "save",
        "-s",
        "source.app.plugin=sqlite",
        "-s",
        "source.app.path=data",
        "-s",
        "sink.stick.plugin=sqlite-store",
        "-s",
        "sink.stick.path=stick/archives.sqlite",
    ])
    .ended(0);
    let sql = |file: &str, sql: &str| {
        let script = "import sqlite3,sys; d=sqlite3.connect(sys.argv[1]); print(d.execute(sys.argv[2]).fetchall() if sys.argv[2].startswith('SELECT') else d.executescript(sys.argv[2]))";
        let ran = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(home.0.path(file))
            .arg(sql)
            .output()
            .unwrap();
        assert!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        String::from_utf8(ran.stdout).unwrap().trim().to_owned()
    };
    std::fs::create_dir_all(home.0.path("data/shop")).unwrap();
    // 40 MiB: a database that is streamed, not gathered.
    sql(
        "data/shop/orders.db",
        "PRAGMA journal_mode=WAL; CREATE TABLE o (id INTEGER PRIMARY KEY, b BLOB); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<40) INSERT INTO o SELECT i, randomblob(1048576) FROM n;",
    );
    sql(
        "data/shop/users.db",
        "CREATE TABLE u (name); INSERT INTO u VALUES ('ann'), ('bob');",
    );
    let sum = sql(
        "data/shop/orders.db",
        "SELECT count(*), sum(length(b)), hex(substr(max(b), 1, 8)) FROM o",
    );
    home.bk(&["backup"]).ended(0);
    home.bk(&["backup"]).ended(0);
    home.bk(&["verify", "--all"]).ended(0);
    let listed = home.bk(&["list"]).ended(0);
    assert_eq!(
        listed.stdout.matches("backup.").count(),
        2,
        "{}",
        listed.stdout
    );

    sql("data/shop/orders.db", "DELETE FROM o;");
    sql("data/shop/users.db", "DELETE FROM u;");
    home.bk(&["restore", "--only", "app/shop/users.db", "--yes"])
        .ended(0);
    assert_eq!(
        sql("data/shop/users.db", "SELECT count(*) FROM u"),
        "[(2,)]"
    );
    assert_eq!(
        sql("data/shop/orders.db", "SELECT count(*) FROM o"),
        "[(0,)]"
    );
    home.bk(&["restore", "--yes"]).ended(0);
    let now = sql(
        "data/shop/orders.db",
        "SELECT count(*), sum(length(b)), hex(substr(max(b), 1, 8)) FROM o",
    );
    assert_eq!(now, sum);
    home.bk(&["config", "save", "-s", "sink.stick.keep={ last = 2 }"])
        .ended(0);
    home.bk(&["backup"]).ended(0);
    let listed = home.bk(&["list"]).ended(0);
    assert_eq!(
        listed.stdout.matches("backup.").count(),
        2,
        "{}",
        listed.stdout
    );
}

#[test]
fn what_is_installed_is_not_enabled_and_what_is_disabled_leaves_nothing_behind() {
    let settings = "# ours\nformat = 1\nplugins = [\n    \"files\",   # the tree\n    \"local\",\n]\n\n[source.files] # here\npath = \"src\"\n\n[sink.local]\npath = \"out\"\n";
    let home = PluginHome::new(settings);
    home.0.write("src/f", "x");
    home.0.write("one.toml", command_plugin("one", "1.0.0"));
    home.bk(&["plugins", "install", "./one.toml"]).ended(0);
    let list = home.bk(&["plugins", "list"]).ended(0).stdout;
    assert!(
        list.lines()
            .any(|line| line.starts_with("one ") && line.contains("installed")),
        "{list}"
    );
    assert!(
        !home
            .bk(&["plugins", "list", "-e"])
            .ended(0)
            .stdout
            .contains("one ")
    );
    home.bk(&["plugins", "enable", "one"]).ended(0);
    assert!(
        home.settings().contains("\"files\",   # the tree"),
        "{}",
        home.settings()
    );
    assert!(
        home.bk(&["plugins", "list", "-e"])
            .ended(0)
            .stdout
            .contains("one ")
    );
    assert!(
        home.bk(&["plugins", "check", "one"])
            .ended(0)
            .stdout
            .contains("is sound")
    );
    home.bk(&["plugins", "disable", "one"]).ended(0);
    home.bk(&["plugins", "uninstall", "one"]).ended(0);
    assert_eq!(home.settings(), settings);
    assert_eq!(home.0.names_in("root"), Vec::<String>::new());
    home.bk(&["backup"]).ended(0);

    home.bk(&["plugins", "disable", "all"]).ended(0);
    assert_eq!(home.bk(&["plugins", "list", "-e"]).ended(0).stdout, "");
}

fn command_plugin(name: &str, version: &str) -> String {
    format!(
        "manifest = 1\nname = \"{name}\"\nversion = \"{version}\"\nabout = \"an example, {version}\"\nrole = \"source\"\nmaintainer = \"ops@example.org\"\n[command]\nentry = \"e\"\nbackup = [\"echo\", \"{version}\"]\n"
    )
}

#[test]
fn a_broken_plugin_fails_loudly_and_is_named_with_its_place() {
    let home = PluginHome::new(BESIDE_FILES);
    home.0.write("src/f", "x");
    let good = command_plugin("one", "1.0.0");
    let cases = [
        ("one.toml", good.replace("role", "rolle"), "one.toml:5:1: unknown field `rolle`"),
        ("one.toml", good.replace("source", "sourse"), "one.toml:5:"),
        ("one.toml", good.replace("= \"one\"", "= \"two\""), "the plugin calls itself `two`, and its file `one`"),
        ("one.toml", good.replace("manifest = 1", "manifest = 2"), "`manifest = 2`; this version knows 1"),
        ("one.toml", good.replace("[\"echo\", \"1.0.0\"]", "[]"), "`backup` names no program"),
        ("one.toml", good.replace("\"1.0.0\"]", "\"{base}\"]"), "`backup` uses `{base}`, and there is no such setting"),
        ("one.toml", good.replace("entry = \"e\"", "entry = \"../e\""), "`entry`"),
        ("one.toml", good.clone() + "[setting.a]\ntype = \"number\"\n", "one.toml:11:8"),
        ("one.toml", good.clone() + "[setting.a]\ntype = \"int\"\ndefault = \"x\"\n", "[setting.a]: its default must be a whole number"),
        ("one.toml", good.replace("\"1.0.0\"]", "\"{pw}\"]") + "[setting.pw]\ntype = \"secret\"\n", "would show the secret `pw` to everybody who lists processes"),
        ("one.toml", good.replace("role = \"source\"", "role = \"sink\""), "a sink of commands alone is not possible"),
        ("one/bk-plugin.toml", "manifest = 1\nname = \"one\"\nversion = \"1\"\nabout = \"a\"\nrole = \"sink\"\nrun = [\"./p\"]\n".into(), "`protocol` is missing"),
        ("one/bk-plugin.toml", "manifest = 1\nname = \"one\"\nversion = \"1\"\nabout = \"a\"\nrole = \"sink\"\nrun = [\"./p\"]\nprotocol = [1]\nabilities = [\"flying\"]\n".into(), "`flying` is no ability of a sink"),
    ];
    for (file, text, words) in cases {
        let root = home.0.path("root");
        std::fs::remove_dir_all(&root).unwrap();
        std::fs::create_dir(&root).unwrap();
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
        home.0.write(&format!("root/{file}"), text);
        let enabled = home.bk(&["plugins", "enable", "one"]);
        assert_eq!(enabled.code, 4, "{words}: {}", enabled.stderr);
        assert!(
            enabled.stderr.contains(words),
            "{words}: {}",
            enabled.stderr
        );
        let list = home.bk(&["plugins", "list"]);
        assert_eq!(list.code, 4, "{}", list.stdout);
        assert!(list.stdout.contains("broken"), "{}", list.stdout);
        // Not enabled, it is in nobody's way.
        home.bk(&["config", "validate"]).ended(0);
        let forced = home.settings().replace("[\"files\"", "[\"one\", \"files\"");
        home.0
            .write("broken.toml", forced + "[plugin.one]\nsha256 = \"00\"\n");
        let ran = home.bk(&["backup", "--config", "broken.toml"]);
        assert_eq!(ran.code, 4, "{}", ran.stderr);
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
    // One that nobody accepted, one of a built-in's name, one that is there twice.
    home.0.write("root/one.toml", good.clone());
    std::fs::remove_dir_all(home.0.path("root/one")).unwrap();
    let forced = home.settings().replace("[\"files\"", "[\"one\", \"files\"");
    home.0.write("other.toml", forced);
    let ran = home.bk(&["backup", "--config", "other.toml"]).ended(4);
    assert!(ran.stderr.contains("was never accepted"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("bk plugins enable one"),
        "{}",
        ran.stderr
    );
    home.0
        .write("root/files.toml", good.replace("\"one\"", "\"files\""));
    let ran = home.bk(&["backup"]).ended(4);
    assert!(
        ran.stderr.contains("there are two plugins `files`"),
        "{}",
        ran.stderr
    );
    std::fs::remove_file(home.0.path("root/files.toml")).unwrap();
    home.0.write("root/one/bk-plugin.toml", "");
    let ran = home.bk(&["plugins", "list"]).ended(4);
    assert!(
        ran.stderr.contains("the plugin `one` is there twice"),
        "{}",
        ran.stderr
    );
}

/// Files over HTTP, on loopback, as long as it is held.
struct Web {
    address: String,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Web {
    fn of(folder: &Path) -> Self {
        use std::io::{BufRead, BufReader, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (folder, stopped) = (folder.to_owned(), stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(std::sync::atomic::Ordering::Acquire) {
                    return;
                }
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let mut header = String::new();
                while reader.read_line(&mut header).unwrap() > 2 {
                    header.clear();
                }
                let path = line
                    .split(' ')
                    .nth(1)
                    .unwrap_or("/")
                    .trim_start_matches('/');
                let answer = match std::fs::read(folder.join(path)) {
                    Ok(body) => [
                        format!(
                            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                            body.len()
                        )
                        .into_bytes(),
                        body,
                    ]
                    .concat(),
                    Err(_) => {
                        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                            .to_vec()
                    }
                };
                // A client that has gone wants nothing.
                let _ = stream.write_all(&answer);
            }
        });
        Self { address, stop }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Release);
        // Wakes it up.
        let _ = std::net::TcpStream::connect(self.address.trim_start_matches("http://"));
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    bk_core::archive::writer::hex(&sha2::Sha256::digest(bytes))
}

#[test]
fn plugins_are_found_in_indexes_installed_by_name_and_upgraded() {
    let home = PluginHome::new(BESIDE_FILES);
    let shelf = |index: &str, version: &str| {
        let one = command_plugin("one", version);
        let program = std::fs::read(examples().join("sqlite/plugin.py")).unwrap();
        let manifest = std::fs::read_to_string(examples().join("sqlite/bk-plugin.toml")).unwrap();
        let artifact = format!(
            "[[artifact]]\npath = \"plugin.py\"\nurl = \"plugin.py\"\nsha256 = \"{}\"\nexecutable = true\n",
            sha256(&program)
        );
        let manifest = manifest + &artifact;
        home.0.write(&format!("shelf/{index}/one.toml"), &one);
        home.0
            .write(&format!("shelf/{index}/sqlite/bk-plugin.toml"), &manifest);
        home.0
            .write(&format!("shelf/{index}/sqlite/plugin.py"), &program);
        let list = format!(
            "index = 1\nname = \"{index}\"\n[[plugin]]\nname = \"one\"\nversion = \"{version}\"\nabout = \"an example\"\nurl = \"one.toml\"\nsha256 = \"{}\"\n[[plugin]]\nname = \"sqlite\"\nversion = \"1.0.0\"\nabout = \"databases\"\nurl = \"sqlite/bk-plugin.toml\"\nsha256 = \"{}\"\n",
            sha256(one.as_bytes()),
            sha256(manifest.as_bytes())
        );
        home.0.write(&format!("shelf/{index}/index.toml"), list);
    };
    shelf("main", "1.0.0");
    let web = Web::of(&home.0.path("."));
    let address = format!("{}/shelf/main/index.toml", web.address);
    home.bk(&["plugins", "index", "add", &address]).ended(0);
    assert_eq!(
        home.bk(&["plugins", "index", "list"])
            .ended(0)
            .stdout
            .trim(),
        address
    );
    let unknown = home.bk(&["plugins", "install", "one"]).ended(5);
    assert!(
        unknown.stderr.contains("bk plugins update"),
        "{}",
        unknown.stderr
    );
    home.bk(&["plugins", "update"]).ended(0);
    let found = home.bk(&["plugins", "search", "DATA"]).ended(0).stdout;
    assert!(
        found.contains("main/sqlite") && !found.contains("main/one"),
        "{found}"
    );

    let installed = home.bk(&["plugins", "install", "one", "sqlite"]).ended(0);
    assert!(
        installed.stderr.contains("maintainer  ops@example.org"),
        "{}",
        installed.stderr
    );
    let again = home.bk(&["plugins", "install", "one"]).ended(6);
    assert!(
        again.stderr.contains("bk plugins upgrade one"),
        "{}",
        again.stderr
    );
    home.bk(&["plugins", "enable", "one", "sqlite"]).ended(0);
    home.bk(&["plugins", "test", "sqlite"]).ended(0);

    shelf("main", "1.1.0");
    // The list says another sum until it is fetched anew.
    let stale = home.bk(&["plugins", "upgrade", "one"]).ended(7);
    assert!(stale.stderr.contains("is expected"), "{}", stale.stderr);
    home.bk(&["plugins", "update"]).ended(0);
    home.bk(&["plugins", "upgrade", "all"]).ended(0);
    let list = home.bk(&["plugins", "list"]).ended(0).stdout;
    assert!(list.contains("1.1.0"), "{list}");
    assert!(
        home.settings().contains("version = \"1.1.0\""),
        "{}",
        home.settings()
    );

    // Another index has the same name: it must be said which.
    shelf("other", "2.0.0");
    home.bk(&["plugins", "index", "add", "shelf/other/index.toml"])
        .ended(0);
    home.bk(&["plugins", "update"]).ended(0);
    home.bk(&["plugins", "uninstall", "one"]).ended(0);
    let two = home.bk(&["plugins", "install", "one"]).ended(6);
    assert!(
        two.stderr
            .contains("bk plugins install main/one, or bk plugins install other/one"),
        "{}",
        two.stderr
    );
    home.bk(&["plugins", "install", "other/one"]).ended(0);
    home.0.write("shelf/other/sqlite/plugin.py", "#!/bin/sh\n");
    home.bk(&["plugins", "uninstall", "sqlite"]).ended(0);
    let spoilt = home.bk(&["plugins", "install", "other/sqlite"]).ended(7);
    assert!(spoilt.stderr.contains("plugin.py"), "{}", spoilt.stderr);
    assert!(!home.0.path("root/sqlite").exists());
    home.bk(&["plugins", "index", "remove", "shelf/other/index.toml"])
        .ended(0);
    assert_eq!(
        home.bk(&["plugins", "index", "list"])
            .ended(0)
            .stdout
            .trim(),
        address
    );
    let nowhere = home
        .bk(&[
            "plugins",
            "install",
            &format!("{}/nothing.toml", web.address),
        ])
        .ended(5);
    assert!(nowhere.stderr.contains("404"), "{}", nowhere.stderr);
}

#[test]
fn secrets_reach_commands_by_environment_or_descriptor_and_nothing_else() {
    let home = PluginHome::empty();
    let script = "printf '%s|%s|%s' \"$PW\" \"$(cat \"$1\")\" \"$0 $1\"; tr '\\0' ' ' < /proc/$$/cmdline; printenv | sort | cut -d= -f1 | tr '\\n' ','";
    let plugin = format!(
        "manifest = 1\nname = \"vault\"\nversion = \"1\"\nabout = \"a\"\nrole = \"source\"\n[command]\nentry = \"e\"\nbackup = [\"sh\", \"-c\", {script:?}, \"{{list}}\", \"{{pw:fd}}\"]\nenv = {{ PW = \"{{pw}}\", PLAIN = \"x\" }}\n[setting.pw]\ntype = \"secret\"\nrequired = true\n[setting.list]\ntype = \"list\"\ndefault = [\"zero\"]\n"
    );
    home.0.write("vault.toml", plugin);
    home.0.write("key", "s3cr3t-canary\n");
    home.bk(&["plugins", "install", "./vault.toml"]).ended(0);
    home.bk(&["plugins", "enable", "vault", "local"]).ended(0);
    home.bk(&[
        "config",
        "save",
        "-s",
        "source.vault.pw={ file = \"key\" }",
        "-s",
        "sink.local.path=out",
    ])
    .ended(0);
    let ran = home
        .command(&["-v", "backup", "--json"])
        .env("BK_ELSE", "not for children")
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    for said in [&ran.stdout, &ran.stderr] {
        assert!(!String::from_utf8_lossy(said).contains("canary"));
    }
    home.bk(&["extract", "--into", "here", "--only", "vault"])
        .ended(0);
    let text = std::fs::read_to_string(home.0.path("here/vault/e")).unwrap();
    assert!(
        text.starts_with("s3cr3t-canary|s3cr3t-canary|zero /dev/fd/3"),
        "{text}"
    );
    let (_, line) = text.split_once("sh -c").unwrap();
    assert!(!line.contains("canary"), "{text}");
    assert!(
        line.contains("PLAIN,PW,PWD") && !line.contains("BK_ELSE"),
        "{text}"
    );
}

#[test]
fn a_command_of_any_length_passes_through_little_memory() {
    let mib = bk_tests::long(192, 51_200);
    let seed = seed(11);
    let home = Home::new(&format!(
        "format = 1\nplugins = [\"command\", \"local\"]\n[archive]\nmemory = \"64 MiB\"\n[source.dump]\nplugin = \"command\"\nbackup = [\"sh\", \"-c\", \"yes {seed} | head -c {mib}M\"]\nrestore = [\"sh\", \"-c\", \"cksum > sum\"]\n[sink.local]\npath = \"out\"\n"
    ));
    let (ran, peak) = home.bk_watched(&["backup"]);
    ran.ended(0);
    assert!(peak < 160, "{peak} MiB");
    let (ran, back) = home.bk_watched(&["restore", "--yes"]);
    ran.ended(0);
    assert!(back < 160, "{back} MiB");
    println!("{mib} MiB of a command: backup {peak} MiB of memory, restore {back} MiB");
    let expected = std::process::Command::new("sh")
        .args(["-c", &format!("yes {seed} | head -c {mib}M | cksum")])
        .output()
        .unwrap();
    let came = std::fs::read(home.path("sum")).unwrap();
    assert_eq!(came, expected.stdout);
}

#[test]
fn a_command_that_fails_late_or_hangs_is_no_backup() {
    let run = |backup: &str, words: &str| {
        let home = Home::new(&format!(
            "format = 1\nplugins = [\"command\", \"files\", \"local\"]\n[source.dump]\nplugin = \"command\"\nbackup = [\"sh\", \"-c\", {backup:?}]\npatience = \"2s\"\n[source.files]\npath = \"src\"\n[sink.local]\npath = \"out\"\n"
        ));
        home.write("src/f", "x");
        let ran = home.bk(&["backup"]).ended(3);
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
        assert!(
            home.archives()
                .iter()
                .all(|name| name.ends_with(".partial"))
        );
        let back = home.bk(&["restore", "--allow-partial", "--only", "dump", "--yes"]);
        assert_ne!(back.code, 0, "what was cut off came back: {}", back.stderr);
    };
    run(
        "seq 100000; echo 'disk on fire' >&2; exit 3",
        "`sh` ended with exit status: 3; its last words: disk on fire",
    );
    run("seq 10; sleep 1000", "`sh` said nothing for 2 s");
    run(
        "seq 10; exec >&-; sleep 1000",
        "`sh` closed its output, and did not end within 5 s",
    );
    run("kill -9 $$", "`sh` ended with signal: 9");
}

#[test]
fn a_sink_may_talk_while_it_is_written_to() {
    let home = PluginHome::empty();
    home.bk(&["plugins", "new", "box", "--sink"]).ended(0);
    let program = home.0.path("box/plugin.py");
    let text = std::fs::read_to_string(&program).unwrap();
    let quiet = "                for chunk in chunks:\n";
    let talks = text.replace(
        quiet,
        &format!("{quiet}                    for _ in range(200):\n                        say(\"log\", level=\"debug\", message=\"x\" * 10000)\n"),
    );
    assert_ne!(text, talks);
    std::fs::write(&program, talks).unwrap();
    home.bk(&["plugins", "test", "./box"]).ended(0);
}

#[test]
fn a_command_that_does_not_read_its_backup_has_not_restored_it() {
    let home = Home::new(
        "format = 1\nplugins = [\"command\", \"local\"]\n[source.dump]\nplugin = \"command\"\nbackup = [\"head\", \"-c\", \"8M\", \"/dev/urandom\"]\nrestore = [\"true\"]\n[sink.local]\npath = \"out\"\n",
    );
    home.bk(&["backup"]).ended(0);
    let ran = home.bk(&["restore", "--yes"]).ended(1);
    assert!(
        ran.stderr.contains("had not read all of its input"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_link_inside_of_a_plugin_is_refused() {
    let home = beside_files("none", false);
    let program = home.0.path("root/bad/plugin.py");
    std::fs::rename(&program, home.0.path("elsewhere.py")).unwrap();
    std::os::unix::fs::symlink(home.0.path("elsewhere.py"), &program).unwrap();
    let ran = home.bk(&["backup"]).ended(3);
    assert!(ran.stderr.contains("is a link"), "{}", ran.stderr);
    let refused = home.bk(&["plugins", "enable", "bad"]).ended(4);
    assert!(refused.stderr.contains("is a link"), "{}", refused.stderr);
}
