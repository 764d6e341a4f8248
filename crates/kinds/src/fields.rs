//! Turns a field selector's field into its value in an object.
//!
//! Source: the selectable fields of `pkg/registry/*/strategy.go` and `pkg/apis/core/v1/conversion.go`.

use serde_json::Value;

use crate::catalog::Strategy;
use crate::look::Look;

/// The kind cannot be selected by this field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field label not supported: {field}")]
pub struct UnsupportedField {
    pub field: String,
}

/// The fields beside `metadata.name` and `metadata.namespace`.
fn fields(strategy: Strategy) -> &'static [&'static str] {
    match strategy {
        Strategy::Pod => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        Strategy::Node => &["spec.unschedulable"],
        Strategy::Namespace => &["status.phase"],
        Strategy::Secret => &["type"],
        Strategy::Service => &["spec.clusterIP", "spec.type"],
        Strategy::ReplicaSet => &["status.replicas"],
        Strategy::Event => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        Strategy::EventsEvent => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        Strategy::IpAddress => {
            &["spec.parentRef.group", "spec.parentRef.resource", "spec.parentRef.namespace", "spec.parentRef.name"]
        }
        Strategy::ClusterRole
        | Strategy::ClusterRoleBinding
        | Strategy::ConfigMap
        | Strategy::Custom
        | Strategy::CustomResourceDefinition
        | Strategy::Deployment
        | Strategy::EndpointSlice
        | Strategy::Endpoints
        | Strategy::Ingress
        | Strategy::IngressClass
        | Strategy::Lease
        | Strategy::Role
        | Strategy::RoleBinding
        | Strategy::ServiceAccount
        | Strategy::ServiceCidr => &[],
    }
}

pub(crate) fn value(strategy: Strategy, object: &Value, field: &str) -> Result<String, UnsupportedField> {
    let known = matches!(field, "metadata.name" | "metadata.namespace") || fields(strategy).contains(&field);
    if !known {
        return Err(UnsupportedField { field: field.to_owned() });
    }
    let text = match (strategy, field) {
        (Strategy::Event, "source") => object["source"].text("component").to_owned(),
        (Strategy::Pod, "status.podIPs") => {
            object["status"].list("podIPs").first().map(|ip| ip.text("ip").to_owned()).unwrap_or_default()
        }
        _ => match field.split('.').fold(object, |value, name| &value[name]) {
            Value::String(text) => text.clone(),
            Value::Bool(flag) => flag.to_string(),
            Value::Number(number) => number.to_string(),
            _ => match field {
                // Absent, these read as their zero values.
                "spec.unschedulable" | "spec.hostNetwork" => "false".to_owned(),
                "status.replicas" => "0".to_owned(),
                _ => String::new(),
            },
        },
    };
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::find;

    #[test]
    fn values() {
        let object = json!({"metadata": {"name": "a", "namespace": "b"}, "type": "Opaque",
            "spec": {"nodeName": "n", "clusterIP": "None", "type": "ClusterIP", "unschedulable": true},
            "status": {"phase": "Running"}, "involvedObject": {"name": "o"}, "source": {"component": "c"}});
        for (plural, field, value) in [
            ("pods", "spec.nodeName", Some("n")),
            ("pods", "status.phase", Some("Running")),
            ("pods", "status.podIP", Some("")),
            ("pods", "spec.hostNetwork", Some("false")),
            ("pods", "spec.containers", None),
            ("services", "spec.clusterIP", Some("None")),
            ("services", "spec.type", Some("ClusterIP")),
            ("services", "spec.externalName", None),
            ("nodes", "spec.unschedulable", Some("true")),
            ("events", "involvedObject.name", Some("o")),
            ("events", "source", Some("c")),
            ("secrets", "type", Some("Opaque")),
            ("configmaps", "data", None),
        ] {
            let found = find("", "v1", plural).unwrap().field(&object, field);
            assert_eq!(found.as_deref().ok(), value, "{plural} {field}");
        }
        for kind in crate::all() {
            assert_eq!(kind.field(&object, "metadata.name").unwrap(), "a");
            assert_eq!(kind.field(&object, "metadata.namespace").unwrap(), "b");
            let error = kind.field(&object, "nonsense").unwrap_err();
            assert_eq!(error.to_string(), "field label not supported: nonsense");
        }
    }
}
