//! Entries <-> elements of the kernel's maps.
//!
//! Invariant: reading back what was written gives the same entry. An element that no entry could have written reads as
//! `None`, and is then nobody's and goes with the next prune or audit.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use nlink::netlink::nftables::{ChainName, SetElement, SetElementData, Verdict};
use portolan_model::Protocol;
use portolan_model::forwarding::{Backend, Family, Frontend, Place};

use super::entries::{ChainKind, Entry, Key, Reach, Value};
use super::layout::{
    EXTERNAL_LOCAL_CHAIN, MASQUERADE_CHAIN, Map, NODE_PORT_EXTERNAL_LOCAL_CHAIN, OUTSIDE_BASE, REFUSE_CHAIN,
};

/// The map an entry is in.
pub(super) fn map_of(key: &Key) -> Map {
    let either = |frontend: &Frontend, address, node_port| match frontend.place {
        Place::Address(_) => address,
        Place::Node(_) => node_port,
    };
    match key {
        Key::Service(f) => either(f, Map::Services, Map::NodePorts),
        Key::External(f) => either(f, Map::External, Map::NodePortExternal),
        Key::Outside(f) => either(f, Map::Outside, Map::NodePortOutside),
        Key::Refused(f) => either(f, Map::Refused, Map::NodePortRefused),
        Key::Sticky(f) => either(f, Map::Sticky, Map::NodePortSticky),
        Key::Slot(f, ..) => either(f, Map::Slots, Map::NodePortSlots),
        Key::Restricted(_) => Map::Restricted,
        Key::Admitted(..) => Map::Admitted,
        Key::ClusterIp(_) => Map::ClusterIps,
        Key::Hairpin(_) => Map::Hairpin,
        Key::NodeAddress(_) => Map::NodeAddresses,
        Key::ServiceCidr(_) => Map::ServiceCidrs,
        Key::PodNetwork(_) => Map::PodNetworks,
    }
}

/// The element that stands for the entry.
pub(super) fn element((key, value): &Entry) -> SetElement {
    let element = element_key(key);
    let node_port = |f: &Frontend| matches!(f.place, Place::Node(_));
    match value {
        Value::Present => element,
        Value::Backend(backend) => element.value(SetElement::concat([address(backend.address), port(backend.port)])),
        Value::Drop => element.verdict(Verdict::Drop),
        Value::Refuse => goto(element, REFUSE_CHAIN),
        Value::Pick(pick) => goto(element, &ChainKind::Pick(*pick).to_string()),
        Value::Remember(seconds) => goto(element, &ChainKind::Remember(*seconds).to_string()),
        Value::Masquerade => jump(element, MASQUERADE_CHAIN),
        Value::LocalOnly => match key {
            Key::External(frontend) if node_port(frontend) => jump(element, NODE_PORT_EXTERNAL_LOCAL_CHAIN),
            _ => jump(element, EXTERNAL_LOCAL_CHAIN),
        },
    }
}

/// The key of an affinity element that was read back, and the backend it holds, if they are what this says.
pub(super) fn affinity(family: Family, element: &SetElement) -> Option<(IpAddr, Protocol, u16, Backend)> {
    let mut key = Reader(element.key());
    let _client = key.address(family)?;
    let (destination, protocol, port) = (key.address(family)?, key.protocol()?, key.port()?);
    let Some(SetElementData::Value(value)) = element.data() else { return None };
    let mut value = Reader(value);
    Some((destination, protocol, port, Backend { address: value.address(family)?, port: value.port()? }))
}

pub(super) fn entry(map: Map, family: Family, element: &SetElement) -> Option<Entry> {
    let mut key = Reader(element.key());
    let value = value(family, element)?;
    let frontend = |key: &mut Reader<'_>| {
        let place = Place::Address(key.address(family)?);
        Some(Frontend { place, protocol: key.protocol()?, port: key.port()? })
    };
    let node_port = |key: &mut Reader<'_>| {
        Some(Frontend { place: Place::Node(family), protocol: key.protocol()?, port: key.port()? })
    };
    let slot = |frontend: Frontend, index: u32| match index.checked_sub(OUTSIDE_BASE) {
        None => Key::Slot(frontend, Reach::Inside, index),
        Some(index) => Key::Slot(frontend, Reach::Outside, index),
    };
    let key = match map {
        Map::Services => Key::Service(frontend(&mut key)?),
        Map::NodePorts => Key::Service(node_port(&mut key)?),
        Map::External => Key::External(frontend(&mut key)?),
        Map::NodePortExternal => Key::External(node_port(&mut key)?),
        Map::Outside => Key::Outside(frontend(&mut key)?),
        Map::NodePortOutside => Key::Outside(node_port(&mut key)?),
        Map::Refused => Key::Refused(frontend(&mut key)?),
        Map::NodePortRefused => Key::Refused(node_port(&mut key)?),
        Map::Sticky => Key::Sticky(frontend(&mut key)?),
        Map::NodePortSticky => Key::Sticky(node_port(&mut key)?),
        Map::Slots => slot(frontend(&mut key)?, key.number()?),
        Map::NodePortSlots => slot(node_port(&mut key)?, key.number()?),
        Map::Restricted => Key::Restricted(frontend(&mut key)?),
        Map::Admitted => {
            let frontend = frontend(&mut key)?;
            let first = key.address(family)?;
            let tail = element.key_end().map_or(element.key(), |end| end);
            let last = Reader(&tail[tail.len().checked_sub(address_length(family))?..]).address(family)?;
            Key::Admitted(frontend, network(first, last)?)
        }
        Map::ClusterIps => Key::ClusterIp(key.address(family)?),
        Map::NodeAddresses => Key::NodeAddress(key.address(family)?),
        Map::Hairpin => Key::Hairpin(key.address(family)?),
        Map::ServiceCidrs | Map::PodNetworks => {
            let first = key.address(family)?;
            let last = element.key_end().map_or(Some(first), |end| Reader(end).address(family))?;
            let net = network(first, last)?;
            if map == Map::PodNetworks { Key::PodNetwork(net) } else { Key::ServiceCidr(net) }
        }
        Map::Affinity => return None,
    };
    Some((key, value))
}

fn value(family: Family, element: &SetElement) -> Option<Value> {
    match element.data() {
        None => Some(Value::Present),
        Some(SetElementData::Value(value)) => {
            let mut value = Reader(value);
            Some(Value::Backend(Backend { address: value.address(family)?, port: value.port()? }))
        }
        Some(SetElementData::Verdict(Verdict::Drop)) => Some(Value::Drop),
        Some(SetElementData::Verdict(Verdict::GotoTo(chain) | Verdict::JumpTo(chain))) => match chain.as_str() {
            REFUSE_CHAIN => Some(Value::Refuse),
            MASQUERADE_CHAIN => Some(Value::Masquerade),
            EXTERNAL_LOCAL_CHAIN | NODE_PORT_EXTERNAL_LOCAL_CHAIN => Some(Value::LocalOnly),
            name => Some(match ChainKind::parse(name)? {
                ChainKind::Pick(pick) => Value::Pick(pick),
                ChainKind::Remember(seconds) => Value::Remember(seconds),
            }),
        },
        _ => None,
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
        | Key::External(f)
        | Key::Outside(f)
        | Key::Refused(f)
        | Key::Sticky(f)
        | Key::Restricted(f) => SetElement::concat(frontend(f)),
        Key::Slot(f, Reach::Inside, index) => with(f, SetElement::mark(*index)),
        Key::Slot(f, Reach::Outside, index) => with(f, SetElement::mark(OUTSIDE_BASE + index)),
        Key::Admitted(f, net) => with(f, range(net)),
        Key::ClusterIp(at) | Key::NodeAddress(at) => address(*at),
        Key::Hairpin(at) => SetElement::concat([address(*at), address(*at)]),
        Key::ServiceCidr(net) | Key::PodNetwork(net) => range(net),
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

fn goto(element: SetElement, chain: &str) -> SetElement {
    verdict(element, chain, Verdict::GotoTo)
}

fn jump(element: SetElement, chain: &str) -> SetElement {
    verdict(element, chain, Verdict::JumpTo)
}

fn verdict(element: SetElement, chain: &str, kind: impl Fn(ChainName) -> Verdict) -> SetElement {
    let name = ChainName::new(chain).unwrap_or_else(|_| unreachable!("{chain} is a chain name"));
    element.verdict(kind(name))
}

fn address_length(family: Family) -> usize {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
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
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::entries::Pick;
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
        (frontends(), any::<[u8; 16]>(), any::<u8>(), 1u32..100_000, any::<bool>(), 0usize..14).prop_map(
            |(frontend, octets, bits, number, flag, kind)| {
                let other = match frontend.family() {
                    Family::V4 => IpAddr::from([octets[0], octets[1], octets[2], octets[3]]),
                    Family::V6 => IpAddr::from(octets),
                };
                let node_port = matches!(frontend.place, Place::Node(_));
                let reach = if flag { Reach::Outside } else { Reach::Inside };
                let pick = Value::Pick(Pick { node_port, reach, sticky: bits.is_multiple_of(2), count: number });
                let backend = Value::Backend(Backend { address: other, port: frontend.port });
                match kind {
                    0 => (Key::Service(frontend), pick),
                    1 => (Key::External(frontend), if flag { Value::Masquerade } else { Value::LocalOnly }),
                    2 => (Key::Outside(frontend), if flag { Value::Drop } else { pick }),
                    3 => (Key::Refused(frontend), if flag { Value::Drop } else { Value::Refuse }),
                    4 => (Key::Sticky(frontend), Value::Remember(number)),
                    5 | 6 => (Key::Slot(frontend, reach, number), backend),
                    7 if !node_port => (Key::Restricted(frontend), Value::Present),
                    8 if !node_port => (Key::Admitted(frontend, network_of(other, bits)), Value::Present),
                    9 => (Key::ClusterIp(other), Value::Present),
                    10 => (Key::Hairpin(other), Value::Present),
                    11 => (Key::NodeAddress(other), Value::Present),
                    12 => (Key::ServiceCidr(network_of(other, bits)), Value::Present),
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
        }
    }
}
