//! Which IP families a Service has: what its author said, what its addresses say, what it had before, and what the
//! cluster has.
//!
//! Invariants: a Service goes from one family to two, or back, only if its policy says so; what was inferred agrees
//! with the addresses. Source: KEP-563, `pkg/registry/core/service/storage/alloc.go`.

use serde_json::{Value, json};

use super::{needs_cluster_ip, spec_type};
use crate::FieldError;
use crate::look::{Look, child, map_of};
use crate::validate::cluster_ips;

const POLICY: &str = "spec.ipFamilyPolicy";

/// Fills in `ipFamilyPolicy` and `ipFamilies`. `old` is absent at creation; `available` are the cluster's families, the
/// first one first. Whoever gets errors has to look no further.
pub(crate) fn settle(service: &mut Value, old: Option<&Value>, available: &[&str]) -> Vec<FieldError> {
    let old = old.map(|old| &old["spec"]);
    let spec = child(service, "spec");
    // What a cluster that gained or lost a family means to old Services is for their owners to say.
    if spec_type(spec) == "ExternalName" || old.is_some_and(|old| prefers_what_it_has(spec, old)) {
        return Vec::new();
    }
    let headless = spec.text("clusterIP") == "None";
    let free_standing = headless && spec.entries("selector").next().is_none();
    if !spec.has("ipFamilyPolicy") {
        let policy = match old.map_or("", |old| old.text("ipFamilyPolicy")) {
            // Nobody knows what the endpoints of a headless Service without selector will be.
            "" if free_standing => "RequireDualStack",
            "" => "SingleStack",
            before => before,
        };
        let policy = policy.to_owned();
        map_of(spec).insert("ipFamilyPolicy".into(), policy.into());
    }
    let errors = cluster_ips(spec, old);
    if !errors.is_empty() {
        return errors;
    }
    let single = spec.text("ipFamilyPolicy") == "SingleStack";
    let mut errors = Vec::new();
    let mut refuse = |detail: &str| errors.push(FieldError::invalid(POLICY, spec["ipFamilyPolicy"].clone(), detail));
    let mut cut = Vec::new();
    for (field, what) in [("clusterIPs", "secondary cluster IP"), ("ipFamilies", "secondary IP family")] {
        let now = spec.list(field);
        let before = old.map(|old| old.list(field)).unwrap_or_default();
        if single && old.is_some() && now == before && now.len() > 1 {
            cut.push(field);
        } else if !single && !now.is_empty() && now.len() < before.len() {
            refuse(&format!("must be 'SingleStack' to release the {what}"));
        }
    }
    for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
        if single && spec.list(field).len() == 2 && !cut.contains(&field) {
            refuse(&format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"));
        }
    }
    for field in cut {
        if let Some(Value::Array(items)) = spec.get_mut(field) {
            items.truncate(1);
        }
    }
    let mut families = spec.list("ipFamilies").to_vec();
    let asked = families.len();
    for (index, ip) in spec.list("clusterIPs").iter().enumerate().skip(asked).filter(|(_, ip)| *ip != "None") {
        let family = if ip.as_str().is_some_and(|ip| ip.contains(':')) { "IPv6" } else { "IPv4" };
        if available.contains(&family) {
            families.push(family.into());
        } else {
            let field = format!("spec.clusterIPs[{index}]");
            let detail = format!("{family} is not configured on this cluster");
            errors.push(FieldError::invalid(field, spec["clusterIPs"].clone(), detail));
        }
    }
    if !free_standing && errors.is_empty() {
        if spec.text("ipFamilyPolicy") == "RequireDualStack" && available.len() < 2 {
            let detail = "this cluster is not configured for dual-stack services";
            errors.push(FieldError::invalid(POLICY, spec["ipFamilyPolicy"].clone(), detail));
        }
        for (index, family) in families.iter().enumerate() {
            if !available.iter().any(|available| family == available) {
                let field = format!("spec.ipFamilies[{index}]");
                errors.push(FieldError::invalid(field, family.clone(), "not configured on this cluster"));
            }
        }
    }
    if !errors.is_empty() {
        return errors;
    }
    if families.is_empty() {
        families.push((*available.first().unwrap_or(&"IPv4")).into());
    }
    if !single && families.len() == 1 && (free_standing || available.len() > 1) {
        families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }.into());
    }
    map_of(spec).insert("ipFamilies".into(), json!(families));
    Vec::new()
}

/// Whether both versions prefer two families, and nothing of what was given out changes.
fn prefers_what_it_has(spec: &Value, old: &Value) -> bool {
    let prefers = |spec: &Value| spec.text("ipFamilyPolicy") == "PreferDualStack";
    let same = |field: &str| spec.list(field) == old.list(field);
    needs_cluster_ip(spec)
        && spec_type(spec) == spec_type(old)
        && prefers(spec)
        && (prefers(old) || !old.has("ipFamilyPolicy"))
        && same("clusterIPs")
        && same("ipFamilies")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [&str; 2] = ["IPv4", "IPv6"];

    fn service(spec: &Value) -> Value {
        let mut spec = spec.clone();
        spec["type"] = "ClusterIP".into();
        json!({"spec": spec})
    }

    /// What kube-apiserver 1.36.2 makes of the same.
    #[test]
    fn families_follow_policy_and_addresses() {
        let four = json!(["10.0.0.1"]);
        let two = json!(["10.0.0.1", "fd00::1"]);
        let single = json!({"clusterIP": "10.0.0.1", "clusterIPs": four, "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"});
        let dual = json!({"clusterIP": "10.0.0.1", "clusterIPs": two, "ipFamilies": BOTH, "ipFamilyPolicy": "RequireDualStack"});
        let with = |spec: &Value, field: &str, value: Value| {
            let mut spec = spec.clone();
            spec[field] = value;
            spec
        };
        for (old, new, expected) in [
            (None, json!({}), Ok(json!([null, ["IPv4"], "SingleStack"]))),
            (None, json!({"ipFamilyPolicy": "PreferDualStack"}), Ok(json!([null, BOTH, "PreferDualStack"]))),
            (
                None,
                json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]}),
                Ok(json!([null, ["IPv6", "IPv4"], "PreferDualStack"])),
            ),
            (
                None,
                json!({"clusterIP": "None", "clusterIPs": ["None"]}),
                Ok(json!([["None"], BOTH, "RequireDualStack"])),
            ),
            (
                None,
                json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}),
                Ok(json!([["fd00::1"], ["IPv6"], "SingleStack"])),
            ),
            (
                None,
                json!({"ipFamilies": BOTH}),
                Err("must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"),
            ),
            // An update that does not speak of the policy keeps it.
            (Some(&dual), with(&dual, "ipFamilyPolicy", Value::Null), Ok(json!([two, BOTH, "RequireDualStack"]))),
            (
                Some(&dual),
                with(&dual, "ipFamilyPolicy", "SingleStack".into()),
                Ok(json!([four, ["IPv4"], "SingleStack"])),
            ),
            (
                Some(&dual),
                with(&dual, "ipFamilies", json!(["IPv4"])),
                Err("must be 'SingleStack' to release the secondary IP family"),
            ),
            (
                Some(&dual),
                with(&dual, "clusterIPs", four.clone()),
                Err("must be 'SingleStack' to release the secondary cluster IP"),
            ),
            (
                Some(&single),
                with(&single, "ipFamilies", json!(BOTH)),
                Err("must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"),
            ),
            (
                Some(&single),
                with(&single, "ipFamilyPolicy", "RequireDualStack".into()),
                Ok(json!([four, BOTH, "RequireDualStack"])),
            ),
            (
                Some(&single),
                with(&single, "ipFamilies", json!(["IPv6"])),
                Err("expected an IPv6 value as indicated by `ipFamilies[0]`"),
            ),
        ] {
            let mut settled = service(&new);
            let old = old.map(service);
            let errors = settle(&mut settled, old.as_ref(), &BOTH);
            let spec = &settled["spec"];
            let got = match errors.as_slice() {
                [] => Ok(json!([spec["clusterIPs"], spec["ipFamilies"], spec["ipFamilyPolicy"]])),
                [error, ..] => Err(error.detail.as_str()),
            };
            assert_eq!(got, expected, "{new}");
        }
        // A cluster that has gained a family leaves Services that prefer two as they are.
        let prefers = with(&single, "ipFamilyPolicy", "PreferDualStack".into());
        let mut settled = service(&prefers);
        assert!(settle(&mut settled, Some(&service(&prefers)), &BOTH).is_empty());
        assert_eq!(settled["spec"]["ipFamilies"], json!(["IPv4"]));
        let mut demanding = service(&json!({"ipFamilyPolicy": "RequireDualStack"}));
        assert_eq!(
            settle(&mut demanding, None, &["IPv4"])[0].detail,
            "this cluster is not configured for dual-stack services"
        );
    }
}
