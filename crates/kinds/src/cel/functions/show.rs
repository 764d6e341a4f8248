//! `text.format(values)`: values as the clauses of a text show them.
//!
//! Source: `ext/formatting.go` of cel-go, where numbers with a point are shown as English readers expect them.

use super::convert::text_of;
use super::{Found, fail};
use crate::cel::clauses::{self, Part};
use crate::cel::room::{Failure, Room};
use crate::cel::value::{List, Map, Value};

pub(super) fn format<'a>(room: &mut Room, template: &str, values: &List<'a>) -> Found<'a> {
    let mut out = String::new();
    let mut next = 0;
    let (parts, wrong) = clauses::parts(template);
    for part in parts {
        let (letter, digits) = match part {
            Part::Text(character) => {
                out.push(character);
                continue;
            }
            Part::Clause(letter, digits) => (letter, digits),
        };
        let Some(value) = values.get(next) else { return fail(format!("index {next} out of range")) };
        next += 1;
        let value = value?;
        if let Some(words) = clauses::refuses(letter, &value.kind()) {
            return fail(words);
        }
        let before = out.len();
        match (letter, &value) {
            ('s', Value::List(list)) => list_of(room, list, &mut out)?,
            ('s', Value::Map(map)) => map_of(room, map, &mut out)?,
            ('s', value) => out.push_str(&text(value)?),
            ('f' | 'e', value) => out.push_str(&with_point(letter, digits, value)?),
            _ => out.push_str(&clause(&value, letter)),
        }
        room.work((out.len() - before) as u64 / 16)?;
    }
    wrong.map_or(Ok(Value::text(out)), fail)
}

fn text(value: &Value<'_>) -> Result<String, Failure> {
    match value {
        Value::Null => Ok("null".to_owned()),
        Value::Type(kind) => Ok(kind.name().to_owned()),
        other => match text_of(other) {
            Some(text) => Ok(text),
            None => fail(format!("could not convert argument {:?} to string", other.kind().name())),
        },
    }
}

/// `%f` and `%e`
fn with_point(letter: char, digits: usize, value: &Value<'_>) -> Result<String, Failure> {
    let number = match value {
        Value::Double(number) => *number,
        Value::String(text) => match &**text {
            "NaN" => f64::NAN,
            "Infinity" => f64::INFINITY,
            "-Infinity" => f64::NEG_INFINITY,
            _ => return fail(clauses::misfit(letter, &value.kind())),
        },
        _ => return fail(clauses::misfit(letter, &value.kind())),
    };
    let sign = if number.is_sign_negative() { "-" } else { "" };
    let size = number.abs();
    if letter == 'e' {
        return Ok(format!("{:>digits$}", scientific(sign, size)));
    }
    if number.is_finite() {
        let shown = format!("{size:.digits$}");
        let (whole, fraction) = shown.split_at(shown.find('.').unwrap_or(shown.len()));
        return Ok(format!("{sign}{}{fraction}", grouped(whole)));
    }
    Ok(special(sign, size))
}

fn special(sign: &str, size: f64) -> String {
    if size.is_nan() { "NaN".to_owned() } else { format!("{sign}\u{221e}") }
}

/// With six digits behind the point; what is said to be their number is how wide upstream makes the whole.
fn scientific(sign: &str, size: f64) -> String {
    if !size.is_finite() {
        return special(sign, size);
    }
    let shown = format!("{size:.6e}");
    let (mantissa, exponent) = shown.split_once('e').unwrap_or((&shown, "0"));
    let (below, exponent) = exponent.strip_prefix('-').map_or(("", exponent), |rest| ("\u{207b}", rest));
    let raised = |digit: char| match digit {
        '1' => '\u{b9}',
        '2' => '\u{b2}',
        '3' => '\u{b3}',
        '4' => '\u{2074}',
        '5' => '\u{2075}',
        '6' => '\u{2076}',
        '7' => '\u{2077}',
        '8' => '\u{2078}',
        '9' => '\u{2079}',
        _ => '\u{2070}',
    };
    let exponent: String = format!("{exponent:0>2}").chars().map(raised).collect();
    format!("{sign}{mantissa}\u{d7}10{below}{exponent}")
}

/// With a comma before each three digits.
fn grouped(digits: &str) -> String {
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A value as a clause shows it that can show its type.
fn clause(value: &Value<'_>, letter: char) -> String {
    match (letter, value) {
        ('d', _) => text_of(value).unwrap_or_default(),
        ('b', Value::Bool(value)) => u8::from(*value).to_string(),
        ('x' | 'X', Value::String(text)) => hex(text.as_bytes(), letter == 'X'),
        ('x' | 'X', Value::Bytes(bytes)) => hex(bytes, letter == 'X'),
        (_, Value::Int(_) | Value::Uint(_)) => {
            let (negative, number) = match value {
                Value::Int(number) => (*number < 0, number.unsigned_abs()),
                Value::Uint(number) => (false, *number),
                _ => (false, 0),
            };
            let sign = if negative { "-" } else { "" };
            match letter {
                'b' => format!("{sign}{number:b}"),
                'o' => format!("{sign}{number:o}"),
                'x' => format!("{sign}{number:x}"),
                _ => format!("{sign}{number:X}"),
            }
        }
        _ => text_of(value).unwrap_or_default(),
    }
}

fn hex(bytes: &[u8], upper: bool) -> String {
    bytes.iter().map(|byte| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") }).collect()
}

fn list_of(room: &mut Room, list: &List<'_>, out: &mut String) -> Result<(), Failure> {
    out.push('[');
    for (index, item) in list.iter().enumerate() {
        out.push_str(if index == 0 { "" } else { ", " });
        literal(room, &item?, out)?;
    }
    out.push(']');
    Ok(())
}

fn map_of<'a>(room: &mut Room, map: &Map<'a>, out: &mut String) -> Result<(), Failure> {
    let mut entries = Vec::new();
    for key in map.keys() {
        let Some(value) = map.get(&key) else { continue };
        let mut entry = (String::new(), String::new());
        literal(room, &key, &mut entry.0)?;
        literal(room, &value?, &mut entry.1)?;
        entries.push(entry);
    }
    entries.sort();
    let entries: Vec<String> = entries.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
    room.work_through(entries.iter().map(String::len).sum())?;
    out.push('{');
    out.push_str(&entries.join(", "));
    out.push('}');
    Ok(())
}

/// A value within a list or a map: as a rule would write it.
fn literal(room: &mut Room, value: &Value<'_>, out: &mut String) -> Result<(), Failure> {
    room.work(1)?;
    match value {
        Value::List(list) => list_of(room, list, out)?,
        Value::Map(map) => map_of(room, map, out)?,
        Value::Double(number) if number.is_nan() => out.push_str("\"NaN\""),
        Value::Double(number) if number.is_infinite() => {
            out.push_str(if *number > 0.0 { "\"+Inf\"" } else { "\"-Inf\"" });
        }
        Value::Double(number) => out.push_str(&format!("{number:.6}")),
        Value::String(text) => quoted(text, out),
        Value::Bytes(_) => {
            out.push('b');
            quoted(&text(value)?, out);
        }
        Value::Timestamp(_) => out.push_str(&format!("timestamp(\"{}\")", text(value)?)),
        Value::Duration(_) => out.push_str(&format!("duration(\"{}\")", text(value)?)),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Type(_) => out.push_str(&text(value)?),
        other => return fail(format!("no formatting function for {}", other.kind().name())),
    }
    Ok(())
}

/// In quotes, as Go writes a text in its source.
fn quoted(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            other if other.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(other))),
            other if other.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(other))),
            other => out.push(other),
        }
    }
    out.push('"');
}
