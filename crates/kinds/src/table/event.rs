//! Events, in the core group's form.

use jiff::Timestamp;
use serde_json::Value;

use super::{column, name, shown, since, wide};
use crate::Column;
use crate::look::Look;

pub(super) const EVENT: &[Column] = &[
    shown("Last Seen", "string", "Time since it was last seen."),
    shown("Type", "string", "Normal or Warning."),
    shown("Reason", "string", "Why, in one word."),
    shown("Object", "string", "What it is about."),
    wide("Subobject", "The part of the object it is about."),
    wide("Source", "Who reports it."),
    shown("Message", "string", "What happened."),
    wide("First Seen", "Time since it was first seen."),
    wide("Count", "How often it was seen."),
    column("Name", "string", "name", "Name must be unique within a namespace.", 1),
];

pub(super) fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let when = object.text("eventTime");
    let first = if object.has("firstTimestamp") { object.text("firstTimestamp") } else { when };
    let mut last = if object.has("lastTimestamp") { object.text("lastTimestamp") } else { first };
    let mut count = object.int("count").unwrap_or(0);
    if object.has("series") {
        last = object["series"].text("lastObservedTime");
        count = object["series"].int("count").unwrap_or(0);
    } else if count == 0 {
        count = 1;
    }
    let about = &object["involvedObject"];
    let kind = about.text("kind").to_lowercase();
    let target = match about.text("name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let source = match (object["source"].text("component"), object["source"].text("host")) {
        ("", _) => object.text("reportingComponent").to_owned(),
        (component, "") => component.to_owned(),
        (component, host) => format!("{component}, {host}"),
    };
    vec![
        since(last, now).into(),
        object.text("type").into(),
        object.text("reason").into(),
        target.into(),
        about.text("fieldPath").into(),
        source.into(),
        object.text("message").trim().into(),
        since(first, now).into(),
        count.into(),
        name(object),
    ]
}
