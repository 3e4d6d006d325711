//! Manifests that run `bk` in a cluster, on a real API with its controllers, in namespaces that enforce the standard "restricted".

use bk_tests::binary::Home;
use bk_tests::kubernetes::Kubernetes;
use serde_json::{Value, json};
use std::process::Output;

const SETTINGS: &str = r#"format = 1
plugins = ["mysql", "k8s", "local", "s3"]
[source.mysql]
host = "mysql"
user = "root"
password = { env = "MYSQL_ROOT_PASSWORD" }
[source.k8s]
namespaces = ["rendered"]
secrets = "include"
[sink.local]
path = "/backup"
keep = { last = 3 }
[sink.s3]
bucket = "b"
access_key = { file = "/run/secrets/bk/access" }
secret_key = { file = "/run/secrets/bk/secret" }
"#;

/// What the server said, warnings among it.
fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn restricted(cluster: &Kubernetes, namespace: &str) {
    cluster.namespace(namespace, "");
    cluster.kubectl(
        &[
            "label",
            "namespace",
            namespace,
            "pod-security.kubernetes.io/enforce=restricted",
            "pod-security.kubernetes.io/warn=restricted",
        ],
        "",
    );
}

fn documents(yaml: &str) -> Vec<Value> {
    yaml.split("---\n")
        .skip(1)
        .map(|document| serde_saphyr::from_str(document).unwrap())
        .collect()
}

/// Each manifest is taken as it stands, and each pod by itself too: that of a Job is looked at by nobody before it is made.
fn accepted(cluster: &Kubernetes, yaml: &str, namespace: &str) {
    let dry = cluster.run(
        &["apply", "--dry-run=server", "--validate=strict", "-f", "-"],
        yaml,
    );
    assert!(
        dry.status.success() && !said(&dry).contains("Warning:"),
        "{}",
        said(&dry)
    );
    let mut pods = 0;
    for document in documents(yaml) {
        let template = if document["kind"] == "CronJob" {
            &document["spec"]["jobTemplate"]["spec"]["template"]
        } else {
            continue;
        };
        let mut pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"] });
        pod["metadata"]["name"] = "tried".into();
        let dry = cluster.run(
            &[
                "-n",
                namespace,
                "create",
                "--dry-run=server",
                "--validate=strict",
                "-f",
                "-",
            ],
            &pod.to_string(),
        );
        assert!(
            dry.status.success() && !said(&dry).contains("Warning:"),
            "{}",
            said(&dry)
        );
        pods += 1;
    }
    assert!(pods > 0);
}

#[test]
fn rendered_manifests_are_taken_by_a_restricted_namespace_and_their_runs_get_pods() {
    let Some(cluster) = Kubernetes::start() else {
        return;
    };
    restricted(&cluster, "rendered");
    let home = Home::new(SETTINGS);
    let flags = [
        "k8s",
        "render",
        "--namespace",
        "rendered",
        "--claim",
        "archives=/backup",
        "--scratch",
        "10Gi",
        "--network-policy",
        "10.0.0.0/8",
        "--group",
        "example.org",
        "--near",
        "app=web",
    ];
    let yaml = home.bk(&flags).ended(0).stdout;
    println!("{yaml}");
    // Each name that is a Secret's is named, and no value of one.
    assert!(
        yaml.contains("key: MYSQL_ROOT_PASSWORD") && yaml.contains("mountPath: /run/secrets/bk"),
        "{yaml}"
    );
    // Accounts first: pods of theirs are refused without them.
    cluster.kubectl(&["apply", "-f", "-"], &yaml);
    accepted(&cluster, &yaml, "rendered");
    let jobs: Vec<Value> = documents(&yaml)
        .into_iter()
        .filter(|d| d["kind"] == "CronJob")
        .collect();
    let of = |name: &str| {
        jobs.iter()
            .find(|job| job["metadata"]["name"] == name)
            .unwrap_or_else(|| panic!("{name}"))
    };
    for (name, schedule, suspend) in [
        ("bk-backup", "0 0 * * *", false),
        ("bk-verify", "0 4 * * *", false),
        ("bk-prune", "0 5 * * *", false),
        ("bk-restore-standby", "30 0 * * *", true),
    ] {
        let spec = &of(name)["spec"];
        assert_eq!(
            (&spec["schedule"], &spec["suspend"]),
            (&json!(schedule), &json!(suspend)),
            "{name}"
        );
        assert_eq!(
            (
                &spec["startingDeadlineSeconds"],
                &spec["successfulJobsHistoryLimit"],
                &spec["failedJobsHistoryLimit"],
                &spec["concurrencyPolicy"]
            ),
            (&json!(900), &json!(3), &json!(1), &json!("Forbid"))
        );
        let job = &spec["jobTemplate"]["spec"];
        assert!(job.get("ttlSecondsAfterFinished").is_none());
        assert_eq!(job["podFailurePolicy"]["rules"][0]["action"], "Ignore");
        assert_eq!(
            job["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"],
            json!([2, 3, 4, 5, 6, 7, 9])
        );
        let pod = &job["template"]["spec"];
        assert_eq!(
            (&pod["restartPolicy"], &pod["enableServiceLinks"]),
            (&json!("Never"), &json!(false))
        );
    }
    // Every field that has a reason says it.
    for field in [
        "suspend:",
        "startingDeadlineSeconds:",
        "restartPolicy:",
        "runAsNonRoot:",
        "secretKeyRef:",
        "activeDeadlineSeconds:",
    ] {
        assert!(
            yaml.lines()
                .filter(|line| line.trim_start().starts_with(field))
                .all(|line| line.contains("  # ")),
            "{field}"
        );
    }
    // A Job made by hand from each runs, also from one that is suspended, and one of bk's own.
    for name in ["bk-backup", "bk-restore-standby"] {
        let from = format!("--from=cronjob/{name}");
        cluster.kubectl(
            &[
                "-n",
                "rendered",
                "create",
                "job",
                &format!("{name}-by-hand"),
                &from,
            ],
            "",
        );
    }
    let admin = cluster.kubeconfig().display().to_string();
    let mut run = vec!["k8s", "run", "backup", "--kubeconfig", &admin];
    run.extend(&flags[2..]);
    run.extend(["--", "--label", "before"]);
    let made = home.bk(&run).ended(0);
    assert!(
        made.stderr
            .contains("was made; kubectl -n rendered logs -f job/bk-backup-"),
        "{}",
        made.stderr
    );
    let pods = || {
        cluster.kubectl(
            &[
                "-n",
                "rendered",
                "get",
                "pods",
                "-o",
                "jsonpath={range .items[*]}{.metadata.labels.job-name}{\"\\n\"}{end}",
            ],
            "",
        )
    };
    cluster.until("three pods", || pods().lines().count() == 3);
    let once: Value = serde_json::from_str(&cluster.kubectl(
        &[
            "-n",
            "rendered",
            "get",
            "jobs",
            "-l",
            "app.kubernetes.io/name=bk",
            "-o",
            "json",
        ],
        "",
    ))
    .unwrap();
    let once = once["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|job| job["spec"]["ttlSecondsAfterFinished"] == 7 * 24 * 3600)
        .unwrap()
        .clone();
    assert_eq!(
        once["spec"]["template"]["spec"]["containers"][0]["args"],
        json!(["backup", "--wait-lock", "30m", "--label", "before"])
    );
    // By the clock too.
    cluster.kubectl(
        &[
            "-n",
            "rendered",
            "patch",
            "cronjob",
            "bk-verify",
            "--type=merge",
            "-p",
            r#"{"spec":{"schedule":"* * * * *"}}"#,
        ],
        "",
    );
    cluster.until("a minute passes", || pods().contains("bk-verify-"));
    // What is rendered is bk's own: archived, and not restored by itself.
    let objects = cluster.home("namespaces = [\"rendered\"]");
    objects.bk(&["backup"]).ended(0);
    cluster.kubectl(&["-n", "rendered", "delete", "cronjob", "bk-prune"], "");
    let restored = objects.bk(&["restore", "--yes"]).ended(0);
    assert!(
        restored
            .stderr
            .contains("rendered/CronJob/bk-prune` was left out: bk made it"),
        "{}",
        restored.stderr
    );
    assert!(cluster.object("rendered", "cronjob", "bk-prune").is_none());
    objects
        .bk(&[
            "restore",
            "--yes",
            "--only",
            "k8s/rendered/CronJob/bk-prune",
        ])
        .ended(0);
    assert!(cluster.object("rendered", "cronjob", "bk-prune").is_some());
}

#[test]
fn rendered_accounts_may_do_what_their_runs_do_and_no_more() {
    let Some(cluster) = Kubernetes::start() else {
        return;
    };
    restricted(&cluster, "rendered");
    let config = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "c" }, "data": { "a": "1" } });
    let nightly = json!({ "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "n" }, "spec": { "schedule": "0 0 1 1 *", "suspend": false, "jobTemplate": { "spec": { "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "i" }] } } } } } });
    let role = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": { "name": "r" }, "rules": [{ "apiGroups": ["example.org"], "resources": ["widgets"], "verbs": ["*"] }] });
    cluster.create(
        "rendered",
        &json!({ "apiVersion": "v1", "kind": "List", "items": [config, nightly, role] })
            .to_string(),
    );
    cluster.kubectl(
        &[
            "-n",
            "rendered",
            "create",
            "secret",
            "generic",
            "s",
            "--from-literal=a=b",
        ],
        "",
    );
    let yaml = Home::new(SETTINGS)
        .bk(&[
            "k8s",
            "render",
            "--namespace",
            "rendered",
            "--group",
            "example.org",
        ])
        .ended(0)
        .stdout;
    cluster.kubectl(&["apply", "-f", "-"], &yaml);
    let as_account = |home: &Home, account: &str| {
        home.write("account.conf", cluster.config_of("rendered", account));
        format!(
            "source.k8s.kubeconfig={}",
            home.path("account.conf").display()
        )
    };
    let kinds = r#"kinds = ["ConfigMap", "Secret", "Service", "ServiceAccount", "Deployment", "StatefulSet", "CronJob", "Job", "Role", "RoleBinding", "Ingress", "PersistentVolumeClaim"]"#;
    let home = cluster.home(&format!("namespaces = [\"rendered\"]\n{kinds}"));
    let backup = as_account(&home, "bk-backup");
    home.bk(&["check", "--set", &backup]).ended(0);
    // Of all kinds that such a server has.
    let all = cluster.home("namespaces = [\"rendered\"]");
    all.bk(&["check", "--set", &backup]).ended(0);
    all.bk(&["backup", "--set", &backup]).ended(0);
    home.bk(&["backup", "--set", &backup]).ended(0);
    let refused = home.bk(&[
        "restore",
        "--yes",
        "--only",
        "k8s/rendered/ConfigMap/c",
        "--existing",
        "replace",
        "--set",
        &backup,
    ]);
    cluster.kubectl(
        &[
            "-n",
            "rendered",
            "patch",
            "configmap",
            "c",
            "--type=merge",
            "-p",
            r#"{"data":{"a":"2"}}"#,
        ],
        "",
    );
    let denied = home.bk(&[
        "restore",
        "--yes",
        "--only",
        "k8s/rendered/ConfigMap/c",
        "--set",
        &backup,
    ]);
    assert!(
        refused.code != 0 && denied.code != 0 && denied.stderr.contains("forbidden"),
        "{}",
        denied.stderr
    );
    cluster.kubectl(&["-n", "rendered", "delete", "role", "r"], "");
    cluster.kubectl(
        &[
            "-n",
            "rendered",
            "patch",
            "cronjob",
            "n",
            "--type=merge",
            "-p",
            r#"{"spec":{"suspend":true}}"#,
        ],
        "",
    );
    let restore = as_account(&home, "bk-restore");
    // Also a role that gives more than the account has, and a CronJob that must not start what it missed.
    home.bk(&["restore", "--yes", "--set", &restore]).ended(0);
    assert_eq!(
        cluster.object("rendered", "configmap", "c").unwrap()["data"]["a"],
        "1"
    );
    assert_eq!(
        cluster.object("rendered", "cronjob", "n").unwrap()["spec"]["suspend"],
        false
    );
    assert!(
        cluster.object("rendered", "cronjob", "n").unwrap()["status"]["lastScheduleTime"]
            .is_string()
    );
    assert!(cluster.object("rendered", "role", "r").is_some());
}

#[test]
fn known_sites_have_their_namespaces_labels_volumes_and_hours() {
    let Some(cluster) = Kubernetes::start() else {
        return;
    };
    restricted(&cluster, "openedx");
    let home = Home::new(SETTINGS);
    std::fs::remove_file(home.path("plugins.toml")).unwrap();
    let render = |more: &[&str]| {
        let mut arguments = vec!["k8s", "render", "--profile"];
        arguments.extend(more);
        let ran = home.bk(&arguments).ended(0);
        assert!(ran.stderr.contains("the profile's own"), "{}", ran.stderr);
        ran.stdout
    };
    let tutor = render(&["tutor"]);
    cluster.kubectl(&["apply", "-f", "-"], &tutor);
    accepted(&cluster, &tutor, "openedx");
    for text in [
        "app.kubernetes.io/instance: openedx-openedx",
        "app.kubernetes.io/part-of: openedx",
        "claimName: caddy",
        "key: MYSQL_ROOT_PASSWORD",
        "schedule: 0 0 * * *",
    ] {
        assert!(tutor.contains(text), "{text}: {tutor}");
    }
    let couch = render(&["couchdb-openedx"]);
    cluster.kubectl(&["apply", "-f", "-"], &couch);
    accepted(&cluster, &couch, "openedx");
    for (name, schedule) in [
        ("daily-backup", "0 1 * * *"),
        ("weekly-backup", "0 2 * * 0"),
        ("monthly-backup", "0 3 1 * *"),
    ] {
        let job = cluster.object("openedx", "cronjob", name).unwrap();
        assert_eq!(
            (&job["spec"]["schedule"], &job["spec"]["suspend"]),
            (&json!(schedule), &json!(false))
        );
    }
    cluster.kubectl(
        &[
            "-n",
            "openedx",
            "create",
            "job",
            "--from=cronjob/daily-backup",
            "manual-backup-1",
        ],
        "",
    );
    assert!(couch.contains("secrets = \"include\""));
    // The other side of it.
    let standby = render(&["couchdb-openedx", "--standby"]);
    for document in documents(&standby)
        .iter()
        .filter(|d| d["kind"] == "CronJob")
    {
        let is_restore = document["metadata"]["name"]
            .as_str()
            .unwrap()
            .ends_with("restore-standby");
        assert_eq!(
            document["spec"]["suspend"], !is_restore,
            "{}",
            document["metadata"]["name"]
        );
    }
    // The settings of both are settings.
    for (yaml, name) in [(&tutor, "tutor"), (&couch, "couch")] {
        let map = documents(yaml)
            .into_iter()
            .find(|d| d["kind"] == "ConfigMap")
            .unwrap();
        let text = map["data"]["plugins.toml"].as_str().unwrap();
        home.write(&format!("{name}.toml"), text);
        let ran = home
            .command(&["config", "validate", "--config", &format!("{name}.toml")])
            .env("MYSQL_ROOT_PASSWORD", "x")
            .env("COUCHDB_PASSWORD", "x")
            .env("S3_ACCESS_KEY", "x")
            .env("S3_SECRET_KEY", "x")
            .output()
            .unwrap();
        assert!(ran.status.success(), "{name}: {}", said(&ran));
    }
}

#[test]
fn a_secret_in_the_settings_and_names_that_are_none_are_refused() {
    let home = Home::new(&SETTINGS.replace("{ env = \"MYSQL_ROOT_PASSWORD\" }", "\"geheim\""));
    let ran = home.bk(&["k8s", "render"]).ended(4);
    assert!(
        ran.stderr.contains("ConfigMap") && !ran.stdout.contains("geheim"),
        "{}",
        ran.stderr
    );
    let home = Home::new(SETTINGS);
    let long = "x".repeat(45);
    for (flags, word) in [
        (["--name", &*long], "52"),
        (["--name", "Bk"], "no name for Kubernetes"),
        (["--claim", "archives"], "not understood"),
    ] {
        let mut arguments = vec!["k8s", "render"];
        arguments.extend(flags);
        let ran = home.bk(&arguments).ended(4);
        assert!(ran.stderr.contains(word), "{flags:?}: {}", ran.stderr);
    }
    home.bk(&["k8s", "run", "dance", "--dry-run"]).ended(4);
    let job = home
        .bk(&[
            "k8s",
            "run",
            "restore",
            "--dry-run",
            "--",
            "--date",
            "2026-08-22",
        ])
        .ended(0)
        .stdout;
    assert!(
        job.contains("kind: Job") && job.contains("- --date"),
        "{job}"
    );
}
