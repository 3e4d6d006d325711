//! The mark of a restore that is under way: a `ConfigMap` in each namespace that it writes to, there before anything else of it. What belongs to no
//! namespace has its own in that of the account, each restore under a key of its own: several sites may have one account.

use crate::k8s::CLUSTER;
use crate::k8s::connection::Api;
use crate::k8s::object::MANAGED_BY;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::source::Selected;
use bk_core::unfinished::Unfinished;
use http::Method;
use serde_json::{Map, Value, json};

/// Its name.
pub const NAME: &str = "bk-unfinished-restore";
/// The key of what lies in the namespace.
const OF_NAMESPACE: &str = "mark";
/// The beginning of the keys of what belongs to no namespace.
const OF_CLUSTER: &str = "cluster.";
/// How often a change is repeated that another one crossed.
const CROSSED: usize = 5;

/// Of what a mark speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Of what lies in the namespace.
    Namespace,
    /// Of what belongs to no namespace.
    Cluster,
}

impl Of {
    fn key(self, id: &str) -> String {
        match self {
            Self::Namespace => OF_NAMESPACE.to_owned(),
            Self::Cluster => format!("{OF_CLUSTER}{id}"),
        }
    }

    fn has(self, key: &str) -> bool {
        match self {
            Self::Namespace => key == OF_NAMESPACE,
            Self::Cluster => key.starts_with(OF_CLUSTER),
        }
    }
}

fn path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps")
}

fn path_of(namespace: &str) -> String {
    format!("{}/{NAME}", path(namespace))
}

/// What stands in a namespace, by key.
async fn keyed(api: &Api, namespace: &str) -> Result<Vec<(String, Unfinished)>> {
    let Some(map) = api.find(&path_of(namespace)).await? else {
        return Ok(Vec::new());
    };
    let mut marks = Vec::new();
    for (key, text) in map["data"].as_object().into_iter().flatten() {
        let mark = text
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok());
        let mark: Unfinished = mark.ok_or_else(|| {
            Error::new(
                ErrorKind::Conflict,
                format!("the mark `{NAME}` in `{namespace}` cannot be read"),
            )
            .hint(format!(
                "look at the namespace, then kubectl -n {namespace} delete configmap {NAME}"
            ))
        })?;
        marks.push((key.clone(), mark));
    }
    Ok(marks)
}

/// All that a backup of these namespaces must know of: those that stand in them, and those of what belongs to no namespace. Where the account may not
/// read these last, that is said.
pub async fn read(api: &Api, namespaces: &[String]) -> Result<(Vec<Unfinished>, Option<String>)> {
    let mut marks: Vec<Unfinished> = Vec::new();
    for namespace in namespaces {
        for (_, mark) in keyed(api, namespace).await? {
            if !marks.contains(&mark) {
                marks.push(mark);
            }
        }
    }
    let own = api.own_namespace();
    if namespaces.iter().any(|namespace| namespace == own) {
        return Ok((marks, None));
    }
    match keyed(api, own).await {
        Ok(of_account) => {
            let of_cluster = |mark: &Unfinished| mark.selected.iter().any(|s| s.group == CLUSTER);
            let of_account = of_account.into_iter().map(|(_, mark)| mark);
            marks.extend(of_account.filter(of_cluster));
            Ok((marks, None))
        }
        Err(error) if error.kind == ErrorKind::Denied => Ok((
            marks,
            Some(format!(
                "whether a restore of what belongs to no namespace is unfinished is not known: the account may not get the ConfigMap `{NAME}` in `{own}`"
            )),
        )),
        Err(error) => Err(error),
    }
}

/// Sets it in a namespace. What another restore left there stays unless this one writes all of it.
pub async fn set(api: &Api, namespace: &str, of: Of, mine: &Unfinished) -> Result<()> {
    let mut data = Map::new();
    data.insert(of.key(&mine.id), as_text(mine)?.into());
    for _ in 0..CROSSED {
        if make(api, namespace, &data).await? {
            return Ok(());
        }
        for (key, other) in keyed(api, namespace).await? {
            if !of.has(&key) || other.id == mine.id {
                continue;
            }
            let is_covered = other.is_covered_by(&mine.selected);
            match of {
                Of::Namespace if !is_covered => {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        format!(
                            "a restore from archive {} did not finish in `{namespace}`, and this one does not write all that it owes",
                            other.archive
                        ),
                    )
                    .hint("finish that one, or select the whole namespace"));
                }
                Of::Cluster if is_covered => {
                    data.insert(key, Value::Null);
                }
                Of::Namespace | Of::Cluster => {}
            }
        }
        if change(api, namespace, &data).await? {
            return Ok(());
        }
    }
    Err(crossed(namespace))
}

fn as_text(mark: &Unfinished) -> Result<String> {
    serde_json::to_string(mark).map_err(|e| bk_core::error::bug(e.to_string()))
}

fn crossed(namespace: &str) -> Error {
    let what = format!("the mark `{NAME}` in `{namespace}`: others write it all the time");
    Error::new(ErrorKind::Conflict, what).hint("repeat")
}

/// Makes the map; not where there is one.
async fn make(api: &Api, namespace: &str, data: &Map<String, Value>) -> Result<bool> {
    let data: Map<String, Value> = data
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": NAME, "namespace": namespace, "labels": { MANAGED_BY.0: MANAGED_BY.1 } },
        "data": data,
    });
    let made = api.insist(&Method::POST, &path(namespace), &map).await?;
    if made.status == 409 {
        return Ok(false);
    }
    let doing = format!("setting the mark of this restore in `{namespace}`");
    made.good(&doing).map(|_| true)
}

/// Changes keys of the map that is there; not where there is none any more.
async fn change(api: &Api, namespace: &str, data: &Map<String, Value>) -> Result<bool> {
    let wanted = json!({ "data": data });
    let path = path_of(namespace);
    let patched = api.insist(&Method::PATCH, &path, &wanted).await?;
    if patched.status == 404 {
        return Ok(false);
    }
    let doing = format!("writing the mark in `{namespace}`");
    patched.good(&doing).map(|_| true)
}

/// Takes keys away, and with the last one the map.
async fn take_away(api: &Api, namespace: &str, goes: &(dyn Fn(&str) -> bool + Sync)) -> Result<()> {
    for _ in 0..CROSSED {
        let Some(map) = api.find(&path_of(namespace)).await? else {
            return Ok(());
        };
        let keys = map["data"].as_object().into_iter().flatten();
        let (gone, left): (Vec<&String>, Vec<&String>) =
            keys.map(|(key, _)| key).partition(|key| goes(key));
        let version = &map["metadata"]["resourceVersion"];
        let doing = format!("taking the mark out of `{namespace}`");
        let answer = if left.is_empty() {
            let options = json!({ "preconditions": { "resourceVersion": version } });
            let path = path_of(namespace);
            api.insist(&Method::DELETE, &path, &options).await?
        } else if gone.is_empty() {
            return Ok(());
        } else {
            let data: Map<String, Value> = gone
                .into_iter()
                .map(|key| (key.clone(), Value::Null))
                .collect();
            let wanted = json!({ "metadata": { "resourceVersion": version }, "data": data });
            let path = path_of(namespace);
            api.insist(&Method::PATCH, &path, &wanted).await?
        };
        match answer.status {
            404 => return Ok(()),
            409 => {}
            _ => return answer.good(&doing).map(drop),
        }
    }
    Err(crossed(namespace))
}

/// Forgets what is unfinished in these namespaces, and of what belongs to none. Where the account may not look there are none of its marks.
pub async fn forget(api: &Api, namespaces: &[String]) -> Result<()> {
    for namespace in namespaces {
        take_away(api, namespace, &|key| Of::Namespace.has(key)).await?;
    }
    match take_away(api, api.own_namespace(), &|key| Of::Cluster.has(key)).await {
        Err(error) if error.kind == ErrorKind::Denied => Ok(()),
        other => other,
    }
}

/// Leaves what did not come back in a namespace, or takes the mark away.
pub async fn finish(
    api: &Api,
    namespace: &str,
    of: Of,
    mine: &Unfinished,
    left: Vec<Selected>,
) -> Result<()> {
    let own = of.key(&mine.id);
    if left.is_empty() {
        return take_away(api, namespace, &|key| key == own).await;
    }
    let rest = Unfinished {
        selected: left,
        ..mine.clone()
    };
    let mut data = Map::new();
    data.insert(own, as_text(&rest)?.into());
    for _ in 0..CROSSED {
        if change(api, namespace, &data).await? || make(api, namespace, &data).await? {
            return Ok(());
        }
    }
    Err(crossed(namespace))
}
