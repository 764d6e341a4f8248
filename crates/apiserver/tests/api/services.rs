//! ClusterIPs and node ports: given, refused, taken back.

use portolan_apiserver::Config;
use serde_json::{Value, json};

use crate::harness::{Client, Cluster};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

fn named(name: &str) -> String {
    format!("{SERVICES}/{name}")
}

fn service(name: &str, spec: Value) -> Value {
    let mut body = json!({"metadata": {"name": name}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    for (field, value) in spec.as_object().unwrap() {
        body["spec"][field] = value.clone();
    }
    body
}

fn address(service: &Value) -> String {
    assert_eq!(service["spec"]["clusterIPs"], json!([service["spec"]["clusterIP"]]));
    service["spec"]["clusterIP"].as_str().unwrap().to_owned()
}

async fn addresses(client: &Client) -> Vec<String> {
    let list = client.get(ADDRESSES).await.ok();
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_first_moment() {
    let cluster = Cluster::start_in(tempfile::tempdir().unwrap(), |config: &mut Config| {
        config.advertise = Some("10.203.0.1:6443".parse().unwrap());
    })
    .await;
    let client = cluster.admin();
    let kubernetes = client.get(&named("kubernetes")).await.ok();
    assert_eq!(address(&kubernetes), "10.96.0.1");
    assert_eq!(
        (&kubernetes["spec"]["ipFamilies"], &kubernetes["spec"]["ipFamilyPolicy"]),
        (&json!(["IPv4"]), &json!("SingleStack"))
    );
    let slice = client.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await.ok();
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["10.203.0.1"]));
    let endpoints = client.get("/api/v1/namespaces/default/endpoints/kubernetes").await.ok();
    assert_eq!(endpoints["subsets"][0]["ports"][0]["port"], 6443);
    let range = client.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes").await.ok();
    assert_eq!(range["spec"]["cidrs"], json!(["10.96.0.0/12"]));
    assert_eq!(range["status"]["conditions"][0]["type"], "Ready");
    let namespaces = client.get("/api/v1/namespaces").await.ok();
    assert_eq!(namespaces["items"].as_array().unwrap().len(), 4);

    // Another address after a restart.
    let directory = cluster.stop().await;
    let cluster = Cluster::start_in(directory, |config: &mut Config| {
        config.advertise = Some("10.203.0.9:6443".parse().unwrap());
    })
    .await;
    let slice =
        cluster.admin().get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await.ok();
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["10.203.0.9"]));
}

#[tokio::test]
async fn an_address_is_given_held_and_taken_back() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let asked = client.post(SERVICES, &service("a", json!({"clusterIP": "10.96.0.77"}))).await.ok();
    assert_eq!(address(&asked), "10.96.0.77");
    let object = client.get(&format!("{ADDRESSES}/10.96.0.77")).await.ok();
    assert_eq!(object["spec"]["parentRef"]["name"], "a");
    let automatic = address(&client.post(SERVICES, &service("b", json!({}))).await.ok());
    let number: std::net::Ipv4Addr = automatic.parse().unwrap();
    let above_the_static_band = u32::from(number) - u32::from(std::net::Ipv4Addr::new(10, 96, 0, 0));
    assert!((257..(1 << 20) - 1).contains(&above_the_static_band), "{number}");
    let taken = client.post(SERVICES, &service("c", json!({"clusterIP": "10.96.0.77"}))).await.failure();
    let words = "Service \"c\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.77\"]: failed to allocate IP 10.96.0.77: \
                 provided IP is already allocated";
    assert_eq!(taken, (422, words.to_owned()));
    let outside = client.post(SERVICES, &service("c", json!({"clusterIP": "10.200.0.1"}))).await.failure();
    assert_eq!(outside.0, 422);
    assert!(outside.1.contains("is not in the valid range. The range of valid IPs is 10.96.0.0/12"), "{}", outside.1);

    client.delete(&named("a")).await.ok();
    assert_eq!(client.get(&format!("{ADDRESSES}/10.96.0.77")).await.code, 404);
    client.post(SERVICES, &service("c", json!({"clusterIP": "10.96.0.77"}))).await.ok();
}

#[tokio::test]
async fn node_ports() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let ports = |port: u16| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    client.post(SERVICES, &service("a", ports(30080))).await.ok();
    let taken = client.post(SERVICES, &service("b", ports(30080))).await.failure();
    let words =
        "Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated";
    assert_eq!(taken, (422, words.to_owned()));
    let outside = client.post(SERVICES, &service("b", ports(80))).await.failure();
    let words = "Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. \
                 The range of valid ports is 30000-32767";
    assert_eq!(outside, (422, words.to_owned()));
    // What was refused holds nothing.
    let before = addresses(&client).await;
    assert_eq!(before.len(), 2, "{before:?}");

    let two = json!({"type": "NodePort", "ports": [
        {"name": "tcp", "port": 53, "protocol": "TCP", "nodePort": 30053},
        {"name": "udp", "port": 53, "protocol": "UDP", "nodePort": 30053}, {"name": "web", "port": 80}
    ]});
    let two = client.post(SERVICES, &service("two", two)).await.ok();
    let given = two["spec"]["ports"][2]["nodePort"].as_u64().unwrap();
    assert!((30086..=32767).contains(&given), "{given}");

    // A number is shared by the protocols of one port, in whatever order, and by nothing else.
    let shared = json!({"type": "NodePort", "ports": [{"name": "t", "port": 53, "protocol": "TCP"},
        {"name": "u", "port": 53, "protocol": "UDP", "nodePort": 30054}]});
    let shared = client.post(SERVICES, &service("shared", shared)).await.ok();
    assert_eq!(shared["spec"]["ports"][0]["nodePort"], 30054);
    for (port, words) in [
        (30055, "Invalid value: 30055: provided port is already allocated"),
        (-1, "Invalid value: -1: provided port is not in the valid range. The range of valid ports is 30000-32767"),
    ] {
        let apart = json!({"type": "NodePort", "ports": [{"name": "t", "port": 53, "protocol": "TCP", "nodePort": 30055},
            {"name": "u", "port": 54, "protocol": "UDP", "nodePort": port}]});
        let refused = client.post(SERVICES, &service("c", apart)).await.failure();
        assert_eq!(refused, (422, format!("Service \"c\" is invalid: spec.ports[1].nodePort: {words}")));
    }
    // A load balancer that is to have no node ports keeps those that the Service has.
    let balanced = json!({"spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false}});
    let balanced = client.merge(&named("shared"), &balanced).await.ok();
    assert_eq!(balanced["spec"]["ports"], shared["spec"]["ports"]);

    // Back to ClusterIP: the port is free again, the address stays.
    let made = client.get(&named("a")).await.ok();
    let changed = client.merge(&named("a"), &json!({"spec": {"type": "ClusterIP"}})).await.ok();
    assert_eq!(changed["spec"]["ports"][0]["nodePort"], Value::Null);
    assert_eq!(changed["spec"]["clusterIP"], made["spec"]["clusterIP"]);
    client.post(SERVICES, &service("b", ports(30080))).await.ok();
}

#[tokio::test]
async fn load_balancers_with_local_policy_have_a_health_check_port() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    let made = client.post(SERVICES, &service("a", local)).await.ok();
    let port = made["spec"]["healthCheckNodePort"].as_u64().unwrap();
    assert!((30000..=32767).contains(&port));
    assert!(made["spec"]["ports"][0]["nodePort"].as_u64().unwrap() != port);
    let none = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false});
    let made = client.post(SERVICES, &service("b", none)).await.ok();
    assert_eq!(made["spec"]["ports"][0]["nodePort"], Value::Null);
    let back = client.merge(&named("a"), &json!({"spec": {"externalTrafficPolicy": "Cluster"}})).await.ok();
    assert!(back["spec"]["healthCheckNodePort"].as_u64().is_none_or(|port| port == 0));
}

#[tokio::test]
async fn types_change() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let first = address(&client.post(SERVICES, &service("a", json!({"clusterIP": "10.96.0.50"}))).await.ok());
    assert_eq!(first, "10.96.0.50");
    let external =
        json!({"spec": {"type": "ExternalName", "externalName": "example.com", "clusterIP": null, "clusterIPs": null}});
    let external = client.merge(&named("a"), &external).await.ok();
    assert_eq!(external["spec"]["clusterIP"], Value::Null);
    assert_eq!(addresses(&client).await, ["10.96.0.1"]);
    client.post(SERVICES, &service("b", json!({"clusterIP": "10.96.0.50"}))).await.ok();
    let back = client.merge(&named("a"), &json!({"spec": {"type": "ClusterIP", "externalName": null}})).await.ok();
    assert_ne!(address(&back), "10.96.0.50");
    let headless = client.post(SERVICES, &service("h", json!({"clusterIP": "None"}))).await.ok();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    assert_eq!(headless["spec"]["ipFamilies"], json!(["IPv4"]));
}

#[tokio::test]
async fn replacing_without_the_allocated_fields_keeps_them() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let body = service("a", json!({"type": "NodePort"}));
    let made = client.post(SERVICES, &body).await.ok();
    let again = client.put(&named("a"), &body).await.ok();
    assert_eq!(again, made, "nothing changed, not even the revision");
}

#[tokio::test]
async fn a_dry_run_takes_nothing() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let body = service(
        "a",
        json!({"type": "NodePort", "clusterIP": "10.96.0.60", "ports": [{"port": 80, "nodePort": 30060}]}),
    );
    let dry = client.post(&format!("{SERVICES}?dryRun=All"), &body).await.ok();
    assert_eq!(dry["spec"]["clusterIP"], "10.96.0.60");
    assert_eq!(addresses(&client).await, ["10.96.0.1"]);
    client.post(SERVICES, &body).await.ok();
}

#[tokio::test]
async fn allocations_are_rebuilt_before_anything_is_given_out() {
    let cluster = Cluster::start_in(tempfile::tempdir().unwrap(), |config| {
        config.service_cidrs = vec!["10.96.0.0/29".parse().unwrap()];
        config.node_ports = 30000..=30001;
    })
    .await;
    let client = cluster.admin();
    for name in ["a", "b"] {
        client.post(SERVICES, &service(name, json!({"type": "NodePort"}))).await.ok();
    }
    // Somebody removed the object of an address that is in use.
    let held = address(&client.get(&named("a")).await.ok());
    client.delete(&format!("{ADDRESSES}/{held}")).await.ok();
    let directory = cluster.stop().await;
    let cluster = Cluster::start_in(directory, |config| {
        config.service_cidrs = vec!["10.96.0.0/29".parse().unwrap()];
        config.node_ports = 30000..=30001;
    })
    .await;
    let client = cluster.admin();
    assert_eq!(client.get(&format!("{ADDRESSES}/{held}")).await.code, 200, "it is visible again");
    let full = client.post(SERVICES, &service("c", json!({"type": "NodePort"}))).await.failure();
    assert!(full.0 == 422 && full.1.contains("range is full"), "{full:?}");
    let mut seen = addresses(&client).await;
    for name in ["d", "e", "f"] {
        seen.push(address(&client.post(SERVICES, &service(name, json!({}))).await.ok()));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 6, "six usable addresses, each given once");
    let full = client.post(SERVICES, &service("g", json!({}))).await.failure();
    assert!(full.0 == 422 && full.1.contains("range is full"), "{full:?}");
}

#[tokio::test]
async fn many_at_once_get_one_each() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut makers = tokio::task::JoinSet::new();
    for index in 0..30 {
        let client = client.clone();
        makers.spawn(async move {
            let spec = if index < 10 { json!({"clusterIP": "10.96.0.99"}) } else { json!({"type": "NodePort"}) };
            client.post(SERVICES, &service(&format!("s{index}"), spec)).await
        });
    }
    let mut made = 0;
    while let Some(answer) = makers.join_next().await {
        made += usize::from(answer.unwrap().code == 201);
    }
    assert_eq!(made, 21, "one of the ten that want the same address, and all others");
    assert_eq!(addresses(&client).await.len(), 22);
}

#[tokio::test]
async fn dual_stack() {
    let cluster = Cluster::start_in(tempfile::tempdir().unwrap(), |config| {
        config.service_cidrs = vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()];
    })
    .await;
    let client = cluster.admin();
    let both = client.post(SERVICES, &service("a", json!({"ipFamilyPolicy": "RequireDualStack"}))).await.ok();
    assert_eq!(both["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    let second = both["spec"]["clusterIPs"][1].as_str().unwrap();
    assert!(second.starts_with("fd00:96::"), "{second}");
    assert_eq!(client.get(&format!("{ADDRESSES}/{second}")).await.code, 200);
    let six = client.post(SERVICES, &service("b", json!({"ipFamilies": ["IPv6"]}))).await.ok();
    assert!(address(&six).starts_with("fd00:96::"));
    let grown = client.merge(&named("b"), &json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}})).await.ok();
    assert_eq!(grown["spec"]["ipFamilies"], json!(["IPv6", "IPv4"]));
    assert_eq!(grown["spec"]["clusterIPs"].as_array().unwrap().len(), 2);
    client.delete(&named("b")).await.ok();
    assert_eq!(addresses(&client).await.len(), 3);
}

#[tokio::test]
async fn one_family_cannot_give_two() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let refused = client.post(SERVICES, &service("a", json!({"ipFamilies": ["IPv6"]}))).await.failure();
    let words = "Service \"a\" is invalid: spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster";
    assert_eq!(refused, (422, words.to_owned()));
    let refused = client.post(SERVICES, &service("a", json!({"ipFamilyPolicy": "RequireDualStack"}))).await.failure();
    assert!(refused.1.contains("this cluster is not configured for dual-stack services"), "{refused:?}");
    let made = client.post(SERVICES, &service("a", json!({"ipFamilyPolicy": "PreferDualStack"}))).await.ok();
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4"]));
}

const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";

#[tokio::test]
async fn further_ranges_are_given_from_and_stay_while_they_are_needed() {
    let cluster = Cluster::start_in(tempfile::tempdir().unwrap(), |config: &mut Config| {
        config.service_cidrs = vec!["10.96.0.0/30".parse().unwrap()];
    })
    .await;
    let client = cluster.admin();
    client.post(SERVICES, &service("a", json!({}))).await.ok();
    let (code, why) = client.post(SERVICES, &service("b", json!({}))).await.failure();
    assert_eq!(code, 422);
    assert!(why.ends_with("failed to allocate a serviceIP: range is full"), "{why}");

    let more = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.97.0.0/28"]}});
    client.post(RANGES, &more).await.ok();
    let given = address(&client.post(SERVICES, &service("b", json!({}))).await.ok());
    assert!(given.starts_with("10.97.0."), "{given}");
    let mut watch = client.watch(&format!("{RANGES}?watch=1&fieldSelector=metadata.name%3Dmore")).await;
    client.delete(&format!("{RANGES}/more")).await.ok();
    loop {
        let event = watch.next().await.unwrap();
        let ready = &event["object"]["status"]["conditions"][0];
        if ready["status"] == "False" {
            assert_eq!(ready["reason"], "Terminating");
            break;
        }
    }
    let (code, why) = client.post(SERVICES, &service("c", json!({}))).await.failure();
    assert!(code == 422 && why.ends_with("range is full"), "a range that goes gives nothing: {why}");
    client.delete(&named("b")).await.ok();
    while watch.short().await.0 != "DELETED" {}
}

#[tokio::test]
async fn addresses_that_somebody_removes_come_back() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let given = address(&client.post(SERVICES, &service("a", json!({}))).await.ok());
    let one = format!("{ADDRESSES}/{given}");
    let first = client.get(&one).await.ok();
    assert_eq!(
        first["spec"]["parentRef"],
        json!({"group": "", "resource": "services", "namespace": "default", "name": "a"})
    );
    let mut watch = client.watch(&format!("{ADDRESSES}?watch=1&fieldSelector=metadata.name%3D{given}")).await;
    assert_eq!(watch.short().await.0, "ADDED");
    let mut events = client.watch("/api/v1/namespaces/default/events?watch=1").await;
    client.delete(&one).await.ok();
    assert_eq!([watch.short().await.0, watch.short().await.0], ["DELETED", "ADDED"]);
    assert_eq!(events.next().await.unwrap()["object"]["reason"], "ClusterIPNotAllocated");

    // One that no Service has is removed, unless somebody made it to keep the address for himself.
    let mut leaked = first.clone();
    leaked["metadata"] = json!({"name": "10.96.1.1", "labels": first["metadata"]["labels"]});
    leaked["spec"]["parentRef"]["name"] = "nobody".into();
    let mut watch = client.watch(&format!("{ADDRESSES}?watch=1&fieldSelector=metadata.name%3D10.96.1.1")).await;
    client.post(ADDRESSES, &leaked).await.ok();
    assert_eq!([watch.short().await.0, watch.short().await.0], ["ADDED", "DELETED"]);
    leaked["metadata"] = json!({"name": "10.96.1.2"});
    client.post(ADDRESSES, &leaked).await.ok();
    let (code, why) = client.post(SERVICES, &service("b", json!({"clusterIP": "10.96.1.2"}))).await.failure();
    assert_eq!(code, 422);
    assert!(why.ends_with("provided IP is already allocated"), "{why}");
}
