//! `bk plugins install`, `upgrade` and `uninstall`: files in the plugins root, and what was accepted of them in the settings.

use super::{describe, edit, index, root, said, settings_file};
use crate::args::Global;
use crate::builtin;
use crate::download::{self, beside, is_address};
use crate::output::say;
use bk_core::archive::writer::hex;
use bk_core::config::Accepted;
use bk_core::config::edit::Edit;
use bk_core::error::{Error, Result, conflict, not_found, settings};
use bk_core::plugin::manifest::{FILE, How, Manifest, name_of};
use bk_core::plugin::root::{Root, sha256};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub async fn install(what: &[String], global: &Global) -> Result<()> {
    for one in what {
        let place = index::place_of(one, global)?;
        one_from(&place, None, global).await?;
    }
    Ok(())
}

pub async fn upgrade(names: &[String], global: &Global) -> Result<()> {
    let accepted = said(global).accepted;
    let all = names.iter().any(|name| name == "all");
    let names: Vec<&String> = if all {
        accepted.keys().collect()
    } else {
        names.iter().collect()
    };
    for name in names {
        let from = accepted.get(name).and_then(|one| one.from.clone());
        let Some(from) = from else {
            if all {
                say(&format!(
                    "{name}: where it came from is not known; left as it is"
                ));
                continue;
            }
            return Err(not_found(format!("where `{name}` came from is not known"))
                .hint("bk plugins uninstall, then bk plugins install PATH or URL"));
        };
        let place = index::place_again(&from, global)?;
        one_from(&place, Some(name), global).await?;
    }
    Ok(())
}

pub fn uninstall(names: &[String], global: &Global) -> Result<()> {
    let root = root(global);
    for name in names {
        let manifests = root.manifests()?;
        let path = manifests.get(name).ok_or_else(|| {
            not_found(format!("`{name}` is not in `{}`", root.0.display())).hint("bk plugins list")
        })?;
        // First out of the settings: what is not enabled may lie there, but what is enabled must.
        edit(global, |edit| {
            edit.disable(name)?;
            edit.forget(name).map(drop)
        })?;
        let removed = if path.file_name().is_some_and(|file| file == FILE) {
            std::fs::remove_dir_all(path.parent().unwrap_or(path))
        } else {
            std::fs::remove_file(path)
        };
        removed.map_err(|e| Error::io("remove the plugin", path, e))?;
        say(&format!("{name}: uninstalled"));
    }
    Ok(())
}

/// From where a plugin comes: an address or a path, the sum that an index says, and what to remember.
pub struct Place {
    pub at: String,
    pub sha256: Option<String>,
    pub from: String,
}

async fn one_from(place: &Place, upgraded: Option<&str>, global: &Global) -> Result<()> {
    let root = root(global);
    make_root(&root)?;
    let fresh = tempfile::Builder::new()
        .prefix(".new-")
        .tempdir_in(&root.0)
        .map_err(|e| Error::io("make a folder in", &root.0, e))?;
    let manifest = bring(place, fresh.path()).await?;
    let name = manifest.name.clone();
    if builtin::registry().names().any(|known| known == name) {
        return Err(conflict(format!(
            "`{name}` is the name of a plugin of this program's own"
        ))
        .hint("give yours another name"));
    }
    match upgraded {
        Some(expected) if expected != name => {
            return Err(
                settings(format!("what was `{expected}` calls itself `{name}` now"))
                    .hint(format!("bk plugins install {}", place.from)),
            );
        }
        None if root.manifests()?.contains_key(&name) => {
            return Err(
                conflict(format!("`{name}` is installed already")).hint(format!(
                    "bk plugins upgrade {name}, or bk plugins uninstall {name}"
                )),
            );
        }
        _ => {}
    }
    let sum = sha256(manifest.whole())?;
    describe(&manifest, &place.from)?;
    let accepted = Accepted {
        sha256: sum,
        version: Some(manifest.version.clone()),
        from: Some(place.from.clone()),
    };
    // Whatever fails from here on, the plugin that was there is there again.
    let mut change = Edit::open(&settings_file(global))?;
    change.accept(&name, &accepted)?;
    let target = root
        .0
        .join(manifest.whole().file_name().unwrap_or_default());
    let old = root.manifests()?.get(&name).map(|path| whole_of(path));
    let aside = fresh.path().join(".old");
    let put_back = |error: Error| {
        if let Some(old) = &old {
            // It failed already; that is what is told.
            let _ = std::fs::rename(&aside, old);
        }
        error
    };
    if let Some(old) = &old {
        std::fs::rename(old, &aside).map_err(|e| Error::io("replace", old, e))?;
    }
    std::fs::rename(manifest.whole(), &target)
        .map_err(|e| put_back(Error::io("put the plugin into its place", &target, e)))?;
    if let Err(error) = change.write() {
        let gone = fresh.path().join(".new");
        let _ = std::fs::rename(&target, gone);
        return Err(put_back(error));
    }
    let is_enabled = said(global).enabled.contains(&name);
    say(&if is_enabled {
        format!("{name}: {} installed, and enabled", manifest.version)
    } else {
        format!("{name}: installed; bk plugins enable {name}")
    });
    Ok(())
}

/// All of the plugin whose manifest this is.
fn whole_of(path: &Path) -> PathBuf {
    if path.file_name().is_some_and(|file| file == FILE) {
        path.parent().unwrap_or(path).to_owned()
    } else {
        path.to_owned()
    }
}

fn make_root(root: &Root) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&root.0)
        .map_err(|e| Error::io("make the plugins root", &root.0, e))
}

/// Copies or fetches a plugin into a folder, and reads its manifest there.
async fn bring(place: &Place, into: &Path) -> Result<Manifest> {
    let path = Path::new(&place.at);
    if !is_address(&place.at) && path.is_dir() {
        let name = std::path::absolute(path)
            .unwrap_or_else(|_| path.to_owned())
            .file_name()
            .map(PathBuf::from)
            .unwrap_or_default();
        let target = into.join(name);
        copy(path, &target)?;
        return Manifest::read(&target.join(FILE));
    }
    let bytes = download::get(&place.at).await?;
    if let Some(expected) = &place.sha256 {
        compare(&place.at, &bytes, expected)?;
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| settings(format!("`{}` is no manifest of a plugin", place.at)))?;
    let file = place.at.rsplit('/').next().unwrap_or_default();
    let (first, folder) = if file == FILE {
        // Which folder it is in, only it knows.
        let said: toml::Table = text.parse().unwrap_or_default();
        let name = said.get("name").and_then(toml::Value::as_str);
        let folder = into.join(
            name.filter(|n| bk_core::config::is_plain_name(n))
                .unwrap_or("plugin"),
        );
        (folder.join(FILE), Some(folder))
    } else {
        (into.join(file), None)
    };
    if name_of(&first).is_empty() || first.extension().is_none_or(|e| e != "toml") {
        return Err(
            settings(format!("`{}` is no manifest of a plugin", place.at)).hint(format!(
                "name a NAME.toml, a folder with {FILE}, or an address of one"
            )),
        );
    }
    if let Some(folder) = &folder {
        make(folder)?;
    }
    put(&first, text.as_bytes(), false)?;
    let manifest = Manifest::read(&first)?;
    if let How::Protocol(_) = manifest.how {
        let Some(folder) = folder else {
            return Err(
                settings(format!("a protocol plugin is a folder with a {FILE}"))
                    .hint(format!("call its manifest {FILE}")),
            );
        };
        artifacts(&manifest, &place.at, &folder).await?;
    }
    Ok(manifest)
}

/// The files of a protocol plugin that comes from an address, or whose manifest was named alone.
async fn artifacts(manifest: &Manifest, at: &str, folder: &Path) -> Result<()> {
    let here = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    let mine = |target: &Option<String>| target.as_ref().is_none_or(|target| *target == here);
    let mine: Vec<_> = manifest
        .artifacts
        .iter()
        .filter(|artifact| mine(&artifact.target))
        .collect();
    if mine.is_empty() {
        return Err(settings(format!(
            "`{}` has no [[artifact]] for {here}",
            manifest.name
        ))
        .hint("install its folder, or ask its maintainer"));
    }
    for artifact in mine {
        let from = beside(at, &artifact.url);
        let bytes = download::get(&from).await?;
        compare(&from, &bytes, &artifact.sha256)?;
        let target = folder.join(&artifact.path);
        make(target.parent().unwrap_or(folder))?;
        put(&target, &bytes, artifact.executable)?;
    }
    Ok(())
}

fn compare(place: &str, bytes: &[u8], expected: &str) -> Result<()> {
    use sha2::Digest;
    let now = hex(&sha2::Sha256::digest(bytes));
    if now.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "`{place}` has the sha256 {now}; {expected} is expected"
    )))
}

fn make(folder: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)
        .map_err(|e| Error::io("make the folder", folder, e))
}

fn put(path: &Path, bytes: &[u8], runs: bool) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| Error::io("write", path, e))?;
    let mode = if runs { 0o755 } else { 0o644 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|e| Error::io("set the mode of", path, e))
}

/// A folder as it is, but writable by its owner alone. Links are followed only inside of files: one in a plugin is refused.
fn copy(from: &Path, to: &Path) -> Result<()> {
    make(to)?;
    let entries = std::fs::read_dir(from).map_err(|e| Error::io("list", from, e))?;
    for entry in entries {
        let path = entry.map_err(|e| Error::io("list", from, e))?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        let there = std::fs::symlink_metadata(&path).map_err(|e| Error::io("look at", &path, e))?;
        if there.is_dir() {
            if path.file_name().is_some_and(|name| name != "__pycache__") {
                copy(&path, &target)?;
            }
        } else if there.is_file() {
            let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
            put(&target, &bytes, there.permissions().mode() & 0o111 != 0)?;
        } else {
            return Err(
                settings(format!("`{}` is no file and no folder", path.display()))
                    .hint("a plugin is made of files"),
            );
        }
    }
    Ok(())
}
