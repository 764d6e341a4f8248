//! The endpoints a Service should have and the slices it has -> the fewest slices to create, update and delete.
//!
//! Invariants: an endpoint that stays, stays in its slice; no slice holds more than [`CAPACITY`]; a Service with no
//! endpoints keeps one empty slice per family, so that readers can tell "none" from "not yet". An endpoint that moves
//! appears in its new slice in the same round, and readers count an address once.
//! Source: `discovery.k8s.io/v1` EndpointSlice and KEP-752.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

use super::endpoint::Family;

pub(crate) const CAPACITY: usize = 100;

/// Endpoints with the ports they share, by family.
pub(crate) type Desired = BTreeMap<(Family, Ports), Vec<Endpoint>>;

/// Ports in an order of their own, so that equal sets are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ports(Vec<(String, String, Option<i32>, Option<String>)>);

impl Ports {
    pub(crate) fn of(ports: &[EndpointPort]) -> Self {
        let mut list: Vec<_> = ports
            .iter()
            .map(|port| {
                let name = port.name.clone().unwrap_or_default();
                (name, port.protocol.clone().unwrap_or_else(|| "TCP".into()), port.port, port.app_protocol.clone())
            })
            .collect();
        list.sort();
        Self(list)
    }

    fn list(&self) -> Vec<EndpointPort> {
        let port =
            |(name, protocol, port, app_protocol): &(String, String, Option<i32>, Option<String>)| EndpointPort {
                name: Some(name.clone()),
                protocol: Some(protocol.clone()),
                port: *port,
                app_protocol: app_protocol.clone(),
            };
        self.0.iter().map(port).collect()
    }
}

/// What a slice should hold. Labels and the like are the caller's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Content {
    pub(crate) family: Family,
    pub(crate) ports: Vec<EndpointPort>,
    pub(crate) endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) create: Vec<Content>,
    pub(crate) update: Vec<(Arc<EndpointSlice>, Content)>,
    pub(crate) delete: Vec<Arc<EndpointSlice>>,
}

/// What makes two endpoints the same one, though its conditions may differ.
fn identity(endpoint: &Endpoint) -> (Vec<String>, Option<String>) {
    (endpoint.addresses.clone(), endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()))
}

struct Draft {
    /// `None` for one to be created.
    slice: Option<Arc<EndpointSlice>>,
    endpoints: Vec<Endpoint>,
    changed: bool,
    dispensable: bool,
}

impl Draft {
    fn new(endpoints: Vec<Endpoint>) -> Self {
        Self { slice: None, endpoints, changed: true, dispensable: false }
    }
}

/// `existing` are the Service's slices that are ours; `must_update` tells which of them need a write anyway, because
/// their labels are wrong, say.
pub(crate) fn plan(
    families: &[Family],
    mut desired: Desired,
    existing: &[Arc<EndpointSlice>],
    must_update: impl Fn(&EndpointSlice) -> bool,
) -> Plan {
    let mut plan = Plan::default();
    let mut groups: BTreeMap<(Family, Ports), Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        let family = families.iter().find(|family| family.address_type() == slice.address_type);
        match family {
            Some(family) => {
                let ports = Ports::of(slice.ports.as_deref().unwrap_or_default());
                groups.entry((*family, ports)).or_default().push(slice.clone());
            }
            // Address types are immutable: a family that the Service left takes its slices with it.
            None => plan.delete.push(slice.clone()),
        }
    }
    for family in families {
        if !desired.iter().any(|((of, _), endpoints)| of == family && !endpoints.is_empty()) {
            // One of the slices there are is kept, emptied.
            let ports =
                groups.keys().find(|(of, _)| of == family).map_or(Ports(Vec::new()), |(_, ports)| ports.clone());
            desired.insert((*family, ports), Vec::new());
        }
    }
    let mut surplus = Vec::new();
    for ((family, ports), endpoints) in desired {
        let slices = groups.remove(&(family, ports.clone())).unwrap_or_default();
        let content = |endpoints| Content { family, ports: ports.list(), endpoints };
        for draft in drafts(slices, endpoints, &must_update) {
            match draft.slice {
                Some(slice) if draft.dispensable => surplus.push((family, slice)),
                Some(slice) if draft.changed => plan.update.push((slice, content(draft.endpoints))),
                Some(_) => {}
                None => plan.create.push(content(draft.endpoints)),
            }
        }
    }
    surplus.extend(
        groups.into_iter().flat_map(|((family, _), slices)| slices.into_iter().map(move |slice| (family, slice))),
    );
    // One write instead of two: a slice on its way out becomes one on its way in.
    for (family, slice) in surplus {
        match plan.create.iter().position(|content| content.family == family) {
            Some(index) => plan.update.push((slice, plan.create.remove(index))),
            None => plan.delete.push(slice),
        }
    }
    plan
}

/// Distributes the endpoints of one set of ports over its slices.
fn drafts(
    slices: Vec<Arc<EndpointSlice>>,
    endpoints: Vec<Endpoint>,
    must_update: &impl Fn(&EndpointSlice) -> bool,
) -> Vec<Draft> {
    // The one slice that says there is nothing.
    let mut placeholder = endpoints.is_empty();
    let mut left: BTreeMap<_, _> = endpoints.into_iter().map(|endpoint| (identity(&endpoint), endpoint)).collect();
    let mut drafts: Vec<Draft> = Vec::new();
    for slice in slices {
        let mut kept = Vec::new();
        let mut changed = must_update(&slice);
        for endpoint in &slice.endpoints {
            match left.remove(&identity(endpoint)) {
                Some(desired) if kept.len() < CAPACITY => {
                    changed |= desired != *endpoint;
                    kept.push(desired);
                }
                Some(desired) => {
                    left.insert(identity(&desired), desired);
                    changed = true;
                }
                None => changed = true,
            }
        }
        drafts.push(Draft { slice: Some(slice), endpoints: kept, changed, dispensable: false });
    }
    let mut left: Vec<_> = left.into_values().collect();
    // First into slices that are written anyway, fullest first; then into one that has room for all the rest.
    let mut order: BTreeSet<_> = drafts
        .iter()
        .enumerate()
        .filter(|(_, draft)| draft.changed && !draft.endpoints.is_empty())
        .map(|(index, draft)| (CAPACITY - draft.endpoints.len(), index))
        .collect();
    while let Some((room, index)) = order.pop_first() {
        drafts[index].endpoints.extend(left.drain(..room.min(left.len())));
    }
    while !left.is_empty() {
        let wanted = left.len().min(CAPACITY);
        let fitting = drafts
            .iter_mut()
            .filter(|draft| CAPACITY - draft.endpoints.len() >= wanted)
            .max_by_key(|draft| draft.endpoints.len());
        let batch = left.drain(..wanted);
        match fitting {
            Some(draft) => {
                draft.endpoints.extend(batch);
                draft.changed = true;
            }
            None => drafts.push(Draft::new(batch.collect())),
        }
    }
    for draft in drafts.iter_mut().filter(|draft| draft.endpoints.is_empty()) {
        draft.dispensable = !std::mem::take(&mut placeholder);
    }
    if placeholder {
        drafts.push(Draft::new(Vec::new()));
    }
    drafts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const FAMILIES: [Family; 1] = [Family::V4];

    fn ports(number: i32) -> Vec<EndpointPort> {
        vec![serde_json::from_value(json!({"name": "http", "port": number, "protocol": "TCP"})).unwrap()]
    }

    fn endpoint(number: usize) -> Endpoint {
        serde_json::from_value(json!({
            "addresses": [format!("10.0.{}.{}", number / 250, number % 250)],
            "conditions": {"ready": true}, "targetRef": {"uid": format!("{number}")}}))
        .unwrap()
    }

    fn endpoints(range: std::ops::Range<usize>) -> Vec<Endpoint> {
        range.map(endpoint).collect()
    }

    fn slice(name: &str, port: i32, endpoints: Vec<Endpoint>) -> Arc<EndpointSlice> {
        let mut slice = EndpointSlice {
            address_type: "IPv4".into(),
            ports: Some(ports(port)),
            endpoints,
            ..EndpointSlice::default()
        };
        slice.metadata.name = Some(name.into());
        Arc::new(slice)
    }

    fn desired(groups: &[(i32, Vec<Endpoint>)]) -> Desired {
        groups.iter().map(|(port, list)| ((Family::V4, Ports::of(&ports(*port))), list.clone())).collect()
    }

    /// Created sizes, updated names with sizes, deleted names.
    fn told(plan: &Plan) -> String {
        let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap();
        let created: Vec<_> = plan.create.iter().map(|content| content.endpoints.len()).collect();
        let updated: Vec<_> = plan.update.iter().map(|(s, c)| format!("{}={}", name(s), c.endpoints.len())).collect();
        let deleted: Vec<_> = plan.delete.iter().map(|slice| name(slice)).collect();
        format!("create {created:?} update {updated:?} delete {deleted:?}")
    }

    fn check(groups: &[(i32, Vec<Endpoint>)], existing: &[Arc<EndpointSlice>], expected: &str) {
        let plan = plan(&FAMILIES, desired(groups), existing, |_| false);
        assert_eq!(told(&plan), expected);
        // What the plan leads to needs no further write, and holds exactly what was asked for.
        let mut after: Vec<_> = existing
            .iter()
            .filter(|slice| !plan.delete.contains(slice) && !plan.update.iter().any(|(updated, _)| updated == *slice))
            .cloned()
            .collect();
        let written = plan.update.iter().map(|(_, content)| content).chain(&plan.create);
        after.extend(written.enumerate().map(|(index, content)| {
            slice(
                &format!("after-{index}"),
                content.ports.first().map_or(0, |port| port.port.unwrap()),
                content.endpoints.clone(),
            )
        }));
        let mut held: Vec<_> = after.iter().flat_map(|slice| slice.endpoints.iter().map(identity)).collect();
        held.sort();
        let mut asked: Vec<_> = groups.iter().flat_map(|(_, list)| list.iter().map(identity)).collect();
        asked.sort();
        assert_eq!(held, asked);
        assert!(after.iter().all(|slice| slice.endpoints.len() <= CAPACITY));
        if !asked.is_empty() {
            assert_eq!(super::plan(&FAMILIES, desired(groups), &after, |_| false), Plan::default(), "not settled");
        }
    }

    #[test]
    fn slices_fill_and_shrink_with_few_writes() {
        let full = || slice("full", 80, endpoints(0..100));
        check(&[(80, endpoints(0..3))], &[], "create [3] update [] delete []");
        check(&[(80, endpoints(0..250))], &[], "create [100, 100, 50] update [] delete []");
        check(&[(80, endpoints(0..3))], &[slice("a", 80, endpoints(0..3))], "create [] update [] delete []");
        check(&[(80, endpoints(0..4))], &[slice("a", 80, endpoints(0..3))], "create [] update [\"a=4\"] delete []");
        check(&[(80, endpoints(0..101))], &[full()], "create [1] update [] delete []");
        check(
            &[(80, endpoints(0..103))],
            &[full(), slice("a", 80, endpoints(100..101)), slice("b", 80, endpoints(101..102))],
            "create [] update [\"b=2\"] delete []",
        );
        check(&[(80, endpoints(1..101))], &[full()], "create [] update [\"full=100\"] delete []");
        check(
            &[(80, endpoints(0..100))],
            &[full(), slice("a", 80, endpoints(100..101))],
            "create [] update [] delete [\"a\"]",
        );
    }

    #[test]
    fn ports_that_differ_make_slices_that_differ() {
        check(&[(80, endpoints(0..2)), (81, endpoints(2..3))], &[], "create [2, 1] update [] delete []");
        let moved = [slice("a", 80, endpoints(0..2)), slice("b", 81, endpoints(2..3))];
        check(&[(80, endpoints(0..3))], &moved, "create [] update [\"a=3\"] delete [\"b\"]");
        check(&[(90, endpoints(0..2))], &moved[..1], "create [] update [\"a=2\"] delete []");
    }

    #[test]
    fn nothing_is_told_by_one_empty_slice() {
        let empty = plan(&FAMILIES, Desired::new(), &[], |_| false);
        assert_eq!(told(&empty), "create [0] update [] delete []");
        let kept = plan(&FAMILIES, Desired::new(), &[slice("a", 80, vec![])], |_| false);
        assert_eq!(kept, Plan::default());
        let two = [slice("a", 80, endpoints(0..1)), slice("b", 80, endpoints(1..2))];
        assert_eq!(
            told(&plan(&FAMILIES, Desired::new(), &two, |_| false)),
            "create [] update [\"a=0\"] delete [\"b\"]"
        );
    }

    #[test]
    fn a_changed_condition_is_one_write() {
        let mut unready = endpoints(0..3);
        unready[1].conditions.as_mut().unwrap().ready = Some(false);
        let existing = [slice("a", 80, endpoints(0..3)), slice("b", 80, endpoints(3..6))];
        unready.extend(endpoints(3..6));
        check(&[(80, unready)], &existing, "create [] update [\"a=3\"] delete []");
    }

    #[test]
    fn families_come_and_go() {
        let both = [Family::V4, Family::V6];
        let existing = [slice("a", 80, endpoints(0..1))];
        let grown = plan(&both, desired(&[(80, endpoints(0..1))]), &existing, |_| false);
        assert_eq!(told(&grown), "create [0] update [] delete []");
        let left = plan(&[Family::V6], Desired::new(), &existing, |_| false);
        assert_eq!(told(&left), "create [0] update [] delete [\"a\"]");
    }

    #[test]
    fn wrong_labels_are_a_reason_to_write() {
        let plan = plan(&FAMILIES, desired(&[(80, endpoints(0..1))]), &[slice("a", 80, endpoints(0..1))], |_| true);
        assert_eq!(told(&plan), "create [] update [\"a=1\"] delete []");
    }
}
