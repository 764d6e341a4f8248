//! A JSON object of the program's own kinds -> its message in Kubernetes' protobuf envelope; lists and events of
//! watches in pieces.
//!
//! Invariants: equal objects give equal bytes, with fields in the order of their numbers; what `to_json` makes of them
//! is the object again. Empty fields are left out, which Go writes of every struct; whoever reads cannot tell.
//! Deliberately not here: kinds that somebody defined, and Tables; there are no messages for them, upstream neither.
//! Source: `generated.proto` of each group, `serializer/protobuf` of apimachinery.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::{MAGIC, Message, definition, find};
use crate::look::Look;
use crate::schema::{Scalar, Shape, Type, table};

/// Lists and partial objects all have these fields.
const METADATA: u64 = 1;
const ITEMS: u64 = 2;

/// The object in its envelope; `None` if protobuf has no message for its kind.
pub fn from_json(object: &Value) -> Option<Vec<u8>> {
    let message = of(object)?;
    let mut whole = envelope(object.text("apiVersion"), object.text("kind"), message.0.len());
    whole.extend(message.0);
    Some(whole)
}

/// The object as an item of a list.
pub fn item(object: &Value) -> Option<Vec<u8>> {
    let mut list = Message::default();
    list.message(ITEMS, &of(object)?);
    Some(list.0)
}

/// A list up to its items, which are to follow in so many bytes.
pub fn list_head(api_version: &str, kind: &str, metadata: &Value, items: usize) -> Vec<u8> {
    let mut list = Message::default();
    list.message(METADATA, &typed("meta.v1.ListMeta", metadata));
    let mut head = envelope(api_version, kind, list.0.len() + items);
    head.extend(list.0);
    head
}

/// A frame of a watch: what happened, and to which object, in its envelope.
pub fn watch_event(event: &str, object: &[u8]) -> Vec<u8> {
    let mut raw = Message::default();
    raw.bytes(1, object);
    let mut message = Message::default();
    message.text(1, event);
    message.message(2, &raw);
    let length = u32::try_from(message.0.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &message.0].concat()
}

/// The envelope of a message that is to follow in so many bytes.
fn envelope(api_version: &str, kind: &str, length: usize) -> Vec<u8> {
    let mut type_meta = Message::default();
    type_meta.text(1, api_version);
    type_meta.text(2, kind);
    let mut envelope = Message(MAGIC.to_vec());
    envelope.message(1, &type_meta);
    envelope.announce(2, length);
    envelope.0
}

fn of(object: &Value) -> Option<Message> {
    let (api_version, kind) = (object.text("apiVersion"), object.text("kind"));
    if (api_version, kind) == ("meta.k8s.io/v1", "PartialObjectMetadata") {
        let mut partial = Message::default();
        partial.message(METADATA, &typed("meta.v1.ObjectMeta", &object["metadata"]));
        return Some(partial);
    }
    Some(message(find(api_version, kind)?, object.as_object()?, &[]))
}

/// The message of a type of the table.
pub(super) fn typed(name: &str, value: &Value) -> Message {
    match (table().find(name), value) {
        (Some(schema), Value::Object(object)) => message(schema, object, &[]),
        _ => Message::default(),
    }
}

/// The fields of an object whose numbers begin with `prefix`, which protobuf has in a message of their own.
fn message(schema: &Type, object: &Map<String, Value>, prefix: &[u64]) -> Message {
    let mut made = Message::default();
    let mut nested = None;
    for field in schema.numbered() {
        match field.tag.strip_prefix(prefix) {
            Some([number]) => {
                if let Some(value) = object.get(field.name)
                    && !definition::put(&mut made, *number, (schema, field), value)
                {
                    put(&mut made, *number, &field.shape, value);
                }
            }
            Some([number, _, ..]) if nested != Some(*number) => {
                nested = Some(*number);
                let inner = message(schema, object, &[prefix, &[*number]].concat());
                if !inner.0.is_empty() {
                    made.message(*number, &inner);
                }
            }
            _ => {}
        }
    }
    made
}

/// Writes a field of a shape. Objects are checked when they are stored, so what does not fit is not there.
fn put(message: &mut Message, number: u64, shape: &Shape, value: &Value) {
    match (shape, value) {
        (Shape::List(item), Value::Array(items)) => items.iter().for_each(|value| one(message, number, item, value)),
        (Shape::Map(item), Value::Object(map)) => {
            for (key, value) in map {
                let mut entry = Message::default();
                entry.bytes(1, key.as_bytes());
                one(&mut entry, 2, item, value);
                message.message(number, &entry);
            }
        }
        _ => one(message, number, shape, value),
    }
}

fn one(message: &mut Message, number: u64, shape: &Shape, value: &Value) {
    match (shape, value) {
        (Shape::Object(index), Value::Object(object)) => {
            message.message(number, &self::message(&table().types[*index], object, &[]));
        }
        // A map's value that is a list is a message of its own.
        (Shape::List(item), Value::Array(items)) => {
            let mut list = Message::default();
            items.iter().for_each(|value| one(&mut list, 1, item, value));
            message.message(number, &list);
        }
        (Shape::Scalar(scalar), value) => self::scalar(message, number, *scalar, value),
        _ => {}
    }
}

fn scalar(message: &mut Message, number: u64, scalar: Scalar, value: &Value) {
    match (scalar, value) {
        (Scalar::Any | Scalar::Json, value) => message.message(number, &raw(value)),
        (Scalar::Bool, Value::Bool(flag)) => message.varint(number, u64::from(*flag)),
        (Scalar::Int32 | Scalar::Int64, Value::Number(whole)) => {
            message.varint(number, whole.as_i64().unwrap_or_default().cast_unsigned());
        }
        (Scalar::Float64, Value::Number(float)) => message.float(number, float.as_f64().unwrap_or_default()),
        (Scalar::String, Value::String(text)) => message.bytes(number, text.as_bytes()),
        (Scalar::Bytes, Value::String(text)) => {
            // Go reads base64 in lines.
            let text: String = text.chars().filter(|letter| !matches!(letter, '\r' | '\n')).collect();
            message.bytes(number, &STANDARD.decode(text).unwrap_or_default());
        }
        (Scalar::Quantity, Value::String(text)) => {
            let mut quantity = Message::default();
            quantity.bytes(1, text.as_bytes());
            message.message(number, &quantity);
        }
        (Scalar::Time | Scalar::MicroTime, Value::String(text)) => {
            if let Ok(time) = text.parse::<jiff::Timestamp>() {
                message.message(number, &at(time));
            }
        }
        (Scalar::IntOrString, value) => {
            let mut either = Message::default();
            match value {
                Value::String(text) => {
                    either.varint(1, 1);
                    either.bytes(3, text.as_bytes());
                }
                value => either.varint(2, value.as_i64().unwrap_or_default().cast_unsigned()),
            }
            message.message(number, &either);
        }
        _ => {}
    }
}

/// JSON that protobuf knows no better than as text.
pub(super) fn raw(value: &Value) -> Message {
    let mut raw = Message::default();
    raw.text(1, &value.to_string());
    raw
}

/// Seconds, and what is beyond them, which is never negative.
fn at(time: jiff::Timestamp) -> Message {
    let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        seconds -= 1;
        nanos += 1_000_000_000;
    }
    let mut at = Message::default();
    at.varint(1, seconds.cast_unsigned());
    if nanos != 0 {
        at.varint(2, u64::from(nanos.unsigned_abs()));
    }
    at
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::to_json;
    use super::*;

    #[test]
    fn events_of_a_watch_and_lists_are_framed() {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
        let envelope = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12\x05\x0a\x03\x0a\x01a";
        assert_eq!(from_json(&object).unwrap(), envelope);
        let event = [b"\0\0\0\x27\x0a\x05ADDED\x12\x1e\x0a\x1c".as_slice(), envelope].concat();
        assert_eq!(watch_event("ADDED", envelope), event);
        let item = item(&object).unwrap();
        assert_eq!(item, b"\x12\x05\x0a\x03\x0a\x01a");
        let head = list_head("v1", "NamespaceList", &json!({"resourceVersion": "7"}), 2 * item.len());
        assert_eq!(head, b"k8s\0\x0a\x13\x0a\x02v1\x12\x0dNamespaceList\x12\x13\x0a\x03\x12\x017");
        let foreign = json!({"apiVersion": "apps.example.com/v1", "kind": "Deployment"});
        assert_eq!(from_json(&foreign), None, "a group that only begins like one of Kubernetes' own");
    }

    #[test]
    fn what_a_stored_object_may_hold_is_the_same_again() {
        for object in [
            json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "x"}}),
            json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": "no", "reason": "Expired",
                   "details": {"retryAfterSeconds": 1, "causes": [{"reason": "r", "field": "f"}]}, "code": 410}),
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
                   "spec": {"user": "u", "extra": {"a": ["b", "c"], "d": []}}, "status": {"allowed": true}}),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"creationTimestamp": "1969-12-31T23:59:59Z"},
                   "data": {"a": "AP8=", "b": ""}}),
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"managedFields": [
                       {"manager": "m", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:renewTime": {}}}}]},
                   "spec": {"renewTime": "2026-01-02T03:04:05.000006Z", "leaseTransitions": -1}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {
                   "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}], "hostNetwork": true,
                   "securityContext": {"supplementalGroups": [1, 9223372036854775807_i64]},
                   "containers": [{"name": "c", "image": "", "resources": {"limits": {"cpu": "100m"}},
                       "livenessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 3}}],
                   "ephemeralContainers": [{"name": "e", "targetContainerName": "c", "tty": true}]}}),
        ] {
            let encoded = from_json(&object).unwrap();
            if object["kind"] == "PartialObjectMetadata" {
                assert_eq!(
                    encoded,
                    b"k8s\0\x0a\x27\x0a\x0emeta.k8s.io/v1\x12\x15PartialObjectMetadata\x12\x05\x0a\x03\x0a\x01x"
                );
            } else {
                assert_eq!(to_json(&encoded).unwrap(), object);
            }
        }
    }
}
