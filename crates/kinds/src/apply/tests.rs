use proptest::prelude::*;

use super::*;
use crate::{FieldValidation, find};

const NOW: &str = "2026-01-01T00:00:00Z";

/// An object, and what happens to it.
struct Live {
    kind: &'static Kind,
    object: Option<Value>,
}

impl Live {
    fn new(group: &str, plural: &str) -> Self {
        Self { kind: find(group, "v1", plural).unwrap(), object: None }
    }

    fn config(&self, rest: Value) -> Value {
        let mut config = rest;
        config["apiVersion"] = self.kind.api_version().into();
        config["kind"] = self.kind.kind.into();
        config
    }

    fn store(&mut self, mut object: Value, managed_fields: Value) {
        object = self.kind.decode(object, FieldValidation::Strict).unwrap().0;
        if !managed_fields.is_null() {
            object["metadata"]["managedFields"] = managed_fields;
        }
        self.object = Some(object);
    }

    fn try_apply(&self, manager: &str, config: &Value, force: bool) -> Result<(Value, Owners), Status> {
        let config = self.config(config.clone());
        let mut live = self.object.clone();
        let held = live.as_mut().map(take_managed_fields).unwrap_or_default();
        let writer = Writer { manager, subresource: "", now: NOW, translations: None };
        let (object, owners) = apply(self.kind, (live.as_ref(), &held), &config, force, writer)?;
        assert_eq!(owners.changed, owners.managed_fields != held, "times are all the same here");
        Ok((object, owners))
    }

    fn apply(&mut self, manager: &str, config: &Value) -> &mut Self {
        let (object, owners) = self.try_apply(manager, config, false).unwrap();
        self.store(object, owners.managed_fields);
        self
    }

    fn refused(&self, manager: &str, config: &Value) -> String {
        self.try_apply(manager, config, false).unwrap_err().message().to_owned()
    }

    fn update(&mut self, manager: &str, new: &Value) -> &mut Self {
        let (new, writer) =
            (self.config(new.clone()), Writer { manager, subresource: "", now: NOW, translations: None });
        let mut old = self.object.take();
        let held = old.as_mut().map(take_managed_fields).unwrap_or_default();
        let owners = update(self.kind, (old.as_ref(), held.clone()), (&new, &Value::Null), writer);
        assert_eq!(owners.changed, owners.managed_fields != held, "times are all the same here");
        self.store(new, owners.managed_fields);
        self
    }

    /// The object without what every test would repeat.
    fn plain(&self) -> Value {
        let mut object = self.object.clone().unwrap();
        take_managed_fields(&mut object);
        for field in ["apiVersion", "kind"] {
            remove_field(&mut object, field);
        }
        if object["metadata"] == json!({}) {
            remove_field(&mut object, "metadata");
        }
        object
    }

    fn entries(&self) -> Vec<Entry> {
        managers::decode(self.object.clone().map(|mut object| take_managed_fields(&mut object)).unwrap_or_default())
    }

    /// The paths that a manager owns, as messages name them.
    fn owned(&self, manager: &str) -> Vec<String> {
        let entries = self.entries();
        let sets = entries.iter().filter(|entry| entry.manager == manager).map(|entry| &entry.fields);
        sets.flat_map(set::paths).map(|path| path.into_iter().map(element::shown).collect()).collect()
    }
}

#[test]
fn a_field_goes_with_the_last_who_applies_it() {
    let mut live = Live::new("", "configmaps");
    live.apply("a", &json!({"data": {"x": "1", "y": "1"}})).apply("b", &json!({"data": {"y": "1", "z": "1"}}));
    assert_eq!(live.plain(), json!({"data": {"x": "1", "y": "1", "z": "1"}}));
    live.apply("a", &json!({}));
    assert_eq!(live.plain(), json!({"data": {"y": "1", "z": "1"}}));
    assert!(live.owned("a").is_empty());
    live.apply("b", &json!({"data": {"z": "1"}}));
    assert_eq!(live.plain(), json!({"data": {"z": "1"}}));
    live.apply("b", &json!({}));
    assert_eq!(live.plain(), json!({}));
    assert!(live.entries().is_empty());
}

#[test]
fn who_updates_takes_what_changes() {
    let mut live = Live::new("", "configmaps");
    live.apply("a", &json!({"data": {"x": "1", "y": "1"}}))
        .update("u", &json!({"data": {"x": "2", "y": "1", "z": "1"}}));
    assert_eq!((live.owned("a"), live.owned("u")), (vec![".data.y".into()], vec![".data.x".into(), ".data.z".into()]));
    let words = "Apply failed with 1 conflict: conflict with \"u\" using v1: .data.x";
    assert_eq!(live.refused("a", &json!({"data": {"x": "1", "y": "1"}})), words);
    // Agreeing is no conflict; then what u owns alone stays.
    live.apply("a", &json!({"data": {"x": "2"}}));
    assert_eq!(live.plain(), json!({"data": {"x": "2", "z": "1"}}));
    live.update("u", &json!({"data": {"z": "1"}}));
    assert!(live.owned("a").is_empty(), "what is removed is nobody's");
    assert_eq!(live.owned("u"), [".data.z"]);
}

/// The example of Kubernetes' documentation: the autoscaler takes over the replicas.
#[test]
fn replicas_are_handed_over() {
    let deployment = |replicas: Option<u32>| {
        let mut config = json!({"spec": {
            "selector": {"matchLabels": {"app": "nginx"}},
            "template": {"metadata": {"labels": {"app": "nginx"}},
                         "spec": {"containers": [{"name": "nginx", "image": "nginx:1.14.2"}]}}
        }});
        if let Some(replicas) = replicas {
            config["spec"]["replicas"] = replicas.into();
        }
        config
    };
    let mut live = Live::new("apps", "deployments");
    live.apply("user", &deployment(Some(3)));
    let autoscaler = json!({"spec": {"replicas": 3}});
    live.apply("handover", &autoscaler).apply("user", &deployment(None));
    assert_eq!(live.plain()["spec"]["replicas"], 3);
    assert_eq!(live.owned("handover"), [".spec.replicas"]);
    let mut scaled = live.plain();
    scaled["spec"]["replicas"] = 5.into();
    live.update("autoscaler", &scaled);
    assert!(live.owned("handover").is_empty());
    live.apply("user", &deployment(None));
    assert_eq!(live.plain()["spec"]["replicas"], 5);
    assert!(
        live.refused("user", &deployment(Some(3)))
            .ends_with("conflict with \"autoscaler\" using apps/v1: .spec.replicas")
    );
}

#[test]
fn items_go_one_by_one() {
    let pod = |containers: Value| json!({"spec": {"containers": containers}});
    let mut live = Live::new("", "pods");
    live.apply(
        "a",
        &pod(json!([{"name": "x", "image": "1", "env": [{"name": "E", "value": "1"}]}, {"name": "y", "image": "1"}])),
    );
    live.apply(
        "b",
        &pod(json!([{"name": "sidecar", "image": "2"}, {"name": "x", "env": [{"name": "F", "value": "2"}]}])),
    );
    let names = |live: &Live| -> Vec<Value> {
        live.plain()["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|container| container["name"].clone())
            .collect()
    };
    assert_eq!(names(&live), ["sidecar", "x", "y"]);
    live.apply("a", &pod(json!([{"name": "x", "image": "1"}])));
    assert_eq!(names(&live), ["sidecar", "x"]);
    assert_eq!(
        live.plain()["spec"]["containers"][1],
        json!({"name": "x", "image": "1", "env": [{"name": "F", "value": "2"}]})
    );
    // Order alone is nobody's: it follows who applies.
    live.apply(
        "b",
        &pod(json!([{"name": "x", "env": [{"name": "F", "value": "2"}]}, {"name": "sidecar", "image": "2"}])),
    );
    assert_eq!(names(&live), ["x", "sidecar"]);
}

#[test]
fn what_is_atomic_is_owned_whole() {
    let service = |selector: Value| json!({"spec": {"selector": selector}});
    let mut live = Live::new("", "services");
    live.apply("a", &service(json!({"x": "1", "y": "2"})));
    assert_eq!(live.owned("a"), [".spec.selector"]);
    assert!(live.refused("b", &service(json!({"x": "1"}))).ends_with(": .spec.selector"));
    live.apply("a", &service(json!({"x": "1"})));
    assert_eq!(live.plain(), json!({"spec": {"selector": {"x": "1"}}}));
}

#[test]
fn who_applied_from_the_client_goes_on_without_conflicts() {
    let mut live = Live::new("", "configmaps");
    let last =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"annotations": {}}, "data": {"x": "1", "y": "1"}});
    let annotated =
        |data: Value| json!({"metadata": {"annotations": {LAST_APPLIED: format!("{last}\n")}}, "data": data});
    live.update("kubectl-client-side-apply", &annotated(json!({"x": "1", "y": "1", "z": "1"})));
    assert!(live.refused("somebody", &json!({"data": {"x": "2"}})).contains("kubectl-client-side-apply"));
    // What was not in the configuration is still another's.
    assert_eq!(
        live.refused("kubectl", &json!({"data": {"x": "2", "z": "2"}})),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using v1: .data.z"
    );
    live.apply("kubectl", &json!({"data": {"x": "2"}}));
    assert_eq!(live.plain()["data"], json!({"x": "2", "y": "1", "z": "1"}));
    assert_eq!(live.owned("kubectl"), [".data.x"]);
    let left = live.plain()["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap().to_owned();
    assert_eq!(
        serde_json::from_str::<Value>(&left).unwrap(),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "2"}})
    );
}

/// A Deployment of few parts, of which any may be missing.
/// Who applies what is there already has not written at any time, as kube-apiserver 1.36.2 has it, and stands first.
#[test]
fn who_changes_nothing_has_no_time() {
    let mut live = Live::new("", "configmaps");
    live.apply("a", &json!({"data": {"x": "1"}})).apply("b", &json!({"data": {"x": "1"}}));
    let times: Vec<(String, String)> = live.entries().into_iter().map(|entry| (entry.manager, entry.time)).collect();
    assert_eq!(times, [("b".to_owned(), String::new()), ("a".to_owned(), NOW.to_owned())]);
}

fn some_config() -> impl Strategy<Value = Value> {
    let value = || prop::sample::select(vec!["1", "2"]);
    let names = prop::sample::subsequence(vec!["a", "b", "c"], 0..=3).prop_shuffle();
    let containers = names.prop_flat_map(move |names| {
        let count = names.len();
        (
            Just(names),
            prop::collection::vec(prop::option::of(value()), count),
            prop::collection::vec(any::<bool>(), count),
        )
    });
    let labels = prop::collection::btree_map(prop::sample::select(vec!["x", "y", "z"]), value(), 0..3);
    let finalizers = prop::sample::subsequence(vec!["f/1", "f/2", "f/3"], 0..=3);
    (prop::option::of(1..3_u32), labels, finalizers, value(), containers).prop_map(
        |(replicas, labels, finalizers, selector, (names, images, ports))| {
            // No Deployment is without a selector.
            let mut config = json!({"spec": {"selector": {"matchLabels": {"app": selector}}}});
            if let Some(replicas) = replicas {
                config["spec"]["replicas"] = replicas.into();
            }
            if !labels.is_empty() {
                config["metadata"]["labels"] = json!(labels);
            }
            if !finalizers.is_empty() {
                config["metadata"]["finalizers"] = json!(finalizers);
            }
            let containers: Vec<Value> = names
                .iter()
                .zip(images)
                .zip(ports)
                .map(|((name, image), port)| {
                    let mut container = json!({"name": name});
                    if let Some(image) = image {
                        container["image"] = image.into();
                    }
                    if port {
                        container["ports"] = json!([{"containerPort": 80, "protocol": "TCP"}]);
                    }
                    container
                })
                .collect();
            if !containers.is_empty() {
                config["spec"]["template"]["spec"]["containers"] = containers.into();
            }
            config
        },
    )
}

fn leaves(live: &Live) -> Set {
    let form = Form::of_type(schema(live.kind.type_name()).unwrap());
    if live.object.is_some() { extract(form, &live.plain()) } else { Set::new() }
}

/// The value at a path, if nothing in it is owned apart.
fn leaf<'a>(form: Form, value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    let [first, rest @ ..] = path else { return (!form.fits(value)).then_some(value) };
    match form {
        Form::List(list) => {
            let items = list.elements(value.as_array()?);
            leaf(list.item(), items.into_iter().find(|(element, _)| element == first)?.1, rest)
        }
        form => {
            let name = first.strip_prefix("f:")?;
            leaf(form.child(name), value.get(name)?, rest)
        }
    }
}

proptest! {
    #[test]
    fn whoever_writes_what(steps in prop::collection::vec((0..3_usize, any::<bool>(), any::<bool>(), some_config()), 1..8)) {
        let mut live = Live::new("apps", "deployments");
        let form = Form::of_type(schema("apps.v1.Deployment").unwrap());
        for (who, applies, force, config) in steps {
            let manager = ["one", "two", "three"][who];
            let before = leaves(&live);
            if applies {
                let (forced, owners) = live.try_apply(manager, &config, true).unwrap();
                let differs = |fields: &Set| set::paths(fields).iter().any(|path| {
                    let old = live.object.as_ref().and_then(|object| leaf(form, object, path));
                    let new = leaf(form, &forced, path);
                    old.is_some() && new.is_some() && old != new
                });
                let held = live.entries();
                let mut others = held.iter().filter(|entry| entry.manager != manager || entry.operation == Operation::Update);
                // What nobody is known to have written counts as somebody else's.
                let expected = if held.is_empty() { differs(&before) } else { others.any(|entry| differs(&entry.fields)) };
                let outcome = live.try_apply(manager, &config, false);
                prop_assert_eq!(outcome.is_err(), expected, "{:?}", outcome);
                if expected && !force {
                    continue;
                }
                live.store(forced, owners.managed_fields);
                prop_assert!(set::covers(&leaves(&live), &extract(form, &config)), "all of it is there");
                let (again, owners) = live.try_apply(manager, &config, false).unwrap();
                let mut object = live.object.clone().unwrap();
                let held = take_managed_fields(&mut object);
                prop_assert_eq!(&again, &object, "the same again changes nothing");
                prop_assert_eq!(&owners.managed_fields, &held);
            } else {
                live.update(manager, &config);
            }
            let gone = set::difference(&before, &leaves(&live));
            for entry in live.entries() {
                prop_assert!(!set::meet(&entry.fields, &gone), "{} owns what is gone", entry.manager);
            }
            let stored = live.object.as_ref().map(|object| object["metadata"]["managedFields"].clone()).unwrap_or_default();
            prop_assert_eq!(managers::encode(managers::decode(stored.clone())), stored);
        }
    }

    #[test]
    fn comparing_says_all_and_no_more(old in some_config(), new in some_config()) {
        let form = Form::of_type(schema("apps.v1.Deployment").unwrap());
        let changes = compare(form, &old, &new);
        let (left, right) = (extract(form, &old), extract(form, &new));
        prop_assert!(set::covers(&changes.added, &set::difference(&right, &left)));
        prop_assert!(set::covers(&changes.removed, &set::difference(&left, &right)));
        prop_assert!(!set::meet(&changes.added, &left) && !set::meet(&changes.removed, &right));
        let back = compare(form, &new, &old);
        prop_assert_eq!((&back.added, &back.modified, &back.removed), (&changes.removed, &changes.modified, &changes.added));
        prop_assert_eq!(compare(form, &old, &old), Changes::default());
    }
}
