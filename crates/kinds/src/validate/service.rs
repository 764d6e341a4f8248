//! Services.

use std::collections::HashSet;

use serde_json::Value;

use super::{Errors, address, metadata, port_or_name};
use crate::look::{Look, Path, repeats};
use crate::names;
use crate::service::{externally_accessible, is_headless, needs_cluster_ip, needs_health_check, spec_type};
use crate::{FieldError, FieldErrorKind};

const SPEC: Path<'static> = Path::Field(&Path::Root, "spec");
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Longest session affinity, in seconds.
const MAX_AFFINITY: i64 = 86400;

pub(super) fn service(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    let spec = &new["spec"];
    if let Some(old) = old {
        transitions(errors, spec, &old["spec"]);
    }
    let hints = new.get_in(&["metadata", "annotations", "service.kubernetes.io/topology-aware-hints"]);
    let mode = new.get_in(&["metadata", "annotations", "service.kubernetes.io/topology-mode"]);
    if !hints.is_null() && !mode.is_null() && hints != mode {
        errors.invalid(
            &Path::Root.field("metadata").field("annotations").key("service.kubernetes.io/topology-mode"),
            mode.clone(),
            "must match annotations[service.kubernetes.io/topology-aware-hints] when both are specified",
        );
    }
    let headless = is_headless(spec);
    let list = SPEC.field("ports");
    let ports = spec.list("ports");
    if ports.is_empty() && !headless && spec_type(spec) != "ExternalName" {
        errors.required(&list, "");
    }
    by_type(errors, spec, headless);
    let name_repeats = repeats(ports.iter().map(|port| port.text("name")));
    for (index, port) in ports.iter().enumerate() {
        one_port(errors, port, ports.len() > 1, name_repeats[index], &list.index(index));
    }
    metadata::labels(errors, &spec["selector"], &SPEC.field("selector"));
    affinity(errors, spec);
    cluster_ips(errors, spec, old.map(|old| &old["spec"]));
    let list = SPEC.field("externalIPs");
    let before: HashSet<&Value> = old.iter().flat_map(|old| old["spec"].list("externalIPs")).collect();
    for (index, ip) in spec.list("externalIPs").iter().enumerate() {
        let (path, text) = (list.index(index), ip.as_str().unwrap_or_default());
        if before.contains(ip) || address::legacy(errors, &path, text) {
            address::endpoint(errors, &path, text);
        }
    }
    errors.one_of(&SPEC.field("type"), spec_type(spec), &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    if spec_type(spec) == "ClusterIP" {
        let list = SPEC.field("ports");
        for (index, _) in ports.iter().enumerate().filter(|(_, port)| node_port(port) != 0) {
            errors.forbidden(&list.index(index).field("nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
    }
    duplicate_ports(errors, ports);
    source_ranges(errors, new, old);
    load_balancer(errors, spec);
    traffic(errors, spec);
}

fn node_port(port: &Value) -> i64 {
    port.int("nodePort").unwrap_or(0)
}

fn by_type(errors: &mut Errors, spec: &Value, headless: bool) {
    let kind = spec_type(spec);
    match kind {
        "LoadBalancer" | "NodePort" if headless => errors.invalid(
            &SPEC.field("clusterIPs").index(0),
            "None",
            format!("may not be set to 'None' for {kind} services"),
        ),
        "ExternalName" => {
            for (field, set) in [
                ("clusterIPs", !spec.list("clusterIPs").is_empty()),
                ("ipFamilies", !spec.list("ipFamilies").is_empty()),
                ("ipFamilyPolicy", spec.has("ipFamilyPolicy")),
            ] {
                if set {
                    errors.forbidden(&SPEC.field(field), "may not be set for ExternalName services");
                }
            }
            let name = spec.text("externalName");
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() {
                errors.required(&SPEC.field("externalName"), "");
            } else {
                errors.each(&SPEC.field("externalName"), name, names::dns1123_subdomain(name));
            }
        }
        _ => {}
    }
}

fn one_port(errors: &mut Errors, port: &Value, name_required: bool, name_repeats: bool, path: &Path<'_>) {
    let name = port.text("name");
    if name.is_empty() {
        if name_required {
            errors.required(&path.field("name"), "");
        }
    } else {
        errors.each(&path.field("name"), name, names::dns1123_label(name));
        if name_repeats {
            errors.duplicate(&path.field("name"), name);
        }
    }
    errors.port(&path.field("port"), port.int("port").unwrap_or(0));
    errors.one_of(&path.field("protocol"), port.text("protocol"), &PROTOCOLS);
    port_or_name(errors, &port["targetPort"], &path.field("targetPort"));
    if let Some(protocol) = port["appProtocol"].as_str() {
        errors.each(&path.field("appProtocol"), protocol, names::qualified_name(protocol));
    }
}

fn affinity(errors: &mut Errors, spec: &Value) {
    let kind = spec.text("sessionAffinity");
    errors.one_of(&SPEC.field("sessionAffinity"), kind, &["ClientIP", "None"]);
    let path = SPEC.field("sessionAffinityConfig");
    match kind {
        "ClientIP" => {
            let missing = "when session affinity type is ClientIP";
            let config = &spec["sessionAffinityConfig"];
            let client_ip = path.field("clientIP");
            let timeout = client_ip.field("timeoutSeconds");
            if config.is_null() {
                errors.required(&path, missing);
            } else if config["clientIP"].is_null() {
                errors.required(&client_ip, missing);
            } else {
                match config["clientIP"].int("timeoutSeconds") {
                    None => errors.required(&timeout, missing),
                    Some(seconds) if !(1..=MAX_AFFINITY).contains(&seconds) => errors.invalid(
                        &timeout,
                        seconds,
                        format!("must be greater than 0 and less than {MAX_AFFINITY}"),
                    ),
                    Some(_) => {}
                }
            }
        }
        "None" if spec.has("sessionAffinityConfig") => {
            errors.forbidden(&path, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

/// What is wrong with the addresses and families of a Service's spec alone.
pub(crate) fn cluster_ips_alone(spec: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    cluster_ips(&mut errors, spec, old);
    errors.0
}

fn cluster_ips(errors: &mut Errors, spec: &Value, old: Option<&Value>) {
    if spec_type(spec) == "ExternalName" {
        return;
    }
    let path = SPEC.field("clusterIPs");
    let ips = spec.list("clusterIPs");
    let one = spec.text("clusterIP");
    match (one.is_empty(), ips.first()) {
        (false, None) => errors.required(&path, ""),
        (false, Some(first)) if first != one => {
            errors.invalid(&path, spec["clusterIPs"].clone(), "first value must match `clusterIP`");
        }
        (true, Some(_)) => {
            errors.invalid(&path, spec["clusterIPs"].clone(), "must be empty when `clusterIP` is not specified")
        }
        _ => {}
    }
    let families = spec.list("ipFamilies");
    let list = SPEC.field("ipFamilies");
    let repeats = repeats(families);
    for (index, family) in families.iter().enumerate() {
        if family != "IPv4" && family != "IPv6" {
            errors.not_supported(&list.index(index), family.clone(), &["IPv4", "IPv6"]);
        }
        if repeats[index] {
            errors.duplicate(&list.index(index), family.clone());
        }
    }
    let policy = spec.text("ipFamilyPolicy");
    if spec.has("ipFamilyPolicy") {
        let supported = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        if !supported.contains(&policy) {
            errors.not_supported(&SPEC.field("ipFamilyPolicy"), policy, &supported);
        }
    }
    let mut bad = false;
    for (index, ip) in ips.iter().enumerate() {
        if index == 0 && ip == "None" {
            if ips.len() > 1 {
                bad = true;
                errors.invalid(&path, spec["clusterIPs"].clone(), "'None' must be the first and only value");
            }
            continue;
        }
        let existed = old.is_some_and(|old| old.list("clusterIPs").contains(ip));
        bad |= !existed && !address::legacy(errors, &path.index(index), ip.as_str().unwrap_or_default());
    }
    if ips.len() > 2 {
        errors.invalid(&path, spec["clusterIPs"].clone(), "may only hold up to 2 values");
    }
    if bad {
        return;
    }
    let is_v6 = |ip: &Value| address::parse_legacy(ip.as_str().unwrap_or_default()).is_some_and(|ip| ip.is_ipv6());
    if ips.len() > 1 && !(ips.iter().any(is_v6) && ips.iter().any(|ip| !is_v6(ip))) {
        errors.invalid(&path, spec["clusterIPs"].clone(), "may specify no more than one IP for each IP family");
    }
    // By its addresses alone: what else it says was looked at above.
    if !matches!(ips, [Value::String(only)] if only == "None") {
        for (index, (ip, family)) in ips.iter().zip(families).enumerate() {
            let expected = family.as_str().unwrap_or_default();
            if (expected == "IPv4" && is_v6(ip)) || (expected == "IPv6" && !is_v6(ip)) {
                errors.invalid(
                    &path.index(index),
                    ip.clone(),
                    format!("expected an {expected} value as indicated by `ipFamilies[{index}]`"),
                );
            }
        }
    }
}

fn duplicate_ports(errors: &mut Errors, ports: &[Value]) {
    let list = SPEC.field("ports");
    let twice = |field: &str| repeats(ports.iter().map(|port| (&port["protocol"], &port[field])));
    let (node_ports_repeat, ports_repeat) = (twice("nodePort"), twice("port"));
    for (index, port) in ports.iter().enumerate() {
        if node_port(port) != 0 && node_ports_repeat[index] {
            errors.duplicate(&list.index(index).field("nodePort"), port["nodePort"].clone());
        }
    }
    for (index, port) in ports.iter().enumerate() {
        if ports_repeat[index] {
            // Upstream writes its internal type here, with fields in Go's order.
            let value = format!(
                "{{\"Name\":\"\",\"Protocol\":{},\"AppProtocol\":null,\"Port\":{},\"TargetPort\":0,\"NodePort\":0}}",
                port["protocol"], port["port"]
            );
            let kind = FieldErrorKind::Duplicate;
            errors.push(FieldError::new(kind, list.index(index), None, value));
        }
    }
}

fn source_ranges(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    let spec = &new["spec"];
    let only = "may only be used when `type` is 'LoadBalancer'";
    let ranges = spec.list("loadBalancerSourceRanges");
    let annotation = new.get_in(&["metadata", "annotations", SOURCE_RANGES]).as_str();
    if !ranges.is_empty() {
        let path = SPEC.field("LoadBalancerSourceRanges");
        if spec_type(spec) != "LoadBalancer" {
            errors.forbidden(&path, only);
        }
        for (index, range) in ranges.iter().enumerate() {
            let existed = old.is_some_and(|old| old["spec"].list("loadBalancerSourceRanges").contains(range));
            if !existed {
                address::legacy_cidr(errors, &path.index(index), range.as_str().unwrap_or_default().trim());
            }
        }
    } else if let Some(text) = annotation {
        let annotations = Path::Root.field("metadata");
        let annotations = annotations.field("annotations");
        let path = annotations.key(SOURCE_RANGES);
        if spec_type(spec) != "LoadBalancer" {
            errors.forbidden(&path, only);
        }
        let before = old.map(|old| old.get_in(&["metadata", "annotations", SOURCE_RANGES]));
        if before.and_then(Value::as_str) != Some(text) && !text.trim().is_empty() {
            for range in text.split(',') {
                address::legacy_cidr(errors, &path, range.trim());
            }
        }
    }
}

fn load_balancer(errors: &mut Errors, spec: &Value) {
    let only = "may only be used when `type` is 'LoadBalancer'";
    let balanced = spec_type(spec) == "LoadBalancer";
    if spec.has("allocateLoadBalancerNodePorts") && !balanced {
        errors.forbidden(&SPEC.field("allocateLoadBalancerNodePorts"), only);
    }
    if balanced && !spec.has("allocateLoadBalancerNodePorts") {
        errors.required(&Path::Root.field("allocateLoadBalancerNodePorts"), "");
    }
    if let Some(class) = spec["loadBalancerClass"].as_str() {
        let path = SPEC.field("loadBalancerClass");
        if balanced {
            errors.each(&path, class, names::qualified_name(class));
        } else {
            errors.forbidden(&path, only);
        }
    }
}

fn traffic(errors: &mut Errors, spec: &Value) {
    let path = SPEC.field("externalTrafficPolicy");
    let policy = spec.text("externalTrafficPolicy");
    if externally_accessible(spec) {
        errors.one_of(&path, policy, &["Cluster", "Local"]);
    } else if !policy.is_empty() {
        errors.invalid(&path, policy, "may only be set for externally-accessible services");
    }
    let path = SPEC.field("healthCheckNodePort");
    let port = spec.int("healthCheckNodePort").unwrap_or(0);
    if needs_health_check(spec) {
        // 0 is for allocation to fill in.
        if port != 0 {
            errors.port(&path, port);
        }
    } else if port != 0 {
        errors.invalid(
            &path,
            port,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        );
    }
    let path = SPEC.field("internalTrafficPolicy");
    match spec["internalTrafficPolicy"].as_str() {
        None => {
            if matches!(spec_type(spec), "NodePort" | "LoadBalancer" | "ClusterIP") {
                errors.required(&path, "");
            }
        }
        Some(policy) => {
            if !["Cluster", "Local"].contains(&policy) {
                errors.not_supported(&path, policy, &["Cluster", "Local"]);
            }
        }
    }
    if let Some(distribution) = spec["trafficDistribution"].as_str() {
        let supported = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        if !supported.contains(&distribution) {
            errors.not_supported(&SPEC.field("trafficDistribution"), distribution, &supported);
        }
    }
}

/// What may not change from one version of a Service to the next.
fn transitions(errors: &mut Errors, new: &Value, old: &Value) {
    if needs_cluster_ip(new) && needs_cluster_ip(old) {
        cluster_ips_kept(errors, new, old);
        families_kept(errors, new, old);
    }
    let balanced = |spec: &Value| spec_type(spec) == "LoadBalancer";
    if balanced(new) && balanced(old) && new["loadBalancerClass"] != old["loadBalancerClass"] {
        errors.invalid(&SPEC.field("loadBalancerClass"), new["loadBalancerClass"].clone(), "may not change once set");
    }
    if needs_health_check(old) && needs_health_check(new) && new["healthCheckNodePort"] != old["healthCheckNodePort"] {
        errors.forbidden(&SPEC.field("healthCheckNodePort"), "field is immutable");
    }
}

fn cluster_ips_kept(errors: &mut Errors, new: &Value, old: &Value) {
    if is_headless(new) && is_headless(old) {
        return;
    }
    let list = SPEC.field("clusterIPs");
    let (now, before) = (new.list("clusterIPs"), old.list("clusterIPs"));
    let value = || new["clusterIPs"].clone();
    if now.len() == before.len() {
        for index in (0..now.len()).filter(|index| now[*index] != before[*index]) {
            errors.invalid(&list.index(index), value(), "may not change once set");
        }
        return;
    }
    if now.len() < before.len() && now.is_empty() {
        errors.invalid(&list.index(0), value(), "primary clusterIP can not be unset");
    }
    if let (Some(now), Some(before)) = (now.first(), before.first())
        && now != before
    {
        errors.invalid(&list.index(0), value(), "may not change once set");
    }
    if now.len() < before.len() && now.len() == 1 && new.text("ipFamilyPolicy") != "SingleStack" {
        errors.invalid(
            &SPEC.field("ipFamilyPolicy"),
            new["ipFamilyPolicy"].clone(),
            "must be set to 'SingleStack' when releasing the secondary clusterIP",
        );
    }
}

fn families_kept(errors: &mut Errors, new: &Value, old: &Value) {
    if is_headless(new) || is_headless(old) {
        return;
    }
    let path = SPEC.field("ipFamilies");
    let (now, before) = (new.list("ipFamilies"), old.list("ipFamilies"));
    if now.is_empty() && new.list("clusterIPs").is_empty() && !before.is_empty() {
        errors.invalid(&path.index(0), new["ipFamilies"].clone(), "primary ipFamily can not be unset");
    }
    let differing = if now.len() == before.len() { now.len() } else { now.len().min(before.len()).min(1) };
    for _ in (0..differing).filter(|index| now[*index] != before[*index]) {
        errors.invalid(&path.index(0), new["ipFamilies"].clone(), "may not change once set");
    }
    if now.len() < before.len() && now.len() == 1 && new.text("ipFamilyPolicy") != "SingleStack" {
        errors.invalid(
            &SPEC.field("ipFamilyPolicy"),
            new["ipFamilyPolicy"].clone(),
            "must be set to 'SingleStack' when releasing the secondary ipFamily",
        );
    }
}

pub(super) fn status(errors: &mut Errors, new: &Value, old: &Value) {
    let status = Path::Root.field("status");
    let balancer = status.field("loadBalancer");
    let list = balancer.field("ingress");
    let ingress = new.get_in(&["status", "loadBalancer"]).list("ingress");
    if spec_type(&new["spec"]) != "LoadBalancer" {
        if !ingress.is_empty() {
            errors.forbidden(&list, "may only be used when `spec.type` is 'LoadBalancer'");
        }
        return;
    }
    let before: HashSet<&str> =
        old.get_in(&["status", "loadBalancer"]).list("ingress").iter().map(|entry| entry.text("ip")).collect();
    for (index, entry) in ingress.iter().enumerate() {
        let path = list.index(index);
        let (ip, mode) = (entry.text("ip"), &entry["ipMode"]);
        if !ip.is_empty() && !before.contains(ip) {
            address::legacy(errors, &path.field("ip"), ip);
        }
        match (mode.as_str(), ip.is_empty()) {
            (None, false) => errors.required(&path.field("ipMode"), "must be specified when `ip` is set"),
            (Some(_), true) => errors.forbidden(&path.field("ipMode"), "may not be specified when `ip` is not set"),
            (Some(mode), false) if !["Proxy", "VIP"].contains(&mode) => {
                errors.not_supported(&path.field("ipMode"), mode, &["Proxy", "VIP"]);
            }
            _ => {}
        }
        let hostname = entry.text("hostname");
        if !hostname.is_empty() {
            errors.each(&path.field("hostname"), hostname, names::dns1123_subdomain(hostname));
            if address::parse_legacy(hostname).is_some() {
                errors.invalid(&path.field("hostname"), hostname, "must be a DNS name, not an IP address");
            }
        }
    }
}
