//! `bk plugins list` and `bk plugins show`. They work before any settings exist.

use super::{layers, print_json};
use crate::args::{Global, PluginsCommand};
use crate::builtin;
use crate::output::data;
use bk_core::config::Config;
use bk_core::error::{Result, not_found};
use bk_core::plugin::Registry;
use bk_core::report::Cause;
use bk_core::selector::nearest;
use serde_json::Value;

pub fn run(command: &PluginsCommand, global: &Global) -> Result<Vec<Cause>> {
    let registry = builtin::registry();
    match command {
        PluginsCommand::List { enabled } => list(&registry, *enabled, global),
        PluginsCommand::Show { name } => return show(&registry, name, global).map(|()| Vec::new()),
    }
    Ok(Vec::new())
}

fn list(registry: &Registry, only_enabled: bool, global: &Global) {
    // Without settings nothing is enabled, and the list is still good.
    let enabled = Config::load(&layers(global), registry)
        .map(|c| c.plugins)
        .unwrap_or_default();
    let sources = registry
        .sources
        .iter()
        .map(|p| (&p.name, "source", &p.about));
    let sinks = registry.sinks.iter().map(|p| (&p.name, "sink", &p.about));
    let rows: Vec<_> = sources
        .chain(sinks)
        .filter(|(name, _, _)| !only_enabled || enabled.contains(&name.to_string()))
        .collect();
    if global.json {
        let rows: Vec<_> = rows.iter().map(|(name, role, about)| serde_json::json!({ "name": name, "role": role, "enabled": enabled.contains(&name.to_string()), "about": about })).collect();
        return print_json(&rows);
    }
    for (name, role, about) in rows {
        let state = if enabled.contains(&name.to_string()) {
            "enabled"
        } else {
            "installed"
        };
        data(&format!("{name:10} {role:7} {state:10} {about}"));
    }
}

fn show(registry: &Registry, name: &str, global: &Global) -> Result<()> {
    let source = registry
        .source(name)
        .map(|p| ("source", p.about.clone(), (p.schema)()));
    let sink = registry
        .sink(name)
        .map(|p| ("sink", p.about.clone(), (p.schema)()));
    let Some((role, about, schema)) = source.or(sink) else {
        let near = nearest(name, registry.names());
        return Err(not_found(format!("there is no plugin `{name}`")).hint(
            near.first().map_or("bk plugins list".into(), |near| {
                format!("did you mean {near}?")
            }),
        ));
    };
    if global.json {
        print_json(&schema);
        return Ok(());
    }
    data(&format!("{name}: {about}\n\n[{role}.{name}]"));
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (key, property) in schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let words = property
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .replace('\n', " ");
        let needed = if required.contains(&key.as_str()) {
            "required"
        } else {
            "optional"
        };
        data(&format!(
            "  {key}  ({}, {needed})\n      {words}",
            kind(property)
        ));
    }
    if role == "sink" {
        data(
            "  required  (boolean, optional)\n      Its failure alone fails the run; false: exit 3. Default true.",
        );
        data(
            "  keep  (table, optional)\n      { last, hourly, daily, weekly, monthly, yearly, floor }; without it nothing is ever deleted.",
        );
        data("  prune  (text, optional)\n      after-backup (default) or never.");
    }
    Ok(())
}

fn kind(property: &Value) -> String {
    let words = |kind: &str| match kind {
        "string" => "text".to_owned(),
        "array" => "list".to_owned(),
        other => other.to_owned(),
    };
    match property.get("type") {
        Some(Value::String(kind)) => words(kind),
        Some(Value::Array(kinds)) => kinds
            .iter()
            .filter_map(Value::as_str)
            .filter(|k| *k != "null")
            .map(words)
            .collect::<Vec<_>>()
            .join(" or "),
        _ => "table".into(),
    }
}
