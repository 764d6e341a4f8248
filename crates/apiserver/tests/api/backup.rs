//! A backup that is taken while others write.

use portolan_apiserver::{User, backup};
use serde_json::json;

use crate::harness::{CONFIG_MAPS, Cluster, config_map};

#[tokio::test]
async fn a_running_cluster_is_backed_up_as_of_one_moment() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for index in 0..20 {
        client.post(CONFIG_MAPS, &config_map(&format!("c{index:02}"))).await.ok();
    }
    for user in [User::node("n1"), User::controllers()] {
        assert_eq!(cluster.client(&user).get("/backup").await.code, 403, "it holds the cluster's keys");
    }
    assert_eq!(cluster.stranger().get("/backup").await.code, 403);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let paths = json!({"metadata": {"name": "paths"}, "rules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]});
    client.post(&format!("{rbac}/clusterroles"), &paths).await.ok();
    let subjects = json!([{"kind": "User", "name": "monitor"}]);
    let role = json!({"kind": "ClusterRole", "name": "paths"});
    let binding = json!({"metadata": {"name": "paths"}, "roleRef": role, "subjects": subjects});
    client.post(&format!("{rbac}/clusterrolebindings"), &binding).await.ok();
    let monitor = cluster.client(&User::new("monitor", &[]));
    assert_eq!(monitor.get("/metrics").await.code, 200);
    assert_eq!(monitor.get("/backup").await.code, 403, "who may read all pages may not have all Secrets");
    let taken = client.get("/backup").await;
    assert_eq!(taken.code, 200);
    client.delete(CONFIG_MAPS).await.ok();

    let directory = tempfile::tempdir().unwrap();
    let (file, data) = (directory.path().join("backup"), tempfile::tempdir().unwrap());
    std::fs::write(&file, &taken.bytes).unwrap();
    let summary = backup::restore(&file, data.path()).unwrap();
    assert!(summary.objects > 20);
    let ca = cluster.api.ca().to_owned();
    drop(cluster.stop().await);
    let restored = Cluster::start_in(data, |_| {}).await;
    assert_eq!(restored.api.ca(), ca, "its clients trust it again");
    let client = restored.admin();
    let list = client.get(CONFIG_MAPS).await.ok();
    assert_eq!(list["items"].as_array().unwrap().len(), 20);
    // A client that knew the old cluster is told to list again, and writes go on.
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={}", summary.revision)).await;
    assert_eq!(watch.next().await.unwrap()["object"]["code"], 410);
    client.merge(&format!("{CONFIG_MAPS}/c00"), &json!({"data": {"k": "w"}})).await.ok();
}
