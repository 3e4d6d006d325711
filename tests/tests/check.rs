//! `bk check` before anything is lost: each fault is named, with what to do. Faults of databases, of S3 and of SSH, which need their servers, are in
//! the tests of those.

use bk_tests::database::free_port;
use bk_tests::plugins_root::PluginHome;
use bk_tests::{Outcome, hold, side_by_side, skip};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const SETTINGS: &str = "format = 1\nplugins = [\"command\", \"files\", \"http\", \"local\"]\n[source.files]\npath = \"src\"\n[sink.local]\npath = \"out\"\nkeep = { last = 3 }\n";

/// What is done to a good home: settings that come behind, the exit code, the words that must be said, and the fault itself.
type Fault = (&'static str, String, i32, &'static str, fn(&PluginHome));

fn nothing(_: &PluginHome) {}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn bad_plugin(home: &PluginHome) {
    home.drop_in("bad");
    home.0.write("notes/one", "1");
    home.bk(&["plugins", "enable", "bad"]).ended(0);
}

/// Settings that hold a secret in this form.
fn secret(form: &str) -> String {
    format!("[source.couchdb]\nurl = \"http://127.0.0.1:1\"\nuser = \"a\"\npassword = {form}\n")
}

fn faults() -> Vec<Fault> {
    let http = |url: &str| format!("[source.doc]\nplugin = \"http\"\nurl = \"{url}\"\n");
    let closed = free_port();
    let with_bad = "[source.bad]\npath = \"notes\"\n";
    vec![
        ("a key that is not known", "[source.more]\nplugin = \"files\"\npth = \"x\"\n".into(), 4, "did you mean `path`?", nothing),
        ("a wrong type", "[source.more]\nplugin = \"files\"\npath = 7\n".into(), 4, "invalid type: integer `7`", nothing),
        ("a zone that is not", "[archive]\ntimezone = \"UTD\"\n".into(), 4, "there is no time zone `UTD`", nothing),
        ("two instances of one name", "[source.files]\npath = \"b\"\n".into(), 4, "plugins.toml:8:", nothing),
        ("no such plugin", "[source.x]\nplugin = \"file\"\n".into(), 0, "not backed up: source.x, its plugin is not enabled", nothing),
        ("a plugin that is missing", String::new(), 4, "there is no plugin `ldap`", |home| {
            let settings = home.settings().replace("\"local\"]", "\"local\", \"ldap\"]");
                home.0.write("plugins.toml", settings);
        }),
        ("a plugin that was changed", with_bad.into(), 4, "is not what was accepted", |home| {
            bad_plugin(home);
            home.0.write("root/bad/plugin.py", "#!/bin/sh\n");
        }),
        ("a plugin that others can change", with_bad.into(), 4, "can be written by others (mode 0777)", |home| {
            bad_plugin(home);
            mode(&home.0.path("root/bad"), 0o777);
        }),
        ("a plugins root that others can change", with_bad.into(), 4, "can be written by others (mode 0777)", |home| {
            bad_plugin(home);
            mode(&home.0.path("root"), 0o777);
        }),
        ("a plugin that is somebody else", with_bad.into(), 1, "it says that it is `worse`", |home| {
            home.drop_in("bad");
            home.0.write("root/bad/defect", "other_name");
            home.bk(&["plugins", "enable", "bad"]).ended(0);
        }),
        ("a plugin that says nothing", with_bad.into(), 1, "it said nothing for 9 s", |home| {
            home.drop_in("bad");
            home.0.write("root/bad/defect", "silent_start");
            home.bk(&["plugins", "enable", "bad"]).ended(0);
        }),
        ("a plugin without its interpreter", with_bad.into(), 4, "could not be run", |home| {
            home.drop_in("bad");
            home.0.write("root/bad/plugin.py", "#!/no/such/interpreter\n");
            home.bk(&["plugins", "enable", "bad"]).ended(0);
        }),
        ("a folder that is not there", "[source.more]\nplugin = \"files\"\npath = \"gone\"\n".into(), 0, "`./gone` is not there", nothing),
        ("a folder that is a file", "[source.more]\nplugin = \"files\"\npath = \"src/f\"\n".into(), 4, "src/f", nothing),
        ("a half-restored folder", String::new(), 0, "src", nothing),
        ("a name that nobody knows", http("http://no-such-host.invalid/x"), 1, "no-such-host.invalid", nothing),
        ("a port that is closed", http(&format!("http://127.0.0.1:{closed}/x")), 1, "refused", nothing),
        ("a command that is not installed", "[source.doc]\nplugin = \"command\"\nbackup = [\"true\"]\ncheck = [\"no-such-program\"]\n".into(), 4, "`no-such-program` could not be run", nothing),
        ("a check that fails", "[source.doc]\nplugin = \"command\"\nbackup = [\"true\"]\ncheck = [\"sh\", \"-c\", \"echo 'wrong password' >&2; exit 9\"]\n".into(), 1, "its last words: wrong password", nothing),
        ("a check that hangs", "[source.doc]\nplugin = \"command\"\nbackup = [\"true\"]\ncheck = [\"sleep\", \"1000\"]\n".into(), 1, "10 s", nothing),
        ("a source that cannot be restored", "[source.doc]\nplugin = \"command\"\nbackup = [\"true\"]\n".into(), 0, "bk can extract it, and no more", nothing),
        ("a variable that is not set", secret("{ env = \"BK_TEST_NO_SUCH\" }"), 4, "BK_TEST_NO_SUCH", nothing),
        ("a sink that grows without end", "[sink.more]\nplugin = \"local\"\npath = \"more\"\n".into(), 0, "it grows without limit", nothing),
        ("two sinks in one place", "[sink.more]\nplugin = \"local\"\npath = \"out\"\n".into(), 0, "it is the same place as `local`", nothing),
        ("a sink that is a file", "[sink.more]\nplugin = \"local\"\npath = \"src/f\"\n".into(), 1, "src/f", nothing),
        ("a sink beneath a file", "[sink.more]\nplugin = \"local\"\npath = \"src/f/deep\"\n".into(), 1, "src/f/deep", nothing),
        ("an archive that is too old", String::new(), 9, "there is no whole archive", nothing),
        ("three partial archives", String::new(), 0, "the last 3 archives are all partial", |home| {
            home.bk(&["config", "save", "-s", "source.doc.plugin=command", "-s", "source.doc.backup=['sh', '-c', 'exit 1']"]).ended(0);
            for _ in 0..3 {
                home.bk(&["backup"]).ended(3);
            }
            home.bk(&["config", "save", "-U", "source.doc"]).ended(0);
        }),
        ("a sink to fetch from that is not", "[sink.more]\nplugin = \"local\"\npath = \"more\"\nfetch = { from = \"node\" }\n".into(), 4, "there is no other sink `node`", nothing),
        ("a hook on nothing", "[[hook]]\non = \"backup.failure\"\nrun = [\"x\"]\n".into(), 4, "did you mean `backup.failed`?", nothing),
        ("no sink at all", String::new(), 4, "no sink is set and enabled", |home| {
            home.bk(&["plugins", "disable", "local"]).ended(0);
        }),
        ("a file of secrets that is missing", secret("{ file = \"no-key\" }"), 4, "no-key", nothing),
        ("a file of secrets that others can read", secret("{ file = \"key\" }"), -1, "can be read by others (mode 0644): chmod 600", |home| {
            home.0.write("key", "c2VjcmV0");
            mode(&home.0.path("key"), 0o644);
        }),
        ("a secret in the clear", secret("\"c2VjcmV0\""), -1, "stands in the settings in the clear", nothing),
    ]
}

fn is_found((name, more, code, words, fault): &Fault) -> Outcome {
    let home = PluginHome::new(&format!("{SETTINGS}{more}"));
    home.0.write("src/f", "x");
    if more.contains("couchdb") {
        home.bk(&["plugins", "enable", "couchdb"]);
    }
    fault(&home);
    let arguments: &[&str] = if *code == 9 {
        &["check", "--max-age", "1h"]
    } else {
        &["check"]
    };
    let ran = home.bk(arguments);
    let said = format!("{}{}", ran.stdout, ran.stderr);
    // Where what is behind the fault does not answer either, its own code comes first.
    hold(*code < 0 || ran.code == *code, || {
        format!("{name}: exit {} in place of {code}\n{said}", ran.code)
    })?;
    hold(said.contains(words), || {
        format!("{name}: `{words}` is not said\n{said}")
    })
}

#[test]
fn every_fault_is_found_and_named_before_anything_is_lost() {
    let faults = faults();
    assert!(faults.len() >= 30);
    let wrong = side_by_side(&faults, is_found);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_good_site_has_nothing_to_be_said_of() {
    let home = PluginHome::new(SETTINGS);
    home.0.write("src/f", "x");
    home.bk(&["backup"]).ended(0);
    let ran = home.bk(&["check", "--max-age", "1h"]).ended(0);
    assert!(
        !ran.stdout.contains("warning") && ran.stderr.is_empty(),
        "{}{}",
        ran.stdout,
        ran.stderr
    );
}

#[test]
fn certificates_that_have_expired_or_are_anothers_are_named() {
    let Some(openssl) = bk_tests::binary::tool("openssl") else {
        return skip("openssl");
    };
    let folder = tempfile::tempdir().unwrap();
    for (case, host, until) in [
        ("expired", "127.0.0.1", 2020),
        ("another's", "elsewhere.example", 2100),
    ] {
        let mut parameters = rcgen::CertificateParams::new([host.to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2019, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let (pem, keys) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        std::fs::write(&pem, certificate.pem()).unwrap();
        std::fs::write(&keys, key.serialize_pem()).unwrap();
        let port = free_port();
        let mut server = std::process::Command::new(&openssl)
            .args([
                "s_server",
                "-quiet",
                "-www",
                "-accept",
                &format!("127.0.0.1:{port}"),
                "-cert",
            ])
            .arg(&pem)
            .arg("-key")
            .arg(&keys)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                server.try_wait().unwrap().is_none(),
                "openssl s_server ended"
            );
            std::thread::yield_now();
        }
        let more = format!(
            "[source.doc]\nplugin = \"http\"\nurl = \"https://127.0.0.1:{port}/x\"\nca = \"{}\"\n",
            pem.display()
        );
        let home = PluginHome::new(&format!("{SETTINGS}{more}"));
        home.0.write("src/f", "x");
        let ran = home.bk(&["check"]);
        server.kill().unwrap();
        server.wait().unwrap();
        assert_eq!(ran.code, 1, "{case}: {}", ran.stderr);
        let words = if case == "expired" {
            "expired"
        } else {
            "not valid for name"
        };
        assert!(ran.stderr.contains(words), "{case}: {}", ran.stderr);
    }
}

#[test]
fn a_disk_without_room_for_two_more_archives_is_named() {
    let home = PluginHome::new(SETTINGS);
    home.0.write("src/f", bk_tests::data::noise(1, 40 << 20));
    std::fs::create_dir(home.0.path("out")).unwrap();
    let script = "mount -t tmpfs -o size=200m tmpfs out && bk=$1 && $bk backup && head -c 85M /dev/zero > out/other && $bk check";
    let program = bk_tests::binary::program();
    let ran = std::process::Command::new("unshare")
        .args(["-rm", "sh", "-c", script, "sh"])
        .arg(program)
        .current_dir(home.0.path("."))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        said.contains("there is no room for two more"),
        "{said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}
