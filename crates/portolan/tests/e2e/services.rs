//! Every type of Service, from every side, with real requests.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::process::Command;

use nlink::netlink::namespace::Netns;
use nlink::netlink::{Connection, Route};
use serde_json::json;

use crate::cluster::{Api, Cluster, SOON, http, http_from};
use crate::lifecycle::external_address;
use crate::machine::{block_on, eventually, on_a_machine, skip};

const OUTSIDE: &str = "portolan-outside";

fn ip(value: &serde_json::Value) -> IpAddr {
    value.as_str().unwrap_or_else(|| panic!("{value} is no address")).parse().unwrap()
}

fn node_addresses(api: &Api) -> Vec<IpAddr> {
    let nodes = api.get("/api/v1/nodes");
    let addresses = |node: &serde_json::Value| node["status"]["addresses"].as_array().cloned().unwrap_or_default();
    nodes["items"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(addresses)
        .filter(|address| address["type"] == "InternalIP")
        .map(|address| ip(&address["address"]))
        .collect()
}

/// How often each backend answered.
fn shares(requests: usize, mut request: impl FnMut() -> Result<String, String>) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..requests {
        *shares.entry(request().unwrap()).or_default() += 1;
    }
    shares
}

#[test]
fn an_external_address_is_not_answered_for_by_nodes_that_cannot_say_that_they_live() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "2"]);
        let api = cluster.client();
        api.deploy("web", 1);
        api.service(json!({
            "metadata": { "name": "web" },
            "spec": {
                "type": "LoadBalancer",
                "selector": { "app": "web" },
                "ports": [{ "port": 80, "targetPort": "http" }],
            },
        }));
        let external: IpAddr = external_address(&api, "web").parse().unwrap();
        // Whoever asks has never heard of the address.
        let request = || {
            let outside = Netns::open(OUTSIDE).unwrap();
            let forget = || block_on(async { Connection::<Route>::new().unwrap().flush_neighbors("eth0").await });
            outside.run(forget).unwrap().unwrap();
            http_from(OUTSIDE, external, 80)
        };
        eventually("it answers", SOON, request);
        cluster.without_control_plane(|| {
            // Were they to answer, two could: nobody can tell them that they were given up.
            eventually("nobody answers for it", SOON, || request().map_or_else(Ok, Err));
        });
        eventually("it answers again", SOON, request);
        assert!(cluster.stop().success());
    });
}

#[test]
fn every_kind_of_address_leads_to_every_backend() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &[]);
        let api = cluster.client();
        api.deploy("web", 3);
        let service = api.service(json!({
            "metadata": { "name": "web" },
            "spec": {
                "type": "LoadBalancer",
                "selector": { "app": "web" },
                "externalIPs": ["198.51.100.7"],
                "ports": [{ "port": 80, "targetPort": "http" }],
            },
        }));
        let node_port = u16::try_from(service["spec"]["ports"][0]["nodePort"].as_u64().unwrap()).unwrap();
        assert!((30000..=32767).contains(&node_port));
        let external: IpAddr = external_address(&api, "web").parse().unwrap();
        let cluster_ip = ip(&service["spec"]["clusterIP"]);

        // From the machine that the cluster runs on, over the host link.
        eventually("the ClusterIP answers", SOON, || http((cluster_ip, 80).into()));
        let spread = shares(60, || http((cluster_ip, 80).into()));
        assert_eq!(spread.len(), 3, "every backend gets a share: {spread:?}");
        assert!(spread.values().all(|share| *share >= 5), "{spread:?}");

        for node in node_addresses(&api) {
            let spread = shares(30, || http_from(OUTSIDE, node, node_port));
            assert!(spread.len() >= 2, "NodePort on {node}: {spread:?}");
        }
        eventually("the external address answers", SOON, || http_from(OUTSIDE, external, 80));
        assert_eq!(shares(60, || http_from(OUTSIDE, external, 80)).len(), 3);

        // A port that the Service does not have is refused, and not swallowed.
        let refused = http((cluster_ip, 81).into()).unwrap_err();
        assert!(refused.contains("refused"), "{refused}");

        // Scaled to nothing, the Service refuses at once; scaled up again, it answers.
        api.merge("/apis/apps/v1/namespaces/default/deployments/web/scale", &json!({ "spec": { "replicas": 0 } }));
        eventually("no endpoint: refused", SOON, || match http((cluster_ip, 80).into()) {
            Err(error) if error.contains("refused") => Ok(()),
            other => Err(format!("{other:?}")),
        });
        api.merge("/apis/apps/v1/namespaces/default/deployments/web/scale", &json!({ "spec": { "replicas": 2 } }));
        eventually("it answers again", SOON, || http((cluster_ip, 80).into()));

        // Deleted, nothing of it is left in the kernel.
        api.delete("/api/v1/namespaces/default/services/web");
        eventually("the NodePort is closed", SOON, || {
            let node = node_addresses(&api)[0];
            http_from(OUTSIDE, node, node_port).map_or_else(Ok, |answer| Err(format!("still answers: {answer}")))
        });
        assert!(cluster.stop().success());
    });
}

#[test]
fn session_affinity_keeps_a_client_with_its_backend() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "2"]);
        let api = cluster.client();
        api.deploy("web", 3);
        let service = api.service(json!({
            "metadata": { "name": "sticky" },
            "spec": { "selector": { "app": "web" }, "sessionAffinity": "ClientIP", "ports": [{ "port": 80, "targetPort": 8080 }] },
        }));
        let address = (ip(&service["spec"]["clusterIP"]), 80).into();
        eventually("the ClusterIP answers", SOON, || http(address));
        let spread = shares(30, || http(address));
        assert_eq!(spread.len(), 1, "one client, one backend: {spread:?}");
        assert!(cluster.stop().success());
    });
}

#[test]
fn a_service_without_selector_leads_where_its_slice_says() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "2"]);
        let api = cluster.client();
        // The machine beyond the cluster serves one page.
        let outside = nlink::netlink::namespace::Netns::open(OUTSIDE).unwrap();
        let mut server = Command::new(env!("CARGO_BIN_EXE_portolan"));
        server.args(["workload", "serve", "--port", "9000"]);
        let mut server = outside.command(server).unwrap().pdeathsig(nix::libc::SIGKILL).spawn().unwrap();
        let service = api.service(
            json!({ "metadata": { "name": "legacy" }, "spec": { "ports": [{ "port": 80, "targetPort": 9000 }] } }),
        );
        api.post(
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            &json!({
                "metadata": { "name": "legacy-1", "labels": { "kubernetes.io/service-name": "legacy" } },
                "addressType": "IPv4",
                "ports": [{ "port": 9000 }],
                "endpoints": [{ "addresses": ["10.203.0.2"] }],
            }),
        );
        let address = (ip(&service["spec"]["clusterIP"]), 80).into();
        eventually("the machine outside answers", SOON, || http(address));
        assert_eq!(shares(5, || http(address)).values().sum::<usize>(), 5);
        // A pod's own address means nothing to that machine, so the pod comes under its node's.
        for (name, host) in [("by-name", "legacy.default.svc.cluster.local"), ("by-address", "10.203.0.2:9000")] {
            api.post(
                "/api/v1/namespaces/default/pods",
                &json!({
                    "metadata": { "name": name },
                    "spec": {
                        "restartPolicy": "Never",
                        "containers": [{ "name": "ask", "image": "portolan/workload", "args": ["get", format!("http://{host}/")] }],
                    },
                }),
            );
            eventually(&format!("pod {name} is answered"), SOON, || {
                let status = &api.get(&format!("/api/v1/namespaces/default/pods/{name}"))["status"];
                if status["phase"] == "Succeeded" { Ok(()) } else { Err(status.to_string()) }
            });
        }
        server.kill().unwrap();
        server.wait().unwrap();
        assert!(cluster.stop().success());
    });
}

#[test]
fn names_resolve_as_the_dns_specification_says() {
    if Command::new("dig").arg("-v").output().is_err() {
        return skip("needs dig (Debian: bind9-dnsutils)");
    }
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "2"]);
        let api = cluster.client();
        api.deploy("web", 2);
        let service = api.service(json!({
            "metadata": { "name": "web" },
            "spec": { "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] },
        }));
        api.service(json!({
            "metadata": { "name": "pods" },
            "spec": { "clusterIP": "None", "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 8080 }] },
        }));
        api.service(json!({
            "metadata": { "name": "elsewhere" },
            "spec": { "type": "ExternalName", "externalName": "www.example.com" },
        }));
        let dig = |name: &str, kind: &str| {
            let output = Command::new("dig")
                .args(["@10.96.0.10", "+short", "+time=2", "+tries=2", "-t", kind, name])
                .output()
                .unwrap();
            let mut lines: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let cluster_ip = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
        eventually("the Service has a name", SOON, || match dig("web.default.svc.cluster.local", "A") {
            answer if answer == [cluster_ip.clone()] => Ok(()),
            other => Err(format!("{other:?}")),
        });
        assert_eq!(dig("_http._tcp.web.default.svc.cluster.local", "SRV"), ["0 100 80 web.default.svc.cluster.local."]);
        assert_eq!(dig("elsewhere.default.svc.cluster.local", "CNAME"), ["www.example.com."]);
        let pods = api.get("/api/v1/namespaces/default/pods");
        let mut addresses: Vec<_> = pods["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pod| pod["status"]["podIP"].as_str().unwrap().to_owned())
            .collect();
        addresses.sort();
        eventually("the headless Service has its pods' addresses", SOON, || {
            match dig("pods.default.svc.cluster.local", "A") {
                answer if answer == addresses => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        assert!(cluster.stop().success());
    });
}

/// A resolver that gives every name the same address.
fn resolver(socket: &UdpSocket, address: [u8; 4]) {
    let mut buffer = [0; 512];
    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
        let query = &buffer[..length];
        // Up to the end of the question: the header, the labels, type and class. What comes after is EDNS.
        let labels = query[12..].iter().position(|byte| *byte == 0).unwrap();
        let question = &query[12..12 + labels + 5];
        let mut answer = query[..2].to_vec();
        answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        answer.extend(question);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address);
        socket.send_to(&answer, client).unwrap();
    }
}

#[test]
fn names_outside_the_cluster_come_from_the_machines_resolvers() {
    if Command::new("dig").arg("-v").output().is_err() {
        return skip("needs dig (Debian: bind9-dnsutils)");
    }
    on_a_machine(|machine| {
        let resolv_conf = machine.path("resolv.conf");
        std::fs::write(&resolv_conf, "nameserver 127.0.0.1\n").unwrap();
        let none = None::<&str>;
        nix::mount::mount(Some(&resolv_conf), "/etc/resolv.conf", none, nix::mount::MsFlags::MS_BIND, none).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
        std::thread::spawn(move || resolver(&socket, [192, 0, 2, 53]));
        let cluster = Cluster::up(machine, &["--nodes", "1"]);
        let output = Command::new("dig")
            .args(["@10.96.0.10", "+short", "+time=2", "+tries=2", "www.example.org", "A"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "192.0.2.53");
        assert!(cluster.stop().success());
    });
}
