//! Readers side by side: runs of collections handed out, one lane for each, what fails named.

use super::Reading;
use super::point::Point;
use crate::mongodb::catalogue::Collection;
use crate::mongodb::{Order, dump, is_the_runs};
use crate::run_queue::RunQueue;
use bk_core::context::Context;
use bk_core::error::{Error, Result, bug};
use bk_core::runs::{RUN_SPLIT_BYTES, Run, border_before};
use bk_core::source::{Counted, Lane, Output};
use std::sync::{Arc, Mutex};
use tokio::task::JoinSet;

/// Which collection is read, by its number, and in which order.
type Wanted = (usize, Order);

/// Reads those that are wanted; says which failed.
pub async fn read(
    cx: &Context,
    out: &Output,
    reading: &Reading,
    collections: &Arc<Vec<Collection>>,
    wanted: impl Iterator<Item = Wanted>,
) -> Result<Vec<(String, String)>> {
    let border = |(n, _): &Wanted| {
        let (group, unit) = collections[*n].unit();
        border_before(&format!("{group}/{unit}"))
    };
    let readers = Readers {
        cx: cx.clone(),
        out: out.clone(),
        reading: reading.clone(),
        collections: collections.clone(),
        queue: Arc::new(RunQueue::new(wanted, border)),
        broken: Arc::default(),
    };
    // A transaction is one session, which does one thing at a time.
    let count = match reading.point {
        Point::Transaction { .. } => 1,
        _ => reading.parallel,
    };
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let readers = readers.clone();
        tasks.spawn(async move { readers.run().await });
    }
    let mut all = Ok(());
    while let Some(ended) = tasks.join_next().await {
        all = all.and(ended.unwrap_or_else(|e| Err(bug(format!("a reader ended: {e}")))));
    }
    all?;
    let broken = std::mem::take(&mut *lock(&readers.broken));
    Ok(broken)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[derive(Clone)]
struct Readers {
    cx: Context,
    out: Output,
    reading: Reading,
    collections: Arc<Vec<Collection>>,
    queue: Arc<RunQueue<Wanted>>,
    broken: Arc<Mutex<Vec<(String, String)>>>,
}

impl Readers {
    async fn run(&self) -> Result<()> {
        while let Some(run) = self.queue.take().await {
            let done = self.one_run(run).await;
            self.queue.ended();
            done?;
        }
        Ok(())
    }

    /// One lane. As soon as a collection has passed the border, the rest of its run is for whoever is free.
    async fn one_run(&self, run: Run<Wanted>) -> Result<()> {
        let mut lane = self.out.lane("data").await?;
        let mut run = Some(run);
        while let Some((n, order)) = run.as_mut().and_then(Run::pop_front) {
            self.cx.check_cancelled()?;
            let collection = &self.collections[n];
            let unit = collection.unit();
            self.out.expect(&unit.0, &unit.1).await?;
            lane.unit(&unit.0, &unit.1);
            let mut counted = Counted::default();
            match self
                .collection(&mut lane, (collection, order), &mut run)
                .await
            {
                Ok(read) => counted.rows = read.documents,
                Err(error) if is_the_runs(&error) => return Err(error),
                Err(error) => {
                    let error: Error = dump::within(collection, error);
                    lock(&self.broken).push(unit.clone());
                    self.out.fail(&unit.0, &unit.1, &error).await?;
                }
            }
            self.out.end(&unit.0, &unit.1, counted).await?;
        }
        lane.close().await
    }

    async fn collection(
        &self,
        lane: &mut Lane,
        what: (&Collection, Order),
        run: &mut Option<Run<Wanted>>,
    ) -> Result<dump::Read> {
        let passed = |bytes: u64| {
            if bytes > RUN_SPLIT_BYTES
                && let Some(rest) = run.take()
            {
                self.queue.give_back(rest);
            }
        };
        let Reading {
            connection, point, ..
        } = &self.reading;
        dump::collection(&self.cx, connection, point, (lane, &self.out), what, passed).await
    }
}
