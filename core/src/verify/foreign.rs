//! Reading what `bk` did not make to its end: what its makers' checksums say, and what the sources that would restore it find in it.

use crate::archive::foreign::Foreign;
use crate::archive::tar::Kind;
use crate::config::Config;
use crate::context::Context;
use crate::error::Result;
use crate::restore::Request;
use crate::restore::foreign::{Claimed, claims, compare_checksums, scan, unclaimed};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// What it turned out to be.
#[derive(Clone, Debug, Serialize)]
pub struct VerifiedForeign {
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that each source takes.
    pub sources: BTreeMap<String, u64>,
    /// What is not whole, although it can be read.
    pub lacking: Vec<String>,
    /// What no source takes.
    pub unclaimed: Vec<String>,
    /// What its makers wrote of it.
    pub notes: Vec<String>,
}

/// Reads it all, and touches no server.
pub async fn verify_foreign(cx: &Context, config: &Config, path: &Path) -> Result<VerifiedForeign> {
    let thing = Arc::new(Foreign::open(path).await?);
    let candidates = scan(cx, &thing, &config.sources).await?;
    let notes = compare_checksums(cx, &thing, &candidates).await?;
    let mut left_out = HashSet::new();
    let request = Request::default();
    let found = claims(config, &request, &thing, &candidates, &mut left_out)?;
    let unclaimed = unclaimed(&candidates, &found, &left_out);
    let files = candidates.iter().filter(|c| c.kind == Kind::File);
    let (files, bytes) = files.fold((0, 0), |sum, c| (sum.0 + 1, sum.1 + c.len));
    let (mut sources, mut lacking) = (BTreeMap::new(), Vec::new());
    for (name, by_path) in found {
        let source = config.source(&name)?;
        let cx = cx.for_instance(&name);
        sources.insert(name.clone(), by_path.len() as u64);
        let input = Claimed::new(thing.clone(), by_path).input(&cx, &name, Arc::default());
        lacking.extend(source.source.examine(&cx, input).await?);
    }
    Ok(VerifiedForeign {
        files,
        bytes,
        sources,
        lacking,
        unclaimed,
        notes,
    })
}
