//! Deployments -> ReplicaSets, one a revision, whose sizes move from the old to the new.
//!
//! Deliberately not here: pods, which the ReplicaSets make.

mod rollout;
mod status;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
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
use rollout::{Member, Rollout};

const WORKERS: usize = 8;

pub(crate) enum Input {
    Deployment(Change<Deployment>),
    Set(Change<ReplicaSet>),
    Pod(Change<Pod>),
}

pub(crate) async fn run(shared: Arc<Shared>) {
    let caches = &shared.caches;
    let inputs = vec![
        inputs(&caches.deployments, Input::Deployment),
        inputs(&caches.replica_sets, Input::Set),
        inputs(&caches.pods, Input::Pod),
    ];
    let events = shared.events.component("deployment-controller");
    let controller = Deployments::new(shared.client.clone(), events, caches.deployments.clone());
    drive(controller, inputs, WORKERS).await;
}

fn group(set: &ReplicaSet) -> Option<String> {
    Some(match meta::controller_of(&set.metadata) {
        Some(owner) => format!("owner/{}", owner.uid),
        None => format!("orphans/{}", set.metadata.namespace.as_deref()?),
    })
}

struct Deployments {
    client: Client,
    events: Recorder,
    deployments: Cache<Deployment>,
    /// By the uid of their ReplicaSet.
    pods: Index<Pod>,
    /// By the uid of their Deployment, or by namespace when nobody controls them.
    sets: Index<ReplicaSet>,
    unseen: Unseen<Key>,
}

impl Controller for Deployments {
    const NAME: &'static str = "deployment";
    type Input = Input;
    type Key = Key;

    fn observe(&mut self, input: Input, queue: &mut Queue<Key>) {
        match input {
            Input::Deployment(Change::Applied { new: told, .. } | Change::Deleted(told)) => queue.add(Key::of(&*told)),
            Input::Set(change) => {
                self.sets.observe(&change);
                match change {
                    Change::Applied { new, old } => {
                        self.wake(&new, queue);
                        if let Some(old) = old
                            && meta::controller_of(&old.metadata) != meta::controller_of(&new.metadata)
                        {
                            self.wake(&old, queue);
                        }
                    }
                    Change::Deleted(old) => self.wake(&old, queue),
                    Change::Synced { asked } => self.unseen.listed(asked, queue),
                }
            }
            Input::Pod(change) => {
                self.pods.observe(&change);
                // Recreate waits for the last old pod to be gone, or at least finished.
                let gone = match &change {
                    Change::Deleted(pod) => pod,
                    Change::Applied { new, .. } if pod::is_finished(new) => new,
                    Change::Applied { .. } | Change::Synced { .. } => return,
                };
                let Some(owner) = meta::controller_of(&gone.metadata).filter(|owner| owner.kind == "ReplicaSet") else {
                    return;
                };
                if let Some(set) = self.sets.get(&Key::new(&gone.namespace().unwrap_or_default(), &owner.name)) {
                    self.wake(&set, queue);
                }
            }
            Input::Deployment(Change::Synced { .. }) => {}
        }
    }

    fn reconcile(&mut self, key: &Key, queue: &mut Queue<Key>) -> Option<Effects> {
        let Some(deployment) = self.deployments.get(key) else {
            self.unseen.forget(key);
            return None;
        };
        let spec = deployment.spec.as_ref()?;
        if let Err(until) = self.unseen.settled(key, Instant::now(), |write| self.sets.shows(write)) {
            queue.add_at(key.clone(), until);
            return None;
        }
        let now = Timestamp::now();
        let owned: Vec<_> =
            self.sets.group(&format!("owner/{}", deployment.metadata.uid.as_deref()?)).cloned().collect();
        let (owned, release): (Vec<_>, Vec<_>) = owned
            .into_iter()
            .partition(|set| meta::matches(&spec.selector, &set.metadata) || meta::is_terminating(&*deployment));
        let mut adopt = Vec::new();
        if meta::is_empty(&spec.selector) {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.events.warning(&*deployment, "SelectingAll", message.into());
            return None;
        }
        if !meta::is_terminating(&*deployment) {
            let orphans = self.sets.group(&format!("orphans/{}", key.namespace));
            let fits =
                |set: &&Arc<ReplicaSet>| !meta::is_terminating(&***set) && meta::matches(&spec.selector, &set.metadata);
            adopt = orphans.filter(fits).cloned().collect();
        }
        let old_pods_remain = rollout::is_recreate(spec) && self.old_pods_remain(spec, &owned);
        let rollout = rollout::plan(&deployment, owned, old_pods_remain);
        let (status, again) = status::status(&deployment, spec, &rollout, now);
        if let Some(wait) = again {
            // A second more, because the conditions' times have no fractions.
            queue.add_at(key.clone(), Instant::now() + wait + std::time::Duration::from_secs(1));
        }
        let revision = rollout.new.as_ref().and_then(|new| new.annotations.get(template::REVISION).cloned());
        let revision =
            revision.filter(|revision| meta::annotation(&deployment.metadata, template::REVISION) != Some(revision));
        let idle = adopt.is_empty()
            && release.is_empty()
            && rollout.create.is_none()
            && rollout.delete.is_empty()
            && revision.is_none()
            && !rollout.members().any(Member::is_changed)
            && deployment.status.as_ref() == Some(&status);
        if idle {
            return None;
        }
        let executor = Executor { client: self.client.clone(), events: self.events.clone(), deployment };
        Some(Box::pin(async move {
            let mut writes = Vec::new();
            let error = executor.carry_out(rollout, &adopt, &release, status, revision, &mut writes).await.err();
            Outcome { writes, error }
        }))
    }

    fn finish(&mut self, key: &Key, outcome: &Outcome, _queue: &mut Queue<Key>) {
        self.unseen.record(key, &outcome.writes, Instant::now());
    }
}

impl Deployments {
    fn new(client: Client, events: Recorder, deployments: Cache<Deployment>) -> Self {
        Self {
            client,
            events,
            deployments,
            pods: Index::new(|pod| Some(meta::controller_of(&pod.metadata)?.uid.clone())),
            sets: Index::new(group),
            unseen: Unseen::default(),
        }
    }

    fn wake(&self, set: &ReplicaSet, queue: &mut Queue<Key>) {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(owner) = meta::controller_of(&set.metadata) {
            if owner.kind == "Deployment" {
                queue.add(Key::new(namespace, &owner.name));
            }
            return;
        }
        for deployment in self.deployments.list_in(namespace) {
            if deployment.spec.as_ref().is_some_and(|spec| meta::matches(&spec.selector, &set.metadata)) {
                queue.add(Key::of(&*deployment));
            }
        }
    }

    fn old_pods_remain(&self, spec: &k8s_openapi::api::apps::v1::DeploymentSpec, owned: &[Arc<ReplicaSet>]) -> bool {
        owned
            .iter()
            .filter(|set| {
                let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
                !template.is_some_and(|template| template::is_same(template, &spec.template))
            })
            .any(|set| {
                let uid = set.metadata.uid.as_deref().unwrap_or_default();
                !rollout::is_emptied(set) || self.pods.group(uid).any(|pod| !pod::is_finished(pod))
            })
    }
}

struct Executor {
    client: Client,
    events: Recorder,
    deployment: Arc<Deployment>,
}

impl Executor {
    fn sets(&self) -> Api<ReplicaSet> {
        Api::namespaced(self.client.clone(), &self.deployment.namespace().unwrap_or_default())
    }

    fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), &self.deployment.namespace().unwrap_or_default())
    }

    async fn carry_out(
        &self,
        rollout: Rollout,
        adopt: &[Arc<ReplicaSet>],
        release: &[Arc<ReplicaSet>],
        mut status: DeploymentStatus,
        revision: Option<String>,
        writes: &mut Vec<Write>,
    ) -> Result<(), kube::Error> {
        if !adopt.is_empty() || !release.is_empty() {
            // What the rollout should be is decided once the watch has shown the new owners.
            return self.change_owners(adopt, release, writes).await;
        }
        for member in rollout.members().filter(|member| member.is_changed()) {
            self.change(member, writes).await?;
        }
        if let Some(set) = &rollout.create {
            match self.sets().create(&PostParams::default(), set).await {
                Ok(created) => {
                    self.tell_scaled(&created.name_any(), 0, rollout::spec_replicas(&created));
                    writes.push(Write::applied(&created));
                }
                Err(error) if refusal::is_already_exists(&error) => self.collide(set, &mut status).await?,
                Err(error) if refusal::is_namespace_terminating(&error) => return Ok(()),
                Err(error) => {
                    let message =
                        format!("Failed to create new replica set {:?}: {}", set.name_any(), refusal::message(&error));
                    self.events.warning(&*self.deployment, status::CREATE_ERROR, message.clone());
                    if let Some(told) = status::cannot_create(&self.deployment, message, Timestamp::now()) {
                        self.write_status(told, None).await?;
                    }
                    return Err(error);
                }
            }
        }
        for set in &rollout.delete {
            let only = Preconditions { uid: set.uid(), resource_version: set.resource_version() };
            let deleted = self.sets().delete(&set.name_any(), &DeleteParams::background().preconditions(only)).await;
            refusal::ignore_not_found(deleted)?;
            writes.push(Write::deleted(&**set));
        }
        self.write_status(status, revision).await
    }

    async fn change_owners(
        &self,
        adopt: &[Arc<ReplicaSet>],
        release: &[Arc<ReplicaSet>],
        writes: &mut Vec<Write>,
    ) -> Result<(), kube::Error> {
        // The cache may be behind: a Deployment that is going, or gone and made anew, adopts nothing.
        let fresh = self.deployments().get_opt(&self.deployment.name_any()).await?;
        let alive = fresh.is_some_and(|fresh| fresh.uid() == self.deployment.uid() && !meta::is_terminating(&fresh));
        let adopted = adopt
            .iter()
            .filter(|_| alive)
            .map(|set| (set, [set.owner_references(), &[meta::controlled_by(&*self.deployment)]].concat()));
        let released = release.iter().map(|set| {
            let mut owners = set.owner_references().to_vec();
            owners.retain(|owner| Some(&owner.uid) != self.deployment.metadata.uid.as_ref());
            (set, owners)
        });
        for (set, owners) in adopted.chain(released) {
            let patch = json!({"metadata": {
                "uid": set.uid(), "resourceVersion": set.resource_version(), "ownerReferences": owners}});
            let patched = self.sets().patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
            if let Some(set) = refusal::ignore_not_found(patched)? {
                writes.push(Write::applied(&set));
            }
        }
        Ok(())
    }

    async fn change(&self, member: &Member, writes: &mut Vec<Write>) -> Result<(), kube::Error> {
        let set = &member.object;
        let patch = json!({
            "metadata": {"resourceVersion": set.resource_version(), "annotations": member.annotations},
            "spec": {"replicas": member.replicas, "minReadySeconds": member.min_ready_seconds},
        });
        let patched = self.sets().patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
        writes.push(Write::applied(&patched));
        self.tell_scaled(&set.name_any(), rollout::spec_replicas(set), member.replicas);
        Ok(())
    }

    fn tell_scaled(&self, set: &str, from: i32, to: i32) {
        if from != to {
            let direction = if to > from { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
            self.events.normal(&*self.deployment, "ScalingReplicaSet", message);
        }
    }

    /// The name is taken: by our own earlier write, which the watch will show, or by another template with this hash.
    async fn collide(&self, wanted: &ReplicaSet, status: &mut DeploymentStatus) -> Result<(), kube::Error> {
        let Some(found) = self.sets().get_opt(&wanted.name_any()).await? else { return Ok(()) };
        let ours =
            meta::controller_of(&found.metadata).map(|owner| &owner.uid) == self.deployment.metadata.uid.as_ref();
        let templates = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.template.clone());
        let same = templates(&found).zip(templates(wanted)).is_some_and(|(a, b)| template::is_same(&a, &b));
        if !(ours && same) {
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        }
        Ok(())
    }

    async fn write_status(&self, status: DeploymentStatus, revision: Option<String>) -> Result<(), kube::Error> {
        let (api, name, params) = (self.deployments(), self.deployment.name_any(), PatchParams::default());
        if self.deployment.status.as_ref() != Some(&status) {
            let deployment = Deployment { status: Some(status), ..(*self.deployment).clone() };
            refusal::ignore_not_found(api.replace_status(&name, &PostParams::default(), &deployment).await)?;
        }
        if let Some(revision) = revision {
            let patch =
                json!({"metadata": {"uid": self.deployment.uid(), "annotations": {template::REVISION: revision}}});
            // By way of the status, so that it does not count as a change of what is wanted.
            refusal::ignore_not_found(api.patch_status(&name, &params, &Patch::Merge(patch)).await)?;
        }
        Ok(())
    }
}
