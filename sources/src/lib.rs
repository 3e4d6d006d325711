//! What can be backed up: one module and one cargo feature for each source. `README.md` shows how to write one, by the example of `caddy`.

#[cfg(feature = "caddy")]
pub mod caddy;
#[cfg(feature = "files")]
pub mod files;
#[cfg(feature = "mongodb")]
pub mod mongodb;
#[cfg(feature = "mysql")]
pub mod mysql;

#[cfg(any(feature = "mongodb", feature = "mysql"))]
mod database_filter;
#[cfg(any(feature = "mongodb", feature = "mysql"))]
mod run_queue;
#[cfg(any(feature = "mongodb", feature = "mysql"))]
mod segment;
