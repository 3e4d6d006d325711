//! Pins and accepted holds: small notes beside the archives that retention asks.

use crate::context::Context;
use crate::error::{ErrorKind, Result, bug};
use crate::sink::{NoteName, Sink, Was};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Writers of one note who may meet.
const TRIES: usize = 5;

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
    Ok(read::<Pins>(cx, sink, "pins").await?.0.pinned)
}

/// Pins an archive: retention never deletes it.
pub async fn pin(cx: &Context, sink: &Arc<dyn Sink>, id: &str, why: &str) -> Result<()> {
    change::<Pins>(cx, sink, "pins", |pins| {
        pins.pinned.insert(id.to_owned(), why.to_owned());
    })
    .await
}

/// Takes a pin away.
pub async fn unpin(cx: &Context, sink: &Arc<dyn Sink>, id: &str) -> Result<()> {
    change::<Pins>(cx, sink, "pins", |pins| {
        pins.pinned.remove(id);
    })
    .await
}

/// Archives whose holds were released.
pub async fn accepted(cx: &Context, sink: &Arc<dyn Sink>) -> Result<BTreeSet<String>> {
    Ok(read::<Accepted>(cx, sink, "accepted").await?.0.accepted)
}

/// Releases the holds while this archive is the newest.
pub async fn accept(cx: &Context, sink: &Arc<dyn Sink>, id: &str) -> Result<()> {
    change::<Accepted>(cx, sink, "accepted", |accepted| {
        accepted.accepted.insert(id.to_owned());
    })
    .await
}

async fn read<T: DeserializeOwned + Default>(
    cx: &Context,
    sink: &Arc<dyn Sink>,
    name: &str,
) -> Result<(T, Was)> {
    let name = NoteName {
        site: cx.site.to_string(),
        name: name.to_owned(),
    };
    match sink.note(cx, &name).await? {
        None => Ok((T::default(), Was::Absent)),
        Some(note) => {
            let parsed = serde_json::from_slice(&note.body).map_err(|e| {
                crate::Error::corrupt(format!("the note `{}` is malformed: {e}", name.name))
                    .hint("look at it, and remove it when its pins may go")
            })?;
            Ok((parsed, Was::Same(note.etag)))
        }
    }
}

async fn change<T: Serialize + DeserializeOwned + Default>(
    cx: &Context,
    sink: &Arc<dyn Sink>,
    name: &str,
    change: impl Fn(&mut T),
) -> Result<()> {
    for _ in 0..TRIES {
        let (mut note, was) = read::<T>(cx, sink, name).await?;
        change(&mut note);
        let body =
            serde_json::to_vec(&note).map_err(|e| bug(format!("a note cannot be written: {e}")))?;
        let note_name = NoteName {
            site: cx.site.to_string(),
            name: name.to_owned(),
        };
        match sink
            .set_note(cx, &note_name, body.clone().into(), was)
            .await
        {
            Err(error) if error.kind == ErrorKind::Conflict => continue,
            other => other?,
        }
        // Not every sink's conditions are atomic: another writer may have won after all.
        let there = sink.note(cx, &note_name).await?;
        if there.is_some_and(|note| note.body == body) {
            return Ok(());
        }
    }
    Err(crate::Error::new(
        ErrorKind::Locked,
        format!("the note `{name}` is changed by others all the time"),
    ))
}
