//! Kubernetes: the objects of namespaces, and what they need of the cluster, as clean YAML that `kubectl apply` takes.
//!
//! A namespace is a group, an object a unit: `Deployment/web`. What the server or its controllers make again is left out, with the reason. Objects
//! travel as the JSON that the server gave; what is no wish of anybody (status, uid, versions) lies in a member beside the YAML.

mod backup;
mod closure;
mod connection;
mod discovery;
mod mark;
mod object;
mod restore;
mod skip;
mod tiers;

use crate::k8s::connection::Api;
use crate::k8s::discovery::{Kind, Kinds};
use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::plugin::Plugin;
use bk_core::settings::Settings;
use bk_core::source::{Health, Input, RestoreOptions, Snapshot, SnapshotOptions, Source, Tally};
use globset::{Glob, GlobSet, GlobSetBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// Layout of the members; the restore of every older one stays.
pub const LAYOUT: u32 = 1;
/// The group of what belongs to no namespace.
pub const CLUSTER: &str = "cluster";
/// The cluster's own namespaces: taken only when they are named.
const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// Settings of the source `k8s`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct K8sSettings {
    /// A kubeconfig file; without it `KUBECONFIG`, `~/.kube/config`, or the account of the pod that this runs in.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// A context of that file; without it the current one.
    #[serde(default)]
    pub context: Option<String>,
    /// Namespaces, as globs; without it all but `kube-system`, `kube-public` and `kube-node-lease`.
    #[serde(default)]
    pub namespaces: Option<Vec<String>>,
    /// Kinds, as globs over `Deployment` or `Certificate.cert-manager.io`; without it all that can be listed and made again.
    #[serde(default)]
    pub kinds: Option<Vec<String>>,
    /// A label selector, as `kubectl -l` takes it.
    #[serde(default)]
    pub selector: Option<String>,
    /// What to leave out, as globs over `NAMESPACE/KIND/NAME`.
    #[serde(default)]
    pub exclude: Option<Vec<String>>,
    /// `include`: Secrets with their values, readable in the archive; `redact`: without their values, and not restored; `omit`: none. Must be said.
    pub secrets: Secrets,
    /// Objects of no namespace: `closure`, those that the namespaces' objects need; `all`; `none`.
    #[serde(default)]
    pub cluster: Cluster,
    /// Requests in a second, on average.
    #[serde(default = "default_requests")]
    pub requests_per_second: u16,
}

/// What becomes of Secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Secrets {
    /// With their values.
    Include,
    /// Names and keys alone.
    Redact,
    /// None.
    Omit,
}

/// Which objects of no namespace are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cluster {
    /// Those that the namespaces' objects need.
    #[default]
    Closure,
    /// All.
    All,
    /// None.
    None,
}

fn default_requests() -> u16 {
    100
}

/// The plugin.
pub fn plugin() -> Plugin<dyn Source> {
    Plugin {
        name: "k8s".into(),
        about: "Kubernetes: objects of namespaces and what they need, as YAML that kubectl takes"
            .into(),
        schema: Arc::new(|| schemars::schema_for!(K8sSettings)),
        build: Arc::new(|settings: Settings| Ok(Arc::new(K8s::new(&settings)?))),
    }
}

/// The source.
pub struct K8s {
    pub(crate) settings: K8sSettings,
    pub(crate) wanted: Wanted,
}

/// What the settings select.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    namespaces: Option<GlobSet>,
    kinds: Option<GlobSet>,
    exclude: GlobSet,
}

impl Wanted {
    /// Whether a namespace is taken.
    pub(crate) fn takes_namespace(&self, name: &str) -> bool {
        self.namespaces.as_ref().map_or_else(
            || !SYSTEM.contains(&name),
            |namespaces| namespaces.is_match(name),
        )
    }

    /// Whether a kind is taken.
    pub(crate) fn takes_kind(&self, kind: &Kind) -> bool {
        self.kinds
            .as_ref()
            .is_none_or(|kinds| kinds.is_match(&kind.kind) || kinds.is_match(kind.full_name()))
    }

    /// Whether an object is left out by its name.
    pub(crate) fn excludes(&self, group: &str, unit: &str) -> bool {
        self.exclude.is_match(format!("{group}/{unit}"))
    }
}

impl K8s {
    fn new(settings: &Settings) -> Result<Self> {
        if !settings.table.contains_key("secrets") {
            let hint = "\"include\": with their values, readable in the archive; \"redact\": without values, not restored; \"omit\": none";
            return Err(settings.fault("secrets", "`secrets` must be said", Some(hint)));
        }
        let mut parsed: K8sSettings = settings.parse()?;
        parsed.kubeconfig = parsed.kubeconfig.map(|path| settings.path(&path));
        if parsed.requests_per_second == 0 {
            return Err(settings.fault("requests_per_second", "is 0", Some("use 1 or more")));
        }
        let globs = |key: &str, list: &Option<Vec<String>>| {
            list.as_ref()
                .map(|list| globs(list).map_err(|why| settings.fault(key, why, None)))
                .transpose()
        };
        let wanted = Wanted {
            namespaces: globs("namespaces", &parsed.namespaces)?,
            kinds: globs("kinds", &parsed.kinds)?,
            exclude: globs("exclude", &parsed.exclude)?.unwrap_or_else(GlobSet::empty),
        };
        Ok(Self {
            settings: parsed,
            wanted,
        })
    }

    /// Namespaces that are taken, sorted. One that is named and not there is an error.
    pub(crate) async fn namespaces(&self, api: &Api) -> Result<Vec<String>> {
        let named = self.settings.namespaces.as_deref().unwrap_or_default();
        let is_literal = |name: &&String| !name.contains(['*', '?', '[', '{']);
        let mut found = Vec::new();
        let literal: Vec<&String> = named.iter().filter(is_literal).collect();
        for name in &literal {
            // An account of one namespace may read that one, and list none.
            let path = format!("/api/v1/namespaces/{name}");
            if api.find(&path).await?.is_none() {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("there is no namespace `{name}`"),
                )
                .hint("mend `namespaces`, or make it"));
            }
            found.push((*name).clone());
        }
        if literal.len() < named.len() || named.is_empty() {
            let list = api.get("/api/v1/namespaces").await?;
            for item in object::items(&list) {
                let name = object::name(item);
                if self.wanted.takes_namespace(name) {
                    found.push(name.to_owned());
                }
            }
        }
        found.sort();
        found.dedup();
        if found.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "no namespace is selected")
                .hint("mend `namespaces`"));
        }
        Ok(found)
    }

    /// Kinds that are taken. One that is named and not served is an error.
    pub(crate) fn kinds<'k>(&self, all: &'k Kinds) -> Result<Vec<&'k Kind>> {
        let taken: Vec<&Kind> = all
            .iter()
            .filter(|kind| kind.can_be_kept() && self.wanted.takes_kind(kind))
            .filter(|kind| self.wanted.kinds.is_some() || skip::kind(kind).is_none())
            .filter(|kind| self.settings.secrets != Secrets::Omit || !kind.is_secret())
            .collect();
        for name in self.settings.kinds.iter().flatten() {
            let glob = globs(std::slice::from_ref(name)).unwrap_or_else(|_| GlobSet::empty());
            let fits = |kind: &&Kind| glob.is_match(&kind.kind) || glob.is_match(kind.full_name());
            if !all.iter().any(|kind| fits(&kind)) {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("the server has no kind `{name}`"),
                )
                .hint("kubectl api-resources shows them; mend `kinds`"));
            }
        }
        Ok(taken)
    }
}

fn globs(list: &[String]) -> std::result::Result<GlobSet, String> {
    let mut set = GlobSetBuilder::new();
    for text in list {
        set.add(Glob::new(text).map_err(|e| e.to_string())?);
    }
    set.build().map_err(|e| e.to_string())
}

#[async_trait]
impl Source for K8s {
    async fn check(&self, cx: &Context) -> Result<Health> {
        let api = Api::connect(cx, &self.settings).await?;
        let server = api.server().await?;
        let kinds = Kinds::discover(&api).await?;
        let taken = self.kinds(&kinds)?;
        let mut warnings: Vec<String> = kinds.unanswered();
        let namespaces = match self.namespaces(&api).await {
            Ok(namespaces) => namespaces,
            // A backup fails by that; a restore makes it again.
            Err(error) if error.kind == ErrorKind::NotFound => {
                warnings.push(error.what);
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        for namespace in &namespaces {
            let missing = api.rights_missing(namespace, &taken).await?;
            if !missing.is_empty() {
                return Err(Error::new(
                    ErrorKind::Denied,
                    format!(
                        "the account may not list {} kinds in `{namespace}`",
                        missing.len()
                    ),
                )
                .hint(format!(
                    "give it a Role with\nrules:\n{}or name the `kinds` that are wanted",
                    missing.concat()
                )));
            }
        }
        if self.settings.secrets == Secrets::Include {
            warnings.push("Secrets are kept with their values, and archives are not encrypted: whoever reads one reads them".into());
        }
        let marks = mark::read(&api, &namespaces).await?;
        if !marks.is_empty() {
            warnings.push(bk_core::unfinished::refusal(&marks, &cx.instance).what);
        }
        Ok(Health {
            identity: server.identity.clone(),
            describe: format!(
                "Kubernetes {} at {}, namespaces {}",
                server.version,
                api.describe(),
                namespaces.join(", ")
            ),
            warnings,
        })
    }

    async fn snapshot(&self, cx: &Context, _how: &SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(backup::begin(self, cx).await?))
    }

    async fn restore(&self, cx: &Context, input: Input, how: &RestoreOptions) -> Result<Tally> {
        restore::restore(self, cx, input, how).await
    }
}
