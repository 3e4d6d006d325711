//! Accounts and what they may do: backups read, restores write, and neither more than what was asked for.

use super::settings_file::SettingsFile;
use super::{Options, value};
use crate::k8s::mark;
use bk_core::error::Result;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use serde_json::Value;

/// How far the rights on objects reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Reads the objects of the namespaces that the settings name.
    NamespaceBackup,
    /// Reads those of all namespaces, and what they need of the cluster.
    ClusterBackup,
    /// Writes the objects of the namespaces that the settings name.
    NamespaceRestore,
    /// Writes those of all namespaces, and what they need of the cluster, roles and definitions among it.
    ClusterRestore,
}

impl Rights {
    fn restores(self) -> bool {
        matches!(self, Self::NamespaceRestore | Self::ClusterRestore)
    }

    fn reaches_everywhere(self) -> bool {
        matches!(self, Self::ClusterBackup | Self::ClusterRestore)
    }
}

/// Kinds of namespaces, by group. Secrets come by themselves: to list them is to read them.
const NAMESPACED: [(&str, &[&str]); 10] = [
    (
        "",
        &[
            "configmaps",
            "endpoints",
            "limitranges",
            "persistentvolumeclaims",
            "pods",
            "podtemplates",
            "replicationcontrollers",
            "resourcequotas",
            "serviceaccounts",
            "services",
        ],
    ),
    (
        "apps",
        &[
            "controllerrevisions",
            "daemonsets",
            "deployments",
            "replicasets",
            "statefulsets",
        ],
    ),
    ("autoscaling", &["horizontalpodautoscalers"]),
    ("batch", &["cronjobs", "jobs"]),
    ("coordination.k8s.io", &["leases"]),
    ("discovery.k8s.io", &["endpointslices"]),
    ("networking.k8s.io", &["ingresses", "networkpolicies"]),
    ("policy", &["poddisruptionbudgets"]),
    (
        "resource.k8s.io",
        &["resourceclaims", "resourceclaimtemplates"],
    ),
    ("rbac.authorization.k8s.io", &["rolebindings", "roles"]),
];
/// Kinds of the cluster that namespaces' objects may need.
const OF_CLUSTER: [(&str, &[&str]); 8] = [
    ("", &["namespaces", "persistentvolumes"]),
    (
        "admissionregistration.k8s.io",
        &[
            "mutatingwebhookconfigurations",
            "validatingwebhookconfigurations",
        ],
    ),
    ("apiextensions.k8s.io", &["customresourcedefinitions"]),
    ("apiregistration.k8s.io", &["apiservices"]),
    ("networking.k8s.io", &["ingressclasses"]),
    ("node.k8s.io", &["runtimeclasses"]),
    (
        "rbac.authorization.k8s.io",
        &["clusterrolebindings", "clusterroles"],
    ),
    ("scheduling.k8s.io", &["priorityclasses"]),
];
const READ: [&str; 2] = ["get", "list"];
const WRITE: [&str; 6] = ["get", "list", "create", "update", "patch", "delete"];

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> PolicyRule {
    let owned = |list: &[&str]| {
        list.iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    PolicyRule {
        api_groups: Some(owned(groups)),
        resources: Some(owned(resources)),
        verbs: owned(verbs),
        ..PolicyRule::default()
    }
}

/// What every run asks: which cluster this is, and which definitions it has.
fn everywhere() -> Vec<PolicyRule> {
    vec![
        PolicyRule {
            resource_names: Some(vec!["kube-system".into()]),
            ..rule(&[""], &["namespaces"], &["get"])
        },
        rule(
            &["apiextensions.k8s.io"],
            &["customresourcedefinitions"],
            &READ,
        ),
    ]
}

fn of_namespaces(options: &Options, file: &SettingsFile, rights: Rights) -> Vec<PolicyRule> {
    let verbs: &[&str] = if rights.restores() { &WRITE } else { &READ };
    let mut rules: Vec<PolicyRule> = NAMESPACED
        .iter()
        .map(|(group, kinds)| rule(&[group], kinds, verbs))
        .collect();
    if file.reads_secrets {
        rules.push(rule(&[""], &["secrets"], verbs));
    }
    // Its labels and annotations come back with it.
    let of_itself: &[&str] = if rights.restores() {
        &["get", "update", "patch"]
    } else {
        &["get"]
    };
    rules.push(rule(&[""], &["namespaces"], of_itself));
    if rights.restores() {
        // That a CronJob missed nothing while it was suspended.
        rules.push(rule(&["batch"], &["cronjobs/status"], &["patch"]));
        // Roles can be given to others only by who has what they allow, or may do this.
        rules.push(rule(
            &["rbac.authorization.k8s.io"],
            &["roles", "clusterroles"],
            &["escalate", "bind"],
        ));
    }
    for group in &options.groups {
        rules.push(rule(&[group], &["*"], verbs));
    }
    rules
}

fn of_cluster(options: &Options, file: &SettingsFile, rights: Rights) -> Vec<PolicyRule> {
    let verbs: &[&str] = if rights.restores() { &WRITE } else { &READ };
    let mut rules = of_namespaces(options, file, rights);
    rules.extend(
        OF_CLUSTER
            .iter()
            .map(|(group, kinds)| rule(&[group], kinds, verbs)),
    );
    rules.push(rule(&["storage.k8s.io"], &["storageclasses"], verbs));
    if rights.restores() {
        rules.push(rule(
            &["rbac.authorization.k8s.io"],
            &["clusterroles"],
            &["escalate", "bind"],
        ));
    }
    rules
}

/// Accounts, roles and bindings.
pub(super) fn of(options: &Options, file: &SettingsFile) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for restores in [false, true] {
        let name = options.account(restores);
        let component = if restores { "restore" } else { "backup" };
        all.push(value(&ServiceAccount {
            metadata: options.meta(&name, component),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        })?);
        if !file.asks_api {
            if restores {
                all.extend(remembering(options, (&name, component))?);
            }
            continue;
        }
        let usual = if restores {
            Rights::NamespaceRestore
        } else {
            Rights::NamespaceBackup
        };
        let asked = options
            .rights
            .iter()
            .copied()
            .find(|rights| rights.restores() == restores);
        let rights = asked.unwrap_or(usual);
        let cluster_name = format!("{}-{name}", options.namespace);
        let cluster_rules = match rights {
            Rights::ClusterBackup | Rights::ClusterRestore => of_cluster(options, file, rights),
            // A volume that kept its data is found and given back to its claim.
            Rights::NamespaceRestore => {
                vec![rule(
                    &[""],
                    &["persistentvolumes"],
                    &["get", "list", "patch"],
                )]
            }
            Rights::NamespaceBackup => Vec::new(),
        };
        let rules: Vec<PolicyRule> = everywhere().into_iter().chain(cluster_rules).collect();
        all.extend(bound_in_cluster(
            options,
            (&cluster_name, &name, component),
            rules,
        )?);
        let mut reached = Vec::new();
        if !rights.reaches_everywhere() {
            let mut namespaces: Vec<String> = file
                .namespaces
                .iter()
                .filter(|n| !n.contains(['*', '?', '[']))
                .cloned()
                .collect();
            if namespaces.is_empty() {
                namespaces.push(options.namespace.clone());
            }
            for namespace in &namespaces {
                reached.push(namespace.clone());
                let rules = of_namespaces(options, file, rights);
                all.extend(bound_in_namespace(
                    options,
                    namespace,
                    (&name, component),
                    rules,
                )?);
            }
        }
        if !rights.reaches_everywhere() && !reached.contains(&options.namespace) {
            let account = (name.as_str(), component);
            all.extend(if restores {
                remembering(options, account)?
            } else {
                seeing_marks(options, account)?
            });
        }
    }
    Ok(all)
}

/// What a standby site remembers, and the mark of what belongs to no namespace, stand in the namespace of the account.
fn remembering(options: &Options, account: (&str, &str)) -> Result<[Value; 2]> {
    let verbs = ["get", "create", "update", "patch", "delete"];
    let rules = vec![rule(&[""], &["configmaps"], &verbs)];
    bound_in_namespace(options, &options.namespace, account, rules)
}

/// What belongs to no namespace may be half restored: a backup reads the mark of that.
fn seeing_marks(options: &Options, account: (&str, &str)) -> Result<[Value; 2]> {
    let rules = vec![PolicyRule {
        resource_names: Some(vec![mark::NAME.into()]),
        ..rule(&[""], &["configmaps"], &["get"])
    }];
    bound_in_namespace(options, &options.namespace, account, rules)
}

fn subject(options: &Options, account: &str) -> Vec<Subject> {
    vec![Subject {
        kind: "ServiceAccount".into(),
        name: account.to_owned(),
        namespace: Some(options.namespace.clone()),
        ..Subject::default()
    }]
}

fn role_ref(kind: &str, name: &str) -> RoleRef {
    RoleRef {
        api_group: Some("rbac.authorization.k8s.io".into()),
        kind: kind.into(),
        name: name.into(),
    }
}

fn bound_in_namespace(
    options: &Options,
    namespace: &str,
    (account, component): (&str, &str),
    rules: Vec<PolicyRule>,
) -> Result<[Value; 2]> {
    let mut metadata = options.meta(account, component);
    metadata.namespace = Some(namespace.to_owned());
    let role = Role {
        metadata: metadata.clone(),
        rules: Some(rules),
    };
    let binding = RoleBinding {
        metadata,
        role_ref: role_ref("Role", account),
        subjects: Some(subject(options, account)),
    };
    Ok([value(&role)?, value(&binding)?])
}

fn bound_in_cluster(
    options: &Options,
    (name, account, component): (&str, &str, &str),
    rules: Vec<PolicyRule>,
) -> Result<[Value; 2]> {
    let mut metadata = options.meta(name, component);
    metadata.namespace = None;
    let role = ClusterRole {
        metadata: metadata.clone(),
        rules: Some(rules),
        ..ClusterRole::default()
    };
    let binding = ClusterRoleBinding {
        metadata,
        role_ref: role_ref("ClusterRole", name),
        subjects: Some(subject(options, account)),
    };
    Ok([value(&role)?, value(&binding)?])
}
