//! PATCH in three of its forms: a list of operations, a merge, and a merge by the kind's own rules. Server-side apply,
//! the fourth, is `apply`.
//!
//! Invariant: a patch that cannot be applied changes nothing.

use portolan_kinds::apply;
use portolan_kinds::patch::{self, Operations};
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

pub(crate) enum Patch {
    Json(Operations),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    pub(crate) fn parse(kind: &Kind, media: &str, bytes: &[u8]) -> Result<Self, Status> {
        let json = || body::json(bytes);
        match media {
            "application/json-patch+json" => Operations::parse(json()?).map(Self::Json),
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
            Self::Json(patch) => patch.apply(old, body::LIMIT),
            Self::Merge(patch) => Ok(patch::json_merge(old, patch)),
            Self::Strategic(patch) => patch::strategic_merge(kind, old, patch),
        }
    }
}
