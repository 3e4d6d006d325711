//! CouchDB: every leaf of every document with its history, attachments as they are stored, design documents, rights and limits.
//!
//! A database is a group with one unit, `.`. Documents travel as the JSON that the server gave: no number is read, no key moved. What a restore
//! writes keeps its revisions, so replication goes on where it was.

mod attachments;
mod backup;
mod catalogue;
mod connection;
mod documents;
mod feed;
mod json;
mod mark;
mod member;
mod restore;
mod revision;
mod server;

use crate::couchdb::connection::Access;
use crate::couchdb::server::Server;
use crate::database_filter::DatabaseFilter;
use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::Result;
use bk_core::plugin::Plugin;
use bk_core::secret::Secret;
use bk_core::settings::Settings;
use bk_core::source::{
    Candidate, Claim, Health, Input, RestoreOptions, Snapshot, SnapshotOptions, Source, Tally,
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;

/// Layout of the members; the restore of every older one stays.
pub const LAYOUT: u32 = 1;
/// The one unit of a database.
pub const UNIT: &str = ".";
/// Databases that the server makes for itself alone.
const SERVERS_OWN: [&str; 3] = ["_global_changes", "_dbs", "_nodes"];
/// Databases of `bk`'s own.
const OURS: &str = "bk_";

/// Settings of the source `couchdb`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CouchdbSettings {
    /// The clustered port: `http://HOST:5984`, or `https://`.
    #[serde(default = "default_url")]
    pub url: String,
    /// Account. A server admin sees everything; others see fields of `_users` and `_replicator` cut.
    #[serde(default)]
    pub user: Option<String>,
    /// Its password.
    #[serde(default)]
    pub password: Option<Secret>,
    /// A bearer token in place of user and password.
    #[serde(default)]
    pub token: Option<Secret>,
    /// Certificate authority (PEM) for `https://`; without it public authorities.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Databases to back up, as globs; without it all but the server's own and those called `bk_…`.
    #[serde(default)]
    pub databases: Option<Vec<String>>,
    /// What to leave out, as globs.
    #[serde(default)]
    pub exclude: Option<Vec<String>>,
    /// Requests in flight for each database.
    #[serde(default = "default_parallel")]
    pub parallel: u8,
    /// MiB for the list of a database's leaves; where it does not fit, the list is read several times.
    #[serde(default = "default_list_mib")]
    pub list_mib: u16,
    /// Whether `_local` documents are kept too: mostly checkpoints of replications, which mean nothing in a database made anew.
    #[serde(default)]
    pub local_docs: bool,
    /// Whether a restore starts the replications of `_replicator`; otherwise they wait in `bk_parked_replicator`.
    #[serde(default)]
    pub replicator: bool,
    /// Copies of each database in the cluster that a restore makes; without it as many as it had.
    #[serde(default)]
    pub n: Option<u8>,
}

fn default_url() -> String {
    "http://127.0.0.1:5984".into()
}

fn default_parallel() -> u8 {
    4
}

fn default_list_mib() -> u16 {
    64
}

/// The plugin.
pub fn plugin() -> Plugin<dyn Source> {
    Plugin {
        name: "couchdb".into(),
        about: "CouchDB: every leaf with its history, attachments, design documents, rights".into(),
        schema: Arc::new(|| schemars::schema_for!(CouchdbSettings)),
        build: Arc::new(|settings: Settings| Ok(Arc::new(Couchdb::new(&settings)?))),
    }
}

/// The source.
pub struct Couchdb {
    pub(crate) settings: CouchdbSettings,
    pub(crate) access: Access,
    pub(crate) filter: DatabaseFilter,
}

impl Couchdb {
    fn new(settings: &Settings) -> Result<Self> {
        let mut parsed: CouchdbSettings = settings.parse()?;
        parsed.ca = parsed.ca.map(|path| settings.path(&path));
        parsed.password = parsed
            .password
            .map(|secret| secret.relative_to(&settings.folder));
        parsed.token = parsed
            .token
            .map(|secret| secret.relative_to(&settings.folder));
        let filter = DatabaseFilter::from_settings(
            settings,
            parsed.databases.as_ref(),
            parsed.exclude.as_ref(),
        )?;
        for (key, number) in [
            ("parallel", u16::from(parsed.parallel)),
            ("list_mib", parsed.list_mib),
        ] {
            if number == 0 {
                return Err(settings.fault(key, "is 0", Some("use 1 or more")));
            }
        }
        if parsed.user.is_none() != parsed.password.is_none() {
            return Err(settings.fault("user", "and `password` belong together", None));
        }
        if parsed.user.is_some() && parsed.token.is_some() {
            return Err(settings.fault("token", "stands beside `user`", Some("use one of them")));
        }
        let access = Access::new(&parsed)
            .map_err(|why| settings.fault("url", why, Some("write http://HOST:5984")))?;
        Ok(Self {
            access,
            settings: parsed,
            filter,
        })
    }

    /// Whether a database is taken. What is `bk`'s own only when it is named.
    pub(crate) fn takes(&self, database: &str) -> bool {
        !SERVERS_OWN.contains(&database)
            && database != mark::NAME
            && self.filter.takes_database(database)
            && (!database.starts_with(OURS) || self.filter.names_database(database))
    }
}

#[async_trait]
impl Source for Couchdb {
    async fn check(&self, cx: &Context) -> Result<Health> {
        let connection = self.access.connect(cx).await?;
        let server = Server::ask(&connection).await?;
        let mut warnings = server.lacks();
        let found = catalogue::databases(&connection).await?;
        let marks = mark::read(&connection, &found).await?;
        if !marks.is_empty() {
            warnings.push(bk_core::unfinished::refusal(&marks, &cx.instance).what);
        }
        if let Err(missing) = self.filter.all_named_are_there(&found) {
            warnings.push(missing.what);
        }
        if !server.is_admin {
            warnings.push("the account is no server admin: what others may not see is not backed up, and databases cannot be made".into());
        }
        Ok(Health {
            identity: server.identity(self.access.describe()),
            describe: format!("{} on {}", server.name(), self.access.describe()),
            warnings,
        })
    }

    async fn snapshot(&self, cx: &Context, _how: &SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(backup::begin(self, cx).await?))
    }

    async fn restore(&self, cx: &Context, input: Input, how: &RestoreOptions) -> Result<Tally> {
        if input.foreign().is_some() {
            return restore::foreign::restore(self, cx, input, how).await;
        }
        restore::restore(self, cx, input, how).await
    }

    async fn examine(&self, cx: &Context, input: Input) -> Result<Vec<String>> {
        restore::foreign::examine(cx, input).await
    }

    fn claim(&self, what: &Candidate) -> Vec<Claim> {
        restore::foreign::claim(what)
    }
}
