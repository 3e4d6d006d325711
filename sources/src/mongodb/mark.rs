//! The mark of an unfinished restore: a database in the target that stands until everything selected was written.
//!
//! Where the account may make no database of that name, a collection of the same name in each target database stands for it.

use crate::mongodb::bson::Writing;
use crate::mongodb::connection::{Connection, Failure, code};
use crate::mongodb::names::name_of;
use crate::mongodb::restore::SERVER_GROUP;
use bk_core::error::{Error, ErrorKind, Result, bug};
use bk_core::source::Selected;
use bk_core::unfinished::{self, Unfinished};
use mongodb::bson::Document;

/// Name of the mark's database, or of its collection in a target database; no backup takes either.
pub const NAME: &str = "bk_unfinished_restore";
/// The collection in the mark's own database.
const COLLECTION: &str = "restores";

/// Where marks may stand: its own database, and every other.
async fn places(connection: &Connection) -> Result<Vec<(String, &'static str)>> {
    let command = Writing::new()
        .int("listDatabases", 1)
        .flag("nameOnly", true);
    let answer = match connection.run("admin", command).await {
        Err(failure) if failure.is_denied() => return Ok(vec![(NAME.into(), COLLECTION)]),
        other => other?,
    };
    let names = answer
        .get_array("databases")
        .map(Vec::as_slice)
        .unwrap_or_default();
    Ok(names
        .iter()
        .filter_map(|database| database.as_document()?.get_str("name").ok())
        .filter(|name| !crate::mongodb::catalogue::is_servers_own(name))
        .map(|name| {
            (
                name.to_owned(),
                if name == NAME { COLLECTION } else { NAME },
            )
        })
        .collect())
}

/// All that stand here.
pub async fn read(connection: &Connection) -> Result<Vec<Unfinished>> {
    let mut marks: Vec<Unfinished> = Vec::new();
    for (database, collection) in places(connection).await? {
        let found = match connection
            .list(&database, Writing::new().text("find", collection))
            .await
        {
            // Who may not read it sees no mark; the database's own units will be denied as well.
            Err(failure) if failure.is_denied() => continue,
            other => other?,
        };
        for document in found {
            let mark = parsed(&document).ok_or_else(|| {
                Error::new(
                    ErrorKind::Conflict,
                    format!("the mark in `{database}.{collection}` cannot be read"),
                )
                .hint(format!(
                    "look at the databases, and drop `{database}.{collection}` when they are whole"
                ))
            })?;
            // In several databases the same restore left the same words.
            if !marks.contains(&mark) {
                marks.push(mark);
            }
        }
    }
    Ok(marks)
}

fn parsed(document: &[u8]) -> Option<Unfinished> {
    let document = Document::from_reader(document).ok()?;
    Some(Unfinished {
        id: document.get_str("_id").ok()?.to_owned(),
        archive: document.get_str("archive").ok()?.to_owned(),
        selected: serde_json::from_str(document.get_str("selected").ok()?).ok()?,
    })
}

/// Where the mark of one restore stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Where {
    /// In a database of its own.
    OwnDatabase,
    /// In each target database, which therefore must not be dropped.
    Targets,
}

/// Sets it for a restore that begins; those that it covers are forgotten. `databases`: those of the target that it writes to.
pub async fn begin(
    connection: &Connection,
    mine: &Unfinished,
    databases: &[String],
) -> Result<Where> {
    let others = read(connection).await?;
    let place = match set(connection, NAME, COLLECTION, mine).await {
        Ok(()) => Where::OwnDatabase,
        Err(failure) if failure.is_denied() => {
            for database in databases {
                set(connection, database, NAME, mine)
                    .await
                    .map_err(|failure| {
                        failure
                            .error
                            .within(format!("setting the mark of this restore in `{database}`"))
                    })?;
            }
            Where::Targets
        }
        Err(failure) => return Err(failure.error),
    };
    for other in others {
        if other.is_covered_by(&mine.selected) {
            remove(connection, &other.id).await?;
        }
    }
    Ok(place)
}

async fn set(
    connection: &Connection,
    database: &str,
    collection: &str,
    mine: &Unfinished,
) -> Result<(), Failure> {
    let document = Writing::new()
        .text("_id", &mine.id)
        .text("archive", &mine.archive)
        .text(
            "selected",
            &words(&mine.selected).map_err(|error| Failure { code: None, error })?,
        )
        .bytes();
    let command = Writing::new()
        .text("insert", collection)
        .documents("documents", [&document[..]]);
    let answer = connection.run(database, command).await?;
    if answer.get_i32("n").is_ok_and(|n| n == 1) {
        return Ok(());
    }
    let error = Error::new(
        ErrorKind::Unreachable,
        format!("the server did not take the mark: {answer}"),
    );
    Err(Failure { code: None, error })
}

fn words(selected: &[Selected]) -> Result<String> {
    serde_json::to_string(selected).map_err(|e| bug(e.to_string()))
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

async fn remove(connection: &Connection, id: &str) -> Result<()> {
    for (database, collection) in places(connection).await? {
        let which = Writing::new()
            .document("q", &Writing::new().text("_id", id).bytes())
            .int("limit", 1)
            .bytes();
        let command = Writing::new()
            .text("delete", collection)
            .documents("deletes", [&which[..]]);
        unless_denied(connection.run(&database, command).await)?;
    }
    Ok(())
}

/// Takes this restore out, but for what it left unfinished; where it was the last one, all traces go.
pub async fn finish(
    connection: &Connection,
    mine: &Unfinished,
    left: Vec<Selected>,
    place: &Where,
) -> Result<()> {
    remove(connection, &mine.id).await?;
    if !left.is_empty() {
        let rest = Unfinished {
            selected: left,
            ..mine.clone()
        };
        return match place {
            Where::OwnDatabase => set(connection, NAME, COLLECTION, &rest)
                .await
                .map_err(Error::from),
            Where::Targets => {
                for database in databases(&rest.selected) {
                    set(connection, &database, NAME, &rest).await?;
                }
                Ok(())
            }
        };
    }
    if read(connection).await?.is_empty() {
        forget(connection).await?;
    }
    Ok(())
}

/// Takes it away, whatever it says.
pub async fn forget(connection: &Connection) -> Result<()> {
    for (database, collection) in places(connection).await? {
        let command = if database == NAME {
            Writing::new().int("dropDatabase", 1)
        } else {
            Writing::new().text("drop", collection)
        };
        unless_denied(connection.run(&database, command).await)?;
    }
    Ok(())
}

/// What is not there, or may not be touched, has no mark.
fn unless_denied(answer: Result<Document, Failure>) -> Result<()> {
    match answer {
        Ok(_) => Ok(()),
        Err(failure) if failure.is_denied() || failure.code == Some(code::NAMESPACE_NOT_FOUND) => {
            Ok(())
        }
        Err(failure) => Err(failure.error),
    }
}

/// The refusal that a backup gives for a unit that may be half restored.
pub fn refusal(marks: &[Unfinished], instance: &str, unit: &(String, String)) -> Option<Error> {
    marks
        .iter()
        .any(|mark| mark.covers(&unit.0, &unit.1))
        .then(|| unfinished::refusal(marks, instance))
}
