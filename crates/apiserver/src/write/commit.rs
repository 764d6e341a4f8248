//! Operations on the store that belong together -> done, or why not.
//!
//! Invariant: what an allocation took is kept only if what holds it was written.

use portolan_kinds::{Kind, Status};
use portolan_store::{Entry, Expect, Op, Store, WriteError};

use crate::body;
use crate::object;
use crate::services::Allocation;

/// Why a transaction did not happen: lost a race (with the operation that failed), or for good.
pub(crate) enum Unwritten {
    Race(usize),
    Failed(Status),
}

/// Whatever came in piece by piece, by patches, an object is not larger than the largest body.
pub(crate) async fn commit(store: &Store, ops: Vec<Op>) -> Result<Vec<Option<Entry>>, Unwritten> {
    let large = |op: &Op| matches!(op, Op::Put { value, .. } if value.bytes.len() > body::LIMIT);
    if ops.iter().any(large) {
        return Err(Unwritten::Failed(Status::too_large(body::LIMIT)));
    }
    store.write(ops.into()).await.map_err(|error| match error {
        WriteError::Conflict { op, .. } => Unwritten::Race(op),
        WriteError::Closed => Unwritten::Failed(Status::unavailable("the server is shutting down")),
        WriteError::Disk(source) => {
            tracing::error!(error = &source as &dyn std::error::Error, "cannot write to the store");
            Unwritten::Failed(Status::internal(format!("the store cannot be written: {source}")))
        }
    })
}

/// Commits what an allocation adds, too, and keeps what it took if that succeeds.
pub(super) async fn commit_allocated(
    store: &Store,
    mut ops: Vec<Op>,
    allocation: Option<Allocation>,
) -> Result<Vec<Option<Entry>>, Unwritten> {
    let Some(Allocation { claim, ops: more }) = allocation else { return commit(store, ops).await };
    ops.extend(more);
    let entries = commit(store, ops).await?;
    claim.commit();
    Ok(entries)
}

/// The operation that makes a write depend on its namespace being there and staying.
pub(super) fn namespace_check(store: &Store, kind: &Kind, namespace: &str, name: &str) -> Result<Option<Op>, Status> {
    if !kind.namespaced {
        return Ok(None);
    }
    let key = object::key(crate::known_kind("", "namespaces"), "", namespace);
    let Some(entry) = store.get(&key).0 else { return Err(Status::not_found("", "namespaces", namespace)) };
    if object::is_deleting(&object::decode(&entry.value)) {
        return Err(Status::namespace_terminating(kind.group, kind.plural, name, namespace));
    }
    Ok(Some(Op::Check { key, expect: Expect::At(entry.revision) }))
}
