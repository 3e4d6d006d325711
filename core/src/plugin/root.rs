//! The plugins root: which plugins lie there, whether each is what was accepted, and whether anybody else could have changed it. Never searched
//! in PATH.

use super::command::CommandSource;
use super::manifest::{FILE, How, Manifest, Role, name_of};
use super::protocol_sink::ProtocolSink;
use super::protocol_source::{ProtocolSource, Remote, Trial};
use super::settings::{given, schema};
use super::{Plugin, Registry};
use crate::archive::writer::hex;
use crate::error::{Error, ErrorKind, Result, not_found, settings};
use crate::selector::did_you_mean;
use crate::settings::Settings;
use crate::sink::Sink;
use crate::source::Source;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder with plugins: `NAME.toml`, `NAME/bk-plugin.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(pub PathBuf);

impl Root {
    /// `BK_PLUGINS_ROOT`, else the folder for a user's data, else `/var/lib/bk/plugins`.
    pub fn of(environment: &BTreeMap<String, String>) -> Self {
        let set = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        let root = set("BK_PLUGINS_ROOT").map(PathBuf::from);
        let data = || set("XDG_DATA_HOME").map(|folder| Path::new(folder).join("bk/plugins"));
        let home = || set("HOME").map(|home| Path::new(home).join(".local/share/bk/plugins"));
        Self(
            root.or_else(data)
                .or_else(home)
                .unwrap_or_else(|| "/var/lib/bk/plugins".into()),
        )
    }

    /// Manifests that lie there, by name; sound or not. A root that is not there has none.
    pub fn manifests(&self) -> Result<BTreeMap<String, PathBuf>> {
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(BTreeMap::new());
            }
            Err(error) => return Err(Error::io("list the plugins in", &self.0, error)),
        };
        let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
        for entry in entries {
            let path = entry
                .map_err(|e| Error::io("list the plugins in", &self.0, e))?
                .path();
            let manifest = if path.is_dir() { path.join(FILE) } else { path };
            let is_one = manifest.extension().is_some_and(|e| e == "toml") && manifest.is_file();
            let name = name_of(&manifest);
            if !is_one || name.starts_with('.') {
                continue;
            }
            if let Some(other) = found.insert(name.clone(), manifest.clone()) {
                return Err(twice(&name, &other, &manifest));
            }
        }
        Ok(found)
    }

    /// The manifest of this name, where there is one: nothing else in the root is looked at.
    pub fn find(&self, name: &str) -> Result<Option<PathBuf>> {
        let places = [
            self.0.join(format!("{name}.toml")),
            self.0.join(name).join(FILE),
        ];
        let mut there = places.into_iter().filter(|path| path.is_file());
        let found = there.next();
        if let (Some(one), Some(other)) = (&found, there.next()) {
            return Err(twice(name, one, &other));
        }
        Ok(found)
    }

    /// Reads the manifest of this name.
    pub fn manifest(&self, name: &str) -> Result<Manifest> {
        let Some(path) = self.find(name)? else {
            let manifests = self.manifests()?;
            let names = manifests.keys().map(String::as_str);
            return Err(not_found(format!(
                "there is no plugin `{name}` in `{}`",
                self.0.display()
            ))
            .hint(did_you_mean(name, names, || "bk plugins list".into())));
        };
        Manifest::read(&path)
    }

    /// The plugin, to be used as long as nobody else can have changed it and it is what was accepted: asked before each process.
    pub fn load(&self, name: &str, accepted: Option<&str>) -> Result<Loaded> {
        let manifest = Arc::new(self.manifest(name)?);
        let accepted = accepted.map(str::to_owned).ok_or_else(|| {
            settings(format!(
                "the plugin `{name}` was never accepted: plugins.toml has no [plugin.{name}] with its sha256"
            ))
            .hint(format!("bk plugins enable {name}"))
        })?;
        let root = self.clone();
        let whole = manifest.whole().to_owned();
        let proof = {
            let name = name.to_owned();
            move || is_as_accepted(&root, &whole, &name, &accepted)
        };
        // Not asked here: one plugin that was changed must not keep the others from being backed up.
        Ok(Loaded::new(manifest, Arc::new(proof)))
    }
}

fn twice(name: &str, one: &Path, other: &Path) -> Error {
    settings(format!(
        "the plugin `{name}` is there twice: `{}` and `{}`",
        one.display(),
        other.display()
    ))
    .hint("remove one of them")
}

/// A plugin from outside, of either role.
pub enum Loaded {
    /// A source.
    Source(Plugin<dyn Source>),
    /// A sink.
    Sink(Plugin<dyn Sink>),
}

/// Whether a plugin is still what was accepted.
pub type Proof = Arc<dyn Fn() -> Result<()> + Send + Sync>;

impl Loaded {
    /// The plugin of a manifest. `proof` runs before each process.
    pub fn new(manifest: Arc<Manifest>, proof: Proof) -> Self {
        match manifest.role {
            Role::Source => Self::Source(plugin(&manifest, {
                let manifest = manifest.clone();
                move |settings| source(&manifest, &proof, &settings)
            })),
            Role::Sink => Self::Sink(plugin(&manifest, {
                let manifest = manifest.clone();
                move |settings| {
                    let sink = ProtocolSink(remote(&manifest, &proof, &settings)?);
                    Ok(Arc::new(sink) as Arc<dyn Sink>)
                }
            })),
        }
    }

    /// Into the table of contents.
    pub fn join(self, registry: &mut Registry) {
        match self {
            Self::Source(plugin) => registry.sources.push(plugin),
            Self::Sink(plugin) => registry.sinks.push(plugin),
        }
    }
}

fn plugin<T: ?Sized + 'static>(
    manifest: &Arc<Manifest>,
    build: impl Fn(Settings) -> Result<Arc<T>> + Send + Sync + 'static,
) -> Plugin<T> {
    let specs = manifest.settings.clone();
    Plugin {
        name: manifest.name.clone().into(),
        about: manifest.about.clone().into(),
        schema: Arc::new(move || schema(&specs)),
        build: Arc::new(build),
    }
}

fn source(manifest: &Arc<Manifest>, proof: &Proof, settings: &Settings) -> Result<Arc<dyn Source>> {
    Ok(match &manifest.how {
        How::Commands(commands) => {
            let given = given(&manifest.settings, settings)?;
            let source = CommandSource::new(manifest, commands, &given)?;
            Arc::new(source.proven(proof.clone()))
        }
        How::Protocol(_) => Arc::new(ProtocolSource(remote(manifest, proof, settings)?)),
    })
}

/// A protocol plugin with the settings of an instance.
pub fn remote(manifest: &Arc<Manifest>, proof: &Proof, settings: &Settings) -> Result<Remote> {
    let How::Protocol(spec) = &manifest.how else {
        return Err(crate::error::bug("a command plugin has no process"));
    };
    Ok(Remote {
        manifest: manifest.clone(),
        spec: spec.clone(),
        settings: given(&manifest.settings, settings)?,
        proof: proof.clone(),
        trial: Trial::default(),
    })
}

/// Whether nobody else can have changed it, and it has the SHA-256 that was accepted.
pub fn is_as_accepted(root: &Root, whole: &Path, name: &str, accepted: &str) -> Result<()> {
    only_ours(&root.0, whole)?;
    let now = sha256(whole)?;
    if now == accepted {
        return Ok(());
    }
    Err(settings(format!(
        "the plugin `{name}` in `{}` is not what was accepted: its sha256 is {now}, plugins.toml says {accepted}",
        whole.display()
    ))
    .hint(format!(
        "was it you who changed it? bk plugins enable {name} accepts it as it is"
    )))
}

/// Nobody but its owner, who is this user or root, can change the plugin, its files, or the root.
pub fn only_ours(root: &Path, whole: &Path) -> Result<()> {
    let me = rustix::process::geteuid().as_raw();
    let mut all = vec![root.to_owned()];
    all.extend(files(whole)?);
    all.push(whole.to_owned());
    for path in all {
        // The root, and the plugin's folder in it, may be links: what they lead to counts.
        let there = std::fs::metadata(&path)
            .map_err(|e| Error::io("look at the plugin's file", &path, e))?;
        let mode = there.permissions().mode();
        let word = if there.is_dir() { "folder" } else { "file" };
        if mode & 0o022 != 0 {
            return Err(settings(format!(
                "the {word} `{}` can be written by others (mode {:04o}): a plugin runs with your rights",
                path.display(),
                mode & 0o7777
            ))
            .hint(format!("chmod go-w {}", path.display())));
        }
        if there.uid() != me && there.uid() != 0 {
            return Err(settings(format!(
                "the {word} `{}` belongs to user {}, and this is user {me}",
                path.display(),
                there.uid()
            ))
            .hint(format!("chown -R {me} {}", path.display())));
        }
    }
    Ok(())
}

/// Everything inside, sorted; of one file, itself.
fn files(whole: &Path) -> Result<Vec<PathBuf>> {
    if !whole.is_dir() {
        return Ok(vec![whole.to_owned()]);
    }
    let mut found = Vec::new();
    let mut waiting = vec![whole.to_owned()];
    while let Some(folder) = waiting.pop() {
        let entries = std::fs::read_dir(&folder)
            .map_err(|e| Error::io("list the plugin's folder", &folder, e))?;
        for entry in entries {
            let path = entry
                .map_err(|e| Error::io("list the plugin's folder", &folder, e))?
                .path();
            if path.is_symlink() {
                return Err(settings(format!(
                    "`{}` is a link: what it leads to could be changed unseen",
                    path.display()
                ))
                .hint("a plugin is made of files and folders"));
            }
            if path.is_dir() {
                waiting.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// SHA-256 of a plugin: of one file its own, of a folder over paths, kinds, execute bits and contents.
pub fn sha256(whole: &Path) -> Result<String> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|e| Error::io("read the plugin's file", path, e));
    if !whole.is_dir() {
        return Ok(hex(&Sha256::digest(read(whole)?)));
    }
    let mut all = Sha256::new();
    for path in files(whole)? {
        let there = std::fs::metadata(&path)
            .map_err(|e| Error::io("look at the plugin's file", &path, e))?;
        let name = path.strip_prefix(whole).unwrap_or(&path);
        let (kind, content) = if there.is_dir() {
            ("folder", Vec::new())
        } else if there.is_file() {
            let runs = there.permissions().mode() & 0o111 != 0;
            (if runs { "program" } else { "file" }, read(&path)?)
        } else {
            return Err(Error::new(
                ErrorKind::Settings,
                format!("`{}` is no file and no folder", path.display()),
            ));
        };
        let line = format!(
            "{kind}\0{}\0{}\0",
            name.to_string_lossy(),
            hex(&Sha256::digest(content))
        );
        all.update(line.as_bytes());
    }
    Ok(hex(&all.finalize()))
}
