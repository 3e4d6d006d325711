//! Pins and accepted holds: small notes beside the archives that retention asks.

use crate::context::Context;
use crate::error::Result;
use crate::note;
use crate::sink::Sink;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const HINT: &str = "look at it, and remove it when its pins may go";

#[derive(Default, Serialize, Deserialize)]
struct Pins {
    pinned: BTreeMap<String, String>,
}

#[derive(Default, Serialize, Deserialize)]
struct Accepted {
    accepted: BTreeSet<String>,
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

/// Archives whose holds were released.
pub async fn accepted(cx: &Context, sink: &Arc<dyn Sink>) -> Result<BTreeSet<String>> {
    Ok(note::read::<Accepted>(cx, sink, "accepted", HINT)
        .await?
        .0
        .accepted)
}

/// Releases the holds while this archive is the newest.
pub async fn accept(cx: &Context, sink: &Arc<dyn Sink>, id: &str) -> Result<()> {
    note::change::<Accepted>(cx, sink, "accepted", HINT, |accepted| {
        accepted.accepted.insert(id.to_owned());
    })
    .await
}
