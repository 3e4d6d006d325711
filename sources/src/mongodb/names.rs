//! Names of databases and collections as files of `mongodump` have them.
//!
//! A database's folder is its bare name. A collection's file is its name as a form field is escaped; over 238 bytes the beginning, a `$` and
//! the SHA-1 of the whole name. (mongodb/mongo-tools, mongodump.)

pub use crate::parts::{name_of, part};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha1::{Digest, Sha1};
use std::fmt::Write;

/// The longest escaped name that is used as it is.
const ESCAPED_MAX_BYTES: usize = 238;
/// What is kept of a longer one.
const BEGINNING_BYTES: usize = 208;
/// Stands between the beginning and the hash.
const BEFORE_HASH: &str = "%24";

/// A collection's file name without its suffix.
pub fn file_name(collection: &str) -> String {
    let escaped = escaped(collection);
    if escaped.len() <= ESCAPED_MAX_BYTES {
        return escaped;
    }
    let hash = BASE64_URL_SAFE_NO_PAD.encode(Sha1::digest(collection.as_bytes()));
    format!("{}{BEFORE_HASH}{hash}", &escaped[..BEGINNING_BYTES])
}

fn escaped(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(byte as char);
            }
            b' ' => out.push('+'),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// Whether a file name holds the beginning of a name alone.
pub fn is_cut(file_name: &str) -> bool {
    file_name.len() == ESCAPED_MAX_BYTES && file_name.contains(BEFORE_HASH)
}

/// Whether the official tools fail on a file name: they unescape it as it is, and its cut goes through a `%XX`.
pub fn is_refused_by_mongorestore(file_name: &str) -> bool {
    is_cut(file_name) && unescaped(file_name).is_none()
}

/// The collection behind a file name; nothing where it is none, or was cut.
pub fn collection(file_name: &str) -> Option<String> {
    if is_cut(file_name) {
        return None;
    }
    // Programs of others write names as they are.
    Some(unescaped(file_name).unwrap_or_else(|| file_name.to_owned()))
}

fn unescaped(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                let hex = std::str::from_utf8(bytes.get(at + 1..at + 3)?).ok()?;
                out.push(u8::from_str_radix(hex, 16).ok()?);
                at += 3;
            }
            byte => {
                out.push(if byte == b'+' { b' ' } else { byte });
                at += 1;
            }
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_called_as_mongodump_calls_them() {
        for (name, file) in [
            ("big", "big"),
            ("emoji😀", "emoji%F0%9F%98%80"),
            ("new\nline", "new%0Aline"),
            ("per%cent", "per%25cent"),
            ("pl+us", "pl%2Bus"),
            ("sla/sh", "sla%2Fsh"),
            ("sp ace", "sp+ace"),
            ("system.buckets.x", "system.buckets.x"),
        ] {
            assert_eq!(file_name(name), file);
            assert_eq!(collection(file).as_deref(), Some(name));
        }
    }

    #[test]
    fn a_long_name_is_cut_and_carries_its_hash() {
        let name = "%".repeat(80);
        let file = file_name(&name);
        let expected = format!("{}%%24INrRfKqQYapyb-E03H3zLU18KNo", "%25".repeat(69));
        assert_eq!(file, expected);
        assert!(is_cut(&file) && is_refused_by_mongorestore(&file));
        assert_eq!(collection(&file), None);
        let plain = file_name(&"n".repeat(300));
        assert!(is_cut(&plain) && !is_refused_by_mongorestore(&plain));
        assert_eq!(file_name(&"n".repeat(238)), "n".repeat(238));
    }
}
