//! Seeded bodies and trees, and digests to compare them by.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

const PAGE_BYTES: usize = 1 << 20;

/// Text of a few hundred words: it compresses as dumps do.
pub fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(seed);
    let words: Vec<String> = (0..400)
        .map(|_| {
            (0..random.random_range(2..9))
                .map(|_| random.random_range(b'a'..=b'z') as char)
                .collect()
        })
        .collect();
    let mut out = Vec::with_capacity(len + 16);
    while out.len() < len {
        // A page of fresh words is enough; behind it the pages come again, each numbered.
        if out.len() > PAGE_BYTES {
            let page = out[..PAGE_BYTES.min(len - out.len())].to_vec();
            out.extend_from_slice(format!("page {} ", out.len()).as_bytes());
            out.extend_from_slice(&page);
            continue;
        }
        out.extend_from_slice(words[random.random_range(0..words.len())].as_bytes());
        out.extend_from_slice(format!(" {} ", random.random_range(0..100_000)).as_bytes());
    }
    out.truncate(len);
    out
}

/// Bytes of which every page differs from those of another seed, and that a codec is quickly done with.
pub fn pages(seed: u64, len: usize) -> Vec<u8> {
    let page = noise(seed, 4096);
    page.iter().copied().cycle().take(len).collect()
}

/// Bytes that do not shrink.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    SmallRng::seed_from_u64(seed).fill(&mut out[..]);
    out
}

/// A tree with every kind of name, link, mode and time that a file source must carry.
pub fn odd_tree(root: &Path) {
    let write = |path: &[u8], body: &[u8]| {
        let path = root.join(OsString::from_vec(path.to_vec()));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, body).unwrap();
    };
    let deep = ["d".repeat(100), "e".repeat(100), "f".repeat(96)].join("/");
    write(
        format!("long/{deep}").as_bytes(),
        b"three hundred characters",
    );
    let long_line = format!("long/{}/{}\nline end", "d".repeat(100), "e".repeat(100));
    write(long_line.as_bytes(), b"long, with a line end");
    write("кириллица/сервер/файл.txt".as_bytes(), "привет".as_bytes());
    write(b"odd/names/new\nline", b"newline");
    write(b"odd/names/back\\slash", b"backslash");
    write(b"odd/names/not\xff\xfeutf8", b"not utf-8");
    write(b"odd/names/ space ", b"space");
    write(b"loose", b"a loose file");
    write(b"odd/loose too", b"a loose file of a group");
    write(b"sizes/mid/five", &text(5, 5 << 20));
    write(b"sizes/mid/exact", &text(6, 4 << 20));
    write(b"sizes/small/empty", b"");
    write(b"sizes/small/record", &[7; 512]);
    write(b"sizes/big/large", &noise(7, (16 << 20) + 12345));
    write(b"links/here/file", b"linked");
    std::fs::hard_link(root.join("links/here/file"), root.join("links/here/second")).unwrap();
    std::fs::create_dir_all(root.join("links/there")).unwrap();
    std::fs::hard_link(root.join("links/here/file"), root.join("links/there/third")).unwrap();
    std::os::unix::fs::symlink("file", root.join("links/here/symbolic")).unwrap();
    std::os::unix::fs::symlink("../here/nowhere", root.join("links/there/dangling")).unwrap();
    std::fs::create_dir_all(root.join("empty/folder")).unwrap();
    std::fs::set_permissions(
        root.join("empty/folder"),
        std::fs::Permissions::from_mode(0o1770),
    )
    .unwrap();
    std::fs::set_permissions(root.join("loose"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    std::fs::File::options()
        .write(true)
        .open(root.join("loose"))
        .unwrap()
        .set_modified(time)
        .unwrap();
}

/// Everything that a restore must bring back, path by path: kind, mode, owner, time, content, which paths share an inode.
pub fn digest(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut out = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    visit(root, root, &mut out, &mut inodes);
    out
}

fn visit(
    root: &Path,
    path: &Path,
    out: &mut BTreeMap<Vec<u8>, String>,
    inodes: &mut BTreeMap<u64, Vec<u8>>,
) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    let name = path
        .strip_prefix(root)
        .unwrap()
        .as_os_str()
        .to_owned()
        .into_vec();
    let times = format!("{}.{:09}", meta.mtime(), meta.mtime_nsec());
    let what = if meta.is_dir() {
        let mut entries: Vec<_> = std::fs::read_dir(path)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        entries.sort();
        entries
            .iter()
            .for_each(|entry| visit(root, entry, out, inodes));
        "folder".to_owned()
    } else if meta.is_symlink() {
        format!("link to {:?}", std::fs::read_link(path).unwrap())
    } else {
        let first = inodes
            .entry(meta.ino())
            .or_insert_with(|| name.clone())
            .clone();
        let body = blake3::hash(&std::fs::read(path).unwrap()).to_hex();
        format!(
            "{} bytes {body} first {}",
            meta.len(),
            bk_core::name::escape(&first)
        )
    };
    out.insert(
        name,
        format!(
            "{what} mode {:o} owner {}:{} time {times}",
            meta.mode(),
            meta.uid(),
            meta.gid()
        ),
    );
}

/// What differs, in few words.
pub fn difference(
    expected: &BTreeMap<Vec<u8>, String>,
    got: &BTreeMap<Vec<u8>, String>,
) -> Option<String> {
    let keys: std::collections::BTreeSet<_> = expected.keys().chain(got.keys()).collect();
    let wrong: Vec<_> = keys
        .into_iter()
        .filter(|key| expected.get(*key) != got.get(*key))
        .collect();
    let first = wrong.first()?;
    Some(format!(
        "{} differ; first `{}`: expected {:?}, got {:?}",
        wrong.len(),
        String::from_utf8_lossy(first),
        expected.get(*first),
        got.get(*first)
    ))
}

/// The digest as text, one path a line, without owners, which depend on who restores.
pub fn digest_text(root: &Path) -> String {
    let line = |(path, what): (&Vec<u8>, &String)| {
        let (before, after) = what.split_once(" owner ").unwrap_or((what, ""));
        let time = after.split_once(" time ").map_or("", |(_, time)| time);
        format!("{}: {before} time {time}\n", bk_core::name::escape(path))
    };
    digest(root)
        .iter()
        .filter(|(path, _)| !path.is_empty())
        .map(line)
        .collect()
}
