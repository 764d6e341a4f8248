//! A JSON value -> the bytes of an answer, in the media type that the client takes.

use bytes::Bytes;
use portolan_kinds::protobuf;
use serde_json::Value;

use crate::accept::Media;
use crate::yaml;

/// The bytes, and what they are: JSON, if protobuf has no message for it.
pub(crate) fn value(media: Media, value: &Value) -> (Media, Bytes) {
    let encoded = match media {
        Media::Json => None,
        Media::Yaml => Some(yaml::document(value).into_bytes()),
        Media::Protobuf => protobuf::from_json(value),
    };
    match encoded {
        Some(bytes) => (media, bytes.into()),
        None => (Media::Json, value.to_string().into()),
    }
}
