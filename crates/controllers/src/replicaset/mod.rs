//! ReplicaSets -> as many pods as they ask for.
//!
//! Deliberately not here: what makes a pod run; which node it runs on.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use portolan_client::{Cache, Change, Key, Recorder};
use serde_json::json;
use tokio::time::Instant;

use crate::Shared;
use crate::drive::{Controller, Effects, Outcome, drive, inputs};
use crate::index::{Index, Unseen, Write};
use crate::queue::Queue;
use crate::{meta, pod, refusal};
use plan::{Failure, Plan, View};

const WORKERS: usize = 16;

pub(crate) enum Input {
    Set(Change<ReplicaSet>),
    Pod(Change<Pod>),
}

pub(crate) async fn run(shared: Arc<Shared>) {
    let inputs = vec![inputs(&shared.caches.replica_sets, Input::Set), inputs(&shared.caches.pods, Input::Pod)];
    let events = shared.events.component("replicaset-controller");
    let controller = ReplicaSets::new(shared.client.clone(), events, shared.caches.replica_sets.clone());
    drive(controller, inputs, WORKERS).await;
}

fn owner_group(uid: &str) -> String {
    format!("owner/{uid}")
}

fn orphan_group(namespace: &str) -> String {
    format!("orphans/{namespace}")
}

fn group(pod: &Pod) -> Option<String> {
    Some(match meta::controller_of(&pod.metadata) {
        Some(owner) => owner_group(&owner.uid),
        None => orphan_group(pod.metadata.namespace.as_deref()?),
    })
}

struct ReplicaSets {
    client: Client,
    events: Recorder,
    sets: Cache<ReplicaSet>,
    /// By the owner's uid, or by namespace when nobody controls them.
    pods: Index<Pod>,
    by_owner: Index<ReplicaSet>,
    by_namespace: Index<ReplicaSet>,
    unseen: Unseen<Key>,
}

impl Controller for ReplicaSets {
    const NAME: &'static str = "replicaset";
    type Input = Input;
    type Key = Key;

    fn observe(&mut self, input: Input, queue: &mut Queue<Key>) {
        match input {
            Input::Set(change) => {
                self.by_owner.observe(&change);
                self.by_namespace.observe(&change);
                if let Change::Applied { new: told, .. } | Change::Deleted(told) = change {
                    queue.add(Key::of(&*told));
                }
            }
            Input::Pod(change) => {
                self.pods.observe(&change);
                match change {
                    Change::Applied { new, old } => {
                        self.wake_owner(&new, queue);
                        if let Some(old) = old
                            && meta::controller_of(&old.metadata) != meta::controller_of(&new.metadata)
                        {
                            self.wake_owner(&old, queue);
                        }
                    }
                    Change::Deleted(old) => self.wake_owner(&old, queue),
                    Change::Synced { asked } => self.unseen.listed(asked, queue),
                }
            }
        }
    }

    fn reconcile(&mut self, key: &Key, queue: &mut Queue<Key>) -> Option<Effects> {
        let Some(set) = self.sets.get(key) else {
            self.unseen.forget(key);
            return None;
        };
        if let Err(until) = self.unseen.settled(key, Instant::now(), |write| self.pods.shows(write)) {
            queue.add_at(key.clone(), until);
            return None;
        }
        let owned = self.pods.group(&owner_group(set.metadata.uid.as_deref()?)).cloned().collect();
        let orphans = self.pods.group(&orphan_group(&key.namespace)).cloned().collect();
        let now = Timestamp::now();
        let plan = plan::plan(View { set: &set, owned, orphans, siblings_on: self.siblings_on(&set) }, now);
        if let Some(wait) = plan.again {
            queue.add_at(key.clone(), Instant::now() + wait);
        }
        // Nothing to write is the commonest case by far, and costs no task.
        let idle = plan.adopt.is_empty() && plan.release.is_empty() && plan.create == 0 && plan.delete.is_empty();
        let status = plan::status(&set, &plan.owned, None, now);
        if idle && set.status.as_ref() == Some(&status) {
            return None;
        }
        let executor = Executor { client: self.client.clone(), events: self.events.clone(), set };
        Some(Box::pin(executor.carry_out(plan)))
    }

    fn finish(&mut self, key: &Key, outcome: &Outcome, _queue: &mut Queue<Key>) {
        self.unseen.record(key, &outcome.writes, Instant::now());
    }
}

impl ReplicaSets {
    fn new(client: Client, events: Recorder, sets: Cache<ReplicaSet>) -> Self {
        Self {
            client,
            events,
            sets,
            pods: Index::new(group),
            by_owner: Index::new(|set| Some(owner_group(&meta::controller_of(&set.metadata)?.uid))),
            by_namespace: Index::new(|set| set.namespace()),
            unseen: Unseen::default(),
        }
    }

    fn wake_owner(&self, pod: &Pod, queue: &mut Queue<Key>) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(owner) = meta::controller_of(&pod.metadata) {
            if owner.kind == "ReplicaSet" {
                queue.add(Key::new(namespace, &owner.name));
            }
            return;
        }
        for set in self.by_namespace.group(namespace) {
            if set.spec.as_ref().is_some_and(|spec| meta::matches(&spec.selector, &pod.metadata)) {
                queue.add(Key::of(&**set));
            }
        }
    }

    /// Active pods of the other ReplicaSets of the same Deployment, by node.
    fn siblings_on(&self, set: &ReplicaSet) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        let Some(owner) = meta::controller_of(&set.metadata) else { return count };
        for sibling in self.by_owner.group(&owner_group(&owner.uid)) {
            let Some(uid) = sibling.metadata.uid.as_deref().filter(|uid| set.metadata.uid.as_deref() != Some(uid))
            else {
                continue;
            };
            for pod in self.pods.group(&owner_group(uid)).filter(|pod| pod::is_active(pod)) {
                if let Some(node) = pod::node(pod) {
                    *count.entry(node.to_owned()).or_default() += 1;
                }
            }
        }
        count
    }
}

struct Executor {
    client: Client,
    events: Recorder,
    set: Arc<ReplicaSet>,
}

impl Executor {
    async fn carry_out(self, plan: Plan) -> Outcome {
        let mut writes = Vec::new();
        let mut failure = None;
        let error = self.change_pods(&plan, &mut writes, &mut failure).await.err();
        let status = plan::status(&self.set, &plan.owned, failure.as_ref(), Timestamp::now());
        let status_error = self.write_status(status).await.err();
        Outcome { writes, error: error.or(status_error) }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.set.namespace().unwrap_or_default())
    }

    async fn change_pods(
        &self,
        plan: &Plan,
        writes: &mut Vec<Write>,
        failure: &mut Option<Failure>,
    ) -> Result<(), kube::Error> {
        if !plan.adopt.is_empty() && self.may_adopt().await? {
            for pod in &plan.adopt {
                let owners = [pod.owner_references(), &[meta::controlled_by(&*self.set)]].concat();
                self.set_owners(pod, &owners, writes).await?;
            }
        }
        for pod in &plan.release {
            let mut owners = pod.owner_references().to_vec();
            owners.retain(|owner| Some(&owner.uid) != self.set.metadata.uid.as_ref());
            self.set_owners(pod, &owners, writes).await?;
        }
        self.create(plan.create, writes, failure).await?;
        self.delete(&plan.delete, writes, failure).await
    }

    /// The cache may be behind: a ReplicaSet that is going, or gone and made anew, adopts nothing.
    async fn may_adopt(&self) -> Result<bool, kube::Error> {
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &self.set.namespace().unwrap_or_default());
        let fresh = api.get_opt(&self.set.name_any()).await?;
        Ok(fresh.is_some_and(|fresh| fresh.uid() == self.set.uid() && !meta::is_terminating(&fresh)))
    }

    async fn set_owners(
        &self,
        pod: &Pod,
        owners: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference],
        writes: &mut Vec<Write>,
    ) -> Result<(), kube::Error> {
        let patch = json!({"metadata": {
            "uid": pod.uid(), "resourceVersion": pod.resource_version(), "ownerReferences": owners}});
        let patched = self.pods().patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        if let Some(pod) = refusal::ignore_not_found(patched)? {
            writes.push(Write::applied(&pod));
        }
        Ok(())
    }

    /// In batches that double while all goes well, so that a refusal costs one request and not hundreds.
    async fn create(
        &self,
        count: usize,
        writes: &mut Vec<Write>,
        failure: &mut Option<Failure>,
    ) -> Result<(), kube::Error> {
        let (api, params, pod) = (self.pods(), PostParams::default(), new_pod(&self.set));
        let mut left = count;
        let mut batch = 1;
        while left > 0 {
            let size = batch.min(left);
            let created = join_all((0..size).map(|_| api.create(&params, &pod))).await;
            let mut refused = None;
            for result in created {
                match result {
                    Ok(pod) => {
                        self.events.normal(&*self.set, "SuccessfulCreate", format!("Created pod: {}", pod.name_any()));
                        writes.push(Write::applied(&pod));
                    }
                    Err(error) => refused = Some(error),
                }
            }
            match refused {
                Some(error) if refusal::is_namespace_terminating(&error) => return Ok(()),
                Some(error) => {
                    let message = format!("Error creating: {}", refusal::message(&error));
                    self.events.warning(&*self.set, "FailedCreate", message);
                    *failure = Some(Failure { reason: "FailedCreate", message: refusal::message(&error) });
                    return Err(error);
                }
                None => {}
            }
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(
        &self,
        pods: &[Arc<Pod>],
        writes: &mut Vec<Write>,
        failure: &mut Option<Failure>,
    ) -> Result<(), kube::Error> {
        let api = &self.pods();
        let delete = |pod: Arc<Pod>| async move {
            let only = Preconditions { uid: pod.uid(), resource_version: None };
            let deleted = api.delete(&pod.name_any(), &DeleteParams::default().preconditions(only)).await;
            (pod, deleted)
        };
        let deleted = join_all(pods.iter().cloned().map(delete)).await;
        let mut refused = None;
        for (pod, result) in deleted {
            match result {
                Ok(_) => {
                    self.events.normal(&*self.set, "SuccessfulDelete", format!("Deleted pod: {}", pod.name_any()));
                    writes.push(Write::deleted(&*pod));
                }
                Err(error) if refusal::is_not_found(&error) => writes.push(Write::deleted(&*pod)),
                Err(error) => {
                    let message = format!("Error deleting: {}", refusal::message(&error));
                    self.events.warning(&*self.set, "FailedDelete", message);
                    *failure = Some(Failure { reason: "FailedDelete", message: refusal::message(&error) });
                    refused = Some(error);
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    async fn write_status(&self, status: ReplicaSetStatus) -> Result<(), kube::Error> {
        if self.set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &self.set.namespace().unwrap_or_default());
        let set = ReplicaSet { status: Some(status), ..(*self.set).clone() };
        refusal::ignore_not_found(api.replace_status(&set.name_any(), &PostParams::default(), &set).await).map(drop)
    }
}

fn new_pod(set: &ReplicaSet) -> Pod {
    let template = set.spec.clone().unwrap_or_default().template.unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name_any())),
            namespace: set.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![meta::controlled_by(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_decided_again_before_the_last_writes_are_seen() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "rs"},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}},
                     "template": {"metadata": {"labels": {"app": "web"}}}}}))
        .unwrap();
        let (sets, client) = (Cache::detached(), crate::nowhere());
        sets.put(set.clone());
        let (events, _) = Recorder::new(client.clone(), "");
        let (mut controller, mut queue) = (ReplicaSets::new(client, events, sets), Queue::default());
        let key = Key::of(&set);
        assert!(controller.reconcile(&key, &mut queue).is_some(), "one pod is missing");
        let mut created = new_pod(&set);
        created.metadata.name = Some("web-1".into());
        created.metadata.uid = Some("pod".into());
        created.metadata.resource_version = Some("7".into());
        let outcome = Outcome { writes: vec![Write::applied(&created)], error: None };
        controller.finish(&key, &outcome, &mut queue);
        assert!(controller.reconcile(&key, &mut queue).is_none(), "the pod is there, only not seen yet");
        controller.observe(Input::Pod(Change::Deleted(Arc::new(created.clone()))), &mut queue);
        assert!(controller.reconcile(&key, &mut queue).is_some(), "it was seen to come and go");
        created.metadata.resource_version = Some("9".into());
        let outcome = Outcome { writes: vec![Write::applied(&created)], error: None };
        controller.finish(&key, &outcome, &mut queue);
        assert!(controller.reconcile(&key, &mut queue).is_none(), "not seen yet");
        controller.observe(Input::Pod(Change::Synced { asked: Instant::now() }), &mut queue);
        assert_eq!(queue.take(Instant::now()), Some(key.clone()));
        assert!(controller.reconcile(&key, &mut queue).is_some(), "it came and went while nobody watched");
    }
}
