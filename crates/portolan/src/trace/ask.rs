//! The words of the command line -> what is asked.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use portolan_model::Protocol;

/// Who connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Address(IpAddr),
    /// The node itself.
    Node,
    Pod {
        namespace: String,
        name: String,
    },
}

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) to: Place,
    pub(super) protocol: Option<Transport>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// With port 0 for an echo request.
    Address(SocketAddr),
    Service {
        namespace: String,
        name: String,
        /// Its name or number; not needed where there is but one.
        port: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
    Sctp,
    Icmp,
}

impl Transport {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        }
    }

    /// `None` for what no Service has ports of.
    pub(super) fn protocol(self) -> Option<Protocol> {
        match self {
            Self::Tcp => Some(Protocol::Tcp),
            Self::Udp => Some(Protocol::Udp),
            Self::Sctp => Some(Protocol::Sctp),
            Self::Icmp => None,
        }
    }

    /// As in the IP header.
    pub(super) fn number(self, ipv6: bool) -> u8 {
        match (self, ipv6) {
            (Self::Tcp, _) => 6,
            (Self::Udp, _) => 17,
            (Self::Sctp, _) => 132,
            (Self::Icmp, false) => 1,
            (Self::Icmp, true) => 58,
        }
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "node" {
            return Ok(Self::Node);
        }
        if let Some(pod) = text.strip_prefix("pod/") {
            let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
            return Ok(Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() });
        }
        let address = text.parse().map_err(|_| "want an IP address, `node`, or `pod/NAMESPACE/NAME`".to_owned())?;
        Ok(Self::Address(address))
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || "want ADDRESS:PORT or svc/NAMESPACE/NAME:PORT, with /udp, /sctp or /icmp behind it".to_owned();
        let (place, protocol) = match text.rsplit_once('/') {
            Some((place, "tcp")) => (place, Some(Transport::Tcp)),
            Some((place, "udp")) => (place, Some(Transport::Udp)),
            Some((place, "sctp")) => (place, Some(Transport::Sctp)),
            Some((place, "icmp")) => (place, Some(Transport::Icmp)),
            _ => (text, None),
        };
        if let Some(service) = place.strip_prefix("svc/") {
            let (path, port) = match service.split_once(':') {
                Some((path, port)) => (path, Some(port.to_owned())),
                None => (service, None),
            };
            let (namespace, name) = path.split_once('/').unwrap_or(("default", path));
            let to = Place::Service { namespace: namespace.to_owned(), name: name.to_owned(), port };
            return Ok(Self { to, protocol });
        }
        let address = match protocol {
            Some(Transport::Icmp) => place.parse().map(|address| SocketAddr::new(address, 0)).map_err(|_| usage())?,
            _ => place.parse().map_err(|_| usage())?,
        };
        Ok(Self { to: Place::Address(address), protocol: Some(protocol.unwrap_or(Transport::Tcp)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_understood() {
        let service = |namespace: &str, name: &str, port: Option<&str>, protocol| Destination {
            to: Place::Service {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                port: port.map(str::to_owned),
            },
            protocol,
        };
        let address = |text: &str, protocol| Destination { to: Place::Address(text.parse().unwrap()), protocol };
        for (text, wanted) in [
            ("10.96.0.1:80", address("10.96.0.1:80", Some(Transport::Tcp))),
            ("10.96.0.10:53/udp", address("10.96.0.10:53", Some(Transport::Udp))),
            ("[fd00::1]:53/sctp", address("[fd00::1]:53", Some(Transport::Sctp))),
            ("10.96.0.1/icmp", address("10.96.0.1:0", Some(Transport::Icmp))),
            ("fd00::1/icmp", address("[fd00::1]:0", Some(Transport::Icmp))),
            ("svc/web", service("default", "web", None, None)),
            ("svc/web:http", service("default", "web", Some("http"), None)),
            ("svc/kube-system/kube-dns:53/udp", service("kube-system", "kube-dns", Some("53"), Some(Transport::Udp))),
        ] {
            assert_eq!(text.parse::<Destination>(), Ok(wanted), "{text}");
        }
        for text in ["10.96.0.1", "10.96.0.1:80/quic", "web:80", ""] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
        assert_eq!("node".parse(), Ok(Source::Node));
        assert_eq!("::1".parse(), Ok(Source::Address("::1".parse().unwrap())));
        assert_eq!("pod/web-0".parse(), Ok(Source::Pod { namespace: "default".into(), name: "web-0".into() }));
        assert_eq!("pod/shop/web-0".parse(), Ok(Source::Pod { namespace: "shop".into(), name: "web-0".into() }));
        assert!("web-0".parse::<Source>().is_err());
    }
}
