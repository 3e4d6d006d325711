//! The units of systemd: hardened as far as they can be, and run as what they say.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Tenths: the most that a unit may be exposed.
const EXPOSURE_MAX: &str = "25";

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/packaging/systemd")
}

fn can_analyze() -> bool {
    let found = Command::new("systemd-analyze").arg("--version").output();
    if found.is_err() {
        bk_tests::skip("systemd-analyze is missing");
    }
    found.is_ok()
}

#[test]
fn units_are_hardened_and_their_commands_are_commands() {
    if !can_analyze() {
        return;
    }
    for name in ["bk-backup", "bk-verify", "bk-fetch"] {
        let service = units().join(format!("{name}.service"));
        let ran = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(format!("--threshold={EXPOSURE_MAX}"))
            .arg(&service)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        let overall = said.lines().rfind(|line| line.contains("Overall"));
        println!("{}", overall.unwrap_or_default());
        assert!(ran.status.success() && overall.is_some(), "{name}: {said}");

        // The command line is one that this program takes.
        let text = std::fs::read_to_string(&service).unwrap();
        let command = text
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="))
            .unwrap();
        let words: Vec<&str> = command.split(' ').skip(1).collect();
        assert_eq!(words[..2], ["--config", "/etc/bk/plugins.toml"]);
        let home = bk_tests::binary::Home::files();
        let ran = home.bk(&[&words[2..], &["--help"]].concat());
        assert_eq!(ran.code, 0, "{command}: {}", ran.stderr);
    }
}

#[test]
fn timers_are_dates_and_make_up_for_what_was_missed() {
    if !can_analyze() {
        return;
    }
    for name in ["bk-backup", "bk-verify", "bk-fetch"] {
        let text = std::fs::read_to_string(units().join(format!("{name}.timer"))).unwrap();
        let when = text
            .lines()
            .find_map(|line| line.strip_prefix("OnCalendar="))
            .unwrap();
        let ran = Command::new("systemd-analyze")
            .args(["calendar", when])
            .output()
            .unwrap();
        assert!(ran.status.success(), "{name}: {when}");
        for line in ["Persistent=true", "RandomizedDelaySec=30min"] {
            assert!(text.contains(line), "{name}: {line}");
        }
    }
}
