//! Names: of members, of units as people type them, and of archives.

use crate::error::{Error, ErrorKind, Result};
use crate::layout::Tier;
use jiff::Timestamp;
use std::fmt;

/// A member's path inside its instance: relative, `/` between parts, any bytes but NUL, no empty part, no `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberPath(Vec<u8>);

impl MemberPath {
    /// Longest path that is written or believed, in bytes.
    pub const MAX_BYTES: usize = 4096;

    /// Checks the bytes; an empty path is the instance's own folder.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        let bytes = bytes.into();
        match Self::fault(&bytes) {
            None => Ok(Self(bytes)),
            Some(fault) => Err(Error::new(
                ErrorKind::Corrupt,
                format!("member path `{}` {fault}", shortened(&bytes)),
            )),
        }
    }

    fn fault(bytes: &[u8]) -> Option<&'static str> {
        if bytes.is_empty() {
            return None;
        }
        if bytes.len() > Self::MAX_BYTES {
            return Some("is longer than 4096 bytes");
        }
        if bytes[0] == b'/' {
            return Some("is absolute");
        }
        bytes.split(|b| *b == b'/').find_map(|part| match part {
            b"" => Some("has an empty part"),
            b"." => Some("has a part `.`"),
            b".." => Some("leads out with `..`"),
            part if part.contains(&0) => Some("holds a NUL byte"),
            part if part.len() > 255 * 4 => Some("has a part longer than any file system takes"),
            _ => None,
        })
    }

    /// The bytes as they are.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// This path beneath `first`, which becomes its first part.
    #[must_use]
    pub fn beneath(&self, first: &str) -> Self {
        let mut bytes = first.as_bytes().to_vec();
        if !self.0.is_empty() {
            bytes.push(b'/');
            bytes.extend_from_slice(&self.0);
        }
        Self(bytes)
    }

    /// First part and the rest, or nothing for the empty path.
    pub fn split_first(&self) -> Option<(&[u8], Self)> {
        if self.0.is_empty() {
            return None;
        }
        match self.0.iter().position(|b| *b == b'/') {
            Some(at) => Some((&self.0[..at], Self(self.0[at + 1..].to_vec()))),
            None => Some((&self.0, Self(Vec::new()))),
        }
    }

    /// The parts, outermost first.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|part| !part.is_empty())
    }
}

impl fmt::Display for MemberPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

/// Bytes as a line of text that says all of them: UTF-8 stays, controls, backslashes and bytes that are no UTF-8 become `\xNN`.
/// Names are printed, indexed and selected in this form, so a newline or an escape code in a name harms no terminal and no log.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' || c.is_control() {
                let mut utf8 = [0; 4];
                push_hex(&mut text, c.encode_utf8(&mut utf8).as_bytes());
            } else {
                text.push(c);
            }
        }
        push_hex(&mut text, chunk.invalid());
    }
    text
}

/// The beginning of a name that may be of any length, for a message.
fn shortened(bytes: &[u8]) -> String {
    const SHOWN_BYTES: usize = 200;
    match bytes.get(..SHOWN_BYTES) {
        Some(beginning) if bytes.len() > SHOWN_BYTES => format!("{}…", escape(beginning)),
        _ => escape(bytes),
    }
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    use fmt::Write;
    for byte in bytes {
        write!(text, "\\x{byte:02x}").expect("writing to a String does not fail");
    }
}

/// The bytes that `escape` was given.
pub fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at..at + 4).filter(|h| h.starts_with(b"\\x"));
        let value = hex
            .and_then(|h| std::str::from_utf8(&h[2..]).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        if let Some(value) = value {
            out.push(value);
            at += 4;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    out
}

/// First 8 bytes of BLAKE3 as a little-endian number: the hash that decides borders (`core/FORMAT.md`).
pub fn hash64(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    u64::from_le_bytes(
        hash.as_bytes()[..8]
            .try_into()
            .expect("a BLAKE3 hash has 32 bytes"),
    )
}

/// An instant as it stands in file names and version words: `20260822T031500Z`.
pub fn compact(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// The name that an archive asks for: the day's, or one with the run's start when the day's is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveName {
    /// `[archive] prefix`.
    pub prefix: String,
    /// Start of the run.
    pub start: Timestamp,
    /// Day of that start in `[archive] timezone`, `2026-08-22`.
    pub day: String,
    /// `.tar.xz`, and what an envelope adds.
    pub suffix: String,
    /// The archive's id: what tells it from any other that asks for the same name.
    pub id: String,
    /// For which period it stands, where the sink has folders for that.
    pub tier: Tier,
}

impl ArchiveName {
    /// The name that an archive once asked for, from the one that it got: `backup.2026-08-22.20260822T031500Z-2.tar.xz.partial`.
    pub fn parse(stored: &str, start: Timestamp, id: &str) -> Option<Self> {
        let file = stored.rsplit('/').next()?;
        let suffix = file.find(".tar")?;
        let mut parts = file.match_indices('.').map(|(at, _)| at);
        let dot = parts.find(|dot| {
            let day = file.get(dot + 1..dot + 11).unwrap_or_default();
            *dot < suffix && day.parse::<jiff::civil::Date>().is_ok()
        })?;
        Some(Self {
            prefix: file[..dot].to_owned(),
            start,
            day: file[dot + 1..dot + 11].to_owned(),
            suffix: file[suffix..].trim_end_matches(".partial").to_owned(),
            id: id.to_owned(),
            tier: Tier::of(stored).unwrap_or_default(),
        })
    }

    /// The name that it asks for in another tier.
    #[must_use]
    pub fn in_tier(&self, tier: Tier) -> Self {
        Self {
            tier,
            ..self.clone()
        }
    }

    /// The names to try in order, without end: the day's, the start's, then `-2`, `-3`, … No published name is ever taken twice.
    pub fn candidates(&self, complete: bool) -> impl Iterator<Item = String> + '_ {
        let partial = if complete { "" } else { ".partial" };
        (0_u32..).map(move |attempt| {
            let start = compact(self.start);
            let middle = match attempt {
                0 => self.day.clone(),
                1 => format!("{}.{start}", self.day),
                n => format!("{}.{start}-{n}", self.day),
            };
            format!("{}.{middle}{}{partial}", self.prefix, self.suffix)
        })
    }

    /// A name that no other archive asks for, for sinks that fix it before the first byte: `backup.2026-08-22.20260822T031500Z-1f0c9a.tar.xz`.
    pub fn unique(&self) -> String {
        let id = self.id.get(..6).unwrap_or(&self.id);
        format!(
            "{}.{}.{}-{id}{}",
            self.prefix,
            self.day,
            compact(self.start),
            self.suffix
        )
    }

    /// The day's plain name.
    pub fn plain(&self) -> String {
        self.candidates(true).next().expect("candidates never end")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_names_come_back_byte_for_byte() {
        for bytes in [
            &b"plain"[..],
            b"new\nline",
            b"back\\slash",
            b"\xff\xfe",
            "Привет".as_bytes(),
            b"\\x41",
            b"\x1b[31m",
        ] {
            assert_eq!(unescape(&escape(bytes)), bytes);
            assert!(!escape(bytes).chars().any(char::is_control));
        }
    }

    #[test]
    fn a_stored_name_says_what_was_asked_for() {
        for stored in [
            "backup.2026-08-22.tar.xz",
            "daily/backup.2026-08-22.20260822T031500Z-2.tar.xz.partial",
            "my.site.2026-08-22.20260822T031500Z-1f0c9a.tar.xz",
        ] {
            let name = ArchiveName::parse(stored, Timestamp::UNIX_EPOCH, "1").unwrap();
            assert_eq!(name.day, "2026-08-22");
            assert_eq!(name.suffix, ".tar.xz");
            assert!(stored.contains(&format!("{}.2026", name.prefix)));
        }
        assert!(ArchiveName::parse("photos.tar", Timestamp::UNIX_EPOCH, "1").is_none());
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for path in ["/etc", "..", "a/../b", "a//b", "a/", "./a", "a\0b"] {
            assert!(MemberPath::new(path).is_err(), "{path:?}");
        }
        assert!(MemberPath::new("a/b..c/...").is_ok());
    }
}
