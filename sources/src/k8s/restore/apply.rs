//! One object: made where it is absent, left alone where nothing differs, else written whole with what the server owns taken from it.

use super::{Item, Restoring, diff, fix, volumes};
use crate::k8s::connection::{Answer, MANAGER};
use crate::k8s::discovery::Kind;
use crate::k8s::holding;
use crate::k8s::object::{self, sorted, taken_apart, text};
use bk_core::error::{ErrorKind, Result};
use bk_core::source::Existing;
use http::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How often a write is repeated that another one crossed.
const CROSSED: usize = 5;
/// Longest word of a server about a field.
const MESSAGE_CHARS: usize = 300;
/// How long an object may take to go that is made anew.
const GOES: Duration = Duration::from_mins(1);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Created,
    Updated,
    /// Deleted and made anew.
    Recreated,
    Unchanged,
    Skipped(String),
    Conflict(String),
    /// May succeed when more is there.
    Failed(String),
}

impl Outcome {
    /// In one word, for the report.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Recreated => "made anew",
            Self::Unchanged => "unchanged",
            Self::Skipped(_) => "left out",
            Self::Conflict(_) => "in conflict",
            Self::Failed(_) => "failed",
        }
    }
}

/// An object that was dealt with.
#[derive(Debug)]
pub(super) struct Applied {
    pub outcome: Outcome,
    /// Its UID in the target.
    pub uid: Option<String>,
    pub warnings: Vec<String>,
    /// What would change, where nothing is written.
    pub diff: Vec<String>,
    /// What the server could not be asked.
    pub note: Option<&'static str>,
    /// Whether an owner of it was not there yet.
    pub lacks_owner: bool,
}

impl Applied {
    pub fn failed(why: String) -> Self {
        Self::of(Outcome::Failed(why))
    }

    fn of(outcome: Outcome) -> Self {
        Self {
            outcome,
            uid: None,
            warnings: Vec::new(),
            diff: Vec::new(),
            note: None,
            lacks_owner: false,
        }
    }
}

/// Puts one object back.
pub(super) async fn apply(restoring: &Restoring<'_>, item: &Item) -> Result<Applied> {
    let Some(kind) = &item.kind else {
        if restoring.dry
            && item.beside.kind_is_extension()
            && restoring
                .kinds
                .of(&item.beside.api_version, &item.beside.kind)
                .is_none()
        {
            return Ok(Applied {
                note: Some("not asked of the server: its definition is not there yet"),
                ..Applied::of(Outcome::Created)
            });
        }
        let version = &item.beside.api_version;
        let known = restoring.kinds.of(version, &item.beside.kind);
        let why = match known {
            Some(known) => format!(
                "the archive has it in {version}, and the server has {} of that group only in {}",
                known.kind,
                known.served.join(", ")
            ),
            None => format!("the server has no kind {} of {version}", item.beside.kind),
        };
        return Ok(Applied::failed(why));
    };
    if item.beside.redacted {
        let why = "its values were left out of the archive (`secrets = \"redact\"`)";
        return Ok(Applied::of(Outcome::Skipped(why.into())));
    }
    let own = (
        item.namespace.clone().unwrap_or_default(),
        item.beside.kind.clone(),
        item.beside.name.clone(),
    );
    // A claim that bk mounts may be the site's own: it comes back like any other.
    let runs_by_it = item.beside.kind != "PersistentVolumeClaim" && restoring.own.contains(&own);
    if (item.beside.own || runs_by_it) && !is_named(restoring, item) {
        let why = "bk made it, or runs by it; name it with --only to restore it";
        return Ok(Applied::of(Outcome::Skipped(why.into())));
    }
    if let Some(why) = restoring.releases.conflict(restoring.existing, item) {
        return Ok(Applied::of(Outcome::Conflict(why)));
    }
    let wished = fix::wished(restoring, item, kind).await?;
    let mut applied = write(restoring, item, kind, wished.object).await?;
    applied.warnings.extend(wished.warnings);
    applied.lacks_owner = wished.lacks_owner;
    Ok(applied)
}

/// Whether others of the cluster may need it as it is. A namespace is what makes its group, and a volume belongs to its claim.
fn is_shared(kind: &Kind) -> bool {
    !kind.namespaced && !matches!(kind.full_name(), "Namespace" | "PersistentVolume")
}

/// Whether it gives rights in its namespace.
fn gives_rights(kind: &Kind) -> bool {
    kind.group == "rbac.authorization.k8s.io" && matches!(kind.full_name(), "Role" | "RoleBinding")
}

/// Whether the very object was asked for.
fn is_named(restoring: &Restoring<'_>, item: &Item) -> bool {
    let (group, unit) = &item.unit;
    restoring.how.selection.names_unit(group, unit)
}

/// Where an object is written.
struct Place<'a> {
    kind: &'a Kind,
    namespace: Option<&'a str>,
    path: String,
    doing: String,
}

impl Place<'_> {
    /// Said of what the server does not take.
    fn refused(&self, answer: &Answer) -> Applied {
        Applied::failed(without_value(&answer.refusal(&self.doing).what))
    }
}

async fn write(
    restoring: &Restoring<'_>,
    item: &Item,
    kind: &Kind,
    mut wished: Value,
) -> Result<Applied> {
    let namespace = item.namespace.as_deref().filter(|_| kind.namespaced);
    let place = Place {
        kind,
        namespace,
        path: kind.path_of(namespace, object::name(&wished)),
        doing: format!("writing `{}`", item.name()),
    };
    let mut unsure = None;
    for _ in 0..CROSSED {
        let step = match restoring.api.find(&place.path).await? {
            None => make(restoring, item, &place, &mut wished).await?,
            Some(live) => update(restoring, item, &place, (&wished, &live), unsure.take()).await?,
        };
        match step {
            Step::Done(applied) => return Ok(*applied),
            Step::Again => {}
            Step::Unsure(outcome) => unsure = Some(outcome),
        }
    }
    Ok(Applied::failed(
        "others write it all the time, or the server does not answer".into(),
    ))
}

/// What came of a try.
enum Step {
    Done(Box<Applied>),
    /// Somebody was quicker: it is looked at again.
    Again,
    /// The answer was lost: this was done, if it is as wished when it is looked at again.
    Unsure(Outcome),
}

impl Step {
    fn done(applied: Applied) -> Self {
        Self::Done(Box::new(applied))
    }
}

/// Makes what is absent.
async fn make(
    restoring: &Restoring<'_>,
    item: &Item,
    place: &Place<'_>,
    wished: &mut Value,
) -> Result<Step> {
    if item.beside.kind == "PersistentVolume" {
        let elsewhere = "it is a volume of another cluster, and both would write into it; name it with --only to make it here";
        let is_elsewhere = !restoring.how.at_home && !is_named(restoring, item);
        let why = volumes::is_gone(&item.object).or(is_elsewhere.then_some(elsewhere));
        if let Some(why) = why {
            return Ok(Step::done(Applied::of(Outcome::Skipped(why.into()))));
        }
    }
    if !place.kind.has_status
        && let Some(status) = &item.beside.status
    {
        // Nobody else writes it: it is data as all else.
        wished["status"] = status.clone();
    }
    let (volume, said) = if item.beside.kind == "PersistentVolumeClaim" {
        restoring.before_claim(item, wished).await?
    } else {
        (None, Vec::new())
    };
    if restoring.dry {
        let mut would = would_create(restoring, place, wished).await?;
        would.warnings.extend(said);
        return Ok(Step::done(would));
    }
    let path = place.kind.path(place.namespace);
    let answer = match post(restoring, item, &path, wished).await {
        Err(error) if error.kind == ErrorKind::Unreachable => {
            return Ok(Step::Unsure(Outcome::Created));
        }
        other => other?,
    };
    match answer.status {
        409 if answer.reason() == "AlreadyExists" => return Ok(Step::Again),
        502..=504 => return Ok(Step::Unsure(Outcome::Created)),
        _ => {}
    }
    if answer.status >= 300 {
        return Ok(Step::done(place.refused(&answer)));
    }
    let mut applied = finished(restoring, item, (&place.path, Outcome::Created), answer).await?;
    applied.warnings.extend(said);
    if let Some(volume) = volume {
        let waited = restoring.wait_until_bound(&place.path, item, &volume);
        applied.warnings.extend(waited.await?);
    }
    Ok(Step::done(applied))
}

/// Makes it. A Service gets what the cluster had chosen for it, as long as nobody else has it: first all, then the addresses alone, then anything.
async fn post(
    restoring: &Restoring<'_>,
    item: &Item,
    path: &str,
    wished: &Value,
) -> Result<Answer> {
    for kept in with_chosen(restoring, item, wished) {
        let answer = send(restoring, &Method::POST, path, &kept).await?;
        // The server's word for a port of health checks that is taken is 500.
        if !matches!(answer.status, 422 | 500) {
            return Ok(answer);
        }
    }
    send(restoring, &Method::POST, path, wished).await
}

/// The wish with addresses and ports that the cluster had chosen. Elsewhere, and in another namespace beside the old one, they are somebody else's.
fn with_chosen(restoring: &Restoring<'_>, item: &Item, wished: &Value) -> Vec<Value> {
    let is_here = restoring.how.at_home && item.namespace == item.beside.namespace;
    if !is_here || item.beside.kind != "Service" {
        return Vec::new();
    }
    let with = |ports_too: bool| {
        let mut kept = wished.clone();
        for (pointer, value) in &item.beside.chosen {
            if ports_too || pointer.starts_with("/spec/clusterIP") {
                put_back(&mut kept, pointer, value.clone());
            }
        }
        kept
    };
    let mut all = vec![with(true), with(false)];
    all.dedup();
    all.retain(|kept| kept != wished);
    all
}

/// Writes what is there and differs. Nothing when it must be looked at again.
async fn update(
    restoring: &Restoring<'_>,
    item: &Item,
    place: &Place<'_>,
    (wished, live): (&Value, &Value),
    unsure: Option<Outcome>,
) -> Result<Step> {
    let (kind, path) = (place.kind, &place.path);
    let same = |outcome| Applied {
        uid: Some(object::uid(live).to_owned()),
        ..Applied::of(outcome)
    };
    let wanted = with_the_servers_own(restoring, place, wished, live);
    // A group's own properties change only when all of it was asked for.
    let is_part = item.beside.kind == "Namespace" && !restoring.is_whole(&item.unit.0);
    let is_same = is_part || alike(kind, &wanted, live);
    if let (true, Some(outcome)) = (is_same, unsure) {
        let answer = Answer::of(live.clone());
        return finished(restoring, item, (path, outcome), answer)
            .await
            .map(Step::done);
    }
    if is_same {
        return unchanged(restoring, item, place, live)
            .await
            .map(Step::done);
    }
    if item.beside.kind == "PersistentVolume"
        && let Some((namespace, claim)) = volumes::claim_of(live)
        && volumes::claim_of(live) != volumes::claim_of(wished)
    {
        let why = format!("it is there, and belongs to the claim `{namespace}/{claim}`");
        return Ok(Step::done(same(Outcome::Skipped(why))));
    }
    if text(live, &["metadata", "deletionTimestamp"]).is_some() {
        return Ok(Step::done(Applied::failed("it is being deleted".into())));
    }
    let is_named = is_named(restoring, item);
    if is_shared(kind) && !is_named {
        let why = "it is there and differs; others of the cluster may need it as it is: name it with --only to write it";
        return Ok(Step::done(same(Outcome::Skipped(why.into()))));
    }
    // The server itself says whether its defaults and admission make the two one.
    let strict = if restoring.dry {
        "&fieldValidation=Strict"
    } else {
        ""
    };
    let try_path = format!("{path}?dryRun=All{strict}");
    let tried = send(restoring, &Method::PUT, &try_path, &wanted).await?;
    match tried.status {
        200..300 if without_versions(&tried.body) == without_versions(live) => {
            return unchanged(restoring, item, place, live)
                .await
                .map(Step::done);
        }
        200..300 if gives_rights(kind) && !is_named => {
            let why = "it is there and differs; what gives rights is changed only on request: name it with --only to write it";
            return Ok(Step::done(same(Outcome::Skipped(why.into()))));
        }
        200..300 if restoring.dry => {
            return Ok(Step::done(Applied {
                diff: diff::lines(kind, live, &tried.body),
                ..same(Outcome::Updated)
            }));
        }
        200..300 => {}
        409 => return Ok(Step::Again),
        422 if restoring.how.recreate && may_be_recreated(item) => {
            let anew = recreate(restoring, item, place, (live, wished)).await?;
            return Ok(Step::done(anew));
        }
        422 => return Ok(Step::done(same(Outcome::Conflict(immutable(&tried))))),
        _ => return Ok(Step::done(place.refused(&tried))),
    }
    if !wakes_up(kind, &wanted, live) {
        return put(restoring, item, place, (&wanted, live)).await;
    }
    match holding::missed_nothing(restoring.cx, &restoring.api, path).await {
        Ok(()) => {}
        Err(error) if error.kind == ErrorKind::Denied => {
            let why = "it is suspended there, and would start at once what it missed meanwhile: its last time cannot be written";
            return Ok(Step::done(same(Outcome::Conflict(why.into()))));
        }
        Err(error) => return Err(error),
    }
    // That changed its version.
    let Some(live) = restoring.api.find(path).await? else {
        return Ok(Step::Again);
    };
    let wanted = with_the_servers_own(restoring, place, wished, &live);
    put(restoring, item, place, (&wanted, &live)).await
}

/// Nothing is to be written but, where a run was killed before it, who owned the fields.
async fn unchanged(
    restoring: &Restoring<'_>,
    item: &Item,
    place: &Place<'_>,
    live: &Value,
) -> Result<Applied> {
    let mut applied = Applied {
        uid: Some(object::uid(live).to_owned()),
        ..Applied::of(Outcome::Unchanged)
    };
    let owners = live["metadata"]["managedFields"].as_array();
    let is_ours = |entry: &Value| text(entry, &["manager"]) == Some(MANAGER);
    if !restoring.dry && owners.is_some_and(|owners| owners.iter().any(is_ours)) {
        let (name, owners) = (item.name(), &item.beside.managed_fields);
        let said = put_owners_of_fields_back(restoring, &place.path, &name, owners).await?;
        applied.warnings.extend(said);
    }
    Ok(applied)
}

/// Writes it whole.
async fn put(
    restoring: &Restoring<'_>,
    item: &Item,
    place: &Place<'_>,
    (wanted, live): (&Value, &Value),
) -> Result<Step> {
    let answer = match send(restoring, &Method::PUT, &place.path, wanted).await {
        Err(error) if error.kind == ErrorKind::Unreachable => {
            return Ok(Step::Unsure(Outcome::Updated));
        }
        other => other?,
    };
    match answer.status {
        409 => Ok(Step::Again),
        502..=504 => Ok(Step::Unsure(Outcome::Updated)),
        200..300 => {
            let updated = (&*place.path, Outcome::Updated);
            finished(restoring, item, updated, answer)
                .await
                .map(Step::done)
        }
        422 => Ok(Step::done(Applied {
            uid: Some(object::uid(live).to_owned()),
            ..Applied::of(Outcome::Conflict(immutable(&answer)))
        })),
        _ => Ok(Step::done(place.refused(&answer))),
    }
}

/// What the server says of an object that is not there.
async fn would_create(
    restoring: &Restoring<'_>,
    place: &Place<'_>,
    wished: &Value,
) -> Result<Applied> {
    let (kind, namespace) = (place.kind, place.namespace);
    let path = format!("{}?dryRun=All&fieldValidation=Strict", kind.path(namespace));
    let answer = send(restoring, &Method::POST, &path, wished).await?;
    let no_namespace =
        answer.status == 404 && text(&answer.body, &["details", "kind"]) == Some("namespaces");
    Ok(match answer.status {
        200..300 => Applied {
            warnings: answer.warnings,
            ..Applied::of(Outcome::Created)
        },
        _ if no_namespace => Applied {
            note: Some("not asked of the server: its namespace is not there yet"),
            ..Applied::of(Outcome::Created)
        },
        _ => Applied::failed(without_value(&answer.message())),
    })
}

/// Whether a `CronJob` that is suspended would run again.
fn wakes_up(kind: &Kind, wanted: &Value, live: &Value) -> bool {
    let is_suspended = |object: &Value| object["spec"]["suspend"] == Value::Bool(true);
    kind.kind == "CronJob" && is_suspended(live) && !is_suspended(wanted)
}

/// Never what holds data or other objects.
fn may_be_recreated(item: &Item) -> bool {
    !matches!(
        item.beside.kind.as_str(),
        "PersistentVolumeClaim"
            | "PersistentVolume"
            | "Namespace"
            | "CustomResourceDefinition"
            | "StorageClass"
    )
}

/// Deletes the very object that was looked at, waits until it is gone, and makes it anew.
async fn recreate(
    restoring: &Restoring<'_>,
    item: &Item,
    place: &Place<'_>,
    (live, wished): (&Value, &Value),
) -> Result<Applied> {
    let (kind, namespace) = (place.kind, place.namespace);
    if restoring.dry {
        return Ok(Applied::of(Outcome::Recreated));
    }
    let api = &restoring.api;
    let path = &place.path;
    // What the server would not take is not made way for.
    let tried = format!("{}?dryRun=All", kind.path(namespace));
    let tried = send(restoring, &Method::POST, &tried, wished).await?;
    if tried.status != 409 && tried.status >= 300 {
        return Ok(Applied::of(Outcome::Conflict(immutable(&tried))));
    }
    // Pods of a StatefulSet live on, and are its again.
    let policy = if kind.kind == "StatefulSet" {
        "Orphan"
    } else {
        "Background"
    };
    let options =
        json!({ "propagationPolicy": policy, "preconditions": { "uid": object::uid(live) } });
    let gone = send(restoring, &Method::DELETE, path, &options).await?;
    if gone.status != 404 {
        gone.good(&format!("deleting `{}`", item.name()))?;
    }
    let began = Instant::now();
    while let Some(there) = api.find(path).await? {
        if object::uid(&there) != object::uid(live) {
            break;
        }
        if began.elapsed() > GOES {
            let finalizers = there["metadata"]["finalizers"].to_string();
            return Ok(Applied::failed(format!(
                "it was deleted to be made anew and does not go; its finalizers are {finalizers}"
            )));
        }
        restoring.cx.pause(LOOK_AGAIN).await?;
    }
    let answer = post(restoring, item, &kind.path(namespace), wished).await?;
    if answer.status < 300 {
        return finished(restoring, item, (path, Outcome::Recreated), answer).await;
    }
    Ok(Applied::failed(format!(
        "it was deleted and could not be made anew: {}",
        without_value(&answer.message())
    )))
}

async fn send(
    restoring: &Restoring<'_>,
    method: &Method,
    path: &str,
    body: &Value,
) -> Result<Answer> {
    restoring.api.send(method, path, Some(body)).await
}

/// Which field the server calls immutable or invalid.
fn immutable(answer: &Answer) -> String {
    let causes = answer.body["details"]["causes"].as_array();
    let fields: Vec<String> = causes
        .into_iter()
        .flatten()
        .filter_map(|cause| {
            let field = text(cause, &["field"])?;
            let message = text(cause, &["message"]).unwrap_or_default();
            Some(format!("{field}: {}", without_value(message)))
        })
        .collect();
    if fields.is_empty() {
        without_value(&answer.message())
    } else {
        fields.join("; ")
    }
}

/// The server repeats what it refuses, with all that is secret in it: only what it says of it is kept.
fn without_value(message: &str) -> String {
    let said = match message.find("Invalid value: ") {
        Some(at) => {
            let what = message[..at].trim_end_matches([' ', ':']);
            let why = message.rsplit(": ").next().unwrap_or_default();
            format!("{what} {why}")
        }
        None => message.to_owned(),
    };
    said.trim().chars().take(MESSAGE_CHARS).collect()
}

/// After each write: who owned which field, so that their next apply finds no conflict.
async fn finished(
    restoring: &Restoring<'_>,
    item: &Item,
    (path, outcome): (&str, Outcome),
    answer: Answer,
) -> Result<Applied> {
    let mut applied = Applied {
        uid: Some(object::uid(&answer.body).to_owned()),
        warnings: answer
            .warnings
            .iter()
            .map(|warning| format!("`{}`: {warning}", item.name()))
            .collect(),
        ..Applied::of(outcome)
    };
    let (name, owners) = (item.name(), &item.beside.managed_fields);
    let said = put_owners_of_fields_back(restoring, path, &name, owners);
    applied.warnings.extend(said.await?);
    Ok(applied)
}

/// Each write makes its writer an owner of fields: those that the archive has are written down again.
pub(super) async fn put_owners_of_fields_back(
    restoring: &Restoring<'_>,
    path: &str,
    name: &str,
    managed_fields: &[Value],
) -> Result<Option<String>> {
    if managed_fields.is_empty() {
        return Ok(None);
    }
    let owners = json!({ "metadata": { "managedFields": managed_fields } });
    let patched = restoring.api.patch(path, &owners).await?;
    Ok((patched.status >= 300).then(|| {
        format!(
            "`{name}`: who owned its fields is not written down: {}",
            patched.message()
        )
    }))
}

/// The wish with the version of what is there, and what only the server chooses.
fn with_the_servers_own(
    restoring: &Restoring<'_>,
    place: &Place<'_>,
    wished: &Value,
    live: &Value,
) -> Value {
    let (kind, namespace) = (place.kind, place.namespace);
    let mut wanted = wished.clone();
    wanted["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
    keep_of_controllers(&mut wanted, live);
    let (_, beside) = taken_apart(kind, live.clone());
    for (pointer, value) in beside.chosen {
        if !pointer.starts_with("/spec/ports/") {
            put_back(&mut wanted, &pointer, value);
        }
    }
    if let Some(status) = live.get("status") {
        // Where it is data as all else, a write without it would take it away.
        wanted["status"] = status.clone();
    }
    let scaled = (
        namespace.unwrap_or_default().to_owned(),
        kind.kind.clone(),
        object::name(live).to_owned(),
    );
    if restoring.scaled.contains(&scaled)
        && !restoring.how.hold
        && let Some(replicas) = live["spec"].get("replicas")
    {
        wanted["spec"]["replicas"] = replicas.clone();
    }
    match kind.full_name() {
        // A volume that is bound stays bound.
        "PersistentVolume" if volumes::claim_of(live) == volumes::claim_of(wished) => {
            wanted["spec"]["claimRef"] = live["spec"]["claimRef"].clone();
        }
        "CustomResourceDefinition" => keep_stored_versions(&mut wanted, live),
        // All of it is immutable but for what is requested.
        "PersistentVolumeClaim" => {
            let requests = wished["spec"]["resources"]["requests"].clone();
            wanted["spec"] = live["spec"].clone();
            if !requests.is_null() {
                wanted["spec"]["resources"]["requests"] = requests;
            }
        }
        "Secret" if text(wished, &["type"]) == Some("kubernetes.io/service-account-token") => {
            wanted["data"] = live["data"].clone();
        }
        "ServiceAccount" => {
            if let Some(secrets) = live.get("secrets") {
                wanted["secrets"] = secrets.clone();
            }
            if restoring.existing == Existing::Merge {
                merge_list(&mut wanted, live, "imagePullSecrets");
            }
        }
        "Namespace" => wanted["spec"] = live["spec"].clone(),
        "Service" => keep_node_ports(&mut wanted, live),
        "Pod" => fix::with_tokens(&mut wanted["spec"], &live["spec"]),
        _ => {}
    }
    wanted
}

/// Whether an annotation or label is written by controllers about the cluster that they are in.
fn is_of_controllers(name: &str) -> bool {
    const PREFIXES: [&str; 5] = [
        "deployment.kubernetes.io/",
        "pv.kubernetes.io/",
        "volume.kubernetes.io/",
        "volume.beta.kubernetes.io/",
        "kubernetes.io/legacy-token-",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || matches!(
            name,
            "kubernetes.io/service-account.uid" | "kubernetes.io/metadata.name"
        )
}

/// What controllers wrote of what is there stays as it is.
fn keep_of_controllers(wanted: &mut Value, live: &Value) {
    for place in ["annotations", "labels"] {
        let theirs = live["metadata"][place].as_object();
        for (name, value) in theirs.into_iter().flatten() {
            if is_of_controllers(name) {
                wanted["metadata"][place][name] = value.clone();
            }
        }
    }
    let finalizers = live["metadata"]["finalizers"].as_array();
    for finalizer in finalizers.into_iter().flatten() {
        if !finalizer.as_str().is_some_and(fix::is_built_in_finalizer) {
            continue;
        }
        if !wanted["metadata"]["finalizers"].is_array() {
            wanted["metadata"]["finalizers"] = json!([]);
        }
        if let Some(list) = wanted["metadata"]["finalizers"].as_array_mut()
            && !list.contains(finalizer)
        {
            list.push(finalizer.clone());
        }
    }
}

/// Objects may still be stored in a version that the wish does not have: it stays, without being written any more.
fn keep_stored_versions(wanted: &mut Value, live: &Value) {
    let stored = live["status"]["storedVersions"].as_array();
    for name in stored.into_iter().flatten() {
        let of = |definition: &Value| {
            let versions = definition["spec"]["versions"].as_array();
            versions
                .into_iter()
                .flatten()
                .find(|v| v["name"] == *name)
                .cloned()
        };
        if of(wanted).is_none()
            && let Some(mut version) = of(live)
            && let Some(versions) = wanted["spec"]["versions"].as_array_mut()
        {
            version["storage"] = false.into();
            versions.push(version);
        }
    }
}

/// Ports of the nodes that nobody wished stay with the port that they were given to, wherever it stands.
fn keep_node_ports(wanted: &mut Value, live: &Value) {
    let key =
        |port: &Value| [&port["name"], &port["port"], &port["protocol"]].map(Value::to_string);
    let ports = wanted
        .pointer_mut("/spec/ports")
        .and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        let theirs = live["spec"]["ports"].as_array();
        let theirs = theirs.into_iter().flatten().find(|p| key(p) == key(port));
        if let Some(number) = theirs.and_then(|p| p.get("nodePort"))
            && port.get("nodePort").is_none()
        {
            port["nodePort"] = number.clone();
        }
    }
}

/// What the archive has comes first, what is there besides stays.
fn merge_list(wanted: &mut Value, live: &Value, key: &str) {
    let mut list = wanted[key].as_array().cloned().unwrap_or_default();
    for entry in live[key].as_array().into_iter().flatten() {
        if !list.contains(entry) {
            list.push(entry.clone());
        }
    }
    if !list.is_empty() {
        wanted[key] = Value::Array(list);
    }
}

/// Where the wish has the parent of a value and not the value.
fn put_back(object: &mut Value, pointer: &str, value: Value) {
    let Some((parent, key)) = pointer.rsplit_once('/') else {
        return;
    };
    let key = key.replace("~1", "/").replace("~0", "~");
    let parent = object.pointer_mut(parent).and_then(Value::as_object_mut);
    if let Some(parent) = parent {
        parent.entry(key).or_insert(value);
    }
}

/// Whether what somebody wished is the same on both sides.
fn alike(kind: &Kind, wanted: &Value, live: &Value) -> bool {
    let parts = |value: &Value| {
        let (clean, beside) = taken_apart(kind, value.clone());
        (clean, beside.last_applied, beside.owner_references)
    };
    let (mut one, mut two) = (parts(wanted), parts(live));
    for clean in [&mut one.0, &mut two.0] {
        of_controllers(clean);
    }
    one == two
}

/// What controllers write about the cluster that they are in is nobody's wish.
fn of_controllers(clean: &mut Value) {
    let Some(metadata) = clean.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    for key in ["annotations", "labels"] {
        let Some(Value::Object(map)) = metadata.get_mut(key) else {
            continue;
        };
        map.retain(|name, _| !is_of_controllers(name));
        if map.is_empty() {
            metadata.shift_remove(key);
        }
    }
    if let Some(Value::Array(finalizers)) = metadata.get_mut("finalizers") {
        finalizers.retain(|f| !f.as_str().is_some_and(|f| f.starts_with("kubernetes.io/")));
        if finalizers.is_empty() {
            metadata.shift_remove("finalizers");
        }
    }
}

/// The object without what changes with every write.
fn without_versions(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for key in ["managedFields", "resourceVersion", "generation"] {
            metadata.shift_remove(key);
        }
    }
    sorted(object)
}
