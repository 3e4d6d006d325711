//! `bk show`

use super::{print_json, say_warnings, wish};
use crate::args::{Global, ShowArgs};
use crate::output::{bytes, count, data};
use bk_core::archive::tail::{Line, Opened};
use bk_core::config::Config;
use bk_core::context::Context;
use bk_core::error::Result;
use bk_core::manifest::{Instance, State};
use bk_core::report::Cause;
use bk_core::restore::{self, Request};

pub async fn run(
    cx: &Context,
    config: &Config,
    args: &ShowArgs,
    global: &Global,
) -> Result<Vec<Cause>> {
    let request = Request {
        wish: wish(&args.which, true),
        file: args.file.clone(),
        offline_ok: args.which.offline_ok,
        ..Request::default()
    };
    let (chosen, warnings) = restore::open(cx, config, &request).await?;
    say_warnings(&warnings);
    let opened = &chosen.copies[0].1;
    let manifest = &opened.manifest;
    if global.json {
        print_json(manifest);
        return Ok(Vec::new());
    }
    let state = if manifest.complete {
        "whole"
    } else {
        "PARTIAL"
    };
    let label = manifest
        .label
        .as_ref()
        .map(|l| format!("  \"{l}\""))
        .unwrap_or_default();
    data(&format!(
        "{}  on {}  version {}{label}",
        chosen.name, chosen.from, chosen.version
    ));
    data(&format!(
        "  site {}  id {}  {state}",
        manifest.site, manifest.id
    ));
    data(&format!(
        "  made {} to {} by {}",
        manifest.created.strftime("%Y-%m-%d %H:%M:%S"),
        manifest.finished.strftime("%H:%M:%S UTC"),
        manifest.tool
    ));
    data(&format!(
        "  {} in {}, {} inside, {} ms between sources",
        bytes(opened.stored_bytes()),
        count(opened.blocks() as u64, "block"),
        bytes(opened.raw_bytes()),
        manifest.skew_ms
    ));
    manifest.instances.iter().for_each(print_instance);
    if args.units {
        print_units(opened).await?;
    }
    Ok(Vec::new())
}

fn print_instance(instance: &Instance) {
    let t = &instance.totals;
    let state = match instance.state {
        State::Whole => "",
        State::Partial => "  PARTIAL",
        State::Failed => "  FAILED",
    };
    let consistency = instance
        .at
        .as_ref()
        .map(|at| format!("  consistency {}", at.consistency))
        .unwrap_or_default();
    data(&format!(
        "{}  ({})  {}{state}",
        instance.name, instance.plugin, instance.describe
    ));
    data(&format!(
        "  {}, {}, {}{consistency}",
        count(t.units, "unit"),
        count(t.members, "member"),
        bytes(t.bytes)
    ));
    if let Some(position) = instance.at.as_ref().and_then(|at| at.position.as_ref()) {
        data(&format!("  at {position}"));
    }
    if let Some(error) = &instance.error {
        data(&format!("  error: {error}"));
    }
    for failed in &instance.failed {
        data(&format!(
            "  failed: {}/{}: {}",
            failed.group, failed.name, failed.why
        ));
    }
    for note in &instance.facts.notes {
        data(&format!("  {note}"));
    }
    for warning in &instance.facts.warnings {
        data(&format!("  warning: {warning}"));
    }
}

async fn print_units(opened: &Opened) -> Result<()> {
    let mut lines = opened.lines().await?;
    while let Some(batch) = lines.next_piece().await? {
        for line in batch {
            let Line::Unit(unit) = line else { continue };
            let failed = unit
                .failed
                .as_ref()
                .map(|why| format!("  FAILED: {why}"))
                .unwrap_or_default();
            let stage = format!("{:?}", unit.stage).to_lowercase();
            data(&format!(
                "{}/{}/{}  {stage}  {}  {}{failed}",
                unit.instance,
                unit.group,
                unit.name,
                count(unit.members, "member"),
                bytes(unit.bytes)
            ));
        }
    }
    Ok(())
}
