//! `bk copy`

use super::{print_json, say_causes};
use crate::args::{CopyArgs, Global};
use crate::output::{bytes, data, say};
use bk_core::catalog::{Catalogue, Entry, Wish};
use bk_core::config::Config;
use bk_core::context::Context;
use bk_core::copy::{Way, copy};
use bk_core::error::{Result, settings};
use bk_core::report::Cause;
use bk_core::sink::Care;
use bk_core::tiers;
use std::collections::BTreeSet;

pub async fn run(
    cx: &Context,
    config: &Config,
    args: &CopyArgs,
    global: &Global,
) -> Result<Vec<Cause>> {
    let (from, to) = (config.sink(&args.from)?, config.sink(&args.to)?);
    if from.name == to.name {
        return Err(settings("`--from` and `--to` are the same sink"));
    }
    let here = Catalogue::of(cx, from, Care::Look).await?;
    let there = Catalogue::of(cx, to, Care::Look).await?;
    let chosen = chosen(&here, config, args)?;
    if args.dry_run {
        for entry in &chosen {
            data(&format!(
                "{}  {}",
                entry.stored.name,
                bytes(entry.stored.bytes)
            ));
        }
        return Ok(Vec::new());
    }
    let (mut copied, mut causes) = (Vec::new(), Vec::new());
    for entry in chosen {
        match copy(cx, entry, from, to, &there).await {
            Ok(one) => {
                if !global.json {
                    data(&format!(
                        "{}  {}  {}  on {} as {}",
                        entry.stored.name,
                        bytes(one.bytes),
                        words(one.way),
                        to.name,
                        one.name
                    ));
                }
                copied.push(one);
            }
            Err(error) => causes.push(Cause::new(&entry.stored.name, &error)),
        }
    }
    let zone = config.archive.zone();
    if !copied.is_empty() {
        match tiers::promote(&cx.for_instance(&to.name), to, &zone).await {
            Ok(promoted) => {
                let unplaced = promoted.failed.into_iter();
                causes.extend(unplaced.map(|why| Cause::partial(&to.name, why)));
            }
            Err(error) => causes.push(Cause::new(&to.name, &error)),
        }
    }
    if global.json {
        print_json(&serde_json::json!({ "copied": copied, "causes": causes }));
    } else if copied.is_empty() && causes.is_empty() {
        say("nothing to copy");
    }
    say_causes(&causes);
    Ok(causes)
}

fn words(way: Way) -> &'static str {
    match way {
        Way::There => "was there already",
        Way::Inside => "copied inside the store",
        Way::Streamed => "sent through and compared",
    }
}

/// Oldest first, so that the newest there is never older than before for long.
fn chosen<'a>(here: &'a Catalogue, config: &Config, args: &CopyArgs) -> Result<Vec<&'a Entry>> {
    if args.all {
        let mut seen = BTreeSet::new();
        let mut all: Vec<&Entry> = here
            .archives()
            .filter(|(_, summary)| seen.insert(summary.id.clone()))
            .map(|(entry, _)| entry)
            .collect();
        all.reverse();
        return Ok(all);
    }
    let zone = config.archive.zone();
    let wish = |date: Option<String>, version: Option<String>| Wish {
        date,
        version,
        from: Some(args.from.clone()),
        partial_too: args.archive.is_some(),
    };
    let by_version = here.choose(&wish(None, args.archive.clone()), &zone);
    let found = match (by_version, &args.archive) {
        (Err(_), Some(archive)) => here.choose(&wish(Some(archive.clone()), None), &zone),
        (found, _) => found,
    }?;
    Ok(found.into_iter().take(1).collect())
}
