//! The paths of a kind, with what kubectl asks of them: which methods there are, and which parameters they take.

use serde_json::{Map, Value, json};

use super::schemas::{full_name, reference};
use crate::Kind;

/// Adds the paths of `kind` below `/<root>`.
pub(super) fn add(paths: &mut Map<String, Value>, root: &str, kind: &Kind) {
    let plural = kind.plural;
    let name = if kind.is_custom() { super::defined::name(kind) } else { full_name(kind.type_name()) };
    let object = reference(&name);
    let list = reference(&format!("{name}List"));
    if kind.namespaced {
        paths.insert(format!("/{root}/{plural}"), json!({"get": operation(kind, "list", &list, None, &[])}));
    }
    let collection = if kind.namespaced {
        format!("/{root}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("/{root}/{plural}")
    };
    let namespace = if kind.namespaced { vec![in_path("namespace")] } else { Vec::new() };
    let item: Vec<Value> = std::iter::once(in_path("name")).chain(namespace.iter().cloned()).collect();
    paths.insert(
        collection.clone(),
        json!({
            "get": operation(kind, "list", &list, None, &[]),
            "post": operation(kind, "post", &object, Some(&object), &WRITE),
            "delete": operation(kind, "deletecollection", &status(), Some(&options()), &["dryRun"]),
            "parameters": namespace,
        }),
    );
    let writable = |body: &Value| {
        json!({
            "get": operation(kind, "get", body, None, &[]),
            "put": operation(kind, "put", body, Some(body), &WRITE),
            "patch": patch(kind, body),
            "parameters": item,
        })
    };
    let mut whole = writable(&object);
    whole["delete"] =
        operation(kind, "delete", &status(), Some(&options()), &["dryRun", "gracePeriodSeconds", "propagationPolicy"]);
    paths.insert(format!("{collection}/{{name}}"), whole);
    if kind.has_status {
        paths.insert(format!("{collection}/{{name}}/status"), writable(&object));
    }
    if kind.has_scale {
        let scale = reference(&full_name("autoscaling.v1.Scale"));
        let mut methods = writable(&scale);
        let gvk = json!({"group": "autoscaling", "version": "v1", "kind": "Scale"});
        for method in ["get", "put", "patch"] {
            methods[method]["x-kubernetes-group-version-kind"] = gvk.clone();
        }
        paths.insert(format!("{collection}/{{name}}/scale"), methods);
    }
}

const WRITE: [&str; 3] = ["dryRun", "fieldManager", "fieldValidation"];

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
        "gracePeriodSeconds" => "integer",
        "force" => "boolean",
        _ => "string",
    };
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}

fn content(schema: &Value) -> Value {
    json!({"application/json": {"schema": schema}, "application/yaml": {"schema": schema}})
}

fn operation(kind: &Kind, action: &str, answer: &Value, body: Option<&Value>, parameters: &[&str]) -> Value {
    let mut operation = json!({
        "operationId": format!("{action}{}{}", kind.version, kind.kind),
        "parameters": parameters.iter().map(|name| in_query(name)).collect::<Vec<_>>(),
        "responses": {"200": {"description": "OK", "content": content(answer)}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
    });
    if let Some(body) = body {
        operation["requestBody"] = json!({"content": {"*/*": {"schema": body}}});
    }
    operation
}

fn patch(kind: &Kind, answer: &Value) -> Value {
    let mut patch = operation(kind, "patch", answer, None, &["dryRun", "fieldManager", "fieldValidation", "force"]);
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
