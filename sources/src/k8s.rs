//! Kubernetes: the objects of namespaces, and what they need of the cluster, as clean YAML that `kubectl apply` takes.
//!
//! A namespace is a group, an object a unit: `Deployment/web`. What the server or its controllers make again is left out, with the reason. Objects
//! travel as the JSON that the server gave; what is no wish of anybody (status, uid, versions) lies in a member beside the YAML.

mod backup;
mod closure;
mod connection;
mod discovery;
mod holding;
mod mark;
mod object;
mod outlook;
pub mod render;
mod restore;
mod skip;
mod standby;
mod tiers;

use crate::k8s::connection::Api;
use crate::k8s::discovery::{Kind, Kinds};
use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::plugin::Plugin;
use bk_core::settings::Settings;
use bk_core::source::{
    Health, Input, Memory, Preview, ReleaseOptions, Released, RestoreOptions, Snapshot,
    SnapshotOptions, Source, Tally,
};
use globset::{Glob, GlobSet, GlobSetBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

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
    /// Workloads without replicas while sources with `after` are restored, as globs over `NAMESPACE/Deployment/NAME`; `CronJobs` are suspended in any case.
    #[serde(default)]
    pub hold: Option<Vec<String>>,
    /// Workloads that are restarted after such a restore, as globs over the same.
    #[serde(default)]
    pub restart: Option<Vec<String>>,
    /// Hold also a `StatefulSet` whose claims, and so its data, are deleted when it has no replicas.
    #[serde(default)]
    pub hold_even_if_claims_go: bool,
    /// Storage classes that have another name where it is restored.
    #[serde(default)]
    pub storage_classes: BTreeMap<String, String>,
    /// Beginnings of images that are others where it is restored: `"registry.example.org/" = "mirror.example.net/"`.
    #[serde(default)]
    pub images: BTreeMap<String, String>,
    /// Which instance holds the data of a claim: `"shop/mysql" = "mysql"`. Of others it is said that their data is in no archive.
    #[serde(default)]
    pub data: BTreeMap<String, String>,
    /// Patience, in seconds, with workloads after a restore, before those that are not ready are named; 0 for none.
    #[serde(default = "default_ready")]
    pub ready_seconds: u32,
}

impl K8sSettings {
    fn to_reach(kubeconfig: Option<PathBuf>, context: Option<String>) -> Self {
        Self {
            kubeconfig,
            context,
            namespaces: None,
            kinds: None,
            selector: None,
            exclude: None,
            secrets: Secrets::Omit,
            cluster: Cluster::None,
            requests_per_second: default_requests(),
            hold: None,
            restart: None,
            hold_even_if_claims_go: false,
            storage_classes: BTreeMap::new(),
            images: BTreeMap::new(),
            data: BTreeMap::new(),
            ready_seconds: 0,
        }
    }
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

impl Secrets {
    fn word(self) -> &'static str {
        match self {
            Self::Include => "with their values, readable in the archive",
            Self::Redact => "without their values, and not restored",
            Self::Omit => "none",
        }
    }
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

fn default_ready() -> u32 {
    60
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

/// In a pod: where a standby site remembers what it has, whatever its sources are.
pub fn memory_of_pod() -> Option<K8s> {
    std::env::var_os("KUBERNETES_SERVICE_HOST")?;
    Some(K8s {
        settings: K8sSettings::to_reach(None, None),
        wanted: Wanted {
            namespaces: None,
            kinds: None,
            groups: None,
            exclude: GlobSet::empty(),
        },
        hold: GlobSet::empty(),
        restart: GlobSet::empty(),
        held: Mutex::default(),
    })
}

/// Makes an object in the cluster that a kubeconfig names, or the pod that this runs in.
pub async fn create(
    cx: &Context,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    object: &serde_json::Value,
) -> Result<()> {
    let settings = K8sSettings::to_reach(kubeconfig, context);
    let api = Api::connect(cx, &settings).await?;
    let word = |key| object::text(object, &[key]).unwrap_or_default();
    let kinds = Kinds::discover(&api).await?;
    let kind = kinds.of(word("apiVersion"), word("kind")).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("the server has no {}", word("kind")),
        )
    })?;
    let path = kind.path(object::text(object, &["metadata", "namespace"]));
    let made = api.send(&http::Method::POST, &path, Some(object)).await?;
    let doing = format!("making {} `{}`", word("kind"), object::name(object));
    made.good(&doing).map(drop)
}

/// The source.
pub struct K8s {
    pub(crate) settings: K8sSettings,
    pub(crate) wanted: Wanted,
    hold: GlobSet,
    restart: GlobSet,
    /// Namespaces in which this run holds workloads.
    held: Mutex<BTreeSet<String>>,
}

/// What the settings select.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    namespaces: Option<GlobSet>,
    kinds: Option<GlobSet>,
    /// Groups of kinds that are named with their group.
    groups: Option<GlobSet>,
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

    /// The same for one of which only the full name is known, `Certificate.cert-manager.io`.
    pub(crate) fn takes_kind_named(&self, full_name: &str) -> bool {
        let kind = full_name.split('.').next().unwrap_or_default();
        self.kinds
            .as_ref()
            .is_none_or(|kinds| kinds.is_match(kind) || kinds.is_match(full_name))
    }

    /// Whether anything of a group may be taken of which nothing is known, since it does not answer.
    pub(crate) fn may_take_group(&self, group: &str) -> bool {
        let any = format!("x.{group}");
        let is_left_out = self.excludes("x", &format!("{any}/x"));
        let named = self.kinds.as_ref().is_none_or(|kinds| {
            // A glob over kinds without a group may fit everything.
            kinds.is_match(&any) || kinds.is_match("x")
        });
        let by_group = self
            .groups
            .as_ref()
            .is_none_or(|groups| groups.is_match(group));
        !is_left_out && (named || self.kinds.is_some() && self.groups.is_some() && by_group)
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
            groups: globs("kinds", &groups_of(parsed.kinds.as_deref()))?,
            exclude: globs("exclude", &parsed.exclude)?.unwrap_or_else(GlobSet::empty),
        };
        let hold = globs("hold", &parsed.hold)?.unwrap_or_else(GlobSet::empty);
        let restart = globs("restart", &parsed.restart)?.unwrap_or_else(GlobSet::empty);
        Ok(Self {
            settings: parsed,
            wanted,
            hold,
            restart,
            held: Mutex::default(),
        })
    }

    /// Namespaces that are taken, sorted. One that is named and not there is an error.
    pub(crate) async fn namespaces(&self, api: &Api) -> Result<Vec<String>> {
        let (found, missing) = self.namespaces_there(api).await?;
        if let Some(name) = missing.first() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no namespace `{name}`"),
            )
            .hint("mend `namespaces`, or make it"));
        }
        if found.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "no namespace is selected")
                .hint("mend `namespaces`"));
        }
        Ok(found)
    }

    /// Those of them that are there, and those that are named and are not.
    pub(crate) async fn namespaces_there(&self, api: &Api) -> Result<(Vec<String>, Vec<String>)> {
        let named = self.settings.namespaces.as_deref().unwrap_or_default();
        let is_literal = |name: &&String| !name.contains(['*', '?', '[', '{']);
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        let literal: Vec<&String> = named.iter().filter(is_literal).collect();
        for name in &literal {
            // An account of one namespace may read that one, and list none.
            let path = format!("/api/v1/namespaces/{name}");
            let list = match api.find(&path).await? {
                Some(_) => &mut found,
                None => &mut missing,
            };
            list.push((*name).clone());
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
        Ok((found, missing))
    }

    /// Whether the selector fits anything of the namespaces. One that the server does not understand is a setting to mend.
    pub(crate) async fn selector_fits(
        &self,
        api: &Api,
        namespaces: &[String],
        kinds: &[&Kind],
    ) -> Result<bool> {
        let Some(selector) = &self.settings.selector else {
            return Ok(true);
        };
        let query = format!(
            "?limit=1&labelSelector={}",
            crate::percent::encoded(selector)
        );
        for kind in kinds.iter().filter(|kind| kind.namespaced) {
            for namespace in namespaces {
                let path = format!("{}{query}", kind.path(Some(namespace)));
                let answer = api.ask(&path).await?;
                match answer.status {
                    200 if object::items(&answer.body).next().is_some() => return Ok(true),
                    400 => return Err(answer.refusal("`selector` is not understood")),
                    _ => {}
                }
            }
        }
        Ok(false)
    }

    fn selector_fits_nothing(&self) -> Error {
        let selector = self.settings.selector.as_deref().unwrap_or_default();
        Error::new(
            ErrorKind::NotFound,
            format!("the selector `{selector}` matches nothing"),
        )
        .hint("kubectl get all -l SELECTOR shows what it matches; mend `selector`")
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

/// `cert-manager.io` of `Certificate.cert-manager.io`.
fn groups_of(kinds: Option<&[String]>) -> Option<Vec<String>> {
    let groups = kinds?.iter().filter_map(|kind| kind.split_once('.'));
    Some(groups.map(|(_, group)| group.to_owned()).collect())
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
        let mut warnings: Vec<String> = kinds.unanswered(&self.wanted);
        warnings.extend(kinds.notes(&self.wanted, &taken));
        if server.identity.is_empty() {
            warnings.push("the account may not read the namespace kube-system: which cluster this is stays unknown".into());
        }
        let namespaces = match self.namespaces(&api).await {
            Ok(namespaces) => namespaces,
            // A backup fails by that; a restore makes it again.
            Err(error) if error.kind == ErrorKind::NotFound => {
                warnings.push(error.what);
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        if !namespaces.is_empty() && !self.selector_fits(&api, &namespaces, &taken).await? {
            warnings.push(self.selector_fits_nothing().what);
        }
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
        let (marks, unread) = mark::read(&api, &namespaces).await?;
        warnings.extend(unread.filter(|_| self.settings.cluster != Cluster::None));
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

    async fn preview(&self, cx: &Context, input: Input, how: &RestoreOptions) -> Result<Preview> {
        restore::preview(self, cx, input, how).await
    }

    async fn outlook(&self, cx: &Context) -> Result<Vec<String>> {
        outlook::lines(self, cx).await
    }

    fn can_hold(&self) -> bool {
        true
    }

    async fn release(&self, cx: &Context, how: &ReleaseOptions) -> Result<Released> {
        holding::release(self, cx, how).await
    }

    fn memory(&self) -> Option<&dyn Memory> {
        Some(self)
    }
}
