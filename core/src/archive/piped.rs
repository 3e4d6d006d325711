//! A body that somebody else brings, chunk by chunk, while the lane takes it.

use crate::archive::lane::Lane;
use crate::archive::tar::Meta;
use crate::error::Result;
use crate::name::MemberPath;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

/// Chunks that may wait for the lane.
const WAITING: usize = 2;

/// The way into a member's body.
pub struct Pipe(mpsc::Sender<std::io::Result<Bytes>>);

impl Pipe {
    /// Hands over the next bytes. False: the lane takes no more, and has its own error to tell.
    pub async fn send(&self, bytes: Bytes) -> bool {
        self.0.send(Ok(bytes)).await.is_ok()
    }
}

impl Lane {
    /// A member of `Stage::Large` whose body `fill` brings: of exactly `len` bytes, or of unknown length. The body is whole when `fill` ends well;
    /// when it fails, its error is the one that counts, and the member is torn.
    pub async fn piped<T, F: Future<Output = Result<T>>>(
        &mut self,
        path: MemberPath,
        meta: Meta,
        len: Option<u64>,
        fill: impl FnOnce(Pipe) -> F,
    ) -> Result<T> {
        let (chunks, queue) = mpsc::channel(WAITING);
        let failing = chunks.clone();
        let filled = async {
            let filled = fill(Pipe(chunks)).await;
            if let Err(error) = &filled {
                // A lane that has ended has no more use for it.
                let _ = failing
                    .send(Err(std::io::Error::other(error.what.clone())))
                    .await;
            }
            drop(failing);
            filled
        };
        let taken = async {
            // Owned here, so that whoever fills sees it when the lane has ended.
            let queue = futures::stream::unfold(queue, |mut queue: mpsc::Receiver<_>| async {
                Some((queue.recv().await?, queue))
            });
            let mut reader = StreamReader::new(Box::pin(queue));
            match len {
                Some(len) => self.sized(path, meta, len, &mut reader).await,
                None => self.stream(path, meta, &mut reader).await.map(drop),
            }
        };
        let (filled, taken) = futures::future::join(filled, taken).await;
        let filled = filled?;
        taken?;
        Ok(filled)
    }
}
