//! Documents with their attachments as they are stored: what the server sends, and the frames in which an archive keeps them.
//!
//! A frame is the body of a multipart PUT: `--bk-H`, the document's JSON behind a `Content-Type`, then a part without headers for each entry of
//! `_attachments`, in its order. H is the beginning of the BLAKE3 of the JSON, so equal documents make equal frames; a server's own boundary is new
//! each time. Parts are cut by the lengths that the JSON tells, never by searching.

use crate::couchdb::connection::{Connection, SILENCE_LIMIT};
use crate::couchdb::revision::Envelope;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::source::BodyStream;
use bytes::Bytes;
use reqwest::Response;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// What stands before the JSON of a frame.
const JSON_HEAD: &[u8] = b"\r\nContent-Type: application/json\r\n\r\n";
/// What stands before the bytes of an attachment in it.
const PART_HEAD: &[u8] = b"\r\n\r\n";
/// Hexadecimal digits of a boundary.
const BOUNDARY_DIGITS: usize = 32;
const BOUNDARY_BYTES: usize = 3 + BOUNDARY_DIGITS;

/// What a document says of one attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Attachment {
    /// Bytes as it was given.
    #[serde(default)]
    pub length: u64,
    /// Bytes as it is stored.
    #[serde(default)]
    pub encoded_length: Option<u64>,
    /// `gzip`, where it is stored so.
    #[serde(default)]
    pub encoding: Option<String>,
    /// `md5-…` of what is stored.
    #[serde(default)]
    pub digest: Option<String>,
    /// Its kind.
    #[serde(default)]
    pub content_type: String,
    /// Its bytes come behind the document.
    #[serde(default)]
    pub follows: bool,
}

impl Attachment {
    /// Bytes as they are stored and travel.
    pub fn stored(&self) -> u64 {
        self.encoded_length.unwrap_or(self.length)
    }
}

/// `_attachments`, in its order.
pub struct Listed(pub Vec<(String, Attachment)>);

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Listed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("attachments by name")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Listed, M::Error> {
                let mut listed = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    listed.push(entry);
                }
                Ok(Listed(listed))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// The attachments of a document.
pub fn listed(attachments: Option<&RawValue>) -> Result<Vec<(String, Attachment)>> {
    let Some(raw) = attachments else {
        return Ok(Vec::new());
    };
    serde_json::from_str::<Listed>(raw.get())
        .map(|listed| listed.0)
        .map_err(|e| Error::corrupt("`_attachments` cannot be read").because(e))
}

/// The boundary of a document's frame.
pub fn boundary(json: &[u8]) -> String {
    let hash = blake3::hash(json).to_hex();
    format!("bk-{}", &hash[..BOUNDARY_DIGITS])
}

/// Bytes of a frame with parts of these lengths.
pub fn frame_len(json: usize, parts: impl IntoIterator<Item = u64>) -> u64 {
    let line = (2 + BOUNDARY_BYTES) as u64;
    let mut len = line + JSON_HEAD.len() as u64 + json as u64;
    for part in parts {
        len += 2 + line + PART_HEAD.len() as u64 + part;
    }
    len + 2 + line + 2
}

/// What stands before the first part, between two, and at the end of a frame.
pub struct FrameLines {
    /// `--bk-H`, the head of the JSON, the JSON.
    pub begin: Vec<u8>,
    /// Before the bytes of each attachment.
    pub part: Vec<u8>,
    /// After the last.
    pub end: Vec<u8>,
}

impl FrameLines {
    /// Of a document.
    pub fn new(json: &[u8]) -> Self {
        let boundary = boundary(json);
        let line = format!("--{boundary}").into_bytes();
        Self {
            begin: [&line, JSON_HEAD, json].concat(),
            part: [b"\r\n", &line[..], PART_HEAD].concat(),
            end: [b"\r\n", &line[..], b"--"].concat(),
        }
    }
}

/// A frame of parts that are in memory.
pub fn frame(json: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let lines = FrameLines::new(json);
    let mut frame = lines.begin;
    for part in parts {
        frame.extend_from_slice(&lines.part);
        frame.extend_from_slice(part);
    }
    frame.extend_from_slice(&lines.end);
    frame
}

/// A document as it lies in a frame.
pub struct Framed<'a> {
    /// Its JSON.
    pub json: &'a [u8],
    /// Its attachments and their bytes.
    pub parts: Vec<(String, Attachment, &'a [u8])>,
    /// All of it.
    pub whole: &'a [u8],
}

/// The frames of a member, one behind the other.
pub fn frames(mut bytes: &[u8]) -> Result<Vec<Framed<'_>>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        if !found.is_empty() {
            bytes = bytes.strip_prefix(b"\r\n").ok_or_else(damaged)?;
        }
        let framed = first_frame(bytes)?;
        bytes = &bytes[framed.whole.len()..];
        found.push(framed);
    }
    Ok(found)
}

/// The JSON at the beginning of a frame, and where it ends; nothing when more bytes are needed.
pub fn json_of(bytes: &[u8]) -> Result<Option<(&[u8], usize)>> {
    let head = 2 + BOUNDARY_BYTES + JSON_HEAD.len();
    if bytes.len() < head {
        return Ok(None);
    }
    let is_head = bytes.starts_with(b"--bk-") && bytes[2 + BOUNDARY_BYTES..].starts_with(JSON_HEAD);
    if !is_head {
        return Err(damaged());
    }
    match json_len(&bytes[head..]) {
        JsonLen::Is(len) => {
            let json = &bytes[head..head + len];
            if bytes[2..2 + BOUNDARY_BYTES] != *boundary(json).as_bytes() {
                return Err(damaged());
            }
            Ok(Some((json, head + len)))
        }
        JsonLen::More => Ok(None),
        JsonLen::None => Err(damaged()),
    }
}

/// The JSON of a frame that comes as it is read, and all that was read for it.
pub async fn head_of(stream: &mut BodyStream) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut head = Vec::new();
    while let Some(chunk) = stream.next().await? {
        head.extend_from_slice(&chunk);
        if let Some((json, _)) = json_of(&head)? {
            return Ok((json.to_vec(), head));
        }
    }
    Err(Error::corrupt("a document with attachments was cut off"))
}

fn first_frame(bytes: &[u8]) -> Result<Framed<'_>> {
    let (json, mut at) = json_of(bytes)?.ok_or_else(damaged)?;
    let envelope: Envelope<'_> = serde_json::from_slice(json).map_err(|_| damaged())?;
    let lines = FrameLines::new(json);
    let mut parts = Vec::new();
    for (name, attachment) in listed(envelope.attachments)? {
        at = passed(bytes, at, &lines.part)?;
        let end = at + usize::try_from(attachment.stored()).map_err(|_| damaged())?;
        let part = bytes.get(at..end).ok_or_else(damaged)?;
        parts.push((name, attachment, part));
        at = end;
    }
    at = passed(bytes, at, &lines.end)?;
    Ok(Framed {
        json,
        parts,
        whole: &bytes[..at],
    })
}

fn passed(bytes: &[u8], at: usize, expected: &[u8]) -> Result<usize> {
    let end = at + expected.len();
    if bytes.get(at..end) == Some(expected) {
        Ok(end)
    } else {
        Err(damaged())
    }
}

fn damaged() -> Error {
    Error::corrupt("a document with attachments is damaged")
}

enum JsonLen {
    Is(usize),
    More,
    None,
}

/// Bytes of the JSON value at the beginning.
fn json_len(bytes: &[u8]) -> JsonLen {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<&RawValue>();
    match values.next() {
        Some(Ok(_)) => JsonLen::Is(values.byte_offset()),
        Some(Err(error)) if error.is_eof() => JsonLen::More,
        None => JsonLen::More,
        Some(Err(_)) => JsonLen::None,
    }
}

/// A document of a server's multipart answer.
pub struct Sent<'a> {
    /// Its JSON, as it stands.
    pub json: &'a [u8],
    /// The bytes of its attachments, in the order of `_attachments`.
    pub parts: Vec<&'a [u8]>,
}

/// The boundary that a `Content-Type` names.
pub fn boundary_of(kind: &str) -> Option<&str> {
    let value = kind.split_once("boundary=")?.1;
    let value = value.split(';').next()?.trim();
    Some(value.trim_matches('"'))
}

/// A `multipart/related` answer that came whole: the document, and how many bytes it took. A document without attachments is JSON alone.
pub fn related<'a>(bytes: &'a [u8], boundary: &str) -> Result<(Sent<'a>, usize)> {
    let line = format!("--{boundary}").into_bytes();
    let mut at = passed(bytes, skipped_lines(bytes), &line)?;
    at = after_headers(bytes, at)?;
    let JsonLen::Is(len) = json_len(&bytes[at..]) else {
        return Err(unreadable());
    };
    let json = &bytes[at..at + len];
    at += len;
    let separator = [b"\r\n", &line[..]].concat();
    let envelope: Envelope<'_> = serde_json::from_slice(json).map_err(|_| unreadable())?;
    let mut parts = Vec::new();
    for (name, attachment) in listed(envelope.attachments)? {
        if !attachment.follows {
            return Err(Error::corrupt(format!(
                "the server did not send attachment `{name}`"
            )));
        }
        at = after_headers(bytes, passed(bytes, at, &separator)?)?;
        let end = at + usize::try_from(attachment.stored()).map_err(|_| unreadable())?;
        parts.push(bytes.get(at..end).ok_or_else(unreadable)?);
        at = end;
    }
    at = passed(bytes, at, &separator)?;
    at = passed(bytes, at, b"--")?;
    Ok((Sent { json, parts }, at))
}

/// A `multipart/mixed` answer: a document each, or what the server says in its place.
pub fn mixed<'a>(bytes: &'a [u8], boundary: &str) -> Result<Vec<Sent<'a>>> {
    let line = format!("--{boundary}").into_bytes();
    let separator = [b"\r\n", &line[..]].concat();
    let mut found = Vec::new();
    let mut at = skipped_lines(bytes);
    if bytes.len() == at {
        return Ok(found);
    }
    at = passed(bytes, at, &line)?;
    loop {
        if bytes[at..].starts_with(b"--") {
            return Ok(found);
        }
        let body = after_headers(bytes, at)?;
        let headers = String::from_utf8_lossy(&bytes[at..body]);
        let kind = headers
            .lines()
            .find_map(|l| {
                l.split_once(':')
                    .filter(|(name, _)| name.eq_ignore_ascii_case("content-type"))
            })
            .map_or("", |(_, kind)| kind.trim());
        if let Some(inner) = boundary_of(kind).filter(|_| kind.starts_with("multipart/related")) {
            let (sent, len) = related(&bytes[body..], inner)?;
            found.push(sent);
            at = body + len;
        } else {
            let JsonLen::Is(len) = json_len(&bytes[body..]) else {
                return Err(unreadable());
            };
            if !kind.contains("error") {
                let json = &bytes[body..body + len];
                let parts = Vec::new();
                found.push(Sent { json, parts });
            }
            at = body + len;
        }
        at = passed(
            bytes,
            at + skipped_lines(&bytes[at..]).saturating_sub(2),
            &separator,
        )?;
    }
}

/// Line breaks at the beginning.
fn skipped_lines(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .take_while(|b| matches!(b, b'\r' | b'\n'))
        .count()
}

/// Behind the empty line that ends the headers of a part. Headers hold no line of their own that is empty.
fn after_headers(bytes: &[u8], at: usize) -> Result<usize> {
    let rest = bytes.get(at..).ok_or_else(unreadable)?;
    if rest.starts_with(PART_HEAD) {
        return Ok(at + PART_HEAD.len());
    }
    rest.windows(PART_HEAD.len())
        .position(|window| window == PART_HEAD)
        .map(|end| at + end + PART_HEAD.len())
        .ok_or_else(unreadable)
}

fn unreadable() -> Error {
    Error::corrupt(
        "an answer with attachments cannot be read: it was cut off, or its lengths are wrong",
    )
}

/// A `multipart/related` answer that is read as it comes.
pub struct Incoming {
    connection: Connection,
    response: Response,
    line: Vec<u8>,
    buffer: Vec<u8>,
}

impl Incoming {
    /// Of an answer with this boundary.
    pub fn new(connection: Connection, response: Response, boundary: &str) -> Self {
        Self {
            connection,
            response,
            line: format!("--{boundary}").into_bytes(),
            buffer: Vec::new(),
        }
    }

    async fn more(&mut self) -> Result<()> {
        let chunk = tokio::time::timeout(SILENCE_LIMIT, self.response.chunk());
        let chunk = self
            .connection
            .unless_stopped(chunk)
            .await?
            .map_err(|_| Error::new(ErrorKind::Unreachable, "the server fell silent"))?
            .map_err(|e| self.connection.broken(&e))?
            .ok_or_else(unreadable)?;
        self.buffer.extend_from_slice(&chunk);
        Ok(())
    }

    /// The document.
    pub async fn json(&mut self, most: usize) -> Result<Vec<u8>> {
        loop {
            let begin = skipped_lines(&self.buffer);
            let at = begin + self.line.len();
            if self.buffer.len() > at {
                passed(&self.buffer, begin, &self.line)?;
                if let Ok(json) = after_headers(&self.buffer, at)
                    && let JsonLen::Is(len) = json_len(&self.buffer[json..])
                {
                    let rest = self.buffer.split_off(json + len);
                    let document = self.buffer.split_off(json);
                    self.buffer = rest;
                    return Ok(document);
                }
            }
            if self.buffer.len() > most {
                return Err(Error::corrupt(format!(
                    "the JSON of the document is larger than {} MiB",
                    most >> 20
                )));
            }
            self.more().await?;
        }
    }

    /// Passes what stands before an attachment.
    async fn head(&mut self) -> Result<()> {
        let separator = [b"\r\n", &self.line[..]].concat();
        loop {
            if self.buffer.len() > separator.len() + PART_HEAD.len() {
                let at = passed(&self.buffer, 0, &separator)?;
                if let Ok(body) = after_headers(&self.buffer, at) {
                    self.buffer.drain(..body);
                    return Ok(());
                }
            }
            if self.buffer.len() > LARGEST_HEAD_BYTES + CHUNK_BYTES {
                return Err(unreadable());
            }
            self.more().await?;
        }
    }

    /// Up to so many bytes of an attachment.
    async fn piece(&mut self, most: u64) -> Result<Bytes> {
        if self.buffer.is_empty() {
            self.more().await?;
        }
        let len = most.min(self.buffer.len() as u64) as usize;
        let rest = self.buffer.split_off(len);
        Ok(std::mem::replace(&mut self.buffer, rest).into())
    }

    /// Passes what stands after the last.
    async fn end(&mut self) -> Result<()> {
        let end = [b"\r\n", &self.line[..], b"--"].concat();
        while self.buffer.len() < end.len() {
            self.more().await?;
        }
        passed(&self.buffer, 0, &end).map(drop)
    }
}

/// Headers of an attachment are shorter.
const LARGEST_HEAD_BYTES: usize = 64 << 10;
/// What a network gives at once, at most.
const CHUNK_BYTES: usize = 1 << 20;

/// A server's answer on its way into a frame.
pub struct Reframing {
    incoming: Incoming,
    lines: FrameLines,
    parts: std::vec::IntoIter<u64>,
    state: State,
}

enum State {
    Begin,
    Between,
    Part(u64),
    Done,
}

impl Reframing {
    /// Of a document whose JSON was read, with attachments of these lengths.
    pub fn new(incoming: Incoming, lines: FrameLines, parts: Vec<u64>) -> Self {
        Self {
            incoming,
            lines,
            parts: parts.into_iter(),
            state: State::Begin,
        }
    }

    /// The next bytes of the frame.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.state {
                State::Begin => {
                    self.state = State::Between;
                    return Ok(Some(std::mem::take(&mut self.lines.begin).into()));
                }
                State::Between => {
                    if let Some(len) = self.parts.next() {
                        self.incoming.head().await?;
                        self.state = State::Part(len);
                        return Ok(Some(self.lines.part.clone().into()));
                    }
                    self.incoming.end().await?;
                    self.state = State::Done;
                    return Ok(Some(std::mem::take(&mut self.lines.end).into()));
                }
                State::Part(0) => self.state = State::Between,
                State::Part(left) => {
                    let piece = self.incoming.piece(left).await?;
                    self.state = State::Part(left - piece.len() as u64);
                    return Ok(Some(piece));
                }
                State::Done => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"_id":"a","_rev":"1-x","n":1.0,"_attachments":{"b/ü":{"content_type":"text/plain","length":3,"encoded_length":5,"encoding":"gzip","follows":true},"a":{"length":0,"follows":true}}}"#;

    #[test]
    fn frames_are_cut_by_lengths_and_every_change_is_found() {
        let framed = frame(JSON.as_bytes(), &[b"--bk-", b""]);
        assert_eq!(framed.len() as u64, frame_len(JSON.len(), [5, 0]));
        let member = [&framed[..], b"\r\n", &framed].concat();
        let found = frames(&member).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].json, JSON.as_bytes());
        assert_eq!(found[1].parts[0].2, b"--bk-");
        assert_eq!(found[0].whole, framed);
        for cut in 0..framed.len() {
            assert!(frames(&framed[..cut]).map_or(true, |found| found.is_empty()));
        }
        let parts = framed.len() - 5 - frame_len(0, []) as usize;
        for at in 0..framed.len() {
            let mut changed = framed.clone();
            changed[at] ^= 1;
            let same = frames(&changed).is_ok();
            // Bytes of an attachment are the archive's sums' to look after.
            let in_part = framed[at..].starts_with(&b"--bk-"[..]) || at > parts;
            assert!(
                !same || in_part || at > JSON.len(),
                "a change at {at} was not seen"
            );
        }
    }

    #[test]
    fn an_answer_of_a_server_is_cut_by_the_lengths_that_it_tells() {
        let boundary = "0123456789abcdef0123456789abcdef";
        let body = [
            format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n").as_bytes(),
            JSON.as_bytes(),
            format!("\r\n--{boundary}\r\nContent-Disposition: attachment; filename=\"b/ü\"\r\nContent-Length: 5\r\n\r\n12345\r\n--{boundary}\r\n\r\n\r\n--{boundary}--").as_bytes(),
        ]
        .concat();
        let (sent, len) = related(&body, boundary).unwrap();
        assert_eq!((sent.json, len), (JSON.as_bytes(), body.len()));
        assert_eq!(sent.parts, [&b"12345"[..], b""]);
        for cut in 0..body.len() {
            assert!(related(&body[..cut], boundary).is_err());
        }
        let outer = "outer";
        let both = [
            b"--outer\r\nContent-Type: multipart/related; boundary=\"0123456789abcdef0123456789abcdef\"\r\n\r\n",
            &body[..],
            b"\r\n--outer\r\nContent-Type: application/json\r\n\r\n{\"_id\":\"x\"}\r\n--outer--",
        ]
        .concat();
        let found = mixed(&both, outer).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].json, b"{\"_id\":\"x\"}");
        for cut in 1..both.len() - 2 {
            assert!(mixed(&both[..cut], outer).is_err(), "{cut}");
        }
    }
}
