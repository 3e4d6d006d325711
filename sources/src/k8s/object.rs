//! An object as JSON: its parts, what of it somebody wished, and how it lies in the archive.

use crate::k8s::CLUSTER;
use crate::k8s::discovery::Kind;
use bk_core::error::{Result, bug};
use bk_core::name::MemberPath;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt::Write;

/// What `kubectl apply` remembers of its last run.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Fields of the metadata that the server gives.
const SERVERS_OWN: [&str; 9] = [
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
    "generateName",
];
/// Longest name of a file that is made of an object's name.
const NAME_BYTES: usize = 200;

/// Objects of a list.
pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.get("items")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// A text at a path of keys, or nothing.
pub fn text<'v>(object: &'v Value, keys: &[&str]) -> Option<&'v str> {
    keys.iter()
        .try_fold(object, |value, key| value.get(key))?
        .as_str()
}

/// The name.
pub fn name(object: &Value) -> &str {
    text(object, &["metadata", "name"]).unwrap_or_default()
}

/// The UID.
pub fn uid(object: &Value) -> &str {
    text(object, &["metadata", "uid"]).unwrap_or_default()
}

/// A label.
pub fn label<'v>(object: &'v Value, key: &str) -> Option<&'v str> {
    text(object, &["metadata", "labels", key])
}

/// An annotation.
pub fn annotation<'v>(object: &'v Value, key: &str) -> Option<&'v str> {
    text(object, &["metadata", "annotations", key])
}

/// By this label `bk` knows its own.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "bk");

/// Whether `bk` made it.
pub fn is_own(object: &Value) -> bool {
    label(object, MANAGED_BY.0) == Some(MANAGED_BY.1)
}

/// A condition of its status, by its type.
pub fn condition<'v>(object: &'v Value, word: &str) -> Option<&'v Value> {
    let conditions = object["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.find(|condition| text(condition, &["type"]) == Some(word))
}

/// Whether a condition of its status holds.
pub fn holds(object: &Value, word: &str) -> bool {
    condition(object, word).and_then(|c| text(c, &["status"])) == Some("True")
}

/// What a definition serves: `example.org/v1` and the kind, for each version.
pub fn served_by(definition: &Value) -> Vec<(String, String)> {
    let word = |keys: &[&str]| text(definition, keys).unwrap_or_default();
    let (group, kind) = (word(&["spec", "group"]), word(&["spec", "names", "kind"]));
    let versions = definition["spec"]["versions"].as_array();
    versions
        .into_iter()
        .flatten()
        .filter(|version| version["served"] == Value::Bool(true))
        .filter_map(|version| text(version, &["name"]))
        .map(|version| (format!("{group}/{version}"), kind.to_owned()))
        .collect()
}

/// The reference to the controller that made it.
pub fn controller(object: &Value) -> Option<&Value> {
    let owners = object.get("metadata")?.get("ownerReferences")?.as_array()?;
    owners
        .iter()
        .find(|owner| owner.get("controller") == Some(&Value::Bool(true)))
}

/// What lies beside the clean object, and is put back or compared at a restore.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Beside {
    /// The object's version, `apps/v1`.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// The namespace; nothing for what has none.
    pub namespace: Option<String>,
    /// The name as it is: the file's is written so that every disk takes it.
    pub name: String,
    /// Its UID there, by which others name their owner.
    pub uid: String,
    /// Its version there.
    pub resource_version: String,
    /// Why it was taken, where it belongs to no namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Made by `bk` itself.
    #[serde(default)]
    pub own: bool,
    /// A Secret whose values were left out.
    #[serde(default)]
    pub redacted: bool,
    /// What `kubectl apply` remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_applied: Option<String>,
    /// Who owns which field, but for those of the status.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub managed_fields: Vec<Value>,
    /// Who owns it: their UIDs are other ones in another cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owner_references: Vec<Value>,
    /// The status as it was, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
    /// Fields that the server chose, by JSON pointer: put back where nobody else has them.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub chosen: Map<String, Value>,
}

impl Beside {
    /// Whether a definition of the cluster must be there before it.
    pub fn kind_is_extension(&self) -> bool {
        let group = self
            .api_version
            .split_once('/')
            .map_or("", |(group, _)| group);
        group.contains('.') && !group.ends_with(".k8s.io")
    }
}

/// Takes an object apart: what was wished, and what lies beside it.
pub fn taken_apart(kind: &Kind, mut object: Value) -> (Value, Beside) {
    let mut beside = Beside {
        api_version: kind.api_version(),
        kind: kind.kind.clone(),
        namespace: text(&object, &["metadata", "namespace"]).map(str::to_owned),
        name: name(&object).to_owned(),
        uid: uid(&object).to_owned(),
        resource_version: text(&object, &["metadata", "resourceVersion"])
            .unwrap_or_default()
            .to_owned(),
        own: is_own(&object),
        ..Beside::default()
    };
    if let Some(object) = object.as_object_mut() {
        beside.status = object.shift_remove("status");
        object.insert("apiVersion".into(), kind.api_version().into());
        object.insert("kind".into(), kind.kind.clone().into());
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        let managed = metadata.get("managedFields").and_then(Value::as_array);
        let is_of_status = |entry: &&Value| entry.get("subresource").is_none();
        beside.managed_fields = managed
            .into_iter()
            .flatten()
            .filter(is_of_status)
            .cloned()
            .collect();
        for key in SERVERS_OWN {
            metadata.shift_remove(key);
        }
        if let Some(Value::Array(owners)) = metadata.shift_remove("ownerReferences") {
            beside.owner_references = owners;
        }
        if let Some(annotations) = metadata
            .get_mut("annotations")
            .and_then(Value::as_object_mut)
        {
            let applied = annotations.shift_remove(LAST_APPLIED);
            beside.last_applied = applied.and_then(|v| v.as_str().map(str::to_owned));
            if annotations.is_empty() {
                metadata.shift_remove("annotations");
            }
        }
    }
    for pointer in chosen_by_the_server(kind, &object, &beside) {
        if let Some(value) = removed(&mut object, &pointer) {
            beside.chosen.insert(pointer, value);
        }
    }
    (sorted(object), beside)
}

/// Where the server chose a value that nobody asked for: clean objects of two clusters are then alike.
fn chosen_by_the_server(kind: &Kind, object: &Value, beside: &Beside) -> Vec<String> {
    match kind.full_name() {
        "Service" => of_service(object, beside),
        "Job" if object["spec"]["manualSelector"] != Value::Bool(true) => {
            let labels = ["controller-uid", "batch.kubernetes.io~1controller-uid"];
            let of = |place: &str| labels.map(|label| format!("{place}/labels/{label}"));
            let mut all = vec!["/spec/selector".to_owned()];
            all.extend(of("/metadata"));
            all.extend(of("/spec/template/metadata"));
            all
        }
        "PersistentVolumeClaim"
            if annotation(object, "pv.kubernetes.io/bound-by-controller").is_some() =>
        {
            vec!["/spec/volumeName".into()]
        }
        _ => Vec::new(),
    }
}

/// Addresses, and ports of the nodes that nobody wished: those that somebody did are in what was applied, or have an owner.
fn of_service(object: &Value, beside: &Beside) -> Vec<String> {
    let mut all = Vec::new();
    if text(object, &["spec", "clusterIP"]) != Some("None") {
        all.extend(["/spec/clusterIP".into(), "/spec/clusterIPs".into()]);
    }
    let owned = serde_json::to_string(&beside.managed_fields).unwrap_or_default();
    let wished = |field: &str, number: Option<u64>| {
        let applied = beside.last_applied.as_deref().unwrap_or_default();
        let stands = number.is_some_and(|n| applied.contains(&format!("\"{field}\":{n}")));
        stands || owned.contains(&format!("\"f:{field}\""))
    };
    let ports = object["spec"]["ports"].as_array();
    for (n, port) in ports.into_iter().flatten().enumerate() {
        let number = port.get("nodePort").and_then(Value::as_u64);
        if number.is_some() && !wished("nodePort", number) {
            all.push(format!("/spec/ports/{n}/nodePort"));
        }
    }
    let health = object["spec"]
        .get("healthCheckNodePort")
        .and_then(Value::as_u64);
    if health.is_some() && !wished("healthCheckNodePort", health) {
        all.push("/spec/healthCheckNodePort".into());
    }
    all
}

/// Takes a value out by its JSON pointer.
fn removed(object: &mut Value, pointer: &str) -> Option<Value> {
    let (parent, key) = pointer.rsplit_once('/')?;
    let key = key.replace("~1", "/").replace("~0", "~");
    object
        .pointer_mut(parent)?
        .as_object_mut()?
        .shift_remove(&key)
}

/// With sorted keys, so that `diff -r` shows what changed and nothing else.
pub fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            let entries = entries.into_iter().map(|(key, value)| (key, sorted(value)));
            Value::Object(entries.collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// Characters that the reader of `kubectl` refuses in YAML, or takes for a line's end, unless they are escaped.
fn is_refused_in_yaml(c: char) -> bool {
    matches!(
        c,
        '\u{7f}'..='\u{9f}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
    )
}

/// The object as YAML that reads back as the very same, or as JSON, which is YAML too, where it would not.
pub fn yaml(object: &Value) -> Result<String> {
    if let Ok(text) = serde_saphyr::to_string(object)
        && !text.contains(is_refused_in_yaml)
        && serde_saphyr::from_str::<Value>(&text).is_ok_and(|back| back == *object)
    {
        return Ok(text);
    }
    let text = serde_json::to_string_pretty(object).map_err(|e| bug(e.to_string()))?;
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_refused_in_yaml(c) {
            write!(escaped, "\\u{:04x}", u32::from(c)).expect("writing to a String does not fail");
        } else {
            escaped.push(c);
        }
    }
    Ok(escaped + "\n")
}

/// An object out of what `yaml` made.
pub fn from_yaml(text: &str) -> std::result::Result<Value, String> {
    if text.starts_with('{') {
        return serde_json::from_str(text).map_err(|e| e.to_string());
    }
    serde_saphyr::from_str(text).map_err(|e| e.to_string())
}

/// Paths of the clean object and of what lies beside it.
pub fn paths(kind: &Kind, beside: &Beside) -> Result<(MemberPath, MemberPath)> {
    let folder = match &beside.namespace {
        Some(namespace) => format!("namespaces/{namespace}"),
        None => CLUSTER.to_owned(),
    };
    let path = format!("{folder}/{}/{}", kind.folder(), file_name(&beside.name));
    Ok((
        MemberPath::new(format!("{path}.yaml"))?,
        MemberPath::new(format!(".bk/meta/{path}.json"))?,
    ))
}

/// A name as every disk takes it; the true one stands beside the object.
fn file_name(name: &str) -> String {
    let mut file = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' => file.push(char::from(byte)),
            other => {
                write!(file, "%{other:02X}").expect("writing to a String does not fail");
            }
        }
    }
    if file.len() > NAME_BYTES {
        let hash = blake3::hash(name.as_bytes()).to_hex();
        file.truncate(NAME_BYTES);
        file.push('%');
        file.push_str(&hash[..16]);
    }
    file
}
