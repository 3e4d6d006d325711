//! Databases on the target: whether it can have them, and how each is made anew.

use crate::couchdb::catalogue::{self, Definition};
use crate::couchdb::connection::{Answer, Connection, Method};
use crate::percent::encoded;
use bk_core::error::{Error, ErrorKind, Result, conflict};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a cluster may need to forget a database that was deleted, or to show one that was made.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);
/// Refusals of a creation after which the database is deleted once more.
const REFUSALS: u32 = 20;

/// A cluster that is half formed takes data and loses it later.
pub async fn refuse_unformed(
    connection: &Connection,
    databases: &[String],
    definitions: &[&Definition],
    n: Option<u8>,
) -> Result<()> {
    #[derive(Deserialize)]
    struct Membership {
        all_nodes: BTreeSet<String>,
        cluster_nodes: BTreeSet<String>,
    }
    let answer = connection.ask(Method::GET, "/_membership").await?;
    if matches!(answer.status, 400 | 403 | 404 | 405) {
        // No cluster, or none that shows itself.
        return Ok(());
    }
    let asking = "asking for the nodes of the cluster";
    let nodes: Membership = answer.good(asking)?.parsed(asking)?;
    if nodes.all_nodes != nodes.cluster_nodes {
        let apart: Vec<&str> = nodes
            .all_nodes
            .symmetric_difference(&nodes.cluster_nodes)
            .map(String::as_str)
            .collect();
        return Err(conflict(format!(
            "the cluster is not formed: {} is not joined or not up",
            apart.join(", ")
        ))
        .hint("join all nodes, then POST {\"action\":\"finish_cluster\"} to /_cluster_setup"));
    }
    if !databases.iter().any(|name| name == "_users") {
        return Err(
            conflict("the server is not set up: it has no database `_users`")
                .hint("make it: curl -X PUT URL/_users, and URL/_replicator"),
        );
    }
    let count = nodes.cluster_nodes.len() as u32;
    let most = definitions
        .iter()
        .filter_map(|definition| Some((definition.n?, &definition.name)))
        .max();
    match most {
        Some((wanted, name)) if n.is_none() && wanted > count => Err(conflict(format!(
            "`{name}` had {wanted} copies, and the cluster has {count} nodes"
        ))
        .hint(format!(
            "let the other nodes join first, or set n = {count} in the source's settings"
        ))),
        _ => Ok(()),
    }
}

/// Makes a database where none is left of it: deletes, makes, and waits until it shows that it is new.
pub async fn make_anew(
    connection: &Connection,
    definition: &Definition,
    (database, n, is_full): (&str, Option<u8>, bool),
) -> Result<()> {
    let path = format!("/{}", encoded(database));
    let create = catalogue::creation(definition, database, n, is_full);
    let mut waited = Duration::ZERO;
    let mut refusals = 0;
    delete(connection, &path, database).await?;
    loop {
        // Only an answer to this very request says that the database is the one that it made.
        let why = match connection.send_once(&create).await {
            Ok(answer) if matches!(answer.status, 201 | 202) => break,
            Ok(answer) if is_passing(&answer) => answer.words(),
            Ok(answer) => {
                return Err(catalogue::refused(&answer, &format!("making `{database}`")));
            }
            Err(error) if error.kind == ErrorKind::Unreachable => error.to_string(),
            Err(error) => return Err(error),
        };
        if waited >= PATIENCE {
            return Err(Error::new(
                ErrorKind::Unreachable,
                format!(
                    "`{database}` could not be made anew within {} s: {why}",
                    PATIENCE.as_secs()
                ),
            ));
        }
        connection.pause(PAUSE).await?;
        waited += PAUSE;
        refusals += 1;
        if refusals % REFUSALS == 0 {
            // An earlier try may have made it, and its answer was lost.
            delete(connection, &path, database).await?;
        }
    }
    let shards = definition.q.filter(|_| is_full);
    let mut waited = Duration::ZERO;
    loop {
        let there = catalogue::info(connection, database).await?;
        let is_new = there.is_some_and(|info| {
            info.doc_count == 0
                && info.doc_del_count == 0
                && shards.is_none_or(|q| info.cluster.is_none_or(|cluster| cluster.q == q))
        });
        if is_new {
            return Ok(());
        }
        if waited >= PATIENCE {
            return Err(Error::new(
                ErrorKind::Unreachable,
                format!(
                    "`{database}` was made anew and does not show it: it is not empty, or has another q"
                ),
            ));
        }
        connection.pause(PAUSE).await?;
        waited += PAUSE;
    }
}

fn is_passing(answer: &Answer) -> bool {
    // 500: "No DB shards could be opened", for a while after a deletion.
    answer.status == 412 || answer.status >= 500
}

async fn delete(connection: &Connection, path: &str, database: &str) -> Result<()> {
    let answer = connection.ask(Method::DELETE, path).await?;
    if answer.status == 404 || answer.is_good() {
        return Ok(());
    }
    Err(catalogue::refused(
        &answer,
        &format!("deleting `{database}`"),
    ))
}

/// Makes a database unless it is there.
pub async fn make_if_missing(
    connection: &Connection,
    definition: &Definition,
    (database, n, is_full): (&str, Option<u8>, bool),
) -> Result<()> {
    let create = catalogue::creation(definition, database, n, is_full);
    let mut waited = Duration::ZERO;
    loop {
        if catalogue::info(connection, database).await?.is_some() {
            return Ok(());
        }
        let answer = connection.send(&create).await?;
        if answer.is_good() {
            return Ok(());
        }
        // Somebody was quicker, or not all nodes know yet that it was deleted: the next look shows which.
        if !is_passing(&answer) || waited >= PATIENCE {
            return Err(catalogue::refused(&answer, &format!("making `{database}`")));
        }
        connection.pause(PAUSE).await?;
        waited += PAUSE;
    }
}
