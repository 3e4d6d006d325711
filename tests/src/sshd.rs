//! A real OpenSSH server, ended with the test; and a way to it that breaks where a test wants.

use crate::binary;
use crate::database::free_port;
use bk_core::settings::Settings;
use bk_sinks::ssh::Ssh;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A running one.
pub struct Sshd {
    /// Its port on loopback.
    pub port: u16,
    /// Its only account.
    pub user: String,
    folder: tempfile::TempDir,
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Sshd {
    /// Starts one with more lines of configuration; says loudly when that cannot be done here.
    pub fn start(lines: &[&str]) -> Option<Self> {
        match Self::started(lines) {
            Ok(server) => Some(server),
            Err(why) => {
                crate::skip(&format!("sshd did not start: {why}"));
                None
            }
        }
    }

    fn started(lines: &[&str]) -> Result<Self, String> {
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("servers/sshd");
        let mut child = Command::new(script)
            .arg(binary::cache())
            .arg(folder.path())
            .arg(port.to_string())
            .args(lines)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?)
            .read_line(&mut line)
            .map_err(|e| e.to_string())?;
        let user = line.trim().strip_prefix("ready ");
        let user = user.ok_or_else(|| format!("it said `{}`", line.trim()))?;
        Ok(Self {
            port,
            user: user.to_owned(),
            folder,
            child,
            stdin,
        })
    }

    /// Something in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where the account comes in.
    pub fn files(&self) -> PathBuf {
        self.path("files")
    }

    /// A folder in it that the account may write into.
    pub fn make_folder(&self, name: &str) {
        let path = self.files().join(name);
        std::fs::create_dir_all(&path).unwrap();
        give(&path, &self.files());
    }

    /// Its public key.
    pub fn host_key(&self) -> String {
        public(&self.path("hostkey.pub"))
    }

    /// The settings of a sink on it.
    pub fn table(&self, path: &str) -> serde_json::Value {
        serde_json::json!({
            "host": "127.0.0.1", "port": self.port, "user": self.user, "key": self.path("id"),
            "host_key": [self.host_key()], "path": path,
        })
    }

    /// A sink in one of its folders.
    pub fn sink(&self, path: &str) -> Ssh {
        self.make_folder(path);
        sink(self.table(path)).unwrap()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // The script ends the server when its standard input ends.
        self.stdin = None;
        let _ = self.child.wait();
    }
}

/// Gives a path to whom another belongs.
fn give(path: &Path, like: &Path) {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(like).unwrap();
    // Only root can and need do that.
    let _ = std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()));
}

/// Kind and digits of a public key.
pub fn public(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A sink by its settings.
pub fn sink(table: serde_json::Value) -> bk_core::error::Result<Ssh> {
    Ssh::new(&Settings {
        instance: "ssh".into(),
        folder: ".".into(),
        table: table.as_object().unwrap().clone(),
    })
}

/// A way to a port that ends when so many bytes have passed in both directions together; once.
pub struct Cutting {
    /// Its own port.
    pub port: u16,
    /// Bytes so far.
    pub passed: Arc<AtomicU64>,
    /// Bytes at which it breaks; 0: never.
    pub at: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Cutting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cutting {
    /// To a port on loopback.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (passed, at) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let own = listener.local_addr().unwrap().port();
        let (counted, limit) = (passed.clone(), at.clone());
        let task = tokio::spawn(async move {
            while let Ok((one, _)) = listener.accept().await {
                let (counted, limit) = (counted.clone(), limit.clone());
                tokio::spawn(async move {
                    let Ok(two) = TcpStream::connect(("127.0.0.1", port)).await else {
                        return;
                    };
                    let (one_read, one_write) = one.into_split();
                    let (two_read, two_write) = two.into_split();
                    tokio::select! {
                        () = pass(one_read, two_write, &counted, &limit) => {}
                        () = pass(two_read, one_write, &counted, &limit) => {}
                    }
                });
            }
        });
        Self {
            port: own,
            passed,
            at,
            task,
        }
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    passed: &AtomicU64,
    at: &AtomicU64,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(read) = from.read(&mut buffer).await else {
            return;
        };
        if read == 0 {
            return;
        }
        let before = passed.fetch_add(read as u64, Ordering::SeqCst);
        let limit = at.load(Ordering::SeqCst);
        if limit > 0 && (before..before + read as u64).contains(&limit) {
            let _ = to.write_all(&buffer[..(limit - before) as usize]).await;
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
