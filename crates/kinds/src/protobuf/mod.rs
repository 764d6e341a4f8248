//! Kubernetes' protobuf envelope <-> the JSON object that means the same.
//!
//! `kubectl create` and Go controllers send it and do not try again in JSON; `encode` answers them. Numbers of fields
//! come from the table of fields, where a path such as `2.4` is a field that Go embeds and protobuf nests.
//!
//! Invariant: never panics, never reads past its input, allocates no more than a small multiple of it; unknown fields
//! are skipped, as protobuf wants. The result is yet to be decoded like any JSON that a client sends.
//! Source: `runtime.Unknown` in apimachinery, the protobuf wire format.

mod definition;
mod encode;
mod wire;

pub use encode::{from_json, item, list_head, watch_event};
pub(crate) use wire::Message;

use serde_json::{Map, Value};

use crate::Status;
use crate::schema::{Field, Scalar, Shape, Type, table};

/// What such a body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Deepest nesting of messages, which bounds the stack.
const MAX_DEPTH: usize = 64;

/// The media type of such bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// The object in `body`, with its `apiVersion` and `kind`.
pub fn to_json(body: &[u8]) -> Result<Value, Status> {
    let Some(envelope) = body.strip_prefix(MAGIC) else {
        return Err(Status::bad_request(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]",
        ));
    };
    let bad = |why: &str| Status::bad_request(format!("unable to decode the protobuf body: {why}"));
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields(envelope) {
        match field.map_err(bad)? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields(meta) {
                    match field.map_err(bad)? {
                        (1, Wire::Bytes(bytes)) => version = text(bytes).map_err(bad)?,
                        (2, Wire::Bytes(bytes)) => kind = text(bytes).map_err(bad)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (3, Wire::Bytes(encoding)) if !encoding.is_empty() => return Err(bad("its content is encoded")),
            _ => {}
        }
    }
    let Some(schema) = find(&version, &kind) else {
        return Err(Status::bad_request(format!("no kind \"{kind}\" is registered for version \"{version}\"")));
    };
    let mut object = Map::new();
    message(schema, raw, &[], &mut object, 0).map_err(|why| {
        Status::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: proto: {why}"))
    })?;
    object.insert("apiVersion".to_owned(), version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

/// The type of an `apiVersion` and `kind`.
pub(crate) fn find(version: &str, kind: &str) -> Option<&'static Type> {
    let (group, version) = version.split_once('/').unwrap_or(("core", version));
    // Groups that somebody defined keep their dots, and so are no types' here.
    let group = [".authorization.k8s.io", ".k8s.io"].iter().find_map(|end| group.strip_suffix(end)).unwrap_or(group);
    let found = table().find(&format!("{group}.{version}.{kind}"));
    // Options of requests and what became of them belong to every group.
    let is_everywhere = kind == "Status" || kind.ends_with("Options");
    found.or_else(|| table().find(&format!("meta.{version}.{kind}")).filter(|_| is_everywhere))
}

type Failure = &'static str;

const SHORT: Failure = "unexpected EOF";
const WRONG: Failure = "wrong wireType for a field";

/// A field's value as it stands on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32,
    Bytes(&'a [u8]),
}

/// The fields of a message, one after another; ends after the first failure.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, Failure> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(SHORT)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("integer overflow")
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Failure> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Wire<'a>), Failure> {
        let key = self.varint()?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(self.take(8)?.try_into().map_err(|_| SHORT)?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| SHORT)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err("illegal wireType"),
        };
        if key >> 3 == 0 {
            return Err("illegal tag 0");
        }
        Ok((key >> 3, wire))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn text(bytes: &[u8]) -> Result<String, Failure> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a string is not UTF-8")
}

/// Reads the fields of a message into `object`. `prefix` is the path to a message that protobuf nests and JSON does
/// not, such as `[2]`.
fn message(
    schema: &'static Type,
    bytes: &[u8],
    prefix: &[u64],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Failure> {
    if depth > MAX_DEPTH {
        return Err("nested too deeply");
    }
    for field in Fields(bytes) {
        let (number, wire) = field?;
        let below =
            |field: &&'static Field| field.tag.strip_prefix(prefix).filter(|rest| rest.first() == Some(&number));
        let Some((field, rest)) = schema.numbered().find_map(|field| Some((field, below(&field)?))) else { continue };
        if rest.len() > 1 {
            if let Wire::Bytes(inner) = wire {
                message(schema, inner, &[prefix, &[number]].concat(), object, depth + 1)?;
            }
        } else if !definition::set(schema, field, wire, object, depth)? {
            set(field, wire, object, depth)?;
        }
    }
    Ok(())
}

fn set(field: &'static Field, wire: Wire<'_>, object: &mut Map<String, Value>, depth: usize) -> Result<(), Failure> {
    let value = match &field.shape {
        Shape::List(item) => {
            let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(items) = list {
                match (&**item, wire) {
                    // Numbers may come packed.
                    (Shape::Scalar(Scalar::Int32 | Scalar::Int64), Wire::Bytes(bytes)) => {
                        let mut packed = Fields(bytes);
                        while !packed.0.is_empty() {
                            items.push(packed.varint()?.cast_signed().into());
                        }
                    }
                    _ => items.push(value(item, wire, depth)?),
                }
            }
            return Ok(());
        }
        Shape::Map(item) => {
            let Wire::Bytes(entry) = wire else { return Err(WRONG) };
            let (mut key, mut found) = (String::new(), None);
            for field in Fields(entry) {
                match field? {
                    (1, Wire::Bytes(bytes)) => key = text(bytes)?,
                    (2, wire) => found = Some(value(item, wire, depth)?),
                    _ => {}
                }
            }
            let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                map.insert(key, found.unwrap_or_else(|| "".into()));
            }
            return Ok(());
        }
        shape => value(shape, wire, depth)?,
    };
    object.insert(field.name.to_owned(), value);
    Ok(())
}

fn value(shape: &'static Shape, wire: Wire<'_>, depth: usize) -> Result<Value, Failure> {
    let scalar = match shape {
        Shape::Scalar(scalar) => *scalar,
        Shape::Object(index) => {
            let Wire::Bytes(bytes) = wire else { return Err(WRONG) };
            let mut object = Map::new();
            message(&table().types[*index], bytes, &[], &mut object, depth + 1)?;
            return Ok(Value::Object(object));
        }
        // A map's value that is a list is a message of its own, as `ExtraValue` is.
        Shape::List(item) => {
            let Wire::Bytes(bytes) = wire else { return Err(WRONG) };
            let items = Fields(bytes).map(|field| match field? {
                (1, wire) => value(item, wire, depth + 1).map(Some),
                _ => Ok(None),
            });
            return items.filter_map(Result::transpose).collect::<Result<Vec<_>, _>>().map(Value::Array);
        }
        Shape::Map(_) => return Err("a map in a list"),
    };
    Ok(match (scalar, wire) {
        (Scalar::Bool, Wire::Varint(number)) => (number != 0).into(),
        (Scalar::Int32 | Scalar::Int64, Wire::Varint(number)) => number.cast_signed().into(),
        (Scalar::Float64, Wire::Fixed64(bytes)) => float(f64::from_le_bytes(bytes)),
        (Scalar::String, Wire::Bytes(bytes)) => text(bytes)?.into(),
        (Scalar::Bytes, Wire::Bytes(bytes)) => crate::defaults::encode_base64(bytes).into(),
        (Scalar::Quantity, Wire::Bytes(bytes)) => part(bytes, 1)?.map_or(Ok("0".to_owned()), text)?.into(),
        (Scalar::Any | Scalar::Json, Wire::Bytes(bytes)) => {
            part(bytes, 1)?.and_then(|raw| serde_json::from_slice(raw).ok()).unwrap_or(Value::Null)
        }
        (Scalar::Time | Scalar::MicroTime, Wire::Bytes(bytes)) => time(bytes, scalar == Scalar::MicroTime)?,
        (Scalar::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        _ => return Err(WRONG),
    })
}

/// As Go writes it in JSON, where 9.0 is 9.
#[allow(clippy::cast_possible_truncation, reason = "it is whole, and small enough")]
fn float(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() < EXACT { (number as i64).into() } else { number.into() }
}

/// A bytes field of a small message.
fn part(bytes: &[u8], wanted: u64) -> Result<Option<&[u8]>, Failure> {
    let mut found = None;
    for field in Fields(bytes) {
        if let (number, Wire::Bytes(bytes)) = field?
            && number == wanted
        {
            found = Some(bytes);
        }
    }
    Ok(found)
}

/// The zero time is written as nothing.
fn time(bytes: &[u8], micro: bool) -> Result<Value, Failure> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0_i64, 0_i64);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(number)) => seconds = number.cast_signed(),
            (2, Wire::Varint(number)) => nanos = number.cast_signed(),
            _ => {}
        }
    }
    let nanos = i32::try_from(nanos).map_err(|_| "a time is out of range")?;
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| "a time is out of range")?;
    Ok(if micro { format!("{time:.6}") } else { format!("{time:.0}") }.into())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, Failure> {
    let (mut is_text, mut number, mut words) = (false, 0_i64, String::new());
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(bytes)) => words = text(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { words.into() } else { number.into() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{FieldValidation, all};

    pub(super) fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    /// What kubectl 1.32 sends.
    const DEPLOYMENT: &str = "6b3873000a150a07617070732f7631120a4465706c6f796d656e7412c8010a1f0a0377656212001a0022002a003200380042005a0a0a0361707012037765621296010803120c0a0a0a0361707012037765621a7c0a1c0a0012001a0022002a003200380042005a0a0a036170701203776562125c123e0a08776f726b6c6f61641211706f72746f6c616e2f776f726b6c6f61642a00320b0a00100018903f22002a0042006a007200800100880100900100a201001a00320042004a0052005800600068008201008a01009a0100c2010022020a00280038001a0c0800100018002000280038001a002200";
    const SERVICE: &str = "6b3873000a0d0a027631120753657276696365126a0a1f0a0377656212001a0022002a003200380042005a0a0a03617070120377656212430a1d0a0738302d38303830120354435018502207080010903f1a002880eb01120a0a0361707012037765621a0022084e6f6465506f72743a00420052005a00600068001a020a001a002200";
    const SECRET: &str =
        "6b3873000a0c0a0276311206536563726574121d0a110a017312001a0022002a0032003800420012060a01611201621a001a002200";

    /// With a readiness probe, as Go clients send it.
    const POD: &str = "6b3873000a090a0276311203506f6412300a030a0170122912270a01631201695a1f0a1b12190a082f6865616c74687a1205080010933f1a00220448545450100a";

    #[test]
    fn what_clients_send() {
        for (hex, expected) in [
            (
                POD,
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
                       "spec": {"containers": [{"name": "c", "image": "i", "readinessProbe": {
                           "httpGet": {"path": "/healthz", "port": 8083, "scheme": "HTTP"}, "initialDelaySeconds": 10}}]}}),
            ),
            (
                SERVICE,
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "labels": {"app": "web"}},
                       "spec": {"type": "NodePort", "selector": {"app": "web"},
                                "ports": [{"name": "80-8080", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": 30080}]},
                       "status": {"loadBalancer": {}}}),
            ),
            (
                DEPLOYMENT,
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
                       "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "strategy": {},
                                "template": {"metadata": {"labels": {"app": "web"}},
                                             "spec": {"containers": [{"name": "workload", "image": "portolan/workload",
                                                                      "ports": [{"containerPort": 8080}], "resources": {}}]}}},
                       "status": {}}),
            ),
            (SECRET, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "Yg=="}})),
        ] {
            let sent = to_json(&bytes(hex)).unwrap();
            let kind = all().iter().find(|kind| kind.kind == expected["kind"]).unwrap();
            let (object, warnings) = kind.decode(sent, FieldValidation::Strict).unwrap();
            assert_eq!(object, expected);
            assert!(warnings.is_empty());
        }
    }

    #[test]
    fn embedded_fields_and_odd_types() {
        // A volume's source is nested, a probe's handler too, each one message deeper than JSON has it.
        let field = |number: u8, inner: &[u8]| {
            let mut all = vec![number << 3 | 2, u8::try_from(inner.len()).unwrap()];
            all.extend(inner);
            all
        };
        let volume = [field(1, b"v"), field(2, &field(2, &field(1, b"")))].concat();
        let spec = field(2, &field(1, &volume));
        let meta = field(1, &field(8, &[0x08, 0x80, 0x92, 0xb8, 0xc3, 0x06]));
        let envelope =
            [field(1, &[field(1, b"v1"), field(2, b"Pod")].concat()), field(2, &[meta, spec].concat())].concat();
        let body = [MAGIC, &envelope].concat();
        assert_eq!(
            to_json(&body).unwrap(),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"creationTimestamp": "2025-07-09T06:15:28Z"},
                   "spec": {"volumes": [{"name": "v", "emptyDir": {"medium": ""}}]}})
        );
    }

    #[test]
    fn mistakes() {
        for (body, message) in [
            (b"{}".to_vec(), "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"),
            (b"k8s\0".to_vec(), "no kind \"\" is registered for version \"\""),
            (b"k8s\0\x0a".to_vec(), "unable to decode the protobuf body: unexpected EOF"),
            (b"k8s\0\x0a\x05".to_vec(), "unable to decode the protobuf body: unexpected EOF"),
            (
                b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12\x02\x08\x01".to_vec(),
                "Pod in version \"v1\" cannot be handled as a Pod: proto: wrong wireType for a field",
            ),
        ] {
            assert_eq!(to_json(&body).unwrap_err().message(), message);
        }
    }

    proptest! {
        /// Damage of any kind yields an object or an error.
        #[test]
        fn damaged_bodies(at in 4_usize..200, byte: u8, cut in 0_usize..220) {
            for hex in [DEPLOYMENT, SERVICE, SECRET] {
                let mut body = bytes(hex);
                if let Some(place) = body.get_mut(at) {
                    *place = byte;
                }
                body.truncate(cut);
                let _ = to_json(&body);
            }
        }
    }
}
