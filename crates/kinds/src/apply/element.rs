//! Elements of field paths <-> their text in `fieldsV1`, and paths as messages name them.
//!
//! `f:` is followed by a field's name, `k:` by the keys of a list's item as JSON sorted by name, `v:` by a set's item
//! as JSON, `i:` by a place in a list. JSON is as Go writes it: equal elements are equal texts, whoever wrote them.

use serde_json::{Map, Value};

pub(super) fn field(name: &str) -> String {
    format!("f:{name}")
}

pub(super) fn keys(keys: Map<String, Value>) -> String {
    format!("k:{}", json(&Value::Object(keys)))
}

pub(super) fn value(value: &Value) -> String {
    format!("v:{}", json(value))
}

/// With everything escaped that might mean something to a browser.
fn json(value: &Value) -> String {
    let mut text = value.to_string();
    for letter in ['<', '>', '&', '\u{2028}', '\u{2029}'] {
        if text.contains(letter) {
            text = text.replace(letter, &format!("\\u{:04x}", u32::from(letter)));
        }
    }
    text
}

pub(super) fn index(index: usize) -> String {
    format!("i:{index}")
}

/// An element that somebody else wrote, in the form in which equal elements are equal texts.
pub(super) fn parse(text: &str) -> Option<String> {
    let (kind, rest) = text.split_once(':')?;
    match kind {
        "f" => Some(text.to_owned()),
        "k" => match serde_json::from_str(rest).ok()? {
            Value::Object(found) => Some(keys(found)),
            _ => None,
        },
        "v" => serde_json::from_str(rest).ok().map(|found| value(&found)),
        "i" => rest.parse().ok().map(index),
        _ => None,
    }
}

/// As messages have it: `.name`, `[port=80,protocol="TCP"]`, `[="x"]`, `[0]`.
pub(super) fn shown(element: &str) -> String {
    let (kind, rest) = element.split_once(':').unwrap_or_default();
    match kind {
        "f" => format!(".{rest}"),
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        "v" => format!("[={}]", serde_json::from_str(rest).unwrap_or(Value::Null)),
        _ => format!("[{rest}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        for (text, parsed, message) in [
            ("f:spec", Some("f:spec"), ".spec"),
            ("f:a:b", Some("f:a:b"), ".a:b"),
            (
                "k:{\"protocol\": \"TCP\", \"port\": 80}",
                Some("k:{\"port\":80,\"protocol\":\"TCP\"}"),
                "[port=80,protocol=\"TCP\"]",
            ),
            ("v:\"x\"", Some("v:\"x\""), "[=\"x\"]"),
            ("v:\"<&\"", Some("v:\"\\u003c\\u0026\""), "[=\"<&\"]"),
            ("i:3", Some("i:3"), "[3]"),
        ] {
            assert_eq!(parse(text).as_deref(), parsed);
            assert_eq!(shown(&parse(text).unwrap()), message);
        }
        for text in ["", "spec", "x:1", "k:1", "k:{", "v:", "i:-1", "i:x"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
