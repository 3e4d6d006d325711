//! Reading objects: kind by kind in the order in which they come back, page by page, each as a unit of its namespace.

use crate::k8s::closure::{self, Closure};
use crate::k8s::connection::{Api, Server};
use crate::k8s::discovery::{Kind, Kinds};
use crate::k8s::object::{self, Beside, paths, taken_apart, text, yaml};
use crate::k8s::{
    CLUSTER, Cluster, K8s, LAYOUT, Secrets, Wanted, holding, mark, outlook, skip, tiers,
};
use crate::percent::encoded;
use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, bug};
use bk_core::source::{Counted, Facts, Lane, Meta, Output, PointInTime, Snapshot, Stage};
use bk_core::unfinished::{Unfinished, refusal};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Objects of a page. Those of configuration may have a MiB each.
const PAGE: usize = 100;
const PAGE_OF_LARGE: usize = 50;
/// The type of the Secrets in which Helm keeps its releases.
pub const HELM: &str = "helm.sh/release.v1";

/// Reads one list page by page.
pub struct Pages {
    path: String,
    query: String,
    token: Option<String>,
    ended: bool,
    /// The server had forgotten the state that the list began with: the rest is newer.
    pub weak: bool,
}

impl Pages {
    /// The objects of a kind.
    pub fn of(kind: &Kind, namespace: Option<&str>, selector: Option<&str>) -> Self {
        let large = matches!(kind.full_name(), "Secret" | "ConfigMap");
        let limit = if large { PAGE_OF_LARGE } else { PAGE };
        let selector = selector.map(|s| format!("&labelSelector={}", encoded(s)));
        Self {
            path: kind.path(namespace),
            query: format!("?limit={limit}{}", selector.unwrap_or_default()),
            token: None,
            ended: false,
            weak: false,
        }
    }

    /// The next objects, or nothing at the end. A list whose state the server has forgotten meanwhile goes on behind the last name that was read:
    /// nothing is left out or doubled, though what follows is of a later instant.
    pub async fn next(&mut self, api: &Api) -> Result<Option<Vec<Value>>> {
        while !self.ended {
            let token = self.token.as_ref();
            let token = token.map(|token| format!("&continue={}", encoded(token)));
            let path = format!("{}{}{}", self.path, self.query, token.unwrap_or_default());
            let answer = api.ask(&path).await?;
            if answer.status == 410 {
                let goes_on = text(&answer.body, &["metadata", "continue"]).map(str::to_owned);
                let Some(token) = goes_on.filter(|token| !token.is_empty()) else {
                    return Err(answer.refusal(&format!("listing `{}`", self.path)));
                };
                self.weak = true;
                self.token = Some(token);
                continue;
            }
            let mut list = answer.good(&format!("listing `{}`", self.path))?;
            let token = text(&list, &["metadata", "continue"]).filter(|t| !t.is_empty());
            self.token = token.map(str::to_owned);
            self.ended = self.token.is_none();
            let objects = match list.get_mut("items").map(Value::take) {
                Some(Value::Array(objects)) => objects,
                Some(Value::Null) => Vec::new(),
                _ => {
                    let what = format!("`{}` gives no list", self.path);
                    return Err(Error::new(ErrorKind::Plugin, what));
                }
            };
            return Ok(Some(objects));
        }
        Ok(None)
    }
}

impl Pages {
    /// The same; what the account may not list has no objects.
    pub async fn readable(&mut self, api: &Api) -> Result<Option<Vec<Value>>> {
        match self.next(api).await {
            Err(error) if error.kind == ErrorKind::Denied => Ok(None),
            other => other,
        }
    }
}

/// The objects of a cluster as they are now.
pub struct K8sSnapshot {
    api: Api,
    server: Server,
    kinds: Vec<Kind>,
    cluster_kinds: Vec<Kind>,
    stale: Vec<String>,
    /// All that did not answer, whether it is missed or not: of their objects a restore knows nothing.
    unanswered: Vec<String>,
    namespaces: Vec<String>,
    selector: Option<String>,
    secrets: Secrets,
    cluster: Cluster,
    wanted: Wanted,
    marks: Vec<Unfinished>,
    /// Group and unit of what failed since a mark names it.
    owed: BTreeSet<(String, String)>,
    at: PointInTime,
    instance: String,
    selection: Value,
    left_out: BTreeMap<String, u64>,
    releases: BTreeSet<String>,
    /// Namespaces that have `SealedSecrets`.
    sealed: BTreeSet<String>,
    /// Newest revision of each.
    newest_revisions: BTreeMap<String, u64>,
    warnings: Vec<String>,
}

/// Finds out what there is. Reading comes later.
pub async fn begin(source: &K8s, cx: &Context) -> Result<K8sSnapshot> {
    let api = Api::connect(cx, &source.settings).await?;
    let server = api.server().await?;
    let all = Kinds::discover(&api).await?;
    let namespaces = source.namespaces(&api).await?;
    let taken = source.kinds(&all)?;
    if !source.selector_fits(&api, &namespaces, &taken).await? {
        return Err(source.selector_fits_nothing());
    }
    let (marks, unread) = mark::read(&api, &namespaces).await?;
    let cluster_kinds = match source.settings.cluster {
        Cluster::None => Vec::new(),
        Cluster::Closure => closure::kinds(&all),
        Cluster::All => taken
            .iter()
            .copied()
            .filter(|k| !k.namespaced && k.kind != "Namespace")
            .collect(),
    };
    let takes_cluster = source.settings.cluster != Cluster::None;
    let mut warnings = all.notes(&source.wanted, &taken);
    warnings.extend(unread.filter(|_| takes_cluster));
    if source.settings.secrets == Secrets::Include {
        warnings.push(
            "Secrets are kept with their values, readable by whoever reads the archive".into(),
        );
    }
    let mut kinds: Vec<Kind> = taken
        .iter()
        .filter(|k| k.namespaced)
        .map(|k| (*k).clone())
        .collect();
    kinds.sort_by_key(|kind| (tiers::of(kind), kind.full_name().to_owned()));
    Ok(K8sSnapshot {
        stale: all.unanswered(&source.wanted),
        unanswered: all.stale.clone(),
        cluster_kinds: cluster_kinds.into_iter().cloned().collect(),
        kinds,
        api,
        server,
        namespaces,
        selector: source.settings.selector.clone(),
        secrets: source.settings.secrets,
        cluster: source.settings.cluster,
        wanted: source.wanted.clone(),
        marks,
        owed: BTreeSet::new(),
        at: PointInTime {
            instant: cx.clock.now(),
            consistency: "none".into(),
            position: None,
        },
        instance: cx.instance.to_string(),
        selection: json!({
            "namespaces": source.settings.namespaces, "kinds": source.settings.kinds, "selector": source.settings.selector,
            "exclude": source.settings.exclude, "secrets": source.settings.secrets, "cluster": source.settings.cluster,
        }),
        left_out: BTreeMap::new(),
        releases: BTreeSet::new(),
        sealed: BTreeSet::new(),
        newest_revisions: BTreeMap::new(),
        warnings,
    })
}

#[async_trait]
impl Snapshot for K8sSnapshot {
    fn at(&self) -> PointInTime {
        self.at.clone()
    }

    async fn write(&mut self, cx: &Context, stage: Stage, out: &Output) -> Result<()> {
        if stage != Stage::Schema {
            return Ok(());
        }
        let readable = self.refuse_marked(out).await?;
        self.name_stale(out).await?;
        let kinds = self.kinds.clone();
        let mut closure = match self.cluster {
            Cluster::Closure => {
                let kinds: Vec<&Kind> = kinds.iter().collect();
                Some(Closure::of(&self.api, &kinds, &readable).await?)
            }
            Cluster::All | Cluster::None => None,
        };
        if let Some(closure) = &mut closure {
            for (what, why) in std::mem::take(&mut closure.unread) {
                out.expect(CLUSTER, &what).await?;
                out.fail(CLUSTER, &what, &why).await?;
            }
        }
        // One lane: objects come back in the order in which they stand here.
        let mut lane = out.lane("objects").await?;
        let cluster = self.cluster_objects(out, &mut closure).await?;
        for tier in 0..tiers::TIERS {
            cx.check_cancelled()?;
            for (kind, object, why) in cluster.iter().filter(|(kind, ..)| tiers::of(kind) == tier) {
                self.write_object(out, &mut lane, CLUSTER, (kind, object.clone(), why.clone()))
                    .await?;
            }
            if tier == tiers::NAMESPACES {
                for namespace in &readable {
                    self.write_namespace(out, &mut lane, namespace).await?;
                }
            }
            for kind in kinds.iter().filter(|kind| tiers::of(kind) == tier) {
                for namespace in &readable {
                    self.write_kind(cx, out, &mut lane, kind, namespace).await?;
                }
            }
        }
        lane.close().await?;
        for namespace in std::mem::take(&mut self.sealed) {
            let said = outlook::sealing_keys(&self.wanted, &self.api, &namespace).await?;
            self.warnings.extend(said);
        }
        Ok(())
    }

    async fn close(self: Box<Self>, _cx: &Context) -> Result<Facts> {
        let mut notes: Vec<String> = self
            .left_out
            .iter()
            .map(|(why, count)| format!("left out: {count} {why}"))
            .collect();
        notes.extend(
            self.releases
                .iter()
                .map(|release| format!("Helm release {release}")),
        );
        Ok(Facts {
            layout: LAYOUT,
            selection: self.selection,
            more: json!({ "cluster": self.server.identity, "version": self.server.version, "namespaces": self.namespaces, "helm": self.newest_revisions, "unanswered": self.unanswered }),
            notes,
            warnings: self.warnings,
        })
    }
}

impl K8sSnapshot {
    /// What may be half restored fails by name: whole namespaces, and single units, whether they are there or not. Namespaces that are read are returned.
    async fn refuse_marked(&mut self, out: &Output) -> Result<Vec<String>> {
        let mut readable = Vec::new();
        for namespace in self.namespaces.clone() {
            if self.refuse(out, &namespace, "").await? {
                continue;
            }
            for unit in self.units_marked(&namespace) {
                self.refuse(out, &namespace, &unit).await?;
            }
            readable.push(namespace);
        }
        Ok(readable)
    }

    /// Fails a unit that a mark names, or the group (unit ""). Whether one does.
    async fn refuse(&mut self, out: &Output, group: &str, unit: &str) -> Result<bool> {
        let covers = |mark: &&Unfinished| mark.covers(group, unit);
        let covering: Vec<Unfinished> = self.marks.iter().filter(covers).cloned().collect();
        if covering.is_empty() {
            return Ok(false);
        }
        if self.owed.insert((group.to_owned(), unit.to_owned())) {
            out.expect(group, unit).await?;
            let why = refusal(&covering, &self.instance);
            out.fail(group, unit, &why).await?;
        }
        Ok(true)
    }

    /// Single units of a group that marks name and that are selected.
    fn units_marked(&self, group: &str) -> BTreeSet<String> {
        let of_it = self.marks.iter().flat_map(|mark| &mark.selected);
        let units = of_it
            .filter(|s| s.group == group)
            .filter_map(|s| s.unit.clone());
        units
            .filter(|unit| {
                let kind = unit.split('/').next().unwrap_or_default();
                let is_kept = self.secrets != Secrets::Omit || kind != "Secret";
                is_kept && self.wanted.takes_kind_named(kind) && !self.wanted.excludes(group, unit)
            })
            .collect()
    }

    fn is_owed(&self, group: &str, unit: &str) -> bool {
        self.owed.contains(&(group.to_owned(), unit.to_owned()))
    }

    /// What an extension that does not answer has is missing: the archive says so.
    async fn name_stale(&self, out: &Output) -> Result<()> {
        for what in &self.stale {
            let unit = format!("extension: {what}");
            out.expect(CLUSTER, &unit).await?;
            let why = Error::new(ErrorKind::Unreachable, what.clone());
            out.fail(CLUSTER, &unit, &why).await?;
        }
        Ok(())
    }

    /// Objects of no namespace: few, so that they may be held. What the account may not read is named once where nobody asked for it.
    async fn cluster_objects(
        &mut self,
        out: &Output,
        closure: &mut Option<Closure>,
    ) -> Result<Vec<(Kind, Value, Option<String>)>> {
        let mut found = Vec::new();
        if self.cluster == Cluster::None || self.refuse(out, CLUSTER, "").await? {
            return Ok(found);
        }
        for kind in self.cluster_kinds.clone() {
            let mut pages = Pages::of(&kind, None, None);
            loop {
                let page = match pages.next(&self.api).await {
                    Ok(Some(page)) => page,
                    Ok(None) => break,
                    Err(error) if error.kind == ErrorKind::Denied && closure.is_some() => {
                        self.warnings.push(format!(
                            "the account may not list {}: what the objects need of them is not in the archive",
                            kind.plural
                        ));
                        break;
                    }
                    Err(error) if self.is_of_this_kind(&error).await => {
                        let unit = format!("{}/*", kind.full_name());
                        out.expect(CLUSTER, &unit).await?;
                        out.fail(CLUSTER, &unit, &error).await?;
                        break;
                    }
                    Err(error) => return Err(error),
                };
                for object in page {
                    if self.is_left_out(&kind, CLUSTER, &object) {
                        continue;
                    }
                    let why = match closure {
                        Some(closure) => {
                            let Some(why) = closure.why(&kind, &object) else {
                                continue;
                            };
                            closure.learn(&kind, &object);
                            Some(why)
                        }
                        None => None,
                    };
                    let unit = kind.unit(object::name(&object));
                    if !self.refuse(out, CLUSTER, &unit).await? {
                        found.push((kind.clone(), object, why));
                    }
                }
            }
        }
        for unit in self.units_marked(CLUSTER) {
            // One that is there was asked about above.
            if closure.as_ref().is_none_or(|closure| closure.names(&unit)) {
                self.refuse(out, CLUSTER, &unit).await?;
            }
        }
        Ok(found)
    }

    fn is_left_out(&mut self, kind: &Kind, group: &str, object: &Value) -> bool {
        if self
            .wanted
            .excludes(group, &kind.unit(object::name(object)))
        {
            return true;
        }
        let Some(why) = skip::object(kind, object) else {
            return false;
        };
        // Who makes it again is not counted name by name.
        let why = why.split('`').next().unwrap_or_default().trim_end();
        let what = format!("{}: {why}", kind.full_name());
        *self.left_out.entry(what).or_default() += 1;
        true
    }

    /// The namespace itself: what makes the group.
    async fn write_namespace(&mut self, out: &Output, lane: &mut Lane, name: &str) -> Result<()> {
        let object = self.api.get(&format!("/api/v1/namespaces/{name}")).await?;
        let kind = Kind::namespace();
        let (clean, beside) = taken_apart(&kind, object);
        write(out, lane, (name, ""), &kind, (&clean, &beside)).await
    }

    async fn write_kind(
        &mut self,
        cx: &Context,
        out: &Output,
        lane: &mut Lane,
        kind: &Kind,
        namespace: &str,
    ) -> Result<()> {
        let mut pages = Pages::of(kind, Some(namespace), self.selector.as_deref());
        loop {
            cx.check_cancelled()?;
            let page = match pages.next(&self.api).await {
                Ok(Some(page)) => page,
                Ok(None) => break,
                Err(error) if self.is_of_this_kind(&error).await => {
                    let unit = format!("{}/*", kind.full_name());
                    out.expect(namespace, &unit).await?;
                    return out.fail(namespace, &unit, &error).await;
                }
                Err(error) => return Err(error),
            };
            for object in page {
                let unit = kind.unit(object::name(&object));
                if !self.is_left_out(kind, namespace, &object) && !self.is_owed(namespace, &unit) {
                    self.write_object(out, lane, namespace, (kind, object, None))
                        .await?;
                }
            }
        }
        if pages.weak {
            self.warnings.push(format!(
                "the list of {} in `{namespace}` is of more than one instant: the server forgot the first meanwhile",
                kind.plural
            ));
        }
        Ok(())
    }

    /// What is wrong with one list fails that kind in that group, and the others go on. A server that answers nothing else either ends the run.
    async fn is_of_this_kind(&self, error: &Error) -> bool {
        match error.kind {
            ErrorKind::Cancelled | ErrorKind::Auth | ErrorKind::Settings | ErrorKind::Bug => false,
            ErrorKind::Unreachable => self.api.get("/version").await.is_ok(),
            _ => true,
        }
    }

    async fn write_object(
        &mut self,
        out: &Output,
        lane: &mut Lane,
        group: &str,
        (kind, mut object, why): (&Kind, Value, Option<String>),
    ) -> Result<()> {
        holding::as_it_was(&mut object);
        let redacted = kind.is_secret() && self.secrets == Secrets::Redact;
        if redacted {
            redact(&mut object);
        }
        if text(&object, &["type"]) == Some(HELM) {
            let of = |key| object::label(&object, key).unwrap_or("?").to_owned();
            let release = format!(
                "{group}/{} revision {} {}",
                of("name"),
                of("version"),
                of("status")
            );
            if of("status").starts_with("pending-") {
                self.warnings.push(format!(
                    "Helm release {release}: an install or upgrade is under way, or was broken off"
                ));
            }
            self.releases.insert(release);
            let revision = of("version").parse().unwrap_or(0);
            let newest = self
                .newest_revisions
                .entry(format!("{group}/{}", of("name")))
                .or_default();
            *newest = revision.max(*newest);
        }
        if kind.full_name() == "SealedSecret.bitnami.com" {
            self.sealed.insert(group.to_owned());
        }
        let (clean, mut beside) = taken_apart(kind, object);
        beside.why = why;
        beside.redacted = redacted;
        let unit = kind.unit(&beside.name);
        write(out, lane, (group, &unit), kind, (&clean, &beside)).await
    }
}

async fn write(
    out: &Output,
    lane: &mut Lane,
    (group, unit): (&str, &str),
    kind: &Kind,
    (clean, beside): (&Value, &Beside),
) -> Result<()> {
    out.expect(group, unit).await?;
    lane.unit(group, unit);
    let (path, meta_path) = paths(kind, beside)?;
    let meta = serde_json::to_vec(beside).map_err(|e| bug(e.to_string()))?;
    lane.member(meta_path, Meta::default(), meta.into()).await?;
    lane.member(path, Meta::default(), yaml(clean)?.into())
        .await?;
    out.end(group, unit, Counted { rows: 1 }).await
}

/// Keys stay, values go.
fn redact(object: &mut Value) {
    for key in ["data", "stringData"] {
        let data = object.get_mut(key).and_then(Value::as_object_mut);
        for value in data.into_iter().flat_map(|data| data.values_mut()) {
            *value = Value::String(String::new());
        }
    }
    let annotations = object.pointer_mut("/metadata/annotations");
    if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
        // It holds the values once more.
        annotations.shift_remove(object::LAST_APPLIED);
    }
}
