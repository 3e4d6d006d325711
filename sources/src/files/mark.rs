//! The mark of an unfinished restore: a file in the target that stands until everything selected was written.
//!
//! While it stands, a backup fails the groups and units that it names: a half-restored folder is never backed up as good.

use bk_core::error::{Error, ErrorKind, Result};
use bk_core::unfinished::{self, Unfinished};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Name of the mark; no walk sees it.
pub const MARK_NAME: &str = ".bk_unfinished_restore";

/// All unfinished restores of a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Each with what it selected.
    pub restores: Vec<Unfinished>,
    /// Ids of others that one of these covers: their temporary files may still lie here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leftovers: Vec<String>,
}

impl Mark {
    /// Whether this unit may be half restored.
    pub fn covers(&self, group: &str, unit: &str) -> bool {
        self.restores.iter().any(|r| r.covers(group, unit))
    }

    /// The refusal that a backup gives for its units.
    pub fn refusal(&self, instance: &str) -> Error {
        unfinished::refusal(&self.restores, instance)
    }
}

/// The mark in this folder, if one stands.
pub fn read(folder: &Path) -> Result<Option<Mark>> {
    let path = folder.join(MARK_NAME);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", &path, e)),
    };
    serde_json::from_slice(&text).map(Some).map_err(|e| {
        Error::new(
            ErrorKind::Conflict,
            format!("the mark `{}` cannot be read: {e}", path.display()),
        )
        .hint("look at the folder, and remove the mark when it is whole")
    })
}

/// Sets the mark for a restore that begins. Restores that it covers are forgotten, since it will write what they owed. Given back are the ids of all
/// whose temporary files may lie here: also of those that were covered by one that did not finish either.
pub fn begin(folder: &Path, mine: Unfinished) -> Result<Vec<String>> {
    let mut mark = read(folder)?.unwrap_or_default();
    let (covered, mut others): (Vec<_>, Vec<_>) = mark
        .restores
        .into_iter()
        .partition(|other| other.is_covered_by(&mine.selected));
    others.push(mine);
    mark.restores = others;
    mark.leftovers
        .extend(covered.into_iter().map(|restore| restore.id));
    write(folder, &mark)?;
    Ok(mark.leftovers)
}

/// Takes this restore out of the mark; the last one takes the mark away.
pub fn finish(folder: &Path, id: &str) -> Result<()> {
    let Some(mut mark) = read(folder)? else {
        return Ok(());
    };
    mark.restores.retain(|r| r.id != id);
    if mark.restores.is_empty() {
        forget(folder)
    } else {
        write(folder, &mark)
    }
}

/// Takes the mark away, whatever it says.
pub fn forget(folder: &Path) -> Result<()> {
    let path = folder.join(MARK_NAME);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path, e)),
        _ => sync(folder),
    }
}

fn write(folder: &Path, mark: &Mark) -> Result<()> {
    let path = folder.join(MARK_NAME);
    let temporary = folder.join(format!("{}mark", bk_core::tree::TEMPORARY_PREFIX));
    let text = serde_json::to_vec_pretty(mark).map_err(|e| bk_core::error::bug(e.to_string()))?;
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
    written
        .and_then(|()| std::fs::rename(&temporary, &path))
        .map_err(|e| Error::io("write", &path, e))?;
    sync(folder)
}

fn sync(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io("sync the folder", folder, e))
}
