//! Reading an archive again, as far as is asked: its end, every stored byte, or every block decoded and every count compared.

pub mod dates;
pub mod foreign;

use crate::archive::read_at::{ReadAt, digest};
use crate::archive::reader::WholeFile;
use crate::archive::tail::{Line, Opened};
use crate::archive::tar;
use crate::archive::writer::hex;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How far an archive is read.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Manifest and index, whose counts agree.
    Listed,
    /// Every stored byte: SHA-256 of the whole where it is known, else the sum of each block.
    Hash,
    /// Every block decoded, every member and byte counted.
    #[default]
    Decoded,
}

impl Level {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Listed => "listed",
            Self::Hash => "hash",
            Self::Decoded => "decoded",
        }
    }
}

/// What a whole archive turned out to be.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// Id.
    pub id: String,
    /// Whether its manifest calls it whole.
    pub complete: bool,
    /// Stored bytes.
    pub bytes: u64,
    /// How far it was read.
    pub level: Level,
    /// SHA-256 of the stored bytes, when they were all read.
    pub sha256: Option<String>,
    /// Blocks.
    pub blocks: u64,
    /// Members: those that were read, or those that the index speaks of.
    pub members: u64,
    /// What is amiss but no damage.
    pub warnings: Vec<String>,
}

/// Members and bytes, as counted.
type Count = (u64, u64);

/// Reads it so far. `sums` is the text of its sum file, where there is one.
pub async fn verify(read: Arc<dyn ReadAt>, sums: Option<&str>, level: Level) -> Result<Verified> {
    let opened = Opened::open(read).await?;
    let mut warnings = Vec::new();
    let mut sha256 = None;
    let mut is_proven = false;
    if level > Level::Listed {
        let sum = hex(&digest::<Sha256>(opened.read()).await?);
        if let Some(sums) = sums {
            is_proven = compare_sums(sums, &sum, &opened.manifest.id, &mut warnings)?;
        }
        sha256 = Some(sum);
    }
    let found = match level {
        Level::Decoded => Some(decode_all(&opened).await?),
        Level::Hash if !is_proven => {
            WholeFile::new(&opened).check_stored().await?;
            None
        }
        _ => None,
    };
    let members = compare_counts(&opened, found.as_ref()).await?;
    let manifest = &opened.manifest;
    Ok(Verified {
        id: manifest.id.clone(),
        complete: manifest.complete,
        bytes: opened.stored_bytes(),
        level,
        sha256,
        blocks: manifest.blocks.into(),
        members,
        warnings,
    })
}

/// What is in it, instance by instance, as counted.
async fn decode_all(opened: &Opened) -> Result<BTreeMap<String, Count>> {
    let mut found: BTreeMap<String, Count> = BTreeMap::new();
    let mut cutter = Cutter::default();
    WholeFile::new(opened)
        .check(|line, raw| {
            let count = cutter.members(raw)?;
            if let Some(instance) = &line.instance {
                let sum = found.entry(instance.clone()).or_default();
                *sum = (sum.0 + count.0, sum.1 + count.1);
            }
            Ok(())
        })
        .await?;
    cutter.finish()?;
    Ok(found)
}

/// Whether it proves the archive. A sum file counts only for the archive with its id; any other is reported, never called corruption.
fn compare_sums(sums: &str, sha256: &str, id: &str, warnings: &mut Vec<String>) -> Result<bool> {
    match sum_in(sums, id) {
        None => {
            warnings.push(
                "the sum file beside the archive belongs to another one and was ignored".into(),
            );
            Ok(false)
        }
        Some(sum) if sum == sha256 => Ok(true),
        Some(_) => Err(Error::corrupt(
            "the SHA-256 of the file is not that of its sum file",
        )),
    }
}

/// What a sum file says of the archive with this id; nothing when it is another's.
pub fn sum_in<'a>(sums: &'a str, id: &str) -> Option<&'a str> {
    let mut lines = sums.lines();
    let of = lines.next()?.strip_prefix("# id ")?.split(' ').next()?;
    if of != id {
        return None;
    }
    Some(
        lines
            .next()
            .unwrap_or_default()
            .split(' ')
            .next()
            .unwrap_or_default(),
    )
}

/// What the units' lines say, added up, is what the instances say, and what was found where it was counted. Returns the members.
async fn compare_counts(opened: &Opened, found: Option<&BTreeMap<String, Count>>) -> Result<u64> {
    let mut said: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
    let mut lines = opened.lines().await?;
    while let Some(batch) = lines.next_piece().await? {
        for line in batch {
            if let Line::Unit(unit) = line {
                let sum = said.entry(unit.instance).or_default();
                *sum = (sum.0 + unit.members, sum.1 + unit.bytes, sum.2 + unit.rows);
            }
        }
    }
    let mut all = 0;
    for instance in &opened.manifest.instances {
        let (members, bytes, rows) = said.remove(&instance.name).unwrap_or_default();
        let totals = &instance.totals;
        let counted = (members, bytes);
        let found = found.map_or(counted, |found| {
            found.get(&instance.name).copied().unwrap_or_default()
        });
        all += members;
        if (members, bytes, rows) != (totals.members, totals.bytes, totals.rows)
            || found != (members, bytes)
        {
            return Err(Error::corrupt(format!(
                "`{}`: the manifest speaks of {} members and {} bytes, its units of {members} and {bytes}, the archive holds {} and {}",
                instance.name, totals.members, totals.bytes, found.0, found.1
            )));
        }
    }
    match said.keys().next() {
        None => Ok(all),
        Some(name) => Err(Error::corrupt(format!(
            "the index speaks of `{name}`, which the manifest does not know"
        ))),
    }
}

/// Counts members over blocks: a body may go on in the blocks that follow.
#[derive(Default)]
struct Cutter {
    /// Bytes of the current body and its padding that later blocks must bring.
    owed: u64,
}

impl Cutter {
    fn members(&mut self, raw: &[u8]) -> Result<Count> {
        let skip = self.owed.min(raw.len() as u64);
        self.owed -= skip;
        let (heads, owed) = tar::heads(&raw[skip as usize..])?;
        self.owed += owed;
        Ok((heads.0, heads.1))
    }

    fn finish(&self) -> Result<()> {
        if self.owed == 0 {
            Ok(())
        } else {
            Err(Error::corrupt("the last member ends early"))
        }
    }
}
