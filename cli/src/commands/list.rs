//! `bk list`

use super::{check, print_json, say_causes};
use crate::args::{Global, ListArgs};
use crate::output::{bytes, data, say};
use bk_core::catalog::{Catalogue, Entry, What};
use bk_core::config::Config;
use bk_core::context::Context;
use bk_core::error::Result;
use bk_core::pins;
use bk_core::report::{Cause, Class};
use std::collections::BTreeMap;

pub async fn run(
    cx: &Context,
    config: &Config,
    args: &ListArgs,
    global: &Global,
) -> Result<Vec<Cause>> {
    let sinks = match &args.from {
        Some(name) => vec![config.sink(name)?.clone()],
        None => config.sinks.clone(),
    };
    let catalogue = Catalogue::read(cx, &sinks).await;
    let mut pinned = BTreeMap::new();
    for sink in &sinks {
        pinned.extend(pins::pinned(cx, &sink.sink).await.unwrap_or_default());
    }
    if global.json {
        print_json(&catalogue.entries);
    } else {
        let shown = catalogue
            .entries
            .iter()
            .filter(|e| args.all || e.summary().is_some() || matches!(e.what, What::Damaged(_)));
        let rows = joined(shown);
        rows.iter()
            .for_each(|(entry, sinks)| data(&line(entry, sinks, &pinned)));
        if rows.is_empty() {
            say(
                "no archive of this site yet; bk backup makes one, bk list --all shows everything that lies there",
            );
        }
    }
    let mut causes: Vec<Cause> = catalogue
        .failures
        .iter()
        .map(|(sink, error)| Cause::new(sink, error))
        .collect();
    if args.offline_ok {
        causes
            .iter_mut()
            .for_each(|cause| cause.class = Class::Partial);
    }
    causes.extend(check::stale(cx, &catalogue, args.max_age));
    say_causes(&causes);
    Ok(causes)
}

/// The same archive on several sinks is one line.
fn joined<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<(&'a Entry, Vec<&'a str>)> {
    let mut rows: Vec<(&Entry, Vec<&str>)> = Vec::new();
    for entry in entries {
        let same = rows
            .iter_mut()
            .find(|(row, _)| match (row.summary(), entry.summary()) {
                (Some(a), Some(b)) => {
                    a.id == b.id
                        && row.stored.name == entry.stored.name
                        && row.version() == entry.version()
                }
                _ => false,
            });
        match same {
            Some((_, sinks)) => sinks.push(&entry.sink),
            None => rows.push((entry, vec![&entry.sink])),
        }
    }
    rows
}

fn line(entry: &Entry, sinks: &[&str], pinned: &BTreeMap<String, String>) -> String {
    let mut line = what(entry, sinks, pinned);
    for remark in &entry.stored.remarks {
        line.push_str("\n    ");
        line.push_str(remark);
    }
    line
}

fn what(entry: &Entry, sinks: &[&str], pinned: &BTreeMap<String, String>) -> String {
    let sinks = sinks.join(",");
    let name = &entry.stored.name;
    let size = bytes(entry.stored.bytes);
    match &entry.what {
        What::Archive(summary) => {
            let state = match (summary.complete, summary.subset) {
                (true, false) => "whole",
                (true, true) => "whole, some sources only",
                (false, _) => "PARTIAL",
            };
            let mark = if pinned.contains_key(&summary.id) {
                "  pinned"
            } else {
                ""
            };
            let label = summary
                .label
                .as_ref()
                .map(|l| format!("  \"{l}\""))
                .unwrap_or_default();
            let instances: Vec<_> = summary.instances.iter().map(|i| i.name.as_str()).collect();
            format!(
                "{name}  version {}  {size}  {state}  {}  on {sinks}{mark}{label}",
                entry.version(),
                instances.join(",")
            )
        }
        What::OtherSite(other) => format!("{name}  {size}  of site {other}  on {sinks}"),
        What::Damaged(why) => format!("{name}  {size}  DAMAGED: {why}  on {sinks}"),
        What::Foreign => format!("{name}  {size}  foreign: not made by bk  on {sinks}"),
    }
}
