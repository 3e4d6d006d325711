//! SIGKILL at seeded moments of backup, restore, prune and fetch: what has a whole name is whole, what was pinned stays as it was, and every verb
//! ends well when it is run again.

use bk_core::archive::read_at::FileReadAt;
use bk_core::verify::{Level, verify};
use bk_tests::binary::Home;
use bk_tests::{archives_beneath, data, leases_run_out, long, seed};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const SETTINGS: &str = "format = 1
plugins = [\"files\", \"local\"]
[source.files]
path = \"src\"
[sink.out]
plugin = \"local\"
path = \"out\"
layout = \"tiers\"
keep = { last = 4, weekly = 1 }
prune = \"never\"
[sink.pc]
plugin = \"local\"
path = \"pc\"
layout = \"dates\"
keep = { last = 3 }
fetch = { from = \"out\" }
";

const VERBS: [&[&str]; 4] = [
    &["backup"],
    &[
        "restore",
        "--yes",
        "--existing",
        "replace",
        "--from",
        "out",
        "--into",
        "files=back",
    ],
    &["prune"],
    &["fetch"],
];

fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for path in std::fs::read_dir(next)
            .unwrap()
            .map(|entry| entry.unwrap().path())
        {
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_path_buf();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// What has a whole name in both sinks, with its digest.
fn digests(home: &Home) -> BTreeMap<PathBuf, [u8; 32]> {
    let paths = ["out", "pc"].map(|sink| archives_beneath(&home.path(sink)));
    let digest = |path: &PathBuf| *blake3::hash(&std::fs::read(path).unwrap()).as_bytes();
    let paths = paths.into_iter().flatten();
    paths.map(|path| (path.clone(), digest(&path))).collect()
}

/// Verifies all that is there, but for what was verified before by the same digest.
async fn all_sound(home: &Home, sound: &mut BTreeSet<[u8; 32]>, what: &str) {
    for (path, digest) in digests(home) {
        if sound.contains(&digest) {
            continue;
        }
        let read = Arc::new(FileReadAt::open(&path).unwrap());
        let verified = verify(read, None, Level::Decoded).await;
        let verified = verified.unwrap_or_else(|e| panic!("{what}: {}: {e}", path.display()));
        assert!(verified.complete, "{what}");
        sound.insert(digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_every_verb_leaves_what_the_next_run_needs() {
    let random = &mut SmallRng::seed_from_u64(seed(500));
    let home = Home::new(SETTINGS);
    for n in 0..40 {
        let name = format!("src/g{}/u{}/f{n}", n % 3, n % 10);
        home.write(&name, data::text(n, 60_000));
    }
    let run = |arguments: &[&str], what: &str| {
        for sink in ["out", "pc"] {
            leases_run_out(&home.path(sink));
        }
        let ran = home.bk(arguments);
        assert_eq!(ran.code, 0, "{what}: {arguments:?}: {}", ran.stderr);
    };
    run(&["backup", "--pin"], "at first");
    let pinned = archives_beneath(&home.path("out")).pop_first().unwrap();
    let was = std::fs::read(&pinned).unwrap();
    let mut lasts = Vec::new();
    for verb in VERBS {
        let began = Instant::now();
        run(verb, "at first");
        lasts.push(began.elapsed());
    }
    let (mut sound, mut kills) = (BTreeSet::new(), [0_usize; VERBS.len()]);
    let wanted = long(16, 500);
    for n in 0.. {
        if kills.iter().sum::<usize>() >= wanted {
            break;
        }
        let verb = random.random_range(0..VERBS.len());
        let what = format!("kill {n} in {}", VERBS[verb][0]);
        for sink in ["out", "pc"] {
            leases_run_out(&home.path(sink));
        }
        let before = digests(&home);
        let mut child = home
            .command(VERBS[verb])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + lasts[verb].mul_f64(random.random_range(0.0..1.1));
        while Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        kills[verb] += usize::from(child.try_wait().unwrap().is_none());
        let _ = child.kill();
        child.wait().unwrap();
        all_sound(&home, &mut sound, &what).await;
        // No verb both lets a name go and takes it anew: what is there still is what was there.
        for (path, digest) in digests(&home) {
            let was = before.get(&path);
            assert!(
                was.is_none_or(|was| *was == digest),
                "{what}: {} has changed",
                path.display()
            );
        }
        // In which of its places it lies is retention's business.
        let mut places = archives_beneath(&home.path("out")).into_iter();
        assert!(
            places.any(|path| std::fs::read(path).unwrap() == was),
            "{what}: what is pinned is gone or has changed"
        );
        assert!(
            archives_beneath(&home.path("out")).len() > 1,
            "{what}: the newest went"
        );
        if n % 8 == 7 {
            for verb in VERBS {
                run(verb, &what);
            }
            let (src, back) = (tree(&home.path("src")), tree(&home.path("back")));
            let differs = |name: &&PathBuf| src.get(*name) != back.get(*name);
            let different: BTreeSet<_> = src.keys().chain(back.keys()).filter(differs).collect();
            assert!(different.is_empty(), "{what}: {different:?} differ");
        }
    }
    for verb in VERBS {
        run(verb, "at last");
    }
    all_sound(&home, &mut sound, "at last").await;
    for sink in ["out", "pc"] {
        let left = std::fs::read_dir(home.path(sink)).unwrap();
        let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let parts: Vec<_> = left.filter(|name| name.starts_with(".bk-")).collect();
        assert!(parts.is_empty(), "{sink}: {parts:?}");
    }
    println!(
        "killed: backup {}, restore {}, prune {}, fetch {}",
        kills[0], kills[1], kills[2], kills[3]
    );
}
