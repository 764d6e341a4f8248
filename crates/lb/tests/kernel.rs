//! Nodes and a client on one bridge, each in its own network namespace: who answers ARP for an external address.
//!
//! The address plan: 10.9.0.1 is the client, 10.9.0.11 to .13 are the nodes, 10.9.0.200 and up are external.

#![allow(clippy::unwrap_used, reason = "a test's helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, MsgFlags, bind, recv, send};
use nlink::netlink::link::BridgeLink;
use nlink::netlink::{Connection, Route};
use portolan_lb::{Error, L2Announcer, owner};
use portolan_model::{Delta, Event, Node, Service, ServiceId, ServiceType, Snapshot, TrafficPolicy};
use portolan_testkit::{Netns, cable, require_root};
use socket2::{Domain, Protocol, Socket, Type};

type Mac = [u8; 6];

const NODES: [&str; 3] = ["a", "b", "c"];
/// For something that will happen.
const PATIENCE: Duration = Duration::from_secs(10);
/// For something that must not.
const SILENCE: Duration = Duration::from_millis(300);

struct Lab {
    _fabric: Netns,
    client: Netns,
    nodes: BTreeMap<&'static str, (Netns, Mac)>,
    snapshot: Snapshot,
}

impl Lab {
    fn new() -> Self {
        let (fabric, client) = (Netns::new(), Netns::new());
        fabric.configure(|route| async move {
            route.add_link(BridgeLink::new("br0")).await?;
            route.set_link_up("br0").await
        });
        let plug = |netns: &Netns, port: &str, address: String| {
            cable((&fabric, port), (netns, "eth0"));
            let port = port.to_owned();
            fabric.configure(move |route| async move { route.set_link_master(port, "br0").await });
            netns.address("eth0", address.parse().unwrap());
        };
        plug(&client, "client", "10.9.0.1/24".into());
        let nodes = NODES.iter().enumerate().map(|(index, name)| {
            let netns = Netns::new();
            plug(&netns, name, format!("10.9.0.{}/24", 11 + index));
            let mac = netns.run(|| link("eth0").addr().unwrap());
            (*name, (netns, mac))
        });
        let nodes = nodes.collect();
        let mut lab = Self { _fabric: fabric, client, nodes, snapshot: Snapshot::default() };
        for name in NODES {
            lab.snapshot.apply(Event::Node(node(name, true)));
        }
        lab
    }

    fn announcer(&self, name: &str) -> L2Announcer {
        let announcer = self.nodes[name].0.run(|| L2Announcer::open("eth0", name).unwrap());
        announcer.set_alive_until(Instant::now() + Duration::from_secs(600));
        announcer
    }

    fn mac(&self, name: &str) -> Mac {
        self.nodes[name].1
    }

    /// Which node's hardware address the client has for an address.
    fn neighbour(&self, address: Ipv4Addr) -> Option<Mac> {
        let entries = self.client.block_on(|| async {
            let route = Connection::<Route>::new().unwrap();
            route.get_neighbors_by_name("eth0").await.unwrap()
        });
        let entry = entries.into_iter().find(|entry| entry.destination() == Some(&IpAddr::V4(address)))?;
        entry.lladdr().and_then(|lladdr| lladdr.try_into().ok())
    }

    fn wait_for_neighbour(&self, address: Ipv4Addr, expected: Mac) {
        let deadline = Instant::now() + PATIENCE;
        while self.neighbour(address) != Some(expected) {
            assert!(Instant::now() < deadline, "{address} is at {:?}, not {expected:?}", self.neighbour(address));
            std::thread::yield_now();
        }
    }
}

fn link(name: &str) -> LinkAddr {
    let mut found = getifaddrs().unwrap().filter(|found| found.interface_name == name);
    found.find_map(|found| found.address.and_then(|address| address.as_link_addr().copied())).unwrap()
}

fn node(name: &str, ready: bool) -> Node {
    Node {
        name: name.into(),
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        zone: None,
        ready,
        excluded_from_load_balancers: false,
        going_away: false,
    }
}

fn service(address: Ipv4Addr) -> Event {
    Event::Service(Service {
        id: ServiceId::new("default", &format!("at-{address}")),
        service_type: ServiceType::LoadBalancer,
        cluster_ips: Vec::new(),
        headless: false,
        external_ips: Vec::new(),
        load_balancer_ips: vec![address.into()],
        ports: Vec::new(),
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        source_ranges: Vec::new(),
        publish_not_ready: false,
        foreign_proxy: false,
    })
}

/// Everything, as after the first list.
fn whole(snapshot: &Snapshot) -> Delta {
    Delta {
        services: snapshot.services().map(|service| service.id.clone()).collect(),
        nodes: snapshot.nodes().map(|node| node.name.clone()).collect(),
        service_cidrs: false,
    }
}

/// The client's own ARP, so that nothing is remembered between questions.
struct Probe {
    socket: Socket,
    mac: Mac,
}

impl Probe {
    fn new(client: &Netns) -> Self {
        client.run(|| {
            let arp = i32::from(0x0806u16.to_be());
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(arp))).unwrap();
            let link = link("eth0");
            bind(socket.as_raw_fd(), &link).unwrap();
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            Self { socket, mac: link.addr().unwrap() }
        })
    }

    /// Every station that says it has the address, until nobody has said anything for a while.
    fn who_has(&self, address: Ipv4Addr) -> BTreeSet<Mac> {
        let mut question = [&[0xff; 6][..], &self.mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &self.mac].concat();
        question.extend([10, 9, 0, 1, 0, 0, 0, 0, 0, 0]);
        question.extend(address.octets());
        send(self.socket.as_raw_fd(), &question, MsgFlags::empty()).unwrap();
        let (mut answers, mut frame) = (BTreeSet::new(), [0; 64]);
        let deadline = Instant::now() + SILENCE;
        while Instant::now() < deadline {
            let Ok(length) = recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) else { break };
            let is_reply_to_us = length >= 42 && frame[..6] == self.mac && frame[20..22] == [0, 2];
            if is_reply_to_us && frame[28..32] == address.octets() {
                answers.insert(frame[22..28].try_into().unwrap());
            }
        }
        answers
    }
}

fn external(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, last)
}

#[test]
fn exactly_the_owner_answers() {
    require_root!();
    let mut lab = Lab::new();
    let addresses: Vec<Ipv4Addr> = (200..206).map(external).collect();
    for address in &addresses {
        lab.snapshot.apply(service(*address));
    }
    let mut announcers: Vec<_> = NODES.iter().map(|name| lab.announcer(name)).collect();
    let probe = Probe::new(&lab.client);
    assert_eq!(probe.who_has(addresses[0]), BTreeSet::new(), "before anything is known");
    announcers.iter_mut().for_each(|announcer| announcer.apply(&lab.snapshot, &whole(&lab.snapshot)));
    for address in addresses {
        let owner = owner(&lab.snapshot, address.into()).unwrap();
        assert_eq!(probe.who_has(address), BTreeSet::from([lab.mac(&owner)]), "{address}");
    }
    assert_eq!(probe.who_has(external(250)), BTreeSet::new());
}

#[test]
fn what_a_client_remembers_follows_the_owner() {
    require_root!();
    let mut lab = Lab::new();
    let address = external(200);
    lab.snapshot.apply(service(address));
    let mut announcers: BTreeMap<_, _> = NODES.iter().map(|name| (*name, lab.announcer(name))).collect();
    announcers.values_mut().for_each(|announcer| announcer.apply(&lab.snapshot, &whole(&lab.snapshot)));
    let first = owner(&lab.snapshot, address.into()).unwrap();
    // Anything the client sends makes its kernel ask who has the address.
    lab.client.run(|| UdpSocket::bind("10.9.0.1:0").unwrap().send_to(b"", (address, 9)).unwrap());
    lab.wait_for_neighbour(address, lab.mac(&first));
    // The power cut: the owner is gone without a word, and the others learn that it is not ready.
    drop(announcers.remove(&*first));
    let delta = lab.snapshot.apply(Event::Node(node(&first, false)));
    announcers.values_mut().for_each(|announcer| announcer.apply(&lab.snapshot, &delta));
    let second = owner(&lab.snapshot, address.into()).unwrap();
    assert_ne!(first, second);
    lab.wait_for_neighbour(address, lab.mac(&second));
}

#[test]
fn a_fenced_node_is_silent_until_it_is_alive_again() {
    require_root!();
    let mut lab = Lab::new();
    let address = external(200);
    lab.snapshot.apply(service(address));
    let owner = owner(&lab.snapshot, address.into()).unwrap();
    let mut announcer = lab.announcer(&owner);
    announcer.apply(&lab.snapshot, &whole(&lab.snapshot));
    let probe = Probe::new(&lab.client);
    assert_eq!(probe.who_has(address).len(), 1);
    // Nobody says that the time has come: it passes.
    announcer.set_alive_until(Instant::now() + Duration::from_millis(1));
    let silence = Instant::now() + Duration::from_secs(5);
    while !probe.who_has(address).is_empty() {
        assert!(Instant::now() < silence, "it still answers");
    }
    assert_eq!(announcer.owned(), [IpAddr::V4(address)]);
    // While it was fenced another station took the address; coming back takes it again, unasked.
    let other = lab.nodes.keys().find(|name| ***name != *owner).unwrap();
    lab.client.run(|| UdpSocket::bind("10.9.0.1:0").unwrap().send_to(b"", (address, 9)).unwrap());
    lab.nodes[other].0.address("eth0", "10.9.0.200/24".parse().unwrap());
    lab.wait_for_neighbour(address, lab.mac(other));
    announcer.set_alive_until(Instant::now() + Duration::from_secs(600));
    lab.wait_for_neighbour(address, lab.mac(&owner));
}

#[test]
fn an_address_that_is_taken_away_is_not_answered_for() {
    require_root!();
    let mut lab = Lab::new();
    let (kept, gone) = (external(200), external(201));
    // One node, so that it owns everything.
    for name in &NODES[1..] {
        lab.snapshot.apply(Event::NodeGone((*name).into()));
    }
    lab.snapshot.apply(service(kept));
    lab.snapshot.apply(service(gone));
    let mut announcer = lab.announcer(NODES[0]);
    announcer.apply(&lab.snapshot, &whole(&lab.snapshot));
    assert_eq!(announcer.owned().len(), 2);
    let delta = lab.snapshot.apply(Event::ServiceGone(ServiceId::new("default", &format!("at-{gone}"))));
    announcer.apply(&lab.snapshot, &delta);
    let probe = Probe::new(&lab.client);
    assert_eq!((probe.who_has(gone).len(), probe.who_has(kept).len()), (0, 1));
    drop(announcer);
    assert_eq!(probe.who_has(kept).len(), 0);
}

#[test]
fn only_an_ethernet_interface_will_do() {
    require_root!();
    let netns = Netns::new();
    for interface in ["absent", "lo"] {
        let opened = netns.run(|| L2Announcer::open(interface, "a").map(drop));
        assert!(matches!(opened, Err(Error::NoInterface { .. })), "{interface}");
    }
}
