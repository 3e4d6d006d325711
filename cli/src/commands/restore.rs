//! `bk restore`

use super::{print_json, say_causes, say_warnings, wish};
use crate::args::{ExistingArg, Global, RestoreArgs};
use crate::builtin;
use crate::output::{self, bytes, count, say, seconds};
use bk_core::catalog::{Catalogue, What};
use bk_core::config::Config;
use bk_core::context::Context;
use bk_core::error::{Result, conflict, not_found};
use bk_core::event::Moment;
use bk_core::hooks;
use bk_core::lock::RunLock;
use bk_core::plan::{RestorePlan, Target};
use bk_core::report::{Cause, Class, RestoreReport};
use bk_core::restore::standby::{self, Next, Remembered};
use bk_core::restore::{self, Request};
use bk_core::selector::Selection;
use bk_core::source::Existing;
use std::io::{BufRead, IsTerminal, Write};

pub async fn run(
    cx: &Context,
    config: &Config,
    args: RestoreArgs,
    global: &Global,
) -> Result<Vec<Cause>> {
    if let Some(limit) = args.list_versions {
        return list_versions(cx, config, &args, limit, global).await;
    }
    let _lock = RunLock::take(cx, &config.path, args.wait_lock.unwrap_or_default()).await?;
    if let Some(name) = &args.forget_unfinished {
        restore::forget_unfinished(cx, config, name).await?;
        say(&format!(
            "the mark of the unfinished restore of `{name}` is gone"
        ));
        return Ok(Vec::new());
    }
    let request = request(&args)?;
    let prepared = restore::prepare(cx, config, request).await?;
    let around = builtin::memory_of_pod();
    let remembered = args.standby.then(|| {
        let file = args.standby_state.clone();
        Remembered::of(config, file, selection_typed(&args), around.as_deref())
    });
    let stale = args
        .max_age
        .and_then(|age| standby::stale(cx, &prepared.plan, age));
    let stale = stale.map(|error| Cause::of(Class::Stale, "", &error));
    if let Some(remembered) = remembered.as_ref().filter(|_| args.if_newer)
        && remembered.next(cx, &prepared.plan).await? == Next::Already
    {
        say(&format!("already at {}", prepared.plan.archive));
        return Ok(said(stale));
    }
    if global.json && args.dry_run {
        print_json(&prepared.plan);
    } else {
        print_plan(&prepared.plan);
    }
    if args.dry_run {
        let mut causes = Vec::new();
        for (name, preview) in prepared.preview(cx).await? {
            preview.lines.iter().for_each(|line| output::data(line));
            let failed = preview.failed.into_iter();
            causes.extend(failed.map(|what| Cause::partial(&name, what)));
        }
        say_causes(&causes);
        return Ok(causes);
    }
    confirm(&args)?;
    let plan = prepared.plan.clone();
    let hook = config.run.before_restore.as_ref();
    hooks::before(cx, ("before_restore", hook), &[]).await?;
    let mut report = prepared.run(cx).await;
    let hook = config.run.after_restore.as_ref();
    let about = ("[run]", report.causes.is_empty());
    let said = [("BK_ARCHIVE", plan.archive.as_str())];
    let after = hooks::after(cx, ("after_restore", hook), about, &said).await;
    report.causes.extend(after);
    if let Some(remembered) = remembered.filter(|_| report.causes.is_empty()) {
        remembered.remember(cx, &plan).await?;
    }
    let moment = if report.causes.is_empty() {
        Moment::RestoreDone
    } else {
        Moment::RestoreFailed
    };
    cx.reached(moment, &report);
    report.causes.extend(stale);
    if global.json {
        print_json(&report);
    } else {
        print(&report);
    }
    say_warnings(&report.warnings);
    say_causes(&report.causes);
    if let Some(command) = &report.repeat {
        say(&format!("to repeat only the rest: {command}"));
    }
    Ok(report.causes)
}

fn request(args: &RestoreArgs) -> Result<Request> {
    Ok(Request {
        wish: wish(&args.which, args.allow_partial),
        file: args.file.clone(),
        selection: Selection::parse(&args.only, &args.exclude)?,
        into: args.into.clone(),
        renamed: args.renamed.clone(),
        existing: args.existing.map(existing),
        no_verify_first: args.no_verify_first,
        offline_ok: args.which.offline_ok,
        standby: args.standby,
        keep_setuid: args.keep_setuid,
        outward_links: args.outward_links,
        recreate: args.recreate,
        prune_objects: args.prune_objects,
        catch_up: args.catch_up,
        cluster_id: args.cluster_id.clone(),
    })
}

/// What of an archive was asked for, as it was typed.
fn selection_typed(args: &RestoreArgs) -> Vec<String> {
    let flags = [
        ("only", &args.only),
        ("exclude", &args.exclude),
        ("into", &args.into),
        ("as", &args.renamed),
    ];
    flags
        .iter()
        .flat_map(|(flag, values)| values.iter().map(move |value| format!("--{flag} {value}")))
        .collect()
}

fn said(cause: Option<Cause>) -> Vec<Cause> {
    let causes: Vec<Cause> = cause.into_iter().collect();
    say_causes(&causes);
    causes
}

pub fn existing(arg: ExistingArg) -> Existing {
    match arg {
        ExistingArg::Refuse => Existing::Refuse,
        ExistingArg::Merge => Existing::Merge,
        ExistingArg::Replace => Existing::Replace,
    }
}

async fn list_versions(
    cx: &Context,
    config: &Config,
    args: &RestoreArgs,
    limit: usize,
    global: &Global,
) -> Result<Vec<Cause>> {
    let sinks = match &args.which.from {
        Some(name) => vec![config.sink(name)?.clone()],
        None => config.sinks.clone(),
    };
    let mut catalogue = Catalogue::read(cx, &sinks).await;
    if let Some((sink, error)) = catalogue.failures.pop().filter(|_| !args.which.offline_ok) {
        return Err(error
            .within(format!("could not list `{sink}`"))
            .hint("name one sink with --from, or repeat with --offline-ok"));
    }
    let mut seen = std::collections::BTreeSet::new();
    let (mut rows, mut ids) = (Vec::new(), Vec::new());
    for (entry, summary) in catalogue.archives() {
        // In tiers one archive lies in several places: it is one version.
        let copy = entry
            .tier()
            .map_or_else(|| entry.version(), |_| String::new());
        if rows.len() < limit && seen.insert((summary.id.clone(), copy)) {
            rows.push((entry.version(), summary.created));
            ids.push(summary.id.clone());
        }
    }
    // Of two of one second, only the id says which.
    let given: Vec<String> = rows.iter().map(|(version, _)| version.clone()).collect();
    for (row, id) in rows.iter_mut().zip(ids) {
        if given.iter().filter(|version| **version == row.0).count() > 1 {
            row.0 = id;
        }
    }
    for entry in &catalogue.entries {
        if rows.len() < limit
            && matches!(entry.what, What::Foreign)
            && entry.day_in_name().is_some()
        {
            let version = match entry.stored.version.as_str() {
                "" => entry.stored.name.trim_start_matches('/').to_owned(),
                version => version.to_owned(),
            };
            rows.push((version, entry.stored.modified));
        }
    }
    if rows.is_empty() {
        return Err(not_found("there is no archive of this site").hint("bk list --all"));
    }
    if global.json {
        print_json(&rows);
    } else {
        rows.iter()
            .for_each(|(version, created)| output::data(&format!("{version}  {created}")));
    }
    Ok(Vec::new())
}

fn print_plan(plan: &RestorePlan) {
    let state = if plan.complete { "" } else { "  PARTIAL" };
    let made = plan.created.strftime("%Y-%m-%d %H:%M:%S UTC");
    say(&if plan.foreign {
        format!("  from {}  last changed {made}, not made by bk", plan.name)
    } else {
        format!(
            "  from {}  {}  version {}  made {made} by {}{state}",
            plan.from, plan.name, plan.version, plan.tool
        )
    });
    plan.targets.iter().for_each(print_target);
    for name in &plan.without_source {
        say(&if plan.foreign {
            format!("  {name} is nothing that a source here knows")
        } else {
            format!("  {name:10} is in the archive, but no source here has that name")
        });
    }
    for (name, why) in &plan.skipped {
        say(&format!("  skipped    {name} ({why})"));
    }
    say(&format!(
        "  reads {} of {}, settings {}",
        bytes(plan.reads_bytes),
        bytes(plan.of_bytes),
        plan.settings
    ));
}

fn print_target(target: &Target) {
    let existing = match target.existing {
        None => "what is there is merged or replaced as is usual for its kind",
        Some(Existing::Refuse) => "nothing may be there",
        Some(Existing::Merge) => "the archive wins, the rest stays",
        Some(Existing::Replace) => "replaced: what the archive does not have is removed",
    };
    say(&format!(
        "  {:10} {} · {}  to {}",
        target.source,
        count(target.units, "unit"),
        bytes(target.bytes),
        target.describe
    ));
    say(&format!("             {existing}"));
    for into in &target.into {
        say(&format!("             {into}"));
    }
    let named: Vec<_> = target
        .selected
        .iter()
        .take(8)
        .map(|s| {
            s.unit
                .as_ref()
                .map_or_else(|| s.group.clone(), |unit| format!("{}/{unit}", s.group))
        })
        .collect();
    let more = target.selected.len().saturating_sub(named.len());
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    say(&format!("             {}{more}", named.join(", ")));
}

/// Asks on a terminal; elsewhere it needs `--yes`.
fn confirm(args: &RestoreArgs) -> Result<()> {
    if args.yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(
            conflict("nobody can be asked here, and this would overwrite things")
                .hint("look at the plan above, then repeat with --yes"),
        );
    }
    // The question goes where the plan went.
    let _ = write!(std::io::stderr().lock(), "restore now? [y/N] ");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    match read.map(|_| answer.trim().to_ascii_lowercase()) {
        Ok(answer) if answer == "y" || answer == "yes" => Ok(()),
        _ => Err(conflict("not confirmed, nothing was changed")),
    }
}

fn print(report: &RestoreReport) {
    for restored in &report.restored {
        let what = format!(
            "{} · {}",
            count(restored.units, "unit"),
            count(restored.members, "member")
        );
        say(&format!(
            "  {:10} {what:30} {:>9}   {:>7}   restored and counted",
            restored.name,
            bytes(restored.bytes),
            seconds(restored.milliseconds)
        ));
        for kept in &restored.kept {
            say(&format!("             kept, not in the archive: {kept}"));
        }
    }
    for released in &report.released {
        say(&format!("  {released}"));
    }
    for healed in &report.healed {
        say(&format!("  {healed}"));
    }
}
