//! Roles and bindings.

use serde_json::json;

use super::{creates, updates};
use crate::Subresource;

#[test]
fn roles() {
    let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
    let cluster = json!({"metadata": {"name": "system:a"}, "rules": [rule]});
    let both = "rules cannot apply to both regular resources and non-resource URLs";
    creates(
        "clusterroles",
        &cluster,
        &[
            (json!({"rules": null}), &[]),
            (json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz"]}]}), &[]),
            (
                json!({"rules": [{"verbs": []}]}),
                &[
                    "rules[0].verbs: Required value: verbs must contain at least one value",
                    "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                    "rules[0].resources: Required value: resource rules must supply at least one resource",
                ],
            ),
            (
                json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/a"], "resources": ["b"]}]}),
                &[&format!("rules[0].nonResourceURLs: Invalid value: [\"/a\"]: {both}")],
            ),
            (
                json!({"aggregationRule": {"clusterRoleSelectors": []}}),
                &[
                    "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if \
                   aggregationRule is non-nil",
                ],
            ),
            (json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}}), &[]),
            (json!({"metadata": {"name": "a/b"}}), &["metadata.name: Invalid value: \"a/b\": may not contain '/'"]),
        ],
    );
    creates(
        "roles",
        &json!({"metadata": {"name": "a", "namespace": "default"}, "rules": []}),
        &[(
            json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/a"]}]}),
            &["rules[0].nonResourceURLs: Invalid value: [\"/a\"]: namespaced rules cannot apply to non-resource URLs"],
        )],
    );
}

#[test]
fn bindings() {
    let base = json!({"metadata": {"name": "a", "namespace": "default"},
        "roleRef": {"kind": "Role", "name": "r"},
        "subjects": [{"kind": "User", "name": "jane"}, {"kind": "ServiceAccount", "name": "default"}]});
    let group = "rbac.authorization.k8s.io";
    creates(
        "rolebindings",
        &base,
        &[
            (json!({"subjects": null}), &[]),
            (json!({"roleRef": {"apiGroup": ""}}), &[]),
            (
                json!({"roleRef": {"kind": "Pod"}}),
                &["roleRef.kind: Unsupported value: \"Pod\": supported values: \"Role\", \"ClusterRole\""],
            ),
            (
                json!({"roleRef": {"apiGroup": "x", "name": null}}),
                &[
                    &format!("roleRef.apiGroup: Unsupported value: \"x\": supported values: \"{group}\""),
                    "roleRef.name: Required value",
                ],
            ),
            (
                json!({"subjects": [{"kind": "Robot", "name": "r"}, {"kind": "Group", "apiGroup": "x", "name": "g"}]}),
                &[
                    "subjects[0].kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \
                     \"Group\"",
                    &format!("subjects[1].apiGroup: Unsupported value: \"x\": supported values: \"{group}\""),
                ],
            ),
            (json!({"subjects": [{"kind": "User"}]}), &["subjects[0].name: Required value"]),
        ],
    );
    updates(
        "rolebindings",
        &base,
        Subresource::None,
        &[
            (json!({"subjects": null}), &[]),
            (
                json!({"roleRef": {"name": "s"}}),
                &[&format!(
                    "roleRef: Invalid value: {{\"APIGroup\":\"{group}\",\"Kind\":\"Role\",\"Name\":\"s\"}}: \
                     cannot change roleRef"
                )],
            ),
        ],
    );
    creates(
        "clusterrolebindings",
        &json!({"metadata": {"name": "a"}, "roleRef": {"kind": "ClusterRole", "name": "r"}}),
        &[
            (
                json!({"roleRef": {"kind": "Role"}}),
                &["roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\""],
            ),
            (
                json!({"subjects": [{"kind": "ServiceAccount", "name": "a"}]}),
                &["subjects[0].namespace: Required value"],
            ),
        ],
    );
}
