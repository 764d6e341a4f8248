//! A structural schema as its definition has it in JSON -> a tree that is walked beside a value.
//!
//! Invariants: building never fails, since what is not structural was refused when it came in (`structural`), and what
//! is odd all the same says nothing; a pattern is compiled once, when it is first needed.
//! Source: "structural schemas" in Kubernetes' documentation, `pkg/apiserver/schema` of apiextensions-apiserver.

use std::collections::BTreeMap;

use serde_json::Value;

use super::pattern::Pattern;
use crate::look::Look;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

/// What fields an object may have beside those that the schema names.
#[derive(Debug)]
pub(crate) enum Additional {
    /// Nothing is said: there are none, and what comes is pruned.
    Unsaid,
    /// Any, or expressly none.
    Any(bool),
    Of(Box<Schema>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListType {
    Atomic,
    Set,
    Map,
}

#[derive(Debug)]
pub(crate) struct Schema {
    /// `None` in what stands in `allOf` and its like, and where any type will do.
    pub(crate) kind: Option<Type>,
    pub(crate) nullable: bool,
    pub(crate) default: Option<Value>,
    /// Boxed, since a map's nodes have room for many, and most objects have few.
    pub(crate) properties: BTreeMap<String, Box<Schema>>,
    /// Those of them that have a default.
    pub(crate) defaulted: Vec<String>,
    pub(crate) additional: Additional,
    pub(crate) items: Option<Box<Schema>>,
    pub(crate) preserves_unknown: bool,
    /// Appliers may set fields of the object that nothing names: it names none, or it is in something that preserves
    /// unknown fields. They are pruned all the same.
    pub(crate) free: bool,
    /// A whole object with `apiVersion`, `kind` and `metadata` of its own.
    pub(crate) embedded: bool,
    pub(crate) int_or_string: bool,
    pub(crate) list_type: ListType,
    pub(crate) list_keys: Vec<String>,
    /// Appliers own the map as a whole.
    pub(crate) atomic: bool,
    pub(crate) format: String,
    pub(crate) pattern: Option<Pattern>,
    pub(crate) choices: Vec<Value>,
    pub(crate) maximum: Option<Bound>,
    pub(crate) minimum: Option<Bound>,
    pub(crate) multiple_of: Option<f64>,
    pub(crate) length: Range,
    pub(crate) item_count: Range,
    pub(crate) property_count: Range,
    pub(crate) required: Vec<String>,
    pub(crate) all_of: Vec<Schema>,
    pub(crate) any_of: Vec<Schema>,
    pub(crate) one_of: Vec<Schema>,
    pub(crate) not: Option<Box<Schema>>,
}

/// How large or small a number may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) value: f64,
    pub(crate) exclusive: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) min: Option<u64>,
    pub(crate) max: Option<u64>,
}

impl Schema {
    pub(crate) fn new(json: &Value) -> Self {
        Self::within(false, json)
    }

    /// In a schema that preserves unknown fields, or not.
    fn within(preserving: bool, json: &Value) -> Self {
        let preserves_unknown = json.flag("x-kubernetes-preserve-unknown-fields");
        let embedded = json.flag("x-kubernetes-embedded-resource");
        let preserving = preserving || preserves_unknown;
        let new = |json: &Value| Self::within(preserving, json);
        let one = |field: &str| json.get(field).filter(|value| value.is_object()).map(|value| Box::new(new(value)));
        let many = |field: &str| json.list(field).iter().map(new).collect();
        let range = |min: &str, max: &str| Range { min: json[min].as_u64(), max: json[max].as_u64() };
        let bound = |limit: &str, exclusive: &str| {
            json[limit].as_f64().map(|value| Bound { value, exclusive: json.flag(exclusive) })
        };
        let texts = |field: &str| json.list(field).iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let has_default = |(_, schema): &(&str, &Value)| schema.has("default");
        Self {
            kind: type_of(json.text("type")),
            nullable: json.flag("nullable"),
            default: json.get("default").filter(|value| !value.is_null()).cloned(),
            properties: json
                .entries("properties")
                .map(|(name, schema)| (name.to_owned(), Box::new(new(schema))))
                .collect(),
            defaulted: json.entries("properties").filter(has_default).map(|(name, _)| name.to_owned()).collect(),
            additional: match &json["additionalProperties"] {
                Value::Bool(any) => Additional::Any(*any),
                Value::Object(_) => Additional::Of(Box::new(new(&json["additionalProperties"]))),
                _ => Additional::Unsaid,
            },
            items: one("items"),
            preserves_unknown,
            free: preserving || json.entries("properties").next().is_none() && !embedded,
            embedded,
            int_or_string: json.flag("x-kubernetes-int-or-string"),
            list_type: match json.text("x-kubernetes-list-type") {
                "set" => ListType::Set,
                "map" => ListType::Map,
                _ => ListType::Atomic,
            },
            list_keys: texts("x-kubernetes-list-map-keys"),
            atomic: json.text("x-kubernetes-map-type") == "atomic",
            format: json.text("format").replace('-', ""),
            pattern: Some(json.text("pattern")).filter(|text| !text.is_empty()).map(Pattern::new),
            choices: json.list("enum").to_vec(),
            maximum: bound("maximum", "exclusiveMaximum"),
            minimum: bound("minimum", "exclusiveMinimum"),
            multiple_of: json["multipleOf"].as_f64(),
            length: range("minLength", "maxLength"),
            item_count: range("minItems", "maxItems"),
            property_count: range("minProperties", "maxProperties"),
            required: texts("required"),
            all_of: many("allOf"),
            any_of: many("anyOf"),
            one_of: many("oneOf"),
            not: one("not"),
        }
    }

    /// The schema of a field of this object, if there is one.
    pub(crate) fn field(&self, name: &str) -> Option<&Self> {
        let named = self.properties.get(name);
        named.map(Box::as_ref).or(match &self.additional {
            Additional::Of(schema) => Some(schema),
            _ => None,
        })
    }

    /// The schema at the end of a path of named fields.
    pub(crate) fn at(&self, path: &[String]) -> Option<&Self> {
        path.iter().try_fold(self, |schema, name| schema.properties.get(name).map(Box::as_ref))
    }
}

pub(crate) fn type_of(name: &str) -> Option<Type> {
    Some(match name {
        "object" => Type::Object,
        "array" => Type::Array,
        "string" => Type::String,
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        _ => return None,
    })
}

impl Type {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}
