//! `labelSelector` and `fieldSelector` -> a filter over objects.
//!
//! Source: apimachinery `pkg/labels/selector.go` and `pkg/fields/selector.go`. A label that is missing satisfies
//! `!=`, `notin` and `!key`.

use std::collections::BTreeMap;

use portolan_kinds::{Kind, Status};
use portolan_store::Key;
use serde_json::Value;

pub(crate) type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

/// All requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LabelSelector(Vec<(String, Test)>);

impl LabelSelector {
    /// # Errors
    /// 400 that says where parsing stopped.
    pub(crate) fn parse(text: &str) -> Result<Self, Status> {
        split_outside_parentheses(text)
            .into_iter()
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| requirement(part).ok_or_else(|| unparsable(text, part)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, test)| {
            let value = labels.get(key);
            let number = || value.and_then(|value| value.parse::<i64>().ok());
            match test {
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::Greater(than) => number().is_some_and(|number| number > *than),
                Test::Less(than) => number().is_some_and(|number| number < *than),
            }
        })
    }
}

fn unparsable(text: &str, part: &str) -> Status {
    Status::bad_request(format!(
        "unable to parse requirement: found '{part}' in '{text}', expected a label requirement"
    ))
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_usize, 0);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn requirement(part: &str) -> Option<(String, Test)> {
    if let Some(key) = part.strip_prefix('!') {
        return Some((word(key)?, Test::Absent));
    }
    if let Some(at) = part.find(['=', '!', '<', '>']) {
        let (key, rest) = (word(&part[..at])?, &part[at..]);
        return match rest.as_bytes() {
            [b'!', b'=', ..] => Some((key, Test::NotIn(vec![value(&rest[2..])?]))),
            [b'=', b'=', ..] => Some((key, Test::In(vec![value(&rest[2..])?]))),
            [b'=', ..] => Some((key, Test::In(vec![value(&rest[1..])?]))),
            [b'>', ..] => Some((key, Test::Greater(rest[1..].trim().parse().ok()?))),
            [b'<', ..] => Some((key, Test::Less(rest[1..].trim().parse().ok()?))),
            _ => None,
        };
    }
    let Some(open) = part.find('(') else { return Some((word(part)?, Test::Exists)) };
    let values = part[open + 1..].trim_end().strip_suffix(')')?;
    let values = values.split(',').map(value).collect::<Option<Vec<_>>>()?;
    let (key, operator) = part[..open].trim_end().rsplit_once(char::is_whitespace)?;
    match operator {
        "in" => Some((word(key)?, Test::In(values))),
        "notin" => Some((word(key)?, Test::NotIn(values))),
        _ => None,
    }
}

/// A label key: not empty, and made of what keys are made of.
fn word(text: &str) -> Option<String> {
    let text = value(text)?;
    (!text.is_empty()).then_some(text)
}

fn value(text: &str) -> Option<String> {
    let text = text.trim();
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    text.chars().all(fine).then(|| text.to_owned())
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTest {
    field: String,
    value: String,
    equal: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldSelector(Vec<FieldTest>);

impl FieldSelector {
    /// # Errors
    /// 400 for what cannot be parsed, and for fields by which objects of this kind cannot be selected.
    pub(crate) fn parse(text: &str, kind: &Kind) -> Result<Self, Status> {
        let mut tests = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let test = field_test(part)
                .ok_or_else(|| Status::bad_request(format!("invalid selector: '{text}'; can't understand '{part}'")))?;
            let supported = matches!(test.field.as_str(), "metadata.name" | "metadata.namespace")
                || kind.field(&Value::Null, &test.field).is_ok();
            if !supported {
                return Err(Status::bad_request(format!("field label not supported: {}", test.field)));
            }
            tests.push(test);
        }
        Ok(Self(tests))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `field` gives the value of any field but the name and the namespace.
    pub(crate) fn matches(&self, key: &Key, field: impl Fn(&str) -> String) -> bool {
        self.0.iter().all(|test| {
            let equal = match test.field.as_str() {
                "metadata.name" => key.name() == test.value,
                "metadata.namespace" => key.namespace() == test.value,
                other => field(other) == test.value,
            };
            equal == test.equal
        })
    }

    /// The one name that can match, if the selector says so.
    pub(crate) fn name(&self) -> Option<&str> {
        self.only("metadata.name")
    }

    /// The one value of a field that can match, if the selector says so.
    pub(crate) fn only(&self, field: &str) -> Option<&str> {
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

    fn labels(text: &str) -> Labels {
        text.split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn label_selectors() {
        for (selector, object, expected) in [
            ("", "a=1", true),
            ("a=1", "a=1", true),
            ("a==1", "a=1", true),
            ("a=1", "a=2", false),
            ("a=", "a=", true),
            ("a=", "b=1", false),
            ("a!=1", "a=2", true),
            ("a!=1", "b=1", true),
            ("a!=1", "a=1", false),
            ("a", "a=1", true),
            ("a", "b=1", false),
            ("!a", "b=1", true),
            ("!a", "a=1", false),
            ("a in (1,2)", "a=2", true),
            ("a in (1, 2)", "a=3", false),
            ("a in(1)", "a=1", true),
            ("a notin (1,2)", "a=3", true),
            ("a notin (1,2)", "b=1", true),
            ("a notin (1,2)", "a=1", false),
            ("a=1,b in (x,y),!c", "a=1,b=y", true),
            ("a=1,b in (x,y),!c", "a=1,b=y,c=1", false),
            ("a>1", "a=2", true),
            ("a>1", "a=x", false),
            ("a<1", "a=0", true),
            (
                "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless",
                "service.kubernetes.io/headless=",
                false,
            ),
            ("!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless", "a=1", true),
        ] {
            let parsed = LabelSelector::parse(selector).unwrap();
            assert_eq!(parsed.matches(&labels(object)), expected, "{selector} on {object}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for selector in ["=1", "a in 1", "a in (1", "a foo (1)", "!", "a=b c", "a>x", "a b", "a=1)", "a=%"] {
            assert_eq!(LabelSelector::parse(selector).map_err(|e| e.code()), Err(400), "{selector}");
        }
    }

    #[test]
    fn field_selectors() {
        let pods = portolan_kinds::find("", "v1", "pods").unwrap();
        let key = Key::new("", "pods", "ns", "a,b");
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
                .map(|selector| selector.matches(&key, |_| String::new()))
                .map_err(|status| status.code());
            assert_eq!(got, expected, "{selector}");
        }
    }
}
