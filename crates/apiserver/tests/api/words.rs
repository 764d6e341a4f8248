//! What kube-apiserver 1.36.2 answers to requests with mistakes, and of what it warns, word for word.

use http::Method;
use serde_json::{Value, json};

use crate::harness::{CONFIG_MAPS, Cluster, config_map};

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn with(mut object: Value, path: &str, value: Value) -> Value {
    *object.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = value;
    object
}

#[tokio::test]
async fn mistakes() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let bare = json!({"metadata": {"name": "a", "finalizers": [], "ownerReferences": []}});
    let service =
        json!({"metadata": {"name": "a"}, "spec": {"externalIPs": [], "ports": [{"port": 80, "targetPort": 80}]}});
    for (path, body, code, words) in [
        (
            CONFIG_MAPS,
            with(bare.clone(), "/metadata/finalizers", json!(["mine"])),
            422,
            "ConfigMap \"a\" is invalid: metadata.finalizers[0]: Invalid value: \"mine\": name is neither a standard \
             finalizer name nor is it fully qualified",
        ),
        (
            CONFIG_MAPS,
            with(bare, "/metadata/ownerReferences", json!([{"apiVersion": "v1", "kind": "K", "name": "n"}])),
            422,
            "ConfigMap \"a\" is invalid: metadata.ownerReferences.uid: Invalid value: \"\": must not be empty",
        ),
        (
            CONFIG_MAPS,
            json!({"metadata": {"name": "a", "namespace": "other"}}),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            CONFIG_MAPS,
            json!({"metadata": {"name": "a"}, "binaryData": {"x": "AAECA"}}),
            400,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: illegal base64 data at input byte 4",
        ),
        (
            SERVICES,
            with(service.clone(), "/spec/externalIPs", json!(["010.1.1.1"])),
            422,
            "Service \"a\" is invalid: spec.externalIPs[0]: Invalid value: \"010.1.1.1\": must not have leading 0s",
        ),
        (
            SERVICES,
            with(service.clone(), "/spec/ports/0/targetPort", json!(true)),
            400,
            "Service in version \"v1\" cannot be handled as a Service: json: cannot unmarshal bool into Go struct field \
             ServicePort.spec.ports.targetPort of type int32",
        ),
        (
            SERVICES,
            with(service.clone(), "/metadata/name", json!("a.b")),
            422,
            "Service \"a.b\" is invalid: metadata.name: Invalid value: \"a.b\": must not contain dots",
        ),
        (
            "/apis/events.k8s.io/v1/namespaces/default/events",
            json!({"metadata": {"name": "e"}, "type": "Normal", "regarding": {"namespace": "default"}}),
            422,
            "Event \"e\" is invalid: eventTime: Required value",
        ),
        (
            "/api/v1/namespaces/default/events",
            json!({"metadata": {"name": "a/b"}, "involvedObject": {"namespace": "default"}}),
            422,
            "Event \"a/b\" is invalid: metadata.name: Invalid value: \"a/b\": may not contain '/'",
        ),
    ] {
        assert_eq!(client.post(path, &body).await.failure(), (code, words.to_owned()), "{body}");
    }
    // A name may begin with a digit.
    client.post(SERVICES, &with(service, "/metadata/name", json!("1a"))).await.ok();
}

#[tokio::test]
async fn methods_that_make_no_sense() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let refused = (405, "the server does not allow this method on the requested resource".to_owned());
    for (method, path) in [
        (Method::POST, "/api/v1/configmaps"),
        (Method::PUT, CONFIG_MAPS),
        (Method::DELETE, "/api/v1/configmaps"),
        (Method::DELETE, "/api/v1/namespaces/default/services/kubernetes/status"),
    ] {
        let answer = client.send(method.clone(), path, &[], "").await;
        assert_eq!(answer.failure(), refused, "{method} {path}");
    }
    client.get(&format!("{CONFIG_MAPS}/a")).await.ok();
}

#[tokio::test]
async fn warnings() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let endpoints = "299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\"";
    for path in ["/api/v1/endpoints", "/api/v1/namespaces/default/endpoints/none"] {
        assert_eq!(client.get(path).await.headers["warning"], endpoints, "{path}");
    }
    let service =
        json!({"metadata": {"name": "a"}, "spec": {"trafficDistribution": "PreferClose", "ports": [{"port": 80}]}});
    let spread = "299 - \"spec.trafficDistribution: \\\"PreferClose\\\" is deprecated; use \\\"PreferSameZone\\\"\"";
    // What is said of the object is said however closely its fields are looked at.
    for query in ["", "?fieldValidation=Ignore", "?fieldValidation=Strict"] {
        let answer = client.post(&format!("{SERVICES}{query}"), &service).await;
        assert_eq!(answer.headers["warning"], spread, "{query}");
        client.delete(&format!("{SERVICES}/a")).await.ok();
    }
    // Who changes nothing is told, too.
    client.post(SERVICES, &service).await.ok();
    assert_eq!(client.merge(&format!("{SERVICES}/a"), &json!({})).await.headers["warning"], spread);

    // An owner that is named twice is named once.
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "1", "controller": true});
    let owned = json!({"metadata": {"name": "owned", "ownerReferences": [owner, owner]}});
    let answer = client.post(CONFIG_MAPS, &owned).await;
    let twice = |when: &str| {
        format!(
            "299 - \".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in \
             1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: 1\""
        )
    };
    assert_eq!(answer.headers["warning"], twice(""));
    assert_eq!(answer.ok()["metadata"]["ownerReferences"], json!([owner]));
    let path = format!("{CONFIG_MAPS}/owned");
    let answer = client.merge(&path, &json!({"metadata": {"ownerReferences": [owner, owner]}})).await;
    assert_eq!(answer.headers["warning"], twice(" after mutating admission happens"));
    assert_eq!(answer.ok()["metadata"]["ownerReferences"], json!([owner]));

    // Questions are looked at as closely as what is stored.
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let review = json!({"spec": {"user": "u", "nonResourceAttributes": {"path": "/x", "verb": "get"}}});
    assert_eq!(client.post(reviews, &review).await.headers["warning"], "299 - \"unknown field \\\"spec.user\\\"\"");
    let strict = client.post(&format!("{reviews}?fieldValidation=Strict"), &review).await;
    let words = "SelfSubjectAccessReview in version \"v1\" cannot be handled as a SelfSubjectAccessReview: strict decoding \
                 error: unknown field \"spec.user\"";
    assert_eq!(strict.failure(), (400, words.to_owned()));
}

/// What is of another kind than the path says is told by the kind that it is.
#[tokio::test]
async fn other_kinds() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let scheme = "in scheme \"pkg/api/legacyscheme/scheme.go:30\"";
    for (path, body, words) in [
        (
            CONFIG_MAPS,
            json!({"apiVersion": "v1", "kind": "Pod"}),
            "Pod in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Pod) to (core.ConfigMap): unknown \
             conversion"
                .to_owned(),
        ),
        (
            CONFIG_MAPS,
            json!({"kind": "Foo"}),
            format!(
                "Foo in version \"v1\" cannot be handled as a ConfigMap: no kind \"Foo\" is registered for version \"v1\" \
                 {scheme}"
            ),
        ),
        (
            "/apis/authentication.k8s.io/v1/tokenreviews",
            json!({"kind": "X"}),
            format!(
                "X in version \"v1\" cannot be handled as a TokenReview: no kind \"X\" is registered for version \
                 \"authentication.k8s.io/v1\" {scheme}"
            ),
        ),
    ] {
        assert_eq!(client.post(path, &body).await.failure(), (400, words), "{body}");
    }
    let empty = client.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &json!({"spec": {}})).await.failure();
    let words = ".authorization.k8s.io \"\" is invalid: [spec.resourceAttributes: Invalid value: null: exactly one of \
                 nonResourceAttributes or resourceAttributes must be specified, spec.user: Invalid value: \"\": at least one \
                 of user or group must be specified]";
    assert_eq!(empty, (422, words.to_owned()));
}

#[tokio::test]
async fn what_go_always_writes() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let slice = json!({"metadata": {"name": "a"}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "deprecatedTopology": {"k": "v"}}]});
    assert_eq!(
        client.post(slices, &slice).await.ok()["endpoints"],
        json!([{"addresses": ["10.0.0.1"], "conditions": {}}])
    );
    let empty = client.post(slices, &json!({"metadata": {"name": "b"}, "addressType": "IPv4", "ports": []})).await.ok();
    assert_eq!((empty.get("endpoints"), empty.get("ports")), (Some(&Value::Null), Some(&Value::Null)));
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let made = client.post(pods, &pod).await.ok();
    assert_eq!(
        (&made["spec"]["priority"], &made["spec"]["preemptionPolicy"]),
        (&json!(0), &json!("PreemptLowerPriority"))
    );
    // A client that does not know of priorities does not take the pod's away.
    let put = with(made, "/spec/priority", Value::Null);
    assert_eq!(client.put(&format!("{pods}/a"), &put).await.ok()["spec"]["priority"], 0);
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let told = client.merge(&format!("{pods}/a/status"), &ready).await.ok();
    let condition = json!({"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": null});
    assert_eq!(told["status"]["conditions"], json!([condition]));
    assert_eq!(client.get(&format!("{pods}/a")).await.ok(), told);
}
