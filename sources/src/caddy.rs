//! Caddy's data folder: certificates, keys, accounts. A `files` source that knows what is in it.

use crate::files::walk::unit_of;
use crate::files::{Files, FilesSettings};
use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::Result;
use bk_core::name::MemberPath;
use bk_core::plugin::Plugin;
use bk_core::settings::Settings;
use bk_core::source::{
    Candidate, Claim, Facts, Health, Input, Kind, Output, PointInTime, RestoreOptions, Snapshot,
    SnapshotOptions, Source, Stage, Tally,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Certificates that the facts list; a folder with more says how many.
const CERTIFICATES_LISTED: usize = 200;
/// Folders that only Caddy's data folder has.
const CADDYS_OWN: [&str; 3] = ["certificates", "pki", "acme"];

/// Settings of the source `caddy`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CaddySettings {
    /// Caddy's data folder, `…/caddy`: the one with `certificates`. Relative to the settings file.
    pub path: PathBuf,
    /// Globs of files and folders to leave out, beside `locks/`, which is always left out.
    #[serde(default)]
    pub exclude: Option<Vec<String>>,
}

/// The plugin.
pub fn plugin() -> Plugin<dyn Source> {
    Plugin {
        name: "caddy".into(),
        about: "Caddy's data folder: certificates, keys, accounts".into(),
        schema: Arc::new(|| schemars::schema_for!(CaddySettings)),
        build: Arc::new(|settings: Settings| Ok(Arc::new(Caddy::new(&settings)?))),
    }
}

/// The source.
#[derive(Clone, Debug)]
pub struct Caddy {
    files: Files,
    path: PathBuf,
}

impl Caddy {
    fn new(settings: &Settings) -> Result<Self> {
        let parsed: CaddySettings = settings.parse()?;
        let mut exclude = parsed.exclude.unwrap_or_default();
        exclude.push("/locks".into());
        let files = Files::new(
            settings,
            FilesSettings {
                path: parsed.path.clone(),
                include: None,
                exclude: Some(exclude),
            },
        )?;
        Ok(Self {
            files,
            path: settings.path(&parsed.path),
        })
    }
}

#[async_trait]
impl Source for Caddy {
    async fn check(&self, cx: &Context) -> Result<Health> {
        let mut health = self.files.check(cx).await?;
        if self.path.is_dir() && !CADDYS_OWN.iter().any(|name| self.path.join(name).is_dir()) {
            let nested = self.path.join("caddy").is_dir();
            let hint = if nested {
                "; did you mean its folder `caddy`?"
            } else {
                ""
            };
            health.warnings.push(format!(
                "`{}` has none of {}: it does not look like Caddy's data folder{hint}",
                self.path.display(),
                CADDYS_OWN.join(", ")
            ));
        }
        Ok(health)
    }

    async fn snapshot(&self, cx: &Context, how: &SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(CaddySnapshot {
            files: self.files.snapshot(cx, how).await?,
            path: self.path.clone(),
        }))
    }

    async fn restore(&self, cx: &Context, input: Input, how: &RestoreOptions) -> Result<Tally> {
        self.files.restore(cx, input, how).await
    }

    /// A data folder as others pack it: `caddy/…` or `data/caddy/…` (Tutor's backup plugin), or the folder itself.
    fn claim(&self, what: &Candidate) -> Vec<Claim> {
        inside_data_folder(what)
            .map(|path| {
                let is_folder = what.kind == Kind::Directory;
                let left_out = path.parts().next() == Some(b"locks".as_slice());
                let later = is_folder || matches!(what.kind, Kind::Symlink(_));
                Claim {
                    // Folders last: what is written into them changes their time. Links as well: nothing is written through one.
                    stage: if later { Stage::Finish } else { Stage::Data },
                    unit: Some(unit_of(&path, is_folder)),
                    left_out,
                    path,
                    unpacked: false,
                }
            })
            .into_iter()
            .collect()
    }
}

/// The path beneath the data folder.
fn inside_data_folder(what: &Candidate) -> Option<MemberPath> {
    let parts: Vec<&[u8]> = what.path.parts().collect();
    if parts.is_empty() {
        return None;
    }
    let above = match parts.as_slice() {
        [b"caddy", ..] => 1,
        [b"data", b"caddy", ..] => 2,
        _ => {
            let own = |name: &[u8]| CADDYS_OWN.iter().any(|own| own.as_bytes() == name);
            let is_here = own(parts[0]) || parts.len() == 1 && what.beside.iter().any(|n| own(n));
            return is_here.then(|| what.path.clone());
        }
    };
    MemberPath::new(parts[above..].join(&b'/')).ok()
}

/// A snapshot of the folder that lists certificates in its facts.
struct CaddySnapshot {
    files: Box<dyn Snapshot>,
    path: PathBuf,
}

#[async_trait]
impl Snapshot for CaddySnapshot {
    fn at(&self) -> PointInTime {
        self.files.at()
    }

    fn large(&self) -> bool {
        self.files.large()
    }

    async fn write(&mut self, cx: &Context, stage: Stage, out: &Output) -> Result<()> {
        self.files.write(cx, stage, out).await
    }

    async fn close(self: Box<Self>, cx: &Context) -> Result<Facts> {
        let mut facts = self.files.close(cx).await?;
        let path = self.path;
        let (certificates, unread) = tokio::task::spawn_blocking(move || certificates(&path))
            .await
            .map_err(|e| bk_core::error::bug(e.to_string()))?;
        facts.warnings.extend(unread);
        facts.notes = certificates
            .iter()
            .take(CERTIFICATES_LISTED)
            .map(Certificate::line)
            .collect();
        if certificates.len() > CERTIFICATES_LISTED {
            facts.notes.push(format!(
                "and {} certificates more",
                certificates.len() - CERTIFICATES_LISTED
            ));
        }
        let listed: Vec<_> = certificates.into_iter().take(CERTIFICATES_LISTED).collect();
        facts.more = serde_json::json!({ "certificates": listed });
        Ok(facts)
    }
}

/// A certificate as the facts say it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Certificate {
    file: String,
    names: Vec<String>,
    expires: jiff::Timestamp,
}

impl Certificate {
    fn line(&self) -> String {
        format!(
            "certificate {}, expires {}",
            self.names.join(", "),
            self.expires.strftime("%Y-%m-%d")
        )
    }
}

/// Every `certificates/**/*.crt`, by path; and what could not be read.
fn certificates(folder: &Path) -> (Vec<Certificate>, Vec<String>) {
    let mut files = Vec::new();
    find_crt(&folder.join("certificates"), 4, &mut files);
    files.sort();
    let (mut found, mut unread) = (Vec::new(), Vec::new());
    for file in files {
        let shown = file
            .strip_prefix(folder)
            .unwrap_or(&file)
            .display()
            .to_string();
        match read_certificate(&file, &shown) {
            Some(certificate) => found.push(certificate),
            None if unread.len() < 10 => unread.push(format!(
                "`{shown}` is no certificate that can be read; it is backed up as it is"
            )),
            None => {}
        }
    }
    (found, unread)
}

fn find_crt(folder: &Path, depth: u32, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 0 => find_crt(&path, depth - 1, found),
            Ok(kind) if kind.is_file() && path.extension().is_some_and(|e| e == "crt") => {
                found.push(path);
            }
            _ => {}
        }
    }
}

fn read_certificate(file: &Path, shown: &str) -> Option<Certificate> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let text = std::fs::read(file).ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&text).ok()?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents).ok()?;
    let mut names: Vec<String> = Vec::new();
    if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
        for name in &alternative.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => names.extend(address(bytes)),
                _ => {}
            }
        }
    }
    let expires =
        jiff::Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()?;
    Some(Certificate {
        file: shown.to_owned(),
        names,
        expires,
    })
}

fn address(bytes: &[u8]) -> Option<String> {
    match bytes.len() {
        4 => Some(std::net::IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string()),
        16 => Some(std::net::IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
        _ => None,
    }
}
