//! A folder on another machine, over SSH (SFTP): the PC at home, a backup node.
//!
//! Every attempt writes a part of its own in the same folder, which no other session ever opens, and gets its name by a hard link, which fails
//! where the name is taken. The server's key is compared with `host_key` or `known_hosts` before anything is said to it.

mod known_hosts;
mod login;
mod sftp;
mod upload;
mod watched;

use crate::ssh::sftp::{Done, OpenFile, Sftp, there};
use crate::ssh::upload::SshUpload;
use async_trait::async_trait;
use bk_core::archive::writer::hex;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, bug, unsupported};
use bk_core::layout::{self, Layout, file_name, folders_above};
use bk_core::name::{ArchiveName, compact};
use bk_core::plugin::Plugin;
use bk_core::secret::Secret;
use bk_core::settings::Settings;
use bk_core::sink::{
    Abilities, ByteStream, Filter, Health, Note, NoteName, NoteSeen, Sink, SizeHint, Stored,
    Upload, Was, looks_like_an_archive, sums_under,
};
use bytes::Bytes;
use futures::StreamExt;
use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::Deserialize;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Mutex;

const PART_PREFIX: &str = ".bk-part.";
/// A part that was not written to for so long has no writer any more: the longest stall ends a writer far earlier.
const LEFT_OVER_AFTER: SignedDuration = SignedDuration::from_hours(24);
/// Room that must be left while an archive is written.
const RESERVE_BYTES: u64 = 4 << 20;
/// Reads that are on their way.
const READS_IN_FLIGHT: usize = 64;
/// Folders that are listed side by side.
const FOLDERS_AT_ONCE: usize = 16;
/// A sum file, or a note.
const SMALL_BYTES: u64 = 2 << 20;

/// A host and how to log in there.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostSettings {
    /// Name or address; IPv6 without brackets.
    pub host: String,
    /// TCP port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Account.
    pub user: String,
    /// Private key; without it and without `password` those of the agent (`SSH_AUTH_SOCK`).
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// What the private key is encrypted with.
    #[serde(default)]
    pub passphrase: Option<Secret>,
    /// Password of the account.
    #[serde(default)]
    pub password: Option<Secret>,
    /// The server's public keys, as `ssh-ed25519 AAAA…`. With it `known_hosts` is not read.
    #[serde(default)]
    pub host_key: Vec<String>,
    /// A file of OpenSSH's; without it `~/.ssh/known_hosts`.
    #[serde(default)]
    pub known_hosts: Option<PathBuf>,
    /// Whether the key of a server of which nothing is recorded is believed, and written down in `known_hosts`. A changed one never is.
    /// Meant for one run: `--set sink.NAME.accept_new_host_key=true`.
    #[serde(default)]
    pub accept_new_host_key: bool,
}

/// Settings of the sink `ssh`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SshSettings {
    /// Name or address; IPv6 without brackets.
    pub host: String,
    /// TCP port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Account.
    pub user: String,
    /// Private key; without it and without `password` those of the agent (`SSH_AUTH_SOCK`).
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// What the private key is encrypted with.
    #[serde(default)]
    pub passphrase: Option<Secret>,
    /// Password of the account.
    #[serde(default)]
    pub password: Option<Secret>,
    /// The server's public keys, as `ssh-ed25519 AAAA…`. With it `known_hosts` is not read.
    #[serde(default)]
    pub host_key: Vec<String>,
    /// A file of OpenSSH's; without it `~/.ssh/known_hosts`.
    #[serde(default)]
    pub known_hosts: Option<PathBuf>,
    /// Whether the key of a server of which nothing is recorded is believed, and written down in `known_hosts`. A changed one never is.
    /// Meant for one run: `--set sink.NAME.accept_new_host_key=true`.
    #[serde(default)]
    pub accept_new_host_key: bool,
    /// Another host that the connection goes through.
    #[serde(default)]
    pub jump: Option<HostSettings>,
    /// The folder, which must be there; relative to where the account comes in.
    pub path: String,
    /// `flat`: all archives in that folder. `dates`: each in a folder of its day, `2026-08-22/`. `tiers`: in `daily/20260822/`, and the first of
    /// each week, month and year in `weekly/2026-week34/`, `monthly/2026-08/` and `yearly/2026/` too. What lies there already is listed in all.
    #[serde(default)]
    pub layout: Layout,
}

/// Where the archives are, and the way there.
pub struct Place {
    host: HostSettings,
    jump: Option<HostSettings>,
    path: String,
    layout: Layout,
}

impl Place {
    fn of(parsed: SshSettings, settings: &Settings) -> Self {
        let resolved = |mut host: HostSettings| {
            host.key = host.key.map(|path| settings.path(&path));
            host.known_hosts = host.known_hosts.map(|path| settings.path(&path));
            let secret = |secret: Option<Secret>| secret.map(|s| s.relative_to(&settings.folder));
            host.passphrase = secret(host.passphrase);
            host.password = secret(host.password);
            host
        };
        let mut path = parsed.path;
        while path.len() > 1 && path.ends_with('/') {
            path.pop();
        }
        Self {
            host: resolved(HostSettings {
                host: parsed.host,
                port: parsed.port,
                user: parsed.user,
                key: parsed.key,
                passphrase: parsed.passphrase,
                password: parsed.password,
                host_key: parsed.host_key,
                known_hosts: parsed.known_hosts,
                accept_new_host_key: parsed.accept_new_host_key,
            }),
            jump: parsed.jump.map(resolved),
            path,
            layout: parsed.layout,
        }
    }
}

fn default_port() -> u16 {
    22
}

/// The plugin.
pub fn plugin() -> Plugin<dyn Sink> {
    Plugin {
        name: "ssh".into(),
        about: "a folder on another machine over SSH (SFTP): the PC at home, a backup node".into(),
        schema: Arc::new(|| schemars::schema_for!(SshSettings)),
        build: Arc::new(|settings: Settings| Ok(Arc::new(Ssh::new(&settings)?))),
    }
}

/// The sink.
#[derive(Clone)]
pub struct Ssh {
    place: Arc<Place>,
    session: Arc<Mutex<Option<Arc<Sftp>>>>,
}

impl Ssh {
    /// By its settings.
    pub fn new(settings: &Settings) -> Result<Self> {
        let parsed: SshSettings = settings.parse()?;
        if parsed.path.is_empty() {
            let hint = "name the folder; `.` is where the account comes in";
            return Err(settings.fault("path", "is empty", Some(hint)));
        }
        Ok(Self {
            place: Arc::new(Place::of(parsed, settings)),
            session: Arc::default(),
        })
    }

    /// The session, or a new one where it is over.
    async fn session(&self, cx: &Context) -> Result<Arc<Sftp>> {
        let mut session = self.session.lock().await;
        if let Some(sftp) = session.as_ref().filter(|sftp| !sftp.is_closed()) {
            return Ok(sftp.clone());
        }
        let sftp = Arc::new(Sftp::open(cx, &self.place).await?);
        for warning in sftp.warnings() {
            tracing::warn!("{warning}");
        }
        *session = Some(sftp.clone());
        Ok(sftp)
    }

    /// A new session, whatever became of the last.
    async fn anew(&self, cx: &Context) -> Result<Arc<Sftp>> {
        *self.session.lock().await = None;
        self.session(cx).await
    }

    fn path_of(&self, name: &str) -> Result<String> {
        let plain = !name.is_empty()
            && name
                .split('/')
                .all(|part| !part.is_empty() && part != "." && part != "..");
        if plain {
            Ok(format!("{}/{name}", self.place.path.trim_end_matches('/')))
        } else {
            Err(bug(format!("`{name}` is no name in a folder")))
        }
    }

    /// A file of an archive beneath the folder, whose own folder is made.
    async fn name_for(&self, sftp: &Sftp, name: &ArchiveName, file: &str) -> Result<String> {
        let path = self.place.layout.path(name, file);
        let mut above: Vec<&str> = folders_above(&path).collect();
        while let Some(folder) = above.pop() {
            sftp.make_folder(&self.path_of(folder)?).await?;
        }
        Ok(path)
    }

    /// A name that nobody else has.
    fn temporary(&self, cx: &Context, what: &str) -> Result<String> {
        let chance = bk_core::backup::draw_id()?;
        self.path_of(&format!("{PART_PREFIX}{}.{what}.{chance}", cx.site))
    }

    async fn is_there(&self, sftp: &Sftp, name: &str) -> Result<bool> {
        Ok(there(sftp.meta(&self.path_of(name)?).await)?.is_some())
    }

    async fn stored(&self, sftp: &Sftp, name: &str) -> Result<Stored> {
        let meta = sftp.meta(&self.path_of(name)?).await?;
        Ok(stored(name, &meta))
    }

    /// Whether a plain renaming leaves what is there, tried with two files of our own.
    async fn renaming_refuses(&self, sftp: &Sftp) -> Result<bool> {
        let chance = bk_core::backup::draw_id()?;
        let path = |n| self.path_of(&format!("{PART_PREFIX}probe.{n}.{chance}"));
        let (one, two) = (path(1)?, path(2)?);
        sftp.write_small(&one, b"1").await?;
        let probed = async {
            sftp.write_small(&two, b"2").await?;
            let refused = sftp.rename(&one, &two).await.is_err();
            Ok::<bool, sftp::Failure>(refused && sftp.read_small(&two, 1).await? == b"2")
        }
        .await;
        for path in [&one, &two] {
            sftp.remove_if_there(path).await?;
        }
        Ok(probed?)
    }

    /// Gives a file of ours a name, unless that is taken. Where that is done by a link, the file keeps its own name too.
    async fn claim(&self, sftp: &Sftp, file: &str, name: &str) -> Result<Done<()>> {
        if sftp.has("hardlink@openssh.com") {
            let linked = sftp.link(file, name).await;
            let refused = linked.as_ref().err().is_some_and(|f| f.code.is_some());
            // A server that links may have a disk that does not; a name that is taken is refused as well.
            if !refused || there(sftp.meta(name).await)?.is_some() {
                return Ok(linked);
            }
        }
        if self.renaming_refuses(sftp).await? {
            Ok(sftp.rename(file, name).await)
        } else {
            Err(unsupported(format!(
                "{} neither links nor refuses to rename over a file: no name can be claimed there",
                sftp.place
            )))
        }
    }

    /// Removes parts of this site that nobody writes any more, by the server's clock.
    async fn clean_parts(&self, sftp: &Sftp, site: &str, own: &str) -> Result<()> {
        let now = sftp.meta(own).await?.modified;
        let prefix = format!("{PART_PREFIX}{site}.");
        for (name, meta) in sftp.entries(&self.place.path).await? {
            if name.starts_with(&prefix) && now.duration_since(meta.modified) > LEFT_OVER_AFTER {
                let path = self.path_of(&name)?;
                match sftp.remove(&path).await {
                    Ok(()) => tracing::info!(part = %path, "removed a part whose writer is gone"),
                    Err(failure) => {
                        tracing::warn!(part = %path, error = %failure.error, "a left-over part stays");
                    }
                }
            }
        }
        Ok(())
    }

    async fn look_at_room(&self, sftp: &Sftp, wanted: u64) -> Result<()> {
        match sftp.free_bytes(&self.place.path).await {
            Some(free) if free < wanted => Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "`{}` on {} has only {free} bytes left",
                    self.place.path, sftp.place
                ),
            )
            .hint(format!("make room for {wanted} bytes"))),
            _ => Ok(()),
        }
    }

    fn note_path(&self, name: &NoteName) -> Result<String> {
        self.path_of(&format!(".bk/{}/{}", name.site, name.name))
    }

    async fn read_note(&self, sftp: &Sftp, path: &str) -> Result<Option<Note>> {
        let body = there(sftp.read_small(path, SMALL_BYTES).await)?;
        Ok(body.map(|body| Note {
            etag: etag(&body),
            body: body.into(),
        }))
    }
}

fn missing_folder(error: &Error) -> Error {
    Error::new(ErrorKind::Settings, format!("`path`: {}", error.what))
        .hint("make the folder there, and give it to the account")
}

fn etag(body: &[u8]) -> String {
    use sha2::Digest;
    hex(&sha2::Sha256::digest(body)[..16])
}

fn stored(name: &str, meta: &sftp::Meta) -> Stored {
    Stored {
        name: name.to_owned(),
        version: String::new(),
        bytes: meta.bytes,
        modified: meta.modified,
        etag: format!("{}-{}", meta.bytes, meta.modified.as_second()),
        remarks: Vec::new(),
    }
}

/// Archives among the entries of a folder go to `found`; folders that a layout makes are what comes back.
fn sort_out(
    filter: &Filter,
    folder: &str,
    entries: Vec<(String, sftp::Meta)>,
    found: &mut Vec<Stored>,
) -> Vec<String> {
    let mut folders = Vec::new();
    for (file, meta) in entries {
        let name = format!("{folder}{file}");
        if meta.is_folder && layout::is_folder(&name) {
            folders.push(name);
        } else if meta.is_file && file.starts_with(&filter.prefix) && looks_like_an_archive(&file) {
            found.push(stored(&name, &meta));
        }
    }
    folders
}

#[async_trait]
impl Sink for Ssh {
    fn abilities(&self) -> Abilities {
        Abilities {
            ranges: true,
            rename: true,
            place: true,
            // SFTP does not say whether two names are one file.
            links: false,
            exclusive_create: true,
            ..Abilities::default()
        }
    }

    fn layout(&self) -> Layout {
        self.place.layout
    }

    async fn check(&self, cx: &Context) -> Result<Health> {
        let sftp = self.session(cx).await?;
        let path = &self.place.path;
        match sftp.meta(path).await {
            Ok(meta) if meta.is_folder => {}
            Ok(_) => {
                let what = format!("`path`: `{path}` on {} is no folder", sftp.place);
                return Err(Error::new(ErrorKind::Settings, what));
            }
            Err(failure) if failure.is_absence() => return Err(missing_folder(&failure.error)),
            Err(failure) => return Err(failure.error),
        }
        self.look_at_room(&sftp, RESERVE_BYTES).await?;
        let mut warnings = sftp.warnings().to_vec();
        if !sftp.has("fsync@openssh.com") {
            warnings.push("the server cannot be told to sync: after a power failure there the newest archive may be torn".into());
        }
        warnings.push("a folder there cannot be told to sync, and notes cannot be changed under a condition: let one host alone prune here".into());
        if !sftp.has("hardlink@openssh.com") {
            warnings.push("the server makes no hard links: names are claimed by a renaming that must refuse those that are taken".into());
        }
        Ok(Health {
            identity: format!("{} {path}", sftp.host_key()),
            describe: format!("{}:{path}", sftp.place),
            warnings,
        })
    }

    async fn create(
        &self,
        cx: &Context,
        name: &ArchiveName,
        hint: SizeHint,
    ) -> Result<Box<dyn Upload>> {
        let sftp = self.session(cx).await?;
        let wanted = hint.previous_bytes.unwrap_or(0) + RESERVE_BYTES;
        self.look_at_room(&sftp, wanted).await?;
        let part = self.temporary(cx, &compact(name.start))?;
        let upload = SshUpload::begin(self.clone(), cx.clone(), sftp.clone(), part.clone()).await?;
        if let Err(error) = self.clean_parts(&sftp, &cx.site, &part).await {
            // The first error is the one that matters.
            drop(Box::new(upload).abort().await);
            return Err(error);
        }
        Ok(Box::new(upload))
    }

    async fn list(&self, cx: &Context, filter: &Filter) -> Result<Vec<Stored>> {
        let sftp = self.session(cx).await?;
        let entries = match sftp.entries(&self.place.path).await {
            Ok(entries) => entries,
            Err(failure) if failure.is_absence() => return Err(missing_folder(&failure.error)),
            Err(failure) => return Err(failure.error),
        };
        let mut found = Vec::new();
        let mut folders = sort_out(filter, "", entries, &mut found);
        // Folders lie in folders at most once more.
        while !folders.is_empty() {
            let mut listed = futures::stream::iter(std::mem::take(&mut folders))
                .map(|folder| {
                    let sftp = sftp.clone();
                    async move {
                        let path = self.path_of(&folder)?;
                        // One that went meanwhile had nothing in it.
                        let entries = there(sftp.entries(&path).await)?.unwrap_or_default();
                        Ok::<_, Error>((format!("{folder}/"), entries))
                    }
                })
                .buffer_unordered(FOLDERS_AT_ONCE);
            while let Some(next) = listed.next().await {
                let (folder, entries) = next?;
                folders.extend(sort_out(filter, &folder, entries, &mut found));
            }
        }
        Ok(found)
    }

    async fn read(&self, cx: &Context, which: &Stored, range: Range<u64>) -> Result<ByteStream> {
        let sftp = self.session(cx).await?;
        let step = sftp.read_bytes;
        let file = Arc::new(OpenFile::open(sftp, self.path_of(&which.name)?).await?);
        let name = which.name.clone();
        let pieces = (range.start..range.end).step_by(step as usize);
        let read = futures::stream::iter(pieces)
            .map(move |at| {
                let (file, len) = (file.clone(), step.min(range.end - at));
                let name = name.clone();
                async move {
                    let bytes = file.read(at, len).await?;
                    if bytes.len() as u64 == len {
                        Ok(bytes)
                    } else {
                        Err(Error::corrupt(format!(
                            "`{name}` ends after {} bytes",
                            at + bytes.len() as u64
                        )))
                    }
                }
            })
            .buffered(READS_IN_FLIGHT);
        Ok(read.boxed())
    }

    async fn sums(&self, cx: &Context, which: &Stored) -> Result<Option<String>> {
        let sftp = self.session(cx).await?;
        let path = self.path_of(&format!("{}.sha256", which.name))?;
        let text = there(sftp.read_small(&path, SMALL_BYTES).await)?;
        Ok(text.map(|text| String::from_utf8_lossy(&text).into_owned()))
    }

    async fn delete(&self, cx: &Context, which: &Stored) -> Result<()> {
        let sftp = self.session(cx).await?;
        let now = self.stored(&sftp, &which.name).await?;
        if now.etag != which.etag {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("`{}` is another file than was listed", which.name),
            ));
        }
        // The sums first: an archive without them is one still, sums without their archive are litter that nobody takes away.
        let sums = self.path_of(&format!("{}.sha256", which.name))?;
        sftp.remove_if_there(&sums).await?;
        sftp.remove(&self.path_of(&which.name)?).await?;
        for folder in folders_above(&which.name) {
            // Others may lie in it; then it stays.
            if sftp.remove_folder(&self.path_of(folder)?).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn place(&self, cx: &Context, which: &Stored, to: &ArchiveName) -> Result<Stored> {
        let sftp = self.session(cx).await?;
        let from = self.path_of(&which.name)?;
        let sums = self.sums(cx, which).await?;
        for candidate in to.candidates(true) {
            let name = self.name_for(&sftp, to, &candidate).await?;
            let path = self.path_of(&name)?;
            if self.is_there(&sftp, &name).await? {
                continue;
            }
            if let Err(failure) = sftp.link(&from, &path).await {
                // A disk there may have no links: what did not come about is sent instead.
                return match failure.code {
                    Some(_) if !self.is_there(&sftp, &name).await? => {
                        Err(unsupported(failure.error.what))
                    }
                    Some(_) => continue,
                    None => Err(failure.error),
                };
            }
            if let Some(text) = &sums {
                let text = sums_under(text, file_name(&which.name), &candidate);
                let temporary = self.temporary(cx, "sums")?;
                sftp.write_small(&temporary, text.as_bytes()).await?;
                let path = self.path_of(&format!("{name}.sha256"))?;
                sftp.replace(&temporary, &path).await?;
            }
            return self.stored(&sftp, &name).await;
        }
        Err(bug("candidates for a name never end"))
    }

    async fn note(&self, cx: &Context, name: &NoteName) -> Result<Option<Note>> {
        let sftp = self.session(cx).await?;
        self.read_note(&sftp, &self.note_path(name)?).await
    }

    async fn set_note(&self, cx: &Context, name: &NoteName, body: Bytes, was: Was) -> Result<()> {
        let sftp = self.session(cx).await?;
        for folder in [".bk".to_owned(), format!(".bk/{}", name.site)] {
            sftp.make_folder(&self.path_of(&folder)?).await?;
        }
        let path = self.note_path(name)?;
        let changed = || {
            let what = format!("the note `{path}` was changed by another run");
            Error::new(ErrorKind::Conflict, what)
        };
        if let Was::Same(etag) = &was {
            let now = self.read_note(&sftp, &path).await?;
            if now.is_none_or(|now| now.etag != *etag) {
                return Err(changed());
            }
        }
        let temporary = self.temporary(cx, "note")?;
        sftp.write_small(&temporary, &body).await?;
        if was != Was::Absent {
            return Ok(sftp.replace(&temporary, &path).await?);
        }
        let claimed = self.claim(&sftp, &temporary, &path).await;
        let removed = sftp.remove_if_there(&temporary).await;
        let claimed = claimed?;
        if claimed.is_err() && self.read_note(&sftp, &path).await?.is_some() {
            return Err(changed());
        }
        claimed?;
        removed
    }

    async fn notes(&self, cx: &Context, site: &str, prefix: &str) -> Result<Vec<NoteSeen>> {
        let sftp = self.session(cx).await?;
        let folder = self.path_of(&format!(".bk/{site}"))?;
        let entries = there(sftp.entries(&folder).await)?.unwrap_or_default();
        Ok(entries
            .into_iter()
            .filter(|(name, meta)| {
                meta.is_file && name.starts_with(prefix) && !name.starts_with('.')
            })
            .map(|(name, meta)| NoteSeen {
                name: NoteName {
                    site: site.to_owned(),
                    name,
                },
                modified: meta.modified,
            })
            .collect())
    }

    async fn remove_note(&self, cx: &Context, name: &NoteName) -> Result<()> {
        let sftp = self.session(cx).await?;
        sftp.remove_if_there(&self.note_path(name)?).await
    }
}
