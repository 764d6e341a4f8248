//! What the data plane is told when it starts.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::Snapshot;
use portolan_model::forwarding::{NodeContext, PodLink};

use crate::sock::SockConfig;

/// How pods are told from others. Pods keep their address towards ClusterIPs and are not sent away by
/// `externalTrafficPolicy: Local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalTraffic {
    /// By their addresses, all over the cluster. Without a network of a family, every source of that family keeps its
    /// address towards ClusterIPs.
    ClusterCidr(Vec<IpNet>),
    /// By the Node's `spec.podCIDRs`: pods of other nodes are outsiders.
    NodeCidr,
    /// By the link that their packets come in by.
    BridgeInterface(String),
    InterfaceNamePrefix(String),
}

/// Where NodePorts answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// On the first address of each family in the Node object's status.
    #[default]
    OfNode,
    /// On those of the node's own addresses, as its links have them, that are in one of these networks.
    In(Vec<IpNet>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Which Node of the API this is.
    pub node_name: String,
    pub local: LocalTraffic,
    /// Replace the source address of all traffic to ClusterIPs.
    pub masquerade_all: bool,
    /// The bit of the packet mark, 0 to 31, that asks for masquerading. No one else may use it.
    pub masquerade_bit: u8,
    pub node_port_addresses: NodePortAddresses,
    /// Count connections, packets and bytes of each frontend, which costs every packet of a connection to a Service one
    /// lookup more.
    pub counters: bool,
    /// Lead sockets of the node and its pods to backends when they connect. Without, or where the kernel cannot,
    /// nftables translates their packets like everybody's.
    pub sockets: Option<SockConfig>,
}

impl ProxyConfig {
    /// With the defaults people know from kube-proxy: mark bit 14 and the node's primary addresses.
    #[must_use]
    pub fn new(node_name: &str, local: LocalTraffic) -> Self {
        Self {
            node_name: node_name.to_owned(),
            local,
            masquerade_all: false,
            masquerade_bit: 14,
            node_port_addresses: NodePortAddresses::default(),
            counters: false,
            sockets: None,
        }
    }

    pub(crate) fn masquerade_mark(&self) -> u32 {
        1 << (self.masquerade_bit & 31)
    }

    /// What this configuration makes of the snapshot on a node whose links have these addresses.
    #[must_use]
    pub fn node_context(&self, snapshot: &Snapshot, own_addresses: &[IpAddr]) -> NodeContext {
        let (pod_networks, pod_link) = match &self.local {
            LocalTraffic::ClusterCidr(networks) => (networks.clone(), None),
            LocalTraffic::NodeCidr => {
                (snapshot.node(&self.node_name).map(|node| node.pod_cidrs.clone()).unwrap_or_default(), None)
            }
            LocalTraffic::BridgeInterface(link) => (Vec::new(), Some(PodLink::Named(link.clone()))),
            LocalTraffic::InterfaceNamePrefix(prefix) => (Vec::new(), Some(PodLink::Prefixed(prefix.clone()))),
        };
        let mut node = NodeContext::from_snapshot(snapshot, &self.node_name, &pod_networks);
        node.pod_link = pod_link;
        if let NodePortAddresses::In(networks) = &self.node_port_addresses {
            let chosen =
                |address: &&IpAddr| !address.is_loopback() && networks.iter().any(|network| network.contains(*address));
            node.node_port_addresses = own_addresses.iter().filter(chosen).copied().collect();
        }
        // What the status lists and a link has comes first, then what links have; the rest may be another machine's.
        let (mut own, elsewhere): (Vec<_>, Vec<_>) =
            node.own_addresses.iter().copied().partition(|address| own_addresses.contains(address));
        for address in own_addresses.iter().copied().chain(elsewhere) {
            if !own.contains(&address) {
                own.push(address);
            }
        }
        node.own_addresses = own;
        node.masquerade_all = self.masquerade_all;
        node
    }
}
