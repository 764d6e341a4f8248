//! What a client is told of an object that is valid and may yet surprise: warnings, which kubectl shows in yellow.
//!
//! Invariant: an object with warnings is stored as if it had none. Deliberately not here: warnings about the text of a
//! request, such as unknown fields (`decode`).
//! Source: `pkg/api/{service,pod}/warnings.go` and the strategies of Kubernetes 1.36.

mod pod;
mod service;
mod volume;

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use crate::catalog::Strategy;
use crate::look::{Look, Path};
use crate::names;
use crate::validate::{STANDARD_FINALIZERS, parse_address};

/// At most this many are told of one object.
const MOST: usize = 100;

/// The warnings found so far.
#[derive(Default)]
struct Warnings(Vec<String>);

impl Warnings {
    fn push(&mut self, path: &Path<'_>, text: impl std::fmt::Display) {
        if !self.are_many() {
            self.0.push(format!("{path}: {text}"));
        }
    }

    fn say(&mut self, text: String) {
        if !self.are_many() {
            self.0.push(text);
        }
    }

    fn are_many(&self) -> bool {
        self.0.len() >= MOST
    }

    /// Of an address that is valid as of old, and not in the form that all programs read alike.
    fn address(&mut self, path: &Path<'_>, text: &str) {
        let Some(address) = parse_address(text) else { return };
        let plain = match address {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
            IpAddr::V4(_) => address,
        };
        if text.parse::<IpAddr>().is_err() || plain != address {
            self.push(path, format_args!("non-standard IP address \"{text}\" is invalid: use \"{plain}\""));
        } else if address.is_ipv6() && address.to_string() != text {
            self.push(
                path,
                format_args!("IPv6 address \"{text}\" should be in RFC 5952 canonical format (\"{address}\")"),
            );
        }
    }

    /// The same of a range of addresses.
    fn range(&mut self, path: &Path<'_>, text: &str) {
        let Some((address, bits)) = text.split_once('/') else { return };
        let (Some(old), Ok(bits)) = (parse_address(address), bits.parse::<u8>()) else { return };
        let (plain, bits) = match old {
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) => (IpAddr::V4(v4), bits.saturating_sub(96)),
                None => (old, bits),
            },
            IpAddr::V4(_) => (old, bits),
        };
        let Ok(range) = ipnet::IpNet::new(plain, bits) else { return };
        let standard = address.parse::<IpAddr>().is_ok() && plain == old;
        let ambiguous = range.addr() != range.network();
        if ambiguous {
            let (all, one) = (range.trunc(), range.max_prefix_len());
            let meant = format_args!("(should be \"{all}\" or \"{plain}/{one}\"?)");
            self.push(path, format_args!("CIDR value \"{text}\" is ambiguous in this context {meant}"));
        }
        if !standard {
            let all = range.trunc();
            self.push(path, format_args!("non-standard CIDR value \"{text}\" is invalid: use \"{all}\""));
        } else if !ambiguous && plain.is_ipv6() && range.to_string() != text {
            let form = "should be in RFC 5952 canonical format";
            self.push(path, format_args!("IPv6 CIDR value \"{text}\" {form} (\"{range}\")"));
        }
    }

    /// Of a name that becomes a part of hostnames.
    fn hostname(&mut self, object: &Value, what: &str) {
        let wrong = names::dns1123_label(object["metadata"].text("name"));
        if !wrong.is_empty() {
            self.0.push(format!(
                "metadata.name: this is used in {what}, which can result in surprising behavior; a DNS label is \
                 recommended: [{}]",
                wrong.join(" ")
            ));
        }
    }
}

/// `old` is absent at creation.
pub(crate) fn warnings(strategy: Strategy, new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut found = Warnings::default();
    let template = Path::Root.field("spec");
    let template = template.field("template");
    match strategy {
        Strategy::Deployment | Strategy::ReplicaSet => {
            if old.is_none() {
                found.hostname(new, "Pod names and hostnames");
            }
            // Who changes other things has been told.
            if old.is_none_or(|old| old["spec"] != new["spec"]) {
                pod::pod(&mut found, &new["spec"]["template"], &template);
            }
        }
        Strategy::EndpointSlice => slice(&mut found, new, old.is_none()),
        Strategy::Endpoints => endpoints(&mut found, new),
        Strategy::Ingress if old.is_none() => ingress(&mut found, new),
        Strategy::Node => node(&mut found, new),
        // People seldom have to do with pods once these are there.
        Strategy::Pod if old.is_none() => {
            found.hostname(new, "the Pod's hostname");
            pod::pod(&mut found, new, &Path::Root);
        }
        Strategy::Service => service::service(&mut found, new),
        Strategy::Custom => finalizers(&mut found, new, old),
        Strategy::ServiceAccount => account(&mut found, new, old),
        _ => {}
    }
    found.0
}

/// Of the new ones that are not named after who works them off. Kinds that are not custom refuse them.
fn finalizers(found: &mut Warnings, new: &Value, old: Option<&Value>) {
    let old = old.map(|old| old["metadata"].list("finalizers")).unwrap_or_default();
    let added = new["metadata"].list("finalizers").iter().filter(|name| !old.contains(name));
    let path = Path::Root.field("metadata");
    let path = path.field("finalizers");
    for name in added.filter_map(Value::as_str).collect::<BTreeSet<_>>() {
        if !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
            let form = if name.contains('.') { " including a path (/)" } else { "" };
            found.push(
                &path,
                format_args!(
                    "{name:?}: prefer a domain-qualified finalizer name{form} to avoid accidental conflicts with other \
                     finalizer writers"
                ),
            );
        }
    }
}

/// Of a status that a client wrote.
pub(crate) fn of_status(strategy: Strategy, new: &Value) -> Vec<String> {
    let mut found = Warnings::default();
    let path = Path::Root.field("status");
    match strategy {
        Strategy::Pod => {
            for field in ["podIPs", "hostIPs"] {
                let list = path.field(field);
                for (index, address) in new["status"].list(field).iter().enumerate() {
                    found.address(&list.index(index).field("ip"), address.text("ip"));
                }
            }
        }
        Strategy::Service => {
            let path = path.field("loadBalancer");
            let list = path.field("ingress");
            for (index, point) in new["status"]["loadBalancer"].list("ingress").iter().enumerate() {
                found.address(&list.index(index), point.text("ip"));
            }
        }
        _ => {}
    }
    found.0
}

fn endpoints(found: &mut Warnings, endpoints: &Value) {
    if endpoints["metadata"]["labels"].text("endpoints.kubernetes.io/managed-by") == "endpoint-controller" {
        return;
    }
    let list = Path::Root.field("subsets");
    for (index, subset) in endpoints.list("subsets").iter().enumerate() {
        let path = list.index(index);
        for field in ["addresses", "notReadyAddresses"] {
            let list = path.field(field);
            for (index, address) in subset.list(field).iter().enumerate() {
                found.address(&list.index(index).field("ip"), address.text("ip"));
            }
        }
    }
}

fn ingress(found: &mut Warnings, ingress: &Value) {
    let annotation = "kubernetes.io/ingress.class";
    if ingress["metadata"]["annotations"].has(annotation) && !ingress["spec"].has("ingressClassName") {
        let instead = "is deprecated, please use 'spec.ingressClassName' instead";
        found.0.push(format!("annotation \"{annotation}\" {instead}"));
    }
}

fn node(found: &mut Warnings, node: &Value) {
    let (spec, path) = (&node["spec"], Path::Root.field("spec"));
    if spec.has("configSource") {
        found.push(&path.field("configSource"), "the feature is removed");
    }
    if !spec.text("externalID").is_empty() {
        found.push(&path.field("externalID"), "this field is deprecated, and is unused by Kubernetes");
    }
    let list = path.field("podCIDRs");
    for (index, range) in spec.list("podCIDRs").iter().enumerate() {
        found.range(&list.index(index), range.as_str().unwrap_or_default());
    }
}

fn account(found: &mut Warnings, new: &Value, old: Option<&Value>) {
    let annotation = "kubernetes.io/enforce-mountable-secrets";
    let has = |account: &Value| account["metadata"]["annotations"].has(annotation);
    if has(new) && !old.is_some_and(has) {
        let path = Path::Root.field("metadata");
        let path = path.field("annotations");
        let instead = "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
        found.push(&path.key(annotation), instead);
    }
}

fn slice(found: &mut Warnings, slice: &Value, is_new: bool) {
    let kind = slice.text("addressType");
    if is_new && kind == "FQDN" {
        found.0.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
    }
    let list = Path::Root.field("endpoints");
    for (index, endpoint) in slice.list("endpoints").iter().enumerate() {
        let path = list.index(index);
        let list = path.field("addresses");
        for (index, address) in endpoint.list("addresses").iter().enumerate() {
            found.address(&list.index(index), address.as_str().unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(strategy: Strategy, new: &Value, expected: &[&str]) {
        assert_eq!(warnings(strategy, new, None), expected, "{new}");
    }

    #[test]
    fn services() {
        for (spec, expected) in [
            (json!({"type": "ClusterIP", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"]}), &[][..]),
            (
                json!({"trafficDistribution": "PreferClose"}),
                &["spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\""],
            ),
            (
                json!({"type": "ClusterIP", "externalIPs": ["1.2.3.4"]}),
                &["spec.externalIPs is deprecated and may no longer be implemented in some clusters"],
            ),
            (
                json!({"type": "ClusterIP", "clusterIP": "None", "externalIPs": ["1.2.3.4"], "sessionAffinity": "ClientIP"}),
                &[
                    "spec.externalIPs is ignored for headless services",
                    "spec.SessionAffinity is ignored for headless services",
                ],
            ),
            (
                json!({"type": "LoadBalancer", "loadBalancerIP": "010.1.1.1"}),
                &["spec.loadBalancerIP: non-standard IP address \"010.1.1.1\" is invalid: use \"10.1.1.1\""],
            ),
            (
                json!({"type": "ClusterIP", "externalName": "a"}),
                &["spec.externalName is ignored when spec.type is not \"ExternalName\""],
            ),
        ] {
            check(Strategy::Service, &json!({"spec": spec}), expected);
        }
    }

    #[test]
    fn other_kinds() {
        let annotated = |key: &str| json!({"metadata": {"annotations": {key: "x"}}});
        check(
            Strategy::Ingress,
            &annotated("kubernetes.io/ingress.class"),
            &["annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"],
        );
        let account = annotated("kubernetes.io/enforce-mountable-secrets");
        let told = "metadata.annotations[kubernetes.io/enforce-mountable-secrets]: deprecated in v1.32+; prefer separate \
                    namespaces to isolate access to mounted secrets";
        check(Strategy::ServiceAccount, &account, &[told]);
        assert!(warnings(Strategy::ServiceAccount, &account, Some(&account)).is_empty());
        check(
            Strategy::Node,
            &json!({"spec": {"externalID": "x", "podCIDRs": ["10.0.0.0/24", "010.1.0.0/16", "10.2.3.4/16", "FD00::/64"]}}),
            &[
                "spec.externalID: this field is deprecated, and is unused by Kubernetes",
                "spec.podCIDRs[1]: non-standard CIDR value \"010.1.0.0/16\" is invalid: use \"10.1.0.0/16\"",
                "spec.podCIDRs[2]: CIDR value \"10.2.3.4/16\" is ambiguous in this context (should be \"10.2.0.0/16\" or \
                 \"10.2.3.4/32\"?)",
                "spec.podCIDRs[3]: IPv6 CIDR value \"FD00::/64\" should be in RFC 5952 canonical format (\"fd00::/64\")",
            ],
        );
        check(
            Strategy::Endpoints,
            &json!({"subsets": [{"notReadyAddresses": [{"ip": "010.1.1.1"}]}]}),
            &["subsets[0].notReadyAddresses[0].ip: non-standard IP address \"010.1.1.1\" is invalid: use \"10.1.1.1\""],
        );
        let status =
            json!({"status": {"podIPs": [{"ip": "FD00::1"}], "loadBalancer": {"ingress": [{"ip": "010.1.1.1"}]}}});
        assert_eq!(
            of_status(Strategy::Pod, &status),
            ["status.podIPs[0].ip: IPv6 address \"FD00::1\" should be in RFC 5952 canonical format (\"fd00::1\")"]
        );
        assert_eq!(
            of_status(Strategy::Service, &status),
            ["status.loadBalancer.ingress[0]: non-standard IP address \"010.1.1.1\" is invalid: use \"10.1.1.1\""]
        );
    }

    #[test]
    fn parts_of_pods_whose_time_is_over() {
        let metadata = json!({"annotations": {"security.alpha.kubernetes.io/sysctls": "x",
            "container.seccomp.security.alpha.kubernetes.io/c": "x"}});
        let spec = json!({
            "nodeSelector": {"beta.kubernetes.io/os": "linux"},
            "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "beta.kubernetes.io/arch", "values": ["b!"]}]}]},
                "preferredDuringSchedulingIgnoredDuringExecution": [{"preference": {"matchExpressions": [{"key": "a", "values": ["b "]}]}}]}},
            "volumes": [{"name": "g", "gitRepo": {}},
                {"name": "c", "configMap": {"name": "m", "items": [{"path": "a/b"}, {"path": "a"}]}},
                {"name": "p", "projected": {"sources": [{"secret": {"name": "s", "items": [{"path": "t"}]}},
                    {"serviceAccountToken": {"path": "t/u"}}, {}]}}],
            "containers": [{"name": "c", "resources": {"limits": {"memory": "1500m", "cpu": "1500m"}},
                "ports": [{"name": "w", "containerPort": 80, "protocol": "TCP", "hostIP": "1.2.3.4"}]}]});
        check(
            Strategy::Pod,
            &json!({"metadata": {"name": "a", "annotations": metadata["annotations"]}, "spec": spec}),
            &[
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].\
                 matchExpressions[0].key: beta.kubernetes.io/arch is deprecated since v1.14; use \"kubernetes.io/arch\" instead",
                "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference.\
                 matchExpressions[0].values[0]: b  is invalid, a valid label must be an empty string or consist of \
                 alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
                 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
                 '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
                "metadata.annotations[security.alpha.kubernetes.io/sysctls]: non-functional in v1.11+; use the \"sysctls\" field \
                 instead",
                "spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
                "volume \"c\" (ConfigMap \"m\"): overlapping paths: \"a\" with \"a/b\"",
                "volume \"p\" (Projected): overlapping paths: \"t/u\" (ServiceAccountToken) with \"t\" (Secret \"s\")",
                "volume \"p\" (Projected) has no sources provided",
                "metadata.annotations[container.seccomp.security.alpha.kubernetes.io/c]: non-functional in v1.27+; use the \
                 \"seccompProfile\" field instead",
                "spec.containers[0].resources.limits[memory]: fractional byte value \"1500m\" is invalid, must be an integer",
                "spec.containers[0].ports[0]: hostIP set without hostPort: {Name:w HostPort:0 ContainerPort:80 Protocol:TCP \
                 HostIP:1.2.3.4}",
            ],
        );
    }

    #[test]
    fn slices() {
        let slice = json!({"addressType": "FQDN", "endpoints": [{"addresses": ["a.b"]}]});
        check(Strategy::EndpointSlice, &slice, &["spec.addressType: FQDN endpoints are deprecated"]);
        assert!(warnings(Strategy::EndpointSlice, &slice, Some(&slice)).is_empty());
        let slice =
            json!({"addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"]}, {"addresses": ["FD00:0::2"]}]});
        check(
            Strategy::EndpointSlice,
            &slice,
            &[
                "endpoints[1].addresses[0]: IPv6 address \"FD00:0::2\" should be in RFC 5952 canonical format (\"fd00::2\")",
            ],
        );
    }

    #[test]
    fn finalizers_of_custom_resources() {
        let object = |names: &[&str]| json!({"metadata": {"finalizers": names}});
        let new = object(&["orphan", "a.b/c", "a.b", "a"]);
        let hint = "to avoid accidental conflicts with other finalizer writers";
        let path = "metadata.finalizers: ";
        let one = format!("{path}\"a\": prefer a domain-qualified finalizer name {hint}");
        let two = format!("{path}\"a.b\": prefer a domain-qualified finalizer name including a path (/) {hint}");
        check(Strategy::Custom, &new, &[&one, &two]);
        assert_eq!(warnings(Strategy::Custom, &new, Some(&object(&["a.b"]))), [one]);
    }

    #[test]
    fn pods() {
        let container = json!({"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP", "name": "web"},
            {"containerPort": 80, "protocol": "TCP"}, {"containerPort": 81, "protocol": "TCP", "name": "web"}],
            "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}, {"name": "A", "value": "3"}]});
        let pod = json!({"metadata": {"name": "a.b"}, "spec": {
            "containers": [container], "imagePullSecrets": [{"name": "s"}, {"name": "s"}],
            "terminationGracePeriodSeconds": -1, "topologySpreadConstraints": [{"topologyKey": "zone"}]}});
        check(
            Strategy::Pod,
            &pod,
            &[
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is \
                 recommended: [must not contain dots]",
                "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
                "spec.imagePullSecrets[1].name: duplicate name \"s\"",
                "spec.containers[0].env[2]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.containers[0].ports[2]: duplicate port name \"web\" with spec.containers[0].ports[0], services and \
                 probes that select ports by name will use spec.containers[0].ports[0]",
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
            ],
        );
        assert!(warnings(Strategy::Pod, &pod, Some(&pod)).is_empty());
        let deployment = json!({"metadata": {"name": "d"}, "spec": {"template": pod}});
        let told = warnings(Strategy::Deployment, &deployment, None);
        assert!(told[0].starts_with("spec.template.spec.topologySpreadConstraints[0]"), "{told:?}");
        assert!(warnings(Strategy::Deployment, &deployment, Some(&deployment)).is_empty());
    }
}
