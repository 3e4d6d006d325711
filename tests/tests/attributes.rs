//! What a file has beside its bytes: attributes, ACLs, capabilities, holes. They come back equal, by `bk` and by tar.

use bk_tests::binary::{Home, Ran};
use bk_tests::data;
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const SEGMENT: usize = 300_000;

/// An ACL as the kernel keeps it: owner, a user, group, mask, others.
fn acl(user: u32) -> Vec<u8> {
    let nobody = u32::MAX;
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 7, nobody),
        (0x02, 5, user),
        (0x04, 5, nobody),
        (0x10, 5, nobody),
        (0x20, 0, nobody),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// A program that may bind to ports below 1024, as the kernel keeps that.
fn capability() -> Vec<u8> {
    [0x0200_0001_u32, 1 << 10, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

fn set(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty())
        .unwrap_or_else(|e| panic!("{name} of {}: {e}", path.display()));
}

fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 4096];
    let len = llistxattr(path, &mut names[..]).unwrap();
    let mut found = BTreeMap::new();
    for name in names[..len]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
    {
        let name = std::str::from_utf8(name).unwrap().to_owned();
        let mut value = vec![0; 4096];
        let len = lgetxattr(path, &*name, &mut value[..]).unwrap();
        value.truncate(len);
        found.insert(name, value);
    }
    found.remove("security.selinux");
    found
}

fn with_holes(path: &Path, segments: &[u64], len: u64) {
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    for (n, at) in segments.iter().enumerate() {
        let body = data::noise(n as u64 + 1, SEGMENT);
        let fits = SEGMENT.min((len - at) as usize);
        file.write_all_at(&body[..fits], *at).unwrap();
    }
}

/// Bytes of a file as the sum of its digest and its length: files here may be longer than memory.
fn digest(path: &Path) -> String {
    let out = Command::new("sha256sum").arg(path).output().unwrap();
    assert!(out.status.success());
    String::from_utf8_lossy(&out.stdout)[..64].to_owned()
}

/// Whether this account and file system can have such attributes.
fn can_have(all: &[(&str, &[u8])]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("probe");
    std::fs::write(&file, "").unwrap();
    let refused = all.iter().find_map(|(name, value)| {
        let set = lsetxattr(&file, *name, value, XattrFlags::empty());
        set.err().map(|error| format!("{name}: {error}"))
    });
    if let Some(why) = &refused {
        bk_tests::skip(&format!("attributes cannot be had here: {why}"));
    }
    refused.is_none()
}

/// What every owner of a file may give it, on a disk.
fn can_have_attributes() -> bool {
    can_have(&[("user.probe", b"x"), ("system.posix_acl_access", &acl(10))])
}

/// What only root may.
fn can_have_those_of_root() -> bool {
    can_have(&[
        ("trusted.probe", b"x"),
        ("security.capability", &capability()),
    ])
}

fn home() -> Home {
    let home = Home::files();
    for folder in ["src/a/plain", "src/a/shared"] {
        std::fs::create_dir_all(home.path(folder)).unwrap();
    }
    home.write("src/a/plain/attributes", "bytes");
    home.write("src/a/plain/program", "#!/bin/sh\n");
    home.write("src/a/plain/nothing", "bytes");
    home.write("src/a/shared/access", "bytes");
    home
}

fn give_attributes(home: &Home) {
    let path = |name: &str| home.path(name);
    let long: Vec<u8> = (0..=255).cycle().take(2000).collect();
    set(
        &path("src/a/plain/attributes"),
        "user.comment",
        "ж = %\"".as_bytes(),
    );
    set(&path("src/a/plain/attributes"), "user.lines", b"one\ntwo\n");
    set(
        &path("src/a/plain/attributes"),
        "user.a=b%c",
        b"named oddly",
    );
    set(&path("src/a/plain/attributes"), "user.empty", b"");
    set(&path("src/a/plain/attributes"), "user.bytes", &long);
    set(&path("src/a/plain"), "user.of.folder", b"value");
    // 10 is a line end.
    set(
        &path("src/a/shared/access"),
        "system.posix_acl_access",
        &acl(10),
    );
    set(&path("src/a/shared"), "system.posix_acl_access", &acl(2570));
    set(&path("src/a/shared"), "system.posix_acl_default", &acl(10));
}

fn give_those_of_root(home: &Home) {
    let program = home.path("src/a/plain/program");
    set(&program, "security.capability", &capability());
    set(&program, "trusted.mark", b"root alone");
}

fn add_holes(home: &Home) {
    let path = |name: &str| home.path(name);
    std::fs::create_dir_all(path("src/b/holes")).unwrap();
    let mib = 1 << 20;
    with_holes(&path("src/b/holes/begin"), &[0], 40 * mib);
    with_holes(
        &path("src/b/holes/middle"),
        &[7 * mib + 4096, 21 * mib],
        60 * mib + 17,
    );
    with_holes(
        &path("src/b/holes/end"),
        &[30 * mib - SEGMENT as u64],
        30 * mib,
    );
    with_holes(&path("src/b/holes/nothing"), &[], 10 * mib + 1);
    with_holes(&path("src/b/holes/huge"), &[5 << 30], (6 << 30) + 3);
    // More than 16 MiB of bytes, and holes.
    let many: Vec<u64> = (0..70).map(|n| n * mib).collect();
    with_holes(&path("src/b/holes/large"), &many, 80 * mib);
    std::fs::hard_link(path("src/b/holes/middle"), path("src/b/holes/twin")).unwrap();
    std::fs::hard_link(path("src/b/holes/middle"), path("src/a/twin")).unwrap();
}

const NAMES: [&str; 7] = [
    "a",
    "a/plain",
    "a/plain/attributes",
    "a/plain/program",
    "a/plain/nothing",
    "a/shared",
    "a/shared/access",
];

const WITH_HOLES: [&str; 7] = [
    "b/holes/begin",
    "b/holes/middle",
    "b/holes/end",
    "b/holes/nothing",
    "b/holes/large",
    "b/holes/twin",
    "a/twin",
];

fn good(ran: Ran) -> Ran {
    assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
    ran
}

fn archive(home: &Home) -> PathBuf {
    let names = std::fs::read_dir(home.path("out")).unwrap();
    let mut names = names.map(|entry| entry.unwrap().path());
    names
        .find(|path| path.extension().is_some_and(|e| e == "xz"))
        .unwrap()
}

fn compare(home: &Home, names: &[&str], without: &[&str]) {
    for name in names {
        let (one, two) = (home.path("src").join(name), home.path("back").join(name));
        let mut expected = attributes(&one);
        expected.retain(|name, _| !without.contains(&name.as_str()));
        assert_eq!(attributes(&two), expected, "{name}");
        let (one_meta, two_meta) = (one.metadata().unwrap(), two.metadata().unwrap());
        assert_eq!(one_meta.mode(), two_meta.mode(), "{name}");
        if one_meta.is_file() {
            assert_eq!(one_meta.len(), two_meta.len(), "{name}");
            assert_eq!(digest(&one), digest(&two), "{name}");
            // File systems round up a little here and there.
            let (had, has) = (one_meta.blocks() * 512, two_meta.blocks() * 512);
            assert!(
                has <= had + (64 << 10),
                "{name}: {has} bytes on disk, {had} before"
            );
        }
    }
}

/// Archived, restored, and archived and restored again over what came back.
fn come_back_twice(home: &Home, names: &[&str]) {
    for _ in 0..2 {
        good(home.bk(&["backup"]));
        good(home.bk(&[
            "restore",
            "--yes",
            "--existing",
            "replace",
            "--keep-setuid",
            "--into",
            "files=back",
        ]));
        compare(home, names, &[]);
    }
}

#[test]
fn holes_and_second_names_come_back_equal() {
    let home = home();
    add_holes(&home);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        home.path("src/a/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(home.path("src/a/socket")).unwrap();
    let ran = good(home.bk(&["backup"]));
    assert!(
        ran.stderr
            .contains("2 sockets, pipes or devices were left out"),
        "{}",
        ran.stderr
    );
    let stored = archive(&home).metadata().unwrap().len();
    assert!(
        stored < 30 << 20,
        "{stored} bytes for 22 MiB of noise and some holes"
    );
    good(home.bk(&["verify"]));

    good(home.bk(&["restore", "--yes", "--into", "files=back"]));
    compare(&home, &WITH_HOLES, &[]);
    let huge = home.path("back/b/holes/huge").metadata().unwrap();
    assert_eq!(huge.len(), (6 << 30) + 3);
    assert!(huge.blocks() * 512 < 1 << 20, "{} blocks", huge.blocks());
    let inode = |name: &str| home.path(name).metadata().unwrap().ino();
    assert_eq!(inode("back/b/holes/middle"), inode("back/b/holes/twin"));
    assert_eq!(inode("back/b/holes/middle"), inode("back/a/twin"));

    good(home.bk(&["extract", "--into", "out2"]));
    let begin = home.path("out2/files/b/holes/begin").metadata().unwrap();
    assert!(begin.blocks() * 512 < 1 << 20);
    come_back_twice(&home, &WITH_HOLES);
}

#[test]
fn attributes_and_acls_come_back_equal() {
    if !can_have_attributes() {
        return;
    }
    let home = home();
    give_attributes(&home);
    come_back_twice(&home, &NAMES);
}

#[test]
fn attributes_of_root_and_capabilities_come_back_equal() {
    if !can_have_those_of_root() {
        return;
    }
    let home = home();
    give_those_of_root(&home);
    come_back_twice(&home, &NAMES);
    tar_gives_back(&home, &NAMES);
}

#[test]
fn a_capability_comes_back_only_where_that_is_asked() {
    if !can_have_those_of_root() {
        return;
    }
    let home = home();
    give_those_of_root(&home);
    good(home.bk(&["backup"]));
    good(home.bk(&["restore", "--yes", "--into", "files=back"]));
    compare(&home, &NAMES, &["security.capability"]);
    good(home.bk(&["extract", "--into", "out2"]));
    let program = home.path("out2/files/a/plain/program");
    assert!(!attributes(&program).contains_key("security.capability"));
}

#[test]
fn what_a_folders_default_acl_gives_to_new_files_is_not_theirs() {
    if !can_have_attributes() {
        return;
    }
    let home = home();
    give_attributes(&home);
    good(home.bk(&["backup"]));
    let back = home.path("back/a/plain");
    std::fs::create_dir_all(&back).unwrap();
    set(&back, "system.posix_acl_default", &acl(33));
    set(&back, "user.stays.not", b"x");
    good(home.bk(&["restore", "--yes", "--keep-setuid", "--into", "files=back"]));
    compare(&home, &NAMES, &[]);
}

#[test]
fn tar_gives_back_the_same_attributes_and_holes() {
    if !can_have_attributes() {
        return;
    }
    let home = home();
    give_attributes(&home);
    add_holes(&home);
    good(home.bk(&["backup"]));
    tar_gives_back(&home, &[NAMES, WITH_HOLES].concat());
}

fn tar_gives_back(home: &Home, names: &[&str]) {
    let into = home.path("tar");
    std::fs::create_dir(&into).unwrap();
    let ran = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "-xJf"])
        .arg(archive(home))
        .current_dir(&into)
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    for name in names {
        let (one, two) = (home.path("src").join(name), into.join("files").join(name));
        if one.is_file() {
            assert_eq!(digest(&one), digest(&two), "{name}");
            assert!(
                two.metadata().unwrap().blocks() <= one.metadata().unwrap().blocks() + 128,
                "{name}"
            );
        }
        let (expected, found) = (attributes(&one), attributes(&two));
        for (attribute, value) in expected {
            // Those with line ends in them GNU tar does not read; libarchive and bk do.
            if !value.contains(&b'\n')
                && !attribute.contains('%')
                && attribute != "system.posix_acl_default"
            {
                assert_eq!(found.get(&attribute), Some(&value), "{attribute} of {name}");
            }
        }
    }
}
