//! What is realized of a pod, and the rest of its status -> its conditions.
//!
//! Source: the kubelet's `status/generate.go`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, PodCondition, PodSpec, PodStatus};

use super::plan::is_sidecar;
use super::realized::{Realized, Sandbox};
use super::status::{has_started, time};

pub(super) fn conditions(
    pod: &Pod,
    spec: &PodSpec,
    old: &PodStatus,
    new: &PodStatus,
    realized: &Realized,
    now: Timestamp,
) -> Vec<PodCondition> {
    let before = old.conditions.as_deref().unwrap_or_default();
    let is_true = |kind: &str| before.iter().any(|condition| condition.type_ == kind && condition.status == "True");
    let phase = new.phase.as_deref().unwrap_or_default();
    let names = |names: Vec<&str>| format!("[{}]", names.join(" "));
    let all = new.container_statuses.iter().flatten();
    let sidecars = spec.init_containers.iter().flatten().filter(|init| is_sidecar(init));
    let init_statuses = new.init_container_statuses.iter().flatten();
    let unready: Vec<&str> = init_statuses
        .filter(|status| sidecars.clone().any(|init| init.name == status.name))
        .chain(all)
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    let verdict = |good: bool, reason: &str, message: String| match good {
        true => ("True", None, None),
        false => ("False", Some(reason.to_owned()), Some(message).filter(|message| !message.is_empty())),
    };
    let terminal = match phase {
        "Succeeded" => Some(("False", Some("PodCompleted".to_owned()), None)),
        "Failed" => Some(("False", Some("PodFailed".to_owned()), None)),
        _ => None,
    };
    let containers_ready = terminal.clone().unwrap_or_else(|| {
        let message = format!("containers with unready status: {}", names(unready.clone()));
        verdict(unready.is_empty(), "ContainersNotReady", message)
    });
    let closed: Vec<&str> = spec.readiness_gates.iter().flatten().map(|gate| gate.condition_type.as_str()).collect();
    let closed: Vec<&str> = closed.into_iter().filter(|gate| !is_true(gate)).collect();
    let ready = if containers_ready.0 == "True" && !closed.is_empty() {
        let message = format!("the status of pod readiness gates {} is not \"True\"", names(closed));
        verdict(false, "ReadinessGatesNotReady", message)
    } else {
        containers_ready.clone()
    };
    let incomplete: Vec<&str> = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|init| !init_is_complete(init, realized))
        .map(|init| init.name.as_str())
        .collect();
    let message = format!("containers with incomplete status: {}", names(incomplete));
    let done = phase == "Succeeded";
    let ours = [
        ("PodReadyToStartContainers", verdict(realized.sandbox == Sandbox::Ready, "", String::new())),
        (
            "Initialized",
            if done {
                ("True", Some("PodCompleted".to_owned()), None)
            } else {
                verdict(initialized(spec, realized), "ContainersNotInitialized", message)
            },
        ),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", ("True", None, None)),
    ];
    let mut conditions: Vec<PodCondition> = ours
        .into_iter()
        .map(|(type_, (status, reason, message))| {
            let before = before.iter().find(|condition| condition.type_ == type_);
            let since = before.filter(|before| before.status == status).and_then(|b| b.last_transition_time.clone());
            PodCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: reason.filter(|reason| !reason.is_empty()),
                message,
                last_transition_time: since.or_else(|| Some(time(now))),
                observed_generation: pod.metadata.generation,
                ..Default::default()
            }
        })
        .collect();
    let ours: Vec<String> = conditions.iter().map(|condition| condition.type_.clone()).collect();
    conditions.extend(before.iter().filter(|condition| !ours.contains(&condition.type_)).cloned());
    conditions
}

/// Every init container has done its part.
fn initialized(spec: &PodSpec, realized: &Realized) -> bool {
    spec.init_containers.iter().flatten().all(|init| init_is_complete(init, realized))
        || spec.containers.iter().any(|c| realized.containers.get(&c.name).is_some_and(has_started))
}

fn init_is_complete(init: &ContainerSpec, realized: &Realized) -> bool {
    let Some(container) = realized.containers.get(&init.name) else { return false };
    if is_sidecar(init) { container.started } else { container.ended().is_some_and(|ended| ended.exit.code == 0) }
}
