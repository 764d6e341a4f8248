//! An OpenAPI 2.0 document in JSON -> the same in protobuf, which kubectl and client-go ask for.
//!
//! What protobuf has no field for is carried as YAML, of which JSON is a part.
//! Deliberately not here: what no document of this program has (headers, forms, security, examples).
//! Source: `openapiv2/OpenAPIv2.proto` of google/gnostic.

use serde_json::Value;

use crate::look::Look;
use crate::protobuf::Message;

/// The media type of the protobuf form.
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

impl Message {
    fn flag(&mut self, tag: u64, flag: bool) {
        if flag {
            self.varint(tag, 1);
        }
    }

    fn texts(&mut self, tag: u64, texts: &[Value]) {
        texts.iter().filter_map(Value::as_str).for_each(|text| self.bytes(tag, text.as_bytes()));
    }

    /// Entries of a map: messages of a name and a value.
    fn named<'a>(&mut self, tag: u64, entries: impl Iterator<Item = (&'a str, Self)>) {
        for (name, value) in entries {
            let mut entry = Self::default();
            entry.text(1, name);
            entry.message(2, &value);
            self.message(tag, &entry);
        }
    }

    /// Extensions: all that begins with `x-`.
    fn extensions(&mut self, tag: u64, of: &Value) {
        let all = of.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-"));
        self.named(tag, all.map(|(name, value)| (name.as_str(), any(value))));
    }
}

fn any(value: &Value) -> Message {
    let mut any = Message::default();
    any.text(2, &value.to_string());
    any
}

/// A whole document.
pub fn document(of: &Value) -> Vec<u8> {
    let mut info = Message::default();
    info.text(1, of["info"].text("title"));
    info.text(2, of["info"].text("version"));
    let mut paths = Message::default();
    paths.named(2, of.entries("paths").map(|(path, item)| (path, path_item(item))));
    let mut definitions = Message::default();
    definitions.named(1, of.entries("definitions").map(|(name, of)| (name, schema(of))));
    let mut document = Message::default();
    document.text(1, of.text("swagger"));
    document.message(2, &info);
    document.message(8, &paths);
    document.message(9, &definitions);
    document.0
}

fn path_item(of: &Value) -> Message {
    let mut item = Message::default();
    for (tag, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if of.has(method) {
            item.message(tag, &operation(&of[method]));
        }
    }
    for parameter in of.list("parameters") {
        item.message(9, &parameter_item(parameter));
    }
    item
}

fn operation(of: &Value) -> Message {
    let mut operation = Message::default();
    operation.text(5, of.text("operationId"));
    operation.texts(6, of.list("produces"));
    operation.texts(7, of.list("consumes"));
    for parameter in of.list("parameters") {
        operation.message(8, &parameter_item(parameter));
    }
    let mut responses = Message::default();
    responses.named(1, of.entries("responses").map(|(code, of)| (code, response(of))));
    operation.message(9, &responses);
    operation.extensions(13, of);
    operation
}

fn response(of: &Value) -> Message {
    let mut item = Message::default();
    item.message(1, &schema(&of["schema"]));
    let mut response = Message::default();
    response.text(1, of.text("description"));
    response.message(2, &item);
    let mut value = Message::default();
    value.message(1, &response);
    value
}

fn parameter_item(of: &Value) -> Message {
    let mut parameter = Message::default();
    if of.text("in") == "body" {
        let mut body = Message::default();
        body.text(2, of.text("name"));
        body.text(3, "body");
        body.flag(4, of.flag("required"));
        body.message(5, &schema(&of["schema"]));
        parameter.message(1, &body);
    } else {
        let in_path = of.text("in") == "path";
        let mut one = Message::default();
        one.flag(1, of.flag("required"));
        one.text(2, of.text("in"));
        one.text(4, of.text("name"));
        // Only in a query may a value be empty, so that the numbers of what follows differ.
        one.text(if in_path { 5 } else { 6 }, of.text("type"));
        one.flag(if in_path { 19 } else { 20 }, of.flag("uniqueItems"));
        let mut kind = Message::default();
        kind.message(if in_path { 4 } else { 3 }, &one);
        parameter.message(2, &kind);
    }
    let mut item = Message::default();
    item.message(1, &parameter);
    item
}

fn schema(of: &Value) -> Message {
    let mut made = Message::default();
    for (tag, field) in [(1, "$ref"), (2, "format"), (3, "title"), (4, "description"), (13, "pattern")] {
        made.text(tag, of.text(field));
    }
    for (tag, field) in [(6, "multipleOf"), (7, "maximum"), (9, "minimum")] {
        if let Some(number) = of[field].as_f64() {
            made.float(tag, number);
        }
    }
    for (tag, field) in [(8, "exclusiveMaximum"), (10, "exclusiveMinimum"), (16, "uniqueItems")] {
        made.flag(tag, of.flag(field));
    }
    let counts = [
        (11, "maxLength"),
        (12, "minLength"),
        (14, "maxItems"),
        (15, "minItems"),
        (17, "maxProperties"),
        (18, "minProperties"),
    ];
    for (tag, field) in counts {
        if let Some(number) = of[field].as_u64() {
            made.varint(tag, number);
        }
    }
    made.texts(19, of.list("required"));
    of.list("enum").iter().for_each(|choice| made.message(20, &any(choice)));
    let mut item = Message::default();
    match &of["additionalProperties"] {
        Value::Bool(any) => {
            item.flag(2, *any);
            made.message(21, &item);
        }
        more @ Value::Object(_) => {
            item.message(1, &schema(more));
            made.message(21, &item);
        }
        _ => {}
    }
    if of.has("type") {
        let mut kind = Message::default();
        kind.text(1, of.text("type"));
        made.message(22, &kind);
    }
    if of.has("items") {
        let mut items = Message::default();
        items.message(1, &schema(&of["items"]));
        made.message(23, &items);
    }
    if of.has("properties") {
        let mut properties = Message::default();
        properties.named(1, of.entries("properties").map(|(name, of)| (name, schema(of))));
        made.message(25, &properties);
    }
    made.extensions(31, of);
    made
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_have_their_numbers() {
        let of = json!({
            "swagger": "2.0", "info": {"title": "t", "version": "v"}, "paths": {},
            "definitions": {"d": {"type": "string", "minimum": 1.5, "maxLength": 300, "x-a": [1]}}
        });
        let schema = [
            &[9 << 3 | 1, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f][..],
            &[11 << 3, 0xac, 2],
            &[0xb2, 1, 8, 10, 6],
            b"string",
            &[0xfa, 1, 12, 10, 3],
            b"x-a",
            &[18, 5, 18, 3],
            b"[1]",
        ]
        .concat();
        let length = u8::try_from(schema.len()).unwrap();
        let expected = [
            b"\x0a\x032.0\x12\x06\x0a\x01t\x12\x01v\x42\x00",
            &[0x4a, length + 7, 10, length + 5, 10, 1, b'd', 18, length][..],
            &schema,
        ]
        .concat();
        assert_eq!(document(&of), expected);
    }
}
