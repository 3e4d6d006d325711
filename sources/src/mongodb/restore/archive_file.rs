//! `mongodump --archive`: all collections in one stream, interleaved. (mongodb/mongo-tools, common/archive)
//!
//! A magic number, a header, a document for each collection, a terminator; then blocks: a header that names a collection, documents of it, a
//! terminator. Each collection ends with a block of its own that holds the CRC-64/XZ of all its documents.

use crate::mongodb::bson::{self, Writing};
use crate::mongodb::metadata::Metadata;
use bk_core::error::{Error, Result};
use crc_fast::{CrcAlgorithm, Digest};
use std::collections::BTreeMap;

/// How a stream begins.
pub const MAGIC: [u8; 4] = [0x6d, 0xe2, 0x99, 0x81];
const TERMINATOR: [u8; 4] = [0xff; 4];
/// No header and no document is larger: the largest document, and what the log puts around it.
const LARGEST_BYTES: usize = (16 << 20) + (16 << 10);
/// What the tools keep in common with each other.
const VERSION: &str = "0.1";

/// A collection that the stream lists.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub database: String,
    pub collection: String,
    pub metadata: Metadata,
}

/// What a stream turns out to hold, piece by piece.
#[derive(Debug, PartialEq)]
pub enum Piece<'a> {
    /// A collection, before any document.
    Listed(Listed),
    /// A document of a collection.
    Document(&'a str, &'a str, &'a [u8]),
    /// A collection is over, and was what its maker counted.
    End(String, String),
}

/// Where a stream stands.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Magic,
    Header,
    Listing,
    /// Between two blocks.
    Blocks,
    /// In a block of this collection.
    Block(String, String),
    /// In the last block of this one: nothing but its end may follow.
    LastBlock(String, String),
}

/// Reads a stream as its bytes come.
pub struct Reader {
    buffer: Vec<u8>,
    at: usize,
    total: u64,
    state: State,
    sums: BTreeMap<(String, String), Option<Digest>>,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            buffer: Vec::new(),
            at: 0,
            total: 0,
            state: State::Magic,
            sums: BTreeMap::new(),
        }
    }
}

impl Reader {
    /// Takes the next bytes, and tells each piece that is whole by now.
    pub fn take(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
        while self.step(&mut each)? {}
        Ok(())
    }

    /// The stream is over: it must be at a place where it may be.
    pub fn finish(&self) -> Result<()> {
        if self.state != State::Blocks || self.at != self.buffer.len() {
            return Err(self.damaged("it was cut off"));
        }
        match self.sums.iter().find(|(_, sum)| sum.is_some()) {
            None => Ok(()),
            Some(((database, collection), _)) => Err(self.damaged(&format!(
                "it was cut off: `{database}.{collection}` has no end"
            ))),
        }
    }

    fn damaged(&self, why: &str) -> Error {
        Error::corrupt(format!(
            "the archive is damaged at byte {}: {why}",
            self.total
        ))
    }

    /// One piece; false when more bytes are wanted.
    fn step(&mut self, each: &mut impl FnMut(Piece<'_>) -> Result<()>) -> Result<bool> {
        let rest = &self.buffer[self.at..];
        let Some(first) = rest.get(..4) else {
            return Ok(false);
        };
        if self.state == State::Magic {
            if first != MAGIC {
                return Err(self.damaged("it does not begin as one"));
            }
            self.advance(4);
            self.state = State::Header;
            return Ok(true);
        }
        if first == TERMINATOR {
            self.advance(4);
            self.state = match std::mem::replace(&mut self.state, State::Blocks) {
                State::Listing | State::Block(..) => State::Blocks,
                State::LastBlock(database, collection) => {
                    each(Piece::End(database, collection))?;
                    State::Blocks
                }
                _ => return Err(self.damaged("a terminator stands where none may")),
            };
            return Ok(true);
        }
        let len = i32::from_le_bytes([first[0], first[1], first[2], first[3]]);
        if !usize::try_from(len).is_ok_and(|len| (5..=LARGEST_BYTES).contains(&len)) {
            return Err(self.damaged("a length is none"));
        }
        if rest.len() < len as usize {
            return Ok(false);
        }
        let Some(len) = bson::len_at(rest) else {
            return Err(self.damaged("a document does not end where it says"));
        };
        let document = rest[..len].to_vec();
        self.document(&document, each)?;
        self.advance(len);
        Ok(true)
    }

    fn advance(&mut self, bytes: usize) {
        self.at += bytes;
        self.total += bytes as u64;
    }

    fn document(
        &mut self,
        document: &[u8],
        each: &mut impl FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        match &self.state {
            State::Magic | State::Header => self.state = State::Listing,
            State::Listing => {
                let listed = Self::listed(document)?;
                let key = (listed.database.clone(), listed.collection.clone());
                if self
                    .sums
                    .insert(key, Some(Digest::new(CrcAlgorithm::Crc64Xz)))
                    .is_some()
                {
                    return Err(self.damaged("a collection is listed twice"));
                }
                each(Piece::Listed(listed))?;
            }
            State::Blocks => self.state = self.block(document)?,
            State::Block(database, collection) => {
                if let Some(Some(sum)) = self.sums.get_mut(&(database.clone(), collection.clone()))
                {
                    sum.update(document);
                }
                each(Piece::Document(database, collection, document))?;
            }
            State::LastBlock(..) => {
                return Err(self.damaged("documents follow the end of their collection"));
            }
        }
        Ok(())
    }

    fn listed(document: &[u8]) -> Result<Listed> {
        let word = |name: &str| bson::text(document, name).unwrap_or_default();
        let mut metadata = Metadata::parse(word("metadata").as_bytes())
            .map_err(|e| e.within(format!("`{}.{}`", word("db"), word("collection"))))?;
        if !word("type").is_empty() {
            metadata.kind = crate::mongodb::metadata::Kind::of_word(word("type"));
        }
        Ok(Listed {
            database: word("db").to_owned(),
            collection: word("collection").to_owned(),
            metadata,
        })
    }

    fn block(&mut self, header: &[u8]) -> Result<State> {
        let Some((database, collection, end, crc)) = block_header(header) else {
            return Err(self.damaged("the header of a block is none"));
        };
        let key = (database.clone(), collection.clone());
        let name = format!("`{database}.{collection}`");
        // The log is in no list.
        if is_log(&database, &collection) {
            self.sums
                .entry(key.clone())
                .or_insert_with(|| Some(Digest::new(CrcAlgorithm::Crc64Xz)));
        }
        // A time series is listed under its own name, and has its documents under that of its buckets.
        if let Some(series) = collection.strip_prefix(crate::mongodb::catalogue::BUCKETS)
            && let Some(sum) = self.sums.remove(&(database.clone(), series.to_owned()))
        {
            self.sums.insert(key.clone(), sum);
        }
        let Some(sum) = self.sums.get_mut(&key) else {
            return Err(self.damaged(&format!("{name} has documents and is in no list")));
        };
        if !end {
            if crc != 0 {
                return Err(self.damaged("a block of documents has a CRC"));
            }
            if sum.is_none() {
                return Err(self.damaged(&format!("documents follow the end of {name}")));
            }
            return Ok(State::Block(database, collection));
        }
        let Some(sum) = sum.take() else {
            return Err(self.damaged(&format!("{name} ends twice")));
        };
        if crc != sum.finalize() as i64 {
            return Err(self.damaged(&format!(
                "the documents of {name} are not those that were written: their CRC differs"
            )));
        }
        Ok(State::LastBlock(database, collection))
    }
}

/// Database, collection, whether it is the last, and the CRC: these four and nothing else, in this order.
fn block_header(header: &[u8]) -> Option<(String, String, bool, i64)> {
    let fields: Vec<bson::Element<'_>> = bson::elements(header).collect::<Result<_>>().ok()?;
    let [database, collection, end, crc] = fields.as_slice() else {
        return None;
    };
    let named = fields.iter().map(|field| field.name);
    let in_order = named.eq([&b"db"[..], b"collection", b"EOF", b"CRC"]);
    let is_flag = end.kind == bson::kind::BOOLEAN && matches!(end.value, [0 | 1]);
    (in_order && is_flag && crc.kind == bson::kind::INT64).then_some(())?;
    Some((
        database.text()?.to_owned(),
        collection.text()?.to_owned(),
        end.truthy(),
        crc.integer()?,
    ))
}

/// Whether a block is the log's.
pub fn is_log(database: &str, collection: &str) -> bool {
    database.is_empty() && collection == "oplog"
}

/// Writes a stream.
#[derive(Default)]
pub struct Writer {
    sums: BTreeMap<(String, String), Option<Digest>>,
}

impl Writer {
    /// What stands before all documents.
    pub fn begin(
        &mut self,
        server_version: &str,
        tool_version: &str,
        listed: &[Listed],
    ) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let header = Writing::new()
            .int("concurrent_collections", 4)
            .text("version", VERSION)
            .text("server_version", server_version)
            .text("tool_version", tool_version);
        out.extend_from_slice(&header.bytes());
        for one in listed {
            let document = Writing::new()
                .text("db", &one.database)
                .text("collection", &one.collection)
                .text("metadata", &one.metadata.json(None))
                .int("size", 0)
                .text("type", one.metadata.kind.word());
            out.extend_from_slice(&document.bytes());
            let key = (one.database.clone(), one.collection.clone());
            self.sums
                .insert(key, Some(Digest::new(CrcAlgorithm::Crc64Xz)));
        }
        out.extend_from_slice(&TERMINATOR);
        out
    }

    /// Documents of a collection: what stands before and behind them.
    pub fn block(
        &mut self,
        database: &str,
        collection: &str,
        documents: &[u8],
    ) -> (Vec<u8>, [u8; 4]) {
        let key = (database.to_owned(), collection.to_owned());
        let sum = self
            .sums
            .entry(key)
            .or_insert_with(|| Some(Digest::new(CrcAlgorithm::Crc64Xz)));
        if let Some(sum) = sum {
            sum.update(documents);
        }
        (header(database, collection, false, 0), TERMINATOR)
    }

    /// The ends of all collections that have not ended.
    pub fn end(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for ((database, collection), sum) in &mut self.sums {
            if let Some(sum) = sum.take() {
                out.extend_from_slice(&header(database, collection, true, sum.finalize() as i64));
                out.extend_from_slice(&TERMINATOR);
            }
        }
        out
    }
}

fn header(database: &str, collection: &str, end: bool, crc: i64) -> Vec<u8> {
    Writing::new()
        .text("db", database)
        .text("collection", collection)
        .flag("EOF", end)
        .long("CRC", crc)
        .bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Vec<u8> {
        let document = |n: i32| Writing::new().int("_id", n).bytes();
        let listed = |name: &str| Listed {
            database: "d".into(),
            collection: name.into(),
            metadata: Metadata {
                options: bson::EMPTY.to_vec(),
                name: Some(name.into()),
                ..Metadata::default()
            },
        };
        let mut writer = Writer::default();
        let mut out = writer.begin("8.2.11", "bk", &[listed("a"), listed("b"), listed("empty")]);
        for (name, n) in [("a", 1), ("b", 2), ("a", 3)] {
            let body = document(n);
            let (before, after) = writer.block("d", name, &body);
            out.extend_from_slice(&[&before[..], &body, &after].concat());
        }
        out.extend_from_slice(&writer.end());
        out
    }

    fn read(bytes: &[u8], piece: usize) -> Result<Vec<String>> {
        let mut reader = Reader::default();
        let mut seen = Vec::new();
        for some in bytes.chunks(piece) {
            reader.take(some, |piece| {
                seen.push(match piece {
                    Piece::Listed(listed) => format!("listed {}", listed.collection),
                    Piece::Document(_, name, document) => format!("{name} {}", document.len()),
                    Piece::End(_, name) => format!("end {name}"),
                });
                Ok(())
            })?;
        }
        reader.finish().map(|()| seen)
    }

    #[test]
    fn what_is_written_is_read_in_pieces_of_any_size() {
        let expected = [
            "listed a",
            "listed b",
            "listed empty",
            "a 14",
            "b 14",
            "a 14",
            "end a",
            "end b",
            "end empty",
        ];
        for piece in [1, 7, 1 << 20] {
            assert_eq!(read(&stream(), piece).unwrap(), expected);
        }
    }

    #[test]
    fn the_sum_is_that_of_the_official_tools() {
        let mut sum = Digest::new(CrcAlgorithm::Crc64Xz);
        assert_eq!(sum.finalize(), 0);
        sum.update(b"123456789");
        assert_eq!(sum.finalize(), 0x995d_c9bb_df19_39fa);
    }

    #[test]
    fn every_cut_and_every_changed_byte_of_a_document_is_found() {
        let whole = stream();
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut], 64).is_err(), "cut at {cut}");
        }
        let begin = whole.windows(4).position(|w| w == TERMINATOR).unwrap() + 4;
        for at in begin..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 0x10;
            assert!(read(&bad, 1 << 20).is_err(), "byte {at}");
        }
        let doubled = [&whole[..], &TERMINATOR].concat();
        assert!(read(&doubled, 64).is_err());
        let twice = [&whole[..], &header("d", "a", true, 0), &TERMINATOR].concat();
        assert!(
            read(&twice, 64)
                .unwrap_err()
                .to_string()
                .contains("ends twice")
        );
        let stranger = [&whole[..], &header("d", "z", false, 0), &TERMINATOR].concat();
        assert!(
            read(&stranger, 64)
                .unwrap_err()
                .to_string()
                .contains("in no list")
        );
    }
}
