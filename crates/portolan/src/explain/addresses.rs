//! A Service in a snapshot -> each of its names and addresses, and where each leads.
//!
//! Nodes on which an address leads the same way are told together; a dead node is left out, since nothing goes there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portolan_model::forwarding::{self, Frontend, FrontendForwarding, FrontendKind, NodeContext, Place, Target};
use portolan_model::{Diagnostic, Endpoint, Service, ServiceId, ServiceType, Snapshot};

/// One address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// `10.96.0.7:80/TCP (ClusterIP)`
    pub(super) what: String,
    /// Conditions that go with it, such as affinity.
    pub(super) notes: Vec<String>,
    pub(super) ways: Vec<Way>,
}

/// Where it leads on some of the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Empty when it is so on all nodes.
    pub(super) nodes: Vec<String>,
    pub(super) end: End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    Backends(Vec<Share>),
    Refused,
    Unanswered,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// In tenths of a percent.
    pub(super) permille: usize,
    pub(super) address: String,
    /// `pod web-1 on node1`, with what is special about it.
    pub(super) who: String,
}

pub(super) fn addresses(snapshot: &Snapshot, id: &ServiceId) -> (Vec<Address>, Vec<Diagnostic>) {
    let Some(service) = snapshot.service(id) else { return Default::default() };
    let mut contexts: Vec<NodeContext> = snapshot
        .nodes()
        .filter(|node| node.ready)
        .map(|node| NodeContext::from_snapshot(snapshot, &node.name, &[]))
        .collect();
    if contexts.is_empty() {
        // Where no node lives the question is still what one would do.
        contexts.push(NodeContext::default());
    }
    let mut diagnostics = Vec::new();
    let mut by_frontend: BTreeMap<(FrontendKind, Frontend), Vec<(&NodeContext, FrontendForwarding)>> = BTreeMap::new();
    for context in &contexts {
        let (compiled, complaints) = forwarding::compile(snapshot, id, context);
        diagnostics = complaints;
        for frontend in compiled.frontends {
            by_frontend.entry((frontend.kind, frontend.frontend)).or_default().push((context, frontend));
        }
    }
    let all = contexts.len();
    let addresses = by_frontend.into_iter().map(|((kind, frontend), on_nodes)| Address {
        what: what(kind, frontend, &on_nodes),
        notes: notes(snapshot, service, &on_nodes),
        ways: ways(snapshot, id, &on_nodes, all),
    });
    (addresses.collect(), diagnostics)
}

fn what(kind: FrontendKind, frontend: Frontend, on_nodes: &[(&NodeContext, FrontendForwarding)]) -> String {
    let Frontend { place, protocol, port } = frontend;
    let kind = match kind {
        FrontendKind::ClusterIp => "ClusterIP",
        FrontendKind::NodePort => "NodePort",
        FrontendKind::LoadBalancer => "LoadBalancer",
        FrontendKind::ExternalIp => "external IP",
    };
    match place {
        Place::Address(address) => {
            format!("{}/{protocol} ({kind})", std::net::SocketAddr::new(address, port))
        }
        Place::Node(family) => {
            let of_family = |address: &&IpAddr| forwarding::Family::of(**address) == family;
            let addresses = on_nodes.iter().flat_map(|(node, _)| node.node_port_addresses.iter().filter(of_family));
            let addresses: Vec<_> = addresses.map(ToString::to_string).collect();
            format!("port {port}/{protocol} of every node ({kind}): {}", addresses.join(", "))
        }
    }
}

fn notes(snapshot: &Snapshot, service: &Service, on_nodes: &[(&NodeContext, FrontendForwarding)]) -> Vec<String> {
    let mut notes = Vec::new();
    let Some((_, forwarding)) = on_nodes.first() else { return notes };
    if let Some(affinity) = forwarding.affinity {
        let time = affinity.timeout;
        notes.push(format!("a client stays with the backend it was given, until it has been away for {time:?}"));
    }
    if let (FrontendKind::LoadBalancer, Place::Address(address)) = (forwarding.kind, forwarding.frontend.place) {
        notes.push(match portolan_lb::owner(snapshot, address) {
            Some(node) => format!("{node} is the node that answers for it on the network"),
            None => {
                "no node answers for it on the network: none is ready, allowed to and has what the policy asks".into()
            }
        });
    }
    if forwarding.kind == FrontendKind::LoadBalancer && !service.source_ranges.is_empty() {
        let ranges: Vec<_> = service.source_ranges.iter().map(ToString::to_string).collect();
        notes.push(format!("only for clients within {}", ranges.join(", ")));
    }
    notes
}

fn ways(
    snapshot: &Snapshot,
    id: &ServiceId,
    on_nodes: &[(&NodeContext, FrontendForwarding)],
    all_nodes: usize,
) -> Vec<Way> {
    let mut ways: Vec<(&Target, Vec<String>)> = Vec::new();
    for (node, forwarding) in on_nodes {
        // What strangers get is what differs from node to node; from inside it leads on anyway.
        match ways.iter_mut().find(|(target, _)| **target == forwarding.outside) {
            Some((_, nodes)) => nodes.push(node.name.to_string()),
            None => ways.push((&forwarding.outside, vec![node.name.to_string()])),
        }
    }
    let everywhere = |nodes: &[String]| nodes.len() == all_nodes;
    ways.into_iter()
        .map(|(target, nodes)| Way {
            end: match target {
                Target::Forward(backends) => End::Backends(
                    backends
                        .iter()
                        .map(|backend| Share {
                            permille: 1000 / backends.len(),
                            address: backend.to_string(),
                            who: who(snapshot, id, backend.address),
                        })
                        .collect(),
                ),
                Target::Reject => End::Refused,
                Target::Drop => End::Unanswered,
            },
            nodes: if everywhere(&nodes) { Vec::new() } else { nodes },
        })
        .collect()
}

fn who(snapshot: &Snapshot, id: &ServiceId, address: IpAddr) -> String {
    let Some(endpoint) = endpoints(snapshot, id).find(|endpoint| endpoint.address == address) else {
        return String::new();
    };
    let mut who = match (endpoint.pod(), &endpoint.node) {
        (Some(pod), Some(node)) => format!("pod {pod} on {node}"),
        (Some(pod), None) => format!("pod {pod}"),
        (None, Some(node)) => format!("on {node}"),
        (None, None) => "beyond the cluster".to_owned(),
    };
    if endpoint.terminating {
        who.push_str(", terminating but still serving");
    }
    let dead = endpoint.node.as_deref().and_then(|node| snapshot.node(node)).is_some_and(|node| !node.ready);
    if dead {
        who.push_str(", which is not ready");
    }
    who
}

pub(super) fn endpoints<'a>(snapshot: &'a Snapshot, id: &ServiceId) -> impl Iterator<Item = &'a Endpoint> {
    snapshot.slices(id).flat_map(|slice| &slice.endpoints)
}

/// What DNS answers for the Service's own name.
pub(super) fn names(snapshot: &Snapshot, id: &ServiceId, domain: &str) -> Vec<String> {
    let Some(service) = snapshot.service(id) else { return Vec::new() };
    let name = format!("{}.{}.svc.{domain}", id.name, id.namespace);
    if let ServiceType::ExternalName(target) = &service.service_type {
        return vec![format!("{name} is an alias (CNAME) of {target}; nothing is forwarded")];
    }
    if !service.headless {
        let addresses: Vec<_> = service.cluster_ips.iter().map(ToString::to_string).collect();
        return if addresses.is_empty() { Vec::new() } else { vec![format!("{name} is {}", addresses.join(", "))] };
    }
    let answered: Vec<_> =
        endpoints(snapshot, id).filter(|endpoint| endpoint.ready || service.publish_not_ready).collect();
    if answered.is_empty() {
        return vec![format!("{name} does not exist for now (NXDOMAIN): no endpoint is ready")];
    }
    let mut names = vec![format!("{name} is the addresses of its endpoints:")];
    for endpoint in answered {
        let own = endpoint.hostname().map(|hostname| format!("{hostname}.{name}, "));
        let unready = if endpoint.ready { "" } else { " (not ready, but published)" };
        let who = who(snapshot, id, endpoint.address);
        names.push(format!("  {}  {}{who}{unready}", endpoint.address, own.unwrap_or_default()));
    }
    names
}
