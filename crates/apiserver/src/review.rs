//! Questions that somebody asks about themselves: who am I, may I do this, what may I do. Nothing of it is stored.
//!
//! Source: `authorization.k8s.io` and `authentication.k8s.io`, which `kubectl auth` and careful controllers ask.
//! Deliberately not here: reviews of others, which take tokens to be of use.

use portolan_kinds::Status;
use serde_json::{Value, json};

use crate::authz::{self, User};
use crate::object;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Review {
    Access,
    Rules,
    Myself,
}

impl Review {
    /// By the segments of the path after `/apis`.
    pub(crate) fn of(group: &str, version: &str, plural: &str) -> Option<Self> {
        match (group, version, plural) {
            ("authorization.k8s.io", "v1", "selfsubjectaccessreviews") => Some(Self::Access),
            ("authorization.k8s.io", "v1", "selfsubjectrulesreviews") => Some(Self::Rules),
            ("authentication.k8s.io", "v1", "selfsubjectreviews") => Some(Self::Myself),
            _ => None,
        }
    }

    fn kind(self) -> (&'static str, &'static str) {
        match self {
            Self::Access => ("authorization.k8s.io/v1", "SelfSubjectAccessReview"),
            Self::Rules => ("authorization.k8s.io/v1", "SelfSubjectRulesReview"),
            Self::Myself => ("authentication.k8s.io/v1", "SelfSubjectReview"),
        }
    }

    /// # Errors
    /// 400 for a body of another kind, or without the question.
    pub(crate) fn answer(self, user: &User, asked: &Value) -> Result<Value, Status> {
        let (api_version, kind) = self.kind();
        let sent = asked["kind"].as_str().unwrap_or(kind);
        if sent != kind {
            return Err(Status::bad_request(format!("the body of this request is a {kind}, and not a {sent}")));
        }
        let status = match self {
            Self::Access => access(user, &asked["spec"])?,
            Self::Rules => rules(user),
            Self::Myself => json!({"userInfo": {"username": user.name, "groups": user.groups}}),
        };
        let mut answer = json!({"kind": kind, "apiVersion": api_version, "metadata": {}, "status": status});
        if self != Self::Myself {
            answer["spec"] = asked["spec"].clone();
        }
        Ok(answer)
    }
}

fn access(user: &User, spec: &Value) -> Result<Value, Status> {
    let verdict = match (&spec["resourceAttributes"], &spec["nonResourceAttributes"]) {
        (resource @ Value::Object(_), Value::Null) => {
            let text = |field: &str| resource[field].as_str().unwrap_or_default();
            authz::authorize(
                user,
                &authz::Request {
                    verb: text("verb"),
                    group: text("group"),
                    resource: text("resource"),
                    subresource: text("subresource"),
                    namespace: text("namespace"),
                    name: text("name"),
                },
            )
        }
        (Value::Null, path @ Value::Object(_)) => {
            authz::authorize_path(user, object::text(path, "/verb"), object::text(path, "/path"))
        }
        _ => {
            return Err(Status::bad_request(
                "exactly one of spec.resourceAttributes and spec.nonResourceAttributes must be specified",
            ));
        }
    };
    Ok(json!({"allowed": verdict.is_ok()}))
}

/// Nodes have rules that no list can say.
fn rules(user: &User) -> Value {
    let mut resources = Vec::new();
    if user.may_everything() {
        resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
    }
    json!({
        "resourceRules": resources,
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["*"]}],
        "incomplete": !user.may_everything()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let access = |user: &User, spec: Value| {
            let answer = Review::Access.answer(user, &json!({"spec": spec.clone()})).unwrap();
            assert_eq!((&answer["kind"], &answer["spec"]), (&json!("SelfSubjectAccessReview"), &spec));
            answer["status"]["allowed"].as_bool().unwrap()
        };
        let node = User::node("n1");
        let resource = |verb: &str, resource: &str| json!({"resourceAttributes": {"verb": verb, "resource": resource}});
        assert!(access(&User::admin(), resource("*", "*")));
        assert!(access(&node, resource("list", "services")));
        assert!(!access(&node, resource("delete", "services")));
        assert!(access(&node, json!({"nonResourceAttributes": {"verb": "get", "path": "/apis"}})));
        for body in [json!({}), json!({"spec": {}}), json!({"kind": "Pod", "spec": resource("get", "pods")})] {
            assert_eq!(Review::Access.answer(&node, &body).map_err(|status| status.code()), Err(400), "{body}");
        }
        let rules = |user: &User| Review::Rules.answer(user, &json!({"spec": {"namespace": "x"}})).unwrap();
        assert_eq!(rules(&User::admin())["status"]["resourceRules"][0]["verbs"], json!(["*"]));
        assert_eq!(rules(&node)["status"]["incomplete"], true);
        let myself = Review::Myself.answer(&node, &json!({})).unwrap();
        assert_eq!(myself["status"]["userInfo"], json!({"username": "system:node:n1", "groups": ["system:nodes"]}));
    }
}
