//! Documents into a collection: batches that the server takes, answers that are counted, and the one document found that it refuses.

use crate::mongodb::bson::{self, Writing, kind};
use crate::mongodb::connection::{Connection, Failure, code};
use crate::mongodb::server::Server;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use mongodb::bson::{Bson, Document};
use std::time::Duration;

/// A batch is no larger, however much the server takes.
const BATCH_MAX_BYTES: usize = 4 << 20;
/// What a command has besides its documents.
const COMMAND_BYTES: usize = 1 << 10;
/// What each document costs in an array besides itself.
const PLACE_BYTES: usize = 12;
/// How often a batch is sent whose answer did not come.
const ATTEMPTS: u32 = 4;
/// Documents that are named one by one.
const REJECTED_NAMED: usize = 20;

/// A collection that is filled.
#[derive(Clone)]
pub struct Target {
    pub connection: Connection,
    pub cx: Context,
    pub database: String,
    pub collection: String,
    /// Whether the order of documents counts.
    pub ordered: bool,
    /// Whether the server knows the raw form of a time series.
    pub raw: bool,
    pub limits: Limits,
}

/// What the server takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    batch_bytes: usize,
    batch_documents: usize,
    /// Whether empty timestamps can be kept from being filled in.
    keeps_empty_timestamps: bool,
}

impl Limits {
    /// Of this server.
    pub fn of(server: &Server) -> Self {
        Self {
            batch_bytes: BATCH_MAX_BYTES.min(server.max_document_bytes as usize),
            batch_documents: server.max_batch_documents as usize,
            keeps_empty_timestamps: server.flavour != "FerretDB" && server.major_minor >= (8, 0),
        }
    }
}

/// What became of documents.
#[derive(Debug, Default)]
pub struct Inserted {
    /// That the server acknowledged.
    pub documents: u64,
    /// That it refused.
    pub rejected: u64,
    /// Why, for the first ones.
    pub why: Vec<String>,
}

impl Inserted {
    fn reject(&mut self, document: &[u8], why: &str) {
        self.rejected += 1;
        if self.why.len() < REJECTED_NAMED {
            self.why.push(format!("{}: {why}", id_in_words(document)));
        }
    }

    /// Adds what another batch did.
    pub fn add(&mut self, other: Self) {
        self.documents += other.documents;
        self.rejected += other.rejected;
        let room = REJECTED_NAMED.saturating_sub(self.why.len());
        self.why.extend(other.why.into_iter().take(room));
    }
}

/// The `_id` for people.
fn id_in_words(document: &[u8]) -> String {
    let Some(id) = bson::find(document, bson::ID) else {
        return "a document without _id".into();
    };
    let words = bson::Writing::new().element(id.whole).bytes();
    Document::from_reader(&words[..])
        .map_or_else(|_| "a document".into(), |id| format!("document {id}"))
}

impl Target {
    /// Inserts all documents of a member.
    pub async fn insert_all(&self, body: &[u8]) -> Result<Inserted> {
        let mut done = Inserted::default();
        let mut batch: Vec<&[u8]> = Vec::new();
        let mut bytes = COMMAND_BYTES;
        for document in bson::documents(body) {
            let document = document?;
            let full = bytes + document.len() + PLACE_BYTES > self.limits.batch_bytes
                || batch.len() >= self.limits.batch_documents;
            if full && !batch.is_empty() {
                done.add(self.insert(&batch).await?);
                batch.clear();
                bytes = COMMAND_BYTES;
            }
            bytes += document.len() + PLACE_BYTES;
            batch.push(document);
        }
        if !batch.is_empty() {
            done.add(self.insert(&batch).await?);
        }
        Ok(done)
    }

    async fn insert(&self, batch: &[&[u8]]) -> Result<Inserted> {
        let mut attempt = 1;
        loop {
            self.cx.check_cancelled()?;
            let failure = match self.send(batch).await {
                Ok(answer) => return self.look(batch, &answer).await,
                Err(failure) => failure,
            };
            match failure.code {
                // The batch as a whole was refused: one of its documents is not to be had.
                Some(_) if is_about_documents(&failure) => {
                    return self.halve(batch, &failure.error).await;
                }
                Some(code) if !passes(code) => return Err(failure.error),
                // Nobody knows what came of it. Documents without `_id` would come twice.
                _ if attempt >= ATTEMPTS || batch.iter().any(|d| bson::id(d).is_none()) => {
                    return Err(failure.error);
                }
                _ => {}
            }
            tracing::debug!(error = %failure.error, "a batch is sent again");
            self.pause(attempt).await?;
            attempt += 1;
        }
    }

    async fn pause(&self, attempt: u32) -> Result<()> {
        self.cx.pause(Duration::from_millis(300 << attempt)).await
    }

    async fn send(&self, batch: &[&[u8]]) -> Result<Document, Failure> {
        let bytes: usize = batch.iter().map(|d| d.len() + PLACE_BYTES).sum();
        let mut command = Writing::with_capacity(bytes + COMMAND_BYTES)
            .text("insert", &self.collection)
            .flag("ordered", self.ordered)
            .flag("bypassDocumentValidation", true);
        if self.limits.keeps_empty_timestamps {
            command = command.flag("bypassEmptyTsReplacement", true);
        }
        if self.raw {
            command = command.flag("rawData", true);
        }
        // The restore's last write waits for the majority, and so for all of these.
        let command = command
            .document("writeConcern", &Writing::new().int("w", 1).bytes())
            .documents("documents", batch.iter().copied());
        self.connection.run(&self.database, command).await
    }

    /// An answer that says yes may still refuse documents.
    async fn look(&self, batch: &[&[u8]], answer: &Document) -> Result<Inserted> {
        let mut done = Inserted {
            documents: number(answer, "n").unwrap_or(0),
            ..Inserted::default()
        };
        if let Ok(concern) = answer.get_document("writeConcernError") {
            return Err(Error::new(
                ErrorKind::Unreachable,
                format!("the server did not promise what it wrote: {concern}"),
            ));
        }
        let none = Vec::new();
        let errors = answer.get_array("writeErrors").unwrap_or(&none);
        // In order, the first refusal ends the batch; otherwise each document has its answer.
        let answered = done.documents as usize + errors.len();
        if answered != batch.len() && (!self.ordered || errors.is_empty()) {
            return Err(Error::new(
                ErrorKind::Unreachable,
                format!(
                    "the server says nothing of {} documents that it was sent",
                    batch.len().saturating_sub(answered)
                ),
            ));
        }
        let mut last = 0;
        for error in errors.iter().filter_map(Bson::as_document) {
            let place = number(error, "index").unwrap_or(u64::MAX) as usize;
            let Some(document) = batch.get(place) else {
                return Err(Error::corrupt(format!(
                    "the server refuses a document that it was not sent: {error}"
                )));
            };
            last = place;
            let code = number(error, "code").unwrap_or(0) as i32;
            if code == code::DUPLICATE_KEY && is_about_id(error) {
                // It is there: an attempt whose answer was lost, or what the archive takes the place of.
                match self.replace(document).await {
                    Ok(()) => done.documents += 1,
                    Err(failure) if failure.code.is_some() => {
                        done.reject(document, &failure.error.what);
                    }
                    Err(failure) => return Err(failure.error),
                }
            } else {
                let words = error.get_str("errmsg").unwrap_or("refused");
                done.reject(document, &format!("{words} ({code})"));
            }
        }
        // In order, the first refusal ends the batch.
        if self.ordered && !errors.is_empty() && last + 1 < batch.len() {
            let rest = Box::pin(self.insert(&batch[last + 1..])).await?;
            done.add(rest);
        }
        Ok(done)
    }

    async fn halve(&self, batch: &[&[u8]], why: &Error) -> Result<Inserted> {
        let mut done = Inserted::default();
        if let [document] = batch {
            done.reject(document, &why.what);
            return Ok(done);
        }
        let (one, two) = batch.split_at(batch.len() / 2);
        for half in [one, two] {
            done.add(Box::pin(self.insert(half)).await?);
        }
        Ok(done)
    }

    /// The document takes the place of what has its `_id`.
    pub async fn replace(&self, document: &[u8]) -> Result<(), Failure> {
        let id = bson::find(document, bson::ID).map_or(&[][..], |id| id.whole);
        let which = Writing::new().element(id).bytes();
        // What looks like an operator cannot be written as a whole.
        let is_plain = bson::elements(document)
            .map_while(Result::ok)
            .all(|element| !element.name.starts_with(b"$"));
        if !is_plain {
            self.delete(&[&which]).await?;
            let answer = self.send(&[document]).await?;
            return took_one(&answer);
        }
        let update = Writing::with_capacity(document.len() + COMMAND_BYTES)
            .document("q", &which)
            .document("u", document)
            .flag("upsert", true)
            .bytes();
        let mut command = Writing::with_capacity(update.len() + COMMAND_BYTES)
            .text("update", &self.collection)
            .flag("bypassDocumentValidation", true);
        if self.limits.keeps_empty_timestamps {
            command = command.flag("bypassEmptyTsReplacement", true);
        }
        let answer = self
            .connection
            .run(&self.database, command.documents("updates", [&update[..]]))
            .await?;
        took_one(&answer)
    }

    /// Removes what has these `_id`s, each a document of that one field.
    pub async fn delete(&self, ids: &[&[u8]]) -> Result<(), Failure> {
        let deletes: Vec<Vec<u8>> = ids
            .iter()
            .map(|which| Writing::new().document("q", which).int("limit", 1).bytes())
            .collect();
        let command = Writing::new()
            .text("delete", &self.collection)
            .documents("deletes", deletes.iter().map(Vec::as_slice));
        let answer = self.connection.run(&self.database, command).await?;
        refused(&answer)
    }

    /// Documents with these `_id`s: values one behind the other as an array has them.
    pub async fn fetch(&self, ids: &[&[u8]]) -> Result<Vec<Vec<u8>>, Failure> {
        let mut list = Writing::new();
        for (n, id) in ids.iter().enumerate() {
            if let Some(id) = bson::elements(id).next().and_then(Result::ok) {
                list.push(id.kind, n.to_string().as_bytes(), id.value);
            }
        }
        let within = Writing::new()
            .value(kind::ARRAY, b"$in", &list.bytes())
            .bytes();
        let command = Writing::new()
            .text("find", &self.collection)
            .document("filter", &Writing::new().document("_id", &within).bytes());
        self.connection.list(&self.database, command).await
    }
}

fn took_one(answer: &Document) -> Result<(), Failure> {
    refused(answer)?;
    if number(answer, "n") == Some(1) {
        return Ok(());
    }
    Err(Failure {
        code: Some(0),
        error: Error::new(
            ErrorKind::Unreachable,
            format!("the server wrote nothing: {answer}"),
        ),
    })
}

fn refused(answer: &Document) -> Result<(), Failure> {
    let error = answer
        .get_array("writeErrors")
        .ok()
        .and_then(|errors| errors.first());
    match error.and_then(Bson::as_document) {
        None => Ok(()),
        Some(error) => Err(Failure {
            code: number(error, "code").map(|code| code as i32),
            error: Error::new(
                ErrorKind::Unreachable,
                error.get_str("errmsg").unwrap_or("refused").to_owned(),
            ),
        }),
    }
}

fn number(document: &Document, name: &str) -> Option<u64> {
    match document.get(name)? {
        Bson::Int32(n) => u64::try_from(*n).ok(),
        Bson::Int64(n) => u64::try_from(*n).ok(),
        Bson::Double(n) => Some(*n as u64),
        _ => None,
    }
}

/// Whether it is the `_id` that is there already, and no other unique key.
fn is_about_id(error: &Document) -> bool {
    match error.get_document("keyPattern") {
        Ok(pattern) => pattern.len() == 1 && pattern.contains_key("_id"),
        Err(_) => error
            .get_str("errmsg")
            .is_ok_and(|words| words.contains("index: _id_") || words.contains("{ _id:")),
    }
}

/// Codes that speak of what was sent, not of the server. (mongodb/mongo, `error_codes.yml`)
fn is_about_documents(failure: &Failure) -> bool {
    // BadValue, FailedToParse, TypeMismatch, Overflow, InvalidBSON, DocumentValidationFailure, InvalidIdField, BSONObjectTooLarge, dollar-prefixed
    // and dotted names, documents too deep, and what drivers call a bad field.
    matches!(
        failure.code,
        Some(
            2 | 9
                | 14
                | 15
                | 22
                | 52
                | 53
                | 57
                | 121
                | 10334
                | 17280
                | 17419
                | 17420
                | 34443
                | 40353
        )
    )
}

/// Codes of servers that are busy with themselves: a new primary, a shutdown, a limit of theirs.
fn passes(code: i32) -> bool {
    matches!(
        code,
        6 | 7
            | 50
            | 89
            | 91
            | 112
            | 189
            | 262
            | 9001
            | 10058
            | 10107
            | 11600
            | 11602
            | 13435
            | 13436
            | 16500
    )
}
