//! Random clusters and changes to them, small enough that everything collides with everything.

use std::net::IpAddr;
use std::time::Duration;

use portolan_model::{
    Endpoint, EndpointPort, EndpointSlice, Event, NodePort, Protocol, Service, ServiceId, ServicePort, ServiceType,
    SliceId, TrafficPolicy,
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
            traffic_distribution: None,
            selector: std::collections::BTreeMap::default(),
            foreign_proxy: self.0.random_bool(0.1),
        }
    }

    fn slice(&mut self, number: u8) -> EndpointSlice {
        let ipv6 = self.flip();
        let endpoints = (0..self.below(6)).map(|_| self.endpoint(ipv6)).collect();
        let port = |name: &str, protocol| EndpointPort { name: name.into(), protocol, port: Some(8080) };
        EndpointSlice {
            id: SliceId::new("random", &format!("slice-{number}-{}", u8::from(ipv6))),
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
            zone: None,
            hostname: None,
            pod: None,
            hint_zones: Vec::new(),
            hint_nodes: Vec::new(),
        }
    }
}

fn service_id(number: u8) -> ServiceId {
    ServiceId::new("random", &format!("service-{number}"))
}
