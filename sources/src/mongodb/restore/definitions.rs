//! Collections and views with their options: read first, tried on the target before anything makes way for them, then made.

use super::indexes::is_given;
use super::{Made, Restoring, Unit};
use crate::mongodb::bson::{self, Writing};
use crate::mongodb::catalogue::Collection;
use crate::mongodb::connection::Connection;
use crate::mongodb::mark;
use crate::mongodb::metadata::{Kind, Metadata};
use crate::mongodb::names::{name_of, part};
use bk_core::error::{Error, Result, bug, unsupported};
use bk_core::source::{Existing, Input, Stage};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Options that servers no longer take, and that say nothing of the data.
const DROPPED_OPTIONS: [&[u8]; 2] = [b"autoIndexId", b"recordIdsReplicated"];
/// Options that mean nothing without each other, each family by its first.
const FAMILIES: [&[&[u8]]; 3] = [
    &[b"capped", b"size", b"max"],
    &[b"validator", b"validationLevel", b"validationAction"],
    &[b"clusteredIndex", b"expireAfterSeconds"],
];
/// Where they are tried, in the database of the mark.
const PROBE: &str = "probe";
/// Different definitions that are tried; what is refused beyond them is named when it is made.
const MAX_PROBES: usize = 500;
/// Refused definitions that are named one by one.
const MAX_NAMED: usize = 20;

/// Which collection, and why it was refused.
type Created = Result<(Unit, Option<String>)>;

impl Restoring<'_> {
    /// All definitions of an archive.
    pub(super) async fn definitions(&mut self, input: &mut Input) -> Result<()> {
        let members = input.stage(Stage::Schema).await?;
        let mut raw: HashMap<Unit, Bytes> = HashMap::new();
        while let Some(member) = members.next().await? {
            self.cx.check_cancelled()?;
            let (unit, path) = (member.unit.clone(), member.path.to_string());
            let body = member.bytes().await?;
            let bytes = body.len() as u64;
            if path.ends_with(".metadata.raw") {
                self.count(&unit, Stage::Schema, 0, bytes);
                raw.insert(unit, body);
                continue;
            }
            if !path.ends_with(".metadata.json") {
                self.count(&unit, Stage::Schema, 0, bytes);
                continue;
            }
            let within = |e: Error| e.within(format!("`{path}`"));
            let mut metadata = Metadata::parse(&body).map_err(within)?;
            if let Some(raw) = raw.remove(&unit) {
                metadata.take_raw(&raw).map_err(within)?;
            }
            let name = name_of(&unit.1);
            self.define(unit.clone(), name, metadata);
            self.count(&unit, Stage::Schema, 0, bytes);
        }
        Ok(())
    }

    /// Takes a definition in.
    pub(super) fn define(&mut self, unit: Unit, name: String, metadata: Metadata) {
        let before = self.made.last_key_value();
        let same = before.filter(|(before, _)| before.0 == unit.0);
        let database = match same {
            Some((_, made)) => made.database.clone(),
            None => self.database(&unit.0).into(),
        };
        let lasting = metadata.indexes.into_iter().filter(|i| !is_given(i));
        let options = self.known_options.get(&metadata.options[..]).cloned();
        let options = options.unwrap_or_else(|| {
            let options: Arc<[u8]> = metadata.options.into();
            self.known_options.insert(options.clone());
            options
        });
        let made = Made {
            database,
            buckets: None,
            name,
            kind: metadata.kind,
            capped: bson::find(&options, b"capped").is_some_and(|flag| flag.truthy()),
            raw: false,
            indexes: lasting.collect(),
            options,
            counts: Vec::new(),
        };
        self.made.insert(unit, made);
    }

    /// Before anything makes way: every definition that is not plain is made and dropped once. A collection that the target cannot have at all ends
    /// the restore; an option that it has not is left out, with a warning.
    pub(super) async fn try_definitions(&mut self) -> Result<()> {
        let mut tried: HashSet<Vec<u8>> = HashSet::new();
        let mut refused: BTreeMap<Vec<u8>, String> = BTreeMap::new();
        for made in self.made.values() {
            self.cx.check_cancelled()?;
            let options = wanted_options(&made.options)?;
            if bson::elements(&options).next().is_none()
                || tried.len() >= MAX_PROBES
                || !tried.insert(options.clone())
            {
                continue;
            }
            match probe(&self.connection, &options).await? {
                Probed::Taken => {}
                Probed::Denied => return Ok(()),
                Probed::Refused(why) => {
                    refused.insert(options, why);
                }
            }
        }
        let mut missing = Vec::new();
        for (options, why) in refused {
            let lacking = self.lacking_options(&options).await?;
            for unit in self.defined_by(&options)? {
                let made = &self.made[&unit];
                let full = format!("`{}.{}`", made.database, made.name);
                if made.kind != Kind::Collection || lacking.is_empty() {
                    missing.push(format!("{full}: {why}"));
                    continue;
                }
                let names: Vec<_> = lacking.iter().map(|n| String::from_utf8_lossy(n)).collect();
                self.tally.warnings.push(format!(
                    "{full} comes back without `{}`, which the server does not take",
                    names.join("`, `")
                ));
                self.leave_out(&unit, &lacking)?;
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let more = missing.len().saturating_sub(MAX_NAMED);
        missing.truncate(MAX_NAMED);
        let more = match more {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        Err(unsupported(format!(
            "the server cannot have {}{more}; nothing was changed",
            missing.join("; ")
        ))
        .hint("leave them out with --exclude"))
    }

    fn defined_by(&self, options: &[u8]) -> Result<Vec<Unit>> {
        let mut units = Vec::new();
        for (unit, made) in &self.made {
            if wanted_options(&made.options)? == options {
                units.push(unit.clone());
            }
        }
        Ok(units)
    }

    /// Of options that were refused together, those that are refused alone.
    async fn lacking_options(&self, options: &[u8]) -> Result<BTreeSet<Vec<u8>>> {
        let mut lacking = BTreeSet::new();
        let mut seen: BTreeSet<&[u8]> = BTreeSet::new();
        for option in bson::elements(options) {
            let first = family(option?.name);
            if !seen.insert(first) {
                continue;
            }
            let alone = without(options, |name| family(name) != first)?;
            if let Probed::Refused(_) = probe(&self.connection, &alone).await? {
                lacking.insert(first.to_vec());
            }
        }
        Ok(lacking)
    }

    fn leave_out(&mut self, unit: &Unit, lacking: &BTreeSet<Vec<u8>>) -> Result<()> {
        if let Some(made) = self.made.get_mut(unit) {
            made.options = without(&made.options, |name| lacking.contains(family(name)))?.into();
            made.capped = made.capped && !lacking.contains(&b"capped"[..]);
        }
        Ok(())
    }

    /// Makes the collections, some side by side; views wait.
    pub(super) async fn make_collections(&mut self) -> Result<()> {
        let mut there: HashMap<Arc<str>, BTreeMap<String, Collection>> = HashMap::new();
        let mut tasks: JoinSet<Created> = JoinSet::new();
        // Lent, not copied: there may be 100,000.
        let all = std::mem::take(&mut self.made);
        for (unit, made) in &all {
            self.cx.check_cancelled()?;
            if self.existing == Existing::Merge && !there.contains_key(&made.database) {
                there.insert(made.database.clone(), self.there(&made.database).await?);
            }
            let old = there
                .get(&made.database)
                .and_then(|all| all.get(&part(&made.name)));
            if let Some(old) = old {
                if old.options[..] != made.options[..] || old.kind != made.kind {
                    self.tally.warnings.push(format!(
                        "`{}` has other options than in the archive; they stay as they are",
                        old.full()
                    ));
                }
            } else if made.kind != Kind::View {
                while tasks.len() >= self.parallel {
                    self.created(tasks.join_next().await)?;
                }
                let connection = self.connection.clone();
                let (unit, made) = (unit.clone(), made.clone());
                tasks.spawn(async move {
                    let refused = create(&connection, &made).await?;
                    Ok((unit, refused))
                });
            }
        }
        while !tasks.is_empty() {
            self.created(tasks.join_next().await)?;
        }
        self.made = all;
        self.find_buckets().await
    }

    fn created(&mut self, ended: Option<Result<Created, tokio::task::JoinError>>) -> Result<()> {
        let Some(ended) = ended else { return Ok(()) };
        let (unit, refused) = ended.map_err(|e| bug(format!("a task ended: {e}")))??;
        if let Some(why) = refused {
            self.give_up(&unit, why);
        }
        Ok(())
    }

    /// Where a time series keeps its measurements is the target's own matter.
    async fn find_buckets(&mut self) -> Result<()> {
        let series: Vec<Unit> = self
            .made
            .iter()
            .filter(|(_, made)| made.kind == Kind::TimeSeries)
            .map(|(unit, _)| unit.clone())
            .collect();
        for unit in series {
            let database = self.database(&unit.0);
            let there = self.there(&database).await?;
            if let Some(made) = self.made.get_mut(&unit) {
                match there.get(&unit.1) {
                    Some(c) if c.buckets => made.buckets = Some(c.data_name()),
                    Some(c) if c.kind == Kind::TimeSeries => made.raw = true,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Views look at what is there now; those that look at views come in any order.
    pub(super) async fn views(&mut self) -> Result<()> {
        let views: Vec<(Unit, Made)> = self
            .made
            .iter()
            .filter(|(_, made)| made.kind == Kind::View)
            .map(|(unit, made)| (unit.clone(), made.clone()))
            .collect();
        for (unit, view) in views {
            self.cx.check_cancelled()?;
            match create(&self.connection, &view).await? {
                None => {}
                Some(_) if self.existing == Existing::Merge => {
                    self.replace_view(&unit, &view).await?;
                }
                Some(why) => self.fail(&unit, why),
            }
        }
        Ok(())
    }

    async fn replace_view(&mut self, unit: &Unit, view: &Made) -> Result<()> {
        let there = self.there(&view.database).await?;
        match there.get(&unit.1) {
            Some(old) if old.kind == Kind::View && old.options[..] == view.options[..] => {
                return Ok(());
            }
            Some(old) if old.kind == Kind::View => {
                self.drop_collection(&view.database, &old.name).await?;
            }
            _ => {}
        }
        if let Some(why) = create(&self.connection, view).await? {
            self.fail(unit, why);
        }
        Ok(())
    }
}

/// Makes a collection or view; says why the server refuses it.
async fn create(connection: &Connection, made: &Made) -> Result<Option<String>> {
    let mut command = Writing::with_capacity(made.options.len() + 64).text("create", &made.name);
    for option in bson::elements(&made.options) {
        let option = option?;
        if !DROPPED_OPTIONS.contains(&option.name) {
            command.push_element(option.whole);
        }
    }
    match connection.run(&made.database, command).await {
        Ok(_) => Ok(None),
        Err(failure) if failure.code.is_some() => Ok(Some(format!(
            "`{}.{}` could not be made: {}",
            made.database, made.name, failure.error
        ))),
        Err(failure) => Err(failure.error),
    }
}

/// How a definition was taken.
enum Probed {
    Taken,
    /// The account may not make anything where it would be tried.
    Denied,
    Refused(String),
}

/// Makes a collection or view of these options, and drops it.
async fn probe(connection: &Connection, options: &[u8]) -> Result<Probed> {
    let drop_it = || {
        let command = Writing::new().text("drop", PROBE);
        connection.run(mark::NAME, command)
    };
    let mut command = Writing::with_capacity(options.len() + 64).text("create", PROBE);
    for option in bson::elements(options) {
        command.push_element(option?.whole);
    }
    let probed = match connection.run(mark::NAME, command).await {
        Ok(_) => Probed::Taken,
        Err(failure) if failure.is_denied() => return Ok(Probed::Denied),
        Err(failure) if failure.code.is_some() => Probed::Refused(failure.error.to_string()),
        Err(failure) => return Err(failure.error),
    };
    match drop_it().await {
        Ok(_) => Ok(probed),
        // One that was refused is not there.
        Err(failure) if failure.code.is_some() => Ok(probed),
        Err(failure) => Err(failure.error),
    }
}

/// The first of the options that mean nothing without this one.
fn family(option: &[u8]) -> &[u8] {
    FAMILIES
        .iter()
        .find(|family| family.contains(&option))
        .map_or(option, |family| family[0])
}

/// Options that are not dropped on purpose.
fn wanted_options(options: &[u8]) -> Result<Vec<u8>> {
    without(options, |name| DROPPED_OPTIONS.contains(&name))
}

/// Options but for some.
fn without(options: &[u8], goes: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
    let mut left = Writing::with_capacity(options.len());
    for option in bson::elements(options) {
        let option = option?;
        if !goes(option.name) {
            left.push_element(option.whole);
        }
    }
    Ok(left.bytes())
}
