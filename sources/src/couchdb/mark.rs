//! The mark of a restore that is under way: documents of the database `bk_unfinished_restore`.

use crate::couchdb::catalogue::Definition;
use crate::couchdb::connection::{Connection, Method, Request, document_path};
use crate::couchdb::restore::databases;
use crate::percent::encoded;
use bk_core::error::{Error, ErrorKind, Result, bug};
use bk_core::source::Selected;
use bk_core::unfinished::Unfinished;
use serde::Deserialize;
use serde_json::json;

/// The database.
pub const NAME: &str = "bk_unfinished_restore";

#[derive(Deserialize)]
struct Rows {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    doc: Option<Mark>,
}

#[derive(Deserialize)]
struct Mark {
    #[serde(rename = "_id")]
    id: String,
    #[serde(rename = "_rev")]
    rev: String,
    archive: String,
    selected: Vec<Selected>,
}

async fn marks(connection: &Connection) -> Result<Vec<Mark>> {
    let path = format!("/{NAME}/_all_docs?include_docs=true");
    let reading = format!("reading the mark in `{NAME}`");
    let answer = connection.ask(Method::GET, &path).await?;
    if answer.status == 404 {
        return Ok(Vec::new());
    }
    let rows: Rows = answer.good(&reading)?.parsed(&reading).map_err(|e| {
        e.hint(format!(
            "look at the databases, and delete `{NAME}` when they are whole"
        ))
    })?;
    Ok(rows.rows.into_iter().filter_map(|row| row.doc).collect())
}

/// All that stand here, among these databases.
pub async fn read(connection: &Connection, databases: &[String]) -> Result<Vec<Unfinished>> {
    if !databases.iter().any(|name| name == NAME) {
        return Ok(Vec::new());
    }
    let found = marks(connection).await?.into_iter().map(|mark| Unfinished {
        id: mark.id,
        archive: mark.archive,
        selected: mark.selected,
    });
    Ok(found.collect())
}

/// Sets it for a restore that begins; those that it covers are forgotten.
pub async fn begin(connection: &Connection, mine: &Unfinished) -> Result<()> {
    let definition = Definition::default();
    databases::make_if_missing(connection, &definition, (NAME, None, false))
        .await
        .map_err(|e| e.within("making the mark of this restore"))?;
    set(connection, mine).await?;
    for other in marks(connection).await? {
        let unfinished = Unfinished {
            id: other.id.clone(),
            archive: other.archive,
            selected: other.selected,
        };
        if other.id != mine.id && unfinished.is_covered_by(&mine.selected) {
            remove(connection, &other.id).await?;
        }
    }
    Ok(())
}

async fn set(connection: &Connection, mine: &Unfinished) -> Result<()> {
    let path = document_path(NAME, &mine.id).ok_or_else(|| bug("a restore has no id"))?;
    let body = json!({ "archive": mine.archive, "selected": mine.selected });
    let answer = connection
        .send(&Request::new(Method::PUT, path).json(body.to_string()))
        .await?;
    // A try whose answer was lost has set it.
    if answer.status == 409 {
        return Ok(());
    }
    answer.good("setting the mark of this restore").map(drop)
}

async fn remove(connection: &Connection, id: &str) -> Result<()> {
    for mark in marks(connection).await? {
        if mark.id != id {
            continue;
        }
        let path = document_path(NAME, id).ok_or_else(|| bug("a restore has no id"))?;
        let path = format!("{path}?rev={}", encoded(&mark.rev));
        let answer = connection.ask(Method::DELETE, &path).await?;
        if !matches!(answer.status, 404 | 409) {
            answer.good("taking the mark of this restore away")?;
        }
    }
    Ok(())
}

/// Takes this restore out, but for what it left unfinished; where it was the last one, the database goes.
pub async fn finish(connection: &Connection, mine: &Unfinished, left: Vec<Selected>) -> Result<()> {
    if !left.is_empty() {
        let rest = Unfinished {
            id: format!("{}-rest", mine.id),
            selected: left,
            ..mine.clone()
        };
        set(connection, &rest).await?;
        return remove(connection, &mine.id).await;
    }
    remove(connection, &mine.id).await?;
    if marks(connection).await?.is_empty() {
        forget(connection).await?;
    }
    Ok(())
}

/// Takes it away, whatever it says.
pub async fn forget(connection: &Connection) -> Result<()> {
    let answer = connection.ask(Method::DELETE, &format!("/{NAME}")).await?;
    if answer.status == 404 {
        return Ok(());
    }
    answer.good("taking the mark of a restore away").map(drop)
}

/// The refusal that a backup gives for a database that may be half restored.
pub fn refusal(marks: &[Unfinished], instance: &str, group: &str) -> Option<Error> {
    marks
        .iter()
        .any(|mark| mark.covers(group, super::UNIT))
        .then(|| {
            let refusal = bk_core::unfinished::refusal(marks, instance);
            Error {
                kind: ErrorKind::Conflict,
                ..refusal
            }
        })
}
