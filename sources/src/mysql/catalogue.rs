//! What is on the server: databases, tables, columns, the key that orders a table, and everything that comes after the data.

use crate::database_filter::DatabaseFilter;
use crate::mysql::connection::{Connection, Flavour, Server, full, ident, quoted};
use crate::mysql::is_servers_own;
use crate::mysql::literal::Literal;
use crate::mysql::mark;
use bk_core::error::Result;
use serde_json::Value;
use std::collections::HashMap;
use std::fmt::Write;

/// What the settings select.
#[derive(Clone, Debug, Default)]
pub struct Filter(pub DatabaseFilter);

impl Filter {
    /// From the facts.
    pub fn from_selection(selection: &Value) -> Self {
        Self(DatabaseFilter::from_selection(selection))
    }

    /// Whether a database is taken.
    pub fn takes_database(&self, name: &str) -> bool {
        let system = is_servers_own(name) || name == "lost+found" || name.starts_with("#mysql50#");
        !system && self.0.takes_database(name)
    }

    /// Whether a table or view is taken; its database is.
    pub fn takes(&self, database: &str, name: &str) -> bool {
        self.0.takes(database, name)
    }
}

/// A table, view or sequence, as the names were read while everything stood still.
#[derive(Clone, Debug)]
pub struct Table {
    /// Database.
    pub database: String,
    /// Name.
    pub name: String,
    /// What it is.
    pub kind: TableKind,
    /// Storage engine.
    pub engine: String,
    /// When it was made or altered last, as the server remembers; compared after its data was read.
    pub stamp: String,
    /// MariaDB: numbers of its partitions' files; an exchanged partition has another one, and nothing else shows it.
    pub partitions: String,
}

/// What a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// With rows.
    Base,
    /// With rows and their history.
    Versioned,
    /// A view.
    View,
    /// A sequence.
    Sequence,
}

impl Table {
    /// Quoted, with its database.
    pub fn full(&self) -> String {
        full(&self.database, &self.name)
    }

    /// As InnoDB names its files: what is no letter, digit or `_` is `@` and its number.
    pub fn file_name(&self) -> String {
        let encode = |name: &str| {
            let mut out = String::new();
            for c in name.chars() {
                if c.is_ascii_alphanumeric() || c == '_' {
                    out.push(c);
                } else {
                    let _ = write!(out, "@{:04x}", u32::from(c));
                }
            }
            out
        };
        format!("{}/{}", encode(&self.database), encode(&self.name))
    }

    /// Its unit.
    pub fn unit(&self) -> (String, String) {
        (
            crate::mysql::part(&self.database),
            crate::mysql::part(&self.name),
        )
    }

    /// Whether its rows are read under a transaction's snapshot.
    pub fn transactional(&self) -> bool {
        matches!(
            self.engine.as_str(),
            "InnoDB" | "ROCKSDB" | "RocksDB" | "TokuDB"
        )
    }

    /// Whether its rows are its own: others hold rows of other tables, or none.
    pub fn has_rows(&self) -> bool {
        matches!(self.kind, TableKind::Base | TableKind::Versioned)
            && !matches!(
                self.engine.as_str(),
                "MRG_MyISAM" | "MRG_MYISAM" | "FEDERATED" | "BLACKHOLE" | "SPIDER" | "CONNECT"
            )
    }
}

/// Databases that the filter takes, sorted.
pub async fn databases(connection: &mut Connection, filter: &Filter) -> Result<Vec<String>> {
    let rows = connection
        .rows("SELECT SCHEMA_NAME FROM information_schema.SCHEMATA")
        .await?;
    let mut names: Vec<_> = rows
        .iter()
        .map(|row| row.word(0))
        .filter(|name| filter.takes_database(name))
        .collect();
    names.sort();
    Ok(names)
}

/// Tables, views and sequences of these databases, sorted. One statement, so that it is quick under a lock.
pub async fn tables(
    connection: &mut Connection,
    databases: &[String],
    filter: &Filter,
) -> Result<Vec<Table>> {
    if databases.is_empty() {
        return Ok(Vec::new());
    }
    let rows = connection
        .rows(format!(
            "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE, ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA IN ({})",
            list(databases)
        ))
        .await?;
    let mut tables: Vec<_> = rows
        .iter()
        .filter_map(|row| {
            let kind = match row.word(2).as_str() {
                "BASE TABLE" => TableKind::Base,
                "SYSTEM VERSIONED" => TableKind::Versioned,
                "VIEW" => TableKind::View,
                "SEQUENCE" => TableKind::Sequence,
                _ => return None,
            };
            Some(Table {
                database: row.word(0),
                name: row.word(1),
                kind,
                engine: row.word(3),
                stamp: String::new(),
                partitions: String::new(),
            })
        })
        .filter(|table| filter.takes(&table.database, &table.name) && table.name != mark::NAME)
        .collect();
    tables.sort_by(|a, b| (&a.database, &a.name).cmp(&(&b.database, &b.name)));
    Ok(tables)
}

/// When each table was made or altered last. MariaDB opens every table for it, so this is not asked under a lock.
pub async fn stamp(
    connection: &mut Connection,
    databases: &[String],
    tables: &mut [Table],
) -> Result<()> {
    if databases.is_empty() {
        return Ok(());
    }
    let rows = connection
        .rows(format!(
            "SELECT TABLE_SCHEMA, TABLE_NAME, CREATE_TIME FROM information_schema.TABLES WHERE TABLE_SCHEMA IN ({})",
            list(databases)
        ))
        .await?;
    let stamps: HashMap<(String, String), String> = rows
        .iter()
        .map(|row| ((row.word(0), row.word(1)), row.word(2)))
        .collect();
    for table in tables {
        let key = (table.database.clone(), table.name.clone());
        table.stamp = stamps.get(&key).cloned().unwrap_or_default();
    }
    Ok(())
}

/// Numbers of the files behind partitions, by table; nothing where the account may not see them, or the server has no such list.
pub async fn partitions(
    connection: &mut Connection,
    only: Option<&Table>,
) -> HashMap<String, String> {
    let prefix = only.map_or_else(|| "%".into(), Table::file_name);
    let rows = connection
        .rows(format!(
            "SELECT NAME, TABLE_ID FROM information_schema.INNODB_SYS_TABLES WHERE NAME LIKE {} ORDER BY NAME",
            quoted(&format!("{}#P#%", prefix.replace('_', "\\_")))
        ))
        .await
        .unwrap_or_default();
    let mut found: HashMap<String, String> = HashMap::new();
    for row in rows {
        let name = row.word(0);
        if let Some((table, partition)) = name.split_once("#P#") {
            let _ = write!(
                found.entry(table.to_owned()).or_default(),
                "{partition}={} ",
                row.word(1)
            );
        }
    }
    found
}

/// Names in quotes, parted by commas.
pub fn list(names: &[String]) -> String {
    names
        .iter()
        .map(|name| quoted(name))
        .collect::<Vec<_>>()
        .join(",")
}

/// A column that is written.
#[derive(Clone, Debug)]
pub struct Column {
    /// Name.
    pub name: String,
    /// How.
    pub literal: Literal,
    /// Whether its bytes must be valid UTF-8.
    pub utf8: bool,
}

/// How a table's rows are read.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Columns that are written, in order; generated ones are not.
    pub columns: Vec<Column>,
    /// The key that orders it: its index, and which of the columns it has.
    pub key: Option<(String, Vec<usize>)>,
    /// Types that this program does not know, written as bytes.
    pub unknown: Vec<String>,
}

/// Columns and key of a table.
pub async fn shape(connection: &mut Connection, table: &Table, server: &Server) -> Result<Shape> {
    let place = format!(
        "TABLE_SCHEMA = {} AND TABLE_NAME = {}",
        quoted(&table.database),
        quoted(&table.name)
    );
    let rows = connection
        .rows(format!(
            "SELECT COLUMN_NAME, DATA_TYPE, CHARACTER_SET_NAME, EXTRA, GENERATION_EXPRESSION FROM information_schema.COLUMNS WHERE {place} ORDER BY ORDINAL_POSITION"
        ))
        .await?;
    let mut columns = Vec::new();
    let mut unknown = Vec::new();
    for row in &rows {
        let (name, data_type, charset, extra) = (
            row.word(0),
            row.word(1).to_lowercase(),
            row.text(2),
            row.word(3),
        );
        let period = matches!(row.word(4).as_str(), "ROW START" | "ROW END");
        let generated = extra
            .split([' ', ','])
            .any(|word| word.eq_ignore_ascii_case("GENERATED"));
        if generated && !period {
            continue;
        }
        if !known(&data_type) {
            unknown.push(format!("{name} {data_type}"));
        }
        columns.push(Column {
            literal: Literal::of(&data_type, charset.as_deref()),
            utf8: matches!(charset.as_deref(), Some("utf8mb4" | "utf8mb3" | "utf8")),
            name,
        });
    }
    if table.kind == TableKind::Versioned {
        add_period(
            &mut columns,
            &rows.iter().map(|row| row.word(4)).collect::<Vec<_>>(),
        );
    }
    let key = if table.engine == "MEMORY" {
        None
    } else {
        key(connection, &place, table, server, &columns).await?
    };
    Ok(Shape {
        columns,
        key,
        unknown,
    })
}

/// The period's columns are there even when they are not declared.
fn add_period(columns: &mut Vec<Column>, expressions: &[String]) {
    for (expression, name) in [("ROW START", "row_start"), ("ROW END", "row_end")] {
        if !expressions.iter().any(|found| found == expression) {
            columns.push(Column {
                name: name.into(),
                literal: Literal::Text,
                utf8: false,
            });
        }
    }
}

fn known(data_type: &str) -> bool {
    const KNOWN: &str = "tinyint smallint mediumint int bigint decimal year float double bit enum set char varchar tinytext text mediumtext \
        longtext date time datetime timestamp json uuid inet4 inet6 binary varbinary tinyblob blob mediumblob longblob geometry point \
        linestring polygon multipoint multilinestring multipolygon geometrycollection geomcollection vector";
    KNOWN.split_whitespace().any(|word| word == data_type)
}

/// PRIMARY KEY, else the first unique key of columns that are NOT NULL and whole; what the server would have to sort for is none.
async fn key(
    connection: &mut Connection,
    place: &str,
    table: &Table,
    server: &Server,
    columns: &[Column],
) -> Result<Option<(String, Vec<usize>)>> {
    let rows = connection
        .rows(format!(
            "SELECT INDEX_NAME, COLUMN_NAME, SUB_PART, NULLABLE, INDEX_TYPE FROM information_schema.STATISTICS WHERE {place} AND NON_UNIQUE = 0 ORDER BY INDEX_NAME <> 'PRIMARY', INDEX_NAME, SEQ_IN_INDEX"
        ))
        .await?;
    let mut candidates: Vec<(String, Vec<Option<usize>>)> = Vec::new();
    for row in &rows {
        let whole = row.text(2).is_none() && row.word(3) != "YES" && row.word(4) == "BTREE";
        let place = columns
            .iter()
            .position(|column| Some(&column.name) == row.text(1).as_ref())
            .filter(|_| whole);
        match candidates.last_mut() {
            Some((index, parts)) if *index == row.word(0) => parts.push(place),
            _ => candidates.push((row.word(0), vec![place])),
        }
    }
    for (index, parts) in candidates {
        let Some(mut parts) = parts.into_iter().collect::<Option<Vec<_>>>() else {
            continue;
        };
        if table.kind == TableKind::Versioned {
            let end = columns.len() - 1;
            if !parts.contains(&end) {
                parts.push(end);
            }
        }
        let found = Some((index, parts));
        if !sorts(connection, table, server, columns, found.as_ref()).await? {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Whether the server would sort the rows before it sends the first.
async fn sorts(
    connection: &mut Connection,
    table: &Table,
    server: &Server,
    columns: &[Column],
    key: Option<&(String, Vec<usize>)>,
) -> Result<bool> {
    let explain = match server.flavour {
        Flavour::MySql => "EXPLAIN FORMAT=TRADITIONAL ",
        Flavour::MariaDb => "EXPLAIN ",
    };
    let select = select(table, columns, key);
    let rows = connection.rows(format!("{explain}{select}")).await?;
    // `Extra` is the last column of both servers' traditional form.
    Ok(rows.iter().any(|row| {
        (9..12)
            .filter_map(|n| row.text(n))
            .any(|text| text.contains("filesort"))
    }))
}

/// The statement that reads a table.
pub fn select(table: &Table, columns: &[Column], key: Option<&(String, Vec<usize>)>) -> String {
    let mut list: Vec<_> = columns
        .iter()
        .map(|column| column.literal.select(&ident(&column.name)))
        .collect();
    if list.is_empty() {
        // All columns are generated: only how many rows there are is data.
        list.push("1".into());
    }
    let mut sql = format!(
        "SELECT /*!40001 SQL_NO_CACHE */ {} FROM {}",
        list.join(","),
        table.full()
    );
    if table.kind == TableKind::Versioned {
        sql += " FOR SYSTEM_TIME ALL";
    }
    if let Some((index, parts)) = key {
        let order: Vec<_> = parts.iter().map(|n| ident(&columns[*n].name)).collect();
        let _ = write!(
            sql,
            " FORCE INDEX ({}) ORDER BY {}",
            ident(index),
            order.join(",")
        );
    }
    sql
}

/// Something of a database that comes after its data.
#[derive(Clone, Debug)]
pub struct Named {
    /// Database.
    pub database: String,
    /// PROCEDURE, FUNCTION, PACKAGE, PACKAGE BODY, TRIGGER, EVENT.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Of a trigger: its table.
    pub table: String,
}

/// Kind, name and table of each row.
async fn named(connection: &mut Connection, database: &str, sql: String) -> Result<Vec<Named>> {
    let rows = connection.rows(sql).await?;
    Ok(rows
        .iter()
        .map(|row| Named {
            database: database.to_owned(),
            kind: row.word(0),
            name: row.word(1),
            table: row.word(2),
        })
        .collect())
}

/// Routines and packages, specifications before bodies.
pub async fn routines(connection: &mut Connection, database: &str) -> Result<Vec<Named>> {
    let sql = format!(
        "SELECT ROUTINE_TYPE, ROUTINE_NAME, '' FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {}",
        quoted(database)
    );
    let mut found = named(connection, database, sql).await?;
    let rank = |kind: &str| match kind {
        "PACKAGE" => 0,
        "PACKAGE BODY" => 1,
        "FUNCTION" => 2,
        _ => 3,
    };
    found.sort_by(|a, b| (rank(&a.kind), &a.name).cmp(&(rank(&b.kind), &b.name)));
    Ok(found)
}

/// Triggers in the order in which they run.
pub async fn triggers(connection: &mut Connection, database: &str) -> Result<Vec<Named>> {
    let sql = format!(
        "SELECT 'TRIGGER', TRIGGER_NAME, EVENT_OBJECT_TABLE FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {} \
         ORDER BY EVENT_OBJECT_TABLE, ACTION_TIMING, EVENT_MANIPULATION, ACTION_ORDER",
        quoted(database)
    );
    named(connection, database, sql).await
}

/// Events.
pub async fn events(connection: &mut Connection, database: &str) -> Result<Vec<Named>> {
    let sql = format!(
        "SELECT 'EVENT', EVENT_NAME, '' FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {} ORDER BY EVENT_NAME",
        quoted(database)
    );
    named(connection, database, sql).await
}
