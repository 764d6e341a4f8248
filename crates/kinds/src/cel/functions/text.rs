//! Functions of texts. Places in a text are counted in characters.

use super::convert::{show_float, text_of};
use super::{Found, fail};
use crate::cel::clauses::{self, Part};
use crate::cel::room::{Failure, Room};
use crate::cel::value::{List, Map, Value};

pub(super) fn call<'a>(room: &mut Room, function: &str, args: &[Value<'a>]) -> Option<Found<'a>> {
    if let ("join", [Value::List(list), rest @ ..]) = (function, args) {
        return Some(join(room, list, rest));
    }
    let [Value::String(text), rest @ ..] = args else { return None };
    let text: &str = text;
    Some(match (function, rest) {
        ("contains", [Value::String(part)]) => Ok(Value::Bool(text.contains(&**part))),
        ("startsWith", [Value::String(part)]) => Ok(Value::Bool(text.starts_with(&**part))),
        ("endsWith", [Value::String(part)]) => Ok(Value::Bool(text.ends_with(&**part))),
        ("matches", [Value::String(pattern)]) => room.pattern(pattern).map(|regex| Value::Bool(regex.is_match(text))),
        ("find", [Value::String(pattern)]) => room
            .pattern(pattern)
            .map_err(illegal)
            .map(|regex| Value::text(regex.find(text).map_or("", |found| found.as_str()))),
        ("findAll", [Value::String(pattern)]) => find_all(room, text, pattern, -1),
        ("findAll", [Value::String(pattern), Value::Int(limit)]) => find_all(room, text, pattern, *limit),
        ("charAt", [Value::Int(at)]) => char_at(text, *at),
        ("indexOf", [Value::String(part)]) => index_of(text, part, 0),
        ("indexOf", [Value::String(part), Value::Int(from)]) => index_of(text, part, *from),
        ("lastIndexOf", [Value::String(part)]) => last_index_of(text, part, None),
        ("lastIndexOf", [Value::String(part), Value::Int(to)]) => last_index_of(text, part, Some(*to)),
        ("lowerAscii", []) => Ok(Value::text(text.to_ascii_lowercase())),
        ("upperAscii", []) => Ok(Value::text(text.to_ascii_uppercase())),
        ("trim", []) => Ok(Value::text(text.trim())),
        ("replace", [Value::String(old), Value::String(new)]) => replace(room, text, old, new, -1),
        ("replace", [Value::String(old), Value::String(new), Value::Int(limit)]) => {
            replace(room, text, old, new, *limit)
        }
        ("split", [Value::String(by)]) => split(room, text, by, -1),
        ("split", [Value::String(by), Value::Int(limit)]) => split(room, text, by, *limit),
        ("substring", [Value::Int(from)]) => substring(text, *from, None),
        ("substring", [Value::Int(from), Value::Int(to)]) => substring(text, *from, Some(*to)),
        ("strings.quote", []) => Ok(Value::text(quote(text))),
        ("format", [Value::List(values)]) => format(room, text, values),
        _ => return None,
    })
}

fn illegal(failure: Failure) -> Failure {
    match failure {
        Failure::Other(why) => Failure::Other(format!("Illegal regex: {why}")),
        other => other,
    }
}

fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

fn out_of_range<'a>(index: i64) -> Found<'a> {
    fail(format!("index out of range: {index}"))
}

fn find_all<'a>(room: &mut Room, text: &str, pattern: &str, limit: i64) -> Found<'a> {
    room.work(text.len() as u64)?;
    let regex = room.pattern(pattern).map_err(illegal)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok(Value::list(regex.find_iter(text).take(limit).map(|found| Value::text(found.as_str())).collect()))
}

fn char_at<'a>(text: &str, at: i64) -> Found<'a> {
    let length = text.chars().count();
    match usize::try_from(at) {
        Ok(at) if at <= length => Ok(Value::text(text.chars().nth(at).map(String::from).unwrap_or_default())),
        _ => out_of_range(at),
    }
}

/// The byte at which the character of this index begins.
fn byte_of(text: &str, index: usize) -> usize {
    text.char_indices().nth(index).map_or(text.len(), |(byte, _)| byte)
}

fn index_of<'a>(text: &str, part: &str, from: i64) -> Found<'a> {
    if part.is_empty() {
        return Ok(Value::Int(from));
    }
    let Ok(start) = usize::try_from(from) else { return out_of_range(from) };
    let byte = byte_of(text, start);
    let found = text[byte..].find(part).map(|at| text[..byte + at].chars().count());
    Ok(Value::Int(found.map_or(-1, count)))
}

fn last_index_of<'a>(text: &str, part: &str, to: Option<i64>) -> Found<'a> {
    let length = text.chars().count();
    if part.is_empty() {
        return Ok(Value::Int(to.unwrap_or(count(length))));
    }
    let end = match to.map(|to| (to, usize::try_from(to))) {
        None => text.len(),
        Some((to, Err(_))) => return out_of_range(to),
        Some((_, Ok(to))) if to >= length => return Ok(Value::Int(-1)),
        Some((_, Ok(to))) => byte_of(text, to.saturating_add(part.chars().count())),
    };
    let found = text[..end].rfind(part).map(|at| text[..at].chars().count());
    Ok(Value::Int(found.map_or(-1, count)))
}

fn replace<'a>(room: &mut Room, text: &str, old: &str, new: &str, limit: i64) -> Found<'a> {
    let most = if old.is_empty() { text.chars().count() + 1 } else { text.len() / old.len() };
    let times = usize::try_from(limit).map_or(most, |limit| limit.min(most));
    room.work(times.saturating_mul(new.len()) as u64)?;
    Ok(Value::text(text.replacen(old, new, times)))
}

fn split<'a>(room: &mut Room, text: &str, by: &str, limit: i64) -> Found<'a> {
    room.work(text.len() as u64)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if limit == 0 {
        return Ok(Value::list(Vec::new()));
    }
    if !by.is_empty() {
        return Ok(Value::list(text.splitn(limit, by).map(Value::text).collect()));
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let end = if parts.len() + 1 == limit { rest.len() } else { next.len_utf8() };
        parts.push(Value::text(&rest[..end]));
        rest = &rest[end..];
    }
    Ok(Value::list(parts))
}

fn substring<'a>(text: &str, from: i64, to: Option<i64>) -> Found<'a> {
    let length = count(text.chars().count());
    let end = to.unwrap_or(length);
    if from > end && to.is_some() {
        return fail(format!("invalid substring range. start: {from}, end: {end}"));
    }
    if !(0..=length).contains(&from) {
        return out_of_range(from);
    }
    if !(0..=length).contains(&end) {
        return out_of_range(end);
    }
    let characters = text.chars().skip(usize::try_from(from).unwrap_or(0));
    Ok(Value::text(characters.take(usize::try_from(end - from).unwrap_or(0)).collect::<String>()))
}

fn join<'a>(room: &mut Room, list: &List<'a>, rest: &[Value<'a>]) -> Found<'a> {
    let between = match rest {
        [] => "",
        [Value::String(between)] => between,
        _ => return Err(Failure::NoOverload),
    };
    let mut joined = String::new();
    for (index, item) in list.iter().enumerate() {
        let item = item?;
        let Some(item) = item.as_text() else { return Err(Failure::NoOverload) };
        room.work(1 + (item.len() + between.len()) as u64 / 16)?;
        joined.push_str(if index == 0 { "" } else { between });
        joined.push_str(item);
    }
    Ok(Value::text(joined))
}

fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            '\\' => quoted.push_str("\\\\"),
            '"' => quoted.push_str("\\\""),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// `text.format(values)`
fn format<'a>(room: &mut Room, text: &str, values: &List<'a>) -> Found<'a> {
    let mut out = String::new();
    let mut next = 0;
    let (parts, wrong) = clauses::parts(text);
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
        match letter {
            's' => show(room, &value, &mut out)?,
            _ => out.push_str(&clause(&value, letter, digits)),
        }
        room.work((out.len() - before) as u64 / 16)?;
    }
    wrong.map_or(Ok(Value::text(out)), fail)
}

/// A value as a clause shows it that can show its type.
fn clause(value: &Value<'_>, letter: char, digits: usize) -> String {
    match (letter, value) {
        ('d', _) => text_of(value).unwrap_or_default(),
        ('f' | 'e', Value::Double(number)) if !number.is_finite() => show_special(*number),
        ('f', Value::Double(number)) => format!("{number:.digits$}"),
        ('e', Value::Double(number)) => {
            let text = format!("{number:.digits$e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
            format!("{mantissa}e{sign}{exponent:0>2}")
        }
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

fn show_special(number: f64) -> String {
    match number {
        number if number.is_nan() => "NaN".to_owned(),
        number if number > 0.0 => "Infinity".to_owned(),
        _ => "-Infinity".to_owned(),
    }
}

/// A value as `%s` shows it: lists and maps with what is in them.
fn show(room: &mut Room, value: &Value<'_>, out: &mut String) -> Result<(), Failure> {
    room.work(1)?;
    match value {
        Value::Null => out.push_str("null"),
        Value::Double(number) if !number.is_finite() => out.push_str(&show_special(*number)),
        Value::Double(number) => out.push_str(&show_float(*number)),
        Value::Type(kind) => out.push_str(kind.name()),
        Value::List(list) => {
            out.push('[');
            for (index, item) in list.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                show(room, &item?, out)?;
            }
            out.push(']');
        }
        Value::Map(map) => show_map(room, map, out)?,
        other => match text_of(other) {
            Some(text) => out.push_str(&text),
            None => {
                return fail(format!(
                    "error during formatting: no formatting support for type {}",
                    other.kind().name()
                ));
            }
        },
    }
    Ok(())
}

fn show_map<'a>(room: &mut Room, map: &Map<'a>, out: &mut String) -> Result<(), Failure> {
    out.push('{');
    for (index, key) in map.keys().iter().enumerate() {
        let Some(value) = map.get(key) else { continue };
        out.push_str(if index == 0 { "" } else { ", " });
        show(room, key, out)?;
        out.push_str(": ");
        show(room, &value?, out)?;
    }
    out.push('}');
    Ok(())
}
