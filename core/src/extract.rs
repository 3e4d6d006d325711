//! Members as plain files in a folder, whatever made them: `bk extract`. Trusts no name.

use crate::archive::format::Stage;
use crate::archive::reader::Copies;
use crate::archive::sparse::Expander;
use crate::config::Config;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, conflict, unsupported};
use crate::name::{MemberPath, escape};
use crate::restore::Chosen;
use crate::restore::input::{Body, Delivered, Member};
use crate::restore::select::{self, Selected};
use crate::selector::Selection;
use crate::source::{Existing, ExtractAs, Facts, Kind, UnitCount};
use crate::tree::{Tree, TreeOptions, Writing, leads_out};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Raw bytes per stored byte over which an archive counts as a bomb, unless allowed.
pub const RATIO_MAX: u64 = 1000;
/// Below so many raw bytes no ratio matters.
const RATIO_FREE_BYTES: u64 = 256 << 20;

/// How to extract.
#[derive(Clone, Debug)]
pub struct ExtractOptions {
    /// The folder.
    pub into: PathBuf,
    /// What of the archive.
    pub selection: Selection,
    /// What to do with files that are there.
    pub existing: Existing,
    /// Give back setuid and setgid bits.
    pub keep_setuid: bool,
    /// Write links that lead out.
    pub outward_links: bool,
    /// Raw bytes per stored byte that are allowed.
    pub max_ratio: u64,
}

/// What was extracted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Extracted {
    /// Members.
    pub members: u64,
    /// Bytes.
    pub bytes: u64,
    /// Left out, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Not written although they were asked for, with the reason.
    pub failed: Vec<(String, String)>,
    /// Things that need a look.
    pub warnings: Vec<String>,
}

/// Extracts.
pub async fn extract(cx: &Context, chosen: Chosen, options: &ExtractOptions) -> Result<Extracted> {
    let opened = chosen.copies[0].1.clone();
    let selected = select::select(&opened, &options.selection).await?;
    let names: Vec<String> = opened
        .manifest
        .instances
        .iter()
        .map(|i| i.name.clone())
        .filter(|name| selected.has_instance(name))
        .collect();
    let raw: u64 = names
        .iter()
        .map(|name| selected.totals_of(name).bytes)
        .sum();
    if raw > RATIO_FREE_BYTES && raw / selected.stored_bytes().max(1) > options.max_ratio {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "{raw} bytes would come out of {}: this looks like a bomb",
                selected.stored_bytes()
            ),
        )
        .hint(format!(
            "repeat with --max-ratio {} if you know it",
            raw / selected.stored_bytes().max(1) + 1
        )));
    }
    let copies = Arc::new(Copies::new(chosen.copies));
    let mut extracted = Extracted {
        skipped: selected.skipped.clone(),
        ..Extracted::default()
    };
    for name in names {
        extract_instance(cx, &name, &selected, &copies, options, &mut extracted).await?;
    }
    Ok(extracted)
}

/// Extracts what one source can write in another tool's form.
pub async fn extract_as(
    cx: &Context,
    config: &Config,
    chosen: Chosen,
    selection: &Selection,
    how: &ExtractAs,
) -> Result<Extracted> {
    let opened = chosen.copies[0].1.clone();
    let selected = select::select(&opened, selection).await?;
    let mut able = config.sources.iter().filter(|source| {
        source.source.forms().contains(&how.form.as_str()) && selected.has_instance(&source.name)
    });
    let Some(source) = able.next() else {
        let known: Vec<&str> = config
            .sources
            .iter()
            .flat_map(|s| s.source.forms().iter().copied())
            .collect();
        return Err(unsupported(format!(
            "nothing that is selected can be written as `{}`",
            how.form
        ))
        .hint(match known.as_slice() {
            [] => "no source here has a form of another tool".to_owned(),
            known => format!("the sources here have: {}", known.join(", ")),
        }));
    };
    if let Some(other) = able.next() {
        return Err(conflict(format!(
            "`{}` and `{}` can both be written as `{}`",
            source.name, other.name, how.form
        ))
        .hint(format!("name one with --only {}", source.name)));
    }
    let delivered = Arc::new(Mutex::new(Delivered {
        declared: selected.declared(&source.name),
        ..Delivered::default()
    }));
    let instance = opened
        .manifest
        .instances
        .iter()
        .find(|i| i.name == source.name);
    let facts = instance.map(|i| i.facts.clone()).unwrap_or_default();
    let cx = cx.for_instance(&source.name);
    let copies = Arc::new(Copies::new(chosen.copies));
    let input = selected.input(&cx, &source.name, facts, copies, delivered);
    let tally = source.source.extract_as(&cx, input, how).await?;
    let total = |of: fn(&UnitCount) -> u64| tally.units.iter().map(of).sum::<u64>();
    let rows = |counts: &[UnitCount]| counts.iter().map(|unit| unit.rows).sum::<u64>();
    let (want, got) = (rows(&selected.counts_of(&source.name)), rows(&tally.units));
    if want != got {
        return Err(Error::corrupt(format!(
            "{got} of {want} rows came out of the archive"
        )));
    }
    let named = |what: &String| (source.name.clone(), what.clone());
    let others = opened
        .manifest
        .instances
        .iter()
        .filter(|i| i.name != source.name);
    Ok(Extracted {
        members: total(|unit| unit.members),
        bytes: total(|unit| unit.bytes),
        skipped: others
            .map(|i| (i.name.clone(), format!("it has no form `{}`", how.form)))
            .chain(tally.warnings.iter().map(named))
            .collect(),
        failed: tally.failed.iter().map(named).collect(),
        warnings: Vec::new(),
    })
}

async fn extract_instance(
    cx: &Context,
    name: &str,
    selected: &Selected,
    copies: &Arc<Copies>,
    options: &ExtractOptions,
    extracted: &mut Extracted,
) -> Result<()> {
    let delivered = Arc::new(Mutex::new(Delivered {
        declared: selected.declared(name),
        ..Delivered::default()
    }));
    let cx = &cx.for_instance(name);
    let mut input = selected.input(
        cx,
        name,
        Facts::default(),
        copies.clone(),
        delivered.clone(),
    );
    let tree_options = TreeOptions {
        existing: options.existing,
        keep_setuid: options.keep_setuid,
        owners: false,
        outward_links: options.outward_links,
        exact_attributes: false,
    };
    let mut tree = Tree::open(
        &options.into.join(name),
        tree_options,
        &crate::backup::draw_id()?,
    )?;
    // Links last: nothing can be written through them.
    let mut links = Vec::new();
    for stage in Stage::ALL {
        let members = input.stage(stage).await?;
        while let Some(member) = members.next().await? {
            cx.check_cancelled()?;
            extracted.members += 1;
            match &member.meta.kind {
                Kind::Symlink(target)
                    if !options.outward_links && leads_out(&member.path, target) =>
                {
                    let why = format!(
                        "it leads out to `{}`; repeat with --outward-links to have it",
                        escape(target)
                    );
                    extracted
                        .failed
                        .push((format!("{name}/{}", member.path), why));
                }
                // Finish is the last stage, and gives folders their times after the links in them.
                Kind::Symlink(_) if stage != Stage::Finish => links.push(member),
                _ => extracted.bytes += write_member(&mut tree, member).await?,
            }
        }
    }
    for link in links {
        if let Kind::Symlink(target) = link.meta.kind.clone() {
            tree.symbolic_link(&link.path, &target, &link.meta)?;
        }
    }
    let delivered = delivered
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let short = selected.declared(name).into_iter().find(|(key, declared)| {
        delivered.counts.get(key).copied().unwrap_or_default() != *declared
    });
    extracted.warnings.extend(tree.not_given());
    match short {
        None => tree.sync(),
        Some((key, _)) => Err(Error::corrupt(format!(
            "unit `{name}/{}` holds less than the index declares",
            selected.unit_name(key.0)
        ))),
    }
}

/// Writes a file, hard link or folder; returns the bytes of its body. Anything else is refused.
pub async fn write_member(tree: &mut Tree, member: Member) -> Result<u64> {
    match &member.meta.kind {
        Kind::File if tree.link_to_inode(&member.path, &member.meta)? => {
            Ok(member.len.unwrap_or(0))
        }
        Kind::File => write_file(tree, &member.path.clone(), member).await,
        Kind::Hardlink(target) => tree.hard_link(&member.path, target).map(|()| 0),
        Kind::Directory => tree.folder_meta(&member.path, &member.meta).map(|()| 0),
        Kind::Symlink(target) => tree
            .symbolic_link(&member.path, target, &member.meta)
            .map(|()| 0),
        Kind::Other(flag) => Err(Error::corrupt(format!(
            "`{}` is a device or something else that no archive of bk holds (type {flag})",
            member.path
        ))),
    }
}

/// The body as it comes, or spread over the places that its map names.
async fn write_body(writing: &mut Writing, sparse: Option<u64>, body: Body) -> Result<()> {
    let mut expander = sparse.map(Expander::new);
    let mut write = |chunk: &[u8]| match &mut expander {
        None => writing.write(chunk),
        Some(expander) => {
            writing.count(chunk.len() as u64);
            expander.push(chunk, |at, bytes| writing.write_at(at, bytes))
        }
    };
    match body {
        Body::Whole(bytes) => write(&bytes)?,
        Body::Stream(mut stream) => {
            while let Some(chunk) = stream.next().await? {
                write(&chunk)?;
            }
        }
    }
    expander.map_or(Ok(()), |expander| expander.finish())
}

async fn write_file(tree: &mut Tree, path: &MemberPath, member: Member) -> Result<u64> {
    let mut writing = tree.begin(path)?;
    let expected = member.len;
    let written = write_body(&mut writing, member.meta.sparse, member.body).await;
    let short = |written: u64| expected.is_some_and(|len| len != written);
    match written {
        Ok(()) if short(writing.written()) => {
            writing.discard();
            Err(Error::corrupt(format!(
                "the body of `{path}` is not as long as it should be"
            )))
        }
        Ok(()) => tree.finish(writing, &member.meta),
        Err(error) => {
            writing.discard();
            Err(error)
        }
    }
}
