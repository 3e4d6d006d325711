//! A replica set's log: what was written while collections were read, taken along by collection, so that each can be restored alone.
//!
//! Entries are kept as they stand. What a transaction wrote counts from its commit on: its parts wait until then, and each operation gets the
//! commit's time. Definitions are not replayed: a collection that was made anew or altered meanwhile fails in the backup already.

pub mod delta;
pub mod replay;

use crate::mongodb::bson::{self, Writing, kind};
use crate::mongodb::catalogue::Collection;
use crate::mongodb::connection::{Connection, Failure, documents_of};
use crate::mongodb::metadata::Kind;
use crate::mongodb::snapshot::{Lined, log_path};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, unsupported};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};

const LOG: &str = "oplog.rs";
/// Entries of all collections that are gathered before they go into the archive.
const GATHERED_BYTES: usize = 8 << 20;
/// Operations of transactions that are not committed yet.
const PENDING_MAX_BYTES: usize = 64 << 20;
/// Entries of a log that others copied, which are held until all documents are written.
pub const COPIED_MAX_BYTES: usize = 256 << 20;
/// Above this a body is reserved before it is held.
const UNRESERVED_BYTES: usize = 4 << 20;

/// An instant of the log as a date.
pub fn instant(at: u64) -> Timestamp {
    Timestamp::from_second((at >> 32) as i64).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// An instant of the log as people write it: seconds, then the count within the second.
pub fn shown(at: u64) -> String {
    format!("{}:{}", at >> 32, at as u32)
}

/// Where the log must be read from, so that nothing that is not seen in the data yet is missed: its newest entry, or the beginning of the oldest
/// transaction that is still open.
pub async fn start(connection: &Connection) -> Result<Option<u64>, Failure> {
    let Some(newest) = newest(connection).await? else {
        return Ok(None);
    };
    let states = Writing::new()
        .value(kind::ARRAY, b"$in", &texts(&["prepared", "inProgress"]))
        .bytes();
    let open = Writing::new()
        .text("find", "transactions")
        .document("filter", &Writing::new().document("state", &states).bytes());
    let open = match connection.list("config", open).await {
        Ok(open) => open,
        // Who may read the log and not this sees transactions that were begun before in the log alone.
        Err(failure) if failure.code.is_some() => Vec::new(),
        Err(failure) => return Err(failure),
    };
    let oldest = open
        .iter()
        .filter_map(|t| bson::find(bson::inner(t, "startOpTime")?, b"ts")?.timestamp())
        .min();
    Ok(Some(oldest.map_or(newest, |oldest| oldest.min(newest))))
}

fn texts(texts: &[&str]) -> Vec<u8> {
    texts
        .iter()
        .enumerate()
        .fold(Writing::new(), |array, (n, text)| {
            array.text(&n.to_string(), text)
        })
        .bytes()
}

async fn newest(connection: &Connection) -> Result<Option<u64>, Failure> {
    let command = Writing::new()
        .text("find", LOG)
        .document("sort", &Writing::new().int("$natural", -1).bytes())
        .int("limit", 1)
        .flag("singleBatch", true);
    let found = connection.list("local", command).await?;
    Ok(found
        .first()
        .and_then(|entry| bson::find(entry, b"ts")?.timestamp()))
}

/// What was taken.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// Operations.
    pub entries: u64,
    /// From where.
    pub from: u64,
    /// To where.
    pub to: u64,
}

/// One pass over the log.
pub struct Copying<'a> {
    pub copied: Copied,
    units: &'a HashMap<String, (String, String)>,
    paths: HashMap<String, String>,
    sorting: Sorting,
    names: BTreeMap<String, u32>,
}

impl<'a> Copying<'a> {
    /// `units` by namespace.
    pub fn new(
        start: u64,
        units: &'a HashMap<String, (String, String)>,
        collections: &[Collection],
    ) -> Self {
        let paths = collections
            .iter()
            .filter(|c| c.kind != Kind::View)
            .map(|c| {
                (
                    format!("{}.{}", c.database, c.data_name()),
                    log_path(&c.database, &c.data_name()),
                )
            })
            .collect();
        Self {
            copied: Copied {
                entries: 0,
                from: start,
                to: start,
            },
            units,
            paths,
            sorting: Sorting::new(start),
            names: BTreeMap::new(),
        }
    }

    /// Everything from the start to now.
    pub async fn run(
        &mut self,
        cx: &Context,
        connection: &Connection,
        writing: &mut Lined<'_>,
    ) -> Result<()> {
        let start = self.copied.from;
        let Some(end) = newest(connection).await? else {
            return Err(rolled_over());
        };
        self.copied.to = end;
        let between = Writing::new()
            .timestamp("$gte", start)
            .timestamp("$lte", end)
            .bytes();
        let command = Writing::new()
            .text("find", LOG)
            .document("filter", &Writing::new().document("ts", &between).bytes())
            .flag("noCursorTimeout", true);
        let mut cursor = connection.cursor("local", command).await?;
        let mut first = true;
        while let Some(batch) = connection.next(&mut cursor).await? {
            cx.check_cancelled()?;
            for entry in documents_of(&batch)? {
                if std::mem::take(&mut first)
                    && bson::find(entry, b"ts").and_then(|ts| ts.timestamp()) != Some(start)
                {
                    return Err(rolled_over());
                }
                self.sorting.take(entry, |ns| self.units.contains_key(ns))?;
                if self.sorting.bytes > GATHERED_BYTES {
                    self.flush(writing).await?;
                }
            }
        }
        self.flush(writing).await?;
        let there = Writing::new()
            .text("find", LOG)
            .document("filter", &Writing::new().timestamp("ts", start).bytes())
            .int("limit", 1)
            .flag("singleBatch", true);
        if first || connection.list("local", there).await?.is_empty() {
            return Err(rolled_over());
        }
        for (ns, why) in std::mem::take(&mut self.sorting.unknown) {
            if let Some(unit) = self.units.get(&ns) {
                writing.open(unit).await?;
                writing.fail(unit, &unsupported(why)).await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self, writing: &mut Lined<'_>) -> Result<()> {
        self.sorting.bytes = 0;
        for (ns, gathered) in std::mem::take(&mut self.sorting.gathered) {
            let (Some(unit), Some(path)) = (self.units.get(&ns), self.paths.get(&ns)) else {
                continue;
            };
            let seen = self.names.entry(ns).or_default();
            *seen += 1;
            let path = format!("{path}.{:016x}-{seen}", gathered.first);
            let _room = if gathered.bytes.len() > UNRESERVED_BYTES {
                Some(writing.out().reserve(gathered.bytes.len() as u64).await?)
            } else {
                None
            };
            self.copied.entries += gathered.entries;
            writing
                .more(unit, path, gathered.bytes, gathered.entries)
                .await?;
        }
        Ok(())
    }
}

fn rolled_over() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "the server's log forgot its oldest entries while the collections were read",
    )
    .hint("make the log larger (replSetResizeOplog), or back up at a quieter time")
}

/// Entries of one collection.
#[derive(Debug, Default)]
struct Gathered {
    first: u64,
    entries: u64,
    bytes: Vec<u8>,
}

/// Entries by collection, transactions when they are committed.
#[derive(Default)]
pub struct Sorting {
    start: u64,
    gathered: BTreeMap<String, Gathered>,
    bytes: usize,
    pending: HashMap<Vec<u8>, Vec<Vec<u8>>>,
    pending_bytes: usize,
    /// Operations that nobody here knows, by collection.
    unknown: BTreeMap<String, String>,
    /// Commands on collections, and on whole databases.
    commands: BTreeMap<String, String>,
}

/// Commands that say nothing of documents or options.
const HARMLESS: [&str; 3] = ["startIndexBuild", "abortIndexBuild", "create"];

impl Sorting {
    /// Takes an entry of a log that others copied: all of it counts.
    pub fn take_all(&mut self, entry: &[u8]) -> Result<()> {
        self.take(entry, |_| true)?;
        if self.bytes > COPIED_MAX_BYTES {
            return Err(unsupported(
                "the dump's log has more than 256 MiB of entries",
            ));
        }
        let command = bson::inner(entry, "o").filter(|_| bson::text(entry, "op") == Some("c"));
        let first = command.and_then(|o| bson::elements(o).next()?.ok());
        if let (Some(first), Some(ns)) = (first, bson::text(entry, "ns")) {
            let verb = String::from_utf8_lossy(first.name).into_owned();
            let database = ns.split('.').next().unwrap_or_default();
            let ns = first.text().map_or_else(
                || database.to_owned(),
                |name| match verb.as_str() {
                    "renameCollection" => name.to_owned(),
                    _ => format!("{database}.{name}"),
                },
            );
            if !HARMLESS.contains(&verb.as_str())
                && !verb.ends_with("Transaction")
                && verb != "applyOps"
            {
                self.commands.insert(ns, verb);
            }
        }
        Ok(())
    }

    /// Why a collection's entries cannot be taken.
    pub fn not_replayed(&self, ns: &str) -> Option<String> {
        let database = ns.split('.').next().unwrap_or_default();
        let command = self
            .commands
            .get(ns)
            .or_else(|| self.commands.get(database));
        command
            .map(|verb| format!("the dump's log has a `{verb}` on it, which is not replayed"))
            .or_else(|| self.unknown.get(ns).cloned())
    }

    /// Collections with entries that nobody took.
    pub fn left(&self) -> impl Iterator<Item = &String> {
        self.gathered.keys()
    }

    /// The entries of a collection, in their order.
    pub fn entries_of(&mut self, ns: &str) -> Vec<u8> {
        self.gathered.remove(ns).unwrap_or_default().bytes
    }
}

impl Sorting {
    fn new(start: u64) -> Self {
        Self {
            start,
            gathered: BTreeMap::new(),
            bytes: 0,
            pending: HashMap::new(),
            pending_bytes: 0,
            unknown: BTreeMap::new(),
            commands: BTreeMap::new(),
        }
    }

    fn take(&mut self, entry: &[u8], is_wanted: impl Fn(&str) -> bool) -> Result<()> {
        let damaged = || Error::corrupt("an entry of the server's log cannot be read");
        let at = bson::find(entry, b"ts")
            .and_then(|ts| ts.timestamp())
            .ok_or_else(damaged)?;
        let op = bson::text(entry, "op").ok_or_else(damaged)?;
        if op == "c" {
            let command = bson::inner(entry, "o").ok_or_else(damaged)?;
            return self.command(entry, command, at, is_wanted);
        }
        // What was there at the start is in the data.
        if at > self.start {
            self.operation(entry, at, true, &is_wanted);
        }
        Ok(())
    }

    fn command(
        &mut self,
        entry: &[u8],
        command: &[u8],
        at: u64,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let transaction = transaction_of(entry);
        if let Some(operations) = bson::inner(command, "applyOps") {
            let operations = bson::documents_of(operations).map(<[u8]>::to_vec);
            let says = |name: &[u8]| bson::find(command, name).is_some_and(|flag| flag.truthy());
            if says(b"partialTxn") || says(b"prepare") {
                let waiting = self.pending.entry(transaction).or_default();
                for operation in operations {
                    self.pending_bytes += operation.len();
                    waiting.push(operation);
                }
                if self.pending_bytes > PENDING_MAX_BYTES {
                    return Err(unsupported(
                        "transactions of more than 64 MiB are open while the collections are read",
                    )
                    .hint("back up at a quieter time"));
                }
                return Ok(());
            }
            let (before, is_known) = self.commit(&transaction);
            if at > self.start && !is_known && is_a_last_part(entry) {
                return Err(begun_before());
            }
            if at > self.start {
                for operation in before.into_iter().chain(operations) {
                    self.operation(&operation, at, false, &is_wanted);
                }
            }
        } else if bson::find(command, b"commitTransaction").is_some() {
            let (operations, is_known) = self.commit(&transaction);
            if at > self.start && !is_known {
                return Err(begun_before());
            }
            if at > self.start {
                for operation in operations {
                    self.operation(&operation, at, false, &is_wanted);
                }
            }
        } else if bson::find(command, b"abortTransaction").is_some() {
            self.commit(&transaction);
        }
        Ok(())
    }

    /// What a transaction did so far, and whether anything of it was seen.
    fn commit(&mut self, transaction: &[u8]) -> (Vec<Vec<u8>>, bool) {
        let operations = self.pending.remove(transaction);
        let is_known = operations.is_some();
        let operations = operations.unwrap_or_default();
        self.pending_bytes -= operations.iter().map(Vec::len).sum::<usize>();
        (operations, is_known)
    }

    /// `whole`: it has a time of its own.
    fn operation(
        &mut self,
        operation: &[u8],
        at: u64,
        whole: bool,
        is_wanted: &impl Fn(&str) -> bool,
    ) {
        let Some(ns) = bson::text(operation, "ns").filter(|ns| is_wanted(ns)) else {
            return;
        };
        match bson::text(operation, "op") {
            Some("i" | "u" | "d") => {}
            // Nothing, and what concerns indexes alone.
            Some("n" | "ci" | "cu" | "cd" | "km") => return,
            other => {
                let why = format!(
                    "the server's log has an operation `{}` on it that is not known",
                    other.unwrap_or("?")
                );
                self.unknown.entry(ns.to_owned()).or_insert(why);
                return;
            }
        }
        let gathered = self.gathered.entry(ns.to_owned()).or_default();
        if gathered.entries == 0 {
            gathered.first = at;
        }
        gathered.entries += 1;
        let before = gathered.bytes.len();
        if whole {
            gathered.bytes.extend_from_slice(operation);
        } else {
            let mut timed = Writing::new().timestamp("ts", at);
            for element in bson::elements(operation).map_while(Result::ok) {
                timed.push_element(element.whole);
            }
            gathered.bytes.extend_from_slice(&timed.bytes());
        }
        self.bytes += gathered.bytes.len() - before;
    }
}

/// Whether an entry ends a transaction that has entries before it. What inserts many at once has none.
fn is_a_last_part(entry: &[u8]) -> bool {
    let before = bson::inner(entry, "prevOpTime").and_then(|at| bson::find(at, b"ts")?.timestamp());
    before.is_some_and(|at| at != 0)
        && bson::find(entry, b"multiOpType").is_none()
        && bson::find(entry, b"txnNumber").is_some()
}

fn begun_before() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "a transaction was begun before the collections were read, and its beginning is not known",
    )
    .hint("grant the account the right to read config.transactions (the role `backup` has it), or repeat the backup")
}

/// Session and number of a transaction, as they stand.
fn transaction_of(entry: &[u8]) -> Vec<u8> {
    [&b"lsid"[..], b"txnNumber"]
        .iter()
        .filter_map(|name| bson::find(entry, name))
        .flat_map(|element| element.whole.to_vec())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(op: &str, ns: &str, n: i32) -> Vec<u8> {
        let document = Writing::new().int("_id", n).bytes();
        Writing::new()
            .text("op", op)
            .text("ns", ns)
            .document("o", &document)
            .bytes()
    }

    fn entry(at: u64, op: &str, ns: &str, o: &[u8], transaction: Option<i64>) -> Vec<u8> {
        let entry = Writing::new()
            .timestamp("ts", at)
            .text("op", op)
            .text("ns", ns)
            .document("o", o);
        match transaction {
            Some(n) => entry.long("txnNumber", n).bytes(),
            None => entry.bytes(),
        }
    }

    fn apply(operations: &[Vec<u8>], flag: Option<&str>) -> Vec<u8> {
        let command = Writing::new().documents("applyOps", operations.iter().map(Vec::as_slice));
        match flag {
            Some(flag) => command.flag(flag, true).bytes(),
            None => command.bytes(),
        }
    }

    fn ids(sorting: &Sorting, ns: &str) -> Vec<(u64, i64)> {
        let Some(gathered) = sorting.gathered.get(ns) else {
            return Vec::new();
        };
        bson::documents(&gathered.bytes)
            .map(|entry| {
                let entry = entry.unwrap();
                let id = bson::find(bson::inner(entry, "o").unwrap(), b"_id").unwrap();
                (
                    bson::find(entry, b"ts").unwrap().timestamp().unwrap(),
                    id.integer().unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn transactions_count_from_their_commit_on() {
        let mut sorting = Sorting::new(10);
        let document = Writing::new().int("_id", 0).bytes();
        let entries = [
            // Seen in the data already.
            entry(10, "i", "a.x", &document, None),
            // Begun before the start, committed after.
            entry(
                9,
                "c",
                "admin.$cmd",
                &apply(&[operation("i", "a.x", 1)], Some("partialTxn")),
                Some(7),
            ),
            entry(11, "i", "a.x", &Writing::new().int("_id", 2).bytes(), None),
            // Prepared, and aborted.
            entry(
                12,
                "c",
                "admin.$cmd",
                &apply(&[operation("i", "a.x", 3)], Some("prepare")),
                Some(8),
            ),
            entry(
                13,
                "c",
                "admin.$cmd",
                &Writing::new().int("abortTransaction", 1).bytes(),
                Some(8),
            ),
            // Prepared, and committed.
            entry(
                14,
                "c",
                "admin.$cmd",
                &apply(&[operation("i", "a.y", 4)], Some("prepare")),
                Some(9),
            ),
            entry(
                15,
                "c",
                "admin.$cmd",
                &Writing::new().int("commitTransaction", 1).bytes(),
                Some(9),
            ),
            // The end of the first one.
            entry(
                16,
                "c",
                "admin.$cmd",
                &apply(&[operation("d", "a.x", 2)], None),
                Some(7),
            ),
            // Committed before the start: in the data.
            entry(
                10,
                "c",
                "admin.$cmd",
                &apply(&[operation("i", "a.x", 5)], None),
                Some(10),
            ),
            // Of somebody else; of nobody.
            entry(17, "i", "b.z", &document, None),
            entry(18, "n", "a.x", &document, None),
        ];
        for entry in entries {
            sorting.take(&entry, |ns| ns.starts_with("a.")).unwrap();
        }
        assert_eq!(ids(&sorting, "a.x"), [(11, 2), (16, 1), (16, 2)]);
        assert_eq!(ids(&sorting, "a.y"), [(15, 4)]);
        assert_eq!(ids(&sorting, "b.z"), []);
        assert_eq!((sorting.pending.len(), sorting.pending_bytes), (0, 0));
        sorting
            .take(&entry(19, "xx", "a.x", &document, None), |_| true)
            .unwrap();
        assert!(sorting.unknown["a.x"].contains("`xx`"));
    }
}
