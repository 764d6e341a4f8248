//! Rows of bodies, and what becomes of them.

use serde_json::json;

use super::*;
use crate::find;

fn decoded(
    group: &str,
    plural: &str,
    body: Value,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), String> {
    let kind = find(group, "v1", plural).unwrap();
    kind.decode(body, validation).map_err(|status| {
        assert_eq!((status.code(), status.reason()), (400, "BadRequest"));
        status.message().to_owned()
    })
}

#[test]
fn type_errors() {
    let service = r#"Service in version "v1" cannot be handled as a Service: "#;
    let pod = r#"Pod in version "v1" cannot be handled as a Pod: "#;
    for (plural, body, message) in [
        (
            "services",
            json!({"spec": {"ports": [{"port": "http"}]}}),
            format!(
                "{service}json: cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32"
            ),
        ),
        (
            "services",
            json!({"spec": {"ports": [{"port": 1, "protocol": 6}]}}),
            format!(
                "{service}json: cannot unmarshal number into Go struct field ServicePort.spec.ports.protocol of type v1.Protocol"
            ),
        ),
        (
            "services",
            json!({"spec": {"ports": {"port": 1}}}),
            format!(
                "{service}json: cannot unmarshal object into Go struct field ServiceSpec.spec.ports of type []v1.ServicePort"
            ),
        ),
        (
            "services",
            json!({"spec": []}),
            format!("{service}json: cannot unmarshal array into Go struct field Service.spec of type v1.ServiceSpec"),
        ),
        (
            "services",
            json!({"metadata": {"labels": {"a": 1}}}),
            format!(
                "{service}json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"
            ),
        ),
        (
            "services",
            json!({"spec": {"selector": "app"}}),
            format!(
                "{service}json: cannot unmarshal string into Go struct field ServiceSpec.spec.selector of type map[string]string"
            ),
        ),
        (
            "services",
            json!({"spec": {"ports": [{"port": 99_999_999_999_i64}]}}),
            format!(
                "{service}json: cannot unmarshal number 99999999999 into Go struct field ServicePort.spec.ports.port of type int32"
            ),
        ),
        (
            "services",
            json!({"spec": {"ports": [{"port": 1.5}]}}),
            format!(
                "{service}json: cannot unmarshal number 1.5 into Go struct field ServicePort.spec.ports.port of type int32"
            ),
        ),
        (
            "services",
            json!({"spec": {"ports": [{"port": 1, "targetPort": true}]}}),
            format!(
                "{service}json: cannot unmarshal bool into Go struct field ServicePort.spec.ports.targetPort of type int32"
            ),
        ),
        (
            "pods",
            json!({"spec": {"containers": [{"args": [1]}]}}),
            format!(
                "{pod}json: cannot unmarshal number into Go struct field Container.spec.containers.args of type string"
            ),
        ),
        (
            "pods",
            json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "lots"}}}]}}),
            format!("{pod}{BAD_QUANTITY}"),
        ),
        (
            "pods",
            json!({"spec": {"hostNetwork": "yes"}}),
            format!("{pod}json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool"),
        ),
        (
            "pods",
            json!({"spec": {"volumes": [{"configMap": {"name": 7}}]}}),
            format!(
                "{pod}json: cannot unmarshal number into Go struct field \
                 ConfigMapVolumeSource.spec.volumes.VolumeSource.configMap.LocalObjectReference.name of type string"
            ),
        ),
        (
            "pods",
            json!({"spec": {"containers": [{"livenessProbe": {"exec": 7}}]}}),
            format!(
                "{pod}json: cannot unmarshal number into Go struct field \
                 Probe.spec.containers.livenessProbe.ProbeHandler.exec of type v1.ExecAction"
            ),
        ),
        (
            "secrets",
            json!({"data": {"a": "****"}}),
            r#"Secret in version "v1" cannot be handled as a Secret: illegal base64 data at input byte 0"#.to_owned(),
        ),
        (
            "services",
            json!({"apiVersion": "apps/v1", "kind": "Deployment"}),
            "the API version in the data (apps/v1) does not match the expected API version (v1)".to_owned(),
        ),
    ] {
        assert_eq!(decoded("", plural, body, FieldValidation::Warn).unwrap_err(), message);
    }
}

#[test]
fn unknown_fields() {
    let body = json!({"spec": {"foo": 1, "ports": [{"port": 1, "bar": 2}]}, "zap": null});
    let names = [r#"unknown field "spec.foo""#, r#"unknown field "spec.ports[0].bar""#, r#"unknown field "zap""#];
    let (object, warnings) = decoded("", "services", body.clone(), FieldValidation::Warn).unwrap();
    assert_eq!(warnings, names);
    assert_eq!(object, json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 1}]}}));
    assert!(decoded("", "services", body.clone(), FieldValidation::Ignore).unwrap().1.is_empty());
    assert_eq!(
        decoded("", "services", body, FieldValidation::Strict).unwrap_err(),
        format!(
            r#"Service in version "v1" cannot be handled as a Service: strict decoding error: {}"#,
            names.join(", ")
        )
    );
}

#[test]
fn keeps_what_go_keeps() {
    let rows = [
        (
            "",
            "pods",
            json!({"metadata": {"name": "a", "creationTimestamp": null, "labels": {}, "namespace": ""},
                   "spec": {"hostNetwork": false, "containers": [], "tolerations": [], "securityContext": {},
                            "terminationGracePeriodSeconds": 0, "volumes": [{"name": "v", "emptyDir": {}}]}}),
            json!({"metadata": {"name": "a"},
                   "spec": {"securityContext": {}, "terminationGracePeriodSeconds": 0,
                            "volumes": [{"name": "v", "emptyDir": {}}]}}),
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [], "ports": [{"name": "", "port": 0}]}),
            json!({"addressType": "IPv4", "ports": [{"name": "", "port": 0}]}),
        ),
        (
            "coordination.k8s.io",
            "leases",
            json!({"spec": {"renewTime": "2024-01-01T00:00:00.5+02:00"}}),
            json!({"spec": {"renewTime": "2023-12-31T22:00:00.500000Z"}}),
        ),
        (
            "",
            "pods",
            json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]}}),
            json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}]}}),
        ),
    ];
    for (group, plural, body, kept) in rows {
        let (mut object, _) = decoded(group, plural, body, FieldValidation::Strict).unwrap();
        let map = object.as_object_mut().unwrap();
        map.remove("kind");
        map.remove("apiVersion");
        assert_eq!(object, kept);
    }
}

#[test]
fn not_an_object() {
    for body in [json!("x"), json!([1]), json!(null), json!(3)] {
        assert!(decoded("", "services", body, FieldValidation::Warn).unwrap_err().starts_with("the object provided"));
    }
}
