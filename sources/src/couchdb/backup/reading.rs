//! One database: all leaves in their order, then what was written meanwhile.

use super::segments::Segments;
use super::{Database, Reading};
use crate::couchdb::documents::{self, Document, Fetched, Which};
use crate::couchdb::feed::{self, PAGE, Pass, Read};
use crate::couchdb::revision::{Leaf, Leaves};
use crate::couchdb::{catalogue, connection::Connection};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::source::{Lane, Output};
use futures::StreamExt;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rounds in which is read what was written meanwhile.
const ROUNDS: usize = 5;
/// What a leaf takes in the list, in the mean, to guess how many passes there will be.
const LEAF_BYTES: u64 = 96;
/// Passes beyond which nothing gets better.
const MOST_BITS: u32 = 12;

/// What was read, and what is left for later stages.
#[derive(Default)]
pub struct Done {
    /// Leaves in the members of this stage.
    pub leaves: u64,
    /// Leaves with attachments too large to be held.
    pub large: Vec<Leaf>,
    /// Leaves of design documents.
    pub designs: Vec<Leaf>,
    /// Where the feed was read to.
    pub since: Value,
    /// Documents that were written after that.
    pub pending: u64,
}

/// Reads a database into a lane. `written` is told how many bytes there are so far.
pub async fn database(
    cx: &Context,
    reading: &Reading,
    database: &Database,
    (lane, out): (&mut Lane, &Output),
    written: impl FnMut(u64) + Send,
) -> Result<Done> {
    let mut one = One {
        cx,
        reading,
        database,
        done: Done {
            since: database.before.update_seq.clone(),
            ..Done::default()
        },
        owed: HashMap::new(),
        at_once: AtomicUsize::new(at_first(database)),
        bytes: 0,
        written,
    };
    one.all(lane, out).await?;
    one.since_then(lane, out).await?;
    let mut done = one.done;
    // One that was in the list and among what was written since is read once.
    done.large.sort();
    done.large.dedup();
    done.designs.sort();
    done.designs.dedup();
    Ok(done)
}

/// Documents of the first requests, by what the server says of their size.
fn at_first(database: &Database) -> usize {
    let fit = documents::ANSWER_BYTES as f64 / database.before.mean_bytes().max(1.0);
    (fit as usize).clamp(1, documents::MOST)
}

struct One<'a, F> {
    cx: &'a Context,
    reading: &'a Reading,
    database: &'a Database,
    done: Done,
    /// Leaves that were in the feed and not to be had, by document: they were replaced, or purged.
    owed: HashMap<String, HashSet<String>>,
    /// Documents that are asked for together; fewer when they are large.
    at_once: AtomicUsize,
    bytes: u64,
    written: F,
}

impl<F: FnMut(u64) + Send> One<'_, F> {
    fn connection(&self) -> &Connection {
        &self.reading.connection
    }

    /// All leaves, in one pass, or in as many as the memory for their list wants: the order is the same.
    async fn all(&mut self, lane: &mut Lane, out: &Output) -> Result<()> {
        let before = &self.database.before;
        let expected = (before.doc_count + before.doc_del_count) * LEAF_BYTES;
        let most = self.reading.list_bytes as u64;
        let mut bits = 0;
        while expected >> bits > most && bits < MOST_BITS {
            bits += 1;
        }
        let room = (expected >> bits).clamp(1 << 20, most) >> 20;
        let _room = self.reading.list_room(self.cx, room as u32).await?;
        let mut segments = Segments::new(&self.database.path(""));
        let mut pass = Pass { bits, n: 0 };
        loop {
            self.cx.check_cancelled()?;
            // Only the first pass can show that the guess was too good; the others are as large.
            let most = if pass.n == 0 && pass.bits < MOST_BITS {
                self.reading.list_bytes
            } else {
                usize::MAX
            };
            let read = feed::leaves(self.connection(), &self.database.name, pass, most).await?;
            let Read::Whole(leaves) = read else {
                pass.bits += 1;
                continue;
            };
            self.documents(&leaves, &mut segments, (lane, out)).await?;
            pass.n += 1;
            if pass.n >> pass.bits == 1 {
                break;
            }
        }
        segments.finish(lane, out).await
    }

    /// Documents of a list, several requests in flight, the answers in the list's order.
    async fn documents(
        &mut self,
        leaves: &Leaves,
        segments: &mut Segments,
        (lane, out): (&mut Lane, &Output),
    ) -> Result<()> {
        let connection = self.reading.connection.clone();
        let (name, is_full) = (self.database.name.as_str(), self.reading.is_full);
        let at_once = std::mem::take(&mut self.at_once);
        let (mut next, mut designs) = (0, Vec::new());
        let batches = std::iter::from_fn(|| {
            let most = at_once.load(Ordering::Relaxed);
            let mut batch = Vec::new();
            while batch.len() < most
                && let Some(leaf) = leaves.get(next)
            {
                next += 1;
                if leaf.is_design() {
                    designs.push(leaf);
                } else {
                    batch.push(leaf);
                }
            }
            (!batch.is_empty()).then_some(batch)
        });
        let fetch = |batch: Vec<Leaf>| {
            let (connection, at_once) = (&connection, &at_once);
            async move {
                let fetched =
                    documents::fetch(connection, (name, is_full), batch, Which::Exact).await?;
                adapt(at_once, &fetched);
                Ok::<_, Error>(fetched)
            }
        };
        let mut answers = futures::stream::iter(batches)
            .map(fetch)
            .buffered(self.reading.parallel);
        while let Some(fetched) = answers.next().await {
            let mut fetched = fetched?;
            loop {
                self.cx.check_cancelled()?;
                let left = std::mem::take(&mut fetched.left);
                self.take(fetched, segments, (lane, out)).await?;
                if left.is_empty() {
                    break;
                }
                fetched = fetch(left).await?;
            }
        }
        drop(answers);
        self.done.designs.append(&mut designs);
        self.at_once = at_once;
        Ok(())
    }

    async fn take(
        &mut self,
        fetched: Fetched,
        segments: &mut Segments,
        (lane, out): (&mut Lane, &Output),
    ) -> Result<()> {
        for leaf in fetched.missing {
            self.owed.entry(leaf.id).or_default().insert(leaf.rev);
        }
        for (leaf, document) in fetched.documents {
            if matches!(document, Document::Large) {
                self.done.large.push(leaf);
                continue;
            }
            self.bytes += segments.take(lane, out, &leaf, &document).await?;
            self.done.leaves += 1;
            (self.written)(self.bytes);
        }
        Ok(())
    }

    /// What was written while all was read. Whoever never stops writing is left behind after some rounds, and the archive says how far.
    async fn since_then(&mut self, lane: &mut Lane, out: &Output) -> Result<()> {
        let name = &self.database.name;
        for round in 1..=ROUNDS {
            let (leaves, documents, since) =
                feed::since(self.connection(), name, &self.done.since).await?;
            self.done.since = since;
            if leaves.is_empty() {
                break;
            }
            let mut list = Leaves::default();
            for leaf in &leaves {
                self.settle(leaf);
                list.push(&leaf.id, &leaf.rev)?;
            }
            list.sort();
            let mut segments = Segments::new(&self.database.path(&format!("changes-{round}.")));
            self.documents(&list, &mut segments, (lane, out)).await?;
            segments.finish(lane, out).await?;
            if documents < PAGE && self.owed.is_empty() {
                break;
            }
        }
        self.settle_owed(lane, out).await?;
        if self.reading.is_full {
            self.done.pending = feed::pending(self.connection(), name, &self.done.since).await?;
        }
        Ok(())
    }

    /// A document that was replaced shows up with another leaf.
    fn settle(&mut self, leaf: &Leaf) {
        if self
            .owed
            .get(&leaf.id)
            .is_some_and(|revs| !revs.contains(&leaf.rev))
        {
            self.owed.remove(&leaf.id);
        }
    }

    /// What is still owed is asked for once more, as whatever replaced it; only a purge excuses what is not there at all.
    async fn settle_owed(&mut self, lane: &mut Lane, out: &Output) -> Result<()> {
        if self.owed.is_empty() {
            return Ok(());
        }
        let owed = std::mem::take(&mut self.owed);
        let leaves = owed.into_iter().flat_map(|(id, revs)| {
            revs.into_iter().map(move |rev| Leaf {
                id: id.clone(),
                rev,
            })
        });
        let mut leaves: Vec<Leaf> = leaves.collect();
        leaves.sort();
        let (name, is_full) = (self.database.name.as_str(), self.reading.is_full);
        let mut segments = Segments::new(&self.database.path(&format!("changes-{}.", ROUNDS + 1)));
        for some in leaves.chunks(documents::MOST) {
            let mut left = some.to_vec();
            while !left.is_empty() {
                let asked = (name, is_full);
                let mut fetched =
                    documents::fetch(self.connection(), asked, left, Which::Latest).await?;
                left = std::mem::take(&mut fetched.left);
                self.take(fetched, &mut segments, (lane, out)).await?;
            }
        }
        segments.finish(lane, out).await?;
        let Some((id, revs)) = self.owed.iter().next() else {
            return Ok(());
        };
        let now = catalogue::info(self.connection(), name).await?;
        if now.is_some_and(|now| now.purges() != self.database.before.purges()) {
            return Ok(());
        }
        let rev = revs.iter().next().map_or("", String::as_str);
        Err(Error::new(
            ErrorKind::Unreachable,
            format!(
                "{} documents were in its feed and cannot be read, the first `{id}` at {rev}; repeat the backup",
                self.owed.len()
            ),
        ))
    }
}

/// Fewer documents when an answer was too large, more when it was small.
fn adapt(at_once: &AtomicUsize, fetched: &Fetched) {
    let (asked, bytes) = (fetched.asked, fetched.bytes);
    let most = at_once.load(Ordering::Relaxed);
    let next = if !fetched.left.is_empty() {
        asked
    } else if bytes > documents::ANSWER_BYTES {
        asked * documents::ANSWER_BYTES / bytes
    } else if asked == most && bytes < documents::ANSWER_BYTES / 2 {
        most * 2
    } else {
        most
    };
    at_once.store(next.clamp(1, documents::MOST), Ordering::Relaxed);
}

/// Leaves of design documents as they are now: one that was replaced meanwhile comes as what replaced it.
pub async fn designs(reading: &Reading, database: &Database, leaves: Vec<Leaf>) -> Result<Fetched> {
    let (mut all, mut left) = (Fetched::default(), leaves);
    while !left.is_empty() {
        let asked = (database.name.as_str(), reading.is_full);
        let mut fetched = documents::fetch(&reading.connection, asked, left, Which::Latest).await?;
        left = std::mem::take(&mut fetched.left);
        all.documents.append(&mut fetched.documents);
        if let Some(leaf) = fetched.missing.first() {
            let what = leaf.shown();
            let why = format!("{what} cannot be read any more; repeat the backup");
            return Err(Error::new(ErrorKind::Unreachable, why));
        }
    }
    Ok(all)
}
