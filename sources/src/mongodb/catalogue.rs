//! What is on the server: databases and collections, and which of them are taken.

use crate::database_filter::DatabaseFilter;
use crate::mongodb::bson::{self, Writing};
use crate::mongodb::connection::{Connection, Failure, documents_of};
use crate::mongodb::mark;
use crate::mongodb::metadata::{Kind, Metadata};
use crate::mongodb::names::{file_name, part};
use bk_core::error::{Error, Result};
use serde_json::Value;
use std::collections::HashSet;

/// Collections of `config` that say something of the data; the rest is the server's own.
const CONFIG_COLLECTIONS: [&str; 7] = [
    "chunks",
    "collections",
    "databases",
    "settings",
    "shards",
    "tags",
    "version",
];

/// Collections of one answer: a hundred thousand of them would be held at once.
const LISTED_AT_ONCE: i32 = 1000;

/// What holds the measurements of a time series.
pub const BUCKETS: &str = "system.buckets.";

/// What the settings select.
#[derive(Clone, Debug, Default)]
pub struct Filter(pub DatabaseFilter);

impl Filter {
    /// From the facts.
    pub fn from_selection(selection: &Value) -> Self {
        Self(DatabaseFilter::from_selection(selection))
    }

    /// Whether a database is taken. What servers keep for themselves only when it is named.
    pub fn takes_database(&self, name: &str) -> bool {
        let ours = name == mark::NAME || name.starts_with("__mdb_internal");
        !ours
            && self.0.takes_database(name)
            && (!is_servers_own(name) || self.0.names_database(name))
    }

    /// Whether a collection is taken; its database is.
    pub fn takes(&self, database: &str, name: &str) -> bool {
        !is_left_out(database, name, self.0.names_database(database))
            && self.0.takes(database, name)
    }
}

/// Databases that belong to the server: what of them matters is kept as users and roles.
pub fn is_servers_own(database: &str) -> bool {
    matches!(database, "admin" | "config" | "local")
}

/// Collections that nobody restores: the server makes them itself. (mongodb/mongo-tools, mongodump/prepare.go)
fn is_left_out(database: &str, name: &str, database_is_named: bool) -> bool {
    if name == mark::NAME || name.contains('$') && name != ".oplog.$" {
        return true;
    }
    match database {
        "config" => !database_is_named && !CONFIG_COLLECTIONS.contains(&name),
        "admin" if name == "system.keys" => true,
        _ => name.starts_with("system.") && name != "system.js" && !name.starts_with(BUCKETS),
    }
}

/// A collection as it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collection {
    /// Database.
    pub database: String,
    /// Name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its number, which it keeps as long as it is not made anew.
    pub uuid: Option<[u8; 16]>,
    /// Whether it forgets its first documents; their order is then kept.
    pub capped: bool,
    /// Whether documents are stored in the order of their `_id`.
    pub clustered: bool,
    /// Whether the server lets it go by itself.
    pub temporary: bool,
    /// A time series whose buckets are a collection of their own.
    pub buckets: bool,
    /// Hash of options and number, compared after it was read.
    pub stamp: u64,
    /// Options as they stand.
    pub options: Vec<u8>,
}

impl Collection {
    /// Its unit.
    pub fn unit(&self) -> (String, String) {
        (part(&self.database), part(&self.name))
    }

    /// `database.name`, for people.
    pub fn full(&self) -> String {
        format!("{}.{}", self.database, self.name)
    }

    /// Where its documents are.
    pub fn data_name(&self) -> String {
        if self.buckets {
            format!("{BUCKETS}{}", self.name)
        } else {
            self.name.clone()
        }
    }

    /// The beginning of the paths of its members.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{}", self.database, file_name(name))
    }

    /// With its indexes, as it goes into the archive.
    pub fn metadata(&self, indexes: Vec<Vec<u8>>) -> Metadata {
        Metadata {
            options: self.options.clone(),
            indexes,
            name: Some(self.name.clone()),
            kind: self.kind,
        }
    }
}

/// Databases that the filter takes, sorted. `named` are those that an account sees which may not list any.
pub async fn databases(connection: &Connection, filter: &Filter) -> Result<Vec<String>> {
    let command = || {
        Writing::new()
            .int("listDatabases", 1)
            .flag("nameOnly", true)
    };
    let answer = match connection.run("admin", command()).await {
        Err(failure) if failure.is_denied() => {
            connection
                .run("admin", command().flag("authorizedDatabases", true))
                .await?
        }
        other => other?,
    };
    let mut names: Vec<String> = answer
        .get_array("databases")
        .map_err(|e| Error::corrupt(format!("the server's list of databases is none: {e}")))?
        .iter()
        .filter_map(|database| database.as_document()?.get_str("name").ok())
        .filter(|name| filter.takes_database(name))
        .map(str::to_owned)
        .collect();
    names.sort();
    Ok(names)
}

fn listing() -> Writing {
    let cursor = Writing::new().int("batchSize", LISTED_AT_ONCE).bytes();
    Writing::new()
        .int("listCollections", 1)
        .document("cursor", &cursor)
}

/// Collections of a database that the filter takes, sorted; whether their options could be seen.
pub async fn collections(
    connection: &Connection,
    database: &str,
    filter: &Filter,
) -> Result<(Vec<Collection>, Seen)> {
    let (mut cursor, seen) = match connection.cursor(database, listing()).await {
        Ok(cursor) => (cursor, Seen::All),
        Err(failure) if failure.is_denied() => {
            let command = listing()
                .flag("nameOnly", true)
                .flag("authorizedCollections", true);
            (connection.cursor(database, command).await?, Seen::Names)
        }
        Err(failure) => return Err(failure.error.within(format!("listing `{database}`"))),
    };
    let (mut found, mut buckets) = (Vec::new(), HashSet::new());
    while let Some(batch) = connection.next(&mut cursor).await? {
        for document in documents_of(&batch)? {
            let Some(name) = bson::text(document, "name") else {
                continue;
            };
            if let Some(of) = name.strip_prefix(BUCKETS) {
                buckets.insert(of.to_owned());
            } else if filter.takes(database, name) {
                found.push(collection(database, name, document));
            }
        }
    }
    for collection in &mut found {
        collection.buckets =
            collection.kind == Kind::TimeSeries && buckets.contains(&collection.name);
    }
    found.shrink_to_fit();
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok((found, seen))
}

/// Names of what stands in a database, but for the server's own: no more than that is held of each.
pub async fn names(connection: &Connection, database: &str) -> Result<Vec<String>> {
    let command = listing().flag("nameOnly", true);
    let listed = connection.cursor(database, command).await;
    let mut cursor =
        listed.map_err(|failure| failure.error.within(format!("listing `{database}`")))?;
    let (mut names, all) = (Vec::new(), Filter::default());
    while let Some(batch) = connection.next(&mut cursor).await? {
        for document in documents_of(&batch)? {
            let name = bson::text(document, "name").unwrap_or_default();
            if !name.starts_with(BUCKETS) && all.takes(database, name) {
                names.push(name.to_owned());
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// How much of a database's collections an account sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Everything.
    All,
    /// Names alone: their options are lost.
    Names,
}

fn collection(database: &str, name: &str, document: &[u8]) -> Collection {
    let options = bson::inner(document, "options")
        .unwrap_or(bson::EMPTY)
        .to_vec();
    let uuid: Option<[u8; 16]> = bson::inner(document, "info")
        .and_then(|info| bson::find(info, b"uuid"))
        .and_then(|uuid| uuid.value.get(5..)?.try_into().ok());
    let option = |name: &[u8]| bson::find(&options, name);
    let kind = Kind::of_word(bson::text(document, "type").unwrap_or_default());
    let mut stamped = options.clone();
    stamped.extend_from_slice(&uuid.unwrap_or_default());
    Collection {
        database: database.to_owned(),
        kind,
        uuid,
        capped: option(b"capped").is_some_and(|e| e.truthy()),
        clustered: option(b"clusteredIndex").is_some(),
        temporary: option(b"temp").is_some_and(|e| e.truthy()),
        buckets: false,
        stamp: bk_core::name::hash64(&stamped),
        options,
        name: name.to_owned(),
    }
}

/// Indexes of a collection, as they stand. A view has none; one that is gone meanwhile is an error.
pub async fn indexes(
    connection: &Connection,
    collection: &Collection,
) -> Result<Vec<Vec<u8>>, Failure> {
    if collection.kind == Kind::View {
        return Ok(Vec::new());
    }
    let command = Writing::new().text("listIndexes", &collection.name);
    connection.list(&collection.database, command).await
}
