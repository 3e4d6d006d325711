//! The feed of a database: which leaves there are. Cheap to read, in an order that is not stable.

use crate::couchdb::connection::Connection;
use crate::couchdb::revision::{Leaf, Leaves};
use crate::percent::encoded;
use bk_core::error::{Error, Result};
use bk_core::name::hash64;
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;

/// Rows of a page: a few MiB.
pub const PAGE: usize = 25_000;
/// Documents of a round of what came since.
const ROUND: usize = 2 * PAGE;
/// How often a page that cannot be read is asked for again.
const TRIES: u32 = 3;

#[derive(Debug, Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    results: Vec<Row<'a>>,
    /// An answer without it was cut off.
    last_seq: Value,
    #[serde(default)]
    pending: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    changes: Vec<Change<'a>>,
}

#[derive(Debug, Deserialize)]
struct Change<'a> {
    #[serde(borrow)]
    rev: Cow<'a, str>,
}

/// Which of all leaves: those whose hash begins with these bits.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// How many passes there are, as a power of two.
    pub bits: u32,
    /// The one of them.
    pub n: u64,
}

impl Pass {
    fn takes(self, id: &str) -> bool {
        self.bits == 0 || hash64(id.as_bytes()) >> (64 - self.bits) == self.n
    }
}

/// A list that was read.
pub enum Read {
    /// All of it, sorted.
    Whole(Leaves),
    /// It is larger than it may be.
    TooLarge,
}

/// The leaves of a pass over the feed from its beginning.
pub async fn leaves(
    connection: &Connection,
    database: &str,
    pass: Pass,
    most_bytes: usize,
) -> Result<Read> {
    let mut leaves = Leaves::default();
    let mut stands = (Value::from(0), false);
    while !stands.1 {
        stands = page(connection, database, &stands.0, |id, rev| {
            if pass.takes(id) {
                leaves.push(id, rev)?;
            }
            Ok(())
        })
        .await?;
        if leaves.bytes() > most_bytes {
            return Ok(Read::TooLarge);
        }
    }
    leaves.sort();
    Ok(Read::Whole(leaves))
}

/// What came since, in one round: leaves, the documents that they are of, and where the feed stands then.
pub async fn since(
    connection: &Connection,
    database: &str,
    since: &Value,
) -> Result<(Vec<Leaf>, usize, Value)> {
    let (mut leaves, mut documents) = (Vec::<Leaf>::new(), 0);
    let mut stands = (since.clone(), false);
    // One round takes what fits into a few pages; the next one goes on.
    while !stands.1 && documents < ROUND {
        stands = page(connection, database, &stands.0, |id, rev| {
            if leaves.last().is_none_or(|last| last.id != id) {
                documents += 1;
            }
            leaves.push(Leaf {
                id: id.to_owned(),
                rev: rev.to_owned(),
            });
            Ok(())
        })
        .await?;
    }
    Ok((leaves, documents, stands.0))
}

/// Documents that are still to come after a place in the feed.
pub async fn pending(connection: &Connection, database: &str, since: &Value) -> Result<u64> {
    let asking = asking(database);
    let answer = connection.get(&path(database, since, 0), &asking).await?;
    let page = parsed(&answer.body, &asking)?;
    // Some servers give a row where none was asked for.
    Ok(page.pending.unwrap_or(0) + page.results.len() as u64)
}

fn asking(database: &str) -> String {
    format!("reading the feed of `{database}`")
}

fn parsed<'a>(body: &'a [u8], asking: &str) -> Result<Page<'a>> {
    serde_json::from_slice(body)
        .map_err(|e| Error::corrupt(format!("{asking}: the answer cannot be read")).because(e))
}

fn path(database: &str, since: &Value, limit: usize) -> String {
    let since = match since {
        Value::String(text) => encoded(text),
        other => other.to_string(),
    };
    let interval = if limit > 0 {
        format!("&seq_interval={limit}")
    } else {
        String::new()
    };
    format!(
        "/{}/_changes?style=all_docs&limit={limit}&since={since}{interval}",
        encoded(database)
    )
}

/// One page: where the next one begins, and whether this was the last. An answer that cannot be read is asked for again.
async fn page(
    connection: &Connection,
    database: &str,
    since: &Value,
    mut take: impl FnMut(&str, &str) -> Result<()>,
) -> Result<(Value, bool)> {
    let asking = asking(database);
    let mut tries = 0;
    loop {
        let answer = connection
            .get(&path(database, since, PAGE), &asking)
            .await?;
        let page = match parsed(&answer.body, &asking) {
            Ok(page) => page,
            Err(error) if tries == TRIES => return Err(error),
            Err(_) => {
                tries += 1;
                continue;
            }
        };
        for row in &page.results {
            for change in &row.changes {
                take(&row.id, &change.rev)?;
            }
        }
        let is_last = match page.pending {
            Some(pending) => pending == 0,
            None => page.results.len() < PAGE,
        };
        return Ok((page.last_seq, is_last || page.results.is_empty()));
    }
}
