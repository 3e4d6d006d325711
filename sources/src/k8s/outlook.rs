//! What `bk check` says of a cluster: kinds and counts that a backup takes, claims whose data nobody has, keys that are missing, and who will fight
//! a restore.

use crate::k8s::backup::Pages;
use crate::k8s::connection::Api;
use crate::k8s::discovery::{Kind, Kinds};
use crate::k8s::object::{self, annotation, items, label};
use crate::k8s::{K8s, Wanted, skip};
use bk_core::context::Context;
use bk_core::error::{ErrorKind, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Owners that are named one by one.
const MAX_NAMED: usize = 5;

/// Lines for people.
pub async fn lines(source: &K8s, cx: &Context) -> Result<Vec<String>> {
    let api = Api::connect(cx, &source.settings).await?;
    let kinds = Kinds::discover(&api).await?;
    let taken = source.kinds(&kinds)?;
    let namespaces = match source.namespaces(&api).await {
        Err(error) if error.kind == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut lines = vec![format!("Secrets: {}", source.settings.secrets.word())];
    for namespace in &namespaces {
        lines.extend(of_namespace(source, &api, &taken, namespace).await?);
    }
    Ok(lines)
}

async fn of_namespace(
    source: &K8s,
    api: &Api,
    kinds: &[&Kind],
    namespace: &str,
) -> Result<Vec<String>> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut lines = Vec::new();
    let mut owners: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
    for kind in kinds.iter().filter(|kind| kind.namespaced) {
        let mut pages = Pages::of(kind, Some(namespace), source.settings.selector.as_deref());
        loop {
            // What may not be listed was said by name before.
            let page = match pages.readable(api).await {
                Ok(Some(page)) => page,
                Ok(None) => break,
                Err(error) => {
                    lines.push(format!(
                        "{namespace}: {} cannot be listed: {error}",
                        kind.full_name()
                    ));
                    break;
                }
            };
            for object in &page {
                let unit = kind.unit(object::name(object));
                if skip::object(kind, object).is_some() || source.wanted.excludes(namespace, &unit)
                {
                    continue;
                }
                *counts.entry(kind.full_name()).or_default() += 1;
                if let Some(owner) = gitops(object) {
                    owners.entry(owner).or_default().insert(unit.clone());
                }
                let claim = format!("{namespace}/{}", object::name(object));
                if kind.full_name() == "PersistentVolumeClaim"
                    && !source.settings.data.contains_key(&claim)
                {
                    lines.push(format!(
                        "{claim}: a claim whose data no source is said to have (`data = {{ \"{claim}\" = \"INSTANCE\" }}`)"
                    ));
                }
            }
        }
    }
    let total: u64 = counts.values().sum();
    let counted: Vec<String> = counts
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    lines.insert(
        0,
        format!("{namespace}: {total} objects: {}", counted.join(", ")),
    );
    for (owner, units) in owners {
        let named: Vec<&str> = units.iter().take(MAX_NAMED).map(String::as_str).collect();
        lines.push(format!(
            "{namespace}: {owner} owns {} objects and may undo their restore: {}",
            units.len(),
            named.join(", ")
        ));
    }
    if counts.contains_key("SealedSecret.bitnami.com") {
        lines.extend(sealing_keys(&source.wanted, api, namespace).await?);
    }
    Ok(lines)
}

/// Who keeps an object as a repository has it.
fn gitops(object: &serde_json::Value) -> Option<&'static str> {
    let argo = annotation(object, "argocd.argoproj.io/tracking-id").is_some()
        || label(object, "argocd.argoproj.io/instance").is_some();
    if argo {
        return Some("Argo CD");
    }
    let flux = [
        "kustomize.toolkit.fluxcd.io/name",
        "helm.toolkit.fluxcd.io/name",
    ];
    flux.iter()
        .any(|key| label(object, key).is_some())
        .then_some("Flux")
}

/// Sealed Secrets are of no use without the keys of their controller, which lie elsewhere.
pub async fn sealing_keys(wanted: &Wanted, api: &Api, namespace: &str) -> Result<Option<String>> {
    let missing = "they cannot be opened elsewhere without the controller's keys (Secrets with the label sealedsecrets.bitnami.com/sealed-secrets-key)";
    let path = "/api/v1/secrets?labelSelector=sealedsecrets.bitnami.com%2Fsealed-secrets-key";
    let answer = api.ask(path).await?;
    if answer.status != 200 {
        return Ok(Some(format!(
            "{namespace} has SealedSecrets: {missing}; this account cannot see whether they are taken"
        )));
    }
    let keys: BTreeSet<&str> = items(&answer.body)
        .filter_map(|key| object::text(key, &["metadata", "namespace"]))
        .collect();
    if keys
        .iter()
        .any(|namespace| wanted.takes_namespace(namespace))
    {
        return Ok(None);
    }
    let lie: Vec<&str> = keys.into_iter().collect();
    let place = if lie.is_empty() {
        "there are none here".to_owned()
    } else {
        format!(
            "they lie in {}, which is not among `namespaces`",
            lie.join(", ")
        )
    };
    Ok(Some(format!(
        "{namespace} has SealedSecrets: {missing}; {place}"
    )))
}
