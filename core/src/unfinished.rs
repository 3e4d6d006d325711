//! A restore that did not finish: what every source's mark in its target remembers, and what a backup says while it stands.

use crate::error::{Error, ErrorKind};
use crate::source::Selected;
use serde::{Deserialize, Serialize};

/// More units than this are not named one by one in a hint.
const SELECTED_NAMED: usize = 8;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// The restore's id.
    pub id: String,
    /// The archive's id; of what `bk` did not make, its path.
    pub archive: String,
    /// Groups and units, as they are named in the target.
    pub selected: Vec<Selected>,
}

impl Unfinished {
    /// Whether this unit may be half restored.
    pub fn covers(&self, group: &str, unit: &str) -> bool {
        self.selected
            .iter()
            .any(|s| s.group == group && s.unit.as_deref().is_none_or(|name| name == unit))
    }

    /// Whether a restore of `selected` writes all that this one owed.
    pub fn is_covered_by(&self, selected: &[Selected]) -> bool {
        self.selected.iter().all(|what| {
            selected
                .iter()
                .any(|s| s.group == what.group && (s.unit.is_none() || s.unit == what.unit))
        })
    }

    /// What to type so that it finishes; a long selection is named by its instance, which holds it.
    fn command(&self, instance: &str) -> String {
        let only: Vec<_> = if self.selected.len() > SELECTED_NAMED {
            vec![format!("--only={instance}")]
        } else {
            let named = |s: &Selected| match &s.unit {
                Some(unit) => format!("--only={instance}/{}/{unit}", s.group),
                None => format!("--only={instance}/{}", s.group),
            };
            self.selected.iter().map(named).collect()
        };
        let is_id = self.archive.len() == 32 && self.archive.bytes().all(|b| b.is_ascii_hexdigit());
        let which = if is_id {
            format!("--version {}", self.archive)
        } else {
            format!("'{}'", self.archive)
        };
        format!("bk restore {which} {}", only.join(" "))
    }
}

/// The refusal that a backup gives for units that these restores may have left half written.
pub fn refusal(restores: &[Unfinished], instance: &str) -> Error {
    let archives: Vec<_> = restores.iter().map(|r| r.archive.as_str()).collect();
    let finish: Vec<_> = restores.iter().map(|r| r.command(instance)).collect();
    Error::new(
        ErrorKind::Conflict,
        format!(
            "a restore from archive {} did not finish here",
            archives.join(", ")
        ),
    )
    .hint(format!(
        "finish it with {}, or say bk restore --forget-unfinished {instance}",
        finish.join(" and ")
    ))
}
