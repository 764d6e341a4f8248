//! Events, in the core group's form.

use jiff::Timestamp;
use serde_json::Value;

use super::Says::Field;
use super::{Drawn, NAME, name, shown, since, wide};
use crate::look::Look;

pub(super) const EVENT: &[Drawn] = &[
    shown("Last Seen", "string", Field("core.v1.Event", "lastTimestamp")),
    shown("Type", "string", Field("core.v1.Event", "type")),
    shown("Reason", "string", Field("core.v1.Event", "reason")),
    shown("Object", "string", Field("core.v1.Event", "involvedObject")),
    wide("Subobject", Field("core.v1.ObjectReference", "fieldPath")),
    wide("Source", Field("core.v1.Event", "source")),
    shown("Message", "string", Field("core.v1.Event", "message")),
    wide("First Seen", Field("core.v1.Event", "firstTimestamp")),
    wide("Count", Field("core.v1.Event", "count")),
    Drawn { priority: 1, ..NAME },
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
    let either = |old: &'static str, new: &'static str| match object["source"].text(old) {
        "" => object.text(new),
        text => text,
    };
    let source = match (either("component", "reportingComponent"), either("host", "reportingInstance")) {
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
