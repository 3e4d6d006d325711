//! Restores around what runs: workloads held while the data that they live on comes back, CronJobs that miss nothing, standby sites, releases of Helm.

use bk_tests::binary::{self, Home};
use bk_tests::gate::Gate;
use bk_tests::kube_objects::{deployment, list};
use bk_tests::kubernetes::Kubernetes;
use bk_tests::mongo_fake::{Fake, Instants};
use bk_tests::{long, until};
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

fn workload(kind: &str, name: &str, replicas: u64) -> Value {
    let mut workload = deployment(name, json!({ "name": "c", "image": "i" }));
    workload["kind"] = kind.into();
    workload["spec"]["replicas"] = replicas.into();
    if kind == "StatefulSet" {
        workload["spec"]["serviceName"] = name.into();
    }
    workload
}

fn cron_job(name: &str, schedule: &str, suspend: bool) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": name },
        "spec": { "schedule": schedule, "suspend": suspend, "jobTemplate": { "spec": { "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "i" }] } } } } },
    })
}

fn site() -> Vec<Value> {
    vec![
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "db" }, "spec": { "ports": [{ "port": 27017 }] } }),
        workload("Deployment", "lms", 3),
        workload("Deployment", "cms", 1),
        workload("Deployment", "web", 2),
        workload("StatefulSet", "queue", 2),
        cron_job("nightly", "0 3 1 1 *", false),
        cron_job("asleep", "0 3 1 1 *", true),
    ]
}

const HOLD: &str =
    "hold = [\"*/Deployment/?ms\", \"*/StatefulSet/queue\"]\nrestart = [\"*/Deployment/web\"]\n";

/// What runs in a namespace, as JSON.
fn workloads(cluster: &Kubernetes, namespace: &str) -> String {
    let kinds = "deployments,statefulsets,cronjobs";
    cluster.kubectl(&["-n", namespace, "get", kinds, "-o", "json"], "")
}

/// Replicas and whether suspended, by name.
fn running(cluster: &Kubernetes, namespace: &str) -> Vec<(String, String)> {
    let text = workloads(cluster, namespace);
    let list: Value = serde_json::from_str(&text).unwrap();
    let mut all: Vec<_> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            let spec = &object["spec"];
            let state = if spec["suspend"].is_boolean() {
                spec["suspend"].to_string()
            } else {
                spec["replicas"].to_string()
            };
            (name, state)
        })
        .collect();
    all.sort();
    all
}

fn as_they_were() -> Vec<(String, String)> {
    [
        ("asleep", "true"),
        ("cms", "1"),
        ("lms", "3"),
        ("nightly", "false"),
        ("queue", "2"),
        ("web", "2"),
    ]
    .map(|(name, state)| (name.into(), state.into()))
    .into()
}

fn held() -> Vec<(String, String)> {
    [
        ("asleep", "true"),
        ("cms", "0"),
        ("lms", "0"),
        ("nightly", "true"),
        ("queue", "0"),
        ("web", "2"),
    ]
    .map(|(name, state)| (name.into(), state.into()))
    .into()
}

/// No trace of having been held.
fn assert_let_go(cluster: &Kubernetes, namespace: &str) {
    assert_eq!(running(cluster, namespace), as_they_were());
    let text = workloads(cluster, namespace);
    for word in ["bk/original-replicas", "bk/suspended", "bk/restart"] {
        assert!(!text.contains(word), "{word} stays");
    }
}

fn settings(cluster: &Kubernetes, mongodb: &str, more: &str, out: &str) -> String {
    format!(
        "format = 1\nplugins = [\"k8s\", \"mongodb\", \"local\"]\n{}[source.mongodb]\nuri = \"{mongodb}\"\nafter = [\"k8s\"]\n[sink.local]\npath = \"{out}\"\n",
        cluster.source(&format!("namespaces = [\"site\"]\n{HOLD}{more}"))
    )
}

fn document(n: u8) -> Vec<u8> {
    let mut bytes = vec![14, 0, 0, 0, 16];
    bytes.extend(b"_id\0");
    bytes.extend([n, 0, 0, 0, 0]);
    bytes
}

/// A cluster with a site, an archive of it and of its database.
async fn archived() -> Option<(Kubernetes, Fake, Home)> {
    let cluster = Kubernetes::start()?;
    cluster.namespace("site", &list(&site()));
    let database = Fake::start(Instants::None).await;
    database.put("app", "things", &[document(1), document(2)]);
    let home = Home::new(&settings(&cluster, &database.uri(), "", "out"));
    home.bk(&["backup"]).ended(0);
    Some((cluster, database, home))
}

fn port_of(uri: &str) -> u16 {
    let rest = uri.split("127.0.0.1:").nth(1).unwrap();
    rest.chars()
        .take_while(char::is_ascii_digit)
        .collect::<String>()
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_comes_back_with_its_database_in_one_run_though_that_lives_in_the_cluster() {
    let Some((_cluster, _database, home)) = archived().await else {
        return;
    };
    let Some(other) = Kubernetes::start() else {
        return;
    };
    let target = Fake::start(Instants::None).await;
    // The database answers when its Service is there; what ran then is written down.
    let other = std::sync::Arc::new(other);
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (watched, saw) = (other.clone(), seen.clone());
    let gate = Gate::opening(port_of(&target.uri()), move || {
        // All of them, as one answer has them: those of one tier are made side by side.
        let running = running(&watched, "site");
        let is_there = watched.object("site", "service", "db").is_some()
            && running.len() == as_they_were().len();
        *saw.lock().unwrap() = running;
        is_there
    });
    let uri = format!(
        "mongodb://127.0.0.1:{}/?directConnection=true&serverSelectionTimeoutMS=2000",
        gate.port
    );
    let elsewhere = Home::new(&settings(
        &other,
        &uri,
        "",
        home.path("out").to_str().unwrap(),
    ));
    let said = tokio::task::block_in_place(|| elsewhere.bk(&["restore", "--yes"])).ended(0);
    println!("{}", said.stderr);
    assert_eq!(*seen.lock().unwrap(), held());
    assert_eq!(target.documents("app", "things").len(), 2);
    assert_let_go(&other, "site");
    assert!(
        said.stderr
            .contains("site/Deployment/lms has 3 replicas again")
            && said.stderr.contains("site/Deployment/web is restarted"),
        "{}",
        said.stderr
    );
    let web = other.object("site", "deployment", "web").unwrap();
    assert!(
        web["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"]
            .is_string()
    );
    // Onto a running site: it is stopped, and runs as before.
    let said = tokio::task::block_in_place(|| elsewhere.bk(&["restore", "--yes"])).ended(0);
    assert!(
        said.stderr.contains("has 3 replicas again"),
        "{}",
        said.stderr
    );
    assert_let_go(&other, "site");
    // Without `after` the two commands are named.
    let plain = settings(
        &other,
        &target.uri(),
        "",
        home.path("out").to_str().unwrap(),
    )
    .replace("after = [\"k8s\"]\n", "");
    let said = Home::new(&plain).bk(&["restore", "--yes"]).ended(0);
    assert!(
        said.stderr
            .contains("bk restore --only k8s, then bk restore --exclude k8s"),
        "{}",
        said.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_come_back_leaves_the_site_stopped_until_it_is_resumed() {
    let Some((cluster, database, home)) = archived().await else {
        return;
    };
    database.refuse(&document(2));
    let failed = tokio::task::block_in_place(|| home.bk(&["restore", "--yes"]));
    assert_ne!(failed.code, 0, "{}", failed.stderr);
    assert!(
        failed.stderr.contains("bk k8s resume k8s"),
        "{}",
        failed.stderr
    );
    assert_eq!(running(&cluster, "site"), held());
    // Held, it is archived as it is when it is not.
    let aside = cluster.home("namespaces = [\"site\"]");
    aside.bk(&["backup"]).ended(0);
    aside.bk(&["extract", "--into", "x"]).ended(0);
    let text = |path: &str| {
        std::fs::read_to_string(aside.path(&format!("x/k8s/namespaces/site/{path}"))).unwrap()
    };
    assert!(
        text("deployment.apps/lms.yaml").contains("replicas: 3")
            && !text("deployment.apps/lms.yaml").contains("bk/")
    );
    assert!(text("cronjob.batch/nightly.yaml").contains("suspend: false"));
    let said = home.bk(&["k8s", "resume"]).ended(0);
    assert!(
        said.stderr
            .contains("site/CronJob/nightly is not suspended any more"),
        "{}",
        said.stderr
    );
    assert_let_go(&cluster, "site");
    let said = home.bk(&["k8s", "resume"]).ended(0);
    assert!(
        said.stderr.contains("nothing is stopped"),
        "{}",
        said.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_each_request_a_restore_leaves_what_resume_needs() {
    let Some((cluster, _database, home)) = archived().await else {
        return;
    };
    let admin = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
    let port: u16 = admin
        .split("https://127.0.0.1:")
        .nth(1)
        .unwrap()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect::<String>()
        .parse()
        .unwrap();
    let through = |gate: &Gate| {
        home.write(
            "gate.conf",
            admin.replace(
                &format!("127.0.0.1:{port}"),
                &format!("127.0.0.1:{}", gate.port),
            ),
        );
        let kubeconfig = format!("source.k8s.kubeconfig={}", home.path("gate.conf").display());
        home.command(&["restore", "--yes", "--set", &kubeconfig])
    };
    // How much is said in all.
    let gate = Gate::shutting(port, u64::MAX);
    assert!(
        tokio::task::block_in_place(|| through(&gate).output())
            .unwrap()
            .status
            .success()
    );
    let all = gate.said();
    let step = long(usize::try_from(all / 12).unwrap().max(1), 1);
    let (mut kills, mut in_the_middle) = (0, 0);
    for pieces in (1..all).step_by(step) {
        let gate = Gate::shutting(port, pieces);
        let mut child = through(&gate).spawn().unwrap();
        until("the gate shuts", Duration::from_mins(10), || {
            gate.is_shut() || child.try_wait().unwrap().is_some()
        });
        // Signal 9: nothing is tidied up.
        let _ = child.kill();
        child.wait().unwrap();
        kills += 1;
        in_the_middle += u32::from(running(&cluster, "site") != as_they_were());
        home.bk(&["k8s", "resume"]).ended(0);
        assert_let_go(&cluster, "site");
    }
    println!(
        "{kills} kills within {all} pieces, {in_the_middle} of them with workloads stopped: all ran again after bk k8s resume"
    );
    assert!(in_the_middle > 0);
    tokio::task::block_in_place(|| home.bk(&["restore", "--yes"])).ended(0);
    assert_let_go(&cluster, "site");
}

#[tokio::test(flavor = "multi_thread")]
async fn case_10_a_set_whose_claims_go_with_its_replicas_is_not_held_unless_that_is_said() {
    let Some((cluster, database, home)) = archived().await else {
        return;
    };
    let mut set = workload("StatefulSet", "data", 2);
    set["spec"]["persistentVolumeClaimRetentionPolicy"] =
        json!({ "whenScaled": "Delete", "whenDeleted": "Retain" });
    set["spec"]["podManagementPolicy"] = "Parallel".into();
    set["spec"]["volumeClaimTemplates"] = json!([{ "metadata": { "name": "v" }, "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } }]);
    cluster.create("site", &list(&[set]));
    cluster.until("its claims are there", || {
        cluster.object("site", "pvc", "v-data-1").is_some()
    });
    let with = |more: &str| {
        Home::new(
            &settings(
                &cluster,
                &database.uri(),
                more,
                home.path("out").to_str().unwrap(),
            )
            .replace("\"*/StatefulSet/queue\"", "\"*/StatefulSet/*\""),
        )
    };
    with("").bk(&["backup"]).ended(0);
    let refused = tokio::task::block_in_place(|| with("").bk(&["restore", "--yes"]));
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("would lose its claims")
            && refused.stderr.contains("hold_even_if_claims_go"),
        "{}",
        refused.stderr
    );
    for ordinal in ["v-data-0", "v-data-1"] {
        assert!(cluster.object("site", "pvc", ordinal).is_some());
    }
    tokio::task::block_in_place(|| {
        with("hold_even_if_claims_go = true\n").bk(&["restore", "--yes"])
    })
    .ended(0);
    assert_eq!(
        cluster.object("site", "statefulset", "data").unwrap()["spec"]["replicas"],
        2
    );
    cluster.until("claims with the same names", || {
        cluster.object("site", "pvc", "v-data-1").is_some()
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn case_12_a_cron_job_comes_back_as_it_was_and_starts_nothing_that_it_missed() {
    let Some(cluster) = Kubernetes::start() else {
        return;
    };
    let database = Fake::start(Instants::None).await;
    database.put("app", "things", &[document(1)]);
    cluster.namespace(
        "site",
        &list(&[
            cron_job("minutely", "* * * * *", false),
            cron_job("asleep", "* * * * *", true),
        ]),
    );
    let home = Home::new(&settings(&cluster, &database.uri(), "", "out"));
    home.bk(&["backup"]).ended(0);
    let jobs = |cluster: &Kubernetes| {
        cluster
            .kubectl(&["-n", "site", "get", "jobs", "-o", "name"], "")
            .lines()
            .count()
    };
    // Suspended by a killed restore, it sleeps over a minute.
    let hold = json!({ "metadata": { "annotations": { "bk/suspended": "by bk" } }, "spec": { "suspend": true } }).to_string();
    cluster.kubectl(
        &[
            "-n",
            "site",
            "patch",
            "cronjob",
            "minutely",
            "--type=merge",
            "-p",
            &hold,
        ],
        "",
    );
    let now = || {
        String::from_utf8(Command::new("date").arg("+%s").output().unwrap().stdout)
            .unwrap()
            .trim()
            .parse::<i64>()
            .unwrap()
    };
    let minute = || now() / 60;
    let (before, began) = (jobs(&cluster), minute());
    cluster.until("a minute begins and is five seconds old", || {
        minute() > began && now() % 60 >= 5
    });
    assert_eq!(jobs(&cluster), before, "a suspended one started something");
    home.bk(&["k8s", "resume"]).ended(0);
    let resumed = minute();
    // Its controller has seen it when it has looked at another one that is made now.
    cluster.until("the next minute brings one", || jobs(&cluster) > before);
    let made = cluster.kubectl(&["-n", "site", "get", "jobs", "-o", "jsonpath={range .items[*]}{.metadata.annotations.batch\\.kubernetes\\.io/cronjob-scheduled-timestamp}{\"\\n\"}{end}"], "");
    let newest = made
        .lines()
        .filter_map(|line| line.parse::<jiff::Timestamp>().ok())
        .max()
        .unwrap();
    assert!(
        newest.as_second() / 60 > resumed,
        "{newest} was missed while it was suspended"
    );
    let suspended = |name: &str| {
        cluster.object("site", "cronjob", name).unwrap()["spec"]["suspend"] == Value::Bool(true)
    };
    assert!(suspended("asleep") && !suspended("minutely"));
    tokio::task::block_in_place(|| home.bk(&["restore", "--yes"])).ended(0);
    assert!(suspended("asleep") && !suspended("minutely"));
}

fn helm(cluster: &Kubernetes, home: &Home, arguments: &[&str]) -> String {
    let output = Command::new(binary::cache().join("kubernetes/helm"))
        .args(arguments)
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig())
        .env("HOME", home.path(""))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "helm {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn case_15_a_release_of_helm_comes_back_as_one_thing() {
    let Some(cluster) = Kubernetes::start() else {
        return;
    };
    let home = cluster.home("namespaces = [\"released\"]");
    home.write(
        "chart/Chart.yaml",
        "apiVersion: v2\nname: chart\nversion: 0.1.0\n",
    );
    home.write("chart/values.yaml", "word: one\n");
    home.write("chart/templates/c.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}-c}\ndata: {word: {{ .Values.word }}}\n");
    let chart = home.path("chart").display().to_string();
    let run = |arguments: &[&str]| helm(&cluster, &home, arguments);
    let upgrade = |n: usize| {
        run(&[
            "-n",
            "released",
            "upgrade",
            "r",
            &chart,
            "--set",
            &format!("word=w{n}"),
            "--history-max",
            "20",
        ])
    };
    run(&[
        "-n",
        "released",
        "install",
        "r",
        &chart,
        "--create-namespace",
    ]);
    (2..=10).for_each(|n| drop(upgrade(n)));
    // One that hangs, and one of a very old helm, which did not compress.
    let plain = json!({ "name": "old", "info": { "status": "deployed" }, "version": 1, "namespace": "released", "chart": { "metadata": { "name": "c", "version": "1" } } }).to_string();
    let release = |name: &str, version: &str, status: &str, payload: &str| json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": format!("sh.helm.release.v1.{name}.v{version}"), "labels": { "owner": "helm", "name": name, "version": version, "status": status } }, "type": "helm.sh/release.v1", "stringData": { "release": payload } });
    use base64::Engine;
    let old = base64::engine::general_purpose::STANDARD.encode(plain);
    cluster.create(
        "released",
        &list(&[
            release("old", "1", "deployed", &old),
            release("hangs", "1", "pending-upgrade", "bm9ncyBnenVw"),
        ]),
    );
    let payloads = |cluster: &Kubernetes| {
        cluster.kubectl(
            &[
                "-n",
                "released",
                "get",
                "secrets",
                "-l",
                "owner=helm",
                "-o",
                "jsonpath={range .items[*]}{.metadata.name}={.data.release} {end}",
            ],
            "",
        )
    };
    let before = payloads(&cluster);
    let said = home.bk(&["backup"]).ended(0);
    assert!(said.stderr.contains("pending-upgrade"), "{}", said.stderr);
    let shown = home.bk(&["show"]).ended(0);
    assert!(
        shown
            .stdout
            .contains("Helm release released/r revision 10 deployed"),
        "{}",
        shown.stdout
    );
    cluster.delete_namespace("released");
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!(payloads(&cluster), before);
    assert!(run(&["-n", "released", "list", "-a"]).contains("chart-0.1.0"));
    // The archive is older now: merging is a conflict, replacing takes the release back.
    upgrade(11);
    let word = || cluster.object("released", "configmap", "r-c").unwrap()["data"]["word"].clone();
    let conflict = home.bk(&["restore", "--yes"]).ended(3);
    assert!(
        conflict
            .stderr
            .contains("Helm release `r` is at revision 11 there, and at 10 in the archive"),
        "{}",
        conflict.stderr
    );
    assert_eq!(word(), "w11");
    let deployed = || {
        run(&["-n", "released", "history", "r", "--max", "50"])
            .lines()
            .filter(|line| line.contains("deployed"))
            .count()
    };
    assert_eq!(deployed(), 1);
    let said = home
        .bk(&["restore", "--yes", "--existing", "replace"])
        .ended(0);
    assert!(
        said.stderr
            .contains("revision 11 of the Helm release `released/r` was removed"),
        "{}",
        said.stderr
    );
    assert_eq!((deployed(), word()), (1, json!("w10")));
    run(&["-n", "released", "rollback", "r", "9"]);
    assert_eq!(word(), "w9");
    upgrade(12);
    assert_eq!((deployed(), word()), (1, json!("w12")));
}

#[test]
fn a_standby_site_is_restored_once_for_each_archive_and_keeps_what_is_its_own() {
    let (Some(source), Some(standby)) = (Kubernetes::start(), Kubernetes::start()) else {
        return;
    };
    // Both sides run by what is rendered, each by its own.
    let rendering = Home::new("format = 1\n");
    std::fs::remove_file(rendering.path("plugins.toml")).unwrap();
    let render = |more: &[&str]| {
        let mut arguments = vec!["k8s", "render", "--profile", "couchdb-openedx"];
        arguments.extend(more);
        rendering.bk(&arguments).ended(0).stdout
    };
    let secret = |value: &str| json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "bk" }, "stringData": { "COUCHDB_PASSWORD": value } });
    let site = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "site" }, "data": { "n": "1" } });
    source.namespace(
        "openedx",
        &list(&[
            cron_job("reports", "* * * * *", false),
            site,
            secret("source"),
        ]),
    );
    source.kubectl(&["apply", "-f", "-"], &render(&[]));
    standby.namespace("openedx", &list(&[secret("standby")]));
    standby.kubectl(
        &["apply", "-f", "-"],
        &render(&["--standby", "--image", "elsewhere/bk:1"]),
    );
    let own_names = "secret/bk,configmap/bk-settings,cronjob/daily-backup,cronjob/weekly-backup,cronjob/monthly-backup,cronjob/bk-restore-standby";
    let own = || {
        let names = own_names
            .split(',')
            .map(|name| name.split_once('/').unwrap());
        names
            .map(|(kind, name)| {
                let object = standby.object("openedx", kind, name).unwrap();
                (
                    name,
                    object["spec"]["suspend"].clone(),
                    object["metadata"]["resourceVersion"].clone(),
                )
            })
            .collect::<Vec<_>>()
    };
    let before = own();
    assert!(
        before
            .iter()
            .all(|(name, suspend, _)| !name.ends_with("backup") || *suspend == true)
    );
    let home = source.home("namespaces = [\"openedx\"]");
    home.bk(&["backup"]).ended(0);
    let there = standby.home_with(&home, "namespaces = [\"openedx\"]");
    let nightly = [
        "restore",
        "--yes",
        "--standby",
        "--if-newer",
        "--existing",
        "replace",
    ];
    there.bk(&nightly).ended(0);
    let reports =
        || standby.object("openedx", "cronjob", "reports").unwrap()["spec"]["suspend"].clone();
    assert_eq!(reports(), true);
    // What is newer on the standby site goes with the next archive, and no sooner.
    let versions = standby.versions("openedx", "configmaps,cronjobs");
    let said = there.bk(&nightly).ended(0);
    assert!(said.stderr.contains("already at "), "{}", said.stderr);
    assert_eq!(standby.versions("openedx", "configmaps,cronjobs"), versions);
    let first = home.archives()[0].clone();
    source.kubectl(
        &[
            "-n",
            "openedx",
            "patch",
            "configmap",
            "site",
            "--type=merge",
            "-p",
            r#"{"data":{"n":"2"}}"#,
        ],
        "",
    );
    home.bk(&["backup"]).ended(0);
    there.bk(&nightly).ended(0);
    assert_eq!(
        standby.object("openedx", "configmap", "site").unwrap()["data"]["n"],
        "2"
    );
    assert_eq!(reports(), true);
    assert_eq!(own(), before);
    // An older archive, and one of another site, are refused.
    let version = home
        .bk(&["restore", "--list-versions=9"])
        .ended(0)
        .stdout
        .lines()
        .last()
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned();
    let mut older = nightly.to_vec();
    older.extend(["--version", &version]);
    let refused = there.bk(&older).ended(6);
    assert!(
        refused.stderr.contains("which is older"),
        "{first} {version}: {}",
        refused.stderr
    );
    home.bk(&["backup", "--set", "archive.site=other"]).ended(0);
    let mut strange = nightly.to_vec();
    strange.extend(["--site", "other"]);
    let refused = there.bk(&strange).ended(6);
    assert!(
        refused.stderr.contains("of the site `main`"),
        "{}",
        refused.stderr
    );
    // Stale, and onto the very cluster that it came from.
    let mut stale = nightly.to_vec();
    stale.extend(["--max-age", "0s"]);
    there.bk(&stale).ended(9);
    let home_again = home.bk(&nightly).ended(6);
    assert!(
        home_again.stderr.contains("the very server"),
        "{}",
        home_again.stderr
    );
    // The namespace is lost: the same archive is restored again.
    standby.delete_namespace("openedx");
    let said = there.bk(&nightly).ended(0);
    assert!(!said.stderr.contains("already at"), "{}", said.stderr);
    assert_eq!(
        standby.object("openedx", "configmap", "site").unwrap()["data"]["n"],
        "2"
    );
    assert!(
        standby
            .object("openedx", "cronjob", "daily-backup")
            .is_none()
    );
    // An account that may not say which cluster it is.
    standby.kubectl(
        &["-n", "default", "create", "serviceaccount", "restorer"],
        "",
    );
    standby.kubectl(
        &[
            "create",
            "clusterrole",
            "restorer",
            "--verb=*",
            "--resource=configmaps,cronjobs.batch,secrets,serviceaccounts",
        ],
        "",
    );
    standby.kubectl(
        &[
            "create",
            "clusterrolebinding",
            "restorer",
            "--clusterrole=restorer",
            "--serviceaccount=default:restorer",
        ],
        "",
    );
    standby.kubectl(
        &[
            "-n",
            "openedx",
            "create",
            "role",
            "looker",
            "--verb=get",
            "--resource=namespaces",
        ],
        "",
    );
    standby.kubectl(
        &[
            "-n",
            "openedx",
            "create",
            "rolebinding",
            "looker",
            "--role=looker",
            "--serviceaccount=default:restorer",
        ],
        "",
    );
    there.write("poor.conf", standby.config_of("default", "restorer"));
    let poor = format!(
        "source.k8s.kubeconfig={}",
        there.path("poor.conf").display()
    );
    let kinds = "source.k8s.kinds=[\"ConfigMap\",\"CronJob\"]";
    let unknown = [
        "restore",
        "--yes",
        "--standby",
        "--set",
        &poor,
        "--set",
        kinds,
        "--only",
        "k8s/openedx/ConfigMap/site",
    ];
    let refused = there.bk(&unknown).ended(6);
    assert!(
        refused.stderr.contains("--cluster-id"),
        "{}",
        refused.stderr
    );
    let mut said = unknown.to_vec();
    said.extend(["--cluster-id", "standby-1"]);
    there.bk(&said).ended(0);
}

#[test]
fn in_a_pod_a_standby_site_without_objects_remembers_in_the_cluster_what_it_has() {
    let Some(cluster) = Kubernetes::start() else {
        return;
    };
    let home = Home::new(
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"in\"\n[sink.local]\npath = \"out\"\n",
    );
    home.write("in/a.txt", "a");
    home.bk(&["backup"]).ended(0);
    let standby = Home::new(&format!(
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"there\"\n[sink.local]\npath = \"{}\"\n",
        home.path("out").display()
    ));
    standby.write("there/b.txt", "b");
    let nightly = || {
        let output = standby
            .command(&["restore", "--yes", "--standby", "--if-newer"])
            .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .env("KUBECONFIG", cluster.kubeconfig())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    assert!(!nightly().contains("already at"));
    assert!(standby.path("there/a.txt").exists());
    let map = cluster
        .object("default", "configmap", "bk-standby")
        .unwrap();
    assert!(
        map["data"]["state"]
            .as_str()
            .unwrap()
            .contains("\"site\":\"main\"")
    );
    assert!(nightly().contains("already at"));
    // Elsewhere it is a file beside the settings.
    standby
        .bk(&["restore", "--yes", "--standby", "--if-newer"])
        .ended(0);
    assert!(standby.path("bk-standby.json").exists());
}
