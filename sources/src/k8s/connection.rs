//! The way to the API: a client by kubeconfig or by the pod's account, raw JSON, and retries of our own: what reads is asked again, what writes never
//! blindly.

use crate::k8s::K8sSettings;
use crate::k8s::discovery::Kind;
use crate::k8s::object;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, bug, settings};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Patience with one answer.
const ANSWER: Duration = Duration::from_mins(1);
const CONNECT: Duration = Duration::from_secs(10);
/// How long a request that only reads is repeated, and the longest pause between two tries.
const PATIENCE: Duration = Duration::from_mins(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often a write is repeated that may be done twice.
const TRIES: usize = 4;
/// Requests that may come at once after a quiet time, in seconds' worth.
const BURST_SECONDS: f64 = 2.0;
/// Questions about rights that are asked side by side.
const REVIEWS_AT_ONCE: usize = 16;

/// As what this program owns the fields that it writes, until their owners are written down again.
pub const MANAGER: &str = "bk-restore";

/// A connection. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    client: kube::Client,
    cx: Context,
    describe: Arc<str>,
    namespace: Arc<str>,
    budget: Arc<Mutex<Budget>>,
}

/// Who the server is.
#[derive(Clone, Debug)]
pub struct Server {
    /// UID of the namespace `kube-system`, which lives as long as the cluster.
    pub identity: String,
    /// `v1.34.4`.
    pub version: String,
}

/// What the server said to one request.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body, JSON in all that is asked for here.
    pub body: Value,
    /// `Warning:` headers.
    pub warnings: Vec<String>,
    /// How long the server asks to wait.
    pub retry_after: Option<Duration>,
}

impl Answer {
    /// The body of a good answer, or the refusal as an error.
    pub fn good(self, doing: &str) -> Result<Value> {
        if (200..300).contains(&self.status) {
            Ok(self.body)
        } else {
            Err(self.refusal(doing))
        }
    }

    /// What was found by looking, as the answer to a write that was lost.
    pub fn of(body: Value) -> Self {
        Self {
            status: 200,
            body,
            warnings: Vec::new(),
            retry_after: None,
        }
    }

    /// The server's own words.
    pub fn message(&self) -> String {
        let message = self.body.get("message").and_then(Value::as_str);
        message.map_or_else(|| format!("HTTP status {}", self.status), str::to_owned)
    }

    /// The word for machines, `AlreadyExists`.
    pub fn reason(&self) -> &str {
        let reason = self.body.get("reason").and_then(Value::as_str);
        reason.unwrap_or_default()
    }

    /// A refusal as an error.
    pub fn refusal(&self, doing: &str) -> Error {
        let kind = match self.status {
            400 => ErrorKind::Settings,
            401 => ErrorKind::Auth,
            403 => ErrorKind::Denied,
            404 => ErrorKind::NotFound,
            409 | 422 => ErrorKind::Conflict,
            429 | 500..=599 => ErrorKind::Unreachable,
            _ => ErrorKind::Plugin,
        };
        Error::new(kind, format!("{doing}: {}", self.message()))
    }
}

/// Requests that may be made now.
struct Budget {
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl Budget {
    /// How long to wait before the next request.
    fn take(&mut self) -> Duration {
        let now = Instant::now();
        let passed = now.duration_since(self.at).as_secs_f64();
        let most = self.per_second * BURST_SECONDS;
        self.tokens = (self.tokens + passed * self.per_second).min(most) - 1.0;
        self.at = now;
        if self.tokens >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64(-self.tokens / self.per_second)
        }
    }
}

impl Api {
    /// By the settings. Nothing is asked yet.
    pub async fn connect(cx: &Context, from: &K8sSettings) -> Result<Self> {
        let options = KubeConfigOptions {
            context: from.context.clone(),
            ..KubeConfigOptions::default()
        };
        let loaded = match &from.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|e| {
                    settings(format!("`kubeconfig`: `{}` cannot be used", path.display()))
                        .because(e)
                })?;
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .map_err(|e| {
                        let what = format!("`kubeconfig`: `{}` cannot be used", path.display());
                        settings(what).because(e)
                    })
            }
            None if from.context.is_some() => Config::from_kubeconfig(&options)
                .await
                .map_err(|e| settings("`context` cannot be used").because(e)),
            None => Config::infer().await.map_err(|e| {
                settings("there is neither a kubeconfig nor the account of a pod")
                    .because(e)
                    .hint("set `kubeconfig`, or KUBECONFIG")
            }),
        };
        let mut config = loaded?;
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(ANSWER);
        config.write_timeout = Some(ANSWER);
        // It repeats also what writes, and a POST whose answer was lost may have been done.
        config.default_retry = false;
        let describe = config.cluster_url.to_string();
        let namespace = config.default_namespace.as_str().into();
        let client = kube::Client::try_from(config)
            .map_err(|e| settings(format!("no way to {describe}")).because(e))?;
        let per_second = f64::from(from.requests_per_second);
        Ok(Self {
            client,
            cx: cx.clone(),
            describe: describe.trim_end_matches('/').into(),
            namespace,
            budget: Arc::new(Mutex::new(Budget {
                per_second,
                tokens: per_second * BURST_SECONDS,
                at: Instant::now(),
            })),
        })
    }

    /// The namespace of the kubeconfig's context, or of the pod that this runs in.
    pub fn own_namespace(&self) -> &str {
        &self.namespace
    }

    /// Writes what may be written twice: again where an answer was lost, or somebody between says that it came too late.
    pub async fn insist(&self, method: &Method, path: &str, body: &Value) -> Result<Answer> {
        let content_type = match *method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        for _ in 0..TRIES {
            match self.send_as(method, path, Some(body), content_type).await {
                Ok(answer) if matches!(answer.status, 502..=504) => {}
                Err(error) if error.kind == ErrorKind::Unreachable => {}
                other => return other,
            }
            self.cx.pause(Duration::from_millis(200)).await?;
        }
        self.send_as(method, path, Some(body), content_type).await
    }

    /// Changes what the patch names of an object.
    pub async fn patch(&self, path: &str, change: &Value) -> Result<Answer> {
        self.send_as(
            &Method::PATCH,
            path,
            Some(change),
            "application/merge-patch+json",
        )
        .await
    }

    /// Where the server is.
    pub fn describe(&self) -> &str {
        &self.describe
    }

    /// Sends one request once.
    pub async fn send(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        self.send_as(method, path, body, "application/json").await
    }

    /// The same with another type of body: a patch.
    pub async fn send_as(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        content_type: &str,
    ) -> Result<Answer> {
        self.send_with(method, path, body, (content_type, "application/json"))
            .await
    }

    /// Sends it, and again while the server says that it has too much to do: it has done nothing then.
    async fn send_with(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        types: (&str, &str),
    ) -> Result<Answer> {
        let began = Instant::now();
        loop {
            let answer = self.send_once(method, path, body, types).await?;
            let wait = answer.retry_after.unwrap_or(Duration::from_secs(1));
            if answer.status != 429 || began.elapsed() + wait > PATIENCE {
                return Ok(answer);
            }
            tracing::debug!(path, seconds = wait.as_secs(), "the server asked to wait");
            self.cx.pause(wait).await?;
        }
    }

    async fn send_once(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        (content_type, accept): (&str, &str),
    ) -> Result<Answer> {
        let pause = self
            .budget
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.cx.pause(pause).await?;
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).map_err(|e| bug(e.to_string()))?,
            None => Vec::new(),
        };
        let uri = match *method {
            Method::GET | Method::DELETE => path.to_owned(),
            _ if path.contains('?') => format!("{path}&fieldManager={MANAGER}"),
            _ => format!("{path}?fieldManager={MANAGER}"),
        };
        let mut request = Request::builder()
            .method(method.clone())
            .uri(uri)
            .header("Accept", accept);
        if body.is_some() {
            request = request.header("Content-Type", content_type);
        }
        let request = request
            .body(Body::from(bytes))
            .map_err(|e| bug(format!("`{path}` is no path: {e}")))?;
        let late = || self.unreachable(&format!("no answer within {} s", ANSWER.as_secs()));
        let answer = async {
            let answer = self
                .client
                .send(request)
                .await
                .map_err(|e| self.failed(e))?;
            let (parts, body) = answer.into_parts();
            let body = body.collect().await;
            let body = body.map_err(|e| self.unreachable(&format!("the answer broke off: {e}")))?;
            let warnings = parts.headers.get_all("warning").iter();
            let warnings = warnings.filter_map(|w| w.to_str().ok().map(str::to_owned));
            let retry_after = parts.headers.get("retry-after");
            let retry_after = retry_after.and_then(|v| v.to_str().ok()?.parse().ok());
            let body = body.to_bytes();
            let parsed = serde_json::from_slice(&body).ok();
            if parsed.is_none() && parts.status.is_success() {
                let what = format!("{}: the answer is no JSON", self.describe);
                return Err(Error::new(ErrorKind::Plugin, what));
            }
            Ok(Answer {
                retry_after: retry_after.map(Duration::from_secs),
                status: parts.status.as_u16(),
                warnings: warnings.collect(),
                body: parsed.unwrap_or_else(|| as_message(&body)),
            })
        };
        self.cx.within(ANSWER, late, answer).await
    }

    fn unreachable(&self, why: &str) -> Error {
        Error::new(ErrorKind::Unreachable, format!("{}: {why}", self.describe))
    }

    fn failed(&self, error: kube::Error) -> Error {
        match error {
            kube::Error::Auth(e) => Error::new(
                ErrorKind::Auth,
                format!("{}: the credentials cannot be used", self.describe),
            )
            .because(e),
            other => self.unreachable("no connection").because(other),
        }
    }

    /// Asks, and asks again while the server is busy or away.
    pub async fn ask(&self, path: &str) -> Result<Answer> {
        self.ask_as(path, "application/json").await
    }

    /// The same for another form of the answer.
    pub async fn ask_as(&self, path: &str, accept: &str) -> Result<Answer> {
        let began = Instant::now();
        let mut pause = Duration::from_millis(200);
        loop {
            let asked = self
                .send_with(&Method::GET, path, None, ("application/json", accept))
                .await;
            let is_over = began.elapsed() >= PATIENCE;
            match asked {
                Ok(answer) if matches!(answer.status, 502..=504) && !is_over => {}
                Err(error) if error.kind == ErrorKind::Unreachable && !is_over => {
                    tracing::debug!(%error, path, "asked again");
                }
                other => return other,
            }
            self.cx.pause(pause).await?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// What lies at a path.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.ask(path).await?.good(&format!("reading `{path}`"))
    }

    /// The same, or nothing where there is nothing.
    pub async fn find(&self, path: &str) -> Result<Option<Value>> {
        let answer = self.ask(path).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        answer.good(&format!("reading `{path}`")).map(Some)
    }

    /// Who it is.
    pub async fn server(&self) -> Result<Server> {
        let version = self.get("/version").await?;
        let version = version.get("gitVersion").and_then(Value::as_str);
        let system = self.find("/api/v1/namespaces/kube-system").await;
        let identity = match system {
            Ok(system) => system
                .as_ref()
                .map(object::uid)
                .unwrap_or_default()
                .to_owned(),
            Err(error) if error.kind == ErrorKind::Denied => String::new(),
            Err(error) => return Err(error),
        };
        Ok(Server {
            identity,
            version: version.unwrap_or("of an unknown version").to_owned(),
        })
    }

    /// Rules that the account lacks to list these kinds in a namespace, as YAML.
    pub async fn rights_missing(&self, namespace: &str, kinds: &[&Kind]) -> Result<Vec<String>> {
        use futures::StreamExt;
        if self.may_list(namespace, "*", "*").await? {
            return Ok(Vec::new());
        }
        let namespaced: Vec<Kind> = kinds
            .iter()
            .filter(|kind| kind.namespaced)
            .map(|kind| (*kind).clone())
            .collect();
        let asked = futures::stream::iter(namespaced)
            .map(|kind| async move {
                let may = self.may_list(namespace, &kind.group, &kind.plural).await;
                may.map(|may| (!may).then(|| rule(&kind)))
            })
            .buffered(REVIEWS_AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let missing: Result<Vec<Option<String>>> = asked.into_iter().collect();
        Ok(missing?.into_iter().flatten().collect())
    }

    async fn may_list(&self, namespace: &str, group: &str, resource: &str) -> Result<bool> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": { "namespace": namespace, "verb": "list", "group": group, "resource": resource } },
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = self.send(&Method::POST, path, Some(&review)).await?;
        let answer = answer.good("asking what the account may do")?;
        Ok(answer["status"]["allowed"] == Value::Bool(true))
    }
}

fn rule(kind: &Kind) -> String {
    format!(
        "- {{apiGroups: [\"{}\"], resources: [\"{}\"], verbs: [\"get\", \"list\"]}}\n",
        kind.group, kind.plural
    )
}

/// A refusal that is no JSON: its text is its message.
fn as_message(body: &Bytes) -> Value {
    let text = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
    json!({ "message": text })
}
