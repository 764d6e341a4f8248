//! Schemas in `allOf` and its like, which judge values and describe none.

use serde_json::{Value, json};

use super::Walk;
use crate::custom::pattern;
use crate::look::{Look, Path};

/// Fields that validate a value and belong nowhere in `allOf` and its like.
const FORBIDDEN: [(&str, &str); 12] = [
    ("additionalProperties", "must be undefined to be structural"),
    ("default", "must be undefined to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    ("title", "must be empty to be structural"),
    ("type", "must be empty to be structural"),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
    ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
];

/// The two ways to say that `type` stands where it may not, because the value is a number or a string.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum IntOrString {
    No,
    AnyOf,
    AllOf,
}

impl IntOrString {
    pub(super) fn of(schema: &Value) -> Self {
        let either = json!([{"type": "integer"}, {"type": "string"}]);
        if schema["anyOf"] == either {
            IntOrString::AnyOf
        } else if schema["allOf"][0]["anyOf"] == either {
            IntOrString::AllOf
        } else {
            IntOrString::No
        }
    }
}

impl Walk {
    /// What validates values, and the schemas in it.
    pub(super) fn values(&mut self, schema: &Value, path: &Path<'_>, int_or_string: IntOrString) {
        let text = schema.text("pattern");
        if !text.is_empty()
            && let Err(why) = pattern::compile(text, pattern::LARGEST)
        {
            let words = format!("must be a valid regular expression, but isn't: {why}");
            self.invalid(&path.field("pattern"), text, &words);
        }
        for combination in ["allOf", "anyOf", "oneOf"] {
            let at = path.field(combination);
            for (index, part) in schema.list(combination).iter().enumerate() {
                let at = at.index(index);
                match (combination, int_or_string) {
                    ("anyOf", IntOrString::AnyOf) => {}
                    ("allOf", IntOrString::AllOf) if index == 0 => self.nested(part, &at, IntOrString::AnyOf),
                    _ => self.nested(part, &at, IntOrString::No),
                }
            }
        }
        if schema.has("not") {
            self.nested(&schema["not"], &path.field("not"), IntOrString::No);
        }
    }

    fn nested(&mut self, schema: &Value, path: &Path<'_>, int_or_string: IntOrString) {
        self.form(schema, path);
        for (field, words) in FORBIDDEN {
            if schema.has(field) && *schema.get_in(&[field]) != json!(false) {
                self.forbidden(&path.field(field), words);
            }
        }
        self.values(schema, path, int_or_string);
        if schema["items"].is_object() {
            self.nested(&schema["items"], &path.field("items"), IntOrString::No);
        }
        let properties = path.field("properties");
        for (name, field) in schema.entries("properties") {
            if name == "metadata" {
                self.forbidden(&properties.key(name), "must not be specified in a nested context");
            }
            self.nested(field, &properties.key(name), IntOrString::No);
        }
    }

    /// Every field and item that is validated somewhere must be specified at its own place, too.
    pub(super) fn complete(&mut self, schema: &Value, own: Option<&Value>, path: &Path<'_>, own_path: &Path<'_>) {
        let is_own = own.is_some_and(|own| std::ptr::eq(own, schema));
        let Some(own) = own.filter(|own| own.is_object()) else {
            let words = format!("because it is defined in {path}");
            return self.required(own_path, &words);
        };
        for combination in ["allOf", "anyOf", "oneOf"] {
            let at = path.field(combination);
            for (index, part) in schema.list(combination).iter().enumerate() {
                self.complete(part, Some(own), &at.index(index), own_path);
            }
        }
        if schema.has("not") {
            self.complete(&schema["not"], Some(own), &path.field("not"), own_path);
        }
        let (properties, own_properties) = (path.field("properties"), own_path.field("properties"));
        for (name, field) in schema.entries("properties") {
            let own_field = if is_own { Some(field) } else { own["properties"].get(name) };
            self.complete(field, own_field, &properties.key(name), &own_properties.key(name));
        }
        if schema["items"].is_object() {
            let own_items = if is_own { Some(&schema["items"]) } else { own.get("items") };
            self.complete(&schema["items"], own_items, &path.field("items"), &own_path.field("items"));
        }
        if is_own && schema["additionalProperties"].is_object() {
            let at = path.field("additionalProperties");
            self.complete(&schema["additionalProperties"], schema.get("additionalProperties"), &at, &at);
        }
    }
}
