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
