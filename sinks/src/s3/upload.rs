//! An archive on its way: a multipart upload of unknown length in bounded memory. Parts are whole buffers, so that each can be sent again.

use super::checksum::{Proof, Sums};
use super::client::Fault;
use super::store::{ID, Learned, SITE, Store, Versioning, unquoted, with_customer_key};
use aws_sdk_s3::types::{ChecksumType, CompletedPart, StorageClass};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, bug};
use bk_core::sink::SizeHint;
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Parts on their way at once; one more is being filled.
const IN_FLIGHT: usize = 3;
const USUAL_PART_BYTES: u64 = 16 << 20;
const LARGEST_PART_BYTES: u64 = 5 << 30;
const MIB: u64 = 1 << 20;
/// Where parts may differ, they double each time that so much of the store's number of parts is used up.
const DOUBLINGS: u32 = 4;
/// What an abort may take.
const ABORT_LIMIT: Duration = Duration::from_secs(20);

/// How large each part is.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    first: u64,
    max_parts: u32,
    equal: bool,
}

impl Plan {
    /// Parts that carry half as much again as the last archive; an error when no size can.
    pub fn new(store: &Store, hint: SizeHint) -> Result<Self> {
        let s = &store.settings;
        let wanted = hint.previous_bytes.unwrap_or(0) / 2 * 3;
        let needed = wanted
            .div_ceil(u64::from(s.max_parts))
            .next_multiple_of(MIB);
        let first = s
            .part_size
            .map_or(needed.max(USUAL_PART_BYTES), |size| size.0);
        let plan = Self {
            first,
            max_parts: s.max_parts,
            equal: s.equal_parts,
        };
        if first > LARGEST_PART_BYTES || plan.reach() < hint.previous_bytes.unwrap_or(0) {
            return Err(Error::new(
                ErrorKind::Settings,
                format!(
                    "the last archive has {} bytes, and {} parts of {first} bytes do not reach that far",
                    hint.previous_bytes.unwrap_or(0),
                    s.max_parts
                ),
            )
            .hint("raise `part_size` (four parts are held in memory), or `max_parts` if the store takes more"));
        }
        Ok(plan)
    }

    /// Bytes of part `number`, from 1.
    pub fn part_bytes(self, number: u32) -> u64 {
        if self.equal {
            return self.first;
        }
        let step = (self.max_parts / DOUBLINGS).max(1);
        let doubled = self.first << ((number - 1) / step).min(DOUBLINGS - 1);
        doubled.min(LARGEST_PART_BYTES)
    }

    /// The largest archive.
    fn reach(self) -> u64 {
        let step = u64::from((self.max_parts / DOUBLINGS).max(1));
        if self.equal {
            return self.first.saturating_mul(u64::from(self.max_parts));
        }
        (0..u64::from(DOUBLINGS))
            .map(|n| step.saturating_mul(self.first << n))
            .sum()
    }
}

/// A part that the store has.
#[derive(Clone, Debug)]
pub struct Part {
    pub number: u32,
    pub etag: String,
    pub sums: Sums,
}

/// A part that the store has, and its buffer where nobody else holds it any more.
type Landed = (Part, Option<BytesMut>);

/// An upload that was begun, and what became of its parts.
pub struct Multipart {
    pub store: Store,
    pub cx: Context,
    pub key: String,
    pub upload_id: String,
    pub learned: Learned,
    pub versioning: Versioning,
    /// Versions that were there before it began are none of its.
    pub known_before: Vec<String>,
    /// Whether an answer to its beginning was lost: a second upload, without parts, may be open then.
    twin: bool,
    plan: Plan,
    filling: BytesMut,
    /// Buffers of parts that have landed: the same few carry all of an archive, whatever the allocator makes of large ones.
    spare: Vec<BytesMut>,
    flying: VecDeque<JoinHandle<Result<Landed>>>,
    parts: BTreeMap<u32, Part>,
    next: u32,
    pub sent: u64,
}

impl Multipart {
    /// Begins it; the store is told whose it is.
    pub async fn begin(
        cx: &Context,
        store: &Store,
        key: &str,
        id: &str,
        plan: Plan,
    ) -> Result<Self> {
        let learned = store.learned(cx).await?;
        let versioning = store.versioning(cx).await?;
        let known_before = if versioning == Versioning::Never {
            Vec::new()
        } else {
            let versions = store.versions_of(cx, key).await?;
            versions.into_iter().map(|version| version.id).collect()
        };
        let (upload_id, twin) = create(cx, store, key, id, learned.proof)
            .await
            .map_err(|fault| fault.while_trying(&format!("begin `{key}`")))?;
        Ok(Self {
            store: store.clone(),
            cx: cx.clone(),
            key: key.to_owned(),
            upload_id,
            learned,
            versioning,
            known_before,
            twin,
            plan,
            filling: BytesMut::new(),
            spare: Vec::new(),
            flying: VecDeque::new(),
            parts: BTreeMap::new(),
            next: 1,
            sent: 0,
        })
    }

    /// Takes bytes; full parts leave at once, the oldest is waited for when too many are on their way.
    pub async fn write(&mut self, mut chunk: Bytes) -> Result<()> {
        while !chunk.is_empty() {
            let size = self.plan.part_bytes(self.next);
            let room = (size - self.filling.len() as u64).min(chunk.len() as u64);
            if self.filling.capacity() == 0 {
                self.filling = self.spare.pop().unwrap_or_default();
                self.filling.reserve(size as usize);
            }
            self.filling
                .extend_from_slice(&chunk.split_to(room as usize));
            if self.filling.len() as u64 == size {
                self.send().await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<()> {
        while self.flying.len() >= IN_FLIGHT {
            self.land().await?;
        }
        let number = self.next;
        if number > self.plan.max_parts {
            return Err(Error::new(
                ErrorKind::Settings,
                format!(
                    "`{}` grew over the {} parts that the store takes",
                    self.key, self.plan.max_parts
                ),
            )
            .hint("set `part_size` larger: four parts are held in memory"));
        }
        self.next += 1;
        let body = std::mem::take(&mut self.filling).freeze();
        self.sent += body.len() as u64;
        let (store, cx, key, upload) = (
            self.store.clone(),
            self.cx.clone(),
            self.key.clone(),
            self.upload_id.clone(),
        );
        let proof = self.learned.proof;
        self.flying.push_back(tokio::spawn(async move {
            upload_part(&cx, &store, &key, &upload, number, body, proof).await
        }));
        Ok(())
    }

    async fn land(&mut self) -> Result<()> {
        // It stays in the queue while it is waited for: whoever stops the wait must still find it.
        let Some(task) = self.flying.front_mut() else {
            return Ok(());
        };
        let landed = task.await;
        self.flying.pop_front();
        let (part, buffer) =
            landed.map_err(|e| bug(format!("the upload of a part ended: {e}")))??;
        self.spare.extend(buffer);
        self.parts.insert(part.number, part);
        Ok(())
    }

    /// Sends what is left. An object has at least one part.
    pub async fn finish_parts(&mut self) -> Result<()> {
        if !self.filling.is_empty() || self.next == 1 {
            self.send().await?;
        }
        while !self.flying.is_empty() {
            self.land().await?;
        }
        Ok(())
    }

    /// Every part, as Complete lists them.
    pub fn completed_parts(&self) -> Vec<CompletedPart> {
        self.parts
            .values()
            .map(|part| {
                CompletedPart::builder()
                    .part_number(part.number as i32)
                    .e_tag(&part.etag)
                    .set_checksum_crc64_nvme(part.sums.crc64.clone())
                    .set_checksum_crc32_c(part.sums.crc32c.clone())
                    .build()
            })
            .collect()
    }

    /// What the store must say of the whole object.
    pub fn whole_sum(&self) -> Option<String> {
        let sums: Vec<Sums> = self.parts.values().map(|p| p.sums.clone()).collect();
        super::checksum::of_whole(self.learned.proof, &sums)
    }

    /// Takes the parts' ETags from the store's own list, where it says that one of ours is wrong. False when they were right.
    pub async fn mend_etags(&mut self) -> Result<bool> {
        let mut mended = false;
        let mut after: Option<String> = None;
        loop {
            let store = &self.store;
            let page = store
                .clients
                .ask(&self.cx, 0, || {
                    store
                        .clients
                        .s3
                        .list_parts()
                        .bucket(store.bucket())
                        .key(&self.key)
                        .upload_id(&self.upload_id)
                        .set_part_number_marker(after.clone())
                        .send()
                })
                .await
                .map_err(|fault| {
                    fault.while_trying(&format!("list the parts of `{}`", self.key))
                })?;
            for listed in page.parts() {
                let number = listed.part_number().unwrap_or(0) as u32;
                let etag = unquoted(listed.e_tag());
                if let Some(part) = self.parts.get_mut(&number)
                    && listed.size() == Some(part.sums.bytes() as i64)
                    && part.etag != etag
                {
                    part.etag = etag;
                    mended = true;
                }
            }
            after = page.next_part_number_marker().map(str::to_owned);
            if !page.is_truncated().unwrap_or(false) || after.is_none() {
                return Ok(mended);
            }
        }
    }

    /// Ends an upload of this key that was begun before this one, in the same moment, and never got a part.
    pub async fn end_twin(&self) {
        if !self.twin {
            return;
        }
        let store = &self.store;
        let listed = store
            .clients
            .ask(&self.cx, 0, || {
                store
                    .clients
                    .s3
                    .list_multipart_uploads()
                    .bucket(store.bucket())
                    .prefix(&self.key)
                    .send()
            })
            .await;
        let Ok(listed) = listed else { return };
        let begun = listed
            .uploads()
            .iter()
            .find(|upload| upload.upload_id() == Some(self.upload_id.as_str()))
            .and_then(|upload| upload.initiated());
        for upload in listed.uploads() {
            // Only what was begun before this one can be its twin. After Complete this one is no longer listed.
            if begun.is_some_and(|begun| {
                upload
                    .initiated()
                    .is_some_and(|at| at.secs() > begun.secs())
            }) {
                continue;
            }
            let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else {
                continue;
            };
            if key != self.key || id == self.upload_id {
                continue;
            }
            let parts = store
                .clients
                .ask(&self.cx, 0, || {
                    store
                        .clients
                        .s3
                        .list_parts()
                        .bucket(store.bucket())
                        .key(key)
                        .upload_id(id)
                        .send()
                })
                .await;
            if parts.is_ok_and(|parts| parts.parts().is_empty())
                && let Err(error) = abort(&self.cx, store, key, id).await
            {
                tracing::debug!(%error, "an upload without parts stays");
            }
        }
    }

    /// Leaves nothing: parts on their way are waited for or stopped first, since one that arrives after the abort would stay.
    pub async fn abort(mut self) -> Result<()> {
        for task in self.flying.drain(..) {
            task.abort();
            let _ = task.await;
        }
        // A run that was told to stop still tidies up, within its own limit.
        let cx = self.cx.unstopped();
        self.cx = cx.clone();
        let ended = async {
            self.end_twin().await;
            abort(&cx, &self.store, &self.key, &self.upload_id).await
        };
        match tokio::time::timeout(ABORT_LIMIT, ended).await {
            Ok(done) => done,
            Err(_) => Err(Error::new(
                ErrorKind::Unreachable,
                format!("the upload of `{}` could not be aborted in time", self.key),
            )),
        }
    }
}

impl Drop for Multipart {
    fn drop(&mut self) {
        self.flying.iter().for_each(JoinHandle::abort);
    }
}

async fn create(
    cx: &Context,
    store: &Store,
    key: &str,
    id: &str,
    proof: Proof,
) -> Result<(String, bool), Fault> {
    let asked = std::sync::atomic::AtomicU32::new(0);
    let (encryption, kms_key) = store.encryption();
    let class = store
        .settings
        .storage_class
        .as_deref()
        .map(StorageClass::from);
    let answer = store
        .clients
        .ask(cx, 0, || {
            asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let request = store
                .clients
                .s3
                .create_multipart_upload()
                .bucket(store.bucket())
                .key(key)
                .content_type("application/x-xz")
                .metadata(ID, id)
                .metadata(SITE, &store.site)
                .set_storage_class(class.clone())
                .set_server_side_encryption(encryption.clone())
                .set_ssekms_key_id(kms_key.clone())
                .set_checksum_algorithm(proof.algorithm())
                .set_checksum_type((proof == Proof::Crc64nvme).then_some(ChecksumType::FullObject));
            with_customer_key!(request, store).send()
        })
        .await?;
    answer
        .upload_id()
        .filter(|upload| !upload.is_empty())
        .map(|upload| (upload.to_owned(), asked.into_inner() > 1))
        .ok_or_else(|| Error::new(ErrorKind::Unsupported, "the store named no upload").into())
}

/// Sends one part until the store says that it has these very bytes.
async fn upload_part(
    cx: &Context,
    store: &Store,
    key: &str,
    upload: &str,
    number: u32,
    body: Bytes,
    proof: Proof,
) -> Result<Landed> {
    let (sums, body) = {
        let hashed = tokio::task::spawn_blocking(move || (Sums::of(proof, &body), body));
        hashed
            .await
            .map_err(|e| bug(format!("the sum of a part: {e}")))?
    };
    let mut attempt = 1;
    loop {
        let answer = store
            .clients
            .ask(cx, body.len() as u64, || async {
                let request = store
                    .clients
                    .s3
                    .upload_part()
                    .bucket(store.bucket())
                    .key(key)
                    .upload_id(upload)
                    .part_number(number as i32)
                    .body(body.clone().into())
                    .set_checksum_algorithm(proof.algorithm())
                    .set_checksum_crc64_nvme(sums.crc64.clone())
                    .set_checksum_crc32_c(sums.crc32c.clone())
                    .set_content_md5(sums.md5.clone());
                let request = with_customer_key!(request, store).customize();
                if store.clients.unsigned_bodies {
                    request.disable_payload_signing().send().await
                } else {
                    request.send().await
                }
            })
            .await
            .map_err(|fault| {
                let gone = fault.is_not_found();
                let mut error = fault.while_trying(&format!("send part {number} of `{key}`"));
                if gone {
                    // The upload was ended by somebody: the next run begins another.
                    error.kind = ErrorKind::Unreachable;
                }
                error
            })?;
        let etag = unquoted(answer.e_tag());
        let agrees = match proof {
            Proof::Crc64nvme => answer.checksum_crc64_nvme() == sums.crc64.as_deref(),
            Proof::Crc32c => answer.checksum_crc32_c() == sums.crc32c.as_deref(),
            Proof::Md5 => etag == sums.etag(),
            Proof::None => true,
        };
        if agrees && !etag.is_empty() {
            let buffer = body.try_into_mut().ok().map(|mut buffer| {
                buffer.clear();
                buffer
            });
            return Ok((Part { number, etag, sums }, buffer));
        }
        if attempt >= store.clients.patience().attempts {
            return Err(Error::corrupt(format!(
                "the store has another sum for part {number} of `{key}` than was sent"
            )));
        }
        super::client::pause(cx, attempt).await?;
        attempt += 1;
    }
}

/// Ends an upload and its parts; one that is gone is ended.
pub async fn abort(cx: &Context, store: &Store, key: &str, upload: &str) -> Result<()> {
    let aborted = store
        .clients
        .ask(cx, 0, || {
            store
                .clients
                .s3
                .abort_multipart_upload()
                .bucket(store.bucket())
                .key(key)
                .upload_id(upload)
                .send()
        })
        .await;
    match aborted {
        Ok(_) => Ok(()),
        Err(fault) if fault.is_not_found() => Ok(()),
        Err(fault) => Err(fault.while_trying(&format!("abort the upload of `{key}`"))),
    }
}
