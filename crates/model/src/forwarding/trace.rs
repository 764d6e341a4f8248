//! One packet -> what becomes of it, decided from the desired state alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Backend, Claims, Family, Frontend, Masquerade, NodeContext, Place, ServiceForwarding, Target, compile};
use crate::{Protocol, ServiceId, Snapshot};

/// The first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<'a> {
    pub source: IpAddr,
    /// The link that it comes in by; none for what the node sends itself.
    pub link: Option<&'a str>,
    pub protocol: Protocol,
    pub destination: IpAddr,
    pub port: u16,
}

/// A backend the connection may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Possible {
    pub backend: Backend,
    /// The backend sees the node's address instead of the client's.
    pub masquerade: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Each with the same share.
    Forward { service: ServiceId, backends: Vec<Possible> },
    /// A Service's, or a ClusterIP's port that no Service has (`None`).
    Reject { service: Option<ServiceId> },
    /// By a Service's policy, or because no Service has the address (`None`).
    Drop { service: Option<ServiceId> },
    /// Nothing to do with Services.
    Pass,
}

/// All Services of a node, as a tracer looks things up.
#[derive(Clone, Debug, Default)]
pub struct Table {
    services: BTreeMap<ServiceId, ServiceForwarding>,
    claims: Claims,
    cluster_ips: BTreeSet<IpAddr>,
    service_cidrs: Vec<IpNet>,
}

impl Table {
    #[must_use]
    pub fn compile(snapshot: &Snapshot, node: &NodeContext) -> Self {
        let mut table = Self { service_cidrs: snapshot.service_cidrs().copied().collect(), ..Self::default() };
        for service in snapshot.services() {
            let (forwarding, _) = compile(snapshot, &service.id, node);
            for frontend in &forwarding.frontends {
                table.claims.claim(frontend.frontend, &service.id);
            }
            table.cluster_ips.extend(&forwarding.cluster_ips);
            table.services.insert(service.id.clone(), forwarding);
        }
        table
    }
}

#[must_use]
pub fn trace(table: &Table, node: &NodeContext, flow: Flow<'_>) -> Outcome {
    let at = |place| Frontend { place, protocol: flow.protocol, port: flow.port };
    let mut frontend = at(Place::Address(flow.destination));
    if table.claims.holder(&frontend).is_none() && node.node_port_addresses.contains(&flow.destination) {
        frontend = at(Place::Node(Family::of(flow.destination)));
    }
    let found = table.claims.holder(&frontend).and_then(|service| {
        let forwarding = table.services.get(service)?.frontends.iter().find(|f| f.frontend == frontend)?;
        Some((service, forwarding))
    });
    let Some((service, forwarding)) = found else {
        if table.cluster_ips.contains(&flow.destination) {
            return Outcome::Reject { service: None };
        }
        if table.service_cidrs.iter().any(|cidr| cidr.contains(&flow.destination)) {
            return Outcome::Drop { service: None };
        }
        return Outcome::Pass;
    };
    let is_pod = node.is_pod(flow.source, flow.link);
    let is_node = node.own_addresses.contains(&flow.source);
    let service = service.clone();
    let admitted = forwarding.sources.is_empty() || forwarding.sources.iter().any(|range| range.contains(&flow.source));
    if !admitted {
        return Outcome::Drop { service: Some(service) };
    }
    let masquerade = match forwarding.masquerade {
        Masquerade::Outsiders => node.masquerade_all || node.is_outsider(flow.source, flow.link),
        Masquerade::Everybody => true,
        Masquerade::NodeItself => is_node,
    };
    match if is_pod || is_node { &forwarding.inside } else { &forwarding.outside } {
        Target::Forward(backends) => {
            let possible = |backend: &Backend| Possible {
                backend: *backend,
                // What comes from elsewhere and stays here never passes where sources are replaced.
                masquerade: (masquerade || backend.address == flow.source)
                    && (is_node || !node.own_addresses.contains(&backend.address)),
            };
            Outcome::Forward { service, backends: backends.iter().map(possible).collect() }
        }
        Target::Reject => Outcome::Reject { service: Some(service) },
        Target::Drop => Outcome::Drop { service: Some(service) },
    }
}
