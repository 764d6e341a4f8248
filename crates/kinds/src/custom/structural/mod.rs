//! The schema in a definition -> what keeps it from being structural, or from being a schema at all.
//!
//! Invariant: what passes here can be pruned, defaulted and checked against without asking anything more of it.
//! Deliberately not here: whether a rule in CEL compiles, which is asked of what passes here (`compile`).
//! Source: `pkg/apiserver/schema/{validation,complete}.go` and `pkg/apis/apiextensions/validation` of
//! apiextensions-apiserver, whose words these are.

mod lists;
mod nested;

use serde_json::{Value, json};

use super::check;
use super::compile;
use super::places;
use super::schema::{Schema, type_of};
use super::shape;
use crate::FieldError;
use crate::look::{Look, Path};
use nested::IntOrString;

/// At most this many mistakes are told of one schema.
const MOST: usize = 100;
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
        if !self.is_full() {
            self.errors.push(error);
        }
    }

    fn is_full(&self) -> bool {
        self.errors.len() >= MOST
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
        self.values(schema, path, IntOrString::of(schema));
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
        if schema["items"].is_object() {
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
        if schema["items"].is_array() {
            self.forbidden(&path.field("items"), "items must be a schema object and not an array");
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
mod tests;
