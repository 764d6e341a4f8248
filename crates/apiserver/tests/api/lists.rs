//! Lists: selectors, pages, revisions, forms.

use std::io::Read;

use http::Method;
use serde_json::{Value, json};

use crate::harness::{CONFIG_MAPS, Client, Cluster, config_map};

async fn fill(client: &Client, count: usize) {
    for index in 0..count {
        let mut body = config_map(&format!("c{index:02}"));
        body["metadata"]["labels"] = json!({"parity": if index % 2 == 0 { "even" } else { "odd" }});
        client.post(CONFIG_MAPS, &body).await.ok();
    }
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn enc(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[tokio::test]
async fn selectors() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    fill(&client, 4).await;
    for (query, expected) in [
        ("", vec!["c00", "c01", "c02", "c03"]),
        ("labelSelector=parity%3Deven", vec!["c00", "c02"]),
        ("labelSelector=parity+notin+(even)", vec!["c01", "c03"]),
        ("labelSelector=%21parity", vec![]),
        ("fieldSelector=metadata.name%3Dc01", vec!["c01"]),
        ("fieldSelector=metadata.name%21%3Dc01&labelSelector=parity%3Dodd", vec!["c03"]),
    ] {
        let list = client.get(&format!("{CONFIG_MAPS}?{query}")).await.ok();
        assert_eq!(names(&list), expected, "{query}");
        assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("ConfigMapList"), &json!("v1")));
        // Members of a list do not say what they are.
        assert!(list["items"].as_array().unwrap().iter().all(|item| item["kind"].is_null()));
    }
    for query in ["labelSelector=a+b", "fieldSelector=data.k%3Dv", "labelSelector=%3D"] {
        assert_eq!(client.get(&format!("{CONFIG_MAPS}?{query}")).await.code, 400, "{query}");
    }
}

#[tokio::test]
async fn one_namespace_is_not_another_that_begins_alike() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for namespace in ["ns1", "ns11"] {
        client.post("/api/v1/namespaces", &json!({"metadata": {"name": namespace}})).await.ok();
        client.post(&format!("/api/v1/namespaces/{namespace}/configmaps"), &config_map(namespace)).await.ok();
    }
    let all = "/api/v1/configmaps?fieldSelector=metadata.namespace!%3Dkube-system";
    assert_eq!(names(&client.get("/api/v1/namespaces/ns1/configmaps").await.ok()), ["ns1"]);
    assert_eq!(names(&client.get(all).await.ok()), ["ns1", "ns11"]);
    client.delete("/api/v1/namespaces/ns1/configmaps").await.ok();
    assert_eq!(names(&client.get(all).await.ok()), ["ns11"]);
}

#[tokio::test]
async fn pages_show_one_moment() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    fill(&client, 7).await;
    let first = client.get(&format!("{CONFIG_MAPS}?limit=3")).await.ok();
    assert_eq!(names(&first), ["c00", "c01", "c02"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    client.delete(&format!("{CONFIG_MAPS}/c04")).await.ok();
    client.post(CONFIG_MAPS, &config_map("c045")).await.ok();
    let mut token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    let mut rest = Vec::new();
    loop {
        let page = client.get(&format!("{CONFIG_MAPS}?limit=3&continue={token}")).await.ok();
        assert_eq!(page["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        rest.extend(names(&page));
        match page["metadata"]["continue"].as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(rest, ["c03", "c04", "c05", "c06"]);
    assert_eq!(client.get(&format!("{CONFIG_MAPS}?continue=nonsense")).await.code, 400);
    assert_eq!(client.get(&format!("{CONFIG_MAPS}?continue={token}&resourceVersion=5")).await.code, 400);
}

#[tokio::test]
async fn pages_of_a_selection() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    fill(&client, 7).await;
    let query = format!("{CONFIG_MAPS}?labelSelector={}&limit=2", enc("parity=even"));
    let first = client.get(&query).await.ok();
    assert_eq!(names(&first), ["c00", "c02"]);
    assert_eq!(first["metadata"]["remainingItemCount"], Value::Null, "not known with a selector");
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = client.get(&format!("{query}&continue={token}")).await.ok();
    assert_eq!(names(&second), ["c04", "c06"]);
    assert_eq!(second["metadata"]["continue"], Value::Null);
}

#[tokio::test]
async fn revisions() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    fill(&client, 1).await;
    let then = client.get(CONFIG_MAPS).await.ok()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    client.post(CONFIG_MAPS, &config_map("later")).await.ok();
    let list = |query: String| {
        let client = client.clone();
        async move { client.get(&format!("{CONFIG_MAPS}?{query}")).await }
    };
    let exact = list(format!("resourceVersion={then}&resourceVersionMatch=Exact")).await.ok();
    assert_eq!((names(&exact), &exact["metadata"]["resourceVersion"]), (vec!["c00".to_owned()], &json!(then)));
    // What clients relied on before there was resourceVersionMatch.
    assert_eq!(names(&list(format!("resourceVersion={then}&limit=10")).await.ok()), ["c00"]);
    let named = format!("resourceVersion={then}&limit=10&fieldSelector=metadata.name%3Dlater");
    assert_eq!(names(&list(named).await.ok()), ["later"], "of one object there are no pages");
    assert_eq!(names(&list("resourceVersion=0&limit=1".to_owned()).await.ok()), ["c00", "later"]);
    assert_eq!(names(&list("limit=1&limit=2".to_owned()).await.ok()), ["c00"], "of two the first counts");
    for fresh in ["resourceVersion=0".to_owned(), format!("resourceVersion={then}&resourceVersionMatch=NotOlderThan")] {
        assert_eq!(names(&list(fresh).await.ok()), ["c00", "later"]);
    }
    for (query, code) in [
        ("resourceVersionMatch=Exact", 422),
        ("resourceVersion=0&resourceVersionMatch=Exact", 422),
        ("resourceVersion=5&resourceVersionMatch=Nonsense", 422),
        ("sendInitialEvents=true", 422),
        ("resourceVersion=abc", 400),
    ] {
        assert_eq!(list(query.to_owned()).await.code, code, "{query}");
    }
    let page = list("limit=1".to_owned()).await.ok();
    client.post(CONFIG_MAPS, &config_map("latest")).await.ok();
    // There is no history from before a restart.
    let directory = cluster.stop().await;
    let cluster = Cluster::start_in(directory, |_| {}).await;
    let client = cluster.admin();
    let old = client.get(&format!("{CONFIG_MAPS}?resourceVersion={then}&resourceVersionMatch=Exact")).await;
    assert_eq!((old.code, &old.json()["reason"]), (410, &json!("Expired")));
    // Nor is the rest of a list as it was; whoever likes gets it as it is.
    let rest = async |page: &Value| {
        let token = page["metadata"]["continue"].as_str().unwrap();
        client.get(&format!("{CONFIG_MAPS}?limit=1&continue={token}")).await
    };
    let expired = rest(&page).await;
    assert_eq!((expired.code, &expired.json()["reason"]), (410, &json!("Expired")));
    let next = rest(&expired.json()).await.ok();
    assert_eq!(names(&next), ["later"]);
    assert_eq!(names(&rest(&next).await.ok()), ["latest"]);
}

#[tokio::test]
async fn a_revision_from_the_future_is_waited_for_a_while() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let now: u64 = client.get(CONFIG_MAPS).await.ok()["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { client.get(&format!("{CONFIG_MAPS}?resourceVersion={}", now + 1)).await.ok() })
    };
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    assert_eq!(names(&waiting.await.unwrap()), ["a"]);
    let late = client.get(&format!("{CONFIG_MAPS}/a?resourceVersion={}", now + 100)).await;
    assert_eq!(late.code, 504);
    assert_eq!(late.json()["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

#[tokio::test]
async fn forms() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    fill(&client, 2).await;
    let get = |path: String, accept: &'static str| {
        let client = client.clone();
        async move { client.send(Method::GET, &path, &[("accept", accept)], "").await }
    };
    let table = get(CONFIG_MAPS.into(), TABLE).await.ok();
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"].as_array().unwrap().len(), 2);
    assert_eq!(table["rows"][0]["object"]["metadata"]["name"], "c00");
    assert_eq!(table["rows"][0]["object"]["data"], Value::Null);
    assert_eq!(
        table["rows"][0]["cells"].as_array().unwrap().len(),
        table["columnDefinitions"].as_array().unwrap().len()
    );
    let old = get(CONFIG_MAPS.into(), "application/json;as=Table;v=v1beta1;g=meta.k8s.io").await.ok();
    assert_eq!([&old["apiVersion"], &old["rows"][0]["object"]["apiVersion"]], ["meta.k8s.io/v1beta1"; 2]);
    let row = get(format!("{CONFIG_MAPS}/c01"), TABLE).await.ok();
    assert_eq!(row["rows"].as_array().unwrap().len(), 1);
    let partial =
        get(CONFIG_MAPS.into(), "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await.ok();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"][1]["kind"], "PartialObjectMetadata");
    assert_eq!(partial["items"][1]["data"], Value::Null);
    assert_eq!(partial["items"][1]["metadata"]["name"], "c01");
    assert_eq!(get(CONFIG_MAPS.into(), "text/html").await.code, 406);
}

#[tokio::test]
async fn large_lists_are_compressed_for_who_takes_it() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for index in 0..3 {
        let mut body = config_map(&format!("big{index}"));
        body["data"]["k"] = "x".repeat(100_000).into();
        client.post(CONFIG_MAPS, &body).await.ok();
    }
    let plain = client.get(CONFIG_MAPS).await;
    let packed = client.send(Method::GET, CONFIG_MAPS, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    assert!(packed.bytes.len() * 10 < plain.bytes.len());
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(packed.bytes.as_ref()).read_to_end(&mut text).unwrap();
    assert_eq!(text, plain.bytes);
}

#[tokio::test]
async fn deletecollection_takes_what_the_selector_says() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    fill(&client, 5).await;
    let gone = client.delete(&format!("{CONFIG_MAPS}?labelSelector={}", enc("parity=odd"))).await.ok();
    assert_eq!(names(&gone), ["c01", "c03"]);
    assert_eq!(names(&client.get(CONFIG_MAPS).await.ok()), ["c00", "c02", "c04"]);
}

#[tokio::test]
async fn tables_carry_as_much_of_the_object_as_is_asked_for() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let object = async |query: &str| {
        let answer = client.send(Method::GET, &format!("{CONFIG_MAPS}{query}"), &accept, "").await;
        answer.ok()["rows"][0]["object"].clone()
    };
    let metadata = object("").await;
    assert_eq!((&metadata["kind"], &metadata["metadata"]["name"]), (&json!("PartialObjectMetadata"), &json!("a")));
    assert_eq!(metadata["data"], json!(null));
    // What `kubectl get --sort-by` asks for.
    let whole = object("?includeObject=Object").await;
    assert_eq!((&whole["kind"], &whole["data"]["k"]), (&json!("ConfigMap"), &json!("v")));
    assert_eq!(object("/a?includeObject=Object").await["data"]["k"], "v");
    assert_eq!(object("?includeObject=None").await, json!(null));
}
