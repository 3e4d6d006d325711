//! A CouchDB seen from outside: filled, and read to the last leaf, over HTTP alone. `COUCHDB_URL` names a real one, with its account.

use crate::couch_cases::Case;
use crate::couch_fake::Fake;
use reqwest::{Client, Method, Url};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Documents that are read together.
const TOGETHER: usize = 100;
/// How often a database is asked for again that its server has not forgotten yet.
const TRIES: u32 = 100;

/// A server.
pub struct Couch {
    client: Client,
    /// Where it is, without the account.
    pub base: String,
    /// Its account.
    pub account: (String, String),
    /// The simulator, where no other is named.
    pub fake: Option<Fake>,
}

/// What must come back of a database: how it was made, then each leaf by id and revision.
pub type Seen = BTreeMap<String, String>;

impl Couch {
    /// The one of `COUCHDB_URL`, else the simulator.
    pub async fn start() -> Self {
        // A second call finds it installed, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().http1_only().build().unwrap();
        let Ok(named) = std::env::var("COUCHDB_URL") else {
            let account = ("admin".to_owned(), "right".to_owned());
            let fake = Fake::start(Some((&account.0, &account.1))).await;
            return Self {
                client,
                base: fake.url(),
                account,
                fake: Some(fake),
            };
        };
        let mut url = Url::parse(&named).expect("COUCHDB_URL is no address");
        let account = (
            url.username().to_owned(),
            url.password().unwrap_or_default().to_owned(),
        );
        url.set_username("").unwrap();
        url.set_password(None).unwrap();
        Self {
            client,
            base: url.as_str().trim_end_matches('/').to_owned(),
            account,
            fake: None,
        }
    }

    /// Its settings, and a sink.
    pub fn settings(&self, more: &str) -> String {
        let (user, password) = &self.account;
        format!(
            "format = 1\nplugins = [\"couchdb\", \"local\"]\n[source.couchdb]\nurl = \"{}\"\nuser = \"{user}\"\npassword = \"{password}\"\n{more}[sink.local]\npath = \"out\"\n",
            self.base
        )
    }

    /// A request, and its answer as a text.
    pub async fn ask(&self, method: &str, path: &str, body: Option<String>) -> (u16, String) {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let (user, password) = &self.account;
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.base))
            .basic_auth(user, Some(password))
            .header("accept", "application/json");
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn good(&self, method: &str, path: &str, body: Option<String>) -> String {
        let (status, text) = self.ask(method, path, body).await;
        assert!(
            (200..300).contains(&status),
            "{method} {path}: {status} {text}"
        );
        text
    }

    async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.good("GET", path, None).await).unwrap()
    }

    /// Removes a database, where it is there.
    pub async fn drop(&self, name: &str) {
        let (status, text) = self.ask("DELETE", &path_of(name, ""), None).await;
        assert!(matches!(status, 200 | 202 | 404), "{name}: {status} {text}");
    }

    /// Makes a database anew and fills it.
    pub async fn make(&self, case: &Case) {
        self.drop(&case.name).await;
        let path = path_of(
            &case.name,
            &format!("?q={}&partitioned={}", case.q, case.partitioned),
        );
        let mut tries = 0;
        // Not every node knows of a deletion at once.
        while !matches!(self.ask("PUT", &path, None).await.0, 201 | 202) {
            tries += 1;
            assert!(tries < TRIES, "{} cannot be made", case.name);
        }
        for document in &case.documents {
            self.put(&case.name, document).await;
        }
        if let Some(security) = case.security {
            self.good(
                "PUT",
                &path_of(&case.name, "/_security"),
                Some(security.into()),
            )
            .await;
        }
        for (what, limit) in [
            ("/_revs_limit", case.limits.0 as u64),
            ("/_purged_infos_limit", case.limits.1),
        ] {
            self.good("PUT", &path_of(&case.name, what), Some(limit.to_string()))
                .await;
        }
    }

    /// Writes a document; with `_revisions` as a replication does.
    pub async fn put(&self, database: &str, document: &str) {
        let value: Value = serde_json::from_str(document).unwrap();
        let body = match value.get("_revisions") {
            Some(revisions) => {
                let newest = revisions["ids"][0].as_str().unwrap();
                let rest = document.strip_prefix('{').unwrap();
                format!(
                    "{{\"new_edits\":false,\"docs\":[{{\"_rev\":\"{}-{newest}\",{rest}]}}",
                    revisions["start"]
                )
            }
            None => format!("{{\"docs\":[{document}]}}"),
        };
        let said = self
            .good("POST", &path_of(database, "/_bulk_docs"), Some(body))
            .await;
        assert!(!said.contains("\"error\""), "{document:.200}: {said}");
    }

    /// The revision of a document that others see.
    pub async fn winner(&self, database: &str, id: &str) -> Option<(String, Value)> {
        let (status, text) = self
            .ask(
                "GET",
                &path_of(database, &format!("/{}", encoded(id))),
                None,
            )
            .await;
        (status == 200).then(|| {
            let value: Value = serde_json::from_str(&text).unwrap();
            (value["_rev"].as_str().unwrap().to_owned(), value)
        })
    }

    /// All that a database holds, as it is served.
    pub async fn seen(&self, name: &str) -> Seen {
        let info = self.json(&path_of(name, "")).await;
        let mut seen = Seen::new();
        let partitioned = info["props"]["partitioned"].as_bool().unwrap_or(false);
        seen.insert(
            " made".into(),
            format!(
                "q {} n {} partitioned {partitioned}",
                info["cluster"]["q"], info["cluster"]["n"]
            ),
        );
        for what in ["_security", "_revs_limit", "_purged_infos_limit"] {
            let said = self.json(&path_of(name, &format!("/{what}"))).await;
            seen.insert(format!(" {what}"), said.to_string());
        }
        let feed = self.json(&path_of(name, "/_changes?style=all_docs")).await;
        let leaves: Vec<(String, String)> = feed["results"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|row| {
                let id = row["id"].as_str().unwrap().to_owned();
                row["changes"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(move |change| (id.clone(), change["rev"].as_str().unwrap().to_owned()))
                    .collect::<Vec<_>>()
            })
            .collect();
        for some in leaves.chunks(TOGETHER) {
            self.read(name, some, &mut seen).await;
        }
        assert_eq!(seen.len(), leaves.len() + 4, "{name}: a leaf twice");
        seen
    }

    async fn read(&self, name: &str, leaves: &[(String, String)], seen: &mut Seen) {
        let wanted: Vec<Value> = leaves
            .iter()
            .map(|(id, rev)| json!({ "id": id, "rev": rev }))
            .collect();
        let path = path_of(name, "/_bulk_get?revs=true");
        let said = self
            .good("POST", &path, Some(json!({ "docs": wanted }).to_string()))
            .await;
        let said: BulkGot<'_> = serde_json::from_str(&said).unwrap();
        for (of_id, (id, rev)) in said.results.iter().zip(leaves) {
            let document = of_id.docs[0]
                .ok
                .unwrap_or_else(|| panic!("{id} {rev} is not there"));
            let text = if document.get().contains("\"_attachments\":") {
                let query = format!("?rev={rev}&revs=true&att_encoding_info=true");
                let place = match id.strip_prefix("_design/") {
                    Some(of) => format!("_design/{}", encoded(of)),
                    None => encoded(id),
                };
                self.good("GET", &path_of(name, &format!("/{place}{query}")), None)
                    .await
                    .trim()
                    .to_owned()
            } else {
                document.get().to_owned()
            };
            seen.insert(format!("{id} {rev}"), text);
        }
    }
}

#[derive(serde::Deserialize)]
struct BulkGot<'a> {
    #[serde(borrow)]
    results: Vec<OfId<'a>>,
}

#[derive(serde::Deserialize)]
struct OfId<'a> {
    #[serde(borrow)]
    docs: Vec<Got<'a>>,
}

#[derive(serde::Deserialize)]
struct Got<'a> {
    #[serde(borrow)]
    ok: Option<&'a RawValue>,
}

/// An id or a name as it stands in a path.
pub fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// The path of something in a database.
pub fn path_of(database: &str, rest: &str) -> String {
    format!("/{}{rest}", encoded(database))
}
