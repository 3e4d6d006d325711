//! `bk plugins new`: a plugin that works, to be changed.

use crate::output::say;
use bk_core::config::is_plain_name;
use bk_core::error::{Error, Result, conflict, settings};
use bk_core::plugin::manifest::FILE;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What the templates call themselves.
const PLACEHOLDER: &str = "PLUGIN_NAME";

pub fn run(name: &str, (source, sink, _): (bool, bool, bool)) -> Result<()> {
    if !is_plain_name(name) {
        return Err(settings(format!("`{name}` cannot name a plugin"))
            .hint("use letters, digits, `-` and `_`, at most 64"));
    }
    let files: &[(&str, &str)] = if source {
        &[
            (
                FILE,
                include_str!("../../../templates/source/bk-plugin.toml"),
            ),
            (
                "plugin.py",
                include_str!("../../../templates/source/plugin.py"),
            ),
        ]
    } else if sink {
        &[
            (FILE, include_str!("../../../templates/sink/bk-plugin.toml")),
            (
                "plugin.py",
                include_str!("../../../templates/sink/plugin.py"),
            ),
        ]
    } else {
        let path = format!("{name}.toml");
        let path = Path::new(&path);
        put(path, include_str!("../../../templates/command.toml"), name)?;
        say(&format!(
            "wrote {}; bk plugins test ./{}",
            path.display(),
            path.display()
        ));
        return Ok(());
    };
    let folder = Path::new(name);
    if folder.exists() {
        return Err(conflict(format!("`{name}` is there already")).hint("choose another name"));
    }
    std::fs::create_dir(folder).map_err(|e| Error::io("make the folder", folder, e))?;
    for (file, text) in files {
        put(&folder.join(file), text, name)?;
    }
    say(&format!("wrote {name}/; bk plugins test ./{name}"));
    Ok(())
}

fn put(path: &Path, template: &str, name: &str) -> Result<()> {
    use std::io::Write;
    let text = template.replace(PLACEHOLDER, name);
    let mut file = std::fs::File::create_new(path).map_err(|e| Error::io("write", path, e))?;
    file.write_all(text.as_bytes())
        .map_err(|e| Error::io("write", path, e))?;
    let runs = text.starts_with("#!");
    let mode = if runs { 0o755 } else { 0o644 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|e| Error::io("set the mode of", path, e))
}
