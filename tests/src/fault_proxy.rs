//! Between a client and an object store: forwards requests byte for byte and spoils one, chosen by its number, in a chosen way.

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 500, and the store never saw it.
    InternalError,
    /// 503 with `SlowDown`.
    SlowDown,
    /// 403 with `ExpiredToken`.
    Expired,
    /// 403 with `AccessDenied`.
    Denied,
    /// 412.
    PreconditionFailed,
    /// 200 whose body is an error.
    ErrorIn200,
    /// The connection ends without an answer, and the store never saw the request.
    Reset,
    /// The answer's body ends in the middle.
    ShortBody,
    /// No answer ever.
    Stall,
    /// The answer's body comes at a byte a second.
    Slow,
    /// The answer names another `ETag`.
    WrongEtag,
    /// The store did it, and the connection ends without an answer.
    LostAnswer,
    /// 403 with `RequestTimeTooSkewed` and a `Date` an hour away.
    ClockSkew,
    /// 429 with `Retry-After: 1`, and the server never saw it.
    TooMany,
    /// The server did it, and somebody between says 504.
    LateAnswer,
    /// 410 of Kubernetes, which goes on inconsistently where the list was.
    Forgotten,
    /// 503 with a page of HTML.
    Html,
    /// 200 with what is no JSON.
    Garbage,
}

impl Fault {
    /// Those that pass by themselves.
    pub const PASSING: [Self; 11] = [
        Self::InternalError,
        Self::SlowDown,
        Self::Expired,
        Self::ErrorIn200,
        Self::Reset,
        Self::ShortBody,
        Self::Stall,
        Self::Slow,
        Self::WrongEtag,
        Self::LostAnswer,
        Self::ClockSkew,
    ];
}

/// Which requests are spoilt.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// None.
    Never,
    /// The one of this number, from 0.
    Once(u64),
    /// This one and all after it.
    From(u64),
    /// The first ones for which this is so.
    First(u64, fn(&str) -> bool),
    /// All for which this is so.
    Every(fn(&str) -> bool),
}

/// A proxy. Ends with its handle.
pub struct Proxy {
    /// Its port on loopback.
    pub port: u16,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

/// Called with each request before it is forwarded.
pub type Watch = Arc<dyn Fn(&str) -> BoxFuture<'static, ()> + Send + Sync>;

struct State {
    behind: u16,
    watch: Option<Watch>,
    fault: Fault,
    when: When,
    count: AtomicU64,
    matched: AtomicU64,
    log: Mutex<Vec<String>>,
}

type Body = BoxBody<Bytes, std::io::Error>;

impl Proxy {
    /// In front of the store on this port.
    pub async fn start(behind: u16, fault: Fault, when: When) -> Self {
        Self::with(behind, fault, when, None).await
    }

    /// In front of the store on this port, telling of each request before it goes on.
    pub async fn watching(behind: u16, watch: Watch) -> Self {
        Self::with(behind, Fault::Reset, When::Never, Some(watch)).await
    }

    async fn with(behind: u16, fault: Fault, when: When, watch: Option<Watch>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            behind,
            watch,
            fault,
            when,
            count: AtomicU64::new(0),
            matched: AtomicU64::new(0),
            log: Mutex::default(),
        });
        let task = tokio::spawn(serve(listener, state.clone()));
        Self { port, state, task }
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.state.count.load(Ordering::SeqCst)
    }

    /// What was asked, in order: method, path and query.
    pub fn log(&self) -> Vec<String> {
        self.state.log.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| answer(state.clone(), request));
            // A connection that a fault ends is no failure of the proxy.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let number = state.count.fetch_add(1, Ordering::SeqCst);
    let said = format!(
        "{} {}",
        request.method(),
        request.uri().path_and_query().unwrap()
    );
    state.log.lock().unwrap().push(said.clone());
    if let Some(watch) = &state.watch {
        watch(&said).await;
    }
    let spoilt = match state.when {
        When::Never => false,
        When::Once(n) => number == n,
        When::From(n) => number >= n,
        When::First(n, fits) => fits(&said) && state.matched.fetch_add(1, Ordering::SeqCst) < n,
        When::Every(fits) => fits(&said),
    };
    let head = request.method() == hyper::Method::HEAD;
    if !spoilt {
        return Ok(forward(&state, request).await?.map(whole));
    }
    let date = |shift: i64| {
        let at = bk_core::context::Clock::now(&bk_core::context::SystemClock)
            + jiff::SignedDuration::from_secs(shift);
        at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    };
    match state.fault {
        Fault::InternalError => Ok(error(500, "InternalError", head, &date(0))),
        Fault::SlowDown => Ok(error(503, "SlowDown", head, &date(0))),
        Fault::Expired => Ok(error(403, "ExpiredToken", head, &date(0))),
        Fault::Denied => Ok(error(403, "AccessDenied", head, &date(0))),
        Fault::PreconditionFailed => Ok(error(412, "PreconditionFailed", head, &date(0))),
        Fault::ErrorIn200 => Ok(error(200, "InternalError", head, &date(0))),
        Fault::ClockSkew => Ok(error(403, "RequestTimeTooSkewed", head, &date(3600))),
        Fault::Reset => Err(std::io::ErrorKind::ConnectionReset.into()),
        Fault::Stall => std::future::pending().await,
        Fault::LostAnswer => {
            forward(&state, request).await?;
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
        Fault::TooMany => {
            let mut response = error(429, "TooManyRequests", head, &date(0));
            let wait = "1".parse().unwrap();
            response.headers_mut().insert("retry-after", wait);
            Ok(response)
        }
        Fault::LateAnswer => {
            forward(&state, request).await?;
            Ok(error(504, "Timeout", head, &date(0)))
        }
        Fault::Forgotten => {
            let token = said.split("continue=").nth(1).unwrap_or_default();
            let token = token.split('&').next().unwrap_or_default();
            let token = String::from_utf8_lossy(&bk_core::name::unescape(token)).into_owned();
            let status = serde_json::json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410,
                "metadata": { "continue": token }, "message": "the list's state is forgotten",
            });
            let mut response = Response::new(whole(status.to_string().into()));
            *response.status_mut() = StatusCode::GONE;
            Ok(response)
        }
        Fault::Html => {
            let mut response = Response::new(whole("<html>busy</html>".into()));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            Ok(response)
        }
        Fault::Garbage => Ok(Response::new(whole("{\"kind\":".into()))),
        Fault::ShortBody => Ok(forward(&state, request).await?.map(cut)),
        Fault::Slow => Ok(forward(&state, request).await?.map(slow)),
        Fault::WrongEtag => {
            let mut response = forward(&state, request).await?;
            if response.headers().contains_key("etag") {
                let wrong = "\"00000000000000000000000000000bad\"".parse().unwrap();
                response.headers_mut().insert("etag", wrong);
            }
            Ok(response.map(whole))
        }
    }
}

async fn forward(
    state: &State,
    request: Request<Incoming>,
) -> Result<Response<Bytes>, std::io::Error> {
    let other = |e: hyper::Error| std::io::Error::other(e);
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(other)?.to_bytes();
    let stream = TcpStream::connect(("127.0.0.1", state.behind)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(other)?;
    tokio::spawn(connection);
    // The host's name is part of the signature: it stays what the client wrote.
    let request = Request::from_parts(parts, Full::new(body));
    let (parts, body) = sender
        .send_request(request)
        .await
        .map_err(other)?
        .into_parts();
    let body = body.collect().await.map_err(other)?.to_bytes();
    Ok(Response::from_parts(parts, body))
}

fn whole(body: Bytes) -> Body {
    Full::new(body).map_err(never).boxed()
}

fn never(never: Infallible) -> std::io::Error {
    match never {}
}

/// Half of the body, and then the connection ends.
fn cut(body: Bytes) -> Body {
    let half = body.slice(..body.len() / 2);
    let frames = [
        Ok(Frame::data(half)),
        Err(std::io::ErrorKind::ConnectionReset.into()),
    ];
    let frames = if body.is_empty() {
        vec![]
    } else {
        Vec::from(frames)
    };
    BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)))
}

fn slow(body: Bytes) -> Body {
    let bytes = futures::stream::unfold(body, |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        let byte = rest.split_to(1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        Some((Ok(Frame::data(byte)), rest))
    });
    BodyExt::boxed(StreamBody::new(bytes))
}

fn error(status: u16, code: &str, head: bool, date: &str) -> Response<Body> {
    let text = if head {
        String::new()
    } else {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>made by the proxy</Message></Error>"
        )
    };
    let mut response = Response::new(whole(text.into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert("date", date.parse().unwrap());
    response
        .headers_mut()
        .insert("content-type", "application/xml".parse().unwrap());
    response
}
