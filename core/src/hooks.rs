//! Programs that an operator runs around a backup or a restore: of one instance, or of the whole run. Each has an end of patience; what comes after
//! runs also when something failed.

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, settings};
use crate::report::Cause;
use crate::settings::Span;
use schemars::JsonSchema;
use serde::Deserialize;
use std::process::Stdio;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_mins(5);

/// `{ command = ["docker", "compose", "stop"], timeout = "2m" }`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// Program and arguments; no shell looks at them.
    pub command: Vec<String>,
    /// After this time it is killed and has failed; without it 5 minutes.
    #[serde(default)]
    pub timeout: Option<Span>,
}

/// Those of an instance's table, or of `[run]`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    /// Before it is backed up; when it fails, it is not.
    pub before_backup: Option<Hook>,
    /// After it was backed up, also when that failed.
    pub after_backup: Option<Hook>,
    /// Before it is restored; when it fails, it is not.
    pub before_restore: Option<Hook>,
    /// After it was restored, also when that failed.
    pub after_restore: Option<Hook>,
}

/// Keys of an instance's table that are hooks.
pub const KEYS: [&str; 4] = [
    "before_backup",
    "after_backup",
    "before_restore",
    "after_restore",
];

impl Hook {
    /// Runs it. What it says on standard error is seen, the rest is not. Of the environment it gets PATH and HOME, and `BK_INSTANCE`, `BK_ARCHIVE`, `BK_RESULT`:
    /// secrets of this program are none of its business.
    async fn run(&self, cx: &Context, key: &str, said: &[(&str, &str)]) -> Result<()> {
        let [program, arguments @ ..] = self.command.as_slice() else {
            return Err(settings(format!("`{key}`: `command` is empty")));
        };
        let mut command = tokio::process::Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(
                ["PATH", "HOME"]
                    .into_iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .envs(said.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let limit = Span::or(self.timeout, PATIENCE);
        let failed =
            |why: String| Error::new(ErrorKind::Plugin, format!("`{key}`: `{program}` {why}"));
        let late = || failed(format!("was not done within {} s", limit.as_secs()));
        let ended = cx.within(limit, late, async {
            let status = command.status().await;
            status.map_err(|e| failed(format!("could not be run: {e}")))
        });
        let status = ended.await?;
        if status.success() {
            Ok(())
        } else {
            Err(failed(format!("ended with {status}")))
        }
    }
}

/// What comes before, where there is anything.
pub async fn before(
    cx: &Context,
    (key, hook): (&str, Option<&Hook>),
    said: &[(&str, &str)],
) -> Result<()> {
    match hook {
        Some(hook) => hook.run(cx, key, said).await,
        None => Ok(()),
    }
}

/// What comes after, also when the run was stopped or what it is about failed. Says why it failed itself.
pub async fn after(
    cx: &Context,
    (key, hook): (&str, Option<&Hook>),
    (about, is_done): (&str, bool),
    said: &[(&str, &str)],
) -> Option<Cause> {
    let result = if is_done { "done" } else { "failed" };
    let said = [said, &[("BK_RESULT", result)]].concat();
    let error = hook?.run(&cx.unstopped(), key, &said).await.err()?;
    Some(Cause::partial(about, error.what))
}
