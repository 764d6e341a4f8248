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
            let (path, name) = (path.field(field), source[*field].text("name"));
            object_name(errors, name, &path.field("name"));
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

/// Fields of a pod that a file may take its content from.
pub(super) const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Those that can be selected by, and not taken by all.
const OTHER_FIELDS: [&str; 6] = [
    "metadata.annotations",
    "metadata.labels",
    "spec.host",
    "spec.restartPolicy",
    "spec.schedulerName",
    "status.phase",
];

/// The name of a ConfigMap or a Secret.
fn object_name(errors: &mut Errors, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        errors.required(path, "");
    } else {
        // What ends in a dash may be the beginning of a name.
        let masked = name.strip_suffix('-').map(|beginning| format!("{beginning}a"));
        errors.each(path, name, names::dns1123_subdomain(masked.as_deref().unwrap_or(name)));
    }
}

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
        kind if kind.starts_with("hugepages-") => (
            &BYTES,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the \
             hugepages resource",
        ),
        _ => return None,
    };
    (!units.contains(&divisor)).then_some(words)
}

const BYTES: [&str; 15] = ["", "0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// A field of the pod, of those that are `known`.
pub(super) fn field_reference(errors: &mut Errors, reference: &Value, known: &[&str], path: &Path<'_>) {
    let (version, field) = (reference.text("apiVersion"), reference.text("fieldPath"));
    let here = path.field("fieldPath");
    if version.is_empty() {
        return errors.required(&path.field("apiVersion"), "");
    }
    if field.is_empty() {
        return errors.required(&here, "");
    }
    let wrong =
        |errors: &mut Errors, why: String| errors.invalid(&here, field, format!("error converting fieldPath: {why}"));
    if version != "v1" {
        return wrong(errors, format!("unsupported pod version: {version}"));
    }
    if let Some((of, key)) = field.strip_suffix("']").and_then(|field| field.split_once("['")) {
        return match of {
            "metadata.annotations" => {
                errors.each(path, &key.to_lowercase(), names::qualified_name(&key.to_lowercase()))
            }
            "metadata.labels" => errors.each(path, key, names::qualified_name(key)),
            _ => wrong(errors, format!("field label does not support subscript: {field}")),
        };
    }
    if ENV_FIELDS.contains(&field) || OTHER_FIELDS.contains(&field) {
        let meant = if field == "spec.host" { "spec.nodeName" } else { field };
        if !known.contains(&meant) {
            errors.not_supported(&here, meant, known);
        }
    } else {
        wrong(errors, format!("field label not supported: {field}"));
    }
}

/// What a container has of a resource. In a volume it says which container.
pub(super) fn resource_reference(errors: &mut Errors, reference: &Value, in_volume: bool, path: &Path<'_>) {
    let resource = reference.text("resource");
    let huge = ["limits.hugepages-", "requests.hugepages-"].iter().any(|prefix| resource.starts_with(prefix));
    if in_volume && reference.text("containerName").is_empty() {
        errors.required(&path.field("containerName"), "");
    } else if resource.is_empty() {
        errors.required(&path.field("resource"), "");
    } else if !RESOURCES.contains(&resource) && !huge {
        errors.not_supported(&path.field("resource"), resource, &RESOURCES);
    }
    if let Some(units) = wrong_divisor(resource, reference.text("divisor")) {
        errors.invalid(&path.field("divisor"), resource, units);
    }
}

fn value_from(errors: &mut Errors, from: &Value, has_value: bool, path: &Path<'_>) {
    let mut sources = 0;
    if let Some(reference) = from.get("fieldRef") {
        sources += 1;
        field_reference(errors, reference, &ENV_FIELDS, &path.field("fieldRef"));
    }
    if let Some(reference) = from.get("resourceFieldRef") {
        sources += 1;
        resource_reference(errors, reference, false, &path.field("resourceFieldRef"));
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
