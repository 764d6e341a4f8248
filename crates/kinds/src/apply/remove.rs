//! An object and a set of fields -> the object without them.
//!
//! What loses its last part becomes null, which says that nobody left it empty on purpose.

use serde_json::Value;

use super::element;
use super::form::Form;
use super::set::{self, Set};

pub(super) fn remove(form: Form<'_>, value: &Value, gone: &Set) -> Value {
    let kept = |child_form: Form<'_>, element: &str, child: &Value| -> Option<Value> {
        match set::at(gone, element) {
            (true, _) => None,
            (false, None) => Some(child.clone()),
            (false, Some(below)) => Some(remove(child_form, child, below)),
        }
    };
    match (form, value) {
        (Form::List(list), Value::Array(items)) => {
            let items: Vec<Value> = list
                .elements(items)
                .into_iter()
                .filter_map(|(element, item)| kept(list.item(), &element, item))
                .collect();
            if items.is_empty() { Value::Null } else { items.into() }
        }
        (Form::Struct(_) | Form::Map(_) | Form::Defined { .. } | Form::Free, Value::Object(map)) => {
            let map: serde_json::Map<String, Value> = map
                .iter()
                .filter_map(|(name, child)| Some((name.clone(), kept(form.child(name), &element::field(name), child)?)))
                .collect();
            if map.is_empty() { Value::Null } else { map.into() }
        }
        _ => value.clone(),
    }
}
