//! One source on its way through a run: its stages, its end, its line in report and manifest.

use crate::archive::format::Stage;
use crate::archive::output::Output;
use crate::config::SourceInstance;
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::event::{Event, Moment};
use crate::hooks;
use crate::manifest::{Instance, State};
use crate::report::{Cause, SourceReport};
use crate::source::{Facts, Health, PointInTime, Snapshot};
use std::time::{Duration, Instant};

/// One source on its way through the run.
pub(super) struct Running<'a> {
    pub(super) instance: &'a SourceInstance,
    pub(super) cx: Context,
    pub(super) health: Health,
    pub(super) snapshot: Option<Box<dyn Snapshot>>,
    pub(super) at: Option<PointInTime>,
    pub(super) output: Option<Output>,
    pub(super) error: Option<Error>,
    pub(super) facts: Facts,
    pub(super) began: Instant,
    pub(super) milliseconds: u64,
    /// Whether what comes after it must run.
    pub(super) has_begun: bool,
    /// Whether hooks were told that it is done.
    pub(super) is_told: bool,
}

impl Running<'_> {
    pub(super) async fn stage(&mut self, stage: Stage) {
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

    pub(super) async fn close(&mut self, limit: Duration) {
        let Some(snapshot) = self.snapshot.take() else {
            self.tell_done();
            return;
        };
        self.milliseconds = self.began.elapsed().as_millis() as u64;
        let cx = self.cx.unstopped();
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
        self.tell_done();
    }

    /// Once, however it ended.
    fn tell_done(&mut self) {
        if !std::mem::replace(&mut self.is_told, true) {
            self.cx.reached(Moment::BackupSourceDone, &self.report().0);
        }
    }

    /// Once, also when something failed; the run may be stopped already.
    pub(super) async fn after_backup(&mut self) -> Option<Cause> {
        if !std::mem::take(&mut self.has_begun) {
            return None;
        }
        let hook = self.instance.hooks.after_backup.as_ref();
        let name = self.instance.name.as_str();
        let about = (name, self.error.is_none());
        let said = [("BK_INSTANCE", name)];
        hooks::after(&self.cx, ("after_backup", hook), about, &said).await
    }

    pub(super) fn report(&self) -> (SourceReport, Instance) {
        let (source, instance, _) = self.report_all();
        (source, instance)
    }

    pub(super) fn report_all(&self) -> (SourceReport, Instance, Option<ErrorKind>) {
        let (totals, failed, kind) = self
            .output
            .as_ref()
            .map(Output::results)
            .unwrap_or_default();
        let whole = totals.units.saturating_sub(totals.failed);
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
