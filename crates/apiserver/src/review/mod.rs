//! Questions about who somebody is, what they may do, and whose a token is. Nothing of it is stored.
//!
//! Source: `authorization.k8s.io` and `authentication.k8s.io`, `pkg/registry/{authorization,authentication}`.

mod selectors;

use jiff::Timestamp;
use portolan_kinds::{FieldError, FieldValidation, QUESTIONS, Question, Status};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::authz::{Decision, Request};
use crate::object;
use crate::server::Server;
use crate::user::User;
use crate::warnings::Warnings;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Review {
    MyAccess,
    MyRules,
    Myself,
    Access,
    /// Asked in a namespace, by those who may ask about it alone.
    LocalAccess,
    Token,
}

impl Review {
    /// In the order of [`QUESTIONS`].
    pub(crate) const ALL: [Self; 6] =
        [Self::Myself, Self::Token, Self::LocalAccess, Self::MyAccess, Self::MyRules, Self::Access];

    /// By what stands in the path after `/apis`.
    pub(crate) fn of(group: &str, version: &str, plural: &str, namespaced: bool) -> Option<Self> {
        let asked = |question: &Question| {
            (question.group, "v1", question.plural, question.namespaced) == (group, version, plural, namespaced)
        };
        Self::ALL.into_iter().find(|review| asked(review.question()))
    }

    pub(crate) fn question(self) -> &'static Question {
        &QUESTIONS[Self::ALL.iter().position(|review| *review == self).unwrap_or_default()]
    }

    /// # Errors
    /// 400 or 422 for what is no such question.
    pub(crate) fn answer(
        self,
        server: &Server,
        (user, namespace): (&User, &str),
        mut asked: Value,
        (validation, warnings): (FieldValidation, &Warnings),
    ) -> Result<Value, Status> {
        let Question { group, kind, .. } = *self.question();
        warnings.add(portolan_kinds::check(group, "v1", kind, &mut asked, validation)?);
        // Where it is asked says as much as what is asked.
        if self == Self::LocalAccess && object::namespace(&asked).is_empty() {
            object::metadata(&mut asked).insert("namespace".into(), namespace.into());
        }
        let mut metadata = json!({});
        let spec = &asked["spec"];
        let status = match self {
            Self::MyAccess => {
                self.validate(&asked, namespace)?;
                access(server, user, spec)?
            }
            Self::Access | Self::LocalAccess => {
                self.validate(&asked, namespace)?;
                if self == Self::LocalAccess {
                    metadata = json!({"namespace": namespace});
                }
                access(server, &subject(spec), spec)?
            }
            Self::MyRules => rules(server, user, object::text(spec, "/namespace"))?,
            Self::Myself => {
                metadata = json!({"creationTimestamp": object::time(Timestamp::now())});
                json!({"userInfo": user.info()})
            }
            Self::Token => token(server, spec)?,
        };
        let mut answer =
            json!({"kind": kind, "apiVersion": format!("{group}/v1"), "metadata": metadata, "status": status});
        match self {
            Self::Myself => {}
            Self::MyRules => answer["spec"] = json!({}),
            _ => answer["spec"] = asked["spec"].take(),
        }
        Ok(answer)
    }

    fn validate(self, asked: &Value, namespace: &str) -> Result<(), Status> {
        let group = self.question().group;
        let (spec, metadata) = (&asked["spec"], &asked["metadata"]);
        let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
        let mut errors = Vec::new();
        // As Go writes what has no names for JSON.
        let of_path =
            format!("{{\"Path\":{},\"Verb\":{}}}", text_or_empty(&path["path"]), text_or_empty(&path["verb"]));
        if resource.is_object() && path.is_object() {
            let why = "cannot be specified in combination with resourceAttributes";
            errors.push(FieldError::invalid_as("spec.nonResourceAttributes", of_path.clone(), why));
        }
        let mut invalid =
            |field: &str, value: &Value, why: &str| errors.push(FieldError::invalid(field, value.clone(), why));
        if !resource.is_object() && !path.is_object() {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            invalid("spec.resourceAttributes", &Value::Null, why);
        }
        let subject = !object::text(spec, "/user").is_empty() || object::has_items(spec, "/groups");
        if self != Self::MyAccess && !subject {
            invalid("spec.user", &json!(""), "at least one of user or group must be specified");
        }
        errors.extend(selectors::validate(resource));
        let mut invalid =
            |field: &str, value: &Value, why: &str| errors.push(FieldError::invalid(field, value.clone(), why));
        if self == Self::LocalAccess {
            let own = object::text(metadata, "/namespace");
            let asked_in = object::text(resource, "/namespace");
            if resource.is_object() && asked_in != own {
                invalid("spec.resourceAttributes.namespace", &json!(asked_in), "must match metadata.namespace");
            }
            if path.is_object() {
                let why = "disallowed on this kind of request";
                errors.push(FieldError::invalid_as("spec.nonResourceAttributes", of_path, why));
            }
        }
        let mut invalid =
            |field: &str, value: &Value, why: &str| errors.push(FieldError::invalid(field, value.clone(), why));
        let allowed = |field: &str| field == "managedFields" || self == Self::LocalAccess && field == "namespace";
        if metadata.as_object().is_some_and(|metadata| metadata.keys().any(|field| !allowed(field))) {
            let except = if self == Self::LocalAccess { " except for namespace" } else { "" };
            invalid("metadata", metadata, &format!("must be empty{except}"));
        }
        if !errors.is_empty() {
            // What is not stored has no kind to be told by.
            return Err(Status::invalid(group, "", "", &errors));
        }
        if self == Self::LocalAccess && object::text(metadata, "/namespace") != namespace {
            let why = format!("spec.resourceAttributes.namespace must match namespace: {namespace}");
            return Err(Status::bad_request(why));
        }
        Ok(())
    }
}

fn text_or_empty(value: &Value) -> Value {
    value.as_str().unwrap_or_default().into()
}

/// The user that is asked about, who is nobody but what is said.
fn subject(spec: &Value) -> User {
    User {
        name: object::text(spec, "/user").to_owned(),
        uid: object::text(spec, "/uid").to_owned(),
        groups: Vec::deserialize(&spec["groups"]).unwrap_or_default(),
        extra: Option::deserialize(&spec["extra"]).ok().flatten().unwrap_or_default(),
    }
}

fn access(server: &Server, user: &User, spec: &Value) -> Result<Value, Status> {
    let selected = selectors::selected(&spec["resourceAttributes"]);
    let Decision { allowed, reason } = match &spec["resourceAttributes"] {
        Value::Object(resource) => {
            let text = |field: &str| resource.get(field).and_then(Value::as_str).unwrap_or_default();
            server.access.decide(
                user,
                &Request {
                    verb: text("verb"),
                    group: text("group"),
                    resource: text("resource"),
                    subresource: text("subresource"),
                    namespace: text("namespace"),
                    name: text("name"),
                    node_name: selected.node_name.as_deref().unwrap_or_default(),
                    path: "",
                },
            )?
        }
        _ => {
            let path = &spec["nonResourceAttributes"];
            // No path is the root's: an empty one would be no path at all.
            let asked = match object::text(path, "/path") {
                "" => "/",
                other => other,
            };
            server.access.decide(user, &Request::path(object::text(path, "/verb"), asked))?
        }
    };
    let mut status = json!({"allowed": allowed});
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    if !selected.errors.is_empty() {
        status["evaluationError"] = selected.errors.join("; ").into();
    }
    Ok(status)
}

/// Nodes have rules that no list can say.
fn rules(server: &Server, user: &User, namespace: &str) -> Result<Value, Status> {
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (rules, wrong) = server.access.rules(user, namespace)?;
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in rules {
        if !rule.resources.is_empty() {
            resources.push(json!(rule));
        }
        if !rule.non_resource_urls.is_empty() {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    }
    let node = user.as_node().map(|_| "node authorizer does not support user rule resolution".to_owned());
    let incomplete = node.is_some();
    let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": incomplete});
    if let Some(error) = node.or(wrong) {
        status["evaluationError"] = error.into();
    }
    Ok(status)
}

fn token(server: &Server, spec: &Value) -> Result<Value, Status> {
    let token = object::text(spec, "/token");
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let mut audiences: Vec<String> = Option::deserialize(&spec["audiences"]).ok().flatten().unwrap_or_default();
    if audiences.is_empty() {
        audiences = server.tokens.audiences();
    }
    Ok(match server.tokens.authenticate(&server.store, token, &audiences, Timestamp::now().as_second()) {
        Ok(found) => json!({"authenticated": true, "user": found.user.info(), "audiences": found.audiences}),
        Err(error) => json!({"user": {}, "error": error}),
    })
}
