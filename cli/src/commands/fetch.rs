//! `bk fetch`

use super::{print_json, say_causes, say_warnings};
use crate::args::{FetchArgs, Global};
use crate::builtin;
use crate::output::{bytes, count, data, say};
use bk_core::config::{Config, FetchSettings, SinkInstance, SinkPolicy};
use bk_core::context::Context;
use bk_core::error::{Error, Result, settings, unsupported};
use bk_core::fetch::{FetchOptions, FetchReport, fetch};
use bk_core::report::Cause;
use bk_core::settings::Settings;
use jiff::SignedDuration;
use std::path::Path;

/// One folder to fill.
struct Task {
    to: SinkInstance,
    what: FetchSettings,
}

pub async fn run(
    cx: &Context,
    config: &Config,
    args: &FetchArgs,
    global: &Global,
) -> Result<Vec<Cause>> {
    let zone = config.archive.zone();
    let (mut reports, mut causes) = (Vec::new(), Vec::new());
    for task in tasks(config, args, global)? {
        let from = config.sink(&task.what.from)?;
        // `--site` says it for all of them.
        let site = match (&global.site, &task.what.site) {
            (None, Some(site)) => site.as_str().into(),
            _ => cx.site.clone(),
        };
        let cx = Context { site, ..cx.clone() };
        let asked = args
            .max_age
            .and_then(|age| SignedDuration::try_from(age).ok());
        let options = FetchOptions {
            all: args.all || task.what.all,
            max_age: asked.or(task.what.max_age.map(|age| age.0)),
            dry_run: args.dry_run,
            patience: args.wait_lock.unwrap_or_default(),
        };
        let report = fetch(&cx, from, &task.to, &zone, &options).await;
        if !global.json {
            print(&report, args);
        }
        say_warnings(&report.warnings);
        say_causes(&report.causes);
        causes.extend(report.causes.iter().cloned());
        reports.push(report);
    }
    if global.json {
        print_json(&reports);
    }
    Ok(causes)
}

/// A folder that is named here, or all that the settings have a `fetch` table for.
fn tasks(config: &Config, args: &FetchArgs, global: &Global) -> Result<Vec<Task>> {
    if let Some(path) = &args.into {
        return Ok(vec![Task {
            to: folder(config, path)?,
            what: FetchSettings {
                from: the_source(config, args)?,
                site: None,
                all: args.all,
                max_age: None,
            },
        }]);
    }
    let of_source = |what: &FetchSettings| args.from.as_ref().is_none_or(|from| *from == what.from);
    // With `--site` the folder of another site is not filled with it.
    let of_site = |what: &FetchSettings| {
        global.site.is_none() || what.site.is_none() || global.site == what.site
    };
    let tasks: Vec<Task> = config
        .sinks
        .iter()
        .filter_map(|sink| {
            let what = sink.policy.fetch.clone()?;
            let to = sink.clone();
            (of_source(&what) && of_site(&what)).then_some(Task { to, what })
        })
        .collect();
    if tasks.is_empty() {
        return Err(settings("no sink has a `fetch` table for this").hint(
            "name the folder: bk fetch --from SINK DIR; or write fetch = { from = \"SINK\" } into a [sink.NAME] table of a folder",
        ));
    }
    Ok(tasks)
}

/// The sink that the settings have for this folder, with its own rules; else a folder for each day, and the last ten.
fn folder(config: &Config, path: &Path) -> Result<SinkInstance> {
    let same = |sink: &&SinkInstance| {
        let folders = (
            sink.sink.folder().map(Path::canonicalize),
            path.canonicalize(),
        );
        matches!(folders, (Some(Ok(one)), Ok(two)) if one == two)
    };
    if let Some(sink) = config.sinks.iter().find(same) {
        return Ok(sink.clone());
    }
    let registry = builtin::registry();
    let plugin = registry
        .sink("local")
        .ok_or_else(|| unsupported("this bk was built without the sink `local`"))?;
    let name = path.display().to_string();
    let table = serde_json::json!({ "path": path, "layout": "dates" });
    let sink = (plugin.build)(Settings {
        instance: name.clone(),
        folder: ".".into(),
        table: table.as_object().cloned().unwrap_or_default(),
    })?;
    Ok(SinkInstance {
        name,
        plugin: "local".into(),
        policy: SinkPolicy::default(),
        sink,
    })
}

/// `--from`, or the only sink that is somewhere else.
fn the_source(config: &Config, args: &FetchArgs) -> Result<String> {
    if let Some(from) = &args.from {
        return config.sink(from).map(|sink| sink.name.clone());
    }
    let elsewhere: Vec<&str> = config
        .sinks
        .iter()
        .filter(|sink| sink.sink.folder().is_none())
        .map(|sink| sink.name.as_str())
        .collect();
    match elsewhere[..] {
        [only] => Ok(only.to_owned()),
        _ => Err(not_one(config)),
    }
}

fn not_one(config: &Config) -> Error {
    let names: Vec<_> = config.sinks.iter().map(|sink| sink.name.as_str()).collect();
    settings("it is not clear where to fetch from").hint(format!(
        "name one of the sinks with --from: {}",
        names.join(", ")
    ))
}

fn print(report: &FetchReport, args: &FetchArgs) {
    let FetchReport { from, to, site, .. } = report;
    say(&format!("  from {from}, site {site}, into {to}"));
    if args.dry_run {
        for name in &report.wanted {
            data(&format!("would fetch {name}"));
        }
    }
    for one in &report.fetched {
        let kept = match one.kept_bytes {
            0 => String::new(),
            kept => format!(", {} of them were here", bytes(kept)),
        };
        data(&format!(
            "{}  {}{kept}  verified",
            one.name,
            bytes(one.bytes)
        ));
    }
    if report.wanted.is_empty() && report.causes.is_empty() {
        say("  nothing new");
    }
    if let Some(newest) = &report.newest {
        say(&format!(
            "  the newest whole archive here is of {}, {} h old",
            newest.created,
            newest.age_seconds / 3600
        ));
    }
    for gap in &report.gaps {
        say(&format!("  gap: {gap}"));
    }
    if let Some(pruned) = &report.pruned {
        for line in pruned.lines() {
            say(&format!("  {line}"));
        }
        let kept = pruned.verdict.decisions.len() - pruned.deleted.len();
        say(&format!("  {} here", count(kept as u64, "archive")));
    }
}
