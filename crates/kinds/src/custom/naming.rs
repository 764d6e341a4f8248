//! A definition, and the names that others of its group have -> the names it gets, and whether it is served.
//!
//! Invariants: a name belongs to who had it first; a definition that was established stays so, with the names it got;
//! conditions change only when something did.
//! Source: `pkg/controller/{status,establish}` of apiextensions-apiserver.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::definition::{approval, condition, set_condition};
use super::webhook::Webhook;
use crate::look::{Look, child, map_of};

/// Names that are taken in one group.
#[derive(Debug, Default)]
pub struct Taken {
    resources: BTreeSet<String>,
    kinds: BTreeSet<String>,
}

impl Taken {
    /// Adds what a definition was accepted.
    pub fn add(&mut self, definition: &Value) {
        let names = &definition["status"]["acceptedNames"];
        let texts = |fields: [&str; 2]| fields.map(|field| names.text(field).to_owned());
        self.resources.extend(texts(["plural", "singular"]));
        self.resources.extend(names.list("shortNames").iter().filter_map(Value::as_str).map(str::to_owned));
        self.kinds.extend(texts(["kind", "listKind"]));
    }
}

/// What the definition's status should be, with nothing served for it yet, or already. `None` if it is that.
pub fn settle(definition: &Value, taken: &Taken, now: &str) -> Option<Value> {
    let wanted = &definition["spec"]["names"];
    let had = &definition["status"]["acceptedNames"];
    let mut got = had.clone();
    let mut conflict: Option<(&str, String)> = None;
    let in_use = |name: &str| format!("{name:?} is already in use");
    for (field, taken, reason) in [
        ("plural", &taken.resources, "PluralConflict"),
        ("singular", &taken.resources, "SingularConflict"),
        ("kind", &taken.kinds, "KindConflict"),
        ("listKind", &taken.kinds, "ListKindConflict"),
    ] {
        let name = wanted.text(field);
        if name != had.text(field) && taken.contains(name) {
            conflict = Some((reason, in_use(name)));
        } else {
            map_of(&mut got).insert(field.to_owned(), name.into());
        }
    }
    let own: BTreeSet<&str> = had.list("shortNames").iter().filter_map(Value::as_str).collect();
    let short = wanted.list("shortNames").iter().filter_map(Value::as_str);
    let lost: Vec<String> =
        short.filter(|name| !own.contains(name) && taken.resources.contains(*name)).map(in_use).collect();
    if lost.is_empty() {
        put(&mut got, "shortNames", wanted);
    } else {
        let message = if let [one] = lost.as_slice() { one.clone() } else { format!("[{}]", lost.join(", ")) };
        conflict = Some(("ShortNamesConflict", message));
    }
    put(&mut got, "categories", wanted);

    let mut new = definition.clone();
    map_of(child(&mut new, "status")).insert("acceptedNames".into(), got);
    match &conflict {
        Some((reason, message)) => set_condition(&mut new, "NamesAccepted", false, (reason, message), now),
        None => set_condition(&mut new, "NamesAccepted", true, ("NoConflicts", "no conflicts found"), now),
    }
    let established = condition(&new, "Established").is_some_and(|condition| condition["status"] == json!("True"));
    if !established {
        match conflict {
            Some(_) => {
                set_condition(&mut new, "Established", false, ("NotAccepted", "not all names are accepted"), now)
            }
            None if !Webhook::has_certificates(definition) => {
                let words = ("InvalidCABundle", "The conversion webhook CABundle is invalid");
                set_condition(&mut new, "Established", false, words, now);
            }
            None => {
                let words = ("InitialNamesAccepted", "the initial names have been accepted");
                set_condition(&mut new, "Established", true, words, now);
            }
        }
    }
    approval::settle(&mut new, now);
    (new != *definition).then_some(new)
}

fn put(names: &mut Value, field: &str, wanted: &Value) {
    match wanted.get(field) {
        Some(value) => _ = map_of(names).insert(field.to_owned(), value.clone()),
        None => _ = map_of(names).remove(field),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn definition(plural: &str, kind: &str, short: &[&str]) -> Value {
        json!({
            "spec": {"names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind,
                               "listKind": format!("{kind}List"), "shortNames": short}},
            "status": {"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": ["v1"]}
        })
    }

    fn status_of(definition: &Value, kind: &str) -> String {
        let condition = condition(definition, kind).unwrap();
        format!("{} {}", condition.text("status"), condition.text("reason"))
    }

    #[test]
    fn free_names_are_given_once() {
        let first = settle(&definition("crontabs", "CronTab", &["ct"]), &Taken::default(), NOW).unwrap();
        assert_eq!(status_of(&first, "NamesAccepted"), "True NoConflicts");
        assert_eq!(status_of(&first, "Established"), "True InitialNamesAccepted");
        assert_eq!(settle(&first, &Taken::default(), "later"), None, "nothing changed");

        let mut taken = Taken::default();
        taken.add(&first);
        for (other, reason) in [
            (definition("jobs", "Job", &["ct"]), "False ShortNamesConflict"),
            (definition("crontab", "Job", &[]), "False PluralConflict"),
            (definition("jobs", "CronTab", &[]), "False ListKindConflict"),
        ] {
            let second = settle(&other, &taken, NOW).unwrap();
            assert_eq!(status_of(&second, "NamesAccepted"), reason);
            assert_eq!(status_of(&second, "Established"), "False NotAccepted");
            // Once the name is free, it is given.
            let freed = settle(&second, &Taken::default(), NOW).unwrap();
            assert_eq!(status_of(&freed, "Established"), "True InitialNamesAccepted");
        }
    }

    #[test]
    fn who_is_established_stays_so() {
        let mut first = settle(&definition("crontabs", "CronTab", &[]), &Taken::default(), NOW).unwrap();
        first["spec"]["names"]["shortNames"] = json!(["x"]);
        let taken = Taken { resources: ["x".to_owned()].into(), kinds: BTreeSet::new() };
        let second = settle(&first, &taken, NOW).unwrap();
        assert_eq!(status_of(&second, "NamesAccepted"), "False ShortNamesConflict");
        assert_eq!(status_of(&second, "Established"), "True InitialNamesAccepted");
        assert_eq!(second["status"]["acceptedNames"]["shortNames"], json!([]));
    }
}
