//! Rules of definitions (`x-kubernetes-validations`).

use http::Method;
use serde_json::{Value, json};

use super::{DEFINITIONS, definition};
use crate::harness::Cluster;

/// A route in the manner of the Gateway API: rules at every level, about lists, choices and changes.
fn routes() -> Value {
    let reference = json!({"type": "object", "required": ["name"], "properties": {
        "group": {"type": "string", "default": "", "maxLength": 253},
        "kind": {"type": "string", "default": "Service", "maxLength": 63},
        "name": {"type": "string", "maxLength": 253},
        "port": {"type": "integer", "minimum": 1, "maximum": 65535}
    }, "x-kubernetes-validations": [
        {"rule": "self.group.size() == 0 && self.kind == 'Service' ? has(self.port) : true",
         "message": "a Service needs a port"}
    ]});
    let spec = json!({"type": "object", "required": ["rules"], "properties": {
        "hostnames": {"type": "array", "maxItems": 16, "x-kubernetes-list-type": "set", "items": {"type": "string", "maxLength": 253}},
        "class": {"type": "string", "maxLength": 63, "x-kubernetes-validations": [
            {"rule": "self == oldSelf", "message": "class is immutable"}]},
        "rules": {"type": "array", "maxItems": 16, "items": {"type": "object", "properties": {
            "name": {"type": "string", "maxLength": 63},
            "redirect": {"type": "string", "format": "uri", "maxLength": 200},
            "backends": {"type": "array", "maxItems": 16, "items": reference}
        }, "x-kubernetes-validations": [
            {"rule": "!(has(self.redirect) && has(self.backends) && self.backends.size() > 0)",
             "messageExpression": "'rule ' + (has(self.name) ? self.name : 'without a name') + ' redirects and has backends'",
             "reason": "FieldValueForbidden", "fieldPath": ".redirect"}
        ]}, "x-kubernetes-validations": [
            {"rule": "self.all(a, !has(a.name) || self.exists_one(b, has(b.name) && a.name == b.name))",
             "message": "names of rules must differ"}
        ]}
    }});
    let mut routes = definition();
    routes["metadata"]["name"] = "routes.stable.example.com".into();
    routes["spec"]["names"] = json!({"plural": "routes", "kind": "Route"});
    routes["spec"]["versions"] = json!([{
        "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": spec, "status": {"type": "object", "properties": {"parents": {"type": "integer"}}}
        }, "x-kubernetes-validations": [
            {"rule": "!has(self.status) || !has(self.status.parents) || self.status.parents < 3", "message": "too many parents"}
        ]}}
    }]);
    routes
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_definitions_are_kept_to() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule";
    let limitless = "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Forbidden: estimated rule cost \
                     exceeds budget by factor of more than 100x";
    for (rule, words) in [
        ("self.rule == []", format!("{path}: Invalid value: {{\"Rule\":\"self.rule == []\"")),
        (
            "self.rule == []",
            "compilation failed: ERROR: <input>:1:5: undefined field 'rule'\n | self.rule == []\n | ....^".into(),
        ),
        ("self.hostnames", "cel expression must evaluate to a bool".into()),
        ("self.hostnames.all(h, oldSelf.hostnames.all(i, h.contains(i)))", limitless.into()),
    ] {
        let mut wrong = routes();
        let spec = &mut wrong["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        spec["properties"]["hostnames"]["maxItems"].take();
        spec["x-kubernetes-validations"] = json!([{"rule": rule}]);
        let (code, message) = admin.post(DEFINITIONS, &wrong).await.failure();
        assert!(code == 422 && message.contains(&words), "{rule}: {message}");
    }
    let answer = admin.post(DEFINITIONS, &routes()).await;
    assert!(!answer.headers.contains_key("warning"));
    answer.ok();
    let all = "/apis/stable.example.com/v1/namespaces/default/routes";
    let route = |spec: Value| json!({"apiVersion": "stable.example.com/v1", "kind": "Route", "metadata": {"name": "a"}, "spec": spec});
    for (spec, words) in [
        (
            json!({"rules": [{"backends": [{"name": "web"}]}]}),
            "spec.rules[0].backends[0]: Invalid value: a Service needs a port",
        ),
        (
            json!({"rules": [{"name": "x", "redirect": "https://b", "backends": [{"name": "web", "port": 80}]}]}),
            "spec.rules[0].redirect: Forbidden: rule x redirects and has backends",
        ),
        (json!({"rules": [{"name": "x"}, {"name": "x"}]}), "spec.rules: Invalid value: names of rules must differ"),
        (
            json!({}),
            "[spec.rules: Required value, <nil>: Invalid value: null: some validation rules were not checked because the object was \
             invalid; correct the existing errors to complete validation]",
        ),
    ] {
        let (code, message) = admin.post(all, &route(spec.clone())).await.failure();
        assert_eq!((code, message), (422, format!("Route.stable.example.com \"a\" is invalid: {words}")), "{spec}");
    }
    let good = json!({"class": "one", "hostnames": ["b", "a"], "rules": [{"name": "x", "backends": [{"name": "web", "port": 80}]}]});
    admin.post(all, &route(good)).await.ok();
    let one = format!("{all}/a");
    let refused = admin.merge(&one, &json!({"spec": {"class": "two"}})).await.failure();
    let words = "Route.stable.example.com \"a\" is invalid: spec.class: Invalid value: \"two\": class is immutable";
    assert_eq!(refused, (422, words.to_owned()));
    let refused = admin.merge(&format!("{one}/status"), &json!({"status": {"parents": 5}})).await.failure();
    let words = "Route.stable.example.com \"a\" is invalid: <nil>: Invalid value: too many parents";
    assert_eq!(refused, (422, words.to_owned()));
    // A rule that comes later binds only what changes.
    let mut stricter = routes();
    let spec = &mut stricter["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    spec["properties"]["hostnames"]["items"]["maxLength"] = 0.into();
    spec["properties"]["rules"]["items"]["x-kubernetes-validations"] = json!([{"rule": "has(self.redirect)"}]);
    let patch = json!({"spec": stricter["spec"]});
    admin.merge(&format!("{DEFINITIONS}/routes.stable.example.com"), &patch).await.ok();
    admin.merge(&one, &json!({"metadata": {"labels": {"a": "b"}}})).await.ok();
    let refused = admin.merge(&one, &json!({"spec": {"rules": [{"name": "y"}]}})).await.failure();
    let words =
        "Route.stable.example.com \"a\" is invalid: spec.rules[0]: Invalid value: failed rule: has(self.redirect)";
    assert_eq!(refused, (422, words.to_owned()));
    let apply = json!({"apiVersion": "stable.example.com/v1", "kind": "Route", "metadata": {"name": "a"},
        "spec": {"hostnames": ["c"], "rules": []}});
    let path = format!("{one}?fieldManager=m&force=true");
    let refused = admin
        .send(Method::PATCH, &path, &[("content-type", "application/apply-patch+yaml")], apply.to_string())
        .await
        .failure();
    assert!(refused.1.contains("spec.hostnames[0]: Too long: may not be more than 0 bytes"), "{refused:?}");
}
