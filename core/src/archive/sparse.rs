//! Files with holes: stored as GNU tar's sparse format 1.0, so that every tar of today gives the holes back. A body is a map in text, padded to
//! whole records, and then the bytes of the segments. (GNU tar manual, "PAX Format, Version 1.0".)

use crate::archive::format::RECORD_BYTES;
use crate::error::{Error, Result};

/// A map of more segments is not worth its text: such a file is stored with its holes as zeros.
pub const SEGMENTS_MAX: usize = 50_000;
/// Text of a map that is believed.
const TEXT_MAX_BYTES: usize = 4 << 20;

/// Where a file has bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// Length of the file, holes too.
    pub real_bytes: u64,
    /// Offset and length of each segment, in order, none empty.
    pub segments: Vec<(u64, u64)>,
}

impl Map {
    /// What stands before the segments.
    pub fn text(&self) -> Vec<u8> {
        let mut segments = self.segments.clone();
        let end = segments.last().map_or(0, |(at, len)| at + len);
        if end < self.real_bytes {
            // A hole at the end is said by a segment without bytes.
            segments.push((self.real_bytes, 0));
        }
        let places = segments.iter().flat_map(|(at, len)| [*at, *len]);
        let numbers: Vec<String> = std::iter::once(segments.len() as u64)
            .chain(places)
            .map(|number| number.to_string())
            .collect();
        let mut text = (numbers.join("\n") + "\n").into_bytes();
        text.resize(text.len().next_multiple_of(RECORD_BYTES as usize), 0);
        text
    }

    /// Bytes of the segments.
    pub fn data_bytes(&self) -> u64 {
        self.segments.iter().map(|(_, len)| len).sum()
    }

    /// The segments that a map's text names, and the length of the text; nothing while the text is not all there.
    fn parse(text: &[u8], real_bytes: u64) -> Result<Option<(Self, usize)>> {
        let mut rest = text;
        let Some(count) = number(&mut rest)? else {
            return Ok(None);
        };
        let mut map = Self {
            real_bytes,
            segments: Vec::new(),
        };
        let mut end = 0;
        for _ in 0..count {
            let (Some(at), Some(len)) = (number(&mut rest)?, number(&mut rest)?) else {
                return Ok(None);
            };
            let behind = at.checked_add(len).filter(|behind| *behind <= real_bytes);
            let Some(behind) = behind.filter(|_| at >= end) else {
                return Err(malformed("a segment lies outside of the file"));
            };
            end = behind;
            if len > 0 {
                map.segments.push((at, len));
            }
        }
        let used = (text.len() - rest.len()).next_multiple_of(RECORD_BYTES as usize);
        Ok((text.len() >= used).then_some((map, used)))
    }
}

/// A decimal number and its line end; nothing where the text ends in it.
fn number(text: &mut &[u8]) -> Result<Option<u64>> {
    const DIGITS_MAX: usize = 20;
    let Some(len) = text.iter().take(DIGITS_MAX + 1).position(|b| *b == b'\n') else {
        if text.len() > DIGITS_MAX {
            return Err(malformed("a number is too long"));
        }
        return Ok(None);
    };
    let digits = std::str::from_utf8(&text[..len]).ok();
    let value = digits.and_then(|digits| digits.parse().ok());
    *text = &text[len + 1..];
    value
        .map(Some)
        .ok_or_else(|| malformed("what should be a number is none"))
}

fn malformed(why: &str) -> Error {
    Error::corrupt(format!("the map of a sparse file is malformed: {why}"))
}

/// Takes a stored body piece by piece and says where its bytes belong.
#[derive(Debug)]
pub struct Expander {
    real_bytes: u64,
    /// What has come of the map's text; nothing once it is known.
    text: Option<Vec<u8>>,
    /// Segments that are not yet full, the next one last.
    left: Vec<(u64, u64)>,
}

impl Expander {
    /// Of a file that is so long.
    pub fn new(real_bytes: u64) -> Self {
        Self {
            real_bytes,
            text: Some(Vec::new()),
            left: Vec::new(),
        }
    }

    /// The next piece; `write` is told an offset in the file and bytes for it.
    pub fn push(
        &mut self,
        piece: &[u8],
        mut write: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let gathered;
        let mut piece = piece;
        if let Some(text) = &mut self.text {
            text.extend_from_slice(piece);
            let Some((map, used)) = Map::parse(text, self.real_bytes)? else {
                if text.len() > TEXT_MAX_BYTES {
                    return Err(malformed("it is too long"));
                }
                return Ok(());
            };
            gathered = text.split_off(used);
            piece = &gathered;
            self.text = None;
            self.left = map.segments.into_iter().rev().collect();
        }
        while !piece.is_empty() {
            let Some((at, len)) = self.left.pop() else {
                return Err(malformed("there are more bytes than segments"));
            };
            let now = usize::try_from(len).map_or(piece.len(), |len| len.min(piece.len()));
            write(at, &piece[..now])?;
            piece = &piece[now..];
            if (now as u64) < len {
                self.left.push((at + now as u64, len - now as u64));
            }
        }
        Ok(())
    }

    /// Nothing may be missing at the end.
    pub fn finish(&self) -> Result<()> {
        if self.text.is_some() || !self.left.is_empty() {
            return Err(malformed("its bytes end early"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(map: &Map, data: &[u8], piece: usize) -> Result<Vec<u8>> {
        let mut file = vec![0; map.real_bytes as usize];
        let mut expander = Expander::new(map.real_bytes);
        let stored = [map.text(), data.to_vec()].concat();
        for piece in stored.chunks(piece) {
            expander.push(piece, |at, bytes| {
                file[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
                Ok(())
            })?;
        }
        expander.finish().map(|()| file)
    }

    #[test]
    fn segments_come_back_to_their_places_however_the_body_is_cut() {
        let map = Map {
            real_bytes: 5000,
            segments: vec![(100, 50), (150, 7), (4000, 900)],
        };
        let data: Vec<u8> = (0..957_u32).map(|n| n as u8 | 1).collect();
        let whole = expand(&map, &data, 1 << 20).unwrap();
        assert_eq!(whole[100..157], data[..57]);
        assert_eq!(whole[4000..4900], data[57..]);
        for piece in [1, 7, 511, 512, 513] {
            assert_eq!(expand(&map, &data, piece).unwrap(), whole);
        }
        assert!(expand(&map, &data[1..], 512).is_err(), "short");
        assert!(
            expand(&map, &[&data[..], b"x"].concat(), 512).is_err(),
            "long"
        );
    }

    #[test]
    fn maps_that_lie_are_refused() {
        for text in [
            "1\n10\n91\n",
            "2\n50\n10\n40\n5\n",
            "x\n",
            "1\n-1\n2\n",
            "1\n18446744073709551615\n2\n",
            "999999999999999999999999\n",
        ] {
            let mut body = text.as_bytes().to_vec();
            body.resize(512, 0);
            let pushed = Expander::new(100).push(&body, |_, _| Ok(()));
            assert!(pushed.is_err(), "{text:?}");
        }
    }
}
