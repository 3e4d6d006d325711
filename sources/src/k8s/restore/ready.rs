//! After a restore: workloads that it wrote and that do not come up, with the pod and its reason.

use super::Restoring;
use crate::k8s::backup::Pages;
use crate::k8s::discovery::Kind;
use crate::k8s::holding::selector_of;
use crate::k8s::object::{self, text};
use bk_core::error::{Error, ErrorKind, Result};
use serde_json::Value;
use std::time::{Duration, Instant};

const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Workloads that are named one by one.
const MAX_NAMED: usize = 20;

/// How many pods a workload wants and has.
fn wanted_and_ready(object: &Value) -> (u64, u64) {
    let number = |value: &Value| value.as_u64();
    let status = &object["status"];
    if let Some(wanted) = number(&status["desiredNumberScheduled"]) {
        return (wanted, number(&status["numberReady"]).unwrap_or(0));
    }
    let wanted = number(&object["spec"]["replicas"]).unwrap_or(1);
    (wanted, number(&status["readyReplicas"]).unwrap_or(0))
}

impl Restoring<'_> {
    /// Waits for what was written, up to the time that the settings allow, and names what is not ready then.
    pub(super) async fn name_what_is_not_ready(&mut self) -> Result<()> {
        let patience = Duration::from_secs(u64::from(self.source.settings.ready_seconds));
        if patience.is_zero() || self.how.hold || self.dry {
            return Ok(());
        }
        let began = Instant::now();
        let mut waiting = std::mem::take(&mut self.workloads);
        loop {
            let mut not_yet = Vec::new();
            for (kind, namespace, name) in waiting {
                let path = kind.path_of(Some(&namespace), &name);
                let object = match self.api.find(&path).await {
                    Ok(Some(object)) => object,
                    Ok(None) => continue,
                    Err(error) => {
                        let full = format!("{namespace}/{}", kind.unit(&name));
                        let what = not_looked_at(&format!("whether `{full}` is ready"), error)?;
                        self.tally.warnings.push(what);
                        continue;
                    }
                };
                let (wanted, ready) = wanted_and_ready(&object);
                if ready < wanted {
                    not_yet.push((kind, namespace, name, object, wanted, ready));
                }
            }
            if not_yet.is_empty() {
                return Ok(());
            }
            if began.elapsed() >= patience {
                for (kind, namespace, name, object, wanted, ready) in
                    not_yet.into_iter().take(MAX_NAMED)
                {
                    let why = self.reason(&namespace, &object).await?;
                    self.tally.warnings.push(format!(
                        "`{namespace}/{}` has {ready} of {wanted} pods ready after {} s: {why}",
                        kind.unit(&name),
                        patience.as_secs()
                    ));
                }
                return Ok(());
            }
            waiting = not_yet
                .into_iter()
                .map(|(kind, namespace, name, ..)| (kind, namespace, name))
                .collect();
            self.cx.pause(LOOK_AGAIN).await?;
        }
    }

    /// Of the first pod that is not ready.
    async fn reason(&self, namespace: &str, workload: &Value) -> Result<String> {
        let selector = selector_of(&workload["spec"]["selector"]);
        let pods = self.kinds.of("v1", "Pod");
        let Some(pods) = pods.filter(|_| !selector.is_empty()) else {
            return Ok("its pods are not known".into());
        };
        let mut pages = Pages::of(pods, Some(namespace), Some(&selector));
        loop {
            let page = match pages.next(&self.api).await {
                Ok(Some(page)) => page,
                Ok(None) => break,
                Err(error) => return not_looked_at("why", error),
            };
            for pod in page {
                if let Some(why) = why_not(&pod) {
                    return Ok(format!("pod {}: {why}", object::name(&pod)));
                }
            }
        }
        let refused = object::condition(workload, "ReplicaFailure");
        let message = refused.and_then(|c| text(c, &["message"]));
        Ok(message.unwrap_or("it has no pods yet").to_owned())
    }
}

/// All is back when this is asked: what may not be looked at is said, and no failure.
fn not_looked_at(what: &str, error: Error) -> Result<String> {
    match error.kind {
        ErrorKind::Cancelled => Err(error),
        _ => Ok(format!("{what} is not known: {error}")),
    }
}

fn why_not(pod: &Value) -> Option<String> {
    for statuses in ["initContainerStatuses", "containerStatuses"] {
        for container in pod["status"][statuses].as_array().into_iter().flatten() {
            for state in ["waiting", "terminated"] {
                if let Some(reason) = text(container, &["state", state, "reason"]) {
                    let message = text(container, &["state", state, "message"]).unwrap_or_default();
                    return Some(format!("{reason} {message}").trim().to_owned());
                }
            }
        }
    }
    let conditions = pod["status"]["conditions"].as_array();
    let condition = conditions
        .into_iter()
        .flatten()
        .find(|c| text(c, &["status"]) == Some("False"))?;
    let reason = text(condition, &["reason"]).unwrap_or_default();
    let message = text(condition, &["message"]).unwrap_or_default();
    Some(format!("{reason} {message}").trim().to_owned())
}

/// Kinds that have pods of their own.
pub(super) fn has_pods(kind: &Kind) -> bool {
    kind.group == "apps"
        && matches!(
            kind.kind.as_str(),
            "Deployment" | "StatefulSet" | "DaemonSet"
        )
}
