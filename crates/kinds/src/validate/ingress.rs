//! Ingresses and their classes. What they mean is for whoever implements them.

use serde_json::Value;

use super::{Errors, address};
use crate::look::{Look, Path};
use crate::names;

const SPEC: Path<'static> = Path::Field(&Path::Root, "spec");
const CLASS: &str = "kubernetes.io/ingress.class";
/// What no exact path or prefix may have in it, or at its end.
const WITHIN: [&str; 6] = ["//", "/./", "/../", "%2f", "%2F", "#"];
const AT_END: [&str; 2] = ["/..", "/."];
const LONGEST_CONTROLLER: usize = 250;

pub(super) fn ingress(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    let spec = &new["spec"];
    let rules = spec.list("rules");
    if rules.is_empty() && !spec.has("defaultBackend") {
        errors.invalid(&SPEC, Value::Null, "either `defaultBackend` or `rules` must be specified");
    }
    if spec.has("defaultBackend") {
        backend(errors, &spec["defaultBackend"], &SPEC.field("defaultBackend"));
    }
    let at = SPEC.field("rules");
    for (index, rule) in rules.iter().enumerate() {
        let at = at.index(index);
        let host = rule.text("host");
        if !host.is_empty() {
            host_name(errors, host, &at.field("host"), true);
        }
        if rule.has("http") {
            http(errors, &rule["http"], &at.field("http"));
        }
    }
    let at = SPEC.field("tls");
    for (index, tls) in spec.list("tls").iter().enumerate() {
        let at = at.index(index);
        let hosts = at.field("hosts");
        for (index, host) in tls.list("hosts").iter().filter_map(Value::as_str).enumerate() {
            host_name(errors, host, &hosts.index(index), false);
        }
        let secret = tls.text("secretName");
        if !secret.is_empty() {
            errors.each(&at.field("secretName"), secret, names::dns1123_subdomain(secret));
        }
    }
    if spec.has("ingressClassName") {
        let class = spec.text("ingressClassName");
        errors.each(&SPEC.field("ingressClassName"), class, names::dns1123_subdomain(class));
        let annotation = &new["metadata"]["annotations"][CLASS];
        if old.is_none() && annotation.as_str().is_some_and(|annotation| annotation != class) {
            let path = Path::Field(&Path::Root, "annotations");
            let words = "must match `ingressClassName` when both are specified";
            errors.invalid(&path.field(CLASS), annotation.clone(), words);
        }
    }
}

fn host_name(errors: &mut Errors, host: &str, path: &Path<'_>, may_look_like_address: bool) {
    if may_look_like_address && address::parse_legacy(host).is_some() {
        errors.invalid(path, host, "must be a DNS name, not an IP address");
    }
    if host.contains('*') {
        errors.each(path, host, names::wildcard_subdomain(host));
    } else {
        errors.each(path, host, names::dns1123_subdomain(host));
    }
}

fn http(errors: &mut Errors, http: &Value, path: &Path<'_>) {
    let at = path.field("paths");
    if http.list("paths").is_empty() {
        errors.required(&at, "");
    }
    for (index, route) in http.list("paths").iter().enumerate() {
        let at = at.index(index);
        let (text, at_path) = (route.text("path"), at.field("path"));
        match route.text("pathType") {
            "" => {
                errors.required(&at.field("pathType"), "pathType must be specified");
                continue;
            }
            "Exact" | "Prefix" => {
                if !text.starts_with('/') {
                    errors.invalid(&at_path, text, "must be an absolute path");
                }
                for sequence in WITHIN.into_iter().filter(|sequence| text.contains(sequence)) {
                    errors.invalid(&at_path, text, format!("must not contain '{sequence}'"));
                }
                for end in AT_END.into_iter().filter(|end| text.ends_with(end)) {
                    errors.invalid(&at_path, text, format!("cannot end with '{end}'"));
                }
            }
            "ImplementationSpecific" => {
                if !text.is_empty() && !text.starts_with('/') {
                    errors.invalid(&at_path, text, "must be an absolute path");
                }
            }
            other => {
                let supported = ["Exact", "ImplementationSpecific", "Prefix"];
                errors.not_supported(&at.field("pathType"), other, &supported);
            }
        }
        backend(errors, &route["backend"], &at.field("backend"));
    }
}

fn backend(errors: &mut Errors, backend: &Value, path: &Path<'_>) {
    let service = &backend["service"];
    match (backend.has("resource"), backend.has("service")) {
        (true, true) => errors.invalid(path, "", "cannot set both resource and service backends"),
        (true, false) => reference(errors, &backend["resource"], &path.field("resource")),
        (false, false) => errors.invalid(path, "", "resource or service backend is required"),
        (false, true) => {
            let at = path.field("service");
            let name = service.text("name");
            if name.is_empty() {
                errors.required(&at.field("name"), "");
            } else {
                errors.each(&at.field("name"), name, names::dns1035_label(name));
            }
            let (port, at) = (&service["port"], at.field("port"));
            match (port.text("name"), port.int("number").unwrap_or(0)) {
                ("", 0) => errors.required(path, "port name or number is required"),
                ("", number) => errors.port(&at.field("number"), number),
                (name, 0) => errors.each(&at.field("name"), name, names::port_name(name)),
                _ => errors.invalid(path, "", "cannot set both port name & port number"),
            }
        }
    }
}

/// Something of a kind and a name, in any group.
fn reference(errors: &mut Errors, reference: &Value, path: &Path<'_>) {
    if reference.has("apiGroup") {
        let group = reference.text("apiGroup");
        errors.each(&path.field("apiGroup"), group, names::dns1123_subdomain(group));
    }
    for field in ["kind", "name"] {
        match reference.text(field) {
            "" => errors.required(&path.field(field), ""),
            text => errors.each(&path.field(field), text, names::path_segment(text)),
        }
    }
}

pub(super) fn class(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    let spec = &new["spec"];
    let at = SPEC.field("controller");
    if let Some(old) = old {
        errors.immutable(&at, &spec["controller"], &old["spec"]["controller"]);
    }
    let controller = spec.text("controller");
    if controller.len() > LONGEST_CONTROLLER {
        errors.push(crate::FieldError::too_long(at, LONGEST_CONTROLLER));
    }
    match controller.split_once('/') {
        _ if controller.is_empty() => errors.required(&at, ""),
        Some((host, rest)) if !host.is_empty() && !rest.is_empty() => {
            errors.each(&at, host, names::dns1123_subdomain(host));
            let fine = |c: char| c.is_ascii_alphanumeric() || "/-._~%!$&'()*+,;=:".contains(c);
            if !rest.chars().all(fine) {
                errors.invalid(
                    &at,
                    rest,
                    "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
                );
            }
        }
        _ => errors.invalid(&at, controller, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    }
    if !spec.has("parameters") {
        return;
    }
    let (parameters, at) = (&spec["parameters"], SPEC.field("parameters"));
    reference(errors, parameters, &at);
    let namespace = at.field("namespace");
    match parameters.text("scope") {
        "" => errors.required(&at.field("scope"), ""),
        "Cluster" if parameters.has("namespace") => {
            errors.forbidden(&namespace, "`parameters.scope` is set to 'Cluster'");
        }
        "Cluster" => {}
        "Namespace" if !parameters.has("namespace") => {
            errors.required(&namespace, "`parameters.scope` is set to 'Namespace'");
        }
        "Namespace" => {
            let text = parameters.text("namespace");
            errors.each(&namespace, text, names::dns1123_label(text));
        }
        other => errors.not_supported(&at.field("scope"), other, &["Cluster", "Namespace"]),
    }
}

pub(super) fn status(errors: &mut Errors, new: &Value) {
    let path = Path::Field(&Path::Root, "status");
    let (path, list) = (path.field("loadBalancer"), &new["status"]["loadBalancer"]);
    let at = path.field("ingress");
    for (index, point) in list.list("ingress").iter().enumerate() {
        let at = at.index(index);
        if !point.text("ip").is_empty() {
            address::legacy(errors, &at.field("ip"), point.text("ip"));
        }
        let host = point.text("hostname");
        if !host.is_empty() {
            errors.each(&at.field("hostname"), host, names::dns1123_subdomain(host));
            if address::parse_legacy(host).is_some() {
                errors.invalid(&at.field("hostname"), host, "must be a DNS name, not an IP address");
            }
        }
    }
}
