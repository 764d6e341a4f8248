//! A stored object -> the bytes that a client gets: whole, as the row of a table, or its metadata alone. Lists are
//! `listing`.

use bytes::Bytes;
use jiff::Timestamp;
use portolan_kinds::{Kind, protobuf};
use portolan_store::Revision;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::accept::{Form, Include, Media, Rows, View};
use crate::encode;
use crate::object;

/// One object.
pub(crate) fn one(kind: &Kind, stored: &Bytes, view: View) -> Bytes {
    match (view.form, view.media) {
        // In its final form already.
        (Form::Whole, Media::Json) if !object::is_foreign(kind) => stored.clone(),
        (Form::Partial, Media::Json) => {
            let mut bytes = br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","#.to_vec();
            push_metadata(stored, &mut bytes);
            bytes.into()
        }
        (Form::Table(rows), media) => {
            let revision = object::text(&object::decode(stored), "/metadata/resourceVersion").to_owned();
            encode::value(media, &table(kind, rows, &revision, row(kind, stored, rows, Timestamp::now()))).1
        }
        (form, media) => encode::value(media, &item(kind, stored, form, Timestamp::now())).1,
    }
}

/// What stands for an object in a list of this form.
pub(crate) fn item(kind: &Kind, stored: &Bytes, form: Form, now: Timestamp) -> Value {
    match form {
        Form::Whole => converted(kind, stored),
        Form::Partial => partial(object::decode(stored)["metadata"].take()),
        Form::Table(rows) => row(kind, stored, rows, now),
    }
}

fn converted(kind: &Kind, stored: &[u8]) -> Value {
    object::from_stored(kind, object::decode(stored))
}

/// `"metadata":{…}}`
pub(crate) fn push_metadata(stored: &[u8], bytes: &mut Vec<u8>) {
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

pub(crate) fn columns(kind: &Kind) -> Vec<Value> {
    let column = |column: &portolan_kinds::Column| {
        json!({
            "name": column.name, "type": column.kind, "format": column.format,
            "description": column.description, "priority": column.priority
        })
    };
    kind.columns().iter().map(column).collect()
}

/// A table with one row. What was only tried has no revision.
fn table(kind: &Kind, rows: Rows, revision: &str, row: Value) -> Value {
    let columns = if rows.goes_on { Value::Null } else { columns(kind).into() };
    let metadata = if revision.is_empty() { json!({}) } else { json!({"resourceVersion": revision}) };
    json!({
        "kind": "Table", "apiVersion": rows.api_version(), "metadata": metadata,
        "columnDefinitions": columns, "rows": [row]
    })
}

pub(crate) fn row(kind: &Kind, stored: &Bytes, rows: Rows, now: Timestamp) -> Value {
    let mut object = converted(kind, stored);
    let mut row = json!({"cells": kind.row(&object, now)});
    if let Some(conditions) = kind.row_conditions(&object) {
        row["conditions"] = conditions;
    }
    row["object"] = match rows.include {
        Include::None => Value::Null,
        Include::Metadata => beside(rows, object["metadata"].take()),
        Include::Object => object,
    };
    row
}

/// Metadata in a row.
fn beside(rows: Rows, metadata: Value) -> Value {
    let mut object = partial(metadata);
    object["apiVersion"] = rows.api_version().into();
    object
}

/// A part of a watch: what happened, and to what, which is in that media type.
pub(crate) fn push_event(media: Media, event: &str, object: &[u8], line: &mut Vec<u8>) {
    if media == Media::Protobuf {
        return line.extend(protobuf::watch_event(event, object));
    }
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(event.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
}

/// The object of a bookmark: nothing but how far the watch is, and whether the initial events end here.
pub(crate) fn bookmark(kind: &Kind, revision: Revision, initial_events_end: bool, view: View) -> Bytes {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if initial_events_end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let object = match view.form {
        Form::Whole => json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata}),
        Form::Partial => partial(metadata),
        // The row carries the annotation, since the metadata of a table has no place for it.
        Form::Table(rows) => {
            let cells = kind.row(&json!({}), Timestamp::now());
            let row = json!({"cells": cells, "object": beside(rows, metadata)});
            table(kind, rows, &revision.to_string(), row)
        }
    };
    encode::value(view.media, &object).1
}
