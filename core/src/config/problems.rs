//! All mistakes of the settings at once, each with its place and what to type.

use super::tree::{Node, Origin};
use crate::error::{Error, ErrorKind, Result};
use crate::settings::{Fault, Faults};
use std::path::Path;

/// Mistakes, each with its place.
pub(super) struct Problems<'a> {
    pub(super) file: &'a Path,
    pub(super) list: Vec<String>,
}

impl Problems<'_> {
    pub(super) fn add(&mut self, origin: &Origin, what: &str, hint: Option<&str>) {
        let place = self.place(origin);
        let hint = hint
            .map(|hint| format!("\n    hint: {hint}"))
            .unwrap_or_default();
        self.list.push(format!("{place}: {what}{hint}"));
    }

    pub(super) fn faults(&mut self, node: &Node, prefix: &str, faults: &Faults) {
        for Fault { key, what, hint } in &faults.0 {
            self.add(
                node.origin_of(key),
                &format!("{prefix}: {what}"),
                hint.as_deref(),
            );
        }
    }

    fn place(&self, origin: &Origin) -> String {
        match origin {
            Origin::File(line, column) => format!("{}:{line}:{column}", self.file.display()),
            Origin::Environment(name) => format!("environment {name}"),
            Origin::Set => "--set".to_owned(),
        }
    }

    pub(super) fn finish(self) -> Result<()> {
        if self.list.is_empty() {
            return Ok(());
        }
        let count = self.list.len();
        let noun = if count == 1 { "mistake" } else { "mistakes" };
        Err(Error::new(
            ErrorKind::Settings,
            format!(
                "{count} {noun} in the settings\n  {}",
                self.list.join("\n  ")
            ),
        ))
    }
}
