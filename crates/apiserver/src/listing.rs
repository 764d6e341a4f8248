//! A list of stored objects -> the bytes that a client gets, piece by piece.
//!
//! Invariant: whatever its length, no more of a list takes form at once than a piece. Protobuf wants to know the length
//! of the whole first; so there every object takes form twice, once to be measured.

use bytes::Bytes;
use jiff::Timestamp;
use portolan_kinds::{KindRef, protobuf};
use portolan_store::{Entry, Key, Revision};
use serde_json::{Value, json};

use crate::accept::{Form, Media, View};
use crate::object;
use crate::show;
use crate::yaml;

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
    view: View,
    metadata: Value,
    entries: std::vec::IntoIter<(Key, Entry)>,
    /// How many of the objects are measured, and how long they are together.
    measured: (usize, usize),
    begun: bool,
    over: bool,
    now: Timestamp,
}

impl Listing {
    pub(crate) fn new(kind: &KindRef, entries: Vec<(Key, Entry)>, meta: &ListMeta, view: View) -> Self {
        let mut metadata = meta.to_json();
        if kind.is_custom() && view.form == Form::Whole && meta.continue_token.is_none() {
            metadata["continue"] = "".into();
        }
        Self {
            kind: kind.clone(),
            view,
            metadata,
            entries: entries.into_iter(),
            measured: (0, 0),
            begun: false,
            over: false,
            now: Timestamp::now(),
        }
    }

    /// About how many bytes it will be.
    pub(crate) fn size(&self) -> usize {
        self.entries.as_slice().iter().map(|(_, entry)| entry.value.len()).sum()
    }

    /// Whether some objects are still to be measured before there is a first piece.
    pub(crate) fn is_to_measure(&self) -> bool {
        self.view.media == Media::Protobuf && self.measured.0 < self.entries.len()
    }

    /// Measures some objects more.
    pub(crate) fn measure(&mut self) {
        let (count, _) = self.measured;
        let (mut some, mut bytes) = (0, 0);
        for (_, entry) in self.entries.as_slice().iter().skip(count).take(PIECE_OBJECTS) {
            let mut item = Vec::new();
            self.push(&entry.value, &mut item);
            some += 1;
            bytes += item.len();
            if bytes >= PIECE {
                break;
            }
        }
        self.measured.0 += some;
        self.measured.1 += bytes;
    }

    /// All of it at once.
    pub(crate) fn whole(mut self) -> Vec<u8> {
        while self.is_to_measure() {
            self.measure();
        }
        let mut whole = Vec::new();
        while !self.over {
            whole.append(&mut self.piece());
        }
        whole
    }

    /// What comes before the objects.
    fn head(&self) -> Vec<u8> {
        let (kind, api_version) = match self.view.form {
            Form::Table(rows) => ("Table".into(), rows.api_version().to_owned()),
            Form::Partial => ("PartialObjectMetadataList".into(), "meta.k8s.io/v1".to_owned()),
            Form::Whole => (self.kind.list_kind(), self.kind.api_version()),
        };
        let (items, columns) = match self.view.form {
            Form::Table(_) => ("rows", Some(Value::from(show::columns(&self.kind)))),
            _ => ("items", None),
        };
        let metadata = &self.metadata;
        match self.view.media {
            Media::Json => {
                let columns = columns.map(|columns| format!(r#""columnDefinitions":{columns},"#)).unwrap_or_default();
                format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{metadata},{columns}"{items}":["#)
                    .into_bytes()
            }
            Media::Yaml => {
                let mut list = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
                if let Some(columns) = columns {
                    list["columnDefinitions"] = columns;
                }
                let none = if self.entries.len() == 0 { " []" } else { "" };
                format!("{}{items}:{none}\n", yaml::document(&list)).into_bytes()
            }
            Media::Protobuf => protobuf::list_head(&api_version, &kind, metadata, self.measured.1),
        }
    }

    fn push(&self, stored: &Bytes, piece: &mut Vec<u8>) {
        let kind = &self.kind;
        match (self.view.media, self.view.form) {
            (Media::Json, Form::Table(rows)) => {
                piece.extend_from_slice(show::row(kind, stored, rows, self.now).to_string().as_bytes());
            }
            (Media::Json, Form::Partial) => {
                piece.extend_from_slice(br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","#);
                show::push_metadata(stored, piece);
            }
            (Media::Json, Form::Whole) if object::is_foreign(kind) => {
                piece.extend_from_slice(self.item(stored).to_string().as_bytes());
            }
            (Media::Json, Form::Whole) => {
                piece.push(b'{');
                piece.extend_from_slice(object::without_type(stored));
            }
            (Media::Yaml, _) => piece.extend_from_slice(yaml::item(self.item(stored)).as_bytes()),
            (Media::Protobuf, form) => {
                piece.extend(protobuf::item(&show::item(kind, stored, form, self.now)).unwrap_or_default());
            }
        }
    }

    /// An item; all have the same type, which those of defined kinds say all the same.
    fn item(&self, stored: &Bytes) -> Value {
        let mut item = show::item(&self.kind, stored, self.view.form, self.now);
        if self.view.form == Form::Whole && !self.kind.is_custom() {
            let map = object::map_of(&mut item);
            map.remove("apiVersion");
            map.remove("kind");
        }
        item
    }
}

impl Pieces for Listing {
    fn piece(&mut self) -> Vec<u8> {
        let is_json = self.view.media == Media::Json;
        let mut is_first = !std::mem::replace(&mut self.begun, true);
        let mut piece = if is_first { self.head() } else { Vec::new() };
        for _ in 0..PIECE_OBJECTS {
            if piece.len() >= PIECE {
                return piece;
            }
            let Some((_, entry)) = self.entries.next() else {
                if is_json {
                    piece.extend_from_slice(b"]}");
                }
                self.over = true;
                return piece;
            };
            if !std::mem::take(&mut is_first) && is_json {
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
