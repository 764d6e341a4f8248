//! JSON values -> YAML, in blocks.
//!
//! Invariant: what is read from it is the value again, by YAML 1.1's rules and by 1.2's; so every string that one of
//! them might take for something else stands in quotes.

use serde_json::Value;

pub(crate) fn document(value: &Value) -> String {
    // Otherwise a list would be indented in its object, and a long text folded.
    let options = serde_saphyr::ser_options! { compact_list_indent: true, prefer_block_scalars: false };
    // What cannot be written so, as nothing is known to be, is YAML as it is.
    serde_saphyr::to_string_with_options(value, options).unwrap_or_else(|_| format!("{value}\n"))
}

/// An item of a list that is a field of a document.
pub(crate) fn item(value: Value) -> String {
    document(&vec![value].into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, json};

    use super::*;

    #[test]
    fn documents() {
        let value = json!({
            "apiVersion": "v1", "kind": "List", "empty": {}, "none": [], "nothing": null,
            "items": [{"name": "a", "ports": [80, 443], "on": "yes"}, [], [[1], "x: y"]],
            "metadata": {"annotations": {"a b": "line\nline", "time": "2026-01-01"}},
        });
        let expected = "\
apiVersion: v1
empty: {}
items:
- name: a
  \"on\": \"yes\"
  ports:
  - 80
  - 443
- []
- - - 1
  - \"x: y\"
kind: List
metadata:
  annotations:
    a b: \"line\\nline\"
    time: \"2026-01-01\"
none: []
nothing: null
";
        assert_eq!(document(&value), expected);
        assert_eq!(item(json!({"a": 1, "b": {"c": "~"}})), "- a: 1\n  b:\n    c: \"~\"\n");
        assert_eq!(document(&json!({})), "{}\n");
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[-~?:0-9eEx.+_<=nyNYoOfF ]{1,6}".prop_map(Value::from),
            "[a-z\u{7f}-\u{a0}\u{2028}]{120,1100}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            let key = prop_oneof![any::<String>(), "[-~?:a-z0-9# ]{0,4}", "[a-z]{1000,1100}"];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::vec((key, inner), 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in any_value()) {
            let text = document(&value);
            let read: Value = serde_saphyr::from_str(&text).map_err(|error| TestCaseError::fail(format!("{error}: {text}")))?;
            prop_assert_eq!(read, value, "{}", text);
        }
    }
}
