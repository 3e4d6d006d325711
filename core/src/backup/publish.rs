//! The end of a run: manifest, publish on every sink, read back, pins and retention.

use super::running::Running;
use super::{Backup, tool};
use crate::archive::format::FORMAT;
use crate::archive::output::Output;
use crate::archive::read_at::{SinkReadAt, digest};
use crate::archive::writer::{Writer, Written, hex};
use crate::catalog::Summary;
use crate::config::{PruneWhen, SinkInstance};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, bug, conflict};
use crate::event::Moment;
use crate::manifest::{Instance, Manifest, State};
use crate::report::{BackupReport, Cause, Class, SourceReport};
use crate::sink::{Seal, Stored, Upload};
use crate::verify::Level;
use crate::verify::dates::{self, note_check};
use crate::{pins, prune, tiers};
use futures::future::join_all;
use jiff::tz::TimeZone;

impl Backup<'_> {
    pub(super) async fn seal(
        &self,
        cx: &Context,
        zone: &TimeZone,
        running: Vec<Running<'_>>,
        writer: Writer,
        report: &mut BackupReport,
    ) -> Result<()> {
        let mut instances = Vec::new();
        let mut whole_units = 0;
        let results: Vec<_> = running.iter().map(Running::report_all).collect();
        for (_, instance, _) in &results {
            whole_units += instance.totals.units.saturating_sub(instance.totals.failed);
        }
        for (r, (source, instance, kind)) in running.iter().zip(results) {
            Self::source_causes(r, &source, kind, whole_units > 0, report);
            report.sources.push(source);
            instances.push(instance);
        }
        let complete = instances.iter().all(|i| i.state == State::Whole);
        let publishable = complete || whole_units > 0;
        report.skew_ms = skew(&instances);
        report.complete = complete;
        let manifest = Manifest {
            format: FORMAT.into(),
            needs: Vec::new(),
            id: self.plan.id.clone(),
            site: self.settings.site.clone(),
            name: self.plan.name.plain(),
            label: self.plan.label.clone(),
            created: self.plan.created,
            finished: cx.clock.now(),
            tool: tool(),
            complete,
            subset: self.plan.subset,
            skew_ms: report.skew_ms,
            parent: None,
            blocks: 0,
            index: Vec::new(),
            instances,
        };
        let finished = writer.finish(manifest).await;
        let (written, manifest, tee) = match finished {
            Ok(finished) => finished,
            Err(error) => {
                Self::failed_sinks(report, &error);
                return Err(error);
            }
        };
        report.bytes = written.bytes;
        report.raw_bytes = written.raw_bytes;
        report.sha256.clone_from(&written.sha256);
        let sealed = serde_json::json!({
            "name": report.name, "id": report.id, "bytes": report.bytes, "sha256": report.sha256, "complete": complete
        });
        cx.reached(Moment::BackupSealed, &sealed);
        let uploads = tee.close().await;
        if !publishable || cx.cancel.is_cancelled() {
            for (name, upload) in uploads {
                if let Ok(upload) = upload {
                    crate::tee::abort(upload, &name).await;
                }
            }
            let nothing = conflict("nothing was backed up whole, so no archive was published");
            Self::failed_sinks(report, &nothing);
            return Ok(());
        }
        if !complete {
            report.causes.push(Cause::partial(
                &report.name.clone(),
                "the archive is partial: something named is missing in it",
            ));
        }
        let seal = Seal {
            sha256: written.sha256.clone(),
            bytes: written.bytes,
            id: manifest.id.clone(),
            site: manifest.site.clone(),
            complete,
        };
        let published = join_all(
            uploads
                .into_iter()
                .map(|(name, upload)| self.publish(cx, name, upload, &seal)),
        )
        .await;
        let mut stored = Vec::new();
        for (name, result) in published {
            if let Ok(copy) = &result {
                stored.push((name.clone(), copy.clone()));
            }
            self.published(&name, result, report);
            if let Some(sink) = report.sinks.iter().find(|sink| sink.name == name) {
                cx.for_instance(&name).reached(Moment::BackupStored, sink);
            }
        }
        self.after_publish(cx, zone, &manifest, &written, &stored, report)
            .await;
        Ok(())
    }

    /// What a failed instance means for the run: 3 when anything was backed up whole, else what its kind says.
    fn source_causes(
        r: &Running<'_>,
        source: &SourceReport,
        kind: Option<ErrorKind>,
        anything_whole: bool,
        report: &mut BackupReport,
    ) {
        let class = |kind: ErrorKind| {
            if anything_whole {
                Class::Partial
            } else {
                kind.into()
            }
        };
        if let Some(error) = &r.error {
            report
                .causes
                .push(Cause::of(class(error.kind), &source.name, error));
        } else if source.state != State::Whole {
            let kind = kind.unwrap_or(ErrorKind::Unreachable);
            let why = source
                .failed
                .first()
                .map(|f| format!("; first `{}/{}`: {}", f.group, f.name, f.why))
                .unwrap_or_default();
            let mut error = Error::new(
                kind,
                format!(
                    "{} of {} units failed{why}",
                    source.totals.failed, source.totals.units
                ),
            );
            error.hint = r.output.as_ref().and_then(Output::failure_hint);
            report
                .causes
                .push(Cause::of(class(kind), &source.name, &error));
        }
    }

    async fn publish(
        &self,
        cx: &Context,
        name: String,
        upload: Result<Box<dyn Upload>>,
        seal: &Seal,
    ) -> (String, Result<Stored>) {
        let upload = match upload {
            Ok(upload) => upload,
            Err(error) => return (name, Err(error)),
        };
        let published =
            tokio::time::timeout(self.limits.publish, upload.publish(&self.plan.name, seal));
        let stored = match published.await {
            Ok(Ok(stored)) => stored,
            Ok(Err(error)) => return (name, Err(error)),
            Err(_) => {
                return (
                    name,
                    Err(Error::new(
                        ErrorKind::Unreachable,
                        "publishing took too long",
                    )),
                );
            }
        };
        let read_back = match self.sinks.iter().find(|s| s.name == name) {
            Some(instance) => read_back(&cx.for_instance(&name), instance, &stored, seal).await,
            None => Err(bug("a sink that is not of this run")),
        };
        (name, read_back.map(|()| stored))
    }

    fn published(&self, name: &str, result: Result<Stored>, report: &mut BackupReport) {
        let Some(instance) = self.sinks.iter().find(|s| s.name == name) else {
            return;
        };
        let Some(at) = report.sinks.iter().position(|s| s.name == name) else {
            return;
        };
        let mut sink = report.sinks[at].clone();
        match result {
            Ok(stored) => {
                let version = if stored.version.is_empty() {
                    crate::name::compact(self.plan.created)
                } else {
                    stored.version.clone()
                };
                sink.published = Some((stored.name, version));
                sink.verified = true;
            }
            Err(error) => self.sink_failed(instance, &mut sink, &error, report),
        }
        report.sinks[at] = sink;
    }

    /// Pins, notes and retention: where this run's archive was verified, and nowhere else.
    async fn after_publish(
        &self,
        cx: &Context,
        zone: &TimeZone,
        manifest: &Manifest,
        written: &Written,
        stored: &[(String, Stored)],
        report: &mut BackupReport,
    ) {
        tracing::debug!(bytes = written.bytes, blocks = written.blocks, "published");
        for instance in self.sinks {
            let Some(at) = report
                .sinks
                .iter()
                .position(|s| s.name == instance.name && s.verified)
            else {
                continue;
            };
            let cx = cx.for_instance(&instance.name);
            if let Some(stored) = stored.iter().find(|(name, _)| *name == instance.name) {
                let summary = Summary {
                    sha256: Some(written.sha256.clone()),
                    ..Summary::from(manifest)
                };
                crate::catalog::remember(&cx, &instance.sink, &stored.1, summary).await;
                let read = (Level::Hash, Ok(()));
                let created = manifest.created;
                let copy = dates::key(&stored.1, &manifest.id);
                let noted = note_check(&cx, &instance.sink, &copy, created, &read, None);
                if let Err(error) = noted.await {
                    tracing::debug!(%error, "the date of the check is not noted");
                }
            }
            if self.plan.pin
                && let Err(error) = pins::pin(
                    &cx,
                    &instance.sink,
                    &manifest.id,
                    manifest.label.as_deref().unwrap_or(""),
                )
                .await
            {
                let what = format!("the archive could not be pinned: {}", error.what);
                let mut cause = Cause::partial(&instance.name, what);
                cause.hint = Some(format!("bk pin --version {}", manifest.id));
                report.causes.push(cause);
            }
            let mut unplaced = Vec::new();
            if self.plan.tier.is_none() && manifest.complete && !manifest.subset {
                match tiers::promote(&cx, instance, zone).await {
                    Ok(promoted) => {
                        let placed = promoted.placed.into_iter();
                        report.sinks[at].placed = placed.map(|p| p.name).collect();
                        unplaced = promoted.failed;
                    }
                    Err(error) => unplaced.push(error.to_string()),
                }
            }
            for why in &unplaced {
                let what = format!(
                    "a week, month or year has no archive, and nothing is pruned before it has: {why}"
                );
                report.causes.push(Cause::partial(&instance.name, what));
            }
            // A partial run prunes nothing.
            if manifest.complete
                && unplaced.is_empty()
                && instance.policy.prune == PruneWhen::AfterBackup
                && instance.policy.keep.is_some()
            {
                match prune::prune_sink(&cx, instance, zone, &prune::PruneOptions::default()).await
                {
                    Ok(pruned) => report.sinks[at].pruned = pruned.lines(),
                    Err(error) => report.warnings.push(format!(
                        "`{}`: old archives were not pruned: {error}",
                        instance.name
                    )),
                }
            }
        }
        debug_assert_eq!(Summary::from(manifest).id, report.id);
    }
}

/// Size and sum of what lies there now. A sink that proves its sums needs no second transfer.
pub(crate) async fn read_back(
    cx: &Context,
    instance: &SinkInstance,
    stored: &Stored,
    seal: &Seal,
) -> Result<()> {
    if stored.bytes != seal.bytes {
        return Err(Error::corrupt(format!(
            "`{}` has {} bytes after it was stored, not {}",
            stored.name, stored.bytes, seal.bytes
        )));
    }
    if instance.sink.abilities().proof {
        return Ok(());
    }
    let read = SinkReadAt::new(cx.clone(), instance.sink.clone(), stored.clone());
    if hex(&digest::<sha2::Sha256>(&read).await?) == seal.sha256 {
        Ok(())
    } else {
        Err(Error::corrupt(format!(
            "`{}` reads back other bytes than were sent",
            stored.name
        )))
    }
}

fn skew(instances: &[Instance]) -> u64 {
    let instants = || {
        instances
            .iter()
            .filter_map(|i| i.at.as_ref())
            .map(|at| at.instant.as_millisecond())
    };
    (instants().max().unwrap_or(0) - instants().min().unwrap_or(0)) as u64
}
