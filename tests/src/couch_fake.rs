//! A CouchDB of our own, in memory: what was seen of a real 3.5.0 and matters to a backup. Sequences are opaque, shards come interleaved at
//! random, boundaries are new in each answer, numbers are normalised when they are written, attachments are stored compressed. Faults on demand.

mod documents;
mod http;
mod json;
mod multipart;
mod tree;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::TcpListener;
use tree::Tree;

/// What goes wrong, and when.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The answer's chunk, counted over all answers, at which the connection ends. Once.
    pub cut_at_chunk: Option<u64>,
    /// Of so many requests one is answered with a refusal that passes.
    pub storm: Option<u64>,
    /// As many answers of the feed end after their first rows, with the right end of the HTTP body.
    pub torn_feeds: u32,
    /// Replaced revisions are gone at once, as after a compaction.
    pub compacted: bool,
    /// Largest document that is taken.
    pub max_document: Option<usize>,
    /// Documents beyond which a request is not done in time.
    pub late_over: Option<usize>,
    /// Largest request that is taken.
    pub max_request: Option<usize>,
    /// A database that goes, and is made anew, as soon as one of its documents was read.
    pub replaced_while_read: Option<String>,
    /// The same, and it is not made again.
    pub deleted_while_read: Option<String>,
    /// Documents that are deleted as soon as their attachments are on their way.
    pub deleted_while_streamed: Option<String>,
}

type OnRead = Box<dyn FnMut(&mut Site) + Send>;

/// All that is in it.
pub struct Site {
    /// Databases by name.
    pub databases: BTreeMap<String, Database>,
    /// Account and password; nothing: everybody may do everything.
    account: Option<(String, String)>,
    /// Wrong tries.
    pub failed_logins: u32,
    /// Faults to come.
    pub faults: Faults,
    /// Requests so far, by method and path without its query.
    pub requests: Vec<String>,
    /// Chunks of answers so far.
    pub chunks: u64,
    /// Nodes of the cluster, and those that are up.
    pub nodes: (Vec<String>, Vec<String>),
    random: u64,
    births: u64,
    deletions: u32,
    on_read: Option<OnRead>,
}

/// A database.
pub struct Database {
    /// Shards.
    pub q: u32,
    /// Copies.
    pub n: u32,
    /// Whether ids name their partition.
    pub partitioned: bool,
    /// Documents.
    pub documents: BTreeMap<String, Tree>,
    /// Documents that stay here.
    pub local: BTreeMap<String, (u64, String)>,
    /// Who may read and write, as it was set.
    pub security: Option<String>,
    /// Revisions of a history that are kept.
    pub revs_limit: usize,
    /// Purges that are remembered.
    pub purged_infos_limit: u64,
    purges: u64,
    born: u64,
    /// Of each shard, how many writes there were.
    writes: Vec<u64>,
}

/// The server. Ends with its handle.
pub struct Fake {
    /// Its port on loopback.
    pub port: u16,
    site: Arc<Mutex<Site>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    /// An empty server, set up, with an account where there is one.
    pub async fn start(account: Option<(&str, &str)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let node = vec!["couchdb@127.0.0.1".to_owned()];
        let mut site = Site {
            databases: BTreeMap::new(),
            account: account.map(|(user, password)| (user.into(), password.into())),
            failed_logins: 0,
            faults: Faults::default(),
            requests: Vec::new(),
            chunks: 0,
            nodes: (node.clone(), node),
            random: 0x9e37_79b9_7f4a_7c15 ^ u64::from(port),
            births: 0,
            deletions: 0,
            on_read: None,
        };
        for name in ["_users", "_replicator"] {
            site.create(name, 2, 1, false);
        }
        let site = Arc::new(Mutex::new(site));
        let shared = site.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(http::serve(stream, shared.clone()));
            }
        });
        Self { port, site, task }
    }

    /// What is in it.
    pub fn site(&self) -> MutexGuard<'_, Site> {
        self.site
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// How to get there.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Done whenever documents are read by leaf.
    pub fn on_read(&self, act: impl FnMut(&mut Site) + Send + 'static) {
        self.site().on_read = Some(Box::new(act));
    }
}

impl Site {
    /// A new database in place of whatever was there.
    pub fn create(&mut self, name: &str, q: u32, n: u32, partitioned: bool) {
        self.births += 1;
        let database = Database {
            q,
            n,
            partitioned,
            documents: BTreeMap::new(),
            local: BTreeMap::new(),
            security: None,
            revs_limit: 1000,
            purged_infos_limit: 1000,
            purges: 0,
            born: 1_700_000_000 + self.births,
            writes: vec![0; q as usize],
        };
        self.databases.insert(name.to_owned(), database);
    }

    /// A number that nobody foresees.
    fn random(&mut self) -> u64 {
        // SplitMix64, by its public description.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A boundary of 32 hexadecimal digits.
    fn boundary(&mut self) -> String {
        format!("{:016x}{:016x}", self.random(), self.random())
    }
}

impl Database {
    /// Which shard a document lies in.
    fn shard(&self, id: &str) -> usize {
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, id.as_bytes());
        ((crc * u64::from(self.q)) >> 32) as usize
    }

    /// Purges a leaf.
    pub fn purge(&mut self, id: &str, rev: &str) {
        if let Some(tree) = self.documents.get_mut(id) {
            tree.purge(rev);
            if tree.leaves.is_empty() {
                self.documents.remove(id);
            }
        }
        self.purges += 1;
    }
}
