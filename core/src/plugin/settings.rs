//! Settings of a plugin that is no Rust struct: described in its manifest, checked with the same words as those of the built-in ones.

use crate::error::{Result, settings};
use crate::secret::Secret;
use crate::settings::{Fault, Faults, Settings, Span, empty_lists, missing_keys, unknown_keys};
use schemars::Schema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `[setting.NAME]` of a manifest.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingSpec {
    /// `string`, `int`, `bool`, `list` (of texts), `path`, `duration`, `secret`.
    #[serde(rename = "type")]
    pub kind: SettingType,
    /// Whether there must be one.
    #[serde(default)]
    pub required: bool,
    /// What it is.
    #[serde(default)]
    pub about: String,
    /// What is taken where nothing is said.
    #[serde(default)]
    pub default: Option<Value>,
    /// For people, and for the scaffold.
    #[serde(default)]
    pub example: Option<Value>,
}

/// Types of settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SettingType {
    /// A text.
    String,
    /// A whole number.
    Int,
    /// `true` or `false`.
    Bool,
    /// Texts.
    List,
    /// A file or folder, relative to the settings file.
    Path,
    /// `30s`, `2h`.
    Duration,
    /// A text, or where it is read from.
    Secret,
}

impl SettingSpec {
    /// Whether the description itself holds.
    pub fn sound(&self, key: &str) -> Result<(), String> {
        if let Some(default) = &self.default {
            if self.required {
                return Err(format!("[setting.{key}]: what is required has no default"));
            }
            Given::read(self.kind, default, Path::new("."))
                .map_err(|what| format!("[setting.{key}]: its default {what}"))?;
        }
        Ok(())
    }
}

/// A setting that was given, or its default.
#[derive(Clone, Debug)]
pub enum Given {
    /// A text, a number, a path, a duration as it was written.
    Text(String),
    /// Texts.
    List(Vec<String>),
    /// `true` or `false`, for protocol plugins; in arguments its word.
    Bool(bool),
    /// A number.
    Int(i64),
    /// Not read yet.
    Secret(Secret),
}

impl Given {
    fn read(kind: SettingType, value: &Value, folder: &Path) -> Result<Self, String> {
        let text = |what: &str| {
            value
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| format!("must be {what}, not `{value}`"))
        };
        match kind {
            SettingType::String => text("a text").map(Self::Text),
            SettingType::Int => value
                .as_i64()
                .map(Self::Int)
                .ok_or_else(|| format!("must be a whole number, not `{value}`")),
            SettingType::Bool => value
                .as_bool()
                .map(Self::Bool)
                .ok_or_else(|| format!("must be true or false, not `{value}`")),
            SettingType::List => value
                .as_array()
                .and_then(|list| list.iter().map(|v| v.as_str().map(str::to_owned)).collect())
                .map(Self::List)
                .ok_or_else(|| format!("must be a list of texts, not `{value}`")),
            SettingType::Path => {
                let path = folder.join(PathBuf::from(text("a path")?));
                // A process of a plugin works in another folder.
                let path = std::path::absolute(&path).map_err(|e| e.to_string())?;
                path.into_os_string()
                    .into_string()
                    .map(Self::Text)
                    .map_err(|_| "must be a path in UTF-8".into())
            }
            SettingType::Duration => {
                let text = text("a duration")?;
                text.parse::<Span>()?;
                Ok(Self::Text(text))
            }
            SettingType::Secret => serde_json::from_value::<Secret>(value.clone())
                .map(|secret| Self::Secret(secret.relative_to(folder)))
                .map_err(|e| e.to_string()),
        }
    }

    /// As the value of a message; a secret is read now.
    pub async fn json(&self) -> Result<Value> {
        Ok(match self {
            Self::Text(text) => json!(text),
            Self::List(list) => json!(list),
            Self::Bool(yes) => json!(yes),
            Self::Int(number) => json!(number),
            Self::Secret(secret) => json!(secret.reveal().await?),
        })
    }

    /// As arguments of a command. A secret is never one.
    pub fn arguments(&self) -> Result<Vec<String>> {
        match self {
            Self::Text(text) => Ok(vec![text.clone()]),
            Self::List(list) => Ok(list.clone()),
            Self::Bool(yes) => Ok(vec![yes.to_string()]),
            Self::Int(number) => Ok(vec![number.to_string()]),
            Self::Secret(_) => Err(settings("a secret cannot be an argument")),
        }
    }
}

/// The settings of an instance by their descriptions, or every mistake at once.
pub fn given(
    specs: &BTreeMap<String, SettingSpec>,
    said: &Settings,
) -> Result<BTreeMap<String, Given>> {
    let schema = schema(specs);
    let mut rest = said.table.clone();
    let mut faults = Vec::new();
    unknown_keys(&schema, &mut rest, &mut faults);
    missing_keys(&schema, &said.table, &mut faults);
    empty_lists(&mut rest, &mut faults);
    let mut given = BTreeMap::new();
    for (key, spec) in specs {
        let Some(value) = rest.get(key).or(spec.default.as_ref()) else {
            continue;
        };
        match Given::read(spec.kind, value, &said.folder) {
            Ok(value) => {
                given.insert(key.clone(), value);
            }
            Err(what) => faults.push(Fault {
                key: key.clone(),
                what: format!("`{key}` {what}"),
                hint: (!spec.about.is_empty()).then(|| format!("`{key}` is: {}", spec.about)),
            }),
        }
    }
    if faults.is_empty() {
        return Ok(given);
    }
    let faults = Faults(faults);
    Err(settings(format!("`{}`: {faults}", said.instance)).because(faults))
}

/// The descriptions as a schema, which is what editors and `bk plugins show` read.
pub fn schema(specs: &BTreeMap<String, SettingSpec>) -> Schema {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (key, spec) in specs {
        let mut property = match spec.kind {
            SettingType::String | SettingType::Path | SettingType::Duration => {
                json!({ "type": "string" })
            }
            SettingType::Int => json!({ "type": "integer" }),
            SettingType::Bool => json!({ "type": "boolean" }),
            SettingType::List => json!({ "type": "array", "items": { "type": "string" } }),
            SettingType::Secret => json!({ "type": ["string", "object"], "writeOnly": true }),
        };
        let example = spec.example.as_ref().map(|e| format!(" Example: {e}"));
        property["description"] = json!(format!("{}{}", spec.about, example.unwrap_or_default()));
        if let Some(default) = &spec.default {
            property["default"] = default.clone();
        }
        properties.insert(key.clone(), property);
        if spec.required {
            required.push(json!(key));
        }
    }
    schemars::json_schema!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false
    })
}
