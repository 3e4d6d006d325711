//! BSON as the bytes that it is. A document is walked, cut and put together without ever becoming a typed value: duplicate keys, invalid
//! UTF-8, deprecated types and odd numbers pass as they are. Form: bsonspec.org, version 1.1.

use bk_core::error::{Error, Result, bug};
use mongodb::bson::RawDocumentBuf;

/// Smallest document: its length and the closing zero.
const SMALLEST_BYTES: usize = 5;
/// The field that identifies a document.
pub const ID: &[u8] = b"_id";

/// Types of elements that are looked at by name.
pub mod kind {
    /// A number of 64 bits with a point.
    pub const DOUBLE: u8 = 0x01;
    /// Text.
    pub const STRING: u8 = 0x02;
    /// A document.
    pub const DOCUMENT: u8 = 0x03;
    /// An array: a document whose names are places.
    pub const ARRAY: u8 = 0x04;
    /// Bytes.
    pub const BINARY: u8 = 0x05;
    /// Yes or no.
    pub const BOOLEAN: u8 = 0x08;
    /// Nothing.
    pub const NULL: u8 = 0x0a;
    /// A whole number of 32 bits.
    pub const INT32: u8 = 0x10;
    /// An instant of the server's log.
    pub const TIMESTAMP: u8 = 0x11;
    /// A whole number of 64 bits.
    pub const INT64: u8 = 0x12;
}

/// One element of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    /// Type byte.
    pub kind: u8,
    /// Name, without its zero.
    pub name: &'a [u8],
    /// Value as it stands.
    pub value: &'a [u8],
    /// All of it: type, name, value.
    pub whole: &'a [u8],
}

impl<'a> Element<'a> {
    /// The text of a string.
    pub fn text(&self) -> Option<&'a str> {
        let whole = (self.kind == kind::STRING).then_some(self.value)?;
        let bytes = whole.get(4..)?.strip_suffix(&[0])?;
        std::str::from_utf8(bytes).ok()
    }

    /// A document or array inside.
    pub fn document(&self) -> Option<&'a [u8]> {
        matches!(self.kind, kind::DOCUMENT | kind::ARRAY).then_some(self.value)
    }

    /// A number, where it is whole.
    pub fn integer(&self) -> Option<i64> {
        match self.kind {
            kind::INT32 => Some(i64::from(i32::from_le_bytes(self.value.try_into().ok()?))),
            kind::INT64 => Some(i64::from_le_bytes(self.value.try_into().ok()?)),
            kind::DOUBLE => {
                let number = f64::from_le_bytes(self.value.try_into().ok()?);
                (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
            }
            _ => None,
        }
    }

    /// What servers take for yes: true, or a number that is not zero.
    pub fn truthy(&self) -> bool {
        match self.kind {
            kind::BOOLEAN => self.value == [1],
            _ => self.integer().is_some_and(|n| n != 0),
        }
    }

    /// A timestamp of the log: seconds, then a counter, so that numbers compare as instants do.
    pub fn timestamp(&self) -> Option<u64> {
        (self.kind == kind::TIMESTAMP)
            .then(|| Some(u64::from_le_bytes(self.value.try_into().ok()?)))?
    }
}

/// The elements of a document, each an error where the bytes are none.
pub fn elements(document: &[u8]) -> Elements<'_> {
    Elements {
        rest: document.get(4..).unwrap_or_default(),
        ended: false,
    }
}

/// Walks a document.
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    rest: &'a [u8],
    ended: bool,
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended || self.rest == [0] {
            return None;
        }
        let element = cut_element(self.rest);
        match &element {
            Some(element) => self.rest = &self.rest[element.whole.len()..],
            None => self.ended = true,
        }
        Some(element.ok_or_else(|| Error::corrupt("a document's inside is no BSON")))
    }
}

fn cut_element(rest: &[u8]) -> Option<Element<'_>> {
    let kind = *rest.first()?;
    let name_end = 1 + rest.get(1..)?.iter().position(|byte| *byte == 0)?;
    let from = name_end + 1;
    let len = value_len(kind, rest.get(from..)?)?;
    let end = from.checked_add(len)?;
    Some(Element {
        kind,
        name: &rest[1..name_end],
        value: rest.get(from..end)?,
        whole: &rest[..end],
    })
}

fn value_len(kind: u8, value: &[u8]) -> Option<usize> {
    let prefix = || usize::try_from(i32::from_le_bytes(value.get(..4)?.try_into().ok()?)).ok();
    let string_end =
        |from: usize| Some(from + value.get(from..)?.iter().position(|b| *b == 0)? + 1);
    match kind {
        0x01 | 0x09 | 0x11 | 0x12 => Some(8),
        0x02 | 0x0d | 0x0e => prefix().filter(|len| *len > 0).map(|len| 4 + len),
        0x03 | 0x04 => prefix().filter(|len| *len >= SMALLEST_BYTES),
        0x0f => prefix().filter(|len| *len > 4),
        0x05 => prefix().map(|len| 5 + len),
        0x06 | 0x0a | 0x7f | 0xff => Some(0),
        0x07 => Some(12),
        0x08 => Some(1),
        0x0b => string_end(string_end(0)?),
        0x0c => prefix().map(|len| 4 + len + 12),
        0x10 => Some(4),
        0x13 => Some(16),
        _ => None,
    }
}

/// The first element of this name.
pub fn find<'a>(document: &'a [u8], name: &[u8]) -> Option<Element<'a>> {
    elements(document)
        .map_while(Result::ok)
        .find(|element| element.name == name)
}

/// The text under a name.
pub fn text<'a>(document: &'a [u8], name: &str) -> Option<&'a str> {
    find(document, name.as_bytes())?.text()
}

/// The document or array under a name.
pub fn inner<'a>(document: &'a [u8], name: &str) -> Option<&'a [u8]> {
    find(document, name.as_bytes())?.document()
}

/// The documents of an array.
pub fn documents_of(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    elements(array)
        .map_while(Result::ok)
        .filter_map(|element| element.document())
}

/// Length of the document that begins here; nothing when it is not whole, or none.
pub fn len_at(bytes: &[u8]) -> Option<usize> {
    let len = i32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
    let len = usize::try_from(len)
        .ok()
        .filter(|len| *len >= SMALLEST_BYTES)?;
    (bytes.get(len - 1) == Some(&0)).then_some(len)
}

/// Whether these first bytes may begin a document: nothing, or a length that one can have.
pub fn len_begins(head: &[u8]) -> bool {
    let len = head
        .get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_le_bytes);
    len.is_none_or(|len| len >= SMALLEST_BYTES as i32)
}

/// Documents one behind the other, each an error where the bytes are none.
pub fn documents(bytes: &[u8]) -> impl Iterator<Item = Result<&[u8]>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
        let Some(len) = len_at(rest) else {
            let place = at;
            at = bytes.len();
            return Some(Err(Error::corrupt(format!(
                "at byte {place} of the documents there is none"
            ))));
        };
        at += len;
        Some(Ok(&rest[..len]))
    })
}

/// Servers nest no deeper.
const DEEPEST: usize = 200;

/// Whether a document nests no deeper than servers allow: what walks into it would not come back from deeper ones.
pub fn is_shallow(document: &[u8]) -> bool {
    let mut walks = vec![elements(document)];
    while let Some(walk) = walks.last_mut() {
        match walk.next() {
            None => {
                walks.pop();
            }
            Some(Ok(element)) => {
                if let Some(inner) = element.document() {
                    if walks.len() > DEEPEST {
                        return false;
                    }
                    walks.push(elements(inner));
                }
            }
            Some(Err(_)) => return false,
        }
    }
    true
}

/// The raw element `_id` of a document; nothing where it has none.
pub fn id(document: &[u8]) -> Option<&[u8]> {
    find(document, ID).map(|element| element.whole)
}

/// A document without elements.
pub const EMPTY: &[u8] = &[5, 0, 0, 0, 0];

/// A document that is being written.
#[derive(Clone, Debug)]
pub struct Writing(Vec<u8>);

impl Default for Writing {
    fn default() -> Self {
        Self::new()
    }
}

impl Writing {
    /// An empty one.
    pub fn new() -> Self {
        Self::with_capacity(256)
    }

    /// An empty one with room.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(bytes);
        buffer.extend_from_slice(&[0; 4]);
        Self(buffer)
    }

    /// A value as it stands.
    #[must_use]
    pub fn value(mut self, kind: u8, name: &[u8], value: &[u8]) -> Self {
        self.push(kind, name, value);
        self
    }

    /// The same in place.
    pub fn push(&mut self, kind: u8, name: &[u8], value: &[u8]) {
        self.0.push(kind);
        self.0.extend_from_slice(name);
        self.0.push(0);
        self.0.extend_from_slice(value);
    }

    /// An element as it stands in another document.
    pub fn push_element(&mut self, element: &[u8]) {
        self.0.extend_from_slice(element);
    }

    /// The same, in a chain.
    #[must_use]
    pub fn element(mut self, element: &[u8]) -> Self {
        self.push_element(element);
        self
    }

    /// A text.
    #[must_use]
    pub fn text(self, name: &str, text: &str) -> Self {
        let mut value = Vec::with_capacity(text.len() + 5);
        value.extend_from_slice(&(text.len() as i32 + 1).to_le_bytes());
        value.extend_from_slice(text.as_bytes());
        value.push(0);
        self.value(kind::STRING, name.as_bytes(), &value)
    }

    /// A whole number of 32 bits.
    #[must_use]
    pub fn int(self, name: &str, number: i32) -> Self {
        self.value(kind::INT32, name.as_bytes(), &number.to_le_bytes())
    }

    /// A whole number of 64 bits.
    #[must_use]
    pub fn long(self, name: &str, number: i64) -> Self {
        self.value(kind::INT64, name.as_bytes(), &number.to_le_bytes())
    }

    /// Yes or no.
    #[must_use]
    pub fn flag(self, name: &str, flag: bool) -> Self {
        self.value(kind::BOOLEAN, name.as_bytes(), &[u8::from(flag)])
    }

    /// An instant of the log.
    #[must_use]
    pub fn timestamp(self, name: &str, at: u64) -> Self {
        self.value(kind::TIMESTAMP, name.as_bytes(), &at.to_le_bytes())
    }

    /// A document inside.
    #[must_use]
    pub fn document(self, name: &str, document: &[u8]) -> Self {
        self.value(kind::DOCUMENT, name.as_bytes(), document)
    }

    /// An array of documents inside.
    #[must_use]
    pub fn documents<'a>(self, name: &str, documents: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut array = Self::new();
        for (n, document) in documents.into_iter().enumerate() {
            array.push(kind::DOCUMENT, n.to_string().as_bytes(), document);
        }
        self.value(kind::ARRAY, name.as_bytes(), &array.bytes())
    }

    /// The document.
    pub fn bytes(mut self) -> Vec<u8> {
        self.0.push(0);
        let len = (self.0.len() as i32).to_le_bytes();
        self.0[..4].copy_from_slice(&len);
        self.0
    }

    /// The document as the driver takes it.
    pub fn raw(self) -> Result<RawDocumentBuf> {
        RawDocumentBuf::from_bytes(self.bytes())
            .map_err(|e| bug(format!("a command is no BSON: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_walked_cut_and_put_together_again() {
        let inside = Writing::new().flag("f", true).bytes();
        let written = Writing::new()
            .text("a", "ä")
            .int("b", -1)
            .long("c", 1 << 40)
            .value(kind::NULL, b"d", &[])
            .value(0x0b, b"r", b"x\0i\0")
            .document("e", &inside)
            .documents("g", [&inside[..], &inside[..]])
            .element(&[0x06, b'a', 0])
            .bytes();
        let found: Vec<Element<'_>> = elements(&written).map(|e| e.unwrap()).collect();
        assert_eq!(found.len(), 8);
        assert_eq!(found[0].text(), Some("ä"));
        assert_eq!(found[1].integer(), Some(-1));
        assert_eq!(documents_of(found[6].value).count(), 2);
        let mut again = Writing::new();
        found.iter().for_each(|e| again.push_element(e.whole));
        assert_eq!(again.bytes(), written);
        // The first of two equal names counts.
        assert_eq!(text(&written, "a"), Some("ä"));
    }

    #[test]
    fn what_is_no_bson_is_an_error_and_never_a_panic() {
        let good = Writing::new().text("a", "bc").int("d", 4).bytes();
        for cut in 0..good.len() {
            assert_eq!(len_at(&good[..cut]), None, "{cut}");
            let _ = elements(&good[..cut]).count();
        }
        for at in 0..good.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                let _ = elements(&bad).count();
                let _ = documents(&bad).count();
                let _ = id(&bad);
            }
        }
        let two = [good.clone(), good.clone(), vec![1]].concat();
        let found: Vec<_> = documents(&two).collect();
        assert!(found[0].is_ok() && found[1].is_ok() && found[2].is_err());
    }
}
