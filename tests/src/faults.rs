//! A good sink made bad: it fails or stalls at a chosen place.

use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::layout::Layout;
use bk_core::name::ArchiveName;
use bk_core::sink::{
    Abilities, ByteStream, Filter, Health, Note, NoteName, NoteSeen, Seal, Sink, SizeHint, Stored,
    Upload, Was,
};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where it goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// `check` finds nobody.
    Check,
    /// `list` finds nobody.
    List,
    /// `create` fails.
    Create,
    /// The chunk of this number fails.
    Write(u64),
    /// The chunk of this number is never taken.
    Stall(u64),
    /// `publish` fails.
    Publish,
    /// Every chunk takes a while.
    Slow,
    /// One byte at this place reads flipped.
    Flip(u64),
}

/// The sink with its fault.
#[derive(Clone)]
pub struct FaultySink {
    /// What is beneath.
    pub inner: Arc<dyn Sink>,
    /// Where it goes wrong.
    pub fault: Fault,
    /// Uploads that were aborted.
    pub aborted: Arc<AtomicU64>,
    /// Told of every read before it happens.
    pub before_read: Option<ReadHook>,
}

/// Told which copy is read, and from where.
pub type ReadHook = Arc<dyn Fn(&Stored, u64) + Send + Sync>;

impl FaultySink {
    /// Wraps.
    pub fn new(inner: Arc<dyn Sink>, fault: Fault) -> Self {
        Self {
            inner,
            fault,
            aborted: Arc::default(),
            before_read: None,
        }
    }

    /// Wraps, and tells of reads.
    pub fn watched(inner: Arc<dyn Sink>, before_read: ReadHook) -> Self {
        Self {
            before_read: Some(before_read),
            ..Self::new(inner, Fault::None)
        }
    }

    fn fails(&self, at: Fault) -> Result<()> {
        if self.fault == at {
            Err(Error::new(
                ErrorKind::Unreachable,
                format!("the sink fails at {at:?}"),
            ))
        } else {
            Ok(())
        }
    }
}

struct FaultyUpload {
    inner: Box<dyn Upload>,
    sink: FaultySink,
    chunks: u64,
}

#[async_trait]
impl Upload for FaultyUpload {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        let n = self.chunks;
        self.chunks += 1;
        self.sink.fails(Fault::Write(n))?;
        match self.sink.fault {
            Fault::Stall(at) if at == n => std::future::pending().await,
            Fault::Slow => tokio::time::sleep(std::time::Duration::from_millis(2)).await,
            _ => {}
        }
        self.inner.write(chunk).await
    }

    async fn publish(self: Box<Self>, name: &ArchiveName, seal: &Seal) -> Result<Stored> {
        if self.sink.fault == Fault::Publish {
            self.inner.abort().await?;
            return self.sink.fails(Fault::Publish).map(|()| unreachable!());
        }
        self.inner.publish(name, seal).await
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.sink.aborted.fetch_add(1, Ordering::SeqCst);
        self.inner.abort().await
    }
}

#[async_trait]
impl Sink for FaultySink {
    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    fn layout(&self) -> Layout {
        self.inner.layout()
    }

    async fn check(&self, cx: &Context) -> Result<Health> {
        self.fails(Fault::Check)?;
        self.inner.check(cx).await
    }

    async fn create(
        &self,
        cx: &Context,
        name: &ArchiveName,
        hint: SizeHint,
    ) -> Result<Box<dyn Upload>> {
        self.fails(Fault::Create)?;
        Ok(Box::new(FaultyUpload {
            inner: self.inner.create(cx, name, hint).await?,
            sink: self.clone(),
            chunks: 0,
        }))
    }

    async fn list(&self, cx: &Context, filter: &Filter) -> Result<Vec<Stored>> {
        self.fails(Fault::List)?;
        self.inner.list(cx, filter).await
    }

    async fn read(&self, cx: &Context, which: &Stored, range: Range<u64>) -> Result<ByteStream> {
        use futures::StreamExt;
        if let Some(hook) = &self.before_read {
            hook(which, range.start);
        }
        let stream = self.inner.read(cx, which, range.clone()).await?;
        let Fault::Flip(at) = self.fault else {
            return Ok(stream);
        };
        let mut offset = range.start;
        let flipped = stream.map(move |chunk| {
            let mut bytes = chunk?.to_vec();
            if (offset..offset + bytes.len() as u64).contains(&at) {
                bytes[(at - offset) as usize] ^= 0x20;
            }
            offset += bytes.len() as u64;
            Ok(Bytes::from(bytes))
        });
        Ok(flipped.boxed())
    }

    async fn sums(&self, cx: &Context, which: &Stored) -> Result<Option<String>> {
        self.inner.sums(cx, which).await
    }

    async fn delete(&self, cx: &Context, which: &Stored) -> Result<()> {
        self.inner.delete(cx, which).await
    }

    async fn note(&self, cx: &Context, name: &NoteName) -> Result<Option<Note>> {
        self.inner.note(cx, name).await
    }

    async fn set_note(&self, cx: &Context, name: &NoteName, body: Bytes, was: Was) -> Result<()> {
        self.inner.set_note(cx, name, body, was).await
    }

    async fn notes(&self, cx: &Context, site: &str, prefix: &str) -> Result<Vec<NoteSeen>> {
        self.inner.notes(cx, site, prefix).await
    }

    async fn remove_note(&self, cx: &Context, name: &NoteName) -> Result<()> {
        self.inner.remove_note(cx, name).await
    }
}
