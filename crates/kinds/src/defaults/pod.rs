//! Defaults of a pod, and of the pod in a template.

use serde_json::Value;

use super::singular_and_plural;
use crate::look::{Look, child, items_mut, map_of, set_default};

/// Lists of containers in a pod's spec.
const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// What only a pod has; a template's pod gets it when it is made.
pub(super) fn pod(object: &mut Value) {
    let spec = child(object, "spec");
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            requests_from_limits(container);
        }
    }
    set_default(spec, "enableServiceLinks", true);
    pod_spec(spec);
    // As every version of Kubernetes takes it.
    if spec.int("terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0) {
        map_of(spec).insert("terminationGracePeriodSeconds".into(), 1.into());
    }
    if let Some(status) = object.get_mut("status") {
        singular_and_plural(status, "podIP", "podIPs", Some("ip"));
        singular_and_plural(status, "hostIP", "hostIPs", Some("ip"));
        // Nothing is made of nothing.
        let empty = |field: &str| status.text(field).is_empty();
        let drop: Vec<&str> = ["podIP", "hostIP"].into_iter().filter(|field| empty(field)).collect();
        for field in drop {
            map_of(status).remove(field);
        }
    }
}

pub(super) fn template(template: &mut Value) {
    child(template, "metadata");
    pod_spec(child(template, "spec"));
}

fn pod_spec(spec: &mut Value) {
    set_default(spec, "dnsPolicy", "ClusterFirst");
    set_default(spec, "restartPolicy", "Always");
    set_default(spec, "terminationGracePeriodSeconds", 30);
    set_default(spec, "schedulerName", "default-scheduler");
    child(spec, "securityContext");
    let (name, old) = (spec.text("serviceAccountName").to_owned(), spec.text("serviceAccount").to_owned());
    match (name.is_empty(), old.is_empty()) {
        (false, _) => _ = map_of(spec).insert("serviceAccount".into(), name.into()),
        (true, false) => _ = map_of(spec).insert("serviceAccountName".into(), old.into()),
        (true, true) => {}
    }
    let host_network = spec.flag("hostNetwork");
    for list in CONTAINERS {
        for item in items_mut(spec, list) {
            container(item, host_network && list != "ephemeralContainers");
        }
    }
    for item in items_mut(spec, "volumes") {
        volume(item);
    }
}

fn requests_from_limits(container: &mut Value) {
    let resources = child(container, "resources");
    if let Value::Object(limits) = &resources["limits"] {
        let limits = limits.clone();
        let requests = map_of(child(resources, "requests"));
        for (name, quantity) in limits {
            requests.entry(name).or_insert(quantity);
        }
    }
}

fn container(container: &mut Value, host_ports: bool) {
    let policy = pull_policy(container.text("image"));
    set_default(container, "imagePullPolicy", policy);
    set_default(container, "terminationMessagePath", "/dev/termination-log");
    set_default(container, "terminationMessagePolicy", "File");
    child(container, "resources");
    for port in items_mut(container, "ports") {
        set_default(port, "protocol", "TCP");
        if host_ports
            && port.int("hostPort").unwrap_or(0) == 0
            && let Some(number) = port.int("containerPort").filter(|number| *number != 0)
        {
            map_of(port).insert("hostPort".into(), number.into());
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name) {
            set_default(probe, "timeoutSeconds", 1);
            set_default(probe, "periodSeconds", 10);
            set_default(probe, "successThreshold", 1);
            set_default(probe, "failureThreshold", 3);
            handler(probe);
        }
    }
    if let Some(lifecycle) = container.get_mut("lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.get_mut(name) {
                handler(hook);
            }
        }
    }
    for variable in items_mut(container, "env") {
        if let Some(reference) = variable.get_mut("valueFrom").and_then(|from| from.get_mut("fieldRef")) {
            set_default(reference, "apiVersion", "v1");
        }
    }
}

fn handler(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet") {
        set_default(get, "path", "/");
        set_default(get, "scheme", "HTTP");
    }
    if let Some(grpc) = handler.get_mut("grpc") {
        set_default(grpc, "service", "");
    }
}

/// `Always` for images whose tag is `latest`, named or not.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let last = name.rsplit('/').next().unwrap_or_default();
    let (last, tag) = last.rsplit_once(':').map_or((last, None), |(last, tag)| (last, Some(tag)));
    let above = name.rsplit_once('/').map_or("", |(above, _)| above);
    // Of what is no name of an image nothing is known, its tag least of all. Its first part may be a host.
    let is_name = above.split('/').skip(1).chain([last]).all(is_repository);
    match tag {
        _ if !is_name => "IfNotPresent",
        Some("latest") => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

/// Small letters and digits, with single separators between them.
fn is_repository(part: &str) -> bool {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    part.chars().all(known) && edge(part.chars().next()) && edge(part.chars().next_back()) && !part.contains("..")
}

fn volume(volume: &mut Value) {
    if volume.as_object().is_some_and(|map| map.keys().all(|key| key == "name")) {
        child(volume, "emptyDir");
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source) {
            set_default(source, "defaultMode", 0o644);
        }
    }
    if let Some(host) = volume.get_mut("hostPath") {
        set_default(host, "type", "");
    }
    if let Some(downward) = volume.get_mut("downwardAPI") {
        downward_items(downward);
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in items_mut(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken") {
                set_default(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = source.get_mut("downwardAPI") {
                downward_items(downward);
            }
        }
    }
}

fn downward_items(downward: &mut Value) {
    for item in items_mut(downward, "items") {
        if let Some(reference) = item.get_mut("fieldRef") {
            set_default(reference, "apiVersion", "v1");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pull_policies() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("reg:5000/a/b", "Always"),
            ("Host.example/a", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("a@sha256:0123", "IfNotPresent"),
            ("Nginx", "IfNotPresent"),
            ("a/B:latest", "IfNotPresent"),
            ("", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn no_pod_has_less_than_a_second_to_end() {
        let mut object = json!({"spec": {"terminationGracePeriodSeconds": -5}});
        pod(&mut object);
        assert_eq!(object["spec"]["terminationGracePeriodSeconds"], 1);
        let mut object = json!({"spec": {"terminationGracePeriodSeconds": -5}});
        template(&mut object);
        assert_eq!(object["spec"]["terminationGracePeriodSeconds"], -5);
    }
}
