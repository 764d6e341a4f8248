//! What is noticed of changes, restarts, upgrades, full maps and removed backends.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::bench::{Bench, address, ask, bench, forwarding, here, open, service, web};
use crate::lab;
use aya::programs::links::{FdLink, PinnedLink};
use portolan_dataplane::sock::{Capacity, Error, Exempt, Exemptions, SockConfig, SockLb};
use portolan_dataplane::{DataPlane, ProxyConfig, Room, sock};
use portolan_model::forwarding::{Backend, Target};
use portolan_model::{Protocol, ServiceId};
use portolan_testkit::{Cgroup, Dial, Netns, Outcome};

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

/// The kernel's numbers of each link pinned here and of the program behind it.
fn links(config: &SockConfig) -> BTreeMap<PathBuf, (u32, u32)> {
    let directories = below(&config.pin_dir);
    let links = directories.iter().flat_map(|directory| below(&directory.join("links")));
    let numbers = |link: &PathBuf| {
        let link = FdLink::from(PinnedLink::from_pin(link).unwrap());
        let info = link.info().unwrap();
        (info.id(), info.program_id())
    };
    links.map(|link| (link.clone(), numbers(&link))).collect()
}

#[test]
fn an_upgrade_puts_its_programs_behind_the_links_that_are_there() {
    bench(|bench| {
        let asked = address("10.96.1.1:80");
        bench.node().block_on(|| async {
            let services = web(&["10.96.1.1:80"], &["pod-a", "pod-b"]);
            let first = open(&bench.config, &services);
            let before = links(&bench.config);
            assert!(before.len() >= 10, "{before:?}");
            let (sockets, connections) = under_load(bench, asked, || {
                let mut next = SockLb::open(&bench.config).unwrap();
                assert!(next.apply(&services, &here()).is_empty());
                let after = links(&bench.config);
                for (link, (id, program)) in &before {
                    assert!(after[link].0 == *id && after[link].1 != *program, "{link:?}: {before:?}, then {after:?}");
                }
                next
            });
            let counted: u64 = sockets.led().iter().map(|(_, _, led)| led.connections).sum();
            assert_eq!(counted, connections as u64, "each was led, and once");
            // Sockets of another cgroup need other links.
            let other = Cgroup::new().unwrap();
            drop(SockLb::open(&SockConfig { cgroup: other.path().to_owned(), ..bench.config.clone() }).unwrap());
            let moved = links(&bench.config);
            assert!(moved.iter().all(|(link, (id, _))| before[link].0 != *id), "{before:?}, then {moved:?}");
            drop(first);
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
            // What could not be had whole is taken back.
            let rooms = sockets.rooms();
            let room = |map| *rooms.iter().find(|room| room.map == map).unwrap();
            assert_eq!(room("slots"), Room { map: "slots", used: 2, room: Some(64) });
            let stream = bench.client("pod-x", || Dial::tcp(address("10.96.1.1:80")).open().unwrap());
            let held = || sockets.rooms().into_iter().find(|room| room.map == "connections").unwrap();
            assert_eq!(held(), Room { map: "connections", used: 1, room: Some(64) });
            drop(stream);
            assert_eq!(held().used, 0);
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
            exempt.add(Exempt::Namespace(cookies[0])).unwrap();
            let _sockets = open(&bench.config, &web(&["10.96.1.1:80"], &["pod-a", "pod-b", "pod-c"]));
            assert_eq!(bench.dial("pod-x", &dial).by(), None, "known before");
            assert!(bench.dial("pod-b", &dial).by().is_some(), "the others are led");
            exempt.remove(Exempt::Namespace(cookies[0])).unwrap();
            exempt.add(Exempt::Namespace(cookies[1])).unwrap();
            assert!(bench.dial("pod-x", &dial).by().is_some());
            assert_eq!(bench.dial("pod-b", &dial).by(), None, "known since");
        });
    });
}

#[test]
fn a_cgroup_can_be_left_out() {
    bench(|bench| {
        bench.node().block_on(|| async {
            let exempt = &bench.config.exempt;
            let dial = Dial::tcp(address("10.96.1.1:80")).patience(Duration::from_millis(200));
            let (root, other) = (bench.cgroup.root(), Cgroup::new().unwrap());
            let [own, other] = [bench.cgroup.path(), other.path()].map(|path| Exempt::cgroup(root, path).unwrap());
            let _sockets = open(&bench.config, &web(&["10.96.1.1:80"], &["pod-a"]));
            exempt.add(other).unwrap();
            assert_eq!(bench.dial("pod-x", &dial).by(), Some("pod-a"), "another cgroup is left out");
            exempt.add(own).unwrap();
            assert_eq!(bench.dial("pod-x", &dial).by(), None);
            exempt.remove(own).unwrap();
            assert_eq!(bench.dial("pod-x", &dial).by(), Some("pod-a"));
            assert!(Exempt::cgroup(root, root).is_err(), "that would be everybody");
            // The next life leaves out whom this one did, until it knows better.
            exempt.add(own).unwrap();
            let next = SockConfig { exempt: Exemptions::default(), ..bench.config.clone() };
            let _sockets = open(&next, &web(&["10.96.1.1:80"], &["pod-a"]));
            assert_eq!(bench.dial("pod-x", &dial).by(), None, "an earlier life's choice");
            next.exempt.replace(BTreeSet::from([other])).unwrap();
            assert_eq!(bench.dial("pod-x", &dial).by(), Some("pod-a"), "nobody asks for it any more");
            next.exempt.replace(BTreeSet::from([own])).unwrap();
            assert_eq!(bench.dial("pod-x", &dial).by(), None);
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
            bench.config.exempt.add(Exempt::Namespace(cookie)).unwrap();
            assert!(bench.dial("pod-x", &asked).by().is_some(), "left out");
            assert_eq!(led(&plane), 1);
            bench.config.exempt.remove(Exempt::Namespace(cookie)).unwrap();
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
