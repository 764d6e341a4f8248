//! Where pods may run: taints, tolerations, affinity, spreading, gates.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{Errors, as_go, metadata};
use crate::look::{Look, Path, repeats};
use crate::{FieldError, FieldErrorKind, names};

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
    let repeats = repeats(taints.iter().map(|taint| (&taint["key"], &taint["effect"])));
    for (index, taint) in taints.iter().enumerate() {
        let path = list.index(index);
        errors.each(&path.field("key"), taint.text("key"), names::qualified_name(taint.text("key")));
        let wrong = names::label_value(taint.text("value"));
        if !wrong.is_empty() {
            errors.invalid(&path.field("value"), taint.text("value"), wrong.join(";"));
        }
        taint_effect(errors, taint.text("effect"), &path.field("effect"));
        if repeats[index] {
            let empty = json!("");
            let shown = as_go(
                taint,
                &[
                    ("Key", "key", empty.clone()),
                    ("Value", "value", empty.clone()),
                    ("Effect", "effect", empty),
                    ("TimeAdded", "timeAdded", Value::Null),
                ],
            );
            errors.push(FieldError {
                kind: FieldErrorKind::Duplicate,
                ..FieldError::invalid_as(path, shown, "taints must be unique by key and effect pair")
            });
        }
    }
}

pub(super) fn gates(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let list = path.field("readinessGates");
    for (index, gate) in spec.list("readinessGates").iter().enumerate() {
        let kind = gate.text("conditionType");
        errors.each(&list.index(index).field("conditionType"), kind, names::qualified_name(kind));
    }
    let list = path.field("schedulingGates");
    let gates = spec.list("schedulingGates");
    let repeats = repeats(gates.iter().map(|gate| gate.text("name")));
    for (index, gate) in gates.iter().enumerate() {
        let name = gate.text("name");
        errors.each(&list.index(index), name, names::qualified_name(name));
        if repeats[index] {
            errors.duplicate(&list.index(index), name);
        }
    }
}

pub(super) fn spread(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let list = path.field("topologySpreadConstraints");
    let all = spec.list("topologySpreadConstraints");
    // The first of two is told of.
    let pairs = all.iter().rev().map(|one| (one.text("topologyKey"), one.text("whenUnsatisfiable")));
    let mut repeats = repeats(pairs);
    repeats.reverse();
    for (index, constraint) in all.iter().enumerate() {
        let path = list.index(index);
        errors.positive(&path.field("maxSkew"), constraint.int("maxSkew").unwrap_or(0));
        let key = constraint.text("topologyKey");
        if key.is_empty() {
            errors.required(&path.field("topologyKey"), "can not be empty");
        }
        let action = constraint.text("whenUnsatisfiable");
        let supported = ["DoNotSchedule", "ScheduleAnyway"];
        if !supported.contains(&action) {
            errors.not_supported(&path.field("whenUnsatisfiable"), action, &supported);
        }
        if repeats[index] {
            let pair = format!("{{{key}, {action}}}");
            errors.duplicate(&path.field("{topologyKey, whenUnsatisfiable}"), pair);
        }
        if let Some(domains) = constraint.int("minDomains") {
            let path = path.field("minDomains");
            errors.positive(&path, domains);
            if action != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.invalid(&path, domains, why);
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let known = ["Honor", "Ignore"];
            if let Some(policy) = constraint[field].as_str().filter(|policy| !known.contains(policy)) {
                errors.not_supported(&path.field(field), policy, &known);
            }
        }
        label_keys(errors, constraint, &path);
        metadata::selector(errors, &constraint["labelSelector"], &path.field("labelSelector"));
    }
}

/// Labels whose values the pod's own have, or have not.
fn label_keys(errors: &mut Errors, term: &Value, path: &Path<'_>) {
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let (list, keys) = (path.field(field), term.list(field));
        if !keys.is_empty() && !term.has("labelSelector") {
            errors.forbidden(&list, "must not be specified when labelSelector is not set");
            continue;
        }
        for (index, key) in keys.iter().filter_map(Value::as_str).enumerate() {
            errors.each(&list.index(index), key, names::qualified_name(key));
        }
    }
    let keys = term.list("matchLabelKeys");
    let selector = &term["labelSelector"];
    let mut seen: HashSet<&str> = selector.entries("matchLabels").map(|(key, _)| key).collect();
    for key in selector.list("matchExpressions").iter().map(|requirement| requirement.text("key")) {
        // What a key stands for has been added to the selector as one requirement: a second one is the client's.
        if let Some(index) = keys.iter().rposition(|of| of == key)
            && seen.contains(key)
        {
            errors.invalid(&path.index(index), key, "exists in both matchLabelKeys and labelSelector");
        }
        seen.insert(key);
    }
    let list = path.field("matchLabelKeys");
    for (index, key) in keys.iter().enumerate().filter(|(_, key)| term.list("mismatchLabelKeys").contains(key)) {
        errors.invalid(&list.index(index), key.clone(), "exists in both matchLabelKeys and mismatchLabelKeys");
    }
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Which nodes, and which pods' company, a pod wants or shuns.
pub(super) fn affinity(errors: &mut Errors, affinity: &Value, path: &Path<'_>) {
    let here = path.field("nodeAffinity");
    let nodes = &affinity["nodeAffinity"];
    if nodes.has(REQUIRED) {
        let path = here.field(REQUIRED);
        let list = path.field("nodeSelectorTerms");
        let terms = nodes[REQUIRED].list("nodeSelectorTerms");
        if terms.is_empty() {
            errors.required(&list, "must have at least one node selector term");
        }
        for (index, term) in terms.iter().enumerate() {
            node_term(errors, term, true, &list.index(index));
        }
    }
    let list = here.field(PREFERRED);
    for (index, item) in nodes.list(PREFERRED).iter().enumerate() {
        let path = list.index(index);
        weight(errors, item, &path);
        // Upstream lets a mere preference be for labels that cannot be.
        node_term(errors, &item["preference"], false, &path.field("preference"));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let here = path.field(kind);
        let list = here.field(REQUIRED);
        for (index, term) in affinity[kind].list(REQUIRED).iter().enumerate() {
            pod_term(errors, term, &list.index(index));
        }
        let list = here.field(PREFERRED);
        for (index, item) in affinity[kind].list(PREFERRED).iter().enumerate() {
            let path = list.index(index);
            weight(errors, item, &path);
            pod_term(errors, &item["podAffinityTerm"], &path.field("podAffinityTerm"));
        }
    }
}

fn weight(errors: &mut Errors, item: &Value, path: &Path<'_>) {
    let weight = item.int("weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.field("weight"), weight, "must be in the range 1-100");
    }
}

fn node_term(errors: &mut Errors, term: &Value, strict: bool, path: &Path<'_>) {
    let list = path.field("matchExpressions");
    for (index, requirement) in term.list("matchExpressions").iter().enumerate() {
        let path = list.index(index);
        let count = requirement.list("values").len();
        let values = path.field("values");
        match requirement.text("operator") {
            "In" | "NotIn" if count == 0 => {
                errors.required(&values, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if count > 0 => {
                errors.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            "Gt" | "Lt" if count != 1 => {
                errors.required(&values, "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.invalid(&path.field("operator"), other, "not a valid selector operator"),
        }
        let key = requirement.text("key");
        errors.each(&path.field("key"), key, names::qualified_name(key));
        if strict {
            for (index, value) in requirement.list("values").iter().enumerate() {
                let value = value.as_str().unwrap_or_default();
                errors.each(&values.index(index), value, names::label_value(value));
            }
        }
    }
    let list = path.field("matchFields");
    for (index, requirement) in term.list("matchFields").iter().enumerate() {
        node_field(errors, requirement, &list.index(index));
    }
}

/// A field of a node, which can be its name alone.
fn node_field(errors: &mut Errors, requirement: &Value, path: &Path<'_>) {
    let (all, values) = (requirement.list("values"), path.field("values"));
    match requirement.text("operator") {
        "In" | "NotIn" if all.len() != 1 => {
            let one = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.required(&values, one);
        }
        "In" | "NotIn" => {}
        other => errors.invalid(&path.field("operator"), other, "not a valid selector operator"),
    }
    if requirement.text("key") == "metadata.name" {
        for (index, name) in all.iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            errors.each(&values.index(index), name, names::dns1123_subdomain(name));
        }
    } else {
        errors.invalid(&path.field("key"), requirement.text("key"), "not a valid field selector key");
    }
}

fn pod_term(errors: &mut Errors, term: &Value, path: &Path<'_>) {
    metadata::selector(errors, &term["labelSelector"], &path.field("labelSelector"));
    metadata::selector(errors, &term["namespaceSelector"], &path.field("namespaceSelector"));
    for name in term.list("namespaces") {
        let name = name.as_str().unwrap_or_default();
        errors.each(&path.field("namespace"), name, names::dns1123_label(name));
    }
    label_keys(errors, term, path);
    let (key, path) = (term.text("topologyKey"), path.field("topologyKey"));
    if key.is_empty() {
        errors.required(&path, "can not be empty");
    }
    errors.each(&path, key, names::qualified_name(key));
}
