//! What a worker knows -> the pod's status in the API, the containers that have logs, and in the end the object's
//! deletion.
//!
//! Invariant: one write at a time, none over what this worker has not seen, and none that the API has taken and not kept.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value, json};

use super::super::logs::{Containers, Written};
use super::super::spec_of;
use super::{Outcome, Worker, names};
use crate::pod::{Phase, status};

impl Worker {
    /// Says which containers have logs.
    pub(super) fn publish(&self, desired: &PodStatus) {
        let lists =
            [&desired.container_statuses, &desired.init_container_statuses, &desired.ephemeral_container_statuses];
        let statuses = lists.into_iter().flatten().flatten();
        let mut all: Containers = statuses
            .map(|status| {
                let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref()?.reason.clone());
                (status.name.clone(), Written { waiting: waiting.unwrap_or_default(), ..Written::default() })
            })
            .collect();
        for (name, container) in &self.realized.containers {
            let written = all.entry(name.clone()).or_default();
            written.attempt = match container.phase {
                // Of the next start there are none yet.
                Phase::Waiting { .. } | Phase::Starting => container.attempt.checked_sub(1),
                Phase::Running { .. } | Phase::Exited(_) => Some(container.attempt),
            };
            written.running = container.is_running();
            written.tty = spec_of(&self.pod, name).is_some_and(|spec| spec.tty == Some(true));
        }
        if all.values().all(|written| written.attempt.is_none()) {
            // Over before this agent was there.
            let statuses = self.pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            for status in statuses.filter(|status| status.container_id.is_some()) {
                let attempt = u32::try_from(status.restart_count).unwrap_or(0);
                all.insert(status.name.clone(), Written { attempt: Some(attempt), ..Written::default() });
            }
        }
        self.written.send_if_modified(|known| {
            let new = *known != all;
            *known = all;
            new
        });
    }

    pub(super) fn status(&self, now: Timestamp) -> PodStatus {
        status(&self.pod, &self.realized, std::slice::from_ref(&self.host.config.node_ip), now)
    }

    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.host.client.clone(), names(&self.pod).0)
    }

    /// What the object's status does not say as it should, as a merge patch.
    fn difference(&self, desired: &PodStatus) -> Map<String, Value> {
        let object = |status: Value| match status {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        let known = object(json!(self.pod.status.clone().unwrap_or_default()));
        let mut patch: Map<String, Value> =
            object(json!(desired)).into_iter().filter(|(key, value)| known.get(key) != Some(value)).collect();
        let unkept = self.unkept.as_ref().is_some_and(|(revision, unkept)| {
            *revision == self.pod.metadata.resource_version
                && patch.iter().all(|(key, value)| unkept.get(key) == Some(value))
        });
        if unkept {
            patch.clear();
        }
        patch
    }

    pub(super) fn write_status(&mut self, desired: &PodStatus) {
        if self.writing || self.realized.deleted || self.write_after.is_some() {
            return;
        }
        let patch = self.difference(desired);
        if patch.is_empty() {
            return;
        }
        self.writing = true;
        let (api, name) = (self.api(), names(&self.pod).1.to_owned());
        // Conditions are one list, and others write theirs too: of what this worker has not seen, nothing is replaced.
        // The uid makes it a conflict if another pod has the name now.
        let metadata = json!({"uid": self.uid, "resourceVersion": self.pod.metadata.resource_version});
        let body = json!({"metadata": metadata, "status": patch});
        self.jobs.spawn(async move {
            let result = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(body)).await;
            Outcome::Status(patch, result.map(Box::new))
        });
    }

    pub(super) fn delete_object(&mut self, now: Timestamp) {
        // The last status first: it says how the containers ended.
        if self.deleting || self.writing || self.write_after.is_some() || !self.difference(&self.status(now)).is_empty()
        {
            return;
        }
        self.deleting = true;
        let api = self.api();
        let name = names(&self.pod).1.to_owned();
        let uid = Some(self.uid.clone());
        self.jobs.spawn(async move {
            let preconditions = Some(Preconditions { uid, resource_version: None });
            let params = DeleteParams { preconditions, ..DeleteParams::default().grace_period(0) };
            Outcome::Deleted(api.delete(&name, &params).await.map(drop))
        });
    }

    pub(super) fn retry_writing(&mut self, error: &kube::Error, now: Timestamp) {
        if !matches!(error, kube::Error::Api(status) if status.code == 404 || status.code == 409) {
            tracing::warn!(pod = %self.uid, %error, "cannot write a pod's status");
        }
        self.write_failures = (self.write_failures + 1).min(6);
        let delay = SignedDuration::from_millis(100 << self.write_failures);
        self.write_after = now.checked_add(delay).ok();
    }
}
