//! `[[hook]]`: programs that are told when something happens. They see; they never change what a run does or how it ends. What can be waited for
//! is the catalogue, [`Moment`].

use crate::event::{Event, Moment, Progress};
use crate::plugin::process::Group;
use crate::selector::did_you_mean;
use crate::settings::Span;
use rustix::process::{Pid, Signal};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Hooks that run beside each other.
const AT_ONCE: usize = 4;
const PATIENCE: Duration = Duration::from_mins(1);
/// Of the environment it gets these, beside what is said of the moment.
const ENVIRONMENT: [&str; 3] = ["PATH", "HOME", "LANG"];

/// One `[[hook]]`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventHook {
    /// What it waits for: `backup.failed`, or a list of such.
    pub on: Moments,
    /// Program and arguments; no shell looks at them. The report is on its standard input, as JSON.
    pub run: Vec<String>,
    /// After this time it is killed; without it 1 minute.
    #[serde(default)]
    pub timeout: Option<Span>,
}

/// One moment, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moments(pub Vec<Moment>);

impl<'de> Deserialize<'de> for Moments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let words = match Value::deserialize(deserializer)? {
            Value::String(word) => vec![Value::String(word)],
            Value::Array(words) => words,
            other => return Err(D::Error::custom(format!("`{other}` is no moment"))),
        };
        let known: Vec<_> = Moment::ALL.iter().map(|moment| moment.word()).collect();
        let moments = words.iter().map(|word| {
            let text = word.as_str().unwrap_or_default();
            Moment::of(text).ok_or_else(|| {
                let all = || format!("there are {}", known.join(", "));
                let hint = did_you_mean(text, known.iter().copied(), all);
                D::Error::custom(format!("there is no moment `{text}`; {hint}"))
            })
        });
        moments.collect::<Result<_, _>>().map(Self)
    }
}

impl JsonSchema for Moments {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Moments".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let words: Vec<_> = Moment::ALL.iter().map(|moment| moment.word()).collect();
        json_schema!({
            "anyOf": [
                { "type": "string", "enum": words },
                { "type": "array", "items": { "type": "string", "enum": words } }
            ]
        })
    }
}

/// A watcher that runs hooks, and hands everything on to another.
pub struct EventHooks {
    hooks: Vec<EventHook>,
    next: Arc<dyn Progress>,
    running: Mutex<JoinSet<Option<String>>>,
    at_once: Arc<Semaphore>,
}

impl EventHooks {
    /// These hooks, and the watcher behind them.
    pub fn new(hooks: Vec<EventHook>, next: Arc<dyn Progress>) -> Self {
        Self {
            hooks,
            next,
            running: Mutex::default(),
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Waits for those that still run, each within its own limit. What went wrong, for people: no run ends otherwise because of it.
    pub async fn finish(&self) -> Vec<String> {
        let mut running =
            std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
        let mut wrong = Vec::new();
        while let Some(ended) = running.join_next().await {
            wrong.extend(ended.unwrap_or_else(|error| Some(error.to_string())));
        }
        wrong
    }
}

impl Progress for EventHooks {
    fn event(&self, instance: &str, event: &Event<'_>) {
        if let Event::Reached(moment, report) = event {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            for hook in self.hooks.iter().filter(|hook| hook.on.0.contains(moment)) {
                let told = Told {
                    moment: *moment,
                    about: instance.to_owned(),
                    report: report.to_string(),
                };
                running.spawn(in_turn(self.at_once.clone(), hook.clone(), told));
            }
        }
        self.next.event(instance, event);
    }
}

/// What a hook started ends with it, also when its time is over.
struct Ending(Group);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.signal(Signal::KILL);
    }
}

struct Told {
    moment: Moment,
    about: String,
    report: String,
}

async fn in_turn(turns: Arc<Semaphore>, hook: EventHook, told: Told) -> Option<String> {
    let _turn = turns.acquire().await;
    run(hook, told).await
}

/// Runs one. What went wrong.
async fn run(hook: EventHook, told: Told) -> Option<String> {
    let [program, arguments @ ..] = hook.run.as_slice() else {
        return None;
    };
    let word = told.moment.word();
    let limit = Span::or(hook.timeout, PATIENCE);
    let ended = tokio::time::timeout(limit, async {
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(
                ENVIRONMENT
                    .into_iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .env("BK_EVENT", word)
            .env("BK_INSTANCE", &told.about)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let leader = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let _all = leader.map(|leader| Ending(Group::new(leader)));
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read is well too.
            let _ = stdin.write_all(told.report.as_bytes()).await;
        }
        child.wait().await
    });
    let wrong = match ended.await {
        Ok(Ok(status)) if status.success() => return None,
        Ok(Ok(status)) => format!("ended with {status}"),
        Ok(Err(error)) => format!("could not be run: {error}"),
        Err(_) => format!("was not done within {} s", limit.as_secs()),
    };
    Some(format!("the hook on {word}, `{program}`, {wrong}"))
}
