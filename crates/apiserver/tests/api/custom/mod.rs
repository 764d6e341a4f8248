//! CustomResourceDefinitions, and what they make.

mod conversion;
mod rules;

use http::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Client, Cluster, pair};
use crate::kubectl::{Kubectl, has_kubectl, versions};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const GROUP: &str = "/apis/stable.example.com/v1";
const CRONTABS: &str = "/apis/stable.example.com/v1/namespaces/default/crontabs";

pub(crate) fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.stable.example.com"},
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "shortNames": ["ct"], "categories": ["all"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "description": "When to do what.", "required": ["cronSpec"], "properties": {
                        "cronSpec": {"type": "string", "description": "In cron's form.", "pattern": "^(\\d+|\\*)(/\\d+)?(\\s+(\\d+|\\*)(/\\d+)?){4}$"},
                        "image": {"type": "string", "default": "busybox"},
                        "replicas": {"type": "integer", "minimum": 1, "maximum": 10},
                        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"], "items": {
                            "type": "object", "required": ["port"], "properties": {"port": {"type": "integer"}, "name": {"type": "string"}}}},
                        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
                    }},
                    "status": {"type": "object", "properties": {
                        "replicas": {"type": "integer"}, "selector": {"type": "string"}}}
                }}},
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
                "selectableFields": [{"jsonPath": ".spec.image"}],
                "additionalPrinterColumns": [
                    {"name": "Spec", "type": "string", "jsonPath": ".spec.cronSpec", "description": "The cron spec"},
                    {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]
            }]
        }
    })
}

pub(crate) fn crontab(name: &str) -> Value {
    json!({
        "apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": {"name": name},
        "spec": {"cronSpec": "* * * * */5", "replicas": 1}
    })
}

fn condition<'a>(definition: &'a Value, kind: &str) -> &'a str {
    let conditions = definition["status"]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    found.map_or("", |condition| condition["status"].as_str().unwrap())
}

async fn served() -> (Cluster, Client) {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.post(DEFINITIONS, &definition()).await.ok();
    (cluster, admin)
}

#[tokio::test]
async fn a_definition_is_served_at_once() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    assert_eq!(admin.get(CRONTABS).await.code, 404);
    admin.post(DEFINITIONS, &definition()).await.ok();
    let stored = admin.get(&format!("{DEFINITIONS}/crontabs.stable.example.com")).await.ok();
    assert_eq!((condition(&stored, "NamesAccepted"), condition(&stored, "Established")), ("True", "True"));
    let owners = stored["metadata"]["managedFields"].as_array().unwrap();
    let of_status = owners.iter().find(|entry| entry["subresource"] == "status").unwrap();
    assert_eq!(
        (
            &of_status["manager"],
            &of_status["operation"],
            &of_status["fieldsV1"]["f:status"]["f:acceptedNames"]["f:kind"]
        ),
        (&json!("kube-apiserver"), &json!("Update"), &json!({}))
    );
    assert_eq!(stored["status"]["acceptedNames"]["listKind"], "CronTabList");
    assert_eq!(stored["status"]["storedVersions"], json!(["v1"]));

    let group = admin.get(GROUP).await.ok();
    let names: Vec<&str> =
        group["resources"].as_array().unwrap().iter().map(|resource| resource["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["crontabs", "crontabs/status", "crontabs/scale"]);
    assert_eq!(group["resources"][0]["shortNames"], json!(["ct"]));
    assert!(admin.get("/apis").await.ok().to_string().contains("stable.example.com/v1"));

    // Aggregated discovery names its state, so that who has it already is spared it.
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let first = admin.send(Method::GET, "/apis", &[("accept", aggregated)], "").await;
    assert!(first.json().to_string().contains("CronTab"));
    let tag = first.headers["etag"].to_str().unwrap().to_owned();
    let headers = [("accept", aggregated), ("if-none-match", tag.as_str())];
    assert_eq!(admin.send(Method::GET, "/apis", &headers, "").await.code, 304);

    let index = admin.get("/openapi/v3").await.ok();
    let path = index["paths"]["apis/stable.example.com/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let document = admin.get(&path).await.ok();
    let schema = &document["components"]["schemas"]["com.example.stable.v1.CronTab"];
    assert_eq!(schema["properties"]["spec"]["properties"]["cronSpec"]["description"], "In cron's form.");
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "CronTab");

    // The same after a restart, and gone with its definition.
    admin.post(CRONTABS, &crontab("a")).await.ok();
    let cluster = Cluster::start_in(cluster.stop().await, |_| {}).await;
    let admin = cluster.admin();
    assert_eq!(admin.get(&format!("{CRONTABS}/a")).await.ok()["spec"]["image"], "busybox");
    let mut changed = definition();
    changed["metadata"] =
        admin.get(&format!("{DEFINITIONS}/crontabs.stable.example.com")).await.ok()["metadata"].clone();
    changed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["image"]["default"] =
        "alpine".into();
    admin.put(&format!("{DEFINITIONS}/crontabs.stable.example.com"), &changed).await.ok();
    assert_ne!(admin.send(Method::GET, "/apis", &headers, "").await.headers["etag"], "");
    assert_ne!(
        admin.get("/openapi/v3").await.ok()["paths"]["apis/stable.example.com/v1"],
        index["paths"]["apis/stable.example.com/v1"]
    );
    assert_eq!(admin.post(CRONTABS, &crontab("b")).await.ok()["spec"]["image"], "alpine");
}

#[tokio::test]
async fn objects_are_pruned_defaulted_and_checked() {
    let (_cluster, admin) = served().await;
    let nowhere = admin.put(&format!("{CRONTABS}/b"), &crontab("b")).await;
    assert_eq!(nowhere.failure(), (404, "crontabs.stable.example.com \"b\" not found".to_owned()));
    let mut sent = crontab("a");
    sent["spec"]["unknown"] = 1.into();
    sent["spec"]["free"] = json!({"anything": [1]});
    sent["status"] = json!({"replicas": 7});
    let answer = admin.post(CRONTABS, &sent).await;
    assert!(answer.headers["warning"].to_str().unwrap().contains("unknown field \\\"spec.unknown\\\""));
    let made = answer.ok();
    assert_eq!(
        made["spec"],
        json!({"cronSpec": "* * * * */5", "replicas": 1, "image": "busybox", "free": {"anything": [1]}})
    );
    assert_eq!((&made["metadata"]["generation"], made.get("status")), (&json!(1), None));
    let strict = admin.post(&format!("{CRONTABS}?fieldValidation=Strict"), &sent).await;
    assert_eq!(
        strict.failure(),
        (
            400,
            "CronTab in version \"v1\" cannot be handled as a CronTab: strict decoding error: unknown field \"spec.unknown\""
                .to_owned()
        )
    );
    let mut bad = crontab("b");
    bad["spec"] = json!({"cronSpec": "x", "replicas": 11, "ports": [{"port": 1}, {"port": 1}]});
    assert_eq!(
        admin.post(CRONTABS, &bad).await.failure(),
        (
            422,
            "CronTab.stable.example.com \"b\" is invalid: [spec.cronSpec: Invalid value: \"x\": spec.cronSpec in body should \
             match '^(\\d+|\\*)(/\\d+)?(\\s+(\\d+|\\*)(/\\d+)?){4}$', spec.replicas: Invalid value: 11: spec.replicas in body \
             should be less than or equal to 10, spec.ports[1]: Duplicate value: {\"port\":1}]"
                .to_owned()
        )
    );

    bad["spec"] = json!({"replicas": "x"});
    let refused = admin.post(CRONTABS, &bad).await.failure().1;
    let words =
        ".spec.replicas: Invalid value: 0: .spec.replicas accessor error: x is of the type string, expected int64";
    assert!(refused.contains(words), "{refused}");

    // The generation counts changes of all but metadata and status; the status is its own.
    let one = format!("{CRONTABS}/a");
    let made = admin.merge(&one, &json!({"metadata": {"labels": {"a": "b"}}})).await.ok();
    assert_eq!(made["metadata"]["generation"], 1);
    let made = admin.merge(&one, &json!({"spec": {"replicas": 2}, "status": {"replicas": 9}})).await.ok();
    assert_eq!((&made["metadata"]["generation"], made.get("status")), (&json!(2), None));
    // What Go would leave out is left out.
    assert_eq!(admin.get(&format!("{one}/scale")).await.ok()["status"], json!({"replicas": 0}));
    let status = json!({"spec": {"replicas": 5}, "status": {"replicas": 2, "selector": "app=x"}});
    let made = admin.merge(&format!("{one}/status"), &status).await.ok();
    assert_eq!(made["status"], status["status"]);
    assert_eq!((&made["spec"]["replicas"], &made["metadata"]["generation"]), (&json!(2), &json!(2)));
    let scale = admin.get(&format!("{one}/scale")).await.ok();
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]),
        (&json!(2), &json!({"replicas": 2, "selector": "app=x"}))
    );
    admin.merge(&format!("{one}/scale"), &json!({"spec": {"replicas": 3}})).await.ok();
    assert_eq!(admin.get(&one).await.ok()["spec"]["replicas"], 3);

    let strategic = [("content-type", "application/strategic-merge-patch+json")];
    let answer = admin.send(Method::PATCH, &one, &strategic, "{}").await;
    assert_eq!(
        answer.failure(),
        (
            415,
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, \
             application/merge-patch+json, application/apply-patch+yaml"
                .to_owned()
        )
    );
    let json_patch = [("content-type", "application/json-patch+json")];
    let operations = r#"[{"op": "replace", "path": "/spec/image", "value": "alpine"}]"#;
    assert_eq!(admin.send(Method::PATCH, &one, &json_patch, operations).await.ok()["spec"]["image"], "alpine");
    let found = admin.get(&format!("{CRONTABS}?fieldSelector=spec.image%3Dalpine")).await.ok();
    assert_eq!((found["items"].as_array().unwrap().len(), &found["kind"]), (1, &json!("CronTabList")));
    assert_eq!(admin.get(&format!("{CRONTABS}?fieldSelector=spec.image%3Dx")).await.ok()["items"], json!([]));
    assert_eq!(admin.get(&format!("{CRONTABS}?fieldSelector=spec.replicas%3D1")).await.code, 400);
}

async fn apply(client: &Client, manager: &str, config: &Value) -> Answer {
    let name = config["metadata"]["name"].as_str().unwrap();
    let headers = [("content-type", "application/apply-patch+yaml")];
    client.send(Method::PATCH, &format!("{CRONTABS}/{name}?fieldManager={manager}"), &headers, config.to_string()).await
}

#[tokio::test]
async fn appliers_own_what_they_apply() {
    let (_cluster, admin) = served().await;
    let mut config = crontab("a");
    config["spec"] = json!({"cronSpec": "* * * * *", "ports": [{"port": 80, "name": "a"}]});
    let made = apply(&admin, "one", &config).await.ok();
    assert_eq!(made["spec"]["image"], "busybox");
    let mut other = crontab("a");
    other["spec"] = json!({"cronSpec": "* * * * *", "ports": [{"port": 81}]});
    let made = apply(&admin, "two", &other).await.ok();
    assert_eq!(made["spec"]["ports"], json!([{"port": 80, "name": "a"}, {"port": 81}]));
    let again = apply(&admin, "two", &other).await.ok();
    assert_eq!(again["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"], "nothing changed");
    other["spec"]["cronSpec"] = "1 * * * *".into();
    let refused = apply(&admin, "two", &other).await.failure();
    assert_eq!(refused, (409, "Apply failed with 1 conflict: conflict with \"one\": .spec.cronSpec".to_owned()));
    other["spec"] = json!({"cronSpec": "* * * * *"});
    let made = apply(&admin, "two", &other).await.ok();
    assert_eq!(made["spec"]["ports"], json!([{"port": 80, "name": "a"}]));
    other["spec"]["unknown"] = 1.into();
    assert!(apply(&admin, "two", &other).await.failure().1.ends_with(".spec.unknown: field not declared in schema"));
}

#[tokio::test]
async fn a_null_that_is_a_value_has_an_owner() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut definition = definition();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["note"] =
        json!({"type": "string", "nullable": true});
    admin.post(DEFINITIONS, &definition).await.ok();
    let mut sent = crontab("a");
    sent["spec"] = json!({"cronSpec": "* * * * *", "note": null});
    let made = admin.post(CRONTABS, &sent).await.ok();
    assert_eq!(made["spec"].get("note"), Some(&Value::Null));
    assert_eq!(made["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:note"], json!({}));
    // So is one of which no schema says anything.
    sent["metadata"]["name"] = "free".into();
    sent["spec"]["free"] = json!({"nothing": null});
    let made = admin.post(CRONTABS, &sent).await.ok();
    assert_eq!(made["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:free"]["f:nothing"], json!({}));
    // Who applied it, and applies it no more, takes it away.
    sent["metadata"]["name"] = "b".into();
    apply(&admin, "one", &sent).await.ok();
    sent["spec"] = json!({"cronSpec": "* * * * *"});
    assert_eq!(apply(&admin, "one", &sent).await.ok()["spec"].get("note"), None);
}

#[tokio::test]
async fn versions_are_the_same_objects() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut two = definition();
    let mut old = two["spec"]["versions"][0].clone();
    old["name"] = "v1beta1".into();
    old["deprecated"] = true.into();
    two["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["since"] =
        json!({"type": "string", "default": "v1"});
    old["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["since"] = json!({"type": "string"});
    old["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["image"] =
        json!({"type": "string", "default": "old"});
    (old["served"], old["storage"]) = (true.into(), false.into());
    two["spec"]["versions"].as_array_mut().unwrap().push(old);
    admin.post(DEFINITIONS, &two).await.ok();
    let group = admin.get("/apis/stable.example.com").await.ok();
    assert_eq!(group["preferredVersion"]["version"], "v1");

    let beta = CRONTABS.replace("/v1/", "/v1beta1/");
    let mut watch = admin.watch(&format!("{beta}?watch=1")).await;
    let mut sent = crontab("a");
    sent["apiVersion"] = "stable.example.com/v1beta1".into();
    let answer = admin.post(&beta, &sent).await;
    assert_eq!(
        answer.headers["warning"],
        "299 - \"stable.example.com/v1beta1 CronTab is deprecated; use stable.example.com/v1 CronTab\""
    );
    let written = answer.ok();
    assert_eq!((&written["spec"]["image"], &written["spec"]["since"]), (&json!("old"), &json!("v1")));
    // What is only tried looks as if it had been stored, by the schema of the version that is stored.
    sent["metadata"]["name"] = "tried".into();
    let tried = admin.post(&format!("{beta}?dryRun=All"), &sent).await.ok();
    assert_eq!(tried["spec"], written["spec"]);
    let one = admin.get(&format!("{CRONTABS}/a")).await.ok();
    assert_eq!((&one["apiVersion"], &one["spec"]["image"]), (&json!("stable.example.com/v1"), &json!("old")));
    assert_eq!(watch.short().await, pair("ADDED", "a"));
    admin.delete(&format!("{CRONTABS}/a")).await.ok();
    let gone = watch.next().await.unwrap();
    assert_eq!(
        (&gone["type"], &gone["object"]["apiVersion"]),
        (&json!("DELETED"), &json!("stable.example.com/v1beta1"))
    );

    // A version that objects may be stored as cannot just go.
    let path = format!("{DEFINITIONS}/crontabs.stable.example.com");
    let mut switched = admin.get(&path).await.ok();
    switched["spec"]["versions"][0]["storage"] = false.into();
    switched["spec"]["versions"][1]["storage"] = true.into();
    let switched = admin.put(&path, &switched).await.ok();
    assert_eq!(switched["status"]["storedVersions"], json!(["v1", "v1beta1"]));
    let mut less = admin.get(&path).await.ok();
    less["spec"]["versions"].as_array_mut().unwrap().remove(0);
    assert!(
        admin
            .put(&path, &less)
            .await
            .failure()
            .1
            .contains("status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions")
    );
}

#[tokio::test]
async fn names_belong_to_who_had_them_first() {
    let (_cluster, admin) = served().await;
    let mut second = definition();
    second["metadata"]["name"] = "others.stable.example.com".into();
    second["spec"]["names"] = json!({"plural": "others", "kind": "CronTab"});
    admin.post(DEFINITIONS, &second).await.ok();
    let path = format!("{DEFINITIONS}/others.stable.example.com");
    let stored = admin.get(&path).await.ok();
    assert_eq!((condition(&stored, "NamesAccepted"), condition(&stored, "Established")), ("False", "False"));
    let others = "/apis/stable.example.com/v1/namespaces/default/others";
    assert_eq!(admin.get(others).await.code, 404);
    // The first goes, and the second gets its name.
    let mut watch =
        admin.watch(&format!("{DEFINITIONS}?watch=1&fieldSelector=metadata.name%3Dothers.stable.example.com")).await;
    admin.delete(&format!("{DEFINITIONS}/crontabs.stable.example.com")).await.ok();
    loop {
        let event = watch.next().await.unwrap();
        if condition(&event["object"], "Established") == "True" {
            break;
        }
    }
    assert_eq!(admin.get(others).await.code, 200);
}

#[tokio::test]
async fn a_definition_goes_after_its_last_object() {
    let (_cluster, admin) = served().await;
    let mut kept = crontab("kept");
    kept["metadata"]["finalizers"] = json!(["example.com/keep"]);
    admin.post(CRONTABS, &kept).await.ok();
    admin.post(CRONTABS, &crontab("free")).await.ok();
    let mut objects = admin.watch(&format!("{CRONTABS}?watch=1")).await;
    assert_eq!(objects.short().await, pair("ADDED", "free"));
    assert_eq!(objects.short().await, pair("ADDED", "kept"));
    let path = format!("{DEFINITIONS}/crontabs.stable.example.com");
    let going = admin.delete(&path).await.ok();
    assert_eq!(going["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    let mut told = vec![objects.short().await, objects.short().await];
    told.sort();
    assert_eq!(told, [pair("DELETED", "free"), pair("MODIFIED", "kept")]);
    assert_eq!(condition(&admin.get(&path).await.ok(), "Terminating"), "True");
    assert_eq!(admin.post(CRONTABS, &crontab("late")).await.code, 405);
    let mut definitions = admin.watch(&format!("{DEFINITIONS}?watch=1")).await;
    admin.merge(&format!("{CRONTABS}/kept"), &json!({"metadata": {"finalizers": null}})).await.ok();
    while definitions.short().await != pair("DELETED", "crontabs.stable.example.com") {}
    assert_eq!(admin.get(&path).await.code, 404);
    // Nothing of it comes back with the next definition of that name.
    admin.post(DEFINITIONS, &definition()).await.ok();
    assert_eq!(admin.get(CRONTABS).await.ok()["items"], json!([]));
}

#[tokio::test]
async fn what_cannot_be_served_is_refused() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut bad = definition();
    bad["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = json!({"type": "object", "properties": {"spec": {}}});
    bad["spec"]["versions"][0].as_object_mut().unwrap().remove("selectableFields");
    assert_eq!(
        admin.post(DEFINITIONS, &bad).await.failure(),
        (
            422,
            "CustomResourceDefinition.apiextensions.k8s.io \"crontabs.stable.example.com\" is invalid: \
             spec.validation.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified \
             object fields"
                .to_owned()
        )
    );
}

#[tokio::test]
async fn the_document_of_all_kinds_has_them_too() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let ask = |tag: String| {
        let admin = &admin;
        async move { admin.send(Method::GET, "/openapi/v2", &[("if-none-match", &tag)], String::new()).await }
    };
    let before = ask(String::new()).await;
    assert!(before.json()["definitions"].get("io.k8s.api.core.v1.Service").is_some());
    let tag = before.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(ask(tag.clone()).await.code, 304);
    admin.post(DEFINITIONS, &definition()).await.ok();
    let after = ask(tag.clone()).await;
    assert_ne!(after.headers["etag"].to_str().unwrap(), tag);
    let document = after.ok();
    let schema = &document["definitions"]["com.example.stable.v1.CronTab"];
    let spec = &schema["properties"]["spec"];
    assert_eq!(spec["properties"]["cronSpec"]["description"], "In cron's form.");
    // Where anything may stand, clients must not look further.
    assert_eq!(spec["properties"]["free"], json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
    let gvk = json!([{"group": "stable.example.com", "version": "v1", "kind": "CronTab"}]);
    assert_eq!(schema["x-kubernetes-group-version-kind"], gvk);
    assert!(
        document["paths"].get("/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}/scale").is_some()
    );
    let free = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let patch = json!([{"name": "v1", "served": true, "storage": true, "schema": free}]);
    let path = format!("{DEFINITIONS}/crontabs.stable.example.com");
    admin.merge(&path, &json!({"spec": {"versions": patch}})).await.ok();
    let document = ask(String::new()).await.ok();
    let schema = &document["definitions"]["com.example.stable.v1.CronTab"];
    assert_eq!((&schema["type"], schema.get("x-kubernetes-preserve-unknown-fields")), (&json!("object"), None));
    assert_eq!(schema["properties"].as_object().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_takes_them_for_its_own() {
    if !has_kubectl() {
        return;
    }
    for program in versions() {
        let cluster = Cluster::start().await;
        let kubectl = Kubectl { program, ..Kubectl::new(&cluster) };
        let definition = definition().to_string();
        assert_eq!(
            kubectl.run("apply -f FILE", &definition).await,
            "customresourcedefinition.apiextensions.k8s.io/crontabs.stable.example.com created\n"
        );
        let wait = "wait --for condition=Established crd/crontabs.stable.example.com --timeout=20s";
        assert!(kubectl.run(wait, "").await.ends_with("condition met\n"));
        assert!(kubectl.run("get crd", "").await.starts_with("NAME                          CREATED AT\n"));
        assert_eq!(
            kubectl.run("apply -f FILE", &crontab("a").to_string()).await,
            "crontab.stable.example.com/a created\n"
        );
        let mut changed = crontab("a");
        changed["spec"]["replicas"] = 2.into();
        assert_eq!(
            kubectl.run("apply -f FILE", &changed.to_string()).await,
            "crontab.stable.example.com/a configured\n"
        );
        assert_eq!(
            kubectl.run("apply --server-side --force-conflicts -f FILE", &changed.to_string()).await,
            "crontab.stable.example.com/a serverside-applied\n"
        );
        let table = kubectl.run("get ct", "").await;
        assert!(table.starts_with("NAME   SPEC          REPLICAS   AGE\na      * * * * */5   2 "), "{table}");
        assert!(kubectl.run("get all", "").await.contains("crontab.stable.example.com/a"));
        let explained = kubectl.run("explain crontab.spec", "").await;
        assert!(explained.contains("When to do what.") && explained.contains("In cron's form."), "{explained}");
        assert_eq!(kubectl.run("scale ct/a --replicas=4", "").await, "crontab.stable.example.com/a scaled\n");
        assert_eq!(kubectl.run("get ct a -o jsonpath={.spec.replicas}", "").await, "4");
        let mut typo = crontab("b");
        typo["spec"]["cronSpecs"] = "x".into();
        let refused = kubectl.output("apply -f FILE", &typo.to_string()).await;
        assert!(String::from_utf8_lossy(&refused.stderr).contains("unknown field \"spec.cronSpecs\""));
        let deleted = kubectl.run("delete -f FILE", &definition).await;
        assert!(deleted.ends_with("\"crontabs.stable.example.com\" deleted\n"), "{deleted}");
    }
}
