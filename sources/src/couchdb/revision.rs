//! Leaves: which document, which revision; and the order in which they are read.

use bk_core::error::{Error, Result};
use bk_core::name::hash64;
use serde::Deserialize;
use std::borrow::Cow;

/// A revision of a document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leaf {
    /// The document.
    pub id: String,
    /// `3-967a00dff5e02add41819138abb3284d`.
    pub rev: String,
}

/// Prefix of documents that hold programs of the server.
pub const DESIGN: &str = "_design/";

impl Leaf {
    /// Whether it is a design document.
    pub fn is_design(&self) -> bool {
        self.id.starts_with(DESIGN)
    }

    /// `id` at `rev`, for people.
    pub fn shown(&self) -> String {
        format!("`{}` at {}", self.id, self.rev)
    }
}

/// Leaves of a database, packed: 16 bytes each beside the id and 21 bytes of revision.
#[derive(Default)]
pub struct Leaves {
    entries: Vec<(u64, u32)>,
    packed: Vec<u8>,
}

/// Marks a revision of 32 lower-case hexadecimal digits, as servers make them.
const USUAL: u8 = 0;
/// Any other.
const ODD: u8 = 1;

impl Leaves {
    /// How much memory it has taken.
    pub fn bytes(&self) -> usize {
        self.entries.len() * size_of::<(u64, u32)>() + self.packed.len()
    }

    /// Takes a leaf in.
    pub fn push(&mut self, id: &str, rev: &str) -> Result<()> {
        let at = u32::try_from(self.packed.len())
            .map_err(|_| Error::corrupt("a list of leaves has outgrown its bounds"))?;
        self.entries.push((hash64(id.as_bytes()), at));
        self.packed
            .extend_from_slice(&(id.len() as u32).to_le_bytes());
        self.packed.extend_from_slice(id.as_bytes());
        if let Some((generation, digits)) = usual(rev) {
            self.packed.push(USUAL);
            self.packed.extend_from_slice(&generation.to_le_bytes());
            self.packed.extend_from_slice(&digits);
        } else {
            let len = rev.len() as u32;
            self.packed.push(ODD);
            self.packed.extend_from_slice(&len.to_le_bytes());
            self.packed.extend_from_slice(rev.as_bytes());
        }
        Ok(())
    }

    /// By hash of the id, then id and revision, each once: an order that is the document's own, so that a database that was made anew is read in it too.
    pub fn sort(&mut self) {
        let packed = std::mem::take(&mut self.packed);
        let key = |entry: &(u64, u32)| (entry.0, unpacked(&packed, entry.1));
        self.entries
            .sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| key(a).cmp(&key(b))));
        self.entries
            .dedup_by(|a, b| a.0 == b.0 && unpacked(&packed, a.1) == unpacked(&packed, b.1));
        self.packed = packed;
    }

    /// The one at a place in their order.
    pub fn get(&self, n: usize) -> Option<Leaf> {
        Some(unpacked(&self.packed, self.entries.get(n)?.1))
    }
}

/// Generation and digits of a revision as servers make them.
fn usual(rev: &str) -> Option<(u32, [u8; 16])> {
    let (generation, digits) = rev.split_once('-')?;
    let number: u32 = generation.parse().ok()?;
    if digits.len() != 32 || number.to_string() != generation {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some((number, bytes))
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

fn unpacked(packed: &[u8], at: u32) -> Leaf {
    let at = at as usize;
    let word = |at: usize| {
        let bytes: [u8; 4] = packed[at..at + 4].try_into().unwrap_or_default();
        u32::from_le_bytes(bytes)
    };
    let id_end = at + 4 + word(at) as usize;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let rest = id_end + 1;
    let rev = if packed[id_end] == USUAL {
        let digits: String = packed[rest + 4..rest + 20]
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .filter_map(|nibble| char::from_digit(u32::from(nibble), 16))
            .collect();
        format!("{}-{digits}", word(rest))
    } else {
        text(&packed[rest + 4..rest + 4 + word(rest) as usize])
    };
    Leaf {
        id: text(&packed[at + 4..id_end]),
        rev,
    }
}

/// What every answer says of a document, whatever else is in it.
#[derive(Debug, Deserialize)]
pub struct Envelope<'a> {
    /// The document.
    #[serde(rename = "_id", borrow)]
    pub id: Cow<'a, str>,
    /// Its revision.
    #[serde(rename = "_rev", borrow, default)]
    pub rev: Cow<'a, str>,
    /// Whether this leaf is a deletion.
    #[serde(rename = "_deleted", default)]
    pub deleted: bool,
    /// Its attachments, as they stand.
    #[serde(rename = "_attachments", borrow, default)]
    pub attachments: Option<&'a serde_json::value::RawValue>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(leaves: &Leaves) -> Vec<Leaf> {
        (0..).map_while(|n| leaves.get(n)).collect()
    }

    #[test]
    fn leaves_come_back_as_they_are_and_in_the_same_order() {
        let revs = [
            "1-967a00dff5e02add41819138abb3284d",
            "1-x",
            "12-967A00dff5e02add41819138abb3284d",
            "01-967a00dff5e02add41819138abb3284d",
            "4294967296-967a00dff5e02add41819138abb3284d",
            "",
        ];
        let mut expected = Vec::new();
        let (mut one, mut two) = (Leaves::default(), Leaves::default());
        for n in 0..100 {
            for rev in revs {
                let id = format!("döc/{n}");
                one.push(&id, rev).unwrap();
                one.push(&id, rev).unwrap();
                expected.push(Leaf {
                    id,
                    rev: rev.into(),
                });
            }
        }
        for leaf in expected.iter().rev() {
            two.push(&leaf.id, &leaf.rev).unwrap();
        }
        one.sort();
        two.sort();
        let mut found: Vec<Leaf> = all(&one);
        assert_eq!(found, all(&two));
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }
}
