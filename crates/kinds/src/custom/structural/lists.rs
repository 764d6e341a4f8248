//! What lists say of themselves: how their items are told apart.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Walk;
use crate::FieldError;
use crate::look::{Look, Path, repeats};

impl Walk {
    pub(super) fn lists(&mut self, schema: &Value, path: &Path<'_>) {
        let list_type = schema.text("x-kubernetes-list-type");
        let keys: Vec<&str> = schema.list("x-kubernetes-list-map-keys").iter().filter_map(Value::as_str).collect();
        let (at_type, at_keys) = (path.field("x-kubernetes-list-type"), path.field("x-kubernetes-list-map-keys"));
        let (items, at_items) = (&schema["items"], path.field("items"));
        if !list_type.is_empty() {
            self.wants_type(schema, path, "array", "must be array if x-kubernetes-list-type is specified");
            if !matches!(list_type, "atomic" | "set" | "map") {
                self.push(FieldError::not_supported(at_type, list_type, &["atomic", "set", "map"]));
            }
        }
        if !keys.is_empty() && list_type != "map" {
            let words = "must be map if x-kubernetes-list-map-keys is non-empty";
            if list_type.is_empty() { self.required(&at_type, words) } else { self.invalid(&at_type, list_type, words) }
        }
        if matches!(list_type, "set" | "map") && items.flag("nullable") {
            let words = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
            self.forbidden(&at_items.field("nullable"), &words);
        }
        if list_type == "set" {
            let words = "must be atomic as item of a list with x-kubernetes-list-type=set";
            let inner = items.text("x-kubernetes-list-type");
            match items.text("type") {
                "array" if !matches!(inner, "" | "atomic") => {
                    self.invalid(&at_items.field("x-kubernetes-list-type"), inner, words);
                }
                "object" if items.text("x-kubernetes-map-type") != "atomic" => {
                    self.invalid(&at_items.field("x-kubernetes-map-type"), Value::Null, words);
                }
                _ => {}
            }
        }
        if list_type != "map" {
            return;
        }
        if keys.is_empty() {
            self.required(&at_keys, "must not be empty if x-kubernetes-list-type is map");
        }
        if schema.has("items") && items.text("type") != "object" {
            let words = "must be object if parent array's x-kubernetes-list-type is map";
            self.invalid(&at_items.field("type"), items.text("type"), words);
            return;
        }
        let required: BTreeSet<&str> = items.list("required").iter().filter_map(Value::as_str).collect();
        let properties = at_items.field("properties");
        for (key, repeated) in keys.iter().zip(repeats(&keys)) {
            if self.is_full() {
                return;
            }
            let at = properties.key(key);
            let field = &items["properties"][*key];
            if field.is_null() {
                self.invalid(&at_keys, keys.clone(), "entries must all be names of item properties");
                continue;
            }
            if matches!(field.text("type"), "array" | "object") {
                let words = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                self.invalid(&at.field("type"), items.text("type"), words);
            }
            if repeated {
                self.invalid(&at_keys, keys.clone(), "must not contain duplicate entries");
            }
            if !required.contains(key) && !field.has("default") {
                let words = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                self.required(&at.field("default"), words);
            }
            if field.flag("nullable") {
                let words = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                self.forbidden(&at.field("nullable"), words);
            }
        }
    }
}
