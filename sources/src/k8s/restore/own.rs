//! What the runs of `bk` in a namespace use themselves: a restore that wrote its own credentials over could not end, nor begin again.

use super::Restoring;
use crate::k8s::backup::Pages;
use crate::k8s::object::{MANAGED_BY, text};
use bk_core::error::Result;
use serde_json::Value;

impl Restoring<'_> {
    /// Secrets, maps and claims that `bk`'s `CronJob`s in a namespace of the target name.
    pub(super) async fn find_own(&mut self, namespace: &str) -> Result<()> {
        let Some(kind) = self.kinds.of("batch/v1", "CronJob") else {
            return Ok(());
        };
        let selector = format!("{}={}", MANAGED_BY.0, MANAGED_BY.1);
        let mut pages = Pages::of(kind, Some(namespace), Some(&selector));
        let mut named = Vec::new();
        while let Some(page) = pages.readable(&self.api).await? {
            for job in page {
                let pod = &job["spec"]["jobTemplate"]["spec"]["template"]["spec"];
                find(pod, &mut named);
            }
        }
        let named = named.into_iter();
        let own = named.map(|(kind, name)| (namespace.to_owned(), kind.to_owned(), name));
        self.own.extend(own);
        Ok(())
    }
}

/// Secrets, maps and claims that a pod names, for volumes and for variables: the claim may hold the archives themselves.
fn find(value: &Value, found: &mut Vec<(&'static str, String)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let named = match key.as_str() {
                    // Of a volume, or of a part of a projected one.
                    "secret" => text(value, &["secretName"])
                        .or_else(|| text(value, &["name"]))
                        .map(|name| ("Secret", name)),
                    "persistentVolumeClaim" => {
                        text(value, &["claimName"]).map(|name| ("PersistentVolumeClaim", name))
                    }
                    "secretKeyRef" | "secretRef" => {
                        text(value, &["name"]).map(|name| ("Secret", name))
                    }
                    "configMap" | "configMapKeyRef" | "configMapRef" => {
                        text(value, &["name"]).map(|name| ("ConfigMap", name))
                    }
                    _ => None,
                };
                found.extend(named.map(|(kind, name)| (kind, name.to_owned())));
                find(value, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| find(value, found)),
        _ => {}
    }
}
