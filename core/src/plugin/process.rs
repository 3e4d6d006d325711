//! A process of a plugin: started with nothing but what it was declared to need, watched, and ended by the ladder: asked, its input closed,
//! SIGTERM to its group, SIGKILL.

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, plugin};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

/// Variables that every child gets, where they are set.
const ENVIRONMENT: [&str; 3] = ["PATH", "LANG", "TZ"];
/// How long each rung of the ladder is given.
pub const RUNG: Duration = Duration::from_secs(5);
/// What of its standard error is relayed per second; the rest is counted.
const WORDS_PER_SECOND_BYTES: usize = 64 << 10;
const PIPE_BYTES: usize = 1 << 20;
/// Its last words, which stand in an error.
const LAST_WORDS_BYTES: usize = 2048;

/// A child, its input and output, and its last words.
pub struct Process {
    child: Child,
    group: Option<Group>,
    /// Its standard input, until it is closed.
    pub stdin: Option<ChildStdin>,
    /// Its standard output, until somebody reads it.
    pub stdout: Option<ChildStdout>,
    words: Arc<Mutex<Vec<u8>>>,
    relay: Option<JoinHandle<()>>,
    // Removed with it: the folder that it works in.
    _folder: tempfile::TempDir,
}

impl Process {
    /// Starts it in an empty folder and a process group of its own. `prepare` adds what is special.
    pub fn start(
        cx: &Context,
        argv: &[String],
        variables: &[(String, String)],
        prepare: impl FnOnce(&mut Command) -> Result<()>,
    ) -> Result<Self> {
        let [program, arguments @ ..] = argv else {
            return Err(plugin("there is no program to run"));
        };
        let folder = tempfile::tempdir().map_err(|e| {
            Error::io(
                "make a working folder for a plugin in",
                &std::env::temp_dir(),
                e,
            )
        })?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(folder.path())
            .env_clear()
            .envs(
                ENVIRONMENT
                    .into_iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        prepare(&mut command)?;
        let mut child = command.spawn().map_err(|e| could_not_run(program, e))?;
        widen(child.stdin.as_ref());
        widen(child.stdout.as_ref());
        let words = Arc::default();
        let relay = child
            .stderr
            .take()
            .map(|stderr| tokio::spawn(relay(cx.clone(), stderr, Arc::clone(&words))));
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Self {
            group: group.map(Group::new),
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            child,
            words,
            relay,
            _folder: folder,
        })
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let status = self
            .child
            .wait()
            .await
            .map_err(|e| plugin(format!("its end cannot be seen: {e}")).because(e))?;
        if let Some(relay) = self.relay.take() {
            // What it started may hold its standard error open.
            let _ = tokio::time::timeout(Duration::from_millis(200), relay).await;
        }
        // What it left in its group has no more business.
        self.signal(Signal::KILL);
        self.group = None;
        Ok(status)
    }

    /// Ends it, whatever it does: input closed, then SIGTERM, then SIGKILL. `Process::stdin` may have been used to ask before.
    pub async fn end(&mut self) -> Option<ExitStatus> {
        self.stdin = None;
        for signal in [Signal::TERM, Signal::KILL] {
            if tokio::time::timeout(RUNG, self.child.wait()).await.is_ok() {
                break;
            }
            self.signal(signal);
        }
        // After SIGKILL there is nothing that it could wait for.
        self.ended().await.ok()
    }

    /// Kills it, and all that it started, at once.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// What it said last on standard error, where it said anything: to stand behind an error.
    pub fn last_words(&self) -> Option<String> {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&words).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// The error with its last words behind it, where it said any.
    pub fn with_last_words(&self, error: Error) -> Error {
        let Some(words) = self.last_words() else {
            return error;
        };
        let last = words.lines().last().unwrap_or_default().to_owned();
        Error {
            what: format!("{}; its last words: {last}", error.what),
            ..error.because(words)
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = &self.group {
            group.signal(signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        if let Some(relay) = &self.relay {
            relay.abort();
        }
    }
}

/// A process group that lives; all that do are known, so that they can be ended when the program must end at once.
pub struct Group(Pid);

static LIVING: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

impl Group {
    /// The group that this process leads.
    pub fn new(leader: Pid) -> Self {
        let mut living = LIVING.lock().unwrap_or_else(PoisonError::into_inner);
        living.insert(leader.as_raw_nonzero().get());
        Self(leader)
    }

    /// To everybody in it.
    pub fn signal(&self, signal: Signal) {
        // It may be gone already.
        let _ = kill_process_group(self.0, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let mut living = LIVING.lock().unwrap_or_else(PoisonError::into_inner);
        living.remove(&self.0.as_raw_nonzero().get());
    }
}

/// Kills every group that lives: the program ends now.
pub fn kill_all() {
    let living = LIVING.lock().unwrap_or_else(PoisonError::into_inner);
    for leader in living.iter().filter_map(|leader| Pid::from_raw(*leader)) {
        // It may be gone already.
        let _ = kill_process_group(leader, Signal::KILL);
    }
}

/// What the system says of a program that does not start.
pub fn could_not_run(program: &str, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => ErrorKind::Settings,
        _ => ErrorKind::Plugin,
    };
    let hint = if Path::new(program).is_absolute() {
        "is it there, and executable, with an interpreter that is there?"
    } else {
        "is it installed, and in PATH?"
    };
    Error::new(kind, format!("`{program}` could not be run: {error}"))
        .hint(hint)
        .because(error)
}

/// A pipe holds 64 KiB unless it is told otherwise; a frame has up to 1 MiB. A system that allows no more is slower, and no worse.
fn widen(pipe: Option<&impl std::os::fd::AsFd>) {
    if let Some(pipe) = pipe {
        let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_BYTES);
    }
}

/// Reads standard error to its end: to the log, with a limit, and into the last words.
async fn relay(cx: Context, mut stderr: impl AsyncRead + Unpin, words: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = vec![0; 16 << 10];
    let (mut room, mut left_out) = (WORDS_PER_SECOND_BYTES, 0_u64);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        let read = tokio::select! {
            biased;
            _ = second.tick() => {
                room = WORDS_PER_SECOND_BYTES;
                continue;
            }
            read = stderr.read(&mut buffer) => read,
        };
        let Ok(1..) = read else { break };
        let bytes = &buffer[..read.unwrap_or_default()];
        {
            let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
            words.extend_from_slice(bytes);
            let surplus = words.len().saturating_sub(LAST_WORDS_BYTES);
            words.drain(..surplus);
        }
        if bytes.len() > room {
            left_out += bytes.len() as u64;
            continue;
        }
        room -= bytes.len();
        for line in String::from_utf8_lossy(bytes).lines() {
            tracing::info!(instance = %cx.instance, "{line}");
        }
    }
    if left_out > 0 {
        tracing::warn!(instance = %cx.instance, bytes = left_out, "the plugin said more than is relayed");
    }
}
