//! `bk plugins enable` and `disable`.

use super::{describe, edit, everything, no_such, root, said};
use crate::args::Global;
use crate::builtin;
use crate::output::say;
use bk_core::config::Accepted;
use bk_core::error::Result;
use bk_core::plugin::root::{only_ours, sha256};

/// Adds them to `plugins`. One of the plugins root is accepted as it is now: its sum stands in the settings from then on.
pub fn enable(names: &[String], global: &Global) -> Result<()> {
    let (root, built_in, before) = (root(global), builtin::registry(), said(global));
    let mut accepted = Vec::new();
    for name in names {
        if built_in.names().any(|known| known == name) {
            continue;
        }
        if !root.manifests()?.contains_key(name) {
            return Err(no_such(name, &everything(global)?));
        }
        let manifest = root.manifest(name)?;
        only_ours(&root.0, manifest.whole())?;
        let now = Accepted {
            sha256: sha256(manifest.whole())?,
            version: Some(manifest.version.clone()),
            from: before.accepted.get(name).and_then(|one| one.from.clone()),
        };
        if before
            .accepted
            .get(name)
            .is_none_or(|one| one.sha256 != now.sha256)
        {
            describe(&manifest, &manifest.path.display().to_string())?;
        }
        accepted.push((name, now));
    }
    edit(global, |edit| {
        for (name, now) in &accepted {
            edit.accept(name, now)?;
        }
        for name in names {
            let word = if edit.enable(name)? {
                "enabled"
            } else {
                "is enabled already"
            };
            say(&format!("{name}: {word}"));
        }
        Ok(())
    })
}

/// Takes them out of `plugins`; what stands in their instances' tables stays, and is told as not backed up.
pub fn disable(names: &[String], global: &Global) -> Result<()> {
    let enabled = said(global).enabled;
    let names = if names.iter().any(|name| name == "all") {
        enabled
    } else {
        names.to_vec()
    };
    edit(global, |edit| {
        for name in &names {
            let word = if edit.disable(name)? {
                "disabled"
            } else {
                "was not enabled"
            };
            say(&format!("{name}: {word}"));
        }
        Ok(())
    })
}
