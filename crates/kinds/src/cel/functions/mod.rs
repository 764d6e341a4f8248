//! A function's name and its arguments -> what it yields.
//!
//! Invariant: whatever takes more than a moment, or makes more than a few values, asks for room first.
//! Errors have the words of cel-go and of Kubernetes' libraries.

mod convert;
mod format;
mod lists;
mod net;
mod operators;
mod show;
mod text;
mod time;
mod version;

use super::equal;
use super::evaluate;
use super::room::{Failure, Room};
use super::types::Type;
use super::value::{Map, Value};
use crate::quantity::Quantity;

pub(super) use format::FORMATS;
pub(super) use lists::sort_by;
pub use time::parse_duration;
pub(super) use time::{parse_date, parse_time};
pub(super) use version::Semver;

type Found<'a> = Result<Value<'a>, Failure>;

/// A failure in these words.
fn fail<T>(words: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Other(words.into()))
}

/// As messages show a value.
pub(super) fn shown(value: &Value<'_>) -> String {
    convert::text_of(value).unwrap_or_else(|| value.kind().name().to_owned())
}

/// Whether values of this type have an order.
pub(super) fn is_ordered(kind: &Type) -> bool {
    matches!(
        kind,
        Type::Bool
            | Type::Int
            | Type::Uint
            | Type::Double
            | Type::String
            | Type::Bytes
            | Type::Duration
            | Type::Timestamp
            | Type::Dyn
            | Type::Error
    )
}

/// Calls a function with its arguments, a target first.
pub(super) fn call<'a>(room: &mut Room, function: &str, args: &[Value<'a>]) -> Found<'a> {
    match (function, args) {
        ("_==_", [one, other]) => equal::equal(room, one, other).map(Value::Bool),
        ("_!=_", [one, other]) => equal::equal(room, one, other).map(|equal| Value::Bool(!equal)),
        ("@in", [wanted, whole]) => equal::contains(room, whole, wanted).map(Value::Bool),
        ("_[_]", [whole, key]) => evaluate::index(whole, key, false),
        ("_[?_]", [whole, key]) => evaluate::index(whole, key, true),
        ("_+_", [Value::List(one), Value::List(other)]) => equal::join(room, one, other).map(Value::List),
        ("type", [value]) => Ok(evaluate::kind_of(value)),
        ("dyn", [value]) => Ok(value.clone()),
        ("size", [value @ (Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_))]) => {
            Ok(Value::Int(i64::try_from(value.size()).unwrap_or(i64::MAX)))
        }
        _ => None
            .or_else(|| operators::call(function, args))
            .or_else(|| convert::call(function, args))
            .or_else(|| optional(function, args))
            .or_else(|| text::call(room, function, args))
            .or_else(|| lists::call(room, function, args))
            .or_else(|| time::call(function, args))
            .or_else(|| net::call(function, args))
            .or_else(|| quantity(function, args))
            .or_else(|| version::call(function, args))
            .or_else(|| format::call(function, args))
            .unwrap_or(Err(Failure::NoOverload)),
    }
}

fn optional<'a>(function: &str, args: &[Value<'a>]) -> Option<Found<'a>> {
    Some(match (function, args) {
        ("optional.of", [value]) => Ok(Value::some(value.clone())),
        ("optional.ofNonZeroValue", [value]) => {
            Ok(if is_zero(value) { Value::Optional(None) } else { Value::some(value.clone()) })
        }
        ("optional.none", []) => Ok(Value::Optional(None)),
        ("hasValue", [Value::Optional(inner)]) => Ok(Value::Bool(inner.is_some())),
        ("value", [Value::Optional(inner)]) => match inner {
            Some(value) => Ok((**value).clone()),
            None => fail("optional.none() dereference"),
        },
        _ => return None,
    })
}

fn is_zero(value: &Value<'_>) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Int(number) => *number == 0,
        Value::Uint(number) => *number == 0,
        Value::Double(number) => *number == 0.0,
        Value::Duration(duration) => duration.is_zero(),
        Value::Timestamp(time) => *time == jiff::civil::datetime(1, 1, 1, 0, 0, 0, 0),
        Value::Optional(inner) => inner.is_none(),
        Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_) => value.size() == 0,
        _ => false,
    }
}

fn quantity<'a>(function: &str, args: &[Value<'a>]) -> Option<Found<'a>> {
    let parse =
        |text: &str| Quantity::parse(text).ok_or_else(|| Failure::Other(crate::quantity::BAD_QUANTITY.to_owned()));
    let overflow = || Failure::Other("cannot convert value to integer".to_owned());
    Some(match (function, args) {
        ("quantity", [Value::String(text)]) => parse(text).map(Value::Quantity),
        ("isQuantity", [Value::String(text)]) => Ok(Value::Bool(parse(text).is_ok())),
        ("sign", [Value::Quantity(one)]) => Ok(Value::Int(one.sign())),
        ("isInteger", [Value::Quantity(one)]) => Ok(Value::Bool(one.as_integer().is_some())),
        ("asInteger", [Value::Quantity(one)]) => one.as_integer().map(Value::Int).ok_or_else(overflow),
        ("asApproximateFloat", [Value::Quantity(one)]) => Ok(Value::Double(one.as_float())),
        ("isGreaterThan", [Value::Quantity(one), Value::Quantity(other)]) => Ok(Value::Bool(one > other)),
        ("isLessThan", [Value::Quantity(one), Value::Quantity(other)]) => Ok(Value::Bool(one < other)),
        ("compareTo", [Value::Quantity(one), Value::Quantity(other)]) => {
            Ok(Value::Int(one.partial_cmp(other).map_or(0, |order| order as i64)))
        }
        ("add" | "sub", [Value::Quantity(one), other]) => {
            let other = match other {
                Value::Quantity(other) => *other,
                Value::Int(number) => Quantity::from_integer(*number),
                _ => return None,
            };
            let sum = if function == "add" { one.plus(&other) } else { one.minus(&other) };
            sum.map(Value::Quantity).ok_or_else(overflow)
        }
        _ => return None,
    })
}

/// The keys of a map as they are found in a query string.
fn map_of_lists<'a>(entries: std::collections::BTreeMap<super::value::Key, Value<'a>>) -> Value<'a> {
    Value::Map(Map::Made(std::rc::Rc::new(entries)))
}
