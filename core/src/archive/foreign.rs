//! Things that `bk` did not make: a tar in any of the usual compressions, a folder, a lone file. One pass reads it from front to end.
//!
//! Nothing is unpacked to disk and nothing is remembered between passes. A pass that ends well has read to the last byte, so a compressed
//! thing that was cut off is found by the first pass, before anything is written.

use crate::archive::format::FORMAT_MEMBER;
use crate::archive::read_at::{FileReadAt, ReadAt};
use crate::archive::tar::{self, Head, Kind, Meta};
use crate::error::{Error, ErrorKind, Result};
use crate::name::MemberPath;
use bytes::Bytes;
use std::fmt;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Handle;

/// How much is read ahead of the decompressor.
const PIECE_BYTES: u64 = 1 << 20;
/// From here a tar says that it is one.
const TAR_MAGIC_AT: usize = 257;
const TAR_HEAD_BYTES: usize = 512;
/// Streams of xz that need more memory than this are refused; `xz -9` needs 65 MiB.
const XZ_MEMORY_BYTES: u64 = 1 << 30;
/// Frames of zstd that need more memory than this (2 GiB) are refused.
const ZSTD_WINDOW_LOG: u32 = 31;
const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";
const GZIP_MAGIC: &[u8] = b"\x1f\x8b";
const ZSTD_MAGIC: &[u8] = b"\x28\xb5\x2f\xfd";

/// A thing from elsewhere, and how it is read.
pub struct Foreign {
    place: Place,
    shape: Shape,
    /// As a person named it.
    pub name: String,
    /// Last change, in seconds since 1970.
    pub modified: i64,
}

enum Place {
    Folder(PathBuf),
    Bytes(Arc<dyn ReadAt>),
}

/// What it turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Files in a folder.
    Folder,
    /// Members of a tar.
    Tar,
    /// One file, which is all there is.
    File,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Folder => "a folder",
            Self::Tar => "a tar",
            Self::File => "a file",
        })
    }
}

/// What is called with each entry of a pass and its body.
pub type Each<'a> = &'a mut dyn FnMut(Head, &mut dyn Read) -> Result<()>;

impl Foreign {
    /// Looks at a path of this machine.
    pub async fn open(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        let name = path.display().to_string();
        if meta.is_dir() {
            return Ok(Self {
                place: Place::Folder(path.to_path_buf()),
                shape: Shape::Folder,
                name,
                modified: meta.mtime(),
            });
        }
        let read: Arc<dyn ReadAt> = Arc::new(FileReadAt::open(path)?);
        let shape = sniff(read.clone(), &name).await?;
        Ok(Self {
            place: Place::Bytes(read),
            shape,
            name,
            modified: meta.mtime(),
        })
    }

    /// Looks at what lies in a sink.
    pub async fn of_sink(read: Arc<dyn ReadAt>, name: &str, modified: i64) -> Result<Self> {
        Ok(Self {
            shape: sniff(read.clone(), name).await?,
            place: Place::Bytes(read),
            name: name.to_owned(),
            modified,
        })
    }

    /// What it is.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Stored bytes, where they are known at once.
    pub fn stored_bytes(&self) -> u64 {
        match &self.place {
            Place::Folder(_) => 0,
            Place::Bytes(read) => read.len(),
        }
    }

    /// Reads all of it, on a thread where blocking is allowed. What `each` leaves of a body is skipped, but read.
    pub fn pass(&self, runtime: &Handle, each: Each<'_>) -> Result<()> {
        match &self.place {
            Place::Folder(root) => folder(root, root, each),
            Place::Bytes(read) => {
                let mut stream = Sequential::new(read.clone(), runtime.clone());
                if self.shape == Shape::File {
                    return self.lone(stream, each);
                }
                let mut stream = decompressed(&mut stream, &self.name)?;
                tar::read_foreign_members(&mut stream, each)?;
                // Behind the two zero records a decompressor still has its own end to check.
                std::io::copy(&mut stream, &mut std::io::sink())
                    .map(drop)
                    .map_err(|e| said(e, &self.name))
            }
        }
    }

    fn lone(&self, mut stream: Sequential, each: Each<'_>) -> Result<()> {
        let path = Path::new(&self.name)
            .file_name()
            .map(|name| name.as_bytes().to_vec());
        let head = Head {
            path: MemberPath::new(path.unwrap_or_default())?,
            meta: Meta {
                mtime: (self.modified, 0),
                ..Meta::default()
            },
            len: self.stored_bytes(),
        };
        each(head, &mut stream)
    }
}

/// Whether these first bytes of a compressed file begin a tar, and one that `bk` did not make.
pub fn begins_as_others_tar(bytes: &[u8]) -> bool {
    let mut head = [0; TAR_HEAD_BYTES];
    let len = decompressed(&mut &bytes[..], "")
        .ok()
        .and_then(|mut plain| fill(&mut plain, &mut head).ok());
    len == Some(TAR_HEAD_BYTES) && is_tar(&head) && !head.starts_with(FORMAT_MEMBER.as_bytes())
}

fn is_tar(head: &[u8]) -> bool {
    head.get(TAR_MAGIC_AT..)
        .is_some_and(|rest| rest.starts_with(b"ustar"))
}

/// The bytes without their compression; bytes that have none are passed on.
pub fn decompressed<'r>(stream: &'r mut dyn Read, name: &str) -> Result<Box<dyn Read + 'r>> {
    let mut magic = Vec::with_capacity(XZ_MAGIC.len());
    stream
        .take(XZ_MAGIC.len() as u64)
        .read_to_end(&mut magic)
        .map_err(|e| said(e, name))?;
    let kind = Compression::of(&magic);
    let whole = std::io::Cursor::new(magic).chain(stream);
    let inner: Box<dyn Read + 'r> = match kind {
        None => Box::new(whole),
        Some(Compression::Xz) => {
            let flags = xz2::stream::CONCATENATED;
            let stream = xz2::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES, flags)
                .map_err(|e| said(e.into(), name))?;
            Box::new(xz2::read::XzDecoder::new_stream(whole, stream))
        }
        Some(Compression::Gzip) => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        Some(Compression::Zstd) => {
            let mut decoder = zstd::Decoder::new(whole).map_err(|e| said(e, name))?;
            decoder
                .window_log_max(ZSTD_WINDOW_LOG)
                .map_err(|e| said(e, name))?;
            Box::new(decoder)
        }
    };
    Ok(match kind {
        None => inner,
        Some(kind) => Box::new(Checked {
            inner,
            kind,
            name: name.to_owned(),
        }),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Xz,
    Gzip,
    Zstd,
}

impl Compression {
    fn of(head: &[u8]) -> Option<Self> {
        [
            (XZ_MAGIC, Self::Xz),
            (GZIP_MAGIC, Self::Gzip),
            (ZSTD_MAGIC, Self::Zstd),
        ]
        .into_iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map(|(_, kind)| kind)
    }

    /// What a name promises.
    fn promised(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        [
            (".xz", Self::Xz),
            (".txz", Self::Xz),
            (".gz", Self::Gzip),
            (".tgz", Self::Gzip),
            (".zst", Self::Zstd),
        ]
        .into_iter()
        .find(|(suffix, _)| name.ends_with(suffix))
        .map(|(_, kind)| kind)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Xz => "xz",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// A decompressor whose failure says what was damaged.
struct Checked<R> {
    inner: R,
    kind: Compression,
    name: String,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.inner.read(buffer).map_err(|e| match e.kind() {
            std::io::ErrorKind::Interrupted => e,
            _ if e
                .get_ref()
                .is_some_and(<dyn std::error::Error + Send + Sync>::is::<Error>) =>
            {
                e
            }
            _ => std::io::Error::other(Error::corrupt(format!(
                "`{}` is damaged or was cut off: its {} data ends in an error ({e})",
                self.name,
                self.kind.word()
            ))),
        })
    }
}

/// Ours if it is ours, otherwise a reading that failed.
pub(crate) fn said(error: std::io::Error, name: &str) -> Error {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>())
    {
        Some(ours) => ours.duplicate(),
        None => Error::io("read", Path::new(name), error),
    }
}

/// Reads on and on from the front.
struct Sequential {
    read: Arc<dyn ReadAt>,
    runtime: Handle,
    at: u64,
    piece: Bytes,
}

impl Sequential {
    fn new(read: Arc<dyn ReadAt>, runtime: Handle) -> Self {
        Self {
            read,
            runtime,
            at: 0,
            piece: Bytes::new(),
        }
    }
}

impl Read for Sequential {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.piece.is_empty() {
            let len = PIECE_BYTES.min(self.read.len() - self.at);
            if len == 0 {
                return Ok(0);
            }
            self.piece = self
                .runtime
                .block_on(self.read.read_at(self.at, len))
                .map_err(std::io::Error::other)?;
            self.at += len;
        }
        let len = buffer.len().min(self.piece.len());
        buffer[..len].copy_from_slice(&self.piece.split_to(len));
        Ok(len)
    }
}

/// What a file is, by its first bytes and not by its name; but a name that promises a compression must keep it.
async fn sniff(read: Arc<dyn ReadAt>, name: &str) -> Result<Shape> {
    let runtime = Handle::current();
    let name = name.to_owned();
    crate::context::blocking(move || {
        let mut stream = Sequential::new(read, runtime);
        let mut first = [0; XZ_MAGIC.len()];
        let len = fill(&mut stream, &mut first).map_err(|e| said(e, &name))?;
        if first[..len].starts_with(b"BZh") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("`{name}` is compressed by bzip2"),
            )
            .hint("unpack it with bunzip2 first"));
        }
        if let Some(promised) = Compression::promised(&name)
            && Compression::of(&first[..len]) != Some(promised)
        {
            return Err(Error::corrupt(format!(
                "`{name}` is not what its name says: it does not begin as {} data",
                promised.word()
            )));
        }
        (stream.at, stream.piece) = (0, Bytes::new());
        let mut head = [0; TAR_HEAD_BYTES];
        let len = {
            let mut plain = decompressed(&mut stream, &name)?;
            fill(&mut plain, &mut head).map_err(|e| said(e, &name))?
        };
        // A tar of the oldest kind, or one without members, says it by its name alone.
        let file_name = name
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        let named = [".tar", ".tgz", ".txz"]
            .iter()
            .any(|word| file_name.contains(word));
        let is_tar = is_tar(&head[..len]) || named;
        Ok(if is_tar { Shape::Tar } else { Shape::File })
    })
    .await
}

fn fill(stream: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match stream.read(&mut buffer[len..])? {
            0 => break,
            more => len += more,
        }
    }
    Ok(len)
}

/// The entries of a folder, sorted, before the folder itself; links are told, never followed.
fn folder(root: &Path, at: &Path, each: Each<'_>) -> Result<()> {
    let failed = |e| Error::io("list the folder", at, e);
    let mut names = std::fs::read_dir(at)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(failed)?;
    names.sort();
    for path in names {
        let failed = |e| Error::io("read", &path, e);
        let found = std::fs::symlink_metadata(&path).map_err(failed)?;
        let kind = if found.is_dir() {
            Kind::Directory
        } else if found.is_symlink() {
            let to = std::fs::read_link(&path).map_err(failed)?;
            Kind::Symlink(to.as_os_str().as_bytes().to_vec())
        } else if found.is_file() {
            Kind::File
        } else {
            continue;
        };
        let head = Head {
            path: MemberPath::new(
                path.strip_prefix(root)
                    .unwrap_or(&path)
                    .as_os_str()
                    .as_bytes(),
            )?,
            meta: Meta {
                kind,
                mode: found.mode() & 0o7777,
                uid: u64::from(found.uid()),
                gid: u64::from(found.gid()),
                mtime: (found.mtime(), found.mtime_nsec() as u32),
                ..Meta::default()
            },
            len: if found.is_file() { found.len() } else { 0 },
        };
        if found.is_dir() {
            folder(root, &path, each)?;
            each(head, &mut std::io::empty())?;
        } else if found.is_file() {
            each(head, &mut std::fs::File::open(&path).map_err(failed)?)?;
        } else {
            each(head, &mut std::io::empty())?;
        }
    }
    Ok(())
}
