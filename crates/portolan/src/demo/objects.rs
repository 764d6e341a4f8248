//! The manifests of the story, as data.

use serde_json::{Value, json};

pub(super) const NAMESPACE: &str = "default";
pub(super) const BACKEND: &str = "image-backend";
pub(super) const FRONT_END: &str = "front-end";
pub(super) const PICTURE: &str = "/resize?width=48&height=36";
/// The label that tells whose pods are whose; Services do not look at it.
pub(super) const OWNER: &str = "run-by";
const IMAGE: &str = "portolan/workload";

/// The name anybody in the cluster finds a Service by.
pub(super) fn dns_name(service: &str) -> String {
    format!("{service}.{NAMESPACE}.svc.cluster.local")
}

fn backend_template(owner: &str, version: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": BACKEND, OWNER: owner, "version": version}},
        "spec": {
            "terminationGracePeriodSeconds": 10,
            "containers": [{
                "name": "backend",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                // Longer than the news of a pod's end may take on a busy machine with a slow disk.
                "args": ["image", "--drain", "3s"],
                "env": [{"name": "VERSION", "value": version}],
                "ports": [{"name": "http", "containerPort": 8080}],
                "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 1},
            }],
        },
    })
}

pub(super) fn replica_set(name: &str, replicas: u32) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": BACKEND, OWNER: name}},
            "template": backend_template(name, "1"),
        },
    })
}

pub(super) fn deployment(name: &str, replicas: u32, version: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": BACKEND, OWNER: name}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": backend_template(name, version),
        },
    })
}

/// A Service of the backends; `extra` is merged into its spec.
pub(super) fn backend_service(name: &str, extra: &Value) -> Value {
    let mut spec = json!({
        "selector": {"app": BACKEND},
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
    });
    if let (Some(spec), Some(extra)) = (spec.as_object_mut(), extra.as_object()) {
        spec.extend(extra.clone());
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

/// The front end: it knows the Service's name and nothing else.
pub(super) fn front_end(node: &str) -> Value {
    json!({
        "metadata": {"name": FRONT_END, "labels": {"app": FRONT_END}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 2,
            "containers": [{
                "name": "load",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "args": [
                    "load", "--target", format!("http://{}{PICTURE}", dns_name(BACKEND)),
                    "--picture", "96x72", "--rate", "100/s", "--report-every", "200ms", "--await-first", "30s",
                    "--stats-port", "8081",
                ],
                "ports": [{"name": "stats", "containerPort": 8081}],
            }],
        },
    })
}

/// A pod that runs one workload command to its end.
pub(super) fn client(name: &str, arguments: &[String]) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": "client"}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "client", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "args": arguments}],
        },
    })
}

/// The arguments of a short load that asks for pictures, once it has had a first answer.
pub(super) fn short_load(url: &str, requests: u32, await_first: &str) -> Vec<String> {
    let requests = requests.to_string();
    [
        "load",
        "--target",
        url,
        "--picture",
        "96x72",
        "--rate",
        "60/s",
        "--requests",
        &requests,
        "--await-first",
        await_first,
    ]
    .map(ToOwned::to_owned)
    .to_vec()
}

/// Another name for something.
pub(super) fn external_name(name: &str, target: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"type": "ExternalName", "externalName": target},
    })
}

/// A Service without a selector, and the slice written by hand that says where it leads.
pub(super) fn hand_written(name: &str, address: &str, port: u16) -> (Value, Value) {
    let service = json!({
        "metadata": {"name": name},
        "spec": {"ports": [{"port": 80, "targetPort": port}]},
    });
    let slice = json!({
        "metadata": {
            "name": format!("{name}-by-hand"),
            "labels": {
                "kubernetes.io/service-name": name,
                "endpointslice.kubernetes.io/managed-by": "demo.portolan.dev",
            },
        },
        "addressType": "IPv4",
        "ports": [{"port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
    });
    (service, slice)
}

#[cfg(test)]
mod tests {
    use portolan_kinds::FieldValidation;

    use super::*;

    #[test]
    fn the_api_server_takes_every_manifest() {
        let (bare, slice) = hand_written("image-outside", "10.203.0.2", 9000);
        let service = |extra| ("", "v1", "services", backend_service("image", &extra));
        let manifests = [
            ("apps", "v1", "replicasets", replica_set(BACKEND, 3)),
            ("apps", "v1", "deployments", deployment(BACKEND, 3, "2")),
            service(json!({})),
            service(json!({"type": "NodePort"})),
            service(json!({"type": "LoadBalancer"})),
            service(json!({"clusterIP": "None"})),
            ("", "v1", "services", external_name("images", &dns_name(BACKEND))),
            ("", "v1", "services", bare),
            ("discovery.k8s.io", "v1", "endpointslices", slice),
            ("", "v1", "pods", front_end("node3")),
            ("", "v1", "pods", client("client", &short_load("http://image/", 10, "5s"))),
        ];
        for (group, version, plural, mut manifest) in manifests {
            let kind = portolan_kinds::find(group, version, plural).unwrap();
            manifest["apiVersion"] = kind.api_version().into();
            manifest["kind"] = kind.kind.into();
            manifest["metadata"]["namespace"] = NAMESPACE.into();
            let (mut object, warnings) = kind.decode(manifest, FieldValidation::Strict).unwrap();
            kind.default(&mut object);
            kind.prepare_create(&mut object);
            let errors = kind.validate_create(&object);
            assert!(errors.is_empty() && warnings.is_empty(), "{plural}: {errors:?} {warnings:?} {object:#}");
        }
    }
}
