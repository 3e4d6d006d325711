//! `bk verify`

use super::{print_json, say_causes, say_warnings, wish};
use crate::args::{Global, VerifyArgs};
use crate::output::{bytes, count, data};
use bk_core::archive::read_at::{FileReadAt, ReadAt, SinkReadAt};
use bk_core::catalog::{Catalogue, Entry, What};
use bk_core::config::{Config, SinkInstance};
use bk_core::context::Context;
use bk_core::error::{Error, Result, not_found};
use bk_core::report::Cause;
use bk_core::restore::foreign::{is_foreign, unclaimed_cause};
use bk_core::verify::foreign::{VerifiedForeign, verify_foreign};
use bk_core::verify::{Verified, verify};
use jiff::tz::TimeZone;
use std::path::Path;
use std::sync::Arc;

pub async fn run(
    cx: &Context,
    config: &Config,
    args: &VerifyArgs,
    global: &Global,
) -> Result<Vec<Cause>> {
    if let Some(path) = &args.file {
        if is_foreign(path).await? {
            let verified = verify_foreign(cx, config, path).await?;
            return Ok(tell_foreign(path, &verified, global));
        }
        let verified = verify_file(path).await;
        return Ok(tell(&[(path.display().to_string(), verified)], global));
    }
    let sinks: Vec<SinkInstance> = match &args.which.from {
        Some(name) => vec![config.sink(name)?.clone()],
        None => config.sinks.clone(),
    };
    let catalogue = Catalogue::read(cx, &sinks).await;
    let mut causes: Vec<Cause> = catalogue
        .failures
        .iter()
        .map(|(sink, error)| Cause::new(sink, error))
        .collect();
    let entries: Vec<&Entry> = if args.all {
        catalogue
            .entries
            .iter()
            .filter(|e| matches!(e.what, What::Archive(_) | What::Damaged(_)))
            .collect()
    } else {
        let zone = TimeZone::get(&config.archive.timezone).unwrap_or(TimeZone::UTC);
        match catalogue.choose(&wish(&args.which, true), &zone) {
            Ok(entries) => entries,
            // A damaged archive has no manifest to choose by; its name still says which one is meant.
            Err(error) => match damaged(&catalogue, args) {
                found if found.is_empty() => return Err(error),
                found => found,
            },
        }
    };
    if entries.is_empty() && causes.is_empty() {
        return Err(not_found("there is no archive to verify").hint("bk list --all"));
    }
    let mut results = Vec::new();
    for entry in entries {
        let Some(sink) = sinks.iter().find(|s| s.name == entry.sink) else {
            continue;
        };
        results.push((
            format!("{} on {}", entry.stored.name, entry.sink),
            verify_stored(cx, sink, entry).await,
        ));
    }
    say_causes(&causes);
    causes.extend(tell(&results, global));
    Ok(causes)
}

fn damaged<'a>(catalogue: &'a Catalogue, args: &VerifyArgs) -> Vec<&'a Entry> {
    let wanted = args.which.version.as_deref().or(args.which.date.as_deref());
    catalogue
        .entries
        .iter()
        .filter(|e| {
            matches!(e.what, What::Damaged(_)) && wanted.is_none_or(|w| e.stored.name.contains(w))
        })
        .collect()
}

async fn verify_file(path: &Path) -> Result<Verified> {
    let read = Arc::new(FileReadAt::open(path)?);
    let sums = std::fs::read_to_string(path.with_file_name(format!(
        "{}.sha256",
        path.file_name().unwrap_or_default().to_string_lossy()
    )))
    .ok();
    verify(read, sums.as_deref()).await
}

async fn verify_stored(cx: &Context, sink: &SinkInstance, entry: &Entry) -> Result<Verified> {
    let cx = cx.for_instance(&sink.name);
    let beside = sink.sink.sums(&cx, &entry.stored).await?;
    // A name's sum file is its newest version's; what earlier runs left stands in the catalogue.
    let noted = entry.summary().and_then(|summary| {
        let sum = summary.sha256.as_ref()?;
        Some(format!(
            "# id {} site {}\n{sum}  ",
            summary.id, summary.site
        ))
    });
    let sums = beside.or(noted);
    let read: Arc<dyn ReadAt> = Arc::new(SinkReadAt::new(
        cx.clone(),
        sink.sink.clone(),
        entry.stored.clone(),
    ));
    verify(read, sums.as_deref()).await
}

/// What others made.
fn tell_foreign(path: &Path, verified: &VerifiedForeign, global: &Global) -> Vec<Cause> {
    let place = path.display().to_string();
    let lacking = verified
        .lacking
        .iter()
        .map(|what| Cause::partial(&place, what.clone()));
    let mut causes: Vec<Cause> = lacking.collect();
    causes.extend(verified.unclaimed.iter().map(|name| unclaimed_cause(name)));
    if global.json {
        print_json(&serde_json::json!({ "verified": verified, "causes": causes }));
    } else {
        say_warnings(&verified.notes);
        let sources: Vec<String> = verified
            .sources
            .iter()
            .map(|(source, files)| format!("{} for {source}", count(*files, "file")))
            .collect();
        data(&format!(
            "{place}  not made by bk, readable to its end  {}, {}: {}",
            bytes(verified.bytes),
            count(verified.files, "file"),
            sources.join(", ")
        ));
    }
    say_causes(&causes);
    causes
}

fn tell(results: &[(String, Result<Verified>)], global: &Global) -> Vec<Cause> {
    let causes: Vec<Cause> = results
        .iter()
        .filter_map(|(name, result)| {
            result
                .as_ref()
                .err()
                .map(|error: &Error| Cause::new(name, error))
        })
        .collect();
    if global.json {
        let verified: Vec<_> = results
            .iter()
            .filter_map(|(name, result)| Some((name, result.as_ref().ok()?)))
            .collect();
        print_json(&serde_json::json!({ "verified": verified, "causes": causes }));
    }
    for (name, result) in results {
        let Ok(verified) = result else { continue };
        say_warnings(&verified.warnings);
        if !global.json {
            let state = if verified.complete {
                "whole"
            } else {
                "PARTIAL, what is inside is sound"
            };
            data(&format!(
                "{name}  {state}  {}, {}, {}",
                bytes(verified.bytes),
                count(verified.blocks, "block"),
                count(verified.members, "member")
            ));
        }
    }
    say_causes(&causes);
    causes
}
