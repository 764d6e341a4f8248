//! What is wrong with a configuration that somebody applies: fields that no schema has, values that are no such thing,
//! items of lists that cannot be told apart.
//!
//! The words are those of Kubernetes' structured merge.

use std::collections::BTreeSet;

use serde_json::Value;

use super::element;
use super::form::{Form, List};
use crate::custom::{Additional, Schema, Type as Kind};
use crate::schema::{Scalar, Shape, Type, table};

/// At most this many mistakes are named.
const MOST: usize = 20;

/// Everything that is wrong with a configuration of this form, in one text.
pub(super) fn mistakes(form: Form<'_>, config: &Value) -> Option<String> {
    let mut check = Check { path: String::new(), found: Vec::new() };
    match form {
        Form::Struct(schema) => check.object(schema, config),
        form => check.defined(form, config),
    }
    match check.found.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        many => Some(format!("errors:\n  {}", many.join("\n  "))),
    }
}

struct Check {
    path: String,
    found: Vec<String>,
}

impl Check {
    fn say(&mut self, what: &str) {
        if self.found.len() < MOST {
            self.found.push(if self.path.is_empty() { what.to_owned() } else { format!("{}: {what}", self.path) });
        }
    }

    fn within(&mut self, element: &str, check: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(&element::shown(element));
        check(self);
        self.path.truncate(length);
    }

    fn object(&mut self, schema: &'static Type, value: &Value) {
        let map = match value {
            Value::Object(map) => map,
            Value::Null => return,
            other => return self.say(&format!("expected map, got {}", shown(other))),
        };
        for (name, value) in map {
            self.within(&element::field(name), |check| match schema.field(name) {
                Some(field) => match (&field.shape, Form::of(field)) {
                    (Shape::List(item), Form::List(list)) => {
                        check.items(list, value, |check, value| check.value(item, value))
                    }
                    (shape, _) => check.value(shape, value),
                },
                None => check.say("field not declared in schema"),
            });
        }
    }

    fn value(&mut self, shape: &'static Shape, value: &Value) {
        match shape {
            Shape::Object(index) => self.object(&table().types[*index], value),
            Shape::List(item) => match value {
                Value::Array(items) => {
                    for (index, value) in items.iter().enumerate() {
                        self.within(&element::index(index), |check| check.value(item, value));
                    }
                }
                Value::Null => {}
                other => self.say(&format!("expected list, got {}", shown(other))),
            },
            Shape::Map(item) => match value {
                Value::Object(map) => {
                    for (name, value) in map {
                        self.within(&element::field(name), |check| check.value(item, value));
                    }
                }
                Value::Null => {}
                other => self.say(&format!("expected map, got {}", shown(other))),
            },
            Shape::Scalar(scalar) => self.scalar(*scalar, value),
        }
    }

    /// An object of a defined kind, or what is in one.
    fn defined(&mut self, form: Form<'_>, value: &Value) {
        match (form, value) {
            (_, Value::Null) | (Form::Free, _) => {}
            (Form::Struct(schema), value) => self.object(schema, value),
            (Form::Defined { schema, whole }, Value::Object(map)) => {
                for (name, value) in map {
                    let known = form.names(name) || schema.field(name).is_some();
                    let known = known || schema.free || !matches!(schema.additional, Additional::Unsaid);
                    self.within(&element::field(name), |check| match schema.field(name) {
                        _ if !known => check.say("field not declared in schema"),
                        Some(field) if !(whole && name == "metadata") => check.schema(field, form.child(name), value),
                        _ => check.defined(form.child(name), value),
                    });
                }
            }
            (Form::Defined { schema, .. }, other) if schema.kind.is_some() => {
                self.say(&format!("expected map, got {}", shown(other)));
            }
            _ => {}
        }
    }

    fn schema(&mut self, schema: &Schema, form: Form<'_>, value: &Value) {
        if value.is_null() {
            return;
        }
        let expected = match schema.kind {
            Some(Kind::Array) if !value.is_array() => "list",
            Some(Kind::Boolean) if !value.is_boolean() => "boolean",
            Some(Kind::Integer | Kind::Number) if !value.is_number() => "numeric (int or float)",
            Some(Kind::Object) if !value.is_object() => "map",
            Some(Kind::String) if !value.is_string() => "string",
            _ => match (form, &schema.items, value) {
                (Form::List(list), _, value) => {
                    return self.items(list, value, |check, item| check.item(schema, list.item(), item));
                }
                (_, Some(_), Value::Array(items)) => {
                    for (index, value) in items.iter().enumerate() {
                        self.within(&element::index(index), |check| check.item(schema, Form::of_item(schema), value));
                    }
                    return;
                }
                _ => return self.defined(form, value),
            },
        };
        self.say(&format!("expected {expected}, got {}", shown(value)));
    }

    /// An item of a list with this schema.
    fn item(&mut self, list: &Schema, form: Form<'_>, value: &Value) {
        if let Some(schema) = &list.items {
            self.schema(schema, form, value);
        }
    }

    fn items(&mut self, list: List<'_>, value: &Value, check_item: impl Fn(&mut Self, &Value)) {
        let items = match value {
            Value::Array(items) => items,
            Value::Null => return,
            other => return self.say(&format!("expected list, got {}", shown(other))),
        };
        let mut seen = BTreeSet::new();
        for (index, item) in items.iter().enumerate() {
            if let Some(why) = unfit(list, item) {
                self.say(&format!("element {index}: {why}"));
                continue;
            }
            let element = list.element(index, item);
            if seen.contains(&element) {
                self.say(&format!("duplicate entries for key {}", element::shown(&element)));
            }
            self.within(&element, |check| check_item(check, item));
            seen.insert(element);
        }
    }

    fn scalar(&mut self, scalar: Scalar, value: &Value) {
        let expected = match scalar {
            _ if value.is_null() => return,
            Scalar::String | Scalar::Bytes | Scalar::Time | Scalar::MicroTime if !value.is_string() => "string",
            Scalar::Bool if !value.is_boolean() => "boolean",
            Scalar::Int32 | Scalar::Int64 | Scalar::Float64 if !value.is_number() => "numeric (int or float)",
            Scalar::Quantity | Scalar::IntOrString if value.is_object() || value.is_array() => "scalar",
            _ => return,
        };
        self.say(&format!("expected {expected}, got {}", shown(value)));
    }
}

/// Why an item cannot be one of the list.
fn unfit(list: List<'_>, item: &Value) -> Option<String> {
    match (list, item) {
        (List::Keyed { .. } | List::Defined(_), Value::Object(map)) => {
            let keys = list.keys();
            let missing = keys.iter().find(|key| !map.contains_key(**key) && list.default(key).is_none())?;
            Some(format!(
                "associative list with keys has an element that omits key field \"{missing}\" (and doesn't have default value)"
            ))
        }
        (List::Keyed { .. } | List::Defined(_), Value::Null) => {
            Some("associative list with keys may not have a null element".to_owned())
        }
        (List::Keyed { .. } | List::Defined(_), _) => {
            Some("associative list with keys may not have non-map elements".to_owned())
        }
        (List::Set, Value::Object(_)) => {
            Some("associative list without keys has an element that's a map type".to_owned())
        }
        (List::Set, Value::Array(_)) => Some("not supported: associative list with lists as elements".to_owned()),
        (List::Set, Value::Null) => {
            Some("associative list without keys has an element that's an explicit null".to_owned())
        }
        (List::Set, _) => None,
    }
}

/// The value, or of a long one its beginning.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mistakes_are_named_where_they_are() {
        let schema = table().find("core.v1.Service").unwrap();
        for (config, words) in [
            (json!({"apiVersion": "v1", "spec": {"ports": [{"port": 80}], "selector": null}}), None),
            (json!({"spec": {"foo": 1}}), Some(".spec.foo: field not declared in schema")),
            (json!({"spec": 7}), Some(".spec: expected map, got 7")),
            (json!({"spec": {"ports": {}}}), Some(".spec.ports: expected list, got {}")),
            (json!({"spec": {"type": 1}}), Some(".spec.type: expected string, got 1")),
            (
                json!({"spec": {"ports": [{"port": "a"}]}}),
                Some(".spec.ports[port=\"a\",protocol=\"TCP\"].port: expected numeric (int or float), got \"a\""),
            ),
            (
                json!({"spec": {"ports": [{"port": 80}, {"port": 80, "protocol": "TCP"}]}}),
                Some(".spec.ports: duplicate entries for key [port=80,protocol=\"TCP\"]"),
            ),
            // A key that is always written has a value, if only for validation to refuse.
            (json!({"spec": {"ports": [{"name": "a"}]}}), None),
            (
                json!({"spec": {"ports": [{"name": "a"}, {"name": "b"}]}}),
                Some(".spec.ports: duplicate entries for key [port=0,protocol=\"TCP\"]"),
            ),
            (
                json!({"metadata": {"finalizers": [{}], "labels": {"a": 1}}}),
                Some(
                    "errors:\n  .metadata.finalizers: element 0: associative list without keys has an element that's a map \
                     type\n  .metadata.labels.a: expected string, got 1",
                ),
            ),
        ] {
            assert_eq!(mistakes(Form::of_type(schema), &config).as_deref(), words, "{config}");
        }
    }

    #[test]
    fn objects_that_name_no_fields_take_any() {
        let schema = Schema::new(&json!({"type": "object", "properties": {
            "any": {"type": "object"},
            "kept": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "deep": {"type": "object", "properties": {"a": {"type": "string"}}}
            }},
            "whole": {"type": "object", "x-kubernetes-embedded-resource": true}
        }}));
        for (config, words) in [
            (json!({"any": {"b": {"c": 1}}}), None),
            (json!({"kept": {"b": 1, "deep": {"c": 1}}}), None),
            (json!({"kept": {"deep": {"a": 1}}}), Some(".kept.deep.a: expected string, got 1")),
            (json!({"whole": {"kind": "A", "b": 1}}), Some(".whole.b: field not declared in schema")),
            (json!({"b": 1}), Some(".b: field not declared in schema")),
        ] {
            assert_eq!(mistakes(Form::of_object(&schema), &config).as_deref(), words, "{config}");
        }
    }
}
