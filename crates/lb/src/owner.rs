//! The Snapshot -> the one node that answers for each external address.
//!
//! Invariants: pure, so every node that sees the same Snapshot comes to the same owner without asking anyone; an
//! address moves only when its owner stops being eligible or a node that ranks higher becomes so, whatever else comes
//! and goes; all Services that share an address have the same owner.
//!
//! Source: rendezvous hashing (Thaler and Ravishankar 1998). Eligible are nodes that are ready, not labelled
//! `node.kubernetes.io/exclude-from-external-load-balancers` and not going away; with `externalTrafficPolicy: Local`
//! only those with an endpoint that may be sent traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use portolan_model::{Delta, Endpoint, Node, Service, ServiceId, ServiceType, Snapshot, TrafficPolicy};

/// The addresses that came to a node, and that it lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub gained: Vec<IpAddr>,
    pub lost: Vec<IpAddr>,
}

/// The name of the node that answers for the address; `None` if no LoadBalancer Service has it or no node may.
#[must_use]
pub fn owner(snapshot: &Snapshot, address: IpAddr) -> Option<Arc<str>> {
    let holders = snapshot.services().filter(|service| addresses(service).any(|ip| ip == address));
    choose(snapshot, address, holders)
}

/// What one node owns, kept up with the Snapshot.
#[derive(Clone, Debug)]
pub struct Ownership {
    node: Arc<str>,
    /// Both ways, of the LoadBalancer Services alone.
    services: BTreeMap<ServiceId, Vec<IpAddr>>,
    holders: BTreeMap<IpAddr, BTreeSet<ServiceId>>,
    /// What of the nodes bears on ownership.
    nodes: Vec<(Arc<str>, bool, Vec<IpAddr>)>,
    owned: BTreeSet<IpAddr>,
}

impl Ownership {
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            services: BTreeMap::new(),
            holders: BTreeMap::new(),
            nodes: Vec::new(),
            owned: BTreeSet::new(),
        }
    }

    /// Looks again at the addresses of the Services the delta names; at all of them if a node's fitness changed.
    pub fn apply(&mut self, snapshot: &Snapshot, delta: &Delta) -> Change {
        let mut touched = BTreeSet::new();
        for id in &delta.services {
            touched.extend(self.services.remove(id).into_iter().flatten());
            for address in &touched {
                if let Some(holders) = self.holders.get_mut(address) {
                    holders.remove(id);
                }
            }
            let new: Vec<IpAddr> = snapshot.service(id).into_iter().flat_map(addresses).collect();
            for address in &new {
                touched.insert(*address);
                self.holders.entry(*address).or_default().insert(id.clone());
            }
            if !new.is_empty() {
                self.services.insert(id.clone(), new);
            }
        }
        if !delta.nodes.is_empty() {
            let fitness = |node: &Node| (node.name.clone(), is_eligible(node), node.addresses.clone());
            let nodes: Vec<_> = snapshot.nodes().map(fitness).collect();
            if nodes != self.nodes {
                self.nodes = nodes;
                touched.extend(self.holders.keys());
            }
        }
        let mut change = Change::default();
        for address in touched {
            let holders = self.holders.get(&address).into_iter().flatten();
            let owner = choose(snapshot, address, holders.filter_map(|id| snapshot.service(id)));
            if owner.is_some_and(|owner| owner == self.node) {
                if self.owned.insert(address) {
                    change.gained.push(address);
                }
            } else if self.owned.remove(&address) {
                change.lost.push(address);
            }
        }
        self.holders.retain(|_, holders| !holders.is_empty());
        change
    }

    /// In order.
    pub fn owned(&self) -> impl Iterator<Item = IpAddr> {
        self.owned.iter().copied()
    }
}

/// What the Service would have a node answer for.
fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    // What another proxy forwards, our nodes would attract and lose.
    let announced = service.service_type == ServiceType::LoadBalancer && !service.foreign_proxy;
    let addresses = service.load_balancer_ips.iter().copied().filter(move |_| announced);
    addresses.filter(|address| match address {
        IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unspecified() || v6.is_multicast()),
    })
}

fn is_eligible(node: &Node) -> bool {
    node.ready && !node.excluded_from_load_balancers && !node.going_away
}

fn choose<'s>(snapshot: &'s Snapshot, address: IpAddr, holders: impl Iterator<Item = &'s Service>) -> Option<Arc<str>> {
    // Some load balancers put a node's own address into the status. Its node answers for it; nobody else may.
    if snapshot.nodes().any(|node| node.addresses.contains(&address)) {
        return None;
    }
    // Services that nobody can serve do not decide about an address that others share.
    let able: Vec<BTreeSet<&Arc<str>>> =
        holders.map(|service| able_nodes(snapshot, service)).filter(|nodes| !nodes.is_empty()).collect();
    let all = || able.iter().flatten().copied();
    let rank = |node: &&Arc<str>| (weight(address, node), (*node).clone());
    let for_all = all().filter(|node| able.iter().all(|nodes| nodes.contains(node))).max_by_key(rank);
    for_all.or_else(|| all().max_by_key(rank)).cloned()
}

/// The nodes that could take the Service's traffic.
fn able_nodes<'s>(snapshot: &'s Snapshot, service: &Service) -> BTreeSet<&'s Arc<str>> {
    let eligible = snapshot.nodes().filter(|node| is_eligible(node)).map(|node| &node.name);
    if service.external_policy == TrafficPolicy::Cluster {
        return eligible.collect();
    }
    let eligible: BTreeSet<_> = eligible.collect();
    let with = |usable: fn(&Endpoint) -> bool| -> BTreeSet<&Arc<str>> {
        let endpoints = snapshot.forwarded_slices(&service.id).flat_map(|slice| &slice.endpoints);
        let nodes = endpoints.filter(|endpoint| usable(endpoint)).filter_map(|endpoint| endpoint.node.as_ref());
        nodes.filter_map(|node| eligible.get(node).copied()).collect()
    };
    let ready = with(|endpoint| endpoint.ready);
    // As the data plane does: while the last endpoints terminate, they still serve.
    if ready.is_empty() { with(|endpoint| endpoint.serving && endpoint.terminating) } else { ready }
}

/// How strongly an address prefers a node: FNV-1a over both, mixed by the finalizer of SplitMix64. Every node must come
/// to the same figure, so this is part of the protocol between versions.
fn weight(address: IpAddr, node: &str) -> u64 {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let fnv = octets
        .iter()
        .chain(node.as_bytes())
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, octet| (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (fnv ^ fnv >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

#[cfg(test)]
#[path = "owner_tests.rs"]
mod tests;
