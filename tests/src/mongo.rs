//! Servers that speak MongoDB's protocol, and everything that is in them in a form that can be compared: SecantusDB, which behaves as a replica
//! set, or the real one that `MONGODB_URI` names.

use crate::database::free_port;
use crate::script::Script;
use bk_core::settings::Settings;
use bk_core::source::Source;
use bk_sources::mongodb::bson as raw;
use futures::StreamExt;
use mongodb::Client;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use sha1::{Digest, Sha1};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A running server.
pub struct Server {
    /// How to get there.
    pub uri: String,
    port: u16,
    running: Option<(Script, u32)>,
    folder: tempfile::TempDir,
    options: Vec<String>,
}

impl Server {
    /// Starts one on an empty folder, or empties the one that the environment names.
    pub async fn start(options: &[&str]) -> Option<Self> {
        let port = free_port();
        let mut server = Self {
            uri: format!("mongodb://127.0.0.1:{port}/?directConnection=true"),
            port,
            running: None,
            folder: tempfile::Builder::new()
                .prefix("bk-mongo-")
                .tempdir()
                .unwrap(),
            options: options.iter().map(ToString::to_string).collect(),
        };
        if let Ok(uri) = std::env::var("MONGODB_URI") {
            server.uri = uri;
            server.wipe().await;
            return Some(server);
        }
        if let Err(why) = server.run() {
            crate::skip(&format!("SecantusDB did not start: {why}"));
            return None;
        }
        Some(server)
    }

    /// Starts it again, on the data that it has.
    pub fn run(&mut self) -> Result<(), String> {
        let at = (self.folder.path(), self.port);
        let script = Script::start("secantus", at, &self.options, &[])?;
        let pid = script.said.parse();
        let pid = pid.map_err(|_| format!("it said `{}`", script.said))?;
        self.running = Some((script, pid));
        Ok(())
    }

    /// Kills it as a power cut would.
    pub fn kill(&mut self) {
        let Some((script, pid)) = self.running.take() else {
            return;
        };
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        drop(script);
    }

    /// From its next start on it wants to know who comes.
    pub fn require_passwords(&mut self) {
        self.options.push("--auth".into());
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A client of the tests' own.
    pub async fn client(&self) -> Client {
        Client::with_uri_str(&self.uri).await.unwrap()
    }

    /// `[source.NAME]` for it.
    pub fn source_toml(&self, name: &str, more: &str) -> String {
        format!(
            "[source.{name}]\nplugin = \"mongodb\"\nuri = \"{}\"\n{more}",
            self.uri
        )
    }

    /// The source.
    pub fn source(&self, more: serde_json::Value) -> Arc<dyn Source> {
        source(&self.uri, more)
    }

    /// Drops all databases but the server's own.
    pub async fn wipe(&self) {
        let client = self.client().await;
        for name in client.list_database_names().await.unwrap() {
            if !["admin", "config", "local"].contains(&name.as_str()) {
                client.database(&name).drop().await.unwrap();
            }
        }
    }

    /// The documents of a collection as they lie, one behind the other.
    pub async fn documents(&self, database: &str, collection: &str) -> Vec<u8> {
        let client = self.client().await;
        let command = doc! {"find": collection, "hint": {"$natural": 1}};
        let found = list(&client, database, command).await;
        found
            .iter()
            .flat_map(|document| document.as_bytes().to_vec())
            .collect()
    }

    /// All that is in it.
    pub async fn contents(&self) -> BTreeMap<String, Contents> {
        let client = self.client().await;
        let mut all = BTreeMap::new();
        for database in client.list_database_names().await.unwrap() {
            if ["admin", "config", "local"].contains(&database.as_str()) {
                continue;
            }
            for collection in list(&client, &database, doc! {"listCollections": 1}).await {
                let name = raw::text(collection.as_bytes(), "name").unwrap().to_owned();
                let found = contents(&client, &database, &name, &collection).await;
                all.insert(format!("{database}.{name}"), found);
            }
        }
        all
    }
}

/// A source with these settings.
pub fn source(uri: &str, more: serde_json::Value) -> Arc<dyn Source> {
    let mut table = serde_json::json!({ "uri": uri });
    table
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let settings = Settings {
        instance: "mongodb".into(),
        folder: ".".into(),
        table: table.as_object().unwrap().clone(),
    };
    (bk_sources::mongodb::plugin().build)(settings).unwrap()
}

/// What a collection is and holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// What it is.
    pub kind: String,
    /// Options, as they stand.
    pub options: Document,
    /// Indexes, as they stand.
    pub indexes: Vec<Document>,
    /// Documents.
    pub documents: u64,
    /// SHA-1 of each document, by its `_id`, or in order where it is capped.
    pub sums: Vec<(Vec<u8>, [u8; 20])>,
}

impl Contents {
    /// The sum, modulo 2^160, of the documents' SHA-1.
    pub fn sum_of_sha1(&self) -> String {
        let mut total = [0_u8; 20];
        for (_, sum) in &self.sums {
            let mut carry = 0_u16;
            for n in (0..20).rev() {
                let digit = u16::from(total[n]) + u16::from(sum[n]) + carry;
                total[n] = digit as u8;
                carry = digit >> 8;
            }
        }
        total.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

async fn list(client: &Client, database: &str, command: Document) -> Vec<RawDocumentBuf> {
    let command = RawDocumentBuf::try_from(&command).unwrap();
    let database = client.database(database);
    let mut cursor = database
        .run_raw_cursor_command(command)
        .batch()
        .await
        .unwrap();
    let mut found = Vec::new();
    while let Some(batch) = cursor.next().await {
        let batch = batch.unwrap();
        let array = batch.doc_slices().unwrap();
        found.extend(
            raw::documents_of(array.as_bytes())
                .map(|d| RawDocumentBuf::from_bytes(d.to_vec()).unwrap()),
        );
    }
    found
}

async fn contents(
    client: &Client,
    database: &str,
    name: &str,
    listed: &RawDocumentBuf,
) -> Contents {
    let decoded = |bytes: &[u8]| Document::from_reader(bytes).unwrap();
    let kind = raw::text(listed.as_bytes(), "type")
        .unwrap_or("collection")
        .to_owned();
    let options = raw::inner(listed.as_bytes(), "options")
        .map(decoded)
        .unwrap_or_default();
    if kind == "view" {
        return Contents {
            kind,
            options,
            indexes: Vec::new(),
            documents: 0,
            sums: Vec::new(),
        };
    }
    let indexes = list(client, database, doc! {"listIndexes": name}).await;
    let documents = list(
        client,
        database,
        doc! {"find": name, "hint": {"$natural": 1}},
    )
    .await;
    let mut sums: Vec<(Vec<u8>, [u8; 20])> = documents
        .iter()
        .map(|document| {
            let id = raw::id(document.as_bytes()).unwrap_or_default().to_vec();
            (id, Sha1::digest(document.as_bytes()).into())
        })
        .collect();
    if !options.get_bool("capped").unwrap_or(false) {
        sums.sort();
    }
    Contents {
        kind,
        options,
        indexes: indexes
            .iter()
            .map(|index| decoded(index.as_bytes()))
            .collect(),
        documents: documents.len() as u64,
        sums,
    }
}

/// What differs, in words; nothing when all is equal.
pub fn difference(
    before: &BTreeMap<String, Contents>,
    now: &BTreeMap<String, Contents>,
) -> Option<String> {
    let key = before
        .keys()
        .chain(now.keys())
        .find(|key| before.get(*key) != now.get(*key))?;
    let (Some(one), Some(two)) = (before.get(key), now.get(key)) else {
        return Some(format!(
            "{key} is there only {}",
            if before.contains_key(key) {
                "before"
            } else {
                "now"
            }
        ));
    };
    if one.options != two.options || one.kind != two.kind {
        return Some(format!(
            "{key}: {} {:?} became {} {:?}",
            one.kind, one.options, two.kind, two.options
        ));
    }
    if one.indexes != two.indexes {
        return Some(format!("{key}: {:?} became {:?}", one.indexes, two.indexes));
    }
    let differ = one.sums.iter().zip(&two.sums).position(|(a, b)| a != b);
    Some(format!(
        "{key}: {} documents became {}; the first that differs is {differ:?}",
        one.documents, two.documents
    ))
}
