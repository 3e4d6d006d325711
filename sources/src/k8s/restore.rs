//! Putting objects back, tier by tier: what is absent is made, what differs is written whole, what is the same is left alone.

mod apply;
mod archived;
mod diff;
mod fix;
mod helm;
mod own;
mod ready;
mod references;
mod volumes;

use crate::k8s::backup::Pages;
use crate::k8s::connection::Api;
use crate::k8s::discovery::{Kind, Kinds};
use crate::k8s::object::{self, Beside, from_yaml, text};
use crate::k8s::{CLUSTER, K8s, LAYOUT, mark, skip, tiers};
use apply::{Applied, Outcome};
use archived::Archived;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, conflict, unsupported};
use bk_core::source::{
    Existing, Input, Members, Preview, RestoreOptions, Selected, Stage, Tally, UnitCount,
};
use bk_core::unfinished::Unfinished;
use futures::StreamExt;
use helm::Releases;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Objects that are written side by side, and held for that.
const AT_ONCE: usize = 8;
const BATCH: usize = 64;
/// How often what failed is tried again, as long as anything more succeeds.
const PASSES: usize = 5;
/// Units of no namespace that a mark names one by one.
const UNITS_MARKED: usize = 2000;
/// How long a definition may take to be served, and a namespace to be active.
const DEFINITION: Duration = Duration::from_mins(1);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

type Unit = (String, String);

/// Restores what is selected.
pub async fn restore(
    source: &K8s,
    cx: &Context,
    input: Input,
    how: &RestoreOptions,
) -> Result<Tally> {
    let api = Api::connect(cx, &source.settings).await?;
    if how.forget_unfinished {
        let (namespaces, _) = source.namespaces_there(&api).await?;
        mark::forget(&api, &namespaces).await?;
        return Ok(Tally::default());
    }
    input.facts().refuse_newer_layout("the objects", LAYOUT)?;
    if how.into_place.is_some() {
        return Err(unsupported("a cluster cannot be restored into a folder")
            .hint("bk extract writes the YAML; --into k8s/shop=shop-copy gives a namespace another name"));
    }
    let mut restoring = Restoring::new(source, cx, &input, how, api).await?;
    restoring.run(input).await?;
    Ok(restoring.tally)
}

/// Asks the server what a restore would do, object by object.
pub async fn preview(
    source: &K8s,
    cx: &Context,
    input: Input,
    how: &RestoreOptions,
) -> Result<Preview> {
    let api = Api::connect(cx, &source.settings).await?;
    input.facts().refuse_newer_layout("the objects", LAYOUT)?;
    let mut restoring = Restoring::new(source, cx, &input, how, api).await?;
    restoring.dry = true;
    restoring.run(input).await?;
    let tally = restoring.tally;
    let kept = tally
        .kept
        .into_iter()
        .map(|what| format!("kept       {what}, not in the archive"));
    let warnings = tally
        .warnings
        .into_iter()
        .map(|warning| format!("note       {warning}"));
    Ok(Preview {
        lines: restoring
            .lines
            .into_iter()
            .chain(kept)
            .chain(warnings)
            .collect(),
        failed: tally.failed,
    })
}

/// An object on its way back.
#[derive(Clone, Debug)]
struct Item {
    unit: Unit,
    /// As it is served in the target; nothing where that has no such kind.
    kind: Option<Kind>,
    tier: u8,
    /// Its namespace in the target.
    namespace: Option<String>,
    object: Value,
    beside: Beside,
    /// Of both members.
    bytes: u64,
}

impl Item {
    /// Whether another one waits until all like this one are there. Claims wait for their volumes.
    fn is_apart(&self, other: &Self) -> bool {
        let is_volume = |item: &Self| item.beside.kind == "PersistentVolume";
        self.tier != other.tier || is_volume(self) != is_volume(other)
    }

    fn name(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}/{}", self.beside.kind, self.beside.name),
            None => format!("{}/{}", self.beside.kind, self.beside.name),
        }
    }
}

/// What of an archive belongs to no namespace and is selected: unit by unit, so that only they are not backed up while they may be half restored; the
/// group where they are too many for a mark.
fn cluster_units(input: &Input) -> Vec<Selected> {
    let of_cluster = |unit: Option<String>| Selected {
        group: CLUSTER.into(),
        unit,
    };
    let units = input.units(Stage::Schema);
    let units: Vec<Selected> = units
        .filter(|unit| unit.group == CLUSTER && !unit.name.is_empty())
        .map(|unit| of_cluster(Some(unit.name)))
        .collect();
    if units.len() > UNITS_MARKED {
        return vec![of_cluster(None)];
    }
    units
}

/// An object that waits for its owners.
struct Unlinked {
    name: String,
    path: String,
    namespace: Option<String>,
    owner_references: Vec<Value>,
    managed_fields: Vec<Value>,
}

struct Restoring<'a> {
    source: &'a K8s,
    cx: &'a Context,
    how: &'a RestoreOptions,
    existing: Existing,
    /// The instance as the archive and the selectors name it.
    instance: String,
    /// Group to namespace in the target.
    names: HashMap<String, String>,
    api: Api,
    kinds: Kinds,
    /// UIDs of the archive to those of the target.
    uids: HashMap<String, String>,
    /// Nothing is written: the server is asked what would be.
    dry: bool,
    /// What would be, object by object.
    lines: Vec<String>,
    /// Namespaces of the target that this restore writes to.
    entered: BTreeSet<String>,
    /// Whether what belongs to no namespace is among what is written.
    of_cluster: bool,
    /// Whether that has its mark.
    cluster_marked: bool,
    /// What of it the archive has: what its mark names.
    cluster_units: Vec<Selected>,
    /// Objects of the target that runs of `bk` itself use: namespace, kind and name.
    own: BTreeSet<(String, String, String)>,
    /// What the archive's own selection took.
    archived: Archived,
    /// Namespaces of the target that have the mark.
    marked: BTreeSet<String>,
    releases: Releases,
    /// Namespace, kind and name of what an autoscaler scales.
    scaled: BTreeSet<(String, String, String)>,
    /// Namespace and name of claims whose volumes come back too.
    volumes: BTreeSet<(String, String)>,
    /// Whether it was said that the account may not look at volumes.
    volumes_unseen: AtomicBool,
    /// What was written and has pods.
    workloads: Vec<(Kind, String, String)>,
    /// Kind, namespace and name in the target of everything that the archive has.
    seen: BTreeSet<(String, String, String)>,
    /// Units that did not come back, by namespace of the target.
    owed: BTreeMap<String, Vec<Selected>>,
    /// Those of no namespace.
    owed_of_cluster: Vec<Selected>,
    /// Definitions of extensions that were dealt with.
    definitions: Vec<String>,
    /// What was written before its owners were there.
    unlinked: Vec<Unlinked>,
    /// What failed and may succeed when more is there.
    again: Vec<(Item, String)>,
    outcomes: BTreeMap<&'static str, u64>,
    tally: Tally,
}

impl<'a> Restoring<'a> {
    async fn new(
        source: &'a K8s,
        cx: &'a Context,
        input: &Input,
        how: &'a RestoreOptions,
        api: Api,
    ) -> Result<Self> {
        let kinds = Kinds::discover(&api).await?;
        let names: HashMap<String, String> = how.into_group.iter().cloned().collect();
        let target = |group: &str| names.get(group).map_or(group, String::as_str).to_owned();
        Ok(Self {
            releases: Releases::of(&input.facts().more, target),
            source,
            cx,
            how,
            existing: how.existing.unwrap_or(Existing::Merge),
            instance: input.instance().to_owned(),
            names,
            api,
            kinds,
            uids: HashMap::new(),
            dry: false,
            lines: Vec::new(),
            entered: BTreeSet::new(),
            of_cluster: false,
            cluster_marked: false,
            cluster_units: cluster_units(input),
            own: BTreeSet::new(),
            archived: Archived::of(input.facts(), input.failed_units()),
            marked: BTreeSet::new(),
            scaled: BTreeSet::new(),
            volumes: BTreeSet::new(),
            volumes_unseen: AtomicBool::new(false),
            workloads: Vec::new(),
            seen: BTreeSet::new(),
            owed: BTreeMap::new(),
            owed_of_cluster: Vec::new(),
            definitions: Vec::new(),
            unlinked: Vec::new(),
            again: Vec::new(),
            outcomes: BTreeMap::new(),
            tally: Tally::default(),
        })
    }

    async fn run(&mut self, mut input: Input) -> Result<()> {
        self.refuse(&input).await?;
        let members = input.stage(Stage::Schema).await?;
        let mut batch: Vec<Item> = Vec::new();
        while let Some(item) = self.next_item(&members).await? {
            let is_apart = batch.first().is_some_and(|first| first.is_apart(&item));
            if is_apart || batch.len() >= BATCH {
                self.flush(&mut batch, Some(item.tier)).await?;
            }
            batch.push(item);
        }
        self.flush(&mut batch, None).await?;
        for stage in [Stage::Data, Stage::Large, Stage::Finish] {
            // Nothing of this source lies there, but the stages are read in order.
            let rest = input.stage(stage).await?;
            while rest.next().await?.is_some() {}
        }
        self.passes().await?;
        self.link_owners().await?;
        if self.existing == Existing::Replace {
            self.remove_newer_releases().await?;
            self.name_the_others().await?;
        }
        self.end().await?;
        self.name_what_is_not_ready().await
    }

    /// The next object: what lies beside it comes first.
    async fn next_item(&self, members: &Members) -> Result<Option<Item>> {
        let Some(meta) = members.next().await? else {
            return Ok(None);
        };
        let torn = |what: &str| Error::corrupt(format!("`{what}` is not what bk writes"));
        let place = meta.path.to_string();
        let meta = meta.bytes().await?;
        let beside: Beside = serde_json::from_slice(&meta).map_err(|e| torn(&place).because(e))?;
        let member = members.next().await?.ok_or_else(|| torn(&place))?;
        let (unit, place) = (member.unit.clone(), member.path.to_string());
        let body = member.bytes().await?;
        let text = std::str::from_utf8(&body).map_err(|_| torn(&place))?;
        let object = from_yaml(text).map_err(|why| torn(&place).hint(why))?;
        let kind = self.kinds.in_version(&beside.api_version, &beside.kind);
        let namespace = beside
            .namespace
            .as_ref()
            .map(|namespace| self.namespace(namespace));
        Ok(Some(Item {
            tier: self
                .kinds
                .of(&beside.api_version, &beside.kind)
                .map_or(7, tiers::of),
            unit,
            kind,
            namespace,
            object,
            beside,
            bytes: (meta.len() + body.len()) as u64,
        }))
    }

    fn namespace(&self, group: &str) -> String {
        self.names
            .get(group)
            .map_or(group, String::as_str)
            .to_owned()
    }

    /// Whether all of a group is selected.
    fn is_whole(&self, group: &str) -> bool {
        let mut selected = self.how.selected.iter();
        selected.any(|s| s.group == group && s.unit.is_none())
    }

    /// Before anything is written: namespaces that are going, and with `--existing refuse` everything that is there.
    async fn refuse(&self, input: &Input) -> Result<()> {
        let groups: BTreeSet<&str> = self.how.selected.iter().map(|s| s.group.as_str()).collect();
        for group in groups.into_iter().filter(|group| *group != CLUSTER) {
            let namespace = self.namespace(group);
            let path = format!("/api/v1/namespaces/{namespace}");
            let Some(there) = self.api.find(&path).await? else {
                continue;
            };
            if text(&there, &["status", "phase"]) == Some("Terminating") {
                let finalizers = there["spec"]["finalizers"].to_string();
                let conditions = there["status"]["conditions"].as_array();
                let why = conditions
                    .into_iter()
                    .flatten()
                    .filter(|c| text(c, &["status"]) == Some("True"))
                    .filter_map(|c| text(c, &["message"]))
                    .collect::<Vec<_>>();
                return Err(conflict(format!(
                    "the namespace `{namespace}` is being deleted, with finalizers {finalizers}: {}",
                    why.join("; ")
                ))
                .hint("wait until it is gone"));
            }
            if self.how.hold {
                self.source
                    .refuse_what_cannot_be_held(&self.api, &self.kinds, &namespace)
                    .await?;
            }
        }
        if self.existing != Existing::Refuse {
            return Ok(());
        }
        let members = input.look(Stage::Schema).await?;
        while let Some(item) = self.next_item(&members).await? {
            let Some(kind) = &item.kind else { continue };
            if item.unit.1.is_empty() {
                continue;
            }
            let path = kind.path_of(item.namespace.as_deref(), &item.beside.name);
            if self.api.find(&path).await?.is_some() {
                return Err(conflict(format!("`{}` is there already", item.name()))
                    .hint("repeat with --existing merge, or --into another namespace"));
            }
        }
        Ok(())
    }

    /// Writes what was gathered; before another tier begins, all of it is there.
    async fn flush(&mut self, batch: &mut Vec<Item>, next: Option<u8>) -> Result<()> {
        let items = std::mem::take(batch);
        let Some(tier) = items.first().map(|item| item.tier) else {
            return Ok(());
        };
        self.cx.check_cancelled()?;
        let definitions = items
            .iter()
            .filter(|item| item.beside.kind == "CustomResourceDefinition");
        let names = definitions.map(|item| item.beside.name.clone());
        self.definitions.extend(names);
        self.apply_all(items).await?;
        if tier == tiers::DEFINITIONS && next != Some(tier) && !self.dry {
            self.wait_for_definitions().await?;
        }
        Ok(())
    }

    async fn apply_all(&mut self, items: Vec<Item>) -> Result<()> {
        for item in items.iter().filter(|item| item.beside.kind != "Namespace") {
            match &item.namespace {
                Some(namespace) => self.enter(namespace).await?,
                None => self.enter_cluster().await?,
            }
        }
        let this = &*self;
        let applied: Vec<(Item, Result<Applied>)> = futures::stream::iter(items)
            .map(|item| async move {
                let applied = apply::apply(this, &item).await;
                (item, applied)
            })
            .buffered(AT_ONCE)
            .collect()
            .await;
        for (item, applied) in applied {
            self.take(item, applied)?;
        }
        Ok(())
    }

    /// The first object of this restore in a namespace: the mark is set, and what is there already is looked at.
    async fn enter(&mut self, namespace: &str) -> Result<()> {
        if !self.entered.insert(namespace.to_owned()) {
            return Ok(());
        }
        if !self.dry {
            self.set_mark(namespace).await?;
        }
        self.find_newer_releases(namespace).await?;
        self.find_scaled(namespace).await?;
        self.find_own(namespace).await?;
        if self.how.hold && !self.dry {
            let source = self.source;
            source
                .hold_running(self.cx, &self.api, &self.kinds, namespace)
                .await?;
        }
        Ok(())
    }

    /// The mark for what belongs to no namespace stands in that of the account. One that may not write there goes on without.
    async fn enter_cluster(&mut self) -> Result<()> {
        let namespace = self.api.own_namespace().to_owned();
        if self.dry || self.of_cluster {
            return Ok(());
        }
        self.of_cluster = true;
        let mine = self.unfinished_of_cluster();
        match mark::set(&self.api, &namespace, mark::Of::Cluster, &mine).await {
            Ok(()) => {
                self.cluster_marked = true;
                Ok(())
            }
            Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::NotFound) => {
                self.tally.warnings.push(format!(
                    "what belongs to the cluster is restored without a mark: {error}"
                ));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Replicas of these are an autoscaler's matter.
    async fn find_scaled(&mut self, namespace: &str) -> Result<()> {
        let Some(kind) = self.kinds.of("autoscaling/v2", "HorizontalPodAutoscaler") else {
            return Ok(());
        };
        let mut pages = Pages::of(kind, Some(namespace), None);
        while let Some(page) = pages.readable(&self.api).await? {
            for scaler in &page {
                let target = |key| {
                    text(scaler, &["spec", "scaleTargetRef", key])
                        .unwrap_or_default()
                        .to_owned()
                };
                self.scaled
                    .insert((namespace.to_owned(), target("kind"), target("name")));
            }
        }
        Ok(())
    }

    async fn set_mark(&mut self, namespace: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/{namespace}");
        if self.api.find(&path).await?.is_none() {
            // Objects of a namespace whose own definition was not selected.
            let new = serde_json::json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } });
            let made = self
                .api
                .send(&http::Method::POST, "/api/v1/namespaces", Some(&new))
                .await?;
            if made.status != 409 {
                made.good(&format!("making the namespace `{namespace}`"))?;
            }
        }
        let mine = self.unfinished(namespace);
        mark::set(&self.api, namespace, mark::Of::Namespace, &mine).await?;
        self.marked.insert(namespace.to_owned());
        Ok(())
    }

    fn unfinished_of_cluster(&self) -> Unfinished {
        Unfinished {
            id: self.how.id.clone(),
            archive: self.how.archive.clone(),
            selected: self.cluster_units.clone(),
        }
    }

    fn unfinished(&self, namespace: &str) -> Unfinished {
        let of_it = self
            .how
            .selected
            .iter()
            .filter(|s| self.namespace(&s.group) == *namespace);
        Unfinished {
            id: self.how.id.clone(),
            archive: self.how.archive.clone(),
            selected: of_it
                .map(|s| Selected {
                    group: namespace.to_owned(),
                    unit: s.unit.clone(),
                })
                .collect(),
        }
    }

    fn take(&mut self, item: Item, applied: Result<Applied>) -> Result<()> {
        let applied = match applied {
            Ok(applied) => applied,
            // The run itself ends with these; anything else is this object's.
            Err(error) if matches!(error.kind, ErrorKind::Cancelled | ErrorKind::Auth) => {
                return Err(error);
            }
            Err(error) => Applied::failed(error.to_string()),
        };
        self.tally.warnings.extend(applied.warnings);
        if let Some(uid) = applied.uid {
            self.uids.insert(item.beside.uid.clone(), uid);
        }
        let key = (
            item.beside.kind.clone(),
            item.namespace.clone().unwrap_or_default(),
            item.beside.name.clone(),
        );
        self.seen.insert(key);
        let is_there = !matches!(
            applied.outcome,
            Outcome::Failed(_) | Outcome::Conflict(_) | Outcome::Skipped(_)
        );
        if is_there {
            self.releases.touch(&item);
            if item.beside.kind == "PersistentVolume"
                && let Some((namespace, claim)) = volumes::claim_of(&item.object)
            {
                self.volumes.insert((self.namespace(&namespace), claim));
            }
        }
        if let (true, true, Some(kind)) = (applied.lacks_owner, is_there, &item.kind) {
            self.unlinked.push(Unlinked {
                name: item.name(),
                path: kind.path_of(item.namespace.as_deref(), &item.beside.name),
                namespace: item.namespace.clone(),
                owner_references: item.beside.owner_references.clone(),
                managed_fields: item.beside.managed_fields.clone(),
            });
        }
        if self.dry {
            let more = match &applied.outcome {
                Outcome::Failed(_) | Outcome::Conflict(_) => None,
                Outcome::Skipped(why) => Some(format!(" ({why})")),
                _ => Some(
                    applied
                        .note
                        .map(|note| format!(" ({note})"))
                        .unwrap_or_default(),
                ),
            };
            if let Some(more) = more {
                self.lines.push(format!(
                    "{:10} {}{more}",
                    applied.outcome.word(),
                    item.name()
                ));
                self.lines.extend(applied.diff);
            }
        } else if let (Some(kind), Some(namespace)) = (&item.kind, &item.namespace)
            && matches!(
                applied.outcome,
                Outcome::Created | Outcome::Updated | Outcome::Recreated
            )
            && ready::has_pods(kind)
        {
            self.workloads
                .push((kind.clone(), namespace.clone(), item.beside.name.clone()));
        }
        match applied.outcome {
            Outcome::Failed(why) => self.again.push((item, why)),
            Outcome::Conflict(why) => self.fail(&item, &why),
            outcome => self.count(&item, &outcome),
        }
        Ok(())
    }

    fn count(&mut self, item: &Item, outcome: &Outcome) {
        *self.outcomes.entry(outcome.word()).or_default() += 1;
        if let Outcome::Skipped(why) = outcome {
            self.tally
                .warnings
                .push(format!("`{}` was left out: {why}", item.name()));
        }
        self.tally.units.push(UnitCount {
            group: item.unit.0.clone(),
            name: item.unit.1.clone(),
            stage: Stage::Schema,
            members: 2,
            rows: 1,
            bytes: item.bytes,
        });
    }

    fn fail(&mut self, item: &Item, why: &str) {
        self.tally.failed.push(format!("`{}`: {why}", item.name()));
        let unit = Some(item.unit.1.clone()).filter(|name| !name.is_empty());
        if item.beside.kind != "Namespace" {
            let namespace = item.namespace.as_deref();
            let selected = Selected {
                group: namespace.unwrap_or(CLUSTER).to_owned(),
                unit,
            };
            let owed = match namespace {
                Some(namespace) => self.owed.entry(namespace.to_owned()).or_default(),
                None => &mut self.owed_of_cluster,
            };
            owed.push(selected);
        }
    }

    /// What failed for want of something else succeeds when that is there.
    async fn passes(&mut self) -> Result<()> {
        for _ in 0..PASSES {
            let waiting = std::mem::take(&mut self.again);
            let before = waiting.len();
            if before == 0 {
                return Ok(());
            }
            let mut items: Vec<Item> = waiting.into_iter().map(|(item, _)| item).collect();
            if !self.dry && items.iter().any(|item| item.kind.is_none()) {
                // What makes it known may have come with this restore.
                self.kinds = Kinds::discover(&self.api).await?;
            }
            for item in &mut items {
                item.kind = self
                    .kinds
                    .in_version(&item.beside.api_version, &item.beside.kind);
            }
            self.apply_all(items).await?;
            if self.again.len() == before {
                break;
            }
        }
        for (item, why) in std::mem::take(&mut self.again) {
            self.fail(&item, &why);
        }
        Ok(())
    }

    /// Owners of a later tier are there now. One that is not is named.
    async fn link_owners(&mut self) -> Result<()> {
        for one in std::mem::take(&mut self.unlinked) {
            let namespace = one.namespace.as_deref();
            let (owners, missing) = fix::owners(self, namespace, &one.owner_references).await?;
            // In a dry run those of the archive are not made.
            let is_coming = |name: &String| {
                let mut seen = self.seen.iter();
                seen.any(|(kind, _, object)| *name == format!("{kind}/{object}"))
            };
            let missing: Vec<String> = missing
                .into_iter()
                .filter(|name| !(self.dry && is_coming(name)))
                .collect();
            if !missing.is_empty() {
                self.tally.warnings.push(format!(
                    "`{}` has lost its owner {}, which is not there",
                    one.name,
                    missing.join(", ")
                ));
            }
            if self.dry || owners.is_empty() {
                continue;
            }
            let patch = serde_json::json!({ "metadata": { "ownerReferences": owners } });
            let patched = self.api.patch(&one.path, &patch).await?;
            if patched.status >= 300 {
                self.tally.warnings.push(format!(
                    "`{}` is not linked to its owners: {}",
                    one.name,
                    patched.message()
                ));
                continue;
            }
            let said =
                apply::put_owners_of_fields_back(self, &one.path, &one.name, &one.managed_fields);
            let said = said.await?;
            self.tally.warnings.extend(said);
        }
        Ok(())
    }

    /// Until the definitions are served, and the server's list of kinds, which lags behind, has them.
    async fn wait_for_definitions(&mut self) -> Result<()> {
        let began = Instant::now();
        let mut awaited: Vec<(String, String)> = Vec::new();
        for name in std::mem::take(&mut self.definitions) {
            let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
            loop {
                let Some(definition) = self.api.find(&path).await? else {
                    break;
                };
                let is_served = ["Established", "NamesAccepted"]
                    .iter()
                    .all(|word| object::holds(&definition, word));
                if is_served {
                    awaited.extend(object::served_by(&definition));
                    break;
                }
                if began.elapsed() > DEFINITION {
                    break;
                }
                self.cx.pause(LOOK_AGAIN).await?;
            }
        }
        loop {
            self.kinds = Kinds::discover(&self.api).await?;
            let is_known =
                |(version, kind): &(String, String)| self.kinds.in_version(version, kind).is_some();
            if awaited.iter().all(is_known) || began.elapsed() > DEFINITION {
                return Ok(());
            }
            self.cx.pause(LOOK_AGAIN).await?;
        }
    }

    /// `--existing replace` deletes nothing by itself: what is there besides is named. A group is whole when all that the archive has of it is selected,
    /// so that each object is asked about once more: what nobody selected, or the archive never read, is not missing in it.
    async fn name_the_others(&mut self) -> Result<()> {
        let whole: Vec<(String, String)> = self
            .how
            .selected
            .iter()
            .filter(|s| s.unit.is_none() && s.group != CLUSTER)
            .map(|s| (s.group.clone(), self.namespace(&s.group)))
            .collect();
        let kinds: Vec<Kind> = self
            .source
            .kinds(&self.kinds)?
            .into_iter()
            .filter(|kind| kind.namespaced && self.archived.takes_kind(kind))
            .cloned()
            .collect();
        let selectors = [
            self.archived.selector.clone(),
            self.source.settings.selector.clone(),
        ];
        let selectors: Vec<String> = selectors.into_iter().flatten().collect();
        let selector = Some(selectors.join(",")).filter(|text| !text.is_empty());
        for (group, namespace) in whole {
            for kind in &kinds {
                let mut pages = Pages::of(kind, Some(&namespace), selector.as_deref());
                loop {
                    let page = match pages.next(&self.api).await {
                        Ok(Some(page)) => page,
                        Ok(None) => break,
                        Err(error) if error.kind == ErrorKind::Cancelled => return Err(error),
                        Err(error) => {
                            let what = format!(
                                "what else of {} is in `{namespace}` is not known: {error}",
                                kind.full_name()
                            );
                            self.tally.warnings.push(what);
                            break;
                        }
                    };
                    for object in page.iter().filter(|o| skip::object(kind, o).is_none()) {
                        let unit = kind.unit(object::name(object));
                        let is_selected = self.how.selection.takes(&self.instance, &group, &unit);
                        let is_left_out = !is_selected
                            || self.source.wanted.excludes(&namespace, &unit)
                            || !self.archived.takes(&group, kind, &unit);
                        if !is_left_out {
                            self.other(kind, &namespace, object).await?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// An object of a selected namespace that the archive may not have.
    async fn other(&mut self, kind: &Kind, namespace: &str, object: &Value) -> Result<()> {
        let name = object::name(object).to_owned();
        let key = (kind.kind.clone(), namespace.to_owned(), name.clone());
        if self.seen.contains(&key) {
            return Ok(());
        }
        let what = format!("{namespace}/{}", kind.unit(&name));
        let used = (namespace.to_owned(), kind.kind.clone(), name.clone());
        let is_own = object::is_own(object) || self.own.contains(&used);
        // What somebody else makes again goes with its maker.
        if !self.how.prune_objects || is_own || object::controller(object).is_some() {
            self.tally.kept.push(what);
            return Ok(());
        }
        if self.dry {
            self.lines.push(format!("deleted    {what}"));
            return Ok(());
        }
        let path = kind.path_of(Some(namespace), &name);
        let options = serde_json::json!({ "propagationPolicy": "Background", "preconditions": { "uid": object::uid(object) } });
        let gone = self
            .api
            .send(&http::Method::DELETE, &path, Some(&options))
            .await?;
        match gone.status {
            404 | 409 => {}
            200..300 => self.tally.warnings.push(format!(
                "`{what}` was deleted: the archive does not have it"
            )),
            _ => self
                .tally
                .failed
                .push(format!("`{what}` could not be deleted: {}", gone.message())),
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<()> {
        for namespace in std::mem::take(&mut self.marked) {
            let left = self.owed.remove(&namespace).unwrap_or_default();
            let mine = self.unfinished(&namespace);
            mark::finish(&self.api, &namespace, mark::Of::Namespace, &mine, left).await?;
        }
        if self.cluster_marked {
            let (own, mine) = (self.api.own_namespace(), self.unfinished_of_cluster());
            let left = std::mem::take(&mut self.owed_of_cluster);
            mark::finish(&self.api, own, mark::Of::Cluster, &mine, left).await?;
        }
        let words: Vec<String> = self
            .outcomes
            .iter()
            .map(|(word, count)| format!("{count} {word}"))
            .collect();
        tracing::info!(objects = %words.join(", "), "objects came back");
        Ok(())
    }
}
