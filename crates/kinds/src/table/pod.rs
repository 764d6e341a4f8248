//! Pods.

use jiff::Timestamp;
use serde_json::Value;

use super::Says::{Field, Text};
use super::{AGE, Drawn, NAME, age, human, name, shown, wide};
use crate::look::Look;

pub(super) const POD: &[Drawn] = &[
    NAME,
    shown("Ready", "string", Text("The aggregate readiness state of this pod for accepting traffic.")),
    shown("Status", "string", Text("The aggregate status of the containers in this pod.")),
    shown(
        "Restarts",
        "string",
        Text(
            "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
        ),
    ),
    AGE,
    wide("IP", Field("core.v1.PodStatus", "podIP")),
    wide("Node", Field("core.v1.PodSpec", "nodeName")),
    wide("Nominated Node", Field("core.v1.PodStatus", "nominatedNodeName")),
    wide("Readiness Gates", Field("core.v1.PodSpec", "readinessGates")),
];

pub(super) fn pod(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let summary = summarize(pod);
    let restarts = match summary.restarts {
        Restarts { count, last: Some(time) } if count > 0 => {
            format!("{count} ({} ago)", human(now.as_second() - time.as_second()))
        }
        Restarts { count, .. } => count.to_string(),
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
    restarts: Restarts,
}

/// How often containers were restarted, and when last.
#[derive(Clone, Copy, Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, container: &Value) {
        self.count += container.int("restartCount").unwrap_or(0);
        let ended = container.get_in(&["lastState", "terminated"]).text("finishedAt");
        self.last = self.last.max(ended.parse().ok());
    }
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    status.list("conditions").iter().find(|condition| condition.text("type") == kind).unwrap_or(&Value::Null)
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
        restarts: Restarts::default(),
    };
    let scheduled = condition(status, "PodScheduled");
    if scheduled.text("reason") == "SchedulingGated" {
        "SchedulingGated".clone_into(&mut summary.reason);
    }
    let (initializing, sidecars) = init_containers(spec, status, &mut summary);
    if !initializing || condition(status, "Initialized").text("status") == "True" {
        // Past the init containers, their restarts are history; those of sidecars are not.
        summary.restarts = sidecars;
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

/// Tells whether the pod is still at its init containers, and of the restarts of those that are sidecars.
fn init_containers(spec: &Value, status: &Value, summary: &mut Summary) -> (bool, Restarts) {
    let all = spec.list("initContainers");
    let sidecar = |name: &str| all.iter().any(|c| c.text("name") == name && c.text("restartPolicy") == "Always");
    let mut sidecars = Restarts::default();
    summary.total += all.iter().filter(|container| container.text("restartPolicy") == "Always").count();
    for (index, container) in status.list("initContainerStatuses").iter().enumerate() {
        summary.restarts.add(container);
        let is_sidecar = sidecar(container.text("name"));
        if is_sidecar {
            sidecars.add(container);
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
        return (true, sidecars);
    }
    (false, sidecars)
}

fn containers(status: &Value, summary: &mut Summary) {
    let (mut running, mut failed) = (false, None);
    for container in status.list("containerStatuses").iter().rev() {
        summary.restarts.add(container);
        let state = &container["state"];
        if !state["waiting"].text("reason").is_empty() {
            state["waiting"].text("reason").clone_into(&mut summary.reason);
        } else if !state["terminated"].is_null() {
            summary.reason = end(&state["terminated"]);
            if state["terminated"].int("exitCode").unwrap_or(0) != 0 {
                failed = Some(summary.reason.clone());
            }
        } else if container.flag("ready") && !state["running"].is_null() {
            running = true;
            summary.ready += 1;
        }
    }
    // One container is done; what of the others is worth more to know?
    if summary.reason == "Completed" {
        let ready = condition(status, "Ready").text("status") == "True";
        match failed {
            _ if running && ready => "Running".clone_into(&mut summary.reason),
            Some(failed) => summary.reason = failed,
            None if running => "NotReady".clone_into(&mut summary.reason),
            None => {}
        }
    }
}
