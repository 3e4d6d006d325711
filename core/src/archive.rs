//! The archive "bk-xz/1": an ordinary `.tar.xz` that can be read from any place. `core/FORMAT.md` is the normative text.
//!
//! `xz` knows blocks and the container's frame, `tar` knows members, `format` the words inside; `output` knows units, `lane` fills
//! blocks, `pool` compresses them, `writer` puts them in order and sends them to the sinks; `tail` and `reader` get everything back; `foreign` reads what
//! others made. Nothing outside this folder touches tar or xz.

pub mod checksums;
pub mod foreign;
pub mod format;
pub mod index;
pub mod lane;
mod leftover;
pub mod memory;
pub mod output;
pub mod piped;
pub mod pool;
pub mod read_at;
pub mod reader;
pub mod sparse;
pub mod tail;
pub mod tar;
mod tar_guard;
pub mod writer;
pub mod xz;
