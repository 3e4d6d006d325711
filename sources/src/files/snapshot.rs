//! Reading a folder: units in sorted order, files to lanes, what vanishes or breaks off said by name.

use crate::files::mark::{self, Mark};
use crate::files::walk::{Body, Folder, OpenFile, unit_of};
use crate::files::{Files, Filter, LAYOUT};
use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, bug};
use bk_core::name::{MemberPath, escape, hash64};
use bk_core::runs::{RUN_SPLIT_BYTES, border_before};
use bk_core::source::{Counted, Facts, Kind, Lane, Meta, Output, PointInTime, Snapshot, Stage};
use bytes::Bytes;
use jiff::Timestamp;
use rustix::fs::FileType;
use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::sync::Arc;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::io::SyncIoBridge;

/// Files over this are read in `Stage::Large`.
const LARGE_BYTES: u64 = 16 << 20;
/// Files up to this travel with their bytes; larger ones are read by the lane.
const SMALL_BYTES: u64 = 64 << 10;
/// Small files that may wait for the lane.
const SMALL_WAITING: usize = 32;
/// A file that changes while it is read is read so often.
const TRIES: usize = 3;
/// Warnings that are said one by one.
const WARNINGS_NAMED: usize = 50;

/// A folder as it is while it is read: no file system here has snapshots, so the consistency is `none`.
pub(super) struct FilesSnapshot {
    root: Arc<Folder>,
    filter: Filter,
    at: Timestamp,
    mark: Option<Mark>,
    marked_seen: BTreeSet<(String, String)>,
    large: Vec<(String, String, MemberPath)>,
    inodes: Inodes,
    warnings: Vec<String>,
    more_warnings: u64,
    left_out: u64,
}

/// First path of each inode with several names, and its unit.
type Inodes = HashMap<(u64, u64), (String, String, MemberPath)>;

/// What the walk hands to the lane.
enum Item {
    Unit(String, String),
    Small(MemberPath, Meta, Vec<u8>),
    File(MemberPath, OpenFile),
    Link(MemberPath, Meta),
    Large(MemberPath),
    Failed(Error),
    /// In Finish, where units change with every entry: what failed, and where.
    FailedAt(MemberPath, Error),
    Warning(String),
    LeftOut,
    End,
}

impl FilesSnapshot {
    pub(super) fn new(files: &Files, at: Timestamp) -> Result<Self> {
        Ok(Self {
            root: Arc::new(Folder::root(&files.path)?),
            filter: files.filter.clone(),
            at,
            mark: mark::read(&files.path)?,
            marked_seen: BTreeSet::new(),
            large: Vec::new(),
            inodes: Inodes::new(),
            warnings: Vec::new(),
            more_warnings: 0,
            left_out: 0,
        })
    }

    fn warn(&mut self, warning: String) {
        if self.warnings.len() < WARNINGS_NAMED {
            self.warnings.push(warning);
        } else {
            self.more_warnings += 1;
        }
    }

    fn marked(&self, group: &str, unit: &str) -> bool {
        self.mark
            .as_ref()
            .is_some_and(|mark| mark.covers(group, unit))
    }

    async fn data(&mut self, cx: &Context, out: &Output) -> Result<()> {
        let (items, mut queue) = mpsc::channel(SMALL_WAITING);
        let walk = Walk {
            root: self.root.clone(),
            filter: self.filter.clone(),
            items,
        };
        let walking = tokio::task::spawn_blocking(move || walk.data());
        let mut writing = Writing::new(out);
        let written = self.write_items(cx, &mut queue, &mut writing).await;
        // An early end stops the walk at its next item.
        drop(queue);
        let walked = walking
            .await
            .map_err(|e| bug(format!("the walk ended: {e}")))?;
        written?;
        walked?;
        writing.close().await?;
        self.fail_marked(cx, out).await
    }

    async fn write_items(
        &mut self,
        cx: &Context,
        queue: &mut mpsc::Receiver<Item>,
        writing: &mut Writing,
    ) -> Result<()> {
        let mut skipping = false;
        while let Some(item) = queue.recv().await {
            cx.check_cancelled()?;
            match item {
                Item::Unit(group, name) => {
                    writing.begin(&group, &name).await?;
                    skipping = self.marked(&group, &name);
                    if skipping && let Some(mark) = &self.mark {
                        writing.fail(&mark.refusal(&cx.instance)).await?;
                        self.marked_seen.insert((group, name));
                    }
                }
                Item::End => writing.end().await?,
                Item::Warning(warning) => self.warn(warning),
                Item::LeftOut => self.left_out += 1,
                Item::Failed(error) | Item::FailedAt(_, error) => writing.fail(&error).await?,
                _ if skipping => {}
                Item::Small(path, meta, bytes) => writing.member(path, meta, bytes.into()).await?,
                Item::Link(path, meta) => writing.member(path, meta, Bytes::new()).await?,
                Item::Large(path) => {
                    let (group, name) = writing.current()?;
                    self.large.push((group, name, path));
                }
                Item::File(path, open) => self.file(writing, path, open).await?,
            }
        }
        Ok(())
    }

    /// A file of up to 16 MiB: gathered whole, or read again, or its unit fails.
    async fn file(
        &mut self,
        writing: &mut Writing,
        path: MemberPath,
        open: OpenFile,
    ) -> Result<()> {
        let (group, name) = writing.current()?;
        let mut open = Some(open);
        let mut last = None;
        for _ in 0..TRIES {
            let Some(mut file) = open.take() else {
                self.warn(format!("`{path}` vanished while it was read"));
                return Ok(());
            };
            if let Some(link) = self.hard_link(&group, &name, &path, &mut file) {
                return writing.member(path, link, Bytes::new()).await;
            }
            if file.len > LARGE_BYTES {
                // It has grown since the walk saw it.
                self.large.push((group, name, path));
                return Ok(());
            }
            let mut reader = reader(&file)?;
            match writing
                .sized(path.clone(), file.meta.clone(), file.len, &mut *reader)
                .await
            {
                Ok(()) => {
                    self.remember(file.inode, &group, &name, &path);
                    self.say_if_changed(&path, &file);
                    return Ok(());
                }
                Err(error) if error.kind == ErrorKind::Cancelled => return Err(error),
                Err(error) => last = Some(error),
            }
            open = self.root.open_beneath(&path)?;
        }
        let error = last.unwrap_or_else(|| bug("a file was never read"));
        writing
            .fail(&error.within(format!("`{path}` changed each time it was read")))
            .await
    }

    fn say_if_changed(&mut self, path: &MemberPath, file: &OpenFile) {
        use std::os::unix::fs::MetadataExt;
        let len = file.meta.sparse.unwrap_or(file.len);
        if let Ok(now) = file.file.metadata()
            && (now.len() != len || (now.mtime(), now.mtime_nsec() as u32) != file.meta.mtime)
        {
            self.warn(format!("`{path}` changed while it was read; it is in the archive with the {len} bytes that it had"));
        }
    }

    /// A further name of an inode: a hard link inside its unit, elsewhere a body of its own with the number of its group of links.
    fn hard_link(
        &mut self,
        group: &str,
        name: &str,
        path: &MemberPath,
        file: &mut OpenFile,
    ) -> Option<Meta> {
        let Some(first) = self.inodes.get(&file.inode?) else {
            file.meta.inode_group = Some(hash64(path.as_bytes()));
            return None;
        };
        file.meta.inode_group = Some(hash64(first.2.as_bytes()));
        let same_unit = first.0 == group && first.1 == name && first.2 != *path;
        same_unit.then(|| Meta {
            kind: Kind::Hardlink(first.2.clone()),
            xattrs: Vec::new(),
            sparse: None,
            inode_group: None,
            ..file.meta.clone()
        })
    }

    /// A name that was written whole is what later names of its inode link to.
    fn remember(&mut self, inode: Option<(u64, u64)>, group: &str, name: &str, path: &MemberPath) {
        if let Some(inode) = inode {
            let first = || (group.to_owned(), name.to_owned(), path.clone());
            self.inodes.entry(inode).or_insert_with(first);
        }
    }

    /// Marked units that the walk did not even see fail as well.
    async fn fail_marked(&self, cx: &Context, out: &Output) -> Result<()> {
        let Some(mark) = &self.mark else {
            return Ok(());
        };
        let refusal = mark.refusal(&cx.instance);
        let mut missing: BTreeSet<(String, String)> = BTreeSet::new();
        for selected in mark.restores.iter().flat_map(|r| &r.selected) {
            let fits = |(group, name): &(String, String)| {
                *group == selected.group && selected.unit.as_ref().is_none_or(|unit| unit == name)
            };
            if !self.marked_seen.iter().any(fits) {
                missing.insert((
                    selected.group.clone(),
                    selected.unit.clone().unwrap_or_else(|| "*".into()),
                ));
            }
        }
        for (group, name) in missing {
            out.expect(&group, &name).await?;
            out.fail(&group, &name, &refusal).await?;
            out.end(&group, &name, Counted::default()).await?;
        }
        Ok(())
    }

    async fn large_files(&mut self, cx: &Context, out: &Output) -> Result<()> {
        let large = std::mem::take(&mut self.large);
        let mut writing = Writing::new(out);
        for (group, name, path) in large {
            cx.check_cancelled()?;
            if writing.unit.as_ref() != Some(&(group.clone(), name.clone())) {
                writing.end().await?;
                writing.begin(&group, &name).await?;
            }
            match self.root.open_beneath(&path) {
                Ok(Some(open)) => self.large_file(&mut writing, path, open).await?,
                Ok(None) => self.warn(format!("`{path}` vanished before it was read")),
                Err(error) => writing.fail(&error).await?,
            }
        }
        writing.end().await?;
        writing.close().await
    }

    async fn large_file(
        &mut self,
        writing: &mut Writing,
        path: MemberPath,
        mut open: OpenFile,
    ) -> Result<()> {
        let (group, name) = writing.current()?;
        // Links of a large file point at its first name, which was written in this stage.
        if let Some(link) = self.hard_link(&group, &name, &path, &mut open) {
            return writing.member(path, link, Bytes::new()).await;
        }
        let mut reader = reader(&open)?;
        match writing
            .sized(path.clone(), open.meta.clone(), open.len, &mut *reader)
            .await
        {
            Ok(()) => {
                self.remember(open.inode, &group, &name, &path);
                self.say_if_changed(&path, &open);
                Ok(())
            }
            Err(error)
                if matches!(
                    error.kind,
                    ErrorKind::Cancelled | ErrorKind::Bug | ErrorKind::Plugin
                ) =>
            {
                Err(error)
            }
            // Torn: the lane has filled it up and failed the unit.
            Err(error) => writing.fail(&error).await,
        }
    }

    /// Folders and symbolic links, innermost first.
    async fn finish(&mut self, cx: &Context, out: &Output) -> Result<()> {
        let (items, mut queue) = mpsc::channel(SMALL_WAITING);
        let walk = Walk {
            root: self.root.clone(),
            filter: self.filter.clone(),
            items,
        };
        let walking = tokio::task::spawn_blocking(move || walk.finish());
        let mut writing = Writing::new(out);
        let written = self.write_finish(cx, &mut queue, &mut writing).await;
        drop(queue);
        let walked = walking
            .await
            .map_err(|e| bug(format!("the walk ended: {e}")))?;
        written?;
        walked?;
        writing.close().await
    }

    async fn write_finish(
        &mut self,
        cx: &Context,
        queue: &mut mpsc::Receiver<Item>,
        writing: &mut Writing,
    ) -> Result<()> {
        while let Some(item) = queue.recv().await {
            cx.check_cancelled()?;
            let (path, meta) = match item {
                Item::Link(path, meta) => (path, Ok(meta)),
                Item::FailedAt(path, error) => (path, Err(error)),
                // Warnings were said in Data already.
                _ => continue,
            };
            let is_folder = meta
                .as_ref()
                .map_or(true, |meta| meta.kind == Kind::Directory);
            let (group, name) = unit_of(&path, is_folder);
            if self.marked(&group, &name) {
                continue;
            }
            if writing.unit.as_ref() != Some(&(group.clone(), name.clone())) {
                writing.end().await?;
                writing.begin_in_one_lane(&group, &name).await?;
            }
            match meta {
                Ok(meta) => writing.member(path, meta, Bytes::new()).await?,
                Err(error) => writing.fail(&error).await?,
            }
        }
        writing.end().await
    }
}

#[async_trait]
impl Snapshot for FilesSnapshot {
    fn at(&self) -> PointInTime {
        PointInTime {
            instant: self.at,
            consistency: "none".into(),
            position: None,
        }
    }

    fn large(&self) -> bool {
        !self.large.is_empty()
    }

    async fn write(&mut self, cx: &Context, stage: Stage, out: &Output) -> Result<()> {
        match stage {
            Stage::Schema => Ok(()),
            Stage::Data => self.data(cx, out).await,
            Stage::Large => self.large_files(cx, out).await,
            Stage::Finish => self.finish(cx, out).await,
        }
    }

    async fn close(self: Box<Self>, _cx: &Context) -> Result<Facts> {
        let mut warnings = self.warnings;
        if self.more_warnings > 0 {
            warnings.push(format!("and {} more", self.more_warnings));
        }
        if self.left_out > 0 {
            warnings.push(format!(
                "{} sockets, pipes or devices were left out",
                self.left_out
            ));
        }
        let selection =
            serde_json::to_value(self.filter.words()).map_err(|e| bug(e.to_string()))?;
        Ok(Facts {
            layout: LAYOUT,
            selection,
            more: serde_json::Value::Null,
            notes: Vec::new(),
            warnings,
        })
    }
}

/// What a lane reads a body from.
type Reader = dyn AsyncRead + Send + Unpin;

const READ_BYTES: usize = 1 << 20;

/// The body of a file as the lane takes it. One with holes is read on a thread that ends with its reader.
fn reader(open: &OpenFile) -> Result<Box<Reader>> {
    let body = open
        .body()
        .map_err(|e| bug(format!("a file's handle cannot be shared: {e}")))?;
    let mut body = match body {
        Body::Plain(file) => {
            let mut file = tokio::fs::File::from_std(file);
            file.set_max_buf_size(READ_BYTES);
            return Ok(Box::new(file));
        }
        sparse @ Body::Sparse { .. } => sparse,
    };
    let (to, from) = tokio::io::duplex(READ_BYTES);
    let mut to = SyncIoBridge::new(to);
    tokio::task::spawn_blocking(move || {
        // What cannot be read leaves the body too short, which its lane sees.
        if let Err(error) = std::io::copy(&mut body, &mut to) {
            tracing::debug!(%error, "a file with holes was not read to its end");
        }
    });
    Ok(Box::new(from))
}

/// The unit that is being written, and its lane.
struct Writing {
    out: Output,
    lane: Option<Lane>,
    unit: Option<(String, String)>,
    unit_bytes: u64,
    members: u64,
}

impl Writing {
    fn new(out: &Output) -> Self {
        Self {
            out: out.clone(),
            lane: None,
            unit: None,
            unit_bytes: 0,
            members: 0,
        }
    }

    /// Begins a unit; a border of lanes stands where `runs` says.
    async fn begin(&mut self, group: &str, name: &str) -> Result<()> {
        if border_before(&format!("{group}/{name}")) || self.unit_bytes > RUN_SPLIT_BYTES {
            self.close().await?;
        }
        self.begin_in_one_lane(group, name).await
    }

    async fn begin_in_one_lane(&mut self, group: &str, name: &str) -> Result<()> {
        self.out.expect(group, name).await?;
        self.unit = Some((group.to_owned(), name.to_owned()));
        (self.unit_bytes, self.members) = (0, 0);
        Ok(())
    }

    fn current(&self) -> Result<(String, String)> {
        self.unit
            .clone()
            .ok_or_else(|| bug("an entry outside of any unit"))
    }

    async fn lane(&mut self) -> Result<&mut Lane> {
        let (group, name) = self.current()?;
        let lane = match self.lane.take() {
            Some(lane) => lane,
            None => self.out.lane(&format!("{group}/{name}")).await?,
        };
        let lane = self.lane.insert(lane);
        lane.unit(&group, &name);
        Ok(lane)
    }

    async fn member(&mut self, path: MemberPath, meta: Meta, body: Bytes) -> Result<()> {
        let len = body.len() as u64;
        self.lane().await?.member(path, meta, body).await?;
        self.count(len);
        Ok(())
    }

    async fn sized(
        &mut self,
        path: MemberPath,
        meta: Meta,
        len: u64,
        reader: &mut Reader,
    ) -> Result<()> {
        self.lane().await?.sized(path, meta, len, reader).await?;
        self.count(len);
        Ok(())
    }

    fn count(&mut self, bytes: u64) {
        self.unit_bytes += bytes;
        self.members += 1;
    }

    /// Fails the unit that is being written; outside of one, the instance.
    async fn fail(&mut self, error: &Error) -> Result<()> {
        match &self.unit {
            Some((group, name)) => self.out.fail(group, name, error).await,
            None => Err(error.duplicate()),
        }
    }

    async fn end(&mut self) -> Result<()> {
        match self.unit.take() {
            Some((group, name)) => {
                self.out
                    .end(&group, &name, Counted { rows: self.members })
                    .await
            }
            None => Ok(()),
        }
    }

    async fn close(&mut self) -> Result<()> {
        match self.lane.take() {
            Some(lane) => lane.close().await,
            None => Ok(()),
        }
    }
}

/// The walking half, on a thread of its own.
struct Walk {
    root: Arc<Folder>,
    filter: Filter,
    items: mpsc::Sender<Item>,
}

/// The other half is gone: it has the reason.
struct Stopped;

impl From<Stopped> for Error {
    fn from(_: Stopped) -> Self {
        Self::cancelled()
    }
}

impl Walk {
    fn send(&self, item: Item) -> std::result::Result<(), Stopped> {
        self.items.blocking_send(item).map_err(|_| Stopped)
    }

    /// Loose files first, then each top-level folder: its loose files, then its folders.
    fn data(&self) -> Result<()> {
        let names = self.root.names(&self.filter)?;
        self.loose_files(&self.root, ".", &names)?;
        for folder in names.iter().filter(|n| n.kind == FileType::Directory) {
            let group = escape(&folder.name);
            let Some(top) = self.enter(&self.root, &folder.name)? else {
                continue;
            };
            let names = match top.names(&self.filter) {
                Ok(names) => names,
                Err(error) => {
                    self.failed_unit(&group, ".", error)?;
                    continue;
                }
            };
            self.loose_files(&top, &group, &names)?;
            for folder in names.iter().filter(|n| n.kind == FileType::Directory) {
                self.send(Item::Unit(group.clone(), escape(&folder.name)))?;
                match top.enter(&folder.name) {
                    Ok(Some(unit)) => self.files_of(&unit)?,
                    Ok(None) => self.send(Item::Warning(format!(
                        "`{}` vanished",
                        top.shown(&folder.name).display()
                    )))?,
                    Err(error) => self.send(Item::Failed(error))?,
                }
                self.send(Item::End)?;
            }
        }
        Ok(())
    }

    fn enter(&self, folder: &Folder, name: &[u8]) -> Result<Option<Folder>> {
        match folder.enter(name) {
            Ok(Some(entered)) => Ok(Some(entered)),
            Ok(None) => {
                self.send(Item::Warning(format!(
                    "`{}` vanished",
                    folder.shown(name).display()
                )))?;
                Ok(None)
            }
            Err(error) => {
                self.failed_unit(&escape(name), ".", error)?;
                Ok(None)
            }
        }
    }

    fn failed_unit(&self, group: &str, name: &str, error: Error) -> Result<()> {
        self.send(Item::Unit(group.to_owned(), name.to_owned()))?;
        self.send(Item::Failed(error))?;
        Ok(self.send(Item::End)?)
    }

    fn loose_files(&self, folder: &Folder, group: &str, names: &[super::walk::Name]) -> Result<()> {
        if names.iter().all(|n| n.kind == FileType::Directory) {
            return Ok(());
        }
        self.send(Item::Unit(group.to_owned(), ".".into()))?;
        for name in names.iter().filter(|n| n.kind != FileType::Directory) {
            self.entry(folder, &name.name, name.kind)?;
        }
        Ok(self.send(Item::End)?)
    }

    fn files_of(&self, folder: &Folder) -> Result<()> {
        let names = match folder.names(&self.filter) {
            Ok(names) => names,
            Err(error) => return Ok(self.send(Item::Failed(error))?),
        };
        for name in names {
            if name.kind != FileType::Directory {
                self.entry(folder, &name.name, name.kind)?;
                continue;
            }
            match folder.enter(&name.name) {
                Ok(Some(inner)) => self.files_of(&inner)?,
                Ok(None) => self.send(Item::Warning(format!(
                    "`{}` vanished",
                    folder.shown(&name.name).display()
                )))?,
                Err(error) => self.send(Item::Failed(error))?,
            }
        }
        Ok(())
    }

    fn entry(&self, folder: &Folder, name: &[u8], kind: FileType) -> Result<()> {
        match kind {
            FileType::RegularFile => self.file(folder, name),
            // Links come in Finish.
            FileType::Symlink => Ok(()),
            _ => Ok(self.send(Item::LeftOut)?),
        }
    }

    fn file(&self, folder: &Folder, name: &[u8]) -> Result<()> {
        let path = match folder.path_of(name) {
            Ok(path) => path,
            Err(error) => return Ok(self.send(Item::Failed(error))?),
        };
        for _ in 0..TRIES {
            let open = match folder.open(name) {
                Ok(Some(open)) => open,
                Ok(None) => {
                    return Ok(self.send(Item::Warning(format!(
                        "`{path}` vanished while it was read"
                    )))?);
                }
                Err(error) => return Ok(self.send(Item::Failed(error))?),
            };
            if open.len > LARGE_BYTES {
                return Ok(self.send(Item::Large(path))?);
            }
            if open.len > SMALL_BYTES || open.inode.is_some() {
                return Ok(self.send(Item::File(path, open))?);
            }
            let mut bytes = Vec::with_capacity(open.len as usize + 1);
            // One byte more tells whether it grew.
            let body = open.body();
            match body.and_then(|body| body.take(open.len + 1).read_to_end(&mut bytes)) {
                Err(e) => {
                    return Ok(self.send(Item::Failed(Error::io(
                        "read",
                        &folder.shown(name),
                        e,
                    )))?);
                }
                Ok(read) if (read as u64) < open.len => continue,
                Ok(read) if read as u64 > open.len => {
                    bytes.truncate(open.len as usize);
                    self.send(Item::Warning(format!("`{path}` grew while it was read; it is in the archive with the {} bytes that it had", open.len)))?;
                }
                Ok(_) => {}
            }
            return Ok(self.send(Item::Small(path, open.meta, bytes))?);
        }
        Ok(self.send(Item::Failed(Error::new(
            ErrorKind::Unreachable,
            format!("`{path}` shrank each time it was read"),
        )))?)
    }

    fn finish(&self) -> Result<()> {
        self.finish_folder(&self.root)
    }

    fn finish_folder(&self, folder: &Folder) -> Result<()> {
        let names = match folder.names(&self.filter) {
            Ok(names) => names,
            Err(error) => return Ok(self.send(Item::FailedAt(folder.path.clone(), error))?),
        };
        // Folders first, then links: so the loose links of a folder, one unit, stand together.
        for name in names.iter().filter(|n| n.kind == FileType::Directory) {
            match folder.enter(&name.name) {
                Ok(Some(inner)) => self.finish_folder(&inner)?,
                Ok(None) => {}
                Err(error) => self.send(Item::FailedAt(folder.path_of(&name.name)?, error))?,
            }
        }
        for name in names.iter().filter(|n| n.kind == FileType::Symlink) {
            match folder.link(&name.name) {
                Ok(Some(meta)) => self.send(Item::Link(folder.path_of(&name.name)?, meta))?,
                Ok(None) => {}
                Err(error) => self.send(Item::FailedAt(folder.path_of(&name.name)?, error))?,
            }
        }
        Ok(self.send(Item::Link(folder.path.clone(), folder.meta()?))?)
    }
}
