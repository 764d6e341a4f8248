//! `trafficDistribution` -> hints on endpoints, which proxies follow when they can.
//!
//! Source: KEP-2433 and KEP-3015. Deliberately not here: topology-aware hints in proportion to cpu, which upstream has
//! retired in favour of this.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForNode, ForZone};

pub(crate) fn apply(service: &Service, endpoint: &mut Endpoint) {
    let wish = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref());
    let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
    let zone = || endpoint.zone.clone().map(|name| vec![ForZone { name }]);
    let node = || endpoint.node_name.clone().map(|name| vec![ForNode { name }]);
    let hints = match wish {
        Some("PreferClose" | "PreferSameZone") => EndpointHints { for_zones: zone(), for_nodes: None },
        Some("PreferSameNode") => EndpointHints { for_zones: zone(), for_nodes: node() },
        _ => EndpointHints::default(),
    };
    endpoint.hints = (ready && hints != EndpointHints::default()).then_some(hints);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hints_follow_the_distribution() {
        for (distribution, ready, expected) in [
            (json!(null), true, json!(null)),
            (json!("PreferClose"), true, json!({"forZones": [{"name": "z"}]})),
            (json!("PreferSameZone"), true, json!({"forZones": [{"name": "z"}]})),
            (json!("PreferSameZone"), false, json!(null)),
            (json!("PreferSameNode"), true, json!({"forZones": [{"name": "z"}], "forNodes": [{"name": "n"}]})),
            (json!("Other"), true, json!(null)),
        ] {
            let service = serde_json::from_value(json!({"spec": {"trafficDistribution": distribution}})).unwrap();
            let mut endpoint = serde_json::from_value(
                json!({"addresses": [], "zone": "z", "nodeName": "n", "conditions": {"ready": ready}}),
            )
            .unwrap();
            apply(&service, &mut endpoint);
            assert_eq!(serde_json::to_value(&endpoint.hints).unwrap(), expected, "{distribution} {ready}");
        }
    }
}
