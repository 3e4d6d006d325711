//! What a write would change, for people: field by field, with the values of Secrets hidden.

use crate::k8s::discovery::Kind;
use crate::k8s::object::taken_apart;
use serde_json::Value;

/// Longest value that is shown.
const VALUE_CHARS: usize = 80;

/// Lines for what differs between two states of an object.
pub(super) fn lines(kind: &Kind, live: &Value, wanted: &Value) -> Vec<String> {
    let (live, _) = taken_apart(kind, live.clone());
    let (wanted, _) = taken_apart(kind, wanted.clone());
    let mut lines = Vec::new();
    compare("", Some(&live), Some(&wanted), kind.is_secret(), &mut lines);
    lines
}

fn compare(
    path: &str,
    live: Option<&Value>,
    wanted: Option<&Value>,
    secret: bool,
    lines: &mut Vec<String>,
) {
    match (live, wanted) {
        (one, two) if one == two => {}
        (Some(Value::Object(one)), Some(Value::Object(two))) => {
            let keys: std::collections::BTreeSet<&String> = one.keys().chain(two.keys()).collect();
            for key in keys {
                compare(
                    &format!("{path}.{key}"),
                    one.get(key),
                    two.get(key),
                    secret,
                    lines,
                );
            }
        }
        (Some(Value::Array(one)), Some(Value::Array(two))) if one.len() == two.len() => {
            for (n, (one, two)) in one.iter().zip(two).enumerate() {
                compare(&format!("{path}[{n}]"), Some(one), Some(two), secret, lines);
            }
        }
        (one, two) => {
            let hidden = secret && (path.starts_with(".data") || path.starts_with(".stringData"));
            let shown = |value: Option<&Value>| match value {
                None => "(absent)".to_owned(),
                Some(_) if hidden => "(hidden)".to_owned(),
                Some(value) => cut(&value.to_string()),
            };
            lines.push(format!(
                "           {}: {} -> {}",
                path.trim_start_matches('.'),
                shown(one),
                shown(two)
            ));
        }
    }
}

fn cut(text: &str) -> String {
    if text.chars().count() <= VALUE_CHARS {
        return text.to_owned();
    }
    text.chars()
        .take(VALUE_CHARS)
        .chain("...".chars())
        .collect()
}
