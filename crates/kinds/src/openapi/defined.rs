//! A defined kind's schema, as the definition has it -> the schemas of the kind and of its lists.
//!
//! Source: `pkg/controller/openapi/builder` of apiextensions-apiserver.

use serde_json::{Map, Value, json};

use super::schemas::{full_name, reference};
use crate::Kind;
use crate::look::{child, map_of, set_default};

/// `com.example.stable.v1.CronTab`: the group's parts stand backwards.
pub(super) fn name(kind: &Kind) -> String {
    let group: Vec<&str> = kind.group.rsplit('.').collect();
    format!("{}.{}.{}", group.join("."), kind.version, kind.kind)
}

pub(super) fn add(components: &mut Map<String, Value>, kind: &Kind) {
    let Some(custom) = &kind.custom else { return };
    let mut schema = custom.source();
    set_default(&mut schema, "type", "object");
    let properties = child(&mut schema, "properties");
    for field in ["apiVersion", "kind"] {
        map_of(properties).insert(field.to_owned(), json!({"type": "string", "description": described(field)}));
    }
    let metadata = json!({
        "description": described("metadata"), "allOf": [reference(&full_name("meta.v1.ObjectMeta"))]
    });
    map_of(properties).insert("metadata".to_owned(), metadata);
    let gvk = |name: &str| json!([{"group": kind.group, "version": kind.version, "kind": name}]);
    map_of(&mut schema).insert("x-kubernetes-group-version-kind".to_owned(), gvk(kind.kind));
    let name = name(kind);
    components.insert(name.clone(), schema);
    components.insert(
        format!("{name}List"),
        json!({
            "description": format!("{} is a list of {}", custom.list_kind(), kind.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string", "description": described("apiVersion")},
                "kind": {"type": "string", "description": described("kind")},
                "metadata": {"allOf": [reference(&full_name("meta.v1.ListMeta"))]},
                "items": {"type": "array", "items": {"allOf": [reference(&name)]}},
            },
            "x-kubernetes-group-version-kind": gvk(custom.list_kind()),
        }),
    );
}

fn described(field: &str) -> &'static str {
    match field {
        "apiVersion" => "The version of the schema that this object is of.",
        "kind" => "The kind of this object.",
        _ => "What every object has: its name, labels, owners.",
    }
}
