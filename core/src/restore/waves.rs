//! The order of sources that live in what others bring: those others first, with their workloads held back, then these, then the workloads run again.

use super::Prepared;
use crate::config::SourceInstance;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, bug, conflict};
use crate::event::Event;
use crate::report::{Cause, RestoreReport, RestoredReport};
use crate::restore::standby;
use crate::source::{Health, ReleaseOptions, RestoreOptions};
use futures::future::join_all;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long a server may take to answer that a source before has just brought.
const COMES_UP: Duration = Duration::from_mins(10);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A source of a restore: its name in the archive, the one here, how.
type Planned<'a> = (String, &'a SourceInstance, RestoreOptions);
/// What came of it.
type Outcome = Result<(RestoredReport, Vec<Cause>, Vec<String>)>;

/// Said of a server that a source before it brings: it is asked when that one is back.
pub(super) fn not_there_yet(error: &Error) -> Health {
    Health {
        describe: "what others bring first".into(),
        warnings: vec![format!(
            "it does not answer yet, and is asked when what it lives in is back: {error}"
        )],
        ..Health::default()
    }
}

/// Workloads of what others live in are held. Where nobody said who lives where, the two commands are named.
pub(super) fn hold(sources: &mut [Planned<'_>]) -> Vec<String> {
    let afters: Vec<String> = sources
        .iter()
        .flat_map(|(_, source, _)| source.after.clone())
        .collect();
    let mut advice = Vec::new();
    let several = sources.len() > 1;
    for (_, source, options) in sources {
        options.hold = afters.contains(&source.name);
        if several && !options.hold && source.source.can_hold() {
            let name = &source.name;
            advice.push(format!(
                "`{name}` and the others are restored side by side; where they live in it, run bk restore --only {name}, then bk restore --exclude {name}, or set `after = [\"{name}\"]` in their tables"
            ));
        }
    }
    advice
}

/// What to type so that what was held runs again. Where groups have other names than the settings know, all are named.
fn resume(name: &str, options: &RestoreOptions) -> String {
    let mut command = format!("bk k8s resume {name}");
    if options.into_group.is_empty() {
        return command;
    }
    let groups: BTreeSet<&str> = options
        .selected
        .iter()
        .map(|selected| {
            let mut renamed = options.into_group.iter();
            let to = renamed.find(|(from, _)| *from == selected.group);
            to.map_or(selected.group.as_str(), |(_, to)| to.as_str())
        })
        .collect();
    for group in groups {
        command.push_str(" --namespace ");
        command.push_str(group);
    }
    command
}

impl Prepared<'_> {
    /// Restores all: each as soon as everything that it lives in is back.
    pub(super) async fn in_waves(&self, cx: &Context, sources: &[Planned<'_>]) -> Vec<Outcome> {
        let mut outcomes: Vec<Option<Outcome>> = sources.iter().map(|_| None).collect();
        loop {
            let left: Vec<usize> = (0..sources.len())
                .filter(|n| outcomes[*n].is_none())
                .collect();
            let waits = |n: &usize| {
                let after = &sources[*n].1.after;
                left.iter()
                    .any(|other| other != n && after.contains(&sources[*other].1.name))
            };
            let ready: Vec<usize> = left.iter().copied().filter(|n| !waits(n)).collect();
            if ready.is_empty() {
                let outcome = |outcome: Option<Outcome>| {
                    outcome.unwrap_or_else(|| Err(bug("sources wait for each other")))
                };
                return outcomes.into_iter().map(outcome).collect();
            }
            let failed: Vec<&str> = sources
                .iter()
                .zip(&outcomes)
                .filter(|(_, outcome)| matches!(outcome, Some(Err(_))))
                .map(|((_, source, _), _)| source.name.as_str())
                .collect();
            let wave = join_all(ready.iter().map(|n| {
                let (instance, source, options) = &sources[*n];
                let before = source
                    .after
                    .iter()
                    .find(|name| failed.contains(&name.as_str()));
                async move {
                    if let Some(before) = before {
                        return Err(conflict(format!(
                            "not begun, since `{before}` in which it lives did not come back"
                        )));
                    }
                    if !source.after.is_empty() {
                        self.wait_for(cx, instance, source).await?;
                    }
                    self.restore_one(cx, instance, source, options).await
                }
            }))
            .await;
            for (n, outcome) in ready.into_iter().zip(wave) {
                outcomes[n] = Some(outcome);
            }
        }
    }

    /// Until it answers; then it must not be the very server that the archive came from, where that was asked for.
    async fn wait_for(&self, cx: &Context, instance: &str, source: &SourceInstance) -> Result<()> {
        let cx = cx.for_instance(&source.name);
        cx.tell(&Event::Phase("waiting"));
        let began = Instant::now();
        loop {
            match source.source.check(&cx).await {
                Ok(health) if self.request.standby => {
                    let given = self.request.cluster_id.as_deref();
                    return standby::refuse_home(
                        &source.name,
                        &health,
                        &self.identity_of(instance),
                        given,
                    );
                }
                Ok(_) => return Ok(()),
                Err(error)
                    if error.kind == ErrorKind::Unreachable && began.elapsed() < COMES_UP =>
                {
                    tracing::debug!(%error, "not there yet");
                }
                Err(error) => {
                    return Err(
                        error.within("what brings it is back, and it cannot be restored into")
                    );
                }
            }
            cx.pause(LOOK_AGAIN).await?;
        }
    }

    /// What was held back runs again when everything is there; else it stays, and the next command is said.
    pub(super) async fn release(
        &self,
        cx: &Context,
        sources: &[Planned<'_>],
        whole: bool,
        report: &mut RestoreReport,
    ) {
        let how = ReleaseOptions {
            catch_up: self.request.catch_up,
            groups: Vec::new(),
        };
        for (_, source, options) in sources.iter().filter(|(_, _, options)| options.hold) {
            let name = &source.name;
            let command = resume(name, options);
            if !whole {
                report.warnings.push(format!(
                    "workloads of `{name}` stay stopped, since not everything came back; repeat the restore, or let them run as they are: {command}"
                ));
                continue;
            }
            match source.source.release(&cx.for_instance(name), &how).await {
                Ok(released) => {
                    report.released.extend(released.done);
                    report.causes.extend(released.held.into_iter().map(|what| {
                        let mut cause = Cause::partial(name, what);
                        cause.hint = Some(command.clone());
                        cause
                    }));
                }
                Err(error) => {
                    let error = error.within("workloads are still stopped").hint(command);
                    report.causes.push(Cause::new(name, &error));
                }
            }
        }
    }
}
