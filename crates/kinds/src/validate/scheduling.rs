//! Where pods may run: taints, tolerations, affinity, spreading, gates.

use serde_json::Value;

use super::{Errors, metadata};
use crate::look::{Look, Path, repeats};
use crate::names;

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
            let mut error = crate::FieldError::duplicate(path, taint.clone());
            "taints must be unique by key and effect pair".clone_into(&mut error.detail);
            errors.push(error);
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
        errors.each(&list.index(index).field("name"), name, names::qualified_name(name));
        if repeats[index] {
            errors.duplicate(&list.index(index).field("name"), name);
        }
    }
}

pub(super) fn spread(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let list = path.field("topologySpreadConstraints");
    let all = spec.list("topologySpreadConstraints");
    let repeats = repeats(all.iter().map(|one| (one.text("topologyKey"), one.text("whenUnsatisfiable"))));
    for (index, constraint) in all.iter().enumerate() {
        let path = list.index(index);
        let skew = constraint.int("maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.invalid(&path.field("maxSkew"), skew, "must be greater than zero");
        }
        let key = constraint.text("topologyKey");
        if key.is_empty() {
            errors.required(&path.field("topologyKey"), "can not be empty");
        } else {
            errors.each(&path.field("topologyKey"), key, names::qualified_name(key));
        }
        let action = constraint.text("whenUnsatisfiable");
        let supported = ["DoNotSchedule", "ScheduleAnyway"];
        if !supported.contains(&action) {
            errors.not_supported(&path.field("whenUnsatisfiable"), action, &supported);
        }
        metadata::selector(errors, &constraint["labelSelector"], &path.field("labelSelector"));
        if repeats[index] {
            let pair = format!("{{{key}, {action}}}");
            errors.duplicate(&path.field("{topologyKey, whenUnsatisfiable}"), pair);
        }
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
            node_term(errors, term, &list.index(index));
        }
    }
    let list = here.field(PREFERRED);
    for (index, item) in nodes.list(PREFERRED).iter().enumerate() {
        let path = list.index(index);
        weight(errors, item, &path);
        node_term(errors, &item["preference"], &path.field("preference"));
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

fn node_term(errors: &mut Errors, term: &Value, path: &Path<'_>) {
    for field in ["matchExpressions", "matchFields"] {
        let list = path.field(field);
        for (index, requirement) in term.list(field).iter().enumerate() {
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
        }
    }
}

fn pod_term(errors: &mut Errors, term: &Value, path: &Path<'_>) {
    metadata::selector(errors, &term["labelSelector"], &path.field("labelSelector"));
    metadata::selector(errors, &term["namespaceSelector"], &path.field("namespaceSelector"));
    let key = term.text("topologyKey");
    if key.is_empty() {
        errors.required(&path.field("topologyKey"), "can not be empty");
    } else {
        errors.each(&path.field("topologyKey"), key, names::qualified_name(key));
    }
}
