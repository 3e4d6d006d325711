//! Connections: how to reach the server, what each session sets, what the server's errors mean.

use crate::mysql::wire::Wire;
use crate::mysql::{MysqlSettings, Tls};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::secret::Secret;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, DriverError, Opts, OptsBuilder, Row, SslOpts, Value};
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The largest packet that the protocol knows. The driver would otherwise apply the server's limit for statements to rows.
const PACKET_MAX_BYTES: usize = 1 << 30;

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

/// What carries statements: the driver, or what reads tables.
pub trait Link: Send {
    /// A statement and all its rows.
    fn all(
        &mut self,
        sql: &[u8],
    ) -> impl Future<Output = std::result::Result<Vec<Cells>, mysql_async::Error>> + Send;

    /// Says goodbye.
    fn quit(self) -> impl Future<Output = std::result::Result<(), mysql_async::Error>> + Send;
}

impl Link for Conn {
    async fn all(&mut self, sql: &[u8]) -> std::result::Result<Vec<Cells>, mysql_async::Error> {
        let rows: Vec<Row> = self.query(sql).await?;
        Ok(rows.into_iter().map(Cells::of).collect())
    }

    async fn quit(self) -> std::result::Result<(), mysql_async::Error> {
        self.disconnect().await
    }
}

impl Link for Wire {
    async fn all(&mut self, sql: &[u8]) -> std::result::Result<Vec<Cells>, mysql_async::Error> {
        Wire::all(self, sql).await
    }

    async fn quit(self) -> std::result::Result<(), mysql_async::Error> {
        Wire::quit(self).await
    }
}

/// A connection.
pub struct Connection<L = Conn> {
    pub(crate) conn: L,
}

/// A connection that reads tables.
pub type Reader = Connection<Wire>;

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

    /// Empty where there is none.
    pub(super) async fn password(&self) -> std::result::Result<String, mysql_async::Error> {
        match &self.password {
            Some(secret) => Ok(secret.reveal().await.map_err(ours)?),
            None => Ok(String::new()),
        }
    }

    async fn options(&self, encrypted: bool) -> std::result::Result<Opts, mysql_async::Error> {
        let mut options = OptsBuilder::default()
            .ip_or_hostname(self.host.clone())
            .tcp_port(self.port)
            .user(Some(self.user.clone()))
            .pass(Some(self.password().await?).filter(|password| !password.is_empty()))
            .prefer_socket(Some(false))
            .max_allowed_packet(Some(PACKET_MAX_BYTES))
            .wait_timeout(Some(28_800))
            .stmt_cache_size(0)
            .tcp_keepalive(Some(Duration::from_mins(1)));
        if let Some(socket) = &self.socket {
            options = options.socket(Some(socket.display().to_string()));
        }
        if encrypted {
            options = options.ssl_opts(Some(self.encryption()));
        }
        Ok(options.into())
    }

    fn encryption(&self) -> SslOpts {
        let mut options = SslOpts::default();
        if let Some(ca) = &self.ca {
            options = options.with_root_certs(vec![ca.clone().into()]);
        }
        match self.tls {
            Tls::Prefer | Tls::Require | Tls::Off => options
                .with_danger_accept_invalid_certs(true)
                .with_danger_skip_domain_validation(true),
            Tls::VerifyCa => options.with_danger_skip_domain_validation(true),
            Tls::Verify => options,
        }
    }

    /// A session that reads stored bytes as they are, in UTC, and is never thrown out for waiting on a slow archive.
    pub async fn connect(&self, cx: &Context) -> Result<Connection> {
        let encrypted = self.tls != Tls::Off && self.socket.is_none();
        let opened = match self.open(cx, encrypted).await {
            Err(mysql_async::Error::Driver(DriverError::NoClientSslFlagFromServer))
                if self.tls == Tls::Prefer =>
            {
                self.open(cx, false).await
            }
            other => other,
        };
        self.session(opened).await
    }

    /// The same, to read tables with.
    pub async fn reader(&self, cx: &Context) -> Result<Reader> {
        self.session(in_time(cx, Wire::connect(self)).await).await
    }

    async fn session<L: Link>(
        &self,
        opened: std::result::Result<L, mysql_async::Error>,
    ) -> Result<Connection<L>> {
        let conn =
            opened.map_err(|e| error(e).within(format!("could not reach {}", self.describe())))?;
        let mut connection = Connection { conn };
        connection.set_up().await?;
        Ok(connection)
    }

    async fn open(
        &self,
        cx: &Context,
        encrypted: bool,
    ) -> std::result::Result<Conn, mysql_async::Error> {
        let options = self.options(encrypted).await?;
        in_time(cx, Conn::new(options)).await
    }
}

impl<L: Link> Connection<L> {
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
        self.rows(sql).await.map(drop)
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

impl Connection {
    /// A statement without rows; how many it changed, and how many warnings it gave.
    pub async fn run_counted(
        &mut self,
        sql: &[u8],
    ) -> std::result::Result<(u64, u16), mysql_async::Error> {
        let result = self.conn.query_iter(sql).await?;
        let counts = (result.affected_rows(), result.warnings());
        result.drop_result().await?;
        Ok(counts)
    }

    /// A statement of a script; one that this family takes for a comment is none.
    pub async fn run_of_script(
        &mut self,
        sql: &[u8],
    ) -> std::result::Result<(), mysql_async::Error> {
        const EMPTY_QUERY: u16 = 1065;
        match self.conn.query_drop(sql).await {
            Err(error) if code(&error) == Some(EMPTY_QUERY) => Ok(()),
            other => other,
        }
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

    fn of(row: Row) -> Self {
        Self(
            row.unwrap()
                .into_iter()
                .map(|value| match value {
                    Value::NULL => None,
                    Value::Bytes(bytes) => Some(bytes),
                    other => Some(other.as_sql(true).into_bytes()),
                })
                .collect(),
        )
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

async fn in_time<T>(
    cx: &Context,
    opening: impl Future<Output = std::result::Result<T, mysql_async::Error>>,
) -> std::result::Result<T, mysql_async::Error> {
    let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer within 10 s");
    let opening = tokio::time::timeout(CONNECT_LIMIT, opening);
    unless_cancelled(&cx.cancel, async {
        opening.await.unwrap_or_else(|_| Err(late().into()))
    })
    .await
}

/// An error of ours on its way through the driver's.
fn ours(error: Error) -> mysql_async::Error {
    mysql_async::Error::Other(Box::new(error))
}

/// `work`, unless the run is stopped first.
pub async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = std::result::Result<T, mysql_async::Error>>,
) -> std::result::Result<T, mysql_async::Error> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(ours(Error::cancelled())),
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

fn said_of(sql: &[u8], cause: mysql_async::Error) -> Error {
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
pub fn code(error: &mysql_async::Error) -> Option<u16> {
    match error {
        mysql_async::Error::Server(server) => Some(server.code),
        _ => None,
    }
}

/// What the server's errors mean for the caller. Codes: the servers' error reference.
pub fn error(cause: mysql_async::Error) -> Error {
    let cause = match cause {
        mysql_async::Error::Other(other) => match other.downcast::<Error>() {
            Ok(ours) => return *ours,
            Err(other) => mysql_async::Error::Other(other),
        },
        cause => cause,
    };
    let (kind, what) = match &cause {
        mysql_async::Error::Server(server) => (
            kind_of(server.code),
            format!("error {}: {}", server.code, server.message),
        ),
        other => (ErrorKind::Unreachable, other.to_string()),
    };
    let failure = Error::new(kind, what);
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
