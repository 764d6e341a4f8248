//! A configuration -> the set of the fields in it, which is what its applier owns.
//!
//! Of structs, the fields and not the struct; of lists, the items too; what is empty or atomic, itself.

use serde_json::Value;

use super::element;
use super::form::{Form, is_empty};
use super::set::{self, Set};

pub(super) fn extract(form: Form<'_>, value: &Value) -> Set {
    parts(form, value)
}

fn parts(form: Form<'_>, value: &Value) -> Set {
    let mut found = Set::new();
    match (form, value) {
        (Form::List(list), Value::Array(items)) => {
            for (element, item) in list.elements(items) {
                let below = if has_parts(list.item(), item) { parts(list.item(), item) } else { Set::new() };
                set::put(&mut found, || element, true, below);
            }
        }
        (_, Value::Object(map)) => {
            for (name, child) in map {
                let child_form = form.child(name);
                let parted = has_parts(child_form, child);
                let below = if parted { parts(child_form, child) } else { Set::new() };
                // An empty list of items that would be owned one by one is nobody's.
                let nobodys = matches!(child_form, Form::List(_)) && child.as_array().is_some_and(Vec::is_empty);
                let itself = !nobodys && (!parted || !form.names(name));
                set::put(&mut found, || element::field(name), itself, below);
            }
        }
        _ => {}
    }
    found
}

fn has_parts(form: Form<'_>, value: &Value) -> bool {
    form.fits(value) && !is_empty(value)
}

/// The set with every struct's named field that has something below it in the set itself. So that a field goes with the
/// last of what is in it.
pub(super) fn with_named_fields(form: Form<'_>, fields: &Set) -> Set {
    set::map_elements(fields, |element, itself, below| {
        let name = element.strip_prefix("f:");
        let child = match (form, name) {
            (Form::List(list), _) => list.item(),
            (_, Some(name)) => form.child(name),
            _ => Form::Leaf,
        };
        (itself || name.is_some_and(|name| form.names(name)), with_named_fields(child, below))
    })
}
