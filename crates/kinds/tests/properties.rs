//! Whatever a client sends, every kind handles it: random bodies drawn from the kind's own schema, with wrong values
//! mixed in, go through the whole write path.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::cell::Cell;

use portolan_kinds::apply::{self, Writer};
use portolan_kinds::{FieldValidation, Kind, Subresource, all, openapi, patch};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value, json};

/// Strings that some field or other takes, and some that none does.
const WORDS: &[&str] = &[
    "",
    "a",
    "web-1",
    "A",
    "None",
    "ClusterIP",
    "NodePort",
    "LoadBalancer",
    "ExternalName",
    "ClientIP",
    "Local",
    "TCP",
    "UDP",
    "IPv4",
    "IPv6",
    "10.96.0.1",
    "127.0.0.1",
    "::1",
    "fe80::1",
    "10.0.0.0/8",
    "25%",
    "100m",
    "1.5Gi",
    "-1Ki",
    "RollingUpdate",
    "Recreate",
    "Always",
    "Never",
    "True",
    "Exists",
    "In",
    "2024-01-01T00:00:00Z",
    "YQ==",
    "x/y/z",
    "é",
    "a.b.c",
    "Running",
    "\u{0}",
    "999999999999999999999999999Ei",
    "1e99",
];

/// A body for a schema of OpenAPI: mostly of the right types.
fn body(schemas: &Value, schema: &Value, random: &mut impl FnMut(usize) -> usize, depth: usize) -> Value {
    let schema = match schema.pointer("/allOf/0/$ref").or_else(|| schema.get("$ref")).and_then(Value::as_str) {
        Some(reference) => &schemas[reference.rsplit('/').next().unwrap()],
        None => schema,
    };
    if random(60) == 0 {
        return match random(5) {
            0 => Value::Null,
            1 => json!(-7),
            2 => json!("odd"),
            3 => json!([1, null]),
            _ => json!({"odd": true}),
        };
    }
    match schema["type"].as_str() {
        Some("object") if schema.get("properties").is_some() => {
            let properties = schema["properties"].as_object().unwrap();
            let mut map = Map::new();
            for (name, property) in properties {
                let likely = depth < 3 && matches!(name.as_str(), "metadata" | "spec" | "ports" | "template" | "name");
                if depth < 8 && (likely || random(properties.len() / 3 + 2) == 0) {
                    map.insert(name.clone(), body(schemas, property, random, depth + 1));
                }
            }
            Value::Object(map)
        }
        Some("object") => {
            let values = schema.get("additionalProperties").unwrap_or(&Value::Null);
            let mut map = Map::new();
            for _ in 0..random(3) {
                map.insert(WORDS[random(WORDS.len())].to_owned(), body(schemas, values, random, depth + 1));
            }
            Value::Object(map)
        }
        Some("array") => {
            let items: Vec<Value> =
                (0..random(4)).map(|_| body(schemas, &schema["items"], random, depth + 1)).collect();
            items.into()
        }
        Some("integer") => [0, 1, 2, 80, 443, 30000, 70000, -1][random(8)].into(),
        Some("number") => json!(0.5),
        Some("boolean") => (random(2) == 0).into(),
        _ => WORDS[random(WORDS.len())].into(),
    }
}

fn document(kind: &Kind) -> (Value, String) {
    let path = if kind.group.is_empty() { "api/v1".to_owned() } else { format!("apis/{}/v1", kind.group) };
    let document = openapi::v3(&portolan_kinds::Catalog::default(), &path).unwrap();
    let schemas = document["components"]["schemas"].clone();
    let suffix = format!(".{}", kind.kind);
    let group = if kind.group.is_empty() { "core" } else { kind.group.split('.').next().unwrap() };
    let name = schemas.as_object().unwrap().keys();
    let name = name.filter(|name| name.contains(&format!(".{group}."))).find(|name| name.ends_with(&suffix)).unwrap();
    (schemas.clone(), name.clone())
}

/// A stream of choices from a list of bytes: what proptest shrinks.
fn choices(bytes: Vec<u16>) -> impl FnMut(usize) -> usize {
    let mut stream = bytes.into_iter().cycle();
    move |below| usize::from(stream.next().unwrap_or(0)) % below.max(1)
}

/// Applies the body as it was sent: it is refused, or applying it again changes nothing.
fn applied(kind: &Kind, sent: &Value) -> Result<(), TestCaseError> {
    let mut config = sent.clone();
    if let Value::Object(map) = &mut config {
        map.insert("apiVersion".to_owned(), kind.api_version().into());
        map.insert("kind".to_owned(), kind.kind.into());
    }
    let writer = Writer { manager: "m", subresource: "", now: "2026-01-01T00:00:00Z" };
    let _ = apply::update(kind, (Some(sent), json!([])), (&config, &sent["metadata"]["managedFields"]), writer);
    let Ok((made, owners)) = apply::apply(kind, (None, &Value::Null), &config, false, writer) else { return Ok(()) };
    let held = owners.managed_fields;
    if let Ok((again, owners)) = apply::apply(kind, (Some(&made), &held), &config, false, writer) {
        prop_assert_eq!(again, made, "applying again changes nothing");
        // What nobody applied is somebody's only from the next apply on.
        prop_assert!(held.is_null() || !owners.changed && owners.managed_fields == held);
    } else {
        prop_assert!(false, "{} is refused the second time", config);
    }
    Ok(())
}

/// Tells whether the body could be decoded, and so was worth sending.
fn handled(kind: &Kind, sent: Value) -> Result<bool, TestCaseError> {
    let _ = kind.row(&sent, jiff::Timestamp::UNIX_EPOCH);
    applied(kind, &sent)?;
    let Ok((decoded, _)) = kind.decode(sent, FieldValidation::Warn) else { return Ok(false) };
    let (again, warnings) = kind.decode(decoded.clone(), FieldValidation::Strict).unwrap();
    prop_assert_eq!(&again, &decoded, "decoding is idempotent");
    prop_assert!(warnings.is_empty());
    let mut object = decoded;
    kind.default(&mut object);
    let mut twice = object.clone();
    kind.default(&mut twice);
    prop_assert_eq!(&twice, &object, "defaults are idempotent");
    kind.prepare_create(&mut object);
    let _ = kind.validate_create(&object);
    prop_assert_eq!(kind.row(&object, jiff::Timestamp::UNIX_EPOCH).len(), kind.columns().len());
    for sub in [Subresource::None, Subresource::Status] {
        let mut new = object.clone();
        kind.prepare_update(&mut new, &object, sub);
        let _ = kind.validate_update(&new, &object, sub);
        let mut settled = new.clone();
        kind.prepare_update(&mut settled, &new, sub);
        prop_assert_eq!(&settled, &new, "an update that changes nothing changes nothing");
    }
    prop_assert_eq!(&patch::strategic_merge(kind, &object, &json!({})).unwrap(), &object);
    prop_assert_eq!(&patch::json_merge(&object, &json!({})), &object);
    let _ = patch::strategic_merge(kind, &object, &object);
    Ok(true)
}

#[test]
fn every_body_is_handled() {
    for kind in all() {
        let (schemas, name) = document(kind);
        let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
        let decoded = Cell::new(0);
        TestRunner::new(config)
            .run(&proptest::collection::vec(any::<u16>(), 1..400), |bytes| {
                let good = handled(kind, body(&schemas, &schemas[&name], &mut choices(bytes), 0))?;
                decoded.set(decoded.get() + u32::from(good));
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{}: {error}", kind.kind));
        assert!(decoded.get() > 20, "{}: only {} bodies got past decoding", kind.kind, decoded.get());
    }
}
