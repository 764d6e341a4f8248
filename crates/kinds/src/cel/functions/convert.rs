//! Conversions between the language's own types.

use super::time::{from_seconds, parse_duration, parse_time, seconds, show_duration};
use super::{Found, fail};
use crate::cel::room::Failure;
use crate::cel::value::Value;

pub(super) fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Found<'a>> {
    let [value] = args else { return None };
    Some(match (function, value) {
        ("bool", Value::Bool(_))
        | ("bytes", Value::Bytes(_))
        | ("double", Value::Double(_))
        | ("duration", Value::Duration(_))
        | ("int", Value::Int(_))
        | ("string", Value::String(_))
        | ("timestamp", Value::Timestamp(_))
        | ("uint", Value::Uint(_)) => Ok(value.clone()),
        ("bool", Value::String(text)) => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => wrong(value, "bool"),
        },
        ("bytes", Value::String(text)) => Ok(Value::Bytes(text.as_bytes().into())),
        #[allow(clippy::cast_precision_loss, reason = "a float is as near as it gets")]
        ("double", Value::Int(number)) => Ok(Value::Double(*number as f64)),
        #[allow(clippy::cast_precision_loss, reason = "a float is as near as it gets")]
        ("double", Value::Uint(number)) => Ok(Value::Double(*number as f64)),
        ("double", Value::String(text)) => match text.parse::<f64>() {
            // What has digits and is infinite is too large for a float.
            Ok(number) if number.is_infinite() && text.contains(|c: char| c.is_ascii_digit()) => wrong(value, "double"),
            Ok(number) => Ok(Value::Double(number)),
            Err(_) => wrong(value, "double"),
        },
        // Declared, and yet there is no such conversion.
        ("duration", Value::Int(_)) => wrong(value, "google.protobuf.Duration"),
        ("duration", Value::String(text)) => {
            parse_duration(text).map(Value::Duration).map_or_else(|| wrong(value, "google.protobuf.Duration"), Ok)
        }
        #[allow(clippy::cast_possible_truncation, reason = "only within the range")]
        ("int", Value::Double(number)) if number.abs() < 9.223_372_036_854_775e18 => Ok(Value::Int(*number as i64)),
        ("int", Value::Uint(number)) => {
            i64::try_from(*number).map(Value::Int).map_err(|_| overflow("integer overflow"))
        }
        ("int", Value::Double(_)) => fail("integer overflow"),
        ("int", Value::Duration(duration)) => {
            i64::try_from(duration.as_nanos()).map(Value::Int).map_err(|_| overflow("integer overflow"))
        }
        ("int", Value::Timestamp(time)) => Ok(Value::Int(seconds(*time))),
        ("int", Value::String(text)) => match text.parse() {
            Ok(number) => Ok(Value::Int(number)),
            Err(_) => wrong(value, "int"),
        },
        ("uint", Value::Int(number)) => {
            u64::try_from(*number).map(Value::Uint).map_err(|_| overflow("unsigned integer overflow"))
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "only within the range")]
        ("uint", Value::Double(number)) if (0.0..1.844_674_407_370_955e19).contains(number) => {
            Ok(Value::Uint(*number as u64))
        }
        ("uint", Value::Double(_)) => fail("unsigned integer overflow"),
        ("uint", Value::String(text)) => match text.parse() {
            Ok(number) if !text.starts_with('+') => Ok(Value::Uint(number)),
            _ => wrong(value, "uint"),
        },
        ("timestamp", Value::Int(seconds)) => {
            from_seconds(*seconds).map(Value::Timestamp).ok_or_else(|| overflow("timestamp overflow"))
        }
        ("timestamp", Value::String(text)) => {
            parse_time(text).map(Value::Timestamp).map_or_else(|| wrong(value, "google.protobuf.Timestamp"), Ok)
        }
        ("string", _) => match (text_of(value), value) {
            (Some(text), _) => Ok(Value::text(text)),
            (None, Value::Bytes(_)) => fail("invalid UTF-8 in bytes, cannot convert to string"),
            (None, _) => return None,
        },
        _ => return None,
    })
}

fn overflow(words: &str) -> Failure {
    Failure::Other(words.to_owned())
}

fn wrong<'a>(value: &Value<'_>, to: &str) -> Found<'a> {
    fail(format!("type conversion error from '{}' to '{to}'", value.kind().name()))
}

/// What `string(value)` yields.
pub(super) fn text_of(value: &Value<'_>) -> Option<String> {
    Some(match value {
        Value::Bool(value) => value.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => number.to_string(),
        Value::Double(number) => show_float(*number),
        Value::String(text) => text.to_string(),
        Value::Bytes(bytes) => String::from_utf8(bytes.to_vec()).ok()?,
        Value::Duration(duration) => show_duration(*duration),
        Value::Timestamp(time) => format!("{time}Z"),
        Value::Ip(ip) => ip.to_string(),
        Value::Cidr(cidr) => cidr.to_string(),
        _ => return None,
    })
}

/// A float as Go's `%g` shows it.
pub(super) fn show_float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let exponential = format!("{number:e}");
    let (digits, exponent) = exponential.split_once('e').unwrap_or((&exponential, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if number != 0.0 && !(-4..6).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{number}"),
    }
}
