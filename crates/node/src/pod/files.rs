//! A pod -> the files that name it and its surroundings: `/etc/hosts`, `/etc/resolv.conf` and its host name.
//!
//! Source: `kubelet_pods.go`, `network/dns/dns.go`.

use std::fmt::Write;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// resolvers read no more (resolv.conf(5)).
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCH: usize = 32;

/// The pod's own host name: what the spec says, or the pod's name, cut to what a host name may be.
pub(crate) fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let name = spec.and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let mut name = name.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    name.truncate(63);
    name.trim_end_matches(['-', '.']).to_owned()
}

/// The name that others find the pod by through its headless Service, if it has one.
fn subdomain(pod: &Pod, spec: &PodSpec, domain: &str) -> Option<String> {
    let subdomain = spec.subdomain.as_ref().filter(|name| !name.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{}.{subdomain}.{namespace}.svc.{domain}", hostname(pod)))
}

/// `/etc/hosts` of a pod that has a network of its own.
pub(crate) fn hosts(pod: &Pod, ips: &[IpAddr], domain: &str) -> String {
    let mut text =
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                    fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned();
    let Some(spec) = &pod.spec else { return text };
    let own = hostname(pod);
    for ip in ips {
        // Writing to a String cannot fail, here and below.
        let _ = match subdomain(pod, spec, domain) {
            Some(name) => writeln!(text, "{ip}\t{name}\t{own}"),
            None => writeln!(text, "{ip}\t{own}"),
        };
    }
    for alias in spec.host_aliases.iter().flatten() {
        let _ = writeln!(
            text,
            "{}\t{}",
            alias.ip,
            alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
        );
    }
    text
}

#[derive(Default)]
struct Resolver {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(ToOwned::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => resolver.nameservers.extend(words.next()),
                Some("search" | "domain") => resolver.search = words.collect(),
                Some("options") => resolver.options.extend(words),
                _ => {}
            }
        }
        resolver
    }

    fn option(&mut self, name: &str, value: Option<&str>) {
        self.options.retain(|option| option.split(':').next() != Some(name));
        self.options.push(value.map_or_else(|| name.to_owned(), |value| format!("{name}:{value}")));
    }
}

/// `/etc/resolv.conf` by the pod's dnsPolicy and dnsConfig; `node` is the node's own.
pub(crate) fn resolv_conf(pod: &Pod, cluster_dns: &[IpAddr], domain: &str, node: &str) -> String {
    let spec = pod.spec.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let cluster = match spec.dns_policy.as_deref() {
        Some("Default") => false,
        Some("None") => false,
        Some("ClusterFirstWithHostNet") => true,
        // A pod in the node's network resolves as the node does, unless it says that it knows better.
        _ => spec.host_network != Some(true),
    };
    let mut resolver = match spec.dns_policy.as_deref() {
        Some("None") => Resolver::default(),
        _ => Resolver::parse(node),
    };
    if cluster {
        resolver.nameservers = cluster_dns.iter().map(ToString::to_string).collect();
        let mut search = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        search.append(&mut resolver.search);
        resolver.search = search;
        resolver.options.clear();
        resolver.option("ndots", Some("5"));
    }
    if let Some(config) = spec.dns_config {
        resolver.nameservers.extend(config.nameservers.into_iter().flatten());
        resolver.search.extend(config.searches.into_iter().flatten());
        for option in config.options.into_iter().flatten() {
            resolver.option(option.name.as_deref().unwrap_or_default(), option.value.as_deref());
        }
    }
    unique(&mut resolver.nameservers, MAX_NAMESERVERS);
    unique(&mut resolver.search, MAX_SEARCH);
    let mut text = String::new();
    for server in &resolver.nameservers {
        let _ = writeln!(text, "nameserver {server}");
    }
    for (word, values) in [("search", &resolver.search), ("options", &resolver.options)] {
        if !values.is_empty() {
            let _ = writeln!(text, "{word} {}", values.join(" "));
        }
    }
    text
}

fn unique(values: &mut Vec<String>, most: usize) {
    let mut seen = Vec::new();
    values.retain(|value| {
        let new = !seen.contains(value);
        seen.push(value.clone());
        new
    });
    values.truncate(most);
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    fn check(spec: Value, expected: Expect) {
        let node = "# the node's\nnameserver 192.0.2.1\nsearch example.org\noptions edns0\n";
        expected.assert_eq(&resolv_conf(&pod(spec), &["10.96.0.10".parse().unwrap()], "cluster.local", node));
    }

    #[test]
    fn resolv_conf_follows_the_policy() {
        check(
            json!({}),
            expect![[r"
                nameserver 10.96.0.10
                search shop.svc.cluster.local svc.cluster.local cluster.local example.org
                options ndots:5
            "]],
        );
        for node_like in [json!({"dnsPolicy": "Default"}), json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true})] {
            check(
                node_like,
                expect![[r"
                    nameserver 192.0.2.1
                    search example.org
                    options edns0
                "]],
            );
        }
        check(
            json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
            expect![[r"
                nameserver 10.96.0.10
                search shop.svc.cluster.local svc.cluster.local cluster.local example.org
                options ndots:5
            "]],
        );
        check(
            json!({"dnsPolicy": "None", "dnsConfig": {
                "nameservers": ["192.0.2.7"], "searches": ["a.test", "a.test"], "options": [{"name": "debug"}]}}),
            expect![[r"
                nameserver 192.0.2.7
                search a.test
                options debug
            "]],
        );
        check(
            json!({"dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}),
            expect![[r"
                nameserver 10.96.0.10
                search shop.svc.cluster.local svc.cluster.local cluster.local example.org
                options ndots:2
            "]],
        );
    }

    #[test]
    fn hosts_names_the_pod_and_its_aliases() {
        let pod = pod(json!({"subdomain": "web", "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]}));
        let text = hosts(&pod, &["10.244.1.7".parse().unwrap()], "cluster.local");
        let ours: Vec<_> = text.lines().skip(7).collect();
        assert_eq!(ours, ["10.244.1.7\tweb-0.web.shop.svc.cluster.local\tweb-0", "192.0.2.9\ta\tb"]);
    }

    #[test]
    fn a_long_name_is_cut_to_a_host_name() {
        let mut pod = pod(json!({}));
        pod.metadata.name = Some(format!("{}-x", "a".repeat(62)));
        assert_eq!(hostname(&pod), "a".repeat(62));
    }
}
