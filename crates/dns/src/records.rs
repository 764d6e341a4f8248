//! One Service and its slices -> every record of it, with the answers to the usual questions built beforehand.
//!
//! Invariant: pure and total. A label that cannot be one costs its own record, never another's. Equal input gives equal
//! records, so that an event that changes nothing visible changes nothing here.
//!
//! Source: Kubernetes DNS-Based Service Discovery 1.1.0, §2.3 to §2.5. Beyond it, as clients of CoreDNS expect: SRV of
//! the Service's own name lists every port, and endpoints of Services with a ClusterIP have names too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portolan_model::{EndpointSlice, Service, ServiceType};

use crate::answer::{Answer, Builder};
use crate::wire::{Name, encode, push_label};

/// All the zone knows of one Service.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Records {
    pub(crate) shape: Shape,
    /// In order. The reverse lookup of each leads here.
    pub(crate) cluster_ips: Box<[IpAddr]>,
    /// In order: those without a hostname by address, then the others by hostname and address.
    pub(crate) endpoints: Box<[Host]>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Headless without a published endpoint: the namespace exists, the name does not (§2.4.1).
    Absent,
    Addresses(Box<Addresses>),
    /// ExternalName: the CNAME's target on the wire; `None` if it cannot be one.
    Alias(Option<Box<[u8]>>),
}

/// The answers at and below the Service's name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) a: Option<Answer>,
    pub(crate) aaaa: Option<Answer>,
    pub(crate) srv: Option<Answer>,
    /// `_port._protocol` on the wire, and its SRV answer; in order.
    pub(crate) ports: Box<[(Box<[u8]>, Answer)]>,
}

/// One published endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Host {
    /// Lower case; without one the endpoint is named after its address.
    pub(crate) hostname: Option<Box<str>>,
    pub(crate) address: IpAddr,
}

impl Host {
    /// The first label of the endpoint's name.
    pub(crate) fn label(&self) -> String {
        match &self.hostname {
            Some(hostname) => hostname.to_string(),
            None => self.address.to_string().replace(['.', ':'], "-"),
        }
    }
}

/// The address that `10-1-2-3` or `fd00--1` stands for, if it is written as [`Host::label`] would.
fn dashed(label: &str) -> Option<IpAddr> {
    let v4 = || label.replace('-', ".").parse().ok();
    let v6 = || label.replace('-', ":").parse().ok();
    let address: IpAddr = v4().map(IpAddr::V4).or_else(|| v6().map(IpAddr::V6))?;
    (Host { hostname: None, address }.label() == label).then_some(address)
}

/// One SRV record before its weight is known.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    /// `_port._protocol` on the wire; empty for a port without a name.
    port_label: Vec<u8>,
    /// The target's first label on the wire; empty if the target is the Service itself.
    host_label: Vec<u8>,
    port: u16,
}

/// SRV records in order, each with the addresses of its target.
type Targets = BTreeMap<Target, BTreeSet<IpAddr>>;

impl Records {
    /// `service_name` is the Service's whole name on the wire.
    pub(crate) fn new(service: &Service, slices: &[&EndpointSlice], service_name: &Name, ttl: u32) -> Self {
        if let ServiceType::ExternalName(target) = &service.service_type {
            // An address is no name to point to; Kubernetes accepts it and warns.
            let target = Some(target).filter(|target| target.parse::<IpAddr>().is_err() && !target.is_empty());
            let shape = Shape::Alias(target.and_then(|target| encode(target)).map(Vec::into_boxed_slice));
            return Self { shape, cluster_ips: Box::default(), endpoints: Box::default() };
        }
        let endpoints: Box<[Host]> = hosts(service, slices).into_iter().collect();
        let cluster_ips: BTreeSet<IpAddr> = service.cluster_ips.iter().copied().collect();
        let (targets, addresses) = if service.headless {
            (headless_targets(service, slices), endpoints.iter().map(|host| host.address).collect())
        } else {
            (cluster_ip_targets(service), cluster_ips.clone())
        };
        let shape = if service.headless && endpoints.is_empty() {
            Shape::Absent
        } else {
            Shape::Addresses(Box::new(Addresses::new(&addresses, &targets, service_name, ttl)))
        };
        Self { shape, cluster_ips: cluster_ips.into_iter().collect(), endpoints }
    }

    /// Whether a reply to one of the usual questions cannot hold all that there is to say.
    pub(crate) fn outgrow_every_reply(&self) -> bool {
        let Shape::Addresses(addresses) = &self.shape else { return false };
        let Addresses { a, aaaa, srv, ports } = &**addresses;
        let all = [a, aaaa, srv].into_iter().flatten().chain(ports.iter().map(|(_, answer)| answer));
        all.into_iter().any(Answer::outgrows_every_reply)
    }

    /// The addresses of the endpoint whose name begins with `label` (lower case); empty if there is none.
    pub(crate) fn endpoint(&self, label: &[u8]) -> impl Iterator<Item = IpAddr> {
        let text = std::str::from_utf8(label).unwrap_or_default();
        let unnamed = dashed(text).filter(|address| self.is_unnamed_endpoint(*address));
        let named = self.endpoints.partition_point(|host| host.hostname.as_deref() < Some(text));
        let named = self.endpoints[named..].iter().take_while(move |host| host.hostname.as_deref() == Some(text));
        unnamed.into_iter().chain(named.map(|host| host.address))
    }

    fn is_unnamed_endpoint(&self, address: IpAddr) -> bool {
        self.endpoints.binary_search(&Host { hostname: None, address }).is_ok()
    }

    /// The names of the endpoints with this address.
    pub(crate) fn labels_of(&self, address: IpAddr) -> impl Iterator<Item = String> {
        let unnamed = self.is_unnamed_endpoint(address).then_some(Host { hostname: None, address });
        let named = self.endpoints.partition_point(|host| host.hostname.is_none());
        let named = self.endpoints[named..].iter().filter(move |host| host.address == address);
        unnamed.into_iter().map(|host| host.label()).chain(named.map(Host::label))
    }
}

impl Addresses {
    fn new(addresses: &BTreeSet<IpAddr>, targets: &Targets, service_name: &Name, ttl: u32) -> Self {
        let of_family = |v6: bool| {
            let mut builder = Builder::new(ttl);
            addresses.iter().filter(|address| address.is_ipv6() == v6).for_each(|address| builder.address(*address));
            builder.build()
        };
        let all: Vec<_> = targets.iter().collect();
        let by_port = all.chunk_by(|a, b| a.0.port_label == b.0.port_label);
        let named = by_port.map(|same| (&same[0].0.port_label, same)).filter(|(label, _)| !label.is_empty());
        let ports = named
            .filter_map(|(label, same)| Some((label.clone().into(), srv(same, service_name, label.len(), ttl)?)))
            .collect();
        Self { a: of_family(false), aaaa: of_family(true), srv: srv(&all, service_name, 0, ttl), ports }
    }

    pub(crate) fn port(&self, label: &[u8]) -> Option<&Answer> {
        let index = self.ports.binary_search_by(|(port, _)| (**port).cmp(label)).ok()?;
        Some(&self.ports[index].1)
    }

    /// Whether some port's name ends in this protocol label: then it exists, though empty (RFC 8020).
    pub(crate) fn has_protocol(&self, label: &[u8]) -> bool {
        self.ports.iter().any(|(port, _)| port.ends_with(label))
    }
}

/// SRV records for a question that has `prefix` octets before the Service's name.
fn srv(targets: &[(&Target, &BTreeSet<IpAddr>)], service_name: &Name, prefix: usize, ttl: u32) -> Option<Answer> {
    // Two ports of one number, as for TCP and UDP, look the same from the Service's own name.
    let records: BTreeSet<(&[u8], u16)> =
        targets.iter().map(|(target, _)| (&*target.host_label, target.port)).collect();
    let mut glue: BTreeMap<&[u8], BTreeSet<IpAddr>> = BTreeMap::new();
    for (target, addresses) in targets {
        glue.entry(&target.host_label).or_default().extend(*addresses);
    }
    let mut builder = Builder::new(ttl);
    let weight = u16::try_from(100 / records.len().max(1)).unwrap_or(1).max(1);
    for (host_label, port) in records {
        builder.srv(weight, port, &[host_label, service_name.wire()].concat());
    }
    for (host_label, addresses) in glue {
        addresses.into_iter().for_each(|address| builder.glue(host_label, prefix, address));
    }
    builder.build()
}

fn port_label(name: &str, protocol: portolan_model::Protocol) -> Vec<u8> {
    let mut label = Vec::new();
    if !name.is_empty() && push_label(&mut label, &format!("_{name}")).is_some() {
        // Never fails: the protocols' names are short.
        let _ = push_label(&mut label, &format!("_{protocol}"));
    }
    label
}

fn cluster_ip_targets(service: &Service) -> Targets {
    let target = |port: &portolan_model::ServicePort| {
        let port_label = port_label(&port.name, port.protocol);
        (Target { port_label, host_label: Vec::new(), port: port.port }, service.cluster_ips.iter().copied().collect())
    };
    service.ports.iter().map(target).collect()
}

/// Every published endpoint with every port of its slice.
fn headless_targets(service: &Service, slices: &[&EndpointSlice]) -> Targets {
    let mut targets = Targets::new();
    for slice in slices {
        for host in published(service, slice) {
            let mut host_label = Vec::new();
            if push_label(&mut host_label, &host.label()).is_none() {
                continue;
            }
            for port in &slice.ports {
                let Some(number) = port.port else { continue };
                let port_label = port_label(&port.name, port.protocol);
                let target = Target { port_label, host_label: host_label.clone(), port: number };
                targets.entry(target).or_default().insert(host.address);
            }
        }
    }
    targets
}

fn hosts(service: &Service, slices: &[&EndpointSlice]) -> BTreeSet<Host> {
    slices.iter().flat_map(|slice| published(service, slice)).collect()
}

/// The slice's endpoints that are ready, or all if the Service publishes those that are not.
fn published<'s>(service: &Service, slice: &'s EndpointSlice) -> impl Iterator<Item = Host> + use<'s> {
    let all = service.publish_not_ready;
    slice.endpoints.iter().filter(move |endpoint| endpoint.ready || all).map(|endpoint| {
        let hostname = endpoint.hostname().map(str::to_ascii_lowercase);
        // A hostname that cannot be a label is as good as none.
        let hostname = hostname.filter(|text| push_label(&mut Vec::new(), text).is_some());
        Host { hostname: hostname.map(String::into_boxed_str), address: endpoint.address }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dashed_address_has_one_spelling() {
        for (label, address) in [("10-1-2-3", Some("10.1.2.3")), ("fd00--1", Some("fd00::1")), ("--1", Some("::1"))] {
            assert_eq!(dashed(label), address.map(|text| text.parse().unwrap()), "{label}");
        }
        for label in ["10-1-2", "10-1-2-03", "10.1.2.3", "fd00--0001", "", "-", "fd00:-1"] {
            assert_eq!(dashed(label), None, "{label}");
        }
    }
}
