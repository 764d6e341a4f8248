//! Rows for Deployments and ReplicaSets.

use serde_json::json;

use super::{creates, updates};
use crate::Subresource;

#[test]
fn workload_rules() {
    let base = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {
        "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x", "more": "y"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    creates(
        "deployments",
        &base,
        &[
            (
                json!({"spec": {"selector": null}}),
                &[
                    "spec.selector: Required value",
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"x\",\"more\":\"y\"}: `selector` does not match template `labels`",
                ],
            ),
            (
                json!({"spec": {"selector": {"matchLabels": {"app": "x"}, "matchExpressions": [{"key": "a", "operator": "Is"}]}}}),
                &[
                    "spec.selector.matchExpressions[0].operator: Invalid value: \"Is\": not a valid selector operator",
                    "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"},\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"Is\"}]}: invalid label selector",
                ],
            ),
            (
                json!({"spec": {"selector": {"matchLabels": {"app": "z"}}}}),
                &[
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"x\",\"more\":\"y\"}: `selector` does not match template `labels`",
                ],
            ),
            (
                json!({"spec": {"selector": {"matchLabels": null}}}),
                &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
            ),
            (
                json!({"spec": {"replicas": -1}}),
                &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}}}),
                &["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
            ),
            (
                json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}}}),
                &[
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
                ],
            ),
            (
                json!({"spec": {"template": {"spec": {"restartPolicy": "Never"}}}}),
                &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
            ),
            (
                json!({"spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}}),
                &["spec.template.spec.containers[0].image: Required value"],
            ),
            (
                json!({"spec": {"minReadySeconds": 600}}),
                &["spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"],
            ),
        ],
    );
    creates(
        "replicasets",
        &base,
        &[(
            json!({"spec": {"selector": {"matchExpressions": [{"key": "more", "operator": "NotIn", "values": ["y"]}]}}}),
            &[
                "spec.template.metadata.labels: Invalid value: {\"app\":\"x\",\"more\":\"y\"}: `selector` does not match template `labels`",
            ],
        )],
    );
    for plural in ["deployments", "replicasets"] {
        updates(
            plural,
            &base,
            Subresource::None,
            &[
                (json!({"spec": {"replicas": 5}}), &[]),
                (
                    json!({"spec": {"selector": {"matchLabels": {"more": "y"}}}}),
                    &[
                        "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\",\"more\":\"y\"}}: field is immutable",
                    ],
                ),
            ],
        );
        updates(
            plural,
            &base,
            Subresource::Status,
            &[(
                json!({"status": {"replicas": 1, "readyReplicas": 2, "availableReplicas": 2}}),
                &[
                    "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
                    "status.availableReplicas: Invalid value: 2: cannot be greater than status.replicas",
                ],
            )],
        );
    }
}
