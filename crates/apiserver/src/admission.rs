//! What a write must pass that depends on more than its object: whose it is, what else exists, what its author may.
//!
//! Invariant: every create, update and delete of a client goes through here, whatever form it came in.

use portolan_kinds::Status;
use serde_json::Value;

use crate::accounts;
use crate::authz::{node, rbac};
use crate::server::Server;
use crate::write::Asked;

/// Completes and checks a new object.
///
/// # Errors
/// 403, in Kubernetes' words.
pub(crate) async fn create(server: &Server, asked: Asked<'_>, object: &mut Value) -> Result<(), Status> {
    let kind = asked.kind();
    if let Some(node) = asked.user.as_node() {
        node::restrict(node, kind, None, Some(object))?;
    }
    if rbac::is_policy(kind) {
        server.access.check_escalation(asked.user, kind, asked.namespace(), None, object)?;
    }
    if (kind.group, kind.plural) == ("", "pods") {
        accounts::admit(server, asked.namespace(), object).await?;
    }
    Ok(())
}

/// # Errors
/// As [`create`].
pub(crate) fn update(server: &Server, asked: Asked<'_>, old: &Value, new: &Value) -> Result<(), Status> {
    let kind = asked.kind();
    if let Some(node) = asked.user.as_node() {
        node::restrict(node, kind, Some(old), Some(new))?;
    }
    if rbac::is_policy(kind) {
        server.access.check_escalation(asked.user, kind, asked.namespace(), Some(old), new)?;
    }
    Ok(())
}

/// # Errors
/// As [`create`].
pub(crate) fn delete(asked: Asked<'_>, old: &Value) -> Result<(), Status> {
    match asked.user.as_node() {
        Some(node) => node::restrict(node, asked.kind(), Some(old), None),
        None => Ok(()),
    }
}
