//! What makers of other backups write beside their files: `backup_manifest.json`, with a date, a type and checksums, in whatever words.
//!
//! Any text of 32, 64 or 128 hexadecimal digits is a checksum: of the file that is named beside it or that it is called by; where no file is
//! named, of the folder as a whole, for which there are several habits.

use crate::error::{Error, Result};
use md5::Digest;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;

/// The file that all of this stands in.
pub const FILE: &str = "backup_manifest.json";
/// Larger ones are none.
pub const MAX_BYTES: u64 = 1 << 20;

/// Words for the name of a file, in an object that describes it.
const NAMES: [&str; 6] = ["file", "filename", "file_name", "name", "path", "database"];
/// Words for a checksum, which are no names of files.
const SUMS: [&str; 6] = ["checksum", "sha256", "sha512", "md5", "hash", "digest"];
/// Words for the date, and for the type.
const DATES: [&str; 6] = [
    "date",
    "backup_date",
    "timestamp",
    "created",
    "created_at",
    "time",
];
const TYPES: [&str; 3] = ["type", "backup_type", "mode"];

/// A checksum, by how long it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sum {
    /// 32 digits.
    Md5(String),
    /// 64.
    Sha256(String),
    /// 128.
    Sha512(String),
}

impl Sum {
    /// `sha256:…` or the digits alone.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.rsplit(':').next()?.trim().to_ascii_lowercase();
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        match digits.len() {
            32 => Some(Self::Md5(digits)),
            64 => Some(Self::Sha256(digits)),
            128 => Some(Self::Sha512(digits)),
            _ => None,
        }
    }

    fn is_of(&self, sums: &Three) -> bool {
        match self {
            Self::Md5(digits) => *digits == sums.md5,
            Self::Sha256(digits) => *digits == sums.sha256,
            Self::Sha512(digits) => *digits == sums.sha512,
        }
    }
}

/// What such a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checksums {
    /// When it was made, as it stands there.
    pub date: Option<String>,
    /// Which type of backup.
    pub kind: Option<String>,
    /// Of single files.
    files: Vec<(String, Sum)>,
    /// Of the folder.
    whole: Vec<Sum>,
}

impl Checksums {
    /// Reads the file.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(text)
            .map_err(|e| Error::corrupt(format!("`{FILE}` is no JSON: {e}")))?;
        let word = |words: &[&str]| {
            words.iter().find_map(|word| match value.get(word)? {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            })
        };
        let mut found = Self {
            date: word(&DATES),
            kind: word(&TYPES),
            ..Self::default()
        };
        found.walk(&value, None);
        Ok(found)
    }

    /// `called` is what an object stands under.
    fn walk(&mut self, value: &Value, called: Option<&str>) {
        match value {
            Value::Object(fields) => {
                let named = NAMES
                    .iter()
                    .find_map(|name| fields.get(*name)?.as_str())
                    .or(called);
                for (key, value) in fields {
                    let is_word = SUMS.iter().any(|word| key.to_lowercase().contains(word));
                    let of = if is_word { named } else { Some(key.as_str()) };
                    match value {
                        Value::String(text) => {
                            if let Some(sum) = Sum::parse(text) {
                                self.take(of, sum);
                            }
                        }
                        Value::Array(_) => self.walk(value, None),
                        _ => self.walk(value, of.filter(|_| !is_word && is_a_file(key))),
                    }
                }
            }
            Value::Array(list) => list.iter().for_each(|value| self.walk(value, None)),
            _ => {}
        }
    }

    fn take(&mut self, of: Option<&str>, sum: Sum) {
        match of {
            Some(name) => self
                .files
                .push((name.trim_start_matches("./").to_owned(), sum)),
            None => self.whole.push(sum),
        }
    }

    /// Whether it has any.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.whole.is_empty()
    }

    /// Compares them with the files of the folder that they lie in. A file that is missing or differs is an error; what cannot be told is said.
    pub fn compare(&self, there: &BTreeMap<String, Three>, all: &Three) -> Result<Vec<String>> {
        let mut said = Vec::new();
        for (name, sum) in &self.files {
            match find(there, name) {
                Some((_, sums)) if sum.is_of(sums) => {}
                Some((file, _)) => {
                    return Err(Error::corrupt(format!(
                        "`{file}` is not what its checksum in `{FILE}` says"
                    )));
                }
                None => {
                    return Err(Error::corrupt(format!(
                        "`{name}` has a checksum in `{FILE}` and is not there"
                    )));
                }
            }
        }
        for sum in &self.whole {
            let alone = there.len() == 1 && there.values().all(|sums| sum.is_of(sums));
            if !alone && !sum.is_of(all) && !listings(there).iter().any(|l| sum.is_of(l)) {
                said.push(format!(
                    "the checksum of the whole in `{FILE}` is neither that of its files, one after the other, nor that of their list: it proves nothing"
                ));
            }
        }
        Ok(said)
    }
}

/// Whether a key may be a file's name, not a word for a part of the manifest.
fn is_a_file(key: &str) -> bool {
    !matches!(
        key,
        "files" | "databases" | "couchdb" | "components" | "contents" | "backup"
    )
}

/// By its path in the folder, by its name alone, or by the name of its database.
fn find<'a>(there: &'a BTreeMap<String, Three>, name: &str) -> Option<(&'a String, &'a Three)> {
    there.get_key_value(name).or_else(|| {
        there.iter().find(|(path, _)| {
            let last = path.rsplit('/').next().unwrap_or(path);
            last == name || last.strip_suffix(".json") == Some(name)
        })
    })
}

/// The three sums of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Three {
    /// MD5.
    pub md5: String,
    /// SHA-256.
    pub sha256: String,
    /// SHA-512.
    pub sha512: String,
}

/// Takes bytes for all three.
#[derive(Default)]
pub struct Summing {
    md5: md5::Md5,
    sha256: sha2::Sha256,
    sha512: sha2::Sha512,
}

impl Summing {
    /// More of them.
    pub fn take(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        self.sha256.update(bytes);
        self.sha512.update(bytes);
    }

    /// All that were taken.
    pub fn done(self) -> Three {
        use crate::archive::writer::hex;
        Three {
            md5: hex(&self.md5.finalize()),
            sha256: hex(&self.sha256.finalize()),
            sha512: hex(&self.sha512.finalize()),
        }
    }
}

/// The sums of a body; all of its bytes also go into `all`.
pub fn sums_of(body: &mut dyn Read, all: &mut Summing) -> std::io::Result<Three> {
    let (mut own, mut buffer) = (Summing::default(), vec![0; 1 << 16]);
    loop {
        let read = body.read(&mut buffer)?;
        if read == 0 {
            return Ok(own.done());
        }
        own.take(&buffer[..read]);
        all.take(&buffer[..read]);
    }
}

/// Sums of what `sha256sum` and its like print of the files, by name: the habit is to sum that list again.
fn listings(there: &BTreeMap<String, Three>) -> Vec<Three> {
    let mut found = Vec::new();
    let digits: [fn(&Three) -> &str; 3] = [|s| &s.md5, |s| &s.sha256, |s| &s.sha512];
    for digits in digits {
        for before in ["", "./"] {
            let lines = there
                .iter()
                .map(|(path, sums)| format!("{}  {before}{path}\n", digits(sums)));
            let mut by_name: Vec<String> = lines.collect();
            let mut by_sum = by_name.clone();
            by_sum.sort();
            for lines in [&mut by_name, &mut by_sum] {
                let mut sum = Summing::default();
                lines.iter().for_each(|line| sum.take(line.as_bytes()));
                found.push(sum.done());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three(bytes: &[u8]) -> Three {
        let mut sum = Summing::default();
        sum.take(bytes);
        sum.done()
    }

    fn folder() -> (BTreeMap<String, Three>, Three) {
        let files = [("app.json", "one"), ("k8s/all.yaml", "two")];
        let there = files.map(|(name, text)| (name.to_owned(), three(text.as_bytes())));
        (there.into(), three(b"onetwo"))
    }

    fn compared(text: &str) -> Result<Vec<String>> {
        let (there, all) = folder();
        Checksums::parse(text.as_bytes())?.compare(&there, &all)
    }

    #[test]
    fn checksums_are_found_wherever_they_stand() {
        let (there, all) = folder();
        let sum = &there["app.json"];
        let (md5, sha256, sha512) = (&sum.md5, &sum.sha256, &sum.sha512);
        for text in [
            format!(r#"{{"files":{{"app.json":"{sha256}"}}}}"#),
            format!(
                r#"{{"checksums":{{"app.json":"sha256:{sha256}","k8s/all.yaml":"{}"}}}}"#,
                there["k8s/all.yaml"].md5
            ),
            format!(r#"{{"files":[{{"name":"app.json","size":3,"md5":"{md5}"}}]}}"#),
            format!(r#"{{"databases":[{{"database":"app","checksum":"{sha512}"}}]}}"#),
            format!(
                r#"{{"files":{{"./app.json":{{"sha256":"{}"}}}}}}"#,
                sha256.to_uppercase()
            ),
            format!(r#"{{"checksum":"{}"}}"#, all.sha256),
        ] {
            let parsed = Checksums::parse(text.as_bytes()).unwrap();
            assert!(!parsed.is_empty(), "{text}");
            assert_eq!(compared(&text).unwrap(), [] as [&str; 0], "{text}");
            let wrong = text
                .replace(&sha256[..8], "00000000")
                .replace(&md5[..8], "00000000");
            let wrong = wrong
                .replace(&sha512[..8], "00000000")
                .replace(&all.sha256[..8], "00000000");
            if !text.contains(&sha256.to_uppercase()) {
                assert!(
                    compared(&wrong).map_or(true, |said| said.len() == 1),
                    "{wrong}"
                );
            }
        }
    }

    #[test]
    fn a_sum_of_a_list_is_one_habit_of_several() {
        let (there, _) = folder();
        let lines = there
            .iter()
            .map(|(path, s)| format!("{}  ./{path}\n", s.sha256));
        let list = lines.collect::<Vec<_>>().concat();
        let text = format!(
            r#"{{"date":"2024-01-15","type":"full","checksum":"{}"}}"#,
            three(list.as_bytes()).sha256
        );
        let parsed = Checksums::parse(text.as_bytes()).unwrap();
        assert_eq!(
            (parsed.date.as_deref(), parsed.kind.as_deref()),
            (Some("2024-01-15"), Some("full"))
        );
        assert_eq!(compared(&text).unwrap(), [] as [&str; 0]);
    }

    #[test]
    fn what_is_missing_or_differs_is_damage() {
        let other = three(b"other").sha256;
        for text in [
            format!(r#"{{"files":{{"app.json":"{other}"}}}}"#),
            format!(r#"{{"files":{{"gone.json":"{other}"}}}}"#),
            "{".to_owned(),
        ] {
            assert!(compared(&text).is_err(), "{text}");
        }
        assert_eq!(
            compared(&format!(r#"{{"checksum":"{other}"}}"#))
                .unwrap()
                .len(),
            1
        );
    }
}
