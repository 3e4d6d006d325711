//! Claims and volumes: a volume that kept its data is bound again, and every claim that comes back empty is named.

use super::{Item, Restoring};
use crate::k8s::backup::Pages;
use crate::k8s::object::{annotation, text};
use bk_core::error::{ErrorKind, Result};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a claim may take to get a volume that is there.
const BOUND: Duration = Duration::from_mins(1);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Why a volume is not made: its data went with it.
pub(super) fn is_gone(wished: &Value) -> Option<&'static str> {
    let is_provisioned = annotation(wished, "pv.kubernetes.io/provisioned-by").is_some();
    let is_deleted = text(wished, &["spec", "persistentVolumeReclaimPolicy"]) == Some("Delete");
    (is_provisioned && is_deleted)
        .then_some("its data went with it (reclaim policy Delete); its claim gets a new one")
}

/// The claim that a volume names.
pub(super) fn claim_of(volume: &Value) -> Option<(String, String)> {
    let claim = &volume["spec"]["claimRef"];
    Some((
        text(claim, &["namespace"])?.to_owned(),
        text(claim, &["name"])?.to_owned(),
    ))
}

impl Restoring<'_> {
    /// The volume that kept the data of a claim that is not there. One whose controller has not noticed yet that the claim is gone still calls itself
    /// bound to it.
    async fn released_volume(&self, claim: &(String, String)) -> Result<Option<Value>> {
        let Some(kind) = self.kinds.of("v1", "PersistentVolume") else {
            return Ok(None);
        };
        let fits = |volume: &&Value| {
            // One that was freed already, and whose claim could not be made then, is free still.
            matches!(
                text(volume, &["status", "phase"]),
                Some("Released" | "Available" | "Bound")
            ) && text(volume, &["spec", "persistentVolumeReclaimPolicy"]) == Some("Retain")
                && claim_of(volume).as_ref() == Some(claim)
        };
        let mut pages = Pages::of(kind, None, None);
        while let Some(page) = pages.next(&self.api).await? {
            if let Some(volume) = page.iter().find(fits) {
                return Ok(Some(volume.clone()));
            }
        }
        Ok(None)
    }

    /// Before a claim is made that is absent: the volume that kept its data is given to it. Says which one, and what is to be said of it.
    pub(super) async fn before_claim(
        &self,
        item: &Item,
        wished: &mut Value,
    ) -> Result<(Option<String>, Vec<String>)> {
        let Some(namespace) = item.namespace.clone() else {
            return Ok((None, Vec::new()));
        };
        let claim = (namespace, item.beside.name.clone());
        let released = match self.released_volume(&claim).await {
            Err(error) if error.kind == ErrorKind::Denied => {
                let mut said = self.said_of_empty(item, wished, &claim);
                if !said.is_empty() && !self.volumes_unseen.swap(true, Ordering::Relaxed) {
                    said.push(format!(
                        "whether a volume kept the data of `{}`, or of another claim that is new, is not known: {}; let the account get, list and patch persistentvolumes, or look with kubectl get pv",
                        item.name(), error.what
                    ));
                }
                return Ok((None, said));
            }
            other => other?,
        };
        let Some(volume) = released else {
            return Ok((None, self.said_of_empty(item, wished, &claim)));
        };
        let name = crate::k8s::object::name(&volume).to_owned();
        let path = format!("/api/v1/persistentvolumes/{name}");
        let freed = json!({ "spec": { "claimRef": { "uid": null, "resourceVersion": null } } });
        if !self.how.at_home {
            let mut said = self.said_of_empty(item, wished, &claim);
            said.push(format!(
                "the volume `{name}` kept data of a claim of this name; to bind it instead, delete the new claim, then: kubectl patch pv {name} --type=merge -p '{freed}', and repeat"
            ));
            return Ok((None, said));
        }
        if !self.dry {
            let patched = self.api.patch(&path, &freed).await?;
            patched.good(&format!("giving the volume `{name}` back to its claim"))?;
        }
        wished["spec"]["volumeName"] = name.clone().into();
        Ok((Some(name), Vec::new()))
    }

    /// A claim whose volume comes back too is not empty; any other is new.
    fn said_of_empty(&self, item: &Item, wished: &Value, claim: &(String, String)) -> Vec<String> {
        if self.volumes.contains(claim) || text(wished, &["spec", "volumeName"]).is_some() {
            return Vec::new();
        }
        let size =
            text(wished, &["spec", "resources", "requests", "storage"]).unwrap_or("of no size");
        let archived = format!("{}/{}", item.unit.0, item.beside.name);
        let data = match self.source.settings.data.get(&archived) {
            Some(instance) => format!("`{instance}` has its data"),
            None => "no data of it in this archive".to_owned(),
        };
        vec![format!(
            "`{}` is new and empty, {size}; {data}",
            item.name()
        )]
    }

    /// A volume that was given back must be bound, or the claim waits for ever.
    pub(super) async fn wait_until_bound(
        &self,
        path: &str,
        item: &Item,
        volume: &str,
    ) -> Result<Option<String>> {
        let began = Instant::now();
        loop {
            let claim = self.api.find(path).await?;
            let phase = claim
                .as_ref()
                .and_then(|claim| text(claim, &["status", "phase"]));
            if phase == Some("Bound") {
                return Ok(None);
            }
            if began.elapsed() > BOUND {
                return Ok(Some(format!(
                    "`{}` was given its volume `{volume}` back and is not bound to it after {} s",
                    item.name(),
                    BOUND.as_secs()
                )));
            }
            self.cx.pause(LOOK_AGAIN).await?;
        }
    }
}
