//! What a healthy API never shows, and lists that change while they are read: by a proxy before a real API, and by a real etcd that forgets.

use bk_tests::binary::Home;
use bk_tests::fault_proxy::{Fault, Proxy, When};
use bk_tests::kube_objects::list;
use bk_tests::kubernetes::{Kubernetes, Plain, plain_config};
use bk_tests::long;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn config_map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "n": name } })
}

/// Runs `bk` against the API behind a proxy.
fn through(home: &Home, proxy: &Proxy, arguments: &[&str]) -> bk_tests::binary::Ran {
    home.write("proxy.conf", plain_config(proxy.port));
    let kubeconfig = format!(
        "source.k8s.kubeconfig={}",
        home.path("proxy.conf").display()
    );
    let mut all = arguments.to_vec();
    all.extend(["--set", &kubeconfig]);
    tokio::task::block_in_place(|| home.bk(&all))
}

/// A cluster with a namespace `some` of these objects, and the door to it without encryption.
fn some(objects: &[Value]) -> Option<(Kubernetes, Plain, Home)> {
    let cluster = Kubernetes::start()?;
    cluster.namespace("some", &list(objects));
    let plain = cluster.plain();
    let home = cluster.home("namespaces = [\"some\"]");
    Some((cluster, plain, home))
}

#[tokio::test(flavor = "multi_thread")]
async fn case_25_answers_that_are_late_lost_or_cut_leave_one_object_and_the_true_outcome() {
    let Some((cluster, plain, home)) = some(&[config_map("a"), config_map("b")]) else {
        return;
    };
    home.bk(&["backup"]).ended(0);
    let is_made = |said: &str| {
        said.starts_with("POST /api/v1/namespaces/some/configmaps") && !said.contains("dryRun")
    };
    let is_written = |said: &str| {
        said.starts_with("PUT /api/v1/namespaces/some/configmaps/a") && !said.contains("dryRun")
    };
    for fault in [
        Fault::TooMany,
        Fault::LateAnswer,
        Fault::LostAnswer,
        Fault::ShortBody,
        Fault::Reset,
        Fault::Html,
    ] {
        for (what, fits) in [
            ("created", is_made as fn(&str) -> bool),
            ("updated", is_written),
        ] {
            if what == "created" {
                cluster.kubectl(&["-n", "some", "delete", "configmap", "a", "b"], "");
            } else {
                cluster.kubectl(
                    &[
                        "-n",
                        "some",
                        "patch",
                        "configmap",
                        "a",
                        "--type=merge",
                        "-p",
                        r#"{"data":{"n":"changed"}}"#,
                    ],
                    "",
                );
            }
            // The mark's own POST is the first of the kind.
            let proxy = Proxy::start(plain.port, fault, When::First(2, fits)).await;
            let ran = through(&home, &proxy, &["restore", "--yes", "-v"]).ended(0);
            for name in ["a", "b"] {
                let map = cluster.object("some", "configmap", name).unwrap();
                assert_eq!(map["data"]["n"], name, "{fault:?} {what}");
                // Who made it first owns its fields, as in the archive.
                let managers = map["metadata"]["managedFields"].to_string();
                assert!(
                    managers.contains("kubectl-create") && !managers.contains("\"bk"),
                    "{fault:?} {what}: {managers}"
                );
            }
            let count = if what == "created" {
                "2 created"
            } else {
                "1 updated"
            };
            assert!(
                ran.stderr.contains(count),
                "{fault:?} {what}: {}",
                ran.stderr
            );
            assert!(
                cluster
                    .object("some", "configmap", "bk-unfinished-restore")
                    .is_none()
            );
            assert!(proxy.log().iter().any(|said| fits(said)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_whose_answers_break_are_read_again() {
    let names: Vec<Value> = (0..120).map(|n| config_map(&format!("c{n:03}"))).collect();
    let Some((_cluster, plain, home)) = some(&names) else {
        return;
    };
    let is_page = |said: &str| {
        said.starts_with("GET /api/v1/namespaces/some/configmaps?") && said.contains("continue=")
    };
    for fault in [Fault::TooMany, Fault::ShortBody, Fault::Reset, Fault::Html] {
        let proxy = Proxy::start(plain.port, fault, When::First(2, is_page)).await;
        through(&home, &proxy, &["backup"]).ended(0);
        let shown = home.bk(&["show", "--units"]).ended(0);
        assert_eq!(
            shown.stdout.matches("ConfigMap/c").count(),
            120,
            "{fault:?}"
        );
    }
    // What is no list at all fails that kind by name, and the others are there.
    let proxy = Proxy::start(
        plain.port,
        Fault::Garbage,
        When::Every(|said| said.starts_with("GET /api/v1/namespaces/some/secrets")),
    )
    .await;
    let ran = through(&home, &proxy, &["backup"]).ended(3);
    assert!(ran.stderr.contains("some/Secret"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_23_a_list_that_is_forgotten_on_its_third_page_has_no_gaps_and_says_so() {
    let names: Vec<Value> = (0..260).map(|n| config_map(&format!("c{n:03}"))).collect();
    let Some((_cluster, plain, home)) = some(&names) else {
        return;
    };
    static PAGES: AtomicU64 = AtomicU64::new(0);
    let third = |said: &str| {
        said.contains("/some/configmaps?")
            && said.contains("continue=")
            && PAGES.fetch_add(1, Ordering::SeqCst) == 1
    };
    let proxy = Proxy::start(plain.port, Fault::Forgotten, When::Every(third)).await;
    let ran = through(&home, &proxy, &["backup"]).ended(0);
    assert!(
        ran.stderr
            .contains("the list of configmaps in `some` is of more than one instant"),
        "{}",
        ran.stderr
    );
    let shown = home.bk(&["show", "--units"]).ended(0);
    assert_eq!(shown.stdout.matches("ConfigMap/c").count(), 260);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_24_groups_that_answer_with_nonsense_leave_the_others_whole() {
    let Some((_cluster, plain, home)) = some(&[config_map("a")]) else {
        return;
    };
    for fault in [Fault::Html, Fault::Garbage] {
        let proxy = Proxy::start(
            plain.port,
            fault,
            When::Every(|said| said.starts_with("GET /apis/autoscaling/")),
        )
        .await;
        let ran = through(&home, &proxy, &["backup"]);
        assert_eq!(ran.code, 3, "{fault:?}: {}", ran.stderr);
        assert!(
            ran.stderr.contains("HorizontalPodAutoscaler"),
            "{fault:?}: {}",
            ran.stderr
        );
        home.bk(&[
            "extract",
            "--allow-partial",
            "--into",
            &format!("{fault:?}"),
        ]);
        assert!(
            home.path(&format!("{fault:?}/k8s/namespaces/some/configmap/a.yaml"))
                .exists(),
            "{fault:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn case_23_thousands_of_objects_with_writers_have_no_gaps_and_no_doubles_though_etcd_forgets()
{
    let count = long(3_000, 50_000);
    let Some(cluster) = Kubernetes::start_uncached() else {
        return;
    };
    let cluster = Arc::new(cluster);
    cluster.namespace("many", "");
    let began = std::time::Instant::now();
    let names: Vec<String> = (0..count).map(|n| format!("c{n:05}")).collect();
    for part in names.chunks(2_500) {
        cluster.kubectl(
            &["-n", "many", "create", "-f", "-"],
            &list(&part.iter().map(|name| config_map(name)).collect::<Vec<_>>()),
        );
    }
    println!("{count} ConfigMaps made in {:.0?}", began.elapsed());
    // Writers that never stop: what they make and delete lies between the others.
    let over = Arc::new(AtomicBool::new(false));
    let (writing, stop) = (cluster.clone(), over.clone());
    let writer = std::thread::spawn(move || {
        let mut rounds = 0_u32;
        while !stop.load(Ordering::SeqCst) {
            let name = format!("c{:05}x", rounds % 3_000);
            writing.kubectl(&["-n", "many", "create", "configmap", &name], "");
            writing.kubectl(&["-n", "many", "delete", "configmap", &name], "");
            rounds += 1;
        }
        rounds
    });
    // On its way, twice, the state of the list is forgotten.
    let pages = Arc::new(AtomicU64::new(0));
    let (seen, forgetting) = (pages.clone(), cluster.clone());
    let door = cluster.plain_uncached();
    let proxy = Proxy::watching(
        door.port,
        Arc::new(move |said: &str| {
            let is_page = said.contains("/many/configmaps?") && said.contains("continue=");
            let forget = is_page && [5, 20].contains(&seen.fetch_add(1, Ordering::SeqCst));
            let cluster = forgetting.clone();
            Box::pin(async move {
                if forget {
                    tokio::task::block_in_place(|| cluster.compact());
                }
            })
        }),
    )
    .await;
    let home =
        cluster.home("namespaces = [\"many\"]\nrequests_per_second = 50\nkinds = [\"ConfigMap\"]");
    home.write("proxy.conf", plain_config(proxy.port));
    let kubeconfig = format!(
        "source.k8s.kubeconfig={}",
        home.path("proxy.conf").display()
    );
    let began = std::time::Instant::now();
    let (ran, mib) =
        tokio::task::block_in_place(|| home.bk_watched(&["backup", "--set", &kubeconfig]));
    let took = began.elapsed();
    over.store(true, Ordering::SeqCst);
    let rounds = tokio::task::block_in_place(|| writer.join()).unwrap();
    drop(door);
    let ran = ran.ended(0);
    assert!(
        ran.stderr.contains("is of more than one instant"),
        "{}",
        ran.stderr
    );
    let requests = proxy.requests();
    println!(
        "{count} ConfigMaps backed up in {took:.1?}, {mib} MiB, {requests} requests, {rounds} made and deleted meanwhile, {} pages",
        pages.load(Ordering::SeqCst)
    );
    assert!(mib <= 256, "{mib} MiB");
    assert!(rounds > 0);
    // Two seconds' worth at once, then as many as are allowed.
    assert!(
        requests as f64 <= 50.0 * (took.as_secs_f64() + 2.0) + 1.0,
        "{requests} requests in {took:?}"
    );
    let shown = home.bk(&["show", "--units"]).ended(0);
    let found: Vec<&str> = shown
        .stdout
        .split_whitespace()
        .filter_map(|word| word.split("ConfigMap/").nth(1))
        .filter(|name| name.len() == 6)
        .collect();
    let unique: BTreeSet<&str> = found.iter().copied().collect();
    assert_eq!(unique.len(), found.len(), "doubles");
    assert_eq!(
        unique,
        names.iter().map(String::as_str).collect::<BTreeSet<_>>()
    );
}
