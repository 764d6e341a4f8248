//! Services with a selector, and their pods -> Endpoints, for clients from before EndpointSlice.
//!
//! Invariant: at most 1000 addresses an object, and the annotation says when there were more. Source: the Endpoints
//! API.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Node, Pod, Service};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use portolan_client::{Cache, Change, Key};
use tokio::time::Instant;

use crate::drive::{Controller, Effects, Outcome, drive, inputs};
use crate::endpointslice::endpoint::{self, families};
use crate::endpointslice::{HEADLESS, Ports, facet, selecting, selector};
use crate::index::{Index, Unseen, Write};
use crate::queue::Queue;
use crate::{Shared, meta, pod, refusal};

const CAPACITY: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const US: &str = "endpoint-controller";

pub(crate) enum Input {
    Service(Change<Service>),
    Pod(Change<Pod>),
    Endpoints(Change<Endpoints>),
    Node(Change<Node>),
}

pub(crate) async fn run(shared: Arc<Shared>) {
    let caches = &shared.caches;
    let inputs = vec![
        inputs(&caches.services, Input::Service),
        inputs(&caches.pods, Input::Pod),
        inputs(&caches.endpoints, Input::Endpoints),
        inputs(&caches.nodes, Input::Node),
    ];
    let controller = EndpointsWriter {
        client: shared.client.clone(),
        services: caches.services.clone(),
        pods: caches.pods.clone(),
        nodes: caches.nodes.clone(),
        endpoints: Index::new(|_| None),
        unseen: Unseen::default(),
        widowed: BTreeSet::new(),
    };
    drive(controller, inputs, 4).await;
}

struct EndpointsWriter {
    client: Client,
    services: Cache<Service>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    endpoints: Index<Endpoints>,
    unseen: Unseen<Key>,
    /// Services that were seen to go, whose Endpoints go with them even if written by hand: the two are one by name.
    /// Endpoints that are merely there before their Service stay.
    widowed: BTreeSet<Key>,
}

impl Controller for EndpointsWriter {
    const NAME: &'static str = "endpoints";
    type Input = Input;
    type Key = Key;

    fn observe(&mut self, input: Input, queue: &mut Queue<Key>) {
        let mut wake = |pod: &Pod| selecting(&self.services, pod).into_iter().for_each(|key| queue.add(key));
        match input {
            Input::Pod(Change::Applied { new, old }) => match old {
                Some(old) if facet(&old) == facet(&new) => {}
                Some(old) => {
                    wake(&old);
                    wake(&new);
                }
                None => wake(&new),
            },
            Input::Pod(Change::Deleted(old)) => wake(&old),
            Input::Node(Change::Deleted(old)) => {
                let name = old.name_any();
                self.pods.list().iter().filter(|pod| pod::node(pod) == Some(&name)).for_each(|pod| wake(pod));
            }
            Input::Node(Change::Applied { new, old: None }) => {
                let name = new.name_any();
                self.pods.list().iter().filter(|pod| pod::node(pod) == Some(&name)).for_each(|pod| wake(pod));
            }
            Input::Service(Change::Applied { new, .. }) => {
                self.widowed.remove(&Key::of(&*new));
                queue.add(Key::of(&*new));
            }
            Input::Service(Change::Deleted(old)) => {
                self.widowed.insert(Key::of(&*old));
                queue.add(Key::of(&*old));
            }
            Input::Endpoints(change) => {
                self.endpoints.observe(&change);
                match change {
                    Change::Applied { new, .. } | Change::Deleted(new) => queue.add(Key::of(&*new)),
                    Change::Synced { asked } => self.unseen.listed(asked, queue),
                }
            }
            Input::Service(Change::Synced { .. }) | Input::Pod(Change::Synced { .. }) | Input::Node(_) => {}
        }
    }

    fn reconcile(&mut self, key: &Key, queue: &mut Queue<Key>) -> Option<Effects> {
        if let Err(until) = self.unseen.settled(key, Instant::now(), |write| self.endpoints.shows(write)) {
            queue.add_at(key.clone(), until);
            return None;
        }
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let existing = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            let widowed = self.widowed.contains(key);
            let Some(existing) = existing.filter(|existing| !meta::is_terminating(&**existing)) else {
                self.widowed.remove(key);
                return None;
            };
            let ours = existing.labels().get(MANAGED_BY).is_some_and(|manager| manager == US);
            if !widowed && !ours {
                return None;
            }
            return Some(Box::pin(async move {
                let deleted = api.delete(&existing.name_any(), &kube::api::DeleteParams::default()).await;
                refusal::ignore_not_found(deleted).map(drop).into()
            }));
        };
        let selector = selector(&service)?;
        let selected = self.pods.list_in(&key.namespace).into_iter().filter(|pod| {
            let known = |name| self.nodes.get(&Key::new("", name)).is_some();
            meta::selects(selector, pod.labels()) && pod::node(pod).is_none_or(known)
        });
        let desired = desired(&service, selected);
        if let Some(existing) = &existing
            && existing.subsets.as_deref().unwrap_or_default() == desired.subsets.as_deref().unwrap_or_default()
            && existing.metadata.labels == desired.metadata.labels
            && meta::annotation(&existing.metadata, OVER_CAPACITY) == meta::annotation(&desired.metadata, OVER_CAPACITY)
        {
            return None;
        }
        Some(Box::pin(async move {
            match write(&api, existing.as_deref(), desired).await {
                Ok(written) => Outcome { writes: vec![Write::applied(&written)], error: None },
                Err(error) if refusal::is_namespace_terminating(&error) => Outcome::default(),
                Err(error) => Err(error).into(),
            }
        }))
    }

    fn finish(&mut self, key: &Key, outcome: &Outcome, _queue: &mut Queue<Key>) {
        self.unseen.record(key, &outcome.writes, Instant::now());
    }
}

async fn write(api: &Api<Endpoints>, old: Option<&Endpoints>, desired: Endpoints) -> Result<Endpoints, kube::Error> {
    let Some(old) = old else { return api.create(&PostParams::default(), &desired).await };
    let mut new = Endpoints { subsets: desired.subsets, metadata: old.metadata.clone() };
    new.metadata.labels = desired.metadata.labels;
    let annotations = new.metadata.annotations.get_or_insert_default();
    annotations.remove(OVER_CAPACITY);
    annotations.extend(desired.metadata.annotations.unwrap_or_default());
    api.replace(&old.name_any(), &PostParams::default(), &new).await
}

fn desired(service: &Service, pods: impl Iterator<Item = Arc<Pod>>) -> Endpoints {
    // By ports; ready before not ready, so that the limit cuts off those that matter less.
    let mut all: Vec<(bool, EndpointAddress, Ports, Vec<EndpointPort>)> = Vec::new();
    let Some(family) = families(service).first().copied() else { return Endpoints::default() };
    for pod in pods {
        let Some(endpoint) = endpoint::endpoint(service, &pod, None, family) else { continue };
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(false);
        // Old clients know no terminating endpoints.
        if meta::is_terminating(&*pod) && !endpoint::is_published_unready(service) {
            continue;
        }
        let ports = endpoint::ports(service, &pod);
        let address = EndpointAddress {
            ip: endpoint.addresses.into_iter().next().unwrap_or_default(),
            hostname: endpoint.hostname,
            node_name: endpoint.node_name,
            target_ref: endpoint.target_ref,
        };
        let key = Ports::of(&ports);
        let ports = ports.into_iter().map(|port| EndpointPort {
            name: port.name.filter(|name| !name.is_empty()),
            port: port.port.unwrap_or(0),
            protocol: port.protocol,
            app_protocol: port.app_protocol,
        });
        all.push((ready, address, key, ports.collect()));
    }
    all.sort_by(|a, b| (!a.0, &a.1.ip).cmp(&(!b.0, &b.1.ip)));
    let truncated = all.len() > CAPACITY;
    all.truncate(CAPACITY);
    let mut subsets: BTreeMap<Ports, EndpointSubset> = BTreeMap::new();
    for (ready, address, key, ports) in all {
        let subset = subsets.entry(key).or_insert_with(|| EndpointSubset {
            ports: (!ports.is_empty()).then_some(ports),
            ..EndpointSubset::default()
        });
        let list = if ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None")) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(MANAGED_BY.into(), US.into());
    let mut endpoints = Endpoints::default();
    endpoints.metadata.name = service.metadata.name.clone();
    endpoints.metadata.namespace = service.metadata.namespace.clone();
    endpoints.metadata.labels = Some(labels);
    endpoints.metadata.annotations = truncated.then(|| [(OVER_CAPACITY.to_owned(), "truncated".to_owned())].into());
    let subsets: Vec<_> = subsets.into_values().collect();
    endpoints.subsets = (!subsets.is_empty()).then_some(subsets);
    endpoints
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(number: usize, ready: bool) -> Arc<Pod> {
        let ip = format!("10.{}.{}.1", number / 200, number % 200);
        let ready = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": format!("p{number}"), "namespace": "default", "uid": format!("{number}")},
                "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080 + number % 2}]}]},
                "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap(),
        )
    }

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.9", "selector": {"a": "b"}, "ports": [{"port": 80, "targetPort": "web"}]}}))
        .unwrap()
    }

    #[test]
    fn ready_and_not_ready_by_port() {
        let made = desired(&service(), [pod(0, true), pod(2, false), pod(1, true)].into_iter());
        let told: Vec<_> = made
            .subsets
            .unwrap()
            .into_iter()
            .map(|subset| {
                let count = |list: Option<Vec<EndpointAddress>>| list.map_or(0, |list| list.len());
                (subset.ports.unwrap()[0].port, count(subset.addresses), count(subset.not_ready_addresses))
            })
            .collect();
        assert_eq!(told, [(8080, 1, 1), (8081, 1, 0)]);
    }

    #[test]
    fn more_than_a_thousand_are_cut_off_and_said_so() {
        let made = desired(&service(), (0..1200).map(|number| pod(number, number != 0)));
        let count: usize = made.subsets.iter().flatten().map(|subset| subset.addresses.as_ref().unwrap().len()).sum();
        assert_eq!(count, CAPACITY);
        assert_eq!(made.metadata.annotations.unwrap()[OVER_CAPACITY], "truncated");
    }
}
