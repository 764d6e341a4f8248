//! Functions of texts. Places in a text are counted in characters.

use super::{Found, fail, show};
use crate::cel::room::{Failure, Room};
use crate::cel::value::{List, Value};

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
        ("format", [Value::List(values)]) => show::format(room, text, values),
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
