//! The snapshot -> what each Service that a delta names shall have on this node, once it is settled who has what.
//!
//! Invariants: pure. A Service comes out with the frontends that it holds and no other, so whoever realizes a [`Change`]
//! needs to know nothing of other Services. What was handed out is *due*, and comes out again with the next change, until
//! [`Desired::settle`] hears what became of it: a caller may stop waiting at any point, and nothing is forgotten.
//!
//! Deliberately not here: how the kernel represents any of it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use portolan_model::forwarding::{Claims, Frontend, FrontendForwarding, NodeContext, ServiceForwarding, compile};
use portolan_model::{Delta, Diagnostic, ServiceId, Snapshot};

use crate::traffic::{Counted, Counts};

#[derive(Debug, Default)]
pub(crate) struct Desired {
    claims: Claims,
    /// Every frontend that a Service asks for, sorted, whether it has it or not.
    asked: BTreeMap<ServiceId, Box<[Frontend]>>,
    node: NodeContext,
    due: BTreeSet<ServiceId>,
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
    /// What the delta, or without one all of the snapshot, asks for. A node that changed concerns every Service.
    pub(crate) fn change(&mut self, snapshot: &Snapshot, delta: Option<&Delta>, node: NodeContext) -> Change {
        let node_changed = node != self.node;
        self.node = node;
        let mut todo = std::mem::take(&mut self.due);
        match delta.filter(|_| !node_changed) {
            Some(delta) => todo.extend(delta.services.iter().cloned()),
            // What is gone from the snapshot is still known here.
            None => todo.extend(snapshot.services().map(|service| &service.id).chain(self.asked.keys()).cloned()),
        }
        let mut diagnostics = Vec::new();
        let services = self.contest(snapshot, todo, &mut diagnostics);
        self.due = services.keys().cloned().collect();
        let cidrs: Vec<IpNet> = snapshot.service_cidrs().copied().collect();
        Change { services, node: self.node.clone(), service_cidrs: IpNet::aggregate(&cidrs), diagnostics }
    }

    /// The latest change is in place, but for these Services, which come out again with the next.
    pub(crate) fn settle(&mut self, due: BTreeSet<ServiceId>) {
        self.due = due;
    }

    /// Whose counts these are; `None` for a frontend that nobody has any more.
    pub(crate) fn counted(&self, snapshot: &Snapshot, frontend: Frontend, counts: Counts) -> Option<Counted> {
        Counted::of(snapshot.service(self.claims.holder(&frontend)?)?, frontend, counts)
    }

    /// Compiles the Services and settles who has which frontend, which may bring further Services in.
    fn contest(
        &mut self,
        snapshot: &Snapshot,
        mut todo: BTreeSet<ServiceId>,
        diagnostics: &mut Vec<(ServiceId, Diagnostic)>,
    ) -> BTreeMap<ServiceId, ServiceForwarding> {
        let mut compiled = BTreeMap::new();
        while let Some(id) = todo.pop_first() {
            if compiled.contains_key(&id) {
                continue;
            }
            let (forwarding, complaints) = compile(snapshot, &id, &self.node);
            diagnostics.extend(complaints.into_iter().map(|diagnostic| (id.clone(), diagnostic)));
            let asks: Box<[Frontend]> = forwarding.frontends.iter().map(|f| f.frontend).collect();
            let asked = self.asked.get(&id).map_or(&[][..], |asked| asked);
            for gone in asked.iter().filter(|frontend| asks.binary_search(frontend).is_err()) {
                todo.extend(self.claims.release(*gone, &id));
            }
            for new in asks.iter().filter(|frontend| asked.binary_search(frontend).is_err()) {
                todo.extend(self.claims.claim(*new, &id));
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
        }
        compiled
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.claims == Claims::default()
    }
}
