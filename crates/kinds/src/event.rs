//! Turns an Event of the core group into one of `events.k8s.io`, and back: they are one stored object.
//!
//! Invariant: converting there and back gives the object again.

use serde_json::Value;

use crate::look::map_of;

/// The names that differ: core, then `events.k8s.io`.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// The Event in the form of `api_version`, which is `v1` or `events.k8s.io/v1`. Other versions are left as they are.
pub fn convert_event(object: &Value, api_version: &str) -> Value {
    let mut event = object.clone();
    if !matches!(api_version, "v1" | "events.k8s.io/v1") || object["apiVersion"] == api_version {
        return event;
    }
    let map = map_of(&mut event);
    for (core, new) in RENAMED {
        let (from, to) = if api_version == "v1" { (new, core) } else { (core, new) };
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
    map.insert("apiVersion".to_owned(), api_version.into());
    event
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn there_and_back() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "a"}, "involvedObject": {"name": "p"},
            "message": "m", "reason": "r", "source": {"component": "c"}, "count": 2, "firstTimestamp": "f",
            "lastTimestamp": "l", "reportingComponent": "x", "type": "Normal", "series": {"count": 3}});
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "a"}, "regarding": {"name": "p"},
            "note": "m", "reason": "r", "deprecatedSource": {"component": "c"}, "deprecatedCount": 2,
            "deprecatedFirstTimestamp": "f", "deprecatedLastTimestamp": "l", "reportingController": "x", "type": "Normal",
            "series": {"count": 3}});
        assert_eq!(convert_event(&core, "events.k8s.io/v1"), new);
        assert_eq!(convert_event(&new, "v1"), core);
        assert_eq!(convert_event(&core, "v1"), core);
    }
}
