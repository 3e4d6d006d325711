//! `bk prune`

use super::{print_json, say_causes};
use crate::args::{Global, PruneArgs};
use crate::calendar;
use crate::output::{count, data, say};
use bk_core::config::Config;
use bk_core::context::Context;
use bk_core::error::Result;
use bk_core::lock::RunLock;
use bk_core::prune::{PruneOptions, Pruned, prune_sink};
use bk_core::report::Cause;
use jiff::tz::TimeZone;

pub async fn run(
    cx: &Context,
    config: &Config,
    args: &PruneArgs,
    global: &Global,
) -> Result<Vec<Cause>> {
    let _lock = RunLock::take(cx, &config.path, args.wait_lock.unwrap_or_default()).await?;
    let zone = config.archive.zone();
    let options = PruneOptions {
        dry_run: args.dry_run,
        accept: args.accept.clone(),
    };
    let mut causes = Vec::new();
    let mut reports = Vec::new();
    for sink in config
        .sinks
        .iter()
        .filter(|s| args.from.as_ref().is_none_or(|from| *from == s.name))
    {
        if sink.policy.read_only {
            continue;
        }
        if sink.policy.keep.is_none() {
            say(&format!(
                "`{}` has no `keep`: nothing is ever deleted there, and it grows without limit",
                sink.name
            ));
            continue;
        }
        match prune_sink(&cx.for_instance(&sink.name), sink, &zone, &options).await {
            Ok(pruned) => {
                causes.extend(
                    pruned
                        .failed
                        .iter()
                        .map(|what| Cause::partial(&sink.name, what.clone())),
                );
                reports.push(pruned);
            }
            Err(error) => causes.push(Cause::new(&sink.name, &error)),
        }
    }
    if let Some(from) = &args.from {
        config.sink(from)?;
    }
    if global.json {
        print_json(&reports);
    } else {
        reports.iter().for_each(|pruned| print(pruned, args, &zone));
    }
    say_causes(&causes);
    Ok(causes)
}

fn print(pruned: &Pruned, args: &PruneArgs, zone: &TimeZone) {
    let name = |id: &str| {
        pruned
            .names
            .iter()
            .find(|(i, _)| i == id)
            .map_or_else(|| id.to_owned(), |(_, name)| name.clone())
    };
    if args.dry_run || args.explain {
        for decision in &pruned.verdict.decisions {
            let word = if decision.keep { "keep" } else { "drop" };
            data(&format!(
                "{}  {word}  {}  {}",
                pruned.sink,
                name(&decision.id),
                decision.reasons.join("; ")
            ));
        }
    }
    if args.explain {
        let picture = calendar::draw(&pruned.verdict, &pruned.tomorrow, zone);
        picture.iter().for_each(|line| data(line));
        for id in &pruned.tomorrow {
            data(&format!(
                "{}  next  {}  goes with the next day's run",
                pruned.sink,
                name(id)
            ));
        }
    }
    for copy in &pruned.surplus {
        if args.dry_run || args.explain {
            data(&format!(
                "{}  drop  {} {}  it is kept elsewhere, and no rule keeps it here",
                pruned.sink, copy.name, copy.version
            ));
        }
    }
    for hold in &pruned.verdict.holds {
        say(&format!(
            "`{}` holds, nothing is deleted: {hold}",
            pruned.sink
        ));
    }
    if let Some(id) = &pruned.verdict.releases {
        say(&format!(
            "hint: look, and release it with bk prune --accept {id}"
        ));
    }
    if args.dry_run {
        say(&format!(
            "`{}`: {} would go",
            pruned.sink,
            count(pruned.verdict.deletions().count() as u64, "archive")
        ));
    } else {
        say(&format!(
            "`{}`: {} deleted",
            pruned.sink,
            count(pruned.deleted.len() as u64, "archive")
        ));
    }
}
