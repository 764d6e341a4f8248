//! A custom resource and its schema -> what is wrong with the former, in the words of kube-apiserver.
//!
//! Invariants: the errors come in an order that depends on nothing else; a check takes a bounded number of steps of about
//! the same length, since a large schema over a large object is a product of the two.
//! A value that an update left as it was keeps its mistakes (ratcheting), wherever it can be told which value it was.
//! Deliberately not here: rules in CEL (`rules`); formats that Kubernetes itself got from Swagger and nobody uses
//! (`isbn`, `creditcard` …), which let everything pass.
//! Source: `k8s.io/kube-openapi/pkg/validation`, `pkg/apiserver/{validation,schema/listtype}` of
//! apiextensions-apiserver.

mod repeats;

use serde_json::{Map, Number, Value};

use super::format;
use super::places::Items;
use super::schema::{Additional, ListType, Range, Schema, Type};
use crate::{FieldError, FieldErrorKind};
pub(super) use repeats::repeats;

/// Schemas that are held against values for one object.
const MOST_STEPS: usize = 2_000_000;
/// At most this many errors are told of one object.
pub(super) const MAX_ERRORS: usize = 200;

/// Everything that is wrong with a value at `path` (nothing for the object itself), which was `old` before.
pub(super) fn check(schema: &Schema, value: &Value, old: Option<&Value>, path: &str) -> Vec<FieldError> {
    check_within(MOST_STEPS, schema, value, old, path)
}

fn check_within(most_steps: usize, schema: &Schema, value: &Value, old: Option<&Value>, path: &str) -> Vec<FieldError> {
    let mut check = Check { base: path, steps: 0, most_steps };
    let mut errors = check.value(schema, value, old, "").errors;
    if check.is_spent() {
        errors = vec![FieldError::invalid(
            check.whole(),
            "",
            "is too large to be checked against its schema, which has many alternatives",
        )];
    }
    errors.truncate(MAX_ERRORS);
    errors
}

/// What was found in one value, and how much of the schema it was held against: of several alternatives that do not
/// fit, the one that was looked at most closely is told of.
#[derive(Default)]
struct Found {
    errors: Vec<FieldError>,
    steps: usize,
}

impl Found {
    fn merge(&mut self, other: Self) {
        self.steps += other.steps;
        if self.errors.len() < MAX_ERRORS {
            self.errors.extend(other.errors);
        }
    }
}

struct Check<'a> {
    base: &'a str,
    steps: usize,
    most_steps: usize,
}

impl Check<'_> {
    fn field(&self, name: &str) -> String {
        match (self.base, name.trim_start_matches('.')) {
            (base, "") => base.to_owned(),
            ("", name) => name.to_owned(),
            (base, name) if name.starts_with('[') => format!("{base}{name}"),
            (base, name) => format!("{base}.{name}"),
        }
    }

    fn invalid(&self, name: &str, value: &Value, words: &str) -> FieldError {
        FieldError::invalid(self.field(name), value.clone(), format!("{name} in body {words}"))
    }

    /// What Kubernetes calls the field of errors that are the whole object's.
    fn whole(&self) -> &str {
        if self.base.is_empty() { "<nil>" } else { self.base }
    }

    /// An error about the alternatives that a value has.
    fn alternatives(&self, name: &str, words: &str) -> FieldError {
        FieldError::invalid(self.whole(), "", format!("{name:?} must {words}"))
    }

    fn is_spent(&self) -> bool {
        self.steps > self.most_steps
    }

    fn value(&mut self, schema: &Schema, value: &Value, old: Option<&Value>, name: &str) -> Found {
        let mut found = self.changed(schema, value, old, name);
        if !found.errors.is_empty() && old == Some(value) {
            found.errors.clear();
        }
        found
    }

    /// What is wrong with a value, whatever it was before.
    fn changed(&mut self, schema: &Schema, value: &Value, old: Option<&Value>, name: &str) -> Found {
        let mut found = Found { errors: Vec::new(), steps: 1 };
        // A long name is written out for each part, and what a schema lists is gone through for each value.
        let listed = schema.choices.len() + schema.required.len() + schema.properties.len();
        self.steps += 1 + name.len() / 1024 + listed / 64;
        if self.is_spent() {
            return found;
        }
        found.errors.extend(self.kind(schema, value, name));
        if value.is_null() {
            if schema.kind.is_none() || schema.nullable {
                found.errors.extend(self.choice(schema, value, name));
            }
            return found;
        }
        self.combined(schema, value, name, &mut found);
        match value {
            Value::String(text) => self.text(schema, value, text, name, &mut found),
            Value::Number(number) => self.number(schema, value, number, name, &mut found),
            Value::Array(items) => self.items(schema, items, old, name, &mut found),
            _ => {}
        }
        found.errors.extend(self.choice(schema, value, name));
        if let Value::Object(map) = value {
            self.object(schema, map, old, name, &mut found);
        }
        found
    }

    fn kind(&self, schema: &Schema, value: &Value, name: &str) -> Option<FieldError> {
        let expected = if schema.int_or_string { "integer,string" } else { schema.kind?.name() };
        let wrong = |expected: &str, got: &str| {
            let words = format!("{name} in body must be of type {expected}: {got:?}");
            Some(FieldError::new(FieldErrorKind::TypeInvalid, self.field(name), Some(got.into()), words))
        };
        let (got, fits) = match (value, schema.kind) {
            (Value::Null, _) => ("null", schema.nullable),
            (Value::Bool(_), kind) => ("boolean", kind == Some(Type::Boolean)),
            (Value::String(_), kind) => ("string", kind == Some(Type::String) || schema.int_or_string),
            (Value::Array(_), kind) => ("array", kind == Some(Type::Array)),
            (Value::Object(_), kind) => ("object", kind == Some(Type::Object)),
            (Value::Number(number), kind) => {
                let whole = is_whole(number);
                let fits = kind == Some(Type::Number) || whole && (kind == Some(Type::Integer) || schema.int_or_string);
                (if number.is_f64() { "number" } else { "integer" }, fits)
            }
        };
        if fits { None } else { wrong(expected, got) }
    }

    fn choice(&self, schema: &Schema, value: &Value, name: &str) -> Option<FieldError> {
        if schema.choices.is_empty() || schema.choices.iter().any(|choice| are_equal(choice, value)) {
            return None;
        }
        let texts: Vec<String> = schema
            .choices
            .iter()
            .map(|choice| choice.as_str().map_or_else(|| choice.to_string(), str::to_owned))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        Some(FieldError::not_supported(self.field(name), value.clone(), &texts))
    }

    fn combined(&mut self, schema: &Schema, value: &Value, name: &str, found: &mut Found) {
        if !schema.any_of.is_empty() {
            let (fitting, best) = self.try_each(&schema.any_of, value, name, true);
            if fitting == 0 {
                found.errors.push(self.alternatives(name, "validate at least one schema (anyOf)"));
            }
            found.merge(best);
        }
        if !schema.one_of.is_empty() {
            let (fitting, best) = self.try_each(&schema.one_of, value, name, false);
            if fitting != 1 {
                let why = if fitting == 0 {
                    "Found none valid".to_owned()
                } else {
                    format!("Found {fitting} valid alternatives")
                };
                found.errors.push(self.alternatives(name, &format!("validate one and only one schema (oneOf). {why}")));
            }
            found.merge(best);
        }
        let mut fitting = 0;
        for part in &schema.all_of {
            let part = self.value(part, value, None, name);
            fitting += usize::from(part.errors.is_empty());
            found.merge(part);
        }
        if fitting != schema.all_of.len() {
            let none = if fitting == 0 { ". None validated" } else { "" };
            found.errors.push(self.alternatives(name, &format!("validate all the schemas (allOf){none}")));
        }
        if let Some(not) = &schema.not
            && self.value(not, value, None, name).errors.is_empty()
        {
            found.errors.push(self.alternatives(name, "not validate the schema (not)"));
        }
    }

    /// How many of the alternatives fit, and what to say of the best if none does.
    fn try_each(&mut self, alternatives: &[Schema], value: &Value, name: &str, one_is_enough: bool) -> (usize, Found) {
        let (mut fitting, mut best) = (0, None::<Found>);
        for alternative in alternatives {
            let found = self.value(alternative, value, None, name);
            if found.errors.is_empty() {
                fitting += 1;
                if one_is_enough {
                    break;
                }
            } else if best.as_ref().is_none_or(|best| found.steps > best.steps) {
                best = Some(found);
            }
        }
        (fitting, if fitting == 0 { best.unwrap_or_default() } else { Found::default() })
    }

    fn text(&self, schema: &Schema, value: &Value, text: &str, name: &str, found: &mut Found) {
        let Range { min, max } = schema.length;
        let length = u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
        if let Some(max) = max.filter(|max| length > *max) {
            found.errors.push(FieldError::too_long(self.field(name), usize::try_from(max).unwrap_or(usize::MAX)));
        }
        if let Some(min) = min.filter(|min| length < *min) {
            found.errors.push(self.invalid(name, value, &format!("should be at least {min} chars long")));
        }
        if let Some(pattern) = schema.pattern.as_ref().filter(|pattern| !pattern.matches(text)) {
            found.errors.push(self.invalid(name, value, &format!("should match '{}'", pattern.text)));
        }
        if matches!(schema.kind, None | Some(Type::String)) && !format::fits(&schema.format, text) {
            let format = format::shown(&schema.format);
            let words = format!("{name} in body must be of type {format}: {text:?}");
            found.errors.push(FieldError::new(FieldErrorKind::TypeInvalid, self.field(name), Some(text.into()), words));
        }
    }

    fn number(&self, schema: &Schema, value: &Value, number: &Number, name: &str, found: &mut Found) {
        let Some(float) = number.as_f64() else { return };
        if schema.kind == Some(Type::Integer)
            && schema.format == "int32"
            && number.as_i64().is_none_or(|number| i32::try_from(number).is_err())
        {
            let words = format!("Checked value must be of type integer with format int32 in {name}");
            found.errors.push(FieldError::invalid(self.whole(), "", words));
        }
        if let Some(factor) = schema.multiple_of.filter(|factor| *factor > 0.0) {
            let times = float / factor;
            if (times - times.round()).abs() > f64::EPSILON * times.abs() {
                found.errors.push(self.invalid(name, value, &format!("should be a multiple of {factor}")));
            }
        }
        if let Some(min) = schema.minimum.filter(|min| float < min.value || min.exclusive && float <= min.value) {
            let or_equal = if min.exclusive { "" } else { "or equal to " };
            found.errors.push(self.invalid(name, value, &format!("should be greater than {or_equal}{}", min.value)));
        }
        if let Some(max) = schema.maximum.filter(|max| float > max.value || max.exclusive && float >= max.value) {
            let or_equal = if max.exclusive { "" } else { "or equal to " };
            found.errors.push(self.invalid(name, value, &format!("should be less than {or_equal}{}", max.value)));
        }
    }

    fn items(&mut self, schema: &Schema, items: &[Value], old: Option<&Value>, name: &str, found: &mut Found) {
        if let Some(of) = &schema.items {
            let keys = (schema.list_type == ListType::Map).then_some(schema.list_keys.as_slice());
            let olds = Items::new(keys, old);
            for (index, item) in items.iter().enumerate() {
                if self.is_spent() {
                    break;
                }
                let item = self.value(of, item, olds.same(item), &format!("{name}[{index}]"));
                found.merge(item);
            }
        }
        self.count(&schema.item_count, items.len(), "items", name, found);
    }

    /// How many of its parts a value has.
    fn count(&self, allowed: &Range, parts: usize, what: &str, name: &str, found: &mut Found) {
        let count = u64::try_from(parts).unwrap_or(u64::MAX);
        if let Some(min) = allowed.min.filter(|min| count < *min) {
            found.errors.push(self.invalid(name, &count.into(), &format!("should have at least {min} {what}")));
        }
        if let Some(max) = allowed.max.filter(|max| count > *max) {
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            found.errors.push(FieldError::too_many(self.field(name), parts, max));
        }
    }

    fn object(
        &mut self,
        schema: &Schema,
        map: &Map<String, Value>,
        old: Option<&Value>,
        name: &str,
        found: &mut Found,
    ) {
        // Both were read as one version, so of these two nobody can see a change.
        let at_root = name.is_empty() && self.base.is_empty();
        let before = |key: &str| {
            let visible = !at_root || !matches!(key, "apiVersion" | "kind");
            old.filter(|_| visible).and_then(|old| old.get(key))
        };
        self.count(&schema.property_count, map.len(), "properties", name, found);
        for (key, value) in map {
            if self.is_spent() {
                break;
            }
            if schema.properties.contains_key(key) {
                continue;
            }
            match &schema.additional {
                Additional::Of(of) => {
                    let value = self.value(of, value, before(key), &format!("{name}.{key}"));
                    found.merge(value);
                }
                Additional::Any(false) => {
                    let words = format!("{name}.{key} in body is a forbidden property");
                    found.errors.push(FieldError::invalid(self.field(name), "", words));
                }
                Additional::Any(true) | Additional::Unsaid => {}
            }
        }
        for (key, field) in &schema.properties {
            if let Some(value) = map.get(key) {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                let value = self.value(field, value, before(key), &name);
                found.merge(value);
            }
        }
        for key in schema.required.iter().filter(|key| !map.contains_key(*key)) {
            found.errors.push(FieldError::required(self.field(&format!("{name}.{key}")), ""));
        }
    }
}

fn is_whole(number: &Number) -> bool {
    number.as_f64().is_none_or(|float| float.fract() == 0.0)
}

/// Equal values; of numbers it does not count how they are written.
fn are_equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left == right || left.as_f64() == right.as_f64(),
        _ => left == right,
    }
}

#[cfg(test)]
mod tests;
