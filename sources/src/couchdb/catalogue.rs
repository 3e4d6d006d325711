//! What is on the server: databases, how they were made, their limits and rights.

use crate::couchdb::connection::{Answer, Connection, Method, Request};
use crate::couchdb::server::Server;
use crate::percent::encoded;
use bk_core::error::{Error, Result};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Limits that a database may have, by the name under which they are asked for.
const LIMITS: [&str; 3] = ["_revs_limit", "_purged_infos_limit", "_auto_purge"];

/// Names of all databases, sorted.
pub async fn databases(connection: &Connection) -> Result<Vec<String>> {
    let listing = "listing the databases";
    let answer = connection.ask(Method::GET, "/_all_dbs").await?;
    let mut names: Vec<String> = answer
        .good(listing)
        .map_err(|e| e.hint("use the account of a server admin, or name `databases`"))?
        .parsed(listing)?;
    names.sort();
    Ok(names)
}

/// A database as the server describes it.
#[derive(Clone, Debug, Deserialize)]
pub struct Info {
    /// Where its feed stands: opaque.
    #[serde(default)]
    pub update_seq: Value,
    /// How many revisions were purged.
    #[serde(default)]
    pub purge_seq: Value,
    /// Documents whose winner lives.
    #[serde(default)]
    pub doc_count: u64,
    /// Documents that are deleted.
    #[serde(default)]
    pub doc_del_count: u64,
    /// Shards and copies.
    #[serde(default)]
    pub cluster: Option<Cluster>,
    /// `partitioned`.
    #[serde(default)]
    pub props: Props,
    /// Other when it was made anew.
    #[serde(default)]
    pub instance_start_time: Value,
    /// What it holds.
    #[serde(default)]
    pub sizes: Sizes,
}

/// Bytes of a database.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Sizes {
    /// Documents and attachments, before anything is compressed.
    #[serde(default)]
    pub external: f64,
}

impl Info {
    /// How many revisions were purged. What follows the number says which node told it.
    pub fn purges(&self) -> Option<u64> {
        number(&self.purge_seq)
    }

    /// How many writes there were.
    pub fn updates(&self) -> Option<u64> {
        number(&self.update_seq)
    }

    /// Bytes of a document in the mean.
    pub fn mean_bytes(&self) -> f64 {
        self.sizes.external / (self.doc_count + self.doc_del_count).max(1) as f64
    }
}

fn number(seq: &Value) -> Option<u64> {
    match seq {
        Value::String(text) => text.split('-').next()?.parse().ok(),
        other => other.as_u64(),
    }
}

/// Shards and copies of a database.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct Cluster {
    /// Shards.
    pub q: u32,
    /// Copies.
    pub n: u32,
}

/// Properties of a database.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Props {
    /// Whether ids name their partition.
    #[serde(default)]
    pub partitioned: bool,
}

/// How a database is made: a member of the archive.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// Shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub q: Option<u32>,
    /// Copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// Whether ids name their partition.
    #[serde(default)]
    pub partitioned: bool,
    /// Limits, by the names under which they are asked for.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub limits: serde_json::Map<String, Value>,
}

/// Asks for a database; nothing when it is not there.
pub async fn info(connection: &Connection, database: &str) -> Result<Option<Info>> {
    let path = format!("/{}", encoded(database));
    let answer = connection.ask(Method::GET, &path).await?;
    if answer.status == 404 {
        return Ok(None);
    }
    let asking = format!("asking for `{database}`");
    answer.good(&asking)?.parsed(&asking).map(Some)
}

/// What a restore makes it by.
pub async fn definition(
    connection: &Connection,
    server: &Server,
    (database, info): (&str, &Info),
) -> Result<Definition> {
    let mut limits = serde_json::Map::new();
    if server.is_full {
        for name in LIMITS {
            let answer = connection
                .ask(Method::GET, &format!("/{}/{name}", encoded(database)))
                .await?;
            // Older and newer servers have others.
            if matches!(answer.status, 400 | 404 | 405 | 501) {
                continue;
            }
            let asking = format!("asking for `{name}` of `{database}`");
            let value: Value = answer.good(&asking)?.parsed(&asking)?;
            limits.insert(name.into(), value);
        }
    }
    Ok(Definition {
        name: database.into(),
        q: info.cluster.map(|cluster| cluster.q),
        n: info.cluster.map(|cluster| cluster.n),
        partitioned: info.props.partitioned,
        limits,
    })
}

/// Sets what is limited where it differs; says what the server did not take.
pub async fn set_limits(
    connection: &Connection,
    definition: &Definition,
    database: &str,
) -> Result<Vec<String>> {
    let mut refused = Vec::new();
    for (name, value) in &definition.limits {
        let path = format!("/{}/{name}", encoded(database));
        let there = connection.ask(Method::GET, &path).await?;
        if there.is_good()
            && serde_json::from_slice::<Value>(&there.body).is_ok_and(|v| v == *value)
        {
            continue;
        }
        let answer = connection
            .send(&Request::new(Method::PUT, &path).json(value.to_string()))
            .await?;
        if !answer.is_good() {
            refused.push(format!(
                "`{database}`: `{name}` could not be set: {}",
                answer.words()
            ));
        }
    }
    Ok(refused)
}

/// Who may read and write: the bytes that the server gives.
pub async fn security(connection: &Connection, database: &str) -> Result<Bytes> {
    let path = format!("/{}/_security", encoded(database));
    let answer = connection
        .get(&path, &format!("reading the rights on `{database}`"))
        .await?;
    let text = answer.body.trim_ascii_end();
    Ok(answer.body.slice_ref(text))
}

/// The request that makes a database.
pub fn creation(definition: &Definition, database: &str, n: Option<u8>, is_full: bool) -> Request {
    let mut path = format!("/{}", encoded(database));
    if is_full {
        let n = n.map(u32::from).or(definition.n);
        let settings = [("q", definition.q), ("n", n)];
        let mut asked: Vec<String> = settings
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", value?)))
            .collect();
        if definition.partitioned {
            asked.push("partitioned=true".into());
        }
        if !asked.is_empty() {
            path = format!("{path}?{}", asked.join("&"));
        }
    }
    Request::new(Method::PUT, path)
}

/// What a refusal to make or drop a database is.
pub fn refused(answer: &Answer, doing: &str) -> Error {
    answer
        .refusal(doing)
        .hint("use the account of a server admin")
}
