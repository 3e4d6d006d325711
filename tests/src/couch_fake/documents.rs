//! Documents: taken in as a CouchDB takes them, and served.

use super::json::{members, normalised, quoted};
use super::multipart::{self, Listed};
use super::tree::{Attachment, Leaf, Tree};
use super::{Database, Site};
use bytes::Bytes;
use md5::{Digest as _, Md5};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Write;

/// What a request is refused with.
#[derive(Clone, Debug)]
pub struct Refused(pub u16, pub &'static str, pub String);

/// Kinds that are compressed when they are stored.
const COMPRESSIBLE: [&str; 4] = [
    "text/",
    "application/javascript",
    "application/json",
    "application/xml",
];
/// Members that a document may have besides its own.
const SPECIAL: [&str; 11] = [
    "_id",
    "_rev",
    "_deleted",
    "_revisions",
    "_attachments",
    "_revs_info",
    "_local_seq",
    "_conflicts",
    "_deleted_conflicts",
    "_replication_state",
    "_replication_id",
];

/// A document as it came.
pub struct Given {
    pub id: String,
    pub rev: Option<String>,
    pub revisions: Option<(u64, Vec<String>)>,
    pub deleted: bool,
    pub body: String,
    attachments: Vec<(String, GivenAttachment)>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct GivenAttachment {
    #[serde(default)]
    content_type: Option<String>,
    #[serde(default)]
    revpos: Option<u64>,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    length: Option<u64>,
    #[serde(default)]
    encoded_length: Option<u64>,
    #[serde(default)]
    encoding: Option<String>,
    #[serde(default)]
    data: Option<String>,
    #[serde(default)]
    stub: bool,
    #[serde(default)]
    follows: bool,
}

#[derive(Deserialize)]
struct Revisions {
    start: u64,
    ids: Vec<String>,
}

fn bad(why: impl Into<String>) -> Refused {
    Refused(400, "bad_request", why.into())
}

/// Reads a document.
pub fn given(json: &str) -> Result<Given, Refused> {
    let mut given = Given {
        id: String::new(),
        rev: None,
        revisions: None,
        deleted: false,
        body: String::new(),
        attachments: Vec::new(),
    };
    let mut own = Vec::new();
    for (name, value) in members(json).map_err(bad)? {
        let text = value.get();
        match name.as_str() {
            "_id" => {
                given.id =
                    serde_json::from_str(text).map_err(|_| bad("Document id must be a string"))?
            }
            "_rev" => {
                given.rev = serde_json::from_str(text).map_err(|_| bad("Invalid rev format"))?
            }
            "_deleted" => {
                given.deleted =
                    serde_json::from_str(text).map_err(|_| bad("`_deleted` must be a boolean"))?
            }
            "_revisions" => {
                let revisions: Revisions =
                    serde_json::from_str(text).map_err(|_| bad("_revisions"))?;
                given.revisions = Some((revisions.start, revisions.ids));
            }
            "_attachments" => {
                for (name, value) in members(text).map_err(bad)? {
                    let attachment =
                        serde_json::from_str(value.get()).map_err(|e| bad(e.to_string()))?;
                    given.attachments.push((name, attachment));
                }
            }
            other if SPECIAL.contains(&other) => {}
            other if other.starts_with('_') => {
                return Err(Refused(
                    400,
                    "doc_validation",
                    format!("Bad special document member: {other}"),
                ));
            }
            _ => own.push(format!(
                "{}:{}",
                quoted(&name),
                normalised(text).map_err(bad)?
            )),
        }
    }
    given.body = own.join(",");
    Ok(given)
}

/// Bytes of the parts that must follow a document.
pub fn following(json: &str) -> Option<Vec<usize>> {
    let given = given(json).ok()?;
    let follow = given.attachments.iter().filter(|(_, a)| a.follows);
    follow
        .map(|(_, a)| Some(a.encoded_length.or(a.length)? as usize))
        .collect()
}

fn split(rev: &str) -> Result<(u64, String), Refused> {
    let wrong = || bad("Invalid rev format");
    let (start, id) = rev.split_once('-').ok_or_else(wrong)?;
    let start = start.parse().map_err(|_| wrong())?;
    if start == 0 || id.is_empty() {
        return Err(wrong());
    }
    Ok((start, id.to_owned()))
}

fn digest(stored: &[u8]) -> String {
    use base64::Engine;
    format!(
        "md5-{}",
        base64::prelude::BASE64_STANDARD.encode(Md5::digest(stored))
    )
}

/// Bytes as they are stored: those of some kinds compressed, however few.
fn stored(kind: &str, plain: &[u8]) -> (Bytes, bool) {
    if !COMPRESSIBLE.iter().any(|begins| kind.starts_with(begins)) {
        return (plain.to_vec().into(), false);
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(8));
    gzip.write_all(plain).unwrap();
    (gzip.finish().unwrap().into(), true)
}

impl Site {
    /// `_bulk_docs`: what went wrong with some of them, or why all are refused.
    pub fn bulk(
        &mut self,
        name: &str,
        documents: &[String],
        as_they_are: bool,
    ) -> Result<String, Refused> {
        let limit = self.faults.max_document.unwrap_or(8_000_000);
        let is_partitioned = self.databases[name].partitioned;
        let mut all = Vec::new();
        for json in documents {
            let given = given(json)?;
            // Attachments do not count.
            if given.body.len() > limit {
                return Err(Refused(413, "document_too_large", given.id));
            }
            if as_they_are {
                if given.id.is_empty() {
                    return Err(bad("Document id must not be empty"));
                }
                if given.rev.is_none() && given.revisions.is_none() {
                    return Err(bad("Missing rev"));
                }
                given.rev.as_deref().map(split).transpose()?;
            }
            if is_partitioned && !given.id.starts_with("_design/") && !given.id.contains(':') {
                return Err(Refused(
                    400,
                    "illegal_docid",
                    "Doc id must be of form partition:id".into(),
                ));
            }
            all.push(given);
        }
        let mut ready = Vec::new();
        for given in all {
            let attachments = self.attachments(name, &given, &[])?;
            ready.push((given, attachments));
        }
        let mut said = Vec::new();
        for (given, attachments) in ready {
            let id = given.id.clone();
            match self.write(name, given, attachments, as_they_are) {
                Ok(rev) if !as_they_are => said.push(format!(
                    "{{\"ok\":true,\"id\":{},\"rev\":{}}}",
                    quoted(&id),
                    quoted(&rev)
                )),
                Ok(_) => {}
                Err(Refused(_, word, why)) => said.push(format!(
                    "{{\"id\":{},\"error\":{},\"reason\":{}}}",
                    quoted(&id),
                    quoted(word),
                    quoted(&why)
                )),
            }
        }
        Ok(format!("[{}]", said.join(",")))
    }

    /// Attachments as they will be stored. `parts`: what followed the document.
    pub fn attachments(
        &self,
        name: &str,
        given: &Given,
        parts: &[&[u8]],
    ) -> Result<Vec<Attachment>, Refused> {
        use base64::Engine;
        let known = self.databases[name].documents.get(&given.id);
        let mut parts = parts.iter();
        let mut all = Vec::new();
        for (att_name, a) in &given.attachments {
            if let Some(digest) = &a.digest
                && !digest.starts_with("md5-")
            {
                return Err(Refused(500, "function_clause", String::new()));
            }
            let kind = a
                .content_type
                .clone()
                .unwrap_or_else(|| "application/octet-stream".into());
            let start = given.revisions.as_ref().map_or(1, |(start, _)| *start);
            let mut made = Attachment {
                name: att_name.clone(),
                content_type: kind.clone(),
                revpos: a.revpos.unwrap_or(start),
                ..Attachment::default()
            };
            if a.stub {
                let there = known
                    .into_iter()
                    .flat_map(|tree| &tree.leaves)
                    .flat_map(|leaf| &leaf.attachments)
                    .find(|there| there.name == *att_name);
                let there = there.ok_or_else(|| {
                    Refused(
                        412,
                        "missing_stub",
                        format!("Invalid attachment stub in {} for {att_name}", given.id),
                    )
                })?;
                all.push(there.clone());
                continue;
            }
            if a.follows {
                let part = parts.next().ok_or_else(|| bad("a part is missing"))?;
                if a.encoding.as_deref() == Some("gzip") {
                    (made.stored, made.gzip) = (part.to_vec().into(), true);
                    made.length = a.length.unwrap_or(0);
                } else {
                    (made.stored, made.gzip) = stored(&kind, part);
                    made.length = part.len() as u64;
                }
            } else {
                let data = a.data.as_deref().unwrap_or_default();
                let plain = base64::prelude::BASE64_STANDARD
                    .decode(data)
                    .map_err(|_| bad("Attachment data must be base64"))?;
                (made.stored, made.gzip) = stored(&kind, &plain);
                made.length = plain.len() as u64;
            }
            made.digest = digest(&made.stored);
            all.push(made);
        }
        Ok(all)
    }

    /// Writes a document; its revision.
    pub fn write(
        &mut self,
        name: &str,
        given: Given,
        attachments: Vec<Attachment>,
        as_it_is: bool,
    ) -> Result<String, Refused> {
        let designs = "_design/".to_owned().."_design0".to_owned();
        let forbids = self.databases[name]
            .documents
            .range(designs)
            .any(|(_, tree)| {
                !tree.winner().deleted && tree.winner().body.contains("\"validate_doc_update\"")
            });
        if forbids && given.body.contains("\"forbidden\":true") {
            return Err(Refused(
                403,
                "forbidden",
                "the design document says no".into(),
            ));
        }
        let database = self.databases.get_mut(name).unwrap();
        let shard = database.shard(&given.id);
        let tree = database.documents.entry(given.id.clone()).or_default();
        let leaf = if as_it_is {
            let (start, ids) = match (&given.revisions, &given.rev) {
                (Some((start, ids)), _) => (*start, ids.clone()),
                (None, Some(rev)) => {
                    let (start, id) = split(rev)?;
                    (start, vec![id])
                }
                (None, None) => return Err(bad("Missing rev")),
            };
            Leaf {
                start,
                ids,
                deleted: given.deleted,
                body: given.body,
                attachments,
            }
        } else {
            let parent = match &given.rev {
                Some(rev) => {
                    let (start, id) = split(rev)?;
                    Some(
                        tree.leaves
                            .iter()
                            .find(|leaf| leaf.start == start && leaf.ids[0] == id)
                            .cloned()
                            .ok_or_else(|| {
                                Refused(409, "conflict", "Document update conflict.".into())
                            })?,
                    )
                }
                None => {
                    if tree.leaves.iter().any(|leaf| !leaf.deleted) {
                        return Err(Refused(409, "conflict", "Document update conflict.".into()));
                    }
                    (!tree.leaves.is_empty()).then(|| tree.winner().clone())
                }
            };
            let (start, before) =
                parent.map_or((0, Vec::new()), |parent| (parent.start, parent.ids));
            let sums: Vec<(&str, &str)> = attachments
                .iter()
                .map(|a| (a.name.as_str(), a.digest.as_str()))
                .collect();
            let hashed = format!("{before:?}{}{}{sums:?}", given.deleted, given.body);
            let id = Md5::digest(hashed)
                .iter()
                .fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
            let ids = [vec![id], before].concat();
            Leaf {
                start: start + 1,
                ids,
                deleted: given.deleted,
                body: given.body,
                attachments,
            }
        };
        let rev = leaf.rev();
        if tree.merge(leaf, database.revs_limit) {
            database.writes[shard] += 1;
            tree.written = database.writes[shard];
        }
        Ok(rev)
    }

    /// Writes a document with one attachment, which is not compressed.
    pub fn attach(&mut self, name: &str, id: &str, attachment: &str, kind: &str, bytes: Vec<u8>) {
        let given = given(&format!("{{\"_id\":{}}}", quoted(id))).unwrap();
        let attachment = Attachment {
            name: attachment.into(),
            content_type: kind.into(),
            revpos: 1,
            digest: digest(&bytes),
            length: bytes.len() as u64,
            gzip: false,
            stored: bytes.into(),
        };
        self.write(name, given, vec![attachment], false).unwrap();
    }

    /// The same of one that was compressed by another server.
    pub fn attach_compressed(&mut self, name: &str, id: &str, attachment: &str, plain: &[u8]) {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
        gzip.write_all(plain).unwrap();
        self.attach(name, id, attachment, "text/plain", gzip.finish().unwrap());
        let tree = self.databases.get_mut(name).unwrap().documents.get_mut(id);
        let attachment = &mut tree.unwrap().leaves[0].attachments[0];
        attachment.gzip = true;
        attachment.length = plain.len() as u64;
    }

    /// Writes a document of a test.
    pub fn put(&mut self, name: &str, json: &str) -> String {
        let given = given(json).unwrap();
        let attachments = self.attachments(name, &given, &[]).unwrap();
        let as_it_is = given.revisions.is_some();
        self.write(name, given, attachments, as_it_is).unwrap()
    }
}

/// What of a leaf is told.
#[derive(Clone, Copy, Debug)]
pub struct Telling {
    pub revisions: bool,
    pub attachments: Listed,
}

/// A leaf as it is served.
pub fn served(id: &str, leaf: &Leaf, telling: Telling) -> String {
    let mut members = vec![
        format!("\"_id\":{}", quoted(id)),
        format!("\"_rev\":{}", quoted(&leaf.rev())),
    ];
    if !leaf.body.is_empty() {
        members.push(leaf.body.clone());
    }
    if leaf.deleted {
        members.push("\"_deleted\":true".into());
    }
    if telling.revisions {
        let ids: Vec<String> = leaf.ids.iter().map(|id| quoted(id)).collect();
        members.push(format!(
            "\"_revisions\":{{\"start\":{},\"ids\":[{}]}}",
            leaf.start,
            ids.join(",")
        ));
    }
    if !leaf.attachments.is_empty() {
        members.push(format!(
            "\"_attachments\":{}",
            multipart::listed(leaf, telling.attachments)
        ));
    }
    format!("{{{}}}", members.join(","))
}

impl Database {
    /// Everything that a backup must bring back, as it is served.
    pub fn contents(&self) -> BTreeMap<String, Vec<String>> {
        let telling = Telling {
            revisions: true,
            attachments: Listed::Follow,
        };
        let mut all = BTreeMap::new();
        for (id, tree) in &self.documents {
            let mut leaves: Vec<String> = tree
                .leaves
                .iter()
                .map(|leaf| {
                    let stored: Vec<String> = leaf
                        .attachments
                        .iter()
                        .map(|a| format!("{} {}", a.name, digest(&a.stored)))
                        .collect();
                    format!("{} {stored:?}", served(id, leaf, telling))
                })
                .collect();
            leaves.sort();
            all.insert(id.clone(), leaves);
        }
        all
    }

    /// Documents that live, and that are deleted.
    pub fn counts(&self) -> (usize, usize) {
        let living = self
            .documents
            .values()
            .filter(|tree| !tree.winner().deleted)
            .count();
        (living, self.documents.len() - living)
    }

    /// A document by its name.
    pub fn tree(&self, id: &str) -> Option<&Tree> {
        self.documents.get(id)
    }
}
