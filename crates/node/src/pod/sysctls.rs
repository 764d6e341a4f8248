//! The sysctls that a pod asks for -> those that are set in its namespaces, or why it is not for this node.
//!
//! Invariant: nothing is set that another pod or the machine would feel. Source: `pkg/kubelet/sysctl`; its list is for
//! kernels from 4.15, and so is ours.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// # Errors
/// In the kubelet's words, for one that is not known to be safe, or not the pod's own.
pub(crate) fn sysctls(pod: &Pod) -> Result<BTreeMap<String, String>, String> {
    let Some(spec) = &pod.spec else { return Ok(BTreeMap::new()) };
    let mut all = BTreeMap::new();
    if spec.host_network != Some(true) {
        // As containerd does: a network of one's own has no privileged ports, and ping needs no privilege.
        all.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        all.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
    }
    for asked in spec.security_context.iter().flat_map(|security| security.sysctls.iter().flatten()) {
        let name = with_dots(&asked.name);
        let shared = if name.starts_with("net.") {
            (spec.host_network == Some(true)).then_some("net")
        } else {
            (spec.host_ipc == Some(true)).then_some("ipc")
        };
        if !SAFE.contains(&name.as_str()) {
            return Err(format!("forbidden sysctl: {name:?} not allowlisted"));
        }
        if let Some(namespace) = shared {
            return Err(format!("forbidden sysctl: {name:?} not allowed with host {namespace} enabled"));
        }
        all.insert(name, asked.value.clone());
    }
    Ok(all)
}

/// Parts of a name are separated by dots, or by slashes if the first separator is one.
fn with_dots(name: &str) -> String {
    let swap = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    match name.find(['.', '/']).map(|at| &name[at..=at]) {
        Some("/") => name.chars().map(swap).collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn asked(spec: Value, name: &str) -> Result<BTreeMap<String, String>, String> {
        let mut spec = spec;
        spec["containers"] = json!([]);
        spec["securityContext"] = json!({"sysctls": [{"name": name, "value": "1"}]});
        sysctls(&serde_json::from_value(json!({"spec": spec})).unwrap())
    }

    #[test]
    fn only_what_is_safe_and_the_pods_own_is_set() {
        for name in ["net.ipv4.tcp_syncookies", "net/ipv4/tcp_syncookies"] {
            assert_eq!(asked(json!({}), name).unwrap()["net.ipv4.tcp_syncookies"], "1", "{name}");
        }
        assert_eq!(
            asked(json!({}), "net.ipv4.ip_unprivileged_port_start").unwrap()["net.ipv4.ip_unprivileged_port_start"],
            "1"
        );
        for (spec, name, why) in [
            (json!({}), "kernel.msgmax", "forbidden sysctl: \"kernel.msgmax\" not allowlisted"),
            (json!({}), "kernel/core_pattern", "forbidden sysctl: \"kernel.core_pattern\" not allowlisted"),
            (json!({}), "/etc/passwd", "forbidden sysctl: \".etc.passwd\" not allowlisted"),
            (
                json!({"hostNetwork": true}),
                "net.ipv4.tcp_syncookies",
                "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled",
            ),
            (
                json!({"hostIPC": true}),
                "kernel.shm_rmid_forced",
                "forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host ipc enabled",
            ),
        ] {
            assert_eq!(asked(spec, name).unwrap_err(), why);
        }
    }
}
