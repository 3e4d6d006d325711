//! How a source shares its units among workers without letting chance into the archive: runs, the pure function behind lanes.
//!
//! Units sorted by name; consecutive ones share a run and so a lane; a border stands before a unit whose name's hash has its low 5 bits 0;
//! and once a unit's own bytes in this stage pass 8 MiB, what follows it becomes a run of its own, which any worker may take at once.

use crate::name::hash64;
use std::collections::VecDeque;
use std::sync::Mutex;

/// A unit's own bytes in a stage after which the rest of its run is given away.
pub const RUN_SPLIT_BYTES: u64 = 8 << 20;

/// Whether a run begins with this unit.
pub fn border_before(name: &str) -> bool {
    hash64(name.as_bytes()).trailing_zeros() >= 5
}

/// Runs that wait for a worker.
#[derive(Debug)]
pub struct Runs<T> {
    waiting: Mutex<VecDeque<Run<T>>>,
}

/// Units that share a lane, in order.
pub type Run<T> = VecDeque<T>;

impl<T> Runs<T> {
    /// Cuts units, which are sorted by name, into runs: before which of them there is a border, `border_before` says by its name.
    pub fn new(units: impl IntoIterator<Item = T>, border: impl Fn(&T) -> bool) -> Self {
        let mut waiting: VecDeque<Run<T>> = VecDeque::new();
        for unit in units {
            match waiting.back_mut() {
                Some(run) if !border(&unit) => run.push_back(unit),
                _ => waiting.push_back(Run::from([unit])),
            }
        }
        Self {
            waiting: Mutex::new(waiting),
        }
    }

    /// The next run, for any worker; one lane each.
    pub fn take(&self) -> Option<Run<T>> {
        self.waiting
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .pop_front()
    }

    /// Gives away what follows a unit that passed `RUN_SPLIT_BYTES`. The giver ends its lane with that unit.
    pub fn give_back(&self, rest: Run<T>) {
        if !rest.is_empty() {
            self.waiting
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push_front(rest);
        }
    }
}
