//! Facts read off a Pod.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// All its containers have ended for good.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Counts as a replica: neither finished nor on its way out.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// The node it is bound to.
pub(crate) fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    if !is_ready(pod) {
        return None;
    }
    condition(pod, "Ready")?.last_transition_time.as_ref().map(|time| time.0)
}

/// When a pod becomes available: at once, later, or not as things stand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Availability {
    Now,
    In(Duration),
    No,
}

pub(crate) fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Availability {
    if !is_ready(pod) {
        return Availability::No;
    }
    if min_ready_seconds <= 0 {
        return Availability::Now;
    }
    let Some(since) = ready_since(pod) else { return Availability::No };
    let wanted = Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0));
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO);
    if passed >= wanted { Availability::Now } else { Availability::In(wanted - passed) }
}

pub(crate) fn restarts(pod: &Pod) -> i32 {
    pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten()).map(|c| c.restart_count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        let pod = |status: &str| -> Pod {
            serde_json::from_value(json!({"status": {"conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:04Z"}]}}))
            .unwrap()
        };
        assert_eq!(availability(&pod("True"), 0, now), Availability::Now);
        assert_eq!(availability(&pod("True"), 6, now), Availability::Now);
        assert_eq!(availability(&pod("True"), 10, now), Availability::In(Duration::from_secs(4)));
        assert_eq!(availability(&pod("False"), 0, now), Availability::No);
        assert_eq!(availability(&Pod::default(), 0, now), Availability::No);
    }
}
