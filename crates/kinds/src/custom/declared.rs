//! A structural schema -> what rules may say about values of it: their shape.
//!
//! Invariant: `None` for what rules cannot see, and so is not theirs to speak of: values without a type, and lists and
//! maps of such.
//! Source: `SchemaDeclType` of `k8s.io/apiserver/pkg/cel/common`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::cel::{Field, Form, ListBy, Shape, escape};
use crate::look::Look;

/// What a request may have in bytes, as upstream reckons it for this.
pub(super) const LARGEST_REQUEST: u64 = 3 << 20;

/// The shape of values; `whole` for objects with `apiVersion`, `kind` and `metadata`.
pub(super) fn shape(schema: &Value, whole: bool, name: &str) -> Option<Arc<Shape>> {
    let nullable = schema.flag("nullable");
    let shape = |form: Form, most: u64, least_bytes: u64| Some(Arc::new(Shape { form, nullable, most, least_bytes }));
    let characters = |field: &str| schema[field].as_u64();
    if schema.flag("x-kubernetes-int-or-string") {
        let most = characters("maxLength").map_or(LARGEST_REQUEST - 2, |most| most.saturating_mul(4));
        return shape(Form::IntOrString, most, 1);
    }
    match schema.text("type") {
        "boolean" => shape(Form::Bool, 0, 4),
        "integer" => shape(Form::Int, 0, 1),
        "number" => shape(Form::Double, 0, 1),
        "string" => match schema.text("format") {
            "byte" => shape(Form::Bytes, characters("maxLength").unwrap_or(LARGEST_REQUEST - 2), 2),
            "duration" => shape(Form::Duration, 32, 3),
            "date" => shape(Form::Date, 12, 12),
            "date-time" => shape(Form::DateTime, 32, 21),
            _ => {
                let choices = schema.list("enum");
                let longest = choices.iter().filter_map(Value::as_str).map(|choice| choice.len() as u64).max();
                let most = match characters("maxLength") {
                    Some(most) => most.saturating_mul(4),
                    None if choices.is_empty() => LARGEST_REQUEST - 2,
                    None => longest.unwrap_or(0),
                };
                shape(Form::String, most, 2)
            }
        },
        "array" => {
            let items = item_shape(&schema["items"], name, "@idx")?;
            let most = characters("maxItems").unwrap_or((LARGEST_REQUEST - 2) / (items.least_bytes + 1));
            let by = match schema.text("x-kubernetes-list-type") {
                "set" => ListBy::Value,
                "map" => {
                    let keys = schema.list("x-kubernetes-list-map-keys");
                    ListBy::Keys(keys.iter().filter_map(Value::as_str).map(str::to_owned).collect())
                }
                _ => ListBy::Place,
            };
            shape(Form::List { items, by }, most, 2)
        }
        "object" if schema["additionalProperties"].is_object() => {
            let of = item_shape(&schema["additionalProperties"], name, "@elem")?;
            let most = characters("maxProperties").unwrap_or((LARGEST_REQUEST - 2) / (of.least_bytes + 6));
            shape(Form::Map(of), most, 2)
        }
        "object" => {
            let (fields, least_bytes) = fields(schema, whole, name);
            shape(Form::Object { name: name.to_owned(), fields }, 0, least_bytes)
        }
        _ => None,
    }
}

fn item_shape(schema: &Value, name: &str, part: &str) -> Option<Arc<Shape>> {
    shape(schema, schema.flag("x-kubernetes-embedded-resource"), &format!("{name}.{part}"))
}

/// The fields of an object, and how many bytes it takes at least.
fn fields(schema: &Value, whole: bool, name: &str) -> (BTreeMap<String, Field>, u64) {
    let meta = json!({
        "apiVersion": {"type": "string"}, "kind": {"type": "string"},
        "metadata": {"type": "object", "properties": {"name": {"type": "string"}, "generateName": {"type": "string"}}}
    });
    let added = meta.as_object().filter(|_| whole && !has_meta(schema)).into_iter().flatten();
    let added: BTreeMap<&str, &Value> = added.map(|(name, schema)| (name.as_str(), schema)).collect();
    let declared = schema.entries("properties").filter(|(field, _)| !added.contains_key(field));
    let required: BTreeSet<&str> = schema.list("required").iter().filter_map(Value::as_str).collect();
    let (mut fields, mut least) = (BTreeMap::new(), 2);
    for (field, of) in declared.chain(added.iter().map(|(field, of)| (*field, *of))) {
        let embedded = of.flag("x-kubernetes-embedded-resource");
        let escaped = escape(field);
        let Some(shape) = shape(of, embedded, &format!("{name}.{}", escaped.as_deref().unwrap_or(field))) else {
            continue;
        };
        if required.contains(field) && !of.has("default") {
            least += field.len() as u64 + shape.least_bytes + 4;
        }
        if let Some(escaped) = escaped {
            fields.insert(escaped, Field { name: field.to_owned(), shape });
        }
    }
    (fields, least)
}

/// Whether a schema of a whole object says what every object has.
fn has_meta(schema: &Value) -> bool {
    let properties = &schema["properties"];
    let names = &properties["metadata"]["properties"];
    let is = |schema: &Value, kind: &str| schema.text("type") == kind;
    is(&properties["kind"], "string")
        && is(&properties["apiVersion"], "string")
        && is(&properties["metadata"], "object")
        && is(&names["name"], "string")
        && is(&names["generateName"], "string")
}
