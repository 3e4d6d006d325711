//! `bk plugins`: what can be backed up and where archives can lie, in the program and in the plugins root. All of it works before any settings exist.

mod check;
mod enable;
mod index;
mod install;
mod new;
mod test;

use super::{layers, print_json};
use crate::args::{Global, PluginsCommand};
use crate::builtin;
use crate::output::{data, say};
use bk_core::config::edit::Edit;
use bk_core::config::{Accepted, Config};
use bk_core::context::Context;
use bk_core::error::{Error, Result, not_found};
use bk_core::plugin::Registry;
use bk_core::plugin::manifest::Manifest;
use bk_core::plugin::root::{Loaded, Root, is_as_accepted, only_ours, sha256};
use bk_core::report::Cause;
use bk_core::selector::did_you_mean;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

pub async fn run(cx: &Context, command: PluginsCommand, global: &Global) -> Result<Vec<Cause>> {
    match command {
        PluginsCommand::List { enabled } => return list(enabled, global),
        PluginsCommand::Show { name } => show(&name, global)?,
        PluginsCommand::Printroot => data(&root(global).0.display().to_string()),
        PluginsCommand::Enable { names } => enable::enable(&names, global)?,
        PluginsCommand::Disable { names } => enable::disable(&names, global)?,
        PluginsCommand::Install { what } => install::install(&what, global).await?,
        PluginsCommand::Upgrade { names } => install::upgrade(&names, global).await?,
        PluginsCommand::Uninstall { names } => install::uninstall(&names, global)?,
        PluginsCommand::Update => index::update(global).await?,
        PluginsCommand::Search { pattern } => index::search(&pattern, global)?,
        PluginsCommand::Index(command) => index::run(command, global)?,
        PluginsCommand::Check { name } => return check::run(cx, &name, global).await,
        PluginsCommand::Test { name, with } => {
            return test::run(cx, &name, with.as_deref(), global).await;
        }
        PluginsCommand::New {
            name,
            source,
            sink,
            command,
        } => new::run(&name, (source, sink, command))?,
    }
    Ok(Vec::new())
}

/// The plugins root.
fn root(global: &Global) -> Root {
    Root::of(&layers(global).environment)
}

/// The settings file that is changed: the one that is found, else the one that was named, else `plugins.toml` here.
fn settings_file(global: &Global) -> PathBuf {
    layers(global)
        .find()
        .unwrap_or_else(|_| "plugins.toml".into())
}

/// What the settings say of plugins, whether the rest of them is sound or not.
#[derive(Default)]
struct Said {
    enabled: Vec<String>,
    accepted: BTreeMap<String, Accepted>,
    indexes: Vec<String>,
}

fn said(global: &Global) -> Said {
    let Ok(path) = layers(global).find() else {
        return Said::default();
    };
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let table: toml::Table = text.parse().unwrap_or_default();
    let texts = |key: &str| {
        let list = table.get(key).and_then(toml::Value::as_array);
        let texts = list.into_iter().flatten().filter_map(toml::Value::as_str);
        texts.map(str::to_owned).collect::<Vec<_>>()
    };
    let plugins = table.get("plugin").and_then(toml::Value::as_table);
    let accepted = plugins.into_iter().flatten().filter_map(|(name, value)| {
        Some((name.clone(), value.clone().try_into::<Accepted>().ok()?))
    });
    Said {
        enabled: texts("plugins"),
        accepted: accepted.collect(),
        indexes: texts("indexes"),
    }
}

/// Changes the settings file.
fn edit(global: &Global, change: impl FnOnce(&mut Edit) -> Result<()>) -> Result<()> {
    let mut edit = Edit::open(&settings_file(global))?;
    change(&mut edit)?;
    edit.write()
}

/// A line of the list.
#[derive(serde::Serialize)]
struct Row {
    name: String,
    role: String,
    state: &'static str,
    version: String,
    about: String,
}

fn rows(global: &Global) -> Result<(Vec<Row>, Vec<Cause>)> {
    let said = said(global);
    let state = |name: &str| {
        if said.enabled.iter().any(|enabled| enabled == name) {
            "enabled"
        } else {
            "installed"
        }
    };
    let mut rows = Vec::new();
    let mut causes = Vec::new();
    let mut built_in = |name: &str, role: &str, about: &str| {
        rows.push(Row {
            name: name.to_owned(),
            role: role.to_owned(),
            state: state(name),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            about: about.to_owned(),
        });
    };
    let registry = builtin::registry();
    registry
        .sources
        .iter()
        .for_each(|p| built_in(&p.name, "source", &p.about));
    registry
        .sinks
        .iter()
        .for_each(|p| built_in(&p.name, "sink", &p.about));
    let root = root(global);
    for name in root.manifests()?.keys() {
        let row = match sound(&root, name, said.accepted.get(name)) {
            Ok(manifest) => Row {
                name: name.clone(),
                role: manifest.role.word().to_owned(),
                state: state(name),
                version: manifest.version,
                about: manifest.about,
            },
            Err(error) => {
                let about = error.what.clone();
                causes.push(Cause::new(name, &error));
                Row {
                    name: name.clone(),
                    role: String::new(),
                    state: "broken",
                    version: String::new(),
                    about,
                }
            }
        };
        rows.push(row);
    }
    for name in &said.enabled {
        if !rows.iter().any(|row| row.name == *name) {
            let error = not_found(format!("there is no plugin `{name}`")).hint(format!(
                "bk plugins install {name}, or bk plugins disable {name}"
            ));
            causes.push(Cause::new(name, &error));
        }
    }
    Ok((rows, causes))
}

/// A manifest that can be read, of a plugin that is what was accepted of it, where anything was.
fn sound(root: &Root, name: &str, accepted: Option<&Accepted>) -> Result<Manifest> {
    let manifest = root.manifest(name)?;
    match accepted {
        Some(accepted) => is_as_accepted(root, manifest.whole(), name, &accepted.sha256)?,
        None => only_ours(&root.0, manifest.whole())?,
    }
    Ok(manifest)
}

fn list(only_enabled: bool, global: &Global) -> Result<Vec<Cause>> {
    let (mut rows, causes) = rows(global)?;
    rows.retain(|row| !only_enabled || row.state != "installed");
    if global.json {
        print_json(&rows);
    } else {
        for row in &rows {
            data(&format!(
                "{:12} {:7} {:10} {:8} {}",
                row.name, row.role, row.state, row.version, row.about
            ));
        }
    }
    super::say_causes(&causes);
    Ok(causes)
}

/// The table of contents, with everything sound of the plugins root: for commands about plugins, not for runs.
fn everything(global: &Global) -> Result<Registry> {
    let mut registry = builtin::registry();
    let root = root(global);
    for name in root.manifests()?.keys() {
        if let Ok(manifest) = root.manifest(name) {
            Loaded::new(Arc::new(manifest), Arc::new(|| Ok(()))).join(&mut registry);
        }
    }
    Ok(registry)
}

fn no_such(name: &str, registry: &Registry) -> Error {
    let hint = did_you_mean(name, registry.names(), || "bk plugins list".into());
    not_found(format!("there is no plugin `{name}`")).hint(hint)
}

/// Settings that are sound, where there are any.
fn config(global: &Global) -> Result<Option<Config>> {
    match layers(global).find() {
        Ok(_) => super::load(global).map(Some),
        Err(_) => Ok(None),
    }
}

fn show(name: &str, global: &Global) -> Result<()> {
    let registry = everything(global)?;
    let source = registry
        .source(name)
        .map(|p| ("source", p.about.clone(), (p.schema)()));
    let sink = registry
        .sink(name)
        .map(|p| ("sink", p.about.clone(), (p.schema)()));
    let Some((role, about, schema)) = source.or(sink) else {
        // One that is there and broken says why.
        let root = root(global);
        if root.manifests()?.contains_key(name) {
            root.manifest(name)?;
        }
        return Err(no_such(name, &registry));
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
    let root = root(global);
    if let Some(path) = root.manifests()?.get(name) {
        describe(&root.manifest(name)?, &path.display().to_string())?;
    }
    Ok(())
}

/// What a person wants to know of a stranger's code before it runs.
fn describe(manifest: &Manifest, from: &str) -> Result<()> {
    say(&format!(
        "{} {}, a {}: {}",
        manifest.name,
        manifest.version,
        manifest.role.word(),
        manifest.about
    ));
    say(&format!("  from        {from}"));
    for (word, text) in &manifest.origin {
        say(&format!("  {word:11} {text}"));
    }
    let env = manifest.env();
    if !env.is_empty() {
        say(&format!("  environment {}", env.join(", ")));
    }
    say(&format!("  sha256      {}", sha256(manifest.whole())?));
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
