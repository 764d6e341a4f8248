//! Machines, a cgroup for clients, and Services in short.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::lab;
use crate::lab::Lab;
use portolan_dataplane::sock::{Capacity, SockConfig, SockLb};
use portolan_model::forwarding::{
    Backend, Family, Frontend, FrontendForwarding, FrontendKind, Masquerade, NodeContext, Place, ServiceForwarding,
    Target,
};
use portolan_model::{Protocol, ServiceId};
use portolan_testkit::{Cgroup, Dial, Netns, Outcome, require_root, skip, with_bpffs};

pub(crate) type Services = BTreeMap<ServiceId, ServiceForwarding>;

/// Machines, a cgroup for the clients, and a place for what is pinned.
pub(crate) struct Bench {
    pub(crate) lab: Lab,
    pub(crate) cgroup: Cgroup,
    pub(crate) config: SockConfig,
}

impl Bench {
    /// What a client does in the cgroup, on a machine of the lab.
    pub(crate) fn client<T: Send>(&self, machine: &str, work: impl FnOnce() -> T + Send) -> T {
        self.cgroup.run(|| self.lab.at(machine).run(work))
    }

    pub(crate) fn dial(&self, machine: &str, dial: &Dial) -> Outcome {
        self.client(machine, || dial.once())
    }

    pub(crate) fn node(&self) -> &Netns {
        self.lab.at("node-1")
    }
}

pub(crate) fn bench(test: impl FnOnce(&Bench) + Send) {
    require_root!();
    let Some(cgroup) = Cgroup::new() else { return skip("no cgroup v2 hierarchy is mounted") };
    with_bpffs(|bpffs| {
        let capacity = Capacity { frontends: 1 << 10, backends: 1 << 14, connections: 1 << 12 };
        let config = SockConfig { capacity, ..SockConfig::new(cgroup.path().to_owned(), bpffs.join("portolan")) };
        test(&Bench { lab: Lab::new(), cgroup, config });
    });
}

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn place(text: &str) -> (Place, u16) {
    match text
        .strip_prefix("node:")
        .map(|port| (Family::V4, port))
        .or(text.strip_prefix("node6:").map(|port| (Family::V6, port)))
    {
        Some((family, port)) => (Place::Node(family), port.parse().unwrap()),
        None => (Place::Address(address(text).ip()), address(text).port()),
    }
}

/// To the pods' port 8080, or a refusal where there are none.
pub(crate) fn to(pods: &[&str], ipv6: bool) -> Target {
    let backend = |pod: &&str| Backend { address: lab::address(pod, ipv6), port: 8080 };
    let backends: BTreeSet<Backend> = pods.iter().map(backend).collect();
    if backends.is_empty() { Target::Reject } else { Target::Forward(backends.into_iter().collect()) }
}

pub(crate) fn forwarding(at: &str, protocol: Protocol, target: &Target) -> FrontendForwarding {
    let (place, port) = place(at);
    FrontendForwarding {
        frontend: Frontend { place, protocol, port },
        kind: FrontendKind::ClusterIp,
        inside: target.clone(),
        outside: target.clone(),
        masquerade: Masquerade::Outsiders,
        affinity: None,
        sources: Vec::new(),
    }
}

pub(crate) fn service(name: &str, frontends: Vec<FrontendForwarding>) -> Services {
    BTreeMap::from([(ServiceId::new("shop", name), ServiceForwarding { frontends, ..ServiceForwarding::default() })])
}

/// TCP and UDP at each place, led to the pods.
pub(crate) fn web(places: &[&str], pods: &[&str]) -> Services {
    let both = |at: &&str| {
        let ipv6 = place(at).0 == Place::Node(Family::V6) || at.starts_with('[');
        [Protocol::Tcp, Protocol::Udp].map(|protocol| forwarding(at, protocol, &to(pods, ipv6)))
    };
    service("web", places.iter().flat_map(both).collect())
}

pub(crate) fn here() -> NodeContext {
    let own = [false, true].map(|ipv6| lab::address("node-1", ipv6)).to_vec();
    NodeContext {
        name: "node-1".into(),
        node_port_addresses: own.clone(),
        own_addresses: own,
        ..NodeContext::default()
    }
}

pub(crate) fn open(config: &SockConfig, services: &Services) -> SockLb {
    let mut sockets = SockLb::open(config).unwrap();
    assert!(sockets.apply(services, &here()).is_empty());
    sockets
}

/// Says something and gives who answered, as which address.
pub(crate) fn ask(socket: &UdpSocket, to: Option<SocketAddr>) -> std::io::Result<(String, SocketAddr)> {
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    match to {
        Some(to) => socket.send_to(b"who?", to)?,
        None => socket.send(b"who?")?,
    };
    let mut answer = [0; 256];
    let (length, from) = socket.recv_from(&mut answer)?;
    let text = String::from_utf8_lossy(&answer[..length]).into_owned();
    Ok((text.split(' ').next().unwrap().to_owned(), from))
}
