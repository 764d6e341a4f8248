//! The watch contract, sentence by sentence.

use http::Method;
use serde_json::{Value, json};

use crate::harness::{CONFIG_MAPS, Client, Cluster, config_map, pair};

async fn revision(client: &Client) -> String {
    client.get(CONFIG_MAPS).await.ok()["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_paths_of_old_are_watches_too() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.post(CONFIG_MAPS, &config_map("a")).await.ok();
    for path in ["/api/v1/watch/configmaps", "/api/v1/watch/namespaces/default/configmaps?watch=false"] {
        let mut watch = admin.watch(path).await;
        while watch.short().await != pair("ADDED", "a") {}
    }
    let mut one = admin.watch("/api/v1/watch/namespaces/default/configmaps/a").await;
    assert_eq!(one.short().await, pair("ADDED", "a"));
    let code = admin.post("/api/v1/watch/namespaces/default/configmaps", &config_map("b")).await.code;
    assert_eq!(code, 404);
}

#[tokio::test]
async fn from_a_revision_on_nothing_is_missed() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(CONFIG_MAPS, &config_map("before")).await.ok();
    let from = revision(&client).await;
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={from}")).await;
    client.merge(&format!("{CONFIG_MAPS}/a"), &json!({"data": {"k": "w"}})).await.ok();
    client.delete(&format!("{CONFIG_MAPS}/a")).await.ok();
    assert_eq!(watch.short().await, pair("ADDED", "a"));
    let modified = watch.next().await.unwrap();
    assert_eq!((&modified["type"], &modified["object"]["data"]["k"]), (&json!("MODIFIED"), &json!("w")));
    assert_eq!(modified["object"]["kind"], "ConfigMap");
    let deleted = watch.next().await.unwrap();
    assert_eq!((&deleted["type"], &deleted["object"]["data"]["k"]), (&json!("DELETED"), &json!("w")));
    assert!(version(&deleted["object"]) > version(&modified["object"]), "the revision of its deletion");
    assert_eq!(revision(&client).await, deleted["object"]["metadata"]["resourceVersion"].as_str().unwrap());
}

#[tokio::test]
async fn without_a_revision_the_state_comes_first() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    for query in ["watch=1", "watch=1&resourceVersion=0"] {
        let mut watch = client.watch(&format!("{CONFIG_MAPS}?{query}")).await;
        assert_eq!(watch.short().await, pair("ADDED", "a"));
        let name = format!("n{}", query.len());
        client.post(CONFIG_MAPS, &config_map(&name)).await.ok();
        assert_eq!(watch.short().await, pair("ADDED", &name));
        client.delete(&format!("{CONFIG_MAPS}/{name}")).await.ok();
    }
}

#[tokio::test]
async fn a_streaming_list_ends_with_its_bookmark() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for name in ["a", "b"] {
        client.post(CONFIG_MAPS, &config_map(name)).await.ok();
    }
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    for revision_query in ["", "&resourceVersion=0", "&resourceVersion=2"] {
        let mut watch = client.watch(&format!("{CONFIG_MAPS}?{query}{revision_query}")).await;
        assert_eq!(watch.short().await, pair("ADDED", "a"));
        assert_eq!(watch.short().await, pair("ADDED", "b"));
        let end = watch.next().await.unwrap();
        assert_eq!(end["type"], "BOOKMARK");
        assert_eq!(end["object"]["kind"], "ConfigMap");
        assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
        assert_eq!(end["object"]["metadata"]["resourceVersion"], revision(&client).await.as_str());
    }
    // To watch from nowhere in particular is the same in other words, for who knows bookmarks.
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?watch=1&allowWatchBookmarks=true")).await;
    assert_eq!(watch.short().await, pair("ADDED", "a"));
    assert_eq!(watch.short().await, pair("ADDED", "b"));
    let end = watch.next().await.unwrap();
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    // An empty list has an end too.
    let mut watch = client.watch(&format!("/api/v1/namespaces/default/secrets?{query}")).await;
    assert_eq!(watch.next().await.unwrap()["type"], "BOOKMARK");
    // And without initial events the stream begins after the revision.
    let from = revision(&client).await;
    let query = format!("watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion={from}");
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?{query}")).await;
    client.post(CONFIG_MAPS, &config_map("c")).await.ok();
    assert_eq!(watch.short().await, pair("ADDED", "c"));
}

#[tokio::test]
async fn senseless_combinations_are_refused() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for query in [
        "sendInitialEvents=true",
        "sendInitialEvents=true&resourceVersionMatch=Exact",
        "resourceVersionMatch=NotOlderThan&resourceVersion=5",
        "continue=x",
    ] {
        let answer = client.get(&format!("{CONFIG_MAPS}?watch=1&{query}")).await;
        assert_eq!(answer.code, 422, "{query}");
    }
    assert_eq!(client.get(&format!("{CONFIG_MAPS}?watch=1&fieldSelector=data%3D1")).await.code, 400);
    assert_eq!(client.get(&format!("{CONFIG_MAPS}?watch=1&labelSelector=%3D")).await.code, 400);
    assert_eq!(client.get(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=abc")).await.code, 400);
}

#[tokio::test]
async fn an_old_revision_is_told_in_the_stream() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let directory = cluster.stop().await;
    drop(client);
    let cluster = Cluster::start_in(directory, |_| {}).await;
    let client = cluster.admin();
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=1")).await;
    let error = watch.next().await.unwrap();
    assert_eq!(error["type"], "ERROR");
    assert_eq!((&error["object"]["code"], &error["object"]["reason"]), (&json!(410), &json!("Expired")));
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_after_a_restart_without_changes() {
    let cluster = Cluster::start().await;
    let from = revision(&cluster.admin()).await;
    let directory = cluster.stop().await;
    let cluster = Cluster::start_in(directory, |_| {}).await;
    let client = cluster.admin();
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={from}")).await;
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    assert_eq!(watch.short().await, pair("ADDED", "a"));
}

#[tokio::test]
async fn a_revision_from_the_future_is_504() {
    let cluster = Cluster::start().await;
    let answer = cluster.admin().get(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=100000")).await;
    assert_eq!(answer.code, 504);
    assert_eq!(answer.json()["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

#[tokio::test]
async fn an_object_that_leaves_the_selection_is_deleted_for_it() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let from = revision(&client).await;
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?watch=1&labelSelector=in%3Dyes&resourceVersion={from}")).await;
    client.post(CONFIG_MAPS, &config_map("never")).await.ok();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let path = format!("{CONFIG_MAPS}/a");
    for label in [json!("yes"), json!("no"), json!("yes")] {
        client.merge(&path, &json!({"metadata": {"labels": {"in": label}}})).await.ok();
    }
    client.delete(&path).await.ok();
    assert_eq!(watch.short().await, pair("ADDED", "a"));
    let left = watch.next().await.unwrap();
    assert_eq!(left["type"], "DELETED");
    assert_eq!(left["object"]["metadata"]["labels"]["in"], "yes", "as it was when it still matched");
    assert_eq!(watch.short().await, pair("ADDED", "a"));
    assert_eq!(watch.short().await, pair("DELETED", "a"));
}

#[tokio::test]
async fn fields_select_in_a_watch() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let pods = "/api/v1/namespaces/default/pods";
    let mut watch = client.watch("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn1").await;
    let mut named = client.watch(&format!("{pods}?watch=1&fieldSelector=metadata.name%3Dq")).await;
    for name in ["p", "q"] {
        let body = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        client.post(pods, &body).await.ok();
    }
    let binding = json!({"metadata": {"name": "q"}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(client.post(&format!("{pods}/q/binding"), &binding).await.code, 201);
    assert_eq!(watch.short().await, pair("ADDED", "q"));
    assert_eq!(named.short().await, pair("ADDED", "q"));
    assert_eq!(named.short().await, pair("MODIFIED", "q"));
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_up_and_at_shutdown() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=1")).await;
    assert_eq!(watch.next().await, None);
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    cluster.stop().await;
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn tables_and_metadata_are_watched_too() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let path = format!("{CONFIG_MAPS}?watch=1");
    let mut table = client.watch_as(&path, "application/json;as=Table;v=v1;g=meta.k8s.io").await;
    let mut partial = client.watch_as(&path, "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io").await;
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let event = table.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["kind"]), (&json!("ADDED"), &json!("Table")));
    assert_eq!(event["object"]["rows"][0]["object"]["metadata"]["name"], "a");
    assert_eq!(event["object"]["columnDefinitions"][0]["name"], "Name");
    client.post(CONFIG_MAPS, &config_map("b")).await.ok();
    let event = table.next().await.unwrap();
    assert_eq!(event["object"]["rows"][0]["cells"][0], "b");
    assert_eq!(event["object"]["columnDefinitions"], Value::Null, "who watches was told");
    let event = partial.next().await.unwrap();
    assert_eq!(event["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(event["object"]["data"], Value::Null);
}

#[tokio::test]
async fn a_client_that_does_not_read_stalls_nobody() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let from = revision(&client).await;
    let path = format!("{CONFIG_MAPS}?watch=1&resourceVersion={from}");
    let mut lazy = client.watch(&path).await;
    let mut eager = client.watch(&path).await;
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    // More than the history and the sockets' buffers hold.
    let mut last = String::new();
    for round in 0..60 {
        let value = format!("{round}{}", "x".repeat(500_000));
        last.clone_from(&value);
        let patch = json!({"data": {"k": value}}).to_string();
        let headers = [("content-type", "application/merge-patch+json")];
        client.send(Method::PATCH, &format!("{CONFIG_MAPS}/a"), &headers, patch).await.ok();
        eager.next().await.unwrap();
    }
    assert_eq!(eager.next().await.unwrap()["object"]["data"]["k"], last.as_str());
    // The lazy one gets a piece of the past, and then is told.
    let mut seen = Vec::new();
    while let Some(event) = lazy.next().await {
        seen.push(event["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen.last().map(String::as_str), Some("ERROR"));
    assert!(seen.len() < 60);
}

/// The state of a streaming list is that of one revision, though it goes on changing while it is told.
#[tokio::test]
async fn a_long_state_is_told_as_of_one_moment() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for index in 0..300 {
        client.post(CONFIG_MAPS, &config_map(&format!("c{index:03}"))).await.ok();
    }
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?{query}")).await;
    let mut seen = vec![watch.short().await];
    client.delete(&format!("{CONFIG_MAPS}/c299")).await.ok();
    client.post(CONFIG_MAPS, &config_map("c2995")).await.ok();
    let end = loop {
        let event = watch.next().await.unwrap();
        if event["type"] == "BOOKMARK" {
            break event;
        }
        seen.push((
            event["type"].as_str().unwrap().to_owned(),
            event["object"]["metadata"]["name"].as_str().unwrap().to_owned(),
        ));
    };
    let state: Vec<_> = (0..300).map(|index| pair("ADDED", &format!("c{index:03}"))).collect();
    assert_eq!(seen, state);
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(watch.short().await, pair("DELETED", "c299"));
    assert_eq!(watch.short().await, pair("ADDED", "c2995"));
}
