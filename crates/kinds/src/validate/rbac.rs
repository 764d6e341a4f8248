//! Roles, and bindings of subjects to them.

use serde_json::{Value, json};

use super::{Errors, metadata};
use crate::catalog::RBAC;
use crate::look::{Look, Path};
use crate::names;

pub(super) fn cluster_role(errors: &mut Errors, new: &Value) {
    rules(errors, new, false);
    if !new.has("aggregationRule") {
        return;
    }
    let rule = Path::Root.field("aggregationRule");
    let path = rule.field("clusterRoleSelectors");
    let selectors = new["aggregationRule"].list("clusterRoleSelectors");
    if selectors.is_empty() {
        errors.required(&path, "at least one clusterRoleSelector required if aggregationRule is non-nil");
    }
    for (index, selector) in selectors.iter().enumerate() {
        metadata::selector(errors, selector, &path.index(index));
    }
}

pub(super) fn rules(errors: &mut Errors, new: &Value, namespaced: bool) {
    let list = Path::Root.field("rules");
    for (index, rule) in new.list("rules").iter().enumerate() {
        let path = list.index(index);
        if rule.list("verbs").is_empty() {
            errors.required(&path.field("verbs"), "verbs must contain at least one value");
        }
        let of_resources = |field: &&str| !rule.list(field).is_empty();
        if of_resources(&"nonResourceURLs") {
            let path = path.field("nonResourceURLs");
            let urls = &rule["nonResourceURLs"];
            if namespaced {
                errors.invalid(&path, urls.clone(), "namespaced rules cannot apply to non-resource URLs");
            }
            if ["apiGroups", "resources", "resourceNames"].iter().any(of_resources) {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                errors.invalid(&path, urls.clone(), why);
            }
            continue;
        }
        if !of_resources(&"apiGroups") {
            errors.required(&path.field("apiGroups"), "resource rules must supply at least one api group");
        }
        if !of_resources(&"resources") {
            errors.required(&path.field("resources"), "resource rules must supply at least one resource");
        }
    }
}

pub(super) fn binding(errors: &mut Errors, new: &Value, old: Option<&Value>, namespaced: bool) {
    let role = &new["roleRef"];
    let path = Path::Root.field("roleRef");
    let supported = |errors: &mut Errors, field: &str, values: &[&str]| {
        if !values.contains(&role.text(field)) {
            errors.not_supported(&path.field(field), role.text(field), values);
        }
    };
    supported(errors, "apiGroup", &[RBAC]);
    supported(errors, "kind", if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] });
    match role.text("name") {
        "" => errors.required(&path.field("name"), ""),
        name => errors.each(&path.field("name"), name, names::path_segment(name)),
    }
    let list = Path::Root.field("subjects");
    for (index, item) in new.list("subjects").iter().enumerate() {
        subject(errors, item, &list.index(index), namespaced);
    }
    if old.is_some_and(|old| old["roleRef"] != *role) {
        // Upstream shows its internal form here, whose fields have Go's names.
        let shown = json!({"APIGroup": role.text("apiGroup"), "Kind": role.text("kind"), "Name": role.text("name")});
        errors.invalid(&path, shown, "cannot change roleRef");
    }
}

fn subject(errors: &mut Errors, subject: &Value, path: &Path<'_>, namespaced: bool) {
    let name = subject.text("name");
    if name.is_empty() {
        errors.required(&path.field("name"), "");
    }
    let group = subject.text("apiGroup");
    let must_be = |errors: &mut Errors, expected: &str| {
        if group != expected {
            errors.not_supported(&path.field("apiGroup"), group, &[expected]);
        }
    };
    match subject.text("kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                errors.each(&path.field("name"), name, names::dns1123_subdomain(name));
            }
            must_be(errors, "");
            if !namespaced && subject.text("namespace").is_empty() {
                errors.required(&path.field("namespace"), "");
            }
        }
        "User" | "Group" => must_be(errors, RBAC),
        kind => errors.not_supported(&path.field("kind"), kind, &["ServiceAccount", "User", "Group"]),
    }
}
