//! The paths of a kind, with what kubectl asks of them: which methods there are, and which parameters they take.

use serde_json::{Map, Value, json};

use super::schemas::{Other, full_name, reference};
use crate::look::Look;
use crate::{Kind, Question};

/// Adds the paths of `kind` below `/<root>`.
pub(super) fn add(paths: &mut Map<String, Value>, root: &str, kind: &Kind) {
    let plural = kind.plural;
    let name = if kind.is_custom() { super::defined::name(kind) } else { full_name(kind.type_name()) };
    let object = reference(&name);
    let list = reference(&format!("{name}List"));
    if kind.namespaced {
        paths.insert(format!("/{root}/{plural}"), json!({"get": operation(kind, "list", &list, None, &LIST)}));
    }
    let collection = if kind.namespaced {
        format!("/{root}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("/{root}/{plural}")
    };
    let namespace = if kind.namespaced { vec![in_path("namespace")] } else { Vec::new() };
    let item: Vec<Value> = std::iter::once(in_path("name")).chain(namespace.iter().cloned()).collect();
    let mut all = json!({
        "get": operation(kind, "list", &list, None, &LIST),
        "post": operation(kind, "post", &object, Some(&object), &WRITE),
        "parameters": namespace,
    });
    if kind.deletes_collections() {
        all["delete"] = operation(kind, "deletecollection", &status(), Some(&options()), &DELETE_COLLECTION);
    }
    paths.insert(collection.clone(), all);
    let writable = |body: &Value| {
        json!({
            "get": operation(kind, "get", body, None, if kind.is_custom() { &["pretty", "resourceVersion"] } else { &["pretty"] }),
            "put": operation(kind, "put", body, Some(body), &WRITE),
            "patch": patch(kind, body),
            "parameters": item,
        })
    };
    let mut whole = writable(&object);
    let gone = status();
    whole["delete"] =
        operation(kind, "delete", if kind.returns_deleted() { &object } else { &gone }, Some(&options()), &DELETE);
    paths.insert(format!("{collection}/{{name}}"), whole);
    // Of old, and not for what came after.
    if !kind.is_custom() {
        let event = reference(&full_name(WATCH_EVENT));
        let watch = |action: &str| operation(kind, action, &event, None, &LIST);
        let within = collection.replacen(&format!("/{root}/"), &format!("/{root}/watch/"), 1);
        if kind.namespaced {
            paths.insert(format!("/{root}/watch/{plural}"), json!({"get": watch("watchlist")}));
        }
        paths.insert(within.clone(), json!({"get": watch("watchlist"), "parameters": namespace}));
        paths.insert(format!("{within}/{{name}}"), json!({"get": watch("watch"), "parameters": item}));
    }
    if kind.has_status {
        paths.insert(format!("{collection}/{{name}}/status"), writable(&object));
    }
    if (kind.group, kind.plural) == ("", "pods") {
        paths.insert(format!("{collection}/{{name}}/ephemeralcontainers"), writable(&object));
    }
    if kind.has_scale {
        let mut methods = writable(&reference(&full_name(SCALE)));
        for method in ["get", "put", "patch"] {
            methods[method]["x-kubernetes-group-version-kind"] = gvk("autoscaling", "Scale");
        }
        paths.insert(format!("{collection}/{{name}}/scale"), methods);
    }
    for (sub, (name, gvk)) in subresources(kind) {
        let of = reference(&full_name(name));
        let post = operation_of(gvk, "post", &of, Some(&of), &WRITE);
        paths.insert(format!("{collection}/{{name}}/{sub}"), json!({"post": post, "parameters": item}));
    }
}

/// Adds the path of a question below `/<root>`.
pub(super) fn ask(paths: &mut Map<String, Value>, root: &str, question: &Question) {
    let of = reference(&full_name(question.type_name));
    let (place, parameters) =
        if question.namespaced { ("namespaces/{namespace}/", vec![in_path("namespace")]) } else { ("", Vec::new()) };
    let post = operation_of(gvk(question.group, question.kind), "post", &of, Some(&of), &WRITE);
    let path = format!("/{root}/{place}{}", question.plural);
    paths.insert(path, json!({"post": post, "parameters": parameters}));
}

/// The type that a question is of.
pub(super) fn asked(question: &Question) -> Other {
    (question.type_name, vec![gvk(question.group, question.kind)])
}

const SCALE: &str = "autoscaling.v1.Scale";

fn gvk(group: &str, kind: &str) -> Value {
    json!({"group": group, "version": "v1", "kind": kind})
}

/// What can only be asked of an object of the kind: the subresource, its type, and what that is called.
fn subresources(kind: &Kind) -> Vec<(&'static str, (&'static str, Value))> {
    match (kind.group, kind.plural) {
        ("", "pods") => vec![
            ("binding", ("core.v1.Binding", gvk("", "Binding"))),
            ("eviction", ("policy.v1.Eviction", gvk("policy", "Eviction"))),
        ],
        ("", "serviceaccounts") => {
            vec![("token", ("authentication.v1.TokenRequest", gvk("authentication.k8s.io", "TokenRequest")))]
        }
        _ => Vec::new(),
    }
}

/// The types that the kind's subresources are of, where they are not the kind's own.
pub(super) fn others(kind: &Kind) -> impl Iterator<Item = Other> {
    let scale = kind.has_scale.then(|| (SCALE, gvk("autoscaling", "Scale")));
    subresources(kind).into_iter().map(|(_, other)| other).chain(scale).map(|(name, gvk)| (name, vec![gvk]))
}

/// What every group's requests and answers have.
pub(super) fn everywhere(group: &str, version: &str) -> [Other; 2] {
    let core = gvk("", "DeleteOptions");
    let own = json!({"group": group, "version": version, "kind": "DeleteOptions"});
    let options = if own == core { vec![core] } else { vec![core, own] };
    [("meta.v1.DeleteOptions", options), ("meta.v1.Status", vec![gvk("", "Status")])]
}

/// What the paths of old for watches answer, and what is in it.
pub(super) fn event(group: &str, version: &str) -> [(String, Value); 2] {
    const ANY: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
    let event = json!({
        "description": "Event represents a single event to a watched resource.",
        "type": "object",
        "required": ["type", "object"],
        "properties": {
            "object": {
                "description": "What it happened to: the object as it is or was last, a bookmark, or a Status.",
                "allOf": [reference(ANY)],
            },
            "type": {"type": "string", "default": ""},
        },
        "x-kubernetes-group-version-kind": [{"group": group, "version": version, "kind": "WatchEvent"}],
    });
    let any = json!({"description": "An object of any kind.", "type": "object"});
    [(full_name(WATCH_EVENT), event), (ANY.to_owned(), any)]
}

const WRITE: [&str; 4] = ["dryRun", "fieldManager", "fieldValidation", "pretty"];
const LIST: [&str; 11] = [
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "pretty",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const DELETE: [&str; 5] = ["dryRun", "gracePeriodSeconds", "orphanDependents", "pretty", "propagationPolicy"];
const DELETE_COLLECTION: [&str; 13] = [
    "continue",
    "dryRun",
    "fieldSelector",
    "gracePeriodSeconds",
    "labelSelector",
    "limit",
    "orphanDependents",
    "pretty",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
];
const WATCH_EVENT: &str = "meta.v1.WatchEvent";

fn status() -> Value {
    reference(&full_name("meta.v1.Status"))
}

fn options() -> Value {
    reference(&full_name("meta.v1.DeleteOptions"))
}

fn in_path(name: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}})
}

fn in_query(name: &str) -> Value {
    let kind = match name {
        "gracePeriodSeconds" | "limit" | "timeoutSeconds" => "integer",
        "allowWatchBookmarks" | "force" | "orphanDependents" | "sendInitialEvents" | "watch" => "boolean",
        _ => "string",
    };
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}

fn content(schema: &Value) -> Value {
    json!({"application/json": {"schema": schema}, "application/yaml": {"schema": schema}})
}

fn operation(kind: &Kind, action: &str, answer: &Value, body: Option<&Value>, parameters: &[&str]) -> Value {
    let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    operation_of(gvk, action, answer, body, parameters)
}

fn operation_of(gvk: Value, action: &str, answer: &Value, body: Option<&Value>, parameters: &[&str]) -> Value {
    let mut operation = json!({
        "operationId": format!("{action}{}{}", gvk.text("version"), gvk.text("kind")),
        "parameters": parameters.iter().map(|name| in_query(name)).collect::<Vec<_>>(),
        "responses": {"200": {"description": "OK", "content": content(answer)}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk,
    });
    if let Some(body) = body {
        operation["requestBody"] = json!({"content": {"*/*": {"schema": body}}});
    }
    operation
}

fn patch(kind: &Kind, answer: &Value) -> Value {
    let mut patch =
        operation(kind, "patch", answer, None, &["dryRun", "fieldManager", "fieldValidation", "force", "pretty"]);
    let schema = json!({"schema": {"type": "object"}});
    // Server-side apply makes what is not there.
    patch["responses"]["201"] = json!({"description": "Created", "content": content(answer)});
    patch["requestBody"] = json!({"content": {
        "application/apply-patch+yaml": schema,
        "application/json-patch+json": schema,
        "application/merge-patch+json": schema,
    }});
    if !kind.is_custom() {
        patch["requestBody"]["content"]["application/strategic-merge-patch+json"] = schema;
    }
    patch
}
