//! Sockets that were bound before a NodePort came.
#![allow(clippy::unwrap_used, reason = "tests unwrap")]

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpListener, UdpSocket};

use portolan_dataplane::holders;
use portolan_model::Protocol;
use portolan_testkit::{Netns, require_root};

#[test]
fn whoever_holds_a_port_is_named() {
    require_root!();
    let node = Netns::new();
    let sockets = node.run(|| {
        let everywhere = TcpListener::bind("[::]:30080").unwrap();
        let elsewhere = TcpListener::bind("127.0.0.1:30081").unwrap();
        let datagrams = UdpSocket::bind("0.0.0.0:30080").unwrap();
        let other = UdpSocket::bind("0.0.0.0:30099").unwrap();
        (everywhere, elsewhere, datagrams, other)
    });
    let of = |ports: &[(Protocol, u16)], addresses: &[IpAddr]| {
        let (ports, addresses): (BTreeSet<_>, _) = (ports.iter().copied().collect(), addresses.to_vec());
        node.block_on(|| async move { holders(&ports, &addresses).await.unwrap() })
    };
    let asked = [(Protocol::Tcp, 30_080), (Protocol::Tcp, 30_081), (Protocol::Udp, 30_080)];
    let found = of(&asked, &["192.0.2.1".parse().unwrap()]);
    let places: Vec<_> = found.iter().map(|holder| (holder.protocol, holder.at.to_string())).collect();
    assert_eq!(places, [(Protocol::Tcp, "[::]:30080".to_owned()), (Protocol::Udp, "0.0.0.0:30080".to_owned())]);
    assert!(found.iter().all(|holder| holder.process.as_ref().unwrap().0 == std::process::id()), "{found:?}");
    let found = of(&asked[1..2], &["127.0.0.1".parse().unwrap()]);
    assert_eq!(found.len(), 1, "an address that takes NodePorts: {found:?}");
    drop(sockets);
    assert_eq!(of(&asked, &[]), []);
}
