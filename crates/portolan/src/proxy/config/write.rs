//! What this proxy goes by -> the KubeProxyConfiguration that says so.
//!
//! Invariant: read again, it gives the same, but for a server that a flag has switched off: a file has no word for
//! that.
//!
//! Deliberately not here: fields that mean nothing here.

use std::time::Duration;

use portolan_dataplane::{LocalTraffic, NodePortAddresses};
use serde_json::{Value, json};

use super::{API_VERSION, Configuration, KIND};

/// The document's text, in YAML.
///
/// # Errors
/// When it cannot be said in YAML, of which nothing is known.
pub(in crate::proxy) fn write(configuration: &Configuration) -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(&document(configuration))
}

fn document(configuration: &Configuration) -> Value {
    let (mode, clusters, bridge, prefix) = match &configuration.local {
        LocalTraffic::ClusterCidr(networks) => ("ClusterCIDR", networks.as_slice(), "", ""),
        LocalTraffic::NodeCidr => ("NodeCIDR", &[][..], "", ""),
        LocalTraffic::BridgeInterface(link) => ("BridgeInterface", &[][..], link.as_str(), ""),
        LocalTraffic::InterfaceNamePrefix(prefix) => ("InterfaceNamePrefix", &[][..], "", prefix.as_str()),
    };
    let clusters: Vec<String> = clusters.iter().map(ToString::to_string).collect();
    let node_ports: Vec<String> = match &configuration.node_port_addresses {
        NodePortAddresses::OfNode => vec!["primary".to_owned()],
        NodePortAddresses::In(networks) => networks.iter().map(ToString::to_string).collect(),
    };
    let tracked = &configuration.conntrack;
    // Here no value is not the default: it leaves alone what is there.
    let time = |time: Option<Duration>| duration(time.unwrap_or_default());
    json!({
        "apiVersion": API_VERSION,
        "kind": KIND,
        "mode": "nftables",
        "hostnameOverride": configuration.node_name.as_deref().unwrap_or_default(),
        "clientConnection": {"kubeconfig": configuration.kubeconfig.as_deref().unwrap_or("".as_ref())},
        "clusterCIDR": clusters.join(","),
        "detectLocalMode": mode,
        "detectLocal": {"bridgeInterface": bridge, "interfaceNamePrefix": prefix},
        "nodePortAddresses": node_ports,
        "healthzBindAddress": configuration.healthz.map(|address| address.to_string()).unwrap_or_default(),
        "metricsBindAddress": configuration.metrics.map(|address| address.to_string()).unwrap_or_default(),
        "bindAddressHardFail": configuration.must_bind,
        "oomScoreAdj": configuration.oom_score_adj,
        "nftables": {
            "masqueradeAll": configuration.masquerade_all,
            "masqueradeBit": configuration.masquerade_bit,
            "syncPeriod": duration(configuration.sync_period),
        },
        "conntrack": {
            "maxPerCore": tracked.max_per_core.unwrap_or_default(),
            "min": tracked.min,
            "tcpEstablishedTimeout": time(tracked.tcp_established),
            "tcpCloseWaitTimeout": time(tracked.tcp_close_wait),
            "tcpBeLiberal": tracked.tcp_be_liberal,
            "udpTimeout": time(tracked.udp),
            "udpStreamTimeout": time(tracked.udp_stream),
        },
    })
}

/// As Go reads it.
fn duration(time: Duration) -> String {
    match time.subsec_nanos() {
        0 => format!("{}s", time.as_secs()),
        nanoseconds => format!("{}s{nanoseconds}ns", time.as_secs()),
    }
}
