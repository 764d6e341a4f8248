//! Roles and their bindings.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, NAME, age, name, shown, wide};
use crate::Column;
use crate::look::Look;

/// What upstream shows of kinds that it has no columns for.
pub(super) const ROLE: &[Column] = &[NAME, shown("Created At", "date", "When it was created.")];

pub(super) const BINDING: &[Column] = &[
    NAME,
    shown("Role", "string", "The role that the subjects have."),
    AGE,
    wide("Users", "The users among the subjects."),
    wide("Groups", "The groups among the subjects."),
    wide("ServiceAccounts", "The ServiceAccounts among the subjects."),
];

pub(super) fn role(object: &Value) -> Vec<Value> {
    vec![name(object), object["metadata"]["creationTimestamp"].clone()]
}

pub(super) fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let role = &object["roleRef"];
    let subjects = |kind: &str| -> Value {
        let own = object.list("subjects").iter().filter(|subject| subject.text("kind") == kind);
        let names: Vec<String> = own
            .map(|subject| match kind {
                "ServiceAccount" => format!("{}/{}", subject.text("namespace"), subject.text("name")),
                _ => subject.text("name").to_owned(),
            })
            .collect();
        names.join(", ").into()
    };
    vec![
        name(object),
        format!("{}/{}", role.text("kind"), role.text("name")).into(),
        age(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}
