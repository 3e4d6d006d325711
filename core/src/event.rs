//! What a run tells its watcher while it goes on. A watcher sees; it never changes data.

/// One thing that happened, said of the instance that the call names.
#[derive(Debug)]
pub enum Event<'a> {
    /// A phase began: `checking`, `snapshot`, `reading`, `restoring`, …
    Phase(&'a str),
    /// So many bytes of content went by since the last event.
    Bytes(u64),
    /// So many bytes were written to this sink since the last event.
    Stored(u64),
    /// The whole is expected to be so many bytes.
    Expect(u64),
    /// Something needs a look; the run goes on.
    Warning(&'a str),
    /// The instance is done, well or not.
    Done,
}

/// Sees events of all instances, from any thread, and never blocks.
pub trait Progress: Send + Sync {
    /// `instance` is a source's or sink's name.
    fn event(&self, instance: &str, event: &Event<'_>);
}

/// Watches nothing.
#[derive(Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn event(&self, _instance: &str, _event: &Event<'_>) {}
}
