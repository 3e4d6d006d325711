//! `plugins.toml`: layers (file < environment < `--set`), the origin of every value, and all mistakes at once with file, line and column.

mod problems;
mod tree;

use crate::archive::xz::Compression;
use crate::error::{Error, ErrorKind, Result, settings};
use crate::plugin::Registry;
use crate::retention::Keep;
use crate::settings::{ByteSize, Faults, Settings, Span, parse_table, unknown_key};
use crate::sink::{ReadOnly, Sink};
use crate::source::Source;
use problems::Problems;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
pub use tree::Origin;
use tree::{Node, overlay, parse};

/// Everything that the settings say, checked.
pub struct Config {
    /// The file.
    pub path: PathBuf,
    /// Its folder: relative paths start there.
    pub folder: PathBuf,
    /// `[archive]`.
    pub archive: ArchiveSettings,
    /// Enabled plugins, in their order.
    pub plugins: Vec<String>,
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
}

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

const TOP_KEYS: [&str; 5] = ["format", "plugins", "archive", "source", "sink"];

impl Config {
    /// Reads all layers, checks all instances, builds them.
    pub fn load(layers: &Layers, registry: &Registry) -> Result<Self> {
        let path = layers.find()?;
        let bytes = std::fs::read(&path).map_err(|e| Error {
            kind: ErrorKind::Settings,
            ..Error::io("read the settings in", &path, e)
        })?;
        let mut problems = Problems {
            file: &path,
            list: Vec::new(),
        };
        let Ok(text) = std::str::from_utf8(&bytes) else {
            let line = bytes
                .split(|b| *b == b'\n')
                .position(|line| std::str::from_utf8(line).is_err())
                .unwrap_or(0)
                + 1;
            problems.add(
                &Origin::File(line, 1),
                "the file is not UTF-8",
                Some("save it as UTF-8"),
            );
            return Err(problems.finish().err().unwrap_or_else(Error::cancelled));
        };
        let mut root = parse(text, &mut problems);
        if !problems.list.is_empty() {
            return Err(problems.finish().err().unwrap_or_else(Error::cancelled));
        }
        overlay(&mut root, layers, &mut problems);
        let config = Self::from_tree(&root, &path, registry, &mut problems);
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
        let mut config = Self {
            path: path.to_path_buf(),
            folder,
            archive,
            plugins,
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
            let (own, table) = split(node, &["plugin"]);
            let policy: SourcePolicy = match parse_table(&own) {
                Ok(policy) => policy,
                Err(faults) => {
                    problems.faults(node, &format!("[source.{name}]"), &faults);
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
                            source,
                        });
                    }
                }
            }
        }
    }

    fn sinks(&mut self, root: &Node, registry: &Registry, problems: &mut Problems<'_>) {
        for (name, node) in instances(root, "sink", problems) {
            let (own, table) = split(node, &SINK_KEYS);
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
                    _ if SINK_KEYS.contains(&setting) => false,
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
            let fault = unknown_key(key, TOP_KEYS.into_iter());
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
            let near = crate::selector::nearest(name, known.iter().copied());
            let hint = near.first().map_or_else(
                || format!("there are {}", known.join(", ")),
                |near| format!("did you mean {near}?"),
            );
            problems.add(
                &node.origin,
                &format!("there is no plugin `{name}`"),
                Some(&hint),
            );
        }
    }
    names
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
    if jiff::tz::TimeZone::get(&settings.timezone).is_err() {
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

/// The engine's own keys, and the rest for the plugin.
fn split(node: &Node, own: &[&str]) -> (Map<String, Value>, Map<String, Value>) {
    node.object()
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
