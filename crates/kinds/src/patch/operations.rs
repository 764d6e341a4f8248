//! JSON Patch (RFC 6902): a list of operations, carried out one after another.
//!
//! Invariants: all of them are carried out or none; what copies add up to is bounded. Where Kubernetes is laxer than
//! the RFC, so is this: what is to be replaced, tested or copied may be absent from an object, places in lists may be
//! counted from the end, and all before a path's first slash is passed over.
//! Source: `github.com/evanphx/json-patch` v4, which kube-apiserver uses.

use serde_json::{Map, Value};

use crate::Status;

/// As kube-apiserver's own limit.
const MOST_OPERATIONS: usize = 10_000;

/// Of a list of operations that cannot be carried out, clients are told no more.
fn rejected() -> Status {
    Status::unprocessable("the server rejected our request due to an error in our request").about_nothing()
}

/// A list of operations. What is wrong with one of them shows when its turn comes.
#[derive(Debug)]
pub struct Operations(Vec<Map<String, Value>>);

impl Operations {
    /// # Errors
    /// 400 for what is no list of objects, or too long.
    pub fn parse(patch: Value) -> Result<Self, Status> {
        let wrong = |value: &Value, of: &str| {
            let got = crate::decode::json_name(value);
            Status::bad_request(format!(
                "error decoding patch: json: cannot unmarshal {got} into Go value of type {of}handlers.jsonPatchOp"
            ))
        };
        let items = match patch {
            Value::Array(items) => items,
            Value::Null => Vec::new(),
            other => return Err(wrong(&other, "[]")),
        };
        if items.len() > MOST_OPERATIONS {
            let got = items.len();
            let why = format!("The allowed maximum operations in a JSON patch is {MOST_OPERATIONS}, got {got}");
            return Err(Status::bad_request(why));
        }
        let operations = items.into_iter().map(|item| match item {
            Value::Object(operation) => Ok(operation),
            Value::Null => Ok(Map::new()),
            other => Err(wrong(&other, "")),
        });
        operations.collect::<Result<_, _>>().map(Self)
    }

    /// `object` after the operations, which may add no more than `most_copied` bytes by copying.
    ///
    /// # Errors
    /// 422 if one of them cannot be carried out.
    pub fn apply(&self, object: &Value, most_copied: usize) -> Result<Value, Status> {
        let mut new = object.clone();
        let mut room = most_copied;
        let done = self.0.iter().try_for_each(|operation| carry_out(&mut new, operation, &mut room));
        done.map(|()| new).ok_or_else(rejected)
    }
}

/// `None` if it cannot be done.
fn carry_out(object: &mut Value, operation: &Map<String, Value>, room: &mut usize) -> Option<()> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str);
    let value = operation.get("value").cloned().unwrap_or_default();
    let (owner, key) = find(object, text("path")?)?;
    match text("op")? {
        "add" => add(owner, &key, value),
        "remove" => remove(owner, &key).map(drop),
        "replace" => replace(owner, &key, value),
        "test" => (get(owner, &key)? == value).then_some(()),
        "move" => {
            let (from, from_key) = find(object, text("from")?)?;
            let value = remove(from, &from_key)?;
            let (owner, key) = find(object, text("path")?)?;
            add(owner, &key, value)
        }
        "copy" => {
            let (from, from_key) = find(object, text("from")?)?;
            let value = get(from, &from_key)?;
            // A few copies of copies would fill any memory.
            *room = room.checked_sub(value.to_string().len())?;
            let (owner, key) = find(object, text("path")?)?;
            add(owner, &key, value)
        }
        _ => None,
    }
}

/// What holds the place at the end of a path, and how the place is called in there.
fn find<'a>(object: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let plain = |part: &str| part.replace("~1", "/").replace("~0", "~");
    let (_, path) = path.split_once('/')?;
    let (before, last) = path.rsplit_once('/').map_or((None, path), |(before, last)| (Some(before), last));
    let mut parts = before.into_iter().flat_map(|before| before.split('/'));
    let owner = parts.try_fold(object, |owner, part| match owner {
        Value::Object(map) => map.get_mut(&plain(part)),
        Value::Array(items) => {
            let index = index(&plain(part), items.len())?;
            items.get_mut(index)
        }
        _ => None,
    })?;
    Some((owner, plain(last)))
}

/// A place among `length`, which may be counted from the end.
fn index(text: &str, length: usize) -> Option<usize> {
    let number: isize = text.parse().ok()?;
    let index = if number < 0 { length.checked_sub(number.unsigned_abs())? } else { number.unsigned_abs() };
    Some(index).filter(|index| *index < length)
}

fn get(owner: &Value, key: &str) -> Option<Value> {
    match owner {
        Value::Object(map) => Some(map.get(key).cloned().unwrap_or_default()),
        Value::Array(items) => items.get(index(key, items.len())?).cloned(),
        _ => None,
    }
}

fn add(owner: &mut Value, key: &str, value: Value) -> Option<()> {
    match owner {
        Value::Object(map) => drop(map.insert(key.to_owned(), value)),
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => items.insert(index(key, items.len() + 1)?, value),
        _ => return None,
    }
    Some(())
}

fn replace(owner: &mut Value, key: &str, value: Value) -> Option<()> {
    match owner {
        Value::Object(map) => drop(map.insert(key.to_owned(), value)),
        Value::Array(items) => {
            let index = index(key, items.len())?;
            items[index] = value;
        }
        _ => return None,
    }
    Some(())
}

fn remove(owner: &mut Value, key: &str) -> Option<Value> {
    match owner {
        Value::Object(map) => map.remove(key),
        Value::Array(items) => {
            let index = index(key, items.len())?;
            Some(items.remove(index))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(operations: &Value) -> Result<Value, (u16, String)> {
        let object = json!({"m": {"a/b": 1, "c": null, "t~u": 2}, "l": [1, 2, 3]});
        let done = Operations::parse(operations.clone()).and_then(|operations| operations.apply(&object, 100));
        done.map_err(|status| (status.code(), status.message().to_owned()))
    }

    /// What kube-apiserver 1.36.2 makes of the same.
    #[test]
    fn operations() {
        let m = json!({"a/b": 1, "c": null, "t~u": 2});
        for (operation, expected) in [
            (
                json!({"op": "add", "path": "/m/x", "value": 1}),
                Some(json!({"m": {"a/b": 1, "c": null, "t~u": 2, "x": 1}, "l": [1, 2, 3]})),
            ),
            (
                json!({"op": "add", "path": "/m/x"}),
                Some(json!({"m": {"a/b": 1, "c": null, "t~u": 2, "x": null}, "l": [1, 2, 3]})),
            ),
            (
                json!({"op": "replace", "path": "/m/a~1b", "value": 7}),
                Some(json!({"m": {"a/b": 7, "c": null, "t~u": 2}, "l": [1, 2, 3]})),
            ),
            (json!({"op": "replace", "path": "/x", "value": 7}), Some(json!({"m": m, "l": [1, 2, 3], "x": 7}))),
            (json!({"op": "remove", "path": "/m/t~0u"}), Some(json!({"m": {"a/b": 1, "c": null}, "l": [1, 2, 3]}))),
            (json!({"op": "remove", "path": "/m/x"}), None),
            (json!({"op": "add", "path": "/l/-", "value": 4}), Some(json!({"m": m, "l": [1, 2, 3, 4]}))),
            (json!({"op": "add", "path": "/l/-1", "value": 4}), Some(json!({"m": m, "l": [1, 2, 3, 4]}))),
            (json!({"op": "add", "path": "/l/3", "value": 4}), Some(json!({"m": m, "l": [1, 2, 3, 4]}))),
            (json!({"op": "add", "path": "/l/4", "value": 4}), None),
            (json!({"op": "replace", "path": "/l/3", "value": 4}), None),
            (json!({"op": "remove", "path": "/l/-3"}), Some(json!({"m": m, "l": [2, 3]}))),
            (json!({"op": "remove", "path": "/l/-4"}), None),
            (json!({"op": "remove", "path": ""}), None),
            (json!({"op": "add", "path": "", "value": {}}), None),
            (json!({"op": "add", "path": "m/x", "value": 1}), Some(json!({"m": m, "l": [1, 2, 3], "x": 1}))),
            (json!({"op": "move", "from": "/l/0", "path": "/l/-"}), Some(json!({"m": m, "l": [2, 3, 1]}))),
            (json!({"op": "move", "from": "/x", "path": "/y"}), None),
            (json!({"op": "copy", "from": "/x", "path": "/y"}), Some(json!({"m": m, "l": [1, 2, 3], "y": null}))),
            (json!({"op": "test", "path": "/l", "value": [1, 2, 3]}), Some(json!({"m": m, "l": [1, 2, 3]}))),
            (json!({"op": "test", "path": "/x", "value": null}), Some(json!({"m": m, "l": [1, 2, 3]}))),
            (json!({"op": "test", "path": "/x", "value": 1}), None),
            (json!({"op": "mend", "path": "/x"}), None),
            (json!({"path": "/x"}), None),
            (Value::Null, None),
        ] {
            let refused = (422, "the server rejected our request due to an error in our request".to_owned());
            assert_eq!(patched(&json!([operation])), expected.ok_or(refused), "{operation}");
        }
        let copies: Vec<Value> =
            (0..20).map(|at| json!({"op": "copy", "from": "/l", "path": format!("/{at}")})).collect();
        assert_eq!(patched(&copies.into()).unwrap_err().0, 422);
    }

    #[test]
    fn what_is_no_list_of_operations() {
        let wrong = "error decoding patch: json: cannot unmarshal";
        assert_eq!(
            patched(&json!({})).unwrap_err(),
            (400, format!("{wrong} object into Go value of type []handlers.jsonPatchOp"))
        );
        assert_eq!(
            patched(&json!([1])).unwrap_err(),
            (400, format!("{wrong} number into Go value of type handlers.jsonPatchOp"))
        );
        assert!(patched(&Value::Null).is_ok());
        assert_eq!(patched(&vec![json!({}); 10_001].into()).unwrap_err().0, 400);
    }
}
