//! What a run tells its watcher while it goes on. A watcher sees; it never changes data.

/// One thing that happened, said of the instance that the call names.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A phase began: `checking`, `snapshot`, `reading`, `restoring`, …
    Phase(&'a str),
    /// So many bytes of content went by since the last event.
    Bytes(u64),
    /// So many bytes were written to this sink since the last event.
    Stored(u64),
    /// The whole is expected to be so many bytes.
    Expect(u64),
    /// Something needs a look; the run goes on.
    Warning(&'a str),
    /// The instance is done, well or not.
    Done,
    /// A moment that hooks wait for, with its report.
    Reached(Moment, serde_json::Value),
}

/// The catalogue: everything that a `[[hook]]` can wait for. The report on its standard input is the JSON that `--json` prints for that thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A backup begins: the archive's plain name, id, sources, sinks.
    BackupStarted,
    /// A source is done, well or not: its part of the report.
    BackupSourceDone,
    /// The archive's last byte is written, nothing is published yet: name, id, bytes, sum, whether it is complete.
    BackupSealed,
    /// A sink has published the archive, or failed to: its part of the report.
    BackupStored,
    /// A backup ended, and all is well: the report.
    BackupDone,
    /// A backup ended, and not all is well, or it could not begin: the report, or the causes.
    BackupFailed,
    /// A restore begins to write: the plan.
    RestoreStarted,
    /// A source is restored, well or not: what it acknowledged.
    RestoreSourceDone,
    /// A restore ended, and all is well: the report.
    RestoreDone,
    /// A restore ended, and not all is well, or it could not begin: the report, or the causes.
    RestoreFailed,
    /// Retention deleted an archive: its name, version and sink.
    ArchiveDropped,
    /// A verification found something wrong: the report, or the causes.
    VerifyFailed,
    /// `bk check` found something wrong: the causes.
    CheckFailed,
    /// `bk fetch` did not bring what it should: the report, or the causes.
    FetchFailed,
}

impl Moment {
    /// All, in the order of a day.
    pub const ALL: [Self; 14] = [
        Self::BackupStarted,
        Self::BackupSourceDone,
        Self::BackupSealed,
        Self::BackupStored,
        Self::BackupDone,
        Self::BackupFailed,
        Self::RestoreStarted,
        Self::RestoreSourceDone,
        Self::RestoreDone,
        Self::RestoreFailed,
        Self::ArchiveDropped,
        Self::VerifyFailed,
        Self::CheckFailed,
        Self::FetchFailed,
    ];

    /// As it stands in `on = "…"`.
    pub fn word(self) -> &'static str {
        match self {
            Self::BackupStarted => "backup.started",
            Self::BackupSourceDone => "backup.source_done",
            Self::BackupSealed => "backup.sealed",
            Self::BackupStored => "backup.stored",
            Self::BackupDone => "backup.done",
            Self::BackupFailed => "backup.failed",
            Self::RestoreStarted => "restore.started",
            Self::RestoreSourceDone => "restore.source_done",
            Self::RestoreDone => "restore.done",
            Self::RestoreFailed => "restore.failed",
            Self::ArchiveDropped => "archive.dropped",
            Self::VerifyFailed => "verify.failed",
            Self::CheckFailed => "check.failed",
            Self::FetchFailed => "fetch.failed",
        }
    }

    /// The moment of this word.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|moment| moment.word() == word)
    }
}

/// Sees events of all instances, from any thread, and never blocks.
pub trait Progress: Send + Sync {
    /// `instance` is a source's or sink's name.
    fn event(&self, instance: &str, event: &Event<'_>);
}

/// Watches nothing.
#[derive(Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn event(&self, _instance: &str, _event: &Event<'_>) {}
}
