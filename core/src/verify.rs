//! Reading an archive to its end: every stored byte, every block decoded, every count compared.

pub mod foreign;

use crate::archive::read_at::{ReadAt, digest};
use crate::archive::reader::WholeFile;
use crate::archive::tail::{Line, Opened};
use crate::archive::tar;
use crate::archive::writer::hex;
use crate::error::{Error, Result};
use serde::Serialize;
use sha2::Sha256;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a whole archive turned out to be.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// Id.
    pub id: String,
    /// Whether its manifest calls it whole.
    pub complete: bool,
    /// Stored bytes.
    pub bytes: u64,
    /// SHA-256 of the stored bytes.
    pub sha256: String,
    /// Blocks.
    pub blocks: u64,
    /// Members that were read.
    pub members: u64,
    /// What is amiss but no damage.
    pub warnings: Vec<String>,
}

/// Members and bytes, as counted.
type Count = (u64, u64);

/// Reads it all. `sums` is the text of its sum file, where there is one.
pub async fn verify(read: Arc<dyn ReadAt>, sums: Option<&str>) -> Result<Verified> {
    let opened = Opened::open(read).await?;
    let sha256 = hex(&digest::<Sha256>(opened.read()).await?);
    let mut warnings = Vec::new();
    if let Some(sums) = sums {
        compare_sums(sums, &sha256, &opened.manifest.id, &mut warnings)?;
    }
    let mut found: BTreeMap<String, Count> = BTreeMap::new();
    let mut blocks = 0;
    let mut cutter = Cutter::default();
    WholeFile::new(&opened)
        .check(|line, raw| {
            blocks += 1;
            let count = cutter.members(raw)?;
            if let Some(instance) = &line.instance {
                let sum = found.entry(instance.clone()).or_default();
                *sum = (sum.0 + count.0, sum.1 + count.1);
            }
            Ok(())
        })
        .await?;
    cutter.finish()?;
    compare_counts(&opened, &found).await?;
    let members = found.values().map(|count| count.0).sum();
    let manifest = &opened.manifest;
    Ok(Verified {
        id: manifest.id.clone(),
        complete: manifest.complete,
        bytes: opened.stored_bytes(),
        sha256,
        blocks,
        members,
        warnings,
    })
}

/// A sum file counts only for the archive with its id; any other is reported, never called corruption.
fn compare_sums(sums: &str, sha256: &str, id: &str, warnings: &mut Vec<String>) -> Result<()> {
    match sum_in(sums, id) {
        None => {
            warnings.push(
                "the sum file beside the archive belongs to another one and was ignored".into(),
            );
            Ok(())
        }
        Some(sum) if sum == sha256 => Ok(()),
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

/// What the units' lines say, added up, is what the instances say, and what was found.
async fn compare_counts(opened: &Opened, found: &BTreeMap<String, Count>) -> Result<()> {
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
    for instance in &opened.manifest.instances {
        let (members, bytes, rows) = said.remove(&instance.name).unwrap_or_default();
        let totals = &instance.totals;
        let found = found.get(&instance.name).copied().unwrap_or_default();
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
        None => Ok(()),
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
