//! Rows as kubectl shows them.

use serde_json::{Value, json};

use crate::find;

const NOW: &str = "2024-05-01T12:00:00Z";

/// The cells of `object`, joined by ` | `.
fn row_of(group: &str, plural: &str, object: &Value) -> String {
    let kind = find(group, "v1", plural).unwrap();
    let cells = kind.row(object, NOW.parse().unwrap());
    assert_eq!(cells.len(), kind.columns().len(), "{plural}");
    let cells: Vec<String> =
        cells.iter().map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)).collect();
    cells.join(" | ")
}

#[test]
fn every_kind_has_a_row_for_an_empty_object() {
    for kind in crate::all() {
        assert_eq!(kind.row(&json!({}), NOW.parse().unwrap()).len(), kind.columns().len(), "{}", kind.kind);
        assert!(kind.columns().iter().any(|column| column.format == "name"));
        for column in kind.columns() {
            assert!(!column.description.is_empty(), "{} of {}", column.name, kind.kind);
        }
    }
    let columns = find("", "v1", "pods").unwrap().columns();
    assert!(columns[0].description.starts_with("Name must be unique within a namespace. Is required when"));
    assert_eq!(columns[1].description, "The aggregate readiness state of this pod for accepting traffic.");
}

#[test]
fn rows_of_pods_that_are_done_say_so() {
    let kind = find("", "v1", "pods").unwrap();
    let of = |phase: &str| kind.row_conditions(&json!({"status": {"phase": phase}}));
    assert_eq!(of("Running"), None);
    let condition = json!({"type": "Completed", "status": "True", "reason": "Failed", "message": "The pod failed."});
    assert_eq!(of("Failed"), Some(json!([condition])));
    assert_eq!(of("Succeeded").unwrap()[0]["reason"], "Succeeded");
}

#[test]
fn pods() {
    let meta = json!({"name": "p", "creationTimestamp": "2024-05-01T11:55:00Z"});
    let row = |metadata: Value, spec: Value, status: Value| {
        let mut merged = meta.clone();
        merged.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
        row_of("", "pods", &json!({"metadata": merged, "spec": spec, "status": status}))
    };
    let one = || json!({"containers": [{"name": "c"}], "nodeName": "n"});
    let tail = "5m | <none> | n | <none> | <none>";
    for (status, cells) in [
        (json!({"phase": "Pending"}), "0/1 | Pending | 0"),
        (
            json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}),
            "0/1 | ContainerCreating | 0",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [{"ready": true, "restartCount": 0, "state": {"running": {}}}]}),
            "1/1 | Running | 0",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [{"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                   "lastState": {"terminated": {"finishedAt": "2024-05-01T11:59:55Z"}}}]}),
            "0/1 | CrashLoopBackOff | 3 (5s ago)",
        ),
        (
            json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"reason": "Completed", "exitCode": 0}}}]}),
            "0/1 | Completed | 0",
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
            "0/1 | ExitCode:3 | 0",
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"signal": 9, "exitCode": 137}}}]}),
            "0/1 | Signal:9 | 0",
        ),
        (json!({"phase": "Failed", "reason": "Evicted"}), "0/1 | Evicted | 0"),
        (json!({}), "0/1 | Unknown | 0"),
    ] {
        assert_eq!(row(json!({}), one(), status.clone()), format!("p | {cells} | {tail}"), "{status}");
    }
    // Deletion, done or under way.
    let deleted = json!({"deletionTimestamp": "2024-05-01T12:00:00Z"});
    assert!(row(deleted.clone(), one(), json!({"phase": "Running"})).contains("| Terminating |"));
    assert!(row(deleted.clone(), one(), json!({"phase": "Running", "reason": "NodeLost"})).contains("| Unknown |"));
    assert!(row(deleted, one(), json!({"phase": "Succeeded"})).contains("| Succeeded |"));
    let ended = |code: i64, reason: &str| json!({"state": {"terminated": {"exitCode": code, "reason": reason}}});
    let status = json!({"phase": "Failed", "containerStatuses": [ended(0, "Completed"), ended(1, "Error")]});
    assert!(row(json!({}), one(), status).contains("| Error |"));
    // Init containers and sidecars.
    let spec = json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
    for (statuses, cells) in [
        (json!([{"name": "i", "restartCount": 0, "state": {"running": {}}}]), "0/2 | Init:0/2 | 0"),
        (
            json!([{"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]),
            "0/2 | Init:CrashLoopBackOff | 2",
        ),
        (
            json!([{"name": "i", "restartCount": 1, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]),
            "0/2 | Init:Error | 1",
        ),
        (
            json!([{"name": "i", "restartCount": 4, "state": {"terminated": {"exitCode": 0}}},
                   {"name": "s", "restartCount": 1, "started": true, "ready": true, "state": {"running": {}}}]),
            "1/2 | Pending | 1",
        ),
    ] {
        let status = json!({"phase": "Pending", "initContainerStatuses": statuses});
        assert!(row(json!({}), spec.clone(), status).starts_with(&format!("p | {cells} |")), "{cells}");
    }
    // Restarts of init containers are history once the pod has been initialized, whatever they do now.
    let status = json!({"phase": "Running", "conditions": [{"type": "Initialized", "status": "True"}],
        "initContainerStatuses": [{"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "PodInitializing"}}}],
        "containerStatuses": [{"ready": true, "restartCount": 1, "state": {"running": {}}}]});
    assert!(row(json!({}), spec, status).starts_with("p | 1/2 | Init:0/2 | 1 |"));
    // One container is done, the other goes on.
    let two = json!({"containers": [{"name": "c"}, {"name": "d"}]});
    let statuses =
        json!([{"state": {"terminated": {"reason": "Completed"}}}, {"ready": true, "state": {"running": {}}}]);
    let status = json!({"phase": "Running", "containerStatuses": statuses, "podIPs": [{"ip": "10.244.0.7"}]});
    assert_eq!(row(json!({}), two, status), "p | 1/2 | NotReady | 0 | 5m | 10.244.0.7 | <none> | <none> | <none>");
}

#[test]
fn services() {
    let meta = json!({"name": "s", "creationTimestamp": "2024-05-01T11:00:00Z"});
    for (spec, status, cells) in [
        (
            json!({"type": "ClusterIP", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "protocol": "TCP"}], "selector": {"a": "b", "c": "d"}}),
            json!({}),
            "ClusterIP | 10.96.0.1 | <none> | 80/TCP | 60m | a=b,c=d",
        ),
        (
            json!({"type": "NodePort", "clusterIP": "10.96.0.1", "externalIPs": ["1.2.3.4"],
                   "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}, {"port": 53, "protocol": "UDP"}]}),
            json!({}),
            "NodePort | 10.96.0.1 | 1.2.3.4 | 80:30001/TCP,53/UDP | 60m | <none>",
        ),
        (
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1"}),
            json!({}),
            "LoadBalancer | 10.96.0.1 | <pending> | <none> | 60m | <none>",
        ),
        (
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1"}),
            json!({"loadBalancer": {"ingress": [{"ip": "10.0.0.9"}, {"hostname": "a.b"}]}}),
            "LoadBalancer | 10.96.0.1 | 10.0.0.9,a.b | <none> | 60m | <none>",
        ),
        (
            json!({"type": "ExternalName", "externalName": "db.example.com"}),
            json!({}),
            "ExternalName | <none> | db.example.com | <none> | 60m | <none>",
        ),
        (
            json!({"type": "ClusterIP", "clusterIP": "None"}),
            json!({}),
            "ClusterIP | None | <none> | <none> | 60m | <none>",
        ),
    ] {
        let object = json!({"metadata": meta, "spec": spec, "status": status});
        assert_eq!(row_of("", "services", &object), format!("s | {cells}"));
    }
}

#[test]
fn the_other_kinds() {
    let meta = json!({"name": "x", "creationTimestamp": "2024-05-01T11:59:59Z",
                      "labels": {"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "edge"}});
    for (group, plural, object, cells) in [
        (
            "apps",
            "deployments",
            json!({"spec": {"replicas": 3, "selector": {"matchLabels": {"app": "x"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["z", "y"]},
                                      {"key": "app", "operator": "Exists"}]},
                            "template": {"spec": {"containers": [{"name": "c", "image": "i:1"}, {"name": "d", "image": "j"}]}}},
                   "status": {"readyReplicas": 2, "updatedReplicas": 1}}),
            "2/3 | 1 | 0 | 1s | c,d | i:1,j | a in (y,z),app=x,app",
        ),
        (
            "apps",
            "replicasets",
            json!({"spec": {"replicas": 3, "selector": {"matchLabels": {"app": "x"}}}, "status": {"replicas": 2, "readyReplicas": 1}}),
            "3 | 2 | 1 | 1s |  |  | app=x",
        ),
        (
            "",
            "nodes",
            json!({"spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
                   "addresses": [{"type": "InternalIP", "address": "10.203.0.11"}], "nodeInfo": {"kubeletVersion": "v1.34.0", "kernelVersion": "6.1", "architecture": "amd64"}}}),
            "Ready,SchedulingDisabled | edge,worker | 1s | v1.34.0 | 10.203.0.11 | <none> | <unknown> | 6.1 (amd64) | <unknown>",
        ),
        (
            "",
            "nodes",
            json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}),
            "NotReady | edge,worker | 1s |  | <none> | <none> | <unknown> | <unknown> | <unknown>",
        ),
        (
            "",
            "endpoints",
            json!({"subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "2.2.2.2"}], "ports": [{"port": 80}, {"port": 81}]}]}),
            "1.1.1.1:80,2.2.2.2:80,1.1.1.1:81 + 1 more... | 1s",
        ),
        ("", "endpoints", json!({}), "<none> | 1s"),
        ("", "endpoints", json!({"subsets": [{"notReadyAddresses": [{"ip": "1.1.1.1"}]}]}), " | 1s"),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["1.1.1.1"]}, {"addresses": ["2.2.2.2"]}], "ports": [{"port": 80}]}),
            "IPv4 | 80 | 1.1.1.1,2.2.2.2 | 1s",
        ),
        ("discovery.k8s.io", "endpointslices", json!({"addressType": "IPv4"}), "IPv4 | <unset> | <unset> | 1s"),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "IPv4", "ports": [{"name": "a"}, {}, {"name": "b", "port": 1}]}),
            "IPv4 | a,*,1 | <unset> | 1s",
        ),
        ("", "namespaces", json!({"status": {"phase": "Active"}}), "Active | 1s"),
        ("", "configmaps", json!({"data": {"a": ""}, "binaryData": {"b": ""}}), "2 | 1s"),
        ("", "secrets", json!({"type": "Opaque", "data": {"a": ""}}), "Opaque | 1 | 1s"),
        ("", "serviceaccounts", json!({}), "1s"),
        ("coordination.k8s.io", "leases", json!({"spec": {"holderIdentity": "n"}}), "n | 1s"),
        (
            "networking.k8s.io",
            "servicecidrs",
            json!({"spec": {"cidrs": ["10.0.0.0/8", "fd::/64"]}}),
            "10.0.0.0/8,fd::/64 | 1s",
        ),
        (
            "networking.k8s.io",
            "ingresses",
            json!({"spec": {"ingressClassName": "c", "tls": [{}], "rules": [{"host": "a.b"}, {"host": "*.c"}, {}]},
                   "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "h"}]}}}),
            "c | a.b,*.c | 192.0.2.1,h | 80, 443 | 1s",
        ),
        ("networking.k8s.io", "ingresses", json!({}), "<none> | * |  | 80 | 1s"),
        (
            "networking.k8s.io",
            "ingressclasses",
            json!({"spec": {"controller": "a/b", "parameters": {"apiGroup": "g", "kind": "K", "name": "n"}}}),
            "a/b | K.g/n | 1s",
        ),
        (
            "networking.k8s.io",
            "ipaddresses",
            json!({"spec": {"parentRef": {"resource": "services", "namespace": "b", "name": "a"}}}),
            "services/b/a",
        ),
    ] {
        let mut object = object;
        object["metadata"] = meta.clone();
        assert_eq!(row_of(group, plural, &object), format!("x | {cells}"), "{plural}");
    }
}

#[test]
fn events() {
    let core = json!({"apiVersion": "v1", "metadata": {"name": "e"}, "type": "Warning", "reason": "BackOff", "message": "m\n",
        "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{c}"}, "count": 4,
        "firstTimestamp": "2024-05-01T11:50:00Z", "lastTimestamp": "2024-05-01T11:59:00Z", "source": {"component": "agent", "host": "n"}});
    let expected = "60s | Warning | BackOff | pod/p | spec.containers{c} | agent, n | m | 10m | 4 | e";
    assert_eq!(row_of("", "events", &core), expected);
    assert_eq!(row_of("events.k8s.io", "events", &crate::convert_event(&core, "events.k8s.io/v1")), expected);
    let new = json!({"apiVersion": "v1", "metadata": {"name": "e"}, "source": {"component": "k"}, "reportingComponent": "rc",
        "reportingInstance": "ri", "eventTime": "2024-05-01T11:59:59.000000Z"});
    assert_eq!(row_of("", "events", &new), "1s |  |  |  |  | k, ri |  | 1s | 1 | e");
}

#[test]
fn roles_and_bindings() {
    let meta = json!({"name": "a", "creationTimestamp": "2024-05-01T11:55:00Z"});
    let group = "rbac.authorization.k8s.io";
    assert_eq!(row_of(group, "roles", &json!({"metadata": meta})), "a | 2024-05-01T11:55:00Z");
    let columns: Vec<&str> = find(group, "v1", "roles").unwrap().columns().iter().map(|column| &*column.name).collect();
    assert_eq!(columns, ["Name", "Created At"]);
    let binding = json!({"metadata": meta, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [
        {"kind": "User", "name": "jane"}, {"kind": "User", "name": "joe"}, {"kind": "Group", "name": "g"},
        {"kind": "ServiceAccount", "name": "s", "namespace": "n"}
    ]});
    assert_eq!(row_of(group, "rolebindings", &binding), "a | Role/r | 5m | jane, joe | g | n/s");
}
