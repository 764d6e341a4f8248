//! Pods that are taken away, rather than given up by who made them: the last word in their status, then their deletion.
//!
//! Reasons and messages are kube-controller-manager's, because people and Jobs' failure policies match on them. Source:
//! "Pod disruption conditions" in the Kubernetes documentation.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::{pod, refusal};

const DISRUPTION: &str = "DisruptionTarget";

fn disrupted(pod: &Pod, reason: &str, message: &str, now: Timestamp) -> PodCondition {
    let before = pod::condition(pod, DISRUPTION).filter(|before| before.status == "True");
    PodCondition {
        type_: DISRUPTION.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        observed_generation: pod.metadata.generation,
        last_transition_time: before.and_then(|before| before.last_transition_time.clone()).or(Some(Time(now))),
        ..PodCondition::default()
    }
}

/// What the status of a pod that a taint drives away has yet to say; `None` if it says so already.
pub(crate) fn by_taint(pod: &Pod, now: Timestamp) -> Option<Value> {
    const REASON: &str = "DeletionByTaintManager";
    let before = pod::condition(pod, DISRUPTION);
    if before.is_some_and(|before| before.status == "True" && before.reason.as_deref() == Some(REASON)) {
        return None;
    }
    Some(json!({"conditions": [disrupted(pod, REASON, "Taint manager: deleting due to NoExecute taint", now)]}))
}

/// What the status of a pod that nobody will ever finish has yet to say: that it failed, and why if it was on a node
/// that is no more. `None` if it has ended.
pub(crate) fn by_garbage_collection(pod: &Pod, node_is_gone: bool, now: Timestamp) -> Option<Value> {
    if pod::is_finished(pod) {
        return None;
    }
    let mut status = json!({"phase": "Failed", "observedGeneration": pod.metadata.generation});
    if node_is_gone {
        let condition = disrupted(pod, "DeletionByPodGC", "PodGC: node no longer exists", now);
        status["conditions"] = json!([condition]);
    }
    Some(status)
}

/// Has the pod's status say `last_word`, if anything, and deletes the pod. It is this very pod, not one made anew under
/// its name.
///
/// # Errors
/// What the API server refused. If that is the status, the pod is not deleted.
pub(crate) async fn delete(
    client: Client,
    pod: &Pod,
    last_word: Option<Value>,
    params: DeleteParams,
) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    if let Some(status) = last_word {
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
        let patched = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        if refusal::ignore_not_found(patched)?.is_none() {
            return Ok(());
        }
    }
    let params = params.preconditions(Preconditions { uid: pod.uid(), resource_version: None });
    refusal::ignore_not_found(api.delete(&name, &params).await).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLIER: &str = "2026-01-01T00:00:00Z";
    const NOW: &str = "2026-01-01T00:01:00Z";

    fn pod(status: Value) -> Pod {
        let metadata = json!({"name": "p", "generation": 3});
        serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
    }

    fn condition(status: &str, reason: &str, message: &str, since: &str) -> Value {
        let mut condition = json!({"type": "DisruptionTarget", "status": status, "reason": reason, "message": message});
        condition["observedGeneration"] = json!(3);
        condition["lastTransitionTime"] = json!(since);
        condition
    }

    #[test]
    fn the_last_word_of_a_pod_says_who_took_it_away() {
        let now: Timestamp = NOW.parse().unwrap();
        let by = |reason: &str, message: &str, since: &str| condition("True", reason, message, since);
        let taint = |since: &str| by("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint", since);
        let preempted = |status: &str| json!({"conditions": [condition(status, "Preempted", "", EARLIER)]});
        let said = json!({"conditions": [taint(EARLIER)]});
        for (status, expected) in [
            (json!({}), Some(json!({"conditions": [taint(NOW)]}))),
            (preempted("False"), Some(json!({"conditions": [taint(NOW)]}))),
            (preempted("True"), Some(json!({"conditions": [taint(EARLIER)]}))),
            (said.clone(), None),
        ] {
            assert_eq!(by_taint(&pod(status.clone()), now), expected, "{status}");
        }

        let failed = json!({"phase": "Failed", "observedGeneration": 3});
        let orphaned = |since: &str| {
            let mut failed = failed.clone();
            failed["conditions"] = json!([by("DeletionByPodGC", "PodGC: node no longer exists", since)]);
            failed
        };
        for (status, node_is_gone, expected) in [
            (json!({"phase": "Running"}), true, Some(orphaned(NOW))),
            (said, true, Some(orphaned(EARLIER))),
            (json!({"phase": "Pending"}), false, Some(failed.clone())),
            (json!({"phase": "Succeeded"}), true, None),
            (json!({"phase": "Failed"}), false, None),
        ] {
            assert_eq!(by_garbage_collection(&pod(status.clone()), node_is_gone, now), expected, "{status}");
        }
    }
}
