//! `bk check`

use super::{print_json, say_causes};
use crate::args::{CheckArgs, Global};
use crate::output::{bytes, data, say};
use bk_core::catalog::Catalogue;
use bk_core::config::{Config, SinkInstance};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::report::{Cause, Class};
use bk_core::source::Health;
use futures::future::join_all;
use serde::Serialize;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// A line of the report.
#[derive(Serialize)]
struct Checked {
    role: &'static str,
    name: String,
    plugin: String,
    describe: String,
    #[serde(skip)]
    identity: String,
    warnings: Vec<String>,
    outlook: Vec<String>,
    error: Option<String>,
}

pub async fn run(
    cx: &Context,
    config: &Config,
    args: &CheckArgs,
    global: &Global,
) -> Result<Vec<Cause>> {
    if let Some(name) = &args.policy {
        return policy(cx, config, name).await;
    }
    let mut causes = Vec::new();
    let mut rows = Vec::new();
    let sources = join_all(config.sources.iter().map(|s| async move {
        (
            s,
            patiently(cx, s.source.check(&cx.for_instance(&s.name))).await,
        )
    }))
    .await;
    for (source, health) in sources {
        let mut row = row("source", &source.name, &source.plugin, health, &mut causes);
        if row.error.is_none() {
            match source.source.outlook(&cx.for_instance(&source.name)).await {
                Ok(lines) => row.outlook = lines,
                Err(error) => row
                    .warnings
                    .push(format!("what a backup would take is not known: {error}")),
            }
        }
        rows.push(row);
    }
    let sinks = join_all(config.sinks.iter().map(|s| async move {
        (
            s,
            patiently(cx, s.sink.check(&cx.for_instance(&s.name))).await,
        )
    }))
    .await;
    for (sink, health) in sinks {
        let mut row = row("sink", &sink.name, &sink.plugin, health, &mut causes);
        if sink.policy.keep.is_none() && !sink.policy.read_only {
            row.warnings
                .push("no `keep`: it grows without limit".into());
        }
        rows.push(row);
    }
    let catalogue = Catalogue::read(cx, &config.sinks).await;
    for (sink, error) in &catalogue.failures {
        let known = causes.iter().any(|cause| cause.about == *sink);
        causes.extend((!known).then(|| Cause::new(sink, error)));
    }
    causes.extend(stale(cx, &catalogue, args.max_age));
    for sink in &config.sinks {
        outlook(cx, sink, &catalogue, &mut rows).await;
        room(sink, &catalogue, &mut rows);
    }
    one_place_twice(&mut rows);
    if global.json {
        print_json(&serde_json::json!({ "checked": rows, "causes": causes }));
    } else {
        let partials: std::collections::BTreeSet<_> = catalogue
            .archives()
            .take_while(|(_, s)| !s.complete)
            .map(|(_, s)| &s.id)
            .collect();
        if partials.len() >= 3 {
            data(&format!(
                "the last {} archives are all partial",
                partials.len()
            ));
        }
        rows.iter().for_each(print);
        config
            .not_enabled
            .iter()
            .for_each(|name| data(&format!("not backed up: {name}, its plugin is not enabled")));
    }
    say_causes(&causes);
    Ok(causes)
}

async fn policy(cx: &Context, config: &Config, name: &str) -> Result<Vec<Cause>> {
    let sink = config.sink(name)?;
    match sink.sink.policy(&cx.for_instance(name)).await? {
        Some(text) => data(&text),
        None => say(&format!("`{name}` has no rights of its own to name")),
    }
    Ok(Vec::new())
}

/// What becomes of the archives there without anybody's doing.
async fn outlook(cx: &Context, sink: &SinkInstance, catalogue: &Catalogue, rows: &mut [Checked]) {
    let row = rows
        .iter_mut()
        .find(|row| row.role == "sink" && row.name == sink.name && row.error.is_none());
    let Some(row) = row else { return };
    let newest = catalogue
        .archives()
        .find(|(entry, summary)| entry.sink == sink.name && summary.is_full())
        .map(|(entry, _)| &entry.stored);
    match sink
        .sink
        .outlook(&cx.for_instance(&sink.name), newest)
        .await
    {
        Ok(outlook) => {
            row.outlook = outlook.lines;
            row.warnings.extend(outlook.warnings);
        }
        Err(error) => row
            .warnings
            .push(format!("what expires by itself is not known: {error}")),
    }
}

/// Room for less than two archives more, where that can be told.
fn room(sink: &SinkInstance, catalogue: &Catalogue, rows: &mut [Checked]) {
    let row = rows
        .iter_mut()
        .find(|row| row.role == "sink" && row.name == sink.name && row.error.is_none());
    let (Some(row), Some(folder)) = (row, sink.sink.folder()) else {
        return;
    };
    let newest = catalogue
        .archives()
        .find(|(entry, _)| entry.sink == sink.name)
        .map(|(entry, _)| entry.stored.bytes);
    let free = rustix::fs::statvfs(folder).map(|there| there.f_bavail * there.f_frsize);
    if let (Some(newest), Ok(free)) = (newest, free)
        && free / 2 < newest
    {
        row.warnings.push(format!(
            "{} are left, and the newest archive has {}: there is no room for two more",
            bytes(free),
            bytes(newest)
        ));
    }
}

/// Two sinks that are one place: each archive would be written there twice, and each of them would prune the other's.
fn one_place_twice(rows: &mut [Checked]) {
    for later in 1..rows.len() {
        let (before, rest) = rows.split_at_mut(later);
        let row = &mut rest[0];
        let same = before.iter().find(|other| {
            other.role == "sink"
                && row.role == "sink"
                && !row.identity.is_empty()
                && other.identity == row.identity
        });
        if let Some(other) = same {
            row.warnings
                .push(format!("it is the same place as `{}`", other.name));
        }
    }
}

pub async fn patiently(
    cx: &Context,
    check: impl Future<Output = Result<Health>>,
) -> Result<Health> {
    cx.within(
        PATIENCE,
        || Error::new(ErrorKind::Unreachable, "no answer within 10 s"),
        check,
    )
    .await
}

fn row(
    role: &'static str,
    name: &str,
    plugin: &str,
    health: Result<Health>,
    causes: &mut Vec<Cause>,
) -> Checked {
    let (health, error) = match health {
        Ok(health) => (health, None),
        Err(error) => {
            causes.push(Cause::new(name, &error));
            (Health::default(), Some(error.what))
        }
    };
    Checked {
        role,
        name: name.to_owned(),
        plugin: plugin.to_owned(),
        describe: health.describe,
        identity: health.identity,
        warnings: health.warnings,
        outlook: Vec::new(),
        error,
    }
}

fn print(row: &Checked) {
    let outcome = if row.error.is_some() { "FAILED" } else { "ok" };
    data(&format!(
        "{:6} {:10} {outcome:6} {}",
        row.role, row.name, row.describe
    ));
    row.warnings
        .iter()
        .for_each(|warning| data(&format!("                  warning: {warning}")));
    row.outlook
        .iter()
        .for_each(|line| data(&format!("                  {line}")));
}

/// Exit 9: the newest whole archive is older than the operator allows.
pub fn stale(cx: &Context, catalogue: &Catalogue, max_age: Option<Duration>) -> Option<Cause> {
    let max_age = max_age?;
    let newest = catalogue.newest_whole().map(|summary| summary.created);
    let age = newest.map(|at| cx.clock.now().duration_since(at));
    let too_old = age.is_none_or(|age| {
        age > jiff::SignedDuration::try_from(max_age).unwrap_or(jiff::SignedDuration::MAX)
    });
    if !too_old {
        return None;
    }
    let what = newest.map_or_else(
        || "there is no whole archive".to_owned(),
        |at| format!("the newest whole archive is of {at}"),
    );
    let error = Error::new(ErrorKind::Unreachable, what)
        .hint("look at the last run's report, then bk backup");
    Some(Cause::of(Class::Stale, "", &error))
}
