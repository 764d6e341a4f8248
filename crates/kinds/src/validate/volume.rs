//! Volumes of a pod and their mounts.
//!
//! All kinds of volumes are known by the table of fields; the sources this program can mount are checked in full, of
//! the others that there is one.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::environment::{self, VOLUME_FIELDS};
use super::{Errors, metadata};
use crate::look::{Look, Path, repeats};
use crate::names;
use crate::quantity::Quantity;

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Answers with those that nothing is wrong with, by their names: mounts of the others are told of, too.
pub(super) fn volumes<'a>(errors: &mut Errors, volumes: &'a [Value], list: &Path<'_>) -> BTreeMap<&'a str, &'a Value> {
    let mut good = BTreeMap::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = list.index(index);
        let before = errors.0.len();
        source(errors, volume, &path);
        let name = volume.text("name");
        if name.is_empty() {
            errors.required(&path.field("name"), "");
        } else {
            errors.each(&path.field("name"), name, names::dns1123_label(name));
        }
        if good.contains_key(name) {
            errors.duplicate(&path.field("name"), name);
        }
        if errors.0.len() == before {
            good.insert(name, volume);
        }
    }
    good
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
        "downwardAPI" => {
            mode(errors, source.int("defaultMode"), &here.field("defaultMode"));
            source.list("items").iter().for_each(|file| downward_file(errors, file, &here));
        }
        "projected" => {
            mode(errors, source.int("defaultMode"), &here.field("defaultMode"));
            projected(errors, source.list("sources"), &here);
        }
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
    mode(errors, source.int("defaultMode"), &path.field("defaultMode"));
    keys(errors, source, path);
}

fn mode(errors: &mut Errors, value: Option<i64>, path: &Path<'_>) {
    if let Some(mode) = value.filter(|mode| !(0..=0o777).contains(mode)) {
        errors.invalid(path, mode, FILE_MODE);
    }
}

/// Which keys become which files.
fn keys(errors: &mut Errors, source: &Value, path: &Path<'_>) {
    let list = path.field("items");
    for (index, item) in source.list("items").iter().enumerate() {
        let path = list.index(index);
        if item.text("key").is_empty() {
            errors.required(&path.field("key"), "");
        }
        let target = item.text("path");
        if target.is_empty() {
            errors.required(&path.field("path"), "");
        }
        not_reserved(errors, target, &path.field("path"));
        mode(errors, item.int("mode"), &path.field("mode"));
    }
}

/// A file that tells of the pod. Upstream names the volume, and not which file of it.
fn downward_file(errors: &mut Errors, file: &Value, path: &Path<'_>) {
    let target = file.text("path");
    if target.is_empty() {
        errors.required(&path.field("path"), "");
    }
    not_reserved(errors, target, &path.field("path"));
    match (file.get("fieldRef"), file.get("resourceFieldRef")) {
        (Some(reference), resource) => {
            environment::field_reference(errors, reference, &VOLUME_FIELDS, &path.field("fieldRef"));
            if resource.is_some() {
                let both = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.invalid(path, "resource", both);
            }
        }
        (None, Some(reference)) => {
            environment::resource_reference(errors, reference, true, &path.field("resourceFieldRef"));
        }
        (None, None) => errors.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    mode(errors, file.int("mode"), &path.field("mode"));
}

const SOURCES: [&str; 6] =
    ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];

/// `path` is the volume's, which upstream names where it should name a source.
fn projected(errors: &mut Errors, sources: &[Value], path: &Path<'_>) {
    let mut taken = HashSet::new();
    let list = path.field("sources");
    for (index, source) in sources.iter().enumerate() {
        let here = list.index(index);
        for field in SOURCES {
            let Some(of) = source.get(field) else { continue };
            let here = here.field(field);
            match field {
                "secret" | "configMap" => {
                    if of.text("name").is_empty() {
                        errors.required(&here.field("name"), "");
                    }
                    keys(errors, of, &here);
                }
                "downwardAPI" => of.list("items").iter().for_each(|file| downward_file(errors, file, &here)),
                "serviceAccountToken" => {
                    let (seconds, here) = (of.int("expirationSeconds").unwrap_or(0), here.field("expirationSeconds"));
                    if seconds < 600 {
                        errors.invalid(&here, seconds, "may not specify a duration less than 10 minutes");
                    }
                    if seconds > 1 << 32 {
                        errors.invalid(&here, seconds, "may not specify a duration larger than 2^32 seconds");
                    }
                    if of.text("path").is_empty() {
                        errors.required(&path.field("path"), "");
                    }
                    not_reserved(errors, of.text("path"), &path.field("path"));
                }
                "clusterTrustBundle" => {
                    metadata::selector(errors, &of["labelSelector"], &here.field("labelSelector"));
                    if of.text("path").is_empty() {
                        errors.required(&here.field("path"), "");
                    }
                    not_reserved(errors, of.text("path"), &here.field("path"));
                }
                _ => {}
            }
            // Of keys and files; upstream quotes the former's object and the latter's path.
            for file in of.list("items").iter().map(|item| item.text("path")).filter(|file| !file.is_empty()) {
                if !taken.insert(file) {
                    let quoted = if field == "downwardAPI" { file } else { of.text("name") };
                    errors.invalid(path, quoted, "conflicting duplicate paths");
                }
            }
        }
        if SOURCES.iter().filter(|field| source.has(field)).count() > 1 {
            errors.forbidden(&here, "may not specify more than 1 volume type per source");
        }
    }
}

/// A path below where it starts, and none of those that files are put in place by.
fn not_reserved(errors: &mut Errors, text: &str, path: &Path<'_>) {
    descending(errors, text, path);
    if text.starts_with("..") && !text.split('/').any(|part| part == "..") {
        errors.invalid(path, text, "must not start with '..'");
    }
}

/// A path that stays below where it starts.
pub(super) fn descending(errors: &mut Errors, text: &str, path: &Path<'_>) {
    if text.starts_with('/') {
        errors.invalid(path, text, "must be a relative path");
    }
    if text.split('/').any(|part| part == "..") {
        errors.invalid(path, text, "must not contain '..'");
    }
}

pub(super) fn mounts(errors: &mut Errors, container: &Value, volumes: &BTreeMap<&str, &Value>, path: &Path<'_>) {
    let list = path.field("volumeMounts");
    let mounts = container.list("volumeMounts");
    let repeats = repeats(mounts.iter().map(|mount| mount.text("mountPath")));
    for (index, mount) in mounts.iter().enumerate() {
        let path = list.index(index);
        let (name, target) = (mount.text("name"), mount.text("mountPath"));
        if name.is_empty() {
            errors.required(&path.field("name"), "");
        }
        if !volumes.contains_key(name) {
            errors.push(crate::FieldError::not_found(path.field("name"), name));
        }
        if target.is_empty() {
            errors.required(&path.field("mountPath"), "");
        }
        if repeats[index] {
            errors.invalid(&path.field("mountPath"), target, "must be unique");
        }
        for (field, of) in [("name", "name"), ("mountPath", "devicePath")] {
            let own = mount.text(field);
            if container.list("volumeDevices").iter().any(|device| device.text(of) == own) {
                let as_path = if field == "name" { "" } else { "as a path " };
                errors.invalid(&path.field(field), own, format!("must not already exist {as_path}in volumeDevices"));
            }
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
        let privileged = container["securityContext"].flag("privileged");
        propagation(errors, mount, privileged, &list);
    }
}

/// How a mount and others are seen in each other.
fn propagation(errors: &mut Errors, mount: &Value, privileged: bool, list: &Path<'_>) {
    let how = mount["mountPropagation"].as_str();
    if let Some(how) = how {
        let (path, known) = (list.field("mountPropagation"), ["Bidirectional", "HostToContainer", "None"]);
        if !known.contains(&how) {
            errors.not_supported(&path, how, &known);
        }
        if how == "Bidirectional" && !privileged {
            errors.forbidden(&path, "Bidirectional mount propagation is available only to privileged containers");
        }
    }
    let path = list.field("recursiveReadOnly");
    match mount["recursiveReadOnly"].as_str() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !mount.flag("readOnly") {
                errors.forbidden(&path, "may only be specified when readOnly is true");
            }
            if how.is_some_and(|how| how != "None") {
                errors.forbidden(&path, "may only be specified when mountPropagation is None or not specified");
            }
        }
        Some(other) => errors.not_supported(&path, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

/// Volumes that a container has as devices.
pub(super) fn devices(errors: &mut Errors, container: &Value, volumes: &BTreeMap<&str, &Value>, path: &Path<'_>) {
    let list = path.field("volumeDevices");
    let devices = container.list("volumeDevices");
    let names = repeats(devices.iter().map(|device| device.text("name")));
    let paths = repeats(devices.iter().map(|device| device.text("devicePath")));
    for (index, device) in devices.iter().enumerate() {
        let path = list.index(index);
        let (name_path, target_path) = (path.field("name"), path.field("devicePath"));
        let (name, target) = (device.text("name"), device.text("devicePath"));
        if name.is_empty() {
            errors.required(&name_path, "");
        } else if names[index] {
            errors.invalid(&name_path, name, "must be unique");
        }
        match volumes.get(name) {
            None => errors.push(crate::FieldError::not_found(name_path, name)),
            Some(volume) if !volume.has("persistentVolumeClaim") && !volume.has("ephemeral") => {
                let kinds = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(&name_path, name, kinds);
            }
            Some(_) => {}
        }
        if target.is_empty() {
            errors.required(&target_path, "");
        }
        if paths[index] {
            errors.invalid(&target_path, target, "must be unique");
        }
        if target.split('/').any(|part| part == "..") {
            errors.invalid(&target_path, target, "can not contain backsteps ('..')");
        }
        let mounts = container.list("volumeMounts");
        if mounts.iter().any(|mount| mount.text("name") == name) {
            errors.invalid(&name_path, name, "must not already exist in volumeMounts");
        }
        if mounts.iter().any(|mount| mount.text("mountPath") == target) {
            errors.invalid(&target_path, target, "must not already exist as a path in volumeMounts");
        }
    }
}
