//! Kubernetes API objects -> the model's words. The one place that knows both.
//!
//! Invariant: total. What cannot be understood is left out and named in a [`Diagnostic`]; the rest of the object
//! stands.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;

use crate::{
    Diagnostic, Endpoint, EndpointPort, EndpointSlice, Hints, Node, NodePort, OwnNames, Protocol, Service, ServiceId,
    ServicePort, ServiceType, SliceId, TrafficPolicy,
};

/// The label that ties an EndpointSlice to its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// A Service carrying this label is forwarded by the proxy it names and by no other.
pub const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// A Service carrying this label is not for proxies at all; the slices of headless Services carry it too.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

const DEFAULT_AFFINITY_SECONDS: u64 = 10_800;

/// Collects what was wrong while an object is read.
struct Reader {
    diagnostics: Vec<Diagnostic>,
}

impl Reader {
    fn complain(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.diagnostics.push(Diagnostic { field: field.into(), message: message.into() });
    }

    fn ip(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.complain(field, format!("{text:?} is not an IP address; it is ignored"));
        }
        parsed
    }

    fn net(&mut self, field: &str, text: &str) -> Option<IpNet> {
        // Users write `10.0.0.1/8` and, in source ranges, spaces around it.
        let parsed = text.trim().parse::<IpNet>().ok().map(|net| net.trunc());
        if parsed.is_none() {
            self.complain(field, format!("{text:?} is not a CIDR; it is ignored"));
        }
        parsed
    }

    fn port(&mut self, field: &str, port: i32) -> Option<u16> {
        match u16::try_from(port) {
            Ok(port) if port > 0 => Some(port),
            _ => {
                self.complain(field, format!("{port} is not a port (1-65535); it is ignored"));
                None
            }
        }
    }

    fn protocol(&mut self, field: &str, text: Option<&str>) -> Option<Protocol> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            other => {
                self.complain(field, format!("{other:?} is none of TCP, UDP, SCTP; the port is ignored"));
                None
            }
        }
    }
}

/// `None` only for an object without a name, which no API server serves.
pub fn service(object: &core::Service) -> Option<(Service, Vec<Diagnostic>)> {
    let id = ServiceId::new(object.metadata.namespace.as_deref()?, object.metadata.name.as_deref()?);
    let mut reader = Reader { diagnostics: Vec::new() };
    let spec = object.spec.clone().unwrap_or_default();
    let service_type = match spec.type_.as_deref().unwrap_or("ClusterIP") {
        "NodePort" => ServiceType::NodePort,
        "LoadBalancer" => ServiceType::LoadBalancer,
        "ExternalName" => ServiceType::ExternalName(spec.external_name.clone().unwrap_or_default()),
        "ClusterIP" => ServiceType::ClusterIp,
        other => {
            reader.complain("spec.type", format!("{other:?} is not a Service type; treated as ClusterIP"));
            ServiceType::ClusterIp
        }
    };
    let addressed = !matches!(service_type, ServiceType::ExternalName(_));
    let headless = addressed && spec.cluster_ip.as_deref() == Some("None");
    let mut cluster_ip_texts = spec.cluster_ips.clone().unwrap_or_default();
    if cluster_ip_texts.is_empty() {
        cluster_ip_texts.extend(spec.cluster_ip.clone());
    }
    let mut cluster_ips = Vec::new();
    if addressed && !headless {
        for text in cluster_ip_texts.iter().filter(|text| !text.is_empty() && *text != "None") {
            cluster_ips.extend(reader.ip("spec.clusterIPs", text));
        }
    }
    let external_ips = spec.external_ips.iter().flatten().filter_map(|ip| reader.ip("spec.externalIPs", ip)).collect();
    let mut load_balancer_ips = Vec::new();
    if service_type == ServiceType::LoadBalancer {
        let ingress = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        for entry in ingress.and_then(|status| status.ingress.as_deref()).unwrap_or_default() {
            if entry.ip_mode.as_deref() == Some("Proxy") {
                continue;
            }
            if let Some(ip) = entry.ip.as_deref().filter(|ip| !ip.is_empty()) {
                load_balancer_ips.extend(reader.ip("status.loadBalancer.ingress", ip));
            }
        }
    }
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let field = format!("spec.ports[{index}]");
        let protocol = reader.protocol(&format!("{field}.protocol"), port.protocol.as_deref());
        let number = reader.port(&format!("{field}.port"), port.port);
        let (Some(protocol), Some(number)) = (protocol, number) else { continue };
        if ports.iter().any(|other| other.protocol == protocol && other.port == number) {
            reader.complain(field, format!("{protocol} {number} appears twice; only the first counts"));
            continue;
        }
        let node_port = port
            .node_port
            .filter(|port| *port != 0)
            .and_then(|port| reader.port(&format!("{field}.nodePort"), port))
            .map(NodePort);
        ports.push(ServicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol,
            port: number,
            node_port,
        });
    }
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let configured = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = configured.and_then(|client_ip| client_ip.timeout_seconds);
        Duration::from_secs(
            seconds.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0).unwrap_or(DEFAULT_AFFINITY_SECONDS),
        )
    });
    let source_ranges = spec
        .load_balancer_source_ranges
        .iter()
        .flatten()
        .filter_map(|range| reader.net("spec.loadBalancerSourceRanges", range))
        .collect();
    let labels = object.metadata.labels.as_ref();
    let service = Service {
        id,
        headless,
        cluster_ips,
        external_ips,
        load_balancer_ips,
        ports,
        affinity,
        internal_policy: traffic_policy(spec.internal_traffic_policy.as_deref()),
        external_policy: traffic_policy(spec.external_traffic_policy.as_deref()),
        health_check_node_port: spec
            .health_check_node_port
            .filter(|port| *port != 0)
            .and_then(|port| reader.port("spec.healthCheckNodePort", port))
            .map(NodePort),
        source_ranges,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
        foreign_proxy: labels
            .is_some_and(|labels| labels.contains_key(SERVICE_PROXY_NAME_LABEL) || labels.contains_key(HEADLESS_LABEL)),
        service_type,
    };
    Some((service, reader.diagnostics))
}

fn traffic_policy(text: Option<&str>) -> TrafficPolicy {
    if text == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

/// `None` for a slice that belongs to no Service (no `kubernetes.io/service-name` label) or holds names, not addresses.
pub fn endpoint_slice(object: &discovery::EndpointSlice) -> Option<(EndpointSlice, Vec<Diagnostic>)> {
    let namespace = object.metadata.namespace.as_deref()?;
    let id = SliceId::new(namespace, object.metadata.name.as_deref()?);
    let labels = object.metadata.labels.as_ref()?;
    let service = ServiceId::new(namespace, labels.get(SERVICE_NAME_LABEL)?);
    let headless = labels.contains_key(HEADLESS_LABEL);
    let wants_ipv6 = match object.address_type.as_str() {
        "IPv4" => false,
        "IPv6" => true,
        _ => return None,
    };
    let mut reader = Reader { diagnostics: Vec::new() };
    let mut ports = Vec::new();
    for (index, port) in object.ports.iter().flatten().enumerate() {
        let Some(protocol) = reader.protocol(&format!("ports[{index}].protocol"), port.protocol.as_deref()) else {
            continue;
        };
        let number = match port.port {
            Some(number) => match reader.port(&format!("ports[{index}].port"), number) {
                Some(number) => Some(number),
                None => continue,
            },
            None => None,
        };
        ports.push(EndpointPort { name: port.name.as_deref().unwrap_or_default().into(), protocol, port: number });
    }
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    for (index, endpoint) in object.endpoints.iter().enumerate() {
        let field = format!("endpoints[{index}].addresses");
        let Some(address) = endpoint.addresses.first().and_then(|text| reader.ip(&field, text)) else { continue };
        if address.is_ipv6() != wants_ipv6 {
            reader.complain(field, format!("{address} is not of the slice's type {}; ignored", object.address_type));
            continue;
        }
        let conditions = endpoint.conditions.as_ref();
        let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        endpoints.push(Endpoint {
            address,
            ready,
            serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
            node: endpoint.node_name.as_deref().map(Arc::from),
            own: OwnNames {
                hostname: endpoint.hostname.as_deref().map(Arc::from),
                pod: target.and_then(|target| target.name.as_deref()).map(Arc::from),
            }
            .boxed(),
            hints: endpoint.hints.as_ref().and_then(hints),
        });
    }
    Some((EndpointSlice { id, service, headless, ports, endpoints }, reader.diagnostics))
}

fn hints(object: &discovery::EndpointHints) -> Option<Arc<Hints>> {
    let zones = object.for_zones.iter().flatten().map(|zone| Arc::from(zone.name.as_str()));
    let nodes = object.for_nodes.iter().flatten().map(|node| Arc::from(node.name.as_str()));
    let hints = Hints { zones: zones.collect(), nodes: nodes.collect() };
    (hints != Hints::default()).then(|| Arc::new(hints))
}

pub fn node(object: &core::Node) -> Option<Node> {
    let labels = object.metadata.labels.as_ref();
    let status = object.status.as_ref();
    let spec = object.spec.as_ref();
    let internal = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut pod_cidrs = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
    if pod_cidrs.is_empty() {
        pod_cidrs.extend(spec.and_then(|spec| spec.pod_cidr.clone()));
    }
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    Some(Node {
        name: object.metadata.name.as_deref()?.into(),
        addresses: internal.iter().filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse().ok()).collect(),
        pod_cidrs: pod_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
        zone: labels.and_then(|labels| labels.get("topology.kubernetes.io/zone")).map(|zone| zone.as_str().into()),
        ready: conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        excluded_from_load_balancers: labels
            .is_some_and(|labels| labels.contains_key("node.kubernetes.io/exclude-from-external-load-balancers")),
        going_away: object.metadata.deletion_timestamp.is_some()
            || taints.iter().any(|taint| taint.key == "ToBeDeletedByClusterAutoscaler"),
    })
}

pub fn service_cidrs(object: &networking::ServiceCIDR) -> Option<(Arc<str>, Vec<IpNet>)> {
    let cidrs = object.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    Some((object.metadata.name.as_deref()?.into(), cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_node_goes_away_when_it_is_deleted_or_about_to_be() {
        let going = |metadata: Value, taints: Value| {
            let object = json!({"metadata": metadata, "spec": {"taints": taints}});
            node(&serde_json::from_value(object).unwrap()).unwrap().going_away
        };
        let named = json!({"name": "a"});
        let taint = |key: &str| json!([{"key": key, "effect": "NoSchedule"}]);
        assert!(!going(named.clone(), taint("node.kubernetes.io/unschedulable")));
        assert!(going(named, taint("ToBeDeletedByClusterAutoscaler")));
        assert!(going(json!({"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}), json!([])));
    }
}
