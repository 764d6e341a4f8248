//! Services with a Local traffic policy -> what a node has for them: local endpoints, or none where there are some.
//!
//! Invariant: only what a delta names is looked at again, and only Services with such a policy cost anything.

use std::collections::{BTreeMap, BTreeSet};

use portolan_model::forwarding::{Family, FrontendKind, NodeContext, ServiceForwarding, Target, compile};
use portolan_model::{Delta, ServiceId, Snapshot, TrafficPolicy};

/// How many ports have endpoints, but none where the policy wants them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Local {
    /// By family, IPv4 first, and then by policy, internal first.
    ports: [[u64; 2]; 2],
}

impl Local {
    /// Family, policy and count.
    pub(crate) fn rows(self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let [[v4_internal, v4_external], [v6_internal, v6_external]] = self.ports;
        [
            ("IPv4", "internal", v4_internal),
            ("IPv4", "external", v4_external),
            ("IPv6", "internal", v6_internal),
            ("IPv6", "external", v6_external),
        ]
        .into_iter()
    }
}

/// What is known of one Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LocalService {
    /// Ready endpoints on this node.
    pub(crate) ready: usize,
    missing: Local,
}

#[derive(Debug, Default)]
pub(crate) struct Locals {
    services: BTreeMap<ServiceId, LocalService>,
    total: Local,
}

impl Locals {
    pub(crate) fn apply(&mut self, snapshot: &Snapshot, delta: &Delta, node: &str) {
        let context = NodeContext::from_snapshot(snapshot, node, &[]);
        for id in &delta.services {
            let before = self.services.remove(id).unwrap_or_default();
            let after = look(snapshot, id, &context);
            for family in 0..2 {
                for policy in 0..2 {
                    let total = &mut self.total.ports[family][policy];
                    let missing = |service: LocalService| service.missing.ports[family][policy];
                    *total = (*total + missing(after.unwrap_or_default())).saturating_sub(missing(before));
                }
            }
            if let Some(after) = after {
                self.services.insert(id.clone(), after);
            }
        }
    }

    pub(crate) fn total(&self) -> Local {
        self.total
    }

    /// Zero also for Services that have no such policy.
    pub(crate) fn ready(&self, id: &ServiceId) -> usize {
        self.services.get(id).map_or(0, |service| service.ready)
    }
}

fn look(snapshot: &Snapshot, id: &ServiceId, node: &NodeContext) -> Option<LocalService> {
    let service = snapshot.service(id)?;
    let local = [service.internal_policy, service.external_policy].contains(&TrafficPolicy::Local);
    let (forwarding, _) = local.then(|| compile(snapshot, id, node))?;
    Some(LocalService { ready: forwarding.local_ready, missing: missing(&forwarding) })
}

fn missing(forwarding: &ServiceForwarding) -> Local {
    let ports = |family: Family, kinds: &[FrontendKind]| {
        let dropped = forwarding.frontends.iter().filter(|frontend| frontend.outside == Target::Drop);
        let counted = dropped.filter(|f| f.frontend.family() == family && kinds.contains(&f.kind));
        counted.map(|f| (f.frontend.protocol, f.frontend.port)).collect::<BTreeSet<_>>().len() as u64
    };
    Local {
        ports: Family::BOTH.map(|family| {
            let internal = ports(family, &[FrontendKind::ClusterIp]);
            // The same ports twice, under two sets of numbers, of which either may be missing.
            let addresses = ports(family, &[FrontendKind::LoadBalancer, FrontendKind::ExternalIp]);
            [internal, addresses.max(ports(family, &[FrontendKind::NodePort]))]
        }),
    }
}

#[cfg(test)]
mod tests {
    use portolan_model::{Event, translate};
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, spec: Value) -> Event {
        let object = json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
        Event::Service(translate::service(&serde_json::from_value(object).unwrap()).unwrap().0)
    }

    fn endpoint(service: &str, node: &str) -> Event {
        let object = json!({
            "metadata": {"namespace": "shop", "name": service, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "ports": [{"port": 8080}],
            "endpoints": [{"addresses": ["10.244.1.2"], "nodeName": node}],
        });
        Event::Slice(translate::endpoint_slice(&serde_json::from_value(object).unwrap()).unwrap().0)
    }

    #[test]
    fn a_port_counts_while_its_endpoints_are_all_elsewhere() {
        let (mut snapshot, mut locals) = (Snapshot::default(), Locals::default());
        let ports = json!([{"port": 80, "nodePort": 30080}]);
        let mut happens = |event: Event| {
            let delta = snapshot.apply(event);
            locals.apply(&snapshot, &delta, "here");
            let counts: Vec<u64> = locals.total().rows().map(|(_, _, count)| count).collect();
            (counts, locals.ready(&ServiceId::new("shop", "web")))
        };
        let both = json!({"type": "NodePort", "clusterIPs": ["10.96.0.1"], "ports": ports,
            "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"});
        assert_eq!(happens(service("web", both)), (vec![0, 0, 0, 0], 0), "no endpoints at all are another matter");
        assert_eq!(happens(endpoint("web", "there")), (vec![1, 1, 0, 0], 0));
        let plain = json!({"type": "NodePort", "clusterIPs": ["10.96.0.2"], "ports": ports});
        assert_eq!(happens(service("plain", plain)), (vec![1, 1, 0, 0], 0));
        assert_eq!(happens(endpoint("web", "here")), (vec![0, 0, 0, 0], 1));
        assert_eq!(happens(endpoint("web", "there")), (vec![1, 1, 0, 0], 0));
        assert_eq!(happens(Event::ServiceGone(ServiceId::new("shop", "web"))), (vec![0, 0, 0, 0], 0));
    }
}
