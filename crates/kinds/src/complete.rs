//! Adds to an object what Go writes of every struct, whether somebody set it or not: structs that stand in their owner
//! itself, and required words and numbers.
//!
//! Invariant: idempotent; changes nothing that is there. Deliberately not here: times and lists that Go writes as null,
//! for nothing that is stored is null.

use serde_json::{Map, Value};

use crate::decode::empty_of;
use crate::schema::{Scalar, Shape, Type, table};

/// Completes a decoded and defaulted object of the type.
pub(crate) fn complete(schema: &'static Type, object: &mut Value) {
    let Value::Object(map) = object else { return };
    for field in &schema.fields {
        if let Some(value) = map.get_mut(field.name) {
            inside(&field.shape, value);
            continue;
        }
        match &field.shape {
            Shape::Object(index) if field.by_value => {
                let mut empty = Value::Object(Map::new());
                complete(&table().types[*index], &mut empty);
                map.insert(field.name.to_owned(), empty);
            }
            Shape::Scalar(Scalar::String | Scalar::Bool | Scalar::Int32 | Scalar::Int64)
                if field.always && !field.pointer =>
            {
                map.insert(field.name.to_owned(), empty_of(&field.shape));
            }
            _ => {}
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
                json!({"metadata": {"name": "a"}, "addressType": "IPv4",
                       "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {}}]}),
            ),
            (
                "core.v1.ContainerStatus",
                json!({"name": "c", "ready": true}),
                json!({"name": "c", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {}, "lastState": {}}),
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
