//! A way to the server: by its settings, with commands that are BSON and answers that are looked at.

use crate::mongodb::bson::{self, Writing};
use crate::mongodb::{MongodbSettings, Tls};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, settings};
use futures::StreamExt;
use mongodb::bson::{Bson, Document};
use mongodb::error::ErrorKind as DriverErrorKind;
use mongodb::options::{ClientOptions, Credential, ServerAddress, TlsOptions};
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};
use mongodb::{Client, ClientSession};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// Patience with one that does not answer at all: below that of a check.
const CONNECT_LIMIT: Duration = Duration::from_secs(8);
/// Patience with one command. Indexes of large collections are built within one.
const COMMAND_LIMIT: Duration = Duration::from_hours(24);
/// Connections beside those that read and write data.
const SPARE_CONNECTIONS: u32 = 4;

/// Numbers that servers give to what goes wrong. (mongodb/mongo, `error_codes.yml`)
pub mod code {
    pub const UNAUTHORIZED: i32 = 13;
    pub const AUTHENTICATION_FAILED: i32 = 18;
    pub const NAMESPACE_NOT_FOUND: i32 = 26;
    pub const COMMAND_NOT_FOUND: i32 = 59;
    pub const NOT_IMPLEMENTED: i32 = 238;
    pub const DUPLICATE_KEY: i32 = 11000;
}

/// How to get there.
#[derive(Clone)]
pub struct Access {
    settings: MongodbSettings,
}

/// A command that went wrong.
#[derive(Debug)]
pub struct Failure {
    /// The server's number, where it was the server who said no.
    pub code: Option<i32>,
    /// For people.
    pub error: Error,
}

impl Failure {
    /// Whether the server does not know what was asked of it.
    pub fn is_unknown_command(&self) -> bool {
        matches!(
            self.code,
            Some(code::COMMAND_NOT_FOUND | code::NOT_IMPLEMENTED)
        )
    }

    /// Whether the account may not.
    pub fn is_denied(&self) -> bool {
        self.code == Some(code::UNAUTHORIZED)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl Access {
    /// By these settings.
    pub fn new(settings: &MongodbSettings) -> Self {
        Self {
            settings: settings.clone(),
        }
    }

    /// Where it is, for people.
    pub fn describe(&self) -> String {
        match &self.settings.uri {
            Some(_) => "the server of `uri`".into(),
            None => format!("{}:{}", self.settings.host, self.settings.port),
        }
    }

    /// Connects; the first command shows whether anybody answers.
    pub async fn connect(&self, cx: &Context) -> Result<Connection> {
        // A second call finds it installed, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut options = match &self.settings.uri {
            Some(uri) => ClientOptions::parse(uri.reveal().await?)
                .await
                .map_err(|e| {
                    settings(format!("`uri` cannot be used: {}", without_secrets(&e)))
                        .hint("write mongodb://USER:PASSWORD@HOST:PORT/?authSource=admin")
                })?,
            None => self.by_parts().await?,
        };
        options.app_name.get_or_insert_with(|| "bk".into());
        options.connect_timeout.get_or_insert(CONNECT_LIMIT);
        options
            .server_selection_timeout
            .get_or_insert(CONNECT_LIMIT);
        options
            .max_pool_size
            .get_or_insert(u32::from(self.settings.parallel) + SPARE_CONNECTIONS);
        let seeds: Vec<String> = options.hosts.iter().map(ToString::to_string).collect();
        let client = Client::with_options(options).map_err(|e| failure(&e).error)?;
        Ok(Connection {
            client,
            cx: cx.clone(),
            seeds: seeds.join(","),
            data_bytes: Arc::default(),
        })
    }

    async fn by_parts(&self) -> Result<ClientOptions> {
        let s = &self.settings;
        let mut options = ClientOptions::default();
        options.hosts = vec![ServerAddress::Tcp {
            host: s.host.clone(),
            port: Some(s.port),
        }];
        // The names in a replica set's own list need not be known here.
        options.direct_connection = Some(true);
        if let Some(user) = &s.user {
            let mut credential = Credential::default();
            credential.username = Some(user.clone());
            credential.source = Some(s.auth_database.clone());
            if let Some(password) = &s.password {
                credential.password = Some(password.reveal().await?);
            }
            options.credential = Some(credential);
        }
        if s.tls == Tls::Verify {
            let mut tls = TlsOptions::default();
            tls.ca_file_path.clone_from(&s.ca);
            options.tls = Some(tls.into());
        }
        Ok(options)
    }
}

/// A server that is spoken to. Cheap to clone.
#[derive(Clone)]
pub struct Connection {
    /// The driver.
    pub client: Client,
    cx: Context,
    /// Addresses that were given.
    pub seeds: String,
    data_bytes: Arc<Mutex<HashMap<String, f64>>>,
}

impl Connection {
    /// The same, stopped by another context: what tidies up must be able to when the run was told to stop.
    pub fn with_context(&self, cx: &Context) -> Self {
        Self {
            cx: cx.clone(),
            ..self.clone()
        }
    }

    /// The same, stopped by nobody.
    pub fn unstoppable(&self) -> Self {
        self.with_context(&self.cx.unstopped())
    }

    /// Runs a command. What the server refuses is a failure with its number.
    pub async fn run(&self, database: &str, command: Writing) -> Result<Document, Failure> {
        let raw = command.raw().map_err(ours)?;
        let database = self.client.database(database);
        let answer = async { Ok(database.run_raw_command(raw).await) };
        let answer = self
            .cx
            .within(COMMAND_LIMIT, late, answer)
            .await
            .map_err(ours)?;
        answer.map_err(|e| failure(&e))
    }

    /// Bytes of a database's documents, asked once; infinite where the server does not say.
    pub async fn data_bytes(&self, database: &str) -> Result<f64> {
        let mut known = self.data_bytes.lock().await;
        if let Some(bytes) = known.get(database) {
            return Ok(*bytes);
        }
        let bytes = match self.run(database, Writing::new().int("dbStats", 1)).await {
            Ok(answer) => number(&answer, "dataSize").unwrap_or(f64::INFINITY),
            Err(failure) if failure.code.is_some() => f64::INFINITY,
            Err(failure) => return Err(failure.error),
        };
        known.insert(database.to_owned(), bytes);
        Ok(bytes)
    }

    /// All documents of a cursor that is small.
    pub async fn list(&self, database: &str, command: Writing) -> Result<Vec<Vec<u8>>, Failure> {
        let mut cursor = self.cursor(database, command).await?;
        let mut found = Vec::new();
        while let Some(batch) = self.next(&mut cursor).await? {
            found.extend(documents_of(&batch).map_err(ours)?.map(<[u8]>::to_vec));
        }
        Ok(found)
    }

    /// Opens a cursor.
    pub async fn cursor(
        &self,
        database: &str,
        command: Writing,
    ) -> Result<RawBatchCursor, Failure> {
        let raw = command.raw().map_err(ours)?;
        let database = self.client.database(database);
        let opened = async { Ok(database.run_raw_cursor_command(raw).batch().await) };
        let opened = self
            .cx
            .within(COMMAND_LIMIT, late, opened)
            .await
            .map_err(ours)?;
        opened.map_err(|e| failure(&e))
    }

    /// The next batch of a cursor, or nothing at its end.
    pub async fn next(&self, cursor: &mut RawBatchCursor) -> Result<Option<RawBatch>, Failure> {
        let next = async { Ok(cursor.next().await) };
        let next = self
            .cx
            .within(COMMAND_LIMIT, late, next)
            .await
            .map_err(ours)?;
        next.transpose().map_err(|e| failure(&e))
    }

    /// The same in a session.
    pub async fn next_in(
        &self,
        cursor: &mut mongodb::raw_batch_cursor::SessionRawBatchCursor,
        session: &mut ClientSession,
    ) -> Result<Option<RawBatch>, Failure> {
        let next = async { Ok(cursor.stream(session).next().await) };
        let next = self
            .cx
            .within(COMMAND_LIMIT, late, next)
            .await
            .map_err(ours)?;
        next.transpose().map_err(|e| failure(&e))
    }
}

/// The documents of a batch; an error where one of them is none.
pub fn documents_of(batch: &RawBatch) -> Result<impl Iterator<Item = &[u8]>> {
    let array = batch
        .doc_slices()
        .map_err(|e| Error::corrupt(format!("the server's answer is no batch: {e}")))?;
    for element in bson::elements(array.as_bytes()) {
        if element?.document().is_none() {
            return Err(Error::corrupt(
                "the server's answer holds what is no document",
            ));
        }
    }
    Ok(bson::documents_of(array.as_bytes()))
}

/// A number under a name, of whichever type.
pub fn number(document: &Document, name: &str) -> Option<f64> {
    match document.get(name)? {
        Bson::Int32(n) => Some(f64::from(*n)),
        Bson::Int64(n) => Some(*n as f64),
        Bson::Double(n) => Some(*n),
        _ => None,
    }
}

fn ours(error: Error) -> Failure {
    Failure { code: None, error }
}

fn late() -> Error {
    Error::new(ErrorKind::Unreachable, "the server did not answer in time")
}

/// The driver's words. They name hosts and users, never passwords.
fn without_secrets(error: &mongodb::error::Error) -> String {
    match &*error.kind {
        DriverErrorKind::InvalidArgument { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// What the driver or the server said, as one of our kinds.
pub fn failure(error: &mongodb::error::Error) -> Failure {
    let (kind, code, words) = match &*error.kind {
        DriverErrorKind::Command(said) => {
            let kind = match said.code {
                code::UNAUTHORIZED => ErrorKind::Denied,
                code::AUTHENTICATION_FAILED => ErrorKind::Auth,
                code::NAMESPACE_NOT_FOUND => ErrorKind::NotFound,
                code::COMMAND_NOT_FOUND | code::NOT_IMPLEMENTED => ErrorKind::Unsupported,
                _ => ErrorKind::Unreachable,
            };
            let words = format!("{} ({} {})", said.message, said.code, said.code_name);
            (kind, Some(said.code), words.replace(" )", ")"))
        }
        DriverErrorKind::Authentication { message, .. } => (ErrorKind::Auth, None, message.clone()),
        DriverErrorKind::InvalidArgument { message, .. }
        | DriverErrorKind::InvalidTlsConfig { message, .. } => {
            (ErrorKind::Settings, None, message.clone())
        }
        DriverErrorKind::IncompatibleServer { message, .. } => {
            (ErrorKind::Unsupported, None, message.clone())
        }
        DriverErrorKind::ServerSelection { message, .. } => {
            let words = format!("no server answered: {message}");
            (ErrorKind::Unreachable, None, words)
        }
        other => (ErrorKind::Unreachable, None, other.to_string()),
    };
    let mut error = Error::new(kind, words);
    if kind == ErrorKind::Auth {
        error = error.hint("look at `user`, `password` and `auth_database`");
    }
    Failure { code, error }
}
