//! A sorted walk that holds one folder's names at a time, and never follows a link.

use crate::files::Filter;
use crate::files::mark::MARK_NAME;
use bk_core::archive::sparse::{Map, SEGMENTS_MAX};
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::name::{MemberPath, escape};
use bk_core::source::{Kind, Meta};
use bk_core::xattr;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// A name in a folder, and what it is.
pub struct Name {
    /// The name.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: FileType,
}

/// An open folder.
pub struct Folder {
    handle: OwnedFd,
    /// Path beneath the root.
    pub path: MemberPath,
    root: PathBuf,
}

/// A file that was opened.
pub struct OpenFile {
    /// The file.
    pub file: File,
    /// Bytes of its body in the archive; of a file without holes its own, as the handle says.
    pub len: u64,
    /// Where it has bytes, when it has holes.
    pub holes: Option<Map>,
    /// All else.
    pub meta: Meta,
    /// Device and inode, when it has more than one name.
    pub inode: Option<(u64, u64)>,
}

impl Folder {
    /// The folder that a walk starts from. Here alone a link is followed: the operator named it.
    pub fn root(path: &Path) -> Result<Self> {
        let handle = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| match e {
            Errno::NOENT | Errno::NOTDIR => Error::new(
                ErrorKind::Settings,
                format!("the folder `{}` is not there", path.display()),
            )
            .hint("make the folder, mount its volume, or mend the setting `path`"),
            other => Error::io("open the folder", path, other.into()),
        })?;
        Ok(Self {
            handle,
            path: MemberPath::new("")?,
            root: path.to_path_buf(),
        })
    }

    /// The path as a person knows it.
    pub fn shown(&self, name: &[u8]) -> PathBuf {
        self.root
            .join(OsStr::from_bytes(self.path.as_bytes()))
            .join(OsStr::from_bytes(name))
    }

    /// The path of an entry beneath the root.
    pub fn path_of(&self, name: &[u8]) -> Result<MemberPath> {
        let mut bytes = self.path.as_bytes().to_vec();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        MemberPath::new(bytes)
    }

    /// What is inside and selected, sorted by name.
    pub fn names(&self, filter: &Filter) -> Result<Vec<Name>> {
        let failed = |e: Errno| Error::io("list the folder", &self.shown(b""), e.into());
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.handle).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name == b"."
                || name == b".."
                || name == MARK_NAME.as_bytes()
                || name.starts_with(bk_core::tree::TEMPORARY_PREFIX.as_bytes())
            {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    match rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                        Err(Errno::NOENT) => continue,
                        Err(e) => return Err(failed(e)),
                    }
                }
                kind => kind,
            };
            let path = self.path_of(name)?;
            let path = Path::new(OsStr::from_bytes(path.as_bytes()));
            let taken = if kind == FileType::Directory {
                filter.enters(path)
            } else {
                filter.takes_file(path)
            };
            if taken {
                names.push(Name {
                    name: name.to_vec(),
                    kind,
                });
            }
        }
        names.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(names)
    }

    /// A folder inside, or nothing when it vanished.
    pub fn enter(&self, name: &[u8]) -> Result<Option<Self>> {
        match rustix::fs::openat(&self.handle, name, FOLDER, Mode::empty()) {
            Ok(handle) => Ok(Some(Self {
                handle,
                path: self.path_of(name)?,
                root: self.root.clone(),
            })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => Err(Error::io("open the folder", &self.shown(name), e.into())),
        }
    }

    /// A file inside, or nothing when it vanished or is no plain file any more.
    pub fn open(&self, name: &[u8]) -> Result<Option<OpenFile>> {
        let failed = |e: Errno| Error::io("read", &self.shown(name), e.into());
        let handle = match rustix::fs::openat(&self.handle, name, FILE, Mode::empty()) {
            Ok(handle) => handle,
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let stat = rustix::fs::fstat(&handle).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let inode = (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino));
        let holes = self.holes(&handle, &stat, name).map_err(failed)?;
        let mut meta = meta(&stat, Kind::File);
        meta.xattrs = xattr::read(handle.as_fd()).map_err(failed)?;
        meta.sparse = holes.as_ref().map(|map| map.real_bytes);
        Ok(Some(OpenFile {
            file: handle.into(),
            len: holes.as_ref().map_or(stat.st_size as u64, stored_bytes),
            holes,
            meta,
            inode,
        }))
    }

    /// Where a file that takes less room than its length has bytes. One with too many holes, or with a name that the tar cannot say beside them, is
    /// stored with zeros in them.
    fn holes(&self, file: &OwnedFd, stat: &Stat, name: &[u8]) -> rustix::io::Result<Option<Map>> {
        const BLOCK_BYTES: u64 = 512;
        let real_bytes = stat.st_size as u64;
        let is_full = stat.st_blocks as u64 * BLOCK_BYTES >= real_bytes;
        if is_full
            || [name, self.path.as_bytes()]
                .iter()
                .any(|part| part.contains(&b'\n'))
        {
            return Ok(None);
        }
        let mut map = Map {
            real_bytes,
            segments: Vec::new(),
        };
        let mut at = 0;
        while at < real_bytes && map.segments.len() < SEGMENTS_MAX {
            let from = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                // Nothing but a hole is left.
                Err(Errno::NXIO) => break,
                // A file system that knows nothing of holes.
                Err(Errno::INVAL) => return Ok(None),
                from => from?.min(real_bytes),
            };
            at = rustix::fs::seek(file, SeekFrom::Hole(from))?.min(real_bytes);
            map.segments.push((from, at - from));
        }
        rustix::fs::seek(file, SeekFrom::Start(0))?;
        let has_holes = map.data_bytes() < real_bytes && map.segments.len() < SEGMENTS_MAX;
        Ok(has_holes.then_some(map))
    }

    /// A link inside, or nothing when it vanished.
    pub fn link(&self, name: &[u8]) -> Result<Option<Meta>> {
        let failed = |e: Errno| Error::io("read the link", &self.shown(name), e.into());
        let stat = match rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        match rustix::fs::readlinkat(&self.handle, name, Vec::new()) {
            Ok(target) => Ok(Some(meta(&stat, Kind::Symlink(target.into_bytes())))),
            Err(Errno::NOENT | Errno::INVAL) => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    /// The folder's own mode, owner and time.
    pub fn meta(&self) -> Result<Meta> {
        let stat = rustix::fs::fstat(&self.handle)
            .map_err(|e| Error::io("look at", &self.shown(b""), e.into()))?;
        let mut meta = meta(&stat, Kind::Directory);
        meta.xattrs = xattr::read(self.handle.as_fd())
            .map_err(|e| Error::io("look at", &self.shown(b""), e.into()))?;
        Ok(meta)
    }

    /// Opens a file by its path beneath this root, folder by folder.
    pub fn open_beneath(&self, path: &MemberPath) -> Result<Option<OpenFile>> {
        let parts: Vec<_> = path.parts().collect();
        let Some((name, folders)) = parts.split_last() else {
            return Ok(None);
        };
        let mut folder = Self {
            handle: self
                .handle
                .try_clone()
                .map_err(|e| Error::io("open", &self.root, e))?,
            path: self.path.clone(),
            root: self.root.clone(),
        };
        for part in folders {
            match folder.enter(part)? {
                Some(next) => folder = next,
                None => return Ok(None),
            }
        }
        folder.open(name)
    }
}

fn meta(stat: &Stat, kind: Kind) -> Meta {
    Meta {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: u64::from(stat.st_uid),
        gid: u64::from(stat.st_gid),
        names: Default::default(),
        mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        ..Meta::default()
    }
}

fn stored_bytes(map: &Map) -> u64 {
    map.text().len() as u64 + map.data_bytes()
}

impl OpenFile {
    /// Its body as the archive has it.
    pub fn body(&self) -> std::io::Result<Body> {
        let file = self.file.try_clone()?;
        Ok(match &self.holes {
            None => Body::Plain(file),
            Some(map) => Body::Sparse {
                file,
                text: std::io::Cursor::new(map.text()),
                left: map.segments.iter().rev().copied().collect(),
            },
        })
    }
}

/// A body on its way.
pub enum Body {
    /// The file as it is.
    Plain(File),
    /// Of a file with holes: the map's text, then the segments.
    Sparse {
        /// The file.
        file: File,
        /// The map.
        text: std::io::Cursor<Vec<u8>>,
        /// Segments that are not read yet, the next one last.
        left: Vec<(u64, u64)>,
    },
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let (file, text, left) = match self {
            Self::Plain(file) => return file.read(buffer),
            Self::Sparse { file, text, left } => (file, text, left),
        };
        let read = text.read(buffer)?;
        if read > 0 {
            return Ok(read);
        }
        let Some((at, len)) = left.pop() else {
            return Ok(0);
        };
        let most = usize::try_from(len).map_or(buffer.len(), |len| len.min(buffer.len()));
        // A file that shrank ends here: the body is then too short, which is seen.
        let read = file.read_at(&mut buffer[..most], at)?;
        if read > 0 && (read as u64) < len {
            left.push((at + read as u64, len - read as u64));
        } else if read == 0 {
            left.clear();
        }
        Ok(read)
    }
}

/// Group and unit of an entry by its path.
pub fn unit_of(path: &MemberPath, is_folder: bool) -> (String, String) {
    let parts: Vec<_> = path.parts().collect();
    match (parts.as_slice(), is_folder) {
        ([], _) => (".".into(), String::new()),
        ([_], false) => (".".into(), ".".into()),
        ([group], true) => (escape(group), String::new()),
        ([group, _], false) => (escape(group), ".".into()),
        ([group, unit, ..], _) => (escape(group), escape(unit)),
    }
}
