//! The machines of `flows/objects.yaml` as network namespaces, and its objects as a snapshot.
#![allow(clippy::unwrap_used, dead_code, reason = "each test file uses its part of the fixture")]

pub(crate) mod random;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use portolan_dataplane::{LocalTraffic, ProxyConfig};
use portolan_model::{Delta, Event, Snapshot, translate};
use portolan_testkit::{Echo, Netns, cable};

pub(crate) const OBJECTS: &str = include_str!("../flows/objects.yaml");

const MACHINES: [(&str, &str, &str); 7] = [
    ("node-1", "10.203.0.11", "fd00:203::11"),
    ("node-2", "10.203.0.12", "fd00:203::12"),
    ("outside", "10.203.0.2", "fd00:203::2"),
    ("pod-x", "10.244.1.9", "fd00:244:1::9"),
    ("pod-a", "10.244.1.2", "fd00:244:1::2"),
    ("pod-b", "10.244.1.3", "fd00:244:1::3"),
    ("pod-c", "10.244.2.2", "fd00:244:2::2"),
];

/// Addresses that a lab's machines have besides, once it was told to [`Lab::add_addresses`].
const FURTHER: [(&str, &str); 8] = [
    ("node-1", "127.0.0.1"),
    ("node-1", "::1"),
    ("node-1", "192.0.2.1"),
    ("node-1", "fd00:192::1"),
    ("outside", "10.203.0.250"),
    ("outside", "fd00:203:1::250"),
    ("outside", "198.51.100.250"),
    ("outside", "fd00:198::250"),
];

pub(crate) fn address(machine: &str, ipv6: bool) -> IpAddr {
    let (_, v4, v6) = MACHINES.iter().find(|(name, ..)| *name == machine).expect("a machine of the lab");
    if ipv6 { v6 } else { v4 }.parse().unwrap()
}

pub(crate) fn machine_at(address: IpAddr) -> &'static str {
    let at = |(_, v4, v6): &&(&str, &str, &str)| v4.parse() == Ok(address) || v6.parse() == Ok(address);
    let further = || FURTHER.iter().find(|(_, further)| further.parse() == Ok(address)).map(|(name, _)| *name);
    MACHINES.iter().find(at).map(|(name, ..)| *name).or_else(further).unwrap_or("nobody")
}

pub(crate) fn addresses_of(machine: &str) -> Vec<IpAddr> {
    let further = FURTHER.iter().filter(|(name, _)| *name == machine).map(|(_, address)| address.parse().unwrap());
    [false, true].map(|ipv6| address(machine, ipv6)).into_iter().chain(further).collect()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn config() -> ProxyConfig {
    ProxyConfig::new("node-1", LocalTraffic::ClusterCidr(vec![net("10.244.0.0/16"), net("fd00:244::/32")]))
}

/// Reads Kubernetes objects, many to a file, into events.
pub(crate) fn events(yaml: &str) -> Vec<Event> {
    let objects: Vec<serde_json::Value> = serde_saphyr::from_multiple(yaml).expect("objects in YAML");
    let event = |object: serde_json::Value| match object["kind"].as_str() {
        Some("Service") => Event::Service(translate::service(&serde_json::from_value(object).unwrap()).unwrap().0),
        Some("EndpointSlice") => {
            Event::Slice(translate::endpoint_slice(&serde_json::from_value(object).unwrap()).unwrap().0)
        }
        Some("Node") => Event::Node(translate::node(&serde_json::from_value(object).unwrap()).unwrap()),
        Some("ServiceCIDR") => {
            let (name, cidrs) = translate::service_cidrs(&serde_json::from_value(object).unwrap()).unwrap();
            Event::ServiceCidr(name, cidrs)
        }
        other => panic!("an object of kind {other:?}"),
    };
    objects.into_iter().map(event).collect()
}

/// Applies the objects; gives what changed.
pub(crate) fn apply(snapshot: &mut Snapshot, yaml: &str) -> Delta {
    let mut delta = Delta::default();
    for event in events(yaml) {
        delta.merge(snapshot.apply(event));
    }
    delta
}

/// Two nodes and a machine beyond them on one switch, and pods behind the nodes.
pub(crate) struct Lab {
    machines: BTreeMap<&'static str, Netns>,
    _switch: Netns,
    echoes: BTreeMap<&'static str, Echo>,
    further: Vec<Echo>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let machines: BTreeMap<_, _> = MACHINES.iter().map(|(name, ..)| (*name, Netns::new())).collect();
        let switch = Netns::new();
        for name in ["node-1", "node-2", "outside"] {
            let host = &machines[name];
            cable((&switch, name), (host, "eth0"));
            host.address("eth0", IpNet::new(address(name, false), 24).unwrap());
            host.address("eth0", IpNet::new(address(name, true), 64).unwrap());
            host.forward();
            // Many refusals in a row are what these tests are about.
            host.sysctl("net.ipv4.icmp_ratelimit", "0");
            host.sysctl("net.ipv6.icmp.ratelimit", "0");
        }
        switch.switch(&["node-1", "node-2", "outside"]);
        for (node, pods, other) in
            [("node-1", &["pod-x", "pod-a", "pod-b"][..], "node-2"), ("node-2", &["pod-c"][..], "node-1")]
        {
            let host = &machines[node];
            host.route(net("0.0.0.0/0"), address("outside", false), "eth0");
            host.route(net("::/0"), address("outside", true), "eth0");
            let (pods_of_other, pods6_of_other) = if node == "node-1" {
                ("10.244.2.0/24", "fd00:244:2::/64")
            } else {
                ("10.244.1.0/24", "fd00:244:1::/64")
            };
            host.route(net(pods_of_other), address(other, false), "eth0");
            host.route(net(pods6_of_other), address(other, true), "eth0");
            for name in pods {
                let pod = &machines[name];
                cable((host, name), (pod, "eth0"));
                pod.address("eth0", IpNet::from(address(name, false)));
                pod.on_link(IpNet::from(address(node, false)), "eth0");
                pod.route(net("0.0.0.0/0"), address(node, false), "eth0");
                host.on_link(IpNet::from(address(name, false)), name);
                pod.address("eth0", IpNet::from(address(name, true)));
                host.address(name, net("fe80::1/64"));
                pod.route(net("::/0"), "fe80::1".parse().unwrap(), "eth0");
                host.on_link(IpNet::from(address(name, true)), name);
            }
        }
        let outside = &machines["outside"];
        for (destination, gateway) in [
            ("10.244.1.0/24", "node-1"),
            ("10.244.2.0/24", "node-2"),
            ("fd00:244:1::/64", "node-1"),
            ("fd00:244:2::/64", "node-2"),
        ] {
            let destination = net(destination);
            outside.route(destination, address(gateway, destination.addr().is_ipv6()), "eth0");
        }
        // What is a Service's is the business of the node under test.
        for host in ["outside", "node-2"] {
            for destination in [
                "10.96.0.0/16",
                "10.203.0.192/27",
                "198.51.100.0/24",
                "192.0.2.0/24",
                "fd00:96::/112",
                "fd00:203:1::/64",
                "fd00:198::/64",
                "fd00:192::/64",
            ] {
                let destination = net(destination);
                machines[host].route(destination, address("node-1", destination.addr().is_ipv6()), "eth0");
            }
        }
        let mut lab = Self { machines, _switch: switch, echoes: BTreeMap::new(), further: Vec::new() };
        for name in ["node-1", "node-2", "pod-a", "pod-b", "pod-c", "outside"] {
            lab.start(name);
        }
        lab
    }

    pub(crate) fn at(&self, machine: &str) -> &Netns {
        &self.machines[machine]
    }

    /// Starts the machine's server, which says `name:port` of where it was reached.
    pub(crate) fn start(&mut self, name: &'static str) {
        let addresses: Vec<SocketAddr> = [false, true]
            .into_iter()
            .flat_map(|ipv6| [8080, 9090].map(|port| SocketAddr::new(address(name, ipv6), port)))
            .collect();
        self.echoes.insert(name, Echo::start(&self.machines[name], name, &addresses));
    }

    /// Gives the machines the addresses that not every test expects them to have.
    pub(crate) fn add_addresses(&self) {
        for (machine, address) in FURTHER {
            let address: IpAddr = address.parse().unwrap();
            if !address.is_loopback() {
                self.machines[machine].address("eth0", address.into());
            }
        }
    }

    /// Lets the machine's name be the answer there too.
    pub(crate) fn listen(&mut self, machine: &str, addresses: &[SocketAddr]) {
        self.further.push(Echo::start(&self.machines[machine], machine, addresses));
    }

    pub(crate) fn stop(&mut self, name: &str) {
        self.echoes.remove(name);
    }
}
