//! One run of a settings file at a time on a host: an advisory lock on the file itself, which ends with the process.

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::Path;
use std::time::Duration;

/// Held until dropped.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the lock, waiting up to `patience`. `Locked` when another run holds it longer.
    pub async fn take(cx: &Context, path: &Path, patience: Duration) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let began = std::time::Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() >= patience => {
                    return Err(Error::new(
                        ErrorKind::Locked,
                        format!("another run of `{}` goes on", path.display()),
                    )
                    .hint("wait for it, or repeat with --wait-lock 10m"));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                // A file system without locks: the sink's own claims still keep two runs apart.
                Err(error) => {
                    tracing::warn!(%error, "the settings file cannot be locked here");
                    return Ok(Self { _file: file });
                }
            }
            cx.pause(Duration::from_millis(200)).await?;
        }
    }
}
