//! Random clusters and changes to them, small enough that everything collides with everything.
#![allow(dead_code, reason = "each test that shares it uses its part")]

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use portolan_model::{
    Endpoint, EndpointPort, EndpointSlice, Event, Hints, Node, NodePort, Protocol, Service, ServiceId, ServicePort,
    ServiceType, SliceId, Snapshot, TrafficPolicy,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub(crate) struct Random(pub(crate) StdRng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    fn flip(&mut self) -> bool {
        self.0.random_bool(0.5)
    }

    fn below(&mut self, bound: u8) -> u8 {
        self.0.random_range(0..bound)
    }

    /// A Service or slice that comes, changes or goes.
    pub(crate) fn event(&mut self) -> Event {
        let number = self.below(6);
        match self.below(10) {
            0 => Event::ServiceGone(service_id(number)),
            1 => Event::SliceGone(SliceId::new("random", &format!("slice-{number}-{}", self.below(2)))),
            2..5 => Event::Service(self.service(number)),
            _ => Event::Slice(self.slice(number)),
        }
    }

    /// As [`event`](Self::event), or a node or a range of ClusterIPs that comes, changes or goes.
    pub(crate) fn cluster_event(&mut self) -> Event {
        match self.below(16) {
            0 => Event::Node(self.node()),
            1 => Event::ServiceCidr("kubernetes".into(), self.some(&["10.96.0.0/16", "fd00:96::/112"].map(net))),
            2 if self.flip() => Event::ServiceCidrGone("kubernetes".into()),
            _ => self.event(),
        }
    }

    /// The node under test, which moves between zones and addresses.
    fn node(&mut self) -> Node {
        Node {
            name: "node-1".into(),
            addresses: self.some(&["10.203.0.11", "10.203.0.13", "fd00:203::11"].map(|text| text.parse().unwrap())),
            pod_cidrs: vec![net("10.244.1.0/24")],
            zone: self.flip().then(|| "east".into()),
            ready: true,
            excluded_from_load_balancers: false,
            going_away: false,
        }
    }

    fn policy(&mut self) -> TrafficPolicy {
        if self.flip() { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
    }

    fn some<T>(&mut self, of: &[T]) -> Vec<T>
    where
        T: Clone,
    {
        of.iter().filter(|_| self.0.random_bool(0.4)).cloned().collect()
    }

    fn service(&mut self, number: u8) -> Service {
        let port = |name: &str, protocol, port, node_port: Option<u16>| ServicePort {
            name: name.into(),
            protocol,
            port,
            node_port: node_port.map(NodePort),
        };
        // Node ports and external addresses are few, so that Services contend for them.
        let node_port = self.flip().then(|| 30_000 + u16::from(self.below(3)));
        let affinity = self.flip().then(|| Duration::from_secs(1 + u64::from(self.below(2))));
        let (internal_policy, external_policy) = (self.policy(), self.policy());
        let mut cluster_ips = vec![IpAddr::from([10, 96, 0, number])];
        if self.flip() {
            cluster_ips.push(IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(number)]));
        }
        Service {
            id: service_id(number),
            service_type: ServiceType::LoadBalancer,
            cluster_ips,
            headless: false,
            external_ips: self.some(&[IpAddr::from([198, 51, 100, 1]), IpAddr::from([198, 51, 100, 2])]),
            load_balancer_ips: self.some(&[IpAddr::from([10, 203, 0, 200]), IpAddr::from([10, 203, 0, 201])]),
            ports: vec![port("tcp", Protocol::Tcp, 80, node_port), port("udp", Protocol::Udp, 53, None)],
            affinity,
            internal_policy,
            external_policy,
            health_check_node_port: None,
            source_ranges: self
                .some(&["192.0.2.0/24", "192.0.2.0/25", "203.0.113.7/32"].map(|net| net.parse().unwrap())),
            publish_not_ready: false,
            foreign_proxy: self.0.random_bool(0.1),
        }
    }

    fn slice(&mut self, number: u8) -> EndpointSlice {
        let ipv6 = self.flip();
        let endpoints = (0..self.below(6)).map(|_| self.endpoint(ipv6)).collect();
        let port = |name: &str, protocol| EndpointPort { name: name.into(), protocol, port: Some(8080) };
        EndpointSlice {
            id: SliceId::new("random", &format!("slice-{number}-{}", u8::from(ipv6))),
            headless: false,
            service: service_id(number),
            ports: vec![port("tcp", Protocol::Tcp), port("udp", Protocol::Udp)],
            endpoints,
        }
    }

    fn endpoint(&mut self, ipv6: bool) -> Endpoint {
        let host = self.below(8);
        let address = if ipv6 {
            IpAddr::from([0xfd00, 0x244, 0, 0, 0, 0, 0, u16::from(host)])
        } else {
            IpAddr::from([10, 244, 1, host])
        };
        let (ready, serving) = (self.0.random_bool(0.8), self.flip());
        Endpoint {
            address,
            ready,
            serving,
            terminating: !ready && self.flip(),
            node: Some(if self.flip() { "node-1" } else { "node-2" }.into()),
            own: None,
            hints: self.0.random_bool(0.8).then(|| Hints { zones: vec!["east".into()], nodes: Vec::new() }.into()),
        }
    }
}

/// The events that take everything away.
pub(crate) fn farewell(snapshot: &Snapshot) -> Vec<Event> {
    let slices = snapshot.services().flat_map(|service| snapshot.slices(&service.id));
    let slices: Vec<Event> = slices.map(|slice| Event::SliceGone(slice.id.clone())).collect();
    let services = snapshot.services().map(|service| Event::ServiceGone(service.id.clone()));
    let nodes = snapshot.nodes().map(|node| Event::NodeGone(node.name.clone()));
    slices.into_iter().chain(services).chain(nodes).chain([Event::ServiceCidrGone("kubernetes".into())]).collect()
}

/// A Service at 10.96.255.1 with so many endpoints, a thousand to a slice.
pub(crate) fn crowd(endpoints: u32) -> Vec<Event> {
    let mut random = Random::new(0);
    let id = ServiceId::new("random", "crowd");
    let service = Service {
        id: id.clone(),
        cluster_ips: vec![IpAddr::from([10, 96, 255, 1])],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        internal_policy: TrafficPolicy::Cluster,
        affinity: Some(Duration::from_secs(600)),
        ports: vec![ServicePort { name: "tcp".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        foreign_proxy: false,
        ..random.service(0)
    };
    let mut events = vec![Event::Service(service)];
    for slice in 0..endpoints.div_ceil(1_000) {
        let hosts = (slice * 1_000)..endpoints.min((slice + 1) * 1_000);
        let address = |host: u32| IpAddr::from((0x0a80_0000 + host).to_be_bytes());
        events.push(Event::Slice(EndpointSlice {
            id: SliceId::new("random", &format!("crowd-{slice}")),
            headless: false,
            service: id.clone(),
            ports: vec![EndpointPort { name: "tcp".into(), protocol: Protocol::Tcp, port: Some(8080) }],
            endpoints: hosts
                .map(|host| Endpoint { address: address(host), ready: true, ..random.endpoint(false) })
                .collect(),
        }));
    }
    events
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn service_id(number: u8) -> ServiceId {
    ServiceId::new("random", &format!("service-{number}"))
}
