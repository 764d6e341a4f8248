//! Endpoints and EndpointSlices.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Errors, address};
use crate::look::{Look, Path};
use crate::names;

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20000;
const MAX_HINTS: usize = 8;
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

pub(super) fn endpoints(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    // What was stored under older rules may stay.
    if old.is_some_and(|old| old["subsets"] == new["subsets"]) {
        return;
    }
    let list = Path::Root.field("subsets");
    for (index, subset) in new.list("subsets").iter().enumerate() {
        let path = list.index(index);
        if subset.list("addresses").is_empty() && subset.list("notReadyAddresses").is_empty() {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for field in ["addresses", "notReadyAddresses"] {
            let list = path.field(field);
            for (index, item) in subset.list(field).iter().enumerate() {
                subset_address(errors, item, &list.index(index));
            }
        }
        let list = path.field("ports");
        let ports = subset.list("ports");
        for (index, port) in ports.iter().enumerate() {
            let path = list.index(index);
            let name = port.text("name");
            if !name.is_empty() {
                errors.each(&path.field("name"), name, names::dns1123_label(name));
            } else if ports.len() > 1 {
                errors.required(&path.field("name"), "");
            }
            errors.port(&path.field("port"), port.int("port").unwrap_or(0));
            errors.one_of(&path.field("protocol"), port.text("protocol"), &PROTOCOLS);
            app_protocol(errors, port, &path);
        }
    }
}

fn subset_address(errors: &mut Errors, item: &Value, path: &Path<'_>) {
    let ip = item.text("ip");
    address::legacy(errors, &path.field("ip"), ip);
    hostname(errors, item, path);
    node_name(errors, item, path);
    address::endpoint(errors, &path.field("ip"), ip);
}

fn hostname(errors: &mut Errors, item: &Value, path: &Path<'_>) {
    let name = item.text("hostname");
    if !name.is_empty() {
        errors.each(&path.field("hostname"), name, names::dns1123_label(name));
    }
}

fn node_name(errors: &mut Errors, item: &Value, path: &Path<'_>) {
    if let Some(name) = item["nodeName"].as_str() {
        errors.each(&path.field("nodeName"), name, names::dns1123_subdomain(name));
    }
}

fn app_protocol(errors: &mut Errors, port: &Value, path: &Path<'_>) {
    if let Some(protocol) = port["appProtocol"].as_str() {
        errors.each(&path.field("appProtocol"), protocol, names::qualified_name(protocol));
    }
}

pub(super) fn slice(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    let kind = new.text("addressType");
    errors.one_of(&Path::Root.field("addressType"), kind, &["FQDN", "IPv4", "IPv6"]);
    slice_endpoints(errors, new.list("endpoints"), kind);
    slice_ports(errors, new.list("ports"));
    if let Some(old) = old {
        errors.immutable(&Path::Root.field("addressType"), &new["addressType"], &old["addressType"]);
    }
}

fn slice_endpoints(errors: &mut Errors, endpoints: &[Value], kind: &str) {
    let list = Path::Root.field("endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.too_many(&list, endpoints.len(), MAX_ENDPOINTS);
        return;
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = list.index(index);
        let list = path.field("addresses");
        let addresses = endpoint.list("addresses");
        if addresses.is_empty() {
            errors.required(&list, "must contain at least 1 address");
        } else if addresses.len() > MAX_ADDRESSES {
            errors.too_many(&list, addresses.len(), MAX_ADDRESSES);
        }
        for (index, item) in addresses.iter().enumerate() {
            slice_address(errors, item.as_str().unwrap_or_default(), kind, (&list, index));
        }
        node_name(errors, endpoint, &path);
        if let Some(name) = endpoint["hostname"].as_str() {
            errors.each(&path.field("hostname"), name, names::dns1123_label(name));
        }
        let hints = path.field("hints");
        for field in ["forZones", "forNodes"] {
            let list = hints.field(field);
            let names_of = endpoint["hints"].list(field);
            if names_of.len() > MAX_HINTS {
                errors.too_many(&list, names_of.len(), MAX_HINTS);
                continue;
            }
            for (index, hint) in names_of.iter().enumerate() {
                let name = hint.text("name");
                let path = list.index(index);
                let path = path.field("name");
                if names_of[..index].iter().any(|other| other.text("name") == name) {
                    errors.duplicate(&path, name);
                }
                let wrong = if field == "forZones" { names::label_value(name) } else { names::dns1123_subdomain(name) };
                errors.each(&path, name, wrong);
            }
        }
    }
}

fn slice_address(errors: &mut Errors, text: &str, kind: &str, (list, index): (&Path<'_>, usize)) {
    let path = &list.index(index);
    match kind {
        "IPv4" | "IPv6" => {
            if !address::legacy(errors, path, text) {
                return;
            }
            if address::parse_legacy(text).is_some_and(|ip| ip.is_ipv4() != (kind == "IPv4")) {
                errors.invalid(list, text, format!("must be an {kind} address"));
            }
            address::endpoint(errors, path, text);
        }
        "FQDN" => {
            let name = text.strip_suffix('.').unwrap_or(text);
            if text.is_empty() {
                errors.required(path, "");
                return;
            }
            let wrong = names::dns1123_subdomain(name);
            if !wrong.is_empty() {
                errors.invalid(path, name, wrong.join(","));
            } else if !name.contains('.') {
                errors.invalid(path, name, "should be a domain with at least two segments separated by dots");
            } else {
                for label in name.split('.') {
                    let wrong = names::dns1123_label(label);
                    if !wrong.is_empty() {
                        errors.invalid(path, label, wrong.join(","));
                    }
                }
            }
        }
        _ => {}
    }
}

fn slice_ports(errors: &mut Errors, ports: &[Value]) {
    let list = Path::Root.field("ports");
    if ports.len() > MAX_PORTS {
        errors.too_many(&list, ports.len(), MAX_PORTS);
        return;
    }
    let mut names_seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = list.index(index);
        let name = port.text("name");
        if !name.is_empty() {
            errors.each(&path.field("name"), name, names::dns1123_label(name));
        }
        if !names_seen.insert(name) {
            errors.duplicate(&path.field("name"), name);
        }
        let protocol = port.text("protocol");
        if !PROTOCOLS.contains(&protocol) {
            errors.not_supported(&path.field("protocol"), protocol, &PROTOCOLS);
        }
        app_protocol(errors, port, &path);
    }
}
