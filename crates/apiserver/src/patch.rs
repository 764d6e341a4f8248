//! PATCH in three of its forms: a list of operations, a merge, and a merge by the kind's own rules. Server-side apply,
//! the fourth, is `apply`.
//!
//! Invariant: a patch that cannot be applied changes nothing.

use portolan_kinds::apply;
use portolan_kinds::patch::{self, Operations};
use portolan_kinds::{FieldValidation, Kind, Status, json_name};
use serde_json::Value;

use crate::body;
use crate::server::Server;
use crate::write::{self, Asked, Written};

/// At most this many unknown members of operations are named.
const MOST_UNKNOWN: usize = 100;
/// How a patch that is about owners is told by its text.
const MANAGED_FIELDS: &[u8] = b"managedFields";

pub(crate) async fn patch(server: &Server, asked: Asked<'_>, media: &str, bytes: &[u8]) -> Result<Written, Status> {
    let kind = asked.kind();
    let (patch, repeated) = Patch::parse(kind, media, bytes)?;
    let validation = asked.options.field_validation;
    if validation == FieldValidation::Warn {
        asked.warnings.add(repeated.iter().cloned());
    }
    // Few patches are about owners, and the others need not carry them along.
    let about_owners = bytes.windows(MANAGED_FIELDS.len()).any(|window| window == MANAGED_FIELDS);
    write::change(server, asked, false, |live| {
        let old = live.object;
        let mut patched = if about_owners {
            let mut old = old.clone();
            write::set_managed_fields(&mut old, live.held.clone());
            patch.to(kind, &old)?
        } else {
            patch.to(kind, old)?
        };
        apply::keep_reset(&mut patched);
        kind.refuse_repeated(&patched, &repeated, validation)?;
        let (mut object, unknown) = kind.decode(patched, validation)?;
        asked.warnings.add(unknown);
        asked.warnings.add(write::name_owners_once(&mut object, " after mutating admission happens"));
        write::check_named(&asked, &object)?;
        Ok(object.into())
    })
    .await
}

/// What no operation has.
fn unknown_members(patch: &Value) -> Vec<String> {
    let members = |(index, operation): (usize, &Value)| -> Vec<String> {
        let names = operation.as_object().into_iter().flat_map(serde_json::Map::keys);
        let unknown = names.filter(|name| !matches!(name.as_str(), "op" | "path" | "from" | "value"));
        unknown.map(|name| format!("unknown field \"[{index}].{name}\"")).collect()
    };
    patch.as_array().into_iter().flatten().enumerate().flat_map(members).take(MOST_UNKNOWN).collect()
}

pub(crate) enum Patch {
    Json(Operations),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// The patch, and what about its text is to be warned of.
    ///
    /// # Errors
    /// 415 for what is no patch of this kind, 400 for what is not what it says it is.
    pub(crate) fn parse(kind: &Kind, media: &str, bytes: &[u8]) -> Result<(Self, Vec<String>), Status> {
        let json = || body::json(bytes);
        match media {
            "application/json-patch+json" => {
                let (patch, repeated) = json()?;
                let unknown = unknown_members(&patch);
                let mistakes = repeated.into_iter().chain(unknown).map(|mistake| format!("json patch {mistake}"));
                Ok((Self::Json(Operations::parse(patch)?), mistakes.collect()))
            }
            "application/merge-patch+json" => match json()? {
                (patch @ Value::Object(_), repeated) => Ok((Self::Merge(patch), repeated)),
                (Value::Null, _) => Err(Status::bad_request("Invalid JSON Patch")),
                (other, _) => Err(Status::bad_request(format!(
                    "error decoding patch: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                    json_name(&other)
                ))),
            },
            // Nobody knows how the lists of a defined kind merge.
            "application/strategic-merge-patch+json" if !kind.is_custom() => {
                json().map(|(patch, repeated)| (Self::Strategic(patch), repeated))
            }
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
