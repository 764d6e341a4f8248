//! The snapshot -> what each Service that a delta names shall have on this node, once it is settled who has what.
//!
//! Invariants: pure. A Service comes out with the frontends that it holds and no other, so whoever realizes a
//! [`Change`] needs to know nothing of other Services. Many Services come out in portions, so that all of a large
//! cluster is never held at once. What was handed out comes out again with the next change, until [`Desired::settle`]
//! hears what became of it: a caller may stop waiting at any point, and nothing is forgotten.
//!
//! Deliberately not here: how the kernel represents any of it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use portolan_model::forwarding::{Claims, Frontend, FrontendForwarding, NodeContext, ServiceForwarding, compile};
use portolan_model::{Delta, Diagnostic, ServiceId, Snapshot};

use crate::traffic::{Counted, Counts};

/// Services of a portion at most. Few in tests, so that there are several portions.
const PORTION: usize = if cfg!(test) { 2 } else { 1_024 };

#[derive(Debug, Default)]
pub(crate) struct Desired {
    claims: Claims,
    /// Every frontend that a Service asks for, sorted, whether it has it or not.
    asked: BTreeMap<ServiceId, Box<[Frontend]>>,
    node: NodeContext,
    /// Still to be handed out.
    due: BTreeSet<ServiceId>,
    /// Handed out and not settled.
    open: BTreeSet<ServiceId>,
    /// Settled as not in place: due with the next change.
    again: BTreeSet<ServiceId>,
}

/// What has to be realized anew.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// A Service that forwards nothing any more comes out empty.
    pub services: BTreeMap<ServiceId, ServiceForwarding>,
    pub node: NodeContext,
    /// Every range of every ServiceCIDR, aggregated.
    pub service_cidrs: Vec<IpNet>,
    /// What in the Services was left out, and why.
    pub diagnostics: Vec<(ServiceId, Diagnostic)>,
}

impl Desired {
    /// Takes in what the delta, or without one all of the snapshot, asks for; gives the first portion. A node that
    /// changed concerns every Service, unless only its addresses did: on some nodes these come and go all the time.
    pub(crate) fn change(&mut self, snapshot: &Snapshot, delta: Option<&Delta>, node: NodeContext) -> Change {
        let before = std::mem::replace(&mut self.node, node);
        self.due.append(&mut self.open);
        self.due.append(&mut self.again);
        match delta.filter(|_| self.node.is_but_for_addresses(&before)) {
            Some(delta) => self.due.extend(delta.services.iter().cloned()),
            // What is gone from the snapshot is still known here.
            None => self.due.extend(snapshot.services().map(|service| &service.id).chain(self.asked.keys()).cloned()),
        }
        if self.node != before {
            // Whose ranges have the node in them; its addresses are nothing to the others.
            let ranged = snapshot.services().filter(|service| !service.source_ranges.is_empty());
            self.due.extend(ranged.map(|service| service.id.clone()));
        }
        self.portion(snapshot)
    }

    /// The next portion, if the latest change has one.
    pub(crate) fn more(&mut self, snapshot: &Snapshot) -> Option<Change> {
        (!self.due.is_empty()).then(|| self.portion(snapshot))
    }

    fn portion(&mut self, snapshot: &Snapshot) -> Change {
        let mut diagnostics = Vec::new();
        let services = self.contest(snapshot, &mut diagnostics);
        self.open = services.keys().cloned().collect();
        let cidrs: Vec<IpNet> = snapshot.service_cidrs().copied().collect();
        Change { services, node: self.node.clone(), service_cidrs: IpNet::aggregate(&cidrs), diagnostics }
    }

    /// The latest portion is in place, but for these Services, which come out again with the next change.
    pub(crate) fn settle(&mut self, again: BTreeSet<ServiceId>) {
        self.open.clear();
        self.again.extend(again);
    }

    /// Gives back what growing left: a tree that was filled in order is half empty.
    pub(crate) fn fit(&mut self) {
        self.asked = std::mem::take(&mut self.asked).into_iter().collect();
        self.claims.fit();
    }

    /// Whose counts these are; `None` for a frontend that nobody has any more.
    pub(crate) fn counted(&self, snapshot: &Snapshot, frontend: Frontend, counts: Counts) -> Option<Counted> {
        Counted::of(snapshot.service(self.claims.holder(&frontend)?)?, frontend, counts)
    }

    /// Compiles the Services of a portion and settles who has which frontend, which may make further Services due.
    fn contest(
        &mut self,
        snapshot: &Snapshot,
        diagnostics: &mut Vec<(ServiceId, Diagnostic)>,
    ) -> BTreeMap<ServiceId, ServiceForwarding> {
        let mut compiled = BTreeMap::new();
        while compiled.len() < PORTION
            && let Some(id) = self.due.pop_first()
        {
            if compiled.contains_key(&id) {
                continue;
            }
            let (forwarding, complaints) = compile(snapshot, &id, &self.node);
            diagnostics.extend(complaints.into_iter().map(|diagnostic| (id.clone(), diagnostic)));
            let asks: Box<[Frontend]> = forwarding.frontends.iter().map(|f| f.frontend).collect();
            let asked = self.asked.get(&id).map_or(&[][..], |asked| asked);
            for gone in asked.iter().filter(|frontend| asks.binary_search(frontend).is_err()) {
                self.due.extend(self.claims.release(*gone, &id));
            }
            for new in asks.iter().filter(|frontend| asked.binary_search(frontend).is_err()) {
                self.due.extend(self.claims.claim(*new, &id));
            }
            match asks.is_empty() {
                true => self.asked.remove(&id),
                false => self.asked.insert(id.clone(), asks),
            };
            compiled.insert(id, forwarding);
        }
        for (id, forwarding) in &mut compiled {
            forwarding.frontends.retain(|FrontendForwarding { frontend, .. }| {
                let Some(holder) = self.claims.holder(frontend).filter(|holder| *holder != id) else { return true };
                let message = format!("{frontend} belongs to Service {holder} already; it is ignored here");
                diagnostics.push((id.clone(), Diagnostic { field: "spec".to_owned(), message }));
                false
            });
            stand_for_each_other(&mut forwarding.frontends);
        }
        compiled
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.claims == Claims::default()
    }
}

/// Has the first of those that remember together stand for them where another Service has the one that did.
fn stand_for_each_other(frontends: &mut [FrontendForwarding]) {
    let held: Vec<Frontend> = frontends.iter().map(|forwarding| forwarding.frontend).collect();
    let mut instead = BTreeMap::new();
    for forwarding in frontends {
        let Some(affinity) = &mut forwarding.affinity else { continue };
        // Held frontends are sorted.
        if held.binary_search(&affinity.together).is_err() {
            affinity.together = *instead.entry(affinity.together).or_insert(forwarding.frontend);
        }
    }
}

#[cfg(test)]
mod tests {
    use portolan_model::{Event, translate};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_nodes_addresses_concern_only_services_with_ranges() {
        let mut snapshot = Snapshot::default();
        for (name, address, ranges) in [("any", "10.96.0.1", json!([])), ("some", "10.96.0.2", json!(["10.0.0.0/8"]))] {
            let object = json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"type": "LoadBalancer",
                "clusterIPs": [address], "loadBalancerSourceRanges": ranges, "ports": [{"port": 80}]}});
            let (service, _) = translate::service(&serde_json::from_value(object).unwrap()).unwrap();
            snapshot.apply(Event::Service(service));
        }
        let mut desired = Desired::default();
        let mut due = |node: &NodeContext| {
            let change = desired.change(&snapshot, Some(&Delta::default()), node.clone());
            desired.settle(BTreeSet::new());
            assert_eq!(change.node, *node);
            change.services.into_keys().map(|id| id.name.to_string()).collect::<Vec<_>>()
        };
        let mut node = NodeContext { name: "node-1".into(), ..NodeContext::default() };
        assert_eq!(due(&node), ["any", "some"], "it is another node");
        assert_eq!(due(&node), [""; 0]);
        node.own_addresses = vec!["10.203.0.11".parse().unwrap()];
        node.node_port_addresses = node.own_addresses.clone();
        assert_eq!(due(&node), ["some"]);
        node.zone = Some("east".into());
        assert_eq!(due(&node), ["any", "some"]);
    }
}
