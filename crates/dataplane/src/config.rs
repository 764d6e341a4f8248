//! What the data plane is told when it starts.

use ipnet::IpNet;

use crate::sock::SockConfig;

/// Where NodePorts answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// On the addresses of the Node object's status.
    #[default]
    OfNode,
    /// On those of the node's own addresses, as its links have them, that are in one of these networks.
    In(Vec<IpNet>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Which Node of the API this is.
    pub node_name: String,
    /// Sources that count as pods of the cluster: they keep their address towards ClusterIPs and are not sent away by
    /// `externalTrafficPolicy: Local`. Empty: every source keeps its address towards ClusterIPs.
    pub pod_networks: Vec<IpNet>,
    /// Replace the source address of all traffic to ClusterIPs.
    pub masquerade_all: bool,
    /// The bit of the packet mark, 0 to 31, that asks for masquerading. No one else may use it.
    pub masquerade_bit: u8,
    pub node_port_addresses: NodePortAddresses,
    /// Lead sockets of the node and its pods to backends when they connect. Without, or where the kernel cannot,
    /// nftables translates their packets like everybody's.
    pub sockets: Option<SockConfig>,
}

impl ProxyConfig {
    /// With the defaults people know from kube-proxy: mark bit 14 and the node's primary addresses.
    #[must_use]
    pub fn new(node_name: &str, pod_networks: Vec<IpNet>) -> Self {
        Self {
            node_name: node_name.to_owned(),
            pod_networks,
            masquerade_all: false,
            masquerade_bit: 14,
            node_port_addresses: NodePortAddresses::default(),
            sockets: None,
        }
    }

    pub(crate) fn masquerade_mark(&self) -> u32 {
        1 << (self.masquerade_bit & 31)
    }
}
