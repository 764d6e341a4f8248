//! Strategic merge patch: lists of objects merge by the key that the table of fields names, and directives in the
//! patch (`$patch`, `$retainKeys`, `$deleteFromPrimitiveList`, `$setElementOrder`) say the rest.
//!
//! Source: "strategic merge patch" in Kubernetes' API conventions, and apimachinery `pkg/util/strategicpatch`.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::order;
use crate::decode::json_name;
use crate::schema::{Field, Shape, Type, table};
use crate::{Kind, Status};

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// `original` with `patch` applied; both are whole objects of this kind.
pub fn strategic_merge(kind: &Kind, original: &Value, patch: &Value) -> Result<Value, Status> {
    let empty = Map::new();
    let patch = match patch {
        Value::Object(patch) => patch,
        Value::Null => &empty,
        other => {
            let got = json_name(other);
            let why = format!("json: cannot unmarshal {got} into Go value of type map[string]interface {{}}");
            return Err(Status::bad_request(why));
        }
    };
    let original = original.as_object().unwrap_or(&empty);
    let schema = table().find(kind.type_name()).map_or(Known::Nothing, Known::Type);
    let mut merged = merge_map(schema, original, patch)?;
    // A patch may say anything of these, and it means nothing.
    for field in ["apiVersion", "kind"] {
        match original.get(field) {
            Some(value) => _ = merged.insert(field.to_owned(), value.clone()),
            None => _ = merged.remove(field),
        }
    }
    Ok(Value::Object(merged))
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

fn no_list(value: &Value) -> Status {
    Status::bad_request(format!("expected a []interface {{}}, but received a {}", json_name(value)))
}

fn bad_retain_keys() -> Status {
    Status::bad_request("invalid patch format of retainKeys")
}

fn unknown_directive(directive: &Value, map: &Map<String, Value>) -> Status {
    let directive = directive.as_str().map_or_else(|| directive.to_string(), str::to_owned);
    Status::bad_request(format!("unknown patch type: {directive} in map: {}", Value::Object(map.clone())))
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
        Some(other) => return Err(unknown_directive(other, patch)),
    }
    let mut merged = original.clone();
    if let Some(retained) = patch.get(RETAIN) {
        let Value::Array(retained) = retained else { return Err(bad_retain_keys()) };
        let retained: HashSet<&str> = retained.iter().filter_map(Value::as_str).collect();
        let named = |key: &String| retained.contains(key.as_str());
        if patch.iter().any(|(key, value)| !key.starts_with('$') && !value.is_null() && !named(key)) {
            return Err(bad_retain_keys());
        }
        merged.retain(|key, _| named(key));
    }
    for (key, change) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            match (change, merged.get_mut(field)) {
                (Value::Array(gone), Some(Value::Array(items))) => {
                    let gone: HashSet<&Value> = gone.iter().collect();
                    items.retain(|item| !gone.contains(item));
                }
                (Value::Null, _) => _ = merged.remove(field),
                _ => {}
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
        let Value::Array(wanted) = wanted else { return Err(no_list(wanted)) };
        let merge_key = match (known, known.field(name)) {
            (Known::Type(schema), None) => {
                let owner = schema.short_name();
                let why = format!("unable to find api field in struct {owner} for the json field \"{name}\"");
                return Err(Status::bad_request(why));
            }
            (_, field) => field.and_then(|field| field.merge_key),
        };
        agrees(patch.get(name), wanted, merge_key)?;
        match merged.get_mut(name) {
            Some(Value::Array(items)) => {
                let before = original.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                *items = order::set(std::mem::take(items), before, wanted, merge_key);
            }
            Some(other) => return Err(no_list(other)),
            None => {}
        }
    }
    Ok(merged)
}

/// Whether the items of a patch stand in the order that it asks for, and are all in there.
fn agrees(patch: Option<&Value>, wanted: &[Value], merge_key: Option<&str>) -> Result<(), Status> {
    if let Some(item) = wanted.iter().find(|item| order::identity(item, merge_key).is_none()) {
        return Err(no_merge_key(item, merge_key.unwrap_or_default()));
    }
    let items = patch.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut rest = wanted.iter();
    let stays = |item: &&Value| item.get(PATCH).is_none();
    let mut named = items.iter().filter(stays).filter_map(|item| order::identity(item, merge_key));
    if wanted.is_empty() || named.all(|item| rest.any(|other| order::identity(other, merge_key) == Some(item))) {
        return Ok(());
    }
    let list = |items: &[Value]| Value::Array(items.to_vec());
    let (items, wanted) = (list(items), list(wanted));
    let why = format!("The order in patch list:\n{items}\n doesn't match $setElementOrder list:\n{wanted}\n");
    Err(Status::bad_request(why))
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
                let merged = merge_list(field, before.clone(), change)?;
                // What both have stands in the patch's order; `$setElementOrder`, if there is one, says more.
                let merged =
                    if before.is_empty() { merged } else { order::set(merged, &before, change, field.merge_key) };
                Ok(Value::Array(merged))
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
        let mut seen = HashSet::new();
        let all = before.into_iter().chain(change.iter().cloned());
        return Ok(all.filter(|item| seen.insert(item.clone())).collect());
    };
    let known = match &field.shape {
        Shape::List(item) => Known::of(item),
        _ => Known::Nothing,
    };
    let replaced = change.iter().any(|item| item.get(PATCH).is_some_and(|directive| directive == "replace"));
    if replaced {
        return Ok(change.iter().filter(|item| item.get(PATCH).is_none()).cloned().collect());
    }
    let mut places: HashMap<Value, Vec<usize>> = HashMap::new();
    for (index, item) in before.iter().enumerate() {
        if let Some(value) = item.get(key) {
            places.entry(value.clone()).or_default().push(index);
        }
    }
    let mut merged: Vec<Option<Value>> = before.into_iter().map(Some).collect();
    for item in change {
        let Value::Object(map) = item else { return Err(no_merge_key(item, key)) };
        let Some(value) = map.get(key).filter(|value| !value.is_null()) else { return Err(no_merge_key(item, key)) };
        match map.get(PATCH).map(|directive| directive.as_str().unwrap_or_default()) {
            Some("delete") => {
                for index in places.remove(value).unwrap_or_default() {
                    merged[index] = None;
                }
            }
            None => {
                let place = places.get(value).and_then(|places| places.first()).copied();
                let empty = Map::new();
                let original = place.and_then(|index| merged[index].as_ref()?.as_object()).unwrap_or(&empty);
                let result = Some(Value::Object(merge_map(known, original, map)?));
                match place {
                    Some(index) => merged[index] = result,
                    None => {
                        places.entry(value.clone()).or_default().push(merged.len());
                        merged.push(result);
                    }
                }
            }
            Some("merge") => return Err(Status::bad_request("merging lists cannot yet be specified in the patch")),
            Some(_) => return Err(unknown_directive(&map[PATCH], map)),
        }
    }
    Ok(merged.into_iter().flatten().collect())
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
            (json!([]), "400 json: cannot unmarshal array into Go value of type map[string]interface {}"),
            (json!({"$patch": "mend"}), "400 unknown patch type: mend in map: {\"$patch\":\"mend\"}"),
            (
                json!({"spec": {"containers": [{"name": "a", "$patch": "mend"}]}}),
                "400 unknown patch type: mend in map: {\"$patch\":\"mend\",\"name\":\"a\"}",
            ),
            (json!({"spec": {"$retainKeys": 3}}), "400 invalid patch format of retainKeys"),
            (json!({"spec": {"$retainKeys": [], "nodeName": "n"}}), "400 invalid patch format of retainKeys"),
            (
                json!({"spec": {"containers": [{"image": "i"}]}}),
                "422 map: {\"image\":\"i\"} does not contain declared merge key: name",
            ),
        ] {
            assert_eq!(merged("", "pods", &json!({}), &patch).unwrap_err(), message, "{patch}");
        }
    }
}
