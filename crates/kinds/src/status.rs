//! Turns what went wrong into the `Status` object and the words that Kubernetes clients know.
//!
//! Invariant: every constructor yields the code, reason and message that kube-apiserver yields for the same mistake.
//! Source: apimachinery `pkg/api/errors` and `pkg/util/validation/field`.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

/// What is wrong with one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    InternalError,
    TypeInvalid,
}

impl FieldErrorKind {
    /// The `reason` of a cause in `Status.details.causes`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::InternalError => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    /// How the kind reads in a message.
    fn words(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::InternalError => "Internal error",
            Self::TypeInvalid => "Invalid value",
        }
    }

    /// Whether an object with such a mistake is too odd to ask rules about.
    pub(crate) fn hides_rules(self) -> bool {
        matches!(self, Self::NotSupported | Self::Required | Self::TooLong | Self::TooMany | Self::TypeInvalid)
    }

    /// Whether the message quotes the offending value.
    fn quotes_value(self) -> bool {
        !matches!(self, Self::Required | Self::Forbidden | Self::TooLong | Self::InternalError)
    }
}

/// One mistake in one field of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: FieldErrorKind,
    /// Path from the object's root, such as `spec.ports[1].name`.
    pub field: String,
    /// As JSON.
    pub value: Option<String>,
    pub detail: String,
}

impl FieldError {
    pub fn new(
        kind: FieldErrorKind,
        field: impl Into<String>,
        value: Option<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self { kind, field: field.into(), value: value.map(|value| value.to_string()), detail: detail.into() }
    }

    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, field, Some(value.into()), detail)
    }

    /// With a value whose JSON is not what stands in the object: the order of its fields, or their names, are Go's.
    pub fn invalid_as(field: impl Into<String>, json: String, detail: impl Into<String>) -> Self {
        Self { value: Some(json), ..Self::new(FieldErrorKind::Invalid, field, None, detail) }
    }

    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, field, None, detail)
    }

    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::Duplicate, field, Some(value.into()), "")
    }

    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, field, None, detail)
    }

    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::NotFound, field, Some(value.into()), "")
    }

    /// `supported` is listed in the message in the order given.
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        Self::new(FieldErrorKind::NotSupported, field, Some(value.into()), detail)
    }

    /// `max` in bytes.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        let bytes = if max == 1 { "byte" } else { "bytes" };
        Self::new(FieldErrorKind::TooLong, field, None, format!("may not be more than {max} {bytes}"))
    }

    pub fn too_many(field: impl Into<String>, count: usize, max: usize) -> Self {
        let items = if max == 1 { "item" } else { "items" };
        Self::new(FieldErrorKind::TooMany, field, Some(count.into()), format!("must have at most {max} {items}"))
    }

    /// The message without the field's path, as it stands in `details.causes[].message`.
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if self.kind.quotes_value()
            && let Some(value) = &self.value
        {
            text.push_str(": ");
            text.push_str(value);
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// A `meta/v1` Status that tells of a failure.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    code: u16,
    reason: &'static str,
    message: String,
    /// `details`, or null.
    details: Value,
    continue_token: Option<String>,
}

/// `pods "x"` or `deployments.apps "x"`.
fn qualified(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

fn details(group: &str, plural: &str, name: &str) -> Map<String, Value> {
    let mut map = Map::new();
    if !name.is_empty() {
        map.insert("name".into(), name.into());
    }
    if !group.is_empty() {
        map.insert("group".into(), group.into());
    }
    if !plural.is_empty() {
        map.insert("kind".into(), plural.into());
    }
    map
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null, continue_token: None }
    }

    fn with_details(mut self, details: Map<String, Value>) -> Self {
        self.details = Value::Object(details);
        self
    }

    /// The HTTP status code.
    pub fn code(&self) -> u16 {
        self.code
    }

    pub fn reason(&self) -> &'static str {
        self.reason
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("kind".into(), "Status".into());
        map.insert("apiVersion".into(), "v1".into());
        let token = self.continue_token.as_deref();
        map.insert("metadata".into(), token.map_or_else(|| json!({}), |token| json!({"continue": token})));
        map.insert("status".into(), "Failure".into());
        map.insert("message".into(), self.message.as_str().into());
        if !self.reason.is_empty() {
            map.insert("reason".into(), self.reason.into());
        }
        if !self.details.is_null() {
            map.insert("details".into(), self.details.clone());
        }
        map.insert("code".into(), self.code.into());
        Value::Object(map)
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403; `why` is the part after `is forbidden: `.
    pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let resource = qualified(group, plural);
        let message = match (plural.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{resource} is forbidden: {why}"),
            (false, false) => format!("{resource} \"{name}\" is forbidden: {why}"),
        };
        Self::new(403, "Forbidden", message).with_details(details(group, plural, name))
    }

    /// 403 for a new object in a namespace that is going. Controllers know it by its cause, and do not try again.
    pub fn namespace_terminating(group: &str, plural: &str, name: &str, namespace: &str) -> Self {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = Self::forbidden(group, plural, name, &why);
        if let Value::Object(map) = &mut status.details {
            let cause = json!({
                "reason": "NamespaceTerminating", "field": "metadata.namespace",
                "message": format!("namespace {namespace} is being terminated")
            });
            map.insert("causes".into(), json!([cause]));
        }
        status
    }

    /// 404 for a named object.
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", qualified(group, plural)))
            .with_details(details(group, plural, name))
    }

    /// 404 for a path that is no resource.
    pub fn unknown_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").with_details(Map::new())
    }

    /// 405; `verb` as in the message, such as `patch`.
    pub fn method_not_supported(group: &str, plural: &str, verb: &str) -> Self {
        let mut map = details("", plural, "");
        if !group.is_empty() {
            map.insert("group".into(), group.into());
        }
        let words = format!("{verb} is not supported on resources of kind \"{}\"", qualified(group, plural));
        Self::new(405, "MethodNotAllowed", words).with_details(map)
    }

    /// 405, where nothing takes the method.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
            .with_details(Map::new())
    }

    /// 406; `accepted` are the media types the server can give.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {}", accepted.join(", ")))
    }

    /// 409: the name is taken.
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", qualified(group, plural)))
            .with_details(details(group, plural, name))
    }

    /// The same of an object that is on its way out, so that who waits for that knows.
    pub fn still_exists(group: &str, plural: &str, name: &str) -> Self {
        let mut status = Self::already_exists(group, plural, name);
        status.message.insert_str(0, "object is being deleted: ");
        status
    }

    /// 409; `why` is the part after the colon.
    pub fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Self {
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(group, plural)),
        )
        .with_details(details(group, plural, name))
    }

    /// 409: the resourceVersion sent is not the stored one.
    pub fn stale(group: &str, plural: &str, name: &str) -> Self {
        Self::conflict(
            group,
            plural,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409: server-side apply would change what others own; `causes` are messages and the fields they are about.
    pub fn apply_conflict(message: impl Into<String>, causes: &[(String, String)]) -> Self {
        let cause = |(message, field): &(String, String)| json!({"reason": "FieldManagerConflict", "message": message, "field": field});
        let mut map = Map::new();
        map.insert("causes".into(), causes.iter().map(cause).collect());
        Self::new(409, "Conflict", message).with_details(map)
    }

    /// 410: the resourceVersion is too old to list or watch from.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// With details that have nothing in them.
    pub(crate) fn about_nothing(self) -> Self {
        self.with_details(Map::new())
    }

    /// With a token by which the rest of a list can be had all the same.
    pub fn with_continue(mut self, token: String) -> Self {
        self.continue_token = Some(token);
        self
    }

    /// 410: a watch asked for a revision that is no longer kept.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(410, "Gone", message)
    }

    /// 413; `limit` in bytes.
    pub fn too_large(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// 415; `accepted` are the media types the server takes.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    /// 422. `kind` is the kind's name, such as `Service`.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        // The aggregate names equal messages once.
        let mut seen = HashSet::new();
        let all = errors.iter().map(ToString::to_string);
        let messages: Vec<String> = all.filter(|text| seen.insert(text.clone())).collect();
        let list = match messages.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = if errors.is_empty() {
            format!("{qualified} \"{name}\" is invalid")
        } else {
            format!("{qualified} \"{name}\" is invalid: {list}")
        };
        let mut map = details(group, kind, name);
        let causes: Vec<Value> = errors
            .iter()
            .map(|error| json!({"reason": error.kind.reason(), "message": error.body(), "field": error.field}))
            .collect();
        if !causes.is_empty() {
            map.insert("causes".into(), causes.into());
        }
        Self::new(422, "Invalid", message).with_details(map)
    }

    /// 422 for a request that cannot be carried out, without a field to blame.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    /// 429; `seconds` until the client should try again.
    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> Self {
        let mut map = Map::new();
        map.insert("retryAfterSeconds".into(), seconds.into());
        Self::new(429, "TooManyRequests", message).with_details(map)
    }

    /// 500.
    pub fn internal(why: impl std::fmt::Display) -> Self {
        let message = format!("Internal error occurred: {why}");
        let mut map = Map::new();
        map.insert("causes".into(), json!([{"message": why.to_string()}]));
        Self::new(500, "InternalError", message).with_details(map)
    }

    /// 500, and in the words of who failed: of what Kubernetes has no reason for.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504; `seconds` until the client should try again.
    pub fn timeout(message: impl Into<String>, seconds: u32) -> Self {
        let mut map = Map::new();
        map.insert("retryAfterSeconds".into(), seconds.into());
        Self::new(504, "Timeout", format!("Timeout: {}", message.into())).with_details(map)
    }

    /// 504: the revision asked for lies in the future; `seconds` until the client should try again.
    pub fn resource_version_too_large(asked: u64, current: u64, seconds: u32) -> Self {
        let mut status = Self::timeout(format!("Too large resource version: {asked}, current: {current}"), seconds);
        if let Value::Object(map) = &mut status.details {
            map.insert(
                "causes".into(),
                json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]),
            );
        }
        status
    }
}
