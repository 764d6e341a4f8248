//! `fieldSelector` -> a filter over objects.
//!
//! Source: apimachinery `pkg/fields/selector.go`.

use serde_json::Value;

use crate::{Kind, Status};

/// Whether a field has a value, or has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTest {
    pub field: String,
    pub value: String,
    pub equal: bool,
}

/// All tests must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(pub Vec<FieldTest>);

impl FieldSelector {
    /// # Errors
    /// 400 for what cannot be parsed, and for fields by which objects of this kind cannot be selected.
    pub fn parse(text: &str, kind: &Kind) -> Result<Self, Status> {
        let selector = Self::of_fields(text)
            .map_err(|part| Status::bad_request(format!("invalid selector: '{text}'; can't understand '{part}'")))?;
        for FieldTest { field, .. } in &selector.0 {
            let supported = matches!(field.as_str(), "metadata.name" | "metadata.namespace")
                || kind.field(&Value::Null, field).is_ok();
            if !supported {
                return Err(Status::bad_request(format!("field label not supported: {field}")));
            }
        }
        Ok(selector)
    }

    /// With any fields.
    ///
    /// # Errors
    /// The part that cannot be parsed.
    pub fn of_fields(text: &str) -> Result<Self, &str> {
        let parts = split_unescaped(text).into_iter().filter(|part| !part.is_empty());
        parts.map(|part| field_test(part).ok_or(part)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether it takes every object.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `field` gives the value of any field but the name and the namespace.
    pub fn matches(&self, (namespace, name): (&str, &str), field: impl Fn(&str) -> String) -> bool {
        self.0.iter().all(|test| {
            let equal = match test.field.as_str() {
                "metadata.name" => name == test.value,
                "metadata.namespace" => namespace == test.value,
                other => field(other) == test.value,
            };
            equal == test.equal
        })
    }

    /// The one name that can match, if the selector says so.
    pub fn name(&self) -> Option<&str> {
        self.only("metadata.name")
    }

    /// The one value of a field that can match, if the selector says so.
    pub fn only(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|test| test.equal && test.field == field).map(|test| test.value.as_str())
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn field_test(part: &str) -> Option<FieldTest> {
    let at = part.find(['=', '!'])?;
    let (field, rest) = part.split_at(at);
    let (equal, value) = if let Some(value) = rest.strip_prefix("!=") {
        (false, value)
    } else {
        (true, rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?)
    };
    Some(FieldTest { field: field.trim().to_owned(), value: unescape(value)?, equal })
}

fn unescape(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.push(characters.next().filter(|next| matches!(next, '\\' | ',' | '='))?),
            ',' | '=' => return None,
            other => plain.push(other),
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_selectors() {
        let pods = crate::find("", "v1", "pods").unwrap();
        for (selector, expected) in [
            ("", Ok(true)),
            (r"metadata.name=a\,b", Ok(true)),
            ("metadata.name!=a", Ok(true)),
            ("metadata.namespace==ns", Ok(true)),
            ("metadata.namespace=other", Ok(false)),
            (r"metadata.name=a\,b,metadata.namespace!=ns", Ok(false)),
            ("spec.nonsense=1", Err(400)),
            ("metadata.name", Err(400)),
            (r"metadata.name=a\b", Err(400)),
        ] {
            let got = FieldSelector::parse(selector, pods)
                .map(|selector| selector.matches(("ns", "a,b"), |_| String::new()))
                .map_err(|status| status.code());
            assert_eq!(got, expected, "{selector}");
        }
    }
}
