//! What belongs to the cluster as a whole: Namespaces, Nodes, Leases, ServiceCIDRs, IPAddresses.

use serde_json::Value;

use super::{Errors, address, as_go, resources, scheduling};
use crate::look::{Look, Path};
use crate::{FieldError, FieldErrorKind, names};

const SPEC: Path<'static> = Path::Field(&Path::Root, "spec");

pub(super) fn namespace(errors: &mut Errors, new: &Value) {
    let path = SPEC.field("finalizers");
    for name in new["spec"].list("finalizers").iter().filter_map(Value::as_str) {
        errors.each(&path, name, names::qualified_name(name));
        if !name.contains('/') && !super::STANDARD_FINALIZERS.contains(&name) {
            errors.invalid(&path, name, "name is neither a standard finalizer name nor is it fully qualified");
        }
    }
}

pub(super) fn node(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    let (spec, status) = (&new["spec"], &new["status"]);
    let metadata = Path::Root.field("metadata");
    scheduling::taints(errors, spec.list("taints"), &metadata.field("taints"));
    let status_path = Path::Root.field("status");
    for list in ["capacity", "allocatable"] {
        for (name, value) in status.entries(list) {
            let path = status_path.field(list);
            resources::quantity(errors, name, value.as_str().unwrap_or_default(), &path.field(name));
        }
    }
    let path = SPEC.field("podCIDRs");
    let cidrs = spec.list("podCIDRs");
    for (index, cidr) in cidrs.iter().enumerate() {
        address::legacy_cidr(errors, &path.index(index), cidr.as_str().unwrap_or_default());
    }
    let parsed = |cidr: &Value| address::parse_cidr(cidr.as_str().unwrap_or_default()).is_some();
    if let Some(index) = cidrs.iter().position(|cidr| !parsed(cidr)).filter(|_| cidrs.len() > 1) {
        let cidr = cidrs[index].as_str().unwrap_or_default();
        let why = format!(
            "invalid PodCIDRs. failed to check with dual stack with error:invalid CIDR[{index}]: <nil> (invalid CIDR \
             address: {cidr})"
        );
        errors.push(FieldError::new(FieldErrorKind::InternalError, path, None, why));
    }
    if cidrs.len() > 1 && !(cidrs.len() == 2 && dual_stack(cidrs)) {
        errors.invalid(&path, spec["podCIDRs"].clone(), "may specify no more than one CIDR for each IP family");
    }
    let Some(old) = old else { return };
    let list = status_path.field("addresses");
    let addresses = status.list("addresses");
    for (index, item) in addresses.iter().enumerate().filter(|(index, item)| addresses[..*index].contains(item)) {
        errors.duplicate(&list.index(index), item.clone());
    }
    let before = &old["spec"];
    if !before.list("podCIDRs").is_empty() && before["podCIDRs"] != spec["podCIDRs"] {
        errors.forbidden(&path, "node updates may not change podCIDR except from \"\" to valid");
    }
    if !before.text("providerID").is_empty() && before["providerID"] != spec["providerID"] {
        errors.forbidden(&SPEC.field("providerID"), "node updates may not change providerID except from \"\" to valid");
    }
}

fn dual_stack(cidrs: &[Value]) -> bool {
    let v6 =
        |cidr: &Value| address::parse_cidr(cidr.as_str().unwrap_or_default()).is_some_and(|net| net.addr().is_ipv6());
    cidrs.iter().any(v6) && cidrs.iter().any(|cidr| !v6(cidr))
}

pub(super) fn lease(errors: &mut Errors, new: &Value) {
    let spec = &new["spec"];
    if let Some(seconds) = spec.int("leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
        errors.invalid(&SPEC.field("leaseDurationSeconds"), seconds, "must be greater than 0");
    }
    errors.non_negative(&SPEC.field("leaseTransitions"), spec.int("leaseTransitions"));
    if !spec.text("preferredHolder").is_empty() && spec.text("strategy").is_empty() {
        errors.forbidden(&SPEC.field("preferredHolder"), "may only be specified if `strategy` is defined");
    }
}

pub(super) fn service_cidr(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    let path = SPEC.field("cidrs");
    let cidrs = new["spec"].list("cidrs");
    if let Some(old) = old {
        // A second family may be added; nothing else may change.
        let before = old["spec"].list("cidrs");
        let changed = cidrs.iter().zip(before).enumerate().filter(|(_, (now, before))| now != before);
        match (before.len(), cidrs.len()) {
            (before, now) if before == now => {}
            (1, 2) => {}
            _ => return errors.invalid(&path, new["spec"]["cidrs"].clone(), "field is immutable"),
        }
        for (index, (now, _)) in changed {
            errors.invalid(&path.index(index), now.clone(), "field is immutable");
        }
        if cidrs.len() == before.len() {
            return;
        }
    }
    if cidrs.is_empty() {
        return errors.required(&path, "at least one CIDR required");
    }
    if cidrs.len() > 2 {
        let shown = as_go(&new["spec"], &[("CIDRs", "cidrs", Value::Null)]);
        return errors.invalid_as(&path, shown, "may only hold up to 2 values");
    }
    for (index, cidr) in cidrs.iter().enumerate() {
        address::canonical_cidr(errors, &path.index(index), cidr.as_str().unwrap_or_default());
    }
    let family = |cidr: &Value| address::parse_cidr(cidr.as_str().unwrap_or_default()).map(|net| net.addr().is_ipv6());
    if let [first, second] = cidrs
        && family(first).is_some()
        && family(first) == family(second)
    {
        let one = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.invalid(&path, new["spec"]["cidrs"].clone(), one);
    }
}

pub(super) fn ip_address(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    let path = SPEC.field("parentRef");
    let parent = &new["spec"]["parentRef"];
    let change = |errors: &mut Errors| {
        if old.is_some_and(|old| *parent != old["spec"]["parentRef"]) {
            let fields = [("Group", "group"), ("Resource", "resource"), ("Namespace", "namespace"), ("Name", "name")];
            let shown = match parent {
                Value::Null => "null".to_owned(),
                parent => as_go(parent, &fields.map(|(go, name)| (go, name, "".into()))),
            };
            errors.invalid_as(&path, shown, "field is immutable");
        }
    };
    if parent.is_null() {
        errors.required(&path, "");
        return change(errors);
    }
    for (field, required) in [("group", false), ("resource", true), ("name", true), ("namespace", false)] {
        let text = parent.text(field);
        if !text.is_empty() {
            let wrong = if field == "group" { names::dns1123_subdomain(text) } else { names::path_segment(text) };
            errors.each(&path.field(field), text, wrong);
        } else if required {
            errors.required(&path.field(field), "");
        }
    }
    change(errors);
}
