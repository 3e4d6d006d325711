//! Merging: after all leaves of the archive are there, its winners must win. Where another leaf does, the archive's document becomes a new
//! child of that leaf; where the two say the same, nothing is written, so that a second run changes nothing.

use super::writing::{Target, Written};
use super::{Restoring, USERS};
use crate::couchdb::attachments::{self, Attachment, Framed};
use crate::couchdb::connection::{Method, Request, document_path};
use crate::couchdb::documents::leaf_of;
use crate::couchdb::json;
use crate::couchdb::member::Kind;
use crate::couchdb::revision::{DESIGN, Envelope, Leaf};
use crate::percent::encoded;
use bk_core::error::{Error, Result};
use bk_core::name::hash64;
use bk_core::source::{Body, Existing, Input, Stage};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Members of a document that are not its own.
const NOT_ITS_OWN: [&str; 5] = ["_id", "_rev", "_revisions", "_attachments", "_deleted"];
/// How often it is looked whether the archive's document wins.
const ROUNDS: usize = 20;
/// Documents that are compared together.
const COMPARED: usize = 500;

/// A leaf as it stands in the contest of those of its document: what was read last counts, for all leaves were read again then; who lives wins,
/// then the longer history, then the larger revision.
type Rank = (u32, bool, u64, String);

/// The archive's winner of each document, by the hash of its id.
#[derive(Default)]
pub struct Winners(HashMap<u64, Rank>);

fn rank(round: u32, deleted: bool, rev: &str) -> Rank {
    let (generation, digits) = rev.split_once('-').unwrap_or((rev, ""));
    let generation = generation.parse().unwrap_or(0);
    (round, !deleted, generation, digits.to_owned())
}

/// In which round a member was read: 0 for what was there at the start.
pub fn round_of(path: &str) -> u32 {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.strip_prefix("changes-")
        .and_then(|rest| rest.split('.').next()?.parse().ok())
        .unwrap_or(0)
}

impl Winners {
    /// Takes a leaf of a round into account.
    pub fn see(&mut self, document: &[u8], round: u32) -> Result<()> {
        let envelope = envelope(document)?;
        let rank = rank(round, envelope.deleted, &envelope.rev);
        let best = self.0.entry(hash64(envelope.id.as_bytes())).or_default();
        if *best < rank {
            *best = rank;
        }
        Ok(())
    }

    fn is_winner(&self, document: &[u8], round: u32) -> Result<bool> {
        let envelope = envelope(document)?;
        let mine = rank(round, envelope.deleted, &envelope.rev);
        Ok(self.0.get(&hash64(envelope.id.as_bytes())) == Some(&mine))
    }

    /// Lets the archive's documents win.
    pub async fn settle(
        &self,
        target: &Target,
        documents: &[Bytes],
        round: u32,
    ) -> Result<Written> {
        let mut winners = Vec::new();
        for document in documents {
            if self.is_winner(document, round)? {
                winners.push((&document[..], Vec::new()));
            }
        }
        settle(target, winners).await
    }

    /// Whether a document with large attachments won; it is too large to be given once more as a child of another.
    pub async fn look_at_large(
        &self,
        target: &Target,
        leaf: &Leaf,
        written: &mut Written,
    ) -> Result<()> {
        let mine = rank(0, false, &leaf.rev);
        if self.0.get(&hash64(leaf.id.as_bytes())) != Some(&mine) {
            return Ok(());
        }
        let rows = winners_there(target, std::slice::from_ref(&leaf.id)).await?;
        let there = Rows::of(&rows)?
            .rows
            .into_iter()
            .next()
            .and_then(|row| row.value);
        if there.is_some_and(|there| there.rev != leaf.rev) {
            written.documents = written.documents.saturating_sub(1);
            written.refuse(
                &leaf.shown(),
                "another revision wins in the target, and its attachments are too large to be written as a change of that one; restore with --existing replace",
            );
        }
        Ok(())
    }

    /// The same of documents with attachments.
    pub async fn settle_framed(
        &self,
        target: &Target,
        frames: &[Framed<'_>],
        round: u32,
    ) -> Result<Written> {
        let mut winners = Vec::new();
        for framed in frames {
            if self.is_winner(framed.json, round)? {
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

impl<'a> Rows<'a> {
    fn of(answer: &'a [u8]) -> Result<Self> {
        serde_json::from_slice(answer)
            .map_err(|e| Error::corrupt("the list of winners cannot be read").because(e))
    }
}

/// What wins in the target, as `_all_docs` tells it.
async fn winners_there(target: &Target, ids: &[String]) -> Result<Bytes> {
    let path = format!("/{}/_all_docs?include_docs=true", encoded(&target.database));
    let body = serde_json::json!({ "keys": ids }).to_string();
    let request = Request::new(Method::POST, path).json(body);
    let answer = target.connection.send(&request).await?;
    let comparing = format!("comparing `{}` with the archive", target.database);
    Ok(answer.good(&comparing)?.body)
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

/// Documents of the archive that win in it, with the bytes of their attachments. A child may uncover another leaf that wins: it is looked again.
async fn settle(target: &Target, winners: Vec<(&[u8], Vec<&[u8]>)>) -> Result<Written> {
    let mut written = Written::default();
    let mut waiting = winners;
    for _ in 0..ROUNDS {
        if waiting.is_empty() {
            return Ok(written);
        }
        let mut again = Vec::new();
        for some in waiting.chunks(COMPARED) {
            again.extend(settle_some(target, some, &mut written).await?);
        }
        waiting = again;
    }
    for (document, _) in waiting {
        let leaf = leaf_of(document)?;
        written.refuse(
            &leaf.shown(),
            "another revision wins in the target again and again",
        );
    }
    Ok(written)
}

/// One look at documents; those that got a child are looked at again.
async fn settle_some<'a>(
    target: &Target,
    some: &[(&'a [u8], Vec<&'a [u8]>)],
    written: &mut Written,
) -> Result<Vec<(&'a [u8], Vec<&'a [u8]>)>> {
    let ids = some
        .iter()
        .map(|(document, _)| Ok(leaf_of(document)?.id))
        .collect::<Result<Vec<_>>>()?;
    let answer = winners_there(target, &ids).await?;
    let rows = Rows::of(&answer)?;
    if rows.rows.len() != some.len() {
        return Err(Error::corrupt(format!(
            "comparing `{}` with the archive: {} documents were asked for, {} came",
            target.database,
            some.len(),
            rows.rows.len()
        )));
    }
    let (mut again, mut children) = (Vec::new(), Vec::new());
    for ((document, parts), row) in some.iter().zip(rows.rows) {
        // One that was refused is not there.
        let Some(there) = row.value else { continue };
        let mine = envelope(document)?;
        if mine.rev == there.rev || is_same(target, document, &there, row.doc).await? {
            continue;
        }
        again.push((*document, parts.clone()));
        let child = child(&mine, document, &there)?;
        if parts.is_empty() {
            children.push(Bytes::from(child));
        } else {
            refused_of(target.edit_framed(&child, parts).await?, written);
        }
    }
    if !children.is_empty() {
        refused_of(target.edit(&children).await?, written);
    }
    // What was refused is not tried again.
    if written.refused > 0 {
        again.clear();
    }
    Ok(again)
}

/// Children are no leaves of the archive: of them it only counts what was refused.
fn refused_of(edited: Written, written: &mut Written) {
    written.add(Written {
        documents: 0,
        ..edited
    });
}

/// The archive's document as a child of the leaf that wins.
fn child(mine: &Envelope<'_>, document: &[u8], there: &Value) -> Result<Vec<u8>> {
    let (id, rev) = (json::quoted(&mine.id), json::quoted(&there.rev));
    let members = json::members(document)?;
    let mut child = vec![("_id", id.as_str()), ("_rev", rev.as_str())];
    if mine.deleted {
        child.push(("_deleted", "true"));
    }
    if let Some(attachments) = mine.attachments.filter(|_| !mine.deleted) {
        child.push(("_attachments", attachments.get()));
    }
    child.extend(
        members
            .iter()
            .filter(|(name, _)| !NOT_ITS_OWN.contains(&&**name))
            .map(|(name, value)| (&**name, value.get())),
    );
    Ok(json::object(child))
}

/// Whether what wins in the target says the same as the archive's document.
async fn is_same(
    target: &Target,
    document: &[u8],
    there: &Value,
    body_there: Option<&RawValue>,
) -> Result<bool> {
    let mine = envelope(document)?;
    let Some(body) = body_there.filter(|_| !there.deleted) else {
        return Ok(mine.deleted && there.deleted);
    };
    let body = body.get().as_bytes();
    if mine.deleted || own(document)? != own(body)? {
        return Ok(false);
    }
    let listed = attachments::listed(mine.attachments)?;
    let listed_there = attachments::listed(envelope(body)?.attachments)?;
    let names = |all: &[(String, Attachment)]| -> BTreeSet<String> {
        all.iter().map(|(name, _)| name.clone()).collect()
    };
    if names(&listed) != names(&listed_there) {
        return Ok(false);
    }
    if listed.iter().all(|(_, a)| a.digest.is_some()) {
        let digests = |all: Vec<(String, Attachment)>| -> BTreeMap<String, Option<String>> {
            all.into_iter().map(|(name, a)| (name, a.digest)).collect()
        };
        return Ok(digests(listed) == digests(listed_there));
    }
    // Those of others came with their bytes alone.
    Ok(data_of(document)? == data_in_target(target, &mine.id, &there.rev).await?)
}

/// A document's own members, without the white space between them.
fn own(document: &[u8]) -> Result<BTreeMap<String, String>> {
    Ok(json::members(document)?
        .into_iter()
        .filter(|(name, _)| !NOT_ITS_OWN.contains(&&**name))
        .map(|(name, value)| (name.into_owned(), json::dense(value.get())))
        .collect())
}

/// Attachments that stand in a document, as they are given.
fn data_of(document: &[u8]) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    let Some(raw) = envelope(document)?.attachments else {
        return Ok(all);
    };
    for (name, raw) in json::members(raw.get().as_bytes())? {
        let fields = json::members(raw.get().as_bytes())?;
        let data = fields.iter().find(|(field, _)| field == "data");
        all.insert(
            name.into_owned(),
            data.map_or(String::new(), |(_, data)| data.get().to_owned()),
        );
    }
    Ok(all)
}

async fn data_in_target(target: &Target, id: &str, rev: &str) -> Result<BTreeMap<String, String>> {
    let Some(path) = document_path(&target.database, id) else {
        return Ok(BTreeMap::new());
    };
    let path = format!("{path}?attachments=true&rev={}", encoded(rev));
    let answer = target.connection.ask(Method::GET, &path).await?;
    if answer.status == 404 {
        return Ok(BTreeMap::new());
    }
    data_of(&answer.good("comparing attachments")?.body)
}

impl Restoring<'_> {
    /// Winners of the archive, for databases that are merged: a look at all documents before the first is written.
    pub(super) async fn find_winners(&mut self, input: &Input) -> Result<()> {
        if self
            .databases
            .values()
            .all(|database| !database.target.merged)
        {
            return Ok(());
        }
        let mut winners: BTreeMap<String, Winners> = BTreeMap::new();
        for stage in [Stage::Data, Stage::Large, Stage::Finish] {
            let members = input.look(stage).await?;
            while let Some(member) = members.next().await? {
                self.cx.check_cancelled()?;
                let (group, path) = (member.unit.0.clone(), member.path.to_string());
                if self.databases.get(&group).is_none_or(|d| !d.target.merged) {
                    continue;
                }
                let winners = winners.entry(group).or_default();
                let round = round_of(&path);
                if let Body::Stream(mut stream) = member.body {
                    let (json, _) = attachments::head_of(&mut stream).await?;
                    while stream.next().await?.is_some() {}
                    winners.see(&json, 0)?;
                    continue;
                }
                let body = member.bytes().await?;
                match Kind::of(&path)? {
                    Kind::Framed => {
                        for framed in attachments::frames(&body)? {
                            winners.see(framed.json, round)?;
                        }
                    }
                    Kind::Plain => {
                        for document in super::writing::documents(&body)? {
                            winners.see(&document, round)?;
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
            .find(|(_, d)| d.target.database == USERS && d.target.merged);
        let Some((group, database)) = users else {
            return Ok(());
        };
        // An archive without a single user is no reason to lock everybody out.
        let is_partial = self.failed.contains(group) || self.broken.contains(group);
        if is_partial || database.ids.is_empty() {
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
            .filter(|row| !database.ids.contains(&row.id) && !row.id.starts_with(DESIGN))
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
