//! The table of fields, or the schema of a defined kind -> how the parts of a value are owned: each on its own, or all
//! as one.
//!
//! Source: the list, map and struct types of "server-side apply" in Kubernetes' documentation.

use serde_json::{Map, Value};

use super::element;
use crate::complete;
use crate::custom::{Additional, ListType, Schema};
use crate::schema::{Field, Shape, Type, table};

#[derive(Clone, Copy)]
pub(super) enum Form<'a> {
    /// A scalar, or what is owned as a whole.
    Leaf,
    /// An object with fields of its own.
    Struct(&'static Type),
    /// An object with any fields, all of one shape.
    Map(&'static Shape),
    /// An object of a defined kind, or in one; a whole object has metadata like any other.
    Defined {
        schema: &'a Schema,
        whole: bool,
    },
    /// Whatever it is: objects have parts, all else has none.
    Free,
    List(List<'a>),
}

/// A list whose items are owned one by one.
#[derive(Clone, Copy)]
pub(super) enum List<'a> {
    /// Each scalar once.
    Set,
    /// Objects that differ in the values of these fields.
    Keyed { keys: &'static [&'static str], item: &'static Type },
    /// The same, in a defined kind.
    Defined(&'a Schema),
}

impl<'a> Form<'a> {
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

    /// Of a whole object of a defined kind.
    pub(super) fn of_object(schema: &'a Schema) -> Self {
        Self::Defined { schema, whole: true }
    }

    /// Of the items of a list with this schema.
    pub(super) fn of_item(schema: &'a Schema) -> Self {
        schema.items.as_deref().map_or(Self::Leaf, Self::of_schema)
    }

    fn of_schema(schema: &'a Schema) -> Self {
        match (&schema.items, schema.list_type) {
            (Some(_), ListType::Set) => Self::List(List::Set),
            (Some(_), ListType::Map) => Self::List(List::Defined(schema)),
            (Some(_), ListType::Atomic) => Self::Leaf,
            (None, _) if schema.atomic => Self::Leaf,
            (None, _) if schema.kind.is_some_and(|kind| kind != crate::custom::Type::Object) => Self::Leaf,
            (None, _) => Self::Defined { schema, whole: schema.embedded },
        }
    }

    /// Whether the value has parts, if it is what the form says: a wrong value is one leaf.
    pub(super) fn fits(self, value: &Value) -> bool {
        match self {
            Self::Leaf => false,
            Self::Struct(_) | Self::Map(_) | Self::Defined { .. } | Self::Free => value.is_object() || value.is_null(),
            Self::List(_) => value.is_array() || value.is_null(),
        }
    }

    /// The form of a field of this object.
    pub(super) fn child(self, name: &str) -> Self {
        match self {
            Self::Struct(schema) => schema.field(name).map_or(Self::Leaf, Self::of),
            Self::Map(item) => Self::of_shape(item),
            Self::Defined { whole: true, .. } if name == "metadata" => {
                table().find("meta.v1.ObjectMeta").map_or(Self::Leaf, Self::of_type)
            }
            Self::Defined { schema, .. } => match (schema.field(name), &schema.additional) {
                (Some(field), _) => Self::of_schema(field),
                (None, Additional::Any(true)) => Self::Free,
                (None, Additional::Unsaid) if schema.free => Self::Free,
                (None, _) => Self::Leaf,
            },
            Self::Free => Self::Free,
            Self::Leaf | Self::List(_) => Self::Leaf,
        }
    }

    /// Whether the table names this field of the object, and not only its shape.
    pub(super) fn names(self, name: &str) -> bool {
        match self {
            Self::Struct(schema) => schema.field(name).is_some(),
            Self::Defined { schema, whole } => {
                schema.properties.contains_key(name) || whole && matches!(name, "apiVersion" | "kind" | "metadata")
            }
            _ => false,
        }
    }

    /// Whether null is a value of this field like any other.
    pub(super) fn may_be_null(self, name: &str) -> bool {
        match (self, self.child(name)) {
            (Self::Defined { schema, .. }, Self::Leaf) => schema.field(name).is_some_and(|field| field.nullable),
            // Nothing is said of it, so it may be anything.
            (Self::Defined { .. } | Self::Free, Self::Free) => true,
            _ => false,
        }
    }

    /// What is written of a field of this object that nobody set, if anything is.
    pub(super) fn unset(self, name: &str) -> Option<&'static Value> {
        match self {
            Self::Struct(schema) => complete::unset(schema.field(name)?),
            _ => None,
        }
    }
}

impl<'a> List<'a> {
    pub(super) fn item(self) -> Form<'a> {
        match self {
            Self::Set => Form::Leaf,
            Self::Keyed { item, .. } => Form::of_type(item),
            Self::Defined(schema) => Form::of_item(schema),
        }
    }

    /// The names of the fields by which items are told apart.
    pub(super) fn keys(self) -> Vec<&'a str> {
        match self {
            Self::Set => Vec::new(),
            Self::Keyed { keys, .. } => keys.to_vec(),
            Self::Defined(schema) => schema.list_keys.iter().map(String::as_str).collect(),
        }
    }

    /// What a key is where an item leaves it out.
    pub(super) fn default(self, key: &str) -> Option<Value> {
        match self {
            Self::Set => None,
            Self::Keyed { item, .. } => {
                let field = item.field(key)?;
                let unset = || complete::unset(field).filter(|value| !value.is_null()).cloned();
                field.default.clone().or_else(unset)
            }
            Self::Defined(schema) => schema.items.as_ref()?.properties.get(key)?.default.clone(),
        }
    }

    /// The element that an item is found by.
    pub(super) fn element(self, index: usize, item: &Value) -> String {
        match (self, item) {
            (Self::Keyed { .. } | Self::Defined(_), Value::Object(map)) => {
                let found: Map<String, Value> = self
                    .keys()
                    .into_iter()
                    .filter_map(|key| Some((key.to_owned(), map.get(key).cloned().or_else(|| self.default(key))?)))
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
