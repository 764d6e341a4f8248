//! The documents of version 3 -> one of version 2, for clients that know no other.
//!
//! Version 2 cannot say all that version 3 does: of what may be null, or a number or a text, or anything, the type is
//! left out, and alternatives are dropped, since kubectl takes the rest for all there is.
//! Source: `/openapi/v2` of kube-apiserver, `ToStructuralOpenAPIV2` of apiextensions-apiserver.

use serde_json::{Map, Value, json};

use super::{TITLE, VERSION, document, paths_of};
use crate::Catalog;
use crate::look::Look;
use crate::schema::descriptions;

const MEDIA: [&str; 2] = ["application/json", "application/yaml"];

/// `/openapi/v2`: all kinds in one document.
pub fn v2(catalog: &Catalog) -> Value {
    let (mut paths, mut definitions) = (Map::new(), Map::new());
    let words = descriptions();
    for path in paths_of(catalog) {
        let Some(mut document) = document(catalog, &path, &words) else { continue };
        if let Value::Object(all) = document["paths"].take() {
            paths.extend(all.into_iter().map(|(path, item)| (path, path_item(&item))));
        }
        if let Value::Object(all) = document["components"]["schemas"].take() {
            definitions.extend(all.into_iter().map(|(name, of)| (name, definition(&of))));
        }
    }
    json!({
        "swagger": "2.0",
        "info": {"title": TITLE, "version": VERSION},
        "paths": paths,
        "definitions": definitions,
    })
}

/// A schema with a name of its own. Of a whole object that may have any fields nothing is said but that.
fn definition(of: &Value) -> Value {
    const KIND: &str = "x-kubernetes-group-version-kind";
    if !of.has(KIND) || !of.flag("x-kubernetes-preserve-unknown-fields") {
        return schema(of);
    }
    let every = ["apiVersion", "kind", "metadata"].map(|field| (field.to_owned(), schema(&of["properties"][field])));
    json!({"type": "object", "properties": Map::from_iter(every), KIND: of[KIND]})
}

fn schema(of: &Value) -> Value {
    let Value::Object(fields) = of else { return of.clone() };
    let parts = of.list("allOf");
    let mut made = Map::new();
    if let ([part], false) = (parts, of.has("properties"))
        && part.has("$ref")
    {
        made.insert("$ref".to_owned(), reference(part.text("$ref")));
    }
    let free = of.flag("x-kubernetes-preserve-unknown-fields");
    let untyped = of.flag("nullable") || of.flag("x-kubernetes-int-or-string");
    let hides_parts = of.flag("nullable") || free;
    for (name, value) in fields {
        let value = match name.as_str() {
            "allOf" | "anyOf" | "oneOf" | "not" | "nullable" | "default" => continue,
            "type" if untyped => continue,
            "items" | "properties" if hides_parts => continue,
            "$ref" => reference(value.as_str().unwrap_or_default()),
            "items" | "additionalProperties" => schema(value),
            "properties" => {
                value.as_object().into_iter().flatten().map(|(name, of)| (name.clone(), schema(of))).collect()
            }
            _ => value.clone(),
        };
        made.insert(name.clone(), value);
    }
    // A text, to whom the number that it may be as well means nothing.
    if of.has("oneOf") && !untyped && !of.has("type") {
        made.insert("type".to_owned(), "string".into());
    }
    Value::Object(made)
}

fn reference(target: &str) -> Value {
    target.replace("#/components/schemas/", "#/definitions/").into()
}

fn path_item(item: &Value) -> Value {
    let of = |(name, value): (&String, &Value)| {
        let value = if name == "parameters" { parameters(value) } else { operation(value) };
        (name.clone(), value)
    };
    item.as_object().into_iter().flatten().map(of).collect()
}

fn parameters(of: &Value) -> Value {
    let flat = |parameter: &Value| {
        let mut flat = parameter.clone();
        if let Value::Object(map) = &mut flat
            && let Some(Value::Object(of)) = map.remove("schema")
        {
            map.extend(of);
        }
        flat
    };
    of.as_array().into_iter().flatten().map(flat).collect()
}

fn operation(of: &Value) -> Value {
    let mut made = of.clone();
    let mut all = parameters(&of["parameters"]);
    let body = &of["requestBody"]["content"];
    if let (Some(content), Value::Array(all)) = (body.as_object(), &mut all) {
        let of = content.values().next().map_or(Value::Null, |content| schema(&content["schema"]));
        all.push(json!({"name": "body", "in": "body", "required": true, "schema": of}));
        made["consumes"] = content.keys().map(String::as_str).collect::<Vec<_>>().into();
    }
    made["parameters"] = all;
    made["produces"] = MEDIA.into();
    let responses = of.entries("responses").map(|(code, response)| {
        let of = schema(&response["content"][MEDIA[0]]["schema"]);
        (code.to_owned(), json!({"description": response["description"], "schema": of}))
    });
    made["responses"] = responses.collect();
    if let Value::Object(map) = &mut made {
        map.remove("requestBody");
    }
    made
}
