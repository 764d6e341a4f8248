//! Rows for all the other kinds.

use serde_json::{Value, json};

use super::{creates, prepared, texts, updates, with};
use crate::{Subresource, find};

#[test]
fn the_other_kinds() {
    let named = |name: &str| json!({"metadata": {"name": name, "namespace": "b"}});
    creates(
        "configmaps",
        &named("a"),
        &[
            (
                json!({"data": {"a/b": ""}}),
                &[
                    "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or \
                '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                ],
            ),
            (
                json!({"data": {"a": ""}, "binaryData": {"a": "YQ=="}}),
                &["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"],
            ),
            (json!({"data": {"a": "x".repeat(1_048_577)}}), &["[]: Too long: may not be more than 1048576 bytes"]),
        ],
    );
    updates(
        "configmaps",
        &with(&named("a"), &json!({"immutable": true, "data": {"a": "b"}})),
        Subresource::None,
        &[(
            json!({"immutable": null, "data": {"a": "c"}}),
            &[
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ],
        )],
    );
    creates(
        "secrets",
        &named("a"),
        &[(json!({"type": "kubernetes.io/tls", "stringData": {"tls.crt": "x"}}), &["data[tls.key]: Required value"])],
    );
    updates(
        "secrets",
        &named("a"),
        Subresource::None,
        &[(json!({"type": "other"}), &["type: Invalid value: \"other\": field is immutable"])],
    );
    creates(
        "leases",
        &named("a"),
        &[(
            json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}}),
            &[
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
            ],
        )],
    );
    let node = json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.244.0.0/24"}});
    creates(
        "nodes",
        &node,
        &[
            (
                json!({"spec": {"podCIDR": "x"}}),
                &[
                    "spec.podCIDRs[0]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                ],
            ),
            (
                json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule"}]}}),
                &[
                    "metadata.taints[1]: Duplicate value: {\"Key\":\"a\",\"Value\":\"\",\"Effect\":\"NoSchedule\",\"TimeAdded\":null}: taints must be unique by \
                key and effect pair",
                ],
            ),
        ],
    );
    updates(
        "nodes",
        &node,
        Subresource::None,
        &[
            (json!({"spec": {"unschedulable": true}}), &[]),
            (
                json!({"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}}),
                &["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"],
            ),
        ],
    );
    let cidr = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12"]}});
    creates(
        "servicecidrs",
        &cidr,
        &[
            (json!({"spec": {"cidrs": []}}), &["spec.cidrs: Required value: at least one CIDR required"]),
            (
                json!({"spec": {"cidrs": ["10.96.0.1/12"]}}),
                &["spec.cidrs[0]: Invalid value: \"10.96.0.1/12\": must not have bits set beyond the prefix length"],
            ),
            (
                json!({"spec": {"cidrs": ["10.96.0.0/12", "10.0.0.0/16"]}}),
                &["spec.cidrs: Invalid value: [\"10.96.0.0/12\",\"10.0.0.0/16\"]: may specify no more than one IP \
                for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"],
            ),
        ],
    );
    updates(
        "servicecidrs",
        &cidr,
        Subresource::None,
        &[
            (json!({"spec": {"cidrs": ["10.96.0.0/12", "fd00::/112"]}}), &[]),
            (
                json!({"spec": {"cidrs": ["10.0.0.0/16"]}}),
                &["spec.cidrs[0]: Invalid value: \"10.0.0.0/16\": field is immutable"],
            ),
        ],
    );
    let path = |path: Value| json!({"spec": {"rules": [{"host": "a.b", "http": {"paths": [path]}}]}});
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    let good = with(&named("a"), &path(json!({"path": "/", "pathType": "Prefix", "backend": backend})));
    creates(
        "ingresses",
        &good,
        &[
            (json!({}), &[]),
            (
                json!({"spec": {"rules": null}}),
                &["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"],
            ),
            (
                path(json!({"path": "a", "backend": backend})),
                &["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"],
            ),
            (
                path(json!({"path": "a//b", "pathType": "Exact", "backend": {}})),
                &[
                    "spec.rules[0].http.paths[0].path: Invalid value: \"a//b\": must be an absolute path",
                    "spec.rules[0].http.paths[0].path: Invalid value: \"a//b\": must not contain '//'",
                    "spec.rules[0].http.paths[0].backend: Invalid value: \"\": resource or service backend is required",
                ],
            ),
            (
                json!({"spec": {"rules": [{"host": "10.0.0.1"}]}}),
                &["spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address"],
            ),
            (json!({"spec": {"rules": [{"host": "*.example.com"}]}}), &[]),
            (
                json!({"spec": {"defaultBackend": {"service": {"name": "s"}}}}),
                &["spec.defaultBackend: Required value: port name or number is required"],
            ),
        ],
    );
    let class = json!({"metadata": {"name": "a"}, "spec": {"controller": "example.com/x"}});
    creates(
        "ingressclasses",
        &class,
        &[
            (json!({"spec": {"parameters": {"kind": "K", "name": "n"}}}), &[]),
            (
                json!({"spec": {"controller": "x"}}),
                &["spec.controller: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")"],
            ),
            (
                json!({"spec": {"parameters": {"kind": "K", "name": "n", "scope": "Namespace"}}}),
                &["spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"],
            ),
        ],
    );
    updates(
        "ingressclasses",
        &class,
        Subresource::None,
        &[(
            json!({"spec": {"controller": "example.com/y"}}),
            &["spec.controller: Invalid value: \"example.com/y\": field is immutable"],
        )],
    );
    creates(
        "ipaddresses",
        &json!({"metadata": {"name": "10.96.0.1"}, "spec": {"parentRef": {"resource": "services", "name": "a", "namespace": "b"}}}),
        &[
            (
                json!({"metadata": {"name": "2001:DB8::1"}}),
                &["metadata.name: Invalid value: \"2001:DB8::1\": must be in canonical form (\"2001:db8::1\")"],
            ),
            (
                json!({"metadata": {"name": "10.96.0.01"}}),
                &["metadata.name: Invalid value: \"10.96.0.01\": must not have leading 0s"],
            ),
            (json!({"spec": {"parentRef": null}}), &["spec.parentRef: Required value"]),
            (json!({"spec": {"parentRef": {"name": null}}}), &["spec.parentRef.name: Required value"]),
        ],
    );
    let event = json!({"metadata": {"name": "e", "namespace": "b"}, "involvedObject": {"namespace": "b"}});
    let core = find("", "v1", "events").unwrap();
    assert!(core.validate_create(&prepared(core, event.clone())).is_empty());
    let other = prepared(core, with(&event, &json!({"involvedObject": {"namespace": "c"}})));
    assert_eq!(
        texts(&core.validate_create(&other)),
        ["involvedObject.namespace: Invalid value: \"c\": does not match event.namespace"]
    );
    let strict = find("events.k8s.io", "v1", "events").unwrap();
    let sent = json!({"metadata": {"name": "e", "namespace": "b"}, "regarding": {"namespace": "b"}, "type": "Odd"});
    assert_eq!(
        texts(&strict.validate_create(&prepared(strict, sent))),
        ["eventTime: Required value", "type: Invalid value: \"\": has invalid value: Odd"]
    );
}
