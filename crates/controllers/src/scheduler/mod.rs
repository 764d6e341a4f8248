//! Pods without a node -> bound to one.
//!
//! A pod that fits nowhere waits until something changes that could help: a node, a pod that leaves one, or, if it minds
//! what runs beside it, one that comes. One decision at a time is made, each on the ledger the last one left; the
//! bindings themselves run side by side.

mod fit;
mod ledger;
#[cfg(test)]
mod tests;
mod topology;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod, Service};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use portolan_client::{Cache, Change, Key, Recorder};
use serde_json::json;

use crate::Shared;
use crate::drive::{Controller, Effects, Outcome, drive, inputs};
use crate::queue::Queue;
use crate::{meta, pod, refusal};
use fit::Cluster;
use ledger::{Ledger, Peers};

const WORKERS: usize = 32;

pub(crate) enum Input {
    Pod(Change<Pod>),
    Node(Change<Node>),
}

pub(crate) async fn run(shared: Arc<Shared>) {
    let caches = &shared.caches;
    let inputs = vec![inputs(&caches.pods, Input::Pod), inputs(&caches.nodes, Input::Node)];
    let events = shared.events.component("default-scheduler");
    let (pods, nodes, services) = (caches.pods.clone(), caches.nodes.clone(), caches.services.clone());
    let controller = Scheduler::new(shared.client.clone(), events, pods, nodes, services);
    drive(controller, inputs, WORKERS).await;
}

struct Scheduler {
    client: Client,
    events: Recorder,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    services: Cache<Service>,
    ledger: Ledger,
    /// Pods that fitted nowhere when last tried, and whether they mind what runs beside them.
    homeless: BTreeMap<Key, bool>,
    turn: usize,
}

/// What about a node could make a pod fit that did not.
fn offer(node: &Node) -> impl PartialEq + use<> {
    let spec = node.spec.clone().unwrap_or_default();
    let taints: Vec<_> =
        spec.taints.into_iter().flatten().map(|taint| (taint.key, taint.value, taint.effect)).collect();
    (spec.unschedulable, taints, node.metadata.labels.clone(), fit::is_ready(node), fit::allocatable(node))
}

fn is_waiting(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = spec.scheduler_name.as_deref().unwrap_or("default-scheduler") == "default-scheduler";
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    ours && !gated && pod::node(pod).is_none() && pod::is_active(pod)
}

/// Whether where it may run depends on other pods than by what they use up.
fn minds_company(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        let affinity = spec.affinity.as_ref();
        affinity.is_some_and(|affinity| affinity.pod_affinity.is_some() || affinity.pod_anti_affinity.is_some())
            || spec.topology_spread_constraints.as_ref().is_some_and(|constraints| !constraints.is_empty())
    })
}

/// The pod has come to a node, or is there under other labels than before.
fn is_new_company(pod: &Pod, old: Option<&Pod>) -> bool {
    let known = |old: &Pod| old.uid() == pod.uid() && pod::node(old).is_some() && old.labels() == pod.labels();
    pod::node(pod).is_some() && !old.is_some_and(known)
}

impl Controller for Scheduler {
    const NAME: &'static str = "scheduler";
    type Input = Input;
    type Key = Key;

    fn observe(&mut self, input: Input, queue: &mut Queue<Key>) {
        let may_help = match input {
            Input::Pod(Change::Applied { new, old }) => {
                // The same name with another uid is another pod: the old one went while the watch was down.
                let replaced = old.as_ref().is_some_and(|old| old.uid() != new.uid() && self.ledger.remove(old));
                if is_waiting(&new) {
                    queue.add(Key::of(&*new));
                } else {
                    self.homeless.remove(&Key::of(&*new));
                }
                let freed = self.ledger.observe(&new);
                if is_new_company(&new, old.as_deref()) {
                    self.retry(queue, |minds_company| minds_company);
                }
                freed || replaced
            }
            Input::Pod(Change::Deleted(old)) => {
                self.homeless.remove(&Key::of(&*old));
                self.ledger.remove(&old)
            }
            Input::Node(Change::Applied { new, old }) => old.is_none_or(|old| offer(&old) != offer(&new)),
            Input::Node(Change::Deleted(_)) => true,
            Input::Pod(Change::Synced { .. }) | Input::Node(Change::Synced { .. }) => false,
        };
        if may_help {
            self.retry(queue, |_| true);
        }
    }

    fn reconcile(&mut self, key: &Key, _queue: &mut Queue<Key>) -> Option<Effects> {
        let pod = self.pods.get(key).filter(|pod| is_waiting(pod))?;
        if self.ledger.is_placed(pod.metadata.uid.as_deref()?) {
            return None;
        }
        let nodes: Vec<_> = self.nodes.list().into_iter().filter(|node| !meta::is_terminating(&**node)).collect();
        let cluster = Cluster { nodes: &nodes, ledger: &self.ledger };
        self.turn = self.turn.wrapping_add(1);
        let binder = Binder { client: self.client.clone(), events: self.events.clone(), pod: pod.clone() };
        match fit::choose(&pod, &self.peers(&pod), &cluster, self.turn) {
            Ok(node) => {
                self.ledger.assume(pod, &node);
                Some(Box::pin(async move { binder.bind(node).await.into() }))
            }
            Err(message) => {
                self.homeless.insert(key.clone(), minds_company(&pod));
                Some(Box::pin(async move { binder.refuse(message).await.into() }))
            }
        }
    }

    fn finish(&mut self, key: &Key, outcome: &Outcome, queue: &mut Queue<Key>) {
        if outcome.error.is_some()
            && let Some(pod) = self.pods.get(key)
            && self.ledger.forget(&pod.uid().unwrap_or_default())
        {
            self.retry(queue, |_| true);
        }
    }
}

impl Scheduler {
    fn new(client: Client, events: Recorder, pods: Cache<Pod>, nodes: Cache<Node>, services: Cache<Service>) -> Self {
        let (ledger, homeless) = (Ledger::default(), BTreeMap::new());
        Self { client, events, pods, nodes, services, ledger, homeless, turn: 0 }
    }

    /// Looks again at the homeless that `helped` says something was done for, told whether they mind their company.
    fn retry(&mut self, queue: &mut Queue<Key>, helped: impl Fn(bool) -> bool) {
        self.homeless.retain(|key, minds_company| {
            let helped = helped(*minds_company);
            if helped {
                queue.add(key.clone());
            }
            !helped
        });
    }

    fn peers(&self, pod: &Pod) -> Peers {
        if let Some(owner) = meta::controller_of(&pod.metadata) {
            return Peers::Owner(owner.uid.clone());
        }
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let services = self.services.list_in(&pod.namespace().unwrap_or_default());
        let selectors = services.iter().filter_map(|service| service.spec.as_ref()?.selector.clone());
        let selecting: Vec<_> =
            selectors.filter(|selector| !selector.is_empty() && meta::selects(selector, &labels)).collect();
        if selecting.is_empty() { Peers::Nobody } else { Peers::Selected(selecting) }
    }
}

struct Binder {
    client: Client,
    events: Recorder,
    pod: Arc<Pod>,
}

impl Binder {
    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.pod.namespace().unwrap_or_default())
    }

    async fn bind(self, node: String) -> Result<(), kube::Error> {
        let name = self.pod.name_any();
        let mut binding = Binding {
            target: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(node.clone()),
                ..ObjectReference::default()
            },
            ..Binding::default()
        };
        binding.metadata.name = Some(name.clone());
        binding.metadata.namespace = self.pod.namespace();
        binding.metadata.uid = self.pod.uid();
        // The answer is a Status from some servers and the Binding from others.
        let bound: Result<serde_json::Value, _> =
            self.api().create_subresource("binding", &name, &PostParams::default(), &binding).await;
        bound?;
        let message = format!("Successfully assigned {} to {node}", Key::of(&*self.pod));
        self.events.normal(&*self.pod, "Scheduled", message);
        Ok(())
    }

    async fn refuse(self, message: String) -> Result<(), kube::Error> {
        self.events.warning(&*self.pod, "FailedScheduling", message.clone());
        let same = pod::condition(&self.pod, "PodScheduled")
            .is_some_and(|old| old.status == "False" && old.message.as_ref() == Some(&message));
        if same {
            return Ok(());
        }
        let since = pod::condition(&self.pod, "PodScheduled").filter(|old| old.status == "False");
        let since = since.and_then(|old| old.last_transition_time.as_ref()).map_or_else(jiff::Timestamp::now, |t| t.0);
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": message, "lastTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(since)});
        let patch = json!({"metadata": {"uid": self.pod.uid()}, "status": {"conditions": [condition]}});
        let (api, params) = (self.api(), PatchParams::default());
        let patched = api.patch_status(&self.pod.name_any(), &params, &Patch::Strategic(patch)).await;
        refusal::ignore_not_found(patched).map(drop)
    }
}
