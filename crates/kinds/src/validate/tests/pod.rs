//! Rows for pods.

use serde_json::{Value, json};

use super::{LABEL, creates, kind, prepared, texts, updates, with};
use crate::Subresource;

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
            (json!({"spec": {"dnsConfig": {"searches": [".", "_sip._tcp.abc_d.example.com", "a."]}}}), &[]),
            (
                json!({"spec": {"dnsConfig": {"searches": ["a_"]}}}),
                &[
                    "spec.dnsConfig.searches[0]: Invalid value: \"a_\": a lowercase RFC 1123 subdomain must consist of lower \
                   case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character \
                   (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]\
                   ([-_a-z0-9]*[a-z0-9])?)*')",
                ],
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
                   `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
                    "spec.containers[0].env[3].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
                    "spec.containers[0].env[4].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.hostname\": error converting \
                     fieldPath: field label not supported: spec.hostname",
                ],
            ),
            (
                container(&json!({"volumeMounts": [{"name": "v", "mountPath": "/a"}]})),
                &["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
            ),
            (
                json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}, "secret": {"secretName": "s"}}, {"name": "y"},
                                            {"name": "w", "configMap": {}}, {"name": "x", "hostPath": {"path": "/a/../b"}}]}}),
                &[
                    "spec.volumes[0].secret: Forbidden: may not specify more than 1 volume type",
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
                    "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
                    "spec.hostname: Invalid value: \"a.b\": must not contain dots",
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

const KEY: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                   alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                   '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

#[test]
fn security_rules() {
    let of = |context: Value| container(&json!({"securityContext": context}));
    let at = "spec.containers[0].securityContext";
    let profiles = r#""Localhost", "RuntimeDefault", "Unconfined""#;
    creates(
        "pods",
        &pod(),
        &[
            (
                of(json!({"procMount": "All", "seccompProfile": {"type": "Mine", "localhostProfile": "p"}})),
                &[
                    &format!("{at}.procMount: Unsupported value: \"All\": supported values: \"Default\", \"Unmasked\""),
                    &format!("{at}.seccompProfile.type: Unsupported value: \"Mine\": supported values: {profiles}"),
                    &format!(
                        "{at}.seccompProfile.localhostProfile: Invalid value: {{\"Type\":\"Mine\",\"LocalhostProfile\":\"p\"}}: \
                         can only be set when seccomp type is Localhost"
                    ),
                ],
            ),
            (
                of(json!({"procMount": "Unmasked", "seccompProfile": {}, "appArmorProfile": {}})),
                &[
                    &format!(
                        "{at}.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`"
                    ),
                    &format!("{at}.seccompProfile.type: Required value: type is required when seccompProfile is set"),
                    &format!("{at}.appArmorProfile.type: Required value: type is required when appArmorProfile is set"),
                ],
            ),
            (
                of(json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "../p"},
                          "appArmorProfile": {"type": "Localhost"}})),
                &[
                    &format!("{at}.seccompProfile.localhostProfile: Invalid value: \"../p\": must not contain '..'"),
                    &format!(
                        "{at}.appArmorProfile.localhostProfile: Required value: must be set when AppArmor type is Localhost"
                    ),
                ],
            ),
            (
                of(json!({"privileged": true, "allowPrivilegeEscalation": false, "capabilities": {"add": ["A"]}})),
                &[&format!(
                    "{at}: Invalid value: {{\"Capabilities\":{{\"Add\":[\"A\"],\"Drop\":null}},\"Privileged\":true,\
                     \"SELinuxOptions\":null,\"WindowsOptions\":null,\"RunAsUser\":null,\"RunAsGroup\":null,\
                     \"RunAsNonRoot\":null,\"ReadOnlyRootFilesystem\":null,\"AllowPrivilegeEscalation\":false,\
                     \"ProcMount\":null,\"SeccompProfile\":null,\"AppArmorProfile\":null}}: cannot set \
                     `allowPrivilegeEscalation` to false and `privileged` to true"
                )],
            ),
            (
                json!({"spec": {"hostNetwork": true, "securityContext": {"fsGroupChangePolicy": "Never",
                    "sysctls": [{"name": "Net"}, {"name": "net.a"}, {"name": "kernel/sem"}, {"name": "kernel/sem"}]}}}),
                &[
                    "spec.securityContext.sysctls[0].name: Invalid value: \"Net\": must have at most 253 characters and \
                     match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
                    "spec.securityContext.sysctls[1].name: Invalid value: \"net.a\": may not be specified when \
                     'hostNetwork' is true",
                    "spec.securityContext.sysctls[3].name: Duplicate value: \"kernel/sem\"",
                    "spec.securityContext.fsGroupChangePolicy: Unsupported value: \"Never\": supported values: \"Always\", \
                     \"OnRootMismatch\"",
                ],
            ),
        ],
    );
}

#[test]
fn volume_rules() {
    let mount = |mount: Value| {
        let mut pod = container(&json!({"volumeMounts": [mount]}));
        pod["spec"]["volumes"] = json!([{"name": "v"}, {"name": "bad", "configMap": {}}]);
        pod
    };
    let projected = |sources: Value| json!({"spec": {"serviceAccountName": "s", "volumes": [{"name": "p", "projected": {"sources": sources}}]}});
    creates(
        "pods",
        &pod(),
        &[
            (
                mount(json!({"name": "bad", "mountPath": "/a"})),
                &[
                    "spec.volumes[1].configMap.name: Required value",
                    "spec.containers[0].volumeMounts[0].name: Not found: \"bad\"",
                ],
            ),
            (
                mount(
                    json!({"name": "v", "mountPath": "/a", "mountPropagation": "Bidirectional", "recursiveReadOnly": "Enabled"}),
                ),
                &[
                    "spec.volumes[1].configMap.name: Required value",
                    "spec.containers[0].volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is \
                     available only to privileged containers",
                    "spec.containers[0].volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true",
                    "spec.containers[0].volumeMounts.recursiveReadOnly: Forbidden: may only be specified when \
                     mountPropagation is None or not specified",
                ],
            ),
            (
                container(&json!({"volumeDevices": [{"name": "v", "devicePath": "/../d"}]})),
                &[
                    "spec.containers[0].volumeDevices[0].name: Not found: \"v\"",
                    "spec.containers[0].volumeDevices[0].devicePath: Invalid value: \"/../d\": can not contain backsteps ('..')",
                ],
            ),
            (
                json!({"spec": {"volumes": [{"name": "d", "downwardAPI": {"defaultMode": 512, "items": [
                    {"path": "..a", "fieldRef": {"fieldPath": "spec.nodeName"}},
                    {"path": "b", "resourceFieldRef": {"resource": "limits.cpu"}}, {"path": "c"}]}}]}}),
                &[
                    "spec.volumes[0].downwardAPI.defaultMode: Invalid value: 512: must be a number between 0 and 0777 \
                     (octal), both inclusive",
                    "spec.volumes[0].downwardAPI.path: Invalid value: \"..a\": must not start with '..'",
                    "spec.volumes[0].downwardAPI.fieldRef.fieldPath: Unsupported value: \"spec.nodeName\": supported \
                     values: \"metadata.annotations\", \"metadata.labels\", \"metadata.name\", \"metadata.namespace\", \
                     \"metadata.uid\"",
                    "spec.volumes[0].downwardAPI.resourceFieldRef.containerName: Required value",
                    "spec.volumes[0].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
                ],
            ),
            (
                projected(json!([{"serviceAccountToken": {"path": "", "expirationSeconds": 5}},
                    {"configMap": {"name": "c", "items": [{"key": "k", "path": "f"}]}},
                    {"secret": {"items": [{"key": "k", "path": "f"}]}, "downwardAPI": {}}])),
                &[
                    "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 5: may not \
                     specify a duration less than 10 minutes",
                    "spec.volumes[0].projected.path: Required value",
                    "spec.volumes[0].projected.sources[2].secret.name: Required value",
                    "spec.volumes[0].projected: Invalid value: \"\": conflicting duplicate paths",
                    "spec.volumes[0].projected.sources[2]: Forbidden: may not specify more than 1 volume type per source",
                ],
            ),
        ],
    );
}

#[test]
fn rules_across_the_pod() {
    creates(
        "pods",
        &pod(),
        &[
            (
                container(&json!({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}, "stopSignal": "SIGTERM"}})),
                &[
                    "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than \
                     terminationGracePeriodSeconds (30)",
                    "spec.containers[0].lifecycle.stopSignal: Forbidden: may not be set for containers with empty \
                     `spec.os.name`",
                ],
            ),
            (
                json!({"spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i",
                    "ports": [{"containerPort": 80, "hostPort": 81}]}]}}),
                &[
                    "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true",
                ],
            ),
            (
                json!({"spec": {"os": {"name": "plan9"}, "preemptionPolicy": "Always", "hostnameOverride": "a_b",
                                "setHostnameAsFQDN": true}}),
                &[
                    "spec.hostnameOverride: Forbidden: may not be specified when setHostnameAsFQDN is true",
                    "spec.hostnameOverride: Invalid value: \"a_b\": a lowercase RFC 1123 subdomain must consist of lower \
                     case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
                     'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*\
                     [a-z0-9])?)*')",
                    "spec.preemptionPolicy: Unsupported value: \"Always\": supported values: \"PreemptLowerPriority\", \"Never\"",
                    "spec.os: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\"",
                ],
            ),
            (
                json!({"spec": {"topologySpreadConstraints": [
                    {"maxSkew": 0, "topologyKey": "a b", "whenUnsatisfiable": "ScheduleAnyway", "minDomains": 2,
                     "nodeTaintsPolicy": "No", "labelSelector": {}, "matchLabelKeys": ["Bad!"]}]}}),
                &[
                    "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
                    "spec.topologySpreadConstraints[0].minDomains: Invalid value: 2: can only use minDomains if \
                     whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway",
                    "spec.topologySpreadConstraints[0].nodeTaintsPolicy: Unsupported value: \"No\": supported values: \
                     \"Honor\", \"Ignore\"",
                    &format!("spec.topologySpreadConstraints[0].matchLabelKeys[0]: Invalid value: \"Bad!\": {KEY}"),
                ],
            ),
        ],
    );
}

#[test]
fn affinity_rules() {
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    let path = "spec.affinity.nodeAffinity";
    creates(
        "pods",
        &pod(),
        &[
            (
                json!({"spec": {"affinity": {"nodeAffinity": {required: {"nodeSelectorTerms": []}}}}}),
                &[&format!(
                    "{path}.{required}.nodeSelectorTerms: Required value: must have at least one node selector term"
                )],
            ),
            (
                json!({"spec": {"affinity": {"nodeAffinity": {required: {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "a", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["x"]},
                    {"key": "a", "operator": "Gt", "values": ["1", "2"]}, {"key": "a", "operator": "Like"}]}]}}}}}),
                &[
                    &format!(
                        "{path}.{required}.nodeSelectorTerms[0].matchExpressions[0].values: Required value: must be \
                              specified when `operator` is 'In' or 'NotIn'"
                    ),
                    &format!(
                        "{path}.{required}.nodeSelectorTerms[0].matchExpressions[1].values: Forbidden: may not be \
                              specified when `operator` is 'Exists' or 'DoesNotExist'"
                    ),
                    &format!(
                        "{path}.{required}.nodeSelectorTerms[0].matchExpressions[2].values: Required value: must be \
                              specified single value when `operator` is 'Lt' or 'Gt'"
                    ),
                    &format!(
                        "{path}.{required}.nodeSelectorTerms[0].matchExpressions[3].operator: Invalid value: \"Like\": \
                              not a valid selector operator"
                    ),
                ],
            ),
            (
                json!({"spec": {"affinity": {"nodeAffinity": {required: {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b!"]}],
                     "matchFields": [{"key": "spec.x", "operator": "In"}, {"key": "metadata.name", "operator": "In", "values": ["n"]}]}]},
                    preferred: [{"weight": 1, "preference": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b!"]}]}}]}}}}),
                &[
                    &format!(
                        "{path}.{required}.nodeSelectorTerms[0].matchExpressions[0].values[0]: Invalid value: \"b!\": a valid \
                         label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start \
                         and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
                         validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                    ),
                    &format!(
                        "{path}.{required}.nodeSelectorTerms[0].matchFields[0].values: Required value: must be only one value \
                         when `operator` is 'In' or 'NotIn' for node field selector"
                    ),
                    &format!(
                        "{path}.{required}.nodeSelectorTerms[0].matchFields[0].key: Invalid value: \"spec.x\": not a valid \
                         field selector key"
                    ),
                ],
            ),
            (
                json!({"spec": {"affinity": {"podAntiAffinity": {
                    preferred: [{"weight": 101, "podAffinityTerm": {"labelSelector": {}, "topologyKey": "zone"}}],
                    required: [{"labelSelector": {}, "topologyKey": "a b"}, {"topologyKey": "zone", "matchLabelKeys": ["k"]},
                               {"topologyKey": "zone", "labelSelector": {}, "namespaces": ["a.b"]}]}}}}),
                &[
                    &format!("spec.affinity.podAntiAffinity.{required}[0].topologyKey: Invalid value: \"a b\": {KEY}"),
                    &format!(
                        "spec.affinity.podAntiAffinity.{required}[1].matchLabelKeys: Forbidden: must not be specified when \
                         labelSelector is not set"
                    ),
                    &format!(
                        "spec.affinity.podAntiAffinity.{required}[2].namespace: Invalid value: \"a.b\": must not contain dots"
                    ),
                    &format!(
                        "spec.affinity.podAntiAffinity.{preferred}[0].weight: Invalid value: 101: must be in the range 1-100"
                    ),
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
fn ephemeral_containers() {
    let ephemeral = |fields: Value| {
        with(
            &json!({"name": "e", "image": "i", "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}),
            &fields,
        )
    };
    let has = |containers: &[Value]| json!({"spec": {"ephemeralContainers": containers}});
    let forbidden = |field: &str| {
        format!("spec.ephemeralContainers[0].{field}: Forbidden: cannot be set for an Ephemeral Container")
    };
    updates(
        "pods",
        &with(&pod(), &has(&[ephemeral(json!({}))])),
        Subresource::EphemeralContainers,
        &[
            (
                has(&[ephemeral(json!({})), ephemeral(json!({"name": "f", "targetContainerName": "c", "tty": true}))]),
                &[],
            ),
            (
                has(&[
                    ephemeral(json!({})),
                    ephemeral(json!({"name": "c"})),
                    ephemeral(json!({"name": "f", "image": ""})),
                ]),
                &[
                    "spec.ephemeralContainers[1].name: Duplicate value: \"c\"",
                    "spec.ephemeralContainers[2].image: Required value",
                ],
            ),
            (
                has(&[ephemeral(json!({})), ephemeral(json!({"name": "f", "targetContainerName": "e"}))]),
                &["spec.ephemeralContainers[1].targetContainerName: Not found: \"e\""],
            ),
            // Whatever else an update says is not heard.
            (json!({"metadata": {"labels": {"a": "b"}}, "spec": {"nodeName": "n", "containers": []}}), &[]),
        ],
    );
    let fields = json!({"ports": [{"containerPort": 1, "protocol": "TCP"}], "resources": {"limits": {"cpu": "1"}},
        "livenessProbe": {"exec": {"command": ["a"]}, "successThreshold": 1}, "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
        "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "s"}]});
    let paths = ["ports", "resources", "livenessProbe", "lifecycle", "volumeMounts[0].subPath"];
    let expected: Vec<String> = paths.iter().map(|path| forbidden(path)).collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    let volume = with(&pod(), &json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}));
    updates("pods", &volume, Subresource::EphemeralContainers, &[(has(&[ephemeral(fields)]), &expected)]);

    let kind = kind("pods");
    let old = prepared(kind, with(&pod(), &has(&[ephemeral(json!({"args": ["a"]})), ephemeral(json!({"name": "f"}))])));
    let mut new = with(&old, &has(&[ephemeral(json!({"args": ["b"]}))]));
    kind.prepare_update(&mut new, &old, Subresource::EphemeralContainers);
    let told = texts(&kind.validate_update(&new, &old, Subresource::EphemeralContainers));
    let changed = "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"e\" may not be changed\n";
    let removed = "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"f\" may not be removed\n";
    assert!(told[0].starts_with(changed) && told[1] == removed && told.len() == 2, "{told:?}");
    // Only by their own subresource may they come.
    let told = texts(&kind.validate_update(&with(&old, &has(&[])), &old, Subresource::None));
    assert!(told[0].starts_with("spec: Forbidden: pod updates may not change fields other than"), "{told:?}");
}
