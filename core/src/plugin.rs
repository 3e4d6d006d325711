//! A plugin: the code of a source or a sink, with the settings that it takes. The engine learns them from a registry, by name.
//!
//! Beside those that a program is built with there are two kinds that anybody can add as files in the plugins root ([`root`]): a command plugin is
//! one TOML file ([`manifest`], [`command`]); a protocol plugin is a process that speaks frames of messages ([`frame`], [`message`]) with this host
//! ([`process`], [`session`], [`protocol_source`], [`protocol_sink`]) or, in Rust, by [`guest`]. `PROTOCOL.md` is its definition.

pub mod command;
pub mod frame;
pub mod guest;
pub mod manifest;
pub mod message;
pub mod process;
pub mod protocol_sink;
pub mod protocol_source;
pub mod root;
pub mod session;
pub mod settings;

use crate::error::Result;
use crate::settings::Settings;
use crate::sink::Sink;
use crate::source::Source;
use schemars::Schema;
use std::borrow::Cow;
use std::sync::Arc;

/// Builds an instance from its settings. Pure: it connects to nothing.
pub type Build<T> = dyn Fn(Settings) -> Result<Arc<T>> + Send + Sync;

/// A plugin as the registry holds it.
pub struct Plugin<T: ?Sized + 'static> {
    /// The name that `plugins = […]` enables.
    pub name: Cow<'static, str>,
    /// One line for `bk plugins list`.
    pub about: Cow<'static, str>,
    /// Its settings; the doc comments of the settings struct are the reference.
    pub schema: Arc<dyn Fn() -> Schema + Send + Sync>,
    /// Makes an instance.
    pub build: Arc<Build<T>>,
}

impl<T: ?Sized> Clone for Plugin<T> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            about: self.about.clone(),
            schema: self.schema.clone(),
            build: self.build.clone(),
        }
    }
}

/// Every plugin that this program has.
#[derive(Clone, Default)]
pub struct Registry {
    /// Sources, in the order in which they are listed.
    pub sources: Vec<Plugin<dyn Source>>,
    /// Sinks.
    pub sinks: Vec<Plugin<dyn Sink>>,
}

impl Registry {
    /// The source of this name.
    pub fn source(&self, name: &str) -> Option<&Plugin<dyn Source>> {
        self.sources.iter().find(|plugin| plugin.name == name)
    }

    /// The sink of this name.
    pub fn sink(&self, name: &str) -> Option<&Plugin<dyn Sink>> {
        self.sinks.iter().find(|plugin| plugin.name == name)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sources
            .iter()
            .map(|p| &*p.name)
            .chain(self.sinks.iter().map(|p| &*p.name))
    }
}
