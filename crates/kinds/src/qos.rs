//! The quality-of-service class of a pod, from its containers' resources.

use serde_json::Value;

use crate::look::Look;

/// `Guaranteed`, `Burstable` or `BestEffort`, of a pod's spec.
pub(crate) fn class(spec: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for container in spec.list("containers").iter().chain(spec.list("initContainers")) {
        let (limits, requests) =
            (container.get_in(&["resources", "limits"]), container.get_in(&["resources", "requests"]));
        for resource in ["cpu", "memory"] {
            let (limit, request) = (limits.text(resource), requests.text(resource));
            any |= !limit.is_empty() || !request.is_empty();
            guaranteed &= !limit.is_empty() && (request.is_empty() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes() {
        for (resources, expected) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable"),
        ] {
            assert_eq!(class(&json!({"containers": [{"resources": resources}]})), expected);
        }
    }
}
