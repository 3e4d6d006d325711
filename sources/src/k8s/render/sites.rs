//! Sites that are known: their namespaces, labels, volumes and hours.

use super::Options;
use super::jobs::Run;

/// A known site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// An Open edX site run by Tutor: MySQL, MongoDB and Caddy in one namespace.
    Tutor,
    /// Open edX on small machines with `CouchDB`: three `CronJob`s that keep days, weeks and months.
    CouchdbOpenedx,
}

impl Site {
    /// Lays what is known of it over the options. `namespace` is given where somebody said another one.
    pub fn lay_over(self, options: &mut Options, namespace: Option<String>) {
        options.namespace = namespace.unwrap_or_else(|| "openedx".into());
        match self {
            Self::Tutor => {
                // Tutor labels its own so, and its plugin's objects lie among them.
                let labels = [
                    ("app.kubernetes.io/part-of", "openedx".to_owned()),
                    (
                        "app.kubernetes.io/instance",
                        format!("openedx-{}", options.namespace),
                    ),
                ];
                options
                    .labels
                    .extend(labels.map(|(key, value)| (key.to_owned(), value)));
                options.claims.push(("caddy".into(), "/data/caddy".into()));
                // Its claim is mounted by the machine of that pod alone.
                options.near = Some(("app.kubernetes.io/name".into(), "caddy".into()));
            }
            Self::CouchdbOpenedx => {
                options.claims.push(("backup".into(), "/backup".into()));
                options.runs = vec![
                    Self::kept("daily-backup", "0 1 * * *", "daily"),
                    Self::kept("weekly-backup", "0 2 * * 0", "weekly"),
                    Self::kept("monthly-backup", "0 3 1 * *", "monthly"),
                    Run {
                        suspend: true,
                        restores: true,
                        ..Run::new("restore-standby", "30 3 * * *", &super::jobs::STANDBY)
                    },
                ];
            }
        }
    }

    fn kept(name: &str, schedule: &str, tier: &str) -> Run {
        Run {
            alone: true,
            ..Run::new(
                name,
                schedule,
                &["backup", "--tier", tier, "--wait-lock", "30m"],
            )
        }
    }

    /// The settings of such a site, where none are given: a beginning, to be looked at.
    pub fn settings(self) -> &'static str {
        match self {
            Self::Tutor => TUTOR,
            Self::CouchdbOpenedx => COUCHDB_OPENEDX,
        }
    }
}

const TUTOR: &str = r#"format = 1
plugins = ["mysql", "mongodb", "caddy", "s3"]

[source.mysql]
host = "mysql"
user = "root"
password = { env = "MYSQL_ROOT_PASSWORD" }

[source.mongodb]
host = "mongodb"

[source.caddy]
path = "/data/caddy"

[sink.s3]
bucket = "backups"
access_key = { env = "S3_ACCESS_KEY" }
secret_key = { env = "S3_SECRET_KEY" }
"#;

const COUCHDB_OPENEDX: &str = r#"format = 1
plugins = ["couchdb", "k8s", "local"]

[source.couchdb]
url = "http://couchdb:5984"
user = "admin"
password = { env = "COUCHDB_PASSWORD" }
after = ["k8s"]

[source.k8s]
namespaces = ["openedx"]
kinds = ["ConfigMap", "Secret"]
secrets = "include"
hold = ["openedx/Deployment/lms-deployment", "openedx/Deployment/cms-deployment"]
restart = ["openedx/Deployment/*-deployment"]

[sink.local]
path = "/backup"
layout = "tiers"
keep = { daily = 7, weekly = 4, monthly = 12 }
"#;
