//! `labelSelector` -> a filter over objects' labels.
//!
//! Invariant: what is refused is refused in the words of Kubernetes, and nothing else is. A label that is missing
//! satisfies `!=`, `notin` and `!key`. Source: apimachinery `pkg/labels/selector.go`.

use std::collections::{BTreeMap, BTreeSet};

use crate::{FieldError, Status, names};

/// What an object is labelled with.
pub type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

/// All requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<(String, Test)>);

impl LabelSelector {
    /// # Errors
    /// 400 that says where parsing stopped.
    pub fn parse(text: &str) -> Result<Self, Status> {
        Parser { tokens: tokens(text), at: 0 }.selector().map(Self).map_err(Status::bad_request)
    }

    /// Whether it takes every object.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn matches(&self, labels: &Labels) -> bool {
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

/// The longest of these that fits is a token.
const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

fn is_symbol(letter: char) -> bool {
    "=!(),><".contains(letter)
}

/// Words and symbols, without what is between them.
fn tokens(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text.trim_start_matches(is_blank);
    while !rest.is_empty() {
        let word = rest.find(|letter| is_symbol(letter) || is_blank(letter)).unwrap_or(rest.len());
        let length =
            if word > 0 { word } else { SYMBOLS.iter().find(|s| rest.starts_with(**s)).map_or(1, |s| s.len()) };
        let (token, after) = rest.split_at(length);
        found.push(token);
        rest = after.trim_start_matches(is_blank);
    }
    found
}

fn is_blank(letter: char) -> bool {
    matches!(letter, ' ' | '\t' | '\r' | '\n')
}

struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
}

impl<'a> Parser<'a> {
    /// `""` at the end.
    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).copied().unwrap_or_default()
    }

    fn take(&mut self) -> &'a str {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn selector(mut self) -> Result<Vec<(String, Test)>, String> {
        let mut requirements = Vec::new();
        loop {
            let token = self.peek();
            if token.is_empty() {
                return Ok(requirements);
            }
            if token != "!" && !is_word(token) {
                return Err(format!("found '{token}', expected: !, identifier, or 'end of string'"));
            }
            let requirement = self.requirement().map_err(|why| format!("unable to parse requirement: {why}"))?;
            requirements.push(requirement);
            match self.take() {
                "" => return Ok(requirements),
                "," => {
                    let next = self.peek();
                    if next != "!" && !is_word(next) {
                        return Err(format!("found '{next}', expected: identifier after ','"));
                    }
                }
                other => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<(String, Test), String> {
        let absent = self.peek() == "!";
        if absent {
            self.take();
        }
        let key = self.take();
        if !is_word(key) {
            return Err(format!("found '{key}', expected: identifier"));
        }
        let wrong = names::qualified_name(key);
        if !wrong.is_empty() {
            return Err(FieldError::invalid("<nil>", key, wrong.join("; ")).to_string());
        }
        if absent {
            return Ok((key.to_owned(), Test::Absent));
        }
        if matches!(self.peek(), "" | ",") {
            return Ok((key.to_owned(), Test::Exists));
        }
        let operator = self.take();
        let values = match operator {
            "in" | "notin" => self.values()?,
            "=" | "==" | "!=" | ">" | "<" => BTreeSet::from([self.value()?]),
            other => return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        test(key, operator, values).map(|test| (key.to_owned(), test))
    }

    fn value(&mut self) -> Result<String, String> {
        if matches!(self.peek(), "" | ",") {
            return Ok(String::new());
        }
        match self.take() {
            word if is_word(word) => Ok(word.to_owned()),
            other => Err(format!("found '{other}', expected: identifier")),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        let open = self.take();
        if open != "(" {
            return Err(format!("found '{open}' expected: '('"));
        }
        let mut values = BTreeSet::new();
        match self.peek() {
            ")" => {
                self.take();
                return Ok(values);
            }
            "," => {}
            word if is_word(word) => {}
            other => return Err(format!("found '{other}', expected: ',', ')' or identifier")),
        }
        // What stands between two commas, or at an end, is a value too, if an empty one.
        loop {
            match self.take() {
                "," => {
                    if values.is_empty() || matches!(self.peek(), "," | ")") {
                        values.insert(String::new());
                    }
                    if self.peek() == ")" {
                        break;
                    }
                }
                word if is_word(word) => {
                    values.insert(word.to_owned());
                    match self.peek() {
                        "," => {}
                        ")" => break,
                        other => return Err(format!("found '{other}', expected: ',' or ')'")),
                    }
                }
                other => return Err(format!("found '{other}', expected: ',', or identifier")),
            }
        }
        self.take();
        Ok(values)
    }
}

fn is_word(token: &str) -> bool {
    !token.is_empty() && !token.starts_with(is_symbol)
}

fn test(key: &str, operator: &str, values: BTreeSet<String>) -> Result<Test, String> {
    let mut errors = Vec::new();
    if values.is_empty() {
        let none = serde_json::Value::Array(Vec::new());
        let why = "for 'in', 'notin' operators, values set can't be empty";
        errors.push(FieldError::invalid("values", none, why));
    }
    let number = values.first().and_then(|value| value.parse::<i64>().ok());
    let compares = matches!(operator, ">" | "<");
    if compares && number.is_none() {
        let value = values.first().map(String::as_str).unwrap_or_default();
        let why = "for 'Gt', 'Lt' operators, the value must be an integer";
        errors.push(FieldError::invalid("values[0]", value, why));
    }
    for (index, value) in values.iter().enumerate() {
        let wrong = names::label_value(value);
        if !wrong.is_empty() {
            errors.push(FieldError::invalid(format!("values[{index}][{key}]"), value.as_str(), wrong.join("; ")));
        }
    }
    match errors.as_slice() {
        [] => {}
        [error] => return Err(error.to_string()),
        several => {
            let several: Vec<String> = several.iter().map(ToString::to_string).collect();
            return Err(format!("[{}]", several.join(", ")));
        }
    }
    Ok(match (operator, number) {
        (">", Some(number)) => Test::Greater(number),
        ("<", Some(number)) => Test::Less(number),
        ("!=" | "notin", _) => Test::NotIn(values),
        _ => Test::In(values),
    })
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

    /// The words are those that kube-apiserver 1.36.2 answers.
    #[test]
    fn nonsense_is_refused() {
        let value = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
                     start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
                     for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
        let long = "x".repeat(64);
        for (selector, words) in [
            ("=", "found '=', expected: !, identifier, or 'end of string'".to_owned()),
            (",", "found ',', expected: !, identifier, or 'end of string'".to_owned()),
            ("a,", "found '', expected: identifier after ','".to_owned()),
            ("!", "unable to parse requirement: found '', expected: identifier".to_owned()),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt".to_owned()),
            ("a in", "unable to parse requirement: found '' expected: '('".to_owned()),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'".to_owned()),
            (
                "a in ()",
                "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators, values set can't be \
                 empty"
                    .to_owned(),
            ),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be \
                 an integer"
                    .to_owned(),
            ),
            ("a=-b", format!("unable to parse requirement: values[0][a]: Invalid value: \"-b\": {value}")),
            (
                &long,
                format!(
                    "unable to parse requirement: <nil>: Invalid value: \"{long}\": name part must be no more than 63 bytes"
                ),
            ),
            ("a=b c", "found 'c', expected: ',' or 'end of string'".to_owned()),
            ("a=1)", "found ')', expected: ',' or 'end of string'".to_owned()),
        ] {
            let status = LabelSelector::parse(selector).unwrap_err();
            assert_eq!((status.code(), status.message()), (400, words.as_str()), "{selector}");
        }
    }

    #[test]
    fn empty_values_count() {
        for selector in ["a in (,)", "a in (,b)", "a in (b,)", "a in (b,,c)", "a="] {
            assert!(LabelSelector::parse(selector).unwrap().matches(&labels("a=")), "{selector}");
        }
        // Words of the language are names as well.
        assert!(LabelSelector::parse("in in (notin)").unwrap().matches(&labels("in=notin")));
    }
}
