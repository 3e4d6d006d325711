//! JSON as a CouchDB writes it: what was written is normalised once, and served as it is from then on.

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// Members of an object, in their order.
pub struct Members(pub Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members, M::Error> {
                let mut members: Vec<(String, Box<RawValue>)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    // The last of several wins.
                    members.retain(|(there, _)| *there != name);
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// The members of an object.
pub fn members(json: &str) -> Result<Vec<(String, Box<RawValue>)>, String> {
    serde_json::from_str::<Members>(json)
        .map(|members| members.0)
        .map_err(|e| e.to_string())
}

/// A value as it is stored: numbers normalised, text without needless escapes.
pub fn normalised(json: &str) -> Result<String, String> {
    let json = json.trim();
    Ok(match json.as_bytes().first() {
        Some(b'{') => {
            let members = members(json)?
                .iter()
                .map(|(name, value)| Ok(format!("{}:{}", quoted(name), normalised(value.get())?)))
                .collect::<Result<Vec<_>, String>>()?;
            format!("{{{}}}", members.join(","))
        }
        Some(b'[') => {
            let items: Vec<Box<RawValue>> =
                serde_json::from_str(json).map_err(|e| e.to_string())?;
            let items = items
                .iter()
                .map(|item| normalised(item.get()))
                .collect::<Result<Vec<_>, String>>()?;
            format!("[{}]", items.join(","))
        }
        Some(b'"') => quoted(&serde_json::from_str::<String>(json).map_err(|e| e.to_string())?),
        Some(b'-' | b'0'..=b'9') => number(json)?,
        _ => json.to_owned(),
    })
}

fn number(text: &str) -> Result<String, String> {
    if !text.contains(['.', 'e', 'E']) {
        // Integers are kept, however long.
        return Ok(if text == "-0" {
            "0".into()
        } else {
            text.into()
        });
    }
    let number: f64 = text.parse().map_err(|_| "no number".to_owned())?;
    if !number.is_finite() {
        return Err("a number beyond a double".into());
    }
    let number = if number == 0.0 { 0.0 } else { number };
    Ok(serde_json::to_string(&number).unwrap())
}

/// A text as JSON.
pub fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}
