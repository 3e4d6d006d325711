//! What a `plugins.toml` needs of its surroundings: variables and files that hold secrets, and whether it asks the Kubernetes API.

use bk_core::error::{Result, settings};
use std::collections::{BTreeMap, BTreeSet};
use toml::Value;

/// What was found in it.
#[derive(Debug, Default)]
pub struct SettingsFile {
    /// Variables that secrets are read from.
    pub variables: BTreeSet<String>,
    /// Files that secrets are read from: folder to names.
    pub files: BTreeMap<String, BTreeSet<String>>,
    /// Whether a source of Kubernetes objects is enabled.
    pub asks_api: bool,
    /// Whether Secrets are among what that source reads.
    pub reads_secrets: bool,
    /// Namespaces that it names.
    pub namespaces: Vec<String>,
}

impl SettingsFile {
    /// Reads the text. A secret that stands in it would stand in a `ConfigMap`.
    pub fn read(text: &str) -> Result<Self> {
        let root: toml::Table = text.parse().map_err(|e| {
            settings(format!("the settings cannot be read: {e}")).hint("bk config validate")
        })?;
        let mut file = Self::default();
        file.walk(&Value::Table(root.clone()));
        let plugins = root.get("plugins").and_then(Value::as_array);
        let is_enabled =
            |name: &str| plugins.is_some_and(|list| list.iter().any(|p| p.as_str() == Some(name)));
        let sources = root.get("source").and_then(Value::as_table);
        for (name, table) in sources.into_iter().flatten() {
            let plugin = table.get("plugin").and_then(Value::as_str).unwrap_or(name);
            if plugin != "k8s" || !is_enabled("k8s") {
                continue;
            }
            file.asks_api = true;
            file.reads_secrets |= table.get("secrets").and_then(Value::as_str) != Some("omit");
            let namespaces = table.get("namespaces").and_then(Value::as_array);
            let named = namespaces.into_iter().flatten().filter_map(Value::as_str);
            file.namespaces.extend(named.map(str::to_owned));
        }
        Ok(file)
    }

    fn walk(&mut self, value: &Value) {
        match value {
            Value::Table(table) => {
                if let (1, Some(Value::String(name))) = (table.len(), table.get("env")) {
                    self.variables.insert(name.clone());
                    return;
                }
                if let Some(Value::String(path)) = table.get("file")
                    && let Some((folder, name)) = path.rsplit_once('/')
                    && !folder.is_empty()
                    && table.keys().all(|key| key == "file" || key == "pointer")
                {
                    self.files
                        .entry(folder.to_owned())
                        .or_default()
                        .insert(name.to_owned());
                    return;
                }
                table.values().for_each(|value| self.walk(value));
            }
            Value::Array(list) => list.iter().for_each(|value| self.walk(value)),
            _ => {}
        }
    }
}
