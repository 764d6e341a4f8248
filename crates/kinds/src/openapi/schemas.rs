//! The schemas of types, from the table of fields and its descriptions.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::Kind;
use crate::decode::empty_of;
use crate::schema::{Field, Scalar, Shape, Type, table};

/// Types that requests and answers carry beside the kinds themselves.
const BESIDE: [&str; 4] = ["meta.v1.DeleteOptions", "meta.v1.ListMeta", "meta.v1.ObjectMeta", "meta.v1.Status"];

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const FIELDS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1";

/// `io.k8s.api.core.v1.Service` for `core.v1.Service`.
pub(super) fn full_name(name: &str) -> String {
    match name.split_once('.') {
        Some(("meta", rest)) => format!("io.k8s.apimachinery.pkg.apis.meta.{rest}"),
        Some(("apiextensions", _)) => format!("io.k8s.apiextensions-apiserver.pkg.apis.{name}"),
        _ => format!("io.k8s.api.{name}"),
    }
}

pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// Descriptions, by type and by field.
pub(super) type Words = BTreeMap<String, BTreeMap<String, String>>;

/// A type that is no kind with a list, and the groups, versions and kinds of its objects.
pub(super) type Other = (&'static str, Vec<Value>);

/// All that the kinds and `others` refer to, and the kinds' lists.
pub(super) fn components(kinds: &[&Kind], others: &[Other], words: &Words) -> Map<String, Value> {
    let own = kinds.iter().map(|kind| kind.type_name());
    let mut todo: Vec<&str> = own.chain(others.iter().map(|(name, _)| *name)).chain(BESIDE).collect();
    let mut wanted = BTreeSet::new();
    while let Some(name) = todo.pop() {
        if let Some(schema) = table().find(name).filter(|_| wanted.insert(name)) {
            todo.extend(schema.fields.iter().filter_map(|field| target(&field.shape)));
        }
    }
    let empty = BTreeMap::new();
    let mut all = scalars();
    for name in wanted {
        let Some(schema) = table().find(name) else { continue };
        all.insert(full_name(name), object(schema, words.get(name).unwrap_or(&empty)));
    }
    for (name, gvk) in others {
        if let Some(schema) = all.get_mut(&full_name(name)) {
            schema["x-kubernetes-group-version-kind"] = json!(gvk);
        }
    }
    for kind in kinds {
        let name = full_name(kind.type_name());
        let gvk = |suffix: &str| json!([{"group": kind.group, "version": kind.version, "kind": format!("{}{suffix}", kind.kind)}]);
        if let Some(schema) = all.get_mut(&name) {
            schema["x-kubernetes-group-version-kind"] = gvk("");
        }
        all.insert(
            format!("{name}List"),
            json!({
                "description": format!("{}List is a list of {}.", kind.kind, kind.plural),
                "type": "object",
                "required": ["items"],
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "metadata": {"allOf": [reference(&full_name("meta.v1.ListMeta"))], "default": {}},
                    "items": {"type": "array", "items": reference(&name)},
                },
                "x-kubernetes-group-version-kind": gvk("List"),
            }),
        );
    }
    all
}

/// The type that a shape is made of, if it is made of one.
fn target(shape: &Shape) -> Option<&'static str> {
    match shape {
        Shape::Scalar(_) => None,
        Shape::Object(index) => Some(table().types[*index].name),
        Shape::List(item) | Shape::Map(item) => target(item),
    }
}

fn scalars() -> Map<String, Value> {
    let either = |other: &str, description: &str| json!({"description": description, "oneOf": [{"type": "string"}, {"type": other}]});
    let mut all = Map::new();
    all.insert(
        QUANTITY.to_owned(),
        either("number", "A fixed-point number with an SI or binary suffix, such as 100m or 1Gi."),
    );
    let mut number = either("integer", "A number, or a string.");
    number["format"] = "int-or-string".into();
    all.insert(INT_OR_STRING.to_owned(), number);
    all.insert(
        TIME.to_owned(),
        json!({"description": "A time in RFC 3339 form, to the second.", "type": "string", "format": "date-time"}),
    );
    all.insert(
        MICRO_TIME.to_owned(),
        json!({"description": "A time in RFC 3339 form, to the microsecond.", "type": "string", "format": "date-time"}),
    );
    all.insert(FIELDS.to_owned(), json!({"description": "A set of fields.", "type": "object"}));
    all
}

fn object(schema: &Type, words: &BTreeMap<String, String>) -> Value {
    let mut properties = Map::new();
    for field in &schema.fields {
        let mut property = shape(&field.shape);
        if !field.choices.is_empty() {
            let one = if property["items"].is_object() { &mut property["items"] } else { &mut property };
            one["enum"] = field.choices.clone().into();
        }
        if let Some(description) = words.get(field.name).filter(|text| !text.is_empty()) {
            property["description"] = description.as_str().into();
        }
        if let Some(default) = default(field) {
            property["default"] = default;
        }
        marks(&mut property, field);
        properties.insert(field.name.to_owned(), property);
    }
    let mut object = json!({"type": "object", "properties": properties});
    if schema.atomic {
        object["x-kubernetes-map-type"] = "atomic".into();
    }
    let required: Vec<&str> = schema.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    if !required.is_empty() {
        object["required"] = required.into();
    }
    if let Some(description) = words.get("").filter(|text| !text.is_empty()) {
        object["description"] = description.as_str().into();
    }
    object
}

/// What the field is where nobody says: what Go writes of it, unless something else is known.
fn default(field: &Field) -> Option<Value> {
    let written = (field.required || field.always || field.by_value) && !field.pointer && !field.undefaulted;
    field.default.clone().or_else(|| match &field.shape {
        Shape::Object(_)
        | Shape::Scalar(Scalar::String | Scalar::Bool | Scalar::Int32 | Scalar::Int64 | Scalar::Float64) => {
            written.then(|| empty_of(&field.shape))
        }
        _ => None,
    })
}

fn shape(shape_of: &Shape) -> Value {
    let plain = |kind: &str, format: &str| json!({"type": kind, "format": format});
    match shape_of {
        // Beside a reference, a description would not count.
        Shape::Object(index) => json!({"allOf": [reference(&full_name(table().types[*index].name))]}),
        Shape::List(item) => json!({"type": "array", "items": element(item)}),
        Shape::Map(item) => json!({"type": "object", "additionalProperties": element(item)}),
        Shape::Scalar(scalar) => match scalar {
            Scalar::String => json!({"type": "string"}),
            Scalar::Bool => json!({"type": "boolean"}),
            Scalar::Int32 => plain("integer", "int32"),
            Scalar::Int64 => plain("integer", "int64"),
            Scalar::Float64 => plain("number", "double"),
            Scalar::Bytes => plain("string", "byte"),
            Scalar::Time => json!({"allOf": [reference(TIME)]}),
            Scalar::MicroTime => json!({"allOf": [reference(MICRO_TIME)]}),
            Scalar::Quantity => json!({"allOf": [reference(QUANTITY)]}),
            Scalar::IntOrString => json!({"allOf": [reference(INT_OR_STRING)]}),
            Scalar::Any => json!({"allOf": [reference(FIELDS)]}),
            Scalar::Json => json!({"x-kubernetes-preserve-unknown-fields": true}),
        },
    }
}

/// What a list or a map has many of. Nothing stands beside its reference.
fn element(item: &Shape) -> Value {
    let mut made = shape(item);
    match made.pointer_mut("/allOf/0") {
        Some(reference) => reference.take(),
        None => made,
    }
}

/// How patches merge the field, in the words of OpenAPI extensions.
fn marks(property: &mut Value, field: &Field) {
    let mut strategy = Vec::new();
    if field.merge {
        strategy.push("merge");
    }
    if field.retain_keys {
        strategy.push("retainKeys");
    }
    if !strategy.is_empty() {
        property["x-kubernetes-patch-strategy"] = strategy.join(",").into();
    }
    if let Some(key) = field.merge_key {
        property["x-kubernetes-patch-merge-key"] = key.into();
    }
    if !field.list_map_keys.is_empty() {
        property["x-kubernetes-list-type"] = "map".into();
        property["x-kubernetes-list-map-keys"] = field.list_map_keys.clone().into();
    } else if let Some(kind) = field.list_type {
        property["x-kubernetes-list-type"] = kind.into();
    }
    if let Some(kind) = field.map_type {
        property["x-kubernetes-map-type"] = kind.into();
    }
}
