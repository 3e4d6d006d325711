//! One instance's way into the archive: units that are expected, ended or failed, and lanes that it hands out.

use crate::archive::format::{Stage, UnitLine};
use crate::archive::lane::{Filling, Lane};
use crate::archive::leftover::{Leftover, hand_in_leftovers};
use crate::archive::memory::{Budget, Extra, Reserved};
use crate::archive::writer::Entrance;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, plugin};
use crate::manifest::{FailedUnit, Totals};
use crate::name::hash64;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Failed units that a manifest names one by one; the rest is counted, and stands in the index.
const FAILED_NAMED: usize = 1000;

/// A source's own count for a unit in a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Rows, documents, entries.
    pub rows: u64,
}

/// One instance's way into the archive. Cheap to clone.
#[derive(Clone)]
pub struct Output(pub(super) Arc<Instance>);

pub(super) struct Instance {
    pub(super) name: Arc<str>,
    pub(super) cx: Context,
    pub(super) entrance: Entrance,
    pub(super) promised: Arc<Semaphore>,
    /// Counts stages; a lane of an earlier stage may write no more.
    pub(super) epoch: AtomicU32,
    pub(super) units: Mutex<Units>,
    pub(super) leftovers: mpsc::UnboundedSender<Leftover>,
}

#[derive(Default)]
pub(super) struct Units {
    pub(super) stage: Option<Stage>,
    pub(super) open: HashMap<(String, String), Open>,
    pub(super) seen: HashSet<u64>,
    pub(super) failed: Vec<FailedUnit>,
    pub(super) failed_names: HashSet<u64>,
    pub(super) first_failure: Option<(ErrorKind, Option<String>)>,
    pub(super) totals: Totals,
}

#[derive(Default)]
pub(super) struct Open {
    pub(super) members: u64,
    pub(super) bytes: u64,
    pub(super) failed: Option<String>,
}

/// What an instance wrote, which units failed, and the first failure's kind.
pub(crate) type Results = (Totals, Vec<FailedUnit>, Option<ErrorKind>);

impl Output {
    /// The way in for one instance of a run.
    pub fn new(cx: Context, entrance: Entrance) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "a drop cannot wait; each entry holds a lane's permit, so permits bound it"
        )]
        let (leftovers, queue) = mpsc::unbounded_channel();
        tokio::spawn(hand_in_leftovers(entrance.clone(), queue));
        Self(Arc::new(Instance {
            name: cx.instance.clone(),
            cx,
            entrance,
            promised: Budget::promised_lane(),
            epoch: AtomicU32::new(0),
            units: Mutex::default(),
            leftovers,
        }))
    }

    /// Announces a unit, before its first member of this stage. Bracket units closely: what is expected and not ended has failed.
    pub async fn expect(&self, group: &str, name: &str) -> Result<()> {
        self.0.cx.check_cancelled()?;
        let mut units = self.0.units();
        if units.stage.is_none() {
            return Err(plugin("a unit was expected outside of any stage"));
        }
        if !name.is_empty() {
            units.seen.insert(unit_hash(group, name));
        }
        match units
            .open
            .insert((group.to_owned(), name.to_owned()), Open::default())
        {
            None => Ok(()),
            Some(_) => Err(plugin(format!(
                "unit `{group}/{name}` is expected twice in one stage"
            ))),
        }
    }

    /// A lane of its own. Waits for memory; a task that holds one lane must not ask for another. `key` names it in traces.
    pub async fn lane(&self, key: &str) -> Result<Lane> {
        let stage = self.stage()?;
        let extra = if stage == Stage::Data {
            Extra::WhileItLasts
        } else {
            Extra::None
        };
        let permit = tokio::select! {
            biased;
            () = self.0.cx.cancel.cancelled() => return Err(Error::cancelled()),
            permit = self.0.entrance.budget().lane(&self.0.promised, extra) => permit?,
        };
        tracing::trace!(instance = %self.0.name, key, ?stage, "lane");
        let epoch = self.0.epoch.load(Ordering::Acquire);
        Ok(Lane {
            out: self.clone(),
            permit: Some(permit),
            epoch,
            stage,
            unit: None,
            filling: Filling::default(),
            torn_zeros: 0,
            streaming: None,
        })
    }

    /// Room for a body over 4 MiB that is to be held in memory. Refused over the budget; one task holds one reservation at a time.
    pub async fn reserve(&self, bytes: u64) -> Result<Reserved> {
        tokio::select! {
            biased;
            () = self.0.cx.cancel.cancelled() => Err(Error::cancelled()),
            reserved = self.0.entrance.budget().reserve(bytes) => reserved,
        }
    }

    /// Beyond it `reserve` refuses: what is larger need not be gathered first.
    pub fn largest_record(&self) -> u64 {
        self.0.entrance.budget().largest_record()
    }

    /// Why a record of `bytes` is refused, and how much would have to be allowed.
    pub fn too_large(&self, bytes: u64, wanted: u64) -> Error {
        self.0.entrance.budget().too_large(bytes, wanted)
    }

    /// Ends a unit in this stage, once, with the source's own count.
    pub async fn end(&self, group: &str, name: &str, count: Counted) -> Result<()> {
        let line = {
            let mut units = self.0.units();
            let stage = units
                .stage
                .ok_or_else(|| plugin("a unit ended outside of any stage"))?;
            let open = units
                .open
                .remove(&(group.to_owned(), name.to_owned()))
                .ok_or_else(|| {
                    plugin(format!(
                        "unit `{group}/{name}` ended, but was not expected in this stage"
                    ))
                })?;
            units.close(&self.0.name, stage, group, name, open, count)
        };
        self.0.entrance.unit(line).await
    }

    /// Fails a unit by name: it stays in the archive as far as it came, and makes it partial.
    pub async fn fail(&self, group: &str, name: &str, why: &Error) -> Result<()> {
        let mut units = self.0.units();
        units
            .first_failure
            .get_or_insert_with(|| (why.kind, why.hint.clone()));
        match units.open.get_mut(&(group.to_owned(), name.to_owned())) {
            Some(open) => {
                open.failed.get_or_insert_with(|| why.to_string());
                Ok(())
            }
            None => Err(plugin(format!(
                "unit `{group}/{name}` failed, but was not expected in this stage"
            ))),
        }
    }

    fn stage(&self) -> Result<Stage> {
        self.0
            .units()
            .stage
            .ok_or_else(|| plugin("a lane was opened outside of any stage"))
    }

    /// Engine: a stage begins.
    pub(crate) fn begin(&self, stage: Stage) {
        self.0.epoch.fetch_add(1, Ordering::AcqRel);
        self.0.units().stage = Some(stage);
    }

    /// Engine: a stage is over. Lanes left open are closed; units left open have failed.
    pub(crate) async fn finish_stage(&self) -> Result<()> {
        self.0.epoch.fetch_add(1, Ordering::AcqRel);
        let (done, barrier) = oneshot::channel();
        if self.0.leftovers.send(Leftover::Barrier(done)).is_ok() {
            // An error means that the task ended with the run.
            let _ = barrier.await;
        }
        let lines: Vec<_> = {
            let mut units = self.0.units();
            let stage = units.stage.take();
            let open: Vec<_> = units.open.drain().collect();
            open.into_iter()
                .filter_map(|((group, name), mut open)| {
                    // What makes a group needs no brackets of its own.
                    if open.failed.is_none() && !name.is_empty() {
                        open.failed = Some("it did not end".into());
                    }
                    Some(units.close(
                        &self.0.name,
                        stage?,
                        &group,
                        &name,
                        open,
                        Counted::default(),
                    ))
                })
                .collect()
        };
        for line in lines {
            self.0.entrance.unit(line).await?;
        }
        Ok(())
    }

    /// Engine: what the instance wrote, and which units failed.
    pub(crate) fn results(&self) -> Results {
        let mut units = self.0.units();
        units.totals.units = units.seen.len() as u64;
        units.totals.failed = units.failed_names.len() as u64;
        (
            units.totals,
            units.failed.clone(),
            units.first_failure.as_ref().map(|f| f.0),
        )
    }

    /// Engine: what the first failure said to type.
    pub(crate) fn failure_hint(&self) -> Option<String> {
        self.0
            .units()
            .first_failure
            .as_ref()
            .and_then(|f| f.1.clone())
    }
}

impl Instance {
    pub(super) fn units(&self) -> std::sync::MutexGuard<'_, Units> {
        self.units
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn unit_hash(group: &str, name: &str) -> u64 {
    hash64(format!("{group}\0{name}").as_bytes())
}

impl Units {
    fn close(
        &mut self,
        instance: &str,
        stage: Stage,
        group: &str,
        name: &str,
        open: Open,
        count: Counted,
    ) -> UnitLine {
        self.totals.members += open.members;
        self.totals.bytes += open.bytes;
        self.totals.rows += count.rows;
        if let Some(why) = &open.failed
            && self.failed_names.insert(unit_hash(group, name))
            && self.failed.len() < FAILED_NAMED
        {
            self.failed.push(FailedUnit {
                group: group.to_owned(),
                name: name.to_owned(),
                why: why.clone(),
            });
        }
        UnitLine {
            instance: instance.to_owned(),
            group: group.to_owned(),
            name: name.to_owned(),
            stage,
            members: open.members,
            rows: count.rows,
            bytes: open.bytes,
            failed: open.failed,
        }
    }
}
