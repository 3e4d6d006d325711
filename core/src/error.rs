//! What went wrong, said so that a caller knows what to do next and a person knows what to type.

use std::fmt;
use std::path::Path;

/// Result of everything in `bk`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller does next. Exit codes are made from these (`cli/src/exit.rs`), so a kind is never a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// A setting is wrong or missing: the operator edits a file.
    Settings,
    /// A credential was refused. Never retried.
    Auth,
    /// Nobody answered, or the medium failed. A retry may help.
    Unreachable,
    /// No such archive, date, version or selection.
    NotFound,
    /// The credential is good, but lacks a right.
    Denied,
    /// Bytes are not what they were when they were written.
    Corrupt,
    /// The medium is full.
    NoSpace,
    /// The other side, or this version of `bk`, cannot do it.
    Unsupported,
    /// A guard refuses: the target is not empty, not confirmed, or half restored.
    Conflict,
    /// Another run holds the lock.
    Locked,
    /// Somebody asked to stop.
    Cancelled,
    /// A plugin broke its contract.
    Plugin,
    /// We broke ours.
    Bug,
}

impl ErrorKind {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn retry_may_help(self) -> bool {
        matches!(self, Self::Unreachable | Self::NoSpace | Self::Locked)
    }
}

/// One failure: a kind, a fragment, and what to type.
#[derive(Debug)]
pub struct Error {
    /// What the caller does next.
    pub kind: ErrorKind,
    /// Lower-case fragment without a period that fits after ``could not back up `mysql`: ``.
    pub what: String,
    /// An imperative that the user can type.
    pub hint: Option<String>,
    /// The cause below, as its library said it.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A failure of this kind.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            hint: None,
            source: None,
        }
    }

    /// The same failure with what to type next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure with its cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// The same failure, said of a larger thing: `context: what`.
    #[must_use]
    pub fn within(mut self, context: impl fmt::Display) -> Self {
        self.what = format!("{context}: {}", self.what);
        self
    }

    /// An I/O failure of `path`, its kind read off the operating system's code.
    pub fn io(doing: &str, path: &Path, error: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Denied,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::NoSpace,
            _ => ErrorKind::Unreachable,
        };
        Self::new(
            kind,
            format!("could not {doing} `{}`: {error}", path.display()),
        )
        .because(error)
    }

    /// Bytes that fail a check. Every reader of archives says it this way.
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, what)
    }

    /// The run was asked to stop.
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "stopped before it was done")
    }

    /// A copy that can be kept in a report: kind, words and hint, without the cause.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self {
            kind: self.kind,
            what: self.what.clone(),
            hint: self.hint.clone(),
            source: None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|cause| &**cause as _)
    }
}

/// Short forms for the common kinds: `Settings("…")` reads worse than `error::settings("…")`.
macro_rules! short_form {
    ($($(#[$doc:meta])* $name:ident => $kind:ident),* $(,)?) => {
        $( $(#[$doc])* pub fn $name(what: impl Into<String>) -> Error { Error::new(ErrorKind::$kind, what) } )*
    };
}

short_form! {
    /// A wrong or missing setting.
    settings => Settings,
    /// Nothing of that name.
    not_found => NotFound,
    /// Cannot be done here.
    unsupported => Unsupported,
    /// A guard refuses.
    conflict => Conflict,
    /// A plugin broke its contract.
    plugin => Plugin,
    /// We broke ours.
    bug => Bug,
}
