//! The snapshot -> what one node's kernel shall do with packets to Services, address by address.
//!
//! Invariants: [`compile`] is a pure function of the snapshot and the [`NodeContext`]; frontends and backends come out
//! sorted and without duplicates; a backend has the family of its frontend; nonsense gives a [`Diagnostic`] and the
//! rest of the Service stands. One truth for all implementations: [`trace`](crate::forwarding::trace) walks the same
//! state that nftables is programmed from.
//!
//! Deliberately not here: maps, chains or anything else of one implementation; who wins when two Services claim one
//! frontend (a question about all Services, which [`Claims`] answers).
//!
//! Source: the Service API reference; KEP-1669 (terminating endpoints), KEP-2086 (internal policy), KEP-2433 and
//! KEP-3015 (topology hints); kube-proxy's observable behaviour.

mod claims;
mod compile;
mod endpoints;
mod trace;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use claims::Claims;
pub use compile::{MAX_BACKENDS, compile};
pub use trace::{Flow, Outcome, Possible, Table, trace};

use crate::{Protocol, Snapshot};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `0.0.0.0` or `::`.
    #[must_use]
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// Where packets for a Service arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    pub place: Place,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    Address(IpAddr),
    /// All of the node's own addresses of the family that take NodePort traffic.
    Node(Family),
}

impl Frontend {
    #[must_use]
    pub fn family(&self) -> Family {
        match self.place {
            Place::Address(address) => Family::of(address),
            Place::Node(family) => family,
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Address(address) => {
                write!(f, "{} {}", self.protocol, std::net::SocketAddr::new(address, self.port))
            }
            Place::Node(Family::V4) => write!(f, "{} node:{}", self.protocol, self.port),
            Place::Node(Family::V6) => write!(f, "{} node6:{}", self.protocol, self.port),
        }
    }
}

/// Where a packet may be sent instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub address: IpAddr,
    pub port: u16,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// What makes an address lead to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
}

/// What becomes of a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To one of these, each with the same share. Sorted, never empty.
    Forward(Arc<[Backend]>),
    /// Refused so that the client knows at once: the Service has no endpoint anywhere.
    Reject,
    /// Left unanswered: the policy is Local and the endpoints are elsewhere, so another node should be asked.
    Drop,
}

impl Target {
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        if let Self::Forward(backends) = self { backends } else { &[] }
    }
}

/// Whose source address is replaced by the node's, besides a client that reaches itself (which always is).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// A client beyond the pod network, so that the answer comes back through this node.
    Outsiders,
    /// Everybody: the backend may be on another node.
    Everybody,
    /// The node itself only: outside clients are served locally and keep their address.
    NodeItself,
}

/// A client stays with the backend it was given last, at every address that may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// For how long, counted from its latest connection.
    pub timeout: Duration,
    /// The frontend that stands for all of the Service's that remember together: those of one port and family, whatever
    /// their policies.
    pub together: Frontend,
}

/// All there is to know about one frontend on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendForwarding {
    pub frontend: Frontend,
    pub kind: FrontendKind,
    /// For pods and for the node itself.
    pub inside: Target,
    /// For everyone else; differs from `inside` under `externalTrafficPolicy: Local` only.
    pub outside: Target,
    pub masquerade: Masquerade,
    pub affinity: Option<Affinity>,
    /// Who may come; empty means everyone.
    pub sources: Vec<IpNet>,
}

/// One Service on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceForwarding {
    /// In the order of their frontends.
    pub frontends: Vec<FrontendForwarding>,
    /// ClusterIPs: on these, ports that no Service has are refused. Sorted.
    pub cluster_ips: Vec<IpAddr>,
    /// Backends that this node may send back to themselves: its own pods, and others where their address is kept
    /// towards an external address. Sorted.
    pub hairpins: Vec<IpAddr>,
    /// Ready backends of any port that run on this node: what a load balancer's health check asks for.
    pub local_ready: usize,
}

/// The link that pods' packets come in by, where that tells them from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodLink {
    Named(String),
    Prefixed(String),
}

impl PodLink {
    #[must_use]
    pub fn is(&self, link: &str) -> bool {
        match self {
            Self::Named(name) => link == name,
            Self::Prefixed(prefix) => link.starts_with(prefix),
        }
    }
}

/// What compiling and tracing need to know of the node besides the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeContext {
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// The node's own addresses that take NodePort traffic.
    pub node_port_addresses: Vec<IpAddr>,
    /// The node's own addresses, all of them; the first of a family answers pings for ClusterIPs.
    pub own_addresses: Vec<IpAddr>,
    /// Sources that count as pods. Without any in a family, no client of a ClusterIP of that family counts as an
    /// outsider.
    pub pod_networks: Vec<IpNet>,
    /// Pods are told by the link their packets come in by, and not by `pod_networks`.
    pub pod_link: Option<PodLink>,
    /// Replace the source address of all traffic to ClusterIPs.
    pub masquerade_all: bool,
}

impl NodeContext {
    /// What the snapshot says about the node, with the first address of each family of its status for NodePorts.
    #[must_use]
    pub fn from_snapshot(snapshot: &Snapshot, name: &str, pod_networks: &[IpNet]) -> Self {
        let node = snapshot.node(name);
        let addresses = node.map(|node| node.addresses.clone()).unwrap_or_default();
        let primary = |family: Family| addresses.iter().copied().find(|address| Family::of(*address) == family);
        Self {
            name: name.into(),
            zone: node.and_then(|node| node.zone.clone()),
            node_port_addresses: Family::BOTH.into_iter().filter_map(primary).collect(),
            own_addresses: addresses,
            pod_networks: pod_networks.to_vec(),
            pod_link: None,
            masquerade_all: false,
        }
    }

    /// Whether the two differ in nothing but the node's own addresses, if in anything.
    #[must_use]
    pub fn is_but_for_addresses(&self, other: &Self) -> bool {
        let nowhere = |node: &Self| Self { own_addresses: Vec::new(), node_port_addresses: Vec::new(), ..node.clone() };
        nowhere(self) == nowhere(other)
    }

    /// The address of the family that answers pings for ClusterIPs.
    #[must_use]
    pub fn answering(&self, family: Family) -> Option<IpAddr> {
        self.own_addresses.iter().copied().find(|address| Family::of(*address) == family && !address.is_loopback())
    }

    /// Whether a packet is a pod's. `link` is the one it came in by; `None` if it was made on the node itself.
    #[must_use]
    pub fn is_pod(&self, source: IpAddr, link: Option<&str>) -> bool {
        match &self.pod_link {
            Some(pods) => link.is_some_and(|link| pods.is(link)),
            None => self.pod_networks.iter().any(|network| network.contains(&source)),
        }
    }

    /// Whether a packet to a ClusterIP comes from beyond the pods, as far as there is a way to tell.
    #[must_use]
    pub fn is_outsider(&self, source: IpAddr, link: Option<&str>) -> bool {
        let of_family = |network: &IpNet| Family::of(network.addr()) == Family::of(source);
        (self.pod_link.is_some() || self.pod_networks.iter().any(of_family)) && !self.is_pod(source, link)
    }
}
