//! The real program, in a folder of its own: settings, sources, sinks; exit code, stdout and stderr.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A folder with a `plugins.toml`.
pub struct Home {
    folder: TempDir,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Home {
    /// With these settings.
    pub fn new(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("plugins.toml"), settings).unwrap();
        Self { folder }
    }

    /// A source `files` over `src`, a sink `local` in `out`.
    pub fn files() -> Self {
        let home = Self::new(
            "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[sink.local]\npath = \"out\"\n",
        );
        std::fs::create_dir(home.path("src")).unwrap();
        home
    }

    /// A path inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Whether something of this name stands beside the folder.
    pub fn folder_above(&self, name: &str) -> bool {
        self.folder.path().with_file_name(name).exists()
    }

    /// Writes a file inside, with its folders.
    pub fn write(&self, name: &str, body: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, body).unwrap();
    }

    /// The program, ready to run here.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("BK_CONFIG")
            .env("XDG_CONFIG_HOME", self.folder.path().join("none"));
        command.stdin(std::process::Stdio::null());
        command
    }

    /// Runs it to its end.
    pub fn bk(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    /// Runs it to its end and says its peak of memory in MiB, as far as it could be watched.
    pub fn bk_watched(&self, arguments: &[&str]) -> (Ran, u64) {
        // Into files: a pipe that nobody reads would hold up a program that says much.
        let (stdout, stderr) = (self.path(".stdout"), self.path(".stderr"));
        let file = |path: &Path| std::fs::File::create(path).unwrap();
        let mut child = self
            .command(arguments)
            .stdout(file(&stdout))
            .stderr(file(&stderr))
            .spawn()
            .unwrap();
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0;
        while child.try_wait().unwrap().is_none() {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let kib = text.lines().find_map(|line| {
                line.strip_prefix("VmHWM:")?
                    .trim()
                    .strip_suffix("kB")?
                    .trim()
                    .parse::<u64>()
                    .ok()
            });
            peak = peak.max(kib.unwrap_or(0) / 1024);
            std::thread::yield_now();
        }
        let ended = child.wait().unwrap();
        let output = Output {
            status: ended,
            stdout: std::fs::read(stdout).unwrap(),
            stderr: std::fs::read(stderr).unwrap(),
        };
        (output.into(), peak)
    }

    /// Names of the archives in `out`, sorted.
    pub fn archives(&self) -> Vec<String> {
        self.names_in("out")
            .into_iter()
            .filter(|name| name.contains(".tar.xz") && !name.ends_with(".sha256"))
            .collect()
    }

    /// All names in a folder, sorted.
    pub fn names_in(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(folder)) else {
            return Vec::new();
        };
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        Self {
            code: output
                .status
                .code()
                .unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Fails the test with everything that was said unless the code is this.
    #[track_caller]
    pub fn ended(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "stdout:\n{}\nstderr:\n{}",
            self.stdout, self.stderr
        );
        self
    }
}

/// The program that was built: `BK`, else the one beside this test in the target folder.
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("BK") {
        return path.into();
    }
    built("bk")
}

/// A program of this workspace, beside this test in the target folder.
pub fn built(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let path = here.parent().and_then(Path::parent).unwrap().join(name);
    assert!(
        path.exists(),
        "{} is not built; run tests/run, or cargo build --workspace first",
        path.display()
    );
    path
}

/// The folder where scripts unpack real components.
pub fn cache() -> PathBuf {
    std::env::var_os("BK_TEST_CACHE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache"),
        PathBuf::from,
    )
}

/// A program of the host or of the cache, or nothing.
pub fn tool(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = cache().join("root/usr/bin").join(name);
    std::env::split_paths(&folders)
        .map(|folder| folder.join(name))
        .chain([unpacked])
        .find(|path| path.is_file())
}
