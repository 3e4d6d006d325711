//! Documents by leaf: asked for in an order that is theirs, kept as the JSON that came.

use crate::couchdb::attachments::{self, frame};
use crate::couchdb::connection::{Answer, Connection, Method, Request, document_path};
use crate::couchdb::revision::{Envelope, Leaf};
use crate::percent::encoded;
use bk_core::error::{Error, Result, unsupported};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Documents that are asked for together.
pub const MOST: usize = 500;
/// What an answer should weigh at most.
pub const ANSWER_BYTES: usize = 4 << 20;
/// What it may weigh at all, where fewer can be asked for: each request in flight holds one.
const MOST_BYTES: usize = 2 * ANSWER_BYTES;
/// Attachments of a document that come with those of others.
const SMALL_BYTES: u64 = 256 << 10;
/// A document with more is read as it comes.
pub const LARGE_BYTES: u64 = 12 << 20;
/// How often an answer that cannot be read is asked for again.
const TRIES: u32 = 3;

/// A leaf as it goes into an archive.
pub enum Document {
    /// Its JSON.
    Plain(Bytes),
    /// It and its attachments.
    Framed(Vec<u8>),
    /// Its attachments are too large to be held.
    Large,
}

/// What came of those that were asked for.
#[derive(Default)]
pub struct Fetched {
    /// In the order in which they were asked for.
    pub documents: Vec<(Leaf, Document)>,
    /// Those that are not there.
    pub missing: Vec<Leaf>,
    /// What the answer weighed.
    pub bytes: usize,
    /// Of how many it was.
    pub asked: usize,
    /// Those that were not asked for: together they were too much. They follow.
    pub left: Vec<Leaf>,
}

#[derive(Deserialize)]
struct Got<'a> {
    #[serde(borrow)]
    results: Vec<OfId<'a>>,
}

#[derive(Deserialize)]
struct OfId<'a> {
    #[serde(borrow)]
    docs: Vec<One<'a>>,
}

#[derive(Deserialize)]
struct One<'a> {
    #[serde(borrow, default)]
    ok: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// Which revisions an answer may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that were asked for.
    Exact,
    /// Where one was replaced meanwhile, what replaced it.
    Latest,
}

/// A server's answer, as far as it is kept.
struct Kept {
    leaf: Leaf,
    json: Bytes,
    /// Bytes of its attachments, where it has some.
    attached: Option<u64>,
}

/// Reads leaves of a database, as many as an answer holds: the rest is `left`.
pub async fn fetch(
    connection: &Connection,
    (database, is_full): (&str, bool),
    mut leaves: Vec<Leaf>,
    which: Which,
) -> Result<Fetched> {
    let mut left = Vec::new();
    let (mut kept, bytes) = loop {
        let asked = ask(connection, (database, is_full), &leaves, which).await?;
        if let Some(asked) = asked {
            break asked;
        }
        let mut later = leaves.split_off(leaves.len() / 2);
        later.append(&mut left);
        left = later;
    };
    let there: HashSet<&Leaf> = kept.iter().map(|kept| &kept.leaf).collect();
    let missing = match which {
        Which::Exact => leaves
            .iter()
            .filter(|leaf| !there.contains(leaf))
            .cloned()
            .collect(),
        Which::Latest => {
            let ids: HashSet<&str> = kept.iter().map(|kept| kept.leaf.id.as_str()).collect();
            leaves
                .iter()
                .filter(|leaf| !ids.contains(leaf.id.as_str()))
                .cloned()
                .collect()
        }
    };
    let fit = fit(&kept, is_full);
    let later = kept.split_off(fit).into_iter().map(|kept| kept.leaf);
    left.splice(0..0, later);
    let mut fetched = Fetched {
        bytes,
        asked: fit,
        left,
        missing,
        documents: Vec::with_capacity(kept.len()),
    };
    let mut frames = small_frames(connection, (database, is_full), &kept).await?;
    for kept in kept {
        let document = match kept.attached {
            // What has no form of its own for attachments has them in its JSON.
            Some(_) if !is_full => Document::Plain(kept.json),
            None => Document::Plain(kept.json),
            Some(bytes) if bytes > LARGE_BYTES => Document::Large,
            Some(_) => {
                let frame = match frames.remove(&kept.leaf) {
                    Some(frame) => Some(frame),
                    None => alone(connection, database, &kept.leaf).await?,
                };
                let Some(frame) = frame else {
                    fetched.missing.push(kept.leaf);
                    continue;
                };
                fetched.bytes += frame.len();
                Document::Framed(frame)
            }
        };
        fetched.documents.push((kept.leaf, document));
    }
    Ok(fetched)
}

/// How many of them can be held with their attachments: at least one.
fn fit(kept: &[Kept], is_full: bool) -> usize {
    let mut bytes = 0;
    let held = |kept: &Kept| kept.attached.filter(|b| is_full && *b <= LARGE_BYTES);
    let fit = kept.iter().take_while(|kept| {
        bytes += held(kept).unwrap_or(0);
        bytes <= MOST_BYTES as u64
    });
    fit.count().max(1).min(kept.len())
}

/// Without attachments; a server that has no form of its own for them sends them in its JSON. Nothing where fewer must be asked for.
async fn ask(
    connection: &Connection,
    (database, is_full): (&str, bool),
    leaves: &[Leaf],
    which: Which,
) -> Result<Option<(Vec<Kept>, usize)>> {
    let inline = if is_full { "" } else { "&attachments=true" };
    let latest = if which == Which::Latest {
        "&latest=true"
    } else {
        ""
    };
    let path = format!("/{}/_bulk_get?revs=true{inline}{latest}", encoded(database));
    let request = Request::new(Method::POST, path).json(wanted(leaves));
    let reading = format!("reading documents of `{database}`");
    let mut tries = 0;
    loop {
        let answer = match leaves {
            [_] => Some(connection.send(&request).await?),
            _ => connection.send_in_parts(&request, MOST_BYTES).await?,
        };
        let Some(answer) = answer else {
            return Ok(None);
        };
        if matches!(answer.status, 404 | 405) && answer.word() != "not_found" {
            return Err(unsupported(format!(
                "{reading}: the server has no `_bulk_get`, as those before CouchDB 2"
            )));
        }
        let answer = answer.good(&reading)?;
        match kept(&answer, leaves, which) {
            Ok(kept) => return Ok(Some((kept, answer.body.len()))),
            Err(error) if tries == TRIES => return Err(error.within(reading)),
            Err(_) => tries += 1,
        }
    }
}

fn wanted(leaves: &[Leaf]) -> String {
    let wanted: Vec<_> = leaves
        .iter()
        .map(|leaf| json!({ "id": leaf.id, "rev": leaf.rev }))
        .collect();
    json!({ "docs": wanted }).to_string()
}

fn kept(answer: &Answer, leaves: &[Leaf], which: Which) -> Result<Vec<Kept>> {
    let got: Got<'_> = serde_json::from_slice(&answer.body)
        .map_err(|e| Error::corrupt("the server's answer cannot be read").because(e))?;
    let mut by_leaf: HashMap<Leaf, Kept> = HashMap::with_capacity(leaves.len());
    for one in got.results.iter().flat_map(|of_id| &of_id.docs) {
        let Some(raw) = one.ok else {
            let why = one.error.map_or("nothing", RawValue::get);
            if why.contains("not_found") {
                continue;
            }
            return Err(Error::corrupt(format!("a document was not read: {why}")));
        };
        let envelope: Envelope<'_> = serde_json::from_str(raw.get())
            .map_err(|e| Error::corrupt("a document cannot be read").because(e))?;
        let leaf = Leaf {
            id: envelope.id.into_owned(),
            rev: envelope.rev.into_owned(),
        };
        let listed = attachments::listed(envelope.attachments)?;
        let attached = (!listed.is_empty()).then(|| {
            listed
                .iter()
                .map(|(_, attachment)| attachment.stored())
                .sum()
        });
        let json = answer.body.slice_ref(raw.get().as_bytes());
        by_leaf.insert(
            leaf.clone(),
            Kept {
                leaf,
                json,
                attached,
            },
        );
    }
    let mut found: Vec<Kept> = leaves
        .iter()
        .filter_map(|leaf| by_leaf.remove(leaf))
        .collect();
    if which == Which::Latest {
        let mut others: Vec<Kept> = by_leaf.into_values().collect();
        others.sort_by(|a, b| a.leaf.cmp(&b.leaf));
        found.extend(others);
    }
    Ok(found)
}

/// Frames of the documents whose attachments are small, many in one answer.
async fn small_frames(
    connection: &Connection,
    (database, is_full): (&str, bool),
    kept: &[Kept],
) -> Result<HashMap<Leaf, Vec<u8>>> {
    let mut frames = HashMap::new();
    if !is_full {
        return Ok(frames);
    }
    let small: Vec<(&Leaf, u64)> = kept
        .iter()
        .filter_map(|kept| Some((&kept.leaf, kept.attached.filter(|b| *b <= SMALL_BYTES)?)))
        .collect();
    let mut rest = &small[..];
    while !rest.is_empty() {
        let mut bytes = 0;
        let fit = rest
            .iter()
            .take_while(|(_, len)| {
                bytes += len;
                bytes <= ANSWER_BYTES as u64
            })
            .count()
            .max(1);
        let (now, later) = rest.split_at(fit);
        rest = later;
        let leaves: Vec<Leaf> = now.iter().map(|(leaf, _)| (*leaf).clone()).collect();
        framed_together(connection, database, &leaves, &mut frames).await?;
    }
    Ok(frames)
}

async fn framed_together(
    connection: &Connection,
    database: &str,
    leaves: &[Leaf],
    frames: &mut HashMap<Leaf, Vec<u8>>,
) -> Result<()> {
    let path = format!(
        "/{}/_bulk_get?revs=true&attachments=true",
        encoded(database)
    );
    let request = Request::new(Method::POST, path)
        .accept("multipart/mixed")
        .json(wanted(leaves));
    let reading = format!("reading attachments of `{database}`");
    let mut tries = 0;
    loop {
        let answer = connection.send(&request).await?.good(&reading)?;
        // Those that have no such form are asked for one by one.
        let Some(boundary) = attachments::boundary_of(&answer.kind) else {
            return Ok(());
        };
        match attachments::mixed(&answer.body, boundary) {
            Ok(sent) => {
                for sent in sent {
                    let leaf = leaf_of(sent.json)?;
                    if leaves.contains(&leaf) && !sent.parts.is_empty() {
                        frames.insert(leaf, frame(sent.json, &sent.parts));
                    }
                }
                return Ok(());
            }
            Err(error) if tries == TRIES => return Err(error.within(reading)),
            Err(_) => tries += 1,
        }
    }
}

/// Which document a JSON is.
pub fn leaf_of(json: &[u8]) -> Result<Leaf> {
    let envelope: Envelope<'_> = serde_json::from_slice(json)
        .map_err(|e| Error::corrupt("a document cannot be read").because(e))?;
    Ok(Leaf {
        id: Cow::into_owned(envelope.id),
        rev: Cow::into_owned(envelope.rev),
    })
}

/// The path of a leaf with all that it has; nothing for an id that no path can say.
pub fn leaf_path(database: &str, leaf: &Leaf) -> Result<String> {
    let path = document_path(database, &leaf.id).ok_or_else(|| {
        unsupported(format!(
            "`{}` has attachments, and no address can name it",
            leaf.id
        ))
    })?;
    Ok(format!(
        "{path}?rev={}&revs=true&attachments=true",
        encoded(&leaf.rev)
    ))
}

/// A frame of its own, from an answer that is held whole; nothing where the leaf is not there any more.
async fn alone(connection: &Connection, database: &str, leaf: &Leaf) -> Result<Option<Vec<u8>>> {
    let request = Request::new(Method::GET, leaf_path(database, leaf)?).accept("multipart/related");
    let reading = format!("reading {} of `{database}`", leaf.shown());
    let mut tries = 0;
    loop {
        let answer = connection.send(&request).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        let answer = answer.good(&reading)?;
        let sent = match attachments::boundary_of(&answer.kind) {
            Some(boundary) => attachments::related(&answer.body, boundary).map(|(sent, _)| sent),
            None => Err(Error::corrupt(format!(
                "the server sent `{}` where documents with attachments were asked for",
                answer.kind
            ))),
        };
        match sent {
            Ok(sent) if leaf_of(sent.json)? == *leaf => {
                return Ok(Some(frame(sent.json, &sent.parts)));
            }
            Ok(_) => return Err(Error::corrupt(format!("{reading}: another document came"))),
            Err(error) if tries == TRIES => return Err(error.within(reading)),
            Err(_) => tries += 1,
        }
    }
}
