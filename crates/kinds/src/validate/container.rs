//! Containers: names, images, ports, environment, probes, hooks, resources.

use serde_json::Value;

use super::{Errors, metadata, port_or_name, volume};
use crate::look::{Look, Path};
use crate::names;
use crate::quantity::Quantity;

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
    for (index, container) in all.iter().enumerate() {
        let path = list.index(index);
        common(errors, container, shared, &path);
        if all[..index].iter().any(|other| other.text("name") == container.text("name")) {
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
    for (index, container) in all.iter().enumerate() {
        let path = list.index(index);
        common(errors, container, shared, &path);
        let name = container.text("name");
        let mut others = spec.list("containers").iter().chain(&all[..index]);
        if !name.is_empty() && others.any(|other| other.text("name") == name) {
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
    for (index, port) in ports.iter().enumerate() {
        let path = list.index(index);
        let name = port.text("name");
        if !name.is_empty() {
            let wrong = names::port_name(name);
            if wrong.is_empty() && ports[..index].iter().any(|other| other.text("name") == name) {
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
    let mut taken: Vec<String> = Vec::new();
    for (index, container) in containers.iter().enumerate() {
        let path = list.index(index);
        let list = path.field("ports");
        for (index, port) in container.list("ports").iter().enumerate() {
            let Some(number) = port.int("hostPort").filter(|number| *number != 0) else { continue };
            let key = format!("{}/{}/{number}", port.text("protocol"), port.text("hostIP"));
            if taken.contains(&key) {
                errors.duplicate(&list.index(index).field("hostPort"), key);
            } else {
                taken.push(key);
            }
        }
    }
}

fn environment(errors: &mut Errors, container: &Value, path: &Path<'_>) {
    let list = path.field("env");
    for (index, variable) in container.list("env").iter().enumerate() {
        let path = list.index(index);
        let name = variable.text("name");
        if name.is_empty() {
            errors.required(&path.field("name"), "");
        } else {
            errors.each(&path.field("name"), name, names::env_var_name(name));
        }
        if let Some(from) = variable.get("valueFrom") {
            value_from(errors, from, !variable.text("value").is_empty(), &path.field("valueFrom"));
        }
    }
    let list = path.field("envFrom");
    for (index, source) in container.list("envFrom").iter().enumerate() {
        let path = list.index(index);
        let prefix = source.text("prefix");
        if !prefix.is_empty() {
            errors.each(&path.field("prefix"), prefix, names::env_var_name(prefix));
        }
        let both = ["configMapRef", "secretRef"].map(|field| (field, source.has(field)));
        for (field, _) in both.iter().filter(|(_, set)| *set) {
            if source[*field].text("name").is_empty() {
                errors.required(&path.field(field).field("name"), "");
            }
        }
        match both.iter().filter(|(_, set)| *set).count() {
            0 => errors.invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(&path, "", "may not have more than one field specified at a time"),
        }
    }
}

/// Fields of a pod that a variable may take its value from.
const ENV_FIELDS: [&str; 8] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
];

fn value_from(errors: &mut Errors, from: &Value, has_value: bool, path: &Path<'_>) {
    let mut sources = 0;
    if let Some(reference) = from.get("fieldRef") {
        sources += 1;
        let here = path.field("fieldRef");
        let field = reference.text("fieldPath");
        let known = ENV_FIELDS.contains(&field)
            || field == "status.podIPs"
            || ["metadata.labels['", "metadata.annotations['"]
                .iter()
                .any(|prefix| field.starts_with(prefix) && field.ends_with("']"));
        if field.is_empty() {
            errors.required(&here.field("fieldPath"), "");
        } else if !known {
            let mut supported: Vec<&str> = ENV_FIELDS.to_vec();
            supported.push("status.podIPs");
            errors.not_supported(&here.field("fieldPath"), field, &supported);
        }
    }
    if let Some(reference) = from.get("resourceFieldRef") {
        sources += 1;
        if reference.text("resource").is_empty() {
            errors.required(&path.field("resourceFieldRef").field("resource"), "");
        }
    }
    for field in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(reference) = from.get(field) {
            sources += 1;
            let here = path.field(field);
            if reference.text("name").is_empty() {
                errors.required(&here.field("name"), "");
            }
            let key = reference.text("key");
            if key.is_empty() {
                errors.required(&here.field("key"), "");
            } else {
                errors.each(&here.field("key"), key, names::config_map_key(key));
            }
        }
    }
    if sources == 0 {
        errors.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        );
    } else if has_value {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
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

/// Resources that only whole numbers make sense of.
fn counted(resource: &str) -> bool {
    !matches!(resource, "cpu" | "memory" | "ephemeral-storage" | "storage") && !resource.starts_with("hugepages-")
}

/// Whether more may be used than was asked for.
fn overcommits(resource: &str) -> bool {
    let native = !resource.contains('/') || resource.contains("kubernetes.io/");
    native && !resource.starts_with("hugepages-")
}

/// One quantity in a list of resources.
pub(super) fn quantity(errors: &mut Errors, resource: &str, text: &str, path: &Path<'_>) -> Option<Quantity> {
    let quantity = Quantity::parse(text)?;
    if quantity.is_negative() {
        errors.invalid(path, text, "must be greater than or equal to 0");
    }
    if counted(resource) && !quantity.is_whole() {
        errors.invalid(path, text, "must be an integer");
    }
    Some(quantity)
}

fn resources(errors: &mut Errors, resources: &Value, path: &Path<'_>) {
    for list in ["limits", "requests"] {
        for (name, value) in resources.entries(list) {
            let here = path.field(list);
            let here = here.key(name);
            errors.each(&here, name, names::qualified_name(name));
            let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
            if !name.contains('/') && !standard {
                errors.invalid(&here, name, "must be a standard resource for containers");
            }
            let Some(amount) = quantity(errors, name, value.as_str().unwrap_or_default(), &here) else { continue };
            if list == "limits" {
                continue;
            }
            let limit_text = resources["limits"].text(name);
            match Quantity::parse(limit_text) {
                Some(limit) if amount != limit && !overcommits(name) => errors.invalid(
                    &path.field("requests"),
                    amount.to_string(),
                    format!("must be equal to {name} limit of {limit}"),
                ),
                Some(limit) if amount > limit => errors.invalid(
                    &path.field("requests"),
                    amount.to_string(),
                    format!("must be less than or equal to {name} limit of {limit}"),
                ),
                None if !overcommits(name) => {
                    errors.required(&path.field("limits"), "Limit must be set for non overcommitable resources")
                }
                _ => {}
            }
        }
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

/// Tolerations of taints.
pub(super) fn tolerations(errors: &mut Errors, tolerations: &[Value], list: &Path<'_>) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = list.index(index);
        let (key, operator) = (toleration.text("key"), toleration.text("operator"));
        let (value, effect) = (toleration.text("value"), toleration.text("effect"));
        if !key.is_empty() {
            errors.each(&path.field("key"), key, names::qualified_name(key));
        } else if operator != "Exists" {
            errors.invalid(
                &path.field("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if toleration.has("tolerationSeconds") && effect != "NoExecute" {
            errors.invalid(&path.field("effect"), effect, "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match operator {
            "" | "Equal" => {
                let wrong = names::label_value(value);
                if !wrong.is_empty() {
                    errors.invalid(&path.field("operator"), value, wrong.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                errors.invalid(&path.field("operator"), value, "value must be empty when `operator` is 'Exists'")
            }
            "Exists" => {}
            other => errors.not_supported(&path.field("operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            taint_effect(errors, effect, &path.field("effect"));
        }
    }
}

fn taint_effect(errors: &mut Errors, effect: &str, path: &Path<'_>) {
    errors.one_of(path, effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
}

/// Taints of a node.
pub(super) fn taints(errors: &mut Errors, taints: &[Value], list: &Path<'_>) {
    for (index, taint) in taints.iter().enumerate() {
        let path = list.index(index);
        errors.each(&path.field("key"), taint.text("key"), names::qualified_name(taint.text("key")));
        let wrong = names::label_value(taint.text("value"));
        if !wrong.is_empty() {
            errors.invalid(&path.field("value"), taint.text("value"), wrong.join(";"));
        }
        taint_effect(errors, taint.text("effect"), &path.field("effect"));
        let twice = |other: &Value| other["key"] == taint["key"] && other["effect"] == taint["effect"];
        if taints[..index].iter().any(twice) {
            let mut error = crate::FieldError::duplicate(path, taint.clone());
            "taints must be unique by key and effect pair".clone_into(&mut error.detail);
            errors.push(error);
        }
    }
}

/// Labels that nodes are selected by.
pub(super) fn node_selector(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    metadata::labels(errors, &spec["nodeSelector"], &path.field("nodeSelector"));
}
