//! Names, labels, annotations, owners and finalizers.

use serde_json::Value;

use super::Errors;
use crate::catalog::Strategy;
use crate::look::{Look, Path};
use crate::{Kind, names};

/// All annotations of an object together, in bytes.
const MAX_ANNOTATIONS: usize = 256 * 1024;

const METADATA: Path<'static> = Path::Field(&Path::Root, "metadata");

/// What is wrong with a name of this kind. A prefix may end in what a generated suffix makes good.
fn name_errors(kind: &Kind, name: &str, prefix: bool) -> Vec<String> {
    let masked;
    let name = if prefix && name.len() > 1 && name.ends_with('-') {
        masked = format!("{}a", &name[..name.len() - 2]);
        &masked
    } else {
        name
    };
    match kind.strategy {
        Strategy::Namespace | Strategy::Service => names::dns1123_label(name),
        // As of old: whatever can stand in a path.
        Strategy::Event => names::path_segment(name),
        Strategy::IpAddress => super::address::canonical(name),
        Strategy::ClusterRole | Strategy::ClusterRoleBinding | Strategy::Role | Strategy::RoleBinding => {
            names::path_segment(name)
        }
        _ => names::dns1123_subdomain(name),
    }
}

pub(super) fn create(errors: &mut Errors, kind: &Kind, object: &Value) {
    let metadata = &object["metadata"];
    let generate = metadata.text("generateName");
    if !generate.is_empty() {
        for message in name_errors(kind, generate, true) {
            errors.invalid(&METADATA.field("generateName"), generate, message);
        }
    }
    let name = metadata.text("name");
    if name.is_empty() {
        errors.required(&METADATA.field("name"), "name or generateName is required");
    } else {
        errors.each(&METADATA.field("name"), name, name_errors(kind, name, false));
    }
    let namespace = metadata.text("namespace");
    let path = METADATA.field("namespace");
    match (kind.namespaced, namespace.is_empty()) {
        (true, true) => errors.required(&path, ""),
        (true, false) => errors.each(&path, namespace, names::dns1123_label(namespace)),
        (false, false) => errors.forbidden(&path, "not allowed on this type"),
        (false, true) => {}
    }
    errors.non_negative(&METADATA.field("generation"), metadata.int("generation"));
    labels(errors, &metadata["labels"], &METADATA.field("labels"));
    annotations(errors, &metadata["annotations"], &METADATA.field("annotations"));
    owners(errors, metadata.list("ownerReferences"), &METADATA.field("ownerReferences"));
    finalizers(errors, kind, metadata.list("finalizers"), &METADATA.field("finalizers"));
}

pub(super) fn update(errors: &mut Errors, kind: &Kind, new: &Value, old: &Value) {
    let (new, old) = (&new["metadata"], &old["metadata"]);
    if old.has("deletionTimestamp") {
        let extra: Vec<&str> = new
            .list("finalizers")
            .iter()
            .filter(|name| !old.list("finalizers").contains(name))
            .filter_map(Value::as_str)
            .collect();
        if !extra.is_empty() {
            let list: Vec<String> = extra.iter().map(|name| format!("\"{name}\"")).collect();
            errors.forbidden(
                &METADATA.field("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers \
                     []string{{{}}}",
                    list.join(", ")
                ),
            );
        }
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        errors.immutable(&METADATA.field(field), &new[field], &old[field]);
    }
    labels(errors, &new["labels"], &METADATA.field("labels"));
    annotations(errors, &new["annotations"], &METADATA.field("annotations"));
    owners(errors, new.list("ownerReferences"), &METADATA.field("ownerReferences"));
    finalizers(errors, kind, new.list("finalizers"), &METADATA.field("finalizers"));
}

/// Keys and values of labels, and of all that selects by them.
pub(super) fn labels(errors: &mut Errors, labels: &Value, path: &Path<'_>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        errors.each(path, key, names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.each(path, value, names::label_value(value));
    }
}

pub(super) fn annotations(errors: &mut Errors, annotations: &Value, path: &Path<'_>) {
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        errors.each(path, key, names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_ANNOTATIONS {
        errors.push(crate::FieldError::too_long(path, MAX_ANNOTATIONS));
    }
}

fn owners(errors: &mut Errors, owners: &[Value], path: &Path<'_>) {
    let mut controller: Option<String> = None;
    for owner in owners {
        let version = owner.text("apiVersion");
        // Of a group without a version, or with too many parts, no version is left.
        if version.is_empty() || version.ends_with('/') || version.matches('/').count() > 1 {
            errors.invalid(&path.field("apiVersion"), version, "version must not be empty");
        }
        for field in ["kind", "name", "uid"] {
            if owner.text(field).is_empty() {
                errors.invalid(&path.field(field), "", "must not be empty");
            }
        }
        if version == "v1" && owner.text("kind") == "Event" {
            errors.invalid(path, owner.clone(), "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.flag("controller") {
            let name = format!("{}/{}", owner.text("kind"), owner.text("name"));
            match &controller {
                None => controller = Some(name),
                Some(first) => errors.invalid(
                    path,
                    owners.to_vec(),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} \
                         and {name}"
                    ),
                ),
            }
        }
    }
}

/// Finalizers that need no domain.
pub(crate) const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

fn finalizers(errors: &mut Errors, kind: &Kind, finalizers: &[Value], path: &Path<'_>) {
    for name in finalizers.iter().filter_map(Value::as_str) {
        errors.each(path, name, names::qualified_name(name));
    }
    let has = |wanted: &str| finalizers.iter().any(|name| name == wanted);
    if has("orphan") && has("foregroundDeletion") {
        errors.invalid(path, finalizers.to_vec(), "finalizer orphan and foregroundDeletion cannot be both set");
    }
    // Custom resources, and what defines them, are not held to this.
    if matches!(kind.strategy, Strategy::Custom | Strategy::CustomResourceDefinition) {
        return;
    }
    for (index, name) in finalizers.iter().enumerate() {
        let name = name.as_str().unwrap_or_default();
        if !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
            let unqualified = "name is neither a standard finalizer name nor is it fully qualified";
            errors.invalid(&path.index(index), name, unqualified);
        }
    }
}

/// A `meta/v1` LabelSelector.
pub(super) fn selector(errors: &mut Errors, selector: &Value, path: &Path<'_>) {
    labels(errors, &selector["matchLabels"], &path.field("matchLabels"));
    let list = path.field("matchExpressions");
    for (index, requirement) in selector.list("matchExpressions").iter().enumerate() {
        let path = list.index(index);
        let values = requirement.list("values");
        match requirement.text("operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&path.field("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => errors
                .forbidden(&path.field("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&path.field("operator"), other, "not a valid selector operator"),
        }
        let key = requirement.text("key");
        errors.each(&path.field("key"), key, names::qualified_name(key));
        let list = path.field("values");
        for (index, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            errors.each(&list.index(index), value, names::label_value(value));
        }
    }
}

/// Whether a LabelSelector matches labels. Invalid requirements match nothing.
pub(super) fn matches(selector: &Value, labels: &Value) -> bool {
    let equal = selector.entries("matchLabels").all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.list("matchExpressions").iter().all(|requirement| {
            let value = labels.get(requirement.text("key"));
            let listed = value.is_some_and(|value| requirement.list("values").contains(value));
            match requirement.text("operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}
