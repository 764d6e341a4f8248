//! What must hold of any input at all, each as a plain function over bytes: property tests here run them for a moment,
//! fuzzers (`fuzz/`) for as long as they are let. They panic when it does not hold.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use portolan_kinds::apply::{self, Writer};
use portolan_kinds::patch::{self, Operations};
use portolan_kinds::select::{FieldSelector, LabelSelector, Labels};
use portolan_kinds::{Catalog, FieldValidation, Kind, Status, Subresource, all, openapi, protobuf};
use serde_json::{Map, Value, json};

use crate::bodies::{Choices, body};

/// Copies may add so much.
const COPIED: usize = 1 << 20;
const WRITER: Writer<'static> =
    Writer { manager: "m", subresource: "", now: "2026-01-01T00:00:00Z", translations: None };

/// The schemas of a kind's document, and which of them is the kind's.
type Document = (Value, String);

fn document(kind: &Kind) -> &'static Document {
    static DOCUMENTS: LazyLock<BTreeMap<(&str, &str), Document>> = LazyLock::new(|| {
        let read = |kind: &'static Kind| {
            let path = match kind.group {
                "" => format!("api/{}", kind.version),
                group => format!("apis/{group}/{}", kind.version),
            };
            let document = openapi::v3(&Catalog::default(), &path).unwrap();
            let schemas = document["components"]["schemas"].clone();
            let is_its = |schema: &Value| {
                schema["x-kubernetes-group-version-kind"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|of| of["group"] == kind.group && of["version"] == kind.version && of["kind"] == kind.kind)
            };
            let (name, _) = schemas.as_object().unwrap().iter().find(|(_, schema)| is_its(schema)).unwrap();
            ((kind.group, kind.plural), (schemas.clone(), name.clone()))
        };
        all().iter().map(read).collect()
    });
    &DOCUMENTS[&(kind.group, kind.plural)]
}

fn any_kind(choices: &mut Choices<'_>) -> &'static Kind {
    &all()[choices.below(all().len())]
}

fn any_body(kind: &Kind, choices: &mut Choices<'_>) -> Value {
    let (schemas, name) = document(kind);
    body(schemas, &schemas[name], choices, 0)
}

/// An object as it could be stored, if the choices make one.
fn any_stored(kind: &Kind, choices: &mut Choices<'_>) -> Option<Value> {
    let mut tries = (0..8).map(|_| kind.decode(any_body(kind, choices), FieldValidation::Ignore));
    let (mut object, _) = tries.find_map(Result::ok)?;
    kind.default(&mut object);
    kind.prepare_create(&mut object);
    Some(object)
}

/// A body of any kind goes through the whole write path. Tells whether it was worth sending: whether it could be
/// decoded.
pub(crate) fn bodies(bytes: &[u8]) -> bool {
    let mut choices = Choices::new(bytes);
    let kind = any_kind(&mut choices);
    let sent = any_body(kind, &mut choices);
    let _ = kind.row(&sent, jiff::Timestamp::UNIX_EPOCH);
    let Ok((decoded, _)) = kind.decode(sent, FieldValidation::Warn) else { return false };
    let (again, warnings) = kind.decode(decoded.clone(), FieldValidation::Strict).unwrap();
    assert_eq!(again, decoded, "decoding is idempotent");
    assert!(warnings.is_empty());
    let mut object = decoded;
    kind.default(&mut object);
    let mut twice = object.clone();
    kind.default(&mut twice);
    assert_eq!(twice, object, "defaults are idempotent");
    kind.prepare_create(&mut object);
    let _ = kind.validate_create(&object);
    assert_eq!(kind.row(&object, jiff::Timestamp::UNIX_EPOCH).len(), kind.columns().len());
    for sub in [Subresource::None, Subresource::Status] {
        let mut new = object.clone();
        kind.prepare_update(&mut new, &object, sub);
        let _ = kind.validate_update(&new, &object, sub);
        let mut settled = new.clone();
        kind.prepare_update(&mut settled, &new, sub);
        assert_eq!(settled, new, "an update that changes nothing changes nothing");
    }
    true
}

/// A stored object goes through protobuf and comes back. Tells whether the choices made one.
pub(crate) fn encoder(bytes: &[u8]) -> bool {
    let mut choices = Choices::new(bytes);
    let kind = any_kind(&mut choices);
    let Some(mut stored) = any_stored(kind, &mut choices) else { return false };
    // Only where a definition is valid are its schemas schemas.
    if kind.kind == "CustomResourceDefinition" && !kind.validate_create(&stored).is_empty() {
        return false;
    }
    let encoded = protobuf::from_json(&stored).unwrap();
    let (mut object, unknown) = kind.decode(protobuf::to_json(&encoded).unwrap(), FieldValidation::Strict).unwrap();
    assert!(unknown.is_empty());
    // Of lists and maps, protobuf cannot tell an empty one from none.
    drop_empty(&mut stored);
    drop_empty(&mut object);
    assert_eq!(object, stored);
    true
}

fn drop_empty(value: &mut Value) {
    let is_empty = |value: &Value| value.is_null() || value == &json!([]) || value == &json!({});
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(drop_empty);
            map.retain(|_, value| !is_empty(value));
        }
        Value::Array(items) => items.iter_mut().for_each(drop_empty),
        _ => {}
    }
}

/// A stored object is patched three ways. Tells whether any patch could be carried out.
pub(crate) fn patches(bytes: &[u8]) -> bool {
    let mut choices = Choices::new(bytes);
    let kind = any_kind(&mut choices);
    let Some(stored) = any_stored(kind, &mut choices) else { return false };
    assert_eq!(patch::strategic_merge(kind, &stored, &json!({})).unwrap(), stored);
    assert_eq!(patch::json_merge(&stored, &json!({})), stored);
    let mut change = any_body(kind, &mut choices);
    nulls(&mut change, &mut choices);
    let merged = patch::json_merge(&stored, &change);
    assert_eq!(patch::json_merge(&merged, &change), merged, "a merge is idempotent");
    directives(&mut change, &mut choices);
    let strategic = patch::strategic_merge(kind, &stored, &change);
    let operations = operations(&stored, &mut choices);
    let listed = Operations::parse(operations).and_then(|operations| operations.apply(&stored, COPIED));
    [Ok(merged), strategic, listed]
        .into_iter()
        .fold(false, |any, patched| patched_is_sound(kind, &stored, patched) | any)
}

/// Whatever a patch made goes the way of an update.
fn patched_is_sound(kind: &Kind, stored: &Value, patched: Result<Value, Status>) -> bool {
    let patched = match patched {
        Ok(patched) => patched,
        Err(status) => {
            assert!(matches!(status.code(), 400..=499), "{} {}", status.code(), status.message());
            return false;
        }
    };
    let Ok((mut new, _)) = kind.decode(patched, FieldValidation::Warn) else { return false };
    kind.default(&mut new);
    kind.prepare_update(&mut new, stored, Subresource::None);
    let _ = kind.validate_update(&new, stored, Subresource::None);
    let owners = apply::update(kind, (Some(stored), json!([])), (&new, &Value::Null), WRITER);
    assert!(owners.managed_fields.is_null() || owners.managed_fields.is_array());
    true
}

/// Writes null where something was, here and there.
fn nulls(value: &mut Value, choices: &mut Choices<'_>) {
    for member in value.as_object_mut().into_iter().flat_map(Map::values_mut) {
        if choices.one_in(12) {
            *member = Value::Null;
        } else {
            nulls(member, choices);
        }
    }
}

/// Puts directives of strategic merge into a patch, where they belong and where they do not.
fn directives(value: &mut Value, choices: &mut Choices<'_>) {
    const KINDS: [&str; 5] = ["replace", "delete", "merge", "mend", ""];
    match value {
        Value::Object(map) => {
            let names: Vec<String> = map.keys().cloned().collect();
            map.values_mut().for_each(|member| directives(member, choices));
            for name in &names {
                let items = map[name].as_array().cloned();
                let Some(mut items) = items.filter(|_| choices.one_in(3)) else { continue };
                let by = choices.below(items.len());
                items.rotate_left(by);
                let directive = choices.of(&["$setElementOrder/", "$deleteFromPrimitiveList/"]);
                map.insert(format!("{directive}{name}"), if choices.one_in(9) { "odd".into() } else { items.into() });
            }
            if choices.one_in(10) {
                map.insert("$patch".to_owned(), choices.of(&KINDS).into());
            }
            if choices.one_in(10) {
                let kept: Vec<&String> = names.iter().filter(|_| choices.below(2) == 0).collect();
                map.insert("$retainKeys".to_owned(), json!(kept));
            }
        }
        Value::Array(items) => {
            items.iter_mut().for_each(|item| directives(item, choices));
            if choices.one_in(8) {
                items.insert(choices.below(items.len() + 1), json!({"$patch": choices.of(&KINDS)}));
            }
        }
        _ => {}
    }
}

/// Operations on places that are there, and on some that are not.
fn operations(object: &Value, choices: &mut Choices<'_>) -> Value {
    let mut places = vec![String::new()];
    pointers(object, &mut String::new(), &mut places);
    let place = |choices: &mut Choices<'_>| {
        let place = &places[choices.below(places.len())];
        let tail = choices.of(&["", "", "", "/-", "/0", "/99", "/new", "~", "/~1"]);
        format!("{place}{tail}")
    };
    let operation = |choices: &mut Choices<'_>| {
        let value = object.pointer(&place(choices)).cloned().unwrap_or_else(|| choices.word().into());
        json!({
            "op": choices.of(&["add", "remove", "replace", "move", "copy", "test", "none"]),
            "path": place(choices), "from": place(choices), "value": value,
        })
    };
    (0..=choices.below(5)).map(|_| operation(choices)).collect::<Vec<_>>().into()
}

fn pointers(value: &Value, path: &mut String, found: &mut Vec<String>) {
    let members: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(name, value)| (name.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(items) => items.iter().enumerate().map(|(index, item)| (index.to_string(), item)).collect(),
        _ => return,
    };
    for (name, member) in members {
        let length = path.len();
        path.push('/');
        path.push_str(&name);
        found.push(path.clone());
        pointers(member, path, found);
        path.truncate(length);
    }
}

/// The body as a configuration of an object that is always the same one.
fn configuration(kind: &Kind, body: &Value) -> Value {
    let mut config = body.as_object().cloned().unwrap_or_default();
    config.remove("status");
    // A node's networks are told twice, and defaults make them agree.
    if let Some(Value::Object(spec)) = config.get_mut("spec") {
        spec.remove("podCIDR");
    }
    config.insert("apiVersion".to_owned(), kind.api_version().into());
    config.insert("kind".to_owned(), kind.kind.into());
    let mut metadata = json!({"name": "a"});
    for field in ["annotations", "finalizers", "labels"] {
        if let Some(value) = body["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    config.insert("metadata".to_owned(), metadata);
    let mut config = config.into();
    fill(&mut config);
    config
}

/// Takes out what is empty, of which nobody can tell later whether it was there.
fn fill(value: &mut Value) {
    let is_empty = |value: &Value| *value == json!({}) || *value == json!([]);
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(fill);
            map.retain(|_, member| !is_empty(member));
        }
        Value::Array(items) => {
            items.iter_mut().for_each(fill);
            items.retain(|item| !is_empty(item));
        }
        _ => {}
    }
}

/// A configuration is refused, or applying it again changes nothing. Tells which.
pub(crate) fn applies(bytes: &[u8]) -> bool {
    let mut choices = Choices::new(bytes);
    let kind = any_kind(&mut choices);
    let sent = any_body(kind, &mut choices);
    let config = configuration(kind, &sent);
    let _ = apply::update(kind, (Some(&sent), json!([])), (&config, &sent["metadata"]["managedFields"]), WRITER);
    // As it would be stored.
    let applied = |live: Option<&Value>, held: &Value, config: &Value, writer| {
        let (object, owners) = apply::apply(kind, (live, held), config, false, writer)?;
        let (mut object, _) = kind.decode(object, FieldValidation::Ignore)?;
        kind.default(&mut object);
        Ok::<_, Status>((object, owners))
    };
    let Ok((made, owners)) = applied(None, &Value::Null, &config, WRITER) else { return false };
    let held = owners.managed_fields;
    let (again, owners) = applied(Some(&made), &held, &config, WRITER)
        .unwrap_or_else(|status| panic!("{config} is refused the second time: {}", status.message()));
    // What lacks the keys that tell a list's items apart is not told apart, and never stored.
    if kind.validate_create(&made).is_empty() {
        assert_eq!(again, made, "applying again changes nothing");
        // What nobody applied is somebody's only from the next apply on.
        assert!(held.is_null() || !owners.changed && owners.managed_fields == held);
    }
    // Another comes with another configuration, and then with none: it owns nothing any more that the first one may
    // want.
    let other = configuration(kind, &any_body(kind, &mut choices));
    let second = Writer { manager: "n", ..WRITER };
    if let Ok((both, owners)) = applied(Some(&made), &held, &other, second)
        && kind.validate_create(&both).is_empty()
    {
        let nothing = configuration(kind, &json!({}));
        let left = applied(Some(&both), &owners.managed_fields, &nothing, second);
        let (left, owners) = left.unwrap_or_else(|status| panic!("leaving is refused: {}", status.message()));
        let again = applied(Some(&left), &owners.managed_fields, &config, WRITER);
        assert!(
            again.is_ok(),
            "{config} is refused since another left: {:?}",
            again.map_err(|status| status.to_json())
        );
    }
    true
}

/// Bytes of a protobuf body are an object or are refused. Tells which.
pub(crate) fn decoder(bytes: &[u8]) -> bool {
    match protobuf::to_json(bytes) {
        Err(status) => {
            assert!(matches!(status.code(), 400 | 415), "{} {}", status.code(), status.message());
            false
        }
        Ok(object) => {
            for kind in all().iter().filter(|kind| object["kind"] == kind.kind) {
                let _ = kind.decode(object.clone(), FieldValidation::Strict);
            }
            true
        }
    }
}

/// A selector is refused or takes the same objects as itself twice over. Tells which.
pub(crate) fn selectors(bytes: &[u8]) -> bool {
    let mut choices = Choices::new(bytes);
    let raw = choices.one_in(8);
    let text = if raw { String::from_utf8_lossy(bytes).into_owned() } else { selector(&mut choices) };
    let twice = format!("{text},{text}");
    let labels: Labels =
        (0..choices.below(4)).map(|_| (choices.of(&KEYS).to_owned(), choices.of(&VALUES).to_owned())).collect();
    let refused = |status: Status| assert_eq!(status.code(), 400, "{text}");
    let taken = LabelSelector::parse(&text).map(|selector| selector.matches(&labels)).map_err(refused);
    if let Ok(taken) = taken
        && !text.trim().is_empty()
    {
        assert_eq!(LabelSelector::parse(&twice).unwrap().matches(&labels), taken, "{text}");
    }
    let kind = any_kind(&mut choices);
    let place = (choices.of(&VALUES), choices.of(&VALUES));
    let value = choices.of(&VALUES);
    let by_field =
        |text: &str| FieldSelector::parse(text, kind).map(|selector| selector.matches(place, |_| value.to_owned()));
    let taken_by_field = by_field(&text).map_err(refused);
    if let Ok(taken) = taken_by_field {
        assert_eq!(by_field(&twice).unwrap(), taken, "{text}");
    }
    taken.is_ok() || taken_by_field.is_ok()
}

const KEYS: [&str; 7] = ["a", "b", "app.kubernetes.io/name", "metadata.name", "metadata.namespace", "spec.type", "-"];
const VALUES: [&str; 7] = ["", "1", "2", "web", "-5", "x y", "9223372036854775808"];

fn selector(choices: &mut Choices<'_>) -> String {
    const TOKENS: [&str; 16] =
        ["=", "==", "!=", "!", "(", ")", ",", ">", "<", " in ", " notin ", " ", "\\", "\\,", "in", "é"];
    let requirement = |choices: &mut Choices<'_>| {
        let (key, value) = (choices.of(&KEYS), choices.of(&VALUES));
        match choices.below(8) {
            0 => key.to_owned(),
            1 => format!("!{key}"),
            2 => format!("{key} in ({value},{})", choices.of(&VALUES)),
            3 => format!("{key} notin ({value})"),
            4 => format!("{key}>{value}"),
            5 => format!("{key}{}{value}", choices.of(&TOKENS)),
            6 => format!("{key}!={value}"),
            _ => format!("{key}={value}"),
        }
    };
    (0..choices.below(4)).map(|_| requirement(choices)).collect::<Vec<_>>().join(choices.of(&[",", ",", ",", " ", ""]))
}
