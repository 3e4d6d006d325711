//! One restore: choose, plan, verify what will be read, write, count, compare. Plan in, report out.

pub mod foreign;
pub mod input;
pub mod select;
pub mod standby;
mod waves;

use crate::archive::foreign::Foreign;
use crate::archive::format::Stage;
use crate::archive::read_at::{ReadAt, SinkReadAt};
use crate::archive::reader::Copies;
use crate::archive::tail::Opened;
use crate::catalog::{Catalogue, Wish};
use crate::config::{Config, SinkInstance, SourceInstance};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, conflict, not_found, settings};
use crate::event::{Event, Moment};
use crate::hooks;
use crate::plan::{RestorePlan, Target};
use crate::report::{Cause, Class, RestoreReport, RestoredReport};
use crate::selector::{Selection, parse_into};
use crate::source::{Existing, Health, Preview, RestoreOptions, Tally};
use input::{Delivered, Input, UnitCount};
use jiff::tz::TimeZone;
use select::Selected;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What a person asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Which archive.
    pub wish: Wish,
    /// An archive that is a file here.
    pub file: Option<PathBuf>,
    /// What of it.
    pub selection: Selection,
    /// `--into`, as typed.
    pub into: Vec<String>,
    /// `--as old=new`, as typed.
    pub renamed: Vec<String>,
    /// `--existing`.
    pub existing: Option<Existing>,
    /// Skip the check of every selected block before the first byte is written.
    pub no_verify_first: bool,
    /// Go on when a sink does not answer.
    pub offline_ok: bool,
    /// Refuse when the target is the very server that the archive came from.
    pub standby: bool,
    /// Give back setuid and setgid bits.
    pub keep_setuid: bool,
    /// Write symbolic links that lead out.
    pub outward_links: bool,
    /// Delete and make anew what the target calls unchangeable.
    pub recreate: bool,
    /// With `Existing::Replace`: delete objects that the archive does not have.
    pub prune_objects: bool,
    /// What was held back may make up for what it missed.
    pub catch_up: bool,
    /// Who the target of a standby restore is, where it cannot be asked.
    pub cluster_id: Option<String>,
}

impl Request {
    /// What a source is told of it, but for new names. `instance` is the name that selectors use.
    fn options(
        &self,
        instance: &str,
        id: &str,
        archive: &str,
        selected: Vec<crate::source::Selected>,
    ) -> RestoreOptions {
        RestoreOptions {
            existing: self.existing,
            into_group: Vec::new(),
            into_place: None,
            id: id.to_owned(),
            archive: archive.to_owned(),
            selected,
            selection: self.selection.of_instance(instance),
            partial_too: self.wish.partial_too,
            forget_unfinished: false,
            keep_setuid: self.keep_setuid,
            outward_links: self.outward_links,
            recreate: self.recreate,
            prune_objects: self.prune_objects,
            hold: false,
            standby: self.standby,
            at_home: false,
        }
    }
}

/// A restore that is planned and has touched nothing.
pub struct Prepared<'a> {
    /// What is about to happen.
    pub plan: RestorePlan,
    origin: Origin,
    sources: Vec<(String, &'a SourceInstance, RestoreOptions)>,
    request: Request,
    warnings: Vec<String>,
}

/// What is read.
enum Origin {
    /// An archive: what of it, and its copies.
    Archive(Selected, Arc<Copies>),
    /// What `bk` did not make: what each source gets of it.
    Foreign(HashMap<String, Arc<foreign::Claimed>>),
}

/// Opens the archive that is meant: the copy that is read first, and those that stand in.
pub async fn open(
    cx: &Context,
    config: &Config,
    request: &Request,
) -> Result<(Chosen, Vec<String>)> {
    match &request.file {
        Some(path) => Ok((open_file(path).await?, Vec::new())),
        None => {
            Shelves::look(cx, config, request)
                .await?
                .open(cx, request)
                .await
        }
    }
}

async fn open_file(path: &Path) -> Result<Chosen> {
    let read = Arc::new(crate::archive::read_at::FileReadAt::open(path)?);
    let opened = Opened::open(read)
        .await
        .map_err(|e| e.within(format!("`{}`", path.display())))?;
    Ok(Chosen {
        from: "file".into(),
        name: path.display().to_string(),
        version: crate::name::compact(opened.manifest.created),
        copies: vec![("file".into(), Arc::new(opened))],
    })
}

/// The sinks that are asked, and what lies on them.
struct Shelves {
    sinks: Vec<SinkInstance>,
    catalogue: Catalogue,
    zone: TimeZone,
    warnings: Vec<String>,
}

impl Shelves {
    async fn look(cx: &Context, config: &Config, request: &Request) -> Result<Self> {
        let sinks: Vec<SinkInstance> = match &request.wish.from {
            Some(name) => vec![config.sink(name)?.clone()],
            None => config.sinks.clone(),
        };
        let catalogue = Catalogue::read(cx, &sinks).await;
        let mut warnings = Vec::new();
        for (sink, error) in &catalogue.failures {
            if !request.offline_ok {
                return Err(error
                    .duplicate()
                    .within(format!("could not list `{sink}`"))
                    .hint("name one sink with --from, or repeat with --offline-ok"));
            }
            warnings.push(format!("could not list `{sink}`: {error}"));
        }
        Ok(Self {
            sinks,
            catalogue,
            zone: config.archive.zone(),
            warnings,
        })
    }

    /// What others left, when a date or a version asks for it and nothing of this site fits. One of ours that fits and cannot be opened is no
    /// reason to take a stranger's.
    async fn strangers(
        &self,
        cx: &Context,
        request: &Request,
    ) -> Result<Option<(String, String, Foreign)>> {
        let wish = &request.wish;
        let ours = self.catalogue.choose(wish, &self.zone);
        let none_of_ours = matches!(ours, Err(error) if error.kind == ErrorKind::NotFound);
        if !wish.is_definite() || !none_of_ours {
            return Ok(None);
        }
        foreign::on_sinks(cx, &self.catalogue, &self.sinks, wish, &self.zone).await
    }

    async fn open(self, cx: &Context, request: &Request) -> Result<(Chosen, Vec<String>)> {
        let mut warnings = self.warnings;
        let mut copies = Vec::new();
        let mut first_failure = None;
        let mut chosen = None;
        for entry in self.catalogue.choose(&request.wish, &self.zone)? {
            let Some(instance) = self.sinks.iter().find(|s| s.name == entry.sink) else {
                continue;
            };
            let read: Arc<dyn ReadAt> = Arc::new(SinkReadAt::new(
                cx.for_instance(&entry.sink),
                instance.sink.clone(),
                entry.stored.clone(),
            ));
            match Opened::open(read).await {
                Ok(opened) => {
                    chosen.get_or_insert_with(|| {
                        (
                            entry.sink.clone(),
                            entry.stored.name.clone(),
                            entry.version(),
                        )
                    });
                    copies.push((entry.sink.clone(), Arc::new(opened)));
                }
                Err(error) => {
                    warnings.push(format!(
                        "`{}` on `{}`: {error}",
                        entry.stored.name, entry.sink
                    ));
                    first_failure.get_or_insert(
                        error.within(format!("`{}` on `{}`", entry.stored.name, entry.sink)),
                    );
                }
            }
        }
        match (chosen, first_failure) {
            (Some((from, name, version)), _) => Ok((
                Chosen {
                    from,
                    name,
                    version,
                    copies,
                },
                warnings,
            )),
            (None, Some(error)) => Err(error),
            (None, None) => Err(crate::error::bug("an archive was chosen and is on no sink")),
        }
    }
}

/// An archive that was chosen and opened.
pub struct Chosen {
    /// The sink, or `file`.
    pub from: String,
    /// Its name there.
    pub name: String,
    /// Its version word.
    pub version: String,
    /// Copies by sink; the first is read.
    pub copies: Vec<(String, Arc<Opened>)>,
}

/// Plans a restore. Reads, writes nothing.
pub async fn prepare<'a>(
    cx: &Context,
    config: &'a Config,
    request: Request,
) -> Result<Prepared<'a>> {
    let (chosen, warnings) = match &request.file {
        Some(path) if foreign::is_foreign(path).await? => {
            let thing = ("file".into(), String::new(), Foreign::open(path).await?);
            return foreign::prepare(cx, config, request, thing).await;
        }
        Some(path) => (open_file(path).await?, Vec::new()),
        None => {
            let shelves = Shelves::look(cx, config, &request).await?;
            if let Some(found) = shelves.strangers(cx, &request).await? {
                return foreign::prepare(cx, config, request, found).await;
            }
            shelves.open(cx, &request).await?
        }
    };
    prepare_archive(cx, config, request, chosen, warnings).await
}

/// The same for an archive of this site that was chosen and opened.
async fn prepare_archive<'a>(
    cx: &Context,
    config: &'a Config,
    request: Request,
    chosen: Chosen,
    mut warnings: Vec<String>,
) -> Result<Prepared<'a>> {
    let opened = chosen.copies[0].1.clone();
    let manifest = &opened.manifest;
    if !manifest.complete && !request.wish.partial_too {
        return Err(is_partial(&chosen.name));
    }
    let selected = select::select(&opened, &request.selection).await?;
    let id = crate::backup::draw_id()?;
    let renamed = renames(&request.renamed)?;
    let (mut targets, mut sources, mut without_source) = (Vec::new(), Vec::new(), Vec::new());
    let mut skipped = selected.skipped.clone();
    let mut hollow = Vec::new();
    for instance in &manifest.instances {
        if !selected.has_instance(&instance.name) {
            let why = if request.selection.touches_instance(&instance.name) {
                hollow.push(instance.name.as_str());
                "nothing whole in it is selected"
            } else {
                request.selection.why_not(&instance.name)
            };
            skipped.push((instance.name.clone(), why.into()));
            continue;
        }
        let name = renamed.get(&instance.name).unwrap_or(&instance.name);
        let Some(source) = config.sources.iter().find(|s| s.name == *name) else {
            without_source.push(instance.name.clone());
            continue;
        };
        if source.plugin != instance.plugin
            && !(source.plugin == "files" && instance.plugin == "caddy"
                || source.plugin == "caddy" && instance.plugin == "files")
        {
            return Err(conflict(format!(
                "`{}` was backed up by the plugin `{}`, but `{name}` here is `{}`",
                instance.name, instance.plugin, source.plugin
            ))
            .hint(format!("map it with --as {}=NAME", instance.name)));
        }
        let (health, answers) = health_of(cx, name, source, &selected).await?;
        warnings.extend(health.warnings.iter().map(|w| format!("`{name}`: {w}")));
        let at_home = !health.identity.is_empty() && health.identity == instance.identity;
        // One that does not answer yet is asked who it is when it does, before anything is written to it.
        if request.standby && (answers || instance.identity.is_empty()) {
            standby::refuse_home(
                name,
                &health,
                &instance.identity,
                request.cluster_id.as_deref(),
            )?;
        }
        let mut options = options(&request, &instance.name, name, &id, &manifest.id, &selected)?;
        options.at_home = at_home;
        targets.push(target(
            &instance.name,
            name,
            &health.describe,
            &options,
            &selected,
        ));
        sources.push((instance.name.clone(), source, options));
    }
    if sources.is_empty() && without_source.is_empty() && !hollow.is_empty() {
        return Err(nothing_whole(&hollow, &chosen.name));
    }
    into_are_used(&request.into, &sources)?;
    warnings.extend(waves::hold(&mut sources));
    let plan = RestorePlan {
        id,
        from: chosen.from,
        name: chosen.name,
        version: chosen.version,
        archive: manifest.id.clone(),
        created: manifest.created,
        site: manifest.site.clone(),
        tool: manifest.tool.clone(),
        complete: manifest.complete,
        foreign: false,
        settings: config.path.display().to_string(),
        targets,
        skipped,
        without_source,
        reads_bytes: selected.stored_bytes(),
        of_bytes: opened.stored_bytes(),
    };
    Ok(Prepared {
        plan,
        origin: Origin::Archive(selected, Arc::new(Copies::new(chosen.copies))),
        sources,
        request,
        warnings,
    })
}

/// How a target is, and whether it answers: one that lives in what is restored before it need not yet.
async fn health_of(
    cx: &Context,
    name: &str,
    source: &SourceInstance,
    selected: &Selected,
) -> Result<(Health, bool)> {
    let waits_for = |name: &String| selected.has_instance(name);
    match source.source.check(&cx.for_instance(name)).await {
        Err(error)
            if error.kind == ErrorKind::Unreachable && source.after.iter().any(waits_for) =>
        {
            Ok((waves::not_there_yet(&error), false))
        }
        Ok(health) => Ok((health, true)),
        Err(error) => Err(error.within(format!("the target `{name}`"))),
    }
}

fn is_partial(archive: &str) -> Error {
    conflict(format!(
        "the archive `{archive}` is partial: something named is missing in it"
    ))
    .hint("look with bk show, then repeat with --allow-partial")
}

fn nothing_whole(instances: &[&str], archive: &str) -> Error {
    not_found(format!(
        "nothing of `{}` that was selected is whole in `{archive}`",
        instances.join("`, `")
    ))
    .hint("bk show --units says what failed; an earlier archive may have it: bk list")
}

fn renames(typed: &[String]) -> Result<HashMap<String, String>> {
    typed
        .iter()
        .map(|text| match text.split_once('=') {
            Some((old, new)) if !old.is_empty() && !new.is_empty() => {
                Ok((old.to_owned(), new.to_owned()))
            }
            _ => Err(settings(format!("`--as {text}` is not understood"))
                .hint("write --as OLD=NEW: the archive's instance, the one here")),
        })
        .collect()
}

fn options(
    request: &Request,
    archived: &str,
    here: &str,
    id: &str,
    archive: &str,
    selected: &Selected,
) -> Result<RestoreOptions> {
    let mut options = request.options(archived, id, archive, selected.of_instance(archived));
    for typed in &request.into {
        let (instance, group, to) = parse_into(typed)?;
        if instance != archived && instance != here {
            continue;
        }
        match group {
            None => options.into_place = Some(PathBuf::from(to)),
            Some(group) if options.selected.iter().any(|s| s.group == group) => {
                options.into_group.push((group, to));
            }
            Some(group) => {
                return Err(crate::error::not_found(format!(
                    "`--into {typed}`: group `{group}` is not among what is restored"
                ))
                .hint("bk show --units lists groups; --only and --exclude leave some out"));
            }
        }
    }
    Ok(options)
}

fn into_are_used(
    typed: &[String],
    sources: &[(String, &SourceInstance, RestoreOptions)],
) -> Result<()> {
    for text in typed {
        let (instance, _, _) = parse_into(text)?;
        if !sources
            .iter()
            .any(|(archived, source, _)| *archived == instance || source.name == instance)
        {
            return Err(crate::error::not_found(format!(
                "`--into {text}`: `{instance}` is not among what is restored"
            ))
            .hint("bk show lists what an archive holds"));
        }
    }
    Ok(())
}

fn target(
    instance: &str,
    name: &str,
    describe: &str,
    options: &RestoreOptions,
    selected: &Selected,
) -> Target {
    let totals = selected.totals_of(instance);
    Target {
        instance: instance.to_owned(),
        source: name.to_owned(),
        describe: describe.to_owned(),
        existing: options.existing,
        selected: options.selected.clone(),
        units: totals.units,
        rows: totals.rows,
        bytes: totals.bytes,
        into: into_lines(options),
        groups: options.into_group.clone(),
    }
}

/// New names and places, for people.
fn into_lines(options: &RestoreOptions) -> Vec<String> {
    let groups = options.into_group.iter();
    let place = options.into_place.iter();
    groups
        .map(|(from, to)| format!("{from} as {to}"))
        .chain(place.map(|p| format!("into {}", p.display())))
        .collect()
}

impl Prepared<'_> {
    /// Writes. The report says everything, also after a failure.
    pub async fn run(mut self, cx: &Context) -> RestoreReport {
        let mut report = RestoreReport {
            id: self.plan.id.clone(),
            archive: self.plan.archive.clone(),
            restored: Vec::new(),
            skipped: self.plan.skipped.clone(),
            healed: Vec::new(),
            warnings: std::mem::take(&mut self.warnings),
            repeat: None,
            released: Vec::new(),
            causes: Vec::new(),
        };
        for name in &self.plan.without_source {
            if self.plan.foreign {
                report.causes.push(foreign::unclaimed_cause(name));
                continue;
            }
            let mut cause = Cause::partial(
                name,
                "the archive has it, but there is no source of that name here",
            );
            cause.hint = Some(format!(
                "repeat with --exclude {name}, or map it with --as {name}=NAME"
            ));
            report.causes.push(cause);
        }
        if let Err(error) = self.verify_first(cx).await {
            report.causes.push(Cause::new(&self.plan.name, &error));
            return report;
        }
        cx.reached(Moment::RestoreStarted, &self.plan);
        let sources = std::mem::take(&mut self.sources);
        let results = self.in_waves(cx, &sources).await;
        let whole = results
            .iter()
            .all(|result| matches!(result, Ok((_, causes, _)) if causes.is_empty()));
        for ((instance, source, _), result) in sources.iter().zip(results) {
            match result {
                Ok((restored, causes, warnings)) => {
                    report.restored.push(restored);
                    report.causes.extend(causes);
                    report.warnings.extend(warnings);
                }
                Err(error) => {
                    report.repeat = Some(self.repeat(instance));
                    report.causes.push(Cause::new(&source.name, &error));
                }
            }
        }
        self.release(cx, &sources, whole, &mut report).await;
        if let Origin::Archive(_, copies) = &self.origin {
            report.healed = copies.healed();
        }
        report.causes.sort_by_key(|cause| cause.class);
        report
    }

    /// The request as it was typed, for what of this instance it asked.
    fn repeat(&self, instance: &str) -> String {
        let mut only: Vec<String> = self
            .request
            .selection
            .only
            .iter()
            .filter(|s| s.touches(instance))
            .map(ToString::to_string)
            .collect();
        if only.is_empty() {
            only.push(instance.to_owned());
        }
        self.command(&only, &[])
    }

    fn command(&self, only: &[String], also_exclude: &[String]) -> String {
        let request = &self.request;
        let mut words = vec!["bk restore".to_owned()];
        match &request.file {
            Some(file) => words.push(format!("'{}'", file.display())),
            None => words.push(format!(
                "--from {} --version {}",
                self.plan.from, self.plan.version
            )),
        }
        let mut flag = |name: &str, value: &str| words.push(format!("{name} '{value}'"));
        only.iter().for_each(|selector| flag("--only", selector));
        request
            .selection
            .exclude
            .iter()
            .for_each(|selector| flag("--exclude", &selector.to_string()));
        also_exclude
            .iter()
            .for_each(|selector| flag("--exclude", selector));
        request.into.iter().for_each(|into| flag("--into", into));
        request
            .renamed
            .iter()
            .for_each(|renamed| flag("--as", renamed));
        match request.existing {
            None => {}
            Some(Existing::Refuse) => flag("--existing", "refuse"),
            Some(Existing::Merge) => flag("--existing", "merge"),
            Some(Existing::Replace) => flag("--existing", "replace"),
        }
        words.join(" ")
    }

    /// Every selected block's stored sum, before the first byte is written. A foreign thing was read to its end when it was planned.
    async fn verify_first(&self, cx: &Context) -> Result<()> {
        let Origin::Archive(selected, copies) = &self.origin else {
            return Ok(());
        };
        if self.request.no_verify_first {
            return Ok(());
        }
        cx.tell(&Event::Phase("verifying"));
        let bad = copies.verify(&selected.picked).await?;
        if bad.is_empty() {
            return Ok(());
        }
        let touched = selected.units_in(&bad);
        let only: Vec<String> = self
            .request
            .selection
            .only
            .iter()
            .map(ToString::to_string)
            .collect();
        Err(Error::corrupt(format!("{} damaged blocks, and no other sink has them whole; they touch {}. Nothing was written", bad.len(), touched.join(", ")))
            .hint(format!("this restores the rest: {}", self.command(&only, &touched))))
    }

    async fn restore_one(
        &self,
        cx: &Context,
        instance: &str,
        source: &SourceInstance,
        options: &RestoreOptions,
    ) -> Result<(RestoredReport, Vec<Cause>, Vec<String>)> {
        let cx = cx.for_instance(&source.name);
        let restored = self.restore_watched(&cx, instance, source, options).await;
        let told = match &restored {
            Ok((restored, causes, _)) => {
                serde_json::json!({ "restored": restored, "causes": causes })
            }
            Err(error) => serde_json::json!({ "causes": [Cause::new(&source.name, error)] }),
        };
        cx.reached(Moment::RestoreSourceDone, &told);
        restored
    }

    async fn restore_watched(
        &self,
        cx: &Context,
        instance: &str,
        source: &SourceInstance,
        options: &RestoreOptions,
    ) -> Result<(RestoredReport, Vec<Cause>, Vec<String>)> {
        cx.tell(&Event::Phase("restoring"));
        let began = std::time::Instant::now();
        let delivered = Arc::new(Mutex::new(Delivered::default()));
        let input = self.input(cx, instance, &delivered)?;
        let expected = input.counts.clone();
        let named = [
            ("BK_INSTANCE", source.name.as_str()),
            ("BK_ARCHIVE", options.archive.as_str()),
        ];
        let hook = source.hooks.before_restore.as_ref();
        hooks::before(cx, ("before_restore", hook), &named).await?;
        let tally = source.source.restore(cx, input, options).await;
        let hook = source.hooks.after_restore.as_ref();
        let about = (source.name.as_str(), tally.is_ok());
        let after = hooks::after(cx, ("after_restore", hook), about, &named).await;
        let tally = tally?;
        cx.tell(&Event::Done);
        if let Some(failure) = &lock(&delivered).failure {
            return Err(failure.duplicate());
        }
        let mut causes: Vec<Cause> = after.into_iter().collect();
        let units = match &self.origin {
            Origin::Archive(selected, _) => {
                compare_delivered(selected, instance, &lock(&delivered))?;
                let parts = lock(&delivered).further_parts.clone();
                let expected = expected.without_further_parts(&parts).all();
                compare_tally(&source.name, &expected, &tally, &mut causes);
                selected.totals_of(instance).units
            }
            Origin::Foreign(_) => {
                compare_entries(&source.name, &expected.all(), &tally, &mut causes);
                units_of(&tally)
            }
        };
        causes.extend(
            tally
                .failed
                .iter()
                .map(|what| Cause::partial(&source.name, what.clone())),
        );
        let restored = RestoredReport {
            name: source.name.clone(),
            units,
            rows: tally.units.iter().map(|u| u.rows).sum(),
            members: tally.units.iter().map(|u| u.members).sum(),
            bytes: tally.units.iter().map(|u| u.bytes).sum(),
            kept: tally.kept,
            milliseconds: began.elapsed().as_millis() as u64,
        };
        Ok((restored, causes, tally.warnings))
    }

    /// Who the archived instance was.
    fn identity_of(&self, instance: &str) -> String {
        match &self.origin {
            Origin::Archive(_, copies) => {
                let archived = copies.first().manifest.instance(instance);
                archived
                    .map(|archived| archived.identity.clone())
                    .unwrap_or_default()
            }
            Origin::Foreign(_) => String::new(),
        }
    }

    /// What the restore would do to each thing, as the targets say: source and lines.
    pub async fn preview(&self, cx: &Context) -> Result<Vec<(String, Preview)>> {
        let mut previews = Vec::new();
        for (instance, source, options) in &self.sources {
            let cx = cx.for_instance(&source.name);
            let input = self.input(&cx, instance, &Arc::default())?;
            previews.push((
                source.name.clone(),
                source.source.preview(&cx, input, options).await?,
            ));
        }
        Ok(previews)
    }

    fn input(
        &self,
        cx: &Context,
        instance: &str,
        delivered: &Arc<Mutex<Delivered>>,
    ) -> Result<Input> {
        match &self.origin {
            Origin::Archive(selected, copies) => {
                lock(delivered).declared = selected.declared(instance);
                let unknown = || crate::error::bug("an instance that the manifest does not know");
                let archived = copies.first().manifest.instance(instance);
                let facts = archived.ok_or_else(unknown)?.facts.clone();
                Ok(selected.input(cx, instance, facts, copies.clone(), delivered.clone()))
            }
            Origin::Foreign(claimed) => {
                let unknown = || crate::error::bug("a source that claimed nothing");
                let claimed = claimed.get(instance).ok_or_else(unknown)?;
                Ok(claimed.input(cx, instance, delivered.clone()))
            }
        }
    }
}

fn lock(delivered: &Mutex<Delivered>) -> std::sync::MutexGuard<'_, Delivered> {
    delivered
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What came out of the archive is what its index promises.
fn compare_delivered(selected: &Selected, instance: &str, delivered: &Delivered) -> Result<()> {
    for (key, declared) in selected.declared(instance) {
        let got = delivered.counts.get(&key).copied().unwrap_or_default();
        if got != declared {
            let unit = selected.unit_name(key.0);
            return Err(Error::corrupt(format!(
                "unit `{instance}/{unit}` should have {} members and {} bytes, the archive holds {} and {}",
                declared.0, declared.1, got.0, got.1
            )));
        }
    }
    Ok(())
}

/// Of what `bk` did not make only the entries are known beforehand.
fn compare_entries(source: &str, expected: &[UnitCount], tally: &Tally, causes: &mut Vec<Cause>) {
    let members = |counts: &[UnitCount]| counts.iter().map(|unit| unit.members).sum::<u64>();
    let (want, got) = (members(expected), members(&tally.units));
    if want != got && tally.failed.is_empty() && !expected.is_empty() {
        let error = Error::new(
            ErrorKind::Plugin,
            format!("{got} of {want} entries were restored"),
        );
        causes.push(Cause::of(Class::Failed, source, &error));
    }
}

fn units_of(tally: &Tally) -> u64 {
    let named = tally.units.iter().filter(|unit| !unit.name.is_empty());
    let units: std::collections::HashSet<_> = named.map(|unit| (&unit.group, &unit.name)).collect();
    units.len() as u64
}

/// What the target acknowledged, against the manifest: a difference is a failure, not a warning.
fn compare_tally(source: &str, expected: &[UnitCount], tally: &Tally, causes: &mut Vec<Cause>) {
    let mut got: BTreeMap<(&str, &str, Stage), (u64, u64)> = BTreeMap::new();
    for unit in &tally.units {
        let sum = got
            .entry((&unit.group, &unit.name, unit.stage))
            .or_default();
        *sum = (sum.0 + unit.rows, sum.1 + unit.members);
    }
    let mut wrong = 0_u64;
    let mut first = None;
    for unit in expected {
        let got = got
            .get(&(unit.group.as_str(), unit.name.as_str(), unit.stage))
            .copied()
            .unwrap_or_default();
        if got != (unit.rows, unit.members) {
            wrong += 1;
            first.get_or_insert_with(|| {
                format!(
                    "`{}/{}`: {} of {} rows, {} of {} members",
                    unit.group, unit.name, got.0, unit.rows, got.1, unit.members
                )
            });
        }
    }
    if let Some(first) = first
        && tally.failed.is_empty()
    {
        let error = Error::new(
            ErrorKind::Plugin,
            format!(
                "{wrong} units came back other than they were counted at backup; first {first}"
            ),
        );
        causes.push(Cause::of(Class::Failed, source, &error));
    }
}

/// Forgets the mark of an unfinished restore of one instance.
pub async fn forget_unfinished(cx: &Context, config: &Config, name: &str) -> Result<()> {
    let source = config.source(name)?;
    let id = crate::backup::draw_id()?;
    let options = RestoreOptions {
        forget_unfinished: true,
        ..Request::default().options(name, &id, "", Vec::new())
    };
    let cx = cx.for_instance(name);
    let input = Input::empty(&cx);
    source.source.restore(&cx, input, &options).await.map(drop)
}
