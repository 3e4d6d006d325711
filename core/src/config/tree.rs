//! The settings as a tree of values, each with its origin: the file parsed with places, the other layers laid over it.

use super::Layers;
use super::problems::Problems;
use serde_json::{Map, Value};
use std::fmt;
use toml::de::{DeTable, DeValue};

/// Where a value was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Line and column of the file, from 1.
    File(usize, usize),
    /// An environment variable.
    Environment(String),
    /// `--set`.
    Set,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(line, _) => write!(f, "line {line}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Set => f.write_str("--set"),
        }
    }
}

/// A value of the tree with its origin.
#[derive(Clone, Debug)]
pub(super) struct Node {
    value: Leaf,
    pub(super) origin: Origin,
}

#[derive(Clone, Debug)]
pub(super) enum Leaf {
    Table(Vec<(String, Node)>),
    Value(Value),
}

impl Node {
    pub(super) fn table(&self) -> Option<&[(String, Node)]> {
        match &self.value {
            Leaf::Table(entries) => Some(entries),
            Leaf::Value(_) => None,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.table()?
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, node)| node)
    }

    pub(super) fn json(&self) -> Value {
        match &self.value {
            Leaf::Table(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(key, node)| (key.clone(), node.json()))
                    .collect(),
            ),
            Leaf::Value(value) => value.clone(),
        }
    }

    pub(super) fn object(&self) -> Map<String, Value> {
        match self.json() {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    /// The origin of the deepest part of `key` that is there.
    pub(super) fn origin_of(&self, key: &str) -> &Origin {
        let mut node = self;
        for part in key.split(['.', '[']) {
            match node.get(part) {
                Some(next) => node = next,
                None => break,
            }
        }
        &node.origin
    }

    fn put(&mut self, keys: &[String], value: Value, origin: &Origin) {
        let [key, rest @ ..] = keys else {
            *self = Node {
                value: leaf(value, origin),
                origin: origin.clone(),
            };
            return;
        };
        if !matches!(self.value, Leaf::Table(_)) {
            self.value = Leaf::Table(Vec::new());
        }
        let Leaf::Table(entries) = &mut self.value else {
            return;
        };
        let same = |name: &str| {
            name == key
                || name
                    .replace('-', "_")
                    .eq_ignore_ascii_case(&key.replace('-', "_"))
        };
        if let Some((_, node)) = entries.iter_mut().find(|(name, _)| same(name)) {
            node.put(rest, value, origin);
        } else {
            let mut node = Node {
                value: Leaf::Table(Vec::new()),
                origin: origin.clone(),
            };
            node.put(rest, value, origin);
            entries.push((key.clone(), node));
        }
    }
}

fn leaf(value: Value, origin: &Origin) -> Leaf {
    match value {
        Value::Object(map) => Leaf::Table(
            map.into_iter()
                .map(|(k, v)| {
                    (
                        k,
                        Node {
                            value: leaf(v, origin),
                            origin: origin.clone(),
                        },
                    )
                })
                .collect(),
        ),
        other => Leaf::Value(other),
    }
}

/// Line and column of this byte, from 1.
pub(crate) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

pub(super) fn parse(text: &str, problems: &mut Problems<'_>) -> Node {
    let position = |offset: usize| {
        let (line, column) = line_and_column(text, offset);
        Origin::File(line, column)
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let origin = position(error.span().map_or(0, |span| span.start));
        problems.add(
            &origin,
            error.message(),
            Some("see https://toml.io for how a value is written"),
        );
    }
    let mut entries = Vec::new();
    for (key, value) in table.get_ref() {
        entries.push((
            key.get_ref().to_string(),
            node(value, position(key.span().start), &position),
        ));
    }
    Node {
        value: Leaf::Table(entries),
        origin: Origin::File(1, 1),
    }
}

fn node(
    value: &toml::Spanned<DeValue<'_>>,
    origin: Origin,
    position: &dyn Fn(usize) -> Origin,
) -> Node {
    let value = match value.get_ref() {
        DeValue::Table(table) => Leaf::Table(
            table
                .iter()
                .map(|(key, value)| {
                    (
                        key.get_ref().to_string(),
                        node(value, position(key.span().start), position),
                    )
                })
                .collect(),
        ),
        other => Leaf::Value(scalar(other)),
    };
    Node { value, origin }
}

fn scalar(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => {
            i64::from_str_radix(&number.as_str().replace('_', ""), number.radix())
                .map_or(Value::Null, Value::from)
        }
        DeValue::Float(number) => number
            .as_str()
            .replace('_', "")
            .parse::<f64>()
            .map_or(Value::Null, Value::from),
        DeValue::Boolean(yes) => Value::Bool(*yes),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(list) => {
            Value::Array(list.iter().map(|item| scalar(item.get_ref())).collect())
        }
        DeValue::Table(table) => Value::Object(
            table
                .iter()
                .map(|(k, v)| (k.get_ref().to_string(), scalar(v.get_ref())))
                .collect(),
        ),
    }
}

pub(super) fn overlay(root: &mut Node, layers: &Layers, problems: &mut Problems<'_>) {
    for (name, text) in &layers.environment {
        let Some(rest) = name.strip_prefix("BK_").filter(|rest| rest.contains("__")) else {
            continue;
        };
        let keys: Vec<_> = rest.split("__").map(str::to_ascii_lowercase).collect();
        root.put(&keys, loose_value(text), &Origin::Environment(name.clone()));
    }
    for assignment in &layers.set {
        match assignment.split_once('=') {
            Some((key, text)) if !key.is_empty() => {
                let keys: Vec<_> = key.split('.').map(str::to_owned).collect();
                root.put(&keys, loose_value(text), &Origin::Set);
            }
            _ => problems.add(
                &Origin::Set,
                &format!("`{assignment}` is no assignment"),
                Some("write --set source.mysql.host=db"),
            ),
        }
    }
}

/// A TOML value where it reads as one, else a text.
fn loose_value(text: &str) -> Value {
    match DeValue::parse(text) {
        Ok(value) => scalar(value.get_ref()),
        Err(_) => Value::String(text.to_owned()),
    }
}
