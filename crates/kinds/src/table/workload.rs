//! Deployments and ReplicaSets.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, NAME, age, containers, name, selector, shown, wide};
use crate::Column;
use crate::look::Look;

pub(super) const DEPLOYMENT: &[Column] = &[
    NAME,
    shown("Ready", "string", "Pods that are ready, of those wanted."),
    shown("Up-to-date", "integer", "Pods made from the newest template."),
    shown("Available", "integer", "Pods that have been ready for long enough."),
    AGE,
    wide("Containers", "Names of the containers in the template."),
    wide("Images", "Images of the containers in the template."),
    wide("Selector", "Label selector for pods."),
];

pub(super) const REPLICA_SET: &[Column] = &[
    NAME,
    shown("Desired", "integer", "Pods wanted."),
    shown("Current", "integer", "Pods there are."),
    shown("Ready", "integer", "Pods that are ready."),
    AGE,
    wide("Containers", "Names of the containers in the template."),
    wide("Images", "Images of the containers in the template."),
    wide("Selector", "Label selector for pods."),
];

fn count(value: &Value, field: &str) -> Value {
    value.int(field).unwrap_or(0).into()
}

pub(super) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]["spec"]);
    vec![
        name(object),
        format!("{}/{}", count(status, "readyReplicas"), count(spec, "replicas")).into(),
        count(status, "updatedReplicas"),
        count(status, "availableReplicas"),
        age(object, now),
        names,
        images,
        selector(&spec["selector"]),
    ]
}

pub(super) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]["spec"]);
    vec![
        name(object),
        count(spec, "replicas"),
        count(status, "replicas"),
        count(status, "readyReplicas"),
        age(object, now),
        names,
        images,
        selector(&spec["selector"]),
    ]
}
