//! The documents of a dump as it comes, cut out of the JSON around them.

use bk_core::error::{Error, Result};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// One document, or one line of them, is not larger.
const LARGEST_BYTES: usize = 256 << 20;
/// How a file of couchbackup calls itself, since version 2.10.
const COUCHBACKUP: &str = "@cloudant/couchbackup";

/// In what form documents stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An object with a list `rows` or `docs`.
    List,
    /// A list in each line.
    Lines,
}

impl Form {
    /// By the beginning of a file; nothing when it is none of these.
    pub fn of(head: &[u8]) -> Option<Self> {
        let head = head.trim_ascii_start();
        let text = String::from_utf8_lossy(head);
        let begins = |names: &[&str]| {
            let first = text.strip_prefix('{')?.trim_start();
            names
                .iter()
                .any(|name| first.starts_with(&format!("\"{name}\"")))
                .then_some(())
        };
        if begins(&["rows", "total_rows", "offset", "new_edits", "docs"]).is_some() {
            let is_list = text.contains("\"rows\"") || text.contains("\"docs\"");
            return is_list.then_some(Self::List);
        }
        if begins(&["name"]).is_some() && text.contains(COUCHBACKUP) {
            return Some(Self::Lines);
        }
        let is_line = text.starts_with("[{\"_id\"")
            || text.starts_with("[{\"_rev\"")
            || text.starts_with("[]\n");
        is_line.then_some(Self::Lines)
    }
}

/// Where in a list the reader stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the list.
    Before,
    /// In it.
    In,
    /// After it.
    After,
}

/// Documents as they come.
pub struct Items {
    form: Option<Form>,
    buffer: Vec<u8>,
    /// Looked at already.
    at: usize,
    place: Place,
    depth: usize,
    in_text: bool,
    escaped: bool,
    /// Where the item that is being read begins.
    begin: Option<usize>,
    /// Lines that were cut off, with the line after them.
    broken: u64,
    last_is_broken: bool,
}

impl Default for Items {
    fn default() -> Self {
        Self {
            form: None,
            buffer: Vec::new(),
            at: 0,
            place: Place::Before,
            depth: 0,
            in_text: false,
            escaped: false,
            begin: None,
            broken: 0,
            last_is_broken: false,
        }
    }
}

impl Items {
    /// Lines that were cut off.
    pub fn broken(&self) -> u64 {
        self.broken
    }

    /// The items that end in these bytes.
    pub fn take(&mut self, chunk: &[u8]) -> Result<Vec<Bytes>> {
        self.buffer.extend_from_slice(chunk);
        if self.form.is_none() && self.buffer.len() >= 4096 {
            self.form = Form::of(&self.buffer);
        }
        match self.form {
            None => Ok(Vec::new()),
            Some(Form::List) => self.list(),
            Some(Form::Lines) => self.lines(),
        }
    }

    /// The last items; what was cut off is an error.
    pub fn finish(&mut self) -> Result<Vec<Bytes>> {
        let form = self.form.or_else(|| Form::of(&self.buffer));
        self.form = form;
        match form {
            None => Err(Error::corrupt("it holds no list of documents")),
            Some(Form::List) => {
                let found = self.list()?;
                if self.place != Place::After || self.depth != 0 {
                    return Err(cut_off());
                }
                Ok(found)
            }
            Some(Form::Lines) => {
                let mut found = self.lines()?;
                let rest = std::mem::take(&mut self.buffer);
                if !rest.trim_ascii().is_empty() {
                    found.extend(self.line(&rest));
                }
                if self.last_is_broken {
                    return Err(cut_off());
                }
                Ok(found)
            }
        }
    }

    /// Objects of the list that is a member of the outermost object.
    fn list(&mut self) -> Result<Vec<Bytes>> {
        let mut found = Vec::new();
        while self.at < self.buffer.len() {
            let byte = self.buffer[self.at];
            self.at += 1;
            if self.in_text {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_text = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_text = true,
                b'{' | b'[' => {
                    if byte == b'[' && self.depth == 1 && self.place == Place::Before {
                        self.place = Place::In;
                    } else if self.place == Place::In && self.depth == 2 {
                        self.begin = Some(self.at - 1);
                    }
                    self.depth += 1;
                }
                b'}' | b']' => {
                    self.depth = self.depth.checked_sub(1).ok_or_else(cut_off)?;
                    if self.place == Place::In && self.depth == 2 {
                        if let Some(begin) = self.begin.take() {
                            found.push(Bytes::copy_from_slice(&self.buffer[begin..self.at]));
                        }
                    } else if self.place == Place::In && self.depth == 1 {
                        self.place = Place::After;
                    }
                }
                _ => {}
            }
        }
        let keep = self.begin.unwrap_or(self.at);
        self.buffer.drain(..keep);
        self.at -= keep;
        self.begin = self.begin.map(|begin| begin - keep);
        self.refuse_too_large()?;
        Ok(found)
    }

    fn lines(&mut self) -> Result<Vec<Bytes>> {
        let mut found = Vec::new();
        while let Some(end) = self.buffer[self.at..].iter().position(|b| *b == b'\n') {
            let rest = self.buffer.split_off(self.at + end + 1);
            let line = std::mem::replace(&mut self.buffer, rest);
            self.at = 0;
            found.extend(self.line(&line));
        }
        self.at = self.buffer.len();
        self.refuse_too_large()?;
        Ok(found)
    }

    /// A list of documents; what says something of the file is passed over, and so is a line that broke off, where others come after it.
    fn line(&mut self, line: &[u8]) -> Vec<Bytes> {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Vec::new();
        }
        let line = Bytes::copy_from_slice(line);
        if line[0] == b'{' && serde_json::from_slice::<Marker>(&line).is_ok() {
            self.last_is_broken = false;
            return Vec::new();
        }
        // After an interruption the marker stands behind what was begun.
        let Ok(items) = serde_json::from_slice::<Vec<Option<&RawValue>>>(&line) else {
            self.broken += 1;
            let text = String::from_utf8_lossy(&line);
            self.last_is_broken = !text.ends_with(&format!("{COUCHBACKUP}:resume\"}}"));
            return Vec::new();
        };
        self.last_is_broken = false;
        items
            .into_iter()
            .flatten()
            .map(|item| line.slice_ref(item.get().as_bytes()))
            .collect()
    }

    fn refuse_too_large(&self) -> Result<()> {
        if self.buffer.len() > LARGEST_BYTES {
            return Err(Error::corrupt(format!(
                "a document, or a line of them, is larger than {} MiB",
                LARGEST_BYTES >> 20
            )));
        }
        Ok(())
    }
}

/// What couchbackup says of its own file.
#[derive(Deserialize)]
struct Marker {
    #[serde(alias = "marker", rename = "name")]
    _name: String,
}

fn cut_off() -> Error {
    Error::corrupt("it was cut off: its list of documents has no end")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str, piece: usize) -> Result<Vec<String>> {
        let mut items = Items::default();
        let mut found = Vec::new();
        for chunk in text.as_bytes().chunks(piece) {
            found.extend(items.take(chunk)?);
        }
        found.extend(items.finish()?);
        Ok(found
            .iter()
            .map(|item| String::from_utf8_lossy(item).into_owned())
            .collect())
    }

    #[test]
    fn documents_are_cut_out_of_every_form() {
        let rows = "{\"total_rows\":2,\"rows\":[\n{\"id\":\"a]}\\\"\",\"doc\":{\"_id\":\"a\",\"l\":[1,[2]]}},\n{\"id\":\"b\"}\n],\"x\":[1]}";
        let dump = "{\"new_edits\":false,\"docs\":[\n{\"_id\":\"a\"},\n{\"_id\":\"b\"}\n]}\n";
        let lines = "{\"name\":\"@cloudant/couchbackup\",\"version\":\"2.11\"}\n[{\"_id\":\"a\"},null]\n[{\"_id\":\"b{\"marker\":\"@cloudant/couchbackup:resume\"}\n[{\"_id\":\"b\"}]\n";
        for piece in 1..rows.len() {
            assert_eq!(all(rows, piece).unwrap().len(), 2, "{piece}");
            assert_eq!(
                all(dump, piece).unwrap(),
                ["{\"_id\":\"a\"}", "{\"_id\":\"b\"}"]
            );
            assert_eq!(
                all(lines, piece).unwrap(),
                ["{\"_id\":\"a\"}", "{\"_id\":\"b\"}"]
            );
        }
        for text in [rows, dump] {
            for cut in 1..text.trim_end().len() {
                assert!(all(&text[..cut], 7).is_err(), "{}", &text[..cut]);
            }
        }
        let cut = &lines[..lines.len() - 3];
        assert!(all(cut, 7).is_err(), "{cut}");
    }
}
