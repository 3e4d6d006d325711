//! Putting files back: each whole by temp and rename, counted by unit; with `replace` what the archive does not have is removed after.

use crate::files::mark::{self, MARK_NAME};
use crate::files::{Files, Filter, FilterWords, LAYOUT};
use bk_core::context::Context;
use bk_core::error::{Error, Result, bug, conflict};
use bk_core::extract::write_member;
use bk_core::name::{MemberPath, escape, unescape};
use bk_core::source::{
    Existing, Input, Kind, Member, Meta, RestoreOptions, Selected, Stage, Tally, UnitCount,
};
use bk_core::tree::{TEMPORARY_PREFIX, Tree, TreeOptions, leads_out};
use bk_core::unfinished::Unfinished;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Names that are printed of what was kept on purpose.
const KEPT_NAMED: usize = 100;

pub(super) async fn restore(
    files: &Files,
    cx: &Context,
    input: Input,
    how: &RestoreOptions,
) -> Result<Tally> {
    let target = how.into_place.clone().unwrap_or_else(|| files.path.clone());
    if how.forget_unfinished {
        mark::forget(&target)?;
        return Ok(Tally::default());
    }
    input.facts().refuse_newer_layout("the files", LAYOUT)?;
    let restoring = Restoring::new(target, cx.clone(), how.clone(), &input)?;
    // File work, so not on an async thread; the members come from one.
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(restoring.run(input)))
        .await
        .map_err(|e| bug(format!("the restore ended: {e}")))?
}

struct Restoring {
    target: PathBuf,
    cx: Context,
    how: RestoreOptions,
    existing: Existing,
    groups: HashMap<String, String>,
    filter: Filter,
    failed: HashSet<(String, String)>,
    tally: Tally,
    counts: BTreeMap<(String, String, Stage), (u64, u64)>,
    restored: HashSet<[u8; 16]>,
    /// Groups selected in part that were there before: their own mode, owner and time stay.
    keeps_properties: HashSet<String>,
    /// What the folder itself had.
    root: Option<Meta>,
}

impl Restoring {
    fn new(target: PathBuf, cx: Context, how: RestoreOptions, input: &Input) -> Result<Self> {
        let words: FilterWords =
            serde_json::from_value(input.facts().selection.clone()).unwrap_or_default();
        let filter = Filter::new(words).map_err(|e| {
            Error::corrupt(format!(
                "the selection in the archive's facts is no glob: {e}"
            ))
        })?;
        if let Some((group, _)) = how
            .into_group
            .iter()
            .find(|(group, new)| group == "." || new.contains('/') || new == "." || new == "..")
        {
            return Err(
                conflict(format!("group `{group}` cannot be given that name"))
                    .hint("a top-level folder gets a plain name: --into files/photos=photos_old"),
            );
        }
        Ok(Self {
            existing: how.existing.unwrap_or(Existing::Merge),
            groups: how.into_group.iter().cloned().collect(),
            failed: input.failed_units().iter().cloned().collect(),
            target,
            cx,
            how,
            filter,
            tally: Tally::default(),
            counts: BTreeMap::new(),
            restored: HashSet::new(),
            keeps_properties: HashSet::new(),
            root: None,
        })
    }

    async fn run(mut self, mut input: Input) -> Result<Tally> {
        let options = TreeOptions {
            existing: self.existing,
            keep_setuid: self.how.keep_setuid,
            owners: rustix::process::geteuid().is_root(),
            outward_links: self.how.outward_links,
            exact_attributes: input.facts().layout >= LAYOUT,
        };
        let mut tree = Tree::open(&self.target, options, &self.how.id)?;
        self.refuse_existing(&tree)?;
        for selected in self
            .how
            .selected
            .iter()
            .filter(|s| s.unit.is_some() && s.group != ".")
        {
            let path = MemberPath::new(unescape(&self.group(&selected.group)))?;
            if tree.exists(&path) {
                self.keeps_properties.insert(selected.group.clone());
            }
        }
        let selected = self
            .how
            .selected
            .iter()
            .map(|s| Selected {
                group: self.group(&s.group),
                unit: s.unit.clone(),
            })
            .collect();
        let unfinished = mark::begin(
            &self.target,
            Unfinished {
                id: self.how.id.clone(),
                archive: self.how.archive.clone(),
                selected,
            },
        )?;
        tree.remove_leftovers_of(&unfinished);
        for stage in [Stage::Schema, Stage::Data, Stage::Large] {
            self.stage(&mut tree, &mut input, stage).await?;
        }
        // Before folders get their times back: removing changes them.
        if self.existing == Existing::Replace {
            self.finish_names(&mut tree, &mut input).await?;
        } else {
            self.stage(&mut tree, &mut input, Stage::Finish).await?;
        }
        tree.sync()?;
        mark::finish(&self.target, &self.how.id)?;
        // Taking the mark away was the last change in the folder itself.
        if let Some(meta) = &self.root {
            tree.folder_meta(&MemberPath::new("")?, meta)?;
        }
        self.tally.warnings.extend(tree.not_given());
        self.tally.units = self
            .counts
            .into_iter()
            .map(|((group, name, stage), (members, bytes))| UnitCount {
                group,
                name,
                stage,
                members,
                rows: members,
                bytes,
            })
            .collect();
        Ok(self.tally)
    }

    fn group(&self, group: &str) -> String {
        self.groups
            .get(group)
            .cloned()
            .unwrap_or_else(|| group.to_owned())
    }

    /// `--existing refuse`: before anything is written, by the groups and units that are selected.
    fn refuse_existing(&self, tree: &Tree) -> Result<()> {
        if self.existing != Existing::Refuse {
            return Ok(());
        }
        for selected in &self.how.selected {
            let there = match self.place_of(selected)? {
                Some(path) => tree.exists(&path).then(|| path.to_string()),
                None => self.loose_file(&self.group(&selected.group))?,
            };
            if let Some(there) = there {
                return Err(conflict(format!(
                    "`{}` is there already",
                    self.target.join(there).display()
                ))
                .hint("repeat with --existing merge or --existing replace"));
            }
        }
        Ok(())
    }

    /// The folder of a group or unit; nothing for loose files.
    fn place_of(&self, selected: &Selected) -> Result<Option<MemberPath>> {
        let group = unescape(&self.group(&selected.group));
        match selected.unit.as_deref() {
            _ if group == b"." => Ok(None),
            Some(".") => Ok(None),
            None => MemberPath::new(group).map(Some),
            Some(unit) => {
                MemberPath::new([group, b"/".to_vec(), unescape(unit)].concat()).map(Some)
            }
        }
    }

    fn loose_file(&self, group: &str) -> Result<Option<String>> {
        let folder = if group == "." {
            self.target.clone()
        } else {
            self.target.join(OsStr::from_bytes(&unescape(group)))
        };
        Ok(list(&folder)?
            .into_iter()
            .find(|(_, is_folder)| !is_folder)
            .map(|(name, _)| escape(&name)))
    }

    async fn stage(&mut self, tree: &mut Tree, input: &mut Input, stage: Stage) -> Result<()> {
        let members = input.stage(stage).await?;
        while let Some(member) = members.next().await? {
            self.cx.check_cancelled()?;
            self.member(tree, member, stage).await?;
        }
        Ok(())
    }

    /// With `replace`: the names of Finish are needed before anything is removed, and removing must come before its times are set.
    async fn finish_names(&mut self, tree: &mut Tree, input: &mut Input) -> Result<()> {
        let members = input.stage(Stage::Finish).await?;
        let mut later = Vec::new();
        while let Some(member) = members.next().await? {
            let path = self.renamed(&member.path, &member.meta.kind)?;
            self.restored.insert(key(&path));
            later.push(member);
        }
        self.remove_the_rest(tree)?;
        for member in later {
            self.member(tree, member, Stage::Finish).await?;
        }
        Ok(())
    }

    fn renamed(&self, path: &MemberPath, kind: &Kind) -> Result<MemberPath> {
        let Some((first, rest)) = path.split_first() else {
            return Ok(path.clone());
        };
        match self.groups.get(&escape(first)) {
            Some(new) if !rest.as_bytes().is_empty() => {
                MemberPath::new([new.as_bytes(), b"/", rest.as_bytes()].concat())
            }
            Some(new) if *kind == Kind::Directory => MemberPath::new(new.as_bytes()),
            _ => Ok(path.clone()),
        }
    }

    async fn member(&mut self, tree: &mut Tree, mut member: Member, stage: Stage) -> Result<()> {
        let unit = member.unit.clone();
        let shown = member.path.to_string();
        member.path = self.renamed(&member.path, &member.meta.kind)?;
        if let Kind::Hardlink(target) = &member.meta.kind {
            member.meta.kind = Kind::Hardlink(self.renamed(target, &Kind::File)?);
        }
        self.restored.insert(key(&member.path));
        if unit.1.is_empty() && self.keeps_properties.contains(&unit.0) {
            self.counts.entry((unit.0, unit.1, stage)).or_default().0 += 1;
            return Ok(());
        }
        if let Kind::Symlink(target) = &member.meta.kind
            && !self.how.outward_links
            && leads_out(&member.path, target)
        {
            self.tally.failed.push(format!("the symbolic link `{shown}` leads out to `{}`; repeat with --outward-links to have it", escape(target)));
            return Ok(());
        }
        if member.path.as_bytes().is_empty() {
            self.root = Some(member.meta.clone());
        }
        match write_member(tree, member).await {
            Ok(bytes) => {
                let count = self.counts.entry((unit.0, unit.1, stage)).or_default();
                *count = (count.0 + 1, count.1 + bytes);
                Ok(())
            }
            Err(error) => Err(error.within(format!("member `{shown}`"))),
        }
    }

    /// What is selected ends equal to the archive: the rest of it goes, but for what the backup itself left out or could not read.
    fn remove_the_rest(&mut self, tree: &mut Tree) -> Result<()> {
        for selected in self.how.selected.clone() {
            match self.place_of(&selected)? {
                Some(place) => self.remove_in(tree, &place, &selected.group)?,
                None => self.remove_loose(tree, &selected.group)?,
            }
        }
        Ok(())
    }

    fn remove_loose(&mut self, tree: &mut Tree, group: &str) -> Result<()> {
        let new = unescape(&self.group(group));
        let (folder, prefix) = if group == "." {
            (self.target.clone(), Vec::new())
        } else {
            (
                self.target.join(OsStr::from_bytes(&new)),
                [&new[..], b"/"].concat(),
            )
        };
        for (name, is_folder) in list(&folder)? {
            if !is_folder {
                self.remove_one(
                    tree,
                    MemberPath::new([&prefix[..], &name].concat())?,
                    group,
                    ".",
                )?;
            }
        }
        Ok(())
    }

    fn remove_in(&mut self, tree: &mut Tree, place: &MemberPath, group: &str) -> Result<()> {
        for (name, is_folder) in list(&self.target.join(OsStr::from_bytes(place.as_bytes())))? {
            let path = MemberPath::new([place.as_bytes(), b"/", &name].concat())?;
            let parts: Vec<_> = path.parts().collect();
            let unit = if parts.len() == 2 && !is_folder {
                ".".to_owned()
            } else {
                escape(parts.get(1).copied().unwrap_or_default())
            };
            if is_folder
                && (self.restored.contains(&key(&path)) || self.holds_kept(&path, group, &unit))
            {
                self.remove_in(tree, &path, group)?;
            } else {
                self.remove_one(tree, path, group, &unit)?;
            }
        }
        Ok(())
    }

    /// A folder that the archive does not have, in which the backup may have left something out.
    fn holds_kept(&self, path: &MemberPath, group: &str, unit: &str) -> bool {
        self.failed.contains(&(group.to_owned(), unit.to_owned()))
            || !self.filter.words().exclude.is_empty() && self.any_left_out(path, group)
    }

    fn any_left_out(&self, path: &MemberPath, group: &str) -> bool {
        let children =
            list(&self.target.join(OsStr::from_bytes(path.as_bytes()))).unwrap_or_default();
        children.iter().any(|(name, is_folder)| {
            MemberPath::new([path.as_bytes(), b"/", name].concat()).is_ok_and(|child| {
                self.left_out(&child, group) || *is_folder && self.any_left_out(&child, group)
            })
        })
    }

    /// Whether the backup's own selection left it out; it was asked by the name that it had there.
    fn left_out(&self, path: &MemberPath, group: &str) -> bool {
        let archived = match path.split_first() {
            Some((_, rest)) if self.groups.contains_key(group) => {
                MemberPath::new([&unescape(group)[..], b"/", rest.as_bytes()].concat())
                    .unwrap_or_else(|_| path.clone())
            }
            _ => path.clone(),
        };
        let archived = Path::new(OsStr::from_bytes(archived.as_bytes()));
        self.filter.leaves_out(archived) || !self.filter.takes_file(archived)
    }

    fn remove_one(
        &mut self,
        tree: &mut Tree,
        path: MemberPath,
        group: &str,
        unit: &str,
    ) -> Result<()> {
        if self.restored.contains(&key(&path)) {
            return Ok(());
        }
        if self.failed.contains(&(group.to_owned(), unit.to_owned())) || self.left_out(&path, group)
        {
            if self.tally.kept.len() < KEPT_NAMED {
                self.tally.kept.push(path.to_string());
            }
            return Ok(());
        }
        tree.remove(&path)
    }
}

fn key(path: &MemberPath) -> [u8; 16] {
    let hash = blake3::hash(path.as_bytes());
    let mut key = [0; 16];
    key.copy_from_slice(&hash.as_bytes()[..16]);
    key
}

/// Names in a folder and whether each is a folder itself; the mark and temporary files are nobody's.
fn list(folder: &Path) -> Result<Vec<(Vec<u8>, bool)>> {
    let failed = |e| Error::io("list the folder", folder, e);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().as_bytes().to_vec();
        if name != MARK_NAME.as_bytes() && !name.starts_with(TEMPORARY_PREFIX.as_bytes()) {
            names.push((name, entry.file_type().map_err(failed)?.is_dir()));
        }
    }
    Ok(names)
}
