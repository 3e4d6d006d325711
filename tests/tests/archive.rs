//! The format: other tools read it, no change of a byte goes unseen, evil archives write nothing outside.

use bk_core::archive::read_at::ReadAt;
use bk_core::archive::tail::Opened;
use bk_core::error::ErrorKind;
use bk_core::restore::Request;
use bk_core::source::{Kind, Meta, Stage};
use bk_core::verify::{Level, verify};
use bk_tests::binary::{Home, tool};
use bk_tests::engine::Site;
use bk_tests::fakes::{FakeSource, MemorySink};
use bk_tests::{data, forge, long, seed, skip};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn odd_home() -> (Home, PathBuf) {
    let home = Home::files();
    data::odd_tree(&home.path("src"));
    home.bk(&["backup"]).ended(0);
    let archive = home.path("out").join(&home.archives()[0]);
    (home, archive)
}

#[test]
fn tar_xz_seven_zip_python_and_sha256sum_read_what_bk_writes() {
    let (home, archive) = odd_home();
    let unpacked = home.path("unpacked");
    std::fs::create_dir(&unpacked).unwrap();

    run(Command::new("xz").arg("-t").arg(&archive));
    let list = String::from_utf8(run(Command::new("xz")
        .args(["--robot", "-l"])
        .arg(&archive)))
    .unwrap();
    assert!(
        list.lines()
            .any(|line| line.starts_with("file\t1\t") && line.contains("CRC64")),
        "{list}"
    );
    run(Command::new("sha256sum")
        .arg("-c")
        .arg(format!(
            "{}.sha256",
            archive.file_name().unwrap().to_str().unwrap()
        ))
        .current_dir(home.path("out")));

    // GNU tar: every path, mode, owner, time and byte.
    run(Command::new("tar")
        .args(["--numeric-owner", "-xpJf"])
        .arg(&archive)
        .arg("-C")
        .arg(&unpacked));
    let (mut expected, mut got) = (
        data::digest(&home.path("src")),
        data::digest(&unpacked.join("files")),
    );
    // A plain extraction knows hard links inside a unit; across units the bodies stand apart.
    for tree in [&mut expected, &mut got] {
        if let Some(what) = tree.get_mut(&b"links/there/third"[..]) {
            *what = what.split(" first ").next().unwrap().to_owned();
        }
        // GNU tar gives a folder its time when it leaves it; large files, and links with `..` that it makes last, come after that.
        tree.remove(&b"sizes/big"[..]);
        tree.remove(&b"links/there"[..]);
    }
    assert_eq!(data::difference(&expected, &got), None);

    // Python: the same names and bodies.
    let script = "import sys,tarfile,lzma,hashlib,os\nt=tarfile.open(fileobj=lzma.open(sys.argv[1]),mode='r|')\nfor m in t:\n    if m.isreg(): sys.stdout.buffer.write(os.fsencode(m.name)+b'\\0'+hashlib.sha256(t.extractfile(m).read()).hexdigest().encode()+b'\\0')\n";
    let seen = run(Command::new("python3").args(["-c", script]).arg(&archive));
    let seen: Vec<&[u8]> = seen.split(|b| *b == 0).collect();
    let mut files = 0;
    for pair in seen.chunks_exact(2) {
        let Some(name) = pair[0].strip_prefix(b"files/") else {
            continue;
        };
        let path = home.path("src").join(OsStr::from_bytes(name));
        assert_eq!(
            pair[1],
            sha256(&std::fs::read(path).unwrap()).as_bytes(),
            "{}",
            String::from_utf8_lossy(name)
        );
        files += 1;
    }
    assert!(files == 16, "Python saw {files} files");

    // 7-Zip: the same tar, byte for byte.
    let Some(seven) = tool("7zz").or_else(|| tool("7z")) else {
        return skip("7-Zip");
    };
    let by_seven = run(Command::new(seven).args(["x", "-so"]).arg(&archive));
    let by_xz = run(Command::new("xz").args(["-dc"]).arg(&archive));
    assert!(
        by_seven == by_xz,
        "7-Zip gives {} bytes, xz {}",
        by_seven.len(),
        by_xz.len()
    );
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    bk_core::archive::writer::hex(&sha2::Sha256::digest(bytes))
}

#[test]
fn the_golden_archive_still_restores() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let home = Home::files();
    home.bk(&["verify", golden.join("bk-xz-1.tar.xz").to_str().unwrap()])
        .ended(0);
    home.bk(&[
        "restore",
        "--yes",
        golden.join("bk-xz-1.tar.xz").to_str().unwrap(),
    ])
    .ended(0);
    let expected = std::fs::read_to_string(golden.join("bk-xz-1.txt")).unwrap();
    assert_eq!(data::digest_text(&home.path("src")), expected);
}

/// An archive of a little under 64 KiB with three groups.
async fn small_archive(salt: u64) -> (Site, FakeSource, Bytes) {
    let mut store = bk_tests::fakes::Store::new();
    for (n, (group, unit)) in [("a", "one"), ("a", "two"), ("b", "one"), ("c", "one")]
        .into_iter()
        .enumerate()
    {
        let body = data::noise(salt + n as u64, 13_000);
        store.insert(
            (group.into(), unit.into()),
            [
                (format!("{group}/{unit}/body"), body.into()),
                (
                    format!("{group}/{unit}/words"),
                    data::text(salt + n as u64, 900).into(),
                ),
            ]
            .into(),
        );
    }
    let source = FakeSource::new(store);
    let memory = MemorySink::default();
    let site = Site::default()
        .source("it", source.clone())
        .sink("memory", memory.clone());
    let report = site.backup().await;
    assert!(report.complete, "{:?}", report.causes);
    let bytes = memory.archive(&memory.names()[0]).unwrap();
    assert!(
        bytes.len() <= 64 << 10 && bytes.len() > 50_000,
        "{} bytes",
        bytes.len()
    );
    (site, source, bytes)
}

/// Verify, a full restore and a restore of one group must all refuse these bytes as corrupt.
async fn all_refuse(site: &Site, source: &FakeSource, bytes: Bytes, what: &dyn Fn() -> String) {
    let read: Arc<dyn ReadAt> = Arc::new(bytes.clone());
    let error = verify(read, None, Level::Decoded)
        .await
        .expect_err(&format!("verify took {}", what()));
    assert!(
        matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Unsupported),
        "{}: {error}",
        what()
    );
    for only in [&[][..], &["it/b".to_owned()]] {
        let memory = MemorySink::default();
        memory.put("backup.2026-08-22.tar.xz", bytes.clone());
        source.store.lock().unwrap().clear();
        let selection = bk_core::selector::Selection::parse(only, &[]).unwrap();
        let restored = Site {
            sinks: Site::default().sink("memory", memory).sinks,
            ..site.clone()
        }
        .restore(Request {
            selection,
            file: None,
            ..Request::default()
        })
        .await;
        // A damaged archive is not listed as an archive: that it is refused is what counts; what was opened is refused as corrupt.
        let refused = match &restored {
            Err(error) => matches!(error.kind, ErrorKind::Corrupt | ErrorKind::NotFound),
            Ok(report) => report
                .causes
                .iter()
                .any(|c| c.class == bk_core::report::Class::Corrupt),
        };
        assert!(
            refused,
            "a restore of {only:?} took {}: {:?}",
            what(),
            restored.map(|r| r.causes)
        );
        assert!(
            source.store.lock().unwrap().is_empty(),
            "a restore of {only:?} wrote from {}",
            what()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_changed_byte_truncation_and_addition_is_refused() {
    let (site, source, bytes) = small_archive(1).await;
    let step = long(97, 1);
    // Opening checks every stored byte of an archive this small; a whole verify and restores are tried on a part of them.
    for at in 0..bytes.len() {
        for mask in [0x01, 0x80] {
            let mut changed = bytes.to_vec();
            changed[at] ^= mask;
            let changed = Bytes::from(changed);
            if at % step == 0 || at < 40 || at + 120 > bytes.len() {
                all_refuse(&site, &source, changed, &|| {
                    format!("byte {at} changed by {mask:#x}")
                })
                .await;
            } else {
                let error = Opened::open(Arc::new(changed))
                    .await
                    .err()
                    .unwrap_or_else(|| panic!("byte {at} changed by {mask:#x} was taken"));
                assert_eq!(error.kind, ErrorKind::Corrupt, "byte {at}: {error}");
            }
        }
    }
    for len in (0..bytes.len()).step_by(long(61, 1)) {
        let error = Opened::open(Arc::new(bytes.slice(..len)))
            .await
            .err()
            .unwrap_or_else(|| panic!("cut to {len} bytes it was taken"));
        assert_eq!(error.kind, ErrorKind::Corrupt);
    }
    for added in [&b"\0"[..], b"\0\0\0\0", b"12345", &bytes] {
        all_refuse(&site, &source, [&bytes[..], added].concat().into(), &|| {
            format!("{} bytes added", added.len())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forgeries_that_were_sealed_again_are_refused_until_the_manifests_own_digest() {
    let seed = seed(7);
    let mut random = SmallRng::seed_from_u64(seed);
    let (site, source, bytes) = small_archive(1).await;
    let (_, _, other) = small_archive(100).await;
    let blocks = forge::raw_blocks(&bytes);
    let others = forge::raw_blocks(&other);
    assert!(
        Opened::open(Arc::new(forge::seal_again(&blocks)))
            .await
            .is_ok(),
        "sealing again without a change must change nothing that counts"
    );

    // One raw byte of any member, index piece or the manifest.
    for n in 0..blocks.len() {
        for _ in 0..long(6, 300) {
            let mut forged = blocks.clone();
            let at = random.random_range(0..forged[n].len());
            forged[n][at] ^= 1 << random.random_range(0..8);
            all_refuse(&site, &source, forge::seal_again(&forged), &|| {
                format!("byte {at} of block {n}")
            })
            .await;
        }
    }
    // Any number in index, units or manifest.
    for n in blocks.len() - 2..blocks.len() {
        let digits: Vec<usize> = (0..blocks[n].len())
            .filter(|at| blocks[n][*at].is_ascii_digit())
            .collect();
        for at in digits.iter().step_by(long(digits.len() / 60 + 1, 1)) {
            let mut forged = blocks.clone();
            forged[n][*at] = b'0' + (forged[n][*at] - b'0' + 1) % 10;
            all_refuse(&site, &source, forge::seal_again(&forged), &|| {
                format!("digit at {at} of block {n}")
            })
            .await;
        }
    }
    // Members dropped, doubled, swapped, or taken from another archive.
    for n in 0..blocks.len() {
        let mut dropped = blocks.clone();
        dropped.remove(n);
        all_refuse(&site, &source, forge::seal_again(&dropped), &|| {
            format!("block {n} dropped")
        })
        .await;
        let mut doubled = blocks.clone();
        doubled.insert(n, blocks[n].clone());
        all_refuse(&site, &source, forge::seal_again(&doubled), &|| {
            format!("block {n} doubled")
        })
        .await;
        if n + 1 < blocks.len() {
            let mut swapped = blocks.clone();
            swapped.swap(n, n + 1);
            all_refuse(&site, &source, forge::seal_again(&swapped), &|| {
                format!("blocks {n} and {} swapped", n + 1)
            })
            .await;
        }
        if n < others.len() {
            let mut taken = blocks.clone();
            taken[n] = others[n].clone();
            all_refuse(&site, &source, forge::seal_again(&taken), &|| {
                format!("block {n} of another archive")
            })
            .await;
        }
    }
}

fn file(path: &str, body: &[u8]) -> Vec<u8> {
    bk_core::archive::tar::member(
        &bk_core::name::MemberPath::new(path).unwrap(),
        &Meta {
            mode: 0o644,
            ..Meta::default()
        },
        body,
    )
}

fn typed(path: &str, kind: Kind, mode: u32) -> Vec<u8> {
    bk_core::archive::tar::member(
        &bk_core::name::MemberPath::new(path).unwrap(),
        &Meta {
            kind,
            mode,
            ..Meta::default()
        },
        b"",
    )
}

/// A member whose name no checked path can have: written into a good header, sum made right.
fn named(name: &[u8]) -> Vec<u8> {
    let mut tar = file("files/x", b"evil");
    tar[..100].fill(0);
    tar[..name.len()].copy_from_slice(name);
    mend(&mut tar);
    tar
}

fn mend(tar: &mut [u8]) {
    tar[148..156].copy_from_slice(b"        ");
    let sum: u32 = tar[..512].iter().map(|b| u32::from(*b)).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn evil_archives_write_nothing_outside_and_are_refused() {
    let link =
        |path: &str, target: &str| typed(path, Kind::Symlink(target.as_bytes().to_vec()), 0o777);
    let mut long_length = file("files/g/u/long", b"x");
    long_length[124..136].copy_from_slice(b"77777777777\0");
    mend(&mut long_length);
    let mut hard_out = typed(
        "files/g/u/h",
        Kind::Hardlink(bk_core::name::MemberPath::new("files/g/u/x").unwrap()),
        0o644,
    );
    hard_out[157..257].fill(0);
    hard_out[157..157 + 22].copy_from_slice(b"files/../../../outside");
    mend(&mut hard_out);
    let bomb = vec![0; 300 << 20];
    // Name, tar, members and bytes that the index declares, whether extract must refuse it whole.
    let evil: Vec<(&str, Vec<u8>, u64, u64)> = vec![
        ("dot dot", named(b"files/../../outside"), 1, 4),
        ("absolute", named(b"/tmp/bk-evil-outside"), 1, 4),
        (
            "link out, then a file through it",
            [
                link("files/g/u/l", "../../../.."),
                file("files/g/u/l/outside", b"evil"),
            ]
            .concat(),
            2,
            4,
        ),
        ("link out alone", link("files/g/u/l", "/etc/passwd"), 1, 0),
        ("hard link out", hard_out, 1, 0),
        (
            "device",
            typed("files/g/u/null", Kind::Other(b'3'), 0o666),
            1,
            0,
        ),
        (
            "duplicate",
            [file("files/g/u/x", b"one"), file("files/g/u/x", b"two")].concat(),
            2,
            6,
        ),
        ("ratio", file("files/g/u/zeros", &bomb), 1, 300 << 20),
        (
            "count",
            [
                file("files/g/u/a", b"1"),
                file("files/g/u/b", b"2"),
                file("files/g/u/c", b"3"),
            ]
            .concat(),
            1,
            1,
        ),
        ("length overflow", long_length, 1, 8_589_934_591),
        ("outside of its instance", file("other/x", b"evil"), 1, 4),
        (
            "cut off",
            file("files/g/u/x", &data::text(1, 5000))[..2048].to_vec(),
            1,
            5000,
        ),
    ];
    for (name, tar, members, bytes) in evil {
        let stage = if bytes > 16 << 20 {
            Stage::Large
        } else {
            Stage::Data
        };
        let archive = forge::sealed(tar, stage, members, bytes).await;
        let home = Home::files();
        home.write("evil.tar.xz", &archive);
        std::fs::create_dir(home.path("in")).unwrap();
        for verb in [
            &["extract", "--into", "in/side", "evil.tar.xz"][..],
            &["restore", "--yes", "evil.tar.xz"],
        ] {
            if name == "ratio" && verb[0] == "restore" {
                // A restore writes what its index declares and its digests vouch for; extract trusts less.
                continue;
            }
            let began = std::time::Instant::now();
            let (ran, peak) = home.bk_watched(verb);
            assert!(
                matches!(ran.code, 3 | 6 | 7),
                "{name}: {verb:?} ended with {}\n{}",
                ran.code,
                ran.stderr
            );
            assert!(peak <= 256, "{name}: {verb:?} took {peak} MiB");
            println!(
                "{name}: {} refused in {:?}, peak {peak} MiB",
                verb[0],
                began.elapsed()
            );
        }
        let outside: Vec<_> = ["outside", "in/outside"]
            .into_iter()
            .filter(|p| home.path(p).exists())
            .collect();
        assert!(
            outside.is_empty()
                && !Path::new("/tmp/bk-evil-outside").exists()
                && !home.folder_above("outside"),
            "{name} wrote {outside:?}"
        );
        let link_made =
            home.path("in/side/files/g/u/l").is_symlink() || home.path("src/g/u/l").is_symlink();
        assert!(!link_made, "{name}: a link that leads out was written");
    }
    // These two are odd, not evil: they come back, where they belong.
    for name in [&b"files/g/new\nline"[..], b"files/g/not\xffutf8"] {
        let home = Home::files();
        home.write(
            "odd.tar.xz",
            forge::sealed(named(name), Stage::Data, 1, 4).await,
        );
        home.bk(&["extract", "--into", "in", "odd.tar.xz"]).ended(0);
        assert_eq!(
            std::fs::read_dir(home.path("in/files/g")).unwrap().count(),
            1
        );
    }
    // Setuid is given back only when asked for.
    let tar = {
        let mut tar = file("files/g/u/suid", b"x");
        tar[100..108].copy_from_slice(b"0004755\0");
        mend(&mut tar);
        tar
    };
    let home = Home::files();
    home.write("suid.tar.xz", forge::sealed(tar, Stage::Data, 1, 1).await);
    home.bk(&["extract", "--into", "in", "suid.tar.xz"])
        .ended(0);
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &str| {
        std::fs::metadata(home.path(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!(mode("in/files/g/u/suid"), 0o755);
    home.bk(&["extract", "--into", "in2", "--keep-setuid", "suid.tar.xz"])
        .ended(0);
    assert_eq!(mode("in2/files/g/u/suid"), 0o4755);
}
