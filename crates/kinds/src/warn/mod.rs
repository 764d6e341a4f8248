//! What a client is told of an object that is valid and may yet surprise: warnings, which kubectl shows in yellow.
//!
//! Invariant: an object with warnings is stored as if it had none. Deliberately not here: warnings about the text of a
//! request, such as unknown fields (`decode`).
//! Source: `pkg/api/{service,pod}/warnings.go` and the strategies of Kubernetes 1.36.

mod pod;
mod service;

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
        // People seldom have to do with pods once these are there.
        Strategy::Pod if old.is_none() => {
            found.hostname(new, "the Pod's hostname");
            pod::pod(&mut found, new, &Path::Root);
        }
        Strategy::Service => service::service(&mut found, new),
        Strategy::Custom => finalizers(&mut found, new, old),
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
