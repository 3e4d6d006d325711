//! Reading what was selected, and no more: blocks picked by the index, fetched in few ranges, checked, decoded side by side, in order.

use crate::archive::format::{BlockLine, Stage};
use crate::archive::tail::{Line, Opened, check_sum};
use crate::archive::xz::{self, Record};
use crate::error::{Error, ErrorKind, Result, bug};
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Neighbours closer than this are fetched in one read.
const JOIN_GAP_BYTES: u64 = 1 << 20;
/// No read is larger than this.
const READ_MAX_BYTES: u64 = 8 << 20;
/// Blocks that were verified before the restore are kept, not fetched again, while they are no more than this in all.
const KEPT_MAX_BYTES: u64 = 32 << 20;
/// Blocks that are decoded at once, or wait decoded for their turn.
const DECODED_AHEAD: usize = 3;

/// A block of the selection, small enough to hold a quarter of a million of them.
#[derive(Clone, Debug)]
pub struct Picked {
    /// Number in the file.
    pub n: u32,
    at: u64,
    sizes: Record,
    sum: [u8; 32],
    raw_sum: [u8; 32],
    /// Stage.
    pub stage: Stage,
    /// Selected parts of it: unit (an index into the selection's units), from, to.
    pub ranges: Vec<(u32, u32, u32)>,
    /// What few blocks have.
    pub more: Option<Box<More>>,
}

/// What the index says of few blocks only.
#[derive(Clone, Debug, Default)]
pub struct More {
    /// Members of one inode in different units.
    pub inode_group: Vec<(String, u64)>,
    /// A torn body.
    pub torn: Option<(String, u64)>,
    /// Parts of streamed bodies.
    pub part_of: Vec<(String, String)>,
}

impl Picked {
    /// The block of this line, with the parts that are selected.
    pub fn new(
        line: &BlockLine,
        record: Record,
        stage: Stage,
        ranges: Vec<(u32, u32, u32)>,
    ) -> Result<Self> {
        let rare = !line.inode_group.is_empty() || line.torn.is_some() || !line.part_of.is_empty();
        let more = rare.then(|| {
            Box::new(More {
                inode_group: line.inode_group.clone(),
                torn: line.torn.clone(),
                part_of: line.part_of.clone(),
            })
        });
        if ranges
            .iter()
            .any(|(_, from, to)| from > to || u64::from(*to) > record.raw)
        {
            return Err(Error::corrupt(format!(
                "the index places a unit outside of block {}",
                line.n
            )));
        }
        Ok(Self {
            n: line.n,
            at: line.at,
            sizes: record,
            sum: digest(&line.sum)?,
            raw_sum: digest(&line.raw_sum)?,
            stage,
            ranges,
            more,
        })
    }

    /// Bytes that it takes in the file.
    pub fn stored_bytes(&self) -> u64 {
        self.sizes.stored()
    }

    fn end(&self) -> u64 {
        self.at + self.stored_bytes()
    }
}

fn digest(hex: &str) -> Result<[u8; 32]> {
    blake3::Hash::from_hex(hex)
        .map(|hash| *hash.as_bytes())
        .map_err(|_| Error::corrupt("a sum in the index is malformed"))
}

/// One archive, and its copies on other sinks that may stand in for a damaged block.
pub struct Copies {
    by_sink: Vec<(String, Arc<Opened>)>,
    kept: Mutex<HashMap<u32, Bytes>>,
    healed: Mutex<Vec<String>>,
}

/// A block's tar bytes, checked.
pub struct Decoded {
    /// The block.
    pub picked: Picked,
    /// Its tar bytes.
    pub raw: Bytes,
}

impl Copies {
    /// The first is read, the others stand in.
    pub fn new(copies: Vec<(String, Arc<Opened>)>) -> Self {
        Self {
            by_sink: copies,
            kept: Mutex::default(),
            healed: Mutex::default(),
        }
    }

    /// The copy that is read.
    pub fn first(&self) -> &Arc<Opened> {
        &self.by_sink[0].1
    }

    /// What was taken from another sink because the first one's was damaged.
    pub fn healed(&self) -> Vec<String> {
        self.healed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Checks the stored sum of every picked block, without decoding. Returns the bad ones.
    pub async fn verify(&self, picked: &[Picked]) -> Result<Vec<u32>> {
        let keep = picked.iter().map(Picked::stored_bytes).sum::<u64>() <= KEPT_MAX_BYTES;
        let mut bad = Vec::new();
        for group in joined(picked) {
            let fetched = self.fetch(group).await;
            for block in group {
                let stored = fetched
                    .as_ref()
                    .ok()
                    .and_then(|(from, bytes)| slice(bytes, *from, block));
                match self.good(block, stored).await {
                    Ok(bytes) if keep => {
                        // Copied, so that a kept block does not keep its whole read.
                        self.kept
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner)
                            .insert(block.n, Bytes::copy_from_slice(&bytes));
                    }
                    Ok(_) => {}
                    Err(error) if error.kind == ErrorKind::Corrupt => match &fetched {
                        // Nobody answered, or the run was stopped: that is no damage.
                        Err(unread) if unread.kind != ErrorKind::Corrupt => {
                            return Err(unread.duplicate());
                        }
                        _ => bad.push(block.n),
                    },
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(bad)
    }

    async fn fetch(&self, group: &[Picked]) -> Result<(u64, Bytes)> {
        let (from, end) = (group[0].at, group[group.len() - 1].end());
        Ok((from, self.first().read().read_at(from, end - from).await?))
    }

    /// The block's stored bytes, from the first copy that has them whole.
    async fn good(&self, block: &Picked, stored: Option<Bytes>) -> Result<Bytes> {
        if let Some(stored) = stored
            && blake3::hash(&stored).as_bytes() == &block.sum
        {
            return Ok(stored);
        }
        for (sink, copy) in &self.by_sink[1..] {
            let Ok(stored) = copy.read().read_at(block.at, block.stored_bytes()).await else {
                continue;
            };
            if blake3::hash(&stored).as_bytes() == &block.sum {
                let said = format!(
                    "block {} was damaged on `{}` and taken from `{sink}`",
                    block.n, self.by_sink[0].0
                );
                tracing::warn!("{said}");
                let mut healed = self
                    .healed
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                if !healed.contains(&said) {
                    healed.push(said);
                }
                return Ok(stored);
            }
        }
        Err(Error::corrupt(format!(
            "block {} is not what was written: its BLAKE3 does not match",
            block.n
        )))
    }

    /// The blocks, decoded and checked, in order.
    pub fn decode(
        self: Arc<Self>,
        picked: Vec<Picked>,
    ) -> impl Stream<Item = Result<Decoded>> + Send {
        let ranges = group_lengths(&picked);
        let this = self.clone();
        let mut rest = picked.into_iter();
        let groups: Vec<Vec<Picked>> = ranges
            .into_iter()
            .map(|len| rest.by_ref().take(len).collect())
            .collect();
        stream::iter(groups)
            .then(move |group| {
                let this = this.clone();
                async move { this.stored(group).await }
            })
            .flat_map(|fetched| match fetched {
                Ok(blocks) => stream::iter(blocks.into_iter().map(Ok).collect::<Vec<_>>()),
                Err(error) => stream::iter(vec![Err(error)]),
            })
            .map(|block: Result<(Picked, Bytes)>| async move {
                let (picked, stored) = block?;
                tokio::task::spawn_blocking(move || decode(picked, &stored))
                    .await
                    .unwrap_or_else(|e| Err(bug(format!("decoding ended: {e}"))))
            })
            .buffered(DECODED_AHEAD)
    }

    async fn stored(&self, group: Vec<Picked>) -> Result<Vec<(Picked, Bytes)>> {
        let mut blocks = Vec::with_capacity(group.len());
        let kept: Option<Vec<Bytes>> = {
            let mut kept = self
                .kept
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            group
                .iter()
                .all(|block| kept.contains_key(&block.n))
                .then(|| {
                    group
                        .iter()
                        .filter_map(|block| kept.remove(&block.n))
                        .collect()
                })
        };
        if let Some(kept) = kept {
            return Ok(group.into_iter().zip(kept).collect());
        }
        let fetched = self.fetch(&group).await;
        for block in group {
            let stored = fetched
                .as_ref()
                .ok()
                .and_then(|(from, bytes)| slice(bytes, *from, &block));
            let good = self.good(&block, stored).await;
            match (good, &fetched) {
                (Ok(bytes), _) => blocks.push((block, bytes)),
                (Err(_), Err(error)) => return Err(error.duplicate()),
                (Err(error), Ok(_)) => return Err(error),
            }
        }
        Ok(blocks)
    }
}

fn decode(picked: Picked, stored: &[u8]) -> Result<Decoded> {
    let raw = xz::decode(stored, picked.sizes)?;
    if blake3::hash(&raw).as_bytes() != &picked.raw_sum {
        return Err(Error::corrupt(format!(
            "block {} decodes to other bytes than were written",
            picked.n
        )));
    }
    Ok(Decoded {
        picked,
        raw: raw.into(),
    })
}

fn slice(bytes: &Bytes, from: u64, block: &Picked) -> Option<Bytes> {
    let (start, end) = ((block.at - from) as usize, (block.end() - from) as usize);
    (end <= bytes.len()).then(|| bytes.slice(start..end))
}

fn group_lengths(picked: &[Picked]) -> Vec<usize> {
    joined(picked).map(<[Picked]>::len).collect()
}

/// Blocks in the order of the file, cut into reads.
fn joined(picked: &[Picked]) -> impl Iterator<Item = &[Picked]> {
    let mut rest = picked;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let far = |(n, block): (usize, &Picked)| {
            n > 0
                && (block.at.saturating_sub(rest[n - 1].end()) > JOIN_GAP_BYTES
                    || block.end() - first.at > READ_MAX_BYTES)
        };
        let len = rest.iter().enumerate().position(far).unwrap_or(rest.len());
        let (group, behind) = rest.split_at(len);
        rest = behind;
        Some(group)
    })
}

/// Reads every stored byte in order and checks every block: sum, decoding, sum of the tar bytes.
pub struct WholeFile<'a> {
    opened: &'a Opened,
}

impl<'a> WholeFile<'a> {
    /// Of this archive.
    pub fn new(opened: &'a Opened) -> Self {
        Self { opened }
    }

    /// Goes through all blocks and compares what is stored with the index, decoding nothing.
    pub async fn check_stored(&self) -> Result<()> {
        let mut lines = self.opened.lines().await?;
        while let Some(batch) = lines.next_piece().await? {
            for line in batch {
                let Line::Block(line) = line else { continue };
                let stored = self.opened.read().read_at(line.at, line.len).await?;
                check_sum(&stored, &line.sum, || format!("block {}", line.n))?;
            }
        }
        Ok(())
    }

    /// Goes through all blocks. `each` sees every decoded data block with its line.
    pub async fn check(&self, mut each: impl FnMut(&BlockLine, &[u8]) -> Result<()>) -> Result<()> {
        let head = self
            .opened
            .read()
            .read_at(0, xz::STREAM_HEADER.len() as u64)
            .await?;
        if head != xz::STREAM_HEADER[..] {
            return Err(Error::corrupt(
                "the file does not begin as an xz archive begins",
            ));
        }
        let mut lines = self.opened.lines().await?;
        while let Some(batch) = lines.next_piece().await? {
            for line in batch {
                let Line::Block(line) = line else { continue };
                let record = self
                    .opened
                    .record(line.n)
                    .ok_or_else(|| Error::corrupt("the index speaks of a block beyond the last"))?;
                let stored = self.opened.read().read_at(line.at, line.len).await?;
                check_sum(&stored, &line.sum, || format!("block {}", line.n))?;
                let raw_sum = line.raw_sum.clone();
                let n = line.n;
                let raw = tokio::task::spawn_blocking(move || {
                    let raw = xz::decode(&stored, record)?;
                    check_sum(&raw, &raw_sum, || format!("block {n}, decoded,"))?;
                    Ok::<_, Error>(raw)
                })
                .await
                .map_err(|e| bug(format!("decoding ended: {e}")))??;
                each(&line, &raw)?;
            }
        }
        Ok(())
    }
}
