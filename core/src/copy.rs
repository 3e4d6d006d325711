//! Copying archives from one sink to another: inside the store where both ends lie in one, otherwise as a stream that is compared on the way.

use crate::archive::read_at::{ReadAt, SinkReadAt};
use crate::archive::tail::Opened;
use crate::archive::writer::hex;
use crate::backup::read_back;
use crate::catalog::{self, Catalogue, Entry, Summary};
use crate::config::SinkInstance;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, bug};
use crate::event::Event;
use crate::name::ArchiveName;
use crate::sink::{Seal, SizeHint, Stored, Upload};
use crate::verify::sum_in;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::sync::Arc;

const CHUNK_BYTES: u64 = 4 << 20;

/// How an archive got there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// It was there already.
    There,
    /// The store copied it.
    Inside,
    /// Through this program.
    Streamed,
}

/// One archive that was copied.
#[derive(Clone, Debug, Serialize)]
pub struct Copied {
    /// Its id.
    pub id: String,
    /// Its name on the target.
    pub name: String,
    /// Its version there.
    pub version: String,
    /// Bytes.
    pub bytes: u64,
    /// How.
    pub way: Way,
}

/// Copies one archive, unless the target has it. What arrives is compared before it counts.
pub async fn copy(
    cx: &Context,
    entry: &Entry,
    from: &SinkInstance,
    to: &SinkInstance,
    there: &Catalogue,
) -> Result<Copied> {
    let summary = entry
        .summary()
        .ok_or_else(|| bug("only archives of this site are copied"))?;
    let copied = |stored: &Stored, way| Copied {
        id: summary.id.clone(),
        name: stored.name.clone(),
        version: stored.version.clone(),
        bytes: stored.bytes,
        way,
    };
    if let Some((known, _)) = there.archives().find(|(_, s)| s.id == summary.id) {
        return Ok(copied(&known.stored, Way::There));
    }
    let name = asked_name(entry, summary)?;
    let to_cx = cx.for_instance(&to.name);
    let (stored, way, sha256) = if let Some(stored) = inside(cx, entry, from, to, &name).await? {
        (stored, Way::Inside, summary.sha256.clone())
    } else {
        let (stored, sha256) = stream(cx, entry, summary, (from, to), &name).await?;
        (stored, Way::Streamed, Some(sha256))
    };
    accept(&to_cx, to, &stored, summary, sha256).await?;
    Ok(copied(&stored, way))
}

/// The name that the archive asks for anywhere.
pub(crate) fn asked_name(entry: &Entry, summary: &Summary) -> Result<ArchiveName> {
    let name = ArchiveName::parse(&entry.stored.name, summary.created, &summary.id);
    name.ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("`{}` is no name that bk gives", entry.stored.name),
        )
    })
}

/// A copy counts when it opens as the archive; nobody needs to read its tail again.
pub(crate) async fn accept(
    cx: &Context,
    to: &SinkInstance,
    stored: &Stored,
    summary: &Summary,
    sha256: Option<String>,
) -> Result<()> {
    if let Err(error) = is_the_archive(cx, to, stored, summary).await {
        remove(cx, to, stored).await;
        return Err(error);
    }
    let summary = Summary {
        sha256,
        ..summary.clone()
    };
    catalog::remember(cx, &to.sink, stored, summary).await;
    Ok(())
}

/// Gives what was sent its name, and reads it back.
pub(crate) async fn publish(
    cx: &Context,
    upload: Box<dyn Upload>,
    to: &SinkInstance,
    (name, summary, bytes): (&ArchiveName, &Summary, u64),
    sha256: &str,
) -> Result<Stored> {
    let seal = Seal {
        sha256: sha256.to_owned(),
        bytes,
        id: summary.id.clone(),
        site: summary.site.clone(),
        complete: summary.complete,
    };
    let stored = upload.publish(name, &seal).await?;
    if let Err(error) = read_back(cx, to, &stored, &seal).await {
        remove(cx, to, &stored).await;
        return Err(error);
    }
    Ok(stored)
}

/// Whole archives only: a partial one keeps the name that the sinks give partial ones, which a copy inside does not know.
async fn inside(
    cx: &Context,
    entry: &Entry,
    from: &SinkInstance,
    to: &SinkInstance,
    name: &ArchiveName,
) -> Result<Option<Stored>> {
    let complete = entry.summary().is_some_and(|s| s.complete);
    let from_cx = cx.for_instance(&from.name);
    let Some(origin) = from
        .sink
        .origin(&from_cx, &entry.stored)
        .await?
        .filter(|_| complete)
    else {
        return Ok(None);
    };
    let to_cx = cx.for_instance(&to.name);
    match to.sink.take_over(&to_cx, &origin, name).await {
        Ok(stored) => Ok(Some(stored)),
        Err(error) if matches!(error.kind, ErrorKind::Unsupported | ErrorKind::Denied) => {
            tracing::info!(%error, "the store does not copy by itself, the archive is sent through");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Sends it through this program, from the first sink to the second.
pub(crate) async fn stream(
    cx: &Context,
    entry: &Entry,
    summary: &Summary,
    (from, to): (&SinkInstance, &SinkInstance),
    name: &ArchiveName,
) -> Result<(Stored, String)> {
    let from_cx = cx.for_instance(&from.name);
    let to_cx = cx.for_instance(&to.name);
    let hint = SizeHint {
        previous_bytes: Some(entry.stored.bytes),
    };
    let read = SinkReadAt::new(from_cx.clone(), from.sink.clone(), entry.stored.clone());
    let mut upload = to.sink.create(&to_cx, name, hint).await?;
    let sent = send(&to_cx, &read, upload.as_mut()).await;
    let checked = match sent {
        Ok(sha256) => {
            let said = expected_sum(&from_cx, from, entry, summary).await;
            match said {
                Err(error) => Err(error),
                Ok(Some(said)) if said != sha256 => Err(not_its_sum(entry, from)),
                _ => Ok(sha256),
            }
        }
        Err(error) => Err(error),
    };
    let sha256 = match checked {
        Ok(sha256) => sha256,
        Err(error) => {
            crate::tee::abort(upload, &to.name).await;
            return Err(error);
        }
    };
    let what = (name, summary, entry.stored.bytes);
    let stored = publish(&to_cx, upload, to, what, &sha256).await?;
    Ok((stored, sha256))
}

/// What came is not what somebody wrote down of it.
pub(crate) fn not_its_sum(entry: &Entry, from: &SinkInstance) -> Error {
    Error::corrupt(format!(
        "`{}` on `{}` is not what its sum says",
        entry.stored.name, from.name
    ))
    .hint("bk verify names what is damaged")
}

/// A copy that is not what it should be must not be taken for an archive.
async fn remove(cx: &Context, to: &SinkInstance, stored: &Stored) {
    if let Err(error) = to.sink.delete(cx, stored).await {
        tracing::warn!(name = %stored.name, version = %stored.version, %error, "a bad copy stays, delete it by hand");
    }
}

async fn send(cx: &Context, read: &SinkReadAt, upload: &mut dyn Upload) -> Result<String> {
    let mut sum = Sha256::new();
    let mut at = 0;
    while at < read.len() {
        cx.check_cancelled()?;
        let len = CHUNK_BYTES.min(read.len() - at);
        let chunk = read.read_at(at, len).await?;
        sum.update(&chunk);
        upload.write(chunk).await?;
        cx.tell(&Event::Stored(len));
        at += len;
    }
    Ok(hex(&sum.finalize()))
}

/// What the archive's sum must be, as far as anybody wrote it down.
pub(crate) async fn expected_sum(
    cx: &Context,
    from: &SinkInstance,
    entry: &Entry,
    summary: &Summary,
) -> Result<Option<String>> {
    let text = entry.sums(cx, &from.sink).await?;
    Ok(text.and_then(|text| sum_in(&text, &summary.id).map(str::to_owned)))
}

/// The copy opens as the archive that it is a copy of.
async fn is_the_archive(
    cx: &Context,
    to: &SinkInstance,
    stored: &Stored,
    summary: &Summary,
) -> Result<()> {
    let read = SinkReadAt::new(cx.clone(), to.sink.clone(), stored.clone());
    let opened = Opened::open(Arc::new(read)).await?;
    if opened.manifest.id == summary.id {
        Ok(())
    } else {
        Err(Error::corrupt(format!(
            "the copy `{}` on `{}` is another archive",
            stored.name, to.name
        )))
    }
}
