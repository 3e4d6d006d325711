//! Connections: how to reach the server, what each session sets, what the server's errors mean.

use crate::mysql::wire::{self, Secrets, Told, Wire};
use crate::mysql::{MysqlSettings, Tls};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::secret::Secret;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How to reach the server.
#[derive(Clone, Debug)]
pub struct Access {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) socket: Option<PathBuf>,
    pub(super) user: String,
    password: Option<Secret>,
    pub(super) tls: Tls,
    pub(super) ca: Option<PathBuf>,
}

/// Which of the two families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Oracle's, and what follows its versions.
    MySql,
    /// MariaDB.
    MariaDb,
}

/// Who answered.
#[derive(Clone, Debug)]
pub struct Server {
    /// Family.
    pub flavour: Flavour,
    /// Version.
    pub version: (u16, u16, u16),
    /// As it prints it.
    pub version_text: String,
    /// Stable over restarts.
    pub identity: String,
    /// `lower_case_table_names`.
    pub lower_case_names: bool,
    /// `log_bin`.
    pub binary_log: bool,
}

/// A connection.
pub struct Connection {
    pub(crate) conn: Wire,
}

impl Access {
    /// From the settings.
    pub fn new(settings: &MysqlSettings) -> Self {
        Self {
            host: settings.host.clone(),
            port: settings.port,
            socket: settings.socket.clone(),
            user: settings.user.clone(),
            password: settings.password.clone(),
            tls: settings.tls,
            ca: settings.ca.clone(),
        }
    }

    /// For people.
    pub fn describe(&self) -> String {
        match &self.socket {
            Some(path) => path.display().to_string(),
            None => format!("{}:{}", self.host, self.port),
        }
    }

    async fn secrets(&self) -> Result<Secrets> {
        let encrypted = self.tls != Tls::Off && self.socket.is_none();
        Ok(Secrets {
            password: match &self.password {
                Some(secret) => secret.reveal().await?,
                None => String::new(),
            },
            tls: if encrypted {
                Some(wire::tls::client(self).await?)
            } else {
                None
            },
        })
    }

    /// A session that reads stored bytes as they are, in UTC, and is never thrown out for waiting on a slow archive.
    pub async fn connect(&self, cx: &Context) -> Result<Connection> {
        let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer within 10 s");
        let opened = unless_cancelled(&cx.cancel, async {
            let secrets = self.secrets().await?;
            let opening = tokio::time::timeout(CONNECT_LIMIT, Wire::connect(self, secrets));
            opening.await.unwrap_or_else(|_| Err(late().into()))
        })
        .await;
        let conn =
            opened.map_err(|e| error(e).within(format!("could not reach {}", self.describe())))?;
        let mut connection = Connection { conn };
        connection.set_up().await?;
        Ok(connection)
    }
}

impl Connection {
    async fn set_up(&mut self) -> Result<()> {
        self.run(
            "SET NAMES utf8mb4, character_set_results = NULL, time_zone = '+00:00', sql_mode = '', sql_quote_show_create = 1, \
             net_write_timeout = 86400, net_read_timeout = 86400, wait_timeout = 2147483, lock_wait_timeout = 50, autocommit = 1",
        )
        .await?;
        // What only one family knows, and older ones of it do not: version comments keep it from them.
        let more: &[&str] = if self
            .value("SELECT VERSION()")
            .await?
            .unwrap_or_default()
            .contains("MariaDB")
        {
            &["SET SESSION max_statement_time = 0"]
        } else {
            &[
                "SET SESSION max_execution_time = 0",
                "SET @bk = 1 /*!80000 , SESSION information_schema_stats_expiry = 0 */",
                "SET @bk = 1 /*!80017 , SESSION print_identified_with_as_hex = ON */",
                "SET @bk = 1 /*!80030 , SESSION show_gipk_in_create_table_and_information_schema = ON */",
            ]
        };
        for sql in more {
            self.run(sql).await?;
        }
        // MySQL keeps this one from ordinary accounts; a restore that meets more warnings than it may read says so.
        match self.run("SET SESSION max_error_count = 65535").await {
            Err(error) if error.kind != ErrorKind::Denied => Err(error),
            _ => Ok(()),
        }
    }

    /// A statement without rows.
    pub async fn run(&mut self, sql: impl AsRef<[u8]>) -> Result<()> {
        let ran = self.conn.run(sql.as_ref()).await;
        ran.map(drop).map_err(|e| said_of(sql.as_ref(), e))
    }

    /// The same, for a statement that may be refused: what the server said.
    pub async fn run_counted(&mut self, sql: &[u8]) -> wire::Result<Told> {
        self.conn.run(sql).await
    }

    /// A statement of a script; one that this family takes for a comment is none.
    pub async fn run_of_script(&mut self, sql: &[u8]) -> wire::Result<()> {
        const EMPTY_QUERY: u16 = 1065;
        match self.conn.run(sql).await {
            Err(error) if code(&error) == Some(EMPTY_QUERY) => Ok(()),
            other => other.map(drop),
        }
    }

    /// All rows.
    pub async fn rows(&mut self, sql: impl AsRef<[u8]>) -> Result<Vec<Cells>> {
        let rows = self.conn.all(sql.as_ref()).await;
        rows.map_err(|e| said_of(sql.as_ref(), e))
    }

    /// The first row, if there is one.
    pub async fn row(&mut self, sql: impl AsRef<[u8]>) -> Result<Option<Cells>> {
        Ok(self.rows(sql).await?.into_iter().next())
    }

    /// The first cell of the first row.
    pub async fn value(&mut self, sql: impl AsRef<[u8]>) -> Result<Option<String>> {
        Ok(self.row(sql).await?.and_then(|row| row.text(0)))
    }

    /// Says goodbye. A server that does not hear it will notice.
    pub async fn end(self) {
        let _ = tokio::time::timeout(Duration::from_secs(5), self.conn.quit()).await;
    }
}

/// A row's cells as the server sent them.
#[derive(Clone, Debug)]
pub struct Cells(Vec<Option<Vec<u8>>>);

impl Cells {
    /// Of what a row holds.
    pub fn new(cells: Vec<Option<Vec<u8>>>) -> Self {
        Self(cells)
    }

    /// The bytes of a cell.
    pub fn bytes(&self, n: usize) -> Option<&[u8]> {
        self.0.get(n).and_then(Option::as_deref)
    }

    /// A cell that is known to be text.
    pub fn text(&self, n: usize) -> Option<String> {
        self.bytes(n)
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// The same, empty for NULL.
    pub fn word(&self, n: usize) -> String {
        self.text(n).unwrap_or_default()
    }
}

impl Server {
    /// Asks who it is.
    pub async fn ask(connection: &mut Connection) -> Result<Self> {
        let row = connection
            .row("SELECT VERSION(), @@hostname, @@port, @@datadir, @@lower_case_table_names, @@log_bin, @@version_comment")
            .await?
            .ok_or_else(|| Error::new(ErrorKind::Unreachable, "the server did not say its version"))?;
        let version_text = row.word(0);
        let comment = row.word(6).to_lowercase();
        let maria = version_text.to_lowercase().contains("mariadb") || comment.contains("mariadb");
        let unique = if maria {
            // Known since 10.11.9; older ones are told apart by where they live.
            connection
                .value("SELECT @@server_uid")
                .await
                .unwrap_or_default()
        } else {
            connection.value("SELECT @@server_uuid").await?
        };
        Ok(Self {
            flavour: if maria {
                Flavour::MariaDb
            } else {
                Flavour::MySql
            },
            version: numbers(&version_text),
            identity: unique
                .unwrap_or_else(|| format!("{}:{}:{}", row.word(1), row.word(2), row.word(3))),
            lower_case_names: row.word(4) != "0",
            binary_log: row.word(5) == "1",
            version_text,
        })
    }

    /// For people.
    pub fn name(&self) -> String {
        let (a, b, c) = self.version;
        match self.flavour {
            Flavour::MySql => format!("MySQL {a}.{b}.{c}"),
            Flavour::MariaDb => format!("MariaDB {a}.{b}.{c}"),
        }
    }

    /// Whether it is MariaDB.
    pub fn is_maria(&self) -> bool {
        self.flavour == Flavour::MariaDb
    }
}

fn numbers(text: &str) -> (u16, u16, u16) {
    // Old replication clients were told `5.5.5-10.…`.
    let text = text.strip_prefix("5.5.5-").unwrap_or(text);
    let mut parts = text
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

/// `work`, unless the run is stopped first.
pub async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = wire::Result<T>>,
) -> wire::Result<T> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::cancelled().into()),
        done = work => done,
    }
}

/// A name in backticks.
pub fn ident(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A database's thing, quoted.
pub fn full(database: &str, name: &str) -> String {
    format!("{}.{}", ident(database), ident(name))
}

/// What the server says after a statement, by its word: `Records: 3  Duplicates: 1  Warnings: 0`.
pub fn number_of(info: &str, word: &str) -> Option<u64> {
    info.split(word)
        .nth(1)?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// A text in quotes.
pub fn quoted(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len() + 2);
    crate::mysql::literal::quote(&mut out, text.as_bytes());
    String::from_utf8_lossy(&out).into_owned()
}

fn said_of(sql: &[u8], cause: wire::Error) -> Error {
    const SHOWN: usize = 80;
    let shown = String::from_utf8_lossy(&sql[..sql.len().min(SHOWN)]).into_owned();
    // A statement about accounts may hold a hash.
    if shown.to_uppercase().contains("IDENTIFIED") {
        return error(cause);
    }
    let dots = if sql.len() > SHOWN { "…" } else { "" };
    error(cause).within(format!("`{}{dots}`", shown.trim_end()))
}

/// The server's code, if the server said it.
pub fn code(error: &wire::Error) -> Option<u16> {
    match error {
        wire::Error::Server(server) => Some(server.code),
        _ => None,
    }
}

/// What the server's errors mean for the caller. Codes: the servers' error reference.
pub fn error(cause: wire::Error) -> Error {
    let kind = match cause {
        wire::Error::Server(ref server) => kind_of(server.code),
        wire::Error::Io(_) => ErrorKind::Unreachable,
        wire::Error::RowTooLarge(_) => ErrorKind::Unsupported,
        wire::Error::Ours(ours) => return ours,
    };
    let failure = Error::new(kind, cause.to_string());
    match kind {
        ErrorKind::Auth => {
            failure.hint("mend `user` and `password`, or the account's host on the server")
        }
        ErrorKind::Denied => failure
            .hint("bk check names the rights that are missing and the command that grants them"),
        _ => failure,
    }
}

fn kind_of(code: u16) -> ErrorKind {
    match code {
        // Access denied for the account, host not allowed, account locked, password expired, plugin not loaded.
        1045 | 1130 | 1698 | 1862 | 1820 | 3118 | 4151 | 1524 => ErrorKind::Auth,
        1044 | 1142 | 1143 | 1227 | 1370 | 1410 | 3879 => ErrorKind::Denied,
        1049 | 1051 | 1146 | 1305 => ErrorKind::NotFound,
        1021 | 1114 => ErrorKind::NoSpace,
        _ => ErrorKind::Unreachable,
    }
}
