//! All built-in plugins, by name: the table of contents of the product.

use bk_core::plugin::Registry;

/// Every plugin that this program was built with.
pub fn registry() -> Registry {
    Registry {
        sources: vec![
            #[cfg(feature = "caddy")]
            bk_sources::caddy::plugin(),
            #[cfg(feature = "couchdb")]
            bk_sources::couchdb::plugin(),
            #[cfg(feature = "files")]
            bk_sources::files::plugin(),
            #[cfg(feature = "mongodb")]
            bk_sources::mongodb::plugin(),
            #[cfg(feature = "mysql")]
            bk_sources::mysql::plugin(),
        ],
        sinks: vec![
            #[cfg(feature = "local")]
            bk_sinks::local::plugin(),
            #[cfg(feature = "object")]
            bk_sinks::object::plugin(),
            #[cfg(feature = "s3")]
            bk_sinks::s3::plugin(),
            #[cfg(feature = "ssh")]
            bk_sinks::ssh::plugin(),
        ],
    }
}

/// A folder that `bk fetch DIR` fills, without any settings: a folder for each day.
#[cfg(feature = "local")]
pub fn fetch_folder(path: &std::path::Path) -> Option<std::sync::Arc<dyn bk_core::sink::Sink>> {
    let local = bk_sinks::local::Local::new(path.to_path_buf());
    Some(std::sync::Arc::new(
        local.with_layout(bk_core::layout::Layout::Dates),
    ))
}

/// The same of a program that was built without folders.
#[cfg(not(feature = "local"))]
pub fn fetch_folder(_path: &std::path::Path) -> Option<std::sync::Arc<dyn bk_core::sink::Sink>> {
    None
}
