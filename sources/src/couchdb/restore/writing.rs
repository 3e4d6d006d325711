//! Documents into a database: batches that are halved until the one that is refused is alone, attachments as they were stored.

use crate::couchdb::attachments::{self, Attachment, Framed};
use crate::couchdb::connection::{Answer, Connection, Method, Request, document_path};
use crate::couchdb::json;
use crate::couchdb::revision::{Envelope, Leaf};
use crate::percent::encoded;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bk_core::error::{Error, ErrorKind, Result, unsupported};
use bk_core::source::BodyStream;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Documents of one request, and their bytes.
pub const BATCH_DOCUMENTS: usize = 500;
const BATCH_BYTES: usize = 4 << 20;
/// A document with larger attachments is sent alone.
const INLINE_BYTES: usize = 256 << 10;
/// How often a document with attachments is sent.
const TRIES: u32 = 3;
/// Refused documents that are named one by one.
const NAMED: usize = 10;
/// Kinds that a server compresses by itself when they come inline. (CouchDB, `[attachments] compressible_types`)
const COMPRESSIBLE: [&str; 4] = [
    "text/",
    "application/javascript",
    "application/json",
    "application/xml",
];

/// Where documents go.
#[derive(Clone)]
pub struct Target {
    /// The server.
    pub connection: Connection,
    /// The database.
    pub database: String,
    /// Whether it takes attachments as they are stored.
    pub is_full: bool,
    /// Whether it holds what this restore did not write.
    pub merged: bool,
    /// Documents that the server takes together in time.
    pub at_once: Arc<AtomicUsize>,
}

/// What became of documents.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Those that are there now.
    pub documents: u64,
    /// Those that the server refuses.
    pub refused: u64,
    /// Why, for the first of them.
    pub why: Vec<String>,
}

impl Written {
    /// Takes another in.
    pub fn add(&mut self, other: Self) {
        self.documents += other.documents;
        self.refused += other.refused;
        let room = NAMED.saturating_sub(self.why.len());
        self.why.extend(other.why.into_iter().take(room));
    }

    /// One more that the server refuses.
    pub fn refuse(&mut self, leaf: &str, why: &str) {
        self.refused += 1;
        if self.why.len() < NAMED {
            self.why.push(format!("{leaf}: {why}"));
        }
    }
}

/// The documents of a member.
pub fn documents(body: &Bytes) -> Result<Vec<Bytes>> {
    #[derive(Deserialize)]
    struct Docs<'a> {
        #[serde(borrow)]
        docs: Vec<&'a RawValue>,
    }
    let docs: Docs<'_> = serde_json::from_slice(body)
        .map_err(|e| Error::corrupt("a member of documents cannot be read").because(e))?;
    Ok(docs
        .docs
        .iter()
        .map(|raw| body.slice_ref(raw.get().as_bytes()))
        .collect())
}

#[derive(Deserialize)]
struct Failed {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    reason: Option<serde_json::Value>,
}

impl Target {
    /// Writes leaves as they are, in batches.
    pub async fn write(&self, documents: &[Bytes]) -> Result<Written> {
        let mut written = Written::default();
        let mut rest = documents;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fit = rest
                .iter()
                .take(self.at_once.load(Ordering::Relaxed))
                .take_while(|document| {
                    bytes += document.len();
                    bytes <= BATCH_BYTES
                })
                .count()
                .max(1);
            let (now, later) = rest.split_at(fit);
            self.batch(now, true, &mut written).await?;
            rest = later;
        }
        Ok(written)
    }

    /// One request; where it is refused as a whole, its halves.
    async fn batch(
        &self,
        documents: &[Bytes],
        as_they_are: bool,
        written: &mut Written,
    ) -> Result<()> {
        let mut waiting = vec![documents];
        while let Some(documents) = waiting.pop() {
            let Some(answer) = self.post(documents, as_they_are).await? else {
                let half = documents.len() / 2;
                self.at_once.store(half, Ordering::Relaxed);
                let (one, two) = documents.split_at(half);
                waiting.extend([two, one]);
                continue;
            };
            self.grow();
            match answer.status {
                201 | 202 => self.look(&answer, documents.len(), written)?,
                400 | 403 | 404 | 412 | 413 | 415 | 417 | 500 if documents.len() > 1 => {
                    self.refuse_whole_database(&answer)?;
                    let (one, two) = documents.split_at(documents.len() / 2);
                    waiting.extend([two, one]);
                }
                400 | 403 | 412 | 413 | 415 | 417 | 500 => {
                    written.refuse(&named(&documents[0]), &answer.words());
                }
                _ => return Err(answer.refusal(&self.doing())),
            }
        }
        Ok(())
    }

    /// Back to what it was, step by step.
    fn grow(&self) {
        let now = self.at_once.load(Ordering::Relaxed);
        if now < BATCH_DOCUMENTS {
            let next = (now + now / 8 + 1).min(BATCH_DOCUMENTS);
            self.at_once.store(next, Ordering::Relaxed);
        }
    }

    /// What no halving would change.
    fn refuse_whole_database(&self, answer: &Answer) -> Result<()> {
        let is_gone = answer.status == 404;
        let is_denied = answer.status == 403 && !answer.word().contains("partition");
        if is_gone || is_denied {
            return Err(answer.refusal(&self.doing()));
        }
        Ok(())
    }

    fn doing(&self) -> String {
        format!("writing into `{}`", self.database)
    }

    /// Nothing where the server was not done with them in time: that they are sent again in halves does no harm.
    async fn post(&self, documents: &[Bytes], as_they_are: bool) -> Result<Option<Answer>> {
        let begin: &[u8] = if as_they_are {
            b"{\"new_edits\":false,\"docs\":["
        } else {
            b"{\"docs\":["
        };
        let len: usize = documents.iter().map(|document| document.len() + 1).sum();
        let mut body = Vec::with_capacity(begin.len() + len + 2);
        body.extend_from_slice(begin);
        for (n, document) in documents.iter().enumerate() {
            if n > 0 {
                body.push(b',');
            }
            body.extend_from_slice(document);
        }
        body.extend_from_slice(b"]}");
        let path = format!("/{}/_bulk_docs", encoded(&self.database));
        let request = Request::new(Method::POST, path).json(body);
        match documents {
            [_] => self.connection.send(&request).await.map(Some),
            _ => self.connection.send_in_parts(&request, usize::MAX).await,
        }
    }

    /// An answer to leaves lists those alone that were refused.
    fn look(&self, answer: &Answer, sent: usize, written: &mut Written) -> Result<()> {
        let listed: Vec<Failed> = answer.parsed(&self.doing())?;
        let mut refused = 0;
        for failed in listed {
            let Some(error) = failed.error else { continue };
            refused += 1;
            // An edit that came too late: who asked for it looks again.
            if error == "conflict" {
                continue;
            }
            let reason = failed.reason.unwrap_or_default();
            let reason = reason
                .as_str()
                .map_or_else(|| reason.to_string(), str::to_owned);
            let id = failed.id.unwrap_or_default();
            written.refuse(&format!("`{id}`"), &format!("{error}: {reason}"));
        }
        written.documents += (sent as u64).saturating_sub(refused);
        Ok(())
    }

    /// Writes documents as edits of what is there.
    pub async fn edit(&self, documents: &[Bytes]) -> Result<Written> {
        let mut written = Written::default();
        for some in documents.chunks(BATCH_DOCUMENTS) {
            self.batch(some, false, &mut written).await?;
        }
        Ok(written)
    }

    /// Writes a document as an edit of what is there, its attachments as they are stored.
    pub async fn edit_framed(&self, json: &[u8], parts: &[&[u8]]) -> Result<Written> {
        let mut written = Written::default();
        let leaf = leaf(json)?;
        let (path, kind) = self.put_as(&leaf, json)?;
        let request = Request::new(Method::PUT, path).body(kind, attachments::frame(json, parts));
        let answer = self.connection.send(&request).await?;
        match answer.status {
            200..=299 => written.documents += 1,
            // It came too late: who asked for it looks again.
            409 => {}
            _ => written.refuse(&leaf.shown(), &answer.words()),
        }
        Ok(written)
    }

    /// Writes documents with their attachments, as these are stored.
    pub async fn write_framed(&self, frames: &[Framed<'_>], member: &Bytes) -> Result<Written> {
        let mut written = Written::default();
        let mut inline = Vec::new();
        let mut bytes = 0;
        for framed in frames {
            if self.is_full && !is_kept_inline(framed) {
                self.put(framed, member, &mut written).await?;
                continue;
            }
            let document = inlined(framed)?;
            if bytes + document.len() > BATCH_BYTES && !inline.is_empty() {
                written.add(self.write(&std::mem::take(&mut inline)).await?);
                bytes = 0;
            }
            bytes += document.len();
            inline.push(Bytes::from(document));
        }
        written.add(self.write(&inline).await?);
        let expected = frames.iter().map(|framed| (framed.json, &framed.parts));
        let expected = expected
            .map(|(json, parts)| {
                let listed = parts.iter().map(|(name, a, _)| (name.clone(), a.clone()));
                Ok((leaf(json)?, listed.collect()))
            })
            .collect::<Result<Vec<_>>>()?;
        self.compare(&expected, &mut written).await?;
        Ok(written)
    }

    /// One document and its attachments, in the frame that it has.
    async fn put(&self, framed: &Framed<'_>, member: &Bytes, written: &mut Written) -> Result<()> {
        let leaf = leaf(framed.json)?;
        let (path, kind) = self.put_as(&leaf, framed.json)?;
        let path = format!("{path}?new_edits=false");
        let request = Request::new(Method::PUT, path).body(kind, member.slice_ref(framed.whole));
        for _ in 0..TRIES {
            let answer = self.connection.send(&request).await?;
            match Self::acknowledged(&answer, &leaf) {
                Ok(true) => {
                    written.documents += 1;
                    return Ok(());
                }
                Ok(false) => {}
                Err(why) => {
                    written.refuse(&leaf.shown(), &why);
                    return Ok(());
                }
            }
        }
        written.refuse(&leaf.shown(), "the server did not acknowledge it");
        Ok(())
    }

    fn put_as(&self, leaf: &Leaf, json: &[u8]) -> Result<(String, String)> {
        let path = document_path(&self.database, &leaf.id)
            .ok_or_else(|| unsupported(format!("no address can name {}", leaf.shown())))?;
        let kind = format!(
            "multipart/related; boundary=\"{}\"",
            attachments::boundary(json)
        );
        Ok((path, kind))
    }

    /// Whether the server says that it has this very leaf; why it refuses it.
    fn acknowledged(answer: &Answer, leaf: &Leaf) -> Result<bool, String> {
        #[derive(Deserialize)]
        struct Said {
            #[serde(default)]
            id: String,
            #[serde(default)]
            rev: String,
        }
        if !answer.is_good() {
            return Err(answer.words());
        }
        Ok(serde_json::from_slice::<Said>(&answer.body)
            .is_ok_and(|said| said.id == leaf.id && said.rev == leaf.rev))
    }

    /// A document whose attachments are not held: its frame goes as it comes.
    pub async fn put_large(&self, len: u64, mut stream: BodyStream) -> Result<(Leaf, Written)> {
        let (json, head) = attachments::head_of(&mut stream).await?;
        let leaf = leaf(&json)?;
        let envelope: Envelope<'_> = serde_json::from_slice(&json)
            .map_err(|e| Error::corrupt("a document cannot be read").because(e))?;
        let listed = attachments::listed(envelope.attachments)?;
        let mut written = Written::default();
        if !self.is_full {
            while stream.next().await?.is_some() {}
            written.refuse(
                &leaf.shown(),
                "the server takes attachments in JSON alone, and these are too large for that",
            );
            return Ok((leaf, written));
        }
        let (path, kind) = self.put_as(&leaf, &json)?;
        let path = format!("{path}?new_edits=false");
        let first = futures::stream::once(async move { Ok(Bytes::from(head)) });
        let rest = futures::stream::try_unfold(stream, |mut stream| async move {
            let chunk = stream.next().await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(chunk.map(|chunk| (chunk, stream)))
        });
        let body = futures::StreamExt::chain(first, rest);
        let answer = match self.connection.put_stream(&path, &kind, len, body).await {
            Ok(answer) => answer,
            Err(error) if matches!(error.kind, ErrorKind::Auth | ErrorKind::Cancelled) => {
                return Err(error);
            }
            Err(error) => {
                written.refuse(&leaf.shown(), &error.to_string());
                return Ok((leaf, written));
            }
        };
        match Self::acknowledged(&answer, &leaf) {
            Ok(true) => written.documents += 1,
            Ok(false) => written.refuse(&leaf.shown(), "the server did not acknowledge it"),
            Err(why) => written.refuse(&leaf.shown(), &why),
        }
        if written.refused == 0 {
            self.compare(&[(leaf.clone(), listed)], &mut written)
                .await?;
        }
        Ok((leaf, written))
    }

    /// What the server has of attachments must be what was sent: bytes as they are stored, by digest and length.
    async fn compare(
        &self,
        expected: &[(Leaf, Vec<(String, Attachment)>)],
        written: &mut Written,
    ) -> Result<()> {
        #[derive(Deserialize)]
        struct Got {
            results: Vec<OfId>,
        }
        #[derive(Deserialize)]
        struct OfId {
            docs: Vec<One>,
        }
        #[derive(Deserialize)]
        struct One {
            #[serde(default)]
            ok: Option<Found>,
        }
        #[derive(Deserialize)]
        struct Found {
            #[serde(rename = "_id")]
            id: String,
            #[serde(rename = "_rev")]
            rev: String,
            #[serde(rename = "_attachments", default)]
            attachments: HashMap<String, Attachment>,
        }
        let wanted: Vec<_> = expected
            .iter()
            .map(|(leaf, _)| serde_json::json!({ "id": leaf.id, "rev": leaf.rev }))
            .collect();
        let path = format!("/{}/_bulk_get", encoded(&self.database));
        let body = serde_json::json!({ "docs": wanted }).to_string();
        let comparing = format!("comparing attachments of `{}`", self.database);
        let answer = self
            .connection
            .send(&Request::new(Method::POST, path).json(body))
            .await?
            .good(&comparing)?;
        let got: Got = answer.parsed(&comparing)?;
        let found: HashMap<Leaf, HashMap<String, Attachment>> = got
            .results
            .into_iter()
            .flat_map(|of_id| of_id.docs)
            .filter_map(|one| one.ok)
            .map(|found| {
                let leaf = Leaf {
                    id: found.id,
                    rev: found.rev,
                };
                (leaf, found.attachments)
            })
            .collect();
        for (leaf, listed) in expected {
            let there = found.get(leaf);
            let differs = listed.iter().find(|(name, sent)| {
                there.and_then(|there| there.get(name)).is_none_or(|there| {
                    self.is_full && (there.digest != sent.digest || there.length != sent.length)
                })
            });
            if there.is_none() && written.refused == 0 && !self.merged {
                written.documents = written.documents.saturating_sub(1);
                written.refuse(&leaf.shown(), "it was acknowledged and is not there");
                continue;
            }
            // In a database that is merged, a leaf that the target's own history has passed is no leaf any more.
            if let Some((name, _)) = differs
                && there.is_some()
            {
                written.documents = written.documents.saturating_sub(1);
                written.refuse(
                    &leaf.shown(),
                    &format!("attachment `{name}` is not what was sent"),
                );
            }
        }
        Ok(())
    }
}

fn leaf(json: &[u8]) -> Result<Leaf> {
    crate::couchdb::documents::leaf_of(json)
}

fn named(document: &[u8]) -> String {
    leaf(document).map_or_else(|_| "a document".into(), |leaf| leaf.shown())
}

/// Whether a server keeps what comes inline as it is.
fn is_kept_inline(framed: &Framed<'_>) -> bool {
    framed.whole.len() <= INLINE_BYTES
        && framed.parts.iter().all(|(_, attachment, _)| {
            let kind = attachment.content_type.to_ascii_lowercase();
            attachment.encoding.is_none()
                && !COMPRESSIBLE.iter().any(|begins| kind.starts_with(begins))
        })
}

/// The document with its attachments in its JSON.
fn inlined(framed: &Framed<'_>) -> Result<Vec<u8>> {
    if let Some((name, ..)) = framed.parts.iter().find(|(_, a, _)| a.encoding.is_some()) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "attachment `{name}` of {} is stored compressed, and this server takes none so",
                named(framed.json)
            ),
        ));
    }
    let members = json::members(framed.json)?;
    let attachments = members.iter().find(|(name, _)| name == "_attachments");
    let listed = match attachments {
        Some((_, raw)) => json::members(raw.get().as_bytes())?,
        None => Vec::new(),
    };
    let mut inline = Vec::with_capacity(listed.len());
    for ((name, raw), (.., bytes)) in listed.iter().zip(&framed.parts) {
        let data = json::quoted(&BASE64_STANDARD.encode(bytes));
        let mut kept: Vec<(&str, &str)> = json::members(raw.get().as_bytes())?
            .into_iter()
            .filter_map(|(field, value)| match &*field {
                "content_type" => Some(("content_type", value.get())),
                "revpos" => Some(("revpos", value.get())),
                _ => None,
            })
            .collect();
        kept.push(("data", &data));
        let object = String::from_utf8(json::object(kept))
            .map_err(|_| Error::corrupt("an attachment's name cannot be read"))?;
        inline.push((name.to_string(), object));
    }
    let inline = json::object(inline.iter().map(|(n, v)| (n.as_str(), v.as_str())));
    let inline = String::from_utf8_lossy(&inline).into_owned();
    Ok(json::object(members.iter().map(|(name, raw)| {
        let value = if name == "_attachments" {
            inline.as_str()
        } else {
            raw.get()
        };
        (&**name, value)
    })))
}
