//! Strategic merge patch: lists of objects merge by the key that the table of fields names, and directives in the
//! patch (`$patch`, `$retainKeys`, `$deleteFromPrimitiveList`, `$setElementOrder`) say the rest.
//!
//! Source: "strategic merge patch" in Kubernetes' API conventions, and apimachinery `pkg/util/strategicpatch`.

use serde_json::{Map, Value};

use super::order;
use crate::schema::{Field, Shape, Type, table};
use crate::{Kind, Status};

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// `original` with `patch` applied; both are whole objects of this kind.
pub fn strategic_merge(kind: &Kind, original: &Value, patch: &Value) -> Result<Value, Status> {
    let Value::Object(patch) = patch else {
        return Err(Status::bad_request("Invalid JSON document"));
    };
    let empty = Map::new();
    let original = original.as_object().unwrap_or(&empty);
    let schema = table().find(kind.type_name()).map_or(Known::Nothing, Known::Type);
    merge_map(schema, original, patch).map(Value::Object)
}

/// What is known of an object that is being merged.
#[derive(Clone, Copy)]
enum Known {
    Nothing,
    Type(&'static Type),
    /// A map whose values have this shape.
    Map(&'static Shape),
}

impl Known {
    fn of(shape: &'static Shape) -> Self {
        match shape {
            Shape::Object(index) => Self::Type(&table().types[*index]),
            Shape::Map(item) => Self::Map(item),
            _ => Self::Nothing,
        }
    }

    fn field(self, name: &str) -> Option<&'static Field> {
        match self {
            Self::Type(schema) => schema.field(name),
            _ => None,
        }
    }

    fn child(self, name: &str) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::Type(schema) => schema.field(name).map_or(Self::Nothing, |field| Self::of(&field.shape)),
            Self::Map(item) => Self::of(item),
        }
    }
}

fn bad_list(directive: &str) -> Status {
    Status::bad_request(format!("invalid patch format of {directive}: it must be a list"))
}

fn merge_map(
    known: Known,
    original: &Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Map<String, Value>, Status> {
    match patch.get(PATCH) {
        None => {}
        Some(directive) if directive == "replace" => {
            let mut replaced = patch.clone();
            replaced.remove(PATCH);
            return Ok(replaced);
        }
        Some(directive) if directive == "delete" => return Ok(Map::new()),
        Some(directive) if directive == "merge" => {}
        Some(other) => return Err(Status::bad_request(format!("unknown patch type {other} in map"))),
    }
    let mut merged = original.clone();
    if let Some(retained) = patch.get(RETAIN) {
        let Value::Array(retained) = retained else { return Err(bad_list(RETAIN)) };
        let named = |key: &String| retained.iter().any(|name| name == key.as_str());
        if patch.iter().any(|(key, value)| !key.starts_with('$') && !value.is_null() && !named(key)) {
            return Err(Status::bad_request(
                "invalid patch format of retainKeys: it must name every field that the patch sets",
            ));
        }
        merged.retain(|key, _| named(key));
    }
    for (key, change) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            let Value::Array(gone) = change else { return Err(bad_list(DELETE_FROM)) };
            if let Some(Value::Array(items)) = merged.get_mut(field) {
                items.retain(|item| !gone.contains(item));
            }
        }
    }
    for (key, change) in patch {
        if key.starts_with('$') {
            continue;
        }
        if change.is_null() {
            merged.remove(key);
            continue;
        }
        let before = merged.remove(key).unwrap_or(Value::Null);
        merged.insert(key.clone(), merge_value(known, key, before, change)?);
    }
    for (key, wanted) in patch {
        let Some(name) = key.strip_prefix(ORDER) else { continue };
        let Value::Array(wanted) = wanted else { return Err(bad_list(ORDER)) };
        let merge_key = known.field(name).filter(|field| field.merge).map(|field| field.merge_key);
        if let (Some(merge_key), Some(Value::Array(items))) = (merge_key, merged.get_mut(name)) {
            let before = original.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            *items = order::set(std::mem::take(items), before, wanted, merge_key);
        }
    }
    Ok(merged)
}

/// Merges one field. What was not there before is merged into nothing, so that its directives and nulls go too.
fn merge_value(known: Known, key: &str, before: Value, change: &Value) -> Result<Value, Status> {
    match change {
        Value::Object(change) => {
            let before = match before {
                Value::Object(map) => map,
                _ => Map::new(),
            };
            Ok(Value::Object(merge_map(known.child(key), &before, change)?))
        }
        Value::Array(change) => match known.field(key).filter(|field| field.merge) {
            Some(field) => {
                let before = match before {
                    Value::Array(items) => items,
                    _ => Vec::new(),
                };
                merge_list(field, before, change).map(Value::Array)
            }
            None => Ok(Value::Array(change.clone())),
        },
        scalar => Ok(scalar.clone()),
    }
}

fn no_merge_key(item: &Value, key: &str) -> Status {
    Status::unprocessable(format!("map: {item} does not contain declared merge key: {key}"))
}

fn merge_list(field: &'static Field, before: Vec<Value>, change: &[Value]) -> Result<Vec<Value>, Status> {
    let Some(key) = field.merge_key else {
        // Scalars: all of both, each once.
        let mut merged = Vec::with_capacity(before.len() + change.len());
        for item in before.into_iter().chain(change.iter().cloned()) {
            if !merged.contains(&item) {
                merged.push(item);
            }
        }
        return Ok(merged);
    };
    let known = match &field.shape {
        Shape::List(item) => Known::of(item),
        _ => Known::Nothing,
    };
    let replaced = change.iter().any(|item| item.get(PATCH).is_some_and(|directive| directive == "replace"));
    if replaced {
        return Ok(change.iter().filter(|item| item.get(PATCH).is_none()).cloned().collect());
    }
    let mut merged = before;
    for item in change {
        let Value::Object(map) = item else { return Err(no_merge_key(item, key)) };
        if map.get(key).is_none_or(Value::is_null) {
            return Err(no_merge_key(item, key));
        }
        let place = merged.iter().position(|other| order::same(other, item, Some(key)));
        match map.get(PATCH).map(|directive| directive.as_str().unwrap_or_default()) {
            Some("delete") => merged.retain(|other| !order::same(other, item, Some(key))),
            None | Some("merge") => {
                let empty = Map::new();
                let original = place.and_then(|index| merged[index].as_object()).unwrap_or(&empty);
                let value = Value::Object(merge_map(known, original, map)?);
                match place {
                    Some(index) => merged[index] = value,
                    None => merged.push(value),
                }
            }
            Some(other) => return Err(Status::bad_request(format!("unknown patch type \"{other}\" in list"))),
        }
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::find;

    fn merged(group: &str, plural: &str, original: &Value, patch: &Value) -> Result<Value, String> {
        let kind = find(group, "v1", plural).unwrap();
        strategic_merge(kind, original, patch).map_err(|status| format!("{} {}", status.code(), status.message()))
    }

    #[test]
    fn merges() {
        let rows = [
            // Lists of objects merge by key.
            (
                "services",
                json!({"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "b"}]}}),
                json!({"spec": {"ports": [{"port": 81, "name": "c"}, {"port": 82}]}}),
                json!({"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "c"}, {"port": 82}]}}),
            ),
            (
                "services",
                json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}}),
                json!({"spec": {"ports": [{"port": 80, "$patch": "delete"}]}}),
                json!({"spec": {"ports": [{"port": 81}]}}),
            ),
            (
                "services",
                json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}}),
                json!({"spec": {"ports": [{"port": 9}, {"$patch": "replace"}]}}),
                json!({"spec": {"ports": [{"port": 9}]}}),
            ),
            // Maps merge; null removes; a selector is a map like any other.
            (
                "services",
                json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"selector": {"x": "y"}}}),
                json!({"metadata": {"labels": {"a": null, "c": "3"}}, "spec": {"selector": {"$patch": "replace", "z": "w"}}}),
                json!({"metadata": {"labels": {"b": "2", "c": "3"}}, "spec": {"selector": {"z": "w"}}}),
            ),
            // Lists without a merge strategy are replaced.
            (
                "services",
                json!({"spec": {"externalIPs": ["1.1.1.1"]}}),
                json!({"spec": {"externalIPs": ["2.2.2.2"]}}),
                json!({"spec": {"externalIPs": ["2.2.2.2"]}}),
            ),
            // Scalars that merge.
            (
                "pods",
                json!({"metadata": {"finalizers": ["a", "b"]}}),
                json!({"metadata": {"finalizers": ["b", "c"], "$deleteFromPrimitiveList/finalizers": ["a"]}}),
                json!({"metadata": {"finalizers": ["b", "c"]}}),
            ),
            // Deep inside, and into nothing: directives and nulls go.
            (
                "pods",
                json!({"spec": {"containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}]}}),
                json!({"spec": {"containers": [{"name": "c", "env": [{"name": "A", "$patch": "delete"}, {"name": "B", "value": null, "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
                                                "resources": {"limits": {"cpu": null, "memory": "1Gi"}}}]}}),
                json!({"spec": {"containers": [{"name": "c", "image": "i", "env": [{"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
                                                "resources": {"limits": {"memory": "1Gi"}}}]}}),
            ),
            // The order that the patch's author sees.
            (
                "pods",
                json!({"spec": {"containers": [{"name": "a"}, {"name": "injected"}, {"name": "b"}]}}),
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "image": "j"}]}}),
                json!({"spec": {"containers": [{"name": "injected"}, {"name": "b", "image": "j"}, {"name": "a"}]}}),
            ),
            (
                "pods",
                json!({"metadata": {"finalizers": ["x", "a"]}}),
                json!({"metadata": {"$setElementOrder/finalizers": ["b", "a"], "finalizers": ["b"]}}),
                json!({"metadata": {"finalizers": ["b", "x", "a"]}}),
            ),
            // A volume's source is one of many.
            (
                "pods",
                json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
                json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}]}}),
                json!({"spec": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}}),
            ),
            ("pods", json!({"spec": {"a": 1}}), json!({"spec": {"$patch": "delete"}}), json!({"spec": {}})),
            (
                "pods",
                json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
                json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}]}}),
                json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}]}}),
            ),
        ];
        for (plural, original, patch, expected) in rows {
            assert_eq!(merged("", plural, &original, &patch).unwrap(), expected, "{patch}");
        }
        assert_eq!(
            merged(
                "apps",
                "deployments",
                &json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
                &json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
            )
            .unwrap(),
            json!({"spec": {"strategy": {"type": "Recreate"}}})
        );
    }

    #[test]
    fn mistakes() {
        for (patch, message) in [
            (json!([]), "400 Invalid JSON document"),
            (json!({"$patch": "mend"}), "400 unknown patch type \"mend\" in map"),
            (
                json!({"spec": {"containers": [{"name": "a", "$patch": "mend"}]}}),
                "400 unknown patch type \"mend\" in list",
            ),
            (json!({"spec": {"$retainKeys": 3}}), "400 invalid patch format of $retainKeys: it must be a list"),
            (
                json!({"spec": {"$retainKeys": [], "nodeName": "n"}}),
                "400 invalid patch format of retainKeys: it must name every field that the patch sets",
            ),
            (
                json!({"spec": {"containers": [{"image": "i"}]}}),
                "422 map: {\"image\":\"i\"} does not contain declared merge key: name",
            ),
        ] {
            assert_eq!(merged("", "pods", &json!({}), &patch).unwrap_err(), message, "{patch}");
        }
    }
}
