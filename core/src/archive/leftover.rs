//! What dropped lanes left behind: it is handed in all the same, since a tar must stay a tar.

use crate::archive::format::BODY_CUT_BYTES;
use crate::archive::memory::Reserved;
use crate::archive::writer::{BlockInfo, Entrance, RawBlock};
use tokio::sync::{mpsc, oneshot};

pub(super) enum Leftover {
    Lane {
        blocks: Vec<RawBlock>,
        zeros: u64,
        info: BlockInfo,
        _permit: Reserved,
    },
    Barrier(oneshot::Sender<()>),
}

/// What dropped lanes left behind, in order.
pub(super) async fn hand_in_leftovers(
    entrance: Entrance,
    mut queue: mpsc::UnboundedReceiver<Leftover>,
) {
    while let Some(leftover) = queue.recv().await {
        let (blocks, zeros, info) = match leftover {
            Leftover::Barrier(done) => {
                let _ = done.send(());
                continue;
            }
            Leftover::Lane {
                blocks,
                zeros,
                info,
                _permit,
            } => (blocks, zeros, info),
        };
        let unit = info
            .units
            .last()
            .map(|range| (range.0.clone(), range.1.clone()));
        let rest = zero_blocks(
            Vec::new(),
            zeros,
            BlockInfo {
                units: Vec::new(),
                first: None,
                continues: true,
                ..info
            },
            unit,
        );
        for block in blocks.into_iter().chain(rest) {
            if let Err(error) = entrance.submit(vec![block]).await {
                tracing::warn!(%error, "a lane was dropped and could not be closed");
                return;
            }
        }
    }
}

/// `first` and so many zeros behind it, as blocks.
pub(super) fn zero_blocks(
    first: Vec<u8>,
    mut zeros: u64,
    info: BlockInfo,
    unit: Option<(String, String)>,
) -> impl Iterator<Item = RawBlock> {
    let mut next = Some((first, info));
    std::iter::from_fn(move || {
        let (mut raw, mut info) = next.take()?;
        let room = BODY_CUT_BYTES.min(zeros);
        raw.resize(raw.len() + room as usize, 0);
        zeros -= room;
        if raw.is_empty() {
            return None;
        }
        if zeros > 0 {
            let follow = BlockInfo {
                continues: true,
                first: None,
                torn: None,
                inode_group: Vec::new(),
                part_of: Vec::new(),
                ..info.clone()
            };
            next = Some((Vec::new(), follow));
        }
        info.units = unit
            .iter()
            .map(|(group, name)| (group.clone(), name.clone(), 0, raw.len() as u64))
            .collect();
        Some((raw, info))
    })
}
