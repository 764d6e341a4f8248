//! Turns the JSON a client sent into an object with known fields of the right types, in the form Kubernetes keeps it.
//!
//! Invariant: what comes out has no nulls, no unknown fields, no empty lists and no empty optional fields, so that equal
//! objects are equal values and a no-op update can be seen. Works in place and allocates only for errors.
//!
//! Deliberately not here: duplicate keys (whoever reads the text sees them), and what is required (validation says).

mod schemas;

use serde_json::Value;

use crate::look::Path;
use crate::quantity::{BAD_QUANTITY, Quantity};
use crate::schema::{Field, Scalar, Shape, Table, Type, table};
use crate::{FieldValidation, Kind, Status, protobuf};
use schemas::Choice;

/// At most this many unknown fields are named.
pub(crate) const MAX_WARNINGS: usize = 100;

/// Whole numbers are stored without a point, as Go writes them.
fn shorten_numbers(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(shorten_numbers),
        Value::Object(map) => map.values_mut().for_each(shorten_numbers),
        Value::Number(number) if number.is_f64() => {
            // Larger ones have no digits behind the point, but more than fit.
            const MOST: f64 = 9e18;
            if let Some(whole) = number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() <= MOST) {
                #[expect(clippy::cast_possible_truncation, reason = "whole, and within bounds")]
                let whole = whole as i64;
                *value = whole.into();
            }
        }
        _ => {}
    }
}

pub(crate) fn decode(
    kind: &Kind,
    mut body: Value,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let sent_kind = header(kind, &mut body)?;
    if let Some(custom) = &kind.custom {
        shorten_numbers(&mut body);
        return custom.decode(kind, &sent_kind, body, validation);
    }
    let mut unknown = Vec::new();
    check_type(kind.type_name(), &mut body, validation, &mut unknown).map_err(|why| {
        Status::bad_request(format!(
            "{sent_kind} in version \"{}\" cannot be handled as a {}: {why}",
            kind.version, kind.kind
        ))
    })?;
    if validation == FieldValidation::Strict && !unknown.is_empty() {
        return Err(not_strict(kind, &sent_kind, &unknown));
    }
    Ok((body, unknown))
}

pub(crate) fn not_strict(kind: &Kind, sent_kind: &str, mistakes: &[String]) -> Status {
    Status::bad_request(format!(
        "{sent_kind} in version \"{}\" cannot be handled as a {}: strict decoding error: {}",
        kind.version,
        kind.kind,
        mistakes.join(", ")
    ))
}

/// Checks the body of a request that is not stored, such as a TokenRequest, drops what no schema has, and names it.
///
/// # Errors
/// 400 for another kind, for values of a wrong type, and for unknown fields if validation is strict.
pub fn check(
    group: &str,
    version: &str,
    kind: &str,
    body: &mut Value,
    validation: FieldValidation,
) -> Result<Vec<String>, Status> {
    let expected = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let sent = |field: &str, or: &str| match body[field].as_str() {
        None | Some("") => or.to_owned(),
        Some(text) => text.to_owned(),
    };
    let (sent_version, sent) = (sent("apiVersion", &expected), sent("kind", kind));
    let wrong = |why: String| {
        Status::bad_request(format!("{sent} in version \"{version}\" cannot be handled as a {kind}: {why}"))
    };
    if sent != kind || sent_version != expected {
        return Err(wrong(another_kind(&sent_version, &sent, group, kind)));
    }
    let schema = protobuf::find(&expected, kind).map(|schema| schema.name).unwrap_or_default();
    let mut unknown = Vec::new();
    check_type(schema, body, validation, &mut unknown).map_err(wrong)?;
    if validation == FieldValidation::Strict && !unknown.is_empty() {
        return Err(wrong(format!("strict decoding error: {}", unknown.join(", "))));
    }
    Ok(unknown)
}

/// Why what was sent is none of the kind that is asked for.
fn another_kind(sent_version: &str, sent: &str, group: &str, kind: &str) -> String {
    let last = sent_version.rsplit('/').next().unwrap_or_default();
    // The package of Kubernetes that has the kind for all versions.
    let package = match group.split('.').next().unwrap_or_default() {
        "" | "events" => "core",
        package => package,
    };
    match protobuf::find(sent_version, sent) {
        Some(_) => format!("converting ({last}.{sent}) to ({package}.{kind}): unknown conversion"),
        None => format!(
            "no kind \"{sent}\" is registered for version \"{sent_version}\" in scheme \"pkg/api/legacyscheme/scheme.go:30\""
        ),
    }
}

/// Checks a body of any type of the table, such as `meta.v1.DeleteOptions`. The error is the message's tail.
fn check_type(
    type_name: &str,
    body: &mut Value,
    validation: FieldValidation,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    check_at(type_name, body, &Path::Root, validation, unknown)
}

/// The same for a part of a body.
pub(crate) fn check_at(
    type_name: &str,
    part: &mut Value,
    path: &Path<'_>,
    validation: FieldValidation,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    let table = table();
    let Some(schema) = table.find(type_name) else { return Err(format!("no kind \"{type_name}\" is registered")) };
    let mut walk = Walk { table, unknown, count: validation != FieldValidation::Ignore };
    walk.object(schema, part, path, None)
}

/// Checks and completes `apiVersion` and `kind`.
fn header(kind: &Kind, body: &mut Value) -> Result<String, Status> {
    let Value::Object(map) = body else {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: \
             json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \
             \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            kind.kind,
            json_name(body)
        )));
    };
    let expected = kind.api_version();
    let version = map.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    if !version.is_empty() && version != expected {
        return Err(Status::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({expected})"
        )));
    }
    let sent = map.get("kind").and_then(Value::as_str).unwrap_or_default();
    let sent = if sent.is_empty() { kind.kind.to_owned() } else { sent.to_owned() };
    if sent != kind.kind {
        return Err(Status::bad_request(format!(
            "{sent} in version \"{}\" cannot be handled as a {}: {}",
            kind.version,
            kind.kind,
            another_kind(&expected, &sent, kind.group, kind.kind)
        )));
    }
    if version.is_empty() && map.get("apiVersion").is_none_or(|v| v.is_string() || v.is_null()) {
        map.insert("apiVersion".into(), expected.into());
    }
    if map.get("kind").is_none_or(|v| v.is_null() || v.as_str() == Some("")) {
        map.insert("kind".into(), kind.kind.into());
    }
    Ok(sent)
}

/// The Go struct and field that a type error names.
#[derive(Clone, Copy)]
struct Place<'a> {
    owner: &'a Type,
    field: &'a Field,
}

struct Walk<'a> {
    table: &'static Table,
    unknown: &'a mut Vec<String>,
    count: bool,
}

impl Walk<'_> {
    fn object(
        &mut self,
        schema: &'static Type,
        value: &mut Value,
        path: &Path<'_>,
        place: Option<Place<'_>>,
    ) -> Result<(), String> {
        let Value::Object(map) = value else {
            return Err(type_error(json_name(value), path, place, schema.go_name()));
        };
        let mut failed = None;
        map.retain(|name, value| {
            if failed.is_some() {
                return true;
            }
            let outer = inlined(schema.name, name).map(|of| path.inlined(of));
            let here = outer.as_ref().unwrap_or(path).field(name);
            let Some(field) = schema.field(name) else {
                self.tell_unknown(&here);
                return false;
            };
            if value.is_null() {
                return false;
            }
            let place = Place { owner: schema, field };
            let checked = match Choice::of(schema.name, name) {
                Some(choice) => self.choice(choice, value, &here, place),
                None => self.value(&field.shape, value, &here, place),
            };
            if let Err(error) = checked {
                failed = Some(error);
                return true;
            }
            if value.is_null() {
                return false;
            }
            let is_list = matches!(field.shape, Shape::List(_) | Shape::Map(_));
            (field.always && !is_list) || !is_empty(field, value)
        });
        failed.map_or(Ok(()), Err)
    }

    fn tell_unknown(&mut self, path: &Path<'_>) {
        if self.count && self.unknown.len() < MAX_WARNINGS {
            self.unknown.push(format!("unknown field \"{path}\""));
        }
    }

    fn value(
        &mut self,
        shape: &'static Shape,
        value: &mut Value,
        path: &Path<'_>,
        place: Place<'_>,
    ) -> Result<(), String> {
        match shape {
            Shape::Object(index) => self.object(&self.table.types[*index], value, path, Some(place)),
            Shape::List(item) => {
                let Value::Array(items) = value else {
                    return Err(type_error(json_name(value), path, Some(place), &go_type(shape, place.field)));
                };
                for (index, element) in items.iter_mut().enumerate() {
                    if element.is_null() {
                        // As Go: a null item is the empty one.
                        *element = empty_of(item);
                    }
                    self.value(item, element, &path.index(index), place)?;
                }
                Ok(())
            }
            Shape::Map(item) => {
                let Value::Object(map) = value else {
                    return Err(type_error(json_name(value), path, Some(place), &go_type(shape, place.field)));
                };
                for (key, element) in map.iter_mut() {
                    if element.is_null() {
                        *element = empty_of(item);
                    }
                    self.value(item, element, &path.key(key), place)?;
                }
                Ok(())
            }
            Shape::Scalar(scalar) => scalar_value(*scalar, value, path, place),
        }
    }
}

fn scalar_value(scalar: Scalar, value: &mut Value, path: &Path<'_>, place: Place<'_>) -> Result<(), String> {
    let wrong =
        |value: &Value, basic: &str| type_error(json_name(value), path, Some(place), place.field.go.unwrap_or(basic));
    match scalar {
        Scalar::String => {
            if !value.is_string() {
                return Err(wrong(value, "string"));
            }
        }
        Scalar::Bool => {
            if !value.is_boolean() {
                return Err(wrong(value, "bool"));
            }
        }
        Scalar::Int32 | Scalar::Int64 => {
            let basic = if scalar == Scalar::Int32 { "int32" } else { "int64" };
            let Value::Number(number) = &*value else { return Err(wrong(value, basic)) };
            let fits = number.as_i64().is_some_and(|number| scalar == Scalar::Int64 || i32::try_from(number).is_ok());
            if !fits {
                let go = place.field.go.unwrap_or(basic);
                return Err(type_error(&format!("number {number}"), path, Some(place), go));
            }
        }
        Scalar::Float64 => {
            if !value.is_number() {
                return Err(wrong(value, "float64"));
            }
        }
        Scalar::Bytes => {
            let Value::String(text) = &*value else { return Err(wrong(value, "[]uint8")) };
            if let Some(at) = bad_base64(text) {
                return Err(format!("illegal base64 data at input byte {at}"));
            }
        }
        Scalar::Time | Scalar::MicroTime => {
            let Value::String(text) = &*value else {
                return Err(type_error(json_name(value), path, Some(place), "string"));
            };
            let canonical = canonical_time(text, scalar == Scalar::MicroTime)?;
            if let Some(canonical) = canonical {
                *value = Value::String(canonical);
            }
        }
        Scalar::Quantity => {
            let text = match &*value {
                Value::String(text) => text.trim().to_owned(),
                Value::Number(number) => number.to_string(),
                _ => return Err(BAD_QUANTITY.to_owned()),
            };
            let canonical = Quantity::parse(&text).ok_or(BAD_QUANTITY)?.to_string();
            if value.as_str() != Some(&canonical) {
                *value = Value::String(canonical);
            }
        }
        Scalar::IntOrString => match &*value {
            Value::String(_) => {}
            Value::Number(number) => {
                if number.as_i64().and_then(|n| i32::try_from(n).ok()).is_none() {
                    return Err(type_error(&format!("number {number}"), path, Some(place), "int32"));
                }
            }
            other => return Err(type_error(json_name(other), path, Some(place), "int32")),
        },
        Scalar::Any | Scalar::Json => {}
    }
    Ok(())
}

/// The Go struct that a field of a type stands in, if it is not the type's own.
fn inlined(owner: &str, field: &str) -> Option<&'static str> {
    match (owner.strip_prefix("core.v1.")?, field) {
        ("Volume", "name") | ("Probe", _) if !PROBES.contains(&field) => None,
        ("Volume", _) => Some("VolumeSource"),
        ("Probe", _) => Some("ProbeHandler"),
        ("EphemeralContainer", field) if field != "targetContainerName" => Some("EphemeralContainerCommon"),
        (
            "ConfigMapEnvSource"
            | "ConfigMapKeySelector"
            | "ConfigMapProjection"
            | "ConfigMapVolumeSource"
            | "SecretEnvSource"
            | "SecretKeySelector"
            | "SecretProjection",
            "name",
        ) => Some("LocalObjectReference"),
        _ => None,
    }
}

/// How a probe asks.
const PROBES: [&str; 4] = ["exec", "grpc", "httpGet", "tcpSocket"];

/// JSON types as Go's decoder names them.
pub fn json_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn type_error(got: &str, path: &Path<'_>, place: Option<Place<'_>>, go: &str) -> String {
    match place {
        Some(place) => format!(
            "json: cannot unmarshal {got} into Go struct field {}.{} of type {go}",
            place.owner.short_name(),
            path.fields_only()
        ),
        None => format!("json: cannot unmarshal {got} into Go value of type {go}"),
    }
}

fn go_type(shape: &Shape, field: &Field) -> String {
    match shape {
        Shape::Scalar(Scalar::Bool) => "bool".to_owned(),
        Shape::Scalar(Scalar::Int32) => "int32".to_owned(),
        Shape::Scalar(Scalar::Int64) => "int64".to_owned(),
        Shape::Scalar(Scalar::Float64) => "float64".to_owned(),
        Shape::Scalar(Scalar::Bytes) => "[]uint8".to_owned(),
        Shape::Scalar(Scalar::Quantity) => "resource.Quantity".to_owned(),
        Shape::Scalar(Scalar::Time) => "v1.Time".to_owned(),
        Shape::Scalar(_) => field.go.unwrap_or("string").to_owned(),
        Shape::Object(index) => table().types[*index].go_name().to_owned(),
        Shape::List(item) => format!("[]{}", go_type(item, field)),
        Shape::Map(item) if matches!(**item, Shape::Scalar(Scalar::Quantity)) => "v1.ResourceList".to_owned(),
        Shape::Map(item) => format!("map[string]{}", go_type(item, field)),
    }
}

/// Whether Go would leave the field out when it writes the object.
fn is_empty(field: &Field, value: &Value) -> bool {
    match (&field.shape, value) {
        (Shape::List(_), Value::Array(items)) => items.is_empty(),
        (Shape::Map(_), Value::Object(map)) => map.is_empty(),
        (Shape::Scalar(Scalar::IntOrString), _) => false,
        (Shape::Scalar(_), _) if field.pointer => false,
        (Shape::Scalar(_), Value::String(text)) => text.is_empty(),
        (Shape::Scalar(_), Value::Bool(flag)) => !flag,
        (Shape::Scalar(_), Value::Number(number)) => number.as_i64() == Some(0),
        _ => false,
    }
}

pub(crate) fn empty_of(shape: &Shape) -> Value {
    match shape {
        Shape::Scalar(Scalar::Bool) => false.into(),
        Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Float64) => 0.into(),
        Shape::Scalar(Scalar::Quantity) => "0".into(),
        Shape::Scalar(Scalar::Json) => Value::Null,
        Shape::Scalar(_) => "".into(),
        Shape::List(_) => Value::Array(Vec::new()),
        Shape::Object(_) | Shape::Map(_) => Value::Object(serde_json::Map::new()),
    }
}

/// The first byte that is not standard base64 with padding.
pub(crate) fn bad_base64(text: &str) -> Option<usize> {
    let bytes: Vec<(usize, u8)> = text.bytes().enumerate().filter(|(_, byte)| !matches!(byte, b'\r' | b'\n')).collect();
    let padding = bytes.iter().rev().take(2).take_while(|(_, byte)| *byte == b'=').count();
    let (data, _) = bytes.split_at(bytes.len() - padding);
    for (index, byte) in data {
        if !byte.is_ascii_alphanumeric() && !matches!(byte, b'+' | b'/') {
            return Some(*index);
        }
    }
    let whole = bytes.len().is_multiple_of(4) && data.len() % 4 != 1;
    // Go names the first byte of the group that has no end.
    if whole { None } else { Some(bytes.get(data.len() / 4 * 4).map_or(text.len(), |(index, _)| *index)) }
}

/// The time in the form that Kubernetes writes, or nothing if it is in that form already.
fn canonical_time(text: &str, micro: bool) -> Result<Option<String>, String> {
    let bytes = text.as_bytes();
    let length = if micro { 27 } else { 20 };
    let canonical = bytes.len() == length && bytes[length - 1] == b'Z' && bytes[10] == b'T';
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let time: jiff::Timestamp = text
        .parse()
        .map_err(|_| format!("parsing time \"{text}\" as \"{layout}\": cannot parse \"{text}\" as \"2006\""))?;
    if canonical {
        return Ok(None);
    }
    Ok(Some(if micro {
        format!("{time:.6}")
    } else {
        jiff::Timestamp::from_second(time.as_second()).map_or_else(|_| text.to_owned(), |time| time.to_string())
    }))
}

#[cfg(test)]
mod tests;
