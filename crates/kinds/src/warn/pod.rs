//! Pods, and templates of pods.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Warnings, volume};
use crate::look::{Look, Path, repeats};
use crate::names;
use crate::quantity::Quantity;

const NO_POD: &str = "a null labelSelector results in matching no pod";

/// Labels of nodes that have other names today.
const OLD_LABELS: [(&str, &str); 8] = [
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    ("failure-domain.beta.kubernetes.io/zone", "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"),
    ("beta.kubernetes.io/instance-type", "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    ("scheduler.alpha.kubernetes.io/preferAvoidPods", "deprecated since v1.22; use Taints and Tolerations instead"),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
];

/// Annotations that fields have taken the place of.
const OLD_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
];

const SECCOMP: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";

fn old_label(key: &str) -> Option<&'static str> {
    OLD_LABELS.iter().find(|(label, _)| *label == key).map(|(_, instead)| *instead)
}

/// `path` leads to what has the pod's metadata and spec.
pub(super) fn pod(found: &mut Warnings, pod: &Value, path: &Path<'_>) {
    let metadata = path.field("metadata");
    let annotations = (&pod["metadata"]["annotations"], metadata.field("annotations"));
    let (spec, is_template) = (&pod["spec"], !matches!(path, Path::Root));
    let path = path.field("spec");
    let list = path.field("nodeSelector");
    for (key, _) in spec.entries("nodeSelector") {
        if let Some(instead) = old_label(key) {
            found.push(&list.key(key), instead);
        }
    }
    node_affinity(found, &spec["affinity"]["nodeAffinity"], &path.field("affinity"));
    let list = path.field("topologySpreadConstraints");
    for (index, constraint) in spec.list("topologySpreadConstraints").iter().enumerate() {
        let key = constraint.text("topologyKey");
        if let Some(instead) = old_label(key) {
            found.push(&list.index(index).field("topologyKey"), format_args!("{key} is {instead}"));
        }
        if !constraint.has("labelSelector") {
            found.push(&list.index(index).field("labelSelector"), NO_POD);
        }
    }
    for (key, instead) in OLD_ANNOTATIONS.iter().filter(|(key, _)| annotations.0.has(key)) {
        found.push(&annotations.1.key(key), instead);
    }
    volume::volumes(found, spec.list("volumes"), &path.field("volumes"));
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
    fractions(found, &spec["overhead"], &path.field("overhead"));
    let old_key = "seccomp.security.alpha.kubernetes.io/pod";
    if !spec["securityContext"].has("seccompProfile") && annotations.0.has(old_key) {
        found.push(&annotations.1.key(old_key), SECCOMP);
    }
    for (container, path) in containers() {
        let (name, context) = (container.text("name"), &container["securityContext"]);
        let key = format!("container.seccomp.security.alpha.kubernetes.io/{name}");
        if !context.has("seccompProfile") && annotations.0.has(&key) {
            found.push(&annotations.1.key(&key), SECCOMP);
        }
        // A pod's own annotation is made a field of.
        let key = format!("container.apparmor.security.beta.kubernetes.io/{name}");
        if is_template
            && !context.has("appArmorProfile")
            && !spec["securityContext"].has("appArmorProfile")
            && annotations.0.has(&key)
        {
            let instead = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
            found.push(&annotations.1.key(&key), instead);
        }
        for (resource, field) in [
            ("memory", "limits"),
            ("memory", "requests"),
            ("ephemeral-storage", "limits"),
            ("ephemeral-storage", "requests"),
        ] {
            let path = path.field("resources");
            fraction(found, &container["resources"][field], resource, &path.field(field));
        }
        hidden_variables(found, container, &path);
    }
    let mut ports: BTreeMap<(i64, &str), Vec<(String, &Value)>> = BTreeMap::new();
    for (container, path) in containers() {
        let list = path.field("ports");
        for (index, port) in container.list("ports").iter().enumerate() {
            let path = list.index(index);
            if !port.text("hostIP").is_empty() && port.int("hostPort").unwrap_or(0) == 0 {
                let [name, protocol, address] = ["name", "protocol", "hostIP"].map(|field| port.text(field));
                let number = port.int("containerPort").unwrap_or(0);
                found.push(
                    &path,
                    format_args!(
                        "hostIP set without hostPort: {{Name:{name} HostPort:0 ContainerPort:{number} \
                         Protocol:{protocol} HostIP:{address}}}"
                    ),
                );
            }
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

/// `path` leads to the pod's affinity.
fn node_affinity(found: &mut Warnings, affinity: &Value, path: &Path<'_>) {
    let path = path.field("nodeAffinity");
    let required = path.field("requiredDuringSchedulingIgnoredDuringExecution");
    let list = required.field("nodeSelectorTerms");
    let terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"].list("nodeSelectorTerms");
    for (index, term) in terms.iter().enumerate() {
        node_term(found, term, false, &list.index(index));
    }
    let list = path.field("preferredDuringSchedulingIgnoredDuringExecution");
    let terms = affinity.list("preferredDuringSchedulingIgnoredDuringExecution");
    for (index, term) in terms.iter().enumerate() {
        node_term(found, &term["preference"], true, &list.index(index).field("preference"));
    }
}

/// What a required term may not have is an error.
fn node_term(found: &mut Warnings, term: &Value, preferred: bool, path: &Path<'_>) {
    let list = path.field("matchExpressions");
    for (index, requirement) in term.list("matchExpressions").iter().enumerate() {
        let path = list.index(index);
        let key = requirement.text("key");
        if let Some(instead) = old_label(key) {
            found.push(&path.field("key"), format_args!("{key} is {instead}"));
        }
        let list = path.field("values");
        for (index, value) in requirement.list("values").iter().enumerate().filter(|_| preferred) {
            let value = value.as_str().unwrap_or_default();
            for wrong in names::label_value(value) {
                found.push(&list.index(index), format_args!("{value} is invalid, {wrong}"));
            }
        }
    }
}

fn fractions(found: &mut Warnings, quantities: &Value, path: &Path<'_>) {
    for resource in ["memory", "ephemeral-storage"] {
        fraction(found, quantities, resource, path);
    }
}

/// There is no half a byte.
fn fraction(found: &mut Warnings, quantities: &Value, resource: &str, path: &Path<'_>) {
    let text = quantities.text(resource);
    if Quantity::parse(text).is_some_and(|quantity| !quantity.is_whole()) {
        found
            .push(&path.key(resource), format_args!("fractional byte value \"{text}\" is invalid, must be an integer"));
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
