//! A container's `env` and `envFrom` -> the variables it starts with.
//!
//! Later beats earlier: Service variables, then `envFrom`, then `env`. Source: `kubelet_pods.go` (makeEnvironment),
//! `third_party/forked/golang/expansion`, `envvars/envvars.go`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, ResourceFieldSelector, Service};

use super::{bytes, milli};

/// The ConfigMaps and Secrets a pod names, as the agent fetched them.
pub(crate) trait Lookup {
    /// All keys of `kind` (`configmap` or `secret`) `name`; `None` if there is no such object.
    fn data(&self, kind: &'static str, name: &str) -> Option<&BTreeMap<String, Vec<u8>>>;
}

/// What the downward API may be asked for besides the pod's object.
pub(crate) struct ServiceEnv<'a> {
    pub(crate) pod_ips: &'a [IpAddr],
    pub(crate) host_ips: &'a [IpAddr],
    pub(crate) services: &'a [Service],
    /// The node's allocatable CPU (thousandths) and memory (bytes): what a container without a limit may use.
    pub(crate) allocatable: (u64, u64),
}

/// `$(NAME)` -> its value; an unknown name stays as it is, and `$$(NAME)` is a literal `$(NAME)`.
pub(crate) fn expand(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let name = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        if let Some(escaped) = after.strip_prefix('$') {
            out.push('$');
            rest = escaped;
        } else if let Some((name, tail)) = name {
            match value(name) {
                Some(value) => out.push_str(&value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// The container's variables in the order they were first named.
///
/// # Errors
/// With the kubelet's words for what is missing.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    context: &ServiceEnv<'_>,
    objects: &dyn Lookup,
) -> Result<Vec<(String, String)>, String> {
    let mut env = Variables::default();
    for (name, value) in service_variables(pod, context.services) {
        env.set(&name, value);
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(map), _) => ("configmap", &map.name, map.optional),
            (None, Some(secret)) => ("secret", &secret.name, secret.optional),
            (None, None) => continue,
        };
        match objects.data(kind, name) {
            Some(data) => {
                for (key, value) in data {
                    env.set(&format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
                }
            }
            None if optional == Some(true) => {}
            None => return Err(format!("{kind} \"{name}\" not found")),
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand(value, |name| env.get(name))),
            (None, Some(source)) => from_source(pod, container, context, objects, source)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            env.set(&variable.name, value);
        }
    }
    Ok(env.0)
}

#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    fn get(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }
}

fn from_source(
    pod: &Pod,
    container: &Container,
    context: &ServiceEnv<'_>,
    objects: &dyn Lookup,
    source: &EnvVarSource,
) -> Result<Option<String>, String> {
    if let Some(reference) = &source.field_ref {
        return field(pod, context, &reference.field_path).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_field(pod, Some(container), context, resource).map(Some);
    }
    let (kind, name, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(map), _) => ("configmap", &map.name, &map.key, map.optional),
        (None, Some(secret)) => ("secret", &secret.name, &secret.key, secret.optional),
        (None, None) => return Err("unsupported valueFrom".to_owned()),
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let word = if kind == "configmap" { "ConfigMap" } else { "Secret" };
    match objects.data(kind, name).map(|data| data.get(key)) {
        Some(Some(value)) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        _ if optional == Some(true) => Ok(None),
        Some(None) => Err(format!("couldn't find key {key} in {word} {namespace}/{name}")),
        None => Err(format!("{kind} \"{name}\" not found")),
    }
}

/// A field of the downward API.
pub(crate) fn field(pod: &Pod, context: &ServiceEnv<'_>, path: &str) -> Result<String, String> {
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    let join = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    let entry = |map: &Option<BTreeMap<String, String>>, prefix: &str| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    Ok(match path {
        "metadata.name" => text(&metadata.name),
        "metadata.namespace" => text(&metadata.namespace),
        "metadata.uid" => text(&metadata.uid),
        "metadata.labels" => lines(metadata.labels.as_ref()),
        "metadata.annotations" => lines(metadata.annotations.as_ref()),
        "spec.nodeName" => text(&spec.and_then(|spec| spec.node_name.clone())),
        "spec.serviceAccountName" => text(&spec.and_then(|spec| spec.service_account_name.clone())),
        "status.hostIP" => first(context.host_ips),
        "status.hostIPs" => join(context.host_ips),
        "status.podIP" => first(context.pod_ips),
        "status.podIPs" => join(context.pod_ips),
        _ => {
            let label = entry(&metadata.labels, "metadata.labels");
            let found = label.or_else(|| entry(&metadata.annotations, "metadata.annotations"));
            return found.ok_or_else(|| format!("unsupported fieldPath: {path}"));
        }
    })
}

/// A line for each entry, the value as Go writes a string.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let line = |(key, value): (&String, &String)| {
        let mut line = format!("{key}=\"");
        for letter in value.chars() {
            match letter {
                '"' | '\\' => line.extend(['\\', letter]),
                '\x07' => line.push_str("\\a"),
                '\x08' => line.push_str("\\b"),
                '\t' => line.push_str("\\t"),
                '\n' => line.push_str("\\n"),
                '\x0b' => line.push_str("\\v"),
                '\x0c' => line.push_str("\\f"),
                '\r' => line.push_str("\\r"),
                '\0'..' ' | '\x7f' => line.push_str(&format!("\\x{:02x}", u32::from(letter))),
                _ => line.push(letter),
            }
        }
        line + "\""
    };
    map.into_iter().flatten().map(line).collect::<Vec<_>>().join("\n")
}

/// A resource of the downward API: of the container that the selector names, or else of `own`.
pub(crate) fn resource_field(
    pod: &Pod,
    own: Option<&Container>,
    context: &ServiceEnv<'_>,
    selector: &ResourceFieldSelector,
) -> Result<String, String> {
    let named = selector.container_name.as_deref().unwrap_or_default();
    let of = if named.is_empty() {
        own
    } else {
        let spec = pod.spec.iter();
        let mut all = spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        all.find(|container| container.name == named)
    };
    let of = of.ok_or_else(|| format!("container {named} not found"))?;
    resource_value(of, &selector.resource, selector.divisor.as_ref(), context.allocatable)
}

fn resource_value(
    container: &Container,
    resource: &str,
    divisor: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
    (cpu, memory): (u64, u64),
) -> Result<String, String> {
    let (list, name) = resource.split_once('.').ok_or_else(|| format!("unsupported resource: {resource}"))?;
    let resources = container.resources.as_ref();
    let limit = resources.and_then(|r| r.limits.as_ref()?.get(name));
    let quantity = match list {
        "limits" => limit,
        "requests" => resources.and_then(|r| r.requests.as_ref()?.get(name)).or(limit),
        _ => return Err(format!("unsupported resource: {resource}")),
    };
    let fallback = |value: u64| if list == "limits" { value } else { 0 };
    let (value, unit) = match name {
        "cpu" => (quantity.and_then(milli).unwrap_or(fallback(cpu)), divisor.and_then(milli).unwrap_or(1000)),
        "memory" | "ephemeral-storage" => {
            (quantity.and_then(bytes).unwrap_or(fallback(memory)), divisor.and_then(bytes).unwrap_or(1))
        }
        _ => return Err(format!("unsupported resource: {resource}")),
    };
    // A divisor of 0 is the API's way to say that there is none.
    let unit = if unit == 0 { if name == "cpu" { 1000 } else { 1 } } else { unit };
    Ok(value.div_ceil(unit).to_string())
}

/// Variables that name Services, the Kubernetes API first, in the form Docker links had.
fn service_variables(pod: &Pod, services: &[Service]) -> Vec<(String, String)> {
    let own = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links) != Some(false);
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let api = (namespace, name) == ("default", "kubernetes");
        if (links && namespace == own) || (api && !(links && chosen.contains_key(name))) {
            chosen.insert(name, service);
        }
    }
    chosen.into_iter().flat_map(|(name, service)| variables_of(name, service)).collect()
}

fn variables_of(name: &str, service: &Service) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    let (Ok(address), Some(first)) = (ip.parse::<IpAddr>(), ports.first()) else { return Vec::new() };
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let name = upper(name);
    let host = if address.is_ipv6() { format!("[{ip}]") } else { ip.to_owned() };
    let protocol =
        |port: &k8s_openapi::api::core::v1::ServicePort| port.protocol.clone().unwrap_or_else(|| "TCP".into());
    let url = |port| format!("{}://{host}:{}", protocol(port).to_lowercase(), port.port);
    let mut all =
        vec![(format!("{name}_SERVICE_HOST"), ip.to_owned()), (format!("{name}_SERVICE_PORT"), first.port.to_string())];
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            all.push((format!("{name}_SERVICE_PORT_{}", upper(port_name)), port.port.to_string()));
        }
    }
    all.push((format!("{name}_PORT"), url(first)));
    for port in ports {
        let prefix = format!("{name}_PORT_{}_{}", port.port, protocol(port));
        all.push((prefix.clone(), url(port)));
        all.push((format!("{prefix}_PROTO"), protocol(port).to_lowercase()));
        all.push((format!("{prefix}_PORT"), port.port.to_string()));
        all.push((format!("{prefix}_ADDR"), ip.to_owned()));
    }
    all
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Default)]
    struct Objects(BTreeMap<(&'static str, String), BTreeMap<String, Vec<u8>>>);

    impl Lookup for Objects {
        fn data(&self, kind: &'static str, name: &str) -> Option<&BTreeMap<String, Vec<u8>>> {
            self.0.get(&(kind, name.to_owned()))
        }
    }

    fn env(container: Value, services: Value) -> Result<String, String> {
        let mut container = container;
        container["name"] = json!("c");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web-0", "namespace": "shop", "uid": "u1", "labels": {"app": "web"}},
            "spec": {"containers": [container], "nodeName": "node-1", "serviceAccountName": "default"}
        }))
        .unwrap();
        let services: Vec<Service> = serde_json::from_value(services).unwrap();
        let data = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.as_bytes().to_vec())]);
        let objects = Objects(BTreeMap::from([
            (("configmap", "settings".to_owned()), data("colour", "red")),
            (("secret", "keys".to_owned()), data("token", "s3cret")),
        ]));
        let context = ServiceEnv {
            pod_ips: &["10.244.1.7".parse().unwrap()],
            host_ips: &["10.203.0.11".parse().unwrap()],
            services: &services,
            allocatable: (2000, 4 << 30),
        };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let all = environment(&pod, container, &context, &objects)?;
        Ok(all.into_iter().map(|(name, value)| format!("{name}={value}\n")).collect())
    }

    #[test]
    fn expansion() {
        let value = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expanded) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("cost: 5$", "cost: 5$"),
            ("", ""),
        ] {
            assert_eq!(expand(text, value), expanded, "{text}");
        }
    }

    #[test]
    fn values_refer_to_earlier_ones_fields_resources_and_objects() {
        let container = json!({
            "envFrom": [{"prefix": "CFG_", "configMapRef": {"name": "settings"}}],
            "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}},
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)$(CFG_colour)$(LATER)"},
                {"name": "LATER", "value": "x"},
                {"name": "A", "value": "again"},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}}},
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
                {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "no", "key": "k", "optional": true}}}
            ]
        });
        expect![[r"
            CFG_colour=red
            A=again
            B=1red$(LATER)
            LATER=x
            POD=web-0
            IP=10.244.1.7
            APP=web
            CPU=2
            MEM=64
            TOKEN=s3cret
        "]]
        .assert_eq(&env(container, json!([])).unwrap());
    }

    #[test]
    fn what_is_missing_is_named() {
        let from = |source: Value| env(json!({"env": [{"name": "X", "valueFrom": source}]}), json!([])).unwrap_err();
        assert_eq!(from(json!({"configMapKeyRef": {"name": "no", "key": "k"}})), "configmap \"no\" not found");
        assert_eq!(
            from(json!({"configMapKeyRef": {"name": "settings", "key": "k"}})),
            "couldn't find key k in ConfigMap shop/settings"
        );
        assert_eq!(from(json!({"fieldRef": {"fieldPath": "spec.x"}})), "unsupported fieldPath: spec.x");
        let all = env(json!({"envFrom": [{"secretRef": {"name": "no"}}]}), json!([])).unwrap_err();
        assert_eq!(all, "secret \"no\" not found");
    }

    #[test]
    fn services_of_the_namespace_and_the_api_are_named() {
        let services = json!([
            {"metadata": {"namespace": "default", "name": "kubernetes"},
             "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]}},
            {"metadata": {"namespace": "shop", "name": "back-end"},
             "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 53, "protocol": "UDP"}]}},
            {"metadata": {"namespace": "shop", "name": "headless"},
             "spec": {"clusterIP": "None", "ports": [{"port": 80}]}},
            {"metadata": {"namespace": "other", "name": "far"},
             "spec": {"clusterIP": "10.96.0.8", "ports": [{"port": 80}]}}
        ]);
        expect![[r"
            BACK_END_SERVICE_HOST=10.96.0.9
            BACK_END_SERVICE_PORT=53
            BACK_END_PORT=udp://10.96.0.9:53
            BACK_END_PORT_53_UDP=udp://10.96.0.9:53
            BACK_END_PORT_53_UDP_PROTO=udp
            BACK_END_PORT_53_UDP_PORT=53
            BACK_END_PORT_53_UDP_ADDR=10.96.0.9
            KUBERNETES_SERVICE_HOST=10.96.0.1
            KUBERNETES_SERVICE_PORT=443
            KUBERNETES_SERVICE_PORT_HTTPS=443
            KUBERNETES_PORT=tcp://10.96.0.1:443
            KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443
            KUBERNETES_PORT_443_TCP_PROTO=tcp
            KUBERNETES_PORT_443_TCP_PORT=443
            KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1
        "]]
        .assert_eq(&env(json!({}), services).unwrap());
    }
}
