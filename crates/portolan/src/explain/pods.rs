//! A pod that is not ready -> why, in the words of whoever keeps it so.

use k8s_openapi::api::core::v1::{ContainerStatus, Event, Node, Pod};
use kube::ResourceExt;

/// `None` when the pod is ready.
pub(super) fn why_not_ready(pod: &Pod, nodes: &[Node], events: &[Event]) -> Option<String> {
    let status = pod.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let condition = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
    if pod.metadata.deletion_timestamp.is_some() {
        return Some("it is being deleted".to_owned());
    }
    if condition("Ready").is_some_and(|ready| ready.status == "True") {
        return None;
    }
    match status.phase.as_deref() {
        Some("Succeeded") => return Some("it has ended".to_owned()),
        Some("Failed") => {
            return Some(format!("it has failed{}", because(status.reason.as_deref(), status.message.as_deref())));
        }
        _ => (),
    }
    let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) else {
        let message = condition("PodScheduled").and_then(|condition| condition.message.as_deref());
        return Some(format!("it is on no node{}", because(None, message)));
    };
    if let Some(why) = why_node_down(node, nodes) {
        return Some(why);
    }
    let init = status.init_container_statuses.unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    if let Some(why) = init.iter().chain(&containers).find_map(why_not_running) {
        return Some(why);
    }
    if let Some(container) = containers.iter().find(|container| !container.ready) {
        let probe = unhealthy(pod, events);
        return Some(match probe {
            Some(message) => format!("container {} is not ready: {message}", container.name),
            None => format!("container {} is not ready: its readiness probe has not succeeded", container.name),
        });
    }
    let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
    let closed = |kind: &str| condition(kind).is_none_or(|condition| condition.status != "True");
    if let Some(gate) = gates.iter().find(|gate| closed(&gate.condition_type)) {
        return Some(format!("its readiness gate {} is not true", gate.condition_type));
    }
    let ready = condition("Ready");
    let (reason, message) = (ready.and_then(|c| c.reason.as_deref()), ready.and_then(|c| c.message.as_deref()));
    Some(format!("{node} has not said that it is ready{}", because(reason, message)))
}

/// `None` when the node is ready, or nothing is known about it.
pub(super) fn why_node_down(name: &str, nodes: &[Node]) -> Option<String> {
    let Some(node) = nodes.iter().find(|node| node.name_any() == name) else {
        return Some(format!("its node {name} does not exist"));
    };
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    if ready.status == "True" {
        return None;
    }
    Some(format!("its node {name} is not ready{}", because(ready.reason.as_deref(), ready.message.as_deref())))
}

fn why_not_running(container: &ContainerStatus) -> Option<String> {
    let name = &container.name;
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let because = because(waiting.reason.as_deref(), waiting.message.as_deref());
        let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let last = last.map_or_else(String::new, |last| format!("; it last ended with exit code {}", last.exit_code));
        return Some(format!("container {name} is waiting{because}{last}"));
    }
    let ended = state.terminated.as_ref().filter(|_| !container.ready)?;
    // An init container that has done its work is as it should be.
    (ended.exit_code != 0).then(|| {
        let because = because(ended.reason.as_deref(), ended.message.as_deref());
        format!("container {name} ended with exit code {}{because}", ended.exit_code)
    })
}

/// The latest failure of a probe.
fn unhealthy<'a>(pod: &Pod, events: &'a [Event]) -> Option<&'a str> {
    let about = |event: &&Event| {
        let object = &event.involved_object;
        object.kind.as_deref() == Some("Pod")
            && object.name.as_deref() == Some(&pod.name_any())
            && (object.uid.is_none() || object.uid == pod.metadata.uid)
            && event.reason.as_deref() == Some("Unhealthy")
    };
    let latest = events.iter().filter(about).max_by_key(|event| {
        let last = event.last_timestamp.as_ref().map(|time| time.0);
        last.or_else(|| event.event_time.as_ref().map(|time| time.0))
    });
    latest?.message.as_deref().map(str::trim_end)
}

/// `: Reason: message`, as much of it as there is.
fn because(reason: Option<&str>, message: Option<&str>) -> String {
    let parts = [reason, message].into_iter().flatten().map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| format!(": {part}")).collect()
}
