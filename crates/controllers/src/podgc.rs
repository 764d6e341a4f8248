//! Pods that nobody will ever finish -> failed, and deleted.
//!
//! Those bound to a Node that no longer exists, those told to go before they had a node, and the oldest of too many
//! that ended. Source: "Garbage collection of Pods" in the Kubernetes documentation.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams};
use kube::{Client, ResourceExt};
use portolan_client::{Cache, Change, Key};

use crate::drive::{Controller, Effects, drive, inputs};
use crate::index::Index;
use crate::queue::Queue;
use crate::{Shared, meta, pod, removal};

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
    finished: Finished,
}

type Age = (Option<jiff::Timestamp>, Key);
/// Oldest first.
type Finished = BTreeSet<Age>;

fn age(pod: &Pod) -> Age {
    (pod.creation_timestamp().map(|time| time.0), Key::of(pod))
}

/// The oldest of too many.
fn surplus(finished: &Finished) -> Option<&Key> {
    finished.first().map(|(_, oldest)| oldest).filter(|_| finished.len() > FINISHED_KEPT)
}

fn queue_surplus(finished: &Finished, queue: &mut Queue<Key>) {
    if let Some(oldest) = surplus(finished) {
        queue.add(oldest.clone());
    }
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
                    Change::Applied { new, old } => {
                        // The same name with another uid is another pod: the old one went while the watch was down.
                        if old.is_some_and(|old| old.uid() != new.uid() && self.finished.remove(&age(&old))) {
                            queue_surplus(&self.finished, queue);
                        }
                        if pod::is_finished(&new) && self.finished.insert(age(&new)) {
                            queue_surplus(&self.finished, queue);
                        }
                        if pod::node(&new).is_some() || meta::is_terminating(&*new) {
                            queue.add(Key::of(&*new));
                        }
                    }
                    Change::Deleted(old) => {
                        // One at a time, so the next one's turn comes with the end of this one.
                        if self.finished.remove(&age(&old)) {
                            queue_surplus(&self.finished, queue);
                        }
                    }
                    Change::Synced { .. } => {}
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
        let surplus = surplus(&self.finished) == Some(key);
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
    if let Some(node) = &missing {
        // The cache of Nodes may be behind that of pods; a pod is not deleted on a guess.
        if Api::<Node>::all(client.clone()).get_opt(node).await?.is_some() {
            return Ok(());
        }
        tracing::info!(pod = %Key::of(pod), node, "deleting a pod whose node is gone");
    }
    let last_word = removal::by_garbage_collection(pod, missing.is_some(), Timestamp::now());
    removal::delete(client, pod, last_word, DeleteParams::default().grace_period(0)).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn the_oldest_that_ended_go_until_few_enough_are_left() {
        let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let mut gc = PodGc {
            client: Client::try_from(nowhere).unwrap(),
            nodes: Cache::detached(),
            by_node: Index::new(|pod| pod::node(pod).map(str::to_owned)),
            finished: BTreeSet::new(),
        };
        let mut queue = Queue::default();
        let pod = |age: usize| -> Arc<Pod> {
            let created = jiff::Timestamp::from_second(i64::try_from(age).unwrap()).unwrap().to_string();
            let metadata = json!({"namespace": "a", "name": format!("p{age}"), "creationTimestamp": created});
            Arc::new(serde_json::from_value(json!({"metadata": metadata, "status": {"phase": "Failed"}})).unwrap())
        };
        for age in 0..FINISHED_KEPT + 3 {
            gc.observe(Input::Pod(Change::Applied { new: pod(age), old: None }), &mut queue);
        }
        let mut deleted = Vec::new();
        while let Some(key) = queue.take(Instant::now()) {
            if gc.reconcile(&key, &mut queue).is_some() {
                gc.observe(Input::Pod(Change::Deleted(pod(deleted.len()))), &mut queue);
                deleted.push(key.name.clone());
            }
            queue.done(&key);
        }
        assert_eq!(deleted, ["p0", "p1", "p2"]);
        // The oldest is another one now, which has not ended.
        let mut anew = (*pod(3)).clone();
        (anew.metadata.uid, anew.status) = (Some("anew".into()), None);
        gc.observe(Input::Pod(Change::Applied { new: Arc::new(anew), old: Some(pod(3)) }), &mut queue);
        for age in FINISHED_KEPT + 3..FINISHED_KEPT + 5 {
            gc.observe(Input::Pod(Change::Applied { new: pod(age), old: None }), &mut queue);
        }
        let mut waiting = std::iter::from_fn(|| queue.take(Instant::now()));
        let next = waiting.find(|key| gc.reconcile(key, &mut Queue::default()).is_some());
        assert_eq!(next, Some(Key::of(&*pod(4))));
    }
}
