//! The mark of an unfinished restore: a database in the target that stands until everything selected was written.

use crate::mysql::connection::{Connection, quoted};
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::source::Selected;
use bk_core::unfinished::{self, Unfinished};

/// Name of the mark's database; no backup takes it.
pub const DATABASE: &str = "bk_unfinished_restore";

/// All that stand here.
pub async fn read(connection: &mut Connection) -> Result<Vec<Unfinished>> {
    let there = connection
        .value(format!(
            "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = '{DATABASE}' AND TABLE_NAME = 'restores'"
        ))
        .await?;
    if there.as_deref() != Some("1") {
        return Ok(Vec::new());
    }
    let rows = connection
        .rows(format!(
            "SELECT id, archive, selected FROM {DATABASE}.restores"
        ))
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Unfinished {
                id: row.word(0),
                archive: row.word(1),
                selected: serde_json::from_str(&row.word(2)).map_err(|e| {
                    Error::new(
                        ErrorKind::Conflict,
                        format!("the mark in `{DATABASE}` cannot be read: {e}"),
                    )
                    .hint(format!(
                        "look at the databases, and DROP DATABASE {DATABASE} when they are whole"
                    ))
                })?,
            })
        })
        .collect()
}

/// Sets it for a restore that begins; those that it covers are forgotten.
pub async fn begin(connection: &mut Connection, mine: &Unfinished) -> Result<()> {
    let others = read(connection).await?;
    connection
        .run(format!("CREATE DATABASE IF NOT EXISTS {DATABASE}"))
        .await?;
    connection
        .run(format!(
            "CREATE TABLE IF NOT EXISTS {DATABASE}.restores (id VARCHAR(64) PRIMARY KEY, archive VARCHAR(64) NOT NULL, selected LONGTEXT NOT NULL) ENGINE=InnoDB CHARACTER SET utf8mb4"
        ))
        .await?;
    let selected =
        serde_json::to_string(&mine.selected).map_err(|e| bk_core::error::bug(e.to_string()))?;
    connection
        .run(format!(
            "INSERT INTO {DATABASE}.restores VALUES ({}, {}, {})",
            quoted(&mine.id),
            quoted(&mine.archive),
            quoted(&selected)
        ))
        .await?;
    for other in others {
        if other.is_covered_by(&mine.selected) {
            remove(connection, &other.id).await?;
        }
    }
    Ok(())
}

async fn remove(connection: &mut Connection, id: &str) -> Result<()> {
    connection
        .run(format!(
            "DELETE FROM {DATABASE}.restores WHERE id = {}",
            quoted(id)
        ))
        .await
}

/// Takes this restore out, but for what it left unfinished; the last one takes the database away.
pub async fn finish(connection: &mut Connection, id: &str, left: &[Selected]) -> Result<()> {
    if !left.is_empty() {
        let left = serde_json::to_string(left).map_err(|e| bk_core::error::bug(e.to_string()))?;
        return connection
            .run(format!(
                "UPDATE {DATABASE}.restores SET selected = {} WHERE id = {}",
                quoted(&left),
                quoted(id)
            ))
            .await;
    }
    remove(connection, id).await?;
    if read(connection).await?.is_empty() {
        forget(connection).await?;
    }
    Ok(())
}

/// Takes it away, whatever it says.
pub async fn forget(connection: &mut Connection) -> Result<()> {
    connection
        .run(format!("DROP DATABASE IF EXISTS {DATABASE}"))
        .await
}

/// The refusal that a backup gives for a unit that may be half restored.
pub fn refusal(marks: &[Unfinished], instance: &str, unit: &(String, String)) -> Option<Error> {
    marks
        .iter()
        .any(|mark| mark.covers(&unit.0, &unit.1))
        .then(|| unfinished::refusal(marks, instance))
}
