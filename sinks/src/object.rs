//! A container of Azure Blob Storage or a bucket of Google Cloud Storage, by the crate `object_store`. It keeps no versions and proves no sums, so every
//! archive has a name of its own and is read back.

use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, bug, conflict, settings};
use bk_core::name::ArchiveName;
use bk_core::plugin::Plugin;
use bk_core::secret::Secret;
use bk_core::settings::{ByteSize, Settings};
use bk_core::sink::{
    Abilities, ByteStream, Care, Filter, Health, Note, NoteName, NoteSeen, Seal, Sink, SizeHint,
    Stored, Upload, Was, looks_like_an_archive,
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, UpdateVersion,
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

/// Parts on their way at once; one more is being filled.
const IN_FLIGHT: usize = 3;
const USUAL_PART_BYTES: u64 = 16 << 20;
/// Blocks that Azure takes for one blob; Google takes 10,000 parts.
const MAX_PARTS: u64 = 10_000;
const SMALLEST_PART_BYTES: u64 = 5 << 20;
/// A list or a small request that takes longer is given up; the crate repeats requests within it.
const LIMIT: Duration = Duration::from_mins(3);

/// Settings of the sink `object`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ObjectSettings {
    /// `az://CONTAINER` or `gs://BUCKET`. It must be there.
    pub url: String,
    /// Where this site's archives lie in it, with a `/` at the end; without it `SITE/`.
    pub prefix: Option<String>,
    /// What else the store wants to know, by the names of the crate `object_store`: `azure_storage_account_name`, `google_service_account`, `azure_storage_endpoint`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// The same for secrets: `azure_storage_account_key`, `azure_storage_sas_key`, `google_service_account_key`.
    #[serde(default)]
    pub secrets: BTreeMap<String, Secret>,
    /// Bytes of a part of an upload; without it 16 MiB, or more when the last archive was large. Four parts are held in memory.
    pub part_size: Option<ByteSize>,
}

/// The plugin.
pub fn plugin() -> Plugin<dyn Sink> {
    Plugin {
        name: "object".into(),
        about: "a container of Azure Blob Storage, a bucket of Google Cloud Storage".into(),
        schema: Arc::new(|| schemars::schema_for!(ObjectSettings)),
        build: Arc::new(|settings: Settings| Ok(Arc::new(Object::new(&settings)?))),
    }
}

/// The sink.
#[derive(Clone)]
pub struct Object {
    settings: Arc<ObjectSettings>,
    url: url::Url,
    store: Arc<OnceCell<(Arc<dyn ObjectStore>, Path)>>,
}

impl Object {
    /// With these settings. Connects to nothing.
    pub fn new(settings: &Settings) -> Result<Self> {
        let mut parsed: ObjectSettings = settings.parse()?;
        let url = url::Url::parse(&parsed.url).map_err(|e| {
            settings.fault(
                "url",
                format!("`{}` is no address: {e}", parsed.url),
                Some("write az://CONTAINER or gs://BUCKET"),
            )
        })?;
        if !["az", "azure", "abfs", "abfss", "adl", "gs"].contains(&url.scheme()) {
            return Err(settings.fault(
                "url",
                format!("`{}` is neither Azure's nor Google's", parsed.url),
                Some("write az://CONTAINER or gs://BUCKET; for s3:// there is the plugin `s3`"),
            ));
        }
        if let Some(prefix) = &parsed.prefix
            && (prefix.starts_with('/') || (!prefix.is_empty() && !prefix.ends_with('/')))
        {
            return Err(settings.fault(
                "prefix",
                format!("`prefix` is `{prefix}`: it must end with `/` and not begin with it"),
                Some(&format!("write `{}/`", prefix.trim_matches('/'))),
            ));
        }
        let secrets = std::mem::take(&mut parsed.secrets);
        parsed.secrets = secrets
            .into_iter()
            .map(|(name, secret)| (name, secret.relative_to(&settings.folder)))
            .collect();
        Ok(Self {
            settings: Arc::new(parsed),
            url,
            store: Arc::default(),
        })
    }

    async fn store(&self) -> Result<&(Arc<dyn ObjectStore>, Path)> {
        let open = || async {
            // A second call finds it installed, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let mut options = self.settings.options.clone();
            for (name, secret) in &self.settings.secrets {
                options.insert(name.clone(), secret.reveal().await?);
            }
            let (store, path) = object_store::parse_url_opts(&self.url, options)
                .map_err(|e| settings(format!("the store cannot be used: {e}")))?;
            Ok((Arc::from(store), path))
        };
        self.store.get_or_try_init(open).await
    }

    fn prefix(&self, site: &str) -> String {
        let prefix = self.settings.prefix.clone();
        prefix.unwrap_or_else(|| format!("{site}/"))
    }

    fn place(&self, cx: &Context) -> String {
        let url = self.settings.url.trim_end_matches('/');
        format!("{url}/{}", self.prefix(&cx.site))
    }

    /// A key as the store has it.
    async fn key(&self, cx: &Context, name: &str) -> Result<Path> {
        let (_, base) = self.store().await?;
        let text = format!("{base}/{}{name}", self.prefix(&cx.site));
        Path::parse(text.trim_start_matches('/'))
            .map_err(|e| bug(format!("`{name}` is no name in a store: {e}")))
    }

    async fn note_key(&self, cx: &Context, name: &NoteName) -> Result<Path> {
        self.key(cx, &format!(".bk/{}/{}", name.site, name.name))
            .await
    }

    async fn objects(&self, cx: &Context, folder: &str) -> Result<Vec<(String, ObjectMeta)>> {
        let (store, _) = self.store().await?;
        let key = self.key(cx, folder.trim_end_matches('/')).await?;
        let listed = limited(cx, "list", store.list_with_delimiter(Some(&key))).await?;
        Ok(listed
            .objects
            .into_iter()
            .filter_map(|meta| Some((meta.location.filename()?.to_owned(), meta)))
            .collect())
    }

    async fn small(&self, cx: &Context, key: &Path) -> Result<Option<(Bytes, String)>> {
        let (store, _) = self.store().await?;
        let read = async {
            let got = store.get(key).await?;
            let etag = got.meta.e_tag.clone().unwrap_or_default();
            Ok((got.bytes().await?, etag))
        };
        match limited(cx, "read", read).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn put(&self, cx: &Context, key: &Path, body: Bytes, mode: PutMode) -> Result<()> {
        let (store, _) = self.store().await?;
        let options = PutOptions {
            mode,
            ..PutOptions::default()
        };
        limited(cx, "write", store.put_opts(key, body.into(), options))
            .await
            .map(|_| ())
    }

    async fn stored(&self, cx: &Context, name: &str) -> Result<Stored> {
        let (store, _) = self.store().await?;
        let key = self.key(cx, name).await?;
        let meta = limited(cx, "look at", store.head(&key)).await?;
        Ok(stored(name, &meta))
    }

    /// The day's plain name for whoever writes its claim first; every other archive has its start and id in its name.
    async fn choose_name(&self, cx: &Context, name: &ArchiveName) -> Result<String> {
        let plain = name.plain();
        let claim = self
            .key(cx, &format!(".bk/{}/names/{plain}", cx.site))
            .await?;
        let won = match self
            .put(cx, &claim, name.id.clone().into(), PutMode::Create)
            .await
        {
            Ok(()) => true,
            Err(error) if error.kind == ErrorKind::Conflict => self
                .small(cx, &claim)
                .await?
                .is_some_and(|(body, _)| body == name.id.as_bytes()),
            Err(error) if error.kind == ErrorKind::Unsupported => false,
            Err(error) => return Err(error),
        };
        let free = match self.stored(cx, &plain).await {
            Err(error) if error.kind == ErrorKind::NotFound => true,
            Err(error) => return Err(error),
            Ok(_) => false,
        };
        Ok(if won && free { plain } else { name.unique() })
    }
}

fn unquoted(etag: Option<&str>) -> &str {
    etag.unwrap_or_default().trim_matches('"')
}

fn stored(name: &str, meta: &ObjectMeta) -> Stored {
    Stored {
        name: name.to_owned(),
        version: String::new(),
        bytes: meta.size,
        modified: Timestamp::from_second(meta.last_modified.timestamp())
            .unwrap_or(Timestamp::UNIX_EPOCH),
        // Azure puts it into quotes in some answers and not in others.
        etag: unquoted(meta.e_tag.as_deref()).to_owned(),
        remarks: Vec::new(),
    }
}

/// What a failure of the crate means.
fn fault(doing: &str, error: object_store::Error) -> Error {
    use object_store::Error as E;
    let kind = match &error {
        E::NotFound { .. } => ErrorKind::NotFound,
        E::AlreadyExists { .. } | E::Precondition { .. } => ErrorKind::Conflict,
        E::PermissionDenied { .. } => ErrorKind::Denied,
        E::Unauthenticated { .. } => ErrorKind::Auth,
        E::NotSupported { .. } | E::NotImplemented { .. } => ErrorKind::Unsupported,
        E::UnknownConfigurationKey { .. } | E::InvalidPath { .. } => ErrorKind::Settings,
        _ => ErrorKind::Unreachable,
    };
    Error::new(kind, format!("could not {doing}: {error}")).because(error)
}

async fn limited<T>(
    cx: &Context,
    doing: &str,
    work: impl Future<Output = Result<T, object_store::Error>>,
) -> Result<T> {
    let late = || {
        Error::new(
            ErrorKind::Unreachable,
            format!("could not {doing} it within {} s", LIMIT.as_secs()),
        )
    };
    cx.within(LIMIT, late, async {
        work.await.map_err(|e| fault(doing, e))
    })
    .await
}

/// An archive on its way.
struct ObjectUpload {
    sink: Object,
    cx: Context,
    name: String,
    upload: Box<dyn MultipartUpload>,
    part_bytes: u64,
    parts: u64,
    filling: BytesMut,
    flying: VecDeque<JoinHandle<Result<(), object_store::Error>>>,
    sent: u64,
}

impl ObjectUpload {
    async fn send(&mut self) -> Result<()> {
        while self.flying.len() >= IN_FLIGHT {
            self.land().await?;
        }
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return Err(settings(format!(
                "`{}` grew over the {MAX_PARTS} parts that the store takes",
                self.name
            ))
            .hint("set `part_size` larger: four parts are held in memory"));
        }
        let body = std::mem::take(&mut self.filling).freeze();
        self.sent += body.len() as u64;
        // The crate keeps the parts in the order of these calls, whenever each arrives.
        let part = self.upload.put_part(body.into());
        self.flying.push_back(tokio::spawn(part));
        Ok(())
    }

    async fn land(&mut self) -> Result<()> {
        let Some(mut task) = self.flying.pop_front() else {
            return Ok(());
        };
        let landed = tokio::select! {
            biased;
            () = self.cx.cancel.cancelled() => {
                self.flying.push_front(task);
                return Err(Error::cancelled());
            }
            landed = &mut task => landed,
        };
        landed
            .map_err(|e| bug(format!("the upload of a part ended: {e}")))?
            .map_err(|e| fault(&format!("send a part of `{}`", self.name), e))
    }

    async fn finish(&mut self, seal: &Seal) -> Result<()> {
        if !self.filling.is_empty() || self.parts == 0 {
            self.send().await?;
        }
        while !self.flying.is_empty() {
            self.land().await?;
        }
        if self.sent != seal.bytes {
            return Err(bug(format!(
                "{} bytes were sent to `{}`, and the archive has {}",
                self.sent, self.name, seal.bytes
            )));
        }
        let completed = self.upload.complete().await;
        // Whatever the answer was: the key is this archive's alone, so what lies there now decides.
        match (completed, self.sink.stored(&self.cx, &self.name).await) {
            (_, Ok(stored)) if stored.bytes == seal.bytes => Ok(()),
            (Err(error), _) => Err(fault(&format!("complete `{}`", self.name), error)),
            (Ok(_), Ok(stored)) => Err(Error::corrupt(format!(
                "`{}` has {} bytes after it was stored, not {}",
                self.name, stored.bytes, seal.bytes
            ))),
            (Ok(_), Err(error)) => Err(error),
        }
    }

    async fn give_up(&mut self) -> Result<()> {
        for task in self.flying.drain(..) {
            task.abort();
            let _ = task.await;
        }
        match self.upload.abort().await {
            // Azure forgets blocks that were never committed by itself, after a week.
            Ok(())
            | Err(
                object_store::Error::NotSupported { .. }
                | object_store::Error::NotImplemented { .. }
                | object_store::Error::NotFound { .. },
            ) => Ok(()),
            Err(error) => Err(fault(&format!("abort `{}`", self.name), error)),
        }
    }
}

#[async_trait]
impl Upload for ObjectUpload {
    async fn write(&mut self, mut chunk: Bytes) -> Result<()> {
        while !chunk.is_empty() {
            let room = (self.part_bytes - self.filling.len() as u64).min(chunk.len() as u64);
            self.filling
                .extend_from_slice(&chunk.split_to(room as usize));
            if self.filling.len() as u64 == self.part_bytes {
                self.send().await?;
            }
        }
        Ok(())
    }

    async fn publish(mut self: Box<Self>, _name: &ArchiveName, seal: &Seal) -> Result<Stored> {
        if let Err(error) = self.finish(seal).await {
            if let Err(left) = self.give_up().await {
                tracing::warn!(error = %left, "an upload stays, the store forgets it by itself");
            }
            return Err(error);
        }
        let sums = self
            .sink
            .key(&self.cx, &format!("{}.sha256", self.name))
            .await?;
        let text = seal.sum_file(&self.name).into();
        if let Err(error) = self
            .sink
            .put(&self.cx, &sums, text, PutMode::Overwrite)
            .await
        {
            // The archive is whole without them.
            tracing::warn!(%error, "the sums beside the archive were not written");
        }
        self.sink.stored(&self.cx, &self.name).await
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        self.give_up().await
    }
}

#[async_trait]
impl Sink for Object {
    fn abilities(&self) -> Abilities {
        Abilities {
            ranges: true,
            exclusive_create: true,
            ..Abilities::default()
        }
    }

    async fn check(&self, cx: &Context) -> Result<Health> {
        let (store, _) = self.store().await?;
        let notes = self.key(cx, ".bk").await?;
        let listed = limited(cx, "list", store.list_with_delimiter(Some(&notes))).await?;
        let other = listed
            .common_prefixes
            .iter()
            .filter_map(Path::filename)
            .find(|site| **site != *cx.site);
        if let Some(other) = other {
            return Err(settings(format!(
                "site `{other}` keeps its archives under `{}`",
                self.place(cx)
            ))
            .hint(format!("set `prefix = \"{}/\"`, or leave it out", cx.site)));
        }
        Ok(Health {
            identity: self.place(cx),
            describe: format!(
                "{}, no versions, every archive is read back",
                self.place(cx)
            ),
            warnings: Vec::new(),
        })
    }

    async fn create(
        &self,
        cx: &Context,
        name: &ArchiveName,
        hint: SizeHint,
    ) -> Result<Box<dyn Upload>> {
        let wanted = hint.previous_bytes.unwrap_or(0) / 2 * 3;
        let part_bytes = self.settings.part_size.map_or_else(
            || wanted.div_ceil(MAX_PARTS).max(USUAL_PART_BYTES),
            |size| size.0.max(SMALLEST_PART_BYTES),
        );
        let chosen = self.choose_name(cx, name).await?;
        let key = self.key(cx, &chosen).await?;
        let mut attributes = Attributes::new();
        for (word, value) in [("bkid", name.id.clone()), ("bksite", cx.site.to_string())] {
            attributes.insert(Attribute::Metadata(word.into()), value.into());
        }
        let options = PutMultipartOptions {
            attributes,
            ..PutMultipartOptions::default()
        };
        let (store, _) = self.store().await?;
        let upload = limited(cx, "begin", store.put_multipart_opts(&key, options)).await?;
        Ok(Box::new(ObjectUpload {
            sink: self.clone(),
            cx: cx.clone(),
            name: chosen,
            upload,
            part_bytes,
            parts: 0,
            filling: BytesMut::new(),
            flying: VecDeque::new(),
            sent: 0,
        }))
    }

    async fn list(&self, cx: &Context, filter: &Filter) -> Result<Vec<Stored>> {
        let found = self.objects(cx, "").await?;
        let found: Vec<Stored> = found
            .into_iter()
            .filter(|(name, _)| name.starts_with(&filter.prefix) && looks_like_an_archive(name))
            .map(|(name, meta)| stored(&name, &meta))
            .collect();
        if filter.care == Care::Delete {
            let again = Filter {
                care: Care::Look,
                ..filter.clone()
            };
            let mut again = self.list(cx, &again).await?;
            let mut sorted = found.clone();
            again.sort();
            sorted.sort();
            if again != sorted {
                return Err(conflict(
                    "the listing looks cut: two listings in a row differ",
                ));
            }
        }
        Ok(found)
    }

    async fn read(&self, cx: &Context, which: &Stored, range: Range<u64>) -> Result<ByteStream> {
        if range.is_empty() {
            return Ok(futures::stream::empty().boxed());
        }
        let (store, _) = self.store().await?;
        let key = self.key(cx, &which.name).await?;
        let options = GetOptions {
            if_match: Some(format!("\"{}\"", which.etag)).filter(|_| !which.etag.is_empty()),
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        let doing = format!("read `{}`", which.name);
        let got = match limited(cx, &doing, store.get_opts(&key, options)).await {
            // A store may call the condition on what is gone not fulfilled.
            Err(error) if error.kind == ErrorKind::Conflict => {
                self.stored(cx, &which.name).await?;
                return Err(error);
            }
            got => got?,
        };
        Ok(got.into_stream().map_err(move |e| fault(&doing, e)).boxed())
    }

    async fn sums(&self, cx: &Context, which: &Stored) -> Result<Option<String>> {
        let key = self.key(cx, &format!("{}.sha256", which.name)).await?;
        let found = self.small(cx, &key).await?;
        Ok(found.map(|(text, _)| String::from_utf8_lossy(&text).into_owned()))
    }

    async fn delete(&self, cx: &Context, which: &Stored) -> Result<()> {
        let now = match self.stored(cx, &which.name).await {
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(()),
            now => now?,
        };
        if now.etag != which.etag {
            return Err(conflict(format!(
                "`{}` is another object than was listed",
                which.name
            )));
        }
        let (store, _) = self.store().await?;
        let names = [
            which.name.clone(),
            format!("{}.sha256", which.name),
            format!(".bk/{}/names/{}", cx.site, which.name),
        ];
        for name in names {
            let key = self.key(cx, &name).await?;
            match limited(cx, &format!("delete `{name}`"), store.delete(&key)).await {
                Err(error) if error.kind != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    async fn note(&self, cx: &Context, name: &NoteName) -> Result<Option<Note>> {
        let key = self.note_key(cx, name).await?;
        let found = self.small(cx, &key).await?;
        Ok(found.map(|(body, etag)| Note { body, etag }))
    }

    async fn set_note(&self, cx: &Context, name: &NoteName, body: Bytes, was: Was) -> Result<()> {
        let key = self.note_key(cx, name).await?;
        let mode = match was {
            Was::Any => PutMode::Overwrite,
            Was::Absent => PutMode::Create,
            Was::Same(etag) => PutMode::Update(UpdateVersion {
                e_tag: Some(etag),
                version: None,
            }),
        };
        self.put(cx, &key, body, mode).await
    }

    async fn notes(&self, cx: &Context, site: &str, prefix: &str) -> Result<Vec<NoteSeen>> {
        let found = self.objects(cx, &format!(".bk/{site}")).await?;
        Ok(found
            .into_iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(name, meta)| NoteSeen {
                modified: stored(&name, &meta).modified,
                name: NoteName {
                    site: site.to_owned(),
                    name,
                },
            })
            .collect())
    }

    async fn remove_note(&self, cx: &Context, name: &NoteName) -> Result<()> {
        let key = self.note_key(cx, name).await?;
        let (store, _) = self.store().await?;
        match limited(cx, "remove a note", store.delete(&key)).await {
            Err(error) if error.kind != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
