//! `plugins.toml`: layers (file < environment < `--set`), the origin of every value, and all mistakes at once with file, line and column.

pub mod edit;
mod outside;
mod problems;
mod tree;

use crate::archive::xz::Compression;
use crate::error::{Error, ErrorKind, Result, settings};
use crate::event_hooks::EventHook;
use crate::hooks::{self, Hooks};
use crate::plugin::Registry;
use crate::plugin::root::Root;
use crate::retention::Keep;
use crate::selector::did_you_mean;
use crate::settings::{ByteSize, Faults, Settings, Span, parse_table, unknown_key};
use crate::sink::{ReadOnly, Sink};
use crate::source::Source;
use jiff::tz::TimeZone;
pub use outside::Accepted;
use problems::Problems;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
pub use tree::Origin;
pub(crate) use tree::line_and_column;
use tree::{Node, overlay, parse};

/// Everything that the settings say, checked.
pub struct Config {
    /// The file.
    pub path: PathBuf,
    /// Its folder: relative paths start there.
    pub folder: PathBuf,
    /// `[archive]`.
    pub archive: ArchiveSettings,
    /// `[run]`: programs around every backup and every restore.
    pub run: Hooks,
    /// `[[hook]]`: programs that are told when something happens.
    pub event_hooks: Vec<EventHook>,
    /// Enabled plugins, in their order.
    pub plugins: Vec<String>,
    /// The plugins root.
    pub plugins_root: Root,
    /// Instances of enabled sources, by name.
    pub sources: Vec<SourceInstance>,
    /// Instances of enabled sinks.
    pub sinks: Vec<SinkInstance>,
    /// Tables whose plugin is not enabled: printed as not backed up on every run.
    pub not_enabled: Vec<String>,
    /// Things that need a look.
    pub warnings: Vec<String>,
    /// Every value with its origin, secrets masked.
    pub values: Vec<(String, String, String)>,
}

/// A source with a name.
#[derive(Clone)]
pub struct SourceInstance {
    /// The name.
    pub name: String,
    /// Its plugin.
    pub plugin: String,
    /// Sources that a restore puts back before this one: it lives in what they bring.
    pub after: Vec<String>,
    /// Programs around its backup and its restore.
    pub hooks: Hooks,
    /// The instance.
    pub source: Arc<dyn Source>,
}

/// A sink with a name.
#[derive(Clone)]
pub struct SinkInstance {
    /// The name.
    pub name: String,
    /// Its plugin.
    pub plugin: String,
    /// What the engine does with it.
    pub policy: SinkPolicy,
    /// The instance.
    pub sink: Arc<dyn Sink>,
}

/// `[archive]`: what is true of every archive.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ArchiveSettings {
    /// Whose archives these are: letters, digits, `-` and `_`. Every archive carries it.
    pub site: String,
    /// First part of every archive's name.
    pub prefix: String,
    /// Time zone whose midnight dates an archive: `UTC`, `Europe/Berlin`.
    pub timezone: String,
    /// xz preset, 0 to 9. 1 is 20 to 30 MiB/s on two cores; 6 is ten times slower for 15 % less.
    pub preset: u32,
    /// Whether blocks are compressed at all. `false` is as fast as the sources are: for places that compress by themselves.
    pub compress: bool,
    /// Memory of a run in bytes, or as text: `128 MiB`.
    pub memory: ByteSize,
    /// A single record over this fails its unit by name.
    pub max_record: ByteSize,
    /// Threads that compress; without it one for each core, as memory allows.
    pub workers: Option<usize>,
}

impl Default for ArchiveSettings {
    fn default() -> Self {
        Self {
            site: "main".into(),
            prefix: "backup".into(),
            timezone: "UTC".into(),
            preset: 1,
            compress: true,
            memory: ByteSize(128 << 20),
            max_record: ByteSize(64 << 20),
            workers: None,
        }
    }
}

impl ArchiveSettings {
    /// The zone whose midnight dates an archive. That it is one was checked when the settings were read.
    pub fn zone(&self) -> TimeZone {
        TimeZone::get(&self.timezone).unwrap_or(TimeZone::UTC)
    }

    /// What is done to blocks.
    pub fn compression(&self) -> Compression {
        if self.compress {
            Compression::Preset(self.preset)
        } else {
            Compression::Stored
        }
    }
}

/// The engine's own keys in a sink's table.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SinkPolicy {
    /// The plugin; without it the instance's name says it.
    pub plugin: Option<String>,
    /// Whether its failure alone fails the run (exit 1); if not, exit 3.
    pub required: bool,
    /// What to keep; without it nothing is ever deleted.
    pub keep: Option<Keep>,
    /// `after-backup` deletes what `keep` lets go after each whole, verified backup; `never` leaves it to `bk prune`.
    pub prune: PruneWhen,
    /// Somebody else's archives: they are listed, restored, copied and fetched from here, and nothing is ever written there.
    pub read_only: bool,
    /// `bk fetch` fills it from another sink: no backup goes there. Without `keep` the last 10 stay.
    pub fetch: Option<FetchSettings>,
}

/// `fetch = { from = "node" }`: where `bk fetch` takes from.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FetchSettings {
    /// The sink that has the archives.
    pub from: String,
    /// Whose archives; without it those of `[archive] site`.
    #[serde(default)]
    pub site: Option<String>,
    /// Not only the newest: all that `keep` retains.
    #[serde(default)]
    pub all: bool,
    /// How old the newest good archive may become before `bk fetch` ends with 9.
    #[serde(default)]
    pub max_age: Option<Span>,
}

/// Archives that stay where `bk fetch` puts them and nothing else is said.
pub const FETCHED_LAST: u32 = 10;
/// Keys of a sink's table that are the engine's.
const SINK_KEYS: [&str; 6] = ["plugin", "required", "keep", "prune", "read_only", "fetch"];

impl Default for SinkPolicy {
    fn default() -> Self {
        Self {
            plugin: None,
            required: true,
            keep: None,
            prune: PruneWhen::AfterBackup,
            read_only: false,
            fetch: None,
        }
    }
}

/// When retention runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PruneWhen {
    /// After each backup whose archive was verified in place.
    #[default]
    AfterBackup,
    /// Only by `bk prune`.
    Never,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct SourcePolicy {
    /// The plugin; without it the instance's name says it.
    plugin: Option<String>,
    /// Sources that a restore puts back first, because this one lives in what they bring: `["k8s"]`.
    after: Vec<String>,
}

/// Keys of a source's table that are the engine's, beside those of its hooks.
const SOURCE_KEYS: [&str; 2] = ["plugin", "after"];

/// Where to look, and what to lay over the file.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// `--config`.
    pub path: Option<PathBuf>,
    /// `--set`, in order.
    pub set: Vec<String>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
}

impl Layers {
    /// The file: `--config`, else `BK_CONFIG`, `./plugins.toml`, `$XDG_CONFIG_HOME/bk/plugins.toml`, `/etc/bk/plugins.toml`.
    pub fn find(&self) -> Result<PathBuf> {
        if let Some(path) = self
            .path
            .clone()
            .or_else(|| self.environment.get("BK_CONFIG").map(PathBuf::from))
        {
            return Ok(path);
        }
        let home = self
            .environment
            .get("HOME")
            .map(|home| Path::new(home).join(".config"));
        let xdg = self
            .environment
            .get("XDG_CONFIG_HOME")
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from)
            .or(home);
        let places: Vec<_> = [
            Some(PathBuf::from("plugins.toml")),
            xdg.map(|dir| dir.join("bk/plugins.toml")),
            Some("/etc/bk/plugins.toml".into()),
        ]
        .into_iter()
        .flatten()
        .collect();
        places
            .iter()
            .find(|path| path.exists())
            .cloned()
            .ok_or_else(|| {
                let said: Vec<_> = places
                    .iter()
                    .map(|path| format!("`{}`", path.display()))
                    .collect();
                settings(format!(
                    "there is no settings file; looked at {}",
                    said.join(", ")
                ))
                .hint("write a plugins.toml, or name one with --config PATH")
            })
    }
}

/// The file as text: UTF-8, with or without the mark that some editors put before it. Anything else is named with its place.
fn text_of(bytes: &[u8], path: &Path) -> Result<String> {
    let mut problems = Problems {
        file: path,
        list: Vec::new(),
    };
    let line_of = |at: usize| String::from_utf8_lossy(&bytes[..at]).matches('\n').count() + 1;
    let bare = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let zero = bytes.iter().position(|byte| *byte == 0);
    let (line, what, hint) = match (bytes, zero, std::str::from_utf8(bare)) {
        ([0xff, 0xfe, ..] | [0xfe, 0xff, ..], _, _) => {
            (1, "the file is UTF-16", "save it as UTF-8")
        }
        (_, Some(at), _) => (
            line_of(at),
            "there is a zero byte in the file",
            "save it as UTF-8 text",
        ),
        (_, None, Err(error)) => {
            let at = bytes.len() - bare.len() + error.valid_up_to();
            (line_of(at), "the file is not UTF-8", "save it as UTF-8")
        }
        (_, None, Ok(text)) => return Ok(text.to_owned()),
    };
    problems.add(&Origin::File(line, 1), what, Some(hint));
    Err(problems.finish().err().unwrap_or_else(Error::cancelled))
}

const TOP_KEYS: [&str; 9] = [
    "format", "plugins", "indexes", "archive", "run", "hook", "plugin", "source", "sink",
];

impl Config {
    /// Reads all layers, checks all instances, builds them.
    pub fn load(layers: &Layers, registry: &Registry) -> Result<Self> {
        let path = layers.find()?;
        let bytes = std::fs::read(&path).map_err(|e| Error {
            kind: ErrorKind::Settings,
            ..Error::io("read the settings in", &path, e)
        })?;
        let text = text_of(&bytes, &path)?;
        Self::of_text(&text, &path, layers, registry)
    }

    /// The same, as if the file at `path` had this text.
    pub fn of_text(text: &str, path: &Path, layers: &Layers, registry: &Registry) -> Result<Self> {
        let mut problems = Problems {
            file: path,
            list: Vec::new(),
        };
        let mut root = parse(text, &mut problems);
        if !problems.list.is_empty() {
            return Err(problems.finish().err().unwrap_or_else(Error::cancelled));
        }
        overlay(&mut root, layers, &mut problems);
        let plugins_root = Root::of(&layers.environment);
        let registry = outside::registry(&root, &plugins_root, registry, &mut problems);
        let mut config = Self::from_tree(&root, path, &registry, &mut problems);
        config.plugins_root = plugins_root;
        problems.finish()?;
        Ok(config)
    }

    fn from_tree(
        root: &Node,
        path: &Path,
        registry: &Registry,
        problems: &mut Problems<'_>,
    ) -> Self {
        top_level(root, problems);
        let folder = path
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
            .to_path_buf();
        let plugins = plugins(root, registry, problems);
        let archive = archive(root, problems);
        let run = run_hooks(root, problems);
        let mut config = Self {
            path: path.to_path_buf(),
            folder,
            archive,
            run,
            event_hooks: event_hooks(root, problems),
            plugins,
            plugins_root: Root(PathBuf::new()),
            sources: Vec::new(),
            sinks: Vec::new(),
            not_enabled: Vec::new(),
            warnings: Vec::new(),
            values: Vec::new(),
        };
        config.sources(root, registry, problems);
        config.sinks(root, registry, problems);
        if problems.list.is_empty() {
            config.fetches(root, problems);
            config.afters(root, problems);
        }
        config.collect_values(root, registry);
        if config.sinks.is_empty() && problems.list.is_empty() {
            problems.add(
                &root.origin,
                "no sink is set and enabled: an archive would have no place",
                Some("add `[sink.local]` with `path = \"backups\"`, and `local` to `plugins`"),
            );
        }
        config
    }

    fn sources(&mut self, root: &Node, registry: &Registry, problems: &mut Problems<'_>) {
        for (name, node) in instances(root, "source", problems) {
            let (own, rest) = split(node.object(), &SOURCE_KEYS);
            let (own_hooks, table) = split(rest, &hooks::KEYS);
            let parsed = (
                parse_table::<SourcePolicy>(&own),
                parse_table::<Hooks>(&own_hooks),
            );
            let (policy, hooks) = match parsed {
                (Ok(policy), Ok(hooks)) => (policy, hooks),
                (policy, hooks) => {
                    for faults in [policy.err(), hooks.err()].into_iter().flatten() {
                        problems.faults(node, &format!("[source.{name}]"), &faults);
                    }
                    continue;
                }
            };
            let plugin = policy.plugin.unwrap_or_else(|| name.clone());
            match registry.source(&plugin) {
                _ if !self.plugins.contains(&plugin) => {
                    self.not_enabled.push(format!("source.{name}"));
                }
                None => no_such_plugin(node, "source", &name, &plugin, registry, problems),
                Some(known) => {
                    let settings = Settings {
                        instance: name.clone(),
                        folder: self.folder.clone(),
                        table,
                    };
                    if let Some(source) =
                        built(node, "source", &name, (known.build)(settings), problems)
                    {
                        self.sources.push(SourceInstance {
                            name,
                            plugin,
                            after: policy.after,
                            hooks,
                            source,
                        });
                    }
                }
            }
        }
    }

    fn sinks(&mut self, root: &Node, registry: &Registry, problems: &mut Problems<'_>) {
        for (name, node) in instances(root, "sink", problems) {
            let (own, table) = split(node.object(), &SINK_KEYS);
            let policy: SinkPolicy = match parse_table(&own) {
                Ok(policy) => policy,
                Err(faults) => {
                    problems.faults(node, &format!("[sink.{name}]"), &faults);
                    continue;
                }
            };
            let plugin = policy.plugin.clone().unwrap_or_else(|| name.clone());
            match registry.sink(&plugin) {
                _ if !self.plugins.contains(&plugin) => {
                    self.not_enabled.push(format!("sink.{name}"));
                }
                None => no_such_plugin(node, "sink", &name, &plugin, registry, problems),
                Some(known) => {
                    let settings = Settings {
                        instance: name.clone(),
                        folder: self.folder.clone(),
                        table,
                    };
                    if let Some(sink) =
                        built(node, "sink", &name, (known.build)(settings), problems)
                    {
                        let sink: Arc<dyn Sink> = if policy.read_only {
                            Arc::new(ReadOnly::new(&name, sink))
                        } else {
                            sink
                        };
                        self.sinks.push(SinkInstance {
                            name,
                            plugin,
                            policy,
                            sink,
                        });
                    }
                }
            }
        }
    }

    /// What lives in others names sources that are set, enabled, and bring something that can be lived in.
    fn afters(&self, root: &Node, problems: &mut Problems<'_>) {
        for source in &self.sources {
            let table = root.get("source").and_then(|all| all.get(&source.name));
            let origin = table.map_or(&root.origin, |table| table.origin_of("after"));
            let mut fault = |what: String, hint: &str| {
                let what = format!("[source.{}]: `after`: {what}", source.name);
                problems.add(origin, &what, Some(hint));
            };
            for name in &source.after {
                match self.sources.iter().find(|other| other.name == *name) {
                    None => fault(
                        format!("there is no source `{name}`"),
                        "name a source that is set and enabled",
                    ),
                    Some(other) if !other.source.can_hold() => fault(
                        format!("nothing lives in what `{name}` restores"),
                        "name a source of Kubernetes objects",
                    ),
                    Some(other) if !other.after.is_empty() => fault(
                        format!("`{name}` waits for others itself"),
                        "name what it waits for as well there, and take `after` out of it",
                    ),
                    Some(_) => {}
                }
            }
        }
    }

    /// What is fetched comes from another sink that is set and enabled, into a folder here.
    fn fetches(&mut self, root: &Node, problems: &mut Problems<'_>) {
        let names: Vec<String> = self.sinks.iter().map(|sink| sink.name.clone()).collect();
        let mut sources = Vec::new();
        for sink in &mut self.sinks {
            let Some(fetch) = &sink.policy.fetch else {
                continue;
            };
            let table = root.get("sink").and_then(|sinks| sinks.get(&sink.name));
            let origin = table.map_or(&root.origin, |table| table.origin_of("fetch"));
            let mut fault = |what: String, hint: &str| {
                let what = format!("[sink.{}]: `fetch`: {what}", sink.name);
                problems.add(origin, &what, Some(hint));
            };
            let others = names.iter().filter(|name| **name != sink.name);
            if !others.clone().any(|name| *name == fetch.from) {
                let others: Vec<_> = others.map(|name| format!("`{name}`")).collect();
                let hint = format!("the other sinks are {}", others.join(", "));
                fault(format!("there is no other sink `{}`", fetch.from), &hint);
            }
            if sink.sink.folder().is_none() {
                let hint = "use `plugin = \"local\"` with a `path`";
                fault("only a folder here can be fetched into".into(), hint);
            }
            if fetch.site.as_ref().is_some_and(|site| !is_plain_name(site)) {
                let hint = "use letters, digits, `-` and `_`, at most 64";
                fault("`site` is no name of a site".into(), hint);
            }
            sources.push(fetch.from.clone());
            // So that `bk prune` and `bk check` know it too.
            sink.policy.keep.get_or_insert(Keep::last(FETCHED_LAST));
        }
        // Where nothing is backed up, what is fetched from is somebody else's, whether the settings say so or not.
        let is_others = |sink: &&mut SinkInstance| {
            self.sources.is_empty() && !sink.policy.read_only && sources.contains(&sink.name)
        };
        for sink in self.sinks.iter_mut().filter(is_others) {
            sink.policy.read_only = true;
            sink.sink = Arc::new(ReadOnly::new(&sink.name, sink.sink.clone()));
        }
    }

    /// The sinks that a backup goes to.
    pub fn backup_sinks(&self) -> Vec<SinkInstance> {
        let takes = |sink: &&SinkInstance| !sink.policy.read_only && sink.policy.fetch.is_none();
        self.sinks.iter().filter(takes).cloned().collect()
    }

    /// Every value with its origin. What a schema calls a secret is masked; of a plugin that is not known here, everything is.
    fn collect_values(&mut self, root: &Node, registry: &Registry) {
        for (key, node) in root.table().unwrap_or_default() {
            if key != "source" && key != "sink" {
                flatten(key, node, &|_| false, &mut self.values);
                continue;
            }
            for (name, node) in node.table().unwrap_or_default() {
                let plugin = node
                    .get("plugin")
                    .and_then(|p| p.json().as_str().map(str::to_owned))
                    .unwrap_or_else(|| name.clone());
                let schema = match key.as_str() {
                    "source" => registry.source(&plugin).map(|p| (p.schema)()),
                    _ => registry.sink(&plugin).map(|p| (p.schema)()),
                };
                let masked = |setting: &str| match &schema {
                    _ if is_the_engines(setting) => false,
                    Some(schema) => is_secret(schema, setting),
                    None => true,
                };
                let secrets: Vec<_> = node
                    .table()
                    .unwrap_or_default()
                    .iter()
                    .filter(|(k, n)| schema.is_some() && masked(k) && n.table().is_none())
                    .map(|(k, _)| k)
                    .collect();
                self.warnings.extend(secrets.iter().map(|k| format!("`{key}.{name}.{k}` stands in the settings in the clear; write {{ env = … }}, {{ file = … }} or {{ command = … }}")));
                let files: Vec<_> = node
                    .table()
                    .unwrap_or_default()
                    .iter()
                    .filter(|(k, _)| schema.is_some() && masked(k))
                    .filter_map(|(k, n)| {
                        let file = n.get("file")?.json();
                        readable_by_others(&self.folder.join(file.as_str()?), k)
                    })
                    .collect();
                self.warnings.extend(files);
                flatten(&format!("{key}.{name}"), node, &masked, &mut self.values);
            }
        }
    }

    /// The sink of this name.
    pub fn sink(&self, name: &str) -> Result<&SinkInstance> {
        let found = self.sinks.iter().find(|sink| sink.name == name);
        found.ok_or_else(|| missing("sink", name, self.sinks.iter().map(|sink| &sink.name)))
    }

    /// The source of this name.
    pub fn source(&self, name: &str) -> Result<&SourceInstance> {
        let found = self.sources.iter().find(|source| source.name == name);
        found.ok_or_else(|| missing("source", name, self.sources.iter().map(|s| &s.name)))
    }
}

fn missing<'n>(kind: &str, name: &str, others: impl Iterator<Item = &'n String>) -> Error {
    let names: Vec<_> = others.map(|other| format!("`{other}`")).collect();
    settings(format!("there is no {kind} `{name}`"))
        .hint(format!("the {kind}s are {}", names.join(", ")))
}

/// A file with a secret in it is its owner's alone. One that is not there is told when the secret is wanted.
fn readable_by_others(file: &Path, key: &str) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(file).ok()?.permissions().mode() & 0o7777;
    (mode & 0o044 != 0).then(|| {
        let file = file.display();
        format!(
            "`{file}`, where `{key}` is, can be read by others (mode {mode:04o}): chmod 600 {file}"
        )
    })
}

fn is_secret(schema: &Schema, setting: &str) -> bool {
    let property = schema.get("properties").and_then(|p| p.get(setting));
    let is_write_only = |value: &Value| value.to_string().contains("\"writeOnly\":true");
    property.is_none_or(is_write_only)
}

fn flatten(
    path: &str,
    node: &Node,
    masked: &dyn Fn(&str) -> bool,
    out: &mut Vec<(String, String, String)>,
) {
    match node.table() {
        Some(entries) => {
            for (key, node) in entries {
                if masked(key) {
                    out.push((
                        format!("{path}.{key}"),
                        "***".into(),
                        node.origin.to_string(),
                    ));
                } else {
                    flatten(&format!("{path}.{key}"), node, &|_| false, out);
                }
            }
        }
        None => out.push((
            path.to_owned(),
            node.json().to_string(),
            node.origin.to_string(),
        )),
    }
}

fn top_level(root: &Node, problems: &mut Problems<'_>) {
    for (key, node) in root.table().unwrap_or_default() {
        if !TOP_KEYS.contains(&key.as_str()) {
            let mut fault = unknown_key(key, TOP_KEYS.into_iter());
            if key == "include" {
                let one =
                    "settings are one file; lay others over it by the environment or by --set";
                fault.hint = Some(one.into());
            }
            problems.add(&node.origin, &fault.what, fault.hint.as_deref());
        }
    }
    match root.get("format").map(|node| (node.json(), &node.origin)) {
        None => problems.add(
            &root.origin,
            "`format` is missing",
            Some("begin the file with `format = 1`"),
        ),
        Some((Value::Number(n), _)) if n.as_u64() == Some(1) => {}
        Some((other, origin)) => problems.add(
            origin,
            &format!("`format` is `{other}`; this version knows 1"),
            Some("write `format = 1`, or use a newer bk"),
        ),
    }
}

fn plugins(root: &Node, registry: &Registry, problems: &mut Problems<'_>) -> Vec<String> {
    let Some(node) = root.get("plugins") else {
        problems.add(
            &root.origin,
            "`plugins` is missing",
            Some("list what is enabled: `plugins = [\"files\", \"local\"]`"),
        );
        return Vec::new();
    };
    let json = node.json();
    let names: Option<Vec<String>> = json
        .as_array()
        .and_then(|list| list.iter().map(|v| v.as_str().map(str::to_owned)).collect());
    let Some(names) = names else {
        problems.add(
            &node.origin,
            "`plugins` is no list of names",
            Some("write `plugins = [\"files\", \"local\"]`"),
        );
        return Vec::new();
    };
    for name in &names {
        if !registry.names().any(|known| known == name) {
            let known: Vec<_> = registry.names().collect();
            let all = || format!("there are {}", known.join(", "));
            let hint = did_you_mean(name, known.iter().copied(), all);
            problems.add(
                &node.origin,
                &format!("there is no plugin `{name}`"),
                Some(&hint),
            );
        }
    }
    names
}

fn run_hooks(root: &Node, problems: &mut Problems<'_>) -> Hooks {
    let Some(node) = root.get("run") else {
        return Hooks::default();
    };
    parse_table(&node.object()).unwrap_or_else(|faults| {
        problems.faults(node, "[run]", &faults);
        Hooks::default()
    })
}

fn event_hooks(root: &Node, problems: &mut Problems<'_>) -> Vec<EventHook> {
    let Some(node) = root.get("hook") else {
        return Vec::new();
    };
    let Value::Array(tables) = node.json() else {
        let hint = "write [[hook]], with two brackets: there may be several";
        problems.add(&node.origin, "`hook` is no list of tables", Some(hint));
        return Vec::new();
    };
    let mut hooks = Vec::new();
    for (n, table) in tables.iter().enumerate() {
        let table = table.as_object().cloned().unwrap_or_default();
        match parse_table::<EventHook>(&table) {
            Ok(hook) => hooks.push(hook),
            Err(faults) => problems.faults(node, &format!("[[hook]] {}", n + 1), &faults),
        }
    }
    hooks
}

fn archive(root: &Node, problems: &mut Problems<'_>) -> ArchiveSettings {
    let Some(node) = root.get("archive") else {
        return ArchiveSettings::default();
    };
    if node.table().is_none() {
        problems.add(
            &node.origin,
            "`archive` is no table",
            Some("write [archive] on a line of its own"),
        );
        return ArchiveSettings::default();
    }
    let settings: ArchiveSettings = match parse_table(&node.object()) {
        Ok(settings) => settings,
        Err(faults) => {
            problems.faults(node, "[archive]", &faults);
            return ArchiveSettings::default();
        }
    };
    let mut fault = |key: &str, what: String, hint: &str| {
        problems.add(
            node.origin_of(key),
            &format!("[archive]: {what}"),
            Some(hint),
        );
    };
    for (key, name) in [("site", &settings.site), ("prefix", &settings.prefix)] {
        if !is_plain_name(name) {
            fault(
                key,
                format!("`{key}` is `{name}`"),
                "use letters, digits, `-` and `_`, at most 64",
            );
        }
    }
    if TimeZone::get(&settings.timezone).is_err() {
        fault(
            "timezone",
            format!("there is no time zone `{}`", settings.timezone),
            "write UTC, or a name like Europe/Berlin",
        );
    }
    if settings.preset > 9 {
        fault(
            "preset",
            format!("`preset` is {}", settings.preset),
            "write 0 to 9; 1 is the default",
        );
    }
    if settings.memory.0 < crate::archive::memory::MEMORY_MIN_BYTES {
        fault(
            "memory",
            format!("`memory` is {} bytes", settings.memory.0),
            "write 48 MiB or more; 128 MiB is the default",
        );
    }
    if settings.workers == Some(0) {
        fault(
            "workers",
            "`workers` is 0".into(),
            "leave it out, or write 1 or more",
        );
    }
    settings
}

/// Letters, digits, `-` and `_`: safe in a file's name, a path, a tag.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn instances<'a>(
    root: &'a Node,
    role: &str,
    problems: &mut Problems<'_>,
) -> Vec<(String, &'a Node)> {
    let Some(node) = root.get(role) else {
        return Vec::new();
    };
    let Some(entries) = node.table() else {
        problems.add(
            &node.origin,
            &format!("`{role}` is no table"),
            Some(&format!("write [{role}.NAME]")),
        );
        return Vec::new();
    };
    let mut found = Vec::new();
    for (name, node) in entries {
        if node.table().is_none() {
            problems.add(
                &node.origin,
                &format!("`{role}.{name}` is no table"),
                Some(&format!("write [{role}.{name}] on a line of its own")),
            );
        } else if !is_plain_name(name) {
            problems.add(
                &node.origin,
                &format!("`{name}` cannot name a {role}"),
                Some("use letters, digits, `-` and `_`, at most 64"),
            );
        } else {
            found.push((name.clone(), node));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Whether a key of an instance's table is no plugin's.
fn is_the_engines(key: &str) -> bool {
    [&SINK_KEYS[..], &SOURCE_KEYS, &hooks::KEYS]
        .iter()
        .any(|keys| keys.contains(&key))
}

/// The engine's own keys, and the rest for the plugin.
fn split(table: Map<String, Value>, own: &[&str]) -> (Map<String, Value>, Map<String, Value>) {
    table
        .into_iter()
        .partition(|(key, _)| own.contains(&key.as_str()))
}

fn no_such_plugin(
    node: &Node,
    role: &str,
    name: &str,
    plugin: &str,
    registry: &Registry,
    problems: &mut Problems<'_>,
) {
    let other = if role == "source" {
        registry.sink(plugin).is_some()
    } else {
        registry.source(plugin).is_some()
    };
    let what = if other {
        format!("[{role}.{name}]: `{plugin}` is no {role}")
    } else {
        format!("[{role}.{name}]: there is no plugin `{plugin}`")
    };
    problems.add(&node.origin, &what, Some("bk plugins list"));
}

fn built<T: ?Sized>(
    node: &Node,
    role: &str,
    name: &str,
    result: Result<Arc<T>>,
    problems: &mut Problems<'_>,
) -> Option<Arc<T>> {
    match result {
        Ok(instance) => Some(instance),
        Err(error) => {
            let faults = error
                .source
                .as_ref()
                .and_then(|cause| cause.downcast_ref::<Faults>());
            match faults {
                Some(faults) => problems.faults(node, &format!("[{role}.{name}]"), faults),
                None => problems.add(
                    &node.origin,
                    &format!("[{role}.{name}]: {}", error.what),
                    error.hint.as_deref(),
                ),
            }
            None
        }
    }
}
