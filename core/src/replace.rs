//! A small file of this machine, replaced whole or not at all.

use crate::error::{Error, Result};
use std::fs::{File, Permissions};
use std::io::Write;
use std::path::Path;

/// Writes a new file beside it, syncs it, and puts it in its place; folders on the way are made. The new one is its owner's alone from the start,
/// unless it is given other rights.
pub fn file(path: &Path, bytes: &[u8], rights: Option<Permissions>) -> Result<()> {
    let fail = |doing: &str, e| Error::io(doing, path, e);
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| fail("make the folder of", e))?;
    let mut fresh = tempfile::Builder::new()
        .prefix(".bk-new-")
        .tempfile_in(folder)
        .map_err(|e| fail("write a new file beside", e))?;
    fresh
        .write_all(bytes)
        .and_then(|()| fresh.as_file().sync_all())
        .map_err(|e| fail("write a new file beside", e))?;
    if let Some(rights) = rights {
        std::fs::set_permissions(fresh.path(), rights)
            .map_err(|e| fail("give its rights to the new", e))?;
    }
    fresh
        .persist(path)
        .map_err(|e| fail("put a new file in the place of", e.error))?;
    let folder = File::open(folder).map_err(|e| fail("open the folder of", e))?;
    folder.sync_all().map_err(|e| fail("sync the folder of", e))
}
