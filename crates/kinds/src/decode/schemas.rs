//! Fields of a schema that may be of several types: what Go reads by code of its own.
//!
//! Unknown fields below them go without a word, also to who is strict, since that code is not.
//! Source: `pkg/apis/apiextensions/v1/marshal.go` of apiextensions-apiserver.

use serde_json::Value;

use super::{Place, Walk, json_name, type_error};
use crate::look::Path;

const SCHEMA: &str = "apiextensions.v1.JSONSchemaProps";

/// What else a field may be than nothing.
#[derive(Clone, Copy)]
pub(super) enum Choice {
    SchemaOrFlag,
    SchemaOrSchemas,
    /// One of these for each key.
    SchemasOrTexts,
    /// A struct without fields.
    Nothing,
}

impl Choice {
    /// For fields whose shape does not say it.
    pub(super) fn of(owner: &str, field: &str) -> Option<Self> {
        match (owner, field) {
            (SCHEMA, "additionalItems" | "additionalProperties") => Some(Self::SchemaOrFlag),
            (SCHEMA, "items") => Some(Self::SchemaOrSchemas),
            (SCHEMA, "dependencies") => Some(Self::SchemasOrTexts),
            ("apiextensions.v1.CustomResourceSubresources", "status") => Some(Self::Nothing),
            _ => None,
        }
    }
}

impl Walk<'_> {
    /// A value that is none of the choices becomes null where Go takes it for nothing.
    pub(super) fn choice(
        &mut self,
        choice: Choice,
        value: &mut Value,
        path: &Path<'_>,
        place: Place<'_>,
    ) -> Result<(), String> {
        match (choice, &mut *value) {
            (Choice::Nothing, Value::Object(map)) => {
                for name in std::mem::take(map).keys() {
                    self.tell_unknown(&path.field(name));
                }
                Ok(())
            }
            (Choice::Nothing, other) => {
                Err(type_error(json_name(other), path, Some(place), "v1.CustomResourceSubresourceStatus"))
            }
            (Choice::SchemasOrTexts, Value::Object(map)) => {
                map.iter_mut().try_for_each(|(key, value)| self.schema_or_texts(value, &path.key(key), place))
            }
            (Choice::SchemasOrTexts, other) => {
                Err(type_error(json_name(other), path, Some(place), "v1.JSONSchemaDependencies"))
            }
            (Choice::SchemaOrFlag, Value::Bool(_)) => Ok(()),
            (_, Value::Object(_)) => self.schema(value, path, place),
            (Choice::SchemaOrFlag, _) => Err("boolean or JSON schema expected".to_owned()),
            (Choice::SchemaOrSchemas, Value::Array(items)) => {
                items.iter_mut().try_for_each(|item| self.schema(item, path, place))
            }
            (Choice::SchemaOrSchemas, other) => {
                *other = Value::Null;
                Ok(())
            }
        }
    }

    fn schema_or_texts(&mut self, value: &mut Value, path: &Path<'_>, place: Place<'_>) -> Result<(), String> {
        match value {
            Value::Object(_) => self.schema(value, path, place),
            Value::Array(items) => match items.iter().find(|item| !item.is_string() && !item.is_null()) {
                Some(other) => Err(type_error(json_name(other), path, Some(place), "string")),
                None => Ok(()),
            },
            other => {
                *other = Value::Null;
                Ok(())
            }
        }
    }

    fn schema(&mut self, value: &mut Value, path: &Path<'_>, place: Place<'_>) -> Result<(), String> {
        let Some(schema) = self.table.find(SCHEMA) else { return Ok(()) };
        let counts = std::mem::replace(&mut self.count, false);
        let checked = self.object(schema, value, path, Some(place));
        self.count = counts;
        checked
    }
}
