//! Rows for Services.

use serde_json::json;

use super::{NOT_AN_IP, creates, service, updates, with};
use crate::Subresource;

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
                json!({"spec": {"clusterIP": "None", "clusterIPs": ["10.0.0.2"], "ipFamilies": ["IPv6"]}}),
                &[
                    "spec.clusterIPs: Invalid value: [\"10.0.0.2\"]: first value must match `clusterIP`",
                    "spec.clusterIPs[0]: Invalid value: \"10.0.0.2\": expected an IPv6 value as indicated by `ipFamilies[0]`",
                ],
            ),
            (
                json!({"spec": {"type": "ExternalName", "externalName": "a.b", "internalTrafficPolicy": "x"}}),
                &["spec.internalTrafficPolicy: Unsupported value: \"x\": supported values: \"Cluster\", \"Local\""],
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
