//! Indexes: lists of plugins that others keep, as TOML files at an address or a path. What was fetched of them lies in the plugins root.

use super::install::Place;
use super::{edit, root, said};
use crate::args::{Global, IndexCommand};
use crate::download::{self, beside, is_address};
use crate::output::{data, say};
use bk_core::error::{Error, Result, conflict, not_found, settings};
use bk_core::selector::did_you_mean;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Where fetched lists lie, in the plugins root.
const FOLDER: &str = ".indexes";

/// A list of plugins.
#[derive(Debug, Deserialize)]
struct Index {
    /// 1.
    #[serde(rename = "index")]
    format: u32,
    /// What it is called in `INDEX/NAME`.
    name: String,
    #[serde(default)]
    plugin: Vec<Listed>,
}

/// A plugin in a list.
#[derive(Debug, Deserialize)]
struct Listed {
    name: String,
    version: String,
    #[serde(default)]
    about: String,
    /// Of its manifest; a relative one starts from where the list is.
    url: String,
    /// SHA-256 of its manifest.
    sha256: String,
}

pub fn run(command: IndexCommand, global: &Global) -> Result<()> {
    let keys = ["indexes".to_owned()];
    match command {
        IndexCommand::List => said(global).indexes.iter().for_each(|place| data(place)),
        IndexCommand::Add { place } => {
            let place = absolute(place);
            edit(global, |edit| {
                // A TOML text, whatever is in it.
                let added = edit.append(&keys, &quoted(&place))?;
                say(&if added {
                    format!("{place}: added; bk plugins update")
                } else {
                    format!("{place}: is there already")
                });
                Ok(())
            })?;
        }
        IndexCommand::Remove { place } => {
            let place = absolute(place);
            let file = file_of(global, &place);
            edit(global, |edit| {
                if !edit.remove(&keys, &quoted(&place))? {
                    return Err(not_found(format!("there is no index `{place}`"))
                        .hint("bk plugins index list"));
                }
                Ok(())
            })?;
            // It may never have been fetched.
            let _ = std::fs::remove_file(file);
            say(&format!("{place}: removed"));
        }
    }
    Ok(())
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn absolute(place: String) -> String {
    if is_address(&place) {
        return place;
    }
    let path = std::path::absolute(&place).unwrap_or_else(|_| PathBuf::from(&place));
    path.to_string_lossy().into_owned()
}

fn file_of(global: &Global, place: &str) -> PathBuf {
    let sum = blake3::hash(place.as_bytes()).to_hex();
    root(global)
        .0
        .join(FOLDER)
        .join(format!("{}.toml", &sum[..16]))
}

fn parse(text: &str, place: &str) -> Result<Index> {
    let index: Index = toml::from_str(text)
        .map_err(|e| settings(format!("`{place}` is no index: {}", e.message())))?;
    if index.format == 1 {
        Ok(index)
    } else {
        Err(settings(format!(
            "`{place}` has format {}; this version knows 1",
            index.format
        ))
        .hint("use a newer bk"))
    }
}

pub async fn update(global: &Global) -> Result<()> {
    let places = said(global).indexes;
    if places.is_empty() {
        say("there are no indexes; bk plugins index add URL");
    }
    let folder = root(global).0.join(FOLDER);
    std::fs::create_dir_all(&folder).map_err(|e| Error::io("make the folder", &folder, e))?;
    for place in places {
        let bytes = download::get(&place).await?;
        let text = String::from_utf8(bytes)
            .map_err(|_| settings(format!("`{place}` is no index: it is not UTF-8")))?;
        let index = parse(&text, &place)?;
        let file = file_of(global, &place);
        write(&file, &text)?;
        say(&format!(
            "{}: {} plugins, from {place}",
            index.name,
            index.plugin.len()
        ));
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, text).map_err(|e| Error::io("write", &fresh, e))?;
    std::fs::rename(&fresh, file).map_err(|e| Error::io("write", file, e))
}

/// All lists that were fetched, each with its place.
fn fetched(global: &Global) -> Result<Vec<(String, Index)>> {
    let mut all = Vec::new();
    for place in said(global).indexes {
        let file = file_of(global, &place);
        match std::fs::read_to_string(&file) {
            Ok(text) => all.push((place.clone(), parse(&text, &place)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                say(&format!("{place} was not fetched yet; bk plugins update"));
            }
            Err(error) => return Err(Error::io("read", &file, error)),
        }
    }
    Ok(all)
}

pub fn search(pattern: &str, global: &Global) -> Result<()> {
    let pattern = pattern.to_lowercase();
    for (_, index) in fetched(global)? {
        for listed in index.plugin {
            let about = listed.about.lines().next().unwrap_or_default();
            let text = format!("{} {about}", listed.name).to_lowercase();
            if text.contains(&pattern) {
                data(&format!(
                    "{:30} {:8} {about}",
                    format!("{}/{}", index.name, listed.name),
                    listed.version
                ));
            }
        }
    }
    Ok(())
}

/// From where a plugin came, for its upgrade: an address, a whole path, or what an index knows; never a path that starts here.
pub fn place_again(from: &str, global: &Global) -> Result<Place> {
    if is_address(from) || Path::new(from).is_absolute() {
        return place_of(from, global);
    }
    in_indexes(from, global)
}

/// What a person named: a path or an address as it is, a name by the indexes.
pub fn place_of(what: &str, global: &Global) -> Result<Place> {
    let path = Path::new(what);
    if is_address(what) || path.exists() {
        return Ok(Place {
            at: what.to_owned(),
            sha256: None,
            from: absolute(what.to_owned()),
        });
    }
    in_indexes(what, global)
}

/// A name by the indexes. One name in two of them must be said with its index.
fn in_indexes(what: &str, global: &Global) -> Result<Place> {
    let is_name = |text: &str| bk_core::config::is_plain_name(text);
    let (wanted, name) = match what.split_once('/') {
        Some((index, name)) if is_name(index) && is_name(name) => (Some(index), name),
        None if is_name(what) => (None, what),
        _ => {
            return Err(not_found(format!("there is nothing at `{what}`"))
                .hint("name a file, a folder, an address, or a plugin of an index"));
        }
    };
    let mut found = Vec::new();
    let mut names = Vec::new();
    for (place, index) in fetched(global)? {
        for listed in index.plugin {
            names.push(listed.name.clone());
            if listed.name == name && wanted.is_none_or(|wanted| wanted == index.name) {
                found.push((place.clone(), index.name.clone(), listed));
            }
        }
    }
    match found.as_slice() {
        [(place, index, listed)] => Ok(Place {
            at: beside(place, &listed.url),
            sha256: Some(listed.sha256.clone()),
            from: format!("{index}/{name}"),
        }),
        [] => {
            let names = names.iter().map(String::as_str);
            let search = || "bk plugins update, then bk plugins search".into();
            Err(
                not_found(format!("no index has a plugin `{what}`, and it is no path"))
                    .hint(did_you_mean(name, names, search)),
            )
        }
        several => {
            let words: Vec<_> = several
                .iter()
                .map(|(_, index, _)| format!("bk plugins install {index}/{name}"))
                .collect();
            Err(conflict(format!("several indexes have a plugin `{name}`"))
                .hint(words.join(", or ")))
        }
    }
}
