//! A value that nobody prints: read from the environment, a file or a program when it is needed, shown as `***`.

use crate::error::{Error, ErrorKind, Result, settings};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, MapAccess, Visitor};
use std::fmt;
use std::path::PathBuf;

/// Where a secret comes from. `Debug` and `Serialize` never show it.
#[derive(Clone)]
pub struct Secret(Origin);

#[derive(Clone)]
enum Origin {
    Plain(String),
    Env(String),
    File(PathBuf, Option<String>),
    Command(Vec<String>),
}

impl Secret {
    /// A secret that is at hand already.
    pub fn plain(value: impl Into<String>) -> Self {
        Self(Origin::Plain(value.into()))
    }

    /// Whether it stands in the settings in the clear: worth a warning.
    pub fn is_plain(&self) -> bool {
        matches!(self.0, Origin::Plain(_))
    }

    /// The value. Reads the variable, the file, or runs the program, each time; a trailing line end is cut off.
    pub async fn reveal(&self) -> Result<String> {
        match &self.0 {
            Origin::Plain(value) => Ok(value.clone()),
            Origin::Env(name) => std::env::var(name).map_err(|_| {
                settings(format!("the environment variable `{name}` is not set"))
                    .hint(format!("export {name}=…"))
            }),
            Origin::File(path, pointer) => {
                let text = tokio::fs::read_to_string(path).await.map_err(|e| Error {
                    kind: ErrorKind::Settings,
                    ..Error::io("read the secret in", path, e)
                })?;
                match pointer {
                    Some(pointer) => inside(&text, pointer).ok_or_else(|| {
                        let path = path.display();
                        settings(format!("`{path}` has no text at `{pointer}`"))
                            .hint("`pointer` is a JSON pointer: /couchdb/password")
                    }),
                    None => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
                }
            }
            Origin::Command(argv) => Self::from_program(argv).await,
        }
    }

    async fn from_program(argv: &[String]) -> Result<String> {
        let [program, arguments @ ..] = argv else {
            return Err(settings("`command` of a secret is empty"));
        };
        let output = tokio::process::Command::new(program)
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .stderr(std::process::Stdio::inherit())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|e| settings(format!("could not run `{program}` for a secret: {e}")))?;
        if !output.status.success() {
            return Err(settings(format!(
                "`{program}`, which should print a secret, ended with {}",
                output.status
            )));
        }
        let text = String::from_utf8(output.stdout)
            .map_err(|_| settings(format!("`{program}` printed a secret that is not UTF-8")))?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// The same secret with a relative file path taken from `folder`.
    #[must_use]
    pub fn relative_to(self, folder: &std::path::Path) -> Self {
        match self.0 {
            Origin::File(path, pointer) => Self(Origin::File(folder.join(path), pointer)),
            other => Self(other),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecretVisitor)
    }
}

struct SecretVisitor;

impl<'de> Visitor<'de> for SecretVisitor {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, or one of { env = \"NAME\" }, { file = \"PATH\" }, { file = \"JSON\", pointer = \"/KEY\" }, { command = [\"PROGRAM\", …] }")
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Secret, E> {
        Ok(Secret::plain(value))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Secret, A::Error> {
        use serde::de::Error;
        let mut origin = None;
        let mut pointer = None;
        while let Some(key) = map.next_key::<String>()? {
            let next = match key.as_str() {
                "env" => Origin::Env(map.next_value()?),
                "file" => Origin::File(map.next_value()?, None),
                "command" => Origin::Command(map.next_value()?),
                "pointer" => {
                    pointer = Some(map.next_value()?);
                    continue;
                }
                other => {
                    let known = &["env", "file", "pointer", "command"];
                    return Err(A::Error::unknown_field(other, known));
                }
            };
            if origin.replace(next).is_some() {
                return Err(A::Error::custom(
                    "a secret has one origin: env, file or command",
                ));
            }
        }
        match (origin, pointer) {
            (None, _) => Err(A::Error::invalid_length(0, &self)),
            (Some(Origin::File(path, _)), pointer) => Ok(Secret(Origin::File(path, pointer))),
            (Some(_), Some(_)) => Err(A::Error::custom("`pointer` goes with `file`")),
            (Some(origin), None) => Ok(Secret(origin)),
        }
    }
}

/// A text inside a JSON document.
fn inside(text: &str, pointer: &str) -> Option<String> {
    let document: serde_json::Value = serde_json::from_str(text).ok()?;
    document.pointer(pointer)?.as_str().map(str::to_owned)
}

impl JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // `writeOnly` is how the rest of the engine knows which values to mask.
        json_schema!({
            "type": ["string", "object"],
            "properties": { "env": { "type": "string" }, "file": { "type": "string" }, "pointer": { "type": "string" }, "command": { "type": "array", "items": { "type": "string" } } },
            "writeOnly": true
        })
    }
}
