//! What the server says of itself to those who watch over it.

use http::Method;
use portolan_apiserver::User;
use serde_json::json;

use crate::harness::{CONFIG_MAPS, Client, Cluster, DEADLINE, config_map};

/// The sample that has all of `words`, once there is one.
async fn sample(client: &Client, words: &[&str], value: &str) {
    let found = async {
        loop {
            let page = client.get("/metrics").await;
            let text = String::from_utf8_lossy(&page.bytes).into_owned();
            let has = |line: &&str| words.iter().all(|word| line.contains(word)) && !line.contains("_bucket");
            if text.lines().find(has).is_some_and(|line| line.ends_with(&format!(" {value}"))) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("no {words:?} of {value}"));
}

#[tokio::test]
async fn requests_and_objects_are_counted() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for name in ["a", "b", "b"] {
        admin.post(CONFIG_MAPS, &config_map(name)).await;
    }
    let total = "apiserver_request_total{";
    let post = ["verb=\"POST\"", "resource=\"configmaps\"", "scope=\"resource\""];
    let [verb, resource, scope] = post;
    sample(&admin, &[total, verb, resource, scope, "code=\"201\""], "2").await;
    sample(&admin, &[total, verb, resource, scope, "code=\"409\""], "1").await;
    sample(&admin, &["apiserver_request_duration_seconds_count{", verb, resource], "3").await;
    sample(&admin, &["apiserver_resource_objects{", "group=\"\",resource=\"namespaces\""], "4").await;

    let watching = ["apiserver_longrunning_requests{", "verb=\"WATCH\"", resource];
    let watch = admin.watch(&format!("{CONFIG_MAPS}?watch=true")).await;
    sample(&admin, &watching, "1").await;
    drop(watch);
    sample(&admin, &watching, "0").await;
    sample(&admin, &["apiserver_current_inflight_requests{", "mutating"], "0").await;

    // As with Kubernetes, who watches over the cluster needs a role for it.
    let monitor = cluster.client(&User::new("prometheus", &[]));
    assert_eq!(monitor.get("/metrics").await.code, 403);
    let binding = json!({
        "metadata": {"name": "prometheus"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:monitoring"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "prometheus"}]
    });
    admin.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await.ok();
    let page = monitor.get("/metrics").await;
    assert_eq!(page.code, 200);
    assert_eq!(page.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let ready = monitor.get("/readyz?verbose").await;
    assert_eq!(String::from_utf8_lossy(&ready.bytes), "[+]ping ok\n[+]shutdown ok\nreadyz check passed\n");
    assert_eq!(monitor.get("/livez/ping").await.code, 200);
}

#[tokio::test]
async fn who_names_a_time_is_understood_or_told() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for path in ["/version?timeout=3m", "/version?timeout=0s", &format!("{CONFIG_MAPS}?timeout=32s")] {
        assert_eq!(admin.get(path).await.code, 200, "{path}");
    }
    let words = "invalid timeout specified in the request URL - time: invalid duration \"invalid\"".to_owned();
    assert_eq!(admin.get("/version?timeout=invalid").await.failure(), (400, words.clone()));
    let refused = admin.send(Method::DELETE, &format!("{CONFIG_MAPS}?timeout=invalid"), &[], "").await;
    assert_eq!(refused.failure(), (400, words));
}
