//! Stored objects -> the bytes that a client gets: whole, as rows of a table, or their metadata alone.

use bytes::Bytes;
use jiff::Timestamp;
use portolan_kinds::{Kind, KindRef};
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
            let row = row(kind, stored, include, Timestamp::now());
            table(kind, &[row], json!({"resourceVersion": revision})).to_string().into()
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

fn table(kind: &Kind, rows: &[Value], metadata: Value) -> Value {
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns(kind), "rows": rows
    })
}

fn row(kind: &Kind, stored: &Bytes, include: Include, now: Timestamp) -> Value {
    let mut object = converted(kind, stored);
    let cells = kind.row(&object, now);
    let object = match include {
        Include::None => Value::Null,
        Include::Metadata => partial(object["metadata"].take()),
        Include::Object => object,
    };
    json!({"cells": cells, "object": object})
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

/// A piece of a list or of a watch's first events is not made larger than this, give or take one object.
pub(crate) const PIECE: usize = 64 << 10;
/// Nor of more objects, since each may take a while to be put into form.
pub(crate) const PIECE_OBJECTS: usize = 256;

/// What is sent piece by piece, and takes form only as it is read.
pub(crate) trait Pieces {
    /// The next bytes.
    fn piece(&mut self) -> Vec<u8>;

    /// Whether that was the last.
    fn is_over(&self) -> bool;
}

/// A list on its way to a client.
pub(crate) struct Listing {
    kind: KindRef,
    form: Form,
    head: Option<String>,
    entries: std::vec::IntoIter<(Key, Entry)>,
    first: bool,
    over: bool,
    now: Timestamp,
}

impl Listing {
    pub(crate) fn new(kind: &KindRef, entries: Vec<(Key, Entry)>, meta: &ListMeta, form: Form) -> Self {
        let meta = meta.to_json();
        let head = match form {
            Form::Table(_) => format!(
                r#"{{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{meta},"columnDefinitions":{},"rows":["#,
                Value::from(columns(kind))
            ),
            Form::Partial => format!(
                r#"{{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{meta},"items":["#
            ),
            Form::Whole => {
                format!(
                    r#"{{"kind":"{}","apiVersion":"{}","metadata":{meta},"items":["#,
                    kind.list_kind(),
                    kind.api_version()
                )
            }
        };
        let entries = entries.into_iter();
        Self { kind: kind.clone(), form, head: Some(head), entries, first: true, over: false, now: Timestamp::now() }
    }

    /// About how many bytes it will be.
    pub(crate) fn size(&self) -> usize {
        self.entries.as_slice().iter().map(|(_, entry)| entry.value.len()).sum()
    }

    /// All of it at once.
    pub(crate) fn whole(mut self) -> Vec<u8> {
        let mut whole = Vec::new();
        while !self.over {
            whole.append(&mut self.piece());
        }
        whole
    }

    fn push(&self, stored: &Bytes, piece: &mut Vec<u8>) {
        let kind = &self.kind;
        match self.form {
            Form::Table(include) => {
                piece.extend_from_slice(row(kind, stored, include, self.now).to_string().as_bytes());
            }
            Form::Partial => {
                piece.extend_from_slice(br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","#);
                push_metadata(stored, piece);
            }
            Form::Whole if object::is_foreign(kind) => {
                let mut item = converted(kind, stored);
                let map = object::map_of(&mut item);
                map.remove("apiVersion");
                map.remove("kind");
                piece.extend_from_slice(item.to_string().as_bytes());
            }
            Form::Whole => {
                piece.push(b'{');
                piece.extend_from_slice(object::without_type(stored));
            }
        }
    }
}

impl Pieces for Listing {
    fn piece(&mut self) -> Vec<u8> {
        let mut piece = self.head.take().map(String::into_bytes).unwrap_or_default();
        for _ in 0..PIECE_OBJECTS {
            if piece.len() >= PIECE {
                return piece;
            }
            let Some((_, entry)) = self.entries.next() else {
                piece.extend_from_slice(b"]}");
                self.over = true;
                return piece;
            };
            if !std::mem::take(&mut self.first) {
                piece.push(b',');
            }
            self.push(&entry.value, &mut piece);
        }
        piece
    }

    fn is_over(&self) -> bool {
        self.over
    }
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
