//! A release of Helm is one thing: its Secrets come back together with the objects that belong to it, or none of them do.

use super::{Item, Restoring};
use crate::k8s::backup::{HELM, Pages};
use crate::k8s::object::{self, annotation, label, text};
use bk_core::error::{ErrorKind, Result};
use bk_core::source::Existing;
use std::collections::{BTreeMap, BTreeSet};

/// Releases by namespace of the target and name.
type Release = (String, String);

/// What the archive has of releases, and what the target has besides.
#[derive(Debug, Default)]
pub(super) struct Releases {
    /// Newest revision in the archive.
    archived: BTreeMap<Release, u64>,
    /// Newer ones that are there: Secrets by release.
    newer: BTreeMap<Release, Vec<(u64, String)>>,
    /// Those of which a Secret came back.
    touched: BTreeSet<Release>,
}

impl Releases {
    /// From the facts of the archive.
    pub fn of(facts: &serde_json::Value, target: impl Fn(&str) -> String) -> Self {
        let helm = facts.get("helm").and_then(serde_json::Value::as_object);
        let archived = helm.into_iter().flatten().filter_map(|(release, newest)| {
            let (namespace, name) = release.split_once('/')?;
            Some(((target(namespace), name.to_owned()), newest.as_u64()?))
        });
        Self {
            archived: archived.collect(),
            ..Self::default()
        }
    }

    /// The release that an object belongs to.
    fn release_of(item: &Item) -> Option<Release> {
        let namespace = item.namespace.clone()?;
        let name = if text(&item.object, &["type"]) == Some(HELM) {
            label(&item.object, "name")
        } else {
            annotation(&item.object, "meta.helm.sh/release-name")
        };
        Some((namespace, name?.to_owned()))
    }

    /// Why an object is left as it is: its release is newer than the archive.
    pub fn conflict(&self, existing: Existing, item: &Item) -> Option<String> {
        let release = Self::release_of(item)?;
        let newer = self.newer.get(&release)?;
        if existing == Existing::Replace {
            return None;
        }
        let newest = newer.iter().map(|(revision, _)| *revision).max()?;
        Some(format!(
            "Helm release `{}` is at revision {newest} there, and at {} in the archive; --existing replace takes it back",
            release.1, self.archived[&release]
        ))
    }

    /// An object that was dealt with.
    pub fn touch(&mut self, item: &Item) {
        if text(&item.object, &["type"]) == Some(HELM) {
            self.touched.extend(Self::release_of(item));
        }
    }
}

impl Restoring<'_> {
    /// Finds revisions in a namespace that are newer than the archive's.
    pub(super) async fn find_newer_releases(&mut self, namespace: &str) -> Result<()> {
        if !self.releases.archived.keys().any(|(n, _)| n == namespace) {
            return Ok(());
        }
        let Some(kind) = self.kinds.of("v1", "Secret") else {
            return Ok(());
        };
        let mut pages = Pages::of(kind, Some(namespace), Some("owner=helm"));
        let mut secrets = Vec::new();
        loop {
            match pages.next(&self.api).await {
                // Names and labels are enough: each may have a MiB.
                Ok(Some(page)) => {
                    secrets.extend(page.into_iter().map(|mut secret| secret["metadata"].take()));
                }
                Ok(None) => break,
                Err(error) if matches!(error.kind, ErrorKind::Denied) => {
                    self.tally.warnings.push(format!(
                        "newer revisions of Helm releases in `{namespace}` cannot be seen: {error}"
                    ));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        for metadata in secrets {
            let secret = &serde_json::json!({ "metadata": metadata });
            let (Some(name), Some(revision)) = (label(secret, "name"), label(secret, "version"))
            else {
                continue;
            };
            let release = (namespace.to_owned(), name.to_owned());
            let (Some(archived), Ok(revision)) =
                (self.releases.archived.get(&release), revision.parse())
            else {
                continue;
            };
            if revision > *archived {
                let name = object::name(secret).to_owned();
                self.releases
                    .newer
                    .entry(release)
                    .or_default()
                    .push((revision, name));
            }
        }
        Ok(())
    }

    /// `--existing replace` takes a release back: its newer revisions go.
    pub(super) async fn remove_newer_releases(&mut self) -> Result<()> {
        for (release, newer) in std::mem::take(&mut self.releases.newer) {
            if !self.releases.touched.contains(&release) {
                continue;
            }
            let (namespace, name) = &release;
            for (revision, secret) in newer {
                let what = format!("revision {revision} of the Helm release `{namespace}/{name}`");
                if self.dry {
                    self.lines.push(format!("removed    {what}"));
                    continue;
                }
                let path = format!("/api/v1/namespaces/{namespace}/secrets/{secret}");
                let gone = self.api.send(&http::Method::DELETE, &path, None).await?;
                if gone.status != 404 {
                    gone.good(&format!("removing {what}"))?;
                }
                self.tally
                    .warnings
                    .push(format!("{what} was removed: it is newer than the archive"));
            }
        }
        Ok(())
    }
}
