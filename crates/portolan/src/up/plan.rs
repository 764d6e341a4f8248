//! Flags -> every name and address of the cluster, before anything is made.
//!
//! Invariant: pure, so that the same flags give the same cluster on every start and `clean` knows what to look for.

use std::net::Ipv4Addr;

use anyhow::{Result, bail, ensure};
use ipnet::Ipv4Net;
use portolan_controllers::AddressRange;
use serde::{Deserialize, Serialize};

/// Every namespace that a cluster makes starts with this; `ip netns` lists them.
pub(crate) const NAMESPACE_PREFIX: &str = "portolan-";
/// The bridge that joins the nodes stands in a namespace of its own, so that the host's stays as it was.
pub(crate) const FABRIC_NAMESPACE: &str = "portolan-fabric";
/// A machine beyond the cluster, on the same network.
pub(crate) const OUTSIDE_NAMESPACE: &str = "portolan-outside";
/// The bridge, inside [`FABRIC_NAMESPACE`].
pub(crate) const BRIDGE: &str = "br0";
/// The one link the host has into the cluster.
pub(crate) const HOST_LINK: &str = "portolan0";
/// A node's link to the others, inside the node's namespace.
pub(crate) const UPLINK: &str = "eth0";
/// Every cgroup of a cluster is below this one, in each hierarchy.
pub(crate) const CGROUP: &str = "portolan";

/// Nodes are called this and their number.
const NODE: &str = "node";

const MAX_NODES: u8 = 100;

/// Where everything is. Host numbers within the node network: 1 control, 2 outside, 3 host, 11 and up the nodes,
/// 200–250 the load-balancer pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) node_network: Ipv4Net,
    pub(crate) pod_cidr: Ipv4Net,
    pub(crate) service_cidr: Ipv4Net,
    pub(crate) cluster_dns: Ipv4Addr,
    pub(crate) pool: AddressRange,
    pub(crate) nodes: Vec<NodePlan>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodePlan {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
}

/// Whether a node of this name can be one of a cluster's own machines.
pub(crate) fn is_machine(name: &str) -> bool {
    name.strip_prefix(NODE).is_some_and(|number| number.parse::<u8>().is_ok_and(|n| number == n.to_string()))
}

impl NodePlan {
    pub(crate) fn namespace(&self) -> String {
        format!("{NAMESPACE_PREFIX}{}", self.name)
    }
}

/// What the state of a cluster is tied to: addresses within these stand in its objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ties {
    service_cidr: Ipv4Net,
    cluster_dns: Ipv4Addr,
    pod_cidr: Ipv4Net,
}

impl Ties {
    /// # Errors
    /// Names the first flag that is not as the state in `place` needs it.
    pub(crate) fn check(&self, plan: &Self, place: &str) -> Result<()> {
        let rows = [
            ("--service-cidr", self.service_cidr.to_string(), plan.service_cidr.to_string()),
            ("--cluster-dns", self.cluster_dns.to_string(), plan.cluster_dns.to_string()),
            ("--pod-cidr", self.pod_cidr.to_string(), plan.pod_cidr.to_string()),
        ];
        for (flag, made_with, asked_for) in rows {
            ensure!(
                made_with == asked_for,
                "{flag} is {asked_for}, but the cluster in {place} was made with {flag} {made_with}, which its objects \
                 hold; give that, or another --data-dir"
            );
        }
        Ok(())
    }
}

impl Plan {
    pub(crate) fn ties(&self) -> Ties {
        Ties { service_cidr: self.service_cidr, cluster_dns: self.cluster_dns, pod_cidr: self.pod_cidr }
    }

    /// # Errors
    /// When the ranges overlap, are too small, or the DNS address is not a Service address.
    pub(crate) fn new(
        nodes: u8,
        node_network: Ipv4Net,
        pod_cidr: Ipv4Net,
        service_cidr: Ipv4Net,
        cluster_dns: Ipv4Addr,
        pool: Option<AddressRange>,
    ) -> Result<Self> {
        ensure!((1..=MAX_NODES).contains(&nodes), "--nodes is {nodes}; it must be 1 to {MAX_NODES}");
        ensure!(
            node_network.prefix_len() <= 24,
            "--node-network {node_network} is too small: give a /24 or larger, its hosts 1 to 250 are used"
        );
        let ranges = [
            ("--node-network", node_network.trunc()),
            ("--pod-cidr", pod_cidr.trunc()),
            ("--service-cidr", service_cidr.trunc()),
        ];
        for (index, (flag, range)) in ranges.iter().enumerate() {
            for (other_flag, other) in &ranges[..index] {
                if range.contains(other) || other.contains(range) {
                    bail!("{flag} {range} overlaps {other_flag} {other}; the three ranges must be apart");
                }
            }
        }
        ensure!(pod_cidr.prefix_len() <= 24, "--pod-cidr {pod_cidr} is too small: each node takes a /24 of it");
        ensure!(
            (1u64 << (24 - pod_cidr.prefix_len())) >= u64::from(nodes),
            "--pod-cidr {pod_cidr} has fewer /24 ranges than --nodes {nodes}"
        );
        ensure!(
            service_cidr.contains(&cluster_dns),
            "--cluster-dns {cluster_dns} is not within --service-cidr {service_cidr}"
        );
        let host = |number: u32| Ipv4Addr::from(u32::from(node_network.network()) + number);
        let pool = match pool {
            Some(pool) => pool,
            None => format!("{}-{}", host(200), host(250)).parse()?,
        };
        let nodes = (1..=nodes)
            .map(|number| NodePlan { name: format!("{NODE}{number}"), address: host(10 + u32::from(number)) })
            .collect();
        Ok(Self {
            node_network: node_network.trunc(),
            pod_cidr: pod_cidr.trunc(),
            service_cidr: service_cidr.trunc(),
            cluster_dns,
            pool,
            nodes,
        })
    }

    fn host(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.node_network.network()) + number)
    }

    /// Where the API server and the DNS relay answer the nodes.
    pub(crate) fn control(&self) -> Ipv4Addr {
        self.host(1)
    }

    pub(crate) fn outside(&self) -> Ipv4Addr {
        self.host(2)
    }

    pub(crate) fn host_link(&self) -> Ipv4Addr {
        self.host(3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(nodes: u8, node: &str, pod: &str, service: &str) -> Result<Plan> {
        Plan::new(
            nodes,
            node.parse().unwrap(),
            pod.parse().unwrap(),
            service.parse().unwrap(),
            "10.96.0.10".parse().unwrap(),
            None,
        )
    }

    #[test]
    fn addresses_follow_from_the_node_network() {
        let plan = plan(3, "10.203.0.0/24", "10.244.0.0/16", "10.96.0.0/12").unwrap();
        assert_eq!(plan.control().to_string(), "10.203.0.1");
        assert_eq!(plan.outside().to_string(), "10.203.0.2");
        assert_eq!(plan.nodes[2].address.to_string(), "10.203.0.13");
        assert_eq!(plan.nodes[2].namespace(), "portolan-node3");
        assert!(plan.nodes.iter().all(|node| is_machine(&node.name)));
        assert!(["node", "node01", "node-1", "mynode1", "node1x"].iter().all(|name| !is_machine(name)));
        assert_eq!(plan.pool.to_string(), "10.203.0.200-10.203.0.250");
    }

    #[test]
    fn a_state_keeps_the_ranges_it_was_made_with() {
        let first = plan(3, "10.203.0.0/24", "10.244.0.0/16", "10.96.0.0/12").unwrap().ties();
        let elsewhere = plan(7, "10.204.0.0/24", "10.244.0.0/16", "10.96.0.0/12").unwrap().ties();
        assert!(first.check(&elsewhere, "/data").is_ok(), "nodes and their network may change");
        let rows = [
            (("10.245.0.0/16", "10.96.0.0/12"), "--pod-cidr is 10.245.0.0/16, but the cluster in /data was made with"),
            (("10.244.0.0/16", "10.96.0.0/16"), "--service-cidr is 10.96.0.0/16, but"),
        ];
        for ((pod, service), expected) in rows {
            let other = plan(3, "10.203.0.0/24", pod, service).unwrap().ties();
            let error = first.check(&other, "/data").unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} should contain {expected:?}");
        }
    }

    #[test]
    fn ranges_that_cannot_work_are_named() {
        let rows = [
            ((0, "10.203.0.0/24", "10.244.0.0/16", "10.96.0.0/12"), "--nodes is 0"),
            ((3, "10.203.0.0/25", "10.244.0.0/16", "10.96.0.0/12"), "--node-network 10.203.0.0/25 is too small"),
            ((3, "10.244.7.0/24", "10.244.0.0/16", "10.96.0.0/12"), "--pod-cidr 10.244.0.0/16 overlaps --node-network"),
            ((3, "10.203.0.0/24", "10.100.0.0/16", "10.96.0.0/12"), "--service-cidr 10.96.0.0/12 overlaps --pod-cidr"),
            ((3, "10.203.0.0/24", "10.244.0.0/23", "10.96.0.0/12"), "fewer /24 ranges than --nodes 3"),
            ((3, "10.203.0.0/24", "10.244.0.0/16", "172.30.0.0/16"), "--cluster-dns 10.96.0.10 is not within"),
        ];
        for ((nodes, node, pod, service), expected) in rows {
            let error = plan(nodes, node, pod, service).unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} should contain {expected:?}");
        }
    }
}
