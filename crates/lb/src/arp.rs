//! ARP frames on Ethernet: who is asked for, the reply, and the announcement nobody asked for.
//!
//! Invariant: total on any bytes. Pure. Source: RFC 826; RFC 5227 §3 for announcements.

use std::net::Ipv4Addr;

pub(crate) type Mac = [u8; 6];
/// Without the padding that the link adds.
pub(crate) type Frame = [u8; 42];

const BROADCAST: Mac = [0xff; 6];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// EtherType ARP; hardware Ethernet, protocol IPv4, and the lengths of their addresses.
const ETHER_TYPE: [u8; 2] = [0x08, 0x06];
const ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];

/// "Who has `target`? Tell `sender`."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) sender_mac: Mac,
    /// 0.0.0.0 when a host probes whether the address is free.
    pub(crate) sender: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
}

/// The request in a frame, if it is one that somebody should reply to.
pub(crate) fn parse(frame: &[u8]) -> Option<Request> {
    let frame: &Frame = frame.first_chunk()?;
    let is_request = frame[12..14] == ETHER_TYPE
        && frame[14..20] == ETHERNET_IPV4
        && u16::from_be_bytes([frame[20], frame[21]]) == REQUEST;
    let sender_mac: Mac = frame[22..28].try_into().ok()?;
    let address = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
    let request = Request { sender_mac, sender: address(28), target: address(38) };
    // A group cannot be replied to, and an announcement asks for nothing.
    (is_request && sender_mac[0] & 1 == 0 && request.sender != request.target).then_some(request)
}

pub(crate) fn reply(mac: Mac, request: &Request) -> Frame {
    build(request.sender_mac, mac, REPLY, request.target, (request.sender_mac, request.sender))
}

/// "I have `address`", once as request and once as reply: some hosts heed only the one, some only the other.
pub(crate) fn announcements(mac: Mac, address: Ipv4Addr) -> [Frame; 2] {
    [
        build(BROADCAST, mac, REQUEST, address, ([0; 6], address)),
        build(BROADCAST, mac, REPLY, address, (BROADCAST, address)),
    ]
}

fn build(to: Mac, mac: Mac, operation: u16, sender: Ipv4Addr, target: (Mac, Ipv4Addr)) -> Frame {
    let mut frame = [0; 42];
    let parts: [&[u8]; 9] = [
        &to,
        &mac,
        &ETHER_TYPE,
        &ETHERNET_IPV4,
        &operation.to_be_bytes(),
        &mac,
        &sender.octets(),
        &target.0,
        &target.1.octets(),
    ];
    let mut at = 0;
    for part in parts {
        frame[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

    fn request() -> Frame {
        build(BROADCAST, OTHER, REQUEST, CLIENT, ([0; 6], ADDRESS))
    }

    #[test]
    fn a_request_is_replied_to_its_sender() {
        let asked = parse(&request()).unwrap();
        assert_eq!(asked, Request { sender_mac: OTHER, sender: CLIENT, target: ADDRESS });
        let reply = reply(ME, &asked);
        assert_eq!(reply[..14], [&OTHER[..], &ME, &[8, 6]].concat());
        assert_eq!(reply[14..22], [0, 1, 8, 0, 6, 4, 0, 2]);
        assert_eq!(reply[22..], [&ME[..], &[192, 0, 2, 1], &OTHER, &[192, 0, 2, 9]].concat());
        // A probe by a host that has no address yet is a request as well (RFC 5227 §2.1.1).
        assert!(parse(&build(BROADCAST, OTHER, REQUEST, Ipv4Addr::UNSPECIFIED, ([0; 6], ADDRESS))).is_some());
    }

    #[test]
    fn what_is_no_request_is_not_replied_to() {
        let mut group = request();
        group[22] |= 1;
        for frame in [&group[..], &reply(ME, &parse(&request()).unwrap()), &request()[..41], &[]] {
            assert_eq!(parse(frame), None);
        }
        for announcement in announcements(ME, ADDRESS) {
            assert_eq!(parse(&announcement), None);
        }
        for at in 12..22 {
            let mut spoilt = request();
            spoilt[at] ^= 0x80;
            assert_eq!(parse(&spoilt), None, "octet {at}");
        }
        assert!(parse(&[&request()[..], &[0; 18]].concat()).is_some(), "padding to the least frame");
    }
}
