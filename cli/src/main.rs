//! `bk`: parse, run, print, exit.

mod args;
mod builtin;
mod calendar;
mod commands;
mod download;
mod exit;
mod output;

use args::{Cli, Global, LogFormat};
use bk_core::context::{Clock, Context, SystemClock};
use bk_core::event::{Progress, Quiet};
use clap::Parser;
use exit::Exit;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    init_log(&cli.global);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            output::say(&format!("error: no runtime: {error}"));
            return ExitCode::from(Exit::Failed as u8);
        }
    };
    let code = runtime.block_on(run(cli));
    // A hanging file system must not hold up the exit.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    ExitCode::from(code as u8)
}

async fn run(cli: Cli) -> Exit {
    let cancel = CancellationToken::new();
    let stopped = Arc::new(AtomicU8::new(0));
    tokio::spawn(watch_signals(cancel.clone(), stopped.clone()));
    let quiet = cli.global.no_progress || cli.global.quiet;
    let progress: Arc<dyn Progress> = if quiet {
        Arc::new(Quiet)
    } else {
        Arc::new(output::Bars::new())
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let cx = Context {
        instance: "bk".into(),
        site: "main".into(),
        cancel,
        clock,
        progress,
    };
    let causes = commands::run(cli.command, &cli.global, cx).await;
    let signal = match stopped.load(Ordering::Relaxed) {
        15 => Some(Exit::Terminated),
        _ => None,
    };
    Exit::of(&causes, signal, &cli.global.exit_zero_on)
}

/// The first signal stops tidily, the second at once.
async fn watch_signals(cancel: CancellationToken, stopped: Arc<AtomicU8>) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return;
    };
    for round in 0..2 {
        let number = tokio::select! {
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
        };
        if round == 1 {
            bk_core::plugin::process::kill_all();
            std::process::exit(128 + i32::from(number));
        }
        stopped.store(number, Ordering::Relaxed);
        output::say("stopping; once more to stop at once");
        cancel.cancel();
    }
}

fn init_log(global: &Global) {
    use tracing_subscriber::EnvFilter;
    let level = match (global.quiet, global.verbose) {
        // What the client of Kubernetes says of an answer is in the error that follows.
        (true, _) => "error,kube_client=off",
        (_, 0) => "warn,kube_client=off",
        (_, 1) => "bk=info,bk_core=info,bk_sources=info,bk_sinks=info,warn,kube_client=off",
        _ => "trace",
    };
    let filter = std::env::var("BK_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    // A second subscriber cannot be set, and there is none.
    let _ = match global.log_format {
        LogFormat::Json => log.json().try_init(),
        LogFormat::Text => log.without_time().with_target(false).try_init(),
    };
}
