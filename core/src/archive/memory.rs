//! The memory of one run, divided before it begins, so that no wait for memory can hold up the one who would free it.
//!
//! Three purses that never lend to each other: lanes (one is promised to each instance, more while the purse lasts), records (bodies held
//! whole, first come first served), and one permit for a giant record that no purse could hold.

use crate::archive::format::{BLOCK_MAX_BYTES, GATHERED_MAX_BYTES};
use crate::archive::xz::Compression;
use crate::error::{Error, Result, bug, settings};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Smallest `archive.memory` with which a run can go on: one lane, one gathered body, one worker.
pub const MEMORY_MIN_BYTES: u64 = 48 << 20;
const KIB: u64 = 1024;

/// How the memory of a run is divided. A pure function of the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Division {
    /// Threads that compress.
    pub workers: usize,
    /// Bytes of blocks between lanes and writer. Counted in bytes, not in blocks: while a large block is compressed, many small ones
    /// that come after it can be finished.
    pub window_bytes: u64,
    /// Lanes beyond the one that each instance is promised.
    pub extra_lanes: usize,
    /// Bytes for bodies that are held whole.
    pub record_bytes: u64,
    /// A single record over this is refused by name.
    pub max_record_bytes: u64,
}

impl Division {
    /// Divides `memory_bytes` for `instances` sources on `cores` cores.
    pub fn new(
        memory_bytes: u64,
        cores: usize,
        compression: Compression,
        instances: usize,
        max_record_bytes: u64,
    ) -> Result<Self> {
        if memory_bytes < MEMORY_MIN_BYTES {
            return Err(settings(format!(
                "`archive.memory` is {memory_bytes} bytes; the least is {MEMORY_MIN_BYTES}"
            ))
            .hint(format!("set `archive.memory = {MEMORY_MIN_BYTES}` or more")));
        }
        // A worker holds its encoder, a block and what comes of it; a typical block is a third of the largest.
        let worker = compression.memory_bytes() + BLOCK_MAX_BYTES;
        let half = memory_bytes / 2;
        let workers = ((half / worker) as usize).clamp(1, cores.max(1));
        let rest = memory_bytes.saturating_sub(workers as u64 * worker);
        let record_bytes = (rest / 3).max(GATHERED_MAX_BYTES + (1 << 20));
        let lanes = rest.saturating_sub(record_bytes) / BLOCK_MAX_BYTES / 2;
        Ok(Self {
            workers,
            window_bytes: (workers as u64 + 3) * BLOCK_MAX_BYTES,
            extra_lanes: (lanes as usize).saturating_sub(instances),
            record_bytes,
            max_record_bytes,
        })
    }

    /// The least that works: every limit at its minimum. The engine's tests run with it.
    pub fn minimum() -> Self {
        Self {
            workers: 1,
            window_bytes: BLOCK_MAX_BYTES,
            extra_lanes: 0,
            record_bytes: GATHERED_MAX_BYTES + (1 << 20),
            max_record_bytes: GATHERED_MAX_BYTES,
        }
    }
}

/// Hands the memory out.
#[derive(Debug)]
pub struct Budget {
    extra_lanes: Arc<Semaphore>,
    records: Arc<Semaphore>,
    record_bytes: u64,
    giant: Arc<Semaphore>,
    max_record_bytes: u64,
}

/// Memory that was promised; given back when dropped.
#[derive(Debug)]
pub struct Reserved {
    _permit: OwnedSemaphorePermit,
}

impl Budget {
    /// A full purse of each kind.
    pub fn new(division: &Division) -> Self {
        Self {
            extra_lanes: Arc::new(Semaphore::new(division.extra_lanes)),
            records: Arc::new(Semaphore::new((division.record_bytes / KIB) as usize)),
            record_bytes: division.record_bytes,
            giant: Arc::new(Semaphore::new(1)),
            max_record_bytes: division.max_record_bytes,
        }
    }

    /// The lane that every instance is promised.
    pub fn promised_lane() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(1))
    }

    /// A lane: the promised one or, when `extra` allows, one of the common purse; waits until there is one.
    pub async fn lane(&self, promised: &Arc<Semaphore>, extra: Extra) -> Result<Reserved> {
        let closed = |_| bug("the memory budget was closed");
        if let Ok(permit) = promised.clone().try_acquire_owned() {
            return Ok(Reserved { _permit: permit });
        }
        let permit = match extra {
            Extra::None => promised.clone().acquire_owned().await.map_err(closed)?,
            Extra::WhileItLasts => tokio::select! {
                mine = promised.clone().acquire_owned() => mine.map_err(closed)?,
                common = self.extra_lanes.clone().acquire_owned() => common.map_err(closed)?,
            },
        };
        Ok(Reserved { _permit: permit })
    }

    /// Beyond it nothing is held whole.
    pub fn largest_record(&self) -> u64 {
        self.max_record_bytes.max(self.record_bytes)
    }

    /// Why a body of `bytes` is not, and how much would have to be allowed.
    pub fn too_large(&self, bytes: u64, wanted: u64) -> Error {
        let max = self.max_record_bytes;
        Error::new(
            crate::ErrorKind::Unsupported,
            format!("a single record of {bytes} bytes is larger than `archive.max_record` ({max})"),
        )
        .hint(format!(
            "set `archive.max_record` above {wanted}, with as much free memory"
        ))
    }

    /// Room for a body of `bytes` that is held whole. One task holds one reservation at a time.
    pub async fn reserve(&self, bytes: u64) -> Result<Reserved> {
        let closed = |_| bug("the memory budget was closed");
        if bytes > self.largest_record() {
            return Err(self.too_large(bytes, bytes));
        }
        let permit = if bytes <= self.record_bytes {
            self.records
                .clone()
                .acquire_many_owned(bytes.div_ceil(KIB) as u32)
                .await
                .map_err(closed)?
        } else {
            self.giant.clone().acquire_owned().await.map_err(closed)?
        };
        Ok(Reserved { _permit: permit })
    }
}

/// Whether a lane may come out of the common purse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// One lane at a time: Schema, Finish and Large.
    None,
    /// As many as there are: Data.
    WhileItLasts,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_budget_feeds_two_workers_and_refuses_less_than_the_least() {
        let division = Division::new(128 << 20, 2, Compression::Preset(1), 3, 64 << 20).unwrap();
        assert_eq!(division.workers, 2);
        assert!(division.record_bytes >= GATHERED_MAX_BYTES);
        assert!(Division::new(MEMORY_MIN_BYTES - 1, 2, Compression::Preset(1), 1, 1).is_err());
        assert_eq!(
            Division::new(MEMORY_MIN_BYTES, 64, Compression::Preset(6), 1, 1)
                .unwrap()
                .workers,
            1
        );
    }
}
