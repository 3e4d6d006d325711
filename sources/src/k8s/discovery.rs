//! Which kinds the server has: by aggregated discovery, which says too where an extension does not answer, or group by group on servers without it.

use crate::k8s::Wanted;
use crate::k8s::backup::Pages;
use crate::k8s::connection::Api;
use crate::k8s::object::{self, items, text};
use crate::percent::encoded;
use bk_core::error::{Error, ErrorKind, Result};
use serde_json::Value;
use std::collections::BTreeMap;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
/// Groups that Kubernetes itself has without a domain in their names.
const BUILT_IN: [&str; 5] = ["", "apps", "batch", "autoscaling", "policy"];

/// A kind that the server has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "the field's own words")]
pub struct Kind {
    /// Its group, empty for the core.
    pub group: String,
    /// The version that objects are read and written in.
    pub version: String,
    /// `Deployment`.
    pub kind: String,
    /// `deployments`.
    pub plural: String,
    /// Whether its objects lie in namespaces.
    pub namespaced: bool,
    /// All versions in which the server has it.
    pub served: Vec<String>,
    /// Whether its status is written by itself; where it is not, it is data as all else.
    pub has_status: bool,
    /// Whether a definition in the cluster makes it.
    defined: bool,
    verbs: Vec<String>,
    full_name: String,
}

impl Kind {
    fn new(group: &str, version: &str, kind: &str, plural: &str) -> Self {
        let is_built_in = BUILT_IN.contains(&group) || group.ends_with(".k8s.io");
        Self {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            namespaced: true,
            served: vec![version.to_owned()],
            has_status: is_built_in,
            defined: false,
            verbs: Vec::new(),
            full_name: if is_built_in {
                kind.to_owned()
            } else {
                format!("{kind}.{group}")
            },
        }
    }

    /// The kind of namespaces themselves.
    pub fn namespace() -> Self {
        Self {
            namespaced: false,
            ..Self::new("", "v1", "Namespace", "namespaces")
        }
    }

    /// `Deployment`, `Certificate.cert-manager.io`: the first part of a unit's name.
    pub fn full_name(&self) -> &str {
        &self.full_name
    }

    /// Whether a definition must be there before its objects.
    pub fn is_extension(&self) -> bool {
        self.defined || self.full_name.contains('.')
    }

    /// `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The folder of its objects: as `kubectl` names it.
    pub fn folder(&self) -> String {
        let kind = self.kind.to_lowercase();
        if self.group.is_empty() {
            kind
        } else {
            format!("{kind}.{}", self.group)
        }
    }

    /// The name of an object's unit.
    pub fn unit(&self, name: &str) -> String {
        format!("{}/{name}", self.full_name)
    }

    /// Whether its objects can be listed and made again.
    pub fn can_be_kept(&self) -> bool {
        ["list", "create", "get"]
            .iter()
            .all(|verb| self.verbs.iter().any(|v| v == verb))
    }

    /// Whether it is the core's Secret.
    pub fn is_secret(&self) -> bool {
        self.group.is_empty() && self.kind == "Secret"
    }

    /// Where its objects lie.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let base = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        match namespace {
            Some(namespace) if self.namespaced => {
                format!("{base}/namespaces/{namespace}/{}", self.plural)
            }
            _ => format!("{base}/{}", self.plural),
        }
    }

    /// Where one of them lies.
    pub fn path_of(&self, namespace: Option<&str>, name: &str) -> String {
        format!("{}/{}", self.path(namespace), encoded(name))
    }
}

/// All kinds of a server.
#[derive(Clone, Debug, Default)]
pub struct Kinds {
    all: Vec<Kind>,
    /// Versions of groups whose extension does not answer.
    pub stale: Vec<String>,
    /// Whether the account may not list definitions, so that it is not known in which version objects of extensions are stored.
    definitions_unread: bool,
}

impl Kinds {
    /// Asks the server.
    pub async fn discover(api: &Api) -> Result<Self> {
        let mut found = Self::default();
        for root in ["/api", "/apis"] {
            let answer = api.ask_as(root, AGGREGATED).await?;
            let list = answer.good(&format!("asking for kinds at `{root}`"))?;
            if text(&list, &["kind"]) == Some("APIGroupDiscoveryList") {
                items(&list).for_each(|group| found.take_group(group));
            } else {
                found.take_old(api, root, &list).await?;
            }
        }
        found.prefer_storage_versions(api).await?;
        found
            .all
            .sort_by(|a, b| (&a.group, &a.kind).cmp(&(&b.group, &b.kind)));
        Ok(found)
    }

    /// A group as aggregated discovery tells of it: the preferred version first.
    fn take_group(&mut self, group: &Value) {
        let name = object::name(group);
        let versions = group.get("versions").and_then(Value::as_array);
        for version in versions.into_iter().flatten() {
            let Some(word) = text(version, &["version"]) else {
                continue;
            };
            if text(version, &["freshness"]) == Some("Stale") {
                self.stale.push(format!("{word}.{name}"));
            }
            let resources = version.get("resources").and_then(Value::as_array);
            for resource in resources.into_iter().flatten() {
                let (Some(kind), Some(plural)) = (
                    text(resource, &["responseKind", "kind"]),
                    text(resource, &["resource"]),
                ) else {
                    continue;
                };
                self.add(Kind {
                    namespaced: text(resource, &["scope"]) == Some("Namespaced"),
                    has_status: resource["subresources"]
                        .as_array()
                        .is_some_and(|all| all.iter().any(|s| s["subresource"] == "status")),
                    verbs: words(resource),
                    ..Kind::new(name, word, kind, plural)
                });
            }
        }
    }

    /// A server without aggregated discovery: each group's preferred version is asked for. One that does not answer is named.
    async fn take_old(&mut self, api: &Api, root: &str, list: &Value) -> Result<()> {
        let mut versions = Vec::new();
        if root == "/api" {
            versions.push((String::new(), "v1".to_owned()));
        }
        let groups = list.get("groups").and_then(Value::as_array);
        for group in groups.into_iter().flatten() {
            let name = text(group, &["name"]).unwrap_or_default();
            let preferred = text(group, &["preferredVersion", "version"]);
            let all = group.get("versions").and_then(Value::as_array);
            let others = all
                .into_iter()
                .flatten()
                .filter_map(|v| text(v, &["version"]));
            let others = others.filter(|version| Some(*version) != preferred);
            for version in preferred.into_iter().chain(others) {
                versions.push((name.to_owned(), version.to_owned()));
            }
        }
        for (group, version) in versions {
            let path = if group.is_empty() {
                "/api/v1".to_owned()
            } else {
                format!("/apis/{group}/{version}")
            };
            let answer = match api.ask(&path).await {
                Ok(answer) if answer.status == 200 => answer,
                Err(error) if !is_of_one_group(api, &error).await => return Err(error),
                Ok(_) | Err(_) => {
                    self.stale.push(format!("{version}.{group}"));
                    continue;
                }
            };
            let resources = answer.body.get("resources").and_then(Value::as_array);
            for resource in resources.into_iter().flatten() {
                let (Some(kind), Some(plural)) =
                    (text(resource, &["kind"]), text(resource, &["name"]))
                else {
                    continue;
                };
                if plural.contains('/') {
                    continue;
                }
                let status = format!("{plural}/status");
                self.add(Kind {
                    has_status: answer.body["resources"]
                        .as_array()
                        .is_some_and(|all| all.iter().any(|r| r["name"] == *status)),
                    namespaced: resource.get("namespaced") == Some(&Value::Bool(true)),
                    verbs: words(resource),
                    ..Kind::new(&group, &version, kind, plural)
                });
            }
        }
        Ok(())
    }

    /// The first version of a kind is the preferred one.
    fn add(&mut self, kind: Kind) {
        let known = |k: &&mut Kind| k.group == kind.group && k.kind == kind.kind;
        match self.all.iter_mut().find(known) {
            Some(known) => known.served.push(kind.version),
            None => self.all.push(kind),
        }
    }

    /// Objects of extensions are read as they are stored: no conversion, nothing lost. Where definitions may not be read the preferred version stays.
    async fn prefer_storage_versions(&mut self, api: &Api) -> Result<()> {
        let Some(definitions) = self.of("apiextensions.k8s.io/v1", "CustomResourceDefinition")
        else {
            return Ok(());
        };
        let mut pages = Pages::of(definitions, None, None);
        let mut stored: BTreeMap<(String, String), String> = BTreeMap::new();
        loop {
            let page = match pages.next(api).await {
                Ok(Some(page)) => page,
                Ok(None) => break,
                Err(error) if error.kind == ErrorKind::Denied => {
                    self.definitions_unread = true;
                    break;
                }
                Err(error) => return Err(error),
            };
            for definition in &page {
                let (Some(group), Some(kind)) = (
                    text(definition, &["spec", "group"]),
                    text(definition, &["spec", "names", "kind"]),
                ) else {
                    continue;
                };
                let versions = definition["spec"]["versions"].as_array();
                let storage = versions.into_iter().flatten().find(|v| {
                    v["storage"] == Value::Bool(true) && v["served"] == Value::Bool(true)
                });
                if let Some(version) = storage.and_then(|v| text(v, &["name"])) {
                    stored.insert((group.to_owned(), kind.to_owned()), version.to_owned());
                }
            }
        }
        for kind in &mut self.all {
            if let Some(version) = stored.get(&(kind.group.clone(), kind.kind.clone())) {
                kind.version.clone_from(version);
                kind.defined = true;
            }
        }
        Ok(())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Kind> {
        self.all.iter()
    }

    /// The one of an object that says `apps/v1`, `Deployment`, in that very version.
    pub fn in_version(&self, api_version: &str, kind: &str) -> Option<Kind> {
        let known = self.of(api_version, kind)?;
        let version = api_version.rsplit('/').next()?;
        let is_served = known.served.iter().any(|served| served == version);
        is_served.then(|| Kind {
            version: version.to_owned(),
            ..known.clone()
        })
    }

    /// The one of an object that says `apps/v1`, `Deployment`, whatever version of it is served here.
    pub fn of(&self, api_version: &str, kind: &str) -> Option<&Kind> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        self.all.iter().find(|k| k.group == group && k.kind == kind)
    }

    /// Extensions that do not answer and may have something that is wanted.
    pub fn unanswered(&self, wanted: &Wanted) -> Vec<String> {
        let missed = self.stale.iter().filter(|name| is_missed(name, wanted));
        missed
            .map(|name| {
                format!("the extension `{name}` does not answer: its objects cannot be read")
            })
            .collect()
    }

    /// What a person should know of these kinds although nothing fails by it: extensions that do not answer and are nobody's loss, and that objects are
    /// read in another version than they are stored in.
    pub fn notes(&self, wanted: &Wanted, taken: &[&Kind]) -> Vec<String> {
        let others = self.stale.iter().filter(|name| !is_missed(name, wanted));
        let mut notes: Vec<String> = others
            .map(|name| format!("the extension `{name}` does not answer; nothing of it is wanted"))
            .collect();
        if self.definitions_unread && taken.iter().any(|kind| kind.is_extension()) {
            notes.push(
                "the account may not list customresourcedefinitions: objects of extensions are read in the version that the server prefers, which may not be the one that they are stored in".into(),
            );
        }
        notes
    }
}

/// Whether an extension that does not answer may have something that is wanted. What only measures is nobody's loss.
fn is_missed(name: &str, wanted: &Wanted) -> bool {
    let group = name.split_once('.').map_or("", |(_, group)| group);
    !name.ends_with("metrics.k8s.io") && wanted.may_take_group(group)
}

/// Whether what went wrong is the matter of one group, and the server answers all else.
async fn is_of_one_group(api: &Api, error: &Error) -> bool {
    match error.kind {
        ErrorKind::Cancelled | ErrorKind::Auth | ErrorKind::Settings | ErrorKind::Bug => false,
        _ => api.get("/version").await.is_ok(),
    }
}

fn words(resource: &Value) -> Vec<String> {
    let verbs = resource.get("verbs").and_then(Value::as_array);
    verbs
        .into_iter()
        .flatten()
        .filter_map(|verb| verb.as_str().map(str::to_owned))
        .collect()
}
