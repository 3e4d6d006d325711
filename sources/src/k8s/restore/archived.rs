//! What the backup's own selection took: of what it left out nothing is known, so that nothing of it is missing in the archive.

use crate::k8s::discovery::Kind;
use crate::k8s::{Wanted, globs};
use bk_core::source::Facts;
use globset::GlobSet;
use serde_json::Value;
use std::collections::HashSet;

/// From the facts of an archive.
#[derive(Debug)]
pub(super) struct Archived {
    wanted: Wanted,
    with_secrets: bool,
    /// Its selector of labels.
    pub selector: Option<String>,
    failed: HashSet<(String, String)>,
    /// Groups of kinds that did not answer: nothing is known of their objects.
    unanswered: HashSet<String>,
}

impl Archived {
    pub fn of(facts: &Facts, failed: &[(String, String)]) -> Self {
        let selection = &facts.selection;
        let list = |key: &str| {
            let texts = selection[key].as_array()?.iter().filter_map(Value::as_str);
            let texts: Vec<String> = texts.map(str::to_owned).collect();
            // What cannot be read any more takes nothing.
            Some(globs(&texts).unwrap_or_else(|_| GlobSet::empty()))
        };
        Self {
            wanted: Wanted {
                namespaces: None,
                kinds: list("kinds"),
                groups: None,
                exclude: list("exclude").unwrap_or_else(GlobSet::empty),
            },
            with_secrets: selection["secrets"] == "include",
            selector: selection["selector"].as_str().map(str::to_owned),
            failed: failed.iter().cloned().collect(),
            unanswered: facts.more["unanswered"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|name| Some(name.as_str()?.split_once('.')?.1.to_owned()))
                .collect(),
        }
    }

    /// Whether objects of a kind were taken.
    pub fn takes_kind(&self, kind: &Kind) -> bool {
        self.wanted.takes_kind(kind)
            && (self.with_secrets || !kind.is_secret())
            && !self.unanswered.contains(&kind.group)
    }

    /// Whether an object would be in the archive, were it there.
    pub fn takes(&self, group: &str, kind: &Kind, unit: &str) -> bool {
        let failed = |unit: String| self.failed.contains(&(group.to_owned(), unit));
        !self.wanted.excludes(group, unit)
            // What makes the group failed where a mark stood in it: nothing of it was read.
            && !failed(String::new())
            && !failed(unit.to_owned())
            && !failed(format!("{}/*", kind.full_name()))
    }
}
