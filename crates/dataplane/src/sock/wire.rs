//! Elements <-> the bytes of keys and values, as `bpf/layout.h` has them.
//!
//! Invariant: whoever changes a structure there changes it here and counts [`LAYOUT`] up, so that programs of one build
//! never read maps of another. Numbers are in the machine's byte order, addresses and ports in the network's; IPv4
//! addresses are written as `::ffff:a.b.c.d`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portolan_model::Protocol;
use portolan_model::forwarding::{Backend, Family, Frontend, Place};

use super::Led;
use super::element::{Head, Verdict};

/// Names the structures below; part of where the maps are pinned.
pub(super) const LAYOUT: u32 = 4;

const TCP: u8 = 6;
const UDP: u8 = 17;

pub(super) type FrontendKey = [u8; 20];
pub(super) type FrontendValue = [u8; 56];
pub(super) type SlotKey = [u8; 8];
pub(super) type SlotValue = [u8; 28];
pub(super) type MemberKey = [u8; 24];
pub(super) type AddressKey = [u8; 16];
pub(super) type CounterValue = [u8; 32];
pub(crate) type ConnectionValue = [u8; 48];
pub(super) type RefusedBindRecord = [u8; 24];

fn join<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut bytes = [0; N];
    let mut at = 0;
    for part in parts {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    bytes
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(part(bytes, at))
}

pub(super) fn address(address: IpAddr) -> AddressKey {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

pub(super) fn read_address(bytes: &AddressKey) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical()
}

fn endpoint(backend: Backend) -> [u8; 20] {
    join(&[&address(backend.address), &backend.port.to_be_bytes()])
}

fn read_endpoint(bytes: &[u8], at: usize) -> Backend {
    let address = read_address(&part(bytes, at));
    Backend { address, port: u16::from_be_bytes(part(bytes, at + 16)) }
}

/// `None` for a protocol that sockets' hooks do not see.
pub(super) fn frontend_key(frontend: Frontend) -> Option<FrontendKey> {
    let protocol = match frontend.protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
        Protocol::Sctp => return None,
    };
    let place = match frontend.place {
        Place::Address(address) => address,
        Place::Node(Family::V4) => Ipv4Addr::UNSPECIFIED.into(),
        Place::Node(Family::V6) => Ipv6Addr::UNSPECIFIED.into(),
    };
    Some(join(&[&address(place), &frontend.port.to_be_bytes(), &[protocol]]))
}

pub(super) fn protocol(number: u8) -> Option<Protocol> {
    match number {
        TCP => Some(Protocol::Tcp),
        UDP => Some(Protocol::Udp),
        _ => None,
    }
}

pub(super) fn read_frontend_key(bytes: &[u8], at: usize) -> Option<Frontend> {
    let Backend { address, port } = read_endpoint(bytes, at);
    let place = if address.is_unspecified() { Place::Node(Family::of(address)) } else { Place::Address(address) };
    Some(Frontend { place, protocol: protocol(bytes[at + 18])?, port })
}

pub(super) fn frontend_value(key: &FrontendKey, id: u32, head: Head) -> FrontendValue {
    let verdict: u32 = match head.verdict {
        Verdict::Forward => 0,
        Verdict::Reject => 1,
        Verdict::Leave => 2,
    };
    let numbers = [id, head.count, head.affinity_seconds, verdict].map(u32::to_ne_bytes);
    join(&[key, numbers.as_flattened(), &frontend_key(head.together).unwrap_or(*key)])
}

/// The id and the rest; `None` for what this program never writes.
pub(super) fn read_frontend_value(bytes: &FrontendValue) -> Option<(u32, Head)> {
    let verdict = match number(bytes, 32) {
        0 => Verdict::Forward,
        1 => Verdict::Reject,
        2 => Verdict::Leave,
        _ => return None,
    };
    let together = read_frontend_key(bytes, 36)?;
    let head = Head { verdict, count: number(bytes, 24), affinity_seconds: number(bytes, 28), together };
    Some((number(bytes, 20), head))
}

pub(super) fn slot_key(id: u32, index: u32) -> SlotKey {
    join(&[&id.to_ne_bytes(), &index.to_ne_bytes()])
}

pub(super) fn read_slot_key(bytes: &SlotKey) -> (u32, u32) {
    (number(bytes, 0), number(bytes, 4))
}

pub(super) fn slot_value(key: &SlotKey, backend: Backend) -> SlotValue {
    join(&[key, &endpoint(backend)])
}

pub(super) fn read_slot_value(bytes: &SlotValue) -> Backend {
    read_endpoint(bytes, 8)
}

pub(super) fn member_key(id: u32, backend: Backend) -> MemberKey {
    join(&[&id.to_ne_bytes(), &endpoint(backend)])
}

pub(super) fn read_member_key(bytes: &MemberKey) -> (u32, Backend) {
    (number(bytes, 0), read_endpoint(bytes, 4))
}

pub(super) fn read_counter(bytes: &CounterValue) -> Led {
    let [connections, datagrams, segments, bytes] = [0, 8, 16, 24].map(|at| u64::from_ne_bytes(part(bytes, at)));
    Led { connections, datagrams, segments, bytes }
}

/// A socket's peer, and the address and port it had asked for: never a [`Place::Node`], whatever led to the backend.
pub(crate) fn read_connection(bytes: &ConnectionValue) -> Option<(Backend, Frontend)> {
    Some((read_endpoint(bytes, 0), read_frontend_key(bytes, 20)?))
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RefusedBind {
    pub process: u32,
    pub protocol: Protocol,
    pub port: u16,
    pub command: String,
}

pub(super) fn read_refused_bind(bytes: &RefusedBindRecord) -> Option<RefusedBind> {
    let command = bytes[8..].split(|byte| *byte == 0).next().unwrap_or_default();
    Some(RefusedBind {
        process: number(bytes, 0),
        port: u16::from_ne_bytes(part(bytes, 4)),
        protocol: protocol(bytes[6])?,
        command: String::from_utf8_lossy(command).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frontend(place: Place, protocol: Protocol) -> Frontend {
        Frontend { place, protocol, port: 443 }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let addresses: [IpAddr; 2] = ["10.96.0.1".parse().unwrap(), "fd00:96::1".parse().unwrap()];
        let places = addresses.map(Place::Address).into_iter().chain(Family::BOTH.map(Place::Node));
        for (place, protocol) in places.zip([Protocol::Tcp, Protocol::Udp, Protocol::Tcp, Protocol::Udp]) {
            let key = frontend_key(frontend(place, protocol)).unwrap();
            assert_eq!(read_frontend_key(&key, 0), Some(frontend(place, protocol)));
            let together = frontend(Place::Node(Family::V6), Protocol::Udp);
            let head = Head { verdict: Verdict::Leave, count: 7, affinity_seconds: 10_800, together };
            assert_eq!(read_frontend_value(&frontend_value(&key, 9, head)), Some((9, head)));
        }
        for address in addresses {
            let backend = Backend { address, port: 8080 };
            let key = slot_key(3, 70_000);
            assert_eq!(read_slot_key(&key), (3, 70_000));
            assert_eq!(read_slot_value(&slot_value(&key, backend)), backend);
            assert_eq!(read_member_key(&member_key(3, backend)), (3, backend));
        }
    }

    #[test]
    fn a_refused_bind_names_who_and_what() {
        let mut record: RefusedBindRecord =
            join(&[&77u32.to_ne_bytes(), &30_080u16.to_ne_bytes(), &[TCP, 0], b"web\0"]);
        let refused = RefusedBind { process: 77, protocol: Protocol::Tcp, port: 30_080, command: "web".to_owned() };
        assert_eq!(read_refused_bind(&record), Some(refused));
        record[6] = 132;
        assert_eq!(read_refused_bind(&record), None);
    }

    #[test]
    fn sctp_has_no_hooks() {
        assert_eq!(frontend_key(frontend(Place::Node(Family::V4), Protocol::Sctp)), None);
    }
}
