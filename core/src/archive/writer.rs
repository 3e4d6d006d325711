//! Puts finished blocks in order, keeps the index, and sends every byte through the envelope and the sum to all sinks.
//!
//! A block takes its place in the queue before it is compressed, so the order in the file is the order in which blocks were closed, and
//! a body's blocks stand side by side. Whoever waits here waits for compression or for a sink, never for another lane's turn.

use crate::archive::format::{
    BlockLine, Codec, FORMAT, FORMAT_MEMBER, FormatMember, INDEX_HELD_BYTES, MANIFEST_MEMBER,
    RECORD_BYTES, Stage, UnitLine,
};
use crate::archive::index::{IndexPieces, Take};
use crate::archive::memory::{Budget, Division};
use crate::archive::pool::{Answer, Encoded, Pool};
use crate::archive::tar::{self, Meta};
use crate::archive::xz::{self, Compression, Record};
use crate::error::{Error, ErrorKind, Result, bug};
use crate::manifest::{IndexPiece, Manifest};
use crate::name::MemberPath;
use crate::tee::Tee;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// What the index must say of a block beside its place and its sums.
#[derive(Clone, Debug, Default)]
pub struct BlockInfo {
    /// Instance, or nothing for `.bk/`.
    pub instance: Option<Arc<str>>,
    /// Stage.
    pub stage: Option<Stage>,
    /// First member that begins here.
    pub first: Option<String>,
    /// Which unit lies where.
    pub units: Vec<(String, String, u64, u64)>,
    /// Members of one inode in different units.
    pub inode_group: Vec<(String, u64)>,
    /// A torn body.
    pub torn: Option<(String, u64)>,
    /// Parts of streamed bodies.
    pub part_of: Vec<(String, String)>,
    /// The block goes on with the member of the block before it.
    pub continues: bool,
}

/// Blocks that may wait between lanes and writer, however small.
const PLACES: usize = 64;

/// A block that waits for its place.
pub type RawBlock = (Vec<u8>, BlockInfo);

enum Placed {
    Block(Answer, BlockInfo, OwnedSemaphorePermit),
    End,
}

/// Where lanes hand in their blocks. Cheap to clone.
#[derive(Clone)]
pub struct Entrance(Arc<Shared>);

struct Shared {
    order: Arc<Mutex<mpsc::Sender<Placed>>>,
    window: Window,
    pool: Pool,
    index: IndexPieces,
    budget: Budget,
    cancel: CancellationToken,
}

/// Bytes of blocks that were handed in and not yet written.
struct Window {
    bytes: u64,
    free: Arc<Semaphore>,
}

impl Window {
    fn new(bytes: u64) -> Self {
        let free = Arc::new(Semaphore::new(bytes as usize));
        Self { bytes, free }
    }

    /// Waits until a block of `bytes` may come in. One that is larger than the window comes alone.
    async fn room(&self, bytes: u64) -> Result<OwnedSemaphorePermit> {
        let wanted = bytes.min(self.bytes) as u32;
        let room = self.free.clone().acquire_many_owned(wanted).await;
        room.map_err(|_| bug("the window of blocks was closed"))
    }
}

/// The half that writes; run it to its end, then `finish`.
pub struct Writer {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Placed>,
    output: Output,
}

struct Output {
    tee: Tee,
    envelope: Box<dyn Envelope>,
    sum: Sha256,
    stored_bytes: u64,
    at: u64,
    records: Vec<Record>,
    pieces: Vec<IndexPiece>,
    raw_bytes: u64,
}

/// Turns archive bytes into what is stored. `None` changes nothing; an encrypting one adds its suffix to the name.
pub trait Envelope: Send {
    /// What stands before the first byte.
    fn open(&mut self) -> Result<Bytes>;
    /// The stored form of the next bytes; may hold some back.
    fn seal(&mut self, bytes: Bytes) -> Result<Bytes>;
    /// What was held back, and the end.
    fn close(&mut self) -> Result<Bytes>;
}

/// The archive as it is.
#[derive(Debug, Default)]
pub struct NoEnvelope;

impl Envelope for NoEnvelope {
    fn open(&mut self) -> Result<Bytes> {
        Ok(Bytes::new())
    }

    fn seal(&mut self, bytes: Bytes) -> Result<Bytes> {
        Ok(bytes)
    }

    fn close(&mut self) -> Result<Bytes> {
        Ok(Bytes::new())
    }
}

/// What came of a finished archive, before any sink has published it.
#[derive(Clone, Debug)]
pub struct Written {
    /// SHA-256 of the stored bytes.
    pub sha256: String,
    /// Stored bytes.
    pub bytes: u64,
    /// Tar bytes inside.
    pub raw_bytes: u64,
    /// Blocks.
    pub blocks: usize,
}

/// Starts the pool and the queue, and writes the archive's first block.
pub async fn start(
    division: &Division,
    compression: Compression,
    head: &FormatMember,
    envelope: Box<dyn Envelope>,
    tee: Tee,
    cancel: CancellationToken,
) -> Result<(Entrance, Writer)> {
    let (order, queue) = mpsc::channel(PLACES);
    let shared = Arc::new(Shared {
        order: Arc::new(Mutex::new(order)),
        window: Window::new(division.window_bytes),
        pool: Pool::start(division.workers, compression)?,
        index: IndexPieces::default(),
        budget: Budget::new(division),
        cancel,
    });
    let output = Output {
        tee,
        envelope,
        sum: Sha256::new(),
        stored_bytes: 0,
        at: 0,
        records: Vec::new(),
        pieces: Vec::new(),
        raw_bytes: 0,
    };
    let mut writer = Writer {
        shared: shared.clone(),
        queue,
        output,
    };
    let opening = writer.output.envelope.open()?;
    writer.output.store(opening).await?;
    writer
        .output
        .send(Bytes::from_static(&xz::STREAM_HEADER))
        .await?;
    writer.first_block(head).await?;
    Ok((Entrance(shared), writer))
}

impl Entrance {
    /// Hands in blocks that must stand side by side. Goes on to its end even when the caller is dropped: half a body would break the tar.
    pub async fn submit(&self, blocks: Vec<RawBlock>) -> Result<()> {
        let shared = self.0.clone();
        let handed_in = tokio::spawn(async move {
            let order = shared.order.clone().lock_owned().await;
            for (raw, info) in blocks {
                let room = shared.window.room(raw.len() as u64).await?;
                let answer = shared.pool.submit(raw).await?;
                order
                    .send(Placed::Block(answer, info, room))
                    .await
                    .map_err(|_| Error::cancelled())?;
            }
            Ok(())
        });
        tokio::select! {
            biased;
            () = self.0.cancel.cancelled() => Err(Error::cancelled()),
            done = handed_in => done.map_err(|e| bug(format!("handing in a block failed: {e}")))?,
        }
    }

    /// Adds a unit's line to the index.
    pub async fn unit(&self, line: UnitLine) -> Result<()> {
        self.0.index.unit(&self.0.pool, line).await
    }

    /// The memory of this run.
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// Fires when the run must stop.
    pub fn cancel(&self) -> &CancellationToken {
        &self.0.cancel
    }

    /// No block comes after this.
    pub async fn end(&self) -> Result<()> {
        self.0
            .order
            .lock()
            .await
            .send(Placed::End)
            .await
            .map_err(|_| Error::cancelled())
    }
}

impl Writer {
    /// Writes blocks until the end was called. An error cancels the run: lanes must not wait for a writer that is gone.
    pub async fn run(mut self) -> Result<Self> {
        let done = self.write_all().await;
        match done {
            Ok(()) => Ok(self),
            Err(error) => {
                self.shared.cancel.cancel();
                self.output.tee.abort(&error).await;
                Err(error)
            }
        }
    }

    async fn write_all(&mut self) -> Result<()> {
        let cancel = self.shared.cancel.clone();
        loop {
            let placed = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Error::cancelled()),
                placed = self.queue.recv() => placed,
            };
            match placed {
                None => return Err(Error::cancelled()),
                Some(Placed::End) => return Ok(()),
                Some(Placed::Block(answer, info, _room)) => {
                    let encoded = tokio::select! {
                        biased;
                        () = cancel.cancelled() => return Err(Error::cancelled()),
                        encoded = answer => encoded.map_err(|_| bug("a compressing thread ended early"))??,
                    };
                    if self.shared.index.held_bytes() > INDEX_HELD_BYTES && !info.continues {
                        self.index_pieces(Take::Full).await?;
                    }
                    self.block(encoded, info).await?;
                }
            }
        }
    }

    async fn first_block(&mut self, head: &FormatMember) -> Result<()> {
        debug_assert_eq!(head.format, FORMAT);
        let body = serde_json::to_vec(head)
            .map_err(|e| bug(format!("the first member cannot be written: {e}")))?;
        let path = MemberPath::new(FORMAT_MEMBER)?;
        let answer = self
            .shared
            .pool
            .submit(tar::member(&path, &Meta::default(), &body))
            .await?;
        let encoded = answer
            .await
            .map_err(|_| bug("a compressing thread ended early"))??;
        self.block(
            encoded,
            BlockInfo {
                first: Some(FORMAT_MEMBER.into()),
                ..BlockInfo::default()
            },
        )
        .await
    }

    async fn block(&mut self, encoded: Encoded, info: BlockInfo) -> Result<()> {
        let line = BlockLine {
            n: self.output.records.len() as u32,
            at: self.output.at,
            len: encoded.bytes.len() as u64,
            raw: encoded.record.raw,
            codec: encoded.codec,
            sum: encoded.sum.to_hex().to_string(),
            raw_sum: encoded.raw_sum.to_hex().to_string(),
            instance: info.instance.map(|name| name.to_string()),
            stage: info.stage,
            first: info.first,
            units: info.units,
            inode_group: info.inode_group,
            torn: info.torn,
            part_of: info.part_of,
        };
        self.shared.index.block(&self.shared.pool, line).await?;
        self.output.place(encoded).await
    }

    async fn index_pieces(&mut self, what: Take) -> Result<()> {
        for encoded in self.shared.index.take(&self.shared.pool, what).await? {
            self.output.pieces.push(IndexPiece {
                block: self.output.records.len() as u32,
                at: self.output.at,
                len: encoded.bytes.len() as u64,
                raw: encoded.record.raw,
                sum: encoded.sum.to_hex().to_string(),
                raw_sum: encoded.raw_sum.to_hex().to_string(),
            });
            self.output.place(encoded).await?;
        }
        Ok(())
    }

    /// Index pieces, manifest, the xz frame's end. The tee comes back with every byte in its queues, ready to publish.
    pub async fn finish(mut self, mut manifest: Manifest) -> Result<(Written, Manifest, Tee)> {
        match self.end_of_archive(&mut manifest).await {
            Ok(()) => {}
            Err(error) => {
                self.output.tee.abort(&error).await;
                return Err(error);
            }
        }
        let output = self.output;
        let written = Written {
            sha256: hex(&output.sum.finalize()),
            bytes: output.stored_bytes,
            raw_bytes: output.raw_bytes,
            blocks: output.records.len(),
        };
        Ok((written, manifest, output.tee))
    }

    async fn end_of_archive(&mut self, manifest: &mut Manifest) -> Result<()> {
        self.index_pieces(Take::All).await?;
        manifest.index = std::mem::take(&mut self.output.pieces);
        manifest.blocks = self.output.records.len() as u32 + 1;
        let mut raw = tar::member(
            &MemberPath::new(MANIFEST_MEMBER)?,
            &Meta::default(),
            &manifest.to_bytes()?,
        );
        raw.resize(raw.len() + 2 * RECORD_BYTES as usize, 0);
        if raw.len() as u64 > crate::archive::format::BLOCK_MAX_BYTES {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the manifest would be larger than 8 MiB: too many instances or facts for one archive",
            ));
        }
        let answer = self.shared.pool.submit(raw).await?;
        let encoded = answer
            .await
            .map_err(|_| bug("a compressing thread ended early"))??;
        self.output.place(encoded).await?;
        let end = xz::index_and_footer(&self.output.records);
        self.output.send(end.into()).await?;
        let closing = self.output.envelope.close()?;
        self.output.store(closing).await
    }
}

impl Output {
    async fn place(&mut self, encoded: Encoded) -> Result<()> {
        debug_assert!(matches!(encoded.codec, Codec::Lzma2 | Codec::Stored));
        self.records.push(encoded.record);
        self.raw_bytes += encoded.record.raw;
        self.send(encoded.bytes).await
    }

    async fn send(&mut self, bytes: Bytes) -> Result<()> {
        self.at += bytes.len() as u64;
        let stored = self.envelope.seal(bytes)?;
        self.store(stored).await
    }

    async fn store(&mut self, stored: Bytes) -> Result<()> {
        if stored.is_empty() {
            return Ok(());
        }
        self.sum.update(&stored);
        self.stored_bytes += stored.len() as u64;
        self.tee.send(stored).await
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a String does not fail");
            text
        })
}
