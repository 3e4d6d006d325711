//! What every sink must do. Each check starts from an empty sink.

use crate::{Outcome, hold};
use bk_core::context::Context;
use bk_core::error::ErrorKind;
use bk_core::layout::Tier;
use bk_core::name::ArchiveName;
use bk_core::sink::{Filter, NoteName, Seal, Sink, Stored, Was};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use std::sync::Arc;

/// A check of a sink.
pub type Check = for<'a> fn(&'a Context, &'a Arc<dyn Sink>) -> BoxFuture<'a, Outcome>;

macro_rules! checks {
    ($($name:ident),* $(,)?) => {
        /// All checks, by name.
        pub const CHECKS: &[(&str, Check)] = &[$((stringify!($name), |cx, sink| Box::pin($name(cx, sink)))),*];
    };
}

checks![
    what_is_published_reads_back_byte_for_byte,
    any_range_reads_back,
    nothing_is_visible_before_publish,
    abort_leaves_nothing,
    a_second_archive_of_a_day_leaves_the_first,
    the_listed_size_is_the_size,
    deleting_one_leaves_its_neighbours,
    what_is_not_there_is_not_found,
    a_note_changes_only_from_what_it_was,
    notes_are_listed_and_removed_by_name,
    the_sum_file_names_the_archive,
    a_partial_has_a_name_of_its_own,
];

fn name(second: i8) -> ArchiveName {
    let start = jiff::civil::date(2026, 8, 22)
        .at(3, 15, second, 0)
        .in_tz("UTC")
        .unwrap()
        .timestamp();
    ArchiveName {
        prefix: "backup".into(),
        start,
        day: "2026-08-22".into(),
        suffix: ".tar.xz".into(),
        id: format!("{second:032x}"),
        tier: Tier::default(),
    }
}

/// The name as the run asks for it whose archive has these bytes: no two runs have one id.
fn of(name: &ArchiveName, body: &Bytes) -> ArchiveName {
    let mut hash = blake3::Hasher::new();
    hash.update(name.start.to_string().as_bytes()).update(body);
    ArchiveName {
        id: hash.finalize().to_hex()[..32].to_owned(),
        ..name.clone()
    }
}

fn body(seed: u64) -> Bytes {
    crate::data::noise(seed, 3_000_017).into()
}

fn seal(name: &ArchiveName, body: &Bytes, complete: bool) -> Seal {
    use std::fmt::Write;
    let sum = sha256(body).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    });
    Seal {
        sha256: sum,
        bytes: body.len() as u64,
        id: name.id.clone(),
        site: "main".into(),
        complete,
    }
}

fn sha256(body: &Bytes) -> Vec<u8> {
    use sha2::Digest;
    sha2::Sha256::digest(body).to_vec()
}

fn said(error: bk_core::Error) -> String {
    error.to_string()
}

async fn put(
    cx: &Context,
    sink: &Arc<dyn Sink>,
    name: &ArchiveName,
    body: &Bytes,
    complete: bool,
) -> Result<Stored, String> {
    let name = of(name, body);
    let mut upload = sink
        .create(cx, &name, Default::default())
        .await
        .map_err(said)?;
    for at in (0..body.len()).step_by(700_001) {
        upload
            .write(body.slice(at..(at + 700_001).min(body.len())))
            .await
            .map_err(said)?;
    }
    upload
        .publish(&name, &seal(&name, body, complete))
        .await
        .map_err(said)
}

async fn get(
    cx: &Context,
    sink: &Arc<dyn Sink>,
    which: &Stored,
    range: std::ops::Range<u64>,
) -> Result<Vec<u8>, String> {
    let mut stream = sink.read(cx, which, range).await.map_err(said)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.map_err(said)?);
    }
    Ok(bytes)
}

async fn list(cx: &Context, sink: &Arc<dyn Sink>) -> Result<Vec<Stored>, String> {
    sink.list(cx, &Filter::default()).await.map_err(said)
}

async fn what_is_published_reads_back_byte_for_byte(cx: &Context, sink: &Arc<dyn Sink>) -> Outcome {
    let sent = body(1);
    let stored = put(cx, sink, &name(0), &sent, true).await?;
    let got = get(cx, sink, &stored, 0..sent.len() as u64).await?;
    hold(got == sent, || {
        format!("{} bytes were sent, {} came back", sent.len(), got.len())
    })
}

async fn any_range_reads_back(cx: &Context, sink: &Arc<dyn Sink>) -> Outcome {
    if !sink.abilities().ranges {
        return Ok(());
    }
    let sent = body(2);
    let stored = put(cx, sink, &name(0), &sent, true).await?;
    for range in [
        0..1,
        1..2,
        999_999..2_000_003,
        sent.len() as u64 - 1..sent.len() as u64,
        5..5,
    ] {
        let got = get(cx, sink, &stored, range.clone()).await?;
        hold(
            got == sent[range.start as usize..range.end as usize],
            || format!("range {range:?} came back as {} other bytes", got.len()),
        )?;
    }
    Ok(())
}

async fn nothing_is_visible_before_publish(cx: &Context, sink: &Arc<dyn Sink>) -> Outcome {
    let mut upload = sink
        .create(cx, &name(0), Default::default())
        .await
        .map_err(said)?;
    upload.write(body(3)).await.map_err(said)?;
    let seen = list(cx, sink).await?;
    upload.abort().await.map_err(said)?;
    hold(seen.is_empty(), || {
        format!("`{}` was listed before it was published", seen[0].name)
    })
}

async fn abort_leaves_nothing(cx: &Context, sink: &Arc<dyn Sink>) -> Outcome {
    let mut upload = sink
        .create(cx, &name(0), Default::default())
        .await
        .map_err(said)?;
    upload.write(body(4)).await.map_err(said)?;
    upload.abort().await.map_err(said)?;
    let seen = list(cx, sink).await?;
    hold(seen.is_empty(), || {
        format!("`{}` is there after an abort", seen[0].name)
    })
}

async fn a_second_archive_of_a_day_leaves_the_first(cx: &Context, sink: &Arc<dyn Sink>) -> Outcome {
    let (one, two) = (body(5), body(6));
    let first = put(cx, sink, &name(0), &one, true).await?;
    let second = put(cx, sink, &name(1), &two, true).await?;
    hold(
        (&first.name, &first.version) != (&second.name, &second.version),
        || "both have one name and version".into(),
    )?;
    let again = put(cx, sink, &name(1), &one, true).await?;
    hold(
        (&again.name, &again.version) != (&second.name, &second.version),
        || "a third run of the same second took the second's name".into(),
    )?;
    for (stored, sent) in [(&first, &one), (&second, &two), (&again, &one)] {
        let got = get(cx, sink, stored, 0..sent.len() as u64).await?;
        hold(got == *sent, || {
            format!("`{}` is not what was published under it", stored.name)
        })?;
    }
    Ok(())
}

async fn the_listed_size_is_the_size(cx: &Context, sink: &Arc<dyn Sink>) -> Outcome {
    let sent = body(7);
    let stored = put(cx, sink, &name(0), &sent, true).await?;
    let seen = list(cx, sink).await?;
    hold(seen.len() == 1 && seen[0] == stored, || {
        format!("published as {stored:?}, listed as {seen:?}")
    })?;
    hold(stored.bytes == sent.len() as u64, || {
        format!("{} bytes are listed as {}", sent.len(), stored.bytes)
    })
}

async fn deleting_one_leaves_its_neighbours(cx: &Context, sink: &Arc<dyn Sink>) -> Outcome {
    let first = put(cx, sink, &name(0), &body(8), true).await?;
    let second = put(cx, sink, &name(1), &body(9), true).await?;
    sink.delete(cx, &first).await.map_err(said)?;
    let seen = list(cx, sink).await?;
    hold(seen == [second.clone()], || {
        format!("after one of two was deleted, {} are there", seen.len())
    })?;
    let sums = sink.sums(cx, &second).await.map_err(said)?;
    hold(sums.is_some(), || "the neighbour's sums went too".into())
}

async fn what_is_not_there_is_not_found(cx: &Context, sink: &Arc<dyn Sink>) -> Outcome {
    let stored = put(cx, sink, &name(0), &body(10), true).await?;
    sink.delete(cx, &stored).await.map_err(said)?;
    match sink.read(cx, &stored, 0..10).await {
        Err(error) => hold(error.kind == ErrorKind::NotFound, || {
            format!("the error is {:?}", error.kind)
        }),
        Ok(mut stream) => match stream.next().await {
            Some(Err(error)) => hold(error.kind == ErrorKind::NotFound, || {
                format!("the error is {:?}", error.kind)
            }),
            _ => Err("a deleted archive reads without an error".into()),
        },
    }
}

async fn a_note_changes_only_from_what_it_was(cx: &Context, sink: &Arc<dyn Sink>) -> Outcome {
    let name = NoteName {
        site: "main".into(),
        name: "kit".into(),
    };
    hold(sink.note(cx, &name).await.map_err(said)?.is_none(), || {
        "a note is there from the start".into()
    })?;
    sink.set_note(cx, &name, "one".into(), Was::Absent)
        .await
        .map_err(said)?;
    let one = sink
        .note(cx, &name)
        .await
        .map_err(said)?
        .ok_or("the note is gone")?;
    hold(&one.body[..] == b"one", || {
        "the note says something else".into()
    })?;
    sink.set_note(cx, &name, "two".into(), Was::Same(one.etag.clone()))
        .await
        .map_err(said)?;
    for was in [Was::Absent, Was::Same(one.etag)] {
        match sink.set_note(cx, &name, "three".into(), was.clone()).await {
            Err(error) if error.kind == ErrorKind::Conflict => {}
            other => return Err(format!("a change from {was:?} gave {other:?}")),
        }
    }
    sink.set_note(cx, &name, "four".into(), Was::Any)
        .await
        .map_err(said)?;
    let other = NoteName {
        site: "other".into(),
        ..name
    };
    hold(sink.note(cx, &other).await.map_err(said)?.is_none(), || {
        "another site sees the note".into()
    })
}

async fn notes_are_listed_and_removed_by_name(cx: &Context, sink: &Arc<dyn Sink>) -> Outcome {
    let named = |name: &str| NoteName {
        site: "main".into(),
        name: name.into(),
    };
    for name in ["lease-a", "lease-b", "other"] {
        sink.set_note(cx, &named(name), "x".into(), Was::Any)
            .await
            .map_err(said)?;
    }
    let names = async || {
        let seen = sink.notes(cx, "main", "lease-").await.map_err(said)?;
        let mut names: Vec<_> = seen.into_iter().map(|note| note.name.name).collect();
        names.sort();
        Ok::<_, String>(names)
    };
    let both = names().await?;
    hold(both == ["lease-a", "lease-b"], || {
        format!("two notes begin with `lease-`, {both:?} are listed")
    })?;
    for _ in 0..2 {
        sink.remove_note(cx, &named("lease-a"))
            .await
            .map_err(said)?;
    }
    let left = names().await?;
    hold(left == ["lease-b"], || {
        format!("one of two notes was removed, {left:?} are listed")
    })?;
    let others = sink.notes(cx, "elsewhere", "lease-").await.map_err(said)?;
    hold(others.is_empty(), || "another site sees the notes".into())
}

async fn the_sum_file_names_the_archive(cx: &Context, sink: &Arc<dyn Sink>) -> Outcome {
    let sent = body(11);
    let stored = put(cx, sink, &name(0), &sent, true).await?;
    let sums = sink
        .sums(cx, &stored)
        .await
        .map_err(said)?
        .ok_or("there is no sum file")?;
    let seal = seal(&of(&name(0), &sent), &sent, true);
    hold(
        sums == seal.sum_file(stored.name.rsplit('/').next().unwrap_or_default()),
        || format!("the sum file says {sums:?}"),
    )
}

async fn a_partial_has_a_name_of_its_own(cx: &Context, sink: &Arc<dyn Sink>) -> Outcome {
    if !sink.abilities().rename {
        return Ok(());
    }
    let whole = put(cx, sink, &name(0), &body(12), true).await?;
    let partial = put(cx, sink, &name(1), &body(13), false).await?;
    hold(
        partial.name.contains(".partial") && !whole.name.contains(".partial"),
        || format!("a partial was published as `{}`", partial.name),
    )
}
