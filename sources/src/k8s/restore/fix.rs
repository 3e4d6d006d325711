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
/// By these Argo CD and Flux know their own, and delete what is not in their repository.
const GITOPS: [&str; 4] = [
    "argocd.argoproj.io/tracking-id",
    "argocd.argoproj.io/instance",
    "kustomize.toolkit.fluxcd.io/",
    "helm.toolkit.fluxcd.io/",
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

/// An object as it is wished in the target.
pub(super) struct Wished {
    pub object: Value,
    /// What could not be kept.
    pub warnings: Vec<String>,
    /// Whether an owner is not there, or not yet.
    pub lacks_owner: bool,
}

/// The object as it is wished in the target.
pub(super) async fn wished(restoring: &Restoring<'_>, item: &Item, kind: &Kind) -> Result<Wished> {
    let mut object = item.object.clone();
    let mut warnings = Vec::new();
    object["apiVersion"] = kind.api_version().into();
    let namespace = item.namespace.as_deref();
    let (owners, missing) = owners(restoring, namespace, &item.beside.owner_references).await?;
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
    mapped(restoring, &mut object);
    let kind = item.beside.kind.as_str();
    if kind == "CronJob" && restoring.how.standby {
        object["spec"]["suspend"] = true.into();
    }
    if let Some(namespace) = &item.namespace
        && restoring.how.hold
    {
        restoring.source.hold_wished(namespace, kind, &mut object);
    }
    warnings.extend(still_named(item, &mut object));
    Ok(Wished {
        object,
        warnings,
        lacks_owner: !missing.is_empty(),
    })
}

/// In a namespace with another name: who watches over the old one must not take it for its own, and what still speaks of that is named.
fn still_named(item: &Item, object: &mut Value) -> Option<String> {
    let old = item.beside.namespace.as_deref()?;
    if item.namespace.as_deref() == Some(old) {
        return None;
    }
    for place in ["annotations", "labels"] {
        let map = object["metadata"]
            .get_mut(place)
            .and_then(Value::as_object_mut);
        if let Some(map) = map {
            map.retain(|key, _| !GITOPS.iter().any(|prefix| key.starts_with(prefix)));
        }
    }
    let mut read = object.clone();
    if let Some(metadata) = read["metadata"].as_object_mut() {
        metadata.shift_remove("namespace");
        if let Some(annotations) = metadata
            .get_mut("annotations")
            .and_then(Value::as_object_mut)
        {
            annotations.shift_remove(LAST_APPLIED);
        }
    }
    let places = super::references::of(&read, old);
    (!places.is_empty()).then(|| {
        format!(
            "`{}` still speaks of the namespace `{old}`: {}",
            item.name(),
            places.join(", ")
        )
    })
}

/// Storage classes and images that have other names here.
fn mapped(restoring: &Restoring<'_>, object: &mut Value) {
    let settings = &restoring.source.settings;
    if settings.storage_classes.is_empty() && settings.images.is_empty() {
        return;
    }
    let classes = &settings.storage_classes;
    let class = |spec: &mut Value| {
        if let Some(other) = text(spec, &["storageClassName"]).and_then(|name| classes.get(name)) {
            spec["storageClassName"] = other.clone().into();
        }
    };
    if object.get("spec").is_some() {
        class(&mut object["spec"]);
    }
    let templates = object
        .pointer_mut("/spec/volumeClaimTemplates")
        .and_then(Value::as_array_mut);
    for template in templates.into_iter().flatten() {
        class(&mut template["spec"]);
    }
    for pods in [
        "/spec",
        "/spec/template/spec",
        "/spec/jobTemplate/spec/template/spec",
    ] {
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            let containers = object.pointer_mut(&format!("{pods}/{list}"));
            for container in containers
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                let image = text(container, &["image"]).unwrap_or_default();
                let other = settings.images.iter().find_map(|(from, to)| {
                    Some(format!("{to}{}", image.strip_prefix(from.as_str())?))
                });
                if let Some(other) = other {
                    container["image"] = other.into();
                }
            }
        }
    }
}

/// Whether Kubernetes itself waits for it.
pub(super) fn is_built_in_finalizer(word: &str) -> bool {
    FINALIZERS.iter().any(|known| word.starts_with(known))
}

fn finalizers(metadata: &mut Map<String, Value>) {
    let Some(Value::Array(finalizers)) = metadata.get_mut("finalizers") else {
        return;
    };
    finalizers.retain(|finalizer| !finalizer.as_str().is_some_and(is_built_in_finalizer));
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

/// References to owners as they are in the target, and the names of those that are not there: a reference to one of them would let the object be
/// deleted at once.
pub(super) async fn owners(
    restoring: &Restoring<'_>,
    namespace: Option<&str>,
    references: &[Value],
) -> Result<(Vec<Value>, Vec<String>)> {
    let (mut linked, mut missing) = (Vec::new(), Vec::new());
    for owner in references {
        let word = |key| text(owner, &[key]).unwrap_or_default();
        let mut uid = restoring.uids.get(word("uid")).cloned();
        if uid.is_none()
            && let Some(kind) = restoring.kinds.of(word("apiVersion"), word("kind"))
        {
            let path = kind.path_of(namespace, word("name"));
            let there = restoring.api.find(&path).await?;
            uid = there.map(|there| crate::k8s::object::uid(&there).to_owned());
        }
        match uid {
            Some(uid) => {
                let mut owner = owner.clone();
                owner["uid"] = uid.into();
                linked.push(owner);
            }
            None => missing.push(format!("{}/{}", word("kind"), word("name"))),
        }
    }
    Ok((linked, missing))
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
                renamed(restoring, subject, "namespace");
                let account = text(subject, &["name"]).and_then(|name| account(restoring, name));
                if let Some(account) = account {
                    subject["name"] = account.into();
                }
            }
        }
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            let hooks = object.get_mut("webhooks").and_then(Value::as_array_mut);
            for hook in hooks.into_iter().flatten() {
                if let Some(service) = hook.pointer_mut("/clientConfig/service") {
                    renamed(restoring, service, "namespace");
                }
            }
        }
        "APIService" => {
            if let Some(service) = object.pointer_mut("/spec/service") {
                renamed(restoring, service, "namespace");
            }
        }
        "CustomResourceDefinition" => {
            let place = "/spec/conversion/webhook/clientConfig/service";
            if let Some(service) = object.pointer_mut(place) {
                renamed(restoring, service, "namespace");
            }
            if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
                // A word of old definitions that the server takes no more.
                spec.shift_remove("preserveUnknownFields");
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
                for key in OF_POD {
                    spec.shift_remove(key);
                }
                without_tokens(spec);
            }
        }
        _ => {}
    }
}

fn renamed(restoring: &Restoring<'_>, of: &mut Value, key: &str) {
    if let Some(namespace) = text(of, &[key]) {
        of[key] = restoring.namespace(namespace).into();
    }
}

/// `system:serviceaccount:NAMESPACE:NAME` and `system:serviceaccounts:NAMESPACE`, where the namespace has another name.
fn account(restoring: &Restoring<'_>, name: &str) -> Option<String> {
    if let Some(namespace) = name.strip_prefix("system:serviceaccounts:") {
        return Some(format!(
            "system:serviceaccounts:{}",
            restoring.namespace(namespace)
        ));
    }
    let (namespace, account) = name
        .strip_prefix("system:serviceaccount:")?
        .split_once(':')?;
    Some(format!(
        "system:serviceaccount:{}:{account}",
        restoring.namespace(namespace)
    ))
}

const OF_NODES: [&str; 2] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];
/// What the server says of a pod by itself.
const OF_POD: [&str; 4] = [
    "nodeName",
    "priority",
    "preemptionPolicy",
    "enableServiceLinks",
];

/// What the server put into a pod that is there stays as it is.
pub(super) fn with_tokens(wanted: &mut Value, live: &Value) {
    for key in OF_POD {
        if let Some(value) = live.get(key) {
            wanted[key] = value.clone();
        }
    }
    let append = |list: &mut Value, theirs: &Value, is_servers: &dyn Fn(&Value) -> bool| {
        for entry in theirs.as_array().into_iter().flatten() {
            if !is_servers(entry) {
                continue;
            }
            if !list.is_array() {
                *list = Value::Array(Vec::new());
            }
            if let Some(list) = list.as_array_mut().filter(|list| !list.contains(entry)) {
                list.push(entry.clone());
            }
        }
    };
    append(&mut wanted["volumes"], &live["volumes"], &is_token);
    append(&mut wanted["tolerations"], &live["tolerations"], &|t| {
        is_of_nodes(t)
    });
    for list in ["containers", "initContainers"] {
        let containers = wanted.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let theirs = live[list].as_array();
            let theirs = theirs.into_iter().flatten();
            if let Some(theirs) = theirs.into_iter().find(|c| c["name"] == container["name"]) {
                let mounts = &theirs["volumeMounts"];
                append(&mut container["volumeMounts"], mounts, &is_token);
            }
        }
    }
}

fn is_token(value: &Value) -> bool {
    text(value, &["name"]).is_some_and(|name| name.starts_with("kube-api-access-"))
}

fn is_of_nodes(toleration: &Value) -> bool {
    let key = text(toleration, &["key"]).unwrap_or_default();
    OF_NODES.contains(&key) && toleration["tolerationSeconds"] == 300
}

/// What the server put into a pod: the token of its account, and how long it bears a sick machine.
fn without_tokens(spec: &mut Map<String, Value>) {
    if let Some(Value::Array(volumes)) = spec.get_mut("volumes") {
        volumes.retain(|volume| !is_token(volume));
    }
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if let Some(Value::Array(mounts)) = container.get_mut("volumeMounts") {
                mounts.retain(|mount| !is_token(mount));
            }
        }
    }
    if let Some(Value::Array(tolerations)) = spec.get_mut("tolerations") {
        tolerations.retain(|toleration| !is_of_nodes(toleration));
    }
}
