//! Taints and tolerations: which taint keeps or drives which pod away.
//!
//! Source: "Taints and Tolerations" in the Kubernetes documentation.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

pub(crate) const NO_SCHEDULE: &str = "NoSchedule";
pub(crate) const NO_EXECUTE: &str = "NoExecute";
pub(crate) const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
    if set(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    match set(&toleration.key) {
        Some(key) if key != taint.key => return false,
        None if toleration.operator.as_deref() != Some("Exists") => return false,
        _ => {}
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "" | "Equal" => toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or(""),
        "Exists" => true,
        _ => false,
    }
}

fn tolerations<'a>(pod: &'a Pod, taint: &'a Taint) -> impl Iterator<Item = &'a Toleration> {
    let all = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    all.filter(move |toleration| tolerates(toleration, taint))
}

pub(crate) fn is_tolerated(pod: &Pod, taint: &Taint) -> bool {
    tolerations(pod, taint).next().is_some()
}

/// How long the pod may stay after the taint appeared; `None` for ever. A pod that says nothing stays `default`.
pub(crate) fn stay(pod: &Pod, taint: &Taint, default: Duration) -> Option<Duration> {
    let mut tolerated = tolerations(pod, taint).peekable();
    if tolerated.peek().is_none() {
        return Some(default);
    }
    let seconds = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    tolerated.filter_map(|toleration| toleration.toleration_seconds.map(seconds)).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tolerations_by_key_operator_value_and_effect() {
        let taint: Taint = serde_json::from_value(json!({"key": "gpu", "value": "yes", "effect": NO_EXECUTE})).unwrap();
        for (toleration, tolerated) in [
            (json!({"key": "gpu", "value": "yes"}), true),
            (json!({"key": "gpu", "operator": "Equal", "value": "no"}), false),
            (json!({"key": "gpu", "operator": "Exists"}), true),
            (json!({"key": "gpu", "operator": "Exists", "effect": NO_SCHEDULE}), false),
            (json!({"key": "gpu", "operator": "Exists", "effect": NO_EXECUTE}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"value": "yes"}), false),
            (json!({"key": "other", "operator": "Exists"}), false),
            (json!({"key": "gpu", "operator": "Lt", "value": "yes"}), false),
        ] {
            let pod: Pod =
                serde_json::from_value(json!({"spec": {"containers": [], "tolerations": [toleration]}})).unwrap();
            assert_eq!(is_tolerated(&pod, &taint), tolerated, "{toleration}");
        }
    }

    #[test]
    fn the_shortest_toleration_counts() {
        let taint: Taint = serde_json::from_value(json!({"key": UNREACHABLE, "effect": NO_EXECUTE})).unwrap();
        let default = Duration::from_secs(5);
        for (tolerations, expected) in [
            (json!([]), Some(default)),
            (
                json!([{"key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": 60}]),
                Some(Duration::from_secs(60)),
            ),
            (json!([{"key": UNREACHABLE, "operator": "Exists"}]), None),
            (
                json!([{"operator": "Exists"}, {"operator": "Exists", "tolerationSeconds": 7}]),
                Some(Duration::from_secs(7)),
            ),
            (json!([{"operator": "Exists", "tolerationSeconds": -1}]), Some(Duration::ZERO)),
        ] {
            let pod: Pod =
                serde_json::from_value(json!({"spec": {"containers": [], "tolerations": tolerations}})).unwrap();
            assert_eq!(stay(&pod, &taint, default), expected, "{tolerations}");
        }
    }
}
