//! `bk extract`

use super::{print_json, restore::existing, say_causes, say_warnings, wish};
use crate::args::{ExtractArgs, Global};
use crate::output::{bytes, count, say};
use bk_core::config::Config;
use bk_core::context::Context;
use bk_core::error::{Result, conflict};
use bk_core::extract::{ExtractOptions, extract, extract_as};
use bk_core::report::Cause;
use bk_core::restore::{self, Request};
use bk_core::selector::Selection;
use bk_core::source::ExtractAs;

pub async fn run(
    cx: &Context,
    config: &Config,
    args: &ExtractArgs,
    global: &Global,
) -> Result<Vec<Cause>> {
    let request = Request {
        wish: wish(&args.which, args.allow_partial),
        file: args.file.clone(),
        offline_ok: args.which.offline_ok,
        ..Request::default()
    };
    let (chosen, warnings) = restore::open(cx, config, &request).await?;
    say_warnings(&warnings);
    if !chosen.copies[0].1.manifest.complete && !args.allow_partial {
        return Err(conflict(format!(
            "the archive `{}` is partial: something named is missing in it",
            chosen.name
        ))
        .hint("look with bk show, then repeat with --allow-partial"));
    }
    let selection = Selection::parse(&args.only, &args.exclude)?;
    let extracted = match &args.form {
        Some(form) => {
            let how = ExtractAs {
                form: form.clone(),
                into: args.into.clone(),
                existing: existing(args.existing),
            };
            extract_as(cx, config, chosen, &selection, &how).await?
        }
        None => extract(cx, chosen, &options(args, selection)).await?,
    };
    if global.json {
        print_json(&extracted);
    }
    say(&format!(
        "  {} · {} into {}",
        count(extracted.members, "member"),
        bytes(extracted.bytes),
        args.into.display()
    ));
    for (name, why) in &extracted.skipped {
        say(&format!("  skipped    {name} ({why})"));
    }
    let causes: Vec<Cause> = extracted
        .failed
        .iter()
        .map(|(name, why)| Cause::partial(name, why.clone()))
        .collect();
    say_warnings(&extracted.warnings);
    say_causes(&causes);
    Ok(causes)
}

fn options(args: &ExtractArgs, selection: Selection) -> ExtractOptions {
    ExtractOptions {
        into: args.into.clone(),
        selection,
        existing: existing(args.existing),
        keep_setuid: args.keep_setuid,
        outward_links: args.outward_links,
        max_ratio: args.max_ratio,
    }
}
