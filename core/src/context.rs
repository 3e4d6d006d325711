//! What every call of a plugin is given: who it works for, when to stop, what time it is, whom to tell.

use crate::error::{Error, Result};
use crate::event::{Event, Moment, Progress};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The only place that may ask what time it is, so that tests can say.
pub trait Clock: Send + Sync {
    /// Now, UTC.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one clock that everything else is given"
    )]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A clock that stands where it was put.
#[derive(Debug)]
pub struct FixedClock(pub Timestamp);

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        self.0
    }
}

/// Given to every call of a source or sink. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// Name of the instance that the call is for.
    pub instance: Arc<str>,
    /// Whose archives these are.
    pub site: Arc<str>,
    /// Fires when the run must stop. Every wait of a plugin watches it.
    pub cancel: CancellationToken,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Whom to tell how far it is.
    pub progress: Arc<dyn Progress>,
}

impl Context {
    /// The same context for another instance.
    #[must_use]
    pub fn for_instance(&self, name: &str) -> Self {
        Self {
            instance: name.into(),
            ..self.clone()
        }
    }

    /// The same context, stopped by its own token as well as by this one's.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            cancel: self.cancel.child_token(),
            ..self.clone()
        }
    }

    /// The same context for what must go on when the run is stopped: cleaning up, giving back.
    #[must_use]
    pub fn unstopped(&self) -> Self {
        Self {
            cancel: CancellationToken::new(),
            ..self.clone()
        }
    }

    /// Tells the watcher that a moment has come which hooks may wait for.
    pub fn reached<T: serde::Serialize>(&self, moment: Moment, report: &T) {
        // A report is made of texts and numbers, which always have a form in JSON.
        let report = serde_json::to_value(report).unwrap_or_default();
        self.tell(&Event::Reached(moment, report));
    }

    /// Tells the watcher.
    pub fn tell(&self, event: &Event<'_>) {
        self.progress.event(&self.instance, event);
    }

    /// An error as soon as the run must stop.
    pub fn check_cancelled(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            Err(Error::cancelled())
        } else {
            Ok(())
        }
    }

    /// Waits so long, unless the run is stopped.
    pub async fn pause(&self, length: Duration) -> Result<()> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Error::cancelled()),
            () = tokio::time::sleep(length) => Ok(()),
        }
    }

    /// `work`, unless the run is stopped or `limit` passes first; then `late` is the error.
    pub async fn within<T>(
        &self,
        limit: Duration,
        late: impl FnOnce() -> Error,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Error::cancelled()),
            done = tokio::time::timeout(limit, work) => done.unwrap_or_else(|_| Err(late())),
        }
    }
}

/// Work that blocks, on a thread where it may.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| crate::error::bug(format!("blocking work ended: {e}")))?
}
