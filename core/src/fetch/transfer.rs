//! One archive on its way here: what an earlier attempt left is compared block by block, the rest is streamed, and the name comes last.

use super::origin;
use crate::archive::read_at::{ReadAt, SinkReadAt};
use crate::archive::tail::{Line, Opened};
use crate::archive::writer::hex;
use crate::archive::xz;
use crate::catalog::Entry;
use crate::config::SinkInstance;
use crate::context::Context;
use crate::copy::{accept, asked_name, expected_sum, not_its_sum, publish};
use crate::error::{Error, ErrorKind, Result, bug};
use crate::event::Event;
use crate::sink::{Resumed, SizeHint};
use bytes::BytesMut;
use futures::StreamExt;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// How often a connection that brings nothing new is tried anew, and how long after.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_secs(3),
    Duration::from_secs(20),
];
/// Patience with the next bytes; sinks have their own, which is shorter.
const SILENCE: Duration = Duration::from_mins(11);

/// An archive that was fetched.
#[derive(Clone, Debug, Serialize)]
pub struct Fetched {
    /// Its id.
    pub id: String,
    /// Its name here.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// Those of them that an earlier attempt had brought.
    pub kept_bytes: u64,
    /// How often the connection broke and was made anew.
    pub breaks: u32,
    /// SHA-256 of it.
    pub sha256: String,
}

/// Brings one archive here, unless something is wrong with it; what came is left for a later attempt where that may help.
pub(super) async fn fetch_one(
    cx: &Context,
    entry: &Entry,
    from: &SinkInstance,
    to: &SinkInstance,
) -> Result<Fetched> {
    let summary = entry
        .summary()
        .ok_or_else(|| bug("only archives of this site are fetched"))?;
    let name = asked_name(entry, summary)?;
    let (from_cx, to_cx) = (cx.for_instance(&from.name), cx.for_instance(&to.name));
    let read = Arc::new(SinkReadAt::new(
        from_cx.clone(),
        from.sink.clone(),
        entry.stored.clone(),
    ));
    let opened = Opened::open(read.clone()).await?;
    if opened.manifest.id != summary.id {
        let what = format!("`{}` is another archive than was listed", entry.stored.name);
        return Err(Error::corrupt(what));
    }
    let pieces = Piece::all(&opened).await?;
    let said = expected_sum(&from_cx, from, entry, summary).await?;
    let hint = SizeHint {
        previous_bytes: Some(entry.stored.bytes),
    };
    let origin = origin(from, entry, &summary.id);
    let upload = to.sink.resume(&to_cx, &name, hint, &origin).await?;
    let mut transfer = Transfer {
        cx: &to_cx,
        read: &read,
        opened: &opened,
        pieces: &pieces,
        upload,
        next: 0,
        waiting: BytesMut::new(),
        sum: Sha256::new(),
        breaks: 0,
    };
    let kept_bytes = match transfer.run().await {
        Ok(kept) => kept,
        Err(error) => {
            if let Err(left) = transfer.upload.pause().await {
                tracing::warn!(error = %left, "what was fetched is not safely on the disk");
            }
            return Err(error);
        }
    };
    let sha256 = hex(&transfer.sum.finalize());
    let breaks = transfer.breaks;
    if said.is_some_and(|said| said != sha256) {
        crate::tee::abort(transfer.upload, &to.name).await;
        return Err(not_its_sum(entry, from));
    }
    let what = (&name, summary, entry.stored.bytes);
    let stored = publish(&to_cx, transfer.upload, to, what, &sha256).await?;
    accept(&to_cx, to, &stored, summary, Some(sha256.clone())).await?;
    Ok(Fetched {
        id: summary.id.clone(),
        name: stored.name,
        bytes: stored.bytes,
        kept_bytes,
        breaks,
        sha256,
    })
}

/// A stretch of the file with what it must be.
struct Piece {
    at: u64,
    len: u64,
    is: Is,
}

/// What the bytes of a piece are compared with.
enum Is {
    /// The beginning of every xz file.
    Header,
    /// The BLAKE3 that the index has of the block.
    Block(blake3::Hash),
    /// Manifest, xz index and footer, which were read and checked already.
    End,
}

impl Piece {
    /// All of them, without a gap.
    async fn all(opened: &Opened) -> Result<Vec<Self>> {
        let header = xz::STREAM_HEADER.len() as u64;
        let mut pieces = vec![Self {
            at: 0,
            len: header,
            is: Is::Header,
        }];
        for piece in &opened.manifest.index {
            pieces.push(Self::block(piece.at, piece.len, &piece.sum)?);
        }
        let mut lines = opened.lines().await?;
        while let Some(batch) = lines.next_piece().await? {
            for line in batch {
                if let Line::Block(block) = line {
                    pieces.push(Self::block(block.at, block.len, &block.sum)?);
                }
            }
        }
        pieces.sort_unstable_by_key(|piece| piece.at);
        let mut end = 0;
        for piece in &pieces {
            if piece.at != end {
                return Err(Error::corrupt("the index leaves a gap between blocks"));
            }
            end += piece.len;
        }
        pieces.push(Self {
            at: end,
            len: opened.stored_bytes() - end,
            is: Is::End,
        });
        Ok(pieces)
    }

    fn block(at: u64, len: u64, sum: &str) -> Result<Self> {
        let sum = blake3::Hash::from_hex(sum)
            .map_err(|_| Error::corrupt(format!("`{sum}` in the index is no BLAKE3")))?;
        Ok(Self {
            at,
            len,
            is: Is::Block(sum),
        })
    }

    fn end(&self) -> u64 {
        self.at + self.len
    }
}

struct Transfer<'a> {
    cx: &'a Context,
    read: &'a SinkReadAt,
    opened: &'a Opened,
    pieces: &'a [Piece],
    upload: Box<dyn Resumed>,
    /// Pieces that are here.
    next: usize,
    /// Bytes of the piece that comes.
    waiting: BytesMut,
    sum: Sha256,
    breaks: u32,
}

impl Transfer<'_> {
    /// Brings everything; returns how many bytes were here before.
    async fn run(&mut self) -> Result<u64> {
        let kept = self.keep_what_is_sound().await?;
        self.cx.tell(&Event::Expect(self.read.len()));
        self.cx.tell(&Event::Stored(kept));
        let mut in_vain = 0;
        loop {
            let before = self.here();
            match self.stream().await {
                Ok(()) => return Ok(kept),
                Err(error) if error.kind == ErrorKind::Unreachable => {
                    in_vain = if self.here() > before { 0 } else { in_vain + 1 };
                    let Some(pause) = PAUSES.get(in_vain) else {
                        return Err(error);
                    };
                    tracing::warn!(%error, "the connection broke, it is made anew");
                    self.breaks += 1;
                    self.cx.pause(*pause).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Bytes that are here, compared or not.
    fn here(&self) -> u64 {
        let done = self.next.checked_sub(1).map_or(0, |n| self.pieces[n].end());
        done + self.waiting.len() as u64
    }

    /// Whole blocks of an earlier attempt that are what they should be, up to the first that is not.
    async fn keep_what_is_sound(&mut self) -> Result<u64> {
        let left = self.upload.left();
        while let Some(piece) = self.pieces.get(self.next).filter(|p| p.end() <= left) {
            self.cx.check_cancelled()?;
            let bytes = self.upload.left_bytes(piece.at..piece.end()).await?;
            if !self.is_good(piece, &bytes).await? {
                break;
            }
            self.sum.update(&bytes);
            self.next += 1;
        }
        let kept = self.here();
        self.upload.go_on(kept).await?;
        Ok(kept)
    }

    async fn is_good(&self, piece: &Piece, bytes: &[u8]) -> Result<bool> {
        Ok(match &piece.is {
            _ if bytes.len() as u64 != piece.len => false,
            Is::Header => *bytes == xz::STREAM_HEADER[..],
            Is::Block(sum) => blake3::hash(bytes) == *sum,
            Is::End => self.opened.read().read_at(piece.at, piece.len).await? == *bytes,
        })
    }

    /// From where it stands to the end, in one stream.
    async fn stream(&mut self) -> Result<()> {
        if self.here() == self.read.len() {
            return Ok(());
        }
        let silent = || Error::new(ErrorKind::Unreachable, "nothing came for a long time");
        let opened = self.read.stream(self.here());
        let mut stream = self.cx.within(SILENCE, silent, opened).await?;
        while let Some(piece) = self.pieces.get(self.next) {
            while (self.waiting.len() as u64) < piece.len {
                let next = async { Ok::<_, Error>(stream.next().await) };
                let chunk = self.cx.within(SILENCE, silent, next).await?;
                let chunk = chunk.ok_or_else(|| {
                    Error::corrupt("the archive ended early: it is shorter than it was listed")
                })??;
                self.waiting.extend_from_slice(&chunk);
            }
            let bytes = self.waiting.split_to(piece.len as usize).freeze();
            if !self.is_good(piece, &bytes).await? {
                return Err(Error::corrupt(format!(
                    "the {} bytes from {} on are not what was written: their BLAKE3 does not match",
                    piece.len, piece.at
                ))
                .hint("bk verify names what is damaged"));
            }
            self.sum.update(&bytes);
            self.upload.write(bytes).await?;
            self.cx.tell(&Event::Stored(piece.len));
            self.next += 1;
        }
        Ok(())
    }
}
