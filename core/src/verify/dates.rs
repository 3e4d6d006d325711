//! When each stored copy was last read, and how far: kept in notes beside the archives, so that checks rotate over all of them.

use super::Level;
use crate::catalog::Entry;
use crate::context::Context;
use crate::error::{ErrorKind, Result};
use crate::note;
use crate::retention::is_future;
use crate::sink::{Sink, Stored};
use futures::stream::{self, StreamExt};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

const PREFIX: &str = "verified-";
const NOTES_AT_ONCE: usize = 16;
const HINT: &str = "remove it: the dates of checks are lost with it, nothing else";

/// What is known of the checks of one copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// When it last passed, by level.
    #[serde(default)]
    pub passed: BTreeMap<Level, Timestamp>,
    /// When it last failed, unless it has passed as far since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
}

/// A check that did not pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// How far it was read.
    pub level: Level,
    /// When.
    pub at: Timestamp,
    /// What was found.
    pub why: String,
    /// Nothing was learned of the archive: it is frozen, or the account may not read it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unread: bool,
}

/// How a check of this level ended.
pub type Outcome = (Level, std::result::Result<(), Trouble>);

/// Why a check did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It found damage.
    Damage(String),
    /// It could not read the archive.
    Unread(String),
}

impl Checked {
    /// When it was last read at least so far.
    pub fn at_least(&self, level: Level) -> Option<Timestamp> {
        self.passed.range(level..).map(|(_, at)| *at).max()
    }

    /// When it was last tried so far, whatever came of it.
    pub fn tried(&self, level: Level) -> Option<Timestamp> {
        let failed = self.failed.as_ref().filter(|failed| failed.level >= level);
        self.at_least(level).max(failed.map(|failed| failed.at))
    }

    fn took(&mut self, at: Timestamp, (level, found): &Outcome) {
        let level = *level;
        match found {
            Ok(()) => {
                self.passed.insert(level, at);
                self.failed = self.failed.take().filter(|failed| failed.level > level);
            }
            // Damage that was found is not forgotten for that.
            Err(Trouble::Unread(_)) if self.failed.as_ref().is_some_and(|f| !f.unread) => {}
            Err(trouble) => {
                let (why, unread) = match trouble {
                    Trouble::Damage(why) => (why.clone(), false),
                    Trouble::Unread(why) => (why.clone(), true),
                };
                self.failed = Some(Failed {
                    level,
                    at,
                    why,
                    unread,
                });
            }
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Note {
    checked: BTreeMap<String, Checked>,
}

/// The checks of all copies on one sink.
#[derive(Debug, Default)]
pub struct Dates {
    known: HashMap<String, Checked>,
}

impl Dates {
    /// All that is noted there. What cannot be read counts as never checked.
    pub async fn read(cx: &Context, sink: &Arc<dyn Sink>) -> Self {
        let read = match Self::notes(cx, sink).await {
            Ok(read) => read,
            Err(error) => {
                tracing::debug!(%error, "the dates of checks are not listed");
                return Self::default();
            }
        };
        let mut dates = Self::default();
        for read in read {
            match read {
                Ok(note) => dates.known.extend(note.checked),
                Err(error) => tracing::warn!(%error, "dates of checks are not readable"),
            }
        }
        dates
    }

    /// The same where something is let go by it: what cannot be read is the error. A sink that keeps no notes has none.
    pub async fn read_all(cx: &Context, sink: &Arc<dyn Sink>) -> Result<Self> {
        let read = match Self::notes(cx, sink).await {
            Err(error) if error.kind == ErrorKind::Unsupported => Vec::new(),
            read => read?,
        };
        let mut dates = Self::default();
        for note in read {
            dates.known.extend(note?.checked);
        }
        Ok(dates)
    }

    async fn notes(cx: &Context, sink: &Arc<dyn Sink>) -> Result<Vec<Result<Note>>> {
        let names = sink.notes(cx, &cx.site, PREFIX).await?;
        let notes = stream::iter(names).map(|seen| async move {
            let (note, _) = note::read::<Note>(cx, sink, &seen.name.name, HINT).await?;
            Ok(note)
        });
        Ok(notes.buffer_unordered(NOTES_AT_ONCE).collect().await)
    }

    /// What is known of one copy.
    pub fn of(&self, entry: &Entry) -> Option<&Checked> {
        self.known.get(&key_of(entry))
    }

    /// The damage that the last check of this copy found.
    pub fn damage(&self, entry: &Entry) -> Option<&Failed> {
        self.of(entry)?
            .failed
            .as_ref()
            .filter(|failed| !failed.unread)
    }
}

/// Notes how the check of a copy ended, of an archive that was `created` then. Checks of copies that are not `there` any more are forgotten. `copy`
/// is what `key` calls it.
pub async fn note_check(
    cx: &Context,
    sink: &Arc<dyn Sink>,
    copy: &str,
    created: Timestamp,
    outcome: &Outcome,
    there: Option<&BTreeSet<String>>,
) -> Result<()> {
    let at = cx.clock.now();
    note::change::<Note>(cx, sink, &note_of(created), HINT, |note| {
        let checked = note.checked.entry(copy.to_owned()).or_default();
        checked.took(at, outcome);
        if let Some(there) = there {
            note.checked.retain(|key, _| there.contains(key));
        }
    })
    .await
}

fn note_of(created: Timestamp) -> String {
    format!("{PREFIX}{}", created.strftime("%Y-%m"))
}

/// What a copy is known by: a name may be another archive's one day.
pub fn key(stored: &Stored, id: &str) -> String {
    format!("{} {} {id}", stored.name, stored.version)
}

/// The same of an entry of the catalogue.
pub fn key_of(entry: &Entry) -> String {
    let id = entry
        .summary()
        .map_or(&entry.stored.etag, |summary| &summary.id);
    key(&entry.stored, id)
}

/// Which copies are read this time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rotation {
    /// So many of a hundred, those first that were not read for the longest time.
    pub sample: Option<f64>,
    /// All that were not read for so long. What was never read was when it was made.
    pub max_age: Option<SignedDuration>,
}

impl Rotation {
    /// The same where no dates are kept: each copy has its day, by a hash, and those that are old are read each time.
    pub fn due_today<T>(&self, copies: Vec<(T, u64, Timestamp)>, now: Timestamp) -> Vec<T> {
        let days = self.sample.map(|percent| (100.0 / percent).ceil() as u64);
        let today = now.as_second().div_euclid(24 * 60 * 60).unsigned_abs();
        let has_its_day = |hash: u64| days.is_some_and(|days| hash % days == today % days);
        let is_old = |made| {
            self.max_age
                .is_some_and(|most| now.duration_since(made) >= most)
        };
        copies
            .into_iter()
            .filter(|(_, hash, made)| has_its_day(*hash) || is_old(*made))
            .map(|(copy, _, _)| copy)
            .collect()
    }

    /// Those that are due, of copies with their making and their last check; the longest unread first.
    pub fn due<T>(
        &self,
        mut copies: Vec<(T, Timestamp, Option<Timestamp>)>,
        now: Timestamp,
    ) -> Vec<T> {
        for (_, _, checked) in &mut copies {
            // By a clock that was wrong, it would not be due for years.
            checked.take_if(|at| is_future(*at, now));
        }
        copies.sort_by_key(|(_, made, checked)| checked.unwrap_or(*made));
        let share = self.sample.map_or(0.0, |percent| percent / 100.0);
        let sampled = (copies.len() as f64 * share).ceil() as usize;
        let old = |read: Timestamp| {
            let age = now.duration_since(read);
            self.max_age.is_some_and(|most| age >= most)
        };
        copies
            .into_iter()
            .enumerate()
            .filter(|(n, (_, made, checked))| *n < sampled || old(checked.unwrap_or(*made)))
            .map(|(_, (copy, _, _))| copy)
            .collect()
    }
}
