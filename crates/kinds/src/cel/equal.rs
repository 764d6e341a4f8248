//! Whether two values are equal, and which of two comes first.
//!
//! Values of different types are unequal, but for numbers. Lists of an object that its schema calls sets or maps do not
//! care for order, whatever they are compared with; the one on the left decides.
//! Source: the language's definition; `valuesunstructured.go` of `k8s.io/apiserver/pkg/cel/common`.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value as Json;

use super::functions;
use super::room::{Failure, Room};
use super::shape::{Form, ListBy, Shape, escape};
use super::value::{Key, List, Map, Value};

pub(super) fn equal<'a>(room: &mut Room, one: &Value<'a>, other: &Value<'a>) -> Result<bool, Failure> {
    room.work(1)?;
    room.work_on(one)?;
    room.work_on(other)?;
    Ok(match (one, other) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(one), Value::Bool(other)) => one == other,
        (Value::String(one), Value::String(other)) if one.len() == other.len() => {
            room.work_through(one.len())?;
            **one == **other
        }
        (Value::Bytes(one), Value::Bytes(other)) => one == other,
        (Value::Duration(one), Value::Duration(other)) => one == other,
        (Value::Timestamp(one), Value::Timestamp(other)) => one == other,
        (Value::Type(one), Value::Type(other)) => one.name() == other.name(),
        (Value::Optional(None), Value::Optional(None)) => true,
        (Value::Optional(Some(one)), Value::Optional(Some(other))) => equal(room, one, other)?,
        (Value::Ip(one), Value::Ip(other)) => one == other,
        (Value::Cidr(one), Value::Cidr(other)) => one == other,
        (Value::Url(one), Value::Url(other)) => one == other,
        (Value::Quantity(one), Value::Quantity(other)) => one == other,
        (Value::Semver(one), Value::Semver(other)) => one.compare(other) == Ordering::Equal,
        (Value::Format(one), Value::Format(other)) => one == other,
        (Value::List(one), Value::List(other)) => lists(room, one, other)?,
        (Value::Map(one), Value::Map(other)) => maps(room, one, other)?,
        (Value::Int(_) | Value::Uint(_) | Value::Double(_), Value::Int(_) | Value::Uint(_) | Value::Double(_)) => {
            order(one, other) == Some(Ordering::Equal)
        }
        _ => false,
    })
}

fn lists<'a>(room: &mut Room, one: &List<'a>, other: &List<'a>) -> Result<bool, Failure> {
    if one.len() != other.len() {
        return Ok(false);
    }
    room.work(one.len() as u64)?;
    let Some(names) = Names::of(one.by()) else {
        for (one, other) in one.iter().zip(other.iter()) {
            if !equal(room, &one?, &other?)? {
                return Ok(false);
            }
        }
        return Ok(true);
    };
    let mut known = HashMap::new();
    for item in one.iter() {
        let item = item?;
        known.insert(names.name(room, &item)?, item);
    }
    for item in other.iter() {
        let item = item?;
        let Some(same) = known.get(&names.name(room, &item)?) else { return Ok(false) };
        if !equal(room, same, &item)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `one + other`. What the schema calls a set or a map stays one: its items keep their places, and those of the other
/// that are about the same take theirs.
pub(super) fn join<'a>(room: &mut Room, one: &List<'a>, other: &List<'a>) -> Result<List<'a>, Failure> {
    room.work((one.len() + other.len()) as u64)?;
    room.work_through(one.encoded() + other.encoded())?;
    let mut items = one.iter().collect::<Result<Vec<_>, _>>()?;
    match Names::of(one.by()) {
        None => {
            for item in other.iter() {
                items.push(item?);
            }
        }
        Some(names) => {
            let mut places = HashMap::new();
            for (place, item) in items.iter().enumerate() {
                places.insert(names.name(room, item)?, place);
            }
            for item in other.iter() {
                let item = item?;
                match places.entry(names.name(room, &item)?) {
                    Entry::Occupied(place) => items[*place.get()] = item,
                    Entry::Vacant(place) => {
                        place.insert(items.len());
                        items.push(item);
                    }
                }
            }
        }
    }
    Ok(List::Made { items: Rc::new(items), by: one.by() })
}

/// Which items of a set or a map are about the same: those with the same name.
enum Names {
    /// The whole item is its name.
    Item,
    /// The values of these fields are, which are written as in rules.
    Fields(Vec<String>),
}

impl Names {
    /// `None` if only places tell items apart.
    fn of(by: &ListBy) -> Option<Self> {
        match by {
            ListBy::Place => None,
            ListBy::Value => Some(Self::Item),
            ListBy::Keys(keys) => {
                Some(Self::Fields(keys.iter().map(|key| escape(key).unwrap_or_else(|| key.clone())).collect()))
            }
        }
    }

    fn name(&self, room: &mut Room, item: &Value<'_>) -> Result<String, Failure> {
        let mut name = String::new();
        match (self, item) {
            (Self::Fields(fields), Value::Map(map)) => {
                for field in fields {
                    if let Some(value) = map.field(field).transpose()? {
                        name.push_str(&scalar(&value));
                    }
                    name.push(',');
                }
            }
            _ => name.push_str(&scalar(item)),
        }
        room.work(1)?;
        room.work_through(name.len())?;
        Ok(name)
    }
}

/// Different for different values, of which a schema allows only scalars here.
fn scalar(value: &Value<'_>) -> String {
    match value {
        Value::String(text) => format!("{:?}", &**text),
        Value::Bytes(bytes) => format!("{bytes:?}"),
        other => format!("{} {}", other.kind().name(), functions::shown(other)),
    }
}

fn maps<'a>(room: &mut Room, one: &Map<'a>, other: &Map<'a>) -> Result<bool, Failure> {
    if one.len() != other.len() {
        return Ok(false);
    }
    if let (Map::Held(one, shape), Map::Held(other, _)) = (one, other) {
        return held(room, one, other, shape);
    }
    room.work(one.len() as u64)?;
    for key in one.keys() {
        let same = match (one.get(&key).transpose()?, other.get(&key).transpose()?) {
            (Some(one), Some(other)) => equal(room, &one, &other)?,
            _ => false,
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Objects of one shape; what the shape does not declare is compared as it stands.
fn held<'a>(
    room: &mut Room,
    one: &'a serde_json::Map<String, Json>,
    other: &'a serde_json::Map<String, Json>,
    shape: &'a Arc<Shape>,
) -> Result<bool, Failure> {
    for (name, value) in one {
        let Some(counterpart) = other.get(name) else { return Ok(false) };
        let of = match &shape.form {
            Form::Map(of) => Some(of),
            _ => escape(name).and_then(|name| shape.field(&name)).map(|field| &field.shape),
        };
        let same = match of {
            Some(of) if !value.is_null() && !counterpart.is_null() => {
                let (one, other) = (Value::held(value, of)?, Value::held(counterpart, of)?);
                equal(room, &one, &other)?
            }
            _ => {
                room.work(1 + u64::try_from(value.to_string().len()).unwrap_or(u64::MAX) / 16)?;
                value == counterpart
            }
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Which comes first, of what has an order.
pub(super) fn order(one: &Value<'_>, other: &Value<'_>) -> Option<Ordering> {
    #[allow(clippy::cast_precision_loss, reason = "a float is as near as it gets")]
    let float = |value: &Value<'_>| match value {
        Value::Int(number) => Some(*number as f64),
        Value::Uint(number) => Some(*number as f64),
        Value::Double(number) => Some(*number),
        _ => None,
    };
    let whole = |value: &Value<'_>| match value {
        Value::Int(number) => Some(i128::from(*number)),
        Value::Uint(number) => Some(i128::from(*number)),
        _ => None,
    };
    match (one, other) {
        (Value::Bool(one), Value::Bool(other)) => Some(one.cmp(other)),
        (Value::String(one), Value::String(other)) => Some((**one).cmp(&**other)),
        (Value::Bytes(one), Value::Bytes(other)) => Some(one.cmp(other)),
        (Value::Duration(one), Value::Duration(other)) => Some(one.cmp(other)),
        (Value::Timestamp(one), Value::Timestamp(other)) => Some(one.cmp(other)),
        _ => match (whole(one), whole(other)) {
            (Some(one), Some(other)) => Some(one.cmp(&other)),
            _ => float(one)?.partial_cmp(&float(other)?),
        },
    }
}

/// Whether a value is in a list, or a key in a map.
pub(super) fn contains<'a>(room: &mut Room, whole: &Value<'a>, wanted: &Value<'a>) -> Result<bool, Failure> {
    match whole {
        Value::List(list) => {
            for item in list.iter() {
                if equal(room, &item?, wanted)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Map(Map::Made(entries)) => Ok(Key::of(wanted).is_some_and(|key| entries.contains_key(&key))),
        Value::Map(map) => Ok(wanted.as_text().is_some_and(|wanted| map.has(wanted))),
        _ => Err(Failure::NoOverload),
    }
}
