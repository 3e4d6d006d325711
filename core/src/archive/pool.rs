//! Threads that compress: one job, one block, one answer. Work on the processor stays off the async threads.

use crate::archive::format::Codec;
use crate::archive::xz::{Compression, Record};
use crate::error::{Result, bug};
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, oneshot};

/// A compressed block with its sums.
#[derive(Debug)]
pub struct Encoded {
    /// What stands in the file.
    pub bytes: Bytes,
    /// How it is coded.
    pub codec: Codec,
    /// Its two sizes.
    pub record: Record,
    /// BLAKE3 of `bytes`.
    pub sum: blake3::Hash,
    /// BLAKE3 of the tar bytes.
    pub raw_sum: blake3::Hash,
}

/// The answer that a job will have.
pub type Answer = oneshot::Receiver<Result<Encoded>>;

struct Job {
    raw: Vec<u8>,
    answer: oneshot::Sender<Result<Encoded>>,
}

/// Compresses blocks on `std` threads. They end when the pool and its clones are gone.
#[derive(Clone, Debug)]
pub struct Pool {
    jobs: mpsc::Sender<Job>,
}

impl Pool {
    /// Starts `workers` threads. No job waits in a queue of its own: the caller's wait is the back-pressure.
    pub fn start(workers: usize, compression: Compression) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>(1);
        let queue = Arc::new(Mutex::new(queue));
        for n in 0..workers {
            let queue = queue.clone();
            std::thread::Builder::new()
                .name(format!("bk-xz-{n}"))
                .spawn(move || work(&queue, compression))
                .map_err(|e| bug(format!("no thread to compress on: {e}")))?;
        }
        Ok(Self { jobs })
    }

    /// Takes the block as soon as a thread is free for it.
    pub async fn submit(&self, raw: Vec<u8>) -> Result<Answer> {
        let (answer, receiver) = oneshot::channel();
        self.jobs
            .send(Job { raw, answer })
            .await
            .map_err(|_| bug("the compressing threads are gone"))?;
        Ok(receiver)
    }
}

fn work(queue: &Mutex<mpsc::Receiver<Job>>, compression: Compression) {
    loop {
        // The lock is held while waiting: the others wait for the lock instead, which is the same.
        let job = queue.lock().map(|mut queue| queue.blocking_recv());
        let Ok(Some(job)) = job else { return };
        // Nobody listens any more when the run was cancelled; the answer is then dropped with its bytes.
        let _ = job.answer.send(encode(&job.raw, compression));
    }
}

fn encode(raw: &[u8], compression: Compression) -> Result<Encoded> {
    let block = compression.encode(raw)?;
    let mut bytes = block.bytes;
    bytes.shrink_to_fit();
    Ok(Encoded {
        sum: blake3::hash(&bytes),
        raw_sum: blake3::hash(raw),
        bytes: bytes.into(),
        codec: block.codec,
        record: block.record,
    })
}
