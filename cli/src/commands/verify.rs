//! `bk verify`

use super::{print_json, say_causes, say_warnings, wish};
use crate::args::{Global, VerifyArgs};
use crate::output::{bytes, count, data, say};
use bk_core::archive::read_at::{FileReadAt, ReadAt, SinkReadAt};
use bk_core::catalog::{Catalogue, Entry, What};
use bk_core::config::{Config, SinkInstance};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, not_found};
use bk_core::name::hash64;
use bk_core::report::Cause;
use bk_core::restore::foreign::{is_foreign, unclaimed_cause};
use bk_core::verify::dates::{self, Dates, Failed, Rotation, Trouble, note_check};
use bk_core::verify::foreign::{VerifiedForeign, verify_foreign};
use bk_core::verify::{Level, Verified, verify};
use jiff::Timestamp;
use std::collections::BTreeSet;
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
        let verified = verify_file(path, args.level.into()).await;
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
    let rotates = args.sample.is_some() || args.max_age.is_some();
    let entries: Vec<&Entry> = if args.all {
        catalogue.entries.iter().filter(|e| is_ours(e)).collect()
    } else if rotates {
        let due = due(cx, &sinks, &catalogue, args).await;
        causes.extend(due.damaged);
        due.copies
    } else {
        let zone = config.archive.zone();
        match catalogue.choose(&wish(&args.which, true), &zone) {
            Ok(entries) => entries,
            // A damaged archive has no manifest to choose by; its name still says which one is meant.
            Err(error) => match damaged(&catalogue, args) {
                found if found.is_empty() => return Err(error),
                found => found,
            },
        }
    };
    if entries.is_empty() && rotates && catalogue.entries.iter().any(is_ours) {
        if causes.is_empty() {
            say("nothing is due today");
        }
    } else if entries.is_empty() && causes.is_empty() {
        return Err(not_found("there is no archive to verify").hint("bk list --all"));
    }
    let level = Level::from(args.level);
    let mut results = Vec::new();
    for places in shared(entries, &sinks) {
        let entry = places[0];
        let Some(sink) = sinks.iter().find(|s| s.name == entry.sink) else {
            continue;
        };
        let verified = verify_stored(cx, sink, entry, level).await;
        let noted = note(cx, sink, &catalogue, &places, (level, &verified)).await;
        if let Err(error) = noted {
            let what = error.within("the date of this check is not noted").what;
            if rotates {
                // Without dates nothing rotates: the same copies would be read each time.
                causes.push(Cause::partial(&entry.stored.name, what));
            } else {
                say_warnings(&[format!("`{}`: {what}", entry.stored.name)]);
            }
        }
        cx.check_cancelled()?;
        results.push((format!("{} on {}", entry.stored.name, entry.sink), verified));
    }
    say_causes(&causes);
    causes.extend(tell(&results, global));
    Ok(causes)
}

fn is_ours(entry: &Entry) -> bool {
    matches!(entry.what, What::Archive(_) | What::Damaged(_))
}

/// What is read this time, and what is known to be damaged and is not read again.
struct Due<'a> {
    copies: Vec<&'a Entry>,
    damaged: Vec<Cause>,
}

/// What `--sample` and `--max-age` ask for, sink by sink. Damage that was found stays the outcome of every run until a check passes or the copy is
/// gone.
async fn due<'a>(
    cx: &Context,
    sinks: &[SinkInstance],
    catalogue: &'a Catalogue,
    args: &VerifyArgs,
) -> Due<'a> {
    let rotation = Rotation {
        sample: args.sample,
        max_age: args.max_age.and_then(|age| age.try_into().ok()),
    };
    let level = Level::from(args.level);
    let mut all = Due {
        copies: Vec::new(),
        damaged: Vec::new(),
    };
    for sink in sinks {
        let ours = |entry: &&Entry| entry.sink == sink.name && is_ours(entry);
        if sink.policy.read_only {
            // Somebody else's, without a place for dates: read when it is named.
            if args.which.from.is_none() {
                say(&format!(
                    "`{}` is only read from here: its copies are checked with --from {}",
                    sink.name, sink.name
                ));
                continue;
            }
            let copies = catalogue.entries.iter().filter(ours);
            let copies = copies.map(|e| (e, hash64(dates::key_of(e).as_bytes()), created(e)));
            all.copies
                .extend(rotation.due_today(copies.collect(), cx.clock.now()));
            continue;
        }
        let dates = Dates::read(&cx.for_instance(&sink.name), &sink.sink).await;
        let copies = catalogue.entries.iter().filter(ours).map(|entry| {
            let checked = dates.of(entry).and_then(|checked| checked.tried(level));
            (entry, created(entry), checked)
        });
        let due = rotation.due(copies.collect(), cx.clock.now());
        let of_sink = catalogue.entries.iter().filter(|e| e.sink == sink.name);
        for entry in of_sink.filter(|entry| !due.iter().any(|d| std::ptr::eq(*d, *entry))) {
            all.damaged.extend(
                dates
                    .damage(entry)
                    .map(|failed| still_damaged(entry, failed)),
            );
        }
        all.copies.extend(due);
    }
    all
}

fn still_damaged(entry: &Entry, failed: &Failed) -> Cause {
    let what = format!("failed its check of {}: {}", failed.at, failed.why);
    let error = Error::corrupt(what).hint(format!(
        "once it is mended, bk verify --from {} --version {} says so; else remove it",
        entry.sink, entry.stored.name
    ));
    Cause::new(&format!("{} on {}", entry.stored.name, entry.sink), &error)
}

/// When the archive was made; of a damaged one, when it was last changed.
fn created(entry: &Entry) -> Timestamp {
    let summary = entry.summary();
    summary.map_or(entry.stored.modified, |summary| summary.created)
}

/// Places that share their bytes are read once.
fn shared<'a>(entries: Vec<&'a Entry>, sinks: &[SinkInstance]) -> Vec<Vec<&'a Entry>> {
    let links = |entry: &Entry| {
        let sink = sinks.iter().find(|sink| sink.name == entry.sink);
        sink.is_some_and(|sink| sink.sink.abilities().links)
    };
    let id = |entry: &Entry| entry.summary().map(|summary| summary.id.clone());
    let mut found: Vec<Vec<&Entry>> = Vec::new();
    for entry in entries {
        let same = found.iter_mut().find(|places| {
            let first = places[0];
            links(entry)
                && first.sink == entry.sink
                && first.stored.etag == entry.stored.etag
                && id(first).is_some()
                && id(first) == id(entry)
        });
        match same {
            Some(places) => places.push(entry),
            None => found.push(vec![entry]),
        }
    }
    found
}

/// Writes down how it went. Where nothing may be written that is no error here.
async fn note(
    cx: &Context,
    sink: &SinkInstance,
    catalogue: &Catalogue,
    places: &[&Entry],
    (level, verified): (Level, &Result<Verified>),
) -> Result<()> {
    let outcome = match verified {
        Ok(_) => (level, Ok(())),
        // Nothing was learned of the archive.
        Err(error)
            if matches!(
                error.kind,
                ErrorKind::Cancelled | ErrorKind::Unreachable | ErrorKind::NotFound
            ) =>
        {
            return Ok(());
        }
        Err(error) if error.kind == ErrorKind::Corrupt => {
            (level, Err(Trouble::Damage(error.what.clone())))
        }
        // Frozen, or not this account's to read: tried, so that others have their turn.
        Err(error) => (level, Err(Trouble::Unread(error.what.clone()))),
    };
    if sink.policy.read_only {
        return Ok(());
    }
    let cx = cx.for_instance(&sink.name);
    let of_sink = catalogue.entries.iter().filter(|e| e.sink == sink.name);
    let there: BTreeSet<String> = of_sink.map(dates::key_of).collect();
    for entry in places {
        let (copy, created) = (dates::key_of(entry), created(entry));
        let noted = note_check(&cx, &sink.sink, &copy, created, &outcome, Some(&there));
        noted.await?;
    }
    Ok(())
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

async fn verify_file(path: &Path, level: Level) -> Result<Verified> {
    let read = Arc::new(FileReadAt::open(path)?);
    let sums = std::fs::read_to_string(path.with_file_name(format!(
        "{}.sha256",
        path.file_name().unwrap_or_default().to_string_lossy()
    )))
    .ok();
    verify(read, sums.as_deref(), level).await
}

async fn verify_stored(
    cx: &Context,
    sink: &SinkInstance,
    entry: &Entry,
    level: Level,
) -> Result<Verified> {
    let cx = cx.for_instance(&sink.name);
    let beside = sink.sink.sums(&cx, &entry.stored).await?;
    // A name's sum file is its newest version's; what earlier runs left stands in the catalogue.
    let sums = beside.or_else(|| entry.noted_sums());
    let read: Arc<dyn ReadAt> = Arc::new(SinkReadAt::new(
        cx.clone(),
        sink.sink.clone(),
        entry.stored.clone(),
    ));
    verify(read, sums.as_deref(), level).await
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
            let how = match verified.level {
                Level::Listed => "  (manifest and index only)",
                Level::Hash => "  (stored bytes, not decoded)",
                Level::Decoded => "",
            };
            data(&format!(
                "{name}  {state}  {}, {}, {}{how}",
                bytes(verified.bytes),
                count(verified.blocks, "block"),
                count(verified.members, "member")
            ));
        }
    }
    say_causes(&causes);
    causes
}
