//! A real OpenSSH server, ended with the test; and a way to it that breaks where a test wants.

use crate::database::free_port;
use crate::script::Script;
use bk_core::settings::Settings;
use bk_sinks::ssh::Ssh;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A running one.
pub struct Sshd {
    /// Its port on loopback.
    pub port: u16,
    /// Its only account.
    pub user: String,
    // Before its folder goes.
    _script: Script,
    folder: tempfile::TempDir,
}

impl Sshd {
    /// Starts one with more lines of configuration; says loudly when that cannot be done here.
    pub fn start(lines: &[&str]) -> Option<Self> {
        Self::start_with(lines, None)
    }

    /// The same with a disk of so many MiB as `small` in its folder, which only the server sees.
    pub fn start_with_small_disk(mib: u64) -> Option<Self> {
        Self::start_with(&[], Some(mib))
    }

    fn start_with(lines: &[&str], small_disk_mib: Option<u64>) -> Option<Self> {
        match Self::started(lines, small_disk_mib) {
            Ok(server) => Some(server),
            Err(why) => {
                crate::skip(&format!("sshd did not start: {why}"));
                None
            }
        }
    }

    fn started(lines: &[&str], small_disk_mib: Option<u64>) -> Result<Self, String> {
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let small = small_disk_mib.map(|mib| ("BK_SMALL_DISK", mib.to_string()));
        let environment: Vec<_> = small.into_iter().collect();
        let script = Script::start("sshd", (folder.path(), port), lines, &environment)?;
        Ok(Self {
            port,
            user: script.said.clone(),
            _script: script,
            folder,
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

    /// Its process.
    pub fn pid(&self) -> u32 {
        let text = std::fs::read_to_string(self.path("pid")).unwrap();
        text.trim().parse().unwrap()
    }

    /// A folder in it that the account may write into.
    pub fn make_folder(&self, name: &str) {
        let path = self.files().join(name);
        std::fs::create_dir_all(&path).unwrap();
        give(&path, &self.files());
    }

    /// A folder with the files of another one, as if the account had made them.
    pub fn take_in(&self, name: &str, from: &Path) {
        self.make_folder(name);
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let to = self.files().join(name).join(path.file_name().unwrap());
                std::fs::copy(&path, &to).unwrap();
                give(&to, &self.files());
            }
        }
    }

    /// Looks at what its processes call from now on, and puts faults into it as `strace` is told.
    pub fn traced(&self, options: &[&str]) -> Traced {
        let (log, pid) = (self.path("strace.log"), self.pid());
        drop(std::fs::remove_file(&log));
        let child = std::process::Command::new("strace")
            .args(["-f", "-y", "-s", "0", "-o"])
            .arg(&log)
            .args(options)
            .args(["-p", &pid.to_string()])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let status = format!("/proc/{pid}/status");
        let is_traced = || {
            let status = std::fs::read_to_string(&status).unwrap();
            let tracer = status.lines().find(|line| line.starts_with("TracerPid:"));
            tracer.is_some_and(|line| !line.ends_with("\t0"))
        };
        while !is_traced() {
            std::thread::yield_now();
        }
        Traced { child, log }
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

    /// The settings of a host that a connection goes through.
    pub fn jump_table(&self) -> serde_json::Value {
        let mut table = self.table("");
        if let Some(table) = table.as_object_mut() {
            table.remove("path");
        }
        table
    }

    /// A sink in one of its folders.
    pub fn sink(&self, path: &str) -> Ssh {
        self.make_folder(path);
        sink(self.table(path)).unwrap()
    }
}

/// A server that is looked at.
pub struct Traced {
    child: std::process::Child,
    log: PathBuf,
}

impl Traced {
    /// Ends that; what was seen.
    pub fn log(mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It lets go of the server and ends.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        drop(self.child.wait());
        std::fs::read_to_string(&self.log).unwrap_or_default()
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

/// The table of a sink in `plugins.toml`: what JSON writes of texts, numbers and lists, TOML reads; of a table inside it wants other signs.
pub fn toml_of(name: &str, table: &serde_json::Value) -> String {
    let lines = table.as_object().unwrap().iter().map(|(key, value)| {
        let text = value.to_string();
        let text = if value.is_object() {
            text.replace("\":", "\" = ")
        } else {
            text
        };
        format!("{key} = {text}\n")
    });
    format!("[sink.{name}]\n{}", lines.collect::<String>())
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

/// A way to a port that is as long, and as narrow, as it is told.
pub struct Link {
    /// Its own port.
    pub port: u16,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Bytes of one piece on a link, and pieces on their way: more than any window.
const PIECE_BYTES: usize = 64 << 10;
const PIECES: usize = 2048;

impl Link {
    /// To a port on loopback: so long from end to end, so many bytes in a second each way.
    pub async fn to(port: u16, one_way: Duration, bytes_per_second: Option<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::from(listener, port, one_way, bytes_per_second)
    }

    /// The same from a listener.
    pub fn from(
        listener: TcpListener,
        port: u16,
        one_way: Duration,
        bytes_per_second: Option<u64>,
    ) -> Self {
        let own = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((one, _)) = listener.accept().await {
                let Ok(two) = TcpStream::connect(("127.0.0.1", port)).await else {
                    return;
                };
                one.set_nodelay(true).unwrap();
                two.set_nodelay(true).unwrap();
                let (one_read, one_write) = one.into_split();
                let (two_read, two_write) = two.into_split();
                tokio::spawn(carry(one_read, two_write, one_way, bytes_per_second));
                tokio::spawn(carry(two_read, one_write, one_way, bytes_per_second));
            }
        });
        Self { port: own, task }
    }
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin + Send + 'static,
    mut to: impl AsyncWriteExt + Unpin,
    one_way: Duration,
    bytes_per_second: Option<u64>,
) {
    let pieces = bytes_per_second.map_or(PIECES, |_| 1);
    let (on_its_way, mut arrives) = tokio::sync::mpsc::channel(pieces);
    tokio::spawn(async move {
        let most = bytes_per_second.map_or(PIECE_BYTES, |rate| (rate / 8) as usize);
        loop {
            let mut piece = vec![0; most];
            let Ok(read) = from.read(&mut piece).await else {
                return;
            };
            piece.truncate(read);
            let due = tokio::time::Instant::now() + one_way;
            if read == 0 || on_its_way.send((due, piece)).await.is_err() {
                return;
            }
        }
    });
    while let Some((due, piece)) = arrives.recv().await {
        if let Some(rate) = bytes_per_second {
            tokio::time::sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64)).await;
        }
        tokio::time::sleep_until(due).await;
        if to.write_all(&piece).await.is_err() {
            return;
        }
    }
    // The other side has ended; what it sent is there.
    drop(to.shutdown().await);
}
