//! The source `k8s` on a real API with etcd and the controllers.

use bk_tests::binary::Home;
use bk_tests::kubernetes::Kubernetes;
use serde_json::Value;

/// A namespace with one of most things.
const SHOP: &str = include_str!("../golden/k8s/shop.yaml");
/// Kinds whose objects are compared.
const KINDS: &str = "configmaps,secrets,services,serviceaccounts,roles,rolebindings,deployments,statefulsets,daemonsets,cronjobs,ingresses,networkpolicies,poddisruptionbudgets,horizontalpodautoscalers,limitranges,resourcequotas,widgets.example.org,endpointslices";

fn home(cluster: &Kubernetes, more: &str) -> Home {
    cluster.home(more)
}

/// The shop, made as its operator makes it.
fn open_shop(cluster: &Kubernetes) {
    let definition = SHOP.split("---\n").next().unwrap();
    cluster.kubectl(&["apply", "-f", "-"], definition);
    cluster.kubectl(
        &[
            "wait",
            "--for=condition=Established",
            "crd/widgets.example.org",
            "--timeout=300s",
        ],
        "",
    );
    cluster.kubectl(&["apply", "-f", "-"], SHOP);
}

fn close_shop(cluster: &Kubernetes, namespace: &str) {
    cluster.kubectl(&["delete", "namespace", namespace, "--timeout=300s"], "");
}

/// What of an object is the same in another cluster.
fn comparable(contents: Vec<(String, Value)>) -> Vec<(String, Value)> {
    let made_again = |name: &str| name.contains("kube-root-ca.crt") || name.contains("\"default\"");
    let mut contents: Vec<_> = contents
        .into_iter()
        .filter(|(name, _)| !made_again(name))
        // Those of controllers have names of their own.
        .filter(|(_, object)| {
            let by = &object["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"];
            !by.as_str().unwrap_or_default().ends_with(".k8s.io")
        })
        .collect();
    for (_, object) in &mut contents {
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.remove("managedFields");
        if let Some(annotations) = metadata
            .get_mut("annotations")
            .and_then(Value::as_object_mut)
        {
            annotations.remove("deployment.kubernetes.io/revision");
        }
        if let Some(owners) = metadata
            .get_mut("ownerReferences")
            .and_then(Value::as_array_mut)
        {
            for owner in owners {
                owner["uid"] = Value::Null;
            }
        }
        let is_headless = object["spec"]["clusterIP"] == "None";
        if let Some(spec) = object["spec"].as_object_mut().filter(|_| !is_headless) {
            spec.remove("clusterIP");
            spec.remove("clusterIPs");
        }
    }
    contents
}

#[test]
fn a_namespace_that_was_deleted_comes_back_and_a_second_run_writes_nothing() {
    let (Some(cluster), Some(other)) = (Kubernetes::start(), Kubernetes::start()) else {
        return;
    };
    open_shop(&cluster);
    let home = home(&cluster, "namespaces = [\"shop\"]");
    home.bk(&["check"]).ended(0);
    let said = home.bk(&["backup"]).ended(0);
    println!("{}", said.stderr);
    let before = comparable(cluster.contents("shop", KINDS));
    assert!(before.len() > 20, "{}", before.len());
    // Onto itself: nothing is written.
    // But for the quota, of which its controller counts what is there.
    let versions = |cluster: &Kubernetes| {
        let path =
            "jsonpath={range .items[*]}{.kind}/{.metadata.name}={.metadata.resourceVersion} {end}";
        let kinds = KINDS.replace("resourcequotas,", "");
        cluster.kubectl(&["-n", "shop", "get", &kinds, "-o", path], "")
    };
    // Controllers write what they see of new objects, some as late as after 15 s: what `bk` would write it would write each time.
    let nothing_is_written = || {
        cluster.until("a restore that writes nothing", || {
            let untouched = versions(&cluster);
            home.bk(&["restore", "--yes"]).ended(0);
            versions(&cluster) == untouched
        });
    };
    nothing_is_written();
    let usual = changed_by_apply(&cluster);
    close_shop(&cluster, "shop");
    let restored = home.bk(&["restore", "--yes"]).ended(0);
    println!("{}", restored.stderr);
    assert_same(&before, &comparable(cluster.contents("shop", KINDS)));
    assert!(
        cluster
            .object("shop", "configmap", "bk-unfinished-restore")
            .is_none()
    );
    // Its operator's next apply finds no conflict, and changes what it changes each time.
    assert_eq!(changed_by_apply(&cluster), usual);
    nothing_is_written();
    // Into another, empty cluster, under another name too.
    let elsewhere = other.home_with(&home, "");
    elsewhere.bk(&["restore", "--yes"]).ended(0);
    assert_same(&before, &comparable(other.contents("shop", KINDS)));
    // A port of the nodes that somebody wished is taken by the first.
    let into_copy = [
        "restore",
        "--yes",
        "--only",
        "k8s/shop",
        "--into",
        "k8s/shop=copy",
    ];
    let taken = elsewhere.bk(&into_copy).ended(3);
    assert!(
        taken.stderr.contains("already allocated"),
        "{}",
        taken.stderr
    );
    let copied = comparable(other.contents("copy", KINDS));
    let names: Vec<_> = copied.iter().map(|(name, _)| name.as_str()).collect();
    assert!(
        names
            .iter()
            .any(|name| name.contains("bk-unfinished-restore"))
    );
    assert_eq!(names.len() - 1, before.len() - 1, "{names:?}");
    let binding = other.object("copy", "rolebinding", "reader").unwrap();
    assert_eq!(binding["subjects"][0]["namespace"], "copy");
}

/// What an apply of the same again says to have changed: where a null or an empty text is wished, that is never over.
fn changed_by_apply(cluster: &Kubernetes) -> Vec<String> {
    let said = cluster.kubectl(&["apply", "-f", "-"], SHOP);
    let changed = said.lines().filter(|line| !line.ends_with("unchanged"));
    changed.map(str::to_owned).collect()
}

#[track_caller]
fn assert_same(before: &[(String, Value)], after: &[(String, Value)]) {
    let names =
        |all: &[(String, Value)]| all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(before), names(after));
    for ((name, one), (_, two)) in before.iter().zip(after) {
        assert_eq!(one, two, "{name}");
    }
}

#[test]
fn what_is_there_is_merged_refused_or_named() {
    let Some(cluster) = Kubernetes::start() else {
        return;
    };
    open_shop(&cluster);
    let home = home(&cluster, "namespaces = [\"shop\"]");
    home.bk(&["backup"]).ended(0);
    cluster.kubectl(
        &[
            "-n",
            "shop",
            "patch",
            "configmap",
            "settings",
            "--type=merge",
            "-p",
            "{\"data\":{\"n\":\"changed\",\"more\":\"x\"}}",
        ],
        "",
    );
    cluster.kubectl(&["-n", "shop", "create", "configmap", "newer"], "");
    cluster.kubectl(&["-n", "shop", "delete", "secret", "password"], "");
    let refused = home
        .bk(&["restore", "--yes", "--existing", "refuse"])
        .ended(6);
    assert!(
        refused.stderr.contains("there already"),
        "{}",
        refused.stderr
    );
    home.bk(&["restore", "--yes", "--only", "k8s/shop/ConfigMap/settings"])
        .ended(0);
    let settings = cluster.object("shop", "configmap", "settings").unwrap();
    assert_eq!(settings["data"]["n"], "no");
    assert!(settings["data"].get("more").is_none());
    assert!(cluster.object("shop", "secret", "password").is_none());
    let replaced = home
        .bk(&["restore", "--yes", "--existing", "replace"])
        .ended(0);
    assert!(
        replaced.stderr.contains("ConfigMap/newer"),
        "{}",
        replaced.stderr
    );
    assert!(cluster.object("shop", "configmap", "newer").is_some());
    assert!(cluster.object("shop", "secret", "password").is_some());
    // What the server calls immutable is a conflict that names the field.
    cluster.kubectl(&["-n", "shop", "delete", "configmap", "fixed"], "");
    let other = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: fixed, namespace: shop}\nimmutable: true\ndata: {a: other}\n";
    cluster.kubectl(&["create", "-f", "-"], other);
    let conflict = home.bk(&["restore", "--yes"]).ended(3);
    assert!(conflict.stderr.contains("immutable"), "{}", conflict.stderr);
    // A half restored namespace is not backed up as good.
    assert!(
        cluster
            .object("shop", "configmap", "bk-unfinished-restore")
            .is_some()
    );
    let backup = home.bk(&["backup"]);
    assert_ne!(backup.code, 0, "{}", backup.stderr);
    assert!(
        backup.stderr.contains("did not finish"),
        "{}",
        backup.stderr
    );
    cluster.kubectl(&["-n", "shop", "delete", "configmap", "fixed"], "");
    home.bk(&["restore", "--yes"]).ended(0);
    home.bk(&["backup"]).ended(0);
}

#[test]
fn settings_that_select_nothing_and_rights_that_are_missing_are_named() {
    let Some(cluster) = Kubernetes::start() else {
        return;
    };
    open_shop(&cluster);
    for (more, code, said) in [
        ("namespaces = [\"shop\", \"none\"]", 5, "`none`"),
        ("kinds = [\"Deploymant\"]", 5, "Deploymant"),
        ("namespaces = [\"x*\"]", 5, "no namespace"),
        ("selector = \"a in (\"", 4, "parse requirement"),
        ("selector = \"a=b\"", 5, "matches nothing"),
    ] {
        let ran = home(&cluster, more).bk(&["backup"]);
        assert!(
            ran.code == code && ran.stderr.contains(said),
            "{more}: {code} {ran:?}"
        );
    }
    let unsaid = Home::new(&format!(
        "format = 1\nplugins = [\"k8s\", \"local\"]\n{}[sink.local]\npath = \"out\"\n",
        cluster.source("").replace("secrets = \"include\"\n", "")
    ));
    let ran = unsaid.bk(&["check"]).ended(4);
    assert!(
        ran.stderr.contains("redact") && ran.stderr.contains("omit"),
        "{}",
        ran.stderr
    );
    // An account of one namespace, without Secrets.
    let poor = home(&cluster, "namespaces = [\"shop\"]");
    poor.write("poor.conf", cluster.config_of("shop", "reader"));
    let settings = std::fs::read_to_string(poor.path("plugins.toml")).unwrap();
    let whole = cluster.kubeconfig().display().to_string();
    std::fs::write(
        poor.path("plugins.toml"),
        settings.replace(&whole, "poor.conf"),
    )
    .unwrap();
    let ran = poor.bk(&["check"]).ended(4);
    assert!(
        ran.stderr.contains("resources: [\"secrets\"]"),
        "{}",
        ran.stderr
    );
    assert!(
        !ran.stderr.contains("resources: [\"configmaps\"]"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_yaml_is_clean_and_kubectl_takes_it() {
    let Some(cluster) = Kubernetes::start() else {
        return;
    };
    open_shop(&cluster);
    let home = home(&cluster, "namespaces = [\"shop\"]");
    home.bk(&["backup"]).ended(0);
    home.bk(&["extract", "--into", "x"]).ended(0);
    let folder = home.path("x/k8s/namespaces/shop");
    // Read by another reader of YAML, odd texts are what they were.
    let odd = folder.join("configmap/settings.yaml");
    let settings = cluster.object("shop", "configmap", "settings").unwrap();
    let arguments = ["apply", "--dry-run=client", "-o", "json", "-f"];
    let arguments = arguments.into_iter().chain([odd.to_str().unwrap()]);
    let dry = cluster.kubectl(&arguments.collect::<Vec<_>>(), "");
    let dry: Value = serde_json::from_str(&dry).unwrap();
    assert_eq!(dry["data"], settings["data"]);
    // `kubectl diff` cannot print control characters, whoever wrote them.
    let plain_folder = home.path("plain");
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .args([&folder, &plain_folder])
        .status();
    assert!(copied.unwrap().success());
    std::fs::remove_file(plain_folder.join("configmap/settings.yaml")).unwrap();
    let differs = |cluster: &Kubernetes| {
        let diff = cluster.run(&["diff", "-R", "-f", plain_folder.to_str().unwrap()], "");
        let said = String::from_utf8_lossy(&diff.stdout).into_owned();
        assert!(
            diff.status.success(),
            "{said}{}",
            String::from_utf8_lossy(&diff.stderr)
        );
    };
    differs(&cluster);
    close_shop(&cluster, "shop");
    home.bk(&["restore", "--yes"]).ended(0);
    differs(&cluster);
    // Twice the same archive but for its time.
    home.bk(&["backup"]).ended(0);
    home.bk(&["extract", "--into", "y"]).ended(0);
    let plain = |name: &str| {
        let folder = home.path(&format!("{name}/k8s/namespaces"));
        let text = bk_tests::data::digest_text(&folder);
        let files = text.lines().filter(|line| !line.contains(": folder mode"));
        files.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(plain("x"), plain("y"));
    let omitted = self::home(&cluster, "namespaces = [\"shop\"]");
    let settings = std::fs::read_to_string(omitted.path("plugins.toml")).unwrap();
    for (word, code) in [("omit", 0), ("redact", 0)] {
        let settings = settings.replace("secrets = \"include\"", &format!("secrets = \"{word}\""));
        std::fs::write(omitted.path("plugins.toml"), settings).unwrap();
        omitted.bk(&["backup"]).ended(code);
        omitted.bk(&["extract", "--into", word]).ended(0);
        let secret = omitted.path(&format!("{word}/k8s/namespaces/shop/secret/password.yaml"));
        match word {
            "omit" => assert!(!secret.exists()),
            _ => {
                let text = std::fs::read_to_string(secret).unwrap();
                assert!(
                    text.contains("password:") && !text.contains("Z2VoZWlt"),
                    "{text}"
                );
            }
        }
    }
}
