//! Deployments and ReplicaSets.

use serde_json::Value;

use super::{Errors, as_go, metadata, pod};
use crate::look::{Look, Path};
use crate::{FieldError, names};

const SPEC: Path<'static> = Path::Field(&Path::Root, "spec");

pub(super) fn deployment(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    let spec = &new["spec"];
    common(errors, spec);
    strategy(errors, &spec["strategy"], &SPEC.field("strategy"));
    errors.non_negative(&SPEC.field("minReadySeconds"), spec.int("minReadySeconds"));
    errors.non_negative(&SPEC.field("revisionHistoryLimit"), spec.int("revisionHistoryLimit"));
    if let Some(deadline) = spec.int("progressDeadlineSeconds") {
        let path = SPEC.field("progressDeadlineSeconds");
        errors.non_negative(&path, Some(deadline));
        if deadline <= spec.int("minReadySeconds").unwrap_or(0) {
            errors.invalid(&path, deadline, "must be greater than minReadySeconds");
        }
    }
    if let Some(old) = old {
        same_selector(errors, spec, &old["spec"]);
    }
}

pub(super) fn replica_set(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    let spec = &new["spec"];
    errors.non_negative(&SPEC.field("minReadySeconds"), spec.int("minReadySeconds"));
    common(errors, spec);
    if let Some(old) = old {
        same_selector(errors, spec, &old["spec"]);
    }
}

fn same_selector(errors: &mut Errors, new: &Value, old: &Value) {
    if new["selector"] != old["selector"] {
        errors.invalid_as(&SPEC.field("selector"), written(&new["selector"]), "field is immutable");
    }
}

/// A selector with its fields in the order of Kubernetes.
fn written(selector: &Value) -> String {
    let field = |name: &str| selector.get(name).map(|value| format!("\"{name}\":{value}"));
    let fields: Vec<String> = ["matchLabels", "matchExpressions"].into_iter().filter_map(field).collect();
    if selector.is_null() { "null".to_owned() } else { format!("{{{}}}", fields.join(",")) }
}

fn common(errors: &mut Errors, spec: &Value) {
    errors.non_negative(&SPEC.field("replicas"), spec.int("replicas"));
    let selector = &spec["selector"];
    let path = SPEC.field("selector");
    let empty = selector.entries("matchLabels").next().is_none() && selector.list("matchExpressions").is_empty();
    if selector.is_null() {
        errors.required(&path, "");
    } else {
        let before = errors.0.len();
        metadata::selector(errors, selector, &path);
        let invalid = errors.0.len() > before;
        if empty {
            // Upstream says so of ReplicaSets too.
            errors.invalid_as(&path, written(selector), "empty selector is invalid for deployment");
        }
        if invalid {
            return errors.invalid_as(&path, written(selector), "invalid label selector");
        }
    }
    let path = SPEC.field("template");
    let template = &spec["template"];
    let labels = &template["metadata"]["labels"];
    // No selector selects nothing, and an empty one everything.
    if selector.is_null() || !(empty || metadata::matches(selector, labels)) {
        let why = "`selector` does not match template `labels`";
        errors.invalid(&path.field("metadata").field("labels"), labels.clone(), why);
    }
    pod::template(errors, template, &path);
    let policy = template["spec"].text("restartPolicy");
    if policy != "Always" && !policy.is_empty() {
        errors.not_supported(&path.field("spec").field("restartPolicy"), policy, &["Always"]);
    }
    if template["spec"].has("activeDeadlineSeconds") {
        errors.forbidden(
            &path.field("spec").field("activeDeadlineSeconds"),
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        );
    }
}

fn strategy(errors: &mut Errors, strategy: &Value, path: &Path<'_>) {
    let rolling = &strategy["rollingUpdate"];
    match strategy.text("type") {
        "Recreate" => {
            if !rolling.is_null() {
                errors
                    .forbidden(&path.field("rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" => {
            let path = path.field("rollingUpdate");
            if rolling.is_null() {
                errors.required(&path, "this should be defaulted and never be nil");
                return;
            }
            for field in ["maxUnavailable", "maxSurge"] {
                count_or_percent(errors, &rolling[field], &path.field(field));
            }
            if value_of(&rolling["maxUnavailable"]) == Some(0) && value_of(&rolling["maxSurge"]) == Some(0) {
                errors.invalid(
                    &path.field("maxUnavailable"),
                    rolling["maxUnavailable"].clone(),
                    "may not be 0 when `maxSurge` is 0",
                );
            }
            let percent = rolling["maxUnavailable"].as_str().and_then(|text| text.strip_suffix('%'));
            if percent.and_then(|text| text.parse::<i64>().ok()).is_some_and(|number| number > 100) {
                errors.invalid(
                    &path.field("maxUnavailable"),
                    rolling["maxUnavailable"].clone(),
                    "must not be greater than 100%",
                );
            }
        }
        _ => {
            let rolling = match rolling {
                Value::Null => "null".to_owned(),
                of => as_go(of, &[("MaxUnavailable", "maxUnavailable", 0.into()), ("MaxSurge", "maxSurge", 0.into())]),
            };
            let shown = format!("{{\"Type\":{},\"RollingUpdate\":{rolling}}}", strategy["type"]);
            let value = Some(shown);
            errors.push(FieldError {
                value,
                ..FieldError::not_supported(path, Value::Null, &["Recreate", "RollingUpdate"])
            });
        }
    }
}

/// The number, or the percentage without its sign.
fn value_of(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.strip_suffix('%')?.parse().ok(),
        other => other.as_i64(),
    }
}

fn count_or_percent(errors: &mut Errors, value: &Value, path: &Path<'_>) {
    match value {
        Value::String(text) => {
            if let Some(message) = names::percent(text) {
                errors.invalid(path, text.as_str(), message);
            }
        }
        other => errors.non_negative(path, other.as_i64()),
    }
}

const STATUS: Path<'static> = Path::Field(&Path::Root, "status");

pub(super) fn deployment_status(errors: &mut Errors, new: &Value) {
    let status = &new["status"];
    counts(
        errors,
        status,
        &[
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
        ],
    );
    errors.non_negative(&STATUS.field("collisionCount"), status.int("collisionCount"));
    not_above(
        errors,
        status,
        &[
            ("updatedReplicas", "replicas", "status.replicas"),
            ("readyReplicas", "replicas", "status.replicas"),
            ("availableReplicas", "replicas", "status.replicas"),
            ("availableReplicas", "readyReplicas", "readyReplicas"),
        ],
    );
}

pub(super) fn replica_set_status(errors: &mut Errors, new: &Value) {
    let status = &new["status"];
    counts(
        errors,
        status,
        &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"],
    );
    not_above(
        errors,
        status,
        &[
            ("fullyLabeledReplicas", "replicas", "status.replicas"),
            ("readyReplicas", "replicas", "status.replicas"),
            ("availableReplicas", "replicas", "status.replicas"),
            ("availableReplicas", "readyReplicas", "readyReplicas"),
        ],
    );
}

fn counts(errors: &mut Errors, status: &Value, fields: &[&str]) {
    for field in fields {
        errors.non_negative(&STATUS.field(field), status.int(field));
    }
}

fn not_above(errors: &mut Errors, status: &Value, pairs: &[(&str, &str, &str)]) {
    for (field, limit, name) in pairs {
        let (value, limit) = (status.int(field).unwrap_or(0), status.int(limit).unwrap_or(0));
        if value > limit {
            errors.invalid(&STATUS.field(field), value, format!("cannot be greater than {name}"));
        }
    }
}
