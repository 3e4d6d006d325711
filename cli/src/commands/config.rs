//! `bk config`: what the settings say, whether they are good, and how they are changed.

mod import;

use super::{layers, load, print_json};
use crate::args::{ConfigCommand, Global};
use crate::builtin;
use crate::output::{data, say};
use bk_core::config::edit::Edit;
use bk_core::config::{Config, Layers};
use bk_core::error::{Error, Result, not_found, settings};
use bk_core::report::Cause;
use bk_core::selector::did_you_mean;
use std::path::Path;

pub fn run(command: ConfigCommand, global: &Global) -> Result<Vec<Cause>> {
    match command {
        ConfigCommand::Import { file, node } => return import::run(&file, node.as_deref()),
        ConfigCommand::Validate => validate(&load(global)?, global)?,
        ConfigCommand::Show => show(&load(global)?, global),
        ConfigCommand::Save {
            assign,
            append,
            remove,
            unset,
        } => save(&assign, &append, (&remove, &unset), global)?,
        ConfigCommand::Printvalue { key } => print_value(&key, &load(global)?)?,
        ConfigCommand::Printroot => {
            let path = layers(global).find()?;
            let path = std::path::absolute(&path).map_err(|e| Error::io("find", &path, e))?;
            data(
                &path
                    .parent()
                    .unwrap_or(Path::new("/"))
                    .display()
                    .to_string(),
            );
        }
        ConfigCommand::Edit => edit(global)?,
    }
    Ok(Vec::new())
}

fn validate(config: &Config, global: &Global) -> Result<()> {
    data(&format!(
        "{}: good; {} sources, {} sinks",
        layers(global).find()?.display(),
        config.sources.len(),
        config.sinks.len()
    ));
    config.not_enabled.iter().for_each(|name| {
        data(&format!("not backed up: {name}, its plugin is not enabled"));
    });
    Ok(())
}

fn show(config: &Config, global: &Global) {
    if global.json {
        return print_json(&config.values);
    }
    data(&format!("# {}", config.path.display()));
    let width = config
        .values
        .iter()
        .map(|(key, value, _)| key.len() + value.len() + 3)
        .max()
        .unwrap_or(0)
        .min(60);
    for (key, value, origin) in &config.values {
        data(&format!(
            "{:width$}  # {origin}",
            format!("{key} = {value}")
        ));
    }
}

fn print_value(key: &str, config: &Config) -> Result<()> {
    let prefix = format!("{key}.");
    let found: Vec<_> = config
        .values
        .iter()
        .filter(|(name, _, _)| name == key || name.starts_with(&prefix))
        .collect();
    match found.as_slice() {
        [] => {
            let names = config.values.iter().map(|(name, _, _)| name.as_str());
            let hint = did_you_mean(key, names, || "bk config show".into());
            Err(not_found(format!("`{key}` is not set")).hint(hint))
        }
        [(name, value, _)] if name == key => {
            // A text without its quotes: for scripts.
            let text = serde_json::from_str::<String>(value);
            data(text.as_deref().unwrap_or(value));
            Ok(())
        }
        several => {
            for (name, value, _) in several {
                data(&format!("{name} = {value}"));
            }
            Ok(())
        }
    }
}

/// A dotted key, in which a part may be quoted as in TOML.
fn keys(dotted: &str) -> Result<Vec<String>> {
    let wrong = || settings(format!("`{dotted}` is no key")).hint("write source.mysql.host");
    let parts: Vec<String> = dotted.split('.').map(str::to_owned).collect();
    if parts.iter().any(String::is_empty) {
        return Err(wrong());
    }
    Ok(parts)
}

fn assignment(text: &str) -> Result<(Vec<String>, &str)> {
    let (key, value) = text.split_once('=').ok_or_else(|| {
        settings(format!("`{text}` is no assignment")).hint("write -s source.mysql.host=db")
    })?;
    Ok((keys(key.trim())?, value.trim()))
}

fn save(
    assign: &[String],
    append: &[String],
    (remove, unset): (&[String], &[String]),
    global: &Global,
) -> Result<()> {
    let path = layers(global)
        .find()
        .unwrap_or_else(|_| "plugins.toml".into());
    let mut edit = Edit::open(&path)?;
    for one in global.set.iter().chain(assign) {
        let (keys, value) = assignment(one)?;
        edit.set(&keys, value)?;
    }
    for one in append {
        let (keys, value) = assignment(one)?;
        edit.append(&keys, value)?;
    }
    for one in remove {
        let (keys, value) = assignment(one)?;
        if !edit.remove(&keys, value)? {
            return Err(
                not_found(format!("`{one}`: the list has no such element")).hint("bk config show")
            );
        }
    }
    for one in unset {
        if !edit.unset(&keys(one)?)? {
            return Err(not_found(format!("`{one}` is not set")).hint("bk config show"));
        }
    }
    // Settings that are good stay good; those that are not yet may be mended in several steps.
    let bare = Layers {
        set: Vec::new(),
        ..layers(global)
    };
    let was_good = Config::load(&bare, &builtin::registry()).is_ok();
    let after = Config::of_text(&edit.text(), &path, &bare, &builtin::registry());
    if let Err(error) = after {
        if was_good {
            let what = format!(
                "this would make good settings wrong, so nothing was written: {}",
                error.what
            );
            return Err(settings(what));
        }
        edit.write()?;
        say(&format!(
            "saved {}; not good yet: {}",
            path.display(),
            error.what
        ));
        return Ok(());
    }
    edit.write()?;
    say(&format!("saved {}", path.display()));
    Ok(())
}

fn edit(global: &Global) -> Result<()> {
    let path = layers(global).find()?;
    let editor = std::env::var("VISUAL").or_else(|_| std::env::var("EDITOR"));
    let editor = editor.map_err(|_| {
        settings("neither VISUAL nor EDITOR says which editor").hint("export EDITOR=nano")
    })?;
    // `EDITOR="code --wait"` is usual.
    let mut words = editor.split_whitespace();
    let program = words.next().unwrap_or("vi");
    let status = std::process::Command::new(program)
        .args(words)
        .arg(&path)
        .status()
        .map_err(|e| settings(format!("`{program}` could not be run: {e}")))?;
    if !status.success() {
        return Err(settings(format!("`{program}` ended with {status}")));
    }
    validate(&load(global)?, global)
}
