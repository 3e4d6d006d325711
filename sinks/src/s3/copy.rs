//! A second copy of an object inside the store, without sending it again: a new upload whose parts the store reads itself. (Its simple copy would
//! overwrite what is there and keep old tags.)

use super::client::Fault;
use super::complete::{Published, is_of};
use super::store::{ID, SITE, Store, Versioning, not_what_was_sent, unquoted, with_customer_key};
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart, StorageClass,
};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, conflict};

const PART_BYTES: u64 = 1 << 30;

/// What is copied.
pub struct Source<'a> {
    pub key: &'a str,
    pub version: Option<&'a str>,
    pub etag: &'a str,
    pub head: &'a HeadObjectOutput,
}

impl Store {
    /// Copies to `key` and compares sum and size. `from` is the bucket where the source lies.
    pub async fn copy(
        &self,
        cx: &Context,
        from: &str,
        source: Source<'_>,
        key: &str,
    ) -> Result<Published> {
        let metadata = source.head.metadata().cloned().unwrap_or_default();
        let id = metadata.get(ID).cloned().unwrap_or_default();
        let bytes = source.head.content_length().unwrap_or(0).max(0) as u64;
        let upload = self
            .begin_copy(cx, key, &id, source.head)
            .await
            .map_err(|fault| fault.while_trying(&format!("begin `{key}`")))?;
        let copied = async {
            let parts = self
                .copy_parts(cx, from, &source, key, &upload, bytes)
                .await?;
            self.complete_copy(cx, key, &upload, parts, &id).await
        };
        let published = match copied.await {
            Ok(published) => published,
            Err(error) => {
                // Also when the run was told to stop.
                let cx = cx.unstopped();
                if let Err(left) = super::upload::abort(&cx, self, key, &upload).await {
                    tracing::warn!(error = %left, "an upload stays, the next run cleans up");
                }
                return Err(error);
            }
        };
        // The number of parts, which Ceph puts behind the sum, may differ.
        let sum = |head: &HeadObjectOutput| {
            let sum = head.checksum_crc64_nvme()?;
            Some(sum.split('-').next()?.to_owned())
        };
        let same = published.head.content_length() == source.head.content_length()
            && (sum(source.head).is_none() || sum(source.head) == sum(&published.head));
        // Without a sum of the whole nothing but its bytes tells whether a copy is one.
        let same = same
            && (sum(source.head).is_some()
                || self.same_bytes(cx, from, &source, key, &published).await?);
        if same {
            return Ok(published);
        }
        if self.versioning(cx).await? != Versioning::Enabled || published.version.is_some() {
            let removed = self
                .delete_version(cx, key, published.version.as_deref())
                .await;
            if let Err(fault) = removed {
                tracing::warn!(key, fault = %fault.words(), "a wrong copy stays");
            }
        }
        Err(not_what_was_sent(format!(
            "the copy `{key}` is not what `{}` is",
            source.key
        )))
    }

    async fn same_bytes(
        &self,
        cx: &Context,
        from: &str,
        source: &Source<'_>,
        key: &str,
        copy: &Published,
    ) -> Result<bool> {
        let there = self.in_bucket(from);
        let bytes = source.head.content_length().unwrap_or(0).max(0) as u64;
        let one = there
            .sha256(cx, source.key, source.version, source.etag, bytes)
            .await?;
        let etag = unquoted(copy.head.e_tag());
        let two = self
            .sha256(cx, key, copy.version.as_deref(), &etag, bytes)
            .await?;
        Ok(one == two)
    }

    async fn begin_copy(
        &self,
        cx: &Context,
        key: &str,
        id: &str,
        head: &HeadObjectOutput,
    ) -> Result<String, Fault> {
        let (encryption, kms_key) = self.encryption();
        let class = self
            .settings
            .storage_class
            .as_deref()
            .map(StorageClass::from);
        let whole = head.checksum_crc64_nvme().is_some();
        let answer = self
            .clients
            .ask(cx, 0, || {
                let request = self
                    .clients
                    .s3
                    .create_multipart_upload()
                    .bucket(self.bucket())
                    .key(key)
                    .content_type("application/x-xz")
                    .metadata(ID, id)
                    .metadata(SITE, &self.site)
                    .set_storage_class(class.clone())
                    .set_server_side_encryption(encryption.clone())
                    .set_ssekms_key_id(kms_key.clone())
                    .set_checksum_algorithm(whole.then_some(ChecksumAlgorithm::Crc64Nvme))
                    .set_checksum_type(whole.then_some(ChecksumType::FullObject));
                with_customer_key!(request, self).send()
            })
            .await?;
        answer
            .upload_id()
            .map(str::to_owned)
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "the store named no upload").into())
    }

    async fn copy_parts(
        &self,
        cx: &Context,
        from: &str,
        source: &Source<'_>,
        key: &str,
        upload: &str,
        bytes: u64,
    ) -> Result<Vec<CompletedPart>> {
        let version = source
            .version
            .map(|v| format!("?versionId={}", encoded(v)))
            .unwrap_or_default();
        let copy_source = format!("{from}/{}{version}", encoded(source.key));
        let mut parts = Vec::new();
        for (n, at) in (0..bytes.max(1)).step_by(PART_BYTES as usize).enumerate() {
            let number = n as i32 + 1;
            let range = format!("bytes={at}-{}", (at + PART_BYTES).min(bytes) - 1);
            let answer = self
                .clients
                .ask(cx, PART_BYTES.min(bytes), || {
                    let request = self
                        .clients
                        .s3
                        .upload_part_copy()
                        .bucket(self.bucket())
                        .key(key)
                        .upload_id(upload)
                        .part_number(number)
                        .copy_source(&copy_source)
                        .copy_source_if_match(format!("\"{}\"", source.etag))
                        .set_copy_source_range((bytes > PART_BYTES).then(|| range.clone()))
                        .set_copy_source_sse_customer_algorithm(self.customer_key.algorithm.clone())
                        .set_copy_source_sse_customer_key(self.customer_key.key.clone())
                        .set_copy_source_sse_customer_key_md5(self.customer_key.md5.clone());
                    // Ceph wants to be told that there is no body.
                    with_customer_key!(request, self)
                        .customize()
                        .mutate_request(|request| {
                            request.headers_mut().insert("content-length", "0");
                        })
                        .send()
                })
                .await
                .map_err(|fault| {
                    fault.while_trying(&format!("copy `{}` to `{key}`", source.key))
                })?;
            let etag = answer
                .copy_part_result()
                .and_then(|r| r.e_tag())
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::Unsupported,
                        "the store said nothing of a copied part",
                    )
                })?;
            parts.push(
                CompletedPart::builder()
                    .part_number(number)
                    .e_tag(etag)
                    .build(),
            );
        }
        Ok(parts)
    }

    async fn complete_copy(
        &self,
        cx: &Context,
        key: &str,
        upload: &str,
        parts: Vec<CompletedPart>,
        id: &str,
    ) -> Result<Published> {
        let versioning = self.versioning(cx).await?;
        let only_new =
            versioning != Versioning::Enabled && self.learned(cx).await.is_ok_and(|l| l.conditions);
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts))
            .build();
        let mut attempt = 1;
        loop {
            let answer = self
                .clients
                .once(cx, PART_BYTES, || {
                    let request = self
                        .clients
                        .s3
                        .complete_multipart_upload()
                        .bucket(self.bucket())
                        .key(key)
                        .upload_id(upload)
                        .multipart_upload(parts.clone())
                        .set_if_none_match(only_new.then(|| "*".to_owned()));
                    with_customer_key!(request, self).send()
                })
                .await;
            let (named, fault) = match answer {
                Ok(answer) => (answer.version_id().map(str::to_owned), None),
                Err(fault) => (None, Some(fault)),
            };
            for version in self.candidates(cx, key, versioning, named).await? {
                match self.head(cx, key, version.as_deref()).await {
                    Ok(head) if is_of(&head, id) => return Ok(Published { version, head }),
                    Ok(_) => {}
                    Err(fault) if fault.is_not_found() => {}
                    Err(fault) => return Err(fault.while_trying(&format!("look at `{key}`"))),
                }
            }
            match fault {
                Some(fault) if fault.status == 412 => {
                    return Err(conflict(format!("there is another `{key}` already")));
                }
                Some(fault) if !fault.passing => {
                    return Err(fault.while_trying(&format!("complete `{key}`")));
                }
                _ if attempt >= self.clients.patience().attempts => {
                    return Err(Error::new(
                        ErrorKind::Unreachable,
                        format!("`{key}` was not completed"),
                    ));
                }
                _ => {}
            }
            super::client::pause(cx, attempt).await?;
            attempt += 1;
        }
    }

    /// Versions of a key that may be what was just written.
    async fn candidates(
        &self,
        cx: &Context,
        key: &str,
        versioning: Versioning,
        named: Option<String>,
    ) -> Result<Vec<Option<String>>> {
        if versioning != Versioning::Enabled {
            return Ok(vec![None]);
        }
        if named.is_some() {
            return Ok(vec![named]);
        }
        let versions = self.versions_of(cx, key).await?;
        Ok(versions
            .into_iter()
            .filter(|v| !v.marker)
            .map(|v| Some(v.id))
            .collect())
    }
}

/// As a path in a header: everything but letters, digits and `-._~/` is percent-encoded.
fn encoded(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}
