//! Plans: pure, printable, made before anything is touched.

use crate::layout::Tier;
use crate::name::ArchiveName;
use crate::source::{Existing, Selected};
use jiff::Timestamp;
use serde::Serialize;

/// What a backup is about to do.
#[derive(Clone, Debug)]
pub struct BackupPlan {
    /// Names the archive.
    pub id: String,
    /// Start of the run.
    pub created: Timestamp,
    /// The name it asks for.
    pub name: ArchiveName,
    /// `--label`.
    pub label: Option<String>,
    /// Whether only some of the site's sources were asked for.
    pub subset: bool,
    /// `--pin`.
    pub pin: bool,
    /// `--tier`; without it an archive is its day's, and the first of a week, a month and a year is promoted.
    pub tier: Option<Tier>,
    /// Instance tables whose plugin is not enabled.
    pub not_backed_up: Vec<String>,
}

/// What a restore is about to do.
#[derive(Clone, Debug, Serialize)]
pub struct RestorePlan {
    /// Names this restore.
    pub id: String,
    /// The sink, or the file.
    pub from: String,
    /// Name of the archive there.
    pub name: String,
    /// Its version word.
    pub version: String,
    /// The archive's id.
    pub archive: String,
    /// When it was made.
    pub created: Timestamp,
    /// The site that made it.
    pub site: String,
    /// Who made it.
    pub tool: String,
    /// Whether it is whole.
    pub complete: bool,
    /// Whether `bk` did not make it.
    pub foreign: bool,
    /// The settings file.
    pub settings: String,
    /// What is restored.
    pub targets: Vec<Target>,
    /// What is left out, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Instances of the archive that have no source here; of what `bk` did not make, the files that no source here knows.
    pub without_source: Vec<String>,
    /// Bytes that are read of the archive, all passes together.
    pub reads_bytes: u64,
    /// Bytes that it has.
    pub of_bytes: u64,
}

/// One instance of a restore.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// Its name in the archive.
    pub instance: String,
    /// The source that it goes to.
    pub source: String,
    /// Where that is.
    pub describe: String,
    /// What happens to things that are there; nothing: the source's default.
    pub existing: Option<Existing>,
    /// Selected groups and units.
    pub selected: Vec<Selected>,
    /// Units, each once.
    pub units: u64,
    /// Rows, documents, entries.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// New names.
    pub into: Vec<String>,
    /// New names of groups, from and to.
    pub groups: Vec<(String, String)>,
}
