//! A bucket: Amazon S3, and everything that speaks its language (Ceph, MinIO, Garage, R2, B2, Wasabi).
//!
//! An archive is a multipart upload whose key is fixed before its first byte. Where the bucket keeps versions all runs of a day are versions of
//! one key; elsewhere the key is unique, since a write would overwrite. What the store checks is tried once, not believed; what an unclear
//! answer means is found out by looking.

mod checksum;
mod client;
mod complete;
mod copy;
mod lifecycle;
mod list;
mod notes;
mod partial;
mod policy;
mod read;
mod settings;
mod store;
mod upload;

use async_trait::async_trait;
use aws_sdk_s3::types::{ObjectLockRetention, ObjectLockRetentionMode};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, conflict, settings, unsupported};
use bk_core::layout::{self, Layout, folders_above};
use bk_core::name::ArchiveName;
use bk_core::plugin::Plugin;
use bk_core::settings::Settings;
use bk_core::sink::{
    Abilities, ByteStream, Filter, Health, Note, NoteName, NoteSeen, Origin, Outlook, Seal, Sink,
    SizeHint, Stored, Upload, Wanted, Was, sums_under,
};
use bytes::Bytes;
use checksum::Proof;
use complete::Published;
use jiff::ToSpan;
use partial::Way;
use settings::LockMode;
pub use settings::S3Settings;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use store::{Store, Versioning};
use upload::{Multipart, Plan};

/// An upload that nobody has sent a part to for so long is left over.
const STALE_HOURS: i64 = 24;

/// What finishing the moves of earlier runs may take.
const MOVES_LIMIT: std::time::Duration = std::time::Duration::from_mins(5);

/// Metadata in which Tutor's backup plugin keeps the MD5 of an archive.
const FOREIGN_MD5: &str = "checksum-md5";

/// The plugin.
pub fn plugin() -> Plugin<dyn Sink> {
    Plugin {
        name: "s3".into(),
        about: "a bucket: Amazon S3, Ceph, and everything that speaks their language".into(),
        schema: Arc::new(|| schemars::schema_for!(S3Settings)),
        build: Arc::new(|settings: Settings| {
            let parsed = S3Settings::new(&settings)?;
            Ok(Arc::new(S3::new(parsed)))
        }),
    }
}

/// The sink.
pub struct S3 {
    settings: Arc<S3Settings>,
    /// One for each site that was asked for.
    stores: tokio::sync::Mutex<HashMap<String, Store>>,
    /// The last one, for what is answered without waiting.
    last: Mutex<Option<Store>>,
}

impl S3 {
    /// A sink with these settings. Connects to nothing.
    pub fn new(settings: S3Settings) -> Self {
        Self {
            settings: Arc::new(settings),
            stores: tokio::sync::Mutex::default(),
            last: Mutex::default(),
        }
    }

    async fn store(&self, cx: &Context) -> Result<Store> {
        let mut stores = self.stores.lock().await;
        let store = if let Some(store) = stores.get(&*cx.site) {
            store.clone()
        } else {
            let store = Store::open(cx, self.settings.clone()).await?;
            stores.insert(cx.site.to_string(), store.clone());
            store
        };
        if let Ok(mut last) = self.last.lock() {
            *last = Some(store.clone());
        }
        Ok(store)
    }
}

/// An archive on its way into a bucket.
struct S3Upload {
    multipart: Multipart,
    name: String,
}

#[async_trait]
impl Upload for S3Upload {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.multipart.write(chunk).await
    }

    async fn publish(self: Box<Self>, _name: &ArchiveName, seal: &Seal) -> Result<Stored> {
        let Self {
            mut multipart,
            name,
        } = *self;
        match Box::pin(publish(&mut multipart, &name, seal)).await {
            Ok(stored) => Ok(stored),
            Err(error) => {
                // What became visible stays or was deleted by then; only an open upload is ended here.
                if let Err(left) = multipart.abort().await {
                    tracing::warn!(error = %left, "an upload stays, the next run cleans up");
                }
                Err(error)
            }
        }
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.multipart.abort().await
    }
}

async fn publish(multipart: &mut Multipart, name: &str, seal: &Seal) -> Result<Stored> {
    multipart.finish_parts().await?;
    if multipart.sent != seal.bytes {
        return Err(bk_core::error::bug(format!(
            "{} bytes were sent to `{name}`, and the archive has {}",
            multipart.sent, seal.bytes
        )));
    }
    let (cx, store, key) = (
        multipart.cx.clone(),
        multipart.store.clone(),
        multipart.key.clone(),
    );
    let way = if seal.complete || multipart.versioning != Versioning::Enabled {
        Way::InPlace
    } else {
        store.way_of_partial(&cx, multipart).await?
    };
    match way {
        Way::None => return Err(partial::nowhere(&key)),
        Way::Aside => store.announce_move(&cx, &key, &seal.id).await?,
        Way::InPlace if !seal.complete && multipart.versioning == Versioning::Enabled => {
            store.note_partial(&cx, &seal.id).await?;
        }
        Way::InPlace => {}
    }
    let mut published = multipart.complete(&seal.id).await?;
    multipart.end_twin().await;
    let mut name = name.to_owned();
    if matches!(way, Way::Aside) {
        let (_, copy) = Box::pin(store.move_aside(&cx, &key, &seal.id, &published)).await?;
        published = copy;
        name.push_str(".partial");
    }
    if seal.complete {
        lock(&cx, &store, &key, &published).await?;
    }
    let sums_key = format!("{}.sha256", store.key(&name));
    let file_name = layout::file_name(&name);
    if let Err(fault) = store
        .put_small(&cx, &sums_key, seal.sum_file(file_name).into(), None)
        .await
    {
        // The archive is whole without them.
        tracing::warn!(key = %sums_key, fault = %fault.words(), "the sums beside the archive were not written");
    }
    Ok(store::stored(
        &name,
        published.version.as_deref(),
        &published.head,
    ))
}

/// Keeps this version from being deleted for the days that the settings say.
async fn lock(cx: &Context, store: &Store, key: &str, published: &Published) -> Result<()> {
    let Some(lock) = store.settings.object_lock else {
        return Ok(());
    };
    let mode = match lock.mode {
        LockMode::Governance => ObjectLockRetentionMode::Governance,
        LockMode::Compliance => ObjectLockRetentionMode::Compliance,
    };
    let until = cx.clock.now() + (i64::from(lock.days) * 24).hours();
    let retention = ObjectLockRetention::builder()
        .mode(mode)
        .retain_until_date(aws_sdk_s3::primitives::DateTime::from_secs(
            until.as_second(),
        ))
        .build();
    store
        .clients
        .ask(cx, 0, || {
            store
                .clients
                .s3
                .put_object_retention()
                .bucket(store.bucket())
                .key(key)
                .set_version_id(published.version.clone())
                .retention(retention.clone())
                .send()
        })
        .await
        .map(|_| ())
        .map_err(|fault| {
            fault
                .while_trying(&format!("lock `{key}` against deletion"))
                .hint("the archive is there; does the bucket have object lock, and the key s3:PutObjectRetention?")
        })
}

/// Ends uploads of this site that nobody has fed for a day.
async fn clean_uploads(cx: &Context, store: &Store) -> Result<()> {
    let listed = store
        .clients
        .ask(cx, 0, || {
            store
                .clients
                .s3
                .list_multipart_uploads()
                .bucket(store.bucket())
                .prefix(&store.prefix)
                .send()
        })
        .await
        .map_err(|fault| fault.while_trying("list open uploads"))?;
    let long_ago = cx.clock.now() - STALE_HOURS.hours();
    for upload in listed.uploads() {
        let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else {
            continue;
        };
        // Only what is named as an archive of ours and lies in a folder of ours: the bucket may be shared.
        let ours = key.strip_prefix(&store.prefix).is_some_and(|name| {
            folders_above(name).all(layout::is_folder)
                && ArchiveName::parse(name, cx.clock.now(), "").is_some()
        });
        if !ours || store::timestamp(upload.initiated()) > long_ago {
            continue;
        }
        let parts = store
            .clients
            .ask(cx, 0, || {
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
        let Ok(parts) = parts else { continue };
        let fed = parts
            .parts()
            .iter()
            .any(|part| store::timestamp(part.last_modified()) > long_ago);
        // More than a page of parts: somebody else's patience decides.
        if !fed && !parts.is_truncated().unwrap_or(false) {
            tracing::info!(key, "ending an upload that nobody feeds");
            upload::abort(cx, store, key, id).await?;
        }
    }
    Ok(())
}

/// The key's name, fixed before the first byte.
async fn choose_name(cx: &Context, store: &Store, name: &ArchiveName) -> Result<String> {
    let path = |file: String| store.settings.layout.path(name, &file);
    let plain = path(name.plain());
    if store.versioning(cx).await? == Versioning::Enabled {
        return Ok(plain);
    }
    // The day's plain name belongs to the run that wins a note of it. Without conditions nobody can win.
    if !store.learned(cx).await?.conditions {
        return Ok(path(name.unique()));
    }
    let claim = format!("{}.bk/{}/names/{plain}", store.prefix, store.site);
    let won = store
        .put_small(cx, &claim, name.id.clone().into(), Some(&Was::Absent))
        .await;
    let won = match won {
        Ok(()) => true,
        // An earlier attempt of ours may have won, its answer lost.
        Err(fault) if fault.is_conflict() => store
            .small(cx, &claim)
            .await?
            .is_some_and(|(body, _)| body == name.id.as_bytes()),
        Err(fault) => return Err(fault.while_trying(&format!("write `{claim}`"))),
    };
    if !won {
        return Ok(path(name.unique()));
    }
    match store.head(cx, &store.key(&plain), None).await {
        Ok(_) => Ok(path(name.unique())),
        Err(fault) if fault.is_not_found() => Ok(plain),
        Err(fault) => Err(fault.while_trying(&format!("look at `{plain}`"))),
    }
}

#[async_trait]
impl Sink for S3 {
    fn abilities(&self) -> Abilities {
        let store = self.last.lock().ok().and_then(|last| last.clone());
        let (versioning, learned) = store.map_or((None, None), |store| store.known());
        let encrypted = self.settings.encryption.is_some();
        Abilities {
            versions: versioning == Some(Versioning::Enabled),
            ranges: true,
            rename: false,
            place: true,
            links: false,
            tags: true,
            exclusive_create: true,
            proof: learned.is_some_and(|l| match l.proof {
                Proof::Crc64nvme | Proof::Crc32c => true,
                Proof::Md5 => !encrypted,
                Proof::None => false,
            }),
        }
    }

    fn layout(&self) -> Layout {
        self.settings.layout
    }

    async fn check(&self, cx: &Context) -> Result<Health> {
        let store = self.store(cx).await?.quick();
        let versioning = store.versioning(cx).await?;
        let notes = format!("{}.bk/", store.prefix);
        let own = format!("{notes}{}/", store.site);
        let others: Vec<String> = store
            .folders(cx, &notes)
            .await?
            .into_iter()
            .filter(|folder| *folder != own)
            .collect();
        if let Some(other) = others.first() {
            let other = other.trim_start_matches(&notes).trim_end_matches('/');
            return Err(settings(format!(
                "site `{other}` keeps its archives under `{}` of bucket `{}`",
                store.prefix,
                store.bucket()
            ))
            .hint(format!(
                "set `prefix = \"{}/\"`, or leave it out",
                store.site
            )));
        }
        let learned = store.learned(cx).await?;
        let mut warnings = Vec::new();
        match learned.proof {
            Proof::Crc64nvme => {}
            Proof::None => warnings.push(
                "the store accepts wrong sums: every archive is read back after it was sent".into(),
            ),
            proof => warnings.push(format!(
                "the store does not check CRC-64/NVME; {} proves what arrived",
                proof.words()
            )),
        }
        if versioning != Versioning::Enabled && !learned.conditions {
            warnings.push(
                "the store does not obey conditions: every archive has its start in its name"
                    .into(),
            );
        }
        for secret in [&self.settings.secret_key, &self.settings.delete_secret_key] {
            if secret
                .as_ref()
                .is_some_and(bk_core::secret::Secret::is_plain)
            {
                warnings.push("a secret stands in the settings file in the clear".into());
            }
        }
        let versions = match versioning {
            Versioning::Enabled => "keeps versions",
            Versioning::Suspended => "versions suspended",
            Versioning::Never => "no versions",
        };
        Ok(Health {
            identity: store.place(),
            describe: format!("{}, {versions}, {}", store.place(), learned.proof.words()),
            warnings,
        })
    }

    async fn create(
        &self,
        cx: &Context,
        name: &ArchiveName,
        hint: SizeHint,
    ) -> Result<Box<dyn Upload>> {
        let store = self.store(cx).await?;
        let plan = Plan::new(&store, hint)?;
        if store.versioning(cx).await? == Versioning::Enabled {
            // What cannot be finished stays noted: a leftover must not keep tonight's backup from being made.
            let late = || Error::new(ErrorKind::Unreachable, "it took too long");
            let finished = cx
                .within(MOVES_LIMIT, late, Box::pin(store.finish_moves(cx)))
                .await;
            if let Err(error) = finished {
                cx.check_cancelled()?;
                tracing::warn!(%error, "the move of an earlier partial archive is not finished");
            }
        }
        if let Err(error) = clean_uploads(cx, &store).await {
            tracing::debug!(%error, "left-over uploads were not looked for");
        }
        let name_there = choose_name(cx, &store, name).await?;
        let key = store.key(&name_there);
        let multipart = Multipart::begin(cx, &store, &key, &name.id, plan).await?;
        Ok(Box::new(S3Upload {
            multipart,
            name: name_there,
        }))
    }

    async fn list(&self, cx: &Context, filter: &Filter) -> Result<Vec<Stored>> {
        self.store(cx).await?.list(cx, filter).await
    }

    async fn read(&self, cx: &Context, which: &Stored, range: Range<u64>) -> Result<ByteStream> {
        self.store(cx).await?.read(cx, which, range).await
    }

    async fn sums(&self, cx: &Context, which: &Stored) -> Result<Option<String>> {
        let store = self.store(cx).await?;
        let key = store.key(&which.name);
        let Some((text, _)) = store.small(cx, &format!("{key}.sha256")).await? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        // The sum file of a key is the newest run's; an older version's stands in the catalogue.
        let version = store.version_of(cx, which).await?;
        match store.id_of(cx, &key, version.as_deref()).await {
            Ok(Some(id)) if !text.starts_with(&format!("# id {id} ")) => Ok(None),
            _ => Ok(Some(text)),
        }
    }

    async fn md5(&self, cx: &Context, which: &Stored) -> Result<Option<[u8; 16]>> {
        let store = self.store(cx).await?;
        let version = store.version_of(cx, which).await?;
        let head = store
            .head(cx, &store.key(&which.name), version.as_deref())
            .await
            .map_err(|fault| fault.while_trying(&format!("look at `{}`", which.name)))?;
        let said = head.metadata().and_then(|m| m.get(FOREIGN_MD5));
        Ok(said.and_then(|text| checksum::md5_in(text)))
    }

    async fn delete(&self, cx: &Context, which: &Stored) -> Result<()> {
        if which.name.starts_with('/') {
            return Err(unsupported(format!(
                "`{}` is not this site's: it is never deleted",
                which.name
            )));
        }
        let store = self.store(cx).await?;
        let key = store.key(&which.name);
        let version = store.version_of(cx, which).await?;
        let head = match store.head(cx, &key, version.as_deref()).await {
            Ok(head) => head,
            Err(fault) if fault.is_not_found() => return Ok(()),
            Err(fault) => return Err(fault.while_trying(&format!("look at `{key}`"))),
        };
        if store::unquoted(head.e_tag()) != which.etag {
            return Err(conflict(format!(
                "`{}` is another object than was listed",
                which.name
            )));
        }
        if let Err(fault) = store.delete_version(cx, &key, version.as_deref()).await {
            if let Some(until) = head.object_lock_retain_until_date()
                && fault.is_denied()
            {
                return Err(Error::new(
                    ErrorKind::Denied,
                    format!(
                        "`{}` is held until {} by object lock",
                        which.name,
                        store::timestamp(Some(until))
                    ),
                ));
            }
            return Err(fault.while_trying(&format!("delete `{key}`")));
        }
        after_delete(cx, &store, &which.name, &key, head.metadata()).await;
        Ok(())
    }

    async fn place(&self, cx: &Context, which: &Stored, to: &ArchiveName) -> Result<Stored> {
        let Some(origin) = self.origin(cx, which).await? else {
            return Err(unsupported("this sink knows no place of its archives"));
        };
        let store = self.store(cx).await?;
        Box::pin(store.copy_in(cx, &origin, to)).await
    }

    async fn settle(&self, cx: &Context, all: &[(Stored, Wanted)]) -> Result<Vec<String>> {
        self.store(cx).await?.settle(cx, all).await
    }

    async fn never_expire(&self, cx: &Context, which: &Stored) -> Result<()> {
        self.store(cx).await?.never_expire(cx, which).await
    }

    async fn outlook(&self, cx: &Context, newest: Option<&Stored>) -> Result<Outlook> {
        self.store(cx).await?.outlook(cx, newest).await
    }

    async fn policy(&self, cx: &Context) -> Result<Option<String>> {
        Ok(Some(self.store(cx).await?.policy()))
    }

    async fn origin(&self, cx: &Context, which: &Stored) -> Result<Option<Origin>> {
        let store = self.store(cx).await?;
        Ok(Some(Origin {
            store: store.endpoint(),
            bucket: store.bucket().to_owned(),
            key: store.key(&which.name),
            which: Stored {
                version: store.version_of(cx, which).await?.unwrap_or_default(),
                ..which.clone()
            },
        }))
    }

    async fn take_over(&self, cx: &Context, from: &Origin, to: &ArchiveName) -> Result<Stored> {
        let store = self.store(cx).await?;
        if from.store != store.endpoint() {
            return Err(unsupported("it lies in another store"));
        }
        Box::pin(store.copy_in(cx, from, to)).await
    }

    async fn note(&self, cx: &Context, name: &NoteName) -> Result<Option<Note>> {
        self.store(cx).await?.note(cx, name).await
    }

    async fn set_note(&self, cx: &Context, name: &NoteName, body: Bytes, was: Was) -> Result<()> {
        self.store(cx).await?.set_note(cx, name, body, was).await
    }

    async fn notes(&self, cx: &Context, site: &str, prefix: &str) -> Result<Vec<NoteSeen>> {
        self.store(cx).await?.notes(cx, site, prefix).await
    }

    async fn remove_note(&self, cx: &Context, name: &NoteName) -> Result<()> {
        self.store(cx).await?.remove_note(cx, name).await
    }
}

impl Store {
    /// A copy of what lies in this store, in this or in another bucket, under a name of this site.
    async fn copy_in(&self, cx: &Context, from: &Origin, to: &ArchiveName) -> Result<Stored> {
        let version = Some(from.which.version.as_str()).filter(|v| !v.is_empty());
        let head = self
            .head_in(cx, &from.bucket, &from.key, version)
            .await
            .map_err(|fault| fault.while_trying(&format!("look at `{}`", from.key)))?;
        let name = choose_name(cx, self, to).await?;
        let target = self.key(&name);
        let source = copy::Source {
            key: &from.key,
            version,
            etag: &from.which.etag,
            head: &head,
        };
        let published = self.copy(cx, &from.bucket, source, &target).await?;
        lock(cx, self, &target, &published).await?;
        self.copy_sums(cx, from, &to.id, &name, &target).await;
        Ok(store::stored(
            &name,
            published.version.as_deref(),
            &published.head,
        ))
    }

    /// The sum file goes along, with the new name in it. Without it the archive is whole too.
    async fn copy_sums(&self, cx: &Context, from: &Origin, id: &str, name: &str, target: &str) {
        let old = layout::file_name(&from.key);
        let beside = format!("{}.sha256", from.key);
        let Ok(Some((sums, _))) = self.small_in(cx, &from.bucket, &beside).await else {
            return;
        };
        // The sum file of a name is its newest version's.
        let sums = String::from_utf8_lossy(&sums);
        if bk_core::verify::sum_in(&sums, id).is_none() {
            return;
        }
        let text = sums_under(&sums, old, layout::file_name(name));
        let key = format!("{target}.sha256");
        if let Err(fault) = self.put_small(cx, &key, text.into(), None).await {
            tracing::warn!(key, fault = %fault.words(), "the sums beside the copy were not written");
        }
    }
}

/// What lies around a deleted archive goes with it when nothing else needs it. Nothing of that is worth a failure.
async fn after_delete(
    cx: &Context,
    store: &Store,
    name: &str,
    key: &str,
    metadata: Option<&HashMap<String, String>>,
) {
    if let Some(id) = metadata.and_then(|m| m.get(store::ID))
        && store.known().0 == Some(Versioning::Enabled)
        && let Err(error) = store.forget_partial(cx, id).await
    {
        tracing::debug!(%error, "a note stays");
    }
    let left = match store.versions_of(cx, key).await {
        Ok(versions) => versions.iter().any(|version| !version.marker),
        Err(error) => {
            tracing::debug!(%error, "sums stay");
            true
        }
    };
    if !left {
        store.remove_everything(cx, &format!("{key}.sha256")).await;
        let claim = format!("{}.bk/{}/names/{name}", store.prefix, store.site);
        if store.known().0 != Some(Versioning::Enabled) {
            store.remove_everything(cx, &claim).await;
        }
    }
}
