//! Hard cases of the source `k8s`: extensions, their definitions and versions, who owns whom, and what does not answer.

use bk_tests::binary::Home;
use bk_tests::kube_objects::{config_map, deployment, home, list, lost_and_restored};
use bk_tests::kubernetes::Kubernetes;
use serde_json::{Value, json};

/// A definition of an extension, in these versions: name, and whether it is the one that is stored.
fn definition(group: &str, kind: &str, scope: &str, versions: &[(&str, bool)]) -> Value {
    let plural = format!("{}s", kind.to_lowercase());
    let versions: Vec<Value> = versions
        .iter()
        .map(|(name, storage)| {
            json!({
                "name": name, "served": true, "storage": storage, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
            })
        })
        .collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": { "name": format!("{plural}.{group}") },
        "spec": { "group": group, "scope": scope, "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List") }, "versions": versions },
    })
}

fn define(cluster: &Kubernetes, definition: &Value) {
    cluster.kubectl(&["create", "-f", "-"], &definition.to_string());
    let name = format!("crd/{}", definition["metadata"]["name"].as_str().unwrap());
    cluster.kubectl(
        &[
            "wait",
            "--for=condition=Established",
            &name,
            "--timeout=300s",
        ],
        "",
    );
}

#[test]
fn case_16_certificates_come_after_their_secrets_and_orders_are_left_out() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    for (group, kind) in [
        ("cert-manager.io", "Certificate"),
        ("cert-manager.io", "CertificateRequest"),
        ("acme.cert-manager.io", "Order"),
        ("acme.cert-manager.io", "Challenge"),
    ] {
        define(
            cluster,
            &definition(group, kind, "Namespaced", &[("v1", true)]),
        );
    }
    let of = |group: &str, kind: &str, name: &str| json!({ "apiVersion": format!("{group}/v1"), "kind": kind, "metadata": { "name": name }, "spec": { "secretName": "tls" } });
    cluster.namespace(
        "certs",
        &list(&[
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "tls" }, "type": "Opaque", "stringData": { "key": "k" } }),
            of("cert-manager.io", "Certificate", "by-hand"),
            of("cert-manager.io", "CertificateRequest", "request"),
            of("acme.cert-manager.io", "Order", "order"),
            of("acme.cert-manager.io", "Challenge", "challenge"),
            json!({ "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": { "name": "web" }, "spec": { "defaultBackend": { "service": { "name": "a", "port": { "number": 80 } } } } }),
        ]),
    );
    let ingress = cluster.object("certs", "ingress", "web").unwrap();
    let mut shim = of("cert-manager.io", "Certificate", "of-ingress");
    shim["metadata"]["ownerReferences"] = json!([{ "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "name": "web", "uid": ingress["metadata"]["uid"], "controller": true }]);
    cluster.create("certs", &list(&[shim]));
    let home = lost_and_restored(cluster, "certs");
    assert!(
        cluster
            .object("certs", "certificates.cert-manager.io", "by-hand")
            .is_some()
    );
    for (kind, name) in [
        ("certificates.cert-manager.io", "of-ingress"),
        ("certificaterequests.cert-manager.io", "request"),
        ("orders.acme.cert-manager.io", "order"),
        ("challenges.acme.cert-manager.io", "challenge"),
    ] {
        assert!(
            cluster.object("certs", kind, name).is_none(),
            "{kind}/{name}"
        );
    }
    // In the order in which they stand, a Secret comes first.
    let shown = home.bk(&["show", "--units"]).ended(0);
    let at = |word: &str| {
        shown
            .stdout
            .find(word)
            .unwrap_or_else(|| panic!("{word}: {}", shown.stdout))
    };
    assert!(at("Secret/tls") < at("Certificate.cert-manager.io/by-hand"));
    let made = |kind: &str, name: &str| {
        cluster.object("certs", kind, name).unwrap()["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    assert!(made("secret", "tls") < made("certificates.cert-manager.io", "by-hand"));
}

#[test]
fn case_17_sealed_secrets_without_their_keys_are_a_warning() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    define(
        cluster,
        &definition(
            "bitnami.com",
            "SealedSecret",
            "Namespaced",
            &[("v1alpha1", true)],
        ),
    );
    cluster.namespace("sealed", &list(&[json!({ "apiVersion": "bitnami.com/v1alpha1", "kind": "SealedSecret", "metadata": { "name": "s" }, "spec": { "encryptedData": { "a": "x" } } })]));
    let warned = |home: &Home| {
        let (check, backup) = (home.bk(&["check"]).ended(0), home.bk(&["backup"]).ended(0));
        (
            check.stdout.contains("sealed-secrets-key"),
            backup.stderr.contains("sealed-secrets-key"),
        )
    };
    assert_eq!(warned(&home(cluster, &["sealed"], "")), (true, true));
    let key = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "key1", "labels": { "sealedsecrets.bitnami.com/sealed-secrets-key": "active" } }, "type": "kubernetes.io/tls", "stringData": { "tls.crt": "c", "tls.key": "k" } });
    cluster.namespace("sealer", &list(&[key]));
    assert_eq!(warned(&home(cluster, &["sealed"], "")), (true, true));
    assert_eq!(
        warned(&home(cluster, &["sealed", "sealer"], "")),
        (false, false)
    );
}

#[test]
fn case_18_extensions_are_read_as_they_are_stored_and_a_version_that_is_not_there_is_said() {
    // One of its own: the collector of garbage reads what is preferred, and gets no further where that cannot be converted.
    let Some(cluster) = Kubernetes::start() else {
        return;
    };
    // A server prefers the highest version, which is not the one that is stored.
    let mut two = definition(
        "convert.example.org",
        "Gadget",
        "Namespaced",
        &[("v2", false), ("v1", true)],
    );
    define(&cluster, &two);
    let preferred = cluster.kubectl(&["get", "--raw", "/apis/convert.example.org"], "");
    let preferred: Value = serde_json::from_str(&preferred).unwrap();
    assert_eq!(preferred["preferredVersion"]["version"], "v2");
    let gadget = json!({ "apiVersion": "convert.example.org/v1", "kind": "Gadget", "metadata": { "name": "g" }, "spec": { "n": 1 } });
    cluster.namespace("gadgets", &list(&[gadget]));
    // The webhook that would convert is down.
    two["spec"]["conversion"] = json!({ "strategy": "Webhook", "webhook": { "conversionReviewVersions": ["v1"], "clientConfig": { "url": "https://127.0.0.1:1/convert" } } });
    let change = json!({ "spec": { "conversion": two["spec"]["conversion"] } }).to_string();
    cluster.kubectl(
        &[
            "patch",
            "crd",
            "gadgets.convert.example.org",
            "--type=merge",
            "-p",
            &change,
        ],
        "",
    );
    let converted = ["-n", "gadgets", "get", "gadgets.v2.convert.example.org"];
    cluster.until("the webhook is asked", || {
        !cluster.run(&converted, "").status.success()
    });
    let home = home(&cluster, &["gadgets"], "");
    home.bk(&["backup"]).ended(0);
    home.bk(&["extract", "--into", "x"]).ended(0);
    let text = std::fs::read_to_string(
        home.path("x/k8s/namespaces/gadgets/gadget.convert.example.org/g.yaml"),
    )
    .unwrap();
    assert!(
        text.contains("apiVersion: convert.example.org/v1"),
        "{text}"
    );
    // A server that knows the kind in v2 alone.
    let Some(other) = Kubernetes::start() else {
        return;
    };
    define(
        &other,
        &definition(
            "convert.example.org",
            "Gadget",
            "Namespaced",
            &[("v2", true)],
        ),
    );
    let said = other
        .home_with(&home, "")
        .bk(&["restore", "--yes"])
        .ended(3);
    assert!(
        said.stderr.contains("gadgets/Gadget/g")
            && said.stderr.contains("convert.example.org/v1")
            && said.stderr.contains("only in v2"),
        "{}",
        said.stderr
    );
    assert!(
        other
            .object("gadgets", "gadgets.convert.example.org", "g")
            .is_none()
    );
}

#[test]
fn case_19_versions_in_which_objects_are_stored_stay_in_a_definition() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    define(
        cluster,
        &definition("stored.example.org", "Thing", "Namespaced", &[("v1", true)]),
    );
    cluster.namespace("things", &list(&[json!({ "apiVersion": "stored.example.org/v1", "kind": "Thing", "metadata": { "name": "t" }, "spec": { "a": 1 } })]));
    let home = home(cluster, &["things"], "");
    home.bk(&["backup"]).ended(0);
    let newer = definition(
        "stored.example.org",
        "Thing",
        "Namespaced",
        &[("v2", true), ("v1", false)],
    );
    cluster.kubectl(&["replace", "-f", "-"], &{
        let mut newer = newer;
        newer["metadata"]["resourceVersion"] = cluster
            .object("default", "crd", "things.stored.example.org")
            .unwrap()["metadata"]["resourceVersion"]
            .clone();
        newer.to_string()
    });
    cluster.until("both are stored", || {
        cluster
            .object("default", "crd", "things.stored.example.org")
            .unwrap()["status"]["storedVersions"]
            == json!(["v1", "v2"])
    });
    // Not by itself: others may use it.
    let said = home.bk(&["restore", "--yes"]).ended(0);
    assert!(
        said.stderr
            .contains("CustomResourceDefinition/things.stored.example.org"),
        "{}",
        said.stderr
    );
    let said = home
        .bk(&[
            "restore",
            "--yes",
            "--only",
            "k8s/cluster/CustomResourceDefinition/things.stored.example.org",
        ])
        .ended(0);
    println!("{}", said.stderr);
    let definition = cluster
        .object("default", "crd", "things.stored.example.org")
        .unwrap();
    let versions: Vec<(String, bool)> = definition["spec"]["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| {
            (
                v["name"].as_str().unwrap().to_owned(),
                v["storage"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(versions, [("v1".into(), true), ("v2".into(), false)]);
    assert_eq!(definition["status"]["storedVersions"], json!(["v1", "v2"]));
}

#[test]
fn case_20_numbers_of_extensions_come_back_as_they_were_written() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    define(
        cluster,
        &definition(
            "numbers.example.org",
            "Number",
            "Namespaced",
            &[("v1", true)],
        ),
    );
    let text = r#"{"apiVersion":"numbers.example.org/v1","kind":"Number","metadata":{"name":"n"},"spec":{"past":9007199254740993,"most":9223372036854775807,"least":-9223372036854775808,"one":1.0,"huge":1e21,"tiny":1e-7,"minus":-0.0,"half":0.5,"percent":"50%","port":8080,"unknown":{"deep":[1,{"a":null}]},"zero":0},"status":{"seen":1}}"#;
    cluster.namespace("numbers", text);
    let raw = |cluster: &Kubernetes| {
        let text = cluster.kubectl(
            &[
                "get",
                "--raw",
                "/apis/numbers.example.org/v1/namespaces/numbers/numbers/n",
            ],
            "",
        );
        let start = text.find("\"spec\":").unwrap();
        text[start..].trim_end().to_owned()
    };
    let before = raw(cluster);
    let home = lost_and_restored(cluster, "numbers");
    assert_eq!(raw(cluster), before);
    let versions = cluster.versions("numbers", "numbers.numbers.example.org");
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!(
        cluster.versions("numbers", "numbers.numbers.example.org"),
        versions
    );
}

#[test]
fn case_21_owners_are_linked_anew_and_nothing_is_collected() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    define(
        cluster,
        &definition("owners.example.org", "Owner", "Namespaced", &[("v1", true)]),
    );
    define(
        cluster,
        &definition("owners.example.org", "Land", "Cluster", &[("v1", true)]),
    );
    let uid = |kind: &str, name: &str| {
        cluster.object("owned", kind, name).unwrap()["metadata"]["uid"].clone()
    };
    let owned = |mut object: Value, owners: &[(&str, &str, &str, Value)]| {
        let owners: Vec<Value> = owners.iter().map(|(version, kind, name, uid)| json!({ "apiVersion": version, "kind": kind, "name": name, "uid": uid })).collect();
        object["metadata"]["ownerReferences"] = Value::Array(owners);
        object
    };
    let owner = |name: &str| json!({ "apiVersion": "owners.example.org/v1", "kind": "Owner", "metadata": { "name": name } });
    cluster.namespace("owned", &list(&[owner("top"), owner("gone"), json!({ "apiVersion": "owners.example.org/v1", "kind": "Land", "metadata": { "name": "land" } })]));
    let version = "owners.example.org/v1";
    cluster.create(
        "owned",
        &list(&[owned(
            deployment("second", json!({ "name": "c", "image": "i" })),
            &[(
                version,
                "Owner",
                "top",
                uid("owners.owners.example.org", "top"),
            )],
        )]),
    );
    cluster.create(
        "owned",
        &list(&[owned(
            config_map("third", json!({})),
            &[(
                "apps/v1",
                "Deployment",
                "second",
                uid("deployment", "second"),
            )],
        )]),
    );
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "fourth" }, "type": "Opaque" });
    cluster.create(
        "owned",
        &list(&[
            owned(
                secret,
                &[("v1", "ConfigMap", "third", uid("configmap", "third"))],
            ),
            owned(
                config_map("of-land", json!({})),
                &[(
                    version,
                    "Land",
                    "land",
                    uid("lands.owners.example.org", "land"),
                )],
            ),
        ]),
    );
    // Two that own each other, and one whose owner is not in the archive.
    cluster.create(
        "owned",
        &list(&[config_map("one", json!({})), config_map("two", json!({}))]),
    );
    for (this, other) in [("one", "two"), ("two", "one")] {
        let patch = json!({ "metadata": { "ownerReferences": [{ "apiVersion": "v1", "kind": "ConfigMap", "name": other, "uid": uid("configmap", other) }] } }).to_string();
        cluster.kubectl(
            &[
                "-n",
                "owned",
                "patch",
                "configmap",
                this,
                "--type=merge",
                "-p",
                &patch,
            ],
            "",
        );
    }
    cluster.create(
        "owned",
        &list(&[owned(
            config_map("orphan", json!({})),
            &[(
                version,
                "Owner",
                "gone",
                uid("owners.owners.example.org", "gone"),
            )],
        )]),
    );
    let home = home(
        cluster,
        &["owned"],
        "exclude = [\"owned/Owner.owners.example.org/gone\"]",
    );
    home.bk(&["backup"]).ended(0);
    cluster.delete_namespace("owned");
    let said = home.bk(&["restore", "--yes"]).ended(0);
    assert!(
        said.stderr
            .contains("`owned/ConfigMap/orphan` has lost its owner Owner/gone"),
        "{}",
        said.stderr
    );
    for (kind, name, owner_kind, owner) in [
        ("deployment", "second", "owners.owners.example.org", "top"),
        ("configmap", "third", "deployment", "second"),
        ("secret", "fourth", "configmap", "third"),
        ("configmap", "of-land", "lands.owners.example.org", "land"),
    ] {
        let object = cluster.object("owned", kind, name).unwrap();
        assert_eq!(
            object["metadata"]["ownerReferences"][0]["uid"],
            uid(owner_kind, owner),
            "{kind}/{name}"
        );
    }
    // The collector has looked: what it may delete is gone by the time it deletes this.
    cluster.create(
        "owned",
        &list(&[owned(
            config_map("canary", json!({})),
            &[(
                "v1",
                "ConfigMap",
                "never-was",
                json!("00000000-0000-0000-0000-000000000000"),
            )],
        )]),
    );
    cluster.until("the collector has run", || {
        cluster.object("owned", "configmap", "canary").is_none()
    });
    for (kind, name) in [
        ("deployment", "second"),
        ("configmap", "third"),
        ("secret", "fourth"),
        ("configmap", "of-land"),
        ("configmap", "orphan"),
        ("configmap", "one"),
        ("configmap", "two"),
    ] {
        assert!(
            cluster.object("owned", kind, name).is_some(),
            "{kind}/{name} was collected"
        );
    }
}

#[test]
fn case_22_what_is_being_deleted_is_left_out_and_a_namespace_that_goes_is_refused() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let mut held = config_map("held", json!({ "a": "b" }));
    held["metadata"]["finalizers"] = json!(["example.org/wait"]);
    let mut stuck = config_map("stuck", json!({ "a": "b" }));
    stuck["metadata"]["finalizers"] = json!(["example.org/never"]);
    cluster.namespace("going", &list(&[held, stuck]));
    cluster.kubectl(
        &[
            "-n",
            "going",
            "delete",
            "configmap",
            "stuck",
            "--wait=false",
        ],
        "",
    );
    let home = home(cluster, &["going"], "");
    let said = home.bk(&["backup"]).ended(0);
    assert!(
        said.stderr.contains("being deleted")
            || home.bk(&["show"]).ended(0).stdout.contains("being deleted"),
        "{}",
        said.stderr
    );
    cluster.kubectl(&["delete", "namespace", "going", "--wait=false"], "");
    cluster.until("it is going", || {
        cluster.object("default", "namespace", "going").unwrap()["status"]["conditions"]
            .to_string()
            .contains("finalizers")
    });
    let refused = home.bk(&["restore", "--yes"]).ended(6);
    assert!(
        refused.stderr.contains("`going` is being deleted")
            && refused.stderr.contains("example.org/wait"),
        "{}",
        refused.stderr
    );
    for name in ["held", "stuck"] {
        cluster.kubectl(
            &[
                "-n",
                "going",
                "patch",
                "configmap",
                name,
                "--type=merge",
                "-p",
                r#"{"metadata":{"finalizers":null}}"#,
            ],
            "",
        );
    }
    cluster.until("it is gone", || {
        cluster.object("default", "namespace", "going").is_none()
    });
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!(
        cluster.object("going", "configmap", "held").unwrap()["metadata"]["finalizers"],
        json!(["example.org/wait"])
    );
    assert!(cluster.object("going", "configmap", "stuck").is_none());
    cluster.kubectl(
        &[
            "-n",
            "going",
            "patch",
            "configmap",
            "held",
            "--type=merge",
            "-p",
            r#"{"metadata":{"finalizers":null}}"#,
        ],
        "",
    );
}

#[test]
fn case_24_an_extension_that_does_not_answer_makes_the_run_partial_and_stops_nothing_else() {
    let Some(cluster) = Kubernetes::start() else {
        return;
    };
    cluster.namespace("quiet", &list(&[config_map("c", json!({ "a": "b" }))]));
    let api = |group: &str| json!({ "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": { "name": format!("v1.{group}") }, "spec": { "group": group, "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": true, "service": { "name": "none", "namespace": "quiet" } } });
    let down = |group: &str| cluster.kubectl(&["create", "-f", "-"], &api(group).to_string());
    down("metrics.k8s.io");
    let stale = |name: &str| {
        let raw = cluster.kubectl(&["get", "apiservice", name, "-o", "json"], "");
        raw.contains("\"False\"")
    };
    cluster.until("it is known to be down", || stale("v1.metrics.k8s.io"));
    // What only measures is nobody's loss, and is said.
    let said = home(&cluster, &["quiet"], "").bk(&["backup"]).ended(0);
    assert!(said.stderr.contains("metrics.k8s.io"), "{}", said.stderr);
    down("dead.example.org");
    cluster.until("it is known to be down", || stale("v1.dead.example.org"));
    let home_all = home(&cluster, &["quiet"], "");
    let said = home_all.bk(&["backup"]).ended(3);
    assert!(
        said.stderr.contains("v1.dead.example.org"),
        "{}",
        said.stderr
    );
    home_all.bk(&["extract", "--allow-partial", "--into", "x"]);
    assert!(
        home_all
            .path("x/k8s/namespaces/quiet/configmap/c.yaml")
            .exists()
    );
    // No kind of it is selected, or all of them are left out.
    home(&cluster, &["quiet"], "kinds = [\"ConfigMap\", \"Secret\"]")
        .bk(&["backup"])
        .ended(0);
    home(
        &cluster,
        &["quiet"],
        "exclude = [\"*/*.dead.example.org/*\"]",
    )
    .bk(&["backup"])
    .ended(0);
}

#[test]
fn what_the_server_would_not_take_is_not_deleted_to_be_made_anew() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let mut definition = definition(
        "strict.example.org",
        "Strict",
        "Namespaced",
        &[("v1", true)],
    );
    define(cluster, &definition);
    cluster.namespace("strict", &list(&[json!({ "apiVersion": "strict.example.org/v1", "kind": "Strict", "metadata": { "name": "s" }, "spec": { "n": "text" } })]));
    let home = home(cluster, &["strict"], "");
    home.bk(&["backup"]).ended(0);
    cluster.kubectl(
        &["-n", "strict", "delete", "stricts.strict.example.org", "s"],
        "",
    );
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"] = json!({ "spec": { "type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": { "n": { "type": "integer" } } } });
    let change = json!({ "spec": { "versions": definition["spec"]["versions"] } }).to_string();
    cluster.kubectl(
        &[
            "patch",
            "crd",
            "stricts.strict.example.org",
            "--type=merge",
            "-p",
            &change,
        ],
        "",
    );
    let newer = json!({ "apiVersion": "strict.example.org/v1", "kind": "Strict", "metadata": { "name": "s" }, "spec": { "n": 1 } }).to_string();
    cluster.until("the new schema is served", || {
        let old = json!({ "apiVersion": "strict.example.org/v1", "kind": "Strict", "metadata": { "name": "x" }, "spec": { "n": "text" } }).to_string();
        !cluster.run(&["-n", "strict", "create", "--dry-run=server", "-f", "-"], &old).status.success()
    });
    cluster.create("strict", &newer);
    let said = home.bk(&["restore", "--yes", "--recreate"]).ended(3);
    assert!(said.stderr.contains("spec.n"), "{}", said.stderr);
    assert_eq!(
        cluster
            .object("strict", "stricts.strict.example.org", "s")
            .unwrap()["spec"]["n"],
        1
    );
}

#[test]
fn a_status_that_is_data_as_all_else_comes_back_and_is_not_taken_away() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let mut definition = definition("plain.example.org", "Plain", "Namespaced", &[("v1", true)]);
    definition["spec"]["versions"][0]
        .as_object_mut()
        .unwrap()
        .remove("subresources");
    define(cluster, &definition);
    cluster.namespace("plain", &list(&[json!({ "apiVersion": "plain.example.org/v1", "kind": "Plain", "metadata": { "name": "p" }, "spec": { "n": 1 }, "status": { "done": true } })]));
    let home = lost_and_restored(cluster, "plain");
    let object = || {
        cluster
            .object("plain", "plains.plain.example.org", "p")
            .unwrap()
    };
    assert_eq!(object()["status"]["done"], true);
    cluster.kubectl(
        &[
            "-n",
            "plain",
            "patch",
            "plains.plain.example.org",
            "p",
            "--type=merge",
            "-p",
            r#"{"spec":{"n":2},"status":{"runs":7}}"#,
        ],
        "",
    );
    home.bk(&["restore", "--yes"]).ended(0);
    assert_eq!(
        (&object()["spec"]["n"], &object()["status"]["runs"]),
        (&json!(1), &json!(7))
    );
}

#[test]
fn the_kit_holds_for_objects_of_two_namespaces() {
    let Some(cluster) = Kubernetes::shared() else {
        return;
    };
    let empty = |name: &str| cluster.namespace(name, "");
    empty("kit-a");
    empty("kit-b");
    let kubectl = bk_tests::binary::cache().join("kubectl/usr/bin/kubectl");
    let kubectl = format!(
        "{} --kubeconfig {}",
        kubectl.display(),
        cluster.kubeconfig().display()
    );
    let home = cluster.home("");
    let map = |namespace: &str, name: &str| {
        format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {{\"namespace\": \"{namespace}\", \"name\": \"{name}\", \"labels\": {{\"kit\": \"1\"}}}}, \"data\": {{\"is\": \"{name}\"}}}}"
        )
    };
    let all = [
        map("kit-a", "one"),
        map("kit-a", "two"),
        map("kit-b", "three"),
    ]
    .join("\n---\n");
    home.write("all.yaml", all);
    home.write("stranger.yaml", map("$1", "stranger"));
    let path = |name: &str| home.path(name).display().to_string();
    let wipe = format!(
        "for n in kit-a kit-b; do {kubectl} -n $n delete configmap -l kit=1 > /dev/null; done"
    );
    home.write("wipe.sh", &wipe);
    home.write(
        "seed.sh",
        format!("{wipe}; {kubectl} apply -f {}", path("all.yaml")),
    );
    home.write("digest.sh", format!("for n in kit-a kit-b; do {kubectl} -n $n get configmap -l kit=1 -o go-template='{{{{range .items}}}}{{{{.metadata.namespace}}}}{{{{\"\\t\"}}}}ConfigMap/{{{{.metadata.name}}}}{{{{\"\\t\"}}}}{{{{.data}}}}{{{{\"\\n\"}}}}{{{{end}}}}'; done"));
    home.write(
        "stranger.sh",
        format!(
            "sed \"s/\\$1/$1/\" {} | {kubectl} apply -f -",
            path("stranger.yaml")
        ),
    );
    let with = format!(
        "[settings]\nkubeconfig = \"{}\"\nnamespaces = [\"kit-a\", \"kit-b\"]\nkinds = [\"ConfigMap\"]\nselector = \"kit=1\"\nsecrets = \"omit\"\nready_seconds = 0\n[test]\nseed = [\"sh\", \"{}\"]\nwipe = [\"sh\", \"{}\"]\ndigest = [\"sh\", \"{}\"]\nstranger = [\"sh\", \"{}\", \"{{group}}\"]\n[test.not_asked]\nreplacing_a_group_removes_what_the_archive_has_not = \"objects are deleted only with --prune-objects\"\n",
        cluster.kubeconfig().display(),
        path("seed.sh"),
        path("wipe.sh"),
        path("digest.sh"),
        path("stranger.sh")
    );
    home.write("with.toml", with);
    let ran = home
        .bk(&["plugins", "test", "k8s", "--with", "with.toml"])
        .ended(0);
    let held = ran
        .stdout
        .lines()
        .filter(|line| line.starts_with("ok "))
        .count();
    assert!(held >= 9, "{}", ran.stdout);
}
