//! create, update, patch, delete and what they promise.

use http::Method;
use serde_json::{Value, json};

use crate::harness::{CONFIG_MAPS, Client, Cluster, config_map, pair};

fn named(name: &str) -> String {
    format!("{CONFIG_MAPS}/{name}")
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_object_lives() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let made = client.post(CONFIG_MAPS, &config_map("a")).await;
    assert_eq!(made.code, 201);
    let made = made.json();
    assert_eq!(made["metadata"]["namespace"], "default");
    assert_eq!(made["metadata"]["uid"].as_str().unwrap().len(), 36);
    assert!(made["metadata"]["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(client.get(&named("a")).await.ok(), made);

    let mut changed = made.clone();
    changed["data"]["k"] = "w".into();
    let put = client.put(&named("a"), &changed).await.ok();
    assert!(version(&put) > version(&made));
    assert_eq!(put["metadata"]["uid"], made["metadata"]["uid"]);

    let gone = client.delete(&named("a")).await.ok();
    assert_eq!((&gone["kind"], &gone["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(gone["details"]["uid"], made["metadata"]["uid"]);
    let failure = client.get(&named("a")).await.failure();
    assert_eq!(failure, (404, "configmaps \"a\" not found".to_owned()));
    assert_eq!(client.delete(&named("a")).await.code, 404);
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let cluster = Cluster::start().await;
    let made = cluster.admin().post(CONFIG_MAPS, &config_map("a")).await.ok();
    let kubernetes = cluster.admin().get("/api/v1/namespaces/default/services/kubernetes").await.ok();
    let authority = cluster.api.ca().to_owned();
    let directory = cluster.stop().await;
    let cluster = Cluster::start_in(directory, |_| {}).await;
    assert_eq!(cluster.admin().get(&named("a")).await.ok(), made);
    assert_eq!(cluster.api.ca(), authority);
    let again = cluster.admin().get("/api/v1/namespaces/default/services/kubernetes").await.ok();
    assert_eq!(again, kubernetes, "a start that changes nothing writes nothing");
}

#[tokio::test]
async fn what_every_cluster_has_comes_back() {
    let advertise = |config: &mut portolan_apiserver::Config| config.advertise = "192.0.2.1:6443".parse().ok();
    let cluster = Cluster::start_in(tempfile::tempdir().unwrap(), advertise).await;
    let client = cluster.admin();
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    for (list, name) in [
        ("/api/v1/namespaces/default/services", "kubernetes"),
        ("/api/v1/namespaces/default/endpoints", "kubernetes"),
        (slices, "kubernetes"),
        ("/api/v1/namespaces/kube-system/configmaps", "extension-apiserver-authentication"),
    ] {
        let mut watch = client.watch(&format!("{list}?watch=1&fieldSelector=metadata.name%3D{name}")).await;
        assert_eq!(watch.short().await, pair("ADDED", name));
        client.delete(&format!("{list}/{name}")).await.ok();
        assert_eq!(watch.short().await, pair("DELETED", name));
        assert_eq!(watch.short().await, pair("ADDED", name));
    }
    let trusted = client.get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication").await.ok();
    assert_eq!(trusted["data"], json!({"client-ca-file": cluster.api.ca()}));

    let mut watch = client.watch(&format!("{slices}?watch=1&fieldSelector=metadata.name%3Dkubernetes")).await;
    assert_eq!(watch.short().await, pair("ADDED", "kubernetes"));
    let elsewhere = json!({"endpoints": [{"addresses": ["192.0.2.9"]}]});
    client.merge(&format!("{slices}/kubernetes"), &elsewhere).await.ok();
    let addresses = |event: Option<Value>| event.unwrap()["object"]["endpoints"][0]["addresses"][0].clone();
    assert_eq!(addresses(watch.next().await), "192.0.2.9");
    assert_eq!(addresses(watch.next().await), "192.0.2.1");

    let mut namespaces = client.watch("/api/v1/namespaces?watch=1&fieldSelector=metadata.name%3Dkube-node-lease").await;
    assert_eq!(namespaces.short().await, pair("ADDED", "kube-node-lease"));
    client.delete("/api/v1/namespaces/kube-node-lease").await.ok();
    assert_eq!(namespaces.short().await, pair("MODIFIED", "kube-node-lease"));
    let mut going = client.get("/api/v1/namespaces/kube-node-lease").await.ok();
    going["spec"]["finalizers"] = json!([]);
    client.put("/api/v1/namespaces/kube-node-lease/finalize", &going).await.ok();
    assert_eq!(namespaces.short().await, pair("DELETED", "kube-node-lease"));
    assert_eq!(namespaces.short().await, pair("ADDED", "kube-node-lease"));
}

#[tokio::test]
async fn a_second_server_on_one_directory_is_refused() {
    let cluster = Cluster::start().await;
    let error =
        portolan_apiserver::ApiServer::open(portolan_apiserver::Config::new(cluster.path())).await.err().unwrap();
    assert!(error.to_string().contains(&cluster.path().display().to_string()), "{error}");
}

#[tokio::test]
async fn names_and_places_are_checked() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let twice = client.post(CONFIG_MAPS, &config_map("a")).await.failure();
    assert_eq!(twice, (409, "configmaps \"a\" already exists".to_owned()));
    let elsewhere = json!({"metadata": {"name": "b", "namespace": "other"}});
    assert_eq!(client.post(CONFIG_MAPS, &elsewhere).await.code, 400);
    assert_eq!(client.put(&named("a"), &config_map("b")).await.code, 400);
    let nowhere = client.post("/api/v1/namespaces/nowhere/configmaps", &config_map("a")).await.failure();
    assert_eq!(nowhere, (404, "namespaces \"nowhere\" not found".to_owned()));
    let versioned = json!({"metadata": {"name": "c", "resourceVersion": "5"}});
    let refused = client.post(CONFIG_MAPS, &versioned).await.failure();
    assert_eq!(refused, (400, "resourceVersion should not be set on objects to be created".to_owned()));
    assert_eq!(client.put(&named("absent"), &config_map("absent")).await.code, 404);
    assert_eq!(client.send(Method::PATCH, CONFIG_MAPS, &[], "{}").await.code, 405);
}

#[tokio::test]
async fn generated_names_differ() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let body = json!({"metadata": {"generateName": "web-"}});
    let first = client.post(CONFIG_MAPS, &body).await.ok();
    let second = client.post(CONFIG_MAPS, &body).await.ok();
    let name = first["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
}

#[tokio::test]
async fn who_saw_an_old_version_is_refused() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let seen = client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    client.merge(&named("a"), &json!({"data": {"k": "other"}})).await.ok();
    let mut mine = seen.clone();
    mine["data"]["k"] = "mine".into();
    let words = "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes \
                 to the latest version and try again";
    assert_eq!(client.put(&named("a"), &mine).await.failure(), (409, words.to_owned()));
    let patch = json!({"metadata": {"resourceVersion": seen["metadata"]["resourceVersion"]}, "data": {"k": "mine"}});
    assert_eq!(client.merge(&named("a"), &patch).await.code, 409);
    let uid = json!({"metadata": {"name": "a", "uid": "11111111-2222-3333-4444-555555555555"}});
    assert_eq!(client.put(&named("a"), &uid).await.code, 409);
    // Without a version, an update is unconditional.
    assert_eq!(client.put(&named("a"), &config_map("a")).await.code, 200);
}

#[tokio::test]
async fn a_write_that_changes_nothing_keeps_the_revision() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let made = client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    for again in [
        client.put(&named("a"), &made).await.ok(),
        client.put(&named("a"), &config_map("a")).await.ok(),
        client.merge(&named("a"), &json!({"data": {"k": "v"}})).await.ok(),
        client.merge(&named("a"), &json!({"metadata": {"managedFields": null}})).await.ok(),
    ] {
        assert_eq!(version(&again), version(&made));
    }
}

#[tokio::test]
async fn patches() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    for (media, patch, expected) in [
        ("application/merge-patch+json", json!({"data": {"k": null, "m": "1"}}), Ok(json!({"m": "1"}))),
        ("application/strategic-merge-patch+json", json!({"data": {"s": "2"}}), Ok(json!({"m": "1", "s": "2"}))),
        (
            "application/json-patch+json",
            json!([{"op": "test", "path": "/data/m", "value": "1"}, {"op": "remove", "path": "/data/m"}]),
            Ok(json!({"s": "2"})),
        ),
        ("application/json-patch+json", json!([{"op": "test", "path": "/data/s", "value": "9"}]), Err(422)),
        ("application/json-patch+json", json!({"data": {}}), Err(400)),
        ("application/merge-patch+json", json!({"data": 7}), Err(400)),
        ("application/apply-patch+cbor", json!({}), Err(415)),
        ("application/json", json!({}), Err(415)),
    ] {
        let answer = client.send(Method::PATCH, &named("a"), &[("content-type", media)], patch.to_string()).await;
        match expected {
            Ok(data) => assert_eq!(answer.ok()["data"], data, "{media} {patch}"),
            Err(code) => assert_eq!(answer.code, code, "{media} {patch} {:?}", answer.bytes),
        }
    }
    assert_eq!(client.merge(&named("absent"), &json!({})).await.code, 404);
}

#[tokio::test]
async fn many_writers_of_one_object_lose_nothing() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16 {
        let client = client.clone();
        writers.spawn(async move {
            client.merge(&named("a"), &json!({"data": {format!("w{writer}"): "x"}})).await.ok();
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    assert_eq!(client.get(&named("a")).await.ok()["data"].as_object().unwrap().len(), 17);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    assert_eq!(client.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a")).await.code, 201);
    assert_eq!(client.get(&named("a")).await.code, 404);
    let made = client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let patched = client.merge(&format!("{}?dryRun=All", named("a")), &json!({"data": {"k": "w"}})).await.ok();
    assert_eq!(patched["data"]["k"], "w");
    assert_eq!(client.delete(&format!("{}?dryRun=All", named("a"))).await.code, 200);
    assert_eq!(client.get(&named("a")).await.ok(), made);
}

#[tokio::test]
async fn yaml_is_as_good_as_json() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: web\ndata:\n  port: \"80\"\n";
    let made = client.send(Method::POST, CONFIG_MAPS, &[("content-type", "application/yaml")], body).await.ok();
    assert_eq!(made["data"]["port"], "80");
}

#[tokio::test]
async fn unknown_fields_warn_or_fail() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let body = |name: &str| json!({"metadata": {"name": name}, "data": {}, "foo": 1});
    let warned = client.post(CONFIG_MAPS, &body("a")).await;
    assert_eq!(warned.code, 201);
    assert_eq!(warned.headers["warning"], "299 - \"unknown field \\\"foo\\\"\"");
    let strict = client.post(&format!("{CONFIG_MAPS}?fieldValidation=Strict"), &body("b")).await.failure();
    assert_eq!(strict.0, 400);
    assert!(strict.1.contains("strict decoding error: unknown field \"foo\""), "{}", strict.1);
    let ignored = client.post(&format!("{CONFIG_MAPS}?fieldValidation=Ignore"), &body("c")).await;
    assert!(ignored.code == 201 && !ignored.headers.contains_key("warning"));
}

#[tokio::test]
async fn a_tls_secret_that_no_server_could_use_is_stored_with_a_warning() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let secrets = "/api/v1/namespaces/default/secrets";
    let told = "299 - \"tls: failed to find any PEM data in certificate input\"";
    let body =
        json!({"metadata": {"name": "a"}, "type": "kubernetes.io/tls", "stringData": {"tls.crt": "x", "tls.key": "y"}});
    let created = client.post(secrets, &body).await;
    assert_eq!((created.code, created.headers["warning"].to_str().unwrap()), (201, told));
    let labelled = client.merge(&format!("{secrets}/a"), &json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!((labelled.code, labelled.headers["warning"].to_str().unwrap()), (200, told));
}

#[tokio::test]
async fn finalizers_keep_an_object_until_they_are_gone() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut body = config_map("a");
    body["metadata"]["finalizers"] = json!(["example.com/f"]);
    client.post(CONFIG_MAPS, &body).await.ok();
    let deleting = client.delete(&named("a")).await.ok();
    assert!(deleting["metadata"]["deletionTimestamp"].is_string());
    let version_then = version(&deleting);
    assert_eq!(version(&client.delete(&named("a")).await.ok()), version_then, "asking again changes nothing");
    client.merge(&named("a"), &json!({"metadata": {"finalizers": null}})).await.ok();
    assert_eq!(client.get(&named("a")).await.code, 404);
}

#[tokio::test]
async fn propagation_is_left_to_the_garbage_collector() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        client.post(CONFIG_MAPS, &config_map("a")).await.ok();
        let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy}).to_string();
        let deleting =
            client.send(Method::DELETE, &named("a"), &[("content-type", "application/json")], body).await.ok();
        assert_eq!(deleting["metadata"]["finalizers"], json!([finalizer]));
        client.merge(&named("a"), &json!({"metadata": {"finalizers": []}})).await.ok();
        assert_eq!(client.get(&named("a")).await.code, 404);
    }
}

#[tokio::test]
async fn preconditions_of_a_delete_hold() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let made = client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let delete = |uid: Value| {
        let body = json!({"preconditions": {"uid": uid}}).to_string();
        let client = client.clone();
        async move { client.send(Method::DELETE, &named("a"), &[], body).await.code }
    };
    assert_eq!(delete(json!("other")).await, 409);
    assert_eq!(delete(made["metadata"]["uid"].clone()).await, 200);
}

#[tokio::test]
async fn a_namespace_goes_when_its_controller_says_so() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let namespaces = "/api/v1/namespaces";
    client.post(namespaces, &json!({"metadata": {"name": "ns"}})).await.ok();
    let deleting = client.delete("/api/v1/namespaces/ns").await.ok();
    assert_eq!(deleting["status"]["phase"], "Terminating");
    let refused = client.post("/api/v1/namespaces/ns/configmaps", &config_map("a")).await;
    // By this controllers know that trying again is of no use.
    assert_eq!(refused.json()["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let words =
        "configmaps \"a\" is forbidden: unable to create new content in namespace ns because it is being terminated";
    assert_eq!(refused.failure(), (403, words.to_owned()));
    assert_eq!(client.get("/api/v1/namespaces/ns").await.code, 200);
    let mut body = deleting.clone();
    body["spec"]["finalizers"] = json!([]);
    assert_eq!(client.put("/api/v1/namespaces/ns/finalize", &body).await.code, 200);
    assert_eq!(client.get("/api/v1/namespaces/ns").await.code, 404);
    assert_eq!(client.delete("/api/v1/namespaces/default").await.code, 403);
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "portolan/workload"}]}})
}

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn bind(client: &Client, name: &str) -> u16 {
    let body = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}});
    client.post(&format!("{PODS}/{name}/binding"), &body).await.code
}

#[tokio::test]
async fn a_pod_is_bound_once_and_ends_gracefully() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(PODS, &pod("p")).await.ok();
    assert_eq!(bind(&client, "p").await, 201);
    assert_eq!(bind(&client, "p").await, 409);
    let bound = client.get(&format!("{PODS}/p")).await.ok();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let ending = client.delete(&format!("{PODS}/p")).await.ok();
    assert_eq!(ending["metadata"]["deletionGracePeriodSeconds"], 30);
    // What the node's agent does when the containers have ended.
    let node = cluster.client(&portolan_apiserver::User::node("n1"));
    let other = cluster.client(&portolan_apiserver::User::node("n2"));
    let now = format!("{PODS}/p?gracePeriodSeconds=0");
    assert_eq!(other.delete(&now).await.code, 403);
    assert_eq!(node.delete(&now).await.code, 200);
    assert_eq!(client.get(&format!("{PODS}/p")).await.code, 404);
    client.post(PODS, &pod("q")).await.ok();
    client.delete(&format!("{PODS}/q")).await.ok();
    assert_eq!(client.get(&format!("{PODS}/q")).await.code, 404, "no node has it, so nobody ends it");
}

#[tokio::test]
async fn eviction_deletes() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(PODS, &pod("p")).await.ok();
    bind(&client, "p").await;
    let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"},
        "deleteOptions": {"kind": "DeleteOptions", "gracePeriodSeconds": 3}});
    let mut other = body.clone();
    other["metadata"]["name"] = "q".into();
    let (code, words) = client.post(&format!("{PODS}/p/eviction"), &other).await.failure();
    assert_eq!((code, words.as_str()), (400, "name in URL does not match name in Eviction object"));
    assert_eq!(client.post(&format!("{PODS}/p/eviction"), &body).await.code, 201);
    let ending = client.get(&format!("{PODS}/p")).await.ok();
    assert_eq!(ending["metadata"]["deletionGracePeriodSeconds"], 3);
    // What ends it is told to whoever looks.
    let conditions = ending["status"]["conditions"].as_array().unwrap();
    let told = conditions.iter().find(|condition| condition["type"] == "DisruptionTarget").unwrap();
    assert_eq!((&told["status"], &told["reason"]), (&json!("True"), &json!("EvictionByEvictionAPI")));
}

#[tokio::test]
async fn status_and_spec_do_not_mix() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(PODS, &pod("p")).await.ok();
    let path = format!("{PODS}/p");
    let status = json!({"status": {"phase": "Running"}, "metadata": {"labels": {"a": "1"}}});
    let through_spec = client.merge(&path, &status).await.ok();
    assert_ne!(through_spec["status"]["phase"], "Running");
    assert_eq!(through_spec["metadata"]["labels"]["a"], "1");
    let through_status = client
        .merge(&format!("{path}/status"), &json!({"status": {"phase": "Running"}, "spec": {"nodeName": "x"}}))
        .await
        .ok();
    assert_eq!(through_status["status"]["phase"], "Running");
    assert_eq!(through_status["spec"]["nodeName"], Value::Null);
    assert_eq!(client.get(&format!("{path}/status")).await.ok(), through_status);
}

#[tokio::test]
async fn scale() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let all = "/apis/apps/v1/namespaces/default/replicasets";
    let labels = json!({"app": "web"});
    let body = json!({"metadata": {"name": "r"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    }});
    let made = client.post(all, &body).await.ok();
    assert_eq!(made["metadata"]["generation"], 1);
    let path = format!("{all}/r/scale");
    // Which says of no object how many there should be must not make them none.
    let unnamed = "the name of the object (r based on URL) was undeterminable: name must be provided";
    assert_eq!(client.put(&path, &json!({})).await.failure(), (400, unnamed.to_owned()));
    let mut scale = client.get(&path).await.ok();
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(2), &json!("app=web")));
    scale["spec"]["replicas"] = 5.into();
    assert_eq!(client.put(&path, &scale).await.ok()["spec"]["replicas"], 5);
    assert_eq!(client.put(&path, &scale).await.code, 409, "the version in it is old now");
    assert_eq!(client.merge(&path, &json!({"spec": {"replicas": 1}})).await.ok()["spec"]["replicas"], 1);
    let scaled = client.get(&format!("{all}/r")).await.ok();
    assert_eq!((&scaled["spec"]["replicas"], &scaled["metadata"]["generation"]), (&json!(1), &json!(3)));
    assert_eq!(client.merge(&path, &json!({"spec": {"replicas": -1}})).await.code, 422);
}

#[tokio::test]
async fn an_event_is_one_object_in_two_groups() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let body = json!({
        "metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}, "note": "hello",
        "reason": "Test", "action": "Testing", "type": "Normal", "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "example.com/test", "reportingInstance": "test-1"
    });
    let made = client.post("/apis/events.k8s.io/v1/namespaces/default/events", &body).await.ok();
    assert_eq!((&made["apiVersion"], &made["note"]), (&json!("events.k8s.io/v1"), &json!("hello")));
    let core = client.get("/api/v1/namespaces/default/events/e").await.ok();
    assert_eq!((&core["apiVersion"], &core["message"]), (&json!("v1"), &json!("hello")));
    assert_eq!(core["involvedObject"]["name"], "p");
    let list = client.get("/apis/events.k8s.io/v1/events").await.ok();
    assert_eq!(list["items"][0]["note"], "hello");
}

#[tokio::test]
async fn a_field_that_stands_there_twice_is_spoken_of() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let body = r#"{"metadata": {"name": "a"}, "data": {"k": "1", "k": "2"}}"#;
    let send = async |query: &str| {
        client
            .send(Method::POST, &format!("{CONFIG_MAPS}?{query}"), &[("content-type", "Application/JSON")], body)
            .await
    };
    let words = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"data.k\"";
    assert_eq!(send("fieldValidation=Strict").await.failure(), (400, words.to_owned()));
    let both = r#"{"metadata": {"name": "a"}, "colour": "blue", "data": {"k": "1", "k": "2"}}"#;
    let path = format!("{CONFIG_MAPS}?fieldValidation=Strict");
    let answer = client.send(Method::POST, &path, &[("content-type", "application/json")], both).await;
    assert_eq!(answer.failure(), (400, words.replace("duplicate", "unknown field \"colour\", duplicate")));
    let answer = send("dryRun=All").await;
    assert_eq!(answer.headers["warning"], r#"299 - "duplicate field \"data.k\"""#);
    let answer = send("fieldValidation=Ignore").await;
    assert!(!answer.headers.contains_key("warning"));
    assert_eq!(answer.ok()["data"]["k"], "2", "the last one counts");
    let yaml = "metadata:\n  name: b\ndata:\n  k: 1\n  k: x\n";
    let answer = client.send(Method::POST, &path, &[("content-type", "application/yaml")], yaml).await;
    let words = "strict decoding error: yaml: unmarshal errors:\n  line 5: key \"k\" already set in map";
    assert!(answer.failure().1.ends_with(words), "{:?}", answer.bytes);
}

#[tokio::test]
async fn a_patch_that_says_something_twice_is_spoken_of() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let one = format!("{CONFIG_MAPS}/a");
    let merge = r#"{"data": {"k": "1", "k": "2"}}"#;
    let repeated = "duplicate field \"data.k\"".to_owned();
    let operation = r#"[{"op": "add", "path": "/data/k", "path": "/data/x", "value": "2", "colour": 1}]"#;
    let members = ["json patch duplicate field \"[0].path\"", "json patch unknown field \"[0].colour\""];
    for (kind, patch, told) in [
        ("merge-patch", merge, vec![repeated.clone()]),
        ("strategic-merge-patch", merge, vec![repeated]),
        ("json-patch", operation, members.map(str::to_owned).to_vec()),
    ] {
        let media = format!("application/{kind}+json");
        let send = async |query: &str| {
            client.send(Method::PATCH, &format!("{one}?{query}"), &[("content-type", &*media)], patch).await
        };
        let (code, message) = send("fieldValidation=Strict").await.failure();
        assert!(message.ends_with(&format!("strict decoding error: {}", told.join(", "))), "{message}");
        assert_eq!(code, 400);
        assert_eq!(client.get(&one).await.ok()["data"], json!({"k": "v"}));
        let warned = send("dryRun=All").await;
        let warnings: Vec<_> = warned.headers.get_all("warning").iter().map(|value| value.to_str().unwrap()).collect();
        let expected: Vec<_> = told.iter().map(|text| format!("299 - \"{}\"", text.replace('"', "\\\""))).collect();
        assert_eq!(warnings, expected, "{kind}");
        assert_eq!(warned.code, 200);
        assert!(!send("dryRun=All&fieldValidation=Ignore").await.headers.contains_key("warning"));
    }
}

#[tokio::test]
async fn whoever_is_refused_is_warned_all_the_same() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut object = config_map("NOT_A_NAME");
    object["colour"] = "blue".into();
    let refused = client.post(CONFIG_MAPS, &object).await;
    assert_eq!(refused.code, 422);
    assert_eq!(refused.headers["warning"], r#"299 - "unknown field \"colour\"""#);
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let patch = json!({"colour": "blue", "immutable": true, "metadata": {"uid": "another"}});
    let refused = client.merge(&format!("{CONFIG_MAPS}/a"), &patch).await;
    assert_eq!(refused.code, 422);
    assert_eq!(refused.headers["warning"], r#"299 - "unknown field \"colour\"""#);
}

#[tokio::test]
async fn every_pod_has_an_account() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    client.post(accounts, &json!({"metadata": {"name": "robot"}})).await.ok();
    for (name, given, expected) in [("a", None, "default"), ("b", Some("robot"), "robot")] {
        let spec = json!({"serviceAccountName": given, "containers": [{"name": "c", "image": "i"}]});
        let pod = json!({"metadata": {"name": name}, "spec": spec});
        let pod = client.post("/api/v1/namespaces/default/pods", &pod).await.ok();
        assert_eq!(pod["spec"]["serviceAccountName"], expected);
        assert_eq!(pod["spec"]["serviceAccount"], expected);
        let mount = &pod["spec"]["containers"][0]["volumeMounts"][0];
        assert_eq!(mount["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
        assert_eq!(mount["name"], pod["spec"]["volumes"][0]["name"]);
    }
    let spec = json!({"serviceAccountName": "nobody", "containers": [{"name": "c", "image": "i"}]});
    let refused =
        client.post("/api/v1/namespaces/default/pods", &json!({"metadata": {"name": "x"}, "spec": spec})).await;
    let words =
        "pods \"x\" is forbidden: error looking up service account default/nobody: serviceaccount \"nobody\" not found";
    assert_eq!(refused.failure(), (403, words.to_owned()));
    // The account of a new namespace may come a moment after the first pod.
    client.post("/api/v1/namespaces", &json!({"metadata": {"name": "new"}})).await.ok();
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let account = json!({"metadata": {"name": "default"}, "automountServiceAccountToken": false});
    let (pod, account) = tokio::join!(
        client.post("/api/v1/namespaces/new/pods", &pod),
        client.post("/api/v1/namespaces/new/serviceaccounts", &account)
    );
    account.ok();
    assert_eq!(pod.ok()["spec"].get("volumes"), None);
}
