//! Real object stores, each ended with the test program: Ceph's gateway, an emulator; buckets made and looked into by a client of the tests' own.

use crate::binary;
use crate::database::free_port;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use bk_sinks::s3::{S3, S3Settings};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ceph's gateway, of Debian's unstable suite.
    Radosgw,
    /// An emulator that is always to be had, and that believes everything.
    Moto,
    /// An emulator of Azure Blob Storage.
    Azurite,
}

impl Kind {
    fn script(self) -> &'static str {
        match self {
            Self::Radosgw => "radosgw",
            Self::Moto => "moto",
            Self::Azurite => "azurite",
        }
    }
}

/// A running store.
pub struct Server {
    /// Which.
    pub kind: Kind,
    /// Its port on loopback.
    pub port: u16,
    _folder: tempfile::TempDir,
    talk: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    _child: Child,
}

impl Server {
    /// Starts one of its own; nothing where its programs cannot be had.
    #[expect(
        clippy::zombie_processes,
        reason = "it ends with this program, by the end of its standard input"
    )]
    pub fn start(kind: Kind, options: &[&str]) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("bk-s3-").tempdir().unwrap();
        let port = free_port();
        let script =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("servers/{}", kind.script()));
        let mut child = Command::new(script)
            .arg(binary::cache())
            .arg(folder.path())
            .arg(port.to_string())
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        if line.trim() != "ready" {
            // Debian's unstable suite cannot be resolved on some days.
            let missing = kind == Kind::Radosgw && !binary::cache().join("ceph/.whole").exists();
            if missing {
                eprintln!("SKIPPED: Ceph cannot be had from Debian's unstable suite today");
            } else {
                crate::skip(&format!("{kind:?} did not start"));
            }
            return None;
        }
        Some(Self {
            kind,
            port,
            _folder: folder,
            talk: Mutex::new((stdin, stdout)),
            _child: child,
        })
    }

    /// The one that all tests of a program share.
    pub fn shared(kind: Kind) -> Option<&'static Self> {
        static SERVERS: [OnceLock<Option<Server>>; 3] = [const { OnceLock::new() }; 3];
        SERVERS[kind as usize]
            .get_or_init(|| Self::start(kind, &[]))
            .as_ref()
    }

    /// Runs the gateway's administration program: what it printed.
    pub fn admin(&self, arguments: &str) -> String {
        let mut talk = self.talk.lock().unwrap();
        writeln!(talk.0, "{arguments}").unwrap();
        let mut said = String::new();
        loop {
            let mut line = String::new();
            assert!(talk.1.read_line(&mut line).unwrap() > 0, "the store ended");
            if let Some(code) = line.strip_prefix("exit ") {
                assert_eq!(code.trim(), "0", "radosgw-admin {arguments}: {said}");
                return said;
            }
            said.push_str(&line);
        }
    }

    /// Where it is.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A client of the tests' own.
    pub fn client(&self) -> Client {
        client(&self.endpoint(), "test", "testtest")
    }

    /// A new bucket.
    pub async fn bucket(&self, versions: Versions) -> Bucket {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("bucket{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let client = self.client();
        client.create_bucket().bucket(&name).send().await.unwrap();
        let bucket = Bucket {
            endpoint: self.endpoint(),
            name,
            client,
        };
        match versions {
            Versions::Never => {}
            Versions::Enabled => bucket.versioning(BucketVersioningStatus::Enabled).await,
            Versions::Suspended => {
                bucket.versioning(BucketVersioningStatus::Enabled).await;
                bucket.versioning(BucketVersioningStatus::Suspended).await;
            }
        }
        bucket
    }
}

/// A client for a store.
pub fn client(endpoint: &str, access: &str, secret: &str) -> Client {
    let config = aws_sdk_s3::config::Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .credentials_provider(Credentials::new(access, secret, None, None, "tests"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Client::from_conf(config)
}

/// Whether a bucket keeps versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// It never did.
    Never,
    /// Every write is one.
    Enabled,
    /// It did once.
    Suspended,
}

/// A bucket.
#[derive(Clone)]
pub struct Bucket {
    /// Where its store is.
    pub endpoint: String,
    /// Its name.
    pub name: String,
    /// To look into it.
    pub client: Client,
}

impl Bucket {
    async fn versioning(&self, status: BucketVersioningStatus) {
        self.client
            .put_bucket_versioning()
            .bucket(&self.name)
            .versioning_configuration(VersioningConfiguration::builder().status(status).build())
            .send()
            .await
            .unwrap();
    }

    /// Settings of a sink in it.
    pub fn settings(&self) -> serde_json::Value {
        serde_json::json!({ "bucket": self.name, "endpoint": self.endpoint, "access_key": "test", "secret_key": "testtest" })
    }

    /// `[sink.NAME]` for it.
    pub fn toml(&self, name: &str) -> String {
        format!(
            "[sink.{name}]\nplugin = \"s3\"\nbucket = \"{}\"\nendpoint = \"{}\"\naccess_key = \"test\"\nsecret_key = \"testtest\"\n",
            self.name, self.endpoint
        )
    }

    /// A sink in it.
    pub fn sink(&self) -> S3 {
        sink(self.settings())
    }

    /// A sink in it, with more settings.
    pub fn sink_with(&self, more: serde_json::Value) -> S3 {
        let mut settings = self.settings();
        settings
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        sink(settings)
    }

    /// Removes every version of what begins so.
    pub async fn remove(&self, prefix: &str) {
        for (key, version, _) in self.everything_under(prefix).await {
            let delete = self.client.delete_object().bucket(&self.name).key(key);
            delete.version_id(version).send().await.unwrap();
        }
    }

    /// Keys, version ids and sizes of all that lies in it, delete markers with size -1; sorted.
    pub async fn everything(&self) -> Vec<(String, String, i64)> {
        self.everything_under("").await
    }

    async fn everything_under(&self, prefix: &str) -> Vec<(String, String, i64)> {
        let mut found = Vec::new();
        let (mut key, mut version) = (None, None);
        loop {
            let page = self
                .client
                .list_object_versions()
                .bucket(&self.name)
                .prefix(prefix)
                .set_key_marker(key)
                .set_version_id_marker(version)
                .send()
                .await
                .unwrap();
            found.extend(page.versions().iter().map(|v| {
                (
                    v.key().unwrap().to_owned(),
                    v.version_id().unwrap_or_default().to_owned(),
                    v.size().unwrap_or(0),
                )
            }));
            found.extend(page.delete_markers().iter().map(|v| {
                (
                    v.key().unwrap().to_owned(),
                    v.version_id().unwrap_or_default().to_owned(),
                    -1,
                )
            }));
            if !page.is_truncated().unwrap_or(false) {
                found.sort();
                return found;
            }
            key = page.next_key_marker().map(str::to_owned);
            version = page.next_version_id_marker().map(str::to_owned);
        }
    }

    /// Uploads that are open.
    pub async fn uploads(&self) -> usize {
        let open = self
            .client
            .list_multipart_uploads()
            .bucket(&self.name)
            .send()
            .await
            .unwrap();
        open.uploads().len()
    }
}

/// A sink with these settings.
pub fn sink(table: serde_json::Value) -> S3 {
    let settings = bk_core::settings::Settings {
        instance: "s3".into(),
        folder: ".".into(),
        table: table.as_object().unwrap().clone(),
    };
    S3::new(S3Settings::new(&settings).unwrap())
}
