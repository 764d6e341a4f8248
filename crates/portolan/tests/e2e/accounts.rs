//! What pods may do with the API: each as its ServiceAccount, and no more than roles give that.

use serde_json::{Value, json};

use crate::cluster::{Api, Cluster, SOON};
use crate::machine::{eventually, on_a_machine};

/// What the pod's container said last.
fn last_words(api: &Api, pod: &str) -> Value {
    let path = format!("/api/v1/namespaces/default/pods/{pod}/log?tailLines=1");
    api.send("GET", &path, "application/json", Vec::new()).1
}

#[test]
fn a_pod_uses_the_api_as_its_account() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "1"]);
        let api = cluster.client();
        api.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "robot"}}));
        let asker = json!({"metadata": {"name": "asker"}, "spec": {"serviceAccountName": "robot", "containers": [{
            "name": "c", "image": "portolan/workload",
            "args": ["api", "/api/v1/namespaces/default/pods", "--every", "200ms"]
        }]}});
        api.post("/api/v1/namespaces/default/pods", &asker);
        let refused = "User \"system:serviceaccount:default:robot\" cannot list resource \"pods\" in API group \"\" in the \
                       namespace \"default\"";
        eventually("the pod is known and refused", SOON, || {
            let said = last_words(&api, "asker");
            let message = said["message"].as_str().unwrap_or_default();
            if said["code"] == 403 && message.contains(refused) { Ok(()) } else { Err(said.to_string()) }
        });
        let binding = json!({
            "metadata": {"name": "robot"}, "roleRef": {"kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "ServiceAccount", "name": "robot"}]
        });
        api.post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", &binding);
        let answered = |what: &str| {
            eventually(what, SOON, || {
                let said = last_words(&api, "asker");
                if said["kind"] == "PodList" { Ok(()) } else { Err(said.to_string()) }
            });
        };
        answered("the pod may look");
        // Its token ends with the account, as it would with the pod.
        api.delete("/api/v1/namespaces/default/serviceaccounts/robot");
        eventually("the pod is nobody", SOON, || {
            let said = last_words(&api, "asker");
            if said["code"] == 401 { Ok(()) } else { Err(said.to_string()) }
        });
        assert!(cluster.stop().success());
    });
}
