//! Objects of Kubernetes for tests, and the round that most of them make.

use crate::binary::Home;
use crate::kubernetes::Kubernetes;
use serde_json::{Value, json};

/// A home that backs up these namespaces.
pub fn home(cluster: &Kubernetes, namespaces: &[&str], more: &str) -> Home {
    cluster.home(&format!("namespaces = {namespaces:?}\n{more}"))
}

/// Objects for `kubectl create`.
pub fn list(objects: &[Value]) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string()
}

/// A ConfigMap with this data.
pub fn config_map(name: &str, data: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data })
}

/// Backs a namespace up, deletes it, and restores it.
pub fn lost_and_restored(cluster: &Kubernetes, namespace: &str) -> Home {
    let home = home(cluster, &[namespace], "");
    home.bk(&["backup"]).ended(0);
    cluster.delete_namespace(namespace);
    home.bk(&["restore", "--yes"]).ended(0);
    home
}

/// A Deployment of one pod with this container.
pub fn deployment(name: &str, container: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "replicas": 1,
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": { "containers": [container] } },
        },
    })
}
