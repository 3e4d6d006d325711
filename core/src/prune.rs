//! Deleting what retention lets go, on one sink at a time, after reading what is deleted and what is kept for it.

use crate::archive::read_at::SinkReadAt;
use crate::archive::tail::Opened;
use crate::catalog::{Catalogue, Entry};
use crate::config::SinkInstance;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, bug, not_found};
use crate::pins;
use crate::retention::{self, Known, Verdict};
use crate::sink::{NoteName, Was};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Minutes after which another's lease counts no more.
const LEASE_MINUTES: i64 = 10;

/// How to prune.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Decide and say, delete nothing.
    pub dry_run: bool,
    /// Release the holds while this archive (id, name or version) is the newest.
    pub accept: Option<String>,
}

/// What pruning a sink did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pruned {
    /// The sink.
    pub sink: String,
    /// Every archive with its reasons, newest first.
    pub verdict: Verdict,
    /// Names by id.
    pub names: Vec<(String, String)>,
    /// Ids that are gone now.
    pub deleted: Vec<String>,
    /// What could not be deleted, and why.
    pub failed: Vec<String>,
}

impl Pruned {
    /// In few words, for the report of a backup.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self
            .verdict
            .holds
            .iter()
            .map(|hold| format!("retention holds: {hold}"))
            .collect();
        if !self.deleted.is_empty() {
            lines.push(format!("{} old archives deleted", self.deleted.len()));
        }
        lines.extend(self.failed.iter().cloned());
        lines
    }
}

/// Prunes one sink.
pub async fn prune_sink(
    cx: &Context,
    instance: &SinkInstance,
    zone: &TimeZone,
    options: &PruneOptions,
) -> Result<Pruned> {
    let Some(keep) = instance.policy.keep else {
        return Ok(Pruned {
            sink: instance.name.clone(),
            ..Pruned::default()
        });
    };
    let lease = if options.dry_run {
        None
    } else {
        Some(Lease::take(cx, instance).await?)
    };
    let pruned = prune_held(cx, instance, zone, options, &keep).await;
    if let Some(lease) = lease {
        lease.give_back(cx, instance).await;
    }
    pruned
}

async fn prune_held(
    cx: &Context,
    instance: &SinkInstance,
    zone: &TimeZone,
    options: &PruneOptions,
    keep: &retention::Keep,
) -> Result<Pruned> {
    let catalogue = Catalogue::read(cx, std::slice::from_ref(instance)).await;
    if let Some((_, error)) = catalogue.failures.into_iter().next() {
        return Err(error);
    }
    let pinned = pins::pinned(cx, &instance.sink).await?;
    let mut accepted = pins::accepted(cx, &instance.sink).await?;
    let entries: Vec<&Entry> = catalogue
        .entries
        .iter()
        .filter(|e| e.summary().is_some())
        .collect();
    if let Some(wish) = &options.accept {
        let id = accepted_id(wish, &entries)?;
        if !options.dry_run {
            pins::accept(cx, &instance.sink, &id).await?;
        }
        accepted.insert(id);
    }
    // Two files may hold one archive (somebody copied it): it is one to retention, and both go or stay together.
    let mut known: Vec<Known> = entries.iter().filter_map(|e| e.known(&pinned)).collect();
    let mut seen = BTreeSet::new();
    known.retain(|archive| seen.insert(archive.id.clone()));
    let verdict = retention::decide(&known, keep, zone, cx.clock.now(), &accepted);
    let names = entries
        .iter()
        .filter_map(|e| Some((e.summary()?.id.clone(), e.stored.name.clone())))
        .collect();
    let mut pruned = Pruned {
        sink: instance.name.clone(),
        verdict,
        names,
        ..Pruned::default()
    };
    if !options.dry_run {
        delete_all(cx, instance, &entries, &mut pruned).await?;
    }
    Ok(pruned)
}

fn accepted_id(wish: &str, entries: &[&Entry]) -> Result<String> {
    let fits = |entry: &&&Entry| {
        entry.summary().is_some_and(|s| s.id == *wish)
            || entry.stored.name == *wish
            || entry.version() == *wish
    };
    let found = entries.iter().find(fits).and_then(|entry| entry.summary());
    found
        .map(|summary| summary.id.clone())
        .ok_or_else(|| not_found(format!("there is no archive `{wish}` to accept")).hint("bk list"))
}

/// What is deleted, and the newest whole one that stays for it, are read: a note alone deletes nothing.
async fn delete_all(
    cx: &Context,
    instance: &SinkInstance,
    entries: &[&Entry],
    pruned: &mut Pruned,
) -> Result<()> {
    let going: Vec<String> = pruned.verdict.deletions().map(str::to_owned).collect();
    if going.is_empty() {
        return Ok(());
    }
    let stays = |entry: &&&Entry| {
        entry
            .summary()
            .is_some_and(|s| s.complete && !going.contains(&s.id))
    };
    let Some(newest) = entries.iter().find(stays) else {
        return Err(bug("retention would leave no whole archive"));
    };
    check_is(cx, instance, newest).await.map_err(|e| {
        e.within("the newest archive that would stay cannot be read, so nothing was deleted")
    })?;
    for entry in entries
        .iter()
        .filter(|e| e.summary().is_some_and(|s| going.contains(&s.id)))
    {
        cx.check_cancelled()?;
        let Some(summary) = entry.summary() else {
            continue;
        };
        let deleted = match check_is(cx, instance, entry).await {
            Ok(()) => instance.sink.delete(cx, &entry.stored).await,
            Err(error) => Err(error),
        };
        match deleted {
            Ok(()) => pruned.deleted.push(summary.id.clone()),
            Err(error) => pruned
                .failed
                .push(format!("`{}` was not deleted: {error}", entry.stored.name)),
        }
    }
    Ok(())
}

/// The stored file is the very archive that the catalogue says.
async fn check_is(cx: &Context, instance: &SinkInstance, entry: &Entry) -> Result<()> {
    let read = Arc::new(SinkReadAt::new(
        cx.clone(),
        instance.sink.clone(),
        entry.stored.clone(),
    ));
    let opened = Opened::open(read).await?;
    let same = entry.summary().is_some_and(|s| {
        s.id == opened.manifest.id
            && s.site == opened.manifest.site
            && s.complete == opened.manifest.complete
    });
    if same {
        Ok(())
    } else {
        Err(Error::corrupt(format!(
            "`{}` is another archive than the catalogue says",
            entry.stored.name
        )))
    }
}

/// One pruner at a time on a shared sink.
struct Lease {
    etag: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct LeaseNote {
    until: Timestamp,
}

impl Lease {
    fn name(cx: &Context) -> NoteName {
        NoteName {
            site: cx.site.to_string(),
            name: "lease".into(),
        }
    }

    async fn take(cx: &Context, instance: &SinkInstance) -> Result<Self> {
        let name = Self::name(cx);
        let there = instance.sink.note(cx, &name).await?;
        let was = match &there {
            None => Was::Absent,
            Some(note) => {
                let held = serde_json::from_slice::<LeaseNote>(&note.body)
                    .is_ok_and(|lease| lease.until > cx.clock.now());
                if held {
                    return Err(Error::new(
                        ErrorKind::Locked,
                        format!("another run prunes `{}`", instance.name),
                    )
                    .hint("wait some minutes and repeat"));
                }
                Was::Same(note.etag.clone())
            }
        };
        let body = serde_json::to_vec(&LeaseNote {
            until: cx.clock.now() + LEASE_MINUTES.minutes(),
        })
        .map_err(|e| bug(e.to_string()))?;
        match instance.sink.set_note(cx, &name, body.into(), was).await {
            Err(error) if error.kind == ErrorKind::Conflict => Err(Error::new(
                ErrorKind::Locked,
                format!("another run prunes `{}`", instance.name),
            )),
            Err(error) => Err(error),
            Ok(()) => Ok(Self {
                etag: instance.sink.note(cx, &name).await?.map(|note| note.etag),
            }),
        }
    }

    async fn give_back(self, cx: &Context, instance: &SinkInstance) {
        let Some(etag) = self.etag else { return };
        let Ok(body) = serde_json::to_vec(&LeaseNote {
            until: Timestamp::UNIX_EPOCH,
        }) else {
            return;
        };
        if let Err(error) = instance
            .sink
            .set_note(cx, &Self::name(cx), body.into(), Was::Same(etag))
            .await
        {
            tracing::debug!(%error, "lease not given back, it ends by itself");
        }
    }
}
