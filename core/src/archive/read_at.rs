//! Reading from any place of a stored archive: the one way in for every reader, and the only caller of `Sink::read`.

use crate::context::Context;
use crate::error::{Error, Result, bug};
use crate::sink::{ByteStream, Sink, Stored};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use sha2::digest::{Digest, Output};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;

/// Bytes at any place. All offsets of the format count inside the envelope.
#[async_trait]
pub trait ReadAt: Send + Sync {
    /// Bytes in all.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Exactly these bytes, or an error.
    async fn read_at(&self, offset: u64, len: u64) -> Result<Bytes>;
}

/// The sum of all bytes, piece by piece.
pub async fn digest<D: Digest>(read: &dyn ReadAt) -> Result<Output<D>> {
    const PIECE_BYTES: u64 = 4 << 20;
    let mut sum = D::new();
    let mut at = 0;
    while at < read.len() {
        let len = PIECE_BYTES.min(read.len() - at);
        sum.update(read.read_at(at, len).await?);
        at += len;
    }
    Ok(sum.finalize())
}

/// A file on this machine, for `bk restore FILE`.
#[derive(Debug)]
pub struct FileReadAt {
    file: Arc<std::fs::File>,
    len: u64,
    name: String,
}

impl FileReadAt {
    /// Opens it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
        let len = file
            .metadata()
            .map_err(|e| Error::io("read", path, e))?
            .len();
        Ok(Self {
            file: Arc::new(file),
            len,
            name: path.display().to_string(),
        })
    }
}

#[async_trait]
impl ReadAt for FileReadAt {
    fn len(&self) -> u64 {
        self.len
    }

    async fn read_at(&self, offset: u64, len: u64) -> Result<Bytes> {
        use std::os::unix::fs::FileExt;
        let (file, name) = (self.file.clone(), self.name.clone());
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, offset).map(|()| bytes)
        });
        match read.await {
            Ok(Ok(bytes)) => Ok(bytes.into()),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(Error::corrupt(format!("`{name}` is shorter than it was")))
            }
            Ok(Err(e)) => Err(Error::io("read", Path::new(&name), e)),
            Err(e) => Err(bug(format!("a read ended: {e}"))),
        }
    }
}

/// One version in a sink. Where the sink has no ranges, reads that go forward share one stream; going back opens it anew.
pub struct SinkReadAt {
    cx: Context,
    sink: Arc<dyn Sink>,
    which: Stored,
    forward: Option<Mutex<Forward>>,
    passes: AtomicU64,
}

#[derive(Default)]
struct Forward {
    stream: Option<ByteStream>,
    at: u64,
    rest: Bytes,
}

impl SinkReadAt {
    /// Reads `which` from `sink`.
    pub fn new(cx: Context, sink: Arc<dyn Sink>, which: Stored) -> Self {
        let forward = (!sink.abilities().ranges).then(Mutex::default);
        Self {
            cx,
            sink,
            which,
            forward,
            passes: AtomicU64::new(0),
        }
    }

    /// How often the sink was asked.
    pub fn reads(&self) -> u64 {
        self.passes.load(Ordering::Relaxed)
    }

    /// Everything from a place to the end, in one stream.
    pub async fn stream(&self, from: u64) -> Result<ByteStream> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        let range = from..self.which.bytes;
        let stream = self.sink.read(&self.cx, &self.which, range).await?;
        if self.forward.is_none() {
            return Ok(stream);
        }
        // It begins at the beginning.
        let mut skip = from;
        let behind = stream.map(move |chunk| {
            chunk.map(|mut chunk| {
                let skipped = skip.min(Bytes::len(&chunk) as u64);
                skip -= skipped;
                chunk.split_off(skipped as usize)
            })
        });
        Ok(behind.boxed())
    }

    fn short(&self) -> Error {
        Error::corrupt(format!(
            "`{}` is shorter than its listed {} bytes",
            self.which.name, self.which.bytes
        ))
    }

    async fn ranged(&self, offset: u64, len: u64) -> Result<Bytes> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        let mut stream = self
            .sink
            .read(&self.cx, &self.which, offset..offset + len)
            .await?;
        let mut bytes = BytesMut::with_capacity(len as usize);
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk?);
            if bytes.len() as u64 > len {
                return Err(bug(format!(
                    "the sink gave more than the {len} bytes asked for"
                )));
            }
        }
        if (bytes.len() as u64) < len {
            Err(self.short())
        } else {
            Ok(bytes.freeze())
        }
    }

    async fn sequential(&self, forward: &Mutex<Forward>, offset: u64, len: u64) -> Result<Bytes> {
        let mut state = forward.lock().await;
        if state.stream.is_none() || offset < state.at {
            self.passes.fetch_add(1, Ordering::Relaxed);
            let stream = self
                .sink
                .read(&self.cx, &self.which, 0..self.which.bytes)
                .await?;
            *state = Forward {
                stream: Some(stream),
                at: 0,
                rest: Bytes::new(),
            };
        }
        let mut bytes = BytesMut::with_capacity(len as usize);
        while (bytes.len() as u64) < len {
            if state.rest.is_empty() {
                let stream = state
                    .stream
                    .as_mut()
                    .ok_or_else(|| bug("no stream to read on"))?;
                state.rest = stream.next().await.ok_or_else(|| self.short())??;
                continue;
            }
            let skip = (offset + bytes.len() as u64 - state.at).min(state.rest.len() as u64);
            let take = (len - bytes.len() as u64).min(state.rest.len() as u64 - skip);
            let chunk = state.rest.split_to((skip + take) as usize);
            bytes.extend_from_slice(&chunk[skip as usize..]);
            state.at += skip + take;
        }
        Ok(bytes.freeze())
    }
}

#[async_trait]
impl ReadAt for SinkReadAt {
    fn len(&self) -> u64 {
        self.which.bytes
    }

    async fn read_at(&self, offset: u64, len: u64) -> Result<Bytes> {
        self.cx.check_cancelled()?;
        match &self.forward {
            None => self.ranged(offset, len).await,
            Some(forward) => self.sequential(forward, offset, len).await,
        }
    }
}

/// Bytes in memory.
#[async_trait]
impl ReadAt for Bytes {
    fn len(&self) -> u64 {
        Bytes::len(self) as u64
    }

    async fn read_at(&self, offset: u64, len: u64) -> Result<Bytes> {
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= Bytes::len(self) as u64);
        let end =
            end.ok_or_else(|| Error::corrupt("the archive is shorter than its index says"))?;
        Ok(self.slice(offset as usize..end as usize))
    }
}

/// Keeps the last bytes that were fetched at the end, so that the tail is read once.
pub struct TailCached {
    inner: Arc<dyn ReadAt>,
    tail_at: u64,
    tail: Bytes,
}

impl TailCached {
    /// Fetches the last `len` bytes and keeps them.
    pub async fn new(inner: Arc<dyn ReadAt>, len: u64) -> Result<Self> {
        let tail_at = inner.len().saturating_sub(len);
        let tail = inner.read_at(tail_at, inner.len() - tail_at).await?;
        Ok(Self {
            inner,
            tail_at,
            tail,
        })
    }

    /// Whether the kept bytes are all there are.
    pub fn holds_everything(&self) -> bool {
        self.tail_at == 0
    }

    /// Makes the kept tail longer, by one read.
    pub async fn extend_to(&mut self, len: u64) -> Result<()> {
        let at = self.inner.len().saturating_sub(len);
        if at < self.tail_at {
            let front = self.inner.read_at(at, self.tail_at - at).await?;
            self.tail = [front, self.tail.clone()].concat().into();
            self.tail_at = at;
        }
        Ok(())
    }
}

#[async_trait]
impl ReadAt for TailCached {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    async fn read_at(&self, offset: u64, len: u64) -> Result<Bytes> {
        if offset >= self.tail_at {
            return self.tail.read_at(offset - self.tail_at, len).await;
        }
        self.inner.read_at(offset, len).await
    }
}
