//! What tails said, kept in notes beside the archives: `catalogue-YYYY-MM`, and `catalogue-YYYY-MM.1`, … where a month fills more than one.
//! Hints, rebuilt when lost.

use super::{Entry, Summary, What};
use crate::context::Context;
use crate::error::Result;
use crate::sink::{Care, NoteName, Sink, Stored, Was};
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// A little less than the largest note that a sink takes.
const NOTE_MAX_BYTES: usize = 1_000_000;
const PREFIX: &str = "catalogue-";
const NOTES_AT_ONCE: usize = 16;
const FORMAT: u32 = 2;

#[derive(Serialize, Deserialize)]
struct CatalogueNote {
    format: u32,
    entries: Vec<(Stored, What)>,
}

/// The notes of one sink as they were found.
#[derive(Default)]
pub(super) struct Noted {
    known: HashMap<Stored, What>,
    /// How many notes each month has.
    pieces: BTreeMap<String, usize>,
    /// Months of which something could not be read: they are not written, since that would lose it.
    unread: BTreeSet<String>,
    /// Nothing could be read.
    blind: bool,
}

impl Noted {
    /// All of them. To look, what cannot be read is as good as none; to delete, it is an error, since the notes then guard the list.
    pub async fn read(cx: &Context, sink: &Arc<dyn Sink>, care: Care) -> Result<Self> {
        Self::read_of(cx, sink, care, "").await
    }

    /// Those of months that begin so.
    async fn read_of(cx: &Context, sink: &Arc<dyn Sink>, care: Care, months: &str) -> Result<Self> {
        let names = match sink.notes(cx, &cx.site, &format!("{PREFIX}{months}")).await {
            Ok(seen) => seen.into_iter().map(|note| note.name).collect::<Vec<_>>(),
            Err(error) if care == Care::Delete => return Err(error.within("the catalogue's notes")),
            Err(error) => {
                tracing::debug!(%error, "catalogue notes not listed, tails are read instead");
                return Ok(Self {
                    blind: true,
                    ..Self::default()
                });
            }
        };
        let mut noted = Self::default();
        for name in &names {
            *noted.pieces.entry(month_of(&name.name)).or_default() += 1;
        }
        let bodies = stream::iter(names)
            .map(|name| async move { (month_of(&name.name), sink.note(cx, &name).await) })
            .buffer_unordered(NOTES_AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        for (month, body) in bodies {
            match body {
                Ok(Some(note)) => noted.take(cx, &note.body),
                Ok(None) => {}
                Err(error) if care == Care::Delete => {
                    return Err(error.within("the catalogue's notes"));
                }
                Err(error) => {
                    tracing::debug!(%error, "a catalogue note is not readable");
                    noted.unread.insert(month);
                }
            }
        }
        Ok(noted)
    }

    fn take(&mut self, cx: &Context, body: &[u8]) {
        let Ok(note) = serde_json::from_slice::<CatalogueNote>(body) else {
            return;
        };
        if note.format == FORMAT {
            let of_this_site = note.entries.into_iter().filter(|(_, what)| match what {
                What::Archive(summary) => *summary.site == *cx.site,
                _ => true,
            });
            self.known.extend(of_this_site);
        }
    }

    /// What is known of this copy.
    pub fn get(&self, stored: &Stored) -> Option<&What> {
        self.known.get(&stored.bare())
    }

    /// Archives of this site that are known and not among these.
    pub fn missing(&self, listed: &[Stored]) -> Vec<(Stored, What)> {
        let listed: BTreeSet<(&str, &str)> = listed
            .iter()
            .map(|s| (s.name.as_str(), s.version.as_str()))
            .collect();
        let mut missing: Vec<_> = self
            .known
            .iter()
            .filter(|(_, what)| matches!(what, What::Archive(_)))
            // What lies in others' folders is not always listed.
            .filter(|(s, _)| !s.name.starts_with('/'))
            .filter(|(s, _)| !listed.contains(&(s.name.as_str(), s.version.as_str())))
            .map(|(stored, what)| (stored.clone(), what.clone()))
            .collect();
        missing.sort_by(|a, b| a.0.cmp(&b.0));
        missing
    }

    /// Writes the months in which something is new or gone.
    pub async fn update(&self, cx: &Context, sink: &Arc<dyn Sink>, entries: &[Entry], care: Care) {
        let mut now: HashMap<Stored, &What> = entries
            .iter()
            .filter(|e| !matches!(e.what, What::Damaged(_)))
            .map(|e| (e.stored.bare(), &e.what))
            .collect();
        if care == Care::Delete {
            let others = self.known.iter().filter(|(s, _)| s.name.starts_with('/'));
            now.extend(others.map(|(stored, what)| (stored.clone(), what)));
        }
        let new = now.keys().filter(|stored| !self.known.contains_key(stored));
        let gone = self.known.keys().filter(|stored| !now.contains_key(stored));
        let months: BTreeSet<String> = new.chain(gone).map(|s| month(s.modified)).collect();
        for month in months {
            let all = now.iter().map(|(stored, what)| (stored, *what));
            self.write_month(cx, sink, &month, all).await;
        }
    }

    /// Writes what of these belongs to the month, unless a part of what stood there could not be read.
    async fn write_month<'a>(
        &self,
        cx: &Context,
        sink: &Arc<dyn Sink>,
        month: &str,
        all: impl Iterator<Item = (&'a Stored, &'a What)>,
    ) {
        if self.blind || self.unread.contains(month) {
            return;
        }
        let mut of_month: Vec<_> = all
            .filter(|(stored, _)| self::month(stored.modified) == month)
            .collect();
        of_month.sort_by(|a, b| a.0.cmp(b.0));
        let pieces = self.pieces.get(month).copied().unwrap_or(0);
        write(cx, sink, month, &of_month, pieces).await;
    }
}

/// Adds an archive that was just published and verified, so that nobody needs to read its tail.
pub async fn remember(cx: &Context, sink: &Arc<dyn Sink>, stored: &Stored, summary: Summary) {
    let month = month(stored.modified);
    let Ok(mut noted) = Noted::read_of(cx, sink, Care::Look, &month).await else {
        return;
    };
    let known = std::mem::take(&mut noted.known);
    let new = (stored.bare(), What::Archive(Box::new(summary)));
    let all: HashMap<Stored, What> = known.into_iter().chain([new]).collect();
    noted.write_month(cx, sink, &month, all.iter()).await;
}

async fn write(
    cx: &Context,
    sink: &Arc<dyn Sink>,
    month: &str,
    entries: &[(&Stored, &What)],
    pieces_before: usize,
) {
    let pieces = pieces(entries);
    for (n, body) in pieces.iter().enumerate() {
        let name = piece_name(cx, month, n);
        if let Err(error) = sink
            .set_note(cx, &name, body.clone().into(), Was::Any)
            .await
        {
            tracing::debug!(%error, "catalogue note not written");
        }
    }
    for n in pieces.len()..pieces_before {
        if let Err(error) = sink.remove_note(cx, &piece_name(cx, month, n)).await {
            tracing::debug!(%error, "catalogue note not removed");
        }
    }
}

/// The entries as bodies of notes, each small enough.
fn pieces(entries: &[(&Stored, &What)]) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut body = String::new();
    for entry in entries {
        let Ok(text) = serde_json::to_string(entry) else {
            continue;
        };
        if !body.is_empty() && body.len() + text.len() > NOTE_MAX_BYTES {
            pieces.push(std::mem::take(&mut body));
        }
        if !body.is_empty() {
            body.push(',');
        }
        body.push_str(&text);
    }
    if !body.is_empty() {
        pieces.push(body);
    }
    pieces
        .into_iter()
        .map(|entries| format!(r#"{{"format":{FORMAT},"entries":[{entries}]}}"#))
        .collect()
}

fn month(at: Timestamp) -> String {
    at.strftime("%Y-%m").to_string()
}

fn month_of(note: &str) -> String {
    let rest = note.strip_prefix(PREFIX).unwrap_or(note);
    rest.split('.').next().unwrap_or(rest).to_owned()
}

fn piece_name(cx: &Context, month: &str, n: usize) -> NoteName {
    let name = match n {
        0 => format!("{PREFIX}{month}"),
        n => format!("{PREFIX}{month}.{n}"),
    };
    NoteName {
        site: cx.site.to_string(),
        name,
    }
}
