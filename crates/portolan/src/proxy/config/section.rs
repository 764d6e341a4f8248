//! Untyped settings -> typed ones, with everything that is wrong with them named at once.
//!
//! A field is zero when it is null, empty, false, 0 or "0s", or holds only such: whoever writes a configuration out
//! whole writes those too and means nothing by them.
//!
//! Invariant: pure.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Map, Value};

/// What was found while reading.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// The flags that fields are set by, if they are.
    pub(super) flags: BTreeMap<String, String>,
    pub(super) errors: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// Fields that nobody knows.
    pub(super) unknown: Vec<String>,
}

impl Findings {
    /// The field in the words of whoever set it.
    fn name(&self, path: &str) -> String {
        self.flags.get(path).cloned().unwrap_or_else(|| path.to_owned())
    }
}

/// The fields of one object, taken out one by one; what is left over is unknown.
pub(super) struct Section<'a> {
    path: String,
    fields: Map<String, Value>,
    known: BTreeSet<&'static str>,
    findings: &'a RefCell<Findings>,
}

impl<'a> Section<'a> {
    pub(super) fn root(fields: Map<String, Value>, findings: &'a RefCell<Findings>) -> Self {
        Self { path: String::new(), fields, known: BTreeSet::new(), findings }
    }

    fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Whether the field is there and stands for a flag.
    pub(super) fn given_by_flag(&self, name: &str) -> bool {
        self.fields.contains_key(name) && self.findings.borrow().flags.contains_key(&self.path(name))
    }

    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.insert(name);
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    pub(super) fn error(&self, name: &str, message: impl Display) {
        let mut findings = self.findings.borrow_mut();
        let name = findings.name(&self.path(name));
        findings.errors.push(format!("{name}: {message}"));
    }

    pub(super) fn warning(&self, name: &str, message: impl Display) {
        let mut findings = self.findings.borrow_mut();
        let name = findings.name(&self.path(name));
        findings.warnings.push(format!("{name}: {message}"));
    }

    fn wrong<T>(&self, name: &str, value: &Value, wanted: &str) -> Option<T> {
        self.error(name, format_args!("{value} is not {wanted}"));
        None
    }

    pub(super) fn section(&mut self, name: &'static str) -> Section<'a> {
        let fields = match self.take(name) {
            None => Map::new(),
            Some(Value::Object(fields)) => fields,
            Some(other) => self.wrong(name, &other, "an object").unwrap_or_default(),
        };
        Section { path: self.path(name), fields, known: BTreeSet::new(), findings: self.findings }
    }

    /// `None` also when empty.
    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text).filter(|text| !text.is_empty()),
            other => self.wrong(name, &other, "text"),
        }
    }

    /// `None` also when empty; `Some(None)` when switched off, which only a flag can do.
    pub(super) fn switchable_text(&mut self, name: &'static str) -> Option<Option<String>> {
        if self.fields.get(name) == Some(&Value::Bool(false)) {
            self.take(name);
            return Some(None);
        }
        self.text(name).map(Some)
    }

    pub(super) fn boolean(&mut self, name: &'static str) -> Option<bool> {
        match self.take(name)? {
            Value::Bool(value) => Some(value),
            other => self.wrong(name, &other, "true or false"),
        }
    }

    pub(super) fn integer(&mut self, name: &'static str, range: RangeInclusive<i64>) -> Option<i64> {
        let value = self.take(name)?;
        let found = value.as_i64().filter(|number| range.contains(number));
        found.or_else(|| self.wrong(name, &value, &format!("a whole number from {} to {}", range.start(), range.end())))
    }

    /// Never negative.
    pub(super) fn duration(&mut self, name: &'static str) -> Option<Duration> {
        let value = self.take(name)?;
        let found = match &value {
            Value::String(text) => duration(text),
            // What YAML makes of 0.
            other if is_zero(other) => Some(Duration::ZERO),
            _ => None,
        };
        found.or_else(|| self.wrong(name, &value, "a duration of 0 or more, as in 30s, 1m or 2h22m"))
    }

    pub(super) fn texts(&mut self, name: &'static str) -> Vec<String> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match self.take(name) {
            None => Vec::new(),
            Some(Value::Array(values)) if values.iter().all(Value::is_string) => {
                values.iter().filter_map(text).collect()
            }
            Some(other) => self.wrong(name, &other, "a list of texts").unwrap_or_default(),
        }
    }

    /// A field that means nothing here: a warning if it is there and not zero.
    pub(super) fn unused(&mut self, name: &'static str, why: &str) {
        if self.take(name).is_some_and(|value| !is_zero(&value)) {
            self.warning(name, format_args!("does not apply: {why}"));
        }
    }

    /// Reports what nobody took.
    pub(super) fn finish(self) {
        for field in self.fields.keys() {
            let similar = self.known.iter().find(|known| known.eq_ignore_ascii_case(field));
            let hint = similar.map(|known| format!(" (did you mean {known}?)")).unwrap_or_default();
            self.findings.borrow_mut().unknown.push(format!("{}{hint}", self.path(field)));
        }
    }
}

pub(super) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "0" || duration(text) == Some(Duration::ZERO),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}

/// As Go writes them: numbers with units, one after the other.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("30s", Some(30_000)),
            ("1m", Some(60_000)),
            ("2h22m", Some(8_520_000)),
            ("1.5s", Some(1_500)),
            ("24h0m0s", Some(86_400_000)),
            ("250ms", Some(250)),
            ("", None),
            ("30", None),
            ("-1s", None),
            ("s", None),
            ("1d", None),
            ("1s2", None),
        ] {
            assert_eq!(duration(text), expected.map(Duration::from_millis), "{text:?}");
        }
    }
}
