//! A Deployment and its rollout -> its status, with the conditions and reasons that `kubectl rollout status` waits for.
//!
//! Source: `apps/v1` DeploymentStatus; the reasons and messages are those of kube-controller-manager, because tools
//! match on them.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::rollout::{Bounds, Rollout, spec_replicas};
use crate::meta;

const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const AVAILABLE: &str = "NewReplicaSetAvailable";
const PAUSED: &str = "DeploymentPaused";
pub(crate) const CREATE_ERROR: &str = "ReplicaSetCreateError";

/// The status, and when to look again if nothing moves until then.
pub(crate) fn status(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    rollout: &Rollout,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = counts(deployment, rollout);
    status.collision_count = old.collision_count;
    let mut conditions = Conditions { list: old.conditions.clone().unwrap_or_default(), now };
    if status.available_replicas.unwrap_or(0) >= Bounds::of(spec).min_available() {
        conditions.set("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.".into());
    } else {
        let message = "Deployment does not have minimum availability.".into();
        conditions.set("Available", "False", "MinimumReplicasUnavailable", message);
    }
    let deadline = deadline(spec);
    let mut again = None;
    if spec.paused.unwrap_or(false) {
        if deadline.is_some() && conditions.reason("Progressing") != Some(TIMED_OUT) {
            conditions.set("Progressing", "Unknown", PAUSED, "Deployment is paused".into());
        }
    } else {
        if deadline.is_some() && conditions.reason("Progressing") == Some(PAUSED) {
            conditions.set("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed".into());
        }
        if !rollout.only_scaled && !meta::is_terminating(deployment) {
            again = progress(deployment, spec, rollout, &old, &status, deadline, &mut conditions);
        }
    }
    match replica_failure(rollout) {
        Some((reason, message)) => conditions.set("ReplicaFailure", "True", &reason, message),
        None => conditions.list.retain(|condition| condition.type_ != "ReplicaFailure"),
    }
    status.conditions = (!conditions.list.is_empty()).then_some(conditions.list);
    (status, again)
}

/// The status when no ReplicaSet can be made of the template, as `message` says; `None` if it says so already. It keeps
/// the words of the first refusal: a status that changed with each would be tried again at once each time.
pub(crate) fn cannot_create(deployment: &Deployment, message: String, now: Timestamp) -> Option<DeploymentStatus> {
    deadline(deployment.spec.as_ref()?)?;
    let mut status = deployment.status.clone().unwrap_or_default();
    let mut conditions = Conditions { list: status.conditions.clone().unwrap_or_default(), now };
    conditions.set("Progressing", "False", CREATE_ERROR, message);
    let told = status.conditions.replace(conditions.list);
    (told != status.conditions).then_some(status)
}

/// Seconds that a rollout has for each step. i32::MAX is how people say "for ever".
fn deadline(spec: &DeploymentSpec) -> Option<i32> {
    spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)
}

fn counts(deployment: &Deployment, rollout: &Rollout) -> DeploymentStatus {
    let sum = |of: &dyn Fn(&ReplicaSet) -> i32| rollout.members().map(|member| of(&member.object)).sum::<i32>();
    let nonzero = |count: i32| (count != 0).then_some(count);
    let reported = |set: &ReplicaSet| set.status.clone().unwrap_or_default();
    let available = sum(&|set| reported(set).available_replicas.unwrap_or(0));
    let total = sum(&|set| spec_replicas(set));
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: nonzero(sum(&|set| reported(set).replicas)),
        updated_replicas: nonzero(rollout.new.as_ref().map_or(0, |new| reported(&new.object).replicas)),
        ready_replicas: nonzero(sum(&|set| reported(set).ready_replicas.unwrap_or(0))),
        available_replicas: nonzero(available),
        unavailable_replicas: nonzero((total - available).max(0)),
        terminating_replicas: rollout.members().filter_map(|member| terminating(&reported(&member.object))).sum(),
        ..DeploymentStatus::default()
    }
}

/// How many pods of a ReplicaSet are on their way out: nobody knows if its controller does not say, and none are if it
/// has not looked at it yet.
#[allow(clippy::option_option, reason = "the outer one is whether it counts, the inner one a summand")]
fn terminating(set: &ReplicaSetStatus) -> Option<Option<i32>> {
    let looked_at = set.observed_generation.unwrap_or(0) != 0 || set.terminating_replicas.is_some();
    looked_at.then_some(set.terminating_replicas)
}

fn progress(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    rollout: &Rollout,
    old: &DeploymentStatus,
    new: &DeploymentStatus,
    deadline: Option<i32>,
    conditions: &mut Conditions,
) -> Option<Duration> {
    let Some(deadline) = deadline else {
        conditions.list.retain(|condition| condition.type_ != "Progressing");
        return None;
    };
    if let Some(created) = &rollout.create {
        let message = format!("Created new replica set {:?}", created.name_any());
        conditions.replace("Progressing", "True", "NewReplicaSetCreated", message);
    } else if let Some(set) = &rollout.new
        && conditions.get("Progressing").is_none()
    {
        let message = format!("Found new replica set {:?}", set.object.name_any());
        conditions.set("Progressing", "True", "FoundNewReplicaSet", message);
    }
    let count = |status: &DeploymentStatus, of: fn(&DeploymentStatus) -> Option<i32>| of(status).unwrap_or(0);
    let replicas = spec.replicas.unwrap_or(1);
    let updated = count(new, |status| status.updated_replicas);
    let all = count(new, |status| status.replicas);
    let complete = updated == replicas
        && all == replicas
        && count(new, |status| status.available_replicas) == replicas
        && rollout.create.is_none();
    // A finished rollout stays finished, even if pods fall over later.
    if all == updated && conditions.reason("Progressing") == Some(AVAILABLE) && rollout.create.is_none() {
        return None;
    }
    let subject = match &rollout.new {
        Some(set) => format!("ReplicaSet {:?}", set.object.name_any()),
        None => format!("Deployment {:?}", deployment.name_any()),
    };
    let old_left = all - updated;
    let moved = updated > count(old, |status| status.updated_replicas)
        || old_left < count(old, |status| status.replicas) - count(old, |status| status.updated_replicas)
        || count(new, |status| status.ready_replicas) > count(old, |status| status.ready_replicas)
        || count(new, |status| status.available_replicas) > count(old, |status| status.available_replicas);
    if complete {
        conditions.set("Progressing", "True", AVAILABLE, format!("{subject} has successfully progressed."));
        return None;
    }
    if moved {
        conditions.replace("Progressing", "True", "ReplicaSetUpdated", format!("{subject} is progressing."));
    }
    let current = conditions.get("Progressing")?;
    // The end of the last rollout is not the beginning of this one, whose time begins with its first step.
    if [TIMED_OUT, AVAILABLE].contains(&current.reason.as_deref().unwrap_or_default()) {
        return None;
    }
    let since = current.last_update_time.as_ref().map_or(conditions.now, |time| time.0);
    let passed = Duration::try_from(conditions.now.duration_since(since)).unwrap_or(Duration::ZERO);
    let allowed = Duration::from_secs(u64::try_from(deadline).unwrap_or(0));
    if passed < allowed {
        return Some(allowed - passed);
    }
    conditions.set("Progressing", "False", TIMED_OUT, format!("{subject} has timed out progressing."));
    None
}

/// What keeps a ReplicaSet from making pods; the new one's trouble counts first.
fn replica_failure(rollout: &Rollout) -> Option<(String, String)> {
    rollout.new.iter().chain(&rollout.old).find_map(|member| {
        let conditions = member.object.status.as_ref()?.conditions.as_ref()?;
        let failure = conditions.iter().find(|condition| condition.type_ == "ReplicaFailure")?;
        Some((failure.reason.clone().unwrap_or_default(), failure.message.clone().unwrap_or_default()))
    })
}

struct Conditions {
    list: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Conditions {
    fn get(&self, kind: &str) -> Option<&DeploymentCondition> {
        self.list.iter().find(|condition| condition.type_ == kind)
    }

    fn reason(&self, kind: &str) -> Option<&str> {
        self.get(kind)?.reason.as_deref()
    }

    /// Leaves a condition alone that says the same already.
    fn set(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let same = self.get(kind).is_some_and(|old| old.status == status && old.reason.as_deref() == Some(reason));
        if !same {
            self.replace(kind, status, reason, message);
        }
    }

    /// Notes the present as the time of the last update.
    fn replace(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let since = self.get(kind).filter(|old| old.status == status).and_then(|old| old.last_transition_time.clone());
        self.list.retain(|condition| condition.type_ != kind);
        self.list.push(DeploymentCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_update_time: Some(Time(self.now)),
            last_transition_time: Some(since.unwrap_or(Time(self.now))),
        });
    }
}
