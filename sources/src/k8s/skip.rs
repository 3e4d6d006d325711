//! What is left out, and why: what a server or its controllers make again, what would run again, what describes this cluster's machines.

use crate::k8s::discovery::Kind;
use crate::k8s::object::{self, annotation, controller, label, text};
use serde_json::Value;

/// Kinds that are never of use in another cluster, unless they are named.
const KINDS: [(&str, &str, &str); 22] = [
    ("", "Event", "passes by itself"),
    ("events.k8s.io", "Event", "passes by itself"),
    ("coordination.k8s.io", "Lease", "passes by itself"),
    ("coordination.k8s.io", "LeaseCandidate", "passes by itself"),
    ("", "ComponentStatus", "is not stored"),
    ("", "Binding", "is not stored"),
    ("", "Node", "is a machine of this cluster"),
    ("storage.k8s.io", "CSINode", "is a machine of this cluster"),
    ("storage.k8s.io", "CSIStorageCapacity", "is measured"),
    (
        "storage.k8s.io",
        "VolumeAttachment",
        "is made by its controller",
    ),
    (
        "networking.k8s.io",
        "IPAddress",
        "is made by its controller",
    ),
    ("networking.k8s.io", "ServiceCIDR", "is this cluster's own"),
    (
        "certificates.k8s.io",
        "CertificateSigningRequest",
        "passes by itself",
    ),
    (
        "resource.k8s.io",
        "ResourceSlice",
        "is a machine of this cluster",
    ),
    ("metrics.k8s.io", "PodMetrics", "is measured"),
    ("metrics.k8s.io", "NodeMetrics", "is measured"),
    ("acme.cert-manager.io", "Order", "is made by its controller"),
    (
        "acme.cert-manager.io",
        "Challenge",
        "is made by its controller",
    ),
    (
        "cert-manager.io",
        "CertificateRequest",
        "is made by its controller",
    ),
    (
        "snapshot.storage.k8s.io",
        "VolumeSnapshot",
        "is a volume's, not an object's",
    ),
    (
        "snapshot.storage.k8s.io",
        "VolumeSnapshotContent",
        "is a volume's, not an object's",
    ),
    (
        "internal.apiserver.k8s.io",
        "StorageVersion",
        "is the server's own",
    ),
];

/// Why a kind is left out where no kinds are named.
pub fn kind(kind: &Kind) -> Option<&'static str> {
    KINDS
        .iter()
        .find(|(group, name, _)| *group == kind.group && *name == kind.kind)
        .map(|(_, _, why)| *why)
}

/// Why an object is left out.
pub fn object(kind: &Kind, object: &Value) -> Option<String> {
    if text(object, &["metadata", "deletionTimestamp"]).is_some() {
        return Some("it is being deleted".into());
    }
    if label(object, "bk/exclude") == Some("true") {
        return Some("its label `bk/exclude` says so".into());
    }
    if let Some(owner) = controller(object)
        && is_built_in(owner)
        && REMADE.contains(&kind.kind.as_str())
    {
        let owner_kind = text(owner, &["kind"]).unwrap_or_default();
        let name = text(owner, &["name"]).unwrap_or_default();
        return Some(format!("{owner_kind} `{name}` makes it again"));
    }
    by_kind(kind, object).map(str::to_owned)
}

/// Kinds that controllers of Kubernetes itself make.
const REMADE: [&str; 6] = [
    "Pod",
    "ReplicaSet",
    "ControllerRevision",
    "Job",
    "EndpointSlice",
    "Endpoints",
];

fn is_built_in(owner: &Value) -> bool {
    let version = text(owner, &["apiVersion"]).unwrap_or_default();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    matches!(group, "" | "apps" | "batch")
}

fn by_kind(kind: &Kind, object: &Value) -> Option<&'static str> {
    let name = object::name(object);
    match kind.full_name() {
        "ConfigMap" if name == "kube-root-ca.crt" => Some("every cluster has its own"),
        "ConfigMap" if name == crate::k8s::mark::NAME => Some("it is the mark of a restore"),
        "ConfigMap" if name == crate::k8s::standby::NAME => {
            Some("it is what a standby site remembers")
        }
        "ServiceAccount" if name == "default" && is_plain_account(object) => {
            Some("every namespace has one")
        }
        "Secret"
            if text(object, &["type"]) == Some("kubernetes.io/service-account-token")
                && is_of_controller(object, name) =>
        {
            Some("its controller made it")
        }
        "Endpoints" | "EndpointSlice" if is_controllers_slice(object) => {
            Some("its Service makes it again")
        }
        "Pod" if is_finished_pod(object) => Some("it is finished"),
        "Pod" if annotation(object, "kubernetes.io/config.mirror").is_some() => {
            Some("a machine's own file makes it")
        }
        "Job" if is_finished_job(object) => Some("it is finished, and would run again"),
        "APIService" if label(object, "kube-aggregator.kubernetes.io/automanaged").is_some() => {
            Some("the server makes it")
        }
        "ClusterRole" | "ClusterRoleBinding" | "Role" | "RoleBinding"
            if label(object, "kubernetes.io/bootstrapping") == Some("rbac-defaults") =>
        {
            Some("the server makes it")
        }
        "FlowSchema" | "PriorityLevelConfiguration"
            if annotation(object, "apf.kubernetes.io/autoupdate-spec").is_some() =>
        {
            Some("the server makes it")
        }
        "PriorityClass" if name.starts_with("system-") => Some("the server makes it"),
        "Certificate.cert-manager.io" if controller(object).is_some() => {
            Some("its Ingress makes it again")
        }
        _ => None,
    }
}

/// Controllers of old made one for each account, with five letters at its end.
fn is_of_controller(object: &Value, name: &str) -> bool {
    let account = annotation(object, "kubernetes.io/service-account.name");
    let prefix = format!("{}-token-", account.unwrap_or_default());
    name.strip_prefix(&prefix)
        .is_some_and(|rest| rest.len() == 5)
}

fn is_plain_account(object: &Value) -> bool {
    [
        "secrets",
        "imagePullSecrets",
        "automountServiceAccountToken",
    ]
    .iter()
    .all(|key| object.get(*key).is_none())
        && object["metadata"].get("annotations").is_none()
}

fn is_controllers_slice(object: &Value) -> bool {
    let by = label(object, "endpointslice.kubernetes.io/managed-by");
    by.is_some_and(|by| by.ends_with(".k8s.io"))
        || label(object, "endpointslice.kubernetes.io/skip-mirror").is_some()
        || annotation(object, "endpoints.kubernetes.io/last-change-trigger-time").is_some()
        || object::name(object) == "kubernetes"
}

fn is_finished_pod(object: &Value) -> bool {
    matches!(
        text(object, &["status", "phase"]),
        Some("Succeeded" | "Failed")
    )
}

/// Whether a Job has ended, well or not.
pub fn is_finished_job(object: &Value) -> bool {
    ["Complete", "Failed"]
        .iter()
        .any(|word| object::holds(object, word))
}
