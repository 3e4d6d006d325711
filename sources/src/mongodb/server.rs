//! Who answers, and what can be asked of it.

use crate::mongodb::bson::Writing;
use crate::mongodb::connection::{Connection, Failure};
use bk_core::error::Result;
use mongodb::bson::{Bson, Document, spec::BinarySubtype};
use std::fmt::Write;

/// Most servers take commands of this size and documents a little smaller.
const USUAL_DOCUMENT_BYTES: u32 = 16 << 20;
const USUAL_BATCH_DOCUMENTS: u32 = 100_000;

/// A server as it introduced itself.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// `8.2.11`.
    pub version: String,
    /// The first two numbers of it.
    pub major_minor: (u32, u32),
    /// What it calls itself beyond MongoDB, where it says so.
    pub flavour: &'static str,
    /// Its replica set.
    pub set: Option<String>,
    /// Whether it spreads what it is asked over shards.
    pub is_router: bool,
    /// Largest document.
    pub max_document_bytes: u32,
    /// Most documents of one write.
    pub max_batch_documents: u32,
    /// Stable over restarts.
    pub identity: String,
    /// The newest instant of its log, where it has one.
    pub operation_time: Option<u64>,
}

impl Server {
    /// Asks.
    pub async fn ask(connection: &Connection) -> Result<Self> {
        let hello = match connection
            .run("admin", Writing::new().int("hello", 1))
            .await
        {
            Err(failure) if failure.is_unknown_command() => {
                connection
                    .run("admin", Writing::new().int("isMaster", 1))
                    .await?
            }
            other => other?,
        };
        let build = match connection
            .run("admin", Writing::new().int("buildInfo", 1))
            .await
        {
            Ok(build) => build,
            Err(failure) if failure.is_denied() || failure.is_unknown_command() => Document::new(),
            Err(failure) => return Err(failure.error),
        };
        let version = build.get_str("version").unwrap_or("0.0.0").to_owned();
        let mut numbers = version.split('.').map(|n| n.parse().unwrap_or(0));
        let major_minor = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let set = hello.get_str("setName").ok().map(str::to_owned);
        let identity = identity(connection, set.as_deref()).await?;
        Ok(Self {
            flavour: flavour(&build),
            major_minor,
            version,
            is_router: hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid"),
            max_document_bytes: number(&hello, "maxBsonObjectSize").unwrap_or(USUAL_DOCUMENT_BYTES),
            max_batch_documents: number(&hello, "maxWriteBatchSize")
                .unwrap_or(USUAL_BATCH_DOCUMENTS),
            identity,
            operation_time: operation_time(&hello),
            set,
        })
    }

    /// `MongoDB 8.2.11`.
    pub fn name(&self) -> String {
        format!("{} {}", self.flavour, self.version)
    }
}

/// The instant of the log at which an answer was given.
pub fn operation_time(answer: &Document) -> Option<u64> {
    let at = answer.get_timestamp("operationTime").ok()?;
    Some(u64::from(at.time) << 32 | u64::from(at.increment))
}

fn number(document: &Document, name: &str) -> Option<u32> {
    match document.get(name)? {
        Bson::Int32(n) => u32::try_from(*n).ok(),
        Bson::Int64(n) => u32::try_from(*n).ok(),
        Bson::Double(n) => Some(*n as u32),
        _ => None,
    }
}

fn flavour(build: &Document) -> &'static str {
    for (field, name) in [
        ("secantusVersion", "SecantusDB"),
        ("ferretdb", "FerretDB"),
        ("ferretdbVersion", "FerretDB"),
    ] {
        if build.contains_key(field) {
            return name;
        }
    }
    "MongoDB"
}

/// Nothing that a server says is stable over restarts but the number of a collection that it made at its birth.
async fn identity(connection: &Connection, set: Option<&str>) -> Result<String> {
    let command = Writing::new().int("listCollections", 1).document(
        "filter",
        &Writing::new().text("name", "system.version").bytes(),
    );
    let born = match connection.run("admin", command).await {
        Ok(answer) => uuid_of_first(&answer),
        Err(Failure { code: Some(_), .. }) => None,
        Err(failure) => return Err(failure.error),
    };
    Ok(match (born, set) {
        (Some(uuid), _) => format!("mongodb {uuid}"),
        (None, Some(set)) => format!("mongodb {set} {}", connection.seeds),
        (None, None) => format!("mongodb {}", connection.seeds),
    })
}

fn uuid_of_first(answer: &Document) -> Option<String> {
    let batch = answer
        .get_document("cursor")
        .ok()?
        .get_array("firstBatch")
        .ok()?;
    let info = batch.first()?.as_document()?.get_document("info").ok()?;
    let Some(Bson::Binary(uuid)) = info.get("uuid") else {
        return None;
    };
    (uuid.subtype == BinarySubtype::Uuid).then(|| {
        uuid.bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    })
}
