//! Which pods' sockets are led to endpoints, seen by what their node had to translate.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nlink::netlink::namespace::Netns;
use nlink::netlink::{Connection, Netfilter};
use serde_json::{Value, json};

use crate::cluster::{Api, Cluster, SOON, http};
use crate::machine::{Machine, block_on, eventually, on_a_machine};

/// Where connections of this address on the cluster's first node went to before anything was translated.
fn asked_by(client: IpAddr) -> BTreeSet<IpAddr> {
    let dump = || block_on(async { Connection::<Netfilter>::new().unwrap().get_conntrack().await });
    let entries = Netns::open("portolan-node1").unwrap().run(dump).unwrap().unwrap();
    let of_client = entries.iter().filter(|entry| entry.orig.src_ip == Some(client) && entry.orig.dst_port != Some(53));
    of_client.filter_map(|entry| entry.orig.dst_ip).collect()
}

/// Makes one request from a new pod, and says whom its node saw it ask.
fn request(api: &Api, name: &str, annotations: &Value, service: IpAddr) -> BTreeSet<IpAddr> {
    request_in(api, false, name, annotations, service)
}

/// As [`request`]; in the node's network, other requests of the node are seen too.
fn request_in(api: &Api, host: bool, name: &str, annotations: &Value, service: IpAddr) -> BTreeSet<IpAddr> {
    api.post(
        "/api/v1/namespaces/default/pods",
        &json!({
            "metadata": { "name": name, "annotations": annotations },
            "spec": {
                "restartPolicy": "Never",
                "hostNetwork": host,
                "containers": [{ "name": "ask", "image": "portolan/workload", "args": ["get", format!("http://{service}/")] }],
            },
        }),
    );
    let address = eventually(&format!("pod {name} is answered"), SOON, || {
        let status = &api.get(&format!("/api/v1/namespaces/default/pods/{name}"))["status"];
        let address = status["podIP"].as_str().and_then(|address| address.parse().ok());
        address.filter(|_| status["phase"] == "Succeeded").ok_or_else(|| status.to_string())
    });
    asked_by(address)
}

fn with_a_service(machine: &Machine, arguments: &[&str], test: impl FnOnce(&Cluster<'_>, &Api, IpAddr, IpAddr)) {
    let cluster = Cluster::up(machine, &[&["--nodes", "1"], arguments].concat());
    let api = cluster.client();
    api.deploy("web", 1);
    let service = api.service(json!({
        "metadata": { "name": "web" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] },
    }));
    let service = service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
    eventually("the ClusterIP answers", SOON, || http((service, 80).into()));
    let pods = api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dweb");
    let endpoint = pods["items"][0]["status"]["podIP"].as_str().unwrap().parse().unwrap();
    test(&cluster, &api, service, endpoint);
    assert!(cluster.stop().success());
    assert_eq!(machine.remains(), BTreeSet::new());
}

#[test]
fn pods_are_led_unless_they_say_no() {
    on_a_machine(|machine| {
        with_a_service(machine, &[], |_, api, service, endpoint| {
            assert_eq!(request(api, "led", &json!({}), service), BTreeSet::from([endpoint]));
            let no = json!({ "portolan.dev/socket-lb": "false" });
            assert_eq!(request(api, "left-out", &no, service), BTreeSet::from([service]));
            let asked = request_in(api, true, "led-on-node", &json!({}), service);
            assert!(!asked.contains(&service), "{asked:?}");
            let asked = request_in(api, true, "left-out-on-node", &no, service);
            assert!(asked.contains(&service), "{asked:?}");
        });
    });
}

#[test]
fn nobody_is_led_when_the_cluster_says_no() {
    on_a_machine(|machine| {
        with_a_service(machine, &["--socket-lb=false"], |_, api, service, _| {
            assert_eq!(request(api, "translated", &json!({}), service), BTreeSet::from([service]));
        });
    });
}

#[test]
fn a_pod_in_the_nodes_network_may_not_take_a_node_port() {
    on_a_machine(|machine| {
        with_a_service(machine, &[], |cluster, api, _, _| {
            let service = api.service(json!({
                "metadata": { "name": "outward" },
                "spec": { "type": "NodePort", "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] },
            }));
            let port = service["spec"]["ports"][0]["nodePort"].to_string();
            api.post(
                "/api/v1/namespaces/default/pods",
                &json!({
                    "metadata": { "name": "taker" },
                    "spec": {
                        "hostNetwork": true,
                        "restartPolicy": "Never",
                        "containers": [{ "name": "take", "image": "portolan/workload", "args": ["serve", "--port", port] }],
                    },
                }),
            );
            eventually("the pod fails", SOON, || {
                let status = &api.get("/api/v1/namespaces/default/pods/taker")["status"];
                if status["phase"] == "Failed" { Ok(()) } else { Err(status.to_string()) }
            });
            eventually("the node's log says why", SOON, || {
                let logs = cluster.logs();
                let said = logs.contains(&format!("may not bind TCP port {port} on this node"));
                if said { Ok(()) } else { Err(logs) }
            });
        });
    });
}
