//! A Node and its health -> the conditions and taints it should have, and when its pods must go.
//!
//! Source: "Node controller" and "Taint based evictions" in the Kubernetes documentation; reasons and messages are
//! kube-controller-manager's.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::health::Health;
use crate::taint::{self, NO_EXECUTE, NO_SCHEDULE, NOT_READY, UNREACHABLE, UNSCHEDULABLE};

/// How long pods stay on a node that calls itself not ready, if they say nothing; upstream's figure.
const NOT_READY_STAY: Duration = Duration::from_secs(300);
const OBSERVED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

pub(crate) fn ready_status(node: &Node) -> Option<&str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready").map(|condition| condition.status.as_str())
}

/// The conditions that must be written because the node no longer speaks for itself.
pub(crate) fn conditions(node: &Node, health: Health, now: Timestamp) -> Vec<NodeCondition> {
    if !matches!(health, Health::Dead | Health::Silent) {
        return Vec::new();
    }
    let posted = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut unknown: Vec<_> = posted
        .filter(|condition| OBSERVED.contains(&condition.type_.as_str()) && condition.status != "Unknown")
        .map(|condition| NodeCondition {
            status: "Unknown".into(),
            reason: Some("NodeStatusUnknown".into()),
            message: Some("Kubelet stopped posting node status.".into()),
            last_transition_time: Some(Time(now)),
            ..condition.clone()
        })
        .collect();
    if ready_status(node).is_none() {
        unknown.push(NodeCondition {
            type_: "Ready".into(),
            status: "Unknown".into(),
            reason: Some("NodeStatusNeverUpdated".into()),
            message: Some("Kubelet never posted node status.".into()),
            last_transition_time: Some(Time(now)),
            last_heartbeat_time: None,
        });
    }
    unknown
}

/// All taints the node should have: other people's as they are, and ours.
pub(crate) fn taints(node: &Node, health: Health, now: Timestamp) -> Vec<Taint> {
    let spec = node.spec.clone().unwrap_or_default();
    let present = spec.taints.unwrap_or_default();
    let wanted: Vec<(&str, &str)> = match (health, ready_status(node)) {
        // Not sure yet: leave everything as it is.
        (Health::Doubtful, _) => return present,
        (Health::Dead, _) => vec![(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)],
        // Nobody is heard of: nothing new should start, but driving everything away would help nobody.
        (Health::Silent, _) | (Health::Alive, Some("Unknown")) => vec![(UNREACHABLE, NO_SCHEDULE)],
        (Health::Alive, Some("True")) => vec![],
        (Health::Alive, None) => vec![(NOT_READY, NO_SCHEDULE)],
        (Health::Alive, Some(_)) => vec![(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)],
    };
    let cordon = spec.unschedulable.unwrap_or(false).then_some((UNSCHEDULABLE, NO_SCHEDULE));
    let wanted: Vec<_> = wanted.into_iter().chain(cordon).collect();
    let ours = |taint: &Taint| {
        [UNREACHABLE, NOT_READY].contains(&taint.key.as_str()) && taint.effect != taint::PREFER_NO_SCHEDULE
            || (taint.key == UNSCHEDULABLE && taint.effect == NO_SCHEDULE)
    };
    let is = |taint: &Taint, (key, effect): (&str, &str)| taint.key == key && taint.effect == effect;
    let mut taints = present;
    taints.retain(|taint| !ours(taint) || wanted.iter().any(|wanted| is(taint, *wanted)));
    for wanted in wanted {
        if !taints.iter().any(|taint| is(taint, wanted)) {
            let (key, effect) = wanted;
            // Only NoExecute says since when; the field means nothing elsewhere.
            let time_added = (effect == NO_EXECUTE).then_some(Time(now));
            taints.push(Taint { key: key.into(), effect: effect.into(), time_added, value: None });
        }
    }
    taints
}

/// How long after the taint appeared the pod must go; `None` for never.
pub(crate) fn stay(pod: &Pod, taint: &Taint, eviction_delay: Duration) -> Option<Duration> {
    let default = match taint.key.as_str() {
        UNREACHABLE => eviction_delay,
        NOT_READY => NOT_READY_STAY,
        _ => Duration::ZERO,
    };
    taint::stay(pod, taint, default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn node(ready: Option<&str>, taints: &[(&str, &str)], cordoned: bool) -> Node {
        let conditions: Vec<_> = ready.iter().map(|ready| json!({"type": "Ready", "status": ready})).collect();
        let taints: Vec<_> = taints.iter().map(|(key, effect)| json!({"key": key, "effect": effect})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": {"taints": taints, "unschedulable": cordoned},
            "status": {"conditions": conditions}}))
        .unwrap()
    }

    #[test]
    fn taints_follow_health_and_what_the_node_says() {
        let (dead, quiet) = ([(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)], [(UNREACHABLE, NO_SCHEDULE)]);
        let mine = ("mine", NO_EXECUTE);
        for (health, ready, before, cordoned, after) in [
            (Health::Alive, Some("True"), &[][..], false, &[][..]),
            (Health::Alive, Some("True"), &dead[..], false, &[]),
            (Health::Alive, Some("Unknown"), &dead, false, &quiet),
            (Health::Alive, Some("False"), &[], false, &[(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)]),
            (Health::Alive, None, &[], false, &[(NOT_READY, NO_SCHEDULE)]),
            (Health::Alive, Some("True"), &[mine], true, &[mine, (UNSCHEDULABLE, NO_SCHEDULE)]),
            (Health::Alive, Some("True"), &[(UNSCHEDULABLE, NO_SCHEDULE)], false, &[]),
            (Health::Dead, Some("True"), &[mine], false, &[mine, dead[0], dead[1]]),
            (Health::Dead, Some("Unknown"), &dead, false, &dead),
            (Health::Silent, Some("True"), &[], false, &quiet),
            (Health::Silent, Some("Unknown"), &dead, false, &quiet),
            (Health::Doubtful, Some("True"), &[mine], true, &[mine]),
        ] {
            let made = taints(&node(ready, before, cordoned), health, now());
            let made: Vec<_> = made.iter().map(|taint| (taint.key.as_str(), taint.effect.as_str())).collect();
            assert_eq!(made, after, "{health:?} {ready:?} {before:?}");
        }
    }

    #[test]
    fn conditions_turn_unknown_once() {
        let told = |node: &Node, health| -> Vec<String> {
            conditions(node, health, now())
                .iter()
                .map(|c| format!("{}={} {}", c.type_, c.status, c.reason.as_deref().unwrap()))
                .collect()
        };
        assert_eq!(told(&node(Some("True"), &[], false), Health::Dead), ["Ready=Unknown NodeStatusUnknown"]);
        assert_eq!(told(&node(Some("Unknown"), &[], false), Health::Dead), [""; 0]);
        assert_eq!(told(&node(None, &[], false), Health::Silent), ["Ready=Unknown NodeStatusNeverUpdated"]);
        assert_eq!(told(&node(Some("True"), &[], false), Health::Doubtful), [""; 0]);
        assert_eq!(told(&node(Some("True"), &[], false), Health::Alive), [""; 0]);
    }

    #[test]
    fn how_long_pods_stay() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": []}})).unwrap();
        let of = |key: &str| {
            stay(
                &pod,
                &Taint { key: key.into(), effect: NO_EXECUTE.into(), ..Taint::default() },
                Duration::from_secs(5),
            )
        };
        assert_eq!(of(UNREACHABLE), Some(Duration::from_secs(5)));
        assert_eq!(of(NOT_READY), Some(Duration::from_secs(300)));
        assert_eq!(of("mine"), Some(Duration::ZERO));
    }
}
