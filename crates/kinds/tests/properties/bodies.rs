//! Bytes -> choices, and choices -> bodies for a schema of OpenAPI: mostly of the right types, with wrong ones mixed
//! in.

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

/// A stream of choices: what a property test shrinks and a fuzzer mutates.
pub(crate) struct Choices<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Choices<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn byte(&mut self) -> usize {
        let byte = self.bytes.get(self.at % self.bytes.len().max(1)).copied().unwrap_or_default();
        self.at += 1;
        // The second time round they are others.
        usize::from(byte) ^ ((self.at / (self.bytes.len() + 1)) & 0xff)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        ((self.byte() << 8) | self.byte()) % end.max(1)
    }

    pub(crate) fn one_in(&mut self, many: usize) -> bool {
        self.below(many) + 1 == many
    }

    pub(crate) fn of<'b, T: ?Sized>(&mut self, all: &'b [&T]) -> &'b T {
        all[self.below(all.len())]
    }

    pub(crate) fn word(&mut self) -> &'static str {
        self.of(WORDS)
    }
}

/// A body for a schema of OpenAPI: mostly of the right types.
pub(crate) fn body(schemas: &Value, schema: &Value, choices: &mut Choices<'_>, depth: usize) -> Value {
    let schema = match schema.pointer("/allOf/0/$ref").or_else(|| schema.get("$ref")).and_then(Value::as_str) {
        Some(reference) => &schemas[reference.rsplit('/').next().unwrap()],
        None => schema,
    };
    if choices.one_in(60) {
        return match choices.below(5) {
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
                if depth < 8 && (likely || choices.one_in(properties.len() / 3 + 2)) {
                    map.insert(name.clone(), body(schemas, property, choices, depth + 1));
                }
            }
            Value::Object(map)
        }
        Some("object") => {
            let values = schema.get("additionalProperties").unwrap_or(&Value::Null);
            let mut map = Map::new();
            for _ in 0..choices.below(3) {
                let name = choices.word().to_owned();
                map.insert(name, body(schemas, values, choices, depth + 1));
            }
            Value::Object(map)
        }
        Some("array") => {
            let items: Vec<Value> =
                (0..choices.below(4)).map(|_| body(schemas, &schema["items"], choices, depth + 1)).collect();
            items.into()
        }
        Some("integer") => [0, 1, 2, 80, 443, 30000, 70000, -1][choices.below(8)].into(),
        Some("number") => json!(0.5),
        Some("boolean") => (choices.below(2) == 0).into(),
        _ => choices.word().into(),
    }
}
