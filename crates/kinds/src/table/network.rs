//! Services, Endpoints, EndpointSlices, ServiceCIDRs and IPAddresses.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::Says::{Field, Text};
use super::{AGE, Drawn, NAME, age, labels, name, or_none, shown, wide};
use crate::look::Look;

pub(super) const SERVICE: &[Drawn] = &[
    NAME,
    shown("Type", "string", Field("core.v1.ServiceSpec", "type")),
    shown("Cluster-IP", "string", Field("core.v1.ServiceSpec", "clusterIP")),
    shown("External-IP", "string", Field("core.v1.ServiceSpec", "externalIPs")),
    shown("Port(s)", "string", Field("core.v1.ServiceSpec", "ports")),
    AGE,
    wide("Selector", Field("core.v1.ServiceSpec", "selector")),
];

pub(super) const ENDPOINTS: &[Drawn] =
    &[NAME, shown("Endpoints", "string", Field("core.v1.Endpoints", "subsets")), AGE];

pub(super) const ENDPOINT_SLICE: &[Drawn] = &[
    NAME,
    shown("AddressType", "string", Field("discovery.v1.EndpointSlice", "addressType")),
    shown("Ports", "string", Field("discovery.v1.EndpointSlice", "ports")),
    shown("Endpoints", "string", Field("discovery.v1.EndpointSlice", "endpoints")),
    AGE,
];

pub(super) const INGRESS: &[Drawn] = &[
    NAME,
    shown(
        "Class",
        "string",
        Text("The name of the IngressClass resource that should be used for additional configuration"),
    ),
    shown("Hosts", "string", Text("Hosts that incoming requests are matched against before the ingress rule")),
    shown("Address", "string", Text("Address is a list containing ingress points for the load-balancer")),
    shown("Ports", "string", Text("Ports of TLS configurations that open")),
    AGE,
];

pub(super) const INGRESS_CLASS: &[Drawn] = &[
    NAME,
    shown("Controller", "string", Text("Controller that is responsible for handling this class")),
    shown("Parameters", "string", Text("A reference to a resource with additional parameters")),
    AGE,
];

pub(super) const SERVICE_CIDR: &[Drawn] =
    &[NAME, shown("CIDRs", "string", Field("networking.v1.ServiceCIDRSpec", "cidrs")), AGE];

pub(super) const IP_ADDRESS: &[Drawn] =
    &[NAME, shown("ParentRef", "string", Field("networking.v1.IPAddressSpec", "parentRef"))];

fn external(service: &Value) -> Value {
    let spec = &service["spec"];
    let ips: Vec<&str> = spec.list("externalIPs").iter().filter_map(Value::as_str).collect();
    match spec.text("type") {
        "ClusterIP" | "NodePort" => or_none(ips.join(",")),
        "LoadBalancer" => {
            let ingress = service.get_in(&["status", "loadBalancer"]).list("ingress");
            let mut all: Vec<&str> = ingress
                .iter()
                .map(|entry| if entry.text("ip").is_empty() { entry.text("hostname") } else { entry.text("ip") })
                .filter(|text| !text.is_empty())
                .collect();
            all.sort_unstable();
            all.dedup();
            all.extend(ips);
            if all.is_empty() { "<pending>".into() } else { all.join(",").into() }
        }
        "ExternalName" => spec.text("externalName").into(),
        _ => "<unknown>".into(),
    }
}

pub(super) fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let address = spec.list("clusterIPs").first().and_then(Value::as_str).unwrap_or(spec.text("clusterIP"));
    let ports: Vec<String> = spec
        .list("ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (port.int("port").unwrap_or(0), port.text("protocol"));
            match port.int("nodePort").unwrap_or(0) {
                0 => format!("{number}/{protocol}"),
                node => format!("{number}:{node}/{protocol}"),
            }
        })
        .collect();
    vec![
        name(object),
        spec.text("type").into(),
        or_none(address.to_owned()),
        external(object),
        or_none(ports.join(",")),
        age(object, now),
        labels(&spec["selector"]),
    ]
}

/// Address and port, with an IPv6 address in brackets.
fn joined(ip: &str, port: &Value) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

/// A list cut after `max` items, with how many more there are.
fn cut(items: &[String], max: usize) -> String {
    match items.len().checked_sub(max) {
        Some(more) if more > 0 => format!("{} + {more} more...", items[..max].join(",")),
        _ => items.join(","),
    }
}

pub(super) fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in object.list("subsets") {
        let addresses = || subset.list("addresses").iter().map(|address| address.text("ip"));
        if subset.list("ports").is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in subset.list("ports") {
            all.extend(addresses().map(|ip| joined(ip, &port["port"])));
        }
    }
    let cell = if object.list("subsets").is_empty() { "<none>".to_owned() } else { cut(&all, 3) };
    vec![name(object), cell.into(), age(object, now)]
}

pub(super) fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = object
        .list("ports")
        .iter()
        .map(|port| match (port.int("port"), port.text("name")) {
            (Some(number), _) => number.to_string(),
            (None, _) if !port.has("name") => "*".to_owned(),
            (None, name) => name.to_owned(),
        })
        .collect();
    let ports = if ports.is_empty() { "<unset>".to_owned() } else { cut(&ports, 3) };
    let addresses: Vec<String> = object
        .list("endpoints")
        .iter()
        .flat_map(|endpoint| endpoint.list("addresses"))
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    let addresses = if addresses.is_empty() { "<unset>".to_owned() } else { cut(&addresses, 3) };
    vec![name(object), object.text("addressType").into(), ports.into(), addresses.into(), age(object, now)]
}

pub(super) fn service_cidr(object: &Value, now: Timestamp) -> Vec<Value> {
    let cidrs: Vec<&str> = object["spec"].list("cidrs").iter().filter_map(Value::as_str).collect();
    vec![name(object), cidrs.join(",").into(), age(object, now)]
}

pub(super) fn ip_address(object: &Value) -> Vec<Value> {
    let parent = &object["spec"]["parentRef"];
    let resource = match (parent.text("resource"), parent.text("group")) {
        (resource, "") => resource.to_owned(),
        (resource, group) => format!("{resource}.{group}"),
    };
    let parts = [resource.as_str(), parent.text("namespace"), parent.text("name")];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    vec![name(object), or_none(parts.join("/"))]
}

pub(super) fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let class = if spec.has("ingressClassName") { spec.text("ingressClassName") } else { "<none>" };
    let hosts: Vec<String> =
        spec.list("rules").iter().map(|rule| rule.text("host").to_owned()).filter(|host| !host.is_empty()).collect();
    let hosts = if hosts.is_empty() { "*".to_owned() } else { cut(&hosts, 3) };
    let points = object["status"]["loadBalancer"].list("ingress").iter();
    let addresses: BTreeSet<&str> = points
        .map(|point| if point.text("ip").is_empty() { point.text("hostname") } else { point.text("ip") })
        .filter(|address| !address.is_empty())
        .collect();
    let addresses: Vec<&str> = addresses.into_iter().collect();
    let ports = if spec.list("tls").is_empty() { "80" } else { "80, 443" };
    vec![name(object), class.into(), hosts.into(), addresses.join(",").into(), ports.into(), age(object, now)]
}

pub(super) fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let annotations = &object["metadata"]["annotations"];
    let is_default = annotations.text("ingressclass.kubernetes.io/is-default-class") == "true";
    let name = format!("{}{}", object["metadata"].text("name"), if is_default { " (default)" } else { "" });
    let parameters = &object["spec"]["parameters"];
    let parameters = match (parameters.text("kind"), parameters.text("apiGroup")) {
        _ if parameters.is_null() => "<none>".to_owned(),
        (kind, "") => format!("{kind}/{}", parameters.text("name")),
        (kind, group) => format!("{kind}.{group}/{}", parameters.text("name")),
    };
    vec![name.into(), object["spec"].text("controller").into(), parameters.into(), age(object, now)]
}
