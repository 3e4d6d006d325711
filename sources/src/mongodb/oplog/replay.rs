//! Entries of the log onto a collection that was restored: folded by document, so that each is read and written once.

use crate::mongodb::bson;
use crate::mongodb::oplog::delta;
use crate::mongodb::restore::insert::Target;
use bk_core::error::{Error, Result, unsupported};
use std::collections::{HashMap, HashSet};

/// Documents that are changed together.
const BATCH_DOCUMENTS: usize = 500;
const BATCH_BYTES: usize = 8 << 20;

/// What will have become of a document.
enum State {
    Is(Vec<u8>),
    Gone,
    Changes(Vec<Vec<u8>>),
}

/// Entries of one collection, in their order.
pub struct Replay {
    target: Target,
    states: HashMap<Vec<u8>, State>,
    /// In which order they came up: in a capped collection it counts.
    order: Vec<Vec<u8>>,
    bytes: usize,
    /// Documents that were changed, and are not there: they must be deleted later on, or a document is missing.
    owed: HashSet<Vec<u8>>,
    /// Entries that were taken.
    pub entries: u64,
}

impl Replay {
    /// Onto this collection.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            states: HashMap::new(),
            order: Vec::new(),
            bytes: 0,
            owed: HashSet::new(),
            entries: 0,
        }
    }

    /// Takes the entries of a member.
    pub async fn take(&mut self, body: &[u8]) -> Result<()> {
        for entry in bson::documents(body) {
            self.entry(entry?)?;
            self.entries += 1;
            if self.states.len() >= BATCH_DOCUMENTS || self.bytes >= BATCH_BYTES {
                self.write().await?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &[u8]) -> Result<()> {
        let damaged = || Error::corrupt("an entry of the log cannot be read");
        let op = bson::text(entry, "op").ok_or_else(damaged)?;
        let o = bson::inner(entry, "o").ok_or_else(damaged)?;
        // Which document: of an update it stands beside.
        let which = if op == "u" {
            bson::inner(entry, "o2").ok_or_else(damaged)?
        } else {
            o
        };
        let id = bson::Writing::new()
            .element(
                bson::id(which).ok_or_else(|| unsupported("an entry of the log names no _id"))?,
            )
            .bytes();
        self.bytes += entry.len();
        let state = match op {
            "i" => State::Is(o.to_vec()),
            "d" => State::Gone,
            "u" if !delta::is_delta(o) => State::Is(o.to_vec()),
            "u" => match self.states.remove(&id) {
                Some(State::Is(document)) => State::Is(delta::apply(&document, o)?),
                // It was deleted, and made anew before this change: the log says so first.
                Some(State::Gone) => State::Gone,
                Some(State::Changes(mut changes)) => {
                    changes.push(o.to_vec());
                    State::Changes(changes)
                }
                None => State::Changes(vec![o.to_vec()]),
            },
            other => {
                return Err(unsupported(format!(
                    "an entry `{other}` of the log is not known"
                )));
            }
        };
        if self.states.insert(id.clone(), state).is_none() {
            self.order.push(id);
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<()> {
        let mut states = std::mem::take(&mut self.states);
        self.bytes = 0;
        let to_fetch: Vec<&[u8]> = states
            .iter()
            .filter(|(_, state)| matches!(state, State::Changes(_)))
            .map(|(id, _)| id.as_slice())
            .collect();
        let mut there: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        if !to_fetch.is_empty() {
            for document in self.target.fetch(&to_fetch).await? {
                if let Some(id) = bson::id(&document) {
                    there.insert(bson::Writing::new().element(id).bytes(), document);
                }
            }
        }
        let gone: Vec<Vec<u8>> = states
            .extract_if(|_, state| matches!(state, State::Gone))
            .map(|(id, _)| id)
            .collect();
        if !gone.is_empty() {
            let which: Vec<&[u8]> = gone.iter().map(Vec::as_slice).collect();
            self.target.delete(&which).await?;
        }
        gone.iter().for_each(|id| {
            self.owed.remove(id);
        });
        for id in std::mem::take(&mut self.order) {
            let Some(become_of_it) = states.remove(&id) else {
                continue;
            };
            let document = match (become_of_it, there.remove(&id)) {
                (State::Is(document), _) => document,
                (State::Changes(deltas), Some(document)) => deltas
                    .iter()
                    .try_fold(document, |document, delta| delta::apply(&document, delta))?,
                (State::Changes(_), None) => {
                    self.owed.insert(id);
                    continue;
                }
                (State::Gone, _) => continue,
            };
            self.owed.remove(&id);
            self.target.replace(&document).await?;
        }
        Ok(())
    }

    /// Writes what is left. Every change must have met its document.
    pub async fn finish(mut self) -> Result<u64> {
        self.write().await?;
        if self.owed.is_empty() {
            return Ok(self.entries);
        }
        Err(Error::corrupt(format!(
            "{} documents that the log changes are not among those that were read",
            self.owed.len()
        )))
    }
}
