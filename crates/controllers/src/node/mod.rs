//! Leases and taints of Nodes -> conditions and taints that say which nodes live, and pods taken off those that do not.
//!
//! A dead node's pods are marked not ready at once, so that no Service leads to them; they are deleted a little later,
//! without waiting for a node that cannot answer. Deliberately not here: telling a node that it lives; it says so
//! itself.

mod health;
mod verdict;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use portolan_client::{Cache, Change, Key, Recorder};
use serde_json::json;
use tokio::time::Instant;

use crate::drive::{Controller, Effects, drive, inputs};
use crate::index::Index;
use crate::queue::Queue;
use crate::taint::NO_EXECUTE;
use crate::{Shared, pod, refusal, removal};
use health::{Health, Pulse};

/// Pods marked or deleted side by side.
const ABREAST: usize = 16;

pub(crate) enum Input {
    Node(Change<Node>),
    Lease(Change<Lease>),
    Pod(Change<Pod>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Task {
    Node(String),
    /// A pod that may have to leave its node.
    Pod(Key),
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Pod(key) => write!(f, "pod {key}"),
        }
    }
}

pub(crate) async fn run(shared: Arc<Shared>) {
    let caches = &shared.caches;
    let inputs = vec![
        inputs(&caches.nodes, Input::Node),
        inputs(&caches.leases, Input::Lease),
        inputs(&caches.pods, Input::Pod),
    ];
    let events = shared.events.component("node-controller");
    let config = &shared.config;
    let (timeout, delay) = (config.node_lease_timeout, config.eviction_delay);
    let controller = Nodes::new(shared.client.clone(), events, caches.nodes.clone(), timeout, delay);
    drive(controller, inputs, 32).await;
}

struct Nodes {
    client: Client,
    events: Recorder,
    nodes: Cache<Node>,
    /// By node.
    pods: Index<Pod>,
    pulse: Pulse,
    eviction_delay: Duration,
    /// Since when this process has seen each NoExecute taint, by node, key and value.
    tainted: BTreeMap<(String, String, Option<String>), Instant>,
    /// Since when it has seen each pod on a node, by uid: who came later than a taint is tolerated from then on.
    arrived: BTreeMap<String, Instant>,
}

impl Controller for Nodes {
    const NAME: &'static str = "node";
    type Input = Input;
    type Key = Task;

    fn observe(&mut self, input: Input, queue: &mut Queue<Task>) {
        let now = Instant::now();
        match input {
            Input::Node(Change::Applied { new, .. }) => {
                let name = new.name_any();
                self.pulse.appeared(&name, now);
                self.note_taints(&name, &no_execute(&new), now);
                queue.add(Task::Node(name));
            }
            Input::Node(Change::Deleted(old)) => {
                self.pulse.vanished(&old.name_any());
                self.note_taints(&old.name_any(), &[], now);
            }
            Input::Lease(Change::Applied { new, .. }) => {
                let (name, spec) = (new.name_any(), new.spec.as_ref());
                let text = |time: Option<&MicroTime>| time.map(|time| time.0.to_string()).unwrap_or_default();
                let mark = text(spec.and_then(|spec| spec.renew_time.as_ref()));
                let term = text(spec.and_then(|spec| spec.acquire_time.as_ref()));
                let was = self.pulse.health(&name, now);
                self.pulse.renewed(&name, &term, &mark, now);
                if was != Health::Alive {
                    queue.add(Task::Node(name));
                }
                // Hearing of one node says something about those that are not heard of.
                self.pulse.overdue(now).for_each(|node| queue.add(Task::Node(node.to_owned())));
            }
            Input::Pod(change) => {
                self.pods.observe(&change);
                self.note_arrival(&change, now);
                if let Change::Applied { new, .. } = change
                    && let Some(node) = pod::node(&new)
                    && (self.pulse.health(node, now) == Health::Dead || self.is_tainted(node))
                {
                    queue.add(Task::Node(node.to_owned()));
                }
            }
            // A lease that is gone is one that is not renewed.
            Input::Lease(_) | Input::Node(Change::Synced { .. }) => {}
        }
    }

    fn reconcile(&mut self, task: &Task, queue: &mut Queue<Task>) -> Option<Effects> {
        match task {
            Task::Node(name) => self.judge(name, queue),
            Task::Pod(key) => self.evict(key, queue),
        }
    }
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == NO_EXECUTE).cloned().collect()
}

impl Nodes {
    fn new(client: Client, events: Recorder, nodes: Cache<Node>, timeout: Duration, eviction_delay: Duration) -> Self {
        Self {
            client,
            events,
            nodes,
            pods: Index::new(|pod| pod::node(pod).map(str::to_owned)),
            pulse: Pulse::new(timeout),
            eviction_delay,
            tainted: BTreeMap::new(),
            arrived: BTreeMap::new(),
        }
    }

    fn note_arrival(&mut self, change: &Change<Pod>, now: Instant) {
        let (came, went) = match change {
            Change::Applied { new, old } => (Some(new), old.as_ref().filter(|old| old.uid() != new.uid())),
            Change::Deleted(old) => (None, Some(old)),
            Change::Synced { .. } => (None, None),
        };
        if let Some(uid) = went.and_then(|pod| pod.uid()) {
            self.arrived.remove(&uid);
        }
        if let Some(uid) = came.filter(|pod| pod::node(pod).is_some()).and_then(|pod| pod.uid()) {
            self.arrived.entry(uid).or_insert(now);
        }
    }

    fn note_taints(&mut self, node: &str, taints: &[Taint], now: Instant) {
        let key = |taint: &Taint| (node.to_owned(), taint.key.clone(), taint.value.clone());
        let present: Vec<_> = taints.iter().map(key).collect();
        self.tainted.retain(|old, _| old.0 != node || present.contains(old));
        for taint in present {
            self.tainted.entry(taint).or_insert(now);
        }
    }

    fn is_tainted(&self, node: &str) -> bool {
        let first = (node.to_owned(), String::new(), None);
        self.tainted.range(first..).next().is_some_and(|((tainted, ..), _)| tainted == node)
    }

    /// When the pod must be gone from the node, by the node's taints.
    fn due(&self, pod: &Pod, node: &Node) -> Option<Instant> {
        let arrived = pod.metadata.uid.as_ref().and_then(|uid| self.arrived.get(uid));
        let due = |taint: Taint| {
            let since = self.tainted.get(&(node.name_any(), taint.key.clone(), taint.value.clone()))?;
            Some(*since.max(arrived.unwrap_or(since)) + verdict::stay(pod, &taint, self.eviction_delay)?)
        };
        no_execute(node).into_iter().filter_map(due).min()
    }

    fn judge(&mut self, name: &str, queue: &mut Queue<Task>) -> Option<Effects> {
        let node = self.nodes.get(&Key::new("", name))?;
        let now = Instant::now();
        self.pulse.look(name, now);
        let health = self.pulse.health(name, now);
        if let Some(deadline) = self.pulse.deadline(name, now) {
            queue.add_at(Task::Node(name.to_owned()), deadline);
        }
        for pod in self.pods.group(name) {
            if let Some(due) = self.due(pod, &node) {
                queue.add_at(Task::Pod(Key::of(&**pod)), due);
            }
        }
        let (conditions, taints) =
            (verdict::conditions(&node, health, Timestamp::now()), verdict::taints(&node, health, Timestamp::now()));
        let present = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let taints = (taints != present).then_some(taints);
        let lost = |pod: &&Arc<Pod>| health == Health::Dead && pod::is_ready(pod) && !pod::is_finished(pod);
        let lost: Vec<_> = self.pods.group(name).filter(lost).cloned().collect();
        if conditions.is_empty() && taints.is_none() && lost.is_empty() {
            return None;
        }
        if !conditions.is_empty() {
            tracing::info!(node = name, ?health, pods = lost.len(), "node is not heard of");
            self.events.normal(&*node, "NodeNotReady", format!("Node {name} status is now: NodeNotReady"));
        }
        let client = self.client.clone();
        Some(Box::pin(async move {
            let (marked, written) = futures::join!(mark_lost(&client, lost), write(&client, &node, conditions, taints));
            marked.and(written).into()
        }))
    }

    fn evict(&mut self, key: &Key, queue: &mut Queue<Task>) -> Option<Effects> {
        let now = Instant::now();
        let pod = self.pods.get(key)?;
        let node = self.nodes.get(&Key::new("", pod::node(&pod)?))?;
        let due = self.due(&pod, &node)?;
        if now < due {
            queue.add_at(Task::Pod(key.clone()), due);
            return None;
        }
        let dead = self.pulse.health(&node.name_any(), now) == Health::Dead;
        if dead && !self.pulse.is_anybody_alive(now) {
            // Nowhere to go. When somebody is heard of again, all that is overdue is judged again.
            return None;
        }
        let is_leaving = pod.metadata.deletion_timestamp.is_some();
        if is_leaving && !dead {
            return None;
        }
        let last_word = removal::by_taint(&pod, Timestamp::now());
        if last_word.is_some() {
            let events = self.events.component("taint-eviction-controller");
            events.normal(&*pod, "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
        }
        let params = if dead { DeleteParams::default().grace_period(0) } else { DeleteParams::default() };
        let client = self.client.clone();
        Some(Box::pin(async move { removal::delete(client, &pod, last_word, params).await.into() }))
    }
}

/// So that their endpoints leave every Service, now.
async fn mark_lost(client: &Client, pods: Vec<Arc<Pod>>) -> Result<(), kube::Error> {
    let now = Time(Timestamp::now());
    futures::stream::iter(pods)
        .map(|pod| {
            let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": now.clone()});
            let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
            async move {
                let patched =
                    api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await;
                refusal::ignore_not_found(patched).map(drop)
            }
        })
        .buffer_unordered(ABREAST)
        .try_collect()
        .await
}

async fn write(
    client: &Client,
    node: &Node,
    conditions: Vec<NodeCondition>,
    taints: Option<Vec<Taint>>,
) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    let (name, params) = (node.name_any(), PatchParams::default());
    let mut revision = node.resource_version();
    if !conditions.is_empty() {
        let patch = json!({"metadata": {"uid": node.uid()}, "status": {"conditions": conditions}});
        let patched = api.patch_status(&name, &params, &Patch::Strategic(patch)).await;
        let Some(patched) = refusal::ignore_not_found(patched)? else { return Ok(()) };
        let taints_of = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
        if taints_of(&patched) == taints_of(node) {
            revision = patched.resource_version();
        }
    }
    if let Some(taints) = taints {
        // The list is replaced whole, so it must still be the list that was read; else this conflicts, and is retried.
        let patch = json!({"metadata": {"resourceVersion": revision}, "spec": {"taints": taints}});
        refusal::ignore_not_found(api.patch(&name, &params, &Patch::Merge(patch)).await)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else it would be evicted as soon as it came, made anew, and so on.
    #[tokio::test]
    async fn who_comes_to_a_tainted_node_is_tolerated_from_then_on() {
        let client = crate::nowhere();
        let (events, _) = Recorder::new(client.clone(), "");
        let second = Duration::from_secs(1);
        let mut nodes = Nodes::new(client, events, Cache::detached(), second, second);
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "a", "uid": "a"},
            "spec": {"taints": [{"key": "old", "effect": NO_EXECUTE}]}}))
        .unwrap();
        let pod = |uid: &str| -> Arc<Pod> {
            let toleration = json!({"key": "old", "operator": "Exists", "tolerationSeconds": 60});
            let spec = json!({"nodeName": "a", "containers": [], "tolerations": [toleration]});
            let metadata = json!({"name": "p", "namespace": "default", "uid": uid});
            Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
        };
        let start = Instant::now();
        let later = start + second * 100;
        nodes.note_taints("a", &no_execute(&node), start);
        nodes.note_arrival(&Change::Applied { new: pod("1"), old: None }, start);
        nodes.note_arrival(&Change::Applied { new: pod("1"), old: Some(pod("1")) }, later);
        assert_eq!(nodes.due(&pod("1"), &node), Some(start + second * 60));
        nodes.note_arrival(&Change::Applied { new: pod("2"), old: Some(pod("1")) }, later);
        assert_eq!(nodes.due(&pod("2"), &node), Some(later + second * 60));
        nodes.note_arrival(&Change::Deleted(pod("2")), later);
        assert!(nodes.arrived.is_empty());
    }
}
