//! A definition's `additionalPrinterColumns` -> the columns of a Table, and a row for an object.
//!
//! Source: `pkg/registry/customresource/tableconvertor` of apiextensions-apiserver.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

use super::path::JsonPath;
use crate::Column;
use crate::catalog::Strategy;
use crate::look::Look;
use crate::table;

#[derive(Debug)]
pub(super) struct Columns {
    heads: Vec<Column>,
    /// Of all but the first, which is the name.
    paths: Vec<Option<JsonPath>>,
}

impl Columns {
    pub(super) fn new(columns: &[Value]) -> Self {
        let mut heads = table::columns(Strategy::Custom).to_vec();
        if columns.is_empty() {
            return Self { heads, paths: vec![JsonPath::parse(".metadata.creationTimestamp").ok()] };
        }
        heads.truncate(1);
        let mut paths = Vec::with_capacity(columns.len());
        for column in columns {
            let owned = |field: &str| Cow::<'static, str>::Owned(column.text(field).to_owned());
            let description = match column.text("description") {
                "" => format!("Custom resource definition column (in JSONPath format): {}", column.text("jsonPath")),
                own => own.to_owned(),
            };
            heads.push(Column {
                name: owned("name"),
                kind: owned("type"),
                format: owned("format"),
                description: description.into(),
                priority: column.int("priority").and_then(|priority| i32::try_from(priority).ok()).unwrap_or(0),
            });
            paths.push(JsonPath::parse(column.text("jsonPath")).ok());
        }
        Self { heads, paths }
    }

    pub(super) fn heads(&self) -> &[Column] {
        &self.heads
    }

    pub(super) fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let mut row = vec![object["metadata"].text("name").into()];
        row.extend(self.paths.iter().zip(&self.heads[1..]).map(|(path, head)| {
            let found = path.as_ref().and_then(|path| path.find(object));
            found.map_or(Value::Null, |found| cell(&head.kind, found, now))
        }));
        row
    }
}

fn cell(kind: &str, value: &Value, now: Timestamp) -> Value {
    match (kind, value) {
        (_, Value::Null) => Value::Null,
        ("string", Value::String(text)) => text.as_str().into(),
        ("string", other) => other.to_string().into(),
        ("integer", Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => whole.into(),
            #[expect(clippy::cast_possible_truncation, reason = "as upstream: the whole part")]
            (None, Some(float)) => (float as i64).into(),
            _ => Value::Null,
        },
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) if text.parse::<Timestamp>().is_ok() => table::since(text, now).into(),
        ("date", Value::String(_)) => "<invalid>".into(),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows() {
        let columns = Columns::new(&[
            json!({"name": "Spec", "type": "string", "jsonPath": ".spec.cronSpec"}),
            json!({"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas", "description": "How many", "priority": 1}),
            json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}),
            json!({"name": "List", "type": "string", "jsonPath": ".spec.list"}),
        ]);
        let heads: Vec<(&str, &str, i32)> =
            columns.heads().iter().map(|head| (&*head.name, &*head.description, head.priority)).collect();
        assert_eq!(heads[1], ("Spec", "Custom resource definition column (in JSONPath format): .spec.cronSpec", 0));
        assert_eq!(heads[2], ("Replicas", "How many", 1));
        let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
        let object = json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
                            "spec": {"replicas": 3, "list": ["x", 1]}});
        assert_eq!(columns.row(&object, now), [json!("a"), Value::Null, json!(3), json!("5m"), json!("[\"x\",1]")]);
        assert_eq!(Columns::new(&[]).row(&object, now), [json!("a"), json!("5m")]);
    }
}
