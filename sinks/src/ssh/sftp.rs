//! Files on the server: one SFTP session, errors told apart by their codes, never by their texts.

use crate::ssh::Place;
use crate::ssh::login::{self, Login, lock};
use crate::ssh::watched::Watched;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, bug};
use bytes::Bytes;
use jiff::Timestamp;
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::client::{Config, RawSftpSession};
use russh_sftp::protocol::{FileAttributes, OpenFlags, Packet, StatusCode};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Patience with one answer; a stall is noticed earlier (`STALL`).
const ANSWER_SECONDS: u64 = 600;
/// Nothing was acknowledged for so long.
pub const STALL: Duration = Duration::from_mins(1);
/// What servers take at once that name no limit.
const USUAL_BYTES: u64 = 32 << 10;
const MOST_READ_BYTES: u64 = 255 << 10;
/// Files and folders of ours are nobody else's.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// A session. Ends with its last handle.
pub struct Sftp {
    raw: RawSftpSession,
    login: Login,
    extensions: HashMap<String, String>,
    /// An answer failed to come, whatever the connection says of itself.
    is_dead: AtomicBool,
    /// Fires when the server ends the session.
    ended: CancellationToken,
    /// Bytes that one read may ask for.
    pub read_bytes: u64,
    /// `user@host`, for people.
    pub place: String,
}

/// How a file is, as far as SFTP says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub bytes: u64,
    pub modified: Timestamp,
    pub is_folder: bool,
    pub is_file: bool,
}

/// Why something was not done.
#[derive(Debug)]
pub struct Failure {
    /// The server's code; nothing where no answer came.
    pub code: Option<StatusCode>,
    /// The same as an error.
    pub error: Error,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl Failure {
    /// Whether the thing is not there.
    pub fn is_absence(&self) -> bool {
        self.code == Some(StatusCode::NoSuchFile)
    }
}

pub type Done<T> = std::result::Result<T, Failure>;

/// Nothing for what is not there.
pub fn there<T>(done: Done<T>) -> Result<Option<T>> {
    match done {
        Ok(found) => Ok(Some(found)),
        Err(failure) if failure.is_absence() => Ok(None),
        Err(failure) => Err(failure.error),
    }
}

impl Sftp {
    /// Logs in and begins.
    pub async fn open(cx: &Context, place: &Place) -> Result<Self> {
        let login = login::login(cx, place).await?;
        let shown = login::place(&place.host);
        let gone = |e: russh::Error| {
            Error::new(
                ErrorKind::Unreachable,
                format!("{shown} does not begin a session: {e}"),
            )
        };
        let channel = login.handle.channel_open_session().await.map_err(gone)?;
        channel
            .request_subsystem(true, "sftp")
            .await
            .map_err(gone)?;
        let config = Config {
            request_timeout_secs: ANSWER_SECONDS,
            ..Config::default()
        };
        let ended = CancellationToken::new();
        let stream = Watched::new(channel.into_stream(), ended.clone());
        let raw = RawSftpSession::new_with_config(stream, config);
        let begun = tokio::time::timeout(STALL, raw.init()).await;
        let version = begun
            .map_err(|_| ())
            .and_then(|v| v.map_err(|_| ()))
            .map_err(|()| {
                Error::new(ErrorKind::Unreachable, format!("{shown} offers no SFTP"))
                    .hint("add `Subsystem sftp internal-sftp` to its sshd_config")
            })?;
        let mut sftp = Self {
            raw,
            login,
            extensions: version.extensions,
            is_dead: AtomicBool::new(false),
            ended,
            read_bytes: USUAL_BYTES,
            place: shown,
        };
        if sftp.has("limits@openssh.com")
            && let Ok(limits) = sftp.raw.limits().await
            && limits.max_read_len > 0
        {
            sftp.read_bytes = limits.max_read_len.min(MOST_READ_BYTES);
        }
        Ok(sftp)
    }

    /// Whether the server says that it can do this.
    pub fn has(&self, extension: &str) -> bool {
        self.extensions.contains_key(extension)
    }

    /// Whether the connection is over.
    pub fn is_closed(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
            || self.ended.is_cancelled()
            || self.login.handle.is_closed()
    }

    /// Nobody asks it any more.
    fn give_up(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
    }

    /// The server's key, as it is written down.
    pub fn host_key(&self) -> &str {
        &self.login.host_key
    }

    /// What is amiss and stopped nothing.
    pub fn warnings(&self) -> &[String] {
        &self.login.warnings
    }

    fn failure(&self, doing: &str, path: &str, error: &SftpError) -> Failure {
        let what = format!("could not {doing} `{path}` on {}", self.place);
        let code = if let SftpError::Status(status) = error {
            Some(status.status_code)
        } else {
            self.give_up();
            None
        };
        let kind = match code {
            Some(StatusCode::NoSuchFile) => ErrorKind::NotFound,
            Some(StatusCode::PermissionDenied) => ErrorKind::Denied,
            Some(StatusCode::OpUnsupported) => ErrorKind::Unsupported,
            _ => ErrorKind::Unreachable,
        };
        let what = match code {
            Some(code) => format!("{what}: {code}"),
            None if self.login.handle.is_closed() => format!("{what}: the connection broke"),
            None => format!("{what}: {error}"),
        };
        Failure {
            code,
            error: Error::new(kind, what),
        }
    }

    /// What is asked, unless the session ends before the answer comes.
    async fn while_it_lasts<T>(
        &self,
        work: impl Future<Output = std::result::Result<T, SftpError>>,
    ) -> std::result::Result<T, SftpError> {
        tokio::select! {
            biased;
            answer = work => answer,
            () = self.ended.cancelled() => {
                Err(SftpError::UnexpectedBehavior("the server ended the session".into()))
            }
        }
    }

    async fn done<T>(
        &self,
        doing: &str,
        path: &str,
        work: impl Future<Output = std::result::Result<T, SftpError>>,
    ) -> Done<T> {
        let answer = self.while_it_lasts(work).await;
        answer.map_err(|e| self.failure(doing, path, &e))
    }

    /// The same of what a server answers at once.
    async fn soon<T>(
        &self,
        doing: &str,
        path: &str,
        work: impl Future<Output = std::result::Result<T, SftpError>>,
    ) -> Done<T> {
        let work = tokio::time::timeout(STALL, self.while_it_lasts(work));
        let answer = work.await.unwrap_or(Err(SftpError::Timeout));
        answer.map_err(|e| self.failure(doing, path, &e))
    }

    /// How a path is.
    pub async fn meta(&self, path: &str) -> Done<Meta> {
        let attrs = self.soon("look at", path, self.raw.stat(path)).await?;
        Ok(meta(&attrs.attrs))
    }

    /// Names and metadata in a folder.
    pub async fn entries(&self, path: &str) -> Done<Vec<(String, Meta)>> {
        let handle = self
            .soon("list", path, self.raw.opendir(path))
            .await?
            .handle;
        let mut found = Vec::new();
        let ended = loop {
            let names = self.while_it_lasts(self.raw.readdir(&*handle));
            let read = tokio::time::timeout(STALL, names);
            match read.await.unwrap_or(Err(SftpError::Timeout)) {
                Ok(names) => found.extend(
                    names
                        .files
                        .into_iter()
                        .map(|file| (file.filename, meta(&file.attrs))),
                ),
                Err(SftpError::Status(status)) if status.status_code == StatusCode::Eof => {
                    break Ok(());
                }
                Err(error) => break Err(self.failure("list", path, &error)),
            }
        };
        let closed = self.done("list", path, self.raw.close(handle)).await;
        ended.and(closed.map(drop))?;
        Ok(found)
    }

    /// A file that nobody has yet, for writing.
    pub async fn create(&self, path: &str) -> Done<String> {
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        let attrs = FileAttributes {
            permissions: Some(FILE_MODE),
            ..FileAttributes::empty()
        };
        let opened = self.raw.open(path, flags, attrs);
        Ok(self.soon("make", path, opened).await?.handle)
    }

    /// A file for reading.
    pub async fn open_file(&self, path: &str) -> Done<String> {
        let opened = self
            .raw
            .open(path, OpenFlags::READ, FileAttributes::empty());
        Ok(self.soon("open", path, opened).await?.handle)
    }

    /// Writes at a place.
    pub async fn write(&self, (path, handle): (&str, &str), at: u64, bytes: Vec<u8>) -> Done<()> {
        let written = self.raw.write(handle, at, bytes);
        self.done("write to", path, written).await.map(drop)
    }

    /// Reads so many bytes from a place; fewer only at the end.
    pub async fn read(&self, (path, handle): (&str, &str), at: u64, len: u64) -> Done<Bytes> {
        let mut bytes = Vec::with_capacity(len as usize);
        while (bytes.len() as u64) < len {
            let (from, rest) = (at + bytes.len() as u64, len - bytes.len() as u64);
            let read = self.raw.read(handle, from, rest as u32);
            match self.while_it_lasts(read).await {
                Ok(data) if data.data.is_empty() => break,
                Ok(data) => bytes.extend_from_slice(&data.data),
                Err(SftpError::Status(status)) if status.status_code == StatusCode::Eof => break,
                Err(error) => return Err(self.failure("read", path, &error)),
            }
        }
        Ok(bytes.into())
    }

    /// On disk, where the server can do that.
    pub async fn sync(&self, (path, handle): (&str, &str)) -> Done<()> {
        if !self.has("fsync@openssh.com") {
            return Ok(());
        }
        self.done("sync", path, self.raw.fsync(handle))
            .await
            .map(drop)
    }

    /// Ends the use of a file.
    pub async fn close(&self, (path, handle): (&str, &str)) -> Done<()> {
        self.done("close", path, self.raw.close(handle))
            .await
            .map(drop)
    }

    /// A whole small file.
    pub async fn read_small(&self, path: &str, most: u64) -> Done<Vec<u8>> {
        let handle = self.open_file(path).await?;
        let mut bytes = Vec::new();
        let read = loop {
            let at = bytes.len() as u64;
            match self.read((path, &handle), at, self.read_bytes).await {
                Ok(chunk) if chunk.is_empty() || at > most => break Ok(()),
                Ok(chunk) => bytes.extend_from_slice(&chunk),
                Err(failure) => break Err(failure),
            }
        };
        let closed = self.close((path, &handle)).await;
        read.and(closed)?;
        Ok(bytes)
    }

    /// A whole small file under a new name, synced.
    pub async fn write_small(&self, path: &str, body: &[u8]) -> Done<()> {
        let handle = self.create(path).await?;
        let mut written = Ok(());
        for (n, piece) in body.chunks(USUAL_BYTES as usize).enumerate() {
            let at = n as u64 * USUAL_BYTES;
            written = self.write((path, &handle), at, piece.to_vec()).await;
            if written.is_err() {
                break;
            }
        }
        if written.is_ok() {
            written = self.sync((path, &handle)).await;
        }
        let closed = self.close((path, &handle)).await;
        written.and(closed)
    }

    /// Gives a file a second name, unless that is taken.
    pub async fn link(&self, path: &str, name: &str) -> Done<()> {
        self.done("name", name, self.raw.hardlink(path, name))
            .await
            .map(drop)
    }

    /// The plain renaming of SFTP, which refuses a name that is taken on most servers.
    pub async fn rename(&self, path: &str, name: &str) -> Done<()> {
        self.done("name", name, self.raw.rename(path, name))
            .await
            .map(drop)
    }

    /// Renames over what is there.
    pub async fn replace(&self, path: &str, name: &str) -> Done<()> {
        if !self.has("posix-rename@openssh.com") {
            match self.remove(name).await {
                Err(failure) if !failure.is_absence() => return Err(failure),
                _ => return self.rename(path, name).await,
            }
        }
        let mut two = Vec::new();
        for text in [path, name] {
            two.extend_from_slice(&(text.len() as u32).to_be_bytes());
            two.extend_from_slice(text.as_bytes());
        }
        let sent = self.raw.extended("posix-rename@openssh.com", two);
        match self.done("name", name, sent).await? {
            Packet::Status(status) if status.status_code == StatusCode::Ok => Ok(()),
            Packet::Status(status) => Err(self.failure("name", name, &status.into())),
            _ => Err(Failure {
                code: None,
                error: bug("an answer to a renaming that is none"),
            }),
        }
    }

    /// Removes a file.
    pub async fn remove(&self, path: &str) -> Done<()> {
        self.done("remove", path, self.raw.remove(path))
            .await
            .map(drop)
    }

    /// The same; one that is not there is as good.
    pub async fn remove_if_there(&self, path: &str) -> Result<()> {
        there(self.remove(path).await).map(drop)
    }

    /// Removes an empty folder.
    pub async fn remove_folder(&self, path: &str) -> Done<()> {
        self.done("remove", path, self.raw.rmdir(path))
            .await
            .map(drop)
    }

    /// Makes a folder; one that is there is as good.
    pub async fn make_folder(&self, path: &str) -> Done<()> {
        let attrs = FileAttributes {
            permissions: Some(FOLDER_MODE),
            ..FileAttributes::empty()
        };
        match self.done("make", path, self.raw.mkdir(path, attrs)).await {
            Err(failure) if failure.code == Some(StatusCode::Failure) => {
                match self.meta(path).await {
                    Ok(meta) if meta.is_folder => Ok(()),
                    _ => Err(failure),
                }
            }
            other => other.map(drop),
        }
    }

    /// Bytes that are free, where the server says that.
    pub async fn free_bytes(&self, path: &str) -> Option<u64> {
        if !self.has("statvfs@openssh.com") {
            return None;
        }
        let stat = self.raw.statvfs(path).await.ok()?;
        Some(stat.blocks_avail.saturating_mul(stat.fragment_size))
    }
}

fn meta(attrs: &FileAttributes) -> Meta {
    let kind = attrs.file_type();
    Meta {
        bytes: attrs.size.unwrap_or_default(),
        modified: Timestamp::from_second(i64::from(attrs.mtime.unwrap_or_default()))
            .unwrap_or(Timestamp::UNIX_EPOCH),
        is_folder: kind.is_dir(),
        is_file: kind.is_file(),
    }
}

/// An open file that is closed when nobody reads it any more.
pub struct OpenFile {
    sftp: Arc<Sftp>,
    path: String,
    handle: Option<String>,
    /// When a read was last answered.
    brought: Mutex<Instant>,
}

impl OpenFile {
    /// Opens it.
    pub async fn open(sftp: Arc<Sftp>, path: String) -> Done<Self> {
        let handle = sftp.open_file(&path).await?;
        Ok(Self {
            sftp,
            path,
            handle: Some(handle),
            brought: Mutex::new(Instant::now()),
        })
    }

    /// Reads so many bytes from a place; fewer only at the end. It is given up when none of the reads of this file brought anything for a
    /// while: on a narrow link the last of many that were asked for at once waits long.
    pub async fn read(&self, at: u64, len: u64) -> Result<Bytes> {
        let handle = self.handle.as_deref().unwrap_or_default();
        let mut read = std::pin::pin!(self.sftp.read((&self.path, handle), at, len));
        let mut since = Instant::now();
        loop {
            if let Ok(read) = tokio::time::timeout_at((since + STALL).into(), &mut read).await {
                *lock(&self.brought) = Instant::now();
                return Ok(read?);
            }
            let brought = *lock(&self.brought);
            if brought <= since {
                self.sftp.give_up();
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("{} sends nothing of `{}`", self.sftp.place, self.path),
                ));
            }
            since = brought;
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else {
            return;
        };
        let (sftp, path) = (self.sftp.clone(), std::mem::take(&mut self.path));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // A handle that cannot be closed goes with the session.
            runtime.spawn(async move { drop(sftp.close((&path, &handle)).await) });
        }
    }
}
