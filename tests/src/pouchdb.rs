//! A stand-in for CouchDB that others wrote: express-pouchdb, by npm. It lacks much, and reads numbers as floating point.

use crate::database::free_port;
use crate::script::Script;

/// A running one, empty. Account admin, password right.
pub struct Pouchdb {
    /// Its port on loopback.
    pub port: u16,
    // Before its folder goes.
    _script: Script,
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
        let script = Script::start("pouchdb", (folder.path(), port), &[""; 0], &[])?;
        Ok(Self {
            port,
            _script: script,
            _folder: folder,
        })
    }

    /// How to get there.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
