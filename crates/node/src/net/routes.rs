//! The cluster's Nodes -> the routes to the other nodes' pods.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;

/// Pod networks and the node addresses behind which they are. A node without one or the other has no route yet; of
/// two nodes that claim one network the first by name has it.
pub(crate) fn routes<'a>(nodes: impl IntoIterator<Item = &'a Node>, own: &str) -> BTreeMap<Ipv4Net, Ipv4Addr> {
    let mut nodes: Vec<&Node> = nodes.into_iter().filter(|node| node.metadata.name.as_deref() != Some(own)).collect();
    nodes.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut routes = BTreeMap::new();
    for node in nodes {
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let internal = addresses.filter(|address| address.type_ == "InternalIP");
        let Some(gateway) = internal.into_iter().find_map(|address| address.address.parse().ok()) else { continue };
        for net in pod_networks(node) {
            routes.entry(net).or_insert(gateway);
        }
    }
    routes
}

/// The IPv4 networks that a Node's spec gives its pods.
pub(crate) fn pod_networks(node: &Node) -> Vec<Ipv4Net> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    let mut networks: Vec<Ipv4Net> =
        all.filter_map(|cidr| cidr.parse::<Ipv4Net>().ok()).map(|net| net.trunc()).collect();
    networks.dedup();
    networks
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, cidrs: &[&str], ip: Option<&str>) -> Node {
        let addresses: Vec<_> = ip.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        serde_json::from_value(json!({"metadata": {"name": name},
            "spec": {"podCIDRs": cidrs, "podCIDR": cidrs.first()}, "status": {"addresses": addresses}}))
        .unwrap()
    }

    #[test]
    fn routes_lead_to_the_other_nodes() {
        let nodes = [
            node("c", &["10.244.3.0/24"], None),
            node("b", &["10.244.2.0/24", "fd00::/64"], Some("10.203.0.12")),
            node("a", &["10.244.1.0/24"], Some("10.203.0.11")),
            node("d", &["10.244.2.0/24"], Some("10.203.0.14")),
            node("e", &["nonsense"], Some("10.203.0.15")),
        ];
        let routes = routes(&nodes, "a");
        let shown: Vec<_> = routes.iter().map(|(net, via)| format!("{net} via {via}")).collect();
        assert_eq!(shown, ["10.244.2.0/24 via 10.203.0.12"]);
    }
}
