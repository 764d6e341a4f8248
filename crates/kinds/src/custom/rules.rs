//! The rules of a schema (`x-kubernetes-validations`), and an object, with what it was before -> which rules it breaks.
//!
//! Invariants: all rules together spend no more than one budget on an object; a value that an update left alone keeps
//! what it breaks (ratcheting), but for rules about the change itself.
//! Source: "Validation rules" in "Extend the Kubernetes API with CustomResourceDefinitions"; `pkg/apiserver/schema/cel`
//! of apiextensions-apiserver, whose words these are.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::check::MAX_ERRORS;
use super::declared;
use super::places::{self, Items, Place, Whole};
use crate::cel::{self, Failure, Program, Refused, Shape, Spent, Type, Variables, escape};
use crate::look::{Look, Path};
use crate::{FieldError, FieldErrorKind};

/// What may be spent on all rules for one object.
const BUDGET: Spent = Spent { cost: 10_000_000, work: 10 * cel::MOST_WORK };
/// Bytes of a message that a rule makes.
const LONGEST_MESSAGE: usize = 5 << 10;

/// One of `x-kubernetes-validations`.
#[derive(Debug)]
pub(super) struct Rule {
    rule: String,
    message: String,
    reason: String,
    /// Where mistakes are told of, below the value.
    field: Option<String>,
    pub(super) optional_old: bool,
    /// `None` if there is no rule, which the schema's checks tell of.
    pub(super) program: Option<Result<Program, String>>,
    pub(super) message_program: Option<Result<Program, String>>,
}

impl Rule {
    pub(super) fn new(rule: &Value, schema: &Value, shape: &Arc<Shape>) -> Self {
        let optional_old = rule.flag("optionalOldSelf");
        let compile = |text: &str, wanted: &Type, (mistaken, constant): (&str, &str), wrong: &str| {
            let program = Program::compile(text, shape, optional_old).map_err(|refused| match refused {
                Refused::Mistakes(mistakes) => format!("{mistaken} failed: {mistakes}"),
                Refused::Constant(why) => format!("{constant} failed: {why}"),
            })?;
            if program.kind() == *wanted { Ok(program) } else { Err(wrong.to_owned()) }
        };
        let (text, message) = (rule.text("rule"), rule.text("messageExpression"));
        let program = (!text.trim().is_empty()).then(|| {
            let stages = ("compilation", "program instantiation");
            compile(text, &Type::Bool, stages, "cel expression must evaluate to a bool")
        });
        let message_program = (!message.is_empty() && matches!(program, Some(Ok(_)))).then(|| {
            let stages = ("messageExpression compilation", "messageExpression instantiation");
            compile(message, &Type::String, stages, "messageExpression must evaluate to a string")
        });
        Self {
            rule: text.trim().to_owned(),
            message: rule.text("message").trim().to_owned(),
            reason: rule.text("reason").to_owned(),
            field: Some(rule.text("fieldPath"))
                .filter(|path| !path.is_empty())
                .and_then(|path| places::field_path(path, schema).ok()),
            optional_old,
            program,
            message_program,
        }
    }

    pub(super) fn uses_old(&self) -> bool {
        matches!(&self.program, Some(Ok(program)) if program.uses_old())
    }

    /// As errors name the rule.
    fn shown(&self) -> &str {
        if self.message.is_empty() { &self.rule } else { &self.message }
    }
}

/// All rules of a schema and of what is in it.
#[derive(Debug)]
pub(crate) struct Rules {
    own: Vec<Rule>,
    shape: Option<Arc<Shape>>,
    kind: String,
    fields: BTreeMap<String, Rules>,
    /// Of the items of a list, or the values of a map.
    items: Option<Box<Rules>>,
    all_of: Vec<Rules>,
    list_keys: Option<Vec<String>>,
}

impl Rules {
    /// The rules of a definition's schema; `None` if it has none.
    pub(crate) fn new(schema: &Value) -> Option<Self> {
        let shape = declared::shape(schema, true, "selfType");
        if has_rules(schema) { Self::at(schema, schema, shape) } else { None }
    }

    /// Those of `rules`, a schema or a part of its `allOf`, for values of `schema`.
    fn at(rules: &Value, schema: &Value, shape: Option<Arc<Shape>>) -> Option<Self> {
        let list = rules.list("x-kubernetes-validations");
        let own = shape.iter().flat_map(|shape| list.iter().map(|rule| Rule::new(rule, schema, shape))).collect();
        let mut fields = BTreeMap::new();
        for (name, of) in rules.entries("properties").filter(|(_, of)| has_rules(of)) {
            let Some(node) = schema["properties"].get(name) else { continue };
            let below = below(node, shape.as_deref(), |shape| shape.field(&escape(name)?).map(|field| &field.shape));
            fields.extend(Self::at(of, node, below).map(|rules| (name.to_owned(), rules)));
        }
        let items = ["items", "additionalProperties"].into_iter().find_map(|part| {
            let (of, node) = (&rules[part], &schema[part]);
            let below = || below(node, shape.as_deref(), Shape::item);
            if has_rules(of) && node.is_object() { Self::at(of, node, below()).map(Box::new) } else { None }
        });
        let all_of = rules.list("allOf").iter().filter(|part| has_rules(part));
        let all_of: Vec<Self> = all_of.filter_map(|part| Self::at(part, schema, shape.clone())).collect();
        let rules = Self {
            own,
            shape,
            kind: schema.text("type").to_owned(),
            fields,
            items,
            all_of,
            list_keys: places::list_keys(schema),
        };
        let empty = rules.own.is_empty() && rules.fields.is_empty() && rules.items.is_none() && rules.all_of.is_empty();
        (!empty).then_some(rules)
    }

    /// What is wrong with an object, which was `old` before.
    pub(crate) fn check(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut check = Check { left: BUDGET, errors: Vec::new() };
        let place = Place { old, parent: None };
        // What ends early has said why.
        let _ = check.value(self, &Path::Root, object, old, place);
        check.errors
    }
}

impl Shape {
    fn item(&self) -> Option<&Arc<Self>> {
        use crate::cel::Form;
        match &self.form {
            Form::List { items: of, .. } | Form::Map(of) => Some(of),
            _ => None,
        }
    }
}

/// The shape of a part: the one that it has in the whole, or its own if the whole has none.
fn below(schema: &Value, whole: Option<&Shape>, part: impl Fn(&Shape) -> Option<&Arc<Shape>>) -> Option<Arc<Shape>> {
    let own = || declared::shape(schema, schema.flag("x-kubernetes-embedded-resource"), "selfType");
    whole.and_then(|whole| part(whole).cloned()).or_else(own)
}

pub(super) fn has_rules(schema: &Value) -> bool {
    !schema.list("x-kubernetes-validations").is_empty()
        || ["items", "additionalProperties"].iter().any(|part| schema[*part].is_object() && has_rules(&schema[*part]))
        || schema.entries("properties").any(|(_, field)| has_rules(field))
        || schema.list("allOf").iter().any(has_rules)
}

struct Check {
    /// Of the budget.
    left: Spent,
    errors: Vec<FieldError>,
}

/// The budget is spent, an evaluation was stopped, or enough is wrong: no more rules are asked.
struct Stopped;

impl Check {
    fn value<'a>(
        &mut self,
        rules: &'a Rules,
        path: &Path<'_>,
        value: &'a Value,
        old: Option<&'a Value>,
        place: Place<'a, '_>,
    ) -> Result<(), Stopped> {
        let old = old.filter(|old| !old.is_null());
        if value.is_null() {
            return Ok(());
        }
        for rule in &rules.own {
            self.rule(rules, rule, path, value, old, place)?;
        }
        for part in &rules.all_of {
            self.value(part, path, value, old, Place { old: None, ..place })?;
        }
        match value {
            Value::Object(map) => {
                let whole = Whole::new(value, place.old);
                for (name, child) in map {
                    let (of, path) = match (rules.fields.get(name), &rules.items) {
                        (Some(of), _) => (of, path.field(name)),
                        (None, Some(of)) => (&**of, path.key(name)),
                        (None, None) => continue,
                    };
                    self.value(of, &path, child, old.and_then(|old| old.get(name)), place.field(&whole, name))?;
                }
            }
            Value::Array(items) => {
                let Some(of) = &rules.items else { return Ok(()) };
                let keys = rules.list_keys.as_deref();
                let (olds, befores) = (Items::new(keys, old), Items::new(keys, place.old));
                let whole = Whole::new(value, place.old);
                for (index, item) in items.iter().enumerate() {
                    let place = Place { old: befores.same(item), parent: Some(&whole) };
                    self.value(of, &path.index(index), item, olds.same(item), place)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn rule<'a>(
        &mut self,
        rules: &'a Rules,
        rule: &'a Rule,
        path: &Path<'_>,
        value: &'a Value,
        old: Option<&'a Value>,
        place: Place<'a, '_>,
    ) -> Result<(), Stopped> {
        let at = || if matches!(path, Path::Root) { "<nil>".to_owned() } else { path.to_string() };
        let wrong = |words: String| FieldError::invalid(at(), rules.kind.as_str(), words);
        let (Some(program), Some(shape)) = (&rule.program, &rules.shape) else { return Ok(()) };
        let program = match program {
            Ok(program) => program,
            Err(why) => {
                self.errors.push(wrong(format!("rule compile error: {why}")));
                return Ok(());
            }
        };
        // A rule about a change asks nothing of what is new.
        if program.uses_old() && old.is_none() && !rule.optional_old {
            return Ok(());
        }
        let variables = Variables { own: value, old, old_is_optional: rule.optional_old, shape };
        let spent = "validation failed due to running out of cost budget, no further validation rules will be run";
        if self.errors.len() >= MAX_ERRORS {
            return Err(Stopped);
        }
        if self.left.cost == 0 || self.left.work == 0 {
            self.errors.push(wrong(spent.to_owned()));
            return Err(Stopped);
        }
        let Some(found) = self.evaluate(program, variables) else {
            self.errors.push(wrong(spent.to_owned()));
            return Err(Stopped);
        };
        match found {
            Ok(cel::Value::Bool(true)) => return Ok(()),
            Ok(_) => {}
            Err(failure) => {
                let shown = rule.shown();
                self.errors.push(wrong(match &failure {
                    Failure::NoOverload => format!(
                        "'{failure}': call arguments did not match a supported operator, function or macro signature for rule: {shown}"
                    ),
                    Failure::TooExpensive => format!(
                        "'{failure}': no further validation rules will be run due to call cost exceeds limit for rule: {shown}"
                    ),
                    Failure::Other(_) => format!("{failure} evaluating rule: {shown}"),
                }));
                return if failure == Failure::TooExpensive { Err(Stopped) } else { Ok(()) };
            }
        }
        if !program.uses_old() && place.is_unchanged(value) {
            return Ok(());
        }
        let at = match (&rule.field, path) {
            (Some(field), Path::Root) => field.clone(),
            (Some(field), _) => format!("{path}.{field}"),
            (None, _) => at(),
        };
        let made = match &rule.message_program {
            Some(Ok(program)) => self.message(program, variables).map_err(|words| {
                self.errors.push(FieldError::invalid(&at, rules.kind.as_str(), words));
                Stopped
            })?,
            _ => None,
        };
        let words = made.unwrap_or_else(|| match rule.message.as_str() {
            "" => format!("failed rule: {}", rule.rule),
            message => message.to_owned(),
        });
        let shown = (!matches!(rules.kind.as_str(), "object" | "array")).then(|| value.clone());
        self.errors.push(match rule.reason.as_str() {
            "FieldValueForbidden" => FieldError::forbidden(at, words),
            "FieldValueRequired" => FieldError::required(at, words),
            "FieldValueDuplicate" => FieldError::new(FieldErrorKind::Duplicate, at, shown, ""),
            _ => FieldError::new(FieldErrorKind::Invalid, at, shown, words),
        });
        Ok(())
    }

    /// `None` if it cost more than there was left.
    fn evaluate<'a>(
        &mut self,
        program: &'a Program,
        variables: Variables<'a>,
    ) -> Option<Result<cel::Value<'a>, Failure>> {
        let (found, spent) = program.evaluate(variables, self.left.work);
        let cost = self.left.cost.checked_sub(spent.cost)?;
        self.left = Spent { cost, work: self.left.work.saturating_sub(spent.work) };
        Some(found)
    }

    /// The message that a rule makes, if it makes one that can be shown.
    fn message(&mut self, program: &Program, variables: Variables<'_>) -> Result<Option<String>, String> {
        let Some(found) = self.evaluate(program, variables) else {
            return Err(
                "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run"
                    .to_owned(),
            );
        };
        if found.as_ref().is_err_and(|failure| *failure == Failure::TooExpensive) {
            return Err("no further validation rules will be run due to call cost exceeds limit for messageExpression"
                .to_owned());
        }
        let Ok(found) = found else { return Ok(None) };
        let text = found.as_text().unwrap_or_default().trim();
        let good = !text.is_empty() && text.len() <= LONGEST_MESSAGE && !text.contains('\n');
        Ok(good.then(|| text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(schema: &Value, new: &Value, old: Option<&Value>) -> Vec<String> {
        let rules = Rules::new(schema).unwrap();
        rules.check(new, old).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_unchanged_and_what_is_new() {
        let item = json!({"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.v == oldSelf.v", "message": "fixed"}, {"rule": "self.v < 10"}]});
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item},
            "plain": {"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self != 'bad'"}]}},
            "map": {"type": "object", "additionalProperties": {"type": "string", "x-kubernetes-validations": [{"rule": "self != ''"}]}},
            "a/b": {"type": "string", "x-kubernetes-validations": [
                {"rule": "oldSelf.hasValue() || self == 'first'", "optionalOldSelf": true, "reason": "FieldValueDuplicate"}]}
        }}}});
        let object = |list: Value, plain: Value| json!({"spec": {"list": list, "plain": plain}});
        let old = object(json!([{"k": "a", "v": 1}, {"k": "b", "v": 20}]), json!(["bad"]));
        for (new, expected) in [
            (old.clone(), vec![]),
            (object(json!([{"k": "b", "v": 20}, {"k": "a", "v": 1}]), json!(["bad"])), vec![]),
            (
                object(json!([{"k": "a", "v": 2}, {"k": "c", "v": 30}]), json!(["bad", "x"])),
                vec![
                    "spec.list[0]: Invalid value: fixed",
                    "spec.list[1]: Invalid value: failed rule: self.v < 10",
                    "spec.plain[0]: Invalid value: \"bad\": failed rule: self != 'bad'",
                ],
            ),
            (
                json!({"spec": {"map": {"x": "", "y": null}, "a/b": "second"}}),
                vec![
                    "spec.a/b: Duplicate value: \"second\"",
                    "spec.map[x]: Invalid value: \"\": failed rule: self != ''",
                ],
            ),
        ] {
            assert_eq!(told(&schema, &new, Some(&old)), expected, "{new}");
        }
    }

    /// Whether a list is as it was is asked for each item, and must not be found out each time.
    #[test]
    fn a_long_list_that_breaks_a_rule_all_over_may_stay() {
        let items = json!({"type": "string", "x-kubernetes-validations": [{"rule": "self != 'bad'"}]});
        let schema = json!({"type": "array", "items": items});
        let list = json!(vec!["bad"; 100_000]);
        assert_eq!(told(&schema, &list, Some(&list)), [""; 0]);
    }

    /// Each may make a message of kilobytes.
    #[test]
    fn so_much_is_told_and_no_more() {
        let rule = json!({"rule": "self > 0", "messageExpression": "'a'.replace('a', 'no') + string(self)"});
        let items = json!({"type": "integer", "x-kubernetes-validations": [rule]});
        let schema = json!({"type": "array", "items": items});
        assert_eq!(told(&schema, &json!([1, -1]), None), ["[1]: Invalid value: -1: no-1"]);
        assert_eq!(told(&schema, &json!(vec![0; 1_000]), None).len(), MAX_ERRORS);
    }

    #[test]
    fn a_budget_ends_it_all() {
        let rule = json!({"rule": "self.all(x, self.all(y, x + y >= 0))"});
        let list = json!({"type": "array", "items": {"type": "integer"}, "x-kubernetes-validations": [rule]});
        let schema = json!({"type": "object", "properties": {"a": {"type": "array", "items": list}}});
        let numbers: Vec<usize> = (0..300).collect();
        let cheap = told(&schema, &json!({"a": vec![numbers.clone(); 10]}), None);
        let spent = "validation failed due to running out of cost budget, no further validation rules will be run";
        assert_eq!(cheap, Vec::<String>::new());
        let dear = told(&schema, &json!({"a": vec![numbers; 50]}), None);
        assert_eq!(dear.len(), 1);
        assert!(dear[0].ends_with(spent), "{dear:?}");
    }
}
