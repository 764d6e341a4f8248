//! Every rule a row: what is sent, and the exact words that come back.

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
    let name = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
                character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
                validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
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
            (json!({"metadata": {"name": "1a"}}), &[&format!("metadata.name: Invalid value: \"1a\": {name}")]),
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
                    "metadata.ownerReferences[0].kind: Required value: must not be empty",
                    "metadata.ownerReferences[0].uid: Required value: must not be empty",
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

#[test]
fn service_rules() {
    creates(
        "services",
        &service(),
        &[
            (json!({"spec": {"ports": []}}), &["spec.ports: Required value"]),
            (json!({"spec": {"ports": [], "clusterIP": "None"}}), &[]),
            (
                json!({"spec": {"ports": [{"port": 0}]}}),
                &[
                    "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                    "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
                ],
            ),
            (
                json!({"spec": {"ports": [{"port": 80, "protocol": "HTTP"}]}}),
                &["spec.ports[0].protocol: Unsupported value: \"HTTP\": supported values: \"SCTP\", \"TCP\", \"UDP\""],
            ),
            (
                json!({"spec": {"ports": [{"port": 80, "targetPort": "Web"}]}}),
                &[
                    "spec.ports[0].targetPort: Invalid value: \"Web\": must contain only alpha-numeric characters (a-z, \
                   0-9), and hyphens (-)",
                ],
            ),
            (
                json!({"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]}}),
                &["spec.ports[1].name: Duplicate value: \"a\""],
            ),
            (
                json!({"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}}),
                &[
                    "spec.ports[1]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":80,\"TargetPort\":0,\"NodePort\":0}",
                ],
            ),
            (
                json!({"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b", "protocol": "UDP"}]}}),
                &[],
            ),
            (
                json!({"spec": {"ports": [{"port": 80, "nodePort": 30000}]}}),
                &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
            ),
            (
                json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "name": "a", "nodePort": 30000},
                                                              {"port": 81, "name": "b", "nodePort": 30000}]}}),
                &["spec.ports[1].nodePort: Duplicate value: 30000"],
            ),
            (
                json!({"spec": {"type": "Nodeport"}}),
                &["spec.type: Unsupported value: \"Nodeport\": supported values: \"ClusterIP\", \"ExternalName\", \
                   \"LoadBalancer\", \"NodePort\""],
            ),
            (
                json!({"spec": {"clusterIP": "10.0.0"}}),
                &[&format!("spec.clusterIPs[0]: Invalid value: \"10.0.0\": {NOT_AN_IP}")],
            ),
            (
                json!({"spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2"]}}),
                &["spec.clusterIPs: Invalid value: [\"10.0.0.2\"]: first value must match `clusterIP`"],
            ),
            (
                json!({"spec": {"clusterIPs": ["10.0.0.2"]}}),
                &["spec.clusterIPs: Invalid value: [\"10.0.0.2\"]: must be empty when `clusterIP` is not specified"],
            ),
            (
                json!({"spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "10.0.0.2"]}}),
                &["spec.clusterIPs: Invalid value: [\"10.0.0.1\",\"10.0.0.2\"]: may specify no more than one IP for \
                   each IP family"],
            ),
            (
                json!({"spec": {"clusterIP": "None", "clusterIPs": ["None", "10.0.0.2"]}}),
                &["spec.clusterIPs: Invalid value: [\"None\",\"10.0.0.2\"]: 'None' must be the first and only value"],
            ),
            (
                json!({"spec": {"clusterIP": "10.0.0.1", "ipFamilies": ["IPv6"]}}),
                &["spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": expected an IPv6 value as indicated by \
                   `ipFamilies[0]`"],
            ),
            (
                json!({"spec": {"ipFamilies": ["IPv4", "IPv4", "IPv5"], "ipFamilyPolicy": "Dual"}}),
                &[
                    "spec.ipFamilies[1]: Duplicate value: \"IPv4\"",
                    "spec.ipFamilies[2]: Unsupported value: \"IPv5\": supported values: \"IPv4\", \"IPv6\"",
                    "spec.ipFamilyPolicy: Unsupported value: \"Dual\": supported values: \"PreferDualStack\", \
                   \"RequireDualStack\", \"SingleStack\"",
                ],
            ),
            (
                json!({"spec": {"type": "LoadBalancer", "clusterIP": "None"}}),
                &["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for LoadBalancer services"],
            ),
            (json!({"spec": {"type": "ExternalName"}}), &["spec.externalName: Required value"]),
            (json!({"spec": {"type": "ExternalName", "externalName": "db.example.com.", "ports": null}}), &[]),
            (
                json!({"spec": {"type": "ExternalName", "externalName": "a", "clusterIP": "10.0.0.1"}}),
                &["spec.clusterIPs: Forbidden: may not be set for ExternalName services"],
            ),
            (
                json!({"spec": {"externalIPs": ["127.0.0.1", "0.0.0.0", "x"]}}),
                &[
                    "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, \
                   ::1/128)",
                    "spec.externalIPs[1]: Invalid value: \"0.0.0.0\": may not be unspecified (0.0.0.0)",
                    &format!("spec.externalIPs[2]: Invalid value: \"x\": {NOT_AN_IP}"),
                ],
            ),
            (
                json!({"spec": {"sessionAffinity": "Cookie"}}),
                &["spec.sessionAffinity: Unsupported value: \"Cookie\": supported values: \"ClientIP\", \"None\""],
            ),
            (
                json!({"spec": {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 90000}}}}),
                &[
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 90000: must be greater than 0 and \
                   less than 86400",
                ],
            ),
            (
                json!({"spec": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}}),
                &["spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'"],
            ),
            (
                json!({"spec": {"type": "LoadBalancer", "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "10.0.0.0/33"]}}),
                &[
                    "spec.LoadBalancerSourceRanges[1]: Invalid value: \"10.0.0.0/33\": must be a valid CIDR value, (e.g. \
                   10.9.8.0/24 or 2001:db8::/64)",
                ],
            ),
            (
                json!({"spec": {"loadBalancerClass": "a/b", "allocateLoadBalancerNodePorts": false}}),
                &[
                    "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
                    "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
                ],
            ),
            (
                json!({"spec": {"externalTrafficPolicy": "Local", "healthCheckNodePort": 30000}}),
                &[
                    "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
                    "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and \
                   `externalTrafficPolicy` is 'Local'",
                ],
            ),
            (
                json!({"spec": {"type": "NodePort", "externalTrafficPolicy": "Near", "internalTrafficPolicy": "Far"}}),
                &[
                    "spec.externalTrafficPolicy: Unsupported value: \"Near\": supported values: \"Cluster\", \"Local\"",
                    "spec.internalTrafficPolicy: Unsupported value: \"Far\": supported values: \"Cluster\", \"Local\"",
                ],
            ),
            (
                json!({"spec": {"trafficDistribution": "Far"}}),
                &["spec.trafficDistribution: Unsupported value: \"Far\": supported values: \"PreferClose\", \
                   \"PreferSameZone\", \"PreferSameNode\""],
            ),
            (
                json!({"spec": {"selector": {"a/b/c": "d"}}}),
                &[
                    "spec.selector: Invalid value: \"a/b/c\": a qualified name must consist of alphanumeric characters, '-', \
                '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
                '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional \
                DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                ],
            ),
            (json!({"spec": null}), &["spec.ports: Required value"]),
        ],
    );
}

#[test]
fn service_changes() {
    let base = with(
        &service(),
        &json!({"spec": {
        "type": "LoadBalancer", "clusterIP": "10.96.0.7", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        "loadBalancerClass": "a/b", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30009}}),
    );
    updates(
        "services",
        &base,
        Subresource::None,
        &[
            (json!({}), &[]),
            (json!({"spec": {"type": "ClusterIP"}}), &[]),
            (json!({"spec": {"type": "NodePort"}}), &[]),
            (json!({"spec": {"type": "ExternalName", "externalName": "a.b"}}), &[]),
            (
                json!({"spec": {"clusterIP": "10.96.0.8"}}),
                &["spec.clusterIPs[0]: Invalid value: [\"10.96.0.8\"]: may not change once set"],
            ),
            (
                json!({"spec": {"clusterIP": "10.96.0.8", "clusterIPs": ["10.96.0.8"]}}),
                &["spec.clusterIPs[0]: Invalid value: [\"10.96.0.8\"]: may not change once set"],
            ),
            (
                json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"], "type": "ClusterIP"}}),
                &["spec.clusterIPs[0]: Invalid value: [\"None\"]: may not change once set"],
            ),
            (json!({"spec": {"clusterIP": null, "clusterIPs": null}}), &[]),
            (
                json!({"spec": {"ipFamilies": ["IPv6"]}}),
                &[
                    "spec.ipFamilies[0]: Invalid value: [\"IPv6\"]: may not change once set",
                    "spec.clusterIPs[0]: Invalid value: \"10.96.0.7\": expected an IPv6 value as indicated by `ipFamilies[0]`",
                ],
            ),
            (
                json!({"spec": {"loadBalancerClass": "c/d"}}),
                &["spec.loadBalancerClass: Invalid value: \"c/d\": may not change once set"],
            ),
            (
                json!({"spec": {"healthCheckNodePort": 30010}}),
                &["spec.healthCheckNodePort: Forbidden: field is immutable"],
            ),
        ],
    );
    updates(
        "services",
        &base,
        Subresource::Status,
        &[
            (json!({"status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"hostname": "a.b"}]}}}), &[]),
            (
                json!({"status": {"loadBalancer": {"ingress": [{"ip": "1.2.3"}, {"hostname": "1.2.3.4"}, {"hostname": "a", "ipMode": "VIP"}]}}}),
                &[
                    &format!("status.loadBalancer.ingress[0].ip: Invalid value: \"1.2.3\": {NOT_AN_IP}"),
                    "status.loadBalancer.ingress[1].hostname: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
                    "status.loadBalancer.ingress[2].ipMode: Forbidden: may not be specified when `ip` is not set",
                ],
            ),
        ],
    );
    updates(
        "services",
        &service(),
        Subresource::Status,
        &[(
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}}),
            &["status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"],
        )],
    );
}

#[test]
fn slice_rules() {
    let base = json!({"metadata": {"name": "a", "namespace": "b"}, "addressType": "IPv4",
                      "endpoints": [{"addresses": ["10.244.0.5"]}], "ports": [{"name": "http", "port": 80}]});
    let many: Vec<Value> = (0..1001).map(|_| json!({"addresses": ["10.0.0.1"]})).collect();
    creates(
        "endpointslices",
        &base,
        &[
            (
                json!({"endpoints": [{"addresses": ["127.0.0.1"]}]}),
                &["endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range \
                   (127.0.0.0/8, ::1/128)"],
            ),
            (
                json!({"endpoints": [{"addresses": ["169.254.1.1", "224.0.0.1", "0.0.0.0"]}]}),
                &[
                    "endpoints[0].addresses[0]: Invalid value: \"169.254.1.1\": may not be in the link-local range \
                   (169.254.0.0/16, fe80::/10)",
                    "endpoints[0].addresses[1]: Invalid value: \"224.0.0.1\": may not be in the link-local multicast range \
                   (224.0.0.0/24, ff02::/10)",
                    "endpoints[0].addresses[2]: Invalid value: \"0.0.0.0\": may not be unspecified (0.0.0.0)",
                ],
            ),
            (
                json!({"endpoints": [{"addresses": ["2001:db8::1", "x"]}]}),
                &[
                    "endpoints[0].addresses[0]: Invalid value: \"2001:db8::1\": must be an IPv4 address",
                    &format!("endpoints[0].addresses[1]: Invalid value: \"x\": {NOT_AN_IP}"),
                ],
            ),
            (
                json!({"addressType": "IPv6", "endpoints": [{"addresses": ["::1", "fe80::1", "ff02::1", "2001:db8::1"]}]}),
                &[
                    "endpoints[0].addresses[0]: Invalid value: \"::1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                    "endpoints[0].addresses[1]: Invalid value: \"fe80::1\": may not be in the link-local range \
                   (169.254.0.0/16, fe80::/10)",
                    "endpoints[0].addresses[2]: Invalid value: \"ff02::1\": may not be in the link-local multicast range \
                   (224.0.0.0/24, ff02::/10)",
                ],
            ),
            (
                json!({"addressType": "FQDN", "endpoints": [{"addresses": ["a.b.", "alone"]}]}),
                &[
                    "endpoints[0].addresses[1]: Invalid value: \"alone\": should be a domain with at least two segments \
                   separated by dots",
                ],
            ),
            (
                json!({"endpoints": [{"addresses": []}]}),
                &["endpoints[0].addresses: Required value: must contain at least 1 address"],
            ),
            (json!({"endpoints": many}), &["endpoints: Too many: 1001: must have at most 1000 items"]),
            (json!({"addressType": null}), &["addressType: Required value"]),
            (
                json!({"addressType": "IP"}),
                &["addressType: Unsupported value: \"IP\": supported values: \"FQDN\", \"IPv4\", \"IPv6\""],
            ),
            (
                json!({"ports": [{"name": "a"}, {"name": "a"}, {"name": "B", "protocol": "X"}]}),
                &[
                    "ports[1].name: Duplicate value: \"a\"",
                    &format!("ports[2].name: Invalid value: \"B\": {LABEL}"),
                    "ports[2].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                ],
            ),
            (
                json!({"endpoints": [{"addresses": ["10.0.0.1"], "hostname": "A"}]}),
                &[&format!("endpoints[0].hostname: Invalid value: \"A\": {LABEL}")],
            ),
        ],
    );
    updates(
        "endpointslices",
        &base,
        Subresource::None,
        &[(
            json!({"addressType": "IPv6", "endpoints": []}),
            &["addressType: Invalid value: \"IPv6\": field is immutable"],
        )],
    );
    creates(
        "endpoints",
        &json!({"metadata": {"name": "a", "namespace": "b"},
                "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
        &[
            (
                json!({"subsets": [{"ports": [{"port": 0}, {"port": 1, "name": "x"}]}]}),
                &[
                    "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
                    "subsets[0].ports[0].name: Required value",
                    "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                ],
            ),
            (
                json!({"subsets": [{"notReadyAddresses": [{"ip": "127.0.0.1"}]}]}),
                &[
                    "subsets[0].notReadyAddresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range \
                   (127.0.0.0/8, ::1/128)",
                ],
            ),
        ],
    );
}

fn pod() -> Value {
    json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
}

/// A pod whose one container has these fields too.
fn container(fields: &Value) -> Value {
    json!({"spec": {"containers": [with(&json!({"name": "c", "image": "i:1"}), fields)]}})
}

#[test]
fn pod_rules() {
    creates(
        "pods",
        &pod(),
        &[
            (json!({"spec": {"containers": []}}), &["spec.containers: Required value"]),
            (
                json!({"spec": {"containers": [{"name": "A", "image": ""}]}}),
                &[
                    &format!("spec.containers[0].name: Invalid value: \"A\": {LABEL}"),
                    "spec.containers[0].image: Required value",
                ],
            ),
            (
                json!({"spec": {"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]}}),
                &["spec.containers[1].name: Duplicate value: \"c\""],
            ),
            (
                json!({"spec": {"initContainers": [{"name": "c", "image": "i"}]}}),
                &["spec.initContainers[0].name: Duplicate value: \"c\""],
            ),
            (
                json!({"spec": {"initContainers": [{"name": "d", "image": "i", "readinessProbe": {"exec": {"command": ["x"]}}}]}}),
                &["spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without \
                   restartPolicy=Always"],
            ),
            (
                container(&json!({"image": " i "})),
                &["spec.containers[0].image: Invalid value: \" i \": must not have leading or trailing whitespace"],
            ),
            (
                container(&json!({"ports": [{"containerPort": 0}, {"containerPort": 70000, "name": "UP"},
                                            {"containerPort": 1, "name": "a"}, {"containerPort": 1, "name": "a"}]})),
                &[
                    "spec.containers[0].ports[0].containerPort: Required value",
                    "spec.containers[0].ports[1].name: Invalid value: \"UP\": must contain only alpha-numeric characters \
                   (a-z, 0-9), and hyphens (-)",
                    "spec.containers[0].ports[1].name: Invalid value: \"UP\": must contain at least one letter (a-z)",
                    "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                    "spec.containers[0].ports[3].name: Duplicate value: \"a\"",
                ],
            ),
            (
                container(&json!({"env": [{"name": ""}, {"name": "A=B"},
                    {"name": "C", "valueFrom": {}}, {"name": "D", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "spec.hostname"}}}]})),
                &[
                    "spec.containers[0].env[0].name: Required value",
                    "spec.containers[0].env[1].name: Invalid value: \"A=B\": a valid environment variable name must consist \
                   only of printable ASCII characters other than '='",
                    "spec.containers[0].env[2].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, \
                   `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
                    "spec.containers[0].env[3].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
                    "spec.containers[0].env[4].valueFrom.fieldRef.fieldPath: Unsupported value: \"spec.hostname\": supported \
                   values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \
                   \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
                ],
            ),
            (
                container(&json!({"volumeMounts": [{"name": "v", "mountPath": "/a"}]})),
                &["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
            ),
            (
                json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}, "secret": {"secretName": "s"}}, {"name": "v"},
                                            {"name": "w", "configMap": {}}, {"name": "x", "hostPath": {"path": "/a/../b"}}]}}),
                &[
                    "spec.volumes[0].secret: Forbidden: may not specify more than 1 volume type",
                    "spec.volumes[1].name: Duplicate value: \"v\"",
                    "spec.volumes[2].configMap.name: Required value",
                    "spec.volumes[3].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
                ],
            ),
            (
                container(&json!({"readinessProbe": {"httpGet": {"port": "x y"}, "exec": {"command": ["a"]},
                                                     "terminationGracePeriodSeconds": 3},
                                  "livenessProbe": {"tcpSocket": {"port": 0}, "successThreshold": 2, "periodSeconds": -1},
                                  "startupProbe": {}})),
                &[
                    "spec.containers[0].livenessProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive",
                    "spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
                    "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
                    "spec.containers[0].readinessProbe.httpGet: Forbidden: may not specify more than 1 handler type",
                    "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 3: must not be set for \
                   readinessProbes",
                    "spec.containers[0].startupProbe: Required value: must specify a handler type",
                ],
            ),
            (
                container(
                    &json!({"resources": {"limits": {"cpu": "1", "memory": "-1", "gpu": "1"}, "requests": {"cpu": "2"}}}),
                ),
                &[
                    "spec.containers[0].resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource for containers",
                    "spec.containers[0].resources.limits[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
                    "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
                    "spec.containers[0].resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource for containers",
                    "spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
                ],
            ),
            (
                container(&json!({"imagePullPolicy": "Sometimes"})),
                &[
                    "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
                \"IfNotPresent\", \"Never\"",
                ],
            ),
            (
                json!({"spec": {"restartPolicy": "Maybe", "dnsPolicy": "Other"}}),
                &[
                    "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"OnFailure\", \"Never\"",
                    "spec.dnsPolicy: Unsupported value: \"Other\": supported values: \"ClusterFirstWithHostNet\", \
                \"ClusterFirst\", \"Default\", \"None\"",
                ],
            ),
            (
                json!({"spec": {"hostname": "a.b", "activeDeadlineSeconds": 0}}),
                &[
                    "spec.hostname: Invalid value: \"a.b\": must not contain dots",
                    "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
                ],
            ),
            (
                json!({"spec": {"tolerations": [{"operator": "Equal"}, {"key": "a", "operator": "Exists", "value": "b"},
                                             {"key": "a", "tolerationSeconds": 1, "effect": "NoSchedule"}, {"key": "a", "effect": "No"}]}}),
                &[
                    "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which \
                means \"match all values and all keys\"",
                    "spec.tolerations[1].operator: Invalid value: \"b\": value must be empty when `operator` is 'Exists'",
                    "spec.tolerations[2].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when \
                `tolerationSeconds` is set",
                    "spec.tolerations[3].effect: Unsupported value: \"No\": supported values: \"NoSchedule\", \
                \"PreferNoSchedule\", \"NoExecute\"",
                ],
            ),
        ],
    );
}

#[test]
fn pod_changes() {
    let base = with(
        &pod(),
        &json!({"spec": {"activeDeadlineSeconds": 100, "tolerations": [{"key": "a", "operator": "Exists"}]}}),
    );
    updates(
        "pods",
        &base,
        Subresource::None,
        &[
            (json!({}), &[]),
            (json!({"metadata": {"labels": {"x": "y"}}}), &[]),
            (json!({"spec": {"activeDeadlineSeconds": 50}}), &[]),
            (
                json!({"spec": {"activeDeadlineSeconds": 200}}),
                &["spec.activeDeadlineSeconds: Invalid value: 200: must be less than or equal to previous value"],
            ),
            (
                json!({"spec": {"tolerations": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}]}}),
                &[],
            ),
            (
                json!({"spec": {"tolerations": []}}),
                &["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"],
            ),
            (
                json!({"spec": {"containers": []}}),
                &[
                    "spec.containers: Required value",
                    "spec.containers: Forbidden: pod updates may not add or remove containers",
                ],
            ),
            (
                json!({"spec": {"hostname": "other"}}),
                &["spec: Forbidden: pod updates may not change fields other than \
                `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` \
                (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if \
                it was previously negative)\nspec.hostname: null is now \"other\""],
            ),
        ],
    );
    // A new image alone is fine.
    let kind = kind("pods");
    let old = prepared(kind, pod());
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = "i:2".into();
    kind.prepare_update(&mut new, &old, Subresource::None);
    assert_eq!(texts(&kind.validate_update(&new, &old, Subresource::None)), [""; 0]);
    updates(
        "pods",
        &with(&pod(), &json!({"spec": {"restartPolicy": "Never"}})),
        Subresource::Status,
        &[
            (json!({"status": {"phase": "Running", "podIP": "10.244.0.9"}}), &[]),
            (
                json!({"status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "podIP": "10.0.0.1"}}),
                &[
                    "status.podIPs: Invalid value: [{\"ip\":\"10.0.0.1\"},{\"ip\":\"10.0.0.2\"}]: may specify no more than one \
                IP for each IP family",
                ],
            ),
            (
                json!({"status": {"qosClass": "Guaranteed"}}),
                &["status.qosClass: Invalid value: \"Guaranteed\": field is immutable"],
            ),
        ],
    );
    let status = |state: Value| {
        json!({"spec": {"restartPolicy": "Never"}, "metadata": {},
        "status": {"containerStatuses": [{"name": "c", "state": state}]}})
    };
    let (ended, running) = (status(json!({"terminated": {"exitCode": 1}})), status(json!({"running": {}})));
    assert_eq!(
        texts(&kind.validate_update(&running, &ended, Subresource::Status)),
        ["status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"]
    );
    assert!(kind.validate_update(&ended, &running, Subresource::Status).is_empty());
}

#[test]
fn workload_rules() {
    let base = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {
        "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x", "more": "y"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    creates(
        "deployments",
        &base,
        &[
            (json!({"spec": {"selector": null}}), &["spec.selector: Required value"]),
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
            (json!({"data": {"a": "x".repeat(1_048_577)}}), &[": Too long: may not be more than 1048576 bytes"]),
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
                    "metadata.taints[1]: Duplicate value: {\"effect\":\"NoSchedule\",\"key\":\"a\"}: taints must be unique by \
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
                &[
                    "spec.cidrs: Invalid value: {\"cidrs\":[\"10.96.0.0/12\",\"10.0.0.0/16\"]}: may specify no more than one IP \
                for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
                ],
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
                &["spec.cidrs: Invalid value: [\"10.0.0.0/16\"]: field is immutable"],
            ),
        ],
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
