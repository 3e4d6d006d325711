//! A folder: a persistent volume, a mounted disk.
//!
//! An archive is written to a part in the same folder, synced, and gets its name in one step that fails when the name is taken. The part is
//! locked while its writer lives; a part that can be locked by another run is left over, and cleaned.

use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, bug, unsupported};
use bk_core::layout::{self, Layout, file_name, folders_above};
use bk_core::name::{ArchiveName, compact, hash64};
use bk_core::plugin::Plugin;
use bk_core::settings::Settings;
use bk_core::sink::{
    Abilities, ByteStream, Filter, Health, Note, NoteName, NoteSeen, Resumed, Seal, Sink, SizeHint,
    Stored, Upload, Was, looks_like_an_archive, sums_under,
};
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, flock};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::Deserialize;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const PART_PREFIX: &str = ".bk-part.";
/// Parts that a later attempt goes on with.
const FETCH_PREFIX: &str = ".bk-fetch.";
/// Room that must be left while an archive is written.
const RESERVE_BYTES: u64 = 4 << 20;
/// How often the room is looked at.
const LOOK_EVERY_BYTES: u64 = 64 << 20;
const CHUNK_BYTES: u64 = 1 << 20;
/// How often a day's folder is made anew that another run removes.
const CLAIM_TRIES: u32 = 5;

/// Settings of the sink `local`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalSettings {
    /// The folder; made where it is missing. Relative to the settings file.
    pub path: PathBuf,
    /// `flat`: all archives in that folder. `dates`: each in a folder of its day, `2026-08-22/`. `tiers`: in `daily/20260822/`, and the first of
    /// each week, month and year in `weekly/2026-week34/`, `monthly/2026-08/` and `yearly/2026/` too. What lies there already is listed in all.
    #[serde(default)]
    pub layout: Layout,
}

/// The plugin.
pub fn plugin() -> Plugin<dyn Sink> {
    Plugin {
        name: "local".into(),
        about: "a folder: a persistent volume, a mounted disk".into(),
        schema: Arc::new(|| schemars::schema_for!(LocalSettings)),
        build: Arc::new(|settings: Settings| {
            let parsed: LocalSettings = settings.parse()?;
            let local = Local::new(settings.path(&parsed.path));
            Ok(Arc::new(local.with_layout(parsed.layout)))
        }),
    }
}

/// A step of writing and publishing, in order. Tests stop a run before each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Make the part.
    CreatePart,
    /// Write to it.
    Write,
    /// Sync it.
    SyncPart,
    /// Write the sum file under a temporary name.
    WriteSums,
    /// Give the archive its name.
    ClaimName,
    /// Give the sum file its name.
    NameSums,
    /// Sync the folder.
    SyncFolder,
}

impl Step {
    /// All steps, in order.
    pub const ALL: [Self; 7] = [
        Self::CreatePart,
        Self::Write,
        Self::SyncPart,
        Self::WriteSums,
        Self::ClaimName,
        Self::NameSums,
        Self::SyncFolder,
    ];
}

/// Called before each step; an error stands for the step's own failure.
pub type StepHook = Arc<dyn Fn(Step) -> std::io::Result<()> + Send + Sync>;

/// The sink.
#[derive(Clone)]
pub struct Local {
    folder: PathBuf,
    layout: Layout,
    hook: StepHook,
}

impl Local {
    /// Archives lie in `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            layout: Layout::Flat,
            hook: Arc::new(|_| Ok(())),
        }
    }

    /// The same with new archives in these folders.
    #[must_use]
    pub fn with_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// The same with a hook before each step, for tests by fault.
    #[must_use]
    pub fn with_hook(self, hook: StepHook) -> Self {
        Self { hook, ..self }
    }

    fn step(&self, step: Step) -> Result<()> {
        (self.hook)(step).map_err(|e| Error::io("write to", &self.folder, e))
    }

    fn path_of(&self, name: &str) -> Result<PathBuf> {
        let plain = !name.is_empty()
            && name
                .split('/')
                .all(|part| !part.is_empty() && part != "." && part != "..");
        if plain {
            Ok(self.folder.join(name))
        } else {
            Err(bug(format!("`{name}` is no name in a folder")))
        }
    }

    fn ensure_folder(&self) -> Result<()> {
        make_folder(&self.folder)
    }

    /// Gives the part its name beneath the folder; false when that is taken.
    fn claim(&self, part: &Path, target: &Path) -> Result<bool> {
        for _ in 0..CLAIM_TRIES {
            let folder = target.parent().unwrap_or(&self.folder);
            make_folder(folder)?;
            match claim(part, target) {
                // The day's folder went with its last archive since it was made.
                Err(error) if error.kind == ErrorKind::NotFound && part.exists() => {}
                claimed => return claimed,
            }
        }
        Err(bug(format!("`{}` goes again and again", target.display())))
    }

    /// Syncs the folder that an archive lies in, and those above, which may be new.
    fn sync_around(&self, name: &str) -> Result<()> {
        for folder in folders_above(name) {
            sync_folder(&self.folder.join(folder))?;
        }
        sync_folder(&self.folder)
    }

    /// Removes the folders above an archive that was the last in them. Others may lie there, or just come.
    fn remove_empty_above(&self, name: &str) -> Result<()> {
        for folder in folders_above(name) {
            let folder = self.folder.join(folder);
            if std::fs::remove_dir(&folder).is_err() {
                return Ok(());
            }
            sync_folder(folder.parent().unwrap_or(&self.folder))?;
        }
        Ok(())
    }

    /// What looks like an archive in this folder, or in one beneath.
    fn list_in(&self, folder: &str, prefix: &str, found: &mut Vec<Stored>) -> Result<()> {
        for entry in read_folder(&self.folder.join(folder))? {
            let Ok(file) = entry.file_name().into_string() else {
                continue;
            };
            let fits = file.starts_with(prefix) && looks_like_an_archive(&file);
            let name = if folder.is_empty() {
                file
            } else {
                format!("{folder}/{file}")
            };
            if layout::is_folder(&name) && entry.path().is_dir() {
                self.list_in(&name, prefix, found)?;
                continue;
            }
            if !fits || !entry.path().is_file() {
                continue;
            }
            match self.stored(&name) {
                Ok(stored) => found.push(stored),
                // Deleted by another run since the folder was read.
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn free_bytes(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.folder)
            .map_err(|e| Error::io("look at", &self.folder, e.into()))?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Removes parts that begin so, but for one, whose writer is gone: nobody holds their lock.
    fn clean_parts(&self, prefix: &str, but: &str) -> Result<()> {
        for entry in read_folder(&self.folder)? {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if !name.starts_with(prefix) || name == but {
                continue;
            }
            let Ok(file) = File::open(entry.path()) else {
                continue;
            };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
                && std::fs::remove_file(entry.path()).is_ok()
            {
                tracing::info!(part = %entry.path().display(), "removed a part whose writer is gone");
            }
        }
        Ok(())
    }

    fn stored(&self, name: &str) -> Result<Stored> {
        let path = self.path_of(name)?;
        let meta = std::fs::metadata(&path).map_err(|e| Error::io("look at", &path, e))?;
        Ok(Stored {
            name: name.to_owned(),
            version: String::new(),
            bytes: meta.len(),
            modified: modified(&meta),
            etag: format!(
                "{}-{}-{}.{:09}",
                meta.ino(),
                meta.len(),
                meta.mtime(),
                meta.mtime_nsec()
            ),
            remarks: Vec::new(),
        })
    }

    fn look_at_room(&self, bytes: u64) -> Result<()> {
        let free = self.free_bytes()?;
        let wanted = bytes + RESERVE_BYTES;
        if free < wanted {
            return Err(no_space(&self.folder, free).hint(format!(
                "make room for {wanted} bytes, as much as the newest archive has"
            )));
        }
        Ok(())
    }

    fn create_now(&self, site: &str, name: &ArchiveName, hint: SizeHint) -> Result<LocalUpload> {
        self.ensure_folder()?;
        self.clean_parts(&format!("{PART_PREFIX}{site}."), "")?;
        self.look_at_room(hint.previous_bytes.unwrap_or(0))?;
        self.step(Step::CreatePart)?;
        let part = Part::create(
            &self.folder,
            &format!("{PART_PREFIX}{site}.{}", compact(name.start)),
        )?;
        Ok(LocalUpload::of(self.clone(), part))
    }

    /// A hard link; the sums go along with the new name in them.
    fn place_now(&self, site: &str, which: &Stored, to: &ArchiveName) -> Result<Stored> {
        let from = self.path_of(&which.name)?;
        let sums = std::fs::read_to_string(self.path_of(&format!("{}.sha256", which.name))?).ok();
        for candidate in to.candidates(true) {
            let name = self.layout.path(to, &candidate);
            let target = self.path_of(&name)?;
            if target.symlink_metadata().is_ok() {
                continue;
            }
            make_folder(target.parent().unwrap_or(&self.folder))?;
            let was = file_name(&which.name);
            let text = sums.as_ref();
            let text = text.map(|text| sums_under(text, was, &candidate));
            let sums = text.map(|text| write_sums(&self.folder, site, &text));
            let sums = sums.transpose()?;
            match rustix::fs::linkat(CWD, &from, CWD, &target, AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::EXIST) => continue,
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::MLINK | Errno::XDEV) => {
                    self.remove_empty_above(&name)?;
                    return Err(unsupported(format!(
                        "`{}` takes no second name for `{}`",
                        self.folder.display(),
                        which.name
                    )));
                }
                Err(error) => return Err(Error::io("link", &from, error.into())),
            }
            if let Some(sums) = sums {
                let path = self.path_of(&format!("{name}.sha256"))?;
                std::fs::rename(&sums.path, &path).map_err(|e| Error::io("name", &path, e))?;
            }
            self.sync_around(&name)?;
            return self.stored(&name);
        }
        Err(bug("candidates for a name never end"))
    }

    fn resume_now(&self, site: &str, hint: SizeHint, origin: &str) -> Result<LocalUpload> {
        self.ensure_folder()?;
        let prefix = format!("{FETCH_PREFIX}{site}.");
        let own = format!("{prefix}{:016x}", hash64(origin.as_bytes()));
        self.clean_parts(&prefix, &own)?;
        self.step(Step::CreatePart)?;
        let part = Part::reopen(self.folder.join(own))?;
        let left = part.bytes()?;
        self.look_at_room(hint.previous_bytes.unwrap_or(0).saturating_sub(left))?;
        Ok(LocalUpload {
            left,
            ..LocalUpload::of(self.clone(), part)
        })
    }
}

fn no_space(folder: &Path, free: u64) -> Error {
    Error::new(
        ErrorKind::NoSpace,
        format!("`{}` has only {free} bytes left", folder.display()),
    )
}

fn make_folder(folder: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|e| Error::io("make the folder", folder, e))
}

fn read_folder(folder: &Path) -> Result<Vec<std::fs::DirEntry>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries
            .collect::<std::io::Result<_>>()
            .map_err(|e| Error::io("list", folder, e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io("list", folder, e)),
    }
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io("sync the folder", folder, e))
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(bug(format!("file work ended: {e}"))))
}

/// A locked temporary file that goes with its owner, unless it stays for a later run.
struct Part {
    path: PathBuf,
    file: File,
    stays: bool,
}

impl Part {
    fn create(folder: &Path, prefix: &str) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        for _ in 0..100 {
            let mut chance = DefaultHasher::new();
            (
                std::process::id(),
                COUNT.fetch_add(1, Ordering::Relaxed),
                std::time::Instant::now(),
            )
                .hash(&mut chance);
            let path = folder.join(format!("{prefix}.{:016x}", chance.finish()));
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file: File = match rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => file.into(),
                Err(Errno::EXIST) => continue,
                Err(error) => return Err(Error::io("write", &path, error.into())),
            };
            // A file system without locks still works; its parts are then cleaned by hand.
            let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
            let still_there = file.metadata().is_ok_and(|meta| meta.nlink() > 0);
            if still_there && locked != Err(Errno::WOULDBLOCK) {
                return Ok(Self {
                    path,
                    file,
                    stays: false,
                });
            }
        }
        Err(Error::new(
            ErrorKind::Locked,
            format!("could not make a part in `{}`", folder.display()),
        ))
    }

    /// The part of this name as an earlier run left it, or a new one. It stays.
    fn reopen(path: PathBuf) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| Error::io("write", &path, e.into()))?
            .into();
        if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Err(Error::new(
                ErrorKind::Locked,
                format!("another run writes `{}`", path.display()),
            ));
        }
        Ok(Self {
            path,
            file,
            stays: true,
        })
    }

    fn bytes(&self) -> Result<u64> {
        let meta = self.file.metadata();
        Ok(meta.map_err(|e| Error::io("look at", &self.path, e))?.len())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        // Renamed or removed already is the good case; what stays is cleaned by the next run.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// An archive on its way into the folder.
struct LocalUpload {
    local: Local,
    part: Option<Part>,
    /// Bytes of an earlier attempt.
    left: u64,
    written: u64,
    looked: u64,
}

impl LocalUpload {
    fn of(local: Local, part: Part) -> Self {
        Self {
            local,
            part: Some(part),
            left: 0,
            written: 0,
            looked: 0,
        }
    }

    fn part(&self) -> Result<&Part> {
        let ended = || bug("an upload was used after its end");
        self.part.as_ref().ok_or_else(ended)
    }

    fn go_on_now(&mut self, bytes: u64) -> Result<()> {
        let part = self.part()?;
        let cut = part.file.set_len(bytes);
        cut.map_err(|e| Error::io("write to", &part.path, e))?;
        (self.written, self.looked) = (bytes, bytes);
        Ok(())
    }

    fn write_now(&mut self, chunk: &[u8]) -> Result<()> {
        self.local.step(Step::Write)?;
        if self.written >= self.looked + LOOK_EVERY_BYTES {
            self.looked = self.written;
            let free = self.local.free_bytes()?;
            if free < RESERVE_BYTES {
                return Err(no_space(&self.local.folder, free));
            }
        }
        let written = self.part()?.file.write_all_at(chunk, self.written);
        written.map_err(|e| Error::io("write to", &self.local.folder, e))?;
        self.written += chunk.len() as u64;
        Ok(())
    }

    fn publish_now(mut self, name: &ArchiveName, seal: &Seal) -> Result<Stored> {
        let mut part = self
            .part
            .take()
            .ok_or_else(|| bug("an upload was published twice"))?;
        let local = &self.local;
        local.step(Step::SyncPart)?;
        part.file
            .sync_all()
            .map_err(|e| Error::io("sync", &part.path, e))?;
        for candidate in name.candidates(seal.complete) {
            let path = local.layout.path(name, &candidate);
            let target = local.path_of(&path)?;
            if target.symlink_metadata().is_ok() {
                continue;
            }
            local.step(Step::WriteSums)?;
            let sums = write_sums(&local.folder, &seal.site, &seal.sum_file(&candidate))?;
            local.step(Step::ClaimName)?;
            if !local.claim(&part.path, &target)? {
                continue;
            }
            part.stays = false;
            local.step(Step::NameSums)?;
            let sums_path = local.path_of(&format!("{path}.sha256"))?;
            std::fs::rename(&sums.path, &sums_path)
                .map_err(|e| Error::io("name", &sums_path, e))?;
            local.step(Step::SyncFolder)?;
            local.sync_around(&path)?;
            return local.stored(&path);
        }
        Err(bug("candidates for a name never end"))
    }
}

fn write_sums(folder: &Path, site: &str, text: &str) -> Result<Part> {
    let part = Part::create(folder, &format!("{PART_PREFIX}{site}.sums"))?;
    part.file
        .write_all_at(text.as_bytes(), 0)
        .and_then(|()| part.file.sync_all())
        .map_err(|e| Error::io("write", &part.path, e))?;
    Ok(part)
}

/// Gives the part its name in one step; false when the name is taken. Nothing published is ever overwritten.
fn claim(part: &Path, target: &Path) -> Result<bool> {
    match rustix::fs::renameat_with(CWD, part, CWD, target, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            match rustix::fs::linkat(CWD, part, CWD, target, AtFlags::empty()) {
                Ok(()) => Ok(true),
                Err(Errno::EXIST) => Ok(false),
                Err(error) => Err(Error::io("name", target, error.into())),
            }
        }
        Err(error) => Err(Error::io("name", target, error.into())),
    }
}

#[async_trait]
impl Upload for LocalUpload {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        let mut this = Self {
            local: self.local.clone(),
            part: self.part.take(),
            left: self.left,
            written: self.written,
            looked: self.looked,
        };
        let (this, written) = blocking(move || {
            let written = this.write_now(&chunk);
            Ok((this, written))
        })
        .await?;
        *self = this;
        written
    }

    async fn publish(self: Box<Self>, name: &ArchiveName, seal: &Seal) -> Result<Stored> {
        let (name, seal) = (name.clone(), seal.clone());
        blocking(move || self.publish_now(&name, &seal)).await
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        blocking(move || {
            if let Some(part) = &mut self.part {
                part.stays = false;
            }
            drop(self);
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Resumed for LocalUpload {
    fn left(&self) -> u64 {
        self.left
    }

    async fn left_bytes(&self, range: Range<u64>) -> Result<Bytes> {
        let part = self.part()?;
        let again = |e| Error::io("read", &part.path, e);
        let (file, path) = (part.file.try_clone().map_err(again)?, part.path.clone());
        blocking(move || read_chunk(&file, &path, range.start, range.end - range.start)).await
    }

    async fn go_on(&mut self, bytes: u64) -> Result<()> {
        self.go_on_now(bytes)
    }

    async fn pause(self: Box<Self>) -> Result<()> {
        blocking(move || {
            let part = self.part()?;
            let synced = part.file.sync_all();
            synced.map_err(|e| Error::io("sync", &part.path, e))
        })
        .await
    }
}

#[async_trait]
impl Sink for Local {
    fn abilities(&self) -> Abilities {
        Abilities {
            ranges: true,
            rename: true,
            place: true,
            links: true,
            exclusive_create: true,
            ..Abilities::default()
        }
    }

    async fn check(&self, _cx: &Context) -> Result<Health> {
        let this = self.clone();
        blocking(move || {
            this.ensure_folder()?;
            if rustix::fs::access(&this.folder, rustix::fs::Access::WRITE_OK).is_err() {
                return Err(Error::new(
                    ErrorKind::Denied,
                    format!("`{}` is not writable", this.folder.display()),
                ));
            }
            let free = this.free_bytes()?;
            if free < RESERVE_BYTES {
                return Err(no_space(&this.folder, free));
            }
            let path = this
                .folder
                .canonicalize()
                .map_err(|e| Error::io("look at", &this.folder, e))?;
            Ok(Health {
                identity: path.display().to_string(),
                describe: path.display().to_string(),
                warnings: Vec::new(),
            })
        })
        .await
    }

    async fn create(
        &self,
        cx: &Context,
        name: &ArchiveName,
        hint: SizeHint,
    ) -> Result<Box<dyn Upload>> {
        let (this, site, name) = (self.clone(), cx.site.clone(), name.clone());
        let upload = blocking(move || this.create_now(&site, &name, hint)).await?;
        Ok(Box::new(upload))
    }

    async fn resume(
        &self,
        cx: &Context,
        _name: &ArchiveName,
        hint: SizeHint,
        origin: &str,
    ) -> Result<Box<dyn Resumed>> {
        let (this, site, origin) = (self.clone(), cx.site.clone(), origin.to_owned());
        let upload = blocking(move || this.resume_now(&site, hint, &origin)).await?;
        Ok(Box::new(upload))
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn folder(&self) -> Option<&Path> {
        Some(&self.folder)
    }

    async fn list(&self, _cx: &Context, filter: &Filter) -> Result<Vec<Stored>> {
        let (this, prefix) = (self.clone(), filter.prefix.clone());
        blocking(move || {
            let mut found = Vec::new();
            this.list_in("", &prefix, &mut found)?;
            Ok(found)
        })
        .await
    }

    async fn read(&self, _cx: &Context, which: &Stored, range: Range<u64>) -> Result<ByteStream> {
        let path = self.path_of(&which.name)?;
        let open = path.clone();
        let file = Arc::new(
            blocking(move || File::open(&open).map_err(|e| Error::io("open", &open, e))).await?,
        );
        let chunks = futures::stream::unfold(range, move |rest| {
            let (file, path) = (file.clone(), path.clone());
            async move {
                if rest.is_empty() {
                    return None;
                }
                let len = CHUNK_BYTES.min(rest.end - rest.start);
                let read = blocking(move || read_chunk(&file, &path, rest.start, len)).await;
                let next = match &read {
                    Ok(bytes) if !bytes.is_empty() => rest.start + bytes.len() as u64..rest.end,
                    _ => rest.end..rest.end,
                };
                Some((read, next))
            }
        });
        Ok(chunks.boxed())
    }

    async fn sums(&self, _cx: &Context, which: &Stored) -> Result<Option<String>> {
        let path = self.path_of(&format!("{}.sha256", which.name))?;
        match tokio::fs::read_to_string(&path).await {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    async fn delete(&self, _cx: &Context, which: &Stored) -> Result<()> {
        let (this, which) = (self.clone(), which.clone());
        blocking(move || {
            let now = this.stored(&which.name)?;
            if now.etag != which.etag {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("`{}` is another file than was listed", which.name),
                ));
            }
            // The sums first: an archive without them is one still, sums without their archive are litter that nobody takes away.
            let sums = this.path_of(&format!("{}.sha256", which.name))?;
            match std::fs::remove_file(&sums) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &sums, e));
                }
                _ => {}
            }
            let path = this.path_of(&which.name)?;
            std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            this.sync_around(&which.name)?;
            this.remove_empty_above(&which.name)
        })
        .await
    }

    async fn place(&self, cx: &Context, which: &Stored, to: &ArchiveName) -> Result<Stored> {
        let (this, which, to, site) = (self.clone(), which.clone(), to.clone(), cx.site.clone());
        blocking(move || this.place_now(&site, &which, &to)).await
    }

    async fn note(&self, _cx: &Context, name: &NoteName) -> Result<Option<Note>> {
        let path = self.note_path(name)?;
        blocking(move || read_note(&path)).await
    }

    async fn set_note(&self, _cx: &Context, name: &NoteName, body: Bytes, was: Was) -> Result<()> {
        let path = self.note_path(name)?;
        blocking(move || set_note(&path, &body, &was)).await
    }

    async fn notes(&self, _cx: &Context, site: &str, prefix: &str) -> Result<Vec<NoteSeen>> {
        let folder = self.path_of(&format!(".bk/{site}"))?;
        let (site, prefix) = (site.to_owned(), prefix.to_owned());
        blocking(move || {
            let mut seen = Vec::new();
            for entry in read_folder(&folder)? {
                let Ok(name) = entry.file_name().into_string() else {
                    continue;
                };
                // One that went since the folder was read is not there.
                let Ok(meta) = entry.metadata() else { continue };
                if name.starts_with(&prefix) && !name.starts_with('.') {
                    seen.push(NoteSeen {
                        name: NoteName {
                            site: site.clone(),
                            name,
                        },
                        modified: modified(&meta),
                    });
                }
            }
            Ok(seen)
        })
        .await
    }

    async fn remove_note(&self, _cx: &Context, name: &NoteName) -> Result<()> {
        let path = self.note_path(name)?;
        blocking(move || match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &path, e))
            }
            _ => Ok(()),
        })
        .await
    }
}

fn modified(meta: &std::fs::Metadata) -> Timestamp {
    Timestamp::new(meta.mtime(), meta.mtime_nsec() as i32).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn read_chunk(file: &File, path: &Path, at: u64, len: u64) -> Result<Bytes> {
    let mut bytes = vec![0; len as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            // What the disk cannot give back is damage of the archive, and no matter of trying again.
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                return Err(Error::corrupt(format!(
                    "`{}` at byte {}: {e}",
                    path.display(),
                    at + filled as u64
                )));
            }
            Err(e) => return Err(Error::io("read", path, e)),
        }
    }
    bytes.truncate(filled);
    Ok(bytes.into())
}

impl Local {
    fn note_path(&self, name: &NoteName) -> Result<PathBuf> {
        self.path_of(&format!(".bk/{}/{}", name.site, name.name))
    }
}

fn etag(body: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    format!("{:016x}-{}", hasher.finish(), body.len())
}

fn read_note(path: &Path) -> Result<Option<Note>> {
    match std::fs::read(path) {
        Ok(body) => Ok(Some(Note {
            etag: etag(&body),
            body: body.into(),
        })),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// Compares and writes under a lock, so that two hosts' changes of one note never meet unseen.
fn set_note(path: &Path, body: &[u8], was: &Was) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let folder = path
        .parent()
        .ok_or_else(|| bug("a note without a folder"))?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|e| Error::io("make the folder", folder, e))?;
    let lock_path = folder.join(".lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|e| Error::io("open", &lock_path, e))?;
    flock(&lock, FlockOperation::LockExclusive)
        .or_else(|e| {
            if e == Errno::NOTSUP || e == Errno::NOLCK {
                Ok(())
            } else {
                Err(e)
            }
        })
        .map_err(|e| Error::io("lock", &lock_path, e.into()))?;
    let now = read_note(path)?;
    let agrees = match (was, &now) {
        (Was::Any, _) | (Was::Absent, None) => true,
        (Was::Same(etag), Some(note)) => note.etag == *etag,
        _ => false,
    };
    if !agrees {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("the note `{}` was changed by another run", path.display()),
        ));
    }
    let part = Part::create(folder, ".note")?;
    part.file
        .write_all_at(body, 0)
        .and_then(|()| part.file.sync_all())
        .map_err(|e| Error::io("write", &part.path, e))?;
    std::fs::rename(&part.path, path).map_err(|e| Error::io("name", path, e))?;
    sync_folder(folder)
}
