//! Documents to members: JSON that the server's own `_bulk_docs` takes, and frames; cut where the documents' ids say so.

use crate::couchdb::documents::Document;
use crate::couchdb::member;
use crate::couchdb::revision::Leaf;
use crate::segment;
use bk_core::error::Result;
use bk_core::name::{MemberPath, hash64};
use bk_core::source::{Lane, Meta, Output};
use bytes::Bytes;
use std::collections::HashMap;

/// Around the documents of a member.
const BEGIN: &[u8] = b"{\"new_edits\":false,\"docs\":[\n";
const BETWEEN: &[u8] = b",\n";
const END: &[u8] = b"\n]}\n";
/// Between two frames.
const BETWEEN_FRAMES: &[u8] = b"\r\n";
/// A segment has about 1 MiB in the mean, and ends at 4 MiB, which nobody needs to reserve.
const MEANS: u64 = segment::MEAN_BYTES >> 20;

/// The segments of a database that are being filled: documents without attachments, and those with some.
pub struct Segments {
    plain: Segment,
    framed: Segment,
}

/// One that is being filled.
struct Segment {
    begin: &'static [u8],
    between: &'static [u8],
    end: &'static [u8],
    prefix: String,
    suffix: &'static str,
    buffer: Vec<u8>,
    first: Option<u64>,
    ends: bool,
    names: HashMap<u64, u32>,
}

impl Segments {
    /// Of members whose paths begin like this.
    pub fn new(prefix: &str) -> Self {
        let segment = |begin, between, end, suffix| Segment {
            begin,
            between,
            end,
            prefix: prefix.to_owned(),
            suffix,
            buffer: Vec::new(),
            first: None,
            ends: false,
            names: HashMap::new(),
        };
        Self {
            plain: segment(BEGIN, BETWEEN, END, member::PLAIN),
            framed: segment(b"", BETWEEN_FRAMES, b"", member::ATTACHED),
        }
    }

    /// Takes a document; says how many bytes it has. A large one is not for here.
    pub async fn take(
        &mut self,
        lane: &mut Lane,
        out: &Output,
        leaf: &Leaf,
        document: &Document,
    ) -> Result<u64> {
        let hash = hash64(leaf.id.as_bytes());
        let (segment, bytes): (_, &[u8]) = match document {
            Document::Plain(json) => (&mut self.plain, json),
            Document::Framed(frame) => (&mut self.framed, frame),
            Document::Large => return Ok(0),
        };
        segment.take(lane, out, hash, bytes).await?;
        Ok(bytes.len() as u64)
    }

    /// Hands in what is left.
    pub async fn finish(mut self, lane: &mut Lane, out: &Output) -> Result<()> {
        self.plain.flush(lane, out).await?;
        self.framed.flush(lane, out).await
    }
}

impl Segment {
    async fn take(&mut self, lane: &mut Lane, out: &Output, hash: u64, bytes: &[u8]) -> Result<()> {
        let around = self.between.len() + self.end.len();
        if self.ends || self.buffer.len() + bytes.len() + around > segment::UNRESERVED_BYTES {
            self.flush(lane, out).await?;
        }
        self.buffer.extend_from_slice(if self.first.is_none() {
            self.begin
        } else {
            self.between
        });
        self.buffer.extend_from_slice(bytes);
        self.first.get_or_insert(hash);
        self.ends = segment::ends_after(hash, MEANS * bytes.len() as u64);
        Ok(())
    }

    async fn flush(&mut self, lane: &mut Lane, out: &Output) -> Result<()> {
        let Some(first) = self.first.take() else {
            return Ok(());
        };
        self.ends = false;
        self.buffer.extend_from_slice(self.end);
        let body = Bytes::from(std::mem::take(&mut self.buffer));
        // Leaves of one document may begin two segments.
        let seen = self.names.entry(first).or_default();
        *seen += 1;
        let nth = match *seen {
            1 => String::new(),
            n => format!("-{n}"),
        };
        let path = format!("{}{first:016x}{nth}.{}", self.prefix, self.suffix);
        let _room = if body.len() > segment::UNRESERVED_BYTES {
            Some(out.reserve(body.len() as u64).await?)
        } else {
            None
        };
        lane.member(MemberPath::new(path)?, Meta::default(), body)
            .await
    }
}
