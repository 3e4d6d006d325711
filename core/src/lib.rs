//! The engine of `bk`: it names no plugin, no driver and no command line.
//!
//! How a byte travels. A [`source::Source`] fixes a point in time and writes members through [`source::Output`] into lanes; a lane
//! ([`archive::lane`]) fills blocks at borders that the data decides; [`archive::pool`] compresses them on threads; [`archive::writer`]
//! puts them in order, keeps the index and sends every byte through envelope and sum; [`tee`] hands it to each [`sink::Sink`], which
//! publishes it whole or not at all. [`manifest`] is the last member: what is inside, vouching for every block.
//!
//! And back. [`catalog`] knows what lies where; [`archive::tail`] reads an archive's end and believes nothing that does not agree;
//! [`restore::select`] turns a [`selector`] into blocks; [`archive::reader`] fetches, checks and decodes just those; the source's restore
//! takes the members from [`restore::input`] and counts what its target acknowledged.
//!
//! The verbs are [`backup`], [`restore`], [`verify`], [`extract`], [`copy`], [`fetch`] and [`prune`]: plan in, report out. [`retention`] decides and deletes
//! nothing. [`config`] lays file, environment and flags over each other and names every mistake with its place.

pub mod archive;
pub mod backup;
pub mod catalog;
pub mod config;
pub mod context;
pub mod copy;
pub mod error;
pub mod event;
pub mod event_hooks;
pub mod extract;
pub mod fetch;
pub mod hooks;
pub mod layout;
pub mod lock;
pub mod manifest;
pub mod name;
mod note;
pub mod pins;
pub mod plan;
pub mod plugin;
pub mod prune;
pub mod replace;
pub mod report;
pub mod restore;
pub mod retention;
pub mod runs;
pub mod secret;
pub mod selector;
pub mod settings;
pub mod sink;
pub mod source;
pub mod tee;
pub mod tiers;
pub mod tree;
pub mod unfinished;
pub mod verify;
pub mod xattr;

pub use context::Context;
pub use error::{Error, ErrorKind, Result};
