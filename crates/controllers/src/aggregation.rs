//! ClusterRoles that gather others by their labels -> with the rules of all of them.
//!
//! Invariant: rules follow in the order of the roles' names, each once, so that the same roles give the same rules.
//! Source: `pkg/controller/clusterroleaggregation`.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use portolan_client::{Cache, Change, Key};
use serde_json::json;

use crate::drive::{Controller, Effects, drive, inputs};
use crate::queue::Queue;
use crate::{Shared, meta};

const MANAGER: &str = "clusterrole-aggregation-controller";

pub(crate) async fn run(shared: Arc<Shared>) {
    let roles = shared.caches.cluster_roles.clone();
    let inputs = vec![inputs(&roles, |change| change)];
    drive(Aggregation { client: shared.client.clone(), roles }, inputs, 2).await;
}

struct Aggregation {
    client: Client,
    roles: Cache<ClusterRole>,
}

fn gathers(role: &ClusterRole) -> bool {
    role.aggregation_rule.is_some()
}

impl Controller for Aggregation {
    const NAME: &'static str = "clusterroleaggregation";
    type Input = Change<ClusterRole>;
    /// The name of a role that gathers others.
    type Key = String;

    /// Any role may be among the gathered, by the labels that it has or had.
    fn observe(&mut self, _: Change<ClusterRole>, queue: &mut Queue<String>) {
        for role in self.roles.list().iter().filter(|role| gathers(role)) {
            queue.add(role.name_any());
        }
    }

    fn reconcile(&mut self, name: &String, _queue: &mut Queue<String>) -> Option<Effects> {
        let role = self.roles.get(&Key::new("", name))?;
        let rules = gathered(&role, &self.roles.list())?;
        if role.rules.as_deref().unwrap_or_default() == rules {
            return None;
        }
        let (api, name) = (Api::<ClusterRole>::all(self.client.clone()), name.clone());
        Some(Box::pin(async move {
            let patch = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
                "rules": rules
            });
            let parameters =
                PatchParams { field_manager: Some(MANAGER.to_owned()), force: true, ..PatchParams::default() };
            api.patch(&name, &parameters, &Patch::Apply(patch)).await.map(drop).into()
        }))
    }
}

/// The rules of all that `role` gathers, if it gathers any.
fn gathered(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref().unwrap_or_default();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors {
        let others = all.iter().filter(|other| other.metadata.name != role.metadata.name);
        let mut chosen: Vec<_> = others.filter(|other| meta::matches(selector, &other.metadata)).collect();
        chosen.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for rule in chosen.into_iter().flat_map(|other| other.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Some(rules)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn role(name: &str, labels: Value, rules: &[&str]) -> Arc<ClusterRole> {
        let rules: Vec<Value> =
            rules.iter().map(|resource| json!({"verbs": ["get"], "resources": [resource]})).collect();
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "rules": rules})).unwrap())
    }

    #[test]
    fn rules_are_gathered_once_and_in_order() {
        let gathers = json!({"metadata": {"name": "all", "labels": {"to": "all"}}, "rules": [{"verbs": ["own"]}],
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}, {"matchLabels": {"to": "more"}}]}});
        let all: ClusterRole = serde_json::from_value(gathers).unwrap();
        let roles = [
            Arc::new(all.clone()),
            role("b", json!({"to": "all"}), &["pods", "nodes"]),
            role("a", json!({"to": "all"}), &["nodes", "secrets"]),
            role("c", json!({"to": "more"}), &["pods", "events"]),
            role("d", json!({"to": "other"}), &["leases"]),
        ];
        let rules = gathered(&all, &roles).unwrap();
        let resources: Vec<&str> = rules.iter().map(|rule| rule.resources.as_ref().unwrap()[0].as_str()).collect();
        assert_eq!(resources, ["nodes", "secrets", "pods", "events"]);
        assert_eq!(gathered(&roles[1], &roles), None);
    }
}
