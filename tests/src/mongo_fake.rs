//! A server that speaks MongoDB's protocol over OP_MSG and stores bytes: what real servers or their stand-ins would refuse or alter lies in it as it
//! came. It keeps history, so that a read at an instant is one; or it only says so. Every message is measured.
//! Form of messages: mongodb/specifications, source/message/OP_MSG.md.

use bk_sources::mongodb::bson::{self, Writing, kind};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const OP_MSG: i32 = 2013;
const OP_QUERY: i32 = 2004;
const OP_REPLY: i32 = 1;
const MAX_DOCUMENT_BYTES: usize = 16 << 20;
/// A command may have so much around its documents.
const MAX_COMMAND_BYTES: usize = MAX_DOCUMENT_BYTES + (16 << 10);
const MAX_MESSAGE_BYTES: usize = 48_000_000;
const MAX_BATCH: usize = 100_000;

/// How it keeps its word about instants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instants {
    /// Reads at an instant show it.
    Kept,
    /// They are answered with another instant.
    Other,
    /// They are accepted whatever they are.
    Any,
    /// It is no replica set.
    None,
}

/// What goes wrong while documents are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// Their collection is dropped.
    Dropped,
    /// Their collection gets another index.
    Indexed,
    /// Their cursor is killed.
    KilledCursor,
    /// The connection ends.
    HangUp,
    /// The log forgets its oldest entry.
    LogForgets,
}

/// A document with its time: born, and gone.
#[derive(Clone, Debug)]
struct Stored {
    born: u64,
    gone: Option<u64>,
    bytes: Vec<u8>,
}

/// A collection.
#[derive(Clone, Debug, Default)]
struct Collection {
    options: Vec<u8>,
    number: u8,
    indexes: Vec<Vec<u8>>,
    documents: Vec<Stored>,
}

/// Database, collection and document that is written.
pub type Write = (String, String, Vec<u8>);
type OnFind = Box<dyn FnMut(&mut Vec<Write>) + Send>;

struct State {
    instants: Instants,
    now: u64,
    collections: BTreeMap<(String, String), Collection>,
    cursors: BTreeMap<i64, (String, Vec<Vec<u8>>)>,
    next: i64,
    seen: Vec<(String, usize)>,
    wrong: Vec<String>,
    /// Documents that hold this are refused alone, whole batches with them are refused as a whole.
    refuses: Option<Vec<u8>>,
    /// Writes into a collection while another is read, to show whether a read is at its instant.
    mishap: Option<Mishap>,
    /// Answers to writes that do not arrive, although what was asked is done.
    lost: u32,
    on_find: Option<OnFind>,
    /// Options of collections that it does not know.
    lacks: Vec<Vec<u8>>,
}

/// The server. Ends with its handle.
pub struct Fake {
    /// Its port on loopback.
    pub port: u16,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    /// Starts one.
    pub async fn start(instants: Instants) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State {
            instants,
            now: 100 << 32,
            collections: BTreeMap::new(),
            cursors: BTreeMap::new(),
            next: 1,
            seen: Vec::new(),
            wrong: Vec::new(),
            refuses: None,
            mishap: None,
            lost: 0,
            on_find: None,
            lacks: Vec::new(),
        }));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { port, state, task }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How to get there.
    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/?directConnection=true", self.port)
    }

    /// Puts documents into a collection, as they are.
    pub fn put(&self, database: &str, collection: &str, documents: &[Vec<u8>]) {
        let mut state = self.state();
        for document in documents {
            state.write(database, collection, document.clone());
        }
    }

    /// Makes a collection with options.
    pub fn make(&self, database: &str, collection: &str, options: Vec<u8>) {
        let mut state = self.state();
        let made = state.collection(database, collection);
        made.options = options;
    }

    /// The documents of a collection, in their order.
    pub fn documents(&self, database: &str, collection: &str) -> Vec<Vec<u8>> {
        let state = self.state();
        let key = (database.to_owned(), collection.to_owned());
        let found = state
            .collections
            .get(&key)
            .map(|c| c.documents.clone())
            .unwrap_or_default();
        found
            .into_iter()
            .filter(|d| d.gone.is_none())
            .map(|d| d.bytes)
            .collect()
    }

    /// Options and indexes of a collection.
    pub fn definition(&self, database: &str, collection: &str) -> (Vec<u8>, Vec<Vec<u8>>) {
        let state = self.state();
        let found = &state.collections[&(database.to_owned(), collection.to_owned())];
        (found.options.clone(), found.indexes.clone())
    }

    /// Drops everything.
    pub fn wipe(&self) {
        self.state().collections.clear();
    }

    /// From now on documents that hold these bytes are refused, and a batch with one of them as a whole.
    pub fn refuse(&self, bytes: &[u8]) {
        self.state().refuses = Some(bytes.to_vec());
    }

    /// From now on collections with these options are refused.
    pub fn lack(&self, options: &[&str]) {
        self.state().lacks = options.iter().map(|o| o.as_bytes().to_vec()).collect();
    }

    /// So many answers to the next inserts do not arrive.
    pub fn lose_answers(&self, count: u32) {
        self.state().lost = count;
    }

    /// What goes wrong as soon as a second answer is asked for.
    pub fn let_go_wrong(&self, mishap: Mishap) {
        self.state().mishap = Some(mishap);
    }

    /// What is written whenever a `find` over all of a collection begins.
    pub fn on_find(&self, write: impl FnMut(&mut Vec<Write>) + Send + 'static) {
        self.state().on_find = Some(Box::new(write));
    }

    /// Commands with the bytes of their messages, and what was against the limits.
    pub fn seen(&self) -> (Vec<(String, usize)>, Vec<String>) {
        let state = self.state();
        (state.seen.clone(), state.wrong.clone())
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    loop {
        let mut head = [0; 16];
        if stream.read_exact(&mut head).await.is_err() {
            return;
        }
        let word = |at: usize| i32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let (len, id, code) = (word(0) as usize, word(4), word(12));
        let mut body = vec![0; len - 16];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let answer = match code {
            OP_MSG => {
                let command = message(&body);
                let answer = state.lock().unwrap().answer(&command, len);
                if answer.is_empty() {
                    return;
                }
                [&0_u32.to_le_bytes()[..], &[0], &answer].concat()
            }
            OP_QUERY => {
                let name_end = body[4..].iter().position(|b| *b == 0).unwrap() + 5;
                let command = body[name_end + 8..].to_vec();
                let answer = state.lock().unwrap().answer(&command, len);
                [&[0; 4][..], &[0; 8], &[0; 4], &1_i32.to_le_bytes(), &answer].concat()
            }
            other => panic!("a message of kind {other}"),
        };
        let reply = if code == OP_MSG { OP_MSG } else { OP_REPLY };
        let total = (answer.len() + 16) as i32;
        let mut out = Vec::with_capacity(answer.len() + 16);
        for word in [total, 0, id, reply] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&answer);
        if stream.write_all(&out).await.is_err() {
            return;
        }
    }
}

/// The command of a message, with its sequences of documents as arrays.
fn message(body: &[u8]) -> Vec<u8> {
    let (mut at, mut command, mut sequences) = (4, Vec::new(), Vec::new());
    let flags = u32::from_le_bytes(body[..4].try_into().unwrap());
    let end = body.len() - if flags & 1 == 1 { 4 } else { 0 };
    while at < end {
        let section = body[at];
        at += 1;
        let len = i32::from_le_bytes(body[at..at + 4].try_into().unwrap()) as usize;
        let part = &body[at..at + len];
        at += len;
        if section == 0 {
            command = part.to_vec();
        } else {
            let name_end = part[4..].iter().position(|b| *b == 0).unwrap() + 4;
            let name = String::from_utf8(part[4..name_end].to_vec()).unwrap();
            sequences.push((name, part[name_end + 1..].to_vec()));
        }
    }
    if sequences.is_empty() {
        return command;
    }
    let mut whole = Writing::new();
    bson::elements(&command).for_each(|e| whole.push_element(e.unwrap().whole));
    for (name, documents) in sequences {
        let documents: Vec<&[u8]> = bson::documents(&documents).map(|d| d.unwrap()).collect();
        whole = whole.documents(&name, documents);
    }
    whole.bytes()
}

fn ok() -> Writing {
    Writing::new().value(kind::DOUBLE, b"ok", &1.0_f64.to_le_bytes())
}

fn refused(code: i32, words: &str) -> Vec<u8> {
    Writing::new()
        .value(kind::DOUBLE, b"ok", &0.0_f64.to_le_bytes())
        .text("errmsg", words)
        .int("code", code)
        .bytes()
}

impl State {
    fn collection(&mut self, database: &str, name: &str) -> &mut Collection {
        let number = self.collections.len() as u8 + 1;
        let key = (database.to_owned(), name.to_owned());
        self.collections.entry(key).or_insert_with(|| Collection {
            options: Writing::new().bytes(),
            number,
            indexes: vec![
                Writing::new()
                    .int("v", 2)
                    .document("key", &Writing::new().int("_id", 1).bytes())
                    .text("name", "_id_")
                    .bytes(),
            ],
            documents: Vec::new(),
        })
    }

    fn write(&mut self, database: &str, name: &str, bytes: Vec<u8>) {
        self.now += 1;
        let born = self.now;
        let collection = self.collection(database, name);
        let capped = bson::find(&collection.options, b"max").and_then(|max| max.integer());
        collection.documents.push(Stored {
            born,
            gone: None,
            bytes,
        });
        // What is over the number goes, the oldest first.
        if let Some(max) = capped {
            let living = collection
                .documents
                .iter()
                .filter(|d| d.gone.is_none())
                .count();
            let over = living.saturating_sub(max as usize);
            let oldest = collection.documents.iter_mut().filter(|d| d.gone.is_none());
            oldest.take(over).for_each(|d| d.gone = Some(born));
        }
    }

    fn answer(&mut self, command: &[u8], message_bytes: usize) -> Vec<u8> {
        let first = bson::elements(command).next().unwrap().unwrap();
        let verb = String::from_utf8(first.name.to_vec()).unwrap();
        let subject = first.text().unwrap_or_default().to_owned();
        let database = bson::text(command, "$db").unwrap_or("admin").to_owned();
        self.seen.push((verb.clone(), message_bytes));
        if message_bytes > MAX_MESSAGE_BYTES || command.len() > MAX_COMMAND_BYTES {
            self.wrong.push(format!("{verb}: {message_bytes} bytes"));
        }
        match verb.as_str() {
            "hello" | "isMaster" | "ismaster" => self.hello(),
            "buildInfo" | "buildinfo" => ok().text("version", "8.0.4").bytes(),
            "ping" | "endSessions" | "killCursors" | "abortTransaction" => ok().bytes(),
            "listDatabases" => self.list_databases(),
            "listCollections" => self.list_collections(&database),
            "listIndexes" => {
                let key = (database.clone(), subject.clone());
                match self.collections.get(&key) {
                    Some(found) => batch(
                        &format!("{database}.{subject}"),
                        &found.indexes,
                        0,
                        "firstBatch",
                        None,
                    ),
                    None => refused(26, "no such collection"),
                }
            }
            "find" => self.find(&database, &subject, command),
            "getMore" => self.more(command),
            "insert" => {
                let answer = self.insert(&database, &subject, command);
                if self.lost > 0 && database == "app" {
                    self.lost -= 1;
                    return Vec::new();
                }
                answer
            }
            "update" => self.update(&database, &subject, command),
            "delete" => self.delete(&database, &subject, command),
            "create" => {
                let unknown = bson::elements(command)
                    .map(|e| e.unwrap().name)
                    .find(|name| self.lacks.iter().any(|lacks| lacks == name));
                if let Some(name) = unknown {
                    let name = String::from_utf8_lossy(name);
                    return refused(
                        40415,
                        &format!("BSON field 'create.{name}' is an unknown field."),
                    );
                }
                if self
                    .collections
                    .contains_key(&(database.clone(), subject.clone()))
                {
                    return refused(48, "it is there already");
                }
                let mut options = Writing::new();
                for option in bson::elements(command).map(|e| e.unwrap()).skip(1) {
                    if !option.name.starts_with(b"$") && option.name != b"lsid" {
                        options.push_element(option.whole);
                    }
                }
                let options = options.bytes();
                if bson::find(&options, b"timeseries").is_some() {
                    self.collection(&database, &format!("system.buckets.{subject}"));
                }
                self.collection(&database, &subject).options = options;
                ok().bytes()
            }
            "connectionStatus" => {
                let user = Writing::new()
                    .text("user", "keeper")
                    .text("db", "admin")
                    .bytes();
                let info = Writing::new()
                    .documents("authenticatedUsers", [&user[..]])
                    .bytes();
                ok().document("authInfo", &info).bytes()
            }
            "_mergeAuthzCollections" => self.merge_users(command),
            "createIndexes" => {
                let indexes: Vec<Vec<u8>> =
                    bson::documents_of(bson::inner(command, "indexes").unwrap())
                        .map(<[u8]>::to_vec)
                        .collect();
                self.collection(&database, &subject).indexes.extend(indexes);
                ok().bytes()
            }
            "drop" => {
                let buckets = format!("system.buckets.{subject}");
                self.collections.remove(&(database.clone(), buckets));
                match self.collections.remove(&(database, subject)) {
                    Some(_) => ok().bytes(),
                    None => refused(26, "ns not found"),
                }
            }
            "dropDatabase" => {
                self.collections.retain(|(of, _), _| *of != database);
                ok().bytes()
            }
            other => refused(59, &format!("no such command: '{other}'")),
        }
    }

    fn hello(&self) -> Vec<u8> {
        let hello = ok()
            .flag("ismaster", true)
            .flag("isWritablePrimary", true)
            .int("maxBsonObjectSize", MAX_DOCUMENT_BYTES as i32)
            .int("maxMessageSizeBytes", MAX_MESSAGE_BYTES as i32)
            .int("maxWriteBatchSize", MAX_BATCH as i32)
            .int("minWireVersion", 0)
            .int("maxWireVersion", 25)
            .int("logicalSessionTimeoutMinutes", 30);
        if self.instants == Instants::None {
            return hello.bytes();
        }
        hello
            .text("setName", "fake")
            .timestamp("operationTime", self.now)
            .bytes()
    }

    fn list_databases(&self) -> Vec<u8> {
        let mut names: Vec<&String> = self
            .collections
            .keys()
            .map(|(database, _)| database)
            .collect();
        names.dedup();
        let documents: Vec<Vec<u8>> = names
            .iter()
            .map(|name| Writing::new().text("name", name).bytes())
            .collect();
        ok().documents("databases", documents.iter().map(Vec::as_slice))
            .bytes()
    }

    fn list_collections(&self, database: &str) -> Vec<u8> {
        let documents: Vec<Vec<u8>> = self
            .collections
            .iter()
            .filter(|((of, _), _)| of == database)
            .map(|((_, name), found)| {
                let uuid = [&16_i32.to_le_bytes()[..], &[4], &[found.number; 16]].concat();
                let is_series = bson::find(&found.options, b"timeseries").is_some();
                Writing::new()
                    .text("name", name)
                    .text(
                        "type",
                        if is_series {
                            "timeseries"
                        } else {
                            "collection"
                        },
                    )
                    .document("options", &found.options)
                    .document(
                        "info",
                        &Writing::new().value(kind::BINARY, b"uuid", &uuid).bytes(),
                    )
                    .bytes()
            })
            .collect();
        batch(
            &format!("{database}.$cmd.listCollections"),
            &documents,
            0,
            "firstBatch",
            None,
        )
    }

    /// As the real one: those of the collections take the place of those of the same name, and with `drop` all others go.
    fn merge_users(&mut self, command: &[u8]) -> Vec<u8> {
        let drops = bson::find(command, b"drop").is_some_and(|flag| flag.truthy());
        let mut merged = false;
        for (field, name) in [
            ("tempUsersCollection", "system.users"),
            ("tempRolesCollection", "system.roles"),
        ] {
            let Some(from) = bson::text(command, field).and_then(|ns| ns.strip_prefix("admin."))
            else {
                continue;
            };
            merged = true;
            let new: Vec<Stored> = self.living("admin", from).map(|d| d.clone()).collect();
            let old = &mut self.collection("admin", name).documents;
            old.retain(|d| !drops && !new.iter().any(|n| bson::id(&n.bytes) == bson::id(&d.bytes)));
            old.extend(new);
        }
        if merged {
            ok().bytes()
        } else {
            refused(
                2,
                "Must provide at least one of \"tempUsersCollection\" and \"tempRolescollection\"",
            )
        }
    }

    fn find(&mut self, database: &str, name: &str, command: &[u8]) -> Vec<u8> {
        let asked = bson::inner(command, "readConcern")
            .and_then(|c| bson::find(c, b"atClusterTime")?.timestamp());
        let at = match (self.instants, asked) {
            (Instants::Kept, Some(at)) if at < 50 << 32 => {
                return refused(239, "that is too long ago");
            }
            (Instants::Kept, Some(at)) => at,
            (Instants::None, Some(_)) => return refused(72, "no snapshots here"),
            _ => self.now,
        };
        let said = asked.map(|asked| match self.instants {
            Instants::Other => self.now + 1,
            _ => asked,
        });
        let filter = bson::inner(command, "filter").and_then(|filter| bson::find(filter, b"_id"));
        let wanted: Option<Vec<Vec<u8>>> =
            filter.map(
                |id| match id.document().and_then(|d| bson::inner(d, "$in")) {
                    Some(list) => bson::elements(list)
                        .map(|e| {
                            let e = e.unwrap();
                            [&[e.kind][..], e.value].concat()
                        })
                        .collect(),
                    None => vec![[&[id.kind][..], id.value].concat()],
                },
            );
        let key = (database.to_owned(), name.to_owned());
        let stored = self
            .collections
            .get(&key)
            .map(|c| c.documents.clone())
            .unwrap_or_default();
        let mut documents: Vec<Vec<u8>> = stored
            .into_iter()
            .filter(|d| d.born <= at && d.gone.is_none_or(|gone| gone > at))
            .filter(|d| {
                wanted.as_ref().is_none_or(|wanted| {
                    bson::find(&d.bytes, b"_id")
                        .is_some_and(|id| wanted.contains(&[&[id.kind][..], id.value].concat()))
                })
            })
            .map(|d| d.bytes)
            .filter(|d| is_of_time(d, command))
            .collect();
        if bson::inner(command, "sort").is_some() {
            documents.reverse();
        }
        if let Some(limit) = bson::find(command, b"limit").and_then(|n| n.integer()) {
            documents.truncate(limit as usize);
        }
        if bson::inner(command, "hint").is_some_and(|hint| bson::find(hint, b"_id").is_some()) {
            documents.sort_by(|a, b| bson::id(a).cmp(&bson::id(b)));
        }
        if wanted.is_none()
            && bson::inner(command, "hint").is_some()
            && let Some(mut write) = self.on_find.take()
        {
            let mut writes = Vec::new();
            write(&mut writes);
            for (database, name, document) in writes {
                self.write(&database, &name, document);
            }
            self.on_find = Some(write);
        }
        let size = bson::find(command, b"batchSize")
            .and_then(|n| n.integer())
            .unwrap_or(101) as usize;
        let single = bson::find(command, b"singleBatch").is_some_and(|flag| flag.truthy());
        let now = fitting(&documents, size);
        let rest = documents.split_off(now);
        let mut id = 0;
        if !rest.is_empty() && !single {
            id = self.next;
            self.next += 1;
            self.cursors
                .insert(id, (format!("{database}.{name}"), rest));
        }
        batch(
            &format!("{database}.{name}"),
            &documents,
            id,
            "firstBatch",
            said,
        )
    }

    fn more(&mut self, command: &[u8]) -> Vec<u8> {
        let id = bson::find(command, b"getMore")
            .and_then(|id| id.integer())
            .unwrap();
        let Some((ns, mut documents)) = self.cursors.remove(&id) else {
            return refused(43, "no such cursor");
        };
        let (database, name) = ns.split_once('.').unwrap();
        match self.mishap {
            None => {}
            Some(Mishap::Dropped) => {
                self.collections
                    .remove(&(database.to_owned(), name.to_owned()));
            }
            Some(Mishap::Indexed) => {
                let index = Writing::new()
                    .document("key", &Writing::new().int("x", 1).bytes())
                    .text("name", "x")
                    .bytes();
                self.collection(database, name).indexes.push(index);
                self.mishap = None;
            }
            Some(Mishap::LogForgets) => {
                let oldest = self.living("local", "oplog.rs").next().unwrap();
                oldest.gone = Some(0);
                self.mishap = None;
            }
            Some(Mishap::KilledCursor) => return refused(43, "the cursor was killed"),
            Some(Mishap::HangUp) => return Vec::new(),
        }
        let size = bson::find(command, b"batchSize")
            .and_then(|n| n.integer())
            .unwrap_or(i64::MAX) as usize;
        let now = fitting(&documents, size);
        let rest = documents.split_off(now);
        let open = if rest.is_empty() { 0 } else { id };
        if open != 0 {
            self.cursors.insert(id, (ns.clone(), rest));
        }
        batch(&ns, &documents, open, "nextBatch", None)
    }

    fn insert(&mut self, database: &str, name: &str, command: &[u8]) -> Vec<u8> {
        let documents: Vec<Vec<u8>> =
            bson::documents_of(bson::inner(command, "documents").unwrap())
                .map(<[u8]>::to_vec)
                .collect();
        if documents.len() > MAX_BATCH {
            self.wrong
                .push(format!("insert: {} documents", documents.len()));
        }
        let holds =
            |document: &[u8], bytes: &[u8]| document.windows(bytes.len()).any(|w| w == bytes);
        if let Some(bytes) = &self.refuses
            && documents.iter().any(|d| holds(d, bytes))
        {
            return refused(2, "a document is not to be had");
        }
        let (mut n, mut errors) = (0, Vec::new());
        for (place, document) in documents.into_iter().enumerate() {
            let id = bson::id(&document).map(<[u8]>::to_vec);
            let there = self
                .living(database, name)
                .any(|d| id.is_some() && bson::id(&d.bytes) == id.as_deref());
            if there {
                errors.push(
                    Writing::new()
                        .int("index", place as i32)
                        .int("code", 11000)
                        .document("keyPattern", &Writing::new().int("_id", 1).bytes())
                        .text("errmsg", "E11000 duplicate key")
                        .bytes(),
                );
            } else {
                self.write(database, name, document);
                n += 1;
            }
        }
        let answer = ok().int("n", n);
        if errors.is_empty() {
            return answer.bytes();
        }
        answer
            .documents("writeErrors", errors.iter().map(Vec::as_slice))
            .bytes()
    }

    fn living(&mut self, database: &str, name: &str) -> impl Iterator<Item = &mut Stored> {
        self.collection(database, name)
            .documents
            .iter_mut()
            .filter(|d| d.gone.is_none())
    }

    fn update(&mut self, database: &str, name: &str, command: &[u8]) -> Vec<u8> {
        let mut n = 0;
        for update in bson::documents_of(bson::inner(command, "updates").unwrap()) {
            let id = bson::id(bson::inner(update, "q").unwrap())
                .unwrap()
                .to_vec();
            let new = bson::inner(update, "u").unwrap().to_vec();
            let now = self.now + 1;
            for old in self
                .living(database, name)
                .filter(|d| bson::id(&d.bytes) == Some(&id))
            {
                old.gone = Some(now);
            }
            self.write(database, name, new);
            n += 1;
        }
        ok().int("n", n).int("nModified", n).bytes()
    }

    fn delete(&mut self, database: &str, name: &str, command: &[u8]) -> Vec<u8> {
        let mut n = 0;
        for delete in bson::documents_of(bson::inner(command, "deletes").unwrap()) {
            let id = bson::id(bson::inner(delete, "q").unwrap())
                .unwrap()
                .to_vec();
            self.now += 1;
            let now = self.now;
            for old in self
                .living(database, name)
                .filter(|d| bson::id(&d.bytes) == Some(&id))
            {
                old.gone = Some(now);
                n += 1;
            }
        }
        ok().int("n", n).bytes()
    }
}

/// Whether an entry of the log is of the time that is asked for.
fn is_of_time(document: &[u8], command: &[u8]) -> bool {
    let Some(asked) = bson::inner(command, "filter").and_then(|filter| bson::find(filter, b"ts"))
    else {
        return true;
    };
    let at = bson::find(document, b"ts")
        .and_then(|ts| ts.timestamp())
        .unwrap();
    match asked.document() {
        None => asked.timestamp() == Some(at),
        Some(between) => {
            let bound = |name| bson::find(between, name).and_then(|ts| ts.timestamp());
            bound(b"$gte").is_none_or(|from| at >= from) && bound(b"$lte").is_none_or(|to| at <= to)
        }
    }
}

/// How many of the first documents fit into an answer.
fn fitting(documents: &[Vec<u8>], most: usize) -> usize {
    let mut bytes = 0;
    let fit = documents.iter().take(most).take_while(|d| {
        bytes += d.len() + 16;
        bytes <= MAX_DOCUMENT_BYTES + 64
    });
    fit.count().max(usize::from(!documents.is_empty()))
}

fn batch(ns: &str, documents: &[Vec<u8>], id: i64, word: &str, at: Option<u64>) -> Vec<u8> {
    let mut cursor = Writing::new().long("id", id).text("ns", ns);
    if let Some(at) = at {
        cursor = cursor.timestamp("atClusterTime", at);
    }
    let cursor = cursor.documents(word, documents.iter().map(Vec::as_slice));
    ok().document("cursor", &cursor.bytes()).bytes()
}
