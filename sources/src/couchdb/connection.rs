//! A way to the server: requests that are sent again where that helps, answers that are whole or none.

use crate::couchdb::CouchdbSettings;
use crate::percent::encoded;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, bug, settings, unsupported};
use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub use reqwest::Method;

/// Patience with one that does not answer at all: below that of a check.
const CONNECT_LIMIT: Duration = Duration::from_secs(4);
/// Patience with a silence within an answer; servers give up after 60 s themselves.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(90);
/// The first wait before a request is sent again, and by how much each is longer.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const WAIT_FACTOR: f64 = 1.6;
const LONGEST_WAIT: Duration = Duration::from_secs(25);
/// How long a request is sent again in all.
const PATIENCE: Duration = Duration::from_mins(3);
/// The same of the first one: nobody may be there.
const FIRST_PATIENCE: Duration = Duration::from_millis(100);
/// The same of one that answers that it is busy.
const BUSY_PATIENCE: Duration = Duration::from_secs(20);
/// How often a body that is read as it comes is begun.
const OPEN_TRIES: u32 = 6;
/// Room that an answer gets at first, where it says that it is at least as long.
const FIRST_ROOM: usize = 8 << 20;
/// An internal error may pass, or be the fault of what was sent.
const INTERNAL_TRIES: u32 = 3;

/// How to get there.
#[derive(Clone)]
pub struct Access {
    settings: CouchdbSettings,
    base: String,
    place: String,
}

impl Access {
    /// By these settings; says what is wrong with the address.
    pub fn new(settings: &CouchdbSettings) -> Result<Self, String> {
        let url =
            Url::parse(&settings.url).map_err(|e| format!("is no address of a server: {e}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err("is no address of a server".into());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                "holds an account: write it as `user` and `password`, which are kept secret".into(),
            );
        }
        let host = url.host_str().unwrap_or_default();
        let place = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Ok(Self {
            settings: settings.clone(),
            base: url.as_str().trim_end_matches('/').to_owned(),
            place,
        })
    }

    /// Where it is, for people.
    pub fn describe(&self) -> &str {
        &self.place
    }

    /// Connects, and proves the account by one request.
    pub async fn connect(&self, cx: &Context) -> Result<Connection> {
        // A second call finds it installed, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let s = &self.settings;
        let mut certificates = None;
        if let Some(ca) = &s.ca {
            let pem = std::fs::read(ca).map_err(|e| Error::io("reading", ca, e))?;
            let read = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| {
                settings(format!("`{}` holds no certificate", ca.display())).because(e)
            })?;
            certificates = Some(read);
        }
        let mut headers = HeaderMap::new();
        if let Some(authorization) = self.authorization().await? {
            headers.insert(AUTHORIZATION, authorization);
        }
        let build = |silence: Option<Duration>| {
            let mut builder = Client::builder()
                .http1_only()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_LIMIT)
                .tcp_keepalive(SILENCE_LIMIT)
                .pool_max_idle_per_host(64)
                .user_agent("bk")
                .default_headers(headers.clone());
            if let Some(silence) = silence {
                builder = builder.read_timeout(silence);
            }
            if let Some(certificates) = &certificates {
                builder = builder.tls_certs_only(certificates.clone());
            }
            builder
                .build()
                .map_err(|e| settings("no connection can be made with these settings").because(e))
        };
        let mut connection = Connection {
            client: build(Some(SILENCE_LIMIT))?,
            patient: build(None)?,
            logged_in: false,
            base: self.base.clone(),
            place: self.place.clone(),
            cx: cx.clone(),
            refused: CancellationToken::new(),
            waits: Arc::default(),
            patience: FIRST_PATIENCE,
        };
        let session = connection.ask(Method::GET, "/_session").await?;
        connection.patience = PATIENCE;
        connection.logged_in = true;
        match session.status {
            // Some servers have no sessions; then the next request shows whether the account is good.
            404 | 405 => Ok(connection),
            _ => session.good("logging in").map(|_| connection),
        }
    }

    async fn authorization(&self) -> Result<Option<HeaderValue>> {
        use base64::Engine;
        let s = &self.settings;
        let text = match (&s.user, &s.password, &s.token) {
            (Some(user), Some(password), _) => {
                let pair = format!("{user}:{}", password.reveal().await?);
                let pair = base64::prelude::BASE64_STANDARD.encode(pair);
                format!("Basic {pair}")
            }
            (_, _, Some(token)) => format!("Bearer {}", token.reveal().await?),
            _ => return Ok(None),
        };
        let mut value = HeaderValue::from_str(&text)
            .map_err(|_| settings("the password or token holds a line break"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// Times that a request had to wait, and how long.
#[derive(Debug, Default)]
struct Waits {
    count: AtomicU64,
    millis: AtomicU64,
}

/// A server that is spoken to. Cheap to clone.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    base: String,
    place: String,
    /// For bodies that take their time: without a limit on silence while they are sent.
    patient: Client,
    logged_in: bool,
    cx: Context,
    /// Fires when the server has refused the account: nothing more is sent, for wrong tries lock it.
    refused: CancellationToken,
    waits: Arc<Waits>,
    patience: Duration,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    path: String,
    accept: &'static str,
    body: Option<(String, Bytes)>,
}

impl Request {
    /// Of a path that is encoded.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            accept: "application/json",
            body: None,
        }
    }

    /// With JSON.
    #[must_use]
    pub fn json(self, body: impl Into<Bytes>) -> Self {
        self.body("application/json", body)
    }

    /// With a body of another kind.
    #[must_use]
    pub fn body(mut self, kind: impl Into<String>, body: impl Into<Bytes>) -> Self {
        self.body = Some((kind.into(), body.into()));
        self
    }

    /// For an answer of another kind than JSON.
    #[must_use]
    pub fn accept(mut self, kind: &'static str) -> Self {
        self.accept = kind;
        self
    }
}

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub kind: String,
    /// What came.
    pub body: Bytes,
}

#[derive(Debug, Default, Deserialize)]
struct Refusal {
    #[serde(default)]
    error: String,
    #[serde(default)]
    reason: serde_json::Value,
}

impl Answer {
    /// Whether what was asked was done.
    pub fn is_good(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The server's word for what is wrong.
    pub fn word(&self) -> String {
        serde_json::from_slice::<Refusal>(&self.body)
            .unwrap_or_default()
            .error
    }

    /// The server's words.
    pub fn words(&self) -> String {
        let said: Refusal = serde_json::from_slice(&self.body).unwrap_or_default();
        let reason = match said.reason {
            serde_json::Value::String(text) => text,
            serde_json::Value::Null => String::new(),
            other => other.to_string(),
        };
        match (said.error.as_str(), reason.as_str()) {
            ("", "") => format!("HTTP {}", self.status),
            (word, "") => format!("HTTP {}, {word}", self.status),
            (word, reason) => format!("HTTP {}, {word}: {reason}", self.status),
        }
    }

    /// The error that a refusal is.
    pub fn refusal(&self, doing: &str) -> Error {
        let kind = match self.status {
            401 | 403 => ErrorKind::Denied,
            404 => ErrorKind::NotFound,
            405 | 501 => ErrorKind::Unsupported,
            507 => ErrorKind::NoSpace,
            _ => ErrorKind::Unreachable,
        };
        Error::new(kind, format!("{doing}: {}", self.words()))
    }

    /// Itself, unless the server refused.
    pub fn good(self, doing: &str) -> Result<Self> {
        if self.is_good() {
            Ok(self)
        } else {
            Err(self.refusal(doing))
        }
    }

    /// What it says as JSON.
    pub fn parsed<T: DeserializeOwned>(&self, doing: &str) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|e| {
            Error::corrupt(format!("{doing}: the server's answer cannot be read")).because(e)
        })
    }
}

/// How a try went.
enum Tried {
    Answered(Answer),
    /// It may go well another time; the server may have said when.
    Again(String, Option<Duration>),
    /// The same, and less would go well sooner: nobody was done in time.
    Late(String),
    /// The answer is larger than it may be.
    TooLarge,
    /// Nobody answered, or not to the end.
    Broken(String),
}

impl Connection {
    /// A request without a body.
    pub async fn ask(&self, method: Method, path: &str) -> Result<Answer> {
        self.send(&Request::new(method, path)).await
    }

    /// A GET that must go well.
    pub async fn get(&self, path: &str, doing: &str) -> Result<Answer> {
        self.ask(Method::GET, path).await?.good(doing)
    }

    /// Sends until there is an answer that says yes or no. An answer that was cut off is none.
    pub async fn send(&self, request: &Request) -> Result<Answer> {
        match self.sent(request, None).await? {
            Some(answer) => Ok(answer),
            None => Err(bug("an answer without a limit passed it")),
        }
    }

    /// The same of what can be asked for in parts. Nothing where less should be asked for at a time: the server is late, or the answer is larger
    /// than this.
    pub async fn send_in_parts(&self, request: &Request, most: usize) -> Result<Option<Answer>> {
        let sent = self.sent(request, Some(most)).await?;
        if sent.is_none() {
            self.pause(FIRST_WAIT).await?;
        }
        Ok(sent)
    }

    async fn sent(&self, request: &Request, most: Option<usize>) -> Result<Option<Answer>> {
        let mut wait = FIRST_WAIT;
        let mut waited = Duration::ZERO;
        let mut internal = 0;
        loop {
            let begun = tokio::time::Instant::now();
            let mut patience = self.patience;
            let (why, asked) = match self.one_try(request, most).await? {
                Tried::Answered(answer) if answer.status == 500 => {
                    internal += 1;
                    if internal >= INTERNAL_TRIES {
                        return Ok(Some(answer));
                    }
                    (answer.words(), None)
                }
                Tried::Answered(answer) => return Ok(Some(answer)),
                Tried::TooLarge => return Ok(None),
                Tried::Late(_) if most.is_some() => return Ok(None),
                Tried::Late(why) => {
                    patience = patience.max(BUSY_PATIENCE);
                    (why, None)
                }
                Tried::Again(why, asked) => {
                    // Whoever answers is there.
                    patience = patience.max(BUSY_PATIENCE);
                    (why, asked)
                }
                Tried::Broken(why) => (why, None),
            };
            if waited >= patience {
                let times = if waited < Duration::from_secs(1) {
                    String::new()
                } else {
                    format!(", tried again for {} s", waited.as_secs())
                };
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("{}: {why}{times}", self.place),
                ));
            }
            let pause = asked
                .map_or(wait, |asked| asked.max(wait))
                .min(LONGEST_WAIT);
            self.pause(pause).await?;
            waited += begun.elapsed();
            wait = wait.mul_f64(WAIT_FACTOR).min(LONGEST_WAIT);
        }
    }

    /// Sends once.
    pub async fn send_once(&self, request: &Request) -> Result<Answer> {
        let tried = self.one_try(request, None).await?;
        self.answered(tried)
    }

    /// An answer, or why there is none.
    fn answered(&self, tried: Tried) -> Result<Answer> {
        let why = match tried {
            Tried::Answered(answer) => return Ok(answer),
            Tried::Again(why, _) | Tried::Broken(why) | Tried::Late(why) => why,
            Tried::TooLarge => "the answer is too large".into(),
        };
        let why = format!("{}: {why}", self.place);
        Err(Error::new(ErrorKind::Unreachable, why))
    }

    /// Waits as long as the server needs, unless the run is stopped.
    pub async fn pause(&self, pause: Duration) -> Result<()> {
        self.waits.count.fetch_add(1, Ordering::Relaxed);
        self.waits
            .millis
            .fetch_add(pause.as_millis() as u64, Ordering::Relaxed);
        self.unless_stopped(tokio::time::sleep(pause)).await
    }

    /// How often requests were sent again, as a line for people.
    pub fn waited(&self) -> Option<String> {
        let count = self.waits.count.load(Ordering::Relaxed);
        let millis = self.waits.millis.load(Ordering::Relaxed);
        (count > 0).then(|| {
            format!(
                "{count} requests were sent again, after waits of {:.1} s in all",
                millis as f64 / 1000.0
            )
        })
    }

    /// An answer whose body is read as it comes, of a request that went well.
    pub async fn open(&self, path: &str, accept: &'static str, doing: &str) -> Result<Response> {
        let request = Request::new(Method::GET, path).accept(accept);
        let mut wait = FIRST_WAIT;
        let mut tries = 0;
        loop {
            tries += 1;
            let sent = self.built(&self.patient, &request).send();
            let why = match self
                .unless_stopped(tokio::time::timeout(SILENCE_LIMIT, sent))
                .await?
            {
                Ok(Ok(response)) if response.status().as_u16() == 200 => return Ok(response),
                Ok(Ok(response)) => {
                    let answer = self
                        .unless_stopped(collected(response, usize::MAX))
                        .await?
                        .map_err(|e| self.broken(&e))?
                        .unwrap_or_default();
                    match self.look(answer, None)? {
                        Tried::Answered(answer) => return Err(answer.refusal(doing)),
                        other => match self.answered(other) {
                            Ok(answer) => answer.words(),
                            Err(error) => error.what,
                        },
                    }
                }
                Ok(Err(error)) => chain(&error),
                Err(_) => "the server did not answer in time".into(),
            };
            if tries == OPEN_TRIES {
                let why = format!("{doing}: {why}");
                return Err(Error::new(ErrorKind::Unreachable, why));
            }
            self.pause(wait).await?;
            wait = wait.mul_f64(WAIT_FACTOR * 2.0).min(LONGEST_WAIT);
        }
    }

    /// Sends a body that is made while it is sent, once.
    pub async fn put_stream(
        &self,
        path: &str,
        kind: &str,
        len: u64,
        body: impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
    ) -> Result<Answer> {
        let sent = self
            .patient
            .put(format!("{}{path}", self.base))
            .header(CONTENT_TYPE, kind)
            .header(reqwest::header::CONTENT_LENGTH, len)
            .header(ACCEPT, "application/json")
            .body(reqwest::Body::wrap_stream(body))
            .send();
        let response = self
            .unless_stopped(sent)
            .await?
            .map_err(|e| self.broken(&e))?;
        self.whole(response).await
    }

    fn built(&self, client: &Client, request: &Request) -> reqwest::RequestBuilder {
        let url = format!("{}{}", self.base, request.path);
        let built = client
            .request(request.method.clone(), url)
            .header(ACCEPT, request.accept);
        match &request.body {
            Some((kind, body)) => built.header(CONTENT_TYPE, kind).body(body.clone()),
            None => built,
        }
    }

    async fn one_try(&self, request: &Request, most: Option<usize>) -> Result<Tried> {
        let response = match self
            .unless_stopped(self.built(&self.client, request).send())
            .await?
        {
            Ok(response) => response,
            Err(error) if is_hopeless(&error) => return Err(self.broken(&error)),
            Err(error) if error.is_timeout() => return Ok(Tried::Late(chain(&error))),
            Err(error) => return Ok(Tried::Broken(chain(&error))),
        };
        let asked = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|after| after.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let most = most.unwrap_or(usize::MAX);
        let answer = match self.unless_stopped(collected(response, most)).await? {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(Tried::TooLarge),
            Err(error) if error.is_timeout() => return Ok(Tried::Late(chain(&error))),
            Err(error) => {
                let why = format!("an answer was cut off: {}", chain(&error));
                return Ok(Tried::Broken(why));
            }
        };
        self.look(answer, asked)
    }

    /// Statuses that mean the same whatever was asked.
    fn look(&self, answer: Answer, asked: Option<Duration>) -> Result<Tried> {
        match answer.status {
            // The account is good, and may not do this.
            401 if self.logged_in && answer.words().contains("not a server admin") => {
                Ok(Tried::Answered(answer))
            }
            401 => {
                self.refused.cancel();
                Err(
                    Error::new(ErrorKind::Auth, format!("{} refuses the account: {}", self.place, answer.words()))
                        .hint("mend `user` and `password`; nothing is tried again, for wrong tries lock the account"),
                )
            }
            403 if answer.words().contains("temporarily locked") => {
                self.refused.cancel();
                Err(Error::new(
                    ErrorKind::Auth,
                    format!("{}: the account is temporarily locked after wrong tries, with the right password too", self.place),
                )
                .hint("wait until the server opens it again (5 minutes by default), and mend the password of whoever tries"))
            }
            408 | 504 => Ok(Tried::Late(answer.words())),
            429 | 502 | 503 => Ok(Tried::Again(answer.words(), asked)),
            500 if answer.words().contains("timeout") => Ok(Tried::Late(answer.words())),
            500 if is_overload(&answer) => Ok(Tried::Again(answer.words(), asked)),
            412 if answer.word() == "nodedown" => Ok(Tried::Again(answer.words(), asked)),
            300..=399 => Err(unsupported(format!(
                "{} answers with a redirection (HTTP {}), which is not followed",
                self.place, answer.status
            ))
            .hint("set `url` to where the server itself listens")),
            _ => Ok(Tried::Answered(answer)),
        }
    }

    async fn whole(&self, response: Response) -> Result<Answer> {
        let answer = self
            .unless_stopped(collected(response, usize::MAX))
            .await?
            .map_err(|e| self.broken(&e))?
            .unwrap_or_default();
        let looked = self.look(answer, None)?;
        self.answered(looked)
    }

    /// For whoever waits on this server.
    pub async fn unless_stopped<T>(&self, waited_for: impl Future<Output = T>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.cx.cancel.cancelled() => Err(Error::cancelled()),
            () = self.refused.cancelled() => Err(Error::new(
                ErrorKind::Auth,
                format!("{} refuses the account", self.place),
            )),
            done = waited_for => Ok(done),
        }
    }

    /// What a connection that broke is.
    pub fn broken(&self, error: &reqwest::Error) -> Error {
        Error::new(
            ErrorKind::Unreachable,
            format!("{}: {}", self.place, chain(error)),
        )
    }
}

/// An answer to its end, unless it is larger than this.
async fn collected(mut response: Response, most: usize) -> Result<Option<Answer>, reqwest::Error> {
    let status = response.status().as_u16();
    let kind = response.headers().get(CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.to_owned();
    let told = response.content_length().unwrap_or(0);
    let mut body = BytesMut::with_capacity(told.min(most.min(FIRST_ROOM) as u64) as usize);
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    let body = body.freeze();
    Ok(Some(Answer { status, kind, body }))
}

/// What a server says that is busy, or does not know yet where its shards are.
fn is_overload(answer: &Answer) -> bool {
    let words = answer.words();
    ["No DB shards could be opened", "nodedown"]
        .iter()
        .any(|overload| words.contains(overload))
}

/// Whether another try would end the same way.
fn is_hopeless(error: &reqwest::Error) -> bool {
    error.is_builder() || chain(error).contains("certificate")
}

/// All that a library says of a failure, from the outside in, without the address.
fn chain(error: &reqwest::Error) -> String {
    let mut said = String::new();
    let mut next: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = next {
        let words = error.to_string();
        if !said.contains(&words) {
            let _ = write!(said, "{}{words}", if said.is_empty() { "" } else { ": " });
        }
        next = error.source();
    }
    if said.is_empty() {
        return error.to_string();
    }
    said
}

/// The path of a document: the prefixes keep their slash. Nothing for an id that no path can say.
pub fn document_path(database: &str, id: &str) -> Option<String> {
    let database = encoded(database);
    let (prefix, name) = ["_design/", "_local/"]
        .into_iter()
        .find_map(|prefix| Some((prefix, id.strip_prefix(prefix)?)))
        .unwrap_or(("", id));
    // What reads paths would take these for steps.
    (!matches!(name, "" | "." | "..")).then(|| format!("/{database}/{prefix}{}", encoded(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_keep_the_slash_of_design_documents_alone() {
        let path = |id| document_path("app/x", id);
        assert_eq!(
            path("a/b+c ü").as_deref(),
            Some("/app%2Fx/a%2Fb%2Bc%20%C3%BC")
        );
        assert_eq!(
            path("_design/a/b").as_deref(),
            Some("/app%2Fx/_design/a%2Fb")
        );
        assert_eq!(path(".."), None);
    }
}
