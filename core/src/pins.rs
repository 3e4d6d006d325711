//! Pins and accepted holds: small notes beside the archives that retention asks.

use crate::context::Context;
use crate::error::Result;
use crate::note;
use crate::retention::Measure;
use crate::sink::Sink;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const HINT: &str = "look at it, and remove it when its pins may go";

#[derive(Default, Serialize, Deserialize)]
struct Pins {
    pinned: BTreeMap<String, String>,
}

#[derive(Default, Serialize, Deserialize)]
struct HoldsNote {
    #[serde(default)]
    accepted: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    usual_until: Option<Timestamp>,
}

/// Ids of pinned archives, with what was said of them.
pub async fn pinned(cx: &Context, sink: &Arc<dyn Sink>) -> Result<BTreeMap<String, String>> {
    Ok(note::read::<Pins>(cx, sink, "pins", HINT).await?.0.pinned)
}

/// Pins an archive: retention never deletes it.
pub async fn pin(cx: &Context, sink: &Arc<dyn Sink>, id: &str, why: &str) -> Result<()> {
    note::change::<Pins>(cx, sink, "pins", HINT, |pins| {
        pins.pinned.insert(id.to_owned(), why.to_owned());
    })
    .await
}

/// Takes a pin away.
pub async fn unpin(cx: &Context, sink: &Arc<dyn Sink>, id: &str) -> Result<()> {
    note::change::<Pins>(cx, sink, "pins", HINT, |pins| {
        pins.pinned.remove(id);
    })
    .await
}

/// What archives are measured by: what was accepted, and until when nothing was unusual.
pub async fn measure(cx: &Context, sink: &Arc<dyn Sink>) -> Result<Measure> {
    let (note, _) = note::read::<HoldsNote>(cx, sink, "accepted", HINT).await?;
    Ok(Measure {
        accepted: note.accepted,
        since: note.since,
        usual_until: note.usual_until,
    })
}

/// Releases the holds on this archive. `whole` is the run of the newest whole one at or before it: the measure from now on.
pub async fn accept(
    cx: &Context,
    sink: &Arc<dyn Sink>,
    id: &str,
    whole: Option<Timestamp>,
) -> Result<()> {
    note::change::<HoldsNote>(cx, sink, "accepted", HINT, |note| {
        note.accepted.insert(id.to_owned());
        note.since = note.since.max(whole);
    })
    .await
}

/// Nothing is unusual about the whole archive of this run.
pub async fn usual(cx: &Context, sink: &Arc<dyn Sink>, whole: Timestamp) -> Result<()> {
    note::change::<HoldsNote>(cx, sink, "accepted", HINT, |note| {
        note.usual_until = note.usual_until.max(Some(whole));
    })
    .await
}
