//! Sums, products and relations.

use std::cmp::Ordering;

use jiff::SignedDuration;
use jiff::civil::DateTime;

use super::time::within;
use super::{Found, fail};
use crate::cel::equal::order;
use crate::cel::room::Failure;
use crate::cel::value::Value;

pub(super) fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Found<'a>> {
    Some(match (function, args) {
        ("!_", [Value::Bool(value)]) => Ok(Value::Bool(!value)),
        ("-_", [Value::Int(number)]) => number.checked_neg().map(Value::Int).ok_or_else(overflow),
        ("-_", [Value::Double(number)]) => Ok(Value::Double(-number)),
        ("_<_" | "_<=_" | "_>_" | "_>=_", [one, other]) => return relation(function, one, other),
        ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", [one, other]) => return arithmetic(function, one, other),
        _ => return None,
    })
}

fn overflow() -> Failure {
    Failure::Other("integer overflow".to_owned())
}

fn relation<'a>(function: &str, one: &Value<'a>, other: &Value<'a>) -> Option<Found<'a>> {
    let Some(order) = order(one, other) else {
        // Of a number and what is none.
        let nan = |value: &Value<'_>| matches!(value, Value::Double(number) if number.is_nan());
        return (nan(one) || nan(other)).then(|| fail("NaN values cannot be ordered"));
    };
    Some(Ok(Value::Bool(match function {
        "_<_" => order == Ordering::Less,
        "_<=_" => order != Ordering::Greater,
        "_>_" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    })))
}

fn arithmetic<'a>(function: &str, one: &Value<'a>, other: &Value<'a>) -> Option<Found<'a>> {
    Some(match (one, other) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) if function == "_/_" => {
            fail("division by zero")
        }
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) if function == "_%_" => {
            fail("modulus by zero")
        }
        (Value::Int(one), Value::Int(other)) => match function {
            "_+_" => one.checked_add(*other),
            "_-_" => one.checked_sub(*other),
            "_*_" => one.checked_mul(*other),
            "_/_" => one.checked_div(*other),
            _ => one.checked_rem(*other),
        }
        .map(Value::Int)
        .ok_or_else(overflow),
        (Value::Uint(one), Value::Uint(other)) => match function {
            "_+_" => one.checked_add(*other),
            "_-_" => one.checked_sub(*other),
            "_*_" => one.checked_mul(*other),
            "_/_" => one.checked_div(*other),
            _ => one.checked_rem(*other),
        }
        .map(Value::Uint)
        .ok_or_else(|| Failure::Other("unsigned integer overflow".to_owned())),
        (Value::Double(one), Value::Double(other)) => Ok(Value::Double(match function {
            "_+_" => one + other,
            "_-_" => one - other,
            "_*_" => one * other,
            "_/_" => one / other,
            _ => return None,
        })),
        (Value::String(one), Value::String(other)) if function == "_+_" => {
            Ok(Value::text(format!("{}{}", &**one, &**other)))
        }
        (Value::Bytes(one), Value::Bytes(other)) if function == "_+_" => {
            Ok(Value::Bytes([&**one, &**other].concat().into()))
        }
        (Value::Duration(one), Value::Duration(other)) => duration(match function {
            "_+_" => one.checked_add(*other),
            "_-_" => one.checked_sub(*other),
            _ => return None,
        }),
        (Value::Timestamp(time), Value::Duration(by)) | (Value::Duration(by), Value::Timestamp(time))
            if function == "_+_" =>
        {
            timestamp(time.checked_add(*by).ok())
        }
        (Value::Timestamp(time), Value::Duration(by)) if function == "_-_" => timestamp(time.checked_sub(*by).ok()),
        (Value::Timestamp(one), Value::Timestamp(other)) if function == "_-_" => {
            duration(Some(one.duration_since(*other)))
        }
        _ => return None,
    })
}

/// Durations are as long as 64 bits of nanoseconds last.
fn duration<'a>(found: Option<SignedDuration>) -> Found<'a> {
    let found = found.filter(|found| i64::try_from(found.as_nanos()).is_ok());
    found.map(Value::Duration).ok_or_else(overflow)
}

fn timestamp<'a>(found: Option<DateTime>) -> Found<'a> {
    found.and_then(within).map(Value::Timestamp).ok_or_else(|| Failure::Other("timestamp overflow".to_owned()))
}
