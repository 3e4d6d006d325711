//! The conformance kit: what every source and sink must do, ours and strangers'.
//!
//! `sink_suite` and `source_suite` are lists of named checks over the contracts. `fakes` are a sink and a source in memory, which may be given one
//! defect each: the mutants that the checks must catch. `protocol_suite` asks what a process must do beyond that, and `plugin_subject` is a plugin from outside as
//! what those suites test. `engine` runs backups and restores in process; `data` makes seeded bodies and trees.

pub mod data;
pub mod engine;
pub mod fakes;
pub mod plugin_subject;
pub mod protocol_suite;
pub mod sink_suite;
pub mod source_suite;

/// What a check found: nothing wrong, or what is.
pub type Outcome = Result<(), String>;

/// Says why a check failed unless it holds.
pub fn hold(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise()) }
}
