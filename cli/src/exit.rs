//! Exit codes: the table of the README, and the one place that makes them.

use crate::args::Forgiven;
use bk_core::report::{Cause, Class};

/// How the program ends. The numbers are API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, all of it.
    Done = 0,
    /// Failed; a retry may help.
    Failed = 1,
    /// Something named is missing.
    Partial = 3,
    /// Settings, credentials or grants are wrong; not supported.
    Settings = 4,
    /// No such archive, date, version, selection.
    NotFound = 5,
    /// Refused by a guard.
    Refused = 6,
    /// Corrupt or tampered.
    Corrupt = 7,
    /// Another run holds the lock.
    Locked = 8,
    /// Done, but stale.
    Stale = 9,
    /// SIGINT.
    Interrupted = 130,
    /// SIGTERM.
    Terminated = 143,
}

impl Exit {
    /// The code of the gravest cause; `signal` is what stopped the run.
    pub fn of(causes: &[Cause], signal: Option<Self>, forgiven: &[Forgiven]) -> Self {
        let gravest = causes.iter().map(|cause| cause.class).min();
        match gravest {
            None => Self::Done,
            Some(Class::Stopped) => signal.unwrap_or(Self::Interrupted),
            Some(Class::Settings) => Self::Settings,
            Some(Class::Locked) => Self::Locked,
            Some(Class::Refused) => Self::Refused,
            Some(Class::NotFound) => Self::NotFound,
            Some(Class::Corrupt) => Self::Corrupt,
            Some(Class::Failed) => Self::Failed,
            Some(Class::Partial) if forgiven.contains(&Forgiven::Partial) => Self::Done,
            Some(Class::Partial) => Self::Partial,
            Some(Class::Stale) if forgiven.contains(&Forgiven::Stale) => Self::Done,
            Some(Class::Stale) => Self::Stale,
        }
    }
}
