//! An archive on its way: a part of its own, many writes in flight, a name that is claimed in one step.

use crate::ssh::sftp::{Failure, STALL, Sftp};
use crate::ssh::{Ssh, missing_folder};
use async_trait::async_trait;
use bk_core::archive::writer::hex;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, bug};
use bk_core::name::ArchiveName;
use bk_core::sink::{Seal, Stored, Upload};
use bytes::Bytes;
use russh_sftp::protocol::StatusCode;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Bytes of one write; servers need take no more.
const WRITE_BYTES: usize = 32 << 10;
/// Writes that wait for their acknowledgement: the window that OpenSSH gives, more of them bring nothing.
const IN_FLIGHT: usize = 64;
/// Names that are tried.
const MOST_NAMES: usize = 20;
/// Below this the medium is full.
const FULL_BELOW_BYTES: u64 = 1 << 20;

pub struct SshUpload {
    ssh: Ssh,
    cx: Context,
    sftp: Arc<Sftp>,
    part: String,
    handle: Arc<str>,
    at: u64,
    waiting: Vec<u8>,
    writes: JoinSet<std::result::Result<(), Failure>>,
}

impl SshUpload {
    pub async fn begin(ssh: Ssh, cx: Context, sftp: Arc<Sftp>, part: String) -> Result<Self> {
        let handle = sftp.create(&part).await.map_err(|failure| {
            let absent = failure.is_absence();
            let error = failure.error;
            if absent {
                missing_folder(&error)
            } else {
                error
            }
        })?;
        Ok(Self {
            ssh,
            cx,
            sftp,
            part,
            handle: handle.into(),
            at: 0,
            waiting: Vec::with_capacity(WRITE_BYTES),
            writes: JoinSet::new(),
        })
    }

    async fn send(&mut self, bytes: Vec<u8>) -> Result<()> {
        while self.writes.len() >= IN_FLIGHT {
            self.acknowledged().await?;
        }
        let (sftp, part, handle) = (self.sftp.clone(), self.part.clone(), self.handle.clone());
        let at = self.at;
        self.at += bytes.len() as u64;
        self.writes
            .spawn(async move { sftp.write((&part, &handle), at, bytes).await });
        Ok(())
    }

    async fn acknowledged(&mut self) -> Result<()> {
        let next = self.writes.join_next();
        let next = tokio::select! {
            biased;
            () = self.cx.cancel.cancelled() => return Err(Error::cancelled()),
            next = tokio::time::timeout(STALL, next) => next,
        };
        match next {
            Ok(None | Some(Ok(Ok(())))) => Ok(()),
            Ok(Some(Ok(Err(failure)))) => Err(self.explained(failure).await),
            Ok(Some(Err(e))) => Err(bug(format!("a write ended: {e}"))),
            Err(_) => Err(Error::new(
                ErrorKind::Unreachable,
                format!("{} acknowledges nothing any more", self.sftp.place),
            )),
        }
    }

    /// The general failure of a write is a full disk more often than not; the server says no more than that it failed.
    async fn explained(&self, failure: Failure) -> Error {
        let free = match failure.code {
            Some(StatusCode::Failure) => self.sftp.free_bytes(&self.ssh.place.path).await,
            _ => None,
        };
        match free {
            Some(free) if free < FULL_BELOW_BYTES => Error::new(
                ErrorKind::NoSpace,
                format!("`{}` on {} is full", self.ssh.place.path, self.sftp.place),
            ),
            _ => failure.error,
        }
    }

    /// All that was given is there, on disk and as long as it should be.
    async fn finish(&mut self) -> Result<()> {
        let rest = std::mem::take(&mut self.waiting);
        if !rest.is_empty() {
            self.send(rest).await?;
        }
        while !self.writes.is_empty() {
            self.acknowledged().await?;
        }
        self.sftp.sync((&self.part, &self.handle)).await?;
        self.sftp.close((&self.part, &self.handle)).await?;
        let bytes = self.sftp.meta(&self.part).await?.bytes;
        if bytes != self.at {
            return Err(Error::corrupt(format!(
                "`{}` on {} has {bytes} of {} bytes",
                self.part, self.sftp.place, self.at
            )));
        }
        Ok(())
    }

    /// Gives the part this name. False where it is taken.
    async fn claim(&mut self, name: &str, seal: &Seal) -> Result<bool> {
        let path = self.ssh.path_of(name)?;
        let claimed = self.ssh.claim(&self.sftp, &self.part, &path).await?;
        let Err(failure) = claimed else {
            return Ok(true);
        };
        match failure.code {
            Some(StatusCode::Failure) => {}
            Some(_) => return Err(failure.error),
            // The answer was lost: whether it was done is seen from a new connection.
            None => {
                self.sftp = self
                    .ssh
                    .anew(&self.cx)
                    .await
                    .map_err(|_| failure.error.duplicate())?;
            }
        }
        match self.sftp.meta(&path).await {
            // Taken; by this very archive where the answer was lost.
            Ok(meta) => Ok(meta.bytes == seal.bytes
                && failure.code.is_none()
                && self.is_ours(&path, seal).await?),
            Err(absent) if absent.is_absence() => Err(self.explained(failure).await),
            Err(other) => Err(other.error),
        }
    }

    async fn is_ours(&self, path: &str, seal: &Seal) -> Result<bool> {
        use sha2::Digest;
        let file = crate::ssh::sftp::OpenFile::open(self.sftp.clone(), path.to_owned()).await?;
        let (mut digest, mut at) = (sha2::Sha256::new(), 0);
        loop {
            let bytes = file.read(at, self.sftp.read_bytes).await?;
            if bytes.is_empty() {
                break;
            }
            at += bytes.len() as u64;
            digest.update(&bytes);
        }
        Ok(hex(&digest.finalize()) == seal.sha256)
    }

    async fn publish_now(&mut self, name: &ArchiveName, seal: &Seal) -> Result<Stored> {
        self.finish().await?;
        for candidate in name.candidates(seal.complete).take(MOST_NAMES) {
            let path = self.ssh.name_for(&self.sftp, name, &candidate).await?;
            if self.ssh.is_there(&self.sftp, &path).await? {
                continue;
            }
            let text = seal.sum_file(&candidate);
            let sums = self.ssh.temporary(&self.cx, "sums")?;
            self.sftp.write_small(&sums, text.as_bytes()).await?;
            match self.claim(&path, seal).await {
                Ok(true) => {}
                Ok(false) => {
                    self.sftp.remove(&sums).await?;
                    continue;
                }
                Err(error) => {
                    // The first error is the one that matters; what stays is cleaned by a later run.
                    drop(self.sftp.remove(&sums).await);
                    return Err(error);
                }
            }
            let sums_path = self.ssh.path_of(&format!("{path}.sha256"))?;
            self.sftp.replace(&sums, &sums_path).await?;
            if let Err(error) = self.sftp.remove_if_there(&self.part).await {
                tracing::warn!(part = %self.part, %error, "a part stays until a later run");
            }
            return self.ssh.stored(&self.sftp, &path).await;
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "{MOST_NAMES} names for the archive are taken on {}",
                self.sftp.place
            ),
        ))
    }

    async fn leave_nothing(&mut self) -> Result<()> {
        self.writes.shutdown().await;
        if self.sftp.is_closed() {
            self.sftp = self.ssh.anew(&self.cx).await?;
        } else {
            // Whether it can be closed or not: it is removed.
            drop(self.sftp.close((&self.part, &self.handle)).await);
        }
        self.sftp.remove_if_there(&self.part).await
    }
}

#[async_trait]
impl Upload for SshUpload {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let room = WRITE_BYTES - self.waiting.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.waiting.extend_from_slice(now);
            rest = later;
            if self.waiting.len() == WRITE_BYTES {
                let full = std::mem::replace(&mut self.waiting, Vec::with_capacity(WRITE_BYTES));
                self.send(full).await?;
            }
        }
        Ok(())
    }

    async fn publish(mut self: Box<Self>, name: &ArchiveName, seal: &Seal) -> Result<Stored> {
        let published = self.publish_now(name, seal).await;
        if published.is_err() {
            // The first error is the one that matters; what stays is cleaned by a later run.
            drop(self.leave_nothing().await);
        }
        published
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        self.leave_nothing().await
    }
}
