//! Putting objects back, tier by tier: what is absent is made, what differs is written whole, what is the same is left alone.

mod apply;
mod fix;

use crate::k8s::connection::Api;
use crate::k8s::discovery::{Kind, Kinds};
use crate::k8s::object::{self, Beside, from_yaml, items, text};
use crate::k8s::{CLUSTER, K8s, LAYOUT, mark, skip, tiers};
use apply::{Applied, Outcome};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, conflict, unsupported};
use bk_core::source::{
    Existing, Input, Members, RestoreOptions, Selected, Stage, Tally, UnitCount,
};
use bk_core::unfinished::Unfinished;
use futures::StreamExt;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Objects that are written side by side, and held for that.
const AT_ONCE: usize = 8;
const BATCH: usize = 64;
/// How often what failed is tried again, as long as anything more succeeds.
const PASSES: usize = 5;
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
        for namespace in source.namespaces(&api).await? {
            mark::remove(&api, &namespace).await?;
        }
        return Ok(Tally::default());
    }
    input.facts().refuse_newer_layout("the objects", LAYOUT)?;
    if how.into_place.is_some() {
        return Err(unsupported("a cluster cannot be restored into a folder")
            .hint("bk extract writes the YAML; --into k8s/shop=shop-copy gives a namespace another name"));
    }
    let kinds = Kinds::discover(&api).await?;
    let mut restoring = Restoring {
        source,
        cx,
        how,
        existing: how.existing.unwrap_or(Existing::Merge),
        names: how.into_group.iter().cloned().collect(),
        api,
        kinds,
        uids: HashMap::new(),
        marked: BTreeSet::new(),
        seen: BTreeSet::new(),
        owed: BTreeMap::new(),
        again: Vec::new(),
        outcomes: BTreeMap::new(),
        tally: Tally::default(),
    };
    restoring.run(input).await?;
    Ok(restoring.tally)
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
    fn name(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}/{}", self.beside.kind, self.beside.name),
            None => format!("{}/{}", self.beside.kind, self.beside.name),
        }
    }
}

struct Restoring<'a> {
    source: &'a K8s,
    cx: &'a Context,
    how: &'a RestoreOptions,
    existing: Existing,
    /// Group to namespace in the target.
    names: HashMap<String, String>,
    api: Api,
    kinds: Kinds,
    /// UIDs of the archive to those of the target.
    uids: HashMap<String, String>,
    /// Namespaces of the target that have the mark.
    marked: BTreeSet<String>,
    /// Kind, namespace and name in the target of everything that the archive has.
    seen: BTreeSet<(String, String, String)>,
    /// Units that did not come back, by namespace of the target.
    owed: BTreeMap<String, Vec<Selected>>,
    /// What failed and may succeed when more is there.
    again: Vec<(Item, String)>,
    outcomes: BTreeMap<&'static str, u64>,
    tally: Tally,
}

impl Restoring<'_> {
    async fn run(&mut self, mut input: Input) -> Result<()> {
        self.refuse(&input).await?;
        let members = input.stage(Stage::Schema).await?;
        let mut batch: Vec<Item> = Vec::new();
        while let Some(item) = self.next_item(&members).await? {
            let tier = batch.first().map(|first: &Item| first.tier);
            if tier.is_some_and(|tier| tier != item.tier) || batch.len() >= BATCH {
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
        if self.existing == Existing::Replace {
            self.name_the_others().await?;
        }
        self.end().await
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
        let kind = self.kinds.of(&beside.api_version, &beside.kind).cloned();
        let namespace = beside
            .namespace
            .as_ref()
            .map(|namespace| self.namespace(namespace));
        Ok(Some(Item {
            tier: kind.as_ref().map_or(7, tiers::of),
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
        let definitions: Vec<String> = items
            .iter()
            .filter(|item| item.beside.kind == "CustomResourceDefinition")
            .map(|item| item.beside.name.clone())
            .collect();
        self.apply_all(items).await?;
        if tier == tiers::DEFINITIONS && next != Some(tier) {
            self.wait_for_definitions(&definitions).await?;
            self.kinds = Kinds::discover(&self.api).await?;
        }
        Ok(())
    }

    async fn apply_all(&mut self, items: Vec<Item>) -> Result<()> {
        for item in &items {
            if let Some(namespace) = &item.namespace
                && item.beside.kind != "Namespace"
            {
                self.set_mark(namespace).await?;
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

    /// The first object of this restore in a namespace.
    async fn set_mark(&mut self, namespace: &str) -> Result<()> {
        if self.marked.contains(namespace) {
            return Ok(());
        }
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
        mark::set(&self.api, namespace, &self.unfinished(namespace)).await?;
        self.marked.insert(namespace.to_owned());
        Ok(())
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
        if let Some(namespace) = &item.namespace {
            let selected = Selected {
                group: namespace.clone(),
                unit,
            };
            self.owed
                .entry(namespace.clone())
                .or_default()
                .push(selected);
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
            for item in &mut items {
                item.kind = self
                    .kinds
                    .of(&item.beside.api_version, &item.beside.kind)
                    .cloned();
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

    async fn wait_for_definitions(&self, names: &[String]) -> Result<()> {
        let began = Instant::now();
        for name in names {
            let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
            loop {
                let Some(definition) = self.api.find(&path).await? else {
                    break;
                };
                let conditions = definition["status"]["conditions"].as_array();
                let is = |word| {
                    conditions.into_iter().flatten().any(|c| {
                        text(c, &["type"]) == Some(word) && text(c, &["status"]) == Some("True")
                    })
                };
                if (is("Established") && is("NamesAccepted")) || began.elapsed() > DEFINITION {
                    break;
                }
                self.cx.pause(LOOK_AGAIN).await?;
            }
        }
        Ok(())
    }

    /// `--existing replace` deletes nothing by itself: what is there besides is named.
    async fn name_the_others(&mut self) -> Result<()> {
        let whole: Vec<String> = self
            .how
            .selected
            .iter()
            .filter(|s| s.unit.is_none() && s.group != CLUSTER)
            .map(|s| self.namespace(&s.group))
            .collect();
        let kinds = self.source.kinds(&self.kinds)?;
        for namespace in whole {
            for kind in kinds.iter().filter(|kind| kind.namespaced) {
                let list = self.api.get(&kind.path(Some(&namespace))).await?;
                for object in items(&list).filter(|o| skip::object(kind, o).is_none()) {
                    let name = object::name(object).to_owned();
                    let key = (kind.kind.clone(), namespace.clone(), name.clone());
                    if !self.seen.contains(&key) {
                        self.tally
                            .kept
                            .push(format!("{namespace}/{}", kind.unit(&name)));
                    }
                }
            }
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<()> {
        for namespace in std::mem::take(&mut self.marked) {
            let left = self.owed.remove(&namespace).unwrap_or_default();
            mark::finish(&self.api, &namespace, &self.unfinished(&namespace), left).await?;
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
