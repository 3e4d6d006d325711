//! One file for each verb; here is only the way to them.

mod backup;
mod check;
mod config;
mod copy;
mod extract;
mod fetch;
mod k8s;
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
use bk_core::event::Moment;
use bk_core::event_hooks::EventHooks;
use bk_core::report::Cause;
use clap::CommandFactory;
use serde::Serialize;
use std::sync::Arc;

/// Runs the command and prints what came of it. The causes decide the exit code.
pub async fn run(command: Command, global: &Global, cx: Context) -> Vec<Cause> {
    let done = match command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "bk", &mut std::io::stdout());
            Ok(Vec::new())
        }
        Command::Man { into } => manual(into.as_deref()),
        Command::Plugins(args) => plugins::run(&cx, args, global).await,
        Command::Config(args) => config::run(args, global),
        #[cfg(feature = "k8s")]
        Command::K8s(crate::args::K8sCommand::Render(args)) => k8s::render(&args, global),
        #[cfg(feature = "k8s")]
        Command::K8s(crate::args::K8sCommand::Run {
            what,
            dry_run,
            kubeconfig,
            context,
            render,
            more,
        }) => {
            let reach = k8s::Reach {
                kubeconfig,
                context,
                dry_run,
            };
            k8s::run_once(&cx, global, &render, (what, more), reach).await
        }
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
    let hooks = Arc::new(EventHooks::new(config.event_hooks.clone(), cx.progress));
    let cx = Context {
        site: config.archive.site.as_str().into(),
        progress: hooks.clone(),
        ..cx
    };
    let failed = moment_of_failure(&command);
    let done = of_the_site(command, &config, global, &cx).await;
    match (&done, failed) {
        (Err(error), Some(moment)) => {
            let causes = [Cause::new("", error)];
            cx.reached(moment, &serde_json::json!({ "causes": causes }));
        }
        // Those of a backup and of a restore have a report, and were told with it.
        (Ok(causes), Some(moment))
            if !causes.is_empty()
                && !matches!(moment, Moment::BackupFailed | Moment::RestoreFailed) =>
        {
            cx.reached(moment, &serde_json::json!({ "causes": causes }));
        }
        _ => {}
    }
    say_warnings(&hooks.finish().await);
    done
}

/// What hooks are told when the command does not end well; nothing where it only looks.
fn moment_of_failure(command: &Command) -> Option<Moment> {
    match command {
        Command::Backup(args) if !args.dry_run => Some(Moment::BackupFailed),
        Command::Restore(args)
            if !args.dry_run
                && args.list_versions.is_none()
                && args.forget_unfinished.is_none() =>
        {
            Some(Moment::RestoreFailed)
        }
        Command::Verify(_) => Some(Moment::VerifyFailed),
        Command::Check(args) if args.policy.is_none() => Some(Moment::CheckFailed),
        Command::Fetch(_) => Some(Moment::FetchFailed),
        _ => None,
    }
}

async fn of_the_site(
    command: Command,
    config: &Config,
    global: &Global,
    cx: &Context,
) -> Result<Vec<Cause>> {
    match command {
        Command::Backup(args) => backup::run(cx, config, &args, global).await,
        Command::Restore(args) => restore::run(cx, config, args, global).await,
        Command::List(args) => list::run(cx, config, &args, global).await,
        Command::Show(args) => show::run(cx, config, &args, global).await,
        Command::Verify(args) => verify::run(cx, config, &args, global).await,
        Command::Extract(args) => extract::run(cx, config, &args, global).await,
        Command::Copy(args) => copy::run(cx, config, &args, global).await,
        Command::Fetch(args) => fetch::run(cx, config, &args, global).await,
        Command::Prune(args) => prune::run(cx, config, &args, global).await,
        Command::Pin(args) => pin::run(cx, config, &args, pin::What::Pin).await,
        Command::Unpin(args) => pin::run(cx, config, &args, pin::What::Unpin).await,
        Command::Check(args) => check::run(cx, config, &args, global).await,
        Command::K8s(args) => k8s::run(cx, config, args, global).await,
        Command::Config(_)
        | Command::Plugins(_)
        | Command::Completions { .. }
        | Command::Man { .. } => Ok(Vec::new()),
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

/// The first page, or every page as a file: `bk.1`, `bk-backup.1`, `bk-plugins-test.1`, …
fn manual(into: Option<&std::path::Path>) -> Result<Vec<Cause>> {
    if let Some(folder) = into {
        let fail = |e| Error::io("write the pages into", folder, e);
        std::fs::create_dir_all(folder).map_err(fail)?;
        clap_mangen::generate_to(Cli::command(), folder).map_err(fail)?;
        return Ok(Vec::new());
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(Cli::command())
        .render(&mut text)
        .map_err(|e| Error::new(bk_core::ErrorKind::Bug, e.to_string()))?;
    output::data(&String::from_utf8_lossy(&text));
    Ok(Vec::new())
}
