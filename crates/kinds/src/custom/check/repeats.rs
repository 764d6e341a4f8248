//! Lists whose items must be told apart -> the items that cannot be.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::MAX_ERRORS;
use crate::FieldError;
use crate::custom::schema::{ListType, Schema};
use crate::look::Path;

/// What of a value repeats, wherever in it.
pub(in crate::custom) fn repeats(schema: &Schema, value: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    within(schema, value, &Path::Root, &mut errors);
    errors.truncate(MAX_ERRORS);
    errors
}

fn within(schema: &Schema, value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if errors.len() >= MAX_ERRORS {
        return;
    }
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let Some(field) = schema.field(name) else { continue };
                let named = schema.properties.contains_key(name) || matches!(path, Path::Root);
                within(field, value, &if named { path.field(name) } else { path.key(name) }, errors);
            }
        }
        Value::Array(items) => {
            match schema.list_type {
                ListType::Atomic => {}
                ListType::Set => repeated(items, |item| item.clone(), path, errors),
                ListType::Map => match items.iter().position(|item| !item.is_object() && !item.is_null()) {
                    Some(index) => errors.push(FieldError::invalid(
                        path.index(index),
                        items[index].clone(),
                        "must be an object for an array of list-type map",
                    )),
                    None => repeated(items, |item| keys(schema, item), path, errors),
                },
            }
            for (of, (index, item)) in
                schema.items.iter().flat_map(|of| items.iter().enumerate().map(move |item| (of, item)))
            {
                within(of, item, &path.index(index), errors);
            }
        }
        _ => {}
    }
}

fn keys(schema: &Schema, item: &Value) -> Value {
    let mut keys = json!({});
    for key in &schema.list_keys {
        if let Some(value) = item.get(key) {
            keys[key] = value.clone();
        }
    }
    keys
}

/// Names the second of what is there more than once.
fn repeated(items: &[Value], by: impl Fn(&Value) -> Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let (mut seen, mut told) = (BTreeSet::new(), BTreeSet::new());
    for (index, item) in items.iter().enumerate() {
        let found = by(item);
        let text = found.to_string();
        if !seen.insert(text.clone()) && told.insert(text) {
            errors.push(FieldError::duplicate(path.index(index), found));
            if errors.len() >= MAX_ERRORS {
                return;
            }
        }
    }
}
