//! The mark of a restore that is under way: a `ConfigMap` in each namespace that it writes to, there before anything else of it.

use crate::k8s::connection::Api;
use crate::k8s::object::MANAGED_BY;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::source::Selected;
use bk_core::unfinished::Unfinished;
use http::Method;
use serde_json::{Value, json};

/// Its name.
pub const NAME: &str = "bk-unfinished-restore";

fn path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps")
}

fn path_of(namespace: &str) -> String {
    format!("{}/{NAME}", path(namespace))
}

/// All that stand in these namespaces.
pub async fn read(api: &Api, namespaces: &[String]) -> Result<Vec<Unfinished>> {
    let mut marks: Vec<Unfinished> = Vec::new();
    for namespace in namespaces {
        let Some(map) = api.find(&path_of(namespace)).await? else {
            continue;
        };
        let mark = map["data"]["mark"].as_str();
        let mark = mark.and_then(|text| serde_json::from_str(text).ok());
        let mark: Unfinished = mark.ok_or_else(|| {
            Error::new(
                ErrorKind::Conflict,
                format!("the mark `{NAME}` in `{namespace}` cannot be read"),
            )
            .hint(format!(
                "look at the namespace, then kubectl -n {namespace} delete configmap {NAME}"
            ))
        })?;
        if !marks.contains(&mark) {
            marks.push(mark);
        }
    }
    Ok(marks)
}

/// Sets it in a namespace. What another restore left there stays unless this one writes all of it.
pub async fn set(api: &Api, namespace: &str, mine: &Unfinished) -> Result<()> {
    let text = serde_json::to_string(mine).map_err(|e| bk_core::error::bug(e.to_string()))?;
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": NAME, "namespace": namespace, "labels": { MANAGED_BY.0: MANAGED_BY.1 } },
        "data": { "mark": text },
    });
    let doing = format!("setting the mark of this restore in `{namespace}`");
    let made = api.insist(&Method::POST, &path(namespace), &map).await?;
    if made.status != 409 {
        return made.good(&doing).map(drop);
    }
    let others = read(api, &[namespace.to_owned()]).await?;
    if let Some(other) = others
        .iter()
        .find(|other| other.id != mine.id && !other.is_covered_by(&mine.selected))
    {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "a restore from archive {} did not finish in `{namespace}`, and this one does not write all that it owes",
                other.archive
            ),
        )
        .hint("finish that one, or select the whole namespace"));
    }
    let put = api.insist(&Method::PUT, &path_of(namespace), &map).await?;
    put.good(&doing).map(drop)
}

/// Takes it away.
pub async fn remove(api: &Api, namespace: &str) -> Result<()> {
    let gone = api.send(&Method::DELETE, &path_of(namespace), None).await?;
    if gone.status == 404 {
        return Ok(());
    }
    gone.good(&format!("taking the mark out of `{namespace}`"))
        .map(drop)
}

/// Leaves what did not come back in a namespace, or takes the mark away.
pub async fn finish(
    api: &Api,
    namespace: &str,
    mine: &Unfinished,
    left: Vec<Selected>,
) -> Result<()> {
    if left.is_empty() {
        return remove(api, namespace).await;
    }
    let rest = Unfinished {
        selected: left,
        ..mine.clone()
    };
    let text = serde_json::to_string(&rest).map_err(|e| bk_core::error::bug(e.to_string()))?;
    let patch: Value = json!({ "data": { "mark": text } });
    let patched = api
        .send_as(
            &Method::PATCH,
            &path_of(namespace),
            Some(&patch),
            "application/merge-patch+json",
        )
        .await?;
    patched
        .good(&format!("writing the mark in `{namespace}`"))
        .map(drop)
}
