//! One backup: check, snapshot, stages, manifest, publish, read back, retention. Plan in, report out.

mod publish;
mod running;

use crate::archive::format::{FORMAT, FormatMember, Stage};
use crate::archive::memory::Division;
use crate::archive::output::Output;
use crate::archive::writer::{self, Entrance, NoEnvelope, hex};
use crate::catalog::Catalogue;
use crate::config::{ArchiveSettings, SinkInstance, SourceInstance};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, bug};
use crate::event::Event;
use crate::hooks;
use crate::layout::Tier;
use crate::name::ArchiveName;
use crate::plan::BackupPlan;
use crate::report::{BackupReport, Cause, Class, SinkReport};
use crate::sink::{Health, SizeHint};
use crate::source::{Facts, SnapshotOptions};
use crate::tee::Tee;
use futures::future::join_all;
use jiff::Timestamp;
use jiff::tz::TimeZone;
pub(crate) use publish::read_back;
use running::Running;
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
    /// Patience of a sink's `create`.
    pub create: Duration,
    /// Patience of a sink's `publish`.
    pub publish: Duration,
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
            // A sink may finish what an earlier run left, which copies inside the store.
            create: Duration::from_mins(10),
            publish: Duration::from_mins(10),
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

impl Backup<'_> {
    /// Runs it. The report says everything, also after a failure.
    pub async fn run(self, cx: &Context) -> BackupReport {
        let started = self.plan.created;
        let zone = self.settings.zone();
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
        let division = match &self.limits.division {
            Some(division) => division.clone(),
            None => self.division()?,
        };
        let (mut running, (sink_health, catalogue)) =
            tokio::join!(self.check_sources(cx), self.check_and_list_sinks(cx));
        Self::compare_with_before(&catalogue, &running, report);
        let run = cx.child();
        let mut tee = self
            .open_sinks(&run, sink_health, &catalogue, report)
            .await?;
        self.snapshots(&mut running).await;
        if running.iter().all(|r| r.error.is_some()) {
            report.causes.extend(self.close_all(&mut running).await);
            tee.abort(&Error::cancelled()).await;
            Self::all_failed(running, report);
            return Ok(());
        }
        let head = FormatMember {
            format: FORMAT.into(),
            needs: Vec::new(),
            tool: tool(),
            site: self.settings.site.clone(),
            id: self.plan.id.clone(),
            created: self.plan.created,
        };
        let started = writer::start(
            &division,
            self.settings.compression(),
            &head,
            Box::new(NoEnvelope),
            tee,
            run.cancel.clone(),
        )
        .await;
        let (entrance, writer) = match started {
            Ok(started) => started,
            Err(error) => {
                // Snapshots are closed whatever happened.
                report.causes.extend(self.close_all(&mut running).await);
                Self::failed_sinks(report, &error);
                return Err(error);
            }
        };
        let writing = tokio::spawn(writer.run());
        self.stages(&mut running, &entrance, &run).await;
        let ended = entrance.end().await;
        let writer = writing
            .await
            .map_err(|e| bug(format!("the writer ended: {e}")))?;
        report.causes.extend(self.close_all(&mut running).await);
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
            self.settings.compression(),
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
                has_begun: false,
                is_told: false,
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
                    cx.pause(pause).await?;
                    pause *= 2;
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

    /// A sink that fails its check is not asked for its list: it would only be waited for.
    async fn check_and_list_sinks(&self, cx: &Context) -> (Vec<Result<Health>>, Catalogue) {
        let health = self.check_sinks(cx).await;
        let alive = self
            .sinks
            .iter()
            .zip(&health)
            .filter(|(_, health)| health.is_ok());
        let alive: Vec<SinkInstance> = alive.map(|(sink, _)| sink.clone()).collect();
        (health, Catalogue::read(cx, &alive).await)
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
        let mut tee = Tee::new(self.limits.stall, cx.cancel.clone());
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
                    let create = instance.sink.create(&cx, &self.plan.name, hint);
                    let late = || {
                        Error::new(
                            ErrorKind::Unreachable,
                            "it did not begin an archive in time",
                        )
                    };
                    (
                        health.describe,
                        cx.within(self.limits.create, late, create).await,
                    )
                }
                Err(error) => (String::new(), Err(error)),
            };
            let mut sink = SinkReport {
                name: instance.name.clone(),
                describe,
                published: None,
                verified: false,
                placed: Vec::new(),
                pruned: Vec::new(),
                error: None,
            };
            match opened {
                Ok(upload) => {
                    alive += 1;
                    tee.add(&instance.name, upload, move |bytes| {
                        cx.tell(&Event::Stored(bytes));
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
                    let hook = r.instance.hooks.before_backup.as_ref();
                    let said = [("BK_INSTANCE", r.instance.name.as_str())];
                    if let Err(error) = hooks::before(&r.cx, ("before_backup", hook), &said).await {
                        r.error = Some(error);
                        return;
                    }
                    r.has_begun = true;
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

    /// Also what comes after, by the operator's own programs; says which of those failed.
    async fn close_all(&self, running: &mut [Running<'_>]) -> Vec<Cause> {
        let mut causes = Vec::new();
        for r in running {
            r.close(self.limits.close).await;
            causes.extend(r.after_backup().await);
        }
        causes
    }
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
pub fn archive_name(settings: &ArchiveSettings, start: Timestamp, id: &str) -> ArchiveName {
    let zone = settings.zone();
    let day = start.to_zoned(zone).strftime("%Y-%m-%d").to_string();
    ArchiveName {
        prefix: settings.prefix.clone(),
        start,
        day,
        suffix: ".tar.xz".into(),
        id: id.into(),
        tier: Tier::default(),
    }
}
