//! The media types of answers: JSON, YAML and protobuf, and who gets which.

use http::Method;
use http_body_util::{BodyExt, Full};
use portolan_kinds::protobuf;
use serde_json::{Value, json};

use crate::custom::{crontab, definition};
use crate::harness::{Answer, CONFIG_MAPS, Client, Cluster, config_map};

const PROTOBUF: &str = protobuf::MEDIA_TYPE;
const YAML: &str = "application/yaml";

async fn get_as(client: &Client, path: &str, accept: &str) -> Answer {
    client.send(Method::GET, path, &[("accept", accept)], "").await
}

/// The object in an answer that says it is protobuf.
fn decoded(answer: &Answer) -> Value {
    assert_eq!(answer.headers["content-type"], PROTOBUF, "{:?}", answer.bytes);
    protobuf::to_json(&answer.bytes).unwrap()
}

fn from_yaml(answer: &Answer) -> Value {
    assert_eq!(answer.headers["content-type"], YAML, "{:?}", answer.bytes);
    serde_saphyr::from_slice(&answer.bytes).unwrap()
}

#[tokio::test]
async fn typed_clients_speak_protobuf_alone() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let body = protobuf::from_json(&config_map("a")).unwrap();
    let headers = [("content-type", PROTOBUF), ("accept", PROTOBUF)];
    let created = client.send(Method::POST, CONFIG_MAPS, &headers, body.clone()).await;
    assert_eq!(created.code, 201);
    let path = format!("{CONFIG_MAPS}/a");
    let object = client.get(&path).await.ok();
    assert_eq!(decoded(&created), object);
    assert_eq!(decoded(&get_as(&client, &path, PROTOBUF).await), object);
    let mut changed = object.clone();
    changed["data"]["k"] = "w".into();
    let updated = client.send(Method::PUT, &path, &headers, protobuf::from_json(&changed).unwrap()).await;
    assert_eq!(decoded(&updated)["data"]["k"], "w");
    // Mistakes, too, and what is done.
    let status = decoded(&client.send(Method::POST, CONFIG_MAPS, &headers, body).await);
    assert_eq!((&status["code"], &status["reason"]), (&json!(409), &json!("AlreadyExists")));
    let gone = decoded(&client.send(Method::DELETE, &path, &[("accept", PROTOBUF)], "").await);
    assert_eq!((&gone["status"], &gone["details"]["name"]), (&json!("Success"), &json!("a")));
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview", "metadata": {}});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let told = client.send(Method::POST, path, &headers, protobuf::from_json(&review).unwrap()).await;
    assert_eq!(decoded(&told)["status"]["userInfo"]["username"], "kubernetes-admin");
}

#[tokio::test]
async fn a_list_in_protobuf_is_one_message() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let expected = async |path: &str, accept: &str| {
        let list = get_as(&client, path, &format!("application/json{accept}")).await.ok();
        let text = |field: &str| list[field].as_str().unwrap().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let items: Vec<u8> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|item| {
                let mut item = item.clone();
                item["apiVersion"] = version.as_str().into();
                item["kind"] = kind.strip_suffix("List").unwrap().into();
                protobuf::item(&item).unwrap()
            })
            .collect();
        [protobuf::list_head(&version, &kind, &list["metadata"], items.len()), items].concat()
    };
    let partial = ";as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let empty = "/api/v1/namespaces/default/secrets";
    assert_eq!(get_as(&client, empty, PROTOBUF).await.bytes, expected(empty, "").await);
    // More than a piece, in number and in length.
    for number in 0..300 {
        let mut object = config_map(&format!("m{number}"));
        object["data"]["long"] = "x".repeat(500).into();
        client.post(CONFIG_MAPS, &object).await.ok();
    }
    for (query, accept) in [("", ""), ("?limit=7", ""), ("?fieldSelector=metadata.name%3Dm3", ""), ("", partial)] {
        let path = format!("{CONFIG_MAPS}{query}");
        let list = get_as(&client, &path, &format!("{PROTOBUF}{accept}")).await;
        assert_eq!(list.headers["content-type"], PROTOBUF);
        assert!(list.bytes == expected(&path, accept).await, "{path} {accept}");
    }
    let headers = [("accept", PROTOBUF), ("accept-encoding", "gzip")];
    let packed = client.send(Method::GET, CONFIG_MAPS, &headers, "").await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
}

#[tokio::test]
async fn a_watch_in_protobuf_is_a_row_of_frames() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let query = "?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let path = format!("{CONFIG_MAPS}{query}");
    for view in ["", ";as=PartialObjectMetadata;g=meta.k8s.io;v=v1"] {
        let mut lines = client.watch_as(&path, &format!("application/json{view}")).await;
        let request = http::Request::get(&path).header("accept", format!("{PROTOBUF}{view}"));
        let response = client.request(request.body(Full::default()).unwrap()).await;
        assert_eq!(response.headers()["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
        let mut frames = response.into_body();
        client.post(CONFIG_MAPS, &config_map("b")).await.ok();
        client.merge(&format!("{CONFIG_MAPS}/b"), &json!({"data": {"k": "w"}})).await.ok();
        client.delete(&format!("{CONFIG_MAPS}/b")).await.ok();
        let mut expected = Vec::new();
        for kind in ["ADDED", "BOOKMARK", "ADDED", "MODIFIED", "DELETED"] {
            let event = lines.next().await.unwrap();
            assert_eq!(event["type"], kind);
            expected.extend(protobuf::watch_event(kind, &protobuf::from_json(&event["object"]).unwrap()));
        }
        let mut told = Vec::new();
        while told.len() < expected.len() {
            let frame = tokio::time::timeout(crate::harness::DEADLINE, frames.frame()).await.unwrap().unwrap().unwrap();
            told.extend_from_slice(&frame.into_data().unwrap());
        }
        assert!(told == expected, "{view}: {}", String::from_utf8_lossy(&told));
    }
}

#[tokio::test]
async fn people_read_yaml() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    client.post(CONFIG_MAPS, &config_map("b")).await.ok();
    let rows = ";as=Table;v=v1;g=meta.k8s.io";
    for (path, view) in [
        (format!("{CONFIG_MAPS}/a"), ""),
        (format!("{CONFIG_MAPS}/none"), ""),
        (CONFIG_MAPS.to_owned(), ""),
        (CONFIG_MAPS.to_owned(), rows),
        (CONFIG_MAPS.to_owned(), ";as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"),
        (format!("{CONFIG_MAPS}/a"), rows),
        ("/api/v1/namespaces/default/secrets".to_owned(), ""),
        ("/api/v1".to_owned(), ""),
    ] {
        let json = without_ages(get_as(&client, &path, &format!("application/json{view}")).await.json());
        let yaml = without_ages(from_yaml(&get_as(&client, &path, &format!("{YAML}{view}")).await));
        assert_eq!(yaml, json, "{path} {view}");
    }
    let text = get_as(&client, &format!("{CONFIG_MAPS}/a"), YAML).await.bytes;
    assert!(text.starts_with(b"apiVersion: v1\ndata:\n  k: v\nkind: ConfigMap\nmetadata:\n"), "{text:?}");
    // Nobody could tell where an event ends.
    let watch = get_as(&client, &format!("{CONFIG_MAPS}?watch=1"), YAML).await;
    assert_eq!(
        from_yaml(&watch)["message"],
        "only the following media types are accepted: application/json;stream=watch, \
         application/vnd.kubernetes.protobuf;stream=watch"
    );
    assert_eq!(watch.code, 406);
}

/// A ConfigMap's last cell is its age, which grows between two answers.
fn without_ages(mut answer: Value) -> Value {
    for row in answer.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
        row["cells"].as_array_mut().unwrap().pop();
    }
    answer
}

#[tokio::test]
async fn what_somebody_defined_has_no_message() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition()).await.ok();
    let crontabs = "/apis/stable.example.com/v1/namespaces/default/crontabs";
    client.post(crontabs, &crontab("a")).await.ok();
    let refused = get_as(&client, crontabs, PROTOBUF).await;
    assert_eq!((refused.code, &decoded(&refused)["reason"]), (406, &json!("NotAcceptable")));
    let both = get_as(&client, crontabs, &format!("{PROTOBUF},application/json")).await.ok();
    assert_eq!(both["items"][0]["metadata"]["name"], "a");
    assert_eq!(from_yaml(&get_as(&client, crontabs, YAML).await), both);
    // But its metadata are everybody's, and its scale is the program's own.
    let partial = format!("{PROTOBUF};as=PartialObjectMetadata;v=v1;g=meta.k8s.io");
    let one = get_as(&client, &format!("{crontabs}/a"), &partial).await;
    assert!(String::from_utf8_lossy(&one.bytes).contains("PartialObjectMetadata\u{12}"), "{:?}", one.bytes);
    assert_eq!(decoded(&get_as(&client, &format!("{crontabs}/a/scale"), PROTOBUF).await)["spec"]["replicas"], 1);
}
