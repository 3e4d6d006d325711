//! Who answers, and what can be asked of it.

use crate::couchdb::connection::{Connection, Method};
use bk_core::error::{Result, unsupported};
use serde::Deserialize;

/// A server as it introduced itself.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// `3.5.0`.
    pub version: String,
    /// `CouchDB`, `PouchDB Server`.
    pub flavour: &'static str,
    /// Its number, where it has one.
    pub uuid: Option<String>,
    /// Whether the account may do everything.
    pub is_admin: bool,
    /// Whether it has q, n, limits, and attachments as they are stored.
    pub is_full: bool,
}

#[derive(Debug, Deserialize)]
struct Welcome {
    #[serde(default)]
    couchdb: Option<String>,
    #[serde(default, rename = "express-pouchdb")]
    pouchdb: Option<String>,
    #[serde(default)]
    version: String,
    #[serde(default)]
    uuid: Option<String>,
    #[serde(default)]
    vendor: Vendor,
}

#[derive(Debug, Default, Deserialize)]
struct Vendor {
    #[serde(default)]
    name: String,
}

#[derive(Debug, Default, Deserialize)]
struct Session {
    #[serde(default, rename = "userCtx")]
    user: User,
}

#[derive(Debug, Default, Deserialize)]
struct User {
    #[serde(default)]
    roles: Vec<String>,
}

impl Server {
    /// Asks.
    pub async fn ask(connection: &Connection) -> Result<Self> {
        let asking = "asking who is there";
        let welcome: Welcome = connection.get("/", asking).await?.parsed(asking)?;
        if welcome.couchdb.is_none() && welcome.pouchdb.is_none() {
            return Err(unsupported("what answers there is no CouchDB")
                .hint("set `url` to the server's clustered port, 5984 by default"));
        }
        let session = connection.ask(Method::GET, "/_session").await?;
        let session: Session = if session.is_good() {
            session.parsed(asking)?
        } else {
            Session::default()
        };
        let is_pouch = welcome.pouchdb.is_some();
        let flavour = if is_pouch {
            "PouchDB Server"
        } else if welcome.vendor.name.contains("IBM") {
            "Cloudant"
        } else {
            "CouchDB"
        };
        Ok(Self {
            flavour,
            uuid: welcome.uuid.filter(|_| !is_pouch),
            version: welcome.version,
            is_admin: session.user.roles.iter().any(|role| role == "_admin"),
            is_full: !is_pouch,
        })
    }

    /// `CouchDB 3.5.0`.
    pub fn name(&self) -> String {
        format!("{} {}", self.flavour, self.version)
    }

    /// Stable over restarts.
    pub fn identity(&self, place: &str) -> String {
        match &self.uuid {
            Some(uuid) => format!("couchdb {uuid}"),
            None => format!("couchdb {place}"),
        }
    }

    /// What it has not, and what that costs.
    pub fn lacks(&self) -> Vec<String> {
        if self.is_full {
            return Vec::new();
        }
        vec![format!(
            "{} reads numbers as floating point, gives attachments in JSON alone, and has no limits, shards or purges: what it gives is kept as it is",
            self.name()
        )]
    }
}
