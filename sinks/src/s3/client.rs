//! A client for one bucket, and the one way of asking it: attempts, limits and what each refusal means. The library's own retries are off, since
//! they know neither our limits nor which answers are worth another try.

use super::settings::S3Settings;
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_async::time::{SystemTimeSource, TimeSource};
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::http::Response;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, settings};
use bk_core::secret::Secret;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

const SKEWED: &str = "RequestTimeTooSkewed";
/// How often a request's clock is set before that counts as a failed attempt.
const CLOCK_SETTINGS: u32 = 2;
const CONNECT_LIMIT: Duration = Duration::from_secs(4);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// The slowest link that is worth waiting for.
const SLOWEST_BYTES_PER_SECOND: u64 = 128 << 10;
/// An answer without words (to a HEAD) may hide a passing cause: it is asked again so often.
const WORDLESS_ATTEMPTS: u32 = 3;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub attempts: u32,
    /// A request that stands still so long is tried anew.
    pub still: Duration,
}

impl Patience {
    /// For `check`, which has ten seconds in all.
    pub const QUICK: Self = Self {
        attempts: 2,
        still: Duration::from_secs(4),
    };

    /// What one attempt may take that moves so many bytes.
    pub fn attempt(self, bytes: u64) -> Duration {
        self.still + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND)
    }
}

/// The machine's clock, set right by what the store says when they differ too much for a signature.
#[derive(Clone, Debug, Default)]
struct StoreClock(Arc<AtomicI64>);

impl TimeSource for StoreClock {
    // Signatures are made of the real time, whatever a test says of the run's.
    fn now(&self) -> SystemTime {
        let now = SystemTimeSource::new().now();
        let seconds = self.0.load(Ordering::Relaxed);
        let shift = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 {
            now - shift
        } else {
            now + shift
        }
    }
}

impl StoreClock {
    /// Takes the difference from an answer's `Date`.
    fn follow(&self, date: &str) {
        use aws_smithy_types::date_time::Format;
        let Ok(theirs) = aws_smithy_types::DateTime::from_str(date, Format::HttpDate) else {
            return;
        };
        let ours = self.now().duration_since(SystemTime::UNIX_EPOCH);
        let ours = ours.map_or(0, |d| d.as_secs() as i64) - self.0.load(Ordering::Relaxed);
        self.0.store(theirs.secs() - ours, Ordering::Relaxed);
    }
}

/// Clients of one store.
#[derive(Clone)]
pub struct Clients {
    /// For everything.
    pub s3: Client,
    /// For what deletes and tags.
    pub deleting: Client,
    clock: StoreClock,
    patience: Patience,
    /// Whether bodies need no hash in the signature, since TLS guards them on the way.
    pub unsigned_bodies: bool,
}

impl Clients {
    pub async fn new(settings: &S3Settings) -> Result<Self> {
        let http = http(settings)?;
        let clock = StoreClock::default();
        let own = keys(
            settings.access_key.as_ref(),
            settings.secret_key.as_ref(),
            settings.session_token.as_ref(),
        )
        .await?;
        let said = settings.region.clone();
        // The standard chain ends with a question to the machine's cloud, which takes seconds where there is none: only when it is needed.
        let (credentials, region) = if let Some(own) = own {
            (own, said.or_else(region_of_environment))
        } else {
            let loaded = aws_config::defaults(BehaviorVersion::latest())
                .http_client(http.clone())
                .load()
                .await;
            let credentials = loaded
                .credentials_provider()
                .ok_or_else(|| bk_core::error::settings("there are no credentials"))?;
            let region = said.or_else(|| loaded.region().map(ToString::to_string));
            (credentials, region)
        };
        let region = region.unwrap_or_else(|| "us-east-1".into());
        let deleting = keys(
            settings.delete_access_key.as_ref(),
            settings.delete_secret_key.as_ref(),
            None,
        )
        .await?;
        let client = |credentials: SharedCredentialsProvider| {
            let mut config = aws_sdk_s3::config::Builder::new()
                .behavior_version(BehaviorVersion::latest())
                .http_client(http.clone())
                .time_source(clock.clone())
                .region(Region::new(region.clone()))
                .credentials_provider(credentials)
                .force_path_style(settings.path_style())
                .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
                .retry_config(RetryConfig::disabled())
                .timeout_config(
                    TimeoutConfig::builder()
                        .connect_timeout(CONNECT_LIMIT)
                        .build(),
                )
                // A part that stands still is sent anew long before its whole time is over.
                .stalled_stream_protection(
                    StalledStreamProtectionConfig::enabled()
                        .upload_enabled(true)
                        .download_enabled(false)
                        .grace_period(Duration::from_secs(settings.timeout.min(20)))
                        .build(),
                );
            if let Some(endpoint) = &settings.endpoint {
                config = config.endpoint_url(endpoint);
            }
            Client::from_conf(config.build())
        };
        Ok(Self {
            deleting: client(deleting.unwrap_or_else(|| credentials.clone())),
            s3: client(credentials),
            clock,
            patience: Patience {
                attempts: settings.attempts,
                still: Duration::from_secs(settings.timeout),
            },
            unsigned_bodies: settings
                .endpoint
                .as_ref()
                .is_none_or(|endpoint| endpoint.starts_with("https://")),
        })
    }

    /// The same, in less time.
    #[must_use]
    pub fn quick(&self) -> Self {
        Self {
            patience: Patience {
                still: self.patience.still.min(Patience::QUICK.still),
                ..Patience::QUICK
            },
            ..self.clone()
        }
    }

    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Asks, and asks again while that may help. `bytes` is what travels in one attempt.
    pub async fn ask<T, E, A>(
        &self,
        cx: &Context,
        bytes: u64,
        request: impl Fn() -> A,
    ) -> Result<T, Fault>
    where
        A: Future<Output = Result<T, SdkError<E, Response>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let mut attempt = 1;
        loop {
            let fault = match self.once(cx, bytes, &request).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            let enough = attempt >= self.patience.attempts
                || (fault.wordless() && attempt >= WORDLESS_ATTEMPTS);
            if !fault.passing || enough {
                return Err(fault);
            }
            tracing::debug!(attempt, fault = %fault.words(), "asking again");
            pause(cx, attempt).await.map_err(Fault::from)?;
            attempt += 1;
        }
    }

    /// Asks once; again where the clock was refused, which says nothing of the request, unless it goes on so.
    pub async fn once<T, E, A>(
        &self,
        cx: &Context,
        bytes: u64,
        request: impl Fn() -> A,
    ) -> Result<T, Fault>
    where
        A: Future<Output = Result<T, SdkError<E, Response>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let mut set_clock = 0;
        loop {
            match self.send(cx, bytes, &request).await {
                Err(fault) if fault.code == SKEWED && set_clock < CLOCK_SETTINGS => set_clock += 1,
                answer => return answer,
            }
        }
    }

    async fn send<T, E, A>(
        &self,
        cx: &Context,
        bytes: u64,
        request: &impl Fn() -> A,
    ) -> Result<T, Fault>
    where
        A: Future<Output = Result<T, SdkError<E, Response>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let limit = self.patience.attempt(bytes);
        let answer = tokio::select! {
            biased;
            () = cx.cancel.cancelled() => return Err(Error::cancelled().into()),
            answer = tokio::time::timeout(limit, request()) => answer,
        };
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let fault = Fault::of(&error);
                if fault.code == SKEWED
                    && let Some(date) = error.raw_response().and_then(|r| r.headers().get("date"))
                {
                    self.clock.follow(date);
                }
                Err(fault)
            }
            Err(_) => Err(Fault::late(limit)),
        }
    }
}

/// Waits before the next attempt: longer each time, and never all at one moment.
pub async fn pause(cx: &Context, attempt: u32) -> Result<()> {
    let whole = FIRST_PAUSE
        .saturating_mul(1 << (attempt - 1).min(16))
        .min(LONGEST_PAUSE);
    let chance = RandomState::new().hash_one(attempt) % 512;
    let pause = whole / 2 + whole.mul_f64(chance as f64 / 1024.0);
    cx.pause(pause).await
}

fn region_of_environment() -> Option<String> {
    ["AWS_REGION", "AWS_DEFAULT_REGION"]
        .iter()
        .find_map(|name| std::env::var(name).ok())
}

async fn keys(
    access: Option<&Secret>,
    secret: Option<&Secret>,
    token: Option<&Secret>,
) -> Result<Option<SharedCredentialsProvider>> {
    let (Some(access), Some(secret)) = (access, secret) else {
        return Ok(None);
    };
    let token = match token {
        Some(token) => Some(token.reveal().await?),
        None => None,
    };
    let keys = Credentials::new(
        access.reveal().await?,
        secret.reveal().await?,
        token,
        None,
        "settings",
    );
    Ok(Some(SharedCredentialsProvider::new(keys)))
}

fn http(s: &S3Settings) -> Result<SharedHttpClient> {
    let trust = match &s.ca {
        None => TrustStore::default(),
        Some(path) => {
            let pem = std::fs::read(path).map_err(|e| Error {
                kind: ErrorKind::Settings,
                ..Error::io("read the authority's certificate in", path, e)
            })?;
            TrustStore::empty().with_pem_certificate(pem)
        }
    };
    let context = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|e| settings(format!("the TLS settings cannot be used: {e}")))?;
    Ok(aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(context)
        .build_https())
}

/// What a store said instead of an answer.
#[derive(Debug)]
pub struct Fault {
    /// HTTP status; 0 when there was no answer.
    pub status: u16,
    /// The store's word for it.
    pub code: String,
    message: String,
    kind: ErrorKind,
    /// Whether the same request may succeed soon.
    pub passing: bool,
}

impl Fault {
    fn of<E>(error: &SdkError<E, Response>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let status = error.raw_response().map_or(0, |r| r.status().as_u16());
        match error {
            SdkError::ServiceError(said) => {
                let said = said.err();
                let code = said.code().unwrap_or_default().to_owned();
                // An answer in no known form has no words of its own, only causes.
                let message = match said.message() {
                    Some(message) => message.to_owned(),
                    None if code.is_empty() && status < 300 => chain(error),
                    None => String::new(),
                };
                Self::said(status, code, message)
            }
            SdkError::ResponseError(_) => Self {
                status,
                code: String::new(),
                message: chain(error),
                kind: ErrorKind::Unreachable,
                passing: true,
            },
            other => Self::no_answer(other),
        }
    }

    fn no_answer<E>(error: &SdkError<E, Response>) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let message = chain(error);
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        let mut credentials = None;
        while let Some(error) = cause {
            credentials = credentials.or_else(|| error.downcast_ref::<CredentialsError>());
            cause = error.source();
        }
        let (kind, passing) = match credentials {
            Some(
                CredentialsError::CredentialsNotLoaded(_)
                | CredentialsError::InvalidConfiguration(_),
            ) => (ErrorKind::Settings, false),
            Some(_) => (ErrorKind::Auth, true),
            None if is_about_certificates(&message) => (ErrorKind::Settings, false),
            None if matches!(error, SdkError::ConstructionFailure(_)) => (ErrorKind::Bug, false),
            None => (ErrorKind::Unreachable, true),
        };
        Self {
            status: 0,
            code: String::new(),
            message,
            kind,
            passing,
        }
    }

    fn late(limit: Duration) -> Self {
        Self {
            status: 0,
            code: String::new(),
            message: format!("no answer within {} s", limit.as_secs()),
            kind: ErrorKind::Unreachable,
            passing: true,
        }
    }

    /// What an answer that is a refusal means. The words are those of Amazon's list of error codes and of Ceph's.
    fn said(status: u16, code: String, message: String) -> Self {
        let (kind, passing) = match (code.as_str(), status) {
            ("ExpiredToken" | "TokenRefreshRequired" | SKEWED | "RequestExpired", _) => {
                (ErrorKind::Auth, true)
            }
            (
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "InvalidToken"
                | "AuthorizationHeaderMalformed"
                | "NotSignedUp",
                _,
            ) => (ErrorKind::Auth, false),
            ("NoSuchBucket" | "InvalidBucketName" | "PermanentRedirect", _) => {
                (ErrorKind::Settings, false)
            }
            ("QuotaExceeded", _) => (ErrorKind::NoSpace, false),
            (
                "BadDigest"
                | "InvalidDigest"
                | "XAmzContentSHA256Mismatch"
                | "IncompleteBody"
                | "RequestTimeout"
                | "SlowDown"
                | "OperationAborted",
                _,
            ) => (ErrorKind::Unreachable, true),
            ("NotImplemented" | "MethodNotAllowed", _) | (_, 501) => {
                (ErrorKind::Unsupported, false)
            }
            ("ConditionalRequestConflict", _) | (_, 409 | 412) => (ErrorKind::Conflict, false),
            (_, 404) => (ErrorKind::NotFound, false),
            ("", 400 | 403) => (ErrorKind::Denied, true),
            (_, 507) => (ErrorKind::NoSpace, false),
            (_, 0..=299 | 408 | 429 | 500..) => (ErrorKind::Unreachable, true),
            // A missing right; or a refusal of another kind, which says nothing of the object itself: it may be frozen.
            _ => (ErrorKind::Denied, false),
        };
        Self {
            status,
            code,
            message,
            kind,
            passing,
        }
    }

    fn wordless(&self) -> bool {
        self.code.is_empty() && matches!(self.status, 400 | 403)
    }

    /// Nothing of that name.
    pub fn is_not_found(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }

    /// A right that lacks.
    pub fn is_denied(&self) -> bool {
        matches!(self.status, 401 | 403) && self.kind == ErrorKind::Denied
    }

    /// A condition that did not hold.
    pub fn is_conflict(&self) -> bool {
        self.kind == ErrorKind::Conflict
    }

    /// Nothing of the kind can be done there.
    pub fn is_unsupported(&self) -> bool {
        self.kind == ErrorKind::Unsupported || self.status == 501
    }

    /// In words.
    pub fn words(&self) -> String {
        match (self.status, self.code.as_str(), self.message.as_str()) {
            (0, _, message) => message.to_owned(),
            (status, "", "") => format!("it answered {status}"),
            (status, "", message) => format!("it answered {status}: {message}"),
            (status, code, "") => format!("it answered {status} {code}"),
            (status, code, message) => format!("it answered {status} {code}: {message}"),
        }
    }

    /// As an error of what was tried: `could not DOING: …`.
    pub fn while_trying(self, doing: &str) -> Error {
        let error = Error::new(self.kind, format!("could not {doing}: {}", self.words()));
        match (self.kind, self.code.as_str()) {
            (ErrorKind::Cancelled, _) => Error::cancelled(),
            (_, "NoSuchBucket") => {
                error.hint("make the bucket, or name another in `bucket`; with some stores `addressing = \"path\"` helps")
            }
            (_, "PermanentRedirect" | "AuthorizationHeaderMalformed") => {
                error.hint("set `region` to the bucket's")
            }
            (ErrorKind::Auth, _) => error.hint("look at `access_key` and `secret_key`, or at the environment that gives them"),
            (ErrorKind::Settings, _) if is_about_certificates(&self.message) => {
                error.hint("name the authority's certificate in `ca`")
            }
            (ErrorKind::Settings, _) => {
                error.hint("set `access_key` and `secret_key`, or give the standard chain what it needs")
            }
            _ => error,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self {
            status: 0,
            code: String::new(),
            kind: error.kind,
            message: error.what,
            passing: false,
        }
    }
}

fn is_about_certificates(message: &str) -> bool {
    message.contains("certificate") || message.contains("UnknownIssuer")
}

/// An error with its causes; each says what the one before left out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if words.last() != Some(&said) {
            words.push(said);
        }
        cause = error.source();
    }
    words.join(": ")
}
