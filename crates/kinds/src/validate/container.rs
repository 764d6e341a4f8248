//! Containers: names, images, ports, probes, hooks, security.

use std::collections::HashSet;

use serde_json::Value;

use super::environment::environment;
use super::resources::resources;
use super::{Errors, port_or_name, volume};
use crate::look::{Look, Path, repeats};
use crate::names;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// What containers of one pod share.
pub(super) struct Shared<'a> {
    pub(super) volumes: &'a [Value],
}

pub(super) fn containers(errors: &mut Errors, spec: &Value, shared: &Shared<'_>, path: &Path<'_>) {
    let list = path.field("containers");
    let all = spec.list("containers");
    if all.is_empty() {
        errors.required(&list, "");
        return;
    }
    let repeats = repeats(all.iter().map(|container| container.text("name")));
    for (index, container) in all.iter().enumerate() {
        let path = list.index(index);
        common(errors, container, shared, &path);
        if repeats[index] {
            errors.duplicate(&path.field("name"), container.text("name"));
        }
        long_lived(errors, container, &path);
        if container.has("restartPolicy") {
            errors.forbidden(&path.field("restartPolicy"), "may not be set for non-init containers");
        }
    }
    host_ports(errors, all, &list);
}

pub(super) fn init_containers(errors: &mut Errors, spec: &Value, shared: &Shared<'_>, path: &Path<'_>) {
    let list = path.field("initContainers");
    let all = spec.list("initContainers");
    let names = spec.list("containers").iter().chain(all).map(|container| container.text("name"));
    let repeats = repeats(names).split_off(spec.list("containers").len());
    for (index, container) in all.iter().enumerate() {
        let path = list.index(index);
        common(errors, container, shared, &path);
        let name = container.text("name");
        if !name.is_empty() && repeats[index] {
            errors.duplicate(&path.field("name"), name);
        }
        host_ports(errors, std::slice::from_ref(container), &list);
        match container["restartPolicy"].as_str() {
            Some("Always") => long_lived(errors, container, &path),
            other => {
                if let Some(policy) = other {
                    errors.not_supported(&path.field("restartPolicy"), policy, &["Always"]);
                }
                for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                    if container.has(field) {
                        errors.forbidden(
                            &path.field(field),
                            "may not be set for init containers without restartPolicy=Always",
                        );
                    }
                }
            }
        }
    }
}

fn common(errors: &mut Errors, container: &Value, shared: &Shared<'_>, path: &Path<'_>) {
    let name = container.text("name");
    if name.is_empty() {
        errors.required(&path.field("name"), "");
    } else {
        errors.each(&path.field("name"), name, names::dns1123_label(name));
    }
    if container.text("image").is_empty() {
        errors.required(&path.field("image"), "");
    }
    errors.one_of(
        &path.field("terminationMessagePolicy"),
        container.text("terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
    );
    ports(errors, container.list("ports"), &path.field("ports"));
    environment(errors, container, path);
    volume::mounts(errors, container, shared.volumes, path);
    errors.one_of(
        &path.field("imagePullPolicy"),
        container.text("imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
    );
    resources(errors, &container["resources"], &path.field("resources"));
    security(errors, &container["securityContext"], &path.field("securityContext"));
}

fn ports(errors: &mut Errors, ports: &[Value], list: &Path<'_>) {
    let repeats = repeats(ports.iter().map(|port| port.text("name")));
    for (index, port) in ports.iter().enumerate() {
        let path = list.index(index);
        let name = port.text("name");
        if !name.is_empty() {
            let wrong = names::port_name(name);
            if wrong.is_empty() && repeats[index] {
                errors.duplicate(&path.field("name"), name);
            }
            errors.each(&path.field("name"), name, wrong);
        }
        match port.int("containerPort").unwrap_or(0) {
            0 => errors.required(&path.field("containerPort"), ""),
            number => errors.port(&path.field("containerPort"), number),
        }
        if let Some(number) = port.int("hostPort").filter(|number| *number != 0) {
            errors.port(&path.field("hostPort"), number);
        }
        errors.one_of(&path.field("protocol"), port.text("protocol"), &PROTOCOLS);
    }
}

fn host_ports(errors: &mut Errors, containers: &[Value], list: &Path<'_>) {
    let mut taken = HashSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = list.index(index);
        let list = path.field("ports");
        for (index, port) in container.list("ports").iter().enumerate() {
            let Some(number) = port.int("hostPort").filter(|number| *number != 0) else { continue };
            let key = format!("{}/{}/{number}", port.text("protocol"), port.text("hostIP"));
            if !taken.insert(key.clone()) {
                errors.duplicate(&list.index(index).field("hostPort"), key);
            }
        }
    }
}

/// Hooks and probes, which containers have that live as long as the pod.
fn long_lived(errors: &mut Errors, container: &Value, path: &Path<'_>) {
    if let Some(lifecycle) = container.get("lifecycle") {
        let path = path.field("lifecycle");
        for field in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.get(field) {
                handler(errors, hook, &path.field(field));
            }
        }
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get(field) else { continue };
        let path = path.field(field);
        handler(errors, probe, &path);
        for number in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            errors.non_negative(&path.field(number), probe.int(number));
        }
        let grace = probe.int("terminationGracePeriodSeconds");
        if let Some(seconds) = grace.filter(|seconds| *seconds <= 0) {
            errors.invalid(&path.field("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
        }
        if field == "readinessProbe" {
            if let Some(seconds) = grace {
                errors.invalid(
                    &path.field("terminationGracePeriodSeconds"),
                    seconds,
                    "must not be set for readinessProbes",
                );
            }
        } else if probe.int("successThreshold") != Some(1) {
            errors.invalid(&path.field("successThreshold"), probe["successThreshold"].clone(), "must be 1");
        }
    }
}

fn handler(errors: &mut Errors, handler: &Value, path: &Path<'_>) {
    let mut seen = 0;
    for field in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let Some(action) = handler.get(field) else { continue };
        let path = path.field(field);
        seen += 1;
        if seen > 1 {
            errors.forbidden(&path, "may not specify more than 1 handler type");
            continue;
        }
        match field {
            "exec" => {
                if action.list("command").is_empty() {
                    errors.required(&path.field("command"), "");
                }
            }
            "httpGet" => {
                if action.text("path").is_empty() {
                    errors.required(&path.field("path"), "");
                }
                port_or_name(errors, &action["port"], &path.field("port"));
                if !["HTTP", "HTTPS"].contains(&action.text("scheme")) {
                    errors.not_supported(&path.field("scheme"), action.text("scheme"), &["HTTP", "HTTPS"]);
                }
                for header in action.list("httpHeaders") {
                    if let Some(message) = names::http_header_name(header.text("name")) {
                        errors.invalid(&path.field("httpHeaders"), header.text("name"), message);
                    }
                }
            }
            "tcpSocket" => port_or_name(errors, &action["port"], &path.field("port")),
            "grpc" => errors.port(&path.field("port"), action.int("port").unwrap_or(0)),
            _ => errors.non_negative(&path.field("seconds"), action.int("seconds")),
        }
    }
    if seen == 0 {
        errors.required(path, "must specify a handler type");
    }
}

/// What a user or group may be.
fn identity(errors: &mut Errors, value: Option<i64>, path: &Path<'_>) {
    if let Some(id) = value.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        errors.invalid(path, id, "must be between 0 and 2147483647, inclusive");
    }
}

/// The parts of a container's security context that can contradict each other.
fn security(errors: &mut Errors, context: &Value, path: &Path<'_>) {
    identity(errors, context.int("runAsUser"), &path.field("runAsUser"));
    identity(errors, context.int("runAsGroup"), &path.field("runAsGroup"));
    if context["allowPrivilegeEscalation"] == false {
        if context.flag("privileged") {
            errors.invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        if context["capabilities"].list("add").iter().any(|name| name == "CAP_SYS_ADMIN") {
            errors.invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
}

/// The pod's own security context.
pub(super) fn pod_security(errors: &mut Errors, context: &Value, path: &Path<'_>) {
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        identity(errors, context.int(field), &path.field(field));
    }
    let list = path.field("supplementalGroups");
    for (index, group) in context.list("supplementalGroups").iter().enumerate() {
        identity(errors, group.as_i64(), &list.index(index));
    }
}
