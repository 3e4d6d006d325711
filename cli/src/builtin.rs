//! All built-in plugins, by name: the table of contents of the product.

use bk_core::plugin::Registry;
use bk_core::source::Memory;

/// Every plugin that this program was built with.
pub fn registry() -> Registry {
    Registry {
        sources: vec![
            #[cfg(feature = "caddy")]
            bk_sources::caddy::plugin(),
            #[cfg(feature = "command")]
            bk_sources::command::plugin(),
            #[cfg(feature = "couchdb")]
            bk_sources::couchdb::plugin(),
            #[cfg(feature = "env")]
            bk_sources::env::plugin(),
            #[cfg(feature = "files")]
            bk_sources::files::plugin(),
            #[cfg(feature = "http")]
            bk_sources::http::plugin(),
            #[cfg(feature = "k8s")]
            bk_sources::k8s::plugin(),
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

/// In a cluster: where a standby site remembers what it has, whatever its sources are.
#[cfg(feature = "k8s")]
pub fn memory_of_pod() -> Option<Box<dyn Memory>> {
    bk_sources::k8s::memory_of_pod().map(|memory| Box::new(memory) as Box<dyn Memory>)
}

/// Without Kubernetes there is no such place.
#[cfg(not(feature = "k8s"))]
pub fn memory_of_pod() -> Option<Box<dyn Memory>> {
    None
}
