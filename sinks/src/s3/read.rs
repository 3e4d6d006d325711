//! Reading a range of one version. A stream that is cut, or too slow to be worth waiting for, goes on where it was from a new request.

use super::client::pause;
use super::store::{Store, unquoted, with_customer_key};
use aws_sdk_s3::primitives::ByteStream as Body;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::sink::{ByteStream, Stored};
use futures::StreamExt;
use std::ops::Range;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes after which earlier interruptions are forgotten.
const PROGRESS_BYTES: u64 = 1 << 20;

struct Reading {
    store: Store,
    cx: Context,
    which: Stored,
    key: String,
    version: Option<String>,
    rest: Range<u64>,
    body: Option<(Body, Instant)>,
    attempt: u32,
    since_progress: u64,
}

impl Store {
    pub async fn read(
        &self,
        cx: &Context,
        which: &Stored,
        range: Range<u64>,
    ) -> Result<ByteStream> {
        let version = self.version_of(cx, which).await?;
        let reading = Reading {
            store: self.clone(),
            cx: cx.clone(),
            key: self.key(&which.name),
            which: which.clone(),
            version,
            rest: range,
            body: None,
            attempt: 1,
            since_progress: 0,
        };
        let chunks = futures::stream::try_unfold(reading, |mut reading| async move {
            let chunk = reading.next().await?;
            Ok::<_, Error>(chunk.map(|chunk| (chunk, reading)))
        });
        Ok(chunks.boxed())
    }
}

impl Store {
    /// The sum of a whole object.
    pub async fn sha256(
        &self,
        cx: &Context,
        key: &str,
        version: Option<&str>,
        etag: &str,
        bytes: u64,
    ) -> Result<Vec<u8>> {
        use sha2::Digest;
        let which = Stored {
            name: format!("/{key}"),
            version: super::store::version_word(version),
            bytes,
            modified: jiff::Timestamp::UNIX_EPOCH,
            etag: etag.to_owned(),
            remarks: Vec::new(),
        };
        let mut sum = sha2::Sha256::new();
        let mut stream = self.read(cx, &which, 0..bytes).await?;
        while let Some(chunk) = stream.next().await {
            sum.update(chunk?);
        }
        Ok(sum.finalize().to_vec())
    }
}

impl Reading {
    async fn next(&mut self) -> Result<Option<bytes::Bytes>> {
        while !self.rest.is_empty() {
            let opened = match self.body.take() {
                Some(body) => Some(body),
                None => self.open().await?,
            };
            let Some((mut body, until)) = opened else {
                self.again("the answer is of another object").await?;
                continue;
            };
            let still = self.store.clients.patience().still;
            let chunk = tokio::select! {
                biased;
                () = self.cx.cancel.cancelled() => return Err(Error::cancelled()),
                chunk = tokio::time::timeout_at(until.min(Instant::now() + still), body.next()) => chunk,
            };
            let why = match chunk {
                Ok(Some(Ok(chunk))) if chunk.is_empty() => {
                    self.body = Some((body, until));
                    continue;
                }
                Ok(Some(Ok(chunk))) => {
                    let left = self.rest.end - self.rest.start;
                    let chunk = chunk.slice(..chunk.len().min(left as usize));
                    self.rest.start += chunk.len() as u64;
                    self.progress(chunk.len() as u64);
                    self.body = Some((body, until));
                    return Ok(Some(chunk));
                }
                Ok(Some(Err(error))) => error.to_string(),
                Ok(None) => format!("it ended {} bytes early", self.rest.end - self.rest.start),
                Err(_) => "it was too slow".to_owned(),
            };
            self.again(&why).await?;
        }
        Ok(None)
    }

    /// Waits before the rest is asked for again, or gives up.
    async fn again(&mut self, why: &str) -> Result<()> {
        if self.attempt >= self.store.clients.patience().attempts {
            return Err(Error::new(
                ErrorKind::Unreachable,
                format!("could not read `{}`: {why}", self.which.name),
            ));
        }
        tracing::debug!(name = %self.which.name, at = self.rest.start, why, "reading on from a new request");
        pause(&self.cx, self.attempt).await?;
        self.attempt += 1;
        Ok(())
    }

    fn progress(&mut self, bytes: u64) {
        self.since_progress += bytes;
        if self.since_progress >= PROGRESS_BYTES {
            self.since_progress = 0;
            self.attempt = 1;
        }
    }

    /// Asks for what is left, of this very copy. A body may take as long as the slowest link that is worth it.
    async fn open(&self) -> Result<Option<(Body, Instant)>> {
        let left = self.rest.end - self.rest.start;
        let range = format!("bytes={}-{}", self.rest.start, self.rest.end - 1);
        let etag = Some(self.which.etag.clone())
            .filter(|etag| !etag.is_empty())
            .map(|etag| format!("\"{etag}\""));
        let store = &self.store;
        let answer = store
            .clients
            .ask(&self.cx, 0, || {
                let request = store
                    .clients
                    .s3
                    .get_object()
                    .bucket(store.bucket())
                    .key(&self.key)
                    .set_version_id(self.version.clone())
                    .set_if_match(etag.clone())
                    .range(range.clone());
                with_customer_key!(request, store).send()
            })
            .await
            .map_err(|fault| self.refused(fault))?;
        // It was asked for by its ETag: another one, or none, is an error in the clothes of a success.
        if unquoted(answer.e_tag()) != self.which.etag && !self.which.etag.is_empty() {
            return Ok(None);
        }
        if answer.content_length().is_some_and(|len| len as u64 > left) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the store gives all of `{}` when asked for a part",
                    self.which.name
                ),
            ));
        }
        let patience: Duration = store.clients.patience().attempt(left);
        Ok(Some((answer.body, Instant::now() + patience)))
    }

    fn refused(&self, fault: super::client::Fault) -> Error {
        let name = &self.which.name;
        if fault.code == "InvalidObjectState" {
            let store = &self.store;
            let version = self
                .version
                .as_ref()
                .map(|v| format!(" --version-id {v}"))
                .unwrap_or_default();
            return Error::new(
                ErrorKind::Denied,
                format!("`{name}` lies in a frozen class and must be thawed first, which takes minutes to 12 hours (DEEP_ARCHIVE up to 48)"),
            )
            .hint(format!(
                "aws s3api restore-object --bucket {} --key {}{version} --restore-request Days=3, then repeat when it is done",
                store.bucket(),
                self.key
            ));
        }
        if fault.status == 412 {
            return Error::new(
                ErrorKind::Conflict,
                format!("`{name}` is another object than was listed"),
            );
        }
        if fault.status == 416 {
            return Error::corrupt(format!("`{name}` is shorter than it was"));
        }
        fault.while_trying(&format!("read `{name}`"))
    }
}
