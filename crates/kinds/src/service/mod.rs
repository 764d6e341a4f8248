//! What follows from the fields of a Service, shared by defaulting, preparing, validating and printing.
//!
//! All functions take the Service's `spec`.

mod families;

use serde_json::Value;

use crate::look::Look;

pub(crate) use families::settle as settle_families;

pub(crate) fn spec_type(spec: &Value) -> &str {
    spec.text("type")
}

pub(crate) fn is_headless(spec: &Value) -> bool {
    spec["clusterIPs"].as_array().is_some_and(|ips| ips.len() == 1 && ips[0] == "None")
        || spec.text("clusterIP") == "None"
}

pub(crate) fn needs_cluster_ip(spec: &Value) -> bool {
    spec_type(spec) != "ExternalName"
}

/// Whether its ports are to have node ports, asked for or not.
pub(crate) fn needs_node_ports(spec: &Value) -> bool {
    may_have_node_ports(spec) && (spec_type(spec) == "NodePort" || spec["allocateLoadBalancerNodePorts"] != false)
}

/// Whether its ports may have node ports. A load balancer that asks for none keeps those it has.
pub(crate) fn may_have_node_ports(spec: &Value) -> bool {
    matches!(spec_type(spec), "NodePort" | "LoadBalancer")
}

pub(crate) fn externally_accessible(spec: &Value) -> bool {
    match spec_type(spec) {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !spec.list("externalIPs").is_empty(),
        _ => false,
    }
}

/// Whether a health-check node port belongs to the Service.
pub(crate) fn needs_health_check(spec: &Value) -> bool {
    spec_type(spec) == "LoadBalancer" && spec.text("externalTrafficPolicy") == "Local"
}
