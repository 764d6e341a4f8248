//! A live object and a configuration -> the object with the configuration's fields put over it.
//!
//! Lists of items owned one by one keep the items that the configuration does not name; those that it names stand in
//! its order. Everything else is replaced.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::form::{Form, List, is_empty};

pub(super) fn merge(form: Form<'_>, live: &Value, config: &Value) -> Value {
    if is_empty(live) && is_empty(config) || !form.fits(live) || !form.fits(config) {
        return config.clone();
    }
    match (live, config) {
        (Value::Object(live), Value::Object(config)) => {
            let mut merged = live.clone();
            for (name, value) in config {
                let value = match live.get(name) {
                    Some(live) => merge(form.child(name), live, value),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Value::Array(live), Value::Array(config)) => match form {
            Form::List(list) => Value::Array(merge_items(list, live, config)),
            _ => Value::Array(config.clone()),
        },
        // What the configuration leaves empty adds nothing.
        (live, Value::Null) => live.clone(),
        (_, config) => config.clone(),
    }
}

/// Walks both lists at once. The live list says where its own items stand between those that both have, and the
/// configuration says in which order the latter come.
fn merge_items(list: List<'_>, live: &[Value], config: &[Value]) -> Vec<Value> {
    let (left, right) = (list.elements(live), list.elements(config));
    let live_items: BTreeMap<&str, &Value> =
        left.iter().rev().map(|(element, item)| (element.as_str(), *item)).collect();
    let named: BTreeSet<&str> = right.iter().map(|(element, _)| element.as_str()).collect();
    let merged = |element: &str, item: &Value| match live_items.get(element) {
        Some(live) => merge(list.item(), live, item),
        None => item.clone(),
    };
    let mut out: Vec<Value> = Vec::with_capacity(live.len().max(config.len()));
    let mut rest = right.iter();
    for (element, item) in &left {
        if !named.contains(element.as_str()) {
            out.push((*item).clone());
            continue;
        }
        // What the configuration has up to the shared item comes here, unless it comes in another order there.
        let next = rest.clone().find(|(own, _)| live_items.contains_key(own.as_str()));
        if next.is_some_and(|(own, _)| own == element) {
            for (own, item) in rest.by_ref() {
                out.push(merged(own, item));
                if own == element {
                    break;
                }
            }
        }
    }
    out.extend(rest.map(|(element, item)| merged(element, item)));
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::table;

    fn merged(live: &Value, config: &Value) -> Value {
        merge(Form::of_type(table().find("core.v1.Pod").unwrap()), live, config)
    }

    #[test]
    fn items_keep_their_places() {
        for (live, config, expected) in [
            ("abc", "", "abc"),
            ("", "ab", "ab"),
            ("abc", "abc", "abc"),
            ("abc", "b", "abc"),
            // A new item stands before the shared one that follows it, or at the end.
            ("abc", "xb", "axbc"),
            ("abc", "bx", "abcx"),
            ("ab", "xy", "abxy"),
            // The configuration's order goes before the live one's.
            ("abc", "ca", "bca"),
            ("abcd", "db", "acdb"),
        ] {
            let pod = |names: &str| {
                let containers: Vec<Value> = names.chars().map(|name| json!({"name": name.to_string()})).collect();
                json!({"spec": {"containers": containers}, "metadata": {"finalizers": names.split("").collect::<Vec<_>>()}})
            };
            let result = merged(&pod(live), &pod(config));
            let names = |items: &Value| -> String {
                items.as_array().into_iter().flatten().filter_map(|item| item["name"].as_str()).collect()
            };
            assert_eq!(names(&result["spec"]["containers"]), expected, "{live} + {config}");
        }
    }

    #[test]
    fn leaves_are_replaced_and_the_rest_is_merged() {
        let live = json!({
            "metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]},
            "spec": {"nodeSelector": {"a": "b"}, "hostAliases": [{"ip": "1.1.1.1", "hostnames": ["a"]}], "nodeName": "n",
                     "containers": [{"name": "c", "image": "i", "args": ["1", "2"], "env": [{"name": "A", "value": "1"}]}]}
        });
        let config = json!({
            "metadata": {"labels": {"b": "3", "c": "4"}, "finalizers": ["z", "y"]},
            "spec": {"nodeSelector": {"c": "d"}, "hostAliases": null, "nodeName": null,
                     "containers": [{"name": "c", "args": ["3"], "env": [{"name": "B"}]}]}
        });
        assert_eq!(
            merged(&live, &config),
            json!({
                "metadata": {"labels": {"a": "1", "b": "3", "c": "4"}, "finalizers": ["x", "z", "y"]},
                "spec": {"nodeSelector": {"c": "d"}, "hostAliases": [{"ip": "1.1.1.1", "hostnames": ["a"]}], "nodeName": null,
                         "containers": [{"name": "c", "image": "i", "args": ["3"],
                                         "env": [{"name": "A", "value": "1"}, {"name": "B"}]}]}
            })
        );
    }
}
