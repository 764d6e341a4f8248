//! Groups of Kubernetes' own (`*.k8s.io`, `*.kubernetes.io`) are for what Kubernetes approved: what a definition says of
//! that in an annotation -> whether it may be, and the condition that tells of it.
//!
//! Source: "api-approved.kubernetes.io" in Kubernetes' documentation, `pkg/controller/apiapproval` of
//! apiextensions-apiserver.

use serde_json::Value;

use super::set_condition;
use crate::FieldError;
use crate::look::Look;
use crate::url::Url;

const APPROVED: &str = "api-approved.kubernetes.io";

/// The reason and the message of a definition's condition; `None` where no approval is needed.
fn state(definition: &Value) -> Option<(&'static str, String)> {
    const POLICY: &str = "see https://github.com/kubernetes/enhancements/pull/1111";
    let group = definition["spec"].text("group");
    let is_protected = ["k8s.io", "kubernetes.io"].iter().any(|own| {
        let domain = group.strip_suffix(own);
        domain.is_some_and(|domain| domain.is_empty() || domain.ends_with('.'))
    });
    if !is_protected {
        return None;
    }
    let said = definition["metadata"]["annotations"].text(APPROVED);
    let must = format!("protected groups must have approval annotation {APPROVED:?}");
    Some(match said {
        "" => ("MissingAnnotation", format!("{must}, {POLICY}")),
        _ if said.starts_with("unapproved") => ("UnapprovedAnnotation", format!("not approved: {said:?}")),
        _ if is_url(said) => ("ApprovedAnnotation", format!("approved in {said}")),
        _ => {
            let either = "with either a URL or a reason starting with \"unapproved\"";
            ("InvalidAnnotation", format!("{must} {either}, {POLICY}"))
        }
    })
}

fn is_url(text: &str) -> bool {
    Url::parse_request(text).is_ok_and(|url| !url.scheme.is_empty() && !url.host.is_empty())
}

/// What is wrong with it, unless it was before.
pub(super) fn validate(definition: &Value, old: Option<&Value>) -> Option<FieldError> {
    let said = |definition: &Value| definition["metadata"]["annotations"].text(APPROVED).to_owned();
    let field = format!("metadata.annotations[{APPROVED}]");
    match state(definition)? {
        _ if old.is_some_and(|old| said(old) == said(definition)) => None,
        ("MissingAnnotation", why) => Some(FieldError::required(field, why)),
        ("InvalidAnnotation", why) => Some(FieldError::invalid(field, said(definition), why)),
        _ => None,
    }
}

/// Says in a condition whether it was approved.
pub(in crate::custom) fn settle(definition: &mut Value, now: &str) {
    if let Some((reason, message)) = state(definition) {
        let approved = reason == "ApprovedAnnotation";
        set_condition(definition, "KubernetesAPIApprovalPolicyConformant", approved, (reason, &message), now);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn groups_of_kubernetes_own_need_approval() {
        for (group, said, expected, error) in [
            ("example.com", "", None, None),
            ("myk8s.io", "", None, None),
            ("a.k8s.io", "", Some("False MissingAnnotation"), Some("Required value")),
            ("k8s.io", "unapproved, an experiment", Some("False UnapprovedAnnotation"), None),
            ("kubernetes.io", "https://github.com/a/b/pull/1", Some("True ApprovedAnnotation"), None),
            ("a.kubernetes.io", "yes", Some("False InvalidAnnotation"), Some("Invalid value: \"yes\"")),
        ] {
            let mut definition = json!({
                "metadata": {"annotations": {"api-approved.kubernetes.io": said}}, "spec": {"group": group}
            });
            let errors = validate(&definition, None).map(|error| error.to_string());
            assert_eq!(errors.is_some(), error.is_some(), "{group} {said}: {errors:?}");
            assert!(errors.unwrap_or_default().contains(error.unwrap_or_default()), "{group} {said}");
            assert!(validate(&definition, Some(&definition)).is_none(), "what was there before stays");
            settle(&mut definition, "2026-01-01T00:00:00Z");
            let condition = &definition["status"]["conditions"][0];
            let told = expected.map(|_| format!("{} {}", condition.text("status"), condition.text("reason")));
            assert_eq!(told.as_deref(), expected, "{group} {said}");
        }
    }
}
