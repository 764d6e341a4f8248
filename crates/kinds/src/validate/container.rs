//! Containers: names, images, ports, probes, hooks, security.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::environment::environment;
use super::resources::resources;
use super::{Errors, port_or_name, security, volume};
use crate::look::{Look, Path, repeats};
use crate::{FieldError, names};

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// What containers of one pod share.
pub(super) struct Shared<'a> {
    /// By their names, without those that something is wrong with.
    pub(super) volumes: BTreeMap<&'a str, &'a Value>,
    /// Seconds that the pod may take to end.
    pub(super) grace: Option<i64>,
    pub(super) host_users: bool,
    /// Of the operating system that the pod asks for.
    pub(super) os: Option<&'a str>,
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
        long_lived(errors, container, shared, &path);
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
        if let Some(policy) = container["restartPolicy"].as_str().filter(|policy| *policy != "Always") {
            errors.not_supported(&path.field("restartPolicy"), policy, &["Always"]);
        }
        let name = container.text("name");
        if !name.is_empty() && repeats[index] {
            errors.duplicate(&path.field("name"), name);
        }
        host_ports(errors, std::slice::from_ref(container), &list);
        match container["restartPolicy"].as_str() {
            Some("Always") => long_lived(errors, container, shared, &path),
            _ => {
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

/// What is brought into a running pod to look at it. It is no part of the pod's own work, and has nothing of what such
/// containers have.
pub(super) fn ephemeral_containers(errors: &mut Errors, spec: &Value, shared: &Shared<'_>, path: &Path<'_>) {
    let list = path.field("ephemeralContainers");
    let why = "cannot be set for an Ephemeral Container";
    let others: HashSet<&str> = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|list| spec.list(list).iter().map(|container| container.text("name")))
        .collect();
    let mut names = others.clone();
    for (index, container) in spec.list("ephemeralContainers").iter().enumerate() {
        let path = list.index(index);
        common(errors, container, shared, &path);
        if !names.insert(container.text("name")) {
            errors.duplicate(&path.field("name"), container.text("name"));
        }
        let target = container.text("targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.push(FieldError::not_found(path.field("targetContainerName"), target));
        }
        for field in [
            "ports",
            "resources",
            "resizePolicy",
            "restartPolicy",
            "restartPolicyRules",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
        ] {
            let value = &container[field];
            if !value.is_null() && value.as_object().is_none_or(|map| !map.is_empty()) {
                errors.forbidden(&path.field(field), why);
            }
        }
        let list = path.field("volumeMounts");
        for (index, mount) in container.list("volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !mount.text(field).is_empty() {
                    errors.forbidden(&list.index(index).field(field), why);
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
    volume::mounts(errors, container, &shared.volumes, path);
    volume::devices(errors, container, &shared.volumes, path);
    errors.one_of(
        &path.field("imagePullPolicy"),
        container.text("imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
    );
    resources(errors, &container["resources"], &path.field("resources"));
    security::container(errors, &container["securityContext"], shared.host_users, &path.field("securityContext"));
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

/// In the node's own network a container's ports are the node's. Templates may leave it to their pods to say so.
pub(super) fn host_network(errors: &mut Errors, spec: &Value, list: &Path<'_>, of_pod: bool) {
    if !spec.flag("hostNetwork") {
        return;
    }
    for (index, container) in spec.list("containers").iter().enumerate() {
        let path = list.index(index);
        let list = path.field("ports");
        for (index, port) in container.list("ports").iter().enumerate() {
            let [host, own] = ["hostPort", "containerPort"].map(|field| port.int(field).unwrap_or(0));
            if (of_pod || host != 0) && host != own {
                let why = "must match `containerPort` when `hostNetwork` is true";
                errors.invalid(&list.index(index).field("hostPort"), host, why);
            }
        }
    }
}

/// Hooks and probes, which containers have that live as long as the pod.
fn long_lived(errors: &mut Errors, container: &Value, shared: &Shared<'_>, path: &Path<'_>) {
    if let Some(lifecycle) = container.get("lifecycle") {
        let path = path.field("lifecycle");
        for field in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.get(field) {
                handler(errors, hook, shared, &path.field(field));
            }
        }
        if let Some(signal) = lifecycle["stopSignal"].as_str() {
            stop_signal(errors, signal, shared.os, &path.field("stopSignal"));
        }
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get(field) else { continue };
        let path = path.field(field);
        handler(errors, probe, shared, &path);
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

fn stop_signal(errors: &mut Errors, signal: &str, os: Option<&str>, path: &Path<'_>) {
    let known = match os {
        None => return errors.forbidden(path, "may not be set for containers with empty `spec.os.name`"),
        Some("windows") => &["SIGKILL", "SIGTERM"][..],
        Some("linux") => {
            let lifecycle = crate::schema::table().find("core.v1.Lifecycle");
            lifecycle.and_then(|of| of.field("stopSignal")).map_or(&[][..], |field| &field.choices)
        }
        Some(_) => return,
    };
    if !known.contains(&signal) {
        errors.not_supported(path, signal, known);
    }
}

fn handler(errors: &mut Errors, handler: &Value, shared: &Shared<'_>, path: &Path<'_>) {
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
            _ => {
                let seconds = action.int("seconds").unwrap_or(0);
                if let Some(grace) = shared.grace.filter(|grace| seconds < 0 || seconds > *grace) {
                    let range = "must be non-negative and less than terminationGracePeriodSeconds";
                    errors.invalid(&path, seconds, format!("{range} ({grace})"));
                }
            }
        }
    }
    if seen == 0 {
        errors.required(path, "must specify a handler type");
    }
}
