//! What a client may say of an object's metadata, and what only the server may.
//!
//! Source: `rest.BeforeCreate` and `rest.BeforeUpdate` of apiserver.

use std::collections::HashSet;

use jiff::Timestamp;
use portolan_kinds::apply::{self, Writer};
use portolan_kinds::{Kind, Status};
use serde_json::Value;

use super::Asked;
use crate::object;

/// A new object must say nothing that only the server can know.
pub(super) fn settle_new_metadata(asked: &Asked<'_>, object: &mut Value, now: Timestamp) -> Result<(), Status> {
    if !object::text(object, "/metadata/resourceVersion").is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    check_place(asked, object)?;
    let kind = asked.kind();
    let namespace = asked.namespace();
    object::map_of(object).insert("apiVersion".into(), kind.api_version().into());
    object::map_of(object).insert("kind".into(), kind.kind.into());
    let metadata = object::metadata(object);
    for field in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"] {
        metadata.remove(field);
    }
    if kind.namespaced {
        metadata.insert("namespace".into(), namespace.into());
    } else {
        metadata.remove("namespace");
    }
    metadata.insert("uid".into(), object::new_uid().into());
    metadata.insert("creationTimestamp".into(), object::time(now).into());
    Ok(())
}

/// Owners that are named twice are one, and whoever wrote so is told. `when` says at which point it was seen.
pub(crate) fn name_owners_once(object: &mut Value, when: &str) -> Option<String> {
    let Some(Value::Array(owners)) = object.pointer_mut("/metadata/ownerReferences") else { return None };
    let mut once: Vec<Value> = Vec::with_capacity(owners.len());
    let mut seen = HashSet::new();
    let mut twice = Vec::new();
    for owner in std::mem::take(owners) {
        // Only an owner with the UID of another can be the same.
        if !seen.insert(object::text(&owner, "/uid").to_owned()) && once.contains(&owner) {
            twice.push(object::text(&owner, "/uid").to_owned());
        } else {
            once.push(owner);
        }
    }
    *owners = once;
    (!twice.is_empty()).then(|| {
        format!(
            ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and \
             may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            twice.join(", ")
        )
    })
}

pub(super) fn check_place(asked: &Asked<'_>, object: &Value) -> Result<(), Status> {
    let namespace = object::namespace(object);
    if asked.kind().namespaced && !namespace.is_empty() && namespace != asked.namespace() {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let name = object::name(object);
    if !asked.name().is_empty() && !name.is_empty() && name != asked.name() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            asked.name()
        )));
    }
    Ok(())
}

/// What is to take an object's place must say which object it is.
pub(crate) fn check_named(asked: &Asked<'_>, object: &Value) -> Result<(), Status> {
    check_place(asked, object)?;
    if object::name(object).is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            asked.name()
        )));
    }
    Ok(())
}

/// Who says which object is to be replaced means that one and no other of its name. A patch that says it is judged by its
/// outcome.
pub(crate) fn check_uid(asked: &Asked<'_>, object: &Value, found: &str) -> Result<(), Status> {
    let kind = asked.kind();
    let uid = object::text(object, "/metadata/uid");
    if uid.is_empty() || uid == found {
        return Ok(());
    }
    let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {found}");
    Err(Status::conflict(kind.group, kind.plural, asked.name(), &why))
}

/// Notes that `manager`, a part of the cluster itself, owns what it changed of an object's status.
pub(crate) fn own_status(kind: &Kind, manager: &str, (old, new): (&Value, &mut Value), now: &str) {
    let mut old = old.clone();
    let held = apply::take_managed_fields(&mut old);
    apply::take_managed_fields(new);
    let writer = Writer { manager, subresource: "status", now, translations: None };
    let owners = apply::update(kind, (Some(&old), held), (new, &Value::Null), writer);
    set_managed_fields(new, owners.managed_fields);
}

pub(crate) fn set_managed_fields(object: &mut Value, managed_fields: Value) {
    if !managed_fields.is_null() {
        object::metadata(object).insert("managedFields".into(), managed_fields);
    }
}
