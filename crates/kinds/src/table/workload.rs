//! Deployments and ReplicaSets.

use jiff::Timestamp;
use serde_json::Value;

use super::Says::{Field, Text};
use super::{AGE, Drawn, NAME, age, containers, name, selector, shown, wide};
use crate::look::Look;

pub(super) const DEPLOYMENT: &[Drawn] = &[
    NAME,
    shown("Ready", "string", Text("Number of the pod with ready state")),
    shown("Up-to-date", "string", Field("apps.v1.DeploymentStatus", "updatedReplicas")),
    shown("Available", "string", Field("apps.v1.DeploymentStatus", "availableReplicas")),
    AGE,
    wide("Containers", Text("Names of each container in the template.")),
    wide("Images", Text("Images referenced by each container in the template.")),
    wide("Selector", Field("apps.v1.DeploymentSpec", "selector")),
];

pub(super) const REPLICA_SET: &[Drawn] = &[
    NAME,
    shown("Desired", "integer", Field("apps.v1.ReplicaSetSpec", "replicas")),
    shown("Current", "integer", Field("apps.v1.ReplicaSetStatus", "replicas")),
    shown("Ready", "integer", Field("apps.v1.ReplicaSetStatus", "readyReplicas")),
    AGE,
    wide("Containers", Text("Names of each container in the template.")),
    wide("Images", Text("Images referenced by each container in the template.")),
    wide("Selector", Field("apps.v1.ReplicaSetSpec", "selector")),
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
