//! Who gets in, and what everybody may see.

use std::time::{Duration, SystemTime};

use http::Method;
use portolan_apiserver::User;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use serde_json::json;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{CONFIG_MAPS, Client, Cluster, DEADLINE, config_map, forged};

const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn strangers_see_health_and_version_only() {
    let cluster = Cluster::start().await;
    let stranger = cluster.stranger();
    for path in ["/healthz", "/livez", "/readyz"] {
        let answer = stranger.get(path).await;
        assert_eq!((answer.code, answer.bytes.as_ref()), (200, &b"ok"[..]));
    }
    let version = stranger.get("/version").await.ok();
    assert_eq!((&version["major"], &version["minor"]), (&json!("1"), &json!("36")));
    let refused = stranger.get("/api/v1/namespaces/default/pods").await.failure();
    let words = "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" in the namespace \
                 \"default\"";
    assert_eq!(refused, (403, words.to_owned()));
    for path in ["/apis", "/api/v1", "/openapi/v3", "/", "/nonsense", "/readyz/ping", "/openid/v1/jwks"] {
        assert_eq!(stranger.get(path).await.code, 403, "{path}");
    }
    // Nor do they learn what there is by asking for it in a wrong way.
    for plural in ["configmaps", "nonsense"] {
        let path = format!("/api/v1/namespaces/default/{plural}");
        assert_eq!(stranger.put(&path, &json!({})).await.code, 403, "{plural}");
        assert_eq!(stranger.get(&format!("{path}?limit=x")).await.code, 403, "{plural}");
    }
    let token = stranger.send(Method::GET, "/api/v1/pods", &[("authorization", "Bearer x")], "").await;
    assert_eq!(token.code, 401);
    assert_eq!(stranger.post(CONFIG_MAPS, &config_map("a")).await.code, 403);
    assert_eq!(cluster.admin().get(&format!("{CONFIG_MAPS}/a")).await.code, 404);
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_no_certificate() {
    let cluster = Cluster::start().await;
    let other = Cluster::start().await;
    let answer = forged(&cluster, &other).exchange("GET /api/v1/pods HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(answer, "", "the handshake fails");
}

/// What the cluster's authority signed is believed for as long, and for what, it was signed.
#[tokio::test]
async fn certificates_are_good_for_what_they_say() {
    let cluster = Cluster::start().await;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "portolan-ca");
    let mut authority = CertificateParams::default();
    authority.distinguished_name = name;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = std::fs::read_to_string(cluster.path().join("pki/ca.key")).unwrap();
    let issuer = Issuer::new(authority, KeyPair::from_pem(&key).unwrap());
    let day = Duration::from_secs(24 * 3600);
    let client = |subject: &[(DnType, &str)], usage: ExtendedKeyUsagePurpose, ended: bool| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (what, value) in subject {
            params.distinguished_name.push(what.clone(), *value);
        }
        params.not_before = (SystemTime::now() - 2 * day).into();
        params.not_after = if ended { SystemTime::now() - day } else { SystemTime::now() + day }.into();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Client::with(cluster.address, cluster.api.ca(), &certificate.pem(), &key.serialize_pem())
    };
    let ask = "GET /api/v1/secrets HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let (name, group) = ((DnType::CommonName, "jane"), (DnType::OrganizationName, "system:masters"));
    let both = [name.clone(), group.clone()];
    let long = "x".repeat(20_000);
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    for (subject, usage, ended, expected) in [
        (&both[..], ClientAuth, false, "HTTP/1.1 200"),
        (&both, ClientAuth, true, ""),
        (&both, ServerAuth, false, ""),
        (&[name], ClientAuth, false, "HTTP/1.1 403"),
        // Groups without a name are nobody's.
        (&[group], ClientAuth, false, "HTTP/1.1 403"),
        (&[(DnType::CommonName, &*long)], ClientAuth, false, "HTTP/1.1 403"),
    ] {
        let answer = client(subject, usage.clone(), ended).exchange(ask).await;
        assert!(answer.starts_with(expected) && answer.is_empty() == expected.is_empty(), "{usage:?} {ended} {answer}");
    }
}

#[tokio::test]
async fn a_node_does_its_work_and_no_more() {
    let cluster = Cluster::start().await;
    let node = cluster.client(&User::node("n1"));
    let nodes = "/api/v1/nodes";
    assert_eq!(node.post(nodes, &json!({"metadata": {"name": "n1"}})).await.code, 201);
    assert_eq!(node.post(nodes, &json!({"metadata": {"name": "n2"}})).await.code, 403);
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(node.merge(&format!("{nodes}/n1/status"), &ready).await.code, 200);
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}});
    assert_eq!(node.post(leases, &lease("n1")).await.code, 201);
    assert_eq!(node.post(leases, &lease("n2")).await.code, 403);
    assert_eq!(node.get("/api/v1/services").await.code, 200);
    assert_eq!(node.post(CONFIG_MAPS, &config_map("a")).await.code, 403);
    let slices = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices";
    let slice = |name: &str| json!({"metadata": {"name": name}, "addressType": "IPv4", "endpoints": [], "ports": []});
    assert_eq!(node.post(slices, &slice("kube-dns-n1")).await.code, 201);
    assert_eq!(node.post(slices, &slice("kube-dns-n2")).await.code, 403);
    let of = |service: &str| json!({"metadata": {"labels": {"kubernetes.io/service-name": service}}});
    assert_eq!(node.merge(&format!("{slices}/kube-dns-n1"), &of("kube-dns")).await.code, 200);
    assert_eq!(node.merge(&format!("{slices}/kube-dns-n1"), &of("metrics")).await.code, 403);
    // Whoever is a node without a name is none.
    let nameless = cluster.client(&User::node(""));
    assert_eq!(nameless.get("/api/v1/pods").await.code, 403);
    assert_eq!(nameless.post(slices, &slice("kube-dns-")).await.code, 403);
}

/// A pod of node `n1`, by way of its binding.
async fn bound_pod(admin: &Client, name: &str) {
    let spec = json!({"containers": [{"name": "c", "image": "i"}]});
    admin.post(PODS, &json!({"metadata": {"name": name}, "spec": spec})).await.ok();
    let target = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(admin.post(&format!("{PODS}/{name}/binding"), &target).await.code, 201);
}

#[tokio::test]
async fn a_node_does_nothing_to_the_pods_of_another() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    bound_pod(&admin, "p").await;
    let before = admin.get(&format!("{PODS}/p")).await.ok();
    let (one, two) = (cluster.client(&User::node("n1")), cluster.client(&User::node("n2")));
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let status = json!({"status": {"phase": "Failed"}});
    assert_eq!(two.post(&format!("{PODS}/p/eviction"), &eviction).await.code, 403);
    assert_eq!(two.merge(&format!("{PODS}/p/status"), &status).await.code, 403);
    assert_eq!(two.delete(&format!("{PODS}/p")).await.code, 403);
    assert_eq!(admin.get(&format!("{PODS}/p")).await.ok(), before);
    assert_eq!(one.merge(&format!("{PODS}/p/status"), &status).await.code, 200);
    let labels = json!({"metadata": {"labels": {"app": "x"}}});
    assert_eq!(one.merge(&format!("{PODS}/p/status"), &labels).await.code, 403);
    // Whatever else stands in the object, only its status is written.
    let more = json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u"}]},
        "spec": {"activeDeadlineSeconds": 5}});
    let after = one.merge(&format!("{PODS}/p/status"), &more).await.ok();
    assert_eq!(after["metadata"].get("ownerReferences"), None);
    assert_eq!(after["spec"], before["spec"]);
    for part in ["", "/ephemeralcontainers"] {
        assert_eq!(one.merge(&format!("{PODS}/p{part}"), &more).await.code, 403, "{part}");
    }
    assert_eq!(one.post(&format!("{PODS}/p/eviction"), &eviction).await.code, 201);
}

#[tokio::test]
async fn a_node_reads_what_an_ephemeral_container_of_its_pod_names() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let node = cluster.client(&User::node("n1"));
    let secrets = "/api/v1/namespaces/default/secrets";
    admin.post(secrets, &json!({"metadata": {"name": "s"}})).await.ok();
    bound_pod(&admin, "p").await;
    let secret = format!("{secrets}/s");
    assert_eq!(node.get(&secret).await.code, 403);
    let container = json!({"name": "debugger", "image": "i", "envFrom": [{"secretRef": {"name": "s"}}]});
    let more = json!({"spec": {"ephemeralContainers": [container]}});
    admin.merge(&format!("{PODS}/p/ephemeralcontainers"), &more).await.ok();
    assert_eq!(node.get(&secret).await.code, 200);
    assert_eq!(cluster.client(&User::node("n2")).get(&secret).await.code, 403);
}

#[tokio::test]
async fn discovery_and_openapi() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let groups = client.send(Method::GET, "/apis", &[("accept", aggregated)], "").await;
    assert_eq!(groups.headers["content-type"], "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let core = client.send(Method::GET, "/api", &[("accept", aggregated)], "").await.ok();
    let resources = core["items"][0]["versions"][0]["resources"].as_array().unwrap();
    assert!(resources.iter().any(|resource| resource["resource"] == "services"));
    assert_eq!(client.get("/api").await.ok()["kind"], "APIVersions");
    assert_eq!(client.get("/apis").await.ok()["kind"], "APIGroupList");
    assert_eq!(client.get("/apis/apps").await.ok()["preferredVersion"]["groupVersion"], "apps/v1");
    assert_eq!(client.get("/apis/apps/v1").await.ok()["kind"], "APIResourceList");
    assert_eq!(client.get("/openapi/v3").await.code, 200);
    assert_eq!(client.get("/openapi/v2").await.code, 200);
    let unknown = client.get("/apis/nonsense/v1/things").await.failure();
    assert_eq!(unknown, (404, "the server could not find the requested resource".to_owned()));
}

#[tokio::test]
async fn everybody_may_ask_about_themselves() {
    let cluster = Cluster::start().await;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let may = async |client: &crate::harness::Client, headers: &[(&str, &str)]| {
        let spec = json!({"resourceAttributes": {"verb": "delete", "resource": "services", "namespace": "default"}});
        let headers = [&[("content-type", "application/json")], headers].concat();
        let answer = client.send(Method::POST, path, &headers, json!({"spec": spec}).to_string()).await;
        assert_eq!(answer.code, 201, "{:?}", answer.bytes);
        answer.json()["status"]["allowed"].as_bool().unwrap()
    };
    assert!(may(&cluster.admin(), &[]).await);
    assert!(!may(&cluster.client(&User::node("n1")), &[]).await);
    assert!(!may(&cluster.admin(), &[("impersonate-user", "jane")]).await);
    assert!(may(&cluster.admin(), &[("impersonate-user", "jane"), ("impersonate-group", "system:masters")]).await);
    let rows = "application/json;as=Table;v=v1;g=meta.k8s.io";
    for (accept, code) in [(rows.to_owned(), 406), (format!("{rows},application/json"), 201)] {
        let headers = [("content-type", "application/json"), ("accept", &*accept)];
        let spec = json!({"nonResourceAttributes": {"verb": "get", "path": "/"}});
        let answer = cluster.admin().send(Method::POST, path, &headers, json!({"spec": spec}).to_string()).await;
        assert_eq!(answer.code, code, "{accept}: {:?}", answer.bytes);
    }
    assert_eq!(cluster.stranger().post(path, &json!({"spec": {}})).await.code, 403);
    let jane = [("impersonate-user", "jane")];
    assert_eq!(cluster.admin().send(Method::GET, CONFIG_MAPS, &jane, "").await.code, 403);
    assert_eq!(cluster.client(&User::node("n1")).send(Method::GET, "/api/v1/pods", &jane, "").await.code, 403);
    let myself = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let answer = cluster.admin().post(myself, &json!({})).await.ok();
    assert_eq!(answer["status"]["userInfo"]["username"], "kubernetes-admin");
}

#[tokio::test]
async fn strangers_do_not_take_all_connections() {
    let cluster = Cluster::start().await;
    let mut strangers = Vec::new();
    for _ in 0..256 {
        strangers.push(cluster.stranger().connect().await);
    }
    let health = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    // Those that are counted are those whose handshake the server has seen to its end, so let each say something.
    for stranger in &mut strangers {
        stranger.write_all(health.as_bytes()).await.unwrap();
        let read = tokio::time::timeout(DEADLINE, stranger.read(&mut [0; 1024])).await.unwrap();
        assert_ne!(read.unwrap(), 0);
    }
    // One more gets in all the same, and the oldest goes for it.
    assert!(cluster.stranger().exchange(health).await.starts_with("HTTP/1.1 200"));
    assert_eq!(cluster.admin().get(CONFIG_MAPS).await.code, 200);
    let mut left = 0;
    for stranger in &mut strangers {
        stranger.write_all(health.as_bytes()).await.ok();
        let read = tokio::time::timeout(DEADLINE, stranger.read(&mut [0; 1024])).await.unwrap();
        left += usize::from(read.is_ok_and(|read| read > 0));
    }
    assert_eq!(left, 255);
}
