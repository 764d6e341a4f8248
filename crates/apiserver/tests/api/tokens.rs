//! Tokens of ServiceAccounts, and what they are good for.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use portolan_apiserver::User;
use ring::hmac;
use serde_json::{Value, json};

use crate::harness::{Answer, Client, Cluster};

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const PODS: &str = "/api/v1/namespaces/default/pods";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

async fn with_token(cluster: &Cluster, token: &str, path: &str) -> Answer {
    let bearer = format!("Bearer {token}");
    cluster.stranger().send(Method::GET, path, &[("authorization", &bearer)], "").await
}

async fn token(client: &Client, account: &str, spec: Value) -> String {
    let answer = client.post(&format!("{ACCOUNTS}/{account}/token"), &json!({"spec": spec})).await.ok();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

fn claims(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

async fn robot(cluster: &Cluster) -> Client {
    let admin = cluster.admin();
    admin.post(ACCOUNTS, &json!({"metadata": {"name": "robot"}})).await.ok();
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let subject = json!({"kind": "ServiceAccount", "name": "robot", "namespace": "default"});
    let binding = json!({"metadata": {"name": "robot"}, "subjects": [subject],
        "roleRef": {"kind": "ClusterRole", "name": "cluster-admin"}});
    admin.post(bindings, &binding).await.ok();
    admin
}

#[tokio::test]
async fn a_token_is_the_account_until_it_goes() {
    let cluster = Cluster::start().await;
    let admin = robot(&cluster).await;
    let token = token(&admin, "robot", json!({"audiences": []})).await;
    let found = claims(&token);
    assert_eq!(found["sub"], "system:serviceaccount:default:robot");
    assert_eq!((&found["iss"], &found["aud"]), (&json!(ISSUER), &json!([ISSUER])));
    assert_eq!(found["exp"].as_i64().unwrap() - found["iat"].as_i64().unwrap(), 3600);
    assert_eq!(with_token(&cluster, &token, "/api/v1/secrets").await.code, 200);
    let other = self::token(&admin, "default", json!({})).await;
    let words = "secrets is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \"secrets\" in API \
                 group \"\" at the cluster scope";
    assert_eq!(with_token(&cluster, &other, "/api/v1/secrets").await.failure(), (403, words.to_owned()));
    for bad in ["x", "a.b.c", &token[..token.len() - 4], &format!("{token}x")] {
        assert_eq!(with_token(&cluster, bad, "/api/v1/secrets").await.failure(), (401, "Unauthorized".to_owned()));
    }
    let foreign = self::token(&admin, "robot", json!({"audiences": ["elsewhere"]})).await;
    assert_eq!(with_token(&cluster, &foreign, "/api/v1/secrets").await.code, 401);
    // It outlives a restart, and not the account, not even for one of the same name.
    let cluster = Cluster::start_in(cluster.stop().await, |_| {}).await;
    let admin = cluster.admin();
    assert_eq!(with_token(&cluster, &token, "/api/v1/secrets").await.code, 200);
    admin.delete(&format!("{ACCOUNTS}/robot")).await.ok();
    assert_eq!(with_token(&cluster, &token, "/api/v1/secrets").await.code, 401);
    admin.post(ACCOUNTS, &json!({"metadata": {"name": "robot"}})).await.ok();
    assert_eq!(with_token(&cluster, &token, "/api/v1/secrets").await.code, 401);
}

/// The key that checks tokens is public; it must make none, whatever a token's header asks for.
#[tokio::test]
async fn a_token_is_not_made_of_the_public_key() {
    let cluster = Cluster::start().await;
    let admin = robot(&cluster).await;
    let token = token(&admin, "robot", json!({})).await;
    let keys = admin.get("/openid/v1/jwks").await.ok();
    let public = &keys["keys"][0];
    let bytes = |field: &str| URL_SAFE_NO_PAD.decode(public[field].as_str().unwrap()).unwrap();
    let point = [vec![4], bytes("x"), bytes("y")].concat();
    let parts: Vec<&str> = token.split('.').collect();
    let kid = &public["kid"];
    let headers = [
        json!({"alg": "HS256", "kid": kid}),
        json!({"alg": "none", "kid": kid}),
        json!({"alg": "ES256", "kid": "../../ca.key"}),
        json!({"alg": "ES256", "jwk": public}),
    ];
    for header in headers {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), parts[1]);
        for secret in [point.clone(), public.to_string().into_bytes(), Vec::new()] {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
            let forged = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes())));
            assert_eq!(with_token(&cluster, &forged, "/api").await.code, 401, "{header}");
        }
        for tail in [".", "", &*format!(".{}", parts[2])] {
            assert_eq!(with_token(&cluster, &format!("{signed}{tail}"), "/api").await.code, 401, "{header} {tail}");
        }
    }
    let long = format!("{token}.{}", "x".repeat(40_000));
    assert_eq!(with_token(&cluster, &long, "/api").await.code, 401);
    assert_eq!(with_token(&cluster, &token, "/api").await.code, 200);
}

#[tokio::test]
async fn a_token_of_another_cluster_is_none() {
    let (cluster, other) = (Cluster::start().await, Cluster::start().await);
    let token = token(&other.admin(), "default", json!({})).await;
    assert_eq!(with_token(&other, &token, "/api").await.code, 200);
    assert_eq!(with_token(&cluster, &token, "/api").await.code, 401);
}

#[tokio::test]
async fn a_pods_token_ends_with_the_pod_and_only_its_node_gets_it() {
    let cluster = Cluster::start().await;
    let admin = robot(&cluster).await;
    let spec = json!({"serviceAccountName": "robot", "containers": [{"name": "c", "image": "i"}]});
    let pod = admin.post(PODS, &json!({"metadata": {"name": "p"}, "spec": spec})).await.ok();
    let target = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(admin.post(&format!("{PODS}/p/binding"), &target).await.code, 201);
    let bound = |uid: &Value| json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid}});
    let uid = &pod["metadata"]["uid"];
    let path = format!("{ACCOUNTS}/robot/token");
    let (one, two) = (cluster.client(&User::node("n1")), cluster.client(&User::node("n2")));
    assert_eq!(two.post(&path, &json!({"spec": bound(uid)})).await.code, 403);
    for spec in [json!({}), json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p"}})] {
        assert_eq!(one.post(&path, &json!({"spec": spec})).await.code, 403, "{spec}");
    }
    let mut elsewhere = bound(uid);
    elsewhere["audiences"] = json!(["elsewhere"]);
    assert_eq!(one.post(&path, &json!({"spec": elsewhere})).await.code, 403);
    let token = token(&one, "robot", bound(uid)).await;
    let myself = "/apis/authentication.k8s.io/v1/tokenreviews";
    let review = admin.post(myself, &json!({"spec": {"token": token}})).await.ok();
    let (status, user) = (&review["status"], &review["status"]["user"]);
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!([ISSUER])));
    assert_eq!(user["username"], "system:serviceaccount:default:robot");
    assert_eq!(user["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    assert_eq!(user["extra"]["authentication.kubernetes.io/pod-uid"], json!([uid]));
    assert_eq!(user["extra"]["authentication.kubernetes.io/node-name"], json!(["n1"]));
    let conflict = admin.post(&path, &json!({"spec": bound(&json!("other"))})).await;
    assert_eq!(conflict.code, 409);
    admin.delete(&format!("{PODS}/p?gracePeriodSeconds=0")).await.ok();
    assert_eq!(with_token(&cluster, &token, "/api/v1/secrets").await.code, 401);
    let review = admin.post(myself, &json!({"spec": {"token": token}})).await.ok();
    assert_eq!(review["status"]["authenticated"], Value::Null);
    assert!(review["status"]["error"].is_string());
}

#[tokio::test]
async fn what_cannot_be_asked_for() {
    let cluster = Cluster::start().await;
    let admin = robot(&cluster).await;
    let path = format!("{ACCOUNTS}/robot/token");
    for (body, code, words) in [
        (json!({"spec": {"expirationSeconds": 599}}), 422, "may not specify a duration less than 10 minutes"),
        (
            json!({"spec": {"expirationSeconds": 1_i64 << 33}}),
            422,
            "may not specify a duration larger than 2^32 seconds",
        ),
        (json!({"metadata": {"name": "x"}}), 422, "must match the service account name if specified"),
        (json!({"metadata": {"uid": "x"}}), 409, "does not match the UID of the service account"),
        (
            json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "none"}}}),
            404,
            "pods \"none\" not found",
        ),
        (
            json!({"spec": {"boundObjectRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}}),
            400,
            "cannot bind token to object of type apps/v1, Kind=Deployment",
        ),
        (
            json!({"spec": {"audiences": "x"}}),
            400,
            "TokenRequest in version \"v1\" cannot be handled as a TokenRequest",
        ),
        (
            json!({"kind": "Pod"}),
            400,
            "Pod in version \"v1\" cannot be handled as a TokenRequest: no kind \"Pod\" is registered",
        ),
    ] {
        let (found, message) = admin.post(&path, &body).await.failure();
        assert_eq!(found, code, "{body} {message}");
        assert!(message.contains(words), "{message}");
    }
    let none = admin.post(&format!("{ACCOUNTS}/none/token"), &json!({})).await.failure();
    assert_eq!(none, (404, "serviceaccounts \"none\" not found".to_owned()));
    assert_eq!(admin.get(&path).await.code, 405);
}

#[tokio::test]
async fn those_who_check_tokens_themselves_find_the_key() {
    let cluster = Cluster::start().await;
    let token = token(&cluster.admin(), "default", json!({})).await;
    let found = with_token(&cluster, &token, "/.well-known/openid-configuration").await.ok();
    assert_eq!(
        (&found["issuer"], &found["id_token_signing_alg_values_supported"]),
        (&json!(ISSUER), &json!(["ES256"]))
    );
    let answer = with_token(&cluster, &token, "/openid/v1/jwks").await;
    assert_eq!(answer.headers["content-type"], "application/jwk-set+json");
    let header: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap()).unwrap();
    assert_eq!(answer.ok()["keys"][0]["kid"], header["kid"]);
}
