//! The schema in a definition -> what keeps it from being structural, or from being a schema at all.
//!
//! Invariant: what passes here can be pruned, defaulted and checked against without asking anything more of it.
//! Deliberately not here: whether a rule in CEL compiles, which is asked of what passes here (`compile`).
//! Source: `pkg/apiserver/schema/{validation,complete}.go` and `pkg/apis/apiextensions/validation` of
//! apiextensions-apiserver, whose words these are.

use serde_json::{Value, json};

use super::check;
use super::compile;
use super::pattern;
use super::places;
use super::schema::{Schema, type_of};
use super::shape;
use crate::FieldError;
use crate::look::{Look, Path};

/// At most this many mistakes are told of one schema.
const MOST: usize = 100;
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
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
const UNSUPPORTED: [(&str, &str); 7] = [
    ("id", "id is not supported"),
    ("$schema", "schema is not supported"),
    ("$ref", "$ref is not supported"),
    ("definitions", "definitions is not supported"),
    ("dependencies", "dependencies is not supported"),
    ("patternProperties", "patternProperties is not supported"),
    ("additionalItems", "additionalItems is not supported"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Where a schema stands, as far as it matters.
#[derive(Clone, Copy)]
struct Place {
    level: Level,
    /// Why nothing here may have a default.
    no_defaults: Option<&'static str>,
}

/// Everything that is wrong with a definition's schema at `path`.
pub(super) fn mistakes(schema: &Value, path: &Path<'_>) -> Vec<FieldError> {
    let mut walk = Walk { errors: Vec::new() };
    walk.schema(schema, path, Place { level: Level::Root, no_defaults: None });
    walk.complete(schema, Some(schema), path, path);
    if walk.errors.is_empty() {
        walk.defaults(&Schema::new(schema), path);
    }
    if walk.errors.is_empty() {
        walk.errors = compile::mistakes(schema, path);
    }
    walk.errors.sort_by_cached_key(ToString::to_string);
    walk.errors
}

struct Walk {
    errors: Vec<FieldError>,
}

impl Walk {
    fn push(&mut self, error: FieldError) {
        if self.errors.len() < MOST {
            self.errors.push(error);
        }
    }

    fn invalid(&mut self, path: &Path<'_>, value: impl Into<Value>, detail: &str) {
        self.push(FieldError::invalid(path, value, detail));
    }

    fn required(&mut self, path: &Path<'_>, detail: &str) {
        self.push(FieldError::required(path, detail));
    }

    fn forbidden(&mut self, path: &Path<'_>, detail: &str) {
        self.push(FieldError::forbidden(path, detail));
    }

    fn schema(&mut self, schema: &Value, path: &Path<'_>, place: Place) {
        self.form(schema, path);
        self.kind(schema, path, place.level);
        self.lists(schema, path);
        self.extensions(schema, path);
        if schema.has("default")
            && let Some(why) = place.no_defaults
        {
            self.forbidden(&path.field("default"), &format!("must not be set {why}"));
        }
        self.values(schema, path, is_int_or_string(schema));
        self.below(schema, path, place);
    }

    /// What a schema has in it.
    fn below(&mut self, schema: &Value, path: &Path<'_>, place: Place) {
        let inner = Place { level: Level::Field, ..place };
        let additional = &schema["additionalProperties"];
        let at = path.field("additionalProperties");
        if schema.has("additionalProperties") {
            if place.level == Level::Root {
                self.forbidden(&at, "must not be used at the root");
            }
            if schema.flag("x-kubernetes-embedded-resource") {
                self.forbidden(&at, "must not be used if x-kubernetes-embedded-resource is set");
            }
            if schema["properties"].as_object().is_some_and(|map| !map.is_empty()) && *additional != json!(true) {
                self.forbidden(&at, "additionalProperties and properties are mutual exclusive");
            }
            if additional.is_object() {
                self.schema(additional, &at, inner);
            }
        }
        if schema.has("items") {
            self.schema(&schema["items"], &path.field("items"), Place { level: Level::Item, ..place });
        }
        let whole = place.level == Level::Root || schema.flag("x-kubernetes-embedded-resource");
        let properties = path.field("properties");
        for (name, field) in schema.entries("properties") {
            let at = properties.key(name);
            let no_defaults = match name {
                "apiVersion" if place.level == Level::Root => Some("in top-level apiVersion"),
                "kind" if place.level == Level::Root => Some("in top-level kind"),
                "metadata" if place.level == Level::Root => Some("in top-level metadata"),
                _ => place.no_defaults,
            };
            match name {
                "apiVersion" | "kind" if whole && field.text("type") != "string" => {
                    self.invalid(&at.field("type"), field.text("type"), "must be string");
                }
                "metadata" if whole && field.text("type") != "object" => {
                    self.invalid(&at.field("type"), field.text("type"), "must be object");
                }
                "metadata" if place.level == Level::Root && !says_only_names(field) => self.forbidden(
                    &at,
                    "must not specify anything other than name and generateName, but metadata is implicitly specified",
                ),
                _ => {}
            }
            self.schema(field, &at, Place { no_defaults, ..inner });
        }
    }

    /// What no schema in a definition may be.
    fn form(&mut self, schema: &Value, path: &Path<'_>) {
        for (field, words) in UNSUPPORTED {
            if schema.has(field) {
                self.forbidden(&path.field(field), words);
            }
        }
        if schema.flag("uniqueItems") {
            self.forbidden(
                &path.field("uniqueItems"),
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            );
        }
        let kind = schema.text("type");
        if kind == "null" {
            self.forbidden(&path.field("type"), "type cannot be set to null, use nullable as an alternative");
        } else if !kind.is_empty() && type_of(kind).is_none() {
            let supported = ["array", "boolean", "integer", "number", "object", "string"];
            self.push(FieldError::not_supported(path.field("type"), kind, &supported));
        }
    }

    fn kind(&mut self, schema: &Value, path: &Path<'_>, level: Level) {
        let kind = schema.text("type");
        let at = path.field("type");
        let free = schema.flag("x-kubernetes-int-or-string") || schema.flag("x-kubernetes-preserve-unknown-fields");
        if kind == "array" && !schema.has("items") {
            self.required(&path.field("items"), "must be specified");
        }
        if schema.flag("x-kubernetes-embedded-resource") && kind != "object" {
            let words = "must be object if x-kubernetes-embedded-resource is true";
            if kind.is_empty() { self.required(&at, words) } else { self.invalid(&at, kind, words) }
        } else if kind.is_empty() && !free {
            self.required(
                &at,
                match level {
                    Level::Root => "must not be empty at the root",
                    Level::Item => "must not be empty for specified array items",
                    Level::Field => "must not be empty for specified object fields",
                },
            );
        }
        if level == Level::Root && !kind.is_empty() && kind != "object" {
            self.invalid(&at, kind, "must be object at the root");
        }
        if level == Level::Root && schema.flag("nullable") {
            self.forbidden(&path.field("nullable"), "nullable cannot be true at the root");
        }
    }

    fn extensions(&mut self, schema: &Value, path: &Path<'_>) {
        let (int_or_string, preserve, embedded) = (
            schema.flag("x-kubernetes-int-or-string"),
            schema.flag("x-kubernetes-preserve-unknown-fields"),
            schema.flag("x-kubernetes-embedded-resource"),
        );
        let at = path.field("x-kubernetes-preserve-unknown-fields");
        if schema["x-kubernetes-preserve-unknown-fields"] == json!(false) {
            self.invalid(&at, false, "must be true or undefined");
        }
        if int_or_string && preserve {
            self.invalid(&at, true, "must be false if x-kubernetes-int-or-string is true");
        }
        if int_or_string && embedded {
            let at = path.field("x-kubernetes-embedded-resource");
            self.invalid(&at, true, "must be false if x-kubernetes-int-or-string is true");
        }
        if embedded && !preserve && schema["properties"].as_object().is_none_or(serde_json::Map::is_empty) {
            self.required(
                &path.field("properties"),
                "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
            );
        }
        let map_type = schema.text("x-kubernetes-map-type");
        if !map_type.is_empty() {
            self.wants_type(schema, path, "object", "must be object if x-kubernetes-map-type is specified");
            if !matches!(map_type, "atomic" | "granular") {
                let at = path.field("x-kubernetes-map-type");
                self.push(FieldError::not_supported(at, map_type, &["atomic", "granular"]));
            }
        }
        self.rules(schema, path);
    }

    /// How rules are written down, whatever they say.
    fn rules(&mut self, schema: &Value, path: &Path<'_>) {
        let rules = path.field("x-kubernetes-validations");
        let has_lines = |text: &str| text.contains(['\n', '\r']);
        for (index, rule) in schema.list("x-kubernetes-validations").iter().enumerate() {
            let at = rules.index(index);
            let (text, message) = (rule.text("rule").trim(), rule.text("message"));
            if text.is_empty() {
                self.required(&at.field("rule"), "rule is not specified");
            } else if !message.is_empty() && message.trim().is_empty() {
                self.invalid(&at.field("message"), message, "must be non-empty if specified");
            } else if has_lines(message.trim()) {
                self.invalid(&at.field("message"), message, "must not contain line breaks");
            } else if has_lines(text) && message.is_empty() {
                self.required(&at.field("message"), "message must be specified if rule contains line breaks");
            }
            let expression = rule.text("messageExpression");
            if !expression.is_empty() && expression.trim().is_empty() {
                self.required(&at.field("messageExpression"), "messageExpression must be non-empty if specified");
            }
            let reason = rule.text("reason");
            if rule.has("reason") && !REASONS.contains(&reason) {
                self.push(FieldError::not_supported(at.field("reason"), reason, &REASONS));
            }
            let field = rule.text("fieldPath");
            let at = at.field("fieldPath");
            if !field.is_empty() && field.trim().is_empty() {
                self.invalid(&at, field, "must be non-empty if specified");
            }
            if has_lines(field) {
                self.invalid(&at, field, "must not contain line breaks");
            }
            if !field.is_empty() && places::field_path(field, schema).is_err() {
                self.invalid(&at, field, "must be a valid path");
            }
        }
    }

    fn wants_type(&mut self, schema: &Value, path: &Path<'_>, wanted: &str, words: &str) {
        match schema.text("type") {
            kind if kind == wanted => {}
            "" => self.required(&path.field("type"), words),
            kind => self.invalid(&path.field("type"), kind, words),
        }
    }

    fn lists(&mut self, schema: &Value, path: &Path<'_>) {
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
        let required: Vec<&str> = items.list("required").iter().filter_map(Value::as_str).collect();
        let properties = at_items.field("properties");
        for (index, key) in keys.iter().enumerate() {
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
            if keys[..index].contains(key) {
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

    /// What validates values, and the schemas in it.
    fn values(&mut self, schema: &Value, path: &Path<'_>, int_or_string: IntOrString) {
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
        if schema.has("items") {
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
    fn complete(&mut self, schema: &Value, own: Option<&Value>, path: &Path<'_>, own_path: &Path<'_>) {
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
        if schema.has("items") {
            let own_items = if is_own { Some(&schema["items"]) } else { own.get("items") };
            self.complete(&schema["items"], own_items, &path.field("items"), &own_path.field("items"));
        }
        if is_own && schema["additionalProperties"].is_object() {
            let at = path.field("additionalProperties");
            self.complete(&schema["additionalProperties"], schema.get("additionalProperties"), &at, &at);
        }
    }

    /// Defaults that the schema itself would not let pass.
    fn defaults(&mut self, schema: &Schema, path: &Path<'_>) {
        if let Some(default) = &schema.default {
            let at = path.field("default");
            let (mut pruned, mut unknown) = (default.clone(), Vec::new());
            shape::prune_part(schema, &mut pruned, &mut unknown);
            if pruned != *default {
                self.invalid(&at, default.clone(), "must not have unknown fields");
            }
            let mut complete = default.clone();
            shape::default(schema, &mut complete);
            for error in check::check(schema, &complete, None, &at.to_string()) {
                self.push(error);
            }
        }
        let properties = path.field("properties");
        for (name, field) in &schema.properties {
            self.defaults(field, &properties.key(name));
        }
        if let Some(items) = &schema.items {
            self.defaults(items, &path.field("items"));
        }
        if let super::schema::Additional::Of(of) = &schema.additional {
            self.defaults(of, &path.field("additionalProperties"));
        }
    }
}

/// The two ways to say that `type` stands where it may not, because the value is a number or a string.
#[derive(Clone, Copy, PartialEq, Eq)]
enum IntOrString {
    No,
    AnyOf,
    AllOf,
}

fn is_int_or_string(schema: &Value) -> IntOrString {
    let either = json!([{"type": "integer"}, {"type": "string"}]);
    if schema["anyOf"] == either {
        IntOrString::AnyOf
    } else if schema["allOf"][0]["anyOf"] == either {
        IntOrString::AllOf
    } else {
        IntOrString::No
    }
}

/// Whether the schema of an object's metadata restricts nothing but its name.
fn says_only_names(schema: &Value) -> bool {
    let known = |(name, value): (&String, &Value)| match name.as_str() {
        "type" => true,
        "properties" => {
            value.as_object().is_some_and(|map| map.keys().all(|name| matches!(name.as_str(), "name" | "generateName")))
        }
        _ => false,
    };
    schema.as_object().is_some_and(|map| map.iter().all(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(schema: &Value) -> Vec<String> {
        mistakes(schema, &Path::Field(&Path::Root, "schema")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn structural_schemas_pass() {
        for schema in [
            json!({"type": "object"}),
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
            json!({"type": "object", "properties": {
                "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 10}}},
                "spec": {"type": "object", "required": ["a"], "properties": {
                    "a": {"type": "string", "default": "x"},
                    "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                    "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
                             "items": {"type": "object", "required": ["n"], "properties": {"n": {"type": "string"}}}},
                    "free": {"x-kubernetes-preserve-unknown-fields": true},
                    "map": {"type": "object", "additionalProperties": {"type": "string"}}
                }, "oneOf": [{"required": ["a"]}, {"properties": {"a": {"minLength": 3}}}],
                "x-kubernetes-validations": [{"rule": "self.a != ''", "message": "no"}]}
            }}),
        ] {
            assert_eq!(found(&schema), Vec::<String>::new(), "{schema}");
        }
    }

    #[test]
    fn what_is_not_structural_is_named_in_kubernetes_words() {
        for (schema, expected) in [
            (json!({}), vec!["schema.type: Required value: must not be empty at the root"]),
            (
                json!({"type": "array", "items": {"type": "string"}}),
                vec!["schema.type: Invalid value: \"array\": must be object at the root"],
            ),
            (
                json!({"type": "object", "properties": {"a": {}}}),
                vec!["schema.properties[a].type: Required value: must not be empty for specified object fields"],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array"}}}),
                vec!["schema.properties[a].items: Required value: must be specified"],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "text"}}}),
                vec![
                    "schema.properties[a].type: Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \
                     \"number\", \"object\", \"string\"",
                ],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string", "anyOf": [{"type": "string"}]}}}),
                vec!["schema.properties[a].anyOf[0].type: Forbidden: must be empty to be structural"],
            ),
            (
                json!({"type": "object", "anyOf": [{"properties": {"b": {"minLength": 1}}}]}),
                vec!["schema.properties[b]: Required value: because it is defined in schema.anyOf[0].properties[b]"],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}),
                vec![
                    "schema.properties[a].pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: unclosed group",
                ],
            ),
            (
                json!({"type": "object", "properties": {"metadata": {"type": "object", "required": ["x"]}}}),
                vec![
                    "schema.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata \
                     is implicitly specified",
                ],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
                vec![
                    "schema.properties[a].default: Invalid value: \"string\":  in body must be of type integer: \"string\"",
                ],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array", "x-kubernetes-list-type": "map",
                    "items": {"type": "object", "properties": {"n": {"type": "string"}}}, "x-kubernetes-list-map-keys": ["n"]}}}),
                vec![
                    "schema.properties[a].items.properties[n].default: Required value: this property is in \
                     x-kubernetes-list-map-keys, so it must have a default or be a required property",
                ],
            ),
        ] {
            assert_eq!(found(&schema), expected, "{schema}");
        }
    }
}
