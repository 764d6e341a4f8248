//! Pods, and templates of pods.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Warnings;
use crate::look::{Look, Path, repeats};

const NO_POD: &str = "a null labelSelector results in matching no pod";

/// `path` leads to what has the pod's metadata and spec.
pub(super) fn pod(found: &mut Warnings, pod: &Value, path: &Path<'_>) {
    let (spec, path) = (&pod["spec"], path.field("spec"));
    let list = path.field("topologySpreadConstraints");
    for (index, constraint) in spec.list("topologySpreadConstraints").iter().enumerate() {
        if !constraint.has("labelSelector") {
            found.push(&list.index(index).field("labelSelector"), NO_POD);
        }
    }
    twice(found, spec.list("hostAliases"), &path.field("hostAliases"), "ip");
    let secrets = path.field("imagePullSecrets");
    twice(found, spec.list("imagePullSecrets"), &secrets, "name");
    for (index, _) in spec.list("imagePullSecrets").iter().enumerate().filter(|(_, item)| item.text("name").is_empty())
    {
        found.push(&secrets.index(index).field("name"), "invalid empty name \"\"");
    }
    let kinds = ["initContainers", "containers"].map(|kind| (kind, path.field(kind)));
    let containers = || {
        kinds.iter().flat_map(|(kind, list)| {
            spec.list(kind).iter().enumerate().map(|(index, container)| (container, list.index(index)))
        })
    };
    for (container, path) in containers() {
        hidden_variables(found, container, &path);
    }
    let mut ports: BTreeMap<(i64, &str), Vec<(String, &Value)>> = BTreeMap::new();
    for (container, path) in containers() {
        let list = path.field("ports");
        for (index, port) in container.list("ports").iter().enumerate() {
            let path = list.index(index);
            let same = ports.entry((port.int("containerPort").unwrap_or(0), port.text("protocol"))).or_default();
            for (other_path, other) in &*same {
                if found.are_many() {
                    break;
                }
                if let Some(words) = clash(port, other) {
                    found.push(&path, format_args!("{words} port definition with {other_path}"));
                }
            }
            same.push((path.to_string(), port));
        }
    }
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    for (container, path) in containers() {
        let list = path.field("ports");
        for (index, port) in container.list("ports").iter().enumerate().filter(|(_, port)| port.has("name")) {
            let (path, name) = (list.index(index), port.text("name"));
            match names.get(name) {
                Some(first) => found.push(
                    &path,
                    format_args!(
                        "duplicate port name \"{name}\" with {first}, services and probes that select ports by name will \
                         use {first}"
                    ),
                ),
                None => _ = names.insert(name, path.to_string()),
            }
        }
    }
    if spec.int("terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0) {
        let path = path.field("terminationGracePeriodSeconds");
        found.push(&path, "must be >= 0; negative values are invalid and will be treated as 1");
    }
    affinity(found, &spec["affinity"], &path.field("affinity"));
    let config = path.field("dnsConfig");
    let list = config.field("nameservers");
    for (index, server) in spec["dnsConfig"].list("nameservers").iter().enumerate() {
        found.address(&list.index(index), server.as_str().unwrap_or_default());
    }
    let list = path.field("hostAliases");
    for (index, alias) in spec.list("hostAliases").iter().enumerate() {
        found.address(&list.index(index).field("ip"), alias.text("ip"));
    }
}

fn twice(found: &mut Warnings, items: &[Value], list: &Path<'_>, field: &str) {
    let repeats = repeats(items.iter().map(|item| item.text(field)));
    for (index, item) in items.iter().enumerate() {
        if repeats[index] {
            found.push(&list.index(index).field(field), format_args!("duplicate {field} \"{}\"", item.text(field)));
        }
    }
}

/// A variable may be told again if the new value makes use of the old one.
fn hidden_variables(found: &mut Warnings, container: &Value, path: &Path<'_>) {
    let (variables, list) = (container.list("env"), path.field("env"));
    let repeats = repeats(variables.iter().map(|variable| variable.text("name")));
    for (index, variable) in variables.iter().enumerate() {
        let name = variable.text("name");
        if !repeats[index] {
            continue;
        }
        let (value, reference) = (variable.text("value"), format!("$({name})"));
        if variable.has("valueFrom") || value == reference || !value.contains(&reference) {
            found.push(
                &list.index(index),
                format_args!("hides previous definition of \"{name}\", which may be dropped when using apply"),
            );
        }
    }
}

/// How two ports of one number and protocol get into each other's way.
fn clash(port: &Value, other: &Value) -> Option<&'static str> {
    let host = |port: &Value| port.int("hostPort").unwrap_or(0);
    let (here, there) = (port.text("hostIP"), other.text("hostIP"));
    if here == there && host(port) == host(other) {
        Some("duplicate")
    } else if host(port) == 0 || host(other) == 0 {
        Some("overlapping")
    } else if host(port) == host(other) && here.is_empty() != there.is_empty() {
        Some("dangerously ambiguous")
    } else {
        None
    }
}

fn affinity(found: &mut Warnings, affinity: &Value, path: &Path<'_>) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (terms, path) = (&affinity[kind], path.field(kind));
        for (field, nested) in [
            ("requiredDuringSchedulingIgnoredDuringExecution", None),
            ("preferredDuringSchedulingIgnoredDuringExecution", Some("podAffinityTerm")),
        ] {
            let list = path.field(field);
            for (index, term) in terms.list(field).iter().enumerate() {
                let path = list.index(index);
                match nested {
                    None if !term.has("labelSelector") => found.push(&path.field("labelSelector"), NO_POD),
                    Some(nested) if !term[nested].has("labelSelector") => {
                        found.push(&path.field(nested).field("labelSelector"), NO_POD);
                    }
                    _ => {}
                }
            }
        }
    }
}
