//! A Service and a pod it selects -> the endpoint that the pod is, and the ports it answers on.
//!
//! Source: `discovery.k8s.io/v1` EndpointConditions and the Service API's `publishNotReadyAddresses`, `hostname` and
//! `subdomain` rules.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource, ResourceExt};

use crate::{meta, pod};

pub(crate) const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub(crate) fn is_of(self, ip: &str) -> bool {
        match ip.parse() {
            Ok(IpAddr::V4(_)) => self == Self::V4,
            Ok(IpAddr::V6(_)) => self == Self::V6,
            Err(_) => false,
        }
    }
}

/// The families that the Service's endpoints are published in.
pub(crate) fn families(service: &Service) -> Vec<Family> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let listed = spec.ip_families.iter().flatten();
    let mut families: Vec<_> = listed.map(|family| if family == "IPv6" { Family::V6 } else { Family::V4 }).collect();
    if families.is_empty() {
        let v6 = spec.cluster_ip.as_deref().is_some_and(|ip| Family::V6.is_of(ip));
        families.push(if v6 { Family::V6 } else { Family::V4 });
    }
    families
}

/// The pod's first address of the family.
pub(crate) fn address(pod: &Pod, family: Family) -> Option<String> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    listed.chain(&status.pod_ip).find(|ip| family.is_of(ip)).cloned()
}

/// Whether its endpoints are published whatever their state.
pub(crate) fn is_published_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false)
}

/// What `service` publishes of `pod`, if anything. `node` is the pod's.
pub(crate) fn endpoint(service: &Service, pod: &Pod, node: Option<&Node>, family: Family) -> Option<Endpoint> {
    if pod::is_finished(pod) {
        return None;
    }
    let address = address(pod, family)?;
    let spec = pod.spec.as_ref()?;
    let published = is_published_unready(service);
    let (serving, terminating) = (pod::is_ready(pod), meta::is_terminating(pod));
    let subdomain = spec.subdomain.as_deref().unwrap_or("");
    let hostname = spec.hostname.clone().filter(|name| !name.is_empty() && subdomain == service.name_any());
    Some(Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(published || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        node_name: spec.node_name.clone(),
        target_ref: Some(ObjectReference {
            kind: Some(Pod::kind(&()).into_owned()),
            namespace: pod.namespace(),
            name: pod.metadata.name.clone(),
            uid: pod.uid(),
            ..ObjectReference::default()
        }),
        zone: node.and_then(|node| node.labels().get(ZONE_LABEL).cloned()),
        ..Endpoint::default()
    })
}

/// The Service's ports as this pod has them. A port whose name the pod does not know is left out.
pub(crate) fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let declared = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    declared
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            let number = match port.target_port.clone() {
                None | Some(IntOrString::Int(0)) => port.port,
                Some(IntOrString::Int(number)) => number,
                Some(IntOrString::String(name)) => named_port(pod, &name, &protocol)?,
            };
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(number),
                protocol: Some(protocol),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .find(|port| port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol)
        .map(|port| port.container_port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(extra: Value) -> Service {
        let mut service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.9", "selector": {"app": "web"}}}))
        .unwrap();
        let mut spec = serde_json::to_value(&service.spec).unwrap();
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        service.spec = serde_json::from_value(spec).unwrap();
        service
    }

    fn pod(status: Value, terminating: bool) -> Pod {
        let deleted = terminating.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u", "deletionTimestamp": deleted},
            "spec": {"nodeName": "n", "hostname": "h", "subdomain": "web", "containers": [
                {"name": "c", "ports": [{"name": "http", "containerPort": 8080}, {"name": "http", "protocol": "UDP", "containerPort": 53}]}]},
            "status": status}))
        .unwrap()
    }

    fn status(ready: &str) -> Value {
        json!({"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": ready}]})
    }

    #[test]
    fn conditions_of_endpoints() {
        for (published, ready, terminating, expected) in [
            (false, "True", false, (true, true, false)),
            (false, "False", false, (false, false, false)),
            (false, "True", true, (false, true, true)),
            (false, "False", true, (false, false, true)),
            (true, "False", false, (true, false, false)),
            (true, "False", true, (true, false, true)),
        ] {
            let service = service(json!({"publishNotReadyAddresses": published}));
            let made = endpoint(&service, &pod(status(ready), terminating), None, Family::V4).unwrap();
            let conditions = made.conditions.unwrap();
            let told = (conditions.ready.unwrap(), conditions.serving.unwrap(), conditions.terminating.unwrap());
            assert_eq!(told, expected, "published {published} ready {ready} terminating {terminating}");
        }
    }

    #[test]
    fn pods_that_are_no_endpoints() {
        let of = |status| endpoint(&service(json!({})), &pod(status, false), None, Family::V4);
        assert!(of(json!({"phase": "Running"})).is_none(), "no address yet");
        assert!(of(json!({"phase": "Running", "podIP": "fd00::1"})).is_none(), "another family");
        assert!(of(json!({"phase": "Failed", "podIP": "10.0.0.1"})).is_none());
        assert!(of(json!({"phase": "Succeeded", "podIP": "10.0.0.1"})).is_none());
        assert!(of(json!({"phase": "Pending", "podIP": "10.0.0.1"})).is_some());
    }

    #[test]
    fn names_nodes_and_zones() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": {ZONE_LABEL: "z"}}})).unwrap();
        let made = endpoint(&service(json!({})), &pod(status("True"), false), Some(&node), Family::V4).unwrap();
        assert_eq!(
            (made.hostname.as_deref(), made.node_name.as_deref(), made.zone.as_deref()),
            (Some("h"), Some("n"), Some("z"))
        );
        assert_eq!(made.target_ref.unwrap().uid.as_deref(), Some("u"));
        let mut elsewhere = pod(status("True"), false);
        elsewhere.spec.as_mut().unwrap().subdomain = Some("other".into());
        assert_eq!(endpoint(&service(json!({})), &elsewhere, None, Family::V4).unwrap().hostname, None);
    }

    #[test]
    fn target_ports() {
        for (port, expected) in [
            (json!({"port": 80}), vec![(80, "TCP")]),
            (json!({"port": 80, "targetPort": 8000}), vec![(8000, "TCP")]),
            (json!({"port": 80, "targetPort": "http"}), vec![(8080, "TCP")]),
            (json!({"port": 80, "targetPort": "http", "protocol": "UDP"}), vec![(53, "UDP")]),
            (json!({"port": 80, "targetPort": "none"}), vec![]),
        ] {
            let made = ports(&service(json!({"ports": [port]})), &pod(status("True"), false));
            let told: Vec<_> =
                made.iter().map(|port| (port.port.unwrap(), port.protocol.as_deref().unwrap())).collect();
            assert_eq!(told, expected, "{port}");
        }
    }

    #[test]
    fn families_of_a_service() {
        for (extra, expected) in [
            (json!({}), vec![Family::V4]),
            (json!({"clusterIP": "fd00::9"}), vec![Family::V6]),
            (json!({"ipFamilies": ["IPv6", "IPv4"]}), vec![Family::V6, Family::V4]),
        ] {
            assert_eq!(families(&service(extra.clone())), expected, "{extra}");
        }
    }
}
