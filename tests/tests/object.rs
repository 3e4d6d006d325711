//! The sink `object` on an emulator of Azure Blob Storage.

use bk_core::settings::Settings;
use bk_core::sink::Sink;
use bk_sinks::object::Object;
use bk_tests::engine::Site;
use bk_tests::fakes::FakeSource;
use bk_tests::object_store::{Kind, Server};
use bk_tests::sink_suite;
use std::sync::Arc;

/// The account that the emulator is made with; it is in its documents.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A sink in a folder of its own.
fn sink(server: &Server, prefix: &str) -> Object {
    let endpoint = format!("http://127.0.0.1:{}/{ACCOUNT}", server.port);
    let table = serde_json::json!({
        "url": "az://test", "prefix": format!("{prefix}/"),
        "options": { "azure_storage_account_name": ACCOUNT, "azure_storage_endpoint": endpoint, "azure_allow_http": "true" },
        "secrets": { "azure_storage_account_key": KEY },
    });
    let settings = Settings {
        instance: "object".into(),
        folder: ".".into(),
        table: table.as_object().unwrap().clone(),
    };
    Object::new(&settings).unwrap()
}

/// The container, by a request that is signed by hand: nothing else here makes one.
async fn make_container(server: &Server) {
    let script = "import sys, hmac, hashlib, base64, http.client, email.utils
port, account, key = sys.argv[1:]
date = email.utils.formatdate(usegmt=True)
text = 'PUT' + '\\n' * 12 + f'x-ms-date:{date}\\nx-ms-version:2021-08-06\\n/{account}/{account}/test\\nrestype:container'
sign = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()
c = http.client.HTTPConnection('127.0.0.1', int(port))
c.request('PUT', f'/{account}/test?restype=container', headers={'x-ms-date': date, 'x-ms-version': '2021-08-06', 'Content-Length': '0', 'Authorization': f'SharedKey {account}:{sign}'})
sys.exit(0 if c.getresponse().status in (201, 409) else 1)";
    let made = std::process::Command::new("python3")
        .args(["-c", script, &server.port.to_string(), ACCOUNT, KEY])
        .status()
        .unwrap();
    assert!(made.success(), "the container was not made");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_on_azurite_and_a_backup_comes_back() {
    let Some(server) = Server::shared(Kind::Azurite) else {
        return;
    };
    make_container(server).await;
    let cx = Site::default().context();
    let mut failed = Vec::new();
    for (name, check) in sink_suite::CHECKS {
        let sink: Arc<dyn Sink> = Arc::new(sink(server, name));
        sink.check(&cx).await.unwrap();
        if let Err(why) = check(&cx, &sink).await {
            failed.push((*name, why));
        }
    }
    assert_eq!(failed, []);
    for n in 1..=2 {
        let report = Site::default()
            .source("fake", FakeSource::small(3, 3))
            .sink("azure", sink(server, "site"))
            .at(&format!("2026-08-22T03:0{n}:00Z"))
            .backup()
            .await;
        assert!(report.causes.is_empty(), "{:?}", report.causes);
        assert!(report.sinks[0].verified);
    }
    let empty = FakeSource::small(0, 0);
    let restored = empty.store.clone();
    let site = Site::default()
        .source("fake", empty)
        .sink("azure", sink(server, "site"));
    let report = site.restore(Default::default()).await.unwrap();
    assert!(report.causes.is_empty(), "{:?}", report.causes);
    assert_eq!(
        *restored.lock().unwrap(),
        *FakeSource::small(3, 3).store.lock().unwrap()
    );
}
