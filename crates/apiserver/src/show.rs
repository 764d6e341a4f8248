//! Stored objects -> the bytes that a client gets: whole, as rows of a table, or their metadata alone.

use bytes::Bytes;
use jiff::Timestamp;
use portolan_kinds::Kind;
use portolan_store::{Entry, Key, Revision};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::accept::{Form, Include};
use crate::object;

/// One object.
pub(crate) fn one(kind: &Kind, stored: &Bytes, form: Form) -> Bytes {
    match form {
        Form::Whole if object::is_foreign(kind) => converted(kind, stored).to_string().into(),
        Form::Whole => stored.clone(),
        Form::Partial => {
            let mut bytes = br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","#.to_vec();
            push_metadata(stored, &mut bytes);
            bytes.into()
        }
        Form::Table(include) => {
            let revision = object::text(&object::decode(stored), "/metadata/resourceVersion").to_owned();
            table(kind, [stored], json!({"resourceVersion": revision}), include).to_string().into()
        }
    }
}

fn converted(kind: &Kind, stored: &[u8]) -> Value {
    object::from_stored(kind, object::decode(stored))
}

/// `"metadata":{…}}`
fn push_metadata(stored: &[u8], bytes: &mut Vec<u8>) {
    #[derive(Deserialize)]
    struct Object<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    bytes.extend_from_slice(b"\"metadata\":");
    match serde_json::from_slice::<Object<'_>>(stored) {
        Ok(object) => bytes.extend_from_slice(object.metadata.get().as_bytes()),
        Err(_) => bytes.extend_from_slice(b"{}"),
    }
    bytes.push(b'}');
}

fn partial(metadata: Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

fn columns(kind: &Kind) -> Vec<Value> {
    let column = |column: &portolan_kinds::Column| {
        json!({
            "name": column.name, "type": column.kind, "format": column.format,
            "description": column.description, "priority": column.priority
        })
    };
    kind.columns().iter().map(column).collect()
}

fn table<'a>(kind: &Kind, objects: impl IntoIterator<Item = &'a Bytes>, metadata: Value, include: Include) -> Value {
    let now = Timestamp::now();
    let row = |stored: &Bytes| {
        let mut object = converted(kind, stored);
        let cells = kind.row(&object, now);
        let object = match include {
            Include::None => Value::Null,
            Include::Metadata => partial(object["metadata"].take()),
            Include::Object => object,
        };
        json!({"cells": cells, "object": object})
    };
    let rows: Vec<_> = objects.into_iter().map(row).collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns(kind), "rows": rows
    })
}

/// What a list says about itself.
pub(crate) struct ListMeta {
    pub(crate) revision: Revision,
    pub(crate) continue_token: Option<String>,
    pub(crate) remaining: Option<usize>,
}

impl ListMeta {
    fn to_json(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Some(token) = &self.continue_token {
            metadata["continue"] = token.as_str().into();
        }
        if let Some(remaining) = self.remaining.filter(|_| self.continue_token.is_some()) {
            metadata["remainingItemCount"] = remaining.into();
        }
        metadata
    }
}

pub(crate) fn list(kind: &Kind, entries: &[(Key, Entry)], meta: &ListMeta, form: Form) -> Vec<u8> {
    if let Form::Table(include) = form {
        let objects = entries.iter().map(|(_, entry)| &entry.value);
        return table(kind, objects, meta.to_json(), include).to_string().into_bytes();
    }
    let (list_kind, api_version) = match form {
        Form::Partial => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
        _ => (kind.kind, kind.api_version()),
    };
    let size: usize = entries.iter().map(|(_, entry)| entry.value.len() + 1).sum();
    let mut bytes = Vec::with_capacity(size + 200);
    bytes.extend_from_slice(
        format!(r#"{{"kind":"{list_kind}List","apiVersion":"{api_version}","metadata":{},"items":["#, meta.to_json())
            .as_bytes(),
    );
    for (index, (_, entry)) in entries.iter().enumerate() {
        if index > 0 {
            bytes.push(b',');
        }
        match form {
            Form::Partial => {
                bytes.extend_from_slice(br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","#);
                push_metadata(&entry.value, &mut bytes);
            }
            _ if object::is_foreign(kind) => {
                let mut item = converted(kind, &entry.value);
                let map = object::map_of(&mut item);
                map.remove("apiVersion");
                map.remove("kind");
                bytes.extend_from_slice(item.to_string().as_bytes());
            }
            _ => {
                bytes.push(b'{');
                bytes.extend_from_slice(object::without_type(kind, &entry.value));
            }
        }
    }
    bytes.extend_from_slice(b"]}");
    bytes
}

/// A line of a watch: what happened, and to what.
pub(crate) fn push_event(event: &str, object: &[u8], line: &mut Vec<u8>) {
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(event.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
}

/// The object of a bookmark: nothing but how far the watch is, and whether the initial events end here.
pub(crate) fn bookmark(kind: &Kind, revision: Revision, initial_events_end: bool, form: Form) -> Vec<u8> {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if initial_events_end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let object = match form {
        Form::Whole => json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata}),
        Form::Partial => partial(metadata),
        // The row carries the annotation, since the metadata of a table has no place for it.
        Form::Table(_) => json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision.to_string()},
            "columnDefinitions": columns(kind),
            "rows": [{"cells": vec![Value::Null; kind.columns().len()], "object": partial(metadata)}]
        }),
    };
    object.to_string().into_bytes()
}
