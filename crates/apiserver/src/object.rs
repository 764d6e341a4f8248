//! JSON values <-> the bytes that are stored, and the metadata of either.
//!
//! Invariant: a stored object begins `{"apiVersion":"…","kind":"…","metadata":{"resourceVersion":"…"`. So its revision
//! can be written or changed, and its type left out, without parsing it; and a list is its members' bytes in a row.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use portolan_kinds::select::Labels;
use portolan_kinds::{Kind, Status, convert_event};
use portolan_store::{Document, Key, Prefix, Revision};
use serde::Deserialize;
use serde_json::{Map, Value};

const METADATA: &str = "\"metadata\":{\"resourceVersion\":\"";

/// Lists in lists in objects … of which one object may be made, its managed fields included. Programs that read JSON
/// give up at 128, and one such object would keep them from the whole list it is in.
const DEEPEST: usize = 100;

/// # Errors
/// 422 for an object that was made deeper, by whatever patches.
pub(crate) fn refuse_too_deep(object: &Value) -> Result<(), Status> {
    fn is_deeper(value: &Value, than: usize) -> bool {
        match value {
            Value::Object(map) => than == 0 || map.values().any(|member| is_deeper(member, than - 1)),
            Value::Array(items) => than == 0 || items.iter().any(|item| is_deeper(item, than - 1)),
            _ => false,
        }
    }
    if is_deeper(object, DEEPEST) {
        return Err(Status::unprocessable(format!("the object is nested more than {DEEPEST} levels deep")));
    }
    Ok(())
}

/// What an object is stored under. Events of both groups are the same objects.
pub(crate) fn key(kind: &Kind, namespace: &str, name: &str) -> Key {
    Key::new(stored_group(kind), kind.plural, namespace, name)
}

pub(crate) fn prefix(kind: &Kind, namespace: Option<&str>) -> Prefix {
    match namespace {
        Some(namespace) => Prefix::namespace(stored_group(kind), kind.plural, namespace),
        None => Prefix::resource(stored_group(kind), kind.plural),
    }
}

fn stored_group(kind: &Kind) -> &'static str {
    if is_event(kind) { "" } else { kind.group }
}

fn is_event(kind: &Kind) -> bool {
    kind.group == "events.k8s.io"
}

/// Whether objects of this kind may look otherwise than they are stored: stored as another kind or version, or written
/// before their definition was changed.
pub(crate) fn is_foreign(kind: &Kind) -> bool {
    is_event(kind) || kind.is_custom()
}

/// The kind that objects of `kind` are stored as.
pub(crate) fn stored_kind(kind: &Kind) -> &Kind {
    if is_event(kind) { portolan_kinds::find("", "v1", kind.plural).unwrap_or(kind) } else { kind }
}

/// What is stored for an object that came in as `kind`.
pub(crate) fn to_stored(kind: &Kind, object: Value) -> Value {
    if is_event(kind) { convert_event(&object, &stored_kind(kind).api_version()) } else { object }
}

/// A stored object as `kind`.
pub(crate) fn from_stored(kind: &Kind, stored: Value) -> Value {
    if is_event(kind) { convert_event(&stored, &kind.api_version()) } else { kind.read(stored) }
}

/// The version that a stored object is.
pub(crate) fn api_version(stored: &[u8]) -> &str {
    const FIRST: &[u8] = b"{\"apiVersion\":\"";
    let rest = stored.strip_prefix(FIRST).unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == b'"').unwrap_or(0);
    std::str::from_utf8(&rest[..end]).unwrap_or_default()
}

/// How long the type is in a stored object. Objects of one kind may have been stored as different versions.
fn type_meta_len(stored: &[u8]) -> usize {
    stored.windows(METADATA.len()).position(|window| window == METADATA.as_bytes()).unwrap_or(stored.len())
}

/// The bytes to store, with the place for the revision.
pub(crate) fn encode(kind: &Kind, object: &Value) -> Document {
    // Where versions differ in more than their name, an object is the one that it says.
    match kind.webhook() {
        Some(_) => written(text(object, "/apiVersion"), kind.kind, object, ""),
        None => written(&kind.stored_api_version(), kind.kind, object, ""),
    }
}

/// An object in the form that stored ones have, with its own type and revision; without one, as it is.
pub(crate) fn bytes(object: &Value) -> Bytes {
    match text(object, "/metadata/resourceVersion") {
        "" => object.to_string().into(),
        revision => written(text(object, "/apiVersion"), text(object, "/kind"), object, revision).bytes.into(),
    }
}

fn written(api_version: &str, kind: &str, object: &Value, revision: &str) -> Document {
    let mut bytes = format!("{{\"apiVersion\":\"{api_version}\",\"kind\":\"{kind}\",{METADATA}").into_bytes();
    let stamp_at = Some(bytes.len());
    bytes.extend_from_slice(revision.as_bytes());
    bytes.push(b'"');
    let members = |value: &Value, skip: &[&str], bytes: &mut Vec<u8>| {
        for (name, value) in value.as_object().into_iter().flatten() {
            if !skip.contains(&name.as_str()) {
                bytes.push(b',');
                write(bytes, name);
                bytes.push(b':');
                write(bytes, value);
            }
        }
    };
    members(&object["metadata"], &["resourceVersion"], &mut bytes);
    bytes.push(b'}');
    members(object, &["apiVersion", "kind", "metadata"], &mut bytes);
    bytes.push(b'}');
    Document { bytes, stamp_at }
}

/// Values and strings always serialize, and a `Vec` takes all that is written.
fn write(bytes: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    let _ = serde_json::to_writer(bytes, value);
}

/// A stored object without its `apiVersion` and `kind`, as it stands in a list: `{`, and then these bytes.
pub(crate) fn without_type(stored: &[u8]) -> &[u8] {
    stored.get(type_meta_len(stored)..).unwrap_or(stored)
}

/// A stored object with another revision: a deleted one carries that of its deletion.
pub(crate) fn restamped(stored: &[u8], revision: Revision) -> Bytes {
    let digits_at = type_meta_len(stored) + METADATA.len();
    let (before, after) = stored.split_at(digits_at.min(stored.len()));
    let end = after.iter().position(|byte| *byte == b'"').unwrap_or(0);
    let mut bytes = Vec::with_capacity(stored.len() + 20);
    bytes.extend_from_slice(before);
    bytes.extend_from_slice(revision.to_string().as_bytes());
    bytes.extend_from_slice(&after[end..]);
    bytes.into()
}

/// What is stored was JSON when it was stored; should it no longer be, it is as good as empty.
pub(crate) fn decode(stored: &[u8]) -> Value {
    serde_json::from_slice(stored).unwrap_or_default()
}

pub(crate) fn labels(stored: &[u8]) -> Labels {
    #[derive(Default, Deserialize)]
    struct Metadata {
        #[serde(default)]
        labels: Option<Labels>,
    }
    #[derive(Default, Deserialize)]
    struct Object {
        #[serde(default)]
        metadata: Metadata,
    }
    serde_json::from_slice::<Object>(stored).unwrap_or_default().metadata.labels.unwrap_or_default()
}

/// The string at a JSON pointer, or nothing.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub(crate) fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// The member `name` of an object, made an empty object if it is anything else.
pub(crate) fn member<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    let value = map_of(object).entry(name).or_insert(Value::Null);
    map_of(value)
}

pub(crate) fn map_of(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

pub(crate) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    member(object, "metadata")
}

pub(crate) fn spec(object: &mut Value) -> &mut Map<String, Value> {
    member(object, "spec")
}

pub(crate) fn has_items(object: &Value, pointer: &str) -> bool {
    object.pointer(pointer).and_then(Value::as_array).is_some_and(|items| !items.is_empty())
}

pub(crate) fn is_deleting(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

/// Kubernetes' form of a time: whole seconds, UTC.
pub(crate) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(crate) fn time_after(at: Timestamp, seconds: i64) -> String {
    time(at.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(at))
}

/// A random UUID, version 4.
pub(crate) fn new_uid() -> String {
    let bits = (rand::random::<u128>() & !(0xf000 << 64) & !(0xc000 << 48)) | (0x4000 << 64) | (0x8000 << 48);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored(kind: &Kind, object: &Value, revision: u64) -> Vec<u8> {
        let document = encode(kind, object);
        let mut bytes = document.bytes;
        let at = document.stamp_at.unwrap();
        bytes.splice(at..at, revision.to_string().bytes());
        bytes
    }

    #[test]
    fn encoding_keeps_everything_but_the_revision() {
        for kind in portolan_kinds::all() {
            let object = json!({
                "apiVersion": kind.api_version(), "kind": kind.kind,
                "metadata": {"name": "x", "annotations": {"a": "\"resourceVersion\":\"7\""}, "resourceVersion": "3"},
                "spec": {"x": [1, 2.5, null, "\u{1f600}"]}
            });
            let bytes = stored(kind, &object, 12);
            let mut expected = object.clone();
            expected["metadata"]["resourceVersion"] = "12".into();
            assert_eq!(decode(&bytes), expected);
            expected["metadata"]["resourceVersion"] = "345".into();
            assert_eq!(decode(&restamped(&bytes, Revision(345))), expected);
            let mut bare = vec![b'{'];
            bare.extend_from_slice(without_type(&bytes));
            let bare = decode(&bare);
            assert_eq!(bare["kind"], Value::Null);
            assert_eq!(bare["metadata"], decode(&bytes)["metadata"]);
        }
    }

    #[test]
    fn an_object_without_anything_is_still_json() {
        let pods = portolan_kinds::find("", "v1", "pods").unwrap();
        assert_eq!(decode(&stored(pods, &json!({}), 1))["metadata"]["resourceVersion"], "1");
    }

    #[test]
    fn uids_look_like_uids() {
        let uid = new_uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(&uid[14..15], "4");
        assert!(matches!(&uid[19..20], "8" | "9" | "a" | "b"));
        assert_ne!(uid, new_uid());
    }
}
