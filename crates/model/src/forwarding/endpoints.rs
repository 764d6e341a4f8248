//! A ServicePort's endpoints on one node, after readiness, policies and hints.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Backend, Family, NodeContext};
use crate::{Endpoint, Hints, Service, ServicePort, Snapshot};

/// What a ServicePort can reach in one family.
#[derive(Debug, Default)]
pub(super) struct Reachable {
    /// Wherever they run.
    pub cluster: Arc<[Backend]>,
    /// On this node only.
    pub local: Arc<[Backend]>,
    /// Somewhere there is an endpoint that takes connections, which tells a policy's gap from an empty Service.
    pub any: bool,
}

/// One endpoint of one ServicePort.
struct Candidate<'a> {
    backend: Backend,
    endpoint: &'a Endpoint,
}

impl<'a> Candidate<'a> {
    fn hinted(&self, names: fn(&Hints) -> &[Arc<str>]) -> &'a [Arc<str>] {
        self.endpoint.hints.as_deref().map_or(&[], names)
    }

    fn is_local(&self, node: &NodeContext) -> bool {
        self.endpoint.node.as_deref() == Some(&*node.name)
    }

    /// Better than refusing: it still serves, though it is on its way out.
    fn is_fallback(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }
}

pub(super) fn reachable(
    snapshot: &Snapshot,
    service: &Service,
    port: &ServicePort,
    family: Family,
    node: &NodeContext,
) -> Reachable {
    let mut candidates = Vec::new();
    for slice in snapshot.forwarded_slices(&service.id) {
        // A slice carries a port once per name; its number may differ from slice to slice.
        let matching = slice.ports.iter().find(|p| p.name == port.name && p.protocol == port.protocol);
        let Some(number) = matching.and_then(|port| port.port) else { continue };
        for endpoint in slice.endpoints.iter().filter(|endpoint| Family::of(endpoint.address) == family) {
            let backend = Backend { address: endpoint.address, port: number };
            candidates.push(Candidate { backend, endpoint });
        }
    }
    let ready: Vec<&Candidate<'_>> = candidates.iter().filter(|c| c.endpoint.ready).collect();
    let near = nearest(&ready, node);
    let cluster = some_or(sorted(near.iter().copied()), || sorted(candidates.iter().filter(|c| c.is_fallback())));
    let local = some_or(sorted(ready.iter().copied().filter(|c| c.is_local(node))), || {
        sorted(candidates.iter().filter(|c| c.is_local(node) && c.is_fallback()))
    });
    Reachable { any: candidates.iter().any(|c| c.endpoint.ready || c.is_fallback()), cluster, local }
}

/// The ready endpoints that the hints choose: those for this node, else those for its zone, else all. Hints count only
/// when every ready endpoint has them, since half-written hints would send everything to the few that do.
fn nearest<'a>(ready: &[&'a Candidate<'a>], node: &NodeContext) -> Vec<&'a Candidate<'a>> {
    if let Some(for_node) = meant(ready, &node.name, |hints| &hints.nodes) {
        return for_node;
    }
    if let Some(for_zone) = node.zone.as_ref().and_then(|zone| meant(ready, zone, |hints| &hints.zones)) {
        return for_zone;
    }
    ready.to_vec()
}

/// Those whose hints name it; `None` where there are none, or some have no such hints.
fn meant<'a>(
    ready: &[&'a Candidate<'a>],
    name: &Arc<str>,
    names: fn(&Hints) -> &[Arc<str>],
) -> Option<Vec<&'a Candidate<'a>>> {
    let meant: Vec<_> = ready.iter().copied().filter(|c| c.hinted(names).contains(name)).collect();
    (!meant.is_empty() && ready.iter().all(|c| !c.hinted(names).is_empty())).then_some(meant)
}

fn some_or(preferred: Arc<[Backend]>, otherwise: impl FnOnce() -> Arc<[Backend]>) -> Arc<[Backend]> {
    if preferred.is_empty() { otherwise() } else { preferred }
}

fn sorted<'a>(candidates: impl Iterator<Item = &'a Candidate<'a>>) -> Arc<[Backend]> {
    candidates.map(|candidate| candidate.backend).collect::<BTreeSet<_>>().into_iter().collect()
}
