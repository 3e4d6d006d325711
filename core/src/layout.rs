//! In which folder of a sink an archive lies.

use crate::name::ArchiveName;
use jiff::civil::Date;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where new archives go. Those that lie elsewhere are listed all the same, so the layout of a sink may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// All in the sink's own folder.
    #[default]
    Flat,
    /// A folder for each day: `2026-08-22/`.
    Dates,
}

impl Layout {
    /// The folder of an archive that asks for this name; nothing for the sink's own.
    pub fn folder(self, name: &ArchiveName) -> Option<String> {
        match self {
            Self::Flat => None,
            Self::Dates => Some(name.day.clone()),
        }
    }

    /// A file of this archive, beneath the sink's folder.
    pub fn path(self, name: &ArchiveName, file: &str) -> String {
        match self.folder(name) {
            Some(folder) => format!("{folder}/{file}"),
            None => file.to_owned(),
        }
    }
}

/// Whether a folder of this name is one that a layout makes: archives in it are listed.
pub fn is_folder(name: &str) -> bool {
    name.len() == "2026-08-22".len() && Date::strptime("%Y-%m-%d", name).is_ok()
}

/// A path without its folders: what stands in the sum file beside it.
pub fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
