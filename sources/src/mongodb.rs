//! MongoDB: every database, collection, view, index, user and role, as the bytes that the server keeps.
//!
//! A database is a group, a collection or view a unit; users and roles are the unit `users` of group `.`. Members are laid out and named as
//! `mongodump` lays out its folders. Documents are never decoded: what the server gave comes back bit by bit.

pub mod bson;
mod catalogue;
mod connection;
mod dump;
mod extract;
mod mark;
mod metadata;
mod names;
mod oplog;
mod restore;
mod server;
mod snapshot;

use crate::database_filter::DatabaseFilter;
use crate::mongodb::connection::Access;
use crate::mongodb::server::Server;
use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, Result};
use bk_core::plugin::Plugin;
use bk_core::secret::Secret;
use bk_core::settings::Settings;
use bk_core::source::{
    Candidate, Claim, ExtractAs, Health, Input, RestoreOptions, Snapshot, SnapshotOptions, Source,
    Tally,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// Layout of the members; the restore of every older one stays.
pub const LAYOUT: u32 = 1;

/// Settings of the source `mongodb`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MongodbSettings {
    /// Connection string, `mongodb://` or `mongodb+srv://`; with it `host`, `port`, `user`, `password`, `auth_database`, `tls` and `ca` are not used.
    #[serde(default)]
    pub uri: Option<Secret>,
    /// Host name or address of the one server that is spoken to.
    #[serde(default = "default_host")]
    pub host: String,
    /// TCP port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Account. The roles `backup` and `restore` are enough; `bk check` names what is missing.
    #[serde(default)]
    pub user: Option<String>,
    /// Its password.
    #[serde(default)]
    pub password: Option<Secret>,
    /// The database that knows the account.
    #[serde(default = "default_auth_database")]
    pub auth_database: String,
    /// Encryption of the connection.
    #[serde(default)]
    pub tls: Tls,
    /// Certificate authority (PEM) for `tls = "verify"`; without it public authorities.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Databases to back up, as globs; without it all but the server's own, and users and roles.
    #[serde(default)]
    pub databases: Option<Vec<String>>,
    /// What to leave out, as globs: `DATABASE` or `DATABASE/COLLECTION`.
    #[serde(default)]
    pub exclude: Option<Vec<String>>,
    /// Collections that are read, or batches that are written, at the same time.
    #[serde(default = "default_parallel")]
    pub parallel: u8,
    /// How all collections come to show one instant.
    #[serde(default)]
    pub consistency: Consistency,
    /// In which order a collection is read.
    #[serde(default)]
    pub order: Order,
    /// Whether users and roles are backed up; without it: when `databases` is absent.
    #[serde(default)]
    pub users: Option<bool>,
}

/// Encryption of the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// Not encrypted.
    #[default]
    Off,
    /// Encrypted, the certificate names `host` and is signed by `ca` or, without one, by a public authority.
    Verify,
}

/// How all collections come to show one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// The best that the server really does: one snapshot, else the log, else one transaction, else none. The report says which it was.
    #[default]
    Auto,
    /// All read at one instant of a replica set, or the backup fails.
    Snapshot,
    /// Read as it comes, and what was written meanwhile is taken from the replica set's log, or the backup fails.
    Oplog,
    /// One transaction reads all, one collection after the other; it must end before the server ends it (60 s by default).
    Transaction,
    /// Writers wait while all is read (`fsync` with a lock), or the backup fails.
    Lock,
    /// Each collection as it was while it was read.
    None,
}

/// In which order a collection is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// By `_id`: the same documents give the same blocks, also after a restore. Capped and clustered collections are read as they lie.
    #[default]
    Id,
    /// As they lie: quicker for huge collections with random `_id`s.
    Natural,
}

fn default_host() -> String {
    "127.0.0.1".into()
}

fn default_port() -> u16 {
    27017
}

fn default_auth_database() -> String {
    "admin".into()
}

fn default_parallel() -> u8 {
    4
}

/// The plugin.
pub fn plugin() -> Plugin<dyn Source> {
    Plugin {
        name: "mongodb".into(),
        about: "MongoDB and what speaks its protocol: databases, indexes, users, roles".into(),
        schema: Arc::new(|| schemars::schema_for!(MongodbSettings)),
        build: Arc::new(|settings: Settings| Ok(Arc::new(Mongodb::new(&settings)?))),
    }
}

/// The source.
pub struct Mongodb {
    pub(crate) settings: MongodbSettings,
    pub(crate) access: Access,
    pub(crate) filter: catalogue::Filter,
}

impl Mongodb {
    fn new(settings: &Settings) -> Result<Self> {
        let mut parsed: MongodbSettings = settings.parse()?;
        parsed.ca = parsed.ca.map(|path| settings.path(&path));
        parsed.uri = parsed.uri.map(|uri| uri.relative_to(&settings.folder));
        parsed.password = parsed
            .password
            .map(|secret| secret.relative_to(&settings.folder));
        let filter = catalogue::Filter(DatabaseFilter::from_settings(
            settings,
            parsed.databases.as_ref(),
            parsed.exclude.as_ref(),
        )?);
        if parsed.parallel == 0 {
            return Err(settings.fault("parallel", "is 0", Some("use 1 or more")));
        }
        if parsed.ca.is_some() && parsed.tls == Tls::Off {
            return Err(settings.fault(
                "ca",
                "is set, and `tls` is off",
                Some("set tls = \"verify\""),
            ));
        }
        if parsed.user.is_none() != parsed.password.is_none() {
            return Err(settings.fault("user", "and `password` belong together", None));
        }
        Ok(Self {
            access: Access::new(&parsed),
            settings: parsed,
            filter,
        })
    }

    pub(crate) fn with_users(&self) -> bool {
        self.settings
            .users
            .unwrap_or(self.settings.databases.is_none())
    }
}

#[async_trait]
impl Source for Mongodb {
    async fn check(&self, cx: &Context) -> Result<Health> {
        let connection = self.access.connect(cx).await?;
        let server = Server::ask(&connection).await?;
        let mut warnings = Vec::new();
        let found = catalogue::databases(&connection, &self.filter)
            .await
            .map_err(|e| {
                e.hint("grant the account the role `backup`, or name `databases` that it may read")
            })?;
        for database in &found {
            if let (_, catalogue::Seen::Names) =
                catalogue::collections(&connection, database, &self.filter).await?
            {
                warnings.push(format!(
                    "the options of collections in `{database}` may not be read: they are lost; grant the account the role `backup`"
                ));
            }
        }
        let marks = mark::read(&connection).await?;
        if !marks.is_empty() {
            warnings.push(bk_core::unfinished::refusal(&marks, &cx.instance).what);
        }
        // A backup fails for it; a restore may be about to make it.
        if let Err(missing) = self.filter.0.all_named_are_there(&found) {
            warnings.push(missing.what);
        }
        if server.set.is_none() && !server.is_router {
            warnings.push(
                "it is no replica set: collections are read one after the other, and do not show one instant; a replica set of one member does"
                    .into(),
            );
        }
        Ok(Health {
            identity: server.identity.clone(),
            describe: format!("{} on {}", server.name(), self.access.describe()),
            warnings,
        })
    }

    async fn snapshot(&self, cx: &Context, how: &SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(snapshot::take(self, cx, how).await?))
    }

    async fn restore(&self, cx: &Context, input: Input, how: &RestoreOptions) -> Result<Tally> {
        if input.foreign().is_some() {
            return restore::foreign::restore(self, cx, input, how).await;
        }
        restore::restore(self, cx, input, how).await
    }

    fn forms(&self) -> &'static [&'static str] {
        &extract::FORMS
    }

    async fn extract_as(&self, cx: &Context, input: Input, how: &ExtractAs) -> Result<Tally> {
        extract::extract(cx, input, how).await
    }

    async fn examine(&self, cx: &Context, input: Input) -> Result<Vec<String>> {
        restore::foreign::examine(cx, input).await
    }

    fn claim(&self, what: &Candidate) -> Vec<Claim> {
        restore::foreign::claim(what)
    }

    fn most_bytes(&self, what: &Candidate) -> Option<u64> {
        restore::foreign::most_bytes(what)
    }
}

/// What stops the run or the instance, not a unit.
pub(crate) fn is_the_runs(error: &Error) -> bool {
    use bk_core::error::ErrorKind;
    matches!(
        error.kind,
        ErrorKind::Cancelled | ErrorKind::Bug | ErrorKind::Plugin
    )
}
