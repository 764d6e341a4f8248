//! Hand-written Endpoints of Services without a selector -> EndpointSlices, for readers that know only slices.
//!
//! Invariant: one slice set a Service, marked as mirrored; Endpoints labelled `endpointslice.kubernetes.io/skip-mirror`
//! or used for leader election are left alone. Source: "EndpointSlice mirroring" in the Kubernetes documentation.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::{Client, Resource, ResourceExt};
use portolan_client::{Cache, Change, Key};
use tokio::time::Instant;

use crate::drive::{Controller, Effects, Outcome, drive, inputs};
use crate::endpointslice::{
    Desired, Family, MANAGED_BY, Plan, Ports, SERVICE_NAME, carry_out, plan, selector, service_of, services_of,
};
use crate::index::{Index, Unseen};
use crate::queue::Queue;
use crate::{Shared, meta};

const US: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses mirrored of each subset; upstream's limit, so that a huge Endpoints stays bounded.
const LIMIT: usize = 1000;

pub(crate) enum Input {
    Service(Change<Service>),
    Endpoints(Change<Endpoints>),
    Slice(Change<EndpointSlice>),
}

pub(crate) async fn run(shared: Arc<Shared>) {
    let caches = &shared.caches;
    let inputs = vec![
        inputs(&caches.services, Input::Service),
        inputs(&caches.endpoints, Input::Endpoints),
        inputs(&caches.slices, Input::Slice),
    ];
    let controller = Mirroring {
        client: shared.client.clone(),
        services: caches.services.clone(),
        endpoints: caches.endpoints.clone(),
        slices: Index::new(|slice| ours(slice).then(|| service_of(slice)).flatten()),
        unseen: Unseen::default(),
    };
    drive(controller, inputs, 4).await;
}

fn ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).is_some_and(|manager| manager == US)
}

struct Mirroring {
    client: Client,
    services: Cache<Service>,
    endpoints: Cache<Endpoints>,
    slices: Index<EndpointSlice>,
    unseen: Unseen<Key>,
}

impl Controller for Mirroring {
    const NAME: &'static str = "endpointslicemirroring";
    type Input = Input;
    type Key = Key;

    fn observe(&mut self, input: Input, queue: &mut Queue<Key>) {
        match input {
            Input::Service(Change::Applied { new, .. } | Change::Deleted(new)) => queue.add(Key::of(&*new)),
            Input::Endpoints(Change::Applied { new, .. } | Change::Deleted(new)) => queue.add(Key::of(&*new)),
            Input::Slice(change) => {
                self.slices.observe(&change);
                if let Change::Synced { asked } = change {
                    self.unseen.listed(asked, queue);
                }
                services_of(&change, ours).into_iter().for_each(|key| queue.add(key));
            }
            Input::Service(Change::Synced { .. }) | Input::Endpoints(Change::Synced { .. }) => {}
        }
    }

    fn reconcile(&mut self, key: &Key, queue: &mut Queue<Key>) -> Option<Effects> {
        if let Err(until) = self.unseen.settled(key, Instant::now(), |write| self.slices.shows(write)) {
            queue.add_at(key.clone(), until);
            return None;
        }
        let existing: Vec<_> = self.slices.group(&key.to_string()).cloned().collect();
        let service = self.services.get(key).filter(|service| selector(service).is_none());
        let endpoints = self.endpoints.get(key).filter(|endpoints| is_mirrored(endpoints));
        let Some(endpoints) = service.and(endpoints) else {
            let plan = Plan { delete: existing, ..Plan::default() };
            return (!plan.delete.is_empty()).then(|| carry_out(self.client.clone(), key.clone(), plan, None));
        };
        let desired = mirror(&endpoints);
        let mut families: Vec<Family> = desired.keys().map(|(family, _)| *family).collect();
        families.dedup();
        let head = head(&endpoints);
        let labels = head.metadata.labels.clone();
        let plan = plan(&families, desired, &existing, |slice| {
            slice.metadata.labels != labels || !meta::is_controlled_by(&slice.metadata, &endpoints.metadata)
        });
        (plan != Plan::default()).then(|| carry_out(self.client.clone(), key.clone(), plan, Some(head)))
    }

    fn finish(&mut self, key: &Key, outcome: &Outcome, _queue: &mut Queue<Key>) {
        self.unseen.record(key, &outcome.writes, Instant::now());
    }
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    endpoints.labels().get(SKIP).is_none_or(|skip| skip != "true")
        && meta::annotation(&endpoints.metadata, LEADER).is_none()
        && !meta::is_terminating(endpoints)
}

/// The slices' metadata. They belong to the Endpoints, and go with them.
fn head(endpoints: &Endpoints) -> EndpointSlice {
    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_NAME.into(), endpoints.name_any());
    labels.insert(MANAGED_BY.into(), US.into());
    let mut annotations: BTreeMap<_, _> = endpoints.annotations().clone();
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    let mut head = EndpointSlice::default();
    head.metadata.generate_name = Some(format!("{}-", endpoints.name_any()));
    head.metadata.namespace = endpoints.namespace();
    head.metadata.labels = Some(labels);
    head.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    head.metadata.owner_references = endpoints.controller_owner_ref(&()).map(|owner| vec![owner]);
    head
}

fn mirror(endpoints: &Endpoints) -> Desired {
    let mut desired = Desired::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: port.protocol.clone(),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(unready).take(LIMIT) {
            let family = [Family::V4, Family::V6].into_iter().find(|family| family.is_of(&address.ip));
            if let Some(family) = family {
                desired.entry((family, Ports::of(&ports))).or_default().push(endpoint(address, ready));
            }
        }
    }
    desired
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn subsets_become_slices_by_family_and_ports() {
        let endpoints: Endpoints = serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "default"},
            "subsets": [
                {"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}],
                 "ports": [{"port": 5432}]},
                {"addresses": [{"ip": "192.0.2.3"}], "ports": [{"port": 5433}]}]}))
        .unwrap();
        let mut told: Vec<_> = mirror(&endpoints)
            .into_iter()
            .map(|((family, _), list)| {
                let one = |e: Endpoint| format!("{}={}", e.addresses[0], e.conditions.unwrap().ready.unwrap());
                format!("{family:?} {}", list.into_iter().map(one).collect::<Vec<_>>().join(","))
            })
            .collect();
        told.sort();
        assert_eq!(told, ["V4 192.0.2.1=true,192.0.2.2=false", "V4 192.0.2.3=true", "V6 2001:db8::1=true"]);
    }

    #[test]
    fn some_endpoints_are_left_alone() {
        for (metadata, mirrored) in [
            (json!({"name": "a"}), true),
            (json!({"name": "a", "labels": {SKIP: "true"}}), false),
            (json!({"name": "a", "labels": {SKIP: "false"}}), true),
            (json!({"name": "a", "annotations": {LEADER: "{}"}}), false),
        ] {
            let endpoints: Endpoints = serde_json::from_value(json!({"metadata": metadata})).unwrap();
            assert_eq!(is_mirrored(&endpoints), mirrored, "{metadata}");
        }
    }
}
