//! What a selection means in one archive: which blocks, which units, how much, and what is left out.

use crate::archive::format::{BlockLine, Stage, UnitLine};
use crate::archive::reader::{Copies, Picked};
use crate::archive::tail::{Line, Opened};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::manifest::Totals;
use crate::restore::input::{Counted, Counts, Delivered, Input, UnitCount};
use crate::selector::{Matched, Selection};
use crate::source::{Facts, Selected as SelectedUnit};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};

/// An archive's part that is selected.
pub struct Selected {
    /// Blocks in the order of the file.
    pub picked: Vec<Picked>,
    /// Units that were left out although their group is taken, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Group and name of each unit, by number.
    names: Arc<Vec<(String, String)>>,
    /// Instance of each unit, by number.
    instances: Vec<Arc<str>>,
    counts: Vec<Counted>,
    failed: BTreeMap<String, Vec<(String, String)>>,
    groups: BTreeMap<(String, String), Group>,
}

/// What of a group is selected.
#[derive(Default)]
struct Group {
    taken: bool,
    left_out: bool,
}

/// Gathers while the index goes by.
#[derive(Default)]
struct Gathering {
    ids: HashMap<(String, String, String), u32>,
    names: Vec<(String, String)>,
    instances: Vec<Arc<str>>,
    picked: Vec<Picked>,
    counts: Vec<Counted>,
    groups: BTreeMap<(String, String), Group>,
    failed: HashSet<u32>,
    failed_names: BTreeMap<String, Vec<(String, String)>>,
}

/// Reads the index once and picks.
pub async fn select(opened: &Opened, selection: &Selection) -> Result<Selected> {
    let mut gathering = Gathering::default();
    let mut matched = Matched::new(selection);
    for instance in &opened.manifest.instances {
        matched.see_instance(&instance.name);
    }
    let mut lines = opened.lines().await?;
    while let Some(batch) = lines.next_piece().await? {
        for line in batch {
            match line {
                Line::Block(block) => gathering.block(opened, selection, &block)?,
                Line::Unit(unit) => {
                    matched.see(&unit.instance, &unit.group, &unit.name);
                    gathering.unit(selection, unit);
                }
            }
        }
    }
    matched.finish()?;
    Ok(gathering.finish())
}

impl Gathering {
    fn id(&mut self, instance: &str, group: &str, name: &str) -> u32 {
        let key = (instance.to_owned(), group.to_owned(), name.to_owned());
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let id = self.names.len() as u32;
        self.names.push((key.1.clone(), key.2.clone()));
        let same = self.instances.last().filter(|of| ***of == key.0);
        let of = same.cloned().unwrap_or_else(|| key.0.as_str().into());
        self.instances.push(of);
        self.ids.insert(key, id);
        id
    }

    /// What makes a group (unit "") is taken for now; `finish` drops it where nothing else of its group is.
    fn block(&mut self, opened: &Opened, selection: &Selection, line: &BlockLine) -> Result<()> {
        let (Some(instance), Some(stage)) = (&line.instance, line.stage) else {
            return Ok(());
        };
        let mut ranges = Vec::new();
        for (group, name, from, to) in &line.units {
            if name.is_empty() || selection.takes(instance, group, name) {
                ranges.push((self.id(instance, group, name), *from as u32, *to as u32));
            }
        }
        if ranges.is_empty() {
            return Ok(());
        }
        let record = opened
            .record(line.n)
            .ok_or_else(|| Error::corrupt("the index speaks of a block beyond the last"))?;
        self.picked.push(Picked::new(line, record, stage, ranges)?);
        Ok(())
    }

    fn unit(&mut self, selection: &Selection, line: UnitLine) {
        let takes = selection.takes(&line.instance, &line.group, &line.name);
        let group = self
            .groups
            .entry((line.instance.clone(), line.group.clone()))
            .or_default();
        if takes {
            group.taken = true;
        } else if !line.name.is_empty() {
            group.left_out = true;
        }
        if takes || line.name.is_empty() {
            let id = self.id(&line.instance, &line.group, &line.name);
            if line.failed.is_some() && self.failed.insert(id) {
                self.failed_names
                    .entry(line.instance.clone())
                    .or_default()
                    .push((line.group.clone(), line.name.clone()));
            }
            self.counts.push(Counted {
                unit: id,
                stage: line.stage,
                members: line.members,
                rows: line.rows,
                bytes: line.bytes,
            });
        }
    }

    fn finish(mut self) -> Selected {
        self.ids = HashMap::new();
        let taken: HashSet<u32> = (0..self.names.len())
            .filter(|id| {
                let key = (self.instances[*id].to_string(), self.names[*id].0.clone());
                let group = self.groups.get(&key);
                group.is_some_and(|g| g.taken) && !self.failed.contains(&(*id as u32))
            })
            .map(|id| id as u32)
            .collect();
        for block in &mut self.picked {
            block.ranges.retain(|(unit, _, _)| taken.contains(unit));
        }
        self.picked.retain(|block| !block.ranges.is_empty());
        self.picked.sort_by_key(|block| block.n);
        self.counts.retain(|count| taken.contains(&count.unit));
        let skipped = self
            .failed_names
            .iter()
            .flat_map(|(instance, units)| {
                units.iter().map(move |(group, name)| {
                    (
                        format!("{instance}/{group}/{name}"),
                        "it failed when it was backed up".to_owned(),
                    )
                })
            })
            .collect();
        Selected {
            picked: self.picked,
            skipped,
            names: Arc::new(self.names),
            instances: self.instances,
            counts: self.counts,
            failed: self.failed_names,
            groups: self.groups,
        }
    }
}

impl Selected {
    /// Whether anything of this instance is selected.
    pub fn has_instance(&self, instance: &str) -> bool {
        self.counted(instance).next().is_some()
    }

    fn counted<'a>(&'a self, instance: &'a str) -> impl Iterator<Item = &'a Counted> {
        self.counts
            .iter()
            .filter(move |count| *self.instances[count.unit as usize] == *instance)
    }

    /// Selected groups and units, as a source and its mark need them.
    pub fn of_instance(&self, instance: &str) -> Vec<SelectedUnit> {
        let mut selected = Vec::new();
        for ((of, group), what) in self
            .groups
            .iter()
            .filter(|((of, _), what)| of == instance && what.taken)
        {
            debug_assert_eq!(of, instance);
            if what.left_out {
                selected.extend(
                    self.units_of(of, group)
                        .into_iter()
                        .map(|unit| SelectedUnit {
                            group: group.clone(),
                            unit: Some(unit.to_owned()),
                        }),
                );
            } else {
                selected.push(SelectedUnit {
                    group: group.clone(),
                    unit: None,
                });
            }
        }
        selected
    }

    /// Units of a group that are selected, those too that failed at backup.
    fn units_of(&self, instance: &str, group: &str) -> BTreeSet<&str> {
        self.names
            .iter()
            .zip(&self.instances)
            .filter(|((of, name), by)| of == group && !name.is_empty() && ***by == *instance)
            .map(|((_, name), _)| name.as_str())
            .collect()
    }

    /// Blocks that hold anything selected of this instance, with those parts only.
    pub fn blocks_of<'a>(&'a self, instance: &'a str) -> impl Iterator<Item = &'a Picked> {
        self.picked.iter().filter(move |block| {
            block
                .ranges
                .first()
                .is_some_and(|(unit, _, _)| *self.instances[*unit as usize] == *instance)
        })
    }

    /// What a restore or an extraction of this instance reads.
    pub(crate) fn input(
        &self,
        cx: &Context,
        instance: &str,
        facts: Facts,
        copies: Arc<Copies>,
        delivered: Arc<Mutex<Delivered>>,
    ) -> Input {
        let mut picked: HashMap<Stage, Vec<Picked>> = HashMap::new();
        for block in self.blocks_of(instance) {
            picked.entry(block.stage).or_default().push(block.clone());
        }
        Input {
            cx: cx.clone(),
            instance: instance.into(),
            facts,
            unit_names: self.unit_names(),
            counts: self.counts(instance),
            failed: self.failed_of(instance),
            from: crate::restore::input::From::Archive(copies, picked),
            delivered,
        }
    }

    /// Counts per unit and stage.
    pub fn counts_of(&self, instance: &str) -> Vec<UnitCount> {
        self.counts(instance).all()
    }

    fn counts(&self, instance: &str) -> Counts {
        Counts {
            names: self.names.clone(),
            counted: Arc::new(self.counted(instance).copied().collect()),
        }
    }

    /// Members and bytes per unit and stage.
    pub fn declared(&self, instance: &str) -> HashMap<(u32, Stage), (u64, u64)> {
        self.counted(instance)
            .map(|count| ((count.unit, count.stage), (count.members, count.bytes)))
            .collect()
    }

    /// Units that failed at backup.
    pub fn failed_of(&self, instance: &str) -> Vec<(String, String)> {
        self.failed.get(instance).cloned().unwrap_or_default()
    }

    /// Sums over the instance.
    pub fn totals_of(&self, instance: &str) -> Totals {
        let mut totals = Totals::default();
        let mut seen = HashSet::new();
        for count in self.counted(instance) {
            if !self.names[count.unit as usize].1.is_empty() && seen.insert(count.unit) {
                totals.units += 1;
            }
            totals.members += count.members;
            totals.rows += count.rows;
            totals.bytes += count.bytes;
        }
        totals
    }

    /// Group and unit by the number that ranges carry.
    pub fn unit_names(&self) -> Arc<Vec<(String, String)>> {
        self.names.clone()
    }

    /// `group/unit` by number.
    pub fn unit_name(&self, id: u32) -> String {
        self.names
            .get(id as usize)
            .map(|(group, name)| format!("{group}/{name}"))
            .unwrap_or_default()
    }

    /// Units that lie in these blocks, as selectors.
    pub fn units_in(&self, blocks: &[u32]) -> Vec<String> {
        let touched: BTreeSet<String> = self
            .picked
            .iter()
            .filter(|block| blocks.contains(&block.n))
            .flat_map(|block| block.ranges.iter().map(|(unit, _, _)| *unit as usize))
            .map(|unit| {
                let (instance, (group, name)) = (&self.instances[unit], &self.names[unit]);
                if name.is_empty() {
                    format!("{instance}/{group}")
                } else {
                    format!("{instance}/{group}/{name}")
                }
            })
            .collect();
        touched.into_iter().collect()
    }

    /// Stored bytes of the picked blocks.
    pub fn stored_bytes(&self) -> u64 {
        self.picked.iter().map(Picked::stored_bytes).sum()
    }
}
