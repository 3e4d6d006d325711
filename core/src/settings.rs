//! Settings of one table, checked against the struct that takes them: every mistake at once, each with its key.

use crate::error::{Error, Result, settings};
use crate::selector::nearest;
use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One instance's settings as the operator wrote them, the engine's own keys taken out.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The instance.
    pub instance: String,
    /// Folder that relative paths start from.
    pub folder: PathBuf,
    /// The table.
    pub table: Map<String, Value>,
}

/// One mistake in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Key, with dots; empty: the table itself.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to type.
    pub hint: Option<String>,
}

/// All mistakes of a table, as the source of one `Settings` error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.0.iter().map(|fault| fault.what.as_str()).collect();
        f.write_str(&words.join("; "))
    }
}

impl std::error::Error for Faults {}

impl Settings {
    /// The settings as the plugin's struct, or every mistake at once.
    pub fn parse<T: DeserializeOwned + JsonSchema>(&self) -> Result<T> {
        parse_table(&self.table)
            .map_err(|faults| settings(format!("`{}`: {faults}", self.instance)).because(faults))
    }

    /// A path as the operator meant it: relative to the settings file.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// A mistake that only the plugin can see, said of a key.
    pub fn fault(&self, key: &str, what: impl Into<String>, hint: Option<&str>) -> Error {
        let what = what.into();
        let fault = Fault {
            key: key.to_owned(),
            what: what.clone(),
            hint: hint.map(str::to_owned),
        };
        Error {
            hint: hint.map(str::to_owned),
            ..settings(format!("`{}`: {what}", self.instance)).because(Faults(vec![fault]))
        }
    }
}

/// A table as its struct, or every mistake in it.
pub fn parse_table<T: DeserializeOwned + JsonSchema>(
    table: &Map<String, Value>,
) -> std::result::Result<T, Faults> {
    let schema = schemars::schema_for!(T);
    let mut faults = Vec::new();
    let mut rest = table.clone();
    unknown_keys(&schema, &mut rest, &mut faults);
    missing_keys(&schema, table, &mut faults);
    empty_lists(&mut rest, &mut faults);
    loop {
        match serde_path_to_error::deserialize::<_, T>(Value::Object(rest.clone())) {
            Ok(parsed) if faults.is_empty() => return Ok(parsed),
            Ok(_) => return Err(Faults(faults)),
            Err(error) => {
                let key = error.path().to_string();
                let top = key.split(['.', '[']).next().unwrap_or("").to_owned();
                if rest.shift_remove(&top).is_none() {
                    // What is left are missing keys, which the schema has named already.
                    if faults.is_empty() {
                        faults.push(Fault {
                            key: String::new(),
                            what: error.into_inner().to_string(),
                            hint: None,
                        });
                    }
                    return Err(Faults(faults));
                }
                let what = error.into_inner().to_string();
                let hint = unknown_inside(&what).or_else(|| described(&schema, &top));
                faults.push(Fault {
                    what: format!("`{key}`: {what}"),
                    key,
                    hint,
                });
            }
        }
    }
}

/// The nearest name, where serde says "unknown field `x`, expected one of `a`, `b`" of a table inside.
fn unknown_inside(what: &str) -> Option<String> {
    if !what.starts_with("unknown field") && !what.starts_with("unknown variant") {
        return None;
    }
    let mut names = what.split('`').skip(1).step_by(2);
    let wrong = names.next()?;
    let known: Vec<_> = names.collect();
    unknown_key(wrong, known.into_iter()).hint
}

/// What the setting is, in the words of its doc comment.
fn described(schema: &Schema, key: &str) -> Option<String> {
    let words = schema
        .get("properties")?
        .get(key)?
        .get("description")?
        .as_str()?;
    Some(format!(
        "`{key}` is: {}",
        words.lines().next().unwrap_or_default()
    ))
}

fn properties(schema: &Schema) -> Vec<String> {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .map(|p| p.keys().cloned().collect())
        .unwrap_or_default()
}

pub(crate) fn unknown_keys(
    schema: &Schema,
    table: &mut Map<String, Value>,
    faults: &mut Vec<Fault>,
) {
    let known = properties(schema);
    let unknown: Vec<_> = table
        .keys()
        .filter(|key| !known.contains(key))
        .cloned()
        .collect();
    for key in unknown {
        table.shift_remove(&key);
        faults.push(unknown_key(&key, known.iter().map(String::as_str)));
    }
}

/// The mistake "unknown key", with the nearest name.
pub fn unknown_key<'a>(key: &str, known: impl Iterator<Item = &'a str> + Clone) -> Fault {
    let near = nearest(key, known.clone());
    let hint = match near.first() {
        Some(name) => format!("did you mean {name}?"),
        None => format!("known keys: {}", known.collect::<Vec<_>>().join(", ")),
    };
    Fault {
        key: key.to_owned(),
        what: format!("`{key}` is no setting here"),
        hint: Some(hint),
    }
}

pub(crate) fn missing_keys(schema: &Schema, table: &Map<String, Value>, faults: &mut Vec<Fault>) {
    let required = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    for key in required.filter(|key| !table.contains_key(*key)) {
        faults.push(Fault {
            key: String::new(),
            what: format!("`{key}` is missing"),
            hint: Some(format!("add `{key} = …`")),
        });
    }
}

/// An empty list where absence means "all" would silently mean "nothing".
pub(crate) fn empty_lists(table: &mut Map<String, Value>, faults: &mut Vec<Fault>) {
    let empty: Vec<_> = table
        .iter()
        .filter(|(_, value)| value.as_array().is_some_and(Vec::is_empty))
        .map(|(key, _)| key.clone())
        .collect();
    for key in empty {
        table.shift_remove(&key);
        faults.push(Fault {
            what: format!("`{key}` is an empty list"),
            hint: Some("leave the key out to mean all".into()),
            key,
        });
    }
}

/// A number of bytes: an integer, or a text such as `128 MiB` or `2 GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ByteSize(pub u64);

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        match Value::deserialize(deserializer)? {
            Value::Number(n) => n
                .as_u64()
                .map(Self)
                .ok_or_else(|| D::Error::custom("a number of bytes is a whole number from 0")),
            Value::String(text) => parse_bytes(&text).map(Self).ok_or_else(|| {
                D::Error::custom(format!(
                    "`{text}` is no number of bytes; write 128 MiB, 2 GB or 1048576"
                ))
            }),
            other => Err(D::Error::custom(format!(
                "a number of bytes is expected, not `{other}`"
            ))),
        }
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteSize".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": ["integer", "string"] })
    }
}

/// A length of time as people write it: `30s`, `36h`, `2d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Span(pub jiff::SignedDuration);

impl Span {
    /// The length that was asked for, or the usual one.
    pub fn or(asked: Option<Self>, usual: Duration) -> Duration {
        // None is negative.
        asked
            .and_then(|Self(length)| Duration::try_from(length).ok())
            .unwrap_or(usual)
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    /// A day is 24 hours.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let span: jiff::Span = text
            .parse()
            .map_err(|_| format!("`{text}` is no duration; write 30s, 10m, 36h or 2d"))?;
        let length = span
            .to_duration(jiff::SpanRelativeTo::days_are_24_hours())
            .map_err(|e| e.to_string())?;
        if length.is_negative() {
            return Err(format!("`{text}` is negative"));
        }
        Ok(Self(length))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape counts")]
    struct Sample {
        path: String,
        host: String,
        port: Option<u16>,
        size: Option<ByteSize>,
        list: Option<Vec<String>>,
    }

    #[test]
    fn every_mistake_of_a_table_is_named_at_once() {
        let table =
            serde_json::json!({ "pth": "/x", "port": "many", "size": "12 parsecs", "list": [] });
        let faults = parse_table::<Sample>(table.as_object().unwrap())
            .unwrap_err()
            .0;
        let keys: Vec<_> = faults
            .iter()
            .map(|f| f.what.split(':').next().unwrap().to_owned())
            .collect();
        assert_eq!(
            keys,
            [
                "`pth` is no setting here",
                "`path` is missing",
                "`host` is missing",
                "`list` is an empty list",
                "`port`",
                "`size`"
            ]
        );
        assert_eq!(faults[0].hint.as_deref(), Some("did you mean `path`?"));
    }

    #[test]
    fn byte_sizes_are_read_with_their_units() {
        assert_eq!(parse_bytes("128 MiB"), Some(128 << 20));
        assert_eq!(parse_bytes("2GB"), Some(2_000_000_000));
        assert_eq!(parse_bytes("99999999999 TiB"), None);
    }
}
