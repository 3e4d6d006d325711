//! Merging: after all leaves of the archive are there, its winners must win. Where another leaf does, the archive's document becomes a new
//! child of that leaf; where the two say the same, nothing is written, so that a second run changes nothing.

use super::writing::{Target, Written};
use super::{AUTH_DESIGN, Restoring, USERS};
use crate::couchdb::attachments::{self, Attachment, Framed};
use crate::couchdb::connection::{Method, Request, encoded};
use crate::couchdb::documents::leaf_of;
use crate::couchdb::json;
use crate::couchdb::member::Kind;
use crate::couchdb::revision::Envelope;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bk_core::error::{Error, Result};
use bk_core::name::hash64;
use bk_core::source::{Existing, Input, Stage};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashMap};

/// Members of a document that are not its own.
const NOT_ITS_OWN: [&str; 5] = ["_id", "_rev", "_revisions", "_attachments", "_deleted"];
/// Documents that are compared together.
const COMPARED: usize = 500;

/// A leaf as it stands in the contest of those of its document: who lives wins, then the longer history, then the larger revision.
type Rank = (bool, u64, String);

/// The archive's winner of each document, by the hash of its id.
#[derive(Default)]
pub struct Winners(HashMap<u64, Rank>);

fn rank(deleted: bool, rev: &str) -> Rank {
    let (generation, digits) = rev.split_once('-').unwrap_or((rev, ""));
    (!deleted, generation.parse().unwrap_or(0), digits.to_owned())
}

impl Winners {
    pub fn see(&mut self, document: &[u8]) -> Result<()> {
        let envelope = envelope(document)?;
        let rank = rank(envelope.deleted, &envelope.rev);
        let best = self.0.entry(hash64(envelope.id.as_bytes())).or_default();
        if *best < rank {
            *best = rank;
        }
        Ok(())
    }

    fn is_winner(&self, document: &[u8]) -> Result<bool> {
        let envelope = envelope(document)?;
        let mine = rank(envelope.deleted, &envelope.rev);
        Ok(self.0.get(&hash64(envelope.id.as_bytes())) == Some(&mine))
    }

    /// Lets the archive's documents win.
    pub async fn settle(&self, target: &Target, documents: &[Bytes]) -> Result<Written> {
        let mut winners = Vec::new();
        for document in documents {
            if self.is_winner(document)? {
                winners.push((&document[..], Vec::new()));
            }
        }
        settle(target, winners).await
    }

    /// The same of documents with attachments.
    pub async fn settle_framed(&self, target: &Target, frames: &[Framed<'_>]) -> Result<Written> {
        let mut winners = Vec::new();
        for framed in frames {
            if self.is_winner(framed.json)? {
                let parts = framed.parts.iter().map(|(_, _, bytes)| *bytes).collect();
                winners.push((framed.json, parts));
            }
        }
        settle(target, winners).await
    }
}

fn envelope(document: &[u8]) -> Result<Envelope<'_>> {
    serde_json::from_slice(document)
        .map_err(|e| Error::corrupt("a document cannot be read").because(e))
}

#[derive(Deserialize)]
struct Rows<'a> {
    #[serde(borrow)]
    rows: Vec<Row<'a>>,
}

#[derive(Deserialize)]
struct Row<'a> {
    #[serde(default)]
    value: Option<Value>,
    #[serde(borrow, default)]
    doc: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Value {
    rev: String,
    #[serde(default)]
    deleted: bool,
}

/// Documents of the archive that win in it, with the bytes of their attachments.
async fn settle(target: &Target, winners: Vec<(&[u8], Vec<&[u8]>)>) -> Result<Written> {
    let mut written = Written::default();
    let comparing = format!("comparing `{}` with the archive", target.database);
    for some in winners.chunks(COMPARED) {
        let ids = some
            .iter()
            .map(|(document, _)| Ok(leaf_of(document)?.id))
            .collect::<Result<Vec<_>>>()?;
        let path = format!("/{}/_all_docs?include_docs=true", encoded(&target.database));
        let body = serde_json::json!({ "keys": ids }).to_string();
        let answer = target
            .connection
            .send(&Request::new(Method::POST, path).json(body))
            .await?
            .good(&comparing)?;
        let rows: Rows<'_> = serde_json::from_slice(&answer.body).map_err(|e| {
            Error::corrupt(format!("{comparing}: the answer cannot be read")).because(e)
        })?;
        if rows.rows.len() != some.len() {
            return Err(Error::corrupt(format!(
                "{comparing}: {} documents were asked for, {} came",
                some.len(),
                rows.rows.len()
            )));
        }
        let mut children = Vec::new();
        for ((document, parts), row) in some.iter().zip(rows.rows) {
            // One that was refused is not there.
            let Some(there) = row.value else { continue };
            if let Some(child) = child(document, parts, &there, row.doc)? {
                children.push(Bytes::from(child));
            }
        }
        if !children.is_empty() {
            let mut edited = target.edit(&children).await?;
            // They are no leaves of the archive.
            edited.documents = 0;
            written.add(edited);
        }
    }
    Ok(written)
}

/// The archive's document as a child of the leaf that wins; nothing where that is the archive's own, or says the same.
fn child(
    document: &[u8],
    parts: &[&[u8]],
    there: &Value,
    body_there: Option<&RawValue>,
) -> Result<Option<Vec<u8>>> {
    let mine = envelope(document)?;
    if mine.rev == there.rev {
        return Ok(None);
    }
    let same = match body_there.filter(|_| !there.deleted) {
        None => mine.deleted && there.deleted,
        Some(body) => !mine.deleted && is_same(document, body.get().as_bytes())?,
    };
    if same {
        return Ok(None);
    }
    let rev = json::quoted(&there.rev);
    let inline = inline(&mine, parts)?;
    let members = json::members(document)?;
    let id = json::quoted(&mine.id);
    let mut child = vec![("_id", id.as_str())];
    // A deletion has no leaf that lives to be a child of where both are deleted: that was the same already.
    child.push(("_rev", rev.as_str()));
    if mine.deleted {
        child.push(("_deleted", "true"));
    }
    if let Some(inline) = &inline {
        child.push(("_attachments", inline));
    }
    child.extend(
        members
            .iter()
            .filter(|(name, _)| !NOT_ITS_OWN.contains(&&**name))
            .map(|(name, value)| (&**name, value.get())),
    );
    Ok(Some(json::object(child)))
}

/// Whether two documents have the same members of their own, and attachments with the same bytes.
fn is_same(one: &[u8], two: &[u8]) -> Result<bool> {
    let own = |document| -> Result<BTreeMap<String, String>> {
        Ok(json::members(document)?
            .into_iter()
            .filter(|(name, _)| !NOT_ITS_OWN.contains(&&**name))
            .map(|(name, value)| (name.into_owned(), value.get().to_owned()))
            .collect())
    };
    let digests = |document| -> Result<BTreeMap<String, Option<String>>> {
        let listed = attachments::listed(envelope(document)?.attachments)?;
        Ok(listed
            .into_iter()
            .map(|(name, a)| (name, a.digest))
            .collect())
    };
    Ok(own(one)? == own(two)? && digests(one)? == digests(two)?)
}

/// Attachments as an edit takes them. What is stored compressed is given as it was: the server compresses it again.
fn inline(envelope: &Envelope<'_>, parts: &[&[u8]]) -> Result<Option<String>> {
    let listed: Vec<(String, Attachment)> = attachments::listed(envelope.attachments)?;
    if listed.is_empty() || envelope.deleted {
        return Ok(None);
    }
    let mut objects = Vec::with_capacity(listed.len());
    for ((name, attachment), bytes) in listed.iter().zip(parts) {
        let kind = json::quoted(&attachment.content_type);
        let bytes = match attachment.encoding.as_deref() {
            None => bytes.to_vec(),
            Some("gzip") => gunzipped(bytes, attachment.length)?,
            Some(other) => {
                return Err(bk_core::error::unsupported(format!(
                    "attachment `{name}` is stored as `{other}`"
                )));
            }
        };
        let data = json::quoted(&BASE64_STANDARD.encode(bytes));
        let object = json::object([("content_type", kind.as_str()), ("data", data.as_str())]);
        objects.push((name.as_str(), String::from_utf8_lossy(&object).into_owned()));
    }
    let all = json::object(
        objects
            .iter()
            .map(|(name, object)| (*name, object.as_str())),
    );
    Ok(Some(String::from_utf8_lossy(&all).into_owned()))
}

fn gunzipped(bytes: &[u8], len: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut out = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes)
        .take(len + 1)
        .read_to_end(&mut out)
        .map_err(|e| Error::corrupt("an attachment cannot be unpacked").because(e))?;
    if out.len() as u64 != len {
        return Err(Error::corrupt(
            "an attachment has another length than its document says",
        ));
    }
    Ok(out)
}

impl Restoring<'_> {
    /// Winners of the archive, for databases that are merged: a look at all documents before the first is written.
    pub(super) async fn find_winners(&mut self, input: &Input) -> Result<()> {
        if self.databases.values().all(|database| !database.merged) {
            return Ok(());
        }
        let mut winners: BTreeMap<String, Winners> = BTreeMap::new();
        for stage in [Stage::Data, Stage::Finish] {
            let members = input.look(stage).await?;
            while let Some(member) = members.next().await? {
                self.cx.check_cancelled()?;
                let (group, path) = (member.unit.0.clone(), member.path.to_string());
                let is_merged = self.databases.get(&group).is_some_and(|d| d.merged);
                let body = member.bytes().await?;
                if !is_merged {
                    continue;
                }
                let winners = winners.entry(group).or_default();
                match Kind::of(&path)? {
                    Kind::Framed => {
                        for framed in attachments::frames(&body)? {
                            winners.see(framed.json)?;
                        }
                    }
                    Kind::Plain => {
                        for document in super::writing::documents(&body)? {
                            winners.see(&document)?;
                        }
                    }
                    Kind::Definition | Kind::Security | Kind::Local => {}
                }
            }
        }
        for (group, winners) in winners {
            if let Some(database) = self.databases.get_mut(&group) {
                database.winners = Some(winners.into());
            }
        }
        Ok(())
    }

    /// `_users` with `replace`: whom the archive has not is deleted, after everybody else is there.
    pub(super) async fn forget_other_users(&mut self) -> Result<()> {
        #[derive(Deserialize)]
        struct Rows {
            rows: Vec<Row>,
        }
        #[derive(Deserialize)]
        struct Row {
            id: String,
            value: Value,
        }
        if self.existing != Existing::Replace {
            return Ok(());
        }
        let users = self
            .databases
            .iter()
            .find(|(_, d)| d.target.database == USERS && d.merged);
        let Some((group, database)) = users else {
            return Ok(());
        };
        if self.failed.contains(group) || self.broken.contains(group) {
            return Ok(());
        }
        let group = group.clone();
        let listing = format!("listing `{USERS}`");
        let answer = self
            .connection
            .get(&format!("/{USERS}/_all_docs"), &listing)
            .await?;
        let rows: Rows = answer.parsed(&listing)?;
        let strangers: Vec<Bytes> = rows
            .rows
            .into_iter()
            .filter(|row| !database.ids.contains(&row.id) && row.id != AUTH_DESIGN)
            .map(|row| {
                serde_json::json!({ "_id": row.id, "_rev": row.value.rev, "_deleted": true })
                    .to_string()
                    .into()
            })
            .collect();
        let target = database.target.clone();
        for some in strangers.chunks(COMPARED) {
            let written = target.edit(some).await?;
            if written.refused > 0 {
                self.fail(&group, format!("`{USERS}`: {}", written.why.join("; ")));
            }
        }
        Ok(())
    }
}
