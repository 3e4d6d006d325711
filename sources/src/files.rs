//! Any folder: files with their holes, folders, hard and symbolic links, with modes, owners, times to the nanosecond, extended attributes, ACLs
//! and capabilities.
//!
//! A top-level folder is a group, a second-level folder a unit; loose files are the unit `.`. Data holds files up to 16 MiB, Large the
//! others, Finish the folders themselves and the symbolic links, innermost first: so a restore (and a plain `tar x`) gives folders their
//! times last, and writes nothing through a link.

pub mod mark;
mod restore;
mod snapshot;
pub mod walk;

use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::plugin::Plugin;
use bk_core::settings::Settings;
use bk_core::source::{Health, Input, RestoreOptions, Snapshot, SnapshotOptions, Source, Tally};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Layout of the members; the restore of every older one stays.
pub const LAYOUT: u32 = 2;

/// Settings of the source `files`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesSettings {
    /// The folder. Relative to the settings file.
    pub path: PathBuf,
    /// Globs of files to take; without them all. A glob without `/` fits at any depth.
    #[serde(default)]
    pub include: Option<Vec<String>>,
    /// Globs of files and folders to leave out. Wins over `include`.
    #[serde(default)]
    pub exclude: Option<Vec<String>>,
}

/// The plugin.
pub fn plugin() -> Plugin<dyn Source> {
    Plugin {
        name: "files".into(),
        about: "any folder: files, links, modes, owners, times, attributes, ACLs, holes".into(),
        schema: Arc::new(|| schemars::schema_for!(FilesSettings)),
        build: Arc::new(|settings: Settings| {
            Ok(Arc::new(Files::new(&settings, settings.parse()?)?))
        }),
    }
}

/// The source.
#[derive(Clone, Debug)]
pub struct Files {
    pub(crate) path: PathBuf,
    pub(crate) filter: Filter,
}

/// What of the folder is taken.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    include: Option<GlobSet>,
    exclude: GlobSet,
    words: FilterWords,
}

/// The filter as it was written: it goes into the facts, so that a restore never drops what the backup left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterWords {
    /// `include`.
    #[serde(default)]
    pub include: Option<Vec<String>>,
    /// `exclude`.
    #[serde(default)]
    pub exclude: Vec<String>,
}

impl Filter {
    /// Compiles the globs.
    pub fn new(words: FilterWords) -> std::result::Result<Self, globset::Error> {
        let compile = |globs: &[String]| {
            let mut set = GlobSetBuilder::new();
            for glob in globs {
                let anywhere = if glob.contains('/') {
                    glob.trim_start_matches('/').to_owned()
                } else {
                    format!("**/{glob}")
                };
                set.add(
                    GlobBuilder::new(anywhere.trim_end_matches('/'))
                        .literal_separator(true)
                        .build()?,
                );
            }
            set.build()
        };
        Ok(Self {
            include: words.include.as_deref().map(compile).transpose()?,
            exclude: compile(&words.exclude)?,
            words,
        })
    }

    /// As it was written.
    pub fn words(&self) -> &FilterWords {
        &self.words
    }

    /// Whether the path, or a folder above it, is left out.
    pub fn leaves_out(&self, path: &Path) -> bool {
        !self.exclude.is_empty()
            && path
                .ancestors()
                .any(|part| !part.as_os_str().is_empty() && self.exclude.is_match(part))
    }

    /// Whether a file is taken, given that no folder above it is left out.
    pub fn takes_file(&self, path: &Path) -> bool {
        let included = self
            .include
            .as_ref()
            .is_none_or(|set| path.ancestors().any(|part| set.is_match(part)));
        included && !self.exclude.is_match(path)
    }

    /// Whether a folder is walked.
    pub fn enters(&self, path: &Path) -> bool {
        !self.exclude.is_match(path)
    }
}

impl Files {
    /// From settings: the globs are compiled, nothing is read.
    pub fn new(settings: &Settings, parsed: FilesSettings) -> Result<Self> {
        let words = FilterWords {
            include: parsed.include,
            exclude: parsed.exclude.unwrap_or_default(),
        };
        for (key, list) in [
            ("include", words.include.as_deref().unwrap_or_default()),
            ("exclude", &words.exclude),
        ] {
            if let Some(error) = list
                .iter()
                .find_map(|glob| GlobBuilder::new(glob).build().err())
            {
                return Err(settings.fault(
                    key,
                    format!("`{key}`: {error}"),
                    Some("a glob is like *.log, cache/** or tmp"),
                ));
            }
        }
        let filter =
            Filter::new(words).map_err(|e| settings.fault("exclude", e.to_string(), None))?;
        Ok(Self {
            path: settings.path(&parsed.path),
            filter,
        })
    }
}

#[async_trait]
impl Source for Files {
    async fn check(&self, _cx: &Context) -> Result<Health> {
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || health(&path))
            .await
            .map_err(|e| bk_core::error::bug(e.to_string()))?
    }

    async fn snapshot(&self, cx: &Context, _how: &SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(snapshot::FilesSnapshot::new(
            self,
            cx.clock.now(),
        )?))
    }

    async fn restore(&self, cx: &Context, input: Input, how: &RestoreOptions) -> Result<Tally> {
        restore::restore(self, cx, input, how).await
    }
}

/// A folder that is not there yet is fine for a restore; a backup finds out at its snapshot.
fn health(path: &Path) -> Result<Health> {
    let describe = std::path::absolute(path)
        .unwrap_or_else(|_| path.to_path_buf())
        .display()
        .to_string();
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Health {
                identity: String::new(),
                describe,
                warnings: vec![format!("`{}` is not there", path.display())],
            });
        }
        Err(e) => return Err(Error::io("look at", path, e)),
    };
    if !meta.is_dir() {
        return Err(Error::new(
            ErrorKind::Settings,
            format!("`{}` is no folder", path.display()),
        )
        .hint("set `path` to a folder"));
    }
    let canonical = path
        .canonicalize()
        .map_err(|e| Error::io("look at", path, e))?;
    // A volume keeps its root's inode and birth over restarts and moves between pods; a host's name does not.
    let born = meta
        .created()
        .ok()
        .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |t| t.as_nanos());
    let mut warnings = Vec::new();
    if let Some(mark) = mark::read(path)? {
        warnings.push(mark.refusal("").what);
    }
    Ok(Health {
        identity: format!("{} inode {} born {born}", canonical.display(), meta.ino()),
        describe,
        warnings,
    })
}
