//! `rows.txt` -> sections of rows.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use portolan_dataplane::{LocalTraffic, NodePortAddresses, ProxyConfig};
use portolan_model::{Event, Snapshot};
use portolan_testkit::Transport;

use crate::lab;

/// Rows under one configuration.
pub(crate) struct Section {
    /// The line in brackets, and how many there were before.
    pub header: &'static str,
    pub number: usize,
    pub config: ProxyConfig,
    /// The zone that node-1 is in, where it is not the one of its object.
    zone: Option<&'static str>,
    pub rows: Vec<Row>,
}

#[derive(Debug)]
pub(crate) struct Row {
    pub text: &'static str,
    pub source: &'static str,
    pub transport: Transport,
    pub destination: SocketAddr,
    /// Tried in turn with the one above.
    pub also: Vec<SocketAddr>,
    pub expected: Expected,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Backends {
        /// `machine:port`, with `~` behind it where the source address is replaced.
        each: BTreeSet<String>,
        /// The client stays with one of them.
        stays: bool,
    },
    /// One of these, and the same at every destination. Whose address it sees, and what else the destinations after the
    /// first have, other rows say.
    Alike(BTreeSet<String>),
    Reject,
    Drop,
    Pass,
    /// A ping is answered.
    Echo,
}

pub(crate) fn sections() -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in include_str!("rows.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(header) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            sections.push(Section::new(header, sections.len()).unwrap_or_else(|| panic!("not a section: {line}")));
        } else {
            let section = sections.last_mut().unwrap_or_else(|| panic!("a row before any section: {line}"));
            section.rows.push(Row::parse(line).unwrap_or_else(|| panic!("not a row: {line}")));
        }
    }
    sections
}

impl Section {
    fn new(header: &'static str, number: usize) -> Option<Self> {
        let (mut config, mut zone) = (lab::config(), None);
        for word in header.split_whitespace() {
            match word.split_once('=').unwrap_or((word, "")) {
                ("masquerade-all", "") => config.masquerade_all = true,
                ("counters", "") => config.counters = true,
                ("pods", how) => {
                    config.local = match how.split_once(':').unwrap_or((how, "")) {
                        ("unknown", "") => LocalTraffic::ClusterCidr(Vec::new()),
                        ("of-node", "") => LocalTraffic::NodeCidr,
                        ("by-link", link) => LocalTraffic::BridgeInterface(link.to_owned()),
                        ("by-links", prefix) => LocalTraffic::InterfaceNamePrefix(prefix.to_owned()),
                        _ => return None,
                    };
                }
                ("node-ports", networks) => {
                    let networks = networks.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
                    config.node_port_addresses = NodePortAddresses::In(networks);
                }
                ("mark-bit", bit) => config.masquerade_bit = bit.parse().ok()?,
                ("zone", name) => zone = Some(name),
                _ => return None,
            }
        }
        Some(Self { header, number, config, zone, rows: Vec::new() })
    }

    /// The objects, with what the section changes in them.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        lab::apply(&mut snapshot, lab::OBJECTS);
        if let Some(zone) = self.zone {
            let mut node = snapshot.node("node-1").unwrap().clone();
            node.zone = Some(zone).filter(|zone| *zone != "none").map(Into::into);
            snapshot.apply(Event::Node(node));
        }
        snapshot
    }
}

impl Row {
    fn parse(text: &'static str) -> Option<Self> {
        let (flow, expected) = text.split_once("=>")?;
        let mut flow = flow.split_whitespace();
        let source = flow.next()?;
        let transport = match flow.next()? {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            "sctp" => Transport::Sctp,
            "ping" => Transport::Ping,
            _ => return None,
        };
        let mut destinations = flow.next()?.split(',').map(|destination| match transport {
            Transport::Ping => Some(SocketAddr::new(destination.parse().ok()?, 0)),
            _ => destination.parse().ok(),
        });
        let destination = destinations.next()??;
        let also = destinations.collect::<Option<Vec<_>>>()?;
        let backends = |text: &str, stays| {
            let each: BTreeSet<_> = text.split_whitespace().map(str::to_owned).collect();
            each.iter().all(|backend| backend.contains(':')).then_some(Expected::Backends { each, stays })
        };
        let expected = match expected.trim() {
            "reject" => Expected::Reject,
            "drop" => Expected::Drop,
            "pass" => Expected::Pass,
            "echo" => Expected::Echo,
            expected => match expected.split_once(" of ") {
                Some(("one", of)) => backends(of, true)?,
                Some(("the same", of)) => Expected::Alike(of.split_whitespace().map(str::to_owned).collect()),
                _ => backends(expected, false)?,
            },
        };
        // Several destinations are for being compared.
        let is_alike = matches!(expected, Expected::Alike(_));
        (is_alike != also.is_empty()).then_some(Self { text, source, transport, destination, also, expected })
    }

    /// The client's own address.
    pub(crate) fn client(&self) -> IpAddr {
        lab::address(self.source, self.destination.is_ipv6())
    }

    /// The row with each of its destinations alone.
    pub(crate) fn each(&self) -> impl Iterator<Item = Self> {
        let destinations = std::iter::once(self.destination).chain(self.also.iter().copied());
        destinations.map(|destination| Self { destination, also: Vec::new(), expected: self.expected.clone(), ..*self })
    }

    /// Whether what it meets with follows from what it met with before.
    pub(crate) fn stays(&self) -> bool {
        matches!(self.expected, Expected::Backends { stays: true, .. } | Expected::Alike(_))
    }

    /// Whether the client is on the node under test, with a socket that can be led.
    pub(crate) fn is_local(&self) -> bool {
        let here = matches!(self.source, "node-1" | "pod-x" | "pod-a" | "pod-b");
        here && matches!(self.transport, Transport::Tcp | Transport::Udp)
    }

    /// By which the client's packets come to the node; none for the node's own.
    pub(crate) fn interface(&self) -> Option<&'static str> {
        match self.source {
            "node-1" => None,
            "node-2" | "pod-c" | "outside" => Some("eth0"),
            pod => Some(pod),
        }
    }
}

impl Expected {
    /// Which backends, whatever they see; none if it is something else.
    pub(crate) fn backends(&self) -> BTreeSet<String> {
        match self {
            Self::Backends { each, .. } => {
                each.iter().map(|backend| backend.trim_end_matches('~').to_owned()).collect()
            }
            _ => BTreeSet::new(),
        }
    }

    /// The same backends without anything between the client and them.
    pub(crate) fn directly(&self) -> Option<Self> {
        let Self::Backends { each, stays } = self else { return None };
        let each = each.iter().map(|backend| backend.trim_end_matches('~').to_owned()).collect();
        Some(Self::Backends { each, stays: *stays })
    }
}

/// A backend as the rows write it.
pub(crate) fn backend(machine: &str, port: u16, masqueraded: bool) -> String {
    format!("{machine}:{port}{}", if masqueraded { "~" } else { "" })
}
