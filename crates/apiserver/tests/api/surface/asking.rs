//! Choices -> requests, drawn from what the server says of itself: every path of its discovery and OpenAPI documents,
//! by every method, with bodies that are valid, nearly so, or nothing of the kind.

use http::Method;
use serde_json::{Map, Value, json};

use super::bodies::{Choices, body};
use super::escaped;
use crate::harness::Client;

/// A path, and what stands there.
struct Place {
    /// With `{namespace}` and `{name}`.
    path: String,
    kind: Value,
    schema: Value,
}

/// What the server says there is.
pub(crate) struct Surface {
    places: Vec<Place>,
    schemas: Value,
}

#[derive(Debug)]
pub(crate) struct Asking {
    pub(crate) method: Method,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) media: &'static str,
    pub(crate) accept: &'static str,
    pub(crate) body: Vec<u8>,
}

/// What the answer depends on is beyond the server.
const BEYOND: [&str; 5] = ["log", "exec", "attach", "portforward", "proxy"];
const NAMES: [&str; 6] = ["a", "a", "b", "b", "10.200.0.5", "things.fuzz.example.com"];
const MEDIA: [&str; 5] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "text/html", ""];
const PATCHES: [&str; 5] = [
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/json-patch+json",
    "application/apply-patch+yaml",
    "application/json",
];
const ACCEPT: [&str; 8] = [
    "*/*",
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
    "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "text/html",
    "",
];
/// Mostly nonsense; a parameter out of these means something to some request or other.
const QUERY: [(&str, &[&str]); 18] = [
    ("dryRun", &["All", "None", ""]),
    ("fieldManager", &["m", "n", "\u{e9}", "a\nb", "x/y"]),
    ("fieldValidation", &["Strict", "Warn", "Ignore", "Never"]),
    ("force", &["true", "false", "x", ""]),
    ("limit", &["1", "0", "-1", "9223372036854775807", "9223372036854775808", "x"]),
    ("continue", &["x", "e30", "eyJyZXZpc2lvbiI6MSwiYWZ0ZXIiOlsiIiwiIl19", "%00"]),
    ("resourceVersion", &["0", "1", "5", "x", "-1", "18446744073709551615", "99999999999999999999", "007"]),
    ("resourceVersionMatch", &["Exact", "NotOlderThan", "x"]),
    ("labelSelector", &["a", "!a", "a=b", "a in (b,c)", "a>1", "=", "a in (", "é=ü", "a notin ()"]),
    ("fieldSelector", &["metadata.name=a", "metadata.namespace!=b", "spec.nodeName=x", "x", "a=b\\", "type=Normal"]),
    ("timeoutSeconds", &["1", "0", "-1", "18446744073709551615", "x"]),
    ("watch", &["true", "1", "false", "x"]),
    ("allowWatchBookmarks", &["true", "x"]),
    ("sendInitialEvents", &["true", "false"]),
    ("gracePeriodSeconds", &["0", "1", "-1", "9223372036854775807", "x"]),
    ("propagationPolicy", &["Foreground", "Background", "Orphan", "x"]),
    ("orphanDependents", &["true", "x"]),
    ("includeObject", &["Object", "Metadata", "None", "x"]),
];
/// Texts that are no bodies, or cost more than they look.
const RAW: [&[u8]; 9] = [
    b"",
    b"\xff\xfe{}",
    b"{\"metadata\": {\"name\": \"\xff\"}}",
    b"{\"metadata\": {\"name\": \"a\"}, \"spec\": {\"replicas\": 1e400}}",
    b"a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b]\n\
      d: &d [*c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e]\n",
    b"k8s\0\n\x0b\n\x02v1\x12\x05Event\x12\xff\xff\xff\xff\x0f",
    b"[{\"op\": \"add\", \"path\": \"/metadata/labels\", \"value\": {}}, {\"op\": \"move\", \"from\": \"\", \"path\": \"/metadata/x\"}]",
    b"null",
    b"--- {}\n--- {}\n",
];

impl Surface {
    /// # Panics
    /// If the server does not describe itself.
    pub(crate) async fn read(client: &Client) -> Self {
        let mut surface = Self { places: Vec::new(), schemas: json!({}) };
        let index = client.get("/openapi/v3").await.ok();
        for (group, found) in index["paths"].as_object().unwrap() {
            let document = client.get(found["serverRelativeURL"].as_str().unwrap()).await.ok();
            let schemas = document["components"]["schemas"].as_object().unwrap().clone();
            surface.schemas.as_object_mut().unwrap().extend(schemas);
            for (path, methods) in document["paths"].as_object().unwrap() {
                let operation = methods.get("put").or(methods.get("post")).unwrap_or(&Value::Null);
                surface.places.push(Place {
                    path: path.clone(),
                    kind: methods["get"]["x-kubernetes-group-version-kind"].clone(),
                    schema: operation["requestBody"]["content"]["*/*"]["schema"].clone(),
                });
            }
            // Subresources that no document describes.
            let resources = client.get(&format!("/{group}")).await.ok();
            for resource in resources["resources"].as_array().unwrap() {
                let name = resource["name"].as_str().unwrap();
                let Some((plural, sub)) = name.split_once('/').filter(|(_, sub)| !BEYOND.contains(sub)) else {
                    continue;
                };
                let namespace = if resource["namespaced"] == true { "namespaces/{namespace}/" } else { "" };
                let path = format!("/{group}/{namespace}{plural}/{{name}}/{sub}");
                if !surface.places.iter().any(|place| place.path == path) {
                    let kind =
                        json!({"kind": resource["kind"], "group": resource["group"], "version": resource["version"]});
                    surface.places.push(Place { path, kind, schema: Value::Null });
                }
            }
        }
        let others = ["/api", "/apis", "/version", "/readyz", "/openapi/v2", "/openapi/v3", "/", "/apis/none/v1/none"];
        for path in others.map(str::to_owned) {
            surface.places.push(Place { path, kind: Value::Null, schema: Value::Null });
        }
        surface
    }

    pub(crate) fn asking(&self, choices: &mut Choices<'_>) -> Asking {
        let mut place = &self.places[choices.below(self.places.len())];
        // Most where something can be written.
        for _ in 0..3 {
            if place.schema.is_null() || !place.path.ends_with(['s', '}']) {
                place = &self.places[choices.below(self.places.len())];
            }
        }
        let is_one = place.path.contains("{name}");
        let usual = match (place.schema.is_null(), is_one) {
            (true, _) => [Method::GET, Method::GET, Method::POST, Method::PUT, Method::PATCH],
            (false, true) => [Method::PATCH, Method::PATCH, Method::PUT, Method::GET, Method::DELETE],
            (false, false) => [Method::POST, Method::POST, Method::POST, Method::POST, Method::GET],
        };
        let unusual = [Method::HEAD, Method::OPTIONS, Method::DELETE, Method::POST, Method::PUT];
        let methods = if choices.one_in(9) { unusual } else { usual };
        let method = methods[choices.below(methods.len())].clone();
        // What is made has no name in its path; the others mostly have.
        let name = if choices.one_in(20) { choices.word() } else { choices.of(&NAMES) };
        let namespace = if choices.one_in(20) { choices.word() } else { "default" };
        let path = place.path.replace("{namespace}", &escaped(namespace)).replace("{name}", &escaped(name));
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, values) in QUERY {
            if choices.one_in(50) {
                query.append_pair(name, if choices.one_in(9) { choices.word() } else { choices.of(values) });
            }
        }
        let media = match method {
            Method::PATCH => choices.of(&PATCHES),
            _ if choices.one_in(8) => choices.of(&MEDIA),
            _ => MEDIA[0],
        };
        let query = match media {
            "application/apply-patch+yaml" => query.append_pair("fieldManager", "m").finish(),
            _ => query.finish(),
        };
        let body = match method {
            Method::GET | Method::HEAD | Method::OPTIONS => Vec::new(),
            Method::DELETE if !choices.one_in(3) => Vec::new(),
            _ => self.text(place, name, media, choices),
        };
        let accept = if choices.one_in(4) { choices.of(&ACCEPT) } else { "application/json" };
        Asking { accept, method, path, query, media, body }
    }

    /// A body as bytes, of which some are damaged.
    fn text(&self, place: &Place, name: &str, media: &str, choices: &mut Choices<'_>) -> Vec<u8> {
        if choices.one_in(12) {
            return RAW[choices.below(RAW.len())].to_vec();
        }
        let mut value = self.value(place, name, choices);
        if media == "application/json-patch+json" && !choices.one_in(10) {
            value = operations(&value, choices);
        }
        let mut bytes = value.to_string().into_bytes();
        if choices.one_in(12) {
            let at = choices.below(bytes.len());
            match choices.below(3) {
                0 => bytes.truncate(at),
                1 => bytes[at] = bytes[at].wrapping_add(1),
                _ => bytes.extend_from_slice(&bytes.clone()[at..]),
            }
        }
        bytes
    }

    /// A valid object, and in most of them something of another.
    fn value(&self, place: &Place, name: &str, choices: &mut Choices<'_>) -> Value {
        if choices.one_in(10) {
            return body(&self.schemas, &place.schema, choices, 0);
        }
        let mut value = valid(place.kind["kind"].as_str().unwrap_or_default());
        value["metadata"]["name"] = name.into();
        value["kind"] = place.kind["kind"].clone();
        let group = place.kind["group"].as_str().unwrap_or_default();
        let version = place.kind["version"].as_str().unwrap_or("v1");
        value["apiVersion"] = if group.is_empty() { version.into() } else { format!("{group}/{version}").into() };
        for _ in 0..choices.below(3) {
            let other = body(&self.schemas, &place.schema, choices, 0);
            graft(&mut value, &other, choices, 0);
        }
        if choices.one_in(12) {
            *any_place(&mut value, choices) = odd(choices);
        }
        value
    }
}

/// Puts a part of `other` in the place of the same part of `value`.
fn graft(value: &mut Value, other: &Value, choices: &mut Choices<'_>, depth: usize) {
    match (value, other) {
        (Value::Object(map), Value::Object(others)) if !others.is_empty() && (depth == 0 || choices.below(3) > 0) => {
            let (name, other) = others.iter().nth(choices.below(others.len())).unwrap();
            graft(map.entry(name.clone()).or_insert(Value::Null), other, choices, depth + 1);
        }
        (value, other) => *value = other.clone(),
    }
}

fn any_place<'a>(value: &'a mut Value, choices: &mut Choices<'_>) -> &'a mut Value {
    let members = match value {
        Value::Object(map) => map.len(),
        Value::Array(items) => items.len(),
        _ => 0,
    };
    if members == 0 || choices.one_in(5) {
        return value;
    }
    let at = choices.below(members);
    match value {
        Value::Object(map) => any_place(map.values_mut().nth(at).unwrap(), choices),
        other => any_place(&mut other[at], choices),
    }
}

/// Values that nobody expects.
fn odd(choices: &mut Choices<'_>) -> Value {
    let nested = |depth: usize, list: bool| {
        (0..depth).fold(json!({}), |inner, _| if list { json!([inner]) } else { json!({"a": inner}) })
    };
    match choices.below(12) {
        0 => u64::MAX.into(),
        1 => i64::MIN.into(),
        2 => json!(1e308),
        3 => json!(-0.0),
        4 => "x".repeat(choices.below(30_000)).into(),
        5 => nested(choices.below(140), true),
        6 => nested(choices.below(140), false),
        7 => vec![json!({"name": "a", "port": 1}); choices.below(2000)].into(),
        8 => (0..choices.below(2000)).map(|at| (format!("k{at}"), "v".into())).collect::<Map<_, _>>().into(),
        9 => Value::Null,
        10 => json!({"$patch": "replace", "$setElementOrder/ports": [], "$retainKeys": ["a"]}),
        _ => choices.word().into(),
    }
}

fn operations(value: &Value, choices: &mut Choices<'_>) -> Value {
    const PATHS: [&str; 9] = [
        "/metadata/labels",
        "/metadata/annotations/a",
        "/spec",
        "/spec/ports/-",
        "/data/a",
        "/metadata/finalizers",
        "/status",
        "/spec/deep",
        "",
    ];
    const OPERATIONS: [&str; 5] = ["add", "replace", "copy", "move", "remove"];
    let operation = |choices: &mut Choices<'_>| {
        let path = choices.of(&PATHS);
        let value = value.pointer(path).cloned().unwrap_or_else(|| odd(choices));
        let deeper = choices.of(&["", "", "/a", "/a/a/a"]);
        json!({
            "op": choices.of(&OPERATIONS), "path": format!("{path}{deeper}"), "from": choices.of(&PATHS), "value": value
        })
    };
    (0..=choices.below(3)).map(|_| operation(choices)).collect::<Vec<_>>().into()
}

/// The least that each kind asks for.
fn valid(kind: &str) -> Value {
    let containers = json!([{"name": "c", "image": "i"}]);
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": containers}});
    let workload = json!({"spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let event = json!({"metadata": {"namespace": "default"}, "type": "Normal", "reason": "R", "action": "A",
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "a.b/c", "reportingInstance": "i"});
    let object = json!({"kind": "Pod", "name": "p", "namespace": "default"});
    match kind {
        "Pod" => json!({"spec": {"containers": containers}}),
        "Service" => json!({"spec": {"selector": {"a": "b"}, "ports": [{"name": "a", "port": 80}]}}),
        "Deployment" | "ReplicaSet" => workload,
        "EndpointSlice" => {
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]})
        }
        "Endpoints" => json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
        "Event" => {
            let mut event = event;
            event["regarding"] = object.clone();
            event["involvedObject"] = object;
            event
        }
        "ConfigMap" => json!({"data": {"a": "b"}}),
        "Secret" => json!({"data": {"a": "Yg=="}}),
        "Ingress" => json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}}),
        "IngressClass" => json!({"spec": {"controller": "a.b/c"}}),
        "IPAddress" => json!({"spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "a"}}}),
        "ServiceCIDR" => json!({"spec": {"cidrs": ["10.200.0.0/24"]}}),
        "Role" | "ClusterRole" => json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
        "RoleBinding" | "ClusterRoleBinding" => json!({
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "u"}]
        }),
        "CustomResourceDefinition" => definition(),
        "Scale" => json!({"spec": {"replicas": 2}}),
        _ => json!({"spec": {}}),
    }
}

/// Of a kind whose objects may hold anything.
pub(crate) fn definition() -> Value {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
        "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                      "items": {"type": "object", "required": ["port"], "properties": {"port": {"type": "integer"}}}},
            "size": {"x-kubernetes-int-or-string": true}}}}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.fuzz.example.com"},
        "spec": {"group": "fuzz.example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}},
                "additionalPrinterColumns": [{"name": "Size", "type": "string", "jsonPath": ".spec.size"}]}]}
    })
}
