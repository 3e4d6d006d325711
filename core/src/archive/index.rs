//! Index lines on their way into the archive: gathered as text, compressed at once, held until they are written side by side.

use crate::archive::format::{BlockLine, INDEX_PIECE_BYTES, IndexLine, RECORD_BYTES, UnitLine};
use crate::archive::pool::{Answer, Encoded, Pool};
use crate::archive::tar::{self, Meta};
use crate::error::{Result, bug};
use crate::name::MemberPath;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::oneshot;

/// Gathers lines from the writer (blocks) and from lanes (units).
#[derive(Debug, Default)]
pub struct IndexPieces {
    state: Mutex<State>,
    held_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    text: String,
    pieces: u32,
    compressing: Vec<Answer>,
}

impl IndexPieces {
    /// Adds a block's line.
    pub async fn block(&self, pool: &Pool, line: BlockLine) -> Result<()> {
        self.push(
            pool,
            &IndexLine {
                block: Some(line),
                unit: None,
            },
        )
        .await
    }

    /// Adds a unit's line.
    pub async fn unit(&self, pool: &Pool, line: UnitLine) -> Result<()> {
        self.push(
            pool,
            &IndexLine {
                block: None,
                unit: Some(line),
            },
        )
        .await
    }

    async fn push(&self, pool: &Pool, line: &IndexLine) -> Result<()> {
        let line = serde_json::to_string(line)
            .map_err(|e| bug(format!("an index line cannot be written: {e}")))?;
        let full = {
            let mut state = self.state.lock().expect("no index line panics");
            let piece_is_full =
                state.text.len() + line.len() + 1 > INDEX_PIECE_BYTES - 4 * RECORD_BYTES as usize;
            let full = piece_is_full.then(|| state.take_piece());
            state.text.push_str(&line);
            state.text.push('\n');
            full
        };
        match full {
            Some(raw) => self.compress(pool, raw).await,
            None => Ok(()),
        }
    }

    /// Goes on to its end even when the caller is dropped: a piece that was taken holds other instances' lines too.
    async fn compress(&self, pool: &Pool, raw: Vec<u8>) -> Result<()> {
        // A fair guess until it is known: index text shrinks to a third.
        self.held_bytes
            .fetch_add(raw.len() as u64 / 3, Ordering::Relaxed);
        let (forward, answer) = oneshot::channel();
        self.state
            .lock()
            .expect("no index line panics")
            .compressing
            .push(answer);
        let pool = pool.clone();
        let handed_in = tokio::spawn(async move {
            match pool.submit(raw).await {
                Ok(answer) => drop(tokio::spawn(async move {
                    let ended = || Err(bug("a compressing thread ended early"));
                    // Nobody listens any more when the run has ended.
                    let _ = forward.send(answer.await.unwrap_or_else(|_| ended()));
                })),
                Err(error) => drop(forward.send(Err(error))),
            }
        });
        handed_in
            .await
            .map_err(|e| bug(format!("handing in the index failed: {e}")))
    }

    /// Roughly how many compressed bytes wait here.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// The pieces that are full; with `All` also the last, unfinished one. In no particular order.
    pub async fn take(&self, pool: &Pool, what: Take) -> Result<Vec<Encoded>> {
        let last = {
            let mut state = self.state.lock().expect("no index line panics");
            (what == Take::All && !state.text.is_empty()).then(|| state.take_piece())
        };
        if let Some(raw) = last {
            self.compress(pool, raw).await?;
        }
        let answers =
            std::mem::take(&mut self.state.lock().expect("no index line panics").compressing);
        self.held_bytes.store(0, Ordering::Relaxed);
        let mut pieces = Vec::with_capacity(answers.len());
        for answer in answers {
            pieces.push(
                answer
                    .await
                    .map_err(|_| bug("a compressing thread ended early"))??,
            );
        }
        Ok(pieces)
    }
}

/// How much `IndexPieces::take` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Full pieces only.
    Full,
    /// Everything.
    All,
}

impl State {
    fn take_piece(&mut self) -> Vec<u8> {
        let text = std::mem::take(&mut self.text);
        let path = MemberPath::new(format!(".bk/index/{:04}.jsonl", self.pieces))
            .expect("a number makes a good path");
        self.pieces += 1;
        tar::member(&path, &Meta::default(), text.as_bytes())
    }
}
