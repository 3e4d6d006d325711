//! Members as tar bytes: ustar headers, with pax records for what those cannot say.

use crate::archive::format::RECORD_BYTES;
use crate::archive::tar_guard::Guarded;
use crate::error::{Error, ErrorKind, Result};
use crate::name::{MemberPath, escape};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use std::io::Read;

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A body of bytes.
    File,
    /// A folder.
    Directory,
    /// A link to this text.
    Symlink(Vec<u8>),
    /// The same file as that member of the same instance and unit.
    Hardlink(MemberPath),
    /// Anything else that a tar can hold; only foreign or evil archives do.
    Other(u8),
}

/// What is kept of a member beside its body. Times are the data's own, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Owner's and group's names, where known; shorter than 32 bytes.
    pub names: (String, String),
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, sorted by name: what the file has beside its bytes, its ACLs and capabilities too.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Length of a file with holes: its body is then a map and segments, as `sparse` says.
    pub sparse: Option<u64>,
    /// Members of one inode in different units carry the same number here; their bodies are stored apart.
    pub inode_group: Option<u64>,
}

impl Default for Meta {
    fn default() -> Self {
        Self {
            kind: Kind::File,
            mode: 0o600,
            uid: 0,
            gid: 0,
            names: Default::default(),
            mtime: (0, 0),
            xattrs: Vec::new(),
            sparse: None,
            inode_group: None,
        }
    }
}

/// Bytes of padding behind a body.
pub fn padding(len: u64) -> u64 {
    len.next_multiple_of(RECORD_BYTES) - len
}

/// The header of a member with a body of `len` bytes, pax records first where they are needed.
pub fn header(path: &MemberPath, meta: &Meta, len: u64) -> Vec<u8> {
    let mut name = match meta.sparse {
        Some(_) => beside_its_name(path.as_bytes()),
        None => path.as_bytes().to_vec(),
    };
    let mut link: &[u8] = &[];
    let type_flag = match &meta.kind {
        Kind::File => tar::EntryType::Regular,
        Kind::Directory => {
            name.push(b'/');
            tar::EntryType::Directory
        }
        Kind::Symlink(target) => {
            link = target;
            tar::EntryType::Symlink
        }
        Kind::Hardlink(first) => {
            link = first.as_bytes();
            tar::EntryType::Link
        }
        Kind::Other(flag) => tar::EntryType::new(*flag),
    };
    let pax = pax_records(path, &name, link, meta, len);
    let mut out = Vec::with_capacity(1536);
    if !pax.is_empty() {
        let mut extended = plain_header(
            b"././@PaxHeader",
            b"",
            &Meta::default(),
            pax.len() as u64,
            tar::EntryType::XHeader,
        );
        extended.append(&mut plain_header_pad(pax));
        out = extended;
    }
    for (text, flag) in [
        (&name[..], tar::EntryType::GNULongName),
        (link, tar::EntryType::GNULongLink),
    ] {
        if too_long_for_pax(text) {
            let body = [text, b"\0"].concat();
            out.extend(plain_header(
                b"././@LongLink",
                b"",
                &Meta::default(),
                body.len() as u64,
                flag,
            ));
            out.extend(plain_header_pad(body));
        }
    }
    out.extend(plain_header(&name, link, meta, len, type_flag));
    out
}

fn plain_header_pad(mut body: Vec<u8>) -> Vec<u8> {
    body.resize(body.len().next_multiple_of(RECORD_BYTES as usize), 0);
    body
}

fn plain_header(
    name: &[u8],
    link: &[u8],
    meta: &Meta,
    len: u64,
    type_flag: tar::EntryType,
) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(type_flag);
    header.set_mode(meta.mode & 0o7777);
    header.set_uid(meta.uid);
    header.set_gid(meta.gid);
    header.set_mtime(meta.mtime.0.max(0) as u64);
    header.set_size(len);
    if let Some(ustar) = header.as_ustar_mut() {
        copy(&mut ustar.name, name);
        copy(&mut ustar.linkname, link);
        copy(&mut ustar.uname[..31], meta.names.0.as_bytes());
        copy(&mut ustar.gname[..31], meta.names.1.as_bytes());
    }
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn copy(field: &mut [u8], bytes: &[u8]) {
    let len = bytes.len().min(field.len());
    field[..len].copy_from_slice(&bytes[..len]);
}

/// Readers of pax, the crate here among them, cut records at line ends whatever their length says; such names go the older GNU way.
fn too_long_for_pax(text: &[u8]) -> bool {
    text.len() > 100 && text.contains(&b'\n')
}

/// Where a reader that knows nothing of holes puts the stored body: `a/GNUSparseFile.0/b` for `a/b`.
fn beside_its_name(path: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    [&path[..at], b"GNUSparseFile.0/", &path[at..]].concat()
}

fn pax_records(path: &MemberPath, name: &[u8], link: &[u8], meta: &Meta, len: u64) -> Vec<u8> {
    let mut out = Vec::new();
    if name.len() > 100 && !too_long_for_pax(name) {
        pax_record(&mut out, "path", name);
    }
    if link.len() > 100 && !too_long_for_pax(link) {
        pax_record(&mut out, "linkpath", link);
    }
    if len >= 1 << 33 {
        pax_record(&mut out, "size", len.to_string().as_bytes());
    }
    let (seconds, nanoseconds) = meta.mtime;
    if !(0..1 << 33).contains(&seconds) || nanoseconds != 0 {
        pax_record(&mut out, "mtime", pax_time(seconds, nanoseconds).as_bytes());
    }
    if let Some(real) = meta.sparse {
        pax_record(&mut out, "GNU.sparse.major", b"1");
        pax_record(&mut out, "GNU.sparse.minor", b"0");
        pax_record(&mut out, SPARSE_NAME, path.as_bytes());
        pax_record(&mut out, SPARSE_REAL, real.to_string().as_bytes());
    }
    for (name, value) in &meta.xattrs {
        xattr_record(&mut out, name, value);
    }
    out
}

const SPARSE_NAME: &str = "GNU.sparse.name";
const SPARSE_REAL: &str = "GNU.sparse.realsize";
/// As GNU tar and libarchive write attributes: the value as it is.
const XATTR: &str = "SCHILY.xattr.";
/// As libarchive writes them too: the name percent-encoded, the value in base64.
const XATTR_ENCODED: &str = "LIBARCHIVE.xattr.";

/// Readers of pax that cut records at line ends would lose such a value, and such a name breaks the record: these go the encoded way.
fn xattr_record(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let plain = std::str::from_utf8(name).ok();
    let plain = plain.filter(|name| !name.contains(['=', '%', '\n']) && !value.contains(&b'\n'));
    if let Some(name) = plain {
        pax_record(out, &format!("{XATTR}{name}"), value);
    } else {
        let name = percent_encoding::percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
        let value = BASE64.encode(value);
        pax_record(out, &format!("{XATTR_ENCODED}{name}"), value.as_bytes());
    }
}

fn parse_xattr(key: &str, value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    if let Some(name) = key.strip_prefix(XATTR) {
        return Some((name.as_bytes().to_vec(), value.to_vec()));
    }
    let name = key.strip_prefix(XATTR_ENCODED)?;
    let name = percent_encoding::percent_decode_str(name).collect();
    Some((name, BASE64.decode(value).ok()?))
}

/// Decimal seconds; before 1970 the fraction counts down from the next whole second.
fn pax_time(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (s, 0) => s.to_string(),
        (s, n) if s >= 0 => format!("{s}.{n:09}"),
        (-1, n) => format!("-0.{:09}", 1_000_000_000 - n),
        (s, n) => format!("{}.{:09}", s + 1, 1_000_000_000 - n),
    }
}

fn parse_pax_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    let seconds: i64 = whole.parse().ok()?;
    if !whole.starts_with('-') || nanoseconds == 0 {
        return Some((seconds, nanoseconds));
    }
    Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds))
}

/// `LENGTH key=value\n`, where the length counts itself.
fn pax_record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// A whole member with its padding.
pub fn member(path: &MemberPath, meta: &Meta, body: &[u8]) -> Vec<u8> {
    let mut out = header(path, meta, body.len() as u64);
    out.extend_from_slice(body);
    out.resize(out.len() + padding(body.len() as u64) as usize, 0);
    out
}

/// A member's head as it was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Full path, instance first.
    pub path: MemberPath,
    /// All but the body.
    pub meta: Meta,
    /// Bytes of the body.
    pub len: u64,
}

/// Calls `each` with every member of a tar stream and its body; what `each` leaves of a body is skipped.
pub fn read_members<R: Read>(
    stream: R,
    each: impl FnMut(Head, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    members(stream, |path| path, each)
}

/// The same of a tar that others made: paths may begin with `./`, and the root itself may be a member.
pub fn read_foreign_members<R: Read>(
    stream: R,
    mut each: impl FnMut(Head, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let plain = |path: Vec<u8>| match path.strip_prefix(b"./") {
        Some(rest) => rest.to_vec(),
        None if path == b"." => Vec::new(),
        None => path,
    };
    members(Guarded::new(stream), plain, |head, body| {
        match head.meta.kind {
            // Its records were looked at when it was read.
            Kind::Other(b'g') => Ok(()),
            _ if head.meta.sparse.is_some() => Err(Error::new(
                ErrorKind::Unsupported,
                format!("`{}` is stored with its holes", head.path),
            )
            .hint("unpack the tar with GNU tar, and restore from the folder")),
            _ => each(head, body),
        }
    })
}

fn members<R: Read>(
    stream: R,
    named: impl Fn(Vec<u8>) -> Vec<u8>,
    mut each: impl FnMut(Head, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let damaged =
        |e: std::io::Error| match e.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(ours) => ours.duplicate(),
            None => Error::corrupt(format!("the tar inside is damaged: {e}")),
        };
    let mut archive = tar::Archive::new(stream);
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let head = head(&mut entry, &named).map_err(damaged)??;
        each(head, &mut entry)?;
    }
    Ok(())
}

/// Members and body bytes that begin in this piece of a tar, and how many bytes of the last one lie beyond it.
pub fn heads(piece: &[u8]) -> Result<((u64, u64), u64)> {
    let (mut members, mut bytes, mut owed) = (0, 0, 0);
    let total = piece.len() as u64;
    let mut archive = tar::Archive::new(std::io::Cursor::new(piece));
    let damaged = |e: std::io::Error| Error::corrupt(format!("the tar inside is damaged: {e}"));
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let head = head(&mut entry, |path| path).map_err(damaged)??;
        members += 1;
        bytes += head.len;
        let end = entry.raw_file_position() + head.len + padding(head.len);
        if end > total {
            owed = end - total;
            break;
        }
    }
    Ok(((members, bytes), owed))
}

fn head<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    named: impl Fn(Vec<u8>) -> Vec<u8>,
) -> std::io::Result<Result<Head>> {
    let mut name = named(entry.path_bytes().into_owned());
    let type_flag = entry.header().entry_type();
    let link = entry
        .link_name_bytes()
        .map(std::borrow::Cow::into_owned)
        .unwrap_or_default();
    let link = if type_flag == tar::EntryType::Link {
        named(link)
    } else {
        link
    };
    let len = entry.size();
    let header = entry.header();
    let mut meta = Meta {
        kind: Kind::File,
        mode: header.mode()? & 0o7777,
        uid: header.uid()?,
        gid: header.gid()?,
        names: (
            header.username().ok().flatten().unwrap_or("").to_owned(),
            header.groupname().ok().flatten().unwrap_or("").to_owned(),
        ),
        mtime: (header.mtime()? as i64, 0),
        xattrs: Vec::new(),
        sparse: None,
        inode_group: None,
    };
    if type_flag == tar::EntryType::Directory && name.last() == Some(&b'/') {
        name.pop();
    }
    if let Some(records) = entry.pax_extensions()? {
        for record in records {
            let record = record?;
            // Names and sizes for all that follow are not known here: others would read another tar than this one.
            let is_global = type_flag == tar::EntryType::XGlobalHeader;
            if is_global && [&b"path"[..], b"linkpath", b"size"].contains(&record.key_bytes()) {
                return Err(std::io::Error::other(Error::corrupt(
                    "a global header gives all members of the tar one name or size: what others read in it is not what stands there",
                )));
            }
            let key = record.key().unwrap_or_default();
            if key == SPARSE_NAME {
                name = named(record.value_bytes().to_vec());
            } else if key == SPARSE_REAL {
                let real = record.value().ok().and_then(|text| text.parse().ok());
                meta.sparse = Some(real.ok_or_else(|| {
                    std::io::Error::other(Error::corrupt(
                        "the length of a sparse file is malformed",
                    ))
                })?);
            } else if let Some(xattr) = parse_xattr(key, record.value_bytes())
                && !meta.xattrs.iter().any(|(name, _)| *name == xattr.0)
            {
                meta.xattrs.push(xattr);
            }
            if record.key_bytes() == b"mtime" {
                let time = record.value().ok().and_then(parse_pax_time);
                meta.mtime = time.ok_or_else(|| {
                    std::io::Error::other(Error::corrupt("a member's time is malformed"))
                })?;
            }
        }
    }
    Ok(kind(type_flag, link).and_then(|kind| {
        meta.kind = kind;
        Ok(Head {
            path: MemberPath::new(name)?,
            meta,
            len,
        })
    }))
}

fn kind(type_flag: tar::EntryType, link: Vec<u8>) -> Result<Kind> {
    Ok(match type_flag {
        tar::EntryType::Regular | tar::EntryType::Continuous => Kind::File,
        tar::EntryType::Directory => Kind::Directory,
        tar::EntryType::Symlink => Kind::Symlink(link),
        tar::EntryType::Link => Kind::Hardlink(
            MemberPath::new(link.clone())
                .map_err(|e| e.within(format!("hard link `{}`", escape(&link))))?,
        ),
        other => Kind::Other(other.as_byte()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_back_as_they_went_in() {
        let long = format!("files/{}/{}", "п".repeat(100), "x".repeat(120));
        let long_line = format!("files/{}\nend", "y".repeat(200));
        let odd_target = ["z".repeat(150), "\n".into()].concat().into_bytes();
        let cases = [
            ("files/plain", Kind::File, (1_700_000_000, 123_456_789)),
            (&*long, Kind::File, (-1, 999_999_999)),
            (&*long_line, Kind::File, (7, 7)),
            ("files/odd", Kind::Symlink(odd_target), (7, 7)),
            ("files/dir", Kind::Directory, (-86_400, 0)),
            (
                "files/link",
                Kind::Symlink("../".repeat(60).into_bytes()),
                (-2, 1),
            ),
            (
                "files/hard",
                Kind::Hardlink(MemberPath::new(long.as_bytes()).unwrap()),
                (1 << 34, 0),
            ),
        ];
        for (path, kind, mtime) in cases {
            let meta = Meta {
                kind: kind.clone(),
                mode: 0o4751,
                uid: 70_000,
                gid: 3_000_000_000,
                names: ("root".into(), "staff".into()),
                mtime,
                xattrs: vec![
                    (b"system.posix_acl_access".to_vec(), vec![2, 0, 10, 0, 255]),
                    (b"user.plain".to_vec(), b"value = 1".to_vec()),
                    (b"user.a=b%\xff".to_vec(), b"".to_vec()),
                ],
                sparse: (kind == Kind::File && !path.contains('\n')).then_some(1 << 40),
                inode_group: None,
            };
            let body: &[u8] = if kind == Kind::File {
                b"some bytes"
            } else {
                b""
            };
            let tar = member(&MemberPath::new(path).unwrap(), &meta, body);
            assert_eq!(tar.len() % 512, 0);

            let mut seen = Vec::new();
            read_members(&tar[..], |head, reader| {
                let mut body = Vec::new();
                reader.read_to_end(&mut body).unwrap();
                seen.push((head, body));
                Ok(())
            })
            .unwrap();
            assert_eq!(
                seen,
                [(
                    Head {
                        path: MemberPath::new(path).unwrap(),
                        meta,
                        len: body.len() as u64
                    },
                    body.to_vec()
                )]
            );
        }
    }
}
