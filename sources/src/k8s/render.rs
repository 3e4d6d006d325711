//! Manifests that run `bk` in a cluster: accounts, rights, settings, `CronJob`s and one-off Jobs. Typed here and nowhere else; what is written into them
//! and why stands beside each field in the YAML.

mod comments;
pub mod jobs;
mod pods;
mod rights;
mod settings_file;
pub mod sites;

use crate::k8s::object::MANAGED_BY;
use bk_core::error::{Error, ErrorKind, Result, bug, settings};
use jobs::Run;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
pub use rights::Rights;
use serde::Serialize;
use serde_json::Value;
use settings_file::SettingsFile;
use std::collections::BTreeMap;

/// A `CronJob`'s name gets eleven characters more in its Jobs, and those may have 63.
const NAME_CHARS: usize = 52;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it runs.
    pub namespace: String,
    /// Name of everything, or its beginning.
    pub name: String,
    /// Image of `bk`.
    pub image: String,
    /// The text of `plugins.toml`.
    pub settings: String,
    /// The Secret that holds what the settings read from the environment or from files.
    pub secret: String,
    /// Scheduled runs.
    pub runs: Vec<Run>,
    /// Time zone of the schedules.
    pub time_zone: String,
    /// This is a standby site: nothing is backed up here, and it is restored every night.
    pub standby: bool,
    /// Rights on objects.
    pub rights: Vec<Rights>,
    /// Groups of extensions whose objects are read and written: `cert-manager.io`.
    pub groups: Vec<String>,
    /// Claims and where they are seen: of what is backed up, and of a folder that archives go to.
    pub claims: Vec<(String, String)>,
    /// `app=web`: runs on the machine where such a pod runs, since a claim can be mounted by one machine alone.
    pub near: Option<(String, String)>,
    /// User and group of the process.
    pub user: i64,
    /// Size of a volume of each run's own.
    pub scratch: Option<String>,
    /// Class of that volume.
    pub scratch_class: Option<String>,
    /// Networks that runs may reach; nothing: no policy.
    pub network: Vec<String>,
    /// More labels for everything.
    pub labels: BTreeMap<String, String>,
}

impl Options {
    /// With nothing but the usual.
    pub fn new(settings: String) -> Self {
        Self {
            namespace: "bk".into(),
            name: "bk".into(),
            image: concat!("bk:", env!("CARGO_PKG_VERSION")).into(),
            settings,
            secret: "bk".into(),
            runs: Run::usual(),
            time_zone: "Etc/UTC".into(),
            standby: false,
            rights: Vec::new(),
            groups: Vec::new(),
            claims: Vec::new(),
            near: None,
            user: 65532,
            scratch: None,
            scratch_class: None,
            network: Vec::new(),
            labels: BTreeMap::new(),
        }
    }

    /// Metadata of an object of this name.
    fn meta(&self, name: &str, component: &str) -> ObjectMeta {
        let mut labels = self.labels.clone();
        for (key, value) in [
            ("app.kubernetes.io/name", "bk"),
            ("app.kubernetes.io/component", component),
            ("app.kubernetes.io/version", env!("CARGO_PKG_VERSION")),
            MANAGED_BY,
        ] {
            labels.insert(key.into(), value.into());
        }
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.namespace.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        }
    }

    /// The account of backups, or of restores, which may do more.
    fn account(&self, restores: bool) -> String {
        format!(
            "{}-{}",
            self.name,
            if restores { "restore" } else { "backup" }
        )
    }

    fn settings_name(&self) -> String {
        format!("{}-settings", self.name)
    }

    fn check(&self) -> Result<()> {
        let fault = |what: String, hint: &str| Err(settings(what).hint(hint));
        for run in &self.runs {
            let name = run.name(&self.name);
            if name.len() > NAME_CHARS {
                return fault(
                    format!(
                        "`{name}` has {} characters; a CronJob's name may have {NAME_CHARS}",
                        name.len()
                    ),
                    "give a shorter --name",
                );
            }
            if run.schedule.contains("TZ=") {
                return fault(
                    format!("`{}`: a schedule may not name a time zone", run.schedule),
                    "use --time-zone",
                );
            }
        }
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        for (what, name) in [
            ("--name", &self.name),
            ("--namespace", &self.namespace),
            ("--secret", &self.secret),
        ] {
            if name.is_empty()
                || !name.chars().all(is_plain)
                || name.starts_with('-')
                || name.ends_with('-')
            {
                return fault(
                    format!("`{what} {name}` is no name for Kubernetes"),
                    "use lower case letters, digits and `-`",
                );
            }
        }
        Ok(())
    }
}

/// All manifests, in the order in which they are applied.
pub fn manifests(options: &Options) -> Result<Vec<Value>> {
    options.check()?;
    let file = SettingsFile::read(&options.settings)?;
    let mut all = rights::of(options, &file)?;
    all.push(value(&ConfigMap {
        metadata: options.meta(&options.settings_name(), "settings"),
        data: Some([("plugins.toml".to_owned(), options.settings.clone())].into()),
        ..ConfigMap::default()
    })?);
    for run in &options.runs {
        all.push(value(&jobs::cron_job(options, &file, run))?);
    }
    if !options.network.is_empty() {
        all.push(value(&pods::network_policy(options))?);
    }
    Ok(all)
}

/// The manifests as YAML, each field with its reason.
pub fn yaml(options: &Options) -> Result<String> {
    let mut text = String::from(
        "# Made by bk k8s render; change its flags, not this. What it names as Secrets it expects to be there.\n",
    );
    for manifest in manifests(options)? {
        text.push_str("---\n");
        text.push_str(&commented(&manifest)?);
    }
    Ok(text)
}

/// One manifest as YAML, each field with its reason.
pub fn commented(manifest: &Value) -> Result<String> {
    let plain = serde_saphyr::to_string(manifest).map_err(|e| bug(e.to_string()))?;
    let text = if manifest["kind"] == "ConfigMap" {
        plain
    } else {
        comments::beside(&plain)
    };
    let back: Value = serde_saphyr::from_str(&text)
        .map_err(|e| bug(format!("what was rendered cannot be read: {e}")))?;
    if back == *manifest {
        Ok(text)
    } else {
        Err(Error::new(
            ErrorKind::Bug,
            "what was rendered reads back as something else",
        ))
    }
}

fn value<T: Serialize>(object: &T) -> Result<Value> {
    serde_json::to_value(object).map_err(|e| bug(e.to_string()))
}
