//! `NAME.toml` of a command plugin and `NAME/bk-plugin.toml` of a protocol plugin: what it is, how it is run, which settings it takes.

use super::settings::{SettingSpec, SettingType};
use crate::config::{is_plain_name, line_and_column};
use crate::error::{Error, ErrorKind, Result, settings};
use crate::name::MemberPath;
use crate::settings::Span;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The manifest's file in the folder of a protocol plugin.
pub const FILE: &str = "bk-plugin.toml";
/// The version of manifests that this program knows.
const FORMAT: u32 = 1;
const ABOUT_MAX: usize = 128;
/// A plugin that says nothing for so long is taken for hanging, unless its manifest says otherwise.
const PATIENCE: Duration = Duration::from_mins(10);

/// A plugin as its manifest describes it.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its name: that of the file, or of the folder.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// What it is for, in one line.
    pub about: String,
    /// What it is.
    pub role: Role,
    /// How it is run.
    pub how: How,
    /// Settings of an instance, in the order of their names.
    pub settings: BTreeMap<String, SettingSpec>,
    /// Commands that the kit fills, empties and digests with, where the plugin brings such.
    pub test: Option<TestCommands>,
    /// Files that `install` fetches with the manifest.
    pub artifacts: Vec<Artifact>,
    /// Licence, home page and maintainer, as `install` shows them.
    pub origin: Vec<(&'static str, String)>,
    /// The manifest.
    pub path: PathBuf,
}

/// What a plugin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Something is backed up.
    Source,
    /// Archives lie there.
    Sink,
}

impl Role {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Sink => "sink",
        }
    }
}

/// How a plugin is run.
#[derive(Clone, Debug)]
pub enum How {
    /// Commands whose output is the backup.
    Commands(Commands),
    /// A process that speaks the protocol.
    Protocol(Protocol),
}

/// Of a command plugin.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commands {
    /// Name of the one member.
    pub entry: String,
    /// Its standard output is the backup; its end and exit status 0 say that this is whole.
    pub backup: Vec<String>,
    /// Its standard input is the backup.
    #[serde(default)]
    pub restore: Option<Vec<String>>,
    /// Exit status 0: a backup and a restore could start now. It changes nothing.
    #[serde(default)]
    pub check: Option<Vec<String>>,
    /// Variables of all three, beside PATH, HOME, LANG and TZ. Secrets go here: `{ PGPASSWORD = "{password}" }`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// A command that says nothing for so long is ended.
    #[serde(default)]
    pub patience: Option<Span>,
}

/// Of a protocol plugin.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// Program and arguments; a first part with a `/` starts from the plugin's folder.
    pub run: Vec<String>,
    /// Versions of the protocol that it speaks.
    pub versions: Vec<u32>,
    /// Variables that it gets, beside PATH, LANG and TZ.
    pub env: Vec<String>,
    /// A process that says nothing for so long is ended.
    pub patience: Duration,
    /// Of a sink: `versions`, `ranges`, `rename`, `exclusive_create`.
    pub abilities: Vec<String>,
}

/// What the kit runs around a plugin that cannot do it by itself. Each may use the settings.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestCommands {
    /// Settings of the instance under test; `{scratch}` in a text is an empty folder.
    #[serde(default)]
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// Fills what is backed up, with the same things each time.
    #[serde(default)]
    pub seed: Option<Vec<String>>,
    /// Empties it.
    #[serde(default)]
    pub wipe: Option<Vec<String>>,
    /// Prints what is there: equal text, equal content. Lines `group<TAB>unit<TAB>words`, or any text.
    #[serde(default)]
    pub digest: Option<Vec<String>>,
    /// Adds a unit that no archive has, to the group `{group}`.
    #[serde(default)]
    pub stranger: Option<Vec<String>>,
    /// Checks that ask for what it does not do on purpose, each with the reason, which is printed.
    #[serde(default)]
    pub not_asked: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    manifest: u32,
    name: String,
    version: String,
    about: String,
    role: Role,
    command: Option<Commands>,
    run: Option<Vec<String>>,
    #[serde(default)]
    protocol: Vec<u32>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    patience: Option<Span>,
    #[serde(default)]
    abilities: Vec<String>,
    #[serde(default)]
    license: Option<String>,
    #[serde(default)]
    homepage: Option<String>,
    #[serde(default)]
    maintainer: Option<String>,
    #[serde(default)]
    artifact: Vec<Artifact>,
    #[serde(default)]
    setting: BTreeMap<String, SettingSpec>,
    #[serde(default)]
    test: Option<TestCommands>,
}

/// `[[artifact]]`: a file of a protocol plugin that `install` fetches with its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Where it goes, beneath the plugin's folder.
    pub path: PathBuf,
    /// Where it is; a relative one starts from where the manifest is.
    pub url: String,
    /// SHA-256 of it, hexadecimal.
    pub sha256: String,
    /// For which machine it is, `x86_64-linux`; without it for all.
    #[serde(default)]
    pub target: Option<String>,
    /// Whether it is a program.
    #[serde(default)]
    pub executable: bool,
}

/// Abilities of a sink that a manifest can name.
pub const ABILITIES: [&str; 4] = ["versions", "ranges", "rename", "exclusive_create"];

impl Manifest {
    /// Reads a manifest: `Settings` with the line and what to write.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error {
            kind: ErrorKind::Settings,
            ..Error::io("read the plugin's manifest", path, e)
        })?;
        Self::parse(&text, path)
    }

    /// The manifest that this text is, as if it lay at `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let file: File = toml::from_str(text).map_err(|e| {
            let (line, column) = line_and_column(text, e.span().map_or(0, |span| span.start));
            let place = format!("{}:{line}:{column}", path.display());
            settings(format!("{place}: {}", e.message().trim_end()))
                .hint("see sources/README.md for a whole manifest")
        })?;
        let wrong = |what: &str, hint: &str| {
            settings(format!("{}: {what}", path.display())).hint(hint.to_owned())
        };
        if file.manifest != FORMAT {
            return Err(wrong(
                &format!(
                    "`manifest = {}`; this version knows {FORMAT}",
                    file.manifest
                ),
                "use a newer bk",
            ));
        }
        let expected = name_of(path);
        if file.name != expected || !is_plain_name(&file.name) {
            return Err(wrong(
                &format!(
                    "the plugin calls itself `{}`, and its file `{expected}`",
                    file.name
                ),
                "give both one name of letters, digits, `-` and `_`",
            ));
        }
        let first = file.about.lines().next().unwrap_or_default();
        if first.is_empty() || first.len() > ABOUT_MAX {
            return Err(wrong(
                "`about` says in its first line what the plugin is for, in at most 128 characters",
                "about = \"LDAP directory as LDIF\"",
            ));
        }
        for (key, spec) in &file.setting {
            spec.sound(key)
                .map_err(|what| wrong(&what, "see sources/README.md"))?;
        }
        let about = first.to_owned();
        let origin = [
            ("licence", file.license.clone()),
            ("home page", file.homepage.clone()),
            ("maintainer", file.maintainer.clone()),
        ];
        let how = how(&file, &wrong)?;
        let leads_out = |artifact: &&Artifact| {
            let text = artifact.path.to_str().unwrap_or_default();
            MemberPath::new(text.as_bytes()).is_err() || text == FILE
        };
        if let Some(strange) = file.artifact.iter().find(leads_out) {
            let what = format!(
                "[[artifact]]: `{}` leads out, or is the manifest",
                strange.path.display()
            );
            return Err(wrong(&what, "path = \"plugin.py\""));
        }
        Ok(Self {
            name: file.name,
            version: file.version,
            about,
            role: file.role,
            how,
            artifacts: file.artifact,
            settings: file.setting,
            test: file.test,
            origin: origin
                .into_iter()
                .filter_map(|(word, text)| Some((word, text?)))
                .collect(),
            path: path.to_owned(),
        })
    }

    /// Its folder; of a command plugin, the plugins root.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// What belongs to it: the folder of a protocol plugin, the one file of a command plugin.
    pub fn whole(&self) -> &Path {
        match self.how {
            How::Commands(_) => &self.path,
            How::Protocol(_) => self.folder(),
        }
    }

    /// Variables of the environment that it sees, beside the usual ones.
    pub fn env(&self) -> Vec<String> {
        match &self.how {
            How::Commands(commands) => commands.env.keys().cloned().collect(),
            How::Protocol(protocol) => protocol.env.clone(),
        }
    }
}

/// The name that a manifest at this place must have.
pub fn name_of(path: &Path) -> String {
    let named = if path.file_name().is_some_and(|name| name == FILE) {
        path.parent().and_then(Path::file_name)
    } else {
        path.file_stem()
    };
    named
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn how(file: &File, wrong: &dyn Fn(&str, &str) -> Error) -> Result<How> {
    match (&file.command, &file.run) {
        (Some(commands), None) => {
            if file.role == Role::Sink {
                return Err(wrong(
                    "a sink of commands alone is not possible",
                    "write a protocol plugin: bk plugins new NAME --sink",
                ));
            }
            commands_are_sound(commands, &file.setting, wrong)?;
            Ok(How::Commands(commands.clone()))
        }
        (None, Some(run)) => {
            if run.first().is_none_or(String::is_empty) {
                return Err(wrong("`run` names no program", "run = [\"./plugin\"]"));
            }
            if file.protocol.is_empty() {
                return Err(wrong("`protocol` is missing", "protocol = [1]"));
            }
            if let Some(strange) = file
                .abilities
                .iter()
                .find(|a| !ABILITIES.contains(&a.as_str()))
            {
                return Err(wrong(
                    &format!("`{strange}` is no ability of a sink"),
                    &format!("known are {}", ABILITIES.join(", ")),
                ));
            }
            Ok(How::Protocol(Protocol {
                run: run.clone(),
                versions: file.protocol.clone(),
                env: file.env.clone(),
                patience: patience(file.patience),
                abilities: file.abilities.clone(),
            }))
        }
        _ => Err(wrong(
            "a plugin has either a table [command] or a key `run`",
            "see sources/README.md",
        )),
    }
}

/// The patience that was asked for, or the usual one.
pub fn patience(asked: Option<Span>) -> Duration {
    Span::or(asked, PATIENCE)
}

fn commands_are_sound(
    commands: &Commands,
    specs: &BTreeMap<String, SettingSpec>,
    wrong: &dyn Fn(&str, &str) -> Error,
) -> Result<()> {
    MemberPath::new(commands.entry.as_bytes())
        .map_err(|error| wrong(&format!("`entry`: {error}"), "entry = \"tree.ldif\""))?;
    let all = [
        ("backup", Some(&commands.backup)),
        ("restore", commands.restore.as_ref()),
        ("check", commands.check.as_ref()),
    ];
    for (key, argv) in all {
        let Some(argv) = argv else { continue };
        if argv.first().is_none_or(String::is_empty) {
            return Err(wrong(
                &format!("`{key}` names no program"),
                "backup = [\"slapcat\", \"-b\", \"{base}\"]",
            ));
        }
        for name in argv.iter().filter_map(|part| placeholder(part)) {
            let (name, by_descriptor) = match name.strip_suffix(":fd") {
                Some(name) => (name, true),
                None => (name, false),
            };
            match specs.get(name).map(|spec| spec.kind) {
                None => {
                    return Err(wrong(
                        &format!("`{key}` uses `{{{name}}}`, and there is no such setting"),
                        &format!("add [setting.{name}] with its type"),
                    ));
                }
                Some(SettingType::Secret) if !by_descriptor => {
                    return Err(wrong(
                        &format!(
                            "`{key}` would show the secret `{name}` to everybody who lists processes"
                        ),
                        &format!(
                            "hand it over in a variable, env = {{ PASSWORD = \"{{{name}}}\" }}, or as a file: \"{{{name}:fd}}\""
                        ),
                    ));
                }
                Some(SettingType::Secret) => {}
                Some(_) if by_descriptor => {
                    return Err(wrong(
                        &format!("`{{{name}:fd}}` of `{key}` is for secrets"),
                        &format!("write {{{name}}}"),
                    ));
                }
                Some(_) => {}
            }
        }
    }
    for (variable, value) in &commands.env {
        if let Some(name) = placeholder(value).filter(|name| !specs.contains_key(*name)) {
            return Err(wrong(
                &format!("`env.{variable}` uses `{{{name}}}`, and there is no such setting"),
                &format!("add [setting.{name}] with its type"),
            ));
        }
    }
    Ok(())
}

/// The setting that fills this whole argument.
pub fn placeholder(part: &str) -> Option<&str> {
    let name = part.strip_prefix('{')?.strip_suffix('}')?;
    let plain = name.strip_suffix(":fd").unwrap_or(name);
    is_plain_name(plain).then_some(name)
}
