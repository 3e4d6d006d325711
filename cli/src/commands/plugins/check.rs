//! `bk plugins check NAME`: the plugin itself, then what each of its instances reaches.

use super::{builtin, config, everything, no_such, root, said, sound};
use crate::args::Global;
use crate::commands::check::patiently;
use crate::output::data;
use bk_core::context::Context;
use bk_core::error::Result;
use bk_core::report::Cause;
use bk_core::source::Health;

pub async fn run(cx: &Context, name: &str, global: &Global) -> Result<Vec<Cause>> {
    let root = root(global);
    let is_built_in = builtin::registry().names().any(|known| known == name);
    if !is_built_in {
        if !root.manifests()?.contains_key(name) {
            return Err(no_such(name, &everything(global)?));
        }
        let manifest = sound(&root, name, said(global).accepted.get(name))?;
        data(&format!(
            "plugin {name}: {} is sound, and nobody else can change it",
            manifest.whole().display()
        ));
    }
    let mut causes = Vec::new();
    let Some(config) = config(global)? else {
        return Ok(causes);
    };
    let mut seen = 0;
    for source in config.sources.iter().filter(|one| one.plugin == name) {
        let cx = cx.for_instance(&source.name);
        let health = patiently(&cx, source.source.check(&cx)).await;
        told("source", &source.name, health, &mut causes);
        seen += 1;
    }
    for sink in config.sinks.iter().filter(|one| one.plugin == name) {
        let cx = cx.for_instance(&sink.name);
        let health = patiently(&cx, sink.sink.check(&cx)).await;
        told("sink", &sink.name, health, &mut causes);
        seen += 1;
    }
    if seen == 0 {
        data(&format!("plugin {name}: no instance is set and enabled"));
    }
    crate::commands::say_causes(&causes);
    Ok(causes)
}

fn told(role: &str, name: &str, health: Result<Health>, causes: &mut Vec<Cause>) {
    match health {
        Ok(health) => {
            data(&format!("{role} {name}: ok, {}", health.describe));
            for warning in health.warnings {
                data(&format!("  warning: {warning}"));
            }
        }
        Err(error) => causes.push(Cause::new(name, &error)),
    }
}
