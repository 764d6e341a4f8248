//! Reading JSON objects whose fields may be absent, and naming the places in them.
//!
//! Absent, null and of the wrong type all read as empty: what is required is for validation to say.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;

use serde_json::{Map, Value};

/// Reads fields of a JSON object.
pub(crate) trait Look {
    fn get_in(&self, path: &[&str]) -> &Value;
    /// The field's string, or `""`.
    fn text(&self, field: &str) -> &str;
    /// The field's items, or none.
    fn list(&self, field: &str) -> &[Value];
    /// The field's integer.
    fn int(&self, field: &str) -> Option<i64>;
    /// The field's boolean, or false.
    fn flag(&self, field: &str) -> bool;
    /// The field's entries, in order of their keys.
    fn entries(&self, field: &str) -> impl Iterator<Item = (&str, &Value)>;
    /// Whether the field is there and not null.
    fn has(&self, field: &str) -> bool;
}

impl Look for Value {
    fn get_in(&self, path: &[&str]) -> &Value {
        path.iter().fold(self, |value, field| &value[*field])
    }

    fn text(&self, field: &str) -> &str {
        self[field].as_str().unwrap_or_default()
    }

    fn list(&self, field: &str) -> &[Value] {
        self[field].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn int(&self, field: &str) -> Option<i64> {
        self[field].as_i64()
    }

    fn flag(&self, field: &str) -> bool {
        self[field].as_bool().unwrap_or_default()
    }

    fn entries(&self, field: &str) -> impl Iterator<Item = (&str, &Value)> {
        self[field].as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value))
    }

    fn has(&self, field: &str) -> bool {
        !self[field].is_null()
    }
}

/// The object's map, which is made if the value is not an object.
pub(crate) fn map_of(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// The field of an object, made as an object if it is not one.
pub(crate) fn child<'a>(value: &'a mut Value, field: &str) -> &'a mut Value {
    let child = map_of(value).entry(field).or_insert_with(|| Value::Object(Map::new()));
    if !child.is_object() {
        *child = Value::Object(Map::new());
    }
    child
}

/// Sets a field that is absent.
pub(crate) fn set_default(value: &mut Value, field: &str, default: impl Into<Value>) {
    let map = map_of(value);
    if map.get(field).is_none_or(Value::is_null) {
        map.insert(field.to_owned(), default.into());
    }
}

/// Removes a field; the value need not be an object.
pub(crate) fn remove(value: &mut Value, field: &str) -> Option<Value> {
    value.as_object_mut().and_then(|map| map.remove(field))
}

/// The items of a list that can be changed, or none.
pub(crate) fn items_mut<'a>(value: &'a mut Value, field: &str) -> &'a mut [Value] {
    match value.get_mut(field) {
        Some(Value::Array(items)) => items,
        _ => &mut [],
    }
}

/// Of each key, whether it was there before. One pass, since a list may have some hundred thousand items.
pub(crate) fn repeats<K: Eq + Hash>(keys: impl IntoIterator<Item = K>) -> Vec<bool> {
    let mut seen = HashSet::new();
    keys.into_iter().map(|key| !seen.insert(key)).collect()
}

/// A place in an object, built on the stack and written out only for an error.
#[derive(Clone, Copy)]
pub(crate) enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
    Key(&'a Path<'a>, &'a str),
    /// A Go struct whose fields are written as if they were its owner's.
    Inlined(&'a Path<'a>, &'a str),
}

impl<'a> Path<'a> {
    pub(crate) fn field(&'a self, name: &'a str) -> Path<'a> {
        Path::Field(self, name)
    }

    pub(crate) fn index(&'a self, index: usize) -> Path<'a> {
        Path::Index(self, index)
    }

    pub(crate) fn key(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }

    pub(crate) fn inlined(&'a self, name: &'a str) -> Path<'a> {
        Path::Inlined(self, name)
    }

    /// The fields alone, without indices and keys, as decoding errors name them: with the structs between them.
    pub(crate) fn fields_only(&self) -> String {
        match self {
            Path::Root => String::new(),
            Path::Field(Path::Root, name) => (*name).to_owned(),
            Path::Field(parent, name) | Path::Inlined(parent, name) => {
                let parent = parent.fields_only();
                if parent.is_empty() { (*name).to_owned() } else { format!("{parent}.{name}") }
            }
            Path::Index(parent, _) | Path::Key(parent, _) => parent.fields_only(),
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Path::Key(parent, key) => write!(f, "{parent}[{key}]"),
            Path::Inlined(parent, _) => parent.fmt(f),
        }
    }
}

impl From<Path<'_>> for String {
    fn from(path: Path<'_>) -> Self {
        path.to_string()
    }
}

impl From<&Path<'_>> for String {
    fn from(path: &Path<'_>) -> Self {
        path.to_string()
    }
}
