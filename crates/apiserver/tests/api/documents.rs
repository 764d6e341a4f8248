//! The OpenAPI documents: kept, compressed, and told of only to who has another.

use std::io::Read;

use flate2::read::GzDecoder;
use http::Method;
use serde_json::{Value, json};

use crate::custom::definition;
use crate::harness::{Answer, Client, Cluster};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

async fn get_with(client: &Client, path: &str, name: &str, value: &str) -> Answer {
    client.send(Method::GET, path, &[(name, value)], "").await
}

fn url(index: &Value, path: &str) -> String {
    index["paths"][path]["serverRelativeURL"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_group_is_kept_under_the_hash_of_its_document() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let index = client.get("/openapi/v3").await;
    let tag = index.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(get_with(&client, "/openapi/v3", "if-none-match", &tag).await.code, 304);
    let apps = url(&index.ok(), "apis/apps/v1");
    let answer = client.get(&apps).await;
    assert_eq!(answer.headers["cache-control"], "public, immutable");
    assert!(answer.headers.contains_key("expires"));
    let tag = answer.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(apps, format!("/openapi/v3/apis/apps/v1?hash={}", tag.trim_matches('"')));
    let document = answer.ok();
    assert_eq!(get_with(&client, &apps, "if-none-match", &tag).await.code, 304);
    let packed = get_with(&client, &apps, "accept-encoding", "gzip").await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    let mut text = String::new();
    GzDecoder::new(&*packed.bytes).read_to_string(&mut text).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), document);
    // An address that is out of date leads to the one that is not.
    let moved = client.get("/openapi/v3/apis/apps/v1?hash=0").await;
    assert_eq!((moved.code, moved.headers["location"].to_str().unwrap()), (301, &*apps));
    assert!(!client.get("/openapi/v3/apis/apps/v1").await.headers.contains_key("expires"));
    assert_eq!(client.get("/openapi/v3/apis/none/v1").await.code, 404);
    for path in ["/openapi/v2", apps.as_str()] {
        assert_eq!(get_with(&client, path, "accept", "text/html").await.code, 406);
    }
}

#[tokio::test]
async fn definitions_change_their_own_group_alone() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let before = client.get("/openapi/v3").await.ok();
    client.post(DEFINITIONS, &definition()).await.ok();
    let with = client.get("/openapi/v3").await.ok();
    let crontabs = url(&with, "apis/stable.example.com/v1");
    assert_eq!(url(&with, "apis/apps/v1"), url(&before, "apis/apps/v1"));
    let described = async |url: &str| {
        let document = client.get(url).await.ok();
        document["components"]["schemas"]["com.example.stable.v1.CronTab"]["properties"]["spec"]["description"].clone()
    };
    assert_eq!(described(&crontabs).await, "When to do what.");
    let one = format!("{DEFINITIONS}/crontabs.stable.example.com");
    let mut changed = definition()["spec"]["versions"].clone();
    changed[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["description"] = "Whenever.".into();
    client.merge(&one, &json!({"spec": {"versions": changed}})).await.ok();
    let after = client.get("/openapi/v3").await.ok();
    assert_ne!(url(&after, "apis/stable.example.com/v1"), crontabs);
    assert_eq!(described(&url(&after, "apis/stable.example.com/v1")).await, "Whenever.");
    assert_eq!(client.get(&crontabs).await.code, 301);
    client.delete(&one).await.ok();
    // It is gone when its objects are.
    let mut watch = client.watch(&format!("{DEFINITIONS}?watch=1")).await;
    while client.get("/apis/stable.example.com/v1").await.code == 200 {
        watch.next().await;
    }
    assert_eq!(url(&client.get("/openapi/v3").await.ok(), "apis/stable.example.com/v1"), "");
    assert_eq!(client.get("/openapi/v3/apis/stable.example.com/v1").await.code, 404);
}

#[tokio::test]
async fn what_can_only_be_asked_is_described() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for (group, path, name, kind) in [
        (
            "apis/authentication.k8s.io/v1",
            "/apis/authentication.k8s.io/v1/tokenreviews",
            "authentication.v1.TokenReview",
            "TokenReview",
        ),
        (
            "apis/authorization.k8s.io/v1",
            "/apis/authorization.k8s.io/v1/namespaces/{namespace}/localsubjectaccessreviews",
            "authorization.v1.LocalSubjectAccessReview",
            "LocalSubjectAccessReview",
        ),
        (
            "api/v1",
            "/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
            "authentication.v1.TokenRequest",
            "TokenRequest",
        ),
        ("api/v1", "/api/v1/namespaces/{namespace}/pods/{name}/eviction", "policy.v1.Eviction", "Eviction"),
        ("api/v1", "/api/v1/namespaces/{namespace}/pods/{name}/binding", "core.v1.Binding", "Binding"),
    ] {
        let document = client.get(&format!("/openapi/v3/{group}")).await.ok();
        let post = &document["paths"][path]["post"];
        let schema = format!("io.k8s.api.{name}");
        let reference = json!({"$ref": format!("#/components/schemas/{schema}")});
        assert_eq!(post["requestBody"]["content"]["*/*"]["schema"], reference, "{path}");
        assert_eq!(post["x-kubernetes-group-version-kind"]["kind"], kind);
        let schema = &document["components"]["schemas"][&schema];
        assert_eq!(schema["x-kubernetes-group-version-kind"], json!([post["x-kubernetes-group-version-kind"]]));
        assert!(schema["properties"]["spec"].is_object() || kind == "Eviction" || kind == "Binding", "{schema}");
        let older = client.get("/openapi/v2").await.ok();
        assert!(older["paths"][path]["post"].is_object(), "{path}");
    }
}
