//! What it costs to know who owns which field: the same writes with and without `metadata.managedFields`.
//!
//!     cargo run --release -p portolan-kinds --example owners
//!
//! From the text of a request, and of what is stored, to the text that would be stored: all that the API server does
//! for a write but the network and the disk. Medians, in microseconds.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should say where")]

use std::hint::black_box;
use std::time::Instant;

use portolan_kinds::apply::{self, Writer};
use portolan_kinds::{FieldValidation, Kind, Subresource, find};
use serde_json::{Value, json};

const ROUNDS: usize = 3_000;
const FIRST: Writer<'_> = Writer { manager: "maker", subresource: "", now: "2026-01-01T00:00:00Z", translations: None };
const SECOND: Writer<'_> =
    Writer { manager: "changer", subresource: "", now: "2026-01-02T00:00:00Z", translations: None };

fn main() {
    println!("| | bytes stored, without / with | made | changed | applied again |\n|---|---|---|---|---|");
    for (group, plural, body, change) in samples() {
        let kind = find(group, "v1", plural).unwrap();
        let (text, change) = (body.to_string(), change.to_string());
        let plain = made(kind, &text, false);
        let owned = made(kind, &text, true);
        let make = [false, true].map(|owners| median(|| made(kind, &text, owners)));
        let update =
            [(&plain, false), (&owned, true)].map(|(old, owners)| median(|| changed(kind, old, &change, owners)));
        let again = median(|| applied(kind, &owned, &text));
        println!(
            "| {} | {} / {} | {:.0} / {:.0} | {:.0} / {:.0} | {again:.0} |",
            kind.kind,
            plain.len(),
            owned.len(),
            make[0],
            make[1],
            update[0],
            update[1]
        );
    }
}

fn median<T>(mut one: impl FnMut() -> T) -> f64 {
    let mut each: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let before = Instant::now();
            black_box(one());
            before.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    each.sort_by(f64::total_cmp);
    each[ROUNDS / 2]
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn own(object: &mut Value, managed_fields: Value) {
    object["metadata"]["managedFields"] = managed_fields;
}

fn made(kind: &Kind, text: &str, owners: bool) -> String {
    let (mut object, _) = kind.decode(parse(text), FieldValidation::Strict).unwrap();
    kind.default(&mut object);
    let held = owners.then(|| apply::update(kind, (None, Value::Null), (&object, &Value::Null), FIRST).managed_fields);
    kind.prepare_create(&mut object);
    assert_eq!(kind.validate_create(&object), []);
    if let Some(held) = held {
        own(&mut object, held);
    }
    object.to_string()
}

fn changed(kind: &Kind, stored: &str, patch: &str, owners: bool) -> String {
    let mut old = parse(stored);
    let held = apply::take_managed_fields(&mut old);
    let patched = portolan_kinds::patch::json_merge(&old, &parse(patch));
    let (mut new, _) = kind.decode(patched, FieldValidation::Strict).unwrap();
    kind.default(&mut new);
    let held = owners.then(|| apply::update(kind, (Some(&old), held), (&new, &Value::Null), SECOND).managed_fields);
    kind.prepare_update(&mut new, &old, Subresource::None);
    assert_eq!(kind.validate_update(&new, &old, Subresource::None), []);
    if let Some(held) = held {
        own(&mut new, held);
    }
    new.to_string()
}

fn applied(kind: &Kind, stored: &str, config: &str) -> String {
    let mut old = parse(stored);
    let held = apply::take_managed_fields(&mut old);
    let (new, owners) = apply::apply(kind, (Some(&old), &held), &parse(config), true, SECOND).unwrap();
    let (mut new, _) = kind.decode(new, FieldValidation::Strict).unwrap();
    kind.default(&mut new);
    kind.prepare_update(&mut new, &old, Subresource::None);
    assert_eq!(kind.validate_update(&new, &old, Subresource::None), []);
    own(&mut new, owners.managed_fields);
    new.to_string()
}

/// Group, plural, an object, and a merge patch of it.
fn samples() -> [(&'static str, &'static str, Value, Value); 4] {
    let metadata = |name: &str| {
        json!({"name": name, "namespace": "default", "uid": "7f1f7a52-0000-4000-8000-000000000000",
            "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "7", "labels": {"app": name, "tier": "web"}})
    };
    let template = json!({
        "metadata": {"labels": {"app": "web", "tier": "web"}},
        "spec": {"containers": [{
            "name": "web", "image": "registry.example/web:1.2.3", "ports": [{"containerPort": 8080}],
            "env": (0..10).map(|n| json!({"name": format!("V{n}"), "value": "x"})).collect::<Vec<_>>(),
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}}
        }]}
    });
    let endpoints: Vec<Value> =
        (1..100).map(|n| json!({"addresses": [format!("10.1.0.{n}")], "conditions": {"ready": true}})).collect();
    [
        (
            "",
            "configmaps",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("c"), "data": {"config": "x".repeat(300)}}),
            json!({"data": {"config": "y"}}),
        ),
        (
            "",
            "services",
            json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata("s"), "spec": {
                "selector": {"app": "web"}, "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
            json!({"metadata": {"labels": {"tier": "other"}}}),
        ),
        (
            "apps",
            "deployments",
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("web"), "spec": {
                "replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template}}),
            json!({"spec": {"replicas": 4}}),
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata("e"),
                "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}]}),
            json!({"metadata": {"labels": {"tier": "other"}}}),
        ),
    ]
}
