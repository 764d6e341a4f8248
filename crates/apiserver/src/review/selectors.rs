//! The selectors to which a question about access may be narrowed -> what is wrong with them, and what they say.
//!
//! Pure. What cannot be made sense of is left out, which asks for more and so is never allowed wrongly; the answer says
//! so. Roles know nothing of selectors; a node may list what is narrowed to itself.
//! Source: KEP-4601, `pkg/apis/authorization/validation` and `pkg/registry/authorization/util`.

use portolan_kinds::select::{FieldSelector, FieldTest, LabelSelector};
use portolan_kinds::{FieldError, names};
use serde_json::Value;

use crate::object::text;

const AT: &str = "spec.resourceAttributes";
const FIELDS: &str = "fieldSelector";
const LABELS: &str = "labelSelector";

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// What is wrong with the form of `spec.resourceAttributes`.
pub(super) fn validate(attributes: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for kind in [FIELDS, LABELS] {
        let selector = &attributes[kind];
        if !selector.is_object() {
            continue;
        }
        let at = format!("{AT}.{kind}");
        let (raw, requirements) = (text(selector, "/rawSelector"), list(selector, "requirements"));
        if !raw.is_empty() && !requirements.is_empty() {
            let why = "may not specified at the same time as requirements";
            errors.push(FieldError::invalid(format!("{at}.rawSelector"), raw, why));
        }
        if raw.is_empty() && requirements.is_empty() {
            let why = format!("when {at} is specified, requirements or rawSelector is required");
            errors.push(FieldError::required(format!("{at}.requirements"), why));
        }
        for (index, requirement) in requirements.iter().enumerate() {
            let at = format!("{at}.requirements[{index}]");
            let (key, values) = (text(requirement, "/key"), list(requirement, "values"));
            if kind == FIELDS && key.is_empty() {
                errors.push(FieldError::required(format!("{at}.key"), "must be specified"));
            }
            match text(requirement, "/operator") {
                "In" | "NotIn" if values.is_empty() => {
                    let why = "must be specified when `operator` is 'In' or 'NotIn'";
                    errors.push(FieldError::required(format!("{at}.values"), why));
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(FieldError::forbidden(format!("{at}.values"), why));
                }
                // Others may be a newer client's.
                _ => {}
            }
            if kind == LABELS {
                let wrong = |field: String, value: &str, all: Vec<String>| {
                    let value = value.to_owned();
                    all.into_iter().map(move |why| FieldError::invalid(field.clone(), value.clone(), why))
                };
                errors.extend(wrong(format!("{at}.key"), key, names::qualified_name(key)));
                for (index, value) in values.iter().enumerate() {
                    let value = value.as_str().unwrap_or_default();
                    errors.extend(wrong(format!("{at}.values[{index}]"), value, names::label_value(value)));
                }
            }
        }
    }
    errors
}

/// What the selectors say, as far as anybody here asks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Selected {
    /// The one node whose things are asked for.
    pub(super) node_name: Option<String>,
    /// What was left out, in upstream's words.
    pub(super) errors: Vec<&'static str>,
}

pub(super) fn selected(attributes: &Value) -> Selected {
    let mut selected = Selected::default();
    let fields = &attributes[FIELDS];
    if fields.is_object() {
        let (tests, ignored) = field_tests(fields);
        let node = tests.iter().find(|test| test.field == "spec.nodeName" && test.equal);
        selected.node_name = node.map(|test| test.value.clone());
        selected.errors.extend(told(
            (ignored, tests.is_empty()),
            "spec.resourceAttributes.fieldSelector ignored due to parse error",
            "spec.resourceAttributes.fieldSelector partially ignored due to parse error",
        ));
    }
    let labels = &attributes[LABELS];
    if labels.is_object() {
        let requirements = list(labels, "requirements");
        let known =
            |requirement: &&Value| matches!(text(requirement, "/operator"), "In" | "NotIn" | "Exists" | "DoesNotExist");
        let kept = requirements.iter().filter(known).count();
        let unreadable = LabelSelector::parse(text(labels, "/rawSelector")).is_err();
        selected.errors.extend(told(
            (unreadable || kept < requirements.len(), kept == 0),
            "spec.resourceAttributes.labelSelector ignored due to parse error",
            "spec.resourceAttributes.labelSelector partially ignored due to parse error",
        ));
    }
    selected
}

fn told((ignored, all): (bool, bool), whole: &'static str, partly: &'static str) -> Option<&'static str> {
    match (ignored, all) {
        (false, _) => None,
        (true, true) => Some(whole),
        (true, false) => Some(partly),
    }
}

/// What can be made sense of, and whether there is more.
fn field_tests(selector: &Value) -> (Vec<FieldTest>, bool) {
    let requirements = list(selector, "requirements");
    if requirements.is_empty() {
        let parsed = FieldSelector::of_fields(text(selector, "/rawSelector"));
        return parsed.map_or((Vec::new(), true), |FieldSelector(tests)| (tests, false));
    }
    let read = |requirement: &Value| {
        let equal = match text(requirement, "/operator") {
            "In" => true,
            "NotIn" => false,
            _ => return None,
        };
        match list(requirement, "values") {
            [Value::String(value)] => {
                Some(FieldTest { field: text(requirement, "/key").to_owned(), value: value.clone(), equal })
            }
            _ => None,
        }
    };
    let kept: Vec<_> = requirements.iter().filter_map(read).collect();
    let ignored = kept.len() < requirements.len();
    (kept, ignored)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong() {
        let errors = |attributes: Value| -> Vec<String> {
            validate(&attributes).iter().map(|error| format!("{}: {}", error.field, error)).collect()
        };
        assert_eq!(errors(json!({"resource": "pods"})), [""; 0]);
        let found = errors(json!({
            "fieldSelector": {},
            "labelSelector": {"rawSelector": "a", "requirements": [
                {"key": "-", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["b"]},
                {"key": "a", "operator": "Newer", "values": ["?"]}
            ]}
        }));
        let fields: Vec<&str> = found.iter().map(|error| error.split(':').next().unwrap()).collect();
        assert_eq!(
            fields,
            [
                "spec.resourceAttributes.fieldSelector.requirements",
                "spec.resourceAttributes.labelSelector.rawSelector",
                "spec.resourceAttributes.labelSelector.requirements[0].values",
                "spec.resourceAttributes.labelSelector.requirements[0].key",
                "spec.resourceAttributes.labelSelector.requirements[1].values",
                "spec.resourceAttributes.labelSelector.requirements[2].values[0]"
            ]
        );
    }

    #[test]
    fn what_they_say() {
        let node = |selector: Value| selected(&json!({ "fieldSelector": selector }));
        let requirement =
            |key: &str, operator: &str, values: &[&str]| json!({"key": key, "operator": operator, "values": values});
        let is = |node: Option<&str>, errors: &[&'static str]| Selected {
            node_name: node.map(str::to_owned),
            errors: errors.to_vec(),
        };
        let whole = "spec.resourceAttributes.fieldSelector ignored due to parse error";
        let partly = "spec.resourceAttributes.fieldSelector partially ignored due to parse error";
        for (selector, expected) in [
            (json!({"rawSelector": "spec.nodeName=n1,status.phase!=Failed"}), is(Some("n1"), &[])),
            (json!({"rawSelector": "spec.nodeName!=n1"}), is(None, &[])),
            (json!({"rawSelector": "nonsense"}), is(None, &[whole])),
            (json!({"requirements": [requirement("spec.nodeName", "In", &["n1"])]}), is(Some("n1"), &[])),
            (json!({"requirements": [requirement("spec.nodeName", "In", &["n1", "n2"])]}), is(None, &[whole])),
            (
                json!({"requirements": [requirement("spec.nodeName", "In", &["n1"]), requirement("x", "Exists", &[])]}),
                is(Some("n1"), &[partly]),
            ),
        ] {
            assert_eq!(node(selector.clone()), expected, "{selector}");
        }
        let labels = |selector: Value| selected(&json!({ "labelSelector": selector })).errors;
        assert_eq!(labels(json!({"rawSelector": "a in (b, c)"})), [""; 0]);
        let whole = "spec.resourceAttributes.labelSelector ignored due to parse error";
        assert_eq!(labels(json!({"rawSelector": "a in"})), [whole]);
        assert_eq!(labels(json!({"requirements": [requirement("a", "Newer", &[])]})), [whole]);
    }
}
