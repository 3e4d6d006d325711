//! Notes as values: JSON beside the archives, read, changed and written anew.

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, bug};
use crate::sink::{NoteName, Sink, Was};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// Writers of one note who may meet.
const TRIES: usize = 5;

/// A note of this site.
pub(crate) fn name_of(cx: &Context, name: &str) -> NoteName {
    NoteName {
        site: cx.site.to_string(),
        name: name.to_owned(),
    }
}

/// What it says, or what it says when it is not there. `Corrupt` when it is malformed: `hint` says what is lost with it.
pub(crate) async fn read<T: DeserializeOwned + Default>(
    cx: &Context,
    sink: &Arc<dyn Sink>,
    name: &str,
    hint: &str,
) -> Result<(T, Was)> {
    match sink.note(cx, &name_of(cx, name)).await? {
        None => Ok((T::default(), Was::Absent)),
        Some(note) => {
            let parsed = serde_json::from_slice(&note.body).map_err(|e| {
                Error::corrupt(format!("the note `{name}` is malformed: {e}")).hint(hint)
            })?;
            Ok((parsed, Was::Same(note.etag)))
        }
    }
}

/// Changes it, also while others do.
pub(crate) async fn change<T: Serialize + DeserializeOwned + Default>(
    cx: &Context,
    sink: &Arc<dyn Sink>,
    name: &str,
    hint: &str,
    change: impl Fn(&mut T),
) -> Result<()> {
    let note_name = name_of(cx, name);
    for _ in 0..TRIES {
        let (mut note, was) = read::<T>(cx, sink, name, hint).await?;
        change(&mut note);
        let body =
            serde_json::to_vec(&note).map_err(|e| bug(format!("a note cannot be written: {e}")))?;
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
    Err(Error::new(
        ErrorKind::Locked,
        format!("the note `{name}` is changed by others all the time"),
    ))
}
