//! Notes: small objects in `.bk/SITE/`. Each body begins with a line of chance, so that no two writings have one ETag, and a writer whose answer
//! was lost knows its own again.

use super::checksum::{Proof, Sums};
use super::store::{Store, Versioning, unquoted, with_customer_key};
use bk_core::backup::draw_id;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::sink::{Note, NoteName, NoteSeen, Was};
use bytes::Bytes;

const HEAD: &str = "bk-note ";

impl Store {
    pub async fn note(&self, cx: &Context, name: &NoteName) -> Result<Option<Note>> {
        let read = self.small(cx, &self.note_key(name)).await?;
        Ok(read.map(|(body, etag)| Note {
            body: without_head(&body),
            etag,
        }))
    }

    /// A small object as it is now, with its ETag.
    pub async fn small(&self, cx: &Context, key: &str) -> Result<Option<(Bytes, String)>> {
        self.small_in(cx, self.bucket(), key).await
    }

    /// The same in any bucket.
    pub async fn small_in(
        &self,
        cx: &Context,
        bucket: &str,
        key: &str,
    ) -> Result<Option<(Bytes, String)>> {
        let mut attempt = 1;
        loop {
            let answer = self
                .clients
                .ask(cx, 0, || {
                    let request = self.clients.s3.get_object().bucket(bucket).key(key);
                    with_customer_key!(request, self).send()
                })
                .await;
            let answer = match answer {
                Ok(answer) => answer,
                Err(fault) if fault.is_not_found() => return Ok(None),
                Err(fault) => return Err(fault.while_trying(&format!("read `{key}`"))),
            };
            let etag = unquoted(answer.e_tag());
            if etag.is_empty() && attempt < self.clients.patience().attempts {
                // An error in the clothes of a success.
                super::client::pause(cx, attempt).await?;
                attempt += 1;
                continue;
            }
            let bytes = answer.content_length().unwrap_or(0).max(0) as u64;
            let limit = self.clients.patience().attempt(bytes);
            let why = match tokio::time::timeout(limit, answer.body.collect()).await {
                Ok(Ok(body)) => return Ok(Some((body.into_bytes(), etag))),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it stood still".into(),
            };
            if attempt >= self.clients.patience().attempts {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("could not read `{key}`: {why}"),
                ));
            }
            super::client::pause(cx, attempt).await?;
            attempt += 1;
        }
    }

    pub async fn set_note(
        &self,
        cx: &Context,
        name: &NoteName,
        body: Bytes,
        was: Was,
    ) -> Result<()> {
        let key = self.note_key(name);
        let nonce = draw_id()?;
        let mut text = format!("{HEAD}{nonce}\n").into_bytes();
        text.extend_from_slice(&body);
        let text = Bytes::from(text);
        // Not every store obeys a condition, and some only half: what is there is looked at first.
        if was != Was::Any {
            let now = self.note(cx, name).await?;
            let agrees = match (&was, &now) {
                (Was::Absent, None) => true,
                (Was::Same(etag), Some(note)) => note.etag == *etag,
                _ => false,
            };
            if !agrees {
                return Err(changed(&key));
            }
        }
        let conditions = match was {
            Was::Any => false,
            _ => Box::pin(self.learned(cx)).await?.conditions,
        };
        let answer = self
            .put_small(cx, &key, text, if conditions { Some(&was) } else { None })
            .await;
        match answer {
            Ok(()) => Ok(()),
            Err(fault) if fault.is_conflict() => {
                // The answer to an earlier attempt of ours may have been lost.
                let there = self.small(cx, &key).await?;
                let ours = format!("{HEAD}{nonce}\n");
                if there.is_some_and(|(body, _)| body.starts_with(ours.as_bytes())) {
                    Ok(())
                } else {
                    Err(changed(&key))
                }
            }
            Err(fault) => Err(fault.while_trying(&format!("write `{key}`"))),
        }
    }

    /// Writes a small object in one request.
    pub async fn put_small(
        &self,
        cx: &Context,
        key: &str,
        body: Bytes,
        was: Option<&Was>,
    ) -> Result<(), super::client::Fault> {
        let sums = Sums::of(Proof::Md5, &body);
        let (absent, same) = match was {
            Some(Was::Absent) => (Some("*".to_owned()), None),
            Some(Was::Same(etag)) => (None, Some(format!("\"{etag}\""))),
            _ => (None, None),
        };
        let mut attempt = 1;
        loop {
            let answer = self
                .clients
                .ask(cx, body.len() as u64, || {
                    let request = self
                        .clients
                        .s3
                        .put_object()
                        .bucket(self.bucket())
                        .key(key)
                        .body(body.clone().into())
                        .set_content_md5(sums.md5.clone())
                        .set_if_none_match(absent.clone())
                        .set_if_match(same.clone());
                    with_customer_key!(request, self).send()
                })
                .await?;
            // A success without an ETag is an error in its clothes.
            if answer.e_tag().is_some() || attempt >= self.clients.patience().attempts {
                return Ok(());
            }
            super::client::pause(cx, attempt).await?;
            attempt += 1;
        }
    }

    pub async fn notes(&self, cx: &Context, site: &str, prefix: &str) -> Result<Vec<NoteSeen>> {
        let folder = format!("{}.bk/{site}/", self.prefix);
        let found = self.names(cx, &format!("{folder}{prefix}")).await?;
        Ok(found
            .into_iter()
            .filter_map(|(key, modified)| {
                Some(NoteSeen {
                    name: NoteName {
                        site: site.to_owned(),
                        name: key.strip_prefix(&folder)?.to_owned(),
                    },
                    modified,
                })
            })
            .collect())
    }

    /// All versions of it, so that nothing of a note is kept for ever.
    pub async fn remove_note(&self, cx: &Context, name: &NoteName) -> Result<()> {
        let key = self.note_key(name);
        let versions = match self.versioning(cx).await? {
            Versioning::Never => vec![None],
            _ => self
                .versions_of(cx, &key)
                .await?
                .into_iter()
                .map(|v| Some(v.id))
                .collect(),
        };
        for version in versions {
            if let Err(fault) = self.delete_version(cx, &key, version.as_deref()).await {
                return Err(fault.while_trying(&format!("remove `{key}`")));
            }
        }
        Ok(())
    }
}

fn changed(key: &str) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("the note `{key}` was changed by another run"),
    )
}

fn without_head(body: &Bytes) -> Bytes {
    if body.starts_with(HEAD.as_bytes())
        && let Some(end) = body.iter().position(|b| *b == b'\n')
    {
        return body.slice(end + 1..);
    }
    body.clone()
}
