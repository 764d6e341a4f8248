//! Every rule a row: what is sent, and the exact words that come back.

mod cluster;
mod endpoints;
mod pod;
mod rbac;
mod service;
mod workload;

use serde_json::{Value, json};

use crate::{FieldValidation, Kind, Status, Subresource, find};

fn kind(plural: &str) -> &'static Kind {
    crate::all().iter().find(|kind| kind.plural == plural).unwrap_or_else(|| panic!("{plural}"))
}

/// Puts `patch` over `base` as a JSON merge patch.
fn with(base: &Value, patch: &Value) -> Value {
    crate::patch::json_merge(base, patch)
}

fn prepared(kind: &Kind, sent: Value) -> Value {
    let (mut object, _) = kind.decode(sent, FieldValidation::Strict).unwrap_or_else(|e| panic!("{}", e.message()));
    kind.default(&mut object);
    kind.prepare_create(&mut object);
    object
}

fn texts(errors: &[crate::FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// Creating `base` with each patch gives the messages beside it.
#[track_caller]
fn creates(plural: &str, base: &Value, rows: &[(Value, &[&str])]) {
    let kind = kind(plural);
    assert_eq!(texts(&kind.validate_create(&prepared(kind, base.clone()))), [""; 0], "the base is valid");
    for (patch, messages) in rows {
        let errors = kind.validate_create(&prepared(kind, with(base, patch)));
        assert_eq!(texts(&errors), *messages, "{patch}");
    }
}

/// Updating `base` with each patch gives the messages beside it.
#[track_caller]
fn updates(plural: &str, base: &Value, sub: Subresource, rows: &[(Value, &[&str])]) {
    let kind = kind(plural);
    let old = prepared(kind, base.clone());
    for (patch, messages) in rows {
        let (mut new, _) = kind.decode(with(&old, patch), FieldValidation::Strict).unwrap();
        kind.default(&mut new);
        kind.prepare_update(&mut new, &old, sub);
        assert_eq!(texts(&kind.validate_update(&new, &old, sub)), *messages, "{patch}");
    }
}

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
                     validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

fn service() -> Value {
    json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"ports": [{"port": 80}]}})
}

#[test]
fn the_whole_message() {
    let kind = find("", "v1", "services").unwrap();
    let object = prepared(kind, with(&service(), &json!({"spec": {"ports": [{"port": 1}, {"port": 2, "name": "A"}]}})));
    let status = Status::invalid("", "Service", "a", &kind.validate_create(&object));
    assert_eq!(status.code(), 422);
    assert_eq!(
        status.message(),
        format!(
            "Service \"a\" is invalid: [spec.ports[0].name: Required value, spec.ports[1].name: Invalid value: \"A\": {LABEL}]"
        )
    );
    assert_eq!(
        status.to_json()["details"],
        json!({"name": "a", "kind": "Service", "causes": [
            {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.ports[0].name"},
            {"reason": "FieldValueInvalid", "message": format!("Invalid value: \"A\": {LABEL}"), "field": "spec.ports[1].name"},
        ]})
    );
}

#[test]
fn metadata_rules() {
    let name = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
                end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    let qualified = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                     alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                     '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    let value = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
                 start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
                 for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
    creates(
        "services",
        &service(),
        &[
            // Since 1.36, a Service's name may begin with a digit.
            (json!({"metadata": {"name": "1a"}}), &[]),
            (json!({"metadata": {"name": "a_b"}}), &[&format!("metadata.name: Invalid value: \"a_b\": {name}")]),
            (json!({"metadata": {"name": "a.b"}}), &["metadata.name: Invalid value: \"a.b\": must not contain dots"]),
            (json!({"metadata": {"name": null}}), &["metadata.name: Required value: name or generateName is required"]),
            (json!({"metadata": {"namespace": null}}), &["metadata.namespace: Required value"]),
            (json!({"metadata": {"generateName": "web-"}}), &[]),
            (
                json!({"metadata": {"labels": {"-a": "b"}}}),
                &[&format!("metadata.labels: Invalid value: \"-a\": name part {qualified}")],
            ),
            (
                json!({"metadata": {"labels": {"a": "b c"}}}),
                &[&format!("metadata.labels: Invalid value: \"b c\": {value}")],
            ),
            (json!({"metadata": {"annotations": {"A.b/C": "anything at all"}}}), &[]),
            (
                json!({"metadata": {"annotations": {"/a": ""}}}),
                &["metadata.annotations: Invalid value: \"/a\": prefix part must be non-empty"],
            ),
            (
                json!({"metadata": {"annotations": {"a": "x".repeat(262_144)}}}),
                &["metadata.annotations: Too long: may not be more than 262144 bytes"],
            ),
            (
                json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "", "name": "n", "uid": ""}]}}),
                &[
                    "metadata.ownerReferences.kind: Invalid value: \"\": must not be empty",
                    "metadata.ownerReferences.uid: Invalid value: \"\": must not be empty",
                ],
            ),
            (
                json!({"metadata": {"ownerReferences": [{"apiVersion": "a/b/c", "kind": "K", "name": "n", "uid": "u"}]}}),
                &["metadata.ownerReferences.apiVersion: Invalid value: \"a/b/c\": version must not be empty"],
            ),
            (
                json!({"metadata": {"finalizers": ["kubernetes", "a.b/c", "mine"]}}),
                &[
                    "metadata.finalizers[2]: Invalid value: \"mine\": name is neither a standard finalizer name nor is it \
                   fully qualified",
                ],
            ),
            (
                json!({"metadata": {"finalizers": ["orphan", "foregroundDeletion"]}}),
                &["metadata.finalizers: Invalid value: [\"orphan\",\"foregroundDeletion\"]: finalizer orphan and \
                   foregroundDeletion cannot be both set"],
            ),
        ],
    );
    creates(
        "namespaces",
        &json!({"metadata": {"name": "a"}}),
        &[
            (json!({"metadata": {"name": "a.b"}}), &["metadata.name: Invalid value: \"a.b\": must not contain dots"]),
            (json!({"metadata": {"namespace": "x"}}), &["metadata.namespace: Forbidden: not allowed on this type"]),
            (
                json!({"spec": {"finalizers": ["mine"]}}),
                &[
                    "spec.finalizers: Invalid value: \"mine\": name is neither a standard finalizer name nor is it fully \
                   qualified",
                ],
            ),
        ],
    );
    updates(
        "configmaps",
        &json!({"metadata": {"name": "a", "namespace": "b", "uid": "u", "deletionTimestamp": "2024-01-01T00:00:00Z"}}),
        Subresource::None,
        &[
            (json!({"metadata": {"name": "c"}}), &["metadata.name: Invalid value: \"c\": field is immutable"]),
            (json!({"metadata": {"uid": "v"}}), &["metadata.uid: Invalid value: \"v\": field is immutable"]),
            (
                json!({"metadata": {"deletionTimestamp": "2024-01-01T00:00:00Z"}}),
                &["metadata.deletionTimestamp: Invalid value: \"2024-01-01T00:00:00Z\": field is immutable"],
            ),
            (json!({"metadata": {"uid": null, "creationTimestamp": "2024-01-01T00:00:00Z"}}), &[]),
        ],
    );
    // A deletion under way allows no new finalizer.
    let kind = kind("configmaps");
    let old = json!({"metadata": {"name": "a", "namespace": "b", "deletionTimestamp": "2024-01-01T00:00:00Z", "finalizers": ["a/b"]}});
    let new = with(&old, &json!({"metadata": {"finalizers": ["a/b", "c/d"]}}));
    assert_eq!(
        texts(&kind.validate_update(&new, &old, Subresource::None)),
        ["metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new \
          finalizers []string{\"c/d\"}"]
    );
}

/// Whatever decodes can be defaulted, prepared and validated without a panic, and twice gives the same.
#[test]
fn any_decoded_object_is_handled() {
    for kind in crate::all() {
        for body in [json!({}), json!({"metadata": null, "spec": null, "status": null}), json!({"metadata": {}})] {
            let (mut object, _) = kind.decode(body, FieldValidation::Ignore).unwrap();
            kind.default(&mut object);
            let once = object.clone();
            kind.default(&mut object);
            assert_eq!(once, object, "{}", kind.kind);
            kind.prepare_create(&mut object);
            let errors = kind.validate_create(&object);
            assert_eq!(errors, kind.validate_create(&object));
            let mut new = object.clone();
            kind.prepare_update(&mut new, &object, Subresource::None);
            assert_eq!(new, object, "a no-op update of {} changes nothing", kind.kind);
            kind.prepare_update(&mut new, &object, Subresource::Status);
            let _ = kind.validate_update(&new, &object, Subresource::Status);
        }
    }
}
