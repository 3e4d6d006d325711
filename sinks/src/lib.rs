//! Where archives lie: one module and one cargo feature for each sink. `README.md` shows how to write one, by the example of `local`.

#[cfg(feature = "local")]
pub mod local;
#[cfg(feature = "object")]
pub mod object;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(feature = "ssh")]
pub mod ssh;
