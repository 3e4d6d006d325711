//! Writes members as files beneath one folder, and nowhere else, whatever their names say.
//!
//! Every step goes through handles: each folder on the way is opened without following links, so no name and no link planted by an
//! archive or by somebody else during the restore leads out. A file appears whole: temp beside its place, then rename.

use crate::archive::tar::Meta;
use crate::error::{Error, Result, conflict};
use crate::name::{MemberPath, escape};
use crate::source::Existing;
use crate::xattr;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// Temporary names begin so; a walk leaves them out.
pub const TEMPORARY_PREFIX: &str = ".bk-restoring-";

/// What may be written.
#[derive(Clone, Copy, Debug)]
pub struct TreeOptions {
    /// What to do with a file that is there.
    pub existing: Existing,
    /// Give back setuid and setgid bits.
    pub keep_setuid: bool,
    /// Give back owners; only root can.
    pub owners: bool,
    /// Write symbolic links that lead out of the folder. They are never followed.
    pub outward_links: bool,
    /// The archive knows all attributes: others that are there go.
    pub exact_attributes: bool,
}

/// Writes beneath one folder.
pub struct Tree {
    root: Arc<OwnedFd>,
    path: PathBuf,
    options: TreeOptions,
    /// The folder that was used last: neighbours come one after another.
    last_folder: Option<(Vec<u8>, Arc<OwnedFd>)>,
    /// First written member of each inode that spans units.
    inodes: HashMap<u64, MemberPath>,
    temporary: u64,
    id: String,
    /// Attributes that could not be given back: how many, and the first with its reason.
    not_given: (u64, String),
    /// Beginnings of names that killed restores left behind; removed in each folder that this one enters.
    stale: Vec<String>,
}

/// Attributes are given in two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    BeforeTheMode,
    AfterTheMode,
}

impl When {
    fn is_for(self, name: &[u8]) -> bool {
        name.starts_with(b"user.") == (self == Self::BeforeTheMode)
    }
}

/// A file on its way.
pub struct Writing {
    folder: Arc<OwnedFd>,
    name: Vec<u8>,
    temporary: String,
    file: File,
    written: u64,
    path: MemberPath,
}

impl Tree {
    /// Opens the folder, making it where it is missing. `id` tells this restore's temporary files from others'.
    pub fn open(path: &Path, options: TreeOptions, id: &str) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|e| Error::io("make the folder", path, e))?;
        let root = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| Error::io("open the folder", path, e.into()))?;
        Ok(Self {
            root: Arc::new(root),
            path: path.to_path_buf(),
            options,
            last_folder: None,
            inodes: HashMap::new(),
            temporary: 0,
            id: id.to_owned(),
            not_given: (0, String::new()),
            stale: Vec::new(),
        })
    }

    /// From here on removes the temporary files of these unfinished restores, in each folder that is written to: what a killed restore
    /// was writing is selected again by the one that finishes it.
    pub fn remove_leftovers_of(&mut self, ids: &[String]) {
        self.stale = ids
            .iter()
            .map(|id| format!("{TEMPORARY_PREFIX}{id}-"))
            .collect();
    }

    fn remove_stale(&self, folder: &OwnedFd, of: &MemberPath) -> Result<()> {
        if self.stale.is_empty() {
            return Ok(());
        }
        let failed = |e| self.failed("clean the folder of", of, e);
        for entry in rustix::fs::Dir::read_from(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if self.stale.iter().any(|s| name.starts_with(s.as_bytes())) {
                rustix::fs::unlinkat(folder, name, AtFlags::empty()).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn failed(&self, doing: &str, path: &MemberPath, error: Errno) -> Error {
        Error::io(
            doing,
            &self.path.join(OsStr::from_bytes(path.as_bytes())),
            error.into(),
        )
    }

    /// The folder that holds `path`, made where it is missing, and the last part.
    fn parent(&mut self, path: &MemberPath) -> Result<(Arc<OwnedFd>, Vec<u8>)> {
        let bytes = path.as_bytes();
        let (folder, name) = match bytes.iter().rposition(|b| *b == b'/') {
            Some(at) => (&bytes[..at], &bytes[at + 1..]),
            None => (&b""[..], bytes),
        };
        if name.is_empty() {
            return Err(Error::corrupt("a member without a name"));
        }
        Ok((self.folder(folder, path)?, name.to_vec()))
    }

    fn folder(&mut self, folder: &[u8], of: &MemberPath) -> Result<Arc<OwnedFd>> {
        if let Some((last, handle)) = &self.last_folder
            && last == folder
        {
            return Ok(handle.clone());
        }
        let mut handle = self.root.clone();
        for part in folder.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            handle = Arc::new(self.enter(&handle, part, of)?);
        }
        self.remove_stale(&handle, of)?;
        self.last_folder = Some((folder.to_vec(), handle.clone()));
        Ok(handle)
    }

    /// Opens a folder without following a link; makes it where it is missing; with `Replace` or `Merge` puts it in a link's or file's place.
    fn enter(&self, at: &OwnedFd, part: &[u8], of: &MemberPath) -> Result<OwnedFd> {
        match rustix::fs::openat(at, part, FOLDER, Mode::empty()) {
            Ok(handle) => return Ok(handle),
            Err(Errno::NOENT) => {}
            Err(Errno::LOOP | Errno::NOTDIR) if self.options.existing != Existing::Refuse => {
                rustix::fs::unlinkat(at, part, AtFlags::empty())
                    .map_err(|e| self.failed("put a folder in the place of a file above", of, e))?;
            }
            Err(error) => return Err(self.failed("enter the folder of", of, error)),
        }
        match rustix::fs::mkdirat(at, part, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(self.failed("make the folder of", of, error)),
        }
        rustix::fs::openat(at, part, FOLDER, Mode::empty())
            .map_err(|e| self.failed("enter the folder of", of, e))
    }

    /// Begins a file.
    pub fn begin(&mut self, path: &MemberPath) -> Result<Writing> {
        let (folder, name) = self.parent(path)?;
        self.temporary += 1;
        let temporary = format!("{TEMPORARY_PREFIX}{}-{}", self.id, self.temporary);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(&*folder, &*temporary, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| self.failed("write", path, e))?;
        Ok(Writing {
            folder,
            name,
            temporary,
            file: handle.into(),
            written: 0,
            path: path.clone(),
        })
    }

    /// Gives the file its owner, mode and time, and its name.
    pub fn finish(&mut self, writing: Writing, meta: &Meta) -> Result<u64> {
        let done = self.place(&writing, meta);
        if done.is_err() {
            writing.discard();
        } else if let Some(group) = meta.inode_group {
            self.inodes
                .entry(group)
                .or_insert_with(|| writing.path.clone());
        }
        done.map(|()| writing.written)
    }

    fn place(&mut self, writing: &Writing, meta: &Meta) -> Result<()> {
        if let Some(real) = meta.sparse {
            writing.set_len(real)?;
        }
        self.properties(writing.file.as_fd(), &writing.path, meta)?;
        self.make_room(&writing.folder, &writing.name, &writing.path)?;
        rustix::fs::renameat(
            &*writing.folder,
            &*writing.temporary,
            &*writing.folder,
            &*writing.name,
        )
        .map_err(|e| self.failed("name", &writing.path, e))
    }

    /// What stands where a file, link or folder must go.
    fn make_room(&self, folder: &OwnedFd, name: &[u8], path: &MemberPath) -> Result<()> {
        let there = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(self.failed("look at", path, error)),
            Ok(there) => FileType::from_raw_mode(there.st_mode),
        };
        match (self.options.existing, there) {
            (Existing::Refuse, _) => Err(conflict(format!("`{path}` is there already"))
                .hint("repeat with --existing merge or --existing replace")),
            (Existing::Replace, FileType::Directory) => {
                remove_all(folder, name).map_err(|e| self.failed("remove the folder", path, e))
            }
            (Existing::Merge, FileType::Directory) => {
                rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)
                    .map_err(|e| self.failed("put a file in the place of the folder", path, e))
            }
            // A rename replaces it in one step.
            _ => Ok(()),
        }
    }

    fn mode(&self, meta: &Meta) -> Mode {
        let mask = if self.options.keep_setuid {
            0o7777
        } else {
            0o1777
        };
        Mode::from_raw_mode(meta.mode & mask)
    }

    /// A second name for the first written member of an inode whose members lie in different units; false when there is none.
    pub fn link_to_inode(&mut self, path: &MemberPath, meta: &Meta) -> Result<bool> {
        match meta
            .inode_group
            .and_then(|group| self.inodes.get(&group).cloned())
        {
            Some(first) => self.hard_link(path, &first).map(|()| true),
            None => Ok(false),
        }
    }

    /// A second name for a file beneath the same folder.
    pub fn hard_link(&mut self, path: &MemberPath, target: &MemberPath) -> Result<()> {
        let (target_folder, target_name) = self.parent(target)?;
        let there = rustix::fs::statat(&*target_folder, &*target_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.failed("link to", target, e))?;
        if FileType::from_raw_mode(there.st_mode) != FileType::RegularFile {
            return Err(Error::corrupt(format!(
                "the hard link `{path}` leads to `{target}`, which is no file"
            )));
        }
        let (folder, name) = self.parent(path)?;
        self.make_room(&folder, &name, path)?;
        self.temporary += 1;
        let temporary = format!("{TEMPORARY_PREFIX}{}-{}", self.id, self.temporary);
        rustix::fs::linkat(
            &*target_folder,
            &*target_name,
            &*folder,
            &*temporary,
            AtFlags::empty(),
        )
        .map_err(|e| self.failed("link", path, e))?;
        rustix::fs::renameat(&*folder, &*temporary, &*folder, &*name)
            .map_err(|e| self.failed("name", path, e))?;
        // Renaming one name of a file over another does nothing, and leaves the first.
        let _ = rustix::fs::unlinkat(&*folder, &*temporary, AtFlags::empty());
        Ok(())
    }

    /// A symbolic link. Written after all files, never followed; one that leads out is refused unless allowed.
    pub fn symbolic_link(&mut self, path: &MemberPath, target: &[u8], meta: &Meta) -> Result<()> {
        if !self.options.outward_links && leads_out(path, target) {
            return Err(conflict(format!(
                "the symbolic link `{path}` leads out to `{}`",
                escape(target)
            ))
            .hint("repeat with --outward-links to have it"));
        }
        let (folder, name) = self.parent(path)?;
        self.make_room(&folder, &name, path)?;
        self.temporary += 1;
        let temporary = format!("{TEMPORARY_PREFIX}{}-{}", self.id, self.temporary);
        rustix::fs::symlinkat(target, &*folder, &*temporary)
            .map_err(|e| self.failed("link", path, e))?;
        if self.options.owners {
            rustix::fs::chownat(
                &*folder,
                &*temporary,
                Some(owner(meta.uid)),
                Some(group(meta.gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(|e| self.failed("give its owner to", path, e))?;
        }
        rustix::fs::utimensat(
            &*folder,
            &*temporary,
            &times(meta),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|e| self.failed("give its time to", path, e))?;
        rustix::fs::renameat(&*folder, &*temporary, &*folder, &*name)
            .map_err(|e| self.failed("name", path, e))
    }

    /// A folder's owner, mode and time; made where it is missing. Comes after everything inside it.
    pub fn folder_meta(&mut self, path: &MemberPath, meta: &Meta) -> Result<()> {
        let handle = self.folder(path.as_bytes(), path)?;
        self.properties(handle.as_fd(), path, meta)
    }

    /// Owner, attributes, mode and time of an open file or folder.
    fn properties(&mut self, of: BorrowedFd<'_>, path: &MemberPath, meta: &Meta) -> Result<()> {
        if self.options.owners {
            rustix::fs::fchown(of, Some(owner(meta.uid)), Some(group(meta.gid)))
                .map_err(|e| self.failed("give its owner to", path, e))?;
        }
        let there = if self.options.exact_attributes {
            xattr::read(of).map_err(|e| self.failed("look at", path, e))?
        } else {
            Vec::new()
        };
        // Attributes of users need the right to write; a change of owner or mode takes capabilities away and changes ACLs.
        self.attributes((of, path), meta, &there, When::BeforeTheMode)?;
        rustix::fs::fchmod(of, self.mode(meta))
            .map_err(|e| self.failed("give its mode to", path, e))?;
        self.attributes((of, path), meta, &there, When::AfterTheMode)?;
        rustix::fs::futimens(of, &times(meta)).map_err(|e| self.failed("give its time to", path, e))
    }

    /// Makes the attributes those of the member: also without those that the folder's default ACL has given it.
    fn attributes(
        &mut self,
        (of, path): (BorrowedFd<'_>, &MemberPath),
        meta: &Meta,
        there: &[(Vec<u8>, Vec<u8>)],
        when: When,
    ) -> Result<()> {
        let is_wanted = |name: &[u8]| {
            xattr::is_kept(name)
                && (self.options.keep_setuid || name != xattr::CAPABILITY)
                && when.is_for(name)
        };
        let wanted: Vec<_> = meta.xattrs.iter().filter(|(n, _)| is_wanted(n)).collect();
        for (name, _) in there {
            if when.is_for(name) && !wanted.iter().any(|(n, _)| n == name) {
                let removed = rustix::fs::fremovexattr(of, &**name);
                self.given(path, name, removed)?;
            }
        }
        for (name, value) in wanted {
            let given = rustix::fs::fsetxattr(of, &**name, value, XattrFlags::empty());
            self.given(path, name, given)?;
        }
        Ok(())
    }

    /// What this file system or this account cannot have is left out and counted.
    fn given(
        &mut self,
        path: &MemberPath,
        name: &[u8],
        done: rustix::io::Result<()>,
    ) -> Result<()> {
        match done {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            Err(error @ (Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS)) => {
                self.not_given.0 += 1;
                if self.not_given.1.is_empty() {
                    let error = std::io::Error::from(error);
                    self.not_given.1 = format!("`{}` of `{path}`: {error}", escape(name));
                }
                Ok(())
            }
            Err(error) => Err(self.failed("give its attributes to", path, error)),
        }
    }

    /// Attributes that could not be given back, in a line; nothing when all were.
    pub fn not_given(&self) -> Option<String> {
        match &self.not_given {
            (0, _) => None,
            (1, first) => Some(format!("an attribute was not given back: {first}")),
            (count, first) => Some(format!(
                "{count} attributes were not given back, the first {first}"
            )),
        }
    }

    /// Whether anything stands there, links not followed.
    pub fn exists(&self, path: &MemberPath) -> bool {
        let mut handle = self.root.clone();
        let parts: Vec<_> = path.parts().collect();
        for (n, part) in parts.iter().enumerate() {
            if n + 1 == parts.len() {
                return rustix::fs::statat(&*handle, *part, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            }
            match rustix::fs::openat(&*handle, *part, FOLDER, Mode::empty()) {
                Ok(next) => handle = Arc::new(next),
                Err(_) => return false,
            }
        }
        true
    }

    /// Removes a file, a link, or a folder with all that is in it. Not there: fine.
    pub fn remove(&mut self, path: &MemberPath) -> Result<()> {
        if !self.exists(path) {
            return Ok(());
        }
        self.last_folder = None;
        let (folder, name) = self.parent(path)?;
        let removed = match rustix::fs::unlinkat(&*folder, &*name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => remove_all(&folder, &name),
            other => other,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed("remove", path, error)),
        }
    }

    /// Everything written so far reaches the medium, or this is an error.
    pub fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&*self.root).map_err(|e| Error::io("sync", &self.path, e.into()))
    }
}

impl Writing {
    /// Bytes so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        let written = self.file.write_all(bytes);
        written.map_err(|e| self.failed("write", e))
    }

    /// Bytes of a file with holes, in the place where they belong.
    pub fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(bytes, at);
        written.map_err(|e| self.failed("write", e))
    }

    /// Counts bytes of a stored body that are no bytes of the file.
    pub fn count(&mut self, stored: u64) {
        self.written += stored;
    }

    fn set_len(&self, bytes: u64) -> Result<()> {
        let set = self.file.set_len(bytes);
        set.map_err(|e| self.failed("write", e))
    }

    fn failed(&self, doing: &str, error: std::io::Error) -> Error {
        let path = Path::new(OsStr::from_bytes(self.path.as_bytes()));
        Error::io(doing, path, error)
    }

    /// Leaves nothing.
    pub fn discard(&self) {
        // What cannot be removed has a temporary name, which every later walk and restore leaves out.
        let _ = rustix::fs::unlinkat(&*self.folder, &*self.temporary, AtFlags::empty());
    }
}

fn owner(uid: u64) -> rustix::fs::Uid {
    rustix::fs::Uid::from_raw(u32::try_from(uid).unwrap_or(65_534))
}

fn group(gid: u64) -> rustix::fs::Gid {
    rustix::fs::Gid::from_raw(u32::try_from(gid).unwrap_or(65_534))
}

fn times(meta: &Meta) -> Timestamps {
    let time = Timespec {
        tv_sec: meta.mtime.0,
        tv_nsec: i64::from(meta.mtime.1),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Whether a link's text, read from where the link stands, leaves the folder.
pub fn leads_out(path: &MemberPath, target: &[u8]) -> bool {
    if target.first() == Some(&b'/') {
        return true;
    }
    let mut depth = path.parts().count() as i64 - 1;
    let mut behind_a_name = false;
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            // Behind a name, which may be a link itself, nobody can say where `..` leads.
            b".." if behind_a_name => return true,
            b".." => depth -= 1,
            _ => behind_a_name = true,
        }
        if depth < 0 {
            return true;
        }
    }
    false
}

fn remove_all(folder: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    let handle = rustix::fs::openat(folder, name, FOLDER, Mode::empty())?;
    let mut entries = Vec::new();
    for entry in rustix::fs::Dir::read_from(&handle)? {
        let entry = entry?;
        let child = entry.file_name().to_bytes().to_vec();
        if child != b"." && child != b".." {
            entries.push((child, entry.file_type()));
        }
    }
    for (child, kind) in entries {
        match kind {
            FileType::Directory => remove_all(&handle, &child)?,
            _ => match rustix::fs::unlinkat(&handle, &*child, AtFlags::empty()) {
                Err(Errno::ISDIR) => remove_all(&handle, &child)?,
                other => other?,
            },
        }
    }
    rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)
}
