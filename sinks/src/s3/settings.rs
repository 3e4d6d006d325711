//! Settings of the sink `s3`. Their doc comments are the reference.

use bk_core::error::Result;
use bk_core::layout::Layout;
use bk_core::secret::Secret;
use bk_core::settings::{ByteSize, Settings};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// Parts that Amazon's and most other stores take.
const MAX_PARTS: u32 = 10_000;
/// The smallest part of Amazon's, but for the last.
const SMALLEST_PART_BYTES: u64 = 5 << 20;
const LARGEST_PART_BYTES: u64 = 5 << 30;

/// Settings of the sink `s3`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct S3Settings {
    /// The bucket. It must be there.
    pub bucket: String,
    /// Where this site's archives lie in it, with a `/` at the end; without it `SITE/`. `""` is the bucket's root.
    pub prefix: Option<String>,
    /// Where archives of other programs lie, which are listed and restored from, never written or deleted; without it the bucket's root.
    #[serde(default)]
    pub foreign_prefix: String,
    /// `flat`: all archives right beneath the prefix. `dates`: each beneath its day, `2026-08-22/`. `tiers`: in `daily/20260822/`, and the first of each week, month and year as a second copy in
    /// `weekly/2026-week34/`, `monthly/2026-08/` and `yearly/2026/`.
    #[serde(default)]
    pub layout: Layout,
    /// `https://HOST:PORT` of the store; without it Amazon's of the region.
    pub endpoint: Option<String>,
    /// The region; without it what the environment says, else `us-east-1`.
    pub region: Option<String>,
    /// `path` writes the bucket into the path, `virtual` before the host's name; `auto` is `path` with an `endpoint`, else `virtual`.
    #[serde(default)]
    pub addressing: Addressing,
    /// Access key. Without it the standard chain: environment, profile, web identity, container, instance.
    pub access_key: Option<Secret>,
    /// Its secret.
    pub secret_key: Option<Secret>,
    /// Session token, for keys that run out.
    pub session_token: Option<Secret>,
    /// A second key that may delete and tag; without it the first does all, as far as it may.
    pub delete_access_key: Option<Secret>,
    /// Its secret.
    pub delete_secret_key: Option<Secret>,
    /// PEM file of the authority that vouches for the store; with it nobody else is believed.
    pub ca: Option<PathBuf>,
    /// What proves that bytes arrived: `auto` tries once what the store really checks and remembers it in a note.
    #[serde(default)]
    pub checksum: Checksum,
    /// Bytes of a part of an upload; without it 16 MiB, or more when the last archive was large. Four parts are held in memory.
    pub part_size: Option<ByteSize>,
    /// Parts that the store takes for one object.
    #[serde(default = "max_parts")]
    pub max_parts: u32,
    /// Whether all parts but the last must be of one size, as some stores want. If not, parts grow when an archive turns out larger than the last.
    #[serde(default)]
    pub equal_parts: bool,
    /// Storage class of archives: `STANDARD_IA`, `GLACIER_IR`. Sum files and notes stay in the bucket's own.
    pub storage_class: Option<String>,
    /// Encryption by the store.
    pub encryption: Option<Encryption>,
    /// Lock of each whole archive against deletion; the bucket must have object lock.
    pub object_lock: Option<ObjectLock>,
    /// `write` lets the store expire old archives when nobody prunes any more: `bk prune` tags them, and keeps rules named `bk:SITE:…`.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// With `lifecycle = "write"`: days after which archives of long tiers go to a colder class, and which.
    pub transition: Option<Transition>,
    /// Seconds that a request may stand still before it is tried anew.
    #[serde(default = "timeout")]
    pub timeout: u64,
    /// How often a request is tried.
    #[serde(default = "attempts")]
    pub attempts: u32,
}

fn max_parts() -> u32 {
    MAX_PARTS
}

fn timeout() -> u64 {
    30
}

fn attempts() -> u32 {
    8
}

/// Where the bucket's name stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Addressing {
    /// `path` with an endpoint, else `virtual`.
    #[default]
    Auto,
    /// In the path.
    Path,
    /// Before the host's name.
    Virtual,
}

/// What proves that bytes arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Checksum {
    /// The best that the store checks.
    #[default]
    Auto,
    /// CRC-64/NVME of each part and of the whole object.
    Crc64nvme,
    /// CRC-32C of each part.
    Crc32c,
    /// MD5 of each part.
    Md5,
    /// None: every archive is read back.
    None,
}

/// Encryption by the store.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Encryption {
    /// Whose key.
    pub mode: EncryptionMode,
    /// With `kms`: the key's id or ARN; without it the bucket's own.
    pub key_id: Option<String>,
    /// With `customer`: 32 bytes as base64. Without it the archives cannot be read again; set it in a prefix of its own, from the first archive on.
    pub key: Option<Secret>,
}

/// Whose key encrypts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EncryptionMode {
    /// The store's (SSE-S3).
    Store,
    /// A key management service's (SSE-KMS).
    Kms,
    /// The operator's, sent along with each request (SSE-C).
    Customer,
}

/// Lock of archives against deletion.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ObjectLock {
    /// Who may lift it.
    pub mode: LockMode,
    /// Days that it lasts.
    pub days: u32,
}

/// Who may lift a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LockMode {
    /// Whoever has a right of its own for that.
    Governance,
    /// Nobody.
    Compliance,
}

/// Whether rules are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Lifecycle {
    /// No.
    #[default]
    Off,
    /// Yes.
    Write,
}

/// When archives get colder.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Transition {
    /// Days after which.
    pub days: u32,
    /// `GLACIER`, `DEEP_ARCHIVE`, `GLACIER_IR`, `STANDARD_IA`.
    pub class: String,
}

impl S3Settings {
    /// Takes the settings, and what only their sense can tell.
    pub fn new(settings: &Settings) -> Result<Self> {
        let mut parsed: Self = settings.parse()?;
        let folder = &settings.folder;
        let secrets = [
            &mut parsed.access_key,
            &mut parsed.secret_key,
            &mut parsed.session_token,
            &mut parsed.delete_access_key,
            &mut parsed.delete_secret_key,
        ];
        for secret in secrets {
            *secret = secret.take().map(|s| s.relative_to(folder));
        }
        if let Some(encryption) = &mut parsed.encryption {
            encryption.key = encryption.key.take().map(|s| s.relative_to(folder));
        }
        parsed.ca = parsed.ca.map(|path| settings.path(&path));
        parsed.look(settings)?;
        Ok(parsed)
    }

    fn look(&self, settings: &Settings) -> Result<()> {
        let pairs = [
            (
                "access_key",
                self.access_key.is_some(),
                "secret_key",
                self.secret_key.is_some(),
            ),
            (
                "delete_access_key",
                self.delete_access_key.is_some(),
                "delete_secret_key",
                self.delete_secret_key.is_some(),
            ),
        ];
        for (key, has_key, secret, has_secret) in pairs {
            if has_key != has_secret {
                let (there, missing) = if has_key {
                    (key, secret)
                } else {
                    (secret, key)
                };
                return Err(settings.fault(
                    there,
                    format!("`{there}` stands without `{missing}`"),
                    Some(&format!("add `{missing} = {{ env = \"…\" }}`")),
                ));
            }
        }
        for (key, prefix) in [
            ("prefix", self.prefix.as_deref().unwrap_or("")),
            ("foreign_prefix", &self.foreign_prefix),
        ] {
            if prefix.starts_with('/') || (!prefix.is_empty() && !prefix.ends_with('/')) {
                return Err(settings.fault(
                    key,
                    format!("`{key}` is `{prefix}`: it must end with `/` and not begin with it"),
                    Some(&format!("write `{}/`", prefix.trim_matches('/'))),
                ));
            }
        }
        if let Some(endpoint) = &self.endpoint
            && !endpoint.starts_with("http://")
            && !endpoint.starts_with("https://")
        {
            return Err(settings.fault(
                "endpoint",
                format!("`{endpoint}` does not say http:// or https://"),
                Some(&format!("write `https://{endpoint}`")),
            ));
        }
        if let Some(part) = self.part_size
            && !(SMALLEST_PART_BYTES..=LARGEST_PART_BYTES).contains(&part.0)
        {
            return Err(settings.fault(
                "part_size",
                format!("a part of {} bytes is not between 5 MiB and 5 GiB", part.0),
                Some("leave it out: it is chosen by the last archive's size"),
            ));
        }
        if self.max_parts == 0 || self.max_parts > MAX_PARTS {
            return Err(settings.fault(
                "max_parts",
                format!(
                    "`max_parts` is {}, and no store takes more than {MAX_PARTS}",
                    self.max_parts
                ),
                Some("leave it out, or write what the store's documents say"),
            ));
        }
        if self.attempts == 0 || self.timeout == 0 {
            return Err(settings.fault(
                "attempts",
                "`attempts` and `timeout` must be at least 1",
                Some("leave them out"),
            ));
        }
        self.look_at_encryption(settings)?;
        if self.lifecycle == Lifecycle::Write && self.prefix.as_deref() == Some("") {
            return Err(settings.fault(
                "lifecycle",
                "`lifecycle = \"write\"` needs a `prefix`: its rules would reach everything in the bucket",
                Some("leave `prefix` out, or write `prefix = \"backups/\"`"),
            ));
        }
        if self.transition.is_some() && self.lifecycle == Lifecycle::Off {
            return Err(settings.fault(
                "transition",
                "`transition` needs `lifecycle = \"write\"`",
                None,
            ));
        }
        Ok(())
    }

    fn look_at_encryption(&self, settings: &Settings) -> Result<()> {
        let Some(encryption) = &self.encryption else {
            return Ok(());
        };
        let customer = encryption.mode == EncryptionMode::Customer;
        if customer != encryption.key.is_some() {
            return Err(settings.fault(
                "encryption",
                "`encryption.key` and `mode = \"customer\"` belong together",
                Some("write `encryption = { mode = \"customer\", key = { env = \"…\" } }`"),
            ));
        }
        if customer
            && self
                .endpoint
                .as_ref()
                .is_some_and(|e| e.starts_with("http://"))
        {
            return Err(settings.fault(
                "encryption",
                "the key of `mode = \"customer\"` would travel in the clear",
                Some("use an https:// endpoint"),
            ));
        }
        if encryption.key_id.is_some() && encryption.mode != EncryptionMode::Kms {
            return Err(settings.fault(
                "encryption",
                "`encryption.key_id` is for `mode = \"kms\"` only",
                None,
            ));
        }
        Ok(())
    }

    /// Where this site's archives lie.
    pub fn prefix_of(&self, site: &str) -> String {
        self.prefix.clone().unwrap_or_else(|| format!("{site}/"))
    }

    /// Whether the bucket stands in the path.
    pub fn path_style(&self) -> bool {
        match self.addressing {
            Addressing::Path => true,
            Addressing::Virtual => false,
            Addressing::Auto => self.endpoint.is_some(),
        }
    }
}
