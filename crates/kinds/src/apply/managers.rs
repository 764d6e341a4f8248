//! `metadata.managedFields` <-> who owns which fields.
//!
//! Invariants: a manager has one entry for each way of writing (operation, subresource and, for updates, version); no
//! entry is without fields; appliers come first, then whoever wrote longest ago.
//!
//! Source: apimachinery `pkg/util/managedfields`.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::element;
use super::set::{self, Set};

/// More managers than this that update, and the oldest are remembered as one.
const MOST_UPDATERS: usize = 10;
const OLDEST: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) manager: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    /// Empty for the object itself.
    pub(super) subresource: String,
    /// Empty if it is not known.
    pub(super) time: String,
    pub(super) fields: Set,
}

impl Entry {
    fn identity(&self) -> (Operation, &str, &str, &str) {
        let version = if self.operation == Operation::Apply { "" } else { &self.api_version };
        (self.operation, &self.manager, version, &self.subresource)
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }

    /// As conflicts name it: `"kubectl" with subresource "status" using v1`.
    pub(super) fn shown(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

fn take_text(map: &mut Map<String, Value>, name: &str) -> String {
    match map.remove(name) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    }
}

fn decode_entry(entry: Value) -> Option<Entry> {
    let Value::Object(mut map) = entry else { return None };
    let operation = match map.get("operation").and_then(Value::as_str) {
        Some("Apply") => Operation::Apply,
        Some("Update") => Operation::Update,
        _ => return None,
    };
    if map.get("fieldsType").and_then(Value::as_str) != Some("FieldsV1") {
        return None;
    }
    let fields = match map.remove("fieldsV1") {
        None | Some(Value::Null) => Set::new(),
        Some(Value::Object(fields)) => fields,
        Some(_) => return None,
    };
    Some(Entry {
        manager: take_text(&mut map, "manager"),
        operation,
        api_version: take_text(&mut map, "apiVersion"),
        subresource: take_text(&mut map, "subresource"),
        time: take_text(&mut map, "time"),
        fields,
    })
}

/// The entries that were stored. Nothing, if they are not what this module wrote.
pub(super) fn decode(stored: Value) -> Vec<Entry> {
    match stored {
        Value::Array(entries) => entries.into_iter().map(decode_entry).collect::<Option<_>>().unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// The entries that a client sent, if it sent any that make sense.
pub(super) fn decode_sent(sent: &Value) -> Option<Vec<Entry>> {
    fn normal(fields: &Set) -> Option<Set> {
        let mut normalized = Set::new();
        for (name, node) in fields.iter().filter(|(name, _)| *name != ".") {
            let below = node.as_object()?;
            let itself = below.is_empty() || below.contains_key(".");
            let (element, below) = (element::parse(name)?, normal(below)?);
            set::put(&mut normalized, || element, itself, below);
        }
        Some(normalized)
    }
    let mut found: Vec<Entry> = Vec::new();
    for entry in sent.as_array()? {
        let mut entry = decode_entry(entry.clone())?;
        entry.fields = normal(&entry.fields)?;
        found.retain(|other| !other.is_same(&entry));
        found.push(entry);
    }
    Some(found).filter(|found| !found.is_empty())
}

/// Whether a client asks for all that is known of owners to be forgotten.
pub(super) fn is_reset(sent: &Value) -> bool {
    match sent.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([one]) => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// What is stored, or null if nobody owns anything.
pub(super) fn encode(mut entries: Vec<Entry>) -> Value {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by(|a, b| {
        let rest = |entry: &Entry| (entry.api_version.clone(), entry.subresource.clone());
        (a.operation, &a.time, &a.manager).cmp(&(b.operation, &b.time, &b.manager)).then_with(|| rest(a).cmp(&rest(b)))
    });
    let encoded: Vec<Value> = entries
        .into_iter()
        .map(|entry| {
            let operation = if entry.operation == Operation::Apply { "Apply" } else { "Update" };
            let mut map = Map::new();
            map.insert("apiVersion".to_owned(), entry.api_version.into());
            map.insert("fieldsType".to_owned(), "FieldsV1".into());
            map.insert("fieldsV1".to_owned(), entry.fields.into());
            map.insert("manager".to_owned(), entry.manager.into());
            map.insert("operation".to_owned(), operation.into());
            for (name, text) in [("subresource", entry.subresource), ("time", entry.time)] {
                if !text.is_empty() {
                    map.insert(name.to_owned(), text.into());
                }
            }
            Value::Object(map)
        })
        .collect();
    if encoded.is_empty() { Value::Null } else { encoded.into() }
}

/// Whether both tell of the same owners of the same fields, whenever those were written.
pub(super) fn are_same(left: &Value, right: &Value) -> bool {
    let entries = |list: &Value| {
        let mut entries = decode(list.clone());
        for entry in &mut entries {
            entry.time.clear();
        }
        entries.sort_by(|a, b| a.identity().cmp(&b.identity()));
        entries
    };
    left == right || entries(left) == entries(right)
}

/// Joins those who updated longest ago into one entry for each version, until there are no more than [`MOST_UPDATERS`].
pub(super) fn cap(entries: &mut Vec<Entry>) {
    let updaters = |entries: &[Entry]| entries.iter().filter(|entry| entry.operation == Operation::Update).count();
    if updaters(entries) <= MOST_UPDATERS {
        return;
    }
    let (mut kept, mut rest): (Vec<Entry>, Vec<Entry>) =
        std::mem::take(entries).into_iter().partition(|entry| entry.operation == Operation::Apply);
    rest.sort_by(|a, b| match a.time.cmp(&b.time) {
        Ordering::Equal => a.identity().cmp(&b.identity()),
        other => other,
    });
    let mut surplus = rest.len() - MOST_UPDATERS;
    // The oldest of each version, which takes in those that follow.
    let mut buckets: BTreeMap<String, Entry> = BTreeMap::new();
    let mut rest = rest.into_iter();
    while surplus > 0
        && let Some(entry) = rest.next()
    {
        match buckets.get_mut(&entry.api_version) {
            None => _ = buckets.insert(entry.api_version.clone(), entry),
            Some(bucket) => {
                OLDEST.clone_into(&mut bucket.manager);
                bucket.subresource.clear();
                bucket.fields = set::union(std::mem::take(&mut bucket.fields), &entry.fields);
                bucket.time = entry.time;
                surplus -= 1;
            }
        }
    }
    kept.extend(buckets.into_values().chain(rest));
    *entries = kept;
}

/// The fields that nobody owns, since only the server sets them or every object has them.
pub(super) fn nobodys() -> Set {
    let fields = json!({
        "f:apiVersion": {}, "f:kind": {},
        "f:metadata": {
            ".": {}, "f:clusterName": {}, "f:creationTimestamp": {}, "f:generation": {}, "f:managedFields": {},
            "f:name": {}, "f:namespace": {}, "f:resourceVersion": {}, "f:selfLink": {}, "f:uid": {}
        }
    });
    match fields {
        Value::Object(set) => set,
        _ => Set::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn updater(manager: &str, time: u32, field: &str) -> Entry {
        let fields = json!({format!("f:{field}"): {}});
        Entry {
            manager: manager.to_owned(),
            operation: Operation::Update,
            api_version: "v1".to_owned(),
            subresource: String::new(),
            time: format!("2026-01-01T00:00:{time:02}Z"),
            fields: fields.as_object().unwrap().clone(),
        }
    }

    #[test]
    fn the_oldest_updaters_become_one() {
        let mut entries: Vec<Entry> =
            (0..13).map(|index| updater(&format!("m{index}"), index, &format!("x{index}"))).collect();
        let applied = Entry { operation: Operation::Apply, ..updater("a", 0, "y") };
        entries.push(applied.clone());
        cap(&mut entries);
        assert_eq!(entries.len(), 11);
        assert_eq!(entries[0], applied);
        let ancient = entries.iter().find(|entry| entry.manager == OLDEST).unwrap();
        assert_eq!(Value::Object(ancient.fields.clone()), json!({"f:x0": {}, "f:x1": {}, "f:x2": {}, "f:x3": {}}));
        assert_eq!(ancient.time, "2026-01-01T00:00:03Z");
        assert!(entries.iter().any(|entry| entry.manager == "m4"));
        // The next one goes into the same entry.
        entries.push(updater("late", 50, "z"));
        cap(&mut entries);
        assert_eq!(entries.iter().filter(|entry| entry.operation == Operation::Update).count(), MOST_UPDATERS);
        assert_eq!(entries.iter().filter(|entry| entry.manager == OLDEST).count(), 1);
    }

    #[test]
    fn there_and_back_in_order() {
        let entries = vec![
            updater("b", 1, "x"),
            updater("a", 2, "x"),
            Entry { operation: Operation::Apply, subresource: "status".to_owned(), ..updater("z", 9, "x") },
        ];
        let encoded = encode(entries.clone());
        let managers: Vec<&str> =
            encoded.as_array().unwrap().iter().map(|entry| entry["manager"].as_str().unwrap()).collect();
        assert_eq!(managers, ["z", "b", "a"]);
        assert_eq!(
            encoded[0],
            json!({"manager": "z", "operation": "Apply", "apiVersion": "v1", "subresource": "status",
                   "time": "2026-01-01T00:00:09Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:x": {}}})
        );
        assert_eq!(encode(decode(encoded.clone())), encoded);
        assert_eq!(encode(decode_sent(&encoded).unwrap()), encoded);
        let mut later = entries;
        later[0].time = "2027-01-01T00:00:00Z".to_owned();
        assert!(are_same(&encode(later.clone()), &encoded));
        later[0].fields.clear();
        assert!(!are_same(&encode(later), &encoded));
        assert_eq!(encode(Vec::new()), Value::Null);
    }

    #[test]
    fn what_clients_send() {
        let entry = json!({"manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:a": {".": {}}, "f:l": {"k:{\"b\":1, \"a\":2}": {}}}});
        let found = decode_sent(&json!([entry])).unwrap();
        assert_eq!(Value::Object(found[0].fields.clone()), json!({"f:a": {}, "f:l": {"k:{\"a\":2,\"b\":1}": {}}}));
        for (field, value) in [
            ("operation", json!("Mend")),
            ("fieldsType", json!("FieldsV2")),
            ("fieldsV1", json!({"x": {}})),
            ("fieldsV1", json!({"f:a": 7})),
            ("fieldsV1", json!("f:a")),
        ] {
            let mut wrong = entry.clone();
            wrong[field] = value;
            assert!(decode_sent(&json!([wrong])).is_none(), "{wrong}");
        }
        assert!(is_reset(&json!([])) && is_reset(&json!([{}])));
        assert!(!is_reset(&json!([entry])) && !is_reset(&Value::Null));
    }
}
