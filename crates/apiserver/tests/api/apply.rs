//! Server-side apply, and who owns what after every way of writing.

use http::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, CONFIG_MAPS, Client, Cluster, config_map};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const WEB: &str = "/apis/apps/v1/namespaces/default/deployments/web";
const MAP: &str = "/api/v1/namespaces/default/configmaps/a";

async fn patch(client: &Client, path: &str, media: &str, body: impl Into<String>) -> Answer {
    client.send(Method::PATCH, path, &[("content-type", media)], body.into()).await
}

async fn apply(client: &Client, path: &str, query: &str, config: &Value) -> Answer {
    patch(client, &format!("{path}?{query}"), "application/apply-patch+yaml", config.to_string()).await
}

fn map(data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
}

fn deployment(spec: &Value) -> Value {
    let mut config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    }});
    config["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    config
}

/// `manager operation subresource` of an entry.
fn owner(entry: &Value) -> String {
    let words = ["manager", "operation", "subresource"].map(|field| entry[field].as_str().unwrap_or_default());
    words.join(" ").trim().to_owned()
}

fn entries(object: &Value) -> &[Value] {
    object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Of each entry, sorted: entries stand in the order of their times.
fn owners(object: &Value) -> Vec<String> {
    let mut owners: Vec<String> = entries(object).iter().map(owner).collect();
    owners.sort();
    owners
}

fn fields(object: &Value, of: &str) -> Value {
    let entry = entries(object).iter().find(|entry| owner(entry) == of);
    entry.unwrap_or_else(|| panic!("{of} owns nothing: {object}"))["fieldsV1"].clone()
}

fn version(object: &Value) -> &Value {
    &object["metadata"]["resourceVersion"]
}

#[tokio::test]
async fn applying_makes_changes_and_removes() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let made = apply(&client, MAP, "fieldManager=me", &map(&json!({"x": "1", "y": "2"}))).await;
    assert_eq!(made.code, 201);
    let made = made.ok();
    assert_eq!(owners(&made), ["me Apply"]);
    assert_eq!(fields(&made, "me Apply"), json!({"f:data": {"f:x": {}, "f:y": {}}}));
    let again = apply(&client, MAP, "fieldManager=me", &map(&json!({"x": "1", "y": "2"}))).await;
    assert_eq!((again.code, again.ok()), (200, made.clone()), "nothing changed, not even the times");
    let less = apply(&client, MAP, "fieldManager=me", &map(&json!({"x": "3"}))).await.ok();
    assert_eq!(less["data"], json!({"x": "3"}));
    assert_ne!(version(&less), version(&made));
    // Another's field stays, whoever applied next to it.
    apply(&client, MAP, "fieldManager=you", &map(&json!({"z": "9"}))).await.ok();
    let none = apply(&client, MAP, "fieldManager=me", &map(&json!({}))).await.ok();
    assert_eq!(none["data"], json!({"z": "9"}));
    assert_eq!(owners(&none), ["me Apply", "you Apply"]);
    assert_eq!(client.get(MAP).await.ok(), none);
}

#[tokio::test]
async fn conflicts_say_with_whom_and_over_what() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    apply(&client, WEB, "fieldManager=first", &deployment(&json!({"replicas": 1}))).await.ok();
    let refused = apply(&client, WEB, "fieldManager=second", &deployment(&json!({"replicas": 2}))).await;
    assert_eq!(
        refused.json(),
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Conflict", "code": 409,
            "message": "Apply failed with 1 conflict: conflict with \"first\": .spec.replicas",
            "details": {"causes": [{
                "reason": "FieldManagerConflict", "message": "conflict with \"first\"", "field": ".spec.replicas"
            }]}
        })
    );
    // An update takes what it changes, and is named with the version that it used.
    let body = json!({"spec": {"replicas": 5, "template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}}});
    let updated = patch(
        &client,
        &format!("{WEB}?fieldManager=third"),
        "application/strategic-merge-patch+json",
        body.to_string(),
    )
    .await
    .ok();
    assert_eq!(
        fields(&updated, "third Update"),
        json!({"f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {"f:image": {}}}}}}})
    );
    let refused = apply(&client, WEB, "fieldManager=first", &deployment(&json!({"replicas": 1}))).await;
    let words = "Apply failed with 2 conflicts: conflicts with \"third\" using apps/v1:\n- .spec.replicas\n\
                 - .spec.template.spec.containers[name=\"c\"].image";
    assert_eq!(refused.failure(), (409, words.to_owned()));
    let forced = apply(&client, WEB, "fieldManager=first&force=true", &deployment(&json!({"replicas": 1}))).await.ok();
    assert_eq!(forced["spec"]["replicas"], 1);
    assert_eq!(owners(&forced), ["first Apply"]);
    // The same value is nobody's quarrel: both own it, and it goes with the last of them.
    apply(&client, WEB, "fieldManager=second", &deployment(&json!({"replicas": 1}))).await.ok();
    let left = apply(&client, WEB, "fieldManager=first", &deployment(&json!({}))).await.ok();
    assert_eq!(left["spec"]["replicas"], 1);
    assert_eq!(fields(&left, "second Apply")["f:spec"]["f:replicas"], json!({}));
}

#[tokio::test]
async fn lists_are_owned_as_their_kind_says() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let path = "/api/v1/namespaces/default/services/s";
    let service = |spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec});
    let mine = service(json!({"ports": [{"name": "a", "port": 80}], "selector": {"app": "web"}}));
    let made = apply(&client, path, "fieldManager=me", &mine).await.ok();
    let key = |port: u16| format!("k:{{\"port\":{port},\"protocol\":\"TCP\"}}");
    assert_eq!(
        fields(&made, "me Apply"),
        json!({"f:spec": {"f:ports": {key(80): {".": {}, "f:name": {}, "f:port": {}}}, "f:selector": {}}}),
        "what the server gave is not ours"
    );
    let yours = service(json!({"ports": [{"name": "b", "port": 81}]}));
    let both = apply(&client, path, "fieldManager=you", &yours).await.ok();
    let ports: Vec<&Value> = both["spec"]["ports"].as_array().unwrap().iter().map(|port| &port["port"]).collect();
    assert_eq!(ports, [80, 81]);
    let selector = service(json!({"selector": {"app": "web", "tier": "1"}}));
    let refused = apply(&client, path, "fieldManager=you", &selector).await;
    assert_eq!(refused.code, 409, "a selector is one: {:?}", refused.bytes);
    let gone = apply(&client, path, "fieldManager=me", &service(json!({"selector": {"app": "web"}}))).await.ok();
    assert_eq!(gone["spec"]["ports"].as_array().unwrap().len(), 1);
    assert_eq!(gone["spec"]["clusterIP"], made["spec"]["clusterIP"]);
}

#[tokio::test]
async fn what_is_refused() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let config = |change: &dyn Fn(&mut Value)| {
        let mut config = map(&json!({"x": "1"}));
        change(&mut config);
        config
    };
    let plain = map(&json!({"x": "1"}));
    for (query, config, code, words) in [
        ("", plain.clone(), 422, "fieldManager: Required value: is required for apply patch"),
        ("fieldManager=me", config(&|c| c["kind"] = "Secret".into()), 400, "invalid object type: /v1, Kind=Secret"),
        (
            "fieldManager=me",
            config(&|c| c["apiVersion"] = "apps/v1".into()),
            400,
            "invalid object type: apps/v1, Kind=ConfigMap",
        ),
        (
            "fieldManager=me",
            config(&|c| c["metadata"]["managedFields"] = json!([])),
            400,
            "metadata.managedFields must be nil",
        ),
        ("fieldManager=me", config(&|c| c["metadata"]["name"] = "b".into()), 400, "does not match the name on the URL"),
        (
            "fieldManager=me",
            config(&|c| c["metadata"]["namespace"] = "other".into()),
            400,
            "does not match the namespace",
        ),
        (
            "fieldManager=me",
            config(&|c| c["metadata"]["uid"] = "1-2".into()),
            409,
            "uid mismatch: the provided object specified uid 1-2",
        ),
        (
            "fieldManager=me",
            config(&|c| _ = c["metadata"].as_object_mut().unwrap().remove("name")),
            400,
            "the name of the object (a based on URL) was undeterminable: name must be provided",
        ),
        (
            "fieldManager=me",
            config(&|c| c["foo"] = 1.into()),
            400,
            "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .foo: field not declared in schema",
        ),
    ] {
        let (found, message) = apply(&client, MAP, query, &config).await.failure();
        assert!(found == code && message.contains(words), "{config}: {found} {message}");
    }
    for (media, body, code) in [
        ("application/apply-patch+cbor", "{}", 415),
        ("application/apply-patch+yaml", "a: [", 400),
        ("application/apply-patch+yaml", "- 1", 400),
    ] {
        assert_eq!(patch(&client, &format!("{MAP}?fieldManager=me"), media, body).await.code, code, "{body}");
    }
    assert_eq!(client.get(MAP).await.code, 404, "nothing of it was done");
    assert_eq!(apply(&client, &format!("{WEB}/status"), "fieldManager=me", &deployment(&json!({}))).await.code, 404);
    assert_eq!(apply(&client, "/api/v1/namespaces/none/configmaps/a", "fieldManager=me", &plain).await.code, 404);
    let forced = patch(&client, &format!("{MAP}?force=true"), "application/merge-patch+json", "{}").await;
    assert!(forced.failure().1.contains("force: Forbidden"), "{:?}", forced.bytes);
}

#[tokio::test]
async fn yaml_preconditions_and_dry_runs() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let media = "application/apply-patch+yaml";
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  x: \"1\"\n  x: \"2\"\n";
    let strict = patch(&client, &format!("{MAP}?fieldManager=me&fieldValidation=Strict"), media, yaml).await;
    let words = "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  \
                 line 7: key \"x\" already set in map";
    assert_eq!(strict.failure(), (400, words.to_owned()));
    let dry = patch(&client, &format!("{MAP}?fieldManager=me&dryRun=All"), media, yaml).await;
    assert_eq!(dry.headers["warning"], "299 - \"line 7: key \\\"x\\\" already set in map\"");
    assert_eq!((dry.code, &dry.ok()["data"]), (201, &json!({"x": "2"})));
    assert_eq!(client.get(MAP).await.code, 404);
    let made = patch(&client, &format!("{MAP}?fieldManager=me"), media, yaml).await.ok();
    let mut config = map(&json!({"x": "3"}));
    config["metadata"]["resourceVersion"] = "1".into();
    assert_eq!(apply(&client, MAP, "fieldManager=me", &config).await.code, 409);
    config["metadata"]["resourceVersion"] = version(&made).clone();
    config["metadata"]["uid"] = made["metadata"]["uid"].clone();
    let dry = apply(&client, MAP, "fieldManager=me&dryRun=All", &config).await.ok();
    assert_eq!(dry["data"]["x"], "3");
    assert_eq!(client.get(MAP).await.ok(), made);
    assert_eq!(apply(&client, MAP, "fieldManager=me", &config).await.ok()["data"]["x"], "3");
}

#[tokio::test]
async fn every_write_has_an_owner() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let agent = |agent: &'static str| [("user-agent", agent), ("content-type", "application/json")];
    let made = client
        .send(Method::POST, DEPLOYMENTS, &agent("tool/v1 (linux)"), deployment(&json!({"replicas": 1})).to_string())
        .await
        .ok();
    assert_eq!(owners(&made), ["tool Update"]);
    let owned = fields(&made, "tool Update");
    assert_eq!(owned["f:spec"]["f:replicas"], json!({}));
    assert_eq!(owned["f:spec"]["f:progressDeadlineSeconds"], json!({}), "defaults are its own, too");
    assert!(owned.get("f:metadata").is_none() && owned.get("f:kind").is_none(), "{owned}");
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!((&entry["apiVersion"], &entry["fieldsType"]), (&json!("apps/v1"), &json!("FieldsV1")));
    assert!(entry["time"].as_str().unwrap().ends_with('Z'));
    client
        .send(
            Method::PATCH,
            &format!("{WEB}/status"),
            &[("user-agent", "watcher/2"), ("content-type", "application/merge-patch+json")],
            json!({"status": {"replicas": 1}, "spec": {"replicas": 7}}).to_string(),
        )
        .await
        .ok();
    let scaled = client
        .send(
            Method::PATCH,
            &format!("{WEB}/scale?fieldManager=scaler"),
            &[("content-type", "application/merge-patch+json")],
            json!({"spec": {"replicas": 3}}).to_string(),
        )
        .await;
    assert_eq!(scaled.ok()["spec"]["replicas"], 3);
    let all = client.get(WEB).await.ok();
    assert_eq!(owners(&all), ["scaler Update scale", "tool Update", "watcher Update status"]);
    assert_eq!(fields(&all, "watcher Update status"), json!({"f:status": {"f:replicas": {}}}));
    assert_eq!(fields(&all, "scaler Update scale"), json!({"f:spec": {"f:replicas": {}}}));
    assert!(fields(&all, "tool Update")["f:spec"].get("f:replicas").is_none());
    // Who applies the deployment is told of the scaler; who applies the scale takes from it.
    let refused = apply(&client, WEB, "fieldManager=me", &deployment(&json!({"replicas": 1}))).await;
    let words = "Apply failed with 1 conflict: conflict with \"scaler\" with subresource \"scale\" using apps/v1: .spec.replicas";
    assert_eq!(refused.failure(), (409, words.to_owned()));
    let scale =
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": 4}});
    assert_eq!(apply(&client, &format!("{WEB}/scale"), "fieldManager=me", &scale).await.code, 409);
    let taken = apply(&client, &format!("{WEB}/scale"), "fieldManager=me&force=true", &scale).await.ok();
    assert_eq!((&taken["kind"], &taken["spec"]["replicas"]), (&json!("Scale"), &json!(4)));
    assert_eq!(fields(&client.get(WEB).await.ok(), "me Apply scale"), json!({"f:spec": {"f:replicas": {}}}));
}

#[tokio::test]
async fn status_is_applied_apart() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    apply(&client, WEB, "fieldManager=me", &deployment(&json!({"replicas": 1}))).await.ok();
    let mut config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "status": {"conditions": [{"type": "Available", "status": "True"}]}});
    let applied = apply(&client, &format!("{WEB}/status"), "fieldManager=me", &config).await.ok();
    assert_eq!(owners(&applied), ["me Apply", "me Apply status"]);
    assert_eq!(
        fields(&applied, "me Apply status"),
        json!({"f:status": {"f:conditions": {"k:{\"type\":\"Available\"}": {".": {}, "f:status": {}, "f:type": {}}}}})
    );
    assert_eq!(applied["spec"]["replicas"], 1);
    config["status"] = json!({"replicas": 1});
    let applied = apply(&client, &format!("{WEB}/status"), "fieldManager=me", &config).await.ok();
    assert_eq!(applied["status"], json!({"replicas": 1}));
    // Through the object itself, a status is nobody's and goes nowhere.
    config["status"] = json!({"replicas": 9});
    let applied = apply(&client, WEB, "fieldManager=other", &config).await.ok();
    assert_eq!(applied["status"], json!({"replicas": 1}));
    assert_eq!(owners(&applied), ["me Apply", "me Apply status"]);
}

#[tokio::test]
async fn owners_can_be_forgotten_and_written() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let made = client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    assert_eq!(owners(&made), ["unknown Update"]);
    let forgotten = client.merge(MAP, &json!({"metadata": {"managedFields": [{}]}})).await.ok();
    assert!(owners(&forgotten).is_empty());
    assert_ne!(version(&forgotten), version(&made));
    let changed = client.merge(MAP, &json!({"data": {"k": "w"}})).await.ok();
    assert!(owners(&changed).is_empty(), "nobody tracks it until it is applied to");
    let applied = apply(&client, MAP, "fieldManager=me", &map(&json!({"x": "1"}))).await.ok();
    assert_eq!(owners(&applied), ["before-first-apply Update", "me Apply"]);
    assert_eq!(fields(&applied, "before-first-apply Update"), json!({"f:data": {".": {}, "f:k": {}}}));
    let refused = apply(&client, MAP, "fieldManager=me", &map(&json!({"k": "1"}))).await;
    assert!(refused.failure().1.contains("\"before-first-apply\" using v1: .data.k"), "{:?}", refused.bytes);
    // As kubectl does when it goes over from client-side apply.
    let mut entries = applied["metadata"]["managedFields"].clone();
    entries.as_array_mut().unwrap().remove(1);
    entries[0]["fieldsV1"] = json!({"f:data": {"f:k": {}, "f:x": {}}});
    let operations = json!([
        {"op": "replace", "path": "/metadata/managedFields", "value": entries},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": version(&applied)}
    ]);
    let moved = patch(&client, MAP, "application/json-patch+json", operations.to_string()).await.ok();
    assert_eq!(fields(&moved, "me Apply"), json!({"f:data": {"f:k": {}, "f:x": {}}}));
    assert_eq!(patch(&client, MAP, "application/json-patch+json", operations.to_string()).await.code, 409);
    apply(&client, MAP, "fieldManager=me", &map(&json!({"k": "1"}))).await.ok();
    // Nonsense is passed over, and what there was stays.
    let odd = json!([{"manager": "x", "operation": "Mend", "fieldsType": "FieldsV1", "fieldsV1": {}}]);
    let kept = client.merge(MAP, &json!({"metadata": {"managedFields": odd}})).await.ok();
    assert_eq!(owners(&kept), ["me Apply"]);
    // In a new object, owners that somebody kept elsewhere come along.
    let mut copy = config_map("b");
    copy["metadata"]["managedFields"] = moved["metadata"]["managedFields"].clone();
    assert_eq!(owners(&client.post(CONFIG_MAPS, &copy).await.ok()), ["me Apply", "unknown Update"]);
    client
        .put(MAP, &{
            let mut body = config_map("a");
            body["metadata"]["managedFields"] = json!([]);
            body
        })
        .await
        .ok();
    assert!(owners(&client.get(MAP).await.ok()).is_empty());
}

#[tokio::test]
async fn many_who_update_are_remembered_as_one() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    for index in 0..12 {
        let path = format!("{MAP}?fieldManager=m{index:02}");
        client.merge(&path, &json!({"data": {format!("k{index}"): "v"}})).await.ok();
    }
    let object = client.get(MAP).await.ok();
    let owners = owners(&object);
    assert_eq!(owners.len(), 10);
    assert!(
        owners.contains(&"ancient-changes Update".to_owned()) && owners.contains(&"m11 Update".to_owned()),
        "{owners:?}"
    );
}

#[tokio::test]
async fn both_kinds_of_event_have_their_owners() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let body = json!({
        "metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}, "note": "hello",
        "reason": "Test", "action": "Testing", "type": "Normal", "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "example.com/test", "reportingInstance": "test-1"
    });
    client.post("/apis/events.k8s.io/v1/namespaces/default/events?fieldManager=one", &body).await.ok();
    let path = "/api/v1/namespaces/default/events/e?fieldManager=two";
    let changed = client.merge(path, &json!({"message": "other"})).await.ok();
    assert_eq!(fields(&changed, "two Update"), json!({"f:message": {}}));
    let left = fields(&changed, "one Update");
    assert!(left.get("f:note").is_none() && left.get("f:regarding").is_some(), "{left}");
}
