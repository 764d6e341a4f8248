//! Entries <-> elements of the kernel's maps.
//!
//! Invariant: reading back what was written gives the same entry. An element that no entry could have written reads as
//! `None`, and is then nobody's and goes with the next prune or audit.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use nlink::netlink::nftables::{ChainName, SetElement, SetElementData, Verdict};
use portolan_model::Protocol;
use portolan_model::forwarding::{Backend, Family, Frontend, MAX_BACKENDS, Place};

use super::entries::{ChainKind, Entry, Key, Reach, Value, part_of};
use super::maps::{Map, OUTSIDE_BASE, classes};
use super::networks::{mark, unmark};
use super::seats::{self, seat};

/// Elements of a message: an element list may have at most 64 KiB, and the longest element takes less than 160 bytes.
pub(super) const MESSAGE_ELEMENTS: usize = 400;

/// The map an entry is in.
pub(super) fn map_of(key: &Key) -> Map {
    let either = |frontend: &Frontend, address, node_port| match frontend.place {
        Place::Address(_) => address,
        Place::Node(_) => node_port,
    };
    match key {
        Key::Service(f) => either(f, Map::Services, Map::NodePorts),
        Key::Masqueraded(f) => either(f, Map::Masqueraded, Map::NodePortMasqueraded),
        Key::LocalOnly(f) => either(f, Map::LocalOnly, Map::NodePortLocalOnly),
        Key::Outside(f) => either(f, Map::Outside, Map::NodePortOutside),
        Key::Refused(f) => either(f, Map::Refused, Map::NodePortRefused),
        Key::Dropped(f) => either(f, Map::Dropped, Map::NodePortDropped),
        Key::Sticky(f) => either(f, Map::Sticky, Map::NodePortSticky),
        Key::Session(f) => either(f, Map::Sessions, Map::NodePortSessions),
        Key::Slot(f, ..) | Key::Seat(f, ..) => either(f, Map::Slots(part_of(f)), Map::NodePortSlots),
        Key::Restricted(_) => Map::Restricted,
        // Apart, since a network stands there as an address.
        Key::Admitted(_, net) if net.prefix_len() == net.max_prefix_len() => Map::Admitted,
        Key::Admitted(..) => Map::AdmittedNetworks,
        Key::Connections(f) => either(f, Map::Connections, Map::NodePortConnections),
        Key::Traffic(f) => either(f, Map::Traffic, Map::NodePortTraffic),
        Key::ClusterIp(_) => Map::ClusterIps,
        Key::Hairpin(_) => Map::Hairpin,
        Key::NodeAddress(_) => Map::NodeAddresses,
        Key::ServiceCidr(_) => Map::ServiceCidrs,
        Key::PodNetwork(_) => Map::PodNetworks,
        Key::KeepsAddress(_) => Map::KeepsAddress,
        Key::Echo(_) => Map::Echo,
    }
}

/// The element that stands for the entry.
pub(super) fn element((key, value): &Entry) -> SetElement {
    let element = element_key(key);
    match value {
        Value::Present => match key {
            Key::Echo(at) => element.value(address(*at)),
            _ => element,
        },
        Value::Backend(backend) => element.value(SetElement::concat([address(backend.address), port(backend.port)])),
        Value::Pick(pick) => element.value(class(ChainKind::Pick(*pick))),
        Value::Remember(remember) => element.value(class(ChainKind::Remember(*remember))),
        Value::Session(number) => element.value(SetElement::new(number.to_ne_bytes().into())),
    }
}

/// The element of [`classes`](super::maps::classes) that leads to the chain.
pub(super) fn class_element(kind: ChainKind) -> SetElement {
    let name = kind.to_string();
    let name = ChainName::new(&name).unwrap_or_else(|_| unreachable!("{name} is a chain name"));
    class(kind).verdict(Verdict::GotoTo(name))
}

/// The chain that an element of [`Map::Picks`] or [`Map::Remembers`] leads to, if it is the one of its class.
pub(super) fn classified(map: Map, element: &SetElement) -> Option<ChainKind> {
    let kind = ChainKind::of_class(Reader(element.key()).class()?).filter(|kind| classes(*kind) == map)?;
    let Some(SetElementData::Verdict(Verdict::GotoTo(chain))) = element.data() else { return None };
    (chain.as_str() == kind.to_string()).then_some(kind)
}

/// The most significant byte first, whatever the host's order: nobody calculates with a class, and `nft` prints it so.
fn class(kind: ChainKind) -> SetElement {
    SetElement::new(kind.class().to_be_bytes().into())
}

pub(super) fn entry(map: Map, family: Family, element: &SetElement) -> Option<Entry> {
    let mut key = Reader(element.key());
    let value = value(map, family, element)?;
    let frontend = |key: &mut Reader<'_>| {
        let place = Place::Address(key.address(family)?);
        Some(Frontend { place, protocol: key.protocol()?, port: key.port()? })
    };
    let node_port = |key: &mut Reader<'_>| {
        Some(Frontend { place: Place::Node(family), protocol: key.protocol()?, port: key.port()? })
    };
    let slot = |frontend: Frontend, index: u32| {
        let Value::Backend(backend) = &value else { return None };
        let seat = seat(backend);
        let (reach, index) = match index.checked_sub(OUTSIDE_BASE) {
            _ if index == seat => return Some(Key::Seat(frontend, Reach::Inside, seat)),
            _ if index == seat | seats::OUTSIDE => return Some(Key::Seat(frontend, Reach::Outside, seat)),
            None => (Reach::Inside, index),
            Some(index) => (Reach::Outside, index),
        };
        ((index as usize) < MAX_BACKENDS).then_some(Key::Slot(frontend, reach, index))
    };
    let key = match map {
        Map::Services => Key::Service(frontend(&mut key)?),
        Map::NodePorts => Key::Service(node_port(&mut key)?),
        Map::Masqueraded => Key::Masqueraded(frontend(&mut key)?),
        Map::NodePortMasqueraded => Key::Masqueraded(node_port(&mut key)?),
        Map::LocalOnly => Key::LocalOnly(frontend(&mut key)?),
        Map::NodePortLocalOnly => Key::LocalOnly(node_port(&mut key)?),
        Map::Outside => Key::Outside(frontend(&mut key)?),
        Map::NodePortOutside => Key::Outside(node_port(&mut key)?),
        Map::Refused => Key::Refused(frontend(&mut key)?),
        Map::NodePortRefused => Key::Refused(node_port(&mut key)?),
        Map::Dropped => Key::Dropped(frontend(&mut key)?),
        Map::NodePortDropped => Key::Dropped(node_port(&mut key)?),
        Map::Sticky => Key::Sticky(frontend(&mut key)?),
        Map::NodePortSticky => Key::Sticky(node_port(&mut key)?),
        Map::Sessions => Key::Session(frontend(&mut key)?),
        Map::NodePortSessions => Key::Session(node_port(&mut key)?),
        Map::Slots(part) => {
            let frontend = frontend(&mut key).filter(|frontend| part_of(frontend) == part)?;
            slot(frontend, key.number()?)?
        }
        Map::NodePortSlots => slot(node_port(&mut key)?, key.number()?)?,
        Map::Restricted => Key::Restricted(frontend(&mut key)?),
        Map::Admitted => Key::Admitted(frontend(&mut key)?, IpNet::from(key.address(family)?)),
        Map::AdmittedNetworks => Key::Admitted(frontend(&mut key)?, unmark(key.address(family)?)?),
        Map::Connections => Key::Connections(frontend(&mut key)?),
        Map::NodePortConnections => Key::Connections(node_port(&mut key)?),
        Map::Traffic => Key::Traffic(frontend(&mut key)?),
        Map::NodePortTraffic => Key::Traffic(node_port(&mut key)?),
        Map::ClusterIps => Key::ClusterIp(key.address(family)?),
        Map::NodeAddresses => Key::NodeAddress(key.address(family)?),
        Map::Hairpin => Key::Hairpin(key.address(family)?),
        Map::Echo => match element.data() {
            Some(SetElementData::Value(value)) if key.field() == Some([echo_protocol(family)]) => {
                Key::Echo(Reader(value).address(family)?)
            }
            _ => return None,
        },
        Map::ServiceCidrs | Map::PodNetworks | Map::KeepsAddress => {
            let first = key.address(family)?;
            let last = element.key_end().map_or(Some(first), |end| Reader(end).address(family))?;
            let net = network(first, last)?;
            match map {
                Map::PodNetworks => Key::PodNetwork(net),
                Map::KeepsAddress => Key::KeepsAddress(net),
                _ => Key::ServiceCidr(net),
            }
        }
        Map::Affinity | Map::Picks | Map::Remembers => return None,
    };
    Some((key, value))
}

/// What the element maps to, if that is what its map's elements map to.
fn value(map: Map, family: Family, element: &SetElement) -> Option<Value> {
    let mut data = match element.data() {
        Some(SetElementData::Value(value)) => Reader(value),
        _ => Reader(&[]),
    };
    match map {
        Map::Slots(_) | Map::NodePortSlots => {
            Some(Value::Backend(Backend { address: data.address(family)?, port: data.port()? }))
        }
        Map::Services | Map::NodePorts | Map::Outside | Map::NodePortOutside => {
            match ChainKind::of_class(data.class()?)? {
                ChainKind::Pick(pick) => Some(Value::Pick(pick)),
                ChainKind::Remember(_) => None,
            }
        }
        Map::Sticky | Map::NodePortSticky => match ChainKind::of_class(data.class()?)? {
            ChainKind::Remember(remember) => Some(Value::Remember(remember)),
            ChainKind::Pick(_) => None,
        },
        Map::Sessions | Map::NodePortSessions => Some(Value::Session(data.number()?)),
        _ => Some(Value::Present),
    }
}

fn element_key(key: &Key) -> SetElement {
    let frontend = |f: &Frontend| match f.place {
        Place::Address(at) => vec![address(at), SetElement::inet_proto(f.protocol.number()), port(f.port)],
        Place::Node(_) => vec![SetElement::inet_proto(f.protocol.number()), port(f.port)],
    };
    let with = |f: &Frontend, last: SetElement| SetElement::concat(frontend(f).into_iter().chain([last]));
    match key {
        Key::Service(f)
        | Key::Masqueraded(f)
        | Key::LocalOnly(f)
        | Key::Outside(f)
        | Key::Refused(f)
        | Key::Dropped(f)
        | Key::Sticky(f)
        | Key::Session(f)
        | Key::Connections(f)
        | Key::Traffic(f)
        | Key::Restricted(f) => SetElement::concat(frontend(f)),
        Key::Slot(f, Reach::Inside, index) => with(f, SetElement::mark(*index)),
        Key::Slot(f, Reach::Outside, index) => with(f, SetElement::mark(OUTSIDE_BASE + index)),
        Key::Seat(f, Reach::Inside, seat) => with(f, SetElement::mark(*seat)),
        Key::Seat(f, Reach::Outside, seat) => with(f, SetElement::mark(*seat | seats::OUTSIDE)),
        Key::Admitted(f, net) if net.prefix_len() == net.max_prefix_len() => with(f, address(net.addr())),
        Key::Admitted(f, net) => with(f, address(mark(net))),
        Key::ClusterIp(at) | Key::NodeAddress(at) => address(*at),
        Key::Hairpin(at) => SetElement::concat([address(*at), address(*at)]),
        Key::ServiceCidr(net) | Key::PodNetwork(net) | Key::KeepsAddress(net) => range(net),
        Key::Echo(at) => SetElement::inet_proto(echo_protocol(Family::of(*at))),
    }
}

/// ICMP's number in the family.
fn echo_protocol(family: Family) -> u8 {
    match family {
        Family::V4 => 1,
        Family::V6 => 58,
    }
}

fn address(address: IpAddr) -> SetElement {
    match address {
        IpAddr::V4(address) => SetElement::ipv4(address),
        IpAddr::V6(address) => SetElement::ipv6(address),
    }
}

fn port(port: u16) -> SetElement {
    SetElement::port(port)
}

fn range(net: &IpNet) -> SetElement {
    match net {
        IpNet::V4(net) => SetElement::ipv4_range(net.network(), net.broadcast()),
        IpNet::V6(net) => SetElement::ipv6_range(net.network(), net.broadcast()),
    }
}

/// The one network that spans exactly these addresses.
fn network(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let mut networks: Vec<IpNet> = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).take(2).map(IpNet::V4).collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).take(2).map(IpNet::V6).collect(),
        _ => return None,
    };
    let network = networks.pop()?;
    networks.is_empty().then_some(network)
}

/// Takes the fields off the front of a key, each of which fills whole words.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn field<const N: usize>(&mut self) -> Option<[u8; N]> {
        let field = self.0.first_chunk::<N>()?;
        self.0 = self.0.get(N.next_multiple_of(4)..).unwrap_or_default();
        Some(*field)
    }

    fn address(&mut self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.field::<4>().map(IpAddr::from),
            Family::V6 => self.field::<16>().map(IpAddr::from),
        }
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let [number] = self.field::<1>()?;
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.number() == number)
    }

    fn port(&mut self) -> Option<u16> {
        self.field::<2>().map(u16::from_be_bytes)
    }

    fn number(&mut self) -> Option<u32> {
        self.field::<4>().map(u32::from_ne_bytes)
    }

    fn class(&mut self) -> Option<u32> {
        self.field::<4>().map(u32::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::entries::{Pick, Remember, chain_of};
    use super::super::networks::cut;
    use super::*;

    fn frontends() -> impl Strategy<Value = Frontend> {
        let place = prop_oneof![
            any::<IpAddr>().prop_map(Place::Address),
            prop_oneof![Just(Family::V4), Just(Family::V6)].prop_map(Place::Node)
        ];
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
        (place, protocol, 1u16..).prop_map(|(place, protocol, port)| Frontend { place, protocol, port })
    }

    fn network_of(address: IpAddr, bits: u8) -> IpNet {
        let length = if address.is_ipv4() { bits % 33 } else { bits % 129 };
        IpNet::new(address, length).unwrap().trunc()
    }

    /// Every kind of entry, with keys and values that belong together.
    fn entries() -> impl Strategy<Value = Entry> {
        (frontends(), any::<[u8; 16]>(), any::<u8>(), 1u32..100_000, any::<bool>(), 0usize..19).prop_map(
            |(frontend, octets, bits, number, flag, kind)| {
                let other = match frontend.family() {
                    Family::V4 => IpAddr::from([octets[0], octets[1], octets[2], octets[3]]),
                    Family::V6 => IpAddr::from(octets),
                };
                let node_port = matches!(frontend.place, Place::Node(_));
                let reach = if flag { Reach::Outside } else { Reach::Inside };
                let pick = Value::Pick(Pick {
                    node_port,
                    reach,
                    sticky: bits.is_multiple_of(2),
                    part: part_of(&frontend),
                    count: number,
                });
                let of = Backend { address: other, port: frontend.port };
                let backend = Value::Backend(of);
                match kind {
                    0 => (Key::Service(frontend), pick),
                    1 => (if flag { Key::Masqueraded(frontend) } else { Key::LocalOnly(frontend) }, Value::Present),
                    2 => (Key::Outside(frontend), pick),
                    3 => (if flag { Key::Refused(frontend) } else { Key::Dropped(frontend) }, Value::Present),
                    4 => (Key::Sticky(frontend), Value::Remember(Remember { node_port, seconds: number })),
                    16 => (Key::Session(frontend), Value::Session(number)),
                    5 | 6 => (Key::Slot(frontend, reach, number), backend),
                    17 => (Key::Seat(frontend, reach, seat(&of)), backend),
                    7 if !node_port => (Key::Restricted(frontend), Value::Present),
                    8 if !node_port => {
                        let network = cut(&network_of(other, bits)).last().unwrap();
                        (Key::Admitted(frontend, network), Value::Present)
                    }
                    9 => (Key::ClusterIp(other), Value::Present),
                    10 => (Key::Hairpin(other), Value::Present),
                    11 => (Key::NodeAddress(other), Value::Present),
                    12 => (Key::ServiceCidr(network_of(other, bits)), Value::Present),
                    13 => (Key::KeepsAddress(network_of(other, bits)), Value::Present),
                    15 => (if flag { Key::Connections(frontend) } else { Key::Traffic(frontend) }, Value::Present),
                    14 => (Key::Echo(other), Value::Present),
                    _ => (Key::PodNetwork(network_of(other, bits)), Value::Present),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(written in entries()) {
            let (key, _) = &written;
            prop_assert_eq!(entry(map_of(key), key.family(), &element(&written)), Some(written));
            if let Some(chain) = chain_of(&written) {
                prop_assert_eq!(classified(classes(chain.kind), &class_element(chain.kind)), Some(chain.kind));
            }
        }
    }
}
