//! A folder of settings with a plugins root beside it.

use crate::binary::{Home, Ran};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Settings, and plugins from outside.
pub struct PluginHome(pub Home);

/// The folder of the plugins that are examples or bad.
pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins")
}

impl PluginHome {
    /// With these settings.
    pub fn new(settings: &str) -> Self {
        let home = Home::new(settings);
        std::fs::create_dir(home.path("root")).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(home.path("root"), mode).unwrap();
        Self(home)
    }

    /// With no settings at all.
    pub fn empty() -> Self {
        let home = Self::new("");
        std::fs::remove_file(home.0.path("plugins.toml")).unwrap();
        home
    }

    /// The program, ready to run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.0.command(arguments);
        command.env("BK_PLUGINS_ROOT", self.0.path("root"));
        command
    }

    /// Runs it to its end.
    pub fn bk(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    /// Copies an example into the plugins root.
    pub fn drop_in(&self, name: &str) {
        copy(
            &examples().join(name),
            &self.0.path(&format!("root/{name}")),
        );
    }

    /// The settings as they stand.
    pub fn settings(&self) -> String {
        std::fs::read_to_string(self.0.path("plugins.toml")).unwrap()
    }
}

/// A folder with what is in it; nothing that others may write.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o755)).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o755;
            std::fs::set_permissions(&target, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}
