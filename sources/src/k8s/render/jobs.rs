//! Scheduled runs and runs that happen once.

use super::pods::pod_template;
use super::settings_file::SettingsFile;
use super::{Options, value};
use bk_core::error::Result;
use k8s_openapi::api::batch::v1::{
    CronJob, CronJobSpec, Job, JobSpec, JobTemplateSpec, PodFailurePolicy,
    PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
    PodFailurePolicyRule,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

/// A run may take six hours.
const DEADLINE_SECONDS: i64 = 6 * 3600;
const DAYS_7_SECONDS: i32 = 7 * 24 * 3600;

/// A scheduled run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What of the name comes after that of everything; or the whole name, where `alone`.
    pub word: String,
    /// Whether `word` is the whole name.
    pub alone: bool,
    /// When.
    pub schedule: String,
    /// What is run, without `bk`.
    pub arguments: Vec<String>,
    /// Whether it is off.
    pub suspend: bool,
    /// Whether it writes into what is backed up.
    pub restores: bool,
}

impl Run {
    /// One with the usual of its kind.
    pub fn new(word: &str, schedule: &str, arguments: &[&str]) -> Self {
        Self {
            word: word.into(),
            alone: false,
            schedule: schedule.into(),
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
            suspend: false,
            restores: false,
        }
    }

    /// Backup every midnight, a part of all archives read again and retention every morning; and, for the standby site, a restore half an hour
    /// after the backup.
    pub fn usual() -> Vec<Self> {
        vec![
            Self::new("backup", "0 0 * * *", &["backup", "--wait-lock", "30m"]),
            Self::new("verify", "0 4 * * *", &["verify", "--sample", "5%"]),
            Self::new("prune", "0 5 * * *", &["prune", "--wait-lock", "30m"]),
            Self {
                suspend: true,
                restores: true,
                ..Self::new("restore-standby", "30 0 * * *", &STANDBY)
            },
        ]
    }

    /// Its name.
    pub fn name(&self, of_all: &str) -> String {
        if self.alone {
            self.word.clone()
        } else {
            format!("{of_all}-{}", self.word)
        }
    }
}

/// What a standby site does every night.
pub const STANDBY: [&str; 9] = [
    "restore",
    "--yes",
    "--standby",
    "--if-newer",
    "--existing",
    "replace",
    "--max-age",
    "36h",
    "--wait-lock=30m",
];

/// The manifest of a scheduled run. Off on a standby site, but for its restore, which is off everywhere else.
pub(super) fn cron_job(options: &Options, file: &SettingsFile, run: &Run) -> CronJob {
    let suspend = match (options.standby, run.restores) {
        (true, true) => false,
        (true, false) => true,
        (false, _) => run.suspend,
    };
    let component = if run.restores { "restore" } else { "backup" };
    CronJob {
        metadata: options.meta(&run.name(&options.name), component),
        spec: CronJobSpec {
            schedule: run.schedule.clone(),
            time_zone: Some(options.time_zone.clone()),
            concurrency_policy: Some("Forbid".into()),
            starting_deadline_seconds: Some(900),
            successful_jobs_history_limit: Some(3),
            failed_jobs_history_limit: Some(1),
            suspend: Some(suspend),
            job_template: JobTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: options.meta("", component).labels,
                    ..ObjectMeta::default()
                }),
                spec: Some(job(options, file, &run.arguments, run.restores)),
            },
        },
        ..CronJob::default()
    }
}

/// A run that happens once, now.
pub fn once(options: &Options, name: &str, arguments: &[String], restores: bool) -> Result<Value> {
    options.check()?;
    let file = SettingsFile::read(&options.settings)?;
    let component = if restores { "restore" } else { "backup" };
    value(&Job {
        metadata: options.meta(name, component),
        spec: Some(JobSpec {
            ttl_seconds_after_finished: Some(DAYS_7_SECONDS),
            ..job(options, &file, arguments, restores)
        }),
        ..Job::default()
    })
}

fn job(options: &Options, file: &SettingsFile, arguments: &[String], restores: bool) -> JobSpec {
    JobSpec {
        backoff_limit: Some(2),
        active_deadline_seconds: Some(DEADLINE_SECONDS),
        pod_failure_policy: Some(PodFailurePolicy {
            rules: vec![
                PodFailurePolicyRule {
                    action: "Ignore".into(),
                    on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                        type_: "DisruptionTarget".into(),
                        status: Some("True".into()),
                    }]),
                    ..PodFailurePolicyRule::default()
                },
                PodFailurePolicyRule {
                    action: "FailJob".into(),
                    on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                        container_name: Some("bk".into()),
                        operator: "In".into(),
                        values: vec![2, 3, 4, 5, 6, 7, 9],
                    }),
                    ..PodFailurePolicyRule::default()
                },
            ],
        }),
        pod_replacement_policy: Some("Failed".into()),
        template: pod_template(options, file, arguments, restores),
        ..JobSpec::default()
    }
}
