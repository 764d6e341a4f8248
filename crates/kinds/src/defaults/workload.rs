//! Defaults of Deployments and ReplicaSets.

use serde_json::Value;

use super::pod;
use crate::look::{Look, child, set_default};

pub(super) fn deployment(object: &mut Value) {
    let spec = child(object, "spec");
    set_default(spec, "replicas", 1);
    set_default(spec, "revisionHistoryLimit", 10);
    set_default(spec, "progressDeadlineSeconds", 600);
    let strategy = child(spec, "strategy");
    set_default(strategy, "type", "RollingUpdate");
    if strategy.text("type") == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        set_default(rolling, "maxSurge", "25%");
        set_default(rolling, "maxUnavailable", "25%");
    }
    pod::template(child(spec, "template"));
}

pub(super) fn replica_set(object: &mut Value) {
    let spec = child(object, "spec");
    set_default(spec, "replicas", 1);
    pod::template(child(spec, "template"));
}
