//! Pods.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, NAME, age, human, name, shown, wide};
use crate::Column;
use crate::look::Look;

pub(super) const POD: &[Column] = &[
    NAME,
    shown("Ready", "string", "Containers that are ready, of all."),
    shown("Status", "string", "What the pod is doing, or why it is not doing it."),
    shown("Restarts", "string", "Times its containers were restarted, and when last."),
    AGE,
    wide("IP", "Address of the pod."),
    wide("Node", "Node the pod runs on."),
    wide("Nominated Node", "Node that room is being made on."),
    wide("Readiness Gates", "Readiness gates that are open, of all."),
];

pub(super) fn pod(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(time) if summary.restarts > 0 => {
            format!("{} ({} ago)", summary.restarts, human(now.as_second() - time.as_second()))
        }
        _ => summary.restarts.to_string(),
    };
    let ip = status.list("podIPs").first().map_or_else(|| status.text("podIP"), |ip| ip.text("ip"));
    let text = |text: &str| Value::from(if text.is_empty() { "<none>" } else { text });
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod, now),
        text(ip),
        text(spec.text("nodeName")),
        text(status.text("nominatedNodeName")),
        gates(spec, status),
    ]
}

fn gates(spec: &Value, status: &Value) -> Value {
    let gates = spec.list("readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let open = |gate: &&Value| {
        let kind = gate.text("conditionType");
        let mut conditions = status.list("conditions").iter();
        conditions.any(|condition| condition.text("type") == kind && condition.text("status") == "True")
    };
    format!("{}/{}", gates.iter().filter(open).count(), gates.len()).into()
}

struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    status.list("conditions").iter().find(|condition| condition.text("type") == kind).unwrap_or(&Value::Null)
}

fn ended_at(container: &Value) -> Option<Timestamp> {
    container.get_in(&["lastState", "terminated"]).text("finishedAt").parse().ok()
}

/// Why a container ended: its reason, else its signal, else its exit code.
fn end(terminated: &Value) -> String {
    let (reason, signal) = (terminated.text("reason"), terminated.int("signal").unwrap_or(0));
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", terminated.int("exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn summarize(pod: &Value) -> Summary {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let reason = match (status.text("reason"), status.text("phase")) {
        ("", "") => "Unknown",
        ("", phase) => phase,
        (reason, _) => reason,
    };
    let mut summary = Summary {
        ready: 0,
        total: spec.list("containers").len(),
        reason: reason.to_owned(),
        restarts: 0,
        last_restart: None,
    };
    let scheduled = condition(status, "PodScheduled");
    if scheduled.text("reason") == "SchedulingGated" {
        "SchedulingGated".clone_into(&mut summary.reason);
    }
    let waiting_at_init = init_containers(spec, status, &mut summary);
    let initialized = condition(status, "Initialized").text("status") == "True";
    if !waiting_at_init || initialized {
        containers(status, &mut summary);
    }
    let metadata = &pod["metadata"];
    if metadata.has("deletionTimestamp") {
        if status.text("reason") == "NodeLost" {
            "Unknown".clone_into(&mut summary.reason);
        } else if !matches!(status.text("phase"), "Failed" | "Succeeded") {
            "Terminating".clone_into(&mut summary.reason);
        }
    }
    summary
}

/// Tells whether the pod is still at its init containers.
fn init_containers(spec: &Value, status: &Value, summary: &mut Summary) -> bool {
    let all = spec.list("initContainers");
    let sidecar = |name: &str| all.iter().any(|c| c.text("name") == name && c.text("restartPolicy") == "Always");
    let mut sidecars_restarted = 0;
    let mut sidecar_restart: Option<Timestamp> = None;
    summary.total += all.iter().filter(|container| container.text("restartPolicy") == "Always").count();
    for (index, container) in status.list("initContainerStatuses").iter().enumerate() {
        summary.restarts += container.int("restartCount").unwrap_or(0);
        summary.last_restart = summary.last_restart.max(ended_at(container));
        let is_sidecar = sidecar(container.text("name"));
        if is_sidecar {
            sidecars_restarted += container.int("restartCount").unwrap_or(0);
            sidecar_restart = sidecar_restart.max(ended_at(container));
        }
        let state = &container["state"];
        let (terminated, waiting) = (&state["terminated"], &state["waiting"]);
        if terminated.has("exitCode") && terminated.int("exitCode") == Some(0) {
            continue;
        }
        if is_sidecar && container.flag("started") {
            summary.ready += usize::from(container.flag("ready"));
            continue;
        }
        summary.reason = if !terminated.is_null() {
            format!("Init:{}", end(terminated))
        } else if !matches!(waiting.text("reason"), "" | "PodInitializing") {
            format!("Init:{}", waiting.text("reason"))
        } else {
            format!("Init:{index}/{}", all.len())
        };
        return true;
    }
    // Past the init containers, their restarts are history; those of sidecars are not.
    summary.restarts = sidecars_restarted;
    summary.last_restart = sidecar_restart;
    false
}

fn containers(status: &Value, summary: &mut Summary) {
    let mut running = false;
    for container in status.list("containerStatuses").iter().rev() {
        summary.restarts += container.int("restartCount").unwrap_or(0);
        summary.last_restart = summary.last_restart.max(ended_at(container));
        let state = &container["state"];
        if !state["waiting"].text("reason").is_empty() {
            state["waiting"].text("reason").clone_into(&mut summary.reason);
        } else if !state["terminated"].is_null() {
            summary.reason = end(&state["terminated"]);
        } else if container.flag("ready") && !state["running"].is_null() {
            running = true;
            summary.ready += 1;
        }
    }
    // One container is done and another goes on.
    if summary.reason == "Completed" && running {
        let ready = condition(status, "Ready").text("status") == "True";
        if ready { "Running" } else { "NotReady" }.clone_into(&mut summary.reason);
    }
}
