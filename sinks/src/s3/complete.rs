//! The moment in which an archive becomes visible. Complete is sent once; what an unclear answer means is found out by looking, never by
//! sending it again blindly: a second one may answer success without a version, or for another run's object.

use super::checksum::Proof;
use super::client::{Fault, pause};
use super::store::{ID, Store, Versioning, not_what_was_sent, unquoted, with_customer_key};
use super::upload::Multipart;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{ChecksumType, CompletedMultipartUpload};
use bk_core::error::{Error, ErrorKind, Result, conflict};

/// An answer to Complete may take as long as one to so many bytes: about two minutes.
const ASSEMBLING_BYTES: u64 = 12 << 20;

/// An object that is there.
pub struct Published {
    /// The version, where the bucket keeps them.
    pub version: Option<String>,
    pub head: HeadObjectOutput,
}

/// What the store says of an upload's key.
enum Seen {
    Ours(Box<Published>),
    /// Nothing of ours, and the upload is still open.
    Open,
    /// Nothing of ours, and the upload is gone.
    Gone,
}

impl Multipart {
    /// Makes the object visible and proves that it holds what was sent. On failure nothing of it is left, as far as the rights reach.
    pub async fn complete(&mut self, id: &str) -> Result<Published> {
        let published = self.publish(id).await?;
        match self.prove(&published) {
            Ok(()) => Ok(published),
            Err(error) => {
                let deleted = match (&published.version, self.versioning) {
                    (None, Versioning::Enabled) => None,
                    (version, _) => Some(
                        self.store
                            .delete_version(&self.cx, &self.key, version.as_deref())
                            .await,
                    ),
                };
                match deleted {
                    Some(Ok(())) => Err(error),
                    _ => Err(error.hint(format!(
                        "delete version {} of {}: it must not be taken for an archive",
                        published.version.as_deref().unwrap_or("null"),
                        self.key
                    ))),
                }
            }
        }
    }

    async fn publish(&mut self, id: &str) -> Result<Published> {
        if self.store.ask_versioning(&self.cx).await? != self.versioning {
            return Err(conflict(format!(
                "the versioning of `{}` was changed while the archive was sent",
                self.store.bucket()
            ))
            .hint("repeat the backup"));
        }
        // Where a name has one copy, ours must be the first; a version harms no other.
        let mut only_new = self.versioning != Versioning::Enabled && self.learned.conditions;
        let mut attempt = 1;
        loop {
            let fault = match self.send_complete(only_new).await {
                Ok(version) => match self.look_at(self.word(version).as_deref(), id).await? {
                    Some(published) => return Ok(published),
                    None => None,
                },
                Err(fault) => Some(fault),
            };
            if let Some(fault) = &fault {
                if only_new && (fault.status == 501 || fault.code == "NotImplemented") {
                    only_new = false;
                    continue;
                }
                tracing::debug!(key = %self.key, fault = %fault.words(), "looking whether it was completed");
            }
            let taken = fault.as_ref().is_some_and(|fault| fault.status == 412);
            match self.look(id).await? {
                Seen::Ours(published) => return Ok(*published),
                Seen::Open | Seen::Gone if taken => {
                    return Err(conflict(format!(
                        "`{}` was written by another run meanwhile",
                        self.key
                    ))
                    .hint("repeat the backup"));
                }
                Seen::Gone => {
                    return Err(Error::new(
                        ErrorKind::Unreachable,
                        format!("the upload of `{}` is gone before it was completed", self.key),
                    )
                    .hint("look for a lifecycle rule that aborts uploads too early, then repeat the backup"));
                }
                Seen::Open => {}
            }
            let wrong_part = fault.as_ref().is_some_and(|f| f.code == "InvalidPart");
            if wrong_part && attempt == 1 && self.mend_etags().await? {
                attempt += 1;
                continue;
            }
            let passing = fault
                .as_ref()
                .is_none_or(|fault| fault.passing || fault.is_conflict());
            if !passing || attempt >= self.store.clients.patience().attempts {
                let fault = fault.map_or_else(
                    || {
                        Error::new(
                            ErrorKind::Unreachable,
                            format!("`{}` was not completed", self.key),
                        )
                    },
                    |fault| fault.while_trying(&format!("complete `{}`", self.key)),
                );
                return Err(fault);
            }
            pause(&self.cx, attempt).await?;
            attempt += 1;
        }
    }

    /// The version that an answer names, where versions are kept.
    fn word(&self, version: Option<String>) -> Option<String> {
        version.filter(|_| self.versioning == Versioning::Enabled)
    }

    async fn send_complete(&self, only_new: bool) -> Result<Option<String>, Fault> {
        let (store, learned) = (&self.store, self.learned);
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(self.completed_parts()))
            .build();
        let whole = self.whole_sum();
        let answer = store
            .clients
            // Some put the parts together for a while; an answer that takes longer is looked for instead of waited for.
            .once(&self.cx, ASSEMBLING_BYTES, || {
                let request = store
                    .clients
                    .s3
                    .complete_multipart_upload()
                    .bucket(store.bucket())
                    .key(&self.key)
                    .upload_id(&self.upload_id)
                    .multipart_upload(parts.clone())
                    .set_checksum_type(
                        (learned.proof == Proof::Crc64nvme).then_some(ChecksumType::FullObject),
                    )
                    .set_checksum_crc64_nvme(
                        whole.clone().filter(|_| learned.proof == Proof::Crc64nvme),
                    )
                    .set_if_none_match(only_new.then(|| "*".to_owned()));
                with_customer_key!(request, store).send()
            })
            .await?;
        if learned.proof == Proof::Crc64nvme
            && let (Some(theirs), Some(ours)) = (answer.checksum_crc64_nvme(), &whole)
            && theirs.split('-').next() != Some(ours)
        {
            tracing::warn!(key = %self.key, theirs, ours, "the store computed another sum");
        }
        Ok(answer.version_id().map(str::to_owned))
    }

    /// The copy that the answer named: it counts when it is ours.
    async fn look_at(&self, version: Option<&str>, id: &str) -> Result<Option<Published>> {
        if self.versioning == Versioning::Enabled && version.is_none() {
            return Ok(None);
        }
        match self.store.head(&self.cx, &self.key, version).await {
            Ok(head) if is_of(&head, id) => Ok(Some(Published {
                version: version.map(str::to_owned),
                head,
            })),
            Ok(_) => Ok(None),
            Err(fault) if fault.is_not_found() => Ok(None),
            Err(fault) => Err(fault.while_trying(&format!("look at `{}`", self.key))),
        }
    }

    /// Looks for our object among those that were not there before, then for the upload.
    async fn look(&self, id: &str) -> Result<Seen> {
        if let Some(published) = self.find(id).await? {
            return Ok(Seen::Ours(Box::new(published)));
        }
        let store = &self.store;
        let upload = store
            .clients
            .ask(&self.cx, 0, || {
                store
                    .clients
                    .s3
                    .list_parts()
                    .bucket(store.bucket())
                    .key(&self.key)
                    .upload_id(&self.upload_id)
                    .max_parts(1)
                    .send()
            })
            .await;
        match upload {
            Ok(_) => Ok(Seen::Open),
            // It may have been completed between the two looks.
            Err(fault) if fault.is_not_found() => Ok(self
                .find(id)
                .await?
                .map_or(Seen::Gone, |found| Seen::Ours(Box::new(found)))),
            Err(fault) if fault.is_denied() || fault.is_unsupported() => Ok(Seen::Open),
            Err(fault) => Err(fault.while_trying(&format!("look at the upload of `{}`", self.key))),
        }
    }

    async fn find(&self, id: &str) -> Result<Option<Published>> {
        let store = &self.store;
        if self.versioning != Versioning::Enabled {
            return self.look_at(None, id).await;
        }
        for version in store.versions_of(&self.cx, &self.key).await? {
            if version.marker || self.known_before.contains(&version.id) {
                continue;
            }
            if let Some(published) = self.look_at(Some(&version.id), id).await? {
                return Ok(Some(published));
            }
        }
        Ok(None)
    }

    /// Size and sum of what lies there now are those of what was sent.
    fn prove(&self, published: &Published) -> Result<()> {
        let head = &published.head;
        let bytes = head.content_length().unwrap_or(-1);
        if bytes != self.sent as i64 {
            return Err(not_what_was_sent(format!(
                "`{}` has {bytes} bytes after it was stored, not {}",
                self.key, self.sent
            )));
        }
        let ours = self.whole_sum();
        let encrypted = self.store.settings.encryption.is_some();
        let theirs = match self.learned.proof {
            // Ceph puts the number of parts behind the sum of the whole object.
            Proof::Crc64nvme => head
                .checksum_crc64_nvme()
                .and_then(|sum| sum.split('-').next())
                .map(str::to_owned),
            Proof::Crc32c => head.checksum_crc32_c().map(str::to_owned),
            Proof::Md5 if !encrypted => Some(unquoted(head.e_tag())),
            Proof::Md5 | Proof::None => return Ok(()),
        };
        if theirs == ours {
            return Ok(());
        }
        Err(not_what_was_sent(format!(
            "the store has the {} {} for `{}`, and {} was sent",
            self.learned.proof.words(),
            theirs.as_deref().unwrap_or("(none)"),
            self.key,
            ours.as_deref().unwrap_or("(none)")
        )))
    }
}

/// Whether an object is this archive's.
pub fn is_of(head: &HeadObjectOutput, id: &str) -> bool {
    head.metadata()
        .and_then(|metadata| metadata.get(ID))
        .is_some_and(|of| of == id)
}

impl Store {
    /// Whose archive a version is, by its metadata.
    pub async fn id_of(
        &self,
        cx: &bk_core::context::Context,
        key: &str,
        version: Option<&str>,
    ) -> Result<Option<String>, Fault> {
        let head = self.head(cx, key, version).await?;
        Ok(head.metadata().and_then(|m| m.get(ID)).cloned())
    }
}
