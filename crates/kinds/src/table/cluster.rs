//! Nodes, Namespaces, Leases, ConfigMaps, Secrets and ServiceAccounts.

use jiff::Timestamp;
use serde_json::Value;

use super::Says::{Field, Text};
use super::{AGE, CREATED, Drawn, NAME, age, name, or_none, shown, wide};
use crate::look::Look;

pub(super) const NODE: &[Drawn] = &[
    NAME,
    shown("Status", "string", Text("The status of the node")),
    shown("Roles", "string", Text("The roles of the node")),
    AGE,
    shown("Version", "string", Field("core.v1.NodeSystemInfo", "kubeletVersion")),
    wide("Internal-IP", Field("core.v1.NodeStatus", "addresses")),
    wide("External-IP", Field("core.v1.NodeStatus", "addresses")),
    wide("OS-Image", Field("core.v1.NodeSystemInfo", "osImage")),
    wide("Kernel-Version", Field("core.v1.NodeSystemInfo", "kernelVersion")),
    wide("Container-Runtime", Field("core.v1.NodeSystemInfo", "containerRuntimeVersion")),
];

pub(super) const NAMESPACE: &[Drawn] = &[NAME, shown("Status", "string", Text("The status of the namespace")), AGE];

pub(super) const DEFINITION: &[Drawn] = &[NAME, CREATED];

pub(super) const LEASE: &[Drawn] =
    &[NAME, shown("Holder", "string", Field("coordination.v1.LeaseSpec", "holderIdentity")), AGE];

pub(super) const CONFIG_MAP: &[Drawn] = &[NAME, shown("Data", "string", Field("core.v1.ConfigMap", "data")), AGE];

pub(super) const SECRET: &[Drawn] = &[
    NAME,
    shown("Type", "string", Field("core.v1.Secret", "type")),
    shown("Data", "string", Field("core.v1.Secret", "data")),
    AGE,
];

pub(super) const SERVICE_ACCOUNT: &[Drawn] = &[NAME, AGE];

fn address<'a>(status: &'a Value, kind: &str) -> &'a str {
    let found = status.list("addresses").iter().find(|address| address.text("type") == kind);
    found.map_or("<none>", |address| address.text("address"))
}

pub(super) fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    let ready = status.list("conditions").iter().find(|condition| condition.text("type") == "Ready");
    let mut state = match ready.map(|condition| condition.text("status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if object["spec"].flag("unschedulable") {
        state.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = object["metadata"]
        .entries("labels")
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some("") => None,
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str().filter(|role| !role.is_empty()),
            None => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let info = &status["nodeInfo"];
    let unknown = |field: &str| match info.text(field) {
        "" => "<unknown>".into(),
        text => Value::from(text),
    };
    let kernel = match (info.text("kernelVersion"), info.text("architecture")) {
        ("", _) => "<unknown>".to_owned(),
        (version, "") => version.to_owned(),
        (version, architecture) => format!("{version} ({architecture})"),
    };
    vec![
        name(object),
        state.into(),
        or_none(roles.join(",")),
        age(object, now),
        info.text("kubeletVersion").into(),
        address(status, "InternalIP").into(),
        address(status, "ExternalIP").into(),
        unknown("osImage"),
        kernel.into(),
        unknown("containerRuntimeVersion"),
    ]
}

pub(super) fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object["status"].text("phase").into(), age(object, now)]
}

pub(super) fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object["spec"].text("holderIdentity").into(), age(object, now)]
}

pub(super) fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = object.entries("data").count() + object.entries("binaryData").count();
    vec![name(object), count.into(), age(object, now)]
}

pub(super) fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object.text("type").into(), object.entries("data").count().into(), age(object, now)]
}

pub(super) fn service_account(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

pub(super) fn definition(object: &Value) -> Vec<Value> {
    vec![name(object), object["metadata"]["creationTimestamp"].clone()]
}
