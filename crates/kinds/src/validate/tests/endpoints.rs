//! Rows for Endpoints and EndpointSlices.

use serde_json::{Value, json};

use super::{LABEL, NOT_AN_IP, creates, updates};
use crate::Subresource;

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
                    "endpoints[0].addresses: Invalid value: \"2001:db8::1\": must be an IPv4 address",
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
