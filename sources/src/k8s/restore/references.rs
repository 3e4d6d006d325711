//! Under another name for its namespace, an object may still speak of the old one: what can be followed is changed, the rest is named.

use serde_json::Value;

/// Keys that name a namespace, and nothing else.
const KEYS: [&str; 5] = [
    "namespace",
    "targetNamespace",
    "sourceNamespace",
    "meta.helm.sh/release-namespace",
    "kubernetes.io/metadata.name",
];

/// Paths at which an object speaks of a namespace by its name.
pub(super) fn of(object: &Value, namespace: &str) -> Vec<String> {
    let mut found = Vec::new();
    let spoken = Spoken {
        // As a DNS name has it, and as an account has it.
        parts: [
            format!(".{namespace}.svc"),
            format!("system:serviceaccount:{namespace}:"),
            format!("system:serviceaccounts:{namespace}"),
            format!("/{namespace}/"),
        ],
        namespace,
    };
    spoken.find(object, "", "", &mut found);
    found
}

struct Spoken<'a> {
    parts: [String; 4],
    namespace: &'a str,
}

impl Spoken<'_> {
    fn find(&self, value: &Value, path: &str, key: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    self.find(value, &format!("{path}.{key}"), key, found);
                }
            }
            Value::Array(list) => {
                for (n, value) in list.iter().enumerate() {
                    self.find(value, &format!("{path}[{n}]"), key, found);
                }
            }
            Value::String(text) => {
                let is_name = KEYS.contains(&key) && text == self.namespace;
                if is_name || self.parts.iter().any(|part| text.contains(part)) {
                    found.push(path.trim_start_matches('.').to_owned());
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::of;
    use serde_json::json;

    #[test]
    fn what_speaks_of_a_namespace_is_found_and_what_only_looks_so_is_not() {
        let object = json!({
            "metadata": { "name": "shop", "annotations": { "meta.helm.sh/release-namespace": "shop" } },
            "data": { "url": "http://db.shop.svc.cluster.local:5432", "host": "shop.example.org", "word": "shop" },
            "spec": { "to": [{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "shop" } } }] },
            "list": ["system:serviceaccount:shop:reader"],
        });
        assert_eq!(
            of(&object, "shop"),
            [
                "metadata.annotations.meta.helm.sh/release-namespace",
                "data.url",
                "spec.to[0].namespaceSelector.matchLabels.kubernetes.io/metadata.name",
                "list[0]"
            ]
        );
    }
}
