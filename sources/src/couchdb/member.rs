//! What the members of an archive are, by their names.

use bk_core::error::{Error, Result};

/// How a database is made.
pub const DEFINITION: &str = "database.json";
/// Who may read and write.
pub const SECURITY: &str = "security.json";
/// Local documents.
pub const LOCAL: &str = "local.json";
/// Suffix of leaves without attachments, as `_bulk_docs` takes them.
pub const PLAIN: &str = "json";
/// Suffix of leaves with their attachments, many in a member.
pub const ATTACHED: &str = "attached";
/// Suffix of one with large ones.
pub const LARGE: &str = "large";

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Definition,
    Security,
    Local,
    /// JSON alone.
    Plain,
    /// Frames.
    Framed,
}

impl Kind {
    /// By its path.
    pub fn of(path: &str) -> Result<Self> {
        let name = path.rsplit('/').next().unwrap_or(path);
        match name {
            DEFINITION => return Ok(Self::Definition),
            SECURITY => return Ok(Self::Security),
            LOCAL => return Ok(Self::Local),
            _ => {}
        }
        match name.rsplit('.').next() {
            Some(PLAIN) => Ok(Self::Plain),
            Some(ATTACHED | LARGE) => Ok(Self::Framed),
            _ => Err(Error::corrupt(format!("`{path}` is nothing that is known"))),
        }
    }
}
