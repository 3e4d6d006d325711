//! What the objects of the selected namespaces need of the cluster: each with the reason why it is taken.

use crate::k8s::connection::Api;
use crate::k8s::discovery::{Kind, Kinds};
use crate::k8s::object::{self, text};
use crate::k8s::{backup, skip};
use bk_core::error::{Error, ErrorKind, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Objects of no namespace that are taken, by kind and name, with the reason.
#[derive(Default)]
pub struct Closure {
    wanted: BTreeMap<(String, String), String>,
    /// Groups of extensions that have objects here: all their definitions are taken.
    groups: BTreeMap<String, String>,
    accounts: BTreeSet<(String, String)>,
    namespaces: BTreeSet<String>,
    /// What could not be read: its needs are not known.
    pub unread: Vec<(String, Error)>,
}

/// Kinds whose objects name something of the cluster.
const SPEAKING: [&str; 13] = [
    "ServiceAccount",
    "RoleBinding",
    "PersistentVolumeClaim",
    "Ingress",
    "Pod",
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "Job",
    "CronJob",
    "Gateway",
    "ReplicationController",
];

impl Closure {
    /// Reads what speaks of the cluster, page by page.
    pub async fn of(api: &Api, kinds: &[&Kind], namespaces: &[String]) -> Result<Self> {
        let mut closure = Self {
            namespaces: namespaces.iter().cloned().collect(),
            ..Self::default()
        };
        for kind in kinds.iter().filter(|kind| kind.namespaced) {
            if !kind.is_extension() && !SPEAKING.contains(&kind.kind.as_str()) {
                continue;
            }
            for namespace in namespaces {
                let mut pages = backup::Pages::of(kind, Some(namespace), None);
                loop {
                    let page = match pages.next(api).await {
                        Ok(Some(page)) => page,
                        Ok(None) => break,
                        Err(error) if error.kind == ErrorKind::Cancelled => return Err(error),
                        Err(error) => {
                            let what = format!("needs of {namespace}/{}", kind.full_name());
                            closure.unread.push((what, error));
                            break;
                        }
                    };
                    for object in page.iter().filter(|o| skip::object(kind, o).is_none()) {
                        closure.listen(kind, namespace, object);
                    }
                }
            }
        }
        Ok(closure)
    }

    fn want(&mut self, kind: &str, name: Option<&str>, by: &str) {
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            self.wanted
                .entry((kind.to_owned(), name.to_owned()))
                .or_insert_with(|| by.to_owned());
        }
    }

    fn listen(&mut self, kind: &Kind, namespace: &str, object: &Value) {
        let by = format!("{namespace}/{}", kind.unit(object::name(object)));
        if kind.is_extension() {
            self.groups.entry(kind.group.clone()).or_insert(by.clone());
        }
        match kind.kind.as_str() {
            "ServiceAccount" => {
                let account = (namespace.to_owned(), object::name(object).to_owned());
                self.accounts.insert(account);
            }
            "RoleBinding" if text(object, &["roleRef", "kind"]) == Some("ClusterRole") => {
                self.want("ClusterRole", text(object, &["roleRef", "name"]), &by);
            }
            "PersistentVolumeClaim" => {
                let spec = |key| text(object, &["spec", key]);
                self.want("PersistentVolume", spec("volumeName"), &by);
                self.want("StorageClass", spec("storageClassName"), &by);
            }
            "Ingress" => self.want(
                "IngressClass",
                text(object, &["spec", "ingressClassName"]),
                &by,
            ),
            "Certificate"
                if text(object, &["spec", "issuerRef", "kind"]) == Some("ClusterIssuer") =>
            {
                self.want(
                    "ClusterIssuer",
                    text(object, &["spec", "issuerRef", "name"]),
                    &by,
                );
            }
            "VolumeSnapshot" => self.want(
                "VolumeSnapshotClass",
                text(object, &["spec", "volumeSnapshotClassName"]),
                &by,
            ),
            "Gateway" => self.want(
                "GatewayClass",
                text(object, &["spec", "gatewayClassName"]),
                &by,
            ),
            _ => {}
        }
        if let Some(issuer) = object::annotation(object, "cert-manager.io/cluster-issuer") {
            self.want("ClusterIssuer", Some(issuer), &by);
        }
        for place in [
            &["spec"][..],
            &["spec", "template", "spec"],
            &["spec", "jobTemplate", "spec", "template", "spec"],
        ] {
            let of = |key| {
                let mut keys = place.to_vec();
                keys.push(key);
                text(object, &keys).map(str::to_owned)
            };
            self.want("PriorityClass", of("priorityClassName").as_deref(), &by);
            self.want("RuntimeClass", of("runtimeClassName").as_deref(), &by);
        }
        let templates = object["spec"]["volumeClaimTemplates"].as_array();
        for template in templates.into_iter().flatten() {
            let class = text(template, &["spec", "storageClassName"]);
            self.want("StorageClass", class, &by);
        }
    }

    /// Why an object of the cluster is taken; nothing where it is not needed.
    pub fn why(&self, kind: &Kind, object: &Value) -> Option<String> {
        let name = object::name(object);
        if let Some(by) = self.wanted.get(&(kind.kind.clone(), name.to_owned())) {
            return Some(format!("{by} names it"));
        }
        match kind.full_name() {
            "CustomResourceDefinition" => {
                let group = text(object, &["spec", "group"])?;
                let by = self.groups.get(group)?;
                Some(format!("{by} is of its group"))
            }
            "ClusterRoleBinding" => self.bound_account(object),
            "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
                let hooks = object["webhooks"].as_array();
                let here = hooks.into_iter().flatten().find_map(|hook| {
                    self.is_here(text(hook, &["clientConfig", "service", "namespace"]))
                });
                here.map(|namespace| format!("its service lies in {namespace}"))
            }
            "APIService" => self
                .is_here(text(object, &["spec", "service", "namespace"]))
                .map(|namespace| format!("its service lies in {namespace}")),
            _ => None,
        }
    }

    /// Whether something names an object, which may not be there.
    pub fn names(&self, unit: &str) -> bool {
        unit.split_once('/').is_some_and(|(kind, name)| {
            let kind = kind.split('.').next().unwrap_or_default();
            let named = (kind.to_owned(), name.to_owned());
            self.wanted.contains_key(&named)
        })
    }

    fn is_here<'n>(&self, namespace: Option<&'n str>) -> Option<&'n str> {
        namespace.filter(|namespace| self.namespaces.contains(*namespace))
    }

    fn bound_account(&self, binding: &Value) -> Option<String> {
        let subjects = binding.get("subjects").and_then(Value::as_array);
        subjects.into_iter().flatten().find_map(|subject| {
            let namespace = text(subject, &["namespace"])?;
            let name = text(subject, &["name"])?;
            let is_account = text(subject, &["kind"]) == Some("ServiceAccount");
            let account = (namespace.to_owned(), name.to_owned());
            let named = is_account && self.accounts.contains(&account);
            // Every namespace has this one, so that it is not listed.
            let is_default = is_account && name == "default" && self.namespaces.contains(namespace);
            (named || is_default).then(|| format!("it binds {namespace}/{name}"))
        })
    }

    /// Roles that taken bindings speak of are taken too.
    pub fn learn(&mut self, kind: &Kind, object: &Value) {
        if kind.kind == "ClusterRoleBinding" {
            let by = format!("ClusterRoleBinding/{}", object::name(object));
            self.want("ClusterRole", text(object, &["roleRef", "name"]), &by);
        }
    }
}

/// Kinds of no namespace that a closure may hold, bindings before the roles that they name. By their groups: others have kinds of the same names.
pub fn kinds(all: &Kinds) -> Vec<&Kind> {
    const ORDER: [(&str, &str); 14] = [
        ("snapshot.storage.k8s.io", "VolumeSnapshotClass"),
        ("cert-manager.io", "ClusterIssuer"),
        ("scheduling.k8s.io", "PriorityClass"),
        ("node.k8s.io", "RuntimeClass"),
        ("storage.k8s.io", "StorageClass"),
        ("networking.k8s.io", "IngressClass"),
        ("gateway.networking.k8s.io", "GatewayClass"),
        ("apiextensions.k8s.io", "CustomResourceDefinition"),
        ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
        ("rbac.authorization.k8s.io", "ClusterRole"),
        ("", "PersistentVolume"),
        ("apiregistration.k8s.io", "APIService"),
        (
            "admissionregistration.k8s.io",
            "ValidatingWebhookConfiguration",
        ),
        (
            "admissionregistration.k8s.io",
            "MutatingWebhookConfiguration",
        ),
    ];
    ORDER
        .iter()
        .filter_map(|(group, name)| {
            all.iter()
                .find(|kind| kind.group == *group && kind.kind == *name && !kind.namespaced)
        })
        .filter(|kind| kind.can_be_kept())
        .collect()
}
