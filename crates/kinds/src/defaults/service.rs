//! Defaults of a Service.

use serde_json::{Value, json};

use crate::look::{Look, child, items_mut, map_of, remove, set_default};
use crate::service::{externally_accessible, spec_type};

pub(super) fn service(object: &mut Value) {
    let spec = child(object, "spec");
    set_default(spec, "sessionAffinity", "None");
    match spec.text("sessionAffinity") {
        "None" => {
            remove(spec, "sessionAffinityConfig");
        }
        "ClientIP" if spec.get_in(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"]).is_null() => {
            map_of(spec).insert("sessionAffinityConfig".into(), json!({"clientIP": {"timeoutSeconds": 10800}}));
        }
        _ => {}
    }
    set_default(spec, "type", "ClusterIP");
    for port in items_mut(spec, "ports") {
        set_default(port, "protocol", "TCP");
        let unset = !port.has("targetPort") || port["targetPort"] == 0 || port["targetPort"] == "";
        if unset {
            let number = port.int("port").unwrap_or(0);
            map_of(port).insert("targetPort".into(), number.into());
        }
    }
    if externally_accessible(spec) {
        set_default(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(spec_type(spec), "ClusterIP" | "NodePort" | "LoadBalancer") {
        set_default(spec, "internalTrafficPolicy", "Cluster");
    }
    if spec_type(spec) == "LoadBalancer" {
        set_default(spec, "allocateLoadBalancerNodePorts", true);
        if let Some(balancer) = object.get_mut("status").and_then(|status| status.get_mut("loadBalancer")) {
            for ingress in items_mut(balancer, "ingress") {
                if !ingress.text("ip").is_empty() {
                    set_default(ingress, "ipMode", "VIP");
                }
            }
        }
    }
}
