//! Services with a selector, and the pods they select -> EndpointSlices.
//!
//! Invariant: slices that another hand manages are never touched. Deliberately not here: Services without a selector,
//! whose slices are written by hand or mirrored from Endpoints.

pub(crate) mod endpoint;
mod hints;
mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use portolan_client::{Cache, Change, Key};
use tokio::time::Instant;

use crate::Shared;
use crate::drive::{Controller, Effects, Outcome, drive, inputs};
use crate::index::{Index, Unseen, Write};
use crate::queue::Queue;
use crate::{meta, pod, refusal};
pub(crate) use endpoint::Family;
pub(crate) use plan::{Content, Desired, Plan, Ports, plan};

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
pub(crate) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const US: &str = "endpointslice-controller.k8s.io";
const WORKERS: usize = 16;

pub(crate) enum Input {
    Service(Change<Service>),
    Pod(Change<Pod>),
    Slice(Change<EndpointSlice>),
    Node(Change<Node>),
}

pub(crate) async fn run(shared: Arc<Shared>) {
    let caches = &shared.caches;
    let inputs = vec![
        inputs(&caches.services, Input::Service),
        inputs(&caches.pods, Input::Pod),
        inputs(&caches.slices, Input::Slice),
        inputs(&caches.nodes, Input::Node),
    ];
    let (services, pods, nodes) = (caches.services.clone(), caches.pods.clone(), caches.nodes.clone());
    let controller = EndpointSlices::new(shared.client.clone(), services, pods, nodes);
    drive(controller, inputs, WORKERS).await;
}

/// The Services that a change of a slice of `ours` is about.
pub(crate) fn services_of(change: &Change<EndpointSlice>, ours: impl Fn(&EndpointSlice) -> bool) -> Vec<Key> {
    let (new, old) = match change {
        Change::Applied { new, old } => (Some(new), old.as_ref()),
        Change::Deleted(old) => (None, Some(old)),
        Change::Synced { .. } => (None, None),
    };
    let slices = new.into_iter().chain(old).filter(|slice| ours(slice));
    slices.filter_map(|slice| key_of(slice)).collect()
}

fn key_of(slice: &EndpointSlice) -> Option<Key> {
    Some(Key::new(slice.metadata.namespace.as_deref()?, slice.labels().get(SERVICE_NAME)?))
}

fn ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).is_some_and(|manager| manager == US)
}

/// The index's group: the Service as `namespace/name`.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<String> {
    key_of(slice).map(|key| key.to_string())
}

struct EndpointSlices {
    client: Client,
    services: Cache<Service>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    slices: Index<EndpointSlice>,
    unseen: Unseen<Key>,
    /// The earliest change of a pod that each Service has not published yet.
    triggers: BTreeMap<Key, Timestamp>,
}

/// The services of the pod's namespace that select it.
pub(crate) fn selecting(services: &Cache<Service>, pod: &Pod) -> Vec<Key> {
    let labels = pod.labels();
    let mut keys = Vec::new();
    for service in services.list_in(&pod.namespace().unwrap_or_default()) {
        if selector(&service).is_some_and(|selector| meta::selects(selector, labels)) {
            keys.push(Key::of(&*service));
        }
    }
    keys
}

/// `None` when the Service's endpoints are not made from pods.
pub(crate) fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    let external = spec.type_.as_deref() == Some("ExternalName");
    spec.selector.as_ref().filter(|selector| !selector.is_empty() && !external)
}

/// What of a pod its endpoints are made of; a change elsewhere in it concerns no Service.
pub(crate) fn facet(pod: &Pod) -> impl PartialEq + use<> {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    (
        (pod.metadata.labels.clone(), pod.metadata.uid.clone(), meta::is_terminating(pod)),
        (pod::is_ready(pod), pod::is_finished(pod), pod::node(pod).map(str::to_owned)),
        status.map(|status| (status.pod_ip.clone(), status.pod_ips.clone())),
        spec.map(|spec| (spec.hostname.clone(), spec.subdomain.clone())),
    )
}

/// When what changed about the pod happened.
fn happened(pod: &Pod) -> Option<Timestamp> {
    if let Some(deleted) = &pod.metadata.deletion_timestamp {
        return Some(deleted.0);
    }
    pod::condition(pod, "Ready")?.last_transition_time.as_ref().map(|time| time.0)
}

impl Controller for EndpointSlices {
    const NAME: &'static str = "endpointslice";
    type Input = Input;
    type Key = Key;

    fn observe(&mut self, input: Input, queue: &mut Queue<Key>) {
        match input {
            Input::Service(Change::Applied { new, .. }) => queue.add(Key::of(&*new)),
            Input::Service(Change::Deleted(old)) => {
                let key = Key::of(&*old);
                self.triggers.remove(&key);
                queue.add(key);
            }
            Input::Pod(Change::Applied { new, old }) => {
                if let Some(old) = old {
                    if facet(&old) == facet(&new) {
                        return;
                    }
                    if old.labels() != new.labels() {
                        self.wake(&old, queue);
                    }
                }
                self.wake(&new, queue);
            }
            Input::Pod(Change::Deleted(old)) => self.wake(&old, queue),
            Input::Slice(change) => {
                self.slices.observe(&change);
                if let Change::Synced { asked } = change {
                    self.unseen.listed(asked, queue);
                }
                services_of(&change, ours).into_iter().for_each(|key| queue.add(key));
            }
            Input::Node(Change::Applied { new, old }) => {
                let zone = |node: &Node| node.labels().get(endpoint::ZONE_LABEL).cloned();
                if old.is_none_or(|old| zone(&old) != zone(&new)) {
                    self.wake_node(&new.name_any(), queue);
                }
            }
            Input::Node(Change::Deleted(old)) => self.wake_node(&old.name_any(), queue),
            Input::Service(Change::Synced { .. })
            | Input::Pod(Change::Synced { .. })
            | Input::Node(Change::Synced { .. }) => {}
        }
    }

    fn reconcile(&mut self, key: &Key, queue: &mut Queue<Key>) -> Option<Effects> {
        if let Err(until) = self.unseen.settled(key, Instant::now(), |write| self.slices.shows(write)) {
            queue.add_at(key.clone(), until);
            return None;
        }
        let existing: Vec<_> = self.slices.group(&key.to_string()).cloned().collect();
        let client = self.client.clone();
        let Some(service) = self.services.get(key) else {
            // The garbage collector would come to the same end; readers should not wait for it.
            let plan = Plan { delete: existing, ..Plan::default() };
            return (!plan.delete.is_empty()).then(|| carry_out(client, key.clone(), plan, None));
        };
        // If it has lost its selector its slices are somebody else's now, and stay as they are until then.
        let selector = selector(&service)?;
        let families = endpoint::families(&service);
        let mut desired = Desired::new();
        for pod in self.pods.list_in(&key.namespace) {
            if !meta::selects(selector, pod.labels()) {
                continue;
            }
            let node = pod::node(&pod).and_then(|name| self.nodes.get(&Key::new("", name)));
            // A pod whose node is gone is gone as well, whatever its status last said, unless that is to count anyway.
            if pod::node(&pod).is_some() && node.is_none() && !endpoint::is_published_unready(&service) {
                continue;
            }
            for family in &families {
                if let Some(mut endpoint) = endpoint::endpoint(&service, &pod, node.as_deref(), *family) {
                    hints::apply(&service, &mut endpoint);
                    let ports = Ports::of(&endpoint::ports(&service, &pod));
                    desired.entry((*family, ports)).or_default().push(endpoint);
                }
            }
        }
        let labels = labels(&service);
        let mut plan = plan(&families, desired, &existing, |slice| {
            slice.metadata.labels.as_ref() != Some(&labels)
                || !meta::is_controlled_by(&slice.metadata, &service.metadata)
        });
        if meta::is_terminating(&*service) {
            // Its endpoints are right for as long as it is there; but the garbage collector may be at its slices.
            plan.create.clear();
        }
        if plan == Plan::default() {
            self.triggers.remove(key);
            return None;
        }
        let trigger = self.triggers.remove(key).or_else(|| service.creation_timestamp().map(|time| time.0));
        let mut head = EndpointSlice::default();
        head.metadata.generate_name = Some(format!("{}-", key.name));
        head.metadata.namespace = Some(key.namespace.clone());
        head.metadata.labels = Some(labels);
        head.metadata.owner_references = Some(vec![meta::controlled_by(&*service)]);
        head.metadata.annotations = trigger.map(|time| [(TRIGGER_TIME.to_owned(), time.to_string())].into());
        Some(carry_out(client, key.clone(), plan, Some(head)))
    }

    fn finish(&mut self, key: &Key, outcome: &Outcome, _queue: &mut Queue<Key>) {
        self.unseen.record(key, &outcome.writes, Instant::now());
    }
}

impl EndpointSlices {
    fn new(client: Client, services: Cache<Service>, pods: Cache<Pod>, nodes: Cache<Node>) -> Self {
        Self {
            client,
            services,
            pods,
            nodes,
            slices: Index::new(|slice| ours(slice).then(|| service_of(slice)).flatten()),
            unseen: Unseen::default(),
            triggers: BTreeMap::new(),
        }
    }

    fn wake(&mut self, pod: &Pod, queue: &mut Queue<Key>) {
        for key in selecting(&self.services, pod) {
            if let Some(at) = happened(pod) {
                let earliest = self.triggers.entry(key.clone()).or_insert(at);
                *earliest = at.min(*earliest);
            }
            queue.add(key);
        }
    }

    fn wake_node(&mut self, node: &str, queue: &mut Queue<Key>) {
        for pod in self.pods.list().iter().filter(|pod| pod::node(pod) == Some(node)) {
            self.wake(pod, queue);
        }
    }
}

/// The Service's own labels, but for those that are the slice's to say.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None")) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), US.into());
    labels
}

/// Writes the plan; `head` has the metadata that every slice gets.
pub(crate) fn carry_out(client: Client, key: Key, plan: Plan, head: Option<EndpointSlice>) -> Effects {
    Box::pin(async move {
        let api = Api::namespaced(client, &key.namespace);
        let mut writes = Vec::new();
        let error = write(&api, plan, head.unwrap_or_default(), &mut writes).await.err();
        Outcome { writes, error }
    })
}

async fn write(
    api: &Api<EndpointSlice>,
    plan: Plan,
    head: EndpointSlice,
    writes: &mut Vec<Write>,
) -> Result<(), kube::Error> {
    let fill = |mut slice: EndpointSlice, content: Content| {
        slice.address_type = content.family.address_type().into();
        slice.ports = Some(content.ports);
        slice.endpoints = content.endpoints;
        slice
    };
    for content in plan.create {
        match api.create(&PostParams::default(), &fill(head.clone(), content)).await {
            Ok(created) => writes.push(Write::applied(&created)),
            Err(error) if refusal::is_namespace_terminating(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    for (old, content) in plan.update {
        let mut slice = fill((*old).clone(), content);
        slice.metadata.labels = head.metadata.labels.clone();
        slice.metadata.owner_references = head.metadata.owner_references.clone();
        if let Some(trigger) = &head.metadata.annotations {
            slice.metadata.annotations.get_or_insert_default().extend(trigger.clone());
        }
        let updated = api.replace(&old.name_any(), &PostParams::default(), &slice).await?;
        writes.push(Write::applied(&updated));
    }
    for slice in plan.delete {
        let only = Preconditions { uid: slice.uid(), resource_version: None };
        refusal::ignore_not_found(api.delete(&slice.name_any(), &DeleteParams::default().preconditions(only)).await)?;
        writes.push(Write::deleted(&*slice));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// kubernetes/kubernetes#100033: slices were made twice on the word of a cache that was behind.
    #[tokio::test]
    async fn nothing_is_decided_again_before_the_last_writes_are_seen() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "s"}, "spec": {"selector": {"app": "web"}}}))
        .unwrap();
        let services = Cache::detached();
        services.put(service.clone());
        let mut controller = EndpointSlices::new(crate::nowhere(), services, Cache::detached(), Cache::detached());
        let (key, mut queue) = (Key::of(&service), Queue::default());
        assert!(controller.reconcile(&key, &mut queue).is_some(), "there is no slice");
        let mut created = EndpointSlice { address_type: "IPv4".into(), ..EndpointSlice::default() };
        created.metadata.name = Some("web-1".into());
        created.metadata.namespace = Some("default".into());
        created.metadata.uid = Some("slice".into());
        created.metadata.resource_version = Some("7".into());
        created.metadata.labels = Some(labels(&service));
        created.metadata.owner_references = Some(vec![meta::controlled_by(&service)]);
        let outcome = Outcome { writes: vec![Write::applied(&created)], error: None };
        controller.finish(&key, &outcome, &mut queue);
        assert!(controller.reconcile(&key, &mut queue).is_none(), "the slice is there, only not seen yet");
        controller.observe(Input::Slice(Change::Applied { new: Arc::new(created), old: None }), &mut queue);
        assert!(controller.reconcile(&key, &mut queue).is_none(), "and it is as it should be");
        assert_eq!(queue.take(Instant::now()), Some(key), "seeing it is a reason to look");
    }

    /// The garbage collector would take the slices of the Service that was there before.
    #[tokio::test]
    async fn a_service_made_anew_takes_its_slices_over_and_one_without_a_selector_leaves_them() {
        let service = |uid: &str, selector: serde_json::Value| -> Service {
            let metadata = json!({"name": "web", "namespace": "default", "uid": uid});
            serde_json::from_value(json!({"metadata": metadata, "spec": {"selector": selector}})).unwrap()
        };
        let services = Cache::detached();
        let mut controller =
            EndpointSlices::new(crate::nowhere(), services.clone(), Cache::detached(), Cache::detached());
        let (before, mut queue) = (service("before", json!({"app": "web"})), Queue::default());
        let mut slice = EndpointSlice { address_type: "IPv4".into(), ..EndpointSlice::default() };
        slice.metadata.name = Some("web-1".into());
        slice.metadata.namespace = Some("default".into());
        slice.metadata.labels = Some(labels(&before));
        slice.metadata.owner_references = Some(vec![meta::controlled_by(&before)]);
        controller.observe(Input::Slice(Change::Applied { new: Arc::new(slice), old: None }), &mut queue);
        let mut writes = |service: Service| {
            services.put(service.clone());
            controller.reconcile(&Key::of(&service), &mut queue).is_some()
        };
        assert!(!writes(before));
        assert!(writes(service("after", json!({"app": "web"}))));
        assert!(!writes(service("after", json!(null))));
    }

    #[tokio::test]
    async fn a_service_that_is_kept_from_going_keeps_its_endpoints_right_and_gets_no_new_slices() {
        let service = |terminating: bool| -> Service {
            let deleted = terminating.then_some("2026-01-01T00:00:00Z");
            let metadata = json!({"name": "web", "namespace": "default", "uid": "u", "deletionTimestamp": deleted});
            serde_json::from_value(json!({"metadata": metadata, "spec": {"selector": {"app": "web"}}})).unwrap()
        };
        let (services, pods) = (Cache::detached(), Cache::detached());
        let mut controller = EndpointSlices::new(crate::nowhere(), services.clone(), pods.clone(), Cache::detached());
        let (key, mut queue) = (Key::of(&service(false)), Queue::default());
        services.put(service(true));
        assert!(controller.reconcile(&key, &mut queue).is_none());
        let mut slice = EndpointSlice { address_type: "IPv4".into(), ..EndpointSlice::default() };
        slice.metadata.name = Some("web-1".into());
        slice.metadata.namespace = Some("default".into());
        slice.metadata.labels = Some(labels(&service(true)));
        slice.metadata.owner_references = Some(vec![meta::controlled_by(&service(true))]);
        controller.observe(Input::Slice(Change::Applied { new: Arc::new(slice), old: None }), &mut queue);
        assert!(controller.reconcile(&key, &mut queue).is_none(), "nothing is taken away");
        let pod = json!({"metadata": {"name": "p", "namespace": "default", "labels": {"app": "web"}},
            "spec": {"containers": []}, "status": {"podIP": "10.0.0.1"}});
        pods.put(serde_json::from_value(pod).unwrap());
        assert!(controller.reconcile(&key, &mut queue).is_some(), "and what is new is told");
    }
}
