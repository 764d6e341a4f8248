//! PATCH in three of its forms: a list of operations, a merge, and a merge by the kind's own rules. Server-side apply, the
//! fourth, is `apply`.
//!
//! Invariant: a patch that cannot be applied changes nothing.

use json_patch::PatchOperation;
use portolan_kinds::apply;
use portolan_kinds::{Kind, Status};
use serde_json::Value;

use crate::body;
use crate::server::Server;
use crate::write::{self, Asked, Changed, Written};

/// How a patch that is about owners is told by its text.
const MANAGED_FIELDS: &[u8] = b"managedFields";

pub(crate) async fn patch(server: &Server, asked: Asked<'_>, media: &str, bytes: &[u8]) -> Result<Written, Status> {
    let kind = asked.kind();
    let patch = Patch::parse(kind, media, bytes)?;
    // Few patches are about owners, and the others need not carry them along.
    let about_owners = bytes.windows(MANAGED_FIELDS.len()).any(|window| window == MANAGED_FIELDS);
    write::change(server, asked, false, |old, held| {
        let mut patched = if about_owners {
            let mut old = old.clone();
            write::set_managed_fields(&mut old, held.clone());
            patch.to(kind, &old)?
        } else {
            patch.to(kind, old)?
        };
        apply::keep_reset(&mut patched);
        kind.decode(patched, asked.options.field_validation).map(Changed::from)
    })
    .await
}

/// A list of operations that cannot be carried out; clients show the reason as it is.
fn rejected(why: &dyn std::fmt::Display) -> Status {
    Status::unprocessable(format!("the server rejected our request due to an error in our request: {why}"))
}

pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// As kube-apiserver's own limit.
    const MOST_OPERATIONS: usize = 10_000;

    pub(crate) fn parse(kind: &Kind, media: &str, bytes: &[u8]) -> Result<Self, Status> {
        let json = || body::json(bytes);
        match media {
            "application/json-patch+json" => {
                let value = json()?;
                // As upstream has it: a list is a patch, though none of its operations may be one.
                let is_list = value.is_array();
                let patch: json_patch::Patch = serde_json::from_value(value).map_err(|error| match is_list {
                    true => rejected(&error),
                    false => Status::bad_request(format!("error decoding patch: {error}")),
                })?;
                if patch.0.len() > Self::MOST_OPERATIONS {
                    let most = Self::MOST_OPERATIONS;
                    let why =
                        format!("The allowed maximum operations in a JSON patch is {most}, got {}", patch.0.len());
                    return Err(Status::bad_request(why));
                }
                Ok(Self::Json(patch))
            }
            "application/merge-patch+json" => Ok(Self::Merge(json()?)),
            // Nobody knows how the lists of a defined kind merge.
            "application/strategic-merge-patch+json" if !kind.is_custom() => Ok(Self::Strategic(json()?)),
            _ if kind.is_custom() => Err(Status::unsupported_media_type(&[
                "application/json-patch+json",
                "application/merge-patch+json",
                crate::apply::MEDIA_TYPE,
            ])),
            _ => Err(Status::unsupported_media_type(&[
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/strategic-merge-patch+json",
                crate::apply::MEDIA_TYPE,
            ])),
        }
    }

    pub(crate) fn to(&self, kind: &Kind, old: &Value) -> Result<Value, Status> {
        match self {
            Self::Json(patch) => {
                let mut new = old.clone();
                let mut copied = 0;
                for (index, operation) in patch.0.iter().enumerate() {
                    // A few copies of copies would fill any memory.
                    if let PatchOperation::Copy(copy) = operation {
                        copied += copy.from.resolve(&new).map_or(0, |value| value.to_string().len());
                        if copied > body::LIMIT {
                            return Err(rejected(&format!(
                                "Unable to complete the copy, the accumulated size increase of copy is {copied}, \
                                 exceeding the limit {}",
                                body::LIMIT
                            )));
                        }
                    }
                    let applied = json_patch::patch_unsafe(&mut new, std::slice::from_ref(operation));
                    applied.map_err(|mut error| {
                        error.operation = index;
                        rejected(&error)
                    })?;
                }
                Ok(new)
            }
            Self::Merge(patch) => Ok(portolan_kinds::patch::json_merge(old, patch)),
            Self::Strategic(patch) => portolan_kinds::patch::strategic_merge(kind, old, patch),
        }
    }
}
