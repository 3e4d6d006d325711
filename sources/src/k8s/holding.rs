//! Workloads that must not run while the data they live on is restored: without replicas, `CronJobs` suspended, and on each object what it was, so that
//! a run that is killed leaves everything that `bk k8s resume` needs.

use crate::k8s::K8s;
use crate::k8s::backup::Pages;
use crate::k8s::connection::{Api, MANAGER};
use crate::k8s::discovery::{Kind, Kinds};
use crate::k8s::object::{self, annotation, text};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, conflict};
use bk_core::source::{ReleaseOptions, Released};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How many replicas a workload had.
const REPLICAS: &str = "bk/original-replicas";
/// That a `CronJob` was not suspended.
const SUSPENDED: &str = "bk/suspended";
/// That a workload is to be restarted when the data is there.
const RESTART: &str = "bk/restart";
/// What `kubectl rollout restart` writes.
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";
/// Kinds that have replicas.
const SCALED: [&str; 4] = [
    "Deployment",
    "StatefulSet",
    "ReplicaSet",
    "ReplicationController",
];
/// How long pods may take to go, and how often they are looked at.
const PODS_GO: Duration = Duration::from_mins(5);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How often a change is repeated that another one crossed.
const CROSSED: usize = 5;

impl K8s {
    fn is_held(&self, namespace: &str, kind: &str, name: &str) -> bool {
        SCALED.contains(&kind) && self.hold.is_match(format!("{namespace}/{kind}/{name}"))
    }

    fn is_restarted(&self, namespace: &str, kind: &str, name: &str) -> bool {
        self.restart.is_match(format!("{namespace}/{kind}/{name}"))
    }

    /// An object on its way back is held before it is there.
    pub(crate) fn hold_wished(&self, namespace: &str, kind: &str, object: &mut Value) {
        let change = self.change_to_hold(namespace, kind, object);
        merge(object, change);
    }

    /// What holds an object and remembers what it was; nothing where it runs nothing, or is held already.
    fn change_to_hold(&self, namespace: &str, kind: &str, object: &Value) -> Value {
        let name = object::name(object);
        let mut change = json!({});
        if object::is_own(object) {
            return change;
        }
        let by_the_clock =
            kind == "CronJob" || kind == "Job" && !crate::k8s::skip::is_finished_job(object);
        if by_the_clock && object["spec"]["suspend"] != Value::Bool(true) {
            change["metadata"]["annotations"][SUSPENDED] = "by bk".into();
            change["spec"]["suspend"] = true.into();
        }
        if self.is_held(namespace, kind, name) && annotation(object, REPLICAS).is_none() {
            let replicas = object["spec"]["replicas"].as_u64().unwrap_or(1);
            if replicas > 0 {
                change["metadata"]["annotations"][REPLICAS] = replicas.to_string().into();
                change["spec"]["replicas"] = 0.into();
            }
        }
        if self.is_restarted(namespace, kind, name) && annotation(object, RESTART).is_none() {
            change["metadata"]["annotations"][RESTART] = "when the data is there".into();
        }
        change
    }

    /// Before anything is written: what another controller scales cannot be held, and a `StatefulSet` whose claims go with its replicas is not, unless
    /// that was said.
    pub(crate) async fn refuse_what_cannot_be_held(
        &self,
        api: &Api,
        kinds: &Kinds,
        namespace: &str,
    ) -> Result<()> {
        // A Deployment's own sets are no news.
        let scaled =
            |kind: &&Kind| SCALED.contains(&kind.kind.as_str()) && kind.kind != "ReplicaSet";
        for kind in holdable(kinds).filter(scaled) {
            for object in list(api, kind, namespace).await? {
                let name = object::name(&object);
                if self.is_held(namespace, &kind.kind, name) {
                    let full = format!("{namespace}/{}", kind.unit(name));
                    self.refuse_to_hold(&full, &object)?;
                }
            }
        }
        Ok(())
    }

    fn refuse_to_hold(&self, full: &str, object: &Value) -> Result<()> {
        if let Some(owner) = object::controller(object) {
            let word = |key| text(owner, &[key]).unwrap_or_default();
            return Err(conflict(format!(
                "`{full}` is to be held, but {} `{}` decides how many replicas it has",
                word("kind"),
                word("name")
            ))
            .hint("stop that one by its own means, take it out of `hold`, and repeat"));
        }
        let policy = &object["spec"]["persistentVolumeClaimRetentionPolicy"];
        let claims_go = text(policy, &["whenScaled"]) == Some("Delete")
            && object["spec"]["replicas"].as_u64() != Some(0);
        if claims_go && !self.settings.hold_even_if_claims_go {
            return Err(conflict(format!(
                "`{full}` would lose its claims with their data when it has no replicas (persistentVolumeClaimRetentionPolicy.whenScaled is Delete)"
            ))
            .hint("set that to Retain, or take it out of `hold`, or set `hold_even_if_claims_go = true`"));
        }
        Ok(())
    }

    /// Holds what runs in a namespace, and waits until its pods are gone.
    pub(crate) async fn hold_running(
        &self,
        cx: &Context,
        api: &Api,
        kinds: &Kinds,
        namespace: &str,
    ) -> Result<()> {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(namespace.to_owned());
        let mut stopped = Vec::new();
        for kind in holdable(kinds) {
            for object in list(api, kind, namespace).await? {
                let name = object::name(&object).to_owned();
                if object::controller(&object).is_some() {
                    continue;
                }
                let path = kind.path_of(Some(namespace), &name);
                let change = |object: &Value| self.change_to_hold(namespace, &kind.kind, object);
                changed(api, &path, object.clone(), &change, "holding").await?;
                if self.is_held(namespace, &kind.kind, &name) {
                    stopped.push((format!("{namespace}/{}", kind.unit(&name)), object));
                }
            }
        }
        for (name, object) in stopped {
            wait_for_pods(cx, api, kinds, (namespace, &name), &object).await?;
        }
        Ok(())
    }
}

async fn wait_for_pods(
    cx: &Context,
    api: &Api,
    kinds: &Kinds,
    (namespace, name): (&str, &str),
    object: &Value,
) -> Result<()> {
    let Some(pods) = kinds.of("v1", "Pod") else {
        return Ok(());
    };
    let selector = selector_of(&object["spec"]["selector"]);
    if selector.is_empty() {
        return Ok(());
    }
    let began = Instant::now();
    loop {
        let mut pages = Pages::of(pods, Some(namespace), Some(&selector));
        let mut left = Vec::new();
        while let Some(page) = pages.next(api).await? {
            let running = page.iter().filter(|pod| {
                !matches!(
                    text(pod, &["status", "phase"]),
                    Some("Succeeded" | "Failed")
                )
            });
            left.extend(running.map(|pod| object::name(pod).to_owned()));
        }
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() > PODS_GO {
            return Err(
                conflict(format!("pods of `{name}` do not go: {}", left.join(", ")))
                    .hint("look why with kubectl describe; bk k8s resume lets it run again"),
            );
        }
        cx.pause(LOOK_AGAIN).await?;
    }
}

/// A selector of labels as a request has it.
pub fn selector_of(selector: &Value) -> String {
    let labels = selector.get("matchLabels").unwrap_or(selector);
    let labels = labels.as_object().into_iter().flatten();
    let mut parts: Vec<String> = labels
        .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
        .collect();
    let expressions = selector["matchExpressions"].as_array();
    for expression in expressions.into_iter().flatten() {
        let key = text(expression, &["key"]).unwrap_or_default();
        let values = expression["values"].as_array();
        let values: Vec<&str> = values
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let values = values.join(",");
        match text(expression, &["operator"]) {
            Some("In") => parts.push(format!("{key} in ({values})")),
            Some("NotIn") => parts.push(format!("{key} notin ({values})")),
            Some("Exists") => parts.push(key.to_owned()),
            Some("DoesNotExist") => parts.push(format!("!{key}")),
            _ => {}
        }
    }
    parts.join(",")
}

/// An object that is held, as it is when it is not: so it is archived.
pub fn as_it_was(object: &mut Value) {
    let change = change_to_let_go(object, None);
    merge(object, change);
}

/// What lets an object go; nothing where it is not held.
fn change_to_let_go(object: &Value, now: Option<&str>) -> Value {
    let mut change = json!({});
    if let Some(replicas) = annotation(object, REPLICAS) {
        change["metadata"]["annotations"][REPLICAS] = Value::Null;
        change["spec"]["replicas"] = replicas.parse::<u64>().unwrap_or(1).into();
    }
    if annotation(object, SUSPENDED).is_some() {
        change["metadata"]["annotations"][SUSPENDED] = Value::Null;
        change["spec"]["suspend"] = false.into();
    }
    if annotation(object, RESTART).is_some() {
        change["metadata"]["annotations"][RESTART] = Value::Null;
        if let Some(now) = now {
            change["spec"]["template"]["metadata"]["annotations"][RESTARTED] = now.into();
        }
    }
    change
}

fn holdable(kinds: &Kinds) -> impl Iterator<Item = &Kind> {
    kinds.iter().filter(|kind| {
        kind.namespaced
            && matches!(kind.group.as_str(), "" | "apps" | "batch")
            && (SCALED.contains(&kind.kind.as_str())
                || matches!(kind.kind.as_str(), "CronJob" | "DaemonSet" | "Job"))
    })
}

async fn list(api: &Api, kind: &Kind, namespace: &str) -> Result<Vec<Value>> {
    let mut pages = Pages::of(kind, Some(namespace), None);
    let mut all = Vec::new();
    while let Some(page) = pages.next(api).await? {
        all.extend(page);
    }
    Ok(all)
}

/// Changes an object as it is now, in one request, so that it is never half held. Nothing where it is gone, or nothing is to change.
async fn changed(
    api: &Api,
    path: &str,
    mut object: Value,
    change: &(dyn Fn(&Value) -> Value + Sync),
    doing: &str,
) -> Result<()> {
    let doing = format!("{doing} `{path}`");
    for _ in 0..CROSSED {
        let mut wanted = change(&object);
        if wanted.as_object().is_none_or(serde_json::Map::is_empty) {
            return Ok(());
        }
        wanted["metadata"]["resourceVersion"] = object["metadata"]["resourceVersion"].clone();
        let answer = api.patch(path, &wanted).await?;
        match answer.status {
            404 => return Ok(()),
            409 => match api.find(path).await? {
                Some(newer) => object = newer,
                None => return Ok(()),
            },
            _ => return answer.good(&doing).map(drop),
        }
    }
    Err(conflict(format!("{doing}: others write it all the time")).hint("repeat"))
}

/// Lays a merge patch over an object that is not on the server yet.
fn merge(object: &mut Value, change: Value) {
    match change {
        Value::Object(change) => {
            if !object.is_object() {
                *object = json!({});
            }
            for (key, value) in change {
                if value.is_null() {
                    if let Some(object) = object.as_object_mut() {
                        object.shift_remove(&key);
                    }
                } else {
                    merge(&mut object[&key], value);
                }
            }
        }
        value => *object = value,
    }
}

/// Lets run again what this run holds; where it holds nothing, what an earlier one left held in the namespaces of the settings, or in those that are
/// named. Never in others: another site may be in the middle of its restore there.
pub async fn release(source: &K8s, cx: &Context, how: &ReleaseOptions) -> Result<Released> {
    let catch_up = how.catch_up;
    let api = Api::connect(cx, &source.settings).await?;
    let kinds = Kinds::discover(&api).await?;
    let mut namespaces: BTreeSet<String> = source
        .held
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    namespaces.extend(how.groups.iter().cloned());
    if namespaces.is_empty() {
        // In one that is not there nothing is held.
        namespaces.extend(source.namespaces_there(&api).await?.0);
    }
    let mut released = Released::default();
    for namespace in &namespaces {
        for kind in holdable(&kinds) {
            let objects = match held(&api, kind, namespace).await {
                Ok(objects) => objects,
                Err(error) => {
                    let kind = kind.full_name();
                    let what = format!("what is stopped of {kind} in `{namespace}` is not known");
                    released.held.push(said_of(&api, &what, error).await?);
                    continue;
                }
            };
            for object in objects {
                let full = format!("{namespace}/{}", kind.unit(object::name(&object)));
                let gone = let_go(cx, &api, (kind, namespace), object, catch_up, &mut released);
                if let Err(error) = gone.await {
                    let what = format!("`{full}` is not let go as a whole");
                    released.held.push(said_of(&api, &what, error).await?);
                }
            }
        }
    }
    Ok(released)
}

/// What is held of a kind. Of one that is not this account's nothing is.
async fn held(api: &Api, kind: &Kind, namespace: &str) -> Result<Vec<Value>> {
    let mut pages = Pages::of(kind, Some(namespace), None);
    let mut objects = Vec::new();
    while let Some(page) = pages.readable(api).await? {
        let is_held = |object: &Value| {
            let mut keys = [REPLICAS, SUSPENDED, RESTART].iter();
            keys.any(|key| annotation(object, key).is_some())
        };
        objects.extend(page.into_iter().filter(is_held));
    }
    Ok(objects)
}

/// What one object or kind refuses is said, and the others are let go; what ends the run is an error.
async fn said_of(api: &Api, what: &str, error: Error) -> Result<String> {
    match error.kind {
        ErrorKind::Cancelled | ErrorKind::Auth => Err(error),
        // Nothing more is let go by a server that has gone.
        ErrorKind::Unreachable if api.get("/version").await.is_err() => Err(error),
        _ => Ok(format!("{what}: {error}")),
    }
}

async fn let_go(
    cx: &Context,
    api: &Api,
    (kind, namespace): (&Kind, &str),
    object: Value,
    catch_up: bool,
    released: &mut Released,
) -> Result<()> {
    let name = object::name(&object).to_owned();
    let full = format!("{namespace}/{}", kind.unit(&name));
    let path = kind.path_of(Some(namespace), &name);
    let now = now(cx);
    if annotation(&object, SUSPENDED).is_some()
        && kind.kind == "CronJob"
        && !catch_up
        && let Err(error) = missed_nothing(cx, api, &path).await
    {
        released.held.push(format!(
            "`{full}` stays suspended: that it missed nothing cannot be written, so that it would start at once: {}",
            error.what
        ));
        return Ok(());
    }
    let mut done = Vec::new();
    if let Some(replicas) = annotation(&object, REPLICAS) {
        done.push(format!("{full} has {replicas} replicas again"));
    }
    if annotation(&object, SUSPENDED).is_some() {
        done.push(format!("{full} is not suspended any more"));
    }
    if annotation(&object, RESTART).is_some() {
        done.push(format!("{full} is restarted"));
    }
    let change = |object: &Value| change_to_let_go(object, Some(&now));
    changed(api, &path, object, &change, "releasing").await?;
    released.done.extend(done);
    own_nothing(api, &path).await
}

/// Nothing of an object that was let go is this program's: its operator's next apply finds no conflict.
async fn own_nothing(api: &Api, path: &str) -> Result<()> {
    let Some(object) = api.find(path).await? else {
        return Ok(());
    };
    let all = object["metadata"]["managedFields"].as_array();
    let is_ours = |entry: &&Value| text(entry, &["manager"]) == Some(MANAGER);
    let others: Vec<&Value> = all
        .into_iter()
        .flatten()
        .filter(|entry| !is_ours(entry))
        .collect();
    if all.is_none_or(|all| all.len() == others.len()) || others.is_empty() {
        return Ok(());
    }
    let owners = json!({ "metadata": { "managedFields": others } });
    let patched = api.patch(path, &owners).await?;
    patched
        .good(&format!("giving the fields of `{path}` back"))
        .map(drop)
}

/// A `CronJob` that was suspended starts what it missed at once, unless its last time is now.
pub async fn missed_nothing(cx: &Context, api: &Api, path: &str) -> Result<()> {
    let status = json!({ "status": { "lastScheduleTime": now(cx) } });
    let patched = api.patch(&format!("{path}/status"), &status).await?;
    patched.good("writing its last time").map(drop)
}

/// The time as Kubernetes writes it.
fn now(cx: &Context) -> String {
    cx.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
