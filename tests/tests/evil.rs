//! Tars of others that mean harm: names, links, types and headers that lead elsewhere, and bombs. Nothing is written outside, memory stays small, and
//! what comes back is among what GNU tar or Python list.

use bk_tests::binary::Home;
use bk_tests::long;
use bk_tests::mongo_fake::{Fake, Instants};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Peak memory of a restore, whatever it reads.
const MEMORY_MAX_MIB: u64 = 256;
/// Where absolute names lead.
const OUTSIDE: &str = "/tmp/bk-evil-outside";

/// Files below a folder, and links as `LINK -> TARGET`.
fn entries(folder: &Path, root: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let name = path
            .strip_prefix(root)
            .unwrap()
            .to_string_lossy()
            .into_owned();
        if meta.is_symlink() {
            found.insert(format!(
                "{name} -> {}",
                std::fs::read_link(&path).unwrap().display()
            ));
        } else if meta.is_dir() {
            entries(&path, root, found);
        } else {
            assert!(meta.is_file(), "{name} is no file");
            found.insert(name);
        }
    }
}

fn inside(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    entries(folder, folder, &mut found);
    found
}

/// What others list of it, without a leading `./` and trailing `/`.
fn listed(tar: &Path) -> BTreeSet<String> {
    let names = std::fs::read_to_string(
        tar.to_str()
            .unwrap()
            .replace(".tar.xz", ".tar")
            .replace(".tar", ".names"),
    );
    let python: Option<Vec<String>> = names
        .ok()
        .and_then(|text| serde_json::from_str(&text).unwrap_or(None));
    let gnu = Command::new("tar")
        .args(["--quoting-style=literal", "-tPf"])
        .arg(tar)
        .output()
        .unwrap();
    let gnu = String::from_utf8_lossy(&gnu.stdout).into_owned();
    python
        .unwrap_or_default()
        .into_iter()
        .chain(gnu.lines().map(str::to_owned))
        .map(|name| {
            name.split('/')
                .filter(|part| !part.is_empty() && *part != ".")
                .collect::<Vec<_>>()
                .join("/")
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tars_that_mean_harm_write_nothing_outside_and_stay_small() {
    let made = tempfile::tempdir().unwrap();
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("evil/make");
    let scale = long(8, 512).to_string();
    assert!(
        Command::new("python3")
            .arg(script)
            .arg(made.path())
            .arg(&scale)
            .status()
            .unwrap()
            .success()
    );
    let mut tars: Vec<PathBuf> = std::fs::read_dir(made.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains(".tar"))
        .collect();
    tars.sort();
    let bombs = tars
        .iter()
        .filter(|path| path.to_string_lossy().contains("bomb-"))
        .count();
    println!(
        "{} tars, {bombs} of them bombs of up to {scale} MiB",
        tars.len()
    );
    assert!(
        tars.len() - bombs >= 60 && bombs >= 20,
        "{} and {bombs}",
        tars.len()
    );
    let fake = Fake::start(Instants::None).await;
    let mut wrong = Vec::new();
    for tar in &tars {
        let name = tar.file_name().unwrap().to_string_lossy().into_owned();
        fake.wipe();
        let home = Home::new(&format!(
            "format = 1\nplugins = [\"caddy\", \"mongodb\", \"local\"]\n[source.caddy]\npath = \"in/side/caddy\"\n[source.mongodb]\nuri = \"{}\"\n[sink.local]\npath = \"out\"\n",
            fake.uri()
        ));
        home.write("in/side/caddy/there.txt", "there");
        home.write("in/outside.txt", "not yours");
        let began = Instant::now();
        let (ran, mib) = home.bk_watched(&["restore", tar.to_str().unwrap(), "--yes"]);
        let took = began.elapsed();
        let last = ran.stderr.lines().last().unwrap_or_default().to_owned();
        println!(
            "{name}: exit {} in {took:.2?}, {mib} MiB: {}",
            ran.code,
            last.chars().take(120).collect::<String>()
        );
        let mut complain =
            |why: String| wrong.push(format!("{name}: {why} (exit {}: {last})", ran.code));
        if !(0..=9).contains(&ran.code) {
            complain("it ended in no way that there is".into());
        }
        if mib > MEMORY_MAX_MIB {
            complain(format!("it took {mib} MiB"));
        }
        if Path::new(OUTSIDE).exists() {
            std::fs::remove_file(OUTSIDE).unwrap();
            complain("it wrote outside, by an absolute name".into());
        }
        let around = inside(&home.path("in"));
        let kept: Vec<&String> = around
            .iter()
            .filter(|path| !path.starts_with("side/caddy/"))
            .collect();
        if kept != ["outside.txt"] || home.folder_above("outside") || home.path("outside").exists()
        {
            complain(format!("it wrote outside: {kept:?}"));
        }
        let others = listed(tar);
        for path in inside(&home.path("in/side/caddy")) {
            let plain = path.split(" -> ").next().unwrap();
            if let Some((_, to)) = path.split_once(" -> ")
                && (to.starts_with('/') || to.contains(".."))
            {
                complain(format!("a link leads out: {path}"));
            }
            let as_listed = format!("caddy/{plain}");
            let own = ["there.txt", ".bk_unfinished_restore"];
            if !own.contains(&plain)
                && path.is_ascii()
                && !plain.contains('\n')
                && !others.contains(&as_listed)
            {
                complain(format!(
                    "`{as_listed}` is listed neither by tar nor by Python"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}
