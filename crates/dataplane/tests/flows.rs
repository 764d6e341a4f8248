//! Flows as data: each row of `flows/rows.txt` through every implementation, which all have to say the same.
//!
//! An implementation is a test here: it takes a section, whose configuration and objects it is set up with, and says
//! what becomes of each of its rows.
#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

mod lab;
#[path = "flows/row.rs"]
mod row;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lab::Lab;
use portolan_dataplane::sock::{SockConfig, cleanup};
use portolan_dataplane::trace::{Outcome, Packet, Table, walk};
use portolan_dataplane::{DataPlane, ProxyConfig};
use portolan_model::forwarding::{self, Family, Flow, Frontend, NodeContext, Place, compile};
use portolan_model::{Protocol, Snapshot};
use portolan_testkit::{Cgroup, Dial, Netns, Outcome as Met, Transport, require_root, skip, with_bpffs};
use row::{Expected, Row, Section, backend};

fn every(_: &Row) -> bool {
    true
}

/// Compares what the implementation says of each row that it is for with the row.
fn check(is_for: impl Fn(&Row) -> bool, implementation: impl Fn(&Section) -> Vec<Expected>) {
    let mut wrong = Vec::new();
    for mut section in row::sections() {
        section.rows.retain(&is_for);
        let outcomes = implementation(&section);
        assert_eq!(outcomes.len(), section.rows.len());
        for (row, outcome) in section.rows.iter().zip(outcomes).filter(|(row, outcome)| row.expected != *outcome) {
            wrong.push(format!("[{}] {}\n    but: {outcome:?}", section.header, row.text));
        }
    }
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn there_are_enough_rows_and_none_twice() {
    let sections = row::sections();
    let all: Vec<_> =
        sections.iter().flat_map(|s| s.rows.iter().map(|row| (s.header, row.text.split(" => ").next()))).collect();
    assert!(all.len() >= 300, "{} rows", all.len());
    for (index, row) in all.iter().enumerate() {
        assert!(!all[..index].contains(row), "{row:?} is there twice");
    }
}

#[test]
fn by_the_tracer() {
    check(every, |section| {
        let node = node_context(&section.snapshot(), section);
        let table = forwarding::Table::compile(&section.snapshot(), &node);
        let remembered = Remembered::compile(&section.snapshot(), &node);
        let of = |row: &Row| match row.also.is_empty() {
            true => traced(&table, &node, row),
            false => alike(row.each().map(|row| (traced(&table, &node, &row).backends(), remembered.at(&node, &row)))),
        };
        section.rows.iter().map(of).collect()
    });
}

/// What several destinations come to where each has the backends and remembers the client in the way given.
fn alike<R: PartialEq + Debug>(each: impl Iterator<Item = (BTreeSet<String>, Option<R>)>) -> Expected {
    let each: Vec<_> = each.collect();
    match &each[..] {
        [(backends, Some(by)), others @ ..]
            if others.iter().all(|(more, other)| more.is_superset(backends) && other.as_ref() == Some(by)) =>
        {
            Expected::Alike(backends.clone())
        }
        _ => Expected::Backends { each: each.iter().map(|each| format!("{each:?}")).collect(), stays: false },
    }
}

/// By which frontend each frontend remembers its clients.
struct Remembered(BTreeMap<Frontend, Frontend>);

impl Remembered {
    fn compile(snapshot: &Snapshot, node: &NodeContext) -> Self {
        let compiled = snapshot.services().flat_map(|service| compile(snapshot, &service.id, node).0.frontends);
        Self(compiled.filter_map(|frontend| Some((frontend.frontend, frontend.affinity?.together))).collect())
    }

    fn at(&self, node: &NodeContext, row: &Row) -> Option<Frontend> {
        let (address, port) = (row.destination.ip(), row.destination.port());
        let place = match node.node_port_addresses.contains(&address) {
            true => Place::Node(Family::of(address)),
            false => Place::Address(address),
        };
        self.0.get(&Frontend { place, protocol: protocol(row.transport), port }).copied()
    }
}

/// The node as its data plane sees it in the lab.
fn node_context(snapshot: &Snapshot, section: &Section) -> NodeContext {
    section.config.node_context(snapshot, &lab::addresses_of("node-1"))
}

fn protocol(transport: Transport) -> Protocol {
    match transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
        Transport::Sctp => Protocol::Sctp,
        // Answered wherever a port that no Service has is refused.
        Transport::Ping => Protocol::Tcp,
    }
}

fn traced(table: &forwarding::Table, node: &NodeContext, row: &Row) -> Expected {
    let protocol = protocol(row.transport);
    let (destination, port) = (row.destination.ip(), row.destination.port());
    let flow = Flow { source: row.client(), link: row.interface(), protocol, destination, port };
    match forwarding::trace(table, node, flow) {
        forwarding::Outcome::Forward { backends, .. } => Expected::Backends {
            each: backends
                .iter()
                .map(|p| backend(lab::machine_at(p.backend.address), p.backend.port, p.masquerade))
                .collect(),
            stays: matches!(row.expected, Expected::Backends { stays: true, .. }),
        },
        forwarding::Outcome::Reject { service: None } if row.transport == Transport::Ping => Expected::Echo,
        forwarding::Outcome::Reject { .. } => Expected::Reject,
        forwarding::Outcome::Drop { .. } => Expected::Drop,
        forwarding::Outcome::Pass => Expected::Pass,
    }
}

/// What the rules and elements come to that the kernel has: read back and carried out, without a packet.
#[test]
fn by_the_walk() {
    require_root!();
    check(every, |section| {
        let node = Netns::new();
        for address in lab::addresses_of("node-1").into_iter().filter(|address| !address.is_loopback()) {
            node.address("lo", address.into());
        }
        let tables = node.block_on(|| async {
            realize(section, None).await;
            [Table::read(Family::V4).await.unwrap(), Table::read(Family::V6).await.unwrap()]
        });
        let walked = |row: &Row| walked(&tables[usize::from(row.destination.is_ipv6())], row);
        let of = |row: &Row| match row.also.is_empty() {
            true => walked(row).0,
            false => alike(row.each().map(|row| walked(&row)).map(|(outcome, by)| (outcome.backends(), by))),
        };
        section.rows.iter().map(of).collect()
    });
}

/// Also what the client is remembered by.
fn walked(table: &Table, row: &Row) -> (Expected, Option<String>) {
    let packet = Packet {
        source: row.client(),
        destination: row.destination.ip(),
        protocol: match (row.transport, row.destination.is_ipv6()) {
            (Transport::Tcp, _) => 6,
            (Transport::Udp, _) => 17,
            (Transport::Sctp, _) => 132,
            (Transport::Ping, false) => 1,
            (Transport::Ping, true) => 58,
        },
        port: row.destination.port(),
        interface: row.interface().map(str::to_owned),
    };
    let trace = walk(table, &lab::addresses_of("node-1"), &packet);
    assert_eq!(trace.unknown, [""; 0], "{}", row.text);
    let shares: f64 = trace.ends.iter().map(|end| f64::from(end.ways) / f64::from(end.of)).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{}: {:?}", row.text, trace.ends);
    let remembered = trace.steps.iter().find_map(|step| Some(step.effect.split_once("update @affinity")?.1.to_owned()));
    let mut each = BTreeSet::new();
    for end in trace.ends {
        match end.outcome {
            Outcome::To { backend: to, .. } if row.transport == Transport::Ping => {
                assert!(lab::addresses_of("node-1").contains(&to.ip()), "{}: {to}", row.text);
                return (Expected::Echo, None);
            }
            Outcome::To { backend: to, masqueraded } => {
                each.insert(backend(lab::machine_at(to.ip()), to.port(), masqueraded.is_some()));
            }
            Outcome::Refused => return (Expected::Reject, None),
            Outcome::Dropped => return (Expected::Drop, None),
            Outcome::Passed => return (Expected::Pass, None),
        }
    }
    (Expected::Backends { each, stays: remembered.is_some() }, remembered)
}

/// Has the calling thread's network namespace forward as the section says.
async fn realize(section: &Section, sockets: Option<SockConfig>) {
    let mut plane = DataPlane::open(ProxyConfig { sockets, ..section.config.clone() }).await.unwrap();
    let report = plane.synced(&section.snapshot()).await;
    assert!(report.refused.is_empty(), "{:?}", report.refused);
}

#[test]
fn by_nftables() {
    require_root!();
    check(every, |section| {
        let lab = lab_of(section);
        lab.at("node-1").block_on(|| realize(section, None));
        observed(section, |row| lab.at(row.source).run(|| observe(row)))
    });
}

/// Rows whose client is on the node, with its sockets led to backends when they connect and nftables below. What is led
/// is direct: no source address is replaced, whatever the row says of it.
#[test]
fn by_the_socket_lb() {
    require_root!();
    let Some(cgroup) = Cgroup::new() else { return skip("no cgroup v2 hierarchy is mounted") };
    let direct = AtomicUsize::new(0);
    with_bpffs(|bpffs| {
        check(Row::is_local, |section| {
            let lab = lab_of(section);
            let sockets = SockConfig::new(cgroup.path().to_owned(), bpffs.join(format!("portolan-{}", section.number)));
            lab.at("node-1").block_on(|| realize(section, Some(sockets.clone())));
            let outcomes = observed(section, |row| cgroup.run(|| lab.at(row.source).run(|| observe(row))));
            cleanup(&sockets.pin_dir).unwrap();
            let told = |(row, outcome): (&Row, Expected)| match row.expected.directly() {
                Some(led) if led == outcome && led != row.expected => {
                    direct.fetch_add(1, Ordering::Relaxed);
                    row.expected.clone()
                }
                _ => outcome,
            };
            section.rows.iter().zip(outcomes).map(told).collect()
        });
    });
    // Those that only differ by being led; that others are led too cannot be seen from outside.
    let direct = direct.into_inner();
    assert!(direct >= 30, "only {direct} rows were led past the rules that replace sources");
}

/// The machines, with somebody to answer wherever a row expects to pass, so that passing can be told from a refusal.
fn lab_of(section: &Section) -> Lab {
    let mut lab = Lab::new();
    lab.add_addresses();
    let mut passes = BTreeMap::<&str, BTreeSet<SocketAddr>>::new();
    let pass = section.rows.iter().filter(|row| row.expected == Expected::Pass).map(|row| row.destination);
    for destination in pass.filter(|destination| ![8080, 9090].contains(&destination.port())) {
        passes.entry(lab::machine_at(destination.ip())).or_default().insert(destination);
    }
    for (machine, addresses) in passes {
        lab.listen(machine, &addresses.into_iter().collect::<Vec<_>>());
    }
    lab
}

/// How many rows are tried at a time: some outcomes are a silence, which takes its time.
const AT_ONCE: usize = 16;

/// What real packets meet with.
fn observed(section: &Section, client: impl Fn(&Row) -> Expected + Sync) -> Vec<Expected> {
    let mut outcomes = Vec::new();
    // Two that remember together have to take turns.
    let runs = section.rows.chunk_by(|a, b| a.stays() == b.stays());
    for rows in runs.flat_map(|run| run.chunks(if run[0].stays() { 1 } else { AT_ONCE })) {
        std::thread::scope(|scope| {
            let clients: Vec<_> = rows.iter().map(|row| scope.spawn(|| client(row))).collect();
            outcomes.extend(clients.into_iter().map(|client| client.join().unwrap()));
        });
    }
    outcomes
}

/// Tries until every expected backend was seen, or often enough to tell that it will not be.
fn observe(row: &Row) -> Expected {
    if let Expected::Alike(all) = &row.expected {
        // By turns, so that it is the same client's next connection that is at another address.
        let turns = (0..6).flat_map(|_| row.each());
        let met: BTreeSet<String> = turns.flat_map(|row| once(&row).backends()).collect();
        let is_alike = met.len() == 1 && met.is_subset(all);
        return if is_alike { row.expected.clone() } else { Expected::Backends { each: met, stays: false } };
    }
    let stays = matches!(row.expected, Expected::Backends { stays: true, .. });
    let mut each = BTreeSet::new();
    // Once all were seen, another that should not be there has some chances more to show up.
    let mut more = 6;
    // A backend of three is missed by sixty tries once in a hundred thousand million. One that does not stay where it
    // is does so in twelve tries once in two hundred thousand.
    for _ in 0..if stays { 12 } else { 60 } {
        match once(row) {
            Expected::Backends { each: met, .. } => each.extend(met),
            other => return other,
        }
        let all = |wanted: &Expected| matches!(wanted, Expected::Backends { each: all, stays: false } if *all == each);
        if all(&row.expected) || row.expected.directly().is_some_and(|direct| all(&direct)) {
            if more == 0 {
                break;
            }
            more -= 1;
        }
    }
    // Which one it is is chance: any of them, led to or not, is as expected.
    let one_of = |wanted: Option<Expected>| match wanted {
        Some(Expected::Backends { each: all, stays: true }) if each.len() == 1 && each.is_subset(&all) => {
            Some(Expected::Backends { each: all, stays: true })
        }
        _ => None,
    };
    let met = one_of(Some(row.expected.clone())).or_else(|| one_of(row.expected.directly()));
    met.unwrap_or(Expected::Backends { each, stays })
}

/// What one connection or datagram meets with.
fn once(row: &Row) -> Expected {
    let dial = Dial::new(row.transport, row.destination);
    // The node takes the address that goes with the route; the others have one to be known by.
    let dial = if row.source == "node-1" { dial } else { dial.from(SocketAddr::new(row.client(), 0)) };
    let dial = if row.expected == Expected::Drop { dial.patience(Duration::from_millis(200)) } else { dial };
    let (by, at, seen_as) = match dial.once() {
        Met::Answered { by, at, seen_as } => (by, at, seen_as),
        Met::Echoed => return Expected::Echo,
        Met::Refused => return Expected::Reject,
        Met::Silent => return Expected::Drop,
        Met::Unreachable => panic!("no route in the lab: {}", row.text),
    };
    // The node itself has several addresses that could be its own; there, replaced or not is the same.
    let masqueraded = row.source == "node-1" || seen_as != row.client();
    let passed = lab::machine_at(row.destination.ip()) == by && at == row.destination.port();
    if passed && (row.source == "node-1" || !masqueraded) {
        return Expected::Pass;
    }
    Expected::Backends { each: BTreeSet::from([backend(&by, at, masqueraded)]), stays: false }
}
