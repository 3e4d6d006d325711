//! Broken settings: exit 4, every mistake at once with file, line, column and a hint. Secrets: nowhere.

use bk_core::secret::Secret;
use bk_tests::binary::{Home, built};
use bk_tests::engine::Site;
use bk_tests::fakes::{FakeSource, MemorySink};

const GOOD: &str = "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[sink.local]\npath = \"out\"\n";

#[test]
fn no_settings_at_all_names_the_places_that_were_looked_at() {
    let home = Home::new(GOOD);
    std::fs::remove_file(home.path("plugins.toml")).unwrap();
    let ran = home.bk(&["backup"]).ended(4);
    assert!(
        ran.stderr.contains("plugins.toml")
            && ran.stderr.contains("/etc/bk/plugins.toml")
            && ran.stderr.contains("--config"),
        "{}",
        ran.stderr
    );
    home.bk(&["--config", "nowhere.toml", "backup"]).ended(4);
    // Listing plugins needs no settings.
    assert!(
        home.bk(&["plugins", "list"])
            .ended(0)
            .stdout
            .contains("files")
    );
}

#[test]
fn layers_lie_over_each_other_and_every_value_has_its_origin() {
    let home = Home::new(GOOD);
    let run = |arguments: &[&str], variable: Option<(&str, &str)>| {
        let mut command = home.command(arguments);
        if let Some((name, value)) = variable {
            command.env(name, value);
        }
        bk_tests::binary::Ran::from(command.output().unwrap())
    };
    let shown = run(
        &["config", "show", "--set", "archive.preset=3"],
        Some(("BK_SOURCE__FILES__PATH", "elsewhere")),
    )
    .ended(0)
    .stdout;
    for line in [
        "source.files.path = \"elsewhere\"  # environment BK_SOURCE__FILES__PATH",
        "archive.preset = 3",
        "# --set",
        "sink.local.path = \"out\"",
        "# line 6",
    ] {
        assert!(shown.contains(line), "{line} is not in:\n{shown}");
    }
    let both = run(
        &["config", "show", "--set", "source.files.path=third"],
        Some(("BK_SOURCE__FILES__PATH", "second")),
    )
    .ended(0)
    .stdout;
    assert!(
        both.contains("\"third\"") && !both.contains("second"),
        "{both}"
    );
    let wrong = run(
        &["config", "validate"],
        Some(("BK_ARCHIVE__PRESET", "many")),
    )
    .ended(4);
    assert!(
        wrong.stderr.contains("environment BK_ARCHIVE__PRESET"),
        "{}",
        wrong.stderr
    );
}

#[test]
fn an_instance_whose_plugin_is_not_enabled_is_named_on_every_run() {
    let home = Home::new(
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[source.mysql]\nhost = \"db\"\npassword = \"canary-of-mysql\"\n[sink.local]\npath = \"out\"\n",
    );
    home.write("src/a/b/c", "x");
    let ran = home.bk(&["backup"]).ended(0);
    assert!(
        ran.stderr.contains("not backed up: source.mysql"),
        "{}",
        ran.stderr
    );
    let shown = home.bk(&["config", "show"]).ended(0);
    assert!(
        shown.stdout.contains("source.mysql.password = ***") && !shown.stdout.contains("canary"),
        "{}",
        shown.stdout
    );
}

#[test]
fn planted_secrets_appear_in_no_output_archive_or_argv() {
    let canaries = [
        "canary-plain-7f3a",
        "canary-nested-81bc",
        "canary-token-92cd",
    ];
    let home = Home::new(&format!(
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[source.mysql]\npassword = \"{}\"\nuri = \"mysql://root:{}@db\"\n[sink.s3]\nsecret_key = \"{}\"\n[sink.local]\npath = \"out\"\n",
        canaries[0], canaries[1], canaries[2]
    ));
    home.write("src/a/b/c", "x");
    let mut said = String::new();
    for arguments in [
        &["backup", "-vv"][..],
        &["backup", "--json", "-vv"],
        &["list", "--json", "-vv"],
        &["show", "--json"],
        &["config", "show", "--json", "-vv"],
        &["config", "validate", "-vv"],
        &["check", "--json", "-vv"],
        &["restore", "--yes", "-vv", "--log-format", "json"],
        &["prune", "-vv"],
        &["verify", "-vv"],
    ] {
        let ran = home.bk(arguments);
        said += &ran.stdout;
        said += &ran.stderr;
    }
    let ran = home.bk(&[
        "backup",
        "-vv",
        "--set",
        "source.mysql.password=canary-set-a3de",
        "--set",
        "bad",
    ]);
    said += &ran.stderr;
    for name in home.archives() {
        let raw = std::process::Command::new("xz")
            .arg("-dc")
            .arg(home.path("out").join(name))
            .output()
            .unwrap();
        said += &String::from_utf8_lossy(&raw.stdout);
    }
    for note in ["catalogue-2026-11", "pins"] {
        said += &std::fs::read_to_string(home.path("out/.bk/main").join(note)).unwrap_or_default();
    }
    assert!(said.len() > 2000, "hardly anything was said: {said}");
    assert!(
        !said.contains("canary"),
        "a secret got out: {}",
        &said[said.find("canary").unwrap().saturating_sub(200)..]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_from_environment_file_and_program_is_read_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "canary-file\n").unwrap();
    // The program says whether the secret stood in its own argv: it cannot, it is the one who knows it.
    let lab = built("bk-lab");
    assert!(lab.exists());
    let secrets: Vec<(Secret, &str)> = vec![
        (serde_json::from_value(serde_json::json!("canary-plain")).unwrap(), "canary-plain"),
        (serde_json::from_value(serde_json::json!({ "file": folder.path().join("secret") })).unwrap(), "canary-file"),
        (serde_json::from_value(serde_json::json!({ "command": ["sh", "-c", "cat \"$0\"", folder.path().join("secret")] })).unwrap(), "canary-file"),
        (serde_json::from_value(serde_json::json!({ "env": "CARGO_PKG_NAME" })).unwrap(), "bk-tests"),
    ];
    for (secret, value) in secrets {
        assert_eq!(secret.reveal().await.unwrap(), value);
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
    }
    for (wrong, word) in [
        (
            serde_json::json!({ "env": "BK_NO_SUCH_VARIABLE" }),
            "BK_NO_SUCH_VARIABLE",
        ),
        (serde_json::json!({ "command": ["false"] }), "`false`"),
        (
            serde_json::json!({ "file": "/nonexistent" }),
            "/nonexistent",
        ),
    ] {
        let secret: Secret = serde_json::from_value(wrong).unwrap();
        let error = secret.reveal().await.unwrap_err();
        assert!(error.what.contains(word), "{error}");
    }
    assert!(
        serde_json::from_value::<Secret>(serde_json::json!({ "evn": "X" }))
            .unwrap_err()
            .to_string()
            .contains("evn")
    );

    // A source that holds one: neither its report nor its archive says it.
    let memory = MemorySink::default();
    let source = FakeSource {
        secret: Some(Secret::plain("canary-of-a-source")),
        ..FakeSource::small(1, 1)
    };
    let report = Site::default()
        .source("it", source)
        .sink("memory", memory.clone())
        .backup()
        .await;
    assert!(!serde_json::to_string(&report).unwrap().contains("canary"));
    let archive = memory.archive(&memory.names()[0]).unwrap();
    assert!(
        bk_tests::forge::raw_blocks(&archive)
            .iter()
            .all(|raw| !String::from_utf8_lossy(raw).contains("canary"))
    );
}

#[test]
fn json_reports_hold_every_cause_with_retry() {
    let home = Home::new(GOOD);
    let ran = home.bk(&["restore", "--json", "--yes"]).ended(5);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["causes"][0]["class"], "not_found");
    assert_eq!(report["causes"][0]["retry"], false);
    home.write("src/a/b/c", "x");
    let report: serde_json::Value =
        serde_json::from_str(&home.bk(&["backup", "--json"]).ended(0).stdout).unwrap();
    assert_eq!(report["complete"], true);
    assert_eq!(report["causes"], serde_json::json!([]));
    assert!(report["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
}

#[test]
fn programs_around_a_run_and_an_instance_run_in_order_and_are_named_when_they_fail() {
    let hook = |word: &str| {
        let script = format!("echo {word} $BK_INSTANCE $BK_RESULT >> log; test -z \\\"$SECRET\\\"");
        format!("{{ command = [\"sh\", \"-c\", \"{script}\"] }}")
    };
    let lines = |prefix: &str| {
        [
            "before_backup",
            "after_backup",
            "before_restore",
            "after_restore",
        ]
        .map(|key| format!("{key} = {}\n", hook(&format!("{prefix}-{key}"))))
        .concat()
    };
    let settings = format!(
        "format = 1\nplugins = [\"files\", \"local\"]\n[run]\n{}[source.files]\npath = \"in\"\n{}[sink.local]\npath = \"out\"\n",
        lines("run"),
        lines("own")
    );
    let home = Home::new(&settings);
    home.write("in/a.txt", "a");
    let ran = home
        .command(&["backup"])
        .env("SECRET", "x")
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    home.bk(&["restore", "--yes"]).ended(0);
    let log = std::fs::read_to_string(home.path("log")).unwrap();
    assert_eq!(
        log.lines().map(str::trim_end).collect::<Vec<_>>(),
        [
            "run-before_backup",
            "own-before_backup files",
            "own-after_backup files done",
            "run-after_backup done",
            "run-before_restore",
            "own-before_restore files",
            "own-after_restore files done",
            "run-after_restore done",
        ]
    );
    // One that fails before keeps it from being touched; one that fails after is named; one that hangs is ended.
    for (key, verb, command, code, word) in [
        (
            "before_backup",
            "backup",
            "[\"false\"]",
            1,
            "`before_backup`",
        ),
        ("after_backup", "backup", "[\"false\"]", 3, "`after_backup`"),
        (
            "before_restore",
            "restore",
            "[\"no-such-program\"]",
            1,
            "could not be run",
        ),
        (
            "after_restore",
            "restore",
            "[\"sleep\", \"600\"], timeout = \"1s\"",
            3,
            "was not done within 1 s",
        ),
    ] {
        let broken = Home::new(&format!(
            "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"in\"\n{key} = {{ command = {command} }}\n[sink.local]\npath = \"{}\"\n",
            home.path("out").display()
        ));
        broken.write("in/a.txt", "a");
        let arguments: &[&str] = if verb == "restore" {
            &["restore", "--yes"]
        } else {
            &["backup"]
        };
        let ran = broken.bk(arguments);
        assert!(
            ran.code == code && ran.stderr.contains(word),
            "{key}: {ran:?}"
        );
    }
}
