//! Real MariaDB and MySQL servers, each in a folder of its own, and everything that is in them in a form that can be compared.

use crate::binary;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder, Row, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// MariaDB of the host's distribution.
    MariaDb,
    /// MySQL of Debian's unstable suite.
    MySql,
}

impl Kind {
    /// Name of its script in `servers/`.
    pub fn script(self) -> &'static str {
        match self {
            Self::MariaDb => "mariadb",
            Self::MySql => "mysql",
        }
    }
}

/// A running server. Ends with its handle.
pub struct Server {
    /// Which.
    pub kind: Kind,
    folder: tempfile::TempDir,
    port: u16,
    options: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// Starts one on an empty folder; nothing where its programs cannot be had.
    pub fn start(kind: Kind, options: &[&str]) -> Option<Self> {
        let mut server = Self {
            kind,
            folder: tempfile::Builder::new().prefix("bk-db-").tempdir().unwrap(),
            port: free_port(),
            options: options.iter().map(ToString::to_string).collect(),
            child: None,
        };
        copy_template(kind, server.folder.path());
        match server.run() {
            Ok(()) => Some(server),
            Err(why) if kind == Kind::MySql && !binary::cache().join("mysql/.whole").exists() => {
                eprintln!("SKIPPED: MySQL cannot be had from Debian's unstable suite today: {why}");
                None
            }
            Err(why) => {
                crate::skip(&format!("{kind:?}: {why}"));
                None
            }
        }
    }

    /// Starts it again, on the data that it has.
    pub fn run(&mut self) -> Result<(), String> {
        let mut child = script(self.kind, self.folder.path(), self.port, &self.options)
            .spawn()
            .map_err(|e| e.to_string())?;
        let begun = Instant::now();
        while !answers(self.kind, &self.socket()) {
            if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
                let log =
                    std::fs::read_to_string(self.folder.path().join("err.log")).unwrap_or_default();
                let last: Vec<_> = log.lines().rev().take(5).collect();
                return Err(format!("it ended with {status}: {}", last.join(" | ")));
            }
            if begun.elapsed() > Duration::from_secs(300) {
                let _ = child.kill();
                return Err("it did not answer within 300 s".into());
            }
            std::thread::yield_now();
        }
        self.child = Some(child);
        Ok(())
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s.sock")
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Kills it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let _ = std::fs::remove_file(self.socket());
    }

    /// `[source.NAME]` for it, as root.
    pub fn source(&self, name: &str) -> String {
        format!(
            "[source.{name}]\nplugin = \"mysql\"\nsocket = \"{}\"\nuser = \"root\"\n",
            self.socket().display()
        )
    }

    /// Its own client, which reads a script from its standard input.
    pub fn client(&self) -> Command {
        let name = match self.kind {
            Kind::MariaDb => "mariadb",
            Kind::MySql => "mysql",
        };
        let mut command = client_program(self.kind, name);
        command
            .args(["--no-defaults", "-uroot", "-S"])
            .arg(self.socket());
        command
    }

    /// Another of its programs, as its client is run: `mysqldump`, `mariadb-dump`.
    pub fn program(&self, name: &str) -> Command {
        let mut command = client_program(self.kind, name);
        command
            .args(["--no-defaults", "-uroot", "-S"])
            .arg(self.socket());
        command
    }

    /// Loads a script with its own client.
    pub fn load(&self, script: &Path) {
        let done = self
            .client()
            .stdin(std::fs::File::open(script).unwrap())
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}: {}",
            script.display(),
            String::from_utf8_lossy(&done.stderr)
        );
    }

    /// A connection as root that reads stored bytes.
    pub async fn connect(&self) -> Conn {
        let options = OptsBuilder::default()
            .socket(Some(self.socket().display().to_string()))
            .user(Some("root"))
            .max_allowed_packet(Some(1 << 30));
        let mut conn = Conn::new(options).await.unwrap();
        conn.query_drop(
            "SET NAMES utf8mb4, character_set_results = NULL, time_zone = '+00:00', sql_mode = ''",
        )
        .await
        .unwrap();
        if self.kind == Kind::MySql {
            for sql in [
                "SET show_gipk_in_create_table_and_information_schema = ON",
                "SET print_identified_with_as_hex = ON",
            ] {
                conn.query_drop(sql).await.unwrap();
            }
        }
        conn
    }

    /// Runs statements, one after the other.
    pub async fn run_all(&self, statements: &[&str]) {
        let mut conn = self.connect().await;
        for sql in statements {
            conn.query_drop(*sql)
                .await
                .unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
        conn.disconnect().await.unwrap();
    }

    /// Everything in it.
    pub async fn contents(&self) -> Contents {
        let mut conn = self.connect().await;
        let mut contents = Contents::default();
        let databases = texts(&mut conn, "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME NOT IN ('information_schema','performance_schema','mysql','sys')").await;
        for database in databases {
            contents.database(&mut conn, self.kind, &database).await;
        }
        contents.accounts(&mut conn, self.kind).await;
        conn.disconnect().await.unwrap();
        contents
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Every row as bytes, every definition as text, by a name that says what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents(pub BTreeMap<String, Vec<String>>);

impl Contents {
    /// The first differences, in words.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let mut told = Vec::new();
        let names: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        for name in names {
            match (self.0.get(name), other.0.get(name)) {
                (Some(a), Some(b)) if a == b => {}
                (Some(a), Some(b)) => {
                    let at = a
                        .iter()
                        .zip(b)
                        .position(|(x, y)| x != y)
                        .unwrap_or(a.len().min(b.len()));
                    let show = |list: &[String]| {
                        list.get(at).map_or("nothing".into(), |text| {
                            text.chars().take(600).collect::<String>()
                        })
                    };
                    told.push(format!(
                        "{name}: {} and {} lines, first at {at}:\n   {}\n   {}",
                        a.len(),
                        b.len(),
                        show(a),
                        show(b)
                    ));
                }
                (Some(_), None) => told.push(format!("{name}: is missing")),
                (None, _) => told.push(format!("{name}: is new")),
            }
        }
        (!told.is_empty()).then(|| told.into_iter().take(12).collect::<Vec<_>>().join("\n"))
    }

    /// Without entries whose name holds this.
    pub fn without(mut self, word: &str) -> Self {
        self.0.retain(|name, _| !name.contains(word));
        self
    }

    async fn database(&mut self, conn: &mut Conn, kind: Kind, database: &str) {
        let db = ident(database);
        // Views name the databases of what they read, but for the current one.
        conn.query_drop(format!("USE {db}")).await.unwrap();
        self.shown(
            conn,
            &format!("{database}: database"),
            &format!("SHOW CREATE DATABASE {db}"),
        )
        .await;
        let tables: Vec<Row> = conn
            .exec("SELECT TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? ORDER BY 1", (database,))
            .await
            .unwrap();
        for row in tables {
            let (name, what) = (text(&row, 0), text(&row, 1));
            let full = format!("{db}.{}", ident(&name));
            let title = format!("{database}/{name}");
            match what.as_str() {
                "VIEW" => {
                    self.shown(
                        conn,
                        &format!("{title}: view"),
                        &format!("SHOW CREATE VIEW {full}"),
                    )
                    .await
                }
                "SEQUENCE" => {
                    self.shown(
                        conn,
                        &format!("{title}: sequence"),
                        &format!("SHOW CREATE SEQUENCE {full}"),
                    )
                    .await;
                    let value = lines(
                        conn,
                        &format!("SELECT next_not_cached_value, cycle_count FROM {full}"),
                    )
                    .await;
                    self.0.insert(format!("{title}: value"), value);
                }
                _ => {
                    self.shown(
                        conn,
                        &format!("{title}: table"),
                        &format!("SHOW CREATE TABLE {full}"),
                    )
                    .await;
                    let rows = rows(
                        conn,
                        kind,
                        database,
                        &name,
                        &full,
                        what == "SYSTEM VERSIONED",
                    )
                    .await;
                    self.0.insert(format!("{title}: rows"), rows);
                }
            }
        }
        for (table, name, what, order) in [
            (
                "ROUTINES WHERE ROUTINE_SCHEMA",
                "ROUTINE_NAME",
                "ROUTINE_TYPE",
                "1",
            ),
            (
                "TRIGGERS WHERE TRIGGER_SCHEMA",
                "TRIGGER_NAME",
                "'TRIGGER'",
                "ACTION_ORDER",
            ),
            ("EVENTS WHERE EVENT_SCHEMA", "EVENT_NAME", "'EVENT'", "1"),
        ] {
            let rows: Vec<Row> = conn
                .exec(
                    format!(
                        "SELECT {name}, {what} FROM information_schema.{table} = ? ORDER BY {order}"
                    ),
                    (database,),
                )
                .await
                .unwrap();
            for (n, row) in rows.iter().enumerate() {
                let (name, what) = (text(row, 0), text(row, 1));
                let place = if what == "TRIGGER" { n } else { 0 };
                self.shown(
                    conn,
                    &format!("{database}: {what} {name} {place}"),
                    &format!("SHOW CREATE {what} {}", ident(&name)),
                )
                .await;
            }
        }
    }

    async fn accounts(&mut self, conn: &mut Conn, kind: Kind) {
        let role = if kind == Kind::MariaDb {
            "is_role"
        } else {
            "'N'"
        };
        let users: Vec<Row> = conn
            .query(format!("SELECT User, Host, {role} FROM mysql.user WHERE User NOT IN ('root','mysql','mariadb.sys','mysql.sys','mysql.session','mysql.infoschema','PUBLIC','')"))
            .await
            .unwrap();
        for row in users {
            let account = if text(&row, 2) == "Y" {
                ident(&text(&row, 0))
            } else {
                format!("{}@{}", ident(&text(&row, 0)), ident(&text(&row, 1)))
            };
            if text(&row, 2) != "Y" {
                self.shown(
                    conn,
                    &format!("account {account}"),
                    &format!("SHOW CREATE USER {account}"),
                )
                .await;
            }
            let mut grants = lines(conn, &format!("SHOW GRANTS FOR {account}")).await;
            grants.sort();
            self.0.insert(format!("grants {account}"), grants);
        }
    }

    async fn shown(&mut self, conn: &mut Conn, title: &str, sql: &str) {
        let shown = lines(conn, sql).await;
        // When a routine was made is not part of it.
        self.0.insert(
            title.to_owned(),
            shown
                .into_iter()
                .map(|line| without_created(&line))
                .collect(),
        );
    }
}

fn without_created(line: &str) -> String {
    // SHOW CREATE TRIGGER of both families ends with the time of its making.
    let mut cells: Vec<_> = line.split('\u{1f}').collect();
    if cells.len() == 7
        && cells
            .last()
            .is_some_and(|last| last.len() >= 19 && last.as_bytes()[4] == b'-')
    {
        cells.pop();
    }
    cells.join("\u{1f}")
}

async fn rows(
    conn: &mut Conn,
    kind: Kind,
    database: &str,
    name: &str,
    full: &str,
    versioned: bool,
) -> Vec<String> {
    let columns: Vec<Row> = conn
        .exec("SELECT COLUMN_NAME, DATA_TYPE FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? ORDER BY ORDINAL_POSITION", (database, name))
        .await
        .unwrap();
    let mut list = Vec::new();
    for row in &columns {
        let column = ident(&text(row, 0));
        match text(row, 1).to_lowercase().as_str() {
            "enum" => list.push(format!("{column}+0")),
            "set" => list.push(format!("CAST({column} AS UNSIGNED)")),
            "float" => list.push(format!("{column}+0e0")),
            "json" if kind == Kind::MySql => {
                list.push(column.clone());
                list.push(format!("JSON_TYPE({column})"));
            }
            _ => list.push(column),
        }
    }
    if versioned && !columns.iter().any(|row| text(row, 0) == "begun") {
        list.extend(["row_start".into(), "row_end".into()]);
    }
    let history = if versioned {
        " FOR SYSTEM_TIME ALL"
    } else {
        ""
    };
    let mut rows = lines(
        conn,
        &format!("SELECT {} FROM {full}{history}", list.join(",")),
    )
    .await;
    rows.sort();
    rows
}

/// Rows as text that says all bytes; large ones as a hash.
async fn lines(conn: &mut Conn, sql: &str) -> Vec<String> {
    let rows: Vec<Row> = conn
        .query(sql)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e}"));
    rows.into_iter()
        .map(|row| {
            let cells: Vec<_> = row
                .unwrap()
                .into_iter()
                .map(|value| match value {
                    Value::NULL => "\u{1e}NULL".to_owned(),
                    Value::Bytes(bytes) if bytes.len() > 10_000 => {
                        format!("{} bytes {}", bytes.len(), blake3::hash(&bytes))
                    }
                    Value::Bytes(bytes) => bk_core::name::escape(&bytes),
                    other => other.as_sql(true),
                })
                .collect();
            cells.join("\u{1f}")
        })
        .collect()
}

async fn texts(conn: &mut Conn, sql: &str) -> Vec<String> {
    let rows: Vec<Row> = conn.query(sql).await.unwrap();
    rows.iter().map(|row| text(row, 0)).collect()
}

fn text(row: &Row, n: usize) -> String {
    match row.as_ref(n) {
        Some(Value::Bytes(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        Some(Value::NULL) | None => String::new(),
        Some(other) => other.as_sql(true).trim_matches('\'').to_owned(),
    }
}

/// A name in backticks.
pub fn ident(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn servers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("servers")
}

/// A file of `servers/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    servers().join("fixtures").join(name)
}

fn script(kind: Kind, folder: &Path, port: u16, options: &[String]) -> Command {
    let mut command = Command::new(servers().join(kind.script()));
    command
        .arg(binary::cache())
        .arg(folder)
        .arg(port.to_string())
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn answers(kind: Kind, socket: &Path) -> bool {
    if !socket.exists() {
        return false;
    }
    let name = if kind == Kind::MariaDb {
        "mariadb"
    } else {
        "mysql"
    };
    client_program(kind, name)
        .args(["--no-defaults", "-uroot", "-e", "DO 0", "-S"])
        .arg(socket)
        .output()
        .is_ok_and(|done| done.status.success())
}

fn client_program(kind: Kind, name: &str) -> Command {
    let cache = binary::cache();
    match kind {
        Kind::MariaDb => {
            let root = cache.join("root");
            let mut command = Command::new(root.join("usr/bin").join(name));
            command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"));
            command
        }
        Kind::MySql => {
            let root = cache.join("mysql");
            let mut command = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"));
            command
                .arg("--library-path")
                .arg(root.join("usr/lib/x86_64-linux-gnu"))
                .arg(root.join("usr/bin").join(name));
            command
        }
    }
}

/// A fresh server's data is made once and copied.
fn copy_template(kind: Kind, folder: &Path) {
    static ONCE: [std::sync::OnceLock<Option<PathBuf>>; 2] =
        [std::sync::OnceLock::new(), std::sync::OnceLock::new()];
    let template = ONCE[kind as usize].get_or_init(|| make_template(kind));
    if let Some(template) = template {
        let done = Command::new("cp")
            .arg("-r")
            .arg(template)
            .arg(folder.join("data"))
            .status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "could not copy {}",
            template.display()
        );
    }
}

fn make_template(kind: Kind) -> Option<PathBuf> {
    let place = std::env::temp_dir().join(format!(
        "bk-template-{}-{}",
        kind.script(),
        std::process::id()
    ));
    let _ = std::fs::remove_dir_all(&place);
    std::fs::create_dir_all(&place).ok()?;
    let mut child = script(kind, &place, free_port(), &[]).spawn().ok()?;
    let begun = Instant::now();
    while !answers(kind, &place.join("s.sock")) {
        if child.try_wait().ok()?.is_some() || begun.elapsed() > Duration::from_secs(300) {
            let _ = child.kill();
            return None;
        }
        std::thread::yield_now();
    }
    // Asked to end, so that what is copied is whole.
    let pid = rustix::process::Pid::from_raw(child.id() as i32)?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok()?;
    child.wait().ok()?;
    // Each copy is a server of its own.
    let _ = std::fs::remove_file(place.join("data/auto.cnf"));
    Some(place.join("data"))
}
