//! Edits of `plugins.toml` that keep comments, order and everything else. A file is replaced whole, or not at all.

use super::Accepted;
use crate::error::{Error, ErrorKind, Result, settings};
use crate::replace;
use std::path::{Path, PathBuf};
use toml_edit::{Array, DocumentMut, Item, Table, Value, value};

/// A settings file that is being changed.
pub struct Edit {
    path: PathBuf,
    document: DocumentMut,
    crlf: bool,
}

impl Edit {
    /// The file as it is; where there is none, one that says its format and no more.
    pub fn open(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                "format = 1\nplugins = []\n".to_owned()
            }
            Err(error) => {
                return Err(Error {
                    kind: ErrorKind::Settings,
                    ..Error::io("read the settings in", path, error)
                });
            }
        };
        let document = text.parse::<DocumentMut>().map_err(|error| {
            settings(format!(
                "`{}` cannot be changed, because it cannot be read: {}",
                path.display(),
                error.message()
            ))
            .hint("bk config validate")
        })?;
        Ok(Self {
            path: path.to_owned(),
            document,
            crlf: text.contains("\r\n"),
        })
    }

    /// The text as it would be written.
    pub fn text(&self) -> String {
        let text = self.document.to_string();
        if self.crlf {
            text.replace("\r\n", "\n").replace('\n', "\r\n")
        } else {
            text
        }
    }

    /// Adds a plugin to `plugins`. False: it is there.
    pub fn enable(&mut self, name: &str) -> Result<bool> {
        self.append_value(&["plugins".into()], name.into())
    }

    /// Takes a plugin out of `plugins`. False: it is not there.
    pub fn disable(&mut self, name: &str) -> Result<bool> {
        self.remove_value(&["plugins".into()], &name.into())
    }

    /// Writes `[plugin.NAME]`.
    pub fn accept(&mut self, name: &str, accepted: &Accepted) -> Result<()> {
        let key = |key: &str| ["plugin".to_owned(), name.to_owned(), key.to_owned()];
        if let Some(from) = &accepted.from {
            self.set_value(&key("from"), from.as_str().into())?;
        }
        if let Some(version) = &accepted.version {
            self.set_value(&key("version"), version.as_str().into())?;
        }
        self.set_value(&key("sha256"), accepted.sha256.as_str().into())
    }

    /// Removes `[plugin.NAME]`.
    pub fn forget(&mut self, name: &str) -> Result<bool> {
        let removed = self.unset(&["plugin".into(), name.into()])?;
        let is_empty = |item: &Item| item.as_table().is_some_and(Table::is_empty);
        if self.document.get("plugin").is_some_and(is_empty) {
            self.document.remove("plugin");
        }
        Ok(removed)
    }

    /// Sets a key, with tables on the way to it where there are none. The text is a TOML value where it reads as one, else a text.
    pub fn set(&mut self, keys: &[String], text: &str) -> Result<()> {
        let value = text.parse::<Value>().unwrap_or_else(|_| text.into());
        self.set_value(keys, value)
    }

    fn set_value(&mut self, keys: &[String], new: Value) -> Result<()> {
        let (table, last) = self.way(keys)?;
        match table.get_mut(last).and_then(Item::as_value_mut) {
            // What stands around it stays: a comment behind it.
            Some(old) => {
                let decor = old.decor().clone();
                *old = new;
                *old.decor_mut() = decor;
            }
            None => {
                table.insert(last, value(new));
            }
        }
        Ok(())
    }

    /// Removes a key or a table. False: it is not there.
    pub fn unset(&mut self, keys: &[String]) -> Result<bool> {
        let Some((last, way)) = keys.split_last() else {
            return Ok(false);
        };
        let mut table: &mut Table = self.document.as_table_mut();
        for key in way {
            match table.get_mut(key).and_then(Item::as_table_mut) {
                Some(next) => table = next,
                None => return Ok(false),
            }
        }
        Ok(table.remove(last).is_some())
    }

    /// Adds an element to a list, which is made where there is none. False: it is there.
    pub fn append(&mut self, keys: &[String], text: &str) -> Result<bool> {
        self.append_value(keys, text.parse().unwrap_or_else(|_| text.into()))
    }

    fn append_value(&mut self, keys: &[String], new: Value) -> Result<bool> {
        let path = keys.join(".");
        let (table, last) = self.way(keys)?;
        let elements = table
            .entry(last)
            .or_insert_with(|| value(Array::new()))
            .as_array_mut()
            .ok_or_else(|| settings(format!("`{path}` is no list")))?;
        if elements.iter().any(|old| same(old, &new)) {
            return Ok(false);
        }
        let indent = elements.iter().last().and_then(|old| {
            let prefix = prefix_of(old);
            prefix.contains('\n').then(|| {
                let indent = prefix.rsplit('\n').next().unwrap_or_default();
                indent.to_owned()
            })
        });
        elements.push(new);
        // A list with a line for each element goes on so; a comment behind its last one stays there.
        if let Some(indent) = indent {
            let trailing = elements.trailing().as_str().unwrap_or_default().to_owned();
            let (comment, rest) = first_line(&trailing);
            elements.set_trailing(rest);
            elements.set_trailing_comma(true);
            if let Some(added) = elements.iter_mut().last() {
                added.decor_mut().set_prefix(format!("{comment}\n{indent}"));
            }
        }
        Ok(true)
    }

    /// Takes an element out of a list. False: it is not there.
    pub fn remove(&mut self, keys: &[String], text: &str) -> Result<bool> {
        self.remove_value(keys, &text.parse().unwrap_or_else(|_| text.into()))
    }

    fn remove_value(&mut self, keys: &[String], old: &Value) -> Result<bool> {
        let path = keys.join(".");
        let (table, last) = self.way(keys)?;
        let Some(item) = table.get_mut(last) else {
            return Ok(false);
        };
        let elements = item
            .as_array_mut()
            .ok_or_else(|| settings(format!("`{path}` is no list")))?;
        let Some(at) = elements.iter().position(|one| same(one, old)) else {
            return Ok(false);
        };
        // What stands before an element on the line of the one before is that one's; what stands behind goes with it.
        let prefix = prefix_of(&elements.remove(at));
        let (comment, _) = first_line(&prefix);
        if let Some(next) = elements.get_mut(at) {
            let behind = prefix_of(next);
            let own = if prefix.contains('\n') {
                first_line(&behind).1
            } else {
                behind.as_str()
            };
            next.decor_mut().set_prefix(format!("{comment}{own}"));
        } else if prefix.contains('\n') {
            let trailing = elements.trailing().as_str().unwrap_or_default().to_owned();
            elements.set_trailing(format!("{comment}{}", first_line(&trailing).1));
        }
        if at == 0
            && !prefix.contains('\n')
            && let Some(first) = elements.get_mut(0)
        {
            first.decor_mut().set_prefix(prefix);
        }
        Ok(true)
    }

    /// The table that holds the last key.
    fn way<'k>(&mut self, keys: &'k [String]) -> Result<(&mut dyn toml_edit::TableLike, &'k str)> {
        let Some((last, way)) = keys.split_last() else {
            return Err(settings("there is no key to set").hint("write -s source.mysql.host=db"));
        };
        let mut table: &mut dyn toml_edit::TableLike = self.document.as_table_mut();
        for (n, key) in way.iter().enumerate() {
            let item = table.entry(key).or_insert_with(|| {
                let mut fresh = Table::new();
                // `[source.ldap]` needs no `[source]` above it.
                fresh.set_implicit(n + 1 < way.len());
                Item::Table(fresh)
            });
            let path = way[..=n].join(".");
            table = item
                .as_table_like_mut()
                .ok_or_else(|| settings(format!("`{path}` is no table")))?;
        }
        Ok((table, last))
    }

    /// Writes the file: a new one beside it, synced, in its place, with the old one's rights. A link is followed.
    pub fn write(&self) -> Result<()> {
        let path = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let rights = std::fs::metadata(&path).ok().map(|old| old.permissions());
        replace::file(&path, self.text().as_bytes(), rights)
    }
}

fn prefix_of(value: &Value) -> String {
    let prefix = value.decor().prefix();
    prefix
        .and_then(|prefix| prefix.as_str())
        .unwrap_or_default()
        .to_owned()
}

/// Up to the first line end, and from it on.
fn first_line(text: &str) -> (&str, &str) {
    text.split_at(text.find('\n').unwrap_or(0))
}

fn same(one: &Value, other: &Value) -> bool {
    match (one.as_str(), other.as_str()) {
        (Some(one), Some(other)) => one == other,
        _ => one.to_string().trim() == other.to_string().trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(path: &str) -> Vec<String> {
        path.split('.').map(str::to_owned).collect()
    }

    fn edited(text: &str, edit: impl FnOnce(&mut Edit) -> Result<()>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugins.toml");
        std::fs::write(&path, text).unwrap();
        let mut open = Edit::open(&path).unwrap();
        edit(&mut open).unwrap();
        open.write().unwrap();
        std::fs::read_to_string(path).unwrap()
    }

    const TEXT: &str = "# ours\nformat = 1\nplugins = [\n    \"local\", # the disk\n    \"files\",\n]\n\n[sink.local] # here\npath = \"b\"   # beside\n\n[source.files]\npath = \"x\"\n";

    #[test]
    fn comments_and_order_stay_whatever_is_changed() {
        let now = edited(TEXT, |edit| {
            assert!(edit.enable("ldap")?);
            assert!(!edit.enable("ldap")?);
            edit.set(&keys("sink.local.path"), "c")?;
            edit.set(&keys("sink.local.required"), "false")?;
            edit.set(&keys("source.ldap.base"), "dc=example")
        });
        let expected = TEXT
            .replace("\"files\",\n]", "\"files\",\n    \"ldap\",\n]")
            .replace(
                "path = \"b\"   # beside\n",
                "path = \"c\"   # beside\nrequired = false\n",
            )
            + "\n[source.ldap]\nbase = \"dc=example\"\n";
        assert_eq!(now, expected);
    }

    #[test]
    fn a_comment_stays_with_the_element_that_it_stands_behind() {
        let list =
            "format = 1\nplugins = [\n    \"local\", # the disk\n    \"files\", # the tree\n]\n";
        let now = edited(list, |edit| edit.disable("files").map(drop));
        assert_eq!(now, list.replace("    \"files\", # the tree\n", ""));
        let now = edited(list, |edit| edit.disable("local").map(drop));
        assert_eq!(now, list.replace("    \"local\", # the disk\n", ""));
        let now = edited(list, |edit| edit.enable("true").map(drop));
        assert_eq!(now, list.replace("tree\n", "tree\n    \"true\",\n"));
        let flat = "format = 1\nplugins = [\"a\", \"b\", \"c\"]\n";
        for (gone, left) in [
            ("a", "[\"b\", \"c\"]"),
            ("b", "[\"a\", \"c\"]"),
            ("c", "[\"a\", \"b\"]"),
        ] {
            let now = edited(flat, |edit| edit.disable(gone).map(drop));
            assert_eq!(now, format!("format = 1\nplugins = {left}\n"));
        }
    }

    #[test]
    fn what_is_enabled_and_disabled_again_leaves_nothing_behind() {
        let now = edited(TEXT, |edit| {
            edit.enable("ldap")?;
            let accepted = Accepted {
                sha256: "00".into(),
                version: Some("1".into()),
                from: None,
            };
            edit.accept("ldap", &accepted)?;
            assert!(edit.disable("ldap")? && edit.forget("ldap")?);
            Ok(())
        });
        assert_eq!(now, TEXT);
    }

    #[test]
    fn lines_that_end_as_on_windows_go_on_so() {
        let now = edited(&TEXT.replace('\n', "\r\n"), |edit| {
            edit.enable("ldap").map(drop)
        });
        assert_eq!(now.matches('\n').count(), now.matches("\r\n").count());
        assert!(now.contains("\"ldap\""));
    }
}
