//! What happened, for people and programs. Returned also on failure; fields are only ever added.

use crate::error::{Error, ErrorKind};
use crate::manifest::{FailedUnit, State, Totals};
use jiff::Timestamp;
use serde::Serialize;

/// Why a run did not end with "done, all of it". Exit codes are made from the classes.
#[derive(Clone, Debug, Serialize)]
pub struct Cause {
    /// Which exit code it asks for.
    pub class: Class,
    /// What it is about: an instance, a sink, an archive.
    pub about: String,
    /// What happened.
    pub what: String,
    /// What to type.
    pub hint: Option<String>,
    /// Whether the same run may succeed later by itself.
    pub retry: bool,
}

/// Classes of causes, the gravest first: a run's exit code is that of the first one that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Stopped by a signal.
    Stopped,
    /// Settings, credentials or grants are wrong, or it is not supported.
    Settings,
    /// Another run holds the lock.
    Locked,
    /// A guard refused.
    Refused,
    /// Nothing of that name.
    NotFound,
    /// Corrupt or tampered.
    Corrupt,
    /// Failed; a retry may help.
    Failed,
    /// Something named is missing.
    Partial,
    /// Done, but stale.
    Stale,
}

impl From<ErrorKind> for Class {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Settings | ErrorKind::Auth | ErrorKind::Denied | ErrorKind::Unsupported => {
                Self::Settings
            }
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Corrupt => Self::Corrupt,
            ErrorKind::Conflict => Self::Refused,
            ErrorKind::Locked => Self::Locked,
            ErrorKind::Cancelled => Self::Stopped,
            ErrorKind::Unreachable | ErrorKind::NoSpace | ErrorKind::Plugin | ErrorKind::Bug => {
                Self::Failed
            }
        }
    }
}

impl Cause {
    /// The cause that an error is, about a thing.
    pub fn new(about: &str, error: &Error) -> Self {
        Self::of(error.kind.into(), about, error)
    }

    /// The same in another class.
    pub fn of(class: Class, about: &str, error: &Error) -> Self {
        Self {
            class,
            about: about.to_owned(),
            what: error.what.clone(),
            hint: error.hint.clone(),
            retry: error.kind.retry_may_help(),
        }
    }

    /// Something named is missing.
    pub fn partial(about: &str, what: impl Into<String>) -> Self {
        Self {
            class: Class::Partial,
            about: about.to_owned(),
            what: what.into(),
            hint: None,
            retry: false,
        }
    }
}

/// One backup.
#[derive(Clone, Debug, Serialize)]
pub struct BackupReport {
    /// The archive's id.
    pub id: String,
    /// Its plain name.
    pub name: String,
    /// Start.
    pub started: Timestamp,
    /// End.
    pub finished: Timestamp,
    /// Whether everything asked for is inside.
    pub complete: bool,
    /// Stored bytes.
    pub bytes: u64,
    /// Tar bytes inside.
    pub raw_bytes: u64,
    /// SHA-256 of the stored bytes.
    pub sha256: String,
    /// Greatest distance between two instances' instants.
    pub skew_ms: u64,
    /// The most memory that this process held, as the kernel says; 0 where it does not.
    pub peak_memory_bytes: u64,
    /// Per source.
    pub sources: Vec<SourceReport>,
    /// Per sink.
    pub sinks: Vec<SinkReport>,
    /// Instance tables whose plugin is not enabled.
    pub not_backed_up: Vec<String>,
    /// Things that need a look.
    pub warnings: Vec<String>,
    /// Why it is not "done, all of it".
    pub causes: Vec<Cause>,
}

/// One source of a backup.
#[derive(Clone, Debug, Serialize)]
pub struct SourceReport {
    /// The instance.
    pub name: String,
    /// Its plugin.
    pub plugin: String,
    /// Who it was.
    pub describe: String,
    /// How it went.
    pub state: State,
    /// What was written.
    pub totals: Totals,
    /// Milliseconds from snapshot to its last stage.
    pub milliseconds: u64,
    /// Where its log stood.
    pub position: Option<String>,
    /// Units that are not whole.
    pub failed: Vec<FailedUnit>,
    /// Why it failed as a whole.
    pub error: Option<String>,
    /// Things that need a look.
    pub warnings: Vec<String>,
}

/// One sink of a backup.
#[derive(Clone, Debug, Serialize)]
pub struct SinkReport {
    /// The instance.
    pub name: String,
    /// Where.
    pub describe: String,
    /// What it published, and as which version.
    pub published: Option<(String, String)>,
    /// Whether size and sum were read back and agree.
    pub verified: bool,
    /// Its other places in the folders of tiers.
    pub placed: Vec<String>,
    /// What retention did or why it held.
    pub pruned: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
}

/// One restore.
#[derive(Clone, Debug, Serialize)]
pub struct RestoreReport {
    /// Names this restore.
    pub id: String,
    /// The archive.
    pub archive: String,
    /// Per instance: how many units, rows and bytes came back.
    pub restored: Vec<RestoredReport>,
    /// What was left out, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Damaged blocks that another sink had whole.
    pub healed: Vec<String>,
    /// Things that need a look.
    pub warnings: Vec<String>,
    /// The command that repeats only the rest.
    pub repeat: Option<String>,
    /// What was held back meanwhile and runs again.
    pub released: Vec<String>,
    /// Why it is not "done, all of it".
    pub causes: Vec<Cause>,
}

/// One instance of a restore.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RestoredReport {
    /// The instance here.
    pub name: String,
    /// Units, each once.
    pub units: u64,
    /// Rows, documents, entries.
    pub rows: u64,
    /// Tar members.
    pub members: u64,
    /// Bytes.
    pub bytes: u64,
    /// Kept, not in the archive.
    pub kept: Vec<String>,
    /// Milliseconds.
    pub milliseconds: u64,
}
