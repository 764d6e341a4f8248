//! JSON values -> YAML, in blocks.
//!
//! Invariant: what is read from it is the value again, by YAML 1.1's rules and by 1.2's; so every string that one of
//! them might take for something else stands in quotes.

use serde_json::Value;

/// Keys longer than this are announced by a `?`: parsers do not look far ahead for the colon.
const LONGEST_PLAIN_KEY: usize = 128;

/// A document, which ends its last line.
pub(crate) fn document(value: &Value) -> String {
    let mut text = String::new();
    lines(value, 0, &mut text);
    text
}

/// An item of a list that is a field of a document.
pub(crate) fn item(value: &Value) -> String {
    let mut text = "- ".to_owned();
    lines(value, 2, &mut text);
    text
}

/// The value, whose first line is begun already and whose others are indented.
fn lines(value: &Value, indent: usize, text: &mut String) {
    let begin = |index: usize, text: &mut String| {
        if index > 0 {
            text.extend(std::iter::repeat_n(' ', indent));
        }
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (index, (name, value)) in map.iter().enumerate() {
                begin(index, text);
                let name = string(name);
                if name.len() > LONGEST_PLAIN_KEY {
                    text.push_str("? ");
                    text.push_str(&name);
                    text.push('\n');
                    text.extend(std::iter::repeat_n(' ', indent));
                } else {
                    text.push_str(&name);
                }
                text.push(':');
                member(value, indent, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, value) in items.iter().enumerate() {
                begin(index, text);
                text.push_str("- ");
                lines(value, indent + 2, text);
            }
        }
        Value::String(word) => {
            text.push_str(&string(word));
            text.push('\n');
        }
        // Nothing, or a word that JSON and YAML share.
        value => {
            text.push_str(&value.to_string());
            text.push('\n');
        }
    }
}

/// The value of an object's member, after the colon.
fn member(value: &Value, indent: usize, text: &mut String) {
    let deeper = match value {
        Value::Object(map) if !map.is_empty() => indent + 2,
        // The dashes set a list off.
        Value::Array(items) if !items.is_empty() => indent,
        value => {
            text.push(' ');
            return lines(value, indent, text);
        }
    };
    text.push('\n');
    text.extend(std::iter::repeat_n(' ', deeper));
    lines(value, deeper, text);
}

fn string(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    // What JSON escapes, YAML understands; but some letters may not stand in YAML as they are.
    let mut quoted = String::new();
    for letter in Value::from(text).to_string().chars() {
        match letter {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(letter)));
            }
            letter => quoted.push(letter),
        }
    }
    quoted
}

/// Whether it is text to everybody: no number, no time, and none of the words for true, false and nothing.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    text.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '/' | '_' | '-'))
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
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
    \"a b\": \"line\\nline\"
    time: \"2026-01-01\"
none: []
nothing: null
";
        assert_eq!(document(&value), expected);
        assert_eq!(item(&json!({"a": 1, "b": {"c": "~"}})), "- a: 1\n  b:\n    c: \"~\"\n");
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
