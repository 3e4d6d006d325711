//! MySQL and MariaDB: every database, table, view, routine, trigger, event, sequence and account of a server at one instant.
//!
//! A database is a group, a table (with its keys, foreign keys and triggers) or a view a unit; routines and events are units named
//! `function:NAME`, `procedure:NAME`, `event:NAME`; the accounts are the unit `accounts` of group `.`. Members are SQL that the plain client
//! loads in the order of the archive.

mod accounts;
mod catalogue;
mod connection;
mod ddl;
mod dump;
mod lexer;
mod literal;
mod lock;
mod mark;
mod restore;
mod snapshot;
mod statement;
mod wire;

use crate::database_filter::DatabaseFilter;
use crate::mysql::connection::{Access, Server};
use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, Result};
use bk_core::plugin::Plugin;
use bk_core::secret::Secret;
use bk_core::settings::Settings;
use bk_core::source::{
    Candidate, Claim, Health, Input, RestoreOptions, Snapshot, SnapshotOptions, Source, Tally,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// Layout of the members; the restore of every older one stays.
pub const LAYOUT: u32 = 1;
/// Group of what belongs to the server and to no database.
pub(crate) const SERVER_GROUP: &str = ".";
/// The unit of users, roles and grants.
pub(crate) const ACCOUNTS_UNIT: &str = "accounts";
/// Schemas that belong to the server itself: never dumped, never restored.
const SYSTEM_SCHEMAS: [&str; 5] = [
    "information_schema",
    "performance_schema",
    "sys",
    "mysql",
    "ndbinfo",
];

/// Whether a schema belongs to the server, or is our own mark.
pub(crate) fn is_servers_own(name: &str) -> bool {
    SYSTEM_SCHEMAS.contains(&name.to_lowercase().as_str()) || name == mark::NAME
}

/// Settings of the source `mysql`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MysqlSettings {
    /// Host name or address.
    #[serde(default = "default_host")]
    pub host: String,
    /// TCP port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Unix socket; with it `host`, `port` and `tls` are not used.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// Account. It needs the rights that `bk check` names.
    pub user: String,
    /// Its password.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Encryption of the connection.
    #[serde(default)]
    pub tls: Tls,
    /// Certificate authority (PEM) for `tls = "verify-ca"` and `"verify"`.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Databases to back up, as globs; without it all but the server's own, and the accounts.
    #[serde(default)]
    pub databases: Option<Vec<String>>,
    /// What to leave out, as globs: `DATABASE` or `DATABASE/TABLE`.
    #[serde(default)]
    pub exclude: Option<Vec<String>>,
    /// Connections that read or write data at the same time.
    #[serde(default = "default_parallel")]
    pub parallel: u8,
    /// How all connections come to read the same instant.
    #[serde(default)]
    pub consistency: Consistency,
    /// Whether users, roles and grants are backed up; without it: when `databases` is absent.
    #[serde(default)]
    pub accounts: Option<bool>,
    /// `FLUSH BINARY LOGS` before a backup.
    #[serde(default)]
    pub flush_logs: bool,
    /// What a restore does with definers that the target does not know.
    #[serde(default)]
    pub definer: Definer,
}

/// Encryption of the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// Encrypted where the server offers it, its certificate not checked.
    #[default]
    Prefer,
    /// Not encrypted.
    Off,
    /// Encrypted, the certificate not checked.
    Require,
    /// Encrypted, the certificate signed by `ca`, whatever name it bears.
    VerifyCa,
    /// Encrypted, the certificate names `host`, and is signed by `ca` or, without one, by a public authority.
    Verify,
}

impl Tls {
    /// Whether not everybody who answers is believed.
    pub(crate) fn looks_at_certificates(self) -> bool {
        match self {
            Self::Off | Self::Prefer | Self::Require => false,
            Self::VerifyCa | Self::Verify => true,
        }
    }
}

/// How all connections come to read the same instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// The best that the account's rights allow; the report says which it was.
    #[default]
    Auto,
    /// A short global lock while all connections start, or the backup fails.
    Lock,
    /// One connection and no lock: for managed servers that refuse locks.
    SingleConnection,
}

/// What a restore does with definers that the target does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Definer {
    /// Keep them, and name those that are missing.
    #[default]
    Keep,
    /// The restoring account stands in for those that are missing.
    Current,
}

fn default_host() -> String {
    "127.0.0.1".into()
}

fn default_port() -> u16 {
    3306
}

fn default_parallel() -> u8 {
    4
}

/// The plugin.
pub fn plugin() -> Plugin<dyn Source> {
    Plugin {
        name: "mysql".into(),
        about: "MySQL and MariaDB servers: databases, accounts, routines, events".into(),
        schema: Arc::new(|| schemars::schema_for!(MysqlSettings)),
        build: Arc::new(|settings: Settings| Ok(Arc::new(Mysql::new(&settings)?))),
    }
}

/// The source.
pub struct Mysql {
    pub(crate) settings: MysqlSettings,
    pub(crate) access: Access,
    pub(crate) filter: catalogue::Filter,
}

impl Mysql {
    fn new(settings: &Settings) -> Result<Self> {
        let mut parsed: MysqlSettings = settings.parse()?;
        parsed.socket = parsed.socket.map(|path| settings.path(&path));
        parsed.ca = parsed.ca.map(|path| settings.path(&path));
        let filter = catalogue::Filter(DatabaseFilter::from_settings(
            settings,
            parsed.databases.as_ref(),
            parsed.exclude.as_ref(),
        )?);
        if parsed.parallel == 0 {
            return Err(settings.fault("parallel", "is 0", Some("use 1 or more")));
        }
        if parsed.ca.is_some() && !parsed.tls.looks_at_certificates() {
            return Err(settings.fault(
                "ca",
                "is set, and `tls` does not look at certificates",
                Some("set tls = \"verify\", or \"verify-ca\" where the certificate bears another name"),
            ));
        }
        if parsed.tls == Tls::VerifyCa && parsed.ca.is_none() {
            return Err(settings.fault(
                "tls",
                "is \"verify-ca\", and no `ca` says whose signature counts",
                Some("name the server's authority in `ca`, or set tls = \"verify\""),
            ));
        }
        Ok(Self {
            access: Access::new(&parsed),
            settings: parsed,
            filter,
        })
    }

    pub(crate) fn with_accounts(&self) -> bool {
        self.settings
            .accounts
            .unwrap_or(self.settings.databases.is_none())
    }
}

#[async_trait]
impl Source for Mysql {
    async fn check(&self, cx: &Context) -> Result<Health> {
        let mut connection = self.access.connect(cx).await?;
        let server = Server::ask(&mut connection).await?;
        let mut warnings = lock::missing_rights(
            &mut connection,
            &server,
            self.with_accounts(),
            self.settings.databases.is_none(),
        )
        .await?;
        let found = catalogue::databases(&mut connection, &self.filter).await?;
        let marks = mark::read(&mut connection).await?;
        if !marks.is_empty() {
            warnings.push(bk_core::unfinished::refusal(&marks, &cx.instance).what);
        }
        connection.end().await;
        // A backup fails for it; a restore may be about to make it.
        if let Err(missing) = self.filter.0.all_named_are_there(&found) {
            warnings.push(missing.what);
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

    fn claim(&self, what: &Candidate) -> Vec<Claim> {
        restore::foreign::claim(what)
    }
}

/// A name as one part of a path and of a selector: the words of `escape`, and neither `/`, `:`, `.` nor `..` alone.
pub(crate) fn part(name: &str) -> String {
    let text = bk_core::name::escape(name.as_bytes())
        .replace('/', "\\x2f")
        .replace(':', "\\x3a");
    match text.as_str() {
        "." | ".." | "create.sql" => text.replace('.', "\\x2e"),
        _ => text,
    }
}

/// A unit's name for something that is no table; a table's has no colon.
pub(crate) fn object_unit(kind: &str, name: &str) -> String {
    format!("{}:{}", kind.to_lowercase().replace(' ', "_"), part(name))
}

/// The name behind a group or a table's unit.
pub(crate) fn name_of(part: &str) -> String {
    String::from_utf8_lossy(&bk_core::name::unescape(part)).into_owned()
}

/// Said of a statement that the server refused.
pub(crate) fn refused(doing: &str, error: wire::Error) -> Error {
    connection::error(error).within(doing)
}
