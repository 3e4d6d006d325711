//! One file for each verb; here is only the way to them.

mod backup;
mod check;
mod config;
mod copy;
mod extract;
mod fetch;
mod list;
mod pin;
mod plugins;
mod prune;
mod restore;
mod show;
mod verify;

use crate::args::{Cli, Command, Global, Which};
use crate::builtin;
use crate::output;
use bk_core::catalog::Wish;
use bk_core::config::{Config, Layers};
use bk_core::context::Context;
use bk_core::error::{Error, Result, settings};
use bk_core::report::Cause;
use clap::CommandFactory;
use serde::Serialize;

/// Runs the command and prints what came of it. The causes decide the exit code.
pub async fn run(command: Command, global: &Global, cx: Context) -> Vec<Cause> {
    let done = match command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "bk", &mut std::io::stdout());
            Ok(Vec::new())
        }
        Command::Man => manual(),
        Command::Plugins(args) => plugins::run(&args, global),
        Command::Config(args) => config::run(&args, global),
        other => with_settings(other, global, cx).await,
    };
    match done {
        Ok(causes) => causes,
        Err(error) => {
            let cause = Cause::new("", &error);
            if global.json {
                print_json(&Failure {
                    causes: vec![cause.clone()],
                });
            }
            output::cause(&cause);
            vec![cause]
        }
    }
}

/// The report of a command that failed before it had one of its own.
#[derive(Serialize)]
struct Failure {
    causes: Vec<Cause>,
}

async fn with_settings(command: Command, global: &Global, cx: Context) -> Result<Vec<Cause>> {
    let mut config = load(global)?;
    if let Some(site) = &global.site {
        if !bk_core::config::is_plain_name(site) {
            return Err(settings(format!("`{site}` is no name of a site"))
                .hint("use letters, digits, `-` and `_`"));
        }
        config.archive.site.clone_from(site);
    }
    let cx = Context {
        site: config.archive.site.as_str().into(),
        ..cx
    };
    match command {
        Command::Backup(args) => backup::run(&cx, &config, &args, global).await,
        Command::Restore(args) => restore::run(&cx, &config, args, global).await,
        Command::List(args) => list::run(&cx, &config, &args, global).await,
        Command::Show(args) => show::run(&cx, &config, &args, global).await,
        Command::Verify(args) => verify::run(&cx, &config, &args, global).await,
        Command::Extract(args) => extract::run(&cx, &config, &args, global).await,
        Command::Copy(args) => copy::run(&cx, &config, &args, global).await,
        Command::Fetch(args) => fetch::run(&cx, &config, &args, global).await,
        Command::Prune(args) => prune::run(&cx, &config, &args, global).await,
        Command::Pin(args) => pin::run(&cx, &config, &args, pin::What::Pin).await,
        Command::Unpin(args) => pin::run(&cx, &config, &args, pin::What::Unpin).await,
        Command::Check(args) => check::run(&cx, &config, &args, global).await,
        Command::Config(_) | Command::Plugins(_) | Command::Completions { .. } | Command::Man => {
            Ok(Vec::new())
        }
    }
}

fn layers(global: &Global) -> Layers {
    // A variable that is no UTF-8 is none of ours.
    let environment = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
        .collect();
    Layers {
        path: global.config.clone(),
        set: global.set.clone(),
        environment,
    }
}

fn load(global: &Global) -> Result<Config> {
    let config = Config::load(&layers(global), &builtin::registry())?;
    for warning in &config.warnings {
        output::say(&format!("warning: {warning}"));
    }
    Ok(config)
}

fn print_json<T: Serialize>(report: &T) {
    match serde_json::to_string_pretty(report) {
        Ok(text) => output::data(&text),
        Err(error) => output::say(&format!("error: the report cannot be written: {error}")),
    }
}

fn wish(which: &Which, partial_too: bool) -> Wish {
    Wish {
        date: which.date.clone(),
        version: which.version.clone(),
        from: which.from.clone(),
        partial_too,
    }
}

fn say_warnings(warnings: &[String]) {
    for warning in warnings {
        output::say(&format!("warning: {warning}"));
    }
}

fn say_causes(causes: &[Cause]) {
    causes.iter().for_each(output::cause);
}

fn manual() -> Result<Vec<Cause>> {
    let mut text = Vec::new();
    clap_mangen::Man::new(Cli::command())
        .render(&mut text)
        .map_err(|e| Error::new(bk_core::ErrorKind::Bug, e.to_string()))?;
    output::data(&String::from_utf8_lossy(&text));
    Ok(Vec::new())
}
