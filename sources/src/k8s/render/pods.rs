//! The pod of a run: by the standard "restricted", with its settings, secrets, volumes, and the little memory that it needs.

use super::Options;
use super::settings_file::SettingsFile;
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar,
    EnvVarSource, EphemeralVolumeSource, KeyToPath, PersistentVolumeClaimSpec,
    PersistentVolumeClaimTemplate, PersistentVolumeClaimVolumeSource, PodAffinity, PodAffinityTerm,
    PodSecurityContext, PodSpec, PodTemplateSpec, ResourceRequirements, SeccompProfile,
    SecretKeySelector, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
    VolumeResourceRequirements,
};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeMap;

/// Where the settings lie in a pod.
const SETTINGS: &str = "/etc/bk";
const TEMPORARY: &str = "/tmp";
const SCRATCH: &str = "/scratch";

pub(super) fn pod_template(
    options: &Options,
    file: &SettingsFile,
    arguments: &[String],
    restores: bool,
) -> PodTemplateSpec {
    let component = if restores { "restore" } else { "backup" };
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: options.meta("", component).labels,
            annotations: Some(
                [
                    (
                        "cluster-autoscaler.kubernetes.io/safe-to-evict".to_owned(),
                        "false".to_owned(),
                    ),
                    (
                        "kubectl.kubernetes.io/default-container".to_owned(),
                        "bk".to_owned(),
                    ),
                ]
                .into(),
            ),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            restart_policy: Some("Never".into()),
            service_account_name: Some(options.account(restores)),
            // A standby site remembers in the cluster what it has.
            automount_service_account_token: Some(file.asks_api || restores),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(120),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(options.user),
                run_as_group: Some(options.user),
                fs_group: Some(options.user),
                fs_group_change_policy: Some("OnRootMismatch".into()),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".into(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            affinity: options.near.as_ref().map(near),
            containers: vec![container(options, file, arguments)],
            volumes: Some(volumes(options, file)),
            ..PodSpec::default()
        }),
    }
}

fn near((key, value): &(String, String)) -> Affinity {
    Affinity {
        pod_affinity: Some(PodAffinity {
            required_during_scheduling_ignored_during_execution: Some(vec![PodAffinityTerm {
                label_selector: Some(LabelSelector {
                    match_labels: Some([(key.clone(), value.clone())].into()),
                    ..LabelSelector::default()
                }),
                topology_key: "kubernetes.io/hostname".into(),
                ..PodAffinityTerm::default()
            }]),
            ..PodAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn quantities(pairs: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
    let pairs = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Quantity((*value).to_owned())));
    pairs.collect()
}

fn container(options: &Options, file: &SettingsFile, arguments: &[String]) -> Container {
    let plain = |name: &str, value: &str| EnvVar {
        name: name.into(),
        value: Some(value.into()),
        ..EnvVar::default()
    };
    let mut variables = vec![
        plain("BK_CONFIG", &format!("{SETTINGS}/plugins.toml")),
        plain("HOME", TEMPORARY),
    ];
    variables.extend(file.variables.iter().map(|name| EnvVar {
        name: name.clone(),
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: options.secret.clone(),
                key: name.clone(),
                ..SecretKeySelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }));
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let mut mounts = vec![
        mount("settings", SETTINGS, true),
        mount("tmp", TEMPORARY, false),
    ];
    for (n, folder) in file.files.keys().enumerate() {
        mounts.push(mount(&format!("secret-{n}"), folder, true));
    }
    for (n, (_, path)) in options.claims.iter().enumerate() {
        mounts.push(mount(&format!("claim-{n}"), path, false));
    }
    if options.scratch.is_some() {
        mounts.push(mount("scratch", SCRATCH, false));
        variables.push(plain("TMPDIR", SCRATCH));
    }
    Container {
        name: "bk".into(),
        image: Some(options.image.clone()),
        args: Some(arguments.to_vec()),
        env: Some(variables),
        volume_mounts: Some(mounts),
        resources: Some(ResourceRequirements {
            requests: Some(quantities(&[("cpu", "100m"), ("memory", "256Mi")])),
            limits: Some(quantities(&[("memory", "1Gi")])),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".into()]),
                ..Capabilities::default()
            }),
            ..SecurityContext::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        ..Container::default()
    }
}

fn volumes(options: &Options, file: &SettingsFile) -> Vec<Volume> {
    let mut volumes = vec![
        Volume {
            name: "settings".into(),
            config_map: Some(ConfigMapVolumeSource {
                name: options.settings_name(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: "tmp".into(),
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: Some(Quantity("256Mi".into())),
                ..EmptyDirVolumeSource::default()
            }),
            ..Volume::default()
        },
    ];
    for (n, names) in file.files.values().enumerate() {
        let item = |name: &String| KeyToPath {
            key: name.clone(),
            path: name.clone(),
            mode: Some(0o440),
            ..KeyToPath::default()
        };
        volumes.push(Volume {
            name: format!("secret-{n}"),
            secret: Some(SecretVolumeSource {
                secret_name: Some(options.secret.clone()),
                items: Some(names.iter().map(item).collect()),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    for (n, (claim, _)) in options.claims.iter().enumerate() {
        volumes.push(Volume {
            name: format!("claim-{n}"),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                ..PersistentVolumeClaimVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    if let Some(size) = &options.scratch {
        volumes.push(Volume {
            name: "scratch".into(),
            ephemeral: Some(EphemeralVolumeSource {
                volume_claim_template: Some(PersistentVolumeClaimTemplate {
                    spec: PersistentVolumeClaimSpec {
                        access_modes: Some(vec!["ReadWriteOnce".into()]),
                        resources: Some(VolumeResourceRequirements {
                            requests: Some(quantities(&[("storage", size)])),
                            ..VolumeResourceRequirements::default()
                        }),
                        storage_class_name: options.scratch_class.clone(),
                        ..PersistentVolumeClaimSpec::default()
                    },
                    ..PersistentVolumeClaimTemplate::default()
                }),
            }),
            ..Volume::default()
        });
    }
    volumes
}

/// Names, and the networks that were given; nobody comes in.
pub(super) fn network_policy(options: &Options) -> NetworkPolicy {
    let port = |protocol: &str| NetworkPolicyPort {
        port: Some(IntOrString::Int(53)),
        protocol: Some(protocol.into()),
        ..NetworkPolicyPort::default()
    };
    let to = |cidr: &String| NetworkPolicyPeer {
        ip_block: Some(IPBlock {
            cidr: cidr.clone(),
            ..IPBlock::default()
        }),
        ..NetworkPolicyPeer::default()
    };
    let [name, value] = ["app.kubernetes.io/name", "bk"].map(str::to_owned);
    NetworkPolicy {
        metadata: options.meta(&options.name, "network"),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some([(name, value)].into()),
                ..LabelSelector::default()
            }),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            egress: Some(vec![
                NetworkPolicyEgressRule {
                    ports: Some(vec![port("UDP"), port("TCP")]),
                    to: None,
                },
                NetworkPolicyEgressRule {
                    ports: None,
                    to: Some(options.network.iter().map(to).collect()),
                },
            ]),
            ..NetworkPolicySpec::default()
        }),
    }
}
