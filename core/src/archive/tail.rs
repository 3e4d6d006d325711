//! The end of an archive: footer, xz index, manifest and index pieces, each checked against the others before anything is believed.
//!
//! Three reads: the last 64 KiB; index and last block, where those were too few; all index pieces in one range.

use crate::archive::format::{
    BLOCK_MAX_BYTES, BlockLine, IndexLine, MANIFEST_MEMBER, RECORD_BYTES, TAIL_BYTES, UnitLine,
};
use crate::archive::read_at::{ReadAt, TailCached};
use crate::archive::tar::{self, Meta};
use crate::archive::xz::{self, FOOTER_BYTES, Record};
use crate::error::{Error, Result};
use crate::manifest::{IndexPiece, Manifest};
use crate::name::MemberPath;
use bytes::Bytes;
use std::sync::Arc;

/// Room for a manifest's block when the index is fetched: a second read, not a third.
const MANIFEST_GUESS_BYTES: u64 = 256 << 10;

/// The xz index is held in memory, so a forged length must not decide how much: this much is four million blocks.
const INDEX_MAX_BYTES: u64 = 32 << 20;

/// An archive whose end was read and agrees with itself.
pub struct Opened {
    /// What is inside.
    pub manifest: Manifest,
    read: TailCached,
    records: Vec<Record>,
    /// Where each block begins; one more for the end of the last.
    offsets: Vec<u64>,
}

/// A line of the index, checked against the xz index.
#[derive(Debug)]
pub enum Line {
    /// A block.
    Block(BlockLine),
    /// A unit.
    Unit(UnitLine),
}

impl Opened {
    /// Reads and checks the end.
    pub async fn open(read: Arc<dyn ReadAt>) -> Result<Self> {
        let smallest = (xz::STREAM_HEADER.len() + FOOTER_BYTES + 8) as u64;
        if read.len() < smallest {
            return Err(Error::corrupt(format!(
                "{} bytes are too few for an archive",
                read.len()
            )));
        }
        let mut read = TailCached::new(read, TAIL_BYTES).await?;
        let footer = read
            .read_at(read.len() - FOOTER_BYTES as u64, FOOTER_BYTES as u64)
            .await?;
        let index_len = xz::index_bytes_from_footer(&footer)?;
        let behind_blocks = index_len + FOOTER_BYTES as u64;
        if behind_blocks + xz::STREAM_HEADER.len() as u64 > read.len() {
            return Err(Error::corrupt("the xz index would be larger than the file"));
        }
        if index_len > INDEX_MAX_BYTES {
            return Err(Error::corrupt(format!(
                "the xz index says that it has {index_len} bytes; an archive of 16 TiB has fewer than {INDEX_MAX_BYTES}"
            )));
        }
        if behind_blocks > TAIL_BYTES {
            read.extend_to(behind_blocks + MANIFEST_GUESS_BYTES).await?;
        }
        let index = read.read_at(read.len() - behind_blocks, index_len).await?;
        let records = xz::parse_index(&index)?;
        let offsets = offsets(&records, read.len() - behind_blocks)?;
        let (last, from) = match (records.last(), offsets.len().checked_sub(2)) {
            (Some(record), Some(n)) => (*record, offsets[n]),
            _ => return Err(Error::corrupt("the archive holds no block")),
        };
        read.extend_to(read.len() - from).await?;
        let stored = read.read_at(from, last.stored()).await?;
        let manifest = manifest_of(&xz::decode(&stored, last)?)?;
        let opened = Self {
            manifest,
            read,
            records,
            offsets,
        };
        opened.pieces_agree()?;
        if opened.read.holds_everything() {
            opened.check_whole_file().await?;
        }
        Ok(opened)
    }

    fn pieces_agree(&self) -> Result<()> {
        if self.manifest.blocks as usize != self.records.len() {
            return Err(Error::corrupt(format!(
                "the manifest speaks of {} blocks, the file has {}",
                self.manifest.blocks,
                self.records.len()
            )));
        }
        self.manifest
            .index
            .iter()
            .try_for_each(|piece| self.agrees(piece.block, piece.at, piece.len, piece.raw))
    }

    /// What an archive that fits the first read costs nothing to check: every stored byte of it.
    async fn check_whole_file(&self) -> Result<()> {
        let head = self.read.read_at(0, xz::STREAM_HEADER.len() as u64).await?;
        if head != xz::STREAM_HEADER[..] {
            return Err(Error::corrupt(
                "the file does not begin as an xz archive begins",
            ));
        }
        let mut lines = self.lines().await?;
        while let Some(batch) = lines.next_piece().await? {
            for line in batch {
                let Line::Block(block) = line else { continue };
                let stored = self.read.read_at(block.at, block.len).await?;
                check_sum(&stored, &block.sum, || format!("block {}", block.n))?;
            }
        }
        Ok(())
    }

    /// Stored bytes of the archive.
    pub fn stored_bytes(&self) -> u64 {
        self.read.len()
    }

    /// Tar bytes inside.
    pub fn raw_bytes(&self) -> u64 {
        self.records.iter().map(|record| record.raw).sum()
    }

    /// Blocks in the file.
    pub fn blocks(&self) -> usize {
        self.records.len()
    }

    /// The bytes.
    pub fn read(&self) -> &dyn ReadAt {
        &self.read
    }

    /// The xz index's word on block `n`.
    pub fn record(&self, n: u32) -> Option<Record> {
        self.records.get(n as usize).copied()
    }

    fn agrees(&self, n: u32, at: u64, len: u64, raw: u64) -> Result<()> {
        let record = self.record(n);
        let good = record
            .is_some_and(|r| r.stored() == len && r.raw == raw && self.offsets[n as usize] == at);
        if good {
            Ok(())
        } else {
            Err(Error::corrupt(format!(
                "the index's word on block {n} is not the xz index's"
            )))
        }
    }

    /// The index, piece by piece, from one read.
    pub async fn lines(&self) -> Result<Lines<'_>> {
        let pieces = &self.manifest.index;
        let from = pieces.iter().map(|p| p.at).min().unwrap_or(0);
        let end = pieces.iter().map(|p| p.at + p.len).max().unwrap_or(0);
        let bytes: u64 = pieces.iter().map(|p| p.len).sum();
        // Pieces stand side by side but for those written early; only then is there more than one read.
        let held = if bytes == end - from && bytes > 0 {
            Some((from, self.read.read_at(from, bytes).await?))
        } else {
            None
        };
        Ok(Lines {
            opened: self,
            held,
            next: 0,
            blocks_seen: 0,
        })
    }
}

fn offsets(records: &[Record], blocks_end: u64) -> Result<Vec<u64>> {
    let mut at = xz::STREAM_HEADER.len() as u64;
    let mut offsets = Vec::with_capacity(records.len() + 1);
    for record in records {
        offsets.push(at);
        at += record.stored();
    }
    offsets.push(at);
    if at == blocks_end {
        Ok(offsets)
    } else {
        Err(Error::corrupt(
            "the blocks that the xz index lists do not fill the file",
        ))
    }
}

/// The last block holds the manifest's member and the two zero records, and not a byte else.
fn manifest_of(raw: &[u8]) -> Result<Manifest> {
    let corrupt = || {
        Error::corrupt("the last block is not a manifest as bk writes it")
            .hint("is it an archive that bk made? bk restore FILE also takes what others made")
    };
    let mut text = Vec::new();
    tar::read_members(raw, |head, body| {
        if head.path.as_bytes() != MANIFEST_MEMBER.as_bytes()
            || !text.is_empty()
            || head.len > BLOCK_MAX_BYTES
        {
            return Err(corrupt());
        }
        body.read_to_end(&mut text)
            .map_err(|e| Error::corrupt(format!("the manifest cannot be read: {e}")))?;
        Ok(())
    })?;
    let manifest = Manifest::from_bytes(&text)?;
    let mut expected = tar::member(&MemberPath::new(MANIFEST_MEMBER)?, &Meta::default(), &text);
    expected.resize(expected.len() + 2 * RECORD_BYTES as usize, 0);
    if raw == expected {
        Ok(manifest)
    } else {
        Err(corrupt())
    }
}

/// Compares bytes with the BLAKE3 that stands for them.
pub fn check_sum(bytes: &[u8], sum: &str, what: impl FnOnce() -> String) -> Result<()> {
    if blake3::hash(bytes).to_hex().as_str() == sum {
        Ok(())
    } else {
        Err(Error::corrupt(format!(
            "{} is not what was written: its BLAKE3 does not match",
            what()
        )))
    }
}

/// The index, one decoded piece at a time.
pub struct Lines<'a> {
    opened: &'a Opened,
    held: Option<(u64, Bytes)>,
    next: usize,
    blocks_seen: u64,
}

impl Lines<'_> {
    /// The lines of the next piece; nothing at the end, when every block of the file has been accounted for.
    pub async fn next_piece(&mut self) -> Result<Option<Vec<Line>>> {
        let Some(piece) = self.opened.manifest.index.get(self.next) else {
            return self.all_accounted_for().map(|()| None);
        };
        self.next += 1;
        let stored = match &self.held {
            Some((from, bytes)) => bytes.read_at(piece.at - from, piece.len).await?,
            None => self.opened.read.read_at(piece.at, piece.len).await?,
        };
        let record = self
            .opened
            .record(piece.block)
            .ok_or_else(|| Error::corrupt("an index piece lies beyond the last block"))?;
        let lines = parse_piece(piece, record, &stored)?;
        for line in &lines {
            let Line::Block(block) = line else { continue };
            self.opened
                .agrees(block.n, block.at, block.len, block.raw)?;
            self.blocks_seen += 1;
        }
        Ok(Some(lines))
    }

    /// Every block has a line, but for index pieces and the manifest.
    fn all_accounted_for(&self) -> Result<()> {
        let expected =
            self.opened.records.len() as u64 - self.opened.manifest.index.len() as u64 - 1;
        if self.blocks_seen == expected {
            Ok(())
        } else {
            Err(Error::corrupt(format!(
                "the index speaks of {} blocks, the file has {expected}",
                self.blocks_seen
            )))
        }
    }
}

fn parse_piece(piece: &IndexPiece, record: Record, stored: &[u8]) -> Result<Vec<Line>> {
    let name = || format!("the index piece in block {}", piece.block);
    check_sum(stored, &piece.sum, name)?;
    let raw = xz::decode(stored, record)?;
    check_sum(&raw, &piece.raw_sum, name)?;
    let mut text = Vec::new();
    tar::read_members(&raw[..], |_, body| {
        body.read_to_end(&mut text)
            .map(drop)
            .map_err(|e| Error::corrupt(format!("{} cannot be read: {e}", name())))
    })?;
    let malformed = |e: serde_json::Error| Error::corrupt(format!("{} is malformed: {e}", name()));
    let mut lines = Vec::new();
    for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let line: IndexLine = serde_json::from_slice(line).map_err(malformed)?;
        lines.extend(line.block.map(Line::Block));
        lines.extend(line.unit.map(Line::Unit));
    }
    Ok(lines)
}
