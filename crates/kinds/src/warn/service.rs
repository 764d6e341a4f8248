//! Services.

use serde_json::Value;

use super::Warnings;
use crate::look::{Look, Path};
use crate::service::{is_headless, spec_type};

pub(super) fn service(found: &mut Warnings, service: &Value) {
    let spec = &service["spec"];
    let kind = spec_type(spec);
    let path = Path::Root.field("spec");
    let mut say = |text: &str| found.0.push(text.to_owned());
    if service["metadata"]["annotations"].has("service.kubernetes.io/topology-aware-hints") {
        say("annotation service.kubernetes.io/topology-aware-hints is deprecated, please use \
             service.kubernetes.io/topology-mode instead");
    }
    let headless = kind == "ClusterIP" && is_headless(spec);
    let external = spec.list("externalIPs");
    if headless {
        if !spec.text("loadBalancerIP").is_empty() {
            say("spec.loadBalancerIP is ignored for headless services");
        }
        if !external.is_empty() {
            say("spec.externalIPs is ignored for headless services");
        }
        if !matches!(spec.text("sessionAffinity"), "" | "None") {
            say("spec.SessionAffinity is ignored for headless services");
        }
    }
    for field in ["clusterIPs", "externalIPs"] {
        let list = path.field(field);
        for (index, address) in spec.list(field).iter().enumerate() {
            found.address(&list.index(index), address.as_str().unwrap_or_default());
        }
    }
    if !external.is_empty() && kind != "ExternalName" && !headless {
        found.0.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned());
    }
    found.address(&path.field("loadBalancerIP"), spec.text("loadBalancerIP"));
    let list = path.field("loadBalancerSourceRanges");
    for (index, range) in spec.list("loadBalancerSourceRanges").iter().enumerate() {
        found.range(&list.index(index), range.as_str().unwrap_or_default());
    }
    let mut say = |text: &str| found.0.push(text.to_owned());
    if !external.is_empty() && kind == "ExternalName" {
        say("spec.externalIPs is ignored when spec.type is \"ExternalName\"");
    }
    if kind != "ExternalName" && !spec.text("externalName").is_empty() {
        say("spec.externalName is ignored when spec.type is not \"ExternalName\"");
    }
    if spec.text("trafficDistribution") == "PreferClose" {
        say("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"");
    }
}
