//! What is asked over HTTP.

use super::documents::{Refused, Telling, following, given, served};
use super::json::{members, quoted};
use super::multipart::{self, Listed};
use super::{Site, tree::Leaf};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::net::TcpStream;

/// Bytes of a chunk of an answer.
const CHUNK: usize = 16 << 10;
/// Wrong tries after which an account is locked.
const TRIES: u32 = 5;

type Body = StreamBody<futures::stream::BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>>;

/// An answer.
struct Answer {
    status: u16,
    kind: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn said(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    Answer {
        status,
        kind: "application/json".into(),
        headers: Vec::new(),
        body: body.into(),
    }
}

fn refused(status: u16, word: &str, why: &str) -> Answer {
    said(
        status,
        format!(
            "{{\"error\":{},\"reason\":{}}}\n",
            quoted(word),
            quoted(why)
        ),
    )
}

impl From<Refused> for Answer {
    fn from(refusal: Refused) -> Self {
        refused(refusal.0, refusal.1, &refusal.2)
    }
}

/// A connection.
pub async fn serve(stream: TcpStream, site: Arc<Mutex<Site>>) {
    let service = hyper::service::service_fn(move |request| answer(site.clone(), request));
    // A client that hangs up ends its connection only.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// What was asked.
struct Asked {
    method: Method,
    /// Parts of the path, as they were written.
    raw: Vec<String>,
    /// The same, decoded.
    path: Vec<String>,
    query: BTreeMap<String, String>,
    accept: String,
    kind: String,
    authorization: Option<String>,
    body: Bytes,
}

impl Asked {
    fn flag(&self, name: &str) -> bool {
        self.query.get(name).is_some_and(|value| value == "true")
    }

    fn text(&self) -> Result<&str, Refused> {
        std::str::from_utf8(&self.body)
            .map_err(|_| Refused(400, "bad_request", "invalid UTF-8 JSON".into()))
    }

    fn telling(&self) -> Telling {
        Telling {
            revisions: self.flag("revs"),
            attachments: if self.flag("attachments") {
                Listed::Inline
            } else if self.flag("att_encoding_info") {
                Listed::StubsWithEncoding
            } else {
                Listed::Stubs
            },
        }
    }
}

fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let pair = [bytes.next().unwrap_or(b'0'), bytes.next().unwrap_or(b'0')];
                out.push(
                    u8::from_str_radix(std::str::from_utf8(&pair).unwrap_or("0"), 16).unwrap_or(0),
                );
            }
            b'+' => out.push(b' '),
            byte => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

async fn answer(
    site: Arc<Mutex<Site>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let header = |name| {
        request
            .headers()
            .get(name)
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned)
    };
    let raw: Vec<String> = request
        .uri()
        .path()
        .trim_start_matches('/')
        .split('/')
        .map(str::to_owned)
        .collect();
    let query = request.uri().query().unwrap_or_default();
    let mut asked = Asked {
        method: request.method().clone(),
        path: raw.iter().map(|part| decoded(part)).collect(),
        query: query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.to_owned(), decoded(value)))
            .collect(),
        raw,
        accept: header(ACCEPT).unwrap_or_default(),
        kind: header(CONTENT_TYPE).unwrap_or_default(),
        authorization: header(AUTHORIZATION),
        body: Bytes::new(),
    };
    let is_gzip = header(CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip");
    asked.body = request
        .into_body()
        .collect()
        .await
        .map_err(std::io::Error::other)?
        .to_bytes();
    if is_gzip {
        let mut plain = Vec::new();
        std::io::Read::read_to_end(
            &mut flate2::read::GzDecoder::new(&asked.body[..]),
            &mut plain,
        )?;
        asked.body = plain.into();
    }
    let mut site = site
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    site.requests
        .push(format!("{} /{}", asked.method, asked.path.join("/")));
    let answer = site.answer(&asked);
    let chunks: Vec<Bytes> = answer
        .body
        .chunks(CHUNK)
        .map(Bytes::copy_from_slice)
        .collect();
    let first = site.chunks;
    site.chunks += chunks.len().max(1) as u64;
    let cut = site
        .faults
        .cut_at_chunk
        .filter(|at| (first..site.chunks).contains(at))
        .map(|at| (at - first) as usize);
    if cut.is_some() {
        site.faults.cut_at_chunk = None;
    }
    drop(site);
    let kept = cut.unwrap_or(chunks.len());
    let pieces = chunks
        .into_iter()
        .take(kept)
        .map(|chunk| Ok(Frame::data(chunk)));
    let end = cut.map(|_| Err(std::io::Error::other("cut")));
    let body = futures::stream::iter(pieces.chain(end).collect::<Vec<_>>()).boxed();
    let mut response = Response::builder()
        .status(answer.status)
        .header(CONTENT_TYPE, answer.kind);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response
        .body(StreamBody::new(body))
        .map_err(std::io::Error::other)
}

impl Site {
    fn answer(&mut self, asked: &Asked) -> Answer {
        if let Some(refusal) = self.login(asked) {
            return refusal;
        }
        if let Some(every) = self.faults.storm
            && self.random().is_multiple_of(every)
        {
            return match self.random() % 3 {
                0 => Answer {
                    headers: vec![("retry-after", "0".into())],
                    ..refused(429, "too_many_requests", "slow down")
                },
                1 => refused(503, "service unavailable", "the server is busy"),
                _ => refused(
                    500,
                    "timeout",
                    "The request could not be processed in a reasonable amount of time.",
                ),
            };
        }
        if self
            .faults
            .max_request
            .is_some_and(|most| asked.body.len() > most)
        {
            return refused(413, "too_large", "the request entity is too large");
        }
        let path: Vec<&str> = asked.path.iter().map(String::as_str).collect();
        match (asked.method.as_str(), path.as_slice()) {
            ("GET", [""]) => said(
                200,
                r#"{"couchdb":"Welcome","version":"3.5.0","git_sha":"x","uuid":"a94c0c4ae6f1d9b0c9d4d5a4b3a2c1d0","features":[],"vendor":{"name":"The Apache Software Foundation"}}"#,
            ),
            ("GET", ["_session"]) => said(
                200,
                r#"{"ok":true,"userCtx":{"name":"admin","roles":["_admin"]},"info":{}}"#,
            ),
            ("GET", ["_membership"]) => said(
                200,
                json!({ "all_nodes": self.nodes.1, "cluster_nodes": self.nodes.0 }).to_string(),
            ),
            ("GET", ["_all_dbs"]) => said(
                200,
                json!(self.databases.keys().collect::<Vec<_>>()).to_string(),
            ),
            (_, [name]) => self.database(asked, name),
            (_, [name, rest @ ..]) => {
                if !self.databases.contains_key(*name) {
                    return refused(404, "not_found", "Database does not exist.");
                }
                self.within(asked, name, rest)
            }
            (_, []) => refused(404, "not_found", "missing"),
        }
    }

    fn login(&mut self, asked: &Asked) -> Option<Answer> {
        use base64::Engine;
        let (user, password) = self.account.clone()?;
        if self.failed_logins >= TRIES {
            return Some(refused(
                403,
                "forbidden",
                "Account is temporarily locked due to multiple authentication failures",
            ));
        }
        let right = base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}"));
        match &asked.authorization {
            Some(given) if *given == format!("Basic {right}") => None,
            Some(_) => {
                self.failed_logins += 1;
                Some(refused(
                    401,
                    "unauthorized",
                    "Name or password is incorrect.",
                ))
            }
            None => Some(refused(401, "unauthorized", "You are not a server admin.")),
        }
    }

    fn database(&mut self, asked: &Asked, name: &str) -> Answer {
        let is_there = self.databases.contains_key(name);
        match asked.method.as_str() {
            "PUT" => {
                // For a while after a deletion not all nodes know of it.
                if self.deletions > 0 && !is_there {
                    self.deletions -= 1;
                    if self.random().is_multiple_of(5) {
                        return match self.random() % 2 {
                            0 => refused(
                                412,
                                "file_exists",
                                "The database could not be created, the file already exists.",
                            ),
                            _ => refused(
                                500,
                                "internal_server_error",
                                "No DB shards could be opened.",
                            ),
                        };
                    }
                }
                if is_there {
                    return refused(
                        412,
                        "file_exists",
                        "The database could not be created, the file already exists.",
                    );
                }
                let number = |key: &str, otherwise| {
                    asked
                        .query
                        .get(key)
                        .and_then(|n| n.parse().ok())
                        .unwrap_or(otherwise)
                };
                let n = number("n", 3).min(self.nodes.0.len() as u32);
                self.create(name, number("q", 2), n, asked.flag("partitioned"));
                said(201, "{\"ok\":true}\n")
            }
            _ if !is_there => refused(404, "not_found", "Database does not exist."),
            "DELETE" => {
                self.databases.remove(name);
                self.deletions = 3;
                said(200, "{\"ok\":true}\n")
            }
            "GET" | "HEAD" => {
                let seq = self.stands(name);
                let database = &self.databases[name];
                let (living, deleted) = database.counts();
                said(200, json!({
                    "db_name": name,
                    "purge_seq": format!("{}-purges", database.purges),
                    "update_seq": seq,
                    "sizes": {"file": 1, "external": 1, "active": 1},
                    "props": if database.partitioned { json!({"partitioned": true}) } else { json!({}) },
                    "doc_del_count": deleted,
                    "doc_count": living,
                    "disk_format_version": 8,
                    "compact_running": false,
                    "cluster": {"q": database.q, "n": database.n, "w": 1, "r": 1},
                    "instance_start_time": database.born.to_string(),
                }).to_string())
            }
            "POST" => match self.one_document(asked, name, None) {
                Ok(answer) => answer,
                Err(refusal) => refusal.into(),
            },
            _ => refused(
                405,
                "method_not_allowed",
                "Only DELETE,GET,HEAD,POST allowed",
            ),
        }
    }

    fn within(&mut self, asked: &Asked, name: &str, rest: &[&str]) -> Answer {
        let method = asked.method.as_str();
        let done = match (method, rest) {
            ("GET" | "POST", ["_changes"]) => Ok(self.changes(asked, name)),
            ("POST", ["_bulk_get"]) => self.bulk_get(asked, name),
            ("POST", ["_bulk_docs"]) => self.bulk_docs(asked, name),
            ("GET" | "POST", ["_all_docs"]) => self.all_docs(asked, name),
            ("GET", ["_local_docs"]) => Ok(self.local_docs(name)),
            (_, ["_security"]) => Ok(self.security(asked, name)),
            (_, ["_revs_limit"]) => {
                let database = self.databases.get_mut(name).unwrap();
                if method == "PUT" {
                    database.revs_limit = asked.text().unwrap().trim().parse().unwrap();
                    return said(200, "{\"ok\":true}\n");
                }
                Ok(said(200, format!("{}\n", database.revs_limit)))
            }
            (_, ["_purged_infos_limit"]) => {
                let database = self.databases.get_mut(name).unwrap();
                if method == "PUT" {
                    database.purged_infos_limit = asked.text().unwrap().trim().parse().unwrap();
                    return said(200, "{\"ok\":true}\n");
                }
                Ok(said(200, format!("{}\n", database.purged_infos_limit)))
            }
            ("GET", ["_shards"]) => {
                let q = self.databases[name].q;
                let shards: serde_json::Map<String, Value> = (0..q)
                    .map(|n| (format!("shard-{n}"), json!(self.nodes.0)))
                    .collect();
                Ok(said(200, json!({ "shards": shards }).to_string()))
            }
            (_, ["_local", id]) => self.local(asked, name, id),
            (_, ["_design", id]) => self.document(asked, name, &format!("_design/{id}")),
            // A design document whose slash was encoded is somewhere else.
            (_, [id]) if id.starts_with("_design/") => Ok(Answer {
                headers: vec![("location", format!("/{}/{id}", asked.raw[0]))],
                ..refused(301, "moved", "")
            }),
            (_, [id]) if id.starts_with('_') => Err(Refused(404, "not_found", "missing".into())),
            (_, [id]) => self.document(asked, name, id),
            _ => Err(Refused(404, "not_found", "missing".into())),
        };
        done.unwrap_or_else(Answer::from)
    }

    /// Where the feed of a database stands.
    fn stands(&self, name: &str) -> String {
        sequence(&self.databases[name].writes)
    }

    fn changes(&mut self, asked: &Asked, name: &str) -> Answer {
        let database = &self.databases[name];
        let since = match asked.query.get("since").map_or("0", String::as_str) {
            "0" => vec![0; database.q as usize],
            "now" => database.writes.clone(),
            text => {
                let positions = positions(text);
                // One of another database, or of other shards, goes back to the beginning.
                if positions.len() == database.q as usize {
                    positions
                } else {
                    vec![0; database.q as usize]
                }
            }
        };
        let mut shards: Vec<Vec<(u64, String)>> = vec![Vec::new(); database.q as usize];
        for (id, tree) in &database.documents {
            let shard = database.shard(id);
            if tree.written > since[shard] {
                shards[shard].push((tree.written, id.clone()));
            }
        }
        shards.iter_mut().for_each(|shard| {
            shard.sort();
            shard.reverse();
        });
        let total: usize = shards.iter().map(Vec::len).sum();
        let limit = asked
            .query
            .get("limit")
            .and_then(|n| n.parse().ok())
            .unwrap_or(usize::MAX);
        let interval: usize = asked
            .query
            .get("seq_interval")
            .and_then(|n| n.parse().ok())
            .unwrap_or(1);
        let mut positions = since;
        let mut rows = Vec::new();
        while rows.len() < limit && shards.iter().any(|shard| !shard.is_empty()) {
            let filled: Vec<usize> = (0..shards.len())
                .filter(|n| !shards[*n].is_empty())
                .collect();
            let shard = filled[(self.random() % filled.len() as u64) as usize];
            let (written, id) = shards[shard].pop().unwrap();
            positions[shard] = written;
            let tree = &self.databases[name].documents[&id];
            let leaves = if asked
                .query
                .get("style")
                .is_some_and(|style| style == "all_docs")
            {
                tree.sorted()
            } else {
                vec![tree.winner()]
            };
            let changes: Vec<String> = leaves
                .iter()
                .map(|leaf| format!("{{\"rev\":{}}}", quoted(&leaf.rev())))
                .collect();
            let seq = if (rows.len() + 1) % interval == 0 {
                quoted(&sequence(&positions))
            } else {
                "null".into()
            };
            let deleted = if tree.winner().deleted {
                ",\"deleted\":true"
            } else {
                ""
            };
            rows.push(format!(
                "{{\"seq\":{seq},\"id\":{},\"changes\":[{}]{deleted}}}",
                quoted(&id),
                changes.join(",")
            ));
        }
        let pending = total - rows.len();
        if self.faults.torn_feeds > 0 && rows.len() > 2 {
            self.faults.torn_feeds -= 1;
            rows.truncate(2);
            return said(200, format!("{{\"results\":[\n{}\n", rows.join(",\n")));
        }
        let last = sequence(&positions);
        said(
            200,
            format!(
                "{{\"results\":[\n{}\n],\n\"last_seq\":{},\"pending\":{pending}}}\n",
                rows.join(",\n"),
                quoted(&last)
            ),
        )
    }

    fn bulk_get(&mut self, asked: &Asked, name: &str) -> Result<Answer, Refused> {
        let body: Value = serde_json::from_slice(&asked.body)
            .map_err(|e| Refused(400, "bad_request", e.to_string()))?;
        let mut telling = asked.telling();
        let mixed = asked.accept.contains("multipart/");
        if mixed && asked.flag("attachments") {
            telling.attachments = Listed::Follow;
        }
        self.in_time(body["docs"].as_array().map_or(0, Vec::len))?;
        let outer = self.boundary();
        let compacted = self.faults.compacted;
        let (mut results, mut parts) = (Vec::new(), Vec::new());
        for wanted in body["docs"].as_array().cloned().unwrap_or_default() {
            let id = wanted["id"].as_str().unwrap_or_default().to_owned();
            let found: Vec<Leaf> =
                self.databases[name]
                    .documents
                    .get(&id)
                    .map_or_else(Vec::new, |tree| {
                        let Some(rev) = wanted["rev"].as_str() else {
                            return tree.sorted().into_iter().cloned().collect();
                        };
                        let kept = if compacted { &[][..] } else { &tree.old };
                        let exact: Vec<Leaf> = tree
                            .leaf(rev)
                            .or_else(|| kept.iter().find(|leaf| leaf.rev() == rev))
                            .into_iter()
                            .cloned()
                            .collect();
                        if !exact.is_empty() || !asked.flag("latest") {
                            return exact;
                        }
                        let (start, digits) = rev.split_once('-').unwrap_or(("0", ""));
                        let start = start.parse().unwrap_or(0);
                        tree.leaves
                            .iter()
                            .filter(|leaf| leaf.descends_from(start, digits))
                            .cloned()
                            .collect()
                    });
            let mut docs = Vec::new();
            for leaf in &found {
                let json = served(&id, leaf, telling);
                if mixed {
                    if leaf.attachments.is_empty() || !asked.flag("attachments") {
                        parts.push(
                            [
                                &b"\r\nContent-Type: application/json\r\n\r\n"[..],
                                json.as_bytes(),
                            ]
                            .concat(),
                        );
                    } else {
                        let inner = self.boundary();
                        let head = format!(
                            "\r\nContent-Type: multipart/related; boundary=\"{inner}\"\r\n\r\n"
                        );
                        parts.push(
                            [head.into_bytes(), multipart::related(&json, leaf, &inner)].concat(),
                        );
                    }
                }
                docs.push(format!("{{\"ok\":{json}}}"));
            }
            if found.is_empty() {
                let rev = wanted["rev"]
                    .as_str()
                    .map_or("\"undefined\"".into(), quoted);
                let error = format!(
                    "{{\"id\":{},\"rev\":{rev},\"error\":\"not_found\",\"reason\":\"missing\"}}",
                    quoted(&id)
                );
                parts.push(
                    format!("\r\nContent-Type: application/json; error=\"true\"\r\n\r\n{error}")
                        .into_bytes(),
                );
                docs.push(format!("{{\"error\":{error}}}"));
            }
            results.push(format!(
                "{{\"id\":{},\"docs\":[{}]}}",
                quoted(&id),
                docs.join(",")
            ));
        }
        self.after_reading(name);
        if mixed {
            let mut body = format!("--{outer}").into_bytes();
            for part in parts {
                body.extend_from_slice(&part);
                body.extend_from_slice(format!("\r\n--{outer}").as_bytes());
            }
            body.extend_from_slice(b"--");
            return Ok(Answer {
                kind: format!("multipart/mixed; boundary=\"{outer}\""),
                ..said(200, body)
            });
        }
        Ok(said(
            200,
            format!("{{\"results\": [{}]}}", results.join(",")),
        ))
    }

    fn after_reading(&mut self, name: &str) {
        if self.faults.replaced_while_read.as_deref() == Some(name) {
            self.faults.replaced_while_read = None;
            let documents = std::mem::take(&mut self.databases.get_mut(name).unwrap().documents);
            let (q, n) = (self.databases[name].q, self.databases[name].n);
            self.create(name, q, n, false);
            self.databases.get_mut(name).unwrap().documents = documents;
        }
        if self.faults.deleted_while_read.as_deref() == Some(name) {
            self.faults.deleted_while_read = None;
            self.databases.remove(name);
        }
        if let Some(mut act) = self.on_read.take() {
            act(self);
            self.on_read = Some(act);
        }
    }

    fn in_time(&self, documents: usize) -> Result<(), Refused> {
        match self.faults.late_over {
            Some(most) if documents > most => Err(Refused(
                500,
                "timeout",
                "The request could not be processed in a reasonable amount of time.".into(),
            )),
            _ => Ok(()),
        }
    }

    fn bulk_docs(&mut self, asked: &Asked, name: &str) -> Result<Answer, Refused> {
        let members = members(asked.text()?).map_err(|e| Refused(400, "bad_request", e))?;
        let member = |wanted: &str| {
            members
                .iter()
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.get())
        };
        let docs: Vec<Box<serde_json::value::RawValue>> = member("docs")
            .and_then(|docs| serde_json::from_str(docs).ok())
            .ok_or_else(|| {
                Refused(
                    400,
                    "bad_request",
                    "POST body must include `docs` parameter.".into(),
                )
            })?;
        let docs: Vec<String> = docs.iter().map(|doc| doc.get().to_owned()).collect();
        let as_they_are = member("new_edits") == Some("false");
        self.in_time(docs.len())?;
        self.bulk(name, &docs, as_they_are)
            .map(|answer| said(201, answer))
    }

    fn all_docs(&mut self, asked: &Asked, name: &str) -> Result<Answer, Refused> {
        let database = &self.databases[name];
        let keys: Option<Vec<String>> = if asked.body.is_empty() {
            None
        } else {
            let body: Value = serde_json::from_slice(&asked.body)
                .map_err(|e| Refused(400, "bad_request", e.to_string()))?;
            serde_json::from_value(body["keys"].clone()).ok()
        };
        let telling = asked.telling();
        let row = |id: &String| {
            let Some(tree) = database.documents.get(id) else {
                return format!("{{\"key\":{},\"error\":\"not_found\"}}", quoted(id));
            };
            let leaf = tree.winner();
            let deleted = if leaf.deleted {
                ",\"deleted\":true"
            } else {
                ""
            };
            let doc = match (asked.flag("include_docs"), leaf.deleted) {
                (false, _) => String::new(),
                (true, true) => ",\"doc\":null".into(),
                (true, false) => format!(",\"doc\":{}", served(id, leaf, telling)),
            };
            format!(
                "{{\"id\":{0},\"key\":{0},\"value\":{{\"rev\":{1}{deleted}}}{doc}}}",
                quoted(id),
                quoted(&leaf.rev())
            )
        };
        let rows: Vec<String> = match &keys {
            Some(keys) => keys.iter().map(row).collect(),
            None => database
                .documents
                .iter()
                .filter(|(_, tree)| !tree.winner().deleted)
                .map(|(id, _)| row(id))
                .collect(),
        };
        let total = database.counts().0;
        Ok(said(
            200,
            format!(
                "{{\"total_rows\":{total},\"offset\":0,\"rows\":[\n{}\n]}}\n",
                rows.join(",\n")
            ),
        ))
    }

    fn local_docs(&self, name: &str) -> Answer {
        let rows: Vec<String> = self.databases[name]
            .local
            .iter()
            .map(|(id, (n, body))| {
                let comma = if body.is_empty() { "" } else { "," };
                format!("{{\"id\":{0},\"key\":{0},\"value\":{{\"rev\":\"0-{n}\"}},\"doc\":{{\"_id\":{0},\"_rev\":\"0-{n}\"{comma}{body}}}}}", quoted(id))
            })
            .collect();
        said(
            200,
            format!(
                "{{\"total_rows\":null,\"offset\":null,\"rows\":[{}]}}",
                rows.join(",")
            ),
        )
    }

    fn local(&mut self, asked: &Asked, name: &str, id: &str) -> Result<Answer, Refused> {
        let id = format!("_local/{id}");
        let database = self.databases.get_mut(name).unwrap();
        let there = database.local.get(&id).cloned();
        match asked.method.as_str() {
            "PUT" => {
                let given = given(asked.text()?)?;
                let n = there.map_or(0, |(n, _)| n);
                if given.rev.is_some_and(|rev| rev != format!("0-{n}")) || n > 0 {
                    return Err(Refused(409, "conflict", "Document update conflict.".into()));
                }
                database.local.insert(id.clone(), (n + 1, given.body));
                Ok(said(
                    201,
                    format!(
                        "{{\"ok\":true,\"id\":{},\"rev\":\"0-{}\"}}",
                        quoted(&id),
                        n + 1
                    ),
                ))
            }
            "GET" => match there {
                Some((n, body)) => Ok(said(
                    200,
                    format!("{{\"_id\":{},\"_rev\":\"0-{n}\",{body}}}", quoted(&id)),
                )),
                None => Err(Refused(404, "not_found", "missing".into())),
            },
            _ => Err(Refused(405, "method_not_allowed", String::new())),
        }
    }

    fn security(&mut self, asked: &Asked, name: &str) -> Answer {
        const FRESH: &str = r#"{"members":{"roles":["_admin"]},"admins":{"roles":["_admin"]}}"#;
        if asked.method == Method::PUT {
            if name == "_users" {
                return refused(
                    403,
                    "forbidden",
                    "You can't edit the security object of the user database.",
                );
            }
            let text = std::str::from_utf8(&asked.body).unwrap().to_owned();
            self.databases.get_mut(name).unwrap().security = Some(text);
            return said(200, "{\"ok\":true}\n");
        }
        let set = self.databases[name].security.clone();
        said(200, format!("{}\n", set.unwrap_or_else(|| FRESH.into())))
    }

    fn document(&mut self, asked: &Asked, name: &str, id: &str) -> Result<Answer, Refused> {
        match asked.method.as_str() {
            "GET" => self.get_document(asked, name, id),
            "PUT" => self.one_document(asked, name, Some(id)),
            "DELETE" => {
                let rev = asked.query.get("rev").cloned();
                let document = json!({ "_id": id, "_rev": rev, "_deleted": true }).to_string();
                let given = given(&document)?;
                let rev = self.write(name, given, Vec::new(), false)?;
                Ok(said(
                    200,
                    format!(
                        "{{\"ok\":true,\"id\":{},\"rev\":{}}}\n",
                        quoted(id),
                        quoted(&rev)
                    ),
                ))
            }
            _ => Err(Refused(405, "method_not_allowed", String::new())),
        }
    }

    fn get_document(&mut self, asked: &Asked, name: &str, id: &str) -> Result<Answer, Refused> {
        let missing = || Refused(404, "not_found", "missing".into());
        let tree = self.databases[name].documents.get(id).ok_or_else(missing)?;
        let leaf = match asked.query.get("rev") {
            Some(rev) => tree.leaf(rev).ok_or_else(missing)?,
            None => Some(tree.winner())
                .filter(|leaf| !leaf.deleted)
                .ok_or_else(|| Refused(404, "not_found", "deleted".into()))?,
        };
        let leaf = leaf.clone();
        let mut telling = asked.telling();
        // Whoever takes anything gets the form that costs least.
        let wants_parts = asked.accept.contains("multipart/")
            || asked.accept.contains("*/*")
            || asked.accept.is_empty();
        if asked.flag("attachments") && wants_parts && !leaf.attachments.is_empty() {
            telling.attachments = Listed::Follow;
            let boundary = self.boundary();
            let body = multipart::related(&served(id, &leaf, telling), &leaf, &boundary);
            if self.faults.deleted_while_streamed.as_deref() == Some(id) {
                self.faults.deleted_while_streamed = None;
                let document =
                    json!({ "_id": id, "_rev": leaf.rev(), "_deleted": true }).to_string();
                self.put(name, &document);
                // What was on its way ends where it was.
                let mut torn = body;
                torn.truncate(torn.len() / 2);
                return Ok(Answer {
                    kind: format!("multipart/related; boundary=\"{boundary}\""),
                    ..said(200, torn)
                });
            }
            return Ok(Answer {
                kind: format!("multipart/related; boundary=\"{boundary}\""),
                ..said(200, body)
            });
        }
        Ok(said(200, served(id, &leaf, telling)))
    }

    /// PUT or POST of one document, with what follows it.
    fn one_document(
        &mut self,
        asked: &Asked,
        name: &str,
        id: Option<&str>,
    ) -> Result<Answer, Refused> {
        let boundary = asked
            .kind
            .split_once("boundary=")
            .map(|(_, b)| b.trim_matches('"').to_owned());
        let wrong = || {
            Refused(
                400,
                "bad_request",
                "the parts do not fit the document".into(),
            )
        };
        let (text, parts) = match &boundary {
            Some(boundary) => {
                multipart::parts(&asked.body, boundary, following).ok_or_else(wrong)?
            }
            None => (asked.text()?, Vec::new()),
        };
        let mut given = given(text)?;
        if let Some(id) = id {
            id.clone_into(&mut given.id);
        }
        if given.body.len() > self.faults.max_document.unwrap_or(8_000_000) {
            return Err(Refused(413, "document_too_large", given.id));
        }
        if let Some(rev) = asked.query.get("rev") {
            given.rev = Some(rev.clone());
        }
        let as_it_is = asked
            .query
            .get("new_edits")
            .is_some_and(|value| value == "false");
        let attachments = self.attachments(name, &given, &parts)?;
        let (id, deleted) = (given.id.clone(), given.deleted);
        let rev = self.write(name, given, attachments, as_it_is)?;
        let status = if as_it_is && deleted { 200 } else { 201 };
        Ok(said(
            status,
            format!(
                "{{\"ok\":true,\"id\":{},\"rev\":{}}}\n",
                quoted(&id),
                quoted(&rev)
            ),
        ))
    }
}

/// Opaque to everybody else.
fn sequence(positions: &[u64]) -> String {
    use base64::Engine;
    let total: u64 = positions.iter().sum();
    let text = serde_json::to_string(positions).unwrap();
    format!(
        "{total}-{}",
        base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(text)
    )
}

fn positions(text: &str) -> Vec<u64> {
    use base64::Engine;
    let Some((_, encoded)) = text.split_once('-') else {
        return Vec::new();
    };
    base64::prelude::BASE64_URL_SAFE_NO_PAD
        .decode(encoded)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}
