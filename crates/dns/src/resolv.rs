//! The text of a `resolv.conf` -> the servers, search list and options in it.
//!
//! Invariant: total; lines that make no sense are passed over, as every resolver does. Source: resolv.conf(5).

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

const DNS_PORT: u16 = 53;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    pub(crate) servers: Vec<SocketAddr>,
    pub(crate) search: Vec<String>,
    /// Names with fewer dots are tried with the search list first.
    pub(crate) ndots: usize,
}

/// The name servers of a `resolv.conf`, in order and each once.
#[must_use]
pub fn resolvers(resolv_conf: &str) -> Vec<SocketAddr> {
    parse(resolv_conf).servers
}

pub(crate) fn parse(text: &str) -> ResolvConf {
    let mut conf = ResolvConf { servers: Vec::new(), search: Vec::new(), ndots: 1 };
    for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                let server = words.next().and_then(server).filter(|server| !conf.servers.contains(server));
                conf.servers.extend(server);
            }
            // The last list counts.
            Some("search" | "domain") => conf.search = words.map(str::to_owned).collect(),
            Some("options") => {
                for option in words {
                    if let Some(ndots) = option.strip_prefix("ndots:").and_then(|ndots| ndots.parse().ok()) {
                        conf.ndots = usize::min(ndots, 15);
                    }
                }
            }
            _ => {}
        }
    }
    conf
}

/// `fe80::1%2` names its link by number; a link's name cannot be looked up here and is passed over with the address.
fn server(text: &str) -> Option<SocketAddr> {
    match text.split_once('%') {
        None => Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, DNS_PORT)),
        Some((address, scope)) => {
            Some(SocketAddrV6::new(address.parse().ok()?, DNS_PORT, 0, scope.parse().ok()?).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pod_is_given_is_understood() {
        let conf = parse(
            "# made by hand\nnameserver 10.96.0.10\nsearch default.svc.cluster.local svc.cluster.local cluster.local\n\
             options ndots:5 edns0\n; end\nnameserver nonsense\nnameserver 10.96.0.10\nnameserver fe80::1%3\n",
        );
        assert_eq!(conf.servers, ["10.96.0.10:53".parse().unwrap(), "[fe80::1%3]:53".parse().unwrap()]);
        assert_eq!(conf.search, ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
        assert_eq!(conf.ndots, 5);
        assert_eq!(parse("").ndots, 1);
        assert_eq!(resolvers("nameserver 1.1.1.1"), ["1.1.1.1:53".parse().unwrap()]);
    }
}
