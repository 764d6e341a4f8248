//! Adds to an object what Go writes of every struct, whether somebody set it or not: structs and times that stand in their
//! owner itself, and what is always written, if only as null.
//!
//! Invariant: idempotent; changes nothing that is there.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::decode::empty_of;
use crate::schema::{Field, Scalar, Shape, Type, table};

/// What is written of a field that nobody set, if anything is: of a struct, the empty one.
pub(crate) fn unset(field: &Field) -> Option<&'static Value> {
    static NULL: Value = Value::Null;
    static FALSE: Value = Value::Bool(false);
    static TEXT: Value = Value::String(String::new());
    static NO_QUANTITY: LazyLock<Value> = LazyLock::new(|| "0".into());
    static ZERO: LazyLock<Value> = LazyLock::new(|| empty_of(&Shape::Scalar(Scalar::Int32)));
    static STRUCT: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
    match &field.shape {
        Shape::Object(_) if field.by_value => Some(&STRUCT),
        Shape::Scalar(Scalar::Quantity) if field.by_value => Some(&NO_QUANTITY),
        Shape::Scalar(_) if field.by_value => Some(&NULL),
        _ if !field.always => None,
        Shape::Scalar(_) if field.pointer => Some(&NULL),
        Shape::Scalar(Scalar::String) => Some(&TEXT),
        Shape::Scalar(Scalar::Bool) => Some(&FALSE),
        Shape::Scalar(Scalar::Int32 | Scalar::Int64) => Some(&ZERO),
        // What it stands for is not empty, and whoever leaves it out is told.
        Shape::Scalar(_) => None,
        Shape::Object(_) | Shape::List(_) | Shape::Map(_) => Some(&NULL),
    }
}

/// Completes a decoded and defaulted object of the type.
pub(crate) fn complete(schema: &'static Type, object: &mut Value) {
    let Value::Object(map) = object else { return };
    for field in &schema.fields {
        if let Some(value) = map.get_mut(field.name) {
            inside(&field.shape, value);
            continue;
        }
        if let Some(unset) = unset(field) {
            let mut value = unset.clone();
            inside(&field.shape, &mut value);
            map.insert(field.name.to_owned(), value);
        }
    }
}

fn inside(shape: &'static Shape, value: &mut Value) {
    match shape {
        Shape::Object(index) => complete(&table().types[*index], value),
        Shape::List(item) if !matches!(**item, Shape::Scalar(_)) => {
            value.as_array_mut().into_iter().flatten().for_each(|element| inside(item, element));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_go_always_writes() {
        for (type_name, sent, expected) in [
            (
                "discovery.v1.EndpointSlice",
                json!({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]}),
                json!({"metadata": {"name": "a"}, "addressType": "IPv4", "ports": null,
                       "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {}}]}),
            ),
            (
                "core.v1.ContainerStatus",
                json!({"name": "c", "ready": true}),
                json!({"name": "c", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {}, "lastState": {}}),
            ),
            (
                "core.v1.PodCondition",
                json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}),
                json!({"type": "Ready", "status": "True", "lastProbeTime": null,
                       "lastTransitionTime": "2026-01-01T00:00:00Z"}),
            ),
            (
                "core.v1.ResourceFieldSelector",
                json!({"resource": "limits.cpu"}),
                json!({"resource": "limits.cpu", "divisor": "0"}),
            ),
            ("apps.v1.ReplicaSetStatus", json!({}), json!({"replicas": 0})),
            ("core.v1.NodeDaemonEndpoints", json!({}), json!({"kubeletEndpoint": {"Port": 0}})),
        ] {
            let mut object = sent;
            complete(table().find(type_name).unwrap(), &mut object);
            assert_eq!(object, expected, "{type_name}");
        }
    }
}
