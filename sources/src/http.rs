//! A document that a service gives out, and takes back: GET is the backup, POST or PUT the restore.

use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, conflict, settings, unsupported};
use bk_core::name::MemberPath;
use bk_core::plugin::Plugin;
use bk_core::secret::Secret;
use bk_core::settings::Settings;
use bk_core::source::{
    Body, Counted, Existing, Facts, Health, Input, Meta, Output, Pipe, PointInTime, RestoreOptions,
    Snapshot, SnapshotOptions, Source, Stage, Tally, UnitCount,
};
use bytes::Bytes;
use futures::StreamExt;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Response, StatusCode, Url};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(10);
/// Between two chunks, or for an answer.
const SILENCE: Duration = Duration::from_mins(5);
/// How much of an answer that is no good stands in an error.
const WORDS_MAX: usize = 300;

/// Settings of the source `http`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpSettings {
    /// Where the document is: `https://catalog.example.org/catalog/export`.
    pub url: String,
    /// How it goes back: `{ url, method, content_type }`. Without it bk can extract, and not restore.
    #[serde(default)]
    pub restore: Option<RestoreSettings>,
    /// Whether the document is JSON: one that is not fails.
    #[serde(default)]
    pub json: bool,
    /// Headers of every request: `{ Authorization = { env = "TOKEN" } }`.
    #[serde(default)]
    pub headers: Option<BTreeMap<String, Secret>>,
    /// Name of the member in the archive. Without it the last part of the address.
    #[serde(default)]
    pub entry: Option<String>,
    /// Addresses that must answer well after a restore: `["https://catalog.example.org/catalog/verify"]`.
    #[serde(default)]
    pub verify: Option<Vec<String>>,
    /// An authority to trust beside the usual ones: a PEM file, relative to the settings file.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// How a document goes back.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreSettings {
    /// Where to; without it, where it came from.
    #[serde(default)]
    pub url: Option<String>,
    /// `POST` or `PUT`, which is taken for granted.
    #[serde(default)]
    pub method: Option<RestoreMethod>,
    /// Without it the type that the document had.
    #[serde(default)]
    pub content_type: Option<String>,
}

/// How a document is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum RestoreMethod {
    /// POST.
    Post,
    /// PUT.
    Put,
}

/// The plugin.
pub fn plugin() -> Plugin<dyn Source> {
    Plugin {
        name: "http".into(),
        about: "a document that a service gives out and takes back".into(),
        schema: Arc::new(|| schemars::schema_for!(HttpSettings)),
        build: Arc::new(|settings: Settings| Ok(Arc::new(Http::new(&settings)?))),
    }
}

/// The source.
#[derive(Clone, Debug)]
pub struct Http {
    settings: HttpSettings,
    url: Url,
    target: Option<Url>,
    verify: Vec<Url>,
    entry: MemberPath,
}

impl Http {
    fn new(given: &Settings) -> Result<Self> {
        let mut parsed: HttpSettings = given.parse()?;
        let address = |key: &str, text: &str| {
            let url = Url::parse(text)
                .ok()
                .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            let url = url.ok_or_else(|| {
                let what = format!("`{key}`: `{text}` is no address");
                given.fault(key, what, Some("write https://host/path"))
            })?;
            if url.password().is_some() {
                let hint = "use headers = { Authorization = { env = \"TOKEN\" } }";
                return Err(given.fault(key, format!("`{key}` has a password in it"), Some(hint)));
            }
            Ok(url)
        };
        let url = address("url", &parsed.url)?;
        let target = match &parsed.restore {
            Some(restore) => Some(match &restore.url {
                Some(text) => address("restore.url", text)?,
                None => url.clone(),
            }),
            None => None,
        };
        let verify = parsed.verify.iter().flatten();
        let verify = verify
            .map(|text| address("verify", text))
            .collect::<Result<_>>()?;
        let last = url.path_segments().and_then(|mut parts| parts.next_back());
        let last = last.filter(|part| !part.is_empty()).unwrap_or("document");
        let entry = parsed.entry.clone().unwrap_or_else(|| last.to_owned());
        let entry = MemberPath::new(entry.as_bytes()).map_err(|error| {
            given.fault(
                "entry",
                format!("`entry`: {error}"),
                Some("entry = \"catalog.json\""),
            )
        })?;
        parsed.ca = parsed.ca.map(|ca| given.path(&ca));
        parsed.headers = parsed.headers.map(|headers| {
            headers
                .into_iter()
                .map(|(name, value)| (name, value.relative_to(&given.folder)))
                .collect()
        });
        Ok(Self {
            settings: parsed,
            url,
            target,
            verify,
            entry,
        })
    }

    fn place(url: &Url) -> String {
        let port = url
            .port()
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        format!(
            "{}://{}{port}",
            url.scheme(),
            url.host_str().unwrap_or_default()
        )
    }

    /// A client; `silence` is how long an answer, or its next part, may take.
    async fn client(&self, silence: Option<Duration>) -> Result<Client> {
        // A second call finds it installed, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut headers = HeaderMap::new();
        for (name, value) in self.settings.headers.iter().flatten() {
            let wrong = |what: &str| settings(format!("`headers.{name}`: {what}"));
            let key: HeaderName = name.parse().map_err(|_| wrong("is no name of a header"))?;
            let mut text = HeaderValue::from_str(&value.reveal().await?)
                .map_err(|_| wrong("its value has characters that no header may have"))?;
            text.set_sensitive(true);
            headers.insert(key, text);
        }
        let mut builder = Client::builder()
            .http1_only()
            .connect_timeout(CONNECT)
            .user_agent("bk")
            .redirect(reqwest::redirect::Policy::none())
            .default_headers(headers);
        if let Some(silence) = silence {
            builder = builder.read_timeout(silence);
        }
        if let Some(ca) = &self.settings.ca {
            let pem = std::fs::read(ca).map_err(|e| Error::io("read", ca, e))?;
            let read = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| {
                settings(format!("`{}` holds no certificate", ca.display())).because(e)
            })?;
            builder = builder.tls_certs_merge(read);
        }
        builder
            .build()
            .map_err(|e| settings("no connection can be made with these settings").because(e))
    }
}

/// A request that got no answer, in words without the address' secrets.
fn unanswered(url: &Url, error: &reqwest::Error) -> Error {
    let mut words = Vec::new();
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        words.push(error.to_string());
        next = error.source();
    }
    words.dedup();
    Error::new(
        ErrorKind::Unreachable,
        format!("{}: {}", Http::place(url), words.join(": ")),
    )
}

/// The answer, where it is a good one.
async fn good(cx: &Context, url: &Url, request: reqwest::RequestBuilder) -> Result<Response> {
    good_while(cx, url, request, &AtomicU64::new(0)).await
}

/// The same for a request whose body is on its way: as long as `sent` grows, it is not silent.
async fn good_while(
    cx: &Context,
    url: &Url,
    request: reqwest::RequestBuilder,
    sent: &AtomicU64,
) -> Result<Response> {
    let late = || {
        Error::new(
            ErrorKind::Unreachable,
            format!(
                "{}: no answer within {} s",
                Http::place(url),
                SILENCE.as_secs()
            ),
        )
    };
    let mut answering = std::pin::pin!(request.send());
    let mut before = sent.load(Ordering::Acquire);
    let answer = loop {
        let answer = tokio::select! {
            biased;
            () = cx.cancel.cancelled() => return Err(Error::cancelled()),
            answer = &mut answering => answer,
            () = tokio::time::sleep(SILENCE) => {
                let now = sent.load(Ordering::Acquire);
                if std::mem::replace(&mut before, now) == now {
                    return Err(late());
                }
                continue;
            }
        };
        break answer.map_err(|error| unanswered(url, &error))?;
    };
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let kind = match status {
        StatusCode::UNAUTHORIZED => ErrorKind::Auth,
        StatusCode::FORBIDDEN => ErrorKind::Denied,
        StatusCode::NOT_FOUND | StatusCode::GONE => ErrorKind::NotFound,
        _ if status.is_redirection() => ErrorKind::Settings,
        _ => ErrorKind::Unreachable,
    };
    let to = answer
        .headers()
        .get(reqwest::header::LOCATION)
        .and_then(|to| to.to_str().ok())
        // What follows a `?` may be a secret.
        .map(|to| format!("; it leads to {}", to.split('?').next().unwrap_or_default()))
        .unwrap_or_default();
    let words = String::from_utf8_lossy(&beginning(cx, answer).await).into_owned();
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let words: String = words.chars().take(WORDS_MAX).collect();
    let words = if words.is_empty() {
        to
    } else {
        format!("{to}: {words}")
    };
    Err(Error::new(
        kind,
        format!(
            "{}{} answered {status}{words}",
            Http::place(url),
            url.path()
        ),
    ))
}

/// The first bytes of an answer that is no good; however long it is, and however slow.
async fn beginning(cx: &Context, mut answer: Response) -> Vec<u8> {
    let mut bytes = Vec::new();
    let late = || Error::new(ErrorKind::Unreachable, "late");
    while bytes.len() < 4 * WORDS_MAX {
        let chunk = cx.within(CONNECT, late, async { Ok(answer.chunk().await) });
        match chunk.await {
            Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
            _ => break,
        }
    }
    bytes
}

#[async_trait]
impl Source for Http {
    async fn check(&self, cx: &Context) -> Result<Health> {
        let client = self.client(Some(SILENCE)).await?;
        let mut warnings = Vec::new();
        match good(cx, &self.url, client.head(self.url.clone())).await {
            Ok(_) => {}
            // There are services that know GET alone: then the way there is all that can be told.
            Err(error) if error.what.contains(" 405 ") || error.what.contains(" 501 ") => {}
            // A restore may bring it.
            Err(error) if error.kind == ErrorKind::NotFound => warnings.push(error.what),
            Err(error) => return Err(error),
        }
        if self.target.is_none() {
            warnings.push("it has no `restore`: bk can extract it, and no more".into());
        }
        Ok(Health {
            identity: Self::place(&self.url),
            describe: format!("{}{}", Self::place(&self.url), self.url.path()),
            warnings,
        })
    }

    async fn snapshot(&self, cx: &Context, _how: &SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(Document {
            http: self.clone(),
            at: PointInTime {
                instant: cx.clock.now(),
                consistency: "none".into(),
                position: None,
            },
            kind: None,
        }))
    }

    async fn restore(&self, cx: &Context, mut input: Input, how: &RestoreOptions) -> Result<Tally> {
        let mut tally = Tally::default();
        if how.forget_unfinished {
            return Ok(tally);
        }
        let (Some(target), Some(restore)) = (&self.target, &self.settings.restore) else {
            return Err(unsupported("it has no `restore` in the settings").hint(
                "add restore = { method = \"POST\", url = \"…\" }, or bk extract --into FOLDER",
            ));
        };
        let own_business = "what a service does with what it has already is its own business";
        match how.existing {
            Some(Existing::Refuse) => {
                return Err(conflict(own_business).hint("leave --existing out"));
            }
            Some(Existing::Merge) => {
                return Err(unsupported(own_business).hint("leave --existing out"));
            }
            _ => {}
        }
        if how.into_place.is_some() || !how.into_group.is_empty() {
            return Err(
                unsupported("a document goes back to where the settings say")
                    .hint("make a second instance with other settings, and use --as OLD=NEW"),
            );
        }
        let kind = restore.content_type.clone().or_else(|| {
            let kind = input.facts().more.get("content_type")?;
            kind.as_str().map(str::to_owned)
        });
        let method = match restore.method {
            Some(RestoreMethod::Post) => Method::POST,
            _ => Method::PUT,
        };
        // A body may take as long as its parts are taken.
        let client = self.client(None).await?;
        for stage in Stage::ALL {
            let members = input.stage(stage).await?;
            while let Some(member) = members.next().await? {
                let mut request = client.request(method.clone(), target.clone());
                if let Some(kind) = &kind {
                    request = request.header(CONTENT_TYPE, kind);
                }
                let sent = Arc::new(AtomicU64::new(0));
                let request = with_body(request, member.body, member.len, sent.clone());
                good_while(cx, target, request, &sent).await?;
                tally.units.push(UnitCount {
                    group: member.unit.0,
                    name: member.unit.1,
                    stage,
                    members: 1,
                    rows: 0,
                    bytes: sent.load(Ordering::Acquire),
                });
            }
        }
        for url in &self.verify {
            if let Err(error) = good(cx, url, client.get(url.clone())).await {
                tally.failed.push(format!("after the restore: {error}"));
            }
        }
        Ok(tally)
    }
}

/// The body as it comes; its bytes are counted when the connection takes them.
fn with_body(
    request: reqwest::RequestBuilder,
    body: Body,
    len: Option<u64>,
    sent: Arc<AtomicU64>,
) -> reqwest::RequestBuilder {
    match body {
        Body::Whole(bytes) => {
            sent.fetch_add(bytes.len() as u64, Ordering::AcqRel);
            request.body(bytes)
        }
        Body::Stream(stream) => {
            let chunks = futures::stream::unfold((stream, sent), |(mut stream, sent)| async {
                let chunk: Result<Bytes> = stream.next().await.transpose()?;
                if let Ok(bytes) = &chunk {
                    sent.fetch_add(bytes.len() as u64, Ordering::AcqRel);
                }
                Some((chunk, (stream, sent)))
            });
            let request = match len {
                Some(len) => request.header(CONTENT_LENGTH, len),
                None => request,
            };
            request.body(reqwest::Body::wrap_stream(chunks))
        }
    }
}

struct Document {
    http: Http,
    at: PointInTime,
    kind: Option<String>,
}

#[async_trait]
impl Snapshot for Document {
    fn at(&self) -> PointInTime {
        self.at.clone()
    }

    fn large(&self) -> bool {
        true
    }

    /// All is in `Stage::Large`: how long it is, nobody knows before its end.
    async fn write(&mut self, cx: &Context, stage: Stage, out: &Output) -> Result<()> {
        if stage != Stage::Large {
            return Ok(());
        }
        out.expect(".", ".").await?;
        let http = &self.http;
        let client = http.client(Some(SILENCE)).await?;
        let answer = good(cx, &http.url, client.get(http.url.clone())).await?;
        let kind = answer.headers().get(CONTENT_TYPE);
        self.kind = kind.and_then(|kind| kind.to_str().ok()).map(str::to_owned);
        let mut lane = out.lane("http").await?;
        lane.unit(".", ".");
        let path = http.entry.clone();
        let fill = |pipe| http.read(cx, answer, pipe);
        lane.piped(path, Meta::default(), None, fill).await?;
        lane.close().await?;
        out.end(".", ".", Counted::default()).await
    }

    async fn close(self: Box<Self>, _cx: &Context) -> Result<Facts> {
        Ok(Facts {
            layout: 1,
            more: serde_json::json!({ "content_type": self.kind }),
            ..Facts::default()
        })
    }
}

impl Http {
    /// The document to its end: as long as was announced, and JSON where it is said to be.
    async fn read(&self, cx: &Context, answer: Response, pipe: Pipe) -> Result<()> {
        let announced = answer.content_length();
        let (judge, verdict) = if self.settings.json {
            let (chunks, queue) = std::sync::mpsc::sync_channel(2);
            let verdict = tokio::task::spawn_blocking(move || is_json(queue));
            (Some(chunks), Some(verdict))
        } else {
            (None, None)
        };
        let mut came = 0;
        let mut chunks = answer.bytes_stream();
        loop {
            let late = || {
                let place = Self::place(&self.url);
                let what = format!("{place} fell silent in the middle of the document");
                Error::new(ErrorKind::Unreachable, what)
            };
            let next = cx.within(SILENCE, late, async { Ok(chunks.next().await) });
            let Some(chunk) = next.await? else { break };
            let chunk = chunk.map_err(|error| unanswered(&self.url, &error))?;
            came += chunk.len() as u64;
            if let Some(judge) = &judge {
                let (judge, chunk) = (judge.clone(), chunk.clone());
                // A judge that has its verdict hears no more.
                let _ = tokio::task::spawn_blocking(move || judge.send(chunk)).await;
            }
            if !pipe.send(chunk).await {
                return Ok(());
            }
        }
        if let Some(announced) = announced.filter(|announced| *announced != came) {
            return Err(Error::new(
                ErrorKind::Unreachable,
                format!(
                    "{}: {came} of {announced} bytes came",
                    Self::place(&self.url)
                ),
            ));
        }
        drop(judge);
        match verdict {
            None => Ok(()),
            Some(verdict) => match verdict.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(Error::corrupt(format!(
                    "{}{} gave out what is no JSON: {error}",
                    Self::place(&self.url),
                    self.url.path()
                ))
                .because(error)),
                Err(error) => Err(bk_core::error::bug(error.to_string())),
            },
        }
    }
}

/// Whether these bytes are one JSON document, in little memory.
fn is_json(queue: std::sync::mpsc::Receiver<Bytes>) -> std::result::Result<(), serde_json::Error> {
    let reader = std::io::BufReader::new(Chunks {
        queue,
        now: Bytes::new(),
    });
    serde_json::from_reader::<_, serde::de::IgnoredAny>(reader).map(drop)
}

struct Chunks {
    queue: std::sync::mpsc::Receiver<Bytes>,
    now: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.now.is_empty() {
            match self.queue.recv() {
                Ok(chunk) => self.now = chunk,
                Err(_) => return Ok(0),
            }
        }
        let some = self.now.split_to(buffer.len().min(self.now.len()));
        buffer[..some.len()].copy_from_slice(&some);
        Ok(some.len())
    }
}
