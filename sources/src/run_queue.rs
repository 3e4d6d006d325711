//! Runs of units for workers that may give the rest of one away: nobody leaves while another's rest may still come.

use bk_core::runs::{Run, Runs};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// The runs of one stage.
pub struct RunQueue<T> {
    runs: Runs<T>,
    busy: AtomicUsize,
    changed: Notify,
}

impl<T> RunQueue<T> {
    /// Of units that are sorted by name, with a border before some (`bk_core::runs::border_before`).
    pub fn new(units: impl IntoIterator<Item = T>, border: impl Fn(&T) -> bool) -> Self {
        Self {
            runs: Runs::new(units, border),
            busy: AtomicUsize::new(0),
            changed: Notify::new(),
        }
    }

    /// The next run. A worker waits while another is at work, since that one may give the rest of its run away. Call `ended` after each.
    pub async fn take(&self) -> Option<Run<T>> {
        loop {
            let changed = self.changed.notified();
            self.busy.fetch_add(1, Ordering::AcqRel);
            if let Some(run) = self.runs.take() {
                return Some(run);
            }
            if self.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.changed.notify_waiters();
                return None;
            }
            changed.await;
        }
    }

    /// What no worker is left for.
    pub fn take_left(&self) -> Option<Run<T>> {
        self.runs.take()
    }

    /// For whoever is free.
    pub fn give_back(&self, rest: Run<T>) {
        self.runs.give_back(rest);
        self.changed.notify_waiters();
    }

    /// A worker is done with its run.
    pub fn ended(&self) {
        self.busy.fetch_sub(1, Ordering::AcqRel);
        self.changed.notify_waiters();
    }
}
