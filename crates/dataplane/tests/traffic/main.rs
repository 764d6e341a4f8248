//! What a row cannot say: shares, sessions, counts, and flows that must end.
#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

#[path = "../lab/mod.rs"]
mod lab;
mod sessions;

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use futures::FutureExt;
use lab::Lab;
use portolan_dataplane::{Counted, Counts, DataPlane, LocalTraffic, NodePortAddresses, ProxyConfig};
use portolan_model::Snapshot;
use portolan_model::forwarding::FrontendKind;
use portolan_testkit::{Dial, Netns, Outcome, Transport, require_root};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Who answers each of so many connections.
fn share(from: &Netns, dial: &Dial, connections: usize) -> BTreeMap<String, usize> {
    from.run(|| {
        let mut share = BTreeMap::new();
        for _ in 0..connections {
            let outcome = dial.once();
            *share.entry(outcome.by().unwrap_or_else(|| panic!("{outcome:?}")).to_owned()).or_default() += 1;
        }
        share
    })
}

const CART: &str = "
kind: Service
metadata: {namespace: shop, name: cart}
spec:
  type: NodePort
  clusterIPs: [10.96.1.1]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}
  ports: [{name: web, port: 80, nodePort: 30100}, {name: query, port: 53, protocol: UDP, nodePort: 30101}]
";

fn cart_slice(pods: &[&str]) -> String {
    let endpoints: Vec<String> = pods
        .iter()
        .map(|pod| {
            let node = if *pod == "pod-c" { "node-2" } else { "node-1" };
            format!("{{addresses: [{}], nodeName: {node}}}", lab::address(pod, false))
        })
        .collect();
    format!(
        "kind: EndpointSlice
metadata: {{namespace: shop, name: cart-1, labels: {{kubernetes.io/service-name: cart}}}}
addressType: IPv4
ports: [{{name: web, port: 8080}}, {{name: query, port: 9090, protocol: UDP}}]
endpoints: [{}]
",
        endpoints.join(", ")
    )
}

#[test]
fn connections_spread_evenly() {
    require_root!();
    let lab = Lab::new();
    lab.at("node-1").block_on(|| async {
        let mut snapshot = Snapshot::default();
        let delta = lab::apply(&mut snapshot, lab::OBJECTS);
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.apply(&snapshot, &delta).await;
    });
    let share = share(lab.at("pod-x"), &Dial::tcp(address("10.96.0.1:80")), 1_500);
    assert_eq!(share.len(), 3, "{share:?}");
    // 500 each; seven standard deviations (of 18.3) are out of reach of chance.
    assert!(share.values().all(|count| count.abs_diff(500) < 128), "{share:?}");
}

/// Sends from one and the same socket until `wanted` answers. On a thread of its own, as the proxy has work to do.
async fn until(socket: &UdpSocket, what: &'static str, wanted: Option<&'static str>) {
    let socket = socket.try_clone().unwrap();
    tokio::task::spawn_blocking(move || wait_for(&socket, what, wanted)).await.unwrap();
}

fn wait_for(socket: &UdpSocket, what: &str, wanted: Option<&str>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    loop {
        let mut answer = [0; 256];
        let heard = socket.send(b"who?").and_then(|_| socket.recv(&mut answer));
        let text = heard.map(|length| String::from_utf8_lossy(&answer[..length]).into_owned()).ok();
        if text.as_deref().and_then(|text| text.split(' ').next()) == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {text:?}");
    }
}

#[test]
fn udp_flows_follow_their_service() {
    require_root!();
    let lab = Lab::new();
    lab.at("node-1").block_on(|| async {
        let mut snapshot = Snapshot::default();
        let mut delta = lab::apply(&mut snapshot, lab::OBJECTS);
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.apply(&snapshot, &delta).await;
        for (from, to) in [("pod-x", "10.96.1.1:53"), ("node-1", "10.96.1.1:53"), ("outside", "10.203.0.11:30101")] {
            let socket = lab.at(from).run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            socket.connect(address(to)).unwrap();
            // The flow begins before the Service is known.
            until(&socket, "nobody yet", None).await;
            delta = lab::apply(&mut snapshot, &CART.replace("  sessionAffinity: ClientIP\n", ""));
            delta.merge(lab::apply(&mut snapshot, &cart_slice(&["pod-a"])));
            projection.apply(&snapshot, &delta).await;
            until(&socket, "the Service came", Some("pod-a")).await;
            // Its backend is replaced, goes, and comes back.
            delta = lab::apply(&mut snapshot, &cart_slice(&["pod-b"]));
            projection.apply(&snapshot, &delta).await;
            until(&socket, "the backend was replaced", Some("pod-b")).await;
            delta = lab::apply(&mut snapshot, &cart_slice(&[]));
            projection.apply(&snapshot, &delta).await;
            until(&socket, "scaled to nothing", None).await;
            delta = lab::apply(&mut snapshot, &cart_slice(&["pod-c"]));
            projection.apply(&snapshot, &delta).await;
            until(&socket, "scaled up again", Some("pod-c")).await;
            delta = snapshot.apply(portolan_model::Event::ServiceGone(portolan_model::ServiceId::new("shop", "cart")));
            projection.apply(&snapshot, &delta).await;
            until(&socket, "the Service went", None).await;
        }
    });
}

#[test]
fn an_attempt_at_a_dead_backend_does_not_bind_the_next_one_from_the_same_port() {
    require_root!();
    let lab = Lab::new();
    // The pod does not forward: what comes for this address is swallowed, as by a node without power.
    lab.at("node-1").route(lab::net("10.244.1.99/32"), lab::address("pod-a", false), "pod-a");
    lab.at("node-1").block_on(|| async {
        let mut snapshot = Snapshot::default();
        let mut delta = lab::apply(&mut snapshot, &CART.replace("  sessionAffinity: ClientIP\n", ""));
        delta.merge(lab::apply(&mut snapshot, &cart_slice(&["pod-a"]).replace("10.244.1.2]", "10.244.1.99]")));
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.apply(&snapshot, &delta).await;
        let dial = Dial::tcp(address("10.96.1.1:80")).from(address("10.244.1.9:41000"));
        let patience = Duration::from_millis(200);
        assert_eq!(lab.at("pod-x").run(|| dial.clone().patience(patience).once()), Outcome::Silent);
        let delta = lab::apply(&mut snapshot, &cart_slice(&["pod-b"]));
        projection.apply(&snapshot, &delta).await;
        projection.settled().await;
        assert_eq!(lab.at("pod-x").run(|| dial.once()).by(), Some("pod-b"));
    });
}

#[test]
fn an_open_connection_outlives_the_change_of_its_service() {
    require_root!();
    let lab = Lab::new();
    lab.at("node-1").block_on(|| async {
        let mut snapshot = Snapshot::default();
        let mut delta = lab::apply(&mut snapshot, CART);
        delta.merge(lab::apply(&mut snapshot, &cart_slice(&["pod-a"])));
        let mut projection = DataPlane::open(lab::config()).await.unwrap();
        projection.apply(&snapshot, &delta).await;
        let connection = lab.at("pod-x").run(|| Dial::tcp(address("10.96.1.1:80")).open().unwrap());
        assert_eq!(Outcome::greeting(&connection).by(), Some("pod-a"));
        // Draining: the backend leaves the Service, which is then refused to newcomers.
        let delta = lab::apply(&mut snapshot, &cart_slice(&[]));
        projection.apply(&snapshot, &delta).await;
        assert_eq!(lab.at("pod-x").run(|| Dial::tcp(address("10.96.1.1:80")).once()), Outcome::Refused);
        assert!(portolan_testkit::say(&connection, "let me finish"));
    });
}

#[test]
fn a_restart_with_another_configuration_goes_by_it() {
    require_root!();
    let lab = Lab::new();
    let node = lab.at("node-1");
    node.address("eth0", lab::net("192.0.2.1/32"));
    lab.at("outside").route(lab::net("192.0.2.1/32"), lab::address("node-1", false), "eth0");
    let try_with = |config: &ProxyConfig, from: &str, to: &str| {
        node.block_on(|| async {
            let mut snapshot = Snapshot::default();
            lab::apply(&mut snapshot, lab::OBJECTS);
            lab::apply(&mut snapshot, CART);
            lab::apply(&mut snapshot, &cart_slice(&["pod-a"]));
            let mut projection = DataPlane::open(config.clone()).await.unwrap();
            let report = projection.synced(&snapshot).await;
            assert!(report.refused.is_empty(), "{:?}", report.refused);
        });
        lab.at(from).run(|| Dial::tcp(address(to)).once())
    };
    let keeps_address = |outcome: &Outcome, machine: &str| {
        let Outcome::Answered { seen_as, .. } = outcome else { panic!("{outcome:?}") };
        *seen_as == lab::address(machine, false)
    };

    // NodePorts on the addresses of the Node object, then on chosen ones only.
    let usual = lab::config();
    assert!(try_with(&usual, "outside", "10.203.0.11:30080").by().is_some());
    assert_eq!(try_with(&usual, "outside", "192.0.2.1:30080"), Outcome::Refused);
    let mut chosen = lab::config();
    chosen.node_port_addresses = NodePortAddresses::In(vec![lab::net("192.0.2.0/24"), lab::net("127.0.0.0/8")]);
    assert!(try_with(&chosen, "outside", "192.0.2.1:30080").by().is_some());
    assert_eq!(try_with(&chosen, "outside", "10.203.0.11:30080"), Outcome::Refused);

    // Who keeps the source address towards a ClusterIP.
    assert!(keeps_address(&try_with(&usual, "pod-x", "10.96.1.1:80"), "pod-x"));
    assert!(!keeps_address(&try_with(&usual, "outside", "10.96.1.1:80"), "outside"));
    let mut all = lab::config();
    all.masquerade_all = true;
    assert!(!keeps_address(&try_with(&all, "pod-x", "10.96.1.1:80"), "pod-x"));
    let mut unknown = lab::config();
    unknown.local = LocalTraffic::ClusterCidr(Vec::new());
    assert!(keeps_address(&try_with(&unknown, "outside", "10.96.1.1:80"), "outside"));

    // Another bit of the mark does the same.
    let mut other_bit = lab::config();
    other_bit.masquerade_bit = 31;
    assert!(!keeps_address(&try_with(&other_bit, "outside", "10.96.1.1:80"), "outside"));
}

#[test]
fn pods_are_told_from_others_in_four_ways() {
    require_root!();
    let lab = Lab::new();
    let node_object = "
kind: Node
metadata: {name: node-1}
spec: {podCIDRs: [10.244.1.8/29]}
status: {addresses: [{type: InternalIP, address: 10.203.0.11}]}
";
    let keeping = |local: LocalTraffic| {
        lab.at("node-1").block_on(|| async {
            let mut snapshot = Snapshot::default();
            for objects in [CART, &cart_slice(&["pod-a"]), node_object] {
                lab::apply(&mut snapshot, objects);
            }
            let mut plane = DataPlane::open(ProxyConfig::new("node-1", local)).await.unwrap();
            let report = plane.synced(&snapshot).await;
            assert!(report.refused.is_empty(), "{:?}", report.refused);
        });
        let keeps = |machine: &&str| {
            let outcome = lab.at(machine).run(|| Dial::tcp(address("10.96.1.1:80")).once());
            let Outcome::Answered { seen_as, .. } = outcome else { panic!("{machine}: {outcome:?}") };
            seen_as == lab::address(machine, false)
        };
        ["pod-x", "pod-b", "outside"].into_iter().filter(keeps).collect::<Vec<_>>()
    };
    assert_eq!(keeping(LocalTraffic::ClusterCidr(vec![lab::net("10.244.0.0/16")])), ["pod-x", "pod-b"]);
    assert_eq!(keeping(LocalTraffic::ClusterCidr(vec![lab::net("fd00:244::/32")])), ["pod-x", "pod-b", "outside"]);
    assert_eq!(keeping(LocalTraffic::NodeCidr), ["pod-x"]);
    assert_eq!(keeping(LocalTraffic::BridgeInterface("pod-b".to_owned())), ["pod-b"]);
    assert_eq!(keeping(LocalTraffic::InterfaceNamePrefix("pod-".to_owned())), ["pod-x", "pod-b"]);
}

#[test]
fn the_node_answers_pings_for_services() {
    require_root!();
    let lab = Lab::new();
    lab.at("node-1").block_on(|| async {
        let mut snapshot = Snapshot::default();
        lab::apply(&mut snapshot, lab::OBJECTS);
        let mut plane = DataPlane::open(lab::config()).await.unwrap();
        plane.synced(&snapshot).await;
    });
    let ping = |from: &str, to: &str| {
        let dial = Dial::new(Transport::Ping, SocketAddr::new(to.parse().unwrap(), 0));
        lab.at(from).run(|| dial.patience(Duration::from_millis(500)).once())
    };
    for from in ["pod-x", "pod-a", "node-1", "outside"] {
        for to in ["10.96.0.1", "fd00:96::1"] {
            assert_eq!(ping(from, to), Outcome::Echoed, "{from} to {to}");
        }
        assert_eq!(ping(from, "10.96.200.1"), Outcome::Silent, "{from} to an address that is no Service's");
    }
}

#[test]
fn node_ports_follow_the_addresses_of_the_node() {
    require_root!();
    let lab = Lab::new();
    let node = lab.at("node-1");
    lab.at("outside").route(lab::net("192.0.2.1/32"), lab::address("node-1", false), "eth0");
    let mut config = lab::config();
    config.node_port_addresses = NodePortAddresses::In(vec![lab::net("192.0.2.0/24")]);
    let reached = || lab.at("outside").run(|| Dial::tcp(address("192.0.2.1:30080")).once()).by().is_some();
    node.block_on(|| async {
        let mut snapshot = Snapshot::default();
        lab::apply(&mut snapshot, lab::OBJECTS);
        let mut plane = DataPlane::open(config).await.unwrap();
        plane.synced(&snapshot).await;
        // A link's own doings change nothing.
        node.address("eth0", lab::net("fe80::77/64"));
        node.address("eth0", lab::net("192.0.2.1/32"));
        let deadline = Duration::from_secs(5);
        tokio::time::timeout(deadline, plane.changed()).await.expect("to hear of a new address");
        assert!(plane.node_port_addresses(&snapshot).contains(&lab::net("192.0.2.1/32").addr()));
        plane.apply(&snapshot, &portolan_model::Delta::default()).await;
        assert!(reached());
        assert!(plane.changed().now_or_never().is_none(), "nothing else has changed");
    });
}

#[test]
fn what_went_through_each_frontend_is_counted() {
    require_root!();
    let lab = Lab::new();
    let mut config = lab::config();
    config.counters = true;
    let mut snapshot = Snapshot::default();
    let mut delta = lab::apply(&mut snapshot, lab::OBJECTS);
    delta.merge(lab::apply(&mut snapshot, CART));
    delta.merge(lab::apply(&mut snapshot, &cart_slice(&["pod-a", "pod-b"])));
    let figures = |counted: Vec<Counted>| -> BTreeMap<(String, FrontendKind), Counts> {
        let of_cart = counted.into_iter().filter(|counted| counted.service.name.as_ref() == "cart");
        of_cart.map(|counted| ((counted.port.to_string(), counted.kind), counted.counts)).collect()
    };
    let key = |port: &str, kind| (port.to_owned(), kind);
    let send = |from: &str, dial: &Dial, times: usize| {
        for _ in 0..times {
            assert!(lab.at(from).run(|| dial.once()).by().is_some(), "{from}: {dial:?}");
        }
    };
    let node = lab.at("node-1");
    let before = node.block_on(|| async {
        let mut plane = DataPlane::open(config.clone()).await.unwrap();
        plane.apply(&snapshot, &delta).await;
        let nothing = figures(plane.traffic(&snapshot).await.unwrap());
        assert_eq!(nothing.len(), 4, "{nothing:?}");
        assert!(nothing.values().all(|counts| *counts == Counts::default()), "{nothing:?}");

        send("pod-x", &Dial::udp(address("10.96.1.1:53")), 3);
        send("node-1", &Dial::udp(address("10.96.1.1:53")), 2);
        send("outside", &Dial::udp(address("10.203.0.11:30101")), 4);
        send("pod-x", &Dial::tcp(address("10.96.1.1:80")), 1);
        let counted = figures(plane.traffic(&snapshot).await.unwrap());
        let query = counted[&key("query", FrontendKind::ClusterIp)];
        // A question and an answer each.
        assert_eq!((query.connections, query.packets), (5, 10));
        let headers = 28 * query.packets;
        assert!((headers + 10..headers + 10 * 64).contains(&query.bytes), "{query:?}");
        let by_node = counted[&key("query", FrontendKind::NodePort)];
        assert_eq!((by_node.connections, by_node.packets), (4, 8));
        let web = counted[&key("web", FrontendKind::ClusterIp)];
        // At least the handshake, the greeting and the end.
        assert!(web.connections == 1 && web.packets >= 5, "{web:?}");

        // Neither a change of the endpoints nor their leaving starts anew.
        for pods in [&["pod-b"][..], &[], &["pod-a"]] {
            let delta = lab::apply(&mut snapshot, &cart_slice(pods));
            plane.apply(&snapshot, &delta).await;
        }
        assert_eq!(figures(plane.traffic(&snapshot).await.unwrap()), counted);
        counted
    });
    // Nor does a restart.
    node.block_on(|| async {
        let mut plane = DataPlane::open(config.clone()).await.unwrap();
        plane.synced(&snapshot).await;
        send("pod-x", &Dial::udp(address("10.96.1.1:53")), 1);
        let after = figures(plane.traffic(&snapshot).await.unwrap());
        let query = key("query", FrontendKind::ClusterIp);
        assert_eq!(after[&query].connections, before[&query].connections + 1);
        assert_eq!(after[&query].packets, before[&query].packets + 2);
    });
    // Nobody asks for them any more.
    node.block_on(|| async {
        let mut plane = DataPlane::open(lab::config()).await.unwrap();
        plane.synced(&snapshot).await;
        assert_eq!(plane.traffic(&snapshot).await.unwrap(), []);
    });
}
