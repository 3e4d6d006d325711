//! The order in which objects come back: what others need first, what may stop others last.

use crate::k8s::discovery::Kind;

/// Tiers, each done before the next begins.
pub const TIERS: u8 = 11;
/// Where namespaces belong.
pub const NAMESPACES: u8 = 2;
/// Where definitions of extensions belong.
pub const DEFINITIONS: u8 = 1;

/// The tier of a kind.
pub fn of(kind: &Kind) -> u8 {
    if kind.full_name().contains('.') && !kind.group.ends_with("cert-manager.io") {
        return extension(kind);
    }
    match kind.kind.as_str() {
        "PriorityClass"
        | "RuntimeClass"
        | "StorageClass"
        | "VolumeSnapshotClass"
        | "IngressClass"
        | "GatewayClass" => 0,
        "CustomResourceDefinition" => DEFINITIONS,
        "Namespace" => NAMESPACES,
        "ClusterRole" | "ClusterRoleBinding" | "Role" | "RoleBinding" | "ServiceAccount" => 3,
        "Secret" | "ConfigMap" | "LimitRange" => 4,
        "PersistentVolume" | "PersistentVolumeClaim" => 5,
        "NetworkPolicy" | "PodDisruptionBudget" | "Service" | "Endpoints" | "EndpointSlice" => 6,
        "Deployment"
        | "StatefulSet"
        | "DaemonSet"
        | "ReplicaSet"
        | "ReplicationController"
        | "Pod" => 8,
        "HorizontalPodAutoscaler" | "Ingress" | "Job" | "CronJob" => 9,
        "APIService"
        | "ResourceQuota"
        | "ValidatingAdmissionPolicy"
        | "ValidatingAdmissionPolicyBinding"
        | "MutatingAdmissionPolicy"
        | "MutatingAdmissionPolicyBinding"
        | "ValidatingWebhookConfiguration"
        | "MutatingWebhookConfiguration" => 10,
        _ => 7,
    }
}

/// Routes follow the services that they lead to; everything else of extensions comes before the workloads, whose operators read it.
fn extension(kind: &Kind) -> u8 {
    if kind.kind.ends_with("Route") || kind.kind == "Gateway" {
        9
    } else {
        7
    }
}
