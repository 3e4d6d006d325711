//! The words and limits of "bk-xz/1". Each type here is a stored format: fields are added, never changed (`core/FORMAT.md`).

use serde::{Deserialize, Serialize};

/// What the first member and the manifest call this format.
pub const FORMAT: &str = "bk-xz/1";
/// No block holds more tar bytes than this.
pub const BLOCK_MAX_BYTES: u64 = 8 << 20;
/// After a member of so many bytes a block certainly closes; after shorter ones in proportion.
pub const BLOCK_MEAN_BYTES: u64 = 3 << 20;
/// A body over this starts its own block, and is cut there.
pub const BODY_CUT_BYTES: u64 = 4 << 20;
/// A body over this is streamed, in `Stage::Large` only.
pub const GATHERED_MAX_BYTES: u64 = 16 << 20;
/// Tar bytes of an index piece stay below this.
pub const INDEX_PIECE_BYTES: usize = 4 << 20;
/// Compressed index pieces that are held before they must be written early.
pub const INDEX_HELD_BYTES: u64 = 48 << 20;
/// What a reader fetches first.
pub const TAIL_BYTES: u64 = 64 << 10;
/// First member of an archive.
pub const FORMAT_MEMBER: &str = ".bk/format.json";
/// Last member of an archive.
pub const MANIFEST_MEMBER: &str = ".bk/manifest.json";
/// A tar record.
pub const RECORD_BYTES: u64 = 512;

/// How a block's bytes are coded. Both are LZMA2 to every reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Compressed.
    Lzma2,
    /// LZMA2 uncompressed chunks.
    Stored,
}

/// The order of restore. In an archive `Large` comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// What must be there before data: databases, tables, folders' owners.
    Schema,
    /// Rows, documents, files up to 16 MiB: many lanes, no order between them.
    Data,
    /// Bodies over 16 MiB, one after another, when no source holds a transaction any more.
    Large,
    /// What wants the data in place: indexes, triggers, folders' times, symbolic links.
    Finish,
}

impl Stage {
    /// All of them, in the order of restore.
    pub const ALL: [Self; 4] = [Self::Schema, Self::Data, Self::Large, Self::Finish];
}

/// `.bk/format.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FormatMember {
    /// `bk-xz/1`.
    pub format: String,
    /// What a reader must know beyond this page.
    pub needs: Vec<Need>,
    /// Who wrote it: `bk 0.1.0`.
    pub tool: String,
    /// Whose archive it is.
    pub site: String,
    /// 32 hexadecimal digits, drawn anew for each run.
    pub id: String,
    /// Start of the run.
    pub created: jiff::Timestamp,
}

/// A word that a reader must know, and the version of `bk` that learned it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// The word.
    pub word: String,
    /// First version that knows it.
    pub since: String,
}

/// One line of an index piece: about a block, or about a unit in a stage. Exactly one of the two is there.
#[derive(Debug, Serialize, Deserialize)]
pub struct IndexLine {
    /// A block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<BlockLine>,
    /// A unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<UnitLine>,
}

/// Where a block is, what it is, and which unit lies where in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockLine {
    /// Number of the block in the file, from 0.
    pub n: u32,
    /// Where it begins.
    pub at: u64,
    /// Bytes that it takes.
    pub len: u64,
    /// Tar bytes inside.
    pub raw: u64,
    /// How it is coded.
    pub codec: Codec,
    /// BLAKE3 of the stored bytes, hexadecimal.
    pub sum: String,
    /// BLAKE3 of the tar bytes, hexadecimal.
    pub raw_sum: String,
    /// Instance, or nothing for `.bk/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// Path of the first member that begins here, escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// `[group, unit, from, to]`: tar bytes of this block that belong to the unit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<(String, String, u64, u64)>,
    /// Members of one inode whose bodies stand apart, because they lie in different units: `[path, group of links]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inode_group: Vec<(String, u64)>,
    /// A body that is torn in this block: its path, and how many good bytes it had in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torn: Option<(String, u64)>,
    /// Parts of one streamed body are joined again: `[path of part, path of the whole]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub part_of: Vec<(String, String)>,
}

/// What a unit has in a stage, as counted when it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitLine {
    /// Instance.
    pub instance: String,
    /// Group, escaped.
    pub group: String,
    /// Unit, escaped; empty: what makes the group.
    pub name: String,
    /// Stage.
    pub stage: Stage,
    /// Tar members.
    pub members: u64,
    /// Rows, documents, entries: the source's own count.
    pub rows: u64,
    /// Bytes of bodies.
    pub bytes: u64,
    /// Why it is not whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}
