//! One Service of a snapshot -> its forwarding on one node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::endpoints::{Reachable, reachable};
use super::{
    Affinity, Family, Frontend, FrontendForwarding, FrontendKind, Masquerade, NodeContext, Place, ServiceForwarding,
    Target,
};
use crate::{Diagnostic, Service, ServiceId, ServicePort, Snapshot, TrafficPolicy};

/// Backends one frontend may have in each of its two sets. Beyond it the rest is left out, with a diagnostic: the size
/// of a slot index, and a bound on what one Service may cost a node.
pub const MAX_BACKENDS: usize = 1 << 17;

/// A Service that is unknown, another proxy's or without a ClusterIP (headless, of type ExternalName, not allocated
/// yet) forwards nothing, whatever other addresses it lists.
#[must_use]
pub fn compile(snapshot: &Snapshot, id: &ServiceId, node: &NodeContext) -> (ServiceForwarding, Vec<Diagnostic>) {
    let mut forwarding = ServiceForwarding::default();
    let mut diagnostics = Vec::new();
    let ours = |service: &&Service| !service.foreign_proxy && !service.cluster_ips.is_empty();
    let Some(service) = snapshot.service(id).filter(ours) else {
        return (forwarding, diagnostics);
    };
    let addresses = addresses(service, &mut diagnostics);
    let mut hairpins = BTreeSet::new();
    for port in &service.ports {
        let protocol = port.protocol;
        for family in Family::BOTH {
            let of_family: Vec<_> = addresses.iter().filter(|(address, _)| Family::of(*address) == family).collect();
            // A NodePort is served in the families the Service has a ClusterIP in.
            let has_family = service.cluster_ips.iter().any(|address| Family::of(*address) == family);
            if of_family.is_empty() && !has_family {
                continue;
            }
            let reach = bounded(reachable(snapshot, service, port, family, node), port, &mut diagnostics);
            hairpins.extend(reach.local.iter().map(|backend| backend.address));
            if service.external_policy == TrafficPolicy::Local {
                // A pod elsewhere that asks this node's external address gets any backend, which may be itself.
                hairpins.extend(reach.cluster.iter().map(|backend| backend.address));
            }
            let mut of_port: Vec<FrontendForwarding> = Vec::new();
            let at = |place, port| Frontend { place, protocol, port };
            let asked = of_family.into_iter().map(|(address, kind)| (at(Place::Address(*address), port.port), *kind));
            let node_port = port.node_port.filter(|_| has_family);
            let asked = asked.chain(node_port.map(|port| (at(Place::Node(family), port.0), FrontendKind::NodePort)));
            for (frontend, kind) in asked {
                let mut forwarding = forward(service, frontend, kind, &reach, node);
                if let Some(affinity) = &mut forwarding.affinity
                    && let Some(first) = of_port.first()
                {
                    affinity.together = first.frontend;
                }
                of_port.push(forwarding);
            }
            forwarding.frontends.append(&mut of_port);
        }
    }
    forwarding.frontends.sort_by_key(|forwarding| forwarding.frontend);
    forwarding.cluster_ips = service.cluster_ips.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    forwarding.hairpins = hairpins.into_iter().collect();
    forwarding.local_ready = local_ready(snapshot, id, node);
    (forwarding, diagnostics)
}

/// The Service's addresses, each once; what comes first here says what kind it is.
fn addresses(service: &Service, diagnostics: &mut Vec<Diagnostic>) -> Vec<(IpAddr, FrontendKind)> {
    let mut all: Vec<(IpAddr, FrontendKind)> = Vec::new();
    let kinds = [
        (FrontendKind::ClusterIp, "spec.clusterIPs", &service.cluster_ips),
        (FrontendKind::LoadBalancer, "status.loadBalancer.ingress", &service.load_balancer_ips),
        (FrontendKind::ExternalIp, "spec.externalIPs", &service.external_ips),
    ];
    for (kind, field, addresses) in kinds {
        for address in addresses {
            let mut complain = |message: String| {
                diagnostics.push(Diagnostic { field: field.to_owned(), message });
            };
            if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
                complain(format!("{address} can be no Service's address; it is ignored"));
            } else if let Some((_, other)) = all.iter().find(|(known, _)| known == address) {
                // A load-balancer address may be listed as an external address too; that is no mistake.
                if *other == FrontendKind::ClusterIp {
                    complain(format!("{address} is the Service's ClusterIP already; it is ignored here"));
                }
            } else {
                all.push((*address, kind));
            }
        }
    }
    all
}

fn forward(
    service: &Service,
    frontend: Frontend,
    kind: FrontendKind,
    reach: &Reachable,
    node: &NodeContext,
) -> FrontendForwarding {
    let target = |policy: TrafficPolicy| {
        let backends = if policy == TrafficPolicy::Local { &reach.local } else { &reach.cluster };
        match (backends.is_empty(), reach.any) {
            (false, _) => Target::Forward(backends.clone()),
            (true, true) => Target::Drop,
            (true, false) => Target::Reject,
        }
    };
    let internal = kind == FrontendKind::ClusterIp;
    let policy = if internal { service.internal_policy } else { service.external_policy };
    let outside = target(policy);
    // From inside the cluster an external address is a detour that the policy is not about.
    let inside = if internal { outside.clone() } else { target(TrafficPolicy::Cluster) };
    let masquerade = match (internal, policy) {
        (true, _) => Masquerade::Outsiders,
        (false, TrafficPolicy::Cluster) => Masquerade::Everybody,
        (false, TrafficPolicy::Local) => Masquerade::NodeItself,
    };
    let sources =
        if kind == FrontendKind::LoadBalancer { source_ranges(service, frontend.place, node) } else { Vec::new() };
    let affinity = service.affinity.map(|timeout| Affinity { timeout, together: frontend });
    FrontendForwarding { frontend, kind, inside, outside, masquerade, affinity, sources }
}

/// The ranges of the address's family, sorted. A range of all addresses means that anyone may come, and so does having
/// ranges of the other family only: each family is looked at by itself.
fn source_ranges(service: &Service, place: Place, node: &NodeContext) -> Vec<IpNet> {
    let Place::Address(address) = place else { return Vec::new() };
    let family = Family::of(address);
    let of_family = |range: &&IpNet| Family::of(range.addr()) == family;
    let mut ranges: Vec<IpNet> = service.source_ranges.iter().filter(of_family).map(IpNet::trunc).collect();
    if ranges.iter().any(|range| range.prefix_len() == 0) {
        return Vec::new();
    }
    // A packet of the node itself to the address may carry that very address as its source.
    if node.own_addresses.iter().any(|own| ranges.iter().any(|range| range.contains(own))) {
        ranges.push(IpNet::from(address));
    }
    IpNet::aggregate(&ranges)
}

fn bounded(mut reach: Reachable, port: &ServicePort, diagnostics: &mut Vec<Diagnostic>) -> Reachable {
    for (backends, whose) in [(&mut reach.cluster, ""), (&mut reach.local, " on this node")] {
        if backends.len() > MAX_BACKENDS {
            diagnostics.push(Diagnostic {
                field: format!("spec.ports[{}]", port.name),
                message: format!(
                    "{} endpoints{whose}, more than {MAX_BACKENDS}; the rest gets no traffic: split the Service",
                    backends.len()
                ),
            });
            *backends = backends[..MAX_BACKENDS].into();
        }
    }
    reach
}

fn local_ready(snapshot: &Snapshot, id: &ServiceId, node: &NodeContext) -> usize {
    let endpoints = snapshot.forwarded_slices(id).flat_map(|slice| &slice.endpoints);
    let local = endpoints.filter(|endpoint| endpoint.ready && endpoint.node.as_deref() == Some(&*node.name));
    local.map(|endpoint| endpoint.address).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Event, translate};

    fn compiled(spec: Value, status: Value) -> (ServiceForwarding, Vec<String>) {
        compiled_on(&NodeContext::default(), spec, status)
    }

    fn compiled_on(node: &NodeContext, spec: Value, status: Value) -> (ServiceForwarding, Vec<String>) {
        let object = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec, "status": status});
        let (service, _) = translate::service(&serde_json::from_value(object).unwrap()).unwrap();
        let (id, mut snapshot) = (service.id.clone(), Snapshot::default());
        snapshot.apply(Event::Service(service));
        let (forwarding, diagnostics) = compile(&snapshot, &id, node);
        (forwarding, diagnostics.into_iter().map(|d| format!("{}: {}", d.field, d.message)).collect())
    }

    fn frontends(forwarding: &ServiceForwarding) -> Vec<String> {
        forwarding.frontends.iter().map(|f| format!("{:?} {}", f.kind, f.frontend)).collect()
    }

    #[test]
    fn every_address_once_and_in_order() {
        let spec = json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "externalIPs": ["192.0.2.9", "192.0.2.1"],
            "ports": [{"name": "b", "port": 443, "nodePort": 30443}, {"name": "a", "port": 80, "protocol": "UDP"}]});
        let status =
            json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}, {"ip": "192.0.2.8", "ipMode": "Proxy"}]}});
        let (forwarding, diagnostics) = compiled(spec, status);
        assert_eq!(diagnostics, [""; 0]);
        assert_eq!(
            frontends(&forwarding),
            [
                "ClusterIp TCP 10.96.0.1:443",
                "ClusterIp UDP 10.96.0.1:80",
                "ExternalIp TCP 192.0.2.1:443",
                "ExternalIp UDP 192.0.2.1:80",
                "LoadBalancer TCP 192.0.2.9:443",
                "LoadBalancer UDP 192.0.2.9:80",
                "NodePort TCP node:30443",
            ]
        );
    }

    #[test]
    fn nonsense_is_named_and_the_rest_stands() {
        let spec = json!({"clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}],
            "externalIPs": ["127.0.0.1", "224.0.0.1", "0.0.0.0", "10.96.0.1", "192.0.2.1"]});
        let (forwarding, diagnostics) = compiled(spec, Value::Null);
        assert_eq!(frontends(&forwarding), ["ClusterIp TCP 10.96.0.1:80", "ExternalIp TCP 192.0.2.1:80"]);
        assert_eq!(
            diagnostics,
            [
                "spec.externalIPs: 127.0.0.1 can be no Service's address; it is ignored",
                "spec.externalIPs: 224.0.0.1 can be no Service's address; it is ignored",
                "spec.externalIPs: 0.0.0.0 can be no Service's address; it is ignored",
                "spec.externalIPs: 10.96.0.1 is the Service's ClusterIP already; it is ignored here",
            ]
        );
    }

    #[test]
    fn without_a_cluster_ip_nothing_is_forwarded() {
        for spec in [
            json!({"clusterIP": "None", "externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]}),
            json!({"type": "ExternalName", "externalName": "x.example", "externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]}),
            json!({"externalIPs": ["192.0.2.1"], "ports": [{"port": 80, "nodePort": 30080}]}),
        ] {
            assert_eq!(compiled(spec.clone(), Value::Null).0, ServiceForwarding::default(), "{spec}");
        }
    }

    #[test]
    fn the_addresses_of_a_port_remember_together_whatever_their_policies() {
        let together = |internal: &str, external: &str| {
            let spec = json!({"type": "NodePort", "clusterIPs": ["10.96.0.1", "fd00::1"], "externalIPs": ["192.0.2.1"],
                "internalTrafficPolicy": internal, "externalTrafficPolicy": external, "sessionAffinity": "ClientIP",
                "ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81}]});
            let (forwarding, _) = compiled(spec, Value::Null);
            let word = |f: &FrontendForwarding| format!("{} by {}", f.frontend, f.affinity.unwrap().together);
            forwarding.frontends.iter().map(word).collect::<Vec<_>>()
        };
        assert_eq!(
            together("Cluster", "Cluster"),
            [
                "TCP 10.96.0.1:80 by TCP 10.96.0.1:80",
                "TCP 10.96.0.1:81 by TCP 10.96.0.1:81",
                "TCP 192.0.2.1:80 by TCP 10.96.0.1:80",
                "TCP 192.0.2.1:81 by TCP 10.96.0.1:81",
                "TCP [fd00::1]:80 by TCP [fd00::1]:80",
                "TCP [fd00::1]:81 by TCP [fd00::1]:81",
                "TCP node:30080 by TCP 10.96.0.1:80",
                "TCP node6:30080 by TCP [fd00::1]:80",
            ]
        );
        for (internal, external) in [("Local", "Cluster"), ("Cluster", "Local"), ("Local", "Local")] {
            let together = together(internal, external);
            assert!(together.contains(&"TCP node:30080 by TCP 10.96.0.1:80".to_owned()), "{together:?}");
        }
    }

    #[test]
    fn source_ranges_of_one_family_leave_the_other_alone() {
        let sources = |ranges: Value, ip: &str| {
            let spec = json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd00::1"],
                "loadBalancerSourceRanges": ranges, "ports": [{"port": 80}]});
            let (forwarding, _) = compiled(spec, json!({"loadBalancer": {"ingress": [{"ip": ip}]}}));
            let mut frontends = forwarding.frontends.into_iter();
            let found = frontends.find(|f| f.kind == FrontendKind::LoadBalancer).unwrap();
            found.sources.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(sources(json!([]), "192.0.2.1"), [""; 0]);
        assert_eq!(sources(json!(["10.1.0.0/16", "10.0.0.0/8"]), "192.0.2.1"), ["10.0.0.0/8"]);
        assert_eq!(sources(json!(["10.0.0.0/8", "0.0.0.0/0"]), "192.0.2.1"), [""; 0], "a zero range means anyone");
        assert_eq!(sources(json!(["10.0.0.0/8"]), "2001:db8::1"), [""; 0]);
    }

    #[test]
    fn a_range_with_the_node_in_it_admits_the_address_itself() {
        let sources = |own: &str| {
            let node = NodeContext { own_addresses: vec![own.parse().unwrap()], ..NodeContext::default() };
            let spec = json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"],
                "loadBalancerSourceRanges": ["10.203.0.0/24"], "ports": [{"port": 80}]});
            let status = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
            let frontends = compiled_on(&node, spec, status).0.frontends;
            let found = frontends.into_iter().find(|f| f.kind == FrontendKind::LoadBalancer).unwrap();
            found.sources.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        // What the node sends to an address that is on one of its links has it as its source, too.
        assert_eq!(sources("10.203.0.11"), ["10.203.0.0/24", "192.0.2.1/32"]);
        assert_eq!(sources("10.204.0.11"), ["10.203.0.0/24"]);
    }
}
