//! A real Kubernetes API on loopback, with etcd and the controllers, ended with the test.

use crate::binary;
use crate::database::free_port;
use crate::script::Script;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A running one.
pub struct Kubernetes {
    // Before its folder goes.
    script: Script,
    folder: tempfile::TempDir,
}

impl Kubernetes {
    /// Starts an empty one; says loudly when that cannot be done here.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// The same with a second API on the same etcd that has no cache, at `uncached.conf`.
    pub fn start_uncached() -> Option<Self> {
        Self::start_with(&["uncached"])
    }

    fn start_with(more: &[&str]) -> Option<Self> {
        match Self::started(more) {
            Ok(cluster) => Some(cluster),
            Err(why) => {
                crate::skip(&format!("Kubernetes did not start: {why}"));
                None
            }
        }
    }

    fn started(more: &[&str]) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let at = (folder.path(), free_port());
        let script = Script::start("kubernetes", at, more, &[])?;
        Ok(Self { folder, script })
    }

    /// Lets etcd forget all but the newest state.
    pub fn compact(&self) {
        let port = &self.script.said;
        let call = |path: &str, body: &str| {
            let output = Command::new("curl")
                .args([
                    "-sf",
                    &format!("http://127.0.0.1:{port}/v3/kv/{path}"),
                    "-d",
                    body,
                ])
                .output()
                .unwrap();
            assert!(output.status.success(), "etcd {path}");
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
        };
        let now = call("range", "{\"key\":\"AA==\"}")["header"]["revision"].clone();
        let body = serde_json::json!({ "revision": now, "physical": true }).to_string();
        call("compaction", &body);
    }

    /// A kubeconfig of an account of its own.
    pub fn config_of(&self, namespace: &str, account: &str) -> String {
        let token = self.kubectl(&["-n", namespace, "create", "token", account], "");
        let admin = std::fs::read_to_string(self.kubeconfig()).unwrap();
        let (head, rest) = admin.split_once("token: \"").unwrap();
        let (_, tail) = rest.split_once('"').unwrap();
        format!("{head}token: \"{}\"{tail}", token.trim())
    }

    /// `kubectl proxy`: the API without encryption, for what must look into requests. Ends with its handle.
    pub fn plain(&self) -> Plain {
        Self::plain_of(&self.kubeconfig())
    }

    /// The same before the API that has no cache.
    pub fn plain_uncached(&self) -> Plain {
        Self::plain_of(&self.folder.path().join("uncached.conf"))
    }

    fn plain_of(kubeconfig: &std::path::Path) -> Plain {
        let mut child = Command::new(binary::cache().join("kubectl/usr/bin/kubectl"))
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["proxy", "--port=0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It listens before it says where; a line that ends sooner is the end of it.
        let mut said = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut said).unwrap();
        let port = said.trim().rsplit(':').next().and_then(|p| p.parse().ok());
        let mut plain = Plain { port: 0, child };
        plain.port = port.unwrap_or_else(|| panic!("kubectl proxy says `{}`", said.trim()));
        plain
    }

    /// The kubeconfig of who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("admin.conf")
    }

    /// The one that all tests of a file share, each in namespaces of its own.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: std::sync::OnceLock<Option<Kubernetes>> = std::sync::OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    /// `[source.k8s]` for it, with more lines. There are no machines, so that nothing ever becomes ready.
    pub fn source(&self, more: &str) -> String {
        let patience = if more.contains("ready_seconds") {
            ""
        } else {
            "ready_seconds = 0\n"
        };
        format!(
            "[source.k8s]\nkubeconfig = \"{}\"\nsecrets = \"include\"\n{patience}{more}\n",
            self.kubeconfig().display()
        )
    }

    /// Settings with it as the only source and a folder as the only sink.
    pub fn home(&self, more: &str) -> binary::Home {
        binary::Home::new(&format!(
            "format = 1\nplugins = [\"k8s\", \"local\"]\n{}[sink.local]\npath = \"out\"\n",
            self.source(more)
        ))
    }

    /// The same for the archives of another.
    pub fn home_with(&self, archives: &binary::Home, more: &str) -> binary::Home {
        binary::Home::new(&format!(
            "format = 1\nplugins = [\"k8s\", \"local\"]\n{}[sink.local]\npath = \"{}\"\n",
            self.source(more),
            archives.path("out").display()
        ))
    }

    /// A new namespace with these objects, made as `kubectl create` makes them.
    pub fn namespace(&self, name: &str, objects: &str) {
        self.kubectl(&["create", "namespace", name], "");
        if !objects.trim().is_empty() {
            self.create(name, objects);
        }
    }

    /// Objects in a namespace, without what `kubectl apply` remembers.
    pub fn create(&self, namespace: &str, objects: &str) {
        // Its account comes first: pods are refused without one.
        self.until("its account is there", || {
            self.object(namespace, "serviceaccount", "default")
                .is_some()
        });
        self.kubectl(&["-n", namespace, "create", "-f", "-"], objects);
    }

    /// Deletes a namespace and waits until it is gone.
    pub fn delete_namespace(&self, name: &str) {
        self.kubectl(&["delete", "namespace", name, "--timeout=300s"], "");
    }

    /// Object and version of everything in a namespace.
    pub fn versions(&self, namespace: &str, kinds: &str) -> String {
        let path =
            "jsonpath={range .items[*]}{.kind}/{.metadata.name}={.metadata.resourceVersion} {end}";
        self.kubectl(&["-n", namespace, "get", kinds, "-o", path], "")
    }

    /// Waits until something of the cluster is so.
    #[track_caller]
    pub fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        crate::until(what, Duration::from_mins(4), is_so);
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
        let arguments = [&arguments[..], &["--show-managed-fields"]].concat();
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

/// A running `kubectl proxy`.
pub struct Plain {
    /// On loopback.
    pub port: u16,
    child: std::process::Child,
}

impl Drop for Plain {
    fn drop(&mut self) {
        // It is gone already where its test ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A kubeconfig for an API without encryption on a port of loopback.
pub fn plain_config(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: \"http://127.0.0.1:{port}\"}}}}]\nusers: [{{name: c, user: {{}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: c}}}}]\n"
    )
}
