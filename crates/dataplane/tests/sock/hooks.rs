//! What each kind of socket sees.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::bench::{address, ask, bench, forwarding, here, open, service, to, web};
use crate::lab;
use portolan_dataplane::sock;
use portolan_dataplane::sock::Leads;
use portolan_dataplane::{DataPlane, ProxyConfig};
use portolan_model::Protocol;
use portolan_model::forwarding::{Affinity, Backend, Frontend, FrontendForwarding, NodeContext, Place, Target};
use portolan_testkit::{Dial, Outcome, Transport, eventually, say};

/// How often to look, and for how long.
const OFTEN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(10));

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
            let led: Vec<_> = sockets.led().iter().map(|(_, _, led)| (led.connections, led.datagrams)).collect();
            assert_eq!(led, [(1_500, 0), (0, 7)]);
        });
    });
}

/// The same conversations, led and translated, are the same in numbers.
#[test]
fn what_went_over_a_connection_is_counted_as_nftables_counts_it() {
    bench(|bench| {
        bench.node().block_on(|| async {
            let mut snapshot = portolan_model::Snapshot::default();
            lab::apply(&mut snapshot, lab::OBJECTS);
            let sockets = Some(bench.config.clone());
            let config = ProxyConfig { counters: true, sockets, ..lab::config() };
            let mut plane = DataPlane::open(config).await.unwrap();
            assert!(plane.synced(&snapshot).await.refused.is_empty());
            let talk = |asked: SocketAddr| {
                let stream = Dial::tcp(asked).open().unwrap();
                assert!(Outcome::greeting(&stream).by().is_some());
                for line in 0..20 {
                    assert!(say(&stream, &format!("{line:0>200}")));
                }
                stream
            };
            for asked in ["10.96.0.1:80", "[fd00:96::1]:80"].map(address) {
                let frontend =
                    Frontend { place: Place::Address(asked.ip()), protocol: Protocol::Tcp, port: asked.port() };
                let led = || plane.led().into_iter().find(|(_, at, _)| *at == frontend).unwrap().2;
                let streams: Vec<_> = (0..5).map(|_| bench.client("pod-x", || talk(asked))).collect();
                assert_eq!((led().connections, led().segments, led().bytes), (5, 0, 0), "they have not ended");
                drop(streams);
                // The other side's last packet is on its way.
                eventually("both sides have ended", OFTEN, async || {
                    let led = led();
                    if led.bytes < 5 * 2 * 20 * 201 { Err(format!("{led:?}")) } else { Ok(()) }
                })
                .await;
                let led = led();
                let known = plane.rooms().into_iter().find(|room| room.map == "connections").unwrap().used;
                assert_eq!(known, 0, "what has ended is forgotten");
                (0..5).for_each(|_| drop(bench.lab.at("pod-x").run(|| talk(asked))));
                let bytes = led.bytes_with_headers(frontend);
                let within = |a: u64, b: u64, percent: u64| a.abs_diff(b) * 100 <= percent * b;
                // As above; and an acknowledgement may go alone or with the next line.
                eventually("the kernel counts as much", OFTEN, async || {
                    let counted = plane.traffic(&snapshot).await.unwrap();
                    let translated = counted.iter().find(|counted| counted.frontend == frontend).unwrap().counts;
                    let as_much = translated.connections == led.connections
                        && within(led.segments, translated.packets, 10)
                        && within(bytes, translated.bytes, 5);
                    if as_much { Ok(()) } else { Err(format!("{led:?}, {bytes} bytes, and {translated:?}")) }
                })
                .await;
            }
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
                let one = |protocol| {
                    let without = forwarding("10.96.1.1:80", protocol, &to(pods, false));
                    let affinity = Affinity { timeout: Duration::from_secs(seconds), together: without.frontend };
                    FrontendForwarding { affinity: Some(affinity), ..without }
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
                // The kernel's clock, which no test can set, has to go past the second, and each question starts it anew;
                // then there is a chance of one in two to see that the client is forgotten.
                let rest = (Duration::from_millis(1_200), Duration::from_secs(60));
                eventually("the client is forgotten", rest, async || match bench.dial("pod-x", &dial).by() {
                    again if again == second.first().map(String::as_str) => Err(format!("{again:?} again")),
                    _ => Ok(()),
                })
                .await;
            }
        });
    });
}

#[test]
fn the_addresses_of_a_port_remember_a_client_together() {
    bench(|bench| {
        bench.node().block_on(|| async {
            let pods = to(&["pod-a", "pod-b", "pod-c"], false);
            let first = forwarding("10.96.1.1:80", Protocol::Tcp, &pods);
            let timeout = Duration::from_secs(600);
            let sticky = |forwarding: FrontendForwarding| FrontendForwarding {
                affinity: Some(Affinity { timeout, together: first.frontend }),
                ..forwarding
            };
            let others = ["10.203.0.200:80", "node:30080"].map(|at| forwarding(at, Protocol::Tcp, &pods));
            let all = std::iter::once(first.clone()).chain(others).map(sticky).collect();
            let _sockets = open(&bench.config, &service("web", all));
            let node = SocketAddr::new(lab::address("node-1", false), 30_080);
            let asked = [address("10.96.1.1:80"), address("10.203.0.200:80"), node];
            let who = |asked: &SocketAddr| bench.dial("pod-x", &Dial::tcp(*asked)).by().unwrap().to_owned();
            let answers: BTreeSet<String> = asked.iter().cycle().take(30).map(who).collect();
            assert_eq!(answers.len(), 1, "{answers:?}");
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
