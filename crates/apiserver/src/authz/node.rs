//! What a node's agent may do: read what its own pods need, and write about itself and them.
//!
//! [`authorize`] sees the request alone, as Kubernetes' node authorizer; [`restrict`] sees what would be written, as
//! its NodeRestriction. Invariant: nothing that only other nodes' pods name is shown to a node, and no object of
//! another node is changed by it. What all nodes need besides is a ClusterRole of theirs.
//! Source: `plugin/pkg/auth/authorizer/node`, `plugin/pkg/admission/noderestriction`.

use std::collections::BTreeSet;

use portolan_kinds::{Kind, Status};
use serde_json::{Map, Value};

use super::Request;
use super::pods::{Named, Pods};
use crate::object;

/// Where nodes renew their Leases.
const LEASES: &str = "kube-node-lease";

/// Whether the node may; if not, a reason, which may be empty. `pods` says which pods it has and what they name.
pub(super) fn authorize(node: &str, request: &Request<'_>, pods: &Pods) -> Result<(), String> {
    let Request { verb, group, resource, subresource, namespace, name, .. } = *request;
    let reads = matches!(verb, "get" | "list" | "watch");
    let updates = matches!(verb, "update" | "patch");
    let no = |reason: &str| Err(reason.to_owned());
    let when = |allowed: bool| if allowed { Ok(()) } else { no("") };
    let related = |found: bool| {
        if found { Ok(()) } else { no(&format!("no relationship found between node '{node}' and this object")) }
    };
    if node.is_empty() {
        return no("unknown node for user \"system:node:\"");
    }
    match (group, resource, subresource) {
        ("", "secrets" | "configmaps", sub) => match (reads, sub, namespace, name) {
            (false, ..) => no("can only read resources of this type"),
            (_, "", "", _) => no("can only read namespaced object of this type"),
            (_, "", _, "") => no("No Object name found"),
            (_, "", ..) if resource == "secrets" => related(pods.names(node, namespace, Named::Secret, name)),
            (_, "", ..) => related(pods.names(node, namespace, Named::ConfigMap, name)),
            _ => no("cannot read subresource"),
        },
        ("", "serviceaccounts", "") if verb == "get" => related(pods.names(node, namespace, Named::Account, name)),
        ("", "serviceaccounts", sub) => match (verb, sub, name) {
            ("create", _, "") => no("can only create tokens for individual service accounts"),
            ("create", "token", _) => related(pods.names(node, namespace, Named::Account, name)),
            ("create", ..) => no("can only create token subresource of serviceaccount"),
            _ => no("can only create tokens for individual service accounts"),
        },
        ("coordination.k8s.io", "leases", _) => {
            if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
                no("can only get, create, update, patch, or delete a node lease")
            } else if namespace != LEASES {
                no(&format!("can only access leases in the \"{LEASES}\" system namespace"))
            } else if verb != "create" && name != node {
                no("can only access node lease with the same name as the requesting node")
            } else {
                Ok(())
            }
        }
        ("", "nodes", "") if verb == "create" || updates => Ok(()),
        ("", "nodes", "") if reads && name == node => Ok(()),
        ("", "nodes", "") if reads && name.is_empty() => {
            no(&format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "nodes", "") if reads => no(&format!("node '{node}' cannot read '{name}', only its own Node object")),
        ("", "nodes" | "pods", "status") => when(updates),
        ("", "pods", "") if verb == "delete" || reads && request.node_name == node => Ok(()),
        ("", "pods", "") if reads && !name.is_empty() => related(pods.has(node, namespace, name)),
        ("", "pods", "") if reads => no("can only list/watch pods with spec.nodeName field selector"),
        ("", "pods", "eviction") => when(verb == "create"),
        ("" | "events.k8s.io", "events", "") => when(verb == "create" || updates),
        ("authentication.k8s.io", "tokenreviews", "")
        | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => when(verb == "create"),
        ("", "services", "") => when(reads),
        ("", "endpoints", "") => when(verb == "get"),
        _ => no(""),
    }
}

/// What a node would have written: `old` is absent when the object is new, and `new` when it is to go.
///
/// # Errors
/// 403 for what is another's, and for what a node may not say about itself.
pub(crate) fn restrict(node: &str, kind: &Kind, old: Option<&Value>, new: Option<&Value>) -> Result<(), Status> {
    let Some(object) = old.or(new) else { return Ok(()) };
    let name = object::name(object);
    let forbid = |why: String| Err(Status::forbidden(kind.group, kind.plural, name, &why));
    if node.is_empty() {
        return forbid("could not determine node from user \"system:node:\"".to_owned());
    }
    match (kind.group, kind.plural) {
        ("", "pods") => {
            if old.is_none() {
                return forbid(format!("node \"{node}\" can not create pods"));
            }
            if object::text(object, "/spec/nodeName") != node {
                let what = if new.is_none() { "delete pods" } else { "update pod status for pods" };
                return forbid(format!("node \"{node}\" can only {what} with spec.nodeName set to itself"));
            }
            if new.is_some_and(|new| new["metadata"]["labels"] != object["metadata"]["labels"]) {
                return forbid(format!("node \"{node}\" cannot update labels through pod status"));
            }
            Ok(())
        }
        ("", "nodes") if name != node => forbid(format!("node \"{node}\" is not allowed to modify node \"{name}\"")),
        ("", "nodes") => new.map_or(Ok(()), |new| own_node(node, old, new).or_else(forbid)),
        ("coordination.k8s.io", "leases") if name != node => {
            forbid("can only access node lease with the same name as the requesting node".to_owned())
        }
        // Its share of the cluster's DNS.
        ("discovery.k8s.io", "endpointslices") if name.strip_prefix("kube-dns-") != Some(node) => {
            forbid(format!("node \"{node}\" can only change its own share of the cluster's DNS"))
        }
        ("discovery.k8s.io", "endpointslices") if new.is_some_and(is_of_another_service) => {
            forbid(format!("node \"{node}\" can only be an endpoint of the cluster's DNS"))
        }
        _ => Ok(()),
    }
}

/// A slice is its Service's by this label alone; with another one a node would be sent what is meant for others.
fn is_of_another_service(slice: &Value) -> bool {
    slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str().is_some_and(|service| service != "kube-dns")
}

fn own_node(node: &str, old: Option<&Value>, new: &Value) -> Result<(), String> {
    let nothing = Map::new();
    let labels = |object: Option<&Value>| -> Map<String, Value> {
        object.and_then(|object| object["metadata"]["labels"].as_object()).unwrap_or(&nothing).clone()
    };
    let (before, after) = (labels(old), labels(Some(new)));
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = keys.into_iter().filter(|key| before.get(*key) != after.get(*key));
    let forbidden: Vec<&str> = changed.map(String::as_str).filter(|key| is_not_a_nodes(key)).collect();
    if !forbidden.is_empty() {
        let list = forbidden.join(", ");
        return Err(match old {
            None => format!("node \"{node}\" is not allowed to set the following labels: {list}"),
            Some(_) => format!("is not allowed to modify labels: {list}"),
        });
    }
    let Some(old) = old else { return Ok(()) };
    if old["spec"]["taints"] != new["spec"]["taints"] {
        return Err(format!("node \"{node}\" is not allowed to modify taints"));
    }
    if old["metadata"]["ownerReferences"] != new["metadata"]["ownerReferences"] {
        return Err(format!("node \"{node}\" is not allowed to modify ownerReferences"));
    }
    Ok(())
}

/// Whether a label is Kubernetes' own, and not one that nodes set on themselves.
fn is_not_a_nodes(label: &str) -> bool {
    const OWN: [&str; 11] = [
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/instance-type",
        "beta.kubernetes.io/os",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "kubernetes.io/arch",
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "node.kubernetes.io/instance-type",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    ];
    let Some((prefix, _)) = label.split_once('/') else { return false };
    let within = |domain: &str| prefix == domain || prefix.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    if within("node-restriction.kubernetes.io") {
        return true;
    }
    let kubernetes = within("kubernetes.io") || within("k8s.io");
    kubernetes && !OWN.contains(&label) && !within("kubelet.kubernetes.io") && !within("node.kubernetes.io")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::authz::tests::request;

    #[test]
    fn a_node_may() {
        let mut pods = Pods::default();
        let pod = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {
            "nodeName": "n1", "serviceAccountName": "robot", "containers": [],
            "volumes": [{"secret": {"secretName": "s"}}, {"configMap": {"name": "c"}}]
        }});
        pods.put("a", "p", Some(pod.to_string().as_bytes()));
        for (text, expected) in [
            ("list -/services", Ok(())),
            ("get -/secrets a s", Ok(())),
            ("get -/secrets b s", Err("no relationship found between node 'n1' and this object")),
            ("get -/secrets a other", Err("no relationship found between node 'n1' and this object")),
            ("list -/secrets a", Err("No Object name found")),
            ("list -/secrets", Err("can only read namespaced object of this type")),
            ("create -/secrets a", Err("can only read resources of this type")),
            ("get -/configmaps a c", Ok(())),
            ("create -/serviceaccounts/token a robot", Ok(())),
            ("create -/serviceaccounts/token a other", Err("no relationship found between node 'n1' and this object")),
            ("get -/serviceaccounts a robot", Ok(())),
            ("list -/serviceaccounts a", Err("can only create tokens for individual service accounts")),
            ("get -/nodes - n1", Ok(())),
            ("get -/nodes - n2", Err("node 'n1' cannot read 'n2', only its own Node object")),
            ("list -/nodes", Err("node 'n1' cannot read all nodes, only its own Node object")),
            ("create -/nodes", Ok(())),
            ("delete -/nodes - n1", Err("")),
            ("patch -/nodes/status - n1", Ok(())),
            ("get -/pods a p", Ok(())),
            ("get -/pods a q", Err("no relationship found between node 'n1' and this object")),
            ("list -/pods", Err("can only list/watch pods with spec.nodeName field selector")),
            ("create -/pods a", Err("")),
            ("patch -/pods a p", Err("")),
            ("create -/pods/binding a p", Err("")),
            ("create -/pods/exec a p", Err("")),
            ("deletecollection -/pods a", Err("")),
            ("update coordination.k8s.io/leases kube-node-lease n1", Ok(())),
            (
                "update coordination.k8s.io/leases kube-node-lease n2",
                Err("can only access node lease with the same name as the requesting node"),
            ),
            (
                "update coordination.k8s.io/leases default n1",
                Err("can only access leases in the \"kube-node-lease\" system namespace"),
            ),
            ("create -/events a", Ok(())),
            ("patch events.k8s.io/events a e", Ok(())),
            ("update -/services a s", Err("")),
            ("create apps/deployments a", Err("")),
        ] {
            assert_eq!(authorize("n1", &request(text), &pods), expected.map_err(str::to_owned), "{text}");
        }
        let own = |node_name| Request { node_name, ..request("watch -/pods") };
        assert!(authorize("n1", &own("n1"), &pods).is_ok());
        assert!(authorize("n1", &own("n2"), &pods).is_err());
        let nameless = authorize("", &request("list -/pods"), &pods);
        assert_eq!(nameless, Err("unknown node for user \"system:node:\"".to_owned()));
        pods.put("a", "p", None);
        assert!(authorize("n1", &request("get -/secrets a s"), &pods).is_err());
    }

    #[test]
    fn a_node_touches_only_its_own() {
        let words = |group: &str, plural: &str, old: Value, new: Value| {
            let object = |value: Value| (!value.is_null()).then_some(value);
            let (old, new) = (object(old), object(new));
            let kind = crate::known_kind(group, plural);
            restrict("n1", kind, old.as_ref(), new.as_ref()).err().map(|status| status.message().to_owned())
        };
        let pod = |node: &str| json!({"metadata": {"name": "p"}, "spec": {"nodeName": node}});
        let node = |name: &str, labels: Value, taints: Value| json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}});
        let plain = || node("n1", json!({"kubernetes.io/hostname": "n1"}), json!(null));
        for (group, plural, old, new, expected) in [
            ("", "pods", pod("n1"), pod("n1"), None),
            ("", "pods", pod("n1"), json!(null), None),
            (
                "",
                "pods",
                pod("n2"),
                json!(null),
                Some("pods \"p\" is forbidden: node \"n1\" can only delete pods with spec.nodeName set to itself"),
            ),
            ("", "pods", json!(null), pod("n1"), Some("pods \"p\" is forbidden: node \"n1\" can not create pods")),
            ("", "nodes", json!(null), plain(), None),
            ("", "nodes", plain(), plain(), None),
            (
                "",
                "nodes",
                json!(null),
                node("n2", json!({}), json!(null)),
                Some("nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\""),
            ),
            (
                "",
                "nodes",
                plain(),
                node("n1", json!({"kubernetes.io/hostname": "n1", "node-role.kubernetes.io/master": ""}), json!(null)),
                Some("nodes \"n1\" is forbidden: is not allowed to modify labels: node-role.kubernetes.io/master"),
            ),
            (
                "",
                "nodes",
                plain(),
                node("n1", json!({"kubernetes.io/hostname": "n1"}), json!([{"key": "a"}])),
                Some("nodes \"n1\" is forbidden: node \"n1\" is not allowed to modify taints"),
            ),
            ("", "events", json!(null), json!({"metadata": {"name": "e"}}), None),
        ] {
            assert_eq!(words(group, plural, old.clone(), new.clone()).as_deref(), expected, "{old} {new}");
        }
    }

    #[test]
    fn labels_that_nodes_may_have() {
        for (label, expected) in [
            ("anything", false),
            ("example.com/a", false),
            ("kubernetes.io/hostname", false),
            ("node.kubernetes.io/speed", false),
            ("kubernetes.io/other", true),
            ("a.k8s.io/b", true),
            ("node-restriction.kubernetes.io/a", true),
            ("a.node-restriction.kubernetes.io/b", true),
            ("notkubernetes.io/a", false),
        ] {
            assert_eq!(is_not_a_nodes(label), expected, "{label}");
        }
    }
}
