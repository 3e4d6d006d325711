//! `bk backup`

use super::{print_json, say_causes, say_warnings};
use crate::args::{BackupArgs, Global};
use crate::output::{self, bytes, count, rate, say, seconds};
use bk_core::backup::{Backup, Limits, archive_name, draw_id};
use bk_core::config::{Config, SinkInstance, SourceInstance};
use bk_core::context::Context;
use bk_core::error::{Result, not_found, settings};
use bk_core::event::Moment;
use bk_core::hooks;
use bk_core::layout::Tier;
use bk_core::lock::RunLock;
use bk_core::manifest::State;
use bk_core::plan::BackupPlan;
use bk_core::report::{BackupReport, Cause, SinkReport, SourceReport};
use bk_core::tiers::{self, Placed};

pub async fn run(
    cx: &Context,
    config: &Config,
    args: &BackupArgs,
    global: &Global,
) -> Result<Vec<Cause>> {
    let sources = chosen(config, args)?;
    let created = cx.clock.now();
    let id = draw_id()?;
    let name = archive_name(&config.archive, created, &id);
    let plan = BackupPlan {
        name: name.in_tier(args.tier.unwrap_or_default()),
        id,
        created,
        label: args.label.clone(),
        subset: sources.len() < config.sources.len(),
        pin: args.pin,
        tier: args.tier,
        not_backed_up: config.not_enabled.clone(),
    };
    let sinks = config.backup_sinks();
    if sinks.is_empty() {
        return Err(settings("every sink is only read or fetched into")
            .hint("add a [sink.NAME] table without `read_only` and `fetch`"));
    }
    if args.dry_run {
        print_plan(config, &sources, &sinks, &plan);
        return Ok(Vec::new());
    }
    let _lock = RunLock::take(cx, &config.path, args.wait_lock.unwrap_or_default()).await?;
    // What asks for more than an archive of the period asks for one of its own.
    let is_plain = args.label.is_none() && !args.pin && !plan.subset;
    if let Some(tier) = args.tier.filter(|_| is_plain) {
        let zone = config.archive.zone();
        if let Some(placed) = tiers::place_young(cx, &sinks, tier, &zone).await? {
            print_placed(&placed, tier, global);
            return Ok(Vec::new());
        }
    }
    let backup = Backup {
        settings: &config.archive,
        sources: &sources,
        sinks: &sinks,
        plan,
        limits: Limits::default(),
    };
    let hook = config.run.before_backup.as_ref();
    hooks::before(cx, ("before_backup", hook), &[]).await?;
    let sinks: Vec<_> = sinks.iter().map(|sink| &sink.name).collect();
    let begun = serde_json::json!({
        "name": backup.plan.name.plain(), "id": backup.plan.id, "sinks": sinks,
        "sources": sources.iter().map(|source| &source.name).collect::<Vec<_>>()
    });
    cx.reached(Moment::BackupStarted, &begun);
    let mut report = backup.run(cx).await;
    let hook = config.run.after_backup.as_ref();
    let about = ("[run]", report.causes.is_empty());
    let after = hooks::after(cx, ("after_backup", hook), about, &[]).await;
    report.causes.extend(after);
    let moment = if report.causes.is_empty() {
        Moment::BackupDone
    } else {
        Moment::BackupFailed
    };
    cx.reached(moment, &report);
    if global.json {
        print_json(&report);
    } else {
        print(&report);
    }
    say_warnings(&report.warnings);
    say_causes(&report.causes);
    Ok(report.causes)
}

/// What stands for the period already, or does now.
fn print_placed(placed: &[Placed], tier: Tier, global: &Global) {
    if global.json {
        print_json(&serde_json::json!({ "tier": tier, "placed": placed }));
        return;
    }
    for one in placed {
        let how = if one.was_there {
            "has its archive already"
        } else {
            "placed, without another backup"
        };
        say(&format!("    {:8} {}   {tier}, {how}", one.sink, one.name));
    }
}

fn chosen(config: &Config, args: &BackupArgs) -> Result<Vec<SourceInstance>> {
    for name in args.only.iter().chain(&args.exclude) {
        if !config.sources.iter().any(|s| s.name == *name) {
            let near =
                bk_core::selector::nearest(name, config.sources.iter().map(|s| s.name.as_str()));
            return Err(not_found(format!("there is no source `{name}`"))
                .hint(format!("the nearest names: {}", near.join(", "))));
        }
    }
    let takes = |s: &&SourceInstance| {
        (args.only.is_empty() || args.only.contains(&s.name)) && !args.exclude.contains(&s.name)
    };
    let sources: Vec<_> = config.sources.iter().filter(takes).cloned().collect();
    if sources.is_empty() {
        return Err(settings("no source is set and enabled")
            .hint("add a [source.NAME] table, and its plugin to `plugins`"));
    }
    Ok(sources)
}

fn print_plan(
    config: &Config,
    sources: &[SourceInstance],
    sinks: &[SinkInstance],
    plan: &BackupPlan,
) {
    output::data(&format!(
        "would write {} of site {}, from {}",
        plan.name.plain(),
        config.archive.site,
        config.path.display()
    ));
    for source in sources {
        output::data(&format!("  from {} ({})", source.name, source.plugin));
    }
    for sink in sinks {
        output::data(&format!("  to   {} ({})", sink.name, sink.plugin));
    }
    for name in &plan.not_backed_up {
        output::data(&format!(
            "  not backed up: {name}, its plugin is not enabled"
        ));
    }
}

fn print(report: &BackupReport) {
    report.sources.iter().for_each(print_source);
    let published = report.sinks.iter().any(|s| s.published.is_some());
    if published {
        let milliseconds =
            (report.finished.as_millisecond() - report.started.as_millisecond()).max(1) as u64;
        let ratio = report.raw_bytes as f64 / report.bytes.max(1) as f64;
        let state = if report.complete { "whole" } else { "PARTIAL" };
        let between = if report.sources.len() > 1 {
            format!(", {} ms between sources", report.skew_ms)
        } else {
            String::new()
        };
        say(&format!(
            "  {}   {}   {ratio:.1} : 1   {}   {state}{between}",
            report.name,
            bytes(report.bytes),
            rate(report.raw_bytes, milliseconds)
        ));
    }
    report.sinks.iter().for_each(print_sink);
    for name in &report.not_backed_up {
        say(&format!(
            "  not backed up: {name}, its plugin is not enabled"
        ));
    }
}

fn print_source(source: &SourceReport) {
    let t = &source.totals;
    let state = match source.state {
        State::Whole => String::new(),
        State::Partial => format!("   PARTIAL, {} failed", count(t.failed, "unit")),
        State::Failed => "   FAILED".into(),
    };
    let at = source
        .position
        .as_ref()
        .map(|p| format!("   at {p}"))
        .unwrap_or_default();
    let what = format!(
        "{} · {}",
        count(t.units, "unit"),
        count(t.members, "member")
    );
    say(&format!(
        "  {:10} {what:30} {:>9}   {:>7}{at}{state}",
        source.name,
        bytes(t.bytes),
        seconds(source.milliseconds)
    ));
    for failed in &source.failed {
        say(&format!(
            "             failed: {}/{}: {}",
            failed.group, failed.name, failed.why
        ));
    }
    for warning in &source.warnings {
        say(&format!("             warning: {warning}"));
    }
}

fn print_sink(sink: &SinkReport) {
    let outcome = match (&sink.published, &sink.error) {
        (_, Some(error)) => format!("FAILED: {error}"),
        (Some((name, version)), None) => format!("{name}  version {version}  verified"),
        (None, None) => "nothing published".into(),
    };
    say(&format!(
        "    {:8} {}   {outcome}",
        sink.name, sink.describe
    ));
    for name in &sink.placed {
        say(&format!("             also as {name}"));
    }
    for line in &sink.pruned {
        say(&format!("             {line}"));
    }
}
