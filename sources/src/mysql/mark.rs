//! The mark of an unfinished restore: a database in the target that stands until everything selected was written.
//!
//! Where the account may make no database of that name, a table of the same name in each target database stands for it.

use crate::mysql::connection::{Connection, full, ident, quoted};
use crate::mysql::{SERVER_GROUP, name_of};
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::source::Selected;
use bk_core::unfinished::{self, Unfinished};

/// Name of the mark's database, or of its table in a target database; no backup takes either.
pub const NAME: &str = "bk_unfinished_restore";
/// The table in the mark's own database.
const TABLE: &str = "restores";

/// Tables that hold marks, quoted.
async fn tables(connection: &mut Connection) -> Result<Vec<String>> {
    let rows = connection
        .rows(format!(
            "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES WHERE TABLE_TYPE = 'BASE TABLE' AND \
             (TABLE_SCHEMA = '{NAME}' AND TABLE_NAME = '{TABLE}' OR TABLE_SCHEMA <> '{NAME}' AND TABLE_NAME = '{NAME}')"
        ))
        .await?;
    Ok(rows
        .iter()
        .map(|row| full(&row.word(0), &row.word(1)))
        .collect())
}

/// All that stand here.
pub async fn read(connection: &mut Connection) -> Result<Vec<Unfinished>> {
    let mut marks: Vec<Unfinished> = Vec::new();
    for table in tables(connection).await? {
        for row in connection
            .rows(format!("SELECT id, archive, selected FROM {table}"))
            .await?
        {
            let mark = Unfinished {
                id: row.word(0),
                archive: row.word(1),
                selected: serde_json::from_str(&row.word(2)).map_err(|e| {
                    Error::new(
                        ErrorKind::Conflict,
                        format!("the mark in {table} cannot be read: {e}"),
                    )
                    .hint(format!(
                        "look at the databases, and DROP TABLE {table} when they are whole"
                    ))
                })?,
            };
            // In several databases the same restore left the same words.
            if !marks.contains(&mark) {
                marks.push(mark);
            }
        }
    }
    Ok(marks)
}

/// Sets it for a restore that begins; those that it covers are forgotten. `databases`: those of the target that it writes to.
pub async fn begin(
    connection: &mut Connection,
    mine: &Unfinished,
    databases: &[String],
) -> Result<Where> {
    let others = read(connection).await?;
    let place = match connection
        .run(format!("CREATE DATABASE IF NOT EXISTS {NAME}"))
        .await
    {
        Ok(()) => Where::OwnDatabase,
        Err(error) if error.kind == ErrorKind::Denied && !databases.is_empty() => Where::Targets,
        Err(error) => return Err(error),
    };
    let tables = match place {
        Where::OwnDatabase => vec![full(NAME, TABLE)],
        Where::Targets => databases.iter().map(|name| full(name, NAME)).collect(),
    };
    if place == Where::Targets {
        for database in databases {
            connection
                .run(format!("CREATE DATABASE IF NOT EXISTS {}", ident(database)))
                .await?;
        }
    }
    let selected = words(&mine.selected)?;
    for table in tables {
        connection
            .run(format!(
                "CREATE TABLE IF NOT EXISTS {table} (id VARCHAR(64) PRIMARY KEY, archive VARCHAR(1024) NOT NULL, selected LONGTEXT NOT NULL) ENGINE=InnoDB CHARACTER SET utf8mb4"
            ))
            .await?;
        connection
            .run(format!(
                "INSERT INTO {table} VALUES ({}, {}, {})",
                quoted(&mine.id),
                quoted(&mine.archive),
                quoted(&selected)
            ))
            .await?;
    }
    for other in others {
        if other.is_covered_by(&mine.selected) {
            remove(connection, &other.id).await?;
        }
    }
    Ok(place)
}

/// Where the mark stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// In a database of its own.
    OwnDatabase,
    /// In each target database, which therefore must not be dropped.
    Targets,
}

/// The target databases of a selection.
pub fn databases(selected: &[Selected]) -> Vec<String> {
    let mut names: Vec<String> = selected
        .iter()
        .filter(|s| s.group != SERVER_GROUP)
        .map(|s| name_of(&s.group))
        .collect();
    names.sort();
    names.dedup();
    names
}

fn words(selected: &[Selected]) -> Result<String> {
    serde_json::to_string(selected).map_err(|e| bk_core::error::bug(e.to_string()))
}

/// Takes a restore out of every table, and each table away that holds none any more.
async fn remove(connection: &mut Connection, id: &str) -> Result<()> {
    for table in tables(connection).await? {
        let sql = format!("DELETE FROM {table} WHERE id = {}", quoted(id));
        connection.run(sql).await?;
    }
    Ok(())
}

/// Takes this restore out, but for what it left unfinished; where it was the last one, all traces go.
pub async fn finish(connection: &mut Connection, id: &str, left: &[Selected]) -> Result<()> {
    if !left.is_empty() {
        let left = words(left)?;
        for table in tables(connection).await? {
            let (left, id) = (quoted(&left), quoted(id));
            let sql = format!("UPDATE {table} SET selected = {left} WHERE id = {id}");
            connection.run(sql).await?;
        }
        return Ok(());
    }
    remove(connection, id).await?;
    if read(connection).await?.is_empty() {
        forget(connection).await?;
    }
    Ok(())
}

/// Takes it away, whatever it says.
pub async fn forget(connection: &mut Connection) -> Result<()> {
    let own = full(NAME, TABLE);
    for table in tables(connection).await?.iter().filter(|t| **t != own) {
        connection.run(format!("DROP TABLE {table}")).await?;
    }
    match connection
        .run(format!("DROP DATABASE IF EXISTS {NAME}"))
        .await
    {
        // Who may not make it has none.
        Err(error) if error.kind == ErrorKind::Denied => Ok(()),
        other => other,
    }
}

/// The refusal that a backup gives for a unit that may be half restored.
pub fn refusal(marks: &[Unfinished], instance: &str, unit: &(String, String)) -> Option<Error> {
    marks
        .iter()
        .any(|mark| mark.covers(&unit.0, &unit.1))
        .then(|| unfinished::refusal(marks, instance))
}
