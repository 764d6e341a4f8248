//! Variables of containers.

use serde_json::Value;

use super::Errors;
use crate::look::{Look, Path};
use crate::names;

pub(super) fn environment(errors: &mut Errors, container: &Value, path: &Path<'_>) {
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
            let name = source[*field].text("name");
            errors.each(&path.field(field).field("name"), name, names::dns1123_subdomain(name));
        }
        match both.iter().filter(|(_, set)| *set).count() {
            0 => errors.invalid(&list, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(&list, "", "may not have more than one field specified at a time"),
        }
    }
}

/// Fields of a pod that a variable may take its value from.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Those that can be selected by, and not taken.
const OTHER_FIELDS: [&str; 6] = [
    "metadata.annotations",
    "metadata.labels",
    "spec.host",
    "spec.restartPolicy",
    "spec.schedulerName",
    "status.phase",
];

/// What a container may be told of its resources.
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Which units there are for the resource, if `divisor` is none of them.
fn wrong_divisor(resource: &str, divisor: &str) -> Option<&'static str> {
    let (units, words): (&[&str], _) = match resource.split_once('.').map_or("", |(_, kind)| kind) {
        "cpu" => (&["", "0", "1m", "1"], "only divisor's values 1m and 1 are supported with the cpu resource"),
        "memory" => (
            &BYTES,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory \
             resource",
        ),
        "ephemeral-storage" => (
            &BYTES,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the local \
             ephemeral storage resource",
        ),
        _ => (
            &BYTES,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the \
             hugepages resource",
        ),
    };
    (!units.contains(&divisor)).then_some(words)
}

const BYTES: [&str; 15] = ["", "0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

fn value_from(errors: &mut Errors, from: &Value, has_value: bool, path: &Path<'_>) {
    let mut sources = 0;
    if let Some(reference) = from.get("fieldRef") {
        sources += 1;
        let here = path.field("fieldRef");
        let field = reference.text("fieldPath");
        let known = ENV_FIELDS.contains(&field)
            || ["metadata.labels['", "metadata.annotations['"]
                .iter()
                .any(|prefix| field.starts_with(prefix) && field.ends_with("']"));
        if field.is_empty() {
            errors.required(&here.field("fieldPath"), "");
        } else if !known {
            if OTHER_FIELDS.contains(&field) {
                errors.not_supported(&here.field("fieldPath"), field, &ENV_FIELDS);
            } else {
                let why = format!("error converting fieldPath: field label not supported: {field}");
                errors.invalid(&here.field("fieldPath"), field, why);
            }
        }
    }
    if let Some(reference) = from.get("resourceFieldRef") {
        sources += 1;
        let (here, resource) = (path.field("resourceFieldRef"), reference.text("resource"));
        let huge = |kind: &str| {
            ["limits.", "requests."].iter().any(|of| resource.strip_prefix(of).is_some_and(|r| r.starts_with(kind)))
        };
        if resource.is_empty() {
            errors.required(&here.field("resource"), "");
        } else if !RESOURCES.contains(&resource) && !huge("hugepages-") {
            errors.not_supported(&here.field("resource"), resource, &RESOURCES);
        } else if let Some(units) = wrong_divisor(resource, reference.text("divisor")) {
            errors.invalid(&here.field("divisor"), resource, units);
        }
    }
    for field in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(reference) = from.get(field) {
            sources += 1;
            let here = path.field(field);
            let name = reference.text("name");
            errors.each(&here.field("name"), name, names::dns1123_subdomain(name));
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
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if has_value {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
}
