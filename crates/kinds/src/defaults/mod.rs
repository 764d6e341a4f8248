//! Fills in what a client left out, as Kubernetes 1.36 does for every kind served here.
//!
//! Invariant: idempotent; nothing a client set is changed. Works on objects that `decode` has cleaned.
//! Deliberately not here: what allocation decides (cluster IPs, node ports, IP families).
//! Source: `pkg/apis/*/v1/defaults.go` and the conversions beside them.

mod pod;
mod service;
mod workload;

use serde_json::{Value, json};

use crate::catalog::{RBAC, Strategy};
use crate::custom::definition;
use crate::look::{Look, child, items_mut, map_of, remove, set_default};

pub(crate) fn default(strategy: Strategy, object: &mut Value) {
    match strategy {
        Strategy::ClusterRole
        | Strategy::ConfigMap
        | Strategy::Custom
        | Strategy::Event
        | Strategy::EventsEvent
        | Strategy::Ingress
        | Strategy::IpAddress
        | Strategy::Lease
        | Strategy::Role
        | Strategy::ServiceAccount
        | Strategy::ServiceCidr => {}
        Strategy::ClusterRoleBinding | Strategy::RoleBinding => binding(object),
        Strategy::CustomResourceDefinition => definition::default(object),
        Strategy::Deployment => workload::deployment(object),
        Strategy::EndpointSlice => endpoint_slice(object),
        Strategy::Endpoints => endpoints(object),
        Strategy::IngressClass => ingress_class(object),
        Strategy::Namespace => namespace(object),
        Strategy::Node => node(object),
        Strategy::Pod => pod::pod(object),
        Strategy::ReplicaSet => workload::replica_set(object),
        Strategy::Secret => secret(object),
        Strategy::Service => service::service(object),
    }
}

fn binding(object: &mut Value) {
    let role = child(object, "roleRef");
    // Go's clients write the field though it is empty.
    if role.text("apiGroup").is_empty() {
        map_of(role).insert("apiGroup".into(), RBAC.into());
    }
    for subject in items_mut(object, "subjects") {
        if matches!(subject.text("kind"), "User" | "Group") {
            set_default(subject, "apiGroup", RBAC);
        }
    }
}

fn ingress_class(object: &mut Value) {
    if object["spec"].has("parameters") {
        set_default(child(child(object, "spec"), "parameters"), "scope", "Cluster");
    }
}

fn endpoint_slice(object: &mut Value) {
    for port in items_mut(object, "ports") {
        set_default(port, "name", "");
        set_default(port, "protocol", "TCP");
    }
}

fn endpoints(object: &mut Value) {
    for subset in items_mut(object, "subsets") {
        for port in items_mut(subset, "ports") {
            set_default(port, "protocol", "TCP");
        }
    }
}

fn namespace(object: &mut Value) {
    let name = object["metadata"].text("name").to_owned();
    if !name.is_empty() {
        let labels = child(child(object, "metadata"), "labels");
        map_of(labels).insert("kubernetes.io/metadata.name".into(), name.into());
    }
    child(object, "spec");
    set_default(child(object, "status"), "phase", "Active");
}

fn node(object: &mut Value) {
    singular_and_plural(child(object, "spec"), "podCIDR", "podCIDRs", None);
    let status = child(object, "status");
    if !status.has("allocatable") && status.has("capacity") {
        let capacity = status["capacity"].clone();
        map_of(status).insert("allocatable".into(), capacity);
    }
}

/// Keeps an old singular field and the first item of the plural that replaced it the same. `inner` is the field of an
/// item that holds the value, if items are objects.
fn singular_and_plural(owner: &mut Value, singular: &str, plural: &str, inner: Option<&str>) {
    let first = owner[plural].get(0).map(|item| inner.map_or(item, |field| &item[field])).and_then(Value::as_str);
    let one = owner.text(singular).to_owned();
    let first = first.unwrap_or_default().to_owned();
    if first == one {
        return;
    }
    if one.is_empty() {
        map_of(owner).insert(singular.to_owned(), first.into());
    } else {
        let item = inner.map_or_else(|| one.clone().into(), |field| json!({ field: one }));
        map_of(owner).insert(plural.to_owned(), Value::Array(vec![item]));
    }
}

/// The write-only `stringData` goes into `data`.
fn secret(object: &mut Value) {
    if let Some(Value::Object(plain)) = remove(object, "stringData") {
        let data = map_of(child(object, "data"));
        for (key, value) in plain {
            data.insert(key, encode_base64(value.as_str().unwrap_or_default().as_bytes()).into());
        }
    }
    set_default(object, "type", "Opaque");
}

pub(crate) fn encode_base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let [a, b, c] = [chunk[0], *chunk.get(1).unwrap_or(&0), *chunk.get(2).unwrap_or(&0)];
        let sextets = [a >> 2, (a & 3) << 4 | b >> 4, (b & 15) << 2 | c >> 6, c & 63];
        for (index, sextet) in sextets.into_iter().enumerate() {
            text.push(if index <= chunk.len() { char::from(ALPHABET[usize::from(sextet)]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FieldValidation, find};

    /// Decodes and defaults `sent`; the result without its header must be `kept`, and a fixed point.
    fn check(group: &str, plural: &str, sent: Value, kept: &Value) {
        let kind = find(group, "v1", plural).unwrap();
        let (mut object, _) = kind.decode(sent, FieldValidation::Strict).unwrap();
        default(kind.strategy, &mut object);
        let once = object.clone();
        default(kind.strategy, &mut object);
        assert_eq!(once, object, "defaults are idempotent");
        let map = object.as_object_mut().unwrap();
        map.remove("kind");
        map.remove("apiVersion");
        assert_eq!(&object, kept, "{plural}");
    }

    #[test]
    fn services() {
        check(
            "",
            "services",
            json!({"spec": {"ports": [{"port": 80}]}}),
            &json!({"spec": {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                             "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}}),
        );
        check(
            "",
            "services",
            json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP",
                            "ports": [{"port": 53, "protocol": "UDP", "targetPort": "dns"}]},
                   "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}, {"hostname": "a.b"}]}}}),
            &json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Cluster",
                             "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
                             "externalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": true,
                             "ports": [{"port": 53, "protocol": "UDP", "targetPort": "dns"}]},
                    "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1", "ipMode": "VIP"}, {"hostname": "a.b"}]}}}),
        );
        check(
            "",
            "services",
            json!({"spec": {"type": "ExternalName", "externalName": "example.com"}}),
            &json!({"spec": {"type": "ExternalName", "sessionAffinity": "None", "externalName": "example.com"}}),
        );
        // An external address makes a ClusterIP Service reachable from outside.
        check(
            "",
            "services",
            json!({"spec": {"externalIPs": ["1.2.3.4"], "sessionAffinityConfig": {"clientIP": {}}}}),
            &json!({"spec": {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                             "externalTrafficPolicy": "Cluster", "externalIPs": ["1.2.3.4"]}}),
        );
    }

    #[test]
    fn pods() {
        check(
            "",
            "pods",
            json!({"spec": {
                "serviceAccountName": "sa",
                "volumes": [{"name": "a"}, {"name": "b", "secret": {"secretName": "s"}}, {"name": "c", "hostPath": {"path": "/"}}],
                "containers": [{
                    "name": "c", "image": "portolan/workload", "ports": [{"containerPort": 80}],
                    "readinessProbe": {"httpGet": {"port": 80}},
                    "lifecycle": {"preStop": {"httpGet": {"port": 1, "path": "/x"}}},
                    "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                    "resources": {"limits": {"cpu": "1"}, "requests": {"memory": "1Mi"}},
                }, {"name": "d", "image": "reg:5000/x/y:v1"}, {"name": "e", "image": "x@sha256:abc"}],
            }}),
            &json!({"spec": {
                "serviceAccountName": "sa", "serviceAccount": "sa",
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {},
                "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler", "enableServiceLinks": true,
                "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "secret": {"secretName": "s", "defaultMode": 420}},
                            {"name": "c", "hostPath": {"path": "/", "type": ""}}],
                "containers": [{
                    "name": "c", "image": "portolan/workload", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                                       "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                    "lifecycle": {"preStop": {"httpGet": {"port": 1, "path": "/x", "scheme": "HTTP"}}},
                    "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP", "apiVersion": "v1"}}}],
                    "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1", "memory": "1Mi"}},
                    "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                }, {
                    "name": "d", "image": "reg:5000/x/y:v1", "imagePullPolicy": "IfNotPresent", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }, {
                    "name": "e", "image": "x@sha256:abc", "imagePullPolicy": "IfNotPresent", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
            }}),
        );
    }

    #[test]
    fn the_others() {
        check(
            "apps",
            "deployments",
            json!({"spec": {"template": {"spec": {"containers": []}}}}),
            &json!({"spec": {
                "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
                "template": {"metadata": {}, "spec": {
                    "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {},
                    "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler"}}}}),
        );
        check(
            "apps",
            "deployments",
            json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}, "template": {"spec": {"containers": []}}}}),
            &json!({"spec": {
                "replicas": 0, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "strategy": {"type": "Recreate"},
                "template": {"metadata": {}, "spec": {
                    "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {},
                    "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler"}}}}),
        );
        check(
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [], "ports": [{"port": 80}, {"name": "dns", "protocol": "UDP"}]}),
            &json!({"addressType": "IPv4",
                    "ports": [{"name": "", "port": 80, "protocol": "TCP"}, {"name": "dns", "protocol": "UDP"}]}),
        );
        check(
            "",
            "endpoints",
            json!({"subsets": [{"addresses": [{"ip": "1.2.3.4"}], "ports": [{"port": 80}]}]}),
            &json!({"subsets": [{"addresses": [{"ip": "1.2.3.4"}], "ports": [{"port": 80, "protocol": "TCP"}]}]}),
        );
        check(
            "",
            "namespaces",
            json!({"metadata": {"name": "a"}}),
            &json!({"metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}}, "spec": {},
                    "status": {"phase": "Active"}}),
        );
        check(
            "",
            "nodes",
            json!({"spec": {"podCIDR": "10.244.0.0/24"}, "status": {"capacity": {"cpu": "2"}}}),
            &json!({"spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]},
                    "status": {"capacity": {"cpu": "2"}, "allocatable": {"cpu": "2"}}}),
        );
        check(
            "",
            "secrets",
            json!({"data": {"a": "YQ=="}, "stringData": {"b": "hello", "c": "ab", "d": "abc"}}),
            &json!({"type": "Opaque", "data": {"a": "YQ==", "b": "aGVsbG8=", "c": "YWI=", "d": "YWJj"}}),
        );
        check("", "configmaps", json!({"data": {"a": ""}}), &json!({"data": {"a": ""}}));
    }
}
