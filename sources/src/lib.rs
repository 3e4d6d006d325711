//! What can be backed up: one module and one cargo feature for each source. `README.md` shows how to write one, by the example of `caddy`.

#[cfg(feature = "caddy")]
pub mod caddy;
#[cfg(feature = "command")]
pub mod command;
#[cfg(feature = "couchdb")]
pub mod couchdb;
#[cfg(feature = "env")]
pub mod env;
#[cfg(feature = "files")]
pub mod files;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "k8s")]
pub mod k8s;
#[cfg(feature = "mongodb")]
pub mod mongodb;
#[cfg(feature = "mysql")]
pub mod mysql;

#[cfg(any(feature = "couchdb", feature = "mongodb", feature = "mysql"))]
#[allow(dead_code, reason = "no source needs all of it")]
mod database_filter;
#[cfg(any(feature = "couchdb", feature = "mongodb"))]
mod parts;
#[cfg(any(feature = "couchdb", feature = "k8s"))]
mod percent;
#[cfg(any(feature = "couchdb", feature = "mongodb", feature = "mysql"))]
#[allow(dead_code, reason = "no source needs all of it")]
mod run_queue;
#[cfg(any(feature = "couchdb", feature = "mongodb", feature = "mysql"))]
#[allow(dead_code, reason = "no source needs all of it")]
mod segment;
