//! Events, of both groups. They are one stored object: `events.k8s.io` is stricter, the core group takes what old
//! clients send.

use serde_json::Value;

use super::{Errors, as_go};
use crate::look::{Look, Path};
use crate::names;

const MAX_WORD: usize = 128;
const MAX_NOTE: usize = 1024;

/// The names of the fields that differ between the groups.
struct Words {
    object: &'static str,
    controller: &'static str,
    note: &'static str,
}

pub(super) fn core(errors: &mut Errors, new: &Value) {
    legacy(errors, new, &Words { object: "involvedObject", controller: "reportingComponent", note: "message" });
}

fn reference(reference: &Value) -> String {
    let fields = ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"];
    let go = ["Kind", "Namespace", "Name", "UID", "APIVersion", "ResourceVersion", "FieldPath"];
    let fields: Vec<(&str, &str, Value)> = go.into_iter().zip(fields).map(|(go, name)| (go, name, "".into())).collect();
    as_go(reference, &fields)
}

pub(super) fn events(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    legacy(errors, new, &Words { object: "regarding", controller: "reportingController", note: "note" });
    if old.is_none_or(|old| old["series"] != new["series"]) && new.has("series") {
        if new["series"].int("count").unwrap_or(0) < 2 {
            errors.invalid(&Path::Root.field("series.count"), "", "should be at least 2");
        }
        if !new["series"].has("lastObservedTime") {
            errors.required(&Path::Root.field("series.lastObservedTime"), "");
        }
    }
    let Some(old) = old else {
        if !new.has("eventTime") {
            errors.required(&Path::Root.field("eventTime"), "");
        }
        let kind = new.text("type");
        if kind != "Normal" && kind != "Warning" {
            errors.invalid(&Path::Root.field("type"), "", format!("has invalid value: {kind}"));
        }
        for (field, name) in [
            ("deprecatedFirstTimestamp", "firstTimestamp"),
            ("deprecatedLastTimestamp", "lastTimestamp"),
            ("deprecatedCount", "count"),
        ] {
            if new.has(field) {
                errors.invalid(&Path::Root.field(name), "", "needs to be unset");
            }
        }
        let source = &new["deprecatedSource"];
        if !source.text("component").is_empty() || !source.text("host").is_empty() {
            errors.invalid(&Path::Root.field("source"), "", "needs to be unset");
        }
        return;
    };
    for (field, name) in [
        ("regarding", "involvedObject"),
        ("reason", "reason"),
        ("note", "message"),
        ("deprecatedSource", "source"),
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingController", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ] {
        let path = Path::Root.field(name);
        match name {
            "involvedObject" | "related" if new[field] != old[field] => {
                errors.invalid_as(&path, reference(&new[field]), "field is immutable");
            }
            // What was left out is empty.
            "reason" | "message" | "type" | "action" | "reportingController" | "reportingInstance" => {
                errors.immutable(&path, &new.text(field).into(), &old.text(field).into());
            }
            _ => errors.immutable(&path, &new[field], &old[field]),
        }
    }
}

fn legacy(errors: &mut Errors, event: &Value, words: &Words) {
    let namespace = event["metadata"].text("namespace");
    let about = event[words.object].text("namespace");
    let object = Path::Root.field("involvedObject");
    let mismatch = "does not match event.namespace";
    if !event.has("eventTime") {
        let agrees = if about.is_empty() { namespace.is_empty() || namespace == "default" } else { about == namespace };
        if !agrees {
            errors.invalid(&object.field("namespace"), about, mismatch);
        }
    } else {
        if about.is_empty() && namespace != "default" && namespace != "kube-system" {
            errors.invalid(&object.field("namespace"), about, mismatch);
        }
        let controller = event.text(words.controller);
        let path = Path::Root.field(words.controller);
        if controller.is_empty() {
            errors.required(&path, "");
        }
        errors.each(&path, controller, names::qualified_name(controller));
        for field in ["reportingInstance", "action", "reason"] {
            let text = event.text(field);
            let path = Path::Root.field(field);
            if text.is_empty() {
                errors.required(&path, "");
            }
            if text.len() > MAX_WORD {
                errors.invalid(&path, "", format!("can have at most {MAX_WORD} characters"));
            }
        }
        if event.text(words.note).len() > MAX_NOTE {
            errors.invalid(&Path::Root.field("message"), "", format!("can have at most {MAX_NOTE} characters"));
        }
    }
    errors.each(&Path::Root.field("namespace"), namespace, names::dns1123_subdomain(namespace));
}
