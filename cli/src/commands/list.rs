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
use bk_core::sink::Stored;
use bk_core::verify::dates::{Checked, Dates};
use jiff::Timestamp;
use serde::Serialize;
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
    let mut known = Known {
        now: cx.clock.now(),
        pinned: BTreeMap::new(),
        dates: BTreeMap::new(),
    };
    for sink in &sinks {
        let cx = cx.for_instance(&sink.name);
        match pins::pinned(&cx, &sink.sink).await {
            Ok(pinned) => {
                known.pinned.insert(sink.name.clone(), pinned);
            }
            // A sink that does not answer is named already.
            Err(error) => tracing::debug!(%error, sink = sink.name, "its pins are not known"),
        }
        let dates = Dates::read(&cx, &sink.sink).await;
        known.dates.insert(sink.name.clone(), dates);
    }
    if global.json {
        let rows = catalogue.entries.iter().map(|entry| Row {
            sink: &entry.sink,
            stored: &entry.stored,
            what: &entry.what,
            checked: known.checked(entry),
        });
        print_json(&rows.collect::<Vec<_>>());
    } else {
        let shown = catalogue
            .entries
            .iter()
            .filter(|e| args.all || e.summary().is_some() || matches!(e.what, What::Damaged(_)));
        let rows = joined(shown);
        rows.iter().for_each(|row| data(&line(row, &known)));
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

/// A copy, with what is known of its checks.
#[derive(Serialize)]
struct Row<'a> {
    sink: &'a str,
    stored: &'a Stored,
    what: &'a What,
    #[serde(skip_serializing_if = "Option::is_none")]
    checked: Option<&'a Checked>,
}

/// What notes say.
struct Known {
    now: Timestamp,
    pinned: BTreeMap<String, BTreeMap<String, String>>,
    dates: BTreeMap<String, Dates>,
}

impl Known {
    fn checked(&self, entry: &Entry) -> Option<&Checked> {
        self.dates.get(&entry.sink)?.of(entry)
    }

    /// Whether it is pinned: on all of these sinks, or where.
    fn pinned_on(&self, id: &str, sinks: &[&str]) -> String {
        let is_pinned = |sink: &&&str| self.pinned.get(**sink).is_some_and(|p| p.contains_key(id));
        let on: Vec<&str> = sinks.iter().filter(is_pinned).copied().collect();
        match on.len() {
            0 => String::new(),
            n if n == sinks.len() => "  pinned".into(),
            _ => format!("  pinned on {} only", on.join(",")),
        }
    }

    /// How far a copy was last read, and how long ago.
    fn words(&self, entry: &Entry) -> String {
        let Some(checked) = self.checked(entry) else {
            return "never verified".into();
        };
        if let Some(failed) = &checked.failed {
            let what = if failed.unread {
                "could not be read"
            } else {
                "FAILED its check"
            };
            return format!("{what} {}: {}", self.ago(failed.at), failed.why);
        }
        let passed = checked.passed.iter().rev();
        // The deepest, and what is less deep only where it is newer.
        let newer = passed.filter(|(level, at)| checked.at_least(**level) == Some(**at));
        let words: Vec<String> = newer
            .map(|(level, at)| format!("{} {}", level.word(), self.ago(*at)))
            .collect();
        format!("verified {}", words.join(", "))
    }

    fn ago(&self, at: Timestamp) -> String {
        match self.now.duration_since(at).as_hours() {
            ..1 => "just now".into(),
            hours @ 1..48 => format!("{hours} h ago"),
            hours => format!("{} d ago", hours / 24),
        }
    }
}

/// An archive's places: the same on several sinks, and in several tiers, is one line.
struct Joined<'a> {
    entry: &'a Entry,
    sinks: Vec<&'a str>,
    tiers: Vec<&'a str>,
}

fn joined<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<Joined<'a>> {
    let mut rows: Vec<Joined<'_>> = Vec::new();
    for entry in entries {
        let same = rows.iter_mut().find(|row| is_same(row.entry, entry));
        let Some(row) = same else {
            rows.push(Joined {
                entry,
                sinks: vec![&entry.sink],
                tiers: Vec::new(),
            });
            continue;
        };
        if !row.sinks.contains(&entry.sink.as_str()) {
            row.sinks.push(&entry.sink);
        }
        if let Some(tier) = entry.tier().filter(|tier| row.entry.tier() != Some(*tier))
            && !row.tiers.contains(&tier.word())
        {
            row.tiers.push(tier.word());
        }
    }
    rows
}

fn is_same(one: &Entry, other: &Entry) -> bool {
    let (Some(a), Some(b)) = (one.summary(), other.summary()) else {
        return false;
    };
    let same_name = one.stored.name == other.stored.name && one.version() == other.version();
    let in_tiers = one.tier().is_some() && other.tier().is_some();
    a.id == b.id && (same_name || in_tiers)
}

fn line(row: &Joined<'_>, known: &Known) -> String {
    let entry = row.entry;
    let mut line = what(row, known);
    for remark in &entry.stored.remarks {
        line.push_str("\n    ");
        line.push_str(remark);
    }
    line
}

fn what(row: &Joined<'_>, known: &Known) -> String {
    let entry = row.entry;
    let sinks = row.sinks.join(",");
    let name = &entry.stored.name;
    let size = bytes(entry.stored.bytes);
    match &entry.what {
        What::Archive(summary) => {
            let state = match (summary.complete, summary.subset) {
                (true, false) => "whole",
                (true, true) => "whole, some sources only",
                (false, _) => "PARTIAL",
            };
            let mark = known.pinned_on(&summary.id, &row.sinks);
            let label = summary
                .label
                .as_ref()
                .map(|l| format!("  \"{l}\""))
                .unwrap_or_default();
            let tiers = if row.tiers.is_empty() {
                String::new()
            } else {
                format!(", also {}", row.tiers.join(", "))
            };
            let instances: Vec<_> = summary.instances.iter().map(|i| i.name.as_str()).collect();
            format!(
                "{name}  version {}  {size}  {state}  {}  on {sinks}{tiers}{mark}{label}  {}",
                entry.version(),
                instances.join(","),
                known.words(entry)
            )
        }
        What::OtherSite(other) => format!("{name}  {size}  of site {other}  on {sinks}"),
        What::Damaged(why) => format!("{name}  {size}  DAMAGED: {why}  on {sinks}"),
        What::Foreign => format!("{name}  {size}  foreign: not made by bk  on {sinks}"),
    }
}
