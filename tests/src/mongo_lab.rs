//! What the measurements of MongoDB need: documents as a school has them, and the bare driver at its best, to compare with.

use bk_sources::mongodb::bson::{self, Writing};
use futures::StreamExt;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::{Client, Collection};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::io::Write;
use std::path::Path;
use tokio::task::JoinSet;

const DATABASE: &str = "school";
/// Structures of courses, posts in forums, chunks of files.
const COLLECTIONS: [&str; 3] = ["structures", "contents", "fs.chunks"];
/// Bytes of documents that are sent together.
const BATCH_BYTES: usize = 8 << 20;
/// Batches on their way at once.
const WRITERS: usize = 4;

async fn client(uri: &str) -> Client {
    Client::with_uri_str(uri).await.unwrap()
}

fn words(random: &mut SmallRng, count: usize) -> String {
    const WORDS: [&str; 12] = [
        "course", "unit", "the", "of", "answer", "week", "exam", "lab", "and", "video", "in",
        "page",
    ];
    (0..count)
        .map(|_| WORDS[random.random_range(0..WORDS.len())])
        .collect::<Vec<_>>()
        .join(" ")
}

fn document(random: &mut SmallRng, collection: &str, n: i64) -> Vec<u8> {
    let id: [u8; 12] = random.random();
    let id = Writing::new().value(0x07, b"_id", &id);
    match collection {
        "structures" => {
            let blocks: Vec<Vec<u8>> = (0..60)
                .map(|b| {
                    Writing::new()
                        .text("type", "problem")
                        .int("n", b)
                        .text("name", &words(random, 6))
                        .text("hash", &format!("{:016x}", random.random::<u64>()))
                        .bytes()
                })
                .collect();
            id.text("course", &format!("course-v1:school+{}", n % 300))
                .documents("blocks", blocks.iter().map(Vec::as_slice))
                .bytes()
        }
        "contents" => {
            let count = random.random_range(20..120);
            id.text("course_id", &format!("course-v1:school+{}", n % 300))
                .long("author", n % 5000)
                .int("votes", (n % 17) as i32)
                .text("body", &words(random, count))
                .bytes()
        }
        _ => {
            let bytes: Vec<u8> = (0..(255 << 10)).map(|_| random.random()).collect();
            let value = [&(bytes.len() as i32).to_le_bytes()[..], &[0], &bytes].concat();
            id.long("files_id", n / 20)
                .int("n", (n % 20) as i32)
                .value(bson::kind::BINARY, b"data", &value)
                .bytes()
        }
    }
}

fn indexes() -> Vec<(&'static str, Document)> {
    vec![
        ("structures", doc! {"key": {"course": 1}, "name": "course"}),
        (
            "contents",
            doc! {"key": {"course_id": 1, "votes": -1}, "name": "votes"},
        ),
        ("contents", doc! {"key": {"author": 1}, "name": "author"}),
        (
            "fs.chunks",
            doc! {"key": {"files_id": 1, "n": 1}, "name": "chunks", "unique": true},
        ),
    ]
}

/// Fills a server with so many MiB, a third of each kind.
pub async fn seed(uri: &str, mib: u64) {
    let client = client(uri).await;
    client.database(DATABASE).drop().await.unwrap();
    for collection in COLLECTIONS {
        let mut random = SmallRng::seed_from_u64(8);
        let (mut bytes, mut n, mut batch, mut held) = (0, 0, Vec::new(), 0);
        while bytes < (mib << 20) / 3 {
            let document = document(&mut random, collection, n);
            bytes += document.len() as u64;
            held += document.len();
            n += 1;
            batch.push(RawDocumentBuf::from_bytes(document).unwrap());
            if held >= BATCH_BYTES {
                send(&client, collection, std::mem::take(&mut batch)).await;
                held = 0;
            }
        }
        send(&client, collection, batch).await;
    }
    make_indexes(&client).await;
}

async fn send(client: &Client, collection: &str, batch: Vec<RawDocumentBuf>) {
    if batch.is_empty() {
        return;
    }
    let target: Collection<RawDocumentBuf> = client.database(DATABASE).collection(collection);
    target.insert_many(batch).ordered(false).await.unwrap();
}

async fn make_indexes(client: &Client) {
    for collection in COLLECTIONS {
        let specifications: Vec<Document> = indexes()
            .into_iter()
            .filter(|(of, _)| *of == collection)
            .map(|(_, index)| index)
            .collect();
        let command = doc! {"createIndexes": collection, "indexes": specifications};
        client
            .database(DATABASE)
            .run_command(command)
            .await
            .unwrap();
    }
}

/// Reads all of it with the bare driver by the same cursors, and writes the documents to standard output, or nowhere.
pub async fn drain(uri: &str, out: bool) {
    let client = client(uri).await;
    let mut tasks = JoinSet::new();
    for collection in COLLECTIONS {
        let client = client.clone();
        tasks.spawn(async move {
            let command = doc! {"find": collection, "hint": {"_id": 1}, "noCursorTimeout": true};
            let raw = RawDocumentBuf::try_from(&command).unwrap();
            let mut cursor = client
                .database(DATABASE)
                .run_raw_cursor_command(raw)
                .batch()
                .await
                .unwrap();
            let mut bytes = 0_u64;
            while let Some(batch) = cursor.next().await {
                let batch = batch.unwrap();
                for document in bson::documents_of(batch.doc_slices().unwrap().as_bytes()) {
                    bytes += document.len() as u64;
                    if out {
                        std::io::stdout().write_all(document).unwrap();
                    }
                }
            }
            bytes
        });
    }
    let bytes: u64 = tasks.join_all().await.iter().sum();
    eprintln!("{bytes} bytes");
}

/// Writes a folder of `mongodump` with the bare driver: its `insert_many`, unordered, several at once; then the same indexes.
pub async fn insert(uri: &str, folder: &Path) {
    let client = client(uri).await;
    client.database(DATABASE).drop().await.unwrap();
    for collection in COLLECTIONS {
        let bytes =
            std::fs::read(folder.join(DATABASE).join(format!("{collection}.bson"))).unwrap();
        let (mut tasks, mut batch, mut held) = (JoinSet::new(), Vec::new(), 0);
        for document in bson::documents(&bytes) {
            let document = document.unwrap();
            held += document.len();
            batch.push(RawDocumentBuf::from_bytes(document.to_vec()).unwrap());
            if held >= BATCH_BYTES {
                while tasks.len() >= WRITERS {
                    tasks.join_next().await.unwrap().unwrap();
                }
                let (client, full) = (client.clone(), std::mem::take(&mut batch));
                tasks.spawn(async move { send(&client, collection, full).await });
                held = 0;
            }
        }
        tasks.join_all().await;
        send(&client, collection, batch).await;
    }
    make_indexes(&client).await;
}

/// Makes empty collections.
pub async fn empties(uri: &str, count: u64) {
    let client = client(uri).await;
    let made = futures::stream::iter(0..count).map(|n| {
        let client = client.clone();
        async move {
            let name = format!("c{n:06}");
            client
                .database("empties")
                .run_command(doc! {"create": name})
                .await
                .unwrap();
        }
    });
    made.buffer_unordered(8).collect::<()>().await;
}
