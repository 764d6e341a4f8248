//! One stored Event, seen as `v1` or as `events.k8s.io/v1`: the fields have other names, and mean the same.

use portolan_kinds::Kind;
use serde_json::Value;

use crate::object;

/// `events.k8s.io/v1` on the left, `v1` on the right.
const NAMES: [(&str, &str); 8] = [
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("reportingInstance", "reportingInstance"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// The event in the form of `kind`, which is one of the two.
pub(crate) fn convert(mut event: Value, kind: &Kind) -> Value {
    let to_core = kind.group.is_empty();
    let map = object::map_of(&mut event);
    for (new, core) in NAMES {
        let (from, to) = if to_core { (new, core) } else { (core, new) };
        if let Some(value) = map.remove(from) {
            map.insert(to.into(), value);
        }
    }
    map.insert("apiVersion".into(), kind.api_version().into());
    map.insert("kind".into(), kind.kind.into());
    event
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn there_and_back() {
        let core = crate::known_kind("", "events");
        let new = crate::known_kind("events.k8s.io", "events");
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "message": "m", "reason": "R",
            "involvedObject": {"kind": "Pod"}, "source": {"component": "c"}, "count": 2, "reportingInstance": "i"
        });
        let seen = convert(event.clone(), new);
        assert_eq!(seen["note"], "m");
        assert_eq!(seen["regarding"]["kind"], "Pod");
        assert_eq!(seen["message"], Value::Null);
        assert_eq!(convert(seen, core), event);
    }
}
