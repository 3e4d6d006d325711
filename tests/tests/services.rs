//! What has no plugin of its own: commands, documents over HTTP, variables of the environment; the site that is made of them; and hooks on events.

use bk_core::event::Moment;
use bk_tests::binary::Home;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A catalogue: a document that is exported and imported.
struct Catalogue {
    address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    document: Vec<u8>,
    /// What the last import was sent as.
    imported_as: String,
    /// Headers that every request had, by name.
    headers: BTreeMap<String, String>,
    /// How `export` misbehaves.
    fault: Fault,
    is_verified: bool,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Fault {
    #[default]
    None,
    Refuses(u16),
    CutOff,
    OnlyGet,
}

impl Catalogue {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            is_verified: true,
            ..State::default()
        }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = shared.clone();
                std::thread::spawn(move || answer(stream.unwrap(), &shared));
            }
        });
        Self { address, state }
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let Some((name, value)) = header.trim().split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = Vec::new();
    if let Some(len) = headers.get("content-length") {
        body.resize(len.parse().unwrap(), 0);
        reader.read_exact(&mut body).unwrap();
    } else if headers.contains_key("transfer-encoding") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).unwrap();
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
    let mut state = state.lock().unwrap();
    let (method, path) = line.split_once(' ').unwrap();
    let path = path.split(' ').next().unwrap();
    state.headers = headers.clone();
    let (status, kind, out) = match (method, path, state.fault) {
        ("GET" | "HEAD", "/catalog/export", Fault::Refuses(status)) => {
            (status, "text/plain", b"no\nentry".to_vec())
        }
        ("HEAD", "/catalog/export", Fault::OnlyGet) => (405, "text/plain", Vec::new()),
        ("GET" | "HEAD", "/catalog/export", _) => (200, "application/json", state.document.clone()),
        ("POST" | "PUT", "/catalog/import", _) => {
            state.imported_as = headers.get("content-type").cloned().unwrap_or_default();
            state.document = body;
            (204, "text/plain", Vec::new())
        }
        ("GET", "/catalog/verify", _) if state.is_verified => (200, "text/plain", Vec::new()),
        _ => (404, "text/plain", Vec::new()),
    };
    let sent = if method == "HEAD" { &[][..] } else { &out[..] };
    let sent = if state.fault == Fault::CutOff {
        &sent[..sent.len() / 2]
    } else {
        sent
    };
    let head = format!(
        "HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        out.len()
    );
    // A client that has gone wants nothing.
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(sent);
}

/// The system's own program: its snapshots are a file.
const SNAPSHOTS: &str = "#!/bin/sh\ncase \"$1\" in\nexport-all) cat \"$DECUB_STORE\" ;;\nimport) cat > \"$DECUB_STORE\" ;;\nlist) test -d \"$(dirname \"$DECUB_STORE\")\" ;;\nesac\n";

#[test]
fn a_site_of_folders_commands_variables_and_a_catalogue_is_one_settings_file() {
    let site = Path::new(env!("CARGO_MANIFEST_DIR")).join("sites/decube/plugins.toml");
    let home = Home::new(&std::fs::read_to_string(site).unwrap());
    let catalogue = Catalogue::start();
    home.write("bin/decub-snapshot", SNAPSHOTS);
    let program = home.path("bin/decub-snapshot");
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
    home.write("data/blocks/1/b", "block");
    home.write("config/node.yaml", "node: 1");
    home.write("tls/ca/key.pem", "key");
    home.write("store/snapshots", [7_u8; 100_000]);
    catalogue.state.lock().unwrap().document =
        format!("{{\"snapshots\": [{}]}}", "1, ".repeat(50_000) + "1").into_bytes();
    let overlaid = [
        ("source.data.path", "data".to_owned()),
        ("source.tls.path", "tls".to_owned()),
        (
            "source.catalog.url",
            format!("{}/catalog/export", catalogue.address),
        ),
        (
            "source.catalog.restore.url",
            format!("{}/catalog/import", catalogue.address),
        ),
        (
            "source.catalog.verify",
            format!("['{}/catalog/verify']", catalogue.address),
        ),
        (
            "source.snapshots.env",
            format!(
                "{{ DECUB_STORE = '{}' }}",
                home.path("store/snapshots").display()
            ),
        ),
    ];
    let bk = |arguments: &[&str]| {
        let sets: Vec<String> = overlaid
            .iter()
            .map(|(key, value)| format!("--set={key}={value}"))
            .collect();
        let mut command = home.command(arguments);
        let path = format!(
            "{}:{}",
            home.path("bin").display(),
            std::env::var("PATH").unwrap()
        );
        command
            .args(sets)
            .env("PATH", path)
            .env("DECUBE_TOKEN", "it's $ecret")
            .env("DECUBE_NODE", "1")
            .env("DECUBEX", "too");
        bk_tests::binary::Ran::from(command.output().unwrap())
    };
    bk(&["backup"]).ended(0);
    bk(&["verify", "--all"]).ended(0);
    let before = catalogue.state.lock().unwrap().document.clone();

    for gone in ["data", "config", "tls"] {
        std::fs::remove_dir_all(home.path(gone)).unwrap();
        std::fs::create_dir(home.path(gone)).unwrap();
    }
    home.write("store/snapshots", "");
    catalogue.state.lock().unwrap().document = b"{}".to_vec();
    // One part alone.
    bk(&["restore", "--only", "catalog", "--yes"]).ended(0);
    {
        let state = catalogue.state.lock().unwrap();
        assert_eq!(state.document, before);
        assert_eq!(state.imported_as, "application/json");
    }
    assert!(!home.path("data/blocks").exists());
    bk(&["restore", "--yes"]).ended(0);
    assert_eq!(
        std::fs::read(home.path("data/blocks/1/b")).unwrap(),
        b"block"
    );
    assert_eq!(
        std::fs::read(home.path("config/node.yaml")).unwrap(),
        b"node: 1"
    );
    assert_eq!(std::fs::read(home.path("tls/ca/key.pem")).unwrap(), b"key");
    assert_eq!(
        std::fs::read(home.path("store/snapshots")).unwrap(),
        [7_u8; 100_000]
    );
    let file = home.path("decube.env");
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let said = std::process::Command::new("sh")
        .args([
            "-c",
            &format!(
                "set -a; . '{}'; printenv DECUBE_TOKEN DECUBE_NODE DECUBEX",
                file.display()
            ),
        ])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(said.stdout).unwrap(),
        "it's $ecret\n1\ntoo\n"
    );

    // What the service says afterwards counts.
    catalogue.state.lock().unwrap().is_verified = false;
    let ran = bk(&["restore", "--only", "catalog", "--yes"]).ended(3);
    assert!(ran.stderr.contains("after the restore: "), "{}", ran.stderr);
}

fn document(catalogue: &Catalogue, more: &str) -> Home {
    Home::new(&format!(
        "format = 1\nplugins = [\"http\", \"local\"]\n[source.catalog]\nplugin = \"http\"\nurl = \"{}/catalog/export\"\n{more}\n[sink.local]\npath = \"out\"\n",
        catalogue.address
    ))
}

#[test]
fn a_document_that_is_refused_cut_off_or_no_json_is_no_backup() {
    let catalogue = Catalogue::start();
    let home = document(&catalogue, "json = true");
    let cases: [(Fault, &str, i32, &str); 7] = [
        (
            Fault::Refuses(401),
            "{}",
            4,
            "/catalog/export answered 401 Unauthorized",
        ),
        (Fault::Refuses(403), "{}", 4, "answered 403 Forbidden"),
        (
            Fault::Refuses(404),
            "{}",
            5,
            "answered 404 Not Found: no entry",
        ),
        (Fault::Refuses(302), "{}", 4, "answered 302 Found"),
        (
            Fault::CutOff,
            "{\"a\": [1, 2, 3, 4, 5, 6, 7, 8]}",
            1,
            "127.0.0.1",
        ),
        (
            Fault::None,
            "{\"a\": [1, 2",
            7,
            "gave out what is no JSON: EOF",
        ),
        (
            Fault::None,
            "{}{}",
            7,
            "gave out what is no JSON: trailing characters",
        ),
    ];
    for (fault, text, code, words) in cases {
        let mut state = catalogue.state.lock().unwrap();
        (state.fault, state.document) = (fault, text.into());
        drop(state);
        let ran = home.bk(&["backup"]);
        assert_eq!(ran.code, code, "{words}: {}", ran.stderr);
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
        assert_eq!(home.archives(), Vec::<String>::new(), "{words}");
    }
    // A service that knows GET alone is good enough.
    let mut state = catalogue.state.lock().unwrap();
    (state.fault, state.document) = (Fault::OnlyGet, b"[1]".to_vec());
    drop(state);
    home.bk(&["backup"]).ended(0);
    home.bk(&["check"]).ended(0);
    let refused = home.bk(&["restore", "--yes"]).ended(4);
    assert!(
        refused
            .stderr
            .contains("it has no `restore` in the settings"),
        "{}",
        refused.stderr
    );
}

#[test]
fn headers_may_be_secrets_and_a_document_of_any_length_passes_through_little_memory() {
    let catalogue = Catalogue::start();
    let more = format!(
        "headers = {{ Authorization = {{ env = \"CATALOG_TOKEN\" }} }}\nrestore = {{ method = \"POST\", url = \"{}/catalog/import\" }}\njson = true",
        catalogue.address
    );
    let home = document(&catalogue, &more);
    let long = bk_tests::long(96, 512) << 20;
    let mut text = b"[\"".to_vec();
    text.resize(long, b'a');
    text.extend_from_slice(b"\"]");
    catalogue.state.lock().unwrap().document.clone_from(&text);
    std::fs::write(home.path(".token"), "").unwrap();
    let ran = home.bk(&["backup"]).ended(4);
    assert!(
        ran.stderr.contains("`CATALOG_TOKEN` is not set"),
        "{}",
        ran.stderr
    );
    let run = |arguments: &[&str]| {
        let output = home
            .command(arguments)
            .env("CATALOG_TOKEN", "Bearer canary-7")
            .output()
            .unwrap();
        let ran = bk_tests::binary::Ran::from(output).ended(0);
        assert!(!ran.stderr.contains("canary") && !ran.stdout.contains("canary"));
        ran
    };
    let ran = run(&["-v", "backup", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let peak = report["peak_memory_bytes"].as_u64().unwrap() >> 20;
    println!("a document of {} MiB: {peak} MiB of memory", long >> 20);
    assert!(peak < 256, "{peak} MiB");
    assert_eq!(
        catalogue.state.lock().unwrap().headers["authorization"],
        "Bearer canary-7"
    );
    catalogue.state.lock().unwrap().document.clear();
    run(&["restore", "--yes"]);
    let state = catalogue.state.lock().unwrap();
    assert!(
        state.document == text,
        "{} of {} bytes came back",
        state.document.len(),
        text.len()
    );
    // The type that it had.
    assert_eq!(state.imported_as, "application/json");
}

#[test]
fn variables_that_are_not_set_are_no_backup_and_no_file_is_overwritten_unasked() {
    let home = Home::new(
        "format = 1\nplugins = [\"env\", \"local\"]\n[source.env]\nprefix = \"BKTEST_\"\n[sink.local]\npath = \"out\"\n",
    );
    let ran = home.bk(&["backup"]).ended(4);
    assert!(
        ran.stderr.contains("no variable begins with `BKTEST_`"),
        "{}",
        ran.stderr
    );
    let set = home
        .command(&["backup"])
        .env("BKTEST_A", "1")
        .output()
        .unwrap();
    assert!(set.status.success());
    let nowhere = home.bk(&["restore", "--yes"]).ended(4);
    assert!(
        nowhere.stderr.contains("--into env=FILE"),
        "{}",
        nowhere.stderr
    );
    home.write("there.env", "mine");
    let refused = home
        .bk(&[
            "restore",
            "--into",
            "env=there.env",
            "--existing",
            "refuse",
            "--yes",
        ])
        .ended(6);
    assert!(
        refused.stderr.contains("is there already"),
        "{}",
        refused.stderr
    );
    assert_eq!(std::fs::read(home.path("there.env")).unwrap(), b"mine");
    home.bk(&["restore", "--into", "env=there.env", "--yes"])
        .ended(0);
    assert_eq!(
        std::fs::read(home.path("there.env")).unwrap(),
        b"BKTEST_A='1'\n"
    );
}

/// The kit on a source of this program's own, with what fills, empties and digests a scratch service.
fn kit(home: &Home, plugin: &str, with: &str, least: usize) {
    home.write("with.toml", with);
    let output = home
        .command(&["plugins", "test", plugin, "--with", "with.toml"])
        .env("BKKIT_ONE", "1")
        .env("BKKIT_TWO", "it's 2")
        .output()
        .unwrap();
    let ran = bk_tests::binary::Ran::from(output).ended(0);
    let held = ran
        .stdout
        .lines()
        .filter(|line| line.starts_with("ok "))
        .count();
    assert!(held >= least, "{plugin}: {held} checks\n{}", ran.stdout);
}

#[test]
fn the_kit_holds_for_documents_and_variables() {
    let catalogue = Catalogue::start();
    let home = Home::new("");
    let (export, import) = (
        format!("{}/catalog/export", catalogue.address),
        format!("{}/catalog/import", catalogue.address),
    );
    let with = format!(
        "[settings]\nurl = \"{export}\"\njson = true\nrestore = {{ method = \"PUT\", url = \"{import}\" }}\n[test]\nseed = [\"curl\", \"-sf\", \"-X\", \"PUT\", \"-d\", '{{\"a\": 1}}', \"{import}\"]\nwipe = [\"curl\", \"-sf\", \"-X\", \"PUT\", \"-d\", \"[]\", \"{import}\"]\ndigest = [\"curl\", \"-sf\", \"{export}\"]\n"
    );
    kit(&home, "http", &with, 7);
    let with = "[settings]\nprefix = \"BKKIT_\"\nfile = \"{scratch}/kit.env\"\n[test]\nseed = [\"sh\", \"-c\", \"printf '%s\\\\n' \\\"BKKIT_ONE='1'\\\" \\\"BKKIT_TWO='it'\\\\\\\\''s 2'\\\" > $0\", \"{file}\"]\nwipe = [\"rm\", \"-f\", \"{file}\"]\ndigest = [\"sh\", \"-c\", \"cat $0 2> /dev/null; true\", \"{file}\"]\n";
    kit(&home, "env", with, 7);
}

fn with_hooks(more: &str) -> Home {
    let words: Vec<_> = Moment::ALL
        .iter()
        .map(|moment| format!("\"{}\"", moment.word()))
        .collect();
    let home = Home::new(&format!(
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[sink.local]\npath = \"out\"\n{more}\n[[hook]]\non = [{}]\nrun = [\"sh\", \"told.sh\"]\n",
        words.join(", ")
    ));
    home.write("src/f", "x");
    home.write(
        "told.sh",
        "mkdir -p told; cat > told/$BK_EVENT.$BK_INSTANCE.$$\n",
    );
    home
}

/// What was told, by moment: each a JSON document.
fn told(home: &Home) -> BTreeMap<String, serde_json::Value> {
    let names = home.names_in("told");
    let told = names.into_iter().map(|name| {
        let text = std::fs::read(home.path(&format!("told/{name}"))).unwrap();
        let moment = name.split('.').take(2).collect::<Vec<_>>().join(".");
        (
            moment,
            serde_json::from_slice(&text).expect("a report is JSON"),
        )
    });
    let told = told.collect();
    // For the next run.
    let _ = std::fs::remove_dir_all(home.path("told"));
    told
}

#[test]
fn hooks_are_told_of_every_moment_with_its_report_and_change_nothing() {
    let home = with_hooks(
        "keep = { last = 1 }\n[[hook]]\non = \"backup.done\"\nrun = [\"sh\", \"-c\", \"exit 3\"]\n[[hook]]\non = \"backup.done\"\nrun = [\"sleep\", \"1000\"]\ntimeout = \"1s\"\n[[hook]]\non = \"backup.done\"\nrun = [\"no-such-program\"]\n",
    );
    let ran = home.bk(&["backup"]).ended(0);
    for words in [
        "the hook on backup.done, `sh`, ended with exit status: 3",
        "`sleep`, was not done within 1 s",
        "`no-such-program`, could not be run",
    ] {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
    let seen = told(&home);
    let keys: Vec<_> = seen.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "backup.done",
            "backup.sealed",
            "backup.source_done",
            "backup.started",
            "backup.stored"
        ]
    );
    assert_eq!(seen["backup.done"]["complete"], true);
    assert_eq!(seen["backup.source_done"]["name"], "files");
    assert_eq!(seen["backup.stored"]["verified"], true);
    assert_eq!(
        seen["backup.sealed"]["sha256"],
        seen["backup.done"]["sha256"]
    );

    home.bk(&["backup"]).ended(0);
    told(&home);
    home.bk(&["restore", "--yes"]).ended(0);
    let seen = told(&home);
    let keys: Vec<_> = seen.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        ["restore.done", "restore.source_done", "restore.started"]
    );

    // What does not end well.
    std::fs::remove_dir_all(home.path("src")).unwrap();
    let failed = home.bk(&["backup"]);
    assert_ne!(failed.code, 0);
    let seen = told(&home);
    assert!(
        seen.contains_key("backup.failed") && !seen.contains_key("backup.done"),
        "{seen:?}"
    );
    assert!(seen["backup.failed"]["causes"][0]["what"].is_string());
    home.bk(&["restore", "--date", "2001-01-01", "--yes"])
        .ended(5);
    assert!(told(&home).contains_key("restore.failed"));
    home.bk(&["check", "--set", "sink.local.path=told.sh"]);
    assert!(told(&home).contains_key("check.failed"));
    let archive = home.path("out").join(&home.archives()[0]);
    let mut bytes = std::fs::read(&archive).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    std::fs::write(&archive, bytes).unwrap();
    assert_ne!(home.bk(&["verify", "--all"]).code, 0);
    assert!(told(&home).contains_key("verify.failed"));
    // Looking is no run.
    home.bk(&["backup", "--dry-run"]).ended(0);
    assert_eq!(home.names_in("told"), Vec::<String>::new());
}

#[test]
fn hooks_are_told_of_each_archive_that_retention_drops() {
    let home = with_hooks("keep = { last = 2 }");
    for _ in 0..3 {
        home.bk(&["backup"]).ended(0);
    }
    let seen = told(&home);
    assert_eq!(seen["archive.dropped"]["sink"], "local", "{seen:?}");
    assert!(
        seen["archive.dropped"]["name"]
            .as_str()
            .unwrap()
            .starts_with("backup.")
    );
    assert_eq!(home.archives().len(), 2);
}
