//! Pods that nobody will ever finish -> deleted.
//!
//! Those bound to a Node that no longer exists, those told to go before they had a node, and the oldest of too many
//! that ended. Source: "Garbage collection of Pods" in the Kubernetes documentation.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Preconditions};
use kube::{Client, ResourceExt};
use portolan_client::{Cache, Change, Key};

use crate::drive::{Controller, Effects, drive, inputs};
use crate::index::Index;
use crate::queue::Queue;
use crate::{Shared, meta, pod, refusal};

/// Pods that ended and that nobody has deleted; upstream keeps as many.
const FINISHED_KEPT: usize = 12_500;

pub(crate) enum Input {
    Pod(Change<Pod>),
    Node(Change<Node>),
}

pub(crate) async fn run(shared: Arc<Shared>) {
    let caches = &shared.caches;
    let inputs = vec![inputs(&caches.nodes, Input::Node), inputs(&caches.pods, Input::Pod)];
    let controller = PodGc {
        client: shared.client.clone(),
        nodes: caches.nodes.clone(),
        by_node: Index::new(|pod| pod::node(pod).map(str::to_owned)),
        finished: BTreeSet::new(),
    };
    drive(controller, inputs, 8).await;
}

struct PodGc {
    client: Client,
    nodes: Cache<Node>,
    by_node: Index<Pod>,
    /// By age, oldest first.
    finished: BTreeSet<(Option<jiff::Timestamp>, Key)>,
}

fn age(pod: &Pod) -> (Option<jiff::Timestamp>, Key) {
    (pod.creation_timestamp().map(|time| time.0), Key::of(pod))
}

impl Controller for PodGc {
    const NAME: &'static str = "podgc";
    type Input = Input;
    type Key = Key;

    fn observe(&mut self, input: Input, queue: &mut Queue<Key>) {
        match input {
            Input::Pod(change) => {
                self.by_node.observe(&change);
                match change {
                    Change::Applied { new, .. } => {
                        if pod::is_finished(&new)
                            && self.finished.insert(age(&new))
                            && self.finished.len() > FINISHED_KEPT
                        {
                            queue.add(self.finished.first().map_or_else(|| Key::of(&*new), |(_, key)| key.clone()));
                        }
                        if pod::node(&new).is_some() || meta::is_terminating(&*new) {
                            queue.add(Key::of(&*new));
                        }
                    }
                    Change::Deleted(old) => {
                        self.finished.remove(&age(&old));
                    }
                    Change::Synced => {}
                }
            }
            Input::Node(Change::Deleted(old)) => {
                self.by_node.group(&old.name_any()).for_each(|pod| queue.add(Key::of(&**pod)));
            }
            Input::Node(_) => {}
        }
    }

    fn reconcile(&mut self, key: &Key, _queue: &mut Queue<Key>) -> Option<Effects> {
        let pod = self.by_node.get(key)?;
        let surplus =
            self.finished.len() > FINISHED_KEPT && self.finished.first().is_some_and(|(_, oldest)| oldest == key);
        let node = pod::node(&pod).map(str::to_owned);
        let homeless = node.as_ref().is_some_and(|node| self.nodes.get(&Key::new("", node)).is_none());
        let never_placed = node.is_none() && meta::is_terminating(&*pod);
        if !(surplus || homeless || never_placed) {
            return None;
        }
        let client = self.client.clone();
        Some(Box::pin(async move { delete(client, &pod, node.filter(|_| homeless)).await.into() }))
    }
}

async fn delete(client: Client, pod: &Pod, missing: Option<String>) -> Result<(), kube::Error> {
    if let Some(node) = missing {
        // The cache of Nodes may be behind that of pods; a pod is not deleted on a guess.
        if Api::<Node>::all(client.clone()).get_opt(&node).await?.is_some() {
            return Ok(());
        }
        tracing::info!(pod = %Key::of(pod), node, "deleting a pod whose node is gone");
    }
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace().unwrap_or_default());
    let only = Preconditions { uid: pod.uid(), resource_version: None };
    let params = DeleteParams::default().grace_period(0).preconditions(only);
    refusal::ignore_not_found(api.delete(&pod.name_any(), &params).await).map(drop)
}
