//! Functions of lists and sets.

use std::cmp::Ordering;

use super::{Found, fail};
use crate::cel::equal::{contains, equal, order};
use crate::cel::room::{Failure, Room};
use crate::cel::value::{List, Value};

type Items<'a> = Vec<Value<'a>>;

pub(super) fn call<'a>(room: &mut Room, function: &str, args: &[Value<'a>]) -> Option<Found<'a>> {
    match (function, args) {
        ("lists.range", [Value::Int(count)]) => return Some(range(room, *count)),
        ("sets.contains" | "sets.equivalent" | "sets.intersects", [one @ Value::List(_), other @ Value::List(_)]) => {
            return Some(sets(room, function, one, other).map(Value::Bool));
        }
        _ => {}
    }
    let [Value::List(list), rest @ ..] = args else { return None };
    Some(of_list(room, function, list, rest).and_then(|found| found.ok_or(Failure::NoOverload)))
}

fn of_list<'a>(
    room: &mut Room,
    function: &str,
    list: &List<'a>,
    rest: &[Value<'a>],
) -> Result<Option<Value<'a>>, Failure> {
    let items = |room: &mut Room| -> Result<Items<'a>, Failure> {
        room.work(list.len() as u64)?;
        room.work_through(list.encoded())?;
        list.iter().collect()
    };
    let at = |index: Option<usize>| -> Found<'a> {
        let found = index.and_then(|index| list.get(index)).transpose()?;
        Ok(found.map_or(Value::Optional(None), Value::some))
    };
    Ok(Some(match (function, rest) {
        ("first", []) => at(Some(0))?,
        ("last", []) => at(list.len().checked_sub(1))?,
        ("isSorted", []) => Value::Bool(is_sorted(&items(room)?)?),
        ("min" | "max", []) => {
            let wanted = if function == "min" { Ordering::Less } else { Ordering::Greater };
            let mut best: Option<Value<'a>> = None;
            for item in items(room)? {
                let better = match &best {
                    Some(best) => order(&item, best).ok_or(Failure::NoOverload)? == wanted,
                    None => true,
                };
                best = if better { Some(item) } else { best };
            }
            match best {
                Some(best) => best,
                None => return fail(format!("{function} called on empty list")),
            }
        }
        ("sum", []) => {
            let mut sum: Option<Value<'a>> = None;
            for item in items(room)? {
                sum = Some(match sum {
                    Some(sum) => super::operators::call("_+_", &[sum, item]).ok_or(Failure::NoOverload)??,
                    None => item,
                });
            }
            sum.unwrap_or(Value::Int(0))
        }
        ("indexOf" | "lastIndexOf", [wanted]) => {
            let mut found = -1;
            for (index, item) in items(room)?.iter().enumerate() {
                if equal(room, item, wanted)? {
                    found = i64::try_from(index).unwrap_or(i64::MAX);
                    if function == "indexOf" {
                        break;
                    }
                }
            }
            Value::Int(found)
        }
        ("slice", [Value::Int(start), Value::Int(end)]) => slice(items(room)?, *start, *end)?,
        ("reverse", []) => {
            let mut items = items(room)?;
            items.reverse();
            Value::list(items)
        }
        ("distinct", []) => {
            let mut kept: Items<'a> = Vec::new();
            for item in items(room)? {
                let mut known = false;
                for other in &kept {
                    if equal(room, other, &item)? {
                        known = true;
                        break;
                    }
                }
                if !known {
                    kept.push(item);
                }
            }
            Value::list(kept)
        }
        ("sort", []) => {
            let items = items(room)?;
            let keys = items.clone();
            sort_by(room, items, &keys)?
        }
        ("flatten", []) => flatten(room, list, 1)?,
        ("flatten", [Value::Int(depth)]) if *depth < 0 => return fail("level must be non-negative"),
        ("flatten", [Value::Int(depth)]) => flatten(room, list, *depth)?,
        ("optional.unwrap" | "unwrapOpt", []) => {
            let mut kept = Vec::new();
            for item in items(room)? {
                match item {
                    Value::Optional(inner) => kept.extend(inner.map(|inner| (*inner).clone())),
                    _ => return Ok(None),
                }
            }
            Value::list(kept)
        }
        _ => return Ok(None),
    }))
}

fn is_sorted(items: &[Value<'_>]) -> Result<bool, Failure> {
    for pair in items.windows(2) {
        if order(&pair[0], &pair[1]).ok_or(Failure::NoOverload)? == Ordering::Greater {
            return Ok(false);
        }
    }
    Ok(true)
}

fn slice<'a>(mut items: Items<'a>, start: i64, end: i64) -> Found<'a> {
    let length = items.len();
    let (Ok(from), Ok(to)) = (usize::try_from(start), usize::try_from(end)) else {
        return fail(format!("cannot slice({start}, {end}), negative indexes not supported"));
    };
    if from > to {
        return fail(format!("cannot slice({start}, {end}), start index must be less than or equal to end index"));
    }
    if to > length {
        return fail(format!("cannot slice({start}, {end}), list is length {length}"));
    }
    items.truncate(to);
    Ok(Value::list(items.split_off(from)))
}

fn flatten<'a>(room: &mut Room, list: &List<'a>, depth: i64) -> Found<'a> {
    // What nests deeper than any rule can write is not flattened further.
    fn add<'a>(room: &mut Room, list: &List<'a>, depth: i64, into: &mut Items<'a>) -> Result<(), Failure> {
        room.work(list.len() as u64)?;
        room.work_through(list.encoded())?;
        for item in list.iter() {
            match item? {
                Value::List(inner) if depth > 0 => add(room, &inner, depth - 1, into)?,
                item => into.push(item),
            }
        }
        Ok(())
    }
    let mut items = Vec::new();
    add(room, list, depth.min(100), &mut items)?;
    Ok(Value::list(items))
}

fn range<'a>(room: &mut Room, count: i64) -> Found<'a> {
    room.work(u64::try_from(count).unwrap_or(0))?;
    Ok(Value::list((0..count).map(Value::Int).collect()))
}

fn sets<'a>(room: &mut Room, function: &str, one: &Value<'a>, other: &Value<'a>) -> Result<bool, Failure> {
    let mut each = |of: &Value<'a>, within: &Value<'a>, wanted: bool| -> Result<bool, Failure> {
        let Value::List(of) = of else { return Err(Failure::NoOverload) };
        for item in of.iter() {
            let item = item?;
            room.work_on(&item)?;
            if contains(room, within, &item)? == wanted {
                return Ok(true);
            }
        }
        Ok(false)
    };
    Ok(match function {
        "sets.intersects" => each(one, other, true)?,
        "sets.contains" => !each(other, one, false)?,
        _ => !each(one, other, false)? && !each(other, one, false)?,
    })
}

/// The items in the order of their keys.
pub(crate) fn sort_by<'a>(room: &mut Room, items: Items<'a>, keys: &[Value<'a>]) -> Found<'a> {
    if keys.iter().any(|key| order(key, &keys[0]).is_none() || key.kind() != keys[0].kind()) {
        return fail("list elements must have the same type");
    }
    let count = items.len() as u64;
    room.work(count.saturating_mul(1 + u64::from(count.max(1).ilog2())))?;
    let mut places: Vec<usize> = (0..items.len()).collect();
    places.sort_by(|one, other| order(&keys[*one], &keys[*other]).unwrap_or(Ordering::Equal));
    Ok(Value::list(places.into_iter().filter_map(|place| items.get(place).cloned()).collect()))
}
