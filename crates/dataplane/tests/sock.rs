//! Sockets in a cgroup of the test's own, led by the real programs; no nftables stands below.
#![allow(clippy::unwrap_used, reason = "tests unwrap")]

mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lab::Lab;
use portolan_dataplane::sock::{self, Capacity, Error, Leads, Led, SockConfig, SockLb};
use portolan_dataplane::{DataPlane, ProxyConfig};
use portolan_model::forwarding::{
    Backend, Family, Frontend, FrontendForwarding, FrontendKind, Masquerade, NodeContext, Place, ServiceForwarding,
    Target,
};
use portolan_model::{Protocol, ServiceId};
use portolan_testkit::{Cgroup, Dial, Netns, Outcome, Transport, require_root, skip, with_bpffs};

type Services = BTreeMap<ServiceId, ServiceForwarding>;

/// Machines, a cgroup for the clients, and a place for what is pinned.
struct Bench {
    lab: Lab,
    cgroup: Cgroup,
    config: SockConfig,
}

impl Bench {
    /// What a client does in the cgroup, on a machine of the lab.
    fn client<T: Send>(&self, machine: &str, work: impl FnOnce() -> T + Send) -> T {
        self.cgroup.run(|| self.lab.at(machine).run(work))
    }

    fn dial(&self, machine: &str, dial: &Dial) -> Outcome {
        self.client(machine, || dial.once())
    }

    fn node(&self) -> &Netns {
        self.lab.at("node-1")
    }
}

fn bench(test: impl FnOnce(&Bench) + Send) {
    require_root!();
    let Some(cgroup) = Cgroup::new() else { return skip("no cgroup v2 hierarchy is mounted") };
    with_bpffs(|bpffs| {
        let capacity = Capacity { frontends: 1 << 10, backends: 1 << 14, connections: 1 << 12 };
        let config = SockConfig { capacity, ..SockConfig::new(cgroup.path().to_owned(), bpffs.join("portolan")) };
        test(&Bench { lab: Lab::new(), cgroup, config });
    });
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn place(text: &str) -> (Place, u16) {
    match text
        .strip_prefix("node:")
        .map(|port| (Family::V4, port))
        .or(text.strip_prefix("node6:").map(|port| (Family::V6, port)))
    {
        Some((family, port)) => (Place::Node(family), port.parse().unwrap()),
        None => (Place::Address(address(text).ip()), address(text).port()),
    }
}

/// To the pods' port 8080, or a refusal where there are none.
fn to(pods: &[&str], ipv6: bool) -> Target {
    let backend = |pod: &&str| Backend { address: lab::address(pod, ipv6), port: 8080 };
    let backends: BTreeSet<Backend> = pods.iter().map(backend).collect();
    if backends.is_empty() { Target::Reject } else { Target::Forward(backends.into_iter().collect()) }
}

fn forwarding(at: &str, protocol: Protocol, target: &Target) -> FrontendForwarding {
    let (place, port) = place(at);
    FrontendForwarding {
        frontend: Frontend { place, protocol, port },
        kind: FrontendKind::ClusterIp,
        inside: target.clone(),
        outside: target.clone(),
        masquerade: Masquerade::Outsiders,
        affinity: None,
        sources: Vec::new(),
    }
}

fn service(name: &str, frontends: Vec<FrontendForwarding>) -> Services {
    BTreeMap::from([(ServiceId::new("shop", name), ServiceForwarding { frontends, ..ServiceForwarding::default() })])
}

/// TCP and UDP at each place, led to the pods.
fn web(places: &[&str], pods: &[&str]) -> Services {
    let both = |at: &&str| {
        let ipv6 = place(at).0 == Place::Node(Family::V6) || at.starts_with('[');
        [Protocol::Tcp, Protocol::Udp].map(|protocol| forwarding(at, protocol, &to(pods, ipv6)))
    };
    service("web", places.iter().flat_map(both).collect())
}

fn here() -> NodeContext {
    let own = [false, true].map(|ipv6| lab::address("node-1", ipv6)).to_vec();
    NodeContext {
        name: "node-1".into(),
        node_port_addresses: own.clone(),
        own_addresses: own,
        ..NodeContext::default()
    }
}

fn open(config: &SockConfig, services: &Services) -> SockLb {
    let mut sockets = SockLb::open(config).unwrap();
    assert!(sockets.apply(services, &here()).is_empty());
    sockets
}

/// Says something and gives who answered, as which address.
fn ask(socket: &UdpSocket, to: Option<SocketAddr>) -> std::io::Result<(String, SocketAddr)> {
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    match to {
        Some(to) => socket.send_to(b"who?", to)?,
        None => socket.send(b"who?")?,
    };
    let mut answer = [0; 256];
    let (length, from) = socket.recv_from(&mut answer)?;
    let text = String::from_utf8_lossy(&answer[..length]).into_owned();
    Ok((text.split(' ').next().unwrap().to_owned(), from))
}

#[test]
fn every_kind_of_socket_reaches_a_backend_and_sees_the_service() {
    bench(|bench| {
        bench.node().block_on(|| async {
            let places = ["10.96.1.1:80", "[fd00:96::1]:80"];
            let _sockets = open(&bench.config, &web(&places, &["pod-a"]));
            // The third is an IPv6 socket that names an IPv4 address.
            for (asked, any) in
                [("10.96.1.1:80", "0.0.0.0:0"), ("[fd00:96::1]:80", "[::]:0"), ("[::ffff:10.96.1.1]:80", "[::]:0")]
            {
                let (asked, any) = (address(asked), address(any));
                bench.client("pod-x", || {
                    let stream = TcpStream::connect(asked).unwrap();
                    assert_eq!(Outcome::greeting(&stream).by(), Some("pod-a"), "{asked}");
                    assert_eq!(stream.peer_addr().unwrap(), asked);

                    let socket = UdpSocket::bind(any).unwrap();
                    socket.connect(asked).unwrap();
                    assert_eq!(socket.peer_addr().unwrap(), asked);
                    assert_eq!(ask(&socket, None).unwrap(), ("pod-a".to_owned(), asked), "connected");

                    let socket = UdpSocket::bind(any).unwrap();
                    assert_eq!(ask(&socket, Some(asked)).unwrap(), ("pod-a".to_owned(), asked), "unconnected");
                });
            }
            // Not in the cgroup, not led.
            let patience = Duration::from_millis(200);
            let outcome = bench.lab.at("pod-x").run(|| Dial::tcp(address("10.96.1.1:80")).patience(patience).once());
            assert_eq!(outcome.by(), None);
        });
    });
}

#[test]
fn one_unconnected_socket_talks_to_several_services_and_stays_with_its_backends() {
    bench(|bench| {
        bench.node().block_on(|| async {
            let mut services = web(&["10.96.1.1:53"], &["pod-a", "pod-b", "pod-c"]);
            services.extend(service("other", vec![forwarding("10.96.1.2:53", Protocol::Udp, &to(&["pod-b"], false))]));
            let mut sockets = open(&bench.config, &services);
            let socket = bench.client("pod-x", || UdpSocket::bind("0.0.0.0:0").unwrap());
            let asked = address("10.96.1.1:53");
            let ask_in = |to| bench.client("pod-x", || ask(&socket, Some(to)).unwrap());
            let (first, _) = ask_in(asked);
            for _ in 0..20 {
                assert_eq!(ask_in(address("10.96.1.2:53")), ("pod-b".to_owned(), address("10.96.1.2:53")));
                assert_eq!(ask_in(asked), (first.clone(), asked), "one flow, one backend");
            }
            // What is asked of a pod by its own address is answered from there.
            let pod = SocketAddr::new(lab::address("pod-c", false), 8080);
            assert_eq!(ask_in(pod), ("pod-c".to_owned(), pod));
            // Its backend goes: the socket moves on, and was not harmed.
            let left: Vec<&str> = ["pod-a", "pod-b", "pod-c"].into_iter().filter(|pod| *pod != first).collect();
            assert!(sockets.apply(&web(&["10.96.1.1:53"], &left), &here()).is_empty());
            sockets.settled().await;
            let (second, from) = ask_in(asked);
            assert!(second != first && from == asked, "{first}, then {second} as {from}");
        });
    });
}

#[test]
fn connections_spread_evenly_and_are_counted() {
    bench(|bench| {
        bench.node().block_on(|| async {
            let sockets = open(&bench.config, &web(&["10.96.1.1:80"], &["pod-a", "pod-b", "pod-c"]));
            let dial = Dial::tcp(address("10.96.1.1:80"));
            let share = bench.client("pod-x", || {
                let mut share = BTreeMap::new();
                for _ in 0..1_500 {
                    *share.entry(dial.once().by().expect("an answer").to_owned()).or_insert(0usize) += 1;
                }
                share
            });
            // 500 each; seven standard deviations (of 18.3) are out of reach of chance.
            assert!(share.len() == 3 && share.values().all(|count| count.abs_diff(500) < 128), "{share:?}");
            bench.client("pod-x", || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                (0..7).for_each(|_| drop(ask(&socket, Some(address("10.96.1.1:80"))).unwrap()));
            });
            let led: Vec<Led> = sockets.led().into_iter().map(|(_, _, led)| led).collect();
            let expected = [Led { connections: 1_500, datagrams: 0 }, Led { connections: 0, datagrams: 7 }];
            assert_eq!(led, expected);
        });
    });
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    bench(|bench| {
        bench.node().block_on(|| async {
            let mut sockets = open(&bench.config, &web(&["10.96.1.1:80", "[fd00:96::1]:80"], &[]));
            for asked in ["10.96.1.1:80", "[fd00:96::1]:80"].map(address) {
                let any = if asked.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                bench.client("pod-x", || {
                    let began = Instant::now();
                    assert_eq!(TcpStream::connect(asked).unwrap_err().kind(), ErrorKind::ConnectionRefused);
                    let socket = UdpSocket::bind(any).unwrap();
                    assert_eq!(socket.send_to(b"!", asked).unwrap_err().kind(), ErrorKind::ConnectionRefused);
                    assert_eq!(socket.connect(asked).unwrap_err().kind(), ErrorKind::ConnectionRefused);
                    assert!(began.elapsed() < Duration::from_millis(500), "it took {:?}", began.elapsed());
                });
            }
            assert!(sockets.apply(&web(&["10.96.1.1:80"], &["pod-b"]), &here()).is_empty());
            assert_eq!(bench.dial("pod-x", &Dial::tcp(address("10.96.1.1:80"))).by(), Some("pod-b"));
        });
    });
}

/// Nothing answers at a Service's address by itself here, so an answer means that the programs led there.
#[test]
fn what_nftables_decides_is_left_to_it() {
    bench(|bench| {
        bench.node().block_on(|| async {
            let led = forwarding("10.96.1.1:80", Protocol::Tcp, &to(&["pod-a"], false));
            let dropped = FrontendForwarding { inside: Target::Drop, ..led.clone() };
            let restricted = FrontendForwarding { sources: vec![lab::net("192.0.2.0/24")], ..led.clone() };
            let mut sockets = open(&bench.config, &service("web", vec![led.clone()]));
            let dial = Dial::tcp(address("10.96.1.1:80")).patience(Duration::from_millis(200));
            assert_eq!(bench.dial("pod-x", &dial).by(), Some("pod-a"));
            for left in [dropped, restricted] {
                assert!(sockets.apply(&service("web", vec![left]), &here()).is_empty());
                assert_eq!(bench.dial("pod-x", &dial).by(), None);
            }
            assert!(sockets.apply(&service("web", vec![led]), &here()).is_empty());
            assert_eq!(bench.dial("pod-x", &dial).by(), Some("pod-a"));
            let everything = NodeContext { masquerade_all: true, ..here() };
            let again = service("web", vec![forwarding("10.96.1.1:80", Protocol::Tcp, &to(&["pod-a"], false))]);
            assert!(sockets.apply(&again, &everything).is_empty());
            assert_eq!(bench.dial("pod-x", &dial).by(), None, "masquerading is not the programs' work");
        });
    });
}

#[test]
fn a_session_stays_until_its_backend_goes_or_its_time_is_over() {
    bench(|bench| {
        bench.node().block_on(|| async {
            let sticky = |pods: &[&str], seconds| {
                let one = |protocol| FrontendForwarding {
                    affinity: Some(Duration::from_secs(seconds)),
                    ..forwarding("10.96.1.1:80", protocol, &to(pods, false))
                };
                service("web", vec![one(Protocol::Tcp), one(Protocol::Udp)])
            };
            for transport in [Transport::Tcp, Transport::Udp] {
                let mut sockets = open(&bench.config, &sticky(&["pod-a", "pod-b"], 600));
                let dial = Dial::new(transport, address("10.96.1.1:80"));
                let share = || {
                    let ask = || dial.once().by().expect("an answer").to_owned();
                    bench.client("pod-x", || (0..20).map(|_| ask()).collect::<BTreeSet<String>>())
                };
                let first = share();
                assert_eq!(first.len(), 1, "{first:?}");
                assert!(sockets.apply(&sticky(&["pod-a", "pod-b", "pod-c"], 600), &here()).is_empty());
                assert_eq!(share(), first, "another backend came");
                let left: Vec<&str> =
                    ["pod-a", "pod-b", "pod-c"].into_iter().filter(|pod| !first.contains(*pod)).collect();
                assert!(sockets.apply(&sticky(&left, 600), &here()).is_empty());
                let second = share();
                assert!(second.len() == 1 && second.is_disjoint(&first), "{first:?}, then {second:?}");
                assert!(sockets.apply(&sticky(&left, 1), &here()).is_empty());
                // Each pause is a chance of one in two to see that it is forgotten.
                let deadline = Instant::now() + Duration::from_secs(60);
                loop {
                    tokio::time::sleep(Duration::from_millis(1_200)).await;
                    if bench.dial("pod-x", &dial).by() != second.first().map(String::as_str) {
                        break;
                    }
                    assert!(Instant::now() < deadline, "the client was still remembered");
                }
            }
        });
    });
}

#[test]
fn node_ports_answer_at_the_nodes_addresses_and_nobody_else_gets_them() {
    bench(|bench| {
        bench.node().block_on(|| async {
            let mut services = web(&["node:30080"], &["pod-a"]);
            services.extend(service("six", vec![forwarding("node6:30081", Protocol::Tcp, &to(&["pod-b"], true))]));
            // An address of its own hides the NodePort of the same number.
            let hiding = FrontendForwarding {
                inside: Target::Drop,
                ..forwarding(&format!("{}:30082", lab::address("node-1", false)), Protocol::Tcp, &Target::Reject)
            };
            let hidden = forwarding("node:30082", Protocol::Tcp, &to(&["pod-b"], false));
            services.extend(service("hidden", vec![hiding, hidden]));
            let mut sockets = open(&bench.config, &services);
            let at = |ipv6, port| SocketAddr::new(lab::address("node-1", ipv6), port);
            let looked_up =
                |to| sock::look_up(&bench.config.pin_dir, Protocol::Tcp, to).unwrap().map(|found| found.leads);
            let of_pod_a = Backend { address: lab::address("pod-a", false), port: 8080 };
            assert_eq!(looked_up(at(false, 30_080)), Some(Leads::To(vec![of_pod_a])));
            assert_eq!(looked_up(at(false, 30_082)), Some(Leads::Left));
            assert_eq!(looked_up(at(false, 30_081)), None);
            for machine in ["node-1", "pod-x"] {
                assert_eq!(bench.dial(machine, &Dial::tcp(at(false, 30_080))).by(), Some("pod-a"));
                assert_eq!(bench.dial(machine, &Dial::udp(at(false, 30_080))).by(), Some("pod-a"));
                assert_eq!(bench.dial(machine, &Dial::tcp(at(true, 30_081))).by(), Some("pod-b"));
                assert_eq!(bench.dial(machine, &Dial::tcp(at(false, 30_081))), Outcome::Refused, "of IPv6 only");
                assert_eq!(
                    bench.dial(machine, &Dial::tcp(at(false, 30_082))),
                    Outcome::Refused,
                    "nobody listens there"
                );
            }

            let bind = |machine: &str, text: &str| {
                let text = text.to_owned();
                bench.client(machine, move || TcpListener::bind(address(&text)).map(drop).map_err(|error| error.kind()))
            };
            let own = at(false, 30_080).to_string();
            for taken in ["0.0.0.0:30080", "[::]:30080", &own, "[::]:30081"] {
                assert_eq!(bind("node-1", taken), Err(ErrorKind::AddrInUse), "{taken}");
            }
            for free in ["0.0.0.0:30079", "127.0.0.1:30080", "0.0.0.0:0"] {
                assert_eq!(bind("node-1", free), Ok(()), "{free}");
            }
            assert_eq!(bind("pod-x", "0.0.0.0:30080"), Ok(()), "a pod's ports are its own");
            assert!(sockets.apply(&service("web", Vec::new()), &here()).is_empty());
            assert_eq!(bind("node-1", "0.0.0.0:30080"), Ok(()), "the Service is gone");
        });
    });
}

/// Connects all the time while `work` runs, and gives how often and who answered; every attempt has to succeed.
fn under_load<T>(bench: &Bench, asked: SocketAddr, work: impl FnOnce() -> T) -> (T, usize) {
    let (stop, connections) = (AtomicBool::new(false), AtomicUsize::new(0));
    let outcome = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            bench.client("pod-x", || {
                while !stop.load(Ordering::Relaxed) {
                    let outcome = Dial::tcp(asked).once();
                    assert!(outcome.by().is_some(), "attempt {}: {outcome:?}", connections.load(Ordering::Relaxed));
                    connections.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        while connections.load(Ordering::Relaxed) == 0 && !client.is_finished() {
            std::thread::yield_now();
        }
        let outcome = work();
        stop.store(true, Ordering::Relaxed);
        client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        outcome
    });
    (outcome, connections.into_inner())
}

#[test]
fn no_connection_fails_while_endpoints_come_and_go() {
    bench(|bench| {
        let asked = address("10.96.1.1:80");
        bench.node().block_on(|| async {
            let mut sockets = open(&bench.config, &web(&["10.96.1.1:80"], &["pod-a"]));
            let sets: [&[&str]; 5] =
                [&["pod-a"], &["pod-a", "pod-b", "pod-c"], &["pod-c"], &["pod-b"], &["pod-a", "pod-c"]];
            let ((), connections) = under_load(bench, asked, || {
                for set in sets.iter().cycle().take(2_000) {
                    assert!(sockets.apply(&web(&["10.96.1.1:80"], set), &here()).is_empty());
                    // What was applied holds from here on.
                    let by = bench.dial("pod-x", &Dial::tcp(asked)).by().map(str::to_owned).expect("an answer");
                    assert!(set.contains(&&*by), "{by} answered, of {set:?}");
                }
            });
            eprintln!("{connections} connections");
        });
    });
}

#[test]
fn death_restart_and_upgrade_are_not_noticed() {
    bench(|bench| {
        let asked = address("10.96.1.1:80");
        let services = web(&["10.96.1.1:80"], &["pod-a", "pod-b"]);
        let old = web(&["10.96.1.9:80"], &["pod-c"]);
        bench.node().block_on(|| async {
            let mut both = services.clone();
            both.extend(service("old", old.values().next().unwrap().frontends.clone()));
            let sockets = open(&bench.config, &both);
            let socket = bench.client("pod-x", || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect(asked).unwrap();
                socket
            });
            let ((), connections) = under_load(bench, asked, || {
                // All that dying closes is closed: the process's own descriptors.
                drop(sockets);
                assert!(bench.dial("pod-x", &Dial::tcp(asked)).by().is_some(), "nobody is there, and it works");
                for round in 0..5 {
                    let mut next = SockLb::open(&bench.config).unwrap();
                    assert!(next.apply(&services, &here()).is_empty());
                    if round == 0 {
                        let of_old = Dial::tcp(address("10.96.1.9:80")).patience(Duration::from_millis(200));
                        assert_eq!(bench.dial("pod-x", &of_old).by(), Some("pod-c"), "not before all is known");
                        next.synced();
                        assert_eq!(bench.dial("pod-x", &of_old).by(), None, "its Service went meanwhile");
                    }
                }
                // Another build, whose maps are made otherwise.
                let capacity = Capacity { frontends: 1 << 11, ..bench.config.capacity };
                let config = SockConfig { capacity, ..bench.config.clone() };
                let mut upgraded = SockLb::open(&config).unwrap();
                assert!(upgraded.apply(&services, &here()).is_empty());
                upgraded.synced();
                assert_eq!(below(&config.pin_dir).len(), 1, "{:?}", below(&config.pin_dir));
            });
            eprintln!("{connections} connections");
            assert!(matches!(bench.client("pod-x", || ask(&socket, None)), Ok((by, _)) if by.starts_with("pod-")));
        });
    });
}

fn below(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
}

#[test]
fn cleaning_up_leaves_nothing() {
    bench(|bench| {
        bench.node().block_on(|| async {
            let sockets = open(&bench.config, &web(&["10.96.1.1:80"], &["pod-a"]));
            let stream = bench.client("pod-x", || Dial::tcp(address("10.96.1.1:80")).open().unwrap());
            drop(sockets);
            sock::cleanup(&bench.config.pin_dir).unwrap();
            sock::cleanup(&bench.config.pin_dir).expect("removing the absent succeeds");
            assert!(!bench.config.pin_dir.exists());
            let dial = Dial::tcp(address("10.96.1.1:80")).patience(Duration::from_millis(200));
            assert_eq!(bench.dial("pod-x", &dial).by(), None);
            assert_eq!(Outcome::greeting(&stream).by(), Some("pod-a"), "open connections go on");
        });
    });
}

#[test]
fn what_has_no_room_is_named_and_the_rest_is_led() {
    bench(|bench| {
        bench.node().block_on(|| async {
            let capacity = Capacity { frontends: 64, backends: 64, connections: 64 };
            let mut sockets = SockLb::open(&SockConfig { capacity, ..bench.config.clone() }).unwrap();
            let many = (0..200).map(|n| Backend { address: IpAddr::from([10, 244, 9, n]), port: 80 }).collect();
            let large = service("large", vec![forwarding("10.96.1.2:80", Protocol::Tcp, &Target::Forward(many))]);
            let mut all = web(&["10.96.1.1:80"], &["pod-a"]);
            all.extend(large);
            let refused = sockets.apply(&all, &here());
            let [(id, Error::Full { .. })] = &*refused else { panic!("{refused:?}") };
            assert_eq!(*id, ServiceId::new("shop", "large"));
            assert_eq!(bench.dial("pod-x", &Dial::tcp(address("10.96.1.1:80"))).by(), Some("pod-a"));
            assert!(
                sockets.occupancy()[1].1 <= 4,
                "what could not be had whole is taken back: {:?}",
                sockets.occupancy()
            );
        });
    });
}

#[test]
fn a_namespace_can_be_left_out() {
    bench(|bench| {
        bench.node().block_on(|| async {
            let exempt = &bench.config.exempt;
            let dial = Dial::tcp(address("10.96.1.1:80")).patience(Duration::from_millis(200));
            let cookies = ["pod-x", "pod-b"].map(|pod| sock::cookie_of(bench.lab.at(pod).file()).unwrap());
            exempt.add(cookies[0]).unwrap();
            let _sockets = open(&bench.config, &web(&["10.96.1.1:80"], &["pod-a", "pod-b", "pod-c"]));
            assert_eq!(bench.dial("pod-x", &dial).by(), None, "known before");
            assert!(bench.dial("pod-b", &dial).by().is_some(), "the others are led");
            exempt.remove(cookies[0]).unwrap();
            exempt.add(cookies[1]).unwrap();
            assert!(bench.dial("pod-x", &dial).by().is_some());
            assert_eq!(bench.dial("pod-b", &dial).by(), None, "known since");
        });
    });
}

/// A process in the namespace, as every pod has one; ends when dropped.
struct Resident(std::process::Child);

impl Resident {
    fn of(machine: &Netns) -> Self {
        Self(machine.run(|| std::process::Command::new("sleep").arg("120").spawn().unwrap()))
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn sockets_of_a_removed_backend_are_ended() {
    bench(|bench| {
        let _pod = Resident::of(bench.lab.at("pod-x"));
        bench.node().block_on(|| async {
            let config = SockConfig { end_tcp_after: Some(Duration::from_millis(500)), ..bench.config.clone() };
            let mut sockets = open(&config, &web(&["10.96.1.1:80", "[fd00:96::1]:80", "node:30080"], &["pod-a"]));
            let connect = |any: &str, to: SocketAddr| {
                let any = address(any);
                bench.client("pod-x", move || {
                    let socket = UdpSocket::bind(any).unwrap();
                    socket.connect(to).unwrap();
                    ask(&socket, None).unwrap();
                    socket
                })
            };
            let led = [
                connect("0.0.0.0:0", address("10.96.1.1:80")),
                connect("[::]:0", address("[fd00:96::1]:80")),
                connect("[::]:0", address("[::ffff:10.96.1.1]:80")),
                connect("0.0.0.0:0", SocketAddr::new(lab::address("node-1", false), 30_080)),
            ];
            let direct = connect("0.0.0.0:0", SocketAddr::new(lab::address("pod-a", false), 8080));
            let unconnected = bench.client("pod-x", || UdpSocket::bind("0.0.0.0:0").unwrap());
            bench.client("pod-x", || ask(&unconnected, Some(address("10.96.1.1:80"))).unwrap());
            let stream = bench.client("pod-x", || Dial::tcp(address("10.96.1.1:80")).open().unwrap());
            assert!(Outcome::greeting(&stream).by().is_some());

            let next = web(&["10.96.1.1:80", "[fd00:96::1]:80", "node:30080"], &["pod-b"]);
            let began = Instant::now();
            assert!(sockets.apply(&next, &here()).is_empty());
            sockets.settled().await;
            for socket in &led {
                let waiting = bench.client("pod-x", || socket.recv(&mut [0; 64]).unwrap_err());
                assert_eq!(waiting.kind(), ErrorKind::ConnectionAborted, "{socket:?}");
                assert!(bench.client("pod-x", || ask(socket, None)).is_err(), "{socket:?} has no peer any more");
            }
            assert_eq!(bench.client("pod-x", || ask(&direct, None).unwrap().0), "pod-a", "named by its client itself");
            let (by, _) = bench.client("pod-x", || ask(&unconnected, Some(address("10.96.1.1:80"))).unwrap());
            assert_eq!(by, "pod-b", "asks anew each time, so it only has to move on");

            assert!(portolan_testkit::say(&stream, "a connection may finish"));
            let ended = tokio::task::spawn_blocking(move || {
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                std::io::Read::read(&mut &stream, &mut [0]).unwrap_err().kind()
            });
            assert_eq!(ended.await.unwrap(), ErrorKind::ConnectionAborted);
            assert!(began.elapsed() >= Duration::from_millis(500), "it had its time");
        });
    });
}

#[test]
fn where_it_cannot_work_it_says_what_is_missing() {
    bench(|bench| {
        bench.node().block_on(|| async {
            let no_cgroup = SockConfig { cgroup: "/tmp".into(), ..bench.config.clone() };
            assert!(matches!(SockLb::open(&no_cgroup), Err(Error::NoCgroup { .. })));
            let no_bpffs = SockConfig { pin_dir: "/tmp/portolan-no-bpffs".into(), ..bench.config.clone() };
            assert!(matches!(SockLb::open(&no_bpffs), Err(Error::NoBpfFs { .. })));
            assert!(!no_bpffs.pin_dir.exists());
        });
    });
}

/// How many connections were led by the programs.
fn led(plane: &DataPlane) -> u64 {
    plane.led().iter().map(|(_, _, led)| led.connections).sum()
}

#[test]
fn nftables_forwards_whoever_is_not_led() {
    bench(|bench| {
        let asked = Dial::tcp(address("10.96.0.1:80"));
        bench.node().block_on(|| async {
            let mut snapshot = portolan_model::Snapshot::default();
            lab::apply(&mut snapshot, lab::OBJECTS);
            let sockets = Some(bench.config.clone());
            let mut plane = DataPlane::open(ProxyConfig { sockets, ..lab::config() }).await.unwrap();
            let report = plane.synced(&snapshot).await;
            assert!(report.refused.is_empty(), "{:?}", report.refused);
            assert!(bench.dial("pod-x", &asked).by().is_some());
            assert_eq!(led(&plane), 1);
            assert!(bench.lab.at("pod-x").run(|| asked.once()).by().is_some(), "not in the cgroup");
            let cookie = sock::cookie_of(bench.lab.at("pod-x").file()).unwrap();
            bench.config.exempt.add(cookie).unwrap();
            assert!(bench.dial("pod-x", &asked).by().is_some(), "left out");
            assert_eq!(led(&plane), 1);
            bench.config.exempt.remove(cookie).unwrap();
            // Somebody takes the programs off and empties a map; the audit finds it.
            for link in below(&below(&bench.config.pin_dir)[0].join("links")) {
                std::fs::remove_file(link).unwrap();
            }
            assert!(plane.audit(&snapshot).await.unwrap().repaired > 0);
            assert!(bench.dial("pod-x", &asked).by().is_some());
            assert_eq!(led(&plane), 2);
            drop(plane);

            let sockets = Some(SockConfig { pin_dir: "/tmp/portolan-no-bpffs".into(), ..bench.config.clone() });
            sock::cleanup(&bench.config.pin_dir).unwrap();
            let mut plane = DataPlane::open(ProxyConfig { sockets, ..lab::config() }).await.unwrap();
            plane.synced(&snapshot).await;
            assert!(bench.dial("pod-x", &asked).by().is_some(), "the kernel could not");
            assert_eq!(led(&plane), 0);
        });
    });
}
