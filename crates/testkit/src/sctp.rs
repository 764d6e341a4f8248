//! SCTP's first two packets by raw sockets, so that kernels without SCTP can still be tested for what they forward.
//!
//! INIT asks, INIT ACK answers with the server's greeting in a parameter that the protocol would skip. The checksum is
//! right, since connection tracking looks at it.
//!
//! Deliberately not here: associations. Source: RFC 9260, sections 3 and 6.8.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// A parameter whose type tells receivers that do not know it to skip it silently.
const GREETING: [u8; 2] = [0x80, 0xfe];

/// A packet with one chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    kind: u8,
    /// The initiate tag of an INIT, repeated by its answer.
    tag: u32,
    pub(crate) greeting: String,
}

/// Sees every SCTP packet for the address it is bound to and from the peer it is connected with.
pub(crate) fn socket(address: IpAddr) -> std::io::Result<Socket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::RAW, Some(Protocol::from(132)))
}

/// Hears all SCTP for the address. As `UdpSocket`, since that is the type that knows whom a packet is from.
pub(crate) fn listen(address: IpAddr) -> std::io::Result<UdpSocket> {
    let socket = socket(address)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(SocketAddr::new(address, 0)))?;
    Ok(socket.into())
}

impl Packet {
    pub(crate) fn init(source: u16, destination: u16, tag: u32) -> Self {
        Self { source, destination, kind: INIT, tag, greeting: String::new() }
    }

    /// What a server at `id` says to the packet; nothing unless it is an INIT.
    pub(crate) fn answer(&self, id: &str, peer: IpAddr) -> Option<Self> {
        let peer = SocketAddr::new(peer, self.source);
        (self.kind == INIT).then(|| Self {
            source: self.destination,
            destination: self.source,
            kind: INIT_ACK,
            tag: self.tag,
            greeting: format!("{id} {} {peer}", self.destination),
        })
    }

    pub(crate) fn answers(&self, init: &Self) -> bool {
        self.kind == INIT_ACK && self.destination == init.source && self.tag == init.tag
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let mut packet = Vec::new();
        packet.extend(self.source.to_be_bytes());
        packet.extend(self.destination.to_be_bytes());
        packet.extend(if self.kind == INIT { 0 } else { self.tag }.to_be_bytes());
        packet.extend([0; 4]);
        let mut parameter = self.greeting.clone().into_bytes();
        let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
        let has_parameter = !parameter.is_empty();
        let unpadded = 20 + if has_parameter { 4 + parameter.len() } else { 0 };
        packet.extend([self.kind, 0]);
        packet.extend(length(unpadded));
        packet.extend(self.tag.to_be_bytes());
        packet.extend(65_536_u32.to_be_bytes());
        packet.extend([0, 1, 0, 1]);
        packet.extend(1_u32.to_be_bytes());
        if has_parameter {
            packet.extend(GREETING);
            packet.extend(length(4 + parameter.len()));
            parameter.resize(parameter.len().next_multiple_of(4), 0);
            packet.extend(parameter);
        }
        let checksum = crc32c(&packet).to_le_bytes();
        packet[8..12].copy_from_slice(&checksum);
        packet
    }

    /// Reads what a raw socket received: over IPv4 that begins with the IP header.
    pub(crate) fn read(mut bytes: &[u8], ipv4: bool) -> Option<Self> {
        if ipv4 {
            bytes = bytes.get(usize::from(bytes.first()? & 15) * 4..)?;
        }
        let half = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let kind = *bytes.get(12)?;
        let tag = if kind == INIT { word(16)? } else { word(4)? };
        let end = 12 + usize::from(half(14)?);
        let greeting = bytes.get(36..end).unwrap_or_default();
        let greeting = String::from_utf8_lossy(greeting).into_owned();
        Some(Self { source: half(0)?, destination: half(2)?, kind, tag, greeting })
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_read_back() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the check value of RFC 9260, appendix A's polynomial");
        let init = Packet::init(40_000, 36_412, 7);
        assert_eq!(Packet::read(&init.write(), false), Some(init));
        let init = Packet::init(40_000, 36_412, 7);
        let answer = init.answer("pod-a", "10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(answer.greeting, "pod-a 36412 10.0.0.1:40000");
        let read = Packet::read(&answer.write(), false).unwrap();
        assert!(read.answers(&init) && read.greeting == answer.greeting, "{read:?}");
        assert_eq!(read.answer("pod-a", "10.0.0.1".parse().unwrap()), None, "an answer is not answered");
    }
}
