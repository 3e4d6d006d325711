//! What is inside an archive: its last member, vouched for by its own digest, and vouching for everything else.

use crate::archive::format::{FORMAT, Need};
use crate::error::{Error, Result, bug, unsupported};
use crate::source::{Facts, PointInTime};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `.bk/manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// `bk-xz/1`.
    pub format: String,
    /// What a reader must know beyond that.
    pub needs: Vec<Need>,
    /// 32 hexadecimal digits, drawn for this run.
    pub id: String,
    /// Whose archive it is.
    pub site: String,
    /// The plain name of its day; what a sink published it as may differ.
    pub name: String,
    /// `--label`.
    #[serde(default)]
    pub label: Option<String>,
    /// Start of the run.
    pub created: Timestamp,
    /// End of the run, before publishing.
    pub finished: Timestamp,
    /// Who wrote it.
    pub tool: String,
    /// Whether everything that was asked for is inside, whole.
    pub complete: bool,
    /// Whether the run was asked for some of the site's sources only. Such an archive is whole, but stands for no full one.
    #[serde(default)]
    pub subset: bool,
    /// Greatest distance between two instances' instants, in milliseconds.
    pub skew_ms: u64,
    /// Reserved for archives that build on another.
    pub parent: Option<String>,
    /// Blocks in the file, this one's too.
    pub blocks: u32,
    /// Where the index is.
    pub index: Vec<IndexPiece>,
    /// What was backed up.
    pub instances: Vec<Instance>,
}

/// A block that holds a piece of the index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IndexPiece {
    /// Number of the block.
    pub block: u32,
    /// Where it begins.
    pub at: u64,
    /// Bytes that it takes.
    pub len: u64,
    /// Tar bytes inside.
    pub raw: u64,
    /// BLAKE3 of the stored bytes.
    pub sum: String,
    /// BLAKE3 of the tar bytes.
    pub raw_sum: String,
}

/// One instance of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Its name, and the first part of its members' paths.
    pub name: String,
    /// Its plugin.
    pub plugin: String,
    /// Who it was.
    pub identity: String,
    /// The same for people.
    pub describe: String,
    /// How it went.
    pub state: State,
    /// Point in time; nothing when there was no snapshot.
    pub at: Option<PointInTime>,
    /// What was written.
    pub totals: Totals,
    /// Units that are not whole, at most 1,000 by name.
    pub failed: Vec<FailedUnit>,
    /// Why the instance failed, or what is amiss with it as a whole.
    #[serde(default)]
    pub error: Option<String>,
    /// What the source must remember; layout and selection are in it.
    pub facts: Facts,
}

/// How an instance went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All of it is inside.
    Whole,
    /// Some units are missing or torn.
    Partial,
    /// It could not be read.
    Failed,
}

/// Sums over an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Units, each once.
    pub units: u64,
    /// Of them, how many failed.
    pub failed: u64,
    /// Tar members.
    pub members: u64,
    /// Rows, documents, entries.
    pub rows: u64,
    /// Bytes of bodies.
    pub bytes: u64,
}

/// A unit that is not whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedUnit {
    /// Its group.
    pub group: String,
    /// Its name.
    pub name: String,
    /// What happened.
    pub why: String,
}

/// `"self":"` + 64 digits + `"}`.
const SELF_BYTES: usize = 8 + 64 + 2;

impl Manifest {
    /// The text as it is stored: last field `self`, the BLAKE3 of all bytes before it.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec(self)
            .map_err(|e| bug(format!("the manifest cannot be written: {e}")))?;
        text.pop();
        text.push(b',');
        let digest = blake3::hash(&text).to_hex();
        text.extend_from_slice(format!("\"self\":\"{digest}\"}}").as_bytes());
        Ok(text)
    }

    /// Reads the stored text and checks its own digest first.
    pub fn from_bytes(text: &[u8]) -> Result<Self> {
        let (head, tail) = text
            .split_at_checked(text.len().saturating_sub(SELF_BYTES))
            .unwrap_or((text, b""));
        let expected = format!("\"self\":\"{}\"}}", blake3::hash(head).to_hex());
        if tail != expected.as_bytes() {
            return Err(Error::corrupt(
                "the manifest is not what was written: its own digest does not match",
            ));
        }
        let manifest: Self = serde_json::from_slice(text)
            .map_err(|e| Error::corrupt(format!("the manifest is malformed: {e}")))?;
        manifest.understood()?;
        Ok(manifest)
    }

    fn understood(&self) -> Result<()> {
        if self.format != FORMAT {
            return Err(unsupported(format!(
                "the archive's format is `{}`; this version knows `{FORMAT}`",
                self.format
            ))
            .hint("use a newer version of bk"));
        }
        // This version needs no word yet.
        match self.needs.first() {
            None => Ok(()),
            Some(need) => Err(unsupported(format!(
                "the archive needs `{}`, which this version does not know",
                need.word
            ))
            .hint(format!("use bk {} or newer", need.since))),
        }
    }

    /// The instance of this name.
    pub fn instance(&self, name: &str) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.name == name)
    }
}
