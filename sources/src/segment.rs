//! Segments: rows or documents gathered to members of about 3 MiB, cut where their own keys say so.
//!
//! A segment ends after a row with `hash(key) / 2^64 < bytes of the row / 3 MiB`, so that one changed row moves no border but its own.

use bk_core::error::Result;
use bk_core::source::{Output, Reserved};

/// Bytes of a segment in the mean.
pub const MEAN_BYTES: u64 = 3 << 20;
/// A segment that has so many ends.
pub const MAX_BYTES: usize = 12 << 20;
/// Above this a body is reserved before it is held.
pub const UNRESERVED_BYTES: usize = 4 << 20;

/// Whether a segment ends after a row of `len` bytes with this hash of its key.
pub fn ends_after(hash: u64, len: u64) -> bool {
    u128::from(hash) * u128::from(MEAN_BYTES) < u128::from(len) << 64
}

/// The memory that a growing segment has reserved.
#[derive(Default)]
pub struct Room(Option<(Reserved, usize)>);

impl Room {
    /// What is held beyond what every worker may hold is reserved.
    pub async fn make(&mut self, out: &Output, held: usize) -> Result<()> {
        let have = self
            .0
            .as_ref()
            .map_or(UNRESERVED_BYTES, |reserved| reserved.1);
        if held > have {
            // A task holds one reservation at a time.
            self.0 = None;
            let want = held.max(MAX_BYTES);
            self.0 = Some((out.reserve(want as u64).await?, want));
        }
        Ok(())
    }

    /// The segment is gone.
    pub fn give_back(&mut self) {
        self.0 = None;
    }
}
