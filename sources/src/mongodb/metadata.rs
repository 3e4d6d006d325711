//! What `NAME.metadata.json` says of a collection: options, indexes, kind; canonical Extended JSON, version 2, as `mongodump` writes it.
//!
//! JSON cannot carry every document (equal keys, keys such as `$oid`): where it would not come back equal, `NAME.metadata.raw` beside it holds
//! the same as BSON and counts.

use crate::mongodb::bson::{self, Element, Writing, kind};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bk_core::error::{Error, Result};
use mongodb::bson::{Bson, Decimal128};
use std::fmt::Write;

/// What a collection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// With documents.
    #[default]
    Collection,
    /// A query over another one.
    View,
    /// Measurements in buckets.
    TimeSeries,
}

impl Kind {
    /// The server's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Collection => "collection",
            Self::View => "view",
            Self::TimeSeries => "timeseries",
        }
    }

    /// By the server's word; what is not known holds documents.
    pub fn of_word(word: &str) -> Self {
        match word {
            "view" => Self::View,
            "timeseries" => Self::TimeSeries,
            _ => Self::Collection,
        }
    }
}

/// A collection's definition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Options as `listCollections` gives them.
    pub options: Vec<u8>,
    /// Indexes as `listIndexes` gives them.
    pub indexes: Vec<Vec<u8>>,
    /// Its name, where it is said.
    pub name: Option<String>,
    /// What it is.
    pub kind: Kind,
}

impl Metadata {
    /// The file's text. `uuid` is written where it is given.
    pub fn json(&self, uuid: Option<&[u8; 16]>) -> String {
        let mut out = String::from("{");
        if bson::elements(&self.options).next().is_some() {
            out.push_str("\"options\":");
            write_document(&mut out, &self.options);
            out.push(',');
        }
        out.push_str("\"indexes\":[");
        for (n, index) in self.indexes.iter().enumerate() {
            if n > 0 {
                out.push(',');
            }
            write_document(&mut out, index);
        }
        out.push(']');
        if let Some(uuid) = uuid {
            out.push_str(",\"uuid\":\"");
            push_hex(&mut out, uuid);
            out.push('"');
        }
        if let Some(name) = &self.name {
            out.push_str(",\"collectionName\":");
            write_text(&mut out, name.as_bytes());
        }
        out.push_str(",\"type\":\"");
        out.push_str(self.kind.word());
        out.push_str("\"}");
        out
    }

    /// The same as BSON, where JSON would not come back equal.
    pub fn raw_where_json_fails(&self) -> Option<Vec<u8>> {
        let again = Self::parse(self.json(None).as_bytes());
        if again.is_ok_and(|again| again == *self) {
            return None;
        }
        let indexes = self.indexes.iter().map(Vec::as_slice);
        Some(
            Writing::new()
                .document("options", &self.options)
                .documents("indexes", indexes)
                .bytes(),
        )
    }

    /// Takes what the raw file says.
    pub fn take_raw(&mut self, raw: &[u8]) -> Result<()> {
        if !bson::is_shallow(raw) {
            return Err(Error::corrupt("it nests deeper than documents may"));
        }
        let part = |name: &str| {
            bson::inner(raw, name).ok_or_else(|| Error::corrupt(format!("it has no `{name}`")))
        };
        self.options = part("options")?.to_vec();
        self.indexes = bson::documents_of(part("indexes")?)
            .map(<[u8]>::to_vec)
            .collect();
        Ok(())
    }

    /// Reads the file, of any version of the tools. An empty one says nothing.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let empty = bson::EMPTY.to_vec();
        if text.is_empty() {
            return Ok(Self {
                options: empty,
                ..Self::default()
            });
        }
        let value: serde_json::Value = serde_json::from_slice(text)
            .map_err(|e| Error::corrupt(format!("it is no JSON: {e}")))?;
        let to_bson = |value: &serde_json::Value, what: &str| -> Result<Vec<u8>> {
            let Ok(Bson::Document(document)) = Bson::try_from(value.clone()) else {
                return Err(Error::corrupt(format!("its {what} are no Extended JSON")));
            };
            document
                .to_vec()
                .map_err(|e| Error::corrupt(format!("its {what} are no BSON: {e}")))
        };
        let options = match value.get("options") {
            Some(options) if !options.is_null() => to_bson(options, "options")?,
            _ => empty,
        };
        let indexes = match value.get("indexes") {
            Some(serde_json::Value::Array(indexes)) => indexes
                .iter()
                .map(|index| to_bson(index, "indexes"))
                .collect::<Result<Vec<_>>>()?,
            _ => Vec::new(),
        };
        let word = |name: &str| value.get(name).and_then(serde_json::Value::as_str);
        // Older tools write no type; a view has what it looks at among its options.
        let kind = match word("type") {
            Some(word) => Kind::of_word(word),
            None if bson::find(&options, b"viewOn").is_some() => Kind::View,
            None if bson::find(&options, b"timeseries").is_some() => Kind::TimeSeries,
            None => Kind::Collection,
        };
        Ok(Self {
            options,
            indexes,
            name: word("collectionName").map(str::to_owned),
            kind,
        })
    }
}

fn write_document(out: &mut String, document: &[u8]) {
    out.push('{');
    for (n, element) in bson::elements(document).map_while(Result::ok).enumerate() {
        if n > 0 {
            out.push(',');
        }
        write_text(out, element.name);
        out.push(':');
        write_value(out, &element);
    }
    out.push('}');
}

fn write_array(out: &mut String, array: &[u8]) {
    out.push('[');
    for (n, element) in bson::elements(array).map_while(Result::ok).enumerate() {
        if n > 0 {
            out.push(',');
        }
        write_value(out, &element);
    }
    out.push(']');
}

fn write_value(out: &mut String, element: &Element<'_>) {
    let value = element.value;
    let long = || value.try_into().map_or(0, i64::from_le_bytes);
    // Neither writing to a String nor the bytes that the walk has cut can fail; what is shorter than its type wants is left out.
    let _ = match element.kind {
        kind::DOUBLE => write!(
            out,
            "{{\"$numberDouble\":\"{}\"}}",
            double(f64::from_bits(long() as u64))
        ),
        kind::STRING => {
            write_text(out, string_bytes(value));
            Ok(())
        }
        kind::DOCUMENT => {
            write_document(out, value);
            Ok(())
        }
        kind::ARRAY => {
            write_array(out, value);
            Ok(())
        }
        kind::BINARY => {
            let (subtype, bytes) = binary(value);
            let base64 = BASE64_STANDARD.encode(bytes);
            write!(
                out,
                "{{\"$binary\":{{\"base64\":\"{base64}\",\"subType\":\"{subtype:02x}\"}}}}"
            )
        }
        0x06 => write!(out, "{{\"$undefined\":true}}"),
        0x07 => write_wrapped(out, "$oid", |out| {
            out.push('"');
            push_hex(out, value);
            out.push('"');
        }),
        kind::BOOLEAN => write!(out, "{}", value != [0]),
        0x09 => write!(out, "{{\"$date\":{{\"$numberLong\":\"{}\"}}}}", long()),
        kind::NULL => write!(out, "null"),
        0x0b => write_wrapped(out, "$regularExpression", |out| {
            let mut parts = value.split(|byte| *byte == 0);
            out.push_str("{\"pattern\":");
            write_text(out, parts.next().unwrap_or_default());
            out.push_str(",\"options\":");
            write_text(out, parts.next().unwrap_or_default());
            out.push('}');
        }),
        0x0c => write_wrapped(out, "$dbPointer", |out| {
            let (name, id) = value.split_at(value.len() - 12);
            out.push_str("{\"$ref\":");
            write_text(out, string_bytes(name));
            out.push_str(",\"$id\":{\"$oid\":\"");
            push_hex(out, id);
            out.push_str("\"}}");
        }),
        0x0d => write_wrapped(out, "$code", |out| write_text(out, string_bytes(value))),
        0x0e => write_wrapped(out, "$symbol", |out| write_text(out, string_bytes(value))),
        0x0f => {
            let code_len = value
                .get(4..8)
                .and_then(|b| b.try_into().ok())
                .map_or(0, i32::from_le_bytes);
            let scope = 8 + usize::try_from(code_len).unwrap_or(0);
            out.push_str("{\"$code\":");
            write_text(out, string_bytes(value.get(4..scope).unwrap_or_default()));
            out.push_str(",\"$scope\":");
            write_document(out, value.get(scope..).unwrap_or_default());
            out.push('}');
            Ok(())
        }
        kind::INT32 => write!(
            out,
            "{{\"$numberInt\":\"{}\"}}",
            value.try_into().map_or(0, i32::from_le_bytes)
        ),
        kind::TIMESTAMP => {
            let at = long() as u64;
            write!(
                out,
                "{{\"$timestamp\":{{\"t\":{},\"i\":{}}}}}",
                at >> 32,
                at as u32
            )
        }
        kind::INT64 => write!(out, "{{\"$numberLong\":\"{}\"}}", long()),
        0x13 => {
            let bytes: [u8; 16] = value.try_into().unwrap_or_default();
            write!(
                out,
                "{{\"$numberDecimal\":\"{}\"}}",
                Decimal128::from_bytes(bytes)
            )
        }
        0xff => write!(out, "{{\"$minKey\":1}}"),
        _ => write!(out, "{{\"$maxKey\":1}}"),
    };
}

fn write_wrapped(
    out: &mut String,
    name: &str,
    inside: impl FnOnce(&mut String),
) -> std::fmt::Result {
    write!(out, "{{\"{name}\":")?;
    inside(out);
    out.push('}');
    Ok(())
}

/// Bytes of a string without its length and closing zero.
fn string_bytes(value: &[u8]) -> &[u8] {
    value
        .get(4..value.len().saturating_sub(1))
        .unwrap_or_default()
}

/// Subtype and bytes; the old form has its length twice.
fn binary(value: &[u8]) -> (u8, &[u8]) {
    let subtype = value.get(4).copied().unwrap_or(0);
    let bytes = value.get(5..).unwrap_or_default();
    (
        subtype,
        if subtype == 2 {
            bytes.get(4..).unwrap_or_default()
        } else {
            bytes
        },
    )
}

/// As Go prints it: shortest digits, an exponent from 21 on, a point where nothing else says that it is no integer.
fn double(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .into();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i32 = exponent.parse().unwrap_or(0);
    if (-4..21).contains(&power) {
        let plain = format!("{number}");
        return if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        };
    }
    let sign = if power < 0 { '-' } else { '+' };
    format!("{digits}E{sign}{:02}", power.abs())
}

/// A JSON string. Bytes that are no UTF-8 become the replacement character, and the raw file then counts.
fn write_text(out: &mut String, bytes: &[u8]) {
    out.push('"');
    for c in String::from_utf8_lossy(bytes).chars() {
        let _ = match c {
            '"' => write!(out, "\\\""),
            '\\' => write!(out, "\\\\"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '\u{8}' => write!(out, "\\b"),
            '\u{c}' => write!(out, "\\f"),
            c if c < ' ' || c == '\u{2028}' || c == '\u{2029}' => {
                write!(out, "\\u{:04x}", u32::from(c))
            }
            c => write!(out, "{c}"),
        };
    }
    out.push('"');
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_indexes_come_back_equal_through_json_or_raw() {
        let filter = Writing::new()
            .document("a", &Writing::new().int("$gt", 3).bytes())
            .bytes();
        let index = Writing::new()
            .int("v", 2)
            .document(
                "key",
                &Writing::new()
                    .value(kind::DOUBLE, b"a", &1.0_f64.to_le_bytes())
                    .bytes(),
            )
            .text("name", "a \"one\"\n")
            .document("partialFilterExpression", &filter)
            .bytes();
        let plain = Metadata {
            options: Writing::new()
                .flag("capped", true)
                .long("size", 1 << 40)
                .bytes(),
            indexes: vec![index],
            name: Some("x/y".into()),
            kind: Kind::Collection,
        };
        let json = plain.json(Some(&[0xab; 16]));
        assert!(json.contains("{\"$numberDouble\":\"1.0\"}"), "{json}");
        assert!(json.ends_with(",\"uuid\":\"abababababababababababababababab\",\"collectionName\":\"x/y\",\"type\":\"collection\"}"));
        assert_eq!(Metadata::parse(json.as_bytes()).unwrap(), plain);
        assert_eq!(plain.raw_where_json_fails(), None);

        let twice = Metadata {
            options: Writing::new().int("a", 1).int("a", 2).bytes(),
            ..plain.clone()
        };
        let raw = twice
            .raw_where_json_fails()
            .expect("JSON keeps one of two equal keys");
        let mut again = Metadata::parse(twice.json(None).as_bytes()).unwrap();
        again.take_raw(&raw).unwrap();
        assert_eq!(again, twice);
    }

    #[test]
    fn numbers_look_as_the_official_tools_print_them() {
        for (number, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.5, "1.5"),
            (1e20, "100000000000000000000.0"),
            (1e21, "1E+21"),
            (-1e-12, "-1E-12"),
            (1.25e-7, "1.25E-07"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(double(number), text);
        }
    }

    #[test]
    fn older_files_say_less() {
        let legacy = br#"{"options":{"viewOn":"a","pipeline":[]},"indexes":[{"v":1,"key":{"_id":1},"name":"_id_","ns":"d.c"}]}"#;
        let read = Metadata::parse(legacy).unwrap();
        assert_eq!((read.kind, read.name), (Kind::View, None));
        assert_eq!(
            bson::find(&read.indexes[0], b"v").and_then(|e| e.integer()),
            Some(1)
        );
        assert_eq!(Metadata::parse(b"").unwrap().indexes.len(), 0);
        assert!(Metadata::parse(b"{").is_err());
    }
}
