//! Hard cases of the source `k8s`: objects of Kubernetes itself, each in namespaces of its own on one real API.

use bk_tests::binary::Home;
use bk_tests::kube_objects::{config_map, deployment, home, list, lost_and_restored};
use bk_tests::kubernetes::Kubernetes;
use serde_json::{Value, json};

/// A restore of what is there writes nothing. Controllers write what they see of new objects, some as late as after 15 s: what `bk` would write it
/// would write each time.
#[track_caller]
fn is_left_alone(cluster: &Kubernetes, namespace: &str, kinds: &str, home: &Home) {
    cluster.until("a restore that writes nothing", || {
        let before = cluster.versions(namespace, kinds);
        home.bk(&["restore", "--yes"]).ended(0);
        cluster.versions(namespace, kinds) == before
    });
}

#[test]
fn case_01_what_yaml_misreads_comes_back_equal() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let texts = [
        "n",
        "N",
        "y",
        "yes",
        "no",
        "on",
        "off",
        "true",
        "null",
        "~",
        "1_000",
        "0o7",
        "0x1f",
        "1e3",
        ".inf",
        "-.INF",
        ".nan",
        "=",
        "<<",
        "12:30:45",
        "2026-01-01",
        "trailing ",
        " leading",
        "a\r\nb\r\n",
        "\n",
        "\n\n",
        "a\n",
        "a\n\n",
        "- a",
        "a: b",
        "a #b",
        "'",
        "\"",
        "|",
        ">",
        "%",
        "@",
        "`",
        "{",
        "[",
        "*a",
        "&a",
        "!a",
        "?",
        ": ",
        "\t",
        "a\tb",
        "",
        "0",
        "00",
        "+1",
        "1.",
        ".5",
        "\\",
    ];
    let mut data = serde_json::Map::new();
    for (n, text) in texts.iter().enumerate() {
        data.insert(format!("k{n}"), (*text).into());
    }
    for key in ["n", "on", "1_000", "null", ".inf", "0o7", "y"] {
        data.insert(key.into(), key.into());
    }
    // The namespace and the object are called so too.
    cluster.namespace("n", &list(&[config_map("y", Value::Object(data.clone()))]));
    let home = lost_and_restored(cluster, "n");
    assert_eq!(
        cluster.object("n", "configmap", "y").unwrap()["data"],
        Value::Object(data.clone())
    );
    home.bk(&["extract", "--into", "x"]).ended(0);
    let file = home.path("x/k8s/namespaces/n/configmap/y.yaml");
    let arguments = [
        "create",
        "--dry-run=client",
        "-o",
        "json",
        "-f",
        file.to_str().unwrap(),
    ];
    let read: Value = serde_json::from_str(&cluster.kubectl(&arguments, "")).unwrap();
    assert_eq!(read["data"], Value::Object(data));
    assert_eq!(read["metadata"]["namespace"], "n");
}

#[test]
fn case_02_odd_characters_survive_post_and_put() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let odd = json!({
        "nel": "a\u{85}b", "del": "a\u{7f}b", "c1": "a\u{9b}b", "line": "a\u{2028}b", "paragraph": "a\u{2029}b", "mark": "\u{feff}a", "emoji": "\u{1f600}\u{1f468}\u{200d}\u{1f469}",
        "last": "\u{ffff}\u{fffe}\u{10ffff}", "controls": "\u{1}\u{8}\u{b}\u{c}\u{1f}", "all": "\u{85}\r\n\u{2028}\t\u{feff}",
    });
    cluster.namespace("odd", &list(&[config_map("odd", odd.clone())]));
    let home = lost_and_restored(cluster, "odd");
    assert_eq!(
        cluster.object("odd", "configmap", "odd").unwrap()["data"],
        odd
    );
    let change = json!({ "data": { "nel": "changed" } }).to_string();
    cluster.kubectl(
        &[
            "-n",
            "odd",
            "patch",
            "configmap",
            "odd",
            "--type=merge",
            "-p",
            &change,
        ],
        "",
    );
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!(
        cluster.object("odd", "configmap", "odd").unwrap()["data"],
        odd
    );
}

#[test]
fn case_03_a_mebibyte_comes_back_and_empty_is_not_absent() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let large = "x".repeat(500_000);
    let bytes: Vec<u8> = (0..380_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let encoded = base64(&bytes);
    let mut both = config_map("both", json!({ "text": large, "empty": "" }));
    both["binaryData"] = json!({ "bytes": encoded });
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "large" }, "type": "Opaque", "data": { "bytes": base64(&[7_u8; 700_000]), "empty": "" } });
    let bare = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "bare", "annotations": { "empty": "" } } });
    let empty = config_map("empty", json!({}));
    cluster.namespace("large", &list(&[both, secret, bare, empty]));
    let before = cluster.contents("large", "configmaps,secrets");
    lost_and_restored(cluster, "large");
    let plain = |contents: Vec<(String, Value)>| -> Vec<(String, Value)> {
        let kept = contents
            .into_iter()
            .filter(|(name, _)| !name.contains("kube-root-ca"));
        kept.map(|(name, mut object)| {
            object["metadata"]
                .as_object_mut()
                .unwrap()
                .remove("managedFields");
            (name, object)
        })
        .collect()
    };
    assert_eq!(
        plain(before),
        plain(cluster.contents("large", "configmaps,secrets"))
    );
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn case_04_an_immutable_secret_is_a_conflict_and_is_made_anew_where_that_is_asked() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let secret = |value: &str| json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "fixed" }, "immutable": true, "stringData": { "a": value } });
    cluster.namespace("fixed", &list(&[secret("archived")]));
    let home = home(cluster, &["fixed"], "");
    home.bk(&["backup"]).ended(0);
    let archived = cluster.object("fixed", "secret", "fixed").unwrap();
    cluster.kubectl(&["-n", "fixed", "delete", "secret", "fixed"], "");
    cluster.create("fixed", &list(&[secret("other")]));
    let other = cluster.object("fixed", "secret", "fixed").unwrap();
    let said = home.bk(&["restore", "--yes"]).ended(3);
    assert!(
        said.stderr.contains("data: Forbidden: field is immutable"),
        "{}",
        said.stderr
    );
    assert_eq!(
        cluster.object("fixed", "secret", "fixed").unwrap()["metadata"]["uid"],
        other["metadata"]["uid"]
    );
    home.bk(&["restore", "--yes", "--exclude", "k8s/fixed/Secret/fixed"])
        .ended(0);
    assert_eq!(
        cluster.object("fixed", "secret", "fixed").unwrap()["data"],
        other["data"]
    );
    let dry = home.bk(&["restore", "--dry-run", "--recreate"]).ended(0);
    assert!(
        dry.stdout.contains("made anew  fixed/Secret/fixed"),
        "{}",
        dry.stdout
    );
    home.bk(&["restore", "--yes", "--recreate"]).ended(0);
    let anew = cluster.object("fixed", "secret", "fixed").unwrap();
    assert_eq!(anew["data"], archived["data"]);
    assert_ne!(anew["metadata"]["uid"], other["metadata"]["uid"]);
}

#[test]
fn case_05_long_names_and_names_that_differ_in_case_do_not_collide() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let namespace = "a".repeat(63);
    let long = |last: &str| format!("{}{last}", "b".repeat(252));
    let role = |name: &str| json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": { "name": name }, "rules": [{ "apiGroups": [""], "resources": [name.to_lowercase().replace(':', "")], "verbs": ["get"] }] });
    let objects = [
        config_map(&long("1"), json!({ "n": "1" })),
        config_map(&long("2"), json!({ "n": "2" })),
        role("case:A"),
        role("case:a"),
        role("CASE:a"),
    ];
    cluster.namespace(&namespace, &list(&objects));
    let home = lost_and_restored(cluster, &namespace);
    for n in ["1", "2"] {
        assert_eq!(
            cluster.object(&namespace, "configmap", &long(n)).unwrap()["data"]["n"],
            n
        );
    }
    for name in ["case:A", "case:a", "CASE:a"] {
        let found = cluster.object(&namespace, "role", name).unwrap();
        assert_eq!(
            found["rules"][0]["resources"][0],
            name.to_lowercase().replace(':', "")
        );
    }
    home.bk(&["extract", "--into", "x"]).ended(0);
    let folder = home.path(&format!(
        "x/k8s/namespaces/{namespace}/role.rbac.authorization.k8s.io"
    ));
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().to_lowercase())
        .collect();
    names.sort();
    let before = names.len();
    names.dedup();
    // On a disk that does not know case, too.
    assert_eq!((names.len(), before), (3, 3), "{names:?}");
}

#[test]
fn case_06_a_variable_that_stands_twice_comes_back_twice() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let container = json!({ "name": "c", "image": "i", "env": [{ "name": "A", "value": "1" }, { "name": "B", "value": "2" }, { "name": "A", "value": "3" }] });
    cluster.namespace("twice", &list(&[deployment("twice", container)]));
    let env = |cluster: &Kubernetes| {
        cluster.object("twice", "deployment", "twice").unwrap()["spec"]["template"]["spec"]["containers"][0]["env"].clone()
    };
    let before = env(cluster);
    assert_eq!(before.as_array().unwrap().len(), 3);
    let home = lost_and_restored(cluster, "twice");
    assert_eq!(env(cluster), before);
    cluster.kubectl(
        &["-n", "twice", "set", "image", "deployment/twice", "c=other"],
        "",
    );
    home.bk(&["restore", "--yes"]).ended(0);
    let after = cluster.object("twice", "deployment", "twice").unwrap();
    assert_eq!(
        after["spec"]["template"]["spec"]["containers"][0]["image"],
        "i"
    );
    assert_eq!(env(cluster), before);
}

#[test]
fn case_07_services_keep_what_was_wished_and_get_the_rest_anew() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let service = |name: &str, spec: Value| json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec });
    cluster.namespace(
        "services",
        &list(&[
            service("headless", json!({ "clusterIP": "None", "ports": [{ "port": 80 }] })),
            service("both", json!({ "ipFamilyPolicy": "RequireDualStack", "ports": [{ "port": 80 }] })),
            service(
                "outside", json!({ "type": "ExternalName", "externalName": "db.example.org" })),
            service("automatic", json!({ "type": "NodePort", "ports": [{ "port": 80 }] })),
            service("balanced", json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{ "port": 80 }] })),
        ]),
    );
    let wished = service(
        "wished",
        json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 31777 }] }),
    );
    cluster.kubectl(&["-n", "services", "apply", "-f", "-"], &wished.to_string());
    let automatic = cluster.object("services", "service", "automatic").unwrap()["spec"]["ports"][0]
        ["nodePort"]
        .clone();
    let home = home(cluster, &["services"], "");
    home.bk(&["backup"]).ended(0);
    cluster.delete_namespace("services");
    // The port that nobody wished is somebody else's now; that it is given is no fault.
    let squatter = service(
        "squatter",
        json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": automatic }] }),
    );
    cluster.namespace("squatters", &list(&[squatter]));
    home.bk(&["restore", "--yes"]).ended(0);
    let spec = |name: &str| cluster.object("services", "service", name).unwrap()["spec"].clone();
    assert_eq!(spec("headless")["clusterIP"], "None");
    assert_eq!(spec("both")["clusterIPs"].as_array().unwrap().len(), 2);
    assert_eq!(spec("both")["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(spec("outside")["externalName"], "db.example.org");
    assert!(spec("outside").get("clusterIP").is_none());
    assert_ne!(spec("automatic")["ports"][0]["nodePort"], automatic);
    assert_eq!(spec("wished")["ports"][0]["nodePort"], 31777);
    assert!(spec("balanced")["healthCheckNodePort"].as_u64().is_some());
    // And one that somebody wished and another has is named, not called existing.
    cluster.kubectl(&["-n", "services", "delete", "service", "wished"], "");
    cluster.create(
        "squatters",
        &list(&[service(
            "other",
            json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 31777 }] }),
        )]),
    );
    let said = home.bk(&["restore", "--yes"]).ended(3);
    assert!(
        said.stderr.contains("services/Service/wished")
            && said.stderr.contains("provided port is already allocated"),
        "{}",
        said.stderr
    );
    cluster.kubectl(&["-n", "squatters", "delete", "service", "other"], "");
    home.bk(&["restore", "--yes"]).ended(0);
    // The addresses of this cluster are kept where they stand.
    let before = spec("balanced");
    cluster.kubectl(
        &[
            "-n",
            "services",
            "patch",
            "service",
            "balanced",
            "--type=merge",
            "-p",
            r#"{"spec":{"sessionAffinity":"ClientIP"}}"#,
        ],
        "",
    );
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!(spec("balanced"), before);
}

#[test]
fn case_08_hand_made_endpoints_are_kept_and_those_of_controllers_are_not_taken() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    cluster.namespace(
        "ends",
        &list(&[
            json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "made" }, "spec": { "selector": { "app": "a" }, "ports": [{ "port": 80 }] } }),
            json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "hand" }, "spec": { "ports": [{ "port": 80 }] } }),
            json!({ "apiVersion": "v1", "kind": "Endpoints", "metadata": { "name": "hand" }, "subsets": [{ "addresses": [{ "ip": "192.0.2.1" }], "ports": [{ "port": 80 }] }] }),
            json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": { "name": "own", "labels": { "kubernetes.io/service-name": "hand" } }, "addressType": "IPv4", "endpoints": [{ "addresses": ["192.0.2.2"] }], "ports": [] }),
        ]),
    );
    cluster.until("the controllers made theirs", || {
        let names = cluster.kubectl(
            &[
                "-n",
                "ends",
                "get",
                "endpoints,endpointslices",
                "-o",
                "name",
            ],
            "",
        );
        names.contains("endpoints/made") && names.matches("endpointslice").count() >= 3
    });
    let home = lost_and_restored(cluster, "ends");
    assert_eq!(
        cluster.object("ends", "endpoints", "hand").unwrap()["subsets"][0]["addresses"][0]["ip"],
        "192.0.2.1"
    );
    assert_eq!(
        cluster.object("ends", "endpointslice", "own").unwrap()["endpoints"][0]["addresses"][0],
        "192.0.2.2"
    );
    home.bk(&["extract", "--into", "x"]).ended(0);
    let names = |kind: &str| -> Vec<String> {
        std::fs::read_dir(home.path(&format!("x/k8s/namespaces/ends/{kind}")))
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    };
    assert_eq!(names("endpoints"), ["hand.yaml"]);
    assert_eq!(names("endpointslice.discovery.k8s.io"), ["own.yaml"]);
}

fn volume(name: &str, claim: Option<(&str, &str)>, policy: &str) -> Value {
    let mut volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name },
        "spec": { "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": policy, "storageClassName": "by-hand", "hostPath": { "path": format!("/volumes/{name}") } },
    });
    if let Some((namespace, name)) = claim {
        volume["spec"]["claimRef"] = json!({ "namespace": namespace, "name": name, "apiVersion": "v1", "kind": "PersistentVolumeClaim" });
    }
    volume
}

fn claim(name: &str, more: Value) -> Value {
    let mut claim = json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name }, "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } }, "storageClassName": "by-hand" } });
    for (key, value) in more.as_object().unwrap() {
        claim["spec"][key] = value.clone();
    }
    claim
}

fn phase(cluster: &Kubernetes, namespace: &str, name: &str) -> String {
    let claim = cluster.object(namespace, "pvc", name);
    claim
        .map(|c| c["status"]["phase"].as_str().unwrap_or_default().to_owned())
        .unwrap_or_default()
}

#[test]
fn case_09_volumes_that_kept_their_data_are_bound_again_and_new_claims_are_called_empty() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    cluster.kubectl(
        &["create", "-f", "-"],
        &list(&[
            volume("kept", Some(("volumes", "kept")), "Retain"),
            volume("chosen", None, "Retain"),
        ]),
    );
    cluster.namespace(
        "volumes",
        &list(&[
            claim("kept", json!({})),
            claim("chosen", json!({ "volumeName": "chosen" })),
            claim("new", json!({ "storageClassName": "none-such" })),
        ]),
    );
    for name in ["kept", "chosen"] {
        cluster.until("bound", || phase(cluster, "volumes", name) == "Bound");
    }
    let home = home(
        cluster,
        &["volumes"],
        "data = { \"volumes/kept\" = \"mysql\" }",
    );
    let check = home.bk(&["check"]).ended(0);
    assert!(
        check.stdout.contains("volumes/new: a claim whose data")
            && !check.stdout.contains("volumes/kept: a claim"),
        "{}",
        check.stdout
    );
    home.bk(&["backup"]).ended(0);
    // Onto itself nothing is written, though claims are bound.
    is_left_alone(cluster, "volumes", "pvc", &home);
    cluster.delete_namespace("volumes");
    let released = |name: &str| {
        let volume = cluster.object("default", "pv", name).unwrap();
        volume["status"]["phase"] == "Released"
    };
    cluster.until("released", || released("kept") && released("chosen"));
    // Somebody else wants a volume too.
    cluster.namespace("thieves", &list(&[claim("thief", json!({}))]));
    let said = home.bk(&["restore", "--yes"]).ended(0);
    for name in ["kept", "chosen"] {
        assert_eq!(phase(cluster, "volumes", name), "Bound");
        assert_eq!(
            cluster.object("volumes", "pvc", name).unwrap()["spec"]["volumeName"],
            name
        );
    }
    assert_eq!(phase(cluster, "thieves", "thief"), "Pending");
    assert!(said.stderr.contains("`volumes/PersistentVolumeClaim/new` is new and empty, 1Gi; no data of it in this archive"), "{}", said.stderr);
    // Under another name beside it, nobody loses a volume.
    let beside = home
        .bk(&["restore", "--yes", "--into", "k8s/volumes=volumes-copy"])
        .ended(0);
    assert!(
        beside
            .stderr
            .contains("belongs to the claim `volumes/kept`"),
        "{}",
        beside.stderr
    );
    assert_eq!(phase(cluster, "volumes", "kept"), "Bound");
    assert_eq!(
        cluster.object("default", "pv", "kept").unwrap()["spec"]["claimRef"]["namespace"],
        "volumes"
    );
    // Elsewhere volumes are left out: two clusters would write into one disk. Those that are named come, for the claims that they are for.
    let Some(other) = Kubernetes::start() else {
        return;
    };
    let elsewhere = other.home_with(&home, "data = { \"volumes/kept\" = \"mysql\" }");
    let said = elsewhere
        .bk(&["restore", "--yes", "--into", "k8s/volumes=empty"])
        .ended(0);
    assert!(
        said.stderr.contains("PersistentVolume/kept` was left out")
            && said.stderr.contains(
                "`empty/PersistentVolumeClaim/kept` is new and empty, 1Gi; `mysql` has its data"
            ),
        "{}",
        said.stderr
    );
    other.namespace("thieves", &list(&[claim("thief", json!({}))]));
    let named = "k8s/volumes,k8s/cluster/PersistentVolume/*";
    elsewhere
        .bk(&[
            "restore",
            "--yes",
            "--only",
            named,
            "--into",
            "k8s/volumes=moved",
        ])
        .ended(0);
    for name in ["kept", "chosen"] {
        other.until("bound", || phase(&other, "moved", name) == "Bound");
        assert_eq!(
            other.object("default", "pv", name).unwrap()["spec"]["claimRef"]["namespace"],
            "moved"
        );
    }
    assert_eq!(phase(&other, "thieves", "thief"), "Pending");
}

#[test]
fn case_11_jobs_that_are_done_do_not_run_again() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let job = |name: &str, more: Value| {
        let mut job = json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name }, "spec": { "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "i" }] } } } });
        for (key, value) in more.as_object().unwrap() {
            job["spec"][key] = value.clone();
        }
        job
    };
    let mut by_hand = job(
        "by-hand",
        json!({ "manualSelector": true, "selector": { "matchLabels": { "mine": "yes" } } }),
    );
    by_hand["spec"]["template"]["metadata"] = json!({ "labels": { "mine": "yes" } });
    let nightly = json!({ "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "nightly" }, "spec": { "schedule": "0 0 1 1 *", "jobTemplate": { "spec": { "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "i" }] } } } } } });
    cluster.namespace(
        "jobs",
        &list(&[
            job("running", json!({})),
            job("done", json!({})),
            job("failed", json!({ "backoffLimit": 0 })),
            by_hand,
            nightly,
        ]),
    );
    cluster.kubectl(
        &[
            "-n",
            "jobs",
            "create",
            "job",
            "owned",
            "--from=cronjob/nightly",
        ],
        "",
    );
    for name in ["running", "done", "failed"] {
        cluster.until("its controller has seen it", || {
            cluster.object("jobs", "job", name).unwrap()["status"]
                .get("active")
                .is_some()
        });
    }
    // Without machines its controller's own pods are what ends a job.
    for (name, phase) in [("done", "Succeeded"), ("failed", "Failed")] {
        let selector = format!("job-name={name}");
        let pod = cluster.kubectl(
            &[
                "-n",
                "jobs",
                "get",
                "pods",
                "-l",
                &selector,
                "-o",
                "jsonpath={.items[0].metadata.name}",
            ],
            "",
        );
        let status = json!({ "status": { "phase": phase } }).to_string();
        cluster.kubectl(
            &[
                "-n",
                "jobs",
                "patch",
                "pod",
                &pod,
                "--subresource=status",
                "--type=merge",
                "-p",
                &status,
            ],
            "",
        );
        cluster.until("the job is over", || {
            cluster.object("jobs", "job", name).unwrap()["status"]["conditions"]
                .to_string()
                .contains(if phase == "Failed" {
                    "Failed"
                } else {
                    "Complete"
                })
        });
    }
    let home = lost_and_restored(cluster, "jobs");
    for (name, there) in [
        ("running", true),
        ("by-hand", true),
        ("done", false),
        ("failed", false),
        ("owned", false),
    ] {
        assert_eq!(
            cluster.object("jobs", "job", name).is_some(),
            there,
            "{name}"
        );
    }
    let running = cluster.object("jobs", "job", "running").unwrap();
    assert_eq!(
        running["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"],
        running["metadata"]["uid"]
    );
    assert_eq!(
        cluster.object("jobs", "job", "by-hand").unwrap()["spec"]["selector"]["matchLabels"]["mine"],
        "yes"
    );
    is_left_alone(cluster, "jobs", "jobs,cronjobs", &home);
}

#[test]
fn case_13_a_binding_to_another_role_is_a_conflict_and_subjects_follow_the_name() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let binding = |role: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": "b" }, "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [
                { "kind": "ServiceAccount", "name": "a", "namespace": "bound" }, { "kind": "ServiceAccount", "name": "a", "namespace": "kube-system" },
                { "kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:serviceaccounts:bound" }, { "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "system:serviceaccount:bound:a" },
            ],
        })
    };
    cluster.namespace("bound", &list(&[binding("view")]));
    let home = home(cluster, &["bound"], "");
    home.bk(&["backup"]).ended(0);
    cluster.kubectl(&["-n", "bound", "delete", "rolebinding", "b"], "");
    cluster.create("bound", &list(&[binding("edit")]));
    let said = home.bk(&["restore", "--yes"]).ended(3);
    assert!(said.stderr.contains("roleRef"), "{}", said.stderr);
    home.bk(&["restore", "--yes", "--recreate"]).ended(0);
    assert_eq!(
        cluster.object("bound", "rolebinding", "b").unwrap()["roleRef"]["name"],
        "view"
    );
    home.bk(&[
        "restore",
        "--yes",
        "--only",
        "k8s/bound",
        "--into",
        "k8s/bound=rebound",
    ])
    .ended(0);
    let moved = cluster.object("rebound", "rolebinding", "b").unwrap();
    let subjects: Vec<String> = moved["subjects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| {
            format!(
                "{}/{}",
                s["namespace"].as_str().unwrap_or("-"),
                s["name"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        subjects,
        [
            "rebound/a",
            "kube-system/a",
            "-/system:serviceaccounts:rebound",
            "-/system:serviceaccount:rebound:a"
        ]
    );
}

#[test]
fn case_14_accounts_are_merged_and_tokens_are_signed_anew() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let account = |secrets: &[&str]| {
        let secrets: Vec<Value> = secrets.iter().map(|name| json!({ "name": name })).collect();
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "puller" }, "imagePullSecrets": secrets })
    };
    let token = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "mine", "annotations": { "kubernetes.io/service-account.name": "puller" } }, "type": "kubernetes.io/service-account-token" });
    let mut legacy = token.clone();
    legacy["metadata"]["name"] = "puller-token-x7k2p".into();
    cluster.namespace("accounts", &list(&[account(&["registry"])]));
    cluster.create("accounts", &list(&[token, legacy]));
    cluster.until("its controller signed it", || {
        cluster.object("accounts", "secret", "mine").unwrap()["data"]["token"].is_string()
    });
    let home = home(cluster, &["accounts"], "");
    home.bk(&["backup"]).ended(0);
    let before = cluster.object("accounts", "secret", "mine").unwrap();
    cluster.delete_namespace("accounts");
    cluster.namespace("accounts", &list(&[account(&["another"])]));
    home.bk(&["restore", "--yes"]).ended(0);
    let merged = cluster
        .object("accounts", "serviceaccount", "puller")
        .unwrap();
    assert_eq!(
        merged["imagePullSecrets"],
        json!([{ "name": "registry" }, { "name": "another" }])
    );
    cluster.until("its controller signed it", || {
        cluster.object("accounts", "secret", "mine").unwrap()["data"]["token"].is_string()
    });
    let after = cluster.object("accounts", "secret", "mine").unwrap();
    assert_ne!(after["data"]["token"], before["data"]["token"]);
    assert!(
        cluster
            .object("accounts", "secret", "puller-token-x7k2p")
            .is_none()
    );
    let versions = cluster.versions("accounts", "secrets,serviceaccounts");
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!(
        cluster.versions("accounts", "secrets,serviceaccounts"),
        versions
    );
}

#[test]
fn case_26_what_a_webhook_denies_is_said_and_what_it_changes_is_unchanged_the_next_time() {
    let Some(cluster) = Kubernetes::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let port = bk_tests::database::free_port();
    let _hook =
        bk_tests::script::Script::start("webhook", (folder.path(), port), &[""; 0], &[]).unwrap();
    let bundle = base64(&std::fs::read(folder.path().join("webhook.crt")).unwrap());
    cluster.namespace(
        "hooked",
        &list(&[
            config_map("plain", json!({ "a": "1" })),
            config_map("denied", json!({ "a": "1" })),
        ]),
    );
    let home = home(&cluster, &["hooked"], "");
    home.bk(&["backup"]).ended(0);
    let hooks = |kind: &str, path: &str, policy: &str, client: Value| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": { "name": format!("{path}.example.org") },
            "webhooks": [{
                "name": format!("{path}.example.org"), "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": policy, "clientConfig": client,
                "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "hooked" } },
                "matchConditions": [{ "name": "not-bk", "expression": "request.name != 'bk-unfinished-restore' && request.name != 'kube-root-ca.crt'" }],
                "rules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"] }],
            }],
        })
    };
    let url = |path: &str| json!({ "url": format!("https://127.0.0.1:{port}/{path}"), "caBundle": bundle });
    cluster.kubectl(
        &["create", "-f", "-"],
        &list(&[
            hooks(
                "MutatingWebhookConfiguration",
                "mutate",
                "Fail",
                url("mutate"),
            ),
            hooks(
                "ValidatingWebhookConfiguration",
                "validate",
                "Fail",
                url("validate"),
            ),
        ]),
    );
    cluster.until("the webhooks are asked", || {
        !cluster
            .run(
                &[
                    "-n",
                    "hooked",
                    "create",
                    "configmap",
                    "denied",
                    "--dry-run=server",
                ],
                "",
            )
            .status
            .success()
            && cluster
                .run(
                    &[
                        "-n",
                        "hooked",
                        "create",
                        "configmap",
                        "x",
                        "--from-literal=a=b",
                        "--dry-run=server",
                        "-o",
                        "yaml",
                    ],
                    "",
                )
                .stdout
                .windows(9)
                .any(|w| w == b"defaulted")
    });
    cluster.kubectl(
        &["-n", "hooked", "delete", "configmap", "plain", "denied"],
        "",
    );
    let said = home.bk(&["restore", "--yes"]).ended(3);
    assert!(
        said.stderr.contains("`hooked/ConfigMap/denied`")
            && said.stderr.contains("validate.example.org")
            && said.stderr.contains("not on a Sunday"),
        "{}",
        said.stderr
    );
    assert_eq!(
        cluster.object("hooked", "configmap", "plain").unwrap()["data"],
        json!({ "a": "1", "defaulted": "yes" })
    );
    let versions = cluster.versions("hooked", "configmap/plain");
    home.bk(&["restore", "--yes"]).ended(3);
    assert_eq!(cluster.versions("hooked", "configmap/plain"), versions);
    // One without a server behind it: its name is said.
    let nobody = hooks(
        "ValidatingWebhookConfiguration",
        "nobody",
        "Fail",
        json!({ "service": { "namespace": "hooked", "name": "none" } }),
    )
    .to_string();
    cluster.kubectl(&["create", "-f", "-"], &nobody);
    cluster.until("it is asked", || {
        String::from_utf8_lossy(
            &cluster
                .run(
                    &[
                        "-n",
                        "hooked",
                        "create",
                        "configmap",
                        "x",
                        "--dry-run=server",
                    ],
                    "",
                )
                .stderr,
        )
        .contains("nobody.example.org")
    });
    cluster.kubectl(&["-n", "hooked", "delete", "configmap", "plain"], "");
    let said = home.bk(&["restore", "--yes"]).ended(3);
    assert!(
        said.stderr.contains("hooked/ConfigMap/plain")
            && said.stderr.contains("nobody.example.org"),
        "{}",
        said.stderr
    );
    // In a new cluster they come last, and stop nothing.
    cluster.kubectl(
        &[
            "delete",
            "validatingwebhookconfiguration/nobody.example.org",
            "validatingwebhookconfiguration/validate.example.org",
        ],
        "",
    );
    home.bk(&["restore", "--yes"]).ended(0);
    cluster.kubectl(&["create", "-f", "-"], &nobody);
    home.bk(&["backup"]).ended(0);
    let Some(other) = Kubernetes::start() else {
        return;
    };
    other
        .home_with(&home, "")
        .bk(&["restore", "--yes"])
        .ended(0);
    assert!(other.object("hooked", "configmap", "plain").is_some());
    assert!(
        other
            .object(
                "default",
                "validatingwebhookconfiguration",
                "nobody.example.org"
            )
            .is_some()
    );
}

#[test]
fn case_27_what_a_quota_or_a_policy_refuses_is_reported_and_quotas_come_last() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let quota = json!({ "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "q" }, "spec": { "hard": { "configmaps": "10", "pods": "5" } } });
    let limits = json!({ "apiVersion": "v1", "kind": "LimitRange", "metadata": { "name": "l" }, "spec": { "limits": [{ "type": "Container", "default": { "memory": "64Mi" }, "defaultRequest": { "memory": "32Mi" } }] } });
    let pod = |name: &str| json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    cluster.namespace(
        "quotas",
        &list(&[config_map("c", json!({})), limits, pod("plain")]),
    );
    cluster.create("quotas", &list(&[quota]));
    let home = home(cluster, &["quotas"], "");
    home.bk(&["backup"]).ended(0);
    // As archived: the LimitRange changed the pod, and a second run finds it unchanged.
    is_left_alone(cluster, "quotas", "pods,limitranges,configmaps", &home);
    cluster.delete_namespace("quotas");
    home.bk(&["restore", "--yes"]).ended(0);
    let version = |kind: &str, name: &str| {
        cluster.object("quotas", kind, name).unwrap()["metadata"]["creationTimestamp"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(version("resourcequota", "q") >= version("pod", "plain"));
    let spec = cluster.object("quotas", "pod", "plain").unwrap()["spec"].clone();
    let tokens = spec["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|v| v["name"].as_str().unwrap().starts_with("kube-api-access-"))
        .count();
    assert_eq!(tokens, 1, "{spec}");
    // Into a namespace that forbids such pods.
    cluster.delete_namespace("quotas");
    cluster.namespace("quotas", "");
    cluster.kubectl(
        &[
            "label",
            "namespace",
            "quotas",
            "pod-security.kubernetes.io/enforce=restricted",
        ],
        "",
    );
    let only = "k8s/quotas/ConfigMap/c,k8s/quotas/Pod/plain,k8s/quotas/ResourceQuota/q";
    let said = home.bk(&["restore", "--yes", "--only", only]).ended(3);
    assert!(
        said.stderr.contains("quotas/Pod/plain") && said.stderr.contains("violates PodSecurity"),
        "{}",
        said.stderr
    );
    assert!(
        cluster.object("quotas", "configmap", "c").is_some()
            && cluster.object("quotas", "resourcequota", "q").is_some()
    );
}

#[test]
fn case_28_under_another_name_nothing_speaks_of_the_old_one_unreported() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let mut tracked = config_map(
        "tracked",
        json!({ "url": "http://db.before.svc.cluster.local:5432", "plain": "before.example.org" }),
    );
    tracked["metadata"]["annotations"] = json!({ "argocd.argoproj.io/tracking-id": "app:v1/ConfigMap:before/tracked", "meta.helm.sh/release-namespace": "before", "meta.helm.sh/release-name": "r" });
    let policy = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "p" }, "spec": { "podSelector": {}, "ingress": [{ "from": [{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "before" } } }] }] } });
    let account =
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "a" } });
    cluster.namespace("before", &list(&[tracked, policy, account]));
    let hook = json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": { "name": "before-hook" }, "webhooks": [{ "name": "h.example.org", "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Ignore", "rules": [{ "apiGroups": ["none.example.org"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["*"] }], "clientConfig": { "service": { "name": "s", "namespace": "before" } } }] });
    let binding = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "before-binding" }, "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" }, "subjects": [{ "kind": "ServiceAccount", "name": "a", "namespace": "before" }] });
    cluster.kubectl(&["create", "-f", "-"], &list(&[hook, binding]));
    let home = home(cluster, &["before"], "");
    home.bk(&["backup"]).ended(0);
    let check = home.bk(&["check"]).ended(0);
    assert!(
        check.stdout.contains("Argo CD owns 1 objects"),
        "{}",
        check.stdout
    );
    cluster.kubectl(
        &[
            "delete",
            "validatingwebhookconfiguration/before-hook",
            "clusterrolebinding/before-binding",
        ],
        "",
    );
    let said = home
        .bk(&["restore", "--yes", "--into", "k8s/before=after"])
        .ended(0);
    let moved = cluster.object("after", "configmap", "tracked").unwrap();
    assert!(
        moved["metadata"]["annotations"]
            .get("argocd.argoproj.io/tracking-id")
            .is_none(),
        "{moved}"
    );
    assert_eq!(
        cluster
            .object("default", "validatingwebhookconfiguration", "before-hook")
            .unwrap()["webhooks"][0]["clientConfig"]["service"]["namespace"],
        "after"
    );
    assert_eq!(
        cluster
            .object("default", "clusterrolebinding", "before-binding")
            .unwrap()["subjects"][0]["namespace"],
        "after"
    );
    for place in [
        "data.url",
        "metadata.annotations.meta.helm.sh/release-namespace",
        "kubernetes.io/metadata.name",
    ] {
        assert!(said.stderr.contains(place), "{place}: {}", said.stderr);
    }
    cluster.kubectl(
        &[
            "delete",
            "validatingwebhookconfiguration/before-hook",
            "clusterrolebinding/before-binding",
        ],
        "",
    );
}

#[test]
fn case_29_a_second_run_and_a_dry_run_write_nothing() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let scaler = json!({ "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": { "name": "web" }, "spec": { "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" }, "minReplicas": 1, "maxReplicas": 5 } });
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "stringData": { "password": "geheim" } });
    cluster.namespace(
        "again",
        &list(&[
            deployment("web", json!({ "name": "c", "image": "i" })),
            scaler,
            secret,
            config_map("c", json!({ "a": "1" })),
        ]),
    );
    cluster.kubectl(
        &["create", "-f", "-"],
        &volume("again", Some(("again", "data")), "Retain").to_string(),
    );
    cluster.create("again", &list(&[claim("data", json!({}))]));
    cluster.until("bound", || phase(cluster, "again", "data") == "Bound");
    let home = home(cluster, &["again"], "");
    home.bk(&["backup"]).ended(0);
    // The autoscaler's matter.
    cluster.kubectl(
        &["-n", "again", "scale", "deployment", "web", "--replicas=3"],
        "",
    );
    let kinds = "deployments,secrets,configmaps,pvc,horizontalpodautoscalers,serviceaccounts";
    let settled =
        || cluster.object("again", "deployment", "web").unwrap()["status"]["replicas"] == 3;
    cluster.until("scaled", settled);
    let said = home.bk(&["restore", "--dry-run"]).ended(0);
    assert!(
        said.stdout.contains("unchanged  again/Deployment/web"),
        "{}",
        said.stdout
    );
    is_left_alone(cluster, "again", kinds, &home);
    // A dry run says what would change, and hides what is secret.
    cluster.kubectl(
        &[
            "-n",
            "again",
            "patch",
            "configmap",
            "c",
            "--type=merge",
            "-p",
            r#"{"data":{"a":"2"}}"#,
        ],
        "",
    );
    cluster.kubectl(
        &[
            "-n",
            "again",
            "patch",
            "secret",
            "s",
            "--type=merge",
            "-p",
            r#"{"stringData":{"password":"anders"}}"#,
        ],
        "",
    );
    cluster.kubectl(&["-n", "again", "delete", "hpa", "web"], "");
    let versions = cluster.versions("again", kinds);
    let said = home.bk(&["restore", "--dry-run"]).ended(0);
    assert_eq!(cluster.versions("again", kinds), versions);
    for line in [
        "updated    again/ConfigMap/c",
        "data.a: \"2\" -> \"1\"",
        "updated    again/Secret/s",
        "data.password: (hidden) -> (hidden)",
        "created    again/HorizontalPodAutoscaler/web",
    ] {
        assert!(said.stdout.contains(line), "{line}: {}", said.stdout);
    }
    let hidden = base64(b"geheim");
    assert!(
        !said.stdout.contains(&hidden) && !said.stdout.contains("geheim"),
        "{}",
        said.stdout
    );
    // Into a cluster that has nothing of it yet.
    let Some(other) = Kubernetes::start() else {
        return;
    };
    let elsewhere = other.home_with(&home, "");
    let said = elsewhere.bk(&["restore", "--dry-run"]).ended(0);
    assert!(
        said.stdout.contains(
            "again/ConfigMap/c (not asked of the server: its namespace is not there yet)"
        ),
        "{}",
        said.stdout
    );
    assert!(other.object("default", "namespace", "again").is_none());
}

#[test]
fn objects_that_the_archive_lacks_are_deleted_only_where_that_is_asked() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    cluster.namespace("pruned", &list(&[config_map("c", json!({}))]));
    let home = home(cluster, &["pruned"], "");
    home.bk(&["backup"]).ended(0);
    let mut own = config_map("own", json!({}));
    own["metadata"]["labels"] = json!({ "app.kubernetes.io/managed-by": "bk" });
    cluster.create("pruned", &list(&[config_map("later", json!({})), own]));
    let kept = home
        .bk(&["restore", "--yes", "--existing", "replace"])
        .ended(0);
    assert!(
        kept.stderr
            .contains("kept, not in the archive: pruned/ConfigMap/later"),
        "{}",
        kept.stderr
    );
    let dry = home
        .bk(&[
            "restore",
            "--dry-run",
            "--existing",
            "replace",
            "--prune-objects",
        ])
        .ended(0);
    assert!(
        dry.stdout.contains("deleted    pruned/ConfigMap/later"),
        "{}",
        dry.stdout
    );
    assert!(cluster.object("pruned", "configmap", "later").is_some());
    home.bk(&[
        "restore",
        "--yes",
        "--existing",
        "replace",
        "--prune-objects",
    ])
    .ended(0);
    assert!(cluster.object("pruned", "configmap", "later").is_none());
    assert!(cluster.object("pruned", "configmap", "own").is_some());
    assert!(
        cluster
            .object("pruned", "configmap", "kube-root-ca.crt")
            .is_some()
    );
}

#[test]
fn what_the_backup_left_out_is_neither_deleted_nor_called_missing() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "stringData": { "a": "b" } });
    let mut labelled = config_map("labelled", json!({}));
    labelled["metadata"]["labels"] = json!({ "app": "web" });
    cluster.namespace(
        "partly",
        &list(&[
            labelled,
            config_map("other", json!({})),
            config_map("left-out", json!({})),
            secret,
        ]),
    );
    let prune = [
        "restore",
        "--yes",
        "--existing",
        "replace",
        "--prune-objects",
    ];
    for narrow in [
        "selector = \"app=web\"",
        "exclude = [\"partly/ConfigMap/other\", \"partly/ConfigMap/left-out\", \"partly/Secret/*\"]",
        "kinds = [\"Deployment\"]",
    ] {
        let narrow_home = home(cluster, &["partly"], narrow);
        narrow_home.bk(&["backup"]).ended(0);
        // The settings are wider now.
        let wide = cluster.home_with(&narrow_home, "namespaces = [\"partly\"]");
        let said = wide.bk(&prune).ended(0);
        assert!(
            !said.stderr.contains("was deleted")
                && !said.stderr.contains("kept, not in the archive"),
            "{narrow}: {}",
            said.stderr
        );
    }
    let without = cluster.home("namespaces = [\"partly\"]");
    let settings = std::fs::read_to_string(without.path("plugins.toml")).unwrap();
    std::fs::write(
        without.path("plugins.toml"),
        settings.replace("\"include\"", "\"omit\""),
    )
    .unwrap();
    without.bk(&["backup"]).ended(0);
    cluster
        .home_with(&without, "namespaces = [\"partly\"]")
        .bk(&prune)
        .ended(0);
    for (kind, name) in [
        ("configmap", "labelled"),
        ("configmap", "other"),
        ("configmap", "left-out"),
        ("secret", "s"),
    ] {
        assert!(
            cluster.object("partly", kind, name).is_some(),
            "{kind}/{name}"
        );
    }
}

#[test]
fn the_owners_next_server_side_apply_finds_no_conflict() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    cluster.namespace("applied", "");
    let objects = list(&[
        deployment("web", json!({ "name": "c", "image": "i" })),
        config_map("c", json!({ "a": "1" })),
    ]);
    let apply = [
        "-n",
        "applied",
        "apply",
        "--server-side",
        "--field-manager=owner",
        "-f",
        "-",
    ];
    cluster.kubectl(&apply, &objects);
    let home = lost_and_restored(cluster, "applied");
    cluster.kubectl(&apply, &objects.replace("\"1\"", "\"2\""));
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!(
        cluster.object("applied", "configmap", "c").unwrap()["data"]["a"],
        "1"
    );
    cluster.kubectl(
        &apply,
        &objects.replace("\"image\":\"i\"", "\"image\":\"j\""),
    );
    let web = cluster.object("applied", "deployment", "web").unwrap();
    assert_eq!(
        web["spec"]["template"]["spec"]["containers"][0]["image"],
        "j"
    );
    assert!(
        !web["metadata"]["managedFields"]
            .to_string()
            .contains("bk-restore")
    );
}

#[test]
fn images_and_storage_classes_get_the_names_that_they_have_here() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let mut set = deployment(
        "db",
        json!({ "name": "c", "image": "registry.example.org/team/db:1" }),
    );
    set["kind"] = "StatefulSet".into();
    set["spec"]["serviceName"] = "db".into();
    set["spec"]["volumeClaimTemplates"] = json!([{ "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } }, "storageClassName": "fast" } }]);
    cluster.namespace(
        "mapped",
        &list(&[
            set,
            claim("c", json!({ "storageClassName": "fast" })),
            deployment("web", json!({ "name": "c", "image": "docker.io/web:1" })),
        ]),
    );
    let source = home(cluster, &["mapped"], "");
    source.bk(&["backup"]).ended(0);
    let there = cluster.home_with(&source, "namespaces = [\"mapped\"]\nstorage_classes = { fast = \"local-path\" }\nimages = { \"registry.example.org/\" = \"mirror.example.net/r/\" }");
    there
        .bk(&[
            "restore",
            "--yes",
            "--only",
            "k8s/mapped",
            "--into",
            "k8s/mapped=mapped-copy",
        ])
        .ended(0);
    let object = |kind: &str, name: &str| cluster.object("mapped-copy", kind, name).unwrap();
    let set = object("statefulset", "db");
    assert_eq!(
        set["spec"]["template"]["spec"]["containers"][0]["image"],
        "mirror.example.net/r/team/db:1"
    );
    assert_eq!(
        set["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"],
        "local-path"
    );
    assert_eq!(object("pvc", "c")["spec"]["storageClassName"], "local-path");
    assert_eq!(
        object("deployment", "web")["spec"]["template"]["spec"]["containers"][0]["image"],
        "docker.io/web:1"
    );
}

#[test]
fn what_nobody_selected_is_not_deleted_though_all_that_the_archive_has_of_it_was() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "stringData": { "a": "b" } });
    cluster.namespace("chosen", &list(&[config_map("c", json!({}))]));
    cluster.namespace("chosen-too", &list(std::slice::from_ref(&secret)));
    let home = home(cluster, &["chosen", "chosen-too"], "");
    home.bk(&["backup"]).ended(0);
    cluster.create("chosen", &list(&[secret]));
    for narrow in [
        ["--exclude", "k8s/*/Secret/*"],
        ["--only", "k8s/chosen/ConfigMap/*"],
    ] {
        cluster.create("chosen", &list(&[config_map("later", json!({}))]));
        let prune = [
            "restore",
            "--yes",
            "--existing",
            "replace",
            "--prune-objects",
        ];
        let said = home.bk(&[&prune[..], &narrow[..]].concat()).ended(0);
        let is_there = |kind: &str, name: &str| cluster.object("chosen", kind, name).is_some();
        assert!(is_there("secret", "s"), "{narrow:?}: {}", said.stderr);
        assert!(!is_there("configmap", "later"), "{narrow:?}");
    }
}

#[test]
fn services_of_this_cluster_keep_the_addresses_and_ports_that_it_chose() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let service = |name: &str, spec: Value| json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec });
    cluster.namespace(
        "addressed",
        &list(&[
            service("ports", json!({ "type": "NodePort", "ports": [{ "name": "a", "port": 80 }, { "name": "b", "port": 81 }] })),
            service("balanced", json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{ "port": 80 }] })),
        ]),
    );
    let spec = |name: &str| cluster.object("addressed", "service", name).unwrap()["spec"].clone();
    let before = [spec("ports"), spec("balanced")];
    let home = home(cluster, &["addressed"], "");
    home.bk(&["backup"]).ended(0);
    for name in ["ports", "balanced"] {
        cluster.kubectl(&["-n", "addressed", "delete", "service", name], "");
    }
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!([spec("ports"), spec("balanced")], before);
}

#[test]
fn a_mark_of_one_object_keeps_that_one_from_being_backed_up_and_no_other() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let owed = json!({ "id": "1", "archive": "a", "selected": [{ "group": "marked", "unit": "ConfigMap/half" }, { "group": "marked", "unit": "ConfigMap/absent" }] });
    cluster.namespace(
        "marked",
        &list(&[
            config_map("half", json!({})),
            config_map("whole", json!({})),
            config_map("bk-unfinished-restore", json!({ "mark": owed.to_string() })),
        ]),
    );
    let home = home(cluster, &["marked"], "");
    let said = home.bk(&["backup"]).ended(3);
    for name in ["marked/ConfigMap/half", "marked/ConfigMap/absent"] {
        assert!(said.stderr.contains(name), "{}", said.stderr);
    }
    home.bk(&["extract", "--allow-partial", "--into", "x"]);
    let is_kept = |name: &str| {
        let path = format!("x/k8s/namespaces/marked/configmap/{name}.yaml");
        home.path(&path).exists()
    };
    assert_eq!((is_kept("half"), is_kept("whole")), (false, true));
    // A namespace that is not there keeps nobody from forgetting.
    let wider = cluster.home("namespaces = [\"never-made\", \"marked\"]");
    wider
        .bk(&["restore", "--forget-unfinished", "k8s"])
        .ended(0);
    home.bk(&["backup"]).ended(0);
}
