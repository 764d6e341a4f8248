//! Two objects -> the fields that the second has more, has otherwise, and has no longer.
//!
//! An object, map or item that is new is itself among what was added, beside its fields; so is an empty one. What Go writes
//! of every object, set or not, is neither added nor removed with what it is in: `containers` never is, but each of them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::element;
use super::form::{Form, List, is_empty, items, object};
use super::set::{self, Set};

#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes {
    pub(super) added: Set,
    pub(super) modified: Set,
    pub(super) removed: Set,
}

impl Changes {
    /// What whoever made the changes has set.
    pub(super) fn taken(&self) -> Set {
        set::union(self.added.clone(), &self.modified)
    }

    /// Without the field at a path, and all below it.
    pub(super) fn cut(&mut self, path: &[&str]) {
        for part in [&mut self.added, &mut self.modified, &mut self.removed] {
            set::cut(part, path);
        }
    }
}

/// Either value may be absent, and must be what `form` says it is.
type Pair<'a> = (Option<&'a Value>, Option<&'a Value>);

pub(super) fn compare(form: Form<'_>, old: &Value, new: &Value) -> Changes {
    let mut changes = Changes::default();
    parts(form, (Some(old), Some(new)), &mut changes);
    changes
}

fn parts(form: Form<'_>, (old, new): Pair<'_>, changes: &mut Changes) {
    if let Form::List(list) = form {
        return list_items(list, items(old), items(new), changes);
    }
    let (left, right) = (object(old), object(new));
    let mut visit = |name: &str, left_child: Option<&Value>, right_child: Option<&Value>| {
        let unset = form.unset(name);
        // Null is what emptying left of it, and is not stored but where Go writes it, or where a definition has it for a value.
        let counts = |child: &&Value| !child.is_null() || form.may_be_null(name);
        let pair = (
            left_child.or(unset.filter(|_| left.is_some())),
            right_child.filter(counts).or(unset.filter(|_| right.is_some())),
        );
        value(form.child(name), pair, || element::field(name), changes);
    };
    for (name, child) in left.into_iter().flatten() {
        visit(name, Some(child), right.and_then(|map| map.get(name)));
    }
    for (name, child) in right.into_iter().flatten() {
        if left.is_none_or(|map| !map.contains_key(name)) {
            visit(name, None, Some(child));
        }
    }
}

fn value(form: Form<'_>, (old, new): Pair<'_>, element: impl Fn() -> String, changes: &mut Changes) {
    let has_parts = |value: Option<&Value>| value.is_some_and(|value| !is_empty(value));
    let fits = |value: Option<&Value>| value.is_none_or(|value| form.fits(value));
    let mut below = Changes::default();
    let whole = !(fits(old) && fits(new) && (has_parts(old) || has_parts(new)));
    if !whole {
        parts(form, (old, new), &mut below);
    }
    set::put(&mut changes.added, &element, old.is_none() && new.is_some(), below.added);
    set::put(&mut changes.removed, &element, new.is_none() && old.is_some(), below.removed);
    let modified = whole && old.is_some() && new.is_some() && old != new;
    set::put(&mut changes.modified, &element, modified, below.modified);
}

fn list_items(list: List<'_>, old: &[Value], new: &[Value], changes: &mut Changes) {
    if old == new {
        return;
    }
    // Stored lists may hold items of equal keys: those are compared together.
    let mut found: BTreeMap<String, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for (element, item) in list.elements(old) {
        found.entry(element).or_default().0.push(item);
    }
    for (element, item) in list.elements(new) {
        found.entry(element).or_default().1.push(item);
    }
    for (element, (old, new)) in found {
        let element = || element.clone();
        if old.len() < 2 && new.len() < 2 {
            value(list.item(), (old.first().copied(), new.first().copied()), element, changes);
        } else if old != new {
            let part = match (old.len() > 1, new.len() > 1) {
                (true, true) => &mut changes.modified,
                (true, false) => &mut changes.removed,
                _ => &mut changes.added,
            };
            set::put(part, element, true, Map::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::find;
    use crate::schema::table;

    fn form(group: &str, plural: &str) -> Form<'static> {
        Form::of_type(table().find(find(group, "v1", plural).unwrap().type_name()).unwrap())
    }

    fn check(group: &str, plural: &str, old: &Value, new: &Value, expected: &Value) {
        let changes = compare(form(group, plural), old, new);
        let found = json!({"added": changes.added, "modified": changes.modified, "removed": changes.removed});
        assert_eq!(&found, expected, "{old} -> {new}");
    }

    #[test]
    fn a_new_object_has_all_its_fields_added() {
        check(
            "apps",
            "deployments",
            &json!({}),
            &json!({
                "metadata": {"labels": {"a": "b"}},
                "spec": {
                    "replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "strategy": {"type": "Recreate"},
                    "template": {
                        "metadata": {"labels": {"a": "b"}},
                        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}], "resources": {}}],
                                 "securityContext": {}}
                    }
                },
                "status": {}
            }),
            &json!({
                "added": {
                    "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
                    "f:spec": {
                        "f:replicas": {}, "f:strategy": {"f:type": {}},
                        "f:template": {
                            "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
                            "f:spec": {
                                "f:containers": {
                                    "k:{\"name\":\"c\"}": {
                                        ".": {}, "f:name": {}, "f:resources": {},
                                        "f:ports": {
                                            ".": {},
                                            "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}
                                        }
                                    }
                                },
                                "f:securityContext": {}
                            }
                        }
                    }
                },
                "modified": {"f:spec": {"f:selector": {}}}, "removed": {}
            }),
        );
    }

    #[test]
    fn changes_are_told_where_they_are() {
        for (old, new, expected) in [
            (json!({"data": {"a": "1"}}), json!({"data": {"a": "1"}}), json!([{}, {}, {}])),
            (
                json!({"data": {"a": "1"}}),
                json!({"data": {"a": "2", "b": "3"}}),
                json!([{"f:data": {"f:b": {}}}, {"f:data": {"f:a": {}}}, {}]),
            ),
            (
                json!({"data": {"a": "1", "b": "2"}}),
                json!({"data": {"a": "1"}}),
                json!([{}, {}, {"f:data": {"f:b": {}}}]),
            ),
            (json!({"data": {"a": "1"}}), json!({}), json!([{}, {}, {"f:data": {".": {}, "f:a": {}}}])),
            (json!({}), json!({"data": {}}), json!([{"f:data": {}}, {}, {}])),
            (
                json!({"metadata": {"finalizers": ["a", "b"]}}),
                json!({"metadata": {"finalizers": ["b", "c"]}}),
                json!([{"f:metadata": {"f:finalizers": {"v:\"c\"": {}}}}, {}, {"f:metadata": {"f:finalizers": {"v:\"a\"": {}}}}]),
            ),
            (
                json!({"metadata": {"ownerReferences": [{"uid": "u", "name": "a"}]}}),
                json!({"metadata": {"ownerReferences": [{"uid": "u", "name": "b"}]}}),
                json!([{}, {"f:metadata": {"f:ownerReferences": {"k:{\"uid\":\"u\"}": {}}}}, {}]),
            ),
        ] {
            let expected = json!({"added": expected[0], "modified": expected[1], "removed": expected[2]});
            check("", "configmaps", &old, &new, &expected);
        }
        // A selector is one leaf; ports are found by number and protocol; items of equal keys change together.
        check(
            "",
            "services",
            &json!({"spec": {"selector": {"a": "b"}, "ports": [{"port": 80, "protocol": "TCP", "name": "x"}]}}),
            &json!({"spec": {"selector": {"a": "c"}, "ports": [{"port": 80, "name": "y", "protocol": "UDP"}]}}),
            &json!({
                "added": {"f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"UDP\"}": {".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}}}}},
                "modified": {"f:spec": {"f:selector": {}}},
                "removed": {"f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}}}}}
            }),
        );
        let env = |values: &[&str]| {
            let env: Vec<Value> = values.iter().map(|value| json!({"name": "A", "value": value})).collect();
            json!({"spec": {"containers": [{"name": "c", "env": env}]}})
        };
        let at = json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {"f:env": {"k:{\"name\":\"A\"}": {}}}}}});
        for (old, new, part) in [
            (env(&["1", "2"]), env(&["1", "3"]), "modified"),
            (env(&["1"]), env(&["1", "2"]), "added"),
            (env(&["1", "2"]), env(&["1"]), "removed"),
        ] {
            let mut expected = json!({"added": {}, "modified": {}, "removed": {}});
            expected[part] = at.clone();
            check("", "pods", &old, &new, &expected);
        }
    }
}
