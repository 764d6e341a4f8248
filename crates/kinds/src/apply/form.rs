//! The table of fields -> how the parts of a value are owned: each on its own, or all as one.
//!
//! Source: the list, map and struct types of "server-side apply" in Kubernetes' documentation.

use serde_json::{Map, Value};

use super::element;
use crate::schema::{Field, Shape, Type, table};

#[derive(Clone, Copy)]
pub(super) enum Form {
    /// A scalar, or what is owned as a whole.
    Leaf,
    /// An object with fields of its own.
    Struct(&'static Type),
    /// An object with any fields, all of one shape.
    Map(&'static Shape),
    List(List),
}

/// A list whose items are owned one by one.
#[derive(Clone, Copy)]
pub(super) enum List {
    /// Each scalar once.
    Set,
    /// Objects that differ in the values of these fields.
    Keyed { keys: &'static [&'static str], item: &'static Type },
}

impl Form {
    pub(super) fn of(field: &'static Field) -> Self {
        if field.map_type == Some("atomic") {
            return Self::Leaf;
        }
        match &field.shape {
            Shape::List(item) => match (&**item, field.list_map_keys.as_slice(), field.list_type) {
                (Shape::Object(index), keys @ [_, ..], _) => {
                    Self::List(List::Keyed { keys, item: &table().types[*index] })
                }
                (_, [], Some("set")) => Self::List(List::Set),
                _ => Self::Leaf,
            },
            shape => Self::of_shape(shape),
        }
    }

    /// Of what stands in a map or a list.
    fn of_shape(shape: &'static Shape) -> Self {
        match shape {
            Shape::Object(index) => Self::of_type(&table().types[*index]),
            Shape::Map(item) => Self::Map(item),
            Shape::Scalar(_) | Shape::List(_) => Self::Leaf,
        }
    }

    pub(super) fn of_type(schema: &'static Type) -> Self {
        if schema.atomic { Self::Leaf } else { Self::Struct(schema) }
    }

    /// Whether the value has parts, if it is what the form says: a wrong value is one leaf.
    pub(super) fn fits(self, value: &Value) -> bool {
        match self {
            Self::Leaf => false,
            Self::Struct(_) | Self::Map(_) => value.is_object() || value.is_null(),
            Self::List(_) => value.is_array() || value.is_null(),
        }
    }

    /// The form of a field of this object.
    pub(super) fn child(self, name: &str) -> Self {
        match self {
            Self::Struct(schema) => schema.field(name).map_or(Self::Leaf, Self::of),
            Self::Map(item) => Self::of_shape(item),
            Self::Leaf | Self::List(_) => Self::Leaf,
        }
    }

    /// Whether the table names this field of the object, and not only its shape.
    pub(super) fn names(self, name: &str) -> bool {
        matches!(self, Self::Struct(schema) if schema.field(name).is_some())
    }

    /// Whether the field of this object is a struct that is never absent.
    pub(super) fn always_has(self, name: &str) -> bool {
        matches!(self, Self::Struct(schema) if schema.field(name).is_some_and(|field| field.by_value))
    }
}

impl List {
    pub(super) fn item(self) -> Form {
        match self {
            Self::Set => Form::Leaf,
            Self::Keyed { item, .. } => Form::of_type(item),
        }
    }

    /// The element that an item is found by.
    pub(super) fn element(self, index: usize, item: &Value) -> String {
        match (self, item) {
            (Self::Keyed { keys, item: schema }, Value::Object(map)) => {
                let default = |key: &str| schema.field(key)?.default.map(Value::from);
                let found: Map<String, Value> = keys
                    .iter()
                    .filter_map(|key| Some(((*key).to_owned(), map.get(*key).cloned().or_else(|| default(key))?)))
                    .collect();
                if found.is_empty() { element::index(index) } else { element::keys(found) }
            }
            (Self::Set, item) if !item.is_object() && !item.is_array() => element::value(item),
            _ => element::index(index),
        }
    }

    /// The items with their elements, in order.
    pub(super) fn elements(self, items: &[Value]) -> Vec<(String, &Value)> {
        items.iter().enumerate().map(|(index, item)| (self.element(index, item), item)).collect()
    }
}

/// Null, or without parts.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

pub(super) fn object(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

pub(super) fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}
