//! What goes with what, and in which order.

use serde_json::{Value, json};

use crate::cluster::{Api, Cluster, SOON};
use crate::machine::{eventually, on_a_machine};

/// A pod that nobody runs, and that so goes as soon as nothing holds it.
fn pod(name: &str, finalizers: &Value) -> Value {
    json!({
        "metadata": { "name": name, "finalizers": finalizers },
        "spec": { "schedulerName": "nobody", "containers": [{ "name": "c", "image": "portolan/workload" }] },
    })
}

fn gone(api: &Api, path: &str) {
    eventually(&format!("{path} is gone"), SOON, || match api.send("GET", path, "application/json", Vec::new()) {
        (404, _) => Ok(()),
        (status, body) => Err(format!("{status} {body}")),
    });
}

#[test]
fn what_goes_goes_in_order() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "1"]);
        let api = cluster.client();
        a_namespaces_pods_go_first(&api);
        owners_in_a_circle_go_together(&api);
        assert!(cluster.stop().success());
    });
}

fn a_namespaces_pods_go_first(api: &Api) {
    api.post("/api/v1/namespaces", &json!({ "metadata": { "name": "shop" } }));
    let (pods, config_maps) = ("/api/v1/namespaces/shop/pods", "/api/v1/namespaces/shop/configmaps");
    eventually("pods may be made", SOON, || {
        let body = pod("held", &json!(["example.com/hold"])).to_string();
        match api.send("POST", pods, "application/json", body.into()) {
            (201, _) => Ok(()),
            (status, body) => Err(format!("{status} {body}")),
        }
    });
    api.post(config_maps, &json!({ "metadata": { "name": "needed" } }));
    api.delete("/api/v1/namespaces/shop");
    eventually("the pod is what remains", SOON, || {
        let namespace = api.get("/api/v1/namespaces/shop");
        let conditions = namespace["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let remains = "Some resources are remaining: pods. has 1 resource instances";
        if conditions.iter().any(|c| c["message"] == remains) { Ok(()) } else { Err(namespace.to_string()) }
    });
    assert!(api.get(&format!("{pods}/held"))["metadata"]["deletionTimestamp"].is_string());
    api.get(&format!("{config_maps}/needed"));
    api.merge(&format!("{pods}/held"), &json!({ "metadata": { "finalizers": null } }));
    gone(api, "/api/v1/namespaces/shop");
}

fn owners_in_a_circle_go_together(api: &Api) {
    let path = |name: &str| format!("/api/v1/namespaces/default/pods/{name}");
    let names = ["a", "b", "c"];
    let uids = names.map(|name| {
        let made = api.post("/api/v1/namespaces/default/pods", &pod(name, &Value::Null));
        made["metadata"]["uid"].clone()
    });
    for (owned, owner) in [(0, 2), (1, 0), (2, 1)] {
        let owner = json!({
            "apiVersion": "v1", "kind": "Pod", "name": names[owner], "uid": uids[owner],
            "controller": true, "blockOwnerDeletion": true,
        });
        api.merge(&path(names[owned]), &json!({ "metadata": { "ownerReferences": [owner] } }));
    }
    api.delete(&format!("{}?propagationPolicy=Foreground", path("a")));
    names.iter().for_each(|name| gone(api, &path(name)));
}
