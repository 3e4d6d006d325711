//! One backup: check, snapshot, stages, manifest, publish, read back, retention. Plan in, report out.

use crate::archive::format::{FORMAT, FormatMember, Stage};
use crate::archive::lane::Output;
use crate::archive::memory::Division;
use crate::archive::read_at::SinkReadAt;
use crate::archive::writer::{self, Entrance, NoEnvelope, Writer, Written, hex};
use crate::catalog::{Catalogue, Summary};
use crate::config::{ArchiveSettings, PruneWhen, SinkInstance, SourceInstance};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, bug, conflict};
use crate::event::Event;
use crate::manifest::{Instance, Manifest, State};
use crate::name::ArchiveName;
use crate::plan::BackupPlan;
use crate::report::{BackupReport, Cause, Class, SinkReport, SourceReport};
use crate::sink::{Health, Seal, SizeHint, Stored, Upload};
use crate::source::{Facts, Snapshot, SnapshotOptions};
use crate::tee::Tee;
use crate::{pins, prune};
use futures::future::join_all;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::time::Duration;

/// Limits of a run; tests set them low.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How the memory is divided; nothing: from `[archive] memory` and the number of cores.
    pub division: Option<Division>,
    /// A sink that keeps the writer waiting so long in a row while others do not is dropped.
    pub stall: Duration,
    /// Patience of `check`.
    pub check: Duration,
    /// A source that does not answer is asked again for so long.
    pub unreachable: Duration,
    /// Patience of `close`.
    pub close: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            division: None,
            stall: Duration::from_mins(1),
            check: Duration::from_secs(10),
            unreachable: Duration::from_mins(1),
            close: Duration::from_secs(30),
        }
    }
}

/// What one backup works with.
pub struct Backup<'a> {
    /// `[archive]`.
    pub settings: &'a ArchiveSettings,
    /// Sources of this run.
    pub sources: &'a [SourceInstance],
    /// Sinks of this run.
    pub sinks: &'a [SinkInstance],
    /// What is to happen.
    pub plan: BackupPlan,
    /// Limits.
    pub limits: Limits,
}

/// One source on its way through the run.
struct Running<'a> {
    instance: &'a SourceInstance,
    cx: Context,
    health: Health,
    snapshot: Option<Box<dyn Snapshot>>,
    at: Option<crate::source::PointInTime>,
    output: Option<Output>,
    error: Option<Error>,
    facts: Facts,
    began: std::time::Instant,
    milliseconds: u64,
}

impl Backup<'_> {
    /// Runs it. The report says everything, also after a failure.
    pub async fn run(self, cx: &Context) -> BackupReport {
        let started = self.plan.created;
        let zone = TimeZone::get(&self.settings.timezone).unwrap_or(TimeZone::UTC);
        let mut report = BackupReport {
            id: self.plan.id.clone(),
            name: self.plan.name.plain(),
            started,
            finished: started,
            complete: false,
            bytes: 0,
            raw_bytes: 0,
            sha256: String::new(),
            skew_ms: 0,
            peak_memory_bytes: 0,
            sources: Vec::new(),
            sinks: Vec::new(),
            not_backed_up: self.plan.not_backed_up.clone(),
            warnings: Vec::new(),
            causes: Vec::new(),
        };
        if let Err(error) = self.run_into(cx, &zone, &mut report).await {
            report.causes.push(Cause::new("backup", &error));
        }
        if cx.cancel.is_cancelled() {
            report
                .causes
                .push(Cause::new("backup", &Error::cancelled()));
        }
        report.finished = cx.clock.now();
        report.peak_memory_bytes = peak_memory_bytes();
        report.causes.sort_by_key(|cause| cause.class);
        report
    }

    async fn run_into(
        &self,
        cx: &Context,
        zone: &TimeZone,
        report: &mut BackupReport,
    ) -> Result<()> {
        let (mut running, sink_health, catalogue) = tokio::join!(
            self.check_sources(cx),
            self.check_sinks(cx),
            Catalogue::read(cx, self.sinks)
        );
        Self::compare_with_before(&catalogue, &running, report);
        let tee = self.open_sinks(cx, sink_health, &catalogue, report).await?;
        if running.iter().all(|r| r.error.is_some()) {
            let mut tee = tee;
            tee.abort(&Error::cancelled()).await;
            Self::all_failed(running, report);
            return Ok(());
        }
        self.snapshots(&mut running).await;
        let run = cx.child();
        let division = match &self.limits.division {
            Some(division) => division.clone(),
            None => self.division()?,
        };
        let head = FormatMember {
            format: FORMAT.into(),
            needs: Vec::new(),
            tool: tool(),
            site: self.settings.site.clone(),
            id: self.plan.id.clone(),
            created: self.plan.created,
        };
        let (entrance, writer) = writer::start(
            &division,
            self.settings.preset,
            &head,
            Box::new(NoEnvelope),
            tee,
            run.cancel.clone(),
        )
        .await?;
        let writing = tokio::spawn(writer.run());
        self.stages(&mut running, &entrance, &run).await;
        let ended = entrance.end().await;
        let writer = writing
            .await
            .map_err(|e| bug(format!("the writer ended: {e}")))?;
        self.close_all(&mut running).await;
        let writer = match (writer, ended) {
            (Ok(writer), Ok(())) => writer,
            (Err(error), _) | (_, Err(error)) => {
                Self::failed_sinks(report, &error);
                running
                    .iter()
                    .for_each(|r| report.sources.push(r.report().0));
                return Err(error);
            }
        };
        self.seal(cx, zone, running, writer, report).await
    }

    fn division(&self) -> Result<Division> {
        let cores = self
            .settings
            .workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        Division::new(
            self.settings.memory.0,
            cores,
            self.settings.preset,
            self.sources.len(),
            self.settings.max_record.0,
        )
    }

    async fn check_sources(&self, cx: &Context) -> Vec<Running<'_>> {
        join_all(self.sources.iter().map(|instance| async move {
            let cx = cx.for_instance(&instance.name);
            cx.tell(&Event::Phase("checking"));
            let checked = self.check_patiently(&cx, instance).await;
            let (health, error) = match checked {
                Ok(health) => (health, None),
                Err(error) => (Health::default(), Some(error)),
            };
            Running {
                instance,
                cx,
                health,
                snapshot: None,
                at: None,
                output: None,
                error,
                facts: Facts::default(),
                began: std::time::Instant::now(),
                milliseconds: 0,
            }
        }))
        .await
    }

    /// Asks again while nobody answers, up to the limit: a server may be starting.
    async fn check_patiently(&self, cx: &Context, instance: &SourceInstance) -> Result<Health> {
        let began = std::time::Instant::now();
        let mut pause = Duration::from_millis(500);
        loop {
            let limit = self.limits.check;
            let late = || {
                Error::new(
                    ErrorKind::Unreachable,
                    format!("no answer within {} s", limit.as_secs_f32()),
                )
            };
            match cx.within(limit, late, instance.source.check(cx)).await {
                Err(error)
                    if error.kind == ErrorKind::Unreachable
                        && began.elapsed() + pause < self.limits.unreachable =>
                {
                    tracing::info!(instance = %instance.name, %error, "asking again");
                    tokio::select! {
                        () = cx.cancel.cancelled() => return Err(Error::cancelled()),
                        () = tokio::time::sleep(pause) => pause *= 2,
                    }
                }
                other => return other,
            }
        }
    }

    async fn check_sinks(&self, cx: &Context) -> Vec<Result<Health>> {
        join_all(self.sinks.iter().map(|instance| async move {
            let cx = cx.for_instance(&instance.name);
            let limit = self.limits.check;
            let late = || {
                Error::new(
                    ErrorKind::Unreachable,
                    format!("no answer within {} s", limit.as_secs_f32()),
                )
            };
            cx.within(limit, late, instance.sink.check(&cx)).await
        }))
        .await
    }

    /// What the previous archive had and this run has not, or has from another server.
    fn compare_with_before(
        catalogue: &Catalogue,
        running: &[Running<'_>],
        report: &mut BackupReport,
    ) {
        report.warnings.extend(
            catalogue
                .failures
                .iter()
                .map(|(sink, error)| format!("could not list `{sink}`: {error}")),
        );
        let Some(previous) = catalogue.archives().map(|(_, summary)| summary).next() else {
            return;
        };
        for before in &previous.instances {
            match running.iter().find(|r| r.instance.name == before.name) {
                None => report.warnings.push(format!(
                    "`{}` was in the archive of {} and is not in this one",
                    before.name, previous.created
                )),
                Some(now)
                    if now.error.is_none()
                        && !before.identity.is_empty()
                        && now.health.identity != before.identity =>
                {
                    report.warnings.push(format!("`{}` is another server than in the archive of {}: are these two sites under one name?", before.name, previous.created));
                }
                Some(_) => {}
            }
        }
        let partials = catalogue
            .archives()
            .take_while(|(_, s)| !s.complete)
            .map(|(_, s)| &s.id)
            .collect::<std::collections::BTreeSet<_>>()
            .len();
        if partials >= 3 {
            report
                .warnings
                .insert(0, format!("the last {partials} archives are all partial"));
        }
    }

    async fn open_sinks(
        &self,
        cx: &Context,
        health: Vec<Result<Health>>,
        catalogue: &Catalogue,
        report: &mut BackupReport,
    ) -> Result<Tee> {
        let mut tee = Tee::new(self.limits.stall);
        let mut alive = 0;
        for (instance, health) in self.sinks.iter().zip(health) {
            let cx = cx.for_instance(&instance.name);
            let hint = SizeHint {
                previous_bytes: catalogue
                    .archives()
                    .find(|(e, _)| e.sink == instance.name)
                    .map(|(e, _)| e.stored.bytes),
            };
            let (describe, opened) = match health {
                Ok(health) => {
                    report.warnings.extend(
                        health
                            .warnings
                            .iter()
                            .map(|w| format!("`{}`: {w}", instance.name)),
                    );
                    (
                        health.describe,
                        instance.sink.create(&cx, &self.plan.name, hint).await,
                    )
                }
                Err(error) => (String::new(), Err(error)),
            };
            let mut sink = SinkReport {
                name: instance.name.clone(),
                describe,
                published: None,
                verified: false,
                pruned: Vec::new(),
                error: None,
            };
            match opened {
                Ok(upload) => {
                    alive += 1;
                    tee.add(&instance.name, upload, move |bytes| {
                        cx.tell(&Event::Stored(bytes))
                    });
                }
                Err(error) => {
                    self.sink_failed(instance, &mut sink, &error, report);
                }
            }
            report.sinks.push(sink);
        }
        if alive == 0 {
            return Err(Error::new(
                ErrorKind::Unreachable,
                "no sink can take the archive",
            ));
        }
        Ok(tee)
    }

    fn sink_failed(
        &self,
        instance: &SinkInstance,
        sink: &mut SinkReport,
        error: &Error,
        report: &mut BackupReport,
    ) {
        sink.error = Some(error.what.clone());
        let class = if instance.policy.required {
            Class::Failed
        } else {
            Class::Partial
        };
        // With no sink left the run fails as its kind says: a full disk is worth a retry, a wrong key is not.
        let alone = self.sinks.len() == 1 && Class::from(error.kind) == Class::Settings;
        report.causes.push(Cause::of(
            if alone { Class::Settings } else { class },
            &instance.name,
            error,
        ));
    }

    fn failed_sinks(report: &mut BackupReport, error: &Error) {
        for sink in &mut report.sinks {
            sink.error.get_or_insert_with(|| error.what.clone());
        }
    }

    fn all_failed(running: Vec<Running<'_>>, report: &mut BackupReport) {
        for r in running {
            report.sources.push(r.report().0);
            if let Some(error) = r.error {
                report.causes.push(Cause::new(&r.instance.name, &error));
            }
        }
        for sink in &mut report.sinks {
            sink.error.get_or_insert_with(|| "nothing to store".into());
        }
    }

    async fn snapshots(&self, running: &mut [Running<'_>]) {
        join_all(
            running
                .iter_mut()
                .filter(|r| r.error.is_none())
                .map(|r| async move {
                    r.cx.tell(&Event::Phase("snapshot"));
                    r.began = std::time::Instant::now();
                    let options = SnapshotOptions::default();
                    let made = tokio::select! {
                        biased;
                        () = r.cx.cancel.cancelled() => Err(Error::cancelled()),
                        made = r.instance.source.snapshot(&r.cx, &options) => made,
                    };
                    match made {
                        Ok(snapshot) => {
                            r.at = Some(snapshot.at());
                            r.snapshot = Some(snapshot);
                        }
                        Err(error) => r.error = Some(error),
                    }
                }),
        )
        .await;
    }

    /// Schema, Data and Finish of all instances at once; then Large, one instance after another.
    async fn stages(&self, running: &mut [Running<'_>], entrance: &Entrance, run: &Context) {
        for r in running.iter_mut() {
            let cx = Context {
                cancel: run.cancel.clone(),
                ..r.cx.clone()
            };
            r.output = Some(Output::new(cx.clone(), entrance.clone()));
            r.cx = cx;
        }
        let limits = &self.limits;
        join_all(running.iter_mut().map(|r| async move {
            for stage in [Stage::Schema, Stage::Data, Stage::Finish] {
                r.stage(stage).await;
            }
            let waits_for_large =
                r.error.is_none() && r.snapshot.as_ref().is_some_and(|s| s.large());
            if !waits_for_large {
                r.close(limits.close).await;
            }
        }))
        .await;
        for r in running.iter_mut() {
            if r.snapshot.is_some() {
                r.stage(Stage::Large).await;
                r.close(limits.close).await;
            }
        }
    }

    async fn close_all(&self, running: &mut [Running<'_>]) {
        for r in running {
            r.close(self.limits.close).await;
        }
    }

    async fn seal(
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
            whole_units += instance.totals.units - instance.totals.failed;
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
        join_all(
            uploads
                .into_iter()
                .map(|(name, upload)| self.publish(cx, name, upload, &seal)),
        )
        .await
        .into_iter()
        .for_each(|(name, result)| {
            self.published(&name, result, report);
        });
        self.after_publish(cx, zone, &manifest, &written, report)
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
        let stored = match upload.publish(&self.plan.name, seal).await {
            Ok(stored) => stored,
            Err(error) => return (name, Err(error)),
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
            if self.plan.pin
                && let Err(error) = pins::pin(
                    &cx,
                    &instance.sink,
                    &manifest.id,
                    manifest.label.as_deref().unwrap_or(""),
                )
                .await
            {
                report.warnings.push(format!(
                    "`{}`: the archive could not be pinned: {error}",
                    instance.name
                ));
            }
            // A partial run prunes nothing.
            if manifest.complete
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
            } else if instance.policy.keep.is_none() {
                report.sinks[at].pruned = Vec::new();
            }
        }
        debug_assert_eq!(Summary::from(manifest).id, report.id);
    }
}

impl Running<'_> {
    async fn stage(&mut self, stage: Stage) {
        let (Some(snapshot), Some(output)) = (self.snapshot.as_mut(), self.output.clone()) else {
            return;
        };
        if self.error.is_some() {
            return;
        }
        self.cx.tell(&Event::Phase(match stage {
            Stage::Schema => "schema",
            Stage::Data => "data",
            Stage::Large => "large files",
            Stage::Finish => "finishing",
        }));
        output.begin(stage);
        let cancel = self.cx.cancel.clone();
        let written = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::cancelled()),
            written = snapshot.write(&self.cx, stage, &output) => written,
        };
        let finished = if cancel.is_cancelled() {
            Err(Error::cancelled())
        } else {
            output.finish_stage().await
        };
        if let Err(error) = written.and(finished) {
            self.error = Some(error);
        }
    }

    async fn close(&mut self, limit: Duration) {
        let Some(snapshot) = self.snapshot.take() else {
            return;
        };
        self.milliseconds = self.began.elapsed().as_millis() as u64;
        let mut cx = self.cx.clone();
        // Cleaning up must go on when the run is stopped.
        cx.cancel = tokio_util::sync::CancellationToken::new();
        match tokio::time::timeout(limit, snapshot.close(&cx)).await {
            Ok(Ok(facts)) => self.facts = facts,
            Ok(Err(error)) => {
                self.error
                    .get_or_insert_with(|| error.within("closing the snapshot"));
            }
            Err(_) => {
                self.error.get_or_insert_with(|| {
                    Error::new(ErrorKind::Unreachable, "closing the snapshot took too long")
                });
            }
        }
        self.cx.tell(&Event::Done);
    }

    fn report(&self) -> (SourceReport, Instance) {
        let (source, instance, _) = self.report_all();
        (source, instance)
    }

    fn report_all(&self) -> (SourceReport, Instance, Option<ErrorKind>) {
        let (totals, failed, kind) = self
            .output
            .as_ref()
            .map(Output::results)
            .unwrap_or_default();
        let whole = totals.units - totals.failed;
        let state = match (&self.error, totals.failed, whole) {
            (None, 0, _) => State::Whole,
            (_, _, 1..) => State::Partial,
            _ => State::Failed,
        };
        let error = self.error.as_ref().map(|e| e.what.clone());
        let source = SourceReport {
            name: self.instance.name.clone(),
            plugin: self.instance.plugin.clone(),
            describe: self.health.describe.clone(),
            state,
            totals,
            milliseconds: self.milliseconds,
            position: self.at.as_ref().and_then(|at| at.position.clone()),
            failed: failed.clone(),
            error: error.clone(),
            warnings: self
                .health
                .warnings
                .iter()
                .chain(&self.facts.warnings)
                .cloned()
                .collect(),
        };
        let instance = Instance {
            name: self.instance.name.clone(),
            plugin: self.instance.plugin.clone(),
            identity: self.health.identity.clone(),
            describe: self.health.describe.clone(),
            state,
            at: self.at.clone(),
            totals,
            failed,
            error,
            facts: self.facts.clone(),
        };
        (source, instance, kind)
    }
}

/// Size and sum of what lies there now. A sink that proves its sums needs no second transfer.
async fn read_back(
    cx: &Context,
    instance: &SinkInstance,
    stored: &Stored,
    seal: &Seal,
) -> Result<()> {
    use sha2::{Digest, Sha256};
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
    let mut sum = Sha256::new();
    let mut at = 0;
    while at < seal.bytes {
        let len = (4 << 20).min(seal.bytes - at);
        sum.update(crate::archive::read_at::ReadAt::read_at(&read, at, len).await?);
        at += len;
    }
    if hex(&sum.finalize()) == seal.sha256 {
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

/// The kernel's high-water mark of this process.
pub fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// `bk 0.1.0`.
pub fn tool() -> String {
    format!("bk {}", env!("CARGO_PKG_VERSION"))
}

/// 32 hexadecimal digits of chance.
pub fn draw_id() -> Result<String> {
    let mut bytes = [0; 16];
    let len = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| bug(format!("no randomness: {e}")))?;
    if len == bytes.len() {
        Ok(hex(&bytes))
    } else {
        Err(bug("too little randomness"))
    }
}

/// The name that a run of this start asks for.
pub fn archive_name(settings: &ArchiveSettings, start: Timestamp) -> ArchiveName {
    let zone = TimeZone::get(&settings.timezone).unwrap_or(TimeZone::UTC);
    let day = start.to_zoned(zone).strftime("%Y-%m-%d").to_string();
    ArchiveName {
        prefix: settings.prefix.clone(),
        start,
        day,
        suffix: ".tar.xz".into(),
    }
}
