//! Indexes of a collection that is full: one command, since they share one reading of the documents; the culprit found where it is refused.

use crate::mongodb::bson::{self, Writing};
use crate::mongodb::connection::{Connection, Failure};
use bk_core::error::{Error, Result};

/// Whether they may be built while documents are missing still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that delete nothing.
    Lasting,
    /// Those that let documents expire: after all has been counted.
    Expiring,
}

/// What of the archive's indexes is built, in the server's words. The index on `_id` comes with the collection.
pub fn specifications(options: &[u8], indexes: &[Vec<u8>], which: Which) -> Vec<Vec<u8>> {
    // Where a collection has a collation of its own, an index that names none has the simple one.
    let collated = bson::inner(options, "collation")
        .and_then(|collation| bson::text(collation, "locale"))
        .is_some_and(|locale| locale != "simple");
    indexes
        .iter()
        .filter(|index| !is_given(index))
        .filter(|index| {
            let expires = bson::find(index, b"expireAfterSeconds").is_some();
            expires == (which == Which::Expiring)
        })
        .map(|index| {
            let mut out = Writing::with_capacity(index.len());
            for element in bson::elements(index).map_while(Result::ok) {
                // The namespace is no option, and the form of an index is the server's own matter but for the one that all have now.
                let old_form = element.name == b"v" && element.integer() != Some(2);
                if element.name != b"ns" && !old_form {
                    out.push_element(element.whole);
                }
            }
            if collated && bson::find(index, b"collation").is_none() {
                out = out.document(
                    "collation",
                    &Writing::new().text("locale", "simple").bytes(),
                );
            }
            out.bytes()
        })
        .collect()
}

/// Whether an index leads through the documents in the order of their `_id`.
pub fn is_on_id(index: &[u8]) -> bool {
    let Some(key) = bson::inner(index, "key") else {
        return false;
    };
    let mut fields = bson::elements(key).map_while(Result::ok);
    matches!((fields.next(), fields.next()), (Some(field), None) if field.name == bson::ID && field.integer() == Some(1))
}

/// The index on `_id` that every collection has, or the one that a clustered collection is.
pub fn is_given(index: &[u8]) -> bool {
    if bson::find(index, b"clustered").is_some_and(|flag| flag.truthy()) {
        return true;
    }
    is_on_id(index)
}

/// Builds them; names those that the server refuses.
pub async fn build(
    connection: &Connection,
    database: &str,
    collection: &str,
    specifications: &[Vec<u8>],
) -> Result<Vec<String>> {
    if specifications.is_empty() {
        return Ok(Vec::new());
    }
    let all: Vec<&[u8]> = specifications.iter().map(Vec::as_slice).collect();
    match create(connection, database, collection, &all).await {
        Ok(()) => return Ok(Vec::new()),
        Err(failure) if failure.code.is_none() => return Err(failure.error),
        Err(_) => {}
    }
    let mut refused = Vec::new();
    for one in all {
        match create(connection, database, collection, &[one]).await {
            Ok(()) => {}
            Err(failure) if failure.code.is_none() => return Err(failure.error),
            Err(failure) => {
                let name = bson::text(one, "name").unwrap_or("?");
                let what: Error = failure.error;
                refused.push(format!(
                    "index `{name}` of `{database}.{collection}`: {what}"
                ));
            }
        }
    }
    Ok(refused)
}

async fn create(
    connection: &Connection,
    database: &str,
    collection: &str,
    specifications: &[&[u8]],
) -> Result<(), Failure> {
    let command = Writing::new()
        .text("createIndexes", collection)
        .documents("indexes", specifications.iter().copied());
    connection.run(database, command).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::{Document, doc};

    #[test]
    fn what_comes_with_a_collection_is_not_built_and_expiring_ones_come_last() {
        let indexes: Vec<Vec<u8>> = [
            doc! {"v": 2, "key": {"_id": 1}, "name": "_id_"},
            doc! {"v": 2, "key": {"_id": "hashed"}, "name": "h"},
            doc! {"v": 1, "key": {"a": 1.0}, "name": "a", "ns": "d.c", "sparse": true},
            doc! {"v": 2, "key": {"t": 1}, "name": "t", "expireAfterSeconds": 5},
            doc! {"v": 2, "key": {"_id": 1}, "name": "c", "clustered": true, "unique": true},
        ]
        .into_iter()
        .map(|index| index.to_vec().unwrap())
        .collect();
        let read = |which| -> Vec<Document> {
            specifications(bson::EMPTY, &indexes, which)
                .iter()
                .map(|spec| Document::from_reader(&spec[..]).unwrap())
                .collect()
        };
        assert_eq!(
            read(Which::Lasting),
            [
                doc! {"v": 2, "key": {"_id": "hashed"}, "name": "h"},
                doc! {"key": {"a": 1.0}, "name": "a", "sparse": true},
            ]
        );
        assert_eq!(
            read(Which::Expiring),
            [doc! {"v": 2, "key": {"t": 1}, "name": "t", "expireAfterSeconds": 5}]
        );
    }
}
