//! A real Kubernetes API on loopback, with etcd and the controllers, ended with the test.

use crate::binary;
use crate::database::free_port;
use crate::script::Script;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A running one.
pub struct Kubernetes {
    // Before its folder goes.
    _script: Script,
    folder: tempfile::TempDir,
}

impl Kubernetes {
    /// Starts an empty one; says loudly when that cannot be done here.
    pub fn start() -> Option<Self> {
        match Self::started() {
            Ok(cluster) => Some(cluster),
            Err(why) => {
                crate::skip(&format!("Kubernetes did not start: {why}"));
                None
            }
        }
    }

    fn started() -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let at = (folder.path(), free_port());
        let script = Script::start("kubernetes", at, &[""; 0], &[])?;
        Ok(Self {
            folder,
            _script: script,
        })
    }

    /// The kubeconfig of who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("admin.conf")
    }

    /// `[source.k8s]` for it, with more lines.
    pub fn source(&self, more: &str) -> String {
        format!(
            "[source.k8s]\nkubeconfig = \"{}\"\nsecrets = \"include\"\n{more}\n",
            self.kubeconfig().display()
        )
    }

    /// `kubectl`, with these arguments and this on its standard input.
    pub fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = Command::new(binary::cache().join("kubectl/usr/bin/kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(arguments)
            .env("HOME", self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        let writer = std::thread::spawn(move || {
            // One that reads nothing closes it.
            let _ = stdin.write_all(input.as_bytes());
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// The same, which must succeed; its standard output.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// An object as JSON, or nothing.
    pub fn object(&self, namespace: &str, kind: &str, name: &str) -> Option<serde_json::Value> {
        let arguments = ["-n", namespace, "get", kind, name, "-o", "json"];
        let output = self.run(&arguments, "");
        let text = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            assert!(text.contains("NotFound"), "{text}");
            return None;
        }
        Some(serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Every object of a namespace by kind and name, without what every write and every cluster changes.
    pub fn contents(&self, namespace: &str, kinds: &str) -> Vec<(String, serde_json::Value)> {
        let text = self.kubectl(&["-n", namespace, "get", kinds, "-o", "json"], "");
        let list: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut all: Vec<_> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|object| {
                let mut object = object.clone();
                let name = format!("{}/{}", object["kind"], object["metadata"]["name"]);
                object.as_object_mut().unwrap().remove("status");
                let metadata = object["metadata"].as_object_mut().unwrap();
                for key in ["uid", "resourceVersion", "generation", "creationTimestamp"] {
                    metadata.remove(key);
                }
                (name, object)
            })
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}
