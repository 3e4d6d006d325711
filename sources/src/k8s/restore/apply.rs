//! One object: made where it is absent, left alone where nothing differs, else written whole with what the server owns taken from it.

use super::{Item, Restoring, fix};
use crate::k8s::connection::Answer;
use crate::k8s::discovery::Kind;
use crate::k8s::object::{self, sorted, taken_apart, text};
use bk_core::error::{ErrorKind, Result};
use http::Method;
use serde_json::{Value, json};

/// How often a write is repeated that another one crossed.
const CROSSED: usize = 5;
/// Kinds of no namespace that others of the cluster may need: made where they are absent, changed only when they are named.
const SHARED: [&str; 9] = [
    "CustomResourceDefinition",
    "ClusterRole",
    "ClusterRoleBinding",
    "StorageClass",
    "PriorityClass",
    "IngressClass",
    "RuntimeClass",
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
];

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Created,
    Updated,
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
        }
    }
}

/// Puts one object back.
pub(super) async fn apply(restoring: &Restoring<'_>, item: &Item) -> Result<Applied> {
    let Some(kind) = &item.kind else {
        return Ok(Applied::failed(format!(
            "the server has no kind {} of {}",
            item.beside.kind, item.beside.api_version
        )));
    };
    if item.beside.redacted {
        let why = "its values were left out of the archive (`secrets = \"redact\"`)";
        return Ok(Applied::of(Outcome::Skipped(why.into())));
    }
    if item.beside.own && !is_named(restoring, item) {
        let why = "bk made it; name it with --only to restore it";
        return Ok(Applied::of(Outcome::Skipped(why.into())));
    }
    let (wished, warnings) = fix::wished(restoring, item, kind).await?;
    let mut applied = write(restoring, item, kind, wished).await?;
    applied.warnings.extend(warnings);
    Ok(applied)
}

/// Whether the very object was asked for.
fn is_named(restoring: &Restoring<'_>, item: &Item) -> bool {
    restoring
        .how
        .selected
        .iter()
        .any(|s| s.group == item.unit.0 && s.unit.as_ref() == Some(&item.unit.1))
}

async fn write(
    restoring: &Restoring<'_>,
    item: &Item,
    kind: &Kind,
    wished: Value,
) -> Result<Applied> {
    let api = &restoring.api;
    let namespace = item.namespace.as_deref().filter(|_| kind.namespaced);
    let name = object::name(&wished).to_owned();
    let path = kind.path_of(namespace, &name);
    let doing = format!("writing `{}`", item.name());
    for _ in 0..CROSSED {
        let Some(live) = api.find(&path).await? else {
            let made = send(restoring, &Method::POST, &kind.path(namespace), &wished).await;
            match made {
                // Somebody was quicker, or an answer was lost: it is looked at.
                Ok(answer) if answer.status == 409 && answer.reason() == "AlreadyExists" => {
                    continue;
                }
                Err(error) if error.kind == ErrorKind::Unreachable => continue,
                Ok(answer) if answer.status < 300 => {
                    return finished(restoring, item, (&path, Outcome::Created), answer).await;
                }
                Ok(answer) => return Ok(Applied::failed(answer.refusal(&doing).what)),
                Err(error) => return Err(error),
            }
        };
        let uid = object::uid(&live).to_owned();
        let same = |outcome| Applied {
            uid: Some(uid.clone()),
            ..Applied::of(outcome)
        };
        let wanted = with_the_servers_own(kind, &wished, &live);
        if alike(kind, &wanted, &live) {
            return Ok(same(Outcome::Unchanged));
        }
        if text(&live, &["metadata", "deletionTimestamp"]).is_some() {
            return Ok(Applied::failed("it is being deleted".into()));
        }
        if SHARED.contains(&item.beside.kind.as_str()) && !is_named(restoring, item) {
            let why = "it is there and differs; others of the cluster may need it as it is: name it with --only to write it";
            return Ok(same(Outcome::Skipped(why.into())));
        }
        // The server itself says whether its defaults and admission make the two one.
        let tried = send(
            restoring,
            &Method::PUT,
            &format!("{path}?dryRun=All"),
            &wanted,
        )
        .await?;
        match tried.status {
            200..300 if without_versions(&tried.body) == without_versions(&live) => {
                return Ok(same(Outcome::Unchanged));
            }
            200..300 => {}
            409 => continue,
            422 => return Ok(same(Outcome::Conflict(immutable(&tried)))),
            _ => return Ok(Applied::failed(tried.refusal(&doing).what)),
        }
        let put = send(restoring, &Method::PUT, &path, &wanted).await;
        match put {
            Ok(answer) if answer.status == 409 => {}
            Err(error) if error.kind == ErrorKind::Unreachable => {}
            Ok(answer) if answer.status < 300 => {
                return finished(restoring, item, (&path, Outcome::Updated), answer).await;
            }
            Ok(answer) if answer.status == 422 => {
                return Ok(same(Outcome::Conflict(immutable(&answer))));
            }
            Ok(answer) => return Ok(Applied::failed(answer.refusal(&doing).what)),
            Err(error) => return Err(error),
        }
    }
    Ok(Applied::failed(
        "others write it all the time, or the server does not answer".into(),
    ))
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
            Some(format!("{field}: {message}"))
        })
        .collect();
    if fields.is_empty() {
        answer.message()
    } else {
        fields.join("; ")
    }
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
        outcome,
        warnings: answer
            .warnings
            .iter()
            .map(|warning| format!("`{}`: {warning}", item.name()))
            .collect(),
    };
    if item.beside.managed_fields.is_empty() {
        return Ok(applied);
    }
    let owners = json!({ "metadata": { "managedFields": item.beside.managed_fields } });
    let patched = restoring
        .api
        .send_as(
            &Method::PATCH,
            path,
            Some(&owners),
            "application/merge-patch+json",
        )
        .await?;
    if patched.status >= 300 {
        applied.warnings.push(format!(
            "`{}`: who owned its fields is not written down: {}",
            item.name(),
            patched.message()
        ));
    }
    Ok(applied)
}

/// The wish with the version of what is there, and what only the server chooses.
fn with_the_servers_own(kind: &Kind, wished: &Value, live: &Value) -> Value {
    let mut wanted = wished.clone();
    wanted["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
    let (_, beside) = taken_apart(kind, live.clone());
    for (pointer, value) in beside.chosen {
        put_back(&mut wanted, &pointer, value);
    }
    match kind.full_name() {
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
        "ServiceAccount" if live.get("secrets").is_some() => {
            wanted["secrets"] = live["secrets"].clone();
        }
        "Namespace" => wanted["spec"] = live["spec"].clone(),
        _ => {}
    }
    wanted
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
        map.retain(|name, _| {
            !name.starts_with("deployment.kubernetes.io/")
                && !name.starts_with("pv.kubernetes.io/")
                && !name.starts_with("volume.kubernetes.io/")
                && !name.starts_with("volume.beta.kubernetes.io/")
                && name != "kubernetes.io/metadata.name"
        });
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
