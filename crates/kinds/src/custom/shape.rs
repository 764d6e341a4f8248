//! A custom resource as it came in -> one that has the fields its schema knows, and the defaults of those it left out.
//!
//! Invariants: what is preserved on purpose stays as it is; defaulting twice is defaulting once; the defaults put into
//! one object are bounded, since a list of many items may ask for many large ones.
//! Source: `pkg/apiserver/schema/{pruning,defaulting,objectmeta}` of apiextensions-apiserver.

use serde_json::{Map, Value};

use super::schema::{Additional, Schema};
use crate::decode;
use crate::look::Path;
use crate::{FieldError, FieldValidation};

/// What every object has, whatever its schema says.
const META: [&str; 3] = ["apiVersion", "kind", "metadata"];
/// Bytes of defaults that are put into one object; with more it is too large to be stored anyhow.
const MOST_DEFAULTS: usize = 4 << 20;

/// Takes out what no schema names, and says where it was.
pub(super) fn prune(root: &Schema, object: &mut Value, unknown: &mut Vec<String>) {
    let mut prune = Prune { unknown };
    match object {
        Value::Object(map) => prune.map(Some(root), map, true, root.preserves_unknown, &Path::Root),
        _ => prune.value(Some(root), object, &Path::Root),
    }
}

/// The same for a value that is no whole object, such as a default.
pub(super) fn prune_part(schema: &Schema, value: &mut Value, unknown: &mut Vec<String>) {
    Prune { unknown }.value(Some(schema), value, &Path::Root);
}

struct Prune<'a> {
    unknown: &'a mut Vec<String>,
}

impl Prune<'_> {
    fn value(&mut self, schema: Option<&Schema>, value: &mut Value, path: &Path<'_>) {
        let preserves = schema.is_some_and(|schema| schema.preserves_unknown);
        self.within(schema, value, preserves, path);
    }

    /// `preserves` goes down with lists, as whose items' unknown fields stay too.
    fn within(&mut self, schema: Option<&Schema>, value: &mut Value, preserves: bool, path: &Path<'_>) {
        match value {
            Value::Object(map) => {
                self.map(schema, map, schema.is_some_and(|schema| schema.embedded), preserves, path);
            }
            Value::Array(items) => {
                let of = schema.and_then(|schema| schema.items.as_deref());
                for (index, item) in items.iter_mut().enumerate() {
                    if !preserves {
                        self.value(of, item, &path.index(index));
                    } else if of.is_some() {
                        self.within(of, item, true, &path.index(index));
                    }
                }
            }
            _ => {}
        }
    }

    fn map(
        &mut self,
        schema: Option<&Schema>,
        map: &mut Map<String, Value>,
        whole: bool,
        preserves: bool,
        path: &Path<'_>,
    ) {
        map.retain(|name, value| {
            if whole && META.contains(&name.as_str()) {
                return true;
            }
            let here = path.field(name);
            if let Some(field) = schema.and_then(|schema| schema.field(name)) {
                self.value(Some(field), value, &here);
                return true;
            }
            if preserves || schema.is_some_and(|schema| !matches!(schema.additional, Additional::Unsaid)) {
                return true;
            }
            if self.unknown.len() < decode::MAX_WARNINGS {
                self.unknown.push(format!("unknown field \"{here}\""));
            }
            false
        });
    }
}

/// Gives the objects that stand inside of others metadata of the right form, and takes out what that has not.
pub(super) fn settle_embedded(
    schema: &Schema,
    value: &mut Value,
    path: &Path<'_>,
    unknown: &mut Vec<String>,
) -> Result<(), FieldError> {
    match value {
        Value::Object(map) => {
            for (name, value) in map.iter_mut() {
                let here = path.field(name);
                match name.as_str() {
                    "apiVersion" | "kind" if schema.embedded && !value.is_string() => {
                        return Err(FieldError::invalid(here, value.clone(), "must be a string"));
                    }
                    "metadata" if schema.embedded => {
                        let sent = value.clone();
                        decode::check_at("meta.v1.ObjectMeta", value, &here, FieldValidation::Warn, unknown)
                            .map_err(|why| FieldError::invalid(here, sent, why))?;
                    }
                    _ => {}
                }
                if let Some(field) = schema.field(name) {
                    settle_embedded(field, value, &here, unknown)?;
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                if let Some(of) = &schema.items {
                    settle_embedded(of, item, &path.index(index), unknown)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// Fills in what was left out, after taking out the nulls that no schema allows and no default replaces.
pub(super) fn default(schema: &Schema, object: &mut Value) {
    drop_nulls(schema, object);
    fill(schema, object, &mut 0);
}

fn drop_nulls(schema: &Schema, value: &mut Value) {
    match value {
        Value::Object(map) => map.retain(|name, value| match schema.field(name) {
            Some(field) if value.is_null() => field.nullable || field.default.is_some(),
            Some(field) => {
                drop_nulls(field, value);
                true
            }
            None => true,
        }),
        Value::Array(items) => {
            if let Some(of) = &schema.items {
                items.iter_mut().for_each(|item| drop_nulls(of, item));
            }
        }
        _ => {}
    }
}

fn fill(schema: &Schema, value: &mut Value, spent: &mut usize) {
    let replace = |schema: &Schema, value: &mut Value, spent: &mut usize| {
        if let Some(default) = schema.default.as_ref().filter(|_| value.is_null() && !schema.nullable)
            && spend(default, spent)
        {
            *value = default.clone();
        }
    };
    match value {
        Value::Object(map) => {
            for name in &schema.defaulted {
                let Some(field) = schema.properties.get(name) else { continue };
                let missing = map.get(name).is_none_or(|value| value.is_null() && !field.nullable);
                if let Some(default) = field.default.as_ref().filter(|_| missing)
                    && spend(default, spent)
                {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in map {
                if let Some(field) = schema.field(name) {
                    replace(field, value, spent);
                    fill(field, value, spent);
                }
            }
        }
        Value::Array(items) => {
            let Some(of) = &schema.items else { return };
            for item in items {
                replace(of, item, spent);
                fill(of, item, spent);
            }
        }
        _ => {}
    }
}

/// Whether there may be one more default, which is then taken for put in.
fn spend(default: &Value, spent: &mut usize) -> bool {
    // Once there is no room, how much more there would be is not worth a look.
    if *spent <= MOST_DEFAULTS {
        *spent = spent.saturating_add(size(default));
    }
    *spent <= MOST_DEFAULTS
}

/// About as many bytes as the value has in text.
pub(super) fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 3,
        Value::Array(items) => items.iter().map(size).sum::<usize>() + 2,
        Value::Object(map) => map.iter().map(|(name, value)| name.len() + 4 + size(value)).sum::<usize>() + 2,
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pruned(schema: &Value, mut object: Value) -> (Value, Vec<String>) {
        let mut unknown = Vec::new();
        prune(&Schema::new(schema), &mut object, &mut unknown);
        (object, unknown)
    }

    #[test]
    fn only_what_is_known_stays() {
        let schema = json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "a": {"type": "string"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                         "properties": {"known": {"type": "object", "properties": {"x": {"type": "string"}}}}},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "string"}}}},
                "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}},
                "object": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}}
            }}
        }});
        let (object, unknown) = pruned(
            &schema,
            json!({
                "apiVersion": "g/v", "kind": "K", "metadata": {"name": "n"}, "status": {},
                "spec": {
                    "a": "1", "b": "2", "free": {"y": {"z": 1}, "known": {"x": "1", "y": 2}},
                    "map": {"k": {"x": "1", "y": "2"}}, "list": [{"x": "1"}, {"y": 2}],
                    "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"y": 1}, "foo": 1}
                }
            }),
        );
        assert_eq!(
            object,
            json!({
                "apiVersion": "g/v", "kind": "K", "metadata": {"name": "n"},
                "spec": {
                    "a": "1", "free": {"y": {"z": 1}, "known": {"x": "1"}}, "map": {"k": {"x": "1"}},
                    "list": [{"x": "1"}, {}],
                    "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}}
                }
            })
        );
        let expected = ["b", "free.known.y", "list[1].y", "map.k.y", "object.foo", "object.spec.y"]
            .map(|path| format!("unknown field \"spec.{path}\""));
        assert_eq!(unknown[..6], expected);
        assert_eq!(unknown[6], "unknown field \"status\"");
    }

    #[test]
    fn defaults_fill_gaps_and_replace_nulls() {
        let schema = Schema::new(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "default": {}, "properties": {
                "replicas": {"type": "integer", "default": 1},
                "maybe": {"type": "string", "nullable": true, "default": "x"},
                "plain": {"type": "string"},
                "list": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string", "default": "TCP"}}}},
                "map": {"type": "object", "additionalProperties": {"type": "integer", "default": 7}}
            }}
        }}));
        for (sent, expected) in [
            (json!({}), json!({"spec": {"replicas": 1, "maybe": "x"}})),
            (
                json!({"spec": {"replicas": null, "maybe": null, "plain": null, "list": [{}, {"p": "UDP"}], "map": {"a": null, "b": 2}}}),
                json!({"spec": {"replicas": 1, "maybe": null, "list": [{"p": "TCP"}, {"p": "UDP"}], "map": {"a": 7, "b": 2}}}),
            ),
        ] {
            let mut object = sent;
            default(&schema, &mut object);
            assert_eq!(object, expected);
            default(&schema, &mut object);
            assert_eq!(object, expected, "once is enough");
        }
    }

    #[test]
    fn defaults_are_bounded() {
        let text = "x".repeat(100_000);
        let schema = Schema::new(&json!({"type": "object", "properties": {"list": {"type": "array", "items": {
            "type": "object", "properties": {"p": {"type": "string", "default": text}}}}}}));
        let mut object = json!({"list": vec![json!({}); 1000]});
        default(&schema, &mut object);
        assert!(size(&object) < MOST_DEFAULTS + 100_000);
    }
}
