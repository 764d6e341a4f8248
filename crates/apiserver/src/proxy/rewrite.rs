//! A link that a backend gave -> the same by way of the proxy. Pure.

/// How the client came here.
pub(super) struct Links {
    /// The host that it asked for, and the backend's own.
    pub(super) hosts: [String; 2],
    /// The path up to `/proxy`.
    pub(super) prefix: String,
}

impl Links {
    /// A link to either of the hosts and from its root is led through the proxy, by its path alone; every other one is as it
    /// was.
    pub(super) fn rewritten(&self, link: &str) -> String {
        let Self { hosts, prefix } = self;
        let (scheme, after) = link.split_once("://").map_or(("", link), |(scheme, after)| (scheme, after));
        let has_host = !scheme.is_empty() || link.starts_with("//");
        let after = if scheme.is_empty() { after.strip_prefix("//").unwrap_or(after) } else { after };
        let path_at = after.find(['/', '?', '#']).unwrap_or(after.len());
        let (own, path) = if has_host { after.split_at(path_at) } else { ("", link) };
        let is_other = has_host && hosts.iter().all(|host| own != host);
        if is_other || !path.starts_with('/') || scheme.contains(['/', '?', '#']) {
            return link.to_owned();
        }
        let is_led = path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let prefix = if is_led { "" } else { prefix };
        format!("{prefix}{path}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links() {
        let links = Links { hosts: ["api:6443".into(), "10.0.0.1:80".into()], prefix: "/api/v1/nodes/n/proxy".into() };
        for (link, expected) in [
            ("/login?next=/", "/api/v1/nodes/n/proxy/login?next=/"),
            ("/", "/api/v1/nodes/n/proxy/"),
            ("https://api:6443/x", "/api/v1/nodes/n/proxy/x"),
            ("http://10.0.0.1:80/x", "/api/v1/nodes/n/proxy/x"),
            ("http://10.0.0.1:81/x", "http://10.0.0.1:81/x"),
            ("//api:6443/x", "/api/v1/nodes/n/proxy/x"),
            ("/api/v1/nodes/n/proxy/x", "/api/v1/nodes/n/proxy/x"),
            ("https://example.org/x", "https://example.org/x"),
            ("//example.org/x", "//example.org/x"),
            ("next.html", "next.html"),
            ("?page=2", "?page=2"),
            ("#top", "#top"),
            ("mailto:x", "mailto:x"),
            ("", ""),
        ] {
            assert_eq!(links.rewritten(link), expected, "{link}");
        }
    }
}
