//! The roles and bindings that every cluster has -> what is missing of them, written.
//!
//! Invariant: nothing is taken away that somebody added, and an object annotated with
//! `rbac.authorization.kubernetes.io/autoupdate: "false"` is left alone. Source: `pkg/registry/rbac/rest` and
//! `component-helpers/auth/rbac/reconciliation`.

use futures::future::try_join_all;
use portolan_kinds::Status;
use serde_json::{Map, Value, json};

use super::{ensure, options, target};
use crate::authz::escalation::rules;
use crate::authz::rbac::GROUP;
use crate::authz::rule::uncovered;
use crate::delete;
use crate::object;
use crate::route::Sub;
use crate::server::Server;
use crate::user::User;
use crate::warnings::Warnings;
use crate::write::{self, Asked};

const POLICY: &str = include_str!("policy.yaml");
const CONTROLLERS: &str = include_str!("controllers.yaml");
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// Where roles and bindings of a namespace are, if they do not say so, and all accounts.
const NAMESPACE: &str = "kube-system";

/// Writes them all, together, so that the disk is waited for but a few times.
pub(super) async fn run(server: &Server) -> Result<(), Status> {
    let objects = objects()?;
    try_join_all(objects.into_iter().map(|(plural, object)| reconcile(server, plural, object))).await?;
    Ok(())
}

/// The plural of the kind, and the object.
fn objects() -> Result<Vec<(&'static str, Value)>, Status> {
    let read = |text: &str| -> Result<Value, Status> {
        serde_saphyr::from_str(text).map_err(|error| Status::internal(format!("the first policy: {error}")))
    };
    let policy = read(POLICY)?;
    let mut objects = Vec::new();
    for controller in read(CONTROLLERS)?.as_array().into_iter().flatten() {
        let account = &controller["name"];
        let name = format!("system:controller:{}", account.as_str().unwrap_or_default());
        let role = json!({"name": name, "rules": controller["rules"]});
        let binding = json!({"name": name, "role": name, "accounts": [account]});
        objects.push(("clusterroles", object("clusterroles", &role)));
        objects.push(("clusterrolebindings", object("clusterrolebindings", &binding)));
    }
    for (section, plural) in [
        ("clusterRoles", "clusterroles"),
        ("clusterRoleBindings", "clusterrolebindings"),
        ("roles", "roles"),
        ("roleBindings", "rolebindings"),
    ] {
        for entry in policy[section].as_array().into_iter().flatten() {
            objects.push((plural, object(plural, entry)));
        }
    }
    Ok(objects)
}

fn object(plural: &str, entry: &Value) -> Value {
    let mut labels = entry["labels"].as_object().cloned().unwrap_or_default();
    labels.insert("kubernetes.io/bootstrapping".into(), "rbac-defaults".into());
    let mut metadata = json!({"name": entry["name"], "labels": labels, "annotations": {AUTO_UPDATE: "true"}});
    if !plural.starts_with("cluster") {
        metadata["namespace"] = entry.get("namespace").cloned().unwrap_or_else(|| NAMESPACE.into());
    }
    if !plural.ends_with("bindings") {
        let mut role = json!({"metadata": metadata});
        for field in ["rules", "aggregationRule"] {
            if let Some(value) = entry.get(field) {
                role[field] = value.clone();
            }
        }
        return role;
    }
    let names = |list: &str| entry[list].as_array().cloned().unwrap_or_default();
    let mut subjects = Vec::new();
    subjects.extend(names("users").iter().map(|name| json!({"apiGroup": GROUP, "kind": "User", "name": name})));
    subjects.extend(names("groups").iter().map(|name| json!({"apiGroup": GROUP, "kind": "Group", "name": name})));
    let account = |name: &Value| json!({"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE});
    subjects.extend(names("accounts").iter().map(account));
    let kind = if plural == "rolebindings" { "Role" } else { "ClusterRole" };
    let role = json!({"apiGroup": GROUP, "kind": kind, "name": entry["role"]});
    json!({"metadata": metadata, "roleRef": role, "subjects": subjects})
}

async fn reconcile(server: &Server, plural: &'static str, expected: Value) -> Result<(), Status> {
    let namespace = object::namespace(&expected).to_owned();
    let namespace = Some(namespace.as_str()).filter(|namespace| !namespace.is_empty());
    let name = object::name(&expected);
    let target = target(GROUP, plural, namespace, Some(name), Sub::None);
    let key = object::key(&target.kind, namespace.unwrap_or_default(), name);
    let Some(stored) = server.store.get(&key).0 else {
        return ensure(server, GROUP, plural, namespace, expected).await;
    };
    let stored = object::decode(&stored.value);
    let Some(reconciled) = reconciled(&stored, &expected) else { return Ok(()) };
    let asked = Asked { user: &User::admin(), target: &target, options: &options(), warnings: &Warnings::default() };
    if reconciled["roleRef"] != stored["roleRef"] {
        // A binding to another role is another binding.
        delete::delete(server, asked).await?;
        return ensure(server, GROUP, plural, namespace, expected).await;
    }
    write::change(server, asked, false, |live| {
        Ok(self::reconciled(live.object, &expected).unwrap_or_else(|| live.object.clone()).into())
    })
    .await?;
    Ok(())
}

/// What is stored with what is missing, or nothing if nothing is.
fn reconciled(stored: &Value, expected: &Value) -> Option<Value> {
    if stored["metadata"]["annotations"][AUTO_UPDATE] == "false" {
        return None;
    }
    let mut new = stored.clone();
    for field in ["labels", "annotations"] {
        let missing: Map<String, Value> = expected["metadata"][field].as_object().cloned().unwrap_or_default();
        let had = stored["metadata"][field].as_object();
        let missing = missing.into_iter().filter(|(key, _)| had.is_none_or(|had| !had.contains_key(key)));
        let missing: Vec<_> = missing.collect();
        if !missing.is_empty() {
            let all = object::metadata(&mut new).entry(field).or_insert_with(|| json!({}));
            object::map_of(all).extend(missing);
        }
    }
    if let Some(wanted) = expected["aggregationRule"]["clusterRoleSelectors"].as_array() {
        let rule = object::member(&mut new, "aggregationRule");
        append(rule.entry("clusterRoleSelectors").or_insert_with(|| json!([])), wanted);
    } else if let Some(wanted) = expected.get("rules") {
        let missing = uncovered(&rules(&stored["rules"]), &rules(wanted));
        let missing: Vec<Value> = missing.iter().map(|rule| json!(rule)).collect();
        if !missing.is_empty() {
            append(object::map_of(&mut new).entry("rules").or_insert_with(|| json!([])), &missing);
        }
    }
    if let Some(role) = expected.get("roleRef") {
        new["roleRef"] = role.clone();
        if let Some(wanted) = expected["subjects"].as_array().filter(|wanted| !wanted.is_empty()) {
            append(object::map_of(&mut new).entry("subjects").or_insert_with(|| json!([])), wanted);
        }
    }
    (new != *stored).then_some(new)
}

fn append(list: &mut Value, wanted: &[Value]) {
    if !list.is_array() {
        *list = json!([]);
    }
    if let Value::Array(list) = list {
        for item in wanted {
            if !list.contains(item) {
                list.push(item.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_valid() {
        let objects = objects().unwrap();
        assert!(objects.len() > 30);
        for (plural, object) in objects {
            let kind = crate::known_kind(GROUP, plural);
            let (mut object, _) = kind.decode(object, portolan_kinds::FieldValidation::Strict).unwrap();
            kind.default(&mut object);
            assert_eq!(kind.validate_create(&object), [], "{object}");
            assert_eq!(reconciled(&object, &object), None, "{object}");
        }
    }

    #[test]
    fn only_what_is_missing_is_added() {
        let expected = json!({"metadata": {"labels": {"a": "b"}, "annotations": {AUTO_UPDATE: "true"}},
            "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}]});
        let stored = json!({"metadata": {"labels": {"a": "changed", "own": "x"}},
            "rules": [{"verbs": ["get"], "apiGroups": ["*"], "resources": ["*"]}]});
        let new = reconciled(&stored, &expected).unwrap();
        assert_eq!(new["metadata"]["labels"], json!({"a": "changed", "own": "x"}));
        assert_eq!(new["metadata"]["annotations"][AUTO_UPDATE], "true");
        assert_eq!(new["rules"].as_array().unwrap().len(), 2);
        assert_eq!(new["rules"][1], json!({"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}));
        assert_eq!(reconciled(&new, &expected), None);

        let mut left_alone = stored;
        left_alone["metadata"]["annotations"] = json!({AUTO_UPDATE: "false"});
        assert_eq!(reconciled(&left_alone, &expected), None);

        let binding =
            |role: &str, subjects: Value| json!({"metadata": {}, "roleRef": {"name": role}, "subjects": subjects});
        let new = reconciled(&binding("x", json!([{"name": "own"}])), &binding("y", json!([{"name": "b"}]))).unwrap();
        assert_eq!(new, binding("y", json!([{"name": "own"}, {"name": "b"}])));
    }
}
