//! What a source writes through: lanes that fill blocks.
//!
//! A block closes at borders that the data alone decides (`core/FORMAT.md`, "Borders"), so the same data gives the same set of blocks.

use crate::archive::format::{
    BLOCK_MAX_BYTES, BLOCK_MEAN_BYTES, BODY_CUT_BYTES, GATHERED_MAX_BYTES, Stage,
};
use crate::archive::leftover::{Leftover, zero_blocks};
use crate::archive::memory::Reserved;
pub use crate::archive::output::{Counted, Output};
use crate::archive::tar::{self, Kind, Meta};
use crate::archive::writer::BlockInfo;
use crate::error::{Error, ErrorKind, Result, bug, plugin};
use crate::event::Event;
use crate::name::{MemberPath, escape, hash64};
use bytes::Bytes;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncRead, AsyncReadExt};

/// A body that is read as it is written.
pub type Reader<'a> = &'a mut (dyn AsyncRead + Send + Unpin);

/// One run of the canonical order of an instance: members in it stand one behind the other, and share blocks with no other lane.
/// Close it; dropping it closes it too, but then a failure is only in the log.
pub struct Lane {
    pub(super) out: Output,
    pub(super) permit: Option<Reserved>,
    pub(super) epoch: u32,
    pub(super) stage: Stage,
    pub(super) unit: Option<(String, String)>,
    pub(super) filling: Filling,
    /// Bytes of a begun body that were promised to the tar and never came.
    pub(super) torn_zeros: u64,
    /// Path of the body that is being streamed, or was last.
    pub(super) streaming: Option<String>,
}

#[derive(Default)]
pub(super) struct Filling {
    pub(super) buffer: Vec<u8>,
    pub(super) info: BlockInfo,
}

impl Lane {
    /// What follows belongs to this unit. The name "" says: only what makes the group.
    pub fn unit(&mut self, group: &str, name: &str) {
        self.unit = Some((group.to_owned(), name.to_owned()));
    }

    /// A member whose body is in memory. Over 4 MiB it was reserved before.
    pub async fn member(&mut self, path: MemberPath, meta: Meta, body: Bytes) -> Result<()> {
        let path = self.admit(&path)?;
        self.count_member(body.len() as u64)?;
        self.whole(&path, &meta, &body, None).await
    }

    /// A member of exactly `len` bytes. Up to 16 MiB the body is gathered first: whole or never begun. Larger ones only in
    /// `Stage::Large`; a body that ends early there is filled with zeros, its unit has failed, and no restore writes it.
    pub async fn sized(
        &mut self,
        path: MemberPath,
        meta: Meta,
        len: u64,
        body: Reader<'_>,
    ) -> Result<()> {
        let path = self.admit(&path)?;
        if len <= GATHERED_MAX_BYTES {
            let _room = if len > BODY_CUT_BYTES {
                Some(self.out.reserve(len).await?)
            } else {
                None
            };
            let bytes = gather(body, len).await?;
            self.count_member(len)?;
            return self.whole(&path, &meta, &bytes, None).await;
        }
        if self.stage != Stage::Large {
            return Err(bug(format!(
                "a body of {len} bytes belongs into Stage::Large"
            )));
        }
        self.count_member(len)?;
        self.streamed(&path, &meta, len, body).await
    }

    /// A member of unknown length, in `Stage::Large` only: consecutive parts of 4 MiB, joined again on restore. Returns the length.
    pub async fn stream(&mut self, path: MemberPath, meta: Meta, body: Reader<'_>) -> Result<u64> {
        if self.stage != Stage::Large {
            return Err(bug("a body of unknown length belongs into Stage::Large"));
        }
        let whole = self.admit(&path)?;
        let mut total = 0_u64;
        for n in 1_u64.. {
            let (bytes, ended) = match read_up_to(body, BODY_CUT_BYTES).await {
                Ok(bytes) => (bytes, None),
                Err((bytes, error)) => (bytes, Some(error)),
            };
            let last = (bytes.len() as u64) < BODY_CUT_BYTES;
            if n == 1 || !bytes.is_empty() || ended.is_some() {
                let part =
                    MemberPath::new([whole.as_bytes(), format!(".{n:05}").as_bytes()].concat())?;
                total += bytes.len() as u64;
                self.count_member(bytes.len() as u64)?;
                if ended.is_some() {
                    self.close_block().await?;
                    self.filling.info.torn = Some((whole.to_string(), total));
                }
                self.whole(&part, &meta, &bytes, Some(&whole)).await?;
            }
            if let Some(error) = ended {
                return Err(self.torn(&whole, total, error));
            }
            if last {
                break;
            }
        }
        Ok(total)
    }

    /// Hands in what is left.
    pub async fn close(mut self) -> Result<()> {
        self.close_block().await?;
        self.permit = None;
        Ok(())
    }

    fn admit(&self, path: &MemberPath) -> Result<MemberPath> {
        self.out.0.cx.check_cancelled()?;
        if self.torn_zeros != 0 {
            return Err(plugin(
                "a lane was used again although a body in it was dropped half written",
            ));
        }
        if self.epoch != self.out.0.epoch.load(Ordering::Acquire) {
            return Err(plugin("a lane was used after its stage had ended"));
        }
        let full = path.beneath(&self.out.0.name);
        // Checked here with its instance: what no reader would believe is not written.
        MemberPath::new(full.as_bytes().to_vec())
    }

    fn count_member(&self, bytes: u64) -> Result<()> {
        let (group, name) = self
            .unit
            .as_ref()
            .ok_or_else(|| plugin("a member was written before its unit was named"))?;
        let mut units = self.out.0.units();
        let open = match units.open.get_mut(&(group.clone(), name.clone())) {
            Some(open) => open,
            None if name.is_empty() => units
                .open
                .entry((group.clone(), String::new()))
                .or_default(),
            None => {
                return Err(plugin(format!(
                    "a member of unit `{group}/{name}` was written, but it is not expected"
                )));
            }
        };
        open.members += 1;
        open.bytes += bytes;
        drop(units);
        self.out.0.cx.tell(&Event::Bytes(bytes));
        Ok(())
    }

    async fn whole(
        &mut self,
        path: &MemberPath,
        meta: &Meta,
        body: &[u8],
        part_of: Option<&MemberPath>,
    ) -> Result<()> {
        let mut head = self.header(path, meta, body.len() as u64);
        let padded = head.len() as u64 + body.len() as u64 + tar::padding(body.len() as u64);
        if body.len() as u64 > BODY_CUT_BYTES {
            self.close_block().await?;
            self.note(path, meta, part_of);
            return self.cut(head, body).await;
        }
        if self.filling.buffer.len() as u64 + padded > BLOCK_MAX_BYTES {
            self.close_block().await?;
        }
        self.note(path, meta, part_of);
        let from = self.filling.buffer.len() as u64;
        self.filling.buffer.append(&mut head);
        self.filling.buffer.extend_from_slice(body);
        self.filling.buffer.resize((from + padded) as usize, 0);
        self.extend_range(from, from + padded);
        if closes_after(path, padded) {
            self.close_block().await
        } else {
            Ok(())
        }
    }

    /// The header; a hard link's target is named beneath the instance, as its path is.
    fn header(&self, path: &MemberPath, meta: &Meta, len: u64) -> Vec<u8> {
        match &meta.kind {
            Kind::Hardlink(target) => {
                let kind = Kind::Hardlink(target.beneath(&self.out.0.name));
                tar::header(
                    path,
                    &Meta {
                        kind,
                        ..meta.clone()
                    },
                    len,
                )
            }
            _ => tar::header(path, meta, len),
        }
    }

    /// Notes in the block's line what the index must know of a member that begins in it.
    fn note(&mut self, path: &MemberPath, meta: &Meta, part_of: Option<&MemberPath>) {
        let info = &mut self.filling.info;
        if info.first.is_none() {
            info.first = Some(escape(path.as_bytes()));
        }
        if let Some(group) = meta.inode_group {
            info.inode_group.push((path.to_string(), group));
        }
        if let Some(whole) = part_of {
            info.part_of.push((path.to_string(), whole.to_string()));
        }
    }

    fn extend_range(&mut self, from: u64, to: u64) {
        let Some((group, name)) = &self.unit else {
            return;
        };
        let units = &mut self.filling.info.units;
        match units.last_mut() {
            Some(last) if last.0 == *group && last.1 == *name && last.3 == from => last.3 = to,
            _ => units.push((group.clone(), name.clone(), from, to)),
        }
    }

    /// A gathered body over 4 MiB: blocks of its own, cut at fixed offsets.
    async fn cut(&mut self, mut raw: Vec<u8>, body: &[u8]) -> Result<()> {
        let mut blocks = Vec::new();
        let last = (body.len() as u64).div_ceil(BODY_CUT_BYTES) as usize - 1;
        for (n, piece) in body.chunks(BODY_CUT_BYTES as usize).enumerate() {
            raw.extend_from_slice(piece);
            if n == last {
                raw.resize(raw.len() + tar::padding(body.len() as u64) as usize, 0);
            }
            self.extend_range(0, raw.len() as u64);
            let info = self.take_info(n > 0);
            blocks.push((std::mem::take(&mut raw), info));
        }
        self.out.0.entrance.submit(blocks).await
    }

    /// A body over 16 MiB, block by block as it comes.
    async fn streamed(
        &mut self,
        path: &MemberPath,
        meta: &Meta,
        len: u64,
        body: Reader<'_>,
    ) -> Result<()> {
        self.close_block().await?;
        self.note(path, meta, None);
        let mut raw = self.header(path, meta, len);
        let pad = tar::padding(len);
        let mut good = 0_u64;
        // Should this future be dropped, the lane still owes these bytes to the tar.
        self.torn_zeros = len + pad;
        self.streaming = Some(path.to_string());
        self.filling.buffer = std::mem::take(&mut raw);
        let mut begun = false;
        while good < len {
            let want = BODY_CUT_BYTES.min(len - good);
            let read = read_up_to(body, want).await;
            let (bytes, error) = match read {
                Ok(bytes) if bytes.len() as u64 == want => (bytes, None),
                Ok(bytes) => (
                    bytes,
                    Some(std::io::Error::new(
                        std::io::ErrorKind::UnexpectedEof,
                        format!("it ended before its {len} bytes"),
                    )),
                ),
                Err((bytes, error)) => (bytes, Some(error)),
            };
            good += bytes.len() as u64;
            self.torn_zeros -= bytes.len() as u64;
            self.filling.buffer.extend_from_slice(&bytes);
            if let Some(error) = error {
                self.filling.info.torn = Some((path.to_string(), good));
                self.fill_with_zeros(begun).await?;
                return Err(self.torn(path, good, error));
            }
            if good == len {
                self.filling
                    .buffer
                    .resize(self.filling.buffer.len() + pad as usize, 0);
                self.torn_zeros = 0;
            }
            self.submit_filling(begun).await?;
            begun = true;
        }
        Ok(())
    }

    async fn fill_with_zeros(&mut self, begun: bool) -> Result<()> {
        let zeros = std::mem::take(&mut self.torn_zeros);
        let first = std::mem::take(&mut self.filling.buffer);
        let unit_range = self.unit.clone();
        let info = self.take_info(begun);
        for block in zero_blocks(first, zeros, info, unit_range) {
            self.out.0.entrance.submit(vec![block]).await?;
        }
        Ok(())
    }

    /// Marks the unit failed and says so.
    fn torn(&self, path: &MemberPath, good: u64, error: std::io::Error) -> Error {
        let failure = Error::new(
            ErrorKind::Unreachable,
            format!("`{path}` broke off after {good} bytes: {error}"),
        );
        self.fail_unit(&failure.to_string());
        failure
    }

    /// Its unit stays in the archive as far as it came; the first reason is the one that is told.
    fn fail_unit(&self, why: &str) {
        if let Some(unit) = &self.unit
            && let Some(open) = self.out.0.units().open.get_mut(unit)
        {
            open.failed.get_or_insert_with(|| why.to_owned());
        }
    }

    async fn submit_filling(&mut self, continues: bool) -> Result<()> {
        let len = self.filling.buffer.len() as u64;
        self.filling.info.units.clear();
        self.extend_range(0, len);
        let raw = std::mem::take(&mut self.filling.buffer);
        let info = self.take_info(continues);
        self.out.0.entrance.submit(vec![(raw, info)]).await
    }

    fn take_info(&mut self, continues: bool) -> BlockInfo {
        let info = std::mem::take(&mut self.filling.info);
        BlockInfo {
            instance: Some(self.out.0.name.clone()),
            stage: Some(self.stage),
            continues,
            ..info
        }
    }

    async fn close_block(&mut self) -> Result<()> {
        if self.filling.buffer.is_empty() {
            return Ok(());
        }
        let raw = std::mem::take(&mut self.filling.buffer);
        let info = self.take_info(false);
        self.out.0.entrance.submit(vec![(raw, info)]).await
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        if self.filling.buffer.is_empty() && self.torn_zeros == 0 {
            return;
        }
        let zeros = std::mem::take(&mut self.torn_zeros);
        if zeros > 0 {
            let path = self.streaming.clone().unwrap_or_default();
            self.filling.info.torn = Some((path, 0));
            self.fail_unit("a body was dropped half written");
        }
        let raw = std::mem::take(&mut self.filling.buffer);
        if zeros > 0 {
            self.extend_range(0, raw.len() as u64);
        }
        let continues = zeros > 0 && self.filling.info.first.is_none();
        let info = self.take_info(continues);
        let blocks = if raw.is_empty() {
            Vec::new()
        } else {
            vec![(raw, info.clone())]
        };
        // The receiver lives as long as the run.
        let _ = self.out.0.leftovers.send(Leftover::Lane {
            blocks,
            zeros,
            info,
            _permit: permit,
        });
    }
}

/// The border rule: a member of `padded` bytes closes its block when its name's hash says so, the sooner the larger it is.
fn closes_after(path: &MemberPath, padded: u64) -> bool {
    u128::from(hash64(path.as_bytes())) * u128::from(BLOCK_MEAN_BYTES) < u128::from(padded) << 64
}

/// Exactly `len` bytes, or an error; nothing of the member has begun then.
async fn gather(body: Reader<'_>, len: u64) -> Result<Vec<u8>> {
    match read_up_to(body, len).await {
        Ok(bytes) if bytes.len() as u64 == len => Ok(bytes),
        Ok(bytes) => Err(Error::new(
            ErrorKind::Unreachable,
            format!("a body ended after {} of {len} bytes", bytes.len()),
        )),
        Err((bytes, error)) => Err(Error::new(
            ErrorKind::Unreachable,
            format!(
                "a body broke off after {} of {len} bytes: {error}",
                bytes.len()
            ),
        )),
    }
}

/// Up to `want` bytes; fewer only at the end. With an error, what came before it.
async fn read_up_to(
    body: Reader<'_>,
    want: u64,
) -> std::result::Result<Vec<u8>, (Vec<u8>, std::io::Error)> {
    let mut bytes = Vec::with_capacity(want as usize);
    let mut limited = body.take(want);
    match limited.read_to_end(&mut bytes).await {
        Ok(_) => Ok(bytes),
        Err(error) => Err((bytes, error)),
    }
}
