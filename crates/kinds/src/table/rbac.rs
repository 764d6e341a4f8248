//! Roles and their bindings.

use jiff::Timestamp;
use serde_json::Value;

use super::Says::Text;
use super::{AGE, CREATED, Drawn, NAME, age, name, shown, wide};
use crate::look::Look;

/// What upstream shows of kinds that it has no columns for.
pub(super) const ROLE: &[Drawn] = &[NAME, CREATED];

/// As the first version of the API had it.
const ROLE_IN_NAMESPACE: &str = "RoleRef can reference a Role in the current namespace or a ClusterRole in the global \
    namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.";
const ROLE_OF_CLUSTER: &str = "RoleRef can only reference a ClusterRole in the global namespace. If the RoleRef cannot be \
    resolved, the Authorizer must return an error.";

pub(super) const ROLE_BINDING: &[Drawn] = &[
    NAME,
    shown("Role", "string", Text(ROLE_IN_NAMESPACE)),
    AGE,
    wide("Users", Text("Users in the roleBinding")),
    wide("Groups", Text("Groups in the roleBinding")),
    wide("ServiceAccounts", Text("ServiceAccounts in the roleBinding")),
];

pub(super) const CLUSTER_ROLE_BINDING: &[Drawn] = &[
    NAME,
    shown("Role", "string", Text(ROLE_OF_CLUSTER)),
    AGE,
    wide("Users", Text("Users in the clusterRoleBinding")),
    wide("Groups", Text("Groups in the clusterRoleBinding")),
    wide("ServiceAccounts", Text("ServiceAccounts in the clusterRoleBinding")),
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
