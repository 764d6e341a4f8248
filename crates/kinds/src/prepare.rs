//! What the API server does to an object before it looks whether it is valid: clears what a client may not set, keeps
//! what this way of updating may not touch, raises the generation.
//!
//! Invariant: after `update` to the status, all but the status and the metadata is the old object's, and the reverse.
//! Source: `pkg/registry/*/strategy.go`, `rest.BeforeCreate` and `rest.BeforeUpdate`.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use crate::Subresource;
use crate::catalog::Strategy;
use crate::custom::definition;
use crate::look::{Look, child, items_mut, map_of, remove, set_default};
use crate::qos;
use crate::service::{
    externally_accessible, may_have_node_ports, needs_cluster_ip, needs_health_check, needs_node_ports, spec_type,
};

/// The finalizer of ServiceCIDRs.
const SERVICE_CIDR: &str = "networking.k8s.io/service-cidr-finalizer";

pub(crate) fn create(strategy: Strategy, has_status: bool, object: &mut Value) {
    let metadata = child(object, "metadata");
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
        remove(metadata, field);
    }
    if has_generation(strategy) {
        map_of(metadata).insert("generation".into(), 1.into());
    }
    let status = match strategy {
        Strategy::Pod => pod_status(object),
        Strategy::Namespace => json!({"phase": "Active"}),
        Strategy::Ingress | Strategy::Service => json!({"loadBalancer": {}}),
        Strategy::ReplicaSet => json!({"replicas": 0}),
        // A node writes its own object, status and all.
        Strategy::Node => object.get("status").cloned().unwrap_or_else(|| json!({})),
        _ => json!({}),
    };
    if has_status {
        map_of(object).insert("status".into(), status);
    }
    match strategy {
        Strategy::Namespace => {
            let finalizers = map_of(child(object, "spec")).entry("finalizers").or_insert_with(|| json!([]));
            if let Value::Array(list) = finalizers
                && !list.iter().any(|name| name == "kubernetes")
            {
                list.push("kubernetes".into());
            }
        }
        Strategy::CustomResourceDefinition => definition::prepare_create(object),
        // It stays while there are addresses in it.
        Strategy::ServiceCidr => {
            let finalizers = map_of(child(object, "metadata")).entry("finalizers").or_insert_with(|| json!([]));
            if let Value::Array(list) = finalizers
                && !list.iter().any(|name| name == SERVICE_CIDR)
            {
                list.push(SERVICE_CIDR.into());
            }
        }
        Strategy::Service => {
            let spec = child(object, "spec");
            if !spec.text("clusterIP").is_empty() && spec.list("clusterIPs").is_empty() {
                let one = spec["clusterIP"].clone();
                map_of(spec).insert("clusterIPs".into(), json!([one]));
            }
        }
        Strategy::EndpointSlice => drop_topology(object),
        Strategy::Pod => {
            let spec = child(object, "spec");
            // As upstream's admission has it: every pod has an account.
            if spec.text("serviceAccountName").is_empty() {
                map_of(spec).insert("serviceAccountName".into(), "default".into());
                map_of(spec).insert("serviceAccount".into(), "default".into());
            }
            priority(spec);
        }
        _ => {}
    }
}

/// Of a new pod. One that waits at a gate says so from its beginning.
fn pod_status(pod: &Value) -> Value {
    let mut status = json!({"phase": "Pending", "qosClass": qos::class(&pod["spec"])});
    if !pod["spec"].list("schedulingGates").is_empty() {
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null, "lastTransitionTime": pod["metadata"]["creationTimestamp"]
        }]);
    }
    status
}

pub(crate) fn update(strategy: Strategy, has_status: bool, new: &mut Value, old: &Value, sub: Subresource) {
    metadata(child(new, "metadata"), &old["metadata"]);
    match sub {
        Subresource::Status => {
            // All but status and metadata stays.
            let status = remove(new, "status");
            let metadata = remove(new, "metadata");
            let mut kept: Map<String, Value> = old.as_object().cloned().unwrap_or_default();
            kept.remove("status");
            kept.remove("metadata");
            kept.extend(metadata.map(|value| ("metadata".to_owned(), value)));
            kept.extend(status.map(|value| ("status".to_owned(), value)));
            *new = Value::Object(kept);
            let keep: &[&str] = match strategy {
                Strategy::Deployment => &["labels"],
                Strategy::Pod => &["ownerReferences"],
                _ => &[],
            };
            for field in keep {
                restore(child(new, "metadata"), &old["metadata"], field);
            }
        }
        Subresource::EphemeralContainers => {
            // All but these stays; who names another pod, or an older one, is still to be told.
            let mut kept = old.clone();
            for field in ["uid", "resourceVersion"] {
                restore(child(&mut kept, "metadata"), &new["metadata"], field);
            }
            restore(child(&mut kept, "spec"), &new["spec"], "ephemeralContainers");
            *new = kept;
            count_change(strategy, new, old);
        }
        Subresource::None => {
            if has_status {
                restore(new, old, "status");
            }
            match strategy {
                Strategy::Namespace => restore(child(new, "spec"), &old["spec"], "finalizers"),
                Strategy::CustomResourceDefinition => definition::remember_storage(new),
                Strategy::Service => service(new, &old["spec"]),
                Strategy::Pod => {
                    for field in ["priority", "preemptionPolicy"] {
                        if !new["spec"].has(field) {
                            restore(child(new, "spec"), &old["spec"], field);
                        }
                    }
                }
                Strategy::EndpointSlice if new["endpoints"] != old["endpoints"] => drop_topology(new),
                _ => {}
            }
            count_change(strategy, new, old);
        }
    }
}

fn count_change(strategy: Strategy, new: &mut Value, old: &Value) {
    if has_generation(strategy) && changed(strategy, new, old) {
        let generation = old["metadata"].int("generation").unwrap_or(0) + 1;
        map_of(child(new, "metadata")).insert("generation".into(), generation.into());
    }
}

/// Kinds whose `metadata.generation` counts changes of what is wanted. Services are not among them.
fn has_generation(strategy: Strategy) -> bool {
    matches!(
        strategy,
        Strategy::CustomResourceDefinition
            | Strategy::Deployment
            | Strategy::EndpointSlice
            | Strategy::Ingress
            | Strategy::IngressClass
            | Strategy::Pod
            | Strategy::ReplicaSet
    )
}

fn changed(strategy: Strategy, new: &Value, old: &Value) -> bool {
    match strategy {
        // Everything but the metadata, of which the labels count.
        Strategy::EndpointSlice => {
            let fields = ["addressType", "endpoints", "ports"];
            fields.iter().any(|field| new[*field] != old[*field])
                || new["metadata"]["labels"] != old["metadata"]["labels"]
        }
        Strategy::Deployment => {
            new["spec"] != old["spec"] || new["metadata"]["annotations"] != old["metadata"]["annotations"]
        }
        _ => new["spec"] != old["spec"],
    }
}

/// As upstream's admission has it: every pod has a priority, by its class if that is one that every cluster has.
fn priority(spec: &mut Value) {
    let number = match spec.text("priorityClassName") {
        "" => 0,
        "system-cluster-critical" => 2_000_000_000,
        "system-node-critical" => 2_000_001_000,
        _ => return,
    };
    set_default(spec, "priority", number);
    set_default(spec, "preemptionPolicy", "PreemptLowerPriority");
}

/// What `v1beta1` knew of an endpoint's place is not written any more.
fn drop_topology(slice: &mut Value) {
    for endpoint in items_mut(slice, "endpoints") {
        remove(endpoint, "deprecatedTopology");
    }
}

/// Makes a field what it was.
fn restore(new: &mut Value, old: &Value, field: &str) {
    match old.get(field) {
        Some(value) if !value.is_null() => _ = map_of(new).insert(field.to_owned(), value.clone()),
        _ => _ = remove(new, field),
    }
}

/// What no update changes, whatever it says.
pub(crate) fn metadata(new: &mut Value, old: &Value) {
    for field in ["creationTimestamp", "generation", "selfLink"] {
        restore(new, old, field);
    }
    if !new.has("uid") {
        restore(new, old, "uid");
    }
    // A deletion that was asked for cannot be taken back; validation rejects one that an update brings in.
    if old.has("deletionTimestamp") {
        restore(new, old, "deletionTimestamp");
    }
    if old.has("deletionGracePeriodSeconds") && !new.has("deletionGracePeriodSeconds") {
        restore(new, old, "deletionGracePeriodSeconds");
    }
}

/// A Service keeps the addresses and ports it was given, unless its type no longer has them.
fn service(new: &mut Value, old: &Value) {
    let spec = child(new, "spec");
    patch_allocated(spec, old);
    normalize_cluster_ips(spec, old);
    drop_by_type(spec, old);
    // What is no policy at all is for validation to tell of.
    if spec_type(spec) == "ExternalName" && matches!(spec.text("internalTrafficPolicy"), "Cluster" | "Local") {
        remove(spec, "internalTrafficPolicy");
    }
    if spec_type(&new["spec"]) != "LoadBalancer" {
        map_of(child(new, "status")).insert("loadBalancer".into(), json!({}));
    }
}

/// A client that leaves out what the server gave out means to keep it.
fn patch_allocated(spec: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(spec) {
        if spec.text("clusterIP").is_empty() {
            restore(spec, old, "clusterIP");
        }
        if spec.list("clusterIPs").is_empty() {
            restore(spec, old, "clusterIPs");
        }
    }
    if needs_node_ports(old) && needs_node_ports(spec) {
        let numbers = |spec: &Value| spec.list("ports").iter().filter_map(|port| port.int("nodePort")).collect();
        let (now, before): (HashSet<i64>, HashSet<i64>) = (numbers(spec), numbers(old));
        let names = old.list("ports").iter().map(|port| (port.text("name"), port.int("nodePort").unwrap_or(0)));
        let by_name: HashMap<&str, i64> = names.collect();
        for port in items_mut(spec, "ports") {
            if port.int("nodePort").unwrap_or(0) != 0 {
                continue;
            }
            // By name, so that a port keeps its NodePort when its number or protocol changes.
            let number = by_name.get(port.text("name")).copied().unwrap_or(0);
            if number != 0 && !(now.contains(&number) && before.contains(&number)) {
                map_of(port).insert("nodePort".into(), number.into());
            }
        }
    }
    if needs_health_check(old) && needs_health_check(spec) && spec.int("healthCheckNodePort").unwrap_or(0) == 0 {
        restore(spec, old, "healthCheckNodePort");
    }
}

/// Old clients know `clusterIP` alone: what they change there is meant for `clusterIPs` too.
fn normalize_cluster_ips(spec: &mut Value, old: &Value) {
    if spec.text("clusterIP") != old.text("clusterIP") && spec.list("clusterIPs") == old.list("clusterIPs") {
        if spec.text("clusterIP").is_empty() {
            remove(spec, "clusterIPs");
        } else {
            let one = spec["clusterIP"].clone();
            map_of(spec).insert("clusterIPs".into(), json!([one]));
        }
    }
}

/// Clears what the new type has no use for, if the client only carried it along.
fn drop_by_type(spec: &mut Value, old: &Value) {
    let same = |spec: &Value, field: &str| spec[field] == old[field];
    if needs_cluster_ip(old) && !needs_cluster_ip(spec) {
        if same(spec, "clusterIP") && same(spec, "clusterIPs") {
            remove(spec, "clusterIP");
            remove(spec, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if same(spec, field) {
                remove(spec, field);
            }
        }
    }
    if may_have_node_ports(old) && !may_have_node_ports(spec) {
        // Ports may come and go, if none of them asks for another node port.
        let numbers = |spec: &Value| spec.list("ports").iter().filter_map(|port| port.int("nodePort")).collect();
        let (now, before): (HashSet<i64>, HashSet<i64>) = (numbers(spec), numbers(old));
        if now.is_subset(&before) {
            for port in items_mut(spec, "ports") {
                remove(port, "nodePort");
            }
        }
    }
    if needs_health_check(old) && !needs_health_check(spec) && same(spec, "healthCheckNodePort") {
        remove(spec, "healthCheckNodePort");
    }
    if spec_type(old) == "LoadBalancer" && spec_type(spec) != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(spec, field) {
                remove(spec, field);
            }
        }
    }
    if externally_accessible(old) && !externally_accessible(spec) && same(spec, "externalTrafficPolicy") {
        remove(spec, "externalTrafficPolicy");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find;

    #[test]
    fn creation() {
        let pods = find("", "v1", "pods").unwrap();
        let mut pod = json!({"metadata": {"deletionTimestamp": "x", "generation": 9},
                             "spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Running"}});
        pods.prepare_create(&mut pod);
        assert_eq!(pod["metadata"], json!({"generation": 1}));
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));

        let mut namespace = json!({"metadata": {"name": "a"}});
        find("", "v1", "namespaces").unwrap().prepare_create(&mut namespace);
        assert_eq!(namespace["spec"]["finalizers"], json!(["kubernetes"]));

        let mut service = json!({"spec": {"clusterIP": "10.96.0.9"}, "status": {"loadBalancer": {"ingress": [{}]}}});
        find("", "v1", "services").unwrap().prepare_create(&mut service);
        assert_eq!(
            service,
            json!({"metadata": {}, "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]},
                                   "status": {"loadBalancer": {}}})
        );
    }

    #[test]
    fn updates_keep_the_other_half() {
        let pods = find("", "v1", "pods").unwrap();
        let old = json!({"metadata": {"uid": "u", "creationTimestamp": "t", "generation": 3, "name": "a"},
                         "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        let sent = json!({"metadata": {"name": "a", "labels": {"x": "y"}, "generation": 7}, "spec": {"nodeName": "m"},
                          "status": {"phase": "Failed"}});
        let mut new = sent.clone();
        pods.prepare_update(&mut new, &old, Subresource::None);
        assert_eq!(
            new,
            json!({"metadata": {"uid": "u", "creationTimestamp": "t", "generation": 4, "name": "a",
                               "labels": {"x": "y"}}, "spec": {"nodeName": "m"}, "status": {"phase": "Running"}})
        );
        let mut new = sent.clone();
        new["spec"]["ephemeralContainers"] = json!([{"name": "e"}]);
        pods.prepare_update(&mut new, &old, Subresource::EphemeralContainers);
        assert_eq!(
            new,
            json!({"metadata": {"uid": "u", "creationTimestamp": "t", "generation": 4, "name": "a"},
                   "spec": {"nodeName": "n", "ephemeralContainers": [{"name": "e"}]}, "status": {"phase": "Running"}})
        );
        let mut new = sent;
        pods.prepare_update(&mut new, &old, Subresource::Status);
        assert_eq!(
            new,
            json!({"metadata": {"uid": "u", "creationTimestamp": "t", "generation": 3, "name": "a",
                               "labels": {"x": "y"}}, "spec": {"nodeName": "n"}, "status": {"phase": "Failed"}})
        );
    }

    #[test]
    fn generation_counts_what_is_wanted() {
        for (group, plural, change, generation) in [
            ("apps", "deployments", json!({"metadata": {"generation": 1, "annotations": {"a": "b"}}, "spec": {}}), 2),
            ("apps", "deployments", json!({"metadata": {"generation": 1, "labels": {"a": "b"}}, "spec": {}}), 1),
            ("apps", "replicasets", json!({"metadata": {"generation": 1}, "spec": {"replicas": 2}}), 2),
            (
                "discovery.k8s.io",
                "endpointslices",
                json!({"metadata": {"generation": 1}, "spec": {}, "ports": [{}]}),
                2,
            ),
            ("", "services", json!({"metadata": {}, "spec": {"selector": {"a": "b"}}}), 0),
        ] {
            let old = if generation == 0 {
                json!({"metadata": {}, "spec": {}})
            } else {
                json!({"metadata": {"generation": 1}, "spec": {}})
            };
            let mut new = change;
            find(group, "v1", plural).unwrap().prepare_update(&mut new, &old, Subresource::None);
            assert_eq!(new["metadata"].int("generation").unwrap_or(0), generation, "{plural}");
        }
    }

    #[test]
    fn a_service_keeps_what_it_was_given() {
        let services = find("", "v1", "services").unwrap();
        let old = json!({"metadata": {}, "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30009,
            "allocateLoadBalancerNodePorts": true, "loadBalancerClass": "a/b",
            "ports": [{"name": "a", "port": 80, "protocol": "TCP", "nodePort": 30001},
                      {"name": "b", "port": 81, "protocol": "TCP", "nodePort": 30002}],
        }, "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}});

        // Sent without what was allocated: kept.
        let mut new = json!({"metadata": {}, "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "ports": [{"name": "b", "port": 8081, "protocol": "TCP"}, {"name": "c", "port": 80, "protocol": "TCP"}]}});
        services.prepare_update(&mut new, &old, Subresource::None);
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.7");
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.0.7"]));
        assert_eq!(new["spec"]["healthCheckNodePort"], 30009);
        assert_eq!(
            new["spec"]["ports"],
            json!([{"name": "b", "port": 8081, "protocol": "TCP", "nodePort": 30002},
                   {"name": "c", "port": 80, "protocol": "TCP"}])
        );
        assert_eq!(new["status"], old["status"]);

        // Changed to ClusterIP, the rest carried along: what no longer applies goes.
        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        services.prepare_update(&mut new, &old, Subresource::None);
        assert_eq!(
            new["spec"],
            json!({"type": "ClusterIP", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "a", "port": 80, "protocol": "TCP"}, {"name": "b", "port": 81, "protocol": "TCP"}]})
        );
        assert_eq!(new["status"], json!({"loadBalancer": {}}));

        // So do the node ports of those ports that are left, and not if a new one is among them.
        for (number, kept) in [(30_001, false), (30_003, true)] {
            let mut new = old.clone();
            new["spec"]["type"] = "ClusterIP".into();
            new["spec"]["ports"] = json!([{"name": "a", "port": 80, "protocol": "TCP", "nodePort": number}]);
            services.prepare_update(&mut new, &old, Subresource::None);
            assert_eq!(new["spec"]["ports"][0].has("nodePort"), kept, "{number}");
        }

        // A load balancer that asks for no node ports keeps those it has.
        let mut new = old.clone();
        new["spec"]["allocateLoadBalancerNodePorts"] = false.into();
        services.prepare_update(&mut new, &old, Subresource::None);
        assert_eq!(new["spec"]["ports"], old["spec"]["ports"]);
        // It is given none back that the client left out.
        new["spec"]["ports"] = json!([{"name": "a", "port": 80, "protocol": "TCP"}]);
        services.prepare_update(&mut new, &old, Subresource::None);
        assert!(!new["spec"]["ports"][0].has("nodePort"));

        // Changed to ExternalName: the addresses go too.
        let mut new = old.clone();
        new["spec"]["type"] = "ExternalName".into();
        services.prepare_update(&mut new, &old, Subresource::None);
        assert!(!new["spec"].has("clusterIP") && !new["spec"].has("clusterIPs") && !new["spec"].has("ipFamilies"));

        // An old client changes the singular.
        let mut new = old.clone();
        new["spec"]["clusterIP"] = "10.96.0.8".into();
        services.prepare_update(&mut new, &old, Subresource::None);
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.0.8"]));
    }
}
