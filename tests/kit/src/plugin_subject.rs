//! A plugin as the kit's subject: its settings with an empty folder in them, and what fills, empties and digests the thing that it backs up: the
//! commands of its manifest or of the person who tests it, or the plugin itself by the operations `test_…`.

use crate::source_suite::Subject;
use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, Result, settings};
use bk_core::plugin::manifest::{How, Manifest, TestCommands, placeholder};
use bk_core::plugin::message::Op;
use bk_core::plugin::protocol_source::{ProtocolSource, Remote, Trial};
use bk_core::plugin::root::{Loaded, remote};
use bk_core::settings::Settings;
use bk_core::sink::Sink;
use bk_core::source::Source;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// In settings and commands: the empty folder.
const SCRATCH: &str = "{scratch}";

/// Where a plugin's code is.
#[derive(Clone)]
pub enum Code {
    /// In the program: builds an instance.
    BuiltIn(Arc<bk_core::plugin::Build<dyn Source>>),
    /// Outside of it.
    Outside(Arc<Manifest>),
}

/// An instance under test, in an empty folder of its own.
pub struct Scratch {
    folder: tempfile::TempDir,
    /// Its settings.
    pub settings: Settings,
}

impl Scratch {
    /// The settings of the test, with a fresh folder in the place of `{scratch}`.
    pub fn new(test: &TestCommands) -> Result<Self> {
        let folder = tempfile::tempdir()
            .map_err(|e| Error::io("make a folder in", &std::env::temp_dir(), e))?;
        let path = folder.path().to_string_lossy().into_owned();
        let table: Map<String, Value> = test
            .settings
            .iter()
            .map(|(key, value)| (key.clone(), filled(value, &path)))
            .collect();
        Ok(Self {
            settings: Settings {
                instance: "it".into(),
                folder: folder.path().to_owned(),
                table,
            },
            folder,
        })
    }

    /// A command with the settings in their places.
    fn argv(&self, argv: &[String], group: &str) -> Result<Vec<String>> {
        let scratch = self.folder.path().to_string_lossy();
        let mut words = Vec::new();
        for part in argv {
            match placeholder(part) {
                Some("group") => words.push(group.to_owned()),
                Some(key) if key != "scratch" => match self.settings.table.get(key) {
                    Some(Value::String(text)) => words.push(text.clone()),
                    Some(Value::Array(list)) => {
                        words.extend(list.iter().filter_map(Value::as_str).map(str::to_owned));
                    }
                    Some(other) => words.push(other.to_string()),
                    None => {
                        return Err(settings(format!(
                            "[test] uses `{{{key}}}`, which its settings do not have"
                        ))
                        .hint("add it to `settings` of [test]"));
                    }
                },
                _ => words.push(part.replace(SCRATCH, &scratch)),
            }
        }
        Ok(words)
    }

    /// Runs a command of the test; what it prints.
    async fn run(&self, argv: &[String], group: &str) -> Result<String> {
        let words = self.argv(argv, group)?;
        let [program, arguments @ ..] = words.as_slice() else {
            return Err(settings("a command of [test] is empty"));
        };
        let ended = tokio::process::Command::new(program)
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(std::process::Stdio::null())
            .output()
            .await
            .map_err(|e| settings(format!("`{program}` of [test] could not be run: {e}")))?;
        if ended.status.success() {
            return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
        }
        Err(settings(format!(
            "`{program}` of [test] ended with {}: {}",
            ended.status,
            String::from_utf8_lossy(&ended.stderr).trim()
        )))
    }
}

fn filled(value: &Value, scratch: &str) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace(SCRATCH, scratch)),
        Value::Array(list) => list.iter().map(|value| filled(value, scratch)).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), filled(value, scratch)))
            .collect(),
        other => other.clone(),
    }
}

/// A sink of this manifest in an empty folder, which stays as long as the first of the two is held.
pub fn empty_sink(
    manifest: &Arc<Manifest>,
    test: &TestCommands,
) -> Result<(Scratch, Arc<dyn Sink>)> {
    let scratch = Scratch::new(test)?;
    match Loaded::new(manifest.clone(), Arc::new(|| Ok(()))) {
        Loaded::Sink(plugin) => {
            let sink = (plugin.build)(scratch.settings.clone())?;
            Ok((scratch, sink))
        }
        Loaded::Source(_) => Err(settings(format!("`{}` is a source", manifest.name))),
    }
}

/// A source under test.
pub struct PluginSubject {
    code: Code,
    test: TestCommands,
    scratch: Scratch,
    dying: AtomicBool,
    groups: BTreeMap<String, BTreeSet<String>>,
    context: Context,
    /// The first thing that went wrong with the test's own commands: no check can be believed after it.
    wrong: Mutex<Option<String>>,
}

impl PluginSubject {
    /// Fills it once, to see what units it has.
    pub async fn new(code: Code, test: TestCommands, context: Context) -> Result<Self> {
        let mut subject = Self {
            scratch: Scratch::new(&test)?,
            code,
            test,
            dying: AtomicBool::new(false),
            groups: BTreeMap::new(),
            context,
            wrong: Mutex::default(),
        };
        subject.instance()?;
        subject.act(Op::TestSeed, "").await?;
        for (group, unit) in subject.look().await?.into_keys() {
            subject.groups.entry(group).or_default().insert(unit);
        }
        if subject.groups.is_empty() {
            return Err(settings("after it was filled, there is nothing in it"));
        }
        Ok(subject)
    }

    /// What went wrong with the commands of the test.
    pub fn wrong(&self) -> Option<String> {
        self.wrong
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Why this check asks for something that this plugin does not have, where it does.
    pub fn not_asked(&self, check: &str) -> Option<&str> {
        if let Some(why) = self.test.not_asked.get(check) {
            return Some(why);
        }
        let one_group = self.groups.len() < 2;
        let single = self.groups.values().all(|units| units.len() < 2);
        let no_stranger = self.test.stranger.is_none() && !self.by_itself();
        match check {
            "replacing_a_unit_leaves_its_neighbours" | "merging_keeps_the_rest" if single => {
                Some("it has no group of two units")
            }
            "replacing_a_unit_leaves_its_neighbours"
            | "merging_keeps_the_rest"
            | "replacing_a_group_removes_what_the_archive_has_not"
                if no_stranger =>
            {
                Some("[test] has no `stranger`")
            }
            "the_excluded_is_not_written" if one_group => Some("it has one group only"),
            "a_half_restored_target_is_not_backed_up_as_good" if self.remote().is_err() => {
                Some("it is no process that could be killed midway")
            }
            "a_half_restored_target_is_not_backed_up_as_good" if single && one_group => {
                Some("it has one unit, and no half")
            }
            _ => None,
        }
    }

    fn instance(&self) -> Result<Arc<dyn Source>> {
        self.on_trial(Trial {
            // The first entry is written, the second never comes.
            cut_restore_after: self.dying.load(Ordering::Acquire).then_some(1),
            grease: false,
        })
    }

    fn on_trial(&self, trial: Trial) -> Result<Arc<dyn Source>> {
        let settings = self.scratch.settings.clone();
        match &self.code {
            Code::BuiltIn(build) => build(settings),
            Code::Outside(manifest) => match &manifest.how {
                How::Protocol(_) => {
                    let remote = self.remote()?.on_trial(trial);
                    Ok(Arc::new(ProtocolSource(remote)))
                }
                How::Commands(_) => match Loaded::new(manifest.clone(), Arc::new(|| Ok(()))) {
                    Loaded::Source(plugin) => (plugin.build)(settings),
                    Loaded::Sink(_) => Err(bk_core::error::settings("it is a sink")),
                },
            },
        }
    }

    /// The plugin behind the protocol.
    pub fn remote(&self) -> Result<Remote> {
        match &self.code {
            Code::Outside(manifest) => remote(
                manifest,
                &(Arc::new(|| Ok(())) as bk_core::plugin::root::Proof),
                &self.scratch.settings,
            ),
            Code::BuiltIn(_) => Err(settings("it is no process")),
        }
    }

    fn by_itself(&self) -> bool {
        let is_protocol = matches!(&self.code, Code::Outside(manifest) if matches!(manifest.how, How::Protocol(_)));
        is_protocol && self.test.seed.is_none()
    }

    async fn act(&self, op: Op, group: &str) -> Result<String> {
        let command = match op {
            Op::TestSeed => &self.test.seed,
            Op::TestWipe => &self.test.wipe,
            Op::TestDigest => &self.test.digest,
            _ => &self.test.stranger,
        };
        match command {
            Some(argv) => self.scratch.run(argv, group).await,
            None if self.by_itself() => {
                let group = group.to_owned();
                let done = self
                    .remote()?
                    .call(&self.context, op, |open| open.group = Some(group))
                    .await?;
                let lines = done.digest.iter();
                Ok(lines
                    .map(|(group, unit, words)| format!("{group}\t{unit}\t{words}\n"))
                    .collect())
            }
            None => Err(settings("it cannot be tested: it has no commands for that")
                .hint("add [test] with `settings`, `seed`, `wipe` and `digest` to its manifest, or name a file with them by --with")),
        }
    }

    async fn look(&self) -> Result<BTreeMap<(String, String), String>> {
        let text = self.act(Op::TestDigest, "").await?;
        let mut units: BTreeMap<(String, String), String> = BTreeMap::new();
        let is_table = text.lines().all(|line| line.matches('\t').count() >= 2);
        if !is_table {
            units.insert((".".into(), ".".into()), text);
            return Ok(units);
        }
        for line in text.lines() {
            let mut parts = line.splitn(3, '\t').map(str::to_owned);
            if let (Some(group), Some(unit), Some(words)) =
                (parts.next(), parts.next(), parts.next())
            {
                units.insert((group, unit), words);
            }
        }
        Ok(units)
    }

    fn remember<T: Default>(&self, result: Result<T>) -> T {
        result.unwrap_or_else(|error| {
            self.wrong
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert_with(|| error.to_string());
            T::default()
        })
    }
}

#[async_trait]
impl Subject for PluginSubject {
    fn source(&self) -> Arc<dyn Source> {
        // That its settings are good was seen when it was made.
        self.instance().expect("the settings were good before")
    }

    async fn seed(&self) {
        self.remember(self.act(Op::TestSeed, "").await);
    }

    async fn wipe(&self) {
        self.remember(self.act(Op::TestWipe, "").await);
    }

    async fn add_stranger(&self, group: &str) {
        self.remember(self.act(Op::TestStranger, group).await);
    }

    async fn digest(&self) -> BTreeMap<(String, String), String> {
        self.remember(self.look().await)
    }

    async fn die_midway(&self) -> bool {
        let is_protocol = self.remote().is_ok();
        self.dying.store(is_protocol, Ordering::Release);
        is_protocol
    }

    async fn stop_dying(&self) {
        self.dying.store(false, Ordering::Release);
    }
}
