//! `bk config show`, `validate` and `import`

mod import;

use super::{layers, load, print_json};
use crate::args::{ConfigCommand, Global};
use crate::output::data;
use bk_core::config::Config;
use bk_core::error::Result;
use bk_core::report::Cause;

pub fn run(command: &ConfigCommand, global: &Global) -> Result<Vec<Cause>> {
    match command {
        ConfigCommand::Import { file, node } => return import::run(file, node.as_deref()),
        ConfigCommand::Validate => validate(&load(global)?, global)?,
        ConfigCommand::Show => show(&load(global)?, global),
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
