//! The rules of a definition's schema -> which of them do not compile, or may cost too much.
//!
//! A rule may cost at worst what it costs once, times how often its place can be in one object, as far as the schema
//! bounds that; what is unbounded is bounded by the size of a request.
//! Source: `pkg/apis/apiextensions/validation` of apiextensions-apiserver, whose words these are.

use std::sync::Arc;

use serde_json::Value;

use super::declared::{self, LARGEST_REQUEST};
use super::rules::{Rule, has_rules};
use crate::cel::{Form, Program, Shape, escape};
use crate::look::{Look, Path};
use crate::{FieldError, FieldErrorKind};

/// What one rule may cost at worst, and all of a schema together.
const MOST_PER_RULE: u64 = 10_000_000;
const MOST_TOGETHER: u64 = 100_000_000;
/// At most this many mistakes are told of one schema.
const MOST: usize = 100;

/// What is wrong with the rules of a structural schema at `path`.
pub(super) fn mistakes(schema: &Value, path: &Path<'_>) -> Vec<FieldError> {
    if !has_rules(schema) {
        return Vec::new();
    }
    let mut walk = Walk { errors: Vec::new(), total: 0, dearest: Vec::new() };
    let place = Place { shape: declared::shape(schema, true, "selfType"), times: Some(1), moves: None };
    walk.schema(schema, path, place);
    if walk.total > MOST_TOGETHER {
        walk.dearest.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        for (place, _) in walk.dearest.iter().take(4) {
            let words = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            walk.errors.push(FieldError::forbidden(place, words));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        walk.errors.push(FieldError::forbidden(path, too_dear(what, walk.total, MOST_TOGETHER)));
    }
    walk.errors.truncate(MOST);
    walk.errors
}

struct Walk {
    errors: Vec<FieldError>,
    total: u64,
    /// Rules that count, and what they cost.
    dearest: Vec<(String, u64)>,
}

/// Where a schema stands.
struct Place<'a> {
    shape: Option<Arc<Shape>>,
    /// How often it can be in an object, if that is bounded.
    times: Option<u64>,
    /// The list, on the way here, of whose items it cannot be told what they were before an update.
    moves: Option<&'a str>,
}

impl Walk {
    fn schema(&mut self, schema: &Value, path: &Path<'_>, place: Place<'_>) {
        if !has_rules(schema) || self.errors.len() >= MOST {
            return;
        }
        let below = |part: &Value, shape: Option<&Arc<Shape>>, times: Option<u64>| {
            let own = || declared::shape(part, part.flag("x-kubernetes-embedded-resource"), "selfType");
            let times = place.times.zip(times).map(|(here, times)| here.saturating_mul(times));
            (shape.cloned().or_else(own), times)
        };
        let shape = place.shape.as_deref();
        let (field, item) = (
            |name: &str| shape?.field(&escape(name)?).map(|field| &field.shape),
            || match &shape?.form {
                Form::List { items: of, .. } | Form::Map(of) => Some(of),
                _ => None,
            },
        );
        if schema["additionalProperties"].is_object() {
            let part = &schema["additionalProperties"];
            let (shape, times) = below(part, item(), schema["maxProperties"].as_u64());
            let place = Place { shape, times, moves: place.moves };
            self.schema(part, &path.field("additionalProperties"), place);
        }
        let properties = path.field("properties");
        for (name, part) in schema.entries("properties") {
            let (shape, times) = below(part, field(name), Some(1));
            self.schema(part, &properties.key(name), Place { shape, times, moves: place.moves });
        }
        if schema["items"].is_object() {
            let (shape, times) = below(&schema["items"], item(), schema["maxItems"].as_u64());
            let here = path.to_string();
            let moves = if schema.text("x-kubernetes-list-type") == "map" { None } else { Some(here.as_str()) };
            let place = Place { shape, times, moves: place.moves.or(moves) };
            self.schema(&schema["items"], &path.field("items"), place);
        }
        let Some(shape) = &place.shape else { return };
        let rules = path.field("x-kubernetes-validations");
        for (index, json) in schema.list("x-kubernetes-validations").iter().enumerate() {
            if self.errors.len() >= MOST {
                return;
            }
            self.rule(&Rule::new(json, schema, shape), json, &rules.index(index), &place, shape);
        }
    }

    fn rule(&mut self, rule: &Rule, json: &Value, path: &Path<'_>, place: &Place<'_>, shape: &Shape) {
        // What stands where nothing bounds how often is bounded by what a request holds.
        let times = place.times.unwrap_or(LARGEST_REQUEST / (shape.least_bytes + 1));
        let cost = |program: Option<&Result<Program, String>>| match program {
            Some(Ok(program)) => program.most_cost(shape),
            _ => 0,
        };
        let at = path.field("rule");
        self.cost(&at, "estimated rule cost", cost(rule.program.as_ref()).saturating_mul(times));
        if let Some(Err(why)) = &rule.program {
            self.errors.push(wrong(&at, json, why));
        }
        let at = path.field("messageExpression");
        match &rule.message_program {
            Some(Err(why)) => self.errors.push(wrong(&at, json, why)),
            Some(program) => self.cost(&at, "estimated messageExpression cost", cost(Some(program))),
            None => {}
        }
        if rule.uses_old() {
            if let Some(list) = place.moves {
                let words = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {list}");
                self.errors.push(FieldError::invalid(path.field("rule"), json["rule"].clone(), words));
            }
        } else if json.has("optionalOldSelf") {
            let words = "may not be set if oldSelf is not used in rule";
            self.errors.push(FieldError::invalid(path.field("optionalOldSelf"), rule.optional_old, words));
        }
    }

    fn cost(&mut self, path: &Path<'_>, what: &str, cost: u64) {
        if cost > MOST_PER_RULE {
            self.errors.push(FieldError::forbidden(path, too_dear(what, cost, MOST_PER_RULE)));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= MOST_TOGETHER / 100 {
            self.dearest.push((path.to_string(), cost));
        }
    }
}

fn too_dear(what: &str, cost: u64, most: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "a rough factor")]
    let factor = cost as f64 / most as f64;
    let factor = match factor {
        factor if factor > 100.0 => "more than 100x".to_owned(),
        factor if factor < 1.5 => format!("{factor:.6}x"),
        factor => format!("{factor:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where \
         arrays, maps, and strings are declared)"
    )
}

/// What is wrong with a rule, after the rule as Kubernetes shows it: in its own order of fields, and as Go writes JSON.
fn wrong(path: &Path<'_>, rule: &Value, why: &str) -> FieldError {
    let escape =
        |value: &Value| value.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    let text = |field: &str| escape(&rule.text(field).into());
    let shown = format!(
        r#"{{"Rule":{},"Message":{},"MessageExpression":{},"Reason":{},"FieldPath":{},"OptionalOldSelf":{}}}"#,
        text("rule"),
        text("message"),
        text("messageExpression"),
        escape(&rule["reason"]),
        text("fieldPath"),
        rule["optionalOldSelf"]
    );
    FieldError::new(FieldErrorKind::Invalid, path, None, format!("{shown}: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(properties: &Value, rule: &Value) -> Vec<String> {
        let schema = json!({"type": "object", "properties": properties, "x-kubernetes-validations": [rule]});
        mistakes(&schema, &Path::Field(&Path::Root, "s")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_are_refused_in_kubernetes_words() {
        let list = |items: Value, most: u64| json!({"l": {"type": "array", "maxItems": most, "items": items}});
        let text = json!({"type": "string"});
        let moving = json!({"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]});
        let shown = r#"{"Rule":"self.n \u003e 0","Message":"m","MessageExpression":"","Reason":null,"FieldPath":"","OptionalOldSelf":null}"#;
        for (properties, rule, expected) in [
            (list(text.clone(), 10), json!({"rule": "self.l.all(x, x != '')"}), vec![]),
            (
                json!({}),
                json!({"rule": "self.n > 0", "message": "m"}),
                vec![format!(
                    "s.x-kubernetes-validations[0].rule: Invalid value: {shown}: compilation failed: ERROR: <input>:1:5: undefined field \
                     'n'\n | self.n > 0\n | ....^"
                )],
            ),
            (
                list(json!({"type": "string", "maxLength": 40}), 900),
                json!({"rule": "self.l.all(x, self.l.exists_one(y, y == x))"}),
                vec![
                    "s.x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of 1.6x (try \
                     simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are \
                     declared)"
                        .to_owned(),
                ],
            ),
            (
                list(moving, 10),
                json!({"rule": "true", "optionalOldSelf": true}),
                vec![
                    "s.properties[l].items.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used on \
                     the uncorrelatable portion of the schema within s.properties[l]"
                        .to_owned(),
                    "s.x-kubernetes-validations[0].optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule"
                        .to_owned(),
                ],
            ),
        ] {
            assert_eq!(told(&properties, &rule), expected, "{rule}");
        }
    }
}
