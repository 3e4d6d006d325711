//! Every version of every archive, page by page. A listing may be cut in silence (a marker that another run deletes between two pages; stores
//! that stop at a hundred), so the marker is looked at after each page, and before anything is deleted the listing must prove itself.

use super::settings::ObjectLock;
use super::store::{NULL, Store, Versioning, timestamp, unquoted, version_word};
use aws_sdk_s3::types::{EncodingType, ObjectVersionStorageClass};
use bk_core::context::Context;
use bk_core::error::{Error, Result, conflict};
use bk_core::layout::{self, file_name, folders_above};
use bk_core::sink::{Care, Filter, Stored, looks_like_an_archive};
use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::{Timestamp, ToSpan};
use std::collections::{BTreeMap, BTreeSet};

/// How often a listing starts over when its marker is gone.
const STARTS: u32 = 5;
/// Archives that are looked at side by side.
const LOOKS_AT_ONCE: usize = 16;

/// One version of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub key: String,
    pub id: String,
    pub modified: Timestamp,
    pub etag: String,
    pub bytes: u64,
    pub class: Option<String>,
    pub latest: bool,
    pub marker: bool,
}

/// Versions, and folders that were not gone into.
type Listed = (Vec<Version>, BTreeSet<String>);

/// How far a listing goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// What lies in folders beneath is left out.
    Folder,
    /// Everything that begins so.
    All,
}

impl Depth {
    fn delimiter(self) -> Option<String> {
        (self == Self::Folder).then(|| "/".to_owned())
    }
}

/// What looks like an archive, with the names that it has beneath the prefix.
fn archives(versions: &[Version], prefix: &str, filter: &Filter) -> Vec<Stored> {
    let hidden: BTreeMap<&str, Timestamp> = versions
        .iter()
        .filter(|v| v.marker && v.latest)
        .map(|v| (v.key.as_str(), v.modified))
        .collect();
    let mut first = BTreeSet::new();
    versions
        .iter()
        .filter(|v| !v.marker)
        .filter_map(|v| {
            let name = v.key.strip_prefix(prefix)?;
            let newest = first.insert(v.key.as_str());
            let hidden = hidden.get(v.key.as_str()).filter(|_| newest).copied();
            let file = file_name(name);
            let fits = file.starts_with(&filter.prefix) && looks_like_an_archive(file);
            let lies_well = folders_above(name).all(layout::is_folder);
            (fits && lies_well).then(|| v.stored(name, hidden))
        })
        .collect()
}

impl Store {
    /// All that lies there and looks like an archive, of this site and of others.
    pub async fn list(&self, cx: &Context, filter: &Filter) -> Result<Vec<Stored>> {
        let mut found = self.own(cx, filter).await?;
        if filter.care == Care::Delete {
            let again = self.own(cx, filter).await?;
            if again != found {
                return Err(cut("two listings in a row differ"));
            }
            self.compare_with_plain(cx, filter, &found).await?;
        } else if let Some(lock) = self.settings.object_lock {
            self.say_what_is_held(cx, lock, &mut found).await?;
        }
        let foreign = &self.settings.foreign_prefix;
        if *foreign != self.prefix && filter.care == Care::Look {
            let kept = self.versioning(cx).await?;
            let listed = self.beneath(cx, kept, foreign, Depth::Folder).await;
            match listed.map(|(listed, _)| archives(&listed, foreign, filter)) {
                Ok(others) => found.extend(others.into_iter().map(|stored| Stored {
                    name: format!("/{foreign}{}", stored.name),
                    ..stored
                })),
                // A right on the site's own prefix is enough to work.
                Err(error) => tracing::debug!(%error, "what other programs left is not listed"),
            }
        }
        Ok(found)
    }

    /// Says until when archives are locked. Only those are asked for that are younger than a lock.
    async fn say_what_is_held(
        &self,
        cx: &Context,
        lock: ObjectLock,
        found: &mut [Stored],
    ) -> Result<()> {
        let now = cx.clock.now();
        let oldest = now - (i64::from(lock.days) * 24).hours();
        let young = found.iter_mut().filter(|stored| stored.modified >= oldest);
        stream::iter(young)
            .map(Ok)
            .try_for_each_concurrent(LOOKS_AT_ONCE, async |stored| {
                let key = self.key(&stored.name);
                let version = self.version_of(cx, stored).await?;
                let until = match self.head(cx, &key, version.as_deref()).await {
                    Ok(head) => timestamp(head.object_lock_retain_until_date()),
                    Err(fault) if fault.is_not_found() => return Ok(()),
                    Err(fault) => return Err(fault.while_trying(&format!("look at `{key}`"))),
                };
                if until > now {
                    stored
                        .remarks
                        .push(format!("held until {until} by object lock"));
                }
                Ok(())
            })
            .await
    }

    async fn own(&self, cx: &Context, filter: &Filter) -> Result<Vec<Stored>> {
        let listed = self.of_all_layouts(cx, self.versioning(cx).await?).await?;
        Ok(archives(&listed, &self.prefix, filter))
    }

    /// Every version of this site's archives, delete markers too.
    pub async fn versions_of_archives(&self, cx: &Context) -> Result<Vec<Version>> {
        let mut listed = self.of_all_layouts(cx, self.versioning(cx).await?).await?;
        listed.retain(|v| {
            let name = v.key.strip_prefix(&self.prefix);
            name.is_some_and(|name| looks_like_an_archive(file_name(name)))
        });
        Ok(listed)
    }

    /// Every version right beneath the prefix, and in the folders of a layout.
    async fn of_all_layouts(&self, cx: &Context, kept: Versioning) -> Result<Vec<Version>> {
        let (mut found, folders) = self.beneath(cx, kept, &self.prefix, Depth::Folder).await?;
        for folder in self.layouts_among(folders) {
            let (listed, _) = self.beneath(cx, kept, &folder, Depth::All).await?;
            found.extend(listed);
        }
        Ok(found)
    }

    /// Folders that a layout makes.
    fn layouts_among(&self, folders: BTreeSet<String>) -> impl Iterator<Item = String> {
        let is_ours = |folder: &String| {
            let name = folder.strip_prefix(&self.prefix);
            let name = name.and_then(|name| name.strip_suffix('/'));
            name.is_some_and(layout::is_folder)
        };
        folders.into_iter().filter(is_ours)
    }

    async fn beneath(
        &self,
        cx: &Context,
        kept: Versioning,
        prefix: &str,
        depth: Depth,
    ) -> Result<Listed> {
        match kept {
            Versioning::Never => self.plain(cx, prefix, depth).await,
            _ => self.versions(cx, prefix, depth).await,
        }
    }

    /// Every version of one key, newest first, delete markers too.
    pub async fn versions_of(&self, cx: &Context, key: &str) -> Result<Vec<Version>> {
        let listed = match self.versioning(cx).await? {
            Versioning::Never => self.plain(cx, key, Depth::Folder).await?,
            _ => self.versions(cx, key, Depth::All).await?,
        };
        Ok(listed.0.into_iter().filter(|v| v.key == key).collect())
    }

    /// Every version of every key that begins so.
    async fn versions(&self, cx: &Context, prefix: &str, depth: Depth) -> Result<Listed> {
        for _ in 0..STARTS {
            if let Some(listed) = self.pages(cx, prefix, depth).await? {
                return Ok(listed);
            }
            tracing::info!(prefix, "the listing lost its place, it starts over");
        }
        Err(cut("what is listed goes away all the time").hint("repeat when no other run prunes"))
    }

    /// Nothing when a marker went while the next page was made.
    async fn pages(&self, cx: &Context, prefix: &str, depth: Depth) -> Result<Option<Listed>> {
        let mut found = Vec::new();
        let mut folders = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut marker: Option<(String, Option<String>)> = None;
        loop {
            let page = self
                .clients
                .ask(cx, 0, || {
                    let (key, version) = marker.clone().unzip();
                    self.clients
                        .s3
                        .list_object_versions()
                        .bucket(self.bucket())
                        .prefix(prefix)
                        .encoding_type(EncodingType::Url)
                        .set_delimiter(depth.delimiter())
                        .set_key_marker(key)
                        .set_version_id_marker(version.flatten())
                        .send()
                })
                .await
                .map_err(|fault| fault.while_trying(&format!("list {}", self.place())))?;
            if let Some((key, Some(version))) = &marker
                && !key.ends_with('/')
                && !self.is_still_there(cx, key, version).await?
            {
                return Ok(None);
            }
            let encoded = page.encoding_type().is_some();
            let beneath = page.common_prefixes().iter();
            folders.extend(beneath.map(|folder| decoded(folder.prefix(), encoded)));
            found.extend(page.versions().iter().map(|v| {
                Version {
                    key: decoded(v.key(), encoded),
                    id: v.version_id().unwrap_or(NULL).to_owned(),
                    modified: timestamp(v.last_modified()),
                    etag: unquoted(v.e_tag()),
                    bytes: v.size().unwrap_or(0).max(0) as u64,
                    class: v
                        .storage_class()
                        .map(ObjectVersionStorageClass::as_str)
                        .map(str::to_owned),
                    latest: v.is_latest().unwrap_or(false),
                    marker: false,
                }
            }));
            found.extend(page.delete_markers().iter().map(|v| Version {
                key: decoded(v.key(), encoded),
                id: v.version_id().unwrap_or(NULL).to_owned(),
                modified: timestamp(v.last_modified()),
                etag: String::new(),
                bytes: 0,
                class: None,
                latest: v.is_latest().unwrap_or(false),
                marker: true,
            }));
            if !page.is_truncated().unwrap_or(false) {
                // Stable: versions of a key stay newest first.
                found.sort_by(|a, b| {
                    a.key
                        .cmp(&b.key)
                        .then(b.modified.cmp(&a.modified))
                        .then(b.latest.cmp(&a.latest))
                });
                return Ok(Some((found, folders)));
            }
            let next = (
                decoded(page.next_key_marker(), encoded),
                page.next_version_id_marker().map(str::to_owned),
            );
            if next.0.is_empty() || !seen.insert(next.clone()) {
                return Err(cut("its pages repeat themselves"));
            }
            marker = Some(next);
        }
    }

    async fn is_still_there(&self, cx: &Context, key: &str, version: &str) -> Result<bool> {
        match self.head(cx, key, Some(version)).await {
            Ok(_) => Ok(true),
            // A delete marker cannot be looked at, but it is there.
            Err(fault) if fault.status == 405 => Ok(true),
            Err(fault) if fault.is_not_found() => Ok(false),
            Err(fault) if fault.is_denied() => Ok(true),
            Err(fault) => Err(fault.while_trying(&format!("look at `{key}`"))),
        }
    }

    /// What lies there now, where there are no versions.
    async fn plain(&self, cx: &Context, prefix: &str, depth: Depth) -> Result<Listed> {
        let mut found = Vec::new();
        let mut folders = BTreeSet::new();
        let mut token: Option<String> = None;
        let mut seen = BTreeSet::new();
        loop {
            let page = self
                .clients
                .ask(cx, 0, || {
                    self.clients
                        .s3
                        .list_objects_v2()
                        .bucket(self.bucket())
                        .prefix(prefix)
                        .set_delimiter(depth.delimiter())
                        .encoding_type(EncodingType::Url)
                        .set_continuation_token(token.clone())
                        .send()
                })
                .await
                .map_err(|fault| fault.while_trying(&format!("list {}", self.place())))?;
            let encoded = page.encoding_type().is_some();
            let beneath = page.common_prefixes().iter();
            folders.extend(beneath.map(|folder| decoded(folder.prefix(), encoded)));
            found.extend(page.contents().iter().map(|object| Version {
                key: decoded(object.key(), encoded),
                id: NULL.into(),
                modified: timestamp(object.last_modified()),
                etag: unquoted(object.e_tag()),
                bytes: object.size().unwrap_or(0).max(0) as u64,
                class: object.storage_class().map(|c| c.as_str().to_owned()),
                latest: true,
                marker: false,
            }));
            if !page.is_truncated().unwrap_or(false) {
                return Ok((found, folders));
            }
            token = page.next_continuation_token().map(str::to_owned);
            if token
                .as_ref()
                .is_none_or(|token| !seen.insert(token.clone()))
            {
                return Err(cut("its pages repeat themselves"));
            }
        }
    }

    /// Every name that lies there now must be among the versions.
    async fn compare_with_plain(
        &self,
        cx: &Context,
        filter: &Filter,
        found: &[Stored],
    ) -> Result<()> {
        let names: BTreeSet<&str> = found.iter().map(|s| s.name.as_str()).collect();
        let now = self.of_all_layouts(cx, Versioning::Never).await?;
        for object in archives(&now, &self.prefix, filter) {
            let name = &object.name;
            if !names.contains(name.as_str()) {
                return Err(cut(&format!("`{name}` is there and has no version in it")));
            }
        }
        Ok(())
    }

    /// Names that begin so and lie in the folder, with their times; folders end with `/`.
    pub async fn names(&self, cx: &Context, prefix: &str) -> Result<Vec<(String, Timestamp)>> {
        let (found, _) = self.plain(cx, prefix, Depth::Folder).await?;
        Ok(found.into_iter().map(|v| (v.key, v.modified)).collect())
    }

    /// The folders right beneath.
    pub async fn folders(&self, cx: &Context, prefix: &str) -> Result<Vec<String>> {
        let page = self
            .clients
            .ask(cx, 0, || {
                self.clients
                    .s3
                    .list_objects_v2()
                    .bucket(self.bucket())
                    .prefix(prefix)
                    .delimiter("/")
                    .send()
            })
            .await
            .map_err(|fault| fault.while_trying(&format!("list {}", self.place())))?;
        Ok(page
            .common_prefixes()
            .iter()
            .filter_map(|folder| folder.prefix())
            .map(str::to_owned)
            .collect())
    }
}

impl Version {
    fn stored(&self, name: &str, hidden: Option<Timestamp>) -> Stored {
        let mut remarks = Vec::new();
        if let Some(at) = hidden {
            remarks.push(format!(
                "hidden by a delete marker of {at}: other programs do not see it, bk restores it by its version, and the bucket's rules may expire it"
            ));
        }
        if let Some(class) = self.class.as_deref().filter(|c| is_frozen(c)) {
            remarks.push(format!(
                "in class {class}: it must be thawed before it is read"
            ));
        }
        Stored {
            name: name.to_owned(),
            version: version_word(Some(&self.id)),
            bytes: self.bytes,
            modified: self.modified,
            etag: self.etag.clone(),
            remarks,
        }
    }
}

/// Whether objects of this class cannot be read at once.
pub fn is_frozen(class: &str) -> bool {
    matches!(class, "GLACIER" | "DEEP_ARCHIVE")
}

fn cut(why: &str) -> Error {
    conflict(format!("the listing looks cut: {why}"))
}

/// Keys come percent-encoded, so that no byte of them breaks the XML.
fn decoded(key: Option<&str>, encoded: bool) -> String {
    let key = key.unwrap_or_default();
    if !encoded {
        return key.to_owned();
    }
    let bytes = key.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|h| std::str::from_utf8(h).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                at += 1;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
