//! `[plugin.NAME]`: plugins that lie in the plugins root, with what was accepted of them. Only enabled ones are read.

use super::problems::Problems;
use super::tree::{Node, Origin};
use crate::plugin::Registry;
use crate::plugin::root::Root;
use crate::settings::parse_table;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `[plugin.NAME]`, written by `bk plugins install` and `enable`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    /// SHA-256 of the plugin as it was accepted: another one is refused.
    pub sha256: String,
    /// Its version then.
    #[serde(default)]
    pub version: Option<String>,
    /// Where it came from: a path, a URL, an index and a name.
    #[serde(default)]
    pub from: Option<String>,
}

/// The tables of all, sound or not said.
pub(super) fn accepted(root: &Node, problems: &mut Problems<'_>) -> BTreeMap<String, Accepted> {
    let mut all = BTreeMap::new();
    let said = root.get("plugin");
    if let Some(node) = said.filter(|node| node.table().is_none()) {
        let hint = "did you mean `plugins`? What was accepted of one from outside is [plugin.NAME]";
        problems.add(&node.origin, "`plugin` is no table", Some(hint));
        return all;
    }
    for (name, node) in super::instances(root, "plugin", problems) {
        match parse_table(&node.object()) {
            Ok(accepted) => {
                all.insert(name, accepted);
            }
            Err(faults) => problems.faults(node, &format!("[plugin.{name}]"), &faults),
        }
    }
    all
}

/// The table of contents, with the enabled plugins from outside.
pub(super) fn registry(
    root: &Node,
    plugins_root: &Root,
    built_in: &Registry,
    problems: &mut Problems<'_>,
) -> Registry {
    let accepted = accepted(root, problems);
    let mut registry = built_in.clone();
    let Some(node) = root.get("plugins") else {
        return registry;
    };
    let list = node.json();
    let names = list.as_array().into_iter().flatten();
    for name in names.filter_map(|name| name.as_str()) {
        let is_outside = match plugins_root.find(name) {
            Ok(found) => found.is_some(),
            Err(error) => {
                problems.add(&node.origin, &error.what, error.hint.as_deref());
                continue;
            }
        };
        let is_built_in = built_in.names().any(|known| known == name);
        if is_outside && is_built_in {
            problems.add(
                &node.origin,
                &format!(
                    "there are two plugins `{name}`: one of this program's own, one in `{}`",
                    plugins_root.0.display()
                ),
                Some("give the one in the plugins root another name"),
            );
        }
        if is_built_in || !is_outside {
            if !is_built_in && accepted.contains_key(name) {
                let what = format!(
                    "the plugin `{name}` is enabled and accepted, and not in `{}`",
                    plugins_root.0.display()
                );
                let hint = format!("bk plugins install {name}, or bk plugins disable {name}");
                problems.add(&node.origin, &what, Some(&hint));
            }
            continue;
        }
        let sum = accepted.get(name).map(|accepted| accepted.sha256.as_str());
        match plugins_root.load(name, sum) {
            Ok(loaded) => loaded.join(&mut registry),
            Err(error) => {
                let origin: &Origin = &node.origin;
                problems.add(origin, &error.what, error.hint.as_deref());
            }
        }
    }
    registry
}
