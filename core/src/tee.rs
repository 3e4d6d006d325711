//! One stream of bytes to several sinks: a bounded queue each, so that one may lag a little and none holds the others for long.

use crate::error::{Error, ErrorKind, Result, bug};
use crate::sink::Upload;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const QUEUED_CHUNKS: usize = 2;
const ABORT_LIMIT: Duration = Duration::from_secs(30);

/// The sinks of one run.
#[derive(Default)]
pub struct Tee {
    branches: Vec<Branch>,
    stall_limit: Duration,
    cancel: CancellationToken,
}

struct Branch {
    name: String,
    queue: Option<mpsc::Sender<Bytes>>,
    stop: CancellationToken,
    task: Option<JoinHandle<Result<Box<dyn Upload>>>>,
    taken_chunks: Arc<AtomicU64>,
    failure: Option<Error>,
}

impl Tee {
    /// A tee without branches. A branch that keeps the writer waiting for `stall_limit` in a row while others do not is aborted.
    /// `cancel` ends every wait.
    pub fn new(stall_limit: Duration, cancel: CancellationToken) -> Self {
        Self {
            branches: Vec::new(),
            stall_limit,
            cancel,
        }
    }

    /// Adds a sink. `stored` is told how many bytes it took.
    pub fn add(
        &mut self,
        name: &str,
        upload: Box<dyn Upload>,
        stored: impl Fn(u64) + Send + 'static,
    ) {
        let (queue, chunks) = mpsc::channel(QUEUED_CHUNKS);
        let stop = CancellationToken::new();
        let taken_chunks = Arc::new(AtomicU64::new(0));
        let count = taken_chunks.clone();
        let stored = move |bytes| {
            count.fetch_add(1, Ordering::Relaxed);
            stored(bytes);
        };
        let task = tokio::spawn(upload_all(upload, chunks, stop.clone(), stored));
        self.branches.push(Branch {
            name: name.to_owned(),
            queue: Some(queue),
            stop,
            task: Some(task),
            taken_chunks,
            failure: None,
        });
    }

    /// Gives `chunk` to every sink that is still alive. An error when none is left.
    pub async fn send(&mut self, chunk: Bytes) -> Result<()> {
        let mut waiting = Vec::new();
        for (n, branch) in self.branches.iter().enumerate() {
            let Some(queue) = &branch.queue else { continue };
            match queue.try_send(chunk.clone()) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(_)) => waiting.push((n, false)),
                Err(mpsc::error::TrySendError::Closed(_)) => waiting.push((n, true)),
            }
        }
        let gone: Vec<_> = waiting
            .iter()
            .filter(|(_, closed)| *closed)
            .map(|(n, _)| *n)
            .collect();
        let full: Vec<_> = waiting
            .iter()
            .filter(|(_, closed)| !*closed)
            .map(|(n, _)| *n)
            .collect();
        for n in gone {
            self.drop_branch(n, None).await;
        }
        if !full.is_empty() {
            self.wait_for(&full, &chunk).await;
        }
        if self.alive() == 0 {
            let failure = self
                .branches
                .iter()
                .find_map(|b| b.failure.as_ref())
                .map_or_else(|| bug("a run without sinks"), Error::duplicate);
            return Err(failure.within("no sink is left"));
        }
        Ok(())
    }

    async fn wait_for(&mut self, full: &[usize], chunk: &Bytes) {
        let others_move = self.alive() > full.len();
        let queues: Vec<_> = full
            .iter()
            .filter_map(|n| Some((*n, self.branches[*n].queue.clone()?)))
            .collect();
        let mut sends: FuturesUnordered<_> = queues
            .into_iter()
            .map(|(n, queue)| {
                let chunk = chunk.clone();
                async move { (n, queue.send(chunk).await.is_ok()) }
            })
            .collect();
        let mut pending: Vec<usize> = full.to_vec();
        let mut closed = Vec::new();
        let mut someone_moves = others_move;
        while !pending.is_empty() {
            let wait = async {
                if someone_moves {
                    tokio::time::timeout(self.stall_limit, sends.next()).await
                } else {
                    Ok(sends.next().await)
                }
            };
            let next = tokio::select! {
                biased;
                // The writer sees it next, and aborts all.
                () = self.cancel.cancelled() => return,
                next = wait => next,
            };
            match next {
                Ok(Some((n, sent))) => {
                    pending.retain(|p| *p != n);
                    if sent {
                        someone_moves = true;
                    } else {
                        closed.push(n);
                    }
                }
                Ok(None) | Err(_) => break,
            }
        }
        drop(sends);
        let limit = self.stall_limit.as_secs_f32();
        for n in pending {
            let late = Error::new(
                ErrorKind::Unreachable,
                format!("took no byte for {limit} s while other sinks did"),
            );
            self.drop_branch(n, Some(late)).await;
        }
        for n in closed {
            self.drop_branch(n, None).await;
        }
    }

    /// Ends a branch: aborts its upload and keeps why.
    async fn drop_branch(&mut self, n: usize, why: Option<Error>) {
        let branch = &mut self.branches[n];
        branch.queue = None;
        branch.stop.cancel();
        let ended = match branch.task.take() {
            Some(task) => join(task).await,
            None => return,
        };
        let failure = match ended {
            Err(error) => why.unwrap_or(error),
            Ok(upload) => {
                abort(upload, &branch.name).await;
                why.unwrap_or_else(|| bug("its task ended early"))
            }
        };
        tracing::warn!(sink = %branch.name, error = %failure, "sink dropped");
        branch.failure = Some(failure);
    }

    fn alive(&self) -> usize {
        self.branches.iter().filter(|b| b.queue.is_some()).count()
    }

    /// Aborts every upload: nothing of this run stays anywhere.
    pub async fn abort(&mut self, why: &Error) {
        for n in 0..self.branches.len() {
            if self.branches[n].failure.is_none() {
                self.drop_branch(n, Some(why.duplicate())).await;
            }
        }
    }

    /// Ends the queues and waits until every byte was taken. Per sink: its upload, ready to publish, or why it failed.
    pub async fn close(self) -> Vec<(String, Result<Box<dyn Upload>>)> {
        let (limit, cancel) = (self.stall_limit, self.cancel);
        let alone = self.branches.len() == 1;
        let ends = self.branches.into_iter().map(|mut branch| {
            let cancel = cancel.clone();
            async move {
                drop(branch.queue.take());
                let end = match (branch.failure.take(), branch.task.take()) {
                    (Some(failure), _) => Err(failure),
                    (None, Some(task)) => branch.drain(task, limit, alone, &cancel).await,
                    (None, None) => Err(bug("a sink without a task")),
                };
                (branch.name, end)
            }
        });
        futures::future::join_all(ends).await
    }
}

impl Branch {
    /// Waits until the last chunks are taken; a sink that takes none for too long while it is not alone is aborted here too.
    async fn drain(
        &self,
        mut task: JoinHandle<Result<Box<dyn Upload>>>,
        limit: Duration,
        alone: bool,
        cancel: &CancellationToken,
    ) -> Result<Box<dyn Upload>> {
        loop {
            let before = self.taken_chunks.load(Ordering::Relaxed);
            let why = tokio::select! {
                done = &mut task => return done.unwrap_or_else(|e| Err(bug(format!("the task of a sink ended: {e}")))),
                () = cancel.cancelled() => Error::cancelled(),
                () = tokio::time::sleep(limit), if !alone => {
                    if self.taken_chunks.load(Ordering::Relaxed) != before {
                        continue;
                    }
                    Error::new(ErrorKind::Unreachable, format!("took no byte for {} s at the end", limit.as_secs_f32()))
                }
            };
            self.stop.cancel();
            if let Ok(upload) = join(task).await {
                abort(upload, &self.name).await;
            }
            return Err(why);
        }
    }
}

async fn join(task: JoinHandle<Result<Box<dyn Upload>>>) -> Result<Box<dyn Upload>> {
    task.await
        .unwrap_or_else(|e| Err(bug(format!("the task of a sink ended: {e}"))))
}

/// Writes what comes, and aborts at the first failure or when told to stop.
async fn upload_all(
    mut upload: Box<dyn Upload>,
    mut chunks: mpsc::Receiver<Bytes>,
    stop: CancellationToken,
    stored: impl Fn(u64),
) -> Result<Box<dyn Upload>> {
    loop {
        let chunk = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            chunk = chunks.recv() => match chunk {
                Some(chunk) => Some(chunk),
                None if stop.is_cancelled() => None,
                None => return Ok(upload),
            },
        };
        let Some(chunk) = chunk else {
            abort(upload, "sink").await;
            return Err(Error::cancelled());
        };
        let len = chunk.len() as u64;
        let written = tokio::select! {
            biased;
            () = stop.cancelled() => Err(Error::cancelled()),
            written = upload.write(chunk) => written,
        };
        match written {
            Ok(()) => stored(len),
            Err(error) => {
                abort(upload, "sink").await;
                return Err(error);
            }
        }
    }
}

/// Aborts within its own limit. What it leaves is cleaned by the next run.
pub(crate) async fn abort(upload: Box<dyn Upload>, name: &str) {
    match tokio::time::timeout(ABORT_LIMIT, upload.abort()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(sink = %name, %error, "abort failed, the next run cleans up");
        }
        Err(_) => tracing::warn!(sink = %name, "abort took too long, the next run cleans up"),
    }
}
