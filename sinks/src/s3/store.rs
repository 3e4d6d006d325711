//! One site's place in a bucket: its clients, its prefix, and what was learned of the store.

use super::checksum::{Proof, Sums};
use super::client::{Clients, Fault};
use super::settings::{EncryptionMode, S3Settings};
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{BucketVersioningStatus, ChecksumMode, ServerSideEncryption};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, settings};
use bk_core::sink::{NoteName, Stored};
use jiff::Timestamp;
use md5::Digest;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::OnceCell;

/// Days after which a store is tried anew.
const PROBE_DAYS: i64 = 30;
/// Metadata of an archive.
pub const ID: &str = "bk-id";
pub const SITE: &str = "bk-site";
/// A bucket that keeps no versions has one copy of a name, whose version has this word.
pub const NULL: &str = "null";

/// Whether the bucket keeps versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versioning {
    /// It never did.
    Never,
    /// Every write is a version.
    Enabled,
    /// It did once; now a write overwrites.
    Suspended,
}

/// What a store was seen to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// What it checks.
    pub proof: Proof,
    /// Whether `If-None-Match: *` is obeyed.
    pub conditions: bool,
}

#[derive(Serialize, Deserialize)]
struct ProbeNote {
    endpoint: String,
    at: Timestamp,
    learned: Learned,
}

/// The operator's key of SSE-C, as it is sent.
#[derive(Clone, Default)]
pub struct CustomerKey {
    pub algorithm: Option<String>,
    pub key: Option<String>,
    pub md5: Option<String>,
}

/// Puts the operator's key on a request that takes one.
macro_rules! with_customer_key {
    ($request:expr, $store:expr) => {
        $request
            .set_sse_customer_algorithm($store.customer_key.algorithm.clone())
            .set_sse_customer_key($store.customer_key.key.clone())
            .set_sse_customer_key_md5($store.customer_key.md5.clone())
    };
}
pub(super) use with_customer_key;

/// One site's place.
#[derive(Clone)]
pub struct Store {
    pub clients: Clients,
    pub settings: Arc<S3Settings>,
    pub site: String,
    /// Empty, or ends with `/`.
    pub prefix: String,
    pub customer_key: CustomerKey,
    versioning: Arc<OnceCell<Versioning>>,
    learned: Arc<OnceCell<Learned>>,
}

impl Store {
    pub async fn open(cx: &Context, settings: Arc<S3Settings>) -> Result<Self> {
        let clients = Clients::new(&settings).await?;
        Ok(Self {
            customer_key: customer_key(&settings).await?,
            clients,
            site: cx.site.to_string(),
            prefix: settings.prefix_of(&cx.site),
            settings,
            versioning: Arc::default(),
            learned: Arc::default(),
        })
    }

    /// The same keys in another bucket, of which nothing is known yet.
    pub fn in_bucket(&self, bucket: &str) -> Self {
        Self {
            settings: Arc::new(S3Settings {
                bucket: bucket.to_owned(),
                ..(*self.settings).clone()
            }),
            versioning: Arc::default(),
            learned: Arc::default(),
            ..self.clone()
        }
    }

    /// The same, with little time.
    pub fn quick(&self) -> Self {
        Self {
            clients: self.clients.quick(),
            ..self.clone()
        }
    }

    pub fn bucket(&self) -> &str {
        &self.settings.bucket
    }

    /// The store, as another sink of it would say it.
    pub fn endpoint(&self) -> String {
        let endpoint = self.settings.endpoint.as_deref().unwrap_or("amazon");
        endpoint.trim_end_matches('/').to_owned()
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        let endpoint = self.settings.endpoint.as_deref().unwrap_or("Amazon");
        format!("s3://{}/{} at {endpoint}", self.bucket(), self.prefix)
    }

    /// The key of an archive's name. A name that begins with `/` lies outside of the site's prefix.
    pub fn key(&self, name: &str) -> String {
        match name.strip_prefix('/') {
            Some(foreign) => foreign.to_owned(),
            None => format!("{}{name}", self.prefix),
        }
    }

    pub fn note_key(&self, name: &NoteName) -> String {
        format!("{}.bk/{}/{}", self.prefix, name.site, name.name)
    }

    pub fn own_note(&self, name: &str) -> NoteName {
        NoteName {
            site: self.site.clone(),
            name: name.to_owned(),
        }
    }

    /// The version that a request must name: none where the bucket never kept any.
    pub async fn version_of(&self, cx: &Context, which: &Stored) -> Result<Option<String>> {
        Ok(match self.versioning(cx).await? {
            Versioning::Never => None,
            _ if which.version.is_empty() => Some(NULL.into()),
            _ => Some(which.version.clone()),
        })
    }

    /// Asked once.
    pub async fn versioning(&self, cx: &Context) -> Result<Versioning> {
        let asked = self.versioning.get_or_try_init(|| self.ask_versioning(cx));
        asked.await.copied()
    }

    pub async fn ask_versioning(&self, cx: &Context) -> Result<Versioning> {
        let request = || {
            let bucket = self.clients.s3.get_bucket_versioning();
            bucket.bucket(self.bucket()).send()
        };
        let answer = match self.clients.once(cx, 0, request).await {
            // A success that cannot be read may be a failure in its clothes, or the store's own form: then it comes again.
            Err(fault) if fault.status == 200 => self.clients.once(cx, 0, request).await,
            Err(fault) if fault.passing => self.clients.ask(cx, 0, request).await,
            other => other,
        };
        match answer {
            Ok(answer) => Ok(match answer.status() {
                Some(BucketVersioningStatus::Enabled) => Versioning::Enabled,
                Some(BucketVersioningStatus::Suspended) => Versioning::Suspended,
                _ => Versioning::Never,
            }),
            // Some stores do not know the question, or answer in a form of their own: what a write says decides.
            Err(fault) if fault.is_unsupported() || fault.status == 200 => {
                self.versioning_by_writing(cx).await
            }
            Err(fault) => {
                let doing = format!("ask whether `{}` keeps versions", self.bucket());
                Err(fault.while_trying(&doing))
            }
        }
    }

    async fn versioning_by_writing(&self, cx: &Context) -> Result<Versioning> {
        let key = format!("{}.bk/{}/version", self.prefix, self.site);
        let written = self
            .clients
            .ask(cx, 0, || {
                self.clients
                    .s3
                    .put_object()
                    .bucket(self.bucket())
                    .key(&key)
                    .body(bytes::Bytes::from_static(b"x").into())
                    .send()
            })
            .await
            .map_err(|fault| fault.while_trying(&format!("write to {}", self.place())))?;
        Ok(match written.version_id() {
            None => Versioning::Never,
            Some(NULL) => Versioning::Suspended,
            Some(_) => Versioning::Enabled,
        })
    }

    /// What is known without asking.
    pub fn known(&self) -> (Option<Versioning>, Option<Learned>) {
        (self.versioning.get().copied(), self.learned.get().copied())
    }

    /// What one copy is now.
    pub async fn head(
        &self,
        cx: &Context,
        key: &str,
        version: Option<&str>,
    ) -> Result<HeadObjectOutput, Fault> {
        self.head_in(cx, self.bucket(), key, version).await
    }

    /// The same in any bucket.
    pub async fn head_in(
        &self,
        cx: &Context,
        bucket: &str,
        key: &str,
        version: Option<&str>,
    ) -> Result<HeadObjectOutput, Fault> {
        self.clients
            .ask(cx, 0, || {
                let request = self
                    .clients
                    .s3
                    .head_object()
                    .bucket(bucket)
                    .key(key)
                    .set_version_id(version.map(str::to_owned))
                    .checksum_mode(ChecksumMode::Enabled);
                with_customer_key!(request, self).send()
            })
            .await
    }

    /// How the store encrypts archives.
    pub fn encryption(&self) -> (Option<ServerSideEncryption>, Option<String>) {
        match &self.settings.encryption {
            Some(e) if e.mode == EncryptionMode::Store => {
                (Some(ServerSideEncryption::Aes256), None)
            }
            Some(e) if e.mode == EncryptionMode::Kms => {
                (Some(ServerSideEncryption::AwsKms), e.key_id.clone())
            }
            _ => (None, None),
        }
    }

    /// What the store checks: from the settings, from the note of an earlier try, or tried now.
    pub async fn learned(&self, cx: &Context) -> Result<Learned> {
        let learned = self.learned.get_or_try_init(|| async {
            if let Some(learned) = self.remembered(cx).await {
                return Ok(learned);
            }
            let learned = self.probe(cx).await?;
            self.remember(cx, learned).await;
            Ok(learned)
        });
        learned.await.copied()
    }

    fn endpoint_word(&self) -> String {
        format!(
            "{} {:?}",
            self.settings.endpoint.as_deref().unwrap_or("amazon"),
            self.settings.checksum
        )
    }

    async fn remembered(&self, cx: &Context) -> Option<Learned> {
        let note = self.note(cx, &self.own_note("probe")).await.ok()??;
        let note: ProbeNote = serde_json::from_slice(&note.body).ok()?;
        let age = cx.clock.now().duration_since(note.at);
        (note.endpoint == self.endpoint_word()
            && age.as_hours() < PROBE_DAYS * 24
            && age.as_secs() >= 0)
            .then_some(note.learned)
    }

    async fn remember(&self, cx: &Context, learned: Learned) {
        let note = ProbeNote {
            endpoint: self.endpoint_word(),
            at: cx.clock.now(),
            learned,
        };
        let Ok(body) = serde_json::to_vec(&note) else {
            return;
        };
        let name = self.own_note("probe");
        if let Err(error) = self
            .set_note(cx, &name, body.into(), bk_core::sink::Was::Any)
            .await
        {
            tracing::debug!(%error, "what the store checks was not remembered");
        }
    }

    /// Tries it with tiny objects: a wrong sum must be refused, and the sum that is kept must be ours.
    async fn probe(&self, cx: &Context) -> Result<Learned> {
        // A name of its own: another run may be trying too.
        let chance = bk_core::backup::draw_id()?;
        let key = format!("{}.bk/{}/try-{}", self.prefix, self.site, &chance[..8]);
        let proof = match Proof::set(self.settings.checksum) {
            Some(proof) => proof,
            None => self.probe_sums(cx, &key).await?,
        };
        // Whatever lies there, there is something now.
        self.put_probe(cx, &key, &Sums::of(Proof::Md5, PROBE_BODY), None, false)
            .await
            .map_err(|fault| fault.while_trying(&format!("write to {}", self.place())))?;
        let conditions = match self
            .put_probe(cx, &key, &Sums::of(Proof::Md5, PROBE_BODY), None, true)
            .await
        {
            Ok(()) => false,
            Err(fault) => fault.is_conflict(),
        };
        self.remove_everything(cx, &key).await;
        Ok(Learned { proof, conditions })
    }

    async fn probe_sums(&self, cx: &Context, key: &str) -> Result<Proof> {
        for proof in [Proof::Crc64nvme, Proof::Crc32c, Proof::Md5] {
            let wrong = Sums::of(proof, b"something else");
            match self
                .put_probe(cx, key, &wrong, proof.algorithm(), false)
                .await
            {
                Ok(()) => {
                    tracing::info!("{} accepts a wrong {}", self.place(), proof.words());
                    continue;
                }
                Err(fault) if (400..500).contains(&fault.status) && !fault.is_denied() => {}
                Err(fault) if fault.is_unsupported() => continue,
                Err(fault) => {
                    return Err(fault.while_trying(&format!("write to {}", self.place())));
                }
            }
            let right = Sums::of(proof, PROBE_BODY);
            if let Err(fault) = self
                .put_probe(cx, key, &right, proof.algorithm(), false)
                .await
            {
                if fault.is_denied() || fault.passing || fault.status == 0 {
                    return Err(fault.while_trying(&format!("write to {}", self.place())));
                }
                continue;
            }
            let head = self
                .head(cx, key, None)
                .await
                .map_err(|fault| fault.while_trying(&format!("look at `{key}`")))?;
            let kept = match proof {
                Proof::Crc64nvme => head.checksum_crc64_nvme() == right.crc64.as_deref(),
                Proof::Crc32c => head.checksum_crc32_c() == right.crc32c.as_deref(),
                _ => self.settings.encryption.is_none() && unquoted(head.e_tag()) == right.etag(),
            };
            if kept {
                return Ok(proof);
            }
        }
        Ok(Proof::None)
    }

    async fn put_probe(
        &self,
        cx: &Context,
        key: &str,
        sums: &Sums,
        algorithm: Option<aws_sdk_s3::types::ChecksumAlgorithm>,
        only_new: bool,
    ) -> Result<(), Fault> {
        let mut attempt = 1;
        loop {
            let answer = self
                .clients
                .once(cx, 0, || {
                    let request = self
                        .clients
                        .s3
                        .put_object()
                        .bucket(self.bucket())
                        .key(key)
                        .body(bytes::Bytes::from_static(PROBE_BODY).into())
                        .set_checksum_algorithm(algorithm.clone())
                        .set_checksum_crc64_nvme(sums.crc64.clone())
                        .set_checksum_crc32_c(sums.crc32c.clone())
                        .set_content_md5(sums.md5.clone())
                        .set_if_none_match(only_new.then(|| "*".to_owned()));
                    with_customer_key!(request, self).send()
                })
                .await;
            // A sum that is refused (400) is what is looked for; anything that passes is asked again.
            let again = match &answer {
                Ok(answer) => answer.e_tag().is_none(),
                Err(fault) => fault.passing && fault.status != 400,
            };
            if !again || attempt >= self.clients.patience().attempts {
                return answer.map(|_| ());
            }
            super::client::pause(cx, attempt).await?;
            attempt += 1;
        }
    }

    /// Removes every version of a scratch key, as far as the right reaches.
    pub async fn remove_everything(&self, cx: &Context, key: &str) {
        let versions = match self.versions_of(cx, key).await {
            Ok(versions) => versions,
            Err(error) => {
                tracing::debug!(%error, key, "leftovers stay");
                return;
            }
        };
        for version in versions {
            if let Err(fault) = self.delete_version(cx, key, Some(&version.id)).await {
                tracing::debug!(fault = %fault.words(), key, "a leftover stays");
                return;
            }
        }
    }

    /// Removes this very version; never a name alone where versions are kept.
    pub async fn delete_version(
        &self,
        cx: &Context,
        key: &str,
        version: Option<&str>,
    ) -> Result<(), Fault> {
        // Where versions are suspended a delete without one hides the object behind a marker.
        let suspended = self.versioning.get() == Some(&Versioning::Suspended);
        let version = version.or(suspended.then_some(NULL));
        let deleted = self
            .clients
            .ask(cx, 0, || {
                self.clients
                    .deleting
                    .delete_object()
                    .bucket(self.bucket())
                    .key(key)
                    .set_version_id(version.map(str::to_owned))
                    .send()
            })
            .await;
        match deleted {
            Ok(_) => Ok(()),
            Err(fault) if fault.is_not_found() => Ok(()),
            Err(fault) => Err(fault),
        }
    }
}

const PROBE_BODY: &[u8] = b"bk tries what this store checks\n";

async fn customer_key(s: &S3Settings) -> Result<CustomerKey> {
    let Some(secret) = s.encryption.as_ref().and_then(|e| e.key.as_ref()) else {
        return Ok(CustomerKey::default());
    };
    let text = secret.reveal().await?;
    let key = BASE64_STANDARD
        .decode(text.trim())
        .ok()
        .filter(|key| key.len() == 32)
        .ok_or_else(|| {
            settings("`encryption.key` is not 32 bytes as base64")
                .hint("make one with: head -c 32 /dev/urandom | base64")
        })?;
    let sum: [u8; 16] = md5::Md5::digest(&key).into();
    Ok(CustomerKey {
        algorithm: Some("AES256".into()),
        key: Some(BASE64_STANDARD.encode(&key)),
        md5: Some(BASE64_STANDARD.encode(sum)),
    })
}

/// A copy as it is listed, from what HEAD says.
pub fn stored(name: &str, version: Option<&str>, head: &HeadObjectOutput) -> Stored {
    Stored {
        name: name.to_owned(),
        version: version_word(version),
        bytes: head.content_length().unwrap_or(0).max(0) as u64,
        modified: timestamp(head.last_modified()),
        etag: unquoted(head.e_tag()),
        remarks: Vec::new(),
    }
}

/// The store's word for a version as `Stored` has it: empty where there is only one.
pub fn version_word(version: Option<&str>) -> String {
    version.filter(|v| *v != NULL).unwrap_or("").to_owned()
}

pub fn unquoted(etag: Option<&str>) -> String {
    etag.unwrap_or("").trim_matches('"').to_owned()
}

/// In whole seconds: that is all that every answer has.
pub fn timestamp(at: Option<&aws_sdk_s3::primitives::DateTime>) -> Timestamp {
    at.and_then(|at| Timestamp::from_second(at.secs()).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// An error that says that a published copy is not what was sent.
pub fn not_what_was_sent(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}
