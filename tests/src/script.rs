//! Servers that the scripts of `servers/` start: each says `ready` and more when it answers, and ends its servers when its standard input ends.

use crate::binary;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

/// A running one. Ends with its handle.
pub struct Script {
    child: Child,
    stdin: Option<ChildStdin>,
    /// What it said behind `ready`.
    pub said: String,
}

impl Script {
    /// Starts one in a folder, on a port of loopback, with more words for its command line and its environment. An error is what it said instead.
    pub fn start(
        name: &str,
        (folder, port): (&Path, u16),
        more: &[impl AsRef<str>],
        environment: &[(&str, String)],
    ) -> Result<Self, String> {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("servers");
        let mut child = Command::new(script.join(name))
            .arg(binary::cache())
            .arg(folder)
            .arg(port.to_string())
            .args(more.iter().map(AsRef::as_ref))
            .envs(environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?)
            .read_line(&mut line)
            .map_err(|e| e.to_string())?;
        let said = line.trim().strip_prefix("ready");
        let said = said.ok_or_else(|| format!("it said `{}`", line.trim()))?;
        Ok(Self {
            said: said.trim().to_owned(),
            child,
            stdin,
        })
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}
