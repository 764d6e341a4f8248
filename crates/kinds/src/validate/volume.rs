//! Volumes of a pod and their mounts.
//!
//! All kinds of volumes are known by the table of fields; the sources this program can mount are checked in full, of
//! the others that there is one.

use std::collections::HashSet;

use serde_json::Value;

use super::Errors;
use crate::look::{Look, Path, repeats};
use crate::names;
use crate::quantity::Quantity;

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

pub(super) fn volumes(errors: &mut Errors, volumes: &[Value], list: &Path<'_>) {
    let repeats = repeats(volumes.iter().map(|volume| volume.text("name")));
    for (index, volume) in volumes.iter().enumerate() {
        let path = list.index(index);
        source(errors, volume, &path);
        let name = volume.text("name");
        if name.is_empty() {
            errors.required(&path.field("name"), "");
        } else {
            errors.each(&path.field("name"), name, names::dns1123_label(name));
            if repeats[index] {
                errors.duplicate(&path.field("name"), name);
            }
        }
    }
}

fn source(errors: &mut Errors, volume: &Value, path: &Path<'_>) {
    let kinds: Vec<&str> = volume
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name.as_str())
        .filter(|name| *name != "name")
        .collect();
    let Some((first, rest)) = kinds.split_first() else {
        errors.required(path, "must specify a volume type");
        return;
    };
    // Upstream looks at an emptyDir first and never counts it as the one too many.
    let rest: Vec<&str> = if *first == "emptyDir" || !rest.contains(&"emptyDir") {
        rest.to_vec()
    } else {
        kinds.iter().copied().filter(|name| *name != "emptyDir").collect()
    };
    for extra in rest {
        errors.forbidden(&path.field(extra), "may not specify more than 1 volume type");
    }
    let here = path.field(first);
    let source = &volume[*first];
    match *first {
        "emptyDir" if source["sizeLimit"].as_str().and_then(Quantity::parse).is_some_and(|size| size.is_negative()) => {
            errors.forbidden(&here.field("sizeLimit"), "SizeLimit field must be a valid resource quantity");
        }
        "hostPath" => {
            let text = source.text("path");
            if text.is_empty() {
                errors.required(&here.field("path"), "");
            } else {
                if text.split('/').any(|part| part == "..") {
                    errors.invalid(&here.field("path"), text, "must not contain '..'");
                }
                let kinds = [
                    "",
                    "BlockDevice",
                    "CharDevice",
                    "Directory",
                    "DirectoryOrCreate",
                    "File",
                    "FileOrCreate",
                    "Socket",
                ];
                if !kinds.contains(&source.text("type")) {
                    errors.not_supported(&here.field("type"), source.text("type"), &kinds);
                }
            }
        }
        "secret" => keyed(errors, source, "secretName", &here),
        "configMap" => keyed(errors, source, "name", &here),
        "persistentVolumeClaim" if source.text("claimName").is_empty() => {
            errors.required(&here.field("claimName"), "");
        }
        _ => {}
    }
}

/// A volume made of the keys of another object.
fn keyed(errors: &mut Errors, source: &Value, name: &str, path: &Path<'_>) {
    if source.text(name).is_empty() {
        errors.required(&path.field(name), "");
    }
    let mode = |errors: &mut Errors, value: Option<i64>, path: &Path<'_>| {
        if let Some(mode) = value.filter(|mode| !(0..=0o777).contains(mode)) {
            errors.invalid(path, mode, FILE_MODE);
        }
    };
    mode(errors, source.int("defaultMode"), &path.field("defaultMode"));
    let list = path.field("items");
    for (index, item) in source.list("items").iter().enumerate() {
        let path = list.index(index);
        if item.text("key").is_empty() {
            errors.required(&path.field("key"), "");
        }
        let target = item.text("path");
        if target.is_empty() {
            errors.required(&path.field("path"), "");
        } else {
            descending(errors, target, &path.field("path"));
            if target.starts_with("..") && !target.split('/').any(|part| part == "..") {
                errors.invalid(&path.field("path"), target, "must not start with '..'");
            }
        }
        mode(errors, item.int("mode"), &path.field("mode"));
    }
}

/// A path that stays below where it starts.
fn descending(errors: &mut Errors, text: &str, path: &Path<'_>) {
    if text.starts_with('/') {
        errors.invalid(path, text, "must be a relative path");
    }
    if text.split('/').any(|part| part == "..") {
        errors.invalid(path, text, "must not contain '..'");
    }
}

pub(super) fn mounts(errors: &mut Errors, container: &Value, volumes: &[Value], path: &Path<'_>) {
    let list = path.field("volumeMounts");
    let mounts = container.list("volumeMounts");
    let known: HashSet<&str> = volumes.iter().map(|volume| volume.text("name")).collect();
    let repeats = repeats(mounts.iter().map(|mount| mount.text("mountPath")));
    for (index, mount) in mounts.iter().enumerate() {
        let path = list.index(index);
        let (name, target) = (mount.text("name"), mount.text("mountPath"));
        if name.is_empty() {
            errors.required(&path.field("name"), "");
        }
        if !known.contains(name) {
            errors.push(crate::FieldError::not_found(path.field("name"), name));
        }
        if target.is_empty() {
            errors.required(&path.field("mountPath"), "");
        }
        if repeats[index] {
            errors.invalid(&path.field("mountPath"), target, "must be unique");
        }
        // Upstream names the list, not the item, here.
        let sub = mount.text("subPath");
        if !sub.is_empty() {
            descending(errors, sub, &list.field("subPath"));
        }
        let expression = mount.text("subPathExpr");
        if !expression.is_empty() {
            if !sub.is_empty() {
                errors.invalid(
                    &path.field("subPathExpr"),
                    expression,
                    "subPathExpr and subPath are mutually exclusive",
                );
            }
            descending(errors, expression, &list.field("subPathExpr"));
        }
    }
}
