//! Pods, and the pods in templates.

use std::collections::HashSet;

use serde_json::Value;

use super::{Errors, address, container, metadata, scheduling, security, volume};
use crate::look::{Look, Path, items_mut, map_of, remove};
use crate::names;

const SPEC: Path<'static> = Path::Field(&Path::Root, "spec");
const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn pod(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    let spec = &new["spec"];
    whole_spec(errors, spec);
    match old {
        None => {
            if !spec.list("ephemeralContainers").is_empty() {
                errors.forbidden(&SPEC.field("ephemeralContainers"), "cannot be set on create");
            }
            if !spec.text("nodeName").is_empty() && !spec.list("schedulingGates").is_empty() {
                errors.forbidden(&SPEC.field("nodeName"), "cannot be set until all schedulingGates have been cleared");
            }
        }
        Some(old) => update(errors, spec, &old["spec"]),
    }
}

/// The spec of a pod, and what of templates need not be so.
fn whole_spec(errors: &mut Errors, spec: &Value) {
    pod_spec(errors, spec, &SPEC, true);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        let path = SPEC.field(list);
        for (index, container) in spec.list(list).iter().enumerate() {
            let image = container.text("image");
            if image.trim() != image {
                errors.invalid(
                    &path.index(index).field("image"),
                    image,
                    "must not have leading or trailing whitespace",
                );
            }
        }
    }
}

/// An update that may bring new ones in, and nothing else.
pub(super) fn ephemeral_containers(errors: &mut Errors, new: &Value, old: &Value) {
    whole_spec(errors, &new["spec"]);
    let path = SPEC.field("ephemeralContainers");
    let now = new["spec"].list("ephemeralContainers");
    for before in old["spec"].list("ephemeralContainers") {
        let name = before.text("name");
        match now.iter().find(|container| container.text("name") == name) {
            None => errors.forbidden(&path, format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(now) if now != before => {
                let change = format!("{before} is now {now}");
                errors.forbidden(&path, format!("existing ephemeral containers {name:?} may not be changed\n{change}"));
            }
            Some(_) => {}
        }
    }
}

pub(super) fn template(errors: &mut Errors, template: &Value, path: &Path<'_>) {
    metadata::labels(errors, &template["metadata"]["labels"], &path.field("labels"));
    metadata::annotations(errors, &template["metadata"]["annotations"], &path.field("annotations"));
    let spec = path.field("spec");
    pod_spec(errors, &template["spec"], &spec, false);
    if !template["spec"].list("ephemeralContainers").is_empty() {
        errors.forbidden(&spec.field("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// Of a pod, or of the pods that a template is for.
fn pod_spec(errors: &mut Errors, spec: &Value, path: &Path<'_>, of_pod: bool) {
    let volumes = volume::volumes(errors, spec.list("volumes"), &path.field("volumes"));
    let os = spec["os"]["name"].as_str();
    let (grace, host_users) = (spec.int("terminationGracePeriodSeconds"), spec["hostUsers"] != false);
    let shared = container::Shared { volumes, grace, host_users, os };
    container::containers(errors, spec, &shared, path);
    container::init_containers(errors, spec, &shared, path);
    container::ephemeral_containers(errors, spec, &shared, path);
    container::host_network(errors, spec, &path.field("containers"), of_pod);
    errors.one_of(&path.field("restartPolicy"), spec.text("restartPolicy"), &["Always", "OnFailure", "Never"]);
    errors.one_of(
        &path.field("dnsPolicy"),
        spec.text("dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    metadata::labels(errors, &spec["nodeSelector"], &path.field("nodeSelector"));
    security::pod(errors, spec, &path.field("securityContext"));
    scheduling::affinity(errors, &spec["affinity"], &path.field("affinity"));
    dns(errors, spec, path);
    scheduling::gates(errors, spec, path);
    scheduling::spread(errors, spec, path);
    hostname(errors, spec, path);
    let named = |errors: &mut Errors, field: &str, form: fn(&str) -> Vec<String>| {
        let text = spec.text(field);
        if !text.is_empty() {
            errors.each(&path.field(field), text, form(text));
        }
    };
    named(errors, "serviceAccountName", names::dns1123_subdomain);
    named(errors, "nodeName", names::dns1123_subdomain);
    if let Some(seconds) = spec.int("activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        errors.invalid(&path.field("activeDeadlineSeconds"), seconds, "must be between 1 and 2147483647, inclusive");
    }
    named(errors, "hostname", names::dns1123_label);
    named(errors, "subdomain", names::dns1123_label);
    scheduling::tolerations(errors, spec.list("tolerations"), &path.field("tolerations"));
    let list = path.field("hostAliases");
    for (index, alias) in spec.list("hostAliases").iter().enumerate() {
        let path = list.index(index);
        address::legacy(errors, &path.field("ip"), alias.text("ip"));
        let list = path.field("hostnames");
        for (index, name) in alias.list("hostnames").iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            errors.each(&list.index(index), name, names::dns1123_subdomain(name));
        }
    }
    named(errors, "priorityClassName", names::dns1123_subdomain);
    named(errors, "runtimeClassName", names::dns1123_subdomain);
    if let Some(policy) = spec["preemptionPolicy"].as_str() {
        errors.one_of(&path.field("preemptionPolicy"), policy, &["PreemptLowerPriority", "Never"]);
    }
    match os {
        Some("") => errors.required(&path.field("os").field("name"), ""),
        Some(name) if !["linux", "windows"].contains(&name) => {
            errors.not_supported(&path.field("os"), name, &["linux", "windows"]);
        }
        _ => {}
    }
}

/// The hostname in place of all others.
fn hostname(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let Some(name) = spec["hostnameOverride"].as_str() else { return };
    let path = path.field("hostnameOverride");
    for field in ["setHostnameAsFQDN", "hostNetwork"] {
        if spec.flag(field) {
            errors.forbidden(&path, format!("may not be specified when {field} is true"));
        }
    }
    if name.len() > 64 {
        errors.push(crate::FieldError::too_long(path, 64));
    }
    errors.each(&path, name, names::dns1123_subdomain(name));
}

fn dns(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let config = &spec["dnsConfig"];
    let here = path.field("dnsConfig");
    if spec.text("dnsPolicy") == "None" && config.list("nameservers").is_empty() {
        let missing = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        return if config.is_null() {
            errors.required(&here, "must provide `dnsConfig` when `dnsPolicy` is None")
        } else {
            errors.required(&here.field("nameservers"), missing)
        };
    }
    let list = here.field("nameservers");
    if config.list("nameservers").len() > 3 {
        errors.invalid(&list, config["nameservers"].clone(), "must not have more than 3 nameservers");
    }
    for (index, server) in config.list("nameservers").iter().enumerate() {
        address::legacy(errors, &list.index(index), server.as_str().unwrap_or_default());
    }
    let list = here.field("searches");
    if config.list("searches").len() > 32 {
        errors.invalid(&list, config["searches"].clone(), "must not have more than 32 search paths");
    }
    // With a space between each two.
    let characters: usize =
        config.list("searches").iter().map(|search| search.as_str().unwrap_or_default().len() + 1).sum();
    if characters > 2049 {
        let many = "must not have more than 2048 characters (including spaces) in the search list";
        errors.invalid(&list, config["searches"].clone(), many);
    }
    for (index, search) in config.list("searches").iter().enumerate() {
        let text = search.as_str().unwrap_or_default();
        let name = text.strip_suffix('.').unwrap_or(text);
        if text != "." {
            errors.each(&list.index(index), name, names::subdomain_with_underscores(name));
        }
    }
    let list = here.field("options");
    for (index, option) in config.list("options").iter().enumerate() {
        if option.text("name").is_empty() {
            errors.required(&list.index(index), "must not be empty");
        }
    }
}

/// A pod that exists may change little: images, a shorter deadline, more tolerations.
fn update(errors: &mut Errors, new: &Value, old: &Value) {
    for list in ["containers", "initContainers"] {
        let path = SPEC.field(list);
        if new.list(list).len() != old.list(list).len() {
            errors.forbidden(&path, "pod updates may not add or remove containers");
            return;
        }
    }
    let path = SPEC.field("activeDeadlineSeconds");
    match (new.int("activeDeadlineSeconds"), old.int("activeDeadlineSeconds")) {
        (Some(now), Some(before)) if now > before => {
            errors.invalid(&path, now, "must be less than or equal to previous value");
            return;
        }
        (None, Some(_)) => {
            errors.invalid(&path, Value::Null, "must not update from a positive integer to nil value");
        }
        _ => {}
    }
    tolerations_kept(errors, new, old);
    let list = SPEC.field("schedulingGates");
    let before: HashSet<&str> = old.list("schedulingGates").iter().map(|gate| gate.text("name")).collect();
    for (index, gate) in new.list("schedulingGates").iter().enumerate() {
        let name = gate.text("name");
        if !before.contains(name) {
            errors.forbidden(
                &list.index(index).field("name"),
                format!("only deletion is allowed, but found new scheduling gate '{name}'"),
            );
        }
    }
    if new != old {
        let munged = with_updatable_of(new, old);
        let changed: Vec<&str> = munged
            .as_object()
            .into_iter()
            .chain(old.as_object())
            .flatten()
            .map(|(field, _)| field.as_str())
            .filter(|field| munged[*field] != old[*field])
            .collect();
        if let Some(first) = changed.first() {
            errors.forbidden(&SPEC, format!("{UPDATABLE}\nspec.{first}: {} is now {}", old[*first], munged[*first]));
        }
    }
}

fn tolerations_kept(errors: &mut Errors, new: &Value, old: &Value) {
    let bare = |toleration: &Value| {
        let mut toleration = toleration.clone();
        remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let now: HashSet<Value> = new.list("tolerations").iter().map(bare).collect();
    if old.list("tolerations").iter().any(|before| !now.contains(&bare(before))) {
        errors.forbidden(
            &SPEC.field("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
}

/// The new spec with what may change made as it was.
fn with_updatable_of(new: &Value, old: &Value) -> Value {
    let mut munged = new.clone();
    for list in ["containers", "initContainers"] {
        for (item, before) in items_mut(&mut munged, list).iter_mut().zip(old.list(list)) {
            map_of(item).insert("image".into(), before["image"].clone());
        }
    }
    let negative = old.int("terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0);
    let mut fields = vec!["activeDeadlineSeconds", "schedulingGates", "tolerations"];
    if negative && new.int("terminationGracePeriodSeconds") == Some(1) {
        fields.push("terminationGracePeriodSeconds");
    }
    if !old.list("schedulingGates").is_empty() {
        // A pod that waits at a gate may still be told where to go.
        let wider = old.entries("nodeSelector").all(|(key, value)| new["nodeSelector"].get(key) == Some(value));
        if wider {
            fields.push("nodeSelector");
        }
    }
    for field in fields {
        match old.get(field) {
            Some(value) => _ = map_of(&mut munged).insert(field.to_owned(), value.clone()),
            None => _ = remove(&mut munged, field),
        }
    }
    munged
}

pub(super) fn status(errors: &mut Errors, new: &Value, old: &Value) {
    let path = Path::Root.field("status");
    let (now, before) = (&new["status"], &old["status"]);
    let (nominated, path_of_nominated) = (now.text("nominatedNodeName"), path.field("nominatedNodeName"));
    if !nominated.is_empty() && nominated != before.text("nominatedNodeName") {
        errors.each(&path_of_nominated, nominated, names::dns1123_subdomain(nominated));
        if !old["spec"].text("nodeName").is_empty() {
            errors.forbidden(&path_of_nominated, "may not be set on pods that are already bound to a node");
        }
    }
    errors.non_negative(&path.field("observedGeneration"), now.int("observedGeneration"));
    // A status written whole may leave the class out.
    if now.has("qosClass") {
        errors.immutable(&path.field("qosClass"), &now["qosClass"], &before["qosClass"]);
    }
    not_restarted(errors, now, before, new["spec"].text("restartPolicy"), &path.field("containerStatuses"));
    for (field, single) in [("podIPs", "podIP"), ("hostIPs", "hostIP")] {
        let list = path.field(field);
        let ips = now.list(field);
        if field == "hostIPs"
            && let Some(first) = ips.first()
            && first.text("ip") != now.text(single)
        {
            errors.invalid(&list.index(0).field("ip"), first.text("ip"), "must be equal to `hostIP`");
        }
        for (index, item) in ips.iter().enumerate().filter(|(_, item)| !before.list(field).contains(item)) {
            address::legacy(errors, &list.index(index), item.text("ip"));
        }
        let v6 =
            ips.iter().filter(|item| address::parse_legacy(item.text("ip")).is_some_and(|ip| ip.is_ipv6())).count();
        if ips.len() > 2 || (ips.len() == 2 && v6 != 1) {
            errors.invalid(&list, now[field].clone(), "may specify no more than one IP for each IP family");
        }
    }
}

/// A container that ended for good may not come back.
fn not_restarted(errors: &mut Errors, new: &Value, old: &Value, policy: &str, path: &Path<'_>) {
    if policy == "Always" {
        return;
    }
    for (index, before) in old.list("containerStatuses").iter().enumerate() {
        let ended = before.get_in(&["state", "terminated"]);
        if ended.is_null() || (policy == "OnFailure" && ended.int("exitCode").unwrap_or(0) != 0) {
            continue;
        }
        let now = new.list("containerStatuses").iter().find(|now| now["name"] == before["name"]);
        if now.is_some_and(|now| now.get_in(&["state", "terminated"]).is_null()) {
            errors.forbidden(&path.index(index).field("state"), "may not be transitioned to non-terminated state");
        }
    }
}
