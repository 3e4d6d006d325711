//! A stand-in for CouchDB that others wrote: express-pouchdb, by npm. It lacks much, and reads numbers as floating point.

use crate::binary;
use crate::database::free_port;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

/// A running one, empty. Account admin, password right.
pub struct Pouchdb {
    /// Its port on loopback.
    pub port: u16,
    child: Child,
    stdin: Option<ChildStdin>,
    _folder: tempfile::TempDir,
}

impl Pouchdb {
    /// Starts one; says loudly when that cannot be done here.
    pub fn start() -> Option<Self> {
        match Self::started() {
            Ok(server) => Some(server),
            Err(why) => {
                crate::skip(&format!("express-pouchdb did not start: {why}"));
                None
            }
        }
    }

    fn started() -> Result<Self, String> {
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("servers/pouchdb");
        let mut child = Command::new(script)
            .arg(binary::cache())
            .arg(folder.path())
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?)
            .read_line(&mut line)
            .map_err(|e| e.to_string())?;
        if !line.starts_with("ready") {
            return Err(format!("it said `{}`", line.trim()));
        }
        Ok(Self {
            port,
            child,
            stdin,
            _folder: folder,
        })
    }

    /// How to get there.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Pouchdb {
    fn drop(&mut self) {
        // The script ends the server when its standard input ends.
        self.stdin = None;
        let _ = self.child.wait();
    }
}
