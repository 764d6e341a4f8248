//! What a schema declares a value to be, as far as rules are concerned: its type, and how large it may get.
//!
//! Source: `SchemaDeclType` of `k8s.io/apiserver/pkg/cel/common`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::parse::RESERVED;

#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) form: Form,
    pub(crate) nullable: bool,
    /// Items, entries, or bytes that a value may have at most.
    pub(crate) most: u64,
    /// Bytes that a value takes in JSON at least.
    pub(crate) least_bytes: u64,
}

#[derive(Debug)]
pub(crate) enum Form {
    IntOrString,
    Bool,
    Int,
    Double,
    String,
    Bytes,
    Duration,
    Date,
    DateTime,
    List {
        items: Arc<Shape>,
        by: ListBy,
    },
    Map(Arc<Shape>),
    Object {
        name: String,
        /// By name as rules write it.
        fields: BTreeMap<String, Field>,
    },
}

/// A field of an object.
#[derive(Debug)]
pub(crate) struct Field {
    /// As it stands in JSON.
    pub(crate) name: String,
    pub(crate) shape: Arc<Shape>,
}

/// How items of a list are told apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ListBy {
    Place,
    Value,
    /// These fields.
    Keys(Vec<String>),
}

impl Shape {
    /// The declared field of this name, as rules write it.
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        match &self.form {
            Form::Object { fields, .. } => fields.get(name).or_else(|| {
                // Where no name but a field's can stand, words that are kept for the language need no escape.
                is_reserved(name).then(|| fields.get(&format!("__{name}__"))).flatten()
            }),
            _ => None,
        }
    }
}

/// Whether no name in a rule may be this word.
fn is_reserved(name: &str) -> bool {
    matches!(name, "true" | "false" | "null" | "in") || RESERVED.contains(&name)
}

/// A field's name as rules write it, if they can.
pub(crate) fn escape(name: &str) -> Option<String> {
    if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    if is_reserved(name) {
        return Some(format!("__{name}__"));
    }
    let mut escaped = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(next) = rest.chars().next() {
        let (written, length) = match next {
            '_' if rest.starts_with("__") => ("__underscores__", 2),
            '.' => ("__dot__", 1),
            '-' => ("__dash__", 1),
            '/' => ("__slash__", 1),
            _ if next.is_ascii_alphanumeric() || next == '_' => (&rest[..1], 1),
            _ => return None,
        };
        escaped.push_str(written);
        rest = &rest[length..];
    }
    Some(escaped)
}
