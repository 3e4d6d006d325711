//! `bk config import`: the settings of a PC that fetches, from the file that describes a cluster's machines.

use crate::output::data;
use bk_core::error::{Error, Result, not_found, settings};
use bk_core::report::Cause;
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Where a backup node keeps its archives.
const STORAGE: &str = "/opt/k3s/storage/backup";
/// Where a PC keeps them.
const FOLDER: &str = "~/openedx-backups";

/// `cluster-config.json`, as far as it matters here; the rest is not looked at.
#[derive(Debug, Deserialize)]
struct Cluster {
    #[serde(default)]
    domain: Option<String>,
    nodes: Vec<Node>,
    #[serde(default)]
    couchdb: Option<CouchDb>,
}

#[derive(Debug, Deserialize)]
struct Node {
    name: String,
    #[serde(default)]
    ipv6: Option<String>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    is_backup: bool,
    #[serde(default)]
    ssh_key_path: Option<String>,
}

#[derive(Debug, Deserialize)]
struct CouchDb {
    #[serde(default)]
    user: Option<String>,
    /// Never copied: the settings refer to its place.
    #[serde(default)]
    password: Option<Value>,
}

/// Prints the settings.
pub fn run(path: &Path, node: Option<&str>) -> Result<Vec<Cause>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let place = || format!("`{}`", path.display());
    let cluster: Cluster = serde_json::from_str(&text).map_err(|e| {
        settings(format!("{} does not describe a cluster: {e}", place())).hint(
            "it needs `nodes`, a list of { \"name\": …, \"ipv6\": …, \"user\": …, \"is_backup\": true }",
        )
    })?;
    let node = chosen(&cluster, node).map_err(|e| e.within(place()))?;
    let whole = std::path::absolute(path).map_err(|e| Error::io("find", path, e))?;
    data(printed(&cluster, node, &whole)?.trim_end());
    Ok(Vec::new())
}

/// The backup node: the one that is named, or the only one that says so.
fn chosen<'c>(cluster: &'c Cluster, name: Option<&str>) -> Result<&'c Node> {
    let names = |nodes: &mut dyn Iterator<Item = &Node>| {
        let names: Vec<_> = nodes.map(|node| node.name.clone()).collect();
        names.join(", ")
    };
    let mut all = cluster.nodes.iter();
    if let Some(name) = name {
        let found = cluster.nodes.iter().find(|node| node.name == name);
        return found.ok_or_else(|| {
            not_found(format!("there is no node `{name}`"))
                .hint(format!("the nodes are {}", names(&mut all)))
        });
    }
    let is_backup = |node: &&Node| node.is_backup || node.role.as_deref() == Some("backup");
    let backup: Vec<&Node> = cluster.nodes.iter().filter(is_backup).collect();
    match backup[..] {
        [only] => Ok(only),
        [] => Err(settings("no node has `is_backup` or the role `backup`")
            .hint(format!("name one with --node: {}", names(&mut all)))),
        _ => Err(settings("several nodes are for backups").hint(format!(
            "name one with --node: {}",
            names(&mut backup.iter().copied())
        ))),
    }
}

fn printed(cluster: &Cluster, node: &Node, file: &Path) -> Result<String> {
    let missing = |what: &str| settings(format!("the node `{}` has no `{what}`", node.name));
    let host = node.ipv6.as_deref().ok_or_else(|| missing("ipv6"))?;
    let user = node.user.as_deref().ok_or_else(|| missing("user"))?;
    let key = node
        .ssh_key_path
        .as_deref()
        .map(|path| Ok::<_, Error>(format!("key = {}\n", quoted(&expanded(path)?))))
        .transpose()?
        .unwrap_or_default();
    let domain = cluster.domain.as_deref().unwrap_or("the cluster");
    let file = quoted(&file.display().to_string());
    let host = quoted(host.trim_matches(['[', ']']));
    let (user, folder) = (quoted(user), quoted(&expanded(FOLDER)?));
    let couchdb = cluster.couchdb.as_ref().map(|couchdb| {
        let user = quoted(couchdb.user.as_deref().unwrap_or("admin"));
        let password = couchdb.password.as_ref().map(|_| {
            format!("# password = {{ file = {file}, pointer = \"/couchdb/password\" }}\n")
        });
        format!(
            "\n# To restore into CouchDB from here: add \"couchdb\" to `plugins`, and say where it is.\n# [source.couchdb]\n# url = \"http://127.0.0.1:5984\"\n# user = {user}\n{}",
            password.unwrap_or_default()
        )
    });
    Ok(format!(
        "# Backups of {domain}, fetched from {node}: bk fetch\nformat = 1\nplugins = [\"ssh\", \"local\"]\n\n[archive]\nsite = \"main\"              # as the cluster's own settings say\n\n[sink.node]\nplugin = \"ssh\"\nread_only = true\nhost = {host}\nuser = {user}\n{key}path = \"{STORAGE}\"\n# host_key = [\"ssh-ed25519 AAAA…\"]   # without it ~/.ssh/known_hosts decides\n\n[sink.pc]\nplugin = \"local\"\npath = {folder}\nlayout = \"dates\"\nkeep = {{ last = 10 }}\nfetch = {{ from = \"node\" }}\n{}",
        couchdb.unwrap_or_default(),
        node = node.name.replace(char::is_control, " "),
        domain = domain.replace(char::is_control, " "),
    ))
}

/// A text as TOML writes it; what JSON escapes, TOML escapes alike.
fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

/// `~` is the home of who runs this.
fn expanded(path: &str) -> Result<String> {
    let Some(rest) = path.strip_prefix("~/") else {
        return Ok(path.to_owned());
    };
    let home = std::env::var_os("HOME")
        .ok_or_else(|| settings(format!("`{path}` needs HOME, which is not set")))?;
    Ok(PathBuf::from(home).join(rest).display().to_string())
}
