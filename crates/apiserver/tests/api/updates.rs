//! What updates, patches and deletions of another sort than usual are answered, as kube-apiserver 1.36.2 does it.

use http::Method;
use serde_json::{Value, json};

use crate::harness::{CONFIG_MAPS, Client, Cluster, config_map};

const SERVICES: &str = "/api/v1/namespaces/default/services";

async fn delete(client: &Client, path: &str, options: &Value) -> (u16, Value) {
    let answer = client.send(Method::DELETE, path, &[("content-type", "application/json")], options.to_string()).await;
    (answer.code, answer.json())
}

#[tokio::test]
async fn metadata_that_is_not_the_clients() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let path = format!("{CONFIG_MAPS}/a");
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    for (metadata, code, words) in [
        (json!({"uid": "x"}), 422, "metadata.uid: Invalid value: \"x\": field is immutable"),
        (
            json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
            422,
            "metadata.deletionTimestamp: Invalid value: \"2026-01-01T00:00:00Z\": field is immutable",
        ),
        (json!({"deletionGracePeriodSeconds": 5}), 422, "metadata.deletionGracePeriodSeconds: Invalid value: 5"),
        (
            json!({"name": null}),
            400,
            "the name of the object (a based on URL) was undeterminable: name must be provided",
        ),
        (json!({"name": "b"}), 400, "the name of the object (b) does not match the name on the URL (a)"),
        (json!({"creationTimestamp": null, "generation": 7, "namespace": null, "uid": null}), 200, ""),
    ] {
        let answer = client.merge(&path, &json!({"metadata": metadata})).await;
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        assert_eq!(answer.code, code, "{metadata} {message}");
        assert!(message.contains(words), "{metadata}: {message}");
    }
    let mut put = config_map("a");
    put["metadata"]["uid"] = "x".into();
    let (code, message) = client.put(&path, &put).await.failure();
    assert_eq!(code, 409);
    assert!(message.contains("Precondition failed: UID in precondition: x, UID in object meta: "), "{message}");
    // What says which object it replaces is not made anew.
    let service = json!({"metadata": {"name": "b", "uid": "x"}, "spec": {"ports": [{"port": 80}]}});
    assert_eq!(client.put(&format!("{SERVICES}/b"), &service).await.code, 409);
    assert_eq!(client.get(&format!("{SERVICES}/b")).await.code, 404);
}

#[tokio::test]
async fn objects_on_their_way_out() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut held = config_map("a");
    held["metadata"]["finalizers"] = json!(["orphan", "example.com/a"]);
    client.post(CONFIG_MAPS, &held).await.ok();
    let path = format!("{CONFIG_MAPS}/a");
    // The finalizers are those that are wanted, in whatever order.
    let (code, object) = delete(&client, &path, &json!({"propagationPolicy": "Orphan"})).await;
    assert_eq!((code, &object["metadata"]["finalizers"]), (200, &json!(["orphan", "example.com/a"])));
    let (code, message) = client.post(CONFIG_MAPS, &config_map("a")).await.failure();
    assert_eq!((code, message.as_str()), (409, "object is being deleted: configmaps \"a\" already exists"));
    // Who asks in the old way for all that hangs on it to go is told that it is not over.
    let (code, object) = delete(&client, &path, &json!({"orphanDependents": false})).await;
    assert_eq!((code, &object["metadata"]["finalizers"]), (202, &json!(["example.com/a"])));
    client.merge(&path, &json!({"metadata": {"finalizers": null}})).await.ok();
    assert_eq!(client.get(&path).await.code, 404);
    let made = client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let (code, status) = delete(&client, &path, &json!({"orphanDependents": false})).await;
    let details = json!({"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]});
    let success =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    assert_eq!((code, status), (200, success));
}

#[tokio::test]
async fn scales() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    let set = json!({"metadata": {"name": "a"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"x": "y"}},
        "template": {"metadata": {"labels": {"x": "y"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    client.post(sets, &set).await.ok();
    let scale = format!("{sets}/a/scale");
    for (body, code, words) in [
        (json!({"spec": {"replicas": 2}}), 400, "name must be provided"),
        (json!({"metadata": {"name": "b"}}), 400, "does not match the name on the URL"),
        (
            json!({"metadata": {"name": "a"}, "spec": {"replicas": "x"}}),
            400,
            "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal string into Go struct field \
             ScaleSpec.spec.replicas of type int32",
        ),
        (json!({"metadata": {"name": "a"}, "spec": {"replicas": -1}}), 422, "must be greater than or equal to 0"),
        (json!({"metadata": {"name": "a", "uid": "x"}, "spec": {"replicas": 2}}), 409, "UID in precondition: x"),
        (json!({"apiVersion": "apps/v1", "kind": "Scale", "metadata": {"name": "a"}}), 400, "apps/v1"),
    ] {
        let (found, message) = client.put(&scale, &body).await.failure();
        assert_eq!(found, code, "{body} {message}");
        assert!(message.contains(words), "{body}: {message}");
    }
    assert_eq!(client.merge(&scale, &json!({"metadata": {"uid": "x"}})).await.code, 409);
    assert_eq!(client.merge(&scale, &json!({"spec": {"replicas": 3}})).await.ok()["spec"]["replicas"], 3);
}

#[tokio::test]
async fn what_is_waited_for_is_given_to_no_pod_that_has_it() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let containers = json!([{"name": "c", "image": "i"}]);
    client.post(pods, &pod("bound", json!({"nodeName": "n", "containers": containers}))).await.ok();
    client.post(pods, &pod("free", json!({"containers": containers}))).await.ok();
    let nominate = async |name: &str, node: &str| {
        client.merge(&format!("{pods}/{name}/status"), &json!({"status": {"nominatedNodeName": node}})).await
    };
    assert_eq!(nominate("free", "n").await.ok()["status"]["nominatedNodeName"], "n");
    assert_eq!(nominate("free", "N").await.code, 422);
    let words = "Pod \"bound\" is invalid: status.nominatedNodeName: Forbidden: may not be set on pods that are already \
                 bound to a node";
    assert_eq!(nominate("bound", "n").await.failure(), (422, words.to_owned()));
}
