//! The OpenAPI documents that kubectl reads.

use serde_json::{Value, json};

/// `/openapi/v3`: where each group's document is.
pub fn v3_index() -> Value {
    json!({"paths": {}})
}

/// The document at `/openapi/v3/<path>`, where path is such as `api/v1` or `apis/apps/v1`.
pub fn v3(path: &str) -> Option<Value> {
    let _ = path;
    None
}

/// `/openapi/v2`.
pub fn v2() -> Value {
    json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1.34.0"}, "paths": {}, "definitions": {}})
}
