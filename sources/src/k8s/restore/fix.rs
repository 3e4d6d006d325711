//! What an object must become before it may be written into another cluster: no trace of the old one, owners linked anew.

use super::{Item, Restoring};
use crate::k8s::discovery::Kind;
use crate::k8s::object::{LAST_APPLIED, text};
use bk_core::error::Result;
use serde_json::{Map, Value};

/// Finalizers that controllers of Kubernetes itself set.
const FINALIZERS: [&str; 6] = [
    "kubernetes.io/pvc-protection",
    "kubernetes.io/pv-protection",
    "foregroundDeletion",
    "orphan",
    "service.kubernetes.io/load-balancer-cleanup",
    "snapshot.storage.kubernetes.io/",
];
/// Annotations that a controller writes about this cluster.
const ANNOTATIONS: [&str; 8] = [
    "pv.kubernetes.io/bind-completed",
    "pv.kubernetes.io/bound-by-controller",
    "pv.kubernetes.io/provisioned-by",
    "volume.kubernetes.io/storage-provisioner",
    "volume.beta.kubernetes.io/storage-provisioner",
    "volume.kubernetes.io/selected-node",
    "deployment.kubernetes.io/revision",
    "kubernetes.io/service-account.uid",
];

/// The object as it is wished in the target, and what could not be kept.
pub(super) async fn wished(
    restoring: &Restoring<'_>,
    item: &Item,
    kind: &Kind,
) -> Result<(Value, Vec<String>)> {
    let mut object = item.object.clone();
    let mut warnings = Vec::new();
    object["apiVersion"] = kind.api_version().into();
    let owners = owners(restoring, item, &mut warnings).await?;
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        if let Some(namespace) = &item.namespace {
            metadata.insert("namespace".into(), namespace.clone().into());
        }
        finalizers(metadata);
        annotations(metadata, item);
        if !owners.is_empty() {
            metadata.insert("ownerReferences".into(), Value::Array(owners));
        }
    }
    by_kind(restoring, item, &mut object);
    Ok((object, warnings))
}

fn finalizers(metadata: &mut Map<String, Value>) {
    let Some(Value::Array(finalizers)) = metadata.get_mut("finalizers") else {
        return;
    };
    finalizers.retain(|finalizer| {
        let word = finalizer.as_str().unwrap_or_default();
        !FINALIZERS.iter().any(|known| word.starts_with(known))
    });
    if finalizers.is_empty() {
        metadata.shift_remove("finalizers");
    }
}

fn annotations(metadata: &mut Map<String, Value>, item: &Item) {
    let mut annotations = match metadata.shift_remove("annotations") {
        Some(Value::Object(annotations)) => annotations,
        _ => Map::new(),
    };
    annotations.retain(|key, _| !ANNOTATIONS.contains(&key.as_str()));
    if let Some(applied) = &item.beside.last_applied {
        annotations.insert(LAST_APPLIED.into(), applied.clone().into());
    }
    if !annotations.is_empty() {
        metadata.insert("annotations".into(), Value::Object(annotations));
    }
}

/// An owner that is not found would let the object be deleted at once: its reference is dropped and named.
async fn owners(
    restoring: &Restoring<'_>,
    item: &Item,
    warnings: &mut Vec<String>,
) -> Result<Vec<Value>> {
    let mut linked = Vec::new();
    for owner in &item.beside.owner_references {
        let word = |key| text(owner, &[key]).unwrap_or_default();
        let mut uid = restoring.uids.get(word("uid")).cloned();
        if uid.is_none()
            && let Some(kind) = restoring.kinds.of(word("apiVersion"), word("kind"))
        {
            let path = kind.path_of(item.namespace.as_deref(), word("name"));
            let there = restoring.api.find(&path).await?;
            uid = there.map(|there| crate::k8s::object::uid(&there).to_owned());
        }
        match uid {
            Some(uid) => {
                let mut owner = owner.clone();
                owner["uid"] = uid.into();
                linked.push(owner);
            }
            None => warnings.push(format!(
                "`{}` has lost its owner {}/{}, which is not there",
                item.name(),
                word("kind"),
                word("name")
            )),
        }
    }
    Ok(linked)
}

fn by_kind(restoring: &Restoring<'_>, item: &Item, object: &mut Value) {
    match item.beside.kind.as_str() {
        "Namespace" => {
            let renamed = restoring.namespace(&item.beside.name);
            if renamed != item.beside.name {
                object["metadata"]["name"] = renamed.into();
            }
            if let Some(labels) = object
                .pointer_mut("/metadata/labels")
                .and_then(Value::as_object_mut)
            {
                // The server writes it.
                labels.shift_remove("kubernetes.io/metadata.name");
            }
            if let Some(object) = object.as_object_mut() {
                object.shift_remove("spec");
            }
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            let subjects = object.get_mut("subjects").and_then(Value::as_array_mut);
            for subject in subjects.into_iter().flatten() {
                if let Some(namespace) = text(subject, &["namespace"]) {
                    subject["namespace"] = restoring.namespace(namespace).into();
                }
            }
        }
        "PersistentVolume" => {
            if let Some(claim) = object
                .pointer_mut("/spec/claimRef")
                .and_then(Value::as_object_mut)
            {
                // Name and namespace stay, or another claim would take the volume.
                claim.shift_remove("uid");
                claim.shift_remove("resourceVersion");
                let namespace = claim.get("namespace").and_then(Value::as_str);
                if let Some(namespace) = namespace.map(|n| restoring.namespace(n)) {
                    claim.insert("namespace".into(), namespace.into());
                }
            }
        }
        "ServiceAccount" => {
            if let Some(object) = object.as_object_mut() {
                object.shift_remove("secrets");
            }
        }
        "Secret" if text(object, &["type"]) == Some("kubernetes.io/service-account-token") => {
            if let Some(object) = object.as_object_mut() {
                // The target signs its own.
                object.shift_remove("data");
            }
        }
        "Pod" => {
            if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
                for key in [
                    "nodeName",
                    "priority",
                    "preemptionPolicy",
                    "enableServiceLinks",
                ] {
                    spec.shift_remove(key);
                }
            }
        }
        _ => {}
    }
}
