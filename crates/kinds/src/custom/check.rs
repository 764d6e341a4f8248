//! A custom resource and its schema -> what is wrong with the former, in the words of kube-apiserver.
//!
//! Invariants: the errors come in an order that depends on nothing else; a check takes a bounded number of steps, since
//! a large schema over a large object is a product of the two.
//! A value that an update left as it was keeps its mistakes (ratcheting), wherever it can be told which value it was.
//! Deliberately not here: rules in CEL (`rules`); formats that Kubernetes itself got from Swagger and nobody uses
//! (`isbn`, `creditcard` …), which let everything pass.
//! Source: `k8s.io/kube-openapi/pkg/validation`, `pkg/apiserver/{validation,schema/listtype}` of
//! apiextensions-apiserver.

use std::collections::BTreeSet;

use serde_json::{Map, Number, Value, json};

use super::format;
use super::places::Items;
use super::schema::{Additional, ListType, Range, Schema, Type};
use crate::{FieldError, FieldErrorKind};

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
    if check.steps > most_steps {
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
        self.steps += 1;
        if self.steps > self.most_steps {
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
                let item = self.value(of, item, olds.same(item), &format!("{name}[{index}]"));
                found.merge(item);
            }
        }
        let count = u64::try_from(items.len()).unwrap_or(u64::MAX);
        let Range { min, max } = schema.item_count;
        if let Some(min) = min.filter(|min| count < *min) {
            found.errors.push(self.invalid(name, &count.into(), &format!("should have at least {min} items")));
        }
        if let Some(max) = max.filter(|max| count > *max) {
            found.errors.push(FieldError::too_many(
                self.field(name),
                items.len(),
                usize::try_from(max).unwrap_or(usize::MAX),
            ));
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
        let count = u64::try_from(map.len()).unwrap_or(u64::MAX);
        let Range { min, max } = schema.property_count;
        if let Some(min) = min.filter(|min| count < *min) {
            found.errors.push(self.invalid(name, &count.into(), &format!("should have at least {min} properties")));
        }
        if let Some(max) = max.filter(|max| count > *max) {
            found.errors.push(FieldError::too_many(
                self.field(name),
                map.len(),
                usize::try_from(max).unwrap_or(usize::MAX),
            ));
        }
        for (key, value) in map {
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

/// Items of lists that must be told apart and cannot be.
pub(super) fn lists(schema: &Schema, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if errors.len() >= MAX_ERRORS {
        return;
    }
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let Some(field) = schema.field(name) else { continue };
                let named = schema.properties.contains_key(name);
                let path = match (path, named) {
                    ("", _) => name.clone(),
                    (path, true) => format!("{path}.{name}"),
                    (path, false) => format!("{path}[{name}]"),
                };
                lists(field, value, &path, errors);
            }
        }
        Value::Array(items) => {
            match schema.list_type {
                ListType::Atomic => {}
                ListType::Set => repeated(items, |item| item.clone(), path, errors),
                ListType::Map => match items.iter().position(|item| !item.is_object() && !item.is_null()) {
                    Some(index) => errors.push(FieldError::invalid(
                        format!("{path}[{index}]"),
                        items[index].clone(),
                        "must be an object for an array of list-type map",
                    )),
                    None => repeated(items, |item| keys(schema, item), path, errors),
                },
            }
            for (of, (index, item)) in
                schema.items.iter().flat_map(|of| items.iter().enumerate().map(move |item| (of, item)))
            {
                lists(of, item, &format!("{path}[{index}]"), errors);
            }
        }
        _ => {}
    }
}

fn keys(schema: &Schema, item: &Value) -> Value {
    let mut keys = json!({});
    for key in &schema.list_keys {
        if let Some(value) = item.get(key) {
            keys[key] = value.clone();
        }
    }
    keys
}

/// Names the second of what is there more than once.
fn repeated(items: &[Value], by: impl Fn(&Value) -> Value, path: &str, errors: &mut Vec<FieldError>) {
    let (mut seen, mut told) = (BTreeSet::new(), BTreeSet::new());
    for (index, item) in items.iter().enumerate() {
        let found = by(item);
        let text = found.to_string();
        if !seen.insert(text.clone()) && told.insert(text) {
            errors.push(FieldError::duplicate(format!("{path}[{index}]"), found));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(schema: &Value, value: &Value) -> Vec<String> {
        let schema = Schema::new(schema);
        let mut errors = check(&schema, value, None, "");
        lists(&schema, value, "", &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn mistakes_are_told_in_kubernetes_words() {
        let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {
        "type": "object", "required": ["cronSpec"], "properties": {
            "cronSpec": {"type": "string", "pattern": "^\\d+$"},
            "replicas": {"type": "integer", "minimum": 1, "maximum": 10},
            "size": {"type": "string", "enum": ["S", "L"], "maxLength": 2},
            "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "ratio": {"type": "number", "multipleOf": 0.5},
            "maybe": {"type": "string", "nullable": true},
            "at": {"type": "string", "format": "date-time"},
            "tags": {"type": "array", "maxItems": 3, "items": {"type": "string", "minLength": 1}, "x-kubernetes-list-type": "set"},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                      "items": {"type": "object", "properties": {"port": {"type": "integer"}}}},
            "labels": {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "string"}},
            "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                    "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
        }}}});
        let good = json!({"spec": {"cronSpec": "1"}});
        assert!(found(&schema, &good).is_empty());
        for (field, value, expected) in [
            (
                "cronSpec",
                json!(null),
                vec!["spec.cronSpec: Invalid value: \"null\": spec.cronSpec in body must be of type string: \"null\""],
            ),
            (
                "cronSpec",
                json!("x"),
                vec!["spec.cronSpec: Invalid value: \"x\": spec.cronSpec in body should match '^\\d+$'"],
            ),
            (
                "replicas",
                json!("1"),
                vec![
                    "spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\"",
                ],
            ),
            (
                "replicas",
                json!(1.5),
                vec![
                    "spec.replicas: Invalid value: \"number\": spec.replicas in body must be of type integer: \"number\"",
                ],
            ),
            ("replicas", json!(2.0), vec![]),
            (
                "replicas",
                json!(0),
                vec!["spec.replicas: Invalid value: 0: spec.replicas in body should be greater than or equal to 1"],
            ),
            (
                "replicas",
                json!(11),
                vec!["spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10"],
            ),
            ("size", json!("M"), vec!["spec.size: Unsupported value: \"M\": supported values: \"S\", \"L\""]),
            (
                "size",
                json!("XXL"),
                vec![
                    "spec.size: Too long: may not be more than 2 bytes",
                    "spec.size: Unsupported value: \"XXL\": supported values: \"S\", \"L\"",
                ],
            ),
            ("port", json!(80), vec![]),
            ("port", json!("http"), vec![]),
            ("ratio", json!(1.5), vec![]),
            (
                "ratio",
                json!(1.2),
                vec!["spec.ratio: Invalid value: 1.2: spec.ratio in body should be a multiple of 0.5"],
            ),
            ("maybe", json!(null), vec![]),
            ("at", json!("2026-01-01T00:00:00Z"), vec![]),
            (
                "at",
                json!("now"),
                vec!["spec.at: Invalid value: \"now\": spec.at in body must be of type date-time: \"now\""],
            ),
            ("tags", json!(["a", "b", "a"]), vec!["spec.tags[2]: Duplicate value: \"a\""]),
            (
                "tags",
                json!(["a", ""]),
                vec!["spec.tags[1]: Invalid value: \"\": spec.tags[1] in body should be at least 1 chars long"],
            ),
            ("tags", json!(["a", "b", "c", "d"]), vec!["spec.tags: Too many: 4: must have at most 3 items"]),
            (
                "ports",
                json!([{"port": 1}, {"port": 2}, {"port": 1}]),
                vec!["spec.ports[2]: Duplicate value: {\"port\":1}"],
            ),
            (
                "labels",
                json!({"a": 1}),
                vec![
                    "spec.labels.a: Invalid value: \"integer\": spec.labels.a in body must be of type string: \"integer\"",
                ],
            ),
            ("one", json!({"a": "x"}), vec![]),
            (
                "one",
                json!({"a": "x", "b": "y"}),
                vec![
                    "<nil>: Invalid value: \"\": \"spec.one\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
                ],
            ),
        ] {
            let mut object = good.clone();
            object["spec"][field] = value;
            assert_eq!(found(&schema, &object), expected, "{object}");
        }
        assert_eq!(found(&schema, &json!({})), ["spec: Required value"]);
        assert_eq!(found(&schema, &json!({"spec": {}})), ["spec.cronSpec: Required value"]);
    }

    #[test]
    fn checks_end() {
        let alternatives = vec![json!({"minLength": 2}); 100];
        let schema = Schema::new(&json!({"type": "array", "items": {"type": "string", "anyOf": alternatives}}));
        let errors = check_within(5000, &schema, &json!(vec!["x"; 100]), None, "spec");
        assert!(errors[0].detail.contains("too large to be checked"), "{errors:?}");
    }
}
