//! What a standby site remembers of its last restore: a `ConfigMap` in the namespace of the account that restores.

use crate::k8s::K8s;
use crate::k8s::connection::Api;
use crate::k8s::object::{self, MANAGED_BY};
use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::Result;
use bk_core::source::Memory;
use http::Method;
use serde_json::json;
use std::collections::BTreeMap;

/// Its name.
pub const NAME: &str = "bk-standby";

fn path(api: &Api) -> String {
    format!("/api/v1/namespaces/{}/configmaps", api.own_namespace())
}

#[async_trait]
impl Memory for K8s {
    async fn read(&self, cx: &Context) -> Result<Option<String>> {
        let api = Api::connect(cx, &self.settings).await?;
        let map = api.find(&format!("{}/{NAME}", path(&api))).await?;
        Ok(map.and_then(|map| map["data"]["state"].as_str().map(str::to_owned)))
    }

    async fn write(&self, cx: &Context, text: &str) -> Result<()> {
        let api = Api::connect(cx, &self.settings).await?;
        let data = json!({ "state": text });
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": NAME, "labels": { MANAGED_BY.0: MANAGED_BY.1 } },
            "data": data,
        });
        let doing = format!(
            "writing the ConfigMap `{NAME}` in `{}`",
            api.own_namespace()
        );
        let made = api.send(&Method::POST, &path(&api), Some(&map)).await?;
        if made.status != 409 {
            return made.good(&doing).map(drop);
        }
        let patch = json!({ "data": data });
        let patched = api.patch(&format!("{}/{NAME}", path(&api)), &patch).await?;
        patched.good(&doing).map(drop)
    }

    async fn incarnations(
        &self,
        cx: &Context,
        groups: &[String],
    ) -> Result<BTreeMap<String, String>> {
        let api = Api::connect(cx, &self.settings).await?;
        let mut found = BTreeMap::new();
        for group in groups.iter().filter(|group| *group != super::CLUSTER) {
            if let Some(there) = api.find(&format!("/api/v1/namespaces/{group}")).await? {
                found.insert(group.clone(), object::uid(&there).to_owned());
            }
        }
        Ok(found)
    }
}
