//! Fields of a CustomResourceDefinition whose JSON is not that of their message.
//!
//! Where a schema may stand beside something else, protobuf has a message for either, and JSON the one that is meant.
//! Source: `generated.proto` and the JSON methods of apiextensions' `v1`.

use serde_json::{Map, Value};

use super::{Failure, Fields, Message, WRONG, Wire, encode, message, text};
use crate::schema::{Field, Type, table};

const SCHEMA: &str = "apiextensions.v1.JSONSchemaProps";
const SUBRESOURCES: &str = "apiextensions.v1.CustomResourceSubresources";

/// What a schema may stand beside.
#[derive(Clone, Copy)]
enum Beside {
    Bool,
    Schemas,
    Words,
}

/// Reads `field` of `owner` into `object` if it is one of these.
pub(super) fn set(
    owner: &Type,
    field: &Field,
    wire: Wire<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<bool, Failure> {
    let read = |beside| {
        let Wire::Bytes(bytes) = wire else { return Err(WRONG) };
        schema_or(beside, bytes, depth)
    };
    let value = match (owner.name, field.name) {
        // It has no fields.
        (SUBRESOURCES, "status") => Value::Object(Map::new()),
        (SCHEMA, "additionalItems" | "additionalProperties") => read(Beside::Bool)?,
        (SCHEMA, "items") => read(Beside::Schemas)?,
        (SCHEMA, "dependencies") => {
            let Wire::Bytes(entry) = wire else { return Err(WRONG) };
            let (mut key, mut value) = (String::new(), Value::Null);
            for field in Fields(entry) {
                match field? {
                    (1, Wire::Bytes(bytes)) => key = text(bytes)?,
                    (2, Wire::Bytes(bytes)) => value = schema_or(Beside::Words, bytes, depth)?,
                    _ => {}
                }
            }
            let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                map.insert(key, value);
            }
            return Ok(true);
        }
        _ => return Ok(false),
    };
    object.insert(field.name.to_owned(), value);
    Ok(true)
}

/// Writes `value` if it is one of these.
pub(super) fn put(message: &mut Message, number: u64, (owner, field): (&Type, &Field), value: &Value) -> bool {
    let made = match (owner.name, field.name) {
        (SUBRESOURCES, "status") => Message::default(),
        (SCHEMA, "additionalItems" | "additionalProperties") => either(Beside::Bool, value),
        (SCHEMA, "items") => either(Beside::Schemas, value),
        (SCHEMA, "dependencies") => {
            for (name, value) in value.as_object().into_iter().flatten() {
                let mut entry = Message::default();
                entry.bytes(1, name.as_bytes());
                entry.message(2, &either(Beside::Words, value));
                message.message(number, &entry);
            }
            return true;
        }
        _ => return false,
    };
    message.message(number, &made);
    true
}

/// What [`schema_or`] reads.
fn either(beside: Beside, value: &Value) -> Message {
    let mut made = Message::default();
    let schema = |value| encode::typed(SCHEMA, value);
    match (beside, value) {
        (Beside::Schemas, Value::Array(several)) => several.iter().for_each(|value| made.message(2, &schema(value))),
        (Beside::Words, Value::Array(words)) => {
            words.iter().filter_map(Value::as_str).for_each(|word| made.bytes(2, word.as_bytes()));
        }
        (Beside::Bool, Value::Bool(allows)) => made.varint(1, u64::from(*allows)),
        (Beside::Bool, value) => {
            // Where there is a schema, something is allowed.
            made.varint(1, 1);
            made.message(2, &schema(value));
        }
        (_, value) => made.message(1, &schema(value)),
    }
    made
}

fn schema_or(beside: Beside, bytes: &[u8], depth: usize) -> Result<Value, Failure> {
    let schema = |bytes| -> Result<Value, Failure> {
        let mut schema = Map::new();
        let of_schemas = table().find(SCHEMA).ok_or(WRONG)?;
        message(of_schemas, bytes, &[], &mut schema, depth + 1)?;
        // Nobody tidies up here: to the table of fields this is any JSON.
        schema.retain(|name, value| {
            let is_pointer = of_schemas.fields.iter().any(|field| field.name == name && field.pointer);
            is_pointer || !(*value == "" || *value == false)
        });
        Ok(Value::Object(schema))
    };
    let (mut one, mut several, mut allows) = (None, Vec::new(), false);
    for field in Fields(bytes) {
        match (beside, field?) {
            (Beside::Bool, (1, Wire::Varint(number))) => allows = number != 0,
            (Beside::Bool, (2, Wire::Bytes(bytes))) | (Beside::Schemas | Beside::Words, (1, Wire::Bytes(bytes))) => {
                one = Some(schema(bytes)?)
            }
            (Beside::Schemas, (2, Wire::Bytes(bytes))) => several.push(schema(bytes)?),
            (Beside::Words, (2, Wire::Bytes(bytes))) => several.push(text(bytes)?.into()),
            _ => {}
        }
    }
    Ok(match (one, beside) {
        _ if !several.is_empty() => Value::Array(several),
        (Some(schema), _) => schema,
        (None, Beside::Bool) => allows.into(),
        (None, _) => Value::Null,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::bytes;
    use super::super::{from_json, to_json};
    use super::*;
    use crate::{FieldValidation, all};

    /// What Go's serializer makes of a definition with the specification below.
    const GOLDEN: &str = "6b3873000a330a17617069657874656e73696f6e732e6b38732e696f2f76311218437573746f6d5265736f75726365446566696e6974696f6e1291090a230a13776964676574732e6578616d706c652e636f6d12001a0022002a0032003800420012db080a0b6578616d706c652e636f6d1a290a077769646765747312067769646765741a02776422065769646765742a0a5769646765744c697374220a4e616d657370616365643a8a080a0276311001180122a3070aa0070a00120022002a066f626a65637432003a00500060007a00900100ea0193060a0473706563128a060a00120022002a066f626a65637432003a00500060007a00900100ba0105636f6c6f72ea014c0a05636f6c6f7212430a00120022002a06737472696e6732003a0042070a052272656422500060007a00900100a201070a052272656422a201090a0722677265656e22a80200b80200c00200ea01c6010a0665697468657212bb010a00120022002a066f626a65637432003a00500060007a00900100da01220a00120022002a0032003a00500060007a00900100ba010161a80200b80200c00200da01430a00120022002a0032003a00500060007a00900100e201220a00120022002a0032003a00500060007a00900100ba010161a80200b80200c00200a80200b80200c00200ea01290a016112240a00120022002a06737472696e6732003a00500060007a00900100a80200b80200c00200a80200b80200c00200ea012f0a046672656512270a00120022002a066f626a65637432003a00500060007a00900100a80200b00201b80200c00200ea01590a066c6162656c73124f0a00120022002a066f626a65637432003a00500060007a00900100f20128080112240a00120022002a06737472696e6732003a00500060007a00900100a80201b80200c00200a80200b80200c00200ea0196010a05706f727473128c010a00120022002a05617272617932003a00500060007a00800104900100c201560a540a00120022002a066f626a65637432003a00500060007a00900100ba0104706f7274ea01260a04706f7274121e0a00120022002a0032003a00500060007a00900100a80200b80200c00201a80200b80200c00200a80200b80200c00200ca0204706f7274d202036d6170ea01310a087265706c6963617312250a00120022002a07696e746567657232003a00500060007a00900100a80200b80200c00200ea01440a0473697a65123c0a00120022002a07696e74656765723205696e7433323a00490000000000002240500159000000000000000060007a00900100a80200b80200c00200a80200b80200c00200e2021f0a0e73656c662e73697a65203c2031301209746f6f206c617267651a002a00ea01620a0673746174757312580a00120022002a066f626a65637432003a00500060007a00900100ea01310a087265706c6963617312250a00120022002a07696e746567657232003a00500060007a00900100a80200b80200c00200a80200b80200c00200a80200b80200c002002a260a0012220a0e2e737065632e7265706c6963617312102e7374617475732e7265706c6963617332210a0453697a651207696e74656765721a0022002801320a2e737065632e73697a6538004a0d0a0b2e737065632e636f6c6f724a060a044e6f6e6550001a0c12080a00120022002a0020001a002200";

    const SPEC: &str = r#"
        {"group":"example.com","scope":"Namespaced","names":{"plural":"widgets","singular":"widget",
        "kind":"Widget","listKind":"WidgetList","shortNames":["wd"]},"conversion":{"strategy":"None"},
        "versions":[{"name":"v1","served":true,"storage":true,"subresources":{"status":{},"scale":{
        "specReplicasPath":".spec.replicas","statusReplicasPath":".status.replicas"}},
        "additionalPrinterColumns":[{"name":"Size","type":"integer","jsonPath":".spec.size","priority":1}],
        "selectableFields":[{"jsonPath":".spec.color"}],"schema":{"openAPIV3Schema":{"type":"object",
        "properties":{"spec":{"type":"object","required":["color"],"properties":{"color":{"type":"string",
        "enum":["red","green"],"default":"red"},"size":{"type":"integer","format":"int32","minimum":0,
        "maximum":9,"exclusiveMaximum":true},"replicas":{"type":"integer"},"ports":{"type":"array","maxItems":4,
        "x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["port"],"items":{"type":"object",
        "required":["port"],"properties":{"port":{"x-kubernetes-int-or-string":true}}}},"labels":{
        "type":"object","additionalProperties":{"type":"string","nullable":true}},"free":{"type":"object",
        "x-kubernetes-preserve-unknown-fields":true},"either":{"type":"object","properties":{"a":{
        "type":"string"}},"anyOf":[{"required":["a"]},{"not":{"required":["a"]}}]}},"x-kubernetes-validations":[{
        "rule":"self.size < 10","message":"too large"}]},"status":{"type":"object","properties":{"replicas":{
        "type":"integer"}}}}}}}]}"#;

    #[test]
    fn a_definition_that_go_wrote() {
        let kind = all().iter().find(|kind| kind.kind == "CustomResourceDefinition").unwrap();
        let (object, _) = kind.decode(to_json(&bytes(GOLDEN)).unwrap(), FieldValidation::Strict).unwrap();
        let expected: Value = serde_json::from_str(SPEC).unwrap();
        assert_eq!(object["spec"], expected);
        let (again, _) = kind.decode(to_json(&from_json(&object).unwrap()).unwrap(), FieldValidation::Strict).unwrap();
        assert_eq!(again, object);
        assert_eq!(object["metadata"]["name"], "widgets.example.com");
    }

    #[test]
    fn what_may_stand_beside_a_schema() {
        let sent = [
            "f201020800",
            "8a02020801",
            "c2011412082a06737472696e6712082a06737472696e67",
            "8202080a01611203120162",
            "82020f0a0163120a0a082a06737472696e67",
        ];
        let mut schema = Map::new();
        message(table().find(SCHEMA).unwrap(), &bytes(&sent.concat()), &[], &mut schema, 0).unwrap();
        let text = json!({"type": "string"});
        let expected = json!({
            "additionalProperties": false, "additionalItems": true, "items": [text, text],
            "dependencies": {"a": ["b"], "c": text},
        });
        assert_eq!(Value::Object(schema), expected);
        let mut again = Map::new();
        message(table().find(SCHEMA).unwrap(), &encode::typed(SCHEMA, &expected).0, &[], &mut again, 0).unwrap();
        assert_eq!(Value::Object(again), expected);
    }
}
